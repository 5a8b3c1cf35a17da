//! Both ends of a ring on two threads, in every order of their steps that the memory model allows.

use loom::thread;

use super::*;

/// Far enough apart for loom's words, which are larger than real ones.
const OFFSETS: RingOffsets = RingOffsets { producer: 0, consumer: 256, flags: 512, desc: 1024 };

/// Bytes of memory of a ring of two entries.
const LEN: usize = 2048;

/// A ring of `size` entries with both indexes at `start`.
fn ring(size: u32, start: u32) -> (Producer<u64>, Consumer<u64>) {
    let memory = Arc::new(Mmap::anonymous(LEN).unwrap());
    assert!(size_of::<AtomicU32>() <= 256 && size as usize * size_of::<Place<u64>>() <= LEN - 1024);
    for (offset, value) in [(OFFSETS.producer, start), (OFFSETS.consumer, start), (OFFSETS.flags, 0)] {
        // SAFETY: within the mapping, aligned, and nobody else knows of it yet.
        unsafe { memory.address().add(offset as usize).cast().write(AtomicU32::new(value)) };
    }
    for slot in 0..size as usize {
        // SAFETY: as above.
        unsafe { memory.address().add(OFFSETS.desc as usize).cast::<Place<u64>>().add(slot).write(Place::new(0)) };
    }
    let producer = Producer::new(Arc::clone(&memory), &OFFSETS, size).unwrap();
    (producer, Consumer::new(memory, &OFFSETS, size).unwrap())
}

/// Entries are seen whole, in order, each once, and are not overwritten before they are read.
#[test]
fn numbers_pass_through_the_wrap() {
    const NUMBERS: u64 = 3;
    for size in [1, 2] {
        loom::model(move || {
            let (mut producer, mut consumer) = ring(size, u32::MAX);
            let thread = thread::spawn(move || {
                for number in 1..=NUMBERS {
                    loop {
                        match producer.reserve() {
                            Some(entry) => break entry.write(number),
                            None => thread::yield_now(),
                        }
                    }
                    producer.submit();
                }
            });
            for expected in 1..=NUMBERS {
                let number = loop {
                    match consumer.peek() {
                        Some(number) => break number,
                        None => thread::yield_now(),
                    }
                };
                assert_eq!(number, expected);
                consumer.release();
            }
            thread.join().unwrap();
        });
    }
}

/// A consumer that falls asleep is kicked, or has seen the entry before: never neither.
#[test]
fn no_wakeup_is_lost() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring(1, 0);
        let thread = thread::spawn(move || {
            producer.reserve().unwrap().write(7);
            producer.submit();
            producer.need_wakeup()
        });
        consumer.set_need_wakeup(true);
        let sleeps = consumer.is_empty();
        let kicked = thread.join().unwrap();
        assert!(!sleeps || kicked, "asleep, with an entry in the ring");
    });
}
