//! What an application may do, by its user.

use std::collections::BTreeSet;

use super::protocol::{Code, Error};

/// Rights of one user (local-protocol.md L2.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Everything: the node's own user, and applications in its process.
    Owner,
    /// To connect to and listen on these ports.
    Ports(BTreeSet<u16>),
}

impl Access {
    pub(crate) fn is_owner(&self) -> bool {
        *self == Self::Owner
    }

    /// # Errors
    /// When it may not use the port.
    pub(crate) fn check_port(&self, port: u16) -> Result<(), Error> {
        match self {
            Self::Ports(ports) if !ports.contains(&port) => {
                let allowed = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
                Err(Error::new(Code::NotAllowed, format!("port: given {port}, allowed for this user: {allowed}")))
            }
            _ => Ok(()),
        }
    }
}
