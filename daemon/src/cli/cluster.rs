//! `makai status`, `node`, `group`, `repair`: the cluster as its facts and its leader have it.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use http::Method;
use makai_erasure::NodeId;
use makai_raft::facts::cluster::{ClusterMap, Node, Role, Standing};
use serde::Serialize;

use super::remote::Target;
use super::{human_bytes, print_json};
use crate::console::{JoinTokenAnswer, JoinTokenRequest, StandingRequest, Status};

/// Show whether the cluster is well: leader, voters, nodes, groups
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    target: Target,
}

/// List nodes, let new ones in, take lost ones out
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    #[command(subcommand)]
    what: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// All nodes: roles, whether they are up, their disks
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// One node, by id or the beginning of it, or by name
    Show {
        node: String,
        #[command(flatten)]
        target: Target,
    },
    /// Make a token that lets machines join; prints it
    JoinToken {
        /// Roles that a joining machine may take. Voters and gateways are trusted with customers' keys
        #[arg(long, value_delimiter = ',', default_value = "storage")]
        roles: Vec<Role>,
        /// Hours until the token expires
        #[arg(long, default_value_t = 24)]
        valid_hours: u64,
        /// Machines that may join with it
        #[arg(long, default_value_t = 1)]
        uses: u32,
        #[command(flatten)]
        target: Target,
    },
    /// Take a dead node out: what it held counts as lost and is rebuilt elsewhere
    Remove {
        node: String,
        /// Confirms that the node will never come back
        #[arg(long)]
        lost: bool,
        #[command(flatten)]
        target: Target,
    },
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
    /// Shards missing and rebuilt, as the asked node sees its own disks
    Status {
        #[command(flatten)]
        target: Target,
    },
}

async fn fetch(target: &Target) -> anyhow::Result<Status> {
    target.get("/api/v1/status").await
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

/// A node as a person calls it.
fn label(node: &Node) -> String {
    let id = node.id.to_string();
    if node.name.is_empty() { id[..12].into() } else { format!("{} ({})", node.name, &id[..12]) }
}

/// The node that is meant by an id, the beginning of one, or a name.
fn find<'m>(map: &'m ClusterMap, text: &str) -> anyhow::Result<&'m Node> {
    let is_meant =
        |node: &&Node| node.name == text || (text.len() >= 4 && node.id.to_string().starts_with(text));
    let meant: Vec<&Node> = map.nodes.iter().filter(is_meant).collect();
    match meant[..] {
        [node] => Ok(node),
        [] => bail!("no node is called {text:?}; see `makai node ls`"),
        _ => bail!("{} nodes are called {text:?}; give more of the id", meant.len()),
    }
}

fn standing(node: &Node) -> &'static str {
    match (node.standing, node.is_up) {
        (Standing::Active, true) => "up",
        (Standing::Active, false) => "down",
        (Standing::Draining, _) => "draining",
        (Standing::Lost, _) => "lost",
    }
}

fn print_node(status: &Status, node: &Node) {
    let roles: Vec<String> = node.roles.iter().map(Role::to_string).collect();
    let disks: Vec<_> = status.map.disks.iter().filter(|disk| disk.node == node.id).collect();
    let heard =
        |disk: makai_erasure::DiskId| status.heard.iter().chain(&status.disks).find(|beat| beat.disk == disk);
    println!(
        "{:<26} {:<9} {:<8} {:<28} {}",
        label(node),
        standing(node),
        if status.leader == Some(node.id) {
            "leader"
        } else if status.voters.contains(&node.id) {
            "voter"
        } else {
            "-"
        },
        roles.join(","),
        node.addresses.join(" ")
    );
    for disk in disks {
        match heard(disk.id) {
            Some(beat) => println!(
                "  disk {}  {} free of {}, {} shards",
                disk.id,
                human_bytes(beat.free_bytes),
                human_bytes(beat.capacity_bytes),
                beat.shard_count
            ),
            None => println!("  disk {}  {}", disk.id, human_bytes(disk.capacity_bytes)),
        }
    }
}

pub async fn node(args: NodeArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        NodeCommand::Ls { target } => {
            let status = fetch(&target).await?;
            if target.json {
                print_json(&status.map.nodes)?;
            } else {
                status.map.nodes.iter().for_each(|node| print_node(&status, node));
            }
        }
        NodeCommand::Show { node, target } => {
            let status = fetch(&target).await?;
            let node = find(&status.map, &node)?;
            if target.json { print_json(node)? } else { print_node(&status, node) }
        }
        NodeCommand::JoinToken { roles, valid_hours, uses, target } => {
            let request = JoinTokenRequest { roles, valid_secs: valid_hours.saturating_mul(3600), uses };
            let answer: JoinTokenAnswer =
                target.call(Method::POST, "/api/v1/join-token", Some(&request)).await?;
            if target.json { print_json(&answer)? } else { println!("{}", answer.token) }
        }
        NodeCommand::Remove { node, lost, target } => {
            let status = fetch(&target).await?;
            let node = find(&status.map, &node)?;
            if !lost {
                bail!(
                    "{} may still hold shards that others need; if it will never come back, say --lost",
                    label(node)
                );
            }
            if node.is_up {
                bail!("{} is up; stop its daemon first if it is really to go", label(node));
            }
            let request = StandingRequest { node: node.id, standing: Standing::Lost };
            let () = target.call(Method::POST, "/api/v1/standing", Some(&request)).await?;
            if target.json {
                print_json(node)?;
            } else {
                println!(
                    "{} is lost; its shards are rebuilt on other disks as far as there are enough",
                    label(node)
                );
            }
        }
    }
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

pub async fn repair(args: RepairArgs) -> anyhow::Result<ExitCode> {
    let RepairCommand::Status { target } = args.what;
    let status = fetch(&target).await.context("read the repair status")?;
    if target.json {
        print_json(&status.repair)?;
    } else {
        let repair = status.repair;
        println!(
            "node {}: {} shards missing, {} rebuilt ({}) since its start, {} tries failed",
            &status.node.to_string()[..12],
            repair.pending,
            repair.rebuilt_shards,
            human_bytes(repair.rebuilt_bytes),
            repair.failures
        );
    }
    Ok(ExitCode::SUCCESS)
}
