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
/// Packets after which a key is replaced (W4.7): a millionth of AES-GCM's confidentiality bound at full-size packets (RFC
/// 9001 B.1.1, in blocks). Lower: a fast tunnel shakes hands all the time.
pub const REKEY_AFTER_PACKETS: u64 = 1 << 24;
/// Age at which a key under which data flowed is replaced (W4.7; WireGuard §6.1). Lower: a hundred thousand tunnels shake hands
/// all the time. Higher: whoever takes a host's memory reads more of what was sent before.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// Least age of a key that a configuration can ask for. Lower: on a long path keys never come into use.
pub const MIN_REKEY_AFTER_TIME: Duration = Duration::from_millis(100);
/// Packets that one key seals at most (W4.6), which leaves 64 times [`REKEY_AFTER_PACKETS`] for a rekey to succeed. Past this
/// nothing leaves until it has.
pub const REJECT_AFTER_PACKETS: u64 = 1 << 30;
/// Age past which a key seals no data (W4.6; WireGuard §6.1), which leaves a minute for a rekey to succeed. Higher: as
/// [`REKEY_AFTER_TIME`].
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Probe time-outs for which the key before is kept, from when the peer is known to use the new one (W4.7). Lower: what is
/// late is lost. Higher: a key lies in memory for nothing.
pub const KEY_LINGER_TIMEOUTS: u32 = 3;

// Acknowledgement and loss

