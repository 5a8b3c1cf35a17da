//! Windows of a tunnel's connections together, and whose turn it is to send.

use super::table::Table;
use super::*;
use crate::event::PeerId;
use crate::limits::TUNNEL_CREDIT_BYTES;
use crate::time::Instant;
use std::time::Duration;

const LIMITS: PeerLimits = PeerLimits { connection_credit: 1 << 40, stream_credit: 1 << 40, streams: 100 };

fn table() -> Table {
    let mut table = Table::new(PeerId(0));
    table.on_tunnel_up(true, LIMITS, &mut VecDeque::new());
    table
}

fn opened(table: &mut Table) -> Key {
    let key = table.open(7).unwrap().key;
    table.get_mut(key).unwrap().state = State::Open;
    key
}

/// Messages arrive and are taken as fast as credit allows, for a while. The window after.
fn take_fast(table: &mut Table, key: Key) -> u64 {
    let pace = Pace { now: Instant::from_nanos(1), rtt: Some(Duration::from_secs(1)) };
    let mut number = table.get(key).unwrap().messages_taken() as u16;
    for _ in 0..200_000 {
        let connection = table.get_mut(key).unwrap();
        connection.on_message(number, &[0; 1000], &mut VecDeque::new()).unwrap();
        number = number.wrapping_add(1);
        table.receive_message(key, &mut Vec::new(), pace).unwrap();
    }
    table.get(key).unwrap().receive_credit.window()
}

/// What a peer can make a tunnel hold is bounded, however many of its connections were read fast; one that is over makes room for
/// others.
#[test]
fn windows_grow_out_of_what_the_tunnel_has_to_spare() {
    let mut table = table();
    let keys: Vec<Key> = (0..5).map(|_| opened(&mut table)).collect();
    let windows: Vec<u64> = keys.iter().map(|key| take_fast(&mut table, *key)).collect();
    assert_eq!(windows[..2], [MAX_CONNECTION_CREDIT_BYTES; 2]);
    let grown: u64 = windows.iter().map(|window| window - CONNECTION_CREDIT_BYTES).sum();
    assert_eq!(grown, TUNNEL_CREDIT_BYTES, "{windows:?}");
    assert_eq!(windows[4], CONNECTION_CREDIT_BYTES);
    table.close(keys[0], 0, "");
    table.on_acked(&SentFrame::End(keys[0]), &mut VecDeque::new());
    assert!(table.get(keys[0]).is_none());
    let key = opened(&mut table);
    assert_eq!(take_fast(&mut table, key), windows[0]);
}
