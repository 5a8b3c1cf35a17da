//! What links count: every datagram that was refused or lost has a reason.

use pilot_common::stats::{COUNTERS, Verdict};
use pilot_xsk::KernelStatistics;
use serde::{Serialize, Serializer};

/// Datagrams of one link, since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Counters {
    /// Handed to the worker.
    pub received: u64,
    /// UDP payload bytes of those.
    pub received_bytes: u64,
    /// Handed to the kernel.
    pub sent: u64,
    /// UDP payload bytes of those.
    pub sent_bytes: u64,
    /// Received, and not handed to the worker.
    pub refused: Verdicts,
    /// Committed, and gone before they left this machine.
    pub lost: Lost,
}

/// A count for each verdict of [`pilot_common::steer`], in the kernel or in userspace (wire.md W2.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdicts(pub [u64; COUNTERS]);

impl Default for Verdicts {
    fn default() -> Self {
        Self([0; COUNTERS])
    }
}

impl Verdicts {
    /// How often this verdict was given.
    pub fn get(&self, verdict: Verdict) -> u64 {
        self.0[verdict.counter()]
    }

    /// Frames that went to AF_XDP sockets.
    pub fn redirected(&self) -> u64 {
        self.get(Verdict::Redirect)
    }

    /// Frames that were left to the kernel, for any reason.
    pub fn passed(&self) -> u64 {
        self.iter().filter(|(verdict, _)| matches!(verdict, Verdict::Pass(_))).map(|(_, count)| count).sum()
    }

    /// Frames that were dropped, for any reason.
    pub fn dropped(&self) -> u64 {
        self.iter().filter(|(verdict, _)| matches!(verdict, Verdict::Drop(_))).map(|(_, count)| count).sum()
    }

    /// All verdicts with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Verdict, u64)> {
        Verdict::ALL.into_iter().zip(self.0)
    }

    pub(super) fn count(&mut self, verdict: Verdict) {
        self.0[verdict.counter()] += 1;
    }
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.received += other.received;
        self.received_bytes += other.received_bytes;
        self.sent += other.sent;
        self.sent_bytes += other.sent_bytes;
        self.refused += other.refused;
        self.lost += other.lost;
    }
}

impl std::ops::AddAssign for Verdicts {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }
}

impl Serialize for Verdicts {
    /// A map from the verdict's name to its count.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(verdict, count)| (verdict.name(), count)))
    }
}

/// Committed datagrams that did not leave, by reason. To the transport they are losses like any other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Lost {
    /// Longer than the path or the device takes (EMSGSIZE), or than the slot.
    pub too_big: u64,
    /// No route, no neighbour, or the device is down (ENETUNREACH, EHOSTUNREACH, ENETDOWN).
    pub unreachable: u64,
    /// Refused by a host rule or for lack of a right (EPERM, EACCES).
    pub denied: u64,
    /// No buffer space (ENOBUFS, EBUSY), or no room to wait in.
    pub no_room: u64,
    /// Queued on an AF_XDP socket whose device went away.
    pub device_gone: u64,
    /// For any other reason.
    pub other: u64,
}

impl Lost {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Self { too_big, unreachable, denied, no_room, device_gone, other } = *self;
        too_big + unreachable + denied + no_room + device_gone + other
    }
}

impl std::ops::AddAssign for Lost {
    fn add_assign(&mut self, other: Self) {
        let Self { too_big, unreachable, denied, no_room, device_gone, other: rest } = other;
        self.too_big += too_big;
        self.unreachable += unreachable;
        self.denied += denied;
        self.no_room += no_room;
        self.device_gone += device_gone;
        self.other += rest;
    }
}

/// What the kernel counted for AF_XDP sockets (`XDP_STATISTICS`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Rings {
    /// Times that the kernel wanted a chunk to receive into and found the fill ring empty; in copy mode each is a frame lost.
    pub fill_empty: u64,
    /// Frames lost because the RX ring was full.
    pub rx_full: u64,
    /// Frames lost for want of a chunk, or because they were longer than one.
    pub rx_dropped: u64,
    /// Entries of the fill ring that were none of ours to give.
    pub rx_invalid: u64,
    /// Entries of the TX ring that cannot be sent.
    pub tx_invalid: u64,
    /// Times that the kernel looked for more to send and found nothing: the end of every batch.
    pub tx_empty: u64,
}

impl From<KernelStatistics> for Rings {
    fn from(counted: KernelStatistics) -> Self {
        let KernelStatistics { rx_dropped, rx_invalid, tx_invalid, rx_ring_full, fill_empty, tx_empty } = counted;
        Self { fill_empty, rx_full: rx_ring_full, rx_dropped, rx_invalid, tx_invalid, tx_empty }
    }
}

impl std::ops::AddAssign for Rings {
    fn add_assign(&mut self, other: Self) {
        let Self { fill_empty, rx_full, rx_dropped, rx_invalid, tx_invalid, tx_empty } = other;
        self.fill_empty += fill_empty;
        self.rx_full += rx_full;
        self.rx_dropped += rx_dropped;
        self.rx_invalid += rx_invalid;
        self.tx_invalid += tx_invalid;
        self.tx_empty += tx_empty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_take_each_verdict_once() {
        let mut all = Verdicts::default();
        Verdict::ALL.into_iter().for_each(|verdict| all.count(verdict));
        assert_eq!((all.redirected(), all.dropped()), (1, 5));
        assert_eq!(all.redirected() + all.passed() + all.dropped(), COUNTERS as u64);
        let json = serde_json::to_value(all).unwrap();
        assert_eq!(json["pass_no_socket"], 1);
        assert_eq!(json.as_object().unwrap().len(), COUNTERS);
    }
}
