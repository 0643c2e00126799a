//! What becomes of placement groups: the rules by which the leader changes them, from the map and the time alone.
//!
//! ```text
//! map, now ─ sort_disks ─> Disks ─ endangered ─> slots to make again ─ changes ─> groups to add or change
//! heartbeats ─ finished ─> slots to switch
//! ```
//!
//! Pure: the same map and time give the same answer, so that a year of a thousand machines is played in minutes
//! (`integration/src/churn.rs`).

use std::collections::{BTreeMap, BTreeSet};

use makai_erasure::placement::{
    Busy, Danger, Member, Move, Moving, Patience, Placed, Presence, Reasons, danger, plan, plan_moves,
};
use makai_erasure::{DiskId, PgId, Scheme};
use makai_raft::facts::Timestamp;
use makai_raft::facts::cluster::{ClusterMap, Condition, Group, SlotMove, Standing};
use makai_raft::facts::command::Command;
use makai_raft::view::IndexedMap;

use crate::members::Filled;

/// A disk whose node is silent for longer is moved to no more: it may be rebooting before.
const SILENT_MS_MAX: u64 = 60_000;
/// Nodes that vanish within this time are one outage, where they are many.
const OUTAGE_MS: u64 = 60 * 60 * 1000;
const OUTAGE_NODES_MIN: usize = 3;
/// Of all nodes, one part in so many.
const OUTAGE_PARTS: usize = 10;

/// Disks by what they may do. Pure.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Disks {
    /// May take shards: they and their node are active, and the node is up or not down for long.
    taking: Vec<Member>,
    /// Take no new slots, and keep those they have.
    keeping: Vec<Member>,
    /// Of those, the ones to be emptied while they answer.
    leaving: BTreeSet<DiskId>,
    /// All of them that cannot be read now.
    absent: BTreeMap<DiskId, Presence>,
    /// Many nodes went at once.
    is_outage: bool,
}

impl Disks {
    #[must_use]
    pub fn presence(&self, disk: DiskId) -> Presence {
        self.absent.get(&disk).copied().unwrap_or(Presence::Here)
    }

    /// Where slots may go now.
    fn that_may_take(&self) -> BTreeSet<DiskId> {
        let is_silent =
            |disk: DiskId| matches!(self.presence(disk), Presence::Away { for_ms } if for_ms > SILENT_MS_MAX);
        self.taking.iter().map(|member| member.disk).filter(|disk| !is_silent(*disk)).collect()
    }
}

#[must_use]
pub fn sort_disks(map: &IndexedMap, now: Timestamp, grace_ms: u64) -> Disks {
    let mut disks = Disks { is_outage: is_outage(&map.map, now), ..Disks::default() };
    let mut full = Vec::new();
    for disk in &map.map.disks {
        let Some(node) = map.node(disk.node) else { continue };
        if disk.standing == Standing::Lost || node.standing == Standing::Lost {
            continue;
        }
        let member = Member {
            disk: disk.id,
            node: disk.node,
            owner: node.owner.clone(),
            site: node.site.clone(),
            capacity_bytes: disk.weight_bytes(),
            is_part_time: node.is_part_time(now),
        };
        let away_ms = now.millis_since(node.changed_at);
        let is_there = node.is_up || away_ms < grace_ms;
        match (node.is_up, disk.condition) {
            (false, _) => _ = disks.absent.insert(disk.id, Presence::Away { for_ms: away_ms }),
            (true, Condition::Missing) => _ = disks.absent.insert(disk.id, Presence::Gone),
            (true, Condition::Well | Condition::Full) => {}
        }
        let is_leaving = disk.standing == Standing::Draining
            || node.standing == Standing::Draining
            || disk.condition == Condition::Full;
        if is_leaving {
            disks.leaving.insert(disk.id);
        }
        let is_active = disk.standing == Standing::Active && node.standing == Standing::Active;
        let is_taking = is_active && is_there && disk.condition == Condition::Well;
        if is_active && is_there && disk.condition == Condition::Full {
            full.push(member.clone());
        }
        if is_taking { disks.taking.push(member) } else { disks.keeping.push(member) }
    }
    if disks.taking.is_empty() {
        // A cluster whose disks are all nearly full goes on: they take shards down to their reserve.
        disks.keeping.retain(|member| full.iter().all(|full| full.disk != member.disk));
        disks.taking = full;
    }
    disks
}

