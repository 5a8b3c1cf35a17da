//! What a node counts, as text for Prometheus (exposition format 0.0.4; names and meanings in docs/metrics.md).
//!
//! Workers share nothing, so there is no registry that they count in: what each has is asked for, added up, and written here.

mod http;

use std::fmt::Write as _;

use serde_json::Value;

pub(crate) use http::Listener;

/// A metric of one number: its name, kind, meaning, and where the number is in `stats`.
type Single = (&'static str, Kind, &'static str, &'static str);
/// A metric of one number for each member of an object, whose names are a label's values.
type Family = (&'static str, &'static str, &'static str, &'static str);

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}
use Kind::{Counter, Gauge};

const SINGLES: [Single; 30] = [
    ("pilot_workers", Gauge, "Workers, one for each receive queue.", "/workers"),
    ("pilot_applications", Gauge, "Applications that have a session.", "/applications"),
    ("pilot_connections", Gauge, "Connections of all applications.", "/connections"),
    ("pilot_contexts", Gauge, "Contexts that the node holds.", "/contexts"),
    ("pilot_tunnels", Gauge, "Tunnels that are up.", "/tunnels"),
    ("pilot_packets_opened_total", Counter, "Data packets opened.", "/opened"),
    ("pilot_packets_sealed_total", Counter, "Data packets sealed.", "/sealed"),
    ("pilot_tunnel_sent_bytes_total", Counter, "Bytes of data packets sent.", "/transport/sent_bytes"),
    ("pilot_tunnel_received_bytes_total", Counter, "Bytes of data packets opened.", "/transport/received_bytes"),
    (
        "pilot_packets_lost_total",
        Counter,
        "Packets taken for lost: what was in them was sent again.",
        "/transport/lost",
    ),
    ("pilot_spurious_losses_total", Counter, "Of those, packets that were only late.", "/transport/spurious_losses"),
    ("pilot_probe_timeouts_total", Counter, "Probe time-outs.", "/transport/probe_timeouts"),
    ("pilot_ecn_marks_total", Counter, "Packets that the path marked as having met congestion.", "/transport/ecn_ce"),
    ("pilot_rekeys_total", Counter, "Keys replaced while packets came and went.", "/transport/rekeys"),
    ("pilot_resumptions_total", Counter, "Tunnels that went on after silence.", "/transport/resumptions"),
    ("pilot_path_switches_total", Counter, "Changes between first and bulk path.", "/transport/path_switches"),
    ("pilot_black_holes_total", Counter, "Times that large datagrams came not to arrive.", "/transport/black_holes"),
    ("pilot_resets_sent_total", Counter, "Stateless resets sent.", "/resets_sent"),
    ("pilot_resets_received_total", Counter, "Tunnels that a stateless reset ended.", "/resets_received"),
    (
        "pilot_credit_stalls_total",
        Counter,
        "Times that what an application sent had to wait in the node.",
        "/credit_stalls",
    ),
    ("pilot_datagrams_fallback_total", Counter, "Datagrams sent over UDP for want of a next hop.", "/link/fallback"),
    (
        "pilot_xdp_fill_ring_empty_total",
        Counter,
        "Times that the kernel found no chunk to receive a frame into.",
        "/link/rings/fill_empty",
    ),
    ("pilot_xdp_rx_ring_full_total", Counter, "Frames lost because the RX ring was full.", "/link/rings/rx_full"),
    (
        "pilot_xdp_rx_dropped_total",
        Counter,
        "Frames lost for want of a chunk, or longer than one.",
        "/link/rings/rx_dropped",
    ),
    ("pilot_xdp_rx_invalid_total", Counter, "Entries of fill rings that the kernel refused.", "/link/rings/rx_invalid"),
    ("pilot_xdp_tx_invalid_total", Counter, "Entries of TX rings that the kernel refused.", "/link/rings/tx_invalid"),
    (
        "pilot_xdp_tx_ring_empty_total",
        Counter,
        "Times that the kernel looked for more to send and found nothing.",
        "/link/rings/tx_empty",
    ),
    (
        "pilot_handed_over_total",
        Counter,
        "Datagrams that came to another worker than their owner.",
        "/handoff/handed_over",
    ),
    ("pilot_handoff_dropped_total", Counter, "Of those, datagrams lost for want of room.", "/handoff/dropped"),
    ("pilot_rtt_samples_total", Counter, "Round trips measured.", "/rtt/count"),
];

const FAMILIES: [Family; 2] = [
    ("pilot_datagrams_dropped_total", "reason", "Datagrams that came to nothing in the engine.", "/dropped"),
    ("pilot_xdp_frames_total", "verdict", "Frames that the XDP program decided about.", "/xdp"),
];

/// Of the datagrams that are dropped: those of handshakes, which are their results beside `done`.
const HANDSHAKE_DROPS: [&str; 11] = [
    "mac1",
    "no_cookie",
    "source_limit",
    "handshake_decrypt",
    "parameters",
    "certificate",
    "no_common_aead",
    "unknown_peer",
    "stale_timestamp",
    "crossing",
    "no_attempt",
];

