//! Collects blobs that nothing references: forgotten first, so that nothing can reference them again, then deleted.
//!
//! A crash in between leaves shards that no fact names: the orphan scan of their nodes takes them.

use std::collections::BTreeMap;
use std::time::Duration;

use makai_erasure::{BlobId, DiskId, ShardKey};
use makai_ops::metrics as names;
use makai_raft::facts::cluster::Condition;
use makai_raft::facts::command::Command;
use makai_raft::facts::object::Blob;
use makai_raft::facts::query::{Answer, Query};
use makai_raft::handle::MetaError;

use super::Shell;
use crate::clock;

const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Blobs taken at once.
const BATCH: u32 = 500;

pub async fn run(shell: Shell) {
    while shell.pause(LOOK_EVERY).await {
        while shell.is_leader() {
            match step(&shell).await {
                Ok(count) if count == BATCH as usize => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::debug!(%error, "garbage was not collected; trying again");
                    break;
                }
            }
        }
    }
}

/// One batch: how many blobs were found.
async fn step(shell: &Shell) -> Result<usize, MetaError> {
    // Readers that began before the blob lost its last reference may still need it. Where a disk is full, room is worth more:
    // then only the hour counts that the facts themselves let pass.
    let is_full = shell.map.get().map.disks.iter().any(|disk| disk.condition == Condition::Full);
    let grace_ms = if is_full { 0 } else { shell.config.storage.orphan_age_secs.saturating_mul(1000) };
    let before_ms = clock::now().0.saturating_sub(grace_ms);
    let Answer::Blobs(blobs) = shell.facts.query(Query::Garbage { before_ms, entries_max: BATCH }).await?
    else {
        return Ok(0);
    };
    if blobs.is_empty() {
        return Ok(0);
    }
    let ids: Vec<BlobId> = blobs.iter().map(|blob| blob.id).collect();
    shell.facts.propose(Command::ForgetBlobs { blobs: ids.clone() }).await?;
    let Answer::BlobStates(states) = shell.facts.query(Query::BlobStates { ids }).await? else {
        return Ok(0);
    };
    let map = shell.map.get();
    let mut shards: BTreeMap<DiskId, Vec<ShardKey>> = BTreeMap::new();
    let forgotten = blobs.iter().zip(states).filter(|(_, state)| state.is_none());
    for (Blob { id, pg, .. }, _) in forgotten {
        for (index, disk) in (0u8..).zip(map.group(*pg).map_or(&[][..], |group| &group.disks)) {
            shards.entry(*disk).or_default().push(ShardKey { blob: *id, index });
        }
    }
    for (disk, keys) in shards {
        let count = keys.len();
        match shell.peers.delete(disk, keys).await {
            Ok(()) => {
                metrics::counter!(names::DAEMON_COLLECTED_SHARDS, "reason" => "garbage")
                    .increment(count as u64);
            }
            Err(error) => tracing::debug!(%disk, %error, "garbage stays on a disk until its orphan scan"),
        }
    }
    Ok(blobs.len())
}
