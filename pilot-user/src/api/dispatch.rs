//! Brings what a node says to whom it is for: to the queue of a connection or stream, or to who asked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::connection::{self, Opened};
use super::context::{Feed, News};
use super::node::{Incoming, Listener};
use super::protocol::{Consumed, Error, Event, Id, SESSION, ToApplication};
use super::session::{Note, Pending, Session};
use super::stream::{Ends, RecvStream, SendStream};

/// What is known of a connection or a stream: its state, and how far the peer has read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Messages or bytes that the peer's application has read.
    pub(crate) consumed: u64,
    /// Why it is over.
    pub(crate) over: Option<Error>,
}

/// A connection, as the dispatcher fills it.
pub(crate) struct ToConnection {
    pub(crate) messages: UnboundedSender<Vec<u8>>,
    pub(crate) datagrams: Sender<Vec<u8>>,
    pub(crate) streams: UnboundedSender<(Option<SendStream>, RecvStream)>,
    pub(crate) credit: Arc<Semaphore>,
    pub(crate) progress: watch::Sender<Progress>,
    /// Its streams, which end with it.
    pub(crate) stream_ids: HashSet<Id>,
    /// For the handles of streams that the peer opens. Not a strong one: it would keep the connection open.
    pub(crate) handle: std::sync::Weak<connection::Shared>,
}

/// See the module's head.
pub(crate) struct Dispatcher {
    session: std::sync::Weak<Session>,
    credit: Arc<Semaphore>,
    over: Arc<watch::Sender<Option<Error>>>,
    notes: UnboundedReceiver<Note>,
    requests: HashMap<u32, (Pending, OwnedSemaphorePermit)>,
    connections: HashMap<Id, ToConnection>,
    streams: HashMap<Id, Ends>,
    listeners: HashMap<u16, UnboundedSender<Incoming>>,
    followings: HashMap<Id, UnboundedSender<News>>,
    /// Who subscribed to what happens at the node.
    events: Vec<UnboundedSender<Value>>,
}

impl Dispatcher {
    pub(crate) fn new(session: &Arc<Session>, notes: UnboundedReceiver<Note>) -> Self {
        Self {
            session: Arc::downgrade(session),
            credit: Arc::clone(&session.credit),
            over: Arc::clone(&session.over),
            notes,
            requests: HashMap::new(),
            connections: HashMap::new(),
            streams: HashMap::new(),
            listeners: HashMap::new(),
            followings: HashMap::new(),
            events: Vec::new(),
        }
    }

    /// Handles what comes until the session is over.
    pub(crate) async fn run(mut self, mut next: impl AsyncFnMut() -> Option<ToApplication>) {
        let why = loop {
            let Some(frame) = next().await else { break Error::gone() };
            if let Err(error) = self.dispatch(frame) {
                break error;
            }
        };
        self.end(&why);
    }

    /// Handles one frame. What was noted before the node could say it is known first.
    fn dispatch(&mut self, frame: ToApplication) -> Result<(), Error> {
        self.take_notes();
        match frame {
            ToApplication::Message(id, body) => {
                if let Some(connection) = self.connections.get(&id) {
                    // Nobody reads them any more when it fails.
                    let _ = connection.messages.send(body);
                }
            }
            ToApplication::Data(id, body) => {
                if let Some(data) = self.streams.get(&id).and_then(|ends| ends.data.as_ref()) {
                    let _ = data.send(body);
                }
            }
            ToApplication::Datagram(id, body) => {
                if let Some(connection) = self.connections.get(&id) {
                    // L5.5: dropped where there is no room.
                    let _ = connection.datagrams.try_send(body);
                }
            }
            ToApplication::Part(id, body) => self.on_news(id, News::Part(body)),
            ToApplication::Finish(id) => {
                if let Some(ends) = self.streams.get_mut(&id) {
                    ends.data = None;
                }
            }
            ToApplication::Credit(SESSION, bytes) => self.credit.add_permits(bytes as usize),
            ToApplication::Credit(id, bytes) => {
                let of_stream = || self.streams.get(&id).map(|ends| &ends.credit);
                if let Some(credit) = self.connections.get(&id).map(|it| &it.credit).or_else(of_stream) {
                    credit.add_permits(bytes as usize);
                }
            }
            ToApplication::Result { request, value } => self.on_answer(request, Ok(value)),
            ToApplication::Error { request: 0, error } => return Err(error),
            ToApplication::Error { request, error } => self.on_answer(request, Err(error)),
            ToApplication::Event(id, event) => self.on_event(id, event),
        }
        Ok(())
    }

    fn take_notes(&mut self) {
        while let Ok(note) = self.notes.try_recv() {
            match note {
                Note::Asked { request, pending, permit } => _ = self.requests.insert(request, (pending, permit)),
                Note::Opened(id, ends) => {
                    if let Some(connection) = self.connections.get_mut(&ends.connection) {
                        connection.stream_ids.insert(id);
                        self.streams.insert(id, ends);
                    } else {
                        ends.end(None);
                    }
                }
                Note::Subscribed(to) => self.events.push(to),
                Note::Left(id) => _ = self.followings.remove(&id),
                Note::Dropped(id) => {
                    if let Some(ends) = self.streams.get_mut(&id) {
                        ends.handles -= 1;
                        if ends.handles == 0 {
                            self.forget_stream(id);
                        }
                    }
                }
            }
        }
    }

    fn forget_stream(&mut self, id: Id) {
        let Some(ends) = self.streams.remove(&id) else { return };
        if let Some(connection) = self.connections.get_mut(&ends.connection) {
            connection.stream_ids.remove(&id);
        }
    }

