//! What a node offers to its peers by itself, on well-known ports.

pub mod contexts;
pub mod disk;
pub mod echo;
pub mod files;
pub mod store;

use std::net::SocketAddr;
use std::path::PathBuf;

use crossbeam_channel::Sender;
use pilot_engine::{ConnectionHandle, Endpoint, Event, Instant, RefuseCode};

use crate::link::doorbell::Doorbell;
use crate::worker::Application;
use contexts::ContextOwner;
use disk::Disk;
use echo::Echo;
use files::{FileReceiver, ReceivedFile};

/// Port of the echo service: every message comes back.
pub const ECHO_PORT: u16 = 7;
/// Port of the file service.
pub const FILES_PORT: u16 = 1001;
/// Port of shared contexts.
pub const CONTEXTS_PORT: u16 = 1002;

/// What happens on a node that its operator may want to see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A tunnel is up.
    TunnelUp {
        /// The peer, by its place in the configuration.
        peer: pilot_engine::PeerId,
        /// Where it is.
        address: Option<SocketAddr>,
    },
    /// A tunnel is over.
    TunnelDown {
        /// The peer, by its place in the configuration.
        peer: pilot_engine::PeerId,
        /// Why.
        reason: String,
    },
    /// What is sent to a peer takes another path.
    Sending {
        /// The peer, by its place in the configuration.
        peer: pilot_engine::PeerId,
        /// The bulk path, or else the first.
        bulk: bool,
        /// Why.
        why: &'static str,
    },
    /// A file arrived, whole.
    File(ReceivedFile),
}

/// The services of one worker.
pub struct Services {
    echo: Echo,
    files: Option<FileReceiver>,
    contexts: Option<ContextOwner>,
    notices: Sender<Notice>,
}

impl Services {
    /// Echo, and files into a directory if one is given, of the worker of this number, whose doorbell it is. Notices that
    /// nobody takes are dropped.
    ///
    /// # Errors
    /// When the thread that writes files cannot be started.
    pub fn new(
        worker: usize,
        files: Option<PathBuf>,
        notices: Sender<Notice>,
        doorbell: Doorbell,
    ) -> std::io::Result<Self> {
        let disk = files.map(|directory| Disk::start(directory, doorbell)).transpose()?;
        let files = disk.map(|disk| FileReceiver::new(disk, worker));
        Ok(Self { echo: Echo::default(), files, contexts: None, notices })
    }

    /// Serves contexts too; only on the worker that has all tunnels of the node.
    pub fn with_contexts(self, contexts: ContextOwner) -> Self {
        Self { contexts: Some(contexts), ..self }
    }

    /// The contexts that it holds, if it does.
    pub fn contexts(&mut self) -> Option<&mut ContextOwner> {
        self.contexts.as_mut()
    }

    fn notice(&self, notice: Notice) {
        // Bounded: an operator's terminal that does not read must not hold a worker back.
        let _ = self.notices.try_send(notice);
    }

    fn on_offered(&mut self, endpoint: &mut Endpoint, now: Instant, connection: ConnectionHandle, port: u16) {
        if let Some(contexts) = self.contexts.as_mut().filter(|_| port == CONTEXTS_PORT) {
            contexts.accept(endpoint, now, connection);
            return;
        }
        let served = match port {
            ECHO_PORT => true,
            FILES_PORT => self.files.is_some(),
            _ => false,
        };
        if served {
            // An error means that it is closed already, which its own event tells.
            let _ = endpoint.accept(now, connection);
        } else {
            let reason = format!("nobody listens on port {port}");
            endpoint.refuse(now, connection, RefuseCode::NoListener as u64, &reason);
        }
    }
}

impl Application for Services {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event) {
        if let Some(contexts) = &mut self.contexts {
            contexts.on_event(endpoint, now, &event);
        }
        match event {
            Event::Offered { connection, port } => self.on_offered(endpoint, now, connection, port),
            Event::MessagesReadable { connection } | Event::MessagesWritable { connection } => {
                if endpoint.port(connection) == Some(ECHO_PORT) {
                    self.echo.serve(endpoint, now, connection);
                }
            }
            Event::StreamReadable { connection, stream }
            | Event::StreamWritable { connection, stream }
            | Event::StreamReset { connection, stream, .. }
            | Event::StreamStopped { connection, stream, .. } => {
                if let Some(files) = &mut self.files
                    && endpoint.port(connection) == Some(FILES_PORT)
                {
                    files.serve(endpoint, now, (connection, stream));
                }
            }
            Event::Closed { connection, .. } => {
                self.echo.forget(connection);
                if let Some(files) = &mut self.files {
                    files.forget(connection);
                }
                endpoint.close(now, connection, 0, "");
            }
            Event::TunnelUp { peer, .. } => {
                self.notice(Notice::TunnelUp { peer, address: endpoint.last_address(peer) });
            }
            Event::TunnelDown { peer, reason } => {
                self.notice(Notice::TunnelDown { peer, reason: reason.to_string() });
            }
            Event::Sending { peer, bulk, why } => self.notice(Notice::Sending { peer, bulk, why }),
            Event::Connected { .. } | Event::StreamOpened { .. } | Event::PeerRestarted { .. } => {}
            Event::DatagramsReadable { .. } | Event::StreamConsumed { .. } | Event::MessagesConsumed { .. } => {}
        }
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        let mut any = self.contexts.as_mut().is_some_and(|contexts| contexts.poll(endpoint, now));
        while let Some(files) = &mut self.files {
            let (did, file) = files.poll(endpoint, now);
            if let Some(file) = file {
                self.notice(Notice::File(file));
            }
            if !did {
                break;
            }
            any = true;
        }
        any
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }
}
