//! Bulk over veth, sender on core 0 and receiver on core 1, counted by the receiving application: Pilot on the callers' threads by
//! each way that it has, and beside it in the same run what AF_XDP moves by itself. Systems take turns; needs root.
//! `cargo bench --package pilot-benches --bench bulk -- [--mtu 1500] [--seconds 3] [--rounds 3] [SYSTEM...]`

mod blast;
mod pilot;
#[path = "../echo/scene.rs"]
mod scene;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use scene::Scene;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum System {
    /// AF_XDP alone: frames as long as Pilot's.
    Raw,
    /// Pilot, all of it by AF_XDP.
    Xdp,
    /// Pilot, AF_XDP attached in the driver.
    Native,
    /// Pilot over the kernel's UDP.
    Udp,
    /// Pilot as it chooses.
    Auto,
}

#[derive(Parser)]
struct Arguments {
    /// Which, in this order; all without it.
    systems: Vec<System>,
    /// Of both devices, in bytes.
    #[arg(long, default_value_t = 1500)]
    mtu: u32,
    /// How long each is measured.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How often.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What the receiving end counted.
struct Measured {
    bytes: u64,
    elapsed: Duration,
    /// In words, what else there is to say.
    notes: String,
}

impl Measured {
    fn gbit(&self) -> f64 {
        self.bytes as f64 * 8e-9 / self.elapsed.as_secs_f64()
    }
}

/// Runs `receiver` in the second namespace on core 1 while `sender` runs in the first on core 0; the sender ends it. Both get the flag.
fn beside<R: Send>(
    scene: &Scene,
    sender: impl FnOnce(&AtomicBool) -> anyhow::Result<String> + Send,
    receiver: impl FnOnce(&AtomicBool) -> anyhow::Result<R> + Send,
) -> anyhow::Result<(String, R)> {
    let stop = AtomicBool::new(false);
    let stop = &stop;
    std::thread::scope(|threads| {
        let receiver = threads.spawn(move || {
            let result = scene.enter(1).and_then(|()| receiver(stop));
            stop.store(true, Ordering::Relaxed);
            result
        });
        let sender = threads.spawn(move || {
            let result = scene.enter(0).and_then(|()| sender(stop));
            stop.store(true, Ordering::Relaxed);
            result
        });
        let sender = sender.join().unwrap_or_else(|_| bail!("the sender panicked")).context("sender");
        let receiver = receiver.join().unwrap_or_else(|_| bail!("the receiver panicked")).context("receiver");
        Ok((sender?, receiver?))
    })
}

fn measure(system: System, arguments: &Arguments) -> anyhow::Result<Measured> {
    let name = format!("{system:?}").to_lowercase();
    let scene = Scene::new(&name, arguments.mtu)?;
    let time = Duration::from_secs_f64(arguments.seconds);
    let (datapath, attach, bulk) = match system {
        System::Raw => {
            let payload = arguments.mtu as usize - 28;
            let (_, measured) =
                beside(&scene, |stop| blast::sender(payload, stop), |stop| blast::receiver(payload, time, stop))?;
            return Ok(measured);
        }
        System::Xdp => ("xdp", "auto", "never"),
        System::Native => ("xdp", "native", "never"),
        System::Udp => ("udp", "auto", "auto"),
        System::Auto => ("auto", "auto", "auto"),
    };
    let configs = pilot::configs(&scene, datapath, attach, bulk)?;
    let (said, mut measured) =
        beside(&scene, |stop| pilot::sender(&configs[0], time, stop), |stop| pilot::receiver(&configs[1], time, stop))?;
    measured.notes = format!("{said}; {}", measured.notes);
    Ok(measured)
}

fn main() -> anyhow::Result<()> {
    let mut arguments = Arguments::parse();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: bulk: network namespaces need root");
        return Ok(());
    }
    if arguments.systems.is_empty() {
        arguments.systems = System::value_variants().to_vec();
    }
    let mut figures = vec![Vec::new(); arguments.systems.len()];
    for _ in 0..arguments.rounds {
        for (system, figures) in arguments.systems.iter().zip(&mut figures) {
            let measured = measure(*system, &arguments).with_context(|| format!("{system:?}"))?;
            println!("{system:?} {:.2} Gbit/s; {}", measured.gbit(), measured.notes);
            figures.push(measured.gbit());
        }
    }
    for (system, mut figures) in arguments.systems.iter().zip(figures) {
        figures.sort_by(f64::total_cmp);
        println!("median {system:?} {:.2} Gbit/s of {figures:.2?}", figures[figures.len() / 2]);
    }
    Ok(())
}
