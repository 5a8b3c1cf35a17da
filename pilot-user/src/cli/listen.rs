//! `pilot up`, `pilot listen` and `pilot ctx serve`: a node with its services on pinned workers, until it is told to stop.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use crossbeam_channel::RecvTimeoutError;
use pilot_engine::{Code, PeerId};
use serde_json::json;

use super::session::{self, NOTICES_MAX, Stop};
use super::stats::{Tally, stats, summary};
use super::{Failure, NodeArgs, Output, ctx};
use crate::control::Datapath;
use crate::node::{Node, Seat};
use crate::recent_peers::RecentPeers;
use crate::service::{Notice, Services};
use crate::worker::drivers::Pinned;

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
    // Each worker has the tunnels to some of the peers, whichever queue their datagrams come by; but the one that holds
    // contexts has all, because all followers of one are served from one document.
    let owner = |place, workers| if contexts.is_some() { 0 } else { place % workers };
    let (config, node) = session::start(args, owner)?;
    let Node { control, peers, seats } = node;
    let (notices, from_workers) = crossbeam_channel::bounded(NOTICES_MAX);
    let (mut workers, mut listen, mut deletions) = (Vec::new(), config.listen, None);
    let mut recent = RecentPeers::read(&config.recent_peers);
    for (number, seat) in seats.into_iter().enumerate() {
        let mut services = Services::new(number, files.clone(), notices.clone(), seat.doorbell())
            .with_context(|| format!("cannot receive files into {}", files.clone().unwrap_or_default().display()))
            .map_err(Failure::Failed)?;
        if let Some(file) = contexts.filter(|_| number == 0) {
            let (owner, looks) = ctx::owner(file, &peers, seat.doorbell())?;
            services = services.with_contexts(owner);
            deletions = Some(looks);
        }
        let Seat { core, .. } = seat;
        let doorbell = seat.doorbell();
        let mut worker = seat.with(services);
        listen = worker.link.local_addr();
        // Those whose address is known, and whose tunnel this worker has, hear from us at once: a peer that knew us before we
        // restarted need not find out.
        for ((_, id), peer) in peers.iter().zip(&config.peers) {
            let last = recent.address(&peer.key);
            if let Some(address) = last {
                worker.endpoint.remember_address(*id, address);
            }
            if peer.endpoint.or(last).is_some() {
                let now = worker.now();
                worker.endpoint.open_tunnel(now, *id);
            }
        }
        workers.push(Pinned::spawn(worker, core, doorbell).map_err(session::spawn_failure)?);
    }
    // The workers have theirs.
    drop(notices);
    // Traffic flows already, over UDP until AF_XDP is there; *ready* says which way it will stay.
    let (mut latest, mut ready) = (control.datapath(), false);
    while !stop.is_set() && !workers.iter().any(Pinned::is_over) {
        match from_workers.recv_timeout(LOOK_EVERY) {
            Ok(notice) => {
                if let Notice::TunnelUp { peer, address: Some(address) } = &notice
                    && let Some((_, configured)) = peers.iter().zip(&config.peers).find(|((_, id), _)| id == peer)
                {
                    recent.note(&configured.key, *address);
                }
                print(&notice, &peers, output);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        deletions.iter_mut().for_each(ctx::Deletions::look);
        while let Some(datapath) = control.take_change() {
            if ready && datapath != latest {
                print_datapath(&datapath, output);
            }
            latest = datapath;
        }
        if !ready && !latest.pending {
            ready = true;
            let event = json!({"event": "ready", "listen": listen, "datapath": *latest});
            output.event(&event, || Some(format!("listening on {listen} over {}", words(&latest))));
        }
    }
    let mut stopped = session::stop(workers)?;
    for worker in &mut stopped {
        session::say_goodbye(worker, peers.iter().map(|(_, id)| *id), Code::ShuttingDown)?;
    }
    from_workers.try_iter().for_each(|notice| print(&notice, &peers, output));
    let tallies: Vec<Tally> = stopped.iter().map(Tally::of).collect();
    let stats = stats(&tallies, &config, &control);
    output.event(&stats, || Some(summary(&stats)));
    Ok(())
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
