//! The inside of the engine for benchmarks, and for nobody else: what one packet takes of each part.

use std::hint::black_box;

use pilot_common::wire::{HEADER_LEN, TAG_LEN};

use crate::codec::{Reader, Writer};
use crate::crypto::aead::{Aead, KeyPair};
use crate::crypto::replay::ReplayWindow;
use crate::frame::{self, Frame};
use crate::recovery::ack::Acks;
use crate::recovery::ecn::Ecn;
use crate::time::Instant;

/// Seals a packet with so many bytes of frames, in place, each time under a new number. `None`: this build does not have the AEAD.
pub fn seal(aead: Aead, frames: usize) -> Option<impl FnMut()> {
    let mut keys = KeyPair::new(aead, &[1; 32], &[2; 32])?;
    let (mut packet, mut number) = (vec![0; HEADER_LEN + frames + TAG_LEN], 0);
    Some(move || {
        number += 1;
        // A key seals 2^30 packets, more than any bench has time for; what it says then does not matter here.
        let _ = black_box(keys.seal(number, &mut packet));
    })
}

/// Opens such a packet, out of place.
pub fn open(aead: Aead, frames: usize) -> Option<impl FnMut() -> bool> {
    let mut theirs = KeyPair::new(aead, &[1; 32], &[2; 32])?;
    let mut ours = KeyPair::new(aead, &[2; 32], &[1; 32])?;
    let mut packet = vec![0; HEADER_LEN + frames + TAG_LEN];
    theirs.seal(7, &mut packet).ok()?;
    let mut room = vec![0; frames];
    Some(move || ours.open(7, black_box(&packet), &mut room) == Some(frames))
}

/// Checks and marks packet numbers, of which every `gap`-th is missing; 0: none.
pub fn replay(gap: u64) -> impl FnMut() -> bool {
    let (mut window, mut number) = (ReplayWindow::default(), 0);
    move || {
        number += if gap > 0 && number % gap == gap - 1 { 2 } else { 1 };
        let is_new = window.check(number);
        window.mark(number);
        is_new
    }
}

/// Notes packet numbers, and writes and reads an ACK after each eighth of them.
pub fn acks() -> impl FnMut() -> u64 {
    let (mut acks, mut number, mut buffer) = (Acks::new(128), 0, [0; 64]);
    move || {
        let now = Instant::from_nanos(number * 1000);
        acks.on_received(now, number, true, Ecn::NotEct);
        number += 1;
        if !acks.is_due(now) {
            return 0;
        }
        let mut writer = Writer::new(&mut buffer);
        acks.write(now, &mut writer);
        let length = writer.len();
        match Frame::next(&mut Reader::new(&buffer[..length])) {
            Ok(Some(Frame::Ack(ack))) => ack.largest(),
            _ => 0,
        }
    }
}

/// Writes as many messages of 19 bytes as a packet of this size holds, and reads them again. How many.
pub fn frames(packet: usize) -> impl FnMut() -> usize {
    let mut buffer = vec![0; packet];
    move || {
        let mut writer = Writer::new(&mut buffer);
        let mut written = 0;
        while frame::write_message(&mut writer, 1, written, b"anomalies: 47 -> 48").is_some() {
            written += 1;
        }
        let length = writer.len();
        let mut reader = Reader::new(&buffer[..length]);
        std::iter::from_fn(|| Frame::next(&mut reader).ok().flatten()).count()
    }
}
