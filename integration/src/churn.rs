//! A year of home PCs in virtual time: who is up, what the rules of health and placement decide, and what that moves.
//!
//! ```text
//! PCs (nights, outages, losses; by seed) ─ heartbeats ─> Judge ─ up, down ─┐
//! lines (bytes a second up and down) ─ slots filled ─ finished ────────────┴─> map ─ sort_disks, endangered, changes ─> map
//! ```
//!
//! The rules are the daemon's own, called as its leader calls them; only the machines and their lines are a model, and only
//! time is played: no shard is held. Always: what a machine that is lost held is gone; a slot counts as held by its own disk
//! alone, however much of it another one has made; a round is as long as [`Options::round_ms`], so that what happens within
//! one is seen at its end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use makai::members::Filled;
use makai::reconcile::health::Judge;
use makai::reconcile::placement::rules::{self, Disks};
use makai_erasure::placement::{Patience, Presence};
use makai_erasure::{DiskId, NodeId, PgId, Scheme};
use makai_raft::facts::Timestamp;
use makai_raft::facts::cluster::{ClusterMap, Condition, Disk, Group, Node, Role, SlotMove, Standing};
use makai_raft::facts::command::Command;
use makai_raft::view::IndexedMap;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
pub const DAY_MS: u64 = 24 * HOUR_MS;
/// Thirty days, as the issue of losses is told in.
pub const MONTH_MS: u64 = 30 * DAY_MS;
/// Where virtual time begins; what matters is that it is not 0.
const START_MS: u64 = 1_700_000_000_000;

/// When slots are made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Policy {
    /// By the rules.
    Lazy,
    /// Each as soon as its disk is away for so long, whatever its group has to spare.
    Eager { grace_ms: u64 },
}

/// What is played.
#[derive(Debug, Clone)]
pub struct Options {
    pub seed: u64,
    pub nodes: usize,
    pub days: u64,
    pub round_ms: u64,
    pub scheme: Scheme,
    pub policy: Policy,
    /// Of all machines, in percent, those that are switched off each night: from about 23:30 for about 8 hours.
    pub nightly_percent: u32,
    /// Any machine goes for another reason this often, on average; half of these outages take less than an hour, a tenth
    /// more than twelve.
    pub outage_every_ms: u64,
    /// Of all machines, in thousandths a month, those that never come back. As many join.
    pub lost_permille_a_month: u32,
    /// Data and parity that a slot of a group holds.
    pub slot_bytes: u64,
    pub up_bytes_per_sec: u64,
    pub down_bytes_per_sec: u64,
    /// `storage.repair_bytes_per_sec_max`.
    pub ceiling_bytes_per_sec: u64,
}

impl Options {
    /// A thousand PCs behind lines of 20 Mbit/s up and 100 down, each with about 100 GB of shards; a quarter of them is
    /// switched off at night.
    #[must_use]
    pub fn home(nodes: usize, days: u64, seed: u64) -> Self {
        Self {
            seed,
            nodes,
            days,
            round_ms: 10 * MINUTE_MS,
            scheme: Scheme { data: 16, parity: 8 },
            policy: Policy::Lazy,
            nightly_percent: 25,
            outage_every_ms: 5 * DAY_MS,
            lost_permille_a_month: 20,
            slot_bytes: 5_000_000_000,
            up_bytes_per_sec: 2_500_000,
            down_bytes_per_sec: 12_500_000,
            ceiling_bytes_per_sec: 32 << 20,
        }
    }
}

