//! Which disks make a placement group.
//!
//! ```text
//! (scheme, disks that may be used, groups as they are) ─ plan ─> groups to add or change
//! ```
//!
//! Pure and deterministic: every voter computes the same plan from the same facts. Always: a group's disks are
//! distinct; they lie on as many nodes, then owners, then sites as the members allow; a slot changes only when its
//! disk may no longer be used.

mod danger;
mod moves;

use std::collections::{BTreeSet, HashMap};

use crate::ids::{DiskId, NodeId, PgId};
use crate::layout::Scheme;

pub use danger::{Danger, Patience, Presence, Thresholds, danger, thresholds};
pub use moves::{Busy, Move, Moving, Reasons, plan_moves};

/// Groups each disk should be in: enough that a lost disk is rebuilt from and by many.
const GROUPS_PER_DISK: usize = 20;
/// Groups of one scheme, whatever the cluster's size.
const GROUPS_MAX: usize = 1 << 17;
/// Disks that are looked at for one slot where none is apart from all others of its group.
const LOOKS_MAX: usize = 512;

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
    /// Its machine is off for a good part of each day, with others like it: a group has few of them, and each takes little.
    pub is_part_time: bool,
}

/// Of its size, a part-time disk takes one part in so many.
const PART_TIME_PARTS: u64 = 8;

impl Member {
    /// What it counts as when slots are shared out.
    fn weight(&self) -> u64 {
        let weight =
            if self.is_part_time { self.capacity_bytes / PART_TIME_PARTS } else { self.capacity_bytes };
        weight.max(1)
    }
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

/// Disks by number, and what fails together with each: node, owner, site as numbers, 0 for one that is unknown; last, 1 for
/// those that are off at night together.
struct Roster<'m> {
    members: Vec<&'m Member>,
    numbers: HashMap<DiskId, usize>,
    domains: Vec<Domains>,
}

impl<'m> Roster<'m> {
    /// The first of several with one disk counts.
    fn new(members: impl IntoIterator<Item = &'m Member>) -> Self {
        let mut roster = Self { members: Vec::new(), numbers: HashMap::new(), domains: Vec::new() };
        let (mut nodes, mut owners, mut sites) = (HashMap::new(), HashMap::new(), HashMap::new());
        for member in members {
            let number = roster.members.len();
            if *roster.numbers.entry(member.disk).or_insert(number) != number {
                continue;
            }
            roster.members.push(member);
            let node = number_of(&mut nodes, member.node);
            let owner = if member.owner.is_empty() { 0 } else { number_of(&mut owners, &*member.owner) };
            let site = if member.site.is_empty() { 0 } else { number_of(&mut sites, &*member.site) };
            roster.domains.push([node, owner, site, u32::from(member.is_part_time)]);
        }
        roster
    }

    fn number(&self, disk: DiskId) -> Option<usize> {
        self.numbers.get(&disk).copied()
    }
}

const DOMAINS: usize = 4;
type Domains = [u32; DOMAINS];

/// Numbers names from 1 in the order in which they come.
fn number_of<K: Eq + std::hash::Hash>(names: &mut HashMap<K, u32>, name: K) -> u32 {
    let next = names.len() as u32 + 1; // Disks are far fewer than 2^32.
    *names.entry(name).or_insert(next)
}

/// What a group's disks are spread over, noted while it is filled.
#[derive(Default)]
struct Spread {
    chosen: Vec<Domains>,
}

impl Spread {
    fn add(&mut self, domains: Domains) {
        self.chosen.push(domains);
    }

    /// How many already chosen fail together with a disk of these domains: node first, then owner, then site.
    fn shared(&self, domains: Domains) -> Domains {
        let mut shared = [0; DOMAINS];
        for other in &self.chosen {
            for at in 0..DOMAINS {
                shared[at] += u32::from(domains[at] != 0 && other[at] == domains[at]);
            }
        }
        shared
    }
}

/// Deterministic, evenly spread tie-break: rendezvous hashing by BLAKE3.
fn rendezvous(group: PgId, slot: usize, disk: DiskId) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&group.0.to_be_bytes()).update(&(slot as u64).to_be_bytes()).update(&disk.0);
    first_bytes(&hasher.finalize())
}

fn first_bytes(hash: &blake3::Hash) -> u64 {
    u64::from_be_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

/// Disks that may take slots, the least laden for their size first. Those that are equally laden come in an order that is
/// another one at each load, so that a disk meets many others.
struct Shelf<'r> {
    roster: &'r Roster<'r>,
    seeds: Vec<u64>,
    loads: Vec<u64>,
    order: BTreeSet<(u128, u64, usize)>,
}

