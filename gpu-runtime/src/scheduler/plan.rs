//! One round of the scheduler: what starts, stops and waits, and why.
//!
//! ```text
//! order ─> fits? ─ yes ─> start, unless it would delay a reservation
//!            └ no ─> worth stopping others? ─ yes ─> preempt, start
//!                      └ no ─> the first few get a reservation, all wait
//! nothing waits that fits ─> stragglers get a twin
//! ```
//!
//! A reservation names the nodes and the time at which the task's demand will be free by the predictions for what runs. A task
//! behind it in the order is started on such a node only where the reserved demand still fits at that time beside it, or
//! where it will have ended by then.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{
    Action, Cluster, Demand, Estimate, NodeNumber, Queue, Refusals, Running, TaskId, Waiting,
};
use super::order::{Order, weight_of};
use super::placement::shape::{Room, ShapeId};
use super::placement::{Place, Placer, Wish};

/// Tasks or gangs that hold a reservation; the others behind them fill what is left.
const RESERVATIONS_MAX: usize = 4;
/// Waiting tasks that are told why; further ones wait for the like of it.
const EXPLAINED_MAX: usize = 1000;
/// Tasks of one gang.
const GANG_MAX: usize = 1024;
/// Victims of one preemption.
const VICTIMS_MAX: usize = 64;
/// Searches for victims in one round; each looks at all that runs.
const PREEMPTIONS_TRIED_MAX: usize = 16;
/// Priority that doubles what a moment of a task's time is worth.
const PRIORITY_PER_DOUBLING: f64 = 10.0;
/// A task is a straggler when it runs longer than its ninetieth percentile by this factor,
const STRAGGLER_RUNTIMES: f64 = 1.5;
/// and at least so long.
const STRAGGLER_MS_MIN: u64 = 30_000;
/// Part of the running tasks that may have a twin, and always one.
const TWINS_PART: f64 = 0.05;

/// Plans one round. `now_ms` is the time that the facts' timestamps are of.
///
/// Cost: about one look at every node for each kind of demand, then microseconds a task; tasks that fit nowhere cost
/// next to nothing once one like them was tried.
#[must_use]
pub fn plan(cluster: &Cluster, queue: &Queue, now_ms: u64) -> Vec<Action> {
    let mut round = Round::new(cluster, queue, now_ms);
    round.starts();
    round.stragglers();
    round.actions
}

#[derive(Debug)]
struct Held<'a> {
    running: &'a Running,
    shape: ShapeId,
    is_stopped: bool,
}

#[derive(Debug)]
struct Started {
    shape: ShapeId,
    gpus: Vec<u16>,
    end_ms: u64,
}

#[derive(Debug)]
struct Reservation {
    start_ms: u64,
    places: Vec<(NodeNumber, ShapeId)>,
}

struct Round<'a> {
    queue: &'a Queue,
    now_ms: u64,
    placer: Placer,
    order: Option<Order<'a>>,
    held: BTreeMap<NodeNumber, Vec<Held<'a>>>,
    /// What this round starts.
    started: BTreeMap<NodeNumber, Vec<Started>>,
    reservations: Vec<Reservation>,
    /// Shapes that fit nowhere, with why; emptied when room appears.
    full: BTreeMap<ShapeId, Refusals>,
    /// Shapes and priorities for which stopping others is not worth it; emptied likewise.
    not_worth_stopping: BTreeSet<(ShapeId, u8)>,
    is_settled: Vec<bool>,
    gangs: BTreeMap<u64, Vec<usize>>,
    actions: Vec<Action>,
    explained: usize,
    preemptions_tried: usize,
    running: &'a [Running],
}

/// When it will have ended, by its prediction; an overdue one is given half as long again. `None`: nothing is known.
fn end_ms(started_ms: u64, runtime: Estimate, now_ms: u64) -> Option<u64> {
    if runtime.p90_ms == 0 {
        return None;
    }
    let end = started_ms.saturating_add(runtime.p90_ms);
    Some(if end > now_ms { end } else { now_ms + 1 + now_ms.saturating_sub(started_ms) / 2 })
}

/// What a millisecond of so much held or awaited room is worth.
fn worth(priority: u8, weight: u64) -> f64 {
    (f64::from(priority) / PRIORITY_PER_DOUBLING).exp2() * weight as f64
}

