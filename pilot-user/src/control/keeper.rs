//! What the control thread does: attach, bind, watch, and do it again.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use pilot_common::maps::Config;
use pilot_xsk::nic::Facts;
use pilot_xsk::{OpenError, Xsk};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::attach::{AttachError, AttachMode, Program, Steering, foreign};
use super::choose::{Attached, Datapath, Kind, attach_modes, frames, memory, socket_options, unserved};
use super::netlink::{Interface, Netlink};
use super::obstacle::Obstacle;
use super::queue::{Closed, Queue, Refusal, Socket};
use super::{Command, Numbered, Options, Order, Published, Report, XDP_MTU_MAX, xdp_log};
use crate::config::DatapathChoice;
use crate::link::counters::Verdicts;
use crate::link::next_hops::NEXT_HOPS_MAX;
use crate::link::orders::ControlEnd;
use crate::link::xdp::{Device, XdpLink};

/// Least time between two looks at the kernel's tables: on a busy host they change all the time. A peer whose way changed is
/// reached over UDP or not at all for as long.
const REFRESH_PAUSE: Duration = Duration::from_millis(50);

/// The pause is also at least so many times what the last look took, which with thousands of peers is tens of milliseconds:
/// so looking takes at most a tenth of a core.
const REFRESH_REST: u32 = 9;

/// Most time between two looks, for notices that the kernel dropped because we were slow.
const REFRESH_ALWAYS: Duration = Duration::from_secs(10);

/// Time between two looks at the device. The kernel says nothing when somebody detaches a bpf_link. Lower: system calls of an
/// idle node. Higher: it runs over UDP for as long without knowing, though nothing is lost.
const LOOK_AT_DEVICE: Duration = Duration::from_secs(1);

/// How long a stopping worker may take to give its socket back before the thread ends without it.
const STOP_PATIENCE: Duration = Duration::from_millis(200);

pub(super) struct Keeper {
    interface: String,
    options: Options,
    /// By worker.
    queues: Vec<Queue>,
    published: Published,
    netlink: Netlink,
    peers: BTreeSet<IpAddr>,
    /// The program, which all queues have in common, or why there is none.
    program: Result<Program, Refusal>,
    /// How it is attached.
    attached: Option<Attached>,
    is_down: bool,
}

impl Keeper {
    /// One link a queue, in their order.
    pub(super) fn new(
        interface: String,
        options: Options,
        program: Result<Program, AttachError>,
        links: Vec<ControlEnd>,
        published: Published,
    ) -> io::Result<Self> {
        let socket = || Closed::now("AF_XDP is not attached yet");
        let queues = options.queues.iter().zip(links).map(|(id, link)| Queue { id: *id, link, socket: socket() });
        let mut keeper = Self {
            interface,
            queues: queues.collect(),
            published,
            netlink: Netlink::open()?,
            peers: BTreeSet::new(),
            options,
            program: program.map_err(Refusal::from),
            attached: None,
            is_down: false,
        };
        keeper.peers = keeper.configured();
        Ok(keeper)
    }

    fn configured(&self) -> BTreeSet<IpAddr> {
        self.options.peers.iter().map(IpAddr::to_canonical).take(NEXT_HOPS_MAX / 2).collect()
    }

