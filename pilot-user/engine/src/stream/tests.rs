//! All transitions of both halves of a stream, as a table that is kept (`transitions.txt`). The states and the arrows are those
//! of RFC 9000 §3.1 and §3.2; where two events lead to the same state, nothing happened.

use std::fmt::Write as _;

use super::recv::{RecvState, RecvStream};
use super::send::{SendState, SendStream};
use crate::flow::Pace;

const PACE: Pace = Pace { now: crate::Instant::ORIGIN, rtt: None };

type Step<S> = (&'static str, fn(&mut S) -> bool);

/// Something is done to the half; `false`: it was refused.
const SENDING: [Step<SendStream>; 11] = [
    ("write", |s| s.write(b"more", 100).is_ok()),
    ("finish", |s| s.finish().is_ok()),
    ("reset", |s| s.reset(7)),
    ("send all", |s| s.piece(100, 100).is_some()),
    ("all acked", |s| {
        let sent = matches!(s.state(), SendState::Send | SendState::DataSent);
        if sent {
            s.on_acked(0, 4, s.state() == SendState::DataSent);
        }
        sent
    }),
    ("all lost", |s| {
        s.on_lost(0, 4, s.state() == SendState::DataSent);
        s.on_reset_lost();
        s.state() != SendState::Ready
    }),
    ("STOP_STREAM", |s| s.on_stop(8)),
    ("CONSUMED of all", |s| s.on_consumed(4).is_ok()),
    ("CONSUMED beyond", |s| s.on_consumed(5).is_ok()),
    ("send reset", |s| {
        let due = s.reset_due().is_some();
        s.on_reset_sent();
        due
    }),
    ("reset acked", |s| {
        let sent = s.state() == SendState::ResetSent;
        s.on_reset_acked();
        sent
    }),
];

const RECEIVING: [Step<RecvStream>; 9] = [
    ("first half", |s| s.on_piece(0, b"fi", false).is_ok()),
    ("second half, FIN", |s| s.on_piece(2, b"ve", true).is_ok()),
    ("beyond", |s| s.on_piece(4, b"!", false).is_ok()),
    ("RESET_STREAM at the end", |s| s.on_reset(7, 4).is_ok()),
    ("RESET_STREAM elsewhere", |s| s.on_reset(7, 1).is_ok()),
    ("read", |s| matches!(s.read(&mut [0; 100], PACE), Ok((super::recv::Read::Bytes(_), _)))),
    ("read the end", |s| matches!(s.read(&mut [0; 100], PACE), Ok((super::recv::Read::End, _)))),
    ("read the reset", |s| s.read(&mut [0; 100], PACE).is_err()),
    ("stop", |s| s.stop(9).is_some()),
];

fn sending(state: SendState) -> SendStream {
    let mut s = SendStream::new(100);
    let steps: &[usize] = match state {
        SendState::Ready => &[],
        SendState::Send => &[0, 3],
        SendState::DataSent => &[0, 1, 3],
        SendState::DataRecvd => &[0, 1, 3, 4],
        SendState::ResetSent => &[0, 3, 2],
        SendState::ResetRecvd => &[0, 3, 2, 9, 10],
    };
    steps.iter().for_each(|step| assert!(SENDING[*step].1(&mut s)));
    assert_eq!(s.state(), state);
    s
}

fn receiving(state: RecvState) -> RecvStream {
    let mut s = RecvStream::new(100);
    let steps: &[usize] = match state {
        RecvState::Recv => &[],
        RecvState::SizeKnown => &[1],
        RecvState::DataRecvd => &[0, 1],
        RecvState::DataRead => &[0, 1, 5, 6],
        RecvState::ResetRecvd => &[3],
        RecvState::ResetRead => &[3, 7],
    };
    steps.iter().for_each(|step| assert!(RECEIVING[*step].1(&mut s)));
    assert_eq!(s.state(), state);
    s
}

/// Rows of what each step leads to from each state; `of`: the state, and whether the half is over.
fn rows<S, T: Copy + PartialEq + std::fmt::Debug>(
    table: &mut String,
    title: &str,
    states: &[T],
    steps: &[Step<S>],
    make: impl Fn(T) -> S,
    of: impl Fn(&S) -> (T, bool),
) {
    writeln!(table, "{title}").unwrap();
    for state in states {
        let (_, is_over) = of(&make(*state));
        writeln!(table, "\n{state:?}{}", if is_over { " (over)" } else { "" }).unwrap();
        for (name, step) in steps {
            let mut half = make(*state);
            let done = step(&mut half);
            let (after, is_over) = of(&half);
            let mut what = match (done, after == *state) {
                (false, _) => "refused".to_owned(),
                (true, true) => "-".to_owned(),
                (true, false) => format!("{after:?}"),
            };
            if is_over && !of(&make(*state)).1 {
                what.push_str(" (over)");
            }
            writeln!(table, "    {name:24} {what}").unwrap();
        }
    }
}

#[test]
fn transitions_are_those_of_the_table() {
    use RecvState as R;
    use SendState as S;
    let mut table = String::new();
    let states = [S::Ready, S::Send, S::DataSent, S::DataRecvd, S::ResetSent, S::ResetRecvd];
    let of = |s: &SendStream| (s.state(), s.is_over());
    rows(&mut table, "Sending half (RFC 9000 §3.1)", &states, &SENDING, sending, of);
    let states = [R::Recv, R::SizeKnown, R::DataRecvd, R::DataRead, R::ResetRecvd, R::ResetRead];
    let of = |s: &RecvStream| (s.state(), s.is_over());
    rows(&mut table, "\nReceiving half (RFC 9000 §3.2)", &states, &RECEIVING, receiving, of);
    let kept = include_str!("transitions.txt");
    assert!(table == kept, "the table is now:\n{table}");
}
