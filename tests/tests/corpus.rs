//! What the fuzz targets do with the committed inputs, and with some from a seed.
#![allow(clippy::unwrap_used, reason = "a test's helper: a failure is the test's")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pilot_tests::fuzz::{TARGETS, run};
use pilot_tests::random::{Random, fill};

/// Random inputs a target. The fuzzer does better; these find what any input finds.
const INPUTS: u64 = 64;

/// Bytes of the longest random input.
const INPUT_BYTES: u64 = 2048;

fn entries(folder: &Path) -> BTreeSet<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn replay(target: &str) {
    let inputs = entries(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target));
    assert!(!inputs.is_empty(), "{target} has no corpus");
    for input in inputs {
        // Shown when it fails, and only then.
        println!("{}", input.display());
        run(target, &std::fs::read(&input).unwrap());
    }
}

fn smoke(target: &str) {
    let mut random = Random::new(1);
    for number in 0..INPUTS {
        let mut input = vec![0; random.below(INPUT_BYTES) as usize];
        fill(random.next(), 0, &mut input);
        println!("random input {number}: {input:02x?}");
        run(target, &input);
    }
}

macro_rules! targets {
    ($($target:ident)*) => { $(
        mod $target {
            #[test]
            fn the_corpus_finds_nothing() {
                super::replay(stringify!($target));
            }

            #[test]
            fn random_inputs_find_nothing() {
                super::smoke(stringify!($target));
            }
        }
    )* };
}

targets!(datagram frames handshake introduction peer engine xdp_link context);

#[test]
fn every_target_is_here_and_has_a_corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let folders: BTreeSet<String> =
        entries(&folder).iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(folders, targets);
    assert_eq!(
        targets,
        ["datagram", "frames", "handshake", "introduction", "peer", "engine", "xdp_link", "context"]
            .map(String::from)
            .into()
    );
}