/// What was seen.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    pub groups: usize,
    /// Of data, without parity.
    pub stored_bytes: u64,
    pub nodes_lost: usize,
    /// Mean part of the machines that were up, in percent.
    pub up_percent: f64,
    /// Groups of which fewer shards than needed are left anywhere.
    pub groups_lost: usize,
    /// Least number of shards beyond those needed that any group had left, up or not.
    pub least_left: i64,
    /// Part of all group hours in which fewer shards than needed were up, in percent; and of the last 30 days.
    pub unreadable_percent: f64,
    pub unreadable_percent_last_month: f64,
    pub slots_remade: u64,
    pub slots_moved: u64,
    /// Remakes begun and given up since the slot's disk came back.
    pub remakes_given_up: u64,
    /// Bytes that went over lines to make slots again, each transfer counted once, as parts of the stored bytes and a month;
    /// and of the last 30 days.
    pub repair_traffic_a_month: f64,
    pub repair_traffic_last_month: f64,
    /// As above, to even out.
    pub balance_traffic_a_month: f64,
    pub balance_traffic_last_month: f64,
    /// Mean hours from the loss of a machine until none of its slots was left on it.
    pub mean_hours_to_mend: f64,
    pub rounds: u64,
}

/// A machine: until when it is as it is.
struct Pc {
    is_nightly: bool,
    night: (u64, u64),
    outage: (u64, u64),
    lost_at: u64,
}

impl Pc {
    fn new(dice: &mut StdRng, options: &Options, now: u64) -> Self {
        let lost_rate = f64::from(options.lost_permille_a_month) / 1000.0 / MONTH_MS as f64;
        let mut pc = Self {
            is_nightly: dice.random_range(0..100) < options.nightly_percent,
            night: (0, 0),
            outage: (0, 0),
            lost_at: now.saturating_add(exponential(dice, 1.0 / lost_rate.max(1e-18))),
        };
        pc.next_night(dice, now);
        pc.next_outage(dice, options, now);
        pc
    }

    fn next_night(&mut self, dice: &mut StdRng, now: u64) {
        if !self.is_nightly {
            self.night = (u64::MAX, u64::MAX);
            return;
        }
        let midnight = now / DAY_MS * DAY_MS;
        let evening = midnight + 23 * HOUR_MS + HOUR_MS / 2;
        let spread = |dice: &mut StdRng, by: u64| dice.random_range(0..2 * by) as i64 - by as i64;
        let off = evening.saturating_add_signed(spread(dice, 90 * MINUTE_MS));
        let for_ms = (8 * HOUR_MS).saturating_add_signed(spread(dice, 90 * MINUTE_MS));
        let off = if off + for_ms <= now { off + DAY_MS } else { off };
        self.night = (off, off + for_ms);
    }

    /// Log-normal: median an hour, nine tenths below twelve.
    fn next_outage(&mut self, dice: &mut StdRng, options: &Options, now: u64) {
        let sigma = 12f64.ln() / 1.281_551_6;
        let from = now.saturating_add(exponential(dice, options.outage_every_ms as f64));
        let for_ms = HOUR_MS as f64 * (sigma * normal(dice)).exp();
        self.outage = (from, from.saturating_add(for_ms as u64));
    }

    fn is_up(&mut self, dice: &mut StdRng, options: &Options, now: u64) -> bool {
        while now >= self.night.1 {
            let until = self.night.1;
            self.next_night(dice, until);
        }
        while now >= self.outage.1 {
            let until = self.outage.1;
            self.next_outage(dice, options, until);
        }
        now < self.lost_at && now < self.night.0 && now < self.outage.0
    }
}

fn exponential(dice: &mut StdRng, mean: f64) -> u64 {
    let drawn: f64 = dice.random_range(f64::MIN_POSITIVE..1.0);
    (-drawn.ln() * mean).min(1e17) as u64
}

/// Box and Muller's.
fn normal(dice: &mut StdRng) -> f64 {
    let (radius, angle): (f64, f64) = (dice.random_range(f64::MIN_POSITIVE..1.0), dice.random());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// A slot on its way: how much of it is there.
type Jobs = HashMap<(PgId, u8, DiskId), u64>;

struct World<'o> {
    options: &'o Options,
    dice: StdRng,
    now: u64,
    began: Instant,
    judge: Judge,
    pcs: Vec<Pc>,
    is_up: Vec<bool>,
    /// Places in `pcs` of nodes and disks.
    of_node: HashMap<NodeId, usize>,
    of_disk: HashMap<DiskId, usize>,
    map: IndexedMap,
    /// Groups that hold data: those of the beginning.
    filled: BTreeSet<PgId>,
    lost_groups: BTreeSet<PgId>,
    jobs: Jobs,
    /// Lost machines that still have slots.
    mourned: BTreeMap<usize, u64>,
    mended_ms: Vec<u64>,
    tally: Tally,
}

