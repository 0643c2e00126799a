//! Making room by moving what runs: for a task that fits nowhere, though there is room enough in pieces.
//!
//! A node is tried by leaving out one or two of its tasks that would have to go; it will do when each of them finds
//! another place and the new task then fits. Of all ways the one that wastes least is taken, fewer moves first.

use std::collections::BTreeMap;

use super::model::NodeNumber;
use super::placement::shape::{Room, ShapeId};
use super::placement::{Place, Placer, Wish};

/// What runs where, as far as it may be moved.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    by_node: BTreeMap<NodeNumber, Vec<Held>>,
    /// Shapes for which no move helped, and the number of changes after which that was found.
    hopeless: BTreeMap<ShapeId, u64>,
    changes: u64,
}

/// A task that holds a place. `key` is the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub key: u64,
    pub shape: ShapeId,
    pub gpus: Vec<u16>,
}

impl Ledger {
    pub fn put(&mut self, key: u64, node: NodeNumber, shape: ShapeId, gpus: Vec<u16>) {
        self.by_node.entry(node).or_default().push(Held { key, shape, gpus });
        self.changes += 1;
    }

    pub fn remove(&mut self, node: NodeNumber, key: u64) -> Option<Held> {
        let held = self.by_node.get_mut(&node)?;
        let at = held.iter().position(|held| held.key == key)?;
        self.changes += 1;
        Some(held.remove(at))
    }

    #[must_use]
    pub fn on(&self, node: NodeNumber) -> &[Held] {
        self.by_node.get(&node).map_or(&[], Vec::as_slice)
    }
}

/// Changes of the cluster after which a shape that no move helped is tried again.
const TRY_AGAIN_AFTER: u64 = 16;

/// Bounds of one search.
#[derive(Debug, Clone, Copy)]
pub struct Moves {
    pub count_max: usize,
}

impl Moves {
    /// Moves up to `count_max` tasks so that one of `shape` fits. Returns how many were moved and the place, which is not taken
    /// yet; `None`: nothing was moved.
    pub fn make_room(
        &self,
        placer: &mut Placer,
        ledger: &mut Ledger,
        shape: ShapeId,
    ) -> Option<(usize, Place)> {
        let tried = ledger.hopeless.get(&shape).copied();
        if tried.is_some_and(|changes| ledger.changes < changes + TRY_AGAIN_AFTER) {
            return None;
        }
        for count in 1..=self.count_max.min(2) {
            if let Some((node, keys)) = cheapest(placer, ledger, shape, count) {
                carry_out(placer, ledger, node, &keys)?;
                return placer.find(shape, &Wish::default()).map(|place| (keys.len(), place));
            }
        }
        ledger.hopeless.insert(shape, ledger.changes);
        None
    }
}

/// The node and the tasks to move, with the least waste.
fn cheapest(
    placer: &mut Placer,
    ledger: &Ledger,
    shape: ShapeId,
    count: usize,
) -> Option<(NodeNumber, Vec<u64>)> {
    let wanted = placer.shape_of(shape).clone();
    let mut best: Option<(f64, NodeNumber, Vec<u64>)> = None;
    let rooms: Vec<(NodeNumber, Room)> = placer.rooms().map(|(node, room)| (node, room.clone())).collect();
    for (node, room) in rooms {
        let held = ledger.on(node);
        if !room.is_open || room.cards.len() < wanted.cards as usize {
            continue;
        }
        for set in sets(placer, held, count, &room, shape) {
            let Some(score) = try_out(placer, node, &set, shape) else { continue };
            if best.as_ref().is_none_or(|(least, ..)| score < *least) {
                best = Some((score, node, set.iter().map(|held| held.key).collect()));
            }
        }
    }
    best.map(|(_, node, keys)| (node, keys))
}

/// Sets of `count` tasks of a node without which the shape would fit; each kind of set once, only smaller ones than the shape.
fn sets(placer: &Placer, held: &[Held], count: usize, room: &Room, shape: ShapeId) -> Vec<Vec<Held>> {
    let wanted = placer.shape_of(shape);
    let is_smaller = |held: &&Held| placer.shape_of(held.shape).gpu_milli() < wanted.gpu_milli();
    let movable: Vec<&Held> = held.iter().filter(is_smaller).collect();
    let mut sets: Vec<Vec<Held>> = Vec::new();
    let mut offer = |set: Vec<&Held>| {
        let mut without = room.clone();
        for held in &set {
            without.give_back(placer.shape_of(held.shape), &held.gpus);
        }
        let kind = |set: &[Held]| set.iter().map(|held| (held.shape, held.gpus.clone())).collect::<Vec<_>>();
        let set: Vec<Held> = set.into_iter().cloned().collect();
        if without.fits(wanted) && !sets.iter().any(|known| kind(known) == kind(&set)) {
            sets.push(set);
        }
    };
    for (at, first) in movable.iter().enumerate() {
        match count {
            1 => offer(vec![first]),
            _ => movable[at + 1..].iter().for_each(|second| offer(vec![first, second])),
        }
    }
    sets
}

/// The waste added by moving the set away and placing the shape, or `None`: one of them finds no place. Changes nothing.
fn try_out(placer: &mut Placer, node: NodeNumber, set: &[Held], shape: ShapeId) -> Option<f64> {
    let mut taken: Vec<(ShapeId, Place)> = Vec::new();
    let mut score = 0.0;
    let mut is_possible = true;
    for held in set {
        match placer.find(held.shape, &Wish { local_bytes: None, avoid: &[node] }) {
            Some(place) => {
                score += place.score.total;
                placer.take(place.node, held.shape, &place.gpus);
                taken.push((held.shape, place));
            }
            None => {
                is_possible = false;
                break;
            }
        }
    }
    if is_possible {
        score += placer.replacement_score(node, set.iter().map(|held| (held.shape, &held.gpus[..])), shape);
    }
    for (shape, place) in taken.into_iter().rev() {
        placer.give_back(place.node, shape, &place.gpus);
    }
    is_possible.then_some(score)
}

/// Moves the tasks away from `node`, each to its best place elsewhere.
fn carry_out(placer: &mut Placer, ledger: &mut Ledger, node: NodeNumber, keys: &[u64]) -> Option<()> {
    for &key in keys {
        let held = ledger.remove(node, key)?;
        let place = placer.find(held.shape, &Wish { local_bytes: None, avoid: &[node] })?;
        placer.take(place.node, held.shape, &place.gpus);
        placer.give_back(node, held.shape, &held.gpus);
        ledger.put(key, place.node, held.shape, place.gpus);
    }
    Some(())
}
