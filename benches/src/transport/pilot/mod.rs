//! Pilot, by its ways to be driven and to send: reliable and encrypted, with a hybrid handshake.

mod asynchronous;
mod crowd;
mod handshakes;
mod inline;

use std::path::Path;

use pilot_user::config::Config;
use pilot_user::identity_file;
use serde_json::Value;

use super::{FAR, Kind, Load, Meter, NEAR, Ready, Recorder, Stop, System};
use crate::place::{DEVICE, Places};

/// Where the far end listens.
const PORT: u16 = 9;
/// More than there will be: else a node asks for cookies when many come at once, which costs them a round trip.
const HANDSHAKES_PER_SECOND: u32 = 3000;
/// The peer's name, at either end.
const OTHER: &str = "other";

/// Which Pilot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Variant {
    /// AF_XDP alone, the caller's own thread being the worker.
    XdpInline,
    /// AF_XDP alone, through the asynchronous interface: the worker is a thread beside the runtime's, on the same core.
    XdpAsync,
    /// The kernel's UDP alone, the caller's own thread being the worker.
    Udp,
    /// What a configuration gets that says nothing: AF_XDP, and the kernel's UDP for bulk. The caller's own thread.
    Auto,
}

/// Both ends, by their configurations.
pub(crate) struct Pilot {
    variant: Variant,
    configs: [Config; 2],
}

impl Pilot {
    pub(crate) fn new(variant: Variant, directory: &Path) -> anyhow::Result<Self> {
        let key = |end: usize| {
            let file = directory.join(format!("{end}.key"));
            let identity = if file.exists() { identity_file::read(&file) } else { identity_file::create(&file) };
            identity.map(|identity| identity.public_key())
        };
        let keys = [key(NEAR)?, key(FAR)?];
        let (datapath, bulk) = match variant {
            Variant::XdpInline | Variant::XdpAsync => ("xdp", "never"),
            Variant::Udp => ("udp", "auto"),
            Variant::Auto => ("auto", "auto"),
        };
        let config = |own: usize| {
            let other = 1 - own;
            let text = format!(
                "identity = \"{own}.key\"\naddress = \"0:0000.0000.000{own}\"\ninterface = \"{DEVICE}\"\nlisten = \"{}\"\n\
                 datapath = \"{datapath}\"\nbulk = \"{bulk}\"\nhandshakes_per_second = {HANDSHAKES_PER_SECOND}\n[[peers]]\nname = \"{OTHER}\"\n\
                 address = \"0:0000.0000.000{other}\"\nkey = \"{}\"\nendpoint = \"{}\"\n",
                Places::address(own),
                keys[other],
                Places::address(other),
            );
            Config::parse(&text, directory)
        };
        Ok(Self { variant, configs: [config(NEAR)?, config(FAR)?] })
    }
}

impl System for Pilot {
    fn serve(&self, load: &Load, meter: &Meter, ready: Ready, stop: &Stop) -> anyhow::Result<Value> {
        let config = &self.configs[FAR];
        match (load.kind, self.variant) {
            (Kind::Handshakes, _) => handshakes::serve(config, load, meter, ready, stop),
            (Kind::Idle, _) if load.connections > 1 => {
                inline::serve(&crowd::known(config, load)?, load, meter, ready, stop)
            }
            (_, Variant::XdpAsync) => asynchronous::serve(config, load, meter, ready, stop),
            _ => inline::serve(config, load, meter, ready, stop),
        }
    }

    fn ask(&self, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value> {
        let config = &self.configs[NEAR];
        match (load.kind, self.variant) {
            (Kind::Handshakes, _) => handshakes::ask(config, load, recorder),
            (Kind::Idle, _) if load.connections > 1 => crowd::ask(config, load, recorder),
            (_, Variant::XdpAsync) => asynchronous::ask(config, load, recorder),
            _ => inline::ask(config, load, recorder),
        }
    }
}
