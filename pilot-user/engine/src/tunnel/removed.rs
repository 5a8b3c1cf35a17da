//! A peer with which this node is to have nothing to do any more.

use super::{Context, Tunnel};
use crate::error::{CloseReason, Code};

impl Tunnel {
    /// Ends everything with the peer, which is told that the tunnel is closed, and forgets where it is.
    pub(crate) fn on_removed(&mut self, ctx: &mut Context<'_>) {
        let reason = CloseReason::ClosedHere(Code::NoError);
        self.close(ctx, Code::NoError, reason.clone());
        self.table.give_up_waiting(&reason, ctx.events);
        (self.waiting_since, self.next_try, self.answer) = (None, None, None);
        self.drop_attempt(ctx);
        self.drop_fresh(ctx);
        ctx.addresses.replace(self.config.endpoint.take(), None);
        ctx.addresses.replace(self.last_path.take().map(|path| path.remote), None);
    }
}
