//! `pilot ping`: messages to a peer's echo service, through the node of this host, or by one on the caller's thread.

mod through_host;

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use crossbeam_channel::Sender;
use hdrhistogram::Histogram;
use pilot_engine::limits::MAX_MESSAGE_BYTES;
use pilot_engine::{CloseReason, Code, ConnectionHandle, Endpoint, Event, Instant, PeerId};
use serde_json::json;

use super::listen::words;
use super::session::{self, Progress, Session};
use super::{Failure, NodeArgs, Output, attached};
use crate::service::{ECHO_PORT, Notice};
use crate::worker::Application;

pub(super) struct Wanted {
    pub(super) count: u64,
    pub(super) payload: Vec<u8>,
    pub(super) interval_ms: u64,
}

pub(super) fn run(args: &NodeArgs, name: &str, wanted: Wanted, output: &Output) -> Result<(), Failure> {
    if wanted.payload.len() > MAX_MESSAGE_BYTES {
        let given = wanted.payload.len();
        return Err(Failure::Usage(anyhow!("--payload: given {given} bytes, allowed: at most {MAX_MESSAGE_BYTES}")));
    }
    let through = attached::run(args, async |node, stop| through_host::run(&node, name, &wanted, stop, output).await)?;
    through.map_or_else(|| run_node(args, name, wanted, output), Ok)
}

/// Runs a node on this thread.
fn run_node(args: &NodeArgs, name: &str, wanted: Wanted, output: &Output) -> Result<(), Failure> {
    let pinger = Pinger::new(wanted).map_err(Failure::Failed)?;
    let Session { stop, control, peers, mut worker, beside, peer, datapath, notices } =
        session::with_peer(args, name, |notices| pinger.telling(notices), Pinger::begin)?;

    let mut progress = Progress::new(&datapath, &control, &peers, &notices, output);
    let text = !output.is_json() && worker.application.wanted.interval_ms > 0;
    let mut printed = 0;
    let mut passes = 0u32;
    let ended = worker.run_until(|worker| {
        passes = passes.wrapping_add(1);
        // Output is looked at now and then only: it must not be part of what is timed.
        if passes.is_multiple_of(1024) || worker.application.wanted.interval_ms > 0 {
            progress.at(worker.application.answered);
        }
        if text && worker.application.answered > printed {
            printed = worker.application.answered;
            let us = worker.application.last_us;
            output.event(&json!({}), || Some(format!("{name}: answer {printed}, {us:.1} µs")));
        }
        stop.is_set() || worker.application.is_over()
    });
    ended.context("link").map_err(Failure::Failed)?;

    let stats = worker.endpoint.tunnel_stats(peer).unwrap_or_default();
    let aead = worker.endpoint.aead(peer);
    // Before our own end of the tunnel is told to us as its end.
    let failed = worker.application.failed.take();
    session::say_goodbye(&mut worker, [peer], Code::NoError)?;
    progress.say();
    let handoff = session::handoffs(&worker, &session::stop(beside)?);
    let pinger = &worker.application;
    let us = |quantile| pinger.latencies.value_at_quantile(quantile) as f64 / 1000.0;
    let wire_bytes = pinger.wire_bytes.value_at_quantile(0.5);
    let mean = pinger.wire_bytes.mean();
    let (count, lost) = (pinger.wanted.count, pinger.wanted.count - pinger.answered);
    let event = json!({
        "event": "ping",
        "count": count,
        "lost": lost,
        "payload_bytes": pinger.wanted.payload.len(),
        "wire_bytes": wire_bytes,
        "wire_bytes_mean": mean,
        "handshake_us": stats.handshake.as_secs_f64() * 1e6,
        "p50_us": us(0.5),
        "p99_us": us(0.99),
        "aead": aead.map(pilot_engine::Aead::name),
        "datapath": *datapath,
        "handoff": handoff,
        "retransmitted": stats.lost_packets,
        "opened_from_xdp": worker.opened.xdp,
        "opened_from_udp": worker.opened.udp,
    });
    if pinger.answered > 0 {
        output.event(&event, || {
            Some(format!(
                "{count} messages of {} bytes, {lost} lost; p50 {:.1} µs, p99 {:.1} µs; \
                 {wire_bytes} bytes of UDP payload each, {mean:.1} with acks; {}",
                pinger.wanted.payload.len(),
                us(0.5),
                us(0.99),
                words(&datapath),
            ))
        });
    }
    match failed {
        _ if lost == 0 => Ok(()),
        Some(reason) => Err(Failure::Failed(anyhow::Error::new(reason).context(name.to_owned()))),
        None => Err(Failure::Interrupted),
    }
}

