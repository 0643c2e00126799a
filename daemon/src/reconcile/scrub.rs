//! Reads every shard of this node back within the configured period, spread evenly, and has the damaged ones rebuilt.

use std::sync::atomic::Ordering;
use std::time::Duration;

use makai_erasure::store::{ShardStore, StoreError};
use makai_erasure::{DiskId, ShardKey};

use super::Shell;

/// Shards listed at once.
const BATCH: usize = 256;
/// Pause before a disk on which there was nothing to read is looked at again.
const IDLE: Duration = Duration::from_secs(60);
/// Shortest and longest pause between two shards.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The pause after each shard, so that `shards` of them take `period`. Pure.
fn pause_between(shards: u64, period: Duration) -> Duration {
    let each = period / u32::try_from(shards.max(1)).unwrap_or(u32::MAX);
    each.clamp(PAUSE_MIN, PAUSE_MAX)
}

pub async fn run(shell: Shell) {
    let rounds = shell.disks.all().map(|(disk, store)| scrub_disk(&shell, *disk, store));
    futures::future::join_all(rounds).await;
}

async fn scrub_disk(shell: &Shell, disk: DiskId, store: &ShardStore) {
    let period = Duration::from_secs(shell.config.storage.scrub_period_secs);
    let mut after: Option<ShardKey> = None;
    // In this round.
    let mut has_read = false;
    while !shell.stop.is_cancelled() {
        if !shell.disks.is_here(disk) {
            shell.pause(IDLE).await;
            continue;
        }
        let shards = store.list_after(after, BATCH);
        let Some(last) = shards.last() else {
            after = None;
            shell.progress.scrubs.fetch_add(1, Ordering::Relaxed);
            if !std::mem::take(&mut has_read) {
                shell.pause(IDLE).await;
            }
            continue;
        };
        after = Some(last.key);
        let pause = pause_between(store.usage().shard_count, period);
        for shard in shards.iter().filter(|shard| !shard.is_damaged) {
            if !shell.pause(pause).await {
                return;
            }
            let verified = store.verify(shard.key).await;
            has_read = true;
            shell.progress.scrubbed_bytes.fetch_add(shard.len, Ordering::Relaxed);
            match verified {
                Err(error @ StoreError::Corrupt { .. }) => shell.disks.note_damage(&error),
                Ok(()) | Err(StoreError::Missing { .. }) => {}
                Err(error) => tracing::warn!(%error, "a shard could not be read back"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_takes_its_period_within_bounds() {
        let day = Duration::from_secs(86_400);
        assert_eq!(pause_between(86_400, day), Duration::from_secs(1));
        assert_eq!(pause_between(1, day), PAUSE_MAX);
        assert_eq!(pause_between(0, day), PAUSE_MAX);
        assert_eq!(pause_between(u64::MAX, day), PAUSE_MIN);
    }
}
