//! What `/metrics` says of this node: counts that loops and doors kept, and how things are now.
//!
//! ```text
//! loops, doors ─ counters, histograms ─> recorder ┐
//! this node's state, when somebody asks ─ gauges ─┴─> a page of Prometheus text
//! ```
//!
//! Always: nothing here asks another node or waits for a disk, so that a cluster in trouble can still be looked at.

use std::time::Duration;

use anyhow::Context as _;
use makai_ops::metrics as names;
use makai_raft::facts::cluster::{ClusterMap, Condition, Disk, Standing};
use makai_raft::handle::MetaStatus;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Status;
use super::lost;
use crate::reconcile::Shell;
use crate::{clock, process};

/// States of disks, as `state` names them.
const DISK_STATES: [&str; 5] = ["well", "full", "missing", "draining", "lost"];

/// Bounds of what histograms count, in seconds: from a page out of memory to a client that waits in vain.
const SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// What histograms were told waits in memory until it is counted: this often, whether or not anybody asks.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The process's recorder. One serves a process: with several nodes in one, the first one's console has the metrics.
///
/// # Errors
/// None: the bounds are not empty.
pub(super) fn install(tasks: &TaskTracker, stop: &CancellationToken) -> anyhow::Result<PrometheusHandle> {
    let builder = PrometheusBuilder::new().set_buckets(&SECONDS).context("the bounds of histograms")?;
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_ok() {
        names::describe();
        let (handle, stop) = (handle.clone(), stop.clone());
        tasks.spawn(async move {
            while stop.run_until_cancelled(tokio::time::sleep(UPKEEP_EVERY)).await.is_some() {
                handle.run_upkeep();
            }
        });
    }
    Ok(handle)
}

/// Brings the recorder up to date.
pub(super) fn gather(shell: &Shell, status: &Status) {
    disks(shell, status);
    if let Some(voter) = shell.members.meta().map(makai_raft::handle::MetaNode::status) {
        agreement(&voter);
    }
    peers(shell);
    repair(shell, status);
    if status.is_leader {
        cluster(&status.map);
    }
    this_process();
}

fn disks(shell: &Shell, status: &Status) {
    let sum = |of: fn(&crate::members::DiskBeat) -> u64| status.disks.iter().map(of).sum::<u64>() as f64;
    metrics::gauge!(names::ERASURE_DISK_FREE_BYTES).set(sum(|disk| disk.free_bytes));
    metrics::gauge!(names::ERASURE_DISK_USED_BYTES)
        .set(sum(|disk| disk.capacity_bytes.saturating_sub(disk.free_bytes)));
    metrics::gauge!(names::ERASURE_HELD_BYTES).set(sum(|disk| disk.held_bytes));
    metrics::gauge!(names::ERASURE_GARBAGE_BYTES).set(sum(|disk| {
        disk.held_bytes.saturating_sub(disk.live_bytes).saturating_sub(disk.set_aside_bytes)
    }));
    metrics::gauge!(names::ERASURE_SHARDS).set(sum(|disk| disk.shard_count));
    let out = shell.disks.all().filter(|(disk, _)| !shell.disks.is_here(**disk)).count();
    metrics::gauge!(names::ERASURE_DISKS_OUT).set(out as f64);
    metrics::counter!(names::DAEMON_DAMAGED_SHARDS).absolute(shell.disks.damage_count());
}

fn agreement(voter: &MetaStatus) {
    metrics::gauge!(names::RAFT_LEADER).set(f64::from(u8::from(voter.is_leader)));
    metrics::gauge!(names::RAFT_TERM).set(voter.term as f64);
    metrics::gauge!(names::RAFT_APPLIED_INDEX).set(voter.applied.unwrap_or(0) as f64);
    metrics::gauge!(names::RAFT_LOG_INDEX).set(voter.last_log.unwrap_or(0) as f64);
    metrics::gauge!(names::RAFT_LOG_BYTES).set(voter.log_bytes as f64);
    metrics::gauge!(names::RAFT_VOTERS).set(voter.voters.len() as f64);
    metrics::gauge!(names::RAFT_LAG).set(lag(voter) as f64);
}

/// Entries that the one furthest behind does not have; 0 where this voter does not lead.
fn lag(voter: &MetaStatus) -> u64 {
    if !voter.is_leader {
        return 0;
    }
    let next = |index: Option<u64>| index.map_or(0, |index| index + 1);
    let least = voter.matched.iter().map(|(_, matched)| next(*matched)).min();
    least.map_or(0, |least| next(voter.last_log).saturating_sub(least))
}

