//! Messages: whole, in order, each delivered once, in a lane of their own ahead of streams (`docs/wire.md` W5.11). Small ones
//! go in one frame, the usual case; larger ones in parts (W5.13).

mod receive;
mod send;

use std::ops::Range;

use crate::limits::MESSAGE_OVERHEAD_BYTES;
pub(crate) use receive::MessageReceiver;
pub(crate) use send::{MessageSender, Part, Run};

/// What a message counts against connection credit (W5.9).
pub(crate) const fn cost(length: usize) -> u64 {
    length as u64 + MESSAGE_OVERHEAD_BYTES
}

fn wide(range: &Range<usize>) -> Range<u64> {
    range.start as u64..range.end as u64
}

/// The number nearest to `next` whose low 16 bits are `low` (W5.11).
fn nearest(low: u16, next: u64) -> u64 {
    let ahead = low.wrapping_sub(next as u16);
    if ahead < 1 << 15 {
        next + u64::from(ahead)
    } else {
        // Behind; numbers begin at 0, so that what would lie before that is far ahead, and refused there.
        let behind = (1 << 16) - u64::from(ahead);
        next.checked_sub(behind).unwrap_or(next + u64::from(ahead))
    }
}

#[cfg(test)]
mod tests;