/// Packets. An ack is due after this many ack-eliciting ones (W5.3). Lower: a packet back for every few. Higher: the
/// sender's window opens in lumps.
pub const ACK_AFTER_PACKETS: u32 = 8;
/// Packets. The most that a peer may ask for instead (W5.3), and no more than a quarter of the own larger packet credit is granted,
/// as the sender may have no more than that in flight. Higher: a lost ack stops a long path's window for longer.
pub const MAX_ACK_AFTER_PACKETS: u32 = 64;
/// How long an ack may wait (W5.3). Lower: acks of their own in request/reply traffic. Higher: a lost last packet is
/// noticed later, by as much.
pub const MAX_ACK_DELAY: Duration = Duration::from_millis(1);
/// Ranges in one ACK, newest first (W5.4). Lower: spurious re-sending under heavy loss. Higher: acks crowd out data.
pub const MAX_ACK_RANGES: usize = 32;
/// Packets. Reordering that is not loss yet (RFC 9002 §6.1.1), where a path has shown no more.
pub const PACKET_THRESHOLD: u64 = 3;
/// Packets. The most that [`PACKET_THRESHOLD`] grows to where losses turned out to be none: half of a usual flight. Higher:
/// losses are found by age alone.
pub const MAX_PACKET_THRESHOLD: u64 = 64;
/// Eighths of the round trip: the age at which a packet is lost if a later one was acked (RFC 9002 §6.1.2), where a path has
/// shown no more disorder.
pub const TIME_THRESHOLD_EIGHTHS: u32 = 9;
/// The most that [`TIME_THRESHOLD_EIGHTHS`] grows to: two round trips (RFC 8985 §6.2: one more). Higher: a loss on a path that
/// was once disordered costs more than a probe time-out.
pub const MAX_TIME_THRESHOLD_EIGHTHS: u32 = 16;
/// Round trips with losses that were ones, after which disorder is forgotten (RFC 8985 §6.2: 16 recoveries).
pub const REORDERING_FORGOTTEN_AFTER: u32 = 16;
/// Packets declared lost that are remembered in case they are acked (40 KiB at most, none at rest). Lower: the window is not
/// given back after a long disorder.
pub const MAX_LOST_REMEMBERED: usize = 1024;
/// Probe time-outs for which everything was lost, which is persistent congestion (RFC 9002 §7.6.1).
pub const PERSISTENT_CONGESTION_TIMEOUTS: u32 = 3;
/// For how long the least round trip is believed: one to two of this. Lower: a standing queue is taken for the path's own
/// delay. Higher: after a change to a longer route the window stays small for as long.
pub const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);
/// Millionths by which two hosts' clocks are taken to go differently (W5.23): both by a hundred, the one fast and the other slow, which
/// plain quartz does at worst (RFC 5905 §7.2 takes 15 for a clock). Lower: clocks that do make a queue where there is none. Higher:
/// queues that have stood for a hundred rounds are taken for shorter than they are.
pub const CLOCK_DRIFT_PPM: u64 = 200;
/// Packets marked with ECT(0) before anything is known of the path's ECN (RFC 9000 A.4).
pub const ECN_TEST_PACKETS: u64 = 10;
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
/// Least delay target, for all short paths: twice what scheduling on two busy cores adds to rounds inside a rack. Lower:
/// windows shrink for want of processor time, and flows that come late get more than their share. Higher: longer queues in
/// switches.
pub const RACK_DELAY_TARGET: Duration = Duration::from_millis(2);
/// Least queueing delay that the delay target allows above the least round trip. Lower: jitter of a long path is taken for a
/// queue. Higher: flows that come late get more than their share.
pub const MIN_QUEUE_TARGET: Duration = Duration::from_micros(250);
/// Largest queueing delay that the delay target allows, before the part for small windows, on long paths. Lower: many flows
/// cannot keep a long path full. Higher: latency for everybody there.
pub const MAX_QUEUE_TARGET: Duration = Duration::from_millis(10);
/// Percent of packets whose loss, without queueing delay, is not congestion for the delay target.
pub const LOSS_NOT_CONGESTION_PERCENT: u64 = 2;
/// Packets over which loss is measured: the last one to two times as many. Lower: chance looks like congestion, or three
/// standard deviations allow much more than the percentage. Higher: a full short queue is noticed later.
pub const LOSS_WINDOW_PACKETS: u64 = 2048;
/// Least round trip from which on packets are paced (W6.11). Below it a window is what a worker sends in a pass or two, and
/// a timer costs more than it spreads.
pub const MIN_PACED_RTT: Duration = Duration::from_millis(2);
/// Packets that pacing lets leave at once (W6.11), within these bounds: fewer cost a wake-up each, and more overrun the
/// short queues of slow paths; a worker's pass sends no more.
pub const MIN_PACING_BURST_PACKETS: u64 = 4;
/// See [`MIN_PACING_BURST_PACKETS`].
pub const MAX_PACING_BURST_PACKETS: u64 = 64;
/// Packets that a receiver takes at once unless configured (W6.5): half of veth's 256-slot ring. Higher: silent drops on
/// veth. Lower: short paths stand idle while acks are on their way.
pub const DEFAULT_PACKET_CREDIT: u32 = 128;
/// Packets in flight on a path, however long (W6.5): 10 Gb/s over 10 ms, 1 Gb/s over 95 ms. Higher: a flight outgrows the
/// receiver's replay window, and memory for what is in flight (1 MiB now).
pub const MAX_FLIGHT_PACKETS: u32 = 8192;

// Handshake and life of a tunnel

/// Initiations a second that a worker reads from anywhere, unless configured; of more, only with a cookie (W3.20). Reading and
/// answering one takes some 300 µs: 8 % of a core. Lower: a node that many begin with at once costs them a round trip. Higher:
/// forged ones take the tunnels' time.
pub const HANDSHAKES_PER_SECOND: u32 = 250;
/// Initiations a second, with a cookie, that a worker under load reads from one IPv4 address or IPv6 network of 64 bits, unless
/// configured (W3.22). Lower: nodes behind one address wait for each other. Higher: a few real addresses take the tunnels' time.
pub const HANDSHAKES_PER_SOURCE_PER_SECOND: u32 = 50;
/// Sources whose rate is remembered (16 KiB). Lower: attackers that have many addresses get more than their rate.
pub const MAX_HANDSHAKE_SOURCES: usize = 1024;
/// How long a cookie is used, and at least accepted (W3.21). Lower: more round trips. Higher: it works for longer for whoever
/// has the address next.
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);
/// Replies to strangers that wait to be sent (8 KiB); more are not made. What a worker's pass receives is no more.
pub const MAX_REPLIES: usize = 64;
/// Initiations of other versions that are answered a second (W3.10). Lower: a node that was left behind learns it later. Higher:
/// more of a reflector, if not an amplifier.
pub const VERSION_ANSWERS_PER_SECOND: u32 = 10;

