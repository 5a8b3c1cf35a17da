//! `pilot up`, `pilot listen` and `pilot ctx serve`: a node with its services on pinned workers, until it is told to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use crossbeam_channel::RecvTimeoutError;
use pilot_engine::PeerId;
use serde_json::json;

use super::session::{self, Stop};
use super::stats::{Tally, stats, summary};
use super::{Failure, NodeArgs, Output, ctx};
use crate::api::access::Access;
use crate::api::running::{Running, Stopped};
use crate::config::{Config, Local};
use crate::control::Datapath;
use crate::daemon::Daemon;
use crate::link::doorbell::Doorbell;
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
    let stop = Stop::on_signals()?;
    let mut config = Config::read(&args.config).map_err(Failure::usage)?;
    config.local.holds_contexts |= contexts.is_some();
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
    let mut running = Running::start(config, aeads, services)?;
    let daemon = serve(&running)?;
    // Traffic flows already, over UDP until AF_XDP is there; *ready* says which way it will stay.
    let (mut latest, mut ready) = (running.control().datapath(), false);
    while !stop.is_set() && !running.is_over() {
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
    drop(daemon);
    let (notices, peers) = (running.notices().clone(), running.peers().to_vec());
    let Stopped { config, control, workers } = running.stop().context("a worker ended").map_err(Failure::Failed)?;
    notices.try_iter().for_each(|notice| print(&notice, &peers, output));
    let tallies: Vec<Tally> = workers.iter().map(Tally::of).collect();
    let stats = stats(&tallies, &config, &control);
    output.event(&stats, || Some(summary(&stats)));
    Ok(())
}

/// Serves the node to the applications of its host. That they cannot be is a failure where the operator has asked for it.
fn serve(running: &Running) -> Result<Option<Daemon>, Failure> {
    let Local { socket, is_chosen, users, .. } = &running.config().local;
    let users = users.iter().map(|(uid, user)| (*uid, Access::User(user.clone()))).collect();
    match Daemon::start(Arc::clone(running.board()), socket, users) {
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
    let name = |id: &PeerId| peers.iter().find(|(_, peer)| peer == id).map_or("?", |(name, _)| name.as_str());
    match notice {
        Notice::TunnelUp { peer, .. } => {
            let peer = name(peer);
            output.event(&json!({"event": "tunnel_up", "peer": peer}), || Some(format!("{peer}: tunnel up")));
        }
        Notice::TunnelDown { peer, reason } => {
            let peer = name(peer);
            let event = json!({"event": "tunnel_down", "peer": peer, "reason": reason});
            output.event(&event, || Some(format!("{peer}: tunnel down: {reason}")));
        }
        Notice::Sending { peer, bulk, why } => {
            let (peer, way) = (name(peer), if *bulk { "the bulk path" } else { "the first path" });
            let event = json!({"event": "sending", "peer": peer, "bulk": bulk, "why": why});
            output.event(&event, || Some(format!("{peer}: sending over {way}: {why}")));
        }
        Notice::File(file) => {
            let (bytes, path) = (file.written.bytes, file.written.path.display());
            let event = json!({
                "event": "file", "name": file.name, "bytes": bytes, "sha256": file.written.sha256, "path": file.written.path,
            });
            output.event(&event, || Some(format!("received {path}, {bytes} bytes, sha256 {}", file.written.sha256)));
        }
    }
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
    format!("{kind}: {}; bulk by GSO: {:?}{port}: {}", datapath.reason, bulk.send, bulk.why)
}
