use super::*;
use crate::codec::{Reader, Writer};
use crate::frame::{self, ArrivalTime, Frame};
use crate::limits::TIMER_GRANULARITY;
use crate::recovery::ecn::EcnCounts;

const ACK_DELAY: Duration = Duration::from_millis(1);
const RTT: Duration = Duration::from_micros(100);

fn recovery() -> Recovery {
    with_credit(128)
}

fn with_credit(packets: u32) -> Recovery {
    Recovery::new(ACK_DELAY, packets, ControllerKind::Cubic)
}

fn at(micros: u64) -> Instant {
    Instant::from_nanos(micros * 1000)
}

/// Sends a packet that carries message `n`, where `n` is also its number.
fn send(recovery: &mut Recovery, now: Instant) {
    let connection = crate::connection::Key { slot: 0, generation: 0 };
    let number = recovery.next_number();
    let frames = [SentFrame::Messages { connection, start: number, bytes: 1, count: 1 }].into_iter().collect();
    recovery.on_sent(SentPacket { sent: now, bytes: 1000, mtu_probe: false, ect: recovery.ecn() == Ecn::Ect0, frames });
}

fn ack(ranges: &[(u64, u64)]) -> Ack<'static> {
    ack_arrived(ranges, None)
}

fn ack_arrived(ranges: &[(u64, u64)], arrival: Option<ArrivalTime>) -> Ack<'static> {
    let buffer = Box::leak(Box::new([0; 600]));
    let mut writer = Writer::new(buffer);
    frame::write_ack(&mut writer, Duration::ZERO, None, arrival, ranges.iter().copied()).unwrap();
    let length = writer.len();
    match Frame::next(&mut Reader::new(&buffer[..length])) {
        Ok(Some(Frame::Ack(ack))) => ack,
        other => panic!("{other:?}"),
    }
}

/// Numbers acked and lost.
#[derive(Default, PartialEq, Debug)]
struct Fates(Vec<u64>, Vec<u64>);

impl Fates {
    fn take(&mut self, fate: Fate) {
        match fate {
            Fate::Acked(SentFrame::Messages { start: number, .. }) => self.0.push(number),
            Fate::Lost(SentFrame::Messages { start: number, .. }) => self.1.push(number),
            _ => {}
        }
    }
}

/// The deadline, and what it is for.
fn timer(recovery: &Recovery) -> Option<(Instant, &'static str)> {
    let at = recovery.deadline()?;
    let what = match (recovery.pacer.held_until(), recovery.loss_time) {
        (Some(held), _) if held == at => "pacing",
        (_, Some(_)) => "loss",
        (_, None) => "probe",
    };
    Some((at, what))
}

fn acked(recovery: &mut Recovery, now: Instant, ranges: &[(u64, u64)]) -> Fates {
    let mut fates = Fates::default();
    recovery.on_ack(now, &ack(ranges), |fate| fates.take(fate)).unwrap();
    fates
}

fn timed_out(recovery: &mut Recovery, now: Instant) -> Fates {
    let mut fates = Fates::default();
    recovery.on_timeout(now, |fate| fates.take(fate));
    fates
}

/// wire.md W5.5, W5.2: by three later numbers, and by age when a later one was acked.
#[test]
fn lost_by_number_and_by_age() {
    let mut r = recovery();
    (0..5).for_each(|n| send(&mut r, at(n)));
    assert_eq!(acked(&mut r, at(100), &[(2, 2)]), Fates(vec![2], vec![]), "two below is reordering");
    assert_eq!(acked(&mut r, at(101), &[(2, 3)]), Fates(vec![3], vec![0]), "three below is loss");
    let (due, why) = timer(&r).unwrap();
    assert_eq!(
        (due, why),
        (at(1) + TIMER_GRANULARITY, "loss"),
        "by age: 9/8 of the round trip, at least the granularity"
    );
    assert_eq!(timed_out(&mut r, at(500)), Fates::default());
    assert_eq!(timed_out(&mut r, due), Fates(vec![], vec![1]));
    assert_eq!(acked(&mut r, due, &[(0, 4)]), Fates(vec![4], vec![]), "what was given up is not acked any more");
    assert!(!r.has_unacked());
    assert_eq!((r.bytes_in_flight(), r.counters.lost_packets), (0, 2));
}

