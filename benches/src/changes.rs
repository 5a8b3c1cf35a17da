//! Polling against push: a stream of rare changes, and how its follower hears of them. Most questions have no answer: that is
//! what is counted, with the bytes that they cost and the delay that is left.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::server;

use crate::corpus::{Change, RESEARCHER, Shared, WRITER};
use crate::hub::Hub;
use crate::pipeline::{Arm as _, Traffic};
use crate::place::{self, Places, Sent};
use crate::tls::{PATIENCE, Tls, runtime};
use crate::{http, pilot};

/// How often short polling asks. Everything scales with it but what a push takes; a shorter run is what a shorter interval buys.
const INTERVAL: Duration = Duration::from_millis(10);
/// In how many of 1000 intervals something changes: the published claim that 98.5 % of polls are empty.
const CHANGES_PER_1000: u32 = 15;
/// After how many intervals a long poll is answered with nothing, as proxies make one do.
const LONG_POLL_INTERVALS: u32 = 100;
/// From connecting to the first interval, so that no handshake is counted.
const WARM_UP: Duration = Duration::from_millis(300);

/// How the follower hears of changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum System {
    ShortPolling,
    LongPolling,
    ServerSentEvents,
    Pilot,
    PilotUdp,
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    system: String,
    intervals: u32,
    interval_ms: u64,
    changes: usize,
    responses: u64,
    empty_responses: u64,
    /// Of all frames of both ends, after the handshakes.
    wire_bytes: u64,
    cpu_us: u64,
    /// From each change to when the follower had it.
    delays_us: Vec<u64>,
    /// What the source's device sent between those two.
    sent: Vec<[u64; 2]>,
    notes: Value,
}

/// A source and its follower.
trait Stream {
    /// Makes a change; when the follower has it.
    fn change(&mut self, text: &str) -> anyhow::Result<Instant>;
    /// Responses so far, and empty ones.
    fn responses(&self) -> [u64; 2];
    fn finish(self: Box<Self>) -> anyhow::Result<Value>;
}

/// Words of 27 bytes, as long as there are two digits.
fn words(change: usize) -> String {
    format!("anomaly count updated to {}", 48 + change)
}

/// When each change is made: spread over the run, at ever other places within an interval.
fn schedule(intervals: u32) -> Vec<Duration> {
    let count = (intervals * CHANGES_PER_1000).div_ceil(1000);
    let share = (INTERVAL * intervals).div_f64(f64::from(count));
    // Multiples of the golden ratio, less their whole parts, are spread as evenly as can be.
    (0..count).map(|change| share.mul_f64(f64::from(change) + (f64::from(change) * 0.618_034).fract() * 0.95)).collect()
}

pub(crate) fn run(
    system: System,
    name: &str,
    places: &Places,
    directory: &Path,
    intervals: u32,
) -> anyhow::Result<Report> {
    let mut stream: Box<dyn Stream> = match system {
        System::Pilot => Box::new(Pushed::new("xdp", directory, places)?),
        System::PilotUdp => Box::new(Pushed::new("udp", directory, places)?),
        _ => Box::new(Asked::new(system, places)?),
    };
    std::thread::sleep(WARM_UP);
    let schedule = schedule(intervals);
    let (wire, cpu, before) = (places.sent_bytes()?, place::cpu()?, stream.responses());
    let start = Instant::now();
    let (mut delays_us, mut sent) = (Vec::new(), Vec::new());
    for (change, at) in schedule.iter().enumerate() {
        std::thread::sleep((start + *at).saturating_duration_since(Instant::now()));
        let Sent { bytes, packets } = places.sent(RESEARCHER)?;
        let made = Instant::now();
        let had = stream.change(&words(change))?;
        delays_us.push(had.duration_since(made).as_micros() as u64);
        let after = places.sent(RESEARCHER)?;
        sent.push([after.packets - packets, after.bytes - bytes]);
    }
    std::thread::sleep((start + INTERVAL * intervals).saturating_duration_since(Instant::now()));
    let wire_bytes = places.sent_bytes()? - wire;
    let cpu_us = (place::cpu()? - cpu).as_micros() as u64;
    let after = stream.responses();
    let [responses, empty_responses] = std::array::from_fn(|at| after[at] - before[at]);
    Ok(Report {
        system: name.to_owned(),
        intervals,
        interval_ms: INTERVAL.as_millis() as u64,
        changes: schedule.len(),
        responses,
        empty_responses,
        wire_bytes,
        cpu_us,
        delays_us,
        sent,
        notes: stream.finish()?,
    })
}

