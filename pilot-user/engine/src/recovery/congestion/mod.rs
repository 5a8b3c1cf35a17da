//! Congestion control: how much may be in flight. Two algorithms behind one trait.

mod cubic;
mod swift;

use std::time::Duration;

use super::rtt::Rtt;
use crate::limits::{INITIAL_WINDOW_PACKETS, MIN_DATAGRAM_BYTES};
use crate::time::Instant;

/// Which congestion control a node uses for what it sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ControllerKind {
    /// Holds the queueing delay at a target; loss of up to 2 % without queueing delay is not congestion. Yields to flows
    /// that fill queues.
    #[default]
    DelayTarget,
    /// CUBIC (RFC 9438), for wide-area paths shared with TCP. Loss is congestion.
    Cubic,
}

impl ControllerKind {
    pub(super) fn start(self) -> Box<dyn Controller> {
        match self {
            Self::DelayTarget => Box::<swift::Swift>::default(),
            Self::Cubic => Box::<cubic::Cubic>::default(),
        }
    }
}

/// What an ACK acked that had not been acked before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acked<'a> {
    pub(super) now: Instant,
    /// When the newest of the packets was sent.
    pub(super) sent: Instant,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// The round trip of the newest, without what the peer waited, and without the queues on the way back where the peer says when
    /// packets arrive; `None` if it is not news.
    pub(super) sample: Option<Duration>,
    pub(super) rtt: &'a Rtt,
    /// The window, and not the application or the peer's credit, held the sender back when these were in flight. Otherwise
    /// that they arrived says nothing about a larger one (RFC 9002 §7.8).
    pub(super) limited: bool,
}

/// A congestion control. Windows are in bytes.
pub(super) trait Controller: std::fmt::Debug + Send + Sync {
    /// Bytes that may be in flight.
    fn window(&self) -> u64;

    /// The window doubles with each round trip.
    fn in_slow_start(&self) -> bool;

    /// The path carries datagrams of so many bytes now.
    fn set_datagram(&mut self, bytes: u16);

    fn on_acked(&mut self, acked: &Acked<'_>);

    /// A packet sent at `sent` was declared lost.
    fn on_lost(&mut self, now: Instant, sent: Instant);

    /// A packet sent at `sent` for which `on_lost` was called arrived after all.
    fn on_spurious(&mut self, sent: Instant);

    /// Packets were marked, of those acked by an ACK whose newest was sent at `sent`.
    fn on_marked(&mut self, now: Instant, sent: Instant);

    /// Nothing arrived for several probe time-outs (RFC 9002 §7.6).
    fn on_persistent_congestion(&mut self, now: Instant);
}

/// Bytes of the first window, for datagrams of the least size.
const INITIAL_WINDOW: u64 = INITIAL_WINDOW_PACKETS * MIN_DATAGRAM_BYTES as u64;
