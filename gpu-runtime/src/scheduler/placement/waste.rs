//! How much of a node's idle GPU will likely stay idle: what every placement tries to keep small.
//!
//! Three parts, each in GPU-milli:
//! - **gaps**: what is left of cards, less what it is worth to the shares that will come ([`super::stock`]);
//! - **fragments**: what a task of the mix could not use of the node, over all tasks of the mix (Weng et al., *Beware of
//!   Fragmentation*, USENIX ATC 2023);
//! - **stranded**: idle GPU that the node's idle CPU or memory cannot feed at the mix's mean ratios; the shorter CPU or memory is in the
//!   whole cluster, the more that weighs.
//!
//! A placement is scored by what it adds to the sum, so the sum steers towards nodes that the task completes and away from
//! those that it spoils.

use super::mix::Outlook;
use super::shape::{Card, Room, Shape};
use super::stock::{Worth, price};
use crate::scheduler::model::GPU_MILLI;

/// Gaps are priced by a plan and weigh full; fragments are an average over tasks that mostly go elsewhere, and break ties
/// between placements that the plan holds equal. Chosen where shares of a trace packed best, and flat from 0.05 to 0.3.
const FRAGMENT_WEIGHT: f64 = 0.1;
/// Stranded room weighs full where CPU (or memory) is short in the whole cluster, and less the more of it there is: then nodes that
/// have much of it can still take what this node cannot feed. The weight is this power of (needed / there),
const SCARCITY_POWER: i32 = 8;
/// and at least this.
const STRANDED_WEIGHT_MIN: f64 = 0.15;

/// A task of the mix, as far as it decides what a node can run.
#[derive(Debug, Clone)]
struct Likely {
    part: f64,
    cpu_milli: u64,
    memory_mib: u64,
    cards: usize,
    /// Its place in [`Waste::sizes`].
    size: usize,
    kinds: Option<Vec<bool>>,
}

/// The sum, made for one outlook.
#[derive(Debug, Clone)]
pub struct Waste {
    /// By thousandths: what is lost of a card with so much free.
    gap_loss: Vec<f64>,
    likely: Vec<Likely>,
    /// Thousandths that tasks of the mix ask of a card, ascending.
    sizes: Vec<u32>,
    cpu_per_gpu: f64,
    memory_per_gpu: f64,
    /// What idle GPU that lacks CPU weighs.
    cpu_weight: f64,
    memory_weight: f64,
}

impl Waste {
    /// For the mix that `outlook` expects and the cards of `rooms` as they are now.
    #[must_use]
    pub fn expect(outlook: &Outlook, shapes: &[Shape], rooms: &[Room], horizon_tasks_min: f64) -> Self {
        let mut gaps = std::collections::BTreeMap::new();
        let (mut free_milli, mut free_cpu, mut free_memory) = (0.0, 0.0, 0.0);
        for room in rooms.iter().filter(|room| room.is_open) {
            free_cpu += room.cpu_milli as f64;
            free_memory += room.memory_mib as f64;
        }
        for card in rooms.iter().filter(|room| room.is_open).flat_map(|room| &room.cards) {
            free_milli += f64::from(card.free_milli);
            if (1..GPU_MILLI).contains(&card.free_milli) {
                *gaps.entry(card.free_milli).or_insert(0) += 1;
            }
        }
        // As many tasks as the idle cards can take: those are the ones that gaps wait for.
        let horizon = (free_milli / outlook.gpu_milli_mean.max(1.0)).max(horizon_tasks_min);
        let shares = outlook.shares.iter().map(|(&milli, part)| (milli, part * horizon)).collect();
        let (worth, _) = price(&shares, &gaps);
        let mut sizes: Vec<u32> = outlook.likely.iter().map(|&(id, _)| shapes[id.0].milli).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let likely = outlook.likely.iter().map(|&(id, part)| {
            let shape = &shapes[id.0];
            Likely {
                part,
                cpu_milli: shape.cpu_milli,
                memory_mib: shape.memory_mib,
                cards: shape.cards as usize,
                size: sizes.partition_point(|&size| size < shape.milli),
                kinds: shape.kinds.clone(),
            }
        });
        Self {
            gap_loss: gap_loss(&worth),
            likely: likely.collect(),
            sizes,
            cpu_per_gpu: outlook.cpu_per_gpu,
            memory_per_gpu: outlook.memory_per_gpu,
            cpu_weight: stranded_weight(free_milli * outlook.cpu_per_gpu, free_cpu),
            memory_weight: stranded_weight(free_milli * outlook.memory_per_gpu, free_memory),
        }
    }