/// Introductions a second that a worker answers, if it answers any (W3.34): a percent of a core. Lower: many that come at once
/// wait for each other. Higher: strangers take the tunnels' time.
pub const INTRODUCTIONS_PER_SECOND: u32 = 20;
/// Of those, from one IPv4 address or IPv6 network of 64 bits. Lower: nodes behind one address wait for each other. Higher: one
/// that has a few addresses keeps others from being introduced.
pub const INTRODUCTIONS_PER_SOURCE_PER_SECOND: u32 = 4;
/// Introductions under way at a time, of those begun here and of those answered each (half a MiB for both). Lower: as
/// [`INTRODUCTIONS_PER_SECOND`]. Higher: memory for strangers.
pub const MAX_INTRODUCTIONS: usize = 64;
/// How long who answered an introduction waits for the other end's proof, or for that again (W3.33). Lower: long paths are never introduced. Higher:
/// strangers that prove nothing keep others' places.
pub const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait before what was not answered of an introduction is repeated (W3.35): it is begun by hand, and lasts
/// [`CONNECT_TIMEOUT`]. Higher: lossy paths are not introduced in that time.
pub const MAX_INTRODUCTION_WAIT: Duration = Duration::from_secs(1);
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
/// A tunnel that opened nothing for this long is over (W6.3). Lower: a path that is dead for a minute ends its streams.
/// Higher: a peer that is gone for good holds its connections' memory for longer.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Keep-alive of a tunnel with connections (W6.2). Below a third of the idle time-out, so that two may be lost, and below the
/// 30 s that NATs keep a UDP mapping.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A CLOSE is sent this often (W5.15), in answer to what the peer still sends.
pub const MAX_CLOSE_PACKETS: u8 = 3;
/// Stateless resets that an endpoint sends in a second (W4.9). Lower: after a restart, peers beyond it find out by
/// [`SUSPECT_AFTER`]. Higher: more of a flood of unknown ids is answered, at 50 bytes of ours for each.
pub const MAX_RESETS_PER_SECOND: u32 = 1000;
/// Tunnels to one peer (W3.16), each for a worker, so for a core, of either end. Lower: cores that bulk to one peer cannot use.
/// Higher: more handshakes, and connections, that one peer may cost.
pub const MAX_LANES: u8 = 16;
/// Own initiations that go unanswered before the smaller key answers the other's (W3.12).
pub const UNANSWERED_INITIATIONS: u32 = 3;
/// Probes of one size that may be lost in a row (W6.1) before the search for a larger one pauses. Lower: a lossy path keeps
/// small datagrams. Higher: more into a path that does not carry them.
pub const MAX_MTU_PROBES: u8 = 3;
/// Bytes. Sizes that the search tries below the largest that both ends take, smallest first (W6.6): what carries a tunnel
/// or two under Ethernet's 1500, a page-sized frame of AF_XDP, a jumbo frame. Each costs a round trip on the way up.
pub const MTU_STEPS: [u16; 3] = [1400, 3400, 8900];
/// Pause of a search that found a size too large, doubled with each failure up to [`MAX_MTU_RETRY`] (W6.6). Lower: probes
/// into paths that never become wider. Higher: one that did is used late.
pub const MTU_RETRY: Duration = Duration::from_secs(60);
/// Longest pause of the search (RFC 8899 §5.1.1 names ten minutes).
pub const MAX_MTU_RETRY: Duration = Duration::from_secs(600);
/// Longest pause that doubling makes between probes (W5.6): on a busy host a single time-out is 100 ms and more. Lower: more
/// probes into a path that is dead. Higher: one that comes back after seconds stands still for as long again.
pub const MAX_PROBE_PAUSE: Duration = Duration::from_secs(1);
/// Probe time-outs in a row after which larger datagrams are taken not to arrive any more (W6.6). Lower: a burst of losses
/// costs the size. Higher: a path that became narrower stands still for longer, doubling with each.
pub const BLACK_HOLE_TIMEOUTS: u32 = 3;

