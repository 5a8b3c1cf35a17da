//! Streams: ordered bytes in a connection, as tokio's [`AsyncWrite`] and [`AsyncRead`].

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::connection::{Shared, wait_for_consumed};
use super::dispatch::Progress;
use super::limits::{FLOW_CREDIT_BYTES, FRAME_OVERHEAD_BYTES, GIVE_BACK_AFTER_BYTES, MAX_DATA_BYTES};
use super::protocol::{Code, Error, Id, Request, ToNode, cost};
use super::session::Note;

/// The dispatcher's end of a stream.
pub(crate) struct Ends {
    pub(crate) connection: Id,
    /// Handles of it that are in use.
    pub(crate) handles: u8,
    /// Where what arrives goes; without it, the end has.
    pub(crate) data: Option<UnboundedSender<Vec<u8>>>,
    pub(crate) credit: Arc<Semaphore>,
    /// Of what is written.
    pub(crate) progress: watch::Sender<Progress>,
    /// Why what arrived is not all there is.
    cut: watch::Sender<Option<Error>>,
}

impl Ends {
    pub(crate) fn new(connection: Id) -> Self {
        Self {
            connection,
            handles: 0,
            data: None,
            credit: Arc::new(Semaphore::new(FLOW_CREDIT_BYTES as usize)),
            progress: watch::Sender::default(),
            cut: watch::Sender::default(),
        }
    }

    /// The half that writes.
    pub(crate) fn sending(&mut self, connection: &Arc<Shared>, id: Id) -> SendStream {
        self.handles += 1;
        SendStream {
            id,
            connection: Arc::clone(connection),
            credit: Arc::clone(&self.credit),
            progress: self.progress.subscribe(),
            waiting: None,
            written: 0,
            is_finished: false,
        }
    }

    /// The half that reads.
    pub(crate) fn receiving(&mut self, connection: &Arc<Shared>, id: Id) -> RecvStream {
        self.handles += 1;
        let (to_data, data) = unbounded_channel();
        self.data = Some(to_data);
        let cut = self.cut.subscribe();
        RecvStream {
            id,
            connection: Arc::clone(connection),
            data,
            cut,
            piece: Vec::new(),
            at: 0,
            owed: 0,
            is_over: false,
        }
    }

    /// The peer gave up writing.
    pub(crate) fn on_reset(&mut self, peer_code: u64) {
        let words = format!("the peer reset the stream with code {peer_code}");
        self.cut.send_replace(Some(Error { code: Code::Closed, words, peer_code: Some(peer_code) }));
        self.data = None;
    }

    /// The peer reads no more.
    pub(crate) fn on_stopped(&mut self, peer_code: u64) {
        let words = format!("the peer stopped reading the stream with code {peer_code}");
        let error = Error { code: Code::Closed, words, peer_code: Some(peer_code) };
        self.progress.send_modify(|progress| progress.over = Some(error));
        self.credit.close();
    }

    /// It is over, with its connection or because it could not be opened; `None`: why is the connection's to say.
    pub(crate) fn end(self, error: Option<&Error>) {
        let error = error.cloned().unwrap_or_else(Error::gone);
        self.progress.send_if_modified(|progress| {
            let is_news = progress.over.is_none();
            progress.over.get_or_insert_with(|| error.clone());
            is_news
        });
        self.credit.close();
        // What ended before stays as it ended.
        if self.data.is_some() {
            self.cut.send_replace(Some(error));
        }
    }
}

/// The half of a stream that writes. Its writes wait while the peer's application does not read; they are cancel-safe: what
/// [`AsyncWrite::poll_write`] took is sent, and nothing else. Shutting it down says that nothing comes behind what was written.
///
/// Dropped before that, it is reset with code 0, so that nobody takes a part for the whole.
pub struct SendStream {
    id: Id,
    connection: Arc<Shared>,
    credit: Arc<Semaphore>,
    progress: watch::Receiver<Progress>,
    /// The wait for credit, of the flow and of the session.
    waiting: Option<Wait>,
    written: u64,
    is_finished: bool,
}

type Wait = Pin<Box<dyn Future<Output = Option<[OwnedSemaphorePermit; 2]>> + Send + Sync>>;

impl SendStream {
    /// Gives up writing: what has not arrived is not sent any more, and the peer's application is told the code.
    pub fn reset(mut self, code: u64) {
        self.give_up(code);
    }

    /// How many bytes were written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// How many bytes the peer's application has read, as far as it was told.
    pub fn bytes_consumed(&self) -> u64 {
        self.progress.borrow().consumed
    }

    /// Waits until the peer's application has read so many bytes. Cancel-safe.
    ///
    /// # Errors
    /// When the stream is over before.
    pub async fn consumed(&self, bytes: u64) -> Result<(), Error> {
        wait_for_consumed(self.progress.clone(), bytes).await
    }

