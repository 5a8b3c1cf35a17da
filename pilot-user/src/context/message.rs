//! The messages between an owner and a client, as they are written (`docs/context.md` §2).

use std::fmt;
use std::str::FromStr;

use pilot_engine::codec::{Reader, put_varint};
use serde::{Deserialize, Serialize};

use super::change::ChangeError;
use super::document::Kind;
use super::limits::{MAX_FILTER_BYTES, MAX_NAME_BYTES};
use super::pointer;

/// A version of a context: which life of it, and how many changes since that began (C1.3). In text `INCARNATION:VERSION`, the
/// incarnation in 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Stamp {
    /// Drawn when the owner began to hold the context; a durable one keeps it.
    pub incarnation: u64,
    /// 0 for the document it began with.
    pub version: u64,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{}", self.incarnation, self.version)
    }
}

impl From<Stamp> for String {
    fn from(stamp: Stamp) -> Self {
        stamp.to_string()
    }
}

/// A text that is no [`Stamp`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a version is INCARNATION:VERSION, as it was given")]
pub struct NoStamp;

impl FromStr for Stamp {
    type Err = NoStamp;

    fn from_str(text: &str) -> Result<Self, NoStamp> {
        let (incarnation, version) = text.split_once(':').ok_or(NoStamp)?;
        let incarnation = u64::from_str_radix(incarnation, 16).map_err(|_| NoStamp)?;
        Ok(Self { incarnation, version: version.parse().map_err(|_| NoStamp)? })
    }
}

impl TryFrom<String> for Stamp {
    type Error = NoStamp;

    fn try_from(text: String) -> Result<Self, NoStamp> {
        text.parse()
    }
}

/// The peer broke the protocol: the connection is closed with this reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub &'static str);

/// Why an owner does not do what it was asked (C2.5). Nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{words}")]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// The version that the owner is at, where the peer may know it; else 0.
    pub version: u64,
    /// For people.
    pub words: String,
}

/// The kinds of [`Refusal`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalCode {
    /// There is no such context, or this peer may not know of it.
    Unknown = 1,
    /// This peer may not write.
    NotAllowed = 2,
    /// The condition on the version does not hold: somebody else wrote.
    Conflict = 3,
    /// The change cannot be read, or is not for this kind of document.
    Malformed = 4,
    /// The change does not fit the document as it is.
    DoesNotApply = 5,
    /// The document, or what describes it, would exceed a limit.
    TooLarge = 6,
    /// Too much is waiting.
    Busy = 7,
    /// What is asked for cannot be had of this kind of document.
    Unsupported = 8,
    /// The owner cannot keep it: its disk failed.
    Storage = 9,
}

impl RefusalCode {
    const ALL: [Self; 9] = [
        Self::Unknown,
        Self::NotAllowed,
        Self::Conflict,
        Self::Malformed,
        Self::DoesNotApply,
        Self::TooLarge,
        Self::Busy,
        Self::Unsupported,
        Self::Storage,
    ];
}

impl Refusal {
    pub(super) fn new(code: RefusalCode, version: u64, words: impl Into<String>) -> Self {
        Self { code, version, words: words.into() }
    }

    pub(super) fn of_change(error: &ChangeError, version: u64) -> Self {
        let code = match error {
            ChangeError::Malformed(_) | ChangeError::Kind { .. } => RefusalCode::Malformed,
            ChangeError::DoesNotApply(_) => RefusalCode::DoesNotApply,
            ChangeError::TooLong | ChangeError::TooDeep => RefusalCode::TooLarge,
        };
        Self::new(code, version, error.to_string())
    }
}

/// What a client says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Request<'a> {
    Follow { number: u64, wanted: Wanted<'a> },
    Unfollow { number: u64 },
    Have { number: u64, messages: u64 },
    Change { request: u64, base: Option<Stamp>, name: &'a str, change: &'a [u8] },
}

/// What is followed, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    pub(super) filter: Option<&'a str>,
    pub(super) latest: bool,
    pub(super) have: Option<Stamp>,
}

/// What an owner says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply<'a> {
    Snapshot {
        number: u64,
        stamp: Stamp,
        kind: Kind,
        document: &'a [u8],
    },
    /// From the follower's version to the one `span` later.
    Delta {
        number: u64,
        span: u64,
        low_version: u16,
        change: &'a [u8],
    },
    Check {
        number: u64,
        version: u64,
        hash: [u8; 8],
    },
    Ended {
        number: u64,
        refusal: Refusal,
    },
    Done {
        request: u64,
        stamp: Stamp,
    },
    Refused {
        request: u64,
        refusal: Refusal,
    },
}

const FOLLOW: u8 = 0x01;
const UNFOLLOW: u8 = 0x02;
const HAVE: u8 = 0x03;
const CHANGE: u8 = 0x04;
const SNAPSHOT: u8 = 0x20;
const DELTA: u8 = 0x21;
const DELTA_SPAN: u8 = 0x22;
const CHECK: u8 = 0x23;
const ENDED: u8 = 0x24;
const DONE: u8 = 0x25;
const REFUSED: u8 = 0x26;

