//! Pilot at both ends, on the callers' own threads: one stream, as much as it takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use pilot_engine::{Aeads, ConnectionHandle, Endpoint, Event, OperationError, Read, StreamId};
use pilot_user::config::Config;
use pilot_user::identity_file;
use pilot_user::link::pair::PairLink;
use pilot_user::node::Assembly;
use pilot_user::worker::Application;
use pilot_user::worker::drivers::Worker;

use crate::Measured;
use crate::scene::{ADDRESSES, DEVICES, Scene};

const PORT: u16 = 9000;

/// How long a datapath or a connection may take to come up.
const PATIENCE: Duration = Duration::from_secs(10);

/// From the first byte: slow start, path MTU, the way that bulk takes.
const WARM_UP: Duration = Duration::from_millis(700);

/// Bytes that an application writes or reads at once.
const PIECE: usize = 128 << 10;

/// Makes keys and a configuration for each end.
pub(crate) fn configs(scene: &Scene, datapath: &str, attach: &str, bulk: &str) -> anyhow::Result<[Config; 2]> {
    let key = |end: usize| identity_file::create(&scene.directory.join(format!("{end}.key")));
    let keys = [key(0)?.public_key(), key(1)?.public_key()];
    let config = |own: usize| {
        let other = 1 - own;
        let text = format!(
            "identity = \"{own}.key\"\naddress = \"0:0000.0000.000{own}\"\ninterface = \"{}\"\nlisten = \"{}\"\n\
             datapath = \"{datapath}\"\nattach = \"{attach}\"\nbulk = \"{bulk}\"\n[[peers]]\nname = \"other\"\n\
             address = \"0:0000.0000.000{other}\"\nkey = \"{}\"\nendpoint = \"{}\"\n",
            DEVICES[own], ADDRESSES[own], keys[other], ADDRESSES[other],
        );
        Config::parse(&text, &scene.directory)
    };
    Ok([config(0)?, config(1)?])
}

/// What a worker's link and tunnel counted, in words.
fn notes(worker: &Worker<PairLink, impl Application>, peer: pilot_engine::PeerId) -> String {
    let Some(it) = worker.endpoint.tunnel_stats(peer) else { return "no tunnel".to_owned() };
    let link = worker.link.counters();
    let kernel = worker.link.xdp().and_then(|link| link.xsk().kernel_statistics().ok());
    let xsk = worker.link.xdp().map(|link| link.xsk().counters());
    format!(
        "{} B datagrams, {} sent, {} lost ({} spurious), {} time-outs, rtt {:?} least {:?}, window {}, \
         link lost {}/{}/{}, opened {:?}, {kernel:?}, {xsk:?}",
        it.max_datagram,
        it.sent_packets,
        it.lost_packets,
        it.spurious_losses,
        it.probe_timeouts,
        it.smoothed_rtt,
        it.min_rtt,
        it.congestion_window,
        link.udp.lost.total(),
        link.bulk.lost.total(),
        link.xdp.lost.total(),
        worker.opened,
    )
}

/// Reads all that comes, for `time` after a while, and then ends the sender too.
pub(crate) fn receiver(config: &Config, time: Duration, stop: &AtomicBool) -> anyhow::Result<Measured> {
    let Assembly { control, peers, seats } = Assembly::start(config, Aeads::detect(), |_| 0)?;
    let mut worker = seats.into_iter().next().context("a worker")?.with(Sink::default());
    let begun = Instant::now();
    while worker.application.bytes == 0 && !stop.load(Ordering::Relaxed) {
        worker.run_once()?;
        if begun.elapsed() > PATIENCE {
            bail!("nothing came");
        }
    }
    let first = Instant::now();
    while first.elapsed() < WARM_UP && !stop.load(Ordering::Relaxed) {
        worker.run_once()?;
    }
    let (from, bytes) = (Instant::now(), worker.application.bytes);
    while from.elapsed() < time && !stop.load(Ordering::Relaxed) {
        worker.run_once()?;
    }
    let (elapsed, bytes) = (from.elapsed(), worker.application.bytes - bytes);
    stop.store(true, Ordering::Relaxed);
    let notes = format!("receiver: {}", notes(&worker, peers[0].1));
    drop(control);
    Ok(Measured { bytes, elapsed, notes })
}

/// Connects and writes until told to stop.
pub(crate) fn sender(config: &Config, time: Duration, stop: &AtomicBool) -> anyhow::Result<String> {
    let Assembly { control, peers, seats } = Assembly::start(config, Aeads::detect(), |_| 0)?;
    let peer = peers[0].1;
    let mut worker = seats.into_iter().next().context("a worker")?.with(Source::default());
    let until = Instant::now() + PATIENCE;
    while control.datapath().pending {
        worker.pass()?;
        if Instant::now() > until {
            bail!("no datapath");
        }
    }
    let now = worker.now();
    let connection = worker.endpoint.connect(now, peer, PORT)?;
    while !worker.endpoint.is_open(connection) {
        worker.pass()?;
        if Instant::now() > until {
            bail!("no connection");
        }
    }
    let stream = worker.endpoint.open_unidirectional(worker.now(), connection)?;
    worker.application = Source { at: Some((connection, stream)), blocked: false, piece: vec![7; PIECE] };
    let until = Instant::now() + WARM_UP + time + PATIENCE;
    let (mut datapath, mut said) = (String::new(), None);
    while !stop.load(Ordering::Relaxed) && Instant::now() < until {
        worker.run_once()?;
        if said.is_none() {
            said = Some(());
            datapath = control.datapath().reason.clone();
        }
    }
    let sent = notes(&worker, peer);
    drop(control);
    Ok(format!("{datapath}; sender: {sent}"))
}

/// Reads and counts.
struct Sink {
    bytes: u64,
    buffer: Vec<u8>,
}

impl Default for Sink {
    fn default() -> Self {
        Self { bytes: 0, buffer: vec![0; PIECE] }
    }
}

impl Application for Sink {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: pilot_engine::Instant, event: Event) {
        match event {
            Event::Offered { connection, .. } => _ = endpoint.accept(now, connection),
            Event::StreamOpened { connection, stream } | Event::StreamReadable { connection, stream } => {
                while let Ok(Read::Bytes(length)) = endpoint.read(now, connection, stream, &mut self.buffer) {
                    self.bytes += length as u64;
                }
            }
            _ => {}
        }
    }

    fn poll(&mut self, _: &mut Endpoint, _: pilot_engine::Instant) -> bool {
        false
    }

    fn deadline(&self) -> Option<pilot_engine::Instant> {
        None
    }
}

/// Writes whatever there is room for.
#[derive(Default)]
struct Source {
    at: Option<(ConnectionHandle, StreamId)>,
    blocked: bool,
    piece: Vec<u8>,
}

impl Application for Source {
    fn on_event(&mut self, _: &mut Endpoint, _: pilot_engine::Instant, event: Event) {
        if let Event::StreamWritable { .. } = event {
            self.blocked = false;
        }
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: pilot_engine::Instant) -> bool {
        let Some((connection, stream)) = self.at.filter(|_| !self.blocked) else { return false };
        let mut any = false;
        loop {
            match endpoint.write(now, connection, stream, &self.piece) {
                Ok(taken) if taken == self.piece.len() => any = true,
                Ok(_) | Err(OperationError::Blocked) => break,
                Err(_) => {
                    self.at = None;
                    return any;
                }
            }
        }
        self.blocked = true;
        any
    }

    fn deadline(&self) -> Option<pilot_engine::Instant> {
        None
    }
}
