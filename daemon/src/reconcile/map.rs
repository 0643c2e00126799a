//! Keeps the newest cluster map here, and what follows from it: members, their addresses, the memory on disk.

use std::time::Duration;

use makai_raft::facts::query::{Answer, Query};

use super::Shell;
use crate::members::known_peers;
use crate::state::ClusterState;

/// The map is asked for this often even if nobody said that it changed: heartbeats' answers do.
const REFRESH_EVERY: Duration = Duration::from_secs(10);

pub async fn run(shell: Shell) {
    loop {
        if let Err(error) = refresh(&shell).await {
            tracing::debug!(%error, "the cluster map was not renewed");
        }
        tokio::select! {
            () = shell.map_changed.notified() => {}
            go_on = shell.pause(REFRESH_EVERY) => if !go_on { return },
        }
    }
}

/// Reads the map if it changed and puts it to use.
///
/// # Errors
/// Why it could not be read; the old one stays in use.
pub async fn refresh(shell: &Shell) -> anyhow::Result<()> {
    let known = shell.map.get();
    let known_epoch = (known.map.epoch > 0).then_some(known.map.epoch);
    let Answer::ClusterMap(map) = shell.facts.query(Query::ClusterMap { known_epoch }).await? else {
        return Ok(());
    };
    for node in map.nodes.iter().filter(|node| node.id != shell.id && !node.addresses.is_empty()) {
        shell.transport.set_addresses(node.id, node.addresses.clone());
    }
    shell.members.update(&map);
    let number = map.nodes.iter().find(|node| node.id == shell.id).map(|node| node.number);
    if let Some(number) = number {
        let state = ClusterState::new(map.cluster_id.clone(), number, known_peers(&map));
        let dir = shell.config.node.dir.clone();
        if ClusterState::load(&dir)?.as_ref() != Some(&state) {
            tokio::task::spawn_blocking(move || state.save(&dir)).await??;
        }
    }
    let epoch = map.epoch;
    shell.map.update(map);
    shell.map_renewed.send_replace(epoch);
    Ok(())
}
