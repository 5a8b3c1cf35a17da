//! Two network namespaces with a veth pair between them, removed at the end.

use std::process::Command;

use nix::sched::{CloneFlags, setns};

pub(crate) struct World {
    tag: String,
}

/// One of the two ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    A,
    B,
}

impl World {
    /// `None`, and a line on stderr, when there is no right to make namespaces.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            let thread = std::thread::current();
            eprintln!("skipped: {}: needs root, to make network namespaces", thread.name().unwrap_or(test));
            return None;
        }
        let world = Self { tag: format!("pu{}{test}", std::process::id()) };
        for end in [End::A, End::B] {
            let name = world.namespace(end);
            ip(&["netns", "add", &name]);
            ip(&["-n", &name, "link", "set", "lo", "up"]);
        }
        world.connect();
        Some(world)
    }

    /// Makes the veth pair: 10.77.0.1 on `va` in A, 10.77.0.2 on `vb` in B.
    pub(crate) fn connect(&self) {
        let (a, b) = (self.namespace(End::A), self.namespace(End::B));
        ip(&["-n", &a, "link", "add", "va", "type", "veth", "peer", "name", "vb", "netns", &b]);
        for (name, device, number) in [(&a, "va", 1), (&b, "vb", 2)] {
            ip(&["-n", name, "addr", "add", &format!("10.77.0.{number}/24"), "dev", device]);
            ip(&["-n", name, "link", "set", device, "up"]);
        }
    }

    pub(crate) fn namespace(&self, end: End) -> String {
        format!("{}{end:?}", self.tag)
    }

    /// Runs `ip` in the namespace of one end.
    pub(crate) fn ip(&self, end: End, arguments: &[&str]) {
        ip(&[&["-n", &self.namespace(end)], arguments].concat());
    }

    /// Runs something on a thread in the namespace of one end.
    pub(crate) fn inside<T: Send>(&self, end: End, run: impl FnOnce() -> T + Send) -> T {
        let name = self.namespace(end);
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(&name);
                    run()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Moves the calling thread, and those it will start, into a namespace.
pub(crate) fn enter(name: &str) {
    let file = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for World {
    fn drop(&mut self) {
        for end in [End::A, End::B] {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(end)]).output();
        }
    }
}
