//! The nodes of a run over the network: the owner's with its service, and the clients'.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use pilot_engine::address::OverlayAddress;
use pilot_engine::identity::Identity;
use pilot_engine::{Config, Endpoint, Event, Instant, PeerConfig, PeerId};
use pilot_tests::link::{Attachment as _, Packet, Place, SimLink};
use pilot_tests::random::Random;
use pilot_user::context::{Follow, FollowId, Replica, Stamp};
use pilot_user::service::contexts::ContextClient;
use pilot_user::worker::handoff::Handoff;
use pilot_user::worker::{Application, Opened, turn};

/// A node, which runs unless it sleeps.
pub(crate) struct Host<A> {
    pub(crate) number: u8,
    pub(crate) endpoint: Endpoint,
    pub(crate) link: SimLink,
    pub(crate) application: A,
    pub(crate) deadline: Option<Instant>,
    pub(crate) sleeps_until: Instant,
}

pub(crate) struct Using {
    pub(crate) owner: PeerId,
    pub(crate) contexts: ContextClient,
    pub(crate) follows: BTreeMap<FollowId, Following>,
}

pub(crate) struct Following {
    pub(crate) context: usize,
    pub(crate) follow: Follow,
    pub(crate) last: Option<Stamp>,
    pub(crate) resumes: bool,
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number + 1], 4242))
}

pub(crate) fn number(address: SocketAddr) -> usize {
    let SocketAddr::V4(address) = address else { unreachable!("all are IPv4") };
    usize::from(address.ip().octets()[3]) - 1
}

fn identity(number: u8) -> Identity {
    Identity::from_secrets([number + 1; 32], [number + 101; 32]).unwrap()
}

impl<A> Host<A> {
    /// Of the owner, which knows all clients, or of one of those, which knows the owner.
    pub(crate) fn new(
        number: u8,
        clients: usize,
        now: Instant,
        random: &mut Random,
        application: impl FnOnce(PeerId) -> A,
    ) -> Self {
        let overlay = |number: u8| OverlayAddress { network: 0, node: number.into() };
        let unix_time = Duration::from_secs(1_800_000_000);
        let mut config = Config::new(identity(number), overlay(number), random.bytes(), unix_time);
        config.max_datagram = 1472;
        let mut endpoint = Endpoint::new(config, random.bytes());
        let known = |number: u8, at: Option<SocketAddr>| PeerConfig {
            key: identity(number).public_key(),
            address: overlay(number),
            endpoint: at,
        };
        let peer = if number == 0 {
            let peers: Vec<PeerId> = (1..=clients as u8).map(|client| endpoint.add_peer(known(client, None))).collect();
            peers[0]
        } else {
            endpoint.add_peer(known(0, Some(address(0))))
        };
        let place = Place { address: address(number), mac: [2, 0, 0, 0, 0, number], index: number.into() };
        let link = SimLink::open(&place, &[]).unwrap();
        let application = application(peer);
        Self { number, endpoint, link, application, deadline: Some(now), sleeps_until: now }
    }
}

impl<A: Application> Host<A> {
    pub(crate) fn run(&mut self, now: Instant) -> Vec<Packet> {
        for _ in 0..100_000 {
            let (mut opened, mut handoff) = (Opened::default(), Handoff::alone());
            let turn = turn(&mut self.endpoint, &mut self.link, &mut self.application, &mut handoff, now, &mut opened);
            let turn = turn.unwrap();
            self.deadline = turn.deadline;
            if !turn.progress {
                return self.link.take_sent();
            }
        }
        unreachable!("host {} goes on and on", self.number)
    }
}

impl Using {
    pub(crate) fn follow(&mut self, context: usize, follow: Follow, replica: Option<Replica>) {
        let (last, resumes) = (replica.as_ref().map(|replica| replica.stamp), replica.is_some());
        let id = self.contexts.client.follow(follow.clone(), replica);
        self.follows.insert(id, Following { context, follow, last, resumes });
    }

    pub(crate) fn new(owner: PeerId) -> Self {
        Self { owner, contexts: ContextClient::new(owner), follows: BTreeMap::new() }
    }
}

impl Application for Using {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event) {
        if self.contexts.on_event(endpoint, now, &event).is_some() {
            self.follows.values_mut().for_each(|following| following.resumes = following.last.is_some());
        }
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        self.contexts.poll(endpoint, now)
    }

    fn deadline(&self) -> Option<Instant> {
        self.contexts.deadline()
    }
}
