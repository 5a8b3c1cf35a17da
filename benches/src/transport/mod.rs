//! The transport benches: two ends, and what passes between them. One process is one run of one system under one load.
//!
//! Each end has a namespace, a core and a thread: the far end serves on core 1, the near end asks on core 0 and is measured.
//! A [`System`] is both of its ends; [`Recorder`] says to the asking end how long to go on, and keeps what it took.

mod framing;
mod grpc;
mod gso;
mod http;
mod idle;
mod load;
#[cfg(test)]
mod loopback;
mod nats;
mod peer;
mod pilot;
mod quic;
mod raw;
mod recorder;
mod secure;
mod tcp;
mod tcp_spin;
pub(crate) mod tunnels;
mod udp;
mod websocket;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use crossbeam_channel::{Sender, bounded};
use pilot_user::worker::pin::pin_to_core;
use serde::Serialize;
use serde_json::{Value, json};

use crate::place::Places;
pub(crate) use load::{Kind, Load, MESSAGE, milliseconds};
use pilot::{Pilot, Variant};
pub(crate) use recorder::{Measured, Meter, Recorder};

/// Ends, as [`Places`] counts them; each has the core of its number.
pub(crate) const NEAR: usize = 0;
pub(crate) const FAR: usize = 1;

/// How often what waits for [`Stop`] without a descriptor looks at it.
const LOOK: Duration = Duration::from_millis(10);

/// How much longer than the run the other process of [`idle()`] rests.
const SPARE: Duration = Duration::from_secs(10);

/// What is measured. Not every system can bear every load: `cargo xtask bench` knows which.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Name {
    PilotXdpInline,
    PilotXdpAsync,
    PilotUdp,
    PilotAuto,
    RawXdp,
    UdpSpin,
    UdpBlocking,
    UdpGso,
    TcpTls,
    TcpTlsSpin,
    Quinn,
    GrpcTls,
    GrpcTlsStreaming,
    WebsocketTls,
    HttpJsonTls,
    NatsTls,
}

/// A way to get bytes from one end to the other. It is made before either end runs, once in each process: keys that both ends
/// need are made by whoever comes first, and kept in the directory.
pub(crate) trait System: Send + Sync {
    /// The far end, on its thread: says by `ready` that it can be asked, and serves until `stop`. What it receives under
    /// [`Kind::Messages`] and [`Kind::Bulk`] it counts in `meter` when its application has it. Returns what is worth knowing of it,
    /// as JSON.
    fn serve(&self, load: &Load, meter: &Meter, ready: Ready, stop: &Stop) -> anyhow::Result<Value>;

