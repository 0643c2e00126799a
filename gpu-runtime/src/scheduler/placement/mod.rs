//! Where a task goes: filter, then score, then the least score wins.
//!
//! ```text
//! demand ─ shape ─> rooms that fit ─ waste added + traits - locality ─> the least; of equals the first node
//! ```
//!
//! Scores are kept by shape and node. A placement changes one node, so the next decision for a shape scores again only the
//! nodes that changed since its last one, and then takes the least of a row of integers. What is expected of the future
//! ([`mix`], [`stock`]) is renewed every few hundred tasks, which makes all scores stale at once.
//!
//! Scores are fixed-point integers: equal inputs give equal choices, and equal scores go to the first node.

pub mod mix;
pub mod shape;
pub mod stock;
pub mod waste;

use std::collections::{BTreeMap, HashMap};

use super::model::{Demand, Node, NodeNumber, Refusal, Refusals, Score, Traits};
use mix::Mix;
use shape::{Room, Shape, ShapeId};
use waste::Waste;

/// Parts of a GPU-milli that a score tells apart.
const SCORE_UNITS: f64 = 1024.0;
/// A node that does not fit.
const UNFIT: i32 = i32::MAX;
/// Shapes whose scores are kept; the one unused for longest makes room.
const TABLES_MAX: usize = 512;
/// Tasks after which the outlook is renewed: few while little is known, then a fixed number.
const RENEW_TASKS_MIN: u64 = 32;
const RENEW_TASKS_MAX: u64 = 512;
/// Shortest future that gaps are priced for, in tasks: a full cluster still gets its gaps filled.
const HORIZON_TASKS_MIN: f64 = 256.0;

// What a node's traits weigh, in parts of the task's own GPU-milli (or what its CPU would feed).
/// An attempt that dies loses about all its work.
const RELIABILITY_WEIGHT: f64 = 1.0;
const VALUE_WEIGHT: f64 = 0.25;
const LOAD_WEIGHT: f64 = 0.25;
const TRUST_WEIGHT: f64 = 0.1;
/// For a task all of whose inputs are there.
const LOCALITY_WEIGHT: f64 = 0.25;
/// Inputs from which locality weighs full: about ten seconds on a gigabit line.
const LOCALITY_BYTES_FULL: f64 = (1_u64 << 30) as f64;

/// What a single task prefers and shuns, beyond its demand.
#[derive(Debug, Clone, Default)]
pub struct Wish<'a> {
    pub local_bytes: Option<&'a BTreeMap<NodeNumber, u64>>,
    pub avoid: &'a [NodeNumber],
}

/// A place that was found; it is not taken yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    pub node: NodeNumber,
    pub gpus: Vec<u16>,
    pub score: Score,
}

/// Scores of one shape on every node.
#[derive(Debug, Default)]
struct Table {
    scores: Vec<i32>,
    /// For a share: the card it would take.
    cards: Vec<u8>,
    /// Changes of rooms that are in it.
    seen: u64,
    /// The outlook that it was made for.
    outlook: u64,
    used: u64,
}

/// Finds places and keeps the books of what is free.
#[derive(Debug)]
pub struct Placer {
    nodes: Vec<NodeNumber>,
    index: HashMap<NodeNumber, usize>,
    rooms: Vec<Room>,
    traits: Vec<Traits>,
    /// Of each room as it is now.
    wastes: Vec<f64>,
    kinds: Vec<String>,
    sites: Vec<String>,
    shapes: Vec<Shape>,
    demands: HashMap<Demand, ShapeId>,
    mix: Mix,
    waste: Waste,
    outlook: u64,
    observed: u64,
    renew_at: u64,
    tables: HashMap<ShapeId, Table>,
    /// Rooms that changed, oldest first; the first `forgotten` are no longer listed.
    changes: Vec<u32>,
    forgotten: u64,
    clock: u64,
}

fn number_of(names: &mut Vec<String>, name: &str) -> u32 {
    let at = names.iter().position(|known| known == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    });
    at as u32
}

