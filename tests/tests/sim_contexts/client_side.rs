//! The clients, and what they are told.

use pilot_user::context::{Follow, Kind, Notice, RefusalCode, Replica};

use crate::changes;
use crate::model::{Following, Model, Peer, Wire, encoded, part, text};

impl Model {
    pub(crate) fn connect(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        peer.link = Some(self.owner.connect(Some(&at.to_string())));
        for following in peer.follows.values_mut() {
            following.resumes = following.last.is_some();
        }
        peer.client.connect();
    }

    pub(crate) fn cut(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        let Some(link) = peer.link.take() else { return };
        self.counters.count("connection cut");
        peer.wire = Wire::default();
        self.owner.disconnect(link);
        peer.client.disconnect();
        self.notices(at);
        assert!(self.peers[at].asked.is_empty(), "each is answered or told that it was not");
    }

    /// Its process ends; of its copies, it has kept all or none. A kept one may have been damaged.
    pub(crate) fn restart_client(&mut self, at: usize) {
        self.cut(at);
        let keeps = self.random.below(3) > 0;
        self.counters.count(if keeps { "client restarted with its copies" } else { "client restarted without" });
        let peer = &mut self.peers[at];
        let old = std::mem::take(&mut peer.client);
        let follows = std::mem::take(&mut peer.follows);
        for (id, mut following) in follows {
            let mut replica = old.replica(id).cloned().filter(|_| keeps);
            following.last = replica.as_ref().map(|replica| replica.stamp);
            following.damaged &= keeps;
            if let Some(replica) = &mut replica
                && self.random.below(8) == 0
            {
                let was = replica.document.clone();
                let damage = changes::change(&mut self.random, replica.document.kind());
                let _ = replica.document.apply(&damage, damage.encode().len());
                if encoded(&was) != encoded(&replica.document) {
                    self.counters.count("copy damaged");
                    following.damaged = true;
                }
            }
            let new = peer.client.follow(following.follow.clone(), replica);
            peer.follows.insert(new, following);
        }
    }

    pub(crate) fn follow(&mut self, at: usize) {
        let context = self.random.below(self.contexts.len() as u64) as usize;
        let is_json = self.contexts[context].kind == Kind::Json;
        let filter = (is_json && self.random.below(3) == 0).then(|| changes::pointer(&mut self.random));
        let latest = self.random.below(3) == 0;
        let peer = &mut self.peers[at];
        if peer.follows.len() >= 3 {
            return;
        }
        let follow = Follow { name: self.contexts[context].name.clone(), filter, latest };
        let id = peer.client.follow(follow.clone(), None);
        peer.follows.insert(id, Following { context, follow, last: None, resumes: false, damaged: false });
    }

    pub(crate) fn unfollow(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        if let Some((id, _)) = peer.follows.pop_first() {
            peer.client.unfollow(id);
        }
    }

    pub(crate) fn ask(&mut self, at: usize) {
        let context = self.random.below(self.contexts.len() as u64) as usize;
        let change = changes::change(&mut self.random, self.contexts[context].kind);
        let peer = &mut self.peers[at];
        let known = peer.follows.iter().find(|(_, following)| following.context == context);
        let stamp = known.and_then(|(id, _)| peer.client.replica(*id)).map(|replica: &Replica| replica.stamp);
        let base = stamp.filter(|_| self.random.below(2) == 0);
        if let Ok(request) = peer.client.change(&self.contexts[context].name, base, &change) {
            peer.asked.insert(request, context);
        }
    }

    pub(crate) fn client_turn(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        if peer.link.is_none() {
            return;
        }
        for _ in 0..self.random.below(8) {
            let peer = &mut self.peers[at];
            let Some(message) = peer.wire.to_client.pop_front() else { break };
            peer.client.handle(&message).unwrap();
            self.notices(at);
        }
        let Peer { client, wire, .. } = &mut self.peers[at];
        let mut message = Vec::new();
        while client.poll_transmit(&mut message) {
            wire.to_owner.push_back(std::mem::take(&mut message));
        }
    }