    /// The near end, on its thread, once the other is ready: connects, calls [`Recorder::start`], goes on until
    /// [`Recorder::goes_on`] or [`Recorder::one`] says that it is over, and returns likewise.
    fn ask(&self, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value>;
}

fn system(name: Name, directory: &Path) -> anyhow::Result<Arc<dyn System>> {
    let address = Places::address(FAR);
    let pilot = |variant| Ok::<Arc<dyn System>, anyhow::Error>(Arc::new(Pilot::new(variant, directory)?));
    Ok(match name {
        Name::PilotXdpInline => pilot(Variant::XdpInline)?,
        Name::PilotXdpAsync => pilot(Variant::XdpAsync)?,
        Name::PilotUdp => pilot(Variant::Udp)?,
        Name::PilotAuto => pilot(Variant::Auto)?,
        Name::RawXdp => Arc::new(raw::Raw),
        Name::UdpGso => Arc::new(gso::Gso),
        Name::UdpSpin => Arc::new(udp::Udp { spins: true }),
        Name::UdpBlocking => Arc::new(udp::Udp { spins: false }),
        Name::TcpTls => Arc::new(tcp::Tcp::new(address, directory)?),
        Name::TcpTlsSpin => Arc::new(tcp_spin::TcpSpin::new(address, directory)?),
        Name::Quinn => Arc::new(quic::Quic::new(address, directory)?),
        Name::GrpcTls => Arc::new(grpc::Grpc::new(address, directory, false)?),
        Name::GrpcTlsStreaming => Arc::new(grpc::Grpc::new(address, directory, true)?),
        Name::WebsocketTls => Arc::new(websocket::WebSocket::new(address, directory)?),
        Name::HttpJsonTls => Arc::new(http::Http::new(address, directory)?),
        Name::NatsTls => Arc::new(nats::Nats::new(address, directory)?),
    })
}

/// Says once that the far end can be asked.
pub(crate) struct Ready(Sender<()>);

impl Ready {
    pub(crate) fn say(self) {
        // Whoever waits has given up, and the run with it.
        let _ = self.0.send(());
    }
}

/// Whether the far end is to end.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits for it.
    pub(crate) async fn wait(&self) {
        while !self.is_set() {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    system: String,
    load: Load,
    #[serde(flatten)]
    measured: Measured,
    /// What the ends said of themselves.
    near: Value,
    far: Value,
}

/// What an end has said.
enum Said {
    Near(anyhow::Result<(Measured, Value)>),
    Far(anyhow::Result<Value>),
}

/// Runs both ends, each on a thread.
pub(crate) fn run(name: Name, places: &Places, directory: &Path, load: Load) -> anyhow::Result<Report> {
    let system = system(name, directory)?;
    let meter = Arc::new(Meter::default());
    let stop = Stop::default();
    let (say, said) = bounded(2);
    let (ready, is_ready) = bounded(1);
    let far = {
        let (system, places, meter, stop, say) =
            (Arc::clone(&system), places.clone(), Arc::clone(&meter), stop.clone(), say.clone());
        move || {
            let served = enter(&places, FAR).and_then(|()| system.serve(&load, &meter, Ready(ready), &stop));
            // Nobody listens when the run has failed.
            let _ = say.send(Said::Far(served));
        }
    };
    std::thread::spawn(far);
    // An end that fails before it is ready drops what says so, and its error is there.
    let is_up = is_ready.recv().is_ok();
    if is_up {
        let places = places.clone();
        let near = move || {
            let mut recorder = Recorder::new(&load, places.clone(), meter);
            let asked = enter(&places, NEAR).and_then(|()| system.ask(&load, &mut recorder));
            let _ = say.send(Said::Near(asked.and_then(|notes| Ok((recorder.finish()?, notes)))));
        };
        std::thread::spawn(near);
    }
    let mut near = None;
    loop {
        match said.recv().context("an end panicked")? {
            Said::Near(asked) => {
                near = Some(asked.context("the asking end")?);
                stop.set();
            }
            Said::Far(served) => {
                let far = served.context("the serving end")?;
                let Some((measured, near)) = near else { bail!("the serving end ended before the run was over") };
                return Ok(Report { system: crate::name(&name), load, measured, near, far });
            }
        }
    }
}

/// Moves the calling thread to an end's namespace and core; threads that it starts are there too.
fn enter(places: &Places, end: usize) -> anyhow::Result<()> {
    places.enter(end)?;
    pin_to_core(end)?;
    Ok(())
}

/// Runs the far end here and the near end in another process, so that memory can be told apart: [`Kind::Idle`].
pub(crate) fn idle(name: Name, places: &Places, directory: &Path, load: Load) -> anyhow::Result<Report> {
    let system = system(name, directory)?;
    let (measured, far) = idle::serve(&system, places, &load)?;
    Ok(Report { system: crate::name(&name), load, measured, near: json!(null), far })
}

/// The other process of [`idle()`].
pub(crate) fn rest(name: Name, places: &Places, directory: &Path, load: Load) -> anyhow::Result<()> {
    let system = system(name, directory)?;
    enter(places, NEAR)?;
    // Until it is killed; and not for ever, should the other process be.
    let longer = Load { time: load.time + SPARE, ..load };
    let mut recorder = Recorder::new(&longer, places.clone(), Arc::new(Meter::default()));
    recorder.says_when_up();
    system.ask(&load, &mut recorder).map(|_| ())
}
