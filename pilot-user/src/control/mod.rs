//! The control thread: opens the sockets, brings AF_XDP up beside UDP, and keeps both fed with what the kernel knows.
//!
//! Traffic flows over UDP from the first moment. AF_XDP is tried at once and again until it is there, and again when its
//! device went away; a worker never waits for it. What a worker needs is handed over as [`Order`]s; what it finds out comes
//! back as [`Report`]s.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender};
use pilot_common::address::Prefix;
use pilot_xsk::nic::Facts;
use tokio::sync::mpsc;

use crate::config::{AttachChoice, BulkChoice, DatapathChoice};
use crate::link::counters::Verdicts;
use crate::link::orders::{Numbered, Order, Report, orders};
use crate::link::pair::PairLink;
use crate::link::udp::{Group, UdpLink, UdpOptions};

pub mod attach;
pub mod choose;
mod keeper;
pub mod netlink;
mod obstacle;
mod queue;
mod xdp_log;

use attach::{AttachError, Program};
use choose::BulkPlan;
pub use choose::Datapath;
use keeper::Keeper;

/// Reports that may wait for the control thread. A link asks again for what did not fit.
const REPORTS_MAX: usize = 256;

/// Changes of datapath that wait to be taken; more are dropped, because nobody looks. The datapath in use is known without.
const CHANGES_MAX: usize = 64;

/// MTU where no interface is configured to ask: Ethernet's.
const DEFAULT_MTU: usize = 1500;

/// Largest MTU that AF_XDP is used up to, jumbo frames': the engine builds no larger datagrams. Frames above 3822 bytes take several
/// chunks of packet memory.
pub(crate) const XDP_MTU_MAX: usize = 9000;

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
    /// How the XDP program shall be attached.
    pub attach: AttachChoice,
    /// Receive queues to serve, a worker each.
    pub queues: Vec<u32>,
    /// Whether bulk goes through the kernel's UDP.
    pub bulk: BulkChoice,
    /// The port for bulk; without it one is chosen.
    pub bulk_port: Option<u16>,
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
    Counters(Box<dyn FnOnce(Verdicts) + Send>),
    Stop,
}

/// What others than its owner ask of the control thread.
#[derive(Clone, Debug)]
pub(crate) struct Inspector {
    datapath: Arc<ArcSwap<Datapath>>,
    commands: Option<mpsc::UnboundedSender<Command>>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Counters(_) => "Counters",
            Self::Stop => "Stop",
        })
    }
}

impl Inspector {
    /// The datapath in use now, and why.
    pub(crate) fn datapath(&self) -> Arc<Datapath> {
        self.datapath.load_full()
    }

    /// Has what the XDP program decided since the start told, by the control thread; at once where there is none. Never blocks.
    pub(crate) fn xdp_counters(&self, tell: impl FnOnce(Verdicts) + Send + 'static) {
        let command = Command::Counters(Box::new(tell));
        let unsent = match &self.commands {
            Some(commands) => commands.send(command).err().map(|error| error.0),
            None => Some(command),
        };
        if let Some(Command::Counters(tell)) = unsent {
            tell(Verdicts::default());
        }
    }
}

