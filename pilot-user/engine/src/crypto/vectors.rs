//! The messages of wire version 1, byte by byte, as `tests/vectors/wire_1.txt` has them. What is written there must always be
//! read (`docs/wire.md` §9); what is written now is the same, unless it was changed on purpose:
//!
//! ```text
//! PILOT_WRITE_VECTORS=1 cargo test -p pilot-engine --lib crypto::vectors
//! ```

use std::path::Path;

use pilot_common::wire::{HEADER_LEN, Header, INITIATION_LEN, PacketType, RESPONSE_MAX_LEN, TAG_LEN};

use super::aead::{Aead, Aeads, KeyPair};
use super::cookie::{self, Cookies, write_mac2};
use super::handshake::{Initiated, Initiation, Secrets};
use super::mac::Mac1Key;
use super::parameters::{Parameters, tests::sample};
use super::reset::ResetKey;
use super::rng::SeededRng;
use crate::codec::{Reader, Writer};
use crate::frame::{self, Frame};
use crate::identity::Identity;

const PATH: &str = "tests/vectors/wire_1.txt";
const UNIX_TIME: std::time::Duration = std::time::Duration::from_secs(1_700_000_000);
const SOURCE: &str = "192.0.2.1:4242";

/// A node, from secrets of 32 equal bytes.
struct Node {
    identity: Identity,
    mac1: Mac1Key,
    parameters: Parameters,
}

fn node(n: u8) -> Node {
    let identity = Identity::from_secrets([n; 32], [n + 100; 32]).unwrap();
    let mac1 = Mac1Key::to(&identity.public_key().static_key);
    let mut parameters = sample();
    parameters.certificate = *identity.certificate();
    parameters.session_id = 0x0100_0000 | u32::from(n);
    parameters.timestamp = (n == 1).then_some(UNIX_TIME.as_nanos() as u64);
    parameters.aeads = Aeads::only(Aead::ChaCha20Poly1305);
    // The vectors were kept before there was a parameter for it: it is left out.
    parameters.bulk_packet_credit = parameters.packet_credit;
    Node { identity, mac1, parameters }
}

fn begin(datagram: &mut [u8; INITIATION_LEN]) -> Initiation {
    let ([a, b], rng) = ([node(1), node(2)], SeededRng::new([11; 32]));
    let peer = b.identity.public_key();
    Initiation::begin(&a.identity, &peer, (&b.mac1, None), &a.parameters, rng, datagram).unwrap()
}

fn read(initiation: &[u8]) -> Initiated {
    let b = node(2);
    let covered = b.mac1.verify(initiation).unwrap();
    let header = Header::parse(initiation).unwrap();
    Initiated::read(&b.identity, SeededRng::new([22; 32]), UNIX_TIME.as_secs(), header, covered).unwrap()
}

fn answer(initiated: Initiated) -> (Vec<u8>, Secrets) {
    let mut datagram = [0; RESPONSE_MAX_LEN];
    let (peer, mut rng) = (node(1).mac1, SeededRng::new([33; 32]));
    let (length, secrets) = initiated.answer(&peer, &node(2).parameters, &mut rng, &mut datagram).unwrap();
    (datagram[..length].to_vec(), secrets)
}

fn finish(initiation: &mut Initiation, response: &[u8]) -> Secrets {
    let peer = node(2).identity.public_key();
    initiation.finish(&node(1).mac1, &peer, UNIX_TIME.as_secs(), response).unwrap()
}

fn frames() -> Vec<u8> {
    let mut buffer = [0; 100];
    let mut writer = Writer::new(&mut buffer);
    frame::write_open(&mut writer, 0, 7).unwrap();
    frame::write_message(&mut writer, 0, 0, b"anomaly count 48").unwrap();
    let length = writer.len();
    buffer[..length].to_vec()
}

/// A data packet; `number` is above 32 bits, of which the header has the low ones.
fn data(keys: &mut KeyPair, receiver: u32, number: u64) -> Vec<u8> {
    let header = Header { packet_type: PacketType::Data, epoch: 0, receiver, word: number as u32 };
    let mut packet = [&header.to_bytes()[..], &frames(), &[0; TAG_LEN]].concat();
    keys.seal(number, &mut packet).unwrap();
    packet
}

const NUMBERS: [u64; 2] = [5, (1 << 32) + 6];