/// FOLLOW's flags, of which CHANGE has the first.
const WITH_STAMP: u8 = 1;
const WITH_FILTER: u8 = 2;
const LATEST: u8 = 4;

impl<'a> Request<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Follow { number, wanted } => {
                out.push(FOLLOW);
                put_varint(out, *number);
                let flags = [
                    wanted.have.map_or(0, |_| WITH_STAMP),
                    wanted.filter.map_or(0, |_| WITH_FILTER),
                    if wanted.latest { LATEST } else { 0 },
                ];
                out.push(flags.into_iter().sum());
                put_stamp(out, wanted.have);
                if let Some(filter) = wanted.filter {
                    put_counted(out, filter.as_bytes());
                }
                out.extend_from_slice(wanted.name.as_bytes());
            }
            Self::Unfollow { number } => {
                out.push(UNFOLLOW);
                put_varint(out, *number);
            }
            Self::Have { number, messages } => {
                out.push(HAVE);
                put_varint(out, *number);
                put_varint(out, *messages);
            }
            Self::Change { request, base, name, change } => {
                out.push(CHANGE);
                put_varint(out, *request);
                out.push(base.map_or(0, |_| WITH_STAMP));
                put_stamp(out, *base);
                put_counted(out, name.as_bytes());
                out.extend_from_slice(change);
            }
        }
    }

    pub(super) fn decode(message: &'a [u8]) -> Result<Self, Violation> {
        let mut reader = Reader::new(message);
        let decoded = match reader.u8() {
            Some(FOLLOW) => Self::decode_follow(&mut reader),
            Some(UNFOLLOW) => reader.varint().map(|number| Self::Unfollow { number }),
            Some(HAVE) => (|| Some(Self::Have { number: reader.varint()?, messages: reader.varint()? }))(),
            Some(CHANGE) => (|| {
                let (request, flags) = (reader.varint()?, reader.u8()?);
                let base = stamp_if(&mut reader, flags)?;
                let name = name(reader.counted()?)?;
                Some(Self::Change { request, base, name, change: reader.rest() })
            })(),
            _ => None,
        };
        decoded.filter(|_| reader.is_empty()).ok_or(Violation("a message that is no request"))
    }

    fn decode_follow(reader: &mut Reader<'a>) -> Option<Self> {
        let (number, flags) = (reader.varint()?, reader.u8()?);
        let have = stamp_if(reader, flags)?;
        let filter = if flags & WITH_FILTER == 0 { None } else { Some(filter(reader.counted()?)?) };
        let name = name(reader.rest())?;
        Some(Self::Follow { number, wanted: Wanted { name, filter, latest: flags & LATEST != 0, have } })
    }
}

impl<'a> Reply<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Snapshot { number, stamp, kind, document } => {
                out.push(SNAPSHOT);
                put_varint(out, *number);
                put_stamp(out, Some(*stamp));
                out.push(*kind as u8);
                out.extend_from_slice(document);
            }
            Self::Delta { number, span, low_version, change } => {
                out.push(if *span == 1 { DELTA } else { DELTA_SPAN });
                put_varint(out, *number);
                if *span != 1 {
                    put_varint(out, *span);
                }
                out.extend_from_slice(&low_version.to_be_bytes());
                out.extend_from_slice(change);
            }
            Self::Check { number, version, hash } => {
                out.push(CHECK);
                put_varint(out, *number);
                put_varint(out, *version);
                out.extend_from_slice(hash);
            }
            Self::Ended { number, refusal } => {
                out.push(ENDED);
                put_varint(out, *number);
                put_refusal(out, refusal);
            }
            Self::Done { request, stamp } => {
                out.push(DONE);
                put_varint(out, *request);
                put_stamp(out, Some(*stamp));
            }
            Self::Refused { request, refusal } => {
                out.push(REFUSED);
                put_varint(out, *request);
                put_refusal(out, refusal);
            }
        }
    }

    pub(super) fn decode(message: &'a [u8]) -> Result<Self, Violation> {
        let mut reader = Reader::new(message);
        let decoded = Self::decode_fields(&mut reader);
        decoded.filter(|_| reader.is_empty()).ok_or(Violation("a message that is no owner's"))
    }

    fn decode_fields(reader: &mut Reader<'a>) -> Option<Self> {
        let (code, id) = (reader.u8()?, reader.varint()?);
        Some(match code {
            SNAPSHOT => Self::Snapshot {
                number: id,
                stamp: stamp(reader)?,
                kind: Kind::from_code(reader.u8()?)?,
                document: reader.rest(),
            },
            DELTA => Self::Delta { number: id, span: 1, low_version: reader.u16()?, change: reader.rest() },
            DELTA_SPAN => {
                let span = reader.varint()?;
                Self::Delta { number: id, span, low_version: reader.u16()?, change: reader.rest() }
            }
            CHECK => Self::Check { number: id, version: reader.varint()?, hash: reader.array()? },
            ENDED => Self::Ended { number: id, refusal: refusal(reader)? },
            DONE => Self::Done { request: id, stamp: stamp(reader)? },
            REFUSED => Self::Refused { request: id, refusal: refusal(reader)? },
            _ => return None,
        })
    }
}