    pub(crate) fn notices(&mut self, at: usize) {
        while let Some(notice) = self.peers[at].client.poll_notice() {
            let Peer { client, follows, asked, .. } = &mut self.peers[at];
            let counters = &mut self.counters;
            match notice {
                Notice::Whole { follow } | Notice::Changed { follow, .. } | Notice::Checked { follow } => {
                    let Some(following) = follows.get_mut(&follow) else { continue };
                    let replica = client.replica(follow).unwrap();
                    let (now, is_whole) = (replica.stamp, matches!(notice, Notice::Whole { .. }));
                    following.damaged &= !is_whole && !matches!(notice, Notice::Checked { .. });
                    let plain = following.follow.filter.is_none();
                    if !following.damaged {
                        let wanted = self.past.get(&(following.context, now.incarnation, now.version));
                        let wanted = wanted.unwrap_or_else(|| panic!("{now:?} was never announced"));
                        let wanted = part(wanted, following.follow.filter.as_deref());
                        assert_eq!(
                            text(&encoded(&replica.document)),
                            text(&wanted),
                            "{:?} at {now:?}",
                            following.follow
                        );
                    }
                    let last = following.last.replace(now);
                    match (notice, last) {
                        (Notice::Whole { .. }, last) => {
                            let older = last
                                .is_some_and(|last| last.incarnation == now.incarnation && last.version > now.version);
                            assert!(!older, "a version that was announced is lost");
                            counters.count("document came whole");
                        }
                        (Notice::Changed { .. }, Some(last)) => {
                            assert_eq!(last.incarnation, now.incarnation);
                            if plain && !following.follow.latest {
                                assert_eq!(now.version, last.version + 1, "no version skipped, none twice");
                                counters.count("version by version");
                            } else {
                                assert!(now.version > last.version, "none twice");
                                counters.count(if now.version > last.version + 1 {
                                    "several versions at once"
                                } else {
                                    "done"
                                });
                            }
                        }
                        (Notice::Checked { .. }, Some(_)) => {
                            counters.count("copy checked");
                        }
                        (notice, None) => panic!("{notice:?} before the document"),
                        _ => {}
                    }
                    if std::mem::take(&mut following.resumes) && !is_whole {
                        counters.count("resumed without the document");
                    }
                }
                Notice::Diverged { follow } => {
                    let Some(following) = follows.get(&follow) else { continue };
                    let replica = client.replica(follow).unwrap();
                    let key = (following.context, replica.stamp.incarnation, replica.stamp.version);
                    let was = self.past.get(&key).map(|past| part(past, following.follow.filter.as_deref()));
                    let (is, was) = (encoded(&replica.document), was.unwrap_or_default());
                    let what =
                        || format!("{:?} {:?}: {} but {}", following.follow, replica.stamp, text(&is), text(&was));
                    assert!(following.damaged, "diverged by itself: {}", what());
                    counters.count("divergence healed");
                }
                Notice::Ended { follow, refusal } => {
                    assert!(refusal.words.contains("cannot be kept"), "{refusal}");
                    follows.remove(&follow);
                }
                Notice::Done { request, stamp } => {
                    let context = asked.remove(&request).unwrap();
                    assert!(self.past.contains_key(&(context, stamp.incarnation, stamp.version)));
                    assert!(at < 3, "who may not write wrote");
                    counters.count("done");
                }
                Notice::Refused { request, refusal } => {
                    asked.remove(&request).unwrap();
                    counters.count(match refusal.code {
                        RefusalCode::Conflict => "conflict",
                        RefusalCode::NotAllowed => "not allowed",
                        _ => "refused",
                    });
                }
                Notice::Unanswered { request } => {
                    asked.remove(&request).unwrap();
                    counters.count("unanswered");
                }
            }
        }
    }
}
