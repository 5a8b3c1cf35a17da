//! The four rings: single producer, single consumer, in memory shared with the kernel.
//!
//! Userspace produces into Fill and TX and consumes RX and Completion. Both ends are here, because the kernel's end is
//! played in memory by [`crate::testing`].
//!
//! Order of memory: the producer writes entries, then stores its index with release; the consumer loads that index with
//! acquire, then reads entries. Backwards the same: the consumer stores its index with release after its last read, and
//! the producer loads it with acquire before it overwrites. That is the protocol of the kernel's `xsk_queue.h`.

use std::io;
use std::mem::{align_of, size_of};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::abi::{Plain, RingOffsets, XDP_RING_NEED_WAKEUP};
use crate::index::Cursor;
use crate::mmap::Mmap;
use crate::sync::{self, AtomicU32, Ordering, Place, fence};

/// A ring's memory: two indexes, flags, and entries of type `T`.
#[derive(Debug)]
struct Ring<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<Place<T>>,
    size: u32,
    /// Keeps what the pointers point to mapped.
    _memory: Arc<Mmap>,
}

// SAFETY: the pointers lead into `_memory`, which any thread may use; atomics are shared by nature, and entries are
// touched only by the one `Producer` or `Consumer` that owns this value.
unsafe impl<T: Plain + Send> Send for Ring<T> {}

