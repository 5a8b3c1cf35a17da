//! What arrives at one worker and belongs to another: copied to its owner, through a bounded ring for each pair of workers.
//!
//! A device's queue and a port's flow hash know nothing of sessions, so that datagrams come to the wrong worker until the
//! peer sends from where its flow leads to the right one. Nothing is shared but the rings: no lock, and no allocation after
//! the start.
//!
//! A ring is two: one of labels, and one of bytes that they describe. So a datagram takes as much room as it has bytes,
//! not as the largest would. The bytes go in before their label, and come out after it: whoever has the label has the bytes.

use std::net::SocketAddr;

use pilot_common::limit::Limit;
use pilot_engine::Instant;
use rtrb::{Consumer, Producer, RingBuffer};
use serde::Serialize;

use crate::link::doorbell::Doorbell;
use crate::link::group::owner;
use crate::link::udp::PAYLOAD_MAX;
use crate::link::{Ecn, Received, Via};

/// Datagrams that may wait for one worker from one other: four passes of it. Lower loses bursts while the owner is kept from
/// its core; higher is memory, and delay that nobody sees.
const RING_DATAGRAMS: usize = 256;

/// Bytes that they may have together: 178 of 1472, or 29 of the largest. With the labels (80 bytes each) some 280 KiB for
/// each ordered pair of workers: 0.5 MiB for two, 15 MiB for eight. Lower and higher as [`RING_DATAGRAMS`].
const RING_BYTES: usize = 256 << 10;

/// Resets of which each worker gives copies to the others (wire.md W4.9). Lower: when a peer with many tunnels restarts, more of
/// them find out by silence. Higher: forged ones cost all workers more, and at once they may take more than a quarter of each ring.
const RESETS: Limit = Limit::per_second(100, 64);

/// One worker's ends of the rings to and from all others.
pub struct Handoff {
    /// By worker; its own place is empty.
    outgoing: Vec<Option<Outgoing>>,
    incoming: Vec<Incoming>,
    /// Whose ring is emptied first in the next pass, so that no worker comes last in every pass.
    first: usize,
    /// A datagram whose bytes lie at the end of a ring and go on at its beginning, in one piece.
    joined: Box<[u8]>,
    /// Of [`RESETS`].
    resets: u64,
    counters: Counters,
}

/// What a worker handed over and took over, in datagrams.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Counters {
    /// Copied to their owners.
    pub handed_over: u64,
    /// Got from others, and handled.
    pub taken_over: u64,
    /// Lost because the owner's ring was full, or because they are longer than any that is sent.
    pub dropped: u64,
}

impl std::ops::Add for Counters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            handed_over: self.handed_over + other.handed_over,
            taken_over: self.taken_over + other.taken_over,
            dropped: self.dropped + other.dropped,
        }
    }
}

/// All of a datagram but its bytes.
struct Label {
    source: SocketAddr,
    destination: SocketAddr,
    ecn: Ecn,
    via: Via,
    len: usize,
}

struct Outgoing {
    labels: Producer<Label>,
    bytes: Producer<u8>,
    doorbell: Doorbell,
    /// Something was put in since the doorbell was rung last.
    unheard: bool,
}

struct Incoming {
    labels: Consumer<Label>,
    bytes: Consumer<u8>,
}

/// Rings between all workers of a node, by their doorbells: one [`Handoff`] for each, in order.
pub fn mesh(doorbells: &[Doorbell]) -> Vec<Handoff> {
    let mut all: Vec<Handoff> = doorbells.iter().map(|_| Handoff::without_rings(PAYLOAD_MAX)).collect();
    for from in 0..doorbells.len() {
        for (to, doorbell) in doorbells.iter().enumerate() {
            let outgoing = (to != from).then(|| {
                let (labels, their_labels) = RingBuffer::new(RING_DATAGRAMS);
                let (bytes, their_bytes) = RingBuffer::new(RING_BYTES);
                all[to].incoming.push(Incoming { labels: their_labels, bytes: their_bytes });
                Outgoing { labels, bytes, doorbell: doorbell.clone(), unheard: false }
            });
            all[from].outgoing.push(outgoing);
        }
    }
    all
}

impl Handoff {
    /// For a worker that is the only one: everything is its own.
    pub fn alone() -> Self {
        Self::without_rings(0)
    }

