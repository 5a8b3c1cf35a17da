//! What both ends tell each other in the handshake: the TLVs of `docs/wire.md` §3.

use std::time::Duration;

use super::aead::Aeads;
use super::kem::{ENCAPSULATION_KEY_LEN, KEM_ID};
use super::reset::ResetToken;
use crate::address::OverlayAddress;
use crate::codec::{Reader, Writer, varint_len};
use crate::identity::CERTIFICATE_LEN;
use crate::limits::{MAX_DATAGRAM_BYTES, MAX_PACKET_CREDIT, MIN_DATAGRAM_BYTES};

const END: u8 = 0;
const CERTIFICATE: u8 = 1;
const TIMESTAMP: u8 = 2;
const BOOT_ID: u8 = 3;
const ADDRESS: u8 = 4;
const AEAD: u8 = 5;
const SESSION_ID: u8 = 6;
const CONNECTION_CREDIT: u8 = 7;
const STREAM_CREDIT: u8 = 8;
const MAX_DATAGRAM: u8 = 9;
const ACK_DELAY: u8 = 10;
const PACKET_CREDIT: u8 = 11;
const IDLE_TIMEOUT: u8 = 12;
const KEM: u8 = 13;
const RESET_TOKEN: u8 = 14;
const STREAM_LIMIT: u8 = 15;
const RESUME: u8 = 16;
const BULK_PORT: u8 = 17;
const EPOCH: u8 = 18;
const LANE: u8 = 19;
const BULK_PACKET_CREDIT: u8 = 20;

/// One end's parameters. `timestamp` is there in an initiation and not in a response.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Parameters {
    pub(crate) certificate: [u8; CERTIFICATE_LEN],
    pub(crate) timestamp: Option<u64>,
    pub(crate) boot_id: [u8; 16],
    pub(crate) address: OverlayAddress,
    /// What the sender offers; in a response the one it chose.
    pub(crate) aeads: Aeads,
    pub(crate) session_id: u32,
    pub(crate) connection_credit: u64,
    pub(crate) stream_credit: u64,
    pub(crate) max_datagram: u16,
    pub(crate) ack_delay: Duration,
    pub(crate) packet_credit: u32,
    /// Of the bulk port.
    pub(crate) bulk_packet_credit: u32,
    pub(crate) idle_timeout: Duration,
    /// For the session id (W4.9).
    pub(crate) reset_token: Option<ResetToken>,
    pub(crate) stream_limit: u64,
    /// The sender's second UDP port (W6.8).
    pub(crate) bulk_port: Option<u16>,
    /// The tunnel whose connections the sender would continue (W3.14).
    pub(crate) resume: Option<u64>,
    /// In a response that continues a tunnel: the epoch of the key that it makes. In an initiation for a new key: that of the
    /// key in use (W4.7).
    pub(crate) epoch: Option<u64>,
    /// Which of the tunnels between both ends the handshake is for (W3.16).
    pub(crate) lane: u8,
}

