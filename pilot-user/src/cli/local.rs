//! Commands that use the node of this host, through its socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Failure, Output, bench, topic};
use crate::api::{Code, Error, Node};
use crate::config::Config;
use crate::metrics;

#[derive(Subcommand, Debug)]
pub(super) enum LocalCommand {
    /// The peers of this host's node, and whether there are tunnels to them.
    Peers {
        #[command(flatten)]
        node: SocketArgs,
    },
    /// The connections of all applications of this host's node.
    Connections {
        #[command(flatten)]
        node: SocketArgs,
    },
    /// What this host's node counts, as text for Prometheus (docs/metrics.md).
    Metrics {
        #[command(flatten)]
        node: SocketArgs,
    },
    /// Time messages to a peer's echo service, and how much goes, through this host's node.
    Bench(bench::BenchArgs),
    /// Publish messages to whoever subscribes.
    Pub(topic::PubArgs),
    /// Print what a peer's application publishes, until the topic ends.
    Sub(topic::SubArgs),
    /// Call an application at a peer's port and print its response.
    Call {
        /// The peer's name, or its overlay address.
        peer: String,
        /// The port on which the application listens.
        port: u16,
        /// What to ask.
        request: String,
        #[command(flatten)]
        node: SocketArgs,
        /// How many milliseconds to wait for the response.
        #[arg(long, value_name = "MS", default_value_t = 10_000)]
        deadline: u64,
    },
}

/// Which node.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct SocketArgs {
    /// The socket of the node.
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
    /// The configuration that the node runs with.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(command: LocalCommand, output: &Output) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(async {
        match command {
            LocalCommand::Peers { node } => {
                let peers = node.attach().await?.peers().await.map_err(failure)?;
                output.event(&json!({"event": "peers", "peers": peers}), || Some(lines(&peers, peer)));
            }
            LocalCommand::Connections { node } => {
                let connections = node.attach().await?.connections().await.map_err(failure)?;
                let event = json!({"event": "connections", "connections": connections});
                output.event(&event, || Some(lines(&connections, connection)));
            }
            LocalCommand::Metrics { node } => {
                let node = node.attach().await?;
                let (stats, peers) = (node.stats().await.map_err(failure)?, node.peers().await.map_err(failure)?);
                let text = metrics::text(&stats, &peers);
                output.event(&json!({"event": "metrics", "text": text}), || Some(text.trim_end().to_owned()));
            }
            LocalCommand::Bench(args) => bench::run(args, output).await?,
            LocalCommand::Pub(args) => topic::publish(args, output).await?,
            LocalCommand::Sub(args) => topic::subscribe(args, output).await?,
            LocalCommand::Call { peer, port, request, node, deadline } => {
                let connection = node.attach().await?.connect(&peer, port).await.map_err(failure)?;
                let response =
                    connection.call(request, Some(Duration::from_millis(deadline))).await.map_err(failure)?;
                let text = String::from_utf8_lossy(&response);
                output.event(&json!({"event": "response", "response": text}), || Some(text.to_string()));
            }
        }
        Ok(())
    })
}

impl SocketArgs {
    pub(super) async fn attach(&self) -> Result<Node, Failure> {
        let socket = match (&self.socket, &self.config) {
            (Some(socket), _) => socket.clone(),
            (None, config) => {
                Config::read(config.as_deref().unwrap_or(Path::new(""))).map_err(Failure::usage)?.local.socket
            }
        };
        Node::attach(socket).await.map_err(failure)
    }
}

/// A peer that is not there, or a right that is not, is the arguments' or the configuration's.
pub(super) fn failure(error: Error) -> Failure {
    match error.code {
        Code::UnknownPeer | Code::NotAllowed => Failure::usage(error),
        _ => Failure::failed(error),
    }
}

/// As [`failure`], of what was done with a peer.
pub(super) fn failure_of(peer: &str, error: Error) -> Failure {
    match failure(error) {
        Failure::Failed(error) => Failure::Failed(error.context(peer.to_owned())),
        other => other,
    }
}

fn lines(list: &Value, line: impl Fn(&Value) -> String) -> String {
    let lines = list.as_array().into_iter().flatten().map(line);
    lines.collect::<Vec<_>>().join("\n")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn peer(peer: &Value) -> String {
    let (mut name, address) = (text(&peer["name"]).to_owned(), text(&peer["address"]));
    if peer["lane"].as_u64() > Some(0) {
        name = format!("{name}, lane {}", peer["lane"]);
    }
    if peer["up"] == true {
        let (endpoint, rtt, count) = (text(&peer["endpoint"]), &peer["smoothed_rtt_us"], &peer["connections"]);
        format!("{name} ({address}) up at {endpoint}, round trip {rtt} µs, {count} connections")
    } else {
        format!("{name} ({address}) no tunnel")
    }
}

fn connection(connection: &Value) -> String {
    let way = if connection["opened_here"] == true { "to" } else { "from" };
    let state = if connection["open"] == true { "open" } else { "not open" };
    let (peer, port, application) = (text(&connection["peer"]), &connection["port"], &connection["application"]);
    format!("{way} {peer}, port {port}, {state}, application {application}")
}
