//! Which way datagrams go, and why, in words.

use pilot_xsk::nic::Facts;
use serde::Serialize;

use super::attach::AttachMode;

/// The kind of datapath.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// AF_XDP, with the UDP socket for what XDP passes up.
    Xdp,
    /// The kernel's UDP socket alone.
    Udp,
}

/// Who copies frames between device and packet memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The device itself.
    ZeroCopy,
    /// The kernel.
    Copy,
}

/// The datapath in use. Its JSON is part of what the `pilot` command prints.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Datapath {
    /// AF_XDP or UDP.
    pub kind: Kind,
    /// AF_XDP's mode.
    pub mode: Option<Mode>,
    /// How the XDP program is attached.
    pub attach: Option<AttachMode>,
    /// Why it is so, and what would make it better.
    pub reason: String,
    /// AF_XDP is likely to come within seconds.
    #[serde(skip)]
    pub pending: bool,
}

impl Datapath {
    /// UDP, because of `reason`.
    pub(super) fn udp(reason: impl ToString) -> Self {
        Self { kind: Kind::Udp, mode: None, attach: None, reason: reason.to_string(), pending: false }
    }

    /// AF_XDP on this device; `refused` says why native mode was not to be had where it was tried.
    pub(super) fn xdp(device: &Facts, attach: AttachMode, zero_copy: bool, refused: Option<String>) -> Self {
        let name = &device.name;
        let driver = device.driver.as_deref().unwrap_or("unknown driver");
        let reason = match (attach, zero_copy, refused) {
            (AttachMode::Native, true, _) => format!("{name}'s driver ({driver}) has zero-copy AF_XDP"),
            (AttachMode::Native, false, _) => {
                format!("{name}'s driver ({driver}) runs XDP but has no zero-copy AF_XDP")
            }
            (AttachMode::Generic, _, None) => format!(
                "{name} ({driver}) is a virtual device: a native program would take segmentation offload from its peer"
            ),
            (AttachMode::Generic, _, Some(refused)) => format!("generic, because native was refused: {refused}"),
        };
        let mode = if zero_copy { Mode::ZeroCopy } else { Mode::Copy };
        Self { kind: Kind::Xdp, mode: Some(mode), attach: Some(attach), reason, pending: false }
    }
}

/// Whether native mode is tried before generic. On a virtual device it gains nothing and costs its peer GSO.
pub(super) fn prefers_native(device: &Facts) -> bool {
    !device.is_virtual
}

/// Zero-copy is for native programs of real devices.
pub(super) fn socket_mode(device: &Facts, attach: AttachMode) -> pilot_xsk::Mode {
    match attach {
        AttachMode::Native if !device.is_virtual => pilot_xsk::Mode::Auto,
        AttachMode::Native | AttachMode::Generic => pilot_xsk::Mode::Copy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(is_virtual: bool) -> Facts {
        Facts {
            name: "eth0".into(),
            ifindex: 2,
            mac: [2; 6],
            mtu: 1500,
            up: true,
            driver: Some("ixgbe".into()),
            rx_queues: 1,
            tx_queues: 1,
            is_virtual,
        }
    }

    #[test]
    fn virtual_devices_are_generic_and_real_ones_native_first() {
        assert!(!prefers_native(&device(true)));
        assert!(prefers_native(&device(false)));
        assert_eq!(socket_mode(&device(false), AttachMode::Native), pilot_xsk::Mode::Auto);
        assert_eq!(socket_mode(&device(false), AttachMode::Generic), pilot_xsk::Mode::Copy);
        assert_eq!(socket_mode(&device(true), AttachMode::Native), pilot_xsk::Mode::Copy);
    }

    #[test]
    fn the_json_is_what_the_command_prints() {
        let refused = Some("eth0 refused".to_owned());
        for (datapath, kind, mode, attach, word) in [
            (Datapath::udp("no interface"), "udp", None, None, "no interface"),
            (
                Datapath::xdp(&device(false), AttachMode::Native, true, None),
                "xdp",
                Some("zero-copy"),
                Some("native"),
                "ixgbe",
            ),
            (
                Datapath::xdp(&device(false), AttachMode::Native, false, None),
                "xdp",
                Some("copy"),
                Some("native"),
                "no zero-copy",
            ),
            (
                Datapath::xdp(&device(true), AttachMode::Generic, false, None),
                "xdp",
                Some("copy"),
                Some("generic"),
                "virtual",
            ),
            (
                Datapath::xdp(&device(false), AttachMode::Generic, false, refused),
                "xdp",
                Some("copy"),
                Some("generic"),
                "eth0 refused",
            ),
        ] {
            let json = serde_json::to_value(&datapath).unwrap();
            let reason = json["reason"].as_str().unwrap();
            assert!(reason.contains(word), "{reason}");
            assert_eq!(json, serde_json::json!({"kind": kind, "mode": mode, "attach": attach, "reason": reason}));
        }
    }
}