    /// Runs until it is told to stop, or its owner or all workers are gone.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut reports: mpsc::Receiver<Numbered>,
    ) {
        // When to look at the kernel's tables at the latest, and at the earliest.
        let mut refresh = Instant::now();
        let mut earliest = refresh;
        let mut look = refresh;
        loop {
            let next = self.retries().chain([refresh, look]).min().unwrap_or(refresh);
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Counters(tell)) => tell(self.counters()),
                    Some(Command::Stop) | None => break,
                },
                report = reports.recv() => match report {
                    Some((_, Report::Resolve(ip))) => {
                        if self.peers.len() < NEXT_HOPS_MAX && self.peers.insert(ip) {
                            refresh = refresh.min(earliest);
                        }
                    }
                    Some((worker, Report::Detached(link))) => self.on_detached(worker, link),
                    None => break,
                },
                gone = self.netlink.changed() => {
                    // It may be back before we look, under the same index and with our program on it; the socket is dead.
                    if self.attached.as_ref().is_some_and(|attached| gone.contains(&attached.device.ifindex)) {
                        self.recall("the device went away");
                    }
                    (refresh, look) = (refresh.min(earliest), look.min(earliest));
                }
                () = sleep_until(next) => {}
            }
            let now = Instant::now();
            if now >= refresh {
                // Once full, the set is made up anew of those that are asked for from now on; only when nothing calls for
                // haste, so that more peers than it holds do not turn it over all the time.
                if self.peers.len() == NEXT_HOPS_MAX && refresh > earliest {
                    self.peers = self.configured();
                }
                self.refresh().await;
                let done = Instant::now();
                earliest = done + REFRESH_PAUSE.max((done - now) * REFRESH_REST);
                refresh = done + REFRESH_ALWAYS;
            }
            if now >= look {
                self.look_at_device().await;
                look = Instant::now() + LOOK_AT_DEVICE;
            }
            if self.retries().any(|retry| now >= retry) {
                self.try_attach().await;
                // The workers must know the ways before the first datagram.
                refresh = refresh.min(earliest);
            }
        }
        self.stop(reports).await;
    }

    /// When to try to open sockets that are closed.
    fn retries(&self) -> impl Iterator<Item = Instant> {
        self.queues.iter().filter_map(|queue| match &queue.socket {
            Socket::Closed(closed) => closed.retry,
            Socket::Lent { .. } | Socket::Recalled { .. } => None,
        })
    }

    /// Looks at the kernel's tables: gives the workers new ways, and the program our addresses.
    async fn refresh(&mut self) {
        match self.netlink.next_hops(&self.peers).await {
            Ok(next_hops) => {
                let next_hops = Arc::new(next_hops);
                for queue in &self.queues {
                    // A worker that is behind gets the next look's.
                    let _ = queue.link.send(Order::NextHops(Arc::clone(&next_hops)));
                }
            }
            Err(error) => tracing::warn!(%error, "cannot read the routing tables"),
        }
        let local = self.local().await;
        if let (Ok(program), Some(_), Ok(local)) = (&mut self.program, &self.attached, local)
            && let Err(error) = program.set_local(&local)
        {
            tracing::warn!(%error, "cannot update our addresses");
        }
    }

    /// Looks at the device: takes the socket back if it is not what it was, and says so when it goes down or comes up. The
    /// kernel says nothing when somebody detaches a bpf_link, and a socket whose device is gone just stays silent: the
    /// device's own word is the one to trust.
    async fn look_at_device(&mut self) {
        for queue in &mut self.queues {
            queue.recall_again();
        }
        let (Ok(program), Some(attached)) = (&self.program, &self.attached) else { return };
        let id = program.id();
        let reason = match (Facts::read(&self.interface), self.netlink.interface(&self.interface).await) {
            (Ok(facts), Ok(_)) if differs(&facts, &attached.device) => "the device has changed",
            (Ok(_), Ok(Interface { programs, .. })) if !programs.contains(&id) => {
                "somebody took our XDP program off the device"
            }
            (Ok(facts), Ok(_)) => {
                // The workers find out by themselves, from what the kernel says when they send; the sockets live on.
                self.is_down = !facts.up;
                if let Some(attached) = &mut self.attached {
                    attached.device = facts;
                }
                self.publish();
                return;
            }
            _ => "the device is gone",
        };
        self.recall(reason);
    }

    /// Takes the program off and all sockets back; both are tried again.
    fn recall(&mut self, reason: &str) {
        let why = format!("{}: {reason}; it is being attached again", self.interface);
        self.detach_program();
        for queue in &mut self.queues {
            match &mut queue.socket {
                Socket::Lent { .. } => {
                    queue.socket = Socket::Recalled { told: false, why: why.clone() };
                    queue.recall_again();
                }
                Socket::Recalled { .. } => {}
                Socket::Closed(_) => queue.socket = Closed::now(&why),
            }
        }
        self.publish();
    }

    fn on_detached(&mut self, worker: usize, link: Box<XdpLink>) {
        // Unmapped and closed here, where it may take its time.
        drop(link);
        let Some(queue) = self.queues.get_mut(worker) else { return };
        match &queue.socket {
            Socket::Recalled { why, .. } => {
                queue.socket = Closed::now(why);
                self.publish();
            }
            // Unasked: the kernel said that there is no such device any more, which is the end of the other sockets too.
            Socket::Lent { .. } | Socket::Closed(_) => {
                queue.socket = Closed::now("");
                self.recall("the device is gone");
            }
        }
    }

    /// Tries to open the sockets that are due. What is in the way of the device is in the way of each of them.
    async fn try_attach(&mut self) {
        let device = self.device_with_program().await;
        let now = Instant::now();
        for worker in 0..self.queues.len() {
            let closed = match &self.queues[worker].socket {
                Socket::Closed(closed) if closed.retry.is_some_and(|retry| now >= retry) => closed.clone(),
                _ => continue,
            };
            let lent = match &device {
                Ok(device) => self.lend(worker, device).map_err(|obstacle| closed.clone().after(&obstacle.into())),
                Err(refusal) => Err(closed.after(refusal)),
            };
            self.queues[worker].socket = match lent {
                Ok(lent) => lent,
                Err(closed) => Socket::Closed(closed),
            };
        }
        self.publish();
    }

    /// The device as it is now, with our program on it.
    async fn device_with_program(&mut self) -> Result<Facts, Refusal> {
        let name = &self.interface;
        let device = Facts::read(name).map_err(|_| Obstacle::NoInterface(name.clone()))?;
        if !device.up {
            return Err(Obstacle::Down(name.clone()).into());
        }
        if device.mac == [0; 6] {
            return Err(Obstacle::NotEthernet(name.clone()).into());
        }
        if self.attached.is_none() {
            if self.options.queues.iter().all(|queue| *queue >= device.rx_queues) {
                return Err(self.no_queue(&device, 0).into());
            }
            let programs = self.netlink.interface(name).await?.programs;
            if let Some(id) = programs.first() {
                return Err(foreign(name, *id).into());
            }
            self.attach_program(device.clone()).await?;
            self.is_down = false;
        }
        Ok(device)
    }

    fn no_queue(&self, device: &Facts, worker: usize) -> Obstacle {
        Obstacle::NoQueue { interface: self.interface.clone(), active: device.rx_queues, queue: self.queues[worker].id }
    }

    /// Opens a socket for one queue and gives it to its worker.
    fn lend(&mut self, worker: usize, device: &Facts) -> Result<Socket, Obstacle> {
        let Queue { id, ref link, .. } = self.queues[worker];
        if id >= device.rx_queues {
            return Err(self.no_queue(device, worker));
        }
        let (Ok(program), Some(attached)) = (&mut self.program, &self.attached) else {
            return Err(Obstacle::WorkerBusy);
        };
        // Opened after attaching, because some drivers rebuild their queues for a program. While the queue is busy the
        // program stays: without a socket it passes everything to the kernel.
        let mut xsk = open_socket(device, id, attached.mode)?;
        let lent = Socket::Lent { zero_copy: xsk.is_zero_copy(), longest: xsk.max_received(), memory: xsk.placement() };
        // Chunks to receive into come before the first frame: XDP drops what finds none.
        xsk.refill().map_err(io::Error::from)?;
        program.set_socket(id, xsk.fd())?;
        let xdp = XdpLink::new(
            xsk,
            Device { index: device.ifindex, mac: device.mac, mtu: device.mtu as usize, local: self.options.listen },
        )?;
        link.send(Order::Attach(Box::new(xdp))).map_err(|_| Obstacle::WorkerBusy)?;
        Ok(lent)
    }

    async fn attach_program(&mut self, device: Facts) -> Result<(), Refusal> {
        let local = self.local().await?;
        let program = self.program.as_mut().map_err(|refusal| refusal.clone())?;
        let steering = Steering {
            config: Config {
                port: self.options.listen.port(),
                mtu: device.mtu.min(XDP_MTU_MAX as u32),
                allow_all: self.options.allow_from.is_empty(),
            },
            local: &local,
            allow_from: &self.options.allow_from,
        };
        let choice = self.options.attach;
        let (mode, otherwise) = attach_modes(choice, &device, self.queues.len());
        let (mode, refused) = match (attach_in(program, &self.netlink, mode, &device, &steering).await, otherwise) {
            (Err(error @ AttachError::Refused { .. }), Some(otherwise)) => {
                attach_in(program, &self.netlink, otherwise, &device, &steering).await?;
                (otherwise, Some(Obstacle::from(error).to_string()))
            }
            (attached, _) => (attached.map(|()| mode)?, None),
        };
        if xdp_log::is_wanted()
            && let Err(error) = program.set_log(true)
        {
            tracing::warn!(%error, "no log of what the XDP program does not redirect");
        }
        self.attached = Some(Attached { device, mode, choice, refused });
        Ok(())
    }

    /// The addresses that are ours: the one we listen on, or all of this host.
    async fn local(&self) -> Result<BTreeSet<IpAddr>, rtnetlink::Error> {
        match self.options.listen.ip() {
            ip if ip.is_unspecified() => self.netlink.addresses().await,
            ip => Ok(BTreeSet::from([ip])),
        }
    }

    fn counters(&self) -> Verdicts {
        self.program.as_ref().ok().and_then(|program| program.counters().ok()).unwrap_or_default()
    }

    fn detach_program(&mut self) {
        self.attached = None;
        if let Ok(program) = &mut self.program
            && let Err(error) = program.detach()
        {
            tracing::warn!(%error, "sockets of a device that is gone stay in the XDP program's map");
        }
    }

    /// Which way datagrams go now.
    fn datapath(&self) -> Datapath {
        let soon = |queue: &Queue| match &queue.socket {
            Socket::Closed(closed) => closed.soon,
            Socket::Recalled { .. } => true,
            Socket::Lent { .. } => false,
        };
        let pending = self.queues.iter().any(soon);
        let without: Vec<_> = self.queues.iter().filter_map(|queue| Some((queue.id, queue.why_not()?))).collect();
        let attached = match &self.attached {
            Some(attached) if without.len() < self.queues.len() => attached,
            _ => {
                let mut whys: Vec<_> = without.iter().map(|(_, why)| *why).collect();
                whys.dedup();
                return Datapath { pending, ..Datapath::udp(whys.join("; "), self.options.bulk_plan()) };
            }
        };
        if self.is_down {
            return Datapath::udp(Obstacle::Down(self.interface.clone()), self.options.bulk_plan());
        }
        let zero_copy = self.queues.iter().all(|queue| !matches!(queue.socket, Socket::Lent { zero_copy: false, .. }));
        let mut datapath = Datapath { pending, ..Datapath::xdp(attached, zero_copy, self.options.bulk_plan()) };
        let mut remarks: Vec<String> = Vec::new();
        for queue in &self.queues {
            let Socket::Lent { longest, memory: placement, .. } = queue.socket else { continue };
            remarks.extend(frames(&attached.device, longest).into_iter().chain(memory(&attached.device, placement)));
        }
        // The same of all queues, as a rule.
        remarks.sort();
        remarks.dedup();
        for words in remarks {
            datapath.reason += &format!("; {words}");
        }
        for (id, why) in without {
            datapath.reason += &format!("; what arrives on queue {id} goes over UDP: {why}");
        }
        let served = self.queues.iter().filter(|queue| queue.id < attached.device.rx_queues).count();
        if let Some(words) = unserved(&attached.device, served) {
            datapath.reason += &format!("; {words}");
        }
        datapath
    }

    fn publish(&self) {
        let datapath = self.datapath();
        if **self.published.datapath.load() == datapath {
            return;
        }
        let (mode, attach, reason) = (datapath.mode, datapath.attach, &datapath.reason);
        match datapath.kind {
            Kind::Xdp => tracing::info!(kind = "xdp", ?mode, ?attach, reason, "datapath"),
            Kind::Udp if self.options.datapath == DatapathChoice::Xdp => {
                tracing::warn!(kind = "udp", reason, "datapath: not the AF_XDP that the configuration asks for");
            }
            Kind::Udp => tracing::info!(kind = "udp", reason, "datapath"),
        }
        self.published.set(datapath);
    }

    async fn stop(mut self, mut reports: mpsc::Receiver<Numbered>) {
        // First the program: from here on everything reaches the UDP sockets.
        self.detach_program();
        let mut out = 0;
        for queue in self.queues.iter().filter(|queue| !matches!(queue.socket, Socket::Closed(_))) {
            // A worker that has ended has closed its socket itself.
            let _ = queue.link.send(Order::Detach);
            out += 1;
        }
        let given_back = async {
            while out > 0
                && let Some((_, report)) = reports.recv().await
            {
                if let Report::Detached(link) = report {
                    drop(link);
                    out -= 1;
                }
            }
        };
        if timeout(STOP_PATIENCE, given_back).await.is_err() {
            tracing::debug!("a worker keeps its AF_XDP socket until it ends");
        }
    }
}

