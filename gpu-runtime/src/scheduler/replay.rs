//! Replays a recorded load against [`Placer`] until the cluster is full, as packing is measured in the literature.
//!
//! The tasks of a list are drawn again at random until they ask for a given part of all GPUs (130 % by custom), come in random order,
//! one after another, and stay. A task that fits nowhere is turned away. What counts is the part of all GPU-milli that is
//! allocated in the end (Weng et al., *Beware of Fragmentation*, USENIX ATC 2023, section 6). The placer sees tasks
//! only as they come: it learns the mix on the way.

use std::collections::BTreeMap;

use super::model::{Demand, GPU_MILLI, Gpu, GpuDemand, Node, NodeNumber};
use super::moves::{Ledger, Moves};
use super::placement::stock::price;
use super::placement::{Placer, Wish};

/// Cards of one line of a list of nodes.
const CARDS_MAX: usize = super::model::NODE_GPUS_MAX;
/// Cells are sums of these: nothing overflows.
const AMOUNT_MAX: u64 = 1 << 40;

/// A line that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("line {line}: {text:?} is no number from 0 to {max} for column {column}")]
    Number { line: usize, column: &'static str, text: String, max: u64 },
    #[error("the first line names no column {0:?}; it has to name the columns, separated by commas")]
    NoColumn(&'static str),
    #[error("no line follows the first")]
    Empty,
}

struct Columns<'a> {
    names: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    fn at(&self, name: &'static str) -> Result<usize, ListError> {
        self.names.iter().position(|known| *known == name).ok_or(ListError::NoColumn(name))
    }

    fn number(&self, line: usize, cells: &[&str], column: &'static str, max: u64) -> Result<u64, ListError> {
        let text = cells.get(self.at(column)?).copied().unwrap_or("").trim();
        text.parse().ok().filter(|value| *value <= max).ok_or_else(|| ListError::Number {
            line,
            column,
            text: text.chars().take(40).collect(),
            max,
        })
    }
}

fn lines(list: &str) -> (Columns<'_>, impl Iterator<Item = (usize, Vec<&str>)>) {
    let mut lines = list.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let names = lines.next().map_or("", |(_, line)| line).split(',').map(str::trim).collect();
    (Columns { names }, lines.map(|(at, line)| (at + 1, line.split(',').collect())))
}

/// Reads nodes: columns `cpu_milli`, `memory_mib`, `gpu` (cards) and `model`, in any order among others.
///
/// # Errors
/// The first line that cannot be read.
pub fn read_nodes(list: &str) -> Result<Vec<Node>, ListError> {
    let (columns, lines) = lines(list);
    let model_at = columns.at("model")?;
    let mut nodes = Vec::new();
    for (line, cells) in lines {
        let cards = columns.number(line, &cells, "gpu", CARDS_MAX as u64)?;
        let model = cells.get(model_at).copied().unwrap_or("").trim().to_owned();
        let gpu = Gpu { model, memory_mib: 0, level_max: u8::MAX, has_shadow: true };
        nodes.push(Node {
            number: NodeNumber(nodes.len() as u64),
            cpu_milli: columns.number(line, &cells, "cpu_milli", AMOUNT_MAX)?,
            memory_mib: columns.number(line, &cells, "memory_mib", AMOUNT_MAX)?,
            gpus: vec![gpu; cards as usize],
            is_open: true,
            ..Node::default()
        });
    }
    if nodes.is_empty() { Err(ListError::Empty) } else { Ok(nodes) }
}

