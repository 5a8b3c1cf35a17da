//! The AF_XDP link over rings in memory, between any frames and a kernel that is slow, unwilling and untruthful. No chunk
//! is lost, and no frame comes or goes that was not sent.
//!
//! Two of the kernel's untruths are left out, which no socket could tell from the truth; [`testing`] refuses to play them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use arbitrary::Arbitrary;
use pilot_common::datagram::{self, Headers, MAX_HEADERS_LEN};
use pilot_user::link::next_hops::{NextHop, NextHops};
use pilot_user::link::xdp::{Device, XdpLink};
use pilot_user::link::{Ecn, Envelope, Link as _, Slot as _, Trust};
use pilot_xsk::{Options, testing};

/// Entries of all rings: few, so that running out is an everyday event.
const RING: u32 = 8;

/// The first address behind the umem, of a receive and a send share of [`RING`] chunks each.
const END: u64 = 2 * RING as u64 * 2048;

/// Ring indexes begin so far before their wrap at 2^32.
const BEFORE_WRAP: u32 = 16;

const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// What a kick can come back with: not now (three), down, gone, and what nobody expects.
const REFUSALS: [i32; 6] = [
    libc_errno::EAGAIN,
    libc_errno::EBUSY,
    libc_errno::ENOBUFS,
    libc_errno::ENETDOWN,
    libc_errno::ENXIO,
    libc_errno::EINVAL,
];

/// Error numbers of Linux.
mod libc_errno {
    pub(super) const ENXIO: i32 = 6;
    pub(super) const EAGAIN: i32 = 11;
    pub(super) const EBUSY: i32 = 16;
    pub(super) const EINVAL: i32 = 22;
    pub(super) const ENETDOWN: i32 = 100;
    pub(super) const ENOBUFS: i32 = 105;
}

#[derive(Arbitrary, Debug)]
enum Operation {
    /// A datagram of the peer arrives, whole or as a part of a frame that goes on.
    Datagram {
        ipv6: bool,
        tag: Option<u16>,
        length: u16,
        part: bool,
    },
    /// Any bytes arrive.
    Garbage {
        length: u8,
        bytes: [u8; 16],
    },
    /// A descriptor that names no chunk of the kernel's: beyond the umem, or of a frame being sent.
    Descriptor {
        address: u64,
        length: u32,
        sending: Option<u8>,
    },
    Receive {
        limit: u8,
        authentic: bool,
    },
    /// A slot is filled and committed, or dropped.
    Send {
        ipv6: bool,
        known: bool,
        length: u16,
        commit: bool,
    },
    Flush,
    /// The kernel takes all frames from the ring.
    Take,
    /// It completes one that it took, in any order, and maybe says so twice.
    Complete {
        index: u8,
        twice: bool,
    },
    /// It completes what no frame can have begun at.
    CompleteUntrue {
        address: u64,
    },
    NeedWakeup {
        tx: bool,
        fill: bool,
    },
    Refuse {
        error: u8,
    },
    SendOnKick {
        batch: u8,
    },
}

struct World {
    link: XdpLink,
    kernel: testing::Kernel,
    /// Payloads committed, in order, until they are seen to leave.
    committed: VecDeque<Vec<u8>>,
    /// Committed since the last flush.
    unflushed: bool,
    /// Addresses of frames taken and not completed.
    taken: Vec<u64>,
    /// Payloads in the RX ring, in order; `None`: not to be handed to the worker.
    arrived: VecDeque<Option<Vec<u8>>>,
    /// The frame that arrives goes on.
    in_parts: bool,
    number: u8,
}

fn address(host: u8, ipv6: bool) -> SocketAddr {
    let ip = if ipv6 { [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(host)].into() } else { [192, 0, 2, host].into() };
    SocketAddr::new(ip, 4500)
}

