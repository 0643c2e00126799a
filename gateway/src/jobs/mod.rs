//! Jobs: the door for those who submit them, and the desk for the nodes that run them.
//!
//! ```text
//! customer ─ gRPC ─ service ─> facts (submitted, cancelled) ─> the leader's scheduler is woken
//! node     ─ peers ─ desk  ─> inputs out of the pool, outputs and log into it, one result: one proposal
//! ```
//!
//! | file        | holds                                                                 |
//! |-------------|-----------------------------------------------------------------------|
//! | `service`   | the gRPC service                                                      |
//! | `check`     | what can be known of a job's objects and kernels before anything runs |
//! | `each`      | the objects of an array over objects, listed when it is submitted     |
//! | `words`     | what the service's messages mean in facts, and back                   |
//! | `logs`      | what an attempt printed, from its node or from the pool               |
//! | [`desk`]    | what a node may do for an attempt that is its own, and nothing else   |
//!
//! Always: a node sees and writes only what a current attempt of its own names, never a customer's key; outputs become
//! visible in the same proposal that ends the attempt, or never; a customer sees its own tenant's jobs alone.

mod check;
pub mod desk;
mod each;
mod logs;
mod rights;
mod service;
mod words;

use async_trait::async_trait;
use makai_erasure::NodeId;
use makai_raft::facts::joblog::LogPart;
use makai_raft::facts::jobs::{AttemptId, JobId, JobSpec, ModuleWork, Resources};
use makai_raft::facts::tenant::TenantId;

pub use service::{JobsOptions, JobsService};

/// Bytes of the log that one request to a node brings.
pub const LOG_PAGE_BYTES_MAX: u32 = 512 * 1024;

/// Where tasks of a specification could run if nothing else did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Capacity {
    pub nodes: u32,
    pub tasks_at_once: u64,
    /// Beside what runs now.
    #[serde(default)]
    pub tasks_now: u64,
    /// What would keep a task to its share of a card, by its number.
    #[serde(default)]
    pub level: Option<u8>,
    /// Of tasks like it: half took less, and nine in ten; 0: none has ended yet.
    #[serde(default)]
    pub median_ms: u64,
    #[serde(default)]
    pub p90_ms: u64,
}

/// Whether tasks of a specification could run on an idle cluster.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Never {
    Possible,
    /// Nowhere, and why.
    Never(String),
    /// On none that is known, and which are not.
    Unknown(String),
}

/// The way to the nodes that run jobs, and to the leader that gives jobs to them.
#[async_trait]
pub trait JobNodes: Send + Sync + 'static {
    /// # Errors
    /// The node does not answer, or does not have the attempt.
    async fn log(&self, node: NodeId, attempt: AttemptId, offset: u64) -> Result<LogPart, String>;

    /// # Errors
    /// The leader does not answer.
    async fn capacity(&self, tenant: TenantId, spec: &JobSpec) -> Result<Capacity, String>;

    /// Whether any machine, up or down, could ever run a task of it.
    ///
    /// # Errors
    /// The leader does not answer.
    async fn never(&self, spec: &JobSpec) -> Result<Never, String>;

    /// Holds a module's launches against its code, `ptx`: kernels, arguments, sizes, shapes. `resources`: what its
    /// buffers may take, and whether a card runs it.
    ///
    /// # Errors
    /// What must change.
    async fn check_module(&self, work: ModuleWork, ptx: String, resources: Resources) -> Result<(), String>;

    /// Why a job's tasks stand where they do, a line each.
    ///
    /// # Errors
    /// The leader does not answer.
    async fn why(&self, job: JobId) -> Result<Vec<String>, String>;

    /// Tells the leader that there is something to schedule. A hint: it looks by itself too.
    fn wake(&self);
}
