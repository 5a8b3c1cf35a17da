//! What a system is to bear.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Serialize, Serializer};

/// What agents say to each other, 19 bytes.
pub(crate) const MESSAGE: &[u8; 19] = b"anomalies: 47 -> 48";

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// [`MESSAGE`] there and back by the far end's application, one at a time, on one connection.
    Echo,
    /// [`MESSAGE`] after [`MESSAGE`], each sent by itself, to the far end on one connection.
    Messages,
    /// As many bytes as go, to the far end on one connection.
    Bulk,
    /// A connection with all its handshakes, none of it resumed, up to where the first byte could be sent, and no more: again and
    /// again, [`Load::connections`] at a time.
    Handshakes,
    /// [`Load::connections`] connections that nobody uses.
    Idle,
}

/// A load, and for how long.
#[derive(Clone, Copy, Debug, Args, Serialize)]
pub(crate) struct Load {
    #[arg(long, value_enum)]
    pub(crate) kind: Kind,
    /// Before anything counts, once everything is connected
    #[arg(long = "warm-up-ms", value_parser = milliseconds)]
    #[serde(rename = "warm_up_ms", serialize_with = "as_milliseconds")]
    pub(crate) warm_up: Duration,
    /// What counts
    #[arg(long = "time-ms", value_parser = milliseconds)]
    #[serde(rename = "time_ms", serialize_with = "as_milliseconds")]
    pub(crate) time: Duration,
    /// Of both devices
    #[arg(long, default_value_t = 1500)]
    pub(crate) mtu: u16,
    /// How many at a time: those that are idle, and handshakes
    #[arg(long, default_value_t = 1)]
    pub(crate) connections: usize,
}

pub(crate) fn milliseconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_millis)
}

fn as_milliseconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(time.as_millis() as u64)
}
