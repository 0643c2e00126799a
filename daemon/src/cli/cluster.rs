//! `makai status`, `group`, `repair`: the cluster as its facts and its leader have it.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use makai_erasure::NodeId;
use makai_raft::facts::cluster::{ClusterMap, Condition, Disk, Standing};
use serde::Serialize;

use super::node::label;
use super::remote::Target;
use super::{human_bytes, print_json};
use crate::console::lost::{LostObject, LostPage, unreadable_groups};
use crate::console::{NodeRepair, Status};
use crate::reconcile::lost::Unreadable;
use crate::reconcile::shards::ProgressNow;

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
    /// Objects that cannot be read: too many of their shards are lost, or on disks that do not answer now
    Lost {
        #[command(flatten)]
        target: Target,
    },
}

/// The status of a node that leads or reaches the leader, which alone hears from every node; else any node's.
pub(super) async fn fetch(target: &Target) -> anyhow::Result<Status> {
    target.get_best("/api/v1/status", |status: &Status| status.leader_answers).await
}

/// What `makai status --json` prints.
#[derive(Debug, Serialize)]
struct Summary {
    cluster_id: String,
    version: String,
    kernel: String,
    leader: Option<NodeId>,
    /// Whether it answered: without it nothing is written, and what is said below may be old.
    leader_answers: bool,
    voters: usize,
    voters_up: usize,
    /// Those whose directories are older copies than they had: they take no part until they have learnt all again.
    voters_rewound: usize,
    nodes: usize,
    nodes_up: usize,
    disks: usize,
    /// Their folder is gone, or they failed.
    disks_missing: usize,
    /// Nearly full: they take no new slots.
    disks_full: usize,
    groups: usize,
    groups_whole: usize,
    /// Of those that are not whole, the ones that have nothing to spare: one more loss and they cannot be read.
    groups_endangered: usize,
    groups_unreadable: usize,
    /// Of those, the ones whose disks are out for good.
    groups_gone: usize,
    /// Pieces of objects of which too few shards are left, and such that disks that do not answer now could bring back.
    blobs_gone: u64,
    blobs_away: u64,
    /// Shards that are not where they should be: `makai repair status` tells more.
    shards_missing: u64,
    default_scheme: String,
}

fn disks_up(map: &ClusterMap, group: &makai_raft::facts::cluster::Group) -> usize {
    let is_up = |disk: &&makai_erasure::DiskId| {
        let is_here =
            |known: &&Disk| known.standing != Standing::Lost && known.condition != Condition::Missing;
        let known = map.disks.iter().find(|known| known.id == **disk).filter(is_here);
        let node = known.map(|known| known.node);
        map.nodes.iter().any(|known| Some(known.id) == node && known.is_up)
    };
    group.disks.iter().filter(is_up).count()
}

/// Shards that can be read now beyond those that are needed.
fn spare(map: &ClusterMap, group: &makai_raft::facts::cluster::Group) -> i64 {
    disks_up(map, group) as i64 - i64::from(group.scheme.data)
}

fn is_endangered(map: &ClusterMap, group: &makai_raft::facts::cluster::Group) -> bool {
    spare(map, group) == 0 && group.scheme.parity > 0
}

fn count_disks(map: &ClusterMap, condition: Condition) -> usize {
    map.disks.iter().filter(|disk| is_in(map, disk) && disk.condition == condition).count()
}

/// Whether neither the disk nor its node was taken out.
fn is_in(map: &ClusterMap, disk: &Disk) -> bool {
    let is_node_in =
        |id: NodeId| map.nodes.iter().any(|node| node.id == id && node.standing != Standing::Lost);
    disk.standing != Standing::Lost && is_node_in(disk.node)
}