fn peers(shell: &Shell) {
    let stats = shell.transport.stats();
    metrics::gauge!(names::DAEMON_PEERS).set(stats.connections as f64);
    metrics::counter!(names::DAEMON_SERVED_MESSAGES).absolute(stats.requests_served);
    metrics::counter!(names::DAEMON_FAILED_DIALS).absolute(stats.dials_failed);
    for (reason, count) in [
        ("connection", stats.connections_refused),
        ("handshake", stats.handshakes_failed),
        ("malformed", stats.streams_malformed),
        ("stalled", stats.streams_stalled),
    ] {
        metrics::counter!(names::DAEMON_REFUSED_MESSAGES, "reason" => reason).absolute(count);
    }
}

fn repair(shell: &Shell, status: &Status) {
    metrics::gauge!(names::DAEMON_MISSING_SHARDS).set(status.repair.pending as f64);
    metrics::gauge!(names::DAEMON_MISSING_BYTES).set(status.repair.pending_bytes as f64);
    metrics::gauge!(names::DAEMON_GONE_BLOBS).set(status.repair.gone_blobs as f64);
    metrics::gauge!(names::DAEMON_AWAY_BLOBS).set(status.repair.away_blobs as f64);
    metrics::counter!(names::DAEMON_REPAIRED_SHARDS).absolute(status.repair.rebuilt_shards);
    metrics::counter!(names::DAEMON_REPAIRED_BYTES).absolute(status.repair.rebuilt_bytes);
    metrics::counter!(names::DAEMON_REPAIR_FAILURES).absolute(status.repair.failures);
    metrics::counter!(names::DAEMON_SCRUBBED_BYTES).absolute(status.repair.scrubbed_bytes);
    let unreadable = if status.is_leader { lost::unreadable_groups(&shell.map.get().map).len() } else { 0 };
    metrics::gauge!(names::DAEMON_UNREADABLE_GROUPS).set(unreadable as f64);
}

/// What the leader knows of all; another leader's scrape replaces it, and `max by (state)` draws it.
fn cluster(map: &ClusterMap) {
    let kept = || map.nodes.iter().filter(|node| node.standing != Standing::Lost);
    for (state, is_up) in [("up", true), ("down", false)] {
        let count = kept().filter(|node| node.is_up == is_up).count();
        metrics::gauge!(names::DAEMON_NODES, "state" => state).set(count as f64);
    }
    for state in DISK_STATES {
        let count = map.disks.iter().filter(|disk| state_of(map, disk) == state).count();
        metrics::gauge!(names::DAEMON_DISKS, "state" => state).set(count as f64);
    }
}

fn state_of(map: &ClusterMap, disk: &Disk) -> &'static str {
    let node = map.nodes.iter().find(|node| node.id == disk.node).map(|node| node.standing);
    match (node, disk.standing, disk.condition) {
        (Some(Standing::Lost), _, _) | (_, Standing::Lost, _) => "lost",
        (Some(Standing::Draining), _, _) | (_, Standing::Draining, _) => "draining",
        (_, _, Condition::Missing) => "missing",
        (_, _, Condition::Full) => "full",
        (_, _, Condition::Well) => "well",
    }
}

fn this_process() {
    let Ok(usage) = process::usage(std::process::id()) else { return };
    metrics::gauge!(names::DAEMON_RESIDENT_BYTES).set(usage.memory_bytes as f64);
    metrics::counter!(names::DAEMON_PROCESSOR_SECONDS).absolute(usage.cpu.as_secs());
    metrics::gauge!(names::DAEMON_STARTED).set(clock::now().0 as f64 / 1000.0 - usage.age.as_secs_f64());
    if let Ok(files) = process::open_files() {
        metrics::gauge!(names::DAEMON_OPEN_FILES).set(files as f64);
    }
}

#[cfg(test)]
mod tests {
    use makai_erasure::NodeId;

    use super::*;

    #[test]
    fn the_lag_is_that_of_the_one_furthest_behind() {
        let mut voter = MetaStatus {
            number: 1,
            term: 1,
            leader: None,
            is_leader: true,
            last_log: Some(9),
            applied: Some(9),
            durable: None,
            purged: None,
            voters: vec![(1, NodeId([1; 32])), (2, NodeId([2; 32]))],
            learners: Vec::new(),
            matched: vec![(1, Some(9)), (2, Some(4)), (3, None)],
            log_bytes: 0,
            rewound: Vec::new(),
            held_back: None,
        };
        assert_eq!(lag(&voter), 10);
        voter.matched.pop();
        assert_eq!(lag(&voter), 5);
        voter.is_leader = false;
        assert_eq!(lag(&voter), 0);
    }
}
