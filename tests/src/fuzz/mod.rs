//! What the fuzz targets do with an input. The targets themselves (`tests/fuzz`) need a nightly compiler; these functions
//! need none, so that the committed corpora are replayed by `cargo test` (`tests/tests/corpus.rs`).
//!
//! A target takes any bytes, and fails by panicking. The same bytes do the same on every run.

mod context;
mod datagram;
mod engine;
mod frames;
mod handshake;
mod pair;
mod peer;
mod xdp_link;

/// What a target does with an input.
pub type Run = fn(&[u8]);

/// The targets, by name.
pub const TARGETS: [(&str, Run); 8] = [
    ("datagram", datagram::run),
    ("frames", frames::run),
    ("handshake", handshake::run),
    ("introduction", handshake::introduce),
    ("peer", peer::run),
    ("engine", engine::run),
    ("xdp_link", xdp_link::run),
    ("context", context::run),
];

/// Runs a target on an input.
///
/// # Panics
/// When the input is a finding, or there is no such target.
pub fn run(target: &str, input: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, run) = found.unwrap_or_else(|| unreachable!("no target `{target}`"));
    run(input);
}

/// Operations of one input that are carried out; the rest of it is ignored. More find nothing that several inputs do not,
/// and make each run slow.
const OPERATIONS_MAX: usize = 256;

/// The operations that an input stands for.
fn operations<T: for<'a> arbitrary::Arbitrary<'a>>(input: &[u8]) -> impl Iterator<Item = T> {
    let mut input = arbitrary::Unstructured::new(input);
    std::iter::from_fn(move || (!input.is_empty()).then(|| T::arbitrary(&mut input).ok())?).take(OPERATIONS_MAX)
}