impl Parameters {
    /// Writes the TLVs. `None`: no room, which the sizes of this version exclude.
    pub(crate) fn encode(&self, writer: &mut Writer<'_>) -> Option<()> {
        tlv(writer, CERTIFICATE, &self.certificate)?;
        if let Some(timestamp) = self.timestamp {
            tlv(writer, TIMESTAMP, &timestamp.to_be_bytes())?;
        }
        tlv(writer, BOOT_ID, &self.boot_id)?;
        tlv(writer, ADDRESS, &self.address.to_bytes())?;
        let mut aeads = [0; 2];
        let count = self.aeads.iter().zip(&mut aeads).map(|(aead, id)| *id = aead as u8).count();
        tlv(writer, AEAD, &aeads[..count])?;
        tlv(writer, SESSION_ID, &self.session_id.to_be_bytes())?;
        tlv_varint(writer, CONNECTION_CREDIT, self.connection_credit)?;
        tlv_varint(writer, STREAM_CREDIT, self.stream_credit)?;
        tlv(writer, MAX_DATAGRAM, &self.max_datagram.to_be_bytes())?;
        tlv_varint(writer, ACK_DELAY, u64::try_from(self.ack_delay.as_micros()).ok()?)?;
        tlv_varint(writer, PACKET_CREDIT, u64::from(self.packet_credit))?;
        tlv_varint(writer, IDLE_TIMEOUT, u64::try_from(self.idle_timeout.as_millis()).ok()?)?;
        if let Some(ResetToken(token)) = &self.reset_token {
            tlv(writer, RESET_TOKEN, token)?;
        }
        tlv_varint(writer, STREAM_LIMIT, self.stream_limit)?;
        if let Some(port) = self.bulk_port {
            tlv(writer, BULK_PORT, &port.to_be_bytes())?;
        }
        if self.bulk_packet_credit != self.packet_credit {
            tlv_varint(writer, BULK_PACKET_CREDIT, u64::from(self.bulk_packet_credit))?;
        }
        if let Some(epoch) = self.epoch {
            tlv_varint(writer, EPOCH, epoch)?;
        }
        if self.lane != 0 {
            tlv(writer, LANE, &[self.lane])?;
        }
        match self.resume {
            Some(tunnel) => tlv(writer, RESUME, &tunnel.to_be_bytes()),
            None => Some(()),
        }
    }

    /// Reads the TLVs; unknown ones are passed over (W3.6). `None`: malformed, out of range, or a mandatory one missing.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (mut certificate, mut timestamp, mut boot_id, mut address) = (None, None, None, None);
        let (mut aeads, mut session_id, mut reset_token) = (None, None, None);
        let (mut resume, mut bulk_port, mut bulk_packet_credit, mut epoch) = (None, None, None, None);
        // What a peer that leaves an optional parameter out is taken to say: the least that works.
        let (mut connection_credit, mut stream_credit, mut stream_limit) = (0, 0, 0);
        let (mut max_datagram, mut ack_delay) = (MIN_DATAGRAM_BYTES, crate::limits::MAX_ACK_DELAY);
        let (mut packet_credit, mut idle_timeout, mut lane) = (16, Duration::ZERO, 0);
        for tlv in tlvs(payload) {
            let (kind, value) = tlv?;
            match kind {
                CERTIFICATE => certificate = Some(value.try_into().ok()?),
                TIMESTAMP => timestamp = Some(u64::from_be_bytes(value.try_into().ok()?)),
                BOOT_ID => boot_id = Some(value.try_into().ok()?),
                ADDRESS => address = Some(OverlayAddress::from_bytes(value.try_into().ok()?)),
                AEAD => aeads = Aeads::from_wire(value),
                SESSION_ID => session_id = Some(u32::from_be_bytes(value.try_into().ok()?)).filter(|id| *id != 0),
                CONNECTION_CREDIT => connection_credit = varint(value)?,
                STREAM_CREDIT => stream_credit = varint(value)?,
                MAX_DATAGRAM => max_datagram = u16::from_be_bytes(value.try_into().ok()?),
                ACK_DELAY => ack_delay = Duration::from_micros(varint(value)?.min(1_000_000)),
                PACKET_CREDIT => packet_credit = packets(value)?,
                BULK_PACKET_CREDIT => bulk_packet_credit = Some(packets(value)?),
                IDLE_TIMEOUT => idle_timeout = Duration::from_millis(varint(value)?),
                RESET_TOKEN => reset_token = Some(ResetToken(value.try_into().ok()?)),
                STREAM_LIMIT => stream_limit = varint(value)?,
                RESUME => resume = Some(u64::from_be_bytes(value.try_into().ok()?)),
                BULK_PORT => bulk_port = Some(u16::from_be_bytes(value.try_into().ok()?)).filter(|port| *port != 0),
                EPOCH => epoch = Some(varint(value)?),
                LANE => [lane] = value.try_into().ok()?,
                _ => {}
            }
        }
        Some(Self {
            certificate: certificate?,
            timestamp,
            boot_id: boot_id?,
            address: address?,
            aeads: aeads?,
            session_id: session_id?,
            connection_credit,
            stream_credit,
            max_datagram: max_datagram.clamp(MIN_DATAGRAM_BYTES, MAX_DATAGRAM_BYTES),
            ack_delay,
            packet_credit: packet_credit.clamp(2, MAX_PACKET_CREDIT),
            bulk_packet_credit: bulk_packet_credit.unwrap_or(packet_credit).clamp(2, MAX_PACKET_CREDIT),
            idle_timeout,
            reset_token,
            stream_limit,
            bulk_port,
            resume,
            epoch,
            lane,
        })
    }
}

