//! A node of several workers: to its peer it is one, whichever of them a handshake comes by.

#![allow(clippy::unwrap_used, reason = "also in the helpers of these tests")]

mod common;

use std::time::Duration;

use common::{End, address, config, end, identity};
use pilot_common::wire::PacketType;
use pilot_engine::address::OverlayAddress;
use pilot_engine::{Ecn, Endpoint, Event, Instant, OperationError, PeerConfig, PeerId, Received};

/// Node 1, of two workers, of which the second has the tunnel to node 2.
struct Scene {
    workers: [Endpoint; 2],
    peer: PeerId,
    other: End,
    now: Instant,
    /// The worker that gets what names no session.
    entry: usize,
    /// Initiations that were handed over.
    handed_over: u32,
    /// Data that node 2 sends is lost.
    loses_data: bool,
}

impl Scene {
    fn new() -> Self {
        let mut peer = None;
        let workers = [0, 1].map(|worker| {
            let mut config = config(1, 11);
            config.worker = worker;
            let mut endpoint = Endpoint::new(config, [worker + 1; 32]);
            let id = endpoint.add_peer(PeerConfig {
                key: identity(2).public_key(),
                address: OverlayAddress { network: 0, node: 2 },
                endpoint: Some(address(2)),
            });
            endpoint.set_owner(id, 1);
            peer = Some(id);
            endpoint
        });
        let now = Instant::from_nanos(1);
        Self { workers, peer: peer.unwrap(), other: end(2, 1, 12), now, entry: 0, handed_over: 0, loses_data: false }
    }

    /// As the links and rings of a node do it.
    fn deliver(&mut self, datagram: &[u8]) {
        let names_owner = PacketType::from_first_byte(datagram[0]) != Some(PacketType::Initiation);
        let worker = if names_owner { usize::from(datagram[1]) } else { self.entry };
        let mut handle = |worker: usize| {
            self.workers[worker].handle_datagram(self.now, address(2), address(1), Ecn::NotEct, datagram)
        };
        if let Received::Elsewhere(owner) = handle(worker) {
            self.handed_over += 1;
            assert_ne!(handle(owner.into()), Received::Elsewhere(owner));
        }
    }

    /// Runs for so many milliseconds; what node 1's workers tell.
    fn run(&mut self, ms: u32) -> Vec<(usize, Event)> {
        let mut events = Vec::new();
        let mut buffer = [0; 1472];
        for _ in 0..ms {
            self.now += Duration::from_millis(1);
            while let Some(sent) = self.other.endpoint.poll_transmit(self.now, &mut buffer) {
                let datagram = buffer[..sent.len].to_vec();
                if !self.loses_data || PacketType::from_first_byte(datagram[0]) != Some(PacketType::Data) {
                    self.deliver(&datagram);
                }
            }
            for worker in 0..2 {
                while let Some(sent) = self.workers[worker].poll_transmit(self.now, &mut buffer) {
                    let (from, to) = (address(1), address(2));
                    self.other.endpoint.handle_datagram(self.now, from, to, Ecn::NotEct, &buffer[..sent.len]);
                }
                while let Some(event) = self.workers[worker].poll_event() {
                    events.push((worker, event));
                }
                on_time(&mut self.workers[worker], self.now);
            }
            on_time(&mut self.other.endpoint, self.now);
            self.other.events.extend(std::iter::from_fn(|| self.other.endpoint.poll_event()));
        }
        events
    }
}

fn on_time(endpoint: &mut Endpoint, now: Instant) {
    if endpoint.poll_timeout().is_some_and(|at| at <= now) {
        endpoint.handle_timeout(now);
    }
}

/// Whichever worker an initiation comes by, the owner answers it; the other one begins nothing with that peer.
#[test]
fn an_initiation_is_its_owners() {
    for entry in [0, 1] {
        let mut scene = Scene { entry, ..Scene::new() };
        let peer = scene.peer;
        assert!(scene.workers[1].owns(peer) && !scene.workers[0].owns(peer));
        assert_eq!(scene.workers[0].connect(scene.now, peer, 7), Err(OperationError::UnknownPeer));
        scene.workers[0].open_tunnel(scene.now, peer);
        assert_eq!(scene.run(10), vec![]);

        scene.other.endpoint.open_tunnel(scene.now, scene.other.peer);
        assert_eq!(scene.run(50), vec![(1, Event::TunnelUp { peer, resumed: false })]);
        assert_eq!(scene.handed_over, u32::from(entry == 0));
        assert_eq!(scene.workers[0].stats().handshakes, 0);
    }
}

/// wire.md W3.14: a tunnel goes on although the handshake that continues it comes by another worker than the first one did.
#[test]
fn a_tunnel_is_continued_by_whichever_way_the_handshake_comes() {
    let mut scene = Scene { entry: 1, ..Scene::new() };
    let peer = scene.peer;
    let connection = scene.other.endpoint.connect(scene.now, scene.other.peer, 7).unwrap();
    let offered = scene.run(50).into_iter().find_map(|(_, event)| match event {
        Event::Offered { connection, .. } => Some(connection),
        _ => None,
    });
    let offered = offered.unwrap();
    scene.workers[1].accept(scene.now, offered).unwrap();
    scene.run(50);

    // Unanswered for so long that node 2 suspects the tunnel, and begins a handshake.
    (scene.loses_data, scene.entry) = (true, 0);
    scene.other.endpoint.send_message(scene.now, connection, b"47 -> 48").unwrap();
    let mut told = scene.run(5000);
    scene.loses_data = false;
    told.extend(scene.run(5000));
    assert!(told.contains(&(1, Event::TunnelUp { peer, resumed: true })), "{told:?}");
    assert!(scene.handed_over > 0);
    assert!(told.contains(&(1, Event::MessagesReadable { connection: offered })), "{told:?}");
    let mut message = Vec::new();
    scene.workers[1].receive_message(scene.now, offered, &mut message).unwrap();
    assert_eq!(message, b"47 -> 48");
}
