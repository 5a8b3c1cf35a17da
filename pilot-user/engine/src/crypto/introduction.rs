//! The four messages of an introduction (`docs/wire.md` §3.5), by which two nodes learn each other's keys: Noise XXpsk3 with a
//! KEM's secret, and a receipt. It makes no tunnel.
//!
//! Stateless but for Noise itself, as `handshake` is.

use pilot_common::wire::{HEADER_LEN, Header, INITIATION_LEN, PacketType, RESPONSE_MAX_LEN, TAG_LEN};

use super::aead::{Aead, KeyPair};
use super::cookie::{self, Cookie, write_mac2};
use super::handshake::{HandshakeError, read_hybrid};
use super::kem::{self, DecapsulationKey};
use super::mac::{MAC_LEN, Mac1Key};
use super::noise::{Noise, XX_PSK};
use super::parameters::{SelfDescription, encapsulation_key, write_encapsulation_key};
use super::rng::SeededRng;
use crate::address::OverlayAddress;
use crate::codec::Writer;
use crate::identity::{Identity, PublicKey, verify_certificate};

/// Stands for a static key that is not known yet, where mac1 and cookie replies are made with it (W3.30). Nobody's: no secret has
/// this point for its public half.
pub(crate) const NOBODY: [u8; 32] = [0; 32];

/// Noise message 1: ephemeral key, payload, tag.
const OPENING_PAYLOAD_LEN: usize = INITIATION_LEN - HEADER_LEN - 32 - TAG_LEN - 2 * MAC_LEN;
/// Bytes of a self-description, and more.
const DESCRIPTION_MAX_LEN: usize = 160;
/// What a receipt says, and zeros: a response has a least length.
const RECEIPT_TEXT_LEN: usize = 48;
const RECEIPT_LEN: usize = HEADER_LEN + RECEIPT_TEXT_LEN + TAG_LEN + 2 * MAC_LEN;

/// Who somebody is, certified and with proof that it has the keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stranger {
    pub(crate) key: PublicKey,
    pub(crate) address: OverlayAddress,
}

/// An introduction that this node began and that waits for its answer.
pub(crate) struct Opening {
    noise: Noise,
    kem: DecapsulationKey,
    mac1: [u8; MAC_LEN],
    session_id: u32,
}

/// An opening that was answered, and whose sender has yet to prove who it is.
pub(crate) struct Answered {
    noise: Noise,
    session_id: u32,
    remote_id: u32,
}

/// What is left of an introduction when both ends know each other: for the receipt.
pub(crate) struct Proven {
    keys: KeyPair,
    pub(crate) stranger: Stranger,
}

