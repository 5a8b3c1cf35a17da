//! Which way datagrams go, and why, in words.

use pilot_xsk::Placement;
use pilot_xsk::nic::Facts;
use serde::Serialize;

use super::XDP_MTU_MAX;
use super::attach::AttachMode;
use crate::config::{AttachChoice, BulkChoice};

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
    /// What is done about bulk.
    pub bulk: Bulk,
    /// AF_XDP is likely to come within seconds.
    #[serde(skip)]
    pub pending: bool,
}

/// Whether bulk goes another way than by AF_XDP: over the kernel's UDP, which moves up to 64 KiB at once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Bulk {
    /// What is sent.
    pub send: BulkChoice,
    /// The second port, that XDP never steers, if there is one. Peers may send bulk to it.
    pub port: Option<u16>,
    /// Why it is so.
    pub why: String,
}

/// What the operator wants to be done about bulk, and the port that there is for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct BulkPlan {
    pub(super) choice: BulkChoice,
    pub(super) port: Option<u16>,
}

impl BulkPlan {
    /// Decides. Measured on veth: AF_XDP in copy mode carries 6 to 16 Gbit/s, segmentation offload 33 to 70, because
    /// super-packets pass whole; but AF_XDP has half the latency, so that only bulk leaves it. A zero-copy driver fills the
    /// line by itself. Without AF_XDP here there may still be AF_XDP at a peer, whose first port is steered.
    fn decide(self, way: Way) -> Bulk {
        let (send, why) = match (self.choice, way) {
            (BulkChoice::Never, _) => (BulkChoice::Never, "the configuration says `bulk = \"never\"`"),
            (BulkChoice::Always, _) => (BulkChoice::Always, "the configuration says `bulk = \"always\"`"),
            (BulkChoice::Auto, Way::ZeroCopy) => {
                (BulkChoice::Never, "zero-copy AF_XDP fills the line, and nothing else would be faster")
            }
            (BulkChoice::Auto, Way::Copy) => {
                (BulkChoice::Auto, "AF_XDP copies each frame, and the kernel's UDP moves up to 64 KiB at once")
            }
            (BulkChoice::Auto, Way::Udp) => {
                (BulkChoice::Auto, "a peer's first port may be AF_XDP's, where bulk is slower than at its bulk port")
            }
        };
        Bulk { send, port: self.port, why: why.to_owned() }
    }
}

/// How datagrams leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    ZeroCopy,
    Copy,
    Udp,
}

impl From<BulkChoice> for pilot_engine::BulkUse {
    fn from(choice: BulkChoice) -> Self {
        match choice {
            BulkChoice::Auto => Self::Auto,
            BulkChoice::Always => Self::Always,
            BulkChoice::Never => Self::Never,
        }
    }
}

impl Datapath {
    /// UDP, because of `reason`.
    pub(super) fn udp(reason: impl ToString, bulk: BulkPlan) -> Self {
        let bulk = bulk.decide(Way::Udp);
        Self { kind: Kind::Udp, mode: None, attach: None, reason: reason.to_string(), bulk, pending: false }
    }

    /// AF_XDP through this program; `zero_copy`: on all queues that have a socket.
    pub(super) fn xdp(program: &Attached, zero_copy: bool, bulk: BulkPlan) -> Self {
        let bulk = bulk.decide(if zero_copy { Way::ZeroCopy } else { Way::Copy });
        let Attached { device, mode: attach, .. } = program;
        let mode = if zero_copy { Mode::ZeroCopy } else { Mode::Copy };
        let reason = reason(program, zero_copy);
        let reason = format!("{} ({}) {reason}", device.name, device.driver.as_deref().unwrap_or("unknown driver"));
        Self { kind: Kind::Xdp, mode: Some(mode), attach: Some(*attach), reason, bulk, pending: false }
    }
}