pub(super) fn run(input: &[u8]) {
    let options =
        Options { rx_ring: RING, tx_ring: RING, fill_ring: RING, completion_ring: RING, ..Options::for_mtu(1500) };
    let (xsk, kernel) = testing::over_memory_from(&options, 0u32.wrapping_sub(BEFORE_WRAP)).expect("memory");
    let unspecified = SocketAddr::from(([0; 8], 4500));
    let device = Device { index: 1, mac: OWN_MAC, mtu: 1500, local: unspecified };
    let mut link = XdpLink::new(xsk, device).expect("a file descriptor");
    let hop = |ipv6| {
        let source = Some(address(1, ipv6).ip());
        (address(2, ipv6).ip(), NextHop { interface: 1, vlan: None, source, mac: Some(PEER_MAC) })
    };
    link.set_next_hops(Arc::new(NextHops::from([hop(false), hop(true)])));
    let mut world = World {
        link,
        kernel,
        committed: VecDeque::new(),
        unflushed: false,
        taken: Vec::new(),
        arrived: VecDeque::new(),
        in_parts: false,
        number: 0,
    };
    for operation in super::operations(input) {
        world.carry_out(operation);
        world.check_shares();
    }
    world.finish();
}

impl World {
    fn carry_out(&mut self, operation: Operation) {
        match operation {
            Operation::Datagram { ipv6, tag, length, part } => {
                let payload = self.payload(usize::from(length) % 1900);
                let frame = frame(ipv6, tag, &payload);
                let delivered = if part { self.kernel.deliver_part(&frame) } else { self.kernel.deliver(&frame) };
                if delivered {
                    let whole = !part && !self.in_parts;
                    self.arrived.push_back(whole.then_some(payload));
                    self.in_parts = part;
                }
            }
            Operation::Garbage { length, bytes } => {
                let frame: Vec<u8> = bytes.into_iter().cycle().take(length.into()).collect();
                if self.kernel.deliver(&frame) {
                    let parsed = datagram::parse(&frame[..]).ok().filter(|_| !self.in_parts);
                    let payload = parsed.map(|it| frame[it.layout.payload_offset..][..it.layout.payload_len].to_vec());
                    self.arrived.push_back(payload);
                    self.in_parts = false;
                }
            }
            Operation::Descriptor { address, length, sending } => {
                let sending = sending.and_then(|index| pick(&self.taken, index));
                let address = sending.map_or(address | END, |index| self.taken[index]);
                if self.kernel.inject_received(address, length) {
                    self.arrived.push_back(None);
                    self.in_parts = false;
                }
                // Read before the chunk can be sent, come home, and be one to receive into.
                if sending.is_some() {
                    self.receive(usize::MAX, false);
                }
            }
            Operation::Receive { limit, authentic } => self.receive(limit.into(), authentic),
            Operation::Send { ipv6, known, length, commit } => self.send(ipv6, known, length.into(), commit),
            Operation::Flush => self.flush(),
            Operation::Take => self.take(),
            Operation::Complete { index, twice } => {
                let Some(index) = pick(&self.taken, index) else { return };
                let address = self.taken.swap_remove(index);
                // Untrue ones may have filled the ring while frames wait for a flush, which reads them and makes room.
                if !self.kernel.complete(address) {
                    self.flush();
                    assert!(self.kernel.complete(address), "the completion ring is full though it was read");
                }
                // Both are read before the chunk can be in use again, or the second finds the ring full.
                if twice {
                    self.kernel.complete(address);
                    self.flush();
                }
                self.flush_reaps();
            }
            Operation::CompleteUntrue { address } => {
                // Frames begin so far into their chunks that the payload does at 128: these are no beginnings.
                if address & 2047 >= 128 || address & 2047 < 128 - MAX_HEADERS_LEN as u64 {
                    self.kernel.complete(address);
                    self.flush_reaps();
                }
            }
            Operation::NeedWakeup { tx, fill } => self.kernel.set_need_wakeup(tx, fill),
            Operation::Refuse { error } => self.kernel.refuse_kick(REFUSALS[usize::from(error) % REFUSALS.len()]),
            Operation::SendOnKick { batch } => self.kernel.send_on_kick(batch.into()),
        }
    }

    /// A payload that is no other's.
    fn payload(&mut self, length: usize) -> Vec<u8> {
        self.number = self.number.wrapping_add(1);
        vec![self.number; length]
    }

