//! AF_XDP alone: full frames one way, as fast as the sender's ring takes them. What Pilot could reach if transport and encryption
//! were free. The payload has Pilot's header, because the XDP program redirects nothing else.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use pilot_common::datagram::{Headers, MAX_HEADERS_LEN};
use pilot_common::maps;
use pilot_common::wire::{HEADER_LEN, Header, PacketType};
use pilot_user::control::attach::{AttachMode, Program, Steering};
use pilot_xsk::nic::Facts;
use pilot_xsk::{Options, Xsk};

use crate::Measured;
use crate::scene::{ADDRESSES, DEVICES};

const SESSION: u32 = 1;

/// Room for the headers before the payload.
const HEADROOM: usize = 128;

/// Frames from one kick to the next.
const BATCH: usize = 64;

fn open(end: usize) -> anyhow::Result<(Xsk, Program, Facts)> {
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
    Ok((xsk, program, own))
}

/// Counts the bytes of payload that come in `time`.
pub(crate) fn receiver(payload: usize, time: Duration, stop: &AtomicBool) -> anyhow::Result<Measured> {
    let (mut xsk, _program, _) = open(1)?;
    let mut frames = 0_u64;
    let mut take = |until: Duration| -> anyhow::Result<(u64, Duration)> {
        let (before, from) = (frames, Instant::now());
        while from.elapsed() < until && !stop.load(Ordering::Relaxed) {
            xsk.refill().map_err(std::io::Error::from)?;
            for _ in 0..16 {
                xsk.recv(BATCH, |_| frames += 1);
            }
        }
        Ok((frames - before, from.elapsed()))
    };
    take(Duration::from_secs(1))?;
    let (frames, elapsed) = take(time)?;
    stop.store(true, Ordering::Relaxed);
    let notes = format!("{payload} B datagrams, {:.3} Mpps", frames as f64 / elapsed.as_secs_f64() * 1e-6);
    Ok(Measured { bytes: frames * payload as u64, elapsed, notes })
}

/// Sends until told to stop.
pub(crate) fn sender(payload: usize, stop: &AtomicBool) -> anyhow::Result<String> {
    let (mut xsk, _program, own) = open(0)?;
    let header = Header { packet_type: PacketType::Data, epoch: 0, receiver: SESSION, word: 0 };
    let mut packet = vec![0; payload];
    packet.get_mut(..HEADER_LEN).context("a payload")?.copy_from_slice(&header.to_bytes());
    let headers = Headers {
        destination_mac: [0xff; 6],
        source_mac: own.mac,
        tag: None,
        source: ADDRESSES[0],
        destination: ADDRESSES[1],
        ecn: 0,
    };
    let mut room = [0; MAX_HEADERS_LEN];
    let length = headers.write_back(&mut room, &packet)?;
    let frame = [&room[MAX_HEADERS_LEN - length..], &packet].concat();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..BATCH {
            let Some(mut chunk) = xsk.tx_chunk() else { break };
            chunk.bytes()[HEADROOM..HEADROOM + frame.len()].copy_from_slice(&frame);
            chunk.send(HEADROOM, frame.len());
        }
        let _ = xsk.flush().map_err(std::io::Error::from)?;
    }
    Ok(String::new())
}