#[derive(Default, Clone)]
struct Tally {
    group_rounds: u64,
    unreadable: u64,
    up: u64,
    pc_rounds: u64,
    repair_bytes: u64,
    balance_bytes: u64,
    remade: u64,
    moved: u64,
    given_up: u64,
    rounds: u64,
}

/// Plays it.
///
/// # Errors
/// The rules ask for what the facts would refuse.
pub fn play(options: &Options) -> anyhow::Result<Report> {
    let mut world = World::new(options)?;
    let end = START_MS + options.days * DAY_MS;
    let last_month = end.saturating_sub(MONTH_MS);
    let mut before_last_month = None;
    while world.now < end {
        world.now += options.round_ms;
        if before_last_month.is_none() && world.now > last_month {
            before_last_month = Some(world.tally.clone());
        }
        world.round()?;
    }
    Ok(world.report(&before_last_month.unwrap_or_default()))
}

impl<'o> World<'o> {
    fn new(options: &'o Options) -> anyhow::Result<Self> {
        let mut world = Self {
            options,
            dice: StdRng::seed_from_u64(options.seed),
            now: START_MS,
            began: makai::clock::instant(),
            judge: Judge::default(),
            pcs: Vec::new(),
            is_up: Vec::new(),
            of_node: HashMap::new(),
            of_disk: HashMap::new(),
            map: IndexedMap::default(),
            filled: BTreeSet::new(),
            lost_groups: BTreeSet::new(),
            jobs: Jobs::new(),
            mourned: BTreeMap::new(),
            mended_ms: Vec::new(),
            tally: Tally::default(),
        };
        let mut map = ClusterMap { epoch: 1, ..ClusterMap::default() };
        for _ in 0..options.nodes {
            world.join(&mut map);
        }
        world.map = IndexedMap::new(map);
        world.plan()?;
        world.filled = world.map.map.groups.iter().map(|group| group.id).collect();
        ensure!(!world.filled.is_empty(), "{} machines carry no {}", options.nodes, options.scheme);
        Ok(world)
    }

    /// A machine with one disk.
    fn join(&mut self, map: &mut ClusterMap) {
        let number = self.pcs.len();
        let (mut node, mut disk) = ([0; 32], [0; 16]);
        self.dice.fill(&mut node);
        self.dice.fill(&mut disk);
        let (node, disk) = (NodeId(node), DiskId(disk));
        self.of_node.insert(node, number);
        self.of_disk.insert(disk, number);
        self.pcs.push(Pc::new(&mut self.dice, self.options, self.now));
        self.is_up.push(true);
        let now = Timestamp(self.now);
        map.nodes.push(Node {
            id: node,
            number: number as u64 + 1,
            name: String::new(),
            owner: String::new(),
            site: String::new(),
            roles: vec![Role::Storage],
            addresses: Vec::new(),
            standing: Standing::Active,
            joined_at: now,
            is_up: true,
            changed_at: now,
            version: String::new(),
            down_ppm: 0,
        });
        map.disks.push(Disk {
            id: disk,
            node,
            capacity_bytes: 1 << 40,
            standing: Standing::Active,
            added_at: now,
            condition: Condition::Well,
            speed_bytes_per_sec: 0,
        });
    }

    fn round(&mut self) -> anyhow::Result<()> {
        self.live();
        self.transfer()?;
        self.plan()?;
        self.look();
        Ok(())
    }

