//! What waits for an application: filled by workers, emptied by the application itself or by what writes its socket. No lock
//! is taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::limits::{OUTBOX_BYTES, OUTBOX_FRAMES};
use super::protocol::{Code, Error, SESSION, ToApplication};
use crate::link::doorbell::Doorbell;

/// The filling end; clones fill the same.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    // Not bounded by itself: data is put in while there is room for it, and with too many other frames the session ends.
    frames: UnboundedSender<Item>,
    level: Arc<Level>,
}

/// What wakes who waits at the other end once.
#[derive(Debug)]
enum Item {
    One(ToApplication),
    /// The second is of no use without the first, nor the first without it. Boxed: else every single frame would be moved about as
    /// two.
    Two(Box<[ToApplication; 2]>),
}

/// The other end. Dropped, it empties nothing any more, and [`Outbox::is_over`].
#[derive(Debug)]
pub(crate) struct Delivery {
    frames: UnboundedReceiver<Item>,
    /// Of two, the one that comes next.
    second: Option<ToApplication>,
    level: Arc<Level>,
    /// Of the workers.
    doorbells: Arc<[Doorbell]>,
}

#[derive(Debug, Default)]
struct Level {
    bytes: AtomicUsize,
    frames: AtomicUsize,
    /// A worker has data for which there was no room, and is to be woken when there is.
    starving: AtomicBool,
    over: AtomicBool,
    /// In the other direction: frames that wait for a worker.
    inbox: AtomicUsize,
    /// Connections at all workers.
    connections: AtomicUsize,
}

/// Both ends; of an application that these workers serve.
pub(crate) fn outbox(doorbells: Arc<[Doorbell]>) -> (Outbox, Delivery) {
    let (sender, receiver) = unbounded_channel();
    let level = Arc::new(Level::default());
    (
        Outbox { frames: sender, level: Arc::clone(&level) },
        Delivery { frames: receiver, second: None, level, doorbells },
    )
}

/// Bytes that count against [`OUTBOX_BYTES`].
fn weight(frame: &ToApplication) -> usize {
    match frame {
        ToApplication::Message(_, body)
        | ToApplication::Datagram(_, body)
        | ToApplication::Data(_, body)
        | ToApplication::Part(_, body) => body.len(),
        _ => 0,
    }
}

impl Outbox {
    /// Puts a frame in.
    pub(crate) fn put(&self, frame: ToApplication) {
        if self.has_place(&frame) {
            // Only the delivery's end fails it, and then nobody wants it.
            let _ = self.frames.send(Item::One(frame));
        }
    }

    /// Puts two in as one: who waits is woken once, when both are there.
    pub(crate) fn put_both(&self, frames: [ToApplication; 2]) {
        if frames.iter().all(|frame| self.has_place(frame)) {
            let _ = self.frames.send(Item::Two(Box::new(frames)));
        }
    }

    /// Counts a frame. L2.4: with too many, the session is over.
    fn has_place(&self, frame: &ToApplication) -> bool {
        if self.is_over() {
            return false;
        }
        self.level.bytes.fetch_add(weight(frame), Ordering::Relaxed);
        if self.level.frames.fetch_add(1, Ordering::Relaxed) < OUTBOX_FRAMES {
            return true;
        }
        let words = format!("the application does not read: {OUTBOX_FRAMES} frames wait for it");
        self.end(Error::new(Code::Slow, words));
        false
    }

    /// Puts the session's last frame in.
    pub(crate) fn end(&self, error: Error) {
        if !self.level.over.swap(true, Ordering::AcqRel) {
            let _ = self.frames.send(Item::One(ToApplication::Error { request: SESSION.0, error }));
        }
    }

    /// Whether nothing that is put in will be read.
    pub(crate) fn is_over(&self) -> bool {
        self.level.over.load(Ordering::Relaxed) || self.frames.is_closed()
    }

    /// A frame of the application is on its way to a worker.
    pub(crate) fn on_said(&self) {
        self.level.inbox.fetch_add(1, Ordering::Relaxed);
    }

    /// The worker has it.
    pub(crate) fn on_heard(&self) {
        self.level.inbox.fetch_sub(1, Ordering::Relaxed);
    }

    /// Frames of the application that wait for a worker.
    pub(crate) fn inbox_frames(&self) -> usize {
        self.level.inbox.load(Ordering::Relaxed)
    }

    /// A worker has more of the application's connections than before, or fewer.
    pub(crate) fn on_connections(&self, before: usize, after: usize) {
        // Together all workers add what they take away again: the sum never falls below 0, and what wraps in between comes back.
        self.level.connections.fetch_add(after.wrapping_sub(before), Ordering::AcqRel);
    }

