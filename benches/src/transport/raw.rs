//! AF_XDP alone: frames with headers, and nothing above them, neither reliable nor encrypted. What Pilot could reach if transport
//! and encryption were free. The payload has Pilot's header, because the XDP program redirects nothing else.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure};
use pilot_common::datagram::{Headers, parse};
use pilot_common::maps;
use pilot_common::wire::{HEADER_LEN, Header, PacketType, TAG_LEN};
use pilot_user::control::attach::{AttachMode, Program, Steering};
use pilot_xsk::nic::Facts;
use pilot_xsk::{Flushed, Mode, Options, RECV_BATCH, Xsk};
use serde_json::{Value, json};

use super::{FAR, Kind, Load, MESSAGE, Meter, NEAR, Ready, Recorder, Stop, System};
use crate::place::{DEVICE, Places};

/// What every packet is for.
const SESSION: u32 = 1;
/// Room for the headers before the payload.
const HEADROOM: usize = 128;
/// IPv4 and UDP: what a frame of a device's MTU has beside its payload.
const HEADERS_BYTES: usize = 28;
/// A packet of Pilot's that carries [`MESSAGE`]: header, frame head, message, tag.
const PACKET_BYTES: usize = HEADER_LEN + 4 + MESSAGE.len() + TAG_LEN;
/// Without an answer for so long, the question is asked again: the other end's program may not have been attached yet.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(100);
/// Looks before the clock is asked whether that has passed.
const LOOKS: u32 = 10_000;

pub(crate) struct Raw;

/// One end: a socket with the XDP program before it.
struct End {
    xsk: Xsk,
    _program: Program,
    own: Facts,
    end: usize,
    /// Where frames are sent: to everybody until a frame has said where the other end is.
    to: [u8; 6],
    /// Frames for which there was no room.
    refused: u64,
}

impl End {
    fn new(end: usize) -> anyhow::Result<Self> {
        let own = Facts::read(DEVICE)?;
        let address = Places::address(end);
        let local = BTreeSet::from([address.ip()]);
        let config = maps::Config { port: address.port(), mtu: own.mtu, allow_all: true };
        let steering = Steering { config, local: &local, allow_from: &[] };
        let mut program = Program::load(1)?;
        program.sessions(0)?.insert(SESSION);
        program.attach(&own.name, own.ifindex, AttachMode::Generic, &steering)?;
        let mut xsk = Xsk::open(own.ifindex, 0, &Options { mode: Mode::Copy, ..Options::for_mtu(own.mtu) })?;
        xsk.refill().map_err(std::io::Error::from)?;
        program.set_socket(0, xsk.fd())?;
        Ok(Self { xsk, _program: program, own, end, to: [0xff; 6], refused: 0 })
    }

    /// Takes what has arrived: frames, and bytes of payload in all.
    fn receive(&mut self) -> anyhow::Result<(u64, u64)> {
        self.xsk.refill().map_err(std::io::Error::from)?;
        let (mut frames, mut bytes) = (0, 0);
        self.xsk.recv(RECV_BATCH, |frame| {
            if let Ok(datagram) = parse(frame) {
                self.to = datagram.source_mac;
                frames += 1;
                bytes += datagram.layout.payload_len as u64;
            }
        });
        Ok((frames, bytes))
    }

    /// Queues a frame, if there is room.
    fn queue(&mut self, payload: &[u8]) -> anyhow::Result<bool> {
        let headers = Headers {
            destination_mac: self.to,
            source_mac: self.own.mac,
            tag: None,
            source: Places::address(self.end),
            destination: Places::address(1 - self.end),
            ecn: 0,
        };
        let Some(mut chunk) = self.xsk.tx_chunk() else { return Ok(false) };
        let bytes = chunk.bytes();
        ensure!(bytes.len() >= HEADROOM + payload.len(), "{} bytes do not fit into a chunk", payload.len());
        bytes[HEADROOM..HEADROOM + payload.len()].copy_from_slice(payload);
        let (room, rest) = bytes.split_at_mut(HEADROOM);
        let length = headers.write_back(room, &rest[..payload.len()]).map_err(|error| anyhow!("headers: {error:?}"))?;
        chunk.send(HEADROOM - length, length + payload.len());
        Ok(true)
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        if let Flushed::Queued(frames) = self.xsk.flush().map_err(std::io::Error::from)? {
            self.refused += u64::from(frames);
        }
        Ok(())
    }

    fn send(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        ensure!(self.queue(payload)?, "one frame is under way at a time, and there is no room for it");
        self.flush()
    }

    /// As many bytes as a packet of Pilot's takes for a message, there and back. Whether it came back.
    fn round_trip(&mut self) -> anyhow::Result<bool> {
        self.send(&packet(PACKET_BYTES))?;
        let asked = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if self.receive()?.0 > 0 {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            if asked.elapsed() >= ANSWER_TIMEOUT {
                return Ok(false);
            }
        }
    }
}

/// What looks like a data packet to the XDP program.
fn packet(length: usize) -> Vec<u8> {
    let header = Header { packet_type: PacketType::Data, epoch: 0, receiver: SESSION, word: 0 };
    let mut packet = vec![0; length];
    packet[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    packet
}

impl System for Raw {
    fn serve(&self, load: &Load, meter: &Meter, ready: Ready, stop: &Stop) -> anyhow::Result<Value> {
        let mut end = End::new(FAR)?;
        let answer = packet(PACKET_BYTES);
        ready.say();
        while !stop.is_set() {
            match end.receive()? {
                (0, _) => std::hint::spin_loop(),
                (_, bytes) if load.kind == Kind::Bulk && bytes > 0 => {
                    // What acquaints the ends is answered, and no bulk.
                    if bytes == PACKET_BYTES as u64 { end.send(&answer)? } else { meter.arrived(0, bytes) }
                }
                _ => end.send(&answer)?,
            }
        }
        Ok(json!(null))
    }

    fn ask(&self, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value> {
        let mut end = End::new(NEAR)?;
        ensure!((0..100).any(|_| end.round_trip().unwrap_or(false)), "the other end does not answer");
        let mut unanswered = 0_u64;
        recorder.start();
        match load.kind {
            Kind::Echo => {
                while let Some(began) = recorder.one() {
                    if end.round_trip()? { recorder.took(began) } else { unanswered += 1 }
                }
            }
            Kind::Bulk => {
                let payload = packet(usize::from(load.mtu) - HEADERS_BYTES);
                while recorder.goes_on() {
                    for _ in 0..RECV_BATCH {
                        if !end.queue(&payload)? {
                            break;
                        }
                    }
                    end.flush()?;
                }
            }
            _ => bail!("frames alone have echoes and bulk only"),
        }
        Ok(json!({
            "encrypted": false, "attach": "generic", "mode": "copy", "unanswered": unanswered, "refused": end.refused,
        }))
    }
}
