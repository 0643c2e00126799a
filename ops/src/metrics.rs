//! Every metric a node publishes: its name, its unit and what it means.
//!
//! A name is `makai_<crate>_<noun>_<unit>`; a counter ends in `_total`. Labels take few values and never an
//! identity: a tenant, a bucket or a node as a label would grow without bound and tell one about another.
//! Those who count call the `metrics` macros with these names; [`describe`] gives the recorder the rest.

use metrics::Unit;

/// Counter by `door`, `operation` and `code`: requests answered, by the code the client saw.
pub const GATEWAY_REQUESTS: &str = "makai_gateway_requests_total";
/// Histogram by `door` and `operation`: from a request's head read to its answer's last byte sent.
pub const GATEWAY_REQUEST_SECONDS: &str = "makai_gateway_request_seconds";
/// Gauge: uploads that hold a window of memory now.
pub const GATEWAY_UPLOADS: &str = "makai_gateway_uploads_count";
/// Counter: object bytes taken from clients, headers not counted.
pub const GATEWAY_RECEIVED_BYTES: &str = "makai_gateway_received_bytes_total";
/// Counter: object bytes answered to clients, headers not counted: what egress is charged by.
pub const GATEWAY_SENT_BYTES: &str = "makai_gateway_sent_bytes_total";
/// Counter by `bound`: requests told to slow down, by the bound that was reached.
pub const GATEWAY_SLOWDOWNS: &str = "makai_gateway_slowdowns_total";

/// Gauge: bytes this node's disks can still take, the reserve not counted.
pub const ERASURE_DISK_FREE_BYTES: &str = "makai_erasure_disk_free_bytes";
/// Gauge: bytes that shards take on this node's disks, dead ones not yet compacted included.
pub const ERASURE_DISK_USED_BYTES: &str = "makai_erasure_disk_used_bytes";
/// Gauge: live shards on this node's disks.
pub const ERASURE_SHARDS: &str = "makai_erasure_shards_count";
/// Histogram: one group commit of shards, fsync included.
pub const ERASURE_COMMIT_SECONDS: &str = "makai_erasure_commit_seconds";
/// Counter: cells whose checksum did not hold when they were read.
pub const ERASURE_CORRUPT_CELLS: &str = "makai_erasure_corrupt_cells_total";

/// Gauge: index of the last log entry applied here. Stands still: no majority, or no writes.
pub const RAFT_APPLIED_INDEX: &str = "makai_raft_applied_index";
/// Gauge: index of the last log entry that is on this node's disk.
pub const RAFT_LOG_INDEX: &str = "makai_raft_log_index";
/// Gauge: term. Grows quickly: voters cannot agree on a leader.
pub const RAFT_TERM: &str = "makai_raft_term_count";
/// Gauge: 1 on the leader, 0 elsewhere. The sum over all voters is 1.
pub const RAFT_LEADER: &str = "makai_raft_leader_count";
/// Histogram: from a proposal to its reply, on the node that proposed it.
pub const RAFT_PROPOSE_SECONDS: &str = "makai_raft_propose_seconds";

/// Gauge: peers with an open connection.
pub const DAEMON_PEERS: &str = "makai_daemon_peers_count";
/// Counter by `reason`: messages of peers that were refused as malformed or not allowed.
pub const DAEMON_REFUSED_MESSAGES: &str = "makai_daemon_refused_messages_total";
/// Counter: shards rebuilt by this node and durable where they belong.
pub const DAEMON_REPAIRED_SHARDS: &str = "makai_daemon_repaired_shards_total";
/// Counter: bytes of those shards.
pub const DAEMON_REPAIRED_BYTES: &str = "makai_daemon_repaired_bytes_total";
/// Gauge: shards known to be missing and not yet rebuilt, as this node's loop saw them last.
pub const DAEMON_MISSING_SHARDS: &str = "makai_daemon_missing_shards_count";
/// Gauge: blobs that cannot be read and never will be: more shards are lost than their scheme bears. The sum over all nodes
/// counts each once. Anything but 0 is for a person: `makai repair lost`.
pub const DAEMON_GONE_BLOBS: &str = "makai_daemon_gone_blobs_count";
/// Gauge: blobs that cannot be read until disks that are away come back. As above.
pub const DAEMON_AWAY_BLOBS: &str = "makai_daemon_away_blobs_count";
/// Gauge, on the leader: placement groups of which too few disks answer.
pub const DAEMON_UNREADABLE_GROUPS: &str = "makai_daemon_unreadable_groups_count";
/// Counter: shard bytes read back and found whole.
pub const DAEMON_SCRUBBED_BYTES: &str = "makai_daemon_scrubbed_bytes_total";
/// Counter: shards removed because no fact named them.
pub const DAEMON_COLLECTED_SHARDS: &str = "makai_daemon_collected_shards_total";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// What a recorder and a dashboard need to know of one metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub help: &'static str,
}

