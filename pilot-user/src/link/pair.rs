//! The kernel's UDP socket and, while there is one, an AF_XDP socket on the same port, as one link.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::counters::Counters;
use super::doorbell::Doorbell;
use super::next_hops::NextHops;
use super::orders::{LinkEnd, Order};
use super::udp::UdpLink;
use super::xdp::{XdpLink, XdpSlot};
use super::{Envelope, Link, Received, Slot, Trust};

/// Passes between two looks at the UDP socket while AF_XDP is in use. A look is a system call of some 200 ns, and only what
/// XDP passes up comes that way. Lower costs latency on the fast path; higher delays handshakes from peers on other routes,
/// though never beyond a sleep, which ends when the socket becomes readable.
const UDP_EVERY_PASSES: u32 = 8;

/// Part of a pass that the UDP socket gets when it is looked at: one in so many datagrams. Lower, and strangers who send
/// what XDP passes up slow the peers down; higher, and a burst of handshakes takes more passes.
const UDP_SHARE: usize = 4;

/// Whether datagrams can go through AF_XDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpState {
    /// There is no AF_XDP socket.
    Absent,
    /// In use, for peers whose next hop is known.
    Up,
    /// The device is down (ENETDOWN): sending goes over UDP.
    Down,
    /// The device went away (ENXIO): the socket was given back.
    Gone,
}

/// What a [`PairLink`] counted, by the way datagrams took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct PairCounters {
    /// Over the kernel's UDP socket.
    pub udp: Counters,
    /// Through AF_XDP, over all sockets there were.
    pub xdp: Counters,
    /// Of the datagrams sent over UDP: those that would have gone through AF_XDP if the next hop had been known.
    pub fallback: u64,
}

/// A worker's link: UDP always, AF_XDP when attached.
pub struct PairLink {
    udp: UdpLink,
    xdp: Option<Box<XdpLink>>,
    state: XdpState,
    next_hops: Arc<NextHops>,
    control: Option<LinkEnd>,
    /// Counted by sockets that are no longer attached.
    former: Counters,
    fallback: u64,
    /// Passes until the UDP socket is looked at.
    udp_due: u32,
}

impl PairLink {
    /// A link over UDP alone, until something is attached.
    pub fn new(udp: UdpLink) -> Self {
        Self {
            udp,
            xdp: None,
            state: XdpState::Absent,
            next_hops: Arc::default(),
            control: None,
            former: Counters::default(),
            fallback: 0,
            udp_due: 0,
        }
    }

    /// Takes orders from a control thread from now on.
    pub fn follow(&mut self, control: LinkEnd) {
        self.control = Some(control);
    }

    /// Receives and sends through AF_XDP from now on; returns the socket that was attached before.
    pub fn attach(&mut self, mut link: Box<XdpLink>) -> Option<Box<XdpLink>> {
        let former = self.detach();
        link.set_next_hops(Arc::clone(&self.next_hops));
        self.xdp = Some(link);
        self.state = XdpState::Up;
        former
    }

    /// Goes on over UDP alone. What the kernel has not finished sending is counted as lost.
    pub fn detach(&mut self) -> Option<Box<XdpLink>> {
        let mut link = self.xdp.take()?;
        let unfinished = link.unfinished();
        self.former += link.counters();
        self.former.lost.device_gone += unfinished;
        self.former.sent = self.former.sent.saturating_sub(unfinished);
        self.state = XdpState::Absent;
        Some(link)
    }

    /// Takes over the kernel's word on where peers are. A device that was down is tried again.
    pub fn set_next_hops(&mut self, next_hops: Arc<NextHops>) {
        if let Some(link) = &mut self.xdp {
            link.set_next_hops(Arc::clone(&next_hops));
            self.state = XdpState::Up;
        }
        self.next_hops = next_hops;
    }

    /// Whether datagrams can go through AF_XDP.
    pub fn xdp_state(&self) -> XdpState {
        self.state
    }

    /// What was counted so far.
    pub fn counters(&self) -> PairCounters {
        let mut xdp = self.former;
        if let Some(link) = &self.xdp {
            xdp += link.counters();
        }
        PairCounters { udp: self.udp.counters(), xdp, fallback: self.fallback }
    }