fn summarize(status: &Status) -> Summary {
    let map = &status.map;
    let up = |id: &NodeId| map.nodes.iter().any(|node| node.id == *id && node.is_up);
    Summary {
        cluster_id: map.cluster_id.clone(),
        version: status.version.clone(),
        kernel: status.kernel.clone(),
        leader: status.leader,
        leader_answers: status.leader_answers,
        voters: status.voters.len(),
        voters_up: status.voters.iter().filter(|id| up(id)).count(),
        voters_rewound: status.rewound.len(),
        nodes: map.nodes.iter().filter(|node| node.standing != Standing::Lost).count(),
        nodes_up: map.nodes.iter().filter(|node| node.is_up && node.standing != Standing::Lost).count(),
        disks: map.disks.iter().filter(|disk| is_in(map, disk)).count(),
        disks_missing: count_disks(map, Condition::Missing),
        disks_full: count_disks(map, Condition::Full),
        groups: map.groups.len(),
        groups_endangered: map.groups.iter().filter(|group| is_endangered(map, group)).count(),
        groups_unreadable: map.groups.iter().filter(|group| spare(map, group) < 0).count(),
        groups_gone: unreadable_groups(map).iter().filter(|(_, why)| *why == Unreadable::Gone).count(),
        blobs_gone: status.lost.gone_blobs,
        blobs_away: status.lost.away_blobs,
        shards_missing: status.repairs.iter().map(|of| of.repair.pending).sum(),
        groups_whole: map.groups.iter().filter(|group| disks_up(map, group) == group.disks.len()).count(),
        default_scheme: status.default_scheme.clone(),
    }
}

pub async fn status(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let status = fetch(&args.target).await?;
    let summary = summarize(&status);
    let is_lossless = summary.blobs_gone == 0 && summary.groups_gone == 0;
    let is_well = summary.leader_answers
        && summary.nodes_up == summary.nodes
        && summary.groups_whole == summary.groups
        && is_lossless
        && summary.blobs_away == 0;
    if args.target.json {
        print_json(&summary)?;
        return Ok(answered(&summary));
    }
    if status.voters.is_empty() {
        println!(
            "This node is no voter: it knows the cluster by its map alone. Ask a voter, or give --profile."
        );
    } else if !summary.leader_answers {
        println!(
            "No leader answers: writes and reads wait until {} of {} voters are up. What follows is what one node knew last.",
            summary.voters / 2 + 1,
            summary.voters
        );
    }
    let leader = match summary.leader {
        Some(leader) => {
            status.map.nodes.iter().find(|node| node.id == leader).map_or(leader.to_string(), label)
        }
        None => "none".into(),
    };
    println!("cluster   {}  (makai {}, codec {})", summary.cluster_id, summary.version, summary.kernel);
    println!(
        "state     {}",
        match (is_well, is_lossless) {
            (true, _) => "well",
            (false, true) => "degraded",
            (false, false) => "data is lost",
        }
    );
    println!("leader    {leader}{}", if summary.leader_answers { "" } else { " (does not answer)" });
    println!("voters    {} of {} up", summary.voters_up, summary.voters);
    println!("nodes     {} of {} up", summary.nodes_up, summary.nodes);
    println!(
        "disks     {}, {} of them missing, {} nearly full",
        summary.disks, summary.disks_missing, summary.disks_full
    );
    println!(
        "groups    {} of {} whole, {} with nothing to spare, {} unreadable; default scheme {}",
        summary.groups_whole,
        summary.groups,
        summary.groups_endangered,
        summary.groups_unreadable,
        summary.default_scheme
    );
    if summary.shards_missing > 0 {
        println!(
            "repair    {} shards are missing where they should be and are made again; see `makai repair status`",
            summary.shards_missing
        );
    }
    for line in lost_lines(summary.blobs_gone, summary.blobs_away) {
        println!("lost      {line}");
    }
    if summary.disks > 0 && summary.disks_full == summary.disks {
        println!(
            "note      all disks are nearly full: add disks or nodes, or delete; soon uploads are refused"
        );
    }
    if let Some(why) = &status.held_back {
        println!("voter     {why}");
    }
    for voter in &status.rewound {
        let name = status.map.nodes.iter().find(|node| node.id == *voter).map_or(voter.to_string(), label);
        println!(
            "voter     {name}: its directory is an older copy; it votes again once it has learnt all there is"
        );
    }
    for line in unprotected(&status.map, &summary.default_scheme) {
        println!("note      {line}");
    }
    Ok(answered(&summary))
}

