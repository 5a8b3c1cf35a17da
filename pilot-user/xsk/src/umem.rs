//! Packet memory, cut into chunks that are owned by move. The crate's head says who may own a chunk.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::abi::{Desc, XDP_PACKET_HEADROOM};
use crate::mmap::Mmap;

/// Who has a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    /// Nobody: it is in the free list.
    Home,
    /// A [`Chunk`].
    Hand,
    /// The kernel, to write a received frame into it.
    Fill,
    /// The kernel, to send the frame that begins at this byte of it.
    Tx { offset: u16 },
}

/// The kernel named memory that it was not given, or not for this purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadAddress;

/// The packet memory of one socket.
#[derive(Debug)]
pub(crate) struct Umem {
    memory: Arc<Mmap>,
    /// log2 of the chunk size in bytes.
    chunk_shift: u32,
    headroom: u32,
    /// One per chunk.
    holders: Box<[Holder]>,
    /// Chunks at home. Last in, first out: the chunk used last is the one still in the cache.
    free: Vec<u32>,
    with_fill: u32,
    with_tx: u32,
}

impl Umem {
    /// `count` chunks of `chunk_size` bytes, all at home. `headroom` bytes stay free before every received frame, beside
    /// what the kernel reserves itself.
    pub(crate) fn new(count: u32, chunk_size: u32, headroom: u32) -> io::Result<Self> {
        debug_assert!(chunk_size.is_power_of_two() && chunk_size <= 1 << 15, "offsets are kept in 16 bits");
        let len = (count as usize).checked_mul(chunk_size as usize).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self {
            memory: Arc::new(Mmap::anonymous(len)?),
            chunk_shift: chunk_size.trailing_zeros(),
            headroom,
            holders: vec![Holder::Home; count as usize].into_boxed_slice(),
            free: (0..count).rev().collect(),
            with_fill: 0,
            with_tx: 0,
        })
    }

    /// A free chunk, or `None` when none is at home.
    pub(crate) fn take(&mut self) -> Option<Chunk<'_>> {
        let index = self.free.pop()?;
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

    /// The chunk of an address read from COMPLETION. It must be the very address that was given.
    pub(crate) fn take_completed(&mut self, address: u64) -> Result<Chunk<'_>, BadAddress> {
        let (index, offset) = self.locate(address)?;
        match self.holders[index as usize] {
            Holder::Tx { offset: given } if usize::from(given) == offset => {
                self.with_tx -= 1;
                Ok(self.hold(index))
            }
            _ => Err(BadAddress),
        }
    }

    fn hold(&mut self, index: u32) -> Chunk<'_> {
        self.holders[index as usize] = Holder::Hand;
        Chunk { umem: self, index }
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

    /// Bytes of a received frame that fit into a chunk.
    pub(crate) fn receive_room(&self) -> usize {
        self.chunk_size() - (XDP_PACKET_HEADROOM + self.headroom) as usize
    }

    /// All chunks.
    pub(crate) fn count(&self) -> u32 {
        self.holders.len() as u32
    }

    /// Chunks that are free.
    pub(crate) fn home(&self) -> u32 {
        self.free.len() as u32
    }

    /// Chunks that are not home.
    pub(crate) fn outstanding(&self) -> u32 {
        self.count() - self.home()
    }

    /// Chunks in the fill ring, the RX ring, or on their way between the two.
    pub(crate) fn with_fill(&self) -> u32 {
        self.with_fill
    }

    /// Chunks in the TX ring, the completion ring, or on their way between the two.
    pub(crate) fn with_tx(&self) -> u32 {
        self.with_tx
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
        let in_hand = self.outstanding() - self.with_fill - self.with_tx;
        if in_hand > 0 {
            tracing::error!(in_hand, bytes = self.memory.len(), "chunks never came home: their umem stays mapped");
            std::mem::forget(Arc::clone(&self.memory));
        }
        debug_assert!(in_hand == 0 || std::thread::panicking(), "{in_hand} chunks never came home");
    }
}

/// One chunk, in hand: holding it is owning its bytes. Dropped, it goes home.
#[derive(Debug)]
pub(crate) struct Chunk<'u> {
    /// The exclusive borrow is what makes the chunk the only way to any byte of the umem.
    umem: &'u mut Umem,
    index: u32,
}

