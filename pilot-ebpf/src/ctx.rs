//! The frame of an XDP context: all access to packet memory.

use aya_ebpf::helpers::bpf_xdp_get_buff_len;
use aya_ebpf::programs::XdpContext;
use pilot_common::cursor::Cursor;

/// The frame that the program was called for, of which the first buffer can be read.
pub(crate) struct Frame<'a> {
    ctx: &'a XdpContext,
}

impl<'a> Frame<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx }
    }
}

impl Cursor for Frame<'_> {
    #[inline(always)]
    fn frame_len(&self) -> usize {
        // SAFETY: the helper only reads the context, which is the one the kernel called the program with.
        unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) as usize }
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.ctx.data() + offset;
        if start + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: `data..data_end` is readable while the program runs, and `start..start + N` lies within it as just
        // checked (offsets are those of headers, so nothing wraps). The verifier proves both for every path before it
        // lets the program run. Drivers place a frame at an even address, and headers begin at even offsets; where they
        // did not, the load would still be one that the verifier allows only if the machine can do it.
        Some(unsafe { &*(start as *const Even<N>) }.0)
    }
}

/// Bytes at an even address: without that, every field would be loaded byte by byte.
#[repr(C, align(2))]
struct Even<const N: usize>([u8; N]);
