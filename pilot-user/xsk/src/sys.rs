//! System calls, as functions with typed arguments.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{null, null_mut};

use crate::abi::{AF_XDP, Plain, SockaddrXdp};

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn socket(family: i32, kind: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers, touches no memory.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A new AF_XDP socket.
pub(crate) fn xdp_socket() -> io::Result<OwnedFd> {
    socket(AF_XDP, libc::SOCK_RAW)
}

/// A socket to ask devices through; it never sends anything.
pub(crate) fn control_socket() -> io::Result<OwnedFd> {
    socket(libc::AF_INET, libc::SOCK_DGRAM)
}

/// A descriptor that never becomes readable.
pub(crate) fn silent_fd() -> io::Result<OwnedFd> {
    // SAFETY: takes integers, touches no memory.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn set_option<T: Plain>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    let value: *const T = value;
    // SAFETY: the kernel reads `size_of::<T>()` initialized bytes of a live value.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.cast(), size_of::<T>() as u32) }).map(drop)
}

/// The option's value. A kernel that knows a shorter struct leaves the rest zero.
pub(crate) fn get_option<T: Plain>(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as u32;
    // SAFETY: the kernel writes at most `len` bytes into a buffer of that size.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) })?;
    // SAFETY: zeroed, then partly overwritten; `T: Plain` allows any bits.
    Ok(unsafe { value.assume_init() })
}

pub(crate) fn bind(fd: BorrowedFd<'_>, address: &SockaddrXdp) -> io::Result<()> {
    let address: *const SockaddrXdp = address;
    // SAFETY: the kernel reads the whole of a live struct.
    check(unsafe { libc::bind(fd.as_raw_fd(), address.cast(), size_of::<SockaddrXdp>() as u32) }).map(drop)
}

/// Wakes the sending side; in copy mode, sends.
pub(crate) fn kick_tx(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no data and no address are passed.
    let sent = unsafe { libc::sendto(fd.as_raw_fd(), null(), 0, libc::MSG_DONTWAIT, null(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Wakes the receiving side, which then looks at the fill ring.
pub(crate) fn kick_fill(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no buffer and no address are passed.
    let got = unsafe { libc::recvfrom(fd.as_raw_fd(), null_mut(), 0, libc::MSG_DONTWAIT, null_mut(), null_mut()) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An interface request (`ioctl` with `struct ifreq`) that returns its data within the request.
pub(crate) fn interface_request(fd: BorrowedFd<'_>, code: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: only called with codes that read and write the `ifreq` itself (SIOCGIF*).
    check(unsafe { libc::ioctl(fd.as_raw_fd(), code as libc::Ioctl, &raw mut *request) }).map(drop)
}

/// An ethtool request: `command` is the struct that belongs to the code in its first field.
pub(crate) fn ethtool<T: Plain>(fd: BorrowedFd<'_>, request: &mut libc::ifreq, command: &mut T) -> io::Result<()> {
    request.ifr_ifru.ifru_data = (&raw mut *command).cast();
    // SAFETY: the kernel reads the code from the live struct, and reads and writes no more than the struct of that code,
    // which is `T`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut *request) }).map(drop)
}
