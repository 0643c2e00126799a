//! Sees to it that every scheme in use has placement groups, on disks that may be used.
//!
//! Always: a slot moves only when a person has said that its disk or node is lost. A disk that drains, or whose node is
//! away, keeps its slots, since groups are where shards are looked for; it is given no new ones.

use std::collections::BTreeSet;
use std::time::Duration;

use makai_erasure::placement::{Member, Placed, plan};
use makai_erasure::{PgId, Scheme};
use makai_raft::facts::Timestamp;
use makai_raft::facts::cluster::{ClusterMap, Group, Standing};
use makai_raft::facts::command::{Command, Refusal};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::handle::MetaError;
use makai_raft::view::IndexedMap;

use super::Shell;
use crate::clock;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Disks by what they may do. Pure.
#[derive(Debug, Default, PartialEq, Eq)]
struct Disks {
    /// May take shards: they and their node are active, and the node is up or not down for long.
    taking: Vec<Member>,
    /// Take no new slots, and keep those they have.
    keeping: Vec<Member>,
}

fn sort_disks(map: &IndexedMap, now: Timestamp, grace_ms: u64) -> Disks {
    let mut disks = Disks::default();
    for disk in &map.map.disks {
        let Some(node) = map.node(disk.node) else { continue };
        if disk.standing == Standing::Lost || node.standing == Standing::Lost {
            continue;
        }
        let member = Member {
            disk: disk.id,
            node: disk.node,
            owner: node.owner.clone(),
            site: node.site.clone(),
            capacity_bytes: disk.capacity_bytes.max(1),
        };
        let is_there = node.is_up || now.millis_since(node.changed_at) < grace_ms;
        let is_taking = disk.standing == Standing::Active && node.standing == Standing::Active && is_there;
        if is_taking { disks.taking.push(member) } else { disks.keeping.push(member) }
    }
    disks
}

/// Groups to add or change so that each of `schemes` is placed. Pure.
fn changes(map: &ClusterMap, disks: &Disks, schemes: &BTreeSet<Scheme>) -> Vec<Group> {
    let mut next_id = map.groups.iter().map(|group| group.id.0).max().unwrap_or(0) + 1;
    let mut changes = Vec::new();
    for scheme in schemes {
        let of_scheme = map.groups.iter().filter(|group| group.scheme == *scheme);
        let existing: Vec<Placed> = of_scheme
            .map(|group| Placed { id: group.id, version: group.version, disks: group.disks.clone() })
            .collect();
        for placed in plan(*scheme, &disks.taking, &disks.keeping, &existing, next_id) {
            next_id = next_id.max(placed.id.0 + 1);
            let Placed { id: PgId(id), version, disks } = placed;
            changes.push(Group { id: PgId(id), scheme: *scheme, version, disks });
        }
    }
    changes
}

pub async fn run(shell: Shell) {
    while shell.pause(LOOK_EVERY).await {
        if shell.is_leader()
            && let Err(error) = step(&shell).await
        {
            tracing::warn!(%error, "placement groups were not renewed; trying again");
        }
    }
}

async fn step(shell: &Shell) -> Result<(), MetaError> {
    let map = match shell.facts.query(Query::ClusterMap { known_epoch: None }).await? {
        Answer::ClusterMap(map) => IndexedMap::new(map),
        _ => return Ok(()),
    };
    let buckets = match shell.facts.query(Query::Buckets { tenant: None }).await? {
        Answer::Buckets(buckets) => buckets,
        _ => return Ok(()),
    };
    if map.map.disks.is_empty() {
        return Ok(());
    }
    let mut schemes: BTreeSet<Scheme> = buckets.iter().filter_map(|bucket| bucket.scheme).collect();
    schemes.insert(map.default_scheme());
    schemes.extend(map.map.groups.iter().map(|group| group.scheme));
    let grace_ms = shell.config.storage.repair_grace_secs.saturating_mul(1000);
    let groups = changes(&map.map, &sort_disks(&map, clock::now(), grace_ms), &schemes);
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
