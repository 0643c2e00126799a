//! Asks nodes for leaves of what they should hold, spread over each epoch, and reports what they answered.
//!
//! ```text
//! epoch opens ─ beacon, groups as they are ─> times and lots of each node ─> asked ─> verdicts ─> one report
//! ```
//!
//! The leader asks. A new leader asks from the next epoch on: bytes that no audit covered meanwhile wait, unpaid and not
//! lost. A node that lacks a shard of a slot it was given lately is not blamed: the shard may be on its way.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use makai_erasure::layout::BlobLayout;
use makai_erasure::{DiskId, NodeId, PgId};
use makai_ops::audit::draw::{Lots, audits_per_epoch};
use makai_ops::audit::proof::{LEAF_BYTES, leaf_count};
use makai_raft::facts::accounts::{
    AccountsCommand, AccountsState, AuditRow, EVIDENCE_MAX, Epoch, Evidence, Hash, ROWS_MAX,
};
use makai_raft::facts::cluster::{Group, Standing};
use makai_raft::facts::command::Command;
use makai_raft::facts::object::Blob;
use makai_raft::facts::query::{Answer, Query};

use super::Shell;
use super::epochs::look_every;
use crate::accounts::audits::{self, Question, Verdict};
use crate::accounts::reading;
use crate::clock;

/// Audits are asked until, and reported when, so much of the epoch is over, in hundredths.
const ASKED_UNTIL_PCT: u64 = 70;
const REPORT_AT_PCT: u64 = 80;
/// Asked at once.
const IN_FLIGHT: usize = 8;
/// Blobs of a group among which one is drawn by its length.
const CANDIDATES: u64 = 16;
/// A slot given to a disk later than this may still be filling.
const FILLING: Duration = Duration::from_secs(3600);
const WHY_BYTES_MAX: usize = 200;

/// What was drawn for an epoch and what came of it.
struct Plan {
    epoch: u64,
    beacon: Hash,
    opened_ms: u64,
    epoch_ms: u64,
    /// Slot bytes and last blob of each group when the epoch opened: what came later is not asked for.
    groups: BTreeMap<PgId, (u64, u64)>,
    /// When, whom, and the how-manyth of the node; soonest last.
    due: Vec<(u64, NodeId, u32)>,
    rows: BTreeMap<NodeId, AuditRow>,
    is_reported: bool,
}

/// Since when this leader has seen a disk in a slot that changed hands.
type Slots = HashMap<(PgId, u8, DiskId), Instant>;

pub async fn run(shell: Shell) {
    let every = look_every(&shell.config.accounts);
    let (mut plan, mut last_seen, mut slots) = (None::<Plan>, 0, Slots::new());
    while shell.pause(every).await {
        if !shell.is_leader() {
            (plan, last_seen) = (None, 0);
            slots.clear();
            continue;
        }
        note_slots(&shell, &mut slots);
        if let Err(error) = step(&shell, &mut plan, &mut last_seen, &slots).await {
            tracing::debug!(%error, "audits wait");
        }
    }
}

fn note_slots(shell: &Shell, slots: &mut Slots) {
    let map = shell.map.get();
    let current: std::collections::HashSet<_> = map
        .map
        .groups
        .iter()
        .filter(|group| group.version > 1)
        .flat_map(|group| (0u8..).zip(&group.disks).map(|(slot, disk)| (group.id, slot, *disk)))
        .collect();
    slots.retain(|slot, _| current.contains(slot));
    for slot in current {
        slots.entry(slot).or_insert_with(clock::instant);
    }
}

