//! The socket over rings in memory, with the kernel's end in the test's hands. Every test ends with all chunks accounted
//! for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a helper of a test fails the test")]

use pilot_xsk::testing::{Kernel, over_memory, over_memory_from};
use pilot_xsk::{Flushed, KickError, OpenError, Options, RECV_BATCH, Xsk};

/// The first address behind the umem of [`small`].
const END: u64 = 12 * 2048;

/// Eight chunks to receive into, four to send from.
fn small() -> Options {
    Options { rx_ring: 8, tx_ring: 4, fill_ring: 8, completion_ring: 4, ..Options::default() }
}

fn open() -> (Xsk, Kernel) {
    over_memory(&small()).unwrap()
}

/// Queues a frame; `false` if there is no chunk for it.
fn send(xsk: &mut Xsk, bytes: &[u8]) -> bool {
    let Some(mut chunk) = xsk.tx_chunk() else { return false };
    chunk.bytes()[..bytes.len()].copy_from_slice(bytes);
    chunk.send(0, bytes.len());
    true
}

fn receive(xsk: &mut Xsk) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    xsk.recv(RECV_BATCH, |frame| frames.push(frame.to_vec()));
    frames
}

fn settle(mut xsk: Xsk, kernel: Kernel) {
    assert_eq!(kernel.settle(&mut xsk), 0, "lost chunks");
    assert_eq!(xsk.outstanding(), 0);
}

/// A bare socket is `Send`: one thread opens it, another works with it.
#[test]
fn a_socket_moves_to_its_worker() {
    let (mut xsk, kernel) = open();
    let far = kernel.clone();
    let xsk = std::thread::spawn(move || {
        xsk.refill().unwrap();
        assert!(far.deliver(b"x"));
        assert_eq!(receive(&mut xsk), [b"x"]);
        xsk
    });
    settle(xsk.join().unwrap(), kernel);
}

#[test]
fn frames_go_round_through_the_wrap_of_all_indexes() {
    let (mut xsk, kernel) = over_memory_from(&small(), u32::MAX - 20).unwrap();
    for n in 0..200_u32 {
        xsk.refill().unwrap();
        let frames: Vec<Vec<u8>> = (0..1 + n % 4).map(|i| vec![(n + i) as u8; 1 + (n * 31) as usize % 1700]).collect();
        for frame in &frames {
            assert!(kernel.deliver(frame));
            assert!(send(&mut xsk, frame));
        }
        assert_eq!(receive(&mut xsk), frames);
        assert_eq!(xsk.flush().unwrap(), Flushed::All);
        assert_eq!(kernel.transmit_all(), frames);
        assert_eq!(xsk.reap(), frames.len());
    }
    assert_eq!(xsk.chunks().sending, 0);
    assert_eq!(xsk.counters().bad_addresses, 0);
    settle(xsk, kernel);
}

#[test]
fn empty_rings_give_nothing() {
    let (mut xsk, kernel) = open();
    assert_eq!(receive(&mut xsk), [[0; 0]; 0]);
    assert_eq!(xsk.reap(), 0);
    assert_eq!(xsk.flush().unwrap(), Flushed::All);
    assert_eq!(xsk.counters().tx_kicks, 0, "nothing queued, nothing kicked");
    assert!(!kernel.deliver(b"x"), "no chunk was given to receive into");
    assert_eq!(xsk.outstanding(), 0);
    settle(xsk, kernel);
}

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
    settle(xsk, kernel);
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
    settle(xsk, kernel);
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
    settle(xsk, kernel);
}

#[test]
fn the_longest_frame_fits_and_a_longer_one_does_not() {
    let (mut xsk, kernel) = over_memory(&Options { headroom: 64, ..small() }).unwrap();
    assert_eq!(xsk.max_received(), 2048 - 256 - 64);
    xsk.refill().unwrap();
    assert!(!kernel.deliver(&vec![7; xsk.max_received() + 1]));
    assert!(kernel.deliver(&vec![7; xsk.max_received()]));
    assert_eq!(receive(&mut xsk), [vec![7; 2048 - 256 - 64]]);
    settle(xsk, kernel);
}

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
    settle(xsk, kernel);
}

#[test]
fn chunks_are_not_shared_between_frames_in_flight() {
    let (mut xsk, kernel) = open();
    xsk.refill().unwrap();
    for n in 0..4 {
        assert!(send(&mut xsk, &[n; 2048]));
    }
    for n in 4..12 {
        assert!(kernel.deliver(&[n; 1792]));
    }
    let _ = xsk.flush().unwrap();
    assert_eq!(kernel.transmit_all(), (0..4).map(|n| vec![n; 2048]).collect::<Vec<_>>());
    assert_eq!(receive(&mut xsk), (4..12).map(|n| vec![n; 1792]).collect::<Vec<_>>());
    settle(xsk, kernel);
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
    settle(xsk, kernel);
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
    settle(xsk, kernel);
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
    settle(xsk, kernel);
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
    settle(xsk, kernel);
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
    settle(xsk, kernel);
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
    settle(xsk, kernel);
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
    settle(xsk, kernel);
}

#[test]
fn without_need_wakeup_every_flush_kicks_and_no_refill_does() {
    let (mut xsk, kernel) = over_memory(&Options { need_wakeup: false, ..small() }).unwrap();
    kernel.set_need_wakeup(false, true);
    xsk.refill().unwrap();
    assert!(send(&mut xsk, b"x"));
    let _ = xsk.flush().unwrap();
    assert_eq!((xsk.counters().tx_kicks, xsk.counters().fill_kicks), (1, 0));
    settle(xsk, kernel);
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
    settle(xsk, kernel);
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
    settle(xsk, kernel);
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
    settle(xsk, kernel);
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
    settle(xsk, kernel);
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
    settle(xsk, kernel);
}

#[test]
fn a_forgotten_chunk_is_outstanding_and_its_memory_stays() {
    let (mut xsk, kernel) = open();
    std::mem::forget(xsk.tx_chunk().unwrap());
    assert_eq!(xsk.outstanding(), 1);
    assert_eq!(kernel.settle(&mut xsk), 1);
}

#[test]
fn options_out_of_range_are_named() {
    let refused = [
        ("chunk_size", Options { chunk_size: 1024, ..small() }),
        ("chunk_size", Options { chunk_size: 3000, ..small() }),
        ("headroom", Options { headroom: 257, ..small() }),
        ("rx_ring", Options { rx_ring: 0, ..small() }),
        ("tx_ring", Options { tx_ring: 3, ..small() }),
        ("fill_ring", Options { fill_ring: 65_536, ..small() }),
        ("completion_ring", Options { completion_ring: 2, ..small() }),
    ];
    for (name, options) in refused {
        let error = over_memory(&options).unwrap_err();
        assert!(matches!(error, OpenError::Option { option, .. } if option == name), "{error}");
    }
    for (mtu, chunk_size) in [(1500, 2048), (1774, 2048), (1775, 4096), (9000, 4096)] {
        assert_eq!(Options::for_mtu(mtu).chunk_size, chunk_size);
    }
}
