//! What the scheduler knows and what it answers: plain values, without a word of how they are agreed or carried.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Thousandths of one GPU that make the whole.
pub const GPU_MILLI: u32 = 1000;
/// Cards of one node that are looked at; further ones are left alone.
pub const NODE_GPUS_MAX: usize = 64;

/// A node by its number in the cluster: never reused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeNumber(pub u64);

/// A task of a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    pub job: u64,
    pub index: u32,
}

/// One card, as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gpu {
    /// As the driver names it; tasks may ask for a part of it.
    pub model: String,
    /// What tasks may have: the card's own less what its owner keeps.
    pub memory_mib: u64,
    /// Strongest confinement it can give a slice, on the ladder of [`crate::slice`] (0 advisory to 5 exclusive).
    pub level_max: u8,
    /// Containers can have shares of it.
    pub has_shadow: bool,
}

/// One node, as a whole. What runs on it stands in [`Cluster::running`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    pub number: NodeNumber,
    pub site: String,
    pub cpu_milli: u64,
    pub memory_mib: u64,
    pub scratch_mib: u64,
    pub gpus: Vec<Gpu>,
    /// Takes new tasks: up, in service, neither draining nor paused by its owner.
    pub is_open: bool,
    pub traits: Traits,
}

/// What is measured of a node, each in thousandths, so that one number means one thing everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// Speed by price against the cluster's median: 1000 is as good as most.
    pub value_milli: u32,
    /// Share of its attempts that did not die of the node.
    pub reliability_milli: u32,
    /// Load that is not ours.
    pub load_milli: u32,
    /// What its verified work has earned it.
    pub trust_milli: u32,
}

impl Default for Traits {
    fn default() -> Self {
        Self { value_milli: 1000, reliability_milli: 1000, load_milli: 0, trust_milli: 1000 }
    }
}

/// What one attempt holds of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Demand {
    pub cpu_milli: u64,
    pub memory_mib: u64,
    pub scratch_mib: u64,
    pub gpu: Option<GpuDemand>,
    /// Only nodes of this site; empty: any.
    pub site: String,
    /// Only nodes with at least this trust.
    pub trust_min_milli: u32,
}

/// Whole cards (`milli` is 1000), or a share of one (`cards` is 1).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuDemand {
    pub cards: u32,
    /// Of each card.
    pub milli: u32,
    /// Of each card.
    pub memory_mib: u64,
    /// Parts of a model's name, any of which will do; empty: any card.
    pub models: Vec<String>,
    /// Weakest confinement that the customer accepts.
    pub level_min: u8,
    /// A share for a container, where [`Gpu::has_shadow`].
    pub needs_shadow: bool,
}

impl Demand {
    /// Thousandths of a GPU, over all its cards.
    #[must_use]
    pub fn gpu_milli(&self) -> u64 {
        self.gpu.as_ref().map_or(0, |gpu| u64::from(gpu.cards) * u64::from(gpu.milli))
    }
}

/// A task that waits for a place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    pub task: TaskId,
    pub tenant: u64,
    /// Higher goes first; waiting raises it (see [`super::order`]).
    pub priority: u8,
    pub submitted_ms: u64,
    /// When it should have ended.
    pub deadline_ms: Option<u64>,
    pub demand: Demand,
    /// Predicted run time.
    pub runtime: Estimate,
    /// Tasks that start together or not at all bear one number.
    pub gang: Option<u64>,
    /// Bytes of its inputs that a node already holds.
    pub local_bytes: Arc<BTreeMap<NodeNumber, u64>>,
    /// Nodes that it must not go to: where it failed, or where its twin runs.
    pub avoid: Vec<NodeNumber>,
}

/// A prediction with its spread: half of the outcomes lie below `median_ms`, nine of ten below `p90_ms`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    pub median_ms: u64,
    pub p90_ms: u64,
}

/// An attempt that holds its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Running {
    pub task: TaskId,
    pub tenant: u64,
    pub priority: u8,
    pub node: NodeNumber,
    /// Which of the node's cards, by their place in [`Node::gpus`].
    pub gpus: Vec<u16>,
    pub demand: Demand,
    pub started_ms: u64,
    pub runtime: Estimate,
    /// Work that is lost, or time that saving it takes, when it is stopped now. `None`: it must not be stopped.
    pub stop_cost_ms: Option<u64>,
    /// A twin of it runs or is to run already.
    pub is_reissued: bool,
}

/// Everything that holds or offers room.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub running: Vec<Running>,
}

/// Everything that wants room, and what is known of those who want it.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    pub waiting: Vec<Waiting>,
    /// Weight of a tenant's fair share; absent: 1.
    pub weights: BTreeMap<u64, u32>,
    /// What was lately asked for, as often as it was asked for: the mix that packing prepares for. Empty: what waits
    /// and runs stands for it.
    pub recent: Vec<(Demand, u64)>,
}

/// One step of a plan. Steps are to be carried out in order: a stop makes the room that a start counts on.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Start {
        task: TaskId,
        node: NodeNumber,
        gpus: Vec<u16>,
        score: Score,
    },
    /// Stop it and queue it again: what it makes room for gains more than it loses.
    Preempt {
        task: TaskId,
        node: NodeNumber,
        for_task: TaskId,
    },
    /// Start a second attempt beside a straggler; the first valid result wins.
    Reissue {
        task: TaskId,
        node: NodeNumber,
        gpus: Vec<u16>,
        score: Score,
    },
    /// It stays queued, and this is why.
    Wait {
        task: TaskId,
        why: Refusals,
    },
}

/// Why a node was chosen: the sum is `total`; less is better.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    pub total: f64,
    /// GPU-milli that likely stay unused for good, more than before.
    pub packing: f64,
    pub locality: f64,
    pub value: f64,
    pub reliability: f64,
    pub load: f64,
    pub trust: f64,
}

/// Why there is no place, as the number of nodes that were refused for each reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals {
    pub nodes: BTreeMap<Refusal, u32>,
    /// Held back so that a task before it in the order gets its reserved place in time.
    pub is_reserved: bool,
}

/// Why a node cannot take a task; the first that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    NotOpen,
    WrongSite,
    TooLittleTrust,
    /// The task failed there, or its twin runs there.
    Avoided,
    /// No card of an allowed model, or too few.
    NoSuchGpu,
    /// Cards of the model, none with the demanded confinement.
    LevelTooWeak,
    /// Even empty it would be too small.
    TooSmall,
    CpuTaken,
    MemoryTaken,
    ScratchTaken,
    /// Room in sum, not on one card.
    GpuFragmented,
    GpuTaken,
}
