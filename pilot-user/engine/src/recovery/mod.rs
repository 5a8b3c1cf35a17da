//! Loss detection and the probe time-out (RFC 9002), over one packet-number space.
//!
//! Order of calls: `on_sent` for every packet; `on_ack` for every ACK; `on_timeout` when `deadline` has passed. Each tells
//! through closures what became of the frames of which packet; nothing is sent from here.

pub(crate) mod ack;
mod congestion;
pub(crate) mod rtt;
pub(crate) mod sent;

use std::time::Duration;

use crate::error::{Code, ProtocolViolation};
use crate::frame::Ack;
use crate::limits::{MAX_PROBE_PAUSE, MAX_PTO_BACKOFF, PACKET_THRESHOLD};
use crate::time::Instant;
use congestion::NewReno;
use rtt::Rtt;
use sent::{SentFrame, SentPacket, SentPackets};

/// What was sent and what is known of it.
#[derive(Debug)]
pub(crate) struct Recovery {
    sent: SentPackets,
    pub(crate) rtt: Rtt,
    congestion: NewReno,
    /// Of the packets waited for. What asks for no ack may have gone another way, and shows nothing to be late.
    largest_acked: Option<u64>,
    /// Packets with lower numbers went over another path, and say nothing of this one (RFC 9000 §9.4).
    path_start: u64,
    bytes_in_flight: u64,
    packets_in_flight: u32,
    last_eliciting_sent: Instant,
    /// When the oldest packet is lost by age, if a later one was acked.
    loss_time: Option<Instant>,
    pto_count: u32,
    /// Packets that may leave beyond the window, because a probe is due.
    probes: u8,
    /// The peer's announced ack delay.
    max_ack_delay: Duration,
    /// Packets in flight that the peer's receive ring absorbs (W6.5).
    packet_credit: u32,
    /// The window, not the application, held the sender back since the last ACK.
    window_limited: bool,
    pub(crate) lost_packets: u64,
    pub(crate) probe_timeouts: u64,
}

