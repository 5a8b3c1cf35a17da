//! A link of an application to an owner of contexts, and what it is for.

use std::collections::BTreeMap;

use pilot_engine::{ConnectionHandle, Instant, PeerId};

use super::super::documents;
use super::super::limits::{FRAME_OVERHEAD_BYTES, MAX_DATA_BYTES};
use super::super::protocol::{self, cost};
use super::Context;
use super::flow::Inbound;
use crate::context::{self, FollowId, LinkId, Notice, Replica, RequestId, Stamp};
use crate::service::contexts::ContextClient;

/// A link to an owner.
pub(super) struct Link {
    /// Whose contexts; `None`: the node's own.
    pub(super) peer: Option<PeerId>,
    pub(super) end: End,
    pub(super) role: Role,
    /// As the worker knows them: the connection that there is, and when another is tried.
    pub(super) connection: Option<ConnectionHandle>,
    pub(super) timer: Option<Instant>,
    /// Whether the owner was reached once. If it was not, nobody waits for it.
    pub(super) has_been_up: bool,
}

/// This end of it.
pub(super) enum End {
    Here { link: LinkId, client: context::Client },
    Peer(Box<ContextClient>),
}

pub(super) enum Role {
    Follower(Follower),
    Writer(Writer),
}

pub(super) struct Follower {
    pub(super) follow: FollowId,
    /// Answered when the document comes.
    pub(super) request: Option<u32>,
    pub(super) inbound: Inbound,
    /// The document or change that the application is being given, and how much of it has left.
    pub(super) body: Vec<u8>,
    pub(super) given: usize,
}

#[derive(Default)]
pub(super) struct Writer {
    /// For the connection to come.
    pub(super) queue: Vec<Change>,
    /// Those that the owner has not answered: the application's request, and the bytes.
    pub(super) asked: BTreeMap<RequestId, (u32, usize)>,
    /// Bytes of all of them.
    pub(super) bytes: usize,
}

/// A change that an application asks for.
pub(super) struct Change {
    pub(super) request: u32,
    pub(super) name: String,
    pub(super) change: context::Change,
    pub(super) base: Option<Stamp>,
    pub(super) bytes: usize,
}

impl Change {
    pub(super) fn new(request: u32, name: String, change: context::Change, base: Option<Stamp>) -> Self {
        let bytes = name.len() + change.encode().len();
        Self { request, name, change, base, bytes }
    }
}

impl Link {
    /// What the application would take of a following.
    pub(super) fn inbound(&mut self) -> Option<&mut Inbound> {
        match &mut self.role {
            Role::Follower(follower) => Some(&mut follower.inbound),
            Role::Writer(_) => None,
        }
    }
}

impl Follower {
    /// What the application is told of what happened, and its request if that is the answer to it.
    pub(super) fn news(&mut self, notice: &Notice, replica: &Replica) -> Option<(Option<u32>, protocol::Event)> {
        let (stamp, kind) = (replica.stamp, replica.document.kind());
        let event = match notice {
            Notice::Whole { .. } => {
                self.body.reserve(replica.document.bound());
                replica.document.encode(&mut self.body);
                protocol::Event::Whole { stamp, kind, bytes: self.body.len() }
            }
            Notice::Changed { change, .. } => {
                self.body = documents::change_to_json(change, kind);
                protocol::Event::Changed { stamp, bytes: self.body.len() }
            }
            Notice::Checked { .. } => protocol::Event::Checked { stamp },
            Notice::Diverged { .. } => protocol::Event::Diverged { stamp },
            // A writer's, or the end of it.
            Notice::Ended { .. } | Notice::Done { .. } | Notice::Refused { .. } | Notice::Unanswered { .. } => {
                return None;
            }
        };
        // L5.1: or an owner that says nothing new without end would fill the memory of who does not read. A message tells of one.
        self.inbound.spend(FRAME_OVERHEAD_BYTES.min(self.inbound.credit()));
        Some((self.request.take(), event))
    }

    /// The next bytes of what the application is being given; `None`: it has no credit for one (L5.1).
    pub(super) fn next_part(&mut self) -> Option<Vec<u8>> {
        let room = self.inbound.credit().checked_sub(FRAME_OVERHEAD_BYTES).filter(|room| *room > 0)? as usize;
        let rest = &self.body[self.given..];
        let part = rest[..rest.len().min(MAX_DATA_BYTES).min(room)].to_vec();
        self.inbound.spend(cost(&part));
        self.given += part.len();
        if self.given == self.body.len() {
            // A large document is not kept once it was given.
            (self.body, self.given) = (Vec::new(), 0);
        }
        Some(part)
    }
}

impl End {
    pub(super) fn client(&mut self) -> &mut context::Client {
        match self {
            Self::Here { client, .. } => client,
            Self::Peer(client) => &mut client.client,
        }
    }

    /// Takes the owner's next message, if there is one.
    pub(super) fn receive(&mut self, ctx: &mut Context<'_>) -> bool {
        match self {
            Self::Peer(client) => client.receive(ctx.endpoint, ctx.now),
            Self::Here { link, client } => {
                let Some(contexts) = &mut ctx.contexts else { return false };
                let mut message = Vec::new();
                let any = contexts.with_owner(ctx.endpoint, ctx.now, |owner| owner.poll_transmit(*link, &mut message));
                // The owner is of this process, and breaks no protocol.
                let _ = any.then(|| client.handle(&message));
                any
            }
        }
    }

    /// Says what there is to say.
    pub(super) fn flush(&mut self, ctx: &mut Context<'_>) {
        match self {
            Self::Peer(client) => client.flush(ctx.endpoint, ctx.now),
            Self::Here { link, client } => {
                let Some(contexts) = &mut ctx.contexts else { return };
                let mut message = Vec::new();
                while client.poll_transmit(&mut message) {
                    // Names and filters were checked: it is no violation.
                    let _ = contexts.with_owner(ctx.endpoint, ctx.now, |owner| owner.handle(*link, &message));
                }
            }
        }
    }

    pub(super) fn close(&mut self, ctx: &mut Context<'_>) {
        match self {
            Self::Peer(client) => client.close(ctx.endpoint, ctx.now),
            Self::Here { link, .. } => {
                ctx.here.remove(link);
                if let Some(contexts) = &mut ctx.contexts {
                    contexts.with_owner(ctx.endpoint, ctx.now, |owner| owner.disconnect(*link));
                }
            }
        }
    }
}
