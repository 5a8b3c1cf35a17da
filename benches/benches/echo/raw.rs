//! AF_XDP alone: frames with headers, and nothing above them. What Pilot could reach if transport and encryption were
//! free. The payload has Pilot's header, because the XDP program redirects nothing else.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pilot_common::datagram::{Headers, parse};
use pilot_common::maps;
use pilot_common::wire::{HEADER_LEN, Header, PacketType, TAG_LEN};
use pilot_user::control::attach::{AttachMode, Program, Steering};
use pilot_xsk::nic::Facts;
use pilot_xsk::{Flushed, Options, Xsk};

use crate::scene::{ADDRESSES, DEVICES};

/// What every packet is for.
const SESSION: u32 = 1;

/// Room for the headers before the payload.
const HEADROOM: usize = 128;

/// One end: a socket with the XDP program before it.
pub(crate) struct End {
    xsk: Xsk,
    _program: Program,
    own: Facts,
    end: usize,
}

impl End {
    fn new(end: usize) -> anyhow::Result<Self> {
        let own = Facts::read(DEVICES[end])?;
        let local = BTreeSet::from([ADDRESSES[end].ip()]);
        let config = maps::Config { port: ADDRESSES[end].port(), mtu: own.mtu, allow_all: true };
        let steering = Steering { config, local: &local, allow_from: &[] };
        let mut program = Program::load(1)?;
        program.sessions(0)?.insert(SESSION);
        program.attach(&own.name, own.ifindex, AttachMode::Generic, &steering)?;
        let mut xsk = Xsk::open(own.ifindex, 0, &Options { mode: pilot_xsk::Mode::Copy, ..Options::for_mtu(own.mtu) })?;
        xsk.refill().map_err(std::io::Error::from)?;
        program.set_socket(0, xsk.fd())?;
        Ok(Self { xsk, _program: program, own, end })
    }

    /// Takes what has arrived; the last frame's sender, if any came.
    fn receive(&mut self) -> Option<[u8; 6]> {
        self.xsk.refill().expect("the device stays up");
        let mut from = None;
        self.xsk.recv(64, |frame| from = parse(frame).ok().map(|datagram| datagram.source_mac));
        from
    }

    fn send(&mut self, to: [u8; 6], payload: &[u8]) {
        let headers = Headers {
            destination_mac: to,
            source_mac: self.own.mac,
            tag: None,
            source: ADDRESSES[self.end],
            destination: ADDRESSES[1 - self.end],
            ecn: 0,
        };
        let mut chunk = self.xsk.tx_chunk().expect("one frame is under way at a time");
        let bytes = chunk.bytes();
        bytes[HEADROOM..HEADROOM + payload.len()].copy_from_slice(payload);
        let (room, rest) = bytes.split_at_mut(HEADROOM);
        let length = headers.write_back(room, &rest[..payload.len()]).expect("the room is enough");
        chunk.send(HEADROOM - length, length + payload.len());
        assert!(matches!(self.xsk.flush(), Ok(Flushed::All)), "the device stays up, and the ring is empty");
    }

    /// As many bytes as a packet of Pilot's takes for a delta of this length, there and back.
    pub(crate) fn round_trip(&mut self, delta: &[u8]) {
        self.send([0xff; 6], &packet(delta.len()));
        while self.receive().is_none() {
            std::hint::spin_loop();
        }
    }
}

/// What looks like a data packet to the XDP program.
fn packet(delta: usize) -> [u8; 48] {
    let header = Header { packet_type: PacketType::Data, epoch: 0, receiver: SESSION, word: 0 };
    let mut packet = [0; 48];
    assert_eq!(HEADER_LEN + 4 + delta + TAG_LEN, packet.len(), "header, frame head, delta, tag");
    packet[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    packet
}

/// Sends back until told to stop.
pub(crate) fn server(stop: &AtomicBool) -> anyhow::Result<()> {
    let mut end = End::new(1)?;
    while !stop.load(Ordering::Relaxed) {
        if let Some(from) = end.receive() {
            end.send(from, &packet(19));
        }
    }
    Ok(())
}

/// Opens the asking end and lets `bench` use it.
pub(crate) fn client(bench: impl FnOnce(&mut End)) -> anyhow::Result<()> {
    let mut end = End::new(0)?;
    // The other end attaches meanwhile; a frame that came before would never be answered.
    std::thread::sleep(Duration::from_millis(500));
    bench(&mut end);
    Ok(())
}
