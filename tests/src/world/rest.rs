//! The end of a simulation: everything arrives, then there is quiet, and nothing is missing.

use std::time::Duration;

use pilot_engine::DropReason;
use pilot_engine::limits::KEEP_ALIVE;

use super::{Host, Traffic, World};
use crate::link::Attachment;
use crate::netem::Conditions;

/// How long [`World::finish`] lets a transfer go on after the last fault. The longest timer of the engine is 30 s; a
/// connection that has to be made anew and all of its data fit several times.
const FINISH_WITHIN: Duration = Duration::from_secs(300);

/// How long it is watched that nothing but keep-alives is sent.
const QUIET: Duration = Duration::from_secs(60);

/// Bytes of a packet that only keeps alive or acks: 28 of IP's and UDP's headers, 25 round our frames, and the rest for a PING
/// and an ACK, which after losses has up to 32 ranges of four bytes or so each.
const KEEP_ALIVE_BYTES: usize = 256;

impl<A: Attachment> World<A> {
    /// The end of every simulation: faults stop; then everything arrives; then there is quiet, nothing is missing and
    /// nothing worse than INFO was logged.
    pub fn finish(mut self) {
        self.settle();
        self.end();
    }

    /// The same up to the quiet, inclusive, for who wants to look at the hosts before [`World::end`].
    pub fn settle(&mut self) {
        self.set_conditions(Conditions::GOOD);
        let before: Vec<usize> = self.hosts.iter().map(|host| host.oracle.introductions.introduced().len()).collect();
        for (from, whom) in self.asked.clone() {
            self.introduce(from, whom, None);
        }
        assert!(self.run_until(FINISH_WITHIN, Self::is_done), "not finished {FINISH_WITHIN:?} after the last fault");
        for (from, whom) in &self.asked {
            let told = self.hosts[*from].oracle.introductions.introduced()[before[*from]..].contains(&(*whom, true));
            let both = [from, whom].iter().all(|host| self.hosts[**host].setup().introductions);
            // wire.md W3.30
            assert_eq!(told, both, "{from} asked {whom} who it is");
        }
        self.check_quiet();
    }

    /// Nothing is missing.
    pub fn end(mut self) {
        // Who computes has not yet looked at what arrived, and the link has not taken back what it sent.
        let is_at_rest = |world: &Self| world.hosts.iter().all(|host| !host.has_work);
        assert!(self.run_until(QUIET, is_at_rest), "a host is busy at rest");
        for host in &mut self.hosts {
            let Host { endpoint, attachment, opened, .. } = host;
            let came = opened.xdp + opened.udp + opened.memory + opened.unproven;
            assert_eq!(came + opened.dropped, attachment.received(), "datagrams opened, dropped; and received");
            // A crossing initiation is authentic, and counted with the drops because it gets no answer.
            let reasons = DropReason::ALL.iter().filter(|(reason, _)| *reason != DropReason::Crossing);
            let dropped: u64 = reasons.map(|(reason, _)| endpoint.stats().dropped(*reason)).sum();
            assert_eq!(dropped, opened.dropped, "drops with a reason; and all");
            assert_eq!(host.delivered, attachment.received(), "packets put into the link; and received from it");
            assert_eq!(attachment.leaked(), 0, "room for packets that did not come back");
        }
        // With the hosts, because a umem that misses chunks says so when it is dropped.
        self.hosts.clear();
        assert_eq!(self.logs.text(), "", "was logged");
    }

    /// wire.md W5.15, W6.2: at rest, only keep-alives and their acks.
    fn check_quiet(&mut self) {
        // What is on its way, path MTU probes, and the keep-alive that tells of a host that moved in silence.
        self.run(2 * KEEP_ALIVE);
        self.traffic = Traffic::default();
        let handshakes = |world: &Self| world.hosts.iter().map(|host| host.endpoint.stats().handshakes).sum::<u64>();
        let before = handshakes(self);
        self.run(QUIET);
        // One more, for clocks that are fast.
        let keep_alives = (QUIET.as_nanos() / KEEP_ALIVE.as_nanos()) as u64 + 1;
        let tunnels = self.setup.tunnels() as u64;
        let Traffic { packets, largest } = self.traffic;
        // The key that the last data was sealed with may come of age, once (W4.7): each end counts it.
        let rekeys = (handshakes(self) - before).div_ceil(2);
        assert!(rekeys <= tunnels, "{rekeys} handshakes within {QUIET:?} of rest");
        // Each end's, and the ack of each; and of a rekey at most a cookie for the first initiation, the second with its response,
        // what confirms the key, and its ack.
        let most = tunnels * 2 * keep_alives * 2 + rekeys * 6;
        assert!(packets <= most, "{packets} packets within {QUIET:?} of rest, {most} at most");
        assert!(largest <= KEEP_ALIVE_BYTES, "a packet of {largest} bytes at rest");
        assert!(packets >= tunnels * (keep_alives - 1), "only {packets} packets within {QUIET:?}: no keep-alives");
        assert!(self.is_done(), "the connection is still there");
    }
}