async fn step(
    shell: &Shell,
    plan: &mut Option<Plan>,
    last_seen: &mut u64,
    slots: &Slots,
) -> anyhow::Result<()> {
    let Some(state) = reading::state(&*shell.here).await? else { return Ok(()) };
    if *last_seen != state.open {
        // An epoch that was already under way when this node began to lead is left alone.
        let is_fresh = *last_seen != 0 || state.open == 1;
        *last_seen = state.open;
        let epoch = reading::epoch(&*shell.here, state.open).await?;
        *plan = if is_fresh { Some(draw_up(shell, &state, &epoch).await?) } else { None };
    }
    let Some(plan) = plan else { return Ok(()) };
    let age_ms = clock::now().0.saturating_sub(plan.opened_ms);
    let mut now_due = Vec::new();
    while plan.due.last().is_some_and(|(at_ms, ..)| *at_ms <= age_ms) {
        now_due.extend(plan.due.pop());
    }
    let deadline_ms = shell.config.accounts.audit_deadline_ms.min(plan.epoch_ms / 5);
    let deadline = Duration::from_millis(deadline_ms);
    let asked = futures::stream::iter(now_due)
        .map(|(_, node, at)| {
            let plan = &*plan;
            async move { (node, one(shell, plan, slots, node, at, deadline).await) }
        })
        .buffer_unordered(IN_FLIGHT)
        .collect::<Vec<_>>()
        .await;
    for (node, outcome) in asked {
        if let Some((question, verdict)) = outcome? {
            enter(plan.rows.entry(node).or_insert_with(|| AuditRow::of(node)), &question, verdict);
        }
    }
    if !plan.is_reported && age_ms >= plan.epoch_ms / 100 * REPORT_AT_PCT {
        report(shell, plan).await?;
        plan.is_reported = true;
    }
    Ok(())
}

async fn draw_up(shell: &Shell, state: &AccountsState, epoch: &Epoch) -> anyhow::Result<Plan> {
    let epoch_ms = state.genesis.epoch_ms;
    let count = audits_per_epoch(shell.config.accounts.audit_leaves_per_day, epoch_ms);
    let groups = reading::group_bytes(&*shell.here).await?;
    let map = shell.map.get();
    let holders: std::collections::BTreeSet<NodeId> = map
        .map
        .disks
        .iter()
        .filter(|disk| disk.standing != Standing::Lost)
        .filter(|disk| map.node(disk.node).is_some_and(|node| node.standing != Standing::Lost))
        .map(|disk| disk.node)
        .collect();
    let span_ms = epoch_ms / 100 * ASKED_UNTIL_PCT;
    let mut due = Vec::new();
    for node in holders {
        for at in 0..count {
            let jitter = Lots::new(&epoch.beacon, &node, at).below(span_ms / u64::from(count) + 1);
            due.push((span_ms * u64::from(at) / u64::from(count) + jitter, node, at));
        }
    }
    due.sort_unstable_by_key(|(at_ms, ..)| std::cmp::Reverse(*at_ms));
    Ok(Plan {
        epoch: epoch.number,
        beacon: epoch.beacon,
        opened_ms: epoch.opened_at.0,
        epoch_ms,
        groups: groups.into_iter().map(|group| (group.pg, (group.slot_bytes, group.last_sequence))).collect(),
        due,
        rows: BTreeMap::new(),
        is_reported: false,
    })
}

