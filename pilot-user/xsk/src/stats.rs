//! What is counted. Plain numbers: the worker that owns the socket publishes them.

/// What the socket did and saw, since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Frames handed to the receiver.
    pub received: u64,
    /// Of those, frames that came in several chunks.
    pub in_parts: u64,
    /// Frames put into the TX ring.
    pub sent: u64,
    /// System calls made to wake the sending side.
    pub tx_kicks: u64,
    /// System calls made to wake the receiving side.
    pub fill_kicks: u64,
    /// Frames the kernel dropped on sending and yet completed (EBUSY in copy mode): the device's queue was full, the
    /// frame longer than the MTU, or the peer down.
    pub lost_local: u64,
    /// Frames refused before the TX ring: an empty range, or one outside the chunk. The caller's mistake.
    pub refused: u64,
    /// Frames that arrived in more chunks than they may take, and were dropped whole.
    pub multi_buffer: u64,
    /// Addresses from the kernel that were not given to it for that purpose. Each loses one chunk at most.
    pub bad_addresses: u64,
}

/// Where the chunks of the umem are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunks {
    /// All of them.
    pub total: u32,
    /// Free.
    pub home: u32,
    /// With the kernel to receive into, up to their reading from the RX ring.
    pub receiving: u32,
    /// With the kernel to send, up to their reading from the completion ring.
    pub sending: u32,
}

impl Chunks {
    /// Chunks that are not home.
    pub fn outstanding(&self) -> u32 {
        self.total - self.home
    }
}

/// What the kernel counted for the socket (`XDP_STATISTICS`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KernelStatistics {
    /// Frames dropped for other reasons than the ones below: no buffer, or too long for a chunk.
    pub rx_dropped: u64,
    /// Fill ring entries that were invalid.
    pub rx_invalid: u64,
    /// TX descriptors that were invalid.
    pub tx_invalid: u64,
    /// Frames dropped because the RX ring was full.
    pub rx_ring_full: u64,
    /// Times the fill ring was found empty.
    pub fill_empty: u64,
    /// Times the TX ring was found empty.
    pub tx_empty: u64,
}
