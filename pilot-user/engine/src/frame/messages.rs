//! MESSAGEs one behind the other, as both ends keep them and packets carry them.

use std::ops::Range;

use super::{MESSAGE, WITH_LENGTH};
use crate::byte_queue::ByteQueue;
use crate::codec::{Reader, Writer, varint_len};

/// Varints below have one byte.
const ONE_BYTE_VARINTS: u64 = 0x40;
/// Bytes of a MESSAGE before its bytes, where connection and length have one byte each.
const SHORT_MESSAGE_HEAD: usize = 5;
/// And at most.
const MESSAGE_HEAD_MOST: usize = 1 + 8 + 2 + 8;

/// Appends what [`write_message`](super::write_message) writes.
#[inline]
pub(crate) fn push_message(out: &mut ByteQueue, connection: u64, number: u16, payload: &[u8]) {
    let [high, low] = number.to_be_bytes();
    if connection < ONE_BYTE_VARINTS && (payload.len() as u64) < ONE_BYTE_VARINTS {
        // Nearly all: a head of one size.
        return out.push([&[MESSAGE | WITH_LENGTH, connection as u8, high, low, payload.len() as u8], payload]);
    }
    let mut head = [0; MESSAGE_HEAD_MOST];
    let mut writer = Writer::new(&mut head);
    // It has room for all, and no id or length is above what a varint can say.
    let _ = writer.u8(MESSAGE | WITH_LENGTH);
    let _ = writer.varint(connection);
    let _ = writer.u16(number);
    let _ = writer.varint(payload.len() as u64);
    let length = writer.len();
    out.push([&head[..length], payload]);
}

/// Where the bytes of a MESSAGE with its length are, at the beginning of these; `None`: something else is there, or nothing.
#[inline]
pub(crate) fn message_at(bytes: &[u8]) -> Option<Range<usize>> {
    if let [kind, connection, _, _, length, ..] = *bytes
        && kind == MESSAGE | WITH_LENGTH
        && u64::from(connection) < ONE_BYTE_VARINTS
        && u64::from(length) < ONE_BYTE_VARINTS
    {
        // Nearly all.
        return Some(SHORT_MESSAGE_HEAD..SHORT_MESSAGE_HEAD + usize::from(length));
    }
    let mut reader = Reader::new(bytes);
    reader.u8().filter(|kind| *kind == MESSAGE | WITH_LENGTH)?;
    reader.varint()?;
    reader.u16()?;
    let length = usize::try_from(reader.varint()?).ok()?;
    let head = bytes.len() - reader.left();
    Some(head..head.checked_add(length)?)
}

/// MESSAGEs one behind the other.
#[derive(Default)]
pub(crate) struct InOrder {
    pub(crate) count: u32,
    /// Of all of them, and of what they carry.
    pub(crate) bytes: usize,
    pub(crate) payload: u64,
}

/// Those at the beginning of these bytes that are of this connection, have numbers in a row from `next` on, and short heads.
pub(crate) fn messages_in_order(bytes: &[u8], connection: u64, next: u16) -> InOrder {
    let mut all = InOrder::default();
    if connection >= ONE_BYTE_VARINTS {
        return all;
    }
    while let Some([kind, id, high, low, length]) = bytes.get(all.bytes..).and_then(|rest| rest.first_chunk()).copied()
    {
        let number = next.wrapping_add(all.count as u16);
        let head = [MESSAGE | WITH_LENGTH, connection as u8, (number >> 8) as u8, number as u8];
        let end = all.bytes + SHORT_MESSAGE_HEAD + usize::from(length);
        if [kind, id, high, low] != head || u64::from(length) >= ONE_BYTE_VARINTS || end > bytes.len() {
            break;
        }
        all.bytes = end;
        all.count += 1;
    }
    all.payload = (all.bytes - SHORT_MESSAGE_HEAD * all.count as usize) as u64;
    all
}

/// The number of the MESSAGE at the beginning of these bytes, of this connection and with its length.
pub(crate) fn message_number(bytes: &[u8], connection: u64) -> Option<u16> {
    let at = 1 + varint_len(connection);
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}
