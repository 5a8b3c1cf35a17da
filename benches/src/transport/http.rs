//! `http-json-tls`: a request of hyper's with a body of JSON, and an answer with one, on one connection that is kept open.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::peer;
use super::secure::{self, CIPHER, Identity};
use super::{Kind, Load, MESSAGE, Meter, Ready, Recorder, Stop, System};
use crate::tls::Tls;

pub(crate) struct Http {
    address: SocketAddr,
    tls: Tls,
}

/// What goes there and comes back.
#[derive(Serialize, Deserialize)]
struct Body {
    delta: String,
}

impl Http {
    pub(crate) fn new(address: SocketAddr, directory: &Path) -> anyhow::Result<Self> {
        Ok(Self { address, tls: Identity::kept_in(directory, address.ip())?.tls("http/1.1")? })
    }

    async fn connect(&self, load: &Load) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let (send, connection) = handshake(TokioIo::new(secure::connect(&self.tls, self.address, load).await?)).await?;
        // When it ends, so does the next request.
        tokio::spawn(connection);
        Ok(send)
    }
}

async fn echo(send: &mut SendRequest<Full<Bytes>>, delta: &str) -> anyhow::Result<String> {
    let body = serde_json::to_vec(&Body { delta: delta.to_owned() })?;
    let request = Request::post("/").header("host", "agent").header("content-type", "application/json");
    send.ready().await?;
    let answer = send.send_request(request.body(Full::from(body))?).await?;
    ensure!(answer.status() == StatusCode::OK, "answered {}", answer.status());
    let body: Body = serde_json::from_slice(&answer.collect().await?.to_bytes())?;
    Ok(body.delta)
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let answered = async {
        let body: Body = serde_json::from_slice(&request.collect().await?.to_bytes())?;
        anyhow::Ok(
            Response::builder().header("content-type", "application/json").body(serde_json::to_vec(&body)?.into())?,
        )
    };
    Ok(answered.await.unwrap_or_else(|_| {
        let mut refused = Response::<Full<Bytes>>::default();
        *refused.status_mut() = StatusCode::BAD_REQUEST;
        refused
    }))
}

impl System for Http {
    fn serve(&self, load: &Load, _: &Meter, ready: Ready, stop: &Stop) -> anyhow::Result<Value> {
        peer::serve(stop, async {
            let listener = TcpListener::bind(self.address).await?;
            ready.say();
            loop {
                let (stream, _) = listener.accept().await?;
                let stream = TokioIo::new(secure::accept(&self.tls, stream, load).await?);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service_fn(answer)));
            }
        })?;
        Ok(json!(null))
    }

    fn ask(&self, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value> {
        if load.kind != Kind::Echo {
            return peer::refuse("http-json-tls", load);
        }
        let delta = std::str::from_utf8(MESSAGE).context("it is ASCII")?;
        peer::ask(load, async {
            let mut send = self.connect(load).await?;
            recorder.start();
            while let Some(began) = recorder.one() {
                let answer = echo(&mut send, delta).await?;
                ensure!(answer == delta, "an answer of {} bytes", answer.len());
                recorder.took(began);
            }
            Ok(())
        })?;
        Ok(json!({"cipher": CIPHER, "nodelay": true, "keep_alive": true}))
    }
}