impl<'r> Shelf<'r> {
    fn new(roster: &'r Roster<'r>, taking: impl IntoIterator<Item = usize>) -> Self {
        let seed = |member: &&Member| first_bytes(&blake3::hash(&member.disk.0));
        let seeds = roster.members.iter().map(seed).collect();
        let loads = vec![0; roster.members.len()];
        let mut shelf = Self { roster, seeds, loads, order: BTreeSet::new() };
        for number in taking {
            shelf.order.insert(shelf.place(number));
        }
        shelf
    }

    fn place(&self, number: usize) -> (u128, u64, usize) {
        let capacity = u128::from(self.roster.members[number].weight());
        let fullness = (u128::from(self.loads[number]) << 64) / capacity;
        (fullness, mix(self.seeds[number] ^ mix(self.loads[number])), number)
    }

    fn load(&mut self, number: usize) {
        let is_taking = self.order.remove(&self.place(number));
        self.loads[number] += 1;
        if is_taking {
            self.order.insert(self.place(number));
        }
    }

    /// The least laden disk of those that share least with what was chosen; beyond [`LOOKS_MAX`] disks a sample decides.
    fn best(&self, spread: &Spread, taken: &[usize]) -> Option<usize> {
        let mut best: Option<(Domains, usize)> = None;
        let free = self.order.iter().map(|(_, _, number)| *number).filter(|number| !taken.contains(number));
        for number in free.take(LOOKS_MAX) {
            let shared = spread.shared(self.roster.domains[number]);
            if best.is_none_or(|(least, _)| shared < least) {
                best = Some((shared, number));
            }
            if shared == [0; DOMAINS] {
                break;
            }
        }
        best.map(|(_, number)| number)
    }
}

/// The finaliser of SplitMix64: spreads any difference over all bits.
fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Groups of `scheme` to add, and existing ones with slots to change.
///
/// `members`: every disk that may take shards. `keeping`: disks that take no new slots and keep those they have, since what
/// they hold is still read. `existing`: all groups of this scheme. `next_id`: the first id free.
/// Makes no new group where fewer disks than shards are: such a scheme cannot be placed.
/// Cost: existing slots, and slots filled x the disks that share something with each group.
#[must_use]
pub fn plan(
    scheme: Scheme,
    members: &[Member],
    keeping: &[Member],
    existing: &[Placed],
    next_id: u32,
) -> Vec<Placed> {
    let width = scheme.shard_count();
    let roster = Roster::new(members.iter().chain(keeping));
    let taking: Vec<usize> = {
        let numbers: BTreeSet<usize> =
            members.iter().filter_map(|member| roster.number(member.disk)).collect();
        numbers.into_iter().collect()
    };
    let mut changes = Vec::new();
    let is_broken = |group: &&Placed| {
        group.disks.len() == width && group.disks.iter().any(|disk| roster.number(*disk).is_none())
    };
    let broken: Vec<&Placed> = existing.iter().filter(is_broken).collect();
    if !broken.is_empty() {
        let mut shelf = Shelf::new(&roster, taking.iter().copied());
        for number in existing.iter().flat_map(|group| &group.disks).filter_map(|disk| roster.number(*disk)) {
            shelf.load(number);
        }
        for group in broken {
            let kept = group.disks.iter().map(|disk| roster.number(*disk)).collect();
            if let Some(disks) = fill(kept, &mut shelf) {
                changes.push(Placed { id: group.id, version: group.version + 1, disks });
            }
        }
    }

    if taking.len() < width {
        return changes;
    }
    let wanted = (taking.len() * GROUPS_PER_DISK).div_ceil(width).min(GROUPS_MAX);
    // Shared out evenly among themselves: what a disk has too many of otherwise moves, bytes and all.
    let mut shelf = Shelf::new(&roster, taking);
    for id in (next_id..).take(wanted.saturating_sub(existing.len())).map(PgId) {
        if let Some(disks) = fill(vec![None; width], &mut shelf) {
            changes.push(Placed { id, version: 1, disks });
        }
    }
    changes
}