/// What cannot be read, for people; nothing where all can.
fn lost_lines(gone: u64, away: u64) -> Vec<String> {
    let mut lines = Vec::new();
    if gone > 0 {
        lines.push(format!(
            "{gone} pieces of objects for good: more of their shards are gone than their scheme bears; `makai repair lost` names the objects"
        ));
    }
    if away > 0 {
        lines.push(format!(
            "{away} pieces of objects cannot be read until disks that are away are back; `makai repair lost` names the objects"
        ));
    }
    lines
}

/// For scripts: whether the cluster can be said to work.
fn answered(summary: &Summary) -> ExitCode {
    if summary.leader_answers { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What the cluster as it is does not protect from.
fn unprotected(map: &ClusterMap, scheme: &str) -> Vec<String> {
    let nodes: std::collections::BTreeSet<NodeId> =
        map.disks.iter().filter(|disk| disk.standing == Standing::Active).map(|disk| disk.node).collect();
    let mut lines = Vec::new();
    if nodes.len() == 1 {
        let disks = map.disks.iter().filter(|disk| disk.standing == Standing::Active).count();
        lines.push(match disks {
            1 => "one disk: when it fails, all is lost; add disks or nodes".into(),
            _ => format!(
                "one node: {scheme} over its {disks} disks bears the loss of disks, not that of the node; add nodes"
            ),
        });
    }
    lines
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
    pending_bytes: u64,
    /// Over the last minute.
    bytes_per_sec: u64,
    /// Until nothing is missing, at this rate; of the node that takes longest.
    eta_secs: Option<u64>,
    /// Groups that have nothing to spare, and such that cannot be read now.
    groups_endangered: usize,
    groups_unreadable: usize,
    /// As in `makai status`.
    blobs_gone: u64,
    blobs_away: u64,
    /// Damaged and lost shards met in reads and scrubs since the nodes started.
    damaged: u64,
    scrubbed_bytes: u64,
    rebuilt_shards: u64,
    rebuilt_bytes: u64,
    /// Slots on their way to other disks, and those of them that are made again since their disk is away.
    moves: usize,
    remakes: usize,
    nodes: &'s [NodeRepair],
}

pub async fn repair(args: RepairArgs) -> anyhow::Result<ExitCode> {
    let target = match args.what {
        RepairCommand::Status { target } => target,
        RepairCommand::Lost { target } => return lost(&target).await,
    };
    let mut status = fetch(&target).await.context("read the repair status")?;
    if status.repairs.is_empty() {
        status.repairs.push(NodeRepair { node: status.node, repair: status.repair });
    }
    status.repairs.sort_by_key(|of_node| of_node.node);
    let sum = |of: fn(&NodeRepair) -> u64| status.repairs.iter().map(of).sum::<u64>();
    let summary = RepairSummary {
        pending: sum(|node| node.repair.pending),
        pending_bytes: sum(|node| node.repair.pending_bytes),
        bytes_per_sec: sum(|node| node.repair.bytes_per_sec),
        eta_secs: status.repairs.iter().filter_map(|node| eta_secs(&node.repair)).max(),
        groups_endangered: status.map.groups.iter().filter(|group| is_endangered(&status.map, group)).count(),
        groups_unreadable: status.map.groups.iter().filter(|group| spare(&status.map, group) < 0).count(),
        blobs_gone: status.lost.gone_blobs,
        blobs_away: status.lost.away_blobs,
        damaged: sum(|node| node.repair.damaged),
        scrubbed_bytes: sum(|node| node.repair.scrubbed_bytes),
        rebuilt_shards: sum(|node| node.repair.rebuilt_shards),
        rebuilt_bytes: sum(|node| node.repair.rebuilt_bytes),
        moves: status.map.groups.iter().map(|group| group.moves.len()).sum(),
        remakes: status
            .map
            .groups
            .iter()
            .flat_map(|group| &group.moves)
            .filter(|moving| moving.is_remake)
            .count(),
        nodes: &status.repairs,
    };
    if target.json {
        print_json(&summary)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "missing   {} shards, {}; {}/s over the last minute{}",
        summary.pending,
        human_bytes(summary.pending_bytes),
        human_bytes(summary.bytes_per_sec),
        summary.eta_secs.map_or_else(String::new, |secs| format!(", done in about {}", human_secs(secs)))
    );
    println!("rebuilt   {} shards, {}", summary.rebuilt_shards, human_bytes(summary.rebuilt_bytes));
    println!(
        "moving    {} slots on their way to other disks, {} of them made again since their disk is away",
        summary.moves, summary.remakes
    );
    println!(
        "danger    {} groups with nothing to spare, {} unreadable",
        summary.groups_endangered, summary.groups_unreadable
    );
    for line in lost_lines(summary.blobs_gone, summary.blobs_away) {
        println!("lost      {line}");
    }
    println!(
        "scrub     {} read back, {} shards found damaged or lost",
        human_bytes(summary.scrubbed_bytes),
        summary.damaged
    );
    for NodeRepair { node, repair } in summary.nodes {
        let name = status.map.nodes.iter().find(|known| known.id == *node).map(label);
        println!(
            "  {:<26} {} missing ({}), {} rebuilt ({}) since its start, {}/s, {} tries failed",
            name.unwrap_or_else(|| node.to_string()),
            repair.pending,
            human_bytes(repair.pending_bytes),
            repair.rebuilt_shards,
            human_bytes(repair.rebuilt_bytes),
            human_bytes(repair.bytes_per_sec),
            repair.failures
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Names what cannot be read, as far as it is found; a page of keys after the other.
async fn lost(target: &Target) -> anyhow::Result<ExitCode> {
    let mut cursor: Option<String> = None;
    let mut all: Option<LostPage> = None;
    loop {
        let query = cursor.as_ref().map_or(String::new(), |cursor| format!("?cursor={cursor}"));
        let page: LostPage = target.get(&format!("/api/v1/lost{query}")).await.context("ask what is lost")?;
        if !target.json {
            page.objects.iter().for_each(print_lost);
        }
        cursor.clone_from(&page.cursor);
        all = Some(match all {
            None => page,
            Some(mut all) => {
                all.objects.extend(page.objects);
                LostPage { objects: all.objects, ..page }
            }
        });
        if cursor.is_none() {
            break;
        }
    }
    let all = all.unwrap_or_default();
    if target.json {
        print_json(&all)?;
        return Ok(ExitCode::SUCCESS);
    }
    if all.gone_blobs + all.away_blobs == 0 {
        println!("everything that is known of can be read");
    } else {
        eprintln!(
            "{} objects; {} pieces are gone, {} away",
            all.objects.len(),
            all.gone_blobs,
            all.away_blobs
        );
        eprintln!(
            "put the disks of pieces that are away back; delete what is gone, or put it again from another copy"
        );
    }
    if all.is_cut {
        eprintln!("there is more than was looked for: once these are deleted, the rest is named");
    }
    for node in &all.silent {
        eprintln!("node {node} did not answer: what it alone misses is not named");
    }
    Ok(ExitCode::SUCCESS)
}

fn print_lost(object: &LostObject) {
    let why = match object.why {
        Unreadable::Gone => "gone",
        Unreadable::Away => "away",
    };
    let version =
        if object.version == "null" { String::new() } else { format!("  version {}", object.version) };
    println!("{why:<5} s3://{}/{}  {}{version}", object.bucket, object.key, human_bytes(object.size));
}

/// Until a node misses nothing, at the rate of its last minute.
fn eta_secs(repair: &ProgressNow) -> Option<u64> {
    repair.pending_bytes.checked_div(repair.bytes_per_sec).filter(|_| repair.pending > 0)
}

fn human_secs(secs: u64) -> String {
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        _ => format!("{} h", secs / 3600),
    }
}