    /// Machines go and come, and are heard or not.
    fn live(&mut self) {
        let at = self.began + Duration::from_millis(self.now - START_MS);
        let mut heard = HashMap::new();
        for number in 0..self.pcs.len() {
            let was_lost = self.pcs[number].lost_at <= self.now - self.options.round_ms;
            self.is_up[number] = self.pcs[number].is_up(&mut self.dice, self.options, self.now);
            if !was_lost && self.pcs[number].lost_at <= self.now {
                self.lose(number);
            }
        }
        for node in &self.map.map.nodes {
            if self.is_up[self.of_node[&node.id]] {
                heard.insert(node.id, at);
            }
        }
        for (id, is_up) in self.judge.transitions(&self.map.map.nodes, &heard, self.began, at) {
            let number = self.of_node[&id];
            self.map.map.nodes[number].note_up(is_up, Timestamp(self.now));
        }
        let alive = self.pcs.iter().filter(|pc| pc.lost_at > self.now).count();
        if alive < self.options.nodes {
            let mut map = std::mem::take(&mut self.map).map;
            for _ in alive..self.options.nodes {
                self.join(&mut map);
            }
            self.map = IndexedMap::new(map);
        }
    }

    /// What a machine held is gone.
    fn lose(&mut self, number: usize) {
        self.mourned.insert(number, self.now);
        for group in self.map.map.groups.iter().filter(|group| self.filled.contains(&group.id)) {
            let is_left = |disk: &&DiskId| self.pcs[self.of_disk[disk]].lost_at > self.now;
            let left = group.disks.iter().filter(is_left).count();
            if left < usize::from(self.options.scheme.data) {
                self.lost_groups.insert(group.id);
            }
        }
    }

    /// What goes over the lines in a round, and the slots that are switched at its end.
    fn transfer(&mut self) -> anyhow::Result<()> {
        let options = self.options;
        let seconds = options.round_ms / 1000;
        let data = usize::from(options.scheme.data);
        // On each disk one slot at a time, what is made again first, the most endangered group first: as the shards' loop does.
        let mut next: BTreeMap<DiskId, ((bool, usize), PgId, SlotMove)> = BTreeMap::new();
        let mut told = Vec::new();
        let map = &self.map.map;
        let up = |disk: &DiskId| self.is_up[self.of_disk[disk]];
        for group in map.groups.iter().filter(|group| !group.moves.is_empty()) {
            let spare = group.disks.iter().filter(|disk| up(disk)).count();
            for moving in group.moves.iter().filter(|moving| up(&moving.to)) {
                let has = self.jobs.get(&(group.id, moving.slot, moving.to)).copied().unwrap_or(0);
                if has >= options.slot_bytes || !self.filled.contains(&group.id) {
                    told.push((group.id, *moving));
                    continue;
                }
                let is_copied = !moving.is_remake && up(&group.disks[usize::from(moving.slot)]);
                if !is_copied && spare < data {
                    continue;
                }
                let rank = ((!moving.is_remake, spare), group.id, *moving);
                let best = next.entry(moving.to).or_insert(rank);
                if rank.0 < best.0 {
                    *best = rank;
                }
            }
        }
        let mut reads: HashMap<DiskId, u64> = HashMap::new();
        let mut under_way = Vec::new();
        for (_, id, moving) in next.into_values() {
            let group = self.map.group(id).context("a group moves that is none")?;
            let own = group.disks[usize::from(moving.slot)];
            // Slots that are made again together share what is read: each reads its part of it and sends the others theirs.
            let together = group
                .moves
                .iter()
                .filter(|other| other.is_remake == moving.is_remake && up(&other.to))
                .count() as u64;
            let sources: Vec<DiskId> = if !moving.is_remake && up(&own) {
                vec![own]
            } else {
                // Any k of those that are up: which ones differs from slot to slot.
                let width = group.disks.len();
                let around = (0..width).map(|at| group.disks[(at + usize::from(moving.slot)) % width]);
                around.filter(|disk| up(disk)).take(data).collect()
            };
            sources.iter().for_each(|source| *reads.entry(*source).or_default() += 1);
            under_way.push((id, moving, sources, together.max(1)));
        }
        for (id, moving, sources, together) in under_way {
            let slowest = sources.iter().map(|source| options.up_bytes_per_sec / reads[source]).min();
            let rate = (options.down_bytes_per_sec / sources.len() as u64)
                .min(slowest.unwrap_or(0))
                .min(options.ceiling_bytes_per_sec);
            let has = self.jobs.entry((id, moving.slot, moving.to)).or_default();
            let made = (rate * seconds).min(options.slot_bytes - *has);
            *has += made;
            let together = if sources.len() == 1 { 1 } else { together };
            let moved = made * (sources.len() as u64 + together - 1) / together;
            *(if moving.is_remake { &mut self.tally.repair_bytes } else { &mut self.tally.balance_bytes }) +=
                moved;
            if *has >= options.slot_bytes {
                told.push((id, moving));
            }
        }
        self.switch(&told)
    }

