//! `pilot bench`: how long a message to a peer and back takes through the node of this host, and how much goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use hdrhistogram::Histogram;
use pilot_engine::limits::MAX_MESSAGE_BYTES;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::local::{self, SocketArgs};
use super::{Failure, Output};
use crate::api::{Connection, Error, Node};
use crate::service::ECHO_PORT;

/// Connections that are being opened at a time. Lower: opening thousands takes longer. Higher: the first answers come no sooner.
const OPENING: usize = 64;
/// A send that takes longer waits for who does not read.
const FULL_AFTER: Duration = Duration::from_millis(500);
/// Messages under way in the part that measures throughput: as many bytes as a connection's credit, and room for the largest.
const BULK_UNDER_WAY_BYTES: usize = 192 << 10;

#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    /// The peer's name, or its overlay address.
    peer: String,
    #[command(flatten)]
    node: SocketArgs,
    /// How many messages, each answered by the peer's echo service.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Bytes of each.
    #[arg(long, value_name = "BYTES", default_value_t = 19, value_parser = clap::value_parser!(u32).range(..=MAX_MESSAGE_BYTES as i64))]
    payload: u32,
    /// Connections that take turns.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Messages under way at a time, each on a connection of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    in_flight: u32,
    /// Connections beside them that are sent to as fast as they take it, and never read. All is measured without and with them, in turn.
    #[arg(long, value_name = "N", default_value_t = 0)]
    stalled: u32,
    /// How often that is measured.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Bytes to send and have back in large messages, for the throughput.
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    bulk: u64,
}

pub(super) async fn run(args: BenchArgs, output: &Output) -> Result<(), Failure> {
    if args.in_flight > args.connections {
        let why =
            anyhow!("--in-flight: given {}, allowed: at most {}, as --connections", args.in_flight, args.connections);
        return Err(Failure::Usage(why));
    }
    let node = args.node.attach().await?;
    let all = open(&node, &args.peer, args.connections).await.map_err(local::failure)?;
    let mut measured = Measured::new().map_err(local::failure)?;
    measured.latencies(&all, &args).await.map_err(local::failure)?;
    let without =
        if args.stalled == 0 { Value::Null } else { beside_stalled(&node, &all, &args, &mut measured).await? };
    let bulk = match all.first() {
        Some(connection) if args.bulk > 0 => Some(throughput(connection, args.bulk).await.map_err(local::failure)?),
        _ => None,
    };
    let (us, per_second) = (|quantile| measured.us(quantile), measured.per_second());
    let event = json!({
        "event": "bench",
        "count": args.count,
        "payload_bytes": args.payload,
        "connections": args.connections,
        "in_flight": args.in_flight,
        "stalled": args.stalled,
        "p50_us": us(0.5),
        "p99_us": us(0.99),
        "max_us": us(1.0),
        "without_stalled": without,
        "messages_per_s": per_second,
        "bulk_bytes": args.bulk,
        "bulk_mb_s": bulk,
    });
    output.event(&event, || {
        let bulk = bulk.map_or(String::new(), |mb_s| format!("; {mb_s:.1} MB/s there and back in large messages"));
        let beside = match args.stalled {
            0 => String::new(),
            stalled => format!(
                ", beside {stalled} that are not read; without those p50 {:.1} µs, p99 {:.1} µs: with them p99 is {:.1} µs longer, the \
                 median of {} rounds, and {:.1} µs at the most",
                without["p50_us"].as_f64().unwrap_or_default(),
                without["p99_us"].as_f64().unwrap_or_default(),
                without["p99_added_us"]["median"].as_f64().unwrap_or_default(),
                args.rounds,
                without["p99_added_us"]["max"].as_f64().unwrap_or_default(),
            ),
        };
        Some(format!(
            "{} messages of {} bytes on {} connections: p50 {:.1} µs, p99 {:.1} µs, longest {:.1} µs; {per_second:.0} a \
             second{beside}{bulk}",
            args.count,
            args.payload,
            args.connections,
            us(0.5),
            us(0.99),
            us(1.0),
        ))
    });
    Ok(())
}

