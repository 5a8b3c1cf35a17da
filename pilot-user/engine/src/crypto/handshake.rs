//! The two messages of the handshake (`docs/wire.md` §3): Noise IKpsk2 with a KEM's secret, each message one datagram.
//!
//! Stateless but for Noise itself: whether a peer is known, a timestamp new and a session current is the endpoint's
//! business. Every failure is a [`HandshakeError`], which the endpoint counts; none is answered.

use pilot_common::wire::{HEADER_LEN, Header, INITIATION_LEN, PacketType, RESPONSE_MAX_LEN, TAG_LEN};

use super::aead::{Aead, Aeads, KeyPair};
use super::cookie::{self, Cookie, write_mac2};
use super::kem::{self, CIPHERTEXT_LEN, DecapsulationKey, ENCAPSULATION_KEY_LEN};
use super::mac::{MAC_LEN, Mac1Key};
use super::noise::{IK_PSK, Noise};
use super::parameters::{Parameters, encapsulation_key, write_encapsulation_key};
use super::rng::SeededRng;
use crate::codec::Writer;
use crate::identity::{Identity, PublicKey, verify_certificate};

/// Bytes of Noise message 1 around its payload: ephemeral key, sealed static key, tag.
const NOISE_1_OVERHEAD: usize = 32 + 32 + TAG_LEN + TAG_LEN;
const INITIATION_PAYLOAD_LEN: usize = INITIATION_LEN - HEADER_LEN - NOISE_1_OVERHEAD - 2 * MAC_LEN;
/// Where Noise message 2 begins: behind the ciphertext.
const NOISE_2_AT: usize = HEADER_LEN + CIPHERTEXT_LEN;

/// Why a handshake message came to nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HandshakeError {
    /// mac1 is wrong: not for this node, or damaged. Found without Diffie-Hellman.
    Mac,
    /// Noise could not decrypt it.
    Decrypt,
    /// Parameters malformed, missing, or not those of the header or of the initiation.
    Parameters,
    /// The static key is not certified by the identity that the message names.
    Certificate,
    /// There is no AEAD that both ends use.
    Aead,
}

/// A handshake that this node began and that waits for its response.
pub(crate) struct Initiation {
    noise: Noise,
    kem: DecapsulationKey,
    mac1: [u8; MAC_LEN],
    session_id: u32,
    offered: Aeads,
    lane: u8,
}

/// An initiation that was read and can be answered.
pub(crate) struct Initiated {
    noise: Noise,
    encapsulation_key: [u8; ENCAPSULATION_KEY_LEN],
    /// Who sent it, certified.
    pub(crate) key: PublicKey,
    pub(crate) parameters: Parameters,
}

/// What both ends have when the handshake is done.
pub(crate) struct Secrets {
    pub(crate) keys: KeyPair,
    pub(crate) aead: Aead,
    /// What the other end said of itself.
    pub(crate) peer: Parameters,
}

