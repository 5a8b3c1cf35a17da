//! `pilot send`: a file to a peer's file service, through the node of this host, or by one on the caller's thread.

mod through_host;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use crossbeam_channel::Sender;
use pilot_engine::{Code, ConnectionHandle, Endpoint, Event, Instant, PeerId, Read, StreamId};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::listen::words;
use super::session::{self, Progress, Session};
use super::{Failure, NodeArgs, Output, attached};
use crate::service::disk::hex;
use crate::service::files::{Answer, Head, MAX_HEAD_BYTES, decode, encode};
use crate::service::{FILES_PORT, Notice};
use crate::worker::Application;

/// Bytes read from the file at once.
const PIECE_BYTES: usize = 64 << 10;

pub(super) fn run(args: &NodeArgs, file: &Path, name: &str, output: &Output) -> Result<(), Failure> {
    // There until either has it.
    let mut source = Some(Source::open(file).map_err(Failure::Usage)?);
    let through = attached::run(args, async |node, stop| match source.take() {
        Some(source) => through_host::send(&node, name, source, stop).await,
        None => Err(Failure::Interrupted),
    })?;
    match (through, source) {
        (Some(sent), _) => sent.conclude(name, json!({"attached": true}), "through the node of this host", output),
        (None, Some(source)) => run_node(args, source, name, output),
        (None, None) => Err(Failure::Interrupted),
    }
}

/// Runs a node on this thread.
fn run_node(args: &NodeArgs, source: Source, name: &str, output: &Output) -> Result<(), Failure> {
    let sender = FileSender::new(source);
    let Session { stop, control, peers, mut worker, beside, peer, datapath, notices } =
        session::with_peer(args, name, |notices| sender.telling(notices), FileSender::begin)?;

    let mut progress = Progress::new(&datapath, &control, &peers, &notices, output);
    let ended = worker.run_until(|worker| {
        progress.at(worker.application.sent);
        stop.is_set() || worker.application.result.is_some()
    });
    ended.context("link").map_err(Failure::Failed)?;

    let stats = worker.endpoint.tunnel_stats(peer).unwrap_or_default();
    // Before our own end of the tunnel is told to us as its end.
    let result = worker.application.result.take();
    session::say_goodbye(&mut worker, [peer], Code::NoError)?;
    progress.say();
    let handoff = session::handoffs(&worker, &session::stop(beside)?);
    let FileSender { source, started, answered, .. } = worker.application;
    let answer = match result {
        Some(Ok(answer)) => answer,
        Some(Err(error)) => return Err(Failure::Failed(error.context(name.to_owned()))),
        None => return Err(Failure::Interrupted),
    };
    let took = started.zip(answered).map(|(started, answered)| answered.duration_since(started));
    let more = json!({
        "retransmitted": stats.lost_packets,
        "packets": stats.sent_packets,
        "max_datagram": stats.max_datagram,
        "smoothed_rtt_us": stats.smoothed_rtt.as_secs_f64() * 1e6,
        "datapath": *datapath,
        "handoff": handoff,
    });
    let words = format!("{} packets sent again; {}", stats.lost_packets, words(&datapath));
    source.sent(answer, took.unwrap_or_default()).conclude(name, more, &words, output)
}

/// What was sent, and what came of it.
struct Sent {
    head: Head,
    sha256: String,
    answer: Answer,
    took: Duration,
}

impl Sent {
    /// Prints it, with more members and words of how it went.
    fn conclude(self, name: &str, more: Value, words: &str, output: &Output) -> Result<(), Failure> {
        let Self { head: Head { bytes, .. }, sha256, answer, took } = self;
        let received = match answer {
            Answer::Received { bytes, sha256 } => (bytes, sha256),
            Answer::Refused { reason } => {
                return Err(Failure::Failed(anyhow!("{name} refused the file: {reason}")));
            }
        };
        let sha256_ok = received == (bytes, sha256.clone());
        let seconds = took.as_secs_f64();
        let gbit_s = bytes as f64 * 8.0 / 1e9 / seconds.max(1e-9);
        let mut event = json!({
            "event": "send",
            "bytes": bytes,
            "seconds": seconds,
            "gbit_s": gbit_s,
            "sha256": sha256,
            "sha256_ok": sha256_ok,
        });
        if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
            event.extend(more);
        }
        output.event(&event, || {
            let same = if sha256_ok { "the same on both sides" } else { "DIFFERS" };
            Some(format!("{bytes} bytes in {seconds:.3} s, {gbit_s:.2} Gbit/s; sha256 {same}; {words}"))
        });
        if sha256_ok {
            Ok(())
        } else {
            Err(Failure::Failed(anyhow!("{name} has {} bytes with sha256 {}", received.0, received.1)))
        }
    }
}

