//! What nodes train and want to be paid for, and what voters find who train parts of it again.

use anyhow::{Context as _, bail};
use makai_erasure::NodeId;
use makai_raft::facts::accounts::{AccountsCommand, Hash, Training, TrainingVerdict};
use makai_raft::facts::command::Command;
use serde::{Deserialize, Serialize};

use super::reading;
use super::words::{Word, tell};
use crate::reconcile::Shell;

/// A training as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingRow {
    pub training: Training,
    /// What its beginning is made of; `None`: the epoch that decides it has not begun.
    pub seed: Option<Hash>,
    /// What its segments are drawn by; `None`: not every checkpoint is there, or the epoch after has not begun.
    pub drawn_by: Option<Hash>,
}

/// A node's own announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    pub node: NodeId,
    pub spec: Hash,
    pub checkpoints: u32,
}

/// A node's own next checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commitment {
    pub node: NodeId,
    pub spec: Hash,
    pub at: u32,
    pub hash: Hash,
}

/// What the voter whose console is asked found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    pub node: NodeId,
    pub spec: Hash,
    pub has_passed: bool,
    pub work_mut: u64,
    pub why: String,
}

/// # Errors
/// The facts do not answer.
pub async fn rows(shell: &Shell) -> anyhow::Result<Vec<TrainingRow>> {
    let facts = &*shell.facts;
    let state = reading::state(facts).await?.context("the accounts are not open yet")?;
    let mut rows = Vec::new();
    for training in reading::trainings(facts).await? {
        let mut beacon = None;
        if training.announced < state.open {
            beacon = Some(reading::epoch(facts, training.announced + 1).await?.beacon);
        }
        let mut drawn_by = None;
        if let Some(since) = training.complete_since().filter(|since| *since < state.open) {
            drawn_by = Some(reading::epoch(facts, since + 1).await?.beacon);
        }
        let seed = beacon.map(|beacon| Hash(training.seed(&beacon)));
        rows.push(TrainingRow { training, seed, drawn_by });
    }
    Ok(rows)
}

async fn row(shell: &Shell, node: NodeId, spec: Hash) -> anyhow::Result<TrainingRow> {
    let is_it = |row: &TrainingRow| row.training.node == node && row.training.spec == spec;
    rows(shell).await?.into_iter().find(is_it).context("the training is not known")
}

fn check_own(shell: &Shell, node: NodeId) -> anyhow::Result<()> {
    if node != shell.id {
        bail!(
            "this is the console of node {}; a node speaks for itself alone: ask that of {node}, with --config of its \
             configuration on its machine",
            shell.id
        );
    }
    Ok(())
}

/// # Errors
/// It is another node's, or the facts refuse.
pub async fn announce(shell: &Shell, request: Announcement) -> anyhow::Result<TrainingRow> {
    let Announcement { node, spec, checkpoints } = request;
    check_own(shell, node)?;
    tell(shell, Word::Training { spec, checkpoints }).await?;
    row(shell, node, spec).await
}

/// # Errors
/// As [`announce`].
pub async fn commit(shell: &Shell, request: Commitment) -> anyhow::Result<TrainingRow> {
    let Commitment { node, spec, at, hash } = request;
    check_own(shell, node)?;
    tell(shell, Word::Checkpoint { spec, at, hash }).await?;
    row(shell, node, spec).await
}

/// # Errors
/// This node is no voter that signs claims, or the facts refuse.
pub async fn judge(shell: &Shell, request: Judgement) -> anyhow::Result<TrainingRow> {
    let Judgement { node, spec, has_passed, work_mut, why } = request;
    let verdict = TrainingVerdict { verifier: shell.id, has_passed, work_mut, why };
    let command = AccountsCommand::JudgeTraining { node, spec, verdict };
    shell.facts.propose(Command::Accounts(command)).await?;
    row(shell, node, spec).await
}
