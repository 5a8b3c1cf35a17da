//! IP addresses as 16 bytes, and prefixes of them.

use core::fmt;
use core::net::{IpAddr, Ipv6Addr};
use core::str::FromStr;

/// An IPv6 address, or an IPv4 address as v4-mapped (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2): one key type for both.
///
/// Aligned, so that the XDP program moves it as two words, not as sixteen bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C, align(8))]
pub struct Address([u8; 16]);

/// Bits that the mapping puts before an IPv4 prefix.
const MAPPED_BITS: u8 = 96;

/// The two kinds of address, with the IP version as value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Family {
    /// IPv4, v4-mapped.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

impl Address {
    /// An IPv4 address, from its octets.
    #[inline(always)]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self((0xffff << 32 | u32::from_be_bytes(octets) as u128).to_be_bytes())
    }

    /// An IPv6 or v4-mapped address, from its octets.
    #[inline(always)]
    pub const fn from_v6(octets: [u8; 16]) -> Self {
        Self(octets)
    }

    /// The sixteen octets: the address as a map's key.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        self.0
    }

    /// Which kind of address it is.
    #[inline(always)]
    pub const fn family(self) -> Family {
        // As a number: to compare slices would be a call, or a loop, in the XDP program.
        if self.to_bits() >> 32 == 0xffff { Family::V4 } else { Family::V6 }
    }

    /// The address for which a source is answerable: the whole of IPv4, and of IPv6 the first 64 bits, because a host chooses
    /// the others as it likes (RFC 4291 §2.5.4).
    #[inline(always)]
    pub const fn site(self) -> Self {
        match self.family() {
            Family::V4 => self,
            Family::V6 => Self((self.to_bits() & !(u64::MAX as u128)).to_be_bytes()),
        }
    }

    const fn to_bits(self) -> u128 {
        u128::from_be_bytes(self.0)
    }
}

impl From<IpAddr> for Address {
    #[inline]
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::from_v4(ip.octets()),
            IpAddr::V6(ip) => Self::from_v6(ip.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    #[inline]
    fn from(address: Address) -> Self {
        Ipv6Addr::from(address.0).to_canonical()
    }
}

/// The addresses that share their first bits, as in `10.0.0.0/8` or `2001:db8::/32`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Prefix {
    address: Address,
    bits: u8,
}

impl Prefix {
    /// The prefix of `bits` bits (IPv4: at most 32, IPv6: at most 128) that `ip` begins with. No bit of `ip` may be set
    /// beyond them: `10.1.2.3/8` is as likely a slip for one host as meant as the whole network.
    pub fn new(ip: IpAddr, bits: u8) -> Result<Self, PrefixError> {
        let (limit, shift) = if ip.is_ipv4() { (32, MAPPED_BITS) } else { (128, 0) };
        if bits > limit {
            return Err(PrefixError::Bits { limit });
        }
        let prefix = Self { address: ip.into(), bits: bits + shift };
        let (bits_set, mask) = (prefix.address.to_bits(), prefix.mask());
        if bits_set & !mask != 0 {
            let first = Address((bits_set & mask).to_be_bytes());
            return Err(PrefixError::Host { first: first.into(), bits });
        }
        Ok(prefix)
    }

    /// Whether the address is one of the prefix's. An IPv6 prefix contains no IPv4 address: `::/0` is all of IPv6.
    #[inline]
    pub fn contains(&self, address: Address) -> bool {
        let difference = self.address.to_bits() ^ address.to_bits();
        self.family() == address.family() && difference & self.mask() == 0
    }

    /// Which kind of address the prefix contains.
    #[inline]
    pub fn family(&self) -> Family {
        if self.bits >= MAPPED_BITS { self.address.family() } else { Family::V6 }
    }

    /// The key of the prefix in a longest-prefix map over [`Address`]: significant bits, and the bytes.
    #[inline]
    pub const fn lpm_key(&self) -> (u32, [u8; 16]) {
        (self.bits as u32, self.address.0)
    }

