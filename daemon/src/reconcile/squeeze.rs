//! Empties blobs of which a good part is dead, as [`makai_gateway::objects::squeeze`] does: one gateway does, the first of those
//! that are up.
//!
//! That two do for a moment, when the first changes, costs a copy that nothing names, which is collected.

use std::time::Duration;

use makai_gateway::objects::Objects;
use makai_gateway::objects::squeeze::Squeezing;

use super::Shell;
use super::notify::is_first;

/// Rest between two rounds. One in which nothing is worth a walk costs a query for each 1,000 hollow blobs.
const EVERY: Duration = Duration::from_secs(60);

pub async fn run(shell: Shell, objects: Objects) {
    let mut known = Squeezing::default();
    while shell.pause(EVERY).await {
        if !is_first(&shell) {
            continue;
        }
        tokio::select! {
            outcome = objects.squeeze(&mut known) => match outcome {
                Ok(done) if done.versions > 0 || done.failed > 0 => {
                    let (versions, bytes, failed) = (done.versions, done.bytes_copied, done.failed);
                    tracing::info!(versions, bytes, failed, "blobs that were mostly dead were emptied");
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "not all hollow blobs were emptied; trying again"),
            },
            () = shell.stop.cancelled() => return,
        }
    }
}