impl Initiation {
    /// Writes an initiation to `peer` into `datagram`, whole; with mac2 where there is a cookie of the peer's.
    pub(crate) fn begin(
        own: &Identity,
        peer: &PublicKey,
        (mac1, cookie): (&Mac1Key, Option<&Cookie>),
        parameters: &Parameters,
        mut rng: SeededRng,
        datagram: &mut [u8; INITIATION_LEN],
    ) -> Option<Self> {
        let kem = DecapsulationKey::generate(&mut rng);
        let mut noise = Noise::initiator(own.static_secret(), &peer.static_key, rng)?;
        let mut payload = [0; INITIATION_PAYLOAD_LEN];
        let mut writer = Writer::new(&mut payload);
        parameters.encode(&mut writer)?;
        write_encapsulation_key(&mut writer, &kem.encapsulation_key())?;
        let header = Header { packet_type: PacketType::Initiation, epoch: 0, receiver: 0, word: parameters.session_id };
        datagram[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        noise.write_message(&payload, &mut datagram[HEADER_LEN..INITIATION_LEN - 2 * MAC_LEN]).ok()?;
        mac1.write(datagram);
        if let Some(cookie) = cookie {
            write_mac2(cookie, datagram);
        }
        Some(Self {
            noise,
            kem,
            mac1: *cookie::mac1(datagram)?,
            session_id: parameters.session_id,
            offered: parameters.aeads,
            lane: parameters.lane,
        })
    }

    /// What an answer that cannot name the session's keys shows to have been seen.
    pub(crate) fn mac1(&self) -> &[u8; MAC_LEN] {
        &self.mac1
    }

    /// The session id that the response must be addressed to.
    pub(crate) fn session_id(&self) -> u32 {
        self.session_id
    }

    /// Reads the response. On an error the attempt is as it was, so that a forged response ends nothing (W3.11): snow
    /// changes its state only when a message was authentic, and each response brings a psk of its own.
    pub(crate) fn finish(
        &mut self,
        own_mac1: &Mac1Key,
        peer: &PublicKey,
        unix_seconds: u64,
        datagram: &[u8],
    ) -> Result<Secrets, HandshakeError> {
        let header = Header::parse(datagram).map_err(|_| HandshakeError::Parameters)?;
        let covered = own_mac1.verify(datagram).ok_or(HandshakeError::Mac)?;
        let mut payload = [0; RESPONSE_MAX_LEN];
        let length = read_hybrid(&mut self.noise, &self.kem, IK_PSK, covered, &mut payload)?;
        let parameters = checked(&payload[..length], header, &peer.static_key, unix_seconds, Some(&peer.identity))?.1;
        // W3.16: who knows no lanes answers for lane 0, which is not touched as long as nobody confirms the key.
        if parameters.lane != self.lane {
            return Err(HandshakeError::Parameters);
        }
        let aead = self.offered.choose(&parameters.aeads).ok_or(HandshakeError::Aead)?;
        let (seal, open) = self.noise.raw_split();
        let keys = KeyPair::new(aead, &seal, &open).ok_or(HandshakeError::Aead)?;
        Ok(Secrets { keys, aead, peer: parameters })
    }
}

impl Initiated {
    /// Reads what mac1, which was right, covers of an initiation: Noise, then the certificate.
    pub(crate) fn read(
        own: &Identity,
        rng: SeededRng,
        unix_seconds: u64,
        header: Header,
        covered: &[u8],
    ) -> Result<Self, HandshakeError> {
        let message = covered.get(HEADER_LEN..).ok_or(HandshakeError::Parameters)?;
        let mut noise = Noise::responder(own.static_secret(), rng).ok_or(HandshakeError::Decrypt)?;
        let mut payload = [0; INITIATION_PAYLOAD_LEN];
        let length = noise.read_message(message, &mut payload).map_err(|_| HandshakeError::Decrypt)?;
        let static_key: [u8; 32] =
            noise.get_remote_static().and_then(|key| key.try_into().ok()).ok_or(HandshakeError::Decrypt)?;
        let (identity, parameters) = checked(&payload[..length], header, &static_key, unix_seconds, None)?;
        if parameters.timestamp.is_none() {
            return Err(HandshakeError::Parameters);
        }
        // W3.13: there is no handshake without a KEM.
        let encapsulation_key = *encapsulation_key(&payload[..length]).ok_or(HandshakeError::Parameters)?;
        Ok(Self { noise, encapsulation_key, key: PublicKey { identity, static_key }, parameters })
    }

    /// Writes the response into `datagram`; returns its length, and the secrets. The AEAD is the first of `parameters`.
    /// `None`: the encapsulation key is none.
    pub(crate) fn answer(
        mut self,
        peer_mac1: &Mac1Key,
        parameters: &Parameters,
        rng: &mut SeededRng,
        datagram: &mut [u8; RESPONSE_MAX_LEN],
    ) -> Option<(usize, Secrets)> {
        let (ciphertext, secret) = kem::encapsulate(&self.encapsulation_key, rng)?;
        let psk = kem::psk(self.noise.get_handshake_hash(), &secret, &ciphertext);
        self.noise.set_psk(IK_PSK, &*psk).ok()?;
        let mut payload = [0; RESPONSE_MAX_LEN / 2];
        let mut writer = Writer::new(&mut payload);
        parameters.encode(&mut writer)?;
        let payload_len = writer.len();
        let header = Header {
            packet_type: PacketType::Response,
            epoch: 0,
            receiver: self.parameters.session_id,
            word: parameters.session_id,
        };
        datagram[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        datagram[HEADER_LEN..NOISE_2_AT].copy_from_slice(&ciphertext);
        let written = self.noise.write_message(&payload[..payload_len], &mut datagram[NOISE_2_AT..]).ok()?;
        let length = NOISE_2_AT + written + 2 * MAC_LEN;
        peer_mac1.write(datagram.get_mut(..length)?);
        let (open, seal) = self.noise.raw_split();
        let aead = parameters.aeads.iter().next()?;
        Some((length, Secrets { keys: KeyPair::new(aead, &seal, &open)?, aead, peer: self.parameters }))
    }
}

/// Reads a message behind the KEM's ciphertext, whose secret is its psk in this place (W3.13, W3.31). How long the payload is.
pub(super) fn read_hybrid(
    noise: &mut Noise,
    kem: &DecapsulationKey,
    place: usize,
    covered: &[u8],
    payload: &mut [u8; RESPONSE_MAX_LEN],
) -> Result<usize, HandshakeError> {
    let (ciphertext, message) =
        covered[HEADER_LEN..].split_first_chunk::<CIPHERTEXT_LEN>().ok_or(HandshakeError::Parameters)?;
    let secret = kem.decapsulate(ciphertext).ok_or(HandshakeError::Decrypt)?;
    let psk = kem::psk(noise.get_handshake_hash(), &secret, ciphertext);
    noise.set_psk(place, &*psk).and_then(|()| noise.read_message(message, payload)).map_err(|_| HandshakeError::Decrypt)
}

/// Parameters that fit their header (W3.6) and whose certificate covers the static key (W3.3).
fn checked(
    payload: &[u8],
    header: Header,
    static_key: &[u8; 32],
    unix_seconds: u64,
    expected: Option<&[u8; 32]>,
) -> Result<([u8; 32], Parameters), HandshakeError> {
    let parameters = Parameters::decode(payload).ok_or(HandshakeError::Parameters)?;
    if parameters.session_id != header.word {
        return Err(HandshakeError::Parameters);
    }
    let identity = verify_certificate(&parameters.certificate, static_key, unix_seconds)
        .filter(|identity| expected.is_none_or(|expected| expected == identity))
        .ok_or(HandshakeError::Certificate)?;
    Ok((identity, parameters))
}

#[cfg(test)]
mod tests {
    use super::super::parameters::tests::sample;
    use super::*;