impl<'a> Round<'a> {
    fn new(cluster: &'a Cluster, queue: &'a Queue, now_ms: u64) -> Self {
        let mut placer = Placer::new(&cluster.nodes);
        // Shapes are numbered in the order of their demands, so that no choice depends on how facts are listed.
        let mut demands: BTreeMap<&Demand, u64> = BTreeMap::new();
        let (waits, runs) = (queue.waiting.iter(), cluster.running.iter());
        let is_learnt_here = u64::from(queue.recent.is_empty());
        for demand in waits.map(|task| &task.demand).chain(runs.map(|task| &task.demand)) {
            *demands.entry(demand).or_default() += is_learnt_here;
        }
        for (demand, count) in &queue.recent {
            *demands.entry(demand).or_default() += count;
        }
        let seen: BTreeMap<ShapeId, u64> =
            demands.into_iter().map(|(demand, count)| (placer.shape(demand), count)).collect();
        let mut held: BTreeMap<NodeNumber, Vec<Held<'a>>> = BTreeMap::new();
        for running in &cluster.running {
            let shape = placer.shape(&running.demand);
            placer.occupy(running.node, shape, &running.gpus);
            held.entry(running.node).or_default().push(Held { running, shape, is_stopped: false });
        }
        placer.learn(&seen);
        let mut gangs: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (at, task) in queue.waiting.iter().enumerate() {
            if let Some(gang) = task.gang {
                gangs.entry(gang).or_default().push(at);
            }
        }
        gangs.values_mut().for_each(|members| members.sort_by_key(|&at| queue.waiting[at].task));
        Self {
            queue,
            now_ms,
            placer,
            order: Some(Order::new(cluster, queue, now_ms)),
            held,
            started: BTreeMap::new(),
            reservations: Vec::new(),
            full: BTreeMap::new(),
            not_worth_stopping: BTreeSet::new(),
            is_settled: vec![false; queue.waiting.len()],
            gangs,
            actions: Vec::new(),
            explained: 0,
            preemptions_tried: 0,
            running: &cluster.running,
        }
    }

    fn starts(&mut self) {
        let Some(mut order) = self.order.take() else { return };
        while let Some((at, _)) = order.draw() {
            if self.is_settled[at] {
                continue;
            }
            let members = match self.queue.waiting[at].gang.and_then(|gang| self.gangs.get(&gang)) {
                Some(members) => members.clone(),
                None => vec![at],
            };
            members.iter().for_each(|&member| self.is_settled[member] = true);
            if self.start_together(&members) || self.preempt_for(&members) {
                members.iter().for_each(|&member| order.placed(member));
                continue;
            }
            if self.reservations.len() < RESERVATIONS_MAX && !self.is_reserved(at) {
                self.reserve(&members);
            }
            members.iter().for_each(|&member| self.wait(member));
        }
    }

    /// Starts all of `members`, or none.
    fn start_together(&mut self, members: &[usize]) -> bool {
        if members.len() > GANG_MAX {
            return false;
        }
        let mut places: Vec<(usize, ShapeId, Place)> = Vec::new();
        for &member in members {
            let task = &self.queue.waiting[member];
            let shape = self.placer.shape(&task.demand);
            match self.find(task, shape) {
                Some(place) => {
                    self.placer.take(place.node, shape, &place.gpus);
                    self.book(task, shape, &place);
                    places.push((member, shape, place));
                }
                None => {
                    if !places.is_empty() {
                        // What did not fit beside the members so far may fit without them.
                        self.full.clear();
                    }
                    for (_, shape, place) in places.into_iter().rev() {
                        self.placer.give_back(place.node, shape, &place.gpus);
                        self.started.get_mut(&place.node).and_then(Vec::pop);
                    }
                    return false;
                }
            }
        }
        for (member, _, place) in places {
            let task = self.queue.waiting[member].task;
            self.actions.push(Action::Start { task, node: place.node, gpus: place.gpus, score: place.score });
        }
        true
    }

    fn book(&mut self, task: &Waiting, shape: ShapeId, place: &Place) {
        let end_ms = end_ms(self.now_ms, task.runtime, self.now_ms).unwrap_or(u64::MAX);
        self.started.entry(place.node).or_default().push(Started { shape, gpus: place.gpus.clone(), end_ms });
    }

