//! Two network namespaces with a veth pair between them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Whether the test must be skipped because it needs root; says so.
pub(crate) fn needs_root(test: &str) -> bool {
    // SAFETY: takes and changes nothing.
    let skip = unsafe { libc::geteuid() } != 0;
    if skip {
        eprintln!("skipped: {test}: needs root to make network namespaces");
    }
    skip
}

/// Interface `a` in one namespace, `b` in the other. Dropping it deletes both.
pub(crate) struct Pair {
    a: String,
    b: String,
}

impl Pair {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let stem = format!("pilot-xsk-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let pair = Self { a: format!("{stem}-a"), b: format!("{stem}-b") };
        let (a, b) = (pair.a.as_str(), pair.b.as_str());
        ip(&["netns", "add", a]);
        ip(&["netns", "add", b]);
        ip(&["link", "add", "name", "a", "netns", a, "type", "veth", "peer", "name", "b", "netns", b]);
        pair.ip_a(&["link", "set", "dev", "a", "up"]);
        ip(&["-n", b, "link", "set", "dev", "b", "up"]);
        pair
    }

    /// `ip` with these arguments in a's namespace.
    pub(crate) fn ip_a(&self, arguments: &[&str]) {
        ip(&[&["-n", self.a.as_str()], arguments].concat());
    }

    /// `ip` with these arguments in b's namespace.
    pub(crate) fn ip_b(&self, arguments: &[&str]) {
        ip(&[&["-n", self.b.as_str()], arguments].concat());
    }

    /// Runs `work` in a's namespace.
    pub(crate) fn in_a<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.a, work)
    }

    /// Runs `work` in b's namespace.
    pub(crate) fn in_b<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.b, work)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for namespace in [&self.a, &self.b] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

/// In a thread of its own: a namespace is a thread's property, and this one ends with the work.
fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: takes integers; changes the namespace of this thread only.
            let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Takes root's rights from this thread. The bare system call, since libc's function takes them from all threads.
pub(crate) fn become_nobody() {
    const NOBODY: libc::uid_t = 65_534;
    // SAFETY: takes integers.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
    assert_eq!(result, 0, "setresuid: {}", std::io::Error::last_os_error());
}

/// Mounts the sysfs of this thread's network namespace at /sys, for this thread alone.
pub(crate) fn mount_sysfs() {
    let (none, root, sysfs, sys) = (c"none", c"/", c"sysfs", c"/sys");
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: takes an integer; gives this thread a copy of the mounts.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
    for (source, target, kind, flags) in [(none, root, none, private), (sysfs, sys, sysfs, 0)] {
        // SAFETY: reads C strings that live through the call; the mounts are this thread's own.
        let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
        assert_eq!(result, 0, "mount {target:?}: {}", std::io::Error::last_os_error());
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
