//! Packet memory, cut into chunks that are owned by move. The crate's head says who may own a chunk.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::abi::{Desc, XDP_PACKET_HEADROOM, XDP_PKT_CONTD};
use crate::mmap::{Mmap, Placement};

/// Who has a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    /// Nobody: it is in the free list.
    Home,
    /// A [`Chunk`], or a run of which the kernel has other chunks.
    Hand,
    /// The kernel, to write a received frame into it.
    Fill,
    /// The kernel, to send the frame, or the part of one, that begins at this byte of it.
    Tx { offset: u16 },
}

/// The kernel named memory that it was not given, or not for this purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadAddress;

/// How packet memory is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Bytes of a chunk.
    pub(crate) chunk_size: u32,
    /// Bytes that stay free before every received frame, beside what the kernel reserves itself.
    pub(crate) headroom: u32,
    /// Chunks to receive into.
    pub(crate) receive: u32,
    /// Frames that may be on their way out.
    pub(crate) runs: u32,
    /// Chunks of such a frame, one after the other, so that it is written as one piece.
    pub(crate) run_len: u32,
}

/// The packet memory of one socket: chunks to receive into, then runs of chunks to send from. So neither direction can starve the
/// other.
#[derive(Debug)]
pub(crate) struct Umem {
    memory: Arc<Mmap>,
    placement: Placement,
    /// log2 of the chunk size in bytes.
    chunk_shift: u32,
    layout: Layout,
    /// One per chunk.
    holders: Box<[Holder]>,
    /// Chunks to receive into that are at home. Last in, first out: the chunk used last is the one still in the cache.
    free: Vec<u32>,
    /// First chunks of runs that are at home, likewise.
    free_runs: Vec<u32>,
    /// By run: chunks that the kernel has of it.
    parts_out: Box<[u32]>,
    with_fill: u32,
    runs_with_tx: u32,
}

impl Umem {
    /// All chunks are at home. `node`: the NUMA node that the memory should be on.
    pub(crate) fn new(layout: Layout, node: Option<u32>) -> io::Result<Self> {
        let Layout { chunk_size, receive, runs, run_len, .. } = layout;
        debug_assert!(chunk_size.is_power_of_two() && chunk_size <= 1 << 15, "offsets are kept in 16 bits");
        let count = runs.checked_mul(run_len).and_then(|sending| sending.checked_add(receive));
        let count = count.ok_or(io::ErrorKind::InvalidInput)?;
        let len = (count as usize).checked_mul(chunk_size as usize).ok_or(io::ErrorKind::InvalidInput)?;
        let (memory, placement) = Mmap::packet_memory(len, node)?;
        Ok(Self {
            memory: Arc::new(memory),
            placement,
            chunk_shift: chunk_size.trailing_zeros(),
            layout,
            holders: vec![Holder::Home; count as usize].into_boxed_slice(),
            free: (0..receive).rev().collect(),
            free_runs: (0..runs).rev().map(|run| receive + run * run_len).collect(),
            parts_out: vec![0; runs as usize].into_boxed_slice(),
            with_fill: 0,
            runs_with_tx: 0,
        })
    }

