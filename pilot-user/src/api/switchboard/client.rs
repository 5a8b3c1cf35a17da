//! An application's end of the switchboard: each frame of it is done here or given to the worker that it is for, if the application
//! may.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pilot_engine::limits::MAX_MESSAGE_BYTES;
use serde_json::{Value, json};

use super::super::access::{Access, ContextRight};
use super::super::audit::Audit;
use super::super::limits::{
    CLIENT_CREDIT_BYTES, FIRST_EPHEMERAL_PORT, FIRST_USER_PORT, FLOW_CREDIT_BYTES, FRAME_OVERHEAD_BYTES,
    MAX_CONNECTIONS, MAX_DATA_BYTES, MAX_FRAME_BYTES, MAX_REQUESTS,
};
use super::super::outbox::Outbox;
use super::super::protocol::{Code, Error, NewContext, Request, SESSION, ToApplication, ToNode, VERSION, cost};
use super::{CONTEXTS_WORKER, ClientId, Inspection, Listening, Switchboard, ToWorker};
use crate::service::{CONTEXTS_PORT, ECHO_PORT, FILES_PORT};

/// The worker that asks strangers who they are: each could.
const INTRODUCTIONS_WORKER: u8 = 0;

/// See the module's head. Dropped, all that the application had is ended (L2.3).
pub(crate) struct Client {
    pub(crate) id: ClientId,
    pub(crate) outbox: Outbox,
    pub(crate) access: Access,
    pub(super) board: Arc<Switchboard>,
}

impl Client {
    /// Does what the application says, or has the right worker do it. Never blocks.
    pub(crate) fn handle(&self, what: ToNode) {
        let worker = match &what {
            ToNode::Request { request, what: asked } => match self.on_request(*request, asked) {
                Ok(Some(worker)) => worker,
                Ok(None) => return,
                Err(error) => return self.outbox.put(ToApplication::Error { request: *request, error }),
            },
            ToNode::Message(id, _)
            | ToNode::Datagram(id, _)
            | ToNode::Data(id, _)
            | ToNode::Finish(id)
            | ToNode::Credit(id, _)
            | ToNode::Open { connection: id, .. } => id.worker(),
        };
        if usize::from(worker) < self.board.workers.len() {
            self.outbox.on_said();
            self.board.tell(worker.into(), ToWorker::Do { client: self.id, what });
        } else if let ToNode::Message(_, body) | ToNode::Data(_, body) = what {
            // L1.5: for nothing, but its cost is given back.
            self.outbox.put(ToApplication::Credit(SESSION, cost(&body)));
        }
    }

    /// The worker that answers it; `None`: it is answered, or will be.
    fn on_request(&self, request: u32, what: &Request) -> Result<Option<u8>, Error> {
        let done = |value| self.outbox.put(ToApplication::Result { request, value });
        match what {
            Request::Hello { version, .. } if *version == VERSION => done(self.welcome()),
            Request::Hello { version, .. } => {
                let words = format!("version: given {version}, this node speaks {VERSION}");
                return Err(Error::new(Code::Version, words));
            }
            Request::Connect { .. } | Request::Listen { .. } if self.board.is_draining() => {
                return Err(Error::stops());
            }
            Request::Connect { peer, port, .. } => {
                self.access.check_port(*port)?;
                return Ok(Some(self.board.next_worker(peer)?));
            }
            Request::Listen { port } => self.listen(request, *port)?,
            Request::Unlisten { port } => {
                let mut ports = self.board.ports();
                if ports.get(port).is_none_or(|listening| listening.client != self.id) {
                    return Err(Error::new(Code::NoSuch, format!("this application does not listen on port {port}")));
                }
                ports.remove(port);
                self.board.audit(Audit::ListeningEnded { application: self.id.0, port: *port });
                done(json!({}));
            }
            Request::Peers => self.gather(request, Inspection::Peers),
            Request::Connections => self.gather(request, Inspection::Connections),
            Request::Stats { connection: None } => self.gather(request, Inspection::Stats),
            Request::Subscribe => {
                for worker in 0..self.board.workers.len() {
                    let what = ToNode::Request { request, what: Request::Subscribe };
                    self.outbox.on_said();
                    self.board.tell(worker, ToWorker::Do { client: self.id, what });
                }
                done(json!({}));
            }
            Request::Introduce { .. } if !self.access.is_owner() => {
                let words = "introduce: shows who this node is, and is for the node's own user";
                return Err(Error::new(Code::NotAllowed, words));
            }
            Request::Introduce { .. } => return Ok(Some(INTRODUCTIONS_WORKER)),
            Request::ContextCreate(NewContext { name, read, write, .. }) => {
                self.access.check_context(ContextRight::Create, name)?;
                read.iter()
                    .chain(write)
                    .filter(|peer| *peer != "*")
                    .try_for_each(|peer| self.board.peer(peer).map(|_| ()))?;
                return Ok(Some(CONTEXTS_WORKER));
            }
            Request::ContextDelete { name } => {
                self.access.check_context(ContextRight::Create, name)?;
                return Ok(Some(CONTEXTS_WORKER));
            }
            Request::ContextChange { peer, name, .. } => {
                self.access.check_context(ContextRight::Change, name)?;
                return self.board.holder(peer.as_deref()).map(Some);
            }
            Request::ContextFollow { peer, name, .. } => {
                self.access.check_context(ContextRight::Follow, name)?;
                return self.board.holder(peer.as_deref()).map(Some);
            }
            Request::Accept { connection: id }
            | Request::Refuse { connection: id, .. }
            | Request::Close { connection: id, .. }
            | Request::Stats { connection: Some(id) }
            | Request::Reset { stream: id, .. }
            | Request::Stop { stream: id, .. }
            | Request::ContextUnfollow { following: id } => {
                if usize::from(id.worker()) >= self.board.workers.len() {
                    return Err(Error::no_such("connection, stream or following", *id));
                }
                return Ok(Some(id.worker()));
            }
        }
        Ok(None)
    }

