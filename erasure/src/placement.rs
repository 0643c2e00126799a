//! Which disks make a placement group.
//!
//! ```text
//! (scheme, disks that may be used, groups as they are) ─ plan ─> groups to add or change
//! ```
//!
//! Pure and deterministic: every voter computes the same plan from the same facts. Always: a group's disks are
//! distinct; they lie on as many nodes, then owners, then sites as the members allow; a slot changes only when its
//! disk may no longer be used.

mod moves;

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{DiskId, NodeId, PgId};
use crate::layout::Scheme;

pub use moves::{Busy, Move, Moving, plan_moves};

/// Groups each disk should be in: enough that a lost disk is rebuilt from and by many.
const GROUPS_PER_DISK: usize = 20;
/// Groups of one scheme, whatever the cluster's size.
const GROUPS_MAX: usize = 1 << 17;

/// A disk that may take shards, and what fails together with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub disk: DiskId,
    pub node: NodeId,
    /// Empty: unknown, the node then stands for itself.
    pub owner: String,
    pub site: String,
    /// Bytes it offers, at least 1.
    pub capacity_bytes: u64,
}

/// A group as it is or as it should be: `disks[i]` holds shard i.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub id: PgId,
    pub version: u32,
    pub disks: Vec<DiskId>,
}

/// The scheme for a cluster with this many independent nodes, `disks` in all.
#[must_use]
pub fn default_scheme(nodes: usize, disks: usize) -> Scheme {
    let (data, parity) = match (nodes, disks) {
        (0 | 1, 0 | 1) => (1, 0),
        (0 | 1, 2 | 3) => (1, 1),
        (0 | 1, _) => (2, 2),
        (2, _) => (1, 1),
        (3, _) => (1, 2),
        (4..=8, _) => (2, 2),
        (9..=11, _) => (4, 3),
        (12..=17, _) => (6, 4),
        (18..=27, _) => (10, 6),
        _ => (16, 8),
    };
    Scheme { data, parity }
}

/// What a group must be spread over, counted while it is filled.
#[derive(Default)]
struct Spread<'m> {
    nodes: BTreeMap<NodeId, u32>,
    owners: BTreeMap<&'m str, u32>,
    sites: BTreeMap<&'m str, u32>,
}

impl<'m> Spread<'m> {
    fn add(&mut self, member: &'m Member) {
        *self.nodes.entry(member.node).or_default() += 1;
        for (counts, domain) in [(&mut self.owners, &member.owner), (&mut self.sites, &member.site)] {
            if !domain.is_empty() {
                *counts.entry(domain).or_default() += 1;
            }
        }
    }

    /// How many already chosen fail together with `member`: node first, then owner, then site.
    fn shared(&self, member: &Member) -> (u32, u32, u32) {
        let of = |counts: &BTreeMap<&str, u32>, domain: &str| counts.get(domain).copied().unwrap_or(0);
        (
            self.nodes.get(&member.node).copied().unwrap_or(0),
            of(&self.owners, &member.owner),
            of(&self.sites, &member.site),
        )
    }
}

/// Deterministic, evenly spread tie-break: rendezvous hashing by BLAKE3.
fn rendezvous(group: PgId, slot: usize, disk: DiskId) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&group.0.to_be_bytes()).update(&(slot as u64).to_be_bytes()).update(&disk.0);
    let hash = hasher.finalize();
    u64::from_be_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

