//! What a gateway counts while it serves: bytes that each node gave, by what for, and what each tenant sent and took. A
//! piece of a body costs one lookup and one addition; the sums leave once an epoch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use makai_erasure::NodeId;
use makai_raft::facts::accounts::{ServedRow, TenantRow};
use makai_raft::facts::tenant::TenantId;

/// Nodes, and tenants, counted at once; what more would serve goes uncounted until the next report.
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

#[derive(Debug, Default)]
struct TenantCounts {
    ingress_bytes: AtomicU64,
    egress_bytes: AtomicU64,
    requests: AtomicU64,
}

/// What is counted of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Bytes that it sent.
    Ingress,
    /// Bytes that were sent to it.
    Egress,
    Requests,
}

/// Counts since the last [`take`](Self::take). Cheap to clone; all clones count together.
#[derive(Debug, Clone, Default)]
pub struct ServedMeter {
    nodes: Arc<RwLock<HashMap<NodeId, Counts>>>,
    tenants: Arc<RwLock<HashMap<TenantId, TenantCounts>>>,
}

/// Adds to the counts of one `key`, which it makes where there is room for it.
fn count<K: Eq + std::hash::Hash, C: Default>(counts: &RwLock<HashMap<K, C>>, key: K, add: impl Fn(&C)) {
    if let Some(known) = counts.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
        add(known);
        return;
    }
    let mut counts = counts.write().unwrap_or_else(PoisonError::into_inner);
    if counts.len() < NODES_MAX || counts.contains_key(&key) {
        add(counts.entry(key).or_default());
    }
}

impl ServedMeter {
    pub fn add(&self, node: NodeId, purpose: Purpose, bytes: u64) {
        count(&self.nodes, node, |counts| {
            let sum = match purpose {
                Purpose::Egress => &counts.egress_bytes,
                Purpose::Repair => &counts.repair_bytes,
            };
            sum.fetch_add(bytes, Ordering::Relaxed);
        });
    }

    pub fn add_traffic(&self, tenant: TenantId, what: Traffic, amount: u64) {
        count(&self.tenants, tenant, |counts| {
            let sum = match what {
                Traffic::Ingress => &counts.ingress_bytes,
                Traffic::Egress => &counts.egress_bytes,
                Traffic::Requests => &counts.requests,
            };
            sum.fetch_add(amount, Ordering::Relaxed);
        });
    }

    /// What tenants sent and took; counting begins anew.
    #[must_use]
    pub fn take_traffic(&self) -> Vec<TenantRow> {
        let taken = std::mem::take(&mut *self.tenants.write().unwrap_or_else(PoisonError::into_inner));
        let row = |(tenant, counts): (TenantId, TenantCounts)| TenantRow {
            ingress_bytes: counts.ingress_bytes.into_inner(),
            egress_bytes: counts.egress_bytes.into_inner(),
            requests: counts.requests.into_inner(),
            ..TenantRow::of(tenant)
        };
        let mut rows: Vec<TenantRow> = taken.into_iter().map(row).collect();
        rows.sort_unstable_by_key(|row| row.tenant);
        rows
    }

    /// Counts rows again that could not be reported.
    pub fn put_back_traffic(&self, rows: &[TenantRow]) {
        for row in rows {
            self.add_traffic(row.tenant, Traffic::Ingress, row.ingress_bytes);
            self.add_traffic(row.tenant, Traffic::Egress, row.egress_bytes);
            self.add_traffic(row.tenant, Traffic::Requests, row.requests);
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

    #[test]
    fn traffic_that_could_not_be_reported_is_reported_later() {
        let meter = ServedMeter::default();
        meter.add_traffic(TenantId(2), Traffic::Ingress, 5);
        meter.add_traffic(TenantId(1), Traffic::Requests, 1);
        let rows = meter.take_traffic();
        assert!(meter.take_traffic().is_empty());
        meter.put_back_traffic(&rows);
        meter.add_traffic(TenantId(2), Traffic::Egress, 7);
        let row = TenantRow { ingress_bytes: 5, egress_bytes: 7, ..TenantRow::of(TenantId(2)) };
        assert_eq!(meter.take_traffic(), [TenantRow { requests: 1, ..TenantRow::of(TenantId(1)) }, row]);
    }
}
