//! CUBIC (RFC 9438). Time is in milliseconds and windows in bytes: integers, so that a run is the same everywhere.

use super::{Acked, Controller, INITIAL_WINDOW};
use crate::limits::{MIN_DATAGRAM_BYTES, MIN_WINDOW_PACKETS};
use crate::time::Instant;

/// What a congestion event changes, and a spurious one changes back.
#[derive(Clone, Copy, Debug)]
struct State {
    window: u64,
    slow_start_threshold: u64,
    /// The window before the last reduction (W_max).
    window_max: u64,
    /// The window that Reno would have (W_est).
    reno: u64,
    /// When the growth after the last reduction began; `None`: with the next ACK.
    epoch: Option<Instant>,
    /// Time in which the cubic comes back to W_max (K), in ms.
    k_ms: u64,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Cubic {
    state: State,
    datagram: u64,
    /// The window before the last reduction as it was (cwnd_prior).
    prior: u64,
    /// Packets sent before this are of the congestion event already answered; and of the one before that.
    recovery_start: Option<Instant>,
    event_before: Option<Instant>,
    /// What was before the event, and its losses that have not turned out to be none. `None`: it is not to be undone.
    undo: Option<(State, u64)>,
    /// The last ACK of a sender that the window limited: growth stands still in between (§5.8).
    last_growth: Instant,
}

impl Default for Cubic {
    fn default() -> Self {
        Self {
            state: State {
                window: INITIAL_WINDOW,
                slow_start_threshold: u64::MAX,
                window_max: 0,
                reno: 0,
                epoch: None,
                k_ms: 0,
            },
            datagram: u64::from(MIN_DATAGRAM_BYTES),
            prior: 0,
            recovery_start: None,
            event_before: None,
            undo: None,
            last_growth: Instant::ORIGIN,
        }
    }
}

impl Cubic {
    fn is_of_event(&self, sent: Instant) -> bool {
        self.recovery_start.is_some_and(|start| sent <= start)
    }

    /// Multiplicative decrease by β = 0.7 and fast convergence (§4.6, §4.7), once per round trip.
    fn reduce(&mut self, now: Instant) {
        let state = &mut self.state;
        self.prior = state.window;
        state.window_max = if state.window < state.window_max { state.window * 17 / 20 } else { state.window };
        state.window = (state.window * 7 / 10).max(MIN_WINDOW_PACKETS * self.datagram);
        state.slow_start_threshold = state.window;
        state.epoch = None;
        (self.event_before, self.recovery_start) = (self.recovery_start, Some(now));
    }

    /// W_cubic(t) = C (t - K)³ + W_max, C = 0.4 datagrams/s³ (§4.2).
    fn cubic(&self, t_ms: u64) -> u64 {
        let distance = i128::from(t_ms) - i128::from(self.state.k_ms);
        let grown = i128::from(self.datagram) * distance.pow(3) * 2 / (5 * 1_000_000_000);
        u64::try_from(i128::from(self.state.window_max) + grown).unwrap_or(0)
    }

    /// K = ∛((W_max - cwnd) / C) (§4.2).
    fn k_ms(&self) -> u64 {
        let missing = self.state.window_max.saturating_sub(self.state.window);
        cube_root(u128::from(missing) * 5 * 1_000_000_000 / (2 * u128::from(self.datagram)))
    }
}

impl Controller for Cubic {
    fn window(&self) -> u64 {
        self.state.window
    }

    fn in_slow_start(&self) -> bool {
        self.state.window < self.state.slow_start_threshold
    }

    fn set_datagram(&mut self, bytes: u16) {
        self.datagram = u64::from(bytes);
    }

