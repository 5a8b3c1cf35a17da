//! Calls: a request and its response, each call a stream (`docs/local-protocol.md` §7).

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::connection::Connection;
use super::limits::MAX_CALL_BYTES;
use super::protocol::{Code, Error};
use super::stream::{RecvStream, SendStream};

/// L7.2: the caller gave up.
const GAVE_UP: u64 = 1;
/// L7.2: there will be no answer.
const NO_ANSWER: u64 = 2;
/// L7.1: the response follows.
const RESPONSE: u8 = 0;
/// L7.1: words follow why there is none.
const FAILURE: u8 = 1;

/// The caller's ends of a call, given up with the code that says so (L7.2) unless the call was answered.
struct Call(Option<(SendStream, RecvStream)>);

impl Drop for Call {
    fn drop(&mut self) {
        if let Some((send, recv)) = self.0.take() {
            send.reset(GAVE_UP);
            recv.stop(GAVE_UP);
        }
    }
}

impl Connection {
    /// Makes a call and waits for its response, at most for so long. Any number may be under way at a time. Dropped, or too late, the
    /// call is given up, which the peer's application can know.
    ///
    /// # Errors
    /// `timed_out` when it is too late, `refused` with the words of the peer's application, or why the connection is over.
    pub async fn call(&self, request: impl AsRef<[u8]>, deadline: Option<Duration>) -> Result<Vec<u8>, Error> {
        let mut call = Call(Some(self.open_stream()));
        let answer = exchange(&mut call, request.as_ref(), deadline);
        let response = match deadline {
            Some(deadline) => tokio::time::timeout(deadline, answer).await.map_err(|_| {
                Error::new(Code::TimedOut, format!("the call was not answered within {} ms", deadline.as_millis()))
            })?,
            None => answer.await,
        }
        .map_err(of_stream)?;
        call.0 = None;
        match response.split_first() {
            Some((&RESPONSE, response)) => Ok(response.to_vec()),
            Some((&FAILURE, words)) => Err(Error::new(Code::Refused, String::from_utf8_lossy(words))),
            _ => Err(Error::new(Code::Protocol, "the peer answered the call with what is no response")),
        }
    }

    /// Waits for the next call that the peer makes. Cancel-safe.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn next_call(&self) -> Result<IncomingCall, Error> {
        loop {
            // What the peer alone writes is no call, and dropped is stopped.
            if let (Some(send), recv) = self.accept_stream().await? {
                return Ok(IncomingCall { send: Some(send), recv });
            }
        }
    }
}

/// A call that a peer makes. Dropped without an answer, it is refused.
pub struct IncomingCall {
    send: Option<SendStream>,
    recv: RecvStream,
}

impl IncomingCall {
    /// The request, and how long the caller waits from when it asked, if it says so.
    ///
    /// # Errors
    /// When the caller has given up, or the connection is over.
    pub async fn request(&mut self) -> Result<(Vec<u8>, Option<Duration>), Error> {
        let milliseconds = self.recv.read_u32().await.map_err(of_stream)?;
        let request = read_whole(&mut self.recv).await.map_err(of_stream)?;
        let deadline = (milliseconds > 0).then(|| Duration::from_millis(milliseconds.into()));
        Ok((request, deadline))
    }

    /// Answers it.
    ///
    /// # Errors
    /// When the caller has given up, or the connection is over.
    pub async fn respond(self, response: impl AsRef<[u8]>) -> Result<(), Error> {
        self.answer(RESPONSE, response.as_ref()).await
    }

    /// Says why there is no response.
    ///
    /// # Errors
    /// As [`IncomingCall::respond`].
    pub async fn fail(self, words: &str) -> Result<(), Error> {
        self.answer(FAILURE, words.as_bytes()).await
    }

    async fn answer(mut self, status: u8, body: &[u8]) -> Result<(), Error> {
        let Some(mut send) = self.send.take() else { return Ok(()) };
        write_whole(&mut send, &[status], body).await.map_err(of_stream)
    }
}

impl Drop for IncomingCall {
    fn drop(&mut self) {
        if let Some(send) = self.send.take() {
            send.reset(NO_ANSWER);
        }
    }
}

async fn exchange(call: &mut Call, request: &[u8], deadline: Option<Duration>) -> io::Result<Vec<u8>> {
    let Some((send, recv)) = &mut call.0 else { return Ok(Vec::new()) };
    let milliseconds = deadline.map_or(0, |deadline| u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX).max(1));
    write_whole(send, &milliseconds.to_be_bytes(), request).await?;
    read_whole(recv).await
}

/// Head and body, in one piece where they are short, and the end.
async fn write_whole(send: &mut SendStream, head: &[u8], body: &[u8]) -> io::Result<()> {
    send.write_all(&[head, body].concat()).await?;
    send.shutdown().await
}

async fn read_whole(recv: &mut RecvStream) -> io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    recv.take(MAX_CALL_BYTES as u64 + 1).read_to_end(&mut whole).await?;
    if whole.len() > MAX_CALL_BYTES {
        let words = format!("a request or response of more than {MAX_CALL_BYTES} bytes: use a stream");
        return Err(Error::new(Code::TooLong, words).into());
    }
    Ok(whole)
}

/// What a stream's error carries.
fn of_stream(error: io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    inner.cloned().unwrap_or_else(|| Error::new(Code::Protocol, format!("the call was cut off: {error}")))
}