    fn receive(&mut self, limit: usize, authentic: bool) {
        let arrived = &mut self.arrived;
        // An error is of a kick, and whatever has arrived is there all the same.
        let _ = self.link.recv(limit, |received| {
            while arrived.front() == Some(&None) {
                arrived.pop_front();
            }
            assert_eq!(arrived.pop_front(), Some(Some(received.payload.to_vec())), "what arrived, in order");
            if authentic { Trust::Authentic } else { Trust::Unproven }
        });
    }

    fn send(&mut self, ipv6: bool, known: bool, length: usize, commit: bool) {
        let payload = self.payload(length % 1600);
        let room = self.link.max_payload();
        let lost = self.link.counters().lost.total();
        let Some(mut slot) = self.link.slot() else { return };
        assert!(slot.payload().len() >= room);
        if !commit {
            return;
        }
        let fits = payload.len().min(room);
        slot.payload()[..fits].copy_from_slice(&payload[..fits]);
        let destination = address(if known { 2 } else { 3 }, ipv6);
        slot.commit(&Envelope { destination, source: None, ecn: Ecn::NotEct, len: payload.len() });
        if known && payload.len() <= room {
            self.committed.push_back(payload);
            self.unflushed = true;
        } else {
            assert_eq!(self.link.counters().lost.total(), lost + 1, "a loss is counted");
        }
    }

    fn flush(&mut self) {
        // Whatever it says, all that was committed is in the ring.
        let _ = self.link.flush();
        self.unflushed = false;
    }

    /// Completions are read by a flush; one that has nothing to send does no harm.
    fn flush_reaps(&mut self) {
        if !self.unflushed {
            self.flush();
        }
    }

    fn take(&mut self) {
        for frame in self.kernel.take() {
            let parsed =
                datagram::parse(&frame.bytes[..]).expect("a frame of ours that our parser does not understand");
            assert_eq!((parsed.source_mac, parsed.source.port()), (OWN_MAC, 4500));
            assert_eq!(parsed.destination, address(2, parsed.destination.is_ipv6()));
            let payload = &frame.bytes[parsed.layout.payload_offset..][..parsed.layout.payload_len];
            assert_eq!(Some(payload), self.committed.pop_front().as_deref(), "what was committed, in order");
            self.taken.push(frame.address);
        }
    }

    fn check_shares(&self) {
        let chunks = self.link.xsk().chunks();
        assert_eq!(chunks.home + chunks.receiving + chunks.sending, chunks.total, "a chunk is nowhere");
        assert!(chunks.sending <= RING, "more is being sent than may be");
    }

    fn finish(mut self) {
        self.flush();
        self.take();
        assert!(self.committed.is_empty(), "committed, and never sent: {}", self.committed.len());
        for address in std::mem::take(&mut self.taken) {
            assert!(self.kernel.complete(address));
        }
        self.flush();
        self.receive(usize::MAX, true);
        self.receive(usize::MAX, true);
        assert!(self.arrived.iter().all(Option::is_none), "arrived, and never handed over");
        let chunks = self.link.xsk().chunks();
        assert_eq!(chunks.sending, 0, "chunks that never came back from sending");
        // Those to receive into are all the kernel's: it can receive as many frames.
        for number in 0..chunks.receiving {
            assert!(self.kernel.deliver(b"x"), "frame {number} of {} finds no chunk", chunks.receiving);
        }
        assert_eq!(chunks.receiving, RING, "what the kernel may have to receive into, it has: {chunks:?}");
    }
}

fn frame(ipv6: bool, tag: Option<u16>, payload: &[u8]) -> Vec<u8> {
    let headers = Headers {
        destination_mac: OWN_MAC,
        source_mac: PEER_MAC,
        tag,
        source: address(2, ipv6),
        destination: address(1, ipv6),
        ecn: 0,
    };
    let mut room = [0; MAX_HEADERS_LEN];
    let length = headers.write_back(&mut room, payload).expect("room, and a payload that fits");
    [&room[MAX_HEADERS_LEN - length..], payload].concat()
}

fn pick(list: &[u64], index: u8) -> Option<usize> {
    usize::from(index).checked_rem(list.len())
}
