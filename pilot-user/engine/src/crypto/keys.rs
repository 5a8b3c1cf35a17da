//! The keys of a tunnel by epoch (`docs/wire.md` W4.7): the one that seals, the one before it, and the one that the peer has
//! not yet proven to have.
//!
//! Packet numbers go on from epoch to epoch, so a nonce (W4.1) is new under every key.

use std::time::Duration;

use super::aead::{KeyPair, SealError};
use crate::limits::REJECT_AFTER_TIME;
use crate::time::Instant;

/// See the module's head. All but the current key are boxed: most tunnels have no other, for most of the time.
pub(crate) struct Slots {
    current: Key,
    /// Opens what is late.
    previous: Option<Box<Previous>>,
    /// Agreed as the responder; of the epoch after the current one.
    next: Option<Box<KeyPair>>,
}

struct Previous {
    key: Key,
    until: Instant,
}

struct Key {
    epoch: u64,
    keys: KeyPair,
    since: Instant,
    /// The peer has sealed with it.
    is_confirmed: bool,
    /// Something of a connection was sealed or opened under it.
    carried_data: bool,
}

/// Which key opened a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Slot {
    Previous,
    Current,
    Next,
}

impl Key {
    fn new(epoch: u64, keys: KeyPair, since: Instant) -> Self {
        Self { epoch, keys, since, is_confirmed: false, carried_data: false }
    }

    fn has_bits(&self, bits: u8) -> bool {
        epoch_bits(self.epoch) == bits
    }
}

/// What a data packet's header says of an epoch (W1.3). Three slots in a row differ in them.
fn epoch_bits(epoch: u64) -> u8 {
    (epoch & 0b11) as u8
}

impl Slots {
    /// The first key of a tunnel.
    pub(crate) fn new(keys: KeyPair, now: Instant) -> Self {
        Self { current: Key::new(0, keys, now), previous: None, next: None }
    }

    /// Of the key that seals.
    pub(crate) fn epoch(&self) -> u64 {
        self.current.epoch
    }

    /// For the header of what [`Slots::seal`] seals.
    pub(crate) fn epoch_bits(&self) -> u8 {
        epoch_bits(self.current.epoch)
    }

    /// As [`KeyPair::seal`], with the current key.
    pub(crate) fn seal(&mut self, number: u64, packet: &mut [u8]) -> Result<(), SealError> {
        self.current.keys.seal(number, packet)
    }

    /// As [`KeyPair::open`], with the key that the header's epoch bits name. Changes nothing that matters, because what is opened
    /// may be a replay.
    pub(crate) fn open(&mut self, bits: u8, number: u64, packet: &[u8], frames: &mut [u8]) -> Option<(usize, Slot)> {
        let next_bits = epoch_bits(self.next_epoch());
        let (keys, slot) = if self.current.has_bits(bits) {
            (&mut self.current.keys, Slot::Current)
        } else if let Some(next) = self.next.as_deref_mut().filter(|_| next_bits == bits) {
            (next, Slot::Next)
        } else {
            let previous = self.previous.as_mut().filter(|previous| previous.key.has_bits(bits))?;
            (&mut previous.key.keys, Slot::Previous)
        };
        keys.open(number, packet, frames).map(|length| (length, slot))
    }

    /// A packet was opened by the current key: the peer has it, and what it sealed before with the previous one is late by
    /// `linger` at most.
    pub(crate) fn on_confirmed(&mut self, now: Instant, linger: Duration) {
        if !std::mem::replace(&mut self.current.is_confirmed, true)
            && let Some(previous) = &mut self.previous
        {
            previous.until = previous.until.min(now + linger);
        }
    }

