//! Shared contexts by seed, owner and clients over connections in memory: cut at any time, slow, with restarts of either
//! end, a disk that is late or fails to be asked in time, copies that are damaged. At every notice a copy is the document
//! that its version had (C3.3); a version that was announced is never lost (C5.1); and when faults stop, every follower
//! ends at the owner's document, byte by byte. A run that fails prints its seed; `PILOT_SIM_SEEDS=from..to` runs those.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a model's helpers: a failure here is a failed test")]

mod changes;
mod client_side;
mod counters;
mod model;
mod network;
mod nodes;
mod owner_side;

use std::ops::Range;

use counters::Counters;
use model::Model;
use network::Network;

/// Enough to meet most pairs of faults, and few enough for every run of the tests.
const USUAL_SEEDS: Range<u64> = 0..300;

/// A run over the network has handshakes in it, and is a hundred times as long.
const NETWORK_SEEDS: Range<u64> = 0..20;

fn seeds(usual: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("PILOT_SIM_SEEDS") else { return usual };
    let range = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.expect("PILOT_SIM_SEEDS must be FROM..TO, for example 0..1000")
}

/// C1.3, C3.1, C3.2, C3.3, C3.5, C3.6, C3.7, C3.8, C3.9, C4.3, C5.1, C5.2, C5.3.
#[test]
fn every_follower_ends_at_the_owners_document() {
    let mut counters = Counters::default();
    for seed in seeds(USUAL_SEEDS) {
        let mut model = Model::new(seed);
        model.run();
        counters.add(&model.counters);
    }
    println!("{counters:#?}");
    counters.check_all_fired(&model::MUST_FIRE);
}

/// C2.1, C2.7, C3.1, C3.2, C3.3, C3.6, C3.7, over the worker's own loop and the simulator's paths.
#[test]
fn over_the_network_every_follower_ends_at_the_owners_document() {
    let mut counters = Counters::default();
    for seed in seeds(NETWORK_SEEDS) {
        let mut network = Network::new(seed);
        network.run();
        counters.add(&network.counters);
    }
    println!("{counters:#?}");
    counters.check_all_fired(&network::MUST_FIRE);
}
