//! Copies to other S3 servers what changes in buckets: one gateway does, the first of those that are up.
//!
//! That two do for a moment, when the first changes, costs a copy that is made twice.

use makai_gateway::s3::replication::Replicator;

use super::Shell;
use super::notify::is_first;
use crate::clock;

pub async fn run(shell: Shell, mut replicator: Replicator) {
    while shell.pause(shell.interval()).await {
        if !is_first(&shell) {
            continue;
        }
        tokio::select! {
            outcome = replicator.round(clock::now()) => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "not all changes were copied; trying again");
                }
            }
            () = shell.stop.cancelled() => return,
        }
    }
}