    fn without_rings(longest: usize) -> Self {
        Self {
            outgoing: Vec::new(),
            incoming: Vec::new(),
            first: 0,
            joined: vec![0; longest].into_boxed_slice(),
            resets: 0,
            counters: Counters::default(),
        }
    }

    /// What was handed over and taken over so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Copies a datagram to its owner, if that is another worker: whether it is. The owner hears of it with
    /// [`Handoff::ring`].
    #[inline]
    pub(super) fn give(&mut self, datagram: &Received<'_>) -> bool {
        if self.outgoing.is_empty() {
            return false;
        }
        owner(datagram.payload).is_some_and(|owner| self.give_to(owner, datagram))
    }

    /// As [`Handoff::give`], to this worker: whether there is such another one.
    pub(super) fn give_to(&mut self, owner: usize, datagram: &Received<'_>) -> bool {
        // A session of a worker that does not exist is as unknown here as anywhere.
        let Some(Some(ring)) = self.outgoing.get_mut(owner) else { return false };
        let counter = if ring.put(datagram) { &mut self.counters.handed_over } else { &mut self.counters.dropped };
        *counter += 1;
        true
    }

    /// Copies a reset that is of no tunnel here to all others, or to none when there were too many: whose it is nothing in it
    /// says, and anybody can make one.
    pub(super) fn give_reset(&mut self, now: Instant, reset: &Received<'_>) {
        if self.outgoing.is_empty() {
            return;
        }
        let Some(resets) = RESETS.take(self.resets, now.as_nanos()) else { return };
        self.resets = resets;
        for worker in 0..self.outgoing.len() {
            self.give_to(worker, reset);
        }
    }

    /// Rings for those that were given something, once each.
    pub(super) fn ring(&mut self) {
        for ring in self.outgoing.iter_mut().flatten() {
            if std::mem::take(&mut ring.unheard) {
                ring.doorbell.ring();
            }
        }
    }

