//! What an endpoint is told once.

use std::net::SocketAddr;
use std::time::Duration;

use crate::address::OverlayAddress;
use crate::crypto::aead::Aeads;
use crate::identity::{Identity, PublicKey};
use crate::limits::{
    DEFAULT_PACKET_CREDIT, HANDSHAKES_PER_SECOND, HANDSHAKES_PER_SOURCE_PER_SECOND, IDLE_TIMEOUT, MAX_DATAGRAM_BYTES,
    MAX_PACKET_CREDIT, MIN_DATAGRAM_BYTES, MIN_REKEY_AFTER_TIME, REKEY_AFTER_PACKETS, REKEY_AFTER_TIME,
};
use crate::recovery::congestion::ControllerKind;

/// Whether an end sends over the bulk path (W6.8). What arrives is the other end's choice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BulkUse {
    /// Not at all.
    #[default]
    Never,
    /// While data queues for longer than a few round trips (W6.9).
    Auto,
    /// Whenever it works.
    Always,
}

/// Configuration of an endpoint.
#[derive(Debug)]
pub struct Config {
    /// This node's keys.
    pub identity: Identity,
    /// This node's overlay address.
    pub address: OverlayAddress,
    /// Random, drawn once a process: tells peers whether they still talk to the same one.
    pub boot_id: [u8; 16],
    /// The worker that owns this endpoint; stands in its session ids.
    pub worker: u8,
    /// Time since the Unix epoch at [`crate::Instant::ORIGIN`].
    pub unix_time: Duration,
    /// Bytes: the largest datagram that can arrive here and leave here.
    pub max_datagram: u16,
    /// Packets that the receive ring absorbs at once.
    pub packet_credit: u32,
    /// Packets that the bulk port's absorbs at once, if there is one.
    pub bulk_packet_credit: u32,
    /// The AEADs to use.
    pub aeads: Aeads,
    /// Which congestion control to send with.
    pub controller: ControllerKind,
    /// A tunnel on which nothing was opened for this long is over.
    pub idle_timeout: Duration,
    /// Age at which the end that began a tunnel replaces its key, if data flowed; at most
    /// [`crate::limits::REKEY_AFTER_TIME`].
    pub rekey_after: Duration,
    /// Packets after which either end replaces the key that sealed them; at most [`crate::limits::REKEY_AFTER_PACKETS`].
    pub rekey_after_packets: u64,
    /// Initiations a second above which this worker is under load: it then reads only those with a cookie (W3.20). With 0,
    /// always.
    pub handshakes_per_second: u32,
    /// Under load, initiations a second that it reads from one IPv4 address or IPv6 network of 64 bits (W3.22).
    pub handshakes_per_source_per_second: u32,
    /// Whether this node introduces itself to strangers, and answers those that do (W3.30). Who is a stranger no more is still
    /// no peer: see [`crate::Event::Introduced`].
    pub introductions: bool,
    /// This node's second UDP port, which takes part in the bulk path; not the first one. Peers are told.
    pub bulk_port: Option<u16>,
    /// Whether this end sends over the bulk path.
    pub bulk: BulkUse,
}

impl Config {
    /// A configuration with the defaults of [`crate::limits`].
    pub fn new(identity: Identity, address: OverlayAddress, boot_id: [u8; 16], unix_time: Duration) -> Self {
        Self {
            identity,
            address,
            boot_id,
            worker: 0,
            unix_time,
            max_datagram: MIN_DATAGRAM_BYTES,
            packet_credit: DEFAULT_PACKET_CREDIT,
            bulk_packet_credit: DEFAULT_PACKET_CREDIT,
            aeads: Aeads::detect(),
            controller: ControllerKind::default(),
            idle_timeout: IDLE_TIMEOUT,
            rekey_after: REKEY_AFTER_TIME,
            rekey_after_packets: REKEY_AFTER_PACKETS,
            handshakes_per_second: HANDSHAKES_PER_SECOND,
            handshakes_per_source_per_second: HANDSHAKES_PER_SOURCE_PER_SECOND,
            introductions: false,
            bulk_port: None,
            bulk: BulkUse::Never,
        }
    }

    /// The values as they can be: within what the engine handles, and no laxer than the protocol.
    pub(crate) fn clamped(mut self) -> Self {
        self.max_datagram = self.max_datagram.clamp(MIN_DATAGRAM_BYTES, MAX_DATAGRAM_BYTES);
        self.packet_credit = self.packet_credit.clamp(2, MAX_PACKET_CREDIT);
        let bulk = if self.bulk_port.is_some() { self.bulk_packet_credit } else { self.packet_credit };
        self.bulk_packet_credit = bulk.clamp(2, MAX_PACKET_CREDIT);
        self.rekey_after = self.rekey_after.clamp(MIN_REKEY_AFTER_TIME, REKEY_AFTER_TIME);
        self.rekey_after_packets = self.rekey_after_packets.clamp(1, REKEY_AFTER_PACKETS);
        self
    }
}

/// A peer that this endpoint talks to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerConfig {
    /// What it is known by.
    pub key: PublicKey,
    /// Its overlay address.
    pub address: OverlayAddress,
    /// Where to reach it; `None`: it comes to us.
    pub endpoint: Option<SocketAddr>,
}
