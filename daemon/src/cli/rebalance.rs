//! `makai rebalance`: whether slots move to even out what disks hold, and how far that is.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Subcommand;
use http::Method;
use makai_erasure::DiskId;
use makai_raft::facts::cluster::{ClusterMap, Condition, Standing};
use serde::Serialize;

use super::cluster::fetch;
use super::print_json;
use super::remote::Target;
use crate::console::RebalanceRequest;

/// Stop and resume the evening out of what disks hold
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: RebalanceCommand,
}

#[derive(Debug, Subcommand)]
enum RebalanceCommand {
    /// Stop it, with what has begun. Repair and drains go on
    Pause {
        #[command(flatten)]
        target: Target,
    },
    /// Let it go on
    Resume {
        #[command(flatten)]
        target: Target,
    },
    /// Whether it is paused, what moves, and how even disks are
    Status {
        #[command(flatten)]
        target: Target,
    },
}

/// What `makai rebalance status --json` prints.
#[derive(Debug, PartialEq, Serialize)]
struct Summary {
    is_paused: bool,
    /// Slots on their way to other disks to even out or to empty one.
    moving: usize,
    /// Slots that would have to move until each disk had its share, by capacity.
    above_share: u64,
    /// Of all slots, the part on the disk that has most for its size, as a multiple of its share; and on the one that has least.
    fullest: f64,
    emptiest: f64,
}

fn summarize(map: &ClusterMap) -> Summary {
    let is_active = |disk: &&makai_raft::facts::cluster::Disk| {
        let node = map.nodes.iter().find(|node| node.id == disk.node);
        let is_node_active = node.is_some_and(|node| node.standing == Standing::Active);
        disk.standing == Standing::Active && disk.condition == Condition::Well && is_node_active
    };
    let mut slots: BTreeMap<DiskId, (u64, u64)> =
        map.disks.iter().filter(is_active).map(|disk| (disk.id, (0, disk.weight_bytes()))).collect();
    for disk in map.groups.iter().flat_map(|group| &group.disks) {
        if let Some((count, _)) = slots.get_mut(disk) {
            *count += 1;
        }
    }
    let all: u64 = slots.values().map(|(count, _)| count).sum();
    let capacity: u128 = slots.values().map(|(_, capacity)| u128::from(*capacity)).sum();
    let share = |of: u64| u128::from(all) * u128::from(of) / capacity.max(1);
    let above = |(count, of): &(u64, u64)| u128::from(*count).saturating_sub(share(*of));
    let above_share: u128 = slots.values().map(above).sum();
    let ratios = slots.values().map(|(count, of)| {
        *count as f64 / (all as f64 * *of as f64 / capacity as f64).max(f64::MIN_POSITIVE)
    });
    let ratios: Vec<f64> = if all == 0 { Vec::new() } else { ratios.collect() };
    Summary {
        is_paused: map.is_rebalance_paused,
        moving: map.groups.iter().flat_map(|group| &group.moves).filter(|moving| !moving.is_remake).count(),
        above_share: u64::try_from(above_share).unwrap_or(u64::MAX),
        fullest: ratios.iter().copied().fold(0.0, f64::max),
        emptiest: ratios.iter().copied().reduce(f64::min).unwrap_or(0.0),
    }
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (target, asked) = match args.what {
        RebalanceCommand::Pause { target } => (target, Some(true)),
        RebalanceCommand::Resume { target } => (target, Some(false)),
        RebalanceCommand::Status { target } => (target, None),
    };
    if let Some(is_paused) = asked {
        let request = RebalanceRequest { is_paused };
        let () = target.call(Method::POST, "/api/v1/rebalance", Some(&request)).await?;
    }
    let mut summary = summarize(&fetch(&target).await?.map);
    // The node that was asked may be a moment behind what was just decided.
    summary.is_paused = asked.unwrap_or(summary.is_paused);
    if target.json {
        print_json(&summary)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("rebalance {}", if summary.is_paused { "paused" } else { "on" });
    println!("moving    {} slots on their way", summary.moving);
    println!(
        "evenness  {} slots above their disks' shares; the fullest disk has {:.2} of its share, the emptiest {:.2}",
        summary.above_share, summary.fullest, summary.emptiest
    );
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use makai_erasure::{NodeId, PgId, Scheme};
    use makai_raft::facts::Timestamp;
    use makai_raft::facts::cluster::{Disk, Group, Node};

    use super::*;

    #[test]
    fn shares_follow_capacity() {
        let node = Node {
            id: NodeId([1; 32]),
            number: 1,
            name: String::new(),
            owner: String::new(),
            site: String::new(),
            roles: Vec::new(),
            addresses: Vec::new(),
            standing: Standing::Active,
            joined_at: Timestamp(0),
            is_up: true,
            changed_at: Timestamp(0),
            version: String::new(),
            down_ppm: 0,
        };
        let disk = |id: u8, capacity_bytes: u64| Disk {
            id: DiskId([id; 16]),
            node: node.id,
            capacity_bytes,
            standing: Standing::Active,
            added_at: Timestamp(0),
            condition: Condition::Well,
            speed_bytes_per_sec: 0,
        };
        let group = |id: u32, disks: [u8; 2]| Group {
            id: PgId(id),
            scheme: Scheme { data: 1, parity: 1 },
            version: 1,
            disks: disks.map(|id| DiskId([id; 16])).to_vec(),
            moves: Vec::new(),
        };
        let map = ClusterMap {
            disks: vec![disk(1, 2), disk(2, 1), disk(3, 1)],
            groups: vec![group(1, [1, 2]), group(2, [1, 2])],
            nodes: vec![node],
            is_rebalance_paused: true,
            ..ClusterMap::default()
        };
        let even = Summary { is_paused: true, moving: 0, above_share: 1, fullest: 2.0, emptiest: 0.0 };
        assert_eq!(summarize(&map), even);
        let empty = summarize(&ClusterMap::default());
        assert_eq!((empty.above_share, empty.fullest, empty.emptiest), (0, 0.0, 0.0));
    }
}
