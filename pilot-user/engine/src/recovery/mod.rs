//! Loss detection, the probe time-out, congestion control and pacing (RFC 9002), over one packet-number space.
//!
//! Order of calls: `on_sent` for every packet; `on_ack` for every ACK; `on_timeout` when `deadline` has passed. Each tells
//! through closures what became of the frames of which packet; nothing is sent from here.

pub(crate) mod ack;
pub(crate) mod congestion;
pub(crate) mod ecn;
mod pacer;
mod reordering;
pub(crate) mod rtt;
pub(crate) mod sent;

use std::time::Duration;

use crate::error::{Code, ProtocolViolation};
use crate::frame::Ack;
use crate::limits::{
    ACK_AFTER_PACKETS, MAX_ACK_AFTER_PACKETS, MAX_FLIGHT_PACKETS, MAX_PROBE_PAUSE, MAX_PTO_BACKOFF, MIN_DATAGRAM_BYTES,
    MIN_PACED_RTT, PERSISTENT_CONGESTION_TIMEOUTS,
};
use crate::time::Instant;
use congestion::{Acked, Controller, ControllerKind};
use ecn::{Ecn, EcnPath};
use pacer::{Pace, Pacer};
use reordering::{Lost, Reordering};
use rtt::Rtt;
use sent::{SentFrame, SentPacket, SentPackets};

/// What was sent and what is known of it.
#[derive(Debug)]
pub(crate) struct Recovery {
    sent: SentPackets,
    pub(crate) rtt: Rtt,
    kind: ControllerKind,
    congestion: Box<dyn Controller>,
    pacer: Pacer,
    ecn: EcnPath,
    reordering: Reordering,
    /// Bytes: the datagram that the path carries.
    datagram: u16,
    /// Of the packets waited for. What asks for no ack may have gone another way, and shows nothing to be late.
    largest_acked: Option<u64>,
    /// The largest that an ACK named.
    largest_named: Option<u64>,
    /// Packets with lower numbers went over another path, and say nothing of this one (RFC 9000 §9.4).
    path_start: u64,
    bytes_in_flight: u64,
    packets_in_flight: u32,
    last_eliciting_sent: Instant,
    /// When the oldest packet is lost by age, if a later one was acked.
    loss_time: Option<Instant>,
    /// Losses without an acked packet between them: the number of the last, and when the first was sent.
    loss_run: Option<(u64, Instant)>,
    pto_count: u32,
    /// When the first packet was sent after the last that was acked.
    unanswered_since: Option<Instant>,
    /// Packets that may leave beyond the window, because a probe is due.
    probes: u8,
    /// The peer's announced ack delay.
    max_ack_delay: Duration,
    /// Packets that the peer's receive ring, or its socket, absorbs at once where what is sent arrives (W6.5).
    packet_credit: u32,
    /// Packets below this number left until the window, and not the application, held the sender back.
    limited_below: u64,
    /// What the peer was asked for; `None`: unknown, to be asked again.
    asked: Option<AckWish>,
    /// Something has happened since that was last considered, with this window.
    may_ask: bool,
    considered_window: u64,
    pub(crate) counters: Counters,
}

/// What is asked of the peer by ACK_FREQUENCY.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AckWish {
    /// Ack-eliciting packets after which it acks.
    pub(crate) after: u32,
    /// It says when they arrived.
    pub(crate) arrivals: bool,
}

/// For [`crate::TunnelStats`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) lost_packets: u64,
    pub(crate) spurious_losses: u64,
    pub(crate) probe_timeouts: u64,
    pub(crate) persistent_congestions: u64,
    pub(crate) ecn_ce: u64,
    pub(crate) paced: u64,
    pub(crate) queued_back: u64,
}

/// What is known of one path.
#[derive(Debug)]
pub(crate) struct Estimates {
    rtt: Rtt,
    congestion: Box<dyn Controller>,
}

