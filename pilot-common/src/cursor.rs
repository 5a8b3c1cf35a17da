//! Checked reads of packet memory, wherever it lies.

/// A frame: bytes of which some may be out of reach.
///
/// Implemented for slices here and for the XDP context in `pilot-ebpf`, so that one parser serves both.
pub trait Cursor {
    /// Bytes of the whole frame, also of those that [`Cursor::read`] cannot reach (XDP fragments).
    fn frame_len(&self) -> usize;

    /// The `N` bytes at `offset`, or `None` unless all of them can be read.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

impl Cursor for [u8] {
    #[inline(always)]
    fn frame_len(&self) -> usize {
        self.len()
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_only_what_is_there() {
        let bytes = [1, 2, 3, 4];
        assert_eq!(bytes.read::<2>(2), Some([3, 4]));
        assert_eq!(bytes.read::<0>(4), Some([]));
        assert_eq!(bytes.read::<2>(3), None);
        assert_eq!(bytes.read::<1>(usize::MAX), None);
        assert_eq!(bytes.frame_len(), 4);
    }
}
