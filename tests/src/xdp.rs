//! The AF_XDP link over rings in memory: its frames go through the simulated network as through a wire, and pass the XDP
//! program's own decision before they reach the ring.

use std::io;
use std::sync::Arc;

use pilot_common::address::Address;
use pilot_common::datagram;
use pilot_common::eth::{self, Mac};
use pilot_common::maps::Config;
use pilot_common::steer::{Lists, Verdict, steer};
use pilot_user::link::Ecn;
use pilot_user::link::next_hops::{NextHop, NextHops};
use pilot_user::link::xdp::{Device, XdpLink};
use pilot_xsk::{Options, testing};

use crate::link::{Attachment, Packet, Place};

/// Bytes.
const MTU: usize = 1500;

/// The interface's index, on every host.
const INTERFACE: u32 = 1;

/// Entries of the TX ring: fewer than the worker sends in a pass, so that running out of chunks is an everyday event.
const TX_RING: u32 = 32;

/// Entries of the RX ring, and of the fill ring: twice the packets that an endpoint lets be in flight.
const RX_RING: u32 = 256;

/// Frames that the kernel takes on a kick: in copy mode, half of what it does by default (32), because the ring is small.
const KICK_BATCH: u32 = 16;

/// Ring indexes begin so far before their wrap at 2^32: each run goes over it.
const BEFORE_WRAP: u32 = 1000;

/// An AF_XDP link and the kernel's end of its rings.
pub struct XdpPort {
    link: XdpLink,
    kernel: testing::Kernel,
    mac: Mac,
    config: Config,
    local: Address,
}

impl Attachment for XdpPort {
    type Link = XdpLink;

    /// The kernel knows the Ethernet address of the hosts that come later in the network. Those that come earlier must be
    /// learnt from what they send.
    fn open(own: &Place, network: &[Place]) -> io::Result<Self> {
        let options = Options {
            rx_ring: RX_RING,
            tx_ring: TX_RING,
            fill_ring: RX_RING,
            completion_ring: TX_RING,
            ..Options::for_mtu(MTU as u32)
        };
        let (xsk, kernel) = testing::over_memory_from(&options, 0u32.wrapping_sub(BEFORE_WRAP))
            .map_err(|error| io::Error::other(error.to_string()))?;
        kernel.send_on_kick(KICK_BATCH);
        let device = Device { index: INTERFACE, mac: own.mac, mtu: MTU, local: own.address };
        let mut link = XdpLink::new(xsk, device)?;
        let hop = |place: &Place| NextHop {
            interface: INTERFACE,
            vlan: None,
            source: None,
            mac: (place.index > own.index).then_some(place.mac),
        };
        let others = network.iter().filter(|place| place.index != own.index);
        let next_hops: NextHops = others.map(|place| (place.address.ip(), hop(place))).collect();
        link.set_next_hops(Arc::new(next_hops));
        let config = Config { port: own.address.port(), mtu: MTU as u32, allow_all: true };
        Ok(Self { link, kernel, mac: own.mac, config, local: own.address.ip().into() })
    }

    fn link(&mut self) -> &mut XdpLink {
        &mut self.link
    }

    /// Completes the frames last first: a driver may complete them in any order.
    fn take_sent(&mut self) -> Vec<Packet> {
        let taken = self.kernel.take();
        for frame in taken.iter().rev() {
            self.kernel.complete(frame.address);
        }
        let packet = |frame: testing::Taken| {
            // Frames of ours that our own parser does not understand go nowhere, and the transfer does not finish.
            let headers = datagram::parse(frame.bytes.as_slice()).ok()?;
            let mut head = frame.bytes;
            let bytes = head.split_off(eth::LEN);
            Some(Packet { source: headers.source, destination: headers.destination, ecn: Ecn::NotEct, head, bytes })
        };
        taken.into_iter().filter_map(packet).collect()
    }

    fn deliver(&mut self, packet: Packet) -> bool {
        let frame = [packet.head.as_slice(), &packet.bytes].concat();
        let frame = frame.as_slice();
        let lists = Lists { local: &[self.local], allow_from: &[], sessions: None };
        // The device, the program, the ring.
        frame.starts_with(&self.mac)
            && steer(frame, &self.config, &lists) == Verdict::Redirect
            && self.kernel.deliver(frame)
    }

    fn received(&self) -> u64 {
        self.link.counters().received
    }

    fn leaked(&mut self) -> u64 {
        // Every frame was completed: sent are all, and those not free are to receive into.
        let chunks = self.link.xsk().chunks();
        let refused = self.link.counters().refused;
        u64::from(chunks.outstanding() - chunks.receiving) + refused.passed() + self.link.xsk().counters().bad_addresses
    }
}
