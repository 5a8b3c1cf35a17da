//! The same as an author of agents has it: a change and a plain message through the asynchronous interface of a node at each end, one
//! at a time, in an order that is drawn. From the call until the text is in the other agent's hand.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant as Clock};

use anyhow::{Context as _, ensure};
use pilot_user::config::Config;
use pilot_user::context::{Change, Document, Kind, Rights};
use pilot_user::{Connection, Node};
use tokio::time::{sleep, timeout};

use super::beside::{Arrived, Order, PATIENCE, summary};
use super::scene::Scene;
use super::tunnels::PLAIN_PORT;
use super::{NAME, WORDS, configs};

/// Of each kind, and before those.
const SAMPLES: usize = 3_000;
const WARM: usize = 500;
/// From the arrival of one to the next.
const PAUSE: Duration = Duration::from_micros(200);
/// As the configurations name each other.
const PEER: &str = "other";
/// Between attempts to reach a node that is only just beginning.
const RETRY: Duration = Duration::from_millis(50);

/// Says how long both take, and the ratio.
pub(super) fn run(datapath: &str, mtu: u32) -> anyhow::Result<()> {
    let scene = Scene::new(&format!("api-{datapath}"), mtu)?;
    let [here, there] = configs::both(&scene, datapath)?;
    let arrived = Arrived::new();
    let samples = std::thread::scope(|threads| {
        let follower = threads.spawn(|| {
            scene.enter(1)?;
            runtime()?.block_on(follow(there, &arrived))
        });
        let samples = scene.enter(0).and_then(|()| runtime()?.block_on(measure(here, &arrived)));
        follower.join().map_err(|_| anyhow::anyhow!("the follower panicked"))?.context("the follower")?;
        samples.context("the owner")
    })?;
    summary(&format!("{datapath}, through the interface"), samples);
    Ok(())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The owner's end: nanoseconds of changes, and of messages.
async fn measure(config: Config, arrived: &Arrived) -> anyhow::Result<[Vec<u64>; 2]> {
    let node = Node::builder().config(config).start()?;
    let mut listener = node.listen(PLAIN_PORT).await?;
    let rights = Rights { read: vec![PEER.into()], write: Vec::new() };
    let context = node.create_context(NAME, &Document::empty(Kind::Text), rights).await?;
    let connection = timeout(PATIENCE, listener.accept()).await.context("nobody connects")??;
    arrived.wait_for(1).await.context("nobody follows")?;
    let (change, mut order) = (Change::Append(WORDS.into()), Order::default());
    let mut samples = [Vec::with_capacity(SAMPLES), Vec::with_capacity(SAMPLES)];
    for number in 0..2 * (WARM + SAMPLES) {
        let kind = order.next(number);
        let before = arrived.count.load(Ordering::Acquire);
        let begin = arrived.now();
        match kind {
            0 => _ = context.change(&change).await?,
            _ => connection.send(WORDS).await?,
        }
        arrived.wait_for(before + 1).await?;
        if number >= 2 * WARM {
            samples[kind].push(arrived.at_ns.load(Ordering::Relaxed) - begin);
        }
        sleep(PAUSE).await;
    }
    connection.close(0, "done").await?;
    node.close().await;
    Ok(samples)
}

/// The follower's end, until the owner closes the connection.
async fn follow(config: Config, arrived: &Arrived) -> anyhow::Result<()> {
    let node = Node::builder().config(config).start()?;
    let since = Clock::now();
    let connection: Connection = loop {
        match node.connect(PEER, PLAIN_PORT).await {
            Ok(connection) => break connection,
            Err(error) => ensure!(since.elapsed() < PATIENCE, "{error}"),
        }
        sleep(RETRY).await;
    };
    let mut following = node.context(NAME, PEER).follow().await?;
    arrived.tell();
    loop {
        tokio::select! {
            biased;
            update = following.next() => drop(update?),
            message = connection.receive() => match message {
                Ok(message) => ensure!(message == WORDS.as_bytes(), "another message"),
                Err(_) => break,
            },
        }
        arrived.tell();
    }
    node.close().await;
    Ok(())
}