    fn on_acked(&mut self, acked: &Acked<'_>) {
        if self.is_of_event(acked.sent) {
            return;
        }
        let idle = acked.now.since(self.last_growth);
        if !acked.limited {
            return;
        }
        self.last_growth = acked.now;
        if self.in_slow_start() {
            self.state.window += acked.bytes;
            return;
        }
        let rtt = acked.rtt.smoothed;
        let epoch = match self.state.epoch {
            // The application had paused: the curve goes on where it was.
            Some(epoch) if idle > rtt => epoch + (idle - rtt),
            Some(epoch) => epoch,
            None => {
                self.state.window_max = self.state.window_max.max(self.state.window);
                self.state.k_ms = self.k_ms();
                self.state.reno = self.state.window;
                acked.now
            }
        };
        self.state.epoch = Some(epoch);
        // §4.3: α = 3(1 - β)/(1 + β) = 9/17 until the window of before is reached, then 1.
        let window = self.state.window;
        let (alpha, of) = if self.state.reno < self.prior { (9, 17) } else { (1, 1) };
        self.state.reno += self.datagram * acked.bytes * alpha / (of * window);
        let t_ms = acked.now.since(epoch).as_millis() + rtt.as_millis();
        let target = self.cubic(u64::try_from(t_ms).unwrap_or(u64::MAX).min(1 << 32)).clamp(window, window * 3 / 2);
        // §4.4 and §4.5: what the cubic wants, spread over a window of acks; at least what Reno would have.
        let grown = (u128::from(target - window) * u128::from(acked.bytes) / u128::from(window)) as u64;
        self.state.window = (window + grown).max(self.state.reno);
    }

    fn on_lost(&mut self, now: Instant, sent: Instant) {
        if self.is_of_event(sent) {
            if let Some((_, losses)) = &mut self.undo {
                *losses += 1;
            }
            return;
        }
        self.undo = Some((self.state, 1));
        self.reduce(now);
    }

    /// §4.9: when no loss of an event was one, it was none.
    fn on_spurious(&mut self, sent: Instant) {
        let of_event = self.is_of_event(sent) && self.event_before.is_none_or(|before| sent > before);
        let Some((before, losses)) = self.undo.as_mut().filter(|_| of_event) else { return };
        *losses -= 1;
        if *losses == 0 {
            let grown = self.state.window;
            self.state = State { window: before.window.max(grown), ..*before };
            self.undo = None;
        }
    }

    fn on_marked(&mut self, now: Instant, sent: Instant) {
        if !self.is_of_event(sent) {
            self.reduce(now);
        }
        self.undo = None;
    }

    /// §4.8.
    fn on_persistent_congestion(&mut self, now: Instant) {
        self.reduce(now);
        self.state.window = MIN_WINDOW_PACKETS * self.datagram;
        self.undo = None;
        // What is acked from now on was sent after the outage.
        self.recovery_start = None;
    }
}

fn cube_root(n: u128) -> u64 {
    let (mut low, mut high): (u128, u128) = (0, 1 << 32);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if middle.pow(3) <= n { low = middle } else { high = middle - 1 }
    }
    low as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::recovery::rtt::Rtt;

    const PACKET: u64 = MIN_DATAGRAM_BYTES as u64;
    const RTT: Duration = Duration::from_millis(100);

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn ack(cubic: &mut Cubic, now: Instant, sent: Instant, bytes: u64, limited: bool) {
        let mut rtt = Rtt::default();
        rtt.update(now, RTT, Duration::ZERO);
        cubic.on_acked(&Acked { now, sent, packets: bytes / PACKET, bytes, sample: Some(RTT), rtt: &rtt, limited });
    }

    /// A window of so many packets acked in a round trip that ends at `now`.
    fn round(cubic: &mut Cubic, now: u64) {
        (0..cubic.window() / PACKET).for_each(|_| ack(cubic, at(now), at(now - 100), PACKET, true));
    }

    #[test]
    fn reduces_to_seven_tenths_once_per_round_trip_and_never_below_the_least() {
        let mut cubic = Cubic::default();
        ack(&mut cubic, at(100), at(1), PACKET, true);
        assert_eq!(cubic.window(), INITIAL_WINDOW + PACKET, "slow start");
        ack(&mut cubic, at(100), at(1), PACKET, false);
        assert_eq!(cubic.window(), INITIAL_WINDOW + PACKET, "not limited by the window");
        let before = cubic.window();
        cubic.on_lost(at(110), at(2));
        cubic.on_lost(at(111), at(3));
        cubic.on_marked(at(112), at(4));
        assert_eq!(cubic.window(), before * 7 / 10, "one event");
        ack(&mut cubic, at(113), at(5), 1 << 30, true);
        assert_eq!(cubic.window(), before * 7 / 10, "sent before recovery");
        cubic.on_marked(at(300), at(200));
        assert_eq!(cubic.window(), before * 7 / 10 * 7 / 10, "a mark is congestion");
        (0..40).for_each(|n| cubic.on_lost(at(1000 + 2 * n), at(999 + 2 * n)));
        assert_eq!(cubic.window(), MIN_WINDOW_PACKETS * PACKET);
    }

