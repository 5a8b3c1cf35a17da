//! Cookies: who got one, and sends it back as mac2, receives at the address that it sends from (W3.20, W3.21).
//!
//! A responder under load wants that proof before it computes a Diffie-Hellman. It keeps nothing for it: a cookie can be
//! computed again from a node's secret, the time and the address.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput as _, Mac as _};
use blake2::{Blake2s256, Blake2sMac, Blake2sMac256, Digest as _};
use chacha20poly1305::aead::{AeadInOut as _, KeyInit as _};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use pilot_common::wire::{COOKIE_LEN, HEADER_LEN, Header, PacketType, TAG_LEN};
use zeroize::Zeroizing;

use super::mac::MAC_LEN;
use super::rng::SeededRng;
use crate::identity::Identity;
use crate::limits::COOKIE_LIFETIME;

const SEALING_LABEL: &[u8] = b"pilot v1 cookie";
const SECRET_LABEL: &[u8] = b"pilot v1 cookie secret";
const NONCE_LEN: usize = 24;

/// Keys mac2 of the messages from one address.
pub(crate) type Cookie = [u8; 16];

/// Gives cookies out, and knows them again.
pub(crate) struct Cookies {
    /// The same in all workers of a node, and after a restart: which of them a datagram reaches makes no difference.
    secret: Zeroizing<[u8; 32]>,
    sealing: XChaCha20Poly1305,
}

impl Cookies {
    /// For initiations to whom their senders know by this static key.
    pub(crate) fn new(own: &Identity, static_key: &[u8; 32]) -> Self {
        let secret = Blake2sMac256::new(own.static_secret().into()).chain_update(SECRET_LABEL).finalize_fixed();
        Self { secret: Zeroizing::new(secret.into()), sealing: sealing(static_key) }
    }

    /// The cookie of an address in a period. It cannot be told from a random one, nor computed from that of another.
    fn cookie(&self, period: u64, source: SocketAddr) -> Cookie {
        let ip = match source.ip().to_canonical() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Blake2sMac::<U16>::new((&*self.secret).into())
            .chain_update(period.to_be_bytes())
            .chain_update(ip.octets())
            .chain_update(source.port().to_be_bytes())
            .finalize_fixed()
            .into()
    }

    /// Whether mac2 of a message was made with the cookie that its source got in this period or the one before.
    pub(crate) fn verify(&self, unix_time: Duration, source: SocketAddr, message: &[u8]) -> bool {
        let Some((covered, mac2)) = message.split_last_chunk::<MAC_LEN>() else { return false };
        // What has no cookie says so: most of a flood.
        if *mac2 == [0; MAC_LEN] {
            return false;
        }
        let period = period(unix_time);
        let right = |period| mac(&self.cookie(period, source), covered).verify(mac2.into()).is_ok();
        right(period) || period.checked_sub(1).is_some_and(right)
    }

    /// The reply to an initiation: where it came from a cookie works, and without having seen it none can be read or made.
    pub(crate) fn reply(
        &self,
        unix_time: Duration,
        source: SocketAddr,
        initiation: &[u8],
        rng: &mut SeededRng,
    ) -> Option<[u8; COOKIE_LEN]> {
        let header = Header::parse(initiation).ok()?;
        let reply = Header { packet_type: PacketType::Cookie, epoch: 0, receiver: header.word, word: 0 };
        let mut nonce = [0; NONCE_LEN];
        rng.fill(&mut nonce);
        let mut cookie = self.cookie(period(unix_time), source);
        let tag =
            self.sealing.encrypt_inout_detached(&XNonce::from(nonce), mac1(initiation)?, (&mut cookie[..]).into());
        let mut datagram = [0; COOKIE_LEN];
        let (head, rest) = datagram.split_at_mut(HEADER_LEN);
        head.copy_from_slice(&reply.to_bytes());
        let (nonce_at, rest) = rest.split_at_mut(NONCE_LEN);
        nonce_at.copy_from_slice(&nonce);
        let (cookie_at, tag_at) = rest.split_at_mut(cookie.len());
        cookie_at.copy_from_slice(&cookie);
        tag_at.copy_from_slice(&tag.ok()?);
        Some(datagram)
    }
}

