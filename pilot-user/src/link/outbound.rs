//! Datagrams on their way to a UDP socket: sealed side by side, sent in runs, kept while the socket has no room.

use std::io;

use nix::errno::Errno;

use super::Envelope;
use super::counters::{Counters, Lost};

/// Datagrams that may be committed between two flushes, or wait for a send buffer that is full.
const SEND_BATCH: usize = 64;

/// Most bytes of one GSO send: what an IPv4 length field can say, less the headers. One more is EMSGSIZE for all of it.
const GSO_BYTES: usize = 65_507;

/// Committed datagrams, one after the other without gaps, so that a run of equal ones can leave as one super-packet.
pub(super) struct Outbound {
    arena: Box<[u8]>,
    /// Bytes of it that are used between two flushes: where there is segmentation offload, what one super-packet can be, if that is
    /// several of the longest datagrams. So bulk leaves in whole ones, and not in one and a part of the next.
    limit: usize,
    used: usize,
    entries: Vec<Envelope>,
    blocked: bool,
}

impl Outbound {
    pub(super) fn new(max_payload: usize, gso: bool) -> Self {
        let arena = SEND_BATCH * max_payload;
        Self {
            arena: vec![0; arena].into_boxed_slice(),
            limit: if gso && 2 * max_payload <= GSO_BYTES { arena.min(GSO_BYTES) } else { arena },
            used: 0,
            entries: Vec::with_capacity(SEND_BATCH),
            blocked: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub(super) fn has_room(&self, max_payload: usize) -> bool {
        self.entries.len() < SEND_BATCH && self.limit - self.used >= max_payload
    }

    pub(super) fn room(&mut self, max_payload: usize) -> &mut [u8] {
        &mut self.arena[self.used..self.used + max_payload]
    }

    pub(super) fn commit(&mut self, envelope: &Envelope) {
        self.used += envelope.len;
        self.entries.push(*envelope);
    }

    /// Sends all; what the send buffer has no room for stays, in order. A super-packet has up to so many `segments`, and is longer
    /// than `frame`, the longest datagram that leaves as one frame: where a generic XDP program receives it, only what is longer than
    /// the MTU is known to be one, and a shorter one would be taken for a single datagram. Where none can be longer, as on the loopback
    /// device, no such program is.
    pub(super) fn flush(
        &mut self,
        segments: usize,
        frame: usize,
        counters: &mut Counters,
        send: impl Fn(&Envelope, &[u8], Option<usize>) -> io::Result<()>,
    ) {
        let (mut first, mut offset, mut segments) = (0, 0, segments);
        self.blocked = false;
        while let Some(envelope) = self.entries.get(first) {
            let run = equal_run(&self.entries[first..], segments, frame);
            let bytes: usize = self.entries[first..first + run].iter().map(|entry| entry.len).sum();
            let contents = &self.arena[offset..offset + bytes];
            match send(envelope, contents, (run > 1).then_some(envelope.len)) {
                Ok(()) => {
                    counters.sent += run as u64;
                    counters.sent_bytes += bytes as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    break;
                }
                // The super-packet was refused, perhaps for being one: the rest of this flush goes one by one.
                Err(_) if run > 1 => {
                    segments = 1;
                    continue;
                }
                Err(error) => count_loss(&mut counters.lost, &error),
            }
            first += run;
            offset += bytes;
        }
        self.arena.copy_within(offset..self.used, 0);
        self.used -= offset;
        self.entries.drain(..first);
    }
}

/// Entries from the first that may leave as one super-packet: all as long as the first, the last possibly shorter, and together longer
/// than a frame.
fn equal_run(entries: &[Envelope], segments: usize, frame: usize) -> usize {
    let Some(first) = entries.first() else { return 0 };
    let (mut run, mut bytes) = (1, first.len);
    for entry in entries[1..].iter().take(segments.saturating_sub(1)) {
        let same_way = (entry.destination, entry.source, entry.ecn) == (first.destination, first.source, first.ecn);
        if !same_way || entry.len > first.len || entry.len == 0 || bytes + entry.len > GSO_BYTES {
            break;
        }
        run += 1;
        bytes += entry.len;
        if entry.len < first.len {
            break;
        }
    }
    if bytes > frame || frame >= GSO_BYTES { run } else { 1 }
}

fn count_loss(lost: &mut Lost, error: &io::Error) {
    *match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMSGSIZE) => &mut lost.too_big,
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN | Errno::EADDRNOTAVAIL) => {
            &mut lost.unreachable
        }
        Some(Errno::EPERM | Errno::EACCES) => &mut lost.denied,
        Some(Errno::ENOBUFS | Errno::ENOMEM) => &mut lost.no_room,
        _ => &mut lost.other,
    } += 1;
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::link::Ecn;

    const ROOM: usize = 100;

    fn envelope(port: u16, len: usize) -> Envelope {
        Envelope { destination: ([192, 0, 2, 1], port).into(), source: None, ecn: Ecn::NotEct, len }
    }

    fn commit(outbound: &mut Outbound, port: u16, text: &[u8]) {
        assert!(outbound.has_room(ROOM));
        outbound.room(ROOM)[..text.len()].copy_from_slice(text);
        outbound.commit(&envelope(port, text.len()));
    }

    /// What was sent, as text with the segment size.
    type Sent = Vec<(String, Option<usize>)>;

    /// Flushes with a socket that answers the n-th send with the n-th error, and takes the ones after.
    fn flush(outbound: &mut Outbound, counters: &mut Counters, segments: usize, answers: &[Option<Errno>]) -> Sent {
        let (sent, number) = (RefCell::new(Sent::new()), RefCell::new(0));
        outbound.flush(segments, 1, counters, |_, contents, segment_size| {
            let answer = answers.get(*number.borrow()).copied().flatten();
            *number.borrow_mut() += 1;
            match answer {
                Some(errno) => Err(errno.into()),
                None => {
                    sent.borrow_mut().push((String::from_utf8_lossy(contents).into(), segment_size));
                    Ok(())
                }
            }
        });
        sent.into_inner()
    }

    fn one(text: &str) -> (String, Option<usize>) {
        (text.into(), None)
    }

    #[test]
    fn runs_are_equal_in_all_but_a_shorter_last() {
        let entries = |list: &[(u16, usize)]| -> Vec<Envelope> { list.iter().map(|&(p, l)| envelope(p, l)).collect() };
        for (list, segments, run) in [
            (vec![], 64, 0),
            (vec![(1, 50)], 64, 1),
            (vec![(1, 50), (1, 50), (1, 50)], 64, 3),
            (vec![(1, 50), (1, 50), (1, 20), (1, 50)], 64, 3),
            (vec![(1, 50), (1, 51)], 64, 1),
            (vec![(1, 50), (2, 50)], 64, 1),
            (vec![(1, 50), (1, 0)], 64, 1),
            (vec![(1, 50), (1, 50), (1, 50)], 2, 2),
            (vec![(1, 50), (1, 50)], 1, 1),
            (vec![(1, 1400); 64], 64, 46),
            (vec![(1, 30), (1, 30)], 64, 1),
            (vec![(1, 30), (1, 30), (1, 1)], 64, 3),
            (vec![(1, 50); 70], 64, 64),
        ] {
            assert_eq!(equal_run(&entries(&list), segments, 60), run, "{list:?}");
        }
        assert_eq!(equal_run(&entries(&[(1, 50), (1, 50)]), 64, GSO_BYTES), 2, "on the loopback device");
        let mut other = entries(&[(1, 50), (1, 50)]);
        other[1].ecn = Ecn::Ce;
        assert_eq!(equal_run(&other, 64, 60), 1);
        other[1] = Envelope { source: Some(([192, 0, 2, 9], 4242).into()), ..other[0] };
        assert_eq!(equal_run(&other, 64, 60), 1);
    }

    #[test]
    fn what_finds_no_room_stays_in_order() {
        let (mut outbound, mut counters) = (Outbound::new(ROOM, false), Counters::default());
        for text in ["a", "bb", "ccc"] {
            commit(&mut outbound, 1, text.as_bytes());
        }
        let sent = flush(&mut outbound, &mut counters, 1, &[None, Some(Errno::EAGAIN)]);
        assert_eq!(sent, [one("a")]);
        assert!(outbound.is_blocked());
        commit(&mut outbound, 1, b"dd");
        assert_eq!(flush(&mut outbound, &mut counters, 1, &[]), [one("bb"), one("ccc"), one("dd")]);
        assert!(!outbound.is_blocked());
        assert_eq!((counters.sent, counters.lost.total()), (4, 0));
    }

    #[test]
    fn what_waits_is_bounded() {
        let (mut outbound, mut counters) = (Outbound::new(ROOM, false), Counters::default());
        for number in 0..SEND_BATCH as u16 {
            commit(&mut outbound, number, &[b'x'; ROOM]);
        }
        assert!(!outbound.has_room(ROOM));
        flush(&mut outbound, &mut counters, 1, &[Some(Errno::EAGAIN)]);
        assert!(!outbound.has_room(ROOM));
        flush(&mut outbound, &mut counters, 1, &[None, Some(Errno::EAGAIN)]);
        assert!(outbound.has_room(ROOM));
    }

    /// With segmentation offload, no more between two flushes than leaves as one super-packet.
    #[test]
    fn bulk_leaves_in_whole_super_packets() {
        for (gso, datagrams) in [(true, 44), (false, SEND_BATCH)] {
            let mut outbound = Outbound::new(1472, gso);
            let committed = std::iter::from_fn(|| outbound.has_room(1472).then(|| outbound.commit(&envelope(1, 1472))));
            assert_eq!(committed.count(), datagrams);
        }
        let mut loopback = Outbound::new(65_507, true);
        (0..SEND_BATCH).for_each(|_| {
            assert!(loopback.has_room(65_507), "where one datagram can be as long as a super-packet, most are not");
            loopback.commit(&envelope(1, 1472));
        });
    }

    #[test]
    fn each_error_loses_one_datagram_and_is_counted_by_reason() {
        let (mut outbound, mut counters) = (Outbound::new(ROOM, false), Counters::default());
        let errors =
            [Errno::EMSGSIZE, Errno::EHOSTUNREACH, Errno::ENETDOWN, Errno::EPERM, Errno::ENOBUFS, Errno::EINVAL];
        for _ in 0..=errors.len() {
            commit(&mut outbound, 1, b"x");
        }
        assert_eq!(flush(&mut outbound, &mut counters, 1, &errors.map(Some)), [one("x")]);
        let lost = Lost { too_big: 1, unreachable: 2, denied: 1, no_room: 1, device_gone: 0, other: 1 };
        assert_eq!((counters.sent, counters.lost), (1, lost));
    }

    #[test]
    fn a_refused_super_packet_goes_one_by_one() {
        let (mut outbound, mut counters) = (Outbound::new(ROOM, false), Counters::default());
        for text in ["aa", "bb", "c"] {
            commit(&mut outbound, 1, text.as_bytes());
        }
        let sent = flush(&mut outbound, &mut counters, 64, &[Some(Errno::EIO)]);
        assert_eq!(sent, [one("aa"), one("bb"), one("c")]);
        for text in ["aa", "bb", "c"] {
            commit(&mut outbound, 1, text.as_bytes());
        }
        assert_eq!(flush(&mut outbound, &mut counters, 64, &[]), [("aabbc".to_owned(), Some(2))]);
        assert_eq!((counters.sent, counters.lost.total()), (6, 0));
    }
}