/// wire.md W5.4: each range counts, in whichever order, and what lies between them is still waited for.
#[test]
fn every_range_of_an_ack_counts() {
    let mut r = recovery();
    (0..8).for_each(|n| send(&mut r, at(n)));
    let mut fates = acked(&mut r, at(100), &[(7, 7), (4, 5), (2, 2), (0, 0)]);
    fates.0.sort();
    assert_eq!(fates, Fates(vec![0, 2, 4, 5, 7], vec![1, 3]));
    assert_eq!((r.bytes_in_flight(), r.counters.lost_packets), (1000, 2), "one may still come");
}

/// wire.md W5.6
#[test]
fn the_probe_timeout_doubles_and_sends_the_oldest_again() {
    let mut r = recovery();
    r.rtt.update(at(0), RTT, Duration::ZERO);
    send(&mut r, at(0));
    send(&mut r, at(10));
    let base = RTT + TIMER_GRANULARITY + ACK_DELAY;
    let mut sent = at(10);
    for doubling in 0..MAX_PTO_BACKOFF + 3 {
        let (due, why) = timer(&r).unwrap();
        assert_eq!((due, why), (sent + base * (1 << doubling.min(MAX_PTO_BACKOFF)), "probe"));
        assert_eq!(timed_out(&mut r, due), Fates(vec![], vec![0]), "the oldest, which stays in flight");
        assert!(r.probe_due() && r.may_send(at(0)));
        sent = due;
        send(&mut r, sent);
        assert!(!r.probe_due());
    }
    assert_eq!(acked(&mut r, sent + RTT, &[(0, 0)]).0, [0]);
    assert_eq!(timer(&r), Some((sent + r.rtt.pto(ACK_DELAY), "probe")), "an ack ends the backoff");
}

/// wire.md W5.6: a path that comes back is found within a second, unless it is slower than that by itself.
#[test]
fn doubling_ends_at_a_second() {
    for (rtt, longest) in [(100, Duration::from_secs(1)), (3000, Duration::from_millis(3000 + 6000 + 1))] {
        let mut recovery = recovery();
        send(&mut recovery, at(0));
        let mut now = at(rtt * 1000);
        acked(&mut recovery, now, &[(0, 0)]);
        send(&mut recovery, now);
        for _ in 0..10 {
            let (due, _) = timer(&recovery).unwrap();
            assert!(due.since(now) <= longest, "{rtt} ms: {:?}", due.since(now));
            now = due;
            timed_out(&mut recovery, now);
        }
        assert_eq!(timer(&recovery).unwrap().0.since(now), longest);
    }
}

/// wire.md W6.5
#[test]
fn packets_in_flight_are_bounded_by_the_peers_credit() {
    let mut r = with_credit(3);
    (0..3).for_each(|n| {
        assert!(r.may_send(at(0)));
        send(&mut r, at(n));
    });
    assert!(!r.may_send(at(0)));
    acked(&mut r, at(50), &[(1, 1)]);
    assert!(r.may_send(at(0)));
}

#[test]
fn the_window_bounds_bytes_in_flight() {
    let mut r = with_credit(4096);
    let mut sent = 0;
    while r.may_send(at(0)) {
        send(&mut r, at(sent));
        sent += 1;
    }
    assert_eq!(r.bytes_in_flight().div_ceil(1000), r.congestion_window().div_ceil(1000));
    let window = r.congestion_window();
    acked(&mut r, at(100), &[(0, sent - 1)]);
    assert_eq!(r.congestion_window(), window * 2 + (sent * 1000 - window), "slow start: all that was acked");
}

