//! The XDP program: loaded, told what is ours, attached by bpf_link so that it goes when this process goes.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, PerCpuArray, XskMap};
use aya::programs::links::FdLink;
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use nix::errno::Errno;
use pilot_common::address::{Address, Prefix};
use pilot_common::maps::{self, AllowValue, Config, ConfigWords, Limits, Present, allow_value};
use pilot_common::stats::COUNTERS;
use pilot_xsk::SharedBits;
use serde::Serialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::xdp_log;
use crate::link::counters::Verdicts;

/// The program as it was built from `pilot-ebpf` (`cargo xtask ebpf`).
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../pilot-ebpf/dist/pilot.bpf.o");

/// Words of one worker in the table of session ids.
const WORKER_WORDS: usize = (maps::WORKER_SESSIONS / maps::WORD_SESSIONS) as usize;

/// How a program is attached to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// In the driver, before there is a socket buffer.
    Native,
    /// In the network stack, on any device.
    Generic,
}

/// Why the program is not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// EPERM.
    #[error(
        "no privilege to load an XDP program: run as root, or grant \
         `setcap cap_bpf,cap_perfmon,cap_net_admin,cap_net_raw,cap_ipc_lock+ep` to the binary"
    )]
    NotPermitted,
    /// Somebody else's program is there.
    #[error(
        "{interface} has another XDP program, `{name}` (id {id}), which is left alone: detach it \
         (`bpftool net`, `bpftool link` and `ip link` show who put it there), or use another interface"
    )]
    Foreign {
        /// The device.
        interface: String,
        /// The program's name, if it can be found out.
        name: String,
        /// The program's id.
        id: u32,
    },
    /// The device refused this mode.
    #[error("{interface} refused an XDP program in {mode:?} mode: {source}")]
    Refused {
        /// The device.
        interface: String,
        /// The mode.
        mode: AttachMode,
        /// What the kernel said.
        source: Errno,
    },
    /// The kernel attached it in a way that would outlive this process.
    #[error("this kernel attaches XDP programs only through netlink, where they outlive a crash: Linux 5.9 is needed")]
    NoLink,
    /// The object or the kernel is not what we expect.
    #[error("cannot {step}: {source}")]
    Program {
        /// What was being done.
        step: &'static str,
        /// What went wrong.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl AttachError {
    /// Whether only a change of this process's rights or of the kernel can help.
    pub(super) fn is_permanent(&self) -> bool {
        matches!(self, Self::NotPermitted | Self::NoLink | Self::Program { .. })
    }
}

/// What the program must know.
#[derive(Clone, Debug)]
pub struct Steering<'a> {
    /// Our port and the device's MTU, and whether everyone may send.
    pub config: Config,
    /// Our addresses.
    pub local: &'a BTreeSet<IpAddr>,
    /// Who may send, unless everyone may.
    pub allow_from: &'a [Prefix],
}

/// The program, loaded once with its maps, and attached to a device or not. Dropping it detaches.
pub struct Program {
    ebpf: Ebpf,
    id: u32,
    config: Config,
    /// The reader of the program's log, once there was one to read; it ends with this.
    log_reader: JoinSet<()>,
    /// Its descriptor is what keeps the program attached, and it is closed by the kernel however this process ends.
    link: Option<FdLink>,
}

impl Program {
    /// Loads the program for a node of so many workers; it steers nothing yet.
    ///
    /// # Errors
    /// When there is no right or no memory, the table of session ids being 2 MiB a worker, or the kernel refuses the program.
    pub fn load(workers: usize) -> Result<Self, AttachError> {
        let words = u32::try_from(workers * WORKER_WORDS).map_err(program_error("make the table of session ids"))?;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(maps::SESSIONS, words)
            .load(OBJECT)
            .map_err(program_error("load the XDP object"))?;
        let program = xdp(&mut ebpf)?;
        program.load().map_err(program_error("load the XDP program"))?;
        let id = program.info().map_err(program_error("ask for the XDP program's id"))?.id();
        let config = Config { port: 0, mtu: 0, allow_all: false };
        Ok(Self { ebpf, id, config, log_reader: JoinSet::new(), link: None })
    }

