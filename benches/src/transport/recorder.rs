//! How long the asking end goes on, what each operation took, and what all of it cost.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::Load;
use crate::place::{Places, cpu};

/// Digits that the histogram keeps: 0.1 %.
const DIGITS: u8 = 3;
/// What takes longer counts as this; no run does.
const LONGEST: Duration = Duration::from_secs(60);
/// Where the curve of the distribution is drawn, as far as there are samples for it: powers of ten from the end.
const NINES: i32 = 5;
const STEPS_A_NINE: u32 = 10;

/// What the far end's application has received. It alone writes, the other end reads twice. A clone counts into the same.
#[derive(Clone, Default)]
pub(crate) struct Meter(Arc<Received>);

#[derive(Default)]
struct Received {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Meter {
    /// So many messages of so many bytes in all.
    pub(crate) fn arrived(&self, messages: u64, bytes: u64) {
        self.0.messages.fetch_add(messages, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn read(&self) -> (u64, u64) {
        (self.0.messages.load(Ordering::Relaxed), self.0.bytes.load(Ordering::Relaxed))
    }
}

/// See the module's head. A run warms up, then counts, then is over.
pub(crate) struct Recorder {
    places: Places,
    meter: Arc<Meter>,
    warm_up: Duration,
    time: Duration,
    phase: Phase,
    /// Nanoseconds of each operation.
    took: Histogram<u64>,
    /// Other processes that belong to the system.
    others: Vec<u32>,
    /// What reading a counter met with: told at the end.
    failed: Option<anyhow::Error>,
    says_when_up: bool,
}

enum Phase {
    /// Not everything is connected.
    Connecting,
    WarmUp {
        until: Instant,
    },
    Counting {
        since: Instant,
        until: Instant,
        wire_bytes: u64,
        before: Counters,
    },
    Over(Option<Measured>),
}

/// Totals at one time, of what is read in an instant.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    cpu: Duration,
    messages: u64,
    bytes: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Measured {
    pub(crate) time_ns: u64,
    /// Of all processes of the system, both ends, user and system.
    pub(crate) cpu_ns: u64,
    /// What both devices sent, headers included.
    pub(crate) wire_bytes: u64,
    /// What the far end's application received.
    pub(crate) arrived_messages: u64,
    pub(crate) arrived_bytes: u64,
    /// Operations of the asking end, and the distribution of what they took: shares, and nanoseconds that such a share took at most.
    pub(crate) operations: u64,
    pub(crate) quantiles_ns: Vec<(f64, u64)>,
    /// What the serving end's process holds for each connection, where they are idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resident_bytes_per_connection: Option<f64>,
}

impl Recorder {
    pub(crate) fn new(load: &Load, places: Places, meter: Arc<Meter>) -> Self {
        Self {
            places,
            meter,
            warm_up: load.warm_up,
            time: load.time,
            phase: Phase::Connecting,
            took: Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, DIGITS)
                .expect("the bounds are constants, and right"),
            others: Vec::new(),
            failed: None,
            says_when_up: false,
        }
    }

    /// Another process belongs to the system: its time counts too.
    pub(crate) fn count_process(&mut self, id: u32) {
        self.others.push(id);
    }

    /// [`Recorder::start`] prints a line.
    pub(super) fn says_when_up(&mut self) {
        self.says_when_up = true;
    }

    /// Everything is connected: the warm-up begins.
    pub(crate) fn start(&mut self) {
        self.phase = Phase::WarmUp { until: Instant::now() + self.warm_up };
        if self.says_when_up {
            println!("up");
        }
    }

    /// Whether to go on. Reads the clock: where an operation takes less than a microsecond, ask once for several.
    pub(crate) fn goes_on(&mut self) -> bool {
        self.one().is_some()
    }

    /// When an operation begins, for [`Recorder::took`]; `None`: the run is over.
    pub(crate) fn one(&mut self) -> Option<Instant> {
        let now = Instant::now();
        match &self.phase {
            Phase::WarmUp { until } if now < *until => Some(now),
            Phase::Counting { until, .. } if now < *until => Some(now),
            Phase::WarmUp { .. } => {
                // What takes long to read comes first here, and last at the end: the others then belong to the time between.
                let wire_bytes = self.wire_bytes();
                let before = self.counters();
                let since = Instant::now();
                self.phase = Phase::Counting { since, until: since + self.time, wire_bytes, before };
                Some(since)
            }
            Phase::Counting { since, wire_bytes, before, .. } => {
                let (since, wire_bytes, before) = (*since, *wire_bytes, *before);
                let time = since.elapsed();
                let after = self.counters();
                let wire_bytes = self.wire_bytes() - wire_bytes;
                self.phase = Phase::Over(Some(self.measured(time, wire_bytes, before, after)));
                None
            }
            Phase::Connecting | Phase::Over(_) => None,
        }
    }

    /// Whether what happens now counts.
    pub(crate) fn counts(&self) -> bool {
        matches!(self.phase, Phase::Counting { .. })
    }

    /// An operation that began then is done. What began while the run warmed up does not count.
    pub(crate) fn took(&mut self, began: Instant) {
        if let Phase::Counting { since, .. } = self.phase
            && began >= since
        {
            self.took.saturating_record(began.elapsed().as_nanos() as u64);
        }
    }

    /// What was found.
    pub(super) fn finish(self) -> anyhow::Result<Measured> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        match self.phase {
            Phase::Over(Some(measured)) => Ok(measured),
            _ => anyhow::bail!("the asking end stopped before the run was over"),
        }
    }