/// All messages, by name.
fn written() -> Vec<(&'static str, Vec<u8>)> {
    let mut initiation = [0; INITIATION_LEN];
    let mut attempt = begin(&mut initiation);
    let (response, mut at_b) = answer(read(&initiation));
    let mut at_a = finish(&mut attempt, &response);
    let data_to_responder = data(&mut at_a.keys, at_a.peer.session_id, NUMBERS[0]);
    let data_to_initiator = data(&mut at_b.keys, at_b.peer.session_id, NUMBERS[1]);
    let (b, mut rng) = (node(2).identity, SeededRng::new([44; 32]));
    let cookie = Cookies::new(&b, &b.public_key().static_key)
        .reply(UNIX_TIME, SOURCE.parse().unwrap(), &initiation, &mut rng)
        .unwrap();
    let opened = cookie::open(&b.public_key().static_key, attempt.mac1(), &cookie).unwrap();
    let mut with_cookie = initiation;
    write_mac2(&opened, &mut with_cookie);
    let mut other_version = initiation;
    other_version[0] = 2 << 5 | (PacketType::Initiation as u8) << 2;
    let versions = crate::version::Answer::to(&other_version).unwrap().to_bytes();
    let id = node(2).parameters.session_id;
    let source: std::net::SocketAddr = SOURCE.parse().unwrap();
    let reset = ResetKey::of(&b).token(id, source.ip()).to_datagram(id);
    vec![
        ("reset", reset.to_vec()),
        ("initiation", initiation.to_vec()),
        ("cookie", cookie.to_vec()),
        ("initiation_with_cookie", with_cookie.to_vec()),
        ("response", response),
        ("data_to_responder", data_to_responder),
        ("data_to_initiator", data_to_initiator),
        ("frames", frames()),
        ("versions", versions.to_vec()),
    ]
}

/// The file, as it was kept.
fn kept(name: &str) -> Vec<u8> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(PATH)).unwrap();
    let hex = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

#[test]
fn what_is_written_has_not_changed() {
    let written = written();
    if std::env::var_os("PILOT_WRITE_VECTORS").is_some() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let lines: String = written.iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect();
        let head = "# Messages of wire version 1 in hex, see src/crypto/vectors.rs. Later versions must read them.\n";
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(PATH), head.to_owned() + &lines).unwrap();
    }
    for (name, bytes) in written {
        assert!(bytes == kept(name), "{name} is another");
    }
}

#[test]
fn what_was_written_is_read() {
    let initiated = read(&kept("initiation"));
    assert_eq!(initiated.key, node(1).identity.public_key());
    assert_eq!(initiated.parameters, node(1).parameters);
    let source = SOURCE.parse().unwrap();
    let b = node(2).identity;
    let cookies = Cookies::new(&b, &b.public_key().static_key);
    assert!(cookies.verify(UNIX_TIME, source, &kept("initiation_with_cookie")));

    // Whatever this version says in an initiation of its own, here it has said what is kept.
    let mut initiation = [0; INITIATION_LEN];
    let mut attempt = begin(&mut initiation);
    assert_eq!(initiation[..], kept("initiation"));
    let at_a = finish(&mut attempt, &kept("response"));
    let (_, at_b) = answer(initiated);
    assert_eq!(at_a.peer, node(2).parameters);
    let packets = [("data_to_responder", at_b), ("data_to_initiator", at_a)];
    for ((name, mut secrets), number) in packets.into_iter().zip(NUMBERS) {
        let packet = kept(name);
        assert_eq!(Header::parse(&packet).unwrap().word, number as u32);
        let mut opened = [0; 100];
        let length = secrets.keys.open(number, &packet, &mut opened).unwrap();
        assert_eq!((length, &opened[..length]), (packet.len() - HEADER_LEN - TAG_LEN, &kept("frames")[..]));
        let mut reader = Reader::new(&opened[..length]);
        assert_eq!(Frame::next(&mut reader), Ok(Some(Frame::Open { connection: 0, port: 7 })));
        let message = Frame::Message { connection: 0, number: 0, payload: b"anomaly count 48" };
        assert_eq!(Frame::next(&mut reader), Ok(Some(message)));
    }
    assert!(crate::version::Answer::from_bytes(&kept("versions")).unwrap().versions.contains(1));
}
