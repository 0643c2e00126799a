//! `makai node`: nodes and their disks: list them, let new ones in, empty them, take them out.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Subcommand;
use http::Method;
use indicatif::{ProgressBar, ProgressStyle};
use makai_erasure::{DiskId, NodeId};
use makai_raft::facts::cluster::{ClusterMap, Condition, Disk, Node, Role, Standing};
use serde::Serialize;

use super::cluster::fetch;
use super::remote::Target;
use super::{human_bytes, print_json};
use crate::clock;
use crate::console::due::DiskDue;
use crate::console::{JoinTokenAnswer, JoinTokenRequest, StandingRequest, Status};
use crate::members::DiskBeat;
use crate::reconcile::reach::LineNow;

/// How often a drain is looked at while it is waited for.
const DRAIN_LOOK_EVERY: Duration = Duration::from_secs(1);

/// List nodes, let new ones in, empty them, take them out
#[derive(Debug, clap::Args)]
pub struct Args {
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
    /// Move everything off a node, or off one of its disks, while it goes on serving; waits until it is empty
    Drain {
        node: String,
        /// Only this disk, by id or the beginning of it
        #[arg(long)]
        disk: Option<String>,
        /// Take new shards again: what has not moved yet stays
        #[arg(long)]
        cancel: bool,
        /// Return at once; `makai node show` tells how far it is
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Take a node out: a drained one that is stopped, or a dead one whose shards are then rebuilt elsewhere
    Remove {
        node: String,
        /// Only this disk, by id or the beginning of it
        #[arg(long)]
        disk: Option<String>,
        /// Confirms that it will never come back, whatever it still holds
        #[arg(long)]
        lost: bool,
        #[command(flatten)]
        target: Target,
    },
}

/// How far a node's disks, or one of them, are empty.
#[derive(Debug, Serialize)]
struct Left {
    /// Slots that these disks still hold for groups.
    slots: usize,
    /// Of these, on their way to other disks now.
    moving: usize,
    is_empty: bool,
}

fn left_on(map: &ClusterMap, node: &Node, disk: Option<DiskId>) -> Left {
    let is_meant = |id: &DiskId| match disk {
        Some(only) => *id == only,
        None => map.disks.iter().any(|known| known.id == *id && known.node == node.id),
    };
    let (mut slots, mut moving) = (0, 0);
    for group in &map.groups {
        for (slot, _) in group.disks.iter().enumerate().filter(|(_, disk)| is_meant(disk)) {
            slots += 1;
            moving += usize::from(group.moves.iter().any(|moving| usize::from(moving.slot) == slot));
        }
    }
    Left { slots, moving, is_empty: slots == 0 }
}

/// The disk of `node` that is meant by an id or the beginning of one.
fn find_disk(map: &ClusterMap, node: &Node, text: &str) -> anyhow::Result<DiskId> {
    let is_meant = |id: &DiskId| text.len() >= 4 && id.to_string().starts_with(text);
    let of_node = map.disks.iter().filter(|disk| disk.node == node.id).map(|disk| disk.id);
    let meant: Vec<DiskId> = of_node.filter(is_meant).collect();
    match meant[..] {
        [disk] => Ok(disk),
        [] => bail!("{} has no disk {text:?}; see `makai node show`", label(node)),
        _ => bail!("{} disks of {} begin with {text:?}; give more of the id", meant.len(), label(node)),
    }
}

/// A node as a person calls it.
pub(super) fn label(node: &Node) -> String {
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

/// What is to be known of a disk beyond its size.
fn note(disk: &Disk) -> &'static str {
    match (disk.standing, disk.condition) {
        (Standing::Lost, _) => "  (lost)",
        (_, Condition::Missing) => "  (missing: its folder is gone, or it failed)",
        (Standing::Draining, _) => "  (draining)",
        (_, Condition::Full) => "  (nearly full: takes no new slots)",
        (Standing::Active, Condition::Well) => "",
    }
}

/// What a disk's files hold, by what it is for, and what the facts say: the parts add up to the whole.
#[derive(Debug, PartialEq, Serialize)]
struct Held {
    disk: DiskId,
    /// Of the device, by the disk's files.
    used_bytes: u64,
    /// The shards' own bytes.
    live_bytes: u64,
    shards: u64,
    /// Headers and checksums of those, and what aligns them.
    overhead_bytes: u64,
    /// Of dead shards, not given back yet.
    garbage_bytes: u64,
    /// For shards to come.
    set_aside_bytes: u64,
    /// What should be there by the facts.
    due_bytes: u64,
    due_shards: u64,
    /// Slots on their way to it, which it holds in part.
    slots_coming: u64,
}

impl Held {
    fn of(beat: &DiskBeat, due: Option<&DiskDue>) -> Self {
        // The files are measured now and then; shards that came since are counted at once.
        let used_bytes = beat.held_bytes.max(beat.live_bytes);
        let overhead_bytes = beat.live_bytes.saturating_sub(beat.body_bytes);
        let garbage_bytes = used_bytes.saturating_sub(beat.live_bytes + beat.set_aside_bytes);
        Self {
            disk: beat.disk,
            used_bytes,
            live_bytes: beat.body_bytes,
            shards: beat.shard_count,
            overhead_bytes,
            garbage_bytes,
            set_aside_bytes: used_bytes.saturating_sub(beat.live_bytes + garbage_bytes),
            due_bytes: due.map_or(0, |due| due.bytes),
            due_shards: due.map_or(0, |due| due.shards),
            slots_coming: due.map_or(0, |due| due.slots_coming),
        }
    }

