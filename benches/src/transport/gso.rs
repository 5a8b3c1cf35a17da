//! The kernel's UDP with segmentation offload: as many datagrams as one call takes, neither reliable nor encrypted. What UDP in the
//! kernel can carry at best.

use std::io::{ErrorKind, IoSliceMut};
use std::net::UdpSocket;

use anyhow::bail;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use serde_json::{Value, json};

use super::{FAR, Kind, LOOK, Load, Meter, NEAR, Ready, Recorder, Stop, System};
use crate::place::Places;

/// IPv4 and UDP: what a frame of a device's MTU has beside its payload.
const HEADERS_BYTES: usize = 28;
/// What the kernel takes at once, as the length of an IP datagram, less headers.
const SUPER_PACKET_BYTES: usize = 65_535 - HEADERS_BYTES;
/// Bytes asked of the kernel for either buffer: quinn's default is the system's, which is below what one pass brings.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

pub(crate) struct Gso;

fn socket(end: usize) -> anyhow::Result<(UdpSocket, UdpSocketState)> {
    let socket = UdpSocket::bind(Places::address(end))?;
    let state = UdpSocketState::new((&socket).into())?;
    // As much as the system allows.
    let _ = state.set_send_buffer_size((&socket).into(), SOCKET_BUFFER_BYTES);
    let _ = state.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER_BYTES);
    Ok((socket, state))
}

impl System for Gso {
    fn serve(&self, _: &Load, meter: &Meter, ready: Ready, stop: &Stop) -> anyhow::Result<Value> {
        let (socket, state) = socket(FAR)?;
        // Sleeps where there is nothing, and looks whether it shall stop.
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(LOOK))?;
        ready.say();
        let mut buffers = vec![vec![0; 64 << 10]; BATCH_SIZE];
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        while !stop.is_set() {
            let mut slices: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            match state.recv((&socket).into(), &mut slices, &mut metas) {
                Ok(count) => meter.arrived(0, metas[..count].iter().map(|meta| meta.len as u64).sum()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(json!({"gro_segments": state.gro_segments()}))
    }

    fn ask(&self, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value> {
        if load.kind != Kind::Bulk {
            bail!("segmentation offload is for bulk only");
        }
        let (socket, state) = socket(NEAR)?;
        socket.set_nonblocking(false)?;
        let segment = usize::from(load.mtu) - HEADERS_BYTES;
        let segments = state.max_gso_segments().min(SUPER_PACKET_BYTES / segment);
        let contents = vec![0x5a; segment * segments];
        let destination = Places::address(FAR);
        let transmit =
            Transmit { destination, ecn: None, contents: &contents, segment_size: Some(segment), src_ip: None };
        recorder.start();
        while recorder.goes_on() {
            state.try_send((&socket).into(), &transmit)?;
        }
        Ok(json!({"encrypted": false, "gso_segments": segments}))
    }
}
