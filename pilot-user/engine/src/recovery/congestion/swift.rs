//! A delay target, after Swift (Kumar et al., SIGCOMM 2020, §3), for paths from a rack to a continent.
//!
//! The window grows while the delay of a round is below the target, and shrinks in proportion to what is above it, at most
//! to a half and at most once in three rounds.
//!
//! - **Target.** The least round trip of the last seconds, which stands for the paper's count of hops, and an eighth of it;
//!   but at least [`RACK_DELAY_TARGET`], one for all short paths: a flow that comes late sees the others' queue in its least
//!   round trip, and must not want another one on top. Plus a part for small windows (the paper's flow scaling), so that of
//!   flows that share a queue the smaller ones give way later.
//! - **Way back.** Its queues are of another's making, and on a path that both ends fill of another like this one, which would
//!   answer the same delay: one of the two gives way for ever. So samples are without them, where it matters (W5.23).
//! - **Noise.** One sample says little on a host whose cores are shared: a worker that is descheduled for 4 ms delays every
//!   ack that waits for it. The delay of a round is the least of its samples, two rounds in a row must be above the target,
//!   and the target is never less than [`RACK_DELAY_TARGET`].
//! - **Loss** is congestion when it is more than 2 %, by so much that it is hardly by chance; and when the last round was
//!   above the target, which then needs no second one.
//! - **Marks** (RFC 3168) are congestion always.
//! - **Slow start** ends with the first round above the target. Before that tells, each sample does: while they are above it, the
//!   window grows at a quarter of the pace (the conservative slow start of RFC 9406 §4.2), or it would be twice too large once the
//!   round is over.
//! - **Growth.** The paper's packet per round trip is nothing where a window has thousands: where nothing queues for several
//!   rounds the window grows by a quarter, up to where it last was too large.
//! - **Drain.** A standing queue would in time be taken for the path's own delay, and is by a flow that comes late: where no
//!   round of a hundred was without, the window is halved for two rounds. All flows at the queue see it become shorter.

use std::time::Duration;

use super::{Acked, Controller, INITIAL_WINDOW};
use crate::limits::{
    LOSS_NOT_CONGESTION_PERCENT, LOSS_WINDOW_PACKETS, MAX_QUEUE_TARGET, MIN_DATAGRAM_BYTES, MIN_QUEUE_TARGET,
    MIN_RTT_WINDOW, MIN_WINDOW_PACKETS, RACK_DELAY_TARGET,
};
use crate::time::Instant;

/// Rounds in a row above the target that are congestion: one may be a worker that was not scheduled.
const HIGH_ROUNDS: i8 = 2;
/// Rounds in a row without a queue after which the window grows by a quarter with each.
const QUIET_ROUNDS: u8 = 4;
/// Windows in packets between which the part for small windows falls from all to nothing (fs_min_cwnd, fs_max_cwnd).
const FLOW_SCALING_PACKETS: (f64, f64) = (4.0, 1024.0);
/// Rounds for which the window is small when the queue is to drain: one that the smaller window needs to be in flight, and
/// one to see what is left.
const DRAIN_ROUNDS: u8 = 2;

/// How long the queue may stand: a hundred rounds, so that draining costs a percent, and less than the least round trip is
/// believed.
fn drain_after(min_rtt: Duration) -> Duration {
    (min_rtt * 100).clamp(RACK_DELAY_TARGET * 25, MIN_RTT_WINDOW / 2)
}

/// Packets sent and lost, in two generations: those of the last one to two [`LOSS_WINDOW_PACKETS`].
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    recent: [u64; 2],
    before: [u64; 2],
}

impl Losses {
    fn add(&mut self, packets: u64, lost: u64) {
        self.recent[0] += packets;
        self.recent[1] += lost;
        if self.recent[0] >= LOSS_WINDOW_PACKETS {
            (self.before, self.recent) = (self.recent, [0; 2]);
        }
    }

    fn lost(&self) -> u64 {
        self.recent[1] + self.before[1]
    }

