//! Pilot at both ends, on the callers' own threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use pilot_engine::{Aeads, CloseReason, ConnectionHandle, Endpoint, Event};
use pilot_user::config::Config;
use pilot_user::control::Control;
use pilot_user::link::pair::PairLink;
use pilot_user::node::Assembly;
use pilot_user::service::{ECHO_PORT, Services};
use pilot_user::worker::Application;
use pilot_user::worker::drivers::Worker;

/// How long a datapath or a connection may take to come up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves echoes until told to stop.
pub(crate) fn server(config: &Config, stop: &AtomicBool) -> anyhow::Result<()> {
    let Assembly { control: _attached, seats, .. } = Assembly::start(config, Aeads::detect(), |_| 0)?;
    let seat = seats.into_iter().next().context("a worker")?;
    let (notices, _) = crossbeam_channel::bounded(1);
    let services = Services::new(0, None, notices, seat.doorbell())?;
    let mut worker = seat.with(services);
    worker.run_until(|_| stop.load(Ordering::Relaxed))?;
    Ok(())
}

/// Connects and lets `bench` use the connection.
pub(crate) fn client(config: &Config, bench: impl FnOnce(&mut Client)) -> anyhow::Result<()> {
    let Assembly { control, peers, seats } = Assembly::start(config, Aeads::detect(), |_| 0)?;
    let peer = peers[0].1;
    let worker = seats.into_iter().next().context("a worker")?.with(Answers::default());
    let mut client = Client { worker, connection: None };
    client.wait(|_| !control.datapath().pending).context("waiting for the datapath")?;
    let now = client.worker.now();
    let connection = client.worker.endpoint.connect(now, peer, ECHO_PORT)?;
    client.connection = Some(connection);
    client.wait(|client| client.worker.endpoint.is_open(connection)).context("waiting for the connection")?;
    // Until frames have taught both ends where the other is.
    (0..1000).for_each(|_| client.round_trip(b"warm"));
    bench(&mut client);
    check(&client, &control, config)
}

/// The figures are of the datapath that was asked for.
fn check(client: &Client, control: &Control, config: &Config) -> anyhow::Result<()> {
    let datapath = control.datapath();
    let opened = client.worker.opened;
    let wanted = match config.datapath {
        pilot_user::config::DatapathChoice::Udp => opened.udp,
        _ => opened.xdp,
    };
    ensure!(wanted * 100 > (opened.udp + opened.xdp) * 99, "another datapath: {opened:?}, {}", datapath.reason);
    Ok(())
}

/// The asking end.
pub(crate) struct Client {
    worker: Worker<PairLink, Answers>,
    connection: Option<ConnectionHandle>,
}

impl Client {
    /// Sends a message and runs passes until its echo is there.
    pub(crate) fn round_trip(&mut self, message: &[u8]) {
        let Some(connection) = self.connection else { return };
        let now = self.worker.now();
        let before = self.worker.application.count;
        // One at a time: there is room, and an end shows below.
        let _ = self.worker.endpoint.send_message(now, connection, message);
        self.worker.transmit(now).expect("the devices stay as they are");
        while self.worker.application.count == before && self.worker.application.closed.is_none() {
            self.worker.run_once().expect("the devices stay as they are");
        }
        assert_eq!(self.worker.application.closed, None, "the connection is over");
    }

    fn wait(&mut self, mut done: impl FnMut(&Self) -> bool) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        while !done(self) {
            self.worker.pass()?;
            if Instant::now() > until {
                bail!("not within {PATIENCE:?}");
            }
        }
        Ok(())
    }
}

/// Counts echoes.
#[derive(Default)]
struct Answers {
    count: u64,
    closed: Option<CloseReason>,
    buffer: Vec<u8>,
}

impl Application for Answers {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: pilot_engine::Instant, event: Event) {
        match event {
            Event::MessagesReadable { connection } => {
                self.buffer.clear();
                while let Ok(Some(_)) = endpoint.receive_message(now, connection, &mut self.buffer) {
                    self.count += 1;
                }
            }
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