    /// The session ids of one worker (wire.md W2.5), to be given to its link. They stay when the program is detached and
    /// attached again.
    ///
    /// # Errors
    /// When the kernel refuses to map them, as it does for more workers than the program was loaded for.
    pub fn sessions(&self, worker: usize) -> Result<SharedBits, AttachError> {
        let Some(Map::Array(map)) = self.ebpf.map(maps::SESSIONS) else { return Err(missing(maps::SESSIONS)) };
        SharedBits::map(map.fd().as_fd(), worker * WORKER_WORDS, WORKER_WORDS)
            .map_err(program_error("map the table of session ids"))
    }

    /// Tells the program what is ours, and only then attaches it to the device with this index, to no other any more.
    ///
    /// # Errors
    /// See [`AttachError`]. [`AttachError::Foreign`] is for [`foreign`] to find: here the kernel only says EBUSY.
    pub fn attach(
        &mut self,
        interface: &str,
        index: u32,
        mode: AttachMode,
        steering: &Steering<'_>,
    ) -> Result<(), AttachError> {
        self.detach()?;
        self.config = steering.config;
        fill(&mut self.ebpf, steering)?;
        let xdp_mode = match mode {
            AttachMode::Native => XdpMode::Driver,
            AttachMode::Generic => XdpMode::Skb,
        };
        let program = xdp(&mut self.ebpf)?;
        let link = program.attach_to_if_index(index, xdp_mode).map_err(|error| match errno(&error) {
            Some(Errno::EPERM | Errno::EACCES) => AttachError::NotPermitted,
            Some(source) => AttachError::Refused { interface: interface.to_owned(), mode, source },
            None => AttachError::Program { step: "attach the XDP program", source: error.into() },
        })?;
        let link = program.take_link(link).map_err(program_error("take the XDP link"))?;
        // aya falls back to netlink when the kernel answers EINVAL; such a link has no descriptor.
        self.link = Some(FdLink::try_from(link).map_err(|_| AttachError::NoLink)?);
        Ok(())
    }

    /// Takes the program off its device, and forgets the sockets: on the next device they would swallow what arrives.
    ///
    /// # Errors
    /// When the kernel refuses to clear the map of sockets; the program is off nevertheless.
    pub fn detach(&mut self) -> Result<(), AttachError> {
        if self.link.take().is_none() {
            return Ok(());
        }
        let step = "forget the AF_XDP sockets";
        let map = self.ebpf.map_mut(maps::XSKS).ok_or_else(|| missing(maps::XSKS))?;
        let mut sockets = XskMap::try_from(map).map_err(program_error(step))?;
        for queue in 0..sockets.len() {
            match sockets.unset(queue).map_err(|error| (errno(&error), error)) {
                // There was none.
                Ok(()) | Err((Some(Errno::ENOENT), _)) => {}
                Err((_, error)) => return Err(program_error(step)(error)),
            }
        }
        Ok(())
    }

    /// The kernel's number of the program.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Redirects what arrives on `queue` to a socket from now on.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn set_socket(&mut self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), AttachError> {
        let map = self.ebpf.map_mut(maps::XSKS).ok_or_else(|| missing(maps::XSKS))?;
        XskMap::try_from(map)
            .and_then(|mut sockets| sockets.set(queue, socket.as_raw_fd(), 0))
            .map_err(program_error("put the socket into the XDP program's map"))
    }

    /// Replaces the addresses that are ours.
    ///
    /// # Errors
    /// When the kernel refuses, or there are more than [`maps::MAX_LOCAL`].
    pub fn set_local(&mut self, local: &BTreeSet<IpAddr>) -> Result<(), AttachError> {
        set_local(&mut self.ebpf, local)
    }

    /// Whether the program logs what is sent to our port and not redirected, from now on; at first it does not. The lines
    /// are `tracing` events at level DEBUG, made by a task of the tokio runtime that this is called in.
    ///
    /// # Errors
    /// When the kernel refuses, or to switch it on outside of a runtime.
    ///
    /// # Panics
    /// When it is switched on in a runtime without I/O.
    pub fn set_log(&mut self, on: bool) -> Result<(), AttachError> {
        if on && self.log_reader.is_empty() {
            let step = "read the XDP program's log";
            let runtime = Handle::try_current().map_err(program_error(step))?;
            let ring = EbpfLogger::init_with_logger(&mut self.ebpf, xdp_log::ToTracing).map_err(program_error(step))?;
            #[allow(
                deprecated,
                reason = "its successors are unsafe, for types whose descriptor changes; a logger keeps its ring"
            )]
            let ring = AsyncFd::with_interest(ring, Interest::READABLE).map_err(program_error(step))?;
            self.log_reader.spawn_on(xdp_log::read(ring), &runtime);
        }
        configure(&mut self.ebpf, self.config, on)
    }

    /// What the program decided so far, over all CPUs.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn counters(&self) -> Result<Verdicts, AttachError> {
        let map = self.ebpf.map(maps::COUNTERS).ok_or_else(|| missing(maps::COUNTERS))?;
        let step = "read the XDP program's counters";
        let counters: PerCpuArray<_, u64> = PerCpuArray::try_from(map).map_err(program_error(step))?;
        let mut verdicts = Verdicts([0; COUNTERS]);
        for (index, sum) in verdicts.0.iter_mut().enumerate() {
            *sum = counters.get(&(index as u32), 0).map_err(program_error(step))?.iter().sum();
        }
        Ok(verdicts)
    }
}

