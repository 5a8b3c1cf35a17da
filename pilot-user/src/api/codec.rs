//! Frames of the local protocol (`docs/local-protocol.md` §1): bytes on the socket, and what they say.

use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Serialize};
use serde_json::{Value, json};

use super::limits::{MAX_DATA_BYTES, MAX_FRAME_BYTES};
use super::protocol::{Code, Error, Event, Id, Request, SESSION, ToApplication, ToNode};
use pilot_engine::limits::MAX_MESSAGE_BYTES;

const REQUEST: u8 = 0x01;
const RESULT: u8 = 0x02;
const ERROR: u8 = 0x03;
const EVENT: u8 = 0x04;
const MESSAGE: u8 = 0x10;
const DATAGRAM: u8 = 0x11;
const DATA: u8 = 0x12;
const FINISH: u8 = 0x13;
const CREDIT: u8 = 0x14;
const OPEN: u8 = 0x15;
const PART: u8 = 0x16;

/// Bytes of type and id.
const HEAD_BYTES: usize = 5;

/// Members of a request that are looked at to say which is wrong. Lower: those of `context_create` and some unknown ones are not all
/// looked at. Higher: a request that is wrong takes longer than what is right.
const MAX_MEMBERS: usize = 16;

/// What one end sends, as frames.
pub(crate) trait Frame: Sized {
    /// Appends it.
    fn encode(&self, out: &mut Vec<u8>);

    /// From a frame's type, id and body.
    ///
    /// # Errors
    /// What is wrong with it: with a request's number, if it is only that request that is not done.
    fn decode(kind: u8, id: u32, body: &[u8]) -> Result<Self, Unreadable>;
}

/// A frame that cannot be used.
#[derive(Debug)]
pub(crate) struct Unreadable {
    /// The request that is answered so; 0: the session ends (L1.1).
    pub(crate) request: u32,
    pub(crate) error: Error,
}

/// The next frame at the beginning of `bytes`, and how long it is with its length. `None`: more bytes are needed.
///
/// # Errors
/// L1.1: what was sent can be no frame, or is not one that the other end may send.
pub(crate) fn decode<F: Frame>(bytes: &[u8]) -> Result<Option<(F, usize)>, (Unreadable, usize)> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if !(HEAD_BYTES..=MAX_FRAME_BYTES).contains(&length) {
        let words = format!("a frame's length: given {length}, allowed: {HEAD_BYTES} to {MAX_FRAME_BYTES}");
        return Err((session(words), 4));
    }
    let Some(frame) = rest.get(..length) else { return Ok(None) };
    let [kind, a, b, c, d, body @ ..] = frame else { return Ok(None) };
    match F::decode(*kind, u32::from_be_bytes([*a, *b, *c, *d]), body) {
        Ok(frame) => Ok(Some((frame, 4 + length))),
        Err(unreadable) => Err((unreadable, 4 + length)),
    }
}

impl Frame for ToNode {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Request { request, what } => json(out, REQUEST, *request, what),
            Self::Message(id, body) => raw(out, MESSAGE, id.0, body),
            Self::Datagram(id, body) => raw(out, DATAGRAM, id.0, body),
            Self::Data(id, body) => raw(out, DATA, id.0, body),
            Self::Finish(id) => raw(out, FINISH, id.0, &[]),
            Self::Credit(id, bytes) => raw(out, CREDIT, id.0, &bytes.to_be_bytes()),
            Self::Open { stream, connection, unidirectional } => {
                let [a, b, c, d] = connection.0.to_be_bytes();
                raw(out, OPEN, stream.0, &[a, b, c, d, u8::from(*unidirectional)]);
            }
        }
    }

    fn decode(kind: u8, id: u32, body: &[u8]) -> Result<Self, Unreadable> {
        Ok(match kind {
            REQUEST if id == 0 => return Err(session("a request's id: given 0, allowed: any other")),
            REQUEST => Self::Request { request: id, what: request(id, body)? },
            MESSAGE => Self::Message(Id(id), message(body)?),
            DATAGRAM => Self::Datagram(Id(id), message(body)?),
            DATA => Self::Data(Id(id), data(body)?),
            FINISH => Self::Finish(Id(id)),
            CREDIT => Self::Credit(Id(id), credit(body)?),
            OPEN => match *body {
                [a, b, c, d, flags @ 0..=1] => Self::Open {
                    stream: Id(id),
                    connection: Id(u32::from_be_bytes([a, b, c, d])),
                    unidirectional: flags == 1,
                },
                _ => return Err(session("OPEN has a connection and flags of 0 or 1: five bytes")),
            },
            _ => return Err(session(format!("a frame of type {kind:#04x}, which no application sends"))),
        })
    }
}

