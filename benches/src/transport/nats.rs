//! `nats-tls`: Debian's nats-server, a process of its own at the far end, and async-nats at both ends.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use async_nats::{Client, ConnectOptions, Event};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::unconstrained;
use tokio::time::sleep;

use super::peer::{self, MESSAGES_A_LOOK};
use super::secure::Identity;
use super::{Kind, LOOK, Load, MESSAGE, Meter, Ready, Recorder, Stop, System};
use crate::tls::PATIENCE;

const SERVER: &str = "nats-server";
/// Asked and answered, and told.
const ECHO: &str = "echo";
const TELL: &str = "tell";
/// Messages between an application and its connection.
const QUEUE: usize = 1 << 16;
/// Messages that a subscription keeps for its application: one more is lost.
const KEPT: usize = 1 << 20;
/// What the server keeps for a client that reads slowly, before it holds up who publishes, and in the end ends the connection.
const PENDING_BYTES: u64 = 256 << 20;

pub(crate) struct Nats {
    address: SocketAddr,
    directory: PathBuf,
    identity: Identity,
    /// The server's process, once it runs.
    process: AtomicU32,
}

/// Ends with the thread that started it, and when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Nats {
    pub(crate) fn new(address: SocketAddr, directory: &Path) -> anyhow::Result<Self> {
        let identity = Identity::kept_in(directory, address.ip())?;
        Ok(Self { address, directory: directory.to_owned(), identity, process: AtomicU32::new(0) })
    }

    /// Starts the server where the calling thread is, but on any core: it is a third process, and two have one each.
    fn start(&self) -> anyhow::Result<Server> {
        let config = self.directory.join("nats.conf");
        let text = format!(
            "listen: \"{}\"\nmax_pending: {PENDING_BYTES}\ntls {{ cert_file: {:?}, key_file: {:?} }}\n",
            self.address, self.identity.certificate, self.identity.key,
        );
        fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        let cores = fs::read_to_string("/sys/devices/system/cpu/online").context("the cores")?;
        let log = File::create(self.directory.join("nats.log"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "taskset", "--cpu-list", cores.trim(), SERVER, "--config"]).arg(config);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let server = Server(child.with_context(|| format!("starting {SERVER}"))?);
        self.process.store(server.0.id(), Ordering::Relaxed);
        Ok(server)
    }

    /// Waits for it to listen.
    async fn up(&self, server: &mut Server) -> anyhow::Result<()> {
        let since = Instant::now();
        while TcpStream::connect(self.address).await.is_err() {
            if let Some(status) = server.0.try_wait()? {
                let said = fs::read_to_string(self.directory.join("nats.log")).unwrap_or_default();
                bail!("{SERVER} ended with {status}: {}", said.trim());
            }
            ensure!(since.elapsed() < PATIENCE, "{SERVER} does not listen");
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// `troubles` counts what is lost, or may be: a subscription was full, the connection was lost.
    async fn connect(&self, troubles: &Arc<AtomicU64>) -> anyhow::Result<Client> {
        let troubles = Arc::clone(troubles);
        let options = ConnectOptions::new()
            .require_tls(true)
            .tls_client_config(self.identity.classic_client()?)
            .client_capacity(QUEUE)
            .subscription_capacity(KEPT)
            // A timer for each request; the run as a whole has one.
            .request_timeout(None)
            .event_callback(move |event| {
                let troubles = Arc::clone(&troubles);
                async move {
                    if matches!(event, Event::SlowConsumer(_) | Event::Disconnected | Event::ServerError(_)) {
                        troubles.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        options
            .connect(format!("tls://{}", self.address))
            .await
            .with_context(|| format!("connecting to {}", self.address))
    }

    async fn take(
        &self,
        server: &mut Server,
        meter: &Meter,
        ready: Ready,
        troubles: &Arc<AtomicU64>,
    ) -> anyhow::Result<()> {
        self.up(server).await?;
        let client = self.connect(troubles).await?;
        let (mut asked, mut told) = (client.subscribe(ECHO).await?, client.subscribe(TELL).await?);
        client.flush().await?;
        let answering = client.clone();
        tokio::spawn(async move {
            while let Some(request) = asked.next().await {
                if let Some(to) = request.reply {
                    answering.publish(to, request.payload).await?;
                }
            }
            anyhow::Ok(())
        });
        ready.say();
        // All that is there in a turn: the client reads thousands of messages from its socket in each of its own, and tokio would let
        // this take 128.
        let taking = async {
            while let Some(message) = told.next().await {
                meter.arrived(1, std::hint::black_box(message).payload.len() as u64);
            }
        };
        unconstrained(taking).await;
        bail!("{SERVER} ended the subscription")
    }
}

impl System for Nats {
    fn serve(&self, _: &Load, meter: &Meter, ready: Ready, stop: &Stop) -> anyhow::Result<Value> {
        let mut server = self.start()?;
        let troubles = Arc::new(AtomicU64::new(0));
        peer::serve(stop, self.take(&mut server, meter, ready, &troubles))?;
        Ok(json!({"troubles": troubles.load(Ordering::Relaxed)}))
    }

    fn ask(&self, load: &Load, recorder: &mut Recorder) -> anyhow::Result<Value> {
        recorder.count_process(self.process.load(Ordering::Relaxed));
        let troubles = Arc::new(AtomicU64::new(0));
        peer::ask(load, async {
            let client = self.connect(&troubles).await?;
            match load.kind {
                Kind::Echo => {
                    recorder.start();
                    while let Some(began) = recorder.one() {
                        let answer = client.request(ECHO, Bytes::from_static(MESSAGE)).await?;
                        ensure!(answer.payload == MESSAGE[..], "an answer of {} bytes", answer.payload.len());
                        recorder.took(began);
                    }
                    Ok(())
                }
                Kind::Messages => {
                    recorder.start();
                    while recorder.goes_on() {
                        for _ in 0..MESSAGES_A_LOOK {
                            client.publish(TELL, std::hint::black_box(Bytes::from_static(MESSAGE))).await?;
                        }
                    }
                    Ok(())
                }
                _ => peer::refuse("nats-tls", load),
            }
        })?;
        Ok(json!({"cipher": "TLS 1.3, AES-256-GCM, X25519", "troubles": troubles.load(Ordering::Relaxed)}))
    }
}
