//! Arms that keep what is shared at the researcher's and send what changes: their agents are told to join and to change, say
//! what they were given, and have what they have in the end. `pilot` and `patches` are these agents.

use std::time::Instant;

use anyhow::{Context as _, bail};
use crossbeam_channel::Receiver;
use serde_json::Value;

use crate::corpus::{AGENTS, Change, RESEARCHER, Shared};
use crate::pipeline::{Arm, Given, Step};
use crate::tls::PATIENCE;

/// What an agent is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// Get what is shared, and follow it from now on.
    Join,
    /// Change it.
    Change(Change),
    /// Say what you have, and end.
    Finish,
}

/// What an agent says.
#[derive(Debug)]
pub(crate) enum Said {
    /// It runs.
    Ready,
    /// The change that it was told to make is made, as far as it knows.
    Made,
    /// It received something to give to its model: all of what was shared when it joined, or a change of somebody else.
    Given {
        text: String,
        at: Instant,
    },
    /// What it has in the end.
    Finished {
        shared: Shared,
        notes: Value,
    },
    Failed(anyhow::Error),
}

/// An agent and what it says.
pub(crate) type Voice = (usize, Said);

/// Tells an agent.
pub(crate) type Tell = Box<dyn Fn(Order)>;

/// The agents. The first one has what is shared.
pub(crate) struct Hub {
    tell: Vec<Tell>,
    voices: Receiver<Voice>,
    joined: Vec<bool>,
}

impl Hub {
    /// Waits until all run.
    pub(crate) fn new(tell: Vec<Tell>, voices: Receiver<Voice>) -> anyhow::Result<Self> {
        let joined = (0..tell.len()).map(|agent| agent == RESEARCHER).collect();
        let mut hub = Self { tell, voices, joined };
        for _ in 0..hub.tell.len() {
            match hub.next()? {
                (_, Said::Ready) => {}
                (agent, said) => bail!("{} said {said:?} before it ran", AGENTS[agent]),
            }
        }
        Ok(hub)
    }

    fn next(&mut self) -> anyhow::Result<Voice> {
        let voice = self.voices.recv_timeout(PATIENCE).context("an agent says nothing")?;
        match voice {
            (agent, Said::Failed(error)) => Err(error.context(AGENTS[agent])),
            voice => Ok(voice),
        }
    }

    /// An agent changes what is shared, and everybody who follows it is given that. When.
    pub(crate) fn change(&mut self, from: usize, change: &Change) -> anyhow::Result<Vec<(Given, Instant)>> {
        (self.tell[from])(Order::Change(change.clone()));
        let others = self.joined.iter().enumerate().filter(|(agent, joined)| **joined && *agent != from).count();
        let (mut given, mut made) = (Vec::new(), false);
        while given.len() < others || !made {
            match self.next()? {
                (_, Said::Made) => made = true,
                (agent, Said::Given { text, at }) => given.push((Given { agent, text }, at)),
                (agent, said) => bail!("{} said {said:?}", AGENTS[agent]),
            }
        }
        Ok(given)
    }

    /// An agent that did not follow what is shared does, and is given it.
    pub(crate) fn join(&mut self, agent: usize) -> anyhow::Result<Given> {
        (self.tell[agent])(Order::Join);
        match self.next()? {
            (agent, Said::Given { text, .. }) => {
                self.joined[agent] = true;
                Ok(Given { agent, text })
            }
            (agent, said) => bail!("{} said {said:?}", AGENTS[agent]),
        }
    }
}

impl Arm for Hub {
    fn hand_over(&mut self, step: &Step<'_>) -> anyhow::Result<Vec<Given>> {
        let mut given: Vec<Given> = self.change(step.from, step.change)?.into_iter().map(|(given, _)| given).collect();
        for agent in step.to {
            if !self.joined[*agent] {
                given.push(self.join(*agent)?);
            }
        }
        Ok(given)
    }

    fn finish(mut self: Box<Self>) -> anyhow::Result<(Vec<Shared>, Value)> {
        // Who has it ends last: the others say goodbye to it.
        let mut ends = Vec::new();
        for agent in (0..self.tell.len()).rev() {
            (self.tell[agent])(Order::Finish);
            match self.next()? {
                (_, Said::Finished { shared, notes }) => ends.push((shared, notes)),
                (agent, said) => bail!("{} said {said:?} instead of its end", AGENTS[agent]),
            }
        }
        let (states, mut notes): (Vec<_>, Vec<_>) = ends.into_iter().rev().unzip();
        let mut first = notes.remove(RESEARCHER);
        first["others"] = notes.into();
        Ok((states, first))
    }
}