    /// A free chunk to receive into, or `None` when none is at home.
    pub(crate) fn take(&mut self) -> Option<Chunk<'_>> {
        let index = self.free.pop()?;
        Some(self.hold(index))
    }

    /// A free run to send from, or `None` when none is at home.
    pub(crate) fn take_run(&mut self) -> Option<Chunk<'_>> {
        let index = self.free_runs.pop()?;
        Some(self.hold(index))
    }

    /// The chunk and the bytes in it of a descriptor read from RX.
    pub(crate) fn take_received(&mut self, desc: &Desc) -> Result<(Chunk<'_>, Range<usize>), BadAddress> {
        let (index, offset) = self.locate(desc.addr)?;
        let frame = offset..offset + desc.len as usize;
        if self.holders[index as usize] != Holder::Fill || frame.end > self.chunk_size() {
            return Err(BadAddress);
        }
        self.with_fill -= 1;
        Ok((self.hold(index), frame))
    }

    /// Takes back the chunk of an address read from COMPLETION, which must be the very address that was given. With the last of
    /// its run, the run is home.
    pub(crate) fn complete(&mut self, address: u64) -> Result<(), BadAddress> {
        let (index, offset) = self.locate(address)?;
        match self.holders[index as usize] {
            Holder::Tx { offset: given } if usize::from(given) == offset => {}
            _ => return Err(BadAddress),
        }
        self.holders[index as usize] = Holder::Hand;
        let run = self.run_of(index);
        let parts = &mut self.parts_out[run as usize];
        *parts -= 1;
        if *parts == 0 {
            self.runs_with_tx -= 1;
            let index = self.layout.receive + run * self.layout.run_len;
            drop(self.hold(index));
        }
        Ok(())
    }

    /// The run that a chunk to send from is part of.
    fn run_of(&self, index: u32) -> u32 {
        (index - self.layout.receive) / self.layout.run_len
    }

    /// Takes the chunk at this place in hand, or the run that begins there.
    fn hold(&mut self, index: u32) -> Chunk<'_> {
        let len = if index < self.layout.receive { 1 } else { self.layout.run_len };
        self.holders[index as usize..(index + len) as usize].fill(Holder::Hand);
        Chunk { umem: self, index, len }
    }

    /// The chunk that contains an address, and the byte within it.
    fn locate(&self, address: u64) -> Result<(u32, usize), BadAddress> {
        let index = u32::try_from(address >> self.chunk_shift).map_err(|_| BadAddress)?;
        if index as usize >= self.holders.len() {
            return Err(BadAddress);
        }
        Ok((index, address as usize & (self.chunk_size() - 1)))
    }

    /// Bytes of a chunk.
    pub(crate) fn chunk_size(&self) -> usize {
        1 << self.chunk_shift
    }

    /// Bytes of a run.
    pub(crate) fn run_size(&self) -> usize {
        (self.layout.run_len as usize) << self.chunk_shift
    }

    /// Bytes of a received frame that fit into a chunk.
    pub(crate) fn receive_room(&self) -> usize {
        self.chunk_size() - (XDP_PACKET_HEADROOM + self.layout.headroom) as usize
    }

    /// What became of the wishes for the memory.
    pub(crate) fn placement(&self) -> Placement {
        self.placement
    }

    /// Bytes that are cut into chunks.
    pub(crate) fn len(&self) -> usize {
        self.holders.len() << self.chunk_shift
    }

    /// How it is cut.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// All chunks.
    pub(crate) fn count(&self) -> u32 {
        self.holders.len() as u32
    }

    /// Chunks that are free.
    pub(crate) fn home(&self) -> u32 {
        self.free.len() as u32 + self.free_runs.len() as u32 * self.layout.run_len
    }

    /// Chunks that are not home.
    pub(crate) fn outstanding(&self) -> u32 {
        self.count() - self.home()
    }

    /// Chunks in the fill ring, the RX ring, or on their way between the two.
    pub(crate) fn with_fill(&self) -> u32 {
        self.with_fill
    }

    /// Frames in the TX ring, the completion ring, or on their way between the two.
    pub(crate) fn runs_with_tx(&self) -> u32 {
        self.runs_with_tx
    }

    /// Chunks of such frames.
    pub(crate) fn with_tx(&self) -> u32 {
        self.runs_with_tx * self.layout.run_len
    }

    /// The memory, for registering it and for the kernel's end in [`crate::testing`].
    pub(crate) fn memory(&self) -> &Arc<Mmap> {
        &self.memory
    }
}

impl Drop for Umem {
    /// Chunks with the kernel are no obstacle: a umem is dropped after its socket was closed, and unmapping takes our
    /// view of the pages away, not the pages, which the kernel pins until its last user is done. So it can never write
    /// into memory that has a new owner. What is still in hand (a forgotten `Chunk`) is a broken rule here, in this
    /// process: such memory is not given to anyone else.
    fn drop(&mut self) {
        let in_hand = self.outstanding() - self.with_fill - self.with_tx();
        if in_hand > 0 {
            tracing::error!(in_hand, bytes = self.len(), "chunks never came home: their umem stays mapped");
            std::mem::forget(Arc::clone(&self.memory));
        }
        debug_assert!(in_hand == 0 || std::thread::panicking(), "{in_hand} chunks never came home");
    }
}

