//! What one more follower of a shared context costs its owner, at 100, 1,000 and 10,000 of them: in the owner's core alone, and
//! through the engine, to as many peers with a tunnel each; and there beside it, a plain message of as many bytes to each.
//!
//! `cargo bench --package pilot-benches --bench context [-- core|tunnels FOLLOWERS CHANGES]`. With arguments, that one alone,
//! for callgrind (`--toggle-collect='*measured*'`), which tells how much of the growth is work, and how much memory.

use std::hint::black_box;
use std::time::{Duration, Instant as Clock};

use anyhow::{Context as _, bail};
use pilot_engine::codec::put_varint;
use pilot_user::context::{Change, Client, Document, Follow, Held, HistoryLimits, Kind, LinkId, Owner, Rights, Stamp};

mod tunnels;

/// What agents tell each other.
const WORDS: &str = "anomaly count updated to 48";
const NAME: &str = "report";
const FOLLOWERS: [usize; 3] = [100, 1_000, 10_000];
/// Changes that are measured at each number of followers, in rounds that alternate, so that a busy machine is all of theirs.
const ROUNDS: usize = 16;
const CHANGES_A_ROUND: usize = 16;
/// The same, where each goes to tunnels, and all of them answer.
const TUNNEL_CHANGES_A_ROUND: usize = 4;
/// Rounds before those: until memory has been touched and buffers have grown.
const WARM_ROUNDS: usize = 2;

fn main() -> anyhow::Result<()> {
    // Cargo passes `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let [which, followers, changes] = &arguments[..] {
        let (followers, changes) = (followers.parse()?, changes.parse()?);
        match which.as_str() {
            "core" => drop(Core::new(followers)?.round(changes)?),
            "tunnels" => drop(tunnels::Fabric::new(followers)?.round(changes)?),
            other => bail!("given {other:?}, allowed: core, tunnels"),
        }
        return Ok(());
    }
    let cores = FOLLOWERS.map(Core::new);
    let mut cores = cores.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    table("the owner's core: ns per follower and change", &mut cores, |core| {
        Ok(vec![("change", core.round(CHANGES_A_ROUND)?)])
    })?;
    drop(cores);
    let fabrics = FOLLOWERS.map(tunnels::Fabric::new);
    let mut fabrics = fabrics.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    table("through the engine, a tunnel each: ns per follower", &mut fabrics, |fabric| {
        let round = fabric.round(TUNNEL_CHANGES_A_ROUND)?;
        Ok(vec![
            ("change sent", round.change),
            ("message sent", round.message),
            ("change told", round.change_told),
            ("message told", round.message_told),
            ("answers to the change", round.answers),
        ])
    })
}

/// Nanoseconds per follower, of each change.
type Samples = Vec<f64>;

