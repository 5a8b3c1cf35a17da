//! The configuration's file as it is written.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Deserialize;

use super::choice::{AttachChoice, BulkChoice, DatapathChoice};
use super::local::UserContexts;

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) identity: PathBuf,
    pub(super) recent_peers: Option<PathBuf>,
    pub(super) address: String,
    pub(super) interface: Option<String>,
    pub(super) listen: String,
    #[serde(default)]
    pub(super) datapath: DatapathChoice,
    #[serde(default)]
    pub(super) attach: AttachChoice,
    #[serde(default = "queue_0")]
    pub(super) queues: Vec<u32>,
    #[serde(default)]
    pub(super) bulk: BulkChoice,
    pub(super) bulk_port: Option<u16>,
    #[serde(default)]
    pub(super) cores: Vec<usize>,
    pub(super) handshakes_per_second: Option<u32>,
    pub(super) handshakes_per_source_per_second: Option<u32>,
    pub(super) rekey_after_s: Option<u64>,
    #[serde(default)]
    pub(super) introductions: bool,
    pub(super) files: Option<PathBuf>,
    #[serde(default)]
    pub(super) allow_from: Vec<String>,
    #[serde(default)]
    pub(super) peers: Vec<FilePeer>,
    #[serde(default)]
    pub(super) local: FileLocal,
    pub(super) metrics: Option<FileMetrics>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileMetrics {
    pub(super) listen: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileLocal {
    pub(super) socket: Option<PathBuf>,
    pub(super) contexts: Option<bool>,
    pub(super) store: Option<PathBuf>,
    #[serde(default)]
    pub(super) users: Vec<FileUser>,
    pub(super) drain_s: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileUser {
    pub(super) uid: u32,
    #[serde(default)]
    pub(super) ports: BTreeSet<u16>,
    #[serde(default)]
    pub(super) contexts: UserContexts,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilePeer {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) key: String,
    pub(super) endpoint: Option<String>,
    #[serde(default = "one")]
    pub(super) lanes: u8,
    pub(super) ports: Option<Vec<u16>>,
}

fn queue_0() -> Vec<u32> {
    vec![0]
}

fn one() -> u8 {
    1
}
