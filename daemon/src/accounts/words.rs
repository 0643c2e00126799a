//! What a node says of itself, and how that gets into the facts: what it draws lots with, that it has won, what it trains.

use std::time::Duration;

use bytes::Bytes;
use makai_erasure::NodeId;
use makai_raft::facts::accounts::{AccountsCommand, Hash, LotBinding};
use makai_raft::facts::command::Command;
use serde::{Deserialize, Serialize};

use crate::members::{WORD, encode};
use crate::reconcile::Shell;

const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// A node's word about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// What it draws with.
    Bind { key: Hash, node_signature: Bytes },
    /// It has won in the open epoch.
    Won { epoch: u64, proof: Bytes },
    /// It is going to train this.
    Training { spec: Hash, checkpoints: u32 },
    /// Its next checkpoint.
    Checkpoint { spec: Hash, at: u32, hash: Hash },
}

impl Word {
    #[must_use]
    pub fn command(self, node: NodeId) -> AccountsCommand {
        match self {
            Self::Bind { key, node_signature } => {
                AccountsCommand::BindLots(LotBinding { node, key, node_signature })
            }
            Self::Won { epoch, proof } => AccountsCommand::Draw { epoch, node, proof },
            Self::Training { spec, checkpoints } => {
                AccountsCommand::AnnounceTraining { node, spec, checkpoints }
            }
            Self::Checkpoint { spec, at, hash } => AccountsCommand::CommitCheckpoint { node, spec, at, hash },
        }
    }
}

/// Brings a word of this node into the facts, through a voter where this node may not itself.
///
/// # Errors
/// No voter answers, or the facts refuse.
pub async fn tell(shell: &Shell, word: Word) -> anyhow::Result<()> {
    if shell.is_trusted() {
        shell.facts.propose(Command::Accounts(word.command(shell.id))).await?;
        return Ok(());
    }
    let body = encode(&word).map_err(anyhow::Error::msg)?;
    let mut last = anyhow::anyhow!("no voter is known");
    for voter in shell.members.voters() {
        match shell.transport.request(voter, WORD, body.clone(), ASK_TIMEOUT).await {
            Ok(_) => {
                shell.members.news.note();
                return Ok(());
            }
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}
