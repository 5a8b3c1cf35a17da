//! An application's shared contexts, as its worker keeps them: a link to the owner for each context that it follows, and one for the
//! changes that it asks of each owner. The owner is at a peer, or is the node itself; what is said is the same (`docs/context.md`).
//!
//! The worker takes no further message of a following before the application has been given the last. So a slow one holds up its own
//! link, where the owner keeps no more of it than its place in the history (C3.5), and nothing else.

use pilot_engine::{Event, PeerId};
use serde_json::{Value, json};

use super::super::documents;
use super::super::limits::{FRAME_OVERHEAD_BYTES, MAX_CHANGE_BYTES, MAX_CONTEXTS, MAX_FOLLOWINGS};
use super::super::protocol::{self, Code, Error, Id, NewContext, ToApplication};
use super::Context;
use super::client::Client;
use super::flow::Inbound;
use super::link::{Change, End, Follower, Link, Role, Writer};
use crate::context::limits::{MAX_FILTER_BYTES, MAX_NAME_BYTES};
use crate::context::{self, Follow, Held, HistoryLimits, Notice, Refusal, RefusalCode, Rights, Stamp, message};
use crate::service::contexts::{Asked, ContextClient};

impl Client {
    /// L3.6: of the node itself.
    pub(super) fn on_context_create(
        &mut self,
        ctx: &mut Context<'_>,
        request: u32,
        new: NewContext,
    ) -> Result<(), Error> {
        check_name(&new.name)?;
        let document = documents::document(new.kind, &new.document)?;
        let contexts = ctx.contexts.as_mut().ok_or_else(none_are_held)?;
        let mut incarnation = [0; 8];
        if getrandom::fill(&mut incarnation).is_err() {
            return Err(Error::new(Code::Internal, "the operating system gave no random bytes"));
        }
        let stamp = Stamp { incarnation: u64::from_be_bytes(incarnation), version: 0 };
        let held = Held {
            document,
            stamp,
            rights: Rights { read: new.read, write: new.write },
            history: HistoryLimits::default(),
            past: Vec::new(),
            durable: new.durable,
        };
        if contexts.count() >= MAX_CONTEXTS {
            return Err(Error::new(Code::TooMany, format!("a node holds {MAX_CONTEXTS} contexts at most")));
        }
        match contexts.create(&new.name, held)? {
            Asked::Done => self.answer(request, Ok(json!({"stamp": stamp}))),
            Asked::Waits => _ = ctx.storing.insert(new.name, (self.id, request, json!({"stamp": stamp}))),
        }
        Ok(())
    }

    pub(super) fn on_context_delete(&mut self, ctx: &mut Context<'_>, request: u32, name: &str) -> Result<(), Error> {
        let contexts = ctx.contexts.as_mut().ok_or_else(none_are_held)?;
        match contexts.delete(ctx.endpoint, ctx.now, name) {
            None => return Err(owner_error(RefusalCode::Unknown, format!("there is no context `{name}`"))),
            Some(Asked::Done) => self.answer(request, Ok(json!({}))),
            Some(Asked::Waits) => _ = ctx.storing.insert(name.to_owned(), (self.id, request, json!({}))),
        }
        Ok(())
    }

    /// L3.9: the disk has what a request was for, or not.
    pub(super) fn on_stored(&self, request: u32, answer: Value, name: &str, result: Result<(), String>) {
        let failed = |why| owner_error(RefusalCode::Storage, format!("`{name}`: the disk has not done it: {why}"));
        self.answer(request, result.map(|()| answer).map_err(failed));
    }

    /// L3.8: of a peer, or of the node itself.
    pub(super) fn on_context_change(
        &mut self,
        ctx: &mut Context<'_>,
        change: Change,
        peer: Option<String>,
    ) -> Result<(), Error> {
        check_name(&change.name)?;
        let peer = peer.map(|peer| ctx.board.peer(&peer).map(|peer| peer.id)).transpose()?;
        let id = match self.writers.get(&peer) {
            Some(id) => *id,
            None => self.open_link(ctx, peer, |_| Role::Writer(Writer::default()))?,
        };
        self.writers.insert(peer, id);
        let Some(Link { role: Role::Writer(writer), .. }) = self.links.get_mut(&id) else { return Ok(()) };
        if writer.bytes + change.bytes > MAX_CHANGE_BYTES {
            let words = format!("changes of {MAX_CHANGE_BYTES} bytes wait for their answers");
            return Err(Error::new(Code::Busy, words));
        }
        writer.bytes += change.bytes;
        writer.queue.push(change);
        self.ask_owner(ctx, id);
        self.pump_link(ctx, id);
        Ok(())
    }