/// All of them, in the order of the crates.
pub const METRICS: &[Metric] = {
    use Kind::{Counter, Gauge, Histogram};
    use Unit::{Bytes, Count, Seconds};
    const fn metric(name: &'static str, kind: Kind, unit: Unit, help: &'static str) -> Metric {
        Metric { name, kind, unit, help }
    }
    &[
        metric(GATEWAY_REQUESTS, Counter, Count, "Requests answered, by door, operation and code."),
        metric(
            GATEWAY_REQUEST_SECONDS,
            Histogram,
            Seconds,
            "From a request's head to its answer's last byte.",
        ),
        metric(GATEWAY_UPLOADS, Gauge, Count, "Uploads that hold a window of memory now."),
        metric(GATEWAY_RECEIVED_BYTES, Counter, Bytes, "Object bytes taken from clients."),
        metric(GATEWAY_SENT_BYTES, Counter, Bytes, "Object bytes answered to clients."),
        metric(GATEWAY_SLOWDOWNS, Counter, Count, "Requests told to slow down, by the bound reached."),
        metric(ERASURE_DISK_FREE_BYTES, Gauge, Bytes, "Bytes this node's disks can still take."),
        metric(ERASURE_DISK_USED_BYTES, Gauge, Bytes, "Bytes that shards take on this node's disks."),
        metric(ERASURE_SHARDS, Gauge, Count, "Live shards on this node's disks."),
        metric(ERASURE_COMMIT_SECONDS, Histogram, Seconds, "One group commit of shards, fsync included."),
        metric(ERASURE_CORRUPT_CELLS, Counter, Count, "Cells whose checksum did not hold when read."),
        metric(RAFT_APPLIED_INDEX, Gauge, Count, "Index of the last log entry applied here."),
        metric(RAFT_LOG_INDEX, Gauge, Count, "Index of the last log entry on this node's disk."),
        metric(RAFT_TERM, Gauge, Count, "Term of the metadata group."),
        metric(RAFT_LEADER, Gauge, Count, "1 on the leader, 0 elsewhere."),
        metric(RAFT_PROPOSE_SECONDS, Histogram, Seconds, "From a proposal to its reply."),
        metric(DAEMON_PEERS, Gauge, Count, "Peers with an open connection."),
        metric(DAEMON_REFUSED_MESSAGES, Counter, Count, "Messages of peers that were refused, by reason."),
        metric(DAEMON_REPAIRED_SHARDS, Counter, Count, "Shards rebuilt by this node."),
        metric(DAEMON_REPAIRED_BYTES, Counter, Bytes, "Bytes of shards rebuilt by this node."),
        metric(DAEMON_MISSING_SHARDS, Gauge, Count, "Shards missing and not yet rebuilt."),
        metric(DAEMON_GONE_BLOBS, Gauge, Count, "Blobs that cannot be read and never will be."),
        metric(DAEMON_AWAY_BLOBS, Gauge, Count, "Blobs that cannot be read until disks come back."),
        metric(
            DAEMON_UNREADABLE_GROUPS,
            Gauge,
            Count,
            "Groups of which too few disks answer; on the leader.",
        ),
        metric(DAEMON_SCRUBBED_BYTES, Counter, Bytes, "Shard bytes read back and found whole."),
        metric(DAEMON_COLLECTED_SHARDS, Counter, Count, "Shards removed because no fact named them."),
    ]
};

/// Gives the process's recorder the unit and meaning of every metric. Once, after the recorder is installed.
pub fn describe() {
    for Metric { name, kind, unit, help } in METRICS.iter().copied() {
        match kind {
            Kind::Counter => metrics::describe_counter!(name, unit, help),
            Kind::Gauge => metrics::describe_gauge!(name, unit, help),
            Kind::Histogram => metrics::describe_histogram!(name, unit, help),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_is_makai_crate_noun_unit_and_stands_once() {
        let crates = ["config", "erasure", "raft", "ops", "gateway", "gpu_runtime", "daemon"];
        let mut seen = BTreeSet::new();
        for metric in METRICS {
            let name = metric.name;
            assert!(seen.insert(name), "{name} stands twice");
            let rest = name.strip_prefix("makai_").expect(name);
            assert!(crates.iter().any(|krate| rest.starts_with(&format!("{krate}_"))), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
            match metric.unit {
                Unit::Bytes => assert!(name.contains("_bytes"), "{name}"),
                Unit::Seconds => assert!(name.ends_with("_seconds"), "{name}"),
                _ => assert!(["_total", "_count", "_index"].iter().any(|end| name.ends_with(end)), "{name}"),
            }
        }
    }
}
