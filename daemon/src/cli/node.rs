//! `makai node`: nodes and their disks: list them, let new ones in, empty them, take them out.

use std::collections::BTreeMap;
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
use crate::console::buckets::BucketListed;
use crate::console::due::DiskDue;
use crate::console::{JoinTokenAnswer, JoinTokenRequest, StandingRequest, Status};
use crate::members::DiskBeat;
use crate::reconcile::reach::LineNow;

/// How often a drain is looked at while it is waited for.
const DRAIN_LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is said how far it is, where no bar is drawn.
const DRAIN_TOLD_EVERY: Duration = Duration::from_secs(15);
/// A node that was stopped counts as down within this.
const DOWN_WITHIN: Duration = Duration::from_secs(6);

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
        /// Those that were taken out, too
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        target: Target,
    },
    /// One node: its line, what its disks hold and should hold, its slots
    Show {
        /// Its name, or its id or the beginning of it
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
        /// Its name, or its id or the beginning of it
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
        /// Its name, or its id or the beginning of it
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
    /// What keeps slots here, by scheme; empty: all can go.
    stuck: Vec<Stuck>,
}

/// Slots of a scheme that no other disk can take as the cluster is.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Stuck {
    scheme: String,
    slots: usize,
    /// Disks that a group of it needs, and those that would be left to take slots.
    needs_disks: usize,
    has_disks: usize,
    /// Buckets that ask for it; empty: those that ask for none.
    buckets: Vec<String>,
}

impl Stuck {
    fn told(&self) -> String {
        let Self { scheme, slots, needs_disks, has_disks, buckets } = self;
        let whose = match &buckets[..] {
            [] => String::new(),
            [some @ .., last] if some.len() < BUCKETS_NAMED_MAX => {
                let some: String = some.iter().map(|bucket| format!("{bucket}, ")).collect();
                format!(" of {some}{last}")
            }
            many => format!(" of {} and {} other buckets", many[0], many.len() - 1),
        };
        let what = if *slots == 1 { "slot" } else { "slots" };
        format!(
            "{slots} {what}{whose} cannot move: scheme {scheme} needs {needs_disks} disks on machines apart, and {has_disks} others \
             take shards"
        )
    }
}

/// Buckets named in one line.
const BUCKETS_NAMED_MAX: usize = 5;
/// What to do where a drain cannot make progress.
const STUCK_HELP: &str = "add machines (`makai node join-token`): the drain goes on by itself; or copy these buckets' objects into buckets \
                          with a narrower scheme and delete them; or call it off: `makai node drain NODE --cancel`";

