//! What to do about an error: the next thing to look at, in a sentence.

use std::io::ErrorKind;

use pilot_engine::{CloseReason, OperationError};

use crate::api::{self, Code};
use crate::config;
use crate::identity_file;
use crate::node::StartError;

/// Where the arguments are wrong, and nothing more is known.
pub(super) const OF_USAGE: &str = "`--help` behind a command says what it takes";

/// A stable name of what went wrong, where there is one (local-protocol.md L6.1), and what to do about it.
pub(super) fn of(error: &anyhow::Error) -> (Option<Code>, Option<&'static str>) {
    if error.is::<config::Error>() {
        return (None, Some("README.md has an example of every field"));
    }
    if error.is::<identity_file::Error>() {
        return (None, Some("`pilot keygen --out FILE` makes one, for its owner alone to read"));
    }
    if let Some(StartError::Listen { source, .. }) = error.downcast_ref() {
        return (None, Some(about_listening(source.kind())));
    }
    let code = error
        .downcast_ref::<api::Error>()
        .map(|error| error.code)
        .or_else(|| error.downcast_ref::<CloseReason>().map(|reason| api::Error::from(reason).code))
        .or_else(|| error.downcast_ref::<OperationError>().map(|error| api::Error::from(error).code));
    (code, code.and_then(about))
}

fn about_listening(why: ErrorKind) -> &'static str {
    match why {
        ErrorKind::AddrInUse => {
            "another process has that port. Where it is a node with this configuration, `pilot peers --config FILE` shows what it does"
        }
        ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE: choose another for `listen`",
        _ => "`listen` in the configuration is an address of this host: `ip address` shows those there are",
    }
}

/// What to do about an error of a kind.
pub(super) fn about(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::UnknownPeer => {
            "`pilot peers` lists those of this host's node; another goes into its configuration, which SIGHUP has it read again"
        }
        Code::NotAllowed => "the node's configuration says who may do what: `local.users`, and `ports` of a peer",
        Code::NoEndpoint => "give the peer an `endpoint` in the configuration, or have it call this node first",
        Code::TimedOut => {
            "is the peer's node running, does its firewall let UDP to its port through, and has each the other's key as `pilot keygen` \
             printed it last? Who is no peer of it gets no answer"
        }
        Code::Refused => {
            "at the peer: does an application listen on that port, and do `ports` of its configuration let this node use it?"
        }
        Code::ShuttingDown => "`pilot up --config FILE` runs a node for the applications of a host",
        Code::PortInUse => "`--port` chooses another",
        Code::Busy | Code::TooMany => "there is too much at once: try again, or with less",
        Code::TooLong => "send it in pieces, or as a file by `pilot send`",
        Code::Version | Code::UnknownOp | Code::Protocol => "`pilot --version` here and there: upgrade the older one",
        Code::Context => {
            "the context's owner says who may follow and change it; `pilot ctx show` gives the document as it is"
        }
        Code::PeerRestarted => "the peer's node is another process now: try again",
        _ => return None,
    })
}
