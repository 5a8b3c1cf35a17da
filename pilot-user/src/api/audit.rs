//! What an operator wants on record: who may do what, who came, and who listens. One line each, in the order in which it happened.

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;

use crate::config::{self, User, UserContexts};

/// A change. Its JSON is stable: members are added, and none is renamed or taken away.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Audit {
    /// The configuration was read again, with so many changes.
    Reloaded {
        /// The lines before this one that say them.
        changes: usize,
    },
    /// It was read again, and nothing of it taken.
    ReloadRefused {
        /// In words.
        why: String,
    },
    /// A peer that may talk to the node from now on.
    PeerAdded {
        /// It.
        peer: Peer,
    },
    /// A peer with another name, address, endpoint or rights.
    PeerChanged {
        /// As it was.
        before: Peer,
        /// As it is.
        peer: Peer,
    },
    /// A peer that may not talk to the node any more.
    PeerRemoved {
        /// It.
        peer: Peer,
    },
    /// A user of the host who may use the node from now on.
    UserAdded {
        /// Who.
        uid: u32,
        /// What it may.
        #[serde(flatten)]
        may: User,
    },
    /// A user with other rights.
    UserChanged {
        /// Who.
        uid: u32,
        /// What it may.
        #[serde(flatten)]
        may: User,
    },
    /// A user who may not use the node any more.
    UserRemoved {
        /// Who.
        uid: u32,
    },
    /// An application has a session.
    ApplicationCame {
        /// The node's number for it.
        application: u64,
        /// Whose process it is.
        uid: u32,
        /// Which process, if the kernel said so.
        pid: Option<i32>,
        /// What it calls itself.
        name: Option<String>,
    },
    /// A process was not let in.
    ApplicationRefused {
        /// Whose process it is.
        uid: u32,
        /// In words.
        why: String,
    },
    /// An application has none any more.
    ApplicationWent {
        /// The node's number for it.
        application: u64,
    },
    /// An application listens on a port.
    Listening {
        /// The node's number for it.
        application: u64,
        /// The port.
        port: u16,
    },
    /// It does not any more.
    ListeningEnded {
        /// The node's number for it.
        application: u64,
        /// The port.
        port: u16,
    },
    /// The node was told to stop: applications may end what they have.
    Draining {
        /// For how long.
        drain_ms: u64,
        /// How many have a session.
        applications: usize,
    },
}

/// A peer, as the configuration has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Peer {
    /// What the operator calls it.
    pub name: String,
    /// Its overlay address.
    pub address: String,
    /// Its public keys.
    pub key: String,
    /// Where to reach it.
    pub endpoint: Option<SocketAddr>,
    /// Ports of this node that it may connect to; `None`: all.
    pub ports: Option<Vec<u16>>,
}

impl From<&config::Peer> for Peer {
    fn from(peer: &config::Peer) -> Self {
        Self {
            name: peer.name.clone(),
            address: peer.address.to_string(),
            key: peer.key.to_string(),
            endpoint: peer.endpoint,
            ports: peer.ports.clone(),
        }
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reloaded { changes } => write!(f, "the configuration was read again: {changes} changes"),
            Self::ReloadRefused { why } => write!(f, "the configuration was read again and not taken: {why}"),
            Self::PeerAdded { peer } => write!(f, "peer {peer} added"),
            Self::PeerChanged { before, peer } => write!(f, "peer {before} is now {peer}"),
            Self::PeerRemoved { peer } => write!(f, "peer {peer} removed"),
            Self::UserAdded { uid, may } => write!(f, "user {uid} may use the node: {}", rights(may)),
            Self::UserChanged { uid, may } => write!(f, "user {uid} may now use other things: {}", rights(may)),
            Self::UserRemoved { uid } => write!(f, "user {uid} may not use the node any more"),
            Self::ApplicationCame { application, uid, pid, name } => {
                // Its own choice: it must not look like other lines, nor move the operator's cursor.
                let name = name.as_deref().unwrap_or("without a name").escape_debug();
                let pid = pid.map_or(String::new(), |pid| format!(", process {pid}"));
                write!(f, "application {application} ({name}) of user {uid}{pid} came")
            }
            Self::ApplicationRefused { uid, why } => write!(f, "an application of user {uid} was refused: {why}"),
            Self::ApplicationWent { application } => write!(f, "application {application} went"),
            Self::Listening { application, port } => write!(f, "application {application} listens on port {port}"),
            Self::ListeningEnded { application, port } => {
                write!(f, "application {application} does not listen on port {port} any more")
            }
            Self::Draining { drain_ms, applications } => {
                write!(f, "told to stop: {applications} applications have {drain_ms} ms to end what they have")
            }
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = self.endpoint.map_or(String::new(), |endpoint| format!(" at {endpoint}"));
        let ports = self.ports.as_ref().map_or("all ports".to_owned(), |ports| format!("ports {}", list(ports)));
        write!(f, "{} ({}{endpoint}, {ports})", self.name, self.address)
    }
}

fn list<T: ToString>(things: impl IntoIterator<Item = T>) -> String {
    let things = things.into_iter().map(|it| it.to_string()).collect::<Vec<_>>().join(", ");
    if things.is_empty() { "none".to_owned() } else { things }
}

fn rights(User { ports, contexts: UserContexts { create, change, follow } }: &User) -> String {
    let [create, change, follow] = [create, change, follow].map(list);
    format!("ports {}; contexts to create: {create}, to change: {change}, to follow: {follow}", list(ports))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_applications_name_makes_no_line_of_its_own() {
        let name = Some("agent\n\x1b[2Kaudit: user 7 may use the node".to_owned());
        let line = Audit::ApplicationCame { application: 1, uid: 7, pid: Some(9), name }.to_string();
        assert!(line.starts_with("application 1 (agent\\n") && line.ends_with(" of user 7, process 9 came"), "{line}");
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}
