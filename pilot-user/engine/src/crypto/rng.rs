//! Randomness from one seed: the engine draws none of its own.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

/// ChaCha20 keystream of a secret seed. Never cloned: two of the same state would give the same ephemeral keys.
pub(crate) struct SeededRng(ChaCha20Rng);

impl SeededRng {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self(ChaCha20Rng::from_seed(seed))
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }

    pub(crate) fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// For libraries that take a generator.
    pub(crate) fn inner(&mut self) -> &mut ChaCha20Rng {
        &mut self.0
    }

    /// An independent generator, for an owner that outlives this borrow.
    pub(crate) fn fork(&mut self) -> Self {
        let mut seed = [0; 32];
        self.fill(&mut seed);
        Self::new(seed)
    }
}
