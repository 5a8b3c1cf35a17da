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

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a helper of a test fails the test")]

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

/// Receives until there are `count` numbers or two seconds have passed: generic XDP delivers within the sender's system call,
/// or in a softirq soon after.
fn receive_until(xsk: &mut Xsk, numbers: &mut Vec<u64>, count: u64) {
    for _ in 0..1000 {
        receive(xsk, numbers);
        if numbers.len() as u64 >= count {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Ends a test: nothing is being sent any more, and what is not home is to receive into.
fn finish<const N: usize>(mut sockets: [Xsk; N]) {
    for xsk in &mut sockets {
        settle_until(|| {
            xsk.reap();
            xsk.chunks().sending == 0
        });
        assert_eq!(xsk.outstanding(), xsk.chunks().receiving, "lost chunks");
    }
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
        // On a busy machine the softirq lags: no more in flight than every queue on the way holds.
        receive_until(&mut receiver, &mut numbers, first.saturating_sub(256));
    }
    receive_until(&mut receiver, &mut numbers, FRAMES);
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
    finish([sender, receiver]);
}

/// The kernel sends 32 frames per system call; its answer EAGAIN is not an end. Without need_wakeup, and in 4 KiB chunks,
/// which the other tests have not.
#[test]
fn one_flush_sends_a_whole_ring() {
    if needs_root("one_flush_sends_a_whole_ring") {
        return;
    }
    let pair = Pair::new();
    let options = Options { need_wakeup: false, chunk_size: 4096, rx_ring: 1024, ..copy_mode() };
    let mut sender = pair.in_a(|| Xsk::open(Facts::read("a").unwrap().ifindex, 0, &options).unwrap());
    let (mut receiver, redirect) = pair.in_b(|| {
        let facts = Facts::read("b").unwrap();
        (Xsk::open(facts.ifindex, 0, &options).unwrap(), Redirect::attach(facts.ifindex).unwrap())
    });
    redirect.set(0, receiver.fd().as_raw_fd()).unwrap();
    receiver.refill().unwrap();
    send(&mut sender, 0, 512);
    assert_eq!((sender.counters().tx_kicks, sender.counters().lost_local), (16, 0));
    let mut numbers = Vec::new();
    receive_until(&mut receiver, &mut numbers, 512);
    assert!(numbers.iter().copied().eq(0..512), "{} of 512 arrived", numbers.len());
    finish([sender, receiver]);
}

/// Jumbo frames: each in three chunks, on sending and on receiving, and whole at both ends.
#[test]
fn frames_of_several_chunks_arrive_whole() {
    if needs_root("frames_of_several_chunks_arrive_whole") {
        return;
    }
    const FRAMES: usize = 2000;
    let pair = Pair::new();
    pair.ip_a(&["link", "set", "dev", "a", "mtu", "9000"]);
    pair.ip_b(&["link", "set", "dev", "b", "mtu", "9000"]);
    let options = Options { chunk_size: 4096, chunks_per_frame: 3, ..copy_mode() };
    let mut sender = pair.in_a(|| Xsk::open(Facts::read("a").unwrap().ifindex, 0, &options).unwrap());
    let (mut receiver, redirect) = pair.in_b(|| {
        let facts = Facts::read("b").unwrap();
        (Xsk::open(facts.ifindex, 0, &options).unwrap(), Redirect::attach(facts.ifindex).unwrap())
    });
    redirect.set(0, receiver.fd().as_raw_fd()).unwrap();
    receiver.refill().unwrap();
    let jumbo = |n: usize| {
        let mut bytes = vec![n as u8; 9014 - n % 400];
        frame(n as u64, &mut bytes);
        bytes
    };
    let mut next = 0;
    for n in 0..FRAMES {
        let bytes = jumbo(n);
        let mut chunk = sender.tx_chunk().expect("one frame is under way at a time");
        chunk.bytes()[80..80 + bytes.len()].copy_from_slice(&bytes);
        chunk.send(80, bytes.len());
        assert_eq!(sender.flush().unwrap(), Flushed::All);
        settle_until(|| {
            receiver.refill().unwrap();
            receiver.recv(RECV_BATCH, |bytes| {
                if bytes[12..14] == ETHERTYPE {
                    assert!(bytes == jumbo(next), "frame {next}: {} bytes", bytes.len());
                    next += 1;
                }
            });
            next > n
        });
    }
    let (sent, received) = (sender.counters(), receiver.counters());
    assert_eq!((sent.sent, sent.lost_local, sent.bad_addresses), (FRAMES as u64, 0, 0));
    assert_eq!((received.in_parts, received.multi_buffer, received.bad_addresses), (FRAMES as u64, 0, 0));
    finish([sender, receiver]);
}

#[test]
fn a_queue_in_use_is_busy_and_opens_once_it_is_free() {
    if needs_root("a_queue_in_use_is_busy_and_opens_once_it_is_free") {
        return;
    }
    let pair = Pair::new();
    pair.in_a(|| {
        let ifindex = Facts::read("a").unwrap().ifindex;
        let first = Xsk::open(ifindex, 0, &copy_mode()).unwrap();
        let refusal = Xsk::try_open(ifindex, 0, &copy_mode()).unwrap_err();
        assert!(matches!(refusal, OpenError::Busy { queue: 0, .. }), "{refusal}");
        // Rebinding at once: the kernel frees the queue some time after the close, and open bridges that.
        let mut xsk = first;
        for _ in 0..5 {
            drop(xsk);
            xsk = Xsk::open(ifindex, 0, &copy_mode()).unwrap();
        }
        // A socket that holds chunks in every ring frees its queue as well.
        xsk.refill().unwrap();
        send(&mut xsk, 0, 8);
        finish([xsk]);
        finish([Xsk::open(ifindex, 0, &copy_mode()).unwrap()]);
    });
}

#[test]
fn what_cannot_be_opened_is_refused_in_words() {
    if needs_root("what_cannot_be_opened_is_refused_in_words") {
        return;
    }
    let pair = Pair::new();
    pair.in_a(|| {
        let ifindex = Facts::read("a").unwrap().ifindex;
        let zero_copy = Options { mode: Mode::ZeroCopy, ..copy_mode() };
        let refusal = Xsk::open(ifindex, 0, &zero_copy).unwrap_err();
        assert!(matches!(refusal, OpenError::NoZeroCopy { .. }), "{refusal}");
        assert!(refusal.to_string().contains("use copy mode"), "{refusal}");

        let automatic = Xsk::open(ifindex, 0, &Options { mode: Mode::Auto, ..copy_mode() }).unwrap();
        assert!(!automatic.is_zero_copy());

        let refusal = Xsk::open(ifindex, 7, &copy_mode()).unwrap_err();
        assert!(matches!(refusal, OpenError::NoQueue { queue: 7, .. }), "{refusal}");
        let refusal = Xsk::open(u32::MAX >> 1, 0, &copy_mode()).unwrap_err();
        assert!(matches!(refusal, OpenError::NoInterface { .. }), "{refusal}");

        drop(automatic);
        pair::become_nobody();
        let refusal = Xsk::open(ifindex, 0, &copy_mode()).unwrap_err();
        assert!(matches!(refusal, OpenError::NotPermitted), "{refusal}");
    });
}

#[test]
fn an_interface_that_is_down_keeps_frames_queued_until_it_is_up() {
    if needs_root("an_interface_that_is_down_keeps_frames_queued_until_it_is_up") {
        return;
    }
    let pair = Pair::new();
    let mut xsk = pair.in_a(|| Xsk::open(Facts::read("a").unwrap().ifindex, 0, &copy_mode()).unwrap());
    xsk.probe().unwrap();
    pair.ip_a(&["link", "set", "dev", "a", "down"]);
    assert!(matches!(xsk.probe(), Err(KickError::Down)));
    let mut chunk = xsk.tx_chunk().unwrap();
    let len = frame(0, chunk.bytes());
    chunk.send(0, len);
    assert!(matches!(xsk.flush(), Err(KickError::Down)));
    assert_eq!(xsk.chunks().sending, 1);
    pair.ip_a(&["link", "set", "dev", "a", "up"]);
    assert_eq!(xsk.flush().unwrap(), Flushed::All);
    assert_eq!((xsk.outstanding(), xsk.counters().lost_local), (0, 0));
    finish([xsk]);
}

#[test]
fn a_peer_that_is_down_is_a_counted_loss() {
    if needs_root("a_peer_that_is_down_is_a_counted_loss") {
        return;
    }
    let pair = Pair::new();
    let mut xsk = pair.in_a(|| Xsk::open(Facts::read("a").unwrap().ifindex, 0, &copy_mode()).unwrap());
    pair.ip_b(&["link", "set", "dev", "b", "down"]);
    send(&mut xsk, 0, 40);
    let counters = xsk.counters();
    assert_eq!((counters.sent, counters.lost_local), (40, 40));
    assert_eq!(xsk.outstanding(), 0, "lost frames complete too");
    finish([xsk]);
}

#[test]
fn a_frame_longer_than_the_mtu_is_a_counted_loss() {
    if needs_root("a_frame_longer_than_the_mtu_is_a_counted_loss") {
        return;
    }
    let pair = Pair::new();
    let mut xsk = pair.in_a(|| Xsk::open(Facts::read("a").unwrap().ifindex, 0, &copy_mode()).unwrap());
    let mut chunk = xsk.tx_chunk().unwrap();
    frame(0, chunk.bytes());
    let len = chunk.bytes().len();
    chunk.send(0, len);
    send(&mut xsk, 1, 1);
    assert_eq!((xsk.counters().sent, xsk.counters().lost_local, xsk.outstanding()), (2, 1, 0));
    finish([xsk]);
}

#[test]
fn a_device_that_is_gone_is_told_from_one_that_is_down() {
    if needs_root("a_device_that_is_gone_is_told_from_one_that_is_down") {
        return;
    }
    let pair = Pair::new();
    let mut xsk = pair.in_a(|| Xsk::open(Facts::read("a").unwrap().ifindex, 0, &copy_mode()).unwrap());
    pair.ip_a(&["link", "del", "dev", "a"]);
    assert!(matches!(xsk.probe(), Err(KickError::Gone)));
    let mut chunk = xsk.tx_chunk().unwrap();
    let len = frame(0, chunk.bytes());
    chunk.send(0, len);
    assert!(matches!(xsk.flush(), Err(KickError::Gone)));
    assert_eq!((xsk.outstanding(), xsk.chunks().sending), (1, 1), "nobody will complete it: it goes with the socket");
}

#[test]
fn frames_without_room_are_in_the_kernels_statistics() {
    if needs_root("frames_without_room_are_in_the_kernels_statistics") {
        return;
    }
    let pair = Pair::new();
    let mut sender = pair.in_a(|| Xsk::open(Facts::read("a").unwrap().ifindex, 0, &copy_mode()).unwrap());
    let (mut receiver, redirect) = pair.in_b(|| {
        let facts = Facts::read("b").unwrap();
        let small = Options { rx_ring: 64, ..copy_mode() };
        (Xsk::open(facts.ifindex, 0, &small).unwrap(), Redirect::attach(facts.ifindex).unwrap())
    });
    redirect.set(0, receiver.fd().as_raw_fd()).unwrap();
    send(&mut sender, 0, 8);
    settle_until(|| receiver.kernel_statistics().unwrap().fill_empty >= 8);

    receiver.refill().unwrap();
    send(&mut sender, 8, 100);
    settle_until(|| receiver.kernel_statistics().unwrap().rx_ring_full >= 36);
    let mut numbers = Vec::new();
    receive(&mut receiver, &mut numbers);
    assert!(numbers.len() <= 64 && numbers.iter().all(|n| (8..72).contains(n)), "{numbers:?}");

    // The chunks of what was dropped are not lost: the socket goes on receiving.
    for first in (200..2200).step_by(50) {
        numbers.clear();
        send(&mut sender, first, 50);
        receive_until(&mut receiver, &mut numbers, 50);
        assert!(numbers.iter().copied().eq(first..first + 50), "{numbers:?}");
    }
    finish([sender, receiver]);
}

/// Waits for a softirq's work, up to two seconds.
fn settle_until(mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    panic!("the kernel never got there");
}

#[test]
fn facts_tell_what_ip_link_set() {
    if needs_root("facts_tell_what_ip_link_set") {
        return;
    }
    let pair = Pair::new();
    pair.ip_a(&["link", "set", "dev", "a", "mtu", "3400", "address", "02:11:22:33:44:55"]);
    pair.in_a(|| {
        let facts = Facts::read("a").unwrap();
        assert_eq!(facts.name, "a");
        assert_eq!((facts.mtu, facts.mac, facts.up), (3400, [2, 0x11, 0x22, 0x33, 0x44, 0x55], true));
        assert_eq!((facts.driver.as_deref(), facts.is_virtual), (Some("veth"), true));
        assert!(facts.rx_queues >= 1 && facts.tx_queues >= 1);

        let loopback = Facts::read("lo").unwrap();
        assert_eq!((loopback.mac, loopback.up, loopback.is_virtual), ([0; 6], false, true));
        for missing in ["nothing-here", "", "a-name-much-too-long-for-linux", "a\0b"] {
            assert!(Facts::read(missing).is_err(), "{missing:?}");
        }
    });
    pair.ip_a(&["link", "add", "name", "many", "numtxqueues", "3", "numrxqueues", "2", "type", "veth"]);
    pair.in_a(|| {
        let facts = Facts::read("many").unwrap();
        assert_eq!((facts.rx_queues, facts.tx_queues, facts.up), (2, 3, false));
    });

    // A bridge has no channels to ask for: its queues are counted in sysfs, but not those of its namesake elsewhere.
    pair.ip_a(&["link", "add", "name", "hub", "numtxqueues", "5", "numrxqueues", "4", "type", "bridge"]);
    pair.ip_b(&["link", "add", "name", "hub", "index", "77", "numtxqueues", "3", "numrxqueues", "2", "type", "bridge"]);
    let queues = || Facts::read("hub").map(|facts| (facts.rx_queues, facts.tx_queues)).unwrap();
    let (right, wrong) = pair.in_b(|| {
        pair::mount_sysfs();
        (queues(), pair.in_a(queues))
    });
    assert_eq!((right, wrong), ((2, 3), (1, 1)));
    pair.in_a(|| {
        let facts = Facts::read("hub").unwrap();
        assert_eq!((facts.driver.as_deref(), facts.is_virtual), (Some("bridge"), true));
    });
}
