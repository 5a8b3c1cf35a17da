//! `pilot introduce`: who is at an address, for an operator that is to say whether it becomes a peer (wire.md §3.5). The node of the
//! host asks, where one runs.

use std::net::SocketAddr;

use anyhow::{Context as _, anyhow};
use pilot_engine::identity::PublicKey;
use pilot_engine::{Endpoint, Event, Instant};
use serde_json::json;

use super::attached::{self, until};
use super::session::{self, Stop};
use super::{Failure, NodeArgs, Output, local};
use crate::config::{Config, DatapathChoice};
use crate::node::Assembly;
use crate::service::Introduced;
use crate::worker::Application;

pub(super) fn run(
    args: &NodeArgs,
    remote: SocketAddr,
    wanted: Option<PublicKey>,
    output: &Output,
) -> Result<(), Failure> {
    let mut config = Config::read(&args.config).map_err(Failure::usage)?;
    if !config.introductions {
        return Err(Failure::Usage(anyhow!("config: `introductions`: given false, allowed: true, for this command")));
    }
    config.check_endpoint("ENDPOINT", remote).map_err(Failure::usage)?;
    let asked = attached::run(args, async |node, stop| {
        tokio::select! {
            introduced = node.introduce(remote, wanted.as_ref()) => introduced.map_err(local::failure),
            () = until(stop) => Err(Failure::Interrupted),
        }
    })?;
    if let Some(introduced) = asked {
        print(&introduced, output);
        return Ok(());
    }
    let stop = Stop::on_signals()?;
    // A few datagrams, which need no more.
    (config.datapath, config.interface, config.bulk_port) = (DatapathChoice::Udp, None, None);
    config.queues.truncate(1);
    let Assembly { control: _control, seats, .. } = Assembly::start(&config, session::aeads(args)?, |_| 0)?;
    // There is a worker for each queue, and always a queue.
    let seat = seats.into_iter().next().ok_or_else(|| Failure::Failed(anyhow!("no receive queue")))?;
    stop.ring(seat.doorbell());
    let mut worker = seat.with(Asking { remote, answer: None });
    let now = worker.now();
    worker.endpoint.introduce(now, remote, wanted.map(|key| key.identity)).map_err(Failure::failed)?;
    let ended = worker.run_until(|worker| stop.is_set() || worker.application.answer.is_some());
    ended.context("link").map_err(Failure::Failed)?;
    match worker.application.answer {
        Some(Some(introduced)) => print(&introduced, output),
        Some(None) if wanted.is_some() => {
            return Err(Failure::Failed(anyhow!(
                "{remote}: no answer from this key: it is not there, or has introductions off"
            )));
        }
        Some(None) => {
            return Err(Failure::Failed(anyhow!("{remote}: no answer: nobody is there, or it has introductions off")));
        }
        None => return Err(Failure::Interrupted),
    }
    Ok(())
}

/// Says who it is, and what makes it a peer.
pub(super) fn print(introduced: &Introduced, output: &Output) {
    let Introduced { key, address, remote, accepted } = introduced;
    let (key, address) = (key.to_string(), address.to_string());
    let event =
        json!({"event": "introduced", "key": key, "address": address, "endpoint": remote, "accepted": accepted});
    output.event(&event, || {
        let standing = if *accepted { "a peer" } else { "no peer yet" };
        Some(format!(
            "{remote} is {key} ({standing}). To let it in, compare the key with what its operator says, and add:\n\
             [[peers]]\nname = \"\"\naddress = \"{address}\"\nkey = \"{key}\"\nendpoint = \"{remote}\""
        ))
    });
}

/// Waits for how it ends.
struct Asking {
    remote: SocketAddr,
    /// `Some(None)`: nobody answered.
    answer: Option<Option<Introduced>>,
}

impl Application for Asking {
    fn on_event(&mut self, _: &mut Endpoint, _: Instant, event: Event) {
        match event {
            Event::Introduced { key, address, remote, begun_here: true, accepted } if remote == self.remote => {
                self.answer = Some(Some(Introduced { key, address, remote, accepted }));
            }
            Event::NotIntroduced { remote } if remote == self.remote => self.answer = Some(None),
            _ => {}
        }
    }

    fn poll(&mut self, _: &mut Endpoint, _: Instant) -> bool {
        false
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }
}
