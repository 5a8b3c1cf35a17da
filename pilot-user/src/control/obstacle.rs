//! What keeps AF_XDP from being used, each with a fix.

use std::io;

use nix::errno::Errno;
use pilot_xsk::OpenError;

use super::attach::{AttachError, AttachMode};

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
    #[error("{error}; {}", fix(.interface, *.mode, *.errno))]
    Refused { interface: String, mode: AttachMode, errno: Errno, error: AttachError },
    #[error(transparent)]
    Attach(AttachError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the kernel's device tables cannot be read: {0}")]
    Netlink(#[from] rtnetlink::Error),
    #[error("{0}")]
    Os(#[from] io::Error),
    #[error("the worker has not taken its last orders yet")]
    WorkerBusy,
}

impl From<AttachError> for Obstacle {
    fn from(error: AttachError) -> Self {
        match &error {
            AttachError::Refused { interface, mode, source } => {
                Self::Refused { interface: interface.clone(), mode: *mode, errno: *source, error }
            }
            _ => Self::Attach(error),
        }
    }
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

/// What to do about a device that refuses a program.
fn fix(interface: &str, mode: AttachMode, errno: Errno) -> String {
    match (mode, errno) {
        (AttachMode::Native, Errno::ENOSPC) => format!(
            "it has fewer receive queues than its peer has send queues: `ethtool -L {interface} rx N` here or \
             `ethtool -L … tx N` at its peer, or `attach = \"generic\"`"
        ),
        (AttachMode::Native, Errno::ERANGE) => format!(
            "frames of its peer's MTU are too long for it: a lower one there (`ip link set … mtu 3498`), or \
             `attach = \"generic\"` for {interface}"
        ),
        (AttachMode::Native, _) => format!("{interface}'s driver may have no native XDP: `attach = \"generic\"`"),
        (AttachMode::Generic, _) => "`datapath = \"udp\"` does without".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_a_fix_for_its_cause() {
        for (errno, words) in [
            (Errno::ENOSPC, ["fewer receive queues than its peer", "ethtool -L eth0 rx"]),
            (Errno::ERANGE, ["MTU", "ip link set"]),
            (Errno::EOPNOTSUPP, ["no native XDP", "attach = \"generic\""]),
        ] {
            let error = AttachError::Refused { interface: "eth0".into(), mode: AttachMode::Native, source: errno };
            let obstacle = Obstacle::from(error);
            assert!(!obstacle.is_permanent());
            let text = obstacle.to_string();
            assert!(words.iter().all(|word| text.contains(word)) && text.contains("eth0 refused"), "{text}");
        }
    }
}
