//! mac1: proof that the sender of a handshake message knows whom it talks to, before any expensive work (W3.2).

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput as _, Mac as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};

/// Bytes of mac1, and of mac2.
pub(crate) const MAC_LEN: usize = 16;

const LABEL: &[u8] = b"pilot v1 mac1";

/// The key that mac1 of messages *to* one node is made with. Computed once a peer, not once a message.
#[derive(Clone)]
pub(crate) struct Mac1Key([u8; 32]);

impl Mac1Key {
    /// The key for messages to the owner of this X25519 static key.
    pub(crate) fn to(static_key: &[u8; 32]) -> Self {
        Self(Blake2s256::new().chain_update(LABEL).chain_update(static_key).finalize().into())
    }

    fn mac(&self, covered: &[u8]) -> Blake2sMac<U16> {
        Blake2sMac::new((&self.0).into()).chain_update(covered)
    }

    /// Writes mac1 and an empty mac2 into the last 32 bytes of a message.
    pub(crate) fn write(&self, message: &mut [u8]) {
        let at = message.len().saturating_sub(2 * MAC_LEN);
        let (covered, macs) = message.split_at_mut(at);
        macs[..MAC_LEN].copy_from_slice(&self.mac(covered).finalize_fixed());
        macs[MAC_LEN..].fill(0);
    }

    /// Whether the message carries the right mac1, in constant time; its part before both macs if so.
    pub(crate) fn verify<'a>(&self, message: &'a [u8]) -> Option<&'a [u8]> {
        let at = message.len().checked_sub(2 * MAC_LEN)?;
        let (covered, macs) = message.split_at(at);
        self.mac(covered).verify_slice(&macs[..MAC_LEN]).ok()?;
        Some(covered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// wire.md W3.2
    #[test]
    fn any_changed_byte_before_mac2_is_refused() {
        let key = Mac1Key::to(&[7; 32]);
        let mut message = [0x55; 100];
        key.write(&mut message);
        assert_eq!(key.verify(&message), Some(&[0x55; 68][..]));
        assert_eq!(Mac1Key::to(&[8; 32]).verify(&message), None, "another node's key");
        for i in 0..84 {
            message[i] ^= 1;
            assert_eq!(key.verify(&message), None, "byte {i}");
            message[i] ^= 1;
        }
        for length in 0..100 {
            assert_eq!(key.verify(&message[..length]), None, "cut to {length}");
        }
    }
}
