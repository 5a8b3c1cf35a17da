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
        if N % 2 == 1 {
            // SAFETY: `data..data_end` is readable while the program runs, and `start..start + N` lies within it as just
            // checked; offsets are those of headers, so nothing wraps. The verifier proves both for every path before it
            // lets the program run. An array of bytes has no alignment.
            return Some(unsafe { (start as *const [u8; N]).read() });
        }
        // SAFETY: as above, and `Even` adds no padding to an even size. Drivers place frames at even addresses and every
        // header begins at an even offset. Were one odd, the load would be one that the verifier allows only on machines
        // which can do it.
        Some(unsafe { (start as *const Even<N>).read() }.0)
    }
}

/// Bytes at an even address: not knowing that, the compiler would load every field byte by byte.
#[repr(C, align(2))]
struct Even<const N: usize>([u8; N]);
