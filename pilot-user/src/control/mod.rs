//! The control thread: opens the sockets, brings AF_XDP up beside UDP, and keeps both fed with what the kernel knows.
//!
//! Traffic flows over UDP from the first moment. AF_XDP is tried at once and again until it is there, and again when its
//! device went away; a worker never waits for it. What a worker needs is handed over as [`Order`]s; what it finds out comes
//! back as [`Report`]s.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender};
use pilot_common::address::Prefix;
use pilot_xsk::nic::Facts;
use tokio::sync::mpsc;

use crate::config::DatapathChoice;
use crate::link::counters::Verdicts;
use crate::link::orders::{Numbered, Order, Report, orders};
use crate::link::pair::PairLink;
use crate::link::udp::{UdpLink, UdpOptions};

pub mod attach;
pub mod choose;
mod keeper;
pub mod netlink;
mod obstacle;
mod xdp_log;

pub use choose::Datapath;
use keeper::Keeper;

/// Reports that may wait for the control thread. A link asks again for what did not fit.
const REPORTS_MAX: usize = 256;

/// Changes of datapath that wait to be taken; more are dropped, because nobody looks. The datapath in use is known without.
const CHANGES_MAX: usize = 64;

/// MTU where no interface is configured to ask: Ethernet's.
const DEFAULT_MTU: usize = 1500;

/// Largest MTU whose frames fit one chunk of packet memory: 4096 bytes, less the 256 that the kernel keeps and a tagged
/// Ethernet header. With a larger one, peers would probe for sizes that AF_XDP drops on arrival.
const XDP_MTU_MAX: usize = 4096 - 256 - 18;

/// MTU of Linux's loopback device.
const LOOPBACK_MTU: usize = 65_536;

/// What the control thread is to bring up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The device for AF_XDP.
    pub interface: Option<String>,
    /// Where to receive.
    pub listen: SocketAddr,
    /// Which way the operator wants datagrams to go.
    pub datapath: DatapathChoice,
    /// Receive queues to serve, a worker each.
    pub queues: Vec<u32>,
    /// Who may send to us; empty: everyone.
    pub allow_from: Vec<Prefix>,
    /// Peers that will be talked to; others are found out about when a worker first sends to them.
    pub peers: Vec<IpAddr>,
}

/// A running control thread. Dropping it detaches AF_XDP and ends the thread.
pub struct Control {
    datapath: Arc<ArcSwap<Datapath>>,
    changes: Receiver<Arc<Datapath>>,
    /// `None` where there is nothing to control: the operator wants UDP.
    thread: Option<(mpsc::UnboundedSender<Command>, JoinHandle<()>)>,
}

/// Where the control thread says which datapath is in use.
struct Published {
    datapath: Arc<ArcSwap<Datapath>>,
    changed: Sender<Arc<Datapath>>,
}

impl Published {
    fn set(&self, datapath: Datapath) {
        let datapath = Arc::new(datapath);
        self.datapath.store(Arc::clone(&datapath));
        // Full: nobody takes them.
        let _ = self.changed.try_send(datapath);
    }
}

enum Command {
    Counters(std::sync::mpsc::SyncSender<Verdicts>),
    Stop,
}

impl Control {
    /// Opens a link per queue, which can be used at once, and starts the thread that attaches AF_XDP to them.
    ///
    /// # Errors
    /// When a socket cannot be opened, or the thread not be started. That AF_XDP cannot be had is no error: see
    /// [`Control::datapath`].
    pub fn start(options: Options) -> io::Result<(Self, Vec<PairLink>)> {
        if options.queues.len() != 1 {
            let text = format!("queues: given {:?}, allowed: exactly one", options.queues);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let udp = UdpLink::open(UdpOptions {
            listen: options.listen,
            mtu: mtu(&options),
            gso: options.datapath == DatapathChoice::Udp || options.interface.is_none(),
            allow_from: options.allow_from.clone(),
            group: None,
        })?;
        // The kernel may have chosen the port.
        let options = Options { listen: udp.local_addr(), ..options };
        let mut link = PairLink::new(udp, None);
        let (kept, reason) = match (&options.interface, options.datapath) {
            (_, DatapathChoice::Udp) => (None, "the configuration says `datapath = \"udp\"`"),
            (None, _) => (None, "no `interface` is configured: name the device that peers are reached through"),
            (Some(name), _) => (Some(name.clone()), "AF_XDP is not attached yet"),
        };
        let datapath = Arc::new(ArcSwap::from_pointee(Datapath { pending: kept.is_some(), ..Datapath::udp(reason) }));
        tracing::info!(kind = "udp", reason, "datapath");
        let (changed, changes) = crossbeam_channel::bounded(CHANGES_MAX);
        let Some(interface) = kept else { return Ok((Self { datapath, changes, thread: None }, vec![link])) };

        let (reports, from_links) = mpsc::channel::<Numbered>(REPORTS_MAX);
        let (to_link, link_end) = orders(0, link.doorbell(), reports);
        link.follow(link_end);
        let (commands, from_owner) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let (published, unfit) = (Published { datapath: Arc::clone(&datapath), changed }, Arc::clone(&datapath));
        let thread = std::thread::Builder::new().name("pilot-control".into()).spawn(move || {
            runtime.block_on(async {
                match Keeper::new(interface, options, vec![to_link], published) {
                    Ok(keeper) => keeper.run(from_owner, from_links).await,
                    Err(error) => {
                        let reason = format!("no netlink socket, without which AF_XDP cannot be used: {error}");
                        tracing::warn!(kind = "udp", reason, "datapath");
                        unfit.store(Arc::new(Datapath::udp(reason)));
                    }
                }
            });
        })?;
        Ok((Self { datapath, changes, thread: Some((commands, thread)) }, vec![link]))
    }

    /// The datapath in use now, and why.
    pub fn datapath(&self) -> Arc<Datapath> {
        self.datapath.load_full()
    }

    /// The oldest change of datapath that was not taken yet, however short it lasted.
    pub fn take_change(&self) -> Option<Arc<Datapath>> {
        self.changes.try_recv().ok()
    }

    /// What the XDP program decided since the start, over all times it was attached.
    pub fn xdp_counters(&self) -> Verdicts {
        let Some((commands, _)) = &self.thread else { return Verdicts::default() };
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        match commands.send(Command::Counters(reply)) {
            Ok(()) => answer.recv().unwrap_or_default(),
            Err(_) => Verdicts::default(),
        }
    }

    /// Detaches AF_XDP and waits for the thread to end; as dropping does.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some((commands, thread)) = self.thread.take() {
            // An error means that the thread has ended already.
            let _ = commands.send(Command::Stop);
            if thread.join().is_err() {
                tracing::error!("the control thread panicked");
            }
        }
    }
}

fn mtu(options: &Options) -> usize {
    let facts = options.interface.as_deref().and_then(|name| Facts::read(name).ok());
    match facts {
        Some(facts) if options.datapath == DatapathChoice::Udp => facts.mtu as usize,
        Some(facts) => (facts.mtu as usize).min(XDP_MTU_MAX),
        None if options.listen.ip().is_loopback() => LOOPBACK_MTU,
        None => DEFAULT_MTU,
    }
}