    /// RFC 9438 §4.2: back at W_max after K = ∛(W_max·0.3/0.4) seconds, flat there and steep after.
    #[test]
    fn the_curve_of_the_standard() {
        let mut cubic = Cubic::default();
        let max = 1000 * PACKET;
        cubic.state.window = max;
        cubic.on_lost(at(1000), at(999));
        assert_eq!(cubic.window(), max * 7 / 10);
        let k = (1000.0_f64 * 0.3 / 0.4).cbrt();
        let mut windows = Vec::new();
        for n in 1..=200 {
            round(&mut cubic, 1000 + n * 100);
            windows.push(cubic.window() as f64 / PACKET as f64);
        }
        assert_eq!(cubic.state.k_ms, (k * 1000.0) as u64);
        // The n-th round ends at n - 1 tenths of a second after the first ACK, for the window a round trip later.
        for n in [20, 60, 91, 120, 150] {
            let t = n as f64 / 10.0;
            let expected = 0.4 * (t - k).powi(3) + 1000.0;
            let got = windows[n - 1];
            assert!((got - expected).abs() < expected * 0.02, "after {t} s: {got}, expected {expected}");
        }
    }

    /// §4.3: on short paths Reno grows faster, and CUBIC is not slower than that.
    #[test]
    fn not_slower_than_reno() {
        let mut cubic = Cubic::default();
        cubic.state.window = 20 * PACKET;
        cubic.on_lost(at(1000), at(999));
        let rounds = 40;
        (1..=rounds).for_each(|n| round(&mut cubic, 1000 + n * 100));
        let reno = 14 + rounds * 9 / 17;
        assert!(cubic.window() / PACKET >= reno, "{} packets, Reno has {reno}", cubic.window() / PACKET);
    }

    #[test]
    fn fast_convergence_gives_room_to_others() {
        let mut cubic = Cubic::default();
        cubic.state.window = 1000 * PACKET;
        cubic.on_lost(at(1000), at(999));
        assert_eq!(cubic.state.window_max, 1000 * PACKET);
        cubic.on_lost(at(1200), at(1199));
        assert_eq!(cubic.state.window_max, 700 * PACKET * 17 / 20, "lower than last time: below what it was");
    }

    /// §5.8: a curve that went on during a pause would jump after it.
    #[test]
    fn a_pause_is_no_growth() {
        let mut cubic = Cubic::default();
        cubic.state.window = 1000 * PACKET;
        cubic.on_lost(at(1000), at(999));
        round(&mut cubic, 1100);
        let before = cubic.window();
        ack(&mut cubic, at(60_000), at(59_900), PACKET, true);
        assert!(cubic.window() < before + PACKET, "{} packets", cubic.window() / PACKET);
    }

    #[test]
    fn undone_when_every_loss_was_none() {
        let mut cubic = Cubic::default();
        let before = cubic.window();
        (1..=3).for_each(|n| cubic.on_lost(at(100), at(n)));
        cubic.on_spurious(at(1));
        cubic.on_spurious(at(2));
        assert_eq!(cubic.window(), before * 7 / 10);
        cubic.on_spurious(at(3));
        assert_eq!(cubic.window(), before);
        assert!(cubic.in_slow_start());
        cubic.on_lost(at(200), at(150));
        cubic.on_marked(at(201), at(151));
        cubic.on_spurious(at(150));
        assert_eq!(cubic.window(), before * 7 / 10, "a mark is no loss");
    }

    #[test]
    fn begins_anew_after_persistent_congestion() {
        let mut cubic = Cubic::default();
        let before = cubic.window();
        cubic.on_persistent_congestion(at(1000));
        assert_eq!(cubic.window(), MIN_WINDOW_PACKETS * PACKET);
        assert!(cubic.in_slow_start());
        (0..64).for_each(|_| ack(&mut cubic, at(1100), at(999), PACKET, true));
        assert!(!cubic.in_slow_start() && cubic.window() >= before * 7 / 10);
    }
}
