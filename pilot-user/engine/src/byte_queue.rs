//! Bytes one behind the other: what waits to be sent, or to be taken.

/// A queue of bytes in one piece. What was taken off the front leaves room there, to which the rest is moved when the end is
/// reached and that costs no more than was taken: once it has grown, nothing is allocated.
#[derive(Debug, Default)]
pub(crate) struct ByteQueue {
    bytes: Vec<u8>,
    /// Those that were taken off.
    front: usize,
}

impl ByteQueue {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.front
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends these, one behind the other.
    #[inline]
    pub(crate) fn push<const N: usize>(&mut self, parts: [&[u8]; N]) {
        if self.front == self.bytes.len() {
            self.bytes.clear();
            self.front = 0;
        }
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if self.bytes.capacity() - self.bytes.len() < length {
            self.make_room(length);
        }
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
    }

    /// Moves the bytes to where those were that were taken off, if these are as many; else there will be more memory.
    #[cold]
    fn make_room(&mut self, length: usize) {
        if self.front >= self.len() {
            self.bytes.copy_within(self.front.., 0);
            self.bytes.truncate(self.len());
            self.front = 0;
        }
        self.bytes.reserve(length);
    }

    /// The bytes from `offset` on, counted from the front; fewer where there are no more.
    pub(crate) fn get(&self, offset: usize, length: usize) -> &[u8] {
        let rest = self.bytes.get(self.front + offset..).unwrap_or_default();
        rest.get(..length).unwrap_or(rest)
    }

    /// Takes bytes off the front, as many as there are, and lends them.
    #[inline]
    pub(crate) fn take(&mut self, length: usize) -> &[u8] {
        let end = self.front.saturating_add(length).min(self.bytes.len());
        &self.bytes[std::mem::replace(&mut self.front, end)..end]
    }

    /// All that was not taken off.
    pub(crate) fn rest(&self) -> &[u8] {
        self.get(0, usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        /// Against the standard library's.
        #[test]
        fn agrees_with_a_deque(steps in prop::collection::vec((any::<bool>(), 0usize..50), 1..200)) {
            let (mut queue, mut all) = (ByteQueue::default(), VecDeque::new());
            for (n, (push, length)) in steps.into_iter().enumerate() {
                if push {
                    queue.push([&vec![n as u8; length], &[n as u8][..length.min(1)]]);
                    all.extend(std::iter::repeat_n(n as u8, length + length.min(1)));
                } else {
                    let taken: Vec<u8> = all.drain(..length.min(all.len())).collect();
                    prop_assert_eq!(queue.take(length), &taken);
                }
                prop_assert_eq!(queue.len(), all.len());
                prop_assert_eq!(queue.get(0, usize::MAX), all.make_contiguous() as &[u8]);
                prop_assert_eq!(queue.get(3, 5), all.iter().copied().skip(3).take(5).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn what_flows_through_grows_no_further() {
        let mut queue = ByteQueue::default();
        let mut grown = 0;
        for n in 0..10_000 {
            while queue.len() < 1000 {
                queue.push([&[n as u8; 19]]);
            }
            queue.take(19 * (1 + n % 40));
            if n == 100 {
                grown = queue.bytes.capacity();
            }
        }
        assert_eq!(queue.bytes.capacity(), grown);
    }
}