// Paths

/// Bytes sent to an address for each byte received from there, until it is proven that the peer is there (W6.4; RFC 9000
/// §8.1). Higher: a forged source address makes us an amplifier.
pub const AMPLIFICATION_LIMIT: u64 = 3;
/// PATH_CHALLENGEs sent into a path before it is given up. Lower: a lossy path is never proven. Higher: an address at which
/// nobody is gets the peer's data for longer.
pub const MAX_PATH_CHALLENGES: u32 = 4;
/// Wait for a PATH_RESPONSE before the next challenge, unless a probe time-out is longer; doubled each time, so that a path
/// has 1.5 s at least. Lower: challenges in vain where scheduling is slow.
pub const PATH_CHALLENGE_WAIT: Duration = Duration::from_millis(100);
/// PATH_RESPONSEs that wait to be sent; of more the newest are dropped, and asked for again. Bounds what a peer makes us hold.
pub const MAX_PATH_RESPONSES: usize = 8;
/// Ids of one session at a time (W4.8): no more are drawn while the peer uses none of the newer ones.
pub const MAX_SESSION_IDS: usize = 4;
/// How long an id that the peer has stopped using is accepted (W4.8): what was sent under it may be that late. Lower: late
/// packets are lost. Higher: the old id leads to the peer for longer.
pub const SESSION_ID_LINGER: Duration = Duration::from_secs(3);
/// Bytes that leave while more are queued before the sender takes to the bulk path (W6.9). Lower: a large message
/// switches. Higher: bulk is slow for longer.
pub const BULK_AFTER_BYTES: u64 = 256 << 10;
/// Bytes of a connection's messages that have to wait for a packet to count as queueing (W6.9): a dozen packets. Lower: what leaves with
/// the next packets counts, and messages that come in small bursts end up on the slower path. Higher: as many do not come together,
/// where [`MESSAGE_WINDOW`] is reached before.
pub const MESSAGES_QUEUEING_BYTES: u64 = 16 << 10;
/// Round trips for which data has been queueing by then (W6.9). Lower: a burst that the window swallows switches.
pub const BULK_AFTER_ROUND_TRIPS: u32 = 4;
/// Queueing that stops for longer, and longer than two round trips, begins anew (W6.9). Lower: an application that writes
/// in turns with its disk never counts as bulk.
pub const BULK_GAP: Duration = Duration::from_millis(10);
/// Without queueing for so long, data returns to the first path (W6.9). Lower: it goes to and fro between two files.
/// Higher: messages after bulk take the slower path for longer.
pub const BULK_IDLE: Duration = Duration::from_millis(100);
/// Time without an ack after which probe time-outs on the bulk path mean that it is dead (W6.10). Inside a rack three of them
/// take 10 ms, for which a receiver on a busy host may not run. Lower: such a pause costs [`BULK_RETRY`]. Higher: data stands
/// still for longer.
pub const BULK_SILENCE: Duration = Duration::from_millis(100);
/// How long a bulk path that failed is left alone, doubled with each failure up to [`MAX_BULK_RETRY`] (W6.10). Lower: data
/// stands still again and again. Higher: a path that works again is not used.
pub const BULK_RETRY: Duration = Duration::from_secs(10);
/// Longest that a failed bulk path is left alone.
pub const MAX_BULK_RETRY: Duration = Duration::from_secs(300);

// Connections, streams, messages

