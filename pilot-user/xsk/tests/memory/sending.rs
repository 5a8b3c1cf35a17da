//! TX and completion.

use pilot_xsk::testing::over_memory;
use pilot_xsk::{Flushed, KickError, Options};

use super::{END, open, panics, send, small};

#[test]
fn an_exhausted_sending_share_refuses_until_completions_come() {
    let (mut xsk, kernel) = open();
    for n in 0..4 {
        assert!(send(&mut xsk, &[n]));
    }
    assert!(!send(&mut xsk, b"x"));
    assert_eq!(xsk.flush().unwrap(), Flushed::All);
    let taken = kernel.take();
    assert!(!send(&mut xsk, b"x"), "sent, but not completed: its bytes may still be read");
    assert!(kernel.complete(taken[2].address));
    assert!(send(&mut xsk, b"x"), "room is found without a call of reap");
    for n in [3, 0, 1] {
        assert!(kernel.complete(taken[n].address), "in any order");
    }
    assert_eq!(xsk.reap(), 3);
    assert_eq!((xsk.chunks().sending, xsk.counters().bad_addresses), (1, 0));
}

#[test]
fn a_chunk_not_sent_goes_home() {
    let (mut xsk, kernel) = open();
    for _ in 0..100 {
        drop(xsk.tx_chunk().unwrap());
    }
    for (offset, len) in [(0, 0), (2048, 0), (0, 2049), (2047, 2), (4096, 1), (usize::MAX, 2), (1, usize::MAX)] {
        xsk.tx_chunk().unwrap().send(offset, len);
    }
    assert_eq!((xsk.counters().refused, xsk.counters().sent, xsk.outstanding()), (7, 0, 0));
    xsk.tx_chunk().unwrap().send(2047, 1);
    let _ = xsk.flush().unwrap();
    assert_eq!(kernel.transmit_all(), [[0]]);
}

#[test]
fn a_frame_is_sent_from_its_offset_and_completes_by_it() {
    let (mut xsk, kernel) = open();
    let mut chunk = xsk.tx_chunk().unwrap();
    chunk.bytes()[40..45].copy_from_slice(b"hello");
    chunk.send(40, 5);
    let _ = xsk.flush().unwrap();
    let taken = kernel.take();
    assert_eq!((taken[0].address % 2048, taken[0].bytes.as_slice()), (40, &b"hello"[..]));
    assert!(kernel.complete(taken[0].address - 40), "the chunk's beginning was not what was given");
    assert_eq!((xsk.reap(), xsk.counters().bad_addresses, xsk.outstanding()), (1, 1, 1));
    assert!(kernel.complete(taken[0].address));
    assert_eq!((xsk.reap(), xsk.outstanding()), (1, 0));
}

/// Written as one piece, sent in parts, and its chunks come home together when all of them are done with.
#[test]
fn a_frame_of_several_chunks_is_sent_in_parts() {
    let (mut xsk, kernel) = over_memory(&Options { chunks_per_frame: 2, ..small() }).unwrap();
    for round in 0..3 {
        let frame = vec![round; 3000];
        assert!(send(&mut xsk, &frame) && send(&mut xsk, b"short"), "two frames of at most two chunks");
        assert!(!send(&mut xsk, b"x"), "the TX ring has four entries");
        let _ = xsk.flush().unwrap();
        let taken = kernel.take();
        assert_eq!(
            taken.iter().map(|part| (part.bytes.len(), part.more)).collect::<Vec<_>>(),
            [(2048, true), (952, false), (5, false)]
        );
        assert_eq!((xsk.sending(), xsk.chunks().sending), (2, 4));
        assert!(kernel.complete(taken[1].address) && kernel.complete(taken[2].address));
        assert_eq!((xsk.reap(), xsk.sending()), (2, 1), "half of the long one is still read");
        assert!(kernel.complete(taken[0].address));
        assert_eq!((xsk.reap(), xsk.outstanding()), (1, 0));
    }
    assert_eq!(xsk.counters().bad_addresses, 0);
}

#[test]
fn a_completion_is_believed_once() {
    let (mut xsk, kernel) = open();
    xsk.refill().unwrap();
    assert!(send(&mut xsk, b"x"));
    let _ = xsk.flush().unwrap();
    let address = kernel.take()[0].address;
    for bad in [END, u64::MAX, address + 1, address ^ 2048, address] {
        assert!(kernel.complete(bad));
        assert_eq!(xsk.reap(), 1);
    }
    assert_eq!((xsk.counters().bad_addresses, xsk.chunks().sending), (4, 0));
    assert!(kernel.complete(address), "again");
    assert_eq!(xsk.reap(), 1);
    assert_eq!(xsk.counters().bad_addresses, 5);
    let home = xsk.chunks().home;
    assert_eq!(home, 4, "once home, not twice");
}

