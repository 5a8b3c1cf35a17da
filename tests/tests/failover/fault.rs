//! The faults: how each is made, what the node must say of it, and how it is mended.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns};
use pilot_common::maps::Config;
use pilot_user::control::attach::{AttachMode, Program, Steering};
use pilot_xsk::nic::Facts;
use serde_json::Value;

use crate::scene::{End, Scene};

/// A way to lose AF_XDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// `bpftool link detach`.
    Detached,
    Down,
    /// 1500 to 1400 bytes.
    Mtu,
    /// From before the node starts.
    Foreign,
    /// With its pair, and with other Ethernet addresses when it is made again.
    Deleted,
    Moved,
    MovedBriefly,
}

impl Fault {
    pub(crate) fn make(self, scene: &Scene, end: End) {
        let device = end.interface();
        match self {
            Self::Detached => detach(scene, end),
            Self::Down => drop(scene.ip(end, &["link", "set", device, "down"])),
            Self::Mtu => drop(scene.ip(end, &["link", "set", device, "mtu", "1400"])),
            Self::Foreign => {}
            Self::Deleted => drop(scene.ip(end, &["link", "delete", device])),
            Self::Moved => move_away(scene, end),
            Self::MovedBriefly => {
                move_away(scene, end);
                move_back(scene, end);
            }
        }
    }

    /// Words of the reason that the node gives for going on over UDP.
    pub(crate) fn words(self) -> &'static [&'static str] {
        match self {
            Self::Detached => &["took our XDP program off the device"],
            Self::Down => &["is down", "ip link set"],
            Self::Mtu => &["the device has changed"],
            Self::Foreign => &["another XDP program", "pilot_steer", "(id "],
            Self::Deleted | Self::Moved => &["there is no interface"],
            // That it is gone, or that it was.
            Self::MovedBriefly => &["the device"],
        }
    }

    pub(crate) fn mend(self, scene: &Scene, end: End) {
        match self {
            // The node mends it, or lives with it.
            Self::Detached | Self::Mtu | Self::Foreign | Self::MovedBriefly => {}
            Self::Down => drop(scene.ip(end, &["link", "set", end.interface(), "up"])),
            Self::Deleted => {
                let peer = scene.namespace(End::B);
                scene.ip(End::A, &["link", "add", "veth-a", "type", "veth", "peer", "name", "veth-b", "netns", &peer]);
                for end in [End::A, End::B] {
                    bring_up(scene, end);
                }
            }
            Self::Moved => move_back(scene, end),
        }
    }
}

/// Detaches the link of the program on the device, as an operator would.
fn detach(scene: &Scene, end: End) {
    let program = scene.xdp_program(end).expect("the node's program is attached");
    let output = Command::new("bpftool").args(["link", "show"]).output().expect("bpftool, which these tests use");
    let text = String::from_utf8_lossy(&output.stdout);
    let wanted = format!(" prog {program} ");
    let link = text.lines().find(|line| format!("{line} ").contains(&wanted)).and_then(|line| line.split(':').next());
    let link = link.unwrap_or_else(|| panic!("no link of program {program} in {text}"));
    let output = Command::new("bpftool").args(["link", "detach", "id", link]).output().expect("bpftool runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The other end's namespace is another one, and at hand.
fn other(end: End) -> End {
    if end == End::A { End::B } else { End::A }
}

fn move_away(scene: &Scene, end: End) {
    scene.ip(end, &["link", "set", end.interface(), "netns", &scene.namespace(other(end))]);
}

fn move_back(scene: &Scene, end: End) {
    scene.ip(other(end), &["link", "set", end.interface(), "netns", &scene.namespace(end)]);
    bring_up(scene, end);
}

/// What a device loses when it is deleted or moved.
fn bring_up(scene: &Scene, end: End) {
    let address = end.listen().split(':').next().expect("an address and a port");
    scene.ip(end, &["address", "add", &format!("{address}/24"), "dev", end.interface()]);
    scene.ip(end, &["link", "set", end.interface(), "up"]);
}

/// Somebody else's XDP program on an end's device, until dropped. It is ours by name and steers nothing: what matters is
/// that the node did not attach it.
pub(crate) struct Foreign {
    pub(crate) id: u32,
    remove: Option<Sender<()>>,
    // Lives in the namespace, because attaching goes by the device's name there.
    thread: Option<JoinHandle<()>>,
}

impl Foreign {
    pub(crate) fn attach(scene: &Scene, end: End) -> Self {
        let file = File::open(Path::new("/run/netns").join(scene.namespace(end))).expect("the namespace is there");
        let (tell, told) = channel();
        let (remove, removed): (Sender<()>, Receiver<()>) = channel();
        let thread = thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
            let config = Config { port: 1, mtu: 1500, allow_all: true };
            let steering = Steering { config, local: &BTreeSet::new(), allow_from: &[] };
            let index = Facts::read(end.interface()).expect("the device is there").ifindex;
            let mut program = Program::load(1).expect("root may");
            program.attach(end.interface(), index, AttachMode::Generic, &steering).expect("nothing else is there");
            tell.send(program.id()).expect("the test waits for it");
            // An error: the other end was dropped, which says the same.
            let _ = removed.recv();
        });
        Self { id: told.recv().expect("it was attached"), remove: Some(remove), thread: Some(thread) }
    }

    /// A node says of its datapath that it is not AF_XDP, because of this program.
    pub(crate) fn is_refused(&self, datapath: &Value) {
        let reason = datapath["reason"].as_str().unwrap_or_default();
        assert_eq!(datapath["kind"], "udp", "{datapath}");
        assert!(Fault::Foreign.words().iter().all(|word| reason.contains(word)), "{reason}");
        assert!(reason.contains(&format!("(id {})", self.id)), "{reason}");
    }

    /// Takes it off the device.
    pub(crate) fn remove(&mut self) {
        self.remove = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.remove();
    }
}