/// Frames of a packet that were acked or lost, one at a time.
pub(crate) enum Fate {
    Acked(SentFrame),
    Lost(SentFrame),
    /// A path MTU probe of this many bytes arrived, or did not.
    MtuProbe {
        bytes: u16,
        arrived: bool,
    },
}

/// What one ACK acked that was waited for, and had gone over the path in use.
#[derive(Default)]
struct Newly {
    packets: u64,
    bytes: u64,
    /// When the newest was sent.
    sent: Instant,
    /// When the largest that the ACK names was sent, if it is one of them.
    sample: Option<Instant>,
    marked: u64,
}

impl Recovery {
    pub(crate) fn new(max_ack_delay: Duration, packet_credit: u32, kind: ControllerKind) -> Self {
        Self {
            sent: SentPackets::default(),
            rtt: Rtt::default(),
            kind,
            congestion: kind.start(),
            pacer: Pacer::default(),
            ecn: EcnPath::default(),
            reordering: Reordering::default(),
            datagram: MIN_DATAGRAM_BYTES,
            largest_acked: None,
            largest_named: None,
            path_start: 0,
            bytes_in_flight: 0,
            packets_in_flight: 0,
            last_eliciting_sent: Instant::ORIGIN,
            loss_time: None,
            loss_run: None,
            pto_count: 0,
            unanswered_since: None,
            probes: 0,
            max_ack_delay,
            packet_credit,
            limited_below: 0,
            asked: Some(AckWish { after: ACK_AFTER_PACKETS, arrivals: false }),
            may_ask: true,
            considered_window: 0,
            counters: Counters::default(),
        }
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.sent.next_number()
    }

    pub(crate) fn congestion_window(&self) -> u64 {
        self.congestion.window()
    }

    pub(crate) fn bytes_in_flight(&self) -> u64 {
        self.bytes_in_flight
    }

    pub(crate) fn has_unacked(&self) -> bool {
        self.packets_in_flight > 0
    }

    /// Whether a probe is due: an ack-eliciting packet that may leave whatever the window says.
    pub(crate) fn probe_due(&self) -> bool {
        self.probes > 0
    }

    /// Whether neither a probe is due nor a packet known to be late.
    pub(crate) fn is_calm(&self) -> bool {
        self.probes == 0 && self.loss_time.is_none()
    }

    /// Whether an ack-eliciting packet may leave now. Notes what forbids it.
    pub(crate) fn may_send(&mut self, now: Instant) -> bool {
        if self.probes > 0 {
            return true;
        }
        self.pacer.release();
        if self.bytes_in_flight >= self.congestion.window() {
            self.limited_below = self.next_number();
            return false;
        }
        // The limit is never less than the credit, which is seldom in flight.
        if self.packets_in_flight >= self.packet_credit && self.packets_in_flight >= self.flight_limit() {
            return false;
        }
        let Some(pace) = self.pace() else { return true };
        let may = self.pacer.may_send(now, &pace);
        self.counters.paced += u64::from(!may);
        may
    }

    /// How fast packets leave; `None` on a path so short that a window is a burst of the worker anyway.
    fn pace(&self) -> Option<Pace> {
        let is_long = self.rtt.min().is_some_and(|min| min >= MIN_PACED_RTT);
        is_long.then(|| {
            let window = self.congestion.window();
            let datagram = u64::from(self.datagram);
            let burst = pacer::burst_packets(window / datagram, self.packet_credit) * datagram;
            let slow_start = self.congestion.in_slow_start();
            Pace { window, smoothed_rtt: self.rtt.smoothed, slow_start, burst }
        })
    }

