//! `tcp-tls-spin`: the messages of `tcp-tls` by sockets that are asked again and again, at both ends, without a runtime.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConnection, Connection, ServerConnection};

use super::framing::{self, Frames};
use super::secure::{CIPHER, Identity};
use super::{Kind, Load, MESSAGE, Meter, Ready, Recorder, Stop, System, peer};
use crate::tls::{NAME, PATIENCE, Tls};

/// Looks in vain before the clock is asked for how long.
const LOOKS: u32 = 10_000;

pub(crate) struct TcpSpin {
    address: SocketAddr,
    tls: Tls,
}

/// An end of a connection.
struct Spinner {
    socket: TcpStream,
    tls: Connection,
    frames: Frames,
    out: Vec<u8>,
}

impl Spinner {
    /// Shakes hands, and spins from then on.
    fn new(mut socket: TcpStream, tls: impl Into<Connection>) -> anyhow::Result<Self> {
        let mut tls = tls.into();
        socket.set_nodelay(true)?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).context("the handshake")?;
        }
        socket.set_nonblocking(true)?;
        let mut end = Self { socket, tls, frames: Frames::new(), out: Vec::new() };
        // What came right behind the handshake is decrypted already, and nothing more may come.
        end.take()?;
        Ok(end)
    }

    fn send(&mut self, message: &[u8]) -> anyhow::Result<()> {
        self.out.clear();
        framing::put(message, &mut self.out)?;
        self.tls.writer().write_all(&self.out)?;
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                written => ensure!(written? > 0, "the other end is gone"),
            }
        }
        Ok(())
    }

    /// Looks once at the socket: `false`, the other end has closed it.
    fn look(&mut self) -> anyhow::Result<bool> {
        match self.tls.read_tls(&mut self.socket) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::hint::spin_loop();
                return Ok(true);
            }
            Ok(0) => return Ok(false),
            read => read?,
        };
        self.tls.process_new_packets()?;
        self.take()
    }

    /// Takes what is decrypted.
    fn take(&mut self) -> anyhow::Result<bool> {
        match self.tls.reader().read(self.frames.space()) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            // Without a goodbye: it was a connection for this run alone.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            read => {
                let count = read?;
                self.frames.filled(count);
                Ok(count > 0)
            }
        }
    }
}

impl TcpSpin {
    pub(crate) fn new(address: SocketAddr, directory: &Path) -> anyhow::Result<Self> {
        Ok(Self { address, tls: Identity::kept_in(directory, address.ip())?.tls("bench")? })
    }
}

impl System for TcpSpin {
    fn serve(&self, _: &Load, _: &Meter, ready: Ready, stop: &Stop) -> anyhow::Result<Value> {
        let listener = TcpListener::bind(self.address)?;
        listener.set_nonblocking(true)?;
        ready.say();
        let socket = loop {
            match listener.accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock && stop.is_set() => return Ok(json!(null)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                accepted => break accepted?.0,
            }
        };
        let mut end = Spinner::new(socket, ServerConnection::new(self.tls.server.clone())?)?;
        let mut message = Vec::new();
        let mut is_open = true;
        // Who asks is gone before the run is over: it counts what it found.
        while !stop.is_set() {
            is_open = is_open && end.look()?;
            while let Some(received) = end.frames.next() {
                message.clear();
                message.extend_from_slice(received);
                end.send(&message)?;
            }
        }
        Ok(json!(null))
    }

    fn ask(&self, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value> {
        if load.kind != Kind::Echo {
            return peer::refuse("tcp-tls-spin", load);
        }
        let tls = ClientConnection::new(self.tls.client.clone(), ServerName::try_from(NAME)?)?;
        let mut end = Spinner::new(TcpStream::connect_timeout(&self.address, PATIENCE)?, tls)?;
        recorder.start();
        while let Some(began) = recorder.one() {
            end.send(MESSAGE)?;
            let mut looks = 0_u32;
            loop {
                if let Some(answer) = end.frames.next() {
                    ensure!(answer == MESSAGE, "an answer of {} bytes", answer.len());
                    break recorder.took(began);
                }
                ensure!(end.look()?, "the other end is gone");
                looks += 1;
                if looks.is_multiple_of(LOOKS) && Instant::now() - began > PATIENCE {
                    bail!("no answer within {PATIENCE:?}");
                }
            }
        }
        Ok(json!({"cipher": CIPHER, "nodelay": true, "spins": true}))
    }
}
