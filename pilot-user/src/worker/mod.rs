//! The one loop that moves data. A worker owns an endpoint, a link and an application; who calls its turns is a driver's
//! business (`drivers`), and over which link they go the link's. The simulator runs the same [`turn`].

pub mod drivers;
pub mod handoff;
pub mod pin;
pub mod task;

use std::io;

use pilot_engine::{DropReason, Endpoint, Event, Instant, Received};

use crate::link::pair::PairCounters;
use crate::link::{self, Envelope, Link, RECV_BATCH, Slot as _, Trust, Via};
use handoff::Handoff;

/// What runs on a transport, on the worker's own thread. Its methods must not block: whoever needs to wait, as for a
/// disk, hands the work to a thread of its own.
pub trait Application {
    /// Handles an event.
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event);

    /// Called once a pass: does what is due by time or by news from other threads. Whether it did anything.
    fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool;

    /// When [`Application::poll`] has something to do by time.
    fn deadline(&self) -> Option<Instant>;

    /// Whether it wants to be told, at the end of this pass, what its worker has counted.
    fn wants_counted(&self) -> bool {
        false
    }

    /// What the worker has counted.
    fn on_counted(&mut self, _endpoint: &Endpoint, _counted: Counted) {}
}

/// What a worker counts beside its endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// By its link.
    pub link: PairCounters,
    /// By the rings to other workers.
    pub handoff: handoff::Counters,
}

/// Datagrams that were authenticated, and those that came to nothing, by the way they came. One that was handed over is
/// counted by the worker that opened it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Opened {
    /// From AF_XDP rings.
    pub xdp: u64,
    /// From a kernel socket on the first port.
    pub udp: u64,
    /// From a kernel socket on the bulk port.
    pub bulk: u64,
    /// From a network in memory.
    pub memory: u64,
    /// Cookies and version answers that were taken: they fit what was sent, but anybody on the way may have made them.
    pub unproven: u64,
    /// Dropped, each counted under its reason by the endpoint.
    pub dropped: u64,
}

/// What a pass did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// Something was received, sent or done: another pass at once may find more.
    pub progress: bool,
    /// When the next pass is needed at the latest, if nothing arrives.
    pub deadline: Option<Instant>,
}

/// One pass: take over, receive, open, frames, timers, application, seal into slots, one kick.
///
/// # Errors
/// The link's own, which are not about a datagram: the worker cannot go on with it.
pub fn turn<L: Link>(
    endpoint: &mut Endpoint,
    link: &mut L,
    application: &mut impl Application,
    handoff: &mut Handoff,
    now: Instant,
    opened: &mut Opened,
) -> io::Result<Turn> {
    // What came by another worker has waited longer than what is still with the link.
    let mut received = handoff.take(RECV_BATCH, |datagram| {
        open(endpoint, now, opened, &datagram);
    });
    received += link.recv(RECV_BATCH, |datagram| {
        if handoff.give(&datagram) {
            // Whether it is genuine only its owner will know, whose link is another.
            return Trust::Unproven;
        }
        match open(endpoint, now, opened, &datagram) {
            Received::Data | Received::Handshake => Trust::Authentic,
            Received::Elsewhere(owner) => {
                handoff.give_to(owner.into(), &datagram);
                Trust::Unproven
            }
            // wire.md W4.9: it may be of another worker's tunnel.
            Received::Dropped(DropReason::Reset) => {
                handoff.give_reset(now, &datagram);
                Trust::Unproven
            }
            Received::Unproven | Received::Dropped(_) => Trust::Unproven,
        }
    })?;
    handoff.ring();
    if let Some(change) = link.take_change() {
        endpoint.on_link_changed(now, change.is_zero_copy);
    }
    endpoint.handle_timeout(now);
    let mut progress = received > 0;
    progress |= application.poll(endpoint, now);
    while let Some(event) = endpoint.poll_event() {
        application.on_event(endpoint, now, event);
        progress = true;
    }
    progress |= transmit(endpoint, link, now)?;
    let deadline = endpoint.poll_timeout().into_iter().chain(application.deadline()).min();
    Ok(Turn { progress, deadline })
}

/// Opens one datagram, and counts it.
fn open(endpoint: &mut Endpoint, now: Instant, opened: &mut Opened, datagram: &link::Received<'_>) -> Received {
    let link::Received { source, destination, ecn, payload, .. } = *datagram;
    let received = endpoint.handle_datagram(now, source, destination, ecn, payload);
    match received {
        Received::Data | Received::Handshake => {
            *match datagram.via {
                Via::Xdp => &mut opened.xdp,
                Via::Udp => &mut opened.udp,
                Via::Bulk => &mut opened.bulk,
                Via::Memory => &mut opened.memory,
            } += 1;
        }
        // Counted by the worker that opens it.
        Received::Elsewhere(_) => {}
        Received::Unproven => opened.unproven += 1,
        Received::Dropped(_) => opened.dropped += 1,
    }
    received
}

/// Sends what there is to send, at most a batch, so that a long queue of ours does not keep us from receiving.
fn transmit<L: Link>(endpoint: &mut Endpoint, link: &mut L, now: Instant) -> io::Result<bool> {
    let mut sent = 0;
    // Asked first: fetching room is not free, and most passes have nothing to send.
    while sent < RECV_BATCH && endpoint.wants_transmit() {
        let Some(mut slot) = link.slot() else { break };
        let Some(transmit) = endpoint.poll_transmit(now, slot.payload()) else { break };
        slot.commit(&Envelope {
            destination: transmit.destination,
            source: transmit.source,
            ecn: transmit.ecn,
            len: transmit.len,
        });
        sent += 1;
        apply_effects(endpoint, link);
    }
    apply_effects(endpoint, link);
    link.flush()?;
    Ok(sent > 0)
}

/// wire.md W2.5: an id that was just committed is in the link's table before the next call on the link, which could send it.
fn apply_effects<L: Link>(endpoint: &mut Endpoint, link: &mut L) {
    while let Some(effect) = endpoint.poll_effect() {
        link.apply(effect);
    }
}
