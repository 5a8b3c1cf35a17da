//! Setting up a socket: umem, rings, bind.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::abi::{
    AF_XDP, Desc, MmapOffsets, RingOffsets, SOL_XDP, SockaddrXdp, UmemReg, XDP_COPY, XDP_MMAP_OFFSETS, XDP_OPTIONS,
    XDP_OPTIONS_ZEROCOPY, XDP_PACKET_HEADROOM, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_RX_RING, XDP_TX_RING,
    XDP_UMEM_COMPLETION_RING, XDP_UMEM_FILL_RING, XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING,
    XDP_UMEM_REG, XDP_USE_NEED_WAKEUP, XDP_USE_SG, XDP_ZEROCOPY, XdpOptions,
};
use crate::mmap::Mmap;
use crate::port::Port;
use crate::ring::{Consumer, Producer};
use crate::socket::{Assembly, FIRST_POSTED, Xsk};
use crate::stats::Counters;
use crate::sys;
use crate::umem::{Layout, Umem};

/// How long [`Xsk::open`] goes on binding while the queue is busy, as tries and the pause between them: 2 s. The kernel
/// frees a closed socket's queue later than the close: 40 ms measured on veth, 2 s reported for drivers that must quiesce
/// a hardware queue. Shorter: a restarted node loses its queue; longer: a queue that another process owns holds up start.
const BIND_TRIES: u32 = 200;
const BIND_PAUSE: Duration = Duration::from_millis(10);

/// Largest ring, in entries: at 4 KiB a chunk a full ring is 128 MiB, far beyond any cache. The kernel allows more.
const MAX_RING: u32 = 1 << 15;

/// Chunks that the kernel sends as one frame at most (`MAX_SKB_FRAGS` + 1 as it is by default).
const MAX_CHUNKS_PER_FRAME: u32 = 18;

/// Bytes of an Ethernet header with one 802.1Q tag.
const ETHERNET_LEN: u32 = 18;

/// Who copies frames between device and umem.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Zero-copy where the driver has it, else copy. [`Xsk::is_zero_copy`] says which it became.
    #[default]
    Auto,
    /// The device itself; refused where the driver cannot. Needs an XDP program in native mode.
    ZeroCopy,
    /// The kernel; works on every device.
    Copy,
}

/// How to open a socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Zero-copy, copy, or what the device can.
    pub mode: Mode,
    /// Kick the kernel only when it asks for that. `false` is for measurements.
    pub need_wakeup: bool,
    /// Bytes of a chunk: 2048 or 4096. The kernel keeps 256 of them in front of a received frame.
    pub chunk_size: u32,
    /// Bytes kept free in front of a received frame beside those 256.
    pub headroom: u32,
    /// Chunks that a frame may take, on receiving and on sending, 1 to 18. More than one needs Linux 6.6, and in zero-copy mode a
    /// driver that can do it.
    pub chunks_per_frame: u32,
    /// The NUMA node of the device, for packet memory to be on it.
    pub numa_node: Option<u32>,
    /// Entries of the RX ring, like all rings a power of two up to 32768.
    pub rx_ring: u32,
    /// Entries of the TX ring, and the chunks that sending may use.
    pub tx_ring: u32,
    /// Entries of the fill ring, and the chunks that receiving may use: 512 at first, and more as they are needed.
    pub fill_ring: u32,
    /// Entries of the completion ring, at least as many as the TX ring's.
    pub completion_ring: u32,
}

impl Default for Options {
    /// RX = TX = 2048, fill = completion = 4096: absorbs some milliseconds at line rate. Larger umems leave the cache.
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            need_wakeup: true,
            chunk_size: 2048,
            headroom: 0,
            chunks_per_frame: 1,
            numa_node: None,
            rx_ring: 2048,
            tx_ring: 2048,
            fill_ring: 4096,
            completion_ring: 4096,
        }
    }
}

impl Options {
    /// The defaults, with the smallest and fewest chunks that hold a frame of an interface's MTU (in bytes). Above 3822 bytes a
    /// frame takes several.
    pub fn for_mtu(mtu: u32) -> Self {
        let room = |chunk_size| chunk_size - XDP_PACKET_HEADROOM;
        let frame = mtu.saturating_add(ETHERNET_LEN);
        let chunk_size = if frame <= room(2048) { 2048 } else { 4096 };
        Self { chunk_size, chunks_per_frame: frame.div_ceil(room(chunk_size)), ..Self::default() }
    }

    /// These, with this mode. Unless the kernel is to copy, chunks are of 4096 bytes: igb and ixgbe (82599) count a receive buffer in
    /// KiB, of which 2048 less the kernel's 256 has but one, and what is longer would come in pieces.
    pub fn with_mode(self, mode: Mode) -> Self {
        Self { mode, chunk_size: if mode == Mode::Copy { self.chunk_size } else { 4096 }, ..self }
    }