    /// W6.5: packets in flight. What pacing has spread over the path's own round trip cannot be in the receiver's ring; the
    /// rest can, behind a burst that is about to be.
    fn flight_limit(&self) -> u32 {
        let (Some(pace), Some(min)) = (self.pace(), self.rtt.min()) else { return self.packet_credit };
        let spread = u128::from(pace.window) * min.as_nanos() / self.rtt.smoothed.max(min).as_nanos();
        let spread = (spread as u64).saturating_sub(pace.burst) / u64::from(self.datagram);
        let limit = u64::from(self.packet_credit) + spread;
        u32::try_from(limit).unwrap_or(u32::MAX).min(MAX_FLIGHT_PACKETS.max(self.packet_credit))
    }

    /// Bytes that may be in flight: the window, or what the receiver takes at once where that is less.
    pub(crate) fn most_in_flight(&self) -> u64 {
        self.congestion.window().min(u64::from(self.flight_limit()) * u64::from(self.datagram))
    }

    pub(crate) fn set_datagram(&mut self, bytes: u16) {
        self.may_ask |= self.datagram != bytes;
        self.datagram = bytes;
        self.congestion.set_datagram(bytes);
    }

    /// What is sent from now on arrives where so many packets are absorbed at once.
    pub(crate) fn set_packet_credit(&mut self, packets: u32) {
        self.may_ask |= self.packet_credit != packets;
        self.packet_credit = packets;
    }

    /// Paths that turned out not to be believed about ECN.
    pub(crate) fn ecn_failures(&self) -> u64 {
        self.ecn.failures
    }

    /// The mark for the next ack-eliciting packet.
    pub(crate) fn ecn(&self) -> Ecn {
        if self.ecn.marks(self.pto_count > 0) { Ecn::Ect0 } else { Ecn::NotEct }
    }

    /// How the peer shall ack from now on, if that is news (W5.3): after a quarter of what may be in flight, so that acks are few
    /// and the window still opens evenly; a power of two, so that it rarely is news. With times of arrival (W5.23) where the delay
    /// of the path matters to a flow that is not just now and then a packet, from before it can have made a queue.
    pub(crate) fn acks_to_ask(&mut self) -> Option<AckWish> {
        let window = self.congestion.window();
        if !std::mem::take(&mut self.may_ask) && window == self.considered_window {
            return None;
        }
        self.considered_window = window;
        let flight = (window / u64::from(self.datagram)).min(u64::from(self.flight_limit()));
        let quarter = u32::try_from(flight / 4).unwrap_or(u32::MAX).clamp(ACK_AFTER_PACKETS, MAX_ACK_AFTER_PACKETS);
        let is_long = self.rtt.min().is_none_or(|min| min >= MIN_PACED_RTT);
        let is_in_use = self.asked.is_some_and(|asked| asked.arrivals) || self.packets_in_flight >= ACK_AFTER_PACKETS;
        let arrivals = self.kind == ControllerKind::DelayTarget && is_long && is_in_use;
        let keeps = |asked: AckWish| quarter < 2 * asked.after && quarter * 4 >= asked.after * 3;
        let after = self.asked.filter(|asked| keeps(*asked)).map_or(1 << quarter.ilog2(), |asked| asked.after);
        let wish = AckWish { after, arrivals };
        (self.asked.replace(wish) != Some(wish)).then_some(wish)
    }

    /// An ack-eliciting packet was sent.
    pub(crate) fn on_sent(&mut self, packet: SentPacket) {
        self.bytes_in_flight += u64::from(packet.bytes);
        self.packets_in_flight += 1;
        self.last_eliciting_sent = packet.sent;
        self.unanswered_since.get_or_insert(packet.sent);
        self.may_ask |= self.packets_in_flight == ACK_AFTER_PACKETS;
        self.probes = self.probes.saturating_sub(1);
        if let Some(pace) = self.pace() {
            self.pacer.on_sent(packet.sent, u64::from(packet.bytes), &pace);
        }
        if packet.ect {
            self.ecn.on_sent();
        }
        self.sent.push(packet);
    }

