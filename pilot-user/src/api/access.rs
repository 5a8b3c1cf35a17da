//! What an application may do, by its user.

use super::protocol::{Code, Error};
use crate::config::{User, UserContexts};

/// Rights of one user (local-protocol.md L2.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Everything: the node's own user, and applications in its process.
    Owner,
    /// What the configuration says.
    User(User),
}

/// What can be done with a context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ContextRight {
    Create,
    Change,
    Follow,
}

impl Access {
    pub(crate) fn is_owner(&self) -> bool {
        *self == Self::Owner
    }

    /// # Errors
    /// When it may not use the port.
    pub(crate) fn check_port(&self, port: u16) -> Result<(), Error> {
        match self {
            Self::User(User { ports, .. }) if !ports.contains(&port) => {
                Err(refused("port", &port.to_string(), ports.iter().map(u16::to_string)))
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// When it may not do this with a context of the name, whoever holds it.
    pub(crate) fn check_context(&self, right: ContextRight, name: &str) -> Result<(), Error> {
        let Self::User(User { contexts: UserContexts { create, change, follow }, .. }) = self else { return Ok(()) };
        let (allowed, what) = match right {
            ContextRight::Create => (create, "context to create"),
            ContextRight::Change => (change, "context to change"),
            ContextRight::Follow => (follow, "context to follow"),
        };
        let is_it = |pattern: &String| match pattern.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => pattern == name,
        };
        if allowed.iter().any(is_it) { Ok(()) } else { Err(refused(what, name, allowed.iter().cloned())) }
    }
}

fn refused(what: &str, given: &str, allowed: impl Iterator<Item = String>) -> Error {
    let allowed = allowed.collect::<Vec<_>>().join(", ");
    let allowed = if allowed.is_empty() { "none" } else { &allowed };
    Error::new(Code::NotAllowed, format!("{what}: given {given}, allowed for this user: {allowed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L2.1: each right by itself, and no name but those that are given.
    #[test]
    fn contexts_are_allowed_by_name_and_right() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let contexts = UserContexts { create: names(&["notes/*"]), change: names(&["plan"]), follow: names(&["*"]) };
        let user = Access::User(User { contexts, ..User::default() });
        for (right, name, allowed) in [
            (ContextRight::Create, "notes/1", true),
            (ContextRight::Create, "notes", false),
            (ContextRight::Create, "plan", false),
            (ContextRight::Change, "plan", true),
            (ContextRight::Change, "plan2", false),
            (ContextRight::Change, "notes/1", false),
            (ContextRight::Follow, "anything", true),
        ] {
            let checked = user.check_context(right, name);
            assert_eq!(checked.is_ok(), allowed, "{right:?} {name}: {checked:?}");
        }
        let error = user.check_context(ContextRight::Change, "plan2").unwrap_err();
        assert_eq!(error.words, "context to change: given plan2, allowed for this user: plan");
        let error = Access::User(User::default()).check_context(ContextRight::Follow, "plan").unwrap_err();
        assert_eq!((error.code, error.words.ends_with("user: none")), (Code::NotAllowed, true));
    }
}