/// Whether so many nodes went within a short time that they will rather come back together than be lost. Pure.
fn is_outage(map: &ClusterMap, now: Timestamp) -> bool {
    let nodes = map.nodes.iter().filter(|node| node.standing != Standing::Lost);
    let went = |node: &&makai_raft::facts::cluster::Node| {
        !node.is_up && now.millis_since(node.changed_at) < OUTAGE_MS
    };
    let count = nodes.clone().filter(went).count();
    count >= OUTAGE_NODES_MIN && count > nodes.count() / OUTAGE_PARTS
}

/// Slots to be made again on other disks, the most endangered first. Pure.
#[must_use]
pub fn endangered(map: &ClusterMap, disks: &Disks, patience: Patience) -> Vec<(PgId, u8)> {
    let patience = Patience { is_outage: disks.is_outage, ..patience };
    let mut due = Vec::new();
    for group in &map.groups {
        let presences: Vec<Presence> = group.disks.iter().map(|disk| disks.presence(*disk)).collect();
        let Danger { spare, slots } = danger(group.scheme, &presences, patience);
        // What cannot be read cannot be made again.
        if spare >= 0 {
            due.extend(slots.into_iter().map(|slot| (spare, group.id, slot)));
        }
    }
    due.sort_unstable();
    due.into_iter().map(|(_, group, slot)| (group, slot)).collect()
}

/// Groups to add or change so that each of `schemes` is placed. Pure.
///
/// A round either replaces what is lost or begins moves: protection goes first.
#[must_use]
pub fn changes(
    map: &ClusterMap,
    disks: &Disks,
    schemes: &BTreeSet<Scheme>,
    endangered: &[(PgId, u8)],
) -> Vec<Group> {
    let replaced = replacements(map, disks, schemes);
    if !replaced.is_empty() {
        return replaced;
    }
    let given_up = without_dead_moves(map, disks);
    if given_up.is_empty() { begun_moves(map, disks, schemes, endangered) } else { given_up }
}

fn replacements(map: &ClusterMap, disks: &Disks, schemes: &BTreeSet<Scheme>) -> Vec<Group> {
    let mut next_id = map.groups.iter().map(|group| group.id.0).max().unwrap_or(0) + 1;
    let mut changes = Vec::new();
    for scheme in schemes {
        let of_scheme = map.groups.iter().filter(|group| group.scheme == *scheme);
        let existing: Vec<Placed> = of_scheme
            .map(|group| Placed { id: group.id, version: group.version, disks: group.disks.clone() })
            .collect();
        for placed in plan(*scheme, &disks.taking, &disks.keeping, &existing, next_id) {
            next_id = next_id.max(placed.id.0 + 1);
            let Placed { id: PgId(id), version, disks } = placed;
            // Moves of a group that lost a disk begin anew, from where its slots are then.
            changes.push(Group { id: PgId(id), scheme: *scheme, version, disks, moves: Vec::new() });
        }
    }
    changes
}