    /// A packet was sent that asks for no ack.
    pub(crate) fn on_sent_unacked(&mut self) {
        self.sent.skip();
    }

    /// Handles an ACK: what it acks, then what it shows to be lost.
    pub(crate) fn on_ack(
        &mut self,
        now: Instant,
        ack: &Ack<'_>,
        mut fate: impl FnMut(Fate),
    ) -> Result<Option<Duration>, ProtocolViolation> {
        if ack.largest() >= self.next_number() {
            return Err(ProtocolViolation::new(Code::AckOfUnsent, "acknowledged a packet that was not sent"));
        }
        self.may_ask = true;
        self.find_spurious(now, ack);
        let newly = self.take_acked(ack, &mut fate);
        let is_newest = self.largest_named < Some(ack.largest());
        self.largest_named = self.largest_named.max(Some(ack.largest()));
        let marked = if is_newest { self.ecn.on_ack(newly.marked, ack.ecn) } else { 0 };
        let measured = newly.sample.map(|sent| now.since(sent));
        if newly.packets > 0 {
            let delay = ack.delay.min(self.max_ack_delay);
            let sample = newly.sample.map(|sent| {
                let round_trip = self.rtt.update(now, now.since(sent), delay);
                let Some(arrival) = ack.arrival else { return round_trip };
                let there = self.rtt.there(now, sent, arrival, round_trip);
                self.counters.queued_back += u64::from(there < round_trip);
                there
            });
            let limited = self.was_limited(ack.largest(), newly.bytes);
            let Newly { packets, bytes, sent, .. } = newly;
            self.congestion.on_acked(&Acked { now, sent, packets, bytes, sample, rtt: &self.rtt, limited });
            if marked > 0 {
                self.counters.ecn_ce += marked;
                self.congestion.on_marked(now, sent);
            }
        }
        self.detect_losses(now, fate);
        Ok(measured)
    }

    fn take_acked(&mut self, ack: &Ack<'_>, fate: &mut impl FnMut(Fate)) -> Newly {
        let mut newly = Newly::default();
        let (mut packets, mut bytes) = (0, 0);
        let (path_start, mut largest_acked) = (self.path_start, self.largest_acked);
        for (smallest, largest) in ack.ranges() {
            self.sent.take_range(smallest, largest, |number, packet| {
                packets += 1;
                bytes += u64::from(packet.bytes);
                largest_acked = largest_acked.max(Some(number));
                if number >= path_start {
                    newly.packets += 1;
                    newly.bytes += u64::from(packet.bytes);
                    newly.sent = newly.sent.max(packet.sent);
                    newly.marked += u64::from(packet.ect);
                    if number == ack.largest() {
                        newly.sample = Some(packet.sent);
                    }
                    if packet.mtu_probe {
                        fate(Fate::MtuProbe { bytes: packet.bytes, arrived: true });
                    }
                }
                packet.frames.iter().for_each(|frame| fate(Fate::Acked(*frame)));
            });
        }
        self.largest_acked = largest_acked;
        self.bytes_in_flight -= bytes;
        self.packets_in_flight -= packets;
        if packets > 0 {
            (self.pto_count, self.probes, self.unanswered_since) = (0, 0, None);
        }
        newly
    }

    /// Whether the window held the sender back when packets up to `largest` left, of which `bytes` are acked now. In slow
    /// start half a window is enough, as pacing may not have come to its end (RFC 9002 §7.8).
    fn was_limited(&self, largest: u64, bytes: u64) -> bool {
        let half = self.congestion.in_slow_start() && (self.bytes_in_flight + bytes) * 2 >= self.congestion.window();
        largest < self.limited_below || (half && self.packets_in_flight < self.flight_limit())
    }

