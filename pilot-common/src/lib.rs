//! What the XDP program and userspace share, so that both decide the same about the same bytes.
#![no_std]
#![forbid(unsafe_code)]

pub mod wire;
