//! What the control thread and a worker's link tell each other, off the path of packets.

use std::net::IpAddr;
use std::sync::Arc;

use super::doorbell::Doorbell;
use super::next_hops::NextHops;
use super::xdp::XdpLink;

/// Orders on their way to one link. A link takes all in every pass; more than a few wait only if its worker is stuck.
const ORDERS_MAX: usize = 16;

/// What the control thread tells a link.
pub enum Order {
    /// Use this AF_XDP socket from now on.
    Attach(Box<XdpLink>),
    /// Stop using it, and give it back.
    Detach,
    /// Where peers are, and a hint that the device may be up again.
    NextHops(Arc<NextHops>),
}

/// What a link tells the control thread.
pub enum Report {
    /// A peer is at an address that [`Order::NextHops`] does not name.
    Resolve(IpAddr),
    /// The socket is out of use: as ordered, or because its device is gone.
    Detached(Box<XdpLink>),
}

/// A report, and the number of the worker it is from.
pub type Numbered = (usize, Report);

/// The link's end.
pub struct LinkEnd {
    pub(super) orders: crossbeam_channel::Receiver<Order>,
    reports: tokio::sync::mpsc::Sender<Numbered>,
    worker: usize,
    /// A socket that could not be given back, because the control thread is behind.
    unsent: Option<Report>,
}

/// The control thread's end.
pub struct ControlEnd {
    orders: crossbeam_channel::Sender<Order>,
    doorbell: Doorbell,
}

/// Ties the control thread to the link of one worker. The doorbell is the link's.
pub fn orders(
    worker: usize,
    doorbell: Doorbell,
    reports: tokio::sync::mpsc::Sender<Numbered>,
) -> (ControlEnd, LinkEnd) {
    let (sender, receiver) = crossbeam_channel::bounded(ORDERS_MAX);
    (ControlEnd { orders: sender, doorbell }, LinkEnd { orders: receiver, reports, worker, unsent: None })
}

impl ControlEnd {
    /// Hands an order over and wakes the worker; gives it back if the worker has not taken the ones before, or is gone.
    pub fn send(&self, order: Order) -> Result<(), Order> {
        self.orders.try_send(order).map_err(crossbeam_channel::TrySendError::into_inner)?;
        self.doorbell.ring();
        Ok(())
    }
}

impl LinkEnd {
    /// Whether there is nothing to take and nothing to give back.
    pub(super) fn is_idle(&self) -> bool {
        self.orders.is_empty() && self.unsent.is_none()
    }

    /// Asks for the way to an address. A question that is lost because many wait is asked again after the next look at the
    /// kernel's tables.
    pub(super) fn ask(&self, address: IpAddr) {
        let _ = self.reports.try_send((self.worker, Report::Resolve(address)));
    }

    /// Gives a socket back: closing it, and unmapping its memory, takes too long for a worker.
    pub(super) fn give_back(&mut self, link: Box<XdpLink>) {
        self.unsent = Some(Report::Detached(link));
        self.retry();
    }

    /// Sends what could not be sent before.
    pub(super) fn retry(&mut self) {
        if let Some(report) = self.unsent.take()
            && let Err(tokio::sync::mpsc::error::TrySendError::Full((_, report))) =
                self.reports.try_send((self.worker, report))
        {
            self.unsent = Some(report);
        }
    }
}
