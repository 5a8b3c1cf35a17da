//! Fill and RX.

use pilot_xsk::testing::over_memory;
use pilot_xsk::{KickError, Options, RECV_BATCH};

use super::{END, open, panics, receive, send, small};

#[test]
fn refill_keeps_to_the_receiving_share() {
    let (mut xsk, kernel) = open();
    xsk.refill().unwrap();
    xsk.refill().unwrap();
    let chunks = xsk.chunks();
    assert_eq!((chunks.total, chunks.receiving, chunks.home, chunks.outstanding()), (12, 8, 4, 8));
    for n in 0..8 {
        assert!(kernel.deliver(&[n]));
    }
    assert!(!kernel.deliver(b"x"));
    // Unread frames count as receiving: sending still has its share.
    xsk.refill().unwrap();
    assert_eq!(xsk.chunks().receiving, 8);
    for _ in 0..4 {
        assert!(send(&mut xsk, b"y"));
    }
    assert_eq!(receive(&mut xsk), (0..8).map(|n| vec![n]).collect::<Vec<_>>());
    assert_eq!(xsk.chunks().receiving, 8, "received chunks went back to the fill ring at once");
}

/// The kernel, which here takes all that it is given, is given more as it uses them up between two passes.
#[test]
fn more_is_posted_where_more_arrives() {
    let options = Options { rx_ring: 2048, fill_ring: 2048, ..small() };
    let (mut xsk, kernel) = over_memory(&options).unwrap();
    let mut round = |arrives: bool| {
        assert!(!arrives || kernel.deliver(b"x"));
        xsk.refill().unwrap();
        xsk.recv(RECV_BATCH, |_| ());
        xsk.chunks().receiving
    };
    let posted = [false, false, true, false, true, true].map(&mut round);
    assert_eq!(posted, [512, 512, 1024, 1024, 2048, 2048], "no more than the share");
}

#[test]
fn a_full_rx_ring_drops_and_goes_on() {
    let options = Options { rx_ring: 4, ..small() };
    let (mut xsk, kernel) = over_memory(&options).unwrap();
    xsk.refill().unwrap();
    let fits: Vec<bool> = (0..6).map(|n| kernel.deliver(&[n])).collect();
    assert_eq!(fits, [true, true, true, true, false, false]);
    assert_eq!(receive(&mut xsk).len(), 4);
    assert!(kernel.deliver(b"later"));
    assert_eq!(receive(&mut xsk), [b"later"]);
}

#[test]
fn recv_takes_no_more_than_asked_and_no_more_than_a_batch() {
    let options = Options { rx_ring: 128, fill_ring: 128, ..small() };
    let (mut xsk, kernel) = over_memory(&options).unwrap();
    xsk.refill().unwrap();
    for n in 0..100 {
        assert!(kernel.deliver(&[n]));
    }
    let mut next = 0;
    for (limit, taken) in [(0, 0), (1, 1), (5, 5), (1000, RECV_BATCH), (1000, 30)] {
        let count = xsk.recv(limit, |frame| {
            assert_eq!(frame, [next]);
            next += 1;
        });
        assert_eq!(count, taken);
    }
    assert_eq!(xsk.counters().received, 100);
}

#[test]
fn the_longest_frame_fits_and_a_longer_one_does_not() {
    let (mut xsk, kernel) = over_memory(&Options { headroom: 64, ..small() }).unwrap();
    assert_eq!(xsk.max_received(), 2048 - 256 - 64);
    xsk.refill().unwrap();
    assert!(!kernel.deliver(&vec![7; xsk.max_received() + 1]));
    assert!(kernel.deliver(&vec![7; xsk.max_received()]));
    assert_eq!(receive(&mut xsk), [vec![7; 2048 - 256 - 64]]);
}

#[test]
fn received_addresses_that_were_not_given_become_no_chunk() {
    let (mut xsk, kernel) = open();
    // One chunk at home, of which nobody may write: taken for sending and dropped, so that its address is known.
    let _ = send(&mut xsk, b"x");
    let _ = xsk.flush().unwrap();
    let sending = kernel.take()[0].address;
    for (address, len) in [
        (END, 1),        // behind the umem
        (END + 4096, 0), // far behind
        (u64::MAX, 1),   // a multiple of nothing
        (1 << 63, 1),
        (sending, 1), // with the kernel, but to send
        (256, 100),   // at home: nothing was given to receive into
    ] {
        assert!(kernel.inject_received(address, len));
        assert_eq!(receive(&mut xsk).len(), 0, "{address:#x}");
    }
    assert_eq!(xsk.counters().bad_addresses, 6);
    assert_eq!(xsk.chunks().receiving, 0);

    xsk.refill().unwrap();
    assert!(kernel.deliver(b"good"));
    assert_eq!(receive(&mut xsk), [b"good"], "the ring goes on");
    assert_eq!(xsk.counters().received, 1);
}