#[test]
fn tx_is_kicked_only_when_the_kernel_asks() {
    let (mut xsk, kernel) = open();
    kernel.set_need_wakeup(false, false);
    assert!(send(&mut xsk, b"x"));
    assert_eq!(xsk.flush().unwrap(), Flushed::All);
    assert_eq!(xsk.counters().tx_kicks, 0);
    // The driver fell asleep with the frame still queued: the next pass wakes it, though nothing new was sent.
    kernel.set_need_wakeup(true, false);
    assert_eq!(xsk.flush().unwrap(), Flushed::All);
    assert_eq!(xsk.counters().tx_kicks, 1);
    assert_eq!(kernel.transmit_all(), [b"x"]);
    assert_eq!(xsk.flush().unwrap(), Flushed::All);
    assert_eq!(xsk.counters().tx_kicks, 1, "nothing is queued");
}

/// Copy mode takes 32 descriptors per system call and then says EAGAIN.
#[test]
fn flush_kicks_until_the_ring_is_drained() {
    let options = Options { tx_ring: 128, completion_ring: 128, ..small() };
    let (mut xsk, kernel) = over_memory(&options).unwrap();
    kernel.send_on_kick(32);
    for n in 0..128 {
        assert!(send(&mut xsk, &[n]));
    }
    assert_eq!(xsk.flush().unwrap(), Flushed::All);
    assert_eq!(xsk.counters().tx_kicks, 4);
    assert_eq!(kernel.transmit_all(), (0..128).map(|n| vec![n]).collect::<Vec<_>>());
}

#[test]
fn flush_gives_up_on_a_kernel_that_makes_no_progress() {
    let options = Options { tx_ring: 128, completion_ring: 128, ..small() };
    let (mut xsk, kernel) = over_memory(&options).unwrap();
    kernel.send_on_kick(0);
    for n in 0..100 {
        assert!(send(&mut xsk, &[n]));
    }
    assert_eq!(xsk.flush().unwrap(), Flushed::Queued(100));
    assert_eq!(xsk.counters().tx_kicks, 5, "as many as would have sent all, and one");
    kernel.send_on_kick(32);
    assert_eq!(xsk.flush().unwrap(), Flushed::All);
    assert_eq!(kernel.transmit_all().len(), 100);
}

#[test]
fn each_refusal_of_a_kick_has_its_outcome() {
    let (mut xsk, kernel) = open();
    kernel.send_on_kick(4);
    let mut flush_after = |errno| {
        kernel.refuse_kick(errno);
        assert!(send(&mut xsk, b"x"));
        let outcome = xsk.flush();
        // What stayed queued leaves with the next flush.
        assert_eq!(xsk.flush().unwrap(), Flushed::All);
        kernel.transmit_all();
        xsk.reap();
        (outcome, xsk.counters().lost_local)
    };
    assert!(matches!(flush_after(libc::EBUSY), (Ok(Flushed::All), 1)), "one frame lost, the others kicked again");
    assert!(matches!(flush_after(libc::ENOBUFS), (Ok(Flushed::Queued(1)), 1)));
    assert!(matches!(flush_after(libc::ENETDOWN), (Err(KickError::Down), 1)));
    assert!(matches!(flush_after(libc::ENXIO), (Err(KickError::Gone), 1)));
    assert!(matches!(flush_after(libc::EBADF), (Err(KickError::Os(_)), 1)));
}

#[test]
fn a_kernel_that_only_says_busy_ends_a_flush() {
    let (mut xsk, kernel) = open();
    for _ in 0..1000 {
        kernel.refuse_kick(libc::EBUSY);
    }
    assert!(send(&mut xsk, b"x"));
    assert_eq!(xsk.flush().unwrap(), Flushed::Queued(1));
    assert_eq!(xsk.counters().tx_kicks, 33);
}

#[test]
fn forgotten_chunks_are_lost_ones() {
    let (mut xsk, _kernel) = open();
    xsk.refill().unwrap();
    assert!(send(&mut xsk, b"x"));
    std::mem::forget(xsk.tx_chunk().unwrap());
    assert_eq!(xsk.outstanding(), 8 + 1 + 1);
    assert_eq!(panics(|| drop(xsk)), "1 chunks are lost");
}

/// The socket would write the next frame into a chunk whose last one is still to be read.
#[test]
fn a_completion_of_what_was_not_flushed_is_not_played() {
    let (mut xsk, kernel) = open();
    assert!(send(&mut xsk, b"x"));
    let _ = xsk.flush().unwrap();
    let address = kernel.take()[0].address;
    assert!(kernel.complete(address));
    assert_eq!(xsk.reap(), 1);
    assert!(send(&mut xsk, b"y"), "the same chunk: last in, first out");
    assert!(kernel.complete(address));
    assert!(panics(|| xsk.reap()).contains("not flushed"));
}