    /// The best place that delays no reservation.
    fn find(&mut self, task: &Waiting, shape: ShapeId) -> Option<Place> {
        let is_plain = task.avoid.is_empty();
        if is_plain && self.full.contains_key(&shape) {
            return None;
        }
        let mut avoid = task.avoid.clone();
        let end = end_ms(self.now_ms, task.runtime, self.now_ms).unwrap_or(u64::MAX);
        loop {
            let wish = Wish { local_bytes: Some(&*task.local_bytes), avoid: &avoid };
            let Some(place) = self.placer.find(shape, &wish) else {
                if is_plain && avoid.is_empty() {
                    let refusals = self.placer.refusals(shape, &[]);
                    self.full.insert(shape, refusals);
                }
                return None;
            };
            if !self.delays_a_reservation(place.node, shape, &place.gpus, end) {
                return Some(place);
            }
            avoid.push(place.node);
        }
    }

    fn delays_a_reservation(&self, node: NodeNumber, shape: ShapeId, gpus: &[u16], end: u64) -> bool {
        self.reservations.iter().any(|reservation| {
            let is_reserved = reservation.places.iter().any(|(reserved, _)| *reserved == node);
            if !is_reserved || end <= reservation.start_ms {
                return false;
            }
            let Some(mut room) = self.room_at(node, reservation.start_ms) else { return true };
            room.take_all_there_is(self.placer.shape_of(shape), gpus);
            let reserved = reservation.places.iter().filter(|(reserved, _)| *reserved == node);
            !reserved.into_iter().all(|&(_, shape)| take_somewhere(&mut room, &self.placer, shape))
        })
    }

    /// What will be free on a node by then.
    fn room_at(&self, node: NodeNumber, at_ms: u64) -> Option<Room> {
        let mut room = self.placer.room(node)?.clone();
        for held in self.held.get(&node).into_iter().flatten().filter(|held| !held.is_stopped) {
            let end = end_ms(held.running.started_ms, held.running.runtime, self.now_ms);
            if end.is_some_and(|end| end <= at_ms) {
                room.give_back(self.placer.shape_of(held.shape), &held.running.gpus);
            }
        }
        let started = self.started.get(&node).into_iter().flatten();
        for started in started.filter(|started| started.end_ms <= at_ms) {
            room.give_back(self.placer.shape_of(started.shape), &started.gpus);
        }
        Some(room)
    }

    /// Whether one like it has a reservation already.
    fn is_reserved(&mut self, at: usize) -> bool {
        let shape = self.placer.shape(&self.queue.waiting[at].demand);
        let mut places = self.reservations.iter().flat_map(|reservation| &reservation.places);
        places.any(|&(_, reserved)| reserved == shape)
    }

    /// Reserves the earliest time at which all members fit together.
    fn reserve(&mut self, members: &[usize]) {
        if let Some(reservation) = self.earliest(members) {
            self.reservations.push(reservation);
        }
    }

    fn earliest(&mut self, members: &[usize]) -> Option<Reservation> {
        if let &[at] = members {
            return self.earliest_for_one(at);
        }
        let shapes: Vec<ShapeId> =
            members.iter().map(|&member| self.placer.shape(&self.queue.waiting[member].demand)).collect();
        let ends = self
            .held
            .values()
            .flatten()
            .filter(|held| !held.is_stopped)
            .filter_map(|held| end_ms(held.running.started_ms, held.running.runtime, self.now_ms));
        let times: Vec<u64> = ends.collect::<BTreeSet<u64>>().into_iter().collect();
        let fits_by = |at_ms: u64| -> Option<Vec<(NodeNumber, ShapeId)>> {
            let nodes: Vec<NodeNumber> = self.placer.rooms().map(|(node, _)| node).collect();
            let mut rooms: Vec<(NodeNumber, Room)> = nodes
                .into_iter()
                .filter_map(|node| self.room_at(node, at_ms).map(|room| (node, room)))
                .collect();
            let mut places = Vec::new();
            for (&member, &shape) in members.iter().zip(&shapes) {
                let avoid = &self.queue.waiting[member].avoid;
                let found = rooms.iter_mut().find_map(|(node, room)| {
                    (!avoid.contains(node) && take_somewhere(room, &self.placer, shape)).then_some(*node)
                })?;
                places.push((found, shape));
            }
            Some(places)
        };
        let (mut early, mut late) = (0, times.len());
        let mut found = None;
        while early < late {
            let middle = usize::midpoint(early, late);
            match fits_by(times[middle]) {
                Some(places) => {
                    found = Some(Reservation { start_ms: times[middle], places });
                    late = middle;
                }
                None => early = middle + 1,
            }
        }
        found
    }

