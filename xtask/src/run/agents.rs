//! The end of the run: three agents write a document together through a shared context, each in a network namespace of its own,
//! and what each hop of it cost.
//!
//! ```text
//!   researcher: owns the document ──┬── veth ── writer
//!                                   └── veth ── reviewer
//! ```
//!
//! Each contributes in turn, then the researcher's short updates follow. What one writes, the owner's node hands to the other
//! two; who wrote it has it. Each agent follows the document with one command that runs on, and writes with a command a change: a
//! node of its own each time, whose handshake is among the bytes counted at the writer's interface.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::pilot::Line;
use super::report::thousands;
use super::scene::{self, End};
use super::{NodeConfig, SILENCE_MAX, keygen};
use crate::process::{Child, Event, next_event};

/// The agents, in the order in which they contribute. The first owns the document.
pub(crate) const AGENTS: [&str; 3] = ["researcher", "writer", "reviewer"];
/// Where the document and the contributions are, from the root of the repository.
const CORPUS: &str = "benches/corpus";
/// Short updates that follow: a command each, so that the whole stays short.
const UPDATES: usize = 5;
/// Names of the nodes: the owner's, and those with which each agent reads and writes.
const OWNER: &str = "owner";
const READERS: [&str; 3] = ["researcher-reads", "writer-reads", "reviewer-reads"];
const WRITERS: [&str; 3] = ["researcher-writes", "writer-writes", "reviewer-writes"];
/// The context.
const NAME: &str = "report";
/// The most tokens that may be handed over for each token of content (context.md, tokens). Lower is better; 1 is nothing but
/// the content.
const TOKENS_PER_CONTENT_TOKEN_MAX: f64 = 1.1;

/// What it cost.
#[derive(Debug, Serialize)]
pub(crate) struct Shared {
    hops: Vec<Hop>,
    /// Of all hops together.
    messages: u64,
    payload_bytes: u64,
    wire_bytes: Option<u64>,
    tokens: u64,
    content_tokens: u64,
    tokens_per_content_token: f64,
}

/// What one agent was handed of what another wrote.
#[derive(Debug, Serialize)]
pub(crate) struct Hop {
    from: &'static str,
    to: &'static str,
    what: &'static str,
    /// Documents and changes.
    messages: u64,
    /// Of the text that a model is given.
    payload_bytes: u64,
    /// On the interface of the one that is at the end of a veth pair, both ways, Ethernet's headers included: `None`: there is none.
    wire_bytes: Option<u64>,
    /// Handed over (o200k_base), as `pilot ctx follow --tokens` counts them.
    tokens: u64,
    /// Of the content, as they are counted here.
    content_tokens: u64,
}

/// What an agent has been handed so far.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    version: u64,
    messages: u64,
    bytes: u64,
    tokens: u64,
    /// The version of which it is not yet told what it cost.
    coming: u64,
}

/// A line of the corpus' updates, of which those to the document are taken.
#[derive(Deserialize)]
struct Update {
    append: Option<String>,
}

/// Plays it between these places, of which the first is the owner's.
pub(crate) fn play(pilot: &Path, directory: &Path, ends: &[End; 3]) -> Result<Shared> {
    let corpus = crate::workspace().join(CORPUS);
    let read = |name: &str| fs::read_to_string(corpus.join(name)).with_context(|| format!("reading {CORPUS}/{name}"));
    let mut story = Story::open(pilot, directory, ends, &corpus.join("document.md"))?;
    story.document(&read("document.md")?)?;
    for (at, agent) in AGENTS.into_iter().enumerate() {
        story.write(at, "contribution", &read(&format!("{agent}.md"))?)?;
    }
    for line in read("updates.jsonl")?.lines() {
        let Update { append } = serde_json::from_str(line).with_context(|| format!("the update {line}"))?;
        let updates = story.hops.iter().filter(|hop| hop.what == "update").count() / 2;
        if let Some(text) = append.filter(|_| updates < UPDATES) {
            story.write(0, "update", &text)?;
        }
    }
    story.close()
}