    fn print(&self) {
        println!(
            "  disk {}  uses {} = {} of {} shards + {} overhead + {} garbage + {} set aside for shards to come",
            self.disk,
            human_bytes(self.used_bytes),
            human_bytes(self.live_bytes),
            self.shards,
            human_bytes(self.overhead_bytes),
            human_bytes(self.garbage_bytes),
            human_bytes(self.set_aside_bytes),
        );
        let (due, has) = (self.due_shards, self.shards);
        let difference = match (due.saturating_sub(has), has.saturating_sub(due)) {
            (0, 0) => "as it is".to_owned(),
            (missing, 0) => format!("{missing} more than there are: they are made again"),
            (_, extra) if self.slots_coming > 0 => {
                format!("{extra} less than there are: {} slots are on their way here", self.slots_coming)
            }
            (_, extra) => {
                format!("{extra} less than there are: of deleted objects and moved slots, to be deleted")
            }
        };
        println!("    by the facts {due} shards of {}, {difference}", human_bytes(self.due_bytes));
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
        if node.addresses.is_empty() { "dials out only".into() } else { node.addresses.join(" ") }
    );
    let now = clock::now();
    let down_ppm = node.downtime_ppm(now);
    if down_ppm >= 1000 {
        let part_time =
            if node.is_part_time(now) { ", part-time: its disks take an eighth of their size" } else { "" };
        println!("  off   {:.1} % of its time{part_time}", f64::from(down_ppm) / 10_000.0);
    }
    let line = status.lines.iter().find(|of| of.node == node.id).map(|of| of.line);
    if let Some(LineNow {
        up_bytes_per_sec,
        down_bytes_per_sec,
        relays,
        rtt_micros,
        tested_up_bytes_per_sec,
        tested_down_bytes_per_sec,
    }) = line
    {
        let through = match relays {
            0 => String::new(),
            relays => format!(", reached over the connections that it keeps open to {relays} nodes"),
        };
        let tested = match tested_up_bytes_per_sec {
            0 => "not tested yet".to_owned(),
            up => format!(
                "tested {}/s up and {}/s down",
                human_bytes(up),
                human_bytes(tested_down_bytes_per_sec)
            ),
        };
        println!(
            "  line  {tested}, at most {}/s up and {}/s down seen, {:.1} ms to the leader{through}",
            human_bytes(up_bytes_per_sec),
            human_bytes(down_bytes_per_sec),
            rtt_micros as f64 / 1000.0
        );
    }
    for disk in disks {
        match heard(disk.id) {
            Some(beat) => println!(
                "  disk {}  {} free of {}, {} shards{}",
                disk.id,
                human_bytes(beat.free_bytes),
                human_bytes(beat.capacity_bytes),
                beat.shard_count,
                note(disk)
            ),
            None => println!("  disk {}  {}{}", disk.id, human_bytes(disk.capacity_bytes), note(disk)),
        }
    }
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        NodeCommand::Ls { target } => {
            let status = fetch(&target).await?;
            if target.json {
                print_json(&status.map.nodes)?;
            } else {
                status.map.nodes.iter().for_each(|node| print_node(&status, node));
            }
            Ok(ExitCode::SUCCESS)
        }
        NodeCommand::Show { node, target } => {
            let status = fetch(&target).await?;
            let node = find(&status.map, &node)?;
            let of_node = |beat: &&DiskBeat| {
                status.map.disks.iter().any(|disk| disk.id == beat.disk && disk.node == node.id)
            };
            if target.json {
                let beats = if status.heard.is_empty() { &status.disks } else { &status.heard };
                let due = dues(&target, node.id).await?;
                let of_disk = |beat: &DiskBeat| Held::of(beat, due.iter().find(|due| due.disk == beat.disk));
                let held = beats.iter().filter(of_node).map(of_disk).collect();
                print_json(&Shown { node, left: left_on(&status.map, node, None), held })?;
                return Ok(ExitCode::SUCCESS);
            }
            print_node(&status, node);
            let beats = if status.heard.is_empty() { &status.disks } else { &status.heard };
            let due = dues(&target, node.id).await?;
            for beat in beats.iter().filter(of_node) {
                Held::of(beat, due.iter().find(|due| due.disk == beat.disk)).print();
            }
            let left = left_on(&status.map, node, None);
            println!("  {} slots of groups, {} of them on their way to other disks", left.slots, left.moving);
            Ok(ExitCode::SUCCESS)
        }
        NodeCommand::JoinToken { roles, valid_hours, uses, target } => {
            let request = JoinTokenRequest { roles, valid_secs: valid_hours.saturating_mul(3600), uses };
            let answer: JoinTokenAnswer =
                target.call(Method::POST, "/api/v1/join-token", Some(&request)).await?;
            if target.json {
                print_json(&answer)?
            } else {
                println!("{}", answer.token)
            }
            Ok(ExitCode::SUCCESS)
        }
        NodeCommand::Drain { node, disk, cancel, no_wait, target } => {
            drain(&node, disk.as_deref(), cancel, no_wait, &target).await
        }
        NodeCommand::Remove { node, disk, lost, target } => {
            remove(&node, disk.as_deref(), lost, &target).await
        }
    }
}