    /// L3.7.
    pub(super) fn on_context_follow(
        &mut self,
        ctx: &mut Context<'_>,
        request: u32,
        peer: Option<String>,
        follow: Follow,
    ) -> Result<(), Error> {
        check_name(&follow.name)?;
        if let Some(filter) = follow.filter.as_ref().filter(|filter| message::filter(filter.as_bytes()).is_none()) {
            let words =
                format!("filter: given {filter:?}, allowed: a JSON pointer of at most {MAX_FILTER_BYTES} bytes");
            return Err(Error::malformed(words));
        }
        let peer = peer.map(|peer| ctx.board.peer(&peer).map(|peer| peer.id)).transpose()?;
        if self.links.len() - self.writers.len() >= MAX_FOLLOWINGS {
            let words = format!("an application follows {MAX_FOLLOWINGS} contexts of a worker at most");
            return Err(Error::new(Code::TooMany, words));
        }
        let id = self.open_link(ctx, peer, |client| {
            let follow = client.follow(follow, None);
            Role::Follower(Follower {
                follow,
                request: Some(request),
                inbound: Inbound::default(),
                body: Vec::new(),
                given: 0,
            })
        })?;
        self.flush_link(ctx, id);
        self.pump_link(ctx, id);
        Ok(())
    }

    pub(super) fn on_context_unfollow(&mut self, ctx: &mut Context<'_>, request: u32, id: Id) -> Result<(), Error> {
        match self.links.get(&id) {
            Some(Link { role: Role::Follower(Follower { request: None, .. }), .. }) => self.drop_link(ctx, id),
            _ => return Err(Error::no_such("following", id)),
        };
        self.answer(request, Ok(json!({})));
        Ok(())
    }

    fn open_link(
        &mut self,
        ctx: &mut Context<'_>,
        peer: Option<PeerId>,
        role: impl FnOnce(&mut context::Client) -> Role,
    ) -> Result<Id, Error> {
        let id = self.fresh_id();
        let mut end = match peer {
            Some(peer) => {
                let mut client = ContextClient::one_at_a_time(peer);
                client.connect(ctx.endpoint, ctx.now).map_err(|error| Error::from(&error))?;
                End::Peer(Box::new(client))
            }
            None => {
                let contexts = ctx.contexts.as_mut().ok_or_else(none_are_held)?;
                let link = contexts.with_owner(ctx.endpoint, ctx.now, |owner| owner.connect(None));
                ctx.here.insert(link, (self.id, id));
                let mut client = context::Client::default();
                client.connect();
                End::Here { link, client }
            }
        };
        let role = role(end.client());
        let link = Link { peer, end, role, connection: None, timer: None, has_been_up: peer.is_none() };
        self.links.insert(id, link);
        self.note_link(ctx, id);
        Ok(id)
    }

    /// Something happened on a link's connection.
    pub(super) fn on_link_event(&mut self, ctx: &mut Context<'_>, id: Id, event: &Event) {
        let Some(Link { end: End::Peer(client), has_been_up, .. }) = self.links.get_mut(&id) else { return };
        if let Some(reason) = client.on_event(ctx.endpoint, ctx.now, event) {
            return self.on_link_over(ctx, id, &Error::from(&reason));
        }
        *has_been_up |= matches!(event, Event::Connected { .. });
        self.ask_owner(ctx, id);
        self.pump_link(ctx, id);
    }

    /// It is time to try to reach the owner again.
    pub(super) fn on_link_timer(&mut self, ctx: &mut Context<'_>, id: Id) {
        if let Some(Link { end: End::Peer(client), .. }) = self.links.get_mut(&id) {
            // Not yet: then another time is set.
            let _ = client.connect(ctx.endpoint, ctx.now);
        }
        self.note_link(ctx, id);
    }

    /// L5.6: gives the application what there is, as far as it takes it.
    pub(super) fn pump_link(&mut self, ctx: &mut Context<'_>, id: Id) {
        loop {
            let Some(link) = self.links.get_mut(&id) else { return };
            if let Role::Follower(follower) = &mut link.role {
                if !self.outbox.has_room() {
                    return self.wait_for_room(ctx, id);
                }
                if follower.given < follower.body.len() {
                    let Some(part) = follower.next_part() else { return };
                    self.outbox.put(ToApplication::Part(id, part));
                    continue;
                }
                if follower.inbound.credit() < FRAME_OVERHEAD_BYTES {
                    return;
                }
            }
            if !link.end.receive(ctx) {
                break;
            }
            while let Some(notice) = self.links.get_mut(&id).and_then(|link| link.end.client().poll_notice()) {
                self.on_notice(ctx, id, notice);
            }
        }
        self.flush_link(ctx, id);
        if let Some(Link { end: End::Peer(client), .. }) = self.links.get(&id)
            && client.connection().is_none()
        {
            let words = "the peer broke the protocol of contexts, and its connection was closed";
            self.on_link_over(ctx, id, &Error::new(Code::Protocol, words));
        }
    }

