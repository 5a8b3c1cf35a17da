//! An attacker on the path of two nodes who sees, drops, delays, repeats, alters and forges datagrams, sends them back, splices
//! one into another, and lets them come from elsewhere; all that short of having a key. Nothing is accepted twice, nothing forged
//! is accepted, nobody's address changes without a packet that is authentic and new, nobody elsewhere gets more than three
//! times what came from there, and when the attacker stops everything arrives (wire.md W3.15, W4.3 to W4.5, W6.4).
#![allow(clippy::unwrap_used, reason = "a test's helper: a failure is the test's")]

mod attacker;
mod nodes;

use std::collections::BTreeMap;
use std::time::Duration;

use attacker::Act;
use nodes::Nodes;
use pilot_engine::DropReason;

const SEEDS: u64 = 24;
const MS: Duration = Duration::from_millis(1);
/// Of attack in turns with rest: long enough for handshakes out of suspicion, of which each is a new session.
const ROUNDS: u32 = 8;
/// For the rest of the transfer, and for what the attack may have ended (30 s of silence) to begin anew.
const FINISH_WITHIN: Duration = Duration::from_secs(120);

/// Attacks a transfer, from the beginning or when the tunnel is up. What the attacker did, and what was dropped for it.
fn attacked(seed: u64, from_the_beginning: bool) -> (BTreeMap<Act, u64>, BTreeMap<&'static str, u64>, u64) {
    let mut nodes = Nodes::new(seed);
    if !from_the_beginning {
        nodes.run(100 * MS);
    }
    for round in 0..ROUNDS {
        nodes.attacker.set_strength(seed + u64::from(round));
        nodes.run(1500 * MS);
    }
    nodes.attacker.stop();
    assert!(nodes.run_until_done(FINISH_WITHIN), "seed {seed}: not finished after the attack");
    for node in &nodes.ends {
        assert!(node.endpoint.is_up(node.peer), "seed {seed}");
        let continued = node.oracle.tunnels()[1..].iter().all(|resumed| *resumed) && node.oracle.closed().is_empty();
        assert!(continued || from_the_beginning, "seed {seed}: the tunnel lived on");
    }
    let by_both = |reason| nodes.ends.iter().map(|node| node.endpoint.stats().dropped(reason)).sum();
    let dropped = DropReason::ALL.into_iter().map(|(reason, name)| (name, by_both(reason))).collect();
    let handshakes = nodes.ends.iter().map(|node| node.endpoint.stats().handshakes).sum();
    (nodes.attacker.acts.clone(), dropped, handshakes)
}

#[test]
fn nothing_forged_is_accepted_nothing_twice_and_the_tunnel_lives_on() {
    let (mut acts, mut dropped) = (BTreeMap::<Act, u64>::new(), BTreeMap::<&str, u64>::new());
    let mut handshakes = 0;
    for seed in 0..SEEDS {
        let (did, reasons, shaken) = attacked(seed, seed % 2 == 1);
        did.into_iter().for_each(|(act, times)| *acts.entry(act).or_default() += times);
        reasons.into_iter().for_each(|(reason, times)| *dropped.entry(reason).or_default() += times);
        handshakes += shaken;
    }
    // It was an attack, with old sessions to replay from.
    for act in Act::ALL {
        assert!(acts.get(&act).is_some_and(|times| *times > 20), "{act:?} in {acts:?}");
    }
    let reasons = ["mac1", "handshake_decrypt", "stale_timestamp", "no_attempt", "unknown_session", "authentication"];
    for reason in reasons.into_iter().chain(["replay", "short", "version", "type", "length"]) {
        assert!(dropped[reason] > 0, "nothing was dropped for {reason}: {dropped:?}");
    }
    assert!(handshakes > 2 * SEEDS, "{handshakes} handshakes");
}
