//! Every bound between applications and their node: what it counts, why it is what it is, and what breaks on either side of it.

use std::time::Duration;

use pilot_engine::limits::MAX_MESSAGE_BYTES;

/// Bytes of a frame behind its length (local-protocol.md L1.1). Lower: documents of contexts in requests need more of them. Higher:
/// what every one of [`MAX_APPLICATIONS`] can make the node hold.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// Characters of the name that an application gives itself, for the record. Lower: programs are not told apart. Higher: lines that
/// nobody reads to their end.
pub const APPLICATION_NAME_CHARS: usize = 64;
/// Bytes of a DATA or PART: as much as a message, so that neither waits behind much of the other.
pub const MAX_DATA_BYTES: usize = MAX_MESSAGE_BYTES;
/// Bytes that a frame costs beside its body (L5.1): what holding an empty one does.
pub const FRAME_OVERHEAD_BYTES: u32 = 64;
/// Bytes that a flow may be ahead of its reader (L5.1). Lower: a stream waits for the application between its pieces; the largest
/// message must fit beside what is not given back yet. Higher: memory for every flow that is not read.
pub const FLOW_CREDIT_BYTES: u32 = 256 << 10;
/// Bytes that are owed to a flow before they are given back (L5.2). Lower: more CREDIT. Higher: a sender waits for the second half of
/// its credit.
pub const GIVE_BACK_AFTER_BYTES: u32 = 64 << 10;
/// Bytes that an application's sending flows may hold together (L5.3). Lower: 64 flows that stand still stop the others of the same
/// application. Higher: what every application can make the node hold.
pub const CLIENT_CREDIT_BYTES: u32 = 16 << 20;
/// Bytes that a worker owes an application before it gives them back; all workers together owe at most a quarter of
/// [`CLIENT_CREDIT_BYTES`].
pub const CLIENT_GIVE_BACK_AFTER_BYTES: u32 = 256 << 10;
/// Bytes of data that wait for an application (L2.4). Lower: a fast one waits for its worker. Higher: memory for every slow one.
pub const OUTBOX_BYTES: usize = 1 << 20;
/// Frames that wait for an application, data and others (L2.4): connections that are offered and end must be told. Lower: an application
/// with many connections is ended when their peer restarts. Higher: memory for one that does not read.
pub const OUTBOX_FRAMES: usize = 1 << 16;
/// Frames of an application that wait for a worker, which takes them in every pass. With more, its socket is not read. Higher: they gain
/// nothing, as a worker takes [`COMMANDS_A_PASS`].
pub const INBOX_FRAMES: usize = 4096;
/// Frames of applications that a worker takes in one pass. Lower: more passes for nothing. Higher: packets wait for longer.
pub const COMMANDS_A_PASS: usize = 256;
/// Requests of an application without an answer (L1.3).
pub const MAX_REQUESTS: usize = 1024;
/// Applications at a time (L2.2), each with a socket: a descriptor, and 20 KiB.
pub const MAX_APPLICATIONS: usize = 4096;
/// Connections of one application (L2.2).
pub const MAX_CONNECTIONS: usize = 16_384;
/// Contexts that one application follows at one worker, each with a copy and a connection of its own. Lower: agents that follow much
/// are refused. Higher: what one application can make the node hold; and a tunnel's connections are for all.
pub const MAX_FOLLOWINGS: usize = 256;
/// Contexts that a node holds. Lower: agents share one where each would have its own. Higher: memory, which nobody gives back whose
/// application is gone: contexts outlive it.
pub const MAX_CONTEXTS: usize = 1024;
/// Bytes of changes that one application has asked for and that were not answered; as a session's other data. Lower: an application
/// that writes much waits for answers. Higher: what a slow owner makes the node hold.
pub const MAX_CHANGE_BYTES: usize = CLIENT_CREDIT_BYTES as usize;
/// Connections that `connections` lists, at most; of the others it says how many there are. Lower: operators see fewer. Higher: the
/// list outgrows a frame, and a worker takes longer for it than packets should wait, 1 µs each.
pub const MAX_LISTED: usize = 1024;
/// Connections that wait on a port for their application (L3.4), as a socket's backlog. Lower: bursts are refused. Higher: peers wait for
/// what will not come.
pub const MAX_BACKLOG: usize = 128;
/// First of the ports that `listen` chooses from.
pub const FIRST_EPHEMERAL_PORT: u16 = 49_152;
/// Ports below are those of services; only the node's own uid listens on them (L3.3).
pub const FIRST_USER_PORT: u16 = 1024;
/// Unreliable datagrams that wait in an application for who receives them; more are dropped. Lower: bursts are lost in it. Higher: what
/// is received is older.
pub const MAX_DATAGRAMS: usize = 256;
/// Bytes of the request or response of a call, which is held whole (L7.1); what is larger should be a stream.
pub const MAX_CALL_BYTES: usize = 16 << 20;
/// Messages of a topic that wait for one of its subscribers, beside its connection's credit (L8.3). Lower: who pauses misses some.
/// Higher: memory for who does not come back, at most 64 MiB now.
pub const TOPIC_QUEUE: usize = 1024;
/// How long a topic waits for a subscriber whose queue is full (L8.3). Lower: a busy host's subscribers miss messages. Higher: one
/// that does not read stops the others for as long.
pub const TOPIC_SLOW_AFTER: Duration = Duration::from_millis(100);
/// Subscribers of a topic. Higher: publishing one message takes longer than anybody expects of it.
pub const MAX_SUBSCRIBERS: usize = 1024;
/// How long an application may take to say hello (L1.2). Lower: a host under load loses some. Higher: who says nothing holds a place
/// among [`MAX_APPLICATIONS`] for longer.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long `connect` waits unless it is told (L3.2): as long as the engine does for a tunnel.
pub const CONNECT_TIMEOUT: Duration = pilot_engine::limits::CONNECT_TIMEOUT;
/// How long what was sent may take to arrive at a `close`, and what arrived may wait for credit at the end of a connection (L4.1).
pub const LINGER: Duration = Duration::from_secs(5);
/// How soon an application looks again for a node that is gone (`Node::attach_and_reconnect`). Lower: thousands of them take its
/// host's time when it starts. Higher: they go on later.
pub const REATTACH_PAUSE: Duration = Duration::from_millis(200);
/// How often a closing connection looks whether all has arrived, which no event tells. Lower: passes for nothing. Higher: `close` takes
/// as much longer.
pub const CLOSE_POLL: Duration = Duration::from_millis(1);

/// What the largest message costs.
pub const MAX_MESSAGE_COST: u32 = MAX_MESSAGE_BYTES as u32 + FRAME_OVERHEAD_BYTES;

// A reader that owes just less than it gives back leaves room for the largest message: no sender waits for ever.
const _: () = assert!(FLOW_CREDIT_BYTES - GIVE_BACK_AFTER_BYTES >= MAX_MESSAGE_COST);
const _: () = assert!(GIVE_BACK_AFTER_BYTES < FLOW_CREDIT_BYTES / 2);
const _: () = assert!(MAX_FRAME_BYTES > MAX_MESSAGE_BYTES + 5);