/// Connections of one tunnel at a time: those of many applications of a host to one peer. An idle one takes 1 KiB of the engine's
/// memory. Lower: applications with a connection for each of their tasks are refused. Higher: what one peer makes us hold at rest,
/// now 16 MiB; what it has sent and nobody reads is bounded by [`TUNNEL_UNREAD_BYTES`].
pub const MAX_CONNECTIONS: usize = 16_384;
/// Bytes of a tunnel's connections that arrived and are not read, above which those end that have most of them (W5.22): as much as
/// the beginning's credit of a thousand connections. Lower: a thousand applications that pause for a second are ended. Higher: what
/// one peer makes us hold, besides what the windows of those that read fast have grown by.
pub const TUNNEL_UNREAD_BYTES: u64 = 512 << 20;
/// Packets of a tunnel from one sum of what is unread to the next; as many of the largest size are 9 MiB, by which the bound may be
/// passed. Lower: the sum, 100 µs with the most connections, costs more than the packets. Higher: more is held.
pub const UNREAD_LOOK_PACKETS: u64 = 1024;
/// Streams of each direction that a peer may have open in one connection.
pub const MAX_STREAMS: u64 = 128;
/// Streams that are over before the peer is told that it may open as many more, unless it is about to run out. Lower: a
/// STREAM_LIMIT for every short stream.
pub const STREAM_LIMIT_STEP: u64 = MAX_STREAMS / 8;
/// Bytes of credit of a new connection: what an application that does not read can make us hold. Two stream windows, so that
/// one stalled stream does not stop the others. How much a peer can make us hold in all, [`TUNNEL_UNREAD_BYTES`] says. Lower: messages wait for credit, see W5.13.
pub const CONNECTION_CREDIT_BYTES: u64 = 512 << 10;
/// Bytes of credit of a new stream: the product of 10 Gb/s and 200 µs. Lower: the first round trips of every stream wait for
/// credit and not for the congestion window.
pub const STREAM_CREDIT_BYTES: u64 = 256 << 10;
/// Bytes. A stream's window grows no further: the product of 1 Gb/s and 130 ms, or of 10 Gb/s and 13 ms. Lower: long fast paths
/// are not filled by one stream. Higher: memory.
pub const MAX_STREAM_CREDIT_BYTES: u64 = 16 << 20;
/// Bytes. A connection's window grows no further: two stream windows, as at the beginning.
pub const MAX_CONNECTION_CREDIT_BYTES: u64 = 2 * MAX_STREAM_CREDIT_BYTES;
/// Bytes by which the windows of all connections of a tunnel may have grown together. Lower: fewer connections at a time fill a
/// long path. Higher: what a peer can make us hold, when applications that read fast stop.
pub const TUNNEL_CREDIT_BYTES: u64 = 64 << 20;
/// Bytes that one stream holds for sending, acked and unacked, on a path that takes little at once. Lower: an application that writes
/// in large pieces is woken often. Higher: on short paths bulk goes through memory that the processor's cache does not hold.
pub const STREAM_SEND_BUFFER_BYTES: usize = 256 << 10;
/// Bytes. A stream holds for sending twice what may be in flight, that and the next, but no more than this: what the
/// peer's largest window could take.
pub const MAX_STREAM_SEND_BUFFER_BYTES: usize = MAX_STREAM_CREDIT_BYTES as usize;
/// Bytes of messages that a connection holds for sending, with the heads of their frames.
pub const MESSAGE_SEND_BUFFER_BYTES: usize = 256 << 10;
/// Messages unacked, and how far ahead a receiver takes them (W5.11): half of what the 16-bit number can tell apart. Lower: small
/// messages wait for acks while packets could leave; 4096 of 19 bytes are 68 packets.
pub const MESSAGE_WINDOW: u64 = 16_384;
/// Bytes of one message (W5.13). It is held whole at both ends before the first byte of it is read; what is larger should be a
/// stream. Higher: a message can wait for ever for credit, of which a quarter of a new connection's may be missing.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// Bytes of the largest message that goes in one frame (W5.13): fits the least datagram with every header.
pub const WHOLE_MESSAGE_BYTES: usize = 1024;
/// Bytes that parts of a message begin and end at multiples of (W5.13). Lower: more gaps to remember, at 16 bytes each. Higher:
/// more of each packet is left empty.
pub const MESSAGE_PART_UNIT_BYTES: usize = 64;
/// Bytes of unreliable datagrams that a connection holds in each direction, each counted with [`MESSAGE_OVERHEAD_BYTES`]; of
/// more, the oldest are dropped. Lower: bursts are lost at the ends and not on the path. Higher: what arrives is older.
pub const DATAGRAM_BUFFER_BYTES: usize = 64 << 10;
/// Bytes of a packet that are not for an unreliable datagram: header, tag, and the frame's type, connection and length.
pub const DATAGRAM_OVERHEAD_BYTES: usize = 9 + 16 + 1 + 8 + 2;
/// Packets. A lane that waits behind others goes first in one of so many. Lower: messages wait behind bulk more often. Higher:
/// bulk is slower while messages flow without end.
pub const LANE_SHARE_PACKETS: u8 = 8;
/// CONSUMED and MESSAGES_CONSUMED frames in one packet. Lower: told later where many streams are read at a time. Higher: crowds
/// out data.
pub const MAX_CONSUMED_FRAMES: usize = 4;
/// Bytes that a message counts against credit beside its payload (W5.9): what holding an empty one costs.
pub const MESSAGE_OVERHEAD_BYTES: u64 = 16;
/// Bytes of a reason (W5.14).
pub const MAX_REASON_BYTES: usize = 256;
/// Gaps in what arrived of a stream, more than which closes the tunnel. A sender makes at most one per packet in flight,
/// and those are at most [`MAX_FLIGHT_PACKETS`]; one that makes more wants our memory.
pub const MAX_STREAM_GAPS: usize = MAX_FLIGHT_PACKETS as usize;
/// Packets. Largest credit that can be configured or believed.
pub const MAX_PACKET_CREDIT: u32 = 4096;
/// How long after its last packet a tunnel gives room back that the next one makes anew. Lower: tunnels that are used now and then
/// pay for it each time. Higher: idle ones hold it for longer. More than [`KEEP_ALIVE`]: one with a connection does not rest.
pub const REST_AFTER: Duration = Duration::from_secs(15);