/// One audit of a node; `None`: it holds nothing that could be asked for.
async fn one(
    shell: &Shell,
    plan: &Plan,
    slots: &Slots,
    node: NodeId,
    at: u32,
    deadline: Duration,
) -> anyhow::Result<Option<(Question, Verdict)>> {
    let map = shell.map.get();
    let mut held: Vec<(&Group, u8, DiskId, u64, u64)> = Vec::new();
    for group in &map.map.groups {
        let Some((bytes, last)) = plan.groups.get(&group.id).filter(|(bytes, _)| *bytes > 0) else {
            continue;
        };
        let slots = (0u8..).zip(&group.disks).filter(|(_, disk)| map.node_of(**disk) == Some(node));
        held.extend(slots.map(|(slot, disk)| (group, slot, *disk, *bytes, *last)));
    }
    let mut lots = Lots::new(&plan.beacon, &node, at);
    let weights: Vec<u64> = held.iter().map(|(_, _, _, bytes, _)| *bytes).collect();
    let Some((group, shard, disk, _, last)) = lots.weighted(&weights).map(|place| held[place]) else {
        return Ok(None);
    };
    let Some(blob) = draw_blob(shell, &mut lots, group, last).await? else { return Ok(None) };
    let shard_len = BlobLayout::new(group.scheme, blob.plain_len).map_or(0, |layout| layout.shard_len());
    let leaf = lots.below(shard_len) / LEAF_BYTES;
    debug_assert!(leaf < leaf_count(shard_len).max(1));
    let question = Question { node, disk, group: group.clone(), blob, shard, leaf };
    let verdict = audits::ask(shell, &question, deadline).await;
    if verdict == Verdict::Missing {
        // The blob may have gone meanwhile, and a slot that changed hands may still be filling.
        let ids = vec![question.blob.id];
        let is_live = matches!(shell.facts.query(Query::BlobStates { ids }).await?,
        Answer::BlobStates(states) if states.first().is_some_and(|state| {
            state.as_ref().is_some_and(|blob| blob.sequence > 0)
        }));
        let since = slots.get(&(question.group.id, shard, disk));
        let is_filling = since.is_some_and(|since| since.elapsed() < FILLING);
        if !is_live || is_filling {
            return Ok(None);
        }
    }
    Ok(Some((question, verdict)))
}

/// A blob of a group, likelier the longer it is.
async fn draw_blob(
    shell: &Shell,
    lots: &mut Lots,
    group: &Group,
    last_sequence: u64,
) -> anyhow::Result<Option<Blob>> {
    let mut candidates: Vec<Blob> = Vec::new();
    for _ in 0..CANDIDATES.min(last_sequence) {
        let after_sequence = lots.below(last_sequence);
        let query = Query::BlobsOfGroup { pg: group.id, after_sequence, entries_max: 1 };
        let Answer::Blobs(blobs) = shell.facts.query(query).await? else { continue };
        candidates.extend(blobs.into_iter().filter(|blob| blob.sequence <= last_sequence));
    }
    let lengths: Vec<u64> = candidates.iter().map(|blob| blob.plain_len).collect();
    Ok(lots.weighted(&lengths).map(|place| candidates.swap_remove(place)))
}

fn enter(row: &mut AuditRow, question: &Question, verdict: Verdict) {
    let why = match verdict {
        Verdict::Pass => {
            row.pass += 1;
            row.bytes += LEAF_BYTES;
            return;
        }
        Verdict::Missing => {
            row.fail += 1;
            "the shard is not there".to_owned()
        }
        Verdict::Fail(why) => {
            row.fail += 1;
            why
        }
        Verdict::Unknown(why) => {
            row.unknown += 1;
            why
        }
        Verdict::Offline(why) => {
            row.offline += 1;
            why
        }
    };
    tracing::warn!(node = %question.node, blob = %question.blob.id, shard = question.shard, leaf = question.leaf, %why,
        "an audit did not pass");
    if row.evidence.len() < EVIDENCE_MAX {
        let why = why.chars().take(WHY_BYTES_MAX / 4).collect();
        let (blob, shard, leaf) = (question.blob.id, question.shard, question.leaf);
        row.evidence.push(Evidence { blob, shard, leaf, at: clock::now(), why });
    }
}

async fn report(shell: &Shell, plan: &Plan) -> anyhow::Result<()> {
    let rows: Vec<AuditRow> = plan.rows.values().cloned().collect();
    for (part, rows) in (0u32..).zip(rows.chunks(ROWS_MAX)) {
        let (epoch, auditor, rows) = (plan.epoch, shell.id, rows.to_vec());
        let command = AccountsCommand::Audit { epoch, auditor, part, rows };
        shell.facts.propose(Command::Accounts(command)).await?;
    }
    Ok(())
}