/// What cannot leave the meant disks of `node`, as far as the map says. `schemes`: of buckets, with their names. Pure.
fn stuck_on(
    map: &ClusterMap,
    node: &Node,
    disk: Option<DiskId>,
    schemes: &[(Option<String>, String)],
) -> Vec<Stuck> {
    let is_meant = |known: &Disk| known.node == node.id && disk.is_none_or(|only| known.id == only);
    let machine = |id: NodeId| map.nodes.iter().find(|known| known.id == id);
    let takes = |known: &&Disk| {
        let standing = machine(known.node).map_or(Standing::Lost, |node| node.standing).worse(known.standing);
        let is_up = machine(known.node).is_some_and(|node| node.is_up);
        !is_meant(known) && standing == Standing::Active && is_up && known.condition == Condition::Well
    };
    let taking: Vec<&Disk> = map.disks.iter().filter(takes).collect();
    let node_of =
        |id: &DiskId| map.disks.iter().find(|known| known.id == *id).and_then(|known| machine(known.node));
    let mut stuck: BTreeMap<String, Stuck> = BTreeMap::new();
    for group in &map.groups {
        for (slot, from) in group.disks.iter().enumerate() {
            let is_moving = group.moves.iter().any(|moving| usize::from(moving.slot) == slot);
            if is_moving || !map.disks.iter().any(|known| known.id == *from && is_meant(known)) {
                continue;
            }
            // A move puts no two slots nearer together than they were: machines first, then owners, then sites.
            let others: Vec<&Node> = group.holding().filter(|id| *id != from).filter_map(node_of).collect();
            let shares = |at: &Node| {
                let count = |is_shared: &dyn Fn(&Node) -> bool| {
                    others.iter().filter(|other| is_shared(other)).count()
                };
                [
                    count(&|other| other.id == at.id),
                    count(&|other| !at.owner.is_empty() && other.owner == at.owner),
                    count(&|other| !at.site.is_empty() && other.site == at.site),
                ]
            };
            let now = shares(node);
            let may_take = |to: &Disk| {
                let is_new = !group.holding().any(|held| *held == to.id);
                is_new && machine(to.node).is_some_and(|machine| shares(machine) <= now)
            };
            if taking.iter().any(|to| may_take(to)) {
                continue;
            }
            let scheme = group.scheme.to_string();
            let of_scheme = |(asked, _): &&(Option<String>, String)| asked.as_ref() == Some(&scheme);
            let entry = stuck.entry(scheme.clone()).or_insert_with(|| Stuck {
                scheme: scheme.clone(),
                slots: 0,
                needs_disks: group.disks.len(),
                has_disks: taking.len(),
                buckets: schemes.iter().filter(of_scheme).map(|(_, name)| name.clone()).collect(),
            });
            entry.slots += 1;
        }
    }
    stuck.into_values().collect()
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
    Left { slots, moving, is_empty: slots == 0, stuck: Vec::new() }
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
    let mut meant: Vec<&Node> = map.nodes.iter().filter(is_meant).collect();
    // A machine that was taken out and set up again has its old name.
    if meant.iter().any(|node| node.standing != Standing::Lost) {
        meant.retain(|node| node.standing != Standing::Lost);
    }
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
        (Standing::Draining, true) => "draining",
        (Standing::Draining, false) => "draining, down",
        (Standing::Lost, _) => "removed",
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
                "  disk {}  {} free of {}, {} shards{}{}",
                disk.id,
                human_bytes(beat.free_bytes),
                human_bytes(beat.capacity_bytes),
                beat.shard_count,
                if node.is_up { "" } else { " when it was last heard of" },
                note(disk)
            ),
            None => println!("  disk {}  {}{}", disk.id, human_bytes(disk.capacity_bytes), note(disk)),
        }
    }
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        NodeCommand::Ls { all, target } => {
            let status = fetch(&target).await?;
            let is_shown = |node: &&Node| all || node.standing != Standing::Lost;
            let shown: Vec<&Node> = status.map.nodes.iter().filter(is_shown).collect();
            if target.json {
                print_json(&shown)?;
            } else {
                shown.iter().for_each(|node| print_node(&status, node));
                let hidden = status.map.nodes.len() - shown.len();
                if hidden > 0 {
                    eprintln!("{hidden} more were taken out: --all shows them");
                }
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
                print_json(&Shown { node, left: left_now(&status.map, node, &target).await?, held })?;
                return Ok(ExitCode::SUCCESS);
            }
            print_node(&status, node);
            let beats = if status.heard.is_empty() { &status.disks } else { &status.heard };
            let due = dues(&target, node.id).await?;
            for beat in beats.iter().filter(of_node) {
                Held::of(beat, due.iter().find(|due| due.disk == beat.disk)).print();
            }
            let left = left_now(&status.map, node, &target).await?;
            println!("  {} slots of groups, {} of them on their way to other disks", left.slots, left.moving);
            tell_stuck(&left.stuck);
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
    let schemes = schemes(target).await?;
    let stuck = |map: &ClusterMap| stuck_on(map, &node, disk, &schemes);
    let mut left = Left { stuck: stuck(&status.map), ..left_on(&status.map, &node, disk) };
    if !target.json {
        tell_stuck(&left.stuck);
    }
    let bar = if target.json || no_wait { ProgressBar::hidden() } else { drain_bar(left.slots) };
    // Where no bar is drawn, a log shows that it goes on.
    let is_told = !target.json && !no_wait && bar.is_hidden();
    let mut told_at = clock::instant();
    while !no_wait && !left.is_empty && !left.is_stuck() {
        tokio::time::sleep(DRAIN_LOOK_EVERY).await;
        let status = fetch(target).await?;
        let now = find(&status.map, &node.id.to_string())?;
        if left_to(now, disk, &status.map) != Standing::Draining {
            bail!("the drain of {} was called off", label(&node));
        }
        left = Left { stuck: stuck(&status.map), ..left_on(&status.map, &node, disk) };
        bar.set_position(bar.length().unwrap_or(0).saturating_sub(left.slots as u64));
        bar.set_message(match left.moving {
            0 if left.stuck.is_empty() && !left.is_empty => {
                "waiting for disks that may take the next".to_owned()
            }
            moving if left.stuck.is_empty() => format!("{moving} moving"),
            moving => format!("{moving} moving, {} cannot", left.slots_stuck()),
        });
        if is_told && told_at.elapsed() >= DRAIN_TOLD_EVERY {
            told_at = clock::instant();
            eprintln!("{} slots left; {}", left.slots, bar.message());
        }
    }
    bar.finish_and_clear();
    if target.json {
        print_json(&left)?;
    } else if left.is_stuck() {
        println!(
            "{} drains and cannot be emptied as the cluster is: {} slots left",
            label(&node),
            left.slots
        );
    } else if left.is_empty {
        match disk {
            None => println!("{} is empty; stop its daemon, then `makai node remove {name}`", label(&node)),
            Some(disk) => println!(
                "disk {disk} of {} is empty; stop its daemon, put another disk in its place or take it out of the configuration, \
                 start it, then `makai node remove {name} --disk {}`",
                label(&node),
                &disk.to_string()[..12]
            ),
        }
    } else {
        println!("{} drains: {} slots left", label(&node), left.slots);
    }
    Ok(if left.is_stuck() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Left {
    fn slots_stuck(&self) -> usize {
        self.stuck.iter().map(|stuck| stuck.slots).sum()
    }

    /// Whether nothing that is left can go.
    fn is_stuck(&self) -> bool {
        !self.is_empty && self.moving == 0 && self.slots_stuck() == self.slots
    }
}

/// What a node holds, and what keeps it there if it is being emptied.
async fn left_now(map: &ClusterMap, node: &Node, target: &Target) -> anyhow::Result<Left> {
    let stuck = match node.standing {
        Standing::Draining => stuck_on(map, node, None, &schemes(target).await?),
        Standing::Active | Standing::Lost => Vec::new(),
    };
    Ok(Left { stuck, ..left_on(map, node, None) })
}

fn tell_stuck(stuck: &[Stuck]) {
    stuck.iter().for_each(|stuck| eprintln!("{}", stuck.told()));
    if !stuck.is_empty() {
        eprintln!("{STUCK_HELP}");
    }
}

/// The schemes that buckets ask for, with the buckets' names.
async fn schemes(target: &Target) -> anyhow::Result<Vec<(Option<String>, String)>> {
    let buckets: Vec<BucketListed> = target.get("/api/v1/buckets").await?;
    Ok(buckets.into_iter().map(|bucket| (bucket.scheme, bucket.name)).collect())
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
    let mut status = fetch(target).await?;
    let id = find(&status.map, name)?.id.to_string();
    let disk = disk.map(|text| find_disk(&status.map, find(&status.map, &id)?, text)).transpose()?;
    // One that has just been stopped counts as up for some seconds.
    let until = clock::instant() + DOWN_WITHIN;
    while disk.is_none() && find(&status.map, &id)?.is_up && clock::instant() < until {
        tokio::time::sleep(DRAIN_LOOK_EVERY).await;
        status = fetch(target).await?;
    }
    let node = find(&status.map, &id)?;
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
    } else {
        let what = disk.map_or_else(|| label(node), |disk| format!("disk {disk} of {}", label(node)));
        match left.is_empty {
            true => println!("{what} is out"),
            false => {
                println!("{what} is lost; its shards are rebuilt on other disks as far as there are enough")
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use makai_erasure::{PgId, Scheme};
    use makai_raft::facts::Timestamp;
    use makai_raft::facts::cluster::Group;

    use super::*;

    /// Six machines with a disk each, and a group on the first so many.
    fn six(width: u8, scheme: Scheme) -> ClusterMap {
        let node = |at: u8| Node {
            id: NodeId([at; 32]),
            number: at.into(),
            name: format!("node{at}"),
            owner: String::new(),
            site: String::new(),
            roles: vec![Role::Storage],
            addresses: vec![],
            standing: Standing::Active,
            joined_at: Timestamp(0),
            is_up: true,
            changed_at: Timestamp(0),
            version: String::new(),
            down_ppm: 0,
        };
        let disk = |at: u8| Disk {
            id: DiskId([at; 16]),
            node: NodeId([at; 32]),
            capacity_bytes: 1 << 40,
            standing: Standing::Active,
            added_at: Timestamp(0),
            condition: Condition::Well,
            speed_bytes_per_sec: 0,
        };
        let disks = (0..width).map(|at| DiskId([at; 16])).collect();
        ClusterMap {
            nodes: (0..6).map(node).collect(),
            disks: (0..6).map(disk).collect(),
            groups: vec![Group { id: PgId(1), scheme, version: 1, disks, moves: vec![] }],
            ..ClusterMap::default()
        }
    }

    /// A drain that cannot end is known before it begins, with the buckets that are in its way.
    #[test]
    fn a_drain_that_needs_more_machines_is_told() {
        let schemes = [(Some("4+2".to_owned()), "wide".to_owned()), (None, "other".to_owned())];
        let wide = six(6, Scheme { data: 4, parity: 2 });
        let stuck = stuck_on(&wide, &wide.nodes[2], None, &schemes);
        assert_eq!(stuck.len(), 1);
        assert_eq!((stuck[0].slots, stuck[0].needs_disks, stuck[0].has_disks), (1, 6, 5));
        let told = stuck[0].told();
        assert!(told.contains("4+2 needs 6 disks") && told.contains("of wide cannot"), "{told}");
        let mut narrow = six(4, Scheme { data: 2, parity: 2 });
        assert_eq!(stuck_on(&narrow, &narrow.nodes[2], None, &schemes), []);
        narrow.nodes[4].is_up = false;
        narrow.disks[5].condition = Condition::Full;
        assert_eq!(stuck_on(&narrow, &narrow.nodes[2], None, &schemes).len(), 1, "no disk may take it");
        assert_eq!(stuck_on(&narrow, &narrow.nodes[5], None, &schemes), [], "nothing is on it");
    }

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
