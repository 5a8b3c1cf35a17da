//! What to do about an error: the next thing to look at, in a sentence.

use pilot_engine::{CloseReason, OperationError};

use crate::api::{self, Code};
use crate::config;
use crate::identity_file;

/// A stable name of what went wrong, where there is one (local-protocol.md L6.1), and what to do about it.
pub(super) fn of(error: &anyhow::Error) -> (Option<Code>, Option<&'static str>) {
    if error.is::<config::Error>() {
        return (None, Some("README.md has an example of every field"));
    }
    if error.is::<identity_file::Error>() {
        return (None, Some("`pilot keygen --out FILE` makes one, for its owner alone to read"));
    }
    let code = error
        .downcast_ref::<api::Error>()
        .map(|error| error.code)
        .or_else(|| error.downcast_ref::<CloseReason>().map(|reason| api::Error::from(reason).code))
        .or_else(|| error.downcast_ref::<OperationError>().map(|error| api::Error::from(error).code));
    (code, code.and_then(about))
}

fn about(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::UnknownPeer => {
            "`pilot peers` lists those of this host's node; another goes into its configuration, which SIGHUP has it read again"
        }
        Code::NotAllowed => "the node's configuration says who may do what: `local.users`, and `ports` of a peer",
        Code::NoEndpoint => "give the peer an `endpoint` in the configuration, or have it call this node first",
        Code::TimedOut => {
            "is the peer's node running, does its firewall let UDP to its port through, and does it have this node's key? \
             Who is no peer of it gets no answer"
        }
        Code::Refused => {
            "at the peer: does an application listen on that port, and do `ports` of its configuration let this node use it?"
        }
        Code::ShuttingDown => "`pilot up --config FILE` runs a node for the applications of a host",
        Code::PortInUse => "`--port` chooses another",
        Code::Busy | Code::TooMany => "there is too much at once: try again, or with less",
        Code::TooLong => "send it in pieces, or as a file by `pilot send`",
        Code::Version | Code::UnknownOp | Code::Protocol => "`pilot --version` here and there: upgrade the older one",
        Code::PeerRestarted => "the peer's node is another process now: try again",
        _ => return None,
    })
}
