//! What a peer sends on a control connection or about shards.
#![no_main]

use libfuzzer_sys::fuzz_target;
use makai::members::{Heartbeat, HeartbeatAnswer, JoinAnswer, JoinRequest, decode};
use makai_erasure::stripe::{PeerError, ShardFooter, ShardHeader};
use makai_raft::handle::wire;

fuzz_target!(|bytes: &[u8]| {
    let _ = wire::kind_of(bytes);
    let _ = decode::<JoinRequest>(bytes);
    let _ = decode::<JoinAnswer>(bytes);
    let _ = decode::<Heartbeat>(bytes);
    let _ = decode::<HeartbeatAnswer>(bytes);
    let _ = decode::<ShardHeader>(bytes);
    let _ = decode::<ShardFooter>(bytes);
    let _ = decode::<PeerError>(bytes);
});
