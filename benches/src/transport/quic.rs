//! `quinn`: QUIC streams, over UDP sockets with segmentation offload in both directions.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use nix::sys::socket::{setsockopt, sockopt};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, Incoming, RecvStream, SendStream, ServerConfig, TokioRuntime,
    TransportConfig,
};
use serde_json::{Value, json};
use tokio_rustls::rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use tokio_rustls::rustls::quic::Suite;

use super::framing::{self, Frames, WRITE_BYTES};
use super::peer::{self, MESSAGES_A_LOOK};
use super::secure::{CIPHER, Identity};
use super::{Kind, Load, MESSAGE, Meter, Ready, Recorder, Stop, System};
use crate::tls::{NAME, Tls};

/// IPv4 and UDP.
const HEADERS_BYTES: u16 = 28;
/// What a receiver lets a sender have under way: far above what fits into a round trip here.
const WINDOW_BYTES: u32 = 8 << 20;
/// Segments that quinn sends in a call, and bytes that the kernel takes in one.
const SEGMENTS: u32 = 10;
const DATAGRAM_MAX_BYTES: u32 = 65_507;
/// What a sender keeps until it is acknowledged: several round trips. A write waits for nothing else, and what sends it shares its
/// thread: with much more, messages are queued for a long time and not sent.
const SEND_BYTES: u64 = 1 << 20;
/// The same for messages: quinn keeps each write by itself, and looks at all it keeps for each packet.
const MESSAGES_SEND_BYTES: u64 = 1 << 16;
/// Of each socket, in each direction: above the system's limit, for bursts.
const SOCKET_BYTES: usize = 8 << 20;
/// Pieces that are taken from a stream at once.
const PIECES: usize = 64;

pub(crate) struct Quic {
    address: SocketAddr,
    tls: Tls,
}

impl Quic {
    pub(crate) fn new(address: SocketAddr, directory: &Path) -> anyhow::Result<Self> {
        Ok(Self { address, tls: Identity::kept_in(directory, address.ip())?.tls("bench")? })
    }

    fn server(&self, load: &Load) -> anyhow::Result<ServerConfig> {
        let crypto = QuicServerConfig::with_initial(self.tls.server.clone(), initial()?)?;
        let mut config = ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(Arc::new(transport(load)));
        Ok(config)
    }

    async fn connect(&self, endpoint: &Endpoint) -> anyhow::Result<Connection> {
        Ok(endpoint.connect(self.address, NAME)?.await?)
    }

    async fn open(&self, endpoint: &Endpoint) -> anyhow::Result<(Connection, SendStream, RecvStream)> {
        let connection = self.connect(endpoint).await?;
        let (send, receive) = connection.open_bi().await?;
        Ok((connection, send, receive))
    }

    fn client(&self, load: &Load) -> anyhow::Result<Endpoint> {
        let crypto = QuicClientConfig::with_initial(self.tls.client.clone(), initial()?)?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport(load)));
        let mut endpoint = endpoint(load, (Ipv4Addr::UNSPECIFIED, 0).into(), None)?;
        endpoint.set_default_client_config(config);
        Ok(endpoint)
    }
}

/// What QUIC's first packets are sealed with, whatever is agreed on.
fn initial() -> anyhow::Result<Suite> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().and_then(|suite| suite.quic_suite());
    suite.context("aws-lc-rs has AES-128-GCM for QUIC")
}

fn has_offload(datagram: u16) -> bool {
    u32::from(datagram) * SEGMENTS <= DATAGRAM_MAX_BYTES
}

/// The largest datagram of the path from the start, and never an idle time-out.
fn transport(load: &Load) -> TransportConfig {
    let mut config = TransportConfig::default();
    let datagram = load.mtu - HEADERS_BYTES;
    config.initial_mtu(datagram).min_mtu(datagram).mtu_discovery_config(None).max_idle_timeout(None);
    // A call that is refused for its length would be a loss of all its segments.
    config.enable_segmentation_offload(has_offload(datagram));
    config.stream_receive_window(WINDOW_BYTES.into()).receive_window(WINDOW_BYTES.into());
    config.send_window(if load.kind == Kind::Messages { MESSAGES_SEND_BYTES } else { SEND_BYTES });
    config
}

