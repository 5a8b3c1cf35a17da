//! The document pipeline: three agents hand over what they wrote, then the researcher tells the others of 50 changes. The same
//! steps over every arm, and what each cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use pilot_user::context::tokens;
use serde::Serialize;
use serde_json::Value;

use crate::corpus::{AGENTS, Change, Corpus, RESEARCHER, REVIEWER, Shared, WRITER};
use crate::place::{self, Places};

/// What is waited after each part, outside of its time, so that late acknowledgements are counted with it: more than any
/// delayed acknowledgement takes.
const SETTLE: Duration = Duration::from_millis(80);

/// An agent changes what is shared, and others are to have it, with all that was before.
pub(crate) struct Step<'a> {
    pub(crate) from: usize,
    pub(crate) change: &'a Change,
    pub(crate) to: &'a [usize],
}

/// Something that an agent received and would give to its model.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) agent: usize,
    pub(crate) text: String,
}

/// What the arms count themselves, as messages of applications and not of what carries them.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    messages: AtomicU64,
    payload_bytes: AtomicU64,
    round_trips: AtomicU64,
}

impl Traffic {
    /// Counts a message of so many bytes.
    pub(crate) fn message(&self, bytes: usize) {
        // Relaxed: whoever reads waits for the message first, over a channel.
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.payload_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts times that somebody had to wait for an answer.
    pub(crate) fn round_trips(&self, count: u64) {
        self.round_trips.fetch_add(count, Ordering::Relaxed);
    }

    fn now(&self) -> [u64; 3] {
        [&self.messages, &self.payload_bytes, &self.round_trips].map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// One way to do it, set up: programs run, nothing is connected.
pub(crate) trait Arm {
    /// Does a step, until everybody who is to have it does. What agents were given for it.
    fn hand_over(&mut self, step: &Step<'_>) -> anyhow::Result<Vec<Given>>;

    /// Ends it: what each agent has in the end, and what to say of how it went.
    fn finish(self: Box<Self>) -> anyhow::Result<(Vec<Shared>, Value)>;
}

/// What a part cost.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Cost {
    part: &'static str,
    /// Handed to agents, by agent.
    tokens: [u64; 3],
    /// Of that, what each had not been given before.
    content_tokens: u64,
    messages: u64,
    payload_bytes: u64,
    round_trips: u64,
    wire_bytes: u64,
    time_us: u64,
    cpu_us: u64,
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    system: String,
    parts: Vec<Cost>,
    notes: Value,
}

/// What is new to whom: a count of the tokens of everything that came to be, and of what each agent has of it.
struct Ledger {
    /// Who made it, and its tokens.
    items: Vec<(usize, u64)>,
    /// How many of the items each agent knows.
    known: [usize; 3],
}

impl Ledger {
    fn new(start: &Shared) -> Self {
        let facts = tokens::count(&start.facts.to_string());
        Self { items: vec![(RESEARCHER, tokens::count(&start.report)), (RESEARCHER, facts)], known: [0; 3] }
    }

    fn add(&mut self, author: usize, change: &Change) {
        self.items.push((author, tokens::count(&change.text())));
    }

    /// Tokens of what is new to an agent that is given all there is: what others made and it was not given before.
    fn take(&mut self, agent: usize) -> u64 {
        let new = &self.items[self.known[agent]..];
        let content = new.iter().filter(|(author, _)| *author != agent).map(|(_, tokens)| tokens).sum();
        self.known[agent] = self.items.len();
        content
    }
}

/// Runs the pipeline. `make` sets the arm up, which is not measured.
pub(crate) fn run(
    system: &str,
    places: &Places,
    corpus: &Corpus,
    make: impl FnOnce(Arc<Traffic>) -> anyhow::Result<Box<dyn Arm>>,
) -> anyhow::Result<Report> {
    let traffic = Arc::new(Traffic::default());
    let mut arm = make(Arc::clone(&traffic))?;
    let [first, second, third] = &corpus.contributions;
    let hand_over = |from, change, to| Step { from, change, to };
    let updates = corpus.updates.iter().map(|change| hand_over(RESEARCHER, change, &[WRITER, REVIEWER]));
    let parts = [
        ("researcher to writer", vec![hand_over(RESEARCHER, first, &[WRITER][..])]),
        ("writer to reviewer", vec![hand_over(WRITER, second, &[REVIEWER])]),
        ("reviewer to researcher", vec![hand_over(REVIEWER, third, &[RESEARCHER])]),
        ("follow-ups", updates.collect()),
    ];
    let (mut expected, mut ledger) = (corpus.start.clone(), Ledger::new(&corpus.start));
    let mut costs = Vec::new();
    // Tokens are counted afterwards, for that takes longer than much of what is measured.
    for (part, steps) in parts {
        let (wire, cpu, before) = (places.sent_bytes()?, place::cpu()?, traffic.now());
        let (mut time, mut given) = (Duration::ZERO, Vec::new());
        for step in &steps {
            let start = Instant::now();
            given.push(arm.hand_over(step)?);
            time += start.elapsed();
        }
        std::thread::sleep(SETTLE);
        let (wire, cpu) = (places.sent_bytes()? - wire, place::cpu()? - cpu);
        let after = traffic.now();
        let [messages, payload_bytes, round_trips] = std::array::from_fn(|at| after[at] - before[at]);
        let (time_us, cpu_us) = (time.as_micros() as u64, cpu.as_micros() as u64);
        let mut cost =
            Cost { part, messages, payload_bytes, round_trips, wire_bytes: wire, time_us, cpu_us, ..Cost::default() };
        for (step, given) in steps.iter().zip(given) {
            expected.apply(step.change);
            ledger.add(step.from, step.change);
            for Given { agent, text } in given {
                cost.tokens[agent] += tokens::count(&text);
                cost.content_tokens += ledger.take(agent);
            }
        }
        costs.push(cost);
    }
    let (states, notes) = arm.finish()?;
    for (agent, state) in states.iter().enumerate() {
        ensure!(*state == expected, "{system}: {} does not have what was handed over", AGENTS[agent]);
    }
    Ok(Report { system: system.to_owned(), parts: costs, notes })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content is what others made, once for each agent, whatever it is given again.
    #[test]
    fn content_counts_once_for_each_agent_and_never_ones_own() {
        let start = Shared { report: "a document".into(), facts: serde_json::json!({}) };
        let count = |text: &str| tokens::count(text);
        let mut ledger = Ledger::new(&start);
        let both = count("a document") + count("{}");
        ledger.add(RESEARCHER, &Change::Append("first words".into()));
        assert_eq!(ledger.take(WRITER), both + count("first words"));
        assert_eq!(ledger.take(WRITER), 0, "given again");
        ledger.add(WRITER, &Change::Append("and the writer's own".into()));
        assert_eq!(ledger.take(REVIEWER), both + count("first words") + count("and the writer's own"));
        assert_eq!(ledger.take(RESEARCHER), count("and the writer's own"));
        ledger.add(RESEARCHER, &Change::Merge(serde_json::json!({"n": 1})));
        assert_eq!(ledger.take(WRITER), count(r#"{"n":1}"#), "its own is not new to it");
    }
}