/// Groups less the moves to disks that may no longer take slots, and those that make again what is back. Pure.
fn without_dead_moves(map: &ClusterMap, disks: &Disks) -> Vec<Group> {
    let may_take = disks.that_may_take();
    let is_needed = |group: &Group, moving: &SlotMove| {
        let from = group.disks.get(usize::from(moving.slot)).copied();
        let is_back =
            from.is_some_and(|from| disks.presence(from) == Presence::Here && !disks.leaving.contains(&from));
        // Moves that only even out shares stop with a pause, and those that are endangered or leave do not.
        let is_paused = map.is_rebalance_paused
            && !moving.is_remake
            && from.is_some_and(|from| !disks.leaving.contains(&from));
        may_take.contains(&moving.to) && !(moving.is_remake && is_back) && !is_paused
    };
    let has_dead = |group: &&Group| group.moves.iter().any(|moving| !is_needed(group, moving));
    let less = |group: &Group| {
        let moves = group.moves.iter().filter(|moving| is_needed(group, moving)).copied().collect();
        Group { moves, ..group.clone() }
    };
    map.groups.iter().filter(has_dead).map(less).collect()
}

fn begun_moves(
    map: &ClusterMap,
    disks: &Disks,
    schemes: &BTreeSet<Scheme>,
    endangered: &[(PgId, u8)],
) -> Vec<Group> {
    let moving = |group: &Group| Moving {
        id: group.id,
        disks: group.disks.clone(),
        moves: group.moves.iter().map(|moving| (moving.slot, moving.to)).collect(),
    };
    let mut busy = Busy::default();
    map.groups.iter().for_each(|group| busy.note(&moving(group)));
    let here: Vec<Member> =
        disks.taking.iter().filter(|member| disks.presence(member.disk) == Presence::Here).cloned().collect();
    let known: Vec<Member> = disks.taking.iter().chain(&disks.keeping).cloned().collect();
    // A disk that is away is not copied from: its slots go when they are endangered.
    let leaving: BTreeSet<DiskId> =
        disks.leaving.iter().copied().filter(|disk| disks.presence(*disk) == Presence::Here).collect();
    let is_endangered: BTreeSet<(PgId, u8)> = endangered.iter().copied().collect();
    let reasons = Reasons { leaving: &leaving, endangered, evens_out: !map.is_rebalance_paused };
    let mut begun: BTreeMap<PgId, Vec<SlotMove>> = BTreeMap::new();
    for scheme in schemes {
        let of_scheme: Vec<Moving> =
            map.groups.iter().filter(|group| group.scheme == *scheme).map(moving).collect();
        for Move { group, slot, to } in plan_moves(&here, &known, reasons, &of_scheme, &mut busy) {
            let is_remake = is_endangered.contains(&(group, slot));
            begun.entry(group).or_default().push(SlotMove { slot, to, is_remake });
        }
    }
    let with_moves = |group: &Group| {
        let mut moves = group.moves.clone();
        moves.extend(begun.get(&group.id)?);
        moves.sort_unstable();
        Some(Group { moves, ..group.clone() })
    };
    map.groups.iter().filter_map(with_moves).collect()
}

/// Moves whose disk says that it is filled. Pure.
#[must_use]
pub fn finished(map: &ClusterMap, filled: &[Filled]) -> Vec<Command> {
    let mut finished = Vec::new();
    for group in &map.groups {
        for moving in &group.moves {
            let told = filled.iter().find(|filled| {
                filled.pg == group.id
                    && filled.slot == moving.slot
                    && filled.to == moving.to
                    && filled.version == group.version
            });
            if let Some(&Filled { pg, slot, to, version, sequence }) = told {
                finished.push(Command::FinishMove { pg, slot, to, version, sequence });
                // The group's version changes: its other moves are told of again.
                break;
            }
        }
    }
    finished
}

#[cfg(test)]
mod tests {
    use makai_erasure::NodeId;
    use makai_raft::facts::cluster::{Disk, Node};

    use super::*;

    fn disk(id: u8) -> DiskId {
        DiskId([id; 16])
    }

