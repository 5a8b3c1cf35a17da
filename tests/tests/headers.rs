//! What `pilot-common` writes it reads, for any values; any bytes are read as what they say, or refused.

use std::net::{IpAddr, SocketAddr};

use pilot_common::datagram::{self, Headers, MAX_HEADERS_LEN, WriteError};
use pilot_common::wire::{HEADER_LEN, Header};
use proptest::prelude::*;

/// Headers of one family or the other, or of both.
fn headers() -> impl Strategy<Value = Headers> {
    let macs = (any::<[u8; 6]>(), any::<[u8; 6]>());
    let addresses = prop_oneof![
        any::<[[u8; 4]; 2]>().prop_map(|ips| ips.map(IpAddr::from)),
        any::<[[u8; 16]; 2]>().prop_map(|ips| ips.map(IpAddr::from)),
        any::<([u8; 4], [u8; 16])>().prop_map(|(v4, v6)| [v4.into(), v6.into()]),
    ];
    (macs, any::<Option<u16>>(), addresses, any::<[u16; 2]>(), 0u8..4).prop_map(|(macs, tag, ips, ports, ecn)| {
        Headers {
            destination_mac: macs.0,
            source_mac: macs.1,
            tag,
            source: SocketAddr::new(ips[0], ports[0]),
            destination: SocketAddr::new(ips[1], ports[1]),
            ecn,
        }
    })
}

proptest! {
    /// wire.md W2.6
    #[test]
    fn frames_round_trip_and_do_not_survive_truncation(
        headers in headers(),
        payload in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut room = [0xee; MAX_HEADERS_LEN];
        let written = headers.write_back(&mut room, &payload);
        if headers.source.is_ipv4() != headers.destination.is_ipv4() {
            prop_assert!(matches!(written, Err(WriteError::Families { .. })), "{:?}", written);
            return Ok(());
        }
        prop_assert_eq!(written, Ok(headers.len()));
        let before = MAX_HEADERS_LEN - headers.len();
        prop_assert!(room[..before].iter().all(|byte| *byte == 0xee), "more was written than said");
        let frame = [&room[before..], &payload].concat();
        let read = datagram::parse(frame.as_slice()).expect("what was written");
        let layout = &read.layout;
        let read_headers = Headers {
            destination_mac: read.destination_mac,
            source_mac: read.source_mac,
            tag: layout.tag,
            source: read.source,
            destination: read.destination,
            ecn: layout.ecn,
        };
        prop_assert_eq!(read_headers, headers);
        prop_assert_eq!(&frame[layout.payload_offset..][..layout.payload_len], &payload);
        for cut in 0..frame.len() {
            prop_assert!(datagram::parse(&frame[..cut]).is_err(), "cut to {}", cut);
        }
        let short = &mut [0; MAX_HEADERS_LEN][..headers.len() - 1];
        let refused = WriteError::NoRoom { given: headers.len() - 1, needed: headers.len() };
        prop_assert_eq!(headers.write_back(short, &payload), Err(refused));
    }

    /// wire.md W1.1, W1.4, W1.5
    #[test]
    fn any_bytes_are_a_header_or_none(first in prop_oneof![any::<u8>(), 0x20u8..0x40], rest: [u8; 8], length in 0usize..1300) {
        let mut datagram = vec![0; length.max(HEADER_LEN)];
        datagram[0] = first;
        datagram[1..HEADER_LEN].copy_from_slice(&rest);
        datagram.truncate(length);
        if let Ok(header) = Header::parse(&datagram) {
            prop_assert_eq!(&header.to_bytes(), &datagram[..HEADER_LEN], "no bit is without meaning");
        }
    }
}
