//! HTTP/1.1 over TLS: one connection, kept alive.

use std::convert::Infallible;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use crate::resend::Answer;

/// The asking end.
pub(crate) struct Client(SendRequest<Full<Bytes>>);

impl Client {
    pub(crate) async fn new(stream: client::TlsStream<TcpStream>) -> anyhow::Result<Self> {
        let (send, connection) = handshake(TokioIo::new(stream)).await?;
        // When it ends, so does the next request.
        tokio::spawn(connection);
        Ok(Self(send))
    }

    pub(crate) async fn post(&mut self, path: &str, body: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let request = Request::post(path).header("host", "agent").header("content-type", "application/json");
        let answer = self.send(request.body(Full::from(body))?).await?;
        Ok(answer.collect().await?.to_bytes().into())
    }

    /// The body, as it comes.
    pub(crate) async fn get(&mut self, path: &str) -> anyhow::Result<Incoming> {
        self.send(Request::get(path).header("host", "agent").body(Full::default())?).await
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Incoming> {
        self.0.ready().await?;
        let answer = self.0.send_request(request).await.context("asking")?;
        ensure!(answer.status() == StatusCode::OK, "answered {}", answer.status());
        Ok(answer.into_body())
    }
}

/// Answers every request with a body.
pub(crate) async fn serve(stream: server::TlsStream<TcpStream>, answer: Answer) -> anyhow::Result<()> {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let answered = match request.into_body().collect().await {
                Ok(body) => answer(body.to_bytes().into()),
                Err(error) => Err(error.into()),
            };
            let mut response = Response::new(Full::<Bytes>::default());
            match answered {
                Ok(body) => *response.body_mut() = body.into(),
                Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
            }
            Ok::<_, Infallible>(response)
        }
    });
    Ok(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?)
}
