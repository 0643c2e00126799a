//! Who goes first: one number for each waiting task, in thousandths of a priority level.
//!
//! | part        | adds                                                                     |
//! |-------------|--------------------------------------------------------------------------|
//! | priority    | a level each                                                             |
//! | ageing      | a level for every [`AGE_MS_PER_LEVEL`] of waiting, without end: no one starves |
//! | deadline    | up to [`URGENCY_LEVELS`], the nearer its last moment to start            |
//! | fair share  | less a level for each doubling of what its tenant holds beyond its share, more for each halving |
//! | short work  | half a level for each halving of its predicted run time below an hour, less above |
//!
//! A tenant's share changes with every task that is placed, so tasks are drawn one by one, the best tenant's best task first.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use super::model::{Cluster, Demand, Queue, TaskId, Waiting};

const LEVEL: i64 = 1000;
/// Waiting that is worth one level of priority.
const AGE_MS_PER_LEVEL: u64 = 5 * 60 * 1000;
/// A task that must start now to end in time rises by so many levels.
const URGENCY_LEVELS: i64 = 20;
/// Urgency begins when so many of its run times are left.
const URGENCY_RUNTIMES: u64 = 4;
/// Levels that a tenant's share can move a task either way.
const SHARE_LEVELS_MAX: f64 = 10.0;
/// Run time that neither raises nor lowers.
const RUNTIME_NEUTRAL_MS: f64 = 3_600_000.0;
const RUNTIME_LEVELS_MAX: f64 = 5.0;
/// CPU that weighs like one thousandth of a GPU in a tenant's share.
const CPU_MILLI_PER_GPU_MILLI: u64 = 10;

/// What a demand counts in a tenant's share: its GPU, or its CPU if that is more.
#[must_use]
pub fn weight_of(demand: &Demand) -> u64 {
    demand.gpu_milli().max(demand.cpu_milli / CPU_MILLI_PER_GPU_MILLI).max(1)
}

/// The part of a task's rank that does not depend on its tenant's share.
#[must_use]
pub fn own_rank(task: &Waiting, now_ms: u64) -> i64 {
    let waited = now_ms.saturating_sub(task.submitted_ms);
    let aged = i64::try_from(waited.saturating_mul(LEVEL as u64) / AGE_MS_PER_LEVEL).unwrap_or(i64::MAX / 4);
    let runtime = match task.runtime.median_ms {
        0 => 0.0,
        median => {
            (0.5 * (RUNTIME_NEUTRAL_MS / median as f64).log2()).clamp(-RUNTIME_LEVELS_MAX, RUNTIME_LEVELS_MAX)
        }
    };
    i64::from(task.priority) * LEVEL + aged.min(i64::MAX / 4) + urgency(task, now_ms) + milli(runtime)
}

fn milli(levels: f64) -> i64 {
    (levels * LEVEL as f64).round() as i64
}

/// 0 with time to spare, [`URGENCY_LEVELS`] when it must start now; 0 again once it cannot end in time any more.
fn urgency(task: &Waiting, now_ms: u64) -> i64 {
    let Some(deadline) = task.deadline_ms else { return 0 };
    let runtime = task.runtime.p90_ms.max(1);
    if deadline < now_ms.saturating_add(task.runtime.median_ms) {
        return 0;
    }
    let slack = deadline.saturating_sub(now_ms.saturating_add(runtime));
    let window = runtime.saturating_mul(URGENCY_RUNTIMES);
    let spent = window.saturating_sub(slack);
    milli(URGENCY_LEVELS as f64 * spent as f64 / window as f64)
}

/// What tenants hold against what is theirs.
#[derive(Debug, Default)]
struct Shares<'a> {
    held: BTreeMap<u64, u64>,
    weights: Option<&'a BTreeMap<u64, u32>>,
    /// Of all tenants that hold or want something.
    weight_total: u64,
    /// GPU-milli, and CPU counted as such, of the whole cluster.
    capacity: u64,
}