    /// How many may be lost before it is congestion: the share that is not, and three standard deviations of that, which
    /// chance exceeds once in a thousand. Below 128 packets as for 128: a handful says nothing.
    fn allowed(&self) -> u64 {
        let packets = (self.recent[0] + self.before[0]).max(128);
        let share = packets * LOSS_NOT_CONGESTION_PERCENT / 100;
        share + 3 * share.isqrt() + 1
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Swift {
    window: u64,
    datagram: u64,
    slow_start: bool,
    /// The last sample was above the target.
    queues: bool,
    /// What was acked towards the next datagram of growth: bytes times datagrams per round.
    grown: u64,
    /// When the last reduction was: what was sent before is of the event that was answered.
    reduced_at: Option<Instant>,
    /// Packets sent from then on make the next round.
    round: Instant,
    /// The least delay of the round, as far as it has come.
    least: Option<Duration>,
    /// The last round was above the target, for which this would be the right window.
    above: Option<u64>,
    /// Rounds in a row above the target; negative: so many are still those of before a reduction.
    high_rounds: i8,
    quiet_rounds: u8,
    losses: Losses,
    /// The window before a reduction for loss, and how many losses more than allowed there were.
    undo: Option<(u64, u64)>,
    /// The window that last was too large, and when.
    ceiling: Option<(u64, Instant)>,
    /// The last round almost without a queue.
    empty_at: Instant,
    /// Rounds that the window stays small for, and how small.
    drain: Option<(u8, u64)>,
}

impl Default for Swift {
    fn default() -> Self {
        Self {
            window: INITIAL_WINDOW,
            datagram: u64::from(MIN_DATAGRAM_BYTES),
            slow_start: true,
            queues: false,
            grown: 0,
            reduced_at: None,
            round: Instant::ORIGIN,
            least: None,
            above: None,
            high_rounds: 0,
            quiet_rounds: 0,
            losses: Losses::default(),
            undo: None,
            ceiling: None,
            empty_at: Instant::ORIGIN,
            drain: None,
        }
    }
}

impl Swift {
    fn floor(&self) -> u64 {
        MIN_WINDOW_PACKETS * self.datagram
    }

    /// The queueing delay that is wanted, without and with the part for small windows.
    fn targets(&self, min_rtt: Duration) -> (Duration, Duration) {
        let eighth = (min_rtt / 8).clamp(MIN_QUEUE_TARGET, MAX_QUEUE_TARGET);
        let base = (min_rtt + eighth).max(RACK_DELAY_TARGET) - min_rtt;
        let (small, large) = FLOW_SCALING_PACKETS;
        let packets = (self.window as f64 / self.datagram as f64).clamp(small, large);
        // Square roots are exact to the last bit everywhere.
        let part = (1.0 / packets.sqrt() - 1.0 / large.sqrt()) / (1.0 / small.sqrt() - 1.0 / large.sqrt());
        (base, base + eighth.max(RACK_DELAY_TARGET / 2).mul_f64(part))
    }

    /// Datagrams by which the window grows in a round: as many as keep the time in which a flow comes to its share the same
    /// on long paths as on short ones.
    fn step(min_rtt: Duration) -> u64 {
        u64::try_from(min_rtt.as_nanos() / RACK_DELAY_TARGET.as_nanos()).unwrap_or(1).clamp(1, 64)
    }

    fn is_of_event(&self, sent: Instant) -> bool {
        self.reduced_at.is_some_and(|at| sent <= at)
    }

    fn reduce(&mut self, now: Instant, to: u64) {
        self.ceiling = Some((self.window, now));
        if self.slow_start {
            self.empty_at = now;
        }
        self.window = to.clamp(self.window / 2, self.window).max(self.floor());
        self.reduced_at = Some(now);
        self.slow_start = false;
        self.grown = 0;
        self.quiet_rounds = 0;
        self.high_rounds = -1;
        self.undo = None;
    }

    /// A round is over, of which `delay` was the least.
    fn on_round(&mut self, acked: &Acked<'_>, delay: Duration) {
        let (now, min_rtt) = (acked.now, acked.rtt.min().unwrap_or(delay));
        let (base, wanted) = self.targets(min_rtt);
        let queue = delay.saturating_sub(min_rtt);
        if queue <= base / 8 {
            self.empty_at = now;
        }
        if self.drain.is_some() {
            self.drain = self.drain.map(|(rounds, window)| (rounds - 1, window)).filter(|(rounds, _)| *rounds > 0);
            self.high_rounds = -1;
            return;
        }
        // Slow start went on for a round trip, so that its queue is what the window is too large by. Else 1 - β times what is
        // above, with the paper's β = 0.8.
        self.above = (queue > wanted).then(|| {
            let (delay, above) = (delay.as_nanos(), (queue - wanted).as_nanos());
            let kept = if self.slow_start { delay - above } else { delay - above * 4 / 5 };
            u64::try_from(u128::from(self.window) * kept / delay.max(1)).unwrap_or(u64::MAX)
        });
        if self.above.is_none() {
            self.high_rounds = self.high_rounds.clamp(-1, 0).saturating_add(1).min(0);
        } else {
            self.high_rounds += 1;
        }
        self.quiet_rounds = if queue <= base / 4 && acked.limited { self.quiet_rounds.saturating_add(1) } else { 0 };
        if let Some(to) = self.above.filter(|_| self.slow_start || self.high_rounds >= HIGH_ROUNDS) {
            self.reduce(now, to);
        } else if !self.slow_start && now.since(self.empty_at) > drain_after(min_rtt) {
            let kept = u128::from(self.window) * min_rtt.as_nanos() / delay.as_nanos().max(1) / 2;
            self.drain = Some((DRAIN_ROUNDS, u64::try_from(kept).unwrap_or(u64::MAX).max(self.floor())));
            self.empty_at = now;
        }
    }

    fn grow(&mut self, acked: &Acked<'_>) {
        if self.slow_start {
            self.window += if self.queues { acked.bytes / 4 } else { acked.bytes };
            return;
        }
        if self.ceiling.is_some_and(|(_, at)| acked.now.since(at) > MIN_RTT_WINDOW) {
            self.ceiling = None;
        }
        if self.quiet_rounds >= QUIET_ROUNDS && self.ceiling.is_none_or(|(window, _)| self.window < window) {
            self.window += acked.bytes / 4;
            return;
        }
        self.grown += acked.bytes * Self::step(acked.rtt.min().unwrap_or_default());
        let datagrams = self.grown / self.window;
        self.grown -= datagrams * self.window;
        self.window += datagrams * self.datagram;
    }
}

impl Controller for Swift {
    fn window(&self) -> u64 {
        self.drain.map_or(self.window, |(_, window)| window.min(self.window))
    }

    fn in_slow_start(&self) -> bool {
        self.slow_start
    }

    fn set_datagram(&mut self, bytes: u16) {
        self.datagram = u64::from(bytes);
    }

    fn on_acked(&mut self, acked: &Acked<'_>) {
        if acked.sent >= self.round {
            self.round = acked.now;
            if let Some(delay) = self.least.take() {
                self.on_round(acked, delay);
            }
        }
        if let Some(sample) = acked.sample {
            self.least = Some(self.least.map_or(sample, |least| least.min(sample)));
            let min_rtt = acked.rtt.min().unwrap_or(sample);
            self.queues = sample.saturating_sub(min_rtt) > self.targets(min_rtt).1;
        }
        if self.is_of_event(acked.sent) {
            return;
        }
        self.losses.add(acked.packets, 0);
        if acked.limited && self.above.is_none() && self.drain.is_none() {
            self.grow(acked);
        }
    }

    fn on_lost(&mut self, now: Instant, sent: Instant) {
        if self.is_of_event(sent) {
            if let Some((_, losses)) = &mut self.undo {
                *losses += 1;
            }
            return;
        }
        self.losses.add(1, 1);
        let (lost, allowed) = (self.losses.lost(), self.losses.allowed());
        let queued = self.above.filter(|_| self.high_rounds > 0);
        let to = if lost > allowed { Some(self.window / 2) } else { queued };
        if let Some(to) = to {
            let before = self.window;
            self.reduce(now, to);
            if lost > allowed {
                // Only what halves the window for them has answered them: a short queue overflows without end if a window
                // that is a little too large is made a little smaller each time.
                self.losses = Losses::default();
            }
            self.undo = Some((before, 1));
        }
    }

    fn on_spurious(&mut self, sent: Instant) {
        if !self.is_of_event(sent) {
            let lost = &mut self.losses;
            let generation = if lost.recent[1] > 0 { &mut lost.recent } else { &mut lost.before };
            generation[1] = generation[1].saturating_sub(1);
            return;
        }
        let Some((before, losses)) = &mut self.undo else { return };
        *losses -= 1;
        if *losses == 0 {
            self.window = self.window.max(*before);
            (self.undo, self.ceiling) = (None, None);
        }
    }

    fn on_marked(&mut self, now: Instant, sent: Instant) {
        if !self.is_of_event(sent) {
            self.reduce(now, self.window * 4 / 5);
        }
        self.undo = None;
    }

    fn on_persistent_congestion(&mut self, now: Instant) {
        *self = Self { window: self.floor(), datagram: self.datagram, empty_at: now, round: now, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::rtt::Rtt;

    const PACKET: u64 = MIN_DATAGRAM_BYTES as u64;

    /// A sender that is always limited by the window, on a path whose round trips a test chooses.
    struct Flow {
        swift: Swift,
        rtt: Rtt,
        now: Instant,
    }

    impl Flow {
        fn new() -> Self {
            Self { swift: Swift::default(), rtt: Rtt::default(), now: Instant::from_nanos(1 << 30) }
        }

        /// A round in which each packet took `took`, and the n-th was lost if `lost` says so.
        fn round(&mut self, took: Duration, lost: impl Fn(u64) -> bool) {
            let sent = self.now;
            self.now += took;
            for n in 0..(self.swift.window() / PACKET).max(1) {
                if lost(n) {
                    self.swift.on_lost(self.now, sent);
                    continue;
                }
                let sample = Some(self.rtt.update(self.now, took, Duration::ZERO));
                let (now, rtt) = (self.now, &self.rtt);
                let acked = Acked { now, sent, packets: 1, bytes: PACKET, sample, rtt, limited: true };
                self.swift.on_acked(&acked);
            }
            self.now += Duration::from_nanos(1);
        }

        fn quiet(&mut self, took: Duration) {
            self.round(took, |_| false);
        }

        /// Past slow start, with a window of so many packets.
        fn steady(packets: u64, took: Duration) -> Self {
            let mut flow = Self::new();
            flow.quiet(took);
            flow.swift.slow_start = false;
            flow.swift.window = packets * PACKET;
            flow.swift.empty_at = flow.now;
            flow
        }

        fn packets(&self) -> u64 {
            self.swift.window() / PACKET
        }
    }

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    const fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn slow_start_ends_with_the_queue_it_made() {
        let mut flow = Flow::new();
        flow.quiet(ms(50));
        assert_eq!(flow.packets(), 64);
        flow.quiet(ms(50));
        flow.quiet(ms(54));
        assert_eq!(flow.packets(), 256, "a queue below the target is wanted");
        let (_, wanted) = flow.swift.targets(ms(50));
        flow.quiet(ms(100));
        assert_eq!(flow.packets(), 256 + 256 / 4, "slower as soon as samples are above it");
        flow.quiet(ms(100));
        let expected = 320 * (ms(50) + wanted).as_micros() as u64 / 100_000;
        assert!(!flow.swift.in_slow_start() && flow.packets().abs_diff(expected) <= 2, "{}", flow.packets());
    }

    /// A short queue that overflows in every round: what is answered mildly is not forgotten.
    #[test]
    fn losses_behind_a_queue_add_up() {
        let mut flow = Flow::steady(100, ms(10));
        for _ in 0..10 {
            flow.round(ms(12), |n| n % 20 == 10);
        }
        assert!(flow.packets() < 50, "still {} packets", flow.packets());
    }

    /// A worker that is not scheduled for 4 ms delays a whole round inside a rack.
    #[test]
    fn one_late_round_is_noise_and_two_are_a_queue() {
        let mut flow = Flow::steady(128, us(60));
        for _ in 0..100 {
            flow.quiet(us(60));
            flow.quiet(ms(4));
        }
        assert!(flow.packets() >= 128, "{}", flow.packets());
        flow.quiet(us(60));
        let before = flow.packets();
        flow.quiet(ms(4));
        flow.quiet(ms(4));
        flow.quiet(ms(4));
        assert!((before / 2..before * 3 / 4).contains(&flow.packets()), "{} of {before}", flow.packets());
        let once = flow.packets();
        flow.quiet(ms(4));
        flow.quiet(ms(4));
        assert_eq!(flow.packets(), once, "what was in flight then tells nothing about what it has become");
        flow.quiet(ms(4));
        assert!(flow.packets() < once);
    }

    /// The part of samples above a round's least are no matter.
    #[test]
    fn samples_above_the_least_of_a_round_are_noise() {
        let mut flow = Flow::steady(128, us(60));
        for round in 0..100 {
            let sent = flow.now;
            for n in 0..128 {
                flow.now += us(1);
                let took = if n == round { us(100) } else { ms(9) };
                let sample = Some(flow.rtt.update(flow.now, took, Duration::ZERO));
                let (now, rtt) = (flow.now, &flow.rtt);
                flow.swift.on_acked(&Acked { now, sent, packets: 1, bytes: PACKET, sample, rtt, limited: false });
            }
        }
        assert_eq!(flow.packets(), 128);
    }

    #[test]
    fn two_percent_without_a_queue_is_not_congestion_and_more_is() {
        for (per_mille, congestion) in [(10, false), (20, false), (60, true), (200, true)] {
            let mut flow = Flow::steady(1000, ms(10));
            for round in 0..40 {
                flow.round(ms(10), |n| (n + round * 1000).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & 1023 < per_mille);
            }
            assert_eq!(flow.packets() < 1000, congestion, "{per_mille} of 1000 lost: {}", flow.packets());
        }
    }

    #[test]
    fn loss_with_a_queue_is_congestion() {
        let mut flow = Flow::steady(1000, ms(10));
        flow.quiet(ms(20));
        let before = flow.packets();
        flow.round(ms(20), |n| n == 999);
        let once = flow.packets();
        assert!((before / 2..before * 4 / 5).contains(&once), "one round above the target: {once} of {before}");
        let mut flow = Flow::steady(1000, ms(10));
        flow.quiet(ms(20));
        flow.quiet(ms(20));
        assert!(flow.packets() >= 1000, "{}", flow.packets());
    }

    #[test]
    fn a_mark_is_congestion_once_a_round_trip() {
        let mut flow = Flow::steady(1000, ms(10));
        let sent = flow.now;
        flow.now += ms(10);
        flow.swift.on_marked(flow.now, sent);
        flow.swift.on_marked(flow.now + us(1), sent);
        assert_eq!(flow.packets(), 800);
    }

    #[test]
    fn undone_when_losses_were_none() {
        let mut flow = Flow::steady(1000, ms(10));
        let sent = flow.now;
        flow.now += ms(10);
        let losses = (1..).find(|_| {
            flow.swift.on_lost(flow.now, sent);
            flow.packets() < 1000
        });
        (0..3).for_each(|_| flow.swift.on_lost(flow.now, sent));
        (0..3).for_each(|_| flow.swift.on_spurious(sent));
        assert_eq!(flow.packets(), 500, "after {losses:?} losses");
        flow.swift.on_spurious(sent);
        assert_eq!(flow.packets(), 1000, "no more than what is not congestion");
    }

    /// A longer route is believed in time, and growth goes on.
    #[test]
    fn a_longer_route_is_noticed() {
        let mut flow = Flow::steady(1000, ms(10));
        let mut least = u64::MAX;
        while flow.now < Instant::from_nanos(25_000_000_000) && flow.packets() < 1100 {
            flow.quiet(ms(40));
            least = least.min(flow.packets());
        }
        assert!(least < 100 && flow.packets() > 1000, "{least}, then {}", flow.packets());
    }

    /// A queue that stands below the target would become the path's own delay.
    #[test]
    fn drains_a_standing_queue_now_and_then() {
        let mut flow = Flow::steady(1000, ms(40));
        let begin = flow.now;
        let (mut drained, mut rounds) = (0, 0);
        while flow.now < begin + MIN_RTT_WINDOW * 2 {
            flow.quiet(if flow.swift.drain.is_some() { ms(40) } else { ms(44) });
            drained += u32::from(flow.swift.window() < flow.swift.window / 2);
            rounds += 1;
        }
        let expected = (flow.now.since(begin).as_millis() / drain_after(ms(40)).as_millis()) as u32;
        assert!(drained.abs_diff(expected * u32::from(DRAIN_ROUNDS)) <= 2, "{drained} of {rounds} rounds");
        assert_eq!(flow.rtt.min(), Some(ms(40)));
    }

    #[test]
    fn grows_fast_where_nothing_queues_and_slowly_beyond_what_was_too_large() {
        let mut flow = Flow::steady(100, ms(50));
        (0..QUIET_ROUNDS).for_each(|_| flow.quiet(ms(50)));
        let before = flow.packets();
        flow.quiet(ms(50));
        assert!(flow.packets() >= before * 5 / 4 - 1, "{} after {before}", flow.packets());
        flow.swift.ceiling = Some((flow.swift.window, flow.now));
        let before = flow.packets();
        flow.quiet(ms(50));
        let grown = flow.packets() - before;
        assert!(grown.abs_diff(Swift::step(ms(50))) <= 1, "a datagram for each two milliseconds: {grown}");
    }

    #[test]
    fn begins_anew_after_persistent_congestion() {
        let mut flow = Flow::steady(1000, ms(10));
        flow.swift.on_persistent_congestion(flow.now);
        assert_eq!(flow.packets(), MIN_WINDOW_PACKETS);
        assert!(flow.swift.in_slow_start());
    }
}
