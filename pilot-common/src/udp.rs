//! UDP (RFC 768).

/// Bytes of a header.
pub const LEN: usize = 8;
/// The protocol number in an IP header.
pub const PROTOCOL: u8 = 17;

/// A UDP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// From which port.
    pub source: u16,
    /// To which port.
    pub destination: u16,
    /// Bytes of header and payload.
    pub length: u16,
    /// The checksum; 0 over IPv4: there is none.
    pub checksum: u16,
}

impl Header {
    /// Reads the header's bytes.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; LEN]) -> Self {
        let [s0, s1, d0, d1, l0, l1, c0, c1] = bytes;
        Self {
            source: u16::from_be_bytes([s0, s1]),
            destination: u16::from_be_bytes([d0, d1]),
            length: u16::from_be_bytes([l0, l1]),
            checksum: u16::from_be_bytes([c0, c1]),
        }
    }

    /// The header's bytes.
    #[inline]
    pub const fn to_bytes(self) -> [u8; LEN] {
        let ([s0, s1], [d0, d1]) = (self.source.to_be_bytes(), self.destination.to_be_bytes());
        let ([l0, l1], [c0, c1]) = (self.length.to_be_bytes(), self.checksum.to_be_bytes());
        [s0, s1, d0, d1, l0, l1, c0, c1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_rfc_768_puts_them() {
        let header = Header { source: 0x0102, destination: 0x0304, length: 0x0506, checksum: 0x0708 };
        assert_eq!(header.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Header::from_bytes(header.to_bytes()), header);
    }
}