    /// Packets that were declared lost and are acked: they were late.
    fn find_spurious(&mut self, now: Instant, ack: &Ack<'_>) {
        let Some(largest_acked) = self.largest_acked.filter(|_| self.reordering.remembers_losses()) else { return };
        let rtt = self.rtt.longest();
        let (congestion, counters) = (&mut self.congestion, &mut self.counters);
        for range in ack.ranges() {
            self.reordering.take_acked(now, range, largest_acked, rtt, |lost| {
                counters.spurious_losses += 1;
                if lost.counted {
                    congestion.on_spurious(lost.sent);
                }
            });
        }
        let late = self.rtt.pto(self.max_ack_delay) * PERSISTENT_CONGESTION_TIMEOUTS;
        self.reordering.forget(Instant::from_nanos(now.since(Instant::ORIGIN + late).as_nanos() as u64));
    }

    /// W5.5: lost by later numbers acked, or by age. Packets are in the order of sending, so that both hold for all before
    /// the first for which neither does.
    fn detect_losses(&mut self, now: Instant, mut fate: impl FnMut(Fate)) {
        self.loss_time = None;
        let Some(largest_acked) = self.largest_acked else { return };
        let delay = self.reordering.time_threshold(self.rtt.longest());
        while let Some((number, packet)) = self.sent.oldest().filter(|(number, _)| *number < largest_acked) {
            let lost_at = packet.sent + delay;
            if largest_acked - number < self.reordering.packet_threshold() && lost_at > now {
                self.loss_time = Some(lost_at);
                return;
            }
            // The loop's condition holds the packet there.
            let Some(packet) = self.sent.pop_oldest() else { return };
            self.give_up(now, number, packet, &mut fate);
        }
    }

    fn give_up(&mut self, now: Instant, number: u64, packet: SentPacket, fate: &mut impl FnMut(Fate)) {
        self.bytes_in_flight -= u64::from(packet.bytes);
        self.packets_in_flight -= 1;
        self.counters.lost_packets += 1;
        self.may_ask = true;
        if number >= self.path_start {
            self.learn_loss(now, number, &packet, fate);
        }
        self.lose_frames(packet, fate);
    }

    fn learn_loss(&mut self, now: Instant, number: u64, packet: &SentPacket, fate: &mut impl FnMut(Fate)) {
        if packet.ect {
            self.ecn.on_lost();
        }
        self.reordering.on_lost(now, Lost { number, sent: packet.sent, counted: !packet.mtu_probe });
        if packet.mtu_probe {
            fate(Fate::MtuProbe { bytes: packet.bytes, arrived: false });
        } else {
            self.congestion.on_lost(now, packet.sent);
            self.watch_run(now, number, packet.sent);
        }
    }

    fn lose_frames(&mut self, packet: SentPacket, fate: &mut impl FnMut(Fate)) {
        for frame in packet.frames {
            if frame == SentFrame::AckFrequency {
                (self.asked, self.may_ask) = (None, true);
            }
            fate(Fate::Lost(frame));
        }
    }

    /// Persistent congestion (RFC 9002 §7.6): everything sent for three probe time-outs was lost. Only what has numbers in a
    /// row counts, so that nothing between was acked.
    fn watch_run(&mut self, now: Instant, number: u64, sent: Instant) {
        let first = match self.loss_run {
            Some((last, first)) if last + 1 == number => first,
            _ => sent,
        };
        self.loss_run = Some((number, first));
        let longest = self.rtt.pto(self.max_ack_delay) * PERSISTENT_CONGESTION_TIMEOUTS;
        if self.rtt.min().is_some() && sent.since(first) > longest {
            self.counters.persistent_congestions += 1;
            self.congestion.on_persistent_congestion(now);
            self.rtt.forget_min(now);
            self.loss_run = None;
        }
    }

