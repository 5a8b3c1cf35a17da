//! The fixed header that begins every datagram (`docs/wire.md` §1).

/// The wire version this code speaks (W1.1).
pub const VERSION: u8 = 1;
/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 9;
/// Bytes of an AEAD tag.
pub const TAG_LEN: usize = 16;
/// Bytes of an initiation, always: what it is padded to (W3.1).
pub const INITIATION_LEN: usize = 1200;
/// Least bytes of a response: header, ephemeral key, tag, mac1 and mac2.
pub const RESPONSE_MIN_LEN: usize = HEADER_LEN + 32 + TAG_LEN + 16 + 16;
/// Most bytes of a response: no answer is longer than what it answers (W3.1).
pub const RESPONSE_MAX_LEN: usize = INITIATION_LEN;
/// Bytes of a cookie reply: header, nonce, sealed cookie.
pub const COOKIE_LEN: usize = HEADER_LEN + 24 + 16 + TAG_LEN;
/// Least bytes of a data packet: header, one frame byte, tag (W4.10).
pub const DATA_MIN_LEN: usize = HEADER_LEN + 1 + TAG_LEN;
/// Bytes of a stateless reset: less than the shortest data packet, so that resets cannot answer each other.
pub const RESET_LEN: usize = HEADER_LEN + 16;

const _: () = assert!(RESET_LEN < DATA_MIN_LEN);

/// What a datagram is. Types 0 and 7 are reserved (W1.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PacketType {
    /// Handshake message 1.
    Initiation = 1,
    /// Handshake message 2.
    Response = 2,
    /// The answer to an initiation under load.
    Cookie = 3,
    /// Sealed frames.
    Data = 4,
    /// The answer to a data packet whose session is unknown.
    Reset = 5,
    /// A datagram behind a relay prefix.
    Relayed = 6,
}

impl PacketType {
    /// The type in a first byte, or `None` for a reserved one.
    #[inline(always)]
    pub const fn from_first_byte(first: u8) -> Option<Self> {
        match (first >> 2) & 0b111 {
            1 => Some(Self::Initiation),
            2 => Some(Self::Response),
            3 => Some(Self::Cookie),
            4 => Some(Self::Data),
            5 => Some(Self::Reset),
            6 => Some(Self::Relayed),
            _ => None,
        }
    }

    /// Whether a datagram of this type may have `length` bytes (W1.4).
    #[inline(always)]
    pub const fn allows_length(self, length: usize) -> bool {
        match self {
            Self::Initiation => length == INITIATION_LEN,
            Self::Response => length >= RESPONSE_MIN_LEN && length <= RESPONSE_MAX_LEN,
            Self::Cookie => length == COOKIE_LEN,
            Self::Data => length >= DATA_MIN_LEN,
            Self::Reset => length == RESET_LEN,
            Self::Relayed => length >= 5 + HEADER_LEN,
        }
    }
}

/// The wire version in a first byte.
#[inline(always)]
pub const fn version(first: u8) -> u8 {
    first >> 5
}

/// The fixed header, decoded. Bytes on the wire: `version:3 type:3 epoch:2`, receiver session id, word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What follows.
    pub packet_type: PacketType,
    /// The two low bits of the key epoch; 0 except in data packets (W1.3).
    pub epoch: u8,
    /// The session id that the receiver chose; 0 in an initiation.
    pub receiver: u32,
    /// Sender's session id in a handshake, low 32 bits of the packet number in a data packet.
    pub word: u32,
}

/// Why bytes are not a datagram of this version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// Fewer than nine bytes.
    Short,
    /// Another wire version.
    Version,
    /// A reserved type.
    Type,
    /// A length that the type does not allow.
    Length,
}

impl Header {
    /// Reads the header of a whole datagram and checks version, type and length (W1.1, W1.4, W1.5).
    #[inline]
    pub fn parse(datagram: &[u8]) -> Result<Self, HeaderError> {
        let Some((bytes, _)) = datagram.split_first_chunk::<HEADER_LEN>() else {
            return Err(HeaderError::Short);
        };
        Self::decode(*bytes, datagram.len())
    }

