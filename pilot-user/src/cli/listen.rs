//! `pilot up` and `pilot listen`: a node with its services on a pinned worker, until it is told to stop.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use crossbeam_channel::RecvTimeoutError;
use pilot_engine::{Code, DropReason, PeerId};
use serde_json::{Value, json};

use super::session::{self, Stop};
use super::{Failure, NodeArgs, Output};
use crate::control::{Control, Datapath};
use crate::link::counters::Verdicts;
use crate::link::pair::PairLink;
use crate::service::{Notice, Services};
use crate::worker::drivers::{Pinned, SpawnError, Worker};

/// Notices that wait to be printed; more are dropped, because a terminal that does not read must not stop a worker.
const NOTICES_MAX: usize = 1024;
/// How soon a signal or a change of datapath is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(super) fn run(args: &NodeArgs, files: Option<PathBuf>, output: &Output) -> Result<(), Failure> {
    let stop = Stop::on_signals()?;
    let (config, node) = session::start(args)?;
    let (notices, from_worker) = crossbeam_channel::bounded(NOTICES_MAX);
    let services = Services::new(files.clone(), notices, node.doorbell.clone())
        .with_context(|| format!("cannot receive files into {}", files.unwrap_or_default().display()))
        .map_err(Failure::Failed)?;
    let (running, mut worker) = node.with(services);
    let listen = worker.link.local_addr();
    // Those whose address is known hear from us at once: a peer that knew us before we restarted need not find out.
    for ((_, id), peer) in running.peers.iter().zip(&config.peers) {
        if peer.endpoint.is_some() {
            let now = worker.now();
            worker.endpoint.open_tunnel(now, *id);
        }
    }
    let core = config.cores.first().copied();
    let pinned = Pinned::spawn(worker, core, running.doorbell.clone()).map_err(|error| match error {
        SpawnError::Pin(error) => session::pin_failure(error),
        SpawnError::Thread(_) => Failure::failed(error),
    })?;
    // Traffic flows already, over UDP until AF_XDP is there; *ready* says which way it will stay.
    let (mut latest, mut ready) = (running.control.datapath(), false);
    while !stop.is_set() && !pinned.is_over() {
        match from_worker.recv_timeout(LOOK_EVERY) {
            Ok(notice) => print(&notice, &running.peers, output),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        while let Some(datapath) = running.control.take_change() {
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
    let mut worker = pinned.stop().context("the worker ended").map_err(Failure::Failed)?;
    session::say_goodbye(&mut worker, running.peers.iter().map(|(_, id)| *id), Code::ShuttingDown)?;
    from_worker.try_iter().for_each(|notice| print(&notice, &running.peers, output));
    let stats = stats(&worker, &running.control);
    output.event(&stats, || Some(summary(&stats)));
    Ok(())
}

fn print(notice: &Notice, peers: &[(String, PeerId)], output: &Output) {
    let name = |id: &PeerId| peers.iter().find(|(_, peer)| peer == id).map_or("?", |(name, _)| name.as_str());
    match notice {
        Notice::TunnelUp { peer } => {
            let peer = name(peer);
            output.event(&json!({"event": "tunnel_up", "peer": peer}), || Some(format!("{peer}: tunnel up")));
        }
        Notice::TunnelDown { peer, reason } => {
            let peer = name(peer);
            let event = json!({"event": "tunnel_down", "peer": peer, "reason": reason});
            output.event(&event, || Some(format!("{peer}: tunnel down: {reason}")));
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
    format!("{kind}: {}", datapath.reason)
}

fn stats(worker: &Worker<PairLink, Services>, control: &Control) -> Value {
    let verdicts: Verdicts = control.xdp_counters();
    let counters = worker.link.counters();
    let engine = worker.endpoint.stats();
    let dropped: serde_json::Map<String, Value> =
        DropReason::ALL.iter().map(|(reason, name)| ((*name).to_owned(), engine.dropped(*reason).into())).collect();
    json!({
        "event": "stats",
        "xdp": {
            "redirected": verdicts.redirected(),
            "passed": verdicts.passed(),
            "dropped": verdicts.dropped(),
            "verdicts": verdicts,
        },
        "engine": {
            "opened_from_xdp": worker.opened.xdp,
            "opened_from_udp": worker.opened.udp,
            "rx_ring": counters.xdp.received,
            "rx_socket": counters.udp.received,
            "handshakes": engine.handshakes,
            "opened": engine.opened,
            "sealed": engine.sealed,
            "dropped": dropped,
        },
        "link": counters,
    })
}

fn summary(stats: &Value) -> String {
    format!(
        "opened {} datagrams from AF_XDP and {} from UDP",
        stats["engine"]["opened_from_xdp"], stats["engine"]["opened_from_udp"]
    )
}
