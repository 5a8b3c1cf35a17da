//! Arithmetic of ring indexes: 32 bits that count for ever and wrap, masked to a slot when memory is touched.

/// One side's position in a ring, and what it last saw of the other side's.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// The next entry this side writes or reads; published to the other side later, for many at once.
    next: u32,
    /// The other side's index when last loaded. It only moves towards more work, so an old value is merely cautious.
    peer: u32,
    /// Entries of the ring, a power of two: so 2^32 is a multiple of it, and masks stay right when indexes wrap.
    size: u32,
}

impl Cursor {
    /// A position at `next` in a ring of `size` entries, with the other side at `peer`.
    pub(crate) fn new(next: u32, peer: u32, size: u32) -> Self {
        debug_assert!(size.is_power_of_two());
        Self { next, peer, size }
    }

    /// Notes the other side's index.
    pub(crate) fn see(&mut self, peer: u32) {
        self.peer = peer;
    }

    /// For a producer: entries it may write. An impossible index of the consumer gives none.
    pub(crate) fn room(&self) -> u32 {
        self.size.saturating_sub(self.next.wrapping_sub(self.peer))
    }

    /// For a consumer: entries it may read. An impossible index of the producer gives at most one ring's worth.
    pub(crate) fn ready(&self) -> u32 {
        self.peer.wrapping_sub(self.next).min(self.size)
    }

    /// The slot of the next entry: always below the ring's size.
    pub(crate) fn slot(&self) -> u32 {
        self.next & (self.size - 1)
    }

    /// Goes past the next entry.
    pub(crate) fn advance(&mut self) {
        self.next = self.next.wrapping_add(1);
    }

    /// The index to publish.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_across_the_wrap() {
        let mut producer = Cursor::new(u32::MAX - 1, u32::MAX - 1, 4);
        assert_eq!(producer.room(), 4);
        let slots: Vec<u32> = (0..4)
            .map(|_| {
                let slot = producer.slot();
                producer.advance();
                slot
            })
            .collect();
        assert_eq!(slots, [2, 3, 0, 1]);
        assert_eq!((producer.next(), producer.room()), (2, 0));
        producer.see(1);
        assert_eq!(producer.room(), 3);

        let mut consumer = Cursor::new(u32::MAX - 1, 2, 4);
        assert_eq!(consumer.ready(), 4);
        consumer.advance();
        assert_eq!((consumer.slot(), consumer.ready()), (3, 3));
    }

    #[test]
    fn an_impossible_peer_gives_no_room_and_at_most_one_ring() {
        assert_eq!(Cursor::new(10, 11, 8).room(), 0, "a consumer ahead of the producer");
        assert_eq!(Cursor::new(10, 1, 8).room(), 0, "a consumer more than a ring behind");
        assert_eq!(Cursor::new(10, 10 + 9, 8).ready(), 8);
        assert_eq!(Cursor::new(10, 9, 8).ready(), 8, "a producer behind the consumer");
    }
}
