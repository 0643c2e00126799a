//! What a gateway counts while it serves: bytes that each node gave, by what for. A read costs one lookup and one
//! addition; the sums leave once an epoch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use makai_erasure::NodeId;
use makai_raft::facts::accounts::ServedRow;

/// Nodes counted at once; what more would serve goes uncounted until the next report.
const NODES_MAX: usize = 1_000_000;

/// What bytes were read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A customer asked.
    Egress,
    /// A shard is rebuilt.
    Repair,
}

#[derive(Debug, Default)]
struct Counts {
    egress_bytes: AtomicU64,
    repair_bytes: AtomicU64,
}

/// Counts since the last [`take`](Self::take). Cheap to clone; all clones count together.
#[derive(Debug, Clone, Default)]
pub struct ServedMeter {
    nodes: Arc<RwLock<HashMap<NodeId, Counts>>>,
}

impl ServedMeter {
    pub fn add(&self, node: NodeId, purpose: Purpose, bytes: u64) {
        let count = |counts: &Counts| match purpose {
            Purpose::Egress => counts.egress_bytes.fetch_add(bytes, Ordering::Relaxed),
            Purpose::Repair => counts.repair_bytes.fetch_add(bytes, Ordering::Relaxed),
        };
        if let Some(counts) = self.nodes.read().unwrap_or_else(PoisonError::into_inner).get(&node) {
            count(counts);
            return;
        }
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() < NODES_MAX || nodes.contains_key(&node) {
            count(nodes.entry(node).or_default());
        }
    }

    /// What was counted, by node; counting begins anew.
    #[must_use]
    pub fn take(&self) -> Vec<ServedRow> {
        let taken = std::mem::take(&mut *self.nodes.write().unwrap_or_else(PoisonError::into_inner));
        let row = |(node, counts): (NodeId, Counts)| ServedRow {
            egress_bytes: counts.egress_bytes.into_inner(),
            repair_bytes: counts.repair_bytes.into_inner(),
            ..ServedRow::of(node)
        };
        let mut rows: Vec<ServedRow> = taken.into_iter().map(row).collect();
        rows.sort_unstable_by_key(|row| row.node);
        rows
    }

    /// Counts rows again that could not be reported.
    pub fn put_back(&self, rows: &[ServedRow]) {
        for row in rows {
            self.add(row.node, Purpose::Egress, row.egress_bytes);
            self.add(row.node, Purpose::Repair, row.repair_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever threads count while reports are taken, every byte is reported once.
    #[test]
    fn nothing_is_lost_or_counted_twice() {
        const THREADS: u64 = 4;
        const ADDS: u64 = 20_000;
        let meter = ServedMeter::default();
        let mut sums: HashMap<NodeId, (u64, u64)> = HashMap::new();
        let mut collect = |rows: Vec<ServedRow>| {
            for row in rows {
                let sum = sums.entry(row.node).or_default();
                *sum = (sum.0 + row.egress_bytes, sum.1 + row.repair_bytes);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                let meter = meter.clone();
                scope.spawn(move || {
                    for at in 0..ADDS {
                        let purpose = if at % 4 == 0 { Purpose::Repair } else { Purpose::Egress };
                        meter.add(NodeId([(at % 3) as u8; 32]), purpose, 1);
                    }
                });
            }
            for at in 0..200 {
                let rows = meter.take();
                if at % 2 == 0 { meter.put_back(&rows) } else { collect(rows) }
            }
        });
        collect(meter.take());
        let egress: u64 = sums.values().map(|sum| sum.0).sum();
        let repair: u64 = sums.values().map(|sum| sum.1).sum();
        assert_eq!((egress, repair), (THREADS * ADDS * 3 / 4, THREADS * ADDS / 4));
    }
}
