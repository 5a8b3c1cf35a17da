//! Ethernet II with at most one 802.1Q tag (IEEE 802.3 §3.2, 802.1Q §9).

use crate::cursor::Cursor;
use crate::stats::PassReason;

/// Bytes of an untagged header.
pub const LEN: usize = 14;
/// Bytes that a tag adds.
pub const TAG_LEN: usize = 4;
/// Ethertype of IPv4.
pub const IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Ethertype that announces an 802.1Q tag.
pub const VLAN: u16 = 0x8100;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What a link header says about what follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// The 802.1Q tag's control information: priority 3 bits, drop eligible 1, VLAN id 12.
    pub tag: Option<u16>,
    /// What follows the header. A second tag stays here.
    pub ethertype: u16,
}

impl Kind {
    /// Reads it from the start of a frame.
    #[inline(always)]
    pub fn parse<C: Cursor + ?Sized>(frame: &C) -> Result<Self, PassReason> {
        let ethertype = u16::from_be_bytes(frame.read(LEN - 2).ok_or(PassReason::Truncated)?);
        if ethertype != VLAN {
            return Ok(Self { tag: None, ethertype });
        }
        let [c0, c1, t0, t1] = frame.read::<TAG_LEN>(LEN).ok_or(PassReason::Truncated)?;
        Ok(Self { tag: Some(u16::from_be_bytes([c0, c1])), ethertype: u16::from_be_bytes([t0, t1]) })
    }

    /// Bytes of the header: 14 or 18.
    #[inline(always)]
    pub const fn header_len(self) -> usize {
        if self.tag.is_some() { LEN + TAG_LEN } else { LEN }
    }
}

/// A link header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// To whom.
    pub destination: Mac,
    /// From whom.
    pub source: Mac,
    /// What follows.
    pub kind: Kind,
}

impl Header {
    /// Writes the header into the last [`Kind::header_len`] bytes of `room` and returns what is before them, or `None` when
    /// there is too little room.
    #[inline]
    pub fn write_back<'a>(&self, room: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let (rest, ethertype) = room.split_last_chunk_mut::<2>()?;
        *ethertype = self.kind.ethertype.to_be_bytes();
        let rest = match self.kind.tag {
            None => rest,
            Some(tag) => {
                let (rest, bytes) = rest.split_last_chunk_mut::<TAG_LEN>()?;
                let ([v0, v1], [c0, c1]) = (VLAN.to_be_bytes(), tag.to_be_bytes());
                *bytes = [v0, v1, c0, c1];
                rest
            }
        };
        let (rest, source) = rest.split_last_chunk_mut::<6>()?;
        *source = self.source;
        let (rest, destination) = rest.split_last_chunk_mut::<6>()?;
        *destination = self.destination;
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAGGED: Kind = Kind { tag: Some(0x6007), ethertype: IPV6 };
    const PLAIN: Kind = Kind { tag: None, ethertype: IPV6 };

    fn header(kind: Kind) -> Header {
        Header { destination: [1; 6], source: [2; 6], kind }
    }

    #[test]
    fn bytes_are_in_the_standard_order() {
        let mut room = [0; 20];
        assert_eq!(header(TAGGED).write_back(&mut room).map(|rest| rest.len()), Some(2));
        assert_eq!(room, [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x81, 0, 0x60, 7, 0x86, 0xdd]);
        assert_eq!(Kind::parse(&room[2..]), Ok(TAGGED));
        assert_eq!(TAGGED.header_len(), 18);
        assert_eq!(header(PLAIN).write_back(&mut room).map(|rest| rest.len()), Some(6));
        assert_eq!(room[6..], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x86, 0xdd]);
        assert_eq!(Kind::parse(&room[6..]), Ok(PLAIN));
        assert_eq!(PLAIN.header_len(), 14);
    }

    #[test]
    fn needs_all_its_bytes() {
        for kind in [PLAIN, TAGGED] {
            let mut room = [0; 18];
            let unused = header(kind).write_back(&mut room).expect("18 bytes are enough").len();
            for len in 0..kind.header_len() {
                assert_eq!(Kind::parse(&room[unused..][..len]), Err(PassReason::Truncated));
                assert!(header(kind).write_back(&mut [0; 18][..len]).is_none());
            }
        }
    }

    #[test]
    fn a_second_tag_is_left_as_ethertype() {
        let mut frame = [0; 22];
        frame[12..18].copy_from_slice(&[0x81, 0, 0, 1, 0x81, 0]);
        assert_eq!(Kind::parse(&frame[..]).map(|kind| kind.ethertype), Ok(VLAN));
    }
}
