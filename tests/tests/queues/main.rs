//! Real nodes on devices with one or several receive queues: how the XDP program is attached, which worker opens what, and
//! what is said about it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests: a failure here is a failed test")]

mod attach;
mod bulk;
mod mtu;
#[allow(dead_code, reason = "what these tests do not need of it, the tests it was written for do")]
#[path = "../nodes/pilot.rs"]
mod pilot;
#[allow(dead_code, reason = "what these tests do not need of it, the tests it was written for do")]
#[path = "../nodes/scene.rs"]
mod scene;
mod workers;
