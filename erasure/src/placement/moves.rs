//! Which slots go to other disks while the disks that hold them still answer: off disks that leave, and onto disks that
//! hold less than their share.
//!
//! ```text
//! (disks that may take slots, disks that leave, groups with moves under way) ─ plan_moves ─> moves to begin
//! ```
//!
//! Pure and deterministic. Always: a move puts no two slots of a group nearer together than they were; a disk's share is
//! the part of all slots that its part of the capacity is; only what a disk has above its share moves, so that joining
//! and leaving move no more than must be; a few moves at once touch one disk.

use std::collections::{BTreeMap, BTreeSet};

use super::{Member, Spread, rendezvous};
use crate::ids::{DiskId, PgId};

/// Moves under way that read from one disk, and that fill one disk.
const MOVES_PER_DISK_MAX: usize = 2;
/// Slots that a disk may have above or below its share: nearer to it, moving costs more than it evens out.
const UNEVEN_SLOTS_MIN: u64 = 2;
/// As above, in parts of the disk's share.
const UNEVEN_PARTS: u64 = 10;

/// A group of any one scheme: who holds its slots, and which are on their way to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moving {
    pub id: PgId,
    pub disks: Vec<DiskId>,
    /// Ascending by slot.
    pub moves: Vec<(u8, DiskId)>,
}

/// One slot that should go to another disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    pub group: PgId,
    pub slot: u8,
    pub to: DiskId,
}

/// Moves under way by disk, over all schemes: pass the same one to every call of a round.
#[derive(Debug, Default)]
pub struct Busy {
    from: BTreeMap<DiskId, usize>,
    to: BTreeMap<DiskId, usize>,
}

impl Busy {
    /// Counts what is under way.
    pub fn note(&mut self, group: &Moving) {
        for (slot, to) in &group.moves {
            if let Some(from) = group.disks.get(usize::from(*slot)) {
                self.add(*from, *to);
            }
        }
    }

    fn add(&mut self, from: DiskId, to: DiskId) {
        *self.from.entry(from).or_default() += 1;
        *self.to.entry(to).or_default() += 1;
    }

    fn has_room(&self, from: DiskId, to: DiskId) -> bool {
        let count = |of: &BTreeMap<DiskId, usize>, disk| of.get(&disk).copied().unwrap_or(0);
        count(&self.from, from) < MOVES_PER_DISK_MAX && count(&self.to, to) < MOVES_PER_DISK_MAX
    }
}

/// Moves to begin now in the groups of one scheme.
///
/// `members`: every disk that may take slots. `known`: those and all that hold slots which are still read. `leaving`: of
/// these, the ones to be emptied. Cost: slots that move x members, and slots.
#[must_use]
pub fn plan_moves(
    members: &[Member],
    known: &[Member],
    leaving: &BTreeSet<DiskId>,
    groups: &[Moving],
    busy: &mut Busy,
) -> Vec<Move> {
    let taking: BTreeMap<DiskId, &Member> = members
        .iter()
        .filter(|member| !leaving.contains(&member.disk))
        .map(|member| (member.disk, member))
        .collect();
    let known: BTreeMap<DiskId, &Member> =
        known.iter().chain(members).map(|member| (member.disk, member)).collect();
    let mut round = Round { load: settled_load(groups), taking, known, busy, moves: Vec::new() };
    for group in groups {
        for slot in 0..group.disks.len() {
            if leaving.contains(&group.disks[slot]) && !is_moving(group, slot) {
                round.empty(group, slot);
            }
        }
    }
    round.even_out(groups);
    round.moves
}

/// Slots by disk once all moves under way are done.
fn settled_load(groups: &[Moving]) -> BTreeMap<DiskId, u64> {
    let mut load = BTreeMap::<DiskId, u64>::new();
    for group in groups {
        for (slot, disk) in group.disks.iter().enumerate() {
            let moved = group.moves.iter().find(|(moving, _)| usize::from(*moving) == slot);
            *load.entry(moved.map_or(*disk, |(_, to)| *to)).or_default() += 1;
        }
    }
    load
}

fn is_moving(group: &Moving, slot: usize) -> bool {
    group.moves.iter().any(|(moving, _)| usize::from(*moving) == slot)
}

fn uneven(share: u64) -> u64 {
    UNEVEN_SLOTS_MIN.max(share / UNEVEN_PARTS)
}

struct Round<'a, 'b> {
    load: BTreeMap<DiskId, u64>,
    taking: BTreeMap<DiskId, &'a Member>,
    known: BTreeMap<DiskId, &'a Member>,
    busy: &'b mut Busy,
    moves: Vec<Move>,
}