    /// Switches what is filled, as the leader does on hearing of it.
    fn switch(&mut self, told: &[(PgId, SlotMove)]) -> anyhow::Result<()> {
        loop {
            let filled = told.iter().filter_map(|(pg, moving)| {
                let version = self.map.group(*pg)?.version;
                Some(Filled { pg: *pg, slot: moving.slot, to: moving.to, version, sequence: 0 })
            });
            let commands = rules::finished(&self.map.map, &filled.collect::<Vec<_>>());
            if commands.is_empty() {
                return Ok(());
            }
            for command in commands {
                let Command::FinishMove { pg, slot, to, .. } = command else { bail!("{command:?}") };
                let group =
                    self.map.map.groups.iter_mut().find(|group| group.id == pg).context("its group")?;
                let moving = group.moves.iter().position(|moving| moving.slot == slot && moving.to == to);
                let moving = group.moves.remove(moving.context("its move")?);
                group.disks[usize::from(slot)] = to;
                group.version += 1;
                self.jobs.remove(&(pg, slot, to));
                if self.filled.contains(&pg) {
                    *(if moving.is_remake { &mut self.tally.remade } else { &mut self.tally.moved }) += 1;
                }
            }
        }
    }

    /// The leader's round.
    fn plan(&mut self) -> anyhow::Result<()> {
        let patience = match self.options.policy {
            Policy::Lazy => Patience { grace_ms: DAY_MS, urgent_ms: 10 * MINUTE_MS, is_outage: false },
            Policy::Eager { grace_ms } => Patience { grace_ms, urgent_ms: grace_ms, is_outage: false },
        };
        let disks = rules::sort_disks(&self.map, Timestamp(self.now), patience.grace_ms);
        let endangered = match self.options.policy {
            Policy::Lazy => rules::endangered(&self.map.map, &disks, patience),
            Policy::Eager { grace_ms } => eager(&self.map.map, &disks, grace_ms),
        };
        let schemes = BTreeSet::from([self.options.scheme]);
        let changed = rules::changes(&self.map.map, &disks, &schemes, &endangered);
        if changed.is_empty() {
            return Ok(());
        }
        let mut has_new = false;
        for group in changed {
            let known = self.map.group(group.id).cloned();
            group.check_change(known.as_ref()).map_err(|why| anyhow!("group {}: {why}", group.id))?;
            match known {
                None => {
                    has_new = true;
                    self.map.map.groups.push(group);
                }
                Some(known) => self.replace(&known, group),
            }
        }
        if has_new {
            self.map = IndexedMap::new(std::mem::take(&mut self.map).map);
        }
        Ok(())
    }

    fn replace(&mut self, known: &Group, group: Group) {
        for moving in known.moves.iter().filter(|moving| !group.moves.contains(moving)) {
            self.jobs.remove(&(group.id, moving.slot, moving.to));
            self.tally.given_up += u64::from(moving.is_remake);
        }
        if let Some(place) = self.map.map.groups.iter_mut().find(|place| place.id == group.id) {
            *place = group;
        }
    }

