//! Ids of connections, streams and followings, as a worker gives them.

use super::super::protocol::Id;

/// Connections and streams are numbered so that late frames for what is over meet nothing new (L1.4).
#[derive(Debug, Default)]
pub(super) struct Ids {
    count: u32,
}

impl Ids {
    /// The next id that is not `taken`.
    pub(super) fn next(&mut self, worker: u8, by_application: bool, taken: impl Fn(Id) -> bool) -> Id {
        loop {
            // 23 bits are left; 0 is no id.
            self.count = (self.count % ((1 << 23) - 1)) + 1;
            let id = Id::new(self.count, worker, by_application);
            if !taken(id) {
                return id;
            }
        }
    }
}
