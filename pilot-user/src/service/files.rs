//! Files: one stream a file on [`super::FILES_PORT`]. The sender writes a head, the bytes, and the end; the receiver answers
//! on the same stream when the file is on its disk, with what it has, or why not.
//!
//! Head and answer are JSON behind a 32-bit big-endian length.

use std::collections::{BTreeMap, VecDeque};

use pilot_engine::{ConnectionHandle, Endpoint, Instant, OperationError, Read, StreamId};
use serde::{Deserialize, Serialize};

use super::disk::{Disk, FileId, Job, Outcome, Written, is_plain_name};

/// Bytes of a head or an answer: a name, two numbers, a digest.
pub const MAX_HEAD_BYTES: usize = 4096;
/// Bytes handed to the disk at once.
const PIECE_BYTES: usize = 64 << 10;

/// Files that one worker numbers before it reaches the numbers of the next: more than a process lives for.
const FILES_OF_ONE_WORKER_BITS: u32 = 48;

/// What the sender says first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    /// The file's name, without a path.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What the receiver says last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The file is there.
    Received {
        /// Bytes written.
        bytes: u64,
        /// SHA-256 of what was written, in hexadecimal.
        sha256: String,
    },
    /// The file is not there.
    Refused {
        /// Why.
        reason: String,
    },
}

/// A file that arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReceivedFile {
    /// Its name.
    pub name: String,
    /// Where it is, how long it is, what is in it.
    pub written: Written,
}

/// Encodes a head or an answer.
pub fn encode(value: &impl Serialize) -> Vec<u8> {
    // Serialization of these types fails on nothing: strings and numbers.
    let json = serde_json::to_vec(value).unwrap_or_default();
    [&(json.len() as u32).to_be_bytes()[..], &json].concat()
}

/// Decodes a head or an answer from the beginning of `bytes`: the value, and how long it was. `Ok(None)`: more is needed.
///
/// # Errors
/// In words, when it cannot be one.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<Option<(T, usize)>, String> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_HEAD_BYTES {
        return Err(format!("a head of {length} bytes: at most {MAX_HEAD_BYTES} are allowed"));
    }
    let Some(json) = rest.get(..length) else { return Ok(None) };
    let value = serde_json::from_slice(json).map_err(|error| format!("malformed head: {error}"))?;
    Ok(Some((value, 4 + length)))
}

/// Receives files and answers for them.
pub struct FileReceiver {
    disk: Disk,
    next_id: FileId,
    transfers: BTreeMap<Key, Transfer>,
    /// Transfers that stopped because the disk had no room for more jobs.
    stuck: VecDeque<Key>,
    /// Files to abandon when there is room to say so.
    abandoned: VecDeque<FileId>,
}

type Key = (ConnectionHandle, StreamId);

enum Transfer {
    /// The head's bytes so far.
    Head(Vec<u8>),
    /// Under way.
    Body(Body),
    /// Everything came; the last piece is not yet with the disk.
    Finishing { id: FileId, head: Head, last: Vec<u8> },
    /// Everything is with the disk.
    Waiting { id: FileId, head: Head },
    /// What is left of the answer.
    Answering(Vec<u8>),
}

/// A file whose bytes come.
struct Body {
    id: FileId,
    head: Head,
    /// Bytes read from the stream so far.
    received: u64,
    /// The last of them, not yet with the disk: its first `filled` bytes. A datagram's worth at a time would cost the disk
    /// a system call each.
    piece: Vec<u8>,
    filled: usize,
}

/// What became of a step.
enum Next {
    /// Another step may go on at once.
    Go(Transfer),
    /// The peer or its reader must do something first.
    Wait(Transfer),
    /// The disk must do something first.
    Stuck(Transfer),
    Over,
}

impl FileReceiver {
    /// Receives into the disk's directory, which the workers of a node share: a file's id has the worker in it.
    pub fn new(disk: Disk, worker: usize) -> Self {
        Self {
            disk,
            next_id: (worker as FileId) << FILES_OF_ONE_WORKER_BITS,
            transfers: BTreeMap::new(),
            stuck: VecDeque::new(),
            abandoned: VecDeque::new(),
        }
    }

