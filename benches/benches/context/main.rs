//! What one more follower of a shared context costs its owner, at 100, 1,000 and 10,000 of them: in the owner's core alone, and
//! through the engine, to as many peers with a tunnel each; and there beside it, a plain message of as many bytes to each.
//!
//! `cargo bench --package pilot-benches --bench context [-- instructions|time|beside]`. Instructions are counted by callgrind (valgrind),
//! each case in a process of its own, and do not depend on how busy the machine is, nor on what is in its caches, which times do.
//! `-- core|tunnels FOLLOWERS CHANGES` is one such case. `beside` is a change and a message between two nodes, as a worker
//! has them and through the asynchronous interface, and needs root.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant as Clock};

use anyhow::bail;
use pilot_engine::codec::put_varint;
use pilot_user::context::limits::CHECK_EVERY_VERSIONS;
use pilot_user::context::{Change, Client, Document, Follow, Held, Kind, LinkId, Owner, Rights};

mod api;
mod beside;
#[path = "../callgrind/mod.rs"]
mod callgrind;
#[path = "../echo/configs.rs"]
mod configs;
#[path = "../nodes/mod.rs"]
mod nodes;
#[path = "../echo/scene.rs"]
mod scene;
mod tunnels;

/// What agents tell each other.
const WORDS: &str = "anomaly count updated to 48";
const NAME: &str = "report";
const FOLLOWERS: [usize; 3] = [100, 1_000, 10_000];
/// Changes that are measured at each number of followers, in rounds that alternate, so that a busy machine is all of theirs.
const ROUNDS: usize = 16;
const CHANGES_A_ROUND: usize = 16;
/// The same, where each goes to tunnels, and all of them answer.
const TUNNEL_ROUNDS: usize = 8;
const TUNNEL_CHANGES_A_ROUND: usize = 4;
/// Rounds before those: until memory has been touched and buffers have grown.
const WARM_ROUNDS: usize = 2;
/// Instructions are counted of as many changes as there are from one hash to the next.
const COUNTED_CHANGES: usize = CHECK_EVERY_VERSIONS as usize;
/// With tunnels: one, and those.
const TUNNELS: [usize; 4] = [1, 100, 1_000, 10_000];
/// Followers whose tunnels come up under callgrind within a minute.
const COUNTED_TUNNELS: [usize; 2] = [1, 100];

fn main() -> anyhow::Result<()> {
    // Cargo passes `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [which, followers, changes] => counted(which, followers.parse()?, changes.parse()?),
        ["instructions"] => instructions(),
        ["time"] => time(),
        ["beside"] => beside::run(),
        [] => instructions().and_then(|()| time()).and_then(|()| beside::run()),
        _ => bail!("given {arguments:?}, allowed: instructions, time, beside, or core|tunnels FOLLOWERS CHANGES"),
    }
}

/// In the process of a case: what is measured is counted from `begin` on.
fn counted(which: &str, followers: usize, changes: usize) -> anyhow::Result<()> {
    match which {
        "core" => {
            let mut core = Core::new(followers)?;
            core.round(WARM_ROUNDS * CHANGES_A_ROUND)?;
            begin();
            core.round(changes)?;
        }
        "tunnels" => {
            let mut fabric = tunnels::Fabric::new(followers)?;
            fabric.round(WARM_ROUNDS * CHANGES_A_ROUND)?;
            begin();
            fabric.round(changes)?;
        }
        other => bail!("given {other:?}, allowed: core, tunnels"),
    }
    Ok(())
}

/// Where callgrind begins anew.
#[inline(never)]
fn begin() {
    black_box(());
}

fn instructions() -> anyhow::Result<()> {
    println!("instructions per follower and change");
    let core = FOLLOWERS.map(|followers| ("core", followers));
    for (which, followers) in core.into_iter().chain(COUNTED_TUNNELS.map(|followers| ("tunnels", followers))) {
        let arguments = [which, &followers.to_string(), &COUNTED_CHANGES.to_string()];
        let (_, annotated) = callgrind::run(
            "*measured_*",
            "*context::begin*",
            |command| _ = command.args(arguments),
            &["--inclusive=yes"],
        )?;
        let mut by_function = BTreeMap::<&str, u64>::new();
        for (count, place) in callgrind::counts(&annotated) {
            let name =
                place.split_once("measured_").map(|(_, name)| name.split([' ', '[', '(', '\'']).next().unwrap_or(name));
            name.into_iter().for_each(|name| *by_function.entry(name).or_default() += count);
        }
        for (name, count) in by_function {
            let each = count as f64 / (followers * COUNTED_CHANGES) as f64;
            println!("{followers:>7} followers  {which:8}  {name:14}  {each:>7.0}");
        }
    }
    Ok(())
}

fn time() -> anyhow::Result<()> {
    let cores = FOLLOWERS.map(Core::new);
    let mut cores = cores.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    table("the owner's core: ns per follower and change", &FOLLOWERS, ROUNDS, &mut cores, |core| {
        Ok(vec![("core", core.round(CHANGES_A_ROUND)?)])
    })?;
    drop(cores);
    let fabrics = TUNNELS.map(tunnels::Fabric::new);
    let mut fabrics = fabrics.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    table("through the engine, a tunnel each: ns per follower", &TUNNELS, TUNNEL_ROUNDS, &mut fabrics, |fabric| {
        let round = fabric.round(TUNNEL_CHANGES_A_ROUND)?;
        Ok(vec![
            ("change sent", round.change),
            ("message sent", round.message),
            ("change sent and told", round.change_told),
            ("message sent and told", round.message_told),
            ("answers to the change", round.answers),
        ])
    })
}

/// Nanoseconds per follower, of each change.
type Samples = Vec<f64>;

/// Runs all in turn, and prints of each the median, and between which values four fifths lie.
fn table<T>(
    head: &str,
    followers: &[usize],
    rounds: usize,
    all: &mut [T],
    mut round: impl FnMut(&mut T) -> anyhow::Result<Vec<(&'static str, Samples)>>,
) -> anyhow::Result<()> {
    let mut samples: Vec<Vec<(&str, Samples)>> = all.iter().map(|_| Vec::new()).collect();
    for number in 0..WARM_ROUNDS + rounds {
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
    for (followers, samples) in followers.iter().zip(&mut samples) {
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
    let rights = Rights { read: vec!["*".into()], write: vec![] };
    owner.hold(NAME, Held::new(Document::empty(Kind::Log), 7, rights))?;
    Ok(owner)
}

/// The owner's own process makes a change, of which nothing has left then.
fn append(owner: &mut Owner) -> anyhow::Result<()> {
    owner.change(NAME, None, Change::Append(WORDS.into()))?;
    Ok(())
}

/// Followers without connections: they say that they have applied all they were sent, and nothing else.
struct Core {
    owner: Owner,
    followers: Vec<LinkId>,
    /// Messages that each was sent.
    sent: u64,
    message: Vec<u8>,
}

impl Core {
    fn new(followers: usize) -> anyhow::Result<Self> {
        let mut owner = owner()?;
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
        Ok(Self { owner, followers, sent: 1, message })
    }

    fn round(&mut self, changes: usize) -> anyhow::Result<Samples> {
        let mut samples = Vec::with_capacity(changes);
        for _ in 0..changes {
            append(&mut self.owner)?;
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