impl Opening {
    /// Writes an opening into `datagram`, whole; with mac2 where there is a cookie.
    pub(crate) fn begin(
        own: &Identity,
        cookie: Option<&Cookie>,
        session_id: u32,
        mut rng: SeededRng,
        datagram: &mut [u8; INITIATION_LEN],
    ) -> Option<Self> {
        let kem = DecapsulationKey::generate(&mut rng);
        let mut noise = Noise::xx_initiator(own.static_secret(), rng)?;
        let mut payload = [0; OPENING_PAYLOAD_LEN];
        write_encapsulation_key(&mut Writer::new(&mut payload), &kem.encapsulation_key())?;
        let header = Header { packet_type: PacketType::Initiation, epoch: 0, receiver: 0, word: session_id };
        datagram[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        noise.write_message(&payload, &mut datagram[HEADER_LEN..INITIATION_LEN - 2 * MAC_LEN]).ok()?;
        Mac1Key::to(&NOBODY).write(datagram);
        if let Some(cookie) = cookie {
            write_mac2(cookie, datagram);
        }
        Some(Self { noise, kem, mac1: *cookie::mac1(datagram)?, session_id })
    }

    pub(crate) fn session_id(&self) -> u32 {
        self.session_id
    }

    /// What a cookie reply shows to have been seen.
    pub(crate) fn mac1(&self) -> &[u8; MAC_LEN] {
        &self.mac1
    }

    /// Reads the answer and writes the proof of who we are into `datagram`; its length. On an error nothing is shown to anybody.
    /// `wanted`: the identity that alone will do.
    pub(crate) fn prove(
        &mut self,
        own: (&Identity, OverlayAddress),
        wanted: Option<&[u8; 32]>,
        unix_seconds: u64,
        answer: &[u8],
        datagram: &mut [u8; RESPONSE_MAX_LEN],
    ) -> Result<(usize, Proven), HandshakeError> {
        let header = Header::parse(answer).map_err(|_| HandshakeError::Parameters)?;
        let covered = Mac1Key::to(&NOBODY).verify(answer).ok_or(HandshakeError::Mac)?;
        let mut payload = [0; RESPONSE_MAX_LEN];
        let length = read_hybrid(&mut self.noise, &self.kem, XX_PSK, covered, &mut payload)?;
        let stranger = certified(&self.noise, &payload[..length], header.word, own.0, unix_seconds)?;
        if wanted.is_some_and(|wanted| *wanted != stranger.key.identity) {
            return Err(HandshakeError::Certificate);
        }
        let written = write_description(&mut self.noise, own, (header.word, self.session_id), &[], datagram);
        let length = written.ok_or(HandshakeError::Parameters)?;
        Mac1Key::to(&stranger.key.static_key).write(&mut datagram[..length]);
        let (seal, open) = self.noise.raw_split();
        let keys = KeyPair::new(Aead::ChaCha20Poly1305, &seal, &open).ok_or(HandshakeError::Aead)?;
        Ok((length, Proven { keys, stranger }))
    }
}

impl Answered {
    /// Reads what mac1, which was right, covers of an opening, and writes the answer into `datagram`; its length.
    pub(crate) fn answer(
        own: (&Identity, OverlayAddress),
        session_id: u32,
        rng: &mut SeededRng,
        header: Header,
        covered: &[u8],
        datagram: &mut [u8; RESPONSE_MAX_LEN],
    ) -> Result<(usize, Self), HandshakeError> {
        let message = covered.get(HEADER_LEN..).ok_or(HandshakeError::Parameters)?;
        let mut noise = Noise::xx_responder(own.0.static_secret(), rng.fork()).ok_or(HandshakeError::Decrypt)?;
        let mut payload = [0; OPENING_PAYLOAD_LEN];
        let length = noise.read_message(message, &mut payload).map_err(|_| HandshakeError::Decrypt)?;
        // W3.31: there is no introduction without a KEM.
        let key = encapsulation_key(&payload[..length]).ok_or(HandshakeError::Parameters)?;
        let (ciphertext, secret) = kem::encapsulate(key, rng).ok_or(HandshakeError::Parameters)?;
        let psk = kem::psk(noise.get_handshake_hash(), &secret, &ciphertext);
        noise.set_psk(XX_PSK, &*psk).map_err(|_| HandshakeError::Decrypt)?;
        let length = write_description(&mut noise, own, (header.word, session_id), &ciphertext, datagram);
        let length = length.ok_or(HandshakeError::Parameters)?;
        Mac1Key::to(&NOBODY).write(&mut datagram[..length]);
        Ok((length, Self { noise, session_id, remote_id: header.word }))
    }

