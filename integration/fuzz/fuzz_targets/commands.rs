//! What a peer proposes or asks: whatever decodes is applied to the facts and asked of them without a panic, and a
//! batch applied to equal facts leaves equal facts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use makai_raft::facts::command::Batch;
use makai_raft::facts::query::Query;
use makai_raft::machine::kv::MemKv;
use makai_raft::machine::{apply, query};

fuzz_target!(|bytes: &[u8]| {
    let (mut one, mut other) = (MemKv::default(), MemKv::default());
    if let Ok(batch) = rmp_serde::from_slice::<Batch>(bytes) {
        let first = apply(&mut one, 1, &batch);
        assert_eq!(first, apply(&mut other, 1, &batch));
        assert_eq!(one, other);
    }
    if let Ok(asked) = rmp_serde::from_slice::<Query>(bytes) {
        let _ = query(&one, &asked);
    }
});
