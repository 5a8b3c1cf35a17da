//! The same through the node of this host.

use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;

use super::super::Failure;
use super::super::local;
use super::super::session::Stop;
use super::remote::{News, Wish};
use crate::api::{Code, Following, Interest, Node, Step};
use crate::context::{Follow, Replica};

/// How soon a signal is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(super) enum Attached<F> {
    Done,
    /// No node serves the socket: what was to be done is given back.
    NoNode(Wish, F),
}

/// Does it through the node that serves a socket, until `on_news` says that it is done, or a signal that it is to stop.
pub(super) fn run<F>(socket: &Path, peer: &str, wish: Wish, mut on_news: F) -> Result<Attached<F>, Failure>
where
    F: FnMut(Option<&Replica>, News) -> anyhow::Result<bool>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(async {
        let node = match Node::attach(socket).await {
            Ok(node) => node,
            Err(error) if error.code == Code::ShuttingDown => return Ok(Attached::NoNode(wish, on_news)),
            Err(error) => return Err(local::failure(error)),
        };
        let stop = Stop::on_signals()?;
        tokio::select! {
            done = fulfil(&node, peer, wish, &mut on_news) => done?,
            () = until(&stop) => {}
        }
        Ok(Attached::Done)
    })
}

async fn fulfil(
    node: &Node,
    peer: &str,
    wish: Wish,
    on_news: &mut impl FnMut(Option<&Replica>, News) -> anyhow::Result<bool>,
) -> Result<(), Failure> {
    let words = |error: &dyn std::fmt::Display| Failure::Failed(anyhow!("{peer}: {error}"));
    let failure = |error: crate::api::Error| match error.code {
        Code::UnknownPeer | Code::NotAllowed => local::failure(error),
        _ => words(&error),
    };
    let (name, filter, latest) = match wish {
        Wish::Change { name, base, change } => {
            let context = node.context(&name, peer);
            let made = match base {
                Some(base) => context.change_if(base, &change).await,
                None => context.change(&change).await,
            };
            on_news(None, News::Done(made.map_err(failure)?)).map_err(|error| words(&error))?;
            return Ok(());
        }
        Wish::Follow { replica: Some(_), .. } => {
            let why = anyhow!(
                "--keep: the node of this host, which runs, gives a document anew; leave it out, or stop the node"
            );
            return Err(Failure::Usage(why));
        }
        Wish::Follow { follow: Follow { name, filter, latest }, .. } => (name, filter, latest),
    };
    let follow = node.context(&name, peer).follow_with(Interest { filter, latest }).await;
    let mut following: Following = follow.map_err(failure)?;
    let mut news = News::Whole;
    while !on_news(Some(following.replica()), news).map_err(|error| words(&error))? {
        news = match following.step().await.map_err(failure)? {
            Step::Updated(update) => update.change.map_or(News::Whole, News::Changed),
            Step::Checked => News::Checked,
            Step::Diverged => News::Diverged,
        };
    }
    Ok(())
}

async fn until(stop: &Stop) {
    while !stop.is_set() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
