//! Where agents run: a namespace each, joined by a bridge in another; and where two ends do, joined by nothing but a veth pair. All
//! gone when dropped.
//!
//! ```text
//!   agent 0: eth0 10.77.0.1    agent 1: eth0 10.77.0.2    agent 2: eth0 10.77.0.3      MTU 1500
//!          └───────────────── port0, port1, port2: br0 ──────────────────┘
//! ```

use std::process;

use anyhow::Result;

use crate::run::scene::{MTU, Namespace, PREFIX, ip};

/// Two ends, with nothing between them.
pub(super) struct Pair {
    ends: [Namespace; 2],
}

impl Pair {
    /// `name` tells those of one process apart.
    pub(super) fn new(name: &str, mtu: u32) -> Result<Self> {
        let namespace = |end: &str| Namespace::new(format!("{PREFIX}{}-{name}-{end}", process::id()));
        let ends = [namespace("near")?, namespace("far")?];
        let ([near, far], mtu) = ([&ends[0].0, &ends[1].0], mtu.to_string());
        ip(&[
            "link", "add", "eth0", "mtu", &mtu, "netns", near, "type", "veth", "peer", "name", "eth0", "mtu", &mtu,
            "netns", far,
        ])?;
        for (end, netns) in [near, far].into_iter().enumerate() {
            ip(&["-n", netns, "address", "add", &format!("10.77.0.{}/24", end + 1), "dev", "eth0"])?;
            ip(&["-n", netns, "link", "set", "lo", "up"])?;
            // Without addresses of its own choice a device sends nothing that nobody asked for, and so counts nothing else.
            ip(&["-n", netns, "link", "set", "eth0", "addrgenmode", "none", "up"])?;
        }
        Ok(Self { ends })
    }

    /// The near end's namespace and the far end's.
    pub(super) fn names(&self) -> Vec<&str> {
        self.ends.iter().map(|namespace| namespace.0.as_str()).collect()
    }
}

/// Agents of the pipeline; what needs fewer takes the first.
const AGENTS: usize = 3;

/// See the module's head.
pub(super) struct Fabric {
    agents: Vec<Namespace>,
    _bridge: Namespace,
}

impl Fabric {
    /// `name` tells those of one process apart.
    pub(super) fn new(name: &str) -> Result<Self> {
        let namespace = |what: &str| Namespace::new(format!("{PREFIX}{}-{name}-{what}", process::id()));
        let bridge = namespace("bridge")?;
        let hub = bridge.0.as_str();
        // Without addresses of its own choice a device sends nothing that nobody asked for, and so counts nothing else.
        ip(&["-n", hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", hub, "link", "set", "br0", "addrgenmode", "none", "up"])?;
        let mut agents = Vec::new();
        for agent in 0..AGENTS {
            let there = namespace(&agent.to_string())?;
            let (netns, port) = (there.0.as_str(), format!("port{agent}"));
            ip(&[
                "-n", hub, "link", "add", &port, "mtu", MTU, "type", "veth", "peer", "name", "eth0", "mtu", MTU,
                "netns", netns,
            ])?;
            ip(&["-n", hub, "link", "set", &port, "addrgenmode", "none", "master", "br0", "up"])?;
            ip(&["-n", netns, "address", "add", &format!("10.77.0.{}/24", agent + 1), "dev", "eth0"])?;
            ip(&["-n", netns, "link", "set", "lo", "up"])?;
            // Segments are made before the device counts: what it counts are frames as a wire has them, each with headers.
            ip(&["-n", netns, "link", "set", "eth0", "addrgenmode", "none", "gso_max_segs", "1", "up"])?;
            agents.push(there);
        }
        Ok(Self { agents, _bridge: bridge })
    }

    /// The agents' namespaces.
    pub(super) fn names(&self) -> Vec<&str> {
        self.agents.iter().map(|namespace| namespace.0.as_str()).collect()
    }
}