    /// Goes on with a stream as far as it can.
    pub fn serve(&mut self, endpoint: &mut Endpoint, now: Instant, key: Key) {
        let mut transfer = self.transfers.remove(&key).unwrap_or(Transfer::Head(Vec::new()));
        loop {
            let next = match transfer {
                Transfer::Head(bytes) => self.read_head(endpoint, now, key, bytes),
                Transfer::Body(body) => self.read_body(endpoint, now, key, body),
                Transfer::Answering(rest) => answer(endpoint, now, key, rest),
                Transfer::Finishing { id, head, last } => self.finish(id, head, last),
                waiting @ Transfer::Waiting { .. } => Next::Wait(waiting),
            };
            match next {
                Next::Go(next) => transfer = next,
                Next::Wait(waiting) => {
                    self.transfers.insert(key, waiting);
                    return;
                }
                Next::Stuck(waiting) => {
                    self.transfers.insert(key, waiting);
                    self.stuck.push_back(key);
                    return;
                }
                Next::Over => return,
            }
        }
    }

    /// Reads what the head's length says and no byte of the body.
    fn read_head(&mut self, endpoint: &mut Endpoint, now: Instant, key: Key, mut bytes: Vec<u8>) -> Next {
        loop {
            match decode::<Head>(&bytes) {
                Err(reason) => return refuse(reason),
                Ok(Some((head, _))) if !is_plain_name(&head.name) => {
                    return refuse(format!("{:?} is not a plain file name", head.name));
                }
                Ok(Some((head, _))) => {
                    if !self.disk.has_room() {
                        return Next::Stuck(Transfer::Head(bytes));
                    }
                    self.next_id += 1;
                    return match self.disk.try_send(Job::Create(self.next_id, head.name.clone())) {
                        Ok(()) => Next::Go(Transfer::Body(Body {
                            id: self.next_id,
                            head,
                            received: 0,
                            piece: vec![0; PIECE_BYTES],
                            filled: 0,
                        })),
                        Err(_) => refuse("the disk thread is gone".into()),
                    };
                }
                Ok(None) => {}
            }
            let wanted = match bytes.first_chunk::<4>() {
                Some(length) => 4 + u32::from_be_bytes(*length) as usize - bytes.len(),
                None => 4 - bytes.len(),
            };
            let mut more = vec![0; wanted];
            match endpoint.read(now, key.0, key.1, &mut more) {
                Ok(Read::Bytes(length)) => bytes.extend_from_slice(&more[..length]),
                Ok(Read::Blocked) => return Next::Wait(Transfer::Head(bytes)),
                Ok(Read::End) => return refuse("the stream ended before the head did".into()),
                Err(_) => return Next::Over,
            }
        }
    }

    fn read_body(&mut self, endpoint: &mut Endpoint, now: Instant, key: Key, mut body: Body) -> Next {
        loop {
            if body.filled == PIECE_BYTES {
                if !self.disk.has_room() {
                    // What is not read stays in the stream, and its sender runs out of credit.
                    return Next::Stuck(Transfer::Body(body));
                }
                let piece = std::mem::replace(&mut body.piece, vec![0; PIECE_BYTES]);
                body.filled = 0;
                // There was room, and nobody else sends.
                if self.disk.try_send(Job::Write(body.id, piece)).is_err() {
                    return refuse("the disk thread is gone".into());
                }
            }
            match endpoint.read(now, key.0, key.1, &mut body.piece[body.filled..]) {
                Ok(Read::Bytes(length)) => {
                    body.received += length as u64;
                    body.filled += length;
                }
                Ok(Read::Blocked) => return Next::Wait(Transfer::Body(body)),
                Ok(Read::End) if body.received == body.head.bytes => {
                    body.piece.truncate(body.filled);
                    return Next::Go(Transfer::Finishing { id: body.id, head: body.head, last: body.piece });
                }
                Ok(Read::End) => {
                    self.abandon(body.id);
                    return refuse(format!("{} bytes came of {} announced", body.received, body.head.bytes));
                }
                Err(_) => {
                    self.abandon(body.id);
                    return Next::Over;
                }
            }
        }
    }