/// The error for a device that has somebody else's program; asks the kernel for its name.
pub fn foreign(interface: &str, id: u32) -> AttachError {
    let name = aya::programs::loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_else(|| "unknown".to_owned());
    AttachError::Foreign { interface: interface.to_owned(), name, id }
}

fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp, AttachError> {
    let program = ebpf.program_mut(maps::PROGRAM).ok_or_else(|| missing(maps::PROGRAM))?;
    program.try_into().map_err(program_error("use the XDP program"))
}

fn fill(ebpf: &mut Ebpf, steering: &Steering<'_>) -> Result<(), AttachError> {
    configure(ebpf, steering.config, false)?;
    let allowed = ebpf.map_mut(maps::ALLOW_FROM).ok_or_else(|| missing(maps::ALLOW_FROM))?;
    let step = "fill the XDP program's allow_from";
    let mut allowed = LpmTrie::<_, [u8; 16], AllowValue>::try_from(allowed).map_err(program_error(step))?;
    // The same each time: the operator's.
    for prefix in steering.allow_from {
        let (bits, octets) = prefix.lpm_key();
        allowed.insert(&Key::new(bits, octets), allow_value(prefix.family()), 0).map_err(program_error(step))?;
    }
    set_local(ebpf, steering.local)
}

fn configure(ebpf: &mut Ebpf, config: Config, log: bool) -> Result<(), AttachError> {
    let map = ebpf.map_mut(maps::CONFIG).ok_or_else(|| missing(maps::CONFIG))?;
    Array::<_, ConfigWords>::try_from(map)
        .and_then(|mut map| map.set(0, config.to_words(Limits::NODE, log), 0))
        .map_err(program_error("configure the XDP program"))
}

fn set_local(ebpf: &mut Ebpf, local: &BTreeSet<IpAddr>) -> Result<(), AttachError> {
    let map = ebpf.map_mut(maps::LOCAL).ok_or_else(|| missing(maps::LOCAL))?;
    let step = "tell the XDP program our addresses";
    let mut map = HashMap::<_, [u8; 16], Present>::try_from(map).map_err(program_error(step))?;
    let wanted: BTreeSet<[u8; 16]> = local.iter().map(|ip| Address::from(*ip).octets()).collect();
    let present: Vec<[u8; 16]> = map.keys().filter_map(Result::ok).collect();
    for gone in present.iter().filter(|key| !wanted.contains(*key)) {
        map.remove(gone).map_err(program_error(step))?;
    }
    for key in wanted {
        map.insert(key, 1, 0).map_err(program_error(step))?;
    }
    Ok(())
}

fn missing(name: &'static str) -> AttachError {
    let text = format!("the embedded object has no `{name}`: it is older than this code (`cargo xtask ebpf`)");
    AttachError::Program { step: "use the XDP object", source: text.into() }
}

fn program_error<E: StdError + Send + Sync + 'static>(step: &'static str) -> impl Fn(E) -> AttachError {
    move |error| match errno(&error) {
        Some(Errno::EPERM | Errno::EACCES) => AttachError::NotPermitted,
        _ => AttachError::Program { step, source: error.to_string().into() },
    }
}

/// The errno at the bottom of an error of aya's.
fn errno(error: &(dyn StdError + 'static)) -> Option<Errno> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.raw_os_error().map(Errno::from_raw);
        }
        cause = error.source();
    }
    None
}
