//! Lets the facts forget the replies kept for processes long gone, and mounts that died: what they locked and had open.

use std::time::Duration;

use makai_raft::facts::command::{Command, Refusal};
use makai_raft::facts::files::{BucketRef, FileAnswer, FileCommand, FileQuery};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::handle::MetaError;

use super::Shell;
use crate::clock;

/// As long as a mount's lease.
const EVERY: Duration = Duration::from_secs(30);
/// Replies are looked at once in so many rounds.
const ROUNDS_PER_LOOK_AT_REPLIES: u32 = 10;
/// Far longer than any request is retried.
const IDLE_MS: u64 = 60 * 60 * 1000;

pub async fn run(shell: Shell) {
    let mut rounds: u32 = 0;
    while shell.pause(EVERY).await {
        rounds = rounds.wrapping_add(1);
        if !shell.is_leader() {
            continue;
        }
        if rounds.is_multiple_of(ROUNDS_PER_LOOK_AT_REPLIES)
            && let Err(error) = shell.facts.propose(Command::ExpireSessions { idle_ms: IDLE_MS }).await
        {
            tracing::debug!(%error, "old sessions stay");
        }
        if let Err(error) = end_mounts(&shell).await {
            tracing::debug!(%error, "mounts that died stay");
        }
    }
}

/// Ends mounts that have not been heard of for a lease.
async fn end_mounts(shell: &Shell) -> Result<(), MetaError> {
    let Answer::Buckets(buckets) = shell.here.query(Query::Buckets { tenant: None }).await? else {
        return Ok(());
    };
    for bucket in buckets.into_iter().filter(|bucket| bucket.mounts > 0) {
        let bucket = BucketRef { name: bucket.name, id: bucket.id };
        let expired = FileQuery::Expired { bucket: bucket.clone(), now: clock::now() };
        // Where nobody can tell, the command does.
        if matches!(
            shell.facts.query(Query::File(expired)).await,
            Ok(Answer::File(FileAnswer::Expired(false)))
        ) {
            continue;
        }
        match shell.facts.propose(Command::File(FileCommand::ExpireSessions { bucket })).await {
            // Deleted meanwhile.
            Ok(_) | Err(MetaError::Refused(Refusal::NoSuchBucket)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