/// A socket for a queue: zero-copy where the driver has it, and frames in several chunks where the MTU asks for it and they are to
/// be had.
fn open_socket(device: &Facts, queue: u32, attach: AttachMode) -> Result<Xsk, OpenError> {
    let (better, last) = socket_options(device, attach);
    for options in better {
        match Xsk::try_open(device.ifindex, queue, &options) {
            // How the kernel says that it, or the driver, has no such sockets.
            Err(OpenError::NoZeroCopy { .. } | OpenError::NoQueue { .. }) => {}
            opened => return opened,
        }
    }
    Xsk::try_open(device.ifindex, queue, &last)
}

async fn attach_in(
    program: &mut Program,
    netlink: &Netlink,
    mode: AttachMode,
    device: &Facts,
    steering: &Steering<'_>,
) -> Result<(), AttachError> {
    let attached = program.attach(&device.name, device.ifindex, mode, steering);
    // Attached nevertheless, and nothing of ours would ever take it off.
    if let Err(AttachError::NoLink) = attached
        && let Err(error) = netlink.clear_xdp(device.ifindex, mode == AttachMode::Generic).await
    {
        tracing::error!(%error, interface = device.name, "an XDP program of ours stays attached");
    }
    attached
}

/// Whether a socket made for one device is wrong for the other. Being up or down is nothing that a socket has to be made anew
/// for.
fn differs(now: &Facts, then: &Facts) -> bool {
    (now.ifindex, now.mac, now.mtu) != (then.ifindex, then.mac, then.mtu)
}
