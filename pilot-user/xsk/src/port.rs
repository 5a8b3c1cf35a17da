//! Where a socket's system calls go: to the kernel, or to the one played in memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::abi::{SOL_XDP, Statistics, XDP_STATISTICS};
use crate::stats::KernelStatistics;
use crate::{sys, testing};

#[derive(Debug)]
pub(crate) enum Port {
    Socket(OwnedFd),
    Memory(testing::Port),
}

impl Port {
    pub(crate) fn kick_tx(&self) -> io::Result<()> {
        match self {
            Self::Socket(fd) => sys::kick_tx(fd.as_fd()),
            Self::Memory(port) => port.kick_tx(),
        }
    }

    pub(crate) fn kick_fill(&self) -> io::Result<()> {
        match self {
            Self::Socket(fd) => sys::kick_fill(fd.as_fd()),
            Self::Memory(port) => port.kick_fill(),
        }
    }

    /// The socket is about to take the word that a frame was sent. Only the kernel in memory can be made to lie.
    pub(crate) fn believe_sent(&self, address: u64) {
        if let Self::Memory(port) = self {
            port.believe_sent(address);
        }
    }

    /// The socket is about to take the word that a frame was received.
    pub(crate) fn believe_received(&self, address: u64) {
        if let Self::Memory(port) = self {
            port.believe_received(address);
        }
    }

    pub(crate) fn statistics(&self) -> io::Result<KernelStatistics> {
        let Self::Socket(fd) = self else { return Ok(KernelStatistics::default()) };
        let statistics: Statistics = sys::get_option(fd.as_fd(), SOL_XDP, XDP_STATISTICS)?;
        Ok(KernelStatistics {
            rx_dropped: statistics.rx_dropped,
            rx_invalid: statistics.rx_invalid_descs,
            tx_invalid: statistics.tx_invalid_descs,
            rx_ring_full: statistics.rx_ring_full,
            fill_empty: statistics.rx_fill_ring_empty_descs,
            tx_empty: statistics.tx_ring_empty_descs,
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(fd) => fd.as_fd(),
            Self::Memory(port) => port.fd(),
        }
    }
}