impl Frame for ToApplication {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Result { request, value } => json(out, RESULT, *request, value),
            Self::Error { request, error } => json(out, ERROR, *request, error),
            Self::Event(id, event) => json(out, EVENT, id.0, event),
            Self::Message(id, body) => raw(out, MESSAGE, id.0, body),
            Self::Datagram(id, body) => raw(out, DATAGRAM, id.0, body),
            Self::Data(id, body) => raw(out, DATA, id.0, body),
            Self::Finish(id) => raw(out, FINISH, id.0, &[]),
            Self::Credit(id, bytes) => raw(out, CREDIT, id.0, &bytes.to_be_bytes()),
            Self::Part(id, body) => raw(out, PART, id.0, body),
        }
    }

    fn decode(kind: u8, id: u32, body: &[u8]) -> Result<Self, Unreadable> {
        Ok(match kind {
            RESULT => Self::Result { request: id, value: parse(body).map_err(session)? },
            ERROR => Self::Error { request: id, error: parse(body).map_err(session)? },
            EVENT => Self::Event(Id(id), parse::<Event>(body).map_err(session)?),
            MESSAGE => Self::Message(Id(id), message(body)?),
            DATAGRAM => Self::Datagram(Id(id), message(body)?),
            DATA => Self::Data(Id(id), data(body)?),
            FINISH => Self::Finish(Id(id)),
            CREDIT => Self::Credit(Id(id), credit(body)?),
            PART => Self::Part(Id(id), data(body)?),
            _ => return Err(session(format!("a frame of type {kind:#04x}, which no node sends"))),
        })
    }
}

/// L3.1: what is wrong with one request is its answer, and the session goes on.
fn request(id: u32, body: &[u8]) -> Result<Request, Unreadable> {
    let refuse = |code, words: String| Unreadable { request: id, error: Error::new(code, words) };
    let value: Value = parse(body).map_err(session)?;
    let op = value.get("op").and_then(Value::as_str).unwrap_or_default();
    if !Request::OPS.contains(&op) {
        let words = format!("op: given {op:?}, allowed: {}", Request::OPS.join(", "));
        return Err(refuse(Code::UnknownOp, words));
    }
    let wrong = |error| refuse(Code::Malformed, wrong_member(&value).unwrap_or_else(|| format!("{op}: {error}")));
    Request::deserialize(&value).map_err(wrong)
}

/// Which member of a request is of another type than it should be, and how. The library says of those that are missing which they are,
/// but of others not: one that is wrong is still so when it is alone.
fn wrong_member(request: &Value) -> Option<String> {
    let op = &request["op"];
    let members = request.as_object()?.iter().filter(|(name, _)| *name != "op").take(MAX_MEMBERS);
    members.into_iter().find_map(|(name, given)| {
        let error = Request::deserialize(&json!({"op": op, name: given})).err()?.to_string();
        (!error.starts_with("missing field")).then(|| format!("{}: `{name}`: {error}", op.as_str().unwrap_or_default()))
    })
}

fn raw(out: &mut Vec<u8>, kind: u8, id: u32, body: &[u8]) {
    out.extend_from_slice(&((HEAD_BYTES + body.len()) as u32).to_be_bytes());
    out.push(kind);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(body);
}

fn json(out: &mut Vec<u8>, kind: u8, id: u32, body: &impl Serialize) {
    let begin = out.len();
    raw(out, kind, id, &[]);
    // Strings, numbers and JSON itself can always be written into memory.
    let _ = serde_json::to_writer(&mut *out, body);
    let length = (out.len() - begin - 4) as u32;
    out[begin..begin + 4].copy_from_slice(&length.to_be_bytes());
}

