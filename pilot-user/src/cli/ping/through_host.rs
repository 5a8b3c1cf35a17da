//! The same through the node of this host: what an application of it sees.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::json;

use super::super::attached::until;
use super::super::session::Stop;
use super::super::{Failure, Output, local};
use super::{Wanted, latencies};
use crate::api::{Connection, Error, Node};
use crate::service::ECHO_PORT;

pub(super) async fn run(node: &Node, name: &str, wanted: &Wanted, stop: &Stop, output: &Output) -> Result<(), Failure> {
    let mut taken = latencies().map_err(Failure::Failed)?;
    let ended = tokio::select! {
        ended = ping(node, name, wanted, &mut taken, output) => Some(ended),
        () = until(stop) => None,
    };
    let datapath = node.stats().await.map(|mut stats| stats["datapath"].take()).unwrap_or_default();
    let us = |quantile| taken.value_at_quantile(quantile) as f64 / 1000.0;
    let (count, bytes, lost) = (wanted.count, wanted.payload.len(), wanted.count - taken.len());
    let event = json!({
        "event": "ping",
        "attached": true,
        "count": count,
        "lost": lost,
        "payload_bytes": bytes,
        "p50_us": us(0.5),
        "p99_us": us(0.99),
        "datapath": datapath,
    });
    if !taken.is_empty() {
        output.event(&event, || {
            Some(format!(
                "{count} messages of {bytes} bytes, {lost} lost; p50 {:.1} µs, p99 {:.1} µs, through the node of this host",
                us(0.5),
                us(0.99)
            ))
        });
    }
    match ended {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(local::failure_of(name, error)),
        None => Err(Failure::Interrupted),
    }
}

/// Sends one message after the other; how long each answer took, in nanoseconds.
async fn ping(
    node: &Node,
    name: &str,
    wanted: &Wanted,
    taken: &mut Histogram<u64>,
    output: &Output,
) -> Result<(), Error> {
    let connection: Connection = node.connect(name, ECHO_PORT).await?;
    for number in 1..=wanted.count {
        let sent = Instant::now();
        connection.send(&wanted.payload).await?;
        while connection.receive().await? != wanted.payload {
            tracing::warn!("the peer's echo service sent something else");
        }
        let elapsed = sent.elapsed();
        taken.saturating_record(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
        if wanted.interval_ms > 0 {
            let us = elapsed.as_secs_f64() * 1e6;
            output.event(&json!({"event": "progress", "done": number}), || {
                Some(format!("{name}: answer {number}, {us:.1} µs"))
            });
            if number < wanted.count {
                tokio::time::sleep(Duration::from_millis(wanted.interval_ms)).await;
            }
        }
    }
    Ok(())
}