/// wire.md W5.4
#[test]
fn an_ack_of_what_was_not_sent_is_a_violation() {
    let mut r = recovery();
    send(&mut r, at(0));
    let violation = r.on_ack(at(1), &ack(&[(0, 1)]), |_| panic!("nothing was acked"));
    assert_eq!(violation.map_err(|violation| violation.code), Err(Code::AckOfUnsent));
}

/// wire.md W6.9: what asks for no ack may go another way, and overtake; its ack shows nothing to be late.
#[test]
fn only_packets_waited_for_show_losses() {
    let mut r = recovery();
    (0..5).for_each(|n| send(&mut r, at(n)));
    r.on_sent_unacked();
    assert_eq!(acked(&mut r, at(10), &[(5, 5)]), Fates::default());
    assert_eq!((r.counters.lost_packets, timer(&r).map(|(_, why)| why)), (0, Some("probe")));
    assert_eq!(acked(&mut r, at(11), &[(0, 5)]).0, [0, 1, 2, 3, 4]);
}

/// wire.md W6.7: packets of the path that was left say nothing of the one in use, and what was known comes back with it.
#[test]
fn each_path_has_its_own_estimates() {
    let mut r = recovery();
    (0..4).for_each(|n| send(&mut r, at(n)));
    acked(&mut r, at(100), &[(0, 0)]);
    let window = r.congestion_window();
    let first = r.switch_path(None);
    assert_eq!(r.rtt.min(), None);
    let fresh = r.congestion_window();
    send(&mut r, at(200));
    assert_eq!(acked(&mut r, at(300), &[(3, 3)]).0, [3]);
    assert_eq!(r.rtt.min(), None, "no sample of the other path");
    assert_eq!(acked(&mut r, at(350), &[(4, 4)]), Fates(vec![4], vec![1]));
    assert_eq!((r.rtt.min(), r.congestion_window()), (Some(Duration::from_micros(150)), fresh), "nor a loss of it");
    r.switch_path(Some(first));
    assert_eq!((r.rtt.min(), r.congestion_window()), (Some(Duration::from_micros(100)), window));
}

/// wire.md W6.10
#[test]
fn what_is_given_up_is_lost_without_congestion() {
    let mut r = recovery();
    (0..4).for_each(|n| send(&mut r, at(n)));
    let window = r.congestion_window();
    let mut fates = Fates::default();
    r.give_up_in_flight(|fate| fates.take(fate));
    assert_eq!(fates, Fates(vec![], vec![0, 1, 2, 3]));
    assert_eq!((r.bytes_in_flight(), r.has_unacked(), timer(&r)), (0, false, None));
    assert_eq!((r.congestion_window(), r.counters.lost_packets), (window, 4));
    assert_eq!(acked(&mut r, at(50), &[(0, 3)]), Fates::default(), "acks that come after all");
}

/// wire.md W5.5, W5.6: both may be due at once, and neither is left behind.
#[test]
fn a_late_loss_timer_leaves_no_deadline_in_the_past() {
    let mut r = recovery();
    r.rtt.update(at(0), RTT, Duration::ZERO);
    send(&mut r, at(0));
    send(&mut r, at(1));
    send(&mut r, at(2));
    acked(&mut r, at(100), &[(1, 1)]);
    assert_eq!(timer(&r).map(|(_, why)| why), Some("loss"));
    let late = at(1_000_000);
    timed_out(&mut r, late);
    assert!(timer(&r).is_none_or(|(due, _)| due > late), "{:?}", timer(&r));
}

/// A path of so many milliseconds, known from one packet.
fn long(millis: u64, credit: u32) -> (Recovery, Instant) {
    let mut r = with_credit(credit);
    r.set_datagram(1000);
    send(&mut r, at(0));
    let now = at(millis * 1000);
    acked(&mut r, now, &[(0, 0)]);
    (r, now)
}

