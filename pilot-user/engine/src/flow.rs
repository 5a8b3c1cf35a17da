//! Credit: how much may be sent, and how much may arrive (`docs/wire.md` W5.9, W5.10).

use std::time::Duration;

use crate::limits::MAX_MESSAGE_BYTES;
use crate::message;
use crate::time::Instant;

/// A sender that has credit for less may be blocked: the largest message is sent when there is credit for all of it. Higher: more credit
/// frames where something is not read.
const STARVED_BYTES: u64 = message::cost(MAX_MESSAGE_BYTES);

/// What this end may send: the peer's limit and what was used of it.
#[derive(Debug, Default)]
pub(crate) struct SendCredit {
    limit: u64,
    used: u64,
}

impl SendCredit {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, used: 0 }
    }

    pub(crate) fn left(&self) -> u64 {
        self.limit - self.used
    }

    /// Uses credit; the caller asked [`SendCredit::left`] before, and more than that is not used.
    pub(crate) fn take(&mut self, bytes: u64) {
        self.used += bytes.min(self.left());
    }

    /// The peer's new limit; it only grows. Whether it did.
    pub(crate) fn raise(&mut self, limit: u64) -> bool {
        let grows = limit > self.limit;
        self.limit = self.limit.max(limit);
        grows
    }
}

/// How fast an application reads is measured against the path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) now: Instant,
    /// Smoothed round trip; `None` while it is unknown.
    pub(crate) rtt: Option<Duration>,
}

/// What the peer may send: a window ahead of what the application has consumed. The window doubles as long as it, and not the
/// path or the application, is what holds the sender back.
#[derive(Debug)]
pub(crate) struct ReceiveCredit {
    window: u64,
    /// What the peer was told, or will be in the next credit frame.
    limit: u64,
    received: u64,
    consumed: u64,
    /// When the limit last moved.
    moved: Option<Instant>,
}

impl ReceiveCredit {
    pub(crate) fn new(window: u64) -> Self {
        Self { window, limit: window, received: 0, consumed: 0, moved: None }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// Bytes that arrived and were not consumed.
    pub(crate) fn unread(&self) -> u64 {
        self.received - self.consumed
    }

    /// More arrived. `None`: more than the peer had credit for.
    pub(crate) fn on_received(&mut self, bytes: u64) -> Option<()> {
        let received = self.received.checked_add(bytes).filter(|received| *received <= self.limit)?;
        self.received = received;
        Some(())
    }

    /// The application consumed some. Whether the peer should be told now: the limit moves in steps of half a window, so
    /// that a credit frame goes out for many reads. Half a window within a round trip is a window within two: the sender waits
    /// for credit, or soon will, and the window becomes twice as large, up to `most`.
    pub(crate) fn on_consumed(&mut self, bytes: u64, pace: Pace, most: u64) -> bool {
        self.consumed += bytes;
        let due = self.consumed + self.window >= self.limit + self.window / 2;
        if due {
            let last = self.moved.replace(pace.now);
            if let (Some(last), Some(rtt)) = (last, pace.rtt)
                && pace.now.since(last) <= rtt
            {
                self.widen(most.min(2 * self.window));
            }
            self.limit = self.consumed + self.window;
        }
        due
    }

    /// The application has read all that arrived of something, and waits for more of it. Whether the peer should be told now of what
    /// was consumed, because it may have no credit left for just that: where other things are not read, which may be for ever,
    /// half a window does not come together.
    pub(crate) fn on_drained(&mut self) -> bool {
        let due =
            self.limit - self.received < STARVED_BYTES.min(self.window / 2) && self.consumed + self.window > self.limit;
        if due {
            self.limit = self.consumed + self.window;
        }
        due
    }

    /// Makes the window this large if it is smaller; the limit moves when something is consumed.
    pub(crate) fn widen(&mut self, window: u64) {
        self.window = self.window.max(window);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at_us(us: u64) -> Pace {
        Pace { now: Instant::from_nanos(us * 1000), rtt: Some(Duration::from_micros(100)) }
    }

    /// wire.md W5.9, W5.10
    #[test]
    fn credit_is_never_exceeded_and_only_grows() {
        let mut send = SendCredit::new(10);
        send.take(7);
        assert!(!send.raise(9), "smaller is ignored");
        assert_eq!(send.left(), 3);
        assert!(send.raise(20));
        assert_eq!(send.left(), 13);

        let mut receive = ReceiveCredit::new(100);
        assert_eq!(receive.on_received(100), Some(()));
        assert_eq!(receive.on_received(1), None);
        assert!(!receive.on_consumed(49, at_us(0), 100));
        assert!(receive.on_consumed(1, at_us(0), 100));
        assert_eq!(receive.limit(), 150);
        assert_eq!(receive.on_received(50), Some(()));
        assert_eq!(receive.on_received(u64::MAX), None);
    }

    /// A window consumed within two round trips doubles, up to the bound; a slower reader's stays as it is, and so does one of
    /// whose path nothing is known.
    #[test]
    fn the_window_follows_the_reader() {
        let window_after = |half_window_us: u64, rtt: Option<Duration>| {
            let mut credit = ReceiveCredit::new(1000);
            let (mut now_us, mut updates) = (0, 0);
            while updates < 20 {
                now_us += half_window_us;
                let half = credit.window / 2;
                updates += u32::from(credit.on_consumed(half, Pace { rtt, ..at_us(now_us) }, 100_000));
            }
            credit.window
        };
        assert_eq!(window_after(100, Some(Duration::from_micros(100))), 100_000);
        assert_eq!(window_after(101, Some(Duration::from_micros(100))), 1000);
        assert_eq!(window_after(1, None), 1000);
    }

    /// W5.10: who reads one thing to the end of what has come is told of less than half a window where the rest of it is not read, and
    /// where it is read, it is not.
    #[test]
    fn what_is_not_read_does_not_starve_the_rest() {
        let mut credit = ReceiveCredit::new(1000);
        assert_eq!(credit.on_received(1000), Some(()));
        assert!(!credit.on_drained(), "nothing was consumed");
        assert!(!credit.on_consumed(300, at_us(0), 1000), "700 are not read");
        assert!(credit.on_drained());
        assert_eq!(credit.limit(), 1300);
        assert!(!credit.on_drained(), "once");

        let mut credit = ReceiveCredit::new(1000);
        for _ in 0..100 {
            assert_eq!(credit.on_received(100), Some(()));
            credit.on_consumed(100, at_us(0), 1000);
            assert!(!credit.on_drained(), "everything is read: the peer has half a window and more");
        }
    }

    /// The reader of a stream of any length tells of credit twice a window, whatever pieces it reads in.
    #[test]
    fn no_storm_of_updates() {
        for piece in [1, 10, 499, 500] {
            let mut credit = ReceiveCredit::new(1000);
            let updates = (0..100_000 / piece).filter(|_| credit.on_consumed(piece, at_us(0), 1000)).count();
            assert!(updates <= 200, "{updates} updates for 100 windows read by {piece}");
        }
    }
}
