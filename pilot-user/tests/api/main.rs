//! Nodes as programs use them: two of one process, over UDP on loopback, and one through a daemon's socket.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests: a failure here is a failed test")]

mod carries_on;
mod command_line;
mod connections;
mod contexts;
mod daemon;
mod doctor;
mod durable;
mod every_command;
mod half_open;
mod introduce;
mod killed;
mod lanes;
mod life;
mod many;
mod metrics;
mod rotate;
mod scene;
mod serve;
mod topics;