impl Control {
    /// Opens a link per queue, which can be used at once, and starts the thread that attaches AF_XDP to them.
    ///
    /// # Errors
    /// When a socket cannot be opened, or the thread not be started. That AF_XDP cannot be had is no error: see
    /// [`Control::datapath`].
    pub fn start(options: Options) -> io::Result<(Self, Vec<PairLink>)> {
        if options.queues.is_empty() {
            let text = "queues: given none, allowed: at least one";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let (kept, reason) = match (&options.interface, options.datapath) {
            (_, DatapathChoice::Udp) => (None, "the configuration says `datapath = \"udp\"`"),
            (None, _) => (None, "no `interface` is configured: name the device that peers are reached through"),
            (Some(name), _) => (Some(name.clone()), "AF_XDP is not attached yet"),
        };
        let bulk = options.bulk != BulkChoice::Never;
        // Where AF_XDP may come, its peers' super-packets would pass it by, and ours would pass by theirs: those have a port
        // of their own. Where it never comes, the first port may as well have segmentation offload: it merges only datagrams
        // of one length that leave for one address together, which is bulk; and even where a peer's first port is steered,
        // such a packet reaches its kernel's socket whole.
        let udp = open_udp(&options, options.listen, bulk && kept.is_none())?;
        // The kernel may have chosen the port.
        let listen = udp[0].local_addr();
        let options = Options { listen, ..options };
        let second = if bulk && kept.is_some() { open_bulk(&options)? } else { Vec::new() };
        let options = Options { bulk_port: second.first().map(|link| link.local_addr().port()), ..options };
        let second = second.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let mut links: Vec<PairLink> =
            udp.into_iter().zip(second).map(|(udp, bulk)| PairLink::new(udp, bulk)).collect();
        let first = Datapath { pending: kept.is_some(), ..Datapath::udp(reason, options.bulk_plan()) };
        let datapath = Arc::new(ArcSwap::from_pointee(first));
        tracing::info!(kind = "udp", reason, "datapath");
        let (changed, changes) = crossbeam_channel::bounded(CHANGES_MAX);
        let Some(interface) = kept else { return Ok((Self { datapath, changes, thread: None }, links)) };

        let (reports, from_links) = mpsc::channel::<Numbered>(REPORTS_MAX);
        // Before the first datagram, so that the program's table has every session id there ever was (wire.md W2.5), and
        // while there are privileges for it.
        let program = load_program(&mut links);
        let mut to_links = Vec::new();
        for (worker, link) in links.iter_mut().enumerate() {
            let (to_link, link_end) = orders(worker, link.doorbell(), reports.clone());
            link.follow(link_end);
            to_links.push(to_link);
        }
        // The links have theirs: when they are gone, there is nothing to report any more.
        drop(reports);
        let (commands, from_owner) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let plan = options.bulk_plan();
        let (published, unfit) = (Published { datapath: Arc::clone(&datapath), changed }, Arc::clone(&datapath));
        let thread = std::thread::Builder::new().name("pilot-control".into()).spawn(move || {
            runtime.block_on(async {
                match Keeper::new(interface, options, program, to_links, published) {
                    Ok(keeper) => keeper.run(from_owner, from_links).await,
                    Err(error) => {
                        let reason = format!("no netlink socket, without which AF_XDP cannot be used: {error}");
                        tracing::warn!(kind = "udp", reason, "datapath");
                        unfit.store(Arc::new(Datapath::udp(reason, plan)));
                    }
                }
            });
        })?;
        Ok((Self { datapath, changes, thread: Some((commands, thread)) }, links))
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
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        // The other end waits for exactly this.
        self.inspector().xdp_counters(move |counters| _ = reply.try_send(counters));
        answer.recv().unwrap_or_default()
    }

    /// For who asks beside the owner.
    pub(crate) fn inspector(&self) -> Inspector {
        let commands = self.thread.as_ref().map(|(commands, _)| commands.clone());
        Inspector { datapath: Arc::clone(&self.datapath), commands }
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

impl Options {
    fn bulk_plan(&self) -> BulkPlan {
        BulkPlan { choice: self.bulk, port: self.bulk_port }
    }
}

/// The XDP program for these workers' links, each of which gets its part of the table of session ids.
fn load_program(links: &mut [PairLink]) -> Result<Program, AttachError> {
    let program = Program::load(links.len())?;
    for (worker, link) in links.iter_mut().enumerate() {
        link.list_sessions(program.sessions(worker)?);
    }
    Ok(program)
}

/// A UDP socket for each worker, on one port.
fn open_udp(options: &Options, listen: SocketAddr, gso: bool) -> io::Result<Vec<UdpLink>> {
    let workers = options.queues.len();
    let group = (workers > 1).then_some(Group { workers });
    if group.is_some() && listen.port() != 0 {
        // A port to be shared can be joined where another process shares it. Alone, it can be had only if nobody has it.
        drop(UdpSocket::bind(listen)?);
    }
    let (mut listen, mut links) = (listen, Vec::with_capacity(workers));
    for _ in 0..workers {
        let allow_from = options.allow_from.clone();
        let link = UdpLink::open(UdpOptions { listen, mtu: mtu(options), gso, allow_from, group })?;
        // The kernel may have chosen the port.
        listen = link.local_addr();
        links.push(link);
    }
    Ok(links)
}

/// As [`open_udp`], on the port for bulk: the configured one, or else the one after the first, or else any.
fn open_bulk(options: &Options) -> io::Result<Vec<UdpLink>> {
    let open = |port| {
        let mut listen = options.listen;
        listen.set_port(port);
        open_udp(options, listen, true)
    };
    if let Some(port) = options.bulk_port {
        return open(port).map_err(|error| io::Error::new(error.kind(), format!("`bulk_port` {port}: {error}")));
    }
    match options.listen.port().checked_add(1).map(open) {
        Some(Ok(links)) => Ok(links),
        Some(Err(_)) | None => open(0),
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