    /// Takes at most `limit` datagrams that others handed over, each worker's in their order. Returns how many.
    pub(super) fn take(&mut self, limit: usize, mut sink: impl FnMut(Received<'_>)) -> usize {
        if self.incoming.is_empty() {
            return 0;
        }
        let mut taken = 0;
        let (before, from) = self.incoming.split_at_mut(self.first);
        for ring in from.iter_mut().chain(before) {
            while taken < limit && ring.get(&mut self.joined, &mut sink) {
                taken += 1;
            }
        }
        self.first = (self.first + 1) % self.incoming.len();
        self.counters.taken_over += taken as u64;
        taken
    }
}

impl Outgoing {
    /// Whether there was room.
    fn put(&mut self, datagram: &Received<'_>) -> bool {
        let Received { source, destination, ecn, via, payload } = *datagram;
        // Only this end fills the ring of labels: room that is there now stays until the push.
        if payload.len() > PAYLOAD_MAX || self.labels.is_full() || self.bytes.push_entire_slice(payload).is_err() {
            return false;
        }
        self.unheard = true;
        self.labels.push(Label { source, destination, ecn, via, len: payload.len() }).is_ok()
    }
}

impl Incoming {
    /// Lends the next datagram to `sink`; whether there was one.
    fn get(&mut self, joined: &mut [u8], sink: &mut impl FnMut(Received<'_>)) -> bool {
        let Ok(Label { source, destination, ecn, via, len }) = self.labels.pop() else { return false };
        let bytes = self.bytes.read_chunk(len).expect("the bytes were put in before their label");
        let payload = match bytes.as_slices() {
            (payload, []) => payload,
            (head, tail) => {
                joined[..head.len()].copy_from_slice(head);
                joined[head.len()..len].copy_from_slice(tail);
                &joined[..len]
            }
        };
        sink(Received { source, destination, ecn, via, payload });
        bytes.commit_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 4242;

    /// A data packet of a session of `worker`: `number` in it, and `len` bytes.
    fn data(worker: u8, number: u32, len: usize) -> Vec<u8> {
        let header = pilot_common::wire::Header {
            packet_type: pilot_common::wire::PacketType::Data,
            epoch: 0,
            receiver: u32::from(worker) << 24 | 7,
            word: number,
        };
        let mut bytes = header.to_bytes().to_vec();
        bytes.resize(len, number as u8);
        bytes
    }

    /// Of a session of its sender's worker.
    fn reset(worker: u8) -> Vec<u8> {
        [&[1 << 5 | 5 << 2, worker][..], &[0; 23]].concat()
    }

    fn received(payload: &[u8]) -> Received<'_> {
        let source = ([192, 0, 2, 1], 999).into();
        let destination = ([192, 0, 2, 2], PORT).into();
        Received { source, destination, ecn: Ecn::Ce, via: Via::Xdp, payload }
    }

    fn workers(count: usize) -> (Vec<Handoff>, Vec<Doorbell>) {
        let doorbells: Vec<Doorbell> = (0..count).map(|_| Doorbell::new().unwrap()).collect();
        (mesh(&doorbells), doorbells)
    }

    fn take(handoff: &mut Handoff, limit: usize) -> Vec<Vec<u8>> {
        let mut kept = Vec::new();
        let count = handoff.take(limit, |datagram| kept.push(datagram.payload.to_vec()));
        assert_eq!(count, kept.len());
        kept
    }

    fn has_rung(doorbell: &Doorbell) -> bool {
        use std::os::fd::AsFd as _;
        let fd = nix::poll::PollFd::new(doorbell.as_fd(), nix::poll::PollFlags::POLLIN);
        nix::poll::poll(&mut [fd], nix::poll::PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn a_datagram_reaches_its_owner_as_it_came() {
        let (mut all, doorbells) = workers(3);
        let payload = data(2, 5, 100);
        assert!(all[0].give(&received(&payload)));
        assert!(!has_rung(&doorbells[2]), "once a pass, not once a datagram");
        all[0].ring();
        assert!(has_rung(&doorbells[2]) && !has_rung(&doorbells[1]));
        assert!(take(&mut all[1], 64).is_empty());
        let mut count = 0;
        all[2].take(64, |datagram| {
            let Received { source, destination, ecn, via, payload } = datagram;
            let expected = received(payload);
            assert_eq!((source, destination), (expected.source, expected.destination));
            assert_eq!((ecn, via), (expected.ecn, expected.via));
            assert_eq!(payload, data(2, 5, 100));
            count += 1;
        });
        assert_eq!(count, 1);
        assert_eq!(all[0].counters(), Counters { handed_over: 1, ..Counters::default() });
        assert_eq!(all[2].counters(), Counters { taken_over: 1, ..Counters::default() });
    }

    #[test]
    fn what_is_ours_or_nobodys_stays() {
        let (mut all, doorbells) = workers(2);
        let initiation = |worker| [&[1 << 5 | 1 << 2, worker][..], &[0; 1198]].concat();
        let relayed = [&[1 << 5 | 6 << 2, 1][..], &[0; 98]].concat();
        let nobodys = [initiation(0), initiation(1), relayed, reset(1), vec![0x30]];
        for payload in [data(0, 1, 50), data(2, 1, 50), data(255, 1, 50)].into_iter().chain(nobodys) {
            assert!(!all[0].give(&received(&payload)));
            assert!(!Handoff::alone().give(&received(&payload)));
        }
        all[0].ring();
        assert!(!has_rung(&doorbells[1]));
        assert!(!Handoff::alone().give(&received(&data(1, 1, 50))), "there is no other");
        assert_eq!(all[0].counters(), Counters::default());
    }

    /// wire.md W4.9: all others get it, until there were too many; a ring is not filled with them.
    #[test]
    fn a_reset_goes_to_all_others_and_a_flood_of_them_does_not() {
        let (mut all, doorbells) = workers(3);
        let (reset, mut copies) = (reset(1), 0);
        for (ms, expected) in [(5000, 64), (5009, 0), (5010, 1), (5020, 1), (60_000, 64)] {
            let now = Instant::from_nanos(ms * 1_000_000);
            for _ in 0..1000 {
                all[0].give_reset(now, &received(&reset));
            }
            all[0].ring();
            for other in [1, 2] {
                assert_eq!(take(&mut all[other], 64), vec![reset.clone(); expected], "{ms}");
            }
            copies += 2 * expected as u64;
        }
        assert!(has_rung(&doorbells[1]) && has_rung(&doorbells[2]) && !has_rung(&doorbells[0]));
        assert_eq!(all[0].counters(), Counters { handed_over: copies, ..Counters::default() });
        Handoff::alone().give_reset(Instant::ORIGIN, &received(&reset));
    }

    /// Through many turns of the ring, so that datagrams of every length lie across its end.
    #[test]
    fn every_byte_arrives_wherever_it_lies() {
        let (mut all, _doorbells) = workers(2);
        let (mut number, mut bytes) = (0, 0);
        while bytes < 20 * RING_BYTES {
            let batch: Vec<Vec<u8>> = (number..number + 20).map(|n| data(1, n, 26 + n as usize * 97 % 8900)).collect();
            for payload in &batch {
                assert!(all[0].give(&received(payload)));
                bytes += payload.len();
            }
            number += 20;
            assert_eq!(take(&mut all[1], 64), batch);
        }
        assert_eq!(all[1].counters().taken_over, u64::from(number));
    }

    #[test]
    fn both_bounds_hold_and_what_does_not_fit_is_counted() {
        for (len, fit) in [(26, RING_DATAGRAMS), (1472, RING_BYTES / 1472), (PAYLOAD_MAX, RING_BYTES / PAYLOAD_MAX)] {
            let (mut all, _doorbells) = workers(2);
            for number in 0..300 {
                assert!(all[0].give(&received(&data(1, number, len))), "lost, and not for us to open");
            }
            let counters = all[0].counters();
            assert_eq!((counters.handed_over, counters.dropped), (fit as u64, 300 - fit as u64), "{len}");
            let kept = std::iter::from_fn(|| Some(take(&mut all[1], 64)).filter(|some| !some.is_empty())).flatten();
            assert!(kept.eq((0..fit as u32).map(|number| data(1, number, len))));
            assert!(all[0].give(&received(&data(1, 0, len))), "there is room again");
            assert_eq!(take(&mut all[1], 64).len(), 1);
        }
        let (mut all, _doorbells) = workers(2);
        assert!(all[0].give(&received(&data(1, 0, PAYLOAD_MAX + 1))));
        assert_eq!(all[0].counters().dropped, 1);
        assert!(take(&mut all[1], 64).is_empty());
    }

    #[test]
    fn a_worker_that_hands_over_much_does_not_keep_others_waiting() {
        let (mut all, _doorbells) = workers(3);
        for number in 0..200 {
            assert!(all[0].give(&received(&data(2, number, 50))));
        }
        assert!(all[1].give(&received(&data(2, 1000, 50))));
        let first = take(&mut all[2], 64);
        let second = take(&mut all[2], 64);
        assert!(first.len() == 64 && [first, second].concat().contains(&data(2, 1000, 50)));
    }

    /// Two workers that receive only what is the other's, as fast as they can, with rings that overflow.
    #[test]
    fn threads_hand_over_in_order_and_count_what_is_lost() {
        const COUNT: u32 = 50_000;
        let (all, _doorbells) = workers(2);
        let threads: Vec<_> = all
            .into_iter()
            .enumerate()
            .map(|(own, mut handoff)| {
                std::thread::spawn(move || {
                    let other = 1 - own as u8;
                    let (mut sent, mut numbers) = (0, Vec::new());
                    let mut ended = false;
                    while sent < COUNT || !ended {
                        let taken = handoff.take(64, |datagram| {
                            let number = u32::from_be_bytes(datagram.payload[5..9].try_into().unwrap());
                            ended |= number == COUNT;
                            if number < COUNT {
                                let len = 26 + number as usize % 1400;
                                assert_eq!(datagram.payload, data(own as u8, number, len));
                                numbers.push(number);
                            }
                        });
                        let until = (sent + 64).min(COUNT);
                        for number in sent..until {
                            assert!(handoff.give(&received(&data(other, number, 26 + number as usize % 1400))));
                        }
                        if sent < COUNT && until == COUNT {
                            // The end must not be lost.
                            let before = handoff.counters().handed_over;
                            while handoff.counters().handed_over == before {
                                handoff.give(&received(&data(other, COUNT, 26)));
                                handoff.ring();
                                std::thread::yield_now();
                            }
                        }
                        sent = until;
                        handoff.ring();
                        if sent == COUNT && taken == 0 && !ended {
                            std::thread::yield_now();
                        }
                    }
                    (handoff.counters(), numbers)
                })
            })
            .collect();
        let ends: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        for (own, other) in [(0, 1), (1, 0)] {
            let (given, (taken, numbers)) = (ends[own].0, &ends[other]);
            assert!(numbers.is_sorted_by(|a, b| a < b), "out of order");
            assert_eq!(taken.taken_over, given.handed_over);
            assert_eq!(numbers.len() as u64 + 1, given.handed_over);
            assert!(given.handed_over + given.dropped > u64::from(COUNT));
        }
    }
}
