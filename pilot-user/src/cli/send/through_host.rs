//! The same through the node of this host.

use std::time::Instant;

use anyhow::anyhow;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::attached::until;
use super::super::session::Stop;
use super::super::{Failure, local};
use super::{Sent, Source};
use crate::api::{Node, RecvStream, SendStream};
use crate::service::FILES_PORT;
use crate::service::files::{Answer, MAX_HEAD_BYTES, decode};

pub(super) async fn send(node: &Node, name: &str, mut source: Source, stop: &Stop) -> Result<Sent, Failure> {
    let connection = tokio::select! {
        connection = node.connect(name, FILES_PORT) => connection.map_err(|error| local::failure_of(name, error))?,
        () = until(stop) => return Err(Failure::Interrupted),
    };
    let started = Instant::now();
    let (mut to_peer, mut from_peer) = connection.open_stream();
    let mut writing = Ok(());
    let answer = tokio::select! {
        // First: a peer that refuses a file says so, and reads no more of it.
        biased;
        answer = answer(&mut from_peer) => answer,
        () = until(stop) => return Err(Failure::Interrupted),
        () = async {
            writing = write(&mut to_peer, &mut source).await;
            if writing.is_ok() {
                std::future::pending::<()>().await;
            }
        } => answer(&mut from_peer).await,
    };
    let answer = writing.and(answer).map_err(|error| Failure::Failed(error.context(name.to_owned())))?;
    Ok(source.sent(answer, started.elapsed()))
}

async fn write(to_peer: &mut SendStream, source: &mut Source) -> anyhow::Result<()> {
    while !source.piece.is_empty() {
        to_peer.write_all(&source.piece).await?;
        source.fill()?;
    }
    Ok(to_peer.shutdown().await?)
}

async fn answer(from_peer: &mut RecvStream) -> anyhow::Result<Answer> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; MAX_HEAD_BYTES]);
    loop {
        let length = from_peer.read(&mut buffer).await?;
        bytes.extend_from_slice(&buffer[..length]);
        match decode(&bytes).map_err(|reason| anyhow!("its answer: {reason}"))? {
            Some((answer, _)) => return Ok(answer),
            None if length == 0 => return Err(anyhow!("it ended without an answer")),
            None => {}
        }
    }
}