/// Fills the empty slots, each with the disk that shares least with the others and is least laden for its size.
fn fill(mut slots: Vec<Option<usize>>, shelf: &mut Shelf<'_>) -> Option<Vec<DiskId>> {
    let mut spread = Spread::default();
    let mut taken: Vec<usize> = slots.iter().flatten().copied().collect();
    taken.iter().for_each(|number| spread.add(shelf.roster.domains[*number]));
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        let number = shelf.best(&spread, &taken)?;
        spread.add(shelf.roster.domains[number]);
        taken.push(number);
        shelf.load(number);
        *slot = Some(number);
    }
    slots.into_iter().map(|slot| slot.map(|number| shelf.roster.members[number].disk)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
                is_part_time: false,
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

    /// Of machines that are off at night, no group has more than one while there are enough others, and each has little.
    #[test]
    fn part_time_machines_take_little_and_apart() {
        let mut members = cluster(40, 1);
        members.iter_mut().step_by(4).for_each(|member| member.is_part_time = true);
        let groups = plan(Scheme::new(6, 4).unwrap(), &members, &[], &[], 1);
        let is_part_time =
            |disk: &DiskId| members.iter().any(|member| member.disk == *disk && member.is_part_time);
        let slots: Vec<usize> =
            groups.iter().map(|group| group.disks.iter().filter(|disk| is_part_time(disk)).count()).collect();
        assert!(slots.iter().all(|slots| *slots <= 1), "{slots:?}");
        let (theirs, all) = (slots.iter().sum::<usize>(), groups.len() * 10);
        // Ten of forty, at an eighth: 1.25 parts of 31.25.
        assert!(theirs * 20 >= all / 2 && theirs * 20 <= all * 2, "{theirs} of {all} slots");
    }

    /// Ten thousand nodes: groups are distinct in nodes, even, and each disk meets many others.
    #[test]
    fn large_clusters_are_planned_evenly() {
        let members: Vec<Member> = (0..10_000u32)
            .map(|number| {
                let mut disk = [0; 16];
                disk[..4].copy_from_slice(&number.to_be_bytes());
                let mut node = [0; 32];
                node[..4].copy_from_slice(&number.to_be_bytes());
                Member {
                    disk: DiskId(disk),
                    node: NodeId(node),
                    owner: format!("owner{}", number / 2),
                    site: format!("site{}", number % 500),
                    capacity_bytes: (1 + u64::from(number % 4)) << 40,
                    is_part_time: false,
                }
            })
            .collect();
        let scheme = Scheme::new(16, 8).unwrap();
        let groups = plan(scheme, &members, &[], &[], 1);
        assert_eq!(groups.len(), 10_000 * GROUPS_PER_DISK / 24 + 1);
        let number = |disk: &DiskId| u32::from_be_bytes(disk.0[..4].try_into().unwrap());
        let mut loads = vec![0u64; members.len()];
        let mut meets = BTreeSet::new();
        for group in &groups {
            let numbers: Vec<u32> = group.disks.iter().map(number).collect();
            let owners: BTreeSet<u32> = numbers.iter().map(|number| number / 2).collect();
            let sites: BTreeSet<u32> = numbers.iter().map(|number| number % 500).collect();
            assert_eq!((owners.len(), sites.len()), (24, 24));
            numbers.iter().for_each(|number| loads[*number as usize] += 1);
            if numbers.contains(&7) {
                meets.extend(numbers);
            }
        }
        for of in 0..4u64 {
            let of_size = loads.iter().skip(of as usize).step_by(4);
            let (least, most) = (of_size.clone().min().unwrap(), of_size.max().unwrap());
            assert!(most - least <= 2, "disks of size {}: {least} to {most} slots", of + 1);
        }
        let slots = loads[7] * 23;
        assert!(meets.len() as u64 > slots * 9 / 10, "{} others in {slots} slots", meets.len());
    }

    /// Prints times: `cargo test --release -p makai-erasure --lib placement -- --ignored --nocapture`.
    #[test]
    #[ignore = "measures time: for BENCHMARKS.md"]
    #[expect(clippy::disallowed_methods, reason = "it measures")]
    fn times_of_plans() {
        let members: Vec<Member> = (0..20_000u32)
            .map(|number| {
                let mut disk = [0; 16];
                disk[..4].copy_from_slice(&number.to_be_bytes());
                let mut node = [0; 32];
                node[..4].copy_from_slice(&(number / 2).to_be_bytes());
                let (owner, site) = (String::new(), String::new());
                Member {
                    disk: DiskId(disk),
                    node: NodeId(node),
                    owner,
                    site,
                    capacity_bytes: 1 << 40,
                    is_part_time: false,
                }
            })
            .collect();
        let scheme = Scheme::new(2, 2).unwrap();
        let begun = std::time::Instant::now();
        let groups = plan(scheme, &members, &[], &[], 1);
        println!("{} groups on 10,000 nodes, from nothing: {:.2?}", groups.len(), begun.elapsed());
        let begun = std::time::Instant::now();
        assert_eq!(plan(scheme, &members, &[], &groups, 200_000), []);
        println!("looked through again: {:.2?}", begun.elapsed());
        let begun = std::time::Instant::now();
        let changed = plan(scheme, &members[2..], &[], &groups, 200_000);
        println!("{} groups after a node is lost: {:.2?}", changed.len(), begun.elapsed());
        let moving: Vec<Moving> = groups
            .iter()
            .map(|group| Moving { id: group.id, disks: group.disks.clone(), moves: vec![] })
            .collect();
        let reasons = Reasons { leaving: &BTreeSet::new(), endangered: &[], evens_out: true };
        let begun = std::time::Instant::now();
        let moves = plan_moves(&members, &members, reasons, &moving, &mut Busy::default());
        println!("{} moves of a settled cluster: {:.2?}", moves.len(), begun.elapsed());
    }
}
