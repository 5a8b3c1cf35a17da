//! The data path of one AF_XDP socket. How it is set up is in [`crate::Options`].

use std::io;
use std::os::fd::BorrowedFd;

use crate::abi::{Desc, XDP_PKT_CONTD};
use crate::mmap::Placement;
use crate::open::Options;
use crate::port::Port;
use crate::ring::{Consumer, Producer};
use crate::stats::{Chunks, Counters, KernelStatistics};
use crate::umem::{Chunk, Layout, Umem};

/// Most descriptors taken from RX in one call: a batch that amortizes the pass. More and timers wait behind it, and on
/// virtual devices bursts above 64 overflow the peer's 256-slot queue; fewer and the shared indexes are touched more often.
pub const RECV_BATCH: usize = 64;

/// Chunks that are given to the kernel to receive into at first. They are used in turn, so that more than are needed only leave the
/// processor's cache; when the kernel has used half of them between two passes, twice as many are given, up to the receiving share.
/// Lower: a burst that comes before the first doubling finds none.
pub(crate) const FIRST_POSTED: u32 = 512;

/// Descriptors the kernel sends per system call in copy mode, at least (`TX_BATCH_SIZE` in `net/xdp/xsk.c`). It then
/// answers EAGAIN. Higher than the kernel's: flush gives up while it still makes progress; lower: it asks in vain longer.
const COPY_BATCH: u32 = 32;

/// One AF_XDP socket: umem and four rings on one queue of one interface.
///
/// Per pass: [`refill`](Self::refill), [`recv`](Self::recv), then any number of [`tx_chunk`](Self::tx_chunk) with
/// [`TxChunk::send`], then [`flush`](Self::flush). None of them blocks.
///
/// The chunks are shared out: as many as the TX ring has entries are for sending, the others for receiving, so neither
/// direction can starve the other. Where a frame may take several, those to send from are one after the other, so that it is written
/// as one piece; a received one is put together by copying.
///
/// Dropping it unmaps the rings and then closes the socket. Its queue can be bound again some 40 ms later.
#[derive(Debug)]
pub struct Xsk {
    // Fields drop in this order, and it matters. A socket whose rings are still mapped stays alive after its descriptor is
    // closed, and with it the binding: rings first. The kernel may write into chunks until the socket is closed: umem last.
    pub(crate) rx: Consumer<Desc>,
    pub(crate) tx: Producer<Desc>,
    pub(crate) fill: Producer<u64>,
    pub(crate) completion: Consumer<u64>,
    pub(crate) port: Port,
    pub(crate) umem: Umem,
    pub(crate) ifindex: u32,
    pub(crate) queue: u32,
    pub(crate) need_wakeup: bool,
    pub(crate) zero_copy: bool,
    pub(crate) counters: Counters,
    pub(crate) assembly: Assembly,
    /// Chunks that the kernel is given to receive into, as things are.
    pub(crate) posted: u32,
}

/// A frame that arrives in several chunks, as far as it has.
#[derive(Debug)]
pub(crate) struct Assembly {
    bytes: Vec<u8>,
    /// Bytes of the longest.
    most: usize,
    /// The last descriptor read said that its frame goes on in the next one.
    goes_on: bool,
    /// A part of it is missing, or it is too long.
    is_spoilt: bool,
}

impl Assembly {
    pub(crate) fn new(options: &Options) -> Self {
        let parts = options.chunks_per_frame as usize;
        let most = if parts > 1 { parts * options.chunk_size as usize } else { 0 };
        Self { bytes: Vec::with_capacity(most), most, goes_on: false, is_spoilt: false }
    }

    fn begin(&mut self) {
        self.bytes.clear();
        self.is_spoilt = false;
    }

    fn add(&mut self, part: &[u8]) {
        self.is_spoilt |= self.bytes.len() + part.len() > self.most;
        if !self.is_spoilt {
            self.bytes.extend_from_slice(part);
        }
    }
}

/// What became of the frames that were sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Flushed {
    /// All are with the device, or the driver takes them unasked.
    All,
    /// The kernel has no room at the moment: these many stay queued, and the next flush tries again.
    Queued(u32),
}

