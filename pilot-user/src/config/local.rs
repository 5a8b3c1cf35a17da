//! Who may use the node on its host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Time to drain unless configured: what agents need to end a task, and below what service managers wait before they kill.
pub(super) const DRAIN: Duration = Duration::from_secs(5);

/// Longest time to drain. Higher: a node that was told to stop does not for longer than anybody waits.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(600);

/// The node for the applications of its host (docs/local-protocol.md).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Local {
    /// The socket's path.
    pub socket: PathBuf,
    /// Whether that is the operator's choice, and not where it is otherwise: beside the identity.
    pub is_chosen: bool,
    /// Other users than the node's own, and what each may do.
    pub users: BTreeMap<u32, User>,
    /// Whether applications may have the node hold contexts. Then one worker has all tunnels, because all followers of a context are
    /// served from one document.
    pub holds_contexts: bool,
    /// Where the durable ones of those are kept.
    pub store: PathBuf,
    /// How long applications may take to end what they have, when the node was told to stop (L2.5).
    pub drain: Duration,
}

/// What another user than the node's own may do.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct User {
    /// Ports to connect to and to listen on.
    pub ports: BTreeSet<u16>,
    /// Shared contexts, of this node and of peers.
    pub contexts: UserContexts,
}

/// Names of contexts, for each thing that can be done with one. `*` at the end of a name stands for all that begin so.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UserContexts {
    /// To create at this node, and to delete there.
    pub create: Vec<String>,
    /// To change.
    pub change: Vec<String>,
    /// To follow.
    pub follow: Vec<String>,
}
