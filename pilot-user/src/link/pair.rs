//! The kernel's UDP socket and, while there is one, an AF_XDP socket on the same port, as one link; and beside them, where the
//! node has one, the *bulk* socket: a UDP port that XDP never steers, so that super-packets (GSO, GRO) pass by it whole.

mod slot;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use pilot_common::maps::WORKER_SESSIONS;
use pilot_engine::limits::DEFAULT_PACKET_CREDIT;
use pilot_xsk::SharedBits;
use serde::Serialize;

use super::counters::{Counters, Rings};
use super::doorbell::Doorbell;
use super::next_hops::NextHops;
use super::orders::{LinkEnd, Order};
use super::udp::UdpLink;
use super::xdp::XdpLink;
use super::{Change, Effect, Link, Received, Trust, Via};
pub use slot::PairSlot;

/// Passes that found nothing, after which a socket that had nothing is looked at again while there is another way to receive:
/// a look is a system call of some 300 ns, and such a pass takes 70. The pause begins here after something came, and doubles
/// with each look in vain up to [`LOOK_AFTER_MOST`]: so an answer by this way waits for little longer than was waited for it before.
/// Lower costs latency at the other ways, higher at this one.
const LOOK_AFTER: u32 = 4;

/// Longest pause between looks: 20 µs with nothing else to do, and by [`BUSY_PASS`] 32 passes of 20 µs, less than 1 ms, under full
/// load; twice as long where nothing is sent. A sleep ends when the socket becomes readable, and then it is looked at.
const LOOK_AFTER_MOST: u32 = 256;

/// What a pass that found something counts. With fewer, a socket would wait for very long under full load.
const BUSY_PASS: u32 = 8;

/// Part of a pass that a UDP socket gets when it is looked at: one in so many datagrams. A smaller part, and a burst of
/// handshakes takes more passes; a larger one, and strangers who send what XDP passes up, or a peer's bulk, slow AF_XDP down.
/// The bulk socket gets what AF_XDP leaves, too.
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
    /// Over the kernel's UDP socket on the first port.
    pub udp: Counters,
    /// Over the bulk socket.
    pub bulk: Counters,
    /// Through AF_XDP, over all sockets there were.
    pub xdp: Counters,
    /// By the kernel for those sockets.
    pub rings: Rings,
    /// Of the datagrams sent over UDP: those that would have gone through AF_XDP if the next hop had been known.
    pub fallback: u64,
}

/// A worker's link: UDP always, AF_XDP when attached, and a second UDP port for bulk where there is one.
pub struct PairLink {
    udp: UdpLink,
    bulk: Option<UdpLink>,
    xdp: Option<Box<XdpLink>>,
    state: XdpState,
    next_hops: Arc<NextHops>,
    control: Option<LinkEnd>,
    /// What the XDP program takes for this worker's (wire.md W2.5); `None` where there is none.
    sessions: Option<SharedBits>,
    /// Counted by sockets that are no longer attached.
    former: (Counters, Rings),
    fallback: u64,
    /// Not told yet: see [`Link::take_change`].
    has_changed: bool,
    /// Whether the last datagram went over the bulk socket.
    bulk_last: bool,
    /// Datagrams that had been sent through AF_XDP when it was last received from.
    sent_before: u64,
    udp_watch: Watch,
    bulk_watch: Watch,
}

/// When a socket is to be looked at again, see [`LOOK_AFTER`]: when the pause is over, right after something was sent, as the answer
/// to that cannot be there yet; or when it has been over for as long again.
#[derive(Default)]
struct Watch {
    pause: u32,
    left: u32,
}

impl Watch {
    fn is_due(&self, has_sent: bool) -> bool {
        self.left == 0 || has_sent && self.left <= self.pause
    }

    /// A look found so many: a socket that yields is looked at in every pass.
    fn looked(&mut self, found: usize) {
        self.pause = if found > 0 { 0 } else { (self.pause * 2).clamp(LOOK_AFTER, LOOK_AFTER_MOST) };
        self.left = 2 * self.pause;
    }

    /// A pass without a look found so many elsewhere.
    fn passed(&mut self, found: usize) {
        self.left = self.left.saturating_sub(if found > 0 { BUSY_PASS } else { 1 });
    }
}

