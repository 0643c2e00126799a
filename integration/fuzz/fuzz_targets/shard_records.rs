//! See `makai_integration::targets::shard_records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| makai_integration::targets::shard_records(bytes));
