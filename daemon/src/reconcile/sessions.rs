//! Lets the facts forget the replies kept for processes long gone.

use std::time::Duration;

use makai_raft::facts::command::Command;

use super::Shell;

const EVERY: Duration = Duration::from_secs(300);
/// Far longer than any request is retried.
const IDLE_MS: u64 = 60 * 60 * 1000;

pub async fn run(shell: Shell) {
    while shell.pause(EVERY).await {
        if shell.is_leader()
            && let Err(error) = shell.facts.propose(Command::ExpireSessions { idle_ms: IDLE_MS }).await
        {
            tracing::debug!(%error, "old sessions stay");
        }
    }
}