impl Placer {
    /// All of `nodes` empty. Of nodes with one number the first counts.
    #[must_use]
    pub fn new(nodes: &[Node]) -> Self {
        let (mut kinds, mut sites) = (Vec::new(), Vec::new());
        let mut placer = Self {
            nodes: Vec::with_capacity(nodes.len()),
            index: HashMap::with_capacity(nodes.len()),
            rooms: Vec::with_capacity(nodes.len()),
            traits: Vec::with_capacity(nodes.len()),
            wastes: Vec::new(),
            kinds: Vec::new(),
            sites: Vec::new(),
            shapes: Vec::new(),
            demands: HashMap::new(),
            mix: Mix::default(),
            waste: Waste::unknown(),
            outlook: 0,
            observed: 0,
            renew_at: RENEW_TASKS_MIN,
            tables: HashMap::new(),
            changes: Vec::new(),
            forgotten: 0,
            clock: 0,
        };
        for node in nodes {
            if placer.index.contains_key(&node.number) {
                continue;
            }
            placer.index.insert(node.number, placer.nodes.len());
            placer.nodes.push(node.number);
            placer.traits.push(node.traits);
            let mut kind = |name: &str| number_of(&mut kinds, name);
            let mut site = |name: &str| number_of(&mut sites, name);
            placer.rooms.push(Room::of(node, &mut kind, &mut site));
        }
        (placer.kinds, placer.sites) = (kinds, sites);
        placer.renew();
        placer
    }

    /// The shape of a demand; demands that are alike share one.
    pub fn shape(&mut self, demand: &Demand) -> ShapeId {
        if let Some(&id) = self.demands.get(demand) {
            return id;
        }
        let gpu = demand.gpu.as_ref().filter(|gpu| gpu.cards > 0 && gpu.milli > 0);
        let kinds = gpu.filter(|gpu| !gpu.models.is_empty()).map(|gpu| {
            let allowed = |kind: &String| gpu.models.iter().any(|model| kind.contains(model.as_str()));
            self.kinds.iter().map(allowed).collect()
        });
        let site = (!demand.site.is_empty()).then(|| {
            // An unknown site has no node: a number past all others.
            self.sites.iter().position(|site| *site == demand.site).unwrap_or(self.sites.len()) as u32
        });
        let shape = Shape {
            cpu_milli: demand.cpu_milli,
            memory_mib: demand.memory_mib,
            scratch_mib: demand.scratch_mib,
            cards: gpu.map_or(0, |gpu| gpu.cards),
            milli: gpu.map_or(0, |gpu| gpu.milli),
            card_memory_mib: gpu.map_or(0, |gpu| gpu.memory_mib),
            kinds,
            level_min: gpu.map_or(0, |gpu| gpu.level_min),
            needs_shadow: gpu.is_some_and(|gpu| gpu.needs_shadow),
            site,
            trust_min_milli: demand.trust_min_milli,
        };
        let id = ShapeId(self.shapes.len());
        self.shapes.push(shape);
        self.demands.insert(demand.clone(), id);
        id
    }

    /// Learns that `count` such tasks were asked for.
    pub fn observe(&mut self, shape: ShapeId, count: u64) {
        self.mix.observe(shape, count as f64);
        self.observed = self.observed.saturating_add(count);
        if self.observed >= self.renew_at {
            self.renew();
        }
    }

    /// Learns what was asked for, all at once.
    pub fn learn(&mut self, counts: &BTreeMap<ShapeId, u64>) {
        for (&shape, &count) in counts {
            self.mix.observe(shape, count as f64);
            self.observed = self.observed.saturating_add(count);
        }
        self.renew();
    }

