//! `pilot doctor`: what is as it should be, what is not, and what to do about that.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use caps::Capability;
use futures_util::future::join_all;
use pilot_xsk::Options;
use pilot_xsk::nic::Facts;
use serde::Serialize;
use serde_json::{Value, json};

use super::attached::{self, until};
use super::session::{self, Stop};
use super::{Failure, NodeArgs, Output, hint, local};
use crate::api::{Code, Error, Node};
use crate::config::{Config, DatapathChoice};
use crate::control::{Control, XDP_MTU_MAX};
use crate::identity_file;
use crate::node::Assembly;
use crate::service::ECHO_PORT;

/// How long a peer may take to answer. Lower: one far away that has to be called first is said not to be there. Higher: who waits for
/// those that are not there.
const ANSWER: Duration = Duration::from_secs(5);

/// How long the datapath may take to be decided, which is what is asked for: nothing waits for it. Lower: on a busy host it is said that
/// AF_XDP is not attached yet. Higher: who waits for a driver that never answers.
const DECISION: Duration = Duration::from_secs(30);

/// What a check found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Finding {
    Good,
    /// It works, and could be better, or is to be known.
    Note,
    Bad,
}

struct Report<'a> {
    output: &'a Output,
    checks: usize,
    bad: usize,
}

impl Report<'_> {
    fn say(&mut self, check: &str, finding: Finding, words: &str, fix: Option<&str>) {
        self.checks += 1;
        self.bad += usize::from(finding == Finding::Bad);
        let event = json!({"event": "check", "check": check, "finding": finding, "words": words, "fix": fix});
        self.output.event(&event, || {
            let mark = match finding {
                Finding::Good => "good",
                Finding::Note => "note",
                Finding::Bad => "BAD ",
            };
            Some(format!("{mark}  {check}: {words}{}", fix.map_or(String::new(), |fix| format!("\n      {fix}"))))
        });
    }
}

pub(super) fn run(args: &NodeArgs, output: &Output) -> Result<(), Failure> {
    let mut report = Report { output, checks: 0, bad: 0 };
    let config = Config::read(&args.config).map_err(Failure::usage)?;
    let count = config.peers.len();
    match count {
        0 => report.say(
            "configuration",
            Finding::Note,
            "it has no peers: nobody gets an answer",
            Some("add `[[peers]]`"),
        ),
        1 => report.say("configuration", Finding::Good, "one peer", None),
        _ => report.say("configuration", Finding::Good, &format!("{count} peers"), None),
    }
    device(&config, &mut report);
    let identity = identity_file::read(&config.identity).map_err(Failure::usage)?;
    report.say("identity", Finding::Good, &identity.public_key().to_string(), None);
    let attached = attached::run(args, async |node, stop| {
        tokio::select! {
            looked = look(&node, &config, &mut report) => looked,
            () = until(stop) => Err(Failure::Interrupted),
        }
    })?;
    if attached.is_none() {
        let fix = format!("`pilot up --config {}` runs one", args.config.display());
        report.say("node", Finding::Note, "none runs with this configuration", Some(&fix));
        try_out(args, &config, &mut report)?;
    }
    let Report { checks, bad, .. } = report;
    match bad {
        0 => Ok(()),
        _ => Err(Failure::Failed(anyhow!("{bad} of {checks} checks found something wrong"))),
    }
}

/// Asks the node that runs.
async fn look(node: &Node, config: &Config, report: &mut Report<'_>) -> Result<(), Failure> {
    report.say("node", Finding::Good, &format!("it runs, and serves {}", config.local.socket.display()), None);
    let stats = node.stats().await.map_err(local::failure)?;
    datapath(&stats["datapath"], config, report);
    lost(&stats, report);
    let asked = config.peers.iter().map(async |peer| {
        let connecting = tokio::time::timeout(ANSWER, node.connect(&peer.name, ECHO_PORT));
        let late = || Error::new(Code::TimedOut, format!("no answer within {} s", ANSWER.as_secs()));
        (peer, connecting.await.unwrap_or_else(|_| Err(late())))
    });
    for (peer, connected) in join_all(asked).await {
        let check = format!("peer {}", peer.name);
        match connected {
            Ok(_) => report.say(&check, Finding::Good, "it answers", None),
            // It is there: an operator may close its port for echo.
            Err(error) if error.code == Code::Refused => report.say(&check, Finding::Good, &error.words, None),
            Err(error) => report.say(&check, Finding::Bad, &error.words, hint::about(error.code)),
        }
    }
    Ok(())
}