/// Why a kick failed for good.
#[derive(Debug, thiserror::Error)]
pub enum KickError {
    /// The interface is down (ENETDOWN). Frames stay queued and leave once it is up.
    #[error("the interface is down: queued frames leave once it is up")]
    Down,
    /// The socket has lost its device (ENXIO).
    #[error("the socket has lost its device (removed, or moved to another network namespace): open a new socket")]
    Gone,
    /// Another error of the system call.
    #[error("cannot kick the AF_XDP socket: {0}")]
    Os(#[source] io::Error),
}

impl From<KickError> for io::Error {
    fn from(error: KickError) -> Self {
        match error {
            KickError::Down => Self::new(io::ErrorKind::NetworkDown, error),
            KickError::Gone => Self::new(io::ErrorKind::NotConnected, error),
            KickError::Os(source) => source,
        }
    }
}

impl Xsk {
    /// Gives free chunks to the kernel to receive into, and wakes the receiving side if it asks for that. Call it first in
    /// every pass: in zero-copy mode a receiver that ran dry and is not kicked stays silent for good.
    pub fn refill(&mut self) -> Result<(), KickError> {
        let before = self.umem.with_fill();
        if before >= self.posted && self.fill.queued() < self.posted / 2 {
            self.posted = self.umem.layout().receive.min(2 * self.posted);
        }
        while self.umem.with_fill() < self.posted {
            let Some(entry) = self.fill.reserve() else { break };
            let Some(chunk) = self.umem.take() else { break };
            entry.write(chunk.give_fill());
        }
        if self.umem.with_fill() != before {
            self.fill.submit();
        }
        if !self.need_wakeup || self.fill.queued() == 0 || !self.fill.need_wakeup() {
            return Ok(());
        }
        self.counters.fill_kicks += 1;
        match self.port.kick_fill() {
            Err(error) if !is_momentary(&error) => Err(error.into()),
            // A momentary refusal leaves the flag set, and the next pass sees it.
            _ => Ok(()),
        }
    }

    /// Takes at most `limit` (and [`RECV_BATCH`]) descriptors from RX and lends each frame to `sink`, from the Ethernet
    /// header on; the chunk goes back to the fill ring at once. Returns how many descriptors were taken: 0 means that
    /// nothing has arrived.
    pub fn recv(&mut self, limit: usize, mut sink: impl FnMut(&[u8])) -> usize {
        let mut taken = 0;
        while taken < limit.min(RECV_BATCH) {
            let Some(desc) = self.rx.peek() else { break };
            taken += 1;
            let goes_on = desc.options & XDP_PKT_CONTD != 0;
            let went_on = std::mem::replace(&mut self.assembly.goes_on, goes_on);
            let is_part = went_on || goes_on;
            if is_part && !went_on {
                self.assembly.begin();
            }
            let Ok((chunk, frame)) = self.umem.take_received(&desc) else {
                self.counters.bad_addresses += 1;
                if is_part {
                    self.assembly.is_spoilt = true;
                    self.hand_out_assembled(&mut sink);
                }
                continue;
            };
            self.port.believe_received(desc.addr);
            if is_part {
                self.assembly.add(&chunk.bytes()[frame]);
            } else {
                self.counters.received += 1;
                sink(&chunk.bytes()[frame]);
            }
            match self.fill.reserve() {
                Some(entry) => entry.write(chunk.give_fill()),
                // Full: it goes home instead.
                None => drop(chunk),
            }
            if is_part {
                self.hand_out_assembled(&mut sink);
            }
        }
        if taken > 0 {
            self.rx.release();
            self.fill.submit();
        }
        taken
    }

    /// Lends a frame that came in parts, if the last of them has come.
    fn hand_out_assembled(&mut self, sink: &mut impl FnMut(&[u8])) {
        let Assembly { bytes, is_spoilt, goes_on, .. } = &self.assembly;
        match (goes_on, is_spoilt) {
            (true, _) => {}
            (false, true) => self.counters.multi_buffer += 1,
            (false, false) => {
                self.counters.received += 1;
                self.counters.in_parts += 1;
                sink(bytes);
            }
        }
    }

    /// Room for one outgoing frame, or `None` when the sending share of chunks is in use: then flush, and try in the next
    /// pass.
    pub fn tx_chunk(&mut self) -> Option<TxChunk<'_>> {
        let Layout { runs, run_len, .. } = *self.umem.layout();
        if self.umem.runs_with_tx() >= runs {
            self.reap();
            if self.umem.runs_with_tx() >= runs {
                return None;
            }
        }
        if !self.tx.has_room(run_len) {
            return None;
        }
        Some(TxChunk { chunk: self.umem.take_run()?, tx: &mut self.tx, counters: &mut self.counters })
    }

    /// Hands the frames sent since the last flush to the kernel, kicks it if it asks for that, and reaps completions. In
    /// copy mode it kicks until all are taken: the kernel takes some at a time.
    pub fn flush(&mut self) -> Result<Flushed, KickError> {
        self.tx.submit();
        let result = self.kick_until_taken();
        self.reap();
        result
    }