/// One chunk, or a run of them, in hand: holding it is owning its bytes. Dropped, it goes home.
#[derive(Debug)]
pub(crate) struct Chunk<'u> {
    /// The exclusive borrow is what makes the chunk the only way to any byte of the umem.
    umem: &'u mut Umem,
    index: u32,
    /// Chunks.
    len: u32,
}

impl Chunk<'_> {
    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `index + len` is at most `count`, so the range lies in the mapping, which `umem` keeps. Nobody writes to it
        // while the chunk is in hand: the kernel was not given it, and other chunks cannot be in hand beside it.
        // Anonymous memory is initialized.
        unsafe { std::slice::from_raw_parts(self.start(), self.size()) }
    }

    /// All of it.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes this the only reference to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.size()) }
    }

    fn size(&self) -> usize {
        (self.len as usize) << self.umem.chunk_shift
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: within the mapping, see `bytes`.
        unsafe { self.umem.memory.address().add(self.address() as usize) }.as_ptr()
    }

    /// Gives the chunk to the kernel to receive into; returns the entry for the fill ring.
    pub(crate) fn give_fill(self) -> u64 {
        self.umem.with_fill += 1;
        let address = self.address();
        self.umem.holders[self.index as usize] = Holder::Fill;
        // Dropping would bring it home; the entry written from this address is now what stands for it.
        std::mem::forget(self);
        address
    }

    /// Gives the run to the kernel to send `len` bytes from `offset` on; `put` takes the entries for the TX ring, one for each
    /// chunk that the bytes lie in. `false`, and the run goes home, if that is no range of it or is empty.
    pub(crate) fn give_tx(self, offset: usize, len: usize, mut put: impl FnMut(Desc)) -> bool {
        let end = offset.checked_add(len).filter(|end| len > 0 && *end <= self.size());
        let Some(end) = end else { return false };
        let size = self.umem.chunk_size();
        let (first, last) = (offset / size, (end - 1) / size);
        for part in first..=last {
            let from = if part == first { offset % size } else { 0 };
            let to = (end - part * size).min(size);
            // `from` is below the chunk size, which fits; see `Umem::new`.
            self.umem.holders[self.index as usize + part] = Holder::Tx { offset: from as u16 };
            put(Desc {
                addr: self.address() + (part * size + from) as u64,
                len: (to - from) as u32,
                options: if part < last { XDP_PKT_CONTD } else { 0 },
            });
        }
        let run = self.umem.run_of(self.index);
        self.umem.parts_out[run as usize] = (last - first + 1) as u32;
        self.umem.runs_with_tx += 1;
        // As in `give_fill`.
        std::mem::forget(self);
        true
    }

    fn address(&self) -> u64 {
        u64::from(self.index) << self.umem.chunk_shift
    }
}

