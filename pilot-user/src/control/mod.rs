//! The control thread.

pub mod netlink;
