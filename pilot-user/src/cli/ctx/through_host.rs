//! The same through the node of this host.

use anyhow::anyhow;

use super::super::Failure;
use super::super::local;
use super::remote::{News, Wish};
use crate::api::{Following, Interest, Node, Step, Update};
use crate::context::{Follow, Replica};

/// Does it until `on_news` says that it is done.
pub(super) async fn fulfil(
    node: &Node,
    peer: &str,
    wish: Wish,
    on_news: &mut impl FnMut(Option<&Replica>, News) -> anyhow::Result<bool>,
) -> Result<(), Failure> {
    let failure = |error| local::failure_of(peer, error);
    let words = |error: anyhow::Error| Failure::Failed(error.context(peer.to_owned()));
    let (name, filter, latest) = match wish {
        Wish::Change { name, base, change } => {
            let context = node.context(&name, peer);
            let made = match base {
                Some(base) => context.change_if(base, &change).await,
                None => context.change(&change).await,
            };
            on_news(None, News::Done(made.map_err(failure)?)).map_err(words)?;
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
    while !on_news(Some(following.replica()), news).map_err(words)? {
        news = match following.step().await.map_err(failure)? {
            Step::Updated(Update { stamp, change: Some(change) }) => News::Changed(stamp.version, change),
            Step::Updated(Update { change: None, .. }) => News::Whole,
            Step::Checked => News::Checked,
            Step::Diverged => News::Diverged,
        };
    }
    Ok(())
}
