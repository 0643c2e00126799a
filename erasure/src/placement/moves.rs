//! Which slots go to other disks: those to be made again, since their disks are away; off disks that leave; and onto disks
//! that hold less than their share.
//!
//! ```text
//! (disks that may take slots, why slots go, groups with moves under way) ─ plan_moves ─> moves to begin
//! ```
//!
//! Pure and deterministic. Always: a move puts no two slots of a group nearer together than they were; a disk's share is
//! the part of all slots that its part of the capacity is; only what a disk has above its share moves, so that joining
//! and leaving move no more than must be; a few moves at once touch one disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Domains, Member, Roster, Spread, rendezvous};
use crate::ids::{DiskId, PgId};

/// Moves under way that read from one disk, and that fill one disk.
const MOVES_PER_DISK_MAX: usize = 4;
/// Slots that are made again on one disk at once: they are read from many.
const REMAKES_PER_DISK_MAX: usize = 6;
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

    fn has_room(&self, from: DiskId, to: DiskId, why: Why) -> bool {
        let count = |of: &BTreeMap<DiskId, usize>, disk| of.get(&disk).copied().unwrap_or(0);
        match why {
            // A disk that is away is not read.
            Why::Away => count(&self.to, to) < REMAKES_PER_DISK_MAX,
            Why::Leaving | Why::Uneven => {
                count(&self.from, from) < MOVES_PER_DISK_MAX && count(&self.to, to) < MOVES_PER_DISK_MAX
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Away,
    Leaving,
    Uneven,
}

/// Why slots go to other disks, apart from uneven shares.
#[derive(Debug, Clone, Copy)]
pub struct Reasons<'a> {
    /// Disks that answer and are to be emptied.
    pub leaving: &'a BTreeSet<DiskId>,
    /// Slots to be made again elsewhere, the most endangered first.
    pub endangered: &'a [(PgId, u8)],
    /// Whether shares are evened out.
    pub evens_out: bool,
}

/// Moves to begin now in the groups of one scheme.
///
/// `members`: every disk that may take slots and answers. `known`: those and all that hold slots which are still read.
/// Cost: slots that move x members, and slots.
#[must_use]
pub fn plan_moves(
    members: &[Member],
    known: &[Member],
    reasons: Reasons<'_>,
    groups: &[Moving],
    busy: &mut Busy,
) -> Vec<Move> {
    let Reasons { leaving, endangered, evens_out } = reasons;
    let roster = Roster::new(members.iter().chain(known));
    let taking: Vec<&Member> = members.iter().filter(|member| !leaving.contains(&member.disk)).collect();
    let by_id: BTreeMap<PgId, &Moving> = groups.iter().map(|group| (group.id, group)).collect();
    let mut round =
        Round { load: settled_load(groups), taking, roster: &roster, busy, moves: BTreeMap::new() };
    for (id, slot) in endangered {
        if let Some(group) = by_id.get(id).filter(|group| usize::from(*slot) < group.disks.len())
            && !is_moving(group, usize::from(*slot))
        {
            round.relocate(group, usize::from(*slot), Why::Away);
        }
    }
    for group in groups {
        let is_begun = round.moves.contains_key(&group.id);
        let slots = (0..group.disks.len()).filter(|slot| !is_begun && leaving.contains(&group.disks[*slot]));
        for slot in slots.filter(|slot| !is_moving(group, *slot)) {
            if round.relocate(group, slot, Why::Leaving) {
                break;
            }
        }
    }
    if evens_out {
        round.even_out(leaving, groups);
    }
    let moves = round.moves.into_iter();
    moves
        .flat_map(|(group, moves)| moves.into_iter().map(move |(slot, to)| Move { group, slot, to }))
        .collect()
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
    taking: Vec<&'a Member>,
    roster: &'b Roster<'a>,
    busy: &'b mut Busy,
    /// Begun in this round, by group.
    moves: BTreeMap<PgId, Vec<(u8, DiskId)>>,
}

impl Round<'_, '_> {
    fn load_of(&self, disk: DiskId) -> u64 {
        self.load.get(&disk).copied().unwrap_or(0)
    }

    /// How a disk compares to its size, so that disks of any size compare to each other.
    fn fullness(&self, member: &Member) -> u128 {
        (u128::from(self.load_of(member.disk)) << 64) / u128::from(member.weight())
    }

    /// Disks that slots of a group are on their way to.
    fn coming(&self, group: &Moving) -> Vec<(u8, DiskId)> {
        group.moves.iter().chain(self.moves.get(&group.id).into_iter().flatten()).copied().collect()
    }

    /// What the other slots of a group are spread over; `None` where one of its disks is unknown.
    fn others(&self, group: &Moving, slot: usize) -> Option<Spread> {
        let mut spread = Spread::default();
        let coming = self.coming(group);
        let is_coming = |at: usize| coming.iter().any(|(moving, _)| usize::from(*moving) == at);
        let holders = group.disks.iter().enumerate().filter(|(at, _)| *at != slot && !is_coming(*at));
        let others = coming.iter().filter(|(at, _)| usize::from(*at) != slot).map(|(_, to)| to);
        for disk in holders.map(|(_, disk)| disk).chain(others) {
            spread.add(self.roster.domains[self.roster.number(*disk)?]);
        }
        Some(spread)
    }

    fn shared(&self, disk: DiskId, others: &Spread) -> Option<Domains> {
        self.roster.number(disk).map(|number| others.shared(self.roster.domains[number]))
    }

    /// Whether the slot may go there: not a disk of the group, and no nearer to its other slots than now.
    fn may_go(&self, group: &Moving, slot: usize, to: &Member, others: &Spread, why: Why) -> bool {
        let from = group.disks[slot];
        let is_new =
            !group.disks.contains(&to.disk) && self.coming(group).iter().all(|(_, other)| *other != to.disk);
        is_new
            && self.busy.has_room(from, to.disk, why)
            && self.shared(from, others).is_none_or(|now| self.shared(to.disk, others) <= Some(now))
    }

    fn begin(&mut self, group: &Moving, slot: usize, to: DiskId) {
        let from = group.disks[slot];
        self.busy.add(from, to);
        *self.load.entry(to).or_default() += 1;
        if let Some(load) = self.load.get_mut(&from) {
            *load = load.saturating_sub(1);
        }
        // A slot's number fits: a scheme has at most 255 shards.
        self.moves.entry(group.id).or_default().push((slot as u8, to));
    }

    /// Takes a slot off its disk, to the least laden that it may go to. Returns whether there is one.
    fn relocate(&mut self, group: &Moving, slot: usize, why: Why) -> bool {
        let Some(others) = self.others(group, slot) else { return false };
        let best = self
            .taking
            .iter()
            .filter(|member| self.may_go(group, slot, member, &others, why))
            .min_by_key(|member| {
                let tie = rendezvous(group.id, slot, member.disk);
                (self.shared(member.disk, &others), self.fullness(member), tie, member.disk)
            })
            .map(|member| member.disk);
        if let Some(to) = best {
            self.begin(group, slot, to);
        }
        best.is_some()
    }

    /// Slots of a disk when all are shared out by capacity.
    fn share(&self, member: &Member, slots: u64, capacity: u128) -> u64 {
        let share = u128::from(slots) * u128::from(member.weight()) / capacity.max(1);
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    /// From disks above their share to those below theirs, where one of the two is far from it. What is yet to leave a disk
    /// counts: it fills those below their share, so that nothing else has to.
    fn even_out(&mut self, leaving: &BTreeSet<DiskId>, groups: &[Moving]) {
        let capacity: u128 = self.taking.iter().map(|member| u128::from(member.weight())).sum();
        let sharing = self.taking.iter().map(|member| member.disk).chain(leaving.iter().copied());
        let slots: u64 = sharing.map(|disk| self.load_of(disk)).sum();
        let shares: HashMap<DiskId, u64> =
            self.taking.iter().map(|member| (member.disk, self.share(member, slots, capacity))).collect();
        let share_of = |disk: DiskId| shares.get(&disk).copied().unwrap_or(0);
        let below: Vec<&Member> =
            self.taking.iter().copied().filter(|to| share_of(to.disk) > self.load_of(to.disk)).collect();
        let is_far_below = |round: &Self, to: &Member| {
            share_of(to.disk) >= round.load_of(to.disk) + uneven(share_of(to.disk))
        };
        let far_below: Vec<&Member> = below.iter().copied().filter(|to| is_far_below(self, to)).collect();
        for group in groups {
            if self.moves.contains_key(&group.id) || !group.moves.is_empty() {
                continue;
            }
            for slot in 0..group.disks.len() {
                let from = group.disks[slot];
                if !shares.contains_key(&from) || self.load_of(from) <= share_of(from) {
                    continue;
                }
                let is_far_above = self.load_of(from) >= share_of(from) + uneven(share_of(from));
                let receivers = if is_far_above { &below } else { &far_below };
                if receivers.is_empty() {
                    continue;
                }
                let Some(others) = self.others(group, slot) else { continue };
                let best = receivers
                    .iter()
                    .filter(|to| {
                        let has_room = share_of(to.disk) > self.load_of(to.disk);
                        has_room && (is_far_above || is_far_below(self, to))
                    })
                    .filter(|to| self.may_go(group, slot, to, &others, Why::Uneven))
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
                is_part_time: false,
            })
            .collect()
    }

    /// Runs rounds until nothing moves; returns how many slots moved.
    fn settle(members: &[Member], leaving: &BTreeSet<DiskId>, groups: &mut [Placed]) -> usize {
        settle_within(1000, members, leaving, groups).expect("slots move for ever")
    }

    /// As [`settle`], for no more than so many rounds; `None` where more moves then.
    fn settle_within(
        rounds: usize,
        members: &[Member],
        leaving: &BTreeSet<DiskId>,
        groups: &mut [Placed],
    ) -> Option<usize> {
        let mut moved = 0;
        for _ in 0..rounds {
            let now: Vec<Moving> = groups
                .iter()
                .map(|group| Moving { id: group.id, disks: group.disks.clone(), moves: vec![] })
                .collect();
            let reasons = Reasons { leaving, endangered: &[], evens_out: true };
            let moves = plan_moves(members, members, reasons, &now, &mut Busy::default());
            if moves.is_empty() {
                return Some(moved);
            }
            moved += moves.len();
            for Move { group, slot, to } in moves {
                let group = groups.iter_mut().find(|known| known.id == group).unwrap();
                assert!(!group.disks.contains(&to), "a disk holds two slots of a group");
                group.disks[usize::from(slot)] = to;
            }
        }
        None
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

        /// One leaves while another that joined is still short of its share: what leaves makes up for it, and next to nothing
        /// moves twice or for nothing.
        #[test]
        fn what_leaves_fills_those_that_joined(nodes in 5u8..12, rounds in 0usize..4) {
            let before = cluster(0..nodes);
            let mut groups = plan(Scheme::new(2, 2).unwrap(), &before, &[], &[], 1);
            let members = cluster(0..nodes + 1);
            settle_within(rounds, &members, &BTreeSet::new(), &mut groups);
            let (was, gone) = (loads(&groups), members[0].disk);
            let share = groups.len() * 4 / usize::from(nodes);
            let load = |disk| was.get(disk).copied().unwrap_or(0);
            let short: usize = members[1..].iter().map(|to| share.saturating_sub(load(&to.disk))).sum();
            let had = was[&gone].max(short);
            let moved = settle(&members, &BTreeSet::from([gone]), &mut groups);
            prop_assert!(moved <= had + had / 10 + 2, "{moved} slots moved, {had} had to");
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

    /// A big disk takes more than a small one: here, as its due is beyond what the spread allows, a slot of every group.
    #[test]
    fn shares_follow_capacity() {
        let mut members = cluster(0..8);
        let mut groups = plan(Scheme::new(2, 2).unwrap(), &members, &[], &[], 1);
        members.push(Member { capacity_bytes: 4 << 40, ..cluster(8..9)[0].clone() });
        settle(&members, &BTreeSet::new(), &mut groups);
        let loads = loads(&groups);
        assert_eq!(loads[&members[8].disk], groups.len(), "{loads:?}");
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
        let reasons = Reasons { leaving: &leaving, endangered: &[], evens_out: true };
        let moves = plan_moves(&members, &members, reasons, &now, &mut Busy::default());
        assert_eq!(moves.len(), MOVES_PER_DISK_MAX);
    }

    /// All slots of a group that must be made again go at once, to nodes apart, the most endangered group first.
    #[test]
    fn endangered_slots_are_made_again_together() {
        let members = cluster(0..9);
        let groups = plan(Scheme::new(2, 2).unwrap(), &members, &[], &[], 1);
        let now: Vec<Moving> = groups
            .iter()
            .map(|group| Moving { id: group.id, disks: group.disks.clone(), moves: vec![] })
            .collect();
        let (taking, away) = (&members[2..], [members[0].disk, members[1].disk]);
        let mut endangered: Vec<(usize, PgId, u8)> = Vec::new();
        for group in &now {
            let lost: Vec<u8> =
                (0..4).filter(|slot| away.contains(&group.disks[usize::from(*slot)])).collect();
            endangered.extend(lost.iter().map(|slot| (4 - lost.len(), group.id, *slot)));
        }
        endangered.sort_unstable();
        let endangered: Vec<(PgId, u8)> = endangered.iter().map(|(_, id, slot)| (*id, *slot)).collect();
        let reasons = Reasons { leaving: &BTreeSet::new(), endangered: &endangered, evens_out: true };
        let moves = plan_moves(taking, &members, reasons, &now, &mut Busy::default());
        let most = REMAKES_PER_DISK_MAX * taking.len();
        assert!(
            moves.len() >= endangered.len().min(most) - taking.len(),
            "{} of {}",
            moves.len(),
            endangered.len()
        );
        let most_endangered = endangered[0].0;
        for (id, slot) in endangered.iter().filter(|(id, _)| *id == most_endangered) {
            assert!(moves.iter().any(|moved| moved.group == *id && moved.slot == *slot));
        }
        for group in &now {
            let mut disks = group.disks.clone();
            for moved in moves.iter().filter(|moved| moved.group == group.id) {
                assert!(away.contains(&disks[usize::from(moved.slot)]), "a slot moves that is there");
                disks[usize::from(moved.slot)] = moved.to;
            }
            assert_eq!(disks.iter().collect::<BTreeSet<_>>().len(), 4);
        }
    }

    /// One node more, one node less, of a hundred: no more moves than a tenth above what must.
    #[test]
    fn joining_and_leaving_move_what_must_move() {
        let before = cluster(0..100);
        let scheme = Scheme::new(4, 3).unwrap();
        let placed = plan(scheme, &before, &[], &[], 1);
        let mut groups = placed.clone();
        let members = cluster(0..101);
        let moved = settle(&members, &BTreeSet::new(), &mut groups);
        let share = placed.len() * 7 / 101;
        assert!(moved > 0 && moved * 10 <= share * 11, "{moved} slots moved for a share of {share}");

        let mut groups = placed;
        let gone = before[0].disk;
        let had = loads(&groups)[&gone];
        let moved = settle(&before, &BTreeSet::from([gone]), &mut groups);
        assert!(moved >= had && moved * 10 <= had * 11, "{moved} slots moved, {had} had to");
    }
}