/// Runs all in turn, and prints of each the median, and between which values four fifths lie.
fn table<T>(
    head: &str,
    all: &mut [T],
    mut round: impl FnMut(&mut T) -> anyhow::Result<Vec<(&'static str, Samples)>>,
) -> anyhow::Result<()> {
    let mut samples: Vec<Vec<(&str, Samples)>> = all.iter().map(|_| Vec::new()).collect();
    for number in 0..WARM_ROUNDS + ROUNDS {
        for (it, samples) in all.iter_mut().zip(&mut samples) {
            let new = round(it)?;
            match (number < WARM_ROUNDS, samples.is_empty()) {
                (true, _) => {}
                (false, true) => *samples = new,
                (false, false) => samples.iter_mut().zip(new).for_each(|((_, all), (_, new))| all.extend(new)),
            }
        }
    }
    println!("{head}");
    for (followers, samples) in FOLLOWERS.iter().zip(&mut samples) {
        for (what, samples) in samples {
            samples.sort_by(f64::total_cmp);
            let at = |tenths: usize| samples[(samples.len() - 1) * tenths / 10];
            println!("{followers:>7} followers  {what:21}  {:>7.0}  ({:.0} to {:.0})", at(5), at(1), at(9));
        }
    }
    Ok(())
}

/// An owner of one log.
fn owner() -> anyhow::Result<Owner> {
    let mut owner = Owner::default();
    let held = Held {
        document: Document::empty(Kind::Log),
        stamp: Stamp { incarnation: 7, version: 0 },
        rights: Rights { read: vec!["*".into()], write: vec![] },
        history: HistoryLimits::default(),
        past: Vec::new(),
        durable: false,
    };
    owner.hold(NAME, held)?;
    Ok(owner)
}

/// The owner's own process, which writes.
struct Writer {
    client: Client,
    link: LinkId,
    message: Vec<u8>,
}

impl Writer {
    fn new(owner: &mut Owner) -> Self {
        let mut client = Client::default();
        client.connect();
        Self { client, link: owner.connect(None), message: Vec::new() }
    }

    /// Makes a change, of which nothing has left then.
    fn write(&mut self, owner: &mut Owner) -> anyhow::Result<()> {
        self.client.change(NAME, None, &Change::Append(WORDS.into()))?;
        self.client.poll_transmit(&mut self.message);
        owner.handle(self.link, &self.message)?;
        owner.poll_transmit(self.link, &mut self.message);
        self.client.handle(&self.message)?;
        self.client.poll_notice().map(drop).context("no answer")
    }
}

/// Followers without connections: they say that they have applied all they were sent, and nothing else.
struct Core {
    owner: Owner,
    writer: Writer,
    followers: Vec<LinkId>,
    /// Messages that each was sent.
    sent: u64,
    message: Vec<u8>,
}

impl Core {
    fn new(followers: usize) -> anyhow::Result<Self> {
        let mut owner = owner()?;
        let writer = Writer::new(&mut owner);
        let mut message = Vec::new();
        let connect = |_| {
            let link = owner.connect(Some("peer"));
            let mut client = Client::default();
            client.connect();
            client.follow(Follow { name: NAME.into(), ..Follow::default() }, None);
            client.poll_transmit(&mut message);
            owner.handle(link, &message)?;
            owner.poll_transmit(link, &mut message);
            client.handle(&message)?;
            client.poll_transmit(&mut message);
            owner.handle(link, &message)?;
            while owner.poll_transmit(link, &mut message) {}
            Ok(link)
        };
        let followers = (0..followers).map(connect).collect::<anyhow::Result<Vec<_>>>()?;
        while owner.poll_ready().is_some() {}
        Ok(Self { owner, writer, followers, sent: 1, message })
    }

    fn round(&mut self, changes: usize) -> anyhow::Result<Samples> {
        let mut samples = Vec::with_capacity(changes);
        for _ in 0..changes {
            self.writer.write(&mut self.owner)?;
            let begin = Clock::now();
            let messages = measured_core(&mut self.owner, &mut self.message);
            samples.push(per_follower(begin.elapsed(), self.followers.len()));
            anyhow::ensure!(messages >= self.followers.len(), "{messages} messages");
            self.sent += 1;
            // The client's number of the first thing that it follows is 2.
            let mut have = vec![0x03, 2];
            put_varint(&mut have, self.sent);
            for link in &self.followers {
                self.owner.handle(*link, &have)?;
                while self.owner.poll_transmit(*link, &mut self.message) {}
            }
            while self.owner.poll_ready().is_some() {}
        }
        Ok(samples)
    }
}

fn per_follower(time: Duration, followers: usize) -> f64 {
    time.as_nanos() as f64 / followers as f64
}

/// Everything that leaves for one change.
#[inline(never)]
fn measured_core(owner: &mut Owner, message: &mut Vec<u8>) -> usize {
    let mut messages = 0;
    while let Some(link) = owner.poll_ready() {
        while owner.poll_transmit(link, message) {
            black_box(&message);
            messages += 1;
        }
    }
    messages
}
