//! Deletes shards that no fact names: of writes that failed, of blobs forgotten while this node was away.
//!
//! Age tells an orphan from a write under way: a blob older than `BLOB_OPEN_MS_MAX` can no longer be committed.

use std::time::Duration;

use makai_erasure::ShardKey;
use makai_erasure::store::ShardStore;
use makai_ops::metrics as names;
use makai_raft::facts::command::BLOB_OPEN_MS_MAX;
use makai_raft::facts::query::{Answer, Query};
use makai_raft::handle::MetaError;

use super::Shell;
use crate::clock;

const SCAN_EVERY: Duration = Duration::from_secs(600);
const BATCH: usize = 1000;

pub async fn run(shell: Shell) {
    while shell.pause(SCAN_EVERY).await {
        for (disk, store) in shell.disks.iter() {
            match scan(&shell, store).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(%disk, count, "orphan shards deleted"),
                Err(error) => {
                    tracing::debug!(%disk, %error, "orphans were not looked for; trying again later")
                }
            }
        }
    }
}

/// Deletes the orphans of one disk; returns how many.
///
/// # Errors
/// The facts do not answer: nothing further is deleted.
pub async fn scan(shell: &Shell, store: &ShardStore) -> Result<usize, MetaError> {
    let age_ms = shell.config.storage.orphan_age_secs.saturating_mul(1000).max(2 * BLOB_OPEN_MS_MAX);
    let mut after = None;
    let mut deleted = 0;
    loop {
        let shards = store.list_after(after, BATCH);
        let Some(last) = shards.last() else { return Ok(deleted) };
        after = Some(last.key);
        let opened_before = clock::now().0.saturating_sub(age_ms);
        let old: Vec<ShardKey> =
            shards.iter().filter(|shard| shard.opened_at_ms < opened_before).map(|shard| shard.key).collect();
        let ids = old.iter().map(|key| key.blob).collect();
        let Answer::BlobStates(states) = shell.facts.query(Query::BlobStates { ids }).await? else {
            return Ok(deleted);
        };
        let orphans: Vec<ShardKey> =
            old.into_iter().zip(states).filter(|(_, state)| state.is_none()).map(|(key, _)| key).collect();
        let count = orphans.len();
        match store.delete(orphans).await {
            Ok(()) => {
                deleted += count;
                metrics::counter!(names::DAEMON_COLLECTED_SHARDS, "reason" => "orphan")
                    .increment(count as u64);
            }
            Err(error) => tracing::warn!(%error, "orphans stay"),
        }
    }
}
