//! What a worker thread does before it works: stay on its core, and give up its privileges.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Why a thread could not be set up as a worker.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The core does not exist, or a cpuset keeps it from this process.
    #[error(
        "cannot run on core {core}: {source}; name a core that this process may use in `cores` \
         (`taskset -p $$` shows which), or leave `cores` out"
    )]
    Core {
        /// The core that was asked for.
        core: usize,
        /// What the kernel said.
        source: nix::Error,
    },
    /// The kernel refused to take the capabilities away.
    #[error("cannot give up the privileges of a worker thread: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
}

/// Keeps the calling thread on `core`.
///
/// # Errors
/// When this process may not run there.
pub fn pin_to_core(core: usize) -> Result<(), PinError> {
    let mut set = CpuSet::new();
    set.set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|source| PinError::Core { core, source })
}

/// Takes every capability from the calling thread, for good. A worker reads packets from strangers; what it needs was
/// opened before by the control thread, which keeps its own capabilities to attach and bind again.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_capabilities() -> Result<(), PinError> {
    use caps::CapSet;
    // Ambient before inheritable and effective before permitted: each is a subset of the next.
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_runs_on_its_core_only() {
        std::thread::spawn(|| {
            let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0)).unwrap();
            let core = (0..CpuSet::count()).rev().find(|core| allowed.is_set(*core).unwrap()).unwrap();
            pin_to_core(core).unwrap();
            let now = nix::sched::sched_getaffinity(Pid::from_raw(0)).unwrap();
            assert!((0..CpuSet::count()).all(|other| now.is_set(other).unwrap() == (other == core)));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_core_that_is_not_there_is_refused_in_words() {
        for core in [CpuSet::count() - 1, usize::MAX] {
            let error = pin_to_core(core).unwrap_err().to_string();
            assert!(error.contains(&format!("core {core}")) && error.contains("`cores`"), "{error}");
        }
    }

    #[test]
    fn a_worker_keeps_no_capability_and_other_threads_keep_theirs() {
        let before = caps::read(None, caps::CapSet::Permitted).unwrap();
        std::thread::spawn(|| {
            drop_capabilities().unwrap();
            for set in [caps::CapSet::Effective, caps::CapSet::Permitted, caps::CapSet::Inheritable] {
                assert!(caps::read(None, set).unwrap().is_empty(), "{set:?}");
            }
        })
        .join()
        .unwrap();
        assert_eq!(caps::read(None, caps::CapSet::Permitted).unwrap(), before);
    }
}