    fn look(&mut self) {
        self.tally.rounds += 1;
        self.tally.pc_rounds += self.options.nodes as u64;
        self.tally.up += self.is_up.iter().filter(|is_up| **is_up).count() as u64;
        let data = usize::from(self.options.scheme.data);
        let mut has_slots = vec![false; self.pcs.len()];
        for group in self.map.map.groups.iter().filter(|group| self.filled.contains(&group.id)) {
            let mut readable = 0;
            for disk in &group.disks {
                let number = self.of_disk[disk];
                readable += usize::from(self.is_up[number]);
                has_slots[number] = true;
            }
            self.tally.group_rounds += 1;
            self.tally.unreadable += u64::from(readable < data);
        }
        let now = self.now;
        let mended = &mut self.mended_ms;
        self.mourned.retain(|number, since| {
            if !has_slots[*number] {
                mended.push(now - *since);
            }
            has_slots[*number]
        });
    }

    fn report(&self, before: &Tally) -> Report {
        let options = self.options;
        let stored_bytes = self.filled.len() as u64 * options.slot_bytes * u64::from(options.scheme.data);
        let months = (options.days * DAY_MS) as f64 / MONTH_MS as f64;
        let of_stored = |bytes: u64, months: f64| bytes as f64 / stored_bytes as f64 / months;
        let (all, months_last) = (&self.tally, months.min(1.0));
        let percent = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
        let left = |group: &Group| {
            let is_left = |disk: &&DiskId| self.pcs[self.of_disk[disk]].lost_at > self.now;
            group.disks.iter().filter(is_left).count() as i64 - i64::from(options.scheme.data)
        };
        let filled = self.map.map.groups.iter().filter(|group| self.filled.contains(&group.id));
        Report {
            groups: self.filled.len(),
            stored_bytes,
            nodes_lost: self.pcs.iter().filter(|pc| pc.lost_at <= self.now).count(),
            up_percent: percent(all.up, all.pc_rounds),
            groups_lost: self.lost_groups.len(),
            least_left: filled.map(left).min().unwrap_or(0),
            unreadable_percent: percent(all.unreadable, all.group_rounds),
            unreadable_percent_last_month: percent(
                all.unreadable - before.unreadable,
                all.group_rounds - before.group_rounds,
            ),
            slots_remade: all.remade,
            slots_moved: all.moved,
            remakes_given_up: all.given_up,
            repair_traffic_a_month: of_stored(all.repair_bytes, months),
            repair_traffic_last_month: of_stored(all.repair_bytes - before.repair_bytes, months_last),
            balance_traffic_a_month: of_stored(all.balance_bytes, months),
            balance_traffic_last_month: of_stored(all.balance_bytes - before.balance_bytes, months_last),
            mean_hours_to_mend: self.mended_ms.iter().sum::<u64>() as f64
                / self.mended_ms.len().max(1) as f64
                / HOUR_MS as f64,
            rounds: all.rounds,
        }
    }
}

/// Every slot whose disk is away for longer than the grace, where the group can be read.
fn eager(map: &ClusterMap, disks: &Disks, grace_ms: u64) -> Vec<(PgId, u8)> {
    let mut due = Vec::new();
    for group in &map.groups {
        let presences: Vec<Presence> = group.disks.iter().map(|disk| disks.presence(*disk)).collect();
        let here = presences.iter().filter(|presence| **presence == Presence::Here).count();
        let Some(spare) = here.checked_sub(usize::from(group.scheme.data)) else { continue };
        let is_due = |presence: &Presence| match presence {
            Presence::Here => false,
            Presence::Away { for_ms } => *for_ms >= grace_ms,
            Presence::Gone => true,
        };
        let slots = (0u8..).zip(&presences).filter(|(_, presence)| is_due(presence));
        due.extend(slots.map(|(slot, _)| (spare, group.id, slot)));
    }
    due.sort_unstable();
    due.into_iter().map(|(_, group, slot)| (group, slot)).collect()
}