/// The owner's node and the three that follow.
struct Story<'a> {
    pilot: &'a Path,
    directory: &'a Path,
    ends: &'a [End; 3],
    owner: Child,
    readers: Vec<Child>,
    given: BTreeMap<&'static str, Given>,
    /// Bytes on each agent's interface, when they were last looked at.
    wire: [Option<u64>; 3],
    hops: Vec<Hop>,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl<'a> Story<'a> {
    fn open(pilot: &'a Path, directory: &'a Path, ends: &'a [End; 3], document: &Path) -> Result<Self> {
        configure(pilot, directory, ends)?;
        let (sender, events) = mpsc::channel();
        let contexts = directory.join("contexts.toml");
        let mut create = ends[0].command(pilot)?;
        create.args(["ctx", "create", "--json"]).arg(&contexts).args([NAME, "--kind", "text", "--from"]).arg(document);
        create.args(["--read", &READERS.join(","), "--write", &WRITERS.join(",")]);
        let mut create = Child::start("create", create, directory, &sender)?;
        while next_event(&events, SILENCE_MAX)?.line.is_some() {}
        if !create.wait()?.success() {
            return Err(create.post_mortem());
        }
        let mut serve = ends[0].command(pilot)?;
        serve.args(["ctx", "serve", "--json"]).arg(&contexts).arg("--config").arg(directory.join("owner.toml"));
        let mut owner = Child::start(OWNER, serve, directory, &sender)?;
        loop {
            let Some(line) = next_event(&events, SILENCE_MAX)?.line else { return Err(owner.post_mortem()) };
            if let Line::Ready { .. } = Line::parse(&line)? {
                break;
            }
        }
        let wire = wire_bytes(ends)?;
        let mut readers = Vec::new();
        for (name, end) in READERS.into_iter().zip(ends) {
            let mut follow = end.command(pilot)?;
            follow.args(["ctx", "follow", NAME, OWNER, "--tokens", "--json", "--config"]);
            follow.arg(directory.join(format!("{name}.toml")));
            readers.push(Child::start(name, follow, directory, &sender)?);
        }
        let (given, hops) = (BTreeMap::new(), Vec::new());
        Ok(Self { pilot, directory, ends, owner, readers, given, wire, hops, sender, events })
    }

    /// What the document costs that it begins with. The owner has it.
    fn document(&mut self, text: &str) -> Result<()> {
        let before = self.given.clone();
        while self.given.values().filter(|given| given.tokens > 0).count() < READERS.len() {
            self.hear()?;
        }
        self.note(0, "document", text, &before)
    }

    /// An agent writes, and the others are handed it.
    fn write(&mut self, at: usize, what: &'static str, text: &str) -> Result<()> {
        let before = self.given.clone();
        let mut patch = self.ends[at].command(self.pilot)?;
        patch.args(["ctx", "patch", NAME, OWNER, "--append", text, "--json", "--config"]);
        patch.arg(self.directory.join(format!("{}.toml", WRITERS[at])));
        let mut writer = Child::start(WRITERS[at], patch, self.directory, &self.sender)?;
        let (mut made, mut ended) = (None, false);
        loop {
            let has = |version| self.given.values().all(|given| given.version >= version);
            if ended && made.is_some_and(has) {
                break;
            }
            match self.hear()? {
                Some(Line::ContextChanged { version }) => made = Some(version),
                None => ended = true,
                _ => {}
            }
            if ended && made.is_none() {
                return Err(writer.post_mortem());
            }
        }
        if !writer.wait()?.success() {
            return Err(writer.post_mortem());
        }
        self.note(at, what, text, &before)
    }

    /// The next line of anybody; `None`: a writer's last. The others are to go on.
    fn hear(&mut self) -> Result<Option<Line>> {
        let Event { from, line } = next_event(&self.events, SILENCE_MAX)?;
        let Some(line) = line else {
            if from == OWNER {
                return Err(self.owner.post_mortem());
            }
            return match READERS.iter().position(|reader| *reader == from) {
                Some(at) => Err(self.readers[at].post_mortem()),
                None => Ok(None),
            };
        };
        let line = Line::parse(&line)?;
        if READERS.contains(&from) {
            // Documents and changes are told before what they cost.
            let mut given = self.given.get(from).copied().unwrap_or_default();
            match line {
                Line::Context { version } | Line::Change { version } => {
                    (given.coming, given.messages) = (version, given.messages + 1);
                }
                Line::Tokens { given_tokens, given_bytes } => {
                    (given.version, given.tokens, given.bytes) = (given.coming, given_tokens, given_bytes);
                }
                _ => return Ok(Some(line)),
            }
            self.given.insert(from, given);
        }
        Ok(Some(line))
    }

    /// Two hops more: to each agent but the one that wrote.
    fn note(
        &mut self,
        from: usize,
        what: &'static str,
        text: &str,
        before: &BTreeMap<&'static str, Given>,
    ) -> Result<()> {
        let content_tokens = tiktoken_rs::o200k_base_singleton().count_ordinary(text) as u64;
        let wire = wire_bytes(self.ends)?;
        for (to, reader) in READERS.into_iter().enumerate().filter(|(to, _)| *to != from) {
            let (before, now) = (before.get(reader).copied().unwrap_or_default(), self.given[reader]);
            // What goes to the owner, who has no interface of its own, goes over the writer's.
            let at = if to == 0 { from } else { to };
            let wire_bytes = wire[at].zip(self.wire[at]).map(|(now, before)| now - before);
            self.hops.push(Hop {
                from: AGENTS[from],
                to: AGENTS[to],
                what,
                messages: now.messages - before.messages,
                payload_bytes: now.bytes - before.bytes,
                wire_bytes,
                tokens: now.tokens - before.tokens,
                content_tokens,
            });
        }
        self.wire = wire;
        Ok(())
    }

    fn close(mut self) -> Result<Shared> {
        let children = self.readers.iter_mut().chain([&mut self.owner]);
        for child in children {
            child.terminate();
            child.wait()?;
        }
        Ok(Shared::of(self.hops))
    }
}