    /// Looks at the mix and the open gaps anew.
    pub fn renew(&mut self) {
        let outlook = self.mix.outlook(&self.shapes);
        if !outlook.likely.is_empty() {
            self.waste = Waste::expect(&outlook, &self.shapes, &self.rooms, HORIZON_TASKS_MIN);
        }
        self.wastes = self.rooms.iter().map(|room| waste_of(&self.waste, room)).collect();
        self.outlook += 1;
        let pause = (self.observed / 2).clamp(RENEW_TASKS_MIN, RENEW_TASKS_MAX);
        self.renew_at = self.observed.saturating_add(pause);
    }

    /// The best place for one task, or `None`: no node fits; [`Placer::refusals`] says why.
    pub fn find(&mut self, shape: ShapeId, wish: &Wish<'_>) -> Option<Place> {
        self.refresh(shape);
        let table = &self.tables[&shape];
        let mut best =
            least(&table.scores, wish.avoid.iter().filter_map(|node| self.index.get(node).copied()));
        if let Some(local) = wish.local_bytes {
            let mut best_score = best.map_or(i64::from(UNFIT), |at| {
                i64::from(table.scores[at]) - self.locality_units(shape, local, at)
            });
            for node in local.keys() {
                let Some(&at) = self.index.get(node) else { continue };
                let score = i64::from(table.scores[at]) - self.locality_units(shape, local, at);
                let is_better = (score, at) < (best_score, best.unwrap_or(usize::MAX));
                if table.scores[at] != UNFIT && is_better && !wish.avoid.contains(node) {
                    (best, best_score) = (Some(at), score);
                }
            }
        }
        let at = best?;
        let gpus = self.cards_for(shape, at, table.cards[at]);
        let score = self.explain(shape, at, &gpus, wish);
        Some(Place { node: self.nodes[at], gpus, score })
    }

    /// Takes a place. False, and nothing is taken: there is not so much.
    pub fn take(&mut self, node: NodeNumber, shape: ShapeId, gpus: &[u16]) -> bool {
        let Some(&at) = self.index.get(&node) else { return false };
        let is_taken = self.rooms[at].take(&self.shapes[shape.0], gpus);
        if is_taken {
            self.changed(at);
        }
        is_taken
    }

    /// Books what already runs, whatever the books say is free.
    pub fn occupy(&mut self, node: NodeNumber, shape: ShapeId, gpus: &[u16]) {
        if let Some(&at) = self.index.get(&node) {
            self.rooms[at].take_all_there_is(&self.shapes[shape.0], gpus);
            self.changed(at);
        }
    }

    pub fn give_back(&mut self, node: NodeNumber, shape: ShapeId, gpus: &[u16]) {
        if let Some(&at) = self.index.get(&node) {
            self.rooms[at].give_back(&self.shapes[shape.0], gpus);
            self.changed(at);
        }
    }

    /// Why the nodes that do not fit do not.
    #[must_use]
    pub fn refusals(&self, shape: ShapeId, avoid: &[NodeNumber]) -> Refusals {
        let mut refusals = Refusals::default();
        for (node, room) in self.nodes.iter().zip(&self.rooms) {
            let refusal = if avoid.contains(node) {
                Some(Refusal::Avoided)
            } else {
                room.refusal(&self.shapes[shape.0])
            };
            if let Some(refusal) = refusal {
                *refusals.nodes.entry(refusal).or_default() += 1;
            }
        }
        refusals
    }

    /// Waste added on `node` when tasks leave it and one of `shape` comes in their place.
    pub fn replacement_score<'a>(
        &self,
        node: NodeNumber,
        leaving: impl Iterator<Item = (ShapeId, &'a [u16])>,
        shape: ShapeId,
    ) -> f64 {
        let Some(&at) = self.index.get(&node) else { return f64::INFINITY };
        let mut room = self.rooms[at].clone();
        for (leaving, gpus) in leaving {
            room.give_back(&self.shapes[leaving.0], gpus);
        }
        let task = &self.shapes[shape.0];
        if !room.fits(task) {
            return f64::INFINITY;
        }
        let before = waste_of(&self.waste, &room);
        let (added, _) = self.waste_added(&room, before, task);
        before + added - self.wastes[at] + self.trait_penalty(task, at)
    }