/// What is known of one path.
#[derive(Debug, Default)]
pub(crate) struct Estimates {
    rtt: Rtt,
    congestion: NewReno,
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

impl Recovery {
    pub(crate) fn new(max_ack_delay: Duration, packet_credit: u32) -> Self {
        Self {
            sent: SentPackets::default(),
            rtt: Rtt::default(),
            congestion: NewReno::default(),
            largest_acked: None,
            path_start: 0,
            bytes_in_flight: 0,
            packets_in_flight: 0,
            last_eliciting_sent: Instant::ORIGIN,
            loss_time: None,
            pto_count: 0,
            probes: 0,
            max_ack_delay,
            packet_credit,
            window_limited: false,
            lost_packets: 0,
            probe_timeouts: 0,
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

    /// Whether an ack-eliciting packet may leave now. Notes when the window forbids it.
    pub(crate) fn may_send(&mut self) -> bool {
        if self.probes > 0 {
            return true;
        }
        if self.bytes_in_flight >= self.congestion.window() {
            self.window_limited = true;
            return false;
        }
        self.packets_in_flight < self.packet_credit
    }

    pub(crate) fn set_datagram(&mut self, bytes: u16) {
        self.congestion.set_datagram(bytes);
    }

    /// An ack-eliciting packet was sent.
    pub(crate) fn on_sent(&mut self, packet: SentPacket) {
        self.bytes_in_flight += u64::from(packet.bytes);
        self.packets_in_flight += 1;
        self.last_eliciting_sent = packet.sent;
        self.probes = self.probes.saturating_sub(1);
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
        ack: &Ack,
        mut fate: impl FnMut(Fate),
    ) -> Result<(), ProtocolViolation> {
        if ack.largest() >= self.next_number() {
            return Err(ProtocolViolation::new(Code::AckOfUnsent, "acknowledged a packet that was not sent"));
        }
        let (mut sample, mut any) = (None, false);
        let limited = std::mem::take(&mut self.window_limited);
        let (path_start, mut largest_acked) = (self.path_start, self.largest_acked);
        for &(smallest, largest) in ack.ranges() {
            let (sent, congestion) = (&mut self.sent, &mut self.congestion);
            let (bytes_in_flight, packets_in_flight) = (&mut self.bytes_in_flight, &mut self.packets_in_flight);
            sent.take_range(smallest, largest, |number, packet| {
                any = true;
                *bytes_in_flight -= u64::from(packet.bytes);
                *packets_in_flight -= 1;
                largest_acked = largest_acked.max(Some(number));
                if number >= path_start {
                    congestion.on_acked(packet.sent, u64::from(packet.bytes), limited);
                    if number == ack.largest() {
                        sample = Some(packet.sent);
                    }
                    if packet.mtu_probe {
                        fate(Fate::MtuProbe { bytes: packet.bytes, arrived: true });
                    }
                }
                packet.frames.into_iter().for_each(|frame| fate(Fate::Acked(frame)));
            });
        }
        self.largest_acked = largest_acked;
        if any {
            self.pto_count = 0;
            self.probes = 0;
            if let Some(sent) = sample {
                self.rtt.update(now.since(sent), ack.delay.min(self.max_ack_delay));
            }
        }
        self.detect_losses(now, fate);
        Ok(())
    }

    /// W5.5: lost by three later numbers acked, or by age. Packets are in the order of sending, so that both hold for
    /// all before the first for which neither does.
    fn detect_losses(&mut self, now: Instant, mut fate: impl FnMut(Fate)) {
        self.loss_time = None;
        let Some(largest_acked) = self.largest_acked else { return };
        let delay = self.rtt.loss_delay();
        while let Some((number, packet)) = self.sent.oldest().filter(|(number, _)| *number < largest_acked) {
            let lost_at = packet.sent + delay;
            if largest_acked - number < PACKET_THRESHOLD && lost_at > now {
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
        self.lost_packets += 1;
        match packet.mtu_probe {
            _ if number < self.path_start => {}
            true => fate(Fate::MtuProbe { bytes: packet.bytes, arrived: false }),
            false => self.congestion.on_lost(now, packet.sent),
        }
        packet.frames.into_iter().for_each(|frame| fate(Fate::Lost(frame)));
    }

    /// When `on_timeout` is to be called next, and why.
    pub(crate) fn deadline(&self) -> Option<(Instant, &'static str)> {
        if let Some(at) = self.loss_time {
            return Some((at, "loss"));
        }
        self.has_unacked().then(|| {
            let pto = self.rtt.pto(self.max_ack_delay);
            let doubled = pto * (1 << self.pto_count.min(MAX_PTO_BACKOFF));
            (self.last_eliciting_sent + doubled.min(MAX_PROBE_PAUSE.max(pto)), "probe")
        })
    }

    /// Handles a passed deadline: declares losses, or lets a probe leave that carries the oldest unacked frames again.
    /// Those count as lost for what to send, and stay in flight, because they may still be acked (RFC 9002 §6.2.4).
    pub(crate) fn on_timeout(&mut self, now: Instant, mut fate: impl FnMut(Fate)) {
        if self.loss_time.is_some_and(|at| at <= now) {
            // A probe may be due by now as well, if this comes late: its time is not left in the past.
            self.detect_losses(now, &mut fate);
        }
        if self.deadline().is_none_or(|(at, _)| at > now) {
            return;
        }
        self.pto_count += 1;
        self.probe_timeouts += 1;
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

    /// Probe time-outs since the last ACK that acked something.
    pub(crate) fn timeouts_in_a_row(&self) -> u32 {
        self.pto_count
    }

    /// What is sent from now on takes another path, of which this is known, or nothing yet. Returns what is known of the one
    /// that is left.
    pub(crate) fn switch_path(&mut self, to: Option<Estimates>) -> Estimates {
        self.path_start = self.next_number();
        self.pto_count = 0;
        self.window_limited = false;
        let Estimates { rtt, congestion } = to.unwrap_or_default();
        Estimates {
            rtt: std::mem::replace(&mut self.rtt, rtt),
            congestion: std::mem::replace(&mut self.congestion, congestion),
        }
    }

    /// The path is left because nothing arrives: all that is in flight counts as lost, but not as congestion.
    pub(crate) fn give_up_in_flight(&mut self, mut fate: impl FnMut(Fate)) {
        while let Some(packet) = self.sent.pop_oldest() {
            self.lost_packets += 1;
            packet.frames.into_iter().for_each(|frame| fate(Fate::Lost(frame)));
        }
        (self.bytes_in_flight, self.packets_in_flight) = (0, 0);
        (self.loss_time, self.probes) = (None, 0);
    }

    /// The probe time-out without backoff.
    pub(crate) fn pto(&self) -> Duration {
        self.rtt.pto(self.max_ack_delay)
    }

    /// The keys or the path changed: probe soon, whatever the backoff had become.
    pub(crate) fn forget_backoff(&mut self) {
        self.pto_count = 0;
    }
}

#[cfg(test)]
mod tests;
