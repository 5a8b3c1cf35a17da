//! gRPC, unary calls, over TLS: tonic's client and server on hyper's connections. The messages are written by hand, so that no
//! protobuf compiler is needed.

use std::convert::Infallible;
use std::sync::Mutex;

use anyhow::Context as _;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::net::TcpStream;
use tokio_rustls::{client, server};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};
use tonic_prost::ProstCodec;

use crate::corpus::Shared;
use crate::resend::Answer;

/// Bytes: far above what is shared here.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// `message Shared { string report = 1; string facts = 2; }`
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SharedMessage {
    #[prost(string, tag = "1")]
    report: String,
    #[prost(string, tag = "2")]
    facts: String,
}

/// `message Ok {}`
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct OkMessage {}

pub(crate) fn encode(shared: &Shared) -> Vec<u8> {
    SharedMessage { report: shared.report.clone(), facts: shared.facts.to_string() }.encode_to_vec()
}

pub(crate) fn decode(message: &[u8]) -> anyhow::Result<Shared> {
    let SharedMessage { report, facts } = SharedMessage::decode(message)?;
    Ok(Shared { report, facts: serde_json::from_str(&facts)? })
}

/// The asking end.
pub(crate) struct Client(tonic::client::Grpc<Channel>);

impl Client {
    pub(crate) async fn new(stream: client::TlsStream<TcpStream>) -> anyhow::Result<Self> {
        // The one connection that there will be.
        let stream = Mutex::new(Some(TokioIo::new(stream)));
        let connector = tower::service_fn(move |_| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            async move { stream.ok_or_else(|| std::io::Error::other("the connection is over")) }
        });
        // TLS is below already.
        let channel = Endpoint::from_static("http://agent").connect_with_connector(connector).await?;
        Ok(Self(tonic::client::Grpc::new(channel)))
    }

    pub(crate) async fn ask(&mut self, request: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        self.0.ready().await.context("the channel")?;
        let message = tonic::Request::new(SharedMessage::decode(&*request)?);
        let path = PathAndQuery::from_static("/pilot.bench.Agent/HandOver");
        let answer: Response<OkMessage> = self.0.unary(message, path, ProstCodec::default()).await?;
        Ok(answer.into_inner().encode_to_vec())
    }
}

/// Answers every call.
pub(crate) async fn serve(stream: server::TlsStream<TcpStream>, answer: Answer) -> anyhow::Result<()> {
    let service = service_fn(|request| {
        let answer = answer.clone();
        async move {
            let handle = tower::service_fn(move |request: tonic::Request<SharedMessage>| {
                let answered = answer(request.into_inner().encode_to_vec());
                async move {
                    let answered = answered.map_err(|error| Status::invalid_argument(error.to_string()));
                    answered.map(|_| Response::new(OkMessage {}))
                }
            });
            let codec: ProstCodec<OkMessage, SharedMessage> = ProstCodec::default();
            let mut grpc = tonic::server::Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE_BYTES);
            Ok::<_, Infallible>(grpc.unary(handle, request).await)
        }
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    Ok(builder.serve_connection(TokioIo::new(stream), service).await?)
}
