use super::*;
use crate::codec::{Reader, Writer};
use crate::frame::{self, Frame};
use crate::limits::TIMER_GRANULARITY;

const ACK_DELAY: Duration = Duration::from_millis(1);
const RTT: Duration = Duration::from_micros(100);

fn recovery() -> Recovery {
    Recovery::new(ACK_DELAY, 128)
}

fn at(micros: u64) -> Instant {
    Instant::from_nanos(micros * 1000)
}

/// Sends a packet that carries message `n`, where `n` is also its number.
fn send(recovery: &mut Recovery, now: Instant) {
    let connection = crate::connection::Key { slot: 0, generation: 0 };
    let number = recovery.next_number();
    let frames = [SentFrame::Message { connection, number }].into_iter().collect();
    recovery.on_sent(SentPacket { sent: now, bytes: 1000, mtu_probe: false, frames });
}

fn ack(ranges: &[(u64, u64)]) -> Ack {
    let mut buffer = [0; 600];
    let mut writer = Writer::new(&mut buffer);
    frame::write_ack(&mut writer, Duration::ZERO, ranges.iter().copied()).unwrap();
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
            Fate::Acked(SentFrame::Message { number, .. }) => self.0.push(number),
            Fate::Lost(SentFrame::Message { number, .. }) => self.1.push(number),
            _ => {}
        }
    }
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
    let (due, why) = r.deadline().unwrap();
    assert_eq!(
        (due, why),
        (at(1) + TIMER_GRANULARITY, "loss"),
        "by age: 9/8 of the round trip, at least the granularity"
    );
    assert_eq!(timed_out(&mut r, at(500)), Fates::default());
    assert_eq!(timed_out(&mut r, due), Fates(vec![], vec![1]));
    assert_eq!(acked(&mut r, due, &[(0, 4)]), Fates(vec![4], vec![]), "what was given up is not acked any more");
    assert!(!r.has_unacked());
    assert_eq!((r.bytes_in_flight(), r.lost_packets), (0, 2));
}

/// wire.md W5.6
#[test]
fn the_probe_timeout_doubles_and_sends_the_oldest_again() {
    let mut r = recovery();
    r.rtt.update(RTT, Duration::ZERO);
    send(&mut r, at(0));
    send(&mut r, at(10));
    let base = RTT + TIMER_GRANULARITY + ACK_DELAY;
    let mut sent = at(10);
    for doubling in 0..MAX_PTO_BACKOFF + 3 {
        let (due, why) = r.deadline().unwrap();
        assert_eq!((due, why), (sent + base * (1 << doubling.min(MAX_PTO_BACKOFF)), "probe"));
        assert_eq!(timed_out(&mut r, due), Fates(vec![], vec![0]), "the oldest, which stays in flight");
        assert!(r.probe_due() && r.may_send());
        sent = due;
        send(&mut r, sent);
        assert!(!r.probe_due());
    }
    assert_eq!(acked(&mut r, sent + RTT, &[(0, 0)]).0, [0]);
    assert_eq!(r.deadline(), Some((sent + r.rtt.pto(ACK_DELAY), "probe")), "an ack ends the backoff");
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
            let (due, _) = recovery.deadline().unwrap();
            assert!(due.since(now) <= longest, "{rtt} ms: {:?}", due.since(now));
            now = due;
            timed_out(&mut recovery, now);
        }
        assert_eq!(recovery.deadline().unwrap().0.since(now), longest);
    }
}

/// wire.md W6.5
#[test]
fn packets_in_flight_are_bounded_by_the_peers_credit() {
    let mut r = Recovery::new(ACK_DELAY, 3);
    (0..3).for_each(|n| {
        assert!(r.may_send());
        send(&mut r, at(n));
    });
    assert!(!r.may_send());
    acked(&mut r, at(50), &[(1, 1)]);
    assert!(r.may_send());
}

#[test]
fn the_window_bounds_bytes_in_flight() {
    let mut r = Recovery::new(ACK_DELAY, 4096);
    let mut sent = 0;
    while r.may_send() {
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
    assert_eq!((r.lost_packets, r.deadline().map(|(_, why)| why)), (0, Some("probe")));
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
    assert_eq!(r.rtt.min, None);
    let fresh = r.congestion_window();
    send(&mut r, at(200));
    assert_eq!(acked(&mut r, at(300), &[(3, 3)]).0, [3]);
    assert_eq!(r.rtt.min, None, "no sample of the other path");
    assert_eq!(acked(&mut r, at(350), &[(4, 4)]), Fates(vec![4], vec![1]));
    assert_eq!((r.rtt.min, r.congestion_window()), (Some(Duration::from_micros(150)), fresh), "nor a loss of it");
    r.switch_path(Some(first));
    assert_eq!((r.rtt.min, r.congestion_window()), (Some(Duration::from_micros(100)), window));
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
    assert_eq!((r.bytes_in_flight(), r.has_unacked(), r.deadline()), (0, false, None));
    assert_eq!((r.congestion_window(), r.lost_packets), (window, 4));
    assert_eq!(acked(&mut r, at(50), &[(0, 3)]), Fates::default(), "acks that come after all");
}

/// wire.md W5.5, W5.6: both may be due at once, and neither is left behind.
#[test]
fn a_late_loss_timer_leaves_no_deadline_in_the_past() {
    let mut r = recovery();
    r.rtt.update(RTT, Duration::ZERO);
    send(&mut r, at(0));
    send(&mut r, at(1));
    send(&mut r, at(2));
    acked(&mut r, at(100), &[(1, 1)]);
    assert_eq!(r.deadline().map(|(_, why)| why), Some("loss"));
    let late = at(1_000_000);
    timed_out(&mut r, late);
    assert!(r.deadline().is_none_or(|(due, _)| due > late), "{:?}", r.deadline());
}
