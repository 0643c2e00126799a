//! Makes it a fact who is up, and which disks are gone: the leader proposes only transitions, from heartbeats it heard.
//!
//! A node names all of its disks in each heartbeat. One that it had and names no longer was replaced, emptied or taken out
//! of its configuration: it is lost, and what it held is rebuilt elsewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use makai_erasure::{DiskId, NodeId};
use makai_raft::facts::cluster::{Disk, Node, Standing};
use makai_raft::facts::command::Command;

use super::Shell;
use crate::clock;
use crate::members::Heard;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A node silent for this long is down. Six heartbeats: one lost datagram or a busy second is no outage.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// A disk that its node does not name for so long is lost: longer than a map takes to come round.
const ABSENCE_MAX: Duration = Duration::from_secs(5);

/// Nodes whose fact differs from what was heard. Pure.
///
/// `heard`: when each was last heard; `leading_since`: nobody is down for silence towards an earlier leader.
fn transitions(
    nodes: &[Node],
    heard: &HashMap<NodeId, Instant>,
    leading_since: Instant,
    now: Instant,
) -> Vec<(NodeId, bool)> {
    let of = |node: &Node| {
        let last = heard.get(&node.id).copied().unwrap_or(leading_since).max(leading_since);
        let is_silent = now.duration_since(last) > SILENCE_MAX;
        let was_heard = heard.get(&node.id).is_some_and(|at| now.duration_since(*at) <= SILENCE_MAX);
        match (node.is_up, is_silent, was_heard) {
            (true, true, _) => Some((node.id, false)),
            (false, _, true) => Some((node.id, true)),
            _ => None,
        }
    };
    nodes.iter().filter(|node| node.standing != Standing::Lost).filter_map(of).collect()
}

/// Disks that their nodes, heard of lately, do not have any more. Pure.
fn absent_disks(disks: &[Disk], heard: &HashMap<NodeId, Heard>, now: Instant) -> BTreeSet<DiskId> {
    let is_absent = |disk: &&Disk| {
        disk.standing != Standing::Lost
            && heard.get(&disk.node).is_some_and(|heard| {
                now.duration_since(heard.at) <= SILENCE_MAX
                    && !heard.disks.iter().any(|beat| beat.disk == disk.id)
            })
    };
    disks.iter().filter(is_absent).map(|disk| disk.id).collect()
}

/// Has disks that were absent all the time for [`ABSENCE_MAX`] counted as lost.
async fn note_absent(shell: &Shell, absent_since: &mut BTreeMap<DiskId, Instant>) {
    let now = clock::instant();
    let absent = absent_disks(&shell.map.get().map.disks, &shell.members.heard(), now);
    absent_since.retain(|disk, _| absent.contains(disk));
    for disk in absent {
        let since = *absent_since.entry(disk).or_insert(now);
        if now.duration_since(since) < ABSENCE_MAX {
            continue;
        }
        tracing::warn!(%disk, "its node does not have this disk any more: it is lost, its shards are rebuilt elsewhere");
        match shell.facts.propose(Command::SetDiskStanding { disk, standing: Standing::Lost }).await {
            Ok(_) => shell.map_changed.notify_one(),
            Err(error) => tracing::debug!(%disk, %error, "its loss was not noted"),
        }
    }
}

pub async fn run(shell: Shell) {
    let mut absent_since = BTreeMap::new();
    let mut leading_since = None;
    while shell.pause(LOOK_EVERY).await {
        if !shell.is_leader() {
            leading_since = None;
            absent_since.clear();
            continue;
        }
        note_absent(&shell, &mut absent_since).await;
        let since = *leading_since.get_or_insert_with(clock::instant);
        let heard = shell.members.heard().into_iter().map(|(id, heard)| (id, heard.at)).collect();
        for (node, is_up) in transitions(&shell.map.get().map.nodes, &heard, since, clock::instant()) {
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
    use crate::members::DiskBeat;
    use makai_raft::facts::Timestamp;

    fn node(id: u8, is_up: bool) -> Node {
        Node {
            id: NodeId([id; 32]),
            number: u64::from(id),
            name: String::new(),
            owner: String::new(),
            site: String::new(),
            roles: vec![],
            addresses: vec![],
            standing: Standing::Active,
            joined_at: Timestamp(0),
            is_up,
            changed_at: Timestamp(0),
            version: String::new(),
        }
    }

    #[test]
    fn a_disk_that_its_node_names_no_longer_is_absent() {
        let now = clock::instant() + Duration::from_secs(100);
        let disk = |id: u8, node: u8, standing| Disk {
            id: DiskId([id; 16]),
            node: NodeId([node; 32]),
            capacity_bytes: 1,
            standing,
            added_at: Timestamp(0),
        };
        let beat =
            |id: u8| DiskBeat { disk: DiskId([id; 16]), capacity_bytes: 1, free_bytes: 1, shard_count: 0 };
        let heard =
            |at, disks| Heard { at, disks, repair: Default::default(), filled: vec![], compute: None };
        let heard = HashMap::from([
            (NodeId([1; 32]), heard(now, vec![beat(11)])),
            (NodeId([2; 32]), heard(now - Duration::from_secs(50), vec![])),
        ]);
        let disks = [
            disk(11, 1, Standing::Active),
            disk(12, 1, Standing::Active),
            disk(13, 1, Standing::Lost),
            disk(21, 2, Standing::Active),
            disk(31, 3, Standing::Active),
        ];
        assert_eq!(absent_disks(&disks, &heard, now), BTreeSet::from([DiskId([12; 16])]));
    }

    #[test]
    fn only_changes_are_told_and_a_new_leader_waits() {
        let start = clock::instant();
        let at = |secs: u64| start + Duration::from_secs(secs);
        let nodes = [node(1, true), node(2, true), node(3, false), node(4, false)];
        let heard =
            HashMap::from([(NodeId([1; 32]), at(10)), (NodeId([2; 32]), at(4)), (NodeId([3; 32]), at(9))]);
        let down = (NodeId([2; 32]), false);
        let up = (NodeId([3; 32]), true);
        assert_eq!(transitions(&nodes, &heard, at(0), at(10)), [down, up]);
        assert_eq!(transitions(&nodes, &heard, at(9), at(10)), [up]);
        assert_eq!(transitions(&nodes, &HashMap::new(), at(9), at(11)), []);
    }
}
