//! The file that is sent: incompressible, the same every time, and hashed by us rather than by pilot.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::process::check_interrupt;

/// Where the pseudo-random bytes begin; any number but 0.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bytes written or read at a time: few system calls, and Ctrl-C is noticed at once.
const CHUNK_LEN: usize = 1 << 16;

/// Writes `len` bytes of xorshift64* (Vigna 2016) to `path`; returns their SHA-256.
pub(crate) fn generate(path: &Path, len: u64) -> Result<String> {
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut state = SEED;
    let mut chunk = vec![0; CHUNK_LEN];
    let mut left = len;
    while left > 0 {
        check_interrupt()?;
        for word in chunk.chunks_exact_mut(8) {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            word.copy_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        let part = &chunk[..usize::try_from(left).map_or(CHUNK_LEN, |left| left.min(CHUNK_LEN))];
        file.write_all(part).with_context(|| format!("writing {}", path.display()))?;
        hash.update(part);
        left -= part.len() as u64;
    }
    Ok(hex(hash))
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut reader = BufReader::with_capacity(CHUNK_LEN, file);
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        check_interrupt()?;
        match reader.read(&mut chunk).with_context(|| format!("reading {}", path.display()))? {
            0 => return Ok(hex(hash)),
            len => hash.update(&chunk[..len]),
        }
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_generated_is_what_is_read() {
        let path = std::env::temp_dir().join(format!("pilot-xtask-file-{}", std::process::id()));
        for len in [0, 1, 65_536, 65_537, 200_000] {
            let generated = generate(&path, len).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), len);
            assert_eq!(sha256(&path).unwrap(), generated);
        }
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-4's example.
        assert_eq!(sha256(&path).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        std::fs::remove_file(&path).unwrap();
    }
}