impl<T: Plain> Ring<T> {
    /// The ring of `size` entries whose parts are at `offsets` in `memory`. Refuses offsets that do not fit.
    fn new(memory: Arc<Mmap>, offsets: &RingOffsets, size: u32) -> io::Result<Self> {
        let index_len = size_of::<AtomicU32>();
        let entries_len = (size as usize).checked_mul(size_of::<Place<T>>()).ok_or(io::ErrorKind::InvalidInput)?;
        if !size.is_power_of_two() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the size of a ring is no power of two"));
        }
        Ok(Self {
            producer: part(&memory, offsets.producer, index_len)?,
            consumer: part(&memory, offsets.consumer, index_len)?,
            flags: part(&memory, offsets.flags, index_len)?,
            entries: part(&memory, offsets.desc, entries_len)?,
            size,
            _memory: memory,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: `part` checked range and alignment, `_memory` keeps it mapped, and any bits are an AtomicU32.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as in `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as in `producer`.
        unsafe { self.flags.as_ref() }
    }

    fn read(&self, slot: u32) -> T {
        // SAFETY: in range by the mask and by `part`, and `T: Plain` allows any bits.
        unsafe { sync::read(self.entries.add((slot & (self.size - 1)) as usize)) }
    }

    fn write(&self, slot: u32, value: T) {
        // SAFETY: as in `read`. No reference to entries exists, so this writes beside none.
        unsafe { sync::write(self.entries.add((slot & (self.size - 1)) as usize), value) }
    }
}

/// The part of `memory` at `offset`, `len` bytes long.
fn part<P>(memory: &Mmap, offset: u64, len: usize) -> io::Result<NonNull<P>> {
    let fits =
        usize::try_from(offset).ok().filter(|start| start.checked_add(len).is_some_and(|end| end <= memory.len()));
    match fits {
        // The mapping is page-aligned, so an aligned offset is an aligned address.
        // SAFETY: in range, as just checked.
        Some(start) if start % align_of::<P>() == 0 => Ok(unsafe { memory.address().add(start) }.cast()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel put a part of a ring outside its mapping")),
    }
}

/// The producing end of a ring.
#[derive(Debug)]
pub(crate) struct Producer<T> {
    ring: Ring<T>,
    cursor: Cursor,
}

impl<T: Plain> Producer<T> {
    pub(crate) fn new(memory: Arc<Mmap>, offsets: &RingOffsets, size: u32) -> io::Result<Self> {
        let ring = Ring::new(memory, offsets, size)?;
        let cursor =
            Cursor::new(ring.producer().load(Ordering::Relaxed), ring.consumer().load(Ordering::Acquire), size);
        Ok(Self { ring, cursor })
    }

    /// Room for one entry, or `None` when the ring is full. Looks at the consumer only when the room it knew of is used
    /// up: that cache line is the other core's.
    pub(crate) fn reserve(&mut self) -> Option<Entry<'_, T>> {
        if self.cursor.room() == 0 {
            self.cursor.see(self.ring.consumer().load(Ordering::Acquire));
            if self.cursor.room() == 0 {
                return None;
            }
        }
        Some(Entry(self))
    }

    /// Whether there is room for so many entries.
    pub(crate) fn has_room(&mut self, entries: u32) -> bool {
        if self.cursor.room() < entries {
            self.cursor.see(self.ring.consumer().load(Ordering::Acquire));
        }
        self.cursor.room() >= entries
    }

    /// Publishes what was written.
    pub(crate) fn submit(&mut self) {
        self.ring.producer().store(self.cursor.next(), Ordering::Release);
    }

    /// Entries that the consumer has not said it is done with, at most a ring's worth.
    pub(crate) fn queued(&mut self) -> u32 {
        self.cursor.see(self.ring.consumer().load(Ordering::Acquire));
        self.ring.size - self.cursor.room()
    }

    /// Whether the consumer sleeps until it is kicked.
    ///
    /// The fence keeps the load of the flag behind the store of the index in `submit`. Without it the processor may do
    /// the load first: the consumer then finds the ring empty, sets the flag and sleeps, while we saw no flag and stay
    /// silent. With a fence on both sides one of the two must see the other. Not every driver has its fence, so
    /// callers ask in every pass while entries are queued, not only after a submit: a miss costs one pass.
    pub(crate) fn need_wakeup(&self) -> bool {
        fence(Ordering::SeqCst);
        self.ring.flags().load(Ordering::Relaxed) & XDP_RING_NEED_WAKEUP != 0
    }
}

/// Room for one entry. Dropped unwritten, nothing happened.
#[derive(Debug)]
pub(crate) struct Entry<'a, T>(&'a mut Producer<T>);

impl<T: Plain> Entry<'_, T> {
    /// Writes the entry; [`Producer::submit`] publishes it.
    pub(crate) fn write(self, value: T) {
        self.0.ring.write(self.0.cursor.slot(), value);
        self.0.cursor.advance();
    }
}

/// The consuming end of a ring.
#[derive(Debug)]
pub(crate) struct Consumer<T> {
    ring: Ring<T>,
    cursor: Cursor,
}

impl<T: Plain> Consumer<T> {
    pub(crate) fn new(memory: Arc<Mmap>, offsets: &RingOffsets, size: u32) -> io::Result<Self> {
        let ring = Ring::new(memory, offsets, size)?;
        let cursor =
            Cursor::new(ring.consumer().load(Ordering::Relaxed), ring.producer().load(Ordering::Acquire), size);
        Ok(Self { ring, cursor })
    }

    /// The next entry, or `None` when there is none. It stays the producer's until [`Consumer::release`].
    pub(crate) fn peek(&mut self) -> Option<T> {
        if self.cursor.ready() == 0 {
            self.cursor.see(self.ring.producer().load(Ordering::Acquire));
            if self.cursor.ready() == 0 {
                return None;
            }
        }
        let value = self.ring.read(self.cursor.slot());
        self.cursor.advance();
        Some(value)
    }

    /// Gives the room of all entries that were peeked at back to the producer.
    pub(crate) fn release(&mut self) {
        self.ring.consumer().store(self.cursor.next(), Ordering::Release);
    }

    /// Whether nothing is left to read.
    pub(crate) fn is_empty(&mut self) -> bool {
        self.cursor.see(self.ring.producer().load(Ordering::Acquire));
        self.cursor.ready() == 0
    }

    /// Tells the producer whether it must kick. Only the kernel's end does this.
    pub(crate) fn set_need_wakeup(&self, needed: bool) {
        let flags = if needed { XDP_RING_NEED_WAKEUP } else { 0 };
        self.ring.flags().store(flags, Ordering::Relaxed);
        // The other fence of the pair, see `Producer::need_wakeup`: who sets the flag looks at the ring after it.
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
#[cfg(loom)]
#[path = "ring/loom.rs"]
mod every_order;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    const OFFSETS: RingOffsets = RingOffsets { producer: 0, consumer: 64, flags: 128, desc: 192 };
    const SIZE: u32 = 4;

    /// The words and entries of a ring of four `u64`, as the other side finds them.
    struct Raw(Arc<Mmap>);

    impl Raw {
        fn new(start: u32) -> Self {
            let raw = Self(Arc::new(Mmap::anonymous(192 + 4 * 8).unwrap()));
            raw.word(0).store(start, Ordering::SeqCst);
            raw.word(64).store(start, Ordering::SeqCst);
            raw
        }

        fn word(&self, offset: usize) -> &AtomicU32 {
            // SAFETY: within the mapping, aligned, and every access to it is atomic.
            unsafe { self.0.address().add(offset).cast::<AtomicU32>().as_ref() }
        }

        fn entry(&self, slot: usize) -> *mut u64 {
            // SAFETY: within the mapping for the four slots there are.
            unsafe { self.0.address().add(192 + 8 * slot).cast().as_ptr() }
        }

        fn entries(&self) -> [u64; 4] {
            // SAFETY: nobody writes to the entries meanwhile.
            std::array::from_fn(|slot| unsafe { self.entry(slot).read() })
        }
    }

    #[test]
    fn a_producer_publishes_on_submit_and_at_the_wrap() {
        let raw = Raw::new(u32::MAX - 1);
        let mut producer = Producer::<u64>::new(Arc::clone(&raw.0), &OFFSETS, SIZE).unwrap();
        for value in 10..14 {
            producer.reserve().unwrap().write(value);
        }
        assert!(producer.reserve().is_none(), "full");
        assert_eq!(raw.entries(), [12, 13, 10, 11]);
        assert_eq!(raw.word(0).load(Ordering::SeqCst), u32::MAX - 1, "nothing is published before submit");
        producer.submit();
        assert_eq!(raw.word(0).load(Ordering::SeqCst), 2);
        assert_eq!(producer.queued(), 4);

        raw.word(64).store(u32::MAX, Ordering::SeqCst);
        assert_eq!(producer.queued(), 3);
        producer.reserve().unwrap().write(14);
        assert!(producer.reserve().is_none());
        assert_eq!(raw.entries(), [12, 13, 14, 11]);
    }

    #[test]
    fn a_consumer_gives_room_back_on_release_and_at_the_wrap() {
        let raw = Raw::new(u32::MAX - 1);
        let mut consumer = Consumer::<u64>::new(Arc::clone(&raw.0), &OFFSETS, SIZE).unwrap();
        assert!(consumer.peek().is_none() && consumer.is_empty());
        for slot in 0..4 {
            // SAFETY: within the mapping; the consumer does not read meanwhile.
            unsafe { raw.entry(slot).write(slot as u64) };
        }
        raw.word(0).store(1, Ordering::SeqCst);
        assert!(!consumer.is_empty());
        assert_eq!(std::iter::from_fn(|| consumer.peek()).collect::<Vec<_>>(), [2, 3, 0]);
        assert_eq!(raw.word(64).load(Ordering::SeqCst), u32::MAX - 1, "the entries are ours until release");
        consumer.release();
        assert_eq!(raw.word(64).load(Ordering::SeqCst), 1);
        assert!(consumer.is_empty());
    }

    #[test]
    fn impossible_indexes_stay_within_the_ring() {
        let raw = Raw::new(0);
        let mut producer = Producer::<u64>::new(Arc::clone(&raw.0), &OFFSETS, SIZE).unwrap();
        for _ in 0..4 {
            producer.reserve().unwrap().write(7);
        }
        for consumer in [5, 1000, u32::MAX] {
            raw.word(64).store(consumer, Ordering::SeqCst);
            assert!(producer.reserve().is_none(), "a consumer at {consumer}");
            assert_eq!(producer.queued(), 4);
        }
        let mut consumer = Consumer::<u64>::new(Arc::clone(&raw.0), &OFFSETS, SIZE).unwrap();
        raw.word(64).store(0, Ordering::SeqCst);
        for producer in [0x8000_0000, u32::MAX] {
            raw.word(0).store(producer, Ordering::SeqCst);
            assert!((0..100).filter_map(|_| consumer.peek()).all(|value| value == 7), "a producer at {producer}");
        }
    }

    #[test]
    fn the_flag_is_the_lowest_bit() {
        let raw = Raw::new(0);
        let producer = Producer::<u64>::new(Arc::clone(&raw.0), &OFFSETS, SIZE).unwrap();
        for (flags, needed) in [(0, false), (1, true), (2, false), (3, true)] {
            raw.word(128).store(flags, Ordering::SeqCst);
            assert_eq!(producer.need_wakeup(), needed, "{flags}");
        }
    }

    #[test]
    fn parts_outside_the_mapping_are_refused() {
        let memory = Arc::new(Mmap::anonymous(192 + 4 * 8).unwrap());
        let opens = |offsets: RingOffsets| Producer::<u64>::new(Arc::clone(&memory), &offsets, SIZE).is_ok();
        assert!(opens(OFFSETS));
        assert!(!opens(RingOffsets { desc: 200, ..OFFSETS }), "entries end behind it");
        assert!(!opens(RingOffsets { desc: 188, ..OFFSETS }), "entries not aligned");
        assert!(!opens(RingOffsets { desc: u64::MAX - 7, ..OFFSETS }));
        assert!(!opens(RingOffsets { producer: 222, ..OFFSETS }));
        assert!(!opens(RingOffsets { consumer: 224, ..OFFSETS }));
        assert!(!opens(RingOffsets { flags: 1, ..OFFSETS }));
        assert!(Producer::<u64>::new(Arc::clone(&memory), &OFFSETS, 3).is_err(), "no power of two");
    }

    /// One thread produces, another consumes: nothing is lost, doubled, or seen before it is written.
    #[test]
    fn two_threads_pass_numbers_through_the_wrap() {
        const NUMBERS: u64 = 200_000;
        let raw = Raw::new(u32::MAX - 1000);
        let mut producer = Producer::<u64>::new(Arc::clone(&raw.0), &OFFSETS, SIZE).unwrap();
        let mut consumer = Consumer::<u64>::new(Arc::clone(&raw.0), &OFFSETS, SIZE).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut next = 0;
                while next < NUMBERS {
                    match producer.reserve() {
                        Some(entry) => {
                            entry.write(next);
                            next += 1;
                            producer.submit();
                        }
                        None => std::thread::yield_now(),
                    }
                }
            });
            let mut expected = 0;
            while expected < NUMBERS {
                match consumer.peek() {
                    Some(value) => {
                        assert_eq!(value, expected);
                        expected += 1;
                        consumer.release();
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
    }
}
