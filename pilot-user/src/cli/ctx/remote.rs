//! What is done with a peer's contexts: through the node of this host where one runs with the configuration, and else by a node of
//! the command's own, on the caller's thread.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pilot_engine::{Code, Endpoint, Event, Instant, PeerId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::session::{self, Session};
use super::super::{Failure, NodeArgs, Output, attached};
use super::Target;
use super::through_host::fulfil;
use crate::api::documents::document_to_json;
use crate::context::tokens::Conversation;
use crate::context::{Change, Document, Follow, FollowId, Kind, Notice, Replica, Stamp};
use crate::service::contexts::ContextClient;
use crate::worker::Application;

/// Asks for a change and prints what it led to.
pub(super) fn change(target: &Target, base: Option<Stamp>, change: Change, output: &Output) -> Result<(), Failure> {
    let wish = Wish::Change { name: target.name.clone(), base, change };
    let mut stamp = None;
    run(target, wish, |_, news| {
        if let News::Done(made) = news {
            stamp = Some(made);
        }
        Ok(stamp.is_some())
    })?;
    let Some(stamp) = stamp else { return Err(Failure::Interrupted) };
    let event = json!({"event": "context_changed", "name": target.name, "version": stamp.version, "stamp": stamp});
    output.event(&event, || Some(format!("`{}` is at version {} now ({})", target.name, stamp.version, stamp)));
    Ok(())
}

/// Prints a document.
pub(super) fn show(target: &Target, follow: Follow, output: &Output) -> Result<(), Failure> {
    let mut shown = false;
    run(target, Wish::Follow { follow, replica: None }, |replica, news| {
        if let News::Whole = news {
            replica.into_iter().for_each(|replica| print_whole(&target.name, replica, output));
            shown = true;
        }
        Ok(shown)
    })?;
    if shown { Ok(()) } else { Err(Failure::Interrupted) }
}

/// Prints a document and its changes.
pub(super) fn follow(
    target: &Target,
    follow: Follow,
    keep: Option<PathBuf>,
    count: Option<u64>,
    mut conversation: Option<Conversation>,
    output: &Output,
) -> Result<(), Failure> {
    let kept = keep.as_deref().map(|file| Keeper::read(file, &target.name, &follow)).transpose()?.flatten();
    let mut left = count.unwrap_or(u64::MAX);
    // The version that was printed last. When several messages came in one pass, the copy is ahead of what is told of it: a
    // document that is printed whole may have the changes that are told next.
    let mut printed = 0;
    run(target, Wish::Follow { follow: follow.clone(), replica: kept }, |replica, news| {
        let Some(replica) = replica else { return Ok(false) };
        match news {
            News::Whole => {
                print_whole(&target.name, replica, output);
                printed = replica.stamp.version;
                if let Some(conversation) = &mut conversation {
                    conversation.render(replica);
                }
            }
            News::Changed(version, change) if version > printed => {
                printed = version;
                if let Some(conversation) = &mut conversation {
                    conversation.delta(version, &change, replica);
                }
                let (stamp, change) = (Stamp { version, ..replica.stamp }, change.to_json());
                let event = json!({"event": "change", "name": target.name, "version": version, "stamp": stamp, "change": change});
                output.event(&event, || Some(format!("{version}: {change}")));
                left -= 1;
            }
            News::Checked => {
                let event = json!({
                    "event": "up_to_date", "name": target.name, "version": replica.stamp.version, "stamp": replica.stamp,
                });
                output.event(&event, || None);
            }
            News::Diverged => {
                let event = json!({"event": "diverged", "name": target.name});
                output
                    .event(&event, || Some(format!("`{}` differs from its owner's: asking for it whole", target.name)));
            }
            News::Changed(..) | News::Done(_) => return Ok(false),
        }
        if let Some(Conversation { given_tokens, given_bytes, resent_tokens }) = conversation {
            let event = json!({
                "event": "tokens", "given_tokens": given_tokens, "given_bytes": given_bytes, "resent_tokens": resent_tokens,
            });
            output.event(&event, || {
                Some(format!("{given_tokens} tokens given; {resent_tokens} with the whole each time"))
            });
        }
        if let Some(file) = &keep {
            Keeper::write(file, &target.name, &follow, replica)?;
        }
        Ok(left == 0)
    })
}

