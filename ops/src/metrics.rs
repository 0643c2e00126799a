//! Every metric a node publishes: its name, its unit and what it means.
//!
//! A name is `makai_<crate>_<noun>_<unit>`; a counter ends in `_total`. Labels take few values and never an
//! identity: a tenant, a bucket or a node as a label would grow without bound and tell one about another.
//! Those who count call the `metrics` macros with these names; [`describe`] gives the recorder the rest. `ops/dashboards/`
//! draws them, and says when a person is to look.

use metrics::Unit;

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

/// The metrics: a constant with each one's name, and the table of all of them. A first line of documentation is what
/// scrapers are told.
macro_rules! metrics {
    ($(#[doc = $help:literal] $(#[doc = $more:literal])* $constant:ident = $name:literal, $kind:ident, $unit:ident;)*) => {
        $(#[doc = $help] $(#[doc = $more])* pub const $constant: &str = $name;)*

        /// All of them, in the order of the crates.
        pub const METRICS: &[Metric] =
            &[$(Metric { name: $constant, kind: Kind::$kind, unit: Unit::$unit, help: $help.trim_ascii() }),*];
    };
}

metrics! {
    /// Requests answered, by `door`, `operation` and `code`, which is what the client saw.
    GATEWAY_REQUESTS = "makai_gateway_requests_total", Counter, Count;
    /// By `door` and `operation`: from a request's head to its answer's last byte; at the gRPC door, to its answer's head.
    GATEWAY_REQUEST_SECONDS = "makai_gateway_request_seconds", Histogram, Seconds;
    /// Uploads that hold a window of memory now.
    GATEWAY_UPLOADS = "makai_gateway_uploads_count", Gauge, Count;
    /// Object bytes taken from clients, headers not counted.
    GATEWAY_RECEIVED_BYTES = "makai_gateway_received_bytes_total", Counter, Bytes;
    /// Object bytes answered to clients, headers not counted: what egress is charged by.
    GATEWAY_SENT_BYTES = "makai_gateway_sent_bytes_total", Counter, Bytes;
    /// Requests told to slow down, by the `bound` that was reached: uploads, reads, requests, calls, metadata, or a key's rate.
    GATEWAY_SLOWDOWNS = "makai_gateway_slowdowns_total", Counter, Count;

    /// What this node's disks can still take, the reserve not counted.
    ERASURE_DISK_FREE_BYTES = "makai_erasure_disk_free_bytes", Gauge, Bytes;
    /// What this node's disks cannot take any more, whoever took it.
    ERASURE_DISK_USED_BYTES = "makai_erasure_disk_used_bytes", Gauge, Bytes;
    /// What the segment files of this node take of its disks: live records, room set aside, and garbage.
    ERASURE_HELD_BYTES = "makai_erasure_held_bytes", Gauge, Bytes;
    /// Of those, what dead records take until they are compacted.
    ERASURE_GARBAGE_BYTES = "makai_erasure_garbage_bytes", Gauge, Bytes;
    /// Live shards on this node's disks.
    ERASURE_SHARDS = "makai_erasure_shards_count", Gauge, Count;
    /// Disks of this node that are gone or failed. Anything but 0 is for a person: `ops/runbooks/disks.md`.
    ERASURE_DISKS_OUT = "makai_erasure_disks_out_of_use_count", Gauge, Count;
    /// From a shard's last byte to its group commit, fsync included.
    ERASURE_COMMIT_SECONDS = "makai_erasure_commit_seconds", Histogram, Seconds;

    /// Index of the last log entry applied here. Stands still: no majority, or no writes.
    RAFT_APPLIED_INDEX = "makai_raft_applied_index", Gauge, Count;
    /// Index of the last log entry of this voter.
    RAFT_LOG_INDEX = "makai_raft_log_index", Gauge, Count;
    /// What the entries kept in this voter's log take.
    RAFT_LOG_BYTES = "makai_raft_log_bytes", Gauge, Bytes;
    /// Term. Grows quickly: voters cannot agree on a leader.
    RAFT_TERM = "makai_raft_term_count", Gauge, Count;
    /// 1 on the leader, 0 elsewhere. The sum over all voters is 1.
    RAFT_LEADER = "makai_raft_leader_count", Gauge, Count;
    /// Voters, as this one knows.
    RAFT_VOTERS = "makai_raft_voters_count", Gauge, Count;
    /// On the leader: entries that the voter or learner furthest behind does not have yet.
    RAFT_LAG = "makai_raft_lag_count", Gauge, Count;
    /// From a proposal to its reply, on the node that proposed it.
    RAFT_PROPOSE_SECONDS = "makai_raft_propose_seconds", Histogram, Seconds;
    /// From a question to its answer, on the node that asked it. Those that wait for news are left out.
    RAFT_QUERY_SECONDS = "makai_raft_query_seconds", Histogram, Seconds;

    /// The epoch in which usage is counted now, as this voter knows.
    OPS_OPEN_EPOCH = "makai_ops_open_epoch_index", Gauge, Count;
    /// The last epoch whose claims are signed. Falls behind the open one: voters do not agree, or too few sign.
    OPS_SIGNED_EPOCH = "makai_ops_signed_epoch_index", Gauge, Count;

    /// On the leader: tasks that wait for room, as far as one look reads the queue.
    GPU_RUNTIME_WAITING_TASKS = "makai_gpu_runtime_waiting_tasks_count", Gauge, Count;
    /// On the leader: attempts that nodes have been given and not yet ended.
    GPU_RUNTIME_RUNNING_ATTEMPTS = "makai_gpu_runtime_running_attempts_count", Gauge, Count;

    /// Open connections to peers, of both kinds.
    DAEMON_PEERS = "makai_daemon_peers_count", Gauge, Count;
    /// Requests of peers that were served.
    DAEMON_SERVED_MESSAGES = "makai_daemon_served_messages_total", Counter, Count;
    /// What peers and strangers sent that was refused, by `reason`: connection, handshake, malformed or stalled.
    DAEMON_REFUSED_MESSAGES = "makai_daemon_refused_messages_total", Counter, Count;
    /// Dials of peers that nobody answered.
    DAEMON_FAILED_DIALS = "makai_daemon_failed_dials_total", Counter, Count;
    /// On the leader, by `state`: nodes that are up, or down.
    DAEMON_NODES = "makai_daemon_nodes_count", Gauge, Count;
    /// On the leader, by `state`: disks that are well, full, missing, draining or lost.
    DAEMON_DISKS = "makai_daemon_disks_count", Gauge, Count;
    /// Shards rebuilt by this node and durable where they belong.
    DAEMON_REPAIRED_SHARDS = "makai_daemon_repaired_shards_total", Counter, Count;
    /// Bytes of those shards.
    DAEMON_REPAIRED_BYTES = "makai_daemon_repaired_bytes_total", Counter, Bytes;
    /// Rebuilds that did not come to their end; each is tried again.
    DAEMON_REPAIR_FAILURES = "makai_daemon_repair_failures_total", Counter, Count;
    /// Shards known to be missing and not yet rebuilt, as this node's loop saw them last.
    DAEMON_MISSING_SHARDS = "makai_daemon_missing_shards_count", Gauge, Count;
    /// Bytes of those shards.
    DAEMON_MISSING_BYTES = "makai_daemon_missing_bytes", Gauge, Bytes;
    /// Blobs that cannot be read and never will be. Anything but 0 is for a person: `makai repair lost`.
    ///
    /// More shards are lost than their scheme bears. The sum over all nodes counts each once.
    DAEMON_GONE_BLOBS = "makai_daemon_gone_blobs_count", Gauge, Count;
    /// Blobs that cannot be read until disks that are away come back: `makai repair lost`.
    DAEMON_AWAY_BLOBS = "makai_daemon_away_blobs_count", Gauge, Count;
    /// On the leader: placement groups of which too few disks answer.
    DAEMON_UNREADABLE_GROUPS = "makai_daemon_unreadable_groups_count", Gauge, Count;
    /// Shards whose checksums did not hold, or that were gone, in reads and scrubs; they are rebuilt.
    DAEMON_DAMAGED_SHARDS = "makai_daemon_damaged_shards_total", Counter, Count;
    /// Shard bytes read back to be verified.
    DAEMON_SCRUBBED_BYTES = "makai_daemon_scrubbed_bytes_total", Counter, Bytes;
    /// Shards removed, by `reason`: no fact names them (orphan, garbage), or their slot is another disk's (displaced).
    DAEMON_COLLECTED_SHARDS = "makai_daemon_collected_shards_total", Counter, Count;
    /// Memory of this process that is in RAM.
    DAEMON_RESIDENT_BYTES = "makai_daemon_resident_bytes", Gauge, Bytes;
    /// Processor time that this process took, whole seconds.
    DAEMON_PROCESSOR_SECONDS = "makai_daemon_processor_seconds_total", Counter, Seconds;
    /// File descriptors of this process; `ulimit -n` bounds them.
    DAEMON_OPEN_FILES = "makai_daemon_open_files_count", Gauge, Count;
    /// When this process started, Unix time.
    DAEMON_STARTED = "makai_daemon_started_timestamp_seconds", Gauge, Seconds;
}

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

    const DASHBOARD: &str = include_str!("../dashboards/makai.json");
    const ALERTS: &str = include_str!("../dashboards/alerts.yaml");
    const RUNBOOK: &str = include_str!("../runbooks/alerts.md");

    /// The metrics that a text names. Panics at one that there is none of.
    fn named(text: &str) -> BTreeSet<&'static str> {
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let words = text.split(|c| !is_part(c)).filter(|word| word.starts_with("makai_"));
        let known = |word: &str| {
            let ends = ["_bucket", "_sum", "_count"].map(|end| word.strip_suffix(end));
            METRICS.iter().find(|metric| {
                metric.name == word || metric.kind == Kind::Histogram && ends.contains(&Some(metric.name))
            })
        };
        words.map(|word| known(word).unwrap_or_else(|| panic!("no metric is called {word}")).name).collect()
    }

    #[test]
    fn the_dashboard_draws_every_metric_and_no_other() {
        serde_json::from_str::<serde_json::Value>(DASHBOARD).unwrap();
        assert_eq!(named(DASHBOARD), METRICS.iter().map(|metric| metric.name).collect());
    }

    #[test]
    fn every_alert_looks_at_metrics_that_there_are_and_has_its_page() {
        named(ALERTS);
        named(RUNBOOK);
        let alerts: Vec<&str> =
            ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
        let pages: Vec<&str> = RUNBOOK.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(alerts, pages);
        assert!(alerts.len() > 10);
    }

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
            assert!(metric.help.ends_with(['.', '`']), "{name}: {:?}", metric.help);
            match metric.unit {
                Unit::Bytes => assert!(name.contains("_bytes"), "{name}"),
                Unit::Seconds => assert!(name.contains("_seconds"), "{name}"),
                _ => assert!(["_total", "_count", "_index"].iter().any(|end| name.ends_with(end)), "{name}"),
            }
        }
    }
}
