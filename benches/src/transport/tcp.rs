//! `tcp-tls`: messages with their lengths ([`framing`]) on TLS on TCP, as one would write it for speed.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use super::framing::{self, Frames, READ_BYTES, WRITE_BYTES};
use super::peer::{self, MESSAGES_A_LOOK};
use super::secure::{self, Buffered, CIPHER, Identity};
use super::{Kind, Load, MESSAGE, Meter, Ready, Recorder, Stop, System};
use crate::tls::Tls;

pub(crate) struct Tcp {
    address: SocketAddr,
    tls: Tls,
}

impl Tcp {
    pub(crate) fn new(address: SocketAddr, directory: &Path) -> anyhow::Result<Self> {
        Ok(Self { address, tls: Identity::kept_in(directory, address.ip())?.tls("bench")? })
    }

    async fn connect(&self, load: &Load) -> anyhow::Result<TlsStream<Buffered>> {
        secure::connect(&self.tls, self.address, load).await
    }
}

/// What the far end does with a connection, until it ends.
async fn take(tls: Tls, stream: TcpStream, load: Load, meter: Meter) -> anyhow::Result<()> {
    let mut stream = secure::accept(&tls, stream, &load).await?;
    match load.kind {
        Kind::Echo => {
            let (mut frames, mut answer) = (Frames::new(), Vec::new());
            while frames.read(&mut stream).await? {
                while let Some(message) = frames.next() {
                    framing::put(message, &mut answer)?;
                }
                stream.write_all(&answer).await?;
                stream.flush().await?;
                answer.clear();
            }
        }
        Kind::Messages => {
            let mut frames = Frames::new();
            while frames.read(&mut stream).await? {
                let (messages, bytes) = frames.count();
                meter.arrived(messages, bytes);
            }
        }
        Kind::Bulk => {
            let mut buffer = vec![0; READ_BYTES];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    count => meter.arrived(0, count as u64),
                }
            }
        }
        // It ends when the other end does.
        Kind::Handshakes | Kind::Idle => while stream.read(&mut [0; 1]).await? > 0 {},
    }
    Ok(())
}

impl System for Tcp {
    fn serve(&self, load: &Load, meter: &Meter, ready: Ready, stop: &Stop) -> anyhow::Result<Value> {
        peer::serve(stop, async {
            let listener = TcpListener::bind(self.address).await?;
            ready.say();
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(take(self.tls.clone(), stream, *load, meter.clone()));
            }
        })?;
        Ok(json!(null))
    }

    fn ask(&self, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value> {
        peer::ask(load, async {
            match load.kind {
                Kind::Echo => {
                    let (mut stream, mut frames, mut request) = (self.connect(load).await?, Frames::new(), Vec::new());
                    recorder.start();
                    while let Some(began) = recorder.one() {
                        request.clear();
                        framing::put(MESSAGE, &mut request)?;
                        stream.write_all(&request).await?;
                        stream.flush().await?;
                        frames.expect(MESSAGE, &mut stream).await?;
                        recorder.took(began);
                    }
                    Ok(())
                }
                Kind::Messages => {
                    let mut stream = self.connect(load).await?;
                    let mut collected = Vec::with_capacity(2 * WRITE_BYTES);
                    recorder.start();
                    while recorder.goes_on() {
                        for _ in 0..MESSAGES_A_LOOK {
                            framing::put(std::hint::black_box(MESSAGE), &mut collected)?;
                        }
                        if collected.len() >= WRITE_BYTES {
                            stream.write_all(&collected).await?;
                            collected.clear();
                        }
                    }
                    Ok(())
                }
                Kind::Bulk => {
                    let mut stream = self.connect(load).await?;
                    let bytes = vec![0; WRITE_BYTES];
                    recorder.start();
                    while recorder.goes_on() {
                        stream.write_all(&bytes).await?;
                    }
                    Ok(())
                }
                Kind::Handshakes => peer::handshakes(load, recorder, || self.connect(load)).await,
                Kind::Idle => peer::idle(load, recorder, || self.connect(load)).await,
            }
        })?;
        Ok(json!({"cipher": CIPHER, "nodelay": true}))
    }
}
