//! `grpc-tls` and `grpc-tls-streaming`: tonic's client and server on hyper's connections. Echoes are unary calls, or messages on
//! a call that streams both ways; messages stream one way. They are written by hand, so that no protobuf compiler is needed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt as _, poll_fn};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, channel};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::peer::{self, MESSAGES_A_LOOK};
use super::secure::{self, CIPHER, Identity};
use super::{Kind, Load, MESSAGE, Meter, Ready, Recorder, Stop, System};
use crate::tls::Tls;

const UNARY: &str = "/pilot.bench.Agent/Echo";
const BOTH_WAYS: &str = "/pilot.bench.Agent/EchoStream";
const ONE_WAY: &str = "/pilot.bench.Agent/Tell";

/// HTTP/2's windows, of a stream and of the connection: far above what fits into a round trip here.
const WINDOW_BYTES: u32 = 8 << 20;
/// Messages between the caller and the call's stream.
const QUEUE: usize = 1024;

/// `message Delta { bytes text = 1; }`
#[derive(Clone, PartialEq, prost::Message)]
struct Delta {
    #[prost(bytes = "bytes", tag = "1")]
    text: Bytes,
}

/// `message Ok {}`
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct OkMessage {}

pub(crate) struct Grpc {
    address: SocketAddr,
    tls: Tls,
    streams: bool,
}

type Client = tonic::client::Grpc<Channel>;

impl Grpc {
    /// `streams`: whether echoes are messages of one call.
    pub(crate) fn new(address: SocketAddr, directory: &Path, streams: bool) -> anyhow::Result<Self> {
        Ok(Self { address, tls: Identity::kept_in(directory, address.ip())?.tls("h2")?, streams })
    }

    async fn connect(&self, load: &Load) -> anyhow::Result<Client> {
        // The one connection that there will be.
        let stream = Mutex::new(Some(TokioIo::new(secure::connect(&self.tls, self.address, load).await?)));
        let connector = tower::service_fn(move |_| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            async move { stream.ok_or_else(|| std::io::Error::other("the connection is over")) }
        });
        // TLS is below already.
        let endpoint = Endpoint::from_static("http://agent")
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        Ok(tonic::client::Grpc::new(endpoint.connect_with_connector(connector).await?))
    }
}

fn delta() -> Delta {
    Delta { text: Bytes::from_static(MESSAGE) }
}

fn stream<T>(mut from: Receiver<T>) -> impl Stream<Item = T> {
    poll_fn(move |context| from.poll_recv(context))
}

fn codec<T: prost::Message + Default + 'static, U: prost::Message + Default + 'static>() -> ProstCodec<T, U> {
    ProstCodec::default()
}

fn check(answer: &Delta) -> anyhow::Result<()> {
    ensure!(*answer == delta(), "an answer of {} bytes", answer.text.len());
    Ok(())
}

/// Answers the calls of a connection, until it ends.
async fn take(tls: Tls, connection: TcpStream, load: Load, meter: Meter) -> anyhow::Result<()> {
    let connection = TokioIo::new(secure::accept(&tls, connection, &load).await?);
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let meter = meter.clone();
        async move {
            let path = request.uri().path();
            Ok::<_, Infallible>(if path == UNARY {
                let echo = tower::service_fn(|request: Request<Delta>| async {
                    Ok::<_, Status>(Response::new(request.into_inner()))
                });
                tonic::server::Grpc::new(codec()).unary(echo, request).await
            } else if path == BOTH_WAYS {
                let echo = tower::service_fn(|request: Request<Streaming<Delta>>| async {
                    Ok::<_, Status>(Response::new(request.into_inner()))
                });
                tonic::server::Grpc::new(codec::<Delta, Delta>()).streaming(echo, request).await
            } else {
                let count = tower::service_fn(move |request: Request<Streaming<Delta>>| {
                    let meter = meter.clone();
                    async move {
                        let mut deltas = request.into_inner();
                        while let Some(delta) = deltas.next().await.transpose()? {
                            meter.arrived(1, std::hint::black_box(delta).text.len() as u64);
                        }
                        Ok::<_, Status>(Response::new(OkMessage {}))
                    }
                });
                tonic::server::Grpc::new(codec()).client_streaming(count, request).await
            })
        }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    Ok(builder.serve_connection(connection, service).await?)
}

impl System for Grpc {
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
            let mut client = self.connect(load).await?;
            client.ready().await?;
            match load.kind {
                Kind::Echo if self.streams => {
                    let (requests, asked) = channel(QUEUE);
                    let path = PathAndQuery::from_static(BOTH_WAYS);
                    let call = client.streaming(Request::new(stream(asked)), path, codec::<Delta, Delta>());
                    let mut answers = call.await?.into_inner();
                    recorder.start();
                    while let Some(began) = recorder.one() {
                        requests.send(delta()).await?;
                        check(&answers.next().await.context("the call is over")??)?;
                        recorder.took(began);
                    }
                    Ok(())
                }
                Kind::Echo => {
                    recorder.start();
                    while let Some(began) = recorder.one() {
                        client.ready().await?;
                        let path = PathAndQuery::from_static(UNARY);
                        let answer: Response<Delta> = client.unary(Request::new(delta()), path, codec()).await?;
                        check(answer.get_ref())?;
                        recorder.took(began);
                    }
                    Ok(())
                }
                Kind::Messages => {
                    let (deltas, told) = channel(QUEUE);
                    let path = PathAndQuery::from_static(ONE_WAY);
                    tokio::spawn(async move {
                        let call =
                            client.client_streaming(Request::new(stream(told)), path, codec::<Delta, OkMessage>());
                        call.await.map(|_| ())
                    });
                    recorder.start();
                    while recorder.goes_on() {
                        for _ in 0..MESSAGES_A_LOOK {
                            deltas.send(std::hint::black_box(delta())).await.context("the call is over")?;
                        }
                    }
                    Ok(())
                }
                _ => peer::refuse("grpc-tls", load),
            }
        })?;
        Ok(json!({"cipher": CIPHER, "nodelay": true, "window_bytes": WINDOW_BYTES}))
    }
}