/// How long the frame of a request is, behind its length.
pub(crate) fn request_bytes(what: &Request) -> usize {
    let mut out = Vec::new();
    json(&mut out, REQUEST, 0, what);
    out.len() - 4
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("JSON: {error}"))
}

fn message(body: &[u8]) -> Result<Vec<u8>, Unreadable> {
    if body.len() > MAX_MESSAGE_BYTES {
        return Err(session(format!("a message: given {} bytes, allowed: at most {MAX_MESSAGE_BYTES}", body.len())));
    }
    Ok(body.to_vec())
}

fn data(body: &[u8]) -> Result<Vec<u8>, Unreadable> {
    if !(1..=MAX_DATA_BYTES).contains(&body.len()) {
        return Err(session(format!("a piece of data: given {} bytes, allowed: 1 to {MAX_DATA_BYTES}", body.len())));
    }
    Ok(body.to_vec())
}

fn credit(body: &[u8]) -> Result<u32, Unreadable> {
    body.try_into().map(u32::from_be_bytes).map_err(|_| session("CREDIT has a number of bytes: four bytes"))
}

fn session(words: impl Into<String>) -> Unreadable {
    Unreadable { request: SESSION.0, error: Error::malformed(words) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, id: u32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        raw(&mut out, kind, id, body);
        out
    }

    fn there_and_back<F: Frame + PartialEq + std::fmt::Debug>(frame: &F) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        for cut in 0..bytes.len() {
            assert!(matches!(decode::<F>(&bytes[..cut]), Ok(None)), "cut at {cut}");
        }
        bytes.push(0xff);
        let (decoded, length) = decode::<F>(&bytes).unwrap().unwrap();
        assert_eq!((&decoded, length), (frame, bytes.len() - 1));
    }

    #[test]
    fn what_is_said_is_understood() {
        let (id, error) = (Id(0x300), Error::new(Code::PortInUse, "port 7: in use"));
        for frame in [
            ToNode::Request { request: 7, what: Request::Hello { version: 1, name: None } },
            ToNode::Request { request: 8, what: Request::Connect { peer: "b".into(), port: 7, timeout_ms: Some(1) } },
            ToNode::Request { request: 9, what: Request::Close { connection: id, code: 3, reason: "ä".into() } },
            ToNode::Request { request: u32::MAX, what: Request::Stats { connection: Some(id) } },
            ToNode::Message(id, vec![]),
            ToNode::Datagram(id, vec![1; MAX_MESSAGE_BYTES]),
            ToNode::Data(id, vec![1; MAX_DATA_BYTES]),
            ToNode::Finish(id),
            ToNode::Credit(SESSION, 1 << 20),
            ToNode::Open { stream: Id::new(1, 3, true), connection: Id::new(1, 3, false), unidirectional: true },
        ] {
            there_and_back(&frame);
        }
        for frame in [
            ToApplication::Result { request: 7, value: json!({"version": 1}) },
            ToApplication::Error { request: 0, error: error.clone() },
            ToApplication::Event(id, Event::Closed(error)),
            ToApplication::Event(id, Event::Consumed(super::super::protocol::Consumed::Messages(4))),
            ToApplication::Event(SESSION, Event::TunnelUp { peer: "b".into() }),
            ToApplication::Data(id, vec![2]),
        ] {
            there_and_back(&frame);
        }
    }

    /// L1.1, L3.1: what ends the session, and what only one request.
    #[test]
    fn what_is_wrong_is_said_in_words() {
        let too_long = [&(MAX_FRAME_BYTES as u32 + 1).to_be_bytes()[..], &[0; 8]].concat();
        for (bytes, request, code, words) in [
            (vec![0, 0, 0, 4, 1, 0, 0, 0], 0, Code::Malformed, "given 4, allowed: 5 to 1048576"),
            (too_long, 0, Code::Malformed, "given 1048577"),
            (frame(0x99, 1, b""), 0, Code::Malformed, "0x99"),
            (frame(RESULT, 1, b"{}"), 0, Code::Malformed, "no application sends"),
            (frame(REQUEST, 0, b"{}"), 0, Code::Malformed, "given 0"),
            (frame(REQUEST, 5, b"{\"op\":"), 0, Code::Malformed, "EOF"),
            (frame(REQUEST, 5, b"[]"), 5, Code::UnknownOp, "allowed: hello, connect"),
            (frame(REQUEST, 5, br#"{"op":"dial"}"#), 5, Code::UnknownOp, "given \"dial\""),
            (frame(REQUEST, 5, br#"{"op":"connect","peer":"b"}"#), 5, Code::Malformed, "connect: missing field `port`"),
            (
                frame(REQUEST, 5, br#"{"op":"listen","port":70000}"#),
                5,
                Code::Malformed,
                "listen: `port`: invalid value",
            ),
            (frame(MESSAGE, 2, &vec![0; MAX_MESSAGE_BYTES + 1]), 0, Code::Malformed, "65537"),
            (frame(DATA, 2, b""), 0, Code::Malformed, "given 0 bytes"),
            (frame(CREDIT, 2, b"abc"), 0, Code::Malformed, "four bytes"),
            (frame(OPEN, 2, &[0, 0, 0, 0, 2]), 0, Code::Malformed, "five bytes"),
        ] {
            let (wrong, _) = decode::<ToNode>(&bytes).unwrap_err();
            assert_eq!((wrong.request, wrong.error.code), (request, code), "{}", wrong.error);
            assert!(wrong.error.words.contains(words), "{words:?} is not in {}", wrong.error);
        }
    }

    /// L3.1: with the member's name, whichever of them it is.
    #[test]
    fn a_member_of_another_type_is_named() {
        let good = [
            json!({"op": "hello", "version": 1, "name": "x"}),
            json!({"op": "connect", "peer": "b", "port": 7, "timeout_ms": 1}),
            json!({"op": "listen", "port": 7}),
            json!({"op": "unlisten", "port": 7}),
            json!({"op": "accept", "connection": 1}),
            json!({"op": "refuse", "connection": 1, "code": 1, "reason": ""}),
            json!({"op": "close", "connection": 1, "code": 1, "reason": ""}),
            json!({"op": "reset", "stream": 1, "code": 1}),
            json!({"op": "stop", "stream": 1, "code": 1}),
            json!({"op": "peers"}),
            json!({"op": "connections"}),
            json!({"op": "stats", "connection": 1}),
            json!({"op": "subscribe"}),
            json!({"op": "introduce", "endpoint": "192.0.2.1:4242", "key": "pilot1-"}),
            json!({"op": "context_create", "name": "x", "kind": "log", "document": "", "read": [], "write": [], "durable": true}),
            json!({"op": "context_delete", "name": "x"}),
            json!({"op": "context_change", "peer": "b", "name": "x", "change": {"append": ""}, "if_stamp": "0:0"}),
            json!({"op": "context_follow", "peer": "b", "name": "x", "filter": "", "latest": true}),
            json!({"op": "context_unfollow", "following": 1}),
        ];
        let read = |value: &Value| request(5, value.to_string().as_bytes());
        assert_eq!(good.each_ref().map(|good| good["op"].as_str().unwrap()), Request::OPS);
        for good in &good {
            assert!(read(good).is_ok(), "{good}");
            // Whatever a document is, its kind is what says so.
            let names = good.as_object().unwrap().keys().filter(|name| !["op", "document"].contains(&name.as_str()));
            for name in names {
                for other in [json!([[]]), json!(-1), json!({"x": 1})] {
                    let mut wrong = good.clone();
                    wrong[name] = other;
                    let Err(Unreadable { request: 5, error }) = read(&wrong) else { unreachable!("{wrong}") };
                    assert!(error.words.contains(&format!("`{name}`: ")), "{wrong}: {error}");
                }
            }
        }
    }

    /// L6.1: the names that programs look at.
    #[test]
    fn codes_have_their_names() {
        for (code, name) in
            [(Code::PortInUse, "port_in_use"), (Code::ClosedHere, "closed_here"), (Code::Context, "context")]
        {
            assert_eq!(serde_json::to_value(code).unwrap(), name);
        }
        assert_eq!(serde_json::from_value::<Code>(json!("of a later version")).unwrap(), Code::Internal);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode::<ToNode>(&bytes);
            let _ = decode::<ToApplication>(&bytes);
        }
    }
}