    /// How the umem is cut. A frame to be sent has as many entries of the TX ring, at most, as it has chunks.
    pub(crate) fn layout(&self) -> Layout {
        Layout {
            chunk_size: self.chunk_size,
            headroom: self.headroom,
            receive: self.fill_ring,
            runs: self.tx_ring / self.chunks_per_frame,
            run_len: self.chunks_per_frame,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), OpenError> {
        let refuse = |option, given, allowed| Err(OpenError::Option { option, given, allowed });
        if !matches!(self.chunk_size, 2048 | 4096) {
            return refuse("chunk_size", self.chunk_size, "2048 or 4096");
        }
        if self.headroom > 256 {
            return refuse("headroom", self.headroom, "0 to 256");
        }
        for (option, given) in [
            ("rx_ring", self.rx_ring),
            ("tx_ring", self.tx_ring),
            ("fill_ring", self.fill_ring),
            ("completion_ring", self.completion_ring),
        ] {
            if !given.is_power_of_two() || given > MAX_RING {
                return refuse(option, given, "a power of two up to 32768");
            }
        }
        if !(1..=MAX_CHUNKS_PER_FRAME.min(self.tx_ring)).contains(&self.chunks_per_frame) {
            return refuse("chunks_per_frame", self.chunks_per_frame, "1 to 18, and at most tx_ring");
        }
        if self.completion_ring < self.tx_ring {
            return refuse("completion_ring", self.completion_ring, "at least tx_ring");
        }
        Ok(())
    }
}

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An option is out of its range.
    #[error("{option} = {given}: allowed is {allowed}")]
    Option {
        /// The field of [`Options`].
        option: &'static str,
        /// Its value.
        given: u32,
        /// What it may be.
        allowed: &'static str,
    },
    /// EPERM.
    #[error("AF_XDP sockets need CAP_NET_RAW")]
    NotPermitted,
    /// EAFNOSUPPORT.
    #[error("this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS)")]
    Unsupported,
    /// ENOBUFS while the umem was registered.
    #[error(
        "{bytes} bytes of packet memory exceed the limit on locked memory: raise RLIMIT_MEMLOCK or grant CAP_IPC_LOCK"
    )]
    MemoryLimit {
        /// Size of the umem.
        bytes: usize,
    },
    /// ENODEV.
    #[error("there is no interface with index {ifindex} in this network namespace")]
    NoInterface {
        /// The index given.
        ifindex: u32,
    },
    /// EINVAL from bind.
    #[error("interface {ifindex} has no active queue {queue}, or cannot bind an AF_XDP socket like this to it")]
    NoQueue {
        /// The interface.
        ifindex: u32,
        /// The queue given.
        queue: u32,
    },
    /// EBUSY.
    #[error("queue {queue} of interface {ifindex} has another AF_XDP socket, or one that was just closed")]
    Busy {
        /// The interface.
        ifindex: u32,
        /// The queue.
        queue: u32,
    },
    /// EOPNOTSUPP for zero-copy.
    #[error("the driver of interface {ifindex} has no zero-copy AF_XDP: use copy mode, or let it be chosen")]
    NoZeroCopy {
        /// The interface.
        ifindex: u32,
    },
    /// ENETDOWN.
    #[error("interface {ifindex} is down")]
    Down {
        /// The interface.
        ifindex: u32,
    },
    /// Anything else.
    #[error("cannot {step}: {source}")]
    Os {
        /// What was being done.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Xsk {
    /// Opens a socket on `queue` of the interface with index `ifindex`, in the calling thread's network namespace. Waits up
    /// to 2 s for the queue while it is busy. It receives once its [`fd`](Self::fd) is in the XSKMAP of the interface's XDP
    /// program and [`refill`](Self::refill) was called.
    pub fn open(ifindex: u32, queue: u32, options: &Options) -> Result<Self, OpenError> {
        Self::open_with_tries(ifindex, queue, options, BIND_TRIES)
    }

    /// As [`Xsk::open`], but a busy queue is [`OpenError::Busy`] at once.
    pub fn try_open(ifindex: u32, queue: u32, options: &Options) -> Result<Self, OpenError> {
        Self::open_with_tries(ifindex, queue, options, 1)
    }

    fn open_with_tries(ifindex: u32, queue: u32, options: &Options, tries: u32) -> Result<Self, OpenError> {
        options.validate()?;
        let os = |step| move |source| OpenError::Os { step, source };
        let umem = Umem::new(options.layout(), options.numa_node).map_err(os("map packet memory"))?;
        let socket = sys::xdp_socket().map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM) => OpenError::NotPermitted,
            Some(libc::EAFNOSUPPORT) => OpenError::Unsupported,
            _ => OpenError::Os { step: "open an AF_XDP socket", source },
        })?;
        let fd = socket.as_fd();

        // Busy polling loses frames on virtual devices and spins in system calls; the sysctl may have turned it on for new
        // sockets. A kernel without it refuses the option, which is as good.
        let _ = sys::set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, &0_i32);

        let bytes = umem.len();
        let registration = UmemReg {
            addr: umem.memory().address().as_ptr().expose_provenance() as u64,
            len: bytes as u64,
            chunk_size: options.chunk_size,
            headroom: options.headroom,
            flags: 0,
            tx_metadata_len: 0,
        };
        sys::set_option(fd, SOL_XDP, XDP_UMEM_REG, &registration).map_err(|source| match source.raw_os_error() {
            Some(libc::ENOBUFS) => OpenError::MemoryLimit { bytes },
            _ => OpenError::Os { step: "register packet memory", source },
        })?;
        for (name, size) in [
            (XDP_UMEM_FILL_RING, options.fill_ring),
            (XDP_UMEM_COMPLETION_RING, options.completion_ring),
            (XDP_RX_RING, options.rx_ring),
            (XDP_TX_RING, options.tx_ring),
        ] {
            sys::set_option(fd, SOL_XDP, name, &size).map_err(os("size the rings"))?;
        }
        let offsets: MmapOffsets = sys::get_option(fd, SOL_XDP, XDP_MMAP_OFFSETS).map_err(os("ask for the rings"))?;
        let rx = map_ring::<Desc>(fd, XDP_PGOFF_RX_RING, &offsets.rx, options.rx_ring)
            .and_then(|memory| Consumer::new(memory, &offsets.rx, options.rx_ring))
            .map_err(os("map the RX ring"))?;
        let tx = map_ring::<Desc>(fd, XDP_PGOFF_TX_RING, &offsets.tx, options.tx_ring)
            .and_then(|memory| Producer::new(memory, &offsets.tx, options.tx_ring))
            .map_err(os("map the TX ring"))?;
        let fill = map_ring::<u64>(fd, XDP_UMEM_PGOFF_FILL_RING, &offsets.fill, options.fill_ring)
            .and_then(|memory| Producer::new(memory, &offsets.fill, options.fill_ring))
            .map_err(os("map the fill ring"))?;
        let completion =
            map_ring::<u64>(fd, XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.completion, options.completion_ring)
                .and_then(|memory| Consumer::new(memory, &offsets.completion, options.completion_ring))
                .map_err(os("map the completion ring"))?;

        bind(fd, ifindex, queue, options, tries)?;
        let state: XdpOptions = sys::get_option(fd, SOL_XDP, XDP_OPTIONS).map_err(os("ask for the mode"))?;
        Ok(Self {
            rx,
            tx,
            fill,
            completion,
            port: Port::Socket(socket),
            umem,
            ifindex,
            queue,
            need_wakeup: options.need_wakeup,
            zero_copy: state.flags & XDP_OPTIONS_ZEROCOPY != 0,
            counters: Counters::default(),
            assembly: Assembly::new(options),
            posted: FIRST_POSTED.min(options.fill_ring),
        })
    }
}

