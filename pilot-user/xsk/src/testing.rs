//! The kernel's end of the four rings, played in memory: an [`Xsk`] over it runs the code that runs in production,
//! without a device and without privileges.
//!
//! ```
//! use pilot_xsk::{Options, Xsk, testing};
//!
//! let (mut xsk, kernel): (Xsk, testing::Kernel) = testing::over_memory(&Options::default())?;
//! xsk.refill()?;
//! assert!(kernel.deliver(b"a frame"));
//! xsk.recv(64, |frame| assert_eq!(frame, b"a frame"));
//!
//! if let Some(mut chunk) = xsk.tx_chunk() {
//!     chunk.bytes()[..5].copy_from_slice(b"reply");
//!     chunk.send(0, 5);
//! }
//! let _ = xsk.flush()?;
//! assert_eq!(kernel.transmit_all(), [b"reply".to_vec()]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Dropping the socket gives every chunk back that the kernel has or that lies in a ring, and panics if one is not home
//! then: so every test over such a socket ends by asserting that no chunk is lost.
//!
//! The kernel can be made to lie. Two lies no socket can tell from the truth: that a frame is sent that is committed and
//! not flushed, and that a frame arrived in a chunk that the kernel still has to receive into. Then two would own the
//! chunk, so a socket panics instead of believing one.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::abi::{Desc, Plain, RingOffsets, XDP_PACKET_HEADROOM, XDP_PKT_CONTD};
use crate::mmap::Mmap;
use crate::open::{OpenError, Options};
use crate::ring::{Consumer, Producer};
use crate::socket::{Assembly, FIRST_POSTED, Xsk};
use crate::stats::Counters;
use crate::sys;
use crate::umem::Umem;

/// A socket over rings in memory, and the kernel's end of them. Its [`Xsk::fd`] can be polled and never becomes ready. Its
/// interface index and queue are 0.
pub fn over_memory(options: &Options) -> Result<(Xsk, Kernel), OpenError> {
    over_memory_from(options, 0)
}

/// As [`over_memory`], with all ring indexes beginning at `start`: near `u32::MAX` they wrap soon.
pub fn over_memory_from(options: &Options, start: u32) -> Result<(Xsk, Kernel), OpenError> {
    options.validate()?;
    assemble(options, start).map_err(|source| OpenError::Os { step: "map rings in memory", source })
}

fn assemble(options: &Options, start: u32) -> io::Result<(Xsk, Kernel)> {
    let umem = Umem::new(options.layout(), options.numa_node)?;
    let fill = ring::<u64>(options.fill_ring, start)?;
    let completion = ring::<u64>(options.completion_ring, start)?;
    let rx = ring::<Desc>(options.rx_ring, start)?;
    let tx = ring::<Desc>(options.tx_ring, start)?;
    let end = End {
        fill: Consumer::new(Arc::clone(&fill), &OFFSETS, options.fill_ring)?,
        completion: Producer::new(Arc::clone(&completion), &OFFSETS, options.completion_ring)?,
        rx: Producer::new(Arc::clone(&rx), &OFFSETS, options.rx_ring)?,
        tx: Consumer::new(Arc::clone(&tx), &OFFSETS, options.tx_ring)?,
        packets: Arc::clone(umem.memory()),
        chunk_size: u64::from(options.chunk_size),
        frame_offset: u64::from(XDP_PACKET_HEADROOM + options.headroom),
        posted: VecDeque::new(),
        taken: VecDeque::new(),
        owed: Vec::new(),
        sent: VecDeque::new(),
        received: VecDeque::new(),
        refusals: VecDeque::new(),
        batch: None,
    };
    // Copy mode begins like this: it always wants to be kicked to send.
    end.tx.set_need_wakeup(true);
    let end = Arc::new(Mutex::new(end));
    let xsk = Xsk {
        rx: Consumer::new(rx, &OFFSETS, options.rx_ring)?,
        tx: Producer::new(tx, &OFFSETS, options.tx_ring)?,
        fill: Producer::new(fill, &OFFSETS, options.fill_ring)?,
        completion: Consumer::new(completion, &OFFSETS, options.completion_ring)?,
        port: crate::port::Port::Memory(Port { end: Arc::clone(&end), fd: sys::silent_fd()? }),
        umem,
        ifindex: 0,
        queue: 0,
        need_wakeup: options.need_wakeup,
        zero_copy: false,
        counters: Counters::default(),
        assembly: Assembly::new(options),
        posted: FIRST_POSTED.min(options.fill_ring),
    };
    Ok((xsk, Kernel { end }))
}

/// Where the parts of a ring in memory are. The indexes have a cache line each, as in the kernel's.
const OFFSETS: RingOffsets = RingOffsets { producer: 0, consumer: 64, flags: 128, desc: 192 };