    struct End {
        identity: Identity,
        mac1: Mac1Key,
        parameters: Parameters,
    }

    fn end(n: u8) -> End {
        let identity = Identity::from_secrets([n; 32], [n + 100; 32]).unwrap();
        let mut parameters = sample();
        parameters.certificate = *identity.certificate();
        parameters.session_id = u32::from(n);
        parameters.timestamp = (n == 1).then_some(5);
        End { mac1: Mac1Key::to(&identity.public_key().static_key), identity, parameters }
    }

    fn rng(n: u8) -> SeededRng {
        SeededRng::new([n; 32])
    }

    fn begin(a: &End, b: &End, datagram: &mut [u8; INITIATION_LEN]) -> Initiation {
        Initiation::begin(&a.identity, &b.identity.public_key(), (&b.mac1, None), &a.parameters, rng(1), datagram)
            .unwrap()
    }

    fn read(b: &End, datagram: &[u8]) -> Result<Initiated, HandshakeError> {
        let header = Header::parse(datagram).map_err(|_| HandshakeError::Parameters)?;
        let covered = b.mac1.verify(datagram).ok_or(HandshakeError::Mac)?;
        Initiated::read(&b.identity, rng(2), 0, header, covered)
    }

    /// wire.md W3.1, W3.8: the initiation is 1200 bytes, the answer shorter, and what one end seals the other opens.
    #[test]
    fn both_ends_get_the_same_keys() {
        let (a, b) = (end(1), end(2));
        let (mut message_1, mut message_2) = ([0; INITIATION_LEN], [0; RESPONSE_MAX_LEN]);
        let mut initiation = begin(&a, &b, &mut message_1);
        let initiated = read(&b, &message_1).unwrap();
        assert_eq!(initiated.key, a.identity.public_key());
        assert_eq!(initiated.parameters, a.parameters);
        let (length, mut at_b) = initiated.answer(&a.mac1, &b.parameters, &mut rng(3), &mut message_2).unwrap();
        assert!(length < INITIATION_LEN);

        // wire.md W3.11: damaged and truncated responses leave the attempt as it was.
        let key = b.identity.public_key();
        for i in (0..length).step_by(7) {
            let mut bad = message_2;
            bad[i] ^= 1;
            let finished = initiation.finish(&a.mac1, &key, 0, &bad[..length]);
            assert!(finished.is_err() || i >= length - MAC_LEN, "byte {i}");
            assert!(initiation.finish(&a.mac1, &key, 0, &message_2[..i]).is_err(), "cut to {i}");
            if finished.is_ok() {
                return; // mac2 is not looked at without a cookie
            }
        }
        let mut at_a = initiation.finish(&a.mac1, &key, 0, &message_2[..length]).unwrap();
        assert_eq!((at_a.aead, &at_a.peer), (at_b.aead, &b.parameters));
        let (mut packet, mut frames) = ([7; 60], [0; 60]);
        at_a.keys.seal(0, &mut packet).unwrap();
        assert_eq!(at_b.keys.open(0, &packet, &mut frames), Some(35));
        at_b.keys.seal(0, &mut packet).unwrap();
        assert_eq!(at_a.keys.open(0, &packet, &mut frames), Some(35));
    }

