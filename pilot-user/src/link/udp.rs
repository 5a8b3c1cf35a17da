//! The kernel's UDP socket as a link: on every machine, without privileges, and for whatever XDP passes up.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{setsockopt, sockopt};
use pilot_common::address::Prefix;
use pilot_common::maps::Config;
use pilot_common::steer::{Lists, admit};
use pilot_common::{ipv4, ipv6};
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};

use super::counters::Counters;
use super::doorbell::Doorbell;
pub use super::group::Group;
use super::outbound::Outbound;
use super::{Ecn, Envelope, Link, RECV_BATCH, Received, Slot, Trust, Via};

/// Bytes the kernel may queue for us: 20 ms at 3 Gb/s, so that a worker that was descheduled for a few time slices
/// loses nothing. Lower loses bursts; higher only hides an overload, as delay. The kernel counts the memory that packets
/// occupy, which is more than their bytes, and caps it at `net.core.rmem_max` for a process without CAP_NET_ADMIN.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// Bytes the kernel may hold unsent: several full batches. Lower makes bulk stutter on `EWOULDBLOCK`; higher is queueing
/// delay that congestion control cannot see.
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// Bytes of one receive buffer: UDP_GRO hands up to 64 KB of one flow over at once.
const RECEIVE_LEN: usize = 65_536;

/// Bytes beside twice its payload that the kernel counts for a datagram that arrived alone, at most: its descriptor and the ends of its
/// pages.
const DATAGRAM_OVERHEAD_BYTES: usize = 1024;

/// Packets that peers are told to have in flight to a socket at most: 10 Gb/s and 1.2 ms. Higher: what waits in the receive buffer
/// outgrows the processor's cache, and queues on the way are overrun. Lower: acks are waited for where two hosts are busy.
const MAX_SOCKET_PACKETS: usize = 1024;

/// Buffers that are filled at once while super-packets arrive: as much as stays in the processor's cache until it is opened, and more
/// than a pass takes.
const BULK_BATCH: usize = 2;

/// Most segments of one GSO send that every supported kernel takes (UDP_MAX_SEGMENTS was 64 until Linux 6.9).
const GSO_SEGMENTS: usize = 64;

/// Largest UDP payload the engine ever asks for: 9000-byte jumbo frames without IPv4 and UDP headers.
pub const PAYLOAD_MAX: usize = 8_972;

/// How a [`UdpLink`] is opened.
#[derive(Clone, Debug)]
pub struct UdpOptions {
    /// The local address and port. Port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// The MTU of the device that datagrams leave by, in bytes.
    pub mtu: usize,
    /// Whether equal datagrams to one destination may leave as one super-packet. Off beside XDP: a generic XDP program
    /// sees such a packet whole, and passes it to the kernel as longer than the MTU.
    pub gso: bool,
    /// Who may send to us; empty: everyone.
    pub allow_from: Vec<Prefix>,
    /// The other workers on the same port, if there are any.
    pub group: Option<Group>,
}

/// A UDP socket and the arena that datagrams are sealed in.
pub struct UdpLink {
    socket: UdpSocket,
    state: UdpSocketState,
    pub(super) doorbell: Doorbell,
    local: SocketAddr,
    allow_from: Vec<Prefix>,
    gso: bool,
    max_payload: usize,
    counters: Counters,
    inbound: Inbound,
    outbound: Outbound,
    packet_credit: u32,
}

impl UdpLink {
    /// Opens the socket: non-blocking, unfragmentable (wire.md W6.1), with ECN and destination addresses.
    ///
    /// # Errors
    /// Those of `socket`, `setsockopt` and `bind`: the address is not ours, the port is taken or needs a privilege. And a
    /// group of more workers than session ids can name.
    pub fn open(options: UdpOptions) -> io::Result<Self> {
        let UdpOptions { listen, mtu, gso, allow_from, group } = options;
        let socket = Socket::new(Domain::for_address(listen), Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
        // Without the right to go beyond the kernel's limits, which an operator may raise, it caps both silently.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
            socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        }
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        socket.set_reuse_port(group.is_some())?;
        socket.bind(&listen.into())?;
        if let Some(group) = group {
            group.steer(&socket)?;
        }
        let packet_credit = packet_credit(socket.recv_buffer_size()?, max_payload(mtu, listen.ip()));
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let max_payload = max_payload(mtu, listen.ip());
        Ok(Self {
            local: socket.local_addr()?,
            doorbell: Doorbell::new()?,
            socket,
            state,
            allow_from,
            gso,
            max_payload,
            counters: Counters::default(),
            inbound: Inbound::new(),
            outbound: Outbound::new(max_payload, gso),
            packet_credit,
        })
    }

