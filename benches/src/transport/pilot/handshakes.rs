//! Handshakes one after the other, on as many lanes at a time as are wanted: each a tunnel of its own, with all of a first
//! handshake but that the peer is known. By the kernel's UDP: the XDP program lets one source have 200 a second.

use std::collections::BTreeMap;
use std::time::Instant;

use pilot_engine::limits::MAX_LANES;
use pilot_engine::{Aeads, Code, Endpoint, Event, PeerId};
use pilot_user::config::Config;
use pilot_user::node::Assembly;
use pilot_user::worker::Application;
use serde_json::{Value, json};

use super::inline::{Far, first};
use crate::transport::{Load, Meter, Ready, Recorder, Stop};

/// With so many lanes to the peer.
fn with_lanes(config: &Config, load: &Load) -> (Config, u8) {
    let lanes = u8::try_from(load.connections).unwrap_or(MAX_LANES).clamp(1, MAX_LANES);
    let mut config = config.clone();
    config.peers.iter_mut().for_each(|peer| peer.lanes = lanes);
    (config, lanes)
}

pub(super) fn serve(config: &Config, load: &Load, meter: &Meter, ready: Ready, stop: &Stop) -> anyhow::Result<Value> {
    let Assembly { control: _kept, seats, .. } = Assembly::start(&with_lanes(config, load).0, Aeads::detect(), |_| 0)?;
    let mut worker = first(seats)?.with(Far::new(load, meter));
    ready.say();
    worker.run_until(|_| stop.is_set())?;
    Ok(json!({"handshakes": worker.endpoint.stats().handshakes}))
}

pub(super) fn ask(config: &Config, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value> {
    let (config, lanes) = with_lanes(config, load);
    let Assembly { control: _kept, peers, seats } = Assembly::start(&config, Aeads::detect(), |_| 0)?;
    let mut worker = first(seats)?.with(Near::default());
    let mut began: BTreeMap<PeerId, Instant> = BTreeMap::new();
    for (_, peer) in peers {
        let now = worker.now();
        worker.endpoint.open_tunnel(now, peer);
        began.insert(peer, Instant::now());
    }
    recorder.start();
    while recorder.goes_on() {
        worker.run_once()?;
        for peer in std::mem::take(&mut worker.application.up) {
            let now = worker.now();
            if let Some(began) = began.insert(peer, Instant::now()) {
                recorder.took(began);
            }
            worker.endpoint.close_tunnel(now, peer, Code::NoError);
            worker.endpoint.open_tunnel(now, peer);
        }
    }
    Ok(json!({
        "encrypted": true, "handshake": "Noise IKpsk2, X25519 and ML-KEM-512", "at_a_time": lanes,
        "handshakes": worker.endpoint.stats().handshakes,
    }))
}

/// Tunnels that came up.
#[derive(Default)]
struct Near {
    up: Vec<PeerId>,
}

impl Application for Near {
    fn on_event(&mut self, _: &mut Endpoint, _: pilot_engine::Instant, event: Event) {
        if let Event::TunnelUp { peer, .. } = event {
            self.up.push(peer);
        }
    }

    fn poll(&mut self, _: &mut Endpoint, _: pilot_engine::Instant) -> bool {
        false
    }

    fn deadline(&self) -> Option<pilot_engine::Instant> {
        None
    }
}