    /// Node by node: what runs there ends one after another until the demand fits.
    fn earliest_for_one(&mut self, at: usize) -> Option<Reservation> {
        let task = &self.queue.waiting[at];
        let shape = self.placer.shape(&task.demand);
        let wanted = self.placer.shape_of(shape);
        let mut best: Option<(u64, NodeNumber)> = None;
        for (node, room) in self.placer.rooms() {
            if task.avoid.contains(&node) {
                continue;
            }
            let held = self.held.get(&node).into_iter().flatten().filter(|held| !held.is_stopped);
            let held = held.filter_map(|held| {
                let end = end_ms(held.running.started_ms, held.running.runtime, self.now_ms)?;
                Some((end, held.shape, &held.running.gpus))
            });
            let started = self.started.get(&node).into_iter().flatten();
            let started = started.map(|started| (started.end_ms, started.shape, &started.gpus));
            let mut ends: Vec<(u64, ShapeId, &Vec<u16>)> =
                held.chain(started.filter(|&(end, ..)| end < u64::MAX)).collect();
            ends.sort_unstable();
            let mut room = room.clone();
            for (end, shape, gpus) in ends {
                if best.is_some_and(|(least, _)| least <= end) {
                    break;
                }
                room.give_back(self.placer.shape_of(shape), gpus);
                if room.fits(wanted) {
                    best = Some((end, node));
                    break;
                }
            }
        }
        best.map(|(start_ms, node)| Reservation { start_ms, places: vec![(node, shape)] })
    }

    /// Stops tasks of lower priority where what is gained exceeds what is lost. Single tasks only: a gang waits for its
    /// reservation.
    fn preempt_for(&mut self, members: &[usize]) -> bool {
        let &[at] = members else { return false };
        let task = &self.queue.waiting[at];
        let shape = self.placer.shape(&task.demand);
        if self.preemptions_tried >= PREEMPTIONS_TRIED_MAX
            || self.not_worth_stopping.contains(&(shape, task.priority))
        {
            return false;
        }
        self.preemptions_tried += 1;
        let is_started = self.preempt(at, shape);
        if !is_started {
            self.not_worth_stopping.insert((shape, task.priority));
        }
        is_started
    }

