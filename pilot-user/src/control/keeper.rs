//! What the control thread does: attach, bind, watch, and do it again.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use pilot_common::maps::Config;
use pilot_xsk::Xsk;
use pilot_xsk::nic::Facts;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::attach::{AttachError, AttachMode, Attachment, Steering, foreign};
use super::choose::{Datapath, Kind, prefers_native, socket_mode};
use super::netlink::{Interface, Netlink};
use super::obstacle::Obstacle;
use super::{Command, Numbered, Options, Order, Published, Report, xdp_log};
use crate::config::DatapathChoice;
use crate::link::counters::Verdicts;
use crate::link::next_hops::NEXT_HOPS_MAX;
use crate::link::orders::ControlEnd;
use crate::link::xdp::{Device, XdpLink};

/// Pause between tries while AF_XDP is likely to come soon: a queue whose last socket was just closed is busy for 40 ms on
/// veth, and up to 2 s with some drivers.
const RETRY_SOON: Duration = Duration::from_millis(100);

/// How long after the first failure a try is likely to succeed soon.
const SOON: Duration = Duration::from_secs(3);

/// Pause between later tries: what they wait for is an operator's doing, of which netlink tells only part.
const RETRY_LATER: Duration = Duration::from_secs(1);

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

/// The program on its device, with what was true of both when it was attached.
struct Attached {
    program: Attachment,
    device: Facts,
    mode: AttachMode,
    /// Why native mode was not to be had, where it was tried.
    refused: Option<String>,
}

/// Where AF_XDP stands.
enum Socket {
    /// Not open; to be tried at this time, if ever. The other time is that of the first failure.
    Closed { retry: Option<Instant>, since: Instant },
    /// A worker has it, and datagrams go this way while the device is up.
    Lent(Datapath),
    /// A worker was told to give it back.
    Recalled,
}

pub(super) struct Keeper {
    interface: String,
    options: Options,
    links: Vec<ControlEnd>,
    published: Published,
    netlink: Netlink,
    peers: BTreeSet<IpAddr>,
    attached: Option<Attached>,
    socket: Socket,
    /// Counted by programs that are no longer attached.
    former: Verdicts,
}

