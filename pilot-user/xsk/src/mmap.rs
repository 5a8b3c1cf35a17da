//! Memory shared with the kernel, mapped on creation and unmapped on drop.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// Bytes of a huge page, as x86 and most ARM kernels have them. Where they have others, there are none for packet memory.
const HUGE_PAGE: usize = 2 << 20;

/// What became of the wish for packet memory that is near and in few pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// In huge pages: the processor can remember where all of it is.
    pub huge_pages: bool,
    /// On the NUMA node that was asked for; `None`: none was.
    pub on_node: Option<bool>,
}

/// A mapping. It gives out its address and never a reference: others write to it, so only the owner of a part can say
/// when a reference to that part is sound.
#[derive(Debug)]
pub(crate) struct Mmap {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and this type only names its address and unmaps it once.
unsafe impl Send for Mmap {}
// SAFETY: `&Mmap` gives nothing but the address and the length.
unsafe impl Sync for Mmap {}

impl Mmap {
    /// `len` bytes of zeroed, page-aligned memory of this process, present from the start: a page fault on the first
    /// packets would be a latency of its own.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        Self::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE, -1, 0)
    }

    /// At least `len` bytes as [`Mmap::anonymous`] gives them, in huge pages and on a NUMA node if the kernel has them there. Both are
    /// wishes, and what became of them is told.
    pub(crate) fn packet_memory(len: usize, node: Option<u32>) -> io::Result<(Self, Placement)> {
        let len = len.checked_next_multiple_of(HUGE_PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let more = len.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let memory = Self::map(more, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?.aligned(HUGE_PAGE, len);
        let start = memory.address.as_ptr().cast::<libc::c_void>();
        // SAFETY: the range is this mapping's, and none of the advices used here changes what is in it.
        let advise = |advice| unsafe { libc::madvise(start, len, advice) == 0 };
        let on_node = node.map(|node| {
            let nodes: libc::c_ulong = libc::c_ulong::checked_shl(1, node).unwrap_or(0);
            let bits = u64::from(libc::c_ulong::BITS);
            // A preference, not a binding: memory elsewhere is better than none.
            let (call, mode) = (libc::SYS_mbind, libc::MPOL_PREFERRED);
            // SAFETY: the range is this mapping's, which nobody has used; the kernel reads `bits` bits of the set.
            nodes != 0 && unsafe { libc::syscall(call, start, len, mode, &raw const nodes, bits, 0) } == 0
        });
        advise(libc::MADV_HUGEPAGE);
        if !advise(libc::MADV_POPULATE_WRITE) {
            // Before Linux 5.14: by hand, a byte of each page.
            for page in (0..len).step_by(4096) {
                // SAFETY: within the mapping, of which nobody has a reference yet.
                unsafe { memory.address.add(page).write_volatile(0) };
            }
        }
        // Says whether all of it is in huge pages, and tries to make it so (Linux 6.1).
        let huge_pages = advise(libc::MADV_COLLAPSE);
        Ok((memory, Placement { huge_pages, on_node }))
    }

    /// The part of `len` bytes from the first multiple of `align` on; what is before and behind it is unmapped.
    fn aligned(self, align: usize, len: usize) -> Self {
        let whole = std::mem::ManuallyDrop::new(self);
        let before = whole.address.align_offset(align);
        debug_assert!(before.checked_add(len).is_some_and(|end| end <= whole.len), "the caller mapped enough");
        // SAFETY: within the mapping, or its end, see above.
        let (address, end) = unsafe { (whole.address.add(before), whole.address.add(before + len)) };
        for (start, len) in [(whole.address, before), (end, whole.len - before - len)] {
            if len > 0 {
                // SAFETY: whole pages of this mapping, which nobody knows of yet and whose owner ends here.
                let result = unsafe { libc::munmap(start.as_ptr().cast(), len) };
                debug_assert_eq!(result, 0, "munmap of a part of a mapping");
            }
        }
        Self { address, len }
    }

    /// `len` bytes of what `fd` offers at `offset`: one of an AF_XDP socket's rings.
    pub(crate) fn of(fd: BorrowedFd<'_>, offset: i64, len: usize) -> io::Result<Self> {
        Self::map(len, libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), offset)
    }

    fn map(len: usize, flags: i32, fd: i32, offset: i64) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing that exists.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { address, len })
    }

    /// The first byte.
    pub(crate) fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mmap {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, unmapped only here; whoever derived pointers from it holds it alive.
        let result = unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
        debug_assert_eq!(result, 0, "munmap of a whole mapping cannot fail");
    }
}