    /// wire.md W3.16: an answer for another lane is none, as it comes from who knows no lanes.
    #[test]
    fn the_answer_is_for_the_lane_that_was_asked() {
        for (asked, answered) in [(0, 0), (3, 3), (3, 0), (0, 3)] {
            let (mut a, mut b) = (end(1), end(2));
            (a.parameters.lane, b.parameters.lane) = (asked, answered);
            let (mut message_1, mut message_2) = ([0; INITIATION_LEN], [0; RESPONSE_MAX_LEN]);
            let mut initiation = begin(&a, &b, &mut message_1);
            let initiated = read(&b, &message_1).unwrap();
            assert_eq!(initiated.parameters.lane, asked);
            let (length, _) = initiated.answer(&a.mac1, &b.parameters, &mut rng(3), &mut message_2).unwrap();
            let refused = initiation.finish(&a.mac1, &b.identity.public_key(), 0, &message_2[..length]).err();
            assert_eq!(refused, (asked != answered).then_some(HandshakeError::Parameters));
        }
    }

    /// wire.md W3.13: who changes the ciphertext ends nothing, even where mac1 is right; without a usable key there is no answer.
    #[test]
    fn the_kem_is_no_way_out() {
        let (a, b) = (end(1), end(2));
        let (mut message_1, mut message_2) = ([0; INITIATION_LEN], [0; RESPONSE_MAX_LEN]);
        let mut initiation = begin(&a, &b, &mut message_1);
        let initiated = read(&b, &message_1).unwrap();
        let (length, _) = initiated.answer(&a.mac1, &b.parameters, &mut rng(3), &mut message_2).unwrap();
        let (key, mut bad) = (b.identity.public_key(), message_2);
        bad[HEADER_LEN + 9] ^= 1;
        a.mac1.write(&mut bad[..length]);
        let refused = initiation.finish(&a.mac1, &key, 0, &bad[..length]).err();
        assert_eq!(refused, Some(HandshakeError::Decrypt));
        assert!(initiation.finish(&a.mac1, &key, 0, &message_2[..length]).is_ok());

        // An honest initiation with another list of TLVs.
        let with_kem = |kem: Option<&[u8; ENCAPSULATION_KEY_LEN]>| {
            let mut noise = Noise::initiator(a.identity.static_secret(), &key.static_key, rng(1)).unwrap();
            let mut payload = [0; INITIATION_PAYLOAD_LEN];
            let mut writer = Writer::new(&mut payload);
            a.parameters.encode(&mut writer).unwrap();
            kem.map_or(Some(()), |kem| write_encapsulation_key(&mut writer, kem)).unwrap();
            let mut message = message_1;
            noise.write_message(&payload, &mut message[HEADER_LEN..INITIATION_LEN - 2 * MAC_LEN]).unwrap();
            b.mac1.write(&mut message);
            message
        };
        assert_eq!(read(&b, &with_kem(None)).err(), Some(HandshakeError::Parameters));
        let none = read(&b, &with_kem(Some(&[0xff; ENCAPSULATION_KEY_LEN]))).unwrap();
        assert!(none.answer(&a.mac1, &b.parameters, &mut rng(3), &mut message_2).is_none());
    }

    /// wire.md W3.2, W3.3, W3.6: each thing that may be wrong with an initiation, by its error.
    #[test]
    fn bad_initiations_are_told_apart() {
        let (a, b, c) = (end(1), end(2), end(3));
        let mut message = [0; INITIATION_LEN];
        let refused = |message: &[u8]| read(&b, message).err();

        begin(&a, &c, &mut message);
        assert_eq!(refused(&message), Some(HandshakeError::Mac), "meant for another node");
        begin(&a, &b, &mut message);
        assert_eq!(refused(&message[..600]), Some(HandshakeError::Parameters), "cut");
        message[40] ^= 1;
        assert_eq!(refused(&message), Some(HandshakeError::Mac), "damaged");
        b.mac1.write(&mut message);
        assert_eq!(refused(&message), Some(HandshakeError::Decrypt), "damaged, mac1 made anew");

        let mut bad = end(1);
        bad.parameters.timestamp = None;
        begin(&bad, &b, &mut message);
        assert_eq!(refused(&message), Some(HandshakeError::Parameters), "no timestamp");

        let mut bad = end(1);
        bad.parameters.certificate = *c.identity.certificate();
        begin(&bad, &b, &mut message);
        assert_eq!(refused(&message), Some(HandshakeError::Certificate), "another's certificate");

        begin(&a, &b, &mut message);
        message[8] ^= 1;
        b.mac1.write(&mut message);
        assert_eq!(refused(&message), Some(HandshakeError::Parameters), "another session id in the header");
    }
}