fn put_counted(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_stamp(out: &mut Vec<u8>, stamp: Option<Stamp>) {
    if let Some(Stamp { incarnation, version }) = stamp {
        out.extend_from_slice(&incarnation.to_be_bytes());
        put_varint(out, version);
    }
}

fn stamp(reader: &mut Reader<'_>) -> Option<Stamp> {
    Some(Stamp { incarnation: u64::from_be_bytes(reader.array()?), version: reader.varint()? })
}

fn stamp_if(reader: &mut Reader<'_>, flags: u8) -> Option<Option<Stamp>> {
    if flags & WITH_STAMP == 0 { Some(None) } else { stamp(reader).map(Some) }
}

fn put_refusal(out: &mut Vec<u8>, refusal: &Refusal) {
    out.push(refusal.code as u8);
    put_varint(out, refusal.version);
    out.extend_from_slice(refusal.words.as_bytes());
}

fn refusal(reader: &mut Reader<'_>) -> Option<Refusal> {
    let code = reader.u8()?;
    let code = RefusalCode::ALL.into_iter().find(|known| *known as u8 == code)?;
    let version = reader.varint()?;
    Some(Refusal { code, version, words: String::from_utf8_lossy(reader.rest()).into_owned() })
}

/// C1.1: a context's name: 1 to [`MAX_NAME_BYTES`] bytes without control characters.
pub(crate) fn name(bytes: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(bytes).ok()?;
    let good = !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.contains(char::is_control);
    good.then_some(name)
}

/// An interest filter: a JSON pointer of at most [`MAX_FILTER_BYTES`].
pub(crate) fn filter(bytes: &[u8]) -> Option<&str> {
    let filter = std::str::from_utf8(bytes).ok()?;
    (filter.len() <= MAX_FILTER_BYTES && pointer::is_pointer(filter)).then_some(filter)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(request: &Request<'_>) {
        let mut out = vec![];
        request.encode(&mut out);
        assert_eq!(Request::decode(&out).as_ref(), Ok(request));
    }

    fn round_trip_reply(reply: &Reply<'_>) {
        let mut out = vec![];
        reply.encode(&mut out);
        assert_eq!(Reply::decode(&out).as_ref(), Ok(reply));
    }

    /// C2.1, C2.3: what is written is read again.
    #[test]
    fn messages_round_trip() {
        let stamp = Stamp { incarnation: u64::MAX, version: 70_000 };
        for have in [None, Some(stamp)] {
            for filter in [None, Some("/a~1b/0")] {
                let wanted = Wanted { name: "plan", filter, latest: filter.is_some(), have };
                round_trip(&Request::Follow { number: 64, wanted });
            }
            round_trip(&Request::Change { request: 9, base: have, name: "plan", change: b"\x04x" });
        }
        round_trip(&Request::Unfollow { number: 3 });
        round_trip(&Request::Have { number: 3, messages: 1 << 40 });
        round_trip_reply(&Reply::Snapshot { number: 0, stamp, kind: Kind::Log, document: b"x" });
        for span in [0, 1, 2, 1 << 30] {
            round_trip_reply(&Reply::Delta { number: 1, span, low_version: 0xabcd, change: b"\x04y" });
        }
        round_trip_reply(&Reply::Check { number: 1, version: 7, hash: *b"12345678" });
        let refusal = Refusal::new(RefusalCode::Conflict, 7, "no");
        round_trip_reply(&Reply::Ended { number: 1, refusal: refusal.clone() });
        round_trip_reply(&Reply::Refused { request: 1, refusal });
        round_trip_reply(&Reply::Done { request: 1, stamp });
    }

    /// C2.2: names, filters, and messages to the last byte.
    #[test]
    fn what_is_no_request_is_a_violation() {
        for bad in [
            &b""[..],
            b"\x00",
            b"\x01\x00\x00",             // no name
            b"\x01\x00\x00a\x00b",       // a control character
            b"\x01\x00\x02\x01xname",    // a filter that is no pointer
            b"\x02\x01\x01",             // a byte too many
            b"\x03\x01",                 // too short
            b"\x04\x01\x01\x00\x00name", // half a stamp
            b"\x20\x01",                 // an owner's
        ] {
            assert!(Request::decode(bad).is_err(), "{bad:?}");
        }
        let long = [&b"\x01\x00\x00"[..], &[b'a'; MAX_NAME_BYTES + 1]].concat();
        assert!(Request::decode(&long).is_err() && Request::decode(&long[..long.len() - 1]).is_ok());
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40), code in 0u8..0x28) {
            let bytes = [&[code][..], &bytes].concat();
            if let Ok(request) = Request::decode(&bytes) {
                let mut out = vec![];
                request.encode(&mut out);
                prop_assert_eq!(Request::decode(&out), Ok(request));
            }
            let _ = Reply::decode(&bytes);
        }
    }
}