    fn kick_until_taken(&mut self) -> Result<Flushed, KickError> {
        // What the kernel may still answer before it must be through: every answer is charged the descriptors that stand
        // for it. The consumer index does not show progress (before Linux 6.17 it is not published on EAGAIN).
        let mut credit = self.tx.queued() + COPY_BATCH;
        loop {
            let queued = self.tx.queued();
            if queued == 0 || (self.need_wakeup && !self.tx.need_wakeup()) {
                return Ok(Flushed::All);
            }
            if credit == 0 {
                return Ok(Flushed::Queued(queued));
            }
            self.counters.tx_kicks += 1;
            match self.port.kick_tx() {
                Ok(()) => return Ok(Flushed::All),
                // In copy mode: this frame was dropped, yet completes like any other. The rest is still queued.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && !self.zero_copy => {
                    self.counters.lost_local += 1;
                    credit -= 1;
                }
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => credit = credit.saturating_sub(COPY_BATCH),
                Err(error) if is_momentary(&error) => return Ok(Flushed::Queued(queued)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Brings the chunks of completed frames home, by address: completions need not come in the order of sending. Returns
    /// how many there were, each of a chunk. [`flush`](Self::flush) does this too.
    pub fn reap(&mut self) -> usize {
        let mut reaped = 0;
        while let Some(address) = self.completion.peek() {
            match self.umem.complete(address) {
                Ok(()) => self.port.believe_sent(address),
                Err(_) => self.counters.bad_addresses += 1,
            }
            reaped += 1;
            // An impossible producer index must not keep us here.
            if reaped >= self.umem.count() as usize {
                break;
            }
        }
        if reaped > 0 {
            self.completion.release();
        }
        reaped
    }

    /// Asks the kernel whether the socket still has its device and the device is up: one system call. An idle worker calls
    /// it now and then, since `poll` on a socket that has lost its device just never reports anything.
    pub fn probe(&self) -> Result<(), KickError> {
        match self.port.kick_tx() {
            Err(error) if !is_momentary(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The socket, to poll it and to put it into an XSKMAP. It must not be duplicated: a duplicate keeps the binding.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.port.fd()
    }

    /// The interface it is bound to.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The queue it is bound to: its slot in the XSKMAP.
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// Whether the device reads and writes the umem itself (`XDP_OPTIONS`).
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Longest frame that can be received, in bytes from the Ethernet header on.
    pub fn max_received(&self) -> usize {
        self.umem.receive_room() * self.umem.layout().run_len as usize
    }

    /// Bytes of a [`TxChunk`]: the longest frame that can be sent, if the MTU allows it.
    pub fn max_sent(&self) -> usize {
        self.umem.run_size()
    }

    /// Whether a frame may take several chunks.
    pub fn is_multi_buffer(&self) -> bool {
        self.umem.layout().run_len > 1
    }

    /// Where its packet memory is.
    pub fn placement(&self) -> Placement {
        self.umem.placement()
    }

    /// Frames with the kernel to be sent, up to their completion.
    pub fn sending(&self) -> u32 {
        self.umem.runs_with_tx()
    }

    /// What the socket did and saw.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What the kernel counted for the socket: one system call.
    pub fn kernel_statistics(&self) -> io::Result<KernelStatistics> {
        self.port.statistics()
    }

    /// Where the chunks are.
    pub fn chunks(&self) -> Chunks {
        Chunks {
            total: self.umem.count(),
            home: self.umem.home(),
            receiving: self.umem.with_fill(),
            sending: self.umem.with_tx(),
        }
    }

    /// Chunks that are not home. It never falls to 0 while receiving; see [`Xsk::chunks`] for where they are.
    pub fn outstanding(&self) -> u32 {
        self.umem.outstanding()
    }
}

impl Drop for Xsk {
    /// A socket in memory is a test's, and no test may lose a chunk. What a real socket has given to the kernel ends with
    /// it; what is in hand, the umem sees.
    fn drop(&mut self) {
        if let Port::Memory(port) = &self.port
            && !std::thread::panicking()
        {
            let kernel = port.kernel();
            let lost = kernel.settle(self);
            assert!(lost == 0, "{lost} chunks are lost");
        }
    }
}

/// A chunk, or as many as a frame may take, lent for one outgoing frame. Dropped unsent, it goes home.
#[derive(Debug)]
pub struct TxChunk<'a> {
    /// Has room for an entry for each of them.
    tx: &'a mut Producer<Desc>,
    chunk: Chunk<'a>,
    counters: &'a mut Counters,
}

impl TxChunk<'_> {
    /// All of it. What is in it is left over from earlier frames.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.chunk.bytes_mut()
    }

    /// Queues the `len` bytes from `offset` on, which begin with the Ethernet header; they leave with [`Xsk::flush`]. An
    /// empty range, or one outside the chunk, is not sent but counted ([`Counters::refused`]).
    pub fn send(self, offset: usize, len: usize) {
        let Self { tx, chunk, counters } = self;
        let is_given = chunk.give_tx(offset, len, |desc| {
            if let Some(entry) = tx.reserve() {
                entry.write(desc);
            }
        });
        *if is_given { &mut counters.sent } else { &mut counters.refused } += 1;
    }
}

/// Refusals that mean "not now": nothing is wrong with the socket.
fn is_momentary(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::ENOMEM | libc::EINTR))
}

impl From<io::Error> for KickError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENETDOWN) => Self::Down,
            Some(libc::ENXIO) => Self::Gone,
            _ => Self::Os(error),
        }
    }
}