    /// The address the socket is bound to, with the port the kernel chose if none was given.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Wakes this link's worker out of [`Link::wait`].
    pub fn doorbell(&self) -> Doorbell {
        self.doorbell.clone()
    }

    /// What it received, sent, refused and lost so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Packets that the receive buffer absorbs at once, however they come (wire.md W6.5).
    pub fn packet_credit(&self) -> u32 {
        self.packet_credit
    }

    /// Whether more than a slot's room is missing: the send buffer is full.
    pub(super) fn is_blocked(&self) -> bool {
        self.outbound.is_blocked()
    }

    /// Whether a slot can be had.
    pub(super) fn has_room(&self) -> bool {
        self.outbound.has_room(self.max_payload)
    }

    /// The descriptors to wait for: readable, and writable while datagrams wait for room in the send buffer.
    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, self.outbound.is_blocked());
        PollFd::new(self.socket.as_fd(), flags)
    }

    /// The room of a slot, for a link that made sure of it.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.outbound.room(self.max_payload)
    }

    /// Hands over what was written to [`UdpLink::room`].
    pub(super) fn commit_room(&mut self, envelope: &Envelope) {
        if envelope.len > self.max_payload {
            self.counters.lost.too_big += 1;
        } else {
            self.outbound.commit(envelope);
        }
    }

    /// Copies in a datagram from the beginning of `room`, as if it had been written to a slot. When the batch is full, that
    /// leaves first; what then still has no room is counted as lost.
    pub(super) fn commit_copy(&mut self, room: &[u8], envelope: &Envelope) {
        let Some(payload) = room.get(..envelope.len).filter(|payload| payload.len() <= self.max_payload) else {
            self.counters.lost.too_big += 1;
            return;
        };
        if !self.has_room() {
            self.send_all();
        }
        if self.has_room() {
            self.room()[..payload.len()].copy_from_slice(payload);
            self.commit_room(envelope);
        } else {
            self.counters.lost.no_room += 1;
        }
    }

    fn send_all(&mut self) {
        if self.outbound.is_empty() {
            return;
        }
        // quinn-udp says 1 for good once a device refused segmentation.
        let segments = if self.gso { self.state.max_gso_segments().min(GSO_SEGMENTS) } else { 1 };
        let (state, socket, v6) = (&self.state, &self.socket, self.local.is_ipv6());
        self.outbound.flush(segments, self.max_payload, &mut self.counters, |envelope, contents, segment_size| {
            state.try_send(UdpSockRef::from(socket), &transmit(envelope, contents, segment_size, v6))
        });
    }

    /// Whether datagrams wait in memory of ours, where no poll sees them.
    pub(super) fn has_received(&self) -> bool {
        !self.inbound.is_empty()
    }

    /// Hands out what is left of the datagrams received last, at most `limit`.
    fn drain(&mut self, limit: usize, sink: &mut impl FnMut(Received<'_>) -> Trust) -> usize {
        let config =
            Config { port: self.local.port(), mtu: self.max_payload as u32, allow_all: self.allow_from.is_empty() };
        let lists = Lists { local: &[], allow_from: &self.allow_from, sessions: None };
        let (mut handed, mut bytes) = (0, 0);
        while handed < limit {
            let Some((meta, payload)) = self.inbound.next() else { break };
            let source = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            // The part of the XDP program's decision that remains after the kernel found the port (wire.md W2.4). Sessions are
            // the endpoint's to look up.
            if let Err(verdict) = admit(payload, 0, payload.len(), source.ip().into(), &config, &lists) {
                self.counters.refused.count(verdict);
                continue;
            }
            let local_ip = meta.dst_ip.unwrap_or(self.local.ip()).to_canonical();
            sink(Received {
                source,
                destination: SocketAddr::new(local_ip, self.local.port()),
                ecn: ecn_from(meta.ecn),
                via: Via::Udp,
                payload,
            });
            handed += 1;
            bytes += payload.len() as u64;
        }
        self.counters.received += handed as u64;
        self.counters.received_bytes += bytes;
        handed
    }
}

impl Link for UdpLink {
    type Slot<'a> = UdpSlot<'a>;

    fn recv(&mut self, limit: usize, mut sink: impl FnMut(Received<'_>) -> Trust) -> io::Result<usize> {
        let limit = limit.min(RECV_BATCH);
        let mut handed = self.drain(limit, &mut sink);
        while handed < limit {
            let full = self.inbound.receive(&self.state, &self.socket)?;
            handed += self.drain(limit - handed, &mut sink);
            if !full {
                break;
            }
        }
        Ok(handed)
    }

    fn slot(&mut self) -> Option<UdpSlot<'_>> {
        self.has_room().then_some(UdpSlot { link: self })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_all();
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if self.has_received() { Ok(()) } else { self.doorbell.sleep([self.poll_fd()], timeout) }
    }