    /// Before anything is known.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            gap_loss: gap_loss(&Worth::linear()),
            likely: Vec::new(),
            sizes: Vec::new(),
            cpu_per_gpu: 0.0,
            memory_per_gpu: 0.0,
            cpu_weight: 0.0,
            memory_weight: 0.0,
        }
    }

    /// GPU-milli of `cards` that likely stay idle beside so much idle CPU and memory.
    /// Cost: cards x sizes + tasks of the mix.
    #[must_use]
    pub fn of(&self, cpu_milli: u64, memory_mib: u64, cards: &[Card]) -> f64 {
        let free: u64 = cards.iter().map(|card| u64::from(card.free_milli)).sum();
        if free == 0 {
            return 0.0;
        }
        let gaps: f64 = cards.iter().map(|card| self.gap_loss[card.free_milli as usize]).sum();
        gaps + FRAGMENT_WEIGHT * self.fragments(cpu_milli, memory_mib, cards, free as f64)
            + self.stranded(cpu_milli, memory_mib, free as f64)
    }

    fn stranded(&self, cpu_milli: u64, memory_mib: u64, free: f64) -> f64 {
        let stranded = |idle: u64, per_gpu: f64, weight: f64| {
            if per_gpu > 0.0 { weight * (free - idle as f64 / per_gpu).max(0.0) } else { 0.0 }
        };
        let by_cpu = stranded(cpu_milli, self.cpu_per_gpu, self.cpu_weight);
        by_cpu.max(stranded(memory_mib, self.memory_per_gpu, self.memory_weight))
    }

    fn fragments(&self, cpu_milli: u64, memory_mib: u64, cards: &[Card], free: f64) -> f64 {
        // For each size: how many cards have at least so much free, and what is free on the others.
        let mut by_size = [(0_usize, 0.0_f64); SIZES_AT_ONCE];
        let mut fragments = 0.0;
        let mut first_size = 0;
        for sizes in self.sizes.chunks(SIZES_AT_ONCE) {
            for (&size, (fitting, too_small)) in sizes.iter().zip(&mut by_size) {
                (*fitting, *too_small) = (0, 0.0);
                for card in cards {
                    if card.free_milli >= size {
                        *fitting += 1;
                    } else {
                        *too_small += f64::from(card.free_milli);
                    }
                }
            }
            let range = first_size..first_size + sizes.len();
            for task in self.likely.iter().filter(|task| range.contains(&task.size)) {
                let (fitting, too_small) = match &task.kinds {
                    None => by_size[task.size - first_size],
                    Some(kinds) => of_kinds(cards, kinds, self.sizes[task.size]),
                };
                let fits =
                    fitting >= task.cards && cpu_milli >= task.cpu_milli && memory_mib >= task.memory_mib;
                fragments += task.part * if fits { too_small } else { free };
            }
            first_size += sizes.len();
        }
        fragments
    }
}

/// Sizes whose counts are kept on the stack; a mix with more is gone through in parts.
const SIZES_AT_ONCE: usize = 32;

fn of_kinds(cards: &[Card], kinds: &[bool], size: u32) -> (usize, f64) {
    let mut counted = (0, 0.0);
    for card in cards {
        if card.free_milli >= size && kinds[card.kind as usize] {
            counted.0 += 1;
        } else {
            counted.1 += f64::from(card.free_milli);
        }
    }
    counted
}

fn stranded_weight(needed: f64, there: f64) -> f64 {
    (needed / there.max(1.0)).powi(SCARCITY_POWER).clamp(STRANDED_WEIGHT_MIN, 1.0)
}

fn gap_loss(worth: &Worth) -> Vec<f64> {
    let loss = |milli: u32| f64::from(milli) - f64::from(GPU_MILLI) * worth.of(milli);
    (0..=GPU_MILLI).map(loss).collect()
}