/// Groups of `scheme` to add, and existing ones with slots to change.
///
/// `members`: every disk that may take shards. `keeping`: disks that take no new slots and keep those they have, since what
/// they hold is still read. `existing`: all groups of this scheme. `next_id`: the first id free.
/// Makes no new group where fewer disks than shards are: such a scheme cannot be placed.
/// Cost: groups changed x shards x members.
#[must_use]
pub fn plan(
    scheme: Scheme,
    members: &[Member],
    keeping: &[Member],
    existing: &[Placed],
    next_id: u32,
) -> Vec<Placed> {
    let width = scheme.shard_count();
    let by_disk: BTreeMap<DiskId, &Member> = members.iter().map(|member| (member.disk, member)).collect();
    let known: BTreeMap<DiskId, &Member> =
        keeping.iter().chain(members).map(|member| (member.disk, member)).collect();
    let mut load: BTreeMap<DiskId, u64> = by_disk.keys().map(|disk| (*disk, 0)).collect();
    for disk in existing.iter().flat_map(|group| &group.disks) {
        load.entry(*disk).and_modify(|count| *count += 1);
    }
    let mut changes = Vec::new();

    for group in existing {
        let is_sound = |disk: &DiskId| known.contains_key(disk);
        if group.disks.len() != width || group.disks.iter().all(is_sound) {
            continue;
        }
        let kept = group.disks.iter().map(|disk| is_sound(disk).then_some(*disk)).collect();
        if let Some(disks) = fill(group.id, kept, &known, &by_disk, &mut load) {
            changes.push(Placed { id: group.id, version: group.version + 1, disks });
        }
    }

    if by_disk.len() < width {
        return changes;
    }
    // Shared out evenly among themselves: what a disk has too many of otherwise moves, bytes and all.
    let mut load: BTreeMap<DiskId, u64> = by_disk.keys().map(|disk| (*disk, 0)).collect();
    let wanted = (by_disk.len() * GROUPS_PER_DISK).div_ceil(width).min(GROUPS_MAX);
    for id in (next_id..).take(wanted.saturating_sub(existing.len())).map(PgId) {
        if let Some(disks) = fill(id, vec![None; width], &known, &by_disk, &mut load) {
            changes.push(Placed { id, version: 1, disks });
        }
    }
    changes
}