    /// Whether the peer is known to have the current key.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.current.is_confirmed
    }

    /// Something of a connection was sealed or opened.
    pub(crate) fn on_data(&mut self) {
        self.current.carried_data = true;
    }

    /// Nothing is sealed or opened for now.
    pub(crate) fn rest(&mut self) {
        self.all().for_each(KeyPair::rest);
    }

    fn all(&mut self) -> impl Iterator<Item = &mut KeyPair> {
        let previous = self.previous.as_mut().map(|previous| &mut previous.key.keys);
        [Some(&mut self.current.keys), previous, self.next.as_deref_mut()].into_iter().flatten()
    }

    // Changing keys

    /// The epoch of a key that is agreed now, as the responder says it.
    pub(crate) fn next_epoch(&self) -> u64 {
        self.current.epoch + 1
    }

    /// The responder has a new key, which it seals with when the peer has (W3.9). One that it had before and that the peer
    /// never used is given up: the peer asked anew.
    pub(crate) fn offer(&mut self, keys: KeyPair) {
        self.next = Some(Box::new(keys));
    }

    /// The next key becomes the current one, if there is one: the peer has proven to have it.
    pub(crate) fn confirm(&mut self, now: Instant, linger: Duration) {
        if let Some(keys) = self.next.take() {
            let epoch = self.next_epoch();
            self.replace(Key::new(epoch, *keys, now), now);
            self.on_confirmed(now, linger);
        }
    }

    /// The initiator has a new key, of the epoch that the responder says, and seals with it at once. `false`: no honest
    /// responder says this epoch.
    pub(crate) fn install(&mut self, epoch: u64, keys: KeyPair, now: Instant) -> bool {
        if epoch < self.current.epoch || epoch > self.current.epoch + 2 {
            return false;
        }
        if epoch > self.next_epoch()
            && let Some(keys) = self.next.take()
        {
            // It can only say so when it has this one, and seals with it.
            let epoch = self.next_epoch();
            self.replace(Key::new(epoch, *keys, now), now);
        }
        self.next = None;
        let new = Key::new(epoch, keys, now);
        if epoch == self.current.epoch {
            // The responder gave the current key up before anything under it came there.
            self.current = new;
        } else {
            self.replace(new, now);
        }
        true
    }

    fn replace(&mut self, new: Key, now: Instant) {
        let old = std::mem::replace(&mut self.current, new);
        self.previous = Some(Box::new(Previous { key: old, until: now + REJECT_AFTER_TIME }));
    }

    // What the limits of the current key are measured against (W4.6, W4.7)

    /// When it came into use.
    pub(crate) fn since(&self) -> Instant {
        self.current.since
    }

    /// Packets that it has sealed.
    pub(crate) fn sealed_packets(&self) -> u64 {
        self.current.keys.sealed_packets()
    }

    /// Whether anything of a connection was sealed or opened under it.
    pub(crate) fn has_carried_data(&self) -> bool {
        self.current.carried_data
    }

    /// Whether it may seal nothing any more.
    pub(crate) fn is_used_up(&self) -> bool {
        self.current.keys.is_used_up()
    }

    /// Whether it is too old for data.
    pub(crate) fn is_too_old(&self, now: Instant) -> bool {
        self.current.since + REJECT_AFTER_TIME <= now
    }

    // Wiping

    /// When [`Slots::retire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.previous.as_ref().map(|previous| previous.until)
    }

    /// Wipes the previous key when it has served.
    pub(crate) fn retire(&mut self, now: Instant) {
        self.previous.take_if(|previous| previous.until <= now);
    }
}

#[cfg(test)]
impl Slots {
    /// Whether any key takes the room of an expanded one.
    pub(crate) fn are_expanded_for_test(&mut self) -> bool {
        self.all().any(|keys| keys.is_expanded_for_test())
    }

    /// As if the current key had sealed so many packets.
    pub(crate) fn set_sealed_for_test(&mut self, packets: u64) {
        self.current.keys.set_sealed_for_test(packets);
    }
}

#[cfg(test)]
mod tests {
    use super::super::aead::Aead;
    use super::*;
    use crate::limits::REJECT_AFTER_PACKETS;
    use pilot_common::wire::{HEADER_LEN, TAG_LEN};

    const NOW: Instant = Instant::from_nanos(5);
    const LINGER: Duration = Duration::from_millis(3);

    /// The initiator's and the responder's keys of the `n`-th handshake.
    fn agreed(n: u8) -> [KeyPair; 2] {
        let (a, b) = ([n; 32], [n + 100; 32]);
        let pair = |seal, open| KeyPair::new(Aead::ChaCha20Poly1305, seal, open).unwrap();
        [pair(&a, &b), pair(&b, &a)]
    }

    fn slots() -> [Slots; 2] {
        agreed(0).map(|keys| Slots::new(keys, NOW))
    }

