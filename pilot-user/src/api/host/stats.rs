//! What a worker says of itself: numbers, which add up over all workers (local-protocol.md §3, `stats`).

use pilot_engine::{DropReason, Endpoint, RttCounts};
use serde_json::{Value, json};

use super::super::switchboard::numbers;
use super::Host;
use crate::worker::Counted;

impl Host {
    pub(super) fn stats(&mut self, endpoint: &Endpoint, counted: &Counted) -> Value {
        let (stats, tunnels) = (endpoint.stats(), endpoint.tunnel_totals());
        let peers = self.board.peers();
        let up = peers.iter().filter(|peer| peer.worker == self.worker && endpoint.is_up(peer.id));
        let below_us = RttCounts::BOUNDS_US.iter().map(u64::to_string).zip(stats.rtt.up_to);
        let below_us: serde_json::Map<_, _> = below_us.map(|(bound, count)| (bound, count.into())).collect();
        json!({
            "opened": stats.opened,
            "sealed": stats.sealed,
            "handshakes": stats.handshakes,
            "resets_sent": stats.resets_sent,
            "resets_received": stats.resets_received,
            "dropped": numbers(DropReason::ALL.map(|(reason, name)| (name, stats.dropped(reason)))),
            "tunnels": up.count(),
            "connections": self.owners.len(),
            "contexts": self.services.contexts().map_or(0, |contexts| contexts.count()),
            "credit_stalls": self.credit_stalls,
            "transport": {
                "sent_bytes": tunnels.sent_bytes,
                "received_bytes": tunnels.received_bytes,
                "lost": tunnels.lost_packets,
                "spurious_losses": tunnels.spurious_losses,
                "probe_timeouts": tunnels.probe_timeouts,
                "ecn_ce": tunnels.ecn_ce,
                "rekeys": tunnels.rekeys,
                "resumptions": tunnels.resumptions,
                "path_switches": tunnels.path_switches,
                "black_holes": tunnels.black_holes,
            },
            "rtt": {
                "below_us": below_us,
                "count": stats.rtt.count,
                "sum_us": stats.rtt.sum.as_micros() as u64,
            },
            "link": counted.link,
            "handoff": counted.handoff,
        })
    }
}