/// Everybody's keys and configurations. Over UDP: an agent's nodes share an address, and the owner has two interfaces.
fn configure(pilot: &Path, directory: &Path, ends: &[End; 3]) -> Result<()> {
    let names = [&[OWNER][..], &READERS, &WRITERS].concat();
    let at: Vec<&End> = [0, 0, 1, 2, 0, 1, 2].map(|end| &ends[end]).to_vec();
    let addresses = scene::addresses(&at)?;
    let keys = names.iter().map(|name| keygen(pilot, directory, name)).collect::<Result<Vec<_>>>()?;
    for own in 0..names.len() {
        let peers = if own == 0 { 1..names.len() } else { 0..1 };
        let config = NodeConfig {
            name: names[own],
            number: own + 1,
            end: at[own],
            listen: addresses[own],
            is_udp: true,
            peers: peers
                .map(|peer| (names[peer], peer + 1, &keys[peer][..], (peer == 0).then_some(addresses[0])))
                .collect(),
        };
        config.write(directory)?;
    }
    Ok(())
}

fn wire_bytes(ends: &[End; 3]) -> Result<[Option<u64>; 3]> {
    let counts = ends.iter().map(End::wire_bytes).collect::<Result<Vec<_>>>()?;
    Ok([counts[0], counts[1], counts[2]])
}

impl Shared {
    pub(crate) fn of(hops: Vec<Hop>) -> Self {
        let sum = |of: fn(&Hop) -> u64| hops.iter().map(of).sum::<u64>();
        let (messages, payload_bytes) = (sum(|hop| hop.messages), sum(|hop| hop.payload_bytes));
        let (tokens, content_tokens) = (sum(|hop| hop.tokens), sum(|hop| hop.content_tokens));
        let wire_bytes = hops.iter().map(|hop| hop.wire_bytes).sum();
        let tokens_per_content_token = tokens as f64 / content_tokens.max(1) as f64;
        Self { messages, payload_bytes, wire_bytes, tokens, content_tokens, tokens_per_content_token, hops }
    }

    /// What did not go as it must, a sentence each.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if self.tokens_per_content_token > TOKENS_PER_CONTENT_TOKEN_MAX {
            failures.push(format!(
                "{:.3} tokens were handed over for each token of content, allowed are {TOKENS_PER_CONTENT_TOKEN_MAX}",
                self.tokens_per_content_token
            ));
        }
        let lost = self.hops.iter().filter(|hop| hop.messages != 1);
        failures.extend(
            lost.map(|hop| format!("{} got {} messages for one {} of {}", hop.to, hop.messages, hop.what, hop.from)),
        );
        failures
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wire = |bytes: Option<u64>| bytes.map_or("-".to_owned(), thousands);
        writeln!(f, "context     three agents write a document; what one hands to another:")?;
        let head = ["messages", "payload B", "wire B", "tokens", "content", "factor"];
        let [messages, payload, wire_head, tokens, content, factor] = head;
        writeln!(f, "            {:38}{messages:>9}{payload:>11}{wire_head:>9}{tokens:>8}{content:>9}{factor:>8}", "")?;
        let row = |f: &mut fmt::Formatter<'_>, what: &str, counts: [u64; 4], wire_bytes: Option<u64>| {
            let [messages, payload, tokens, content] = counts;
            let factor = tokens as f64 / content.max(1) as f64;
            let (payload, wire) = (thousands(payload), wire(wire_bytes));
            let (tokens, content) = (thousands(tokens), thousands(content));
            write!(f, "            {what:38}{messages:>9}{payload:>11}{wire:>9}{tokens:>8}{content:>9}{factor:>8.2}")
        };
        for hop in &self.hops {
            let what = format!("{} → {}, {}", hop.from, hop.to, hop.what);
            let counts = [hop.messages, hop.payload_bytes, hop.tokens, hop.content_tokens];
            row(f, &what, counts, hop.wire_bytes)?;
            writeln!(f)?;
        }
        let counts = [self.messages, self.payload_bytes, self.tokens, self.content_tokens];
        row(f, "in all", counts, self.wire_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(messages: u64, tokens: u64) -> Hop {
        let (from, to, what, content_tokens) = ("a", "b", "update", 100);
        Hop { from, to, what, messages, payload_bytes: 500, wire_bytes: Some(600), tokens, content_tokens }
    }

    #[test]
    fn sums_are_those_of_the_hops_and_the_table_shows_them() {
        let shared = Shared::of(vec![hop(1, 110), hop(1, 104)]);
        assert_eq!((shared.messages, shared.tokens, shared.wire_bytes), (2, 214, Some(1200)));
        assert_eq!(shared.failures(), Vec::<String>::new());
        let table = shared.to_string();
        assert!(table.contains("a → b, update") && table.ends_with("1.07"), "{table}");
        let unknown = Hop { wire_bytes: None, ..hop(1, 100) };
        assert_eq!(Shared::of(vec![hop(1, 100), unknown]).wire_bytes, None);
    }

    #[test]
    fn too_many_tokens_and_messages_are_failures() {
        let failures = Shared::of(vec![hop(1, 111), hop(2, 111)]).failures();
        assert!(
            matches!(&failures[..], [tokens, messages] if tokens.starts_with("1.110") && messages.contains("2 messages"))
        );
    }
}