    /// Credit that is there now, for at least a byte and at most for what is wanted.
    fn try_permits(&self, wanted: u32) -> Option<[OwnedSemaphorePermit; 2]> {
        let session = &self.connection.session.credit;
        let there = self.credit.available_permits().min(session.available_permits()).min(wanted as usize) as u32;
        if there <= FRAME_OVERHEAD_BYTES {
            return None;
        }
        let flow = Arc::clone(&self.credit).try_acquire_many_owned(there).ok()?;
        Some([flow, Arc::clone(session).try_acquire_many_owned(there).ok()?])
    }

    fn why_over(&self) -> io::Error {
        let over = self.progress.borrow().over.clone();
        over.unwrap_or_else(|| self.connection.why_over()).into()
    }

    fn give_up(&mut self, code: u64) {
        if !std::mem::replace(&mut self.is_finished, true) && self.progress.borrow().over.is_none() {
            self.connection.session.ask_nothing(Request::Reset { stream: self.id, code });
        }
    }
}

/// Waits for credit.
async fn permits(flow: Arc<Semaphore>, session: Arc<Semaphore>, cost: u32) -> Option<[OwnedSemaphorePermit; 2]> {
    Some([flow.acquire_many_owned(cost).await.ok()?, session.acquire_many_owned(cost).await.ok()?])
}

impl AsyncWrite for SendStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let wanted = bytes.len().min(MAX_DATA_BYTES) as u32 + FRAME_OVERHEAD_BYTES;
        let permits = if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(cx))
        } else if let Some(permits) = self.try_permits(wanted) {
            Some(permits)
        } else {
            let session = Arc::clone(&self.connection.session.credit);
            let mut wait: Wait =
                Box::pin(permits(Arc::clone(&self.credit), session, wanted.min(GIVE_BACK_AFTER_BYTES)));
            let polled = wait.as_mut().poll(cx);
            self.waiting = polled.is_pending().then_some(wait);
            ready!(polled)
        };
        self.waiting = None;
        let Some([flow, session]) = permits else { return Poll::Ready(Err(self.why_over())) };
        // The buffer may be another one than that which the wait was for.
        let granted = flow.num_permits() - FRAME_OVERHEAD_BYTES as usize;
        let body = bytes[..bytes.len().min(granted)].to_vec();
        let (length, cost) = (body.len(), cost(&body) as usize);
        for mut permit in [flow, session] {
            permit.split(cost).into_iter().for_each(OwnedSemaphorePermit::forget);
        }
        self.connection.session.say(ToNode::Data(self.id, body));
        self.written += length as u64;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The node has it, and sends it at once.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.progress.borrow().over.is_some() {
            return Poll::Ready(Err(self.why_over()));
        }
        if !std::mem::replace(&mut self.is_finished, true) {
            self.connection.session.say(ToNode::Finish(self.id));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        self.give_up(0);
        self.connection.session.note(Note::Dropped(self.id));
    }
}

/// The half of a stream that reads. Its end is the end of what the peer wrote; that the peer gave up, or that the connection is
/// over, is an error.
///
/// Dropped before its end, it is stopped with code 0: the peer writes no more.
pub struct RecvStream {
    id: Id,
    connection: Arc<Shared>,
    data: UnboundedReceiver<Vec<u8>>,
    cut: watch::Receiver<Option<Error>>,
    /// What arrived last, and how much of it was read.
    piece: Vec<u8>,
    at: usize,
    /// Bytes that were read and not yet given back (L5.2).
    owed: u32,
    is_over: bool,
}

impl RecvStream {
    /// Gives up reading: what was not read is thrown away, and the peer's application is told the code.
    pub fn stop(mut self, code: u64) {
        self.give_up(code);
    }

    fn give_up(&mut self, code: u64) {
        if !std::mem::replace(&mut self.is_over, true) && self.cut.borrow().is_none() {
            self.connection.session.ask_nothing(Request::Stop { stream: self.id, code });
        }
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if self.at == self.piece.len() {
            let Some(piece) = ready!(self.data.poll_recv(cx)) else {
                self.is_over = true;
                let cut = self.cut.borrow().clone();
                return Poll::Ready(cut.map_or(Ok(()), |error| Err(error.into())));
            };
            (self.piece, self.at) = (piece, 0);
        }
        let length = out.remaining().min(self.piece.len() - self.at);
        out.put_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        if self.at == self.piece.len() {
            self.owed += cost(&self.piece);
            // L5.2: what is given back is what the peer is told to be consumed.
            if self.owed >= GIVE_BACK_AFTER_BYTES || self.data.is_empty() {
                let owed = std::mem::take(&mut self.owed);
                self.connection.session.say(ToNode::Credit(self.id, owed));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        self.give_up(0);
        self.connection.session.note(Note::Dropped(self.id));
    }
}
