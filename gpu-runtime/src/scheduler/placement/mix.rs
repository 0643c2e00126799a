//! What is likely to be asked for next: the recent past, fading.

use std::collections::BTreeMap;

use super::shape::{Shape, ShapeId};
use crate::scheduler::model::GPU_MILLI;

/// Tasks after which one counts half. Long enough for a stable picture of rare shapes, short enough to follow a week's change.
const HALF_LIFE_TASKS: f64 = 16_384.0;
/// Shapes that are weighed one by one, the most frequent first.
const SHAPES_WEIGHED_MAX: usize = 160;
/// Weights are scaled down before they grow past this.
const WEIGHT_MAX: f64 = 1e100;

/// Counts of shapes, fading with each further task.
#[derive(Debug, Clone, Default)]
pub struct Mix {
    counts: BTreeMap<ShapeId, f64>,
    /// What the next task weighs; grows, so that nothing else has to fade.
    weight: f64,
}

/// The mix in numbers that a waste function reads fast.
#[derive(Debug, Clone, Default)]
pub struct Outlook {
    /// Tasks that use GPUs, with their share of all, most frequent first.
    pub likely: Vec<(ShapeId, f64)>,
    /// Shares of one card that come, by thousandths: their part of all tasks.
    pub shares: BTreeMap<u32, f64>,
    /// Mean GPU-milli of a task, those without GPU counted.
    pub gpu_milli_mean: f64,
    /// CPU-milli asked for with each GPU-milli, CPU-only tasks counted.
    pub cpu_per_gpu: f64,
    /// MiB asked for with each GPU-milli, likewise.
    pub memory_per_gpu: f64,
}

impl Mix {
    pub fn observe(&mut self, shape: ShapeId, count: f64) {
        if self.weight == 0.0 {
            self.weight = 1.0;
        }
        *self.counts.entry(shape).or_default() += count * self.weight;
        self.weight *= (count / HALF_LIFE_TASKS).exp2();
        if self.weight > WEIGHT_MAX {
            self.counts.values_mut().for_each(|count| *count /= WEIGHT_MAX);
            self.counts.retain(|_, count| *count > 1e-9);
            self.weight /= WEIGHT_MAX;
        }
    }

    #[must_use]
    pub fn outlook(&self, shapes: &[Shape]) -> Outlook {
        let total: f64 = self.counts.values().sum();
        let mut outlook = Outlook::default();
        if total <= 0.0 {
            return outlook;
        }
        let (mut cpu, mut memory) = (0.0, 0.0);
        for (&id, &count) in &self.counts {
            let (shape, part) = (&shapes[id.0], count / total);
            cpu += part * shape.cpu_milli as f64;
            memory += part * shape.memory_mib as f64;
            if shape.cards == 0 {
                continue;
            }
            outlook.gpu_milli_mean += part * shape.gpu_milli() as f64;
            outlook.likely.push((id, part));
            if shape.milli < GPU_MILLI {
                *outlook.shares.entry(shape.milli).or_default() += part * f64::from(shape.cards);
            }
        }
        outlook.likely.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        outlook.likely.truncate(SHAPES_WEIGHED_MAX);
        if outlook.gpu_milli_mean > 0.0 {
            outlook.cpu_per_gpu = cpu / outlook.gpu_milli_mean;
            outlook.memory_per_gpu = memory / outlook.gpu_milli_mean;
        }
        outlook
    }
}
