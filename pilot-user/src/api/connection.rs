//! A connection to a peer's port.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde_json::Value;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, channel, unbounded_channel};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};

use super::dispatch::{Progress, ToConnection};
use super::limits::{FLOW_CREDIT_BYTES, GIVE_BACK_AFTER_BYTES, MAX_DATAGRAMS};
use super::protocol::{Code, Error, Id, Request, ToNode, cost};
use super::session::{Note, Pending, Session};
use super::stream::{Ends, RecvStream, SendStream};
use pilot_engine::limits::MAX_MESSAGE_BYTES;

/// A connection to a peer's port: messages, unreliable datagrams, streams and calls. Clones are the same connection, and several
/// tasks may use it at a time.
///
/// Dropping the last clone and the last of its streams closes it with code 0, after what was sent has arrived.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

/// What a connection's handle and its streams' handles share.
pub(crate) struct Shared {
    pub(crate) id: Id,
    pub(crate) session: Arc<Session>,
    peer: String,
    port: u16,
    messages: Mutex<UnboundedReceiver<Vec<u8>>>,
    datagrams: Mutex<Receiver<Vec<u8>>>,
    streams: Mutex<UnboundedReceiver<(Option<SendStream>, RecvStream)>>,
    credit: Arc<Semaphore>,
    /// Bytes that were read and not yet given back (L5.2).
    owed: AtomicU32,
    pub(crate) progress: watch::Receiver<Progress>,
    is_closed: AtomicBool,
    /// Offered by the peer, and neither accepted nor refused.
    is_offered: AtomicBool,
}

/// A connection for who asked for it.
pub(crate) struct Opened(pub(crate) Connection);

/// A connection, and the dispatcher's end of it.
pub(crate) fn new(session: Arc<Session>, id: Id, peer: String, port: u16, is_offered: bool) -> (Opened, ToConnection) {
    let (to_messages, messages) = unbounded_channel();
    let (to_datagrams, datagrams) = channel(MAX_DATAGRAMS);
    let (to_streams, streams) = unbounded_channel();
    let (to_progress, progress) = watch::channel(Progress::default());
    let credit = Arc::new(Semaphore::new(FLOW_CREDIT_BYTES as usize));
    let shared = Arc::new(Shared {
        id,
        session,
        peer,
        port,
        messages: Mutex::new(messages),
        datagrams: Mutex::new(datagrams),
        streams: Mutex::new(streams),
        credit: Arc::clone(&credit),
        owed: AtomicU32::new(0),
        progress,
        is_closed: AtomicBool::new(false),
        is_offered: AtomicBool::new(is_offered),
    });
    let to = ToConnection {
        messages: to_messages,
        datagrams: to_datagrams,
        streams: to_streams,
        credit,
        progress: to_progress,
        stream_ids: HashSet::new(),
        handle: Arc::downgrade(&shared),
    };
    (Opened(Connection { shared }), to)
}

impl Connection {
    /// The peer's name in the node's configuration.
    pub fn peer(&self) -> &str {
        &self.shared.peer
    }

    /// The port that it is for, at whichever end listened.
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// Sends a message of at most 65,536 bytes: it arrives whole, once, and after those before it. Waits while too many are under way,
    /// as when the peer's application does not receive. Cancel-safe: dropped, nothing was sent.
    ///
    /// # Errors
    /// When the message is too long, or the connection is over.
    pub async fn send(&self, message: impl AsRef<[u8]>) -> Result<(), Error> {
        let message = message.as_ref();
        if message.len() > MAX_MESSAGE_BYTES {
            let words = format!("a message of {} bytes: at most {MAX_MESSAGE_BYTES} are allowed", message.len());
            return Err(Error::new(Code::TooLong, words));
        }
        let Shared { id, session, credit, .. } = &*self.shared;
        session.spend(credit, message).await.ok_or_else(|| self.shared.why_over())?;
        session.say(ToNode::Message(*id, message.to_vec()));
        Ok(())
    }

    /// Receives the next message. Where several tasks do, each gets others. Cancel-safe.
    ///
    /// # Errors
    /// When the connection is over and all that had arrived was received.
    pub async fn receive(&self) -> Result<Vec<u8>, Error> {
        let mut messages = self.shared.messages.lock().await;
        let message = messages.recv().await.ok_or_else(|| self.shared.why_over())?;
        let owed = self.shared.owed.fetch_add(cost(&message), Ordering::Relaxed) + cost(&message);
        // L5.2: what is given back is what the peer is told to be consumed.
        if owed >= GIVE_BACK_AFTER_BYTES || messages.is_empty() {
            let owed = self.shared.owed.swap(0, Ordering::Relaxed);
            if owed > 0 {
                self.shared.session.say(ToNode::Credit(self.shared.id, owed));
            }
        }
        Ok(message)
    }