    /// L1.2.
    fn welcome(&self) -> Value {
        json!({
            "version": VERSION,
            "versions": [VERSION],
            "node": self.board.node,
            "limits": {
                "frame_bytes": MAX_FRAME_BYTES,
                "message_bytes": MAX_MESSAGE_BYTES,
                "data_bytes": MAX_DATA_BYTES,
                "flow_credit_bytes": FLOW_CREDIT_BYTES,
                "client_credit_bytes": CLIENT_CREDIT_BYTES,
                "frame_overhead_bytes": FRAME_OVERHEAD_BYTES,
                "requests": MAX_REQUESTS,
                "connections": MAX_CONNECTIONS,
            },
        })
    }

    /// L3.3.
    fn listen(&self, request: u32, port: u16) -> Result<(), Error> {
        if [ECHO_PORT, FILES_PORT, CONTEXTS_PORT].contains(&port) {
            return Err(Error::new(Code::NotAllowed, format!("port {port} is the node's own")));
        }
        if (1..FIRST_USER_PORT).contains(&port) && !self.access.is_owner() {
            let words = format!("port: given {port}, allowed: from {FIRST_USER_PORT}, or as the node's own user");
            return Err(Error::new(Code::NotAllowed, words));
        }
        let mut ports = self.board.ports();
        let port = if port == 0 {
            let mut all = FIRST_EPHEMERAL_PORT..=u16::MAX;
            let free = all.find(|port| !ports.contains_key(port) && self.access.check_port(*port).is_ok());
            free.ok_or_else(|| Error::new(Code::TooMany, "no port is free that this application may use"))?
        } else {
            self.access.check_port(port)?;
            port
        };
        if ports.contains_key(&port) {
            return Err(Error::new(Code::PortInUse, format!("an application listens on port {port} already")));
        }
        ports.insert(port, Listening { client: self.id, waiting: Arc::default() });
        self.board.audit(Audit::Listening { application: self.id.0, port });
        // Before the lock is given back, and so before anything that a worker says of the port.
        self.outbox.put(ToApplication::Result { request, value: json!({"port": port}) });
        Ok(())
    }

    fn gather(&self, request: u32, what: Inspection) {
        self.board.gather(self.id, &self.outbox, request, what);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.board.ports().retain(|port, listening| {
            let is_ours = listening.client == self.id;
            if is_ours {
                self.board.audit(Audit::ListeningEnded { application: self.id.0, port: *port });
            }
            !is_ours
        });
        self.board.applications.fetch_sub(1, Ordering::Relaxed);
        for worker in 0..self.board.workers.len() {
            self.board.tell(worker, ToWorker::Detach { client: self.id });
        }
    }
}