    /// Hands the last piece and the end to the disk.
    fn finish(&mut self, id: FileId, head: Head, last: Vec<u8>) -> Next {
        if !self.disk.has_room() {
            return Next::Stuck(Transfer::Finishing { id, head, last });
        }
        match self.disk.try_send(Job::Finish(id, last)) {
            Ok(()) => Next::Wait(Transfer::Waiting { id, head }),
            Err(_) => refuse("the disk thread is gone".into()),
        }
    }

    /// Handles what the disk has to say. Whether anything was done; with a file that is there now.
    pub fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> (bool, Option<ReceivedFile>) {
        if let Some(outcome) = self.disk.outcome() {
            return (true, self.on_outcome(endpoint, now, outcome));
        }
        if !self.disk.has_room() {
            return (false, None);
        }
        if let Some(id) = self.abandoned.pop_front() {
            self.abandon(id);
            return (true, None);
        }
        match self.stuck.pop_front() {
            Some(key) if self.transfers.contains_key(&key) => {
                self.serve(endpoint, now, key);
                (true, None)
            }
            popped => (popped.is_some(), None),
        }
    }

    fn on_outcome(&mut self, endpoint: &mut Endpoint, now: Instant, outcome: Outcome) -> Option<ReceivedFile> {
        let of_it = |transfer: &Transfer| transfer.file_id() == Some(outcome.id);
        // `None`: its connection is over.
        let key = self.transfers.iter().find(|(_, transfer)| of_it(transfer)).map(|(key, _)| *key)?;
        let head = match self.transfers.remove(&key)? {
            Transfer::Body(Body { head, .. }) | Transfer::Finishing { head, .. } | Transfer::Waiting { head, .. } => {
                head
            }
            Transfer::Head(_) | Transfer::Answering(_) => return None,
        };
        let (answer, file) = match outcome.result {
            Ok(written) => {
                let answer = Answer::Received { bytes: written.bytes, sha256: written.sha256.clone() };
                (answer, Some(ReceivedFile { name: head.name, written }))
            }
            Err(reason) => (Answer::Refused { reason }, None),
        };
        self.transfers.insert(key, Transfer::Answering(encode(&answer)));
        self.serve(endpoint, now, key);
        file
    }

    /// A connection is over: its files will not be completed.
    pub fn forget(&mut self, connection: ConnectionHandle) {
        let of_it: Vec<Key> = self.transfers.keys().filter(|(of, _)| *of == connection).copied().collect();
        for key in of_it {
            if let Some(id) = self.transfers.remove(&key).and_then(|transfer| transfer.file_id()) {
                self.abandon(id);
            }
        }
    }

    fn abandon(&mut self, id: FileId) {
        if self.disk.try_send(Job::Abandon(id)).is_err() {
            self.abandoned.push_back(id);
        }
    }
}

impl Transfer {
    fn file_id(&self) -> Option<FileId> {
        match self {
            Self::Body(Body { id, .. }) | Self::Finishing { id, .. } | Self::Waiting { id, .. } => Some(*id),
            Self::Head(_) | Self::Answering(_) => None,
        }
    }
}

fn refuse(reason: String) -> Next {
    Next::Go(Transfer::Answering(encode(&Answer::Refused { reason })))
}

/// Writes what is left of an answer, and then the end. What the sender still sends stays unread.
fn answer(endpoint: &mut Endpoint, now: Instant, key: Key, mut rest: Vec<u8>) -> Next {
    while !rest.is_empty() {
        match endpoint.write(now, key.0, key.1, &rest) {
            Ok(length) => {
                rest.drain(..length);
            }
            Err(OperationError::Blocked) => return Next::Wait(Transfer::Answering(rest)),
            Err(_) => return Next::Over,
        }
    }
    // An error means that it is over already, which its own event tells.
    let _ = endpoint.finish(now, key.0, key.1);
    Next::Over
}
