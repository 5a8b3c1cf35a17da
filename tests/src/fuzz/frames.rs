//! The frames of a data packet, and the parameters of a handshake: what the engine decodes behind its cryptography.

use pilot_engine::fuzzing;

/// The first byte chooses the decoder.
pub(super) fn run(input: &[u8]) {
    match input.split_first() {
        Some((choice, payload)) if choice & 1 == 1 => fuzzing::parameters(payload),
        Some((_, frames)) => fuzzing::frames(frames),
        None => {}
    }
}