    fn on_notice(&mut self, ctx: &mut Context<'_>, id: Id, notice: Notice) {
        let Some(Link { role, end, .. }) = self.links.get_mut(&id) else { return };
        match role {
            Role::Follower(follower) => {
                let Notice::Ended { refusal, .. } = notice else {
                    let replica = end.client().replica(follower.follow);
                    let Some((answered, event)) = replica.and_then(|replica| follower.news(&notice, replica)) else {
                        return;
                    };
                    let part = if follower.body.is_empty() { None } else { follower.next_part() };
                    if let Some(request) = answered {
                        self.answer(request, Ok(json!({"following": id})));
                    }
                    let event = ToApplication::Event(id, event);
                    return match part {
                        // As a rule it is all of it.
                        Some(part) => self.outbox.put_both([event, ToApplication::Part(id, part)]),
                        None => self.outbox.put(event),
                    };
                };
                let request = follower.request.take();
                self.drop_link(ctx, id);
                match request {
                    Some(request) => self.answer(request, Err(refusal.into())),
                    None => self.tell(id, protocol::Event::Ended(refusal.into())),
                }
            }
            Role::Writer(writer) => {
                let (request, result) = match notice {
                    Notice::Done { request, stamp } => (request, Ok(json!({"stamp": stamp}))),
                    Notice::Refused { request, refusal } => (request, Err(refusal.into())),
                    // Answered as the link ends; the others are of what is followed.
                    _ => return,
                };
                if let Some((request, bytes)) = writer.asked.remove(&request) {
                    writer.bytes -= bytes;
                    ctx.answers.push((self.id, request, result));
                }
            }
        }
    }

    /// A link's connection is over. Who follows waits for the next one, if the owner was ever there; who asked is told.
    fn on_link_over(&mut self, ctx: &mut Context<'_>, id: Id, error: &Error) {
        if let Some(Link { role: Role::Follower(_), has_been_up: true, .. }) = self.links.get(&id) {
            return self.note_link(ctx, id);
        }
        match self.drop_link(ctx, id).map(|link| link.role) {
            Some(Role::Follower(follower)) => {
                follower.request.into_iter().for_each(|request| self.answer(request, Err(error.clone())));
            }
            Some(Role::Writer(writer)) => {
                let words = format!(
                    "{error}; whether the change was made is not known: with `if_stamp` it can be asked for again"
                );
                let unknown = Error { words, ..error.clone() };
                writer.asked.into_values().for_each(|(request, _)| self.answer(request, Err(unknown.clone())));
                writer.queue.into_iter().for_each(|change| self.answer(change.request, Err(error.clone())));
            }
            None => {}
        }
    }

    /// Asks an owner for what waits until it is there.
    fn ask_owner(&mut self, ctx: &mut Context<'_>, id: Id) {
        let Some(Link { role: Role::Writer(writer), end, has_been_up: true, .. }) = self.links.get_mut(&id) else {
            return;
        };
        let mut refused = Vec::new();
        for Change { request, name, change, base, bytes } in std::mem::take(&mut writer.queue) {
            match end.client().change(&name, base, &change) {
                Ok(asked) => _ = writer.asked.insert(asked, (request, bytes)),
                Err(not_now) => {
                    writer.bytes -= bytes;
                    refused.push((request, Error::new(Code::Busy, not_now.to_string())));
                }
            }
        }
        refused.into_iter().for_each(|(request, error)| self.answer(request, Err(error)));
        self.flush_link(ctx, id);
    }

    /// Says what a link has to say, and sees to it that its events come here.
    fn flush_link(&mut self, ctx: &mut Context<'_>, id: Id) {
        if let Some(link) = self.links.get_mut(&id) {
            link.end.flush(ctx);
        }
        self.note_link(ctx, id);
    }

    fn note_link(&mut self, ctx: &mut Context<'_>, id: Id) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let End::Peer(client) = &link.end else { return };
        let (connection, timer) = (client.connection(), client.deadline());
        if let Some(before) = std::mem::replace(&mut link.connection, connection).filter(|it| Some(*it) != connection) {
            ctx.owners.remove(&before);
        }
        ctx.owners.extend(connection.map(|connection| (connection, (self.id, id))));
        if let Some(before) = std::mem::replace(&mut link.timer, timer) {
            ctx.timers.remove(&(before, self.id, id));
        }
        ctx.timers.extend(timer.map(|at| (at, self.id, id)));
    }

    fn drop_link(&mut self, ctx: &mut Context<'_>, id: Id) -> Option<Link> {
        let mut link = self.links.remove(&id)?;
        link.end.close(ctx);
        if let Some(connection) = link.connection {
            ctx.owners.remove(&connection);
        }
        if let Some(at) = link.timer {
            ctx.timers.remove(&(at, self.id, id));
        }
        if let Role::Writer(_) = link.role {
            self.writers.remove(&link.peer);
        }
        Some(link)
    }

    /// The application is gone.
    pub(super) fn end_links(&mut self, ctx: &mut Context<'_>) {
        let all: Vec<Id> = self.links.keys().copied().collect();
        all.into_iter().for_each(|id| _ = self.drop_link(ctx, id));
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    message::name(name.as_bytes()).map(|_| ()).ok_or_else(|| {
        let words = format!("name: given {name:?}, allowed: 1 to {MAX_NAME_BYTES} bytes without control characters");
        Error::malformed(words)
    })
}

fn none_are_held() -> Error {
    let words = "this node holds no contexts, because its workers share nothing: `local.contexts = true` in its configuration \
                 gives one of them all tunnels";
    owner_error(RefusalCode::Unsupported, words)
}

fn owner_error(code: RefusalCode, words: impl Into<String>) -> Error {
    Refusal { code, version: 0, words: words.into() }.into()
}
