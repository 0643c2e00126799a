//! Sees to it that every scheme in use has placement groups, on disks that may be used.
//!
//! ```text
//! lost disk ─> its slots go to others at once, to be rebuilt there
//! disk away for too long ─> a move begins ─ the other disk makes the shards again ─ it says so ─> the slot is switched
//! draining disk, disk above its share, disk nearly full ─> a move begins ─ the other disk copies ─ it says so ─> the same
//! ```
//!
//! Always: groups are where shards are looked for, so a slot changes only once the other disk holds all of it, and a disk that
//! comes back before is still the slot's own: what it holds is not made again. How long a disk may be away before its slots
//! are made again depends on what its groups have to spare ([`danger`]); till then it keeps them, and is given no new ones. A
//! move to a disk that may no longer take slots, or does not answer, is given up.

pub mod rules;

use std::collections::BTreeSet;
use std::time::Duration;

use makai_erasure::placement::Patience;
use makai_erasure::{DiskId, Scheme};
use makai_raft::facts::cluster::ClusterMap;
use makai_raft::facts::command::{Command, Refusal};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::handle::MetaError;
use makai_raft::view::IndexedMap;

use super::Shell;
use crate::clock;
use rules::{changes, endangered, finished, sort_disks};

const LOOK_EVERY: Duration = Duration::from_secs(1);

pub async fn run(shell: Shell) {
    loop {
        tokio::select! {
            goes_on = shell.pause(LOOK_EVERY) => if !goes_on { return },
            () = shell.members.filled_changed.notified() => {}
        }
        if shell.is_leader()
            && let Err(error) = step(&shell).await
        {
            tracing::warn!(%error, "placement groups were not renewed; trying again");
        }
    }
}

async fn step(shell: &Shell) -> Result<(), MetaError> {
    let map = match shell.here.query(Query::ClusterMap { known_epoch: None }).await? {
        Answer::ClusterMap(map) => IndexedMap::new(map),
        _ => return Ok(()),
    };
    let buckets = match shell.here.query(Query::Buckets { tenant: None }).await? {
        Answer::Buckets(buckets) => buckets,
        _ => return Ok(()),
    };
    if map.map.disks.is_empty() {
        return Ok(());
    }
    let mut schemes: BTreeSet<Scheme> = buckets.iter().filter_map(|bucket| bucket.scheme).collect();
    schemes.insert(map.default_scheme());
    schemes.extend(map.map.groups.iter().map(|group| group.scheme));
    finish_moves(shell, &map.map).await?;
    let storage = &shell.config.storage;
    let patience = Patience {
        grace_ms: storage.repair_grace_secs.saturating_mul(1000),
        urgent_ms: storage.repair_urgent_secs.saturating_mul(1000),
        is_outage: false,
    };
    let disks = sort_disks(&map, clock::now(), patience.grace_ms);
    let endangered = endangered(&map.map, &disks, patience);
    let groups = changes(&map.map, &disks, &schemes, &endangered);
    if groups.is_empty() {
        return Ok(());
    }
    tracing::info!(count = groups.len(), "placement groups change");
    match shell.facts.propose(Command::PutGroups { map_epoch: map.map.epoch, groups }).await {
        // Someone joined meanwhile: the next round plans again.
        Ok(_) | Err(MetaError::Refused(Refusal::StaleMap(_))) => {
            shell.map_changed.notify_one();
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Switches the slots whose disks are filled. A blob that came meanwhile refuses it: the disk tells again.
async fn finish_moves(shell: &Shell, map: &ClusterMap) -> Result<(), MetaError> {
    let node_of = |disk: DiskId| map.disks.iter().find(|known| known.id == disk).map(|known| known.node);
    let heard = shell.members.heard();
    let told = heard.iter().flat_map(|(node, heard)| {
        heard.filled.iter().filter(|filled| node_of(filled.to) == Some(*node)).copied()
    });
    for command in finished(map, &told.collect::<Vec<_>>()) {
        match shell.facts.propose(command).await {
            Ok(_) => shell.map_changed.notify_one(),
            Err(MetaError::Refused(refusal)) => tracing::debug!(%refusal, "a slot is not switched yet"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