/// Memory of a ring of `size` entries with both indexes at `start`.
fn ring<T: Plain>(size: u32, start: u32) -> io::Result<Arc<Mmap>> {
    let memory = Arc::new(Mmap::anonymous(OFFSETS.desc as usize + size as usize * size_of::<T>())?);
    for offset in [OFFSETS.producer, OFFSETS.consumer] {
        // SAFETY: within the mapping, aligned, and nobody else knows of the memory yet.
        unsafe { memory.address().add(offset as usize).cast::<u32>().write(start) };
    }
    Ok(memory)
}

/// The kernel's end. Frames move only when its methods are called, or on a kick after [`Kernel::send_on_kick`].
#[derive(Clone, Debug)]
pub struct Kernel {
    end: Arc<Mutex<End>>,
}

/// A frame, or a part of one, taken from the TX ring and not completed yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Its address in the umem: what completes it.
    pub address: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The frame goes on in the next one.
    pub more: bool,
}

#[derive(Debug)]
struct End {
    fill: Consumer<u64>,
    completion: Producer<u64>,
    rx: Producer<Desc>,
    tx: Consumer<Desc>,
    /// Keeps the packet memory mapped, as the kernel pins it.
    packets: Arc<Mmap>,
    chunk_size: u64,
    frame_offset: u64,
    /// Chunks taken from the fill ring.
    posted: VecDeque<u64>,
    /// Frames taken from the TX ring that the test has not asked for.
    taken: VecDeque<Taken>,
    /// Addresses of frames taken from the TX ring and not completed.
    owed: Vec<u64>,
    /// Addresses of those completed, until the socket believes it.
    sent: VecDeque<u64>,
    /// Chunks taken from the fill ring and named in RX, until the socket believes it.
    received: VecDeque<u64>,
    /// Answers to the next kicks, as errno.
    refusals: VecDeque<i32>,
    /// Frames taken on each kick.
    batch: Option<u32>,
}

impl Kernel {
    /// Receives a frame: takes a chunk from the fill ring, writes the frame into it, puts it into RX. `false` if it had to
    /// be dropped: no chunk, no room in RX, or longer than a chunk holds.
    pub fn deliver(&self, frame: &[u8]) -> bool {
        self.lock().deliver(frame, 0)
    }

    /// Receives a part of a frame that goes on in the next one delivered.
    pub fn deliver_part(&self, part: &[u8]) -> bool {
        self.lock().deliver(part, XDP_PKT_CONTD)
    }

    /// Takes all frames from the TX ring without completing them.
    pub fn take(&self) -> Vec<Taken> {
        let mut end = self.lock();
        end.take(u32::MAX);
        end.taken.drain(..).collect()
    }

    /// Completes an address, true or not. `false` if the completion ring is full.
    pub fn complete(&self, address: u64) -> bool {
        let mut end = self.lock();
        // Its frame may lie in the TX ring still: it is read before the chunk is the socket's again.
        end.take(u32::MAX);
        end.complete(address)
    }

    /// Takes all frames from the TX ring, completes them in order, and returns them.
    pub fn transmit_all(&self) -> Vec<Vec<u8>> {
        let mut end = self.lock();
        end.take(u32::MAX);
        let taken: Vec<Taken> = end.taken.drain(..).collect();
        for frame in &taken {
            // The test may have completed it by its address.
            if end.owed.contains(&frame.address) {
                end.complete(frame.address);
            }
        }
        let (mut frames, mut goes_on) = (Vec::<Vec<u8>>::new(), false);
        for part in taken {
            match frames.last_mut().filter(|_| goes_on) {
                Some(frame) => frame.extend(part.bytes),
                None => frames.push(part.bytes),
            }
            goes_on = part.more;
        }
        frames
    }

    /// Puts any descriptor into RX, true or not. `false` if RX is full.
    pub fn inject_received(&self, address: u64, len: u32) -> bool {
        let mut end = self.lock();
        end.take_posted();
        let put = end.put_received(Desc { addr: address, len, options: 0 });
        // If it names a chunk we have, that is ours no longer.
        let base = end.base(address);
        if put && take_out(&mut end.posted, base) {
            end.received.push_back(base);
        }
        put
    }

    /// Sets the need_wakeup flags of the two rings that have one. At the start TX has it and fill has not.
    pub fn set_need_wakeup(&self, tx: bool, fill: bool) {
        let end = self.lock();
        end.tx.set_need_wakeup(tx);
        end.fill.set_need_wakeup(fill);
    }

    /// Makes one later kick fail with this errno; called again, the one after it.
    pub fn refuse_kick(&self, errno: i32) {
        self.lock().refusals.push_back(errno);
    }

    /// From now on each TX kick sends at most `batch` frames and says EAGAIN when more are left, as copy mode does.
    pub fn send_on_kick(&self, batch: u32) {
        self.lock().batch = Some(batch);
    }