/// Pilot: a shared context that the follower follows.
struct Pushed {
    hub: Hub,
    given: u64,
}

impl Pushed {
    fn new(datapath: &str, directory: &Path, places: &Places) -> anyhow::Result<Self> {
        let start = Shared { report: String::new(), facts: json!({}) };
        let mut hub = pilot::hub(datapath, directory, places, &start, 2, &Arc::new(Traffic::default()))?;
        hub.join(WRITER)?;
        Ok(Self { hub, given: 0 })
    }
}

impl Stream for Pushed {
    fn change(&mut self, text: &str) -> anyhow::Result<Instant> {
        let given = self.hub.change(RESEARCHER, &Change::Append(text.into()))?;
        self.given += given.len() as u64;
        let [(given, at)] = &given[..] else { anyhow::bail!("given {} times", given.len()) };
        ensure!(given.text.contains(text), "given {:?} instead of {text:?}", given.text);
        Ok(*at)
    }

    fn responses(&self) -> [u64; 2] {
        // Nothing is sent that is empty: there are no questions.
        [self.given, 0]
    }

    fn finish(self: Box<Self>) -> anyhow::Result<Value> {
        Ok(Box::new(self.hub).finish()?.1)
    }
}

/// HTTP/1.1 over TLS, kept alive.
struct Asked {
    /// How many changes there are.
    changes: watch::Sender<usize>,
    had: Receiver<anyhow::Result<(usize, Instant)>>,
    responses: Arc<[AtomicU64; 2]>,
}

impl Asked {
    fn new(system: System, places: &Places) -> anyhow::Result<Self> {
        let tls = Tls::new("http/1.1")?;
        let (changes, watched) = watch::channel(0);
        let (has, had) = unbounded::<anyhow::Result<(usize, Instant)>>();
        let (listens, listening) = unbounded();
        let responses = Arc::new([const { AtomicU64::new(0) }; 2]);
        let (there, serving, failed) = (places.clone(), tls.clone(), has.clone());
        std::thread::spawn(move || {
            let ended = there.enter(RESEARCHER).and_then(|()| runtime()?.block_on(source(serving, watched, listens)));
            let _ = failed.send(ended.and_then(|()| anyhow::bail!("the source ended")));
        });
        listening.recv_timeout(PATIENCE).context("the source does not listen")?;
        let (there, counted) = (places.clone(), Arc::clone(&responses));
        std::thread::spawn(move || {
            let ended = there
                .enter(WRITER)
                .and_then(|()| runtime()?.block_on(follow(system, tls, |index| has.send(Ok(index)).is_ok(), &counted)));
            let _ = has.send(ended.and_then(|()| anyhow::bail!("the follower ended")));
        });
        Ok(Self { changes, had, responses })
    }
}

impl Stream for Asked {
    fn change(&mut self, _: &str) -> anyhow::Result<Instant> {
        self.changes.send_modify(|changes| *changes += 1);
        let (count, at) = self.had.recv_timeout(PATIENCE).context("the change never came")??;
        ensure!(count == *self.changes.borrow(), "change {count} came");
        Ok(at)
    }

    fn responses(&self) -> [u64; 2] {
        [0, 1].map(|at| self.responses[at].load(Ordering::Relaxed))
    }

    fn finish(self: Box<Self>) -> anyhow::Result<Value> {
        Ok(json!({"tls": "1.3, AES-256-GCM", "nodelay": true, "keep_alive": true}))
    }
}

