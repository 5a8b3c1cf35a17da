//! A socket as frames.

use std::io;
use std::marker::PhantomData;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::UnboundedReceiver;

use super::codec::{self, Frame, Unreadable};

/// Bytes that are written at once, or a frame more. Lower: more system calls. Higher: memory for each socket.
pub(crate) const WRITE_BYTES: usize = 64 << 10;
/// Bytes that are read at once at least. As [`WRITE_BYTES`].
const READ_BYTES: usize = 16 << 10;
/// Bytes of room that a socket's buffer keeps: a large frame's is given back.
pub(crate) const KEPT_BYTES: usize = 128 << 10;

/// Both directions of a socket.
pub(crate) fn split<F: Frame>(stream: UnixStream) -> (Reader<F>, OwnedWriteHalf) {
    let (read, write) = stream.into_split();
    (Reader { read, bytes: Vec::new(), begin: 0, frames: PhantomData }, write)
}

/// Writes what is queued, until nobody can queue more or the other end is gone.
pub(crate) async fn write_all<F: Frame>(mut write: OwnedWriteHalf, mut queue: UnboundedReceiver<F>) {
    let mut bytes = Vec::new();
    while let Some(first) = queue.recv().await {
        first.encode(&mut bytes);
        while bytes.len() < WRITE_BYTES
            && let Ok(next) = queue.try_recv()
        {
            next.encode(&mut bytes);
        }
        // That the other end is gone the reader tells.
        if write.write_all(&bytes).await.is_err() {
            return;
        }
        bytes.clear();
        bytes.shrink_to(KEPT_BYTES);
    }
}

/// Frames from a socket.
pub(crate) struct Reader<F> {
    read: OwnedReadHalf,
    bytes: Vec<u8>,
    /// Where the next frame begins.
    begin: usize,
    frames: PhantomData<F>,
}

impl<F: Frame> Reader<F> {
    /// The next frame; `None`: the other end is gone. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<F>, Unreadable> {
        loop {
            match codec::decode(&self.bytes[self.begin..]) {
                Ok(Some((frame, length))) => {
                    self.begin += length;
                    return Ok(Some(frame));
                }
                Ok(None) => {}
                Err((unreadable, length)) => {
                    self.begin += length;
                    return Err(unreadable);
                }
            }
            if !self.fill().await.unwrap_or(false) {
                return Ok(None);
            }
        }
    }

    /// Reads more. `false`: there is no more.
    async fn fill(&mut self) -> io::Result<bool> {
        self.bytes.drain(..self.begin);
        self.begin = 0;
        if self.bytes.is_empty() {
            self.bytes.shrink_to(KEPT_BYTES);
        }
        // Room only as it is filled: a length that is only said costs nothing.
        self.bytes.reserve(READ_BYTES);
        Ok(self.read.read_buf(&mut self.bytes).await? > 0)
    }
}