    /// Sends an unreliable datagram, of what fits into one packet: it arrives once, late or never, and one too long for the path
    /// never does.
    pub fn send_datagram(&self, datagram: &[u8]) {
        if datagram.len() <= MAX_MESSAGE_BYTES {
            self.shared.session.say(ToNode::Datagram(self.shared.id, datagram.to_vec()));
        }
    }

    /// Receives the next unreliable datagram. Those for which nobody waits are dropped. Cancel-safe.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn receive_datagram(&self) -> Result<Vec<u8>, Error> {
        self.shared.datagrams.lock().await.recv().await.ok_or_else(|| self.shared.why_over())
    }

    /// Opens a stream in both directions. What is wrong with that, as too many open ones, the stream's own calls say.
    pub fn open_stream(&self) -> (SendStream, RecvStream) {
        let (id, mut ends) = (self.shared.session.fresh_stream(self.shared.id), Ends::new(self.shared.id));
        let streams = (ends.sending(&self.shared, id), ends.receiving(&self.shared, id));
        self.open(id, ends, false);
        streams
    }

    /// Opens a stream that only this end writes.
    pub fn open_unidirectional(&self) -> SendStream {
        let (id, mut ends) = (self.shared.session.fresh_stream(self.shared.id), Ends::new(self.shared.id));
        let stream = ends.sending(&self.shared, id);
        self.open(id, ends, true);
        stream
    }

    /// Waits for the next stream that the peer opens: without the sending half where only the peer writes. Cancel-safe.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn accept_stream(&self) -> Result<(Option<SendStream>, RecvStream), Error> {
        self.shared.streams.lock().await.recv().await.ok_or_else(|| self.shared.why_over())
    }

    pub(crate) fn accept(&self, permit: OwnedSemaphorePermit) {
        self.shared.is_offered.store(false, Ordering::Relaxed);
        self.shared.session.ask_with(Request::Accept { connection: self.shared.id }, Pending::None, permit);
    }

    /// How many messages the peer's application has received, as far as it was told.
    pub fn messages_consumed(&self) -> u64 {
        self.shared.progress.borrow().consumed
    }

    /// Waits until the peer's application has received so many messages. Cancel-safe.
    ///
    /// # Errors
    /// When the connection is over before.
    pub async fn consumed(&self, messages: u64) -> Result<(), Error> {
        wait_for_consumed(self.shared.progress.clone(), messages).await
    }

    /// What its node counts, as JSON: bytes of window, datagrams dropped.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn stats(&self) -> Result<Value, Error> {
        self.shared.session.request(Request::Stats { connection: Some(self.shared.id) }).await
    }

    /// Waits until it is over; why it is. Cancel-safe.
    pub async fn closed(&self) -> Error {
        let mut progress = self.shared.progress.clone();
        let over = progress.wait_for(|progress| progress.over.is_some()).await;
        over.ok().and_then(|progress| progress.over.clone()).unwrap_or_else(Error::gone)
    }

    /// Closes it with a code and words for the peer's application, once all that was sent has arrived there, or after five seconds.
    /// Dropped, it is closed all the same, unless dropped at once.
    ///
    /// # Errors
    /// When it was over before.
    pub async fn close(self, code: u64, reason: &str) -> Result<(), Error> {
        if self.shared.is_closed.swap(true, Ordering::Relaxed) {
            return Err(self.shared.why_over());
        }
        let what = Request::Close { connection: self.shared.id, code, reason: reason.to_owned() };
        self.shared.session.request(what).await.map(|_| ())
    }

    fn open(&self, stream: Id, ends: Ends, unidirectional: bool) {
        let Shared { id: connection, session, .. } = &*self.shared;
        session.note(Note::Opened(stream, ends));
        session.say(ToNode::Open { stream, connection: *connection, unidirectional });
    }
}

impl Shared {
    /// Why nothing can be done with it any more.
    pub(crate) fn why_over(&self) -> Error {
        self.progress.borrow().over.clone().unwrap_or_else(Error::gone)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.is_closed.load(Ordering::Relaxed) || self.progress.borrow().over.is_some() {
            return;
        }
        let connection = self.id;
        let what = if self.is_offered.load(Ordering::Relaxed) {
            Request::Refuse { connection, code: pilot_engine::RefuseCode::NotAllowed as u64, reason: String::new() }
        } else {
            Request::Close { connection, code: 0, reason: String::new() }
        };
        self.session.ask_nothing(what);
    }
}

/// Waits until the peer has read so much.
pub(crate) async fn wait_for_consumed(mut progress: watch::Receiver<Progress>, amount: u64) -> Result<(), Error> {
    let reached = progress.wait_for(|progress| progress.consumed >= amount || progress.over.is_some()).await;
    match reached.map(|progress| progress.clone()) {
        Ok(progress) if progress.consumed >= amount => Ok(()),
        Ok(Progress { over: Some(error), .. }) => Err(error),
        _ => Err(Error::gone()),
    }
}
