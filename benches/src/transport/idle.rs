//! Connections at rest: the far end runs here, the near end in a process of its own, so that what this one holds is the far end's.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use crossbeam_channel::bounded;
use serde_json::Value;

use super::recorder::cpu_of;
use super::{FAR, Load, Measured, Meter, Ready, Stop, System, enter};
use crate::place::{Places, cpu};

/// Ends the other process, which needs no last words.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves, has the other process connect, and looks at both while nothing happens.
pub(super) fn serve(system: &Arc<dyn System>, places: &Places, load: &Load) -> anyhow::Result<(Measured, Value)> {
    let stop = Stop::default();
    let (ready, is_ready) = bounded(1);
    let far = {
        let (system, places, load, stop) = (Arc::clone(system), places.clone(), *load, stop.clone());
        std::thread::spawn(move || {
            enter(&places, FAR).and_then(|()| system.serve(&load, &Meter::default(), Ready(ready), &stop))
        })
    };
    let joined = |far: std::thread::JoinHandle<_>| far.join().unwrap_or_else(|_| bail!("the serving end panicked"));
    if is_ready.recv().is_err() {
        joined(far)?;
        bail!("the serving end ended before it was asked");
    }
    let before = resident_bytes()?;
    let mut other = Command::new(std::env::current_exe()?);
    other.args(std::env::args_os().skip(1)).arg("--asks").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut other = Other(other.spawn().context("starting the other end")?);
    let mut line = String::new();
    BufReader::new(other.0.stdout.take().context("a piped child has a standard output")?).read_line(&mut line)?;
    ensure!(line.trim() == "up", "the other end said {line:?}");
    std::thread::sleep(load.warm_up);
    let time = || anyhow::Ok(cpu()? + cpu_of(other.0.id())?);
    let (cpu_before, since) = (time()?, Instant::now());
    std::thread::sleep(load.time);
    let cpu_ns = (time()? - cpu_before).as_nanos() as u64;
    let measured = Measured {
        time_ns: since.elapsed().as_nanos() as u64,
        cpu_ns,
        resident_bytes_per_connection: Some(resident_bytes()?.saturating_sub(before) as f64 / load.connections as f64),
        ..Measured::default()
    };
    drop(other);
    stop.0.store(true, std::sync::atomic::Ordering::Relaxed);
    Ok((measured, joined(far)?))
}

/// What this process holds, memory of C libraries included (proc_pid_statm(5)).
fn resident_bytes() -> anyhow::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").context("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("no second field in statm")?.parse()?;
    Ok(pages * 4096)
}