/// The cookie in a reply of the owner of `static_key` to the initiation that had this mac1.
pub(crate) fn open(static_key: &[u8; 32], mac1: &[u8; MAC_LEN], reply: &[u8; COOKIE_LEN]) -> Option<Cookie> {
    let (nonce, rest) = reply[HEADER_LEN..].split_first_chunk::<NONCE_LEN>()?;
    let (sealed, tag) = rest.split_last_chunk::<TAG_LEN>()?;
    let mut cookie: Cookie = sealed.try_into().ok()?;
    sealing(static_key)
        .decrypt_inout_detached(&XNonce::from(*nonce), mac1, (&mut cookie[..]).into(), &Tag::from(*tag))
        .ok()?;
    Some(cookie)
}

/// Writes mac2 into the last bytes of a message that has its mac1.
pub(crate) fn write_mac2(cookie: &Cookie, message: &mut [u8]) {
    if let Some((covered, mac2)) = message.split_last_chunk_mut::<MAC_LEN>() {
        *mac2 = mac(cookie, covered).finalize_fixed().into();
    }
}

/// mac1 of a handshake message.
pub(crate) fn mac1(message: &[u8]) -> Option<&[u8; MAC_LEN]> {
    message.split_last_chunk::<MAC_LEN>()?.0.last_chunk()
}

fn mac(cookie: &Cookie, covered: &[u8]) -> Blake2sMac<U16> {
    Blake2sMac::new_from_slice(cookie).expect("BLAKE2s takes keys of up to 32 bytes").chain_update(covered)
}

fn sealing(static_key: &[u8; 32]) -> XChaCha20Poly1305 {
    let key: [u8; 32] = Blake2s256::new().chain_update(SEALING_LABEL).chain_update(static_key).finalize().into();
    XChaCha20Poly1305::new(&key.into())
}

fn period(unix_time: Duration) -> u64 {
    unix_time.as_secs() / COOKIE_LIFETIME.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    fn identity(n: u8) -> Identity {
        Identity::from_secrets([n; 32], [n + 100; 32]).unwrap()
    }

    fn initiation() -> [u8; 1200] {
        let header = Header { packet_type: PacketType::Initiation, epoch: 0, receiver: 0, word: 0x0102_0304 };
        let mut message = [7; 1200];
        message[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        message[1184..].fill(0);
        message
    }

    fn source(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// wire.md W3.20, W3.21: from the reply to the mac2 that is accepted, from that address alone and for that long.
    #[test]
    fn a_cookie_works_for_its_address_and_its_time() {
        let own = identity(1);
        let of = |n| Cookies::new(&identity(n), &identity(n).public_key().static_key);
        let (cookies, from) = (of(1), source("10.0.0.1:4242"));
        let mut message = initiation();
        assert!(!cookies.verify(NOW, from, &message), "no mac2");
        let reply = cookies.reply(NOW, from, &message, &mut SeededRng::new([1; 32])).unwrap();
        assert_eq!(reply[..9], [0x2c, 1, 2, 3, 4, 0, 0, 0, 0]);
        let key = own.public_key().static_key;
        let cookie = open(&key, mac1(&message).unwrap(), &reply).unwrap();
        write_mac2(&cookie, &mut message);
        assert!(cookies.verify(NOW, from, &message));
        assert!(cookies.verify(NOW, source("[::ffff:10.0.0.1]:4242"), &message), "as a dual-stack socket says it");
        for other in ["10.0.0.1:4243", "10.0.0.2:4242", "[2001:db8::1]:4242"] {
            assert!(!cookies.verify(NOW, source(other), &message), "{other}");
        }
        assert!(of(1).verify(NOW, from, &message), "another worker of the node");
        assert!(!of(2).verify(NOW, from, &message));
        for byte in [0, 100, 1170, 1190] {
            let mut bad = message;
            bad[byte] ^= 1;
            assert!(!cookies.verify(NOW, from, &bad), "byte {byte}");
        }
        assert!(cookies.verify(NOW + COOKIE_LIFETIME, from, &message));
        assert!(!cookies.verify(NOW + 2 * COOKIE_LIFETIME, from, &message));

        // Who did not see the initiation can neither read a reply nor make one.
        let mut another = [9; MAC_LEN];
        assert_eq!(open(&key, &another, &reply), None);
        another = *mac1(&message).unwrap();
        assert_eq!(open(&identity(2).public_key().static_key, &another, &reply), None);
        for byte in HEADER_LEN..reply.len() {
            let mut bad = reply;
            bad[byte] ^= 1;
            assert_eq!(open(&key, &another, &bad), None, "byte {byte}");
        }
    }
}
