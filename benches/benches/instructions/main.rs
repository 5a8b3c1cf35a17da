//! Instructions per message through two transports in memory, Pilot's and quinn-proto's: unlike times, they do not depend on
//! how busy the machine is. Needs valgrind. `cargo bench --package pilot-benches --bench instructions [FILTER]`
//!
//! Each case runs in a process of its own under callgrind, which counts within [`counted`] alone, and is read by the file
//! that an instruction comes from, inlined ones too. What the AEAD takes, and QUIC's header protection, is a column of
//! its own: both transports have it from aws-lc. It is more than on a real processor with AVX-512, which valgrind's lacks and
//! aws-lc has code for.
//!
//! Both do the same: an application writes, datagrams leave and are taken, the application at the other end reads until there
//! is no more. Pilot sends what fits a message as a message, quinn on a stream that stays open, its cheapest way to send in
//! order, and without the lengths by which a reader could tell messages apart. Each operation is followed by what a driver
//! asks an engine each pass. Datagrams are of at most 1,472 bytes, and the AEAD is AES-256-GCM.
//!
//! quinn is run twice: with acks as it comes, after every second packet, and asked for as many as Pilot's asks for, one for
//! [`quinn::RARE_ACKS`] packets, which costs it less on one way and more to and fro.

#[path = "../callgrind/mod.rs"]
mod callgrind;
#[path = "../nodes/mod.rs"]
mod nodes;
mod pilot;
mod quinn;

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};

/// Names the case to the process that runs it.
const CASE: &str = "PILOT_INSTRUCTIONS_CASE";

/// Runs of a case before those that count, so that buffers have grown and path MTU and acks are as they stay.
const WARM_UP: u32 = 512;

/// Runs that count. Higher: a case takes longer. Lower: what happens every few hundred messages is not seen.
const RUNS: u32 = 1024;

/// Bytes: UDP payload of an MTU of 1,500.
const MAX_DATAGRAM: u16 = 1472;

/// Two connected ends in memory, and datagrams under way between them.
trait Pair {
    /// The application at `end` writes so many times, and what can leave does.
    fn send(&mut self, end: usize, bytes: &[u8], times: usize);
    /// What is under way to `end` arrives and is read. Bytes.
    fn receive(&mut self, end: usize) -> usize;
    /// What else can leave from `end` does, as acks: datagrams.
    fn flush(&mut self, end: usize) -> usize;
}

#[derive(Clone, Copy)]
enum Part {
    /// Write, build, seal.
    Send,
    /// Open, deliver, read.
    Receive,
    /// Both, and acks both ways.
    OneWay,
    /// There and back, and acks both ways.
    Echo,
}

/// What is counted, of how many bytes, and how many times they are written in a pass.
const CASES: [(&str, Part, usize, usize); 9] = [
    ("19 B, send", Part::Send, 19, 1),
    ("19 B, receive", Part::Receive, 19, 1),
    ("19 B, one way and acks", Part::OneWay, 19, 1),
    ("19 B, echo", Part::Echo, 19, 1),
    // What fits a datagram of either.
    ("19 B, 50 at once, and acks", Part::OneWay, 19, 50),
    ("1400 B, send", Part::Send, 1400, 1),
    ("1400 B, receive", Part::Receive, 1400, 1),
    ("1400 B, one way and acks", Part::OneWay, 1400, 1),
    // What leaves at once by quinn's pacing.
    ("1400 B, 4 at once, and acks", Part::OneWay, 1400, 4),
];

/// The names by which a process is told which transport to run.
const TRANSPORTS: [&str; 3] = ["Pilot", "quinn", "quinn, rare acks"];

/// What callgrind counts; its name is what it is told.
#[inline(never)]
fn counted(run: &mut dyn FnMut()) {
    run();
}

/// Runs one part of a message's way; returns datagrams.
fn message(pair: &mut impl Pair, part: Part, bytes: &[u8], times: usize) -> usize {
    let mut datagrams = 0;
    let all = bytes.len() * times;
    match part {
        Part::Send => {
            counted(&mut || pair.send(0, bytes, times));
            assert_eq!(pair.receive(1), all);
        }
        Part::Receive => {
            pair.send(0, bytes, times);
            counted(&mut || assert_eq!(pair.receive(1), all));
        }
        Part::OneWay => counted(&mut || {
            pair.send(0, bytes, times);
            assert_eq!(pair.receive(1), all);
        }),
        Part::Echo => counted(&mut || {
            for end in [0, 1] {
                pair.send(end, bytes, times);
                assert_eq!(pair.receive(1 - end), all);
            }
        }),
    }
    let mut acks = || {
        datagrams += pair.flush(1);
        pair.receive(0);
    };
    match part {
        Part::OneWay => counted(&mut acks),
        Part::Echo => {}
        Part::Send | Part::Receive => acks(),
    }
    datagrams
}