    /// Nodes with one disk each, and one 2+2 group on the first four.
    fn map(standings: &[Standing]) -> ClusterMap {
        let node = |(at, standing): (u8, &Standing)| Node {
            id: NodeId([at; 32]),
            number: u64::from(at),
            name: String::new(),
            owner: String::new(),
            site: String::new(),
            roles: vec![],
            addresses: vec![],
            standing: *standing,
            joined_at: Timestamp(0),
            is_up: true,
            changed_at: Timestamp(0),
            version: String::new(),
            down_ppm: 0,
        };
        let of = |at: u8| Disk {
            id: disk(at),
            node: NodeId([at; 32]),
            capacity_bytes: 1 << 40,
            standing: Standing::Active,
            added_at: Timestamp(0),
            condition: makai_raft::facts::cluster::Condition::Well,
            speed_bytes_per_sec: 0,
        };
        ClusterMap {
            epoch: 7,
            cluster_id: String::new(),
            nodes: (1u8..).zip(standings).map(node).collect(),
            disks: (1u8..).zip(standings).map(|(at, _)| of(at)).collect(),
            groups: vec![Group {
                id: PgId(1),
                scheme: scheme(),
                version: 5,
                disks: (1..5).map(disk).collect(),
                moves: vec![],
            }],
            is_rebalance_paused: false,
        }
    }

    fn scheme() -> Scheme {
        Scheme { data: 2, parity: 2 }
    }

    fn changed(map: &ClusterMap) -> Option<Group> {
        changed_at(map, 1)
    }

    fn changed_at(map: &ClusterMap, now_ms: u64) -> Option<Group> {
        let disks = sort_disks(&IndexedMap::new(map.clone()), Timestamp(now_ms), 1000);
        let patience = Patience { grace_ms: 1000, urgent_ms: 100, is_outage: false };
        let endangered = endangered(map, &disks, patience);
        changes(map, &disks, &BTreeSet::from([scheme()]), &endangered)
            .into_iter()
            .find(|group| group.id == PgId(1))
    }

    #[test]
    fn a_lost_slot_is_replaced_and_a_draining_one_moves() {
        use Standing::{Active, Draining, Lost};
        let lost = changed(&map(&[Active, Lost, Active, Active, Active])).unwrap();
        assert_eq!((lost.version, lost.disks[1], lost.moves.len()), (6, disk(5), 0));
        // New groups come before moves: with enough of those, the move begins.
        let mut full = map(&[Active, Draining, Active, Active, Active]);
        let spare = Group { id: PgId(2), disks: [1, 3, 4, 5].map(disk).to_vec(), ..full.groups[0].clone() };
        full.groups.extend((2..40).map(|id| Group { id: PgId(id), ..spare.clone() }));
        let moving = changed(&full).unwrap();
        assert_eq!((moving.version, &moving.disks), (5, &full.groups[0].disks));
        assert_eq!(moving.moves, [SlotMove { slot: 1, to: disk(5), is_remake: false }]);

        full.groups[0] = moving.clone();
        assert_eq!(changed(&full), None, "a slot moves once");
        full.nodes[4].standing = Draining;
        assert_eq!(changed(&full).unwrap().moves, [], "its disk may take slots no more");
    }

    /// As many other groups as there should be, so that no new ones are due.
    fn with_enough_groups(mut map: ClusterMap, apart_from: u8) -> ClusterMap {
        let others = [1, 2, 3, 4, 5].into_iter().filter(|at| *at != apart_from).map(disk).collect();
        let spare = Group { id: PgId(2), disks: others, ..map.groups[0].clone() };
        map.groups.extend((2..40).map(|id| Group { id: PgId(id), ..spare.clone() }));
        map
    }

    #[test]
    fn what_stays_away_is_made_again_and_what_comes_back_is_kept() {
        let mut map = with_enough_groups(map(&[Standing::Active; 5]), 2);
        map.nodes[1].is_up = false;
        assert_eq!(changed_at(&map, 999), None, "it may be back soon");
        let begun = changed_at(&map, 1001).unwrap();
        assert_eq!((begun.version, &begun.disks), (5, &map.groups[0].disks), "its slot is still its own");
        assert_eq!(begun.moves, [SlotMove { slot: 1, to: disk(5), is_remake: true }]);
        map.groups[0] = begun;
        assert_eq!(changed_at(&map, 1002), None);
        map.nodes[1].is_up = true;
        assert_eq!(changed_at(&map, 1003).unwrap().moves, [], "it is back before its slot was made again");
    }