impl Drop for Chunk<'_> {
    fn drop(&mut self) {
        self.umem.holders[self.index as usize..(self.index + self.len) as usize].fill(Holder::Home);
        if self.index < self.umem.layout.receive {
            self.umem.free.push(self.index);
        } else {
            self.umem.free_runs.push(self.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four chunks to receive into, four runs of so many.
    fn umem(run_len: u32) -> Umem {
        Umem::new(Layout { chunk_size: 2048, headroom: 0, receive: 4, runs: 4, run_len }, None).unwrap()
    }

    #[test]
    fn a_chunk_is_in_one_place_at_a_time() {
        let mut umem = umem(1);
        let chunk = umem.take().unwrap();
        assert_eq!(chunk.bytes().len(), 2048);
        drop(chunk);
        assert_eq!(umem.outstanding(), 0);

        let given: Vec<u64> = std::iter::from_fn(|| Some(umem.take()?.give_fill())).collect();
        assert_eq!((given.len(), umem.with_fill(), umem.home()), (4, 4, 4));
        let mut distinct = given.clone();
        distinct.sort_unstable();
        assert_eq!(distinct, [0, 2048, 4096, 6144]);

        let desc = Desc { addr: given[1] + 256, len: 100, options: 0 };
        let (chunk, frame) = umem.take_received(&desc).unwrap();
        assert_eq!(frame, 256..356);
        drop(chunk);
        assert_eq!(umem.take_received(&desc).err(), Some(BadAddress), "it is home now");
        assert_eq!((umem.outstanding(), umem.with_fill()), (3, 3));
    }

    #[test]
    fn bytes_written_stay_within_their_chunk() {
        let mut umem = umem(1);
        let mut descs = Vec::new();
        for n in 1..=4 {
            let mut chunk = umem.take_run().unwrap();
            chunk.bytes_mut().fill(n);
            assert!(chunk.give_tx(8, 2040, |desc| descs.push(desc)));
        }
        assert!(umem.take_run().is_none());
        let memory = Arc::clone(umem.memory());
        for (n, desc) in (1..=4).zip(&descs) {
            assert_eq!((desc.addr % 2048, desc.len, desc.options), (8, 2040, 0));
            // SAFETY: within the mapping, of which nobody has a reference now.
            let byte = unsafe { memory.address().add(desc.addr as usize).read() };
            assert_eq!(byte, n);
            umem.complete(desc.addr).unwrap();
        }
        assert_eq!((umem.outstanding(), umem.with_tx()), (0, 0));
    }

    /// A frame of several chunks is written as one piece, and its run comes home with the last of them, in whatever order.
    #[test]
    fn a_run_is_sent_in_parts_and_comes_home_whole() {
        let mut umem = umem(3);
        let mut descs = Vec::new();
        let mut run = umem.take_run().unwrap();
        assert_eq!(run.bytes_mut().len(), 6144);
        assert!(run.give_tx(100, 2048 + 2, |desc| descs.push(desc)));
        let [first, second] = descs[..] else { panic!("{descs:?}") };
        assert_eq!((first.addr % 2048, first.len, first.options), (100, 1948, XDP_PKT_CONTD));
        assert_eq!((second.addr, second.len, second.options), (first.addr + 1948, 102, 0));
        assert_eq!((umem.with_tx(), umem.runs_with_tx(), umem.outstanding()), (3, 1, 3));
        assert_eq!(umem.complete(second.addr + 102).err(), Some(BadAddress), "not where it began");
        assert_eq!(umem.complete(second.addr + 2048).err(), Some(BadAddress), "of the run, and not of the frame");
        umem.complete(second.addr).unwrap();
        assert_eq!(umem.complete(second.addr).err(), Some(BadAddress), "once");
        assert_eq!(umem.outstanding(), 3, "the first is still read");
        umem.complete(first.addr).unwrap();
        assert_eq!((umem.outstanding(), umem.with_tx()), (0, 0));

        let run = umem.take_run().unwrap();
        assert!(!run.give_tx(6144, 1, |_| panic!("nothing to send")));
        assert_eq!(umem.outstanding(), 0);
    }

    #[test]
    fn memory_is_unmapped_though_chunks_are_with_the_kernel() {
        let home = umem(1);
        let watch = Arc::downgrade(home.memory());
        drop(home);
        assert_eq!(watch.strong_count(), 0);

        let mut with_the_kernel = umem(1);
        let watch = Arc::downgrade(with_the_kernel.memory());
        let _ = with_the_kernel.take().unwrap().give_fill();
        drop(with_the_kernel);
        assert_eq!(watch.strong_count(), 0, "the socket is closed when the umem is dropped, so nothing will come back");
    }

    #[test]
    fn forgotten_chunks_fail_a_test_and_their_memory_stays_mapped() {
        let mut umem = umem(1);
        let watch = Arc::downgrade(umem.memory());
        std::mem::forget(umem.take().unwrap());
        let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(umem)));
        assert_eq!(dropped.is_err(), cfg!(debug_assertions));
        assert_eq!(watch.strong_count(), 1, "kept mapped on purpose");
    }
}
