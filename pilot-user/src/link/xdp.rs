//! An AF_XDP socket as a link: datagrams are read and sealed in its packet memory, and headers written before them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use pilot_common::datagram::{self, Headers, MAX_HEADERS_LEN};
use pilot_common::eth::{self, Mac};
use pilot_common::steer::Verdict;
use pilot_xsk::{Flushed, TxChunk, Xsk};

use super::counters::{Counters, Rings};
use super::doorbell::Doorbell;
use super::next_hops::{Learnt, Neighbours, NextHops};
use super::udp::max_payload;
use super::{Ecn, Envelope, Link, RECV_BATCH, Received, Slot, Trust, Via};

/// Bytes before the payload in a chunk: the headers, up to a cache line's end, so that a datagram is sealed into whole
/// lines.
const PAYLOAD_OFFSET: usize = 128;
const _: () = assert!(MAX_HEADERS_LEN <= PAYLOAD_OFFSET);

/// Bits of a VLAN id in a tag (IEEE 802.1Q §9.6); the rest is priority.
const VLAN_ID: u16 = 0x0fff;

/// How long a worker sleeps at most while the kernel has not taken all that is to be sent: it has no way to say when it
/// has room again.
const TX_RETRY: Duration = Duration::from_micros(100);

/// What a link must know of its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its index: where routes must lead for frames to be sent here.
    pub index: u32,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: usize,
    /// Our address and port. An unspecified address means whatever the route to a peer prefers.
    pub local: SocketAddr,
}

/// One AF_XDP socket with its neighbour table.
pub struct XdpLink {
    xsk: Xsk,
    device: Device,
    neighbours: Neighbours,
    max_payload: usize,
    /// The kernel has not taken all frames of the last flush.
    queued: bool,
    doorbell: Doorbell,
    counters: Counters,
}

impl XdpLink {
    /// A link over a socket that is bound, and that the XDP program will redirect to. Until [`XdpLink::set_next_hops`] says
    /// where peers are, nothing can be sent.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new(xsk: Xsk, device: Device) -> io::Result<Self> {
        // The socket cannot receive more than its chunks hold, nor send more than follows the headers in them.
        let mtu = device.mtu.min(xsk.max_received() - (eth::LEN + eth::TAG_LEN));
        let max_payload = max_payload(mtu, device.local.ip()).min(xsk.max_sent() - PAYLOAD_OFFSET);
        let neighbours = Neighbours::new(device.index);
        let (doorbell, counters) = (Doorbell::new()?, Counters::default());
        Ok(Self { xsk, device, neighbours, max_payload, queued: false, doorbell, counters })
    }

    /// Takes over the kernel's word on where peers are. A peer may be sent to only if the routing table sends it out of this
    /// device.
    pub fn set_next_hops(&mut self, next_hops: Arc<NextHops>) {
        self.neighbours.set_routes(next_hops);
    }

    /// Wakes this link's worker out of [`Link::wait`].
    pub fn doorbell(&self) -> Doorbell {
        self.doorbell.clone()
    }

    /// What it received, sent, refused and lost so far.
    pub fn counters(&self) -> Counters {
        let dropped = self.xsk.counters().lost_local;
        let mut counters = self.counters;
        counters.sent = counters.sent.saturating_sub(dropped);
        counters.lost.no_room += dropped;
        counters
    }

    /// What the kernel counted for its rings: a system call.
    pub(super) fn rings(&self) -> Rings {
        // It fails for no socket of ours; and what cannot be counted must not stop what counts it.
        self.xsk.kernel_statistics().unwrap_or_default().into()
    }

    /// Datagrams that were given to the socket.
    pub(super) fn sent(&self) -> u64 {
        self.counters.sent
    }

    /// The socket: for its statistics, and its place in the map of sockets.
    pub fn xsk(&self) -> &Xsk {
        &self.xsk
    }

    /// What may be lost if the socket goes now: frames that the kernel has not finished with.
    pub(super) fn unfinished(&mut self) -> u64 {
        self.xsk.reap();
        u64::from(self.xsk.sending())
    }

    /// Counts a datagram that was ready to go and found no chunk.
    pub(super) fn lose_for_room(&mut self) {
        self.counters.lost.no_room += 1;
    }

    /// Before a sleep: leave nothing that only we could go on with, and say how long to sleep at most.
    pub(super) fn prepare_sleep(&mut self, timeout: Option<Duration>) -> io::Result<Option<Duration>> {
        self.xsk.refill()?;
        if self.queued {
            self.flush()?;
        }
        Ok(if self.queued { Some(timeout.map_or(TX_RETRY, |timeout| timeout.min(TX_RETRY))) } else { timeout })
    }

    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(self.xsk.fd(), PollFlags::POLLIN)
    }
}

