//! A link over a network in memory, and what any link must be for the simulator to hold its far end.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use pilot_common::eth::Mac;
use pilot_common::wire::{Header, PacketType};
use pilot_user::link::{Ecn, Effect, Envelope, Link, Received, Slot, Trust, Via};

/// Where a host is in the simulated network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its IP address and port.
    pub address: SocketAddr,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its place among the hosts.
    pub index: usize,
}

/// What flies through the network.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Packet {
    /// Who sent it, according to its headers when it was sent.
    pub source: SocketAddr,
    /// Whom it is for, likewise.
    pub destination: SocketAddr,
    /// Its ECN bits; none where `bytes` is an IP packet, which has its own.
    pub ecn: Ecn,
    /// What no path damages: the Ethernet header, if there is one. Each router makes it anew, and a frame that is damaged
    /// between two of them fails its check sequence.
    pub head: Vec<u8>,
    /// What the path may damage: an IP packet, or a bare datagram.
    pub bytes: Vec<u8>,
}

/// Bytes of IPv4's and UDP's headers.
pub const HEADERS: usize = 28;

impl Packet {
    /// The UDP payload, of a packet that no path has damaged.
    pub fn datagram(&self) -> &[u8] {
        if self.head.is_empty() { &self.bytes } else { &self.bytes[HEADERS..] }
    }
}

/// A link whose far end the simulator holds.
pub trait Attachment: Sized {
    /// The link that the worker has.
    type Link: Link;

    /// A link for the host at `own`, in a network of these hosts.
    ///
    /// # Errors
    /// Those of the machine that simulates: no memory or no descriptors.
    fn open(own: &Place, network: &[Place]) -> io::Result<Self>;

    /// The worker's end.
    fn link(&mut self) -> &mut Self::Link;

    /// Takes what the link has sent.
    fn take_sent(&mut self) -> Vec<Packet>;

    /// Hands a packet to the link. `false`: the host had to drop it, before its worker could see it.
    fn deliver(&mut self, packet: Packet) -> bool;

    /// Datagrams that the link handed to the worker.
    fn received(&self) -> u64;

    /// For the end: room for datagrams that was lent and did not come back.
    fn leaked(&mut self) -> u64;
}

/// Datagrams that wait to be received, at most: as many as an endpoint lets be in flight, and a burst beyond. More are
/// dropped, as a receive ring would.
const INBOX_PACKETS: usize = 512;

/// Datagrams that may be committed between two flushes. Fewer than the worker sends in a pass, so that running out of room
/// is an everyday event.
const SLOTS: usize = 48;

/// Largest UDP payload in bytes, of IPv4 over Ethernet: 1500 - 20 - 8.
const MAX_PAYLOAD: usize = 1472;

/// A link over a network in memory. It sends from whichever port it is told to, and receives on all.
#[derive(Debug)]
pub struct SimLink {
    local: SocketAddr,
    inbox: VecDeque<Packet>,
    received: u64,
    /// Lent with the slot.
    room: Box<[u8]>,
    /// Committed and not flushed.
    committed: Vec<Packet>,
    /// Flushed and not taken.
    sent: Vec<Packet>,
    /// What a steering table would have. Asserted of it: nothing that was authentic would have been missed (wire.md W2.5).
    sessions: HashSet<u32>,
}

impl Attachment for SimLink {
    type Link = Self;

    fn open(own: &Place, _network: &[Place]) -> io::Result<Self> {
        let room = vec![0; MAX_PAYLOAD].into_boxed_slice();
        let inbox = VecDeque::with_capacity(INBOX_PACKETS);
        let (committed, sent, sessions) = (Vec::new(), Vec::new(), HashSet::new());
        Ok(Self { local: own.address, inbox, received: 0, room, committed, sent, sessions })
    }

    fn link(&mut self) -> &mut Self {
        self
    }

    fn take_sent(&mut self) -> Vec<Packet> {
        std::mem::take(&mut self.sent)
    }

    fn deliver(&mut self, packet: Packet) -> bool {
        let has_room = self.inbox.len() < INBOX_PACKETS;
        if has_room {
            self.inbox.push_back(packet);
        }
        has_room
    }

    fn received(&self) -> u64 {
        self.received
    }

    fn leaked(&mut self) -> u64 {
        self.committed.len() as u64
    }
}

impl Link for SimLink {
    type Slot<'a> = SimSlot<'a>;

    fn recv(&mut self, limit: usize, mut sink: impl FnMut(Received<'_>) -> Trust) -> io::Result<usize> {
        let count = limit.min(self.inbox.len());
        for Packet { source, destination, ecn, bytes, .. } in self.inbox.drain(..count) {
            let trust = sink(Received { source, destination, ecn, via: Via::Memory, payload: &bytes });
            if let (Trust::Authentic, Ok(header)) = (trust, Header::parse(&bytes)) {
                // An initiation names nobody, and a reset the session that we used with the peer.
                let names_ours = !matches!(header.packet_type, PacketType::Initiation | PacketType::Reset);
                let is_ours = !names_ours || self.sessions.contains(&header.receiver);
                assert!(is_ours, "session {:#x} was opened and is not in the table", header.receiver);
            }
        }
        self.received += count as u64;
        Ok(count)
    }

    fn slot(&mut self) -> Option<SimSlot<'_>> {
        (self.committed.len() < SLOTS).then_some(SimSlot { link: self })
    }

    fn flush(&mut self) -> io::Result<()> {
        for Packet { bytes, .. } in &self.committed {
            if let Ok(Header { packet_type: PacketType::Initiation | PacketType::Response, word, .. }) =
                Header::parse(bytes)
            {
                assert!(self.sessions.contains(&word), "session {word:#x} is told and not in the table");
            }
        }
        self.sent.append(&mut self.committed);
        Ok(())
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::SessionBegins(id) => assert!(self.sessions.insert(id), "session {id:#x} begins twice"),
            Effect::SessionEnds(id) => assert!(self.sessions.remove(&id), "session {id:#x} ends twice"),
        }
    }

    /// Returns at once: time is the world's.
    fn wait(&mut self, _timeout: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn max_payload(&self) -> usize {
        MAX_PAYLOAD
    }
}

/// Room for one datagram.
pub struct SimSlot<'a> {
    link: &'a mut SimLink,
}

impl Slot for SimSlot<'_> {
    fn payload(&mut self) -> &mut [u8] {
        &mut self.link.room
    }

    fn commit(self, envelope: &Envelope) {
        let link = self.link;
        let named = envelope.source.unwrap_or(link.local);
        let ip = Some(named.ip()).filter(|ip| !ip.is_unspecified()).unwrap_or(link.local.ip());
        link.committed.push(Packet {
            source: SocketAddr::new(ip, named.port()),
            destination: envelope.destination,
            ecn: envelope.ecn,
            head: Vec::new(),
            bytes: link.room[..envelope.len].to_vec(),
        });
    }
}
