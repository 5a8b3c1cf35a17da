//! What the guest said, and whether it proves that nothing was copied.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};

use crate::run::pilot::{Datapath, Line, Ping, Sent};

/// Called for each frame that is copied into a socket's memory.
const COPY: &str = "__xsk_rcv";
/// Called by a driver that sends from a socket's memory.
const SEND: &str = "xsk_tx_peek_release_desc_batch";
/// Called by a driver that receives into a socket's memory.
const RECEIVE: &str = "xp_alloc_batch";

/// Over the NICs, or over veth, which has no zero-copy: the control.
#[derive(Debug, Default)]
struct Phase {
    /// Of each node that said it.
    datapaths: Vec<Datapath>,
    ping: Option<Ping>,
    sent: Option<Sent>,
    /// Calls of a function of the kernel, before and after.
    before: BTreeMap<String, u64>,
    after: BTreeMap<String, u64>,
}

impl Phase {
    fn calls(&self, function: &str) -> Option<u64> {
        self.after.get(function)?.checked_sub(*self.before.get(function)?)
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Findings {
    nic: Phase,
    veth: Phase,
    /// What else the guest said.
    other: Vec<String>,
}

impl Findings {
    /// Takes a line of the guest's console.
    pub(super) fn take(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["count", place, function, hits] = words[..] {
            let (phase, when) = place.split_once('-').unwrap_or_default();
            let hits = hits.parse().with_context(|| format!("the guest said {line:?}"))?;
            if let Some(phase) = self.phase(phase) {
                let counts = if when == "before" { &mut phase.before } else { &mut phase.after };
                counts.insert(function.to_owned(), hits);
                return Ok(());
            }
        }
        let said = line.split_once(": ").filter(|(_, said)| said.starts_with('{'));
        let Some(phase) = said.and_then(|(who, _)| self.phase(who.split('-').next().unwrap_or_default())) else {
            self.other.push(line.to_owned());
            return Ok(());
        };
        match Line::parse(said.map_or("", |(_, said)| said))? {
            Line::Ready { datapath } | Line::Datapath { datapath } => phase.datapaths.push(datapath),
            Line::Ping(ping) => {
                phase.datapaths.push(ping.datapath.clone());
                phase.ping = Some(ping);
            }
            Line::Send(sent) => phase.sent = Some(sent),
            _ => {}
        }
        Ok(())
    }

    /// What the guest said last beside what is looked for.
    pub(super) fn last_words(&self) -> String {
        format!("the guest said last:\n  {}", self.other[self.other.len().saturating_sub(20)..].join("\n  "))
    }

    fn phase(&mut self, name: &str) -> Option<&mut Phase> {
        match name {
            "nic" => Some(&mut self.nic),
            "veth" => Some(&mut self.veth),
            _ => None,
        }
    }

    /// What does not hold; `sha256` is of the file that was to be sent.
    pub(super) fn failures(&self, sha256: &str) -> Vec<String> {
        let mut failures = Vec::new();
        let mut expect = |holds: bool, what: String| {
            if !holds {
                failures.push(what);
            }
        };
        for (name, phase, mode) in [("the NICs", &self.nic, "zero-copy"), ("veth", &self.veth, "copy")] {
            let is_so = |it: &Datapath| it.mode.as_deref() == Some(mode) && it.attach.as_deref() == Some("native");
            let ways = &phase.datapaths;
            expect(ways.len() > 1 && ways.iter().all(is_so), format!("over {name}: not {mode}, native: {ways:?}"));
            expect(
                phase.ping.as_ref().is_some_and(|ping| ping.lost == 0),
                format!("over {name}: not every delta came back"),
            );
            let whole = phase.sent.as_ref().is_some_and(|sent| sent.sha256_ok && sent.sha256 == sha256);
            expect(whole, format!("over {name}: the file did not arrive as it was"));
        }
        let (copied, control) = (self.nic.calls(COPY), self.veth.calls(COPY));
        expect(copied == Some(0), format!("{COPY} was called {copied:?} times over the NICs"));
        expect(control > Some(0), format!("{COPY} was called {control:?} times over veth: the count shows nothing"));
        for function in [SEND, RECEIVE] {
            let calls = self.nic.calls(function);
            expect(calls > Some(0), format!("{function} was called {calls:?} times over the NICs"));
        }
        if !failures.is_empty() {
            failures.extend(self.other.iter().map(|line| format!("the guest said: {line}")));
        }
        failures
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, phase) in [("NICs", &self.nic), ("veth", &self.veth)] {
            let way = phase.datapaths.first();
            let mode = way.and_then(|way| way.mode.as_deref()).unwrap_or("nothing");
            let (deltas, bytes) =
                (phase.ping.as_ref().map_or(0, |ping| ping.count), phase.sent.as_ref().map_or(0, |it| it.bytes));
            writeln!(f, "{name}: {mode}, {}: {deltas} deltas and {bytes} bytes", way.map_or("", |way| &way.reason))?;
            for function in [COPY, SEND, RECEIVE] {
                writeln!(f, "  {function:31} {:>8} calls", phase.calls(function).unwrap_or(0))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"
nic-a: {"event":"ping","count":1000,"lost":0,"payload_bytes":19,"wire_bytes":48,"wire_bytes_mean":49.1,"handshake_us":9000,"p50_us":900,"p99_us":2000,"aead":"AES-256-GCM","datapath":{"kind":"xdp","mode":"zero-copy","attach":"native","reason":"eth0 (virtio_net) has zero-copy AF_XDP"},"retransmitted":0}
nic-a: {"event":"send","bytes":2097152,"gbit_s":0.01,"sha256":"ab","sha256_ok":true,"retransmitted":0}
nic-b: {"event":"ready","datapath":{"kind":"xdp","mode":"zero-copy","attach":"native","reason":"eth1 (virtio_net) has zero-copy AF_XDP"}}
count nic-before __xsk_rcv 0
count nic-before xsk_tx_peek_release_desc_batch 12
count nic-before xp_alloc_batch 3
count nic-after __xsk_rcv 0
count nic-after xsk_tx_peek_release_desc_batch 2900
count nic-after xp_alloc_batch 318
veth-a: {"event":"ping","count":1000,"lost":0,"payload_bytes":19,"wire_bytes":48,"wire_bytes_mean":49.1,"handshake_us":9000,"p50_us":900,"p99_us":2000,"aead":"AES-256-GCM","datapath":{"kind":"xdp","mode":"copy","attach":"native","reason":"veth-a (veth) is attached to as `attach = \"native\"` says"},"retransmitted":0}
veth-a: {"event":"send","bytes":2097152,"gbit_s":0.01,"sha256":"ab","sha256_ok":true,"retransmitted":0}
veth-b: {"event":"ready","datapath":{"kind":"xdp","mode":"copy","attach":"native","reason":"veth-b (veth) is attached to as `attach = \"native\"` says"}}
count veth-before __xsk_rcv 0
count veth-after __xsk_rcv 4000
[    1.0] a word of the kernel: {not ours"#;

    fn failures(said: &str) -> Vec<String> {
        let mut findings = Findings::default();
        for line in said.lines() {
            findings.take(line).unwrap();
        }
        findings.failures("ab")
    }

    /// Each proof by itself: what is said without it fails.
    #[test]
    fn every_proof_is_asked_for() {
        assert_eq!(failures(SAID), Vec::<String>::new());
        for (what, instead, words) in [
            ("nic-after __xsk_rcv 0", "nic-after __xsk_rcv 1", "called Some(1) times over the NICs"),
            ("veth-after __xsk_rcv 4000", "veth-after __xsk_rcv 0", "shows nothing"),
            ("nic-after xp_alloc_batch 318", "nic-after xp_alloc_batch 3", "xp_alloc_batch was called Some(0)"),
            ("nic-after xsk_tx_peek_release_desc_batch 2900", "", "called None times"),
            (
                r#""mode":"zero-copy","attach":"native","reason":"eth1"#,
                r#""mode":"copy","attach":"native","reason":"eth1"#,
                "not zero-copy",
            ),
            (r#""lost":0"#, r#""lost":1"#, "not every delta"),
            (r#""sha256":"ab""#, r#""sha256":"cd""#, "did not arrive"),
        ] {
            let failures = failures(&SAID.replacen(what, instead, 1));
            assert!(failures.iter().any(|failure| failure.contains(words)), "{what}: {failures:?}");
        }
        assert!(failures("").len() > 6, "silence proves nothing");
    }
}
