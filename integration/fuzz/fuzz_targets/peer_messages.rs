//! See `makai_integration::targets::peer_messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| makai_integration::targets::peer_messages(bytes));