/// How the program is attached to its device.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    /// What was true of the device then.
    pub(super) device: Facts,
    pub(super) mode: AttachMode,
    /// What the operator asked for.
    pub(super) choice: AttachChoice,
    /// Why native mode was not to be had, where it was tried.
    pub(super) refused: Option<String>,
}

fn reason(program: &Attached, zero_copy: bool) -> String {
    let forced = |mode| format!("is attached to as `attach = \"{mode}\"` says");
    let costs = "its peer sends without segmentation offload meanwhile";
    match (program.mode, program.choice, &program.refused) {
        (AttachMode::Native, _, _) if zero_copy => "has zero-copy AF_XDP".to_owned(),
        (AttachMode::Native, _, _) if !program.device.is_virtual => "runs XDP but has no zero-copy AF_XDP".to_owned(),
        (AttachMode::Native, AttachChoice::Native, _) => format!("{}: {costs}", forced("native")),
        (AttachMode::Native, _, _) => format!(
            "is a virtual device with several queues, which only a native program sees frames on as they were sent: {costs}"
        ),
        (AttachMode::Generic, AttachChoice::Generic, _) => forced("generic"),
        (AttachMode::Generic, _, Some(refused)) => {
            format!("has a generic program, because native was refused: {refused}")
        }
        (AttachMode::Generic, _, None) => {
            "is a virtual device: a native program would take segmentation offload from its peer".to_owned()
        }
    }
}

/// The mode to try, and the one to try if that is refused. On a virtual device native gains nothing and costs its peer GSO; but with several queues a
/// generic program sees a frame on another queue than the one that it was sent to (on veth the one before), so that there
/// nearly everything would be handed from worker to worker. What the operator asks for is never replaced by something else.
pub(super) fn attach_modes(choice: AttachChoice, device: &Facts, queues: usize) -> (AttachMode, Option<AttachMode>) {
    match choice {
        AttachChoice::Native => (AttachMode::Native, None),
        AttachChoice::Generic => (AttachMode::Generic, None),
        AttachChoice::Auto if device.is_virtual && queues == 1 => (AttachMode::Generic, None),
        AttachChoice::Auto => (AttachMode::Native, Some(AttachMode::Generic)),
    }
}

/// What to say about receive queues of the device that no worker serves; nothing if there are none.
pub(super) fn unserved(device: &Facts, served: usize) -> Option<String> {
    let (name, all) = (&device.name, device.rx_queues);
    let are = if served == 1 { "is" } else { "are" };
    (all as usize > served).then(|| {
        format!(
            "{name} has {all} receive queues of which {served} {are} served: what arrives on the others goes over UDP: \
             list them in `queues`, or `ethtool -L {name} combined {served}`"
        )
    })
}

/// Sockets to try, best first, and the one that is left when the kernel has none of them. Zero-copy is for native programs of real
/// devices; where the driver has it but no frames in several chunks, it is worth more than those.
pub(super) fn socket_options(device: &Facts, attach: AttachMode) -> (Vec<pilot_xsk::Options>, pilot_xsk::Options) {
    use pilot_xsk::Mode::{Copy, ZeroCopy};
    let fitting = pilot_xsk::Options::for_mtu(device.mtu.min(XDP_MTU_MAX as u32));
    let fitting = pilot_xsk::Options { numa_node: device.numa_node, ..fitting };
    let single = pilot_xsk::Options { chunks_per_frame: 1, ..fitting.clone() };
    let sizes = if fitting == single { vec![single.clone()] } else { vec![fitting, single.clone()] };
    let may_be_zero_copy = attach == AttachMode::Native && !device.is_virtual;
    let modes = if may_be_zero_copy { &[ZeroCopy, Copy][..] } else { &[Copy] };
    let mut all: Vec<_> =
        modes.iter().flat_map(|mode| sizes.iter().map(|options| options.clone().with_mode(*mode))).collect();
    let last = all.pop().unwrap_or(single);
    (all, last)
}

