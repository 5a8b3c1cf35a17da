//! What the engine counts. Every datagram that comes to nothing is counted under a reason.

use std::time::Duration;

use crate::crypto::handshake::HandshakeError;

/// Why a datagram came to nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum DropReason {
    /// Shorter than a header.
    Short,
    /// Another wire version. An initiation may have been answered (W3.10).
    Version,
    /// A reserved type, or one this version does not handle.
    Type,
    /// A length its type does not allow.
    Length,
    /// Epoch bits or a receiver that its type does not have.
    Header,
    /// mac1 is wrong.
    Mac,
    /// An initiation without a cookie, under load: answered with one.
    NoCookie,
    /// An initiation beyond what its source may send.
    SourceLimit,
    /// Noise could not decrypt a handshake message, or what seals a cookie.
    HandshakeDecrypt,
    /// Handshake parameters malformed or missing.
    Parameters,
    /// The static key is not certified.
    Certificate,
    /// The peer uses no AEAD that we use.
    NoCommonAead,
    /// The identity is not among the peers, or the lane none of its.
    UnknownPeer,
    /// An initiation that is not newer than the last one accepted: a replay.
    StaleTimestamp,
    /// A crossing initiation that loses to our own.
    Crossing,
    /// A response to no attempt of ours.
    NoAttempt,
    /// A data packet for a session that is not there.
    UnknownSession,
    /// A data packet that does not open.
    Authentication,
    /// A packet number seen before, or too old.
    Replay,
    /// A stateless reset that is of no tunnel of this worker's, or has another token.
    Reset,
}

impl DropReason {
    /// All reasons with their names in metrics.
    pub const ALL: [(Self, &'static str); 20] = [
        (Self::Short, "short"),
        (Self::Version, "version"),
        (Self::Type, "type"),
        (Self::Length, "length"),
        (Self::Header, "header"),
        (Self::Mac, "mac1"),
        (Self::NoCookie, "no_cookie"),
        (Self::SourceLimit, "source_limit"),
        (Self::HandshakeDecrypt, "handshake_decrypt"),
        (Self::Parameters, "parameters"),
        (Self::Certificate, "certificate"),
        (Self::NoCommonAead, "no_common_aead"),
        (Self::UnknownPeer, "unknown_peer"),
        (Self::StaleTimestamp, "stale_timestamp"),
        (Self::Crossing, "crossing"),
        (Self::NoAttempt, "no_attempt"),
        (Self::UnknownSession, "unknown_session"),
        (Self::Authentication, "authentication"),
        (Self::Replay, "replay"),
        (Self::Reset, "reset"),
    ];
}

impl From<HandshakeError> for DropReason {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Mac => Self::Mac,
            HandshakeError::Decrypt => Self::HandshakeDecrypt,
            HandshakeError::Parameters => Self::Parameters,
            HandshakeError::Certificate => Self::Certificate,
            HandshakeError::Aead => Self::NoCommonAead,
        }
    }
}

/// Round trips as they were measured, counted by how long they took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RttCounts {
    /// For each of [`RttCounts::BOUNDS_US`] those that took so long at most, and longer than the bound before.
    pub up_to: [u64; Self::BOUNDS_US.len()],
    /// All of them.
    pub count: u64,
    /// Their sum.
    pub sum: Duration,
}

impl RttCounts {
    /// Microseconds: from less than AF_XDP takes on one host to more than around the world.
    pub const BOUNDS_US: [u64; 16] =
        [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 300_000, 1_000_000];

    pub(crate) fn count(&mut self, rtt: Duration) {
        self.count += 1;
        self.sum += rtt;
        let place = Self::BOUNDS_US.partition_point(|bound| Duration::from_micros(*bound) < rtt);
        self.up_to.get_mut(place).into_iter().for_each(|count| *count += 1);
    }
}

/// Totals of an endpoint.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Data packets opened.
    pub opened: u64,
    /// Data packets sealed.
    pub sealed: u64,
    /// Stateless resets sent, to who used a session that is not there.
    pub resets_sent: u64,
    /// Tunnels that ended because the peer had forgotten them, by its stateless reset (W4.9).
    pub resets_received: u64,
    /// Handshakes finished here, begun by either end.
    pub handshakes: u64,
    /// Initiations and responses sent.
    pub handshake_datagrams: u64,
    /// UDP payload bytes of those.
    pub handshake_bytes: u64,
    /// Round trips, over all tunnels.
    pub rtt: RttCounts,
    /// What tunnels counted that are over; what there is of them at one time is zero.
    pub ended: TunnelStats,
    dropped: [u64; DropReason::ALL.len()],
}

impl Stats {
    /// Datagrams dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    pub(crate) fn count_drop(&mut self, reason: DropReason) {
        self.dropped[reason as usize] += 1;
    }
}

