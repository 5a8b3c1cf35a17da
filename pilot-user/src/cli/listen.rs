//! `pilot up`, `pilot listen` and `pilot ctx serve`: a node with its services on pinned workers, until it is told to stop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use crossbeam_channel::RecvTimeoutError;
use pilot_engine::PeerId;
use serde_json::json;

use super::session::{self, Stop};
use super::stats::{Tally, stats, summary};
use super::{Failure, NodeArgs, Output, ctx, introduce};
use crate::api::access::Access;
use crate::api::audit::Audit;
use crate::api::running::{Driver, Running, Stopped};
use crate::config::{Config, Local};
use crate::control::Datapath;
use crate::daemon::Daemon;
use crate::link::doorbell::Doorbell;
use crate::metrics;
use crate::service::{Notice, Services};

/// How soon a signal or a change of datapath is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// `contexts`: the file of those that the node holds.
pub(super) fn run(
    args: &NodeArgs,
    files: Option<PathBuf>,
    contexts: Option<&Path>,
    output: &Output,
) -> Result<(), Failure> {
    let (stop, reload) = (Stop::on_signals()?, Reload::on_signal()?);
    let mut config = Config::read(&args.config).map_err(Failure::usage)?;
    config.local.holds_contexts |= contexts.is_some();
    config.files = files.or(config.files);
    let files = config.files.clone();
    let mut deletions = None;
    let services = |number, notices, doorbell: Doorbell, peers: &[(String, PeerId)]| {
        let services = Services::new(number, files.clone(), notices, doorbell.clone())
            .with_context(|| format!("cannot receive files into {}", files.clone().unwrap_or_default().display()))
            .map_err(Failure::Failed)?;
        Ok::<_, Failure>(match contexts.filter(|_| number == 0) {
            Some(file) => {
                let (owner, looks) = ctx::owner(file, peers, doorbell)?;
                deletions = Some(looks);
                services.with_contexts(owner)
            }
            None => services,
        })
    };
    let aeads = session::aeads(args)?;
    let mut running = Running::start(config, aeads, Driver::Threads, services)?;
    let daemon = serve(&running)?;
    let metrics = running.config().metrics.map(|listen| {
        let listener = metrics::Listener::start(Arc::clone(running.board()), listen);
        listener.with_context(|| format!("cannot serve metrics on {listen}")).map_err(Failure::Failed)
    });
    let metrics = metrics.transpose()?;
    // Traffic flows already, over UDP until AF_XDP is there; *ready* says which way it will stay.
    let (mut latest, mut ready) = (running.control().datapath(), false);
    // L2.5: until when applications may end what they have.
    let mut drained = None;
    while !running.is_over() {
        if stop.is_set() {
            let applications = running.board().applications();
            let until = *drained.get_or_insert_with(|| {
                let drain = if applications > 0 { running.drain() } else { Duration::ZERO };
                let line = Audit::Draining { drain_ms: drain.as_millis() as u64, applications };
                print_audit(&line, output);
                Instant::now() + drain
            });
            if applications == 0 || Instant::now() >= until {
                break;
            }
        }
        if reload.take() {
            let lines = read_again(&args.config, &mut running, daemon.as_ref());
            lines.into_iter().for_each(|line| print_audit(&line, output));
        }
        match running.notices().recv_timeout(LOOK_EVERY) {
            Ok(notice) => {
                running.note(&notice);
                print(&notice, running.peers(), output);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        deletions.iter_mut().for_each(ctx::Deletions::look);
        while let Some(datapath) = running.control().take_change() {
            if ready && datapath != latest {
                print_datapath(&datapath, output);
            }
            latest = datapath;
        }
        if !ready && !latest.pending {
            ready = true;
            let listen = running.listen();
            let event = json!({"event": "ready", "listen": listen, "datapath": *latest});
            output.event(&event, || Some(format!("listening on {listen} over {}", words(&latest))));
        }
    }
    drop((daemon, metrics));
    let (notices, peers) = (running.notices().clone(), running.peers().to_vec());
    let Stopped { config, control, workers } = running.stop().context("a worker ended").map_err(Failure::Failed)?;
    notices.try_iter().for_each(|notice| print(&notice, &peers, output));
    let tallies: Vec<Tally> = workers.iter().map(Tally::of).collect();
    let stats = stats(&tallies, &config, &control);
    output.event(&stats, || Some(summary(&stats)));
    Ok(())
}

/// Set when the process was told to read its configuration again.
struct Reload(Arc<AtomicBool>);

impl Reload {
    /// Listens to SIGHUP.
    fn on_signal() -> Result<Self, Failure> {
        let flag = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::clone(&flag))
            .context("cannot listen to signals")
            .map_err(Failure::Failed)?;
        Ok(Self(flag))
    }

    /// Whether it was since this was asked.
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Takes the configuration as it is now, or none of it. What came of it, a line each.
fn read_again(file: &Path, running: &mut Running, daemon: Option<&Daemon>) -> Vec<Audit> {
    let taken = Config::read(file).map_err(|error| error.to_string()).and_then(|config| {
        let users = users(&config);
        let mut lines = running.reload(config).map_err(|error| error.to_string())?;
        if let Some(Err(error)) = daemon.map(|daemon| daemon.set_users(users)) {
            tracing::warn!(%error, "the socket's mode cannot be changed");
        }
        lines.push(Audit::Reloaded { changes: lines.len() });
        Ok(lines)
    });
    taken.unwrap_or_else(|why| vec![Audit::ReloadRefused { why }])
}

/// L2.1: what other users may do.
fn users(config: &Config) -> BTreeMap<u32, Access> {
    config.local.users.iter().map(|(uid, user)| (*uid, Access::User(user.clone()))).collect()
}

/// Serves the node to the applications of its host. That they cannot be is a failure where the operator has asked for it.
fn serve(running: &Running) -> Result<Option<Daemon>, Failure> {
    let Local { socket, is_chosen, .. } = &running.config().local;
    match Daemon::start(Arc::clone(running.board()), socket, users(running.config())) {
        Ok(daemon) => Ok(Some(daemon)),
        Err(error) if *is_chosen => {
            Err(Failure::Failed(anyhow::Error::new(error).context(format!("cannot serve {}", socket.display()))))
        }
        Err(error) => {
            tracing::warn!(socket = %socket.display(), %error, "no socket for applications: choose another by `local.socket`");
            Ok(None)
        }
    }
}

/// Prints what a worker says.
pub(super) fn print(notice: &Notice, peers: &[(String, PeerId)], output: &Output) {
    let name = |id: &PeerId| {
        let place = peers.iter().position(|(_, peer)| peer == id)?;
        let (name, lanes) = (peers[place].0.as_str(), &peers[..place]);
        Some((name, lanes.iter().filter(|(of, _)| of == name).count()))
    };
    let name = |id: &PeerId| name(id).unwrap_or(("?", 0));
    // Most peers have one lane, of which nobody need hear.
    let words = |(name, lane): (&str, usize)| match lane {
        0 => name.to_owned(),
        lane => format!("{name}, lane {lane}"),
    };
    match notice {
        Notice::TunnelUp { peer, .. } => {
            let (peer, lane) = name(peer);
            let event = json!({"event": "tunnel_up", "peer": peer, "lane": lane});
            output.event(&event, || Some(format!("{}: tunnel up", words((peer, lane)))));
        }
        Notice::TunnelDown { peer, reason } => {
            let (peer, lane) = name(peer);
            let event = json!({"event": "tunnel_down", "peer": peer, "lane": lane, "reason": reason});
            output.event(&event, || Some(format!("{}: tunnel down: {reason}", words((peer, lane)))));
        }
        Notice::Sending { peer, bulk, why } => {
            let ((peer, lane), way) = (name(peer), if *bulk { "the bulk path" } else { "the first path" });
            let event = json!({"event": "sending", "peer": peer, "lane": lane, "bulk": bulk, "why": why});
            output.event(&event, || Some(format!("{}: sending over {way}: {why}", words((peer, lane)))));
        }
        Notice::Introduced(introduced) => introduce::print(introduced, output),
        Notice::File(file) => {
            let (bytes, path) = (file.written.bytes, file.written.path.display());
            let event = json!({
                "event": "file", "name": file.name, "bytes": bytes, "sha256": file.written.sha256, "path": file.written.path,
            });
            output.event(&event, || Some(format!("received {path}, {bytes} bytes, sha256 {}", file.written.sha256)));
        }
        Notice::Audit(line) => print_audit(line, output),
    }
}

fn print_audit(line: &Audit, output: &Output) {
    let mut event = serde_json::to_value(line).unwrap_or_default();
    // A clock before 1970 is taken as 1970.
    let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    event["event"] = "audit".into();
    event["unix_ms"] = (unix_time.as_millis() as u64).into();
    output.event(&event, || Some(format!("audit: {line}")));
}

/// Says that datagrams go another way now, and why.
pub(super) fn print_datapath(datapath: &Datapath, output: &Output) {
    let event = json!({"event": "datapath", "datapath": *datapath});
    output.event(&event, || Some(format!("datapath: {}", words(datapath))));
}

/// A datapath in words.
pub(super) fn words(datapath: &Datapath) -> String {
    let kind = match (datapath.mode, datapath.attach) {
        (Some(mode), Some(attach)) => {
            format!("AF_XDP ({mode:?}, {attach:?})").to_lowercase().replace("af_xdp", "AF_XDP")
        }
        _ => "UDP".to_owned(),
    };
    let bulk = &datapath.bulk;
    let port = bulk.port.map_or(String::new(), |port| format!(", port {port}"));
    let send = format!("{:?}", bulk.send).to_lowercase();
    format!("{kind}: {}; bulk by GSO: {send}{port}: {}", datapath.reason, bulk.why)
}