/// wire.md W5.5: a loss that was none gives the window back, and the path is known to reorder.
#[test]
fn a_loss_that_was_none_is_undone() {
    let (mut r, now) = long(10, 4096);
    (0..8).for_each(|_| send(&mut r, now));
    let window = r.congestion_window();
    let later = now + Duration::from_millis(10);
    assert_eq!(acked(&mut r, later, &[(8, 8)]).1, [1, 2, 3, 4, 5]);
    assert!(r.congestion_window() < window);
    acked(&mut r, later, &[(2, 8)]);
    assert!(r.congestion_window() < window, "one is still lost");
    acked(&mut r, later, &[(1, 8)]);
    assert!(r.congestion_window() >= window);
    assert_eq!((r.counters.lost_packets, r.counters.spurious_losses), (5, 5));
    let first = r.next_number();
    (0..9).for_each(|_| send(&mut r, later));
    assert!(acked(&mut r, later, &[(first + 7, first + 7)]).1.is_empty(), "seven were overtaken before");
    assert_eq!(acked(&mut r, later, &[(first + 8, first + 8)]).1, [first]);
}

/// RFC 9002 §7.6: everything sent for three probe time-outs was lost.
#[test]
fn persistent_congestion_begins_anew() {
    for (acked_between, expected) in [(false, 1), (true, 0)] {
        let (mut r, now) = long(10, 4096);
        let pto = r.rtt.pto(ACK_DELAY);
        let first = r.next_number();
        for n in 0..5 {
            send(&mut r, now + pto * n);
        }
        let heard = now + pto * 5;
        if acked_between {
            acked(&mut r, heard, &[(first + 2, first + 2)]);
        }
        send(&mut r, heard);
        acked(&mut r, heard + Duration::from_millis(10), &[(first + 5, first + 5)]);
        assert_eq!(r.counters.persistent_congestions, expected, "acked between: {acked_between}");
        assert_eq!(r.congestion_window() == 2 * 1000, !acked_between);
    }
}

/// wire.md W5.21
#[test]
fn a_marked_packet_is_congestion() {
    let (mut r, now) = long(10, 4096);
    let window = r.congestion_window();
    (0..4).for_each(|_| send(&mut r, now));
    let mut marked = ack(&[(0, 4)]);
    marked.ecn = Some(EcnCounts { ect0: 4, ect1: 0, ce: 1 });
    r.on_ack(now + Duration::from_millis(10), &marked, |_| {}).unwrap();
    assert_eq!(r.ecn(), Ecn::NotEct, "the first ack had no counts: the path bleaches");
    assert!(r.congestion_window() >= window);

    let mut r = with_credit(4096);
    (0..5).for_each(|_| send(&mut r, at(0)));
    r.on_ack(at(10_000), &marked, |_| {}).unwrap();
    assert_eq!((r.ecn(), r.counters.ecn_ce), (Ecn::Ect0, 1));
    assert!(r.congestion_window() < window);
}

/// Sends whatever may leave at each deadline within a round trip; returns bursts.
fn paced(r: &mut Recovery, mut now: Instant, until: Instant) -> Vec<u64> {
    let mut bursts = Vec::new();
    while now < until {
        let mut burst = 0;
        while r.may_send(now) {
            send(r, now);
            burst += 1;
        }
        bursts.push(burst);
        match timer(r) {
            Some((due, "pacing")) => {
                assert!(due > now, "a deadline that is past stops time");
                timed_out(r, due);
                now = due;
            }
            _ => break,
        }
    }
    bursts
}

/// wire.md W6.5, W6.11: a short path sends what the ring takes and stops; a long one spreads it, and is not bound by the ring.
#[test]
fn short_paths_are_bound_by_the_credit_and_long_ones_paced() {
    let mut r = with_credit(20);
    r.rtt.update(at(0), RTT, Duration::ZERO);
    assert_eq!(paced(&mut r, at(100), at(1_000_000)), [20], "all at once, and no deadline");

    let (mut r, now) = long(50, 20);
    let bursts = paced(&mut r, now, now + Duration::from_millis(50));
    assert!(bursts.iter().all(|burst| *burst <= 10), "at most half of the ring at once: {bursts:?}");
    assert!(bursts.iter().sum::<u64>() > 30, "the window, which is more than the ring: {bursts:?}");
    assert!(r.counters.paced > 0);
}