/// One connection, as it is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ConnectionStats {
    /// Unreliable datagrams dropped here, because newer ones needed the room before they were sent, or the path came to carry
    /// less.
    pub datagrams_dropped_sending: u64,
    /// Unreliable datagrams that arrived and were dropped, because newer ones needed the room before they were received.
    pub datagrams_dropped_receiving: u64,
    /// Bytes: how far the peer may be ahead of what was read here.
    pub receive_window: u64,
    /// Bytes: how far it is, as credit counts them (wire.md W5.9).
    pub unread_bytes: u64,
}

/// One tunnel, as it is now.
#[derive(Clone, Debug, Default)]
pub struct TunnelStats {
    /// UDP payload bytes of data packets sent.
    pub sent_bytes: u64,
    /// Data packets sent.
    pub sent_packets: u64,
    /// UDP payload bytes of data packets opened.
    pub received_bytes: u64,
    /// Data packets opened.
    pub received_packets: u64,
    /// Packets declared lost; what was in them was sent again in new ones.
    pub lost_packets: u64,
    /// Of those, packets that were late and not lost.
    pub spurious_losses: u64,
    /// Times that nothing arrived for several probe time-outs, and the window began anew.
    pub persistent_congestions: u64,
    /// Packets that the path marked as having met congestion.
    pub ecn_ce: u64,
    /// Times that a packet was held back to be sent later in the round trip.
    pub paced: u64,
    /// Round trips of which a queue on the way back was no part of what congestion control saw.
    pub queued_back: u64,
    /// Probe time-outs.
    pub probe_timeouts: u64,
    /// Paths that turned out to mangle ECN marks, or to drop what is marked.
    pub ecn_failures: u64,
    /// Path MTU probes sent that carried no data.
    pub mtu_probes: u64,
    /// UDP payload bytes of those.
    pub mtu_probe_bytes: u64,
    /// Data packets sent that ask for no acknowledgement, because they are one.
    pub ack_packets: u64,
    /// UDP payload bytes of those.
    pub ack_bytes: u64,
    /// Times that large datagrams were taken not to arrive any more.
    pub black_holes: u64,
    /// Challenges sent to prove a path.
    pub path_challenges: u64,
    /// Session ids replaced by this end.
    pub replaced_ids: u64,
    /// Times that the key was replaced while packets came and went (W4.7).
    pub rekeys: u64,
    /// Times that a handshake found the peer again after silence, and the tunnel went on (W3.14).
    pub resumptions: u64,
    /// From the initiation to the response; zero at the responder.
    pub handshake: Duration,
    /// Smoothed round-trip time.
    pub smoothed_rtt: Duration,
    /// Least round-trip time of the last [`crate::limits::MIN_RTT_WINDOW`] or two.
    pub min_rtt: Duration,
    /// Bytes: what the congestion window allows in flight.
    pub congestion_window: u64,
    /// Bytes in flight.
    pub bytes_in_flight: u64,
    /// Bytes: the largest datagram that the path sent over is known to carry.
    pub max_datagram: u16,
    /// Whether what is sent goes over the bulk path.
    pub sending_bulk: bool,
    /// Changes between the first path and the bulk path, of what is sent.
    pub path_switches: u64,
    /// Changes of the address at which the peer is, proven or not.
    pub peer_moves: u64,
    /// Addresses that were given up because the peer did not answer from there.
    pub unproven_paths: u64,
}

impl TunnelStats {
    /// Adds what another tunnel counted.
    pub fn count(&mut self, other: &Self) {
        self.sent_bytes += other.sent_bytes;
        self.sent_packets += other.sent_packets;
        self.received_bytes += other.received_bytes;
        self.received_packets += other.received_packets;
        self.lost_packets += other.lost_packets;
        self.spurious_losses += other.spurious_losses;
        self.persistent_congestions += other.persistent_congestions;
        self.ecn_ce += other.ecn_ce;
        self.paced += other.paced;
        self.queued_back += other.queued_back;
        self.probe_timeouts += other.probe_timeouts;
        self.ecn_failures += other.ecn_failures;
        self.mtu_probes += other.mtu_probes;
        self.mtu_probe_bytes += other.mtu_probe_bytes;
        self.ack_packets += other.ack_packets;
        self.ack_bytes += other.ack_bytes;
        self.black_holes += other.black_holes;
        self.path_challenges += other.path_challenges;
        self.replaced_ids += other.replaced_ids;
        self.rekeys += other.rekeys;
        self.resumptions += other.resumptions;
        self.path_switches += other.path_switches;
        self.peer_moves += other.peer_moves;
        self.unproven_paths += other.unproven_paths;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_is_counted_where_it_belongs() {
        let mut counts = RttCounts::default();
        for us in [0, 5, 6, 1_000_000, 1_000_001] {
            counts.count(Duration::from_micros(us));
        }
        assert_eq!((counts.up_to[0], counts.up_to[1], counts.up_to[15], counts.count), (2, 1, 1, 5));
        assert_eq!(counts.sum, Duration::from_micros(2_000_012));
    }

    #[test]
    fn every_reason_has_its_place_and_name() {
        for (index, (reason, name)) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{name}");
        }
    }
}