    /// The application's connections, at all workers.
    pub(crate) fn connections(&self) -> usize {
        self.level.connections.load(Ordering::Acquire)
    }

    /// Whether data may be put in. If not, the workers' doorbells ring when it may.
    pub(crate) fn has_room(&self) -> bool {
        if self.level.bytes.load(Ordering::Relaxed) < OUTBOX_BYTES {
            return true;
        }
        self.level.starving.store(true, Ordering::Relaxed);
        // With the fence in `Delivery::taken`: either the other end sees that somebody starves, or this one how much it took
        // before.
        fence(Ordering::SeqCst);
        self.level.bytes.load(Ordering::Relaxed) < OUTBOX_BYTES
    }
}

impl Delivery {
    /// The next frame; `None`: the node is gone. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<ToApplication> {
        let frame = match self.second.take() {
            Some(frame) => frame,
            None => {
                let item = self.frames.recv().await?;
                self.first(item)
            }
        };
        self.taken(&frame);
        Some(frame)
    }

    /// The next frame, if there is one now.
    pub(crate) fn try_next(&mut self) -> Option<ToApplication> {
        let frame = match self.second.take() {
            Some(frame) => frame,
            None => {
                let item = self.frames.try_recv().ok()?;
                self.first(item)
            }
        };
        self.taken(&frame);
        Some(frame)
    }

    fn first(&mut self, item: Item) -> ToApplication {
        match item {
            Item::One(frame) => frame,
            Item::Two(both) => {
                let [first, second] = *both;
                self.second = Some(second);
                first
            }
        }
    }

    fn taken(&self, frame: &ToApplication) {
        self.level.frames.fetch_sub(1, Ordering::Relaxed);
        let weight = weight(frame);
        let before = self.level.bytes.fetch_sub(weight, Ordering::Relaxed);
        if before - weight < OUTBOX_BYTES / 2 {
            fence(Ordering::SeqCst);
            if self.level.starving.load(Ordering::Relaxed) && self.level.starving.swap(false, Ordering::Relaxed) {
                self.doorbells.iter().for_each(Doorbell::ring);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::MAX_DATA_BYTES;
    use super::super::protocol::Id;
    use super::*;

    fn data() -> ToApplication {
        ToApplication::Data(Id(1), vec![0; MAX_DATA_BYTES])
    }

    #[test]
    fn who_found_no_room_is_rung_when_half_is_free() {
        let bell = Doorbell::new().unwrap();
        let (outbox, mut delivery) = outbox([bell.clone()].into());
        while outbox.has_room() {
            outbox.put(data());
        }
        for _ in 0..OUTBOX_BYTES / MAX_DATA_BYTES / 2 {
            delivery.try_next().unwrap();
        }
        assert!(outbox.level.starving.load(Ordering::Relaxed), "no ring before");
        delivery.try_next().unwrap();
        assert!(!outbox.level.starving.load(Ordering::Relaxed) && outbox.has_room());
    }

    /// Two that are put in as one come one after the other, and each counts.
    #[test]
    fn two_at_once_are_two() {
        let (outbox, mut delivery) = outbox([].into());
        outbox.put(ToApplication::Credit(Id(1), 1));
        outbox.put_both([ToApplication::Credit(Id(2), 2), data()]);
        outbox.put(ToApplication::Credit(Id(3), 3));
        assert_eq!(outbox.level.frames.load(Ordering::Relaxed), 4);
        let mut next = || delivery.try_next();
        assert!(matches!(next(), Some(ToApplication::Credit(Id(1), 1))));
        assert!(matches!(next(), Some(ToApplication::Credit(Id(2), 2))));
        assert!(matches!(next(), Some(ToApplication::Data(Id(1), body)) if body.len() == MAX_DATA_BYTES));
        assert!(matches!(next(), Some(ToApplication::Credit(Id(3), 3))));
        assert!(next().is_none());
        assert_eq!(outbox.level.frames.load(Ordering::Relaxed), 0);
        assert_eq!(outbox.level.bytes.load(Ordering::Relaxed), 0);
    }

    /// L2.4: what is not read has an end, which is said.
    #[test]
    fn who_does_not_read_is_ended() {
        let (outbox, mut delivery) = outbox([].into());
        for _ in 0..OUTBOX_FRAMES + 10 {
            outbox.put(ToApplication::Credit(Id(1), 1));
        }
        assert!(outbox.is_over());
        let frames: Vec<ToApplication> = std::iter::from_fn(|| delivery.try_next()).collect();
        assert_eq!(frames.len(), OUTBOX_FRAMES + 1);
        assert!(matches!(frames.last(), Some(ToApplication::Error { request: 0, error }) if error.code == Code::Slow));
    }
}
