//! Messages on a stream of bytes: two bytes of length, the more significant first, then so many bytes.

use std::ops::Range;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _};

const LENGTH_BYTES: usize = 2;
/// Bytes that are read at once, at most: several of the longest messages, and 16 records of TLS.
pub(super) const READ_BYTES: usize = 256 << 10;
/// Bytes that a sender collects before it writes.
pub(super) const WRITE_BYTES: usize = 64 << 10;

/// Adds a message.
pub(super) fn put(message: &[u8], to: &mut Vec<u8>) -> anyhow::Result<()> {
    let length = u16::try_from(message.len()).context("a message is 65,535 bytes at most")?;
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(message);
    Ok(())
}

/// What came and was not taken.
pub(super) struct Frames {
    buffer: Box<[u8]>,
    filled: Range<usize>,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; READ_BYTES].into(), filled: 0..0 }
    }

    /// Where what comes next is to be put; [`Frames::filled`] says how much it was. Never empty once [`Frames::next`] said `None`.
    pub(super) fn space(&mut self) -> &mut [u8] {
        if self.filled.start > 0 {
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        &mut self.buffer[self.filled.end..]
    }

    pub(super) fn filled(&mut self, bytes: usize) {
        self.filled.end += bytes;
    }

    /// The next message, if it is here whole.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        let (length, rest) = self.buffer[self.filled.clone()].split_first_chunk::<LENGTH_BYTES>()?;
        let message = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
        self.filled.start += LENGTH_BYTES + message.len();
        Some(message)
    }

    /// Takes all that are here, and says how many they are and of how many bytes in all.
    pub(super) fn count(&mut self) -> (u64, u64) {
        let (mut messages, mut bytes) = (0, 0);
        while let Some(message) = self.next() {
            messages += 1;
            bytes += std::hint::black_box(message).len() as u64;
        }
        (messages, bytes)
    }

    /// Reads once; `false`: there will be no more.
    pub(super) async fn read(&mut self, from: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<bool> {
        let count = from.read(self.space()).await?;
        self.filled(count);
        Ok(count > 0)
    }

    /// Reads until a message is here that is `wanted`.
    pub(super) async fn expect(&mut self, wanted: &[u8], from: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<()> {
        loop {
            if let Some(message) = self.next() {
                ensure!(message == wanted, "an answer of {} bytes", message.len());
                return Ok(());
            }
            ensure!(self.read(from).await?, "the other end is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the bytes are cut.
    #[test]
    fn messages_come_whole_and_in_order() {
        let messages: Vec<Vec<u8>> = [19, 0, 1, 255, 256, 65_535].map(|length| vec![length as u8; length]).into();
        let mut sent = Vec::new();
        messages.iter().for_each(|message| put(message, &mut sent).unwrap());
        for at_once in [1, 3, 1000, READ_BYTES] {
            let (mut frames, mut taken, mut rest) = (Frames::new(), Vec::new(), &sent[..]);
            while !rest.is_empty() {
                let space = frames.space();
                let count = at_once.min(rest.len()).min(space.len());
                space[..count].copy_from_slice(&rest[..count]);
                frames.filled(count);
                rest = &rest[count..];
                while let Some(message) = frames.next() {
                    taken.push(message.to_vec());
                }
            }
            assert_eq!(taken, messages, "{at_once} at once");
        }
        assert!(put(&[0; 65_536], &mut sent).is_err());
    }

    #[test]
    fn counting_takes_what_is_whole() {
        let mut frames = Frames::new();
        let mut sent = Vec::new();
        put(b"three", &mut sent).unwrap();
        put(b"four", &mut sent).unwrap();
        frames.space()[..sent.len()].copy_from_slice(&sent);
        frames.filled(sent.len() - 1);
        assert_eq!(frames.count(), (1, 5));
        frames.space()[0] = b'r';
        frames.filled(1);
        assert_eq!(frames.count(), (1, 4));
        assert_eq!(frames.count(), (0, 0));
    }
}