/// Nanoseconds up to a minute, three digits.
fn latencies() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

/// Sends one message after the other and times the answers.
struct Pinger {
    wanted: Wanted,
    connection: Option<ConnectionHandle>,
    peer: Option<PeerId>,
    connected: bool,
    sent_at: Option<std::time::Instant>,
    /// When to send the next one.
    next: Option<Instant>,
    answered: u64,
    last_us: f64,
    latencies: Histogram<u64>,
    /// UDP payload of what was sent for each message: its packet, and acks that went alone.
    wire_bytes: Histogram<u64>,
    sent_bytes_before: u64,
    failed: Option<CloseReason>,
    buffer: Vec<u8>,
    notices: Option<Sender<Notice>>,
}

impl Pinger {
    fn new(wanted: Wanted) -> anyhow::Result<Self> {
        Ok(Self {
            wanted,
            connection: None,
            peer: None,
            connected: false,
            sent_at: None,
            next: None,
            answered: 0,
            last_us: 0.0,
            latencies: latencies()?,
            // Up to the largest datagram, exactly.
            wire_bytes: Histogram::new_with_bounds(1, 65_536, 4)?,
            sent_bytes_before: 0,
            failed: None,
            buffer: Vec::new(),
            notices: None,
        })
    }

    fn telling(self, notices: Sender<Notice>) -> Self {
        Self { notices: Some(notices), ..self }
    }

    fn begin(&mut self, endpoint: &mut Endpoint, now: Instant, peer: PeerId) -> anyhow::Result<()> {
        self.peer = Some(peer);
        self.connection = Some(endpoint.connect(now, peer, ECHO_PORT)?);
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.failed.is_some() || self.answered == self.wanted.count
    }

    fn sent_bytes(&self, endpoint: &Endpoint) -> u64 {
        self.peer.and_then(|peer| endpoint.tunnel_stats(peer)).map_or(0, |stats| stats.sent_bytes)
    }

    fn send(&mut self, endpoint: &mut Endpoint, now: Instant) {
        let Some(connection) = self.connection else { return };
        self.next = None;
        // The application's own clock: the pass's is a little older.
        self.sent_at = Some(std::time::Instant::now());
        // One message is under way at a time, so that there is room; an end is told by its event.
        let _ = endpoint.send_message(now, connection, &self.wanted.payload);
    }

    fn receive(&mut self, endpoint: &mut Endpoint, now: Instant) {
        let Some(connection) = self.connection else { return };
        self.buffer.clear();
        while let Ok(Some(length)) = endpoint.receive_message(now, connection, &mut self.buffer) {
            let (Some(sent), true) = (self.sent_at.take(), self.buffer[..] == self.wanted.payload) else {
                let given = length;
                tracing::warn!(given, "the peer's echo service sent something else");
                self.buffer.clear();
                continue;
            };
            let elapsed = sent.elapsed();
            self.last_us = elapsed.as_secs_f64() * 1e6;
            let sent_bytes = self.sent_bytes(endpoint);
            // A tunnel that is another one now counts from 0.
            self.wire_bytes.saturating_record(sent_bytes.saturating_sub(self.sent_bytes_before));
            self.sent_bytes_before = sent_bytes;
            self.latencies.saturating_record(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
            self.answered += 1;
            self.buffer.clear();
            if self.answered == self.wanted.count {
                return;
            }
            match self.wanted.interval_ms {
                0 => self.send(endpoint, now),
                pause => self.next = Some(now + Duration::from_millis(pause)),
            }
        }
    }
}

impl Application for Pinger {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event) {
        match event {
            Event::Connected { .. } if !self.connected => {
                self.connected = true;
                self.sent_bytes_before = self.sent_bytes(endpoint);
                self.send(endpoint, now);
            }
            Event::MessagesReadable { .. } => self.receive(endpoint, now),
            Event::Closed { reason, .. } => self.failed = Some(reason),
            Event::Offered { connection, .. } => {
                endpoint.refuse(now, connection, pilot_engine::RefuseCode::NoListener as u64, "this is `pilot ping`");
            }
            Event::Sending { peer, bulk, why } => {
                // Full: nobody reads.
                let _ = self.notices.as_ref().map(|notices| notices.try_send(Notice::Sending { peer, bulk, why }));
            }
            _ => {}
        }
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        let due = self.next.is_some_and(|at| at <= now);
        if due {
            self.send(endpoint, now);
        }
        due
    }

    fn deadline(&self) -> Option<Instant> {
        self.next
    }
}