impl PairLink {
    /// A link over UDP alone, until something is attached. Datagrams whose source has the port of `bulk` leave by that.
    pub fn new(udp: UdpLink, bulk: Option<UdpLink>) -> Self {
        Self {
            udp,
            bulk,
            xdp: None,
            state: XdpState::Absent,
            next_hops: Arc::default(),
            control: None,
            sessions: None,
            former: Default::default(),
            fallback: 0,
            has_changed: false,
            bulk_last: false,
            sent_before: 0,
            udp_watch: Watch::default(),
            bulk_watch: Watch::default(),
        }
    }

    /// Takes orders from a control thread from now on.
    pub fn follow(&mut self, control: LinkEnd) {
        self.control = Some(control);
    }

    /// Keeps the XDP program's table of this worker's session ids from now on. It outlives AF_XDP sockets and devices, so that
    /// none has to be filled anew.
    pub fn list_sessions(&mut self, table: SharedBits) {
        self.sessions = Some(table);
    }

    /// Receives and sends through AF_XDP from now on; returns the socket that was attached before.
    pub fn attach(&mut self, mut link: Box<XdpLink>) -> Option<Box<XdpLink>> {
        let former = self.detach();
        link.set_next_hops(Arc::clone(&self.next_hops));
        self.xdp = Some(link);
        self.set_state(XdpState::Up);
        former
    }

    /// Goes on over UDP alone. What the kernel has not finished sending is counted as lost.
    pub fn detach(&mut self) -> Option<Box<XdpLink>> {
        let mut link = self.xdp.take()?;
        let unfinished = link.unfinished();
        let (counters, rings) = &mut self.former;
        *rings += link.rings();
        *counters += link.counters();
        counters.lost.device_gone += unfinished;
        counters.sent = counters.sent.saturating_sub(unfinished);
        self.set_state(XdpState::Absent);
        Some(link)
    }

    /// Takes over the kernel's word on where peers are. A device that was down is tried again.
    pub fn set_next_hops(&mut self, next_hops: Arc<NextHops>) {
        if let Some(link) = &mut self.xdp {
            link.set_next_hops(Arc::clone(&next_hops));
            self.set_state(XdpState::Up);
        }
        self.next_hops = next_hops;
    }

    fn set_state(&mut self, state: XdpState) {
        self.has_changed |= self.state != state;
        self.state = state;
    }

    /// Whether datagrams can go through AF_XDP.
    pub fn xdp_state(&self) -> XdpState {
        self.state
    }

    /// What was counted so far: a system call, where there is AF_XDP.
    pub fn counters(&self) -> PairCounters {
        let (mut xdp, mut rings) = self.former;
        if let Some(link) = &self.xdp {
            xdp += link.counters();
            rings += link.rings();
        }
        let bulk = self.bulk.as_ref().map(UdpLink::counters).unwrap_or_default();
        PairCounters { udp: self.udp.counters(), bulk, xdp, rings, fallback: self.fallback }
    }

    /// The port of the bulk socket, if there is one.
    pub fn bulk_port(&self) -> Option<u16> {
        self.bulk.as_ref().map(|bulk| bulk.local_addr().port())
    }

    /// Packets that the first port absorbs at once (wire.md W6.5), and the bulk port: `xdp` says whether the first may be AF_XDP's, where
    /// what is on the way of frames, on veth a ring of 256, holds less than a socket.
    pub fn packet_credits(&self, xdp: bool) -> (u32, u32) {
        let first = self.udp.packet_credit();
        let first = if xdp { first.min(DEFAULT_PACKET_CREDIT) } else { first };
        (first, self.bulk.as_ref().map_or(first, UdpLink::packet_credit))
    }

    /// The address the first UDP socket is bound to.
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
                self.set_state(XdpState::Down);
                Ok(())
            }
            io::ErrorKind::NotConnected => {
                let link = self.detach();
                self.set_state(XdpState::Gone);
                if let (Some(link), Some(control)) = (link, &mut self.control) {
                    control.give_back(link);
                }
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Before a sleep, of at most so long: how long it may be. `None`: something has been received already.
    pub(crate) fn prepare_wait(&mut self, timeout: Option<Duration>) -> io::Result<Option<Option<Duration>>> {
        // Whatever ends the sleep may be a UDP socket.
        (self.udp_watch, self.bulk_watch) = Default::default();
        if self.udp.has_received() || self.bulk.as_ref().is_some_and(UdpLink::has_received) {
            return Ok(None);
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
        Ok(Some(timeout))
    }

    /// What ends a sleep.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = PollFd<'_>> {
        let bell = PollFd::new(self.udp.doorbell.as_fd(), PollFlags::POLLIN);
        let (bulk, xdp) = (self.bulk.as_ref().map(UdpLink::poll_fd), self.xdp.as_ref().map(|xdp| xdp.poll_fd()));
        [Some(bell), Some(self.udp.poll_fd()), bulk, xdp].into_iter().flatten()
    }
}

