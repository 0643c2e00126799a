//! What counting costs: one shard's bytes for its node, one body's for its tenant, among many of each.
//!
//! `cargo run --release -p makai-ops --example metering [NODES]`

use std::time::Instant;

use makai_erasure::NodeId;
use makai_ops::metering::{Purpose, ServedMeter, Traffic};
use makai_raft::facts::tenant::TenantId;

const NODES: u32 = 1000;
const TIMES: u32 = 2_000_000;

fn main() {
    let nodes = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(NODES).max(1);
    let meter = ServedMeter::default();
    let id = |at: u32| NodeId(*blake3::hash(&(at % nodes).to_be_bytes()).as_bytes());
    let ids: Vec<NodeId> = (0..nodes).map(id).collect();
    ids.iter().for_each(|node| meter.add(*node, Purpose::Egress, 1));
    let begun = now();
    for at in 0..TIMES {
        meter.add(ids[(at.wrapping_mul(7919) % nodes) as usize], Purpose::Egress, 4096);
    }
    println!("a shard's bytes   {:>6.1} ns", begun.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES));
    let begun = now();
    for at in 0..TIMES {
        meter.add_traffic(TenantId(u64::from(at % 100)), Traffic::Egress, 4096);
    }
    println!("a body's bytes    {:>6.1} ns", begun.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES));
    let sum: u64 = meter.take().iter().map(|row| row.egress_bytes).sum();
    assert_eq!(sum, u64::from(nodes) + u64::from(TIMES) * 4096, "every byte was counted");
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn now() -> Instant {
    Instant::now()
}