    /// Reads the proof and writes the receipt into `datagram`; its length. `accepts` says of whom the receipt tells that it is a
    /// peer. After an error that is not about mac1 the other end may have to begin anew: what Noise began to read it does not undo
    /// altogether in this message.
    pub(crate) fn finish(
        &mut self,
        own: (&Identity, &Mac1Key),
        unix_seconds: u64,
        proof: &[u8],
        accepts: impl FnOnce(&PublicKey) -> bool,
        datagram: &mut [u8; RESPONSE_MAX_LEN],
    ) -> Result<(usize, Stranger, bool), HandshakeError> {
        let header = Header::parse(proof).map_err(|_| HandshakeError::Parameters)?;
        let covered = own.1.verify(proof).ok_or(HandshakeError::Mac)?;
        // Before Noise reads it: what it has read it does not read again.
        if header.word != self.remote_id {
            return Err(HandshakeError::Parameters);
        }
        let mut payload = [0; RESPONSE_MAX_LEN];
        let length =
            self.noise.read_message(&covered[HEADER_LEN..], &mut payload).map_err(|_| HandshakeError::Decrypt)?;
        let stranger = certified(&self.noise, &payload[..length], header.word, own.0, unix_seconds)?;
        let accepted = accepts(&stranger.key);
        let (open, seal) = self.noise.raw_split();
        let mut keys = KeyPair::new(Aead::ChaCha20Poly1305, &seal, &open).ok_or(HandshakeError::Aead)?;
        let header =
            Header { packet_type: PacketType::Response, epoch: 0, receiver: self.remote_id, word: self.session_id };
        let datagram = &mut datagram[..RECEIPT_LEN];
        datagram.fill(0);
        datagram[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        datagram[HEADER_LEN] = accepted.into();
        keys.seal(0, &mut datagram[..RECEIPT_LEN - 2 * MAC_LEN]).map_err(|_| HandshakeError::Aead)?;
        Mac1Key::to(&stranger.key.static_key).write(datagram);
        Ok((RECEIPT_LEN, stranger, accepted))
    }
}

impl Proven {
    /// Whether the other end has this node among its peers, as its receipt says.
    pub(crate) fn read_receipt(&mut self, own_mac1: &Mac1Key, receipt: &[u8]) -> Result<bool, HandshakeError> {
        let covered = own_mac1.verify(receipt).ok_or(HandshakeError::Mac)?;
        let mut text = [0; RESPONSE_MAX_LEN];
        self.keys.open(0, covered, &mut text).ok_or(HandshakeError::Decrypt)?;
        Ok(text[0] == 1)
    }
}

/// Writes header, `before`, and a Noise message that says who we are; the length with room for both macs.
fn write_description(
    noise: &mut Noise,
    (own, address): (&Identity, OverlayAddress),
    (receiver, session_id): (u32, u32),
    before: &[u8],
    datagram: &mut [u8; RESPONSE_MAX_LEN],
) -> Option<usize> {
    let header = Header { packet_type: PacketType::Response, epoch: 0, receiver, word: session_id };
    datagram[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    let noise_at = HEADER_LEN + before.len();
    datagram.get_mut(HEADER_LEN..noise_at)?.copy_from_slice(before);
    let mut payload = [0; DESCRIPTION_MAX_LEN];
    let mut writer = Writer::new(&mut payload);
    SelfDescription { certificate: *own.certificate(), address, session_id }.encode(&mut writer)?;
    let payload_len = writer.len();
    let written = noise.write_message(&payload[..payload_len], datagram.get_mut(noise_at..)?).ok()?;
    Some(noise_at + written + 2 * MAC_LEN).filter(|length| *length <= RESPONSE_MAX_LEN)
}

/// Who sent a message of an introduction: its static key, certified by the identity that it names (W3.3), and not ourselves.
fn certified(
    noise: &Noise,
    payload: &[u8],
    session_id: u32,
    own: &Identity,
    unix_seconds: u64,
) -> Result<Stranger, HandshakeError> {
    let said = SelfDescription::decode(payload)
        .filter(|said| said.session_id == session_id)
        .ok_or(HandshakeError::Parameters)?;
    let static_key: [u8; 32] =
        noise.get_remote_static().and_then(|key| key.try_into().ok()).ok_or(HandshakeError::Decrypt)?;
    let identity = verify_certificate(&said.certificate, &static_key, unix_seconds)
        .filter(|identity| *identity != own.public_key().identity)
        .ok_or(HandshakeError::Certificate)?;
    Ok(Stranger { key: PublicKey { identity, static_key }, address: said.address })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Datagram = [u8; RESPONSE_MAX_LEN];

    fn identity(n: u8) -> Identity {
        Identity::from_secrets([n; 32], [n + 100; 32]).unwrap()
    }

    fn overlay(n: u8) -> OverlayAddress {
        OverlayAddress { network: 0, node: n.into() }
    }

    fn mac1(n: u8) -> Mac1Key {
        Mac1Key::to(&identity(n).public_key().static_key)
    }

    fn rng(n: u8) -> SeededRng {
        SeededRng::new([n; 32])
    }

    fn begin() -> (Opening, [u8; INITIATION_LEN]) {
        let mut datagram = [0; INITIATION_LEN];
        (Opening::begin(&identity(1), None, 11, rng(1), &mut datagram).unwrap(), datagram)
    }

    fn answer(by: u8, opening: &[u8]) -> Result<(Answered, Vec<u8>), HandshakeError> {
        let header = Header::parse(opening).map_err(|_| HandshakeError::Parameters)?;
        let covered = Mac1Key::to(&NOBODY).verify(opening).ok_or(HandshakeError::Mac)?;
        let mut datagram: Datagram = [0; RESPONSE_MAX_LEN];
        let own = (&identity(by), overlay(by));
        let (length, answered) = Answered::answer(own, 22, &mut rng(2), header, covered, &mut datagram)?;
        Ok((answered, datagram[..length].to_vec()))
    }

    fn prove(opening: &mut Opening, wanted: Option<u8>, answer: &[u8]) -> Result<(Proven, Vec<u8>), HandshakeError> {
        let mut datagram: Datagram = [0; RESPONSE_MAX_LEN];
        let wanted = wanted.map(|wanted| identity(wanted).public_key().identity);
        let own = (&identity(1), overlay(1));
        let (length, proven) = opening.prove(own, wanted.as_ref(), 0, answer, &mut datagram)?;
        Ok((proven, datagram[..length].to_vec()))
    }

    fn finish(answered: &mut Answered, by: u8, proof: &[u8]) -> Result<(Stranger, Vec<u8>), HandshakeError> {
        let mut datagram: Datagram = [0; RESPONSE_MAX_LEN];
        let (own, mac1) = (identity(by), mac1(by));
        let accepts = |key: &PublicKey| *key == identity(1).public_key();
        let (length, stranger, _) = answered.finish((&own, &mac1), 0, proof, accepts, &mut datagram)?;
        Ok((stranger, datagram[..length].to_vec()))
    }

    /// wire.md W3.30 to W3.33: each learns who the other is; whatever is changed on the way is refused, and ends nothing.
    #[test]
    fn both_learn_who_the_other_is() {
        let (mut opening, message_1) = begin();
        let (mut answered, message_2) = answer(2, &message_1).unwrap();
        assert!(message_2.len() < message_1.len(), "no amplification");
        for i in (0..message_2.len() - 2 * MAC_LEN).step_by(5) {
            let mut bad = message_2.clone();
            bad[i] ^= 1;
            assert!(prove(&mut opening, None, &bad).is_err(), "byte {i}");
            assert!(prove(&mut opening, None, &message_2[..i]).is_err(), "cut to {i}");
            // Anybody can make mac1 right here. What is before Noise's part it does not cover: a wrong header, or ciphertext,
            // shows later, and costs this attempt.
            Mac1Key::to(&NOBODY).write(&mut bad);
            assert!(i < 777 || prove(&mut opening, None, &bad).is_err(), "byte {i}, mac1 mended");
        }
        let (mut proven, message_3) = prove(&mut opening, Some(2), &message_2).unwrap();
        assert_eq!(proven.stranger, Stranger { key: identity(2).public_key(), address: overlay(2) });
        for i in (0..message_3.len() - 2 * MAC_LEN).step_by(5) {
            let mut bad = message_3.clone();
            bad[i] ^= 1;
            assert!(finish(&mut answered, 2, &bad).is_err(), "byte {i}");
            assert!(finish(&mut answered, 2, &message_3[..i]).is_err(), "cut to {i}");
            // With mac1 mended it costs the introduction. By the first bytes it came here.
            mac1(2).write(&mut bad);
            let mut another = answer(2, &message_1).unwrap().0;
            assert!(i < 5 || finish(&mut another, 2, &bad).is_err(), "byte {i}, mac1 mended");
        }
        let (stranger, receipt) = finish(&mut answered, 2, &message_3).unwrap();
        assert_eq!(stranger, Stranger { key: identity(1).public_key(), address: overlay(1) });
        for i in 0..receipt.len() - 2 * MAC_LEN {
            let mut bad = receipt.clone();
            bad[i] ^= 1;
            assert!(proven.read_receipt(&mac1(1), &bad).is_err(), "byte {i}");
            mac1(1).write(&mut bad);
            assert!(proven.read_receipt(&mac1(1), &bad).is_err(), "byte {i}");
        }
        assert_eq!(proven.read_receipt(&mac1(1), &receipt), Ok(true));
    }

    /// wire.md W3.32: a message is of the session that its header names.
    #[test]
    fn the_header_is_bound_to_its_message() {
        let (mut opening, message_1) = begin();
        let (_, mut message_2) = answer(2, &message_1).unwrap();
        message_2[5] ^= 1;
        Mac1Key::to(&NOBODY).write(&mut message_2);
        assert_eq!(prove(&mut opening, None, &message_2).err(), Some(HandshakeError::Parameters));
    }

    /// wire.md W3.31: without the KEM's secret there is no proof, whatever breaks X25519.
    #[test]
    fn another_ciphertext_is_another_handshake() {
        let (mut opening, message_1) = begin();
        let (mut answered, mut message_2) = answer(2, &message_1).unwrap();
        message_2[100] ^= 1;
        Mac1Key::to(&NOBODY).write(&mut message_2);
        let (_, message_3) = prove(&mut opening, None, &message_2).unwrap();
        assert_eq!(finish(&mut answered, 2, &message_3).err(), Some(HandshakeError::Decrypt));
    }

    /// wire.md W3.32: nobody learns who we are but the one that was wanted; and nobody is introduced to itself.
    #[test]
    fn the_wrong_one_learns_nothing() {
        let (mut opening, message_1) = begin();
        let (_, by_another) = answer(3, &message_1).unwrap();
        assert_eq!(prove(&mut opening, Some(2), &by_another).err(), Some(HandshakeError::Certificate));
        let (mut opening, message_1) = begin();
        let (_, by_ourselves) = answer(1, &message_1).unwrap();
        assert_eq!(prove(&mut opening, None, &by_ourselves).err(), Some(HandshakeError::Certificate));
    }

    /// wire.md W3.33: a proof is for one answer. Who repeats an opening and its proof proves nothing.
    #[test]
    fn a_replayed_proof_proves_nothing() {
        let (mut opening, message_1) = begin();
        let (_, message_2) = answer(2, &message_1).unwrap();
        let (_, message_3) = prove(&mut opening, None, &message_2).unwrap();
        let header = Header::parse(&message_1).unwrap();
        let covered = Mac1Key::to(&NOBODY).verify(&message_1).unwrap();
        let (own, mut datagram) = ((&identity(2), overlay(2)), [0; RESPONSE_MAX_LEN]);
        let (_, mut again) = Answered::answer(own, 22, &mut rng(3), header, covered, &mut datagram).unwrap();
        assert_eq!(finish(&mut again, 2, &message_3).err(), Some(HandshakeError::Decrypt));
    }
}
