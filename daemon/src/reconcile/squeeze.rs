//! Empties blobs of which a good part is dead, as [`makai_gateway::objects::squeeze`] does: one gateway does, the first of those
//! that are up.
//!
//! That two do for a moment, when the first changes, costs a copy that nothing names, which is collected.

use std::time::Duration;

use makai_gateway::objects::Objects;
use makai_gateway::objects::squeeze::Squeezing;

use super::Shell;
use super::notify::is_first;

/// Rest between two rounds. One in which nothing is worth a walk costs one query.
const EVERY: Duration = Duration::from_secs(60);

pub async fn run(shell: Shell, objects: Objects) {
    let mut known = Squeezing::default();
    while shell.pause(EVERY).await {
        if !is_first(&shell) {
            continue;
        }
        tokio::select! {
            outcome = objects.squeeze(&mut known) => match outcome {
                Ok(done) if done.versions > 0 => {
                    let (versions, bytes) = (done.versions, done.bytes_copied);
                    tracing::info!(versions, bytes, "blobs that were mostly dead were emptied");
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "not all hollow blobs were emptied; trying again"),
            },
            () = shell.stop.cancelled() => return,
        }
    }
}
