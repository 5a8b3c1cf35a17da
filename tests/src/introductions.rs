//! What a host asks others of who they are, and what it is told (wire.md §3.5). Every host has keys of its own, so that who
//! is named is known; that nobody is named as anybody else is asserted when it is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pilot_engine::identity::PublicKey;
use pilot_engine::{Endpoint, Event, Instant, OperationError};

use crate::link::Place;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Introductions {
    /// Where every host is at first, and its key.
    hosts: Vec<(SocketAddr, PublicKey)>,
    /// Where it was asked and nothing is known yet, and who alone will do.
    pending: BTreeMap<SocketAddr, Option<usize>>,
    /// By whom, and whether it was asked here.
    introduced: Vec<(usize, bool)>,
    /// Questions that nobody answered, or not who was wanted.
    given_up: u64,
}

impl Introductions {
    pub(crate) fn new(places: &[Place], key: impl Fn(usize) -> PublicKey) -> Self {
        let hosts = places.iter().map(|place| (place.address, key(place.index))).collect();
        Self { hosts, ..Self::default() }
    }

    /// Asks who is where a host is; with `wanted`, only whether it is that one.
    pub(crate) fn ask(&mut self, endpoint: &mut Endpoint, now: Instant, whom: usize, wanted: Option<usize>) {
        let remote = self.hosts[whom].0;
        match endpoint.introduce(now, remote, wanted.map(|host| self.hosts[host].1.identity)) {
            // Whoever asks again asks anew.
            Ok(()) => drop(self.pending.insert(remote, wanted)),
            Err(error) => assert_eq!(error, OperationError::IntroductionsOff),
        }
    }

    pub(crate) fn on_event(&mut self, event: &Event) {
        match *event {
            Event::Introduced { key, remote, begun_here, accepted, .. } => {
                let host = self.hosts.iter().position(|(_, known)| *known == key);
                let host = host.unwrap_or_else(|| unreachable!("{remote} is nobody: {key:?}"));
                assert!(accepted, "all hosts are each other's peers");
                if begun_here {
                    let wanted = self.pending.remove(&remote).unwrap_or_else(|| unreachable!("{remote} was not asked"));
                    assert!(
                        self.hosts[host].0 == remote && wanted.is_none_or(|wanted| wanted == host),
                        "not who was asked"
                    );
                }
                self.introduced.push((host, begun_here));
            }
            Event::NotIntroduced { remote } => {
                assert!(self.pending.remove(&remote).is_some(), "{remote} was not asked");
                self.given_up += 1;
            }
            _ => {}
        }
    }

    /// Whether all questions have come to something.
    pub(crate) fn is_done(&self) -> bool {
        self.pending.is_empty()
    }

    /// Who became known so far, and for each whether it was asked here.
    pub(crate) fn introduced(&self) -> &[(usize, bool)] {
        &self.introduced
    }

    /// How many came to nothing, so far.
    pub(crate) fn given_up(&self) -> u64 {
        self.given_up
    }
}
