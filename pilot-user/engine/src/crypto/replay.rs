//! The replay window over packet numbers (`docs/wire.md` W4.3).

use crate::limits::REPLAY_WINDOW_PACKETS;

const WORDS: usize = REPLAY_WINDOW_PACKETS as usize / 64;

/// Which of the newest packet numbers were seen. While packets come in order it is one number; the bitmap is allocated
/// on the first gap, so that the idle tunnels of a large fabric stay small.
#[derive(Default)]
pub(crate) struct ReplayWindow {
    /// One above the highest number seen.
    next: u64,
    /// Bit `n % WINDOW` says whether `n` was seen, for the numbers of the window. `None`: all below `next` were.
    seen: Option<Box<[u64; WORDS]>>,
}

impl ReplayWindow {
    /// Whether `number` may be accepted: new, and not below the window. Changes nothing, because the packet is not yet
    /// authenticated.
    pub(crate) fn check(&self, number: u64) -> bool {
        if number >= self.next {
            return true;
        }
        let Some(seen) = &self.seen else { return false };
        self.next - number <= REPLAY_WINDOW_PACKETS && seen[word(number)] & bit(number) == 0
    }

    /// Nothing has come for so long that nothing is late any more: what was missing counts as seen, in no room.
    pub(crate) fn rest(&mut self) {
        self.seen = None;
    }

    /// Remembers `number`, whose packet was authenticated after [`ReplayWindow::check`] allowed it.
    pub(crate) fn mark(&mut self, number: u64) {
        if number == self.next && self.seen.is_none() {
            self.next += 1;
            return;
        }
        let next = self.next;
        let seen = self.seen.get_or_insert_with(|| {
            // All below `next` were seen; what lies above enters the window cleared, below.
            Box::new([u64::MAX; WORDS])
        });
        if number >= next {
            if number - next >= REPLAY_WINDOW_PACKETS {
                seen.fill(0);
            } else {
                (next..number).for_each(|n| seen[word(n)] &= !bit(n));
            }
            self.next = number + 1;
        }
        seen[word(number)] |= bit(number);
    }
}

fn word(number: u64) -> usize {
    (number % REPLAY_WINDOW_PACKETS / 64) as usize
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// wire.md W4.3: accepted, then refused, at every edge of the window.
    #[test]
    fn window_edges() {
        let w = REPLAY_WINDOW_PACKETS;
        let mut window = ReplayWindow::default();
        for (number, accepted) in [
            (0, true),
            (0, false),
            (1, true),
            (1, false),
            (9, true),
            (8, true),
            (7, true),
            (7, false),
            (6, true),
            (5, true),
            (4, true),
            (3, true),
            (2, true),
            (2, false),
            (w, true),
            (w - 1, true),
            (w, false),
            (w - 1, false),
            (1, false),
            (10, true),
            (w + 11, true),
            (11, false),
            (12, true),
            (12, false),
            (3 * w + 12, true),
            (2 * w + 12, false),
            (2 * w + 13, true),
            (2 * w + 13, false),
            (3 * w + 12, false),
        ] {
            assert_eq!(window.check(number), accepted, "{number}");
            if accepted {
                window.mark(number);
            }
        }
    }

    #[test]
    fn in_order_needs_no_bitmap() {
        let mut window = ReplayWindow::default();
        (0..100_000).for_each(|n| {
            assert!(window.check(n));
            window.mark(n);
        });
        assert!(window.seen.is_none());
        assert!(!window.check(99_999));
    }

    proptest! {
        /// Against a set of everything seen.
        #[test]
        fn agrees_with_a_set(steps in prop::collection::vec((0u64..3, 0u64..9000), 1..400)) {
            let (mut window, mut seen, mut highest) = (ReplayWindow::default(), BTreeSet::new(), 0u64);
            for (kind, n) in steps {
                let number = match kind { 0 => highest + n % 3, 1 => highest.saturating_sub(n), _ => highest + n };
                let fresh = !seen.contains(&number);
                let inside = seen.is_empty() || number + REPLAY_WINDOW_PACKETS > *seen.last().unwrap();
                prop_assert_eq!(window.check(number), fresh && inside, "{}", number);
                if fresh && inside {
                    window.mark(number);
                    seen.insert(number);
                    highest = highest.max(number);
                }
            }
        }
    }
}
