//! What the `pilot` command says with `--json`: one object a line.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The answer of `pilot keygen`.
#[derive(Debug, Deserialize)]
pub(crate) struct Key {
    pub(crate) public_key: String,
}

/// How a node moves datagrams, and why so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Datapath {
    /// `xdp` or `udp`.
    pub(crate) kind: String,
    /// `zero-copy` or `copy`, of an AF_XDP socket.
    pub(crate) mode: Option<String>,
    /// `native` or `generic`, of an XDP program.
    pub(crate) attach: Option<String>,
    /// Why this one, in words.
    pub(crate) reason: String,
}

/// Verdicts of the XDP program, in packets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Xdp {
    pub(crate) redirected: u64,
    pub(crate) passed: u64,
    pub(crate) dropped: u64,
}

/// Datagrams the engine opened, by the way they came.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Engine {
    pub(crate) opened_from_xdp: u64,
    pub(crate) opened_from_udp: u64,
    /// Datagrams opened that came by the bulk port, which is UDP too, and meant to be.
    pub(crate) opened_from_bulk: u64,
    /// Datagrams that the AF_XDP rings delivered, handshakes included.
    #[serde(skip_serializing)]
    pub(crate) rx_ring: u64,
    /// Datagrams that the kernel's socket on the bulk port delivered.
    #[serde(skip_serializing)]
    pub(crate) rx_bulk: u64,
}

/// What is sent took another path, of a node's two.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sending {
    /// The bulk path, or else the first.
    pub(crate) bulk: bool,
    /// Why.
    pub(crate) why: String,
}

/// The result of `pilot ping`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Ping {
    pub(crate) count: u64,
    pub(crate) lost: u64,
    pub(crate) payload_bytes: u64,
    /// UDP payload of a packet that carries one delta: the median.
    pub(crate) wire_bytes: u64,
    /// UDP payload of all packets sent, acks too, over the deltas.
    pub(crate) wire_bytes_mean: f64,
    pub(crate) handshake_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) aead: String,
    pub(crate) datapath: Datapath,
    pub(crate) retransmitted: u64,
}

/// The result of `pilot send`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Sent {
    pub(crate) bytes: u64,
    pub(crate) gbit_s: f64,
    pub(crate) sha256: String,
    pub(crate) sha256_ok: bool,
    pub(crate) retransmitted: u64,
}

/// A line of `pilot listen`, `ping`, `send` or `ctx`.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Line {
    /// The node can be reached.
    Ready { datapath: Datapath },
    /// The node changed its datapath.
    Datapath { datapath: Datapath },
    /// What it sends takes another path.
    Sending(Sending),
    /// A file has arrived.
    File { path: std::path::PathBuf },
    /// The node's counters, at its end.
    Stats { xdp: Option<Xdp>, engine: Engine },
    /// A shared document came whole.
    Context { version: u64 },
    /// It changed.
    Change { version: u64 },
    /// What a model was given of it so far.
    Tokens { given_tokens: u64, given_bytes: u64 },
    /// A change to it was made.
    ContextChanged { version: u64 },
    /// So many messages, or bytes, are done.
    Progress { done: u64 },
    /// The final object of `pilot ping`.
    Ping(Ping),
    /// The final object of `pilot send`.
    Send(Sent),
    /// What later versions add.
    #[serde(other)]
    Other,
}

impl Line {
    pub(crate) fn parse(line: &str) -> Result<Self> {
        serde_json::from_str(line).with_context(|| format!("pilot said {line:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATAPATH: &str = r#"{"kind":"xdp","mode":"copy","attach":"generic","reason":"veth is virtual"}"#;

    #[test]
    fn ready_and_changes_carry_the_datapath() {
        let Line::Ready { datapath } =
            Line::parse(&format!(r#"{{"event":"ready","datapath":{DATAPATH},"listen":"10.77.0.2:4242"}}"#)).unwrap()
        else {
            panic!("not ready");
        };
        assert_eq!((datapath.kind.as_str(), datapath.mode.as_deref()), ("xdp", Some("copy")));
        let udp =
            r#"{"event":"datapath","datapath":{"kind":"udp","mode":null,"attach":null,"reason":"no privileges"}}"#;
        let Line::Datapath { datapath } = Line::parse(udp).unwrap() else { panic!("not a datapath") };
        assert_eq!((datapath.kind.as_str(), datapath.mode), ("udp", None));
    }

    #[test]
    fn final_objects_are_read() {
        let ping = format!(
            r#"{{"event":"ping","count":100000,"lost":0,"payload_bytes":19,"wire_bytes":50,"wire_bytes_mean":50.5,"handshake_us":612,
                "p50_us":9.25,"p99_us":14.5,"aead":"AES-256-GCM","datapath":{DATAPATH},"retransmitted":3,"new":1}}"#
        );
        let Line::Ping(ping) = Line::parse(&ping).unwrap() else { panic!("not a ping") };
        assert_eq!((ping.count, ping.wire_bytes, ping.handshake_us, ping.p50_us), (100_000, 50, 612.0, 9.25));
        let send = r#"{"event":"send","bytes":67108864,"gbit_s":4.5,"seconds":0.119,"sha256":"ab","sha256_ok":true,
            "retransmitted":0}"#;
        let Line::Send(sent) = Line::parse(send).unwrap() else { panic!("not a send") };
        assert_eq!((sent.bytes, sent.sha256_ok, sent.gbit_s), (67_108_864, true, 4.5));
    }

    #[test]
    fn a_change_of_path_is_read() {
        let line = r#"{"event":"sending","peer":"b","bulk":true,"why":"data queues"}"#;
        let Line::Sending(sending) = Line::parse(line).unwrap() else { panic!("not a change of path") };
        assert_eq!(sending, Sending { bulk: true, why: "data queues".to_owned() });
    }

    #[test]
    fn lines_about_contexts_are_read() {
        let changed = r#"{"event":"context_changed","name":"x","version":3,"stamp":"00:3"}"#;
        assert!(matches!(Line::parse(changed).unwrap(), Line::ContextChanged { version: 3 }));
        let tokens = r#"{"event":"tokens","given_tokens":5,"given_bytes":20,"resent_tokens":9}"#;
        assert!(matches!(Line::parse(tokens).unwrap(), Line::Tokens { given_tokens: 5, given_bytes: 20 }));
    }

    #[test]
    fn stats_without_an_xdp_program_are_read() {
        let stats = r#"{"event":"stats","xdp":null,
            "engine":{"opened_from_xdp":0,"opened_from_udp":7,"opened_from_bulk":0,"rx_ring":0,"rx_bulk":0}}"#;
        let Line::Stats { xdp, engine } = Line::parse(stats).unwrap() else { panic!("not stats") };
        assert!(xdp.is_none());
        assert_eq!(engine.opened_from_udp, 7);
    }

    #[test]
    fn the_unknown_is_skipped_and_the_broken_is_named() {
        assert!(matches!(Line::parse(r#"{"event":"weather","rain":true}"#).unwrap(), Line::Other));
        let error = format!("{:#}", Line::parse(r#"{"event":"ping","count":1}"#).unwrap_err());
        assert!(error.contains("lost"), "{error}");
        assert!(Line::parse("listening").is_err());
    }
}