    fn sealed(by: &mut Slots) -> (u8, [u8; HEADER_LEN + 1 + TAG_LEN]) {
        let mut packet = [7; HEADER_LEN + 1 + TAG_LEN];
        by.seal(1, &mut packet).unwrap();
        (by.epoch_bits(), packet)
    }

    fn open(by: &mut Slots, (bits, packet): (u8, [u8; HEADER_LEN + 1 + TAG_LEN])) -> Option<Slot> {
        by.open(bits, 1, &packet, &mut [0; 9]).map(|(_, slot)| slot)
    }

    /// wire.md W4.7: through eight epochs, so that the bits come round twice.
    #[test]
    fn each_end_opens_what_the_other_seals_before_and_after_a_rekey() {
        let [mut a, mut b] = slots();
        for n in 1..9 {
            let [ours, theirs] = agreed(n);
            let epoch = b.next_epoch();
            let late = sealed(&mut a);
            b.offer(theirs);
            assert!(a.install(epoch, ours, NOW));
            assert_eq!(open(&mut a, sealed(&mut b)), Some(Slot::Previous), "not confirmed");
            let first = sealed(&mut a);
            assert_eq!(open(&mut b, first), Some(Slot::Next));
            b.confirm(NOW, LINGER);
            assert_eq!(open(&mut b, first), Some(Slot::Current));
            assert_eq!(open(&mut b, late), Some(Slot::Previous));
            assert_eq!(open(&mut a, sealed(&mut b)), Some(Slot::Current));
            a.on_confirmed(NOW, LINGER);
            assert_eq!([a.deadline(), b.deadline()], [Some(NOW + LINGER); 2]);
            b.retire(NOW + LINGER);
            assert_eq!(open(&mut b, late), None, "wiped");
        }
    }

    /// wire.md W4.7: a key that never was confirmed is replaced by one of the same epoch.
    #[test]
    fn an_unconfirmed_key_is_given_up() {
        let [mut a, mut b] = slots();
        let before = sealed(&mut b);
        for n in 1..4 {
            let [ours, theirs] = agreed(n);
            let epoch = b.next_epoch();
            b.offer(theirs);
            assert_eq!(epoch, 1);
            assert!(a.install(epoch, ours, NOW));
        }
        assert_eq!(open(&mut a, before), Some(Slot::Previous), "what the responder still seals with");
        assert_eq!(open(&mut b, sealed(&mut a)), Some(Slot::Next));
    }

    /// wire.md W4.7: both rekey at once, and the second response comes before anything under the first key.
    #[test]
    fn a_rekey_of_the_other_end_on_top_of_an_unconfirmed_one() {
        let [mut a, mut b] = slots();
        let ([ours, theirs], [second, second_at_a]) = (agreed(1), agreed(2));
        b.offer(theirs);
        assert!(a.install(1, ours, NOW));
        // Now b's rekey, which a answers.
        let epoch = a.next_epoch();
        a.offer(second_at_a);
        assert_eq!(epoch, 2);
        let under_first = sealed(&mut a);
        assert!(b.install(epoch, second, NOW));
        assert_eq!(open(&mut b, under_first), Some(Slot::Previous));
        assert_eq!(open(&mut a, sealed(&mut b)), Some(Slot::Next));
        for epoch in [1, 5] {
            assert!(
                !b.install(
                    epoch,
                    {
                        let [ours, _] = agreed(3);
                        ours
                    },
                    NOW
                ),
                "{epoch}"
            );
        }
    }

    /// wire.md W4.6, W4.7: limits count for each key by itself.
    #[test]
    fn a_new_key_begins_anew() {
        let [mut a, _] = slots();
        a.on_data();
        a.set_sealed_for_test(REJECT_AFTER_PACKETS);
        assert!(a.is_used_up() && a.has_carried_data());
        assert!(!a.is_too_old(NOW) && a.is_too_old(NOW + REJECT_AFTER_TIME));
        let later = NOW + REJECT_AFTER_TIME;
        let [ours, _] = agreed(1);
        assert!(a.install(1, ours, later));
        assert_eq!((a.since(), a.sealed_packets()), (later, 0));
        assert!(!a.is_used_up() && !a.has_carried_data() && !a.is_too_old(later));
    }
}
