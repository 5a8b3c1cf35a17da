//! Where frames go: the routing table's word on each peer, and what authenticated frames taught.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use pilot_common::eth::Mac;

/// Peers whose way is known or asked for. A node with more peers reaches the rest over UDP; each costs a netlink request
/// per refresh and under 100 bytes.
pub const NEXT_HOPS_MAX: usize = 4096;

/// What the kernel's tables say about the way to one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// Index of the device that frames leave by. For a VLAN device that is the device under it.
    pub interface: u32,
    /// The VLAN to tag frames with.
    pub vlan: Option<u16>,
    /// The local address that the routing table prefers.
    pub source: Option<IpAddr>,
    /// Ethernet address of the peer or of the gateway to it; `None` while the kernel does not know it.
    pub mac: Option<Mac>,
}

/// The ways to all peers, as of one look at the kernel's tables. An address without an entry has no usable route.
pub type NextHops = HashMap<IpAddr, NextHop>;

/// The link layer's part of a frame to one peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hop {
    pub(super) mac: Mac,
    pub(super) vlan: Option<u16>,
    pub(super) source: Option<IpAddr>,
}

/// Where a frame from an authenticated peer came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Learnt {
    pub(super) mac: Mac,
    pub(super) vlan: Option<u16>,
}

/// The neighbour table of one AF_XDP link. A destination has a hop only if the routing table sends it out of this link's
/// device; the address then comes from the last authenticated frame, else from the kernel.
#[derive(Debug)]
pub(super) struct Neighbours {
    interface: u32,
    routes: Arc<NextHops>,
    /// With whether it was confirmed since the last look at the kernel's tables.
    learnt: HashMap<IpAddr, (Learnt, bool)>,
    /// The answer for the last destination: a batch mostly goes to one peer.
    last: Option<(IpAddr, Option<Hop>)>,
    last_learnt: Option<(IpAddr, Learnt)>,
    /// Asked for, and not to be asked for again before the next look at the kernel's tables.
    asked: HashSet<IpAddr>,
}

impl Neighbours {
    pub(super) fn new(interface: u32) -> Self {
        Self {
            interface,
            routes: Arc::default(),
            learnt: HashMap::with_capacity(NEXT_HOPS_MAX),
            last: None,
            last_learnt: None,
            asked: HashSet::new(),
        }
    }

    /// The hop to `destination`, or `None` when it must go over UDP.
    pub(super) fn hop(&mut self, destination: IpAddr) -> Option<Hop> {
        match self.last {
            Some((address, hop)) if address == destination => hop,
            _ => {
                let hop = self.look_up(destination);
                self.last = Some((destination, hop));
                hop
            }
        }
    }

    fn look_up(&self, destination: IpAddr) -> Option<Hop> {
        let route = self.routes.get(&destination).filter(|route| route.interface == self.interface)?;
        // A peer may answer over another VLAN than the one the route takes; its address there is of no use here.
        let learnt = self.learnt.get(&destination).filter(|(learnt, _)| learnt.vlan == route.vlan);
        let mac = learnt.map(|(learnt, _)| learnt.mac).or(route.mac)?;
        Some(Hop { mac, vlan: route.vlan, source: route.source })
    }

    /// Whether the control thread should be asked for the way to `destination`; yes once per address and look.
    pub(super) fn should_ask(&mut self, destination: IpAddr) -> bool {
        !self.routes.contains_key(&destination) && self.asked.len() < NEXT_HOPS_MAX && self.asked.insert(destination)
    }

    /// Notes where an authenticated frame from `peer` came from.
    pub(super) fn learn(&mut self, peer: IpAddr, learnt: Learnt) {
        if self.last_learnt == Some((peer, learnt)) {
            return;
        }
        self.last_learnt = Some((peer, learnt));
        // Peers that are alive are learnt again from their next packet, so forgetting all is the simplest bound; those
        // meanwhile go by the kernel's table or over UDP.
        if self.learnt.len() == NEXT_HOPS_MAX && !self.learnt.contains_key(&peer) {
            self.learnt.clear();
        }
        let before = self.learnt.insert(peer, (learnt, true));
        if before.map(|(learnt, _)| learnt) != Some(learnt) {
            self.last = None;
        }
    }