fn endpoint(load: &Load, address: SocketAddr, server: Option<ServerConfig>) -> anyhow::Result<Endpoint> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(load.mtu - HEADERS_BYTES)?;
    let socket = UdpSocket::bind(address)?;
    // Needs rights; without them the system's limit holds.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BYTES);
    let _ = setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BYTES);
    Ok(Endpoint::new(config, server, socket, Arc::new(TokioRuntime))?)
}

/// What the far end does with a connection, until it ends.
async fn take(incoming: Incoming, load: Load, meter: Meter) -> anyhow::Result<()> {
    let connection = incoming.await?;
    if matches!(load.kind, Kind::Handshakes | Kind::Idle) {
        connection.closed().await;
        return Ok(());
    }
    let (mut send, mut receive) = connection.accept_bi().await?;
    match load.kind {
        Kind::Echo => {
            let (mut frames, mut answer) = (Frames::new(), Vec::new());
            while frames.read(&mut receive).await? {
                while let Some(message) = frames.next() {
                    framing::put(message, &mut answer)?;
                }
                send.write_all(&answer).await?;
                answer.clear();
            }
        }
        Kind::Messages => {
            let mut frames = Frames::new();
            while frames.read(&mut receive).await? {
                let (messages, bytes) = frames.count();
                meter.arrived(messages, bytes);
            }
        }
        _ => {
            let mut pieces = vec![Bytes::new(); PIECES];
            while let Some(count) = receive.read_chunks(&mut pieces).await? {
                meter.arrived(0, pieces[..count].iter().map(|piece| piece.len() as u64).sum());
            }
        }
    }
    Ok(())
}

impl System for Quic {
    fn serve(&self, load: &Load, meter: &Meter, ready: Ready, stop: &Stop) -> anyhow::Result<Value> {
        peer::serve(stop, async {
            let endpoint = endpoint(load, self.address, Some(self.server(load)?))?;
            ready.say();
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(take(incoming, *load, meter.clone()));
            }
            Ok(())
        })?;
        Ok(json!(null))
    }

    fn ask(&self, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value> {
        peer::ask(load, async {
            let endpoint = self.client(load)?;
            match load.kind {
                Kind::Echo => {
                    let (_connection, mut send, mut receive) = self.open(&endpoint).await?;
                    let (mut frames, mut request) = (Frames::new(), Vec::new());
                    recorder.start();
                    while let Some(began) = recorder.one() {
                        request.clear();
                        framing::put(MESSAGE, &mut request)?;
                        send.write_all(&request).await?;
                        frames.expect(MESSAGE, &mut receive).await?;
                        recorder.took(began);
                    }
                    Ok(())
                }
                Kind::Messages => {
                    let (_connection, mut send, _receive) = self.open(&endpoint).await?;
                    let mut message = Vec::new();
                    framing::put(MESSAGE, &mut message)?;
                    recorder.start();
                    while recorder.goes_on() {
                        for _ in 0..MESSAGES_A_LOOK {
                            send.write_all(std::hint::black_box(&message)).await?;
                        }
                    }
                    Ok(())
                }
                Kind::Bulk => {
                    let (_connection, mut send, _receive) = self.open(&endpoint).await?;
                    let bytes = Bytes::from(vec![0; WRITE_BYTES]);
                    recorder.start();
                    while recorder.goes_on() {
                        send.write_chunk(bytes.clone()).await?;
                    }
                    Ok(())
                }
                Kind::Handshakes => peer::handshakes(load, recorder, || self.connect(&endpoint)).await,
                Kind::Idle => peer::idle(load, recorder, || self.connect(&endpoint)).await,
            }
        })?;
        let datagram = load.mtu - HEADERS_BYTES;
        let offload = has_offload(datagram);
        Ok(json!({"cipher": CIPHER, "segmentation_offload": offload, "datagram_bytes": datagram}))
    }
}
