//! The caller's own thread is the worker: what an application gets that wants the lowest latency and gives a core for it.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context as _, anyhow, bail, ensure};
use pilot_engine::{Aeads, CloseReason, ConnectionHandle, Endpoint, Event, OperationError, PeerId, Read, TunnelStats};
use pilot_user::config::{Config, DatapathChoice};
use pilot_user::control::Control;
use pilot_user::link::pair::PairLink;
use pilot_user::node::{Assembly, Seat};
use pilot_user::worker::Application;
use pilot_user::worker::drivers::Worker;
use serde_json::{Value, json};

use super::PORT;
use crate::tls::PATIENCE;
use crate::transport::{Kind, LOOK, Load, MESSAGE, Meter, Ready, Recorder, Stop};

/// Bytes that are written to a stream, and read from one, at a time.
const PIECE: usize = 64 << 10;
/// Messages between two passes: 32 KiB of them, where peers collect 64 KiB before they write.
const BURST: usize = 32 * 1024 / (MESSAGE.len() + 5);
/// Round trips before a run, until frames have taught both ends where the other is.
const ACQUAINTANCE: usize = 1000;

type Inline<A> = Worker<PairLink, A>;

/// Starts a node with its one worker, and runs it until it is decided which way datagrams go.
fn start<A: Application>(config: &Config, application: A) -> anyhow::Result<(Control, PeerId, Inline<A>)> {
    let Assembly { control, peers, seats } = Assembly::start(config, Aeads::detect(), |_| 0)?;
    let (_, peer) = *peers.first().context("a peer")?;
    let mut worker = first(seats)?.with(application);
    wait(&mut worker, |_| !control.datapath().pending).context("waiting for the datapath")?;
    Ok((control, peer, worker))
}

/// The one worker's place.
pub(super) fn first(seats: Vec<Seat>) -> anyhow::Result<Seat> {
    seats.into_iter().next().context("a worker")
}

fn wait<A: Application>(worker: &mut Inline<A>, mut done: impl FnMut(&mut Inline<A>) -> bool) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    while !done(worker) {
        worker.pass()?;
        ensure!(Instant::now() < until, "not within {PATIENCE:?}");
    }
    Ok(())
}

pub(super) fn serve(config: &Config, load: &Load, meter: &Meter, ready: Ready, stop: &Stop) -> anyhow::Result<Value> {
    let (control, _, mut worker) = start(config, Far::new(load, meter))?;
    ready.say();
    worker.run_until(|_| stop.is_set())?;
    Ok(notes(&control, &worker))
}

pub(super) fn ask(config: &Config, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value> {
    let (control, peer, worker) = start(config, Near::default())?;
    let mut client = Client { worker, peer, connection: None, before: None };
    client.connect()?;
    match load.kind {
        Kind::Echo => client.echo(recorder)?,
        Kind::Messages => client.messages(recorder)?,
        Kind::Bulk => client.bulk(recorder)?,
        Kind::Idle => client.idle(recorder)?,
        Kind::Handshakes => bail!("not on one tunnel"),
    }
    let after = client.stats();
    let before = client.before.take().unwrap_or_default();
    let mut notes = notes(&control, &client.worker);
    notes["aead"] = json!(client.worker.endpoint.aead(peer).map(|aead| format!("{aead:?}")));
    notes["handshake_us"] = json!(after.handshake.as_micros() as u64);
    notes["max_datagram"] = json!(after.max_datagram);
    notes["sent_packets"] = json!(after.sent_packets - before.sent_packets);
    // There is nothing between the ends but this machine: what did not arrive was dropped here.
    let lost = |stats: &TunnelStats| stats.lost_packets - stats.spurious_losses;
    notes["dropped_packets"] = json!(lost(&after).saturating_sub(lost(&before)));
    check(config, &client.worker)?;
    let now = client.worker.now();
    client.worker.endpoint.close_tunnel(now, peer, pilot_engine::Code::NoError);
    client.worker.pass()?;
    Ok(notes)
}

fn notes<A>(control: &Control, worker: &Inline<A>) -> Value {
    let opened = &worker.opened;
    let opened = json!({"xdp": opened.xdp, "udp": opened.udp, "bulk": opened.bulk});
    json!({"encrypted": true, "datapath": *control.datapath(), "opened": opened})
}

/// What was measured is what was asked for.
fn check<A>(config: &Config, worker: &Inline<A>) -> anyhow::Result<()> {
    let opened = worker.opened;
    let wanted = match config.datapath {
        DatapathChoice::Xdp => opened.xdp,
        DatapathChoice::Udp => opened.udp,
        DatapathChoice::Auto => return Ok(()),
    };
    // The first datagrams may find nobody's address known.
    let others = opened.udp + opened.xdp + opened.bulk - wanted;
    ensure!(others <= 16 + wanted / 100, "other ways than {:?}: {opened:?}", config.datapath);
    Ok(())
}

/// The far end: takes what comes, and answers if that is wanted.
pub(super) struct Far<'a> {
    answers: bool,
    meter: &'a Meter,
    buffer: Vec<u8>,
    now: pilot_engine::Instant,
}

impl<'a> Far<'a> {
    pub(super) fn new(load: &Load, meter: &'a Meter) -> Self {
        Self { answers: load.kind == Kind::Echo, meter, buffer: Vec::new(), now: pilot_engine::Instant::ORIGIN }
    }
}

