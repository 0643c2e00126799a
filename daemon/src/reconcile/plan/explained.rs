//! Why tasks stand where they do, in words: what the leader's plans said of them lately.
//!
//! ```text
//! a plan's placements and refusals ─ explain ─> remembered, the newest jobs ─ why ─> a line for each task
//! ```
//!
//! Always: what is remembered is bounded; another leader explains what it planned itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use makai_erasure::NodeId;
use makai_gpu_runtime::scheduler::{Refusal, Refusals, Score};
use makai_raft::facts::jobs::JobId;

/// Tasks that can be explained, and lines of one explanation.
const EXPLAINED_MAX: usize = 20_000;
const LINES_MAX: usize = 100;

/// Why a task stands where it does.
#[derive(Debug, Clone, PartialEq)]
pub enum Why {
    /// It was given to a node, which scored so and held so much of what the task begins with.
    Placed { node: NodeId, score: Score, local_bytes: u64 },
    /// Nowhere is room.
    Waits { why: Refusals },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Placed { node, score, local_bytes } => {
                write!(f, "placed on {node}, score {:.1} (less is better: GPU left over ", score.total)?;
                write!(
                    f,
                    "{:.1}, locality {:.1}, price {:.1}, ",
                    score.packing, score.locality, score.value
                )?;
                write!(
                    f,
                    "reliability {:.1}, load {:.1}, trust {:.1})",
                    score.reliability, score.load, score.trust
                )?;
                if *local_bytes > 0 {
                    write!(
                        f,
                        "; it held {:.1} MiB of its image and inputs",
                        *local_bytes as f64 / (1u64 << 20) as f64
                    )?;
                }
                Ok(())
            }
            Self::Waits { why } => {
                let count = |(refusal, nodes): (&Refusal, &u32)| {
                    format!("{nodes} {}: {}", if *nodes == 1 { "node" } else { "nodes" }, reason(*refusal))
                };
                let nodes: Vec<String> = why.nodes.iter().map(count).collect();
                let nodes =
                    if nodes.is_empty() { "no node runs jobs now".to_owned() } else { nodes.join("; ") };
                write!(f, "waits: {nodes}")?;
                if why.is_reserved {
                    f.write_str(
                        "; others are kept for tasks before it, or its gang does not fit as a whole",
                    )?;
                }
                Ok(())
            }
        }
    }
}

fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NotOpen => "has as many attempts as a node may",
        Refusal::WrongSite => "is of another site",
        Refusal::TooLittleTrust => "is not trusted enough",
        Refusal::Avoided => "failed it before, or has given its owner's result",
        Refusal::NoSuchGpu => "has no such GPU",
        Refusal::LevelTooWeak => "has a GPU that is closed, or that does not confine it as demanded",
        Refusal::TooSmall => "is too small even when idle",
        Refusal::CpuTaken => "has its processors taken",
        Refusal::MemoryTaken => "has its memory taken",
        Refusal::ScratchTaken => "has its scratch taken",
        Refusal::GpuFragmented => "has GPU left, on no card enough",
        Refusal::GpuTaken => "has its GPUs taken",
    }
}

/// What the leader's plans said of tasks lately. Soft state: another leader explains what it planned itself.
#[derive(Debug, Default)]
pub struct Explained {
    why: Mutex<BTreeMap<(JobId, u32), Why>>,
}

impl Explained {
    /// Remembers what a plan says of its tasks: what waits now, and where others went.
    /// `looked_at`: jobs that the plan was made of; others still wait for what they waited for.
    pub fn explain(&self, why: BTreeMap<(JobId, u32), Why>, looked_at: &BTreeSet<JobId>) {
        let mut known = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(job, _), why| matches!(why, Why::Placed { .. }) || !looked_at.contains(job));
        known.extend(why);
        while known.len() > EXPLAINED_MAX {
            known.pop_first();
        }
    }

    /// Nothing waits any more.
    pub fn settle(&self) {
        let mut known = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, why| matches!(why, Why::Placed { .. }));
    }

    /// Why a job's tasks stand where they do, a line each.
    #[must_use]
    pub fn why(&self, job: JobId) -> Vec<String> {
        let known = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        let of_job = known.range((job, 0)..=(job, u32::MAX)).take(LINES_MAX);
        of_job.map(|((_, index), why)| format!("task {index} {why}")).collect()
    }
}