    #[must_use]
    pub fn room(&self, node: NodeNumber) -> Option<&Room> {
        self.index.get(&node).map(|&at| &self.rooms[at])
    }

    pub fn rooms(&self) -> impl Iterator<Item = (NodeNumber, &Room)> {
        self.nodes.iter().copied().zip(&self.rooms)
    }

    #[must_use]
    pub fn shape_of(&self, shape: ShapeId) -> &Shape {
        &self.shapes[shape.0]
    }

    /// Every score is made anew when next asked for.
    #[cfg(test)]
    pub fn forget_scores(&mut self) {
        self.tables.clear();
    }

    fn changed(&mut self, at: usize) {
        self.wastes[at] = waste_of(&self.waste, &self.rooms[at]);
        self.changes.push(at as u32);
        // A table that is further behind than a row is long is scored whole.
        let keep = 2 * self.nodes.len().max(64);
        if self.changes.len() > 2 * keep {
            let forget = self.changes.len() - keep;
            self.changes.drain(..forget);
            self.forgotten += forget as u64;
        }
    }

    /// Brings the scores of a shape up to date.
    fn refresh(&mut self, shape: ShapeId) {
        self.clock += 1;
        if self.tables.len() >= TABLES_MAX && !self.tables.contains_key(&shape) {
            let unused = self.tables.iter().min_by_key(|(_, table)| table.used).map(|(&id, _)| id);
            unused.map(|id| self.tables.remove(&id));
        }
        let mut table = self.tables.remove(&shape).unwrap_or_default();
        let end = self.forgotten + self.changes.len() as u64;
        let behind = end - table.seen;
        if table.outlook != self.outlook || table.seen < self.forgotten || behind > self.nodes.len() as u64 {
            table.scores.resize(self.nodes.len(), UNFIT);
            table.cards.resize(self.nodes.len(), 0);
            for at in 0..self.nodes.len() {
                (table.scores[at], table.cards[at]) = self.score(shape, at);
            }
            table.outlook = self.outlook;
        } else {
            for &at in &self.changes[(table.seen - self.forgotten) as usize..] {
                (table.scores[at as usize], table.cards[at as usize]) = self.score(shape, at as usize);
            }
        }
        (table.seen, table.used) = (end, self.clock);
        self.tables.insert(shape, table);
    }

    /// A shape's score on one node, and for a share the card it would take.
    fn score(&self, shape: ShapeId, at: usize) -> (i32, u8) {
        let (room, task) = (&self.rooms[at], &self.shapes[shape.0]);
        if !room.fits(task) {
            return (UNFIT, 0);
        }
        let (added, card) = self.waste_added(room, self.wastes[at], task);
        (units(added + self.trait_penalty(task, at)), card)
    }

    /// Waste that the task adds, on the best card for it.
    fn waste_added(&self, room: &Room, before: f64, task: &Shape) -> (f64, u8) {
        let (cpu, memory) = (room.cpu_milli - task.cpu_milli, room.memory_mib - task.memory_mib);
        if task.cards == 0 {
            return (self.waste.of(cpu, memory, &room.cards) - before, 0);
        }
        let mut cards = room.cards.clone();
        if task.cards > 1 {
            for &card in &tightest(room, task) {
                cards[usize::from(card)].free_milli -= task.milli;
            }
            return (self.waste.of(cpu, memory, &cards) - before, 0);
        }
        let mut best = (f64::INFINITY, 0);
        for at in 0..cards.len() {
            let card = room.cards[at];
            // Cards that are alike leave the same waste.
            if !task.fits_card(&card) || room.cards[..at].contains(&card) {
                continue;
            }
            cards[at].free_milli -= task.milli;
            let added = self.waste.of(cpu, memory, &cards) - before;
            cards[at].free_milli = card.free_milli;
            if added < best.0 - 0.5 / SCORE_UNITS {
                best = (added, at as u8);
            }
        }
        best
    }