impl Chunk<'_> {
    /// The whole chunk.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `index` is below `count`, so the range lies in the mapping, which `umem` keeps. Nobody writes to it
        // while the chunk is in hand: the kernel was not given it, and other chunks cannot be in hand beside it.
        // Anonymous memory is initialized.
        unsafe { std::slice::from_raw_parts(self.start(), self.umem.chunk_size()) }
    }

    /// The whole chunk.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes this the only reference to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.umem.chunk_size()) }
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: within the mapping, see `bytes`.
        unsafe { self.umem.memory.address().add(self.address() as usize) }.as_ptr()
    }

    /// Gives the chunk to the kernel to receive into; returns the entry for the fill ring.
    pub(crate) fn give_fill(self) -> u64 {
        self.umem.with_fill += 1;
        self.give(Holder::Fill)
    }

    /// Gives the chunk to the kernel to send `len` bytes from `offset` on; returns the entry for the TX ring. `None`, and
    /// the chunk goes home, if that is no range of the chunk or is empty.
    pub(crate) fn give_tx(self, offset: usize, len: usize) -> Option<Desc> {
        let end = offset.checked_add(len)?;
        if len == 0 || end > self.umem.chunk_size() {
            return None;
        }
        let (start, len) = (u16::try_from(offset).ok()?, u32::try_from(len).ok()?);
        self.umem.with_tx += 1;
        let base = self.give(Holder::Tx { offset: start });
        Some(Desc { addr: base + u64::from(start), len, options: 0 })
    }

    fn give(self, holder: Holder) -> u64 {
        let address = self.address();
        self.umem.holders[self.index as usize] = holder;
        // Dropping would bring it home; the entry written from this address is now what stands for it.
        std::mem::forget(self);
        address
    }

    fn address(&self) -> u64 {
        u64::from(self.index) << self.umem.chunk_shift
    }
}

impl Drop for Chunk<'_> {
    fn drop(&mut self) {
        self.umem.holders[self.index as usize] = Holder::Home;
        self.umem.free.push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn umem() -> Umem {
        Umem::new(4, 2048, 0).unwrap()
    }

    #[test]
    fn a_chunk_is_in_one_place_at_a_time() {
        let mut umem = umem();
        let chunk = umem.take().unwrap();
        assert_eq!(chunk.bytes().len(), 2048);
        drop(chunk);
        assert_eq!(umem.outstanding(), 0);

        let given: Vec<u64> = std::iter::from_fn(|| Some(umem.take()?.give_fill())).collect();
        assert_eq!((given.len(), umem.with_fill(), umem.home()), (4, 4, 0));
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
        let mut umem = umem();
        let descs: Vec<Desc> = (1..=4)
            .map(|n| {
                let mut chunk = umem.take().unwrap();
                chunk.bytes_mut().fill(n);
                chunk.give_tx(8, 2040).unwrap()
            })
            .collect();
        assert!(umem.take().is_none());
        for (n, desc) in (1..=4).zip(&descs) {
            let chunk = umem.take_completed(desc.addr).unwrap();
            assert!(chunk.bytes().iter().all(|&byte| byte == n));
        }
        assert_eq!((umem.outstanding(), umem.with_tx()), (0, 0));
    }

    #[test]
    fn memory_is_unmapped_though_chunks_are_with_the_kernel() {
        let home = umem();
        let watch = Arc::downgrade(home.memory());
        drop(home);
        assert_eq!(watch.strong_count(), 0);

        let mut with_the_kernel = umem();
        let watch = Arc::downgrade(with_the_kernel.memory());
        let _ = with_the_kernel.take().unwrap().give_fill();
        drop(with_the_kernel);
        assert_eq!(watch.strong_count(), 0, "the socket is closed when the umem is dropped, so nothing will come back");
    }

    #[test]
    fn forgotten_chunks_fail_a_test_and_their_memory_stays_mapped() {
        let mut umem = umem();
        let watch = Arc::downgrade(umem.memory());
        std::mem::forget(umem.take().unwrap());
        let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(umem)));
        assert_eq!(dropped.is_err(), cfg!(debug_assertions));
        assert_eq!(watch.strong_count(), 1, "kept mapped on purpose");
    }
}
