//! Tells webhooks of changes of keys: one gateway does, the first of those that are up.
//!
//! That two do for a moment, when the first changes, costs a message that comes twice.

use makai_gateway::s3::notifications::Messenger;
use makai_raft::facts::cluster::Role;

use super::Shell;
use crate::clock;

pub async fn run(shell: Shell, mut messenger: Messenger) {
    while shell.pause(shell.interval()).await {
        if !is_first(&shell) {
            continue;
        }
        tokio::select! {
            outcome = messenger.round(clock::now()) => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "webhooks were not told of all changes; trying again");
                }
            }
            () = shell.stop.cancelled() => return,
        }
    }
}

/// Whether this node is the first of the gateways that are up.
pub(super) fn is_first(shell: &Shell) -> bool {
    let map = shell.map.get();
    let gateways = map.map.nodes.iter().filter(|node| node.is_up && node.roles.contains(&Role::Gateway));
    gateways.map(|node| node.id).min() == Some(shell.id)
}
