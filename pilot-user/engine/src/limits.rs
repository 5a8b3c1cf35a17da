//! Every bound of the engine: what it counts, why it is what it is, and what breaks on either side of it.

use std::time::Duration;

// Datagrams and packets

/// Bytes. What every path carries (RFC 9000 §14); larger is used only after a probe was acked. Lower: handshakes do not
/// fit. Higher: black holes on paths with tunnels.
pub const MIN_DATAGRAM_BYTES: u16 = 1200;
/// Bytes. Largest datagram the engine builds or opens: one 9,000-byte jumbo frame. Sizes the scratch buffer.
pub const MAX_DATAGRAM_BYTES: u16 = 9000;
/// Packets. Numbers this far below the highest are refused as old (W4.3). Lower: reordering between queues looks like
/// replay. Higher: memory per tunnel with a gap (1 KiB now).
pub const REPLAY_WINDOW_PACKETS: u64 = 8192;
/// Packets under one key (W4.6). AES-GCM's confidentiality bound at full-size packets is far above (RFC 9001 B.1 in
/// blocks); past this the tunnel closes rather than weaken.
pub const REJECT_AFTER_PACKETS: u64 = 1 << 30;

// Acknowledgement and loss

/// Packets. An ack is due after this many ack-eliciting ones (W5.3). Lower: a packet back for every few. Higher: the
/// sender's window opens in lumps.
pub const ACK_AFTER_PACKETS: u32 = 8;
/// How long an ack may wait (W5.3). Lower: acks of their own in request/reply traffic. Higher: a lost last packet is
/// noticed later, by as much.
pub const MAX_ACK_DELAY: Duration = Duration::from_millis(1);
/// Ranges in one ACK, newest first (W5.4). Lower: spurious re-sending under heavy loss. Higher: acks crowd out data.
pub const MAX_ACK_RANGES: usize = 32;
/// Packets. Reordering that is not loss yet (RFC 9002 §6.1.1).
pub const PACKET_THRESHOLD: u64 = 3;
/// Least time threshold and least variance term of the probe time-out (W5.6): what scheduling on a busy host adds to a
/// round trip inside a rack. Lower: spurious probes. Higher: tail losses cost latency.
pub const TIMER_GRANULARITY: Duration = Duration::from_micros(500);
/// Round trip assumed before there is a sample. RFC 9002 §6.2.2 takes 333 ms for the open internet.
pub const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Doublings of the probe time-out. Bounds the wait to 64 time-outs, so that a path that comes back is found.
pub const MAX_PTO_BACKOFF: u32 = 6;
/// Packets. Initial congestion window (RFC 6928's ten, and a little for paths inside a rack).
pub const INITIAL_WINDOW_PACKETS: u64 = 32;
/// Packets. The congestion window never falls below (RFC 9002 §7.2).
pub const MIN_WINDOW_PACKETS: u64 = 2;
/// Packets that a receiver lets be in flight unless configured (W6.5): half of veth's 256-slot ring. Higher: silent
/// drops on veth. Lower: idle links on long paths.
pub const DEFAULT_PACKET_CREDIT: u32 = 128;

// Handshake and life of a tunnel

/// Waits between initiations (W3.11); the last one repeats.
pub const INITIATION_RETRY: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// How long `connect` waits for a tunnel before it gives up. Lower: a peer that restarts looks dead. Higher: the
/// application waits in the dark.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an accepted handshake waits for its first data packet (W3.9).
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which a sender with unacked data begins a handshake beside the tunnel: the peer may have restarted.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(1);
/// A tunnel that opened nothing for this long is over (W6.3).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Keep-alive of a tunnel with connections (W6.2). A third of the idle time-out, so that two may be lost; below the 30 s
/// that NATs keep a UDP mapping.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A CLOSE is sent this often (W5.15), in answer to what the peer still sends.
pub const MAX_CLOSE_PACKETS: u8 = 3;
/// Own initiations that go unanswered before the smaller key answers the other's (W3.12).
pub const UNANSWERED_INITIATIONS: u32 = 3;
/// Tries of the path MTU probe (W6.1) before the tunnel stays at [`MIN_DATAGRAM_BYTES`].
pub const MAX_MTU_PROBES: u8 = 3;
/// Longest pause that doubling makes between probes (W5.6): on a busy host a single time-out is 100 ms and more. Lower: more
/// probes into a path that is dead. Higher: one that comes back after seconds stands still for as long again.
pub const MAX_PROBE_PAUSE: Duration = Duration::from_secs(1);
/// Probe time-outs in a row after which larger datagrams are taken not to arrive any more (W6.6). Lower: a burst of losses
/// costs the size. Higher: a path that became narrower stands still for longer, doubling with each.
pub const BLACK_HOLE_TIMEOUTS: u32 = 3;

// Connections, streams, messages

/// Connections of one tunnel at a time. Bounds what one peer makes us hold.
pub const MAX_CONNECTIONS: usize = 1024;
/// Streams that a peer may have open in one connection.
pub const MAX_STREAMS: u64 = 128;
/// Bytes of credit of a connection: what an application that does not read can make us hold. Two stream windows, so that
/// one stalled stream does not stop the others.
pub const CONNECTION_CREDIT_BYTES: u64 = 2 << 20;
/// Bytes of credit of a stream: the product of 10 Gb/s and 800 µs.
pub const STREAM_CREDIT_BYTES: u64 = 1 << 20;
/// Bytes that one stream holds for sending, acked and unacked.
pub const STREAM_SEND_BUFFER_BYTES: usize = 1 << 20;
/// Bytes of messages that a connection holds for sending.
pub const MESSAGE_SEND_BUFFER_BYTES: usize = 256 << 10;
/// Messages unacked, and how far ahead a receiver takes them (W5.11). Far below half of the 16-bit number's range.
pub const MESSAGE_WINDOW: u64 = 4096;
/// Bytes of one message (W5.13): fits the least datagram with every header.
pub const MAX_MESSAGE_BYTES: usize = 1024;
/// Bytes that a message counts against credit beside its payload (W5.9): what holding an empty one costs.
pub const MESSAGE_OVERHEAD_BYTES: u64 = 16;
/// Bytes of a reason (W5.14).
pub const MAX_REASON_BYTES: usize = 256;
/// Gaps in what arrived of a stream, more than which closes the tunnel. A sender makes at most one per packet in flight,
/// and those are at most [`MAX_PACKET_CREDIT`]; one that makes more wants our memory.
pub const MAX_STREAM_GAPS: usize = 2 * MAX_PACKET_CREDIT as usize;
/// Packets. Largest credit that can be configured or believed.
pub const MAX_PACKET_CREDIT: u32 = 4096;

const _: () = assert!(REPLAY_WINDOW_PACKETS.is_multiple_of(64));
const _: () = assert!(MESSAGE_WINDOW < 1 << 15);
const _: () = assert!(MAX_MESSAGE_BYTES + 64 < MIN_DATAGRAM_BYTES as usize);
const _: () = assert!(KEEP_ALIVE.as_nanos() * 3 <= IDLE_TIMEOUT.as_nanos());