    /// Takes over a new look at the kernel's tables.
    pub(super) fn set_routes(&mut self, routes: Arc<NextHops>) {
        // An address that the kernel now knows otherwise is newer than what was learnt before. One that no frame confirmed
        // since the last look may be wrong: it came with a genuine datagram, but the Ethernet header is nobody's word. A peer
        // that gets nothing sends nothing, so that nothing else would ever mend it.
        self.learnt.retain(|peer, (_, confirmed)| {
            let changed = |old: &NextHop, new: &NextHop| new.mac.is_some() && old.mac.is_some() && old != new;
            let otherwise =
                matches!((self.routes.get(peer), routes.get(peer)), (Some(old), Some(new)) if changed(old, new));
            std::mem::take(confirmed) && !otherwise
        });
        self.routes = routes;
        (self.last, self.last_learnt) = (None, None);
        self.asked.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: u32 = 7;
    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const KERNELS: Mac = [2, 0, 0, 0, 0, 1];
    const SEEN: Mac = [2, 0, 0, 0, 0, 2];

    fn route(interface: u32, mac: Option<Mac>) -> Arc<NextHops> {
        Arc::new(NextHops::from([(PEER, NextHop { interface, vlan: None, source: None, mac })]))
    }

    fn mac(neighbours: &mut Neighbours) -> Option<Mac> {
        neighbours.hop(PEER).map(|hop| hop.mac)
    }

    #[test]
    fn without_a_route_out_of_our_device_nothing_goes() {
        let mut neighbours = Neighbours::new(OURS);
        neighbours.learn(PEER, Learnt { mac: SEEN, vlan: None });
        assert_eq!(mac(&mut neighbours), None, "no route at all");
        neighbours.set_routes(route(OURS + 1, Some(KERNELS)));
        neighbours.learn(PEER, Learnt { mac: SEEN, vlan: None });
        assert_eq!(mac(&mut neighbours), None, "another device");
    }

    #[test]
    fn what_was_learnt_goes_before_the_kernels_word_until_that_changes() {
        let mut neighbours = Neighbours::new(OURS);
        neighbours.set_routes(route(OURS, None));
        assert_eq!(mac(&mut neighbours), None);
        neighbours.learn(PEER, Learnt { mac: SEEN, vlan: None });
        assert_eq!(mac(&mut neighbours), Some(SEEN));
        neighbours.set_routes(route(OURS, Some(KERNELS)));
        assert_eq!(mac(&mut neighbours), Some(SEEN), "the kernel only got to know it");
        neighbours.set_routes(route(OURS, Some([9; 6])));
        assert_eq!(mac(&mut neighbours), Some([9; 6]), "the kernel knows better now");
    }

    #[test]
    fn what_nothing_confirms_is_forgotten_at_the_second_look() {
        let mut neighbours = Neighbours::new(OURS);
        neighbours.set_routes(route(OURS, Some(KERNELS)));
        neighbours.learn(PEER, Learnt { mac: SEEN, vlan: None });
        neighbours.set_routes(route(OURS, Some(KERNELS)));
        assert_eq!(mac(&mut neighbours), Some(SEEN));
        neighbours.learn(PEER, Learnt { mac: SEEN, vlan: None });
        neighbours.set_routes(route(OURS, Some(KERNELS)));
        assert_eq!(mac(&mut neighbours), Some(SEEN), "a frame confirmed it");
        neighbours.set_routes(route(OURS, Some(KERNELS)));
        assert_eq!(mac(&mut neighbours), Some(KERNELS));
    }

    #[test]
    fn an_address_on_another_vlan_is_not_used() {
        let mut neighbours = Neighbours::new(OURS);
        neighbours.set_routes(route(OURS, Some(KERNELS)));
        neighbours.learn(PEER, Learnt { mac: SEEN, vlan: Some(5) });
        assert_eq!(mac(&mut neighbours), Some(KERNELS));
    }

    #[test]
    fn the_table_is_bounded() {
        let mut neighbours = Neighbours::new(OURS);
        for number in 0..3 * NEXT_HOPS_MAX as u32 {
            let peer = IpAddr::V4(std::net::Ipv4Addr::from(number));
            neighbours.learn(peer, Learnt { mac: SEEN, vlan: None });
            neighbours.should_ask(peer);
            assert!(neighbours.learnt.len() <= NEXT_HOPS_MAX && neighbours.asked.len() <= NEXT_HOPS_MAX);
        }
    }

    #[test]
    fn an_address_is_asked_for_once_per_look() {
        let mut neighbours = Neighbours::new(OURS);
        assert!(neighbours.should_ask(PEER));
        assert!(!neighbours.should_ask(PEER));
        neighbours.set_routes(Arc::default());
        assert!(neighbours.should_ask(PEER));
        neighbours.set_routes(route(OURS, None));
        assert!(!neighbours.should_ask(PEER), "known, if only that it has no neighbour entry yet");
    }
}
