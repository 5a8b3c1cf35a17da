//! Every bound of shared contexts: what it counts, why it is what it is, and what breaks on either side of it.

use pilot_engine::limits::MAX_MESSAGE_BYTES;

/// Bytes of a document as it is sent whole. It is held in memory at every follower, and sent again when one has fallen too
/// far behind. Higher: what one context can make each of them hold.
pub const MAX_DOCUMENT_BYTES: usize = 16 << 20;
/// Bytes of the longest message of the protocol: a snapshot of the largest document, and its head.
pub const MAX_LONG_MESSAGE_BYTES: usize = MAX_DOCUMENT_BYTES + 64;
/// Objects and arrays within each other in a JSON document. Below the parser's own 128, so that a document that grew by
/// patches can still be read by who receives it whole; and walking one never takes much of the stack.
pub const MAX_JSON_DEPTH: usize = 64;
/// Bytes of a context's name.
pub const MAX_NAME_BYTES: usize = 128;
/// Bytes of an interest filter.
pub const MAX_FILTER_BYTES: usize = 1024;
/// Contexts that one connection follows at a time. Bounds what a peer makes an owner hold.
pub const MAX_FOLLOWINGS: usize = 256;
/// Answers that wait to be sent to one peer; while so many do, no more of its messages are taken, and it runs out of credit.
pub const MAX_ANSWERS: usize = 64;
/// Changes that a follower has not yet applied, as far as its owner knows (C3.5): the queue of a slow one. Lower: a follower
/// far away waits for its own answers. Higher: a slow one that wants the latest value gets more that is older.
pub const WINDOW_MESSAGES: u64 = 64;
/// Connections that are given what there is for them in one pass of the worker; as many datagrams as it sends in one, so that
/// each leaves while what was touched for it is in the cache. Lower: more passes for one change. Higher: ten thousand followers of
/// one context hold up everything else that the worker does, for tens of milliseconds.
pub const FAN_OUT: usize = 64;
/// Changes after which a follower says how many it has applied: half of [`WINDOW_MESSAGES`], so that the owner never waits
/// for a follower that is not slow.
pub const HAVE_AFTER_MESSAGES: u64 = WINDOW_MESSAGES / 2;
/// Changes that an owner keeps of one context, so that a follower that was away gets them and not the document.
pub const HISTORY_ENTRIES: usize = 4096;
/// Bytes of those. Lower: a follower of a large document that was away for a moment gets it whole. Higher: memory.
pub const HISTORY_BYTES: usize = 4 << 20;
/// Versions between two hashes of the document (C3.8). Lower: hashing large documents costs more than changing them. Higher:
/// a divergence is noticed later.
pub const CHECK_EVERY_VERSIONS: u64 = 64;
/// Bytes of a document that are hashed for each of its versions, averaged from one hash to the next: of documents above 16 KiB, hashes
/// are further apart. Higher: a small change of a large document costs what its hash does. Lower: a divergence is noticed later.
pub const CHECK_BYTES_A_VERSION: usize = 256;
/// Writes that wait for the disk, of one durable context. More are refused. Lower: writers that come in bursts are refused.
pub const MAX_WAITING_WRITES: usize = 1024;
/// Changes without an answer that one connection has asked for.
pub const MAX_REQUESTS: usize = 1024;

const _: () = assert!(MAX_DOCUMENT_BYTES > MAX_MESSAGE_BYTES);
const _: () = assert!(MAX_JSON_DEPTH < 128);
const _: () = assert!(HAVE_AFTER_MESSAGES < WINDOW_MESSAGES);