/// In the process of a case.
fn run(mut pair: impl Pair, part: Part, bytes: usize, times: usize) {
    let bytes = vec![7; bytes];
    let mut acks = 0;
    for round in 0..WARM_UP + RUNS {
        if round == WARM_UP {
            begin();
            acks = 0;
        }
        acks += message(&mut pair, part, &bytes, times);
    }
    println!("{acks} datagrams of acks alone for {} messages", RUNS as usize * times);
}

/// Where callgrind begins anew.
#[inline(never)]
fn begin() {
    std::hint::black_box(());
}

fn main() -> anyhow::Result<()> {
    if let Ok(name) = std::env::var(CASE) {
        let (transport, case) = name.split_once('/').context("a transport and a case")?;
        let (_, part, bytes, times) = *CASES.iter().find(|(name, ..)| *name == case).context("a case")?;
        match TRANSPORTS.iter().position(|name| *name == transport) {
            Some(0) => run(pilot::Ends::new(), part, bytes, times),
            at => run(quinn::Ends::new(at == Some(2))?, part, bytes, times),
        }
        return Ok(());
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    println!("Instructions per message          Pilot    AEAD    quinn    AEAD   ratio  rare acks    AEAD   ratio");
    let mut details = Vec::new();
    for (name, _, _, times) in CASES.into_iter().filter(|(name, ..)| name.contains(&filter)) {
        let mut pilot = None;
        print!("{name:<30}");
        for transport in TRANSPORTS {
            let counts = count(transport, name, times)?;
            let (aead, rest) = counts.split();
            print!(" {rest:>8} {aead:>7}");
            if let Some(pilot) = pilot {
                print!(" {:>7.3} ", f64::from(pilot) / rest as f64);
            }
            pilot.get_or_insert(u32::try_from(rest)?);
            details.push((name, transport, counts));
        }
        println!();
    }
    for (name, transport, counts) in details {
        print!("\n{name}, {transport}: {}\n ", counts.note);
        let mut parts: Vec<_> = counts.by_part.into_iter().collect();
        parts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        parts.iter().filter(|(_, count)| *count > 0).for_each(|(part, count)| print!(" {part} {count}"));
        println!();
    }
    Ok(())
}

/// Instructions per message.
struct Counts {
    by_part: BTreeMap<String, u64>,
    note: String,
}

/// The part of the cryptography, which both transports have from one library.
const AEAD: &str = "AEAD";

/// What this bench itself does, and is nobody's.
const OWN: &str = "this bench";

impl Counts {
    /// The AEAD's, and the transport's.
    fn split(&self) -> (u64, u64) {
        let [aead, own] = [AEAD, OWN].map(|name| self.by_part.get(name).copied().unwrap_or_default());
        (aead, self.by_part.values().sum::<u64>() - aead - own)
    }
}

/// Runs a case under callgrind, in which each pass has so many messages.
fn count(transport: &str, name: &str, times: usize) -> anyhow::Result<Counts> {
    let case = format!("{transport}/{name}");
    let (note, annotated) = callgrind::run(
        "*instructions::counted*",
        "*instructions::begin*",
        |command| _ = command.env(CASE, &case),
        &[],
    )?;
    let mut by_part = BTreeMap::<String, u64>::new();
    let mut total = None;
    for (count, place) in callgrind::counts(&annotated) {
        // The first line; and those that called what is counted are told to have spent all of it themselves.
        if *total.get_or_insert(count) == count {
            continue;
        }
        *by_part.entry(part(place)).or_default() += count;
    }
    by_part.values_mut().for_each(|count| *count /= u64::from(RUNS) * times as u64);
    ensure!(!by_part.is_empty(), "callgrind_annotate told nothing of {case}");
    Ok(Counts { by_part, note: note.trim().to_owned() })
}

/// The module of a transport, or the library, that a place "file:function [object]" is of.
fn part(place: &str) -> String {
    let is_crypto = place.contains("aws_lc") || place.contains("aws-lc");
    if is_crypto || place.contains("/rustls-") {
        return AEAD.to_owned();
    }
    let (file, function) = place.split_once(".rs:").unwrap_or(("", place));
    for transport in ["/engine/src/", "/quinn-proto-"] {
        if let Some((_, path)) = file.split_once(transport) {
            let path = path.split_once("/src/").map_or(path, |(_, path)| path);
            return path.split('/').next().unwrap_or(path).to_owned();
        }
    }
    let names = [("/library/", "std"), ("/registry/", "crates"), ("benches/instructions", OWN), ("rust", "std")];
    if let Some((_, name)) = names.into_iter().find(|(mark, _)| file.contains(mark)) {
        return name.to_owned();
    }
    let is_allocation = ["malloc", "free", "realloc", "calloc", "_int_"].iter().any(|name| function.contains(name));
    let is_copy = function.contains("mem");
    if is_allocation {
        "malloc"
    } else if is_copy {
        "memcpy"
    } else {
        "other"
    }
    .to_owned()
}
