//! An application's connections and streams, as its worker keeps them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pilot_engine::{ConnectionHandle, Instant, StreamId};

use super::super::protocol::{Error, Id};
use super::flow::{Inbound, Outbound};

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) handle: ConnectionHandle,
    pub(super) opened_here: bool,
    pub(super) state: State,
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    pub(super) has_datagrams: bool,
    pub(super) streams: BTreeMap<StreamId, Id>,
    /// When its state is looked at, if nothing happens before.
    pub(super) timer: Option<Instant>,
}

/// Where it is in its life.
#[derive(Debug)]
pub(super) enum State {
    /// L3.2: the peer has not answered to this request.
    Connecting {
        request: u32,
    },
    /// L3.4: the application has not.
    Offered {
        _waiting: Waiting,
    },
    Open,
    /// The application has closed it by this request; what it sent is still to arrive.
    Closing {
        request: u32,
        code: u64,
        reason: String,
        until: Instant,
    },
    /// L4.1: it is over, and what had arrived is still to be read.
    Ended(Error),
}

/// A place among those that wait on a port.
#[derive(Debug)]
pub(super) struct Waiting(pub(super) Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    pub(super) fn new(handle: ConnectionHandle, opened_here: bool, state: State) -> Self {
        Self {
            handle,
            opened_here,
            state,
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            has_datagrams: false,
            streams: BTreeMap::new(),
            timer: None,
        }
    }
}

/// A stream. Each half is there until it is over.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) connection: Id,
    pub(super) handle: ConnectionHandle,
    pub(super) stream: StreamId,
    pub(super) inbound: Option<Inbound>,
    pub(super) outbound: Option<Outbound>,
    /// Bytes that the application sent.
    pub(super) sent: u64,
}