    /// As [`Header::parse`], from the first nine bytes and the datagram's length.
    #[inline(always)]
    pub fn decode(bytes: [u8; HEADER_LEN], datagram_len: usize) -> Result<Self, HeaderError> {
        let [first, r0, r1, r2, r3, w0, w1, w2, w3] = bytes;
        if version(first) != VERSION {
            return Err(HeaderError::Version);
        }
        let Some(packet_type) = PacketType::from_first_byte(first) else {
            return Err(HeaderError::Type);
        };
        if !packet_type.allows_length(datagram_len) {
            return Err(HeaderError::Length);
        }
        Ok(Self {
            packet_type,
            epoch: first & 0b11,
            receiver: u32::from_be_bytes([r0, r1, r2, r3]),
            word: u32::from_be_bytes([w0, w1, w2, w3]),
        })
    }

    /// The header's bytes.
    #[inline]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let first = VERSION << 5 | (self.packet_type as u8) << 2 | (self.epoch & 0b11);
        let [r0, r1, r2, r3] = self.receiver.to_be_bytes();
        let [w0, w1, w2, w3] = self.word.to_be_bytes();
        [first, r0, r1, r2, r3, w0, w1, w2, w3]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of wire.md §1: the least and most bytes of each type (W1.4; of a data packet W4.10).
    const BOUNDS: [(PacketType, usize, usize); 6] = [
        (PacketType::Initiation, 1200, 1200),
        (PacketType::Response, 89, 1200),
        (PacketType::Cookie, 65, 65),
        (PacketType::Data, 26, usize::MAX),
        (PacketType::Reset, 25, 25),
        (PacketType::Relayed, 14, usize::MAX),
    ];

    #[test]
    fn headers_go_there_and_back() {
        for (packet_type, least, _) in BOUNDS {
            for epoch in 0..4 {
                let header = Header { packet_type, epoch, receiver: 0x0102_0304, word: 0xfffe_fdfc };
                assert_eq!(Header::decode(header.to_bytes(), least), Ok(header));
                let first = 1 << 5 | (packet_type as u8) << 2 | epoch;
                assert_eq!(header.to_bytes(), [first, 1, 2, 3, 4, 0xff, 0xfe, 0xfd, 0xfc]);
            }
        }
    }

    #[test]
    fn every_type_has_its_lengths() {
        for (packet_type, least, most) in BOUNDS {
            for len in 0..1300 {
                let inside = (least..=most).contains(&len);
                assert_eq!(packet_type.allows_length(len), inside, "{packet_type:?} of {len}");
            }
            assert_eq!(
                packet_type.allows_length(65_507),
                most == usize::MAX,
                "{packet_type:?} of the largest datagram"
            );
        }
    }

    #[test]
    fn every_length_of_every_type_is_parsed_or_refused() {
        for (packet_type, least, most) in BOUNDS {
            let header = Header { packet_type, epoch: 0, receiver: 7, word: 9 };
            let mut datagram = [0; 1300];
            datagram[..HEADER_LEN].copy_from_slice(&header.to_bytes());
            for len in 0..datagram.len() {
                let expected = match len {
                    ..HEADER_LEN => Err(HeaderError::Short),
                    _ if (least..=most).contains(&len) => Ok(header),
                    _ => Err(HeaderError::Length),
                };
                assert_eq!(Header::parse(&datagram[..len]), expected, "{packet_type:?} of {len}");
            }
        }
    }

    /// W1.1, W1.5: of the 256 first bytes, those of this version and a type in use are understood.
    #[test]
    fn every_first_byte_has_its_answer() {
        for first in 0..=u8::MAX {
            let bytes = [first, 0, 0, 0, 0, 0, 0, 0, 0];
            let error = Header::decode(bytes, 0).expect_err("nothing is of no length");
            let expected = match (first >> 5, first >> 2 & 7) {
                (1, 0 | 7) => HeaderError::Type,
                (1, _) => HeaderError::Length,
                _ => HeaderError::Version,
            };
            assert_eq!(error, expected, "{first:#010b}");
        }
    }
}
