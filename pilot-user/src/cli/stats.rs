//! What a node counted, as one JSON object: the sums, and each worker's own.

use pilot_engine::DropReason;
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::control::Control;
use crate::link::counters::Verdicts;
use crate::link::pair::{PairCounters, PairLink};
use crate::worker::Opened;
use crate::worker::drivers::Worker;
use crate::worker::handoff;

/// Part of the datagrams of a worker, in percent, from which on it is worth saying that they came by another one.
const DETOUR_PERCENT: u64 = 50;
/// Datagrams of a worker below which nothing is said about them.
const DETOUR_LEAST: u64 = 100;

/// What one worker counted.
pub(super) struct Tally {
    opened: Opened,
    link: PairCounters,
    handoff: handoff::Counters,
    handshakes: u64,
    rekeys: u64,
    resumptions: u64,
    resets_sent: u64,
    data: [u64; 2],
    dropped: Vec<u64>,
}

impl Tally {
    pub(super) fn of<A>(worker: &Worker<PairLink, A>) -> Self {
        let (engine, tunnels) = (worker.endpoint.stats(), worker.endpoint.tunnel_totals());
        Self {
            opened: worker.opened,
            link: worker.link.counters(),
            handoff: worker.handoff.counters(),
            handshakes: engine.handshakes,
            rekeys: tunnels.rekeys,
            resumptions: tunnels.resumptions,
            resets_sent: engine.resets_sent,
            data: [engine.opened, engine.sealed],
            dropped: DropReason::ALL.iter().map(|(reason, _)| engine.dropped(*reason)).collect(),
        }
    }

    /// In words, when most of what this worker opened came by other queues than its own.
    fn detour(&self, queue: u32) -> Option<String> {
        let Opened { xdp, udp, bulk, memory, .. } = self.opened;
        let (all, detour) = (xdp + udp + bulk + memory, self.handoff.taken_over);
        let percent = (detour * 100).checked_div(all)?;
        (all >= DETOUR_LEAST && percent >= DETOUR_PERCENT).then(|| {
            format!(
                "{percent} % of what the worker of queue {queue} opened arrived on other queues and was handed over to it: \
                 its peers' datagrams take a detour over another core"
            )
        })
    }
}

/// The `stats` event of a node with these workers.
pub(super) fn stats(tallies: &[Tally], config: &Config, control: &Control) -> Value {
    let verdicts: Verdicts = control.xdp_counters();
    let sum = |of: &dyn Fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let dropped: Map<String, Value> = DropReason::ALL
        .iter()
        .enumerate()
        .map(|(at, (_, name))| ((*name).to_owned(), sum(&|tally| tally.dropped[at]).into()))
        .collect();
    let refusals = refusals(|reason| sum(&|tally| tally.dropped[reason as usize]));
    let link = tallies.iter().fold(PairCounters::default(), |sum, tally| add(sum, tally.link));
    let detours: Vec<String> =
        tallies.iter().zip(&config.queues).filter_map(|(tally, queue)| tally.detour(*queue)).collect();
    let workers: Vec<Value> = tallies
        .iter()
        .zip(&config.queues)
        .enumerate()
        .map(|(number, (tally, queue))| {
            json!({
                "worker": number,
                "queue": queue,
                "core": config.cores.get(number),
                "opened_from_xdp": tally.opened.xdp,
                "opened_from_udp": tally.opened.udp,
                "opened_from_bulk": tally.opened.bulk,
                "handshakes": tally.handshakes,
                "handoff": tally.handoff,
                "link": tally.link,
            })
        })
        .collect();
    json!({
        "event": "stats",
        "xdp": {
            "redirected": verdicts.redirected(),
            "passed": verdicts.passed(),
            "dropped": verdicts.dropped(),
            "verdicts": verdicts,
        },
        "engine": {
            "opened_from_xdp": sum(&|tally| tally.opened.xdp),
            "opened_from_udp": sum(&|tally| tally.opened.udp),
            "opened_from_bulk": sum(&|tally| tally.opened.bulk),
            "rx_ring": link.xdp.received,
            "rx_socket": link.udp.received,
            "rx_bulk": link.bulk.received,
            "handshakes": sum(&|tally| tally.handshakes),
            "rekeys": sum(&|tally| tally.rekeys),
            "resumptions": sum(&|tally| tally.resumptions),
            "resets_sent": sum(&|tally| tally.resets_sent),
            "opened": sum(&|tally| tally.data[0]),
            "sealed": sum(&|tally| tally.data[1]),
            "dropped": dropped,
        },
        "link": link,
        "handoff": tallies.iter().fold(handoff::Counters::default(), |sum, tally| sum + tally.handoff),
        "refusals": refusals,
        "detours": detours,
        "workers": workers,
    })
}

/// Handshakes that came to nothing for a reason that somebody can mend, in words.
fn refusals(dropped: impl Fn(DropReason) -> u64) -> Vec<String> {
    [
        (
            DropReason::UnknownPeer,
            "of nodes that are no peers, or for a lane that was not added: who should be a peer belongs in the configuration",
        ),
        (DropReason::Certificate, "with a key that its identity does not certify, or not any more: that node needs new keys"),
        (DropReason::NoCommonAead, "of peers that use no AEAD that this node uses: compare their `--aead` with ours"),
        (
            DropReason::StaleTimestamp,
            "no newer than one before: replays, or a peer whose clock was set back and has to catch up",
        ),
        (DropReason::NoCookie, "under load and without a cookie, answered with one: see `handshakes_per_second`"),
        (DropReason::SourceLimit, "of sources that had their share: see `handshakes_per_source_per_second`"),
    ]
    .into_iter()
    .filter(|(reason, _)| dropped(*reason) > 0)
    .map(|(reason, why)| format!("refused {} handshakes {why}", dropped(reason)))
    .collect()
}

fn add(one: PairCounters, other: PairCounters) -> PairCounters {
    fn sum<T: std::ops::AddAssign>(mut one: T, other: T) -> T {
        one += other;
        one
    }
    PairCounters {
        udp: sum(one.udp, other.udp),
        bulk: sum(one.bulk, other.bulk),
        xdp: sum(one.xdp, other.xdp),
        rings: sum(one.rings, other.rings),
        fallback: one.fallback + other.fallback,
    }
}

/// The `stats` event in words.
pub(super) fn summary(stats: &Value) -> String {
    let engine = &stats["engine"];
    let mut words = format!(
        "opened {} datagrams from AF_XDP, {} from UDP, {} from UDP's bulk port",
        engine["opened_from_xdp"], engine["opened_from_udp"], engine["opened_from_bulk"]
    );
    if stats["workers"].as_array().is_some_and(|workers| workers.len() > 1) {
        words += &format!(
            ", {} of them after a detour over another worker, {} lost on it",
            stats["handoff"]["taken_over"], stats["handoff"]["dropped"]
        );
    }
    words += &format!(", {} handshakes, {} of them for a new key", engine["handshakes"], engine["rekeys"]);
    for list in ["refusals", "detours"] {
        for line in stats[list].as_array().into_iter().flatten().filter_map(Value::as_str) {
            words = format!("{words}\n{line}");
        }
    }
    words
}
