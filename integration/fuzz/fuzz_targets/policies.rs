//! See `makai_integration::targets::policies`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| makai_integration::targets::policies(bytes));
