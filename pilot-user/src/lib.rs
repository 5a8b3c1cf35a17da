//! Pilot's node: links, workers, control and the `pilot` command.

pub mod api;
pub mod cli;
pub mod config;
pub mod context;
pub mod control;
mod daemon;
pub mod identity_file;
pub mod link;
mod metrics;
pub mod node;
pub mod recent_peers;
pub mod service;
#[cfg(test)]
mod test_directory;
pub mod worker;

pub use api::{Connection, Context, Error, Following, Listener, Node};