impl Shares<'_> {
    fn weight(&self, tenant: u64) -> u64 {
        self.weights.and_then(|weights| weights.get(&tenant)).copied().unwrap_or(1).max(1).into()
    }

    fn rank(&self, tenant: u64) -> i64 {
        let held = self.held.get(&tenant).copied().unwrap_or(0) as f64;
        let share = self.capacity as f64 * self.weight(tenant) as f64 / self.weight_total.max(1) as f64;
        // A hundredth of the share stands for nothing held, so that the logarithm is finite.
        let part = (held / share.max(1.0)).max(0.01);
        milli((-part.log2()).clamp(-SHARE_LEVELS_MAX, SHARE_LEVELS_MAX))
    }
}

/// A tenant's next task; the greatest is next of all.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    rank: i64,
    /// Among equals the earlier goes first.
    place: (u64, TaskId),
    /// Index into the queue.
    task: usize,
    tenant: u64,
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank).then(other.place.cmp(&self.place)).then(other.task.cmp(&self.task))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Draws waiting tasks, best first.
#[derive(Debug)]
pub struct Order<'a> {
    queue: &'a Queue,
    shares: Shares<'a>,
    /// Each tenant's tasks with their own ranks, the best last.
    lines: BTreeMap<u64, Vec<(i64, usize)>>,
    heads: BinaryHeap<Head>,
}

impl<'a> Order<'a> {
    #[must_use]
    pub fn new(cluster: &Cluster, queue: &'a Queue, now_ms: u64) -> Self {
        let capacity = cluster
            .nodes
            .iter()
            .filter(|node| node.is_open)
            .map(|node| (node.gpus.len() as u64 * 1000).max(node.cpu_milli / CPU_MILLI_PER_GPU_MILLI));
        let mut shares =
            Shares { weights: Some(&queue.weights), capacity: capacity.sum(), ..Shares::default() };
        for running in &cluster.running {
            *shares.held.entry(running.tenant).or_default() += weight_of(&running.demand);
        }
        let mut lines: BTreeMap<u64, Vec<(i64, usize)>> = BTreeMap::new();
        for (at, task) in queue.waiting.iter().enumerate() {
            lines.entry(task.tenant).or_default().push((own_rank(task, now_ms), at));
        }
        let tenants: std::collections::BTreeSet<u64> =
            lines.keys().chain(shares.held.keys()).copied().collect();
        shares.weight_total = tenants.iter().map(|&tenant| shares.weight(tenant)).sum();
        let place = |at: usize| {
            let task = &queue.waiting[at];
            (task.submitted_ms, task.task)
        };
        for line in lines.values_mut() {
            line.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| place(b.1).cmp(&place(a.1))));
        }
        let mut order = Self { queue, shares, lines, heads: BinaryHeap::new() };
        let tenants: Vec<u64> = order.lines.keys().copied().collect();
        tenants.into_iter().for_each(|tenant| order.raise(tenant));
        order
    }

    fn raise(&mut self, tenant: u64) {
        if let Some(&(rank, task)) = self.lines.get(&tenant).and_then(|line| line.last()) {
            let rank = rank.saturating_add(self.shares.rank(tenant));
            let waiting = &self.queue.waiting[task];
            let place = (waiting.submitted_ms, waiting.task);
            self.heads.push(Head { rank, place, task, tenant });
        }
    }

    /// The next task: its place in the queue, and its rank as it was drawn.
    pub fn draw(&mut self) -> Option<(usize, i64)> {
        let head = self.heads.pop()?;
        if let Some(line) = self.lines.get_mut(&head.tenant) {
            line.pop();
        }
        self.raise(head.tenant);
        Some((head.task, head.rank))
    }

    /// Says that a tenant now holds the task's demand too; its next task is ranked anew.
    pub fn placed(&mut self, task: usize) {
        let waiting = &self.queue.waiting[task];
        *self.shares.held.entry(waiting.tenant).or_default() += weight_of(&waiting.demand);
        let tenant = waiting.tenant;
        if self.lines.get(&tenant).is_some_and(|line| !line.is_empty()) {
            self.heads.retain(|head| head.tenant != tenant);
            self.raise(tenant);
        }
    }
}
