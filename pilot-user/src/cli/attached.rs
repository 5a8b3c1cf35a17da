//! The node of this host, for commands that run one of their own where there is none.

use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;

use super::local;
use super::session::Stop;
use super::{AeadChoice, Failure, NodeArgs};
use crate::api::{Code, Node};
use crate::config::Config;

/// How soon a signal is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Does something through the node that runs with the configuration; `None`: there is none, and nothing was done. It is told when it
/// is to stop.
pub(super) fn run<R>(
    args: &NodeArgs,
    with: impl AsyncFnOnce(Node, &Stop) -> Result<R, Failure>,
) -> Result<Option<R>, Failure> {
    let socket = Config::read(&args.config).map_err(Failure::usage)?.local.socket;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(async {
        let Some(node) = attach(&socket).await? else { return Ok(None) };
        if args.aead != AeadChoice::Auto {
            let why = anyhow!(
                "--aead: the node of this host, which runs, has its own choice; leave it out, or stop the node"
            );
            return Err(Failure::Usage(why));
        }
        let stop = Stop::on_signals()?;
        with(node, &stop).await.map(Some)
    })
}

async fn attach(socket: &Path) -> Result<Option<Node>, Failure> {
    match Node::attach(socket).await {
        Ok(node) => Ok(Some(node)),
        Err(error) if error.code == Code::ShuttingDown => Ok(None),
        Err(error) => Err(local::failure(error)),
    }
}

/// Waits until the command is told to stop.
pub(super) async fn until(stop: &Stop) {
    while !stop.is_set() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