    fn measured(&self, time: Duration, wire_bytes: u64, before: Counters, after: Counters) -> Measured {
        Measured {
            time_ns: time.as_nanos() as u64,
            cpu_ns: after.cpu.saturating_sub(before.cpu).as_nanos() as u64,
            wire_bytes,
            arrived_messages: after.messages - before.messages,
            arrived_bytes: after.bytes - before.bytes,
            operations: self.took.len(),
            quantiles_ns: quantiles(&self.took),
            resident_bytes_per_connection: None,
        }
    }

    fn wire_bytes(&mut self) -> u64 {
        let bytes = self.places.sent_bytes();
        self.known(bytes)
    }

    fn counters(&mut self) -> Counters {
        let (messages, bytes) = self.meter.read();
        let others = self.others.iter().map(|id| cpu_of(*id)).sum::<anyhow::Result<Duration>>();
        let cpu = others.and_then(|others| Ok(others + cpu()?));
        Counters { cpu: self.known(cpu), messages, bytes }
    }

    /// Nothing, when it could not be read, which is told at the end.
    fn known<T: Default>(&mut self, read: anyhow::Result<T>) -> T {
        read.unwrap_or_else(|error| {
            self.failed.get_or_insert(error);
            T::default()
        })
    }
}

/// Processor time of another process, of all its threads that still run (`schedstat`: nanoseconds on a processor).
pub(super) fn cpu_of(process: u32) -> anyhow::Result<Duration> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task")).with_context(|| format!("process {process}"))? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        total += text.split(' ').next().unwrap_or_default().parse::<u64>().with_context(|| format!("{text:?}"))?;
    }
    Ok(Duration::from_nanos(total))
}

/// Denser towards the end: the median, and ten points for each nine.
fn quantiles(histogram: &Histogram<u64>) -> Vec<(f64, u64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let mut shares = vec![0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];
    for nine in 1..NINES {
        let rest = 10f64.powi(-nine);
        shares.extend((0..STEPS_A_NINE - 1).map(|step| 1.0 - rest * (1.0 - f64::from(step) / f64::from(STEPS_A_NINE))));
    }
    shares.push(1.0);
    shares.into_iter().map(|share| (share, histogram.value_at_quantile(share))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Kind;

    fn recorder(warm_up: u64, time: u64) -> Recorder {
        let load = Load {
            kind: Kind::Echo,
            warm_up: Duration::from_millis(warm_up),
            time: Duration::from_millis(time),
            mtu: 1500,
            connections: 1,
        };
        Recorder::new(&load, Places::new(vec![], 0).unwrap(), Arc::new(Meter::default()))
    }

    #[test]
    fn what_began_while_it_warmed_up_does_not_count() {
        let mut recorder = recorder(20, 20);
        assert!(recorder.one().is_none(), "nothing is connected");
        recorder.start();
        recorder.meter.arrived(7, 70);
        let early = recorder.one().unwrap();
        while matches!(recorder.phase, Phase::WarmUp { .. }) {
            assert!(recorder.goes_on());
        }
        recorder.took(early);
        let mut count = 0;
        while let Some(began) = recorder.one() {
            std::thread::sleep(Duration::from_millis(1));
            recorder.meter.arrived(1, 10);
            recorder.took(began);
            count += 1;
        }
        assert!(!recorder.goes_on(), "it is over for good");
        let measured = recorder.finish().unwrap();
        assert_eq!(measured.operations, count);
        assert_eq!((measured.arrived_messages, measured.arrived_bytes), (count, 10 * count));
        assert!(measured.time_ns >= 20_000_000);
        let [(_, least), .., (_, most)] = measured.quantiles_ns[..] else { panic!("no distribution") };
        assert!((1_000_000..=measured.time_ns).contains(&least) && most >= least);
        assert!(measured.quantiles_ns.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1));
    }

    #[test]
    fn who_stops_early_has_found_nothing() {
        let mut recorder = recorder(0, 1000);
        recorder.start();
        recorder.one();
        assert!(recorder.finish().unwrap_err().to_string().contains("before the run was over"));
    }

    #[test]
    fn a_distribution_says_what_readers_look_for() {
        let mut took = Histogram::new(DIGITS).unwrap();
        (1..=100_000).for_each(|ns| took.record(ns).unwrap());
        let quantiles = quantiles(&took);
        for (share, wanted) in [(0.0, 1.0), (0.5, 50_000.0), (0.99, 99_000.0), (0.999, 99_900.0), (1.0, 100_000.0)] {
            let found = quantiles.iter().find(|(at, _)| (at - share).abs() < 1e-9).map(|(_, ns)| *ns as f64).unwrap();
            assert!((found / wanted - 1.0).abs() < 0.002, "{share}: {found}");
        }
        assert!(super::quantiles(&Histogram::new(DIGITS).unwrap()).is_empty());
    }

    #[test]
    fn another_process_has_time_of_its_own() {
        let own = cpu_of(std::process::id()).unwrap();
        assert!(own > Duration::ZERO && own <= cpu().unwrap() + Duration::from_millis(100));
        assert!(cpu_of(u32::MAX).is_err());
    }
}