/// Reads tasks: columns `cpu_milli`, `memory_mib`, `num_gpu` (cards), `gpu_milli` (of each) and perhaps `gpu_spec` (models,
/// separated by `|`).
///
/// # Errors
/// The first line that cannot be read.
pub fn read_tasks(list: &str) -> Result<Vec<Demand>, ListError> {
    let (columns, lines) = lines(list);
    let models_at = columns.at("gpu_spec").ok();
    let mut tasks = Vec::new();
    for (line, cells) in lines {
        let cards = columns.number(line, &cells, "num_gpu", CARDS_MAX as u64)? as u32;
        let milli = columns.number(line, &cells, "gpu_milli", GPU_MILLI.into())? as u32;
        let models = models_at.and_then(|at| cells.get(at)).map_or("", |cell| cell.trim());
        let models =
            models.split('|').filter(|model| !model.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let gpu =
            (cards > 0 && milli > 0).then_some(GpuDemand { cards, milli, models, ..GpuDemand::default() });
        tasks.push(Demand {
            cpu_milli: columns.number(line, &cells, "cpu_milli", AMOUNT_MAX)?,
            memory_mib: columns.number(line, &cells, "memory_mib", AMOUNT_MAX)?,
            gpu,
            ..Demand::default()
        });
    }
    if tasks.is_empty() { Err(ListError::Empty) } else { Ok(tasks) }
}

/// Reads when tasks came and how long they ran, in seconds: columns `creation_time`, `deletion_time` and `scheduled_time`. Of one
/// that never ran, no time.
///
/// # Errors
/// The first line that cannot be read.
pub fn read_durations(list: &str) -> Result<Vec<(u64, u64)>, ListError> {
    let (columns, lines) = lines(list);
    let scheduled_at = columns.at("scheduled_time")?;
    let mut times = Vec::new();
    for (line, cells) in lines {
        let arrives = columns.number(line, &cells, "creation_time", AMOUNT_MAX)?;
        let ends = columns.number(line, &cells, "deletion_time", AMOUNT_MAX)?;
        let has_run = cells.get(scheduled_at).is_some_and(|cell| !cell.trim().is_empty());
        let begins = if has_run { columns.number(line, &cells, "scheduled_time", AMOUNT_MAX)? } else { ends };
        times.push((arrives, ends.saturating_sub(begins)));
    }
    Ok(times)
}

/// How to replay.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub seed: u64,
    /// GPU-milli that come, as a percentage of all that there are.
    pub arrivals_percent: u32,
    /// Moves that are allowed, as a percentage of the tasks that came.
    pub moves_percent: f64,
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    pub tasks: u64,
    pub placed: u64,
    pub moved: u64,
    pub gpu_milli_total: u64,
    pub gpu_milli_allocated: u64,
    /// Allocated when the first task with one card or less was turned away.
    pub gpu_milli_at_first_refusal: Option<u64>,
    /// Nanoseconds of each decision, in order.
    pub decisions_ns: Vec<u64>,
}

impl Outcome {
    #[must_use]
    pub fn allocation_percent(&self) -> f64 {
        100.0 * self.gpu_milli_allocated as f64 / self.gpu_milli_total.max(1) as f64
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): the same order of tasks for a seed everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * bound as u128) >> 64) as usize
    }
}

fn gpu_milli_of(nodes: &[Node]) -> u64 {
    nodes.iter().map(|node| node.gpus.len() as u64 * u64::from(GPU_MILLI)).sum()
}

/// The tasks in the order in which they come.
#[must_use]
pub fn arrivals(nodes: &[Node], tasks: &[Demand], load: &Load) -> Vec<usize> {
    let mut random = Random(load.seed);
    let wanted = gpu_milli_of(nodes).saturating_mul(load.arrivals_percent.into()) / 100;
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    let mut asked: u64 = tasks.iter().map(Demand::gpu_milli).sum();
    if asked > 0 {
        while asked < wanted {
            let task = random.below(tasks.len());
            asked += tasks[task].gpu_milli();
            order.push(task);
        }
    }
    for at in (1..order.len()).rev() {
        order.swap(at, random.below(at + 1));
    }
    order
}

