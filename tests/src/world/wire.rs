//! What is seen of a host's packets on the wire, without any key.

use std::collections::BTreeMap;

use pilot_common::wire::Header;

/// The packet numbers that a host has used (wire.md W4.2): each session's and epoch's only grow. Only the low 32 bits are in
/// the clear; no simulation comes near their end.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// The last, by the receiver's session id and the epoch bits.
    last: BTreeMap<(u32, u8), u32>,
}

impl Numbers {
    pub(super) fn on_sent(&mut self, header: Header) {
        let Header { receiver, epoch, word, .. } = header;
        let before = self.last.insert((receiver, epoch), word);
        assert!(before.is_none_or(|before| before < word), "number {word} after {before:?} to {receiver:08x}, {epoch}");
    }
}

#[cfg(test)]
mod tests {
    use pilot_common::wire::PacketType;

    use super::*;

    #[test]
    #[should_panic(expected = "number 7 after Some(7)")]
    fn a_number_used_twice_is_seen() {
        let header = |word| Header { packet_type: PacketType::Data, epoch: 0, receiver: 1, word };
        let mut numbers = Numbers::default();
        [5, 7].into_iter().for_each(|word| numbers.on_sent(header(word)));
        numbers.on_sent(Header { receiver: 2, ..header(7) });
        numbers.on_sent(Header { epoch: 1, ..header(7) });
        numbers.on_sent(header(7));
    }
}
