//! All that other crates see of agreement: propose, query; and the port to other voters.

use async_trait::async_trait;

use crate::facts::command::{Command, Refusal, Reply};
use crate::facts::query::{Answer, Query};

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
