//! Blobs of which fewer shards are left than it takes to read them: whether they may come back, and who tells of each.
//!
//! ```text
//! a rebuild finds too few shards ─ survey ─> what became of each ─ judge ─> away | gone ─> told by one node, with its heartbeat
//! a group has too few disks      ─ outlook ─> away | gone, all of its blobs ──────────────> counted by whoever shows it
//! ```
//!
//! Always: a blob is counted once, by the node of the first slot that is found without its shard, or with its group; nothing is
//! called gone while disks that are away could bring it back.

use makai_erasure::stripe::ShardPeers;
use makai_erasure::{BlobId, PgId, ShardKey};
use makai_raft::facts::cluster::{ClusterMap, Condition, Group, Standing};
use serde::{Deserialize, Serialize};

/// Blobs that one answer to [`crate::members::LOST`] names.
pub const NAMED_MAX: usize = 10_000;

/// What became of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Here,
    /// Its disk answers and does not have it, or not as it was.
    Missing,
    /// Its disk does not answer now.
    Away,
    /// Its disk is out for good.
    Removed,
}

/// Why something cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unreadable {
    /// Disks that do not answer now could bring it back.
    Away,
    /// Nothing that is known of could.
    Gone,
}

/// A blob that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostBlob {
    pub blob: BlobId,
    pub pg: PgId,
    pub why: Unreadable,
}

/// Whether a blob of which these shards are known cannot be read, and why. Pure.
#[must_use]
pub fn judge(data: u8, fates: &[Fate]) -> Option<Unreadable> {
    let count = |fate: Fate| fates.iter().filter(|known| **known == fate).count();
    let here = count(Fate::Here);
    if here >= usize::from(data) {
        None
    } else if here + count(Fate::Away) >= usize::from(data) {
        Some(Unreadable::Away)
    } else {
        Some(Unreadable::Gone)
    }
}

/// Whether it is for the node of this slot to tell: that of the first whose disk answers and does not have its shard. Pure.
#[must_use]
pub fn is_told_by(slot: u8, fates: &[Fate]) -> bool {
    fates.iter().position(|fate| *fate == Fate::Missing) == Some(usize::from(slot))
}

/// What the map says of a slot's disk.
fn fate_of_disk(map: &ClusterMap, group: &Group, slot: usize) -> Fate {
    let disk = group.disks.get(slot).and_then(|id| map.disks.iter().find(|disk| disk.id == *id));
    let Some(disk) = disk else { return Fate::Removed };
    let node = map.nodes.iter().find(|node| node.id == disk.node);
    match node {
        Some(node) if disk.standing.worse(node.standing) != Standing::Lost => {
            if node.is_up && disk.condition != Condition::Missing { Fate::Here } else { Fate::Away }
        }
        _ => Fate::Removed,
    }
}

/// Whether nothing of a group can be read, as its disks are. Pure.
#[must_use]
pub fn outlook(map: &ClusterMap, group: &Group) -> Option<Unreadable> {
    let fates: Vec<Fate> = (0..group.disks.len()).map(|slot| fate_of_disk(map, group, slot)).collect();
    judge(group.scheme.data, &fates)
}

/// What became of a blob's shards, beyond those that a rebuild found `gone`. Cost: one question for each of the others.
pub async fn survey(
    peers: &dyn ShardPeers,
    map: &ClusterMap,
    group: &Group,
    blob: BlobId,
    gone: &[u8],
) -> Vec<Fate> {
    let slots = (0u8..).zip(&group.disks);
    let ask = slots.map(|(index, disk)| async move {
        match fate_of_disk(map, group, index.into()) {
            Fate::Here if gone.contains(&index) => Fate::Missing,
            Fate::Here => match peers.footer(*disk, ShardKey { blob, index }).await {
                Ok(_) => Fate::Here,
                Err(error) if error.is_gone() => Fate::Missing,
                Err(_) => Fate::Away,
            },
            other => other,
        }
    });
    futures::future::join_all(ask).await
}

#[cfg(test)]
mod tests {
    use super::Fate::{Away, Here, Missing, Removed};
    use super::*;

    #[test]
    fn what_may_come_back_is_not_called_gone() {
        assert_eq!(judge(2, &[Here, Here, Missing, Removed]), None, "two are enough");
        assert_eq!(judge(2, &[Here, Missing, Missing, Away]), Some(Unreadable::Away));
        assert_eq!(judge(2, &[Missing, Missing, Away, Away]), Some(Unreadable::Away));
        assert_eq!(judge(2, &[Here, Missing, Missing, Missing]), Some(Unreadable::Gone));
        assert_eq!(judge(2, &[Away, Removed, Missing, Removed]), Some(Unreadable::Gone));
    }

    /// Of all nodes that miss a shard of a blob, one counts it.
    #[test]
    fn a_blob_is_told_by_one_node() {
        let fates = [Removed, Missing, Away, Missing];
        let tell: Vec<u8> = (0..4).filter(|slot| is_told_by(*slot, &fates)).collect();
        assert_eq!(tell, [1]);
        assert!(!(0..2).any(|slot| is_told_by(slot, &[Here, Away])));
    }
}
