//! See `pilot_tests::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| pilot_tests::fuzz::run("introduction", input));
