//! A receive queue of the device and its AF_XDP socket, which fails and comes back apart from the others.

use std::time::Duration;

use pilot_xsk::Placement;
use tokio::time::Instant;

use super::Order;
use super::obstacle::Obstacle;
use crate::link::orders::ControlEnd;

/// Pause between tries while AF_XDP is likely to come soon: a queue whose last socket was just closed is busy for 40 ms on
/// veth, and up to 2 s with some drivers.
const RETRY_SOON: Duration = Duration::from_millis(100);

/// How long after the first failure a try is likely to succeed soon.
const SOON: Duration = Duration::from_secs(3);

/// Pause between later tries: what they wait for is an operator's doing, of which netlink tells only part.
const RETRY_LATER: Duration = Duration::from_secs(1);

/// A receive queue, the worker that serves it, and where its AF_XDP socket stands.
pub(super) struct Queue {
    pub(super) id: u32,
    pub(super) link: ControlEnd,
    pub(super) socket: Socket,
}

pub(super) enum Socket {
    /// Not open.
    Closed(Closed),
    /// The worker has it, and what arrives on the queue goes this way while the device is up: frames of up to `longest` bytes.
    Lent { zero_copy: bool, longest: usize, memory: Placement },
    /// The worker is to give it back for this reason. It was told, unless it was behind with its orders.
    Recalled { told: bool, why: String },
}

#[derive(Clone)]
pub(super) struct Closed {
    /// Why.
    pub(super) why: String,
    /// When it is tried to open it, if ever.
    pub(super) retry: Option<Instant>,
    /// When it was first tried.
    pub(super) since: Instant,
    /// The next try is likely to succeed.
    pub(super) soon: bool,
}

impl Closed {
    /// To be tried at once.
    pub(super) fn now(why: &str) -> Socket {
        let now = Instant::now();
        Socket::Closed(Self { why: why.to_owned(), retry: Some(now), since: now, soon: true })
    }

    /// After a try.
    pub(super) fn after(self, refusal: &Refusal) -> Self {
        let now = Instant::now();
        let soon = now < self.since + SOON && !refusal.is_permanent;
        let pause = if soon { RETRY_SOON } else { RETRY_LATER };
        Self {
            why: refusal.why.clone(),
            retry: (!refusal.is_permanent).then_some(now + pause),
            since: self.since,
            soon,
        }
    }
}

/// What an [`Obstacle`] comes to, which may be the same for several queues and at each try.
#[derive(Clone)]
pub(super) struct Refusal {
    pub(super) why: String,
    pub(super) is_permanent: bool,
}

impl<E: Into<Obstacle>> From<E> for Refusal {
    fn from(obstacle: E) -> Self {
        let obstacle = obstacle.into();
        Self { why: obstacle.to_string(), is_permanent: obstacle.is_permanent() }
    }
}

impl Queue {
    /// Why it has no AF_XDP, if it has none.
    pub(super) fn why_not(&self) -> Option<&str> {
        match &self.socket {
            Socket::Lent { .. } => None,
            Socket::Closed(Closed { why, .. }) | Socket::Recalled { why, .. } => Some(why),
        }
    }

    /// Tells the worker to give its socket back, if it was not told yet.
    pub(super) fn recall_again(&mut self) {
        if let Socket::Recalled { told, .. } = &mut self.socket
            && !*told
        {
            // Behind with its orders: the next look tells it again.
            *told = self.link.send(Order::Detach).is_ok();
        }
    }
}