/// Maps a ring of `size` entries of type `T`: the entries are its last part.
fn map_ring<T>(fd: BorrowedFd<'_>, offset: i64, parts: &RingOffsets, size: u32) -> io::Result<Arc<Mmap>> {
    let len = usize::try_from(parts.desc).ok().and_then(|start| start.checked_add(size as usize * size_of::<T>()));
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel's ring offsets overflow"))?;
    Mmap::of(fd, offset, len).map(Arc::new)
}

fn bind(fd: BorrowedFd<'_>, ifindex: u32, queue: u32, options: &Options, tries: u32) -> Result<(), OpenError> {
    let mode = match options.mode {
        Mode::Auto => 0,
        Mode::ZeroCopy => XDP_ZEROCOPY,
        Mode::Copy => XDP_COPY,
    };
    let wakeup = if options.need_wakeup { XDP_USE_NEED_WAKEUP } else { 0 };
    let parts = if options.chunks_per_frame > 1 { XDP_USE_SG } else { 0 };
    let flags = mode | wakeup | parts;
    let address = SockaddrXdp { family: AF_XDP as u16, flags, ifindex, queue_id: queue, shared_umem_fd: 0 };
    let mut tries_left = tries;
    loop {
        let Err(source) = sys::bind(fd, &address) else { return Ok(()) };
        tries_left = tries_left.saturating_sub(1);
        return Err(match source.raw_os_error() {
            Some(libc::EBUSY) if tries_left > 0 => {
                std::thread::sleep(BIND_PAUSE);
                continue;
            }
            Some(libc::EBUSY) => OpenError::Busy { ifindex, queue },
            Some(libc::ENODEV) => OpenError::NoInterface { ifindex },
            Some(libc::EINVAL) => OpenError::NoQueue { ifindex, queue },
            Some(libc::ENETDOWN) => OpenError::Down { ifindex },
            Some(libc::EOPNOTSUPP) if options.mode == Mode::ZeroCopy => OpenError::NoZeroCopy { ifindex },
            _ => OpenError::Os { step: "bind the AF_XDP socket", source },
        });
    }
}
