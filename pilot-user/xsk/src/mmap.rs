//! Memory shared with the kernel, mapped on creation and unmapped on drop.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

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