impl Link for PairLink {
    fn counted(&self) -> PairCounters {
        self.counters()
    }

    type Slot<'a> = PairSlot<'a>;

    fn recv(&mut self, limit: usize, mut sink: impl FnMut(Received<'_>) -> Trust) -> io::Result<usize> {
        self.take_orders();
        let share = (limit / UDP_SHARE).max(1).min(limit);
        let sent = self.xdp.as_ref().map_or(0, |link| link.sent());
        let has_sent = std::mem::replace(&mut self.sent_before, sent) != sent;
        let look_at_bulk = self.bulk.is_some() && self.bulk_watch.is_due(has_sent);
        let for_bulk = if look_at_bulk { share } else { 0 };
        let mut taken = 0;
        // First, because under load AF_XDP takes all the rest of every pass.
        let look_at_udp = self.xdp.is_none() || self.udp_watch.is_due(has_sent);
        if look_at_udp {
            let limit = if self.xdp.is_some() { share } else { limit - for_bulk };
            taken = self.udp.recv(limit, &mut sink)?;
            self.udp_watch.looked(taken);
        }
        if let Some(xdp) = &mut self.xdp {
            match xdp.recv(limit.saturating_sub(taken + for_bulk), &mut sink) {
                Ok(0) => {}
                Ok(count) => {
                    taken += count;
                    // A device that receives is not down.
                    self.set_state(XdpState::Up);
                }
                Err(error) => self.on_xdp_error(error)?,
            }
        }
        if !look_at_udp {
            self.udp_watch.passed(taken);
        }
        match &mut self.bulk {
            Some(bulk) if look_at_bulk => {
                let found = bulk.recv(limit - taken, |datagram| sink(Received { via: Via::Bulk, ..datagram }))?;
                self.bulk_watch.looked(found);
                taken += found;
            }
            _ => self.bulk_watch.passed(taken),
        }
        Ok(taken)
    }

    fn slot(&mut self) -> Option<PairSlot<'_>> {
        self.lend()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.state == XdpState::Up
            && let Some(link) = &mut self.xdp
            && let Err(error) = link.flush()
        {
            self.on_xdp_error(error)?;
        }
        if let Some(bulk) = &mut self.bulk {
            bulk.flush()?;
        }
        self.udp.flush()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let Some(timeout) = self.prepare_wait(timeout)? else { return Ok(()) };
        let (bell, udp) = (&self.udp.doorbell, self.udp.poll_fd());
        match (&self.xdp, &self.bulk) {
            (Some(xdp), Some(bulk)) => bell.sleep([udp, xdp.poll_fd(), bulk.poll_fd()], timeout),
            (Some(xdp), None) => bell.sleep([udp, xdp.poll_fd()], timeout),
            (None, Some(bulk)) => bell.sleep([udp, bulk.poll_fd()], timeout),
            (None, None) => bell.sleep([udp], timeout),
        }
    }

    fn max_payload(&self) -> usize {
        let mut least = self.udp.max_payload();
        if let Some(bulk) = &self.bulk {
            least = least.min(bulk.max_payload());
        }
        self.xdp.as_ref().map_or(least, |link| least.min(link.max_payload()))
    }

    fn apply(&mut self, effect: Effect) {
        let Some(sessions) = &mut self.sessions else { return };
        match effect {
            Effect::SessionBegins(id) => sessions.insert(id % WORKER_SESSIONS),
            Effect::SessionEnds(id) => sessions.remove(id % WORKER_SESSIONS),
        }
    }

    fn take_change(&mut self) -> Option<Change> {
        let is_zero_copy =
            self.state == XdpState::Up && self.xdp.as_ref().is_some_and(|link| link.xsk().is_zero_copy());
        std::mem::take(&mut self.has_changed).then_some(Change { is_zero_copy })
    }
}