    /// When `on_timeout` is to be called next.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match (self.pacer.held_until(), self.loss_deadline()) {
            (Some(held), Some(loss)) => Some(held.min(loss)),
            (held, loss) => held.or(loss),
        }
    }

    fn loss_deadline(&self) -> Option<Instant> {
        if self.loss_time.is_some() {
            return self.loss_time;
        }
        self.has_unacked().then(|| {
            let pto = self.pto();
            let pause = match self.pto_count {
                0 => pto,
                count => (pto * (1 << count.min(MAX_PTO_BACKOFF))).min(MAX_PROBE_PAUSE.max(pto)),
            };
            self.last_eliciting_sent + pause
        })
    }

    /// Handles a passed deadline: declares losses, or lets a probe leave that carries the oldest unacked frames again.
    /// Those count as lost for what to send, and stay in flight, because they may still be acked (RFC 9002 §6.2.4).
    pub(crate) fn on_timeout(&mut self, now: Instant, mut fate: impl FnMut(Fate)) {
        if self.pacer.held_until().is_some_and(|at| at <= now) {
            self.pacer.release();
        }
        if self.loss_time.is_some_and(|at| at <= now) {
            // A probe may be due by now as well, if this comes late, or if the age of a loss is more than the probe time-out,
            // where packets are known to overtake: its time is not left in the past.
            self.detect_losses(now, &mut fate);
        }
        if self.loss_deadline().is_none_or(|at| at > now) {
            return;
        }
        self.pto_count += 1;
        self.counters.probe_timeouts += 1;
        self.probes = 1;
        if let Some((_, packet)) = self.sent.oldest() {
            packet.frames.iter().cloned().for_each(|frame| fate(Fate::Lost(frame)));
        }
        // A path MTU probe may be all that is in flight; the probe packet then is a PING.
        self.last_eliciting_sent = now;
    }

    /// Whether the peer has acked anything.
    pub(crate) fn was_heard(&self) -> bool {
        self.largest_acked.is_some()
    }

    /// What is sent from now on takes another path, of which this is known, or nothing yet. Returns what is known of the one
    /// that is left.
    pub(crate) fn switch_path(&mut self, to: Option<Estimates>) -> Estimates {
        self.path_start = self.next_number();
        self.may_ask = true;
        (self.pto_count, self.limited_below, self.loss_run) = (0, 0, None);
        self.unanswered_since = None;
        (self.pacer, self.reordering) = (Pacer::default(), Reordering::default());
        self.ecn.test_anew();
        let to = to.unwrap_or_else(|| Estimates { rtt: Rtt::default(), congestion: self.kind.start() });
        let rtt = std::mem::replace(&mut self.rtt, to.rtt);
        let congestion = std::mem::replace(&mut self.congestion, to.congestion);
        self.congestion.set_datagram(self.datagram);
        Estimates { rtt, congestion }
    }

    /// The path is left because nothing arrives: all that is in flight counts as lost, but not as congestion.
    pub(crate) fn give_up_in_flight(&mut self, mut fate: impl FnMut(Fate)) {
        while let Some(packet) = self.sent.pop_oldest() {
            self.counters.lost_packets += 1;
            self.lose_frames(packet, &mut fate);
        }
        (self.bytes_in_flight, self.packets_in_flight) = (0, 0);
        (self.loss_time, self.probes) = (None, 0);
    }

    /// The probe time-out without backoff.
    pub(crate) fn pto(&self) -> Duration {
        self.rtt.pto(self.max_ack_delay)
    }

    /// Nothing is under way: gives room back.
    pub(crate) fn rest(&mut self) {
        self.sent.rest();
        self.reordering.rest();
    }

    /// Probe time-outs since the last ACK that acked something.
    pub(crate) fn timeouts_in_a_row(&self) -> u32 {
        self.pto_count
    }

    /// How long nothing that was sent has been acked.
    pub(crate) fn unanswered_for(&self, now: Instant) -> Duration {
        self.unanswered_since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// The keys or the path changed: probe soon, whatever the backoff had become.
    pub(crate) fn forget_backoff(&mut self) {
        self.pto_count = 0;
    }
}

#[cfg(test)]
mod tests;
