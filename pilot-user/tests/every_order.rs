//! A worker's doorbell in every order of the threads' steps that the memory model allows.
//!
//! What is queued is a flag without any order of its own, so that only the bell makes it visible. A worker that falls
//! asleep is one that stops: at the end it must have taken everything, or the event is set and would wake it.

use loom::sync::Arc;
use loom::thread;

/// What the bell is made of, in loom's memory.
mod sync {
    use loom::cell::UnsafeCell;
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};

    /// An event, of which no more is asked than that who sees it set sees what came before. Loom's read-modify-writes are
    /// never reordered, whatever order they name; that a set is not overtaken by the clearing before it shows in `turns`,
    /// which loom lets nobody enter without having seen the one before leave.
    #[derive(Debug)]
    pub(crate) struct Event {
        set: AtomicBool,
        turns: UnsafeCell<()>,
    }

    impl Event {
        pub(crate) fn new() -> Self {
            Self { set: AtomicBool::new(false), turns: UnsafeCell::new(()) }
        }

        pub(crate) fn set(&self) {
            self.turns.with_mut(|_| ());
            self.set.swap(true, Ordering::Release);
        }

        pub(crate) fn clear(&self) {
            self.set.swap(false, Ordering::Acquire);
            self.turns.with_mut(|_| ());
        }

        pub(crate) fn is_set(&self) -> bool {
            self.set.load(Ordering::Relaxed)
        }
    }
}

#[path = "../src/link/doorbell/bell.rs"]
mod bell;

use bell::Bell;
use sync::{AtomicBool, Event, Ordering};

/// Pieces of work that are queued in a model.
const WORK: usize = 2;

/// Passes of the worker while others ring. One more finds no order that these do not.
const PASSES: usize = 2;

/// A worker's bell, and its queue.
struct Worker {
    bell: Bell,
    queue: [AtomicBool; WORK],
}

impl Worker {
    /// Its bell was rung before, and not answered: a ring that comes now may find the flag up, being lowered, or down.
    fn rung() -> Arc<Self> {
        let worker = Self { bell: Bell::new(Event::new()), queue: std::array::from_fn(|_| AtomicBool::new(false)) };
        worker.bell.ring();
        Arc::new(worker)
    }

    fn queue_and_ring(&self, number: usize) {
        self.queue[number].store(true, Ordering::Relaxed);
        self.bell.ring();
    }

    /// Sleeps, if nothing wakes it; then takes what is queued. Returns what is taken by now.
    fn pass(&self, taken: [bool; WORK]) -> [bool; WORK] {
        if self.bell.event.is_set() {
            self.bell.answer();
        }
        std::array::from_fn(|number| taken[number] || self.queue[number].load(Ordering::Relaxed))
    }
}

/// Runs a worker while `threads` queue and ring.
fn check(threads: &'static [&'static [usize]]) {
    loom::model(move || {
        let worker = Worker::rung();
        let threads: Vec<_> = threads
            .iter()
            .map(|numbers| {
                let worker = Arc::clone(&worker);
                thread::spawn(move || numbers.iter().for_each(|number| worker.queue_and_ring(*number)))
            })
            .collect();
        let taken = (0..PASSES).fold([false; WORK], |taken, _| worker.pass(taken));
        threads.into_iter().for_each(|thread| thread.join().expect("a thread that queues and rings"));
        assert!(taken == [true; WORK] || worker.bell.event.is_set(), "asleep, with work in the queue: {taken:?}");
    });
}

#[test]
fn no_ring_of_one_thread_is_lost() {
    check(&[&[0, 1]]);
}

#[test]
fn no_ring_of_two_threads_is_lost() {
    check(&[&[0], &[1]]);
}
