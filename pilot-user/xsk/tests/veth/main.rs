//! Over a real veth pair between two network namespaces, which each test makes for itself. Needs root.
//!
//! ```text
//!   namespace pilot-xsk-PID-N-a        namespace pilot-xsk-PID-N-b
//!   ┌───────────────────────┐          ┌─────────────────────────────────────────┐
//!   │ Xsk on a, queue 0     a ════════ b  generic XDP: redirect to XSKMAP[queue], │
//!   └───────────────────────┘          │                else pass                │
//!                                      │ Xsk on b, queue 0                       │
//!                                      └─────────────────────────────────────────┘
//! ```

mod bpf;
mod pair;

use std::os::fd::AsRawFd;

use bpf::Redirect;
use pair::{Pair, needs_root};
use pilot_xsk::nic::Facts;
use pilot_xsk::{Flushed, KickError, Mode, OpenError, Options, RECV_BATCH, Xsk};

/// Ethernet type for local experiments (IEEE 802): what the namespaces' own kernels send has another one.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

fn copy_mode() -> Options {
    Options {
        mode: Mode::Copy,
        rx_ring: 512,
        tx_ring: 512,
        fill_ring: 1024,
        completion_ring: 512,
        ..Options::default()
    }
}

/// Frame number `n`: addressed to everyone, of a length and content that follow from the number.
fn frame(n: u64, room: &mut [u8]) -> usize {
    let len = 60 + (n as usize * 7) % 1400;
    room[..6].fill(0xff);
    room[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    room[12..14].copy_from_slice(&ETHERTYPE);
    room[14..22].copy_from_slice(&n.to_be_bytes());
    for (i, byte) in room[22..len].iter_mut().enumerate() {
        *byte = (n as usize + i) as u8;
    }
    len
}

/// Sends `count` frames with numbers from `first` on.
fn send(xsk: &mut Xsk, first: u64, count: u64) {
    for n in first..first + count {
        let mut chunk = xsk.tx_chunk().expect("the sending share is larger than a burst");
        let len = frame(n, chunk.bytes());
        chunk.send(0, len);
    }
    assert_eq!(xsk.flush().unwrap(), Flushed::All);
}

/// Takes what has arrived, checks every byte, returns the numbers.
fn receive(xsk: &mut Xsk, numbers: &mut Vec<u64>) {
    xsk.refill().unwrap();
    let mut expected = [0; 2048];
    while 0 < xsk.recv(RECV_BATCH, |bytes| {
        if bytes[12..14] == ETHERTYPE {
            let n = u64::from_be_bytes(bytes[14..22].try_into().unwrap());
            let len = frame(n, &mut expected);
            assert_eq!(bytes, &expected[..len], "frame {n}");
            numbers.push(n);
        }
    }) {}
}

#[test]
fn a_hundred_thousand_frames_arrive_whole_and_in_order() {
    if needs_root("a_hundred_thousand_frames_arrive_whole_and_in_order") {
        return;
    }
    const FRAMES: u64 = 100_000;
    let pair = Pair::new();
    let mut sender = pair.in_a(|| Xsk::open(Facts::read("a").unwrap().ifindex, 0, &copy_mode()).unwrap());
    let (mut receiver, redirect) = pair.in_b(|| {
        let facts = Facts::read("b").unwrap();
        (Xsk::open(facts.ifindex, 0, &copy_mode()).unwrap(), Redirect::attach(facts.ifindex).unwrap())
    });
    redirect.set(0, receiver.fd().as_raw_fd()).unwrap();
    assert!(!sender.is_zero_copy() && !receiver.is_zero_copy());
    receiver.refill().unwrap();

    let mut numbers = Vec::new();
    for first in (0..FRAMES).step_by(RECV_BATCH) {
        send(&mut sender, first, (RECV_BATCH as u64).min(FRAMES - first));
        receive(&mut receiver, &mut numbers);
    }
    // Generic XDP delivers within the sender's system call or in a softirq soon after.
    for _ in 0..1000 {
        if numbers.len() as u64 == FRAMES {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
        receive(&mut receiver, &mut numbers);
    }
    assert!(numbers.iter().copied().eq(0..FRAMES), "{} of {FRAMES} arrived", numbers.len());

    let (sent, received) = (sender.counters(), receiver.counters());
    assert_eq!((sent.sent, sent.lost_local, sent.bad_addresses, sent.refused), (FRAMES, 0, 0, 0));
    assert!(received.received >= FRAMES);
    assert_eq!((received.bad_addresses, received.multi_buffer), (0, 0));
    let kernel = receiver.kernel_statistics().unwrap();
    assert_eq!((kernel.rx_dropped, kernel.rx_invalid, kernel.rx_ring_full, kernel.fill_empty), (0, 0, 0, 0));
    assert_eq!(sender.kernel_statistics().unwrap().tx_invalid, 0);

    sender.reap();
    assert_eq!(sender.outstanding(), 0, "a socket that never received has all its chunks at home");
    assert_eq!(receiver.chunks().receiving, receiver.outstanding());
}
