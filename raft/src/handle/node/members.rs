//! Who votes: voters come and go one at a time, and the lead is handed over.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;
use makai_erasure::NodeId;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, Precondition, RaftMetrics};

use super::{MetaAdminError, MetaNode, MetaStatus};
use crate::log::types::{Types, VoterNode};

/// Between two attempts of a leader that waits to be confirmed.
const UNCONFIRMED_PAUSE: Duration = Duration::from_millis(10);

impl MetaNode {
    /// Adds a voter: it learns all there is, then votes. `number` must never have been another node's.
    /// Takes as long as the catching up does. Does nothing where it already votes.
    ///
    /// # Errors
    /// [`MetaAdminError`]
    pub fn add_voter(&self, number: u64, node: NodeId) -> BoxFuture<'_, Result<(), MetaAdminError>> {
        Box::pin(self.admit_voter(number, node))
    }

    async fn admit_voter(&self, number: u64, node: NodeId) -> Result<(), MetaAdminError> {
        let _one_at_a_time = self.0.membership.lock().await;
        let status = self.leading()?;
        for &(known, key) in status.voters.iter().chain(&status.learners) {
            if (known == number) != (key == node) {
                let why = format!("number {known} is node {key}'s; a number is never given out again");
                return Err(MetaAdminError::Invalid(why));
            }
        }
        if status.voters.iter().any(|&(known, _)| known == number) {
            return Ok(());
        }
        let learner = VoterNode { key: node };
        self.as_confirmed_leader(|| self.0.raft.add_learner(number, learner, true)).await?;
        let change = ChangeMembers::AddVoterIds(BTreeSet::from([number]));
        self.change(change).await
    }

    /// Removes a voter or learner; its number is spent. Does nothing where it is none.
    ///
    /// # Errors
    /// [`MetaAdminError`]
    pub fn remove_voter(&self, number: u64) -> BoxFuture<'_, Result<(), MetaAdminError>> {
        Box::pin(self.dismiss_voter(number))
    }

    async fn dismiss_voter(&self, number: u64) -> Result<(), MetaAdminError> {
        let _one_at_a_time = self.0.membership.lock().await;
        let status = self.leading()?;
        if status.voters.iter().any(|&(known, _)| known == number) {
            if status.voters.len() == 1 {
                return Err(MetaAdminError::Invalid("the last voter cannot be removed".into()));
            }
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([number]))).await
        } else if status.learners.iter().any(|&(known, _)| known == number) {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([number]))).await
        } else {
            Ok(())
        }
    }

    fn leading(&self) -> Result<MetaStatus, MetaAdminError> {
        let status = self.status();
        if status.is_leader { Ok(status) } else { Err(MetaAdminError::NotLeader(status.leader)) }
    }

    /// Refused where another change came between.
    async fn change(&self, change: ChangeMembers<u64, VoterNode>) -> Result<(), MetaAdminError> {
        self.as_confirmed_leader(|| {
            let last_membership_log_id = *self.metrics().membership_config.log_id();
            let precondition = Precondition::LastMembershipLogId { last_membership_log_id };
            self.0.raft.change_membership_if(change.clone(), false, [precondition])
        })
        .await
    }

    /// A leader that no majority has confirmed yet turns changes away, naming nobody, and one whose last change of members is
    /// not agreed yet turns the next away: tries again while it leads.
    async fn as_confirmed_leader<F, T>(&self, attempt: impl Fn() -> F) -> Result<(), MetaAdminError>
    where
        F: Future<Output = Result<T, RaftError<Types, ClientWriteError<Types>>>>,
    {
        let until = crate::handle::stopwatch() + Duration::from_millis(self.0.config.request_timeout_ms);
        loop {
            let error = match attempt().await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let is_in_progress = is_in_progress(&error);
            let error = admin_error(error);
            let is_early = is_in_progress || error == MetaAdminError::NotLeader(None);
            if !is_early || !self.is_leader() || crate::handle::stopwatch() >= until {
                return Err(error);
            }
            tokio::time::sleep(UNCONFIRMED_PAUSE).await;
        }
    }

    /// Hands the lead to another voter; to the one with the longest log if `to` is `None`. Returns when this
    /// node has stopped leading.
    ///
    /// # Errors
    /// [`MetaAdminError::NotLeader`], or `Unconfirmed` when the other does not take over in time.
    pub fn transfer_leader(&self, to: Option<u64>) -> BoxFuture<'_, Result<(), MetaAdminError>> {
        Box::pin(self.hand_over(to))
    }

    async fn hand_over(&self, to: Option<u64>) -> Result<(), MetaAdminError> {
        let status = self.leading()?;
        let is_voter = |number: &u64| status.voters.iter().any(|(known, _)| known == number);
        let best = || {
            let others =
                status.matched.iter().filter(|(number, _)| *number != status.number && is_voter(number));
            others.max_by_key(|(_, matched)| *matched).map(|(number, _)| *number)
        };
        let Some(to) = to.or_else(best).filter(|number| is_voter(number) && *number != status.number) else {
            return Err(MetaAdminError::Invalid("there is no such other voter".into()));
        };
        let unconfirmed = |why: String| MetaAdminError::Unconfirmed(why);
        self.0.raft.trigger().transfer_leader(to).await.map_err(|fatal| unconfirmed(fatal.to_string()))?;
        let timeout = Duration::from_millis(self.0.config.election_timeout_max_ms * 2);
        let moved =
            |metrics: &RaftMetrics<Types>| metrics.current_leader.is_some_and(|leader| leader != metrics.id);
        let waited = self.0.raft.wait(Some(timeout)).metrics(moved, "another leads").await;
        waited.map(|_| ()).map_err(|error| unconfirmed(error.to_string()))
    }
}

fn is_in_progress(error: &RaftError<Types, ClientWriteError<Types>>) -> bool {
    use openraft::errors::ChangeMembershipError::InProgress;
    matches!(error, RaftError::APIError(ClientWriteError::ChangeMembershipError(InProgress(_))))
}

fn admin_error(error: RaftError<Types, ClientWriteError<Types>>) -> MetaAdminError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            MetaAdminError::NotLeader(forward.leader_node.map(|node| node.key))
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) | RaftError::Fatal(_) => {
            MetaAdminError::Unconfirmed(error.to_string())
        }
        RaftError::APIError(refused) => MetaAdminError::Invalid(refused.to_string()),
    }
}