impl Keeper {
    pub(super) fn new(
        interface: String,
        options: Options,
        links: Vec<ControlEnd>,
        published: Published,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let mut keeper = Self {
            interface,
            links,
            published,
            netlink: Netlink::open()?,
            peers: BTreeSet::new(),
            options,
            attached: None,
            socket: Socket::Closed { retry: Some(now), since: now },
            former: Verdicts::default(),
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
            let next = match self.socket {
                Socket::Closed { retry: Some(retry), .. } => retry.min(refresh),
                _ => refresh.min(look),
            };
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Counters(reply)) => {
                        // The asker may have gone meanwhile.
                        let _ = reply.try_send(self.counters());
                    }
                    Some(Command::Stop) | None => break,
                },
                report = reports.recv() => match report {
                    Some((_, Report::Resolve(ip))) => {
                        if self.peers.len() < NEXT_HOPS_MAX && self.peers.insert(ip) {
                            refresh = refresh.min(earliest);
                        }
                    }
                    Some((_, Report::Detached(link))) => self.on_detached(link),
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
            if let Socket::Closed { retry: Some(retry), since } = self.socket
                && now >= retry
            {
                self.try_attach(since).await;
                // The workers must know the ways before the first datagram.
                refresh = refresh.min(earliest);
            }
        }
        self.stop(reports).await;
    }

    /// Looks at the kernel's tables: gives the workers new ways, and the program our addresses.
    async fn refresh(&mut self) {
        match self.netlink.next_hops(&self.peers).await {
            Ok(next_hops) => {
                let next_hops = Arc::new(next_hops);
                for link in &self.links {
                    // A worker that is behind gets the next look's.
                    let _ = link.send(Order::NextHops(Arc::clone(&next_hops)));
                }
            }
            Err(error) => tracing::warn!(%error, "cannot read the routing tables"),
        }
        let local = self.local().await;
        if let (Some(attached), Ok(local)) = (&mut self.attached, local)
            && let Err(error) = attached.program.set_local(&local)
        {
            tracing::warn!(%error, "cannot update our addresses");
        }
    }

    /// Looks at the device: takes the socket back if it is not what it was, and says so when it goes down or comes up. The
    /// kernel says nothing when somebody detaches a bpf_link, and a socket whose device is gone just stays silent: the
    /// device's own word is the one to trust.
    async fn look_at_device(&mut self) {
        let Some(attached) = &self.attached else {
            if matches!(self.socket, Socket::Lent(_)) {
                self.recall("a worker did not take the order to give its socket back");
            }
            return;
        };
        let program = attached.program.program_id();
        let reason = match (Facts::read(&self.interface), self.netlink.interface(&self.interface).await) {
            (Ok(facts), Ok(_)) if differs(&facts, &attached.device) => "the device has changed",
            (Ok(_), Ok(Interface { programs, .. })) if !programs.contains(&program) => {
                "somebody took our XDP program off the device"
            }
            (Ok(facts), Ok(_)) => {
                // The worker finds out by itself, from what the kernel says when it sends; the socket lives on.
                match &self.socket {
                    Socket::Lent(datapath) if facts.up => self.publish(datapath.clone()),
                    Socket::Lent(_) => self.publish(Datapath::udp(Obstacle::Down(self.interface.clone()))),
                    Socket::Closed { .. } | Socket::Recalled => {}
                }
                return;
            }
            _ => "the device is gone",
        };
        self.recall(reason);
    }

    /// Takes the program off and the socket back; both are tried again.
    fn recall(&mut self, reason: &str) {
        let reason = format!("{}: {reason}; it is being attached again", self.interface);
        self.publish(Datapath { pending: true, ..Datapath::udp(reason) });
        self.detach_program();
        match &mut self.socket {
            // Behind with its orders: the next look tells it again.
            Socket::Lent(_) if !self.links.iter().all(|link| link.send(Order::Detach).is_ok()) => {}
            Socket::Lent(_) | Socket::Recalled => self.socket = Socket::Recalled,
            Socket::Closed { retry, .. } => *retry = Some(Instant::now()),
        }
    }

    fn on_detached(&mut self, link: Box<XdpLink>) {
        // Unmapped and closed here, where it may take its time.
        drop(link);
        if matches!(self.socket, Socket::Lent(_)) {
            self.detach_program();
            self.publish(Datapath::udp(format!("{}: the device is gone; it is looked for", self.interface)));
        }
        let now = Instant::now();
        self.socket = Socket::Closed { retry: Some(now), since: now };
    }

    async fn try_attach(&mut self, since: Instant) {
        match self.attach().await {
            Ok(datapath) => {
                self.socket = Socket::Lent(datapath.clone());
                self.publish(datapath);
            }
            Err(obstacle) => {
                let now = Instant::now();
                let soon = now < since + SOON;
                let retry = (!obstacle.is_permanent()).then_some(now + if soon { RETRY_SOON } else { RETRY_LATER });
                self.socket = Socket::Closed { retry, since };
                self.publish(Datapath { pending: soon && retry.is_some(), ..Datapath::udp(obstacle) });
            }
        }
    }

    async fn attach(&mut self) -> Result<Datapath, Obstacle> {
        let name = &self.interface;
        let queue = self.options.queues[0];
        let device = Facts::read(name).map_err(|_| Obstacle::NoInterface(name.clone()))?;
        if !device.up {
            return Err(Obstacle::Down(name.clone()));
        }
        if device.mac == [0; 6] {
            return Err(Obstacle::NotEthernet(name.clone()));
        }
        if queue >= device.rx_queues {
            return Err(Obstacle::NoQueue { interface: name.clone(), active: device.rx_queues, queue });
        }
        if self.attached.is_none() {
            let programs = self.netlink.interface(name).await?.programs;
            if let Some(id) = programs.first() {
                return Err(foreign(name, *id).into());
            }
            self.attached = Some(self.attach_program(device.clone()).await?);
        }
        let Some(attached) = &mut self.attached else { return Err(Obstacle::WorkerBusy) };
        // Opened after attaching, because some drivers rebuild their queues for a program. While the queue is busy the
        // program stays: without a socket it passes everything to the kernel.
        let options =
            pilot_xsk::Options { mode: socket_mode(&device, attached.mode), ..pilot_xsk::Options::for_mtu(device.mtu) };
        let mut xsk = Xsk::try_open(device.ifindex, queue, &options)?;
        let datapath = Datapath::xdp(&device, attached.mode, xsk.is_zero_copy(), attached.refused.clone());
        // Chunks to receive into come before the first frame: XDP drops what finds none.
        xsk.refill().map_err(io::Error::from)?;
        attached.program.set_socket(queue, xsk.fd())?;
        let link = XdpLink::new(
            xsk,
            Device { index: device.ifindex, mac: device.mac, mtu: device.mtu as usize, local: self.options.listen },
        )?;
        match self.links[0].send(Order::Attach(Box::new(link))) {
            Ok(()) => Ok(datapath),
            Err(_) => Err(Obstacle::WorkerBusy),
        }
    }

    async fn attach_program(&self, device: Facts) -> Result<Attached, Obstacle> {
        let local = self.local().await?;
        let steering = Steering {
            config: Config {
                port: self.options.listen.port(),
                mtu: device.mtu,
                allow_all: self.options.allow_from.is_empty(),
            },
            local: &local,
            allow_from: &self.options.allow_from,
        };
        let mut refused = None;
        if prefers_native(&device) {
            match self.attach_in(AttachMode::Native, &device, &steering).await {
                Ok(program) => return Ok(Attached { program, device, mode: AttachMode::Native, refused: None }),
                Err(error @ AttachError::Refused { .. }) => refused = Some(error.to_string()),
                Err(error) => return Err(error.into()),
            }
        }
        let program = self.attach_in(AttachMode::Generic, &device, &steering).await?;
        Ok(Attached { program, device, mode: AttachMode::Generic, refused })
    }

    async fn attach_in(
        &self,
        mode: AttachMode,
        device: &Facts,
        steering: &Steering<'_>,
    ) -> Result<Attachment, AttachError> {
        let mut attached = Attachment::attach(&device.name, device.ifindex, mode, steering);
        // Attached nevertheless, and nothing of ours would ever take it off.
        if let Err(AttachError::NoLink) = attached
            && let Err(error) = self.netlink.clear_xdp(device.ifindex, mode == AttachMode::Generic).await
        {
            tracing::error!(%error, interface = device.name, "an XDP program of ours stays attached");
        }
        if let Ok(program) = &mut attached
            && xdp_log::is_wanted()
            && let Err(error) = program.set_log(true)
        {
            tracing::warn!(%error, "no log of what the XDP program does not redirect");
        }
        attached
    }

    /// The addresses that are ours: the one we listen on, or all of this host.
    async fn local(&self) -> Result<BTreeSet<IpAddr>, rtnetlink::Error> {
        match self.options.listen.ip() {
            ip if ip.is_unspecified() => self.netlink.addresses().await,
            ip => Ok(BTreeSet::from([ip])),
        }
    }

    fn counters(&self) -> Verdicts {
        let mut sum = self.former;
        if let Some(attached) = &self.attached {
            sum += attached.program.counters().unwrap_or_default();
        }
        sum
    }

    fn detach_program(&mut self) {
        self.former = self.counters();
        self.attached = None;
    }

    fn publish(&self, datapath: Datapath) {
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
        // First the program: from here on everything reaches the UDP socket.
        self.detach_program();
        if !matches!(self.socket, Socket::Lent(_) | Socket::Recalled) {
            return;
        }
        for link in &self.links {
            // A worker that has ended has closed its socket itself.
            let _ = link.send(Order::Detach);
        }
        let given_back = async {
            while let Some((_, report)) = reports.recv().await {
                if let Report::Detached(link) = report {
                    drop(link);
                    break;
                }
            }
        };
        if timeout(STOP_PATIENCE, given_back).await.is_err() {
            tracing::debug!("the worker keeps its AF_XDP socket until it ends");
        }
    }
}

/// Whether a socket made for one device is wrong for the other. Being up or down is nothing that a socket has to be made anew
/// for.
fn differs(now: &Facts, then: &Facts) -> bool {
    (now.ifindex, now.mac, now.mtu) != (then.ifindex, then.mac, then.mtu)
}
