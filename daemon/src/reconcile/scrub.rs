//! Reads every shard of this node back within the configured period, spread evenly, and has the damaged ones rebuilt.

use std::sync::atomic::Ordering;
use std::time::Duration;

use makai_erasure::store::{ShardStore, StoreError};
use makai_erasure::{DiskId, ShardKey};

use super::Shell;
use crate::clock;

/// Shards listed at once.
const BATCH: usize = 256;
/// Pause before a disk on which there was nothing to read is looked at again.
const IDLE: Duration = Duration::from_secs(60);
/// Shortest and longest pause between two shards: a round that is late still lets others at the disk.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The pause before the next shard of a round that has lasted `since` and read `read` of `shards`, so that all of them take
/// `period`, the time of reading included. Pure.
fn pause_before(read: u64, shards: u64, since: Duration, period: Duration) -> Duration {
    let each = period / u32::try_from(shards.max(1)).unwrap_or(u32::MAX);
    let due = each.saturating_mul(u32::try_from(read.saturating_add(1)).unwrap_or(u32::MAX));
    due.saturating_sub(since).clamp(PAUSE_MIN, PAUSE_MAX)
}

pub async fn run(shell: Shell) {
    let rounds = shell.disks.all().map(|(disk, store)| scrub_disk(&shell, *disk, store));
    futures::future::join_all(rounds).await;
}

async fn scrub_disk(shell: &Shell, disk: DiskId, store: &ShardStore) {
    let period = Duration::from_secs(shell.config.storage.scrub_period_secs);
    let mut after: Option<ShardKey> = None;
    // In this round.
    let mut read = 0;
    let mut begun = clock::instant();
    while !shell.stop.is_cancelled() {
        if !shell.disks.is_here(disk) {
            shell.pause(IDLE).await;
            continue;
        }
        let shards = store.list_after(after, BATCH);
        let Some(last) = shards.last() else {
            after = None;
            shell.progress.scrubs.fetch_add(1, Ordering::Relaxed);
            if std::mem::take(&mut read) == 0 {
                shell.pause(IDLE).await;
            }
            begun = clock::instant();
            continue;
        };
        after = Some(last.key);
        let count = store.usage().shard_count;
        for shard in shards.iter().filter(|shard| !shard.is_damaged) {
            if !shell.pause(pause_before(read, count, begun.elapsed(), period)).await {
                return;
            }
            let verified = store.verify(shard.key).await;
            read += 1;
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
        let (day, none) = (Duration::from_secs(86_400), Duration::ZERO);
        assert_eq!(pause_before(0, 86_400, none, day), Duration::from_secs(1));
        assert_eq!(pause_before(99, 86_400, Duration::from_millis(99_300), day), Duration::from_millis(700));
        assert_eq!(pause_before(99, 86_400, Duration::from_secs(500), day), PAUSE_MIN);
        assert_eq!(pause_before(0, 1, none, day), PAUSE_MAX);
        assert_eq!(pause_before(0, 0, none, day), PAUSE_MAX);
        assert_eq!(pause_before(u64::MAX, u64::MAX, day, day), PAUSE_MIN);
    }
}