    /// Gives every chunk back that it has or that lies in a ring, and returns how many are still not home. The socket is of
    /// no use afterwards.
    pub(crate) fn settle(&self, xsk: &mut Xsk) -> u32 {
        // Frames written and never flushed are in the rings too.
        xsk.tx.submit();
        xsk.fill.submit();
        xsk.reap();
        let mut end = self.lock();
        end.take(u32::MAX);
        end.take_posted();
        let End { posted, received, owed, .. } = &mut *end;
        for addr in posted.drain(..).chain(received.drain(..)) {
            let _ = xsk.umem.take_received(&Desc { addr, len: 0, options: 0 });
        }
        for address in owed.drain(..) {
            let _ = xsk.umem.complete(address);
        }
        xsk.umem.outstanding()
    }

    fn lock(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl End {
    fn deliver(&mut self, frame: &[u8], options: u32) -> bool {
        self.take_posted();
        if frame.len() as u64 > self.chunk_size - self.frame_offset {
            return false;
        }
        let Some(base) = self.posted.pop_front() else { return false };
        let addr = base + self.frame_offset;
        if self.rx.reserve().is_none() || addr + frame.len() as u64 > self.packets.len() as u64 {
            self.posted.push_front(base);
            return false;
        }
        // SAFETY: within the mapping, as just checked. The chunk came through the fill ring, so the socket has given it
        // away and has no reference to its bytes.
        unsafe {
            let to = self.packets.address().add(addr as usize);
            to.as_ptr().copy_from_nonoverlapping(frame.as_ptr(), frame.len());
        }
        self.received.push_back(base);
        self.put_received(Desc { addr, len: frame.len() as u32, options })
    }

    /// Takes all chunks from the fill ring.
    fn take_posted(&mut self) {
        while let Some(address) = self.fill.peek() {
            self.posted.push_back(address);
        }
        self.fill.release();
    }

    fn put_received(&mut self, desc: Desc) -> bool {
        let Some(entry) = self.rx.reserve() else { return false };
        entry.write(desc);
        self.rx.submit();
        true
    }

    /// Moves up to `limit` frames from the TX ring to `taken`.
    fn take(&mut self, limit: u32) {
        for _ in 0..limit {
            let Some(desc) = self.tx.peek() else { break };
            let end = desc.addr.checked_add(u64::from(desc.len)).filter(|&end| end <= self.packets.len() as u64);
            let bytes = match end {
                // SAFETY: within the mapping, as just checked. The chunk came through the TX ring, so the socket has given
                // it away and does not write to it.
                Some(_) => unsafe {
                    let from = self.packets.address().add(desc.addr as usize);
                    std::slice::from_raw_parts(from.as_ptr(), desc.len as usize).to_vec()
                },
                None => Vec::new(),
            };
            self.owed.push(desc.addr);
            self.taken.push_back(Taken { address: desc.addr, bytes, more: desc.options & XDP_PKT_CONTD != 0 });
        }
        self.tx.release();
    }

    fn complete(&mut self, address: u64) -> bool {
        let Some(entry) = self.completion.reserve() else { return false };
        entry.write(address);
        self.completion.submit();
        if let Some(place) = self.owed.iter().position(|&owed| owed == address) {
            self.sent.push_back(self.owed.swap_remove(place));
        }
        true
    }

    /// Where the chunk of an address begins.
    fn base(&self, address: u64) -> u64 {
        address & !(self.chunk_size - 1)
    }
}

/// Takes one such address out; whether there was one.
fn take_out(addresses: &mut VecDeque<u64>, address: u64) -> bool {
    let place = addresses.iter().position(|&it| it == address);
    place.and_then(|place| addresses.remove(place)).is_some()
}

/// Where the socket's system calls go.
#[derive(Debug)]
pub(crate) struct Port {
    end: Arc<Mutex<End>>,
    fd: OwnedFd,
}

impl Port {
    pub(crate) fn kick_tx(&self) -> io::Result<()> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(errno) = end.refusals.pop_front() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let Some(batch) = end.batch else { return Ok(()) };
        end.take(batch);
        if end.tx.is_empty() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EAGAIN)) }
    }

    pub(crate) fn kick_fill(&self) -> io::Result<()> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        match end.refusals.pop_front() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn kernel(&self) -> Kernel {
        Kernel { end: Arc::clone(&self.end) }
    }

    /// # Panics
    /// When the frame is still to be read: the chunk would be the socket's and the kernel's.
    pub(crate) fn believe_sent(&self, address: u64) {
        let told = take_out(&mut self.kernel().lock().sent, address);
        assert!(told, "a test completed a frame at {address:#x} that was not flushed: no socket can tell");
    }

    /// # Panics
    /// When the chunk is still to be written to: it would be the socket's and the kernel's.
    pub(crate) fn believe_received(&self, address: u64) {
        let kernel = self.kernel();
        let mut end = kernel.lock();
        let base = end.base(address);
        let told = take_out(&mut end.received, base);
        assert!(told, "a test made up a frame at {address:#x}, where another may arrive: no socket can tell");
    }
}
