//! Packet numbers on the wire (`docs/wire.md` W4.2).

/// The number nearest to `next` whose low 32 bits are `low` (RFC 9000 A.3).
pub(crate) fn decode_number(low: u32, next: u64) -> u64 {
    const WINDOW: u64 = 1 << 32;
    let candidate = (next & !(WINDOW - 1)) | u64::from(low);
    if candidate + WINDOW / 2 <= next && candidate < (1 << 62) - WINDOW {
        candidate + WINDOW
    } else if candidate > next + WINDOW / 2 && candidate >= WINDOW {
        candidate - WINDOW
    } else {
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// wire.md W4.2
        #[test]
        fn finds_any_number_within_half_the_range(next in 0u64..1 << 61, delta in -(1i64 << 31) + 1..1 << 31) {
            prop_assume!(next.checked_add_signed(delta).is_some());
            let number = next.saturating_add_signed(delta);
            prop_assert_eq!(decode_number(number as u32, next), number);
        }
    }

    #[test]
    fn the_example_of_the_standard() {
        // RFC 9000 A.3, widened to 32 bits.
        assert_eq!(decode_number(0x9b32_9b32, 0xa_a82f_30eb), 0xa_9b32_9b32);
        assert_eq!(decode_number(u32::MAX, 0), u64::from(u32::MAX));
    }
}
