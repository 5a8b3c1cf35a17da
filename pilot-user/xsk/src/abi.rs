//! The kernel's side of the contract: structs and constants of `include/uapi/linux/if_xdp.h` (Linux 6.x).

use std::mem::{offset_of, size_of};

/// Plain data that crosses the system call border.
///
/// # Safety
/// The type is `repr(C)`, has no padding, and every bit pattern is a value of it.
pub(crate) unsafe trait Plain: Copy {}

pub(crate) const AF_XDP: i32 = 44;
pub(crate) const SOL_XDP: i32 = 283;

// `sockaddr_xdp::flags`. XDP_SHARED_UMEM (1 << 0) is absent: each socket has its own umem.
/// Copy mode only.
pub(crate) const XDP_COPY: u16 = 1 << 1;
/// Zero-copy only: bind fails where the driver has none.
pub(crate) const XDP_ZEROCOPY: u16 = 1 << 2;
/// The kernel says in the ring flags when it wants to be kicked.
pub(crate) const XDP_USE_NEED_WAKEUP: u16 = 1 << 3;
/// A frame may lie in several chunks, on receiving and on sending (Linux 6.6). Without it the kernel drops what fits no chunk.
pub(crate) const XDP_USE_SG: u16 = 1 << 4;

// Socket options at level SOL_XDP.
pub(crate) const XDP_MMAP_OFFSETS: i32 = 1;
pub(crate) const XDP_RX_RING: i32 = 2;
pub(crate) const XDP_TX_RING: i32 = 3;
pub(crate) const XDP_UMEM_REG: i32 = 4;
pub(crate) const XDP_UMEM_FILL_RING: i32 = 5;
pub(crate) const XDP_UMEM_COMPLETION_RING: i32 = 6;
pub(crate) const XDP_STATISTICS: i32 = 7;
pub(crate) const XDP_OPTIONS: i32 = 8;

// Offsets at which the rings are mapped from the socket.
pub(crate) const XDP_PGOFF_RX_RING: i64 = 0;
pub(crate) const XDP_PGOFF_TX_RING: i64 = 0x8000_0000;
pub(crate) const XDP_UMEM_PGOFF_FILL_RING: i64 = 0x1_0000_0000;
pub(crate) const XDP_UMEM_PGOFF_COMPLETION_RING: i64 = 0x1_8000_0000;

/// In a ring's flags: the kernel sleeps on this ring until it is kicked.
pub(crate) const XDP_RING_NEED_WAKEUP: u32 = 1 << 0;
/// In `XdpOptions::flags`: the socket is in zero-copy mode.
pub(crate) const XDP_OPTIONS_ZEROCOPY: u32 = 1 << 0;
/// In `Desc::options`: the frame continues in the next descriptor.
pub(crate) const XDP_PKT_CONTD: u32 = 1 << 0;

/// Bytes the kernel keeps free before every received frame (`XDP_PACKET_HEADROOM`).
pub(crate) const XDP_PACKET_HEADROOM: u32 = 256;

/// `struct sockaddr_xdp`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SockaddrXdp {
    pub(crate) family: u16,
    pub(crate) flags: u16,
    pub(crate) ifindex: u32,
    pub(crate) queue_id: u32,
    pub(crate) shared_umem_fd: u32,
}

/// `struct xdp_ring_offset`: where in a ring's mapping its parts are, in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RingOffsets {
    pub(crate) producer: u64,
    pub(crate) consumer: u64,
    pub(crate) desc: u64,
    pub(crate) flags: u64,
}

/// `struct xdp_mmap_offsets`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct MmapOffsets {
    pub(crate) rx: RingOffsets,
    pub(crate) tx: RingOffsets,
    pub(crate) fill: RingOffsets,
    pub(crate) completion: RingOffsets,
}

/// `struct xdp_umem_reg`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct UmemReg {
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) chunk_size: u32,
    pub(crate) headroom: u32,
    pub(crate) flags: u32,
    /// Since Linux 6.8; before, padding that nobody read.
    pub(crate) tx_metadata_len: u32,
}

/// `struct xdp_statistics`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Statistics {
    pub(crate) rx_dropped: u64,
    pub(crate) rx_invalid_descs: u64,
    pub(crate) tx_invalid_descs: u64,
    pub(crate) rx_ring_full: u64,
    pub(crate) rx_fill_ring_empty_descs: u64,
    pub(crate) tx_ring_empty_descs: u64,
}

/// `struct xdp_options`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct XdpOptions {
    pub(crate) flags: u32,
}

/// `struct xdp_desc`: one frame in the RX or TX ring. Fill and completion rings hold bare addresses (`u64`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Desc {
    /// Byte offset of the frame in the umem.
    pub(crate) addr: u64,
    /// Bytes of the frame.
    pub(crate) len: u32,
    pub(crate) options: u32,
}

// SAFETY: repr(C) structs of integers; the size asserts below leave no room for padding.
unsafe impl Plain for SockaddrXdp {}
// SAFETY: as above.
unsafe impl Plain for MmapOffsets {}
// SAFETY: as above.
unsafe impl Plain for UmemReg {}
// SAFETY: as above.
unsafe impl Plain for Statistics {}
// SAFETY: as above.
unsafe impl Plain for XdpOptions {}
// SAFETY: as above.
unsafe impl Plain for Desc {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for i32 {}

const _: () = {
    assert!(size_of::<SockaddrXdp>() == 16);
    assert!(offset_of!(SockaddrXdp, ifindex) == 4);
    assert!(offset_of!(SockaddrXdp, queue_id) == 8);
    assert!(offset_of!(SockaddrXdp, shared_umem_fd) == 12);
    assert!(size_of::<RingOffsets>() == 32);
    assert!(offset_of!(RingOffsets, desc) == 16);
    assert!(offset_of!(RingOffsets, flags) == 24);
    assert!(size_of::<MmapOffsets>() == 128);
    assert!(offset_of!(MmapOffsets, fill) == 64);
    assert!(offset_of!(MmapOffsets, completion) == 96);
    assert!(size_of::<UmemReg>() == 32);
    assert!(offset_of!(UmemReg, chunk_size) == 16);
    assert!(offset_of!(UmemReg, headroom) == 20);
    assert!(offset_of!(UmemReg, flags) == 24);
    assert!(offset_of!(UmemReg, tx_metadata_len) == 28);
    assert!(size_of::<Statistics>() == 48);
    assert!(offset_of!(Statistics, rx_ring_full) == 24);
    assert!(offset_of!(Statistics, rx_fill_ring_empty_descs) == 32);
    assert!(size_of::<XdpOptions>() == 4);
    assert!(size_of::<Desc>() == 16);
    assert!(offset_of!(Desc, len) == 8);
    assert!(offset_of!(Desc, options) == 12);
};
