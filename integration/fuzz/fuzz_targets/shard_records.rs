//! What a damaged or hostile disk holds: record headers and footers, segment indexes, superblocks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use makai_erasure::store::format::{parse_index, parse_record_footer, parse_record_header, parse_superblock};

fuzz_target!(|bytes: &[u8]| {
    let _ = parse_record_header(bytes);
    let _ = parse_record_footer(bytes);
    let _ = parse_superblock(bytes);
    let stamp = bytes.first_chunk::<8>().map_or(0, |stamp| u64::from_be_bytes(*stamp));
    let _ = parse_index(bytes, stamp);
});