async fn source(tls: Tls, changes: watch::Receiver<usize>, listens: Sender<()>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(Places::address(RESEARCHER)).await?;
    listens.send(())?;
    loop {
        let stream = tls.accept(&listener).await?;
        tokio::spawn(serve(stream, changes.clone()));
    }
}

type Body = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

async fn serve(stream: server::TlsStream<TcpStream>, changes: watch::Receiver<usize>) -> anyhow::Result<()> {
    let service = service_fn(|request: Request<Incoming>| answer(request, changes.clone()));
    Ok(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?)
}

/// `/poll/N`, `/wait/N`: the changes after the first N, now or as soon as there is one; `/events`: each as it comes.
async fn answer(request: Request<Incoming>, mut changes: watch::Receiver<usize>) -> anyhow::Result<Response<Body>> {
    let path = request.uri().path();
    if path == "/events" {
        let events = stream::unfold((changes, 0), |(mut changes, told)| async move {
            changes.wait_for(|count| *count > told).await.ok()?;
            let event = format!("data: {}\n\n", words(told));
            Some((Ok(Frame::data(event.into())), (changes, told + 1)))
        });
        let response = Response::builder().header("content-type", "text/event-stream");
        return Ok(response.body(StreamBody::new(events.boxed()))?);
    }
    let after: usize = path.rsplit('/').next().context("no number")?.parse()?;
    if path.starts_with("/wait/") {
        // When nothing has come in time, the answer says so.
        let _ = tokio::time::timeout(INTERVAL * LONG_POLL_INTERVALS, changes.wait_for(|count| *count > after)).await;
    }
    let count = *changes.borrow();
    let body = Bytes::from(json!({"changes": (after..count).map(words).collect::<Vec<_>>()}).to_string());
    let response = Response::builder().header("content-type", "application/json").header("content-length", body.len());
    Ok(response.body(StreamBody::new(stream::iter([Ok(Frame::data(body))]).boxed()))?)
}

/// Follows for ever. `has` is told how many changes there are now.
async fn follow(
    system: System,
    tls: Tls,
    has: impl Fn((usize, Instant)) -> bool,
    responses: &[AtomicU64; 2],
) -> anyhow::Result<()> {
    let mut client = http::Client::new(tls.connect(Places::address(RESEARCHER)).await?).await?;
    let mut known = 0;
    let mut got = |new: usize| {
        responses[0].fetch_add(1, Ordering::Relaxed);
        responses[1].fetch_add(u64::from(new == 0), Ordering::Relaxed);
        known += new;
        // Nobody listens when the run is over.
        let _ = new > 0 && has((known, Instant::now()));
        known
    };
    if system == System::ServerSentEvents {
        let mut events = client.get("/events").await?;
        while let Some(frame) = events.frame().await {
            let frame = frame?.into_data().map_err(|_| anyhow::anyhow!("not data"))?;
            got(std::str::from_utf8(&frame)?.matches("data: ").count());
        }
        return Ok(());
    }
    let mut ticks = tokio::time::interval(INTERVAL);
    let (mut after, path) = (0, if system == System::LongPolling { "wait" } else { "poll" });
    loop {
        if system == System::ShortPolling {
            ticks.tick().await;
        }
        let body = client.get(&format!("/{path}/{after}")).await?.collect().await?.to_bytes();
        let answer: Value = serde_json::from_slice(&body)?;
        after = got(answer["changes"].as_array().context("no list")?.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_rare_and_apart() {
        for (intervals, changes) in [(1000, 15), (400, 6)] {
            let schedule = schedule(intervals);
            assert_eq!(schedule.len(), changes);
            assert!(schedule.windows(2).all(|two| two[1] - two[0] > 20 * INTERVAL), "{schedule:?}");
            assert!(*schedule.last().unwrap() < INTERVAL * intervals);
        }
        assert!((0..15).all(|change| words(change).len() == 27));
    }
}