    /// What makes a task large, in GPU-milli: its GPUs, or what its CPU could feed.
    fn size(&self, task: &Shape) -> f64 {
        if task.cards > 0 { task.gpu_milli() as f64 } else { task.cpu_milli as f64 / 10.0 }
    }

    fn trait_penalties(&self, task: &Shape, at: usize) -> [f64; 4] {
        let (traits, size) = (&self.traits[at], self.size(task));
        let short = |milli: u32| (1000.0 - f64::from(milli)) / 1000.0;
        [
            VALUE_WEIGHT * size * short(traits.value_milli),
            RELIABILITY_WEIGHT * size * short(traits.reliability_milli),
            LOAD_WEIGHT * size * f64::from(traits.load_milli) / 1000.0,
            TRUST_WEIGHT * size * short(traits.trust_milli),
        ]
    }

    fn trait_penalty(&self, task: &Shape, at: usize) -> f64 {
        self.trait_penalties(task, at).iter().sum()
    }

    fn locality(&self, shape: ShapeId, local: &BTreeMap<NodeNumber, u64>, at: usize) -> f64 {
        let bytes = local.get(&self.nodes[at]).copied().unwrap_or(0) as f64;
        LOCALITY_WEIGHT * self.size(&self.shapes[shape.0]) * (bytes / LOCALITY_BYTES_FULL).min(1.0)
    }

    fn locality_units(&self, shape: ShapeId, local: &BTreeMap<NodeNumber, u64>, at: usize) -> i64 {
        i64::from(units(self.locality(shape, local, at)))
    }

    fn cards_for(&self, shape: ShapeId, at: usize, card: u8) -> Vec<u16> {
        let task = &self.shapes[shape.0];
        match task.cards {
            0 => Vec::new(),
            1 => vec![u16::from(card)],
            _ => tightest(&self.rooms[at], task),
        }
    }

    fn explain(&self, shape: ShapeId, at: usize, gpus: &[u16], wish: &Wish<'_>) -> Score {
        let (room, task) = (&self.rooms[at], &self.shapes[shape.0]);
        let mut after = room.clone();
        after.take(task, gpus);
        let [value, reliability, load, trust] = self.trait_penalties(task, at);
        let locality = wish.local_bytes.map_or(0.0, |local| -self.locality(shape, local, at));
        let packing = waste_of(&self.waste, &after) - self.wastes[at];
        let total = packing + locality + value + reliability + load + trust;
        Score { total, packing, locality, value, reliability, load, trust }
    }
}

fn waste_of(waste: &Waste, room: &Room) -> f64 {
    waste.of(room.cpu_milli, room.memory_mib, &room.cards)
}

/// The cards with the least room that still fits; of equals the first.
fn tightest(room: &Room, task: &Shape) -> Vec<u16> {
    let mut fitting: Vec<u16> =
        (0..room.cards.len() as u16).filter(|&card| task.fits_card(&room.cards[usize::from(card)])).collect();
    fitting.sort_by_key(|&card| room.cards[usize::from(card)].free_milli);
    fitting.truncate(task.cards as usize);
    fitting
}

/// The first of the least that is not shunned.
fn least(scores: &[i32], shunned: impl Iterator<Item = usize>) -> Option<usize> {
    let shunned: Vec<usize> = shunned.collect();
    let mut best = UNFIT;
    if shunned.is_empty() {
        best = scores.iter().copied().min().unwrap_or(UNFIT);
    } else {
        for (at, &score) in scores.iter().enumerate() {
            if score < best && !shunned.contains(&at) {
                best = score;
            }
        }
    }
    if best == UNFIT {
        return None;
    }
    (0..scores.len()).find(|at| scores[*at] == best && !shunned.contains(at))
}

fn units(score: f64) -> i32 {
    // A cast of a float saturates; the largest integer means "does not fit".
    ((score * SCORE_UNITS).round() as i32).min(UNFIT - 1)
}
