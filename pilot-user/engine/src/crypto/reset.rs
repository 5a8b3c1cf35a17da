//! Stateless reset tokens (`docs/wire.md` W4.9): a node that has forgotten a tunnel proves so to whoever still uses it.

use std::net::IpAddr;

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput as _, Mac as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use pilot_common::wire::{HEADER_LEN, Header, PacketType, RESET_LEN};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::identity::Identity;

/// Bytes of a token.
pub(crate) const RESET_TOKEN_LEN: usize = 16;

const LABEL: &[u8] = b"pilot v1 reset token";

/// What tells the peer that sends to a session id that the id means nothing any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResetToken(pub(crate) [u8; RESET_TOKEN_LEN]);

impl ResetToken {
    /// The datagram that says it of a session id.
    pub(crate) fn to_datagram(self, session_id: u32) -> [u8; RESET_LEN] {
        let header = Header { packet_type: PacketType::Reset, epoch: 0, receiver: session_id, word: 0 };
        let mut reset = [0; RESET_LEN];
        reset[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        reset[HEADER_LEN..].copy_from_slice(&self.0);
        reset
    }
}

/// In constant time: how far a guess is right would give the token away.
impl PartialEq for ResetToken {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for ResetToken {}

/// What a node's tokens are made with: of its static secret, so that its next process makes the same.
pub(crate) struct ResetKey(Zeroizing<[u8; 32]>);

impl ResetKey {
    pub(crate) fn of(identity: &Identity) -> Self {
        let hash = Blake2s256::new().chain_update(LABEL).chain_update(identity.static_secret());
        Self(Zeroizing::new(hash.finalize().into()))
    }

    /// The token for a session id that is given to a peer at this address. Nobody elsewhere can ask for it beforehand, when
    /// the id is not in use yet. Not the port: that of a NAT, and of the bulk path, is another one.
    pub(crate) fn token(&self, session_id: u32, peer: IpAddr) -> ResetToken {
        let address = match peer.to_canonical() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let mac = Blake2sMac::<U16>::new((&*self.0).into());
        let mac = mac.chain_update(session_id.to_be_bytes()).chain_update(address.octets());
        ResetToken(mac.finalize_fixed().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// wire.md W4.9
    #[test]
    fn a_token_is_of_one_node_one_id_and_one_address_and_outlives_the_process() {
        let key = |n: u8| ResetKey::of(&Identity::from_secrets([n; 32], [n + 1; 32]).unwrap());
        let (v4, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let token = key(1).token(7, v4);
        assert_eq!(token, key(1).token(7, "::ffff:10.0.0.1".parse().unwrap()));
        for another in [key(2).token(7, v4), key(1).token(8, v4), key(1).token(7, other)] {
            assert_ne!(token, another);
        }
    }
}
