//! Overlay addresses: who a node is, wherever it is.

use std::fmt;
use std::str::FromStr;

/// A 48-bit overlay address: a network and a node in it. Text `N:NNNN.HHHH.LLLL`: the network in decimal, then the same
/// in hexadecimal, then the node's high and low half in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Default)]
pub struct OverlayAddress {
    /// The network; 0 is the one that everyone is in.
    pub network: u16,
    /// The node within the network.
    pub node: u32,
}

impl OverlayAddress {
    /// The address as it stands on the wire.
    pub const fn to_bytes(self) -> [u8; 6] {
        let [n0, n1] = self.network.to_be_bytes();
        let [h0, h1, l0, l1] = self.node.to_be_bytes();
        [n0, n1, h0, h1, l0, l1]
    }

    /// The address in six bytes of the wire.
    pub const fn from_bytes([n0, n1, h0, h1, l0, l1]: [u8; 6]) -> Self {
        Self { network: u16::from_be_bytes([n0, n1]), node: u32::from_be_bytes([h0, h1, l0, l1]) }
    }
}

impl fmt::Display for OverlayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:04X}.{:04X}.{:04X}", self.network, self.network, self.node >> 16, self.node & 0xffff)
    }
}

/// Why a text is not an overlay address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "`{given}` is not an overlay address: expected N:NNNN.HHHH.LLLL, for example 0:0000.0000.0001 \
     (network in decimal, the same in hexadecimal, node in hexadecimal)"
)]
pub struct AddressError {
    given: String,
}

impl FromStr for OverlayAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        parse(text).ok_or_else(|| AddressError { given: text.chars().take(64).collect() })
    }
}

fn parse(text: &str) -> Option<OverlayAddress> {
    let (decimal, rest) = text.split_once(':')?;
    let mut groups = rest.split('.').map(group);
    let (repeated, high, low) = (groups.next()??, groups.next()??, groups.next()??);
    let decimal_only = !decimal.is_empty() && decimal.bytes().all(|b| b.is_ascii_digit());
    let network: u16 = decimal.parse().ok().filter(|_| decimal_only)?;
    (groups.next().is_none() && network == repeated)
        .then_some(OverlayAddress { network, node: u32::from(high) << 16 | u32::from(low) })
}

/// Exactly four hexadecimal digits.
fn group(text: &str) -> Option<u16> {
    (text.len() == 4 && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u16::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for (network, node) in [(0, 1), (7, 0x1234_abcd), (u16::MAX, u32::MAX)] {
            let address = OverlayAddress { network, node };
            assert_eq!(address.to_string().parse(), Ok(address));
            assert_eq!(OverlayAddress::from_bytes(address.to_bytes()), address);
        }
        assert_eq!(OverlayAddress { network: 10, node: 0x0001_f00d }.to_string(), "10:000A.0001.F00D");
    }

    #[test]
    fn bad_texts_are_refused_with_what_was_given() {
        for text in [
            "",
            "1",
            "0:0000.0000",
            "0:0000.0000.00001",
            "1:0002.0000.0001",
            "+1:0001.0000.0001",
            "0:000g.0000.0001",
            "65536:0000.0000.0001",
            "0:0000.0000.0001.0002",
            "0:+000.0000.0001",
        ] {
            let error = text.parse::<OverlayAddress>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
