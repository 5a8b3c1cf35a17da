//! The socket over rings in memory, with the kernel's end in the test's hands. Every test ends with all chunks at home:
//! dropping such a socket asserts it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a helper of a test fails the test")]

mod receiving;
mod sending;

use pilot_xsk::testing::{Kernel, over_memory, over_memory_from};
use pilot_xsk::{Flushed, Mode, OpenError, Options, RECV_BATCH, Xsk};

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

/// What a panic says.
fn panics<T>(test: impl FnOnce() -> T) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test)).err().expect("a panic");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
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
    drop(xsk.join().unwrap());
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
}

#[test]
fn without_need_wakeup_every_flush_kicks_and_no_refill_does() {
    let (mut xsk, kernel) = over_memory(&Options { need_wakeup: false, ..small() }).unwrap();
    kernel.set_need_wakeup(false, true);
    xsk.refill().unwrap();
    assert!(send(&mut xsk, b"x"));
    let _ = xsk.flush().unwrap();
    assert_eq!((xsk.counters().tx_kicks, xsk.counters().fill_kicks), (1, 0));
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
        ("chunks_per_frame", Options { chunks_per_frame: 0, ..small() }),
        ("chunks_per_frame", Options { chunks_per_frame: 5, ..small() }),
        ("chunks_per_frame", Options { chunks_per_frame: 19, tx_ring: 64, completion_ring: 64, ..small() }),
    ];
    for (name, options) in refused {
        let error = over_memory(&options).unwrap_err();
        assert!(matches!(error, OpenError::Option { option, .. } if option == name), "{error}");
    }
    for (mtu, chunk_size, chunks) in
        [(1500, 2048, 1), (1774, 2048, 1), (1775, 4096, 1), (3822, 4096, 1), (3823, 4096, 2), (9000, 4096, 3)]
    {
        let options = Options::for_mtu(mtu);
        assert_eq!((options.chunk_size, options.chunks_per_frame), (chunk_size, chunks), "{mtu}");
    }
    for (mode, chunk_size) in [(Mode::Copy, 2048), (Mode::Auto, 4096), (Mode::ZeroCopy, 4096)] {
        let options = Options::for_mtu(1500).with_mode(mode);
        assert_eq!((options.mode, options.chunk_size), (mode, chunk_size));
    }
}