    fn preempt(&mut self, at: usize, shape: ShapeId) -> bool {
        let task = &self.queue.waiting[at];
        let can_gain = |held: &Held<'_>| {
            held.running.priority < task.priority && held.running.stop_cost_ms.is_some() && !held.is_stopped
        };
        if !self.held.values().flatten().any(can_gain) {
            return false;
        }
        let wait_ms = match self.earliest(&[at]) {
            Some(reservation) => reservation.start_ms.saturating_sub(self.now_ms),
            None => task.runtime.p90_ms,
        };
        let gain = worth(task.priority, weight_of(&task.demand)) * wait_ms as f64;
        let mut best: Option<(f64, NodeNumber, Vec<TaskId>)> = None;
        let is_reserved = |node| {
            self.reservations.iter().flat_map(|reservation| &reservation.places).any(|place| place.0 == node)
        };
        for (&node, held) in &self.held {
            if task.avoid.contains(&node) || is_reserved(node) {
                continue;
            }
            let victims: Vec<&Held<'_>> = held.iter().filter(|held| can_gain(held)).collect();
            let Some((cost, victims)) = self.cheapest_victims(node, shape, victims) else { continue };
            if cost < gain && best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                best = Some((cost, node, victims));
            }
        }
        let Some((_, node, victims)) = best else { return false };
        for victim in &victims {
            self.stop(node, *victim, task.task);
        }
        self.full.clear();
        self.not_worth_stopping.clear();
        self.start_together(&[at])
    }

    fn stop(&mut self, node: NodeNumber, victim: TaskId, for_task: TaskId) {
        let held = self.held.get_mut(&node).into_iter().flatten();
        for held in held.filter(|held| held.running.task == victim && !held.is_stopped) {
            held.is_stopped = true;
            self.placer.give_back(node, held.shape, &held.running.gpus);
            self.actions.push(Action::Preempt { task: victim, node, for_task });
        }
    }

    /// The victims on one node, cheapest first until the shape fits, without those that turn out not to be needed.
    fn cheapest_victims(
        &self,
        node: NodeNumber,
        shape: ShapeId,
        mut victims: Vec<&Held<'_>>,
    ) -> Option<(f64, Vec<TaskId>)> {
        let wanted = self.placer.shape_of(shape);
        let cost = |held: &Held<'_>| {
            let running = held.running;
            let lost_ms = running.stop_cost_ms.unwrap_or(u64::MAX) as f64;
            worth(running.priority, weight_of(&running.demand)) * lost_ms
        };
        victims.sort_by(|a, b| cost(a).total_cmp(&cost(b)).then(a.running.task.cmp(&b.running.task)));
        victims.truncate(VICTIMS_MAX);
        let mut room = self.placer.room(node)?.clone();
        let mut chosen: Vec<&Held<'_>> = Vec::new();
        for held in victims {
            if room.fits(wanted) {
                break;
            }
            room.give_back(self.placer.shape_of(held.shape), &held.running.gpus);
            chosen.push(held);
        }
        if !room.fits(wanted) {
            return None;
        }
        // The dearest may stay if the shape fits all the same.
        for at in (0..chosen.len()).rev() {
            let mut without = self.placer.room(node)?.clone();
            for (_, held) in chosen.iter().enumerate().filter(|(other, _)| *other != at) {
                without.give_back(self.placer.shape_of(held.shape), &held.running.gpus);
            }
            if without.fits(wanted) {
                chosen.remove(at);
            }
        }
        let total = chosen.iter().map(|held| cost(held)).sum();
        Some((total, chosen.iter().map(|held| held.running.task).collect()))
    }

    fn wait(&mut self, member: usize) {
        if self.explained >= EXPLAINED_MAX {
            return;
        }
        self.explained += 1;
        let task = &self.queue.waiting[member];
        let shape = self.placer.shape(&task.demand);
        let mut why = match self.full.get(&shape) {
            Some(why) if task.avoid.is_empty() => why.clone(),
            _ => self.placer.refusals(shape, &task.avoid),
        };
        let refused: u32 = why.nodes.values().sum();
        // Nodes that would do are kept for a reservation or for the rest of its gang.
        why.is_reserved = (refused as usize) < self.placer.rooms().count();
        self.actions.push(Action::Wait { task: task.task, why });
    }

    /// Twins for tasks that take much longer than predicted, in room that nobody waits for.
    fn stragglers(&mut self) {
        let now_ms = self.now_ms;
        let is_late = |running: &&Running| {
            let limit = (running.runtime.p90_ms as f64 * STRAGGLER_RUNTIMES) as u64;
            let elapsed = now_ms.saturating_sub(running.started_ms);
            running.runtime.p90_ms > 0 && elapsed >= limit.max(STRAGGLER_MS_MIN) && !running.is_reissued
        };
        let waiting_jobs: BTreeSet<u64> = self.queue.waiting.iter().map(|task| task.task.job).collect();
        let mut late: Vec<&Running> = self
            .running
            .iter()
            .filter(is_late)
            .filter(|running| !waiting_jobs.contains(&running.task.job))
            .collect();
        late.sort_by_key(|running| (running.started_ms, running.task));
        let twins = self.running.iter().filter(|running| running.is_reissued).count();
        let twins_max = ((self.running.len() as f64 * TWINS_PART) as usize).max(1);
        late.truncate(twins_max.saturating_sub(twins));
        for running in late {
            let twin = Waiting {
                task: running.task,
                tenant: running.tenant,
                priority: running.priority,
                submitted_ms: now_ms,
                demand: running.demand.clone(),
                runtime: running.runtime,
                avoid: vec![running.node],
                ..Waiting::default()
            };
            let is_stopped = self
                .held
                .get(&running.node)
                .into_iter()
                .flatten()
                .any(|held| held.running.task == running.task && held.is_stopped);
            let shape = self.placer.shape(&twin.demand);
            let place = if is_stopped { None } else { self.find(&twin, shape) };
            if let Some(place) = place {
                self.placer.take(place.node, shape, &place.gpus);
                self.book(&twin, shape, &place);
                let (node, gpus, score) = (place.node, place.gpus, place.score);
                self.actions.push(Action::Reissue { task: running.task, node, gpus, score });
            }
        }
    }
}

/// Takes room for a shape on whichever cards fit.
fn take_somewhere(room: &mut Room, placer: &Placer, shape: ShapeId) -> bool {
    let shape = placer.shape_of(shape);
    if !room.fits(shape) {
        return false;
    }
    let cards: Vec<u16> = (0..room.cards.len() as u16)
        .filter(|&card| shape.fits_card(&room.cards[usize::from(card)]))
        .take(shape.cards as usize)
        .collect();
    room.take(shape, &cards)
}
