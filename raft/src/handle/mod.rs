//! All that other crates see of agreement: propose, query; and the port to other voters.
//!
//! ```text
//! command ─ MetaClient: serial, group ─> leader's MetaNode: batch, stamp ─> Raft ─> replies
//! query   ─ MetaClient ─> a voter's MetaNode: read index from a majority, or from the leader ─> its own facts
//! voters  ─ MetaNode ─ RaftPeers ─> MetaNode::serve
//! ```
//!
//! | file       | holds                                                            |
//! |------------|------------------------------------------------------------------|
//! | `node`     | [`MetaNode`]: one voter or learner                               |
//! | `client`   | [`MetaClient`]: the facts from any node, through leader changes; [`Nearby`]: as the voter here knows |
//! | `remembered` | [`Remembered`]: what loops ask again, once for each version of the facts |
//! | `proposer` | what waits while a proposal is in flight becomes the next one    |
//! | `barrier`  | one read index for all who wait for one                          |
//! | `incoming` | a snapshot on its way in                                         |
//! | `link`     | openraft's network on the port                                   |
//! | `witness`  | what voters remember of each other: an old copy of one is noticed |
//! | [`anew`]   | backups, and clusters that begin anew from them                  |
//! | [`wire`]   | the messages                                                     |
//!
//! Always: a retry keeps its serial, so that a command is applied once however often it was sent; nothing waits
//! without a deadline; every queue has a bound.

pub mod anew;
mod barrier;
mod client;
mod incoming;
mod link;
mod node;
mod proposer;
mod remembered;
pub mod wire;
mod witness;

#[cfg(test)]
mod tests;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use makai_erasure::NodeId;

use crate::facts::command::{Command, Refusal, Reply};
use crate::facts::query::{Answer, Query};

pub use client::{MetaClient, MetaClientConfig, Nearby};
pub use node::{MetaAdminError, MetaConfig, MetaFatal, MetaNode, MetaStartError, MetaStatus};
pub use remembered::{Remembered, Version, VersionNow};

/// Why the facts could not be changed or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MetaError {
    /// The cluster considered it and says no: tell the client.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No leader answered within the time allowed. A command may or may not have been applied: a read tells.
    #[error("the metadata has no leader that answers: {0}")]
    Unavailable(String),
    /// Too much is waiting: tell the client to slow down.
    #[error("too many metadata requests wait; slow down")]
    Overloaded,
}

/// The facts, wherever they live. Retries inside until its deadline, through leader changes.
#[async_trait]
pub trait Metadata: Send + Sync + 'static {
    /// Returns once a majority of voters has the change on disk and it is applied.
    async fn propose(&self, command: Command) -> Result<Reply, MetaError>;
    /// Linearizable: sees every change answered before it was asked.
    async fn query(&self, query: Query) -> Result<Answer, MetaError>;
}

/// The way to other voters.
#[async_trait]
pub trait RaftPeers: Send + Sync + 'static {
    /// One request to a peer's [`MetaNode::serve`]; at most [`wire::MESSAGE_BYTES_MAX`] each way. The peer is
    /// told, and can rely on, whom it is from.
    async fn request(&self, to: NodeId, message: Bytes, timeout: Duration) -> Result<Bytes, RaftPeerError>;
}

/// Why a peer gave no answer. It may have received the request all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RaftPeerError {
    #[error("no connection: {0}")]
    Unreachable(String),
    #[error("no answer in time")]
    Timeout,
    #[error("turned away: {0}")]
    Refused(String),
}

/// This machine's running time, for deadlines and pauses alone: nothing that is agreed depends on it.
#[expect(clippy::disallowed_methods, reason = "a shell's stopwatch; what is agreed has the leader's stamp")]
fn stopwatch() -> std::time::Instant {
    std::time::Instant::now()
}

/// The runtime's time, for deadlines that its timers keep.
#[expect(clippy::disallowed_methods, reason = "a shell's timer; what is agreed has the leader's stamp")]
fn timer() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