impl<'a> Round<'a, '_> {
    fn load_of(&self, disk: DiskId) -> u64 {
        self.load.get(&disk).copied().unwrap_or(0)
    }

    /// How a disk compares to its size, so that disks of any size compare to each other.
    fn fullness(&self, member: &Member) -> u128 {
        (u128::from(self.load_of(member.disk)) << 64) / u128::from(member.capacity_bytes.max(1))
    }

    /// What the other slots of a group are spread over; `None` where one of its disks is unknown.
    fn others(&self, group: &Moving, slot: usize) -> Option<Spread<'a>> {
        let mut spread = Spread::default();
        let holders = group.disks.iter().enumerate().filter(|(at, _)| *at != slot && !is_moving(group, *at));
        let coming = group.moves.iter().filter(|(at, _)| usize::from(*at) != slot).map(|(_, to)| to);
        for disk in holders.map(|(_, disk)| disk).chain(coming) {
            spread.add(self.known.get(disk).copied()?);
        }
        Some(spread)
    }

    /// Whether the slot may go there: not a disk of the group, and no nearer to its other slots than now.
    fn may_go(&self, group: &Moving, slot: usize, to: &Member, others: &Spread<'a>) -> bool {
        let from = group.disks[slot];
        let is_new =
            !group.disks.contains(&to.disk) && group.moves.iter().all(|(_, other)| *other != to.disk);
        let now = self.known.get(&from).map(|member| others.shared(member));
        is_new && now.is_none_or(|now| others.shared(to) <= now) && self.busy.has_room(from, to.disk)
    }

    fn begin(&mut self, group: &Moving, slot: usize, to: DiskId) {
        let from = group.disks[slot];
        self.busy.add(from, to);
        *self.load.entry(to).or_default() += 1;
        if let Some(load) = self.load.get_mut(&from) {
            *load = load.saturating_sub(1);
        }
        // A slot's number fits: a scheme has at most 255 shards.
        self.moves.push(Move { group: group.id, slot: slot as u8, to });
    }

    /// Takes a slot off its disk, to the least laden that it may go to.
    fn empty(&mut self, group: &Moving, slot: usize) {
        if self.moves.iter().any(|begun| begun.group == group.id) {
            return;
        }
        let Some(others) = self.others(group, slot) else { return };
        let best = self
            .taking
            .values()
            .filter(|member| self.may_go(group, slot, member, &others))
            .min_by_key(|member| {
                let tie = rendezvous(group.id, slot, member.disk);
                (others.shared(member), self.fullness(member), tie, member.disk)
            })
            .map(|member| member.disk);
        if let Some(to) = best {
            self.begin(group, slot, to);
        }
    }

    /// Slots of a disk when all are shared out by capacity.
    fn share(&self, member: &Member, slots: u64, capacity: u128) -> u64 {
        let share = u128::from(slots) * u128::from(member.capacity_bytes) / capacity.max(1);
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    /// From disks above their share to those below theirs, where one of the two is far from it.
    fn even_out(&mut self, groups: &[Moving]) {
        let capacity: u128 = self.taking.values().map(|member| u128::from(member.capacity_bytes)).sum();
        let slots: u64 = self.taking.keys().map(|disk| self.load_of(*disk)).sum();
        let shares: BTreeMap<DiskId, u64> =
            self.taking.values().map(|member| (member.disk, self.share(member, slots, capacity))).collect();
        for group in groups {
            if self.moves.iter().any(|begun| begun.group == group.id) || !group.moves.is_empty() {
                continue;
            }
            for slot in 0..group.disks.len() {
                let from = group.disks[slot];
                let share_of = |disk: DiskId| shares.get(&disk).copied().unwrap_or(0);
                if !shares.contains_key(&from) || self.load_of(from) <= share_of(from) {
                    continue;
                }
                let is_far_above = self.load_of(from) >= share_of(from) + uneven(share_of(from));
                let Some(others) = self.others(group, slot) else { continue };
                let best = self
                    .taking
                    .values()
                    .filter(|to| {
                        let below = share_of(to.disk).saturating_sub(self.load_of(to.disk));
                        below > 0 && (is_far_above || below >= uneven(share_of(to.disk)))
                    })
                    .filter(|to| self.may_go(group, slot, to, &others))
                    .min_by_key(|to| (self.fullness(to), rendezvous(group.id, slot, to.disk), to.disk))
                    .map(|to| to.disk);
                if let Some(to) = best {
                    self.begin(group, slot, to);
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Placed, plan};
    use super::*;
    use crate::ids::NodeId;
    use crate::layout::Scheme;

    fn cluster(nodes: std::ops::Range<u8>) -> Vec<Member> {
        nodes
            .map(|node| Member {
                disk: DiskId([node + 1; 16]),
                node: NodeId([node; 32]),
                owner: String::new(),
                site: String::new(),
                capacity_bytes: 1 << 40,
            })
            .collect()
    }

    /// Runs rounds until nothing moves; returns how many slots moved.
    fn settle(members: &[Member], leaving: &BTreeSet<DiskId>, groups: &mut [Placed]) -> usize {
        let mut moved = 0;
        for _ in 0..1000 {
            let now: Vec<Moving> = groups
                .iter()
                .map(|group| Moving { id: group.id, disks: group.disks.clone(), moves: vec![] })
                .collect();
            let moves = plan_moves(members, members, leaving, &now, &mut Busy::default());
            if moves.is_empty() {
                return moved;
            }
            moved += moves.len();
            for Move { group, slot, to } in moves {
                let group = groups.iter_mut().find(|known| known.id == group).unwrap();
                assert!(!group.disks.contains(&to), "a disk holds two slots of a group");
                group.disks[usize::from(slot)] = to;
            }
        }
        panic!("slots move for ever");
    }

    fn loads(groups: &[Placed]) -> BTreeMap<DiskId, usize> {
        let mut loads = BTreeMap::new();
        for disk in groups.iter().flat_map(|group| &group.disks) {
            *loads.entry(*disk).or_default() += 1;
        }
        loads
    }

    proptest! {
        /// Who leaves is emptied, by moving what it had and next to nothing else, and nodes stay apart.
        #[test]
        fn a_leaving_disk_is_emptied(nodes in 6u8..14, leaver in 0u8..6) {
            let members = cluster(0..nodes);
            let mut groups = plan(Scheme::new(2, 2).unwrap(), &members, &[], &[], 1);
            let gone = members[usize::from(leaver)].disk;
            let had = loads(&groups)[&gone];
            let moved = settle(&members, &BTreeSet::from([gone]), &mut groups);
            let left = loads(&groups);
            prop_assert!(!left.contains_key(&gone));
            prop_assert!(moved <= had + had / 4, "{moved} slots moved for {had}");
            for group in &groups {
                prop_assert_eq!(group.disks.iter().collect::<BTreeSet<_>>().len(), 4);
            }
        }

        /// Who joins gets nearly its share, and no more than that moves.
        #[test]
        fn a_joining_disk_gets_its_share(nodes in 5u8..12, joiners in 1u8..4) {
            let before = cluster(0..nodes);
            let mut groups = plan(Scheme::new(2, 2).unwrap(), &before, &[], &[], 1);
            let slots = groups.len() * 4;
            let members = cluster(0..nodes + joiners);
            let moved = settle(&members, &BTreeSet::new(), &mut groups);
            let share = slots / usize::from(nodes + joiners);
            let loads = loads(&groups);
            for joiner in &members[usize::from(nodes)..] {
                let has = loads.get(&joiner.disk).copied().unwrap_or(0);
                prop_assert!(has + 3 + share / 5 >= share && has <= share, "{has} of {share}");
            }
            prop_assert!(moved <= share * usize::from(joiners));
        }
    }

    /// With nowhere to go that keeps the spread, a slot stays.
    #[test]
    fn protection_goes_before_emptiness() {
        let mut members = cluster(0..4);
        let mut groups = plan(Scheme::new(2, 2).unwrap(), &members, &[], &[], 1);
        let gone = members[0].disk;
        assert_eq!(settle(&members, &BTreeSet::from([gone]), &mut groups), 0);
        let second = Member { disk: DiskId([99; 16]), ..members[1].clone() };
        members.push(second);
        settle(&members, &BTreeSet::from([gone]), &mut groups);
        assert_eq!(loads(&groups)[&gone], groups.len(), "two slots of a group on one node");
    }

    /// A big disk takes more than a small one.
    #[test]
    fn shares_follow_capacity() {
        let mut members = cluster(0..8);
        let mut groups = plan(Scheme::new(2, 2).unwrap(), &members, &[], &[], 1);
        members.push(Member { capacity_bytes: 4 << 40, ..cluster(8..9)[0].clone() });
        settle(&members, &BTreeSet::new(), &mut groups);
        let loads = loads(&groups);
        assert!(loads[&members[8].disk] * 2 > loads[&members[0].disk] * 5, "{loads:?}");
    }

    #[test]
    fn few_moves_at_once_touch_a_disk() {
        let members = cluster(0..8);
        let groups = plan(Scheme::new(2, 2).unwrap(), &members, &[], &[], 1);
        let now: Vec<Moving> = groups
            .into_iter()
            .map(|group| Moving { id: group.id, disks: group.disks, moves: vec![] })
            .collect();
        let leaving = BTreeSet::from([members[0].disk]);
        let moves = plan_moves(&members, &members, &leaving, &now, &mut Busy::default());
        assert_eq!(moves.len(), MOVES_PER_DISK_MAX);
    }
}