/// Measures in turn without connections that are not read, and with them. What it is with them is left in `with`; what it is without
/// them, and by how much p99 differs in each round, is returned.
async fn beside_stalled(
    node: &Node,
    all: &[Connection],
    args: &BenchArgs,
    with: &mut Measured,
) -> Result<Value, Failure> {
    // What was measured so far has warmed up the way.
    *with = Measured::new().map_err(local::failure)?;
    let mut without = Measured::new().map_err(local::failure)?;
    let mut added = Vec::new();
    for _ in 0..args.rounds {
        let before = without.latencies(all, args).await.map_err(local::failure)?;
        let stalled = stall(open(node, &args.peer, args.stalled).await.map_err(local::failure)?).await;
        added.push(with.latencies(all, args).await.map_err(local::failure)? - before);
        for connection in stalled {
            connection.close(0, "measured").await.map_err(local::failure)?;
        }
    }
    added.sort_by(f64::total_cmp);
    let (median, max) = (added.get(added.len() / 2), added.last());
    Ok(json!({
        "p50_us": without.us(0.5),
        "p99_us": without.us(0.99),
        "max_us": without.us(1.0),
        "p99_added_us": {"median": median, "max": max, "rounds": added},
    }))
}

async fn open(node: &Node, peer: &str, count: u32) -> Result<Vec<Connection>, Error> {
    let (mut all, mut opening) = (Vec::new(), JoinSet::new());
    for _ in 0..count {
        if opening.len() >= OPENING {
            all.extend(opening.join_next().await.and_then(Result::ok).transpose()?);
        }
        let (node, peer) = (node.clone(), peer.to_owned());
        opening.spawn(async move { node.connect(&peer, ECHO_PORT).await });
    }
    while let Some(opened) = opening.join_next().await {
        // A task of ours neither panics nor is aborted.
        all.extend(opened.ok().transpose()?);
    }
    Ok(all)
}

/// Fills connections that nobody reads, in both directions.
async fn stall(connections: Vec<Connection>) -> Vec<Connection> {
    let mut filling = JoinSet::new();
    for connection in &connections {
        let (connection, piece) = (connection.clone(), vec![0; 4096]);
        filling.spawn(async move {
            while tokio::time::timeout(FULL_AFTER, connection.send(&piece)).await.is_ok_and(|sent| sent.is_ok()) {}
        });
    }
    filling.join_all().await;
    connections
}

/// How long each message took, in nanoseconds, and all of them.
struct Measured {
    taken: Histogram<u64>,
    seconds: f64,
}

impl Measured {
    fn new() -> Result<Self, Error> {
        // Up to a minute, three digits.
        let taken = Histogram::new_with_bounds(1, 60_000_000_000, 3);
        let taken = taken.map_err(|error| Error::new(crate::api::Code::Internal, error.to_string()))?;
        Ok(Self { taken, seconds: 0.0 })
    }

    fn us(&self, quantile: f64) -> f64 {
        self.taken.value_at_quantile(quantile) as f64 / 1000.0
    }

    fn per_second(&self) -> f64 {
        self.taken.len() as f64 / self.seconds.max(1e-9)
    }

    /// Sends as many messages as were asked for; the p99 of these, in microseconds.
    async fn latencies(&mut self, all: &[Connection], args: &BenchArgs) -> Result<f64, Error> {
        let (mut now, mut turns, began) = (Self::new()?, JoinSet::new(), Instant::now());
        let tasks = args.in_flight as usize;
        let message: Arc<[u8]> = vec![b'x'; args.payload as usize].into();
        for task in 0..tasks {
            // Each has connections of its own, so that no answer is another's.
            let own: Vec<Connection> = all.iter().skip(task).step_by(tasks).cloned().collect();
            let count = (args.count as usize + task) / tasks;
            let (mut its, message) = (Self::new()?, Arc::clone(&message));
            turns.spawn(async move {
                for connection in own.iter().cycle().take(count) {
                    let sent = Instant::now();
                    connection.send(&message).await?;
                    connection.receive().await?;
                    its.taken.saturating_record(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX));
                }
                Ok::<_, Error>(its.taken)
            });
        }
        while let Some(taken) = turns.join_next().await {
            if let Some(taken) = taken.ok().transpose()? {
                // Of the same bounds.
                let _ = now.taken.add(taken);
            }
        }
        self.seconds += began.elapsed().as_secs_f64();
        let _ = self.taken.add(&now.taken);
        Ok(now.us(0.99))
    }
}

/// Megabytes a second that come back of as many that are sent.
async fn throughput(connection: &Connection, bytes: u64) -> Result<f64, Error> {
    let message = vec![0; MAX_MESSAGE_BYTES / 2];
    let count = bytes.div_ceil(message.len() as u64);
    let under_way = (BULK_UNDER_WAY_BYTES / message.len()) as u64;
    let began = Instant::now();
    for number in 0..count + under_way {
        if number < count {
            connection.send(&message).await?;
        }
        if number >= under_way {
            connection.receive().await?;
        }
    }
    Ok(count as f64 * message.len() as f64 / 1e6 / began.elapsed().as_secs_f64().max(1e-9))
}
