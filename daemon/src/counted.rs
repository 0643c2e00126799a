//! How long this node's proposals and questions take.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use makai_ops::metrics as names;
use makai_raft::facts::command::{Command, Reply};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::handle::{MetaError, Metadata};

use crate::clock;
use crate::members::Members;

/// The facts, with a clock beside each answer; what this node changes is news to its own loops.
pub struct Counted {
    pub facts: Arc<dyn Metadata>,
    /// They hold the facts, too.
    pub members: Weak<Members>,
}

#[async_trait]
impl Metadata for Counted {
    async fn propose(&self, command: Command) -> Result<Reply, MetaError> {
        let begun = clock::instant();
        let replied = self.facts.propose(command).await;
        if let Some(members) = self.members.upgrade() {
            members.news.note();
        }
        metrics::histogram!(names::RAFT_PROPOSE_SECONDS).record(begun.elapsed());
        note(&replied);
        replied
    }

    async fn query(&self, query: Query) -> Result<Answer, MetaError> {
        // One that waits for news takes as long as there are none.
        let is_prompt = query.wait_ms().is_none();
        let begun = clock::instant();
        let answered = self.facts.query(query).await;
        if is_prompt {
            metrics::histogram!(names::RAFT_QUERY_SECONDS).record(begun.elapsed());
        }
        note(&answered);
        answered
    }
}

fn note<T>(answered: &Result<T, MetaError>) {
    if matches!(answered, Err(MetaError::Overloaded)) {
        metrics::counter!(names::GATEWAY_SLOWDOWNS, "bound" => "metadata").increment(1);
    }
}