    const fn mask(&self) -> u128 {
        match u128::MAX.checked_shl(128 - self.bits as u32) {
            Some(mask) => mask,
            None => 0,
        }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// Reads `address/bits`; an address alone is a prefix of one address.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (ip, bits) = match text.split_once('/') {
            Some((ip, bits)) => (ip, Some(bits)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| PrefixError::Syntax)?;
        let whole = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(whole), str::parse).map_err(|_| PrefixError::Bits { limit: whole })?;
        Self::new(ip, bits)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family() {
            Family::V4 => write!(f, "{}/{}", IpAddr::from(self.address), self.bits - MAPPED_BITS),
            Family::V6 => write!(f, "{}/{}", Ipv6Addr::from(self.address.0), self.bits),
        }
    }
}

/// Why something is not a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrefixError {
    /// Neither an address nor `address/bits`.
    Syntax,
    /// The number of bits is not one, or is above the family's.
    Bits {
        /// The largest number of bits allowed.
        limit: u8,
    },
    /// Bits of the address are set beyond the prefix.
    Host {
        /// The address that has the same prefix and no other bit set.
        first: IpAddr,
        /// Bits of the prefix.
        bits: u8,
    },
}

impl fmt::Display for PrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax => f.write_str("expected an IP address, or address/bits such as 10.0.0.0/8 or 2001:db8::/32"),
            Self::Bits { limit } => write!(f, "expected 0 to {limit} bits after the slash"),
            Self::Host { first, bits } => {
                write!(
                    f,
                    "bits are set beyond the first {bits}: expected {first}/{bits}, or an address without /{bits}"
                )
            }
        }
    }
}

impl core::error::Error for PrefixError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().expect("an address").into()
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a prefix")
    }

    #[test]
    fn a_site_is_an_ipv4_address_or_64_bits() {
        for (text, site) in [
            ("10.1.2.3", "10.1.2.3"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff::", "2001:db8:1:2::"),
            ("::1", "::"),
        ] {
            assert_eq!(address(text).site(), address(site), "{text}");
        }
    }

    #[test]
    fn contains_exactly_its_addresses() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.2"),
            ("0.0.0.0/0", "255.255.255.255", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("::1", "::1", "::2"),
            ("::ffff:0.0.0.0/96", "10.0.0.1", "::1"),
        ] {
            assert!(prefix(text).contains(address(inside)), "{text} contains {inside}");
            assert!(!prefix(text).contains(address(outside)), "{text} does not contain {outside}");
        }
    }

    #[test]
    fn text_goes_there_and_back() {
        for text in ["10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "::/0", "2001:db8::/33"] {
            assert_eq!(prefix(text).to_string(), text);
        }
        assert_eq!(prefix("10.0.0.0/8").lpm_key(), (104, address("10.0.0.0").octets()));
        assert_eq!(prefix("2001:db8::/32").lpm_key(), (32, address("2001:db8::").octets()));
    }

    #[test]
    fn refusals_say_what_is_allowed() {
        for (text, error) in [
            ("10.0.0.0/33", PrefixError::Bits { limit: 32 }),
            ("::/129", PrefixError::Bits { limit: 128 }),
            ("10.0.0.0/", PrefixError::Bits { limit: 32 }),
            ("10.0.0/8", PrefixError::Syntax),
            ("", PrefixError::Syntax),
            ("10.1.2.3/8", PrefixError::Host { first: "10.0.0.0".parse().expect("an address"), bits: 8 }),
        ] {
            assert_eq!(text.parse::<Prefix>(), Err(error));
        }
        let refused = "10.1.2.3/8".parse::<Prefix>().expect_err("host bits");
        assert_eq!(
            refused.to_string(),
            "bits are set beyond the first 8: expected 10.0.0.0/8, or an address without /8"
        );
    }
}