    fn max_payload(&self) -> usize {
        self.max_payload
    }
}

/// Room in the send arena.
pub struct UdpSlot<'a> {
    link: &'a mut UdpLink,
}

impl Slot for UdpSlot<'_> {
    fn payload(&mut self) -> &mut [u8] {
        self.link.room()
    }

    fn commit(self, envelope: &Envelope) {
        self.link.commit_room(envelope);
    }
}

/// Received buffers, and how far they are handed out: one may hold more datagrams than a pass takes.
struct Inbound {
    buffers: Box<[u8]>,
    metas: [RecvMeta; quinn_udp::BATCH_SIZE],
    filled: usize,
    /// Super-packets came last.
    is_bulk: bool,
    buffer: usize,
    offset: usize,
}

impl Inbound {
    fn new() -> Self {
        Self {
            buffers: vec![0; RECEIVE_LEN * quinn_udp::BATCH_SIZE].into_boxed_slice(),
            metas: [RecvMeta::default(); quinn_udp::BATCH_SIZE],
            filled: 0,
            is_bulk: false,
            buffer: 0,
            offset: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.buffer == self.filled
    }

    /// Fills the buffers from the socket; whether all were filled, so that more may be waiting.
    fn receive(&mut self, state: &UdpSocketState, socket: &UdpSocket) -> io::Result<bool> {
        (self.filled, self.buffer, self.offset) = (0, 0, 0);
        let mut chunks = self.buffers.chunks_exact_mut(RECEIVE_LEN);
        let mut slices: [IoSliceMut<'_>; quinn_udp::BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let batch = if self.is_bulk { BULK_BATCH } else { quinn_udp::BATCH_SIZE };
        match state.recv(UdpSockRef::from(socket), &mut slices[..batch], &mut self.metas) {
            Ok(filled) => {
                self.filled = filled;
                self.is_bulk = self.metas[..filled].iter().any(|meta| meta.len > RECEIVE_LEN / 2);
                Ok(filled == batch)
            }
            // An ICMP error for something sent earlier is not an error of the link.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The next datagram: GRO has put equally long ones after each other, of which the last may be shorter.
    fn next(&mut self) -> Option<(&RecvMeta, &[u8])> {
        let meta = self.metas[..self.filled].get(self.buffer)?;
        let start = self.offset;
        let end = start.saturating_add(meta.stride.max(1)).min(meta.len);
        let base = self.buffer * RECEIVE_LEN;
        if end >= meta.len {
            (self.buffer, self.offset) = (self.buffer + 1, 0);
        } else {
            self.offset = end;
        }
        Some((meta, self.buffers.get(base + start..base + end).unwrap_or_default()))
    }
}

fn transmit<'a>(envelope: &Envelope, contents: &'a [u8], segment_size: Option<usize>, v6: bool) -> Transmit<'a> {
    // A dual-stack socket names IPv4 hosts by their mapped addresses.
    let mapped = |ip: IpAddr| match ip {
        IpAddr::V4(v4) if v6 => IpAddr::V6(v4.to_ipv6_mapped()),
        ip => ip,
    };
    let destination = match envelope.destination {
        SocketAddr::V4(v4) => SocketAddr::new(mapped(IpAddr::V4(*v4.ip())), v4.port()),
        // As it is: it may carry a scope.
        v6 => v6,
    };
    Transmit {
        destination,
        ecn: EcnCodepoint::from_bits(envelope.ecn as u8),
        contents,
        segment_size,
        src_ip: envelope.source.map(|local| local.ip()).filter(|ip| !ip.is_unspecified()).map(mapped),
    }
}

fn ecn_from(ecn: Option<EcnCodepoint>) -> Ecn {
    match ecn {
        None => Ecn::NotEct,
        Some(EcnCodepoint::Ect0) => Ecn::Ect0,
        Some(EcnCodepoint::Ect1) => Ecn::Ect1,
        Some(EcnCodepoint::Ce) => Ecn::Ce,
    }
}

/// How many datagrams of up to `payload` bytes a receive buffer of so many holds for certain.
fn packet_credit(buffer: usize, payload: usize) -> u32 {
    (buffer / (2 * payload + DATAGRAM_OVERHEAD_BYTES)).min(MAX_SOCKET_PACKETS) as u32
}

/// Largest UDP payload that fits a packet of `mtu` bytes. A dual-stack socket also talks IPv4, whose header is smaller.
pub(super) fn max_payload(mtu: usize, listen: IpAddr) -> usize {
    let network = if listen.is_ipv4() { ipv4::LEN } else { ipv6::LEN };
    mtu.saturating_sub(network + pilot_common::udp::LEN).min(PAYLOAD_MAX)
}