/// A file on its way: its head, and then its bytes, a piece at a time.
struct Source {
    file: File,
    head: Head,
    digest: Sha256,
    piece: Vec<u8>,
}

impl Source {
    /// With the head as its first piece.
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let metadata = file.metadata().with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().and_then(|name| name.to_str());
        let (Some(name), true) = (name, metadata.is_file()) else {
            bail!("{}: given something else, allowed: a regular file with a name in UTF-8", path.display());
        };
        let head = Head { name: name.to_owned(), bytes: metadata.len() };
        Ok(Self { file, piece: encode(&head), head, digest: Sha256::new() })
    }

    /// Reads the next piece; an empty one is the end.
    fn fill(&mut self) -> anyhow::Result<()> {
        self.piece.resize(PIECE_BYTES, 0);
        let length = self.file.read(&mut self.piece).context("cannot read the file")?;
        self.piece.truncate(length);
        self.digest.update(&self.piece);
        Ok(())
    }

    fn sent(self, answer: Answer, took: Duration) -> Sent {
        Sent { head: self.head, sha256: hex(&self.digest.finalize()), answer, took }
    }
}

/// Sends a file and waits for the answer.
struct FileSender {
    source: Source,
    target: Option<(ConnectionHandle, Option<StreamId>)>,
    /// Of the source's piece: how much the stream took.
    taken: usize,
    finished: bool,
    /// Bytes of the file that the stream took.
    sent: u64,
    answer: Vec<u8>,
    result: Option<anyhow::Result<Answer>>,
    started: Option<std::time::Instant>,
    answered: Option<std::time::Instant>,
    notices: Option<Sender<Notice>>,
}

impl FileSender {
    fn new(source: Source) -> Self {
        Self {
            source,
            target: None,
            taken: 0,
            finished: false,
            sent: 0,
            answer: Vec::new(),
            result: None,
            started: None,
            answered: None,
            notices: None,
        }
    }

    fn telling(self, notices: Sender<Notice>) -> Self {
        Self { notices: Some(notices), ..self }
    }

    fn begin(&mut self, endpoint: &mut Endpoint, now: Instant, peer: PeerId) -> anyhow::Result<()> {
        self.target = Some((endpoint.connect(now, peer, FILES_PORT)?, None));
        Ok(())
    }

    /// Writes until the stream takes no more.
    fn send(&mut self, endpoint: &mut Endpoint, now: Instant) -> anyhow::Result<()> {
        let Some((connection, Some(stream))) = self.target else { return Ok(()) };
        while !self.finished {
            if self.taken == self.source.piece.len() {
                self.source.fill()?;
                self.taken = 0;
            }
            if self.source.piece.is_empty() {
                endpoint.finish(now, connection, stream)?;
                self.finished = true;
                break;
            }
            match endpoint.write(now, connection, stream, &self.source.piece[self.taken..]) {
                Ok(length) => {
                    self.taken += length;
                    self.sent += length as u64;
                }
                // Room, or the end, is told by an event.
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn receive(&mut self, endpoint: &mut Endpoint, now: Instant) -> anyhow::Result<()> {
        let Some((connection, Some(stream))) = self.target else { return Ok(()) };
        let mut buffer = [0; MAX_HEAD_BYTES];
        while let Read::Bytes(length) = endpoint.read(now, connection, stream, &mut buffer)? {
            self.answer.extend_from_slice(&buffer[..length]);
            if let Some((answer, _)) = decode(&self.answer).map_err(|reason| anyhow!("its answer: {reason}"))? {
                self.answered = Some(std::time::Instant::now());
                self.result = Some(Ok(answer));
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Application for FileSender {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event) {
        let done = match event {
            Event::Connected { connection } => {
                self.started = Some(std::time::Instant::now());
                endpoint.open_stream(now, connection).map_err(Into::into).and_then(|stream| {
                    self.target = Some((connection, Some(stream)));
                    self.send(endpoint, now)
                })
            }
            Event::StreamWritable { .. } => self.send(endpoint, now),
            Event::StreamReadable { .. } => self.receive(endpoint, now),
            Event::Closed { reason, .. } => Err(reason.into()),
            Event::Sending { peer, bulk, why } => {
                // Full: nobody reads.
                let _ = self.notices.as_ref().map(|notices| notices.try_send(Notice::Sending { peer, bulk, why }));
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(error) = done {
            self.result.get_or_insert(Err(error));
        }
    }

    fn poll(&mut self, _: &mut Endpoint, _: Instant) -> bool {
        false
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }
}
