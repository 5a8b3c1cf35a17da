//! The same through the node of this host.

use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use serde_json::json;

use super::super::{Failure, NodeArgs, Output, attached, local};
use super::file::{self, Wanted};
use super::remote::{News, Wish};
use crate::api::{Following, Interest, Node, Step, Update};
use crate::context::{Follow, RefusalCode, Replica};

/// How soon a change of the file is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Has the node hold the contexts of a file until told to stop; `None`: no node runs. What is not durable ends with the command, as it
/// does with a node of its own.
pub(super) fn serve(args: &NodeArgs, file: &Path, output: &Output) -> Result<Option<()>, Failure> {
    attached::run(args, async |node, stop| {
        let (wanted, mut watched) = file::wanted(file)?;
        let mut held = Vec::new();
        for Wanted { name, document, rights, durable } in &wanted {
            let created = match durable {
                true => node.create_durable_context(name, document, rights.clone()).await,
                false => node.create_context(name, document, rights.clone()).await,
            };
            match created {
                Ok(_) => held.push((name.as_str(), *durable)),
                // The node has held it since an earlier time.
                Err(error) if *durable && error.peer_code == Some(RefusalCode::Conflict as u64) => {
                    held.push((name.as_str(), true));
                }
                Err(error) => {
                    end(&node, &held).await;
                    return Err(local::failure_of(name, error));
                }
            }
        }
        let names: Vec<&str> = held.iter().map(|(name, _)| *name).collect();
        output.event(&json!({"event": "ready", "contexts": names}), || {
            Some(format!("the node of this host holds {}", names.join(", ")))
        });
        while !stop.is_set() {
            tokio::select! {
                why = node.closed() => return Err(local::failure(why)),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            for gone in watched.gone() {
                held.retain(|(name, _)| *name != gone);
                node.context(&gone, None).delete().await.map_err(local::failure)?;
                output.event(&json!({"event": "context_deleted", "name": gone, "file": file}), || {
                    Some(format!("no context `{gone}` any more"))
                });
            }
        }
        end(&node, &held).await;
        let count = held.len();
        output.event(&json!({"event": "served", "contexts": count}), || Some(format!("{count} contexts were served")));
        Ok(())
    })
}

/// Takes those away that the node does not keep.
async fn end(node: &Node, held: &[(&str, bool)]) {
    for (name, _) in held.iter().filter(|(_, durable)| !durable) {
        // Somebody else may have deleted it.
        let _ = node.context(name, None).delete().await;
    }
}

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
