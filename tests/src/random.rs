//! Chance from a seed.

/// SplitMix64: 64 bits of state, so that any number is a seed. Not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

/// 2^64 divided by the golden ratio: the step of SplitMix64, which reaches every state.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// The generator of a seed. Generators for different purposes get different seeds by [`Random::fork`].
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number below `bound`, 0 if that is 0. The bias of the remainder is of no account here.
    pub const fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// A number below 2^`bits`, of which each length in bits is as likely: small ones are not rare.
    pub const fn of_any_size(&mut self, bits: u64) -> u64 {
        let bits = self.below(bits + 1);
        self.below(1 << bits)
    }

    /// An independent generator.
    pub const fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// Random bytes, such as the seed of an endpoint.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        fill(self.next(), 0, &mut bytes);
        bytes
    }
}

/// SplitMix64's output function: a bijection without visible pattern.
pub const fn mix(number: u64) -> u64 {
    let z = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Writes the bytes from `offset` on of the endless text that belongs to `key`: known to whoever knows the key, at any
/// offset, so that both ends of a stream can have them without keeping them.
pub fn fill(key: u64, offset: u64, out: &mut [u8]) {
    let mut word = (u64::MAX, [0; 8]);
    for (offset, byte) in (offset..).zip(out) {
        let (index, within) = (offset / 8, (offset % 8) as usize);
        if word.0 != index {
            word = (index, mix(key.wrapping_add(index.wrapping_mul(STEP))).to_le_bytes());
        }
        *byte = word.1[within];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs for seed 1234567 of the published reference implementation.
    #[test]
    fn is_splitmix64() {
        let mut random = Random::new(1_234_567);
        let first = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(first, std::array::from_fn(|_| random.next()));
    }

    #[test]
    fn a_text_is_the_same_in_pieces() {
        let (mut whole, mut pieces) = ([0; 100], [0; 100]);
        fill(7, 3, &mut whole);
        fill(7, 3, &mut pieces[..13]);
        fill(7, 16, &mut pieces[13..14]);
        fill(7, 17, &mut pieces[14..]);
        assert_eq!(whole, pieces);
    }
}