/// What both ends of an introduction say of themselves (W3.32): the TLVs that name a node, and bind its message to the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SelfDescription {
    pub(crate) certificate: [u8; CERTIFICATE_LEN],
    pub(crate) address: OverlayAddress,
    pub(crate) session_id: u32,
}

impl SelfDescription {
    /// Writes the TLVs. `None`: no room.
    pub(crate) fn encode(&self, writer: &mut Writer<'_>) -> Option<()> {
        tlv(writer, CERTIFICATE, &self.certificate)?;
        tlv(writer, ADDRESS, &self.address.to_bytes())?;
        tlv(writer, SESSION_ID, &self.session_id.to_be_bytes())
    }

    /// Reads the TLVs; unknown ones are passed over (W3.6). `None`: malformed, or one missing.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (mut certificate, mut address, mut session_id) = (None, None, None);
        for tlv in tlvs(payload) {
            let (kind, value) = tlv?;
            match kind {
                CERTIFICATE => certificate = Some(value.try_into().ok()?),
                ADDRESS => address = Some(OverlayAddress::from_bytes(value.try_into().ok()?)),
                SESSION_ID => session_id = Some(u32::from_be_bytes(value.try_into().ok()?)),
                _ => {}
            }
        }
        Some(Self { certificate: certificate?, address: address?, session_id: session_id? })
    }
}

/// Writes TLV 13. It is none of [`Parameters`], which last as long as a session: the key is done with when it was used.
pub(crate) fn write_encapsulation_key(writer: &mut Writer<'_>, key: &[u8; ENCAPSULATION_KEY_LEN]) -> Option<()> {
    writer.u8(KEM)?;
    writer.u16(1 + ENCAPSULATION_KEY_LEN as u16)?;
    writer.u8(KEM_ID)?;
    writer.bytes(key)
}

/// The encapsulation key of TLV 13, if there is one of the KEM that this version uses.
pub(crate) fn encapsulation_key(payload: &[u8]) -> Option<&[u8; ENCAPSULATION_KEY_LEN]> {
    tlvs(payload).flatten().find_map(|(kind, value)| match value.split_first() {
        Some((&KEM_ID, key)) if kind == KEM => key.try_into().ok(),
        _ => None,
    })
}

/// Types and values, up to the padding. `None`: one that is cut, the last.
fn tlvs(payload: &[u8]) -> impl Iterator<Item = Option<(u8, &[u8])>> {
    let mut reader = Reader::new(payload);
    std::iter::from_fn(move || {
        let kind = reader.u8().filter(|kind| *kind != END)?;
        let value = reader.u16().and_then(|length| reader.bytes(length.into()));
        Some(value.map(|value| (kind, value)))
    })
}

fn varint(value: &[u8]) -> Option<u64> {
    let mut reader = Reader::new(value);
    reader.varint().filter(|_| reader.is_empty())
}

fn tlv(writer: &mut Writer<'_>, kind: u8, value: &[u8]) -> Option<()> {
    writer.u8(kind)?;
    writer.u16(u16::try_from(value.len()).ok()?)?;
    writer.bytes(value)
}

fn packets(value: &[u8]) -> Option<u32> {
    Some(u32::try_from(varint(value)?).unwrap_or(u32::MAX))
}

