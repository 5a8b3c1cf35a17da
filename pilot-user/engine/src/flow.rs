//! Credit: how much may be sent, and how much may arrive (`docs/wire.md` W5.9, W5.10).

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

/// What the peer may send: a window ahead of what the application has consumed.
#[derive(Debug)]
pub(crate) struct ReceiveCredit {
    window: u64,
    /// What the peer was told, or will be in the next credit frame.
    limit: u64,
    received: u64,
    consumed: u64,
}

impl ReceiveCredit {
    pub(crate) fn new(window: u64) -> Self {
        Self { window, limit: window, received: 0, consumed: 0 }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// More arrived. `None`: more than the peer had credit for.
    pub(crate) fn on_received(&mut self, bytes: u64) -> Option<()> {
        let received = self.received.checked_add(bytes).filter(|received| *received <= self.limit)?;
        self.received = received;
        Some(())
    }

    /// The application consumed some. Whether the peer should be told now: the limit moves in steps of half a window, so
    /// that a credit frame goes out for many reads.
    pub(crate) fn on_consumed(&mut self, bytes: u64) -> bool {
        self.consumed += bytes;
        let due = self.consumed + self.window >= self.limit + self.window / 2;
        if due {
            self.limit = self.consumed + self.window;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(!receive.on_consumed(49));
        assert!(receive.on_consumed(1));
        assert_eq!(receive.limit(), 150);
        assert_eq!(receive.on_received(50), Some(()));
        assert_eq!(receive.on_received(u64::MAX), None);
    }
}
