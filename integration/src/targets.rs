//! Parsers of what comes from outside, each as one function that takes any bytes and must neither panic nor grow.
//!
//! `tests/outside_bytes.rs` gives them damaged samples of what they are meant for; `fuzz/` has a coverage-guided fuzzer look
//! for more.

use std::path::Path;

use makai::members::{Heartbeat, HeartbeatAnswer, JoinAnswer, JoinRequest, decode};
use makai::ticket::Ticket;
use makai_config::NodeConfig;
use makai_erasure::Scheme;
use makai_erasure::store::format::{parse_index, parse_record_footer, parse_record_header, parse_superblock};
use makai_erasure::stripe::{PeerError, ShardFooter, ShardHeader};
use makai_gateway::policy::Policy;
use makai_gateway::policy::document::Kind;
use makai_raft::facts::command::Batch;
use makai_raft::facts::query::Query;
use makai_raft::handle::wire;
use makai_raft::machine::kv::MemKv;
use makai_raft::machine::{apply, query};

/// All of them, by name.
pub const ALL: [(&str, fn(&[u8])); 5] = [
    ("commands", commands),
    ("operator_texts", operator_texts),
    ("peer_messages", peer_messages),
    ("policies", policies),
    ("shard_records", shard_records),
];

/// What a peer proposes or asks: whatever decodes is applied to the facts and asked of them, and a batch applied to equal
/// facts leaves equal facts.
pub fn commands(bytes: &[u8]) {
    let (mut one, mut other) = (MemKv::default(), MemKv::default());
    if let Ok(batch) = rmp_serde::from_slice::<Batch>(bytes) {
        let first = apply(&mut one, 1, &batch);
        assert_eq!(first, apply(&mut other, 1, &batch));
        assert_eq!(one, other);
    }
    if let Ok(asked) = rmp_serde::from_slice::<Query>(bytes) {
        // That it is refused is an answer.
        let _ = query(&one, &asked);
    }
}

/// What a person pastes: a configuration, a join token, a scheme.
pub fn operator_texts(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let _ = Ticket::parse(text);
    let _ = text.parse::<Scheme>();
    if let Ok(config) = NodeConfig::parse(text, Path::new("/")) {
        let written = config.to_toml().expect("a checked configuration can be written");
        assert_eq!(NodeConfig::parse(&written, Path::new("/")).as_ref(), Ok(&config));
    }
}

/// What a peer sends on a control connection or about shards.
pub fn peer_messages(bytes: &[u8]) {
    let _ = wire::kind_of(bytes);
    let _ = decode::<JoinRequest>(bytes);
    let _ = decode::<JoinAnswer>(bytes);
    let _ = decode::<Heartbeat>(bytes);
    let _ = decode::<HeartbeatAnswer>(bytes);
    let _ = decode::<ShardHeader>(bytes);
    let _ = decode::<ShardFooter>(bytes);
    let _ = decode::<PeerError>(bytes);
}

/// What a customer writes as a policy.
pub fn policies(bytes: &[u8]) {
    for kind in [Kind::Bucket("bucket"), Kind::Identity, Kind::Trust] {
        let _ = Policy::parse(bytes, kind);
    }
}

/// What a damaged or hostile disk holds: record headers and footers, segment indexes, superblocks.
pub fn shard_records(bytes: &[u8]) {
    let _ = parse_record_header(bytes);
    let _ = parse_record_footer(bytes);
    let _ = parse_superblock(bytes);
    let stamp = bytes.first_chunk::<8>().map_or(0, |stamp| u64::from_be_bytes(*stamp));
    let _ = parse_index(bytes, stamp);
}
