//! Makes it a fact who is up, which disks are gone and which are nearly full: the leader proposes only transitions, from
//! heartbeats it heard.
//!
//! ```text
//! node ─ heartbeat ────────────────────────────> leader ─ Judge ─> up, down
//! node ─ unanswered: heartbeat, to pass on ─> other voters ─ in theirs ─> leader
//! ```
//!
//! A node is down once nobody heard it: a line that is cut between it and the leader alone does not make it so. One that goes
//! and comes often must be heard for a while without a break before it counts as up again.
//!
//! A node names all of its disks in each heartbeat. One that it had and names no longer failed, was replaced, emptied or taken
//! out of its configuration: it is missing, and what it held is made again elsewhere until it is named again.

mod judge;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use makai_erasure::{DiskId, NodeId};
use makai_raft::facts::cluster::{Condition, Disk, Standing};
use makai_raft::facts::command::Command;

use super::Shell;
use crate::clock;
use crate::members::{DiskBeat, Heard};

pub use judge::Judge;
use judge::SILENCE_MAX;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What is heard of a disk becomes a fact once it was so all the time for so long: longer than a map takes to come round.
const HOLDS_FOR: Duration = Duration::from_secs(5);
/// A disk with less room than this part of its size is nearly full, and is so no more with twice that.
const FULL_PARTS: u64 = 50;
/// Of a large disk, less is enough: several of the largest segments.
const FULL_BYTES_MAX: u64 = 16 << 30;
/// Of a small one, more is needed, though no more than a part: what is left at the ends of open segments takes no large shard.
const FULL_BYTES_MIN: u64 = 64 << 20;
const FULL_PARTS_MIN: u64 = 20;

/// How a disk is that had `before`, by what its node says of it. Pure.
fn condition(beat: Option<&DiskBeat>, before: Condition) -> Condition {
    let Some(beat) = beat else { return Condition::Missing };
    let at_ends = FULL_BYTES_MIN.min(beat.capacity_bytes / FULL_PARTS_MIN);
    let least = (beat.capacity_bytes / FULL_PARTS).min(FULL_BYTES_MAX).max(at_ends);
    match before {
        Condition::Full if beat.free_bytes < 2 * least => Condition::Full,
        _ if beat.free_bytes < least => Condition::Full,
        _ => Condition::Well,
    }
}

/// Disks that are otherwise than their fact says, as far as their nodes were heard of lately. Pure.
fn changed_disks(
    disks: &[Disk],
    heard: &HashMap<NodeId, Heard>,
    now: Instant,
) -> BTreeSet<(DiskId, Condition)> {
    let of = |disk: &Disk| {
        let heard = heard.get(&disk.node).filter(|heard| now.duration_since(heard.at) <= SILENCE_MAX)?;
        let now = condition(heard.disks.iter().find(|beat| beat.disk == disk.id), disk.condition);
        (now != disk.condition).then_some((disk.id, now))
    };
    disks.iter().filter(|disk| disk.standing != Standing::Lost).filter_map(of).collect()
}

/// Makes facts of conditions that were so all the time for [`HOLDS_FOR`].
async fn note_conditions(shell: &Shell, since: &mut BTreeMap<(DiskId, Condition), Instant>) {
    let now = clock::instant();
    let changed = changed_disks(&shell.map.get().map.disks, &shell.members.heard(), now);
    since.retain(|change, _| changed.contains(change));
    for (disk, condition) in changed {
        let since = *since.entry((disk, condition)).or_insert(now);
        if now.duration_since(since) < HOLDS_FOR {
            continue;
        }
        match condition {
            Condition::Missing => {
                tracing::warn!(%disk, "its node does not have this disk any more: its shards are made again elsewhere until it is back")
            }
            Condition::Full => {
                tracing::warn!(%disk, "this disk is nearly full: it takes no new slots, and gives some away")
            }
            Condition::Well => tracing::info!(%disk, "this disk is well again"),
        }
        match shell.facts.propose(Command::SetDiskCondition { disk, condition }).await {
            Ok(_) => shell.map_changed.notify_one(),
            Err(error) => tracing::debug!(%disk, %error, "its condition was not noted"),
        }
    }
}