const _: () = assert!(REKEY_AFTER_PACKETS < REJECT_AFTER_PACKETS);
const _: () = assert!(REKEY_AFTER_TIME.as_nanos() < REJECT_AFTER_TIME.as_nanos());
const _: () = assert!(BULK_GAP.as_nanos() < BULK_IDLE.as_nanos());
const _: () = assert!(REPLAY_WINDOW_PACKETS.is_multiple_of(64));
const _: () = assert!(MAX_FLIGHT_PACKETS as u64 <= REPLAY_WINDOW_PACKETS && MAX_PACKET_CREDIT <= MAX_FLIGHT_PACKETS);
const _: () = assert!(MESSAGE_WINDOW < 1 << 15);
const _: () = assert!(WHOLE_MESSAGE_BYTES + 64 < MIN_DATAGRAM_BYTES as usize);
const _: () = assert!(MAX_MESSAGE_BYTES.is_multiple_of(MESSAGE_PART_UNIT_BYTES));
// Credit comes in steps of half a window: the largest message is below, so that it never waits for ever.
const _: () = assert!(MAX_MESSAGE_BYTES as u64 + MESSAGE_OVERHEAD_BYTES < CONNECTION_CREDIT_BYTES / 4);
const _: () = assert!(KEEP_ALIVE.as_nanos() * 3 <= IDLE_TIMEOUT.as_nanos());
const _: () = assert!(REST_AFTER.as_nanos() > KEEP_ALIVE.as_nanos());
