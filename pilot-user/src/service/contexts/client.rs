//! A client of one peer's contexts, over a connection that is made again whenever it ends.

use std::time::Duration;

use pilot_engine::{CloseReason, ConnectionHandle, Endpoint, Event, Instant, OperationError, PeerId};

use super::VIOLATION;
use super::carrier::Carrier;
use crate::context::{Client, Violation};
use crate::service::CONTEXTS_PORT;

/// Waits between attempts to connect, of which the last one repeats. Lower: an owner that restarts is asked by all its
/// followers at once. Higher: changes come late after it.
const RETRY: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(5)];

/// Part of an application that follows or changes the contexts of a peer. What it follows, and what happened, is
/// [`ContextClient::client`]'s; after using that, call [`ContextClient::flush`].
pub struct ContextClient {
    /// The client.
    pub client: Client,
    peer: PeerId,
    connection: Option<ConnectionHandle>,
    carrier: Carrier,
    attempts: usize,
    retry_at: Option<Instant>,
    /// Messages are taken by [`ContextClient::receive`] alone.
    one_at_a_time: bool,
    buffer: Vec<u8>,
}

impl ContextClient {
    /// Connects to the peer at the next [`ContextClient::poll`].
    pub fn new(peer: PeerId) -> Self {
        Self {
            client: Client::default(),
            peer,
            connection: None,
            carrier: Carrier::default(),
            attempts: 0,
            retry_at: Some(Instant::ORIGIN),
            one_at_a_time: false,
            buffer: Vec::new(),
        }
    }

    /// Takes no message but by [`ContextClient::receive`]: for who cannot take the next as long as it has no place for the last. The
    /// connection's credit then holds the owner up.
    pub fn one_at_a_time(peer: PeerId) -> Self {
        Self { one_at_a_time: true, ..Self::new(peer) }
    }

    /// The connection, while there is one.
    pub fn connection(&self) -> Option<ConnectionHandle> {
        self.connection
    }

    /// Handles an event, if it is about its connection. Why that ended, if it did: it is made again.
    pub fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: &Event) -> Option<CloseReason> {
        let ours = self.connection?;
        match event {
            Event::Connected { connection } if *connection == ours => {
                self.attempts = 0;
                self.client.connect();
                self.flush(endpoint, now);
            }
            Event::MessagesReadable { connection } | Event::MessagesWritable { connection } if *connection == ours => {
                self.serve(endpoint, now);
            }
            Event::StreamReadable { connection, stream }
            | Event::StreamReset { connection, stream, .. }
            | Event::StreamWritable { connection, stream }
            | Event::StreamStopped { connection, stream, .. }
                if *connection == ours =>
            {
                self.carrier.on_stream(*stream);
                self.serve(endpoint, now);
            }
            Event::Closed { connection, reason } if *connection == ours => {
                // What had arrived before it ended is still to be read.
                self.serve(endpoint, now);
                self.end(endpoint, now, 0, "");
                return Some(reason.clone());
            }
            _ => {}
        }
        None
    }

    /// Connects, when it is time to. Whether it did.
    pub fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        if self.retry_at.is_none_or(|at| at > now) {
            return false;
        }
        // Not to be had yet: the peer is to come to us, and has not.
        let _ = self.connect(endpoint, now);
        true
    }

    /// Connects.
    ///
    /// # Errors
    /// When it cannot be tried now. It is tried again when it is time.
    pub fn connect(&mut self, endpoint: &mut Endpoint, now: Instant) -> Result<(), OperationError> {
        let connected = endpoint.connect(now, self.peer, CONTEXTS_PORT);
        self.connection = connected.as_ref().ok().copied();
        self.retry_at = self.connection.is_none().then(|| now + self.pause());
        connected.map(|_| ())
    }

    /// Takes the next message of the owner. `false`: there is none now. What happened is the client's to say; then flush it.
    pub fn receive(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        let Some(connection) = self.connection else { return false };
        let handled = match self.carrier.receive(endpoint, now, connection, &mut self.buffer) {
            Ok(false) => return false,
            Ok(true) => self.client.handle(&self.buffer),
            Err(violation) => Err(violation),
        };
        if let Err(Violation(why)) = handled {
            self.end(endpoint, now, VIOLATION, why);
        }
        true
    }

    /// Ends the connection.
    pub fn close(&mut self, endpoint: &mut Endpoint, now: Instant) {
        self.end(endpoint, now, 0, "");
    }

    /// When [`ContextClient::poll`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Sends what the client has to say.
    pub fn flush(&mut self, endpoint: &mut Endpoint, now: Instant) {
        let Some(connection) = self.connection else { return };
        let mut room = self.carrier.flush(endpoint, now, connection);
        while room && self.client.poll_transmit(&mut self.buffer) {
            room = self.carrier.send(endpoint, now, connection, &mut self.buffer);
        }
    }

    fn serve(&mut self, endpoint: &mut Endpoint, now: Instant) {
        while !self.one_at_a_time && self.receive(endpoint, now) {}
        self.flush(endpoint, now);
    }

    fn end(&mut self, endpoint: &mut Endpoint, now: Instant, code: u64, reason: &str) {
        let Some(connection) = self.connection.take() else { return };
        endpoint.close(now, connection, code, reason);
        self.carrier = Carrier::default();
        self.client.disconnect();
        self.retry_at = Some(now + self.pause());
    }

    fn pause(&mut self) -> Duration {
        let pause = RETRY[self.attempts.min(RETRY.len() - 1)];
        self.attempts += 1;
        pause
    }
}