/// wire.md W6.5: when acks stop, no more than the ring takes is in flight beyond what the path itself holds.
#[test]
fn a_queue_in_the_ring_is_within_the_credit() {
    let (mut r, mut now) = long(50, 128);
    // A receiver as fast as the path, until its ring has a standing queue: twice the round trip.
    for _ in 0..6 {
        let first = r.next_number();
        let end = now + Duration::from_millis(50);
        paced(&mut r, now, end);
        now = end;
        let last = r.next_number() - 1;
        acked(&mut r, now, &[(first, last)]);
    }
    assert!(r.congestion_window() > 1_000_000);
    let first = r.next_number();
    paced(&mut r, now, now + Duration::from_millis(50));
    now += Duration::from_millis(500);
    let last = r.next_number() - 1;
    acked(&mut r, now, &[(first, last)]);
    let spread = r.congestion_window() * r.rtt.min().unwrap().as_micros() as u64 / r.rtt.smoothed.as_micros() as u64;
    paced(&mut r, now, now + Duration::from_secs(60));
    let in_flight = u64::from(r.packets_in_flight);
    assert!(in_flight <= 128 + spread / 1000, "{in_flight} packets, of which the path holds {}", spread / 1200);
    assert!(in_flight * 1000 < r.congestion_window() * 9 / 10, "and that is not the window's doing");
}

/// wire.md W5.3
#[test]
fn acks_are_asked_for_by_the_quarter_of_a_flight() {
    let mut r = with_credit(128);
    assert_eq!(r.acks_to_ask(), None, "eight of 32 packets is what the peer does unasked");
    let mut sent = 0;
    while r.congestion_window() < 300_000 {
        while r.may_send(at(sent)) {
            send(&mut r, at(sent));
        }
        let last = r.next_number() - 1;
        sent += 100;
        // The window, not the credit, is to be the limit.
        r.limited_below = last + 1;
        acked(&mut r, at(sent), &[(0, last)]);
    }
    let wish = |after| Some(AckWish { after, arrivals: false });
    assert_eq!(r.acks_to_ask(), wish(32), "a quarter of the credit");
    assert_eq!(r.acks_to_ask(), None, "no news");
    r.congestion.on_persistent_congestion(at(sent));
    assert_eq!(r.acks_to_ask(), wish(8));
}

/// wire.md W5.3: what was asked for in a packet that was lost is asked for again.
#[test]
fn a_lost_wish_is_repeated() {
    let mut r = with_credit(4096);
    r.asked = Some(AckWish { after: 32, arrivals: false });
    (0..2).for_each(|_| send(&mut r, at(0)));
    let frames = [SentFrame::AckFrequency].into_iter().collect();
    r.on_sent(SentPacket { sent: at(0), bytes: 100, mtu_probe: false, ect: false, frames });
    (0..3).for_each(|_| send(&mut r, at(0)));
    acked(&mut r, at(100), &[(5, 5)]);
    assert_eq!(r.acks_to_ask(), Some(AckWish { after: 8, arrivals: false }));
}

/// wire.md W5.23: who asks when packets arrive.
#[test]
fn times_of_arrival_are_asked_for_where_more_than_a_few_packets_take_a_long_path() {
    for (kind, least_ms, packets, asks) in [
        (ControllerKind::DelayTarget, 10, 8, true),
        (ControllerKind::DelayTarget, 10, 7, false),
        (ControllerKind::DelayTarget, 1, 8, false),
        (ControllerKind::Cubic, 10, 8, false),
    ] {
        let mut r = Recovery::new(Duration::ZERO, 4096, kind);
        r.rtt.update(at(0), Duration::from_millis(least_ms), Duration::ZERO);
        assert_eq!(r.acks_to_ask(), None, "before the first packet");
        (0..packets).for_each(|_| send(&mut r, at(0)));
        assert_eq!(r.acks_to_ask().is_some_and(|wish| wish.arrivals), asks, "{kind:?}, {least_ms} ms, {packets}");
        assert_eq!(r.acks_to_ask(), None, "once");
        acked(&mut r, at(20_000), &[(0, packets - 1)]);
        assert_eq!(r.acks_to_ask(), None, "and for good");
    }
}