/// Fills the empty slots, each with the disk that shares least with the others and is least laden for its size.
fn fill(
    id: PgId,
    mut slots: Vec<Option<DiskId>>,
    known: &BTreeMap<DiskId, &Member>,
    by_disk: &BTreeMap<DiskId, &Member>,
    load: &mut BTreeMap<DiskId, u64>,
) -> Option<Vec<DiskId>> {
    let mut spread = Spread::default();
    let mut taken = BTreeSet::new();
    for disk in slots.iter().flatten() {
        spread.add(known.get(disk)?);
        taken.insert(*disk);
    }
    for (at, slot) in slots.iter_mut().enumerate().filter(|(_, slot)| slot.is_none()) {
        let member =
            by_disk.values().filter(|member| !taken.contains(&member.disk)).min_by_key(|member| {
                let fullness =
                    (u128::from(load[&member.disk]) << 64) / u128::from(member.capacity_bytes.max(1));
                (spread.shared(member), fullness, rendezvous(id, at, member.disk), member.disk)
            })?;
        spread.add(member);
        taken.insert(member.disk);
        load.entry(member.disk).and_modify(|count| *count += 1);
        *slot = Some(member.disk);
    }
    slots.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cluster(nodes: usize, disks_per_node: usize) -> Vec<Member> {
        (0..nodes * disks_per_node)
            .map(|disk| Member {
                disk: DiskId([disk as u8 + 1; 16]),
                node: NodeId([(disk / disks_per_node) as u8; 32]),
                owner: String::new(),
                site: String::new(),
                capacity_bytes: 1 << 40,
            })
            .collect()
    }

    proptest! {
        /// Disks are distinct, nodes as distinct as can be, load even, and a second plan changes nothing.
        #[test]
        fn groups_are_spread_even_and_stable(nodes in 1usize..14, disks in 1usize..4, data in 1u8..7, parity in 0u8..4) {
            let scheme = Scheme::new(data, parity).unwrap();
            let members = cluster(nodes, disks);
            let groups = plan(scheme, &members, &[], &[], 1);
            let width = scheme.shard_count();
            prop_assert_eq!(groups.is_empty(), members.len() < width);
            let mut load = BTreeMap::<DiskId, usize>::new();
            for group in &groups {
                let distinct: BTreeSet<_> = group.disks.iter().collect();
                prop_assert_eq!(distinct.len(), width);
                let mut per_node = BTreeMap::<NodeId, usize>::new();
                for disk in &group.disks {
                    *load.entry(*disk).or_default() += 1;
                    *per_node.entry(members.iter().find(|member| member.disk == *disk).unwrap().node).or_default() += 1;
                }
                prop_assert_eq!(*per_node.values().max().unwrap(), width.div_ceil(nodes));
            }
            if let (Some(least), Some(most)) = (load.values().min(), load.values().max()) {
                prop_assert_eq!(load.len(), members.len());
                prop_assert!(most - least <= 2 + most / 3, "{least} to {most}");
            }
            let next = groups.len() as u32 + 1;
            prop_assert_eq!(plan(scheme, &members, &[], &groups, next), vec![]);
        }

        /// Losing a disk changes the slots it had, and no others.
        #[test]
        fn only_lost_slots_move(nodes in 5usize..10, lost: prop::sample::Index) {
            let scheme = Scheme::new(2, 2).unwrap();
            let members = cluster(nodes, 1);
            let groups = plan(scheme, &members, &[], &[], 1);
            let lost = members[lost.index(members.len())].disk;
            let left: Vec<_> = members.iter().filter(|member| member.disk != lost).cloned().collect();
            let changes = plan(scheme, &left, &[], &groups, groups.len() as u32 + 1);
            for group in &groups {
                let change = changes.iter().find(|change| change.id == group.id);
                prop_assert_eq!(change.is_some(), group.disks.contains(&lost));
                let Some(change) = change else { continue };
                prop_assert_eq!(change.version, group.version + 1);
                for (new, old) in change.disks.iter().zip(&group.disks) {
                    prop_assert!(*new != lost);
                    prop_assert!((new == old) != (*old == lost));
                }
            }
        }
    }

    /// A disk that takes nothing new keeps its slots, however many of a group are such: their shards are still read.
    #[test]
    fn what_is_still_read_stays() {
        let members = cluster(8, 1);
        let scheme = Scheme::new(2, 2).unwrap();
        let groups = plan(scheme, &members, &[], &[], 1);
        let (keeping, left) = members.split_at(4);
        let next = groups.len() as u32 + 1;
        let changes = plan(scheme, left, keeping, &groups, next);
        assert!(changes.iter().all(|change| change.id.0 >= next), "an existing group changed");
        assert!(
            changes.iter().flat_map(|change| &change.disks).all(|disk| left.iter().any(|m| m.disk == *disk))
        );
    }

    /// Any two of six nodes may die, and a group with at least three of its four disks remains to write to.
    #[test]
    fn six_nodes_keep_a_writable_group_when_two_die() {
        let members = cluster(6, 1);
        let groups = plan(default_scheme(6, 6), &members, &[], &[], 1);
        for a in 0..6 {
            for b in 0..a {
                let dead = [members[a].disk, members[b].disk];
                let best = groups
                    .iter()
                    .map(|group| group.disks.iter().filter(|disk| !dead.contains(disk)).count())
                    .max();
                assert!(best >= Some(3), "nodes {a} and {b}");
            }
        }
    }

    /// Sites and owners are kept apart where there are enough of them.
    #[test]
    fn owners_and_sites_are_kept_apart() {
        let mut members = cluster(12, 1);
        for (index, member) in members.iter_mut().enumerate() {
            member.owner = format!("owner{}", index / 2);
            member.site = format!("site{}", index / 3);
        }
        for group in plan(Scheme::new(2, 2).unwrap(), &members, &[], &[], 1) {
            let of = |disk: &DiskId| members.iter().find(|member| member.disk == *disk).unwrap();
            let owners: BTreeSet<_> = group.disks.iter().map(|disk| &of(disk).owner).collect();
            let sites: BTreeSet<_> = group.disks.iter().map(|disk| &of(disk).site).collect();
            assert_eq!((owners.len(), sites.len()), (4, 4));
        }
    }
}
