//! Two real nodes on a veth pair: life and death, loss, strangers, hostile datagrams, rights, configurations, files,
//! contexts, programs in Python, and the tutorial.
//!
//! Every test but those in Python makes its own namespaces, which needs root, and leaves nothing behind; without root it is
//! skipped by name.
//! What depends on time is measured and printed, and only bounded by several times what is promised.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests: a failure here is a failed test")]

mod contexts;
mod files;
mod flood;
mod hostile;
mod life;
mod loss;
mod pilot;
mod python;
mod rights;
mod scene;
mod setup;
mod strangers;
mod tutorial;
mod xdp_log;