impl Link for XdpLink {
    type Slot<'a> = XdpSlot<'a>;

    fn recv(&mut self, limit: usize, mut sink: impl FnMut(Received<'_>) -> Trust) -> io::Result<usize> {
        let refilled = self.xsk.refill();
        let Self { xsk, neighbours, counters, .. } = self;
        let taken = xsk.recv(limit.min(RECV_BATCH), |frame| match datagram::parse(frame) {
            Ok(datagram) => {
                counters.received += 1;
                let layout = &datagram.layout;
                counters.received_bytes += layout.payload_len as u64;
                let end = layout.payload_offset + layout.payload_len;
                let trust = sink(Received {
                    source: datagram.source,
                    destination: datagram.destination,
                    ecn: ecn(layout.ecn),
                    via: Via::Xdp,
                    payload: frame.get(layout.payload_offset..end).unwrap_or_default(),
                });
                // Whoever can put a frame on the wire could otherwise send our answers elsewhere.
                if trust == Trust::Authentic {
                    let vlan = layout.tag.map(|tag| tag & VLAN_ID).filter(|id| *id != 0);
                    neighbours.learn(datagram.source.ip(), Learnt { mac: datagram.source_mac, vlan });
                }
            }
            // The program redirects only what this same parser understands.
            Err(reason) => counters.refused.count(Verdict::Pass(reason)),
        });
        if taken == 0 {
            refilled?;
        }
        Ok(taken)
    }

    fn slot(&mut self) -> Option<XdpSlot<'_>> {
        Some(XdpSlot {
            chunk: self.xsk.tx_chunk()?,
            neighbours: &mut self.neighbours,
            device: &self.device,
            counters: &mut self.counters,
            max_payload: self.max_payload,
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.queued = self.xsk.flush()? != Flushed::All;
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = self.prepare_sleep(timeout)?;
        self.doorbell.sleep([self.poll_fd()], timeout)
    }

    fn max_payload(&self) -> usize {
        self.max_payload
    }
}

/// Room in a chunk of packet memory, after room for headers.
pub struct XdpSlot<'a> {
    chunk: TxChunk<'a>,
    neighbours: &'a mut Neighbours,
    device: &'a Device,
    counters: &'a mut Counters,
    max_payload: usize,
}

impl XdpSlot<'_> {
    /// Whether the control thread should be asked for the way to an address: yes once.
    pub(super) fn should_ask(&mut self, destination: IpAddr) -> bool {
        self.neighbours.should_ask(destination)
    }

    /// Commits, or gives the slot back as it is if the destination cannot be reached by this link.
    pub(super) fn try_commit(mut self, envelope: &Envelope) -> Result<(), Self> {
        let Some(headers) = self.headers(envelope) else { return Err(self) };
        if envelope.len > self.max_payload {
            self.counters.lost.too_big += 1;
            return Ok(());
        }
        let (room, payload) = self.chunk.bytes().split_at_mut(PAYLOAD_OFFSET);
        match headers.write_back(room, &payload[..envelope.len]) {
            Ok(len) => {
                self.chunk.send(PAYLOAD_OFFSET - len, len + envelope.len);
                self.counters.sent += 1;
                self.counters.sent_bytes += envelope.len as u64;
                Ok(())
            }
            Err(_) => Err(self),
        }
    }

    fn headers(&mut self, envelope: &Envelope) -> Option<Headers> {
        let hop = self.neighbours.hop(envelope.destination.ip())?;
        let named = |ip: &IpAddr| !ip.is_unspecified();
        let local = self.device.local;
        let source =
            envelope.source.map(|local| local.ip()).filter(named).or(Some(local.ip()).filter(named)).or(hop.source)?;
        Some(Headers {
            destination_mac: hop.mac,
            source_mac: self.device.mac,
            tag: hop.vlan,
            source: SocketAddr::new(source, local.port()),
            destination: envelope.destination,
            ecn: envelope.ecn as u8,
        })
    }
}

impl Slot for XdpSlot<'_> {
    fn payload(&mut self) -> &mut [u8] {
        let end = PAYLOAD_OFFSET + self.max_payload;
        &mut self.chunk.bytes()[PAYLOAD_OFFSET..end]
    }

    fn commit(self, envelope: &Envelope) {
        if let Err(slot) = self.try_commit(envelope) {
            slot.counters.lost.unreachable += 1;
        }
    }
}

fn ecn(bits: u8) -> Ecn {
    match bits & 0b11 {
        0b01 => Ecn::Ect1,
        0b10 => Ecn::Ect0,
        0b11 => Ecn::Ce,
        _ => Ecn::NotEct,
    }
}