/// All metrics, of what the local protocol's `stats` and `peers` say.
pub(crate) fn text(stats: &Value, peers: &Value) -> String {
    let mut out = Text(String::new());
    out.head("pilot_build_info", "gauge", "The version that runs.");
    out.sample("pilot_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1_u8);
    out.head("pilot_datapath_info", "gauge", "How datagrams go.");
    let datapath = ["kind", "mode", "attach"].map(|name| (name, stats["datapath"][name].as_str().unwrap_or("none")));
    out.sample("pilot_datapath_info", &datapath, 1_u8);
    for (name, kind, help, place) in SINGLES {
        out.head(name, if matches!(kind, Counter) { "counter" } else { "gauge" }, help);
        out.sample(name, &[], number(stats, place));
    }
    out.head("pilot_handshakes_total", "counter", "Handshakes, and what became of them.");
    out.sample("pilot_handshakes_total", &[("result", "done")], number(stats, "/handshakes"));
    for reason in HANDSHAKE_DROPS {
        let count = stats["dropped"][reason].as_u64().unwrap_or(0);
        out.sample("pilot_handshakes_total", &[("result", reason)], count);
    }
    for (name, label, help, place) in FAMILIES {
        out.head(name, "counter", help);
        for (member, count) in members(stats, place) {
            out.sample(name, &[(label, member)], count);
        }
    }
    out.links(&stats["link"]);
    out.rtt(&stats["rtt"]);
    out.peers(peers);
    out.0
}

fn number(stats: &Value, place: &str) -> u64 {
    stats.pointer(place).and_then(Value::as_u64).unwrap_or(0)
}

fn members<'a>(stats: &'a Value, place: &str) -> impl Iterator<Item = (&'a str, u64)> {
    let all = stats.pointer(place).and_then(Value::as_object);
    all.into_iter().flatten().map(|(name, value)| (name.as_str(), value.as_u64().unwrap_or(0)))
}

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into memory does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if at == 0 { '{' } else { ',' });
            for character in text.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// By the way that datagrams go: AF_XDP, the first UDP port, the port for bulk.
    fn links(&mut self, link: &Value) {
        const WAYS: [&str; 3] = ["xdp", "udp", "bulk"];
        for (name, member, help) in [
            ("pilot_datagrams_received_total", "received", "Datagrams received."),
            ("pilot_received_bytes_total", "received_bytes", "UDP payload bytes received."),
            ("pilot_datagrams_sent_total", "sent", "Datagrams given to the kernel."),
            ("pilot_sent_bytes_total", "sent_bytes", "UDP payload bytes given to the kernel."),
        ] {
            self.head(name, "counter", help);
            for way in WAYS {
                self.sample(name, &[("way", way)], link[way][member].as_u64().unwrap_or(0));
            }
        }
        for (name, member, label, help) in [
            ("pilot_datagrams_refused_total", "refused", "verdict", "Datagrams received and not taken."),
            ("pilot_datagrams_lost_total", "lost", "reason", "Datagrams that did not leave this host."),
        ] {
            self.head(name, "counter", help);
            for way in WAYS {
                for (what, count) in members(link, &format!("/{way}/{member}")) {
                    self.sample(name, &[("way", way), (label, what)], count);
                }
            }
        }
    }

    fn rtt(&mut self, rtt: &Value) {
        const NAME: &str = "pilot_rtt_seconds";
        self.head(NAME, "histogram", "Round trips as they were measured, with the peer's delay.");
        let mut below = 0;
        for bound_us in pilot_engine::RttCounts::BOUNDS_US {
            below += rtt["below_us"][bound_us.to_string()].as_u64().unwrap_or(0);
            let seconds = (bound_us as f64 / 1e6).to_string();
            self.sample(&format!("{NAME}_bucket"), &[("le", &seconds)], below);
        }
        let count = rtt["count"].as_u64().unwrap_or(0);
        self.sample(&format!("{NAME}_bucket"), &[("le", "+Inf")], count);
        self.sample(&format!("{NAME}_sum"), &[], rtt["sum_us"].as_u64().unwrap_or(0) as f64 / 1e6);
        self.sample(&format!("{NAME}_count"), &[], count);
    }

    fn peers(&mut self, peers: &Value) {
        let peers = || peers.as_array().into_iter().flatten();
        for (name, help) in [
            ("pilot_peer_up", "Whether the tunnel to a peer is up."),
            ("pilot_peer_smoothed_rtt_seconds", "Its smoothed round trip."),
            ("pilot_peer_connections", "Connections of applications to and from it."),
        ] {
            self.head(name, "gauge", help);
            for peer in peers() {
                let lane = peer["lane"].to_string();
                let labels = [("peer", peer["name"].as_str().unwrap_or("?")), ("lane", lane.as_str())];
                match name {
                    "pilot_peer_up" => self.sample(name, &labels, u8::from(peer["up"] == true)),
                    "pilot_peer_connections" => self.sample(name, &labels, peer["connections"].as_u64().unwrap_or(0)),
                    _ => {
                        if let Some(us) = peer["smoothed_rtt_us"].as_u64().filter(|_| peer["up"] == true) {
                            self.sample(name, &labels, us as f64 / 1e6);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_handshakes_are_reasons_that_the_engine_has() {
        let reasons = pilot_engine::DropReason::ALL.map(|(_, name)| name);
        assert!(HANDSHAKE_DROPS.iter().all(|reason| reasons.contains(reason)));
    }

    #[test]
    fn names_are_escaped_and_missing_numbers_are_zero() {
        let text = text(&Value::Null, &serde_json::json!([{"name": "a\"b\\c\n", "lane": 0, "up": true}]));
        assert!(text.contains("pilot_peer_up{peer=\"a\\\"b\\\\c\\n\",lane=\"0\"} 1\n"), "{text}");
        assert!(text.contains("\npilot_tunnels 0\n"), "{text}");
    }
}
