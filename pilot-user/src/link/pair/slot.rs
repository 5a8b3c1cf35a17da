//! Room for a datagram whose way is known only once it is sealed.
//!
//! The engine seals before it says where to, so room is lent on a guess: that the next datagram goes the way of the last.
//! Traffic comes in runs, and a wrong guess costs one copy. The guess is between the bulk socket and the first port; at the
//! first port it is AF_XDP while that is up, because what goes over UDP then does so only until its next hop is known.

use super::super::orders::LinkEnd;
use super::super::udp::UdpLink;
use super::super::xdp::{XdpLink, XdpSlot};
use super::super::{Envelope, Link as _, Slot};
use super::{PairLink, XdpState};

/// Room for one datagram, see the module's head.
pub struct PairSlot<'a> {
    lent: Lent<'a>,
    /// Whether the last datagram went over the bulk socket.
    bulk_last: &'a mut bool,
    max_payload: usize,
}

/// Whose the room is, and where the datagram may have to go instead.
enum Lent<'a> {
    First { slot: FirstSlot<'a>, bulk: Option<&'a mut UdpLink> },
    Bulk { bulk: &'a mut UdpLink, first: First<'a> },
}

/// The first port: AF_XDP while it is up, and the UDP socket.
struct First<'a> {
    xdp: Option<&'a mut XdpLink>,
    over_udp: OverUdp<'a>,
}

/// Room in packet memory; without AF_XDP in the UDP socket's arena.
struct FirstSlot<'a> {
    xdp: Option<XdpSlot<'a>>,
    over_udp: OverUdp<'a>,
}

/// The UDP socket of the first port, and who is told when it stands in for AF_XDP.
struct OverUdp<'a> {
    udp: &'a mut UdpLink,
    control: Option<&'a LinkEnd>,
    fallback: &'a mut u64,
}

impl PairLink {
    pub(super) fn lend(&mut self) -> Option<PairSlot<'_>> {
        let max_payload = self.max_payload();
        let Self { udp, bulk, xdp, state, control, fallback, bulk_last, .. } = self;
        let xdp = xdp.as_deref_mut().filter(|_| *state == XdpState::Up);
        let first = First { xdp, over_udp: OverUdp { udp, control: control.as_ref(), fallback } };
        let lent = match bulk.as_mut() {
            // A bulk socket without room is blocked for as long as its device is behind. Others do not wait for that: the
            // first port lends then, and what turns out to be bulk is lost and counted, as in any queue that is full. Its
            // congestion control takes the hint.
            Some(bulk) if *bulk_last && bulk.has_room() => Lent::Bulk { bulk, first },
            // A whole super-packet: it leaves first.
            Some(bulk) if *bulk_last && !bulk.is_blocked() => return None,
            bulk => Lent::First { slot: first.slot()?, bulk },
        };
        Some(PairSlot { lent, bulk_last, max_payload })
    }
}

impl Slot for PairSlot<'_> {
    fn payload(&mut self) -> &mut [u8] {
        let room = match &mut self.lent {
            Lent::First { slot, .. } => slot.room(),
            Lent::Bulk { bulk, .. } => bulk.room(),
        };
        &mut room[..self.max_payload]
    }

    fn commit(self, envelope: &Envelope) {
        let Self { lent, bulk_last, max_payload } = self;
        let is_for = |bulk: &UdpLink| envelope.source.is_some_and(|from| from.port() == bulk.local_addr().port());
        *bulk_last = match lent {
            Lent::First { mut slot, bulk: Some(bulk) } if is_for(bulk) => {
                bulk.commit_copy(&slot.room()[..max_payload], envelope);
                true
            }
            Lent::First { slot, .. } => {
                slot.commit(envelope, max_payload);
                false
            }
            Lent::Bulk { bulk, .. } if is_for(bulk) => {
                bulk.commit_room(envelope);
                true
            }
            Lent::Bulk { bulk, first } => {
                first.commit_copy(&bulk.room()[..max_payload], envelope);
                false
            }
        };
    }
}

impl<'a> First<'a> {
    fn slot(self) -> Option<FirstSlot<'a>> {
        let Self { xdp, over_udp } = self;
        let xdp = match xdp {
            Some(link) => Some(link.slot()?),
            None if over_udp.udp.has_room() => None,
            None => return None,
        };
        Some(FirstSlot { xdp, over_udp })
    }

    fn commit_copy(self, room: &[u8], envelope: &Envelope) {
        let Self { xdp, over_udp } = self;
        let Some(link) = xdp else { return over_udp.udp.commit_copy(room, envelope) };
        let Some(mut slot) = link.slot() else { return link.lose_for_room() };
        slot.payload()[..room.len()].copy_from_slice(room);
        FirstSlot { xdp: Some(slot), over_udp }.commit(envelope, room.len());
    }
}

impl FirstSlot<'_> {
    fn room(&mut self) -> &mut [u8] {
        match &mut self.xdp {
            Some(slot) => slot.payload(),
            None => self.over_udp.udp.room(),
        }
    }

    fn commit(self, envelope: &Envelope, max_payload: usize) {
        let Self { xdp, over_udp } = self;
        let Some(slot) = xdp else { return over_udp.udp.commit_room(envelope) };
        let Err(mut slot) = slot.try_commit(envelope) else { return };
        if let Some(control) = over_udp.control
            && slot.should_ask(envelope.destination.ip())
        {
            control.ask(envelope.destination.ip());
        }
        *over_udp.fallback += 1;
        over_udp.udp.commit_copy(&slot.payload()[..max_payload], envelope);
    }
}
