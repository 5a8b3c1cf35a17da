//! What keeps AF_XDP from being used, each with a fix.

use std::io;

use pilot_xsk::OpenError;

use super::attach::AttachError;

/// Why there is no AF_XDP, in words that name a fix.
#[derive(Debug, thiserror::Error)]
pub(super) enum Obstacle {
    #[error("there is no interface `{0}`: `ip link` lists those there are")]
    NoInterface(String),
    #[error("{0} is down: `ip link set {0} up`")]
    Down(String),
    #[error("{0} has no Ethernet address")]
    NotEthernet(String),
    #[error("{interface} has {active} receive queues, and queue {queue} was configured: `ethtool -l {interface}`")]
    NoQueue { interface: String, active: u32, queue: u32 },
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the kernel's device tables cannot be read: {0}")]
    Netlink(#[from] rtnetlink::Error),
    #[error("{0}")]
    Os(#[from] io::Error),
    #[error("the worker has not taken its last orders yet")]
    WorkerBusy,
}

impl Obstacle {
    /// Whether only a restart, with other rights or on another kernel, can help: then it is not tried again.
    pub(super) fn is_permanent(&self) -> bool {
        match self {
            Self::Attach(error) => error.is_permanent(),
            Self::Open(error) => {
                matches!(error, OpenError::NotPermitted | OpenError::Unsupported | OpenError::Option { .. })
            }
            _ => false,
        }
    }
}