pub async fn run(shell: Shell) {
    let mut changed_since = BTreeMap::new();
    let mut leading_since = None;
    let mut judge = Judge::default();
    while shell.pause(LOOK_EVERY).await {
        if !shell.is_leader() {
            leading_since = None;
            judge = Judge::default();
            changed_since.clear();
            continue;
        }
        note_conditions(&shell, &mut changed_since).await;
        let since = *leading_since.get_or_insert_with(clock::instant);
        let heard = shell.members.heard().into_iter().map(|(id, heard)| (id, heard.at)).collect();
        for (node, is_up) in judge.transitions(&shell.map.get().map.nodes, &heard, since, clock::instant()) {
            tracing::info!(%node, is_up, "a node's reachability changed");
            if let Err(error) = shell.facts.propose(Command::SetNodeUp { node, is_up }).await {
                tracing::debug!(%node, %error, "its reachability was not noted");
            }
            shell.map_changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use makai_raft::facts::Timestamp;

    fn beat(id: u8, free_bytes: u64) -> DiskBeat {
        DiskBeat {
            disk: DiskId([id; 16]),
            capacity_bytes: 1000,
            free_bytes,
            shard_count: 0,
            live_bytes: 0,
            held_bytes: 0,
            set_aside_bytes: 0,
            body_bytes: 0,
        }
    }

    #[test]
    fn a_disk_that_its_node_names_no_longer_is_missing_until_it_is_named_again() {
        let now = clock::instant() + Duration::from_secs(100);
        let disk = |id: u8, node: u8, standing, condition| Disk {
            id: DiskId([id; 16]),
            node: NodeId([node; 32]),
            capacity_bytes: 1,
            standing,
            added_at: Timestamp(0),
            condition,
            speed_bytes_per_sec: 0,
        };
        let heard = |at, disks| Heard {
            at,
            disks,
            repair: Default::default(),
            filled: vec![],
            compute: None,
            line: Default::default(),
        };
        let heard = HashMap::from([
            (NodeId([1; 32]), heard(now, vec![beat(11, 500), beat(14, 500)])),
            (NodeId([2; 32]), heard(now - Duration::from_secs(50), vec![])),
        ]);
        let disks = [
            disk(11, 1, Standing::Active, Condition::Well),
            disk(12, 1, Standing::Active, Condition::Well),
            disk(13, 1, Standing::Lost, Condition::Well),
            disk(14, 1, Standing::Active, Condition::Missing),
            disk(15, 1, Standing::Active, Condition::Missing),
            disk(21, 2, Standing::Active, Condition::Well),
            disk(31, 3, Standing::Active, Condition::Well),
        ];
        let changed = [(DiskId([12; 16]), Condition::Missing), (DiskId([14; 16]), Condition::Well)];
        assert_eq!(changed_disks(&disks, &heard, now), BTreeSet::from(changed));
    }

    #[test]
    fn a_disk_is_full_below_one_mark_and_well_above_another() {
        use Condition::{Full, Missing, Well};
        let steps =
            [(50, Well, Well), (49, Well, Full), (99, Full, Full), (100, Full, Well), (49, Missing, Full)];
        for (free, before, after) in steps {
            assert_eq!(condition(Some(&beat(1, free)), before), after, "{free} of 1000 free");
        }
        assert_eq!(condition(None, Full), Missing);
        let of = |capacity_bytes, free_bytes| {
            condition(Some(&DiskBeat { capacity_bytes, ..beat(1, free_bytes) }), Well)
        };
        for (capacity, least) in [(2 << 30, 64 << 20), (100 << 30, 2 << 30), (8 << 40, 16 << 30)] {
            assert_eq!((of(capacity, least), of(capacity, least - 1)), (Well, Full), "of {capacity}");
        }
    }
}
