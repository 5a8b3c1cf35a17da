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

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let is_full = self.bytes.capacity() - self.bytes.len() < bytes.len();
        if is_full && self.front >= self.len() {
            self.bytes.copy_within(self.front.., 0);
            self.bytes.truncate(self.len());
            self.front = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The bytes from `offset` on, counted from the front; fewer where there are no more.
    pub(crate) fn get(&self, offset: usize, length: usize) -> &[u8] {
        let rest = self.bytes.get(self.front + offset..).unwrap_or_default();
        rest.get(..length).unwrap_or(rest)
    }

    /// Takes bytes off the front, as many as there are.
    pub(crate) fn take(&mut self, length: usize) {
        self.front += length;
        if self.front >= self.bytes.len() {
            self.bytes.clear();
            self.front = 0;
        }
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
                    queue.push(&vec![n as u8; length]);
                    all.extend(std::iter::repeat_n(n as u8, length));
                } else {
                    queue.take(length);
                    all.drain(..length.min(all.len()));
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
                queue.push(&[n as u8; 19]);
            }
            queue.take(19 * (1 + n % 40));
            if n == 100 {
                grown = queue.bytes.capacity();
            }
        }
        assert_eq!(queue.bytes.capacity(), grown);
    }
}
