//! A WebSocket over TLS: text messages, each answered.

use anyhow::{Context as _, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::resend::Answer;

pub(crate) type Client = WebSocketStream<client::TlsStream<TcpStream>>;

pub(crate) async fn client(stream: client::TlsStream<TcpStream>) -> anyhow::Result<Client> {
    Ok(client_async("wss://agent/", stream).await?.0)
}

pub(crate) async fn ask(client: &mut Client, request: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    client.send(Message::text(String::from_utf8(request)?)).await?;
    next(client).await?.context("no answer")
}

/// Answers every message.
pub(crate) async fn serve(stream: server::TlsStream<TcpStream>, answer: Answer) -> anyhow::Result<()> {
    let mut socket = accept_async(stream).await?;
    while let Some(request) = next(&mut socket).await? {
        socket.send(Message::text(String::from_utf8(answer(request)?)?)).await?;
    }
    Ok(())
}

/// The next message; `None`: there will be no more.
pub(crate) async fn next<S>(socket: &mut WebSocketStream<S>) -> anyhow::Result<Option<Vec<u8>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match socket.next().await.transpose()? {
        Some(Message::Text(text)) => Ok(Some(text.as_bytes().to_vec())),
        None | Some(Message::Close(_)) => Ok(None),
        Some(other) => bail!("not a text message: {other:?}"),
    }
}