/// Places what comes, one after another. `clock_ns` times the decisions and decides nothing.
pub fn replay(nodes: &[Node], tasks: &[Demand], load: &Load, clock_ns: &mut dyn FnMut() -> u64) -> Outcome {
    let mut placer = Placer::new(nodes);
    let mut ledger = Ledger::default();
    let mut outcome = Outcome { gpu_milli_total: gpu_milli_of(nodes), ..Outcome::default() };
    for (number, task) in arrivals(nodes, tasks, load).into_iter().enumerate() {
        let demand = &tasks[task];
        let begun = clock_ns();
        let shape = placer.shape(demand);
        let mut place = placer.find(shape, &Wish::default());
        if let Some(place) = &place {
            placer.take(place.node, shape, &place.gpus);
        }
        placer.observe(shape, 1);
        outcome.decisions_ns.push(clock_ns().saturating_sub(begun));
        outcome.tasks += 1;
        let allowed = (outcome.tasks as f64 * load.moves_percent / 100.0) as u64;
        if place.is_none() && outcome.moved < allowed {
            let moves = Moves { count_max: (allowed - outcome.moved).min(2) as usize };
            if let Some((moved, made)) = moves.make_room(&mut placer, &mut ledger, shape) {
                outcome.moved += moved as u64;
                placer.take(made.node, shape, &made.gpus);
                place = Some(made);
            }
        }
        match place {
            Some(place) => {
                ledger.put(number as u64, place.node, shape, place.gpus);
                outcome.placed += 1;
                outcome.gpu_milli_allocated += demand.gpu_milli();
            }
            None if demand.gpu.as_ref().is_some_and(|gpu| gpu.cards == 1) => {
                outcome.gpu_milli_at_first_refusal.get_or_insert(outcome.gpu_milli_allocated);
            }
            None => {}
        }
    }
    outcome
}

/// What even a packer that knew all tasks beforehand could allocate, in percent, as long as it turns no task away before
/// the cards run out: GPU alone, as if CPU, memory and nodes never stood in the way.
///
/// The longest run of arrivals whose whole cards and whose shares, cut in the best way, need no more cards than there are;
/// and all later tasks that fit into gaps that nothing larger could use.
#[must_use]
pub fn bound_percent(nodes: &[Node], tasks: &[Demand], load: &Load) -> f64 {
    let order = arrivals(nodes, tasks, load);
    let total = gpu_milli_of(nodes);
    let cards = (total / u64::from(GPU_MILLI)) as f64;
    let needed = |count: usize| {
        let (mut whole, mut shares) = (0, BTreeMap::new());
        for gpu in order[..count].iter().filter_map(|&task| tasks[task].gpu.as_ref()) {
            if gpu.milli < GPU_MILLI {
                *shares.entry(gpu.milli).or_insert(0.0) += f64::from(gpu.cards);
            } else {
                whole += u64::from(gpu.cards);
            }
        }
        whole as f64 + price(&shares, &BTreeMap::new()).1
    };
    let (mut fits, mut too_many) = (0, order.len() + 1);
    while fits + 1 < too_many {
        let middle = usize::midpoint(fits, too_many);
        if needed(middle) <= cards {
            fits = middle;
        } else {
            too_many = middle;
        }
    }
    let milli = |range: &[usize]| range.iter().map(|&task| tasks[task].gpu_milli()).sum::<u64>();
    let largest = order[..fits]
        .iter()
        .filter_map(|&task| tasks[task].gpu.as_ref())
        .map(|gpu| gpu.milli)
        .filter(|&milli| milli < GPU_MILLI)
        .max()
        .unwrap_or(GPU_MILLI);
    let fills_a_gap = |task: &&usize| {
        tasks[**task].gpu.as_ref().is_some_and(|gpu| gpu.cards == 1 && gpu.milli <= GPU_MILLI - largest)
    };
    let later: u64 = order[fits..].iter().filter(fills_a_gap).map(|&task| tasks[task].gpu_milli()).sum();
    (100.0 * (milli(&order[..fits]) + later) as f64 / total.max(1) as f64).min(100.0)
}
