//! `pilot pub` and `pilot sub`: a topic of this host's node, and one of a peer's.

use std::io::BufRead as _;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use tokio::sync::mpsc::{Receiver, channel};

use super::local::{SocketArgs, failure};
use super::{Failure, Output};
use crate::api::{Publisher, Subscription, TOPICS_PORT};

/// Lines of standard input that are read ahead.
const LINES_AHEAD: usize = 64;

#[derive(Args, Debug)]
pub(super) struct PubArgs {
    /// The topic's name.
    topic: String,
    /// A message; without it, each line of standard input is one.
    message: Option<String>,
    #[command(flatten)]
    node: SocketArgs,
    /// The port to publish at. A port has one topic.
    #[arg(long, default_value_t = TOPICS_PORT)]
    port: u16,
    /// Wait for so many subscribers before the first message.
    #[arg(long, value_name = "N", default_value_t = 1)]
    subscribers: usize,
}

#[derive(Args, Debug)]
pub(super) struct SubArgs {
    /// The topic's name.
    topic: String,
    /// The peer at whose node it is published.
    peer: String,
    #[command(flatten)]
    node: SocketArgs,
    /// The port at which it is published.
    #[arg(long, default_value_t = TOPICS_PORT)]
    port: u16,
    /// Stop after so many messages; without it, when the topic ends.
    #[arg(long)]
    count: Option<u64>,
}

pub(super) async fn publish(args: PubArgs, output: &Output) -> Result<(), Failure> {
    let node = args.node.attach().await?;
    let listener = node.listen(args.port).await.map_err(failure)?;
    let mut topic = Publisher::new(listener, &args.topic);
    let mut lines = match args.message {
        Some(message) => {
            let (to, lines) = channel(1);
            // There is room for one.
            let _ = to.try_send(Ok(message));
            lines
        }
        None => standard_input(),
    };
    let event = json!({"event": "publishing", "topic": args.topic, "port": args.port});
    output.event(&event, || None);
    topic.wait_for(args.subscribers).await.map_err(failure)?;
    let mut messages = 0_u64;
    while let Some(line) = lines.recv().await {
        let line = line.context("cannot read standard input").map_err(Failure::Failed)?;
        topic.publish(line.as_bytes()).await.map_err(failure)?;
        messages += 1;
    }
    topic.close().await;
    output.event(&json!({"event": "published", "topic": args.topic, "messages": messages}), || None);
    Ok(())
}

/// Lines of standard input, which a thread reads: it may wait for ever, and ends with the process.
fn standard_input() -> Receiver<std::io::Result<String>> {
    let (to, lines) = channel(LINES_AHEAD);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if to.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

pub(super) async fn subscribe(args: SubArgs, output: &Output) -> Result<(), Failure> {
    let node = args.node.attach().await?;
    let mut topic = Subscription::open(&node, &args.peer, args.port, &args.topic).await.map_err(failure)?;
    let mut left = args.count;
    while left != Some(0)
        && let Some(it) = topic.next().await.map_err(failure)?
    {
        let text = String::from_utf8_lossy(&it.message);
        if it.missed > 0 && !output.is_json() {
            tracing::warn!(missed = it.missed, "this subscriber was too slow for some messages");
        }
        let event = json!({"event": "message", "number": it.number, "missed": it.missed, "message": text});
        output.event(&event, || Some(text.to_string()));
        left = left.map(|left| left - 1);
    }
    Ok(())
}
