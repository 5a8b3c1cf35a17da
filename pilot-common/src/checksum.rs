//! The Internet checksum (RFC 1071): of the IPv4 header, and of UDP over IPv6.

use crate::udp;

/// The checksum of an IPv4 header whose checksum field is zero.
#[inline]
pub fn ipv4_header(header: &[u8; crate::ipv4::LEN]) -> u16 {
    finish(sum(header))
}

/// The checksum of a UDP datagram over IPv6 (RFC 8200 §8.1), of which `header` is the UDP header with its checksum field
/// zero. Never 0, which would mean that there is none.
#[inline]
pub fn udp_ipv6(source: &[u8; 16], destination: &[u8; 16], header: &[u8; udp::LEN], payload: &[u8]) -> u16 {
    let udp_len = (header.len() + payload.len()) as u64;
    let pseudo = sum(source) + sum(destination) + udp_len + u64::from(udp::PROTOCOL);
    match finish(pseudo + sum(header) + sum(payload)) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// The bytes as big-endian 32-bit words, zero-padded, summed. RFC 1071 sums 16-bit words; 2^16 is 1 modulo 2^16 - 1, so
/// wider words give the same once folded, in half the additions. 64 bits cannot overflow below 2^34 bytes.
#[inline]
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let whole: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    whole + u64::from(u32::from_be_bytes(last))
}

/// The complement of the sum folded to 16 bits.
#[inline]
fn finish(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(!finish(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }

    /// RFC 1071 §1, word by word: pairs of bytes, an odd one padded with zero on its right.
    #[test]
    fn every_length_as_the_definition_has_it() {
        let bytes: Vec<u8> = (0..1500_u32).map(|i| (i * 167 + 91) as u8).collect();
        for len in 0..bytes.len() {
            let words = bytes[..len].chunks(2).map(|pair| [pair[0], pair.get(1).copied().unwrap_or(0)]);
            let total: u32 = words.map(|word| u32::from(u16::from_be_bytes(word))).sum();
            let once = (total & 0xffff) + (total >> 16);
            let folded = (once & 0xffff) + (once >> 16);
            assert_eq!(u32::from(!finish(sum(&bytes[..len]))), folded, "{len} bytes");
        }
    }

    #[test]
    fn a_known_ipv4_header() {
        // The example that textbooks share: 192.168.0.1 to 192.168.0.199, UDP, 115 bytes, checksum 0xb861.
        let mut header = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(ipv4_header(&header), 0xb861);
        header[10..12].copy_from_slice(&0xb861_u16.to_be_bytes());
        assert_eq!(ipv4_header(&header), 0, "a header with its checksum sums to nothing");
    }

    #[test]
    fn udp_over_ipv6_by_hand() {
        // Words: 2001 0db8 0001, 2001 0db8 0002, length 000a, protocol 0011, ports 0001 0002, length 000a, payload 6869.
        let [mut source, mut destination] = [[0; 16]; 2];
        source[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        destination[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        (source[15], destination[15]) = (1, 2);
        let header = [0, 1, 0, 2, 0, 10, 0, 0];
        let total = 2 * (0x2001_u32 + 0x0db8) + 1 + 2 + 10 + 17 + 1 + 2 + 10 + 0x6869;
        let folded = (total & 0xffff) + (total >> 16);
        assert_eq!(u32::from(udp_ipv6(&source, &destination, &header, b"hi")), 0xffff - folded);
    }

    #[test]
    fn zero_is_sent_as_all_ones() {
        let header = [0, 0, 0, 0, 0, 10, 0, 0];
        let before = udp_ipv6(&[0; 16], &[0; 16], &header, &[0, 0]);
        assert_eq!(udp_ipv6(&[0; 16], &[0; 16], &header, &before.to_be_bytes()), 0xffff);
    }
}
