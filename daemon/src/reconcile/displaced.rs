//! Deletes shards whose slot has gone to another disk, once that disk holds them: room that a move leaves behind.
//!
//! ```text
//! shards of this disk ─ slot is another disk's ─ since a while ─> does that disk hold the shard? ─ yes ─> delete here
//! ```
//!
//! Always: a shard goes only while its slot's own disk says that it has it; one whose slot moves towards this disk stays.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use makai_erasure::store::{ShardStore, StoredShard};
use makai_erasure::{DiskId, PgId, ShardKey};
use makai_ops::metrics as names;
use makai_raft::facts::cluster::{ClusterMap, Group};

use super::Shell;
use crate::clock;

const LOOK_EVERY: Duration = Duration::from_secs(15);
/// A slot's former disk keeps its shards so long: readers may have an older map.
const DISPLACED_FOR: Duration = Duration::from_secs(30);
const BATCH: usize = 1000;

/// When this node first saw each group at its present version, and up to which its disks were searched.
#[derive(Default)]
struct Seen {
    groups: HashMap<PgId, (u32, Instant)>,
    /// Per disk, the map's epoch whose displaced shards are all gone.
    done: HashMap<DiskId, u64>,
}

pub async fn run(shell: Shell) {
    let mut seen = Seen::default();
    while shell.pause(LOOK_EVERY).await {
        let map = shell.map.get();
        let now = clock::instant();
        for group in &map.map.groups {
            let at = seen.groups.entry(group.id).or_insert((group.version, now));
            if at.0 != group.version {
                *at = (group.version, now);
            }
        }
        for (disk, store) in shell.disks.iter() {
            if seen.done.get(disk) == Some(&map.map.epoch) {
                continue;
            }
            let (deleted, left) = sweep(&shell, &seen, &map.map, *disk, store).await;
            if deleted > 0 {
                tracing::info!(%disk, count = deleted, "shards that moved to other disks were deleted here");
            }
            if left == 0 {
                seen.done.insert(*disk, map.map.epoch);
            }
        }
    }
}

/// Whether a shard on `disk` belongs to a slot that is another disk's and does not come here. Pure.
fn is_displaced(group: &Group, index: u8, disk: DiskId) -> bool {
    let is_own = group.disks.get(usize::from(index)) == Some(&disk);
    let is_coming = group.moves.iter().any(|moving| moving.slot == index && moving.to == disk);
    !is_own && !is_coming
}

/// Deletes what may go of one disk; returns how many went and how many displaced ones are left for later.
async fn sweep(
    shell: &Shell,
    seen: &Seen,
    map: &ClusterMap,
    disk: DiskId,
    store: &ShardStore,
) -> (usize, usize) {
    let groups: HashMap<PgId, &Group> = map.groups.iter().map(|group| (group.id, group)).collect();
    let (mut deleted, mut left, mut after) = (0, 0, None);
    loop {
        let shards = store.list_after(after, BATCH);
        let Some(last) = shards.last() else { return (deleted, left) };
        after = Some(last.key);
        let mut gone = Vec::new();
        for StoredShard { key, pg, .. } in shards {
            let Some(group) = groups.get(&pg).filter(|group| is_displaced(group, key.index, disk)) else {
                continue;
            };
            let is_old = seen.groups.get(&pg).is_some_and(|(_, since)| since.elapsed() >= DISPLACED_FOR);
            if is_old && is_held_elsewhere(shell, group, key).await {
                gone.push(key)
            } else {
                left += 1
            }
            if shell.stop.is_cancelled() {
                return (deleted, left + 1);
            }
        }
        let count = gone.len();
        match store.delete(gone).await {
            Ok(()) => {
                deleted += count;
                metrics::counter!(names::DAEMON_COLLECTED_SHARDS, "reason" => "displaced")
                    .increment(count as u64);
            }
            Err(error) => {
                left += count;
                tracing::warn!(%disk, %error, "displaced shards stay; trying again");
            }
        }
    }
}

async fn is_held_elsewhere(shell: &Shell, group: &Group, key: ShardKey) -> bool {
    match group.disks.get(usize::from(key.index)) {
        Some(owner) => shell.peers.footer(*owner, key).await.is_ok(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use makai_erasure::Scheme;
    use makai_raft::facts::cluster::SlotMove;

    use super::*;

    #[test]
    fn only_what_is_neither_own_nor_coming_is_displaced() {
        let disk = |id: u8| DiskId([id; 16]);
        let group = Group {
            id: PgId(1),
            scheme: Scheme::new(1, 1).unwrap(),
            version: 3,
            disks: vec![disk(1), disk(2)],
            moves: vec![SlotMove { slot: 1, to: disk(3), is_remake: false }],
        };
        let displaced: Vec<(u8, u8)> = (0..2)
            .flat_map(|slot| (1..5).map(move |id| (slot, id)))
            .filter(|(slot, id)| is_displaced(&group, *slot, disk(*id)))
            .collect();
        assert_eq!(displaced, [(0, 2), (0, 3), (0, 4), (1, 1), (1, 4)]);
    }
}