/// Looks how a node would run.
fn try_out(args: &NodeArgs, config: &Config, report: &mut Report<'_>) -> Result<(), Failure> {
    let stop = Stop::on_signals()?;
    // Whole: the control thread ends with the last of its links.
    let assembly = Assembly::start(config, session::aeads(args)?, |_| 0)?;
    let control = &assembly.control;
    report.say("listen", Finding::Good, &format!("{} can be had", config.listen), None);
    rights(config, report);
    decided(control, &stop)?;
    let found = serde_json::to_value(&*control.datapath()).unwrap_or_default();
    datapath(&found, config, report);
    Ok(())
}

/// Waits until AF_XDP is attached, or is not to be.
fn decided(control: &Control, stop: &Stop) -> Result<(), Failure> {
    let until = Instant::now() + DECISION;
    while control.datapath().pending && Instant::now() < until {
        if stop.is_set() {
            return Err(Failure::Interrupted);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What AF_XDP is to be had on: a large MTU costs memory, and one beyond what it is used up to keeps it away.
fn device(config: &Config, report: &mut Report<'_>) {
    let Some(name) = config.interface.as_deref().filter(|_| config.datapath != DatapathChoice::Udp) else { return };
    match Facts::read(name) {
        Err(error) => {
            let finding = if config.datapath == DatapathChoice::Xdp { Finding::Bad } else { Finding::Note };
            report.say("interface", finding, &format!("{name}: {error}"), Some("`ip link` lists those there are"));
        }
        Ok(facts) if facts.mtu as usize > XDP_MTU_MAX => {
            let words = format!("{name} has an MTU of {}, AF_XDP is used up to {XDP_MTU_MAX}", facts.mtu);
            let fix = format!("`ip link set {name} mtu {XDP_MTU_MAX}`");
            report.say("mtu", Finding::Note, &words, Some(&fix));
        }
        Ok(facts) if Options::for_mtu(facts.mtu).chunks_per_frame > 1 => {
            let words = format!(
                "{name} has an MTU of {}: a frame takes several chunks of packet memory, which needs Linux 6.6",
                facts.mtu
            );
            report.say("mtu", Finding::Note, &words, None);
        }
        Ok(facts) => report.say("mtu", Finding::Good, &format!("{name} has an MTU of {}", facts.mtu), None),
    }
}

/// Which of the rights that AF_XDP takes this process has not, by name. A node that runs has said so in its datapath's reason.
fn rights(config: &Config, report: &mut Report<'_>) {
    if config.interface.is_none() || config.datapath == DatapathChoice::Udp {
        return;
    }
    let wanted = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW, Capability::CAP_BPF, Capability::CAP_PERFMON];
    let has = |capability: &Capability| caps::has_cap(None, caps::CapSet::Effective, *capability).unwrap_or(false);
    let missing: Vec<String> = wanted.iter().filter(|it| !has(it)).map(ToString::to_string).collect();
    if missing.is_empty() {
        return report.say("rights", Finding::Good, "all that AF_XDP takes", None);
    }
    let missing = missing.join(", ");
    let finding = if config.datapath == DatapathChoice::Xdp { Finding::Bad } else { Finding::Note };
    let fix = format!(
        "`setcap {}=ep` for the program, or `AmbientCapabilities={}` for its systemd unit; `datapath = \"udp\"` does without",
        missing.to_lowercase().replace(", ", ","),
        missing.replace(',', "")
    );
    report.say("rights", finding, &format!("AF_XDP takes more than this process has: {missing}"), Some(&fix));
}

/// What a node that runs has lost on this host, which makes it slow without an error.
fn lost(stats: &Value, report: &mut Report<'_>) {
    const FIXES: [(&str, &str); 5] = [
        (
            "too_big",
            "a device or path has a smaller MTU than it had: `ip link` and `ip route get` say what there is now",
        ),
        ("unreachable", "`ip route get` for the peer's endpoint, and `ip neighbour`, say whether there is a way to it"),
        ("denied", "a firewall of this host refuses it: let UDP leave from the node's ports (`listen`, `bulk_port`)"),
        (
            "no_room",
            "rings or socket buffers were full: raise `net.core.wmem_max` and `rmem_max`, or give workers `cores` of their own",
        ),
        ("device_gone", "the device was replaced while it was in use"),
    ];
    let of = |reason: &str| {
        ["xdp", "udp", "bulk"].iter().filter_map(|way| stats["link"][way]["lost"][reason].as_u64()).sum()
    };
    let mut any = false;
    for (reason, fix) in FIXES {
        let count: u64 = of(reason);
        if count > 0 {
            any = true;
            let words = format!("{count} datagrams did not leave this host: {}", reason.replace('_', " "));
            report.say("losses", Finding::Note, &words, Some(fix));
        }
    }
    if !any {
        report.say("losses", Finding::Good, "every datagram left this host", None);
    }
    if stats["datapath"]["kind"] == "xdp" {
        rings(stats, report);
    }
    let strangers = stats["dropped"]["unknown_peer"].as_u64().unwrap_or(0);
    if strangers > 0 {
        let words = format!("{strangers} handshakes of nodes that are no peers were dropped");
        report.say(
            "strangers",
            Finding::Note,
            &words,
            Some("`[[peers]]` in the configuration lets a node in, with its key"),
        );
    }
}

/// Frames that arrived while their worker did not come round to take any.
fn rings(stats: &Value, report: &mut Report<'_>) {
    let of = |name: &str| stats["link"]["rings"][name].as_u64().unwrap_or(0);
    let found = match (of("fill_empty"), of("rx_full")) {
        (0, 0) => return report.say("rings", Finding::Good, "there was room for every frame that arrived", None),
        (empty, 0) => format!("{empty} times the kernel found no chunk to receive a frame into"),
        (0, full) => format!("{full} frames were lost because the RX ring was full"),
        (empty, full) => {
            format!("{empty} times the kernel found no chunk to receive a frame into, and {full} frames a full RX ring")
        }
    };
    // A driver that has zero-copy looks once before there can be any.
    let or = if stats["datapath"]["mode"] == "copy" { "" } else { ", or it was attached just then" };
    let words = format!("{found}: the worker did not come round in time{or}");
    let fix = "give workers `cores` of their own; with more `queues` there are more workers";
    report.say("rings", Finding::Note, &words, Some(fix));
}

fn datapath(found: &Value, config: &Config, report: &mut Report<'_>) {
    let text = |name: &str| found[name].as_str().unwrap_or("?").to_owned();
    let is_xdp = found["kind"] == "xdp";
    let finding = match config.datapath {
        _ if is_xdp => Finding::Good,
        DatapathChoice::Udp => Finding::Good,
        DatapathChoice::Xdp => Finding::Bad,
        DatapathChoice::Auto => Finding::Note,
    };
    let mode = if is_xdp { format!("AF_XDP, {}, {}", text("mode"), text("attach")) } else { "UDP".to_owned() };
    // The reason names what to do, where there is something.
    report.say("datapath", finding, &format!("{mode}: {}", text("reason")), None);
    if is_xdp && found["mode"] == "copy" {
        let words =
            "the kernel copies each frame: zero-copy is to be had with a native program on a driver that has it";
        report.say("copy", Finding::Note, words, Some("`pilot up` takes it by itself where there is; veth has none"));
    }
    if is_xdp && config.allow_from.is_empty() {
        let words = "firewall rules of this host do not see what comes by AF_XDP, and everyone may send to the node";
        report.say("allow_from", Finding::Note, words, Some("`allow_from` in the configuration says who may"));
    }
}