/// What `makai node show --json` prints: the node's facts, and its disks.
#[derive(Debug, Serialize)]
struct Shown<'n> {
    #[serde(flatten)]
    node: &'n Node,
    left: Left,
    held: Vec<Held>,
}

async fn dues(target: &Target, node: NodeId) -> anyhow::Result<Vec<DiskDue>> {
    target.get(&format!("/api/v1/due?node={node}")).await
}

async fn set_standing(target: &Target, request: &StandingRequest) -> anyhow::Result<()> {
    target.call(Method::POST, "/api/v1/standing", Some(request)).await
}

async fn drain(
    name: &str,
    disk: Option<&str>,
    is_cancel: bool,
    no_wait: bool,
    target: &Target,
) -> anyhow::Result<ExitCode> {
    let status = fetch(target).await?;
    let node = find(&status.map, name)?.clone();
    if node.standing == Standing::Lost {
        bail!("{} is lost: there is nothing to move off it", label(&node));
    }
    let disk = disk.map(|text| find_disk(&status.map, &node, text)).transpose()?;
    let standing = if is_cancel { Standing::Active } else { Standing::Draining };
    set_standing(target, &StandingRequest { node: node.id, disk, standing }).await?;
    if is_cancel {
        if !target.json {
            println!("{} takes new shards again", label(&node));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let first = left_on(&status.map, &node, disk);
    let bar = if target.json || no_wait { ProgressBar::hidden() } else { drain_bar(first.slots) };
    let mut left = first;
    while !no_wait && !left.is_empty {
        tokio::time::sleep(DRAIN_LOOK_EVERY).await;
        let status = fetch(target).await?;
        let now = find(&status.map, &node.id.to_string())?;
        if left_to(now, disk, &status.map) != Standing::Draining {
            bail!("the drain of {} was called off", label(&node));
        }
        left = left_on(&status.map, &node, disk);
        bar.set_position(bar.length().unwrap_or(0).saturating_sub(left.slots as u64));
        bar.set_message(match left.moving {
            0 if !left.is_empty => "no other disk may take these slots: add nodes, or --cancel".to_owned(),
            moving => format!("{moving} moving"),
        });
    }
    bar.finish_and_clear();
    if target.json {
        print_json(&left)?;
    } else if left.is_empty {
        println!("{} is empty; stop its daemon, then `makai node remove`", label(&node));
    } else {
        println!("{} drains: {} slots left", label(&node), left.slots);
    }
    Ok(ExitCode::SUCCESS)
}

/// What was decided about what is drained.
fn left_to(node: &Node, disk: Option<DiskId>, map: &ClusterMap) -> Standing {
    let of_disk = disk.and_then(|disk| map.disks.iter().find(|known| known.id == disk));
    of_disk.map_or(node.standing, |disk| disk.standing.worse(node.standing))
}

fn drain_bar(slots: usize) -> ProgressBar {
    let bar = ProgressBar::new(slots as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos} of {len} slots moved  {msg}") {
        bar.set_style(style);
    }
    bar
}

async fn remove(name: &str, disk: Option<&str>, is_lost: bool, target: &Target) -> anyhow::Result<ExitCode> {
    let status = fetch(target).await?;
    let node = find(&status.map, name)?;
    let disk = disk.map(|text| find_disk(&status.map, node, text)).transpose()?;
    let left = left_on(&status.map, node, disk);
    if !is_lost && !left.is_empty {
        bail!(
            "{} still holds {} slots; `makai node drain` moves them off, or say --lost if it will never come back",
            label(node),
            left.slots
        );
    }
    if node.is_up && disk.is_none() {
        bail!("{} is up; stop its daemon first if it is really to go", label(node));
    }
    set_standing(target, &StandingRequest { node: node.id, disk, standing: Standing::Lost }).await?;
    if target.json {
        print_json(node)?;
    } else if left.is_empty {
        println!("{} is out", label(node));
    } else {
        println!("{} is lost; its shards are rebuilt on other disks as far as there are enough", label(node));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is measured when, the parts are the whole.
    #[test]
    fn what_a_disk_uses_adds_up() {
        let disk = DiskId([1; 16]);
        for (held_bytes, live_bytes, body_bytes, set_aside_bytes) in [
            (0, 0, 0, 0),
            (1000, 600, 550, 100),
            (1000, 900, 850, 300),
            (500, 600, 480, 0),
            (1000, 0, 0, 1000),
        ] {
            let beat = DiskBeat {
                disk,
                capacity_bytes: 10_000,
                free_bytes: 1,
                shard_count: 3,
                live_bytes,
                held_bytes,
                set_aside_bytes,
                body_bytes,
            };
            let held = Held::of(&beat, None);
            let sum = held.live_bytes + held.overhead_bytes + held.garbage_bytes + held.set_aside_bytes;
            assert_eq!(sum, held.used_bytes, "{held:?}");
        }
    }
}