/// What to say about packet memory that is not as it should be; nothing where it is.
pub(super) fn memory(device: &Facts, placement: Placement) -> Option<String> {
    let far = device.numa_node.filter(|_| placement.on_node == Some(false));
    match (placement.huge_pages, far) {
        (true, None) => None,
        (true, Some(node)) => Some(format!("packet memory is not on NUMA node {node}, where the device is")),
        (false, _) => Some("packet memory is in small pages, because the kernel has no huge ones for it".to_owned()),
    }
}

/// What to say about frames that do not fit one chunk of packet memory; nothing where there are none.
pub(super) fn frames(device: &Facts, longest: usize) -> Option<String> {
    let mtu = (device.mtu as usize).min(XDP_MTU_MAX);
    let one = pilot_xsk::Options::for_mtu(device.mtu).chunks_per_frame == 1;
    (!one).then(|| {
        if longest >= mtu {
            "a frame may take several chunks of packet memory".to_owned()
        } else {
            format!(
                "frames above {longest} bytes are not used: this kernel (before Linux 6.6) or the driver gives no frame in \
                 several chunks"
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: BulkPlan = BulkPlan { choice: BulkChoice::Auto, port: Some(4243) };

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
            numa_node: None,
        }
    }

    #[test]
    fn each_device_has_its_modes() {
        use AttachMode::{Generic, Native};
        assert_eq!(attach_modes(AttachChoice::Auto, &device(true), 1), (Generic, None));
        assert_eq!(attach_modes(AttachChoice::Auto, &device(true), 2), (Native, Some(Generic)));
        for queues in [1, 2] {
            assert_eq!(attach_modes(AttachChoice::Auto, &device(false), queues), (Native, Some(Generic)));
            assert_eq!(
                attach_modes(AttachChoice::Native, &device(true), queues),
                (Native, None),
                "never something else"
            );
            assert_eq!(attach_modes(AttachChoice::Generic, &device(false), queues), (Generic, None));
        }
    }

    /// Zero-copy before copy, several chunks before one, on devices that may have them.
    #[test]
    fn each_device_has_its_sockets() {
        use AttachMode::{Generic, Native};
        use pilot_xsk::Mode::{Copy, ZeroCopy};
        for (is_virtual, attach, mtu, sockets) in [
            (false, Native, 1500, &[(ZeroCopy, 1), (Copy, 1)][..]),
            (false, Generic, 1500, &[(Copy, 1)]),
            (true, Native, 1500, &[(Copy, 1)]),
            (true, Generic, 3822, &[(Copy, 1)]),
            (true, Generic, 9000, &[(Copy, 3), (Copy, 1)]),
            (true, Generic, 65_535, &[(Copy, 3), (Copy, 1)]),
            (false, Native, 9000, &[(ZeroCopy, 3), (ZeroCopy, 1), (Copy, 3), (Copy, 1)]),
        ] {
            let (mut tried, last) = socket_options(&Facts { mtu, ..device(is_virtual) }, attach);
            tried.push(last);
            let tried: Vec<_> = tried.iter().map(|options| (options.mode, options.chunks_per_frame)).collect();
            assert_eq!(tried, sockets, "{is_virtual} {attach:?} {mtu}");
        }
    }

    #[test]
    fn memory_that_is_not_as_it_should_be_is_spoken_of() {
        let near = Facts { numa_node: Some(1), ..device(false) };
        let placed = |huge_pages, on_node| Placement { huge_pages, on_node };
        assert_eq!(memory(&device(false), placed(true, None)), None);
        assert_eq!(memory(&near, placed(true, Some(true))), None);
        assert!(memory(&near, placed(true, Some(false))).unwrap().contains("not on NUMA node 1"));
        assert!(memory(&near, placed(false, Some(true))).unwrap().contains("in small pages"));
    }

    #[test]
    fn frames_that_fit_no_chunk_are_spoken_of() {
        let jumbo = Facts { mtu: 9000, ..device(true) };
        assert_eq!(frames(&device(true), 1792), None);
        assert!(frames(&jumbo, 11_520).unwrap().contains("several chunks of packet memory"));
        assert!(frames(&jumbo, 3840).unwrap().starts_with("frames above 3840 bytes are not used"));
    }

    #[test]
    fn queues_that_nobody_serves_are_named() {
        let device = Facts { rx_queues: 4, ..device(false) };
        let words = unserved(&device, 1).unwrap();
        assert!(words.starts_with("eth0 has 4 receive queues of which 1 is served"), "{words}");
        assert!(words.contains("`queues`") && words.contains("ethtool -L eth0 combined 1"), "{words}");
        assert_eq!(unserved(&device, 4), None);
    }

    #[test]
    fn bulk_goes_where_it_is_faster() {
        for (choice, way, send) in [
            (BulkChoice::Auto, Way::ZeroCopy, BulkChoice::Never),
            (BulkChoice::Auto, Way::Copy, BulkChoice::Auto),
            (BulkChoice::Auto, Way::Udp, BulkChoice::Auto),
            (BulkChoice::Never, Way::Copy, BulkChoice::Never),
            (BulkChoice::Always, Way::ZeroCopy, BulkChoice::Always),
        ] {
            let bulk = BulkPlan { choice, port: Some(4243) }.decide(way);
            assert_eq!((bulk.send, bulk.port), (send, Some(4243)), "{choice:?} {way:?}");
            assert_eq!(bulk.why.contains("configuration"), choice != BulkChoice::Auto, "{}", bulk.why);
        }
    }

    #[test]
    fn the_json_is_what_the_command_prints() {
        use AttachMode::{Generic, Native};
        let program = |is_virtual, mode, choice| Attached { device: device(is_virtual), mode, choice, refused: None };
        let refused = Attached { refused: Some("no, said it".into()), ..program(false, Generic, AttachChoice::Auto) };
        for (datapath, kind, mode, attach, word) in [
            (Datapath::udp("no interface", PLAN), "udp", None, None, "no interface"),
            (
                Datapath::xdp(&program(false, Native, AttachChoice::Auto), true, PLAN),
                "xdp",
                Some("zero-copy"),
                Some("native"),
                "eth0 (ixgbe) has zero-copy",
            ),
            (
                Datapath::xdp(&program(false, Native, AttachChoice::Auto), false, PLAN),
                "xdp",
                Some("copy"),
                Some("native"),
                "no zero-copy",
            ),
            (
                Datapath::xdp(&program(true, Native, AttachChoice::Native), false, PLAN),
                "xdp",
                Some("copy"),
                Some("native"),
                "as `attach = \"native\"` says: its peer sends without segmentation offload",
            ),
            (
                Datapath::xdp(&program(true, Native, AttachChoice::Auto), false, PLAN),
                "xdp",
                Some("copy"),
                Some("native"),
                "virtual device with several queues",
            ),
            (
                Datapath::xdp(&program(true, Generic, AttachChoice::Auto), false, PLAN),
                "xdp",
                Some("copy"),
                Some("generic"),
                "would take segmentation offload from its peer",
            ),
            (
                Datapath::xdp(&program(false, Generic, AttachChoice::Generic), false, PLAN),
                "xdp",
                Some("copy"),
                Some("generic"),
                "as `attach = \"generic\"` says",
            ),
            (
                Datapath::xdp(&refused, false, PLAN),
                "xdp",
                Some("copy"),
                Some("generic"),
                "native was refused: no, said it",
            ),
        ] {
            let json = serde_json::to_value(&datapath).unwrap();
            let reason = json["reason"].as_str().unwrap();
            assert!(reason.contains(word), "{reason}");
            let send = if mode == Some("zero-copy") { "never" } else { "auto" };
            let bulk = serde_json::json!({"send": send, "port": 4243, "why": datapath.bulk.why});
            let all = serde_json::json!({"kind": kind, "mode": mode, "attach": attach, "reason": reason, "bulk": bulk});
            assert_eq!(json, all);
        }
    }
}