/// wire.md W5.23: what congestion control is told is the queue that this end makes, on a path whose way there is empty, full, and
/// empty again, whatever is on the way back.
#[test]
fn queues_on_the_way_back_are_no_congestion() {
    let ms = Duration::from_millis;
    for tells in [true, false] {
        let mut r = Recovery::new(Duration::ZERO, 4096, ControllerKind::DelayTarget);
        let mut now = at(0);
        let mut round = |r: &mut Recovery, there: u64, back: u64| {
            let first = r.next_number();
            while r.bytes_in_flight() < r.congestion_window() {
                send(r, now);
            }
            r.limited_below = r.next_number();
            let arrival = now + ms(there) + Duration::from_secs(77);
            now += ms(there + back);
            let ack = ack_arrived(&[(first, r.next_number() - 1)], tells.then(|| ArrivalTime::at(arrival)));
            r.on_ack(now, &ack, |_| {}).unwrap();
            now += ms(1);
        };
        (0..3).for_each(|_| round(&mut r, 10, 10));
        assert!(r.congestion.in_slow_start());
        (0..3).for_each(|_| round(&mut r, 10, 30));
        assert_eq!(r.congestion.in_slow_start(), tells, "a queue on the way back");
        assert_eq!(r.counters.queued_back > 0, tells);
        (0..3).for_each(|_| round(&mut r, 30, 10));
        assert!(!r.congestion.in_slow_start(), "a queue on the way there");
    }
}

/// wire.md W5.6: where the age of a loss is more than the probe time-out, both may be due; a deadline that is left would be met
/// by nothing.
#[test]
fn a_loss_by_age_and_a_probe_may_be_due_at_once() {
    let (mut r, now) = long(10, 4096);
    for n in 0..40 {
        r.rtt.update(now, Duration::from_millis(10), Duration::ZERO);
        let number = r.next_number();
        if n == 39 {
            // It was overtaken by far.
            let lost = Lost { number: 0, sent: now, counted: false };
            r.reordering.on_lost(now, lost);
            let late = now + Duration::from_millis(20);
            r.reordering.take_acked(late, (0, 0), number, Duration::from_millis(10), |_| {});
        }
    }
    let first = r.next_number();
    (0..3).for_each(|_| send(&mut r, now));
    acked(&mut r, now + Duration::from_millis(10), &[(first + 1, first + 1)]);
    let (due, why) = timer(&r).unwrap();
    assert_eq!((due, why), (now + Duration::from_millis(20), "loss"));
    assert_eq!(timed_out(&mut r, due).1, [first, first + 2], "and what the probe carries");
    assert!(r.probe_due() && timer(&r).unwrap().0 > due);
}

/// wire.md W6.10: only acks end the time without an answer, and another path begins it anew.
#[test]
fn the_time_without_an_answer_begins_with_the_first_packet_after_an_ack() {
    let mut r = recovery();
    assert_eq!(r.unanswered_for(at(50)), Duration::ZERO);
    send(&mut r, at(100));
    send(&mut r, at(200));
    timed_out(&mut r, at(1_000_000));
    assert_eq!(r.unanswered_for(at(1_000_000)), Duration::from_micros(999_900));
    acked(&mut r, at(1_000_100), &[(0, 0)]);
    assert_eq!(r.unanswered_for(at(2_000_000)), Duration::ZERO);
    send(&mut r, at(2_000_000));
    r.switch_path(None);
    assert_eq!(r.unanswered_for(at(3_000_000)), Duration::ZERO);
}
