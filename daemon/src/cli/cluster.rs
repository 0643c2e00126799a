//! `makai status`, `group`, `repair`: the cluster as its facts and its leader have it.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use makai_erasure::NodeId;
use makai_raft::facts::cluster::{ClusterMap, Standing};
use serde::Serialize;

use super::node::label;
use super::remote::Target;
use super::{human_bytes, print_json};
use crate::console::{NodeRepair, Status};

/// Show whether the cluster is well: leader, voters, nodes, groups
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    target: Target,
}

/// List placement groups
#[derive(Debug, clap::Args)]
pub struct GroupArgs {
    #[command(subcommand)]
    what: GroupCommand,
}

#[derive(Debug, Subcommand)]
enum GroupCommand {
    /// All groups: scheme, version, and how many of their disks are up
    Ls {
        #[command(flatten)]
        target: Target,
    },
}

/// Show what is being repaired
#[derive(Debug, clap::Args)]
pub struct RepairArgs {
    #[command(subcommand)]
    what: RepairCommand,
}

#[derive(Debug, Subcommand)]
enum RepairCommand {
    /// Shards missing and rebuilt on every node, and slots on their way to other disks
    Status {
        #[command(flatten)]
        target: Target,
    },
}

/// The leader's status where it can be asked, since it alone hears from every node; else any node's.
pub(super) async fn fetch(target: &Target) -> anyhow::Result<Status> {
    target.get_best("/api/v1/status", |status: &Status| status.is_leader).await
}

/// What `makai status --json` prints.
#[derive(Debug, Serialize)]
struct Summary {
    cluster_id: String,
    version: String,
    kernel: String,
    leader: Option<NodeId>,
    voters: usize,
    voters_up: usize,
    nodes: usize,
    nodes_up: usize,
    disks: usize,
    groups: usize,
    groups_whole: usize,
    default_scheme: String,
}

fn disks_up(map: &ClusterMap, group: &makai_raft::facts::cluster::Group) -> usize {
    let is_up = |disk: &&makai_erasure::DiskId| {
        let known = map.disks.iter().find(|known| known.id == **disk && known.standing != Standing::Lost);
        let node = known.map(|known| known.node);
        map.nodes.iter().any(|known| Some(known.id) == node && known.is_up)
    };
    group.disks.iter().filter(is_up).count()
}

fn summarize(status: &Status) -> Summary {
    let map = &status.map;
    let up = |id: &NodeId| map.nodes.iter().any(|node| node.id == *id && node.is_up);
    Summary {
        cluster_id: map.cluster_id.clone(),
        version: status.version.clone(),
        kernel: status.kernel.clone(),
        leader: status.leader,
        voters: status.voters.len(),
        voters_up: status.voters.iter().filter(|id| up(id)).count(),
        nodes: map.nodes.iter().filter(|node| node.standing != Standing::Lost).count(),
        nodes_up: map.nodes.iter().filter(|node| node.is_up && node.standing != Standing::Lost).count(),
        disks: map.disks.iter().filter(|disk| disk.standing != Standing::Lost).count(),
        groups: map.groups.len(),
        groups_whole: map.groups.iter().filter(|group| disks_up(map, group) == group.disks.len()).count(),
        default_scheme: status.default_scheme.clone(),
    }
}

pub async fn status(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let status = fetch(&args.target).await?;
    let summary = summarize(&status);
    let is_well = summary.leader.is_some()
        && summary.nodes_up == summary.nodes
        && summary.groups_whole == summary.groups;
    if args.target.json {
        print_json(&summary)?;
        return Ok(ExitCode::SUCCESS);
    }
    let leader = match summary.leader {
        Some(leader) => {
            status.map.nodes.iter().find(|node| node.id == leader).map_or(leader.to_string(), label)
        }
        None => "none: writes and reads wait for one".into(),
    };
    println!("cluster   {}  (makai {}, codec {})", summary.cluster_id, summary.version, summary.kernel);
    println!("state     {}", if is_well { "well" } else { "degraded" });
    println!("leader    {leader}");
    println!("voters    {} of {} up", summary.voters_up, summary.voters);
    println!("nodes     {} of {} up, {} disks", summary.nodes_up, summary.nodes, summary.disks);
    println!(
        "groups    {} of {} whole; default scheme {}",
        summary.groups_whole, summary.groups, summary.default_scheme
    );
    Ok(ExitCode::SUCCESS)
}

pub async fn group(args: GroupArgs) -> anyhow::Result<ExitCode> {
    let GroupCommand::Ls { target } = args.what;
    let status = fetch(&target).await?;
    if target.json {
        print_json(&status.map.groups)?;
        return Ok(ExitCode::SUCCESS);
    }
    for group in &status.map.groups {
        let nodes = group.disks.iter().map(|disk| {
            let node = status.map.disks.iter().find(|known| known.id == *disk).map(|known| known.node);
            let node = status.map.nodes.iter().find(|known| Some(known.id) == node);
            node.map_or_else(
                || "?".into(),
                |node| if node.name.is_empty() { label(node) } else { node.name.clone() },
            )
        });
        println!(
            "{:<8} {:<6} v{:<4} {}/{} up  {}",
            group.id.to_string(),
            group.scheme.to_string(),
            group.version,
            disks_up(&status.map, group),
            group.disks.len(),
            nodes.collect::<Vec<String>>().join(" ")
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What `makai repair status --json` prints.
#[derive(Debug, Serialize)]
struct RepairSummary<'s> {
    /// Shards missing in all, as far as nodes told the leader.
    pending: u64,
    rebuilt_shards: u64,
    rebuilt_bytes: u64,
    /// Slots on their way to other disks.
    moves: usize,
    nodes: &'s [NodeRepair],
}

pub async fn repair(args: RepairArgs) -> anyhow::Result<ExitCode> {
    let RepairCommand::Status { target } = args.what;
    let mut status = fetch(&target).await.context("read the repair status")?;
    if status.repairs.is_empty() {
        status.repairs.push(NodeRepair { node: status.node, repair: status.repair });
    }
    status.repairs.sort_by_key(|of_node| of_node.node);
    let sum = |of: fn(&NodeRepair) -> u64| status.repairs.iter().map(of).sum::<u64>();
    let summary = RepairSummary {
        pending: sum(|node| node.repair.pending),
        rebuilt_shards: sum(|node| node.repair.rebuilt_shards),
        rebuilt_bytes: sum(|node| node.repair.rebuilt_bytes),
        moves: status.map.groups.iter().map(|group| group.moves.len()).sum(),
        nodes: &status.repairs,
    };
    if target.json {
        print_json(&summary)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{} shards missing, {} rebuilt ({}); {} slots on their way to other disks",
        summary.pending,
        summary.rebuilt_shards,
        human_bytes(summary.rebuilt_bytes),
        summary.moves
    );
    for NodeRepair { node, repair } in summary.nodes {
        let name = status.map.nodes.iter().find(|known| known.id == *node).map(label);
        println!(
            "  {:<26} {} missing, {} rebuilt ({}) since its start, {} tries failed",
            name.unwrap_or_else(|| node.to_string()),
            repair.pending,
            repair.rebuilt_shards,
            human_bytes(repair.rebuilt_bytes),
            repair.failures
        );
    }
    Ok(ExitCode::SUCCESS)
}