    /// A pause stops what evens out, and nothing that protects or empties.
    #[test]
    fn a_pause_stops_evening_out_alone() {
        // The last two of six disks hold nothing.
        let mut map = with_enough_groups(map(&[Standing::Active; 6]), 5);
        let evens = |map: &ClusterMap| {
            let disks = sort_disks(&IndexedMap::new(map.clone()), Timestamp(1), 1000);
            changes(map, &disks, &BTreeSet::from([scheme()]), &[])
        };
        let begun = evens(&map);
        assert!(begun.iter().any(|group| !group.moves.is_empty()), "{begun:?}");
        map.is_rebalance_paused = true;
        assert_eq!(evens(&map), [], "nothing begins");
        let changed = begun.iter().find(|group| !group.moves.is_empty()).unwrap().clone();
        let at = map.groups.iter().position(|group| group.id == changed.id).unwrap();
        map.groups[at] = changed.clone();
        assert_eq!(
            evens(&map),
            [Group { moves: Vec::new(), ..changed.clone() }],
            "what has begun is given up"
        );
        let from = changed.disks[usize::from(changed.moves[0].slot)];
        map.disks.iter_mut().find(|disk| disk.id == from).unwrap().standing = Standing::Draining;
        let given_up = |group: &Group| group.id == changed.id && group.moves.is_empty();
        assert!(!evens(&map).iter().any(given_up), "off a disk that leaves it goes on");
    }

    #[test]
    fn a_missing_disk_is_not_waited_for_and_a_full_one_gives_slots_away() {
        let mut map = with_enough_groups(map(&[Standing::Active; 5]), 2);
        map.disks[1].condition = Condition::Missing;
        let moves = changed_at(&map, 1).unwrap().moves;
        assert_eq!(moves, [SlotMove { slot: 1, to: disk(5), is_remake: true }]);
        map.disks[1].condition = Condition::Full;
        let moves = changed_at(&map, 1).unwrap().moves;
        assert_eq!(moves, [SlotMove { slot: 1, to: disk(5), is_remake: false }]);
        map.disks[4].condition = Condition::Full;
        assert_eq!(changed_at(&map, 1), None, "no disk has room");
    }

    #[test]
    fn many_nodes_that_go_at_once_are_an_outage() {
        let mut map = map(&[Standing::Active; 12]);
        for at in 0..3 {
            assert!(!is_outage(&map, Timestamp(1)), "{at} nodes went");
            map.nodes[at].is_up = false;
        }
        assert!(is_outage(&map, Timestamp(1)));
        assert!(!is_outage(&map, Timestamp(OUTAGE_MS + 1)), "they were expected back");
    }

    #[test]
    fn a_slot_is_switched_when_its_disk_says_it_is_filled() {
        let mut map = map(&[Standing::Active; 5]);
        map.groups[0].moves = vec![SlotMove { slot: 1, to: disk(5), is_remake: false }];
        let told = Filled { pg: PgId(1), slot: 1, to: disk(5), version: 5, sequence: 9 };
        for other in [
            Filled { version: 4, ..told },
            Filled { slot: 2, ..told },
            Filled { to: disk(1), ..told },
            Filled { pg: PgId(2), ..told },
        ] {
            assert_eq!(finished(&map, &[other]), []);
        }
        let finish = Command::FinishMove { pg: PgId(1), slot: 1, to: disk(5), version: 5, sequence: 9 };
        assert_eq!(finished(&map, &[told]), [finish]);
    }
}
