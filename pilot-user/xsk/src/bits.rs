//! A set of small numbers that a BPF program looks up: bits in memory shared with it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::mmap::Mmap;

/// Bits of an array map of u64 that was made with BPF_F_MMAPABLE, or of a part of it. Setting one needs no privilege and no
/// system call; mapping them does.
///
/// One thread sets and clears (`&mut`), programs in the kernel read. Each bit is news by itself, so nothing is ordered
/// here: who sends a packet after setting a bit does that by a system call, or by publishing a ring's index with Release,
/// and the answer's way back orders what its receiver looks up after both.
#[derive(Debug)]
pub struct SharedBits {
    memory: Mmap,
}

impl SharedBits {
    /// The `words` words of the map from word `first` on: both multiples of a page's.
    ///
    /// # Errors
    /// Those of `mmap`: not such a map, beyond its end, or not at a page's beginning (EINVAL); no right to write to it (EPERM).
    pub fn map(map: BorrowedFd<'_>, first: usize, words: usize) -> io::Result<Self> {
        let bytes = |words: usize| words.checked_mul(size_of::<AtomicU64>()).ok_or(io::ErrorKind::InvalidInput);
        let offset = i64::try_from(bytes(first)?).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(Self { memory: Mmap::of(map, offset, bytes(words)?)? })
    }

    /// Sets a bit. One that is not there is nobody's, and stays so.
    pub fn insert(&mut self, bit: u32) {
        if let Some((word, mask)) = self.find(bit) {
            word.fetch_or(mask, Ordering::Relaxed);
        }
    }

    /// Clears a bit.
    pub fn remove(&mut self, bit: u32) {
        if let Some((word, mask)) = self.find(bit) {
            word.fetch_and(!mask, Ordering::Relaxed);
        }
    }

    /// Whether the bit is there and set.
    pub fn contains(&self, bit: u32) -> bool {
        self.find(bit).is_some_and(|(word, mask)| word.load(Ordering::Relaxed) & mask != 0)
    }

    fn find(&self, bit: u32) -> Option<(&AtomicU64, u64)> {
        let len = self.memory.len() / size_of::<AtomicU64>();
        // SAFETY: `len` words lie within the mapping, which lives as long as `self` and begins at a page, so that they are
        // aligned. Nobody makes another kind of reference to it; the kernel's programs only read.
        let words = unsafe { std::slice::from_raw_parts(self.memory.address().cast::<AtomicU64>().as_ptr(), len) };
        Some((words.get((bit / u64::BITS) as usize)?, 1 << (bit % u64::BITS)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// Words of a page.
    const PAGE: usize = 512;

    /// A file takes the map's place: what another reads there is what was set. A map's own bounds are in
    /// tests/tests/xdp_verdicts.
    #[test]
    fn bits_are_where_others_look_for_them() {
        let path = std::env::temp_dir().join(format!("pilot-bits-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.set_len(3 * 8 * PAGE as u64).unwrap();
        let mut bits = SharedBits::map(file.as_fd(), PAGE, PAGE).unwrap();
        let word = |index: usize| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, 8 * index as u64).unwrap();
            u64::from_ne_bytes(bytes)
        };
        let last = 64 * PAGE as u32 - 1;
        for bit in [0, 63, 64, last] {
            bits.insert(bit);
            assert!(bits.contains(bit));
        }
        assert_eq!([PAGE, PAGE + 1, 2 * PAGE - 1].map(word), [1 | 1 << 63, 1, 1 << 63]);
        bits.remove(0);
        bits.remove(1);
        assert_eq!(([0, 1, 63].map(|bit| bits.contains(bit)), word(PAGE)), ([false, false, true], 1 << 63));
        // What is not there cannot be set, and what is beside it is others'.
        for bit in [last + 1, u32::MAX] {
            bits.insert(bit);
            assert!(!bits.contains(bit));
        }
        assert_eq!([PAGE - 1, 2 * PAGE].map(word), [0, 0]);
        assert!(SharedBits::map(file.as_fd(), 1, PAGE).is_err(), "not at a page's beginning");
        assert!(SharedBits::map(file.as_fd(), usize::MAX, 1).is_err());
    }
}