    /// The address the UDP socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.udp.local_addr()
    }

    /// Wakes this link's worker out of [`Link::wait`].
    pub fn doorbell(&self) -> Doorbell {
        self.udp.doorbell()
    }

    /// The attached AF_XDP socket, for its statistics.
    pub fn xdp(&self) -> Option<&XdpLink> {
        self.xdp.as_deref()
    }

    fn take_orders(&mut self) {
        if self.control.as_ref().is_none_or(LinkEnd::is_idle) {
            return;
        }
        // Taken out, because an order may change all the rest of the link.
        let Some(mut control) = self.control.take() else { return };
        control.retry();
        while let Ok(order) = control.orders.try_recv() {
            let former = match order {
                Order::Attach(link) => self.attach(link),
                Order::Detach => self.detach(),
                Order::NextHops(next_hops) => {
                    self.set_next_hops(next_hops);
                    None
                }
            };
            if let Some(link) = former {
                control.give_back(link);
            }
        }
        self.control = Some(control);
    }

    /// Goes on without what failed. Only an error that says nothing about the device is the caller's.
    fn on_xdp_error(&mut self, error: io::Error) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::NetworkDown => {
                self.state = XdpState::Down;
                Ok(())
            }
            io::ErrorKind::NotConnected => {
                let link = self.detach();
                self.state = XdpState::Gone;
                if let (Some(link), Some(control)) = (link, &mut self.control) {
                    control.give_back(link);
                }
                Ok(())
            }
            _ => Err(error),
        }
    }
}

impl Link for PairLink {
    type Slot<'a> = PairSlot<'a>;

    fn recv(&mut self, limit: usize, mut sink: impl FnMut(Received<'_>) -> Trust) -> io::Result<usize> {
        self.take_orders();
        let Some(xdp) = &mut self.xdp else { return self.udp.recv(limit, sink) };
        let mut taken = 0;
        // First, because under load AF_XDP takes all the rest of every pass.
        self.udp_due = self.udp_due.saturating_sub(1);
        if self.udp_due == 0 {
            let share = (limit / UDP_SHARE).max(1).min(limit);
            taken = self.udp.recv(share, &mut sink)?;
            // More may wait: then look again in the next pass.
            self.udp_due = if taken == share { 0 } else { UDP_EVERY_PASSES };
        }
        match xdp.recv(limit - taken, sink) {
            Ok(0) => {}
            Ok(count) => {
                taken += count;
                // A device that receives is not down.
                self.state = XdpState::Up;
            }
            Err(error) => self.on_xdp_error(error)?,
        }
        Ok(taken)
    }

    fn slot(&mut self) -> Option<PairSlot<'_>> {
        let max_payload = self.max_payload();
        let Self { udp, xdp, state, control, fallback, .. } = self;
        let xdp = match (state, xdp) {
            (XdpState::Up, Some(link)) => Some(link.slot()?),
            _ => {
                udp.slot()?;
                None
            }
        };
        Some(PairSlot { xdp, udp, control: control.as_ref(), fallback, max_payload })
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.state == XdpState::Up
            && let Some(link) = &mut self.xdp
            && let Err(error) = link.flush()
        {
            self.on_xdp_error(error)?;
        }
        self.udp.flush()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        // Whatever ends the sleep may be the UDP socket.
        self.udp_due = 0;
        if self.udp.has_received() {
            return Ok(());
        }
        let mut timeout = timeout;
        if self.state == XdpState::Up
            && let Some(link) = &mut self.xdp
        {
            match link.prepare_sleep(timeout) {
                Ok(shorter) => timeout = shorter,
                Err(error) => self.on_xdp_error(error)?,
            }
        }
        match &self.xdp {
            Some(link) => self.udp.doorbell.sleep([self.udp.poll_fd(), link.poll_fd()], timeout),
            None => self.udp.wait(timeout),
        }
    }

    fn max_payload(&self) -> usize {
        let udp = self.udp.max_payload();
        self.xdp.as_ref().map_or(udp, |link| udp.min(link.max_payload()))
    }
}

/// Room for one datagram: in packet memory while AF_XDP is up, because that is where most go. One whose next hop is not
/// known is copied to the UDP socket's.
pub struct PairSlot<'a> {
    xdp: Option<XdpSlot<'a>>,
    udp: &'a mut UdpLink,
    control: Option<&'a LinkEnd>,
    fallback: &'a mut u64,
    max_payload: usize,
}

impl Slot for PairSlot<'_> {
    fn payload(&mut self) -> &mut [u8] {
        let room = match &mut self.xdp {
            Some(slot) => slot.payload(),
            None => self.udp.room(),
        };
        &mut room[..self.max_payload]
    }

    fn commit(self, envelope: &Envelope) {
        let Some(slot) = self.xdp else { return self.udp.commit_room(envelope) };
        let Err(mut slot) = slot.try_commit(envelope) else { return };
        if let Some(control) = self.control
            && slot.should_ask(envelope.destination.ip())
        {
            control.ask(envelope.destination.ip());
        }
        *self.fallback += 1;
        let len = envelope.len.min(self.max_payload);
        self.udp.commit_copy(&slot.payload()[..len], envelope);
    }
}
