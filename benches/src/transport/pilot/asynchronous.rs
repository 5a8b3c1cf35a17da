//! Through the asynchronous interface, as an agent uses it: a runtime of one thread, and a worker on another. Both are on their
//! end's core.

use std::time::Instant;

use anyhow::{bail, ensure};
use pilot_user::Node;
use pilot_user::api::Connection;
use pilot_user::config::Config;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{OTHER, PORT};
use crate::place::udp_datagrams;
use crate::tls::{PATIENCE, runtime};
use crate::transport::{Kind, LOOK, Load, MESSAGE, Meter, Ready, Recorder, Stop};

/// Bytes that are written to a stream, and read from one, at a time.
const PIECE: usize = 64 << 10;
/// Messages between two looks at the clock.
const BURST: usize = 64;
/// What the acquaintance is made with.
const GREETING: &[u8; 1] = b"?";
/// Round trips after which it is looked whether AF_XDP carried them.
const ACQUAINTANCE: u64 = 200;

pub(super) fn serve(config: &Config, load: &Load, meter: &Meter, ready: Ready, stop: &Stop) -> anyhow::Result<Value> {
    runtime()?.block_on(async {
        let node = Node::builder().config(config.clone()).start()?;
        let mut listener = node.listen(PORT).await?;
        ready.say();
        let serving = async {
            loop {
                let connection = listener.accept().await?;
                // One that ends with an error is noticed by who asked.
                let _ = answer(&connection, load.kind, meter).await;
            }
        };
        let served: anyhow::Result<()> = tokio::select! {
            () = stop.wait() => Ok(()),
            ended = serving => ended,
        };
        served?;
        node.close().await;
        Ok(json!(null))
    })
}

async fn answer(connection: &Connection, kind: Kind, meter: &Meter) -> anyhow::Result<()> {
    // Messages of the acquaintance are of one byte, and answered.
    let messages = async {
        loop {
            let message = connection.receive().await?;
            if kind == Kind::Echo || message.len() == GREETING.len() {
                connection.send(message).await?;
            } else {
                meter.arrived(1, message.len() as u64);
            }
        }
    };
    let bulk = async {
        let (_, mut stream) = connection.accept_stream().await?;
        let mut piece = vec![0; PIECE];
        loop {
            match stream.read(&mut piece).await? {
                0 => return anyhow::Ok(()),
                length => meter.arrived(0, length as u64),
            }
        }
    };
    let ended: anyhow::Result<()> = tokio::select! { ended = messages => ended, ended = bulk => ended };
    ended
}

pub(super) fn ask(config: &Config, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value> {
    runtime()?.block_on(async {
        let node = Node::builder().config(config.clone()).start()?;
        let connection = node.connect(OTHER, PORT).await?;
        acquaint(&connection).await?;
        let by_kernel = udp_datagrams()?;
        match load.kind {
            Kind::Echo => echo(&connection, recorder).await?,
            Kind::Messages => messages(&connection, recorder).await?,
            Kind::Bulk => bulk(&connection, recorder).await?,
            Kind::Idle => idle(recorder).await,
            Kind::Handshakes => bail!("not by this interface"),
        }
        let by_kernel = udp_datagrams()? - by_kernel;
        ensure!(by_kernel < ACQUAINTANCE, "{by_kernel} datagrams came by the kernel's socket and not by AF_XDP");
        let opened = node.stats().await?["opened"].take();
        node.close().await;
        Ok(json!({"encrypted": true, "opened": opened, "by_kernel_udp": by_kernel}))
    })
}

/// Echoes until nothing comes by the kernel's UDP socket any more: AF_XDP is attached, and both ends know where the other is.
async fn acquaint(connection: &Connection) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let before = udp_datagrams()?;
        for _ in 0..ACQUAINTANCE {
            connection.send(GREETING).await?;
            connection.receive().await?;
        }
        if udp_datagrams()? == before {
            return Ok(());
        }
        ensure!(Instant::now() < until, "AF_XDP was not there within {PATIENCE:?}");
    }
}

async fn echo(connection: &Connection, recorder: &mut Recorder) -> anyhow::Result<()> {
    recorder.start();
    while let Some(began) = recorder.one() {
        connection.send(MESSAGE).await?;
        connection.receive().await?;
        recorder.took(began);
    }
    Ok(())
}

async fn messages(connection: &Connection, recorder: &mut Recorder) -> anyhow::Result<()> {
    recorder.start();
    while recorder.goes_on() {
        for _ in 0..BURST {
            connection.send(MESSAGE).await?;
        }
    }
    Ok(())
}

async fn bulk(connection: &Connection, recorder: &mut Recorder) -> anyhow::Result<()> {
    let (mut stream, piece) = (connection.open_unidirectional(), vec![0x5a; PIECE]);
    recorder.start();
    while recorder.goes_on() {
        stream.write_all(&piece).await?;
    }
    Ok(())
}

async fn idle(recorder: &mut Recorder) {
    recorder.start();
    while recorder.goes_on() {
        tokio::time::sleep(LOOK * 10).await;
    }
}
