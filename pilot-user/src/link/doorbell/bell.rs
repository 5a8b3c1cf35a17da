//! What a doorbell's two sides share: an event that ends a sleep, and a flag that spares most rings its system call.
//!
//! `sync` has the event and the flag. There are two: the one that runs, in [`super`], and loom's, in
//! `tests/every_order.rs`, which runs this file in every order of the threads' steps.

use super::sync::{AtomicBool, Event, Ordering};

/// The two sides' protocol: what was queued before a [`ring`](Bell::ring) is visible after the [`answer`](Bell::answer)
/// that follows it, and a ring that no answer has followed yet leaves the event set.
#[derive(Debug)]
pub(crate) struct Bell {
    pub(crate) event: Event,
    /// Rung since the last answer; later rings need no system call.
    rung: AtomicBool,
}

impl Bell {
    pub(crate) fn new(event: Event) -> Self {
        Self { event, rung: AtomicBool::new(false) }
    }

    /// Any thread: keeps the sleeper from falling asleep, or wakes it.
    pub(crate) fn ring(&self) {
        // Release: what the caller queued before is visible after the answer, also when an earlier ring makes the system
        // call unnecessary (the read-modify-writes form one release sequence). Acquire: the event is set after the answer
        // that lowered the flag has cleared it, and so is not cleared by that one.
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.event.set();
        }
    }

    /// The sleeper, awake because the event was set: later rings count anew.
    pub(crate) fn answer(&self) {
        // First the event, then the flag. The other way round, a ring between the two would be cleared away here while the
        // flag says that it is still to be heard, and no later ring would wake anyone.
        self.event.clear();
        self.rung.swap(false, Ordering::AcqRel);
    }
}