fn tlv_varint(writer: &mut Writer<'_>, kind: u8, value: u64) -> Option<()> {
    writer.u8(kind)?;
    writer.u16(varint_len(value) as u16)?;
    writer.varint(value)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Parameters {
        Parameters {
            certificate: [3; CERTIFICATE_LEN],
            timestamp: Some(1 << 60),
            boot_id: [4; 16],
            address: OverlayAddress { network: 1, node: 2 },
            aeads: Aeads::detect(),
            session_id: 77,
            connection_credit: 1 << 20,
            stream_credit: 1 << 19,
            max_datagram: 1472,
            ack_delay: Duration::from_micros(900),
            packet_credit: 128,
            bulk_packet_credit: 1000,
            idle_timeout: Duration::from_secs(30),
            reset_token: Some(ResetToken([5; 16])),
            stream_limit: 100,
            bulk_port: Some(4343),
            resume: Some(99),
            epoch: Some(3),
            lane: 0,
        }
    }

    fn encoded(parameters: &Parameters) -> Vec<u8> {
        let mut buffer = [0; 400];
        let mut writer = Writer::new(&mut buffer);
        parameters.encode(&mut writer).unwrap();
        let length = writer.len();
        buffer[..length].to_vec()
    }

    #[test]
    fn round_trip_with_padding_and_unknown_tlvs() {
        let mut bytes = encoded(&sample());
        bytes.splice(0..0, [200, 0, 3, 1, 2, 3]);
        bytes.extend([0; 50]);
        assert_eq!(Parameters::decode(&bytes), Some(sample()));
    }

    /// wire.md W3.16: none is lane 0, and a malformed one no lane.
    #[test]
    fn lanes() {
        let lane_7 = Parameters { lane: 7, ..sample() };
        let bytes = encoded(&lane_7);
        assert_eq!(Parameters::decode(&bytes), Some(lane_7));
        assert_eq!(bytes.len(), encoded(&sample()).len() + 4, "lane 0 is not said");
        for malformed in [&[LANE, 0, 0][..], &[LANE, 0, 2, 0, 1]] {
            assert_eq!(Parameters::decode(&[&encoded(&sample()), malformed].concat()), None);
        }
    }

    /// wire.md W6.5: a node that says nothing of its bulk port takes no more there than at its first.
    #[test]
    fn packet_credits() {
        for (first, bulk, said) in
            [(128, 1000, (128, 1000)), (128, 128, (128, 128)), (128, 1 << 20, (128, 4096)), (1, 1, (2, 2))]
        {
            let bytes = encoded(&Parameters { packet_credit: first, bulk_packet_credit: bulk, ..sample() });
            let decoded = Parameters::decode(&bytes).unwrap();
            assert_eq!((decoded.packet_credit, decoded.bulk_packet_credit), said);
        }
        let equal = encoded(&Parameters { bulk_packet_credit: 128, ..sample() });
        assert_eq!(equal.len() + 5, encoded(&sample()).len(), "what is the same is not said");
    }

    /// wire.md W3.13
    #[test]
    fn the_encapsulation_key_is_found_by_its_kem() {
        let key = [5; ENCAPSULATION_KEY_LEN];
        let mut bytes = [13, 0, 2, KEM_ID + 1, 0, 13, 0, 0].to_vec();
        assert_eq!(encapsulation_key(&bytes), None, "another KEM, and none at all");
        bytes.extend(encoded(&sample()));
        let mut buffer = [0; 1000];
        let mut writer = Writer::new(&mut buffer);
        write_encapsulation_key(&mut writer, &key).unwrap();
        let length = writer.len();
        bytes.extend(&buffer[..length]);
        assert_eq!(encapsulation_key(&bytes), Some(&key));
        assert_eq!(Parameters::decode(&bytes), Some(sample()), "no business of the parameters");
        assert_eq!(encapsulation_key(&bytes[..bytes.len() - 1]), None, "cut");
    }

    /// wire.md W3.6: cut anywhere, it is refused or says the same of what is left; a mandatory TLV is never made up.
    #[test]
    fn truncated_is_never_accepted_without_the_mandatory() {
        let bytes = encoded(&sample());
        let optional_from = bytes.len() - 11;
        for length in 0..bytes.len() {
            let decoded = Parameters::decode(&bytes[..length]);
            assert!(decoded.is_none() || length < optional_from || decoded.unwrap().resume.is_none(), "{length}");
        }
        assert_eq!(Parameters::decode(&bytes[..107]), None, "certificate alone");
    }
}
