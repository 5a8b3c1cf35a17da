//! What the asynchronous peers have in common: a runtime of one thread at each end, and a bound on how long an end may take.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{sleep, timeout};

use super::{Load, Recorder, Stop};
use crate::tls::{PATIENCE, runtime};

/// How often an end that does nothing looks whether it is over.
const REST: Duration = Duration::from_millis(100);
/// Messages that are sent between two looks at the clock.
pub(super) const MESSAGES_A_LOOK: u32 = 64;

/// Runs the far end on this thread until it is told to stop.
pub(super) fn serve(stop: &Stop, serving: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        match select(pin!(serving), pin!(stop.wait())).await {
            Either::Left((ended, _)) => ended,
            Either::Right(_) => Ok(()),
        }
    })
}

/// Runs the near end on this thread; if it hangs, not for ever.
pub(super) fn ask<T>(load: &Load, asking: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let most = load.warm_up + load.time + PATIENCE;
    // A time-out is made where there is a runtime.
    runtime()?.block_on(async { timeout(most, asking).await }).with_context(|| format!("not over after {most:?}"))?
}

/// [`super::Kind::Handshakes`], [`Load::connections`] at a time: what `connect` returns has connected, and is closed by being dropped.
pub(super) async fn handshakes<T, F>(
    load: &Load,
    recorder: &mut Recorder,
    connect: impl Fn() -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<T>>,
{
    recorder.start();
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() < load.connections
            && let Some(began) = recorder.one()
        {
            let connecting = connect();
            under_way.push(async move { anyhow::Ok((connecting.await?, began)) });
        }
        let Some(connected) = under_way.next().await else { return Ok(()) };
        recorder.took(connected?.1);
    }
}

/// [`super::Kind::Idle`]: connects so many times, then keeps all connections and does nothing.
pub(super) async fn idle<T, F>(load: &Load, recorder: &mut Recorder, connect: impl Fn() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let mut connections = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        connections.push(connect().await?);
    }
    recorder.start();
    while recorder.goes_on() {
        sleep(REST).await;
    }
    Ok(())
}

/// What a system says of a load that it does not bear.
pub(super) fn refuse<T>(what: &str, load: &Load) -> anyhow::Result<T> {
    bail!("{what} has no {:?} load", load.kind)
}
