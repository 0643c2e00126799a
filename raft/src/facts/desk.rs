//! What a node that runs an attempt asks of a gateway, and what it hears: the contract between the agent and the desk; and what the
//! leader tells it unasked.
//!
//! A node names what it wants by the attempt and a place in the job's specification, never by bucket or key.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::jobs::{AssignedTask, AttemptId, JobId, JobSpec, ObjectPath, Statement};
use super::tenant::TenantId;

/// Bytes of one read or write.
pub const PIECE_BYTES_MAX: u64 = 4 << 20;

/// Which of a task's objects is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Source {
    Image,
    /// By its place in the specification.
    Input(u32),
    /// The objects that the task is for: listed in the order in which the job has them.
    Each,
    /// One of them, by its place among the task's.
    EachAt(u32),
}

/// Where bytes go.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    /// By its place in the specification, and the path below it: empty where the output is a file.
    Output {
        at: u32,
        path: String,
    },
    Log,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// -> `Assignments` of the node that asks.
    Assignments,
    /// -> `Done`: these run now.
    Start { attempts: Vec<AttemptId> },
    /// -> `Objects` after a name, in order.
    List { attempt: AttemptId, source: Source, after: String },
    /// -> `Bytes` of exactly this version, at most [`PIECE_BYTES_MAX`].
    Read { attempt: AttemptId, source: Source, name: String, version: u64, offset: u64, len: u64 },
    /// -> `Done`. Pieces of one target come in order; the last says so.
    Write { attempt: AttemptId, to: Target, offset: u64, bytes: Bytes, is_last: bool },
    /// -> `Done`: it counts. The outputs stated and the log must have been written here.
    Finish { statement: Statement, signature: Bytes, has_log: bool },
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedObject {
    /// What follows the prefix; empty where a key was named.
    pub name: String,
    pub size: u64,
    pub version: u64,
    /// Of those that a task is for: where it comes from.
    #[serde(default)]
    pub from: Option<ObjectPath>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Assignments(Vec<AssignedTask>),
    Objects { objects: Vec<ListedObject>, is_truncated: bool },
    Bytes(Bytes),
    Fault(Fault),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Fault {
    /// Stop working on it.
    #[error("attempt {0} is not this node's any more")]
    Stale(AttemptId),
    /// The task cannot work as it was submitted.
    #[error("{0}")]
    Refused(String),
    /// What was written is not here (another gateway has it, or it took too long): write it again.
    #[error("what was written is not here any more: {0}")]
    NotWritten(String),
    /// Try again, perhaps elsewhere.
    #[error("{0}")]
    Unavailable(String),
}

/// Attempts of one job that were just assigned to a node: what it would hear if it asked, told so that it need not. Carried by a wake, in
/// a list; a node that does not know of it looks, as at any wake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub job: JobId,
    pub tenant: TenantId,
    pub spec: JobSpec,
    pub attempts: Vec<ToldAttempt>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldAttempt {
    pub index: u32,
    pub attempt: u32,
    /// Cards that it gets, or gets its share of.
    #[serde(default)]
    pub gpus: Vec<String>,
}

impl Told {
    /// The same as an answer to who asks.
    #[must_use]
    pub fn assigned(self) -> Vec<AssignedTask> {
        let Self { job, tenant, spec, attempts } = self;
        let task = |ToldAttempt { index, attempt, gpus }| AssignedTask {
            attempt: AttemptId { job, index, attempt },
            tenant,
            is_running: false,
            spec: spec.clone(),
            gpus,
        };
        attempts.into_iter().map(task).collect()
    }
}
