//! See `makai_integration::targets::operator_texts`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| makai_integration::targets::operator_texts(bytes));