#[test]
fn a_received_frame_that_leaves_its_chunk_becomes_none() {
    let (mut xsk, kernel) = open();
    xsk.refill().unwrap();
    let given = (0..12).map(|n| n * 2048).find(|&base| {
        // Any chunk of the receiving share will do: a frame to its very end is fine, and says which were given.
        assert!(kernel.inject_received(base + 2000, 48));
        !receive(&mut xsk).is_empty()
    });
    let base = given.unwrap();
    let before = xsk.counters().bad_addresses;
    for (address, len) in [(base + 2001, 48), (base, 2049), (base + 1, u32::MAX)] {
        assert!(kernel.inject_received(address, len));
        assert_eq!(receive(&mut xsk).len(), 0, "{address:#x} {len}");
    }
    assert_eq!(xsk.counters().bad_addresses, before + 3);
    // The kernel ends up without a chunk that it named wrongly, and it stays with the kernel: never home, never reused.
    assert_eq!(xsk.chunks().receiving, 8);
}

/// The kernel would write the next frame into a chunk that is lent.
#[test]
fn a_frame_made_up_where_another_may_arrive_is_not_played() {
    let (mut xsk, kernel) = open();
    xsk.refill().unwrap();
    assert!(kernel.deliver(b"x"));
    let lie = || {
        // The first chunk is the socket's while its frame is lent, and goes back to the kernel before the lie is read.
        xsk.recv(1, |_| assert!(kernel.inject_received(256, 1)));
        xsk.recv(1, |_| ());
    };
    assert!(panics(lie).contains("where another may arrive"));
}

#[test]
fn a_frame_in_several_chunks_is_dropped_whole() {
    let (mut xsk, kernel) = open();
    xsk.refill().unwrap();
    assert!(kernel.deliver(b"before"));
    assert!(kernel.deliver_part(b"one"));
    assert!(kernel.deliver_part(b"two"));
    assert_eq!(receive(&mut xsk), [b"before"]);
    // The last part has no mark: it is known only by what came before it, in an earlier call.
    assert!(kernel.deliver(b"three"));
    assert!(kernel.deliver(b"after"));
    assert_eq!(receive(&mut xsk), [b"after"]);
    assert_eq!((xsk.counters().received, xsk.counters().multi_buffer), (2, 1));
    assert_eq!(xsk.chunks().receiving, 8, "its chunks went back");
}

#[test]
fn a_frame_in_several_chunks_is_put_together() {
    let options = Options { chunks_per_frame: 3, ..small() };
    let (mut xsk, kernel) = over_memory(&options).unwrap();
    assert_eq!(xsk.max_received(), 3 * 1792);
    xsk.refill().unwrap();
    let frame: Vec<u8> = (0..3 * 1792).map(|n| (n % 251) as u8).collect();
    assert!(kernel.deliver(b"before"));
    frame[..3584].chunks(1792).for_each(|part| assert!(kernel.deliver_part(part)));
    assert_eq!(receive(&mut xsk), [b"before"], "the rest of it is still to come");
    assert!(kernel.deliver(&frame[3584..]));
    assert!(kernel.deliver(b"after"));
    assert_eq!(receive(&mut xsk), [&frame[..], b"after"]);
    assert_eq!((xsk.counters().received, xsk.counters().in_parts, xsk.counters().multi_buffer), (3, 1, 0));
    assert_eq!(xsk.chunks().receiving, 8, "its chunks went back");
}

/// Without one of its parts, or with more bytes than there is room for, a frame is none; the next one is.
#[test]
fn a_frame_whose_parts_do_not_fit_is_dropped_whole() {
    let options = Options { chunks_per_frame: 2, ..small() };
    let (mut xsk, kernel) = over_memory(&options).unwrap();
    xsk.refill().unwrap();
    for spoilt in [true, false, true] {
        let parts = if spoilt { 3 } else { 1 };
        (0..parts).for_each(|_| assert!(kernel.deliver_part(&[7; 1792])));
        assert!(kernel.deliver(b"end"));
        let frames = receive(&mut xsk);
        assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), if spoilt { vec![] } else { vec![1795] });
    }
    assert!(kernel.deliver_part(b"one"));
    assert!(kernel.inject_received(END + 4096, 9), "its last part is nowhere");
    assert!(kernel.deliver(b"whole"));
    assert_eq!(receive(&mut xsk), [b"whole"]);
    assert_eq!((xsk.counters().multi_buffer, xsk.counters().bad_addresses), (3, 1));
}

#[test]
fn fill_is_kicked_only_when_the_kernel_asks() {
    let (mut xsk, kernel) = open();
    xsk.refill().unwrap();
    assert_eq!(xsk.counters().fill_kicks, 0);
    // The receiver ran dry and sleeps, though entries are there.
    kernel.set_need_wakeup(true, true);
    xsk.refill().unwrap();
    assert_eq!(xsk.counters().fill_kicks, 1);
    kernel.refuse_kick(libc::EAGAIN);
    xsk.refill().unwrap();
    kernel.refuse_kick(libc::ENXIO);
    assert!(matches!(xsk.refill(), Err(KickError::Gone)));
    kernel.set_need_wakeup(true, false);
    xsk.refill().unwrap();
    assert_eq!(xsk.counters().fill_kicks, 3);
}

#[test]
fn a_sink_that_panics_loses_no_chunk() {
    let (mut xsk, kernel) = open();
    xsk.refill().unwrap();
    for n in 0..4 {
        assert!(kernel.deliver(&[n]));
    }
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        xsk.recv(4, |_| std::panic::resume_unwind(Box::new(())))
    }));
    assert!(panics.is_err());
    assert_eq!(receive(&mut xsk), [[1], [2], [3]], "and no frame twice");
}
