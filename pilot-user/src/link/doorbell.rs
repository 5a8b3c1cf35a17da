//! Wakes a worker that sleeps in [`Link::wait`](super::Link::wait).

mod bell;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

use bell::Bell;

/// Wakes one worker. Clones ring the same worker, from any thread.
///
/// A ring costs a system call only once between two sleeps of the worker: who rings after putting work into a queue
/// that the worker empties in every pass is always heard, however many others rang before.
#[derive(Clone, Debug)]
pub struct Doorbell {
    bell: Arc<Bell>,
}

impl Doorbell {
    /// A new doorbell, not rung.
    ///
    /// # Errors
    /// When the process or the system is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { bell: Arc::new(Bell::new(sync::Event(event))) })
    }

    /// Wakes the worker, or keeps it from falling asleep. Never blocks.
    pub fn ring(&self) {
        self.bell.ring();
    }

    /// Sleeps until one of `fds` is ready, the doorbell rings or `timeout` has passed.
    pub(super) fn sleep<const N: usize>(&self, fds: [PollFd<'_>; N], timeout: Option<Duration>) -> io::Result<()> {
        // The doorbell first and the others after it, in an array that never allocates.
        let mut all: [PollFd<'_>; FDS_MAX] = std::array::from_fn(|_| self.poll_fd());
        for (place, fd) in all[1..].iter_mut().zip(fds) {
            *place = fd;
        }
        let length = (N + 1).min(FDS_MAX);
        match ppoll(&mut all[..length], timeout.map(TimeSpec::from), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if all[0].any().unwrap_or(true) {
            self.bell.answer();
        }
        Ok(())
    }

    /// For who sleeps in an event loop of its own, which knows [`Doorbell::as_fd`]: after each sleep.
    pub(crate) fn answer_if_rung(&self) {
        // An error is that of a descriptor, which the next sleep meets.
        let _ = self.sleep([], Some(Duration::ZERO));
    }

    fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(self.as_fd(), nix::poll::PollFlags::POLLIN)
    }
}

/// Descriptors one sleep waits for: the doorbell, two UDP sockets and an AF_XDP socket.
const FDS_MAX: usize = 4;

impl AsFd for Doorbell {
    /// Readable while rung; for drivers that wait in an event loop of their own.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.event.0.as_fd()
    }
}

/// What [`bell`] is made of.
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering};

    use nix::sys::eventfd::EventFd;

    /// An eventfd: readable while it is set.
    #[derive(Debug)]
    pub(crate) struct Event(pub(super) EventFd);

    impl Event {
        pub(super) fn set(&self) {
            // The only error of a valid eventfd is a full counter, which is as good as set.
            let _ = self.0.write(1);
        }

        pub(super) fn clear(&self) {
            // The only error is that it is clear.
            let _ = self.0.read();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Option<Duration> = Some(Duration::from_secs(600));

    #[test]
    fn a_ring_before_the_sleep_is_heard() {
        let bell = Doorbell::new().unwrap();
        bell.ring();
        bell.sleep([], LONG).unwrap();
    }

    #[test]
    fn a_ring_from_another_thread_ends_the_sleep() {
        let bell = Doorbell::new().unwrap();
        let other = bell.clone();
        let thread = std::thread::spawn(move || other.ring());
        bell.sleep([], LONG).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn many_rings_are_one_wakeup() {
        let bell = Doorbell::new().unwrap();
        (0..10).for_each(|_| bell.ring());
        bell.sleep([], LONG).unwrap();
        assert!(bell.bell.event.0.read().is_err(), "nothing is left to be heard");
        bell.ring();
        bell.sleep([], LONG).unwrap();
    }

    /// Every message queued before its ring is seen, although most rings make no system call.
    #[test]
    fn no_ring_is_lost() {
        const MESSAGES: usize = 20_000;
        let bell = Doorbell::new().unwrap();
        let (sender, receiver) = crossbeam_channel::bounded(4);
        let ringer = bell.clone();
        let thread = std::thread::spawn(move || {
            for number in 0..MESSAGES {
                sender.send(number).unwrap();
                ringer.ring();
            }
        });
        let mut next = 0;
        while next < MESSAGES {
            bell.sleep([], LONG).unwrap();
            while let Ok(number) = receiver.try_recv() {
                assert_eq!(number, next);
                next += 1;
            }
        }
        thread.join().unwrap();
    }
}
