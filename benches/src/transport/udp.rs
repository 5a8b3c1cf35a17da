//! A plain UDP socket at each end, neither reliable nor encrypted: `udp-spin` asks it again and again, `udp-blocking` sleeps in
//! the kernel.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::bail;
use serde_json::{Value, json};

use super::{FAR, Kind, Load, MESSAGE, Meter, NEAR, Ready, Recorder, Stop, System};
use crate::place::Places;

/// Without an answer for so long, the question is asked again: what is lost costs a sample and not the run.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(100);
/// Looks before the clock is asked whether that has passed.
const LOOKS: u32 = 10_000;

pub(crate) struct Udp {
    pub(crate) spins: bool,
}

impl Udp {
    fn socket(&self, end: usize) -> anyhow::Result<UdpSocket> {
        let socket = UdpSocket::bind(Places::address(end))?;
        socket.set_nonblocking(self.spins)?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(socket)
    }

    fn receive(&self, socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<Option<usize>> {
        for _ in 0..LOOKS {
            match socket.recv(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock && self.spins => std::hint::spin_loop(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                received => return received.map(Some),
            }
        }
        Ok(None)
    }
}

impl System for Udp {
    fn serve(&self, _: &Load, _: &Meter, ready: Ready, stop: &Stop) -> anyhow::Result<Value> {
        let socket = self.socket(FAR)?;
        socket.connect(Places::address(NEAR))?;
        ready.say();
        let mut buffer = [0; 64];
        while !stop.is_set() {
            if let Some(length) = self.receive(&socket, &mut buffer)? {
                socket.send(&buffer[..length])?;
            }
        }
        Ok(json!(null))
    }

    fn ask(&self, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value> {
        if load.kind != Kind::Echo {
            bail!("a plain UDP socket has echoes only");
        }
        let socket = self.socket(NEAR)?;
        socket.connect(Places::address(FAR))?;
        recorder.start();
        let mut buffer = [0; 64];
        let mut unanswered = 0_u64;
        while let Some(began) = recorder.one() {
            socket.send(MESSAGE)?;
            let asked = std::time::Instant::now();
            loop {
                match self.receive(&socket, &mut buffer)? {
                    Some(length) if buffer[..length] == MESSAGE[..] => break recorder.took(began),
                    Some(length) => bail!("an answer of {length} bytes"),
                    None if asked.elapsed() >= ANSWER_TIMEOUT => break unanswered += 1,
                    None => {}
                }
            }
        }
        Ok(json!({"encrypted": false, "spins": self.spins, "unanswered": unanswered}))
    }
}