    fn on_answer(&mut self, request: u32, result: Result<Value, Error>) {
        let Some((pending, _)) = self.requests.remove(&request) else { return };
        // Who asked may be gone: what was made for it ends as it is dropped.
        match pending {
            Pending::Value(to) => _ = to.send(result),
            Pending::Connect { peer, port, to } => {
                let opened = result.and_then(|value| {
                    let id = value["connection"].as_u64().and_then(|id| u32::try_from(id).ok());
                    self.open(Id(id.unwrap_or_default()), peer, port, false).ok_or_else(Error::gone)
                });
                let _ = to.send(opened);
            }
            Pending::Follow(to) => {
                let feed = result.and_then(|value| {
                    let id = value["following"].as_u64().and_then(|id| u32::try_from(id).ok());
                    let session = self.session.upgrade().ok_or_else(Error::gone)?;
                    let (feed, news) = Feed::new(session, Id(id.unwrap_or_default()));
                    self.followings.insert(feed.id, news);
                    Ok(feed)
                });
                let _ = to.send(feed);
            }
            Pending::Listen(to) => {
                let listener = result.and_then(|value| {
                    let port = value["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or_default();
                    let session = self.session.upgrade().ok_or_else(Error::gone)?;
                    let (listener, incoming) = Listener::new(session, port);
                    self.listeners.insert(port, incoming);
                    Ok(listener)
                });
                let _ = to.send(listener);
            }
            Pending::None => {}
        }
    }

    fn open(&mut self, id: Id, peer: String, port: u16, is_offered: bool) -> Option<Opened> {
        let (opened, to) = connection::new(self.session.upgrade()?, id, peer, port, is_offered);
        self.connections.insert(id, to);
        Some(opened)
    }

    fn on_event(&mut self, id: Id, event: Event) {
        match event {
            Event::Incoming { peer, address: _, port } => {
                if let Some(opened) = self.open(id, peer, port, true) {
                    let incoming = Incoming { opened };
                    match self.listeners.get(&port) {
                        // Without its listener it is dropped, and so refused.
                        Some(listener) => _ = listener.send(incoming),
                        None => drop(incoming),
                    }
                }
            }
            Event::Stream { stream, unidirectional } => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                let Some(handle) = connection.handle.upgrade() else { return };
                let mut ends = Ends::new(id);
                let recv = ends.receiving(&handle, stream);
                let send = (!unidirectional).then(|| ends.sending(&handle, stream));
                self.streams.insert(stream, ends);
                connection.stream_ids.insert(stream);
                let _ = connection.streams.send((send, recv));
            }
            Event::Closed(error) => self.on_closed(id, &error),
            Event::Reset { peer_code } => {
                if let Some(ends) = self.streams.get_mut(&id) {
                    ends.on_reset(peer_code);
                }
            }
            Event::Stopped { peer_code } => {
                if let Some(ends) = self.streams.get_mut(&id) {
                    ends.on_stopped(peer_code);
                }
            }
            Event::Consumed(Consumed::Messages(consumed)) | Event::Consumed(Consumed::Bytes(consumed)) => {
                self.on_consumed(id, consumed);
            }
            Event::Restarted { consumed } => self.on_consumed(id, consumed),
            Event::Whole { .. } | Event::Changed { .. } | Event::Checked { .. } | Event::Diverged { .. } => {
                self.on_news(id, News::Event(event));
            }
            Event::Ended(_) => {
                self.on_news(id, News::Event(event));
                self.followings.remove(&id);
            }
            Event::TunnelUp { .. } | Event::TunnelDown { .. } | Event::ShuttingDown { .. } => {
                let event = serde_json::to_value(event).unwrap_or_default();
                self.events.retain(|subscriber| subscriber.send(event.clone()).is_ok());
            }
        }
    }

    fn on_news(&mut self, id: Id, news: News) {
        if let Some(following) = self.followings.get(&id) {
            // Nobody reads it any more when it fails.
            let _ = following.send(news);
        }
    }

    fn on_consumed(&mut self, id: Id, consumed: u64) {
        let of_stream = || self.streams.get(&id).map(|ends| &ends.progress);
        if let Some(progress) = self.connections.get(&id).map(|it| &it.progress).or_else(of_stream) {
            progress.send_modify(|progress| progress.consumed = consumed);
        }
    }

    fn on_closed(&mut self, id: Id, error: &Error) {
        if let Some(connection) = self.connections.remove(&id) {
            for stream in connection.stream_ids {
                self.streams.remove(&stream).into_iter().for_each(|ends| ends.end(Some(error)));
            }
            connection.progress.send_modify(|progress| progress.over = Some(error.clone()));
            connection.credit.close();
        } else if let Some(ends) = self.streams.remove(&id) {
            ends.end(Some(error));
        }
    }

    /// The session is over: so is all that it had.
    fn end(mut self, error: &Error) {
        self.over.send_replace(Some(error.clone()));
        self.credit.close();
        self.notes.close();
        self.take_notes();
        for (_, (pending, _)) in self.requests.drain() {
            match pending {
                Pending::Value(to) => _ = to.send(Err(error.clone())),
                Pending::Connect { to, .. } => _ = to.send(Err(error.clone())),
                Pending::Listen(to) => _ = to.send(Err(error.clone())),
                Pending::Follow(to) => _ = to.send(Err(error.clone())),
                Pending::None => {}
            }
        }
        let all: Vec<Id> = self.connections.keys().copied().collect();
        all.into_iter().for_each(|id| self.on_closed(id, error));
    }
}
