//! What a node that runs an attempt asks of a gateway, and what it hears: the contract between the agent and the desk.
//!
//! A node names what it wants by the attempt and a place in the job's specification, never by bucket or key.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::jobs::{AssignedTask, AttemptId, Statement};

/// Bytes of one read or write.
pub const PIECE_BYTES_MAX: u64 = 4 << 20;

/// Which of a task's objects is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Source {
    Image,
    /// By its place in the specification.
    Input(u32),
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedObject {
    /// What follows the prefix; empty where a key was named.
    pub name: String,
    pub size: u64,
    pub version: u64,
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
