//! What moves datagrams: the vocabulary that AF_XDP, the kernel's UDP socket and the simulator have in common.
//!
//! A link is owned by one worker and is never shared. Per pass the worker calls `recv`, then takes slots and commits
//! them, each followed by the endpoint's effects, then `flush`; it calls `wait` only when a pass found nothing to do.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

pub mod counters;
pub mod doorbell;
pub(crate) mod group;
pub mod next_hops;
pub mod orders;
mod outbound;
pub mod pair;
pub mod udp;
pub mod xdp;

pub use pilot_engine::{Ecn, Effect};

use pair::PairCounters;

/// Most datagrams taken in one pass: a batch that amortizes the pass, and small enough that timers and acks are not
/// late behind it.
pub const RECV_BATCH: usize = 64;

/// Which way a datagram came or went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    /// An AF_XDP ring.
    Xdp,
    /// A kernel UDP socket on the first port.
    Udp,
    /// A kernel UDP socket on the bulk port.
    Bulk,
    /// A network in memory.
    Memory,
}

/// One received datagram, lent for the duration of the callback.
#[derive(Debug)]
pub struct Received<'a> {
    /// Who sent it.
    pub source: SocketAddr,
    /// The local address and port it was sent to.
    pub destination: SocketAddr,
    /// The ECN bits it arrived with.
    pub ecn: Ecn,
    /// Which way it came.
    pub via: Via,
    /// The UDP payload.
    pub payload: &'a [u8],
}

/// What the receiver found out about a datagram. A link may learn addresses only from authentic ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// It was authenticated under a peer's key.
    Authentic,
    /// Nothing is known about its sender.
    Unproven,
}

/// Another way, see [`Link::take_change`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// Nothing that the kernel's UDP does is faster: a driver moves frames from and to our memory.
    pub is_zero_copy: bool,
}

/// Where a committed datagram goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// The address to send to.
    pub destination: SocketAddr,
    /// The local address and port to send from. `None`, and an unspecified address, let the routing table choose the
    /// address.
    pub source: Option<SocketAddr>,
    /// ECN bits to send with.
    pub ecn: Ecn,
    /// Bytes of the slot that are the datagram.
    pub len: usize,
}

/// Room for one outgoing datagram. Dropped uncommitted, it goes back to the link unused.
pub trait Slot {
    /// The room: at least [`Link::max_payload`] bytes of the link that lent it.
    fn payload(&mut self) -> &mut [u8];
    /// Hands the first `envelope.len` bytes over for sending. They leave with a later call on the link, at the latest with
    /// [`Link::flush`].
    fn commit(self, envelope: &Envelope);
}

/// Moves datagrams in and out. See the module's head for the order of calls.
pub trait Link {
    /// The link's kind of slot.
    type Slot<'a>: Slot
    where
        Self: 'a;

    /// Takes at most `limit` received datagrams, handing each to `sink`; returns how many. The sink's answer tells the
    /// link whether it may learn from the datagram. Never blocks. An error is the link's, not a datagram's.
    fn recv(&mut self, limit: usize, sink: impl FnMut(Received<'_>) -> Trust) -> io::Result<usize>;

    /// Room for one datagram, or `None` when all room is in use: then flush, and try in the next pass.
    fn slot(&mut self) -> Option<Self::Slot<'_>>;

    /// Sends what was committed, in one kick. A datagram that cannot leave is a counted loss, as on any network.
    fn flush(&mut self) -> io::Result<()>;

    /// Sleeps until something can be received, `timeout` has passed, or the worker's doorbell rang.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// Largest UDP payload that can leave, in bytes.
    fn max_payload(&self) -> usize;

    /// What it has counted, where that is asked for.
    fn counted(&self) -> PairCounters {
        PairCounters::default()
    }

    /// Does what the endpoint asks for before anything leaves that was committed last. Nothing, where only the endpoint looks
    /// session ids up.
    fn apply(&mut self, _effect: Effect) {}

    /// Tells once that the first port's datagrams go another way since the last question, or that their device works again.
    fn take_change(&mut self) -> Option<Change> {
        None
    }
}