impl Application for Far<'_> {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: pilot_engine::Instant, event: Event) {
        match event {
            // An error is that of a connection that is over; its end is told by an event of its own.
            Event::Offered { connection, .. } => drop(endpoint.accept(now, connection)),
            Event::MessagesReadable { connection } if self.answers => {
                self.buffer.clear();
                while let Ok(Some(_)) = endpoint.receive_message(now, connection, &mut self.buffer) {
                    let _ = endpoint.send_message(now, connection, &self.buffer);
                    self.buffer.clear();
                }
            }
            Event::MessagesReadable { connection } => {
                let mut bytes = 0;
                let count = |message: &[u8]| bytes += black_box(message).len() as u64;
                if let Ok(messages) = endpoint.receive_messages(now, connection, count) {
                    self.meter.arrived(messages, bytes);
                }
            }
            Event::StreamReadable { connection, stream } => {
                self.buffer.resize(PIECE, 0);
                while let Ok(Read::Bytes(length)) = endpoint.read(now, connection, stream, &mut self.buffer) {
                    self.meter.arrived(0, length as u64);
                }
            }
            Event::Closed { connection, .. } => endpoint.close(now, connection, 0, ""),
            _ => {}
        }
    }

    fn poll(&mut self, _: &mut Endpoint, now: pilot_engine::Instant) -> bool {
        self.now = now;
        false
    }

    /// So that it looks whether it shall stop.
    fn deadline(&self) -> Option<pilot_engine::Instant> {
        Some(self.now + LOOK)
    }
}

/// What the near end was told.
#[derive(Default)]
struct Near {
    answers: u64,
    has_room: bool,
    closed: Option<CloseReason>,
    buffer: Vec<u8>,
}

impl Application for Near {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: pilot_engine::Instant, event: Event) {
        match event {
            Event::MessagesReadable { connection } => {
                self.buffer.clear();
                while let Ok(Some(_)) = endpoint.receive_message(now, connection, &mut self.buffer) {
                    self.answers += 1;
                }
            }
            Event::MessagesWritable { .. } | Event::StreamWritable { .. } => self.has_room = true,
            Event::Closed { reason, .. } => self.closed = Some(reason),
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

/// The asking end.
struct Client {
    worker: Inline<Near>,
    peer: PeerId,
    connection: Option<ConnectionHandle>,
    /// When the run began to count.
    before: Option<TunnelStats>,
}

impl Client {
    fn connect(&mut self) -> anyhow::Result<()> {
        let now = self.worker.now();
        let connection = self.worker.endpoint.connect(now, self.peer, PORT)?;
        self.connection = Some(connection);
        wait(&mut self.worker, |worker| worker.endpoint.is_open(connection)).context("waiting for the connection")
    }

    fn connection(&self) -> anyhow::Result<ConnectionHandle> {
        self.connection.context("connected before")
    }

    fn stats(&self) -> TunnelStats {
        self.worker.endpoint.tunnel_stats(self.peer).unwrap_or_default()
    }

    /// A pass, with a spin or a sleep where there is nothing to do.
    fn turn(&mut self) -> anyhow::Result<()> {
        self.worker.run_once()?;
        match self.worker.application.closed.take() {
            Some(reason) => Err(anyhow!(reason)),
            None => Ok(()),
        }
    }

    /// Looks at what was sent so far, once the run counts.
    fn on_counting(&mut self, recorder: &Recorder) {
        if self.before.is_none() && recorder.counts() {
            self.before = Some(self.stats());
        }
    }

    fn round_trip(&mut self, connection: ConnectionHandle) -> anyhow::Result<()> {
        let before = self.worker.application.answers;
        let now = self.worker.now();
        self.worker.endpoint.send_message(now, connection, MESSAGE)?;
        while self.worker.application.answers == before {
            self.turn()?;
        }
        Ok(())
    }

    fn echo(&mut self, recorder: &mut Recorder) -> anyhow::Result<()> {
        let connection = self.connection()?;
        for _ in 0..ACQUAINTANCE {
            self.round_trip(connection)?;
        }
        recorder.start();
        while let Some(began) = recorder.one() {
            self.round_trip(connection)?;
            recorder.took(began);
        }
        Ok(())
    }

    /// Each message its own `send`; what is queued when a packet is built goes into it.
    fn messages(&mut self, recorder: &mut Recorder) -> anyhow::Result<()> {
        let connection = self.connection()?;
        recorder.start();
        while recorder.goes_on() {
            self.on_counting(recorder);
            let now = self.worker.now();
            self.worker.endpoint.send_messages(now, connection, |to| {
                for _ in 0..BURST {
                    match to.send(black_box(MESSAGE)) {
                        Ok(()) => {}
                        Err(OperationError::Blocked) => break,
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            })??;
            self.turn()?;
        }
        Ok(())
    }

    fn bulk(&mut self, recorder: &mut Recorder) -> anyhow::Result<()> {
        let (connection, piece) = (self.connection()?, vec![0x5a; PIECE]);
        let now = self.worker.now();
        let stream = self.worker.endpoint.open_unidirectional(now, connection)?;
        self.worker.application.has_room = true;
        recorder.start();
        while recorder.goes_on() {
            self.on_counting(recorder);
            let now = self.worker.now();
            while self.worker.application.has_room {
                match self.worker.endpoint.write(now, connection, stream, &piece) {
                    Ok(written) => self.worker.application.has_room = written == piece.len(),
                    Err(OperationError::Blocked) => self.worker.application.has_room = false,
                    Err(error) => return Err(error.into()),
                }
            }
            self.turn()?;
        }
        Ok(())
    }

    fn idle(&mut self, recorder: &mut Recorder) -> anyhow::Result<()> {
        recorder.start();
        while recorder.goes_on() {
            self.turn()?;
        }
        Ok(())
    }
}