fn print_whole(name: &str, replica: &Replica, output: &Output) {
    let (kind, version) = (replica.document.kind(), replica.stamp.version);
    let event = json!({
        "event": "context", "name": name, "kind": kind, "version": version, "stamp": replica.stamp,
        "document": document_to_json(&replica.document),
    });
    output.event(&event, || {
        Some(match document_to_json(&replica.document) {
            Value::String(text) => text,
            json => format!("{json:#}"),
        })
    });
}

/// A copy in a file: for the same context and the same part of it.
#[derive(Serialize, Deserialize)]
struct Keeper {
    name: String,
    filter: Option<String>,
    kind: Kind,
    incarnation: u64,
    version: u64,
    /// As it is sent whole, in base64.
    document: String,
}

impl Keeper {
    /// The copy; `None`: there is no file.
    fn read(file: &Path, name: &str, follow: &Follow) -> Result<Option<Replica>, Failure> {
        if !file.exists() {
            return Ok(None);
        }
        let unusable = |why: String| Failure::Usage(anyhow!("--keep {}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| unusable(error.to_string()))?;
        let kept: Self = serde_json::from_str(&text).map_err(|error| unusable(error.to_string()))?;
        if kept.name != name || kept.filter != follow.filter {
            return Err(unusable(format!("it is a copy of `{}`{}", kept.name, kept.filter.unwrap_or_default())));
        }
        let bytes = STANDARD.decode(&kept.document).map_err(|error| unusable(error.to_string()))?;
        let document = Document::decode(kept.kind, &bytes).map_err(|error| unusable(error.to_string()))?;
        Ok(Some(Replica { stamp: Stamp { incarnation: kept.incarnation, version: kept.version }, document }))
    }

    /// Written beside and renamed: there is always a whole one.
    fn write(file: &Path, name: &str, follow: &Follow, replica: &Replica) -> anyhow::Result<()> {
        let mut bytes = Vec::with_capacity(replica.document.bound());
        replica.document.encode(&mut bytes);
        let kept = Self {
            name: name.to_owned(),
            filter: follow.filter.clone(),
            kind: replica.document.kind(),
            incarnation: replica.stamp.incarnation,
            version: replica.stamp.version,
            document: STANDARD.encode(&bytes),
        };
        let part = file.with_extension("part");
        let written = std::fs::write(&part, serde_json::to_vec(&kept)?).and_then(|()| std::fs::rename(&part, file));
        written.with_context(|| format!("cannot write {}", file.display()))
    }
}

pub(super) enum Wish {
    Follow { follow: Follow, replica: Option<Replica> },
    Change { name: String, base: Option<Stamp>, change: Change },
}

/// What became of it. That it is refused, or over, is an error.
pub(super) enum News {
    Whole,
    /// To this version.
    Changed(u64, Change),
    Checked,
    Diverged,
    Done(Stamp),
}

impl News {
    fn of(notice: Notice) -> anyhow::Result<Option<Self>> {
        Ok(Some(match notice {
            Notice::Whole { .. } => Self::Whole,
            Notice::Changed { version, change, .. } => Self::Changed(version, change),
            Notice::Checked { .. } => Self::Checked,
            Notice::Diverged { .. } => Self::Diverged,
            Notice::Done { stamp, .. } => Self::Done(stamp),
            Notice::Ended { refusal, .. } | Notice::Refused { refusal, .. } => return Err(refusal.into()),
            // The connection is over, which is said.
            Notice::Unanswered { .. } => return Ok(None),
        }))
    }
}

struct Remote {
    /// There once the peer is known.
    contexts: Option<ContextClient>,
    wish: Option<Wish>,
    follow: Option<FollowId>,
    /// Whether it has been connected: from then on, who follows tries again for ever.
    has_been_up: bool,
    notices: VecDeque<Notice>,
    failure: Option<anyhow::Error>,
}

impl Remote {
    fn new(wish: Wish) -> Self {
        let (notices, wish) = (VecDeque::new(), Some(wish));
        Self { contexts: None, wish, follow: None, has_been_up: false, notices, failure: None }
    }

    fn replica(&self) -> Option<&Replica> {
        self.contexts.as_ref()?.client.replica(self.follow?)
    }
}

impl Application for Remote {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event) {
        let Some(contexts) = &mut self.contexts else { return };
        if let Some(reason) = contexts.on_event(endpoint, now, &event)
            && !(self.has_been_up && self.follow.is_some())
        {
            self.failure.get_or_insert(reason.into());
        }
        if let Event::Connected { .. } = event {
            self.has_been_up = true;
            match self.wish.take() {
                Some(Wish::Follow { follow, replica }) => self.follow = Some(contexts.client.follow(follow, replica)),
                Some(Wish::Change { name, base, change }) => {
                    if let Err(error) = contexts.client.change(&name, base, &change) {
                        self.failure.get_or_insert(error.into());
                    }
                }
                None => {}
            }
            contexts.flush(endpoint, now);
        }
        self.notices.extend(std::iter::from_fn(|| contexts.client.poll_notice()));
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        self.contexts.as_mut().is_some_and(|contexts| contexts.poll(endpoint, now))
    }

    fn deadline(&self) -> Option<Instant> {
        self.contexts.as_ref()?.deadline()
    }
}

/// Does it until `on_news`, which is given the copy as it is then, says that it is done.
fn run(
    Target { peer, node, .. }: &Target,
    wish: Wish,
    mut on_news: impl FnMut(Option<&Replica>, News) -> anyhow::Result<bool>,
) -> Result<(), Failure> {
    // There until either has it.
    let mut wish = Some(wish);
    let through = attached::run(node, async |host, stop| {
        let Some(wish) = wish.take() else { return Ok(()) };
        tokio::select! {
            done = fulfil(&host, peer, wish, &mut on_news) => done,
            () = attached::until(stop) => Ok(()),
        }
    })?;
    match (through, wish) {
        (None, Some(wish)) => run_node(node, peer, wish, on_news),
        _ => Ok(()),
    }
}

/// Runs a node on this thread.
fn run_node(
    args: &NodeArgs,
    name: &str,
    wish: Wish,
    mut on_news: impl FnMut(Option<&Replica>, News) -> anyhow::Result<bool>,
) -> Result<(), Failure> {
    let begin = |remote: &mut Remote, endpoint: &mut Endpoint, now: Instant, peer: PeerId| {
        let contexts = remote.contexts.insert(ContextClient::new(peer));
        // That nobody knows where it is would be so for ever.
        Ok(contexts.connect(endpoint, now)?)
    };
    let Session { stop, mut worker, beside, peer, .. } = session::with_peer(args, name, |_| Remote::new(wish), begin)?;
    let mut result = Ok(false);
    let ended = worker.run_until(|worker| {
        let remote = &mut worker.application;
        while let (Ok(false), Some(notice)) = (&result, remote.notices.pop_front()) {
            result = News::of(notice).and_then(|news| news.map_or(Ok(false), |news| on_news(remote.replica(), news)));
        }
        if let (Ok(false), Some(failure)) = (&result, remote.failure.take()) {
            result = Err(failure);
        }
        stop.is_set() || !matches!(result, Ok(false))
    });
    ended.context("link").map_err(Failure::Failed)?;
    session::say_goodbye(&mut worker, [peer], Code::NoError)?;
    session::stop(beside)?;
    result.map(|_| ()).map_err(|error| Failure::Failed(anyhow!("{name}: {error}")))
}
