//! `websocket-tls`: tokio-tungstenite, binary messages.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use super::peer::{self, MESSAGES_A_LOOK};
use super::secure::{self, Buffered, CIPHER, Identity};
use super::{Kind, Load, MESSAGE, Meter, Ready, Recorder, Stop, System};
use crate::tls::Tls;

pub(crate) struct WebSocket {
    address: SocketAddr,
    tls: Tls,
}

impl WebSocket {
    pub(crate) fn new(address: SocketAddr, directory: &Path) -> anyhow::Result<Self> {
        Ok(Self { address, tls: Identity::kept_in(directory, address.ip())?.tls("http/1.1")? })
    }

    async fn connect(&self, load: &Load) -> anyhow::Result<WebSocketStream<TlsStream<Buffered>>> {
        Ok(client_async("wss://agent/", secure::connect(&self.tls, self.address, load).await?).await?.0)
    }
}

/// What the far end does with a connection, until it ends.
async fn take(tls: Tls, stream: TcpStream, load: Load, meter: Meter) -> anyhow::Result<()> {
    let mut socket = accept_async(secure::accept(&tls, stream, &load).await?).await?;
    while let Some(message) = socket.next().await.transpose()? {
        match message {
            Message::Binary(_) if load.kind == Kind::Echo => socket.send(message).await?,
            Message::Binary(bytes) => meter.arrived(1, std::hint::black_box(bytes).len() as u64),
            _ => {}
        }
    }
    Ok(())
}

impl System for WebSocket {
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
            let mut socket = self.connect(load).await?;
            let message = || Message::Binary(Bytes::from_static(MESSAGE));
            match load.kind {
                Kind::Echo => {
                    recorder.start();
                    while let Some(began) = recorder.one() {
                        socket.send(message()).await?;
                        let answer = socket.next().await.context("the other end is gone")??;
                        ensure!(answer == message(), "an answer of {} bytes", answer.len());
                        recorder.took(began);
                    }
                    Ok(())
                }
                Kind::Messages => {
                    recorder.start();
                    while recorder.goes_on() {
                        for _ in 0..MESSAGES_A_LOOK {
                            // Not `send`, which would flush each: it is written once 128 KiB are together.
                            socket.feed(std::hint::black_box(message())).await?;
                        }
                    }
                    Ok(())
                }
                _ => peer::refuse("websocket-tls", load),
            }
        })?;
        Ok(json!({"cipher": CIPHER, "nodelay": true}))
    }
}
