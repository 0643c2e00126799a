//! Idle processors compute drills, and the leader finds out whether they did.
//!
//! ```text
//! compute node   epoch opens ─ beacon ─> tasks while no attempt runs here, within compute.drill_pct ─> roots
//! leader         late in the epoch: what was told │ next epoch: rows drawn by its beacon ─ checked ─> one report
//! ```
//!
//! Rows are drawn by a beacon that nobody knew when the roots were told. A new leader has heard nothing and asks from its next
//! epoch on: what was computed meanwhile counts nothing. Who does not answer is not blamed; who answers wrong is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use makai_erasure::NodeId;
use makai_erasure::stripe::Root;
use makai_ops::computing::drill::{self, Place, Seed, Size, TASKS_MAX, Transcript, work_mut};
use makai_raft::facts::accounts::{AccountsCommand, Epoch, Hash, ROWS_MAX, ServedRow};
use makai_raft::facts::cluster::{Role, Standing};
use makai_raft::facts::command::Command;
use tokio::sync::oneshot;

use super::Shell;
use super::epochs::look_every;
use crate::accounts::drills::{DrillReply, DrillRequest, Drills};
use crate::accounts::reading;
use crate::clock;
use crate::members::{DRILL, decode, encode};

/// Of an epoch, in hundredths: tasks begin until, and roots are asked for from then on.
const COMPUTED_UNTIL_PCT: u64 = 60;
const TOLD_FROM_PCT: u64 = 70;
/// Nodes asked at once.
const IN_FLIGHT: usize = 8;
const TELL_TIMEOUT: Duration = Duration::from_secs(10);
/// Opening computes a task anew, on a machine that may have begun a job meanwhile.
const OPEN_TIMEOUT: Duration = Duration::from_secs(120);
/// How often a task looks whether the machine is wanted for something else.
const YIELD_EVERY: Duration = Duration::from_millis(20);
/// Of such reports' parts, apart from those of what was served.
const FIRST_PART: u32 = 1 << 31;
/// Last in line for the processor.
const NICE: i32 = 19;
/// Tasks of an epoch that a size is chosen for, at least.
const TASKS_WANTED: u64 = 4;

/// Computes, on a node whose owner wants it.
pub async fn work(shell: Shell, drills: Arc<Drills>) {
    let every = look_every(&shell.config.accounts);
    let cores = cores(&shell);
    // How long the smallest task takes here.
    let mut smallest_ms = None;
    let mut done = 0;
    while shell.pause(every).await {
        let epoch = match open_epoch(&shell).await {
            Ok(Some((epoch, epoch_ms))) if epoch.number > done => (epoch, epoch_ms),
            _ => continue,
        };
        done = epoch.0.number;
        compute(&shell, &drills, cores, &epoch.0, epoch.1, &mut smallest_ms).await;
    }
}

fn cores(shell: &Shell) -> u64 {
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    match shell.config.compute.cpu_millis_max {
        0 => all,
        millis => (millis / 1000).clamp(1, all),
    }
}

async fn open_epoch(shell: &Shell) -> anyhow::Result<Option<(Epoch, u64)>> {
    let Some(state) = reading::state(&*shell.here).await? else { return Ok(None) };
    Ok(Some((reading::epoch(&*shell.here, state.open).await?, state.genesis.epoch_ms)))
}

/// Computes tasks of an epoch until their time, or the budget of processor time, is over.
async fn compute(
    shell: &Shell,
    drills: &Drills,
    cores: u64,
    epoch: &Epoch,
    epoch_ms: u64,
    smallest_ms: &mut Option<u64>,
) {
    let span_ms = epoch_ms / 100 * COMPUTED_UNTIL_PCT;
    let budget_ms = (span_ms * cores / 100 * u64::from(shell.config.compute.drill_pct)).max(1);
    let size = smallest_ms.map_or(Size::SMALLEST, |smallest_ms| size_for(smallest_ms, budget_ms));
    drills.begin(epoch.number, epoch.beacon, size);
    let (mut spent_ms, mut next) = (0u64, 0u32);
    while spent_ms < budget_ms && (next as usize) < TASKS_MAX {
        // Spread over the span, as the budget is.
        let due_ms = u64::try_from(u128::from(span_ms) * u128::from(spent_ms) / u128::from(budget_ms));
        let age_ms = clock::now().millis_since(epoch.opened_at);
        let wait_ms = due_ms.unwrap_or(span_ms).saturating_sub(age_ms);
        if age_ms >= span_ms || !shell.pause(Duration::from_millis(wait_ms)).await {
            return;
        }
        if is_wanted(shell) {
            // The machine has other work: this time is not made up for.
            spent_ms += YIELD_EVERY.as_millis() as u64;
            continue;
        }
        let count =
            if next == 0 { 1 } else { u32::try_from(cores).unwrap_or(1).min(TASKS_MAX as u32 - next) };
        let seeds: Vec<Seed> =
            (next..next + count).map(|task| Seed::new(&epoch.beacon, &shell.id, task)).collect();
        let begun = clock::instant();
        let Some(roots) = round(shell, seeds, size).await else { continue };
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        if smallest_ms.is_none() && size == Size::SMALLEST {
            *smallest_ms = Some(took_ms);
        }
        spent_ms = spent_ms.saturating_add(took_ms * u64::from(count));
        next += count;
        if !drills.add(epoch.number, &roots) {
            return;
        }
    }
}

/// The largest size of which the budget pays for some tasks.
fn size_for(smallest_ms: u64, budget_ms: u64) -> Size {
    let takes_ms =
        |size: &Size| u128::from(smallest_ms) * size.operations() / Size::SMALLEST.operations().max(1);
    let fits = |size: &Size| takes_ms(size) * u128::from(TASKS_WANTED) <= u128::from(budget_ms);
    Size::all().filter(fits).max_by_key(|size| size.operations()).unwrap_or(Size::SMALLEST)
}

fn is_wanted(shell: &Shell) -> bool {
    shell.stop.is_cancelled() || shell.members.agent().is_some_and(|agent| agent.busy() > 0)
}

/// Some tasks at once, each on a thread of the lowest priority; `None`: the machine was wanted for something else.
async fn round(shell: &Shell, seeds: Vec<Seed>, size: Size) -> Option<Vec<Root>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut answers = Vec::new();
    for seed in seeds {
        let (stop, (send, answer)) = (Arc::clone(&stop), oneshot::channel());
        let task = move || {
            // Where the system does not allow it, the task runs as others do.
            let _ = rustix::process::nice(NICE);
            let done = Transcript::compute(seed, size, &|| stop.load(Ordering::Relaxed));
            let _ = send.send(done.map(|done| done.root()));
        };
        std::thread::Builder::new().name("drill".into()).spawn(task).ok()?;
        answers.push(answer);
    }
    let all = futures::future::join_all(answers);
    tokio::pin!(all);
    loop {
        tokio::select! {
            roots = &mut all => return roots.into_iter().map(|root| root.ok().flatten()).collect(),
            () = tokio::time::sleep(YIELD_EVERY) => {
                if is_wanted(shell) {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

/// What nodes told of an epoch.
struct Told {
    epoch: u64,
    beacon: Hash,
    nodes: BTreeMap<NodeId, (Size, Vec<Root>)>,
}

/// Asks and checks, on the leader.
pub async fn verify(shell: Shell) {
    let every = look_every(&shell.config.accounts);
    let mut told = None;
    while shell.pause(every).await {
        if !shell.is_leader() {
            told = None;
            continue;
        }
        if let Err(error) = step(&shell, &mut told).await {
            tracing::debug!(%error, "drills wait");
        }
    }
}

async fn step(shell: &Shell, told: &mut Option<Told>) -> anyhow::Result<()> {
    let Some((epoch, epoch_ms)) = open_epoch(shell).await? else { return Ok(()) };
    match told.take() {
        Some(before) if before.epoch + 1 == epoch.number => check_all(shell, before, &epoch).await?,
        Some(now) if now.epoch == epoch.number => *told = Some(now),
        _ => {}
    }
    let age_ms = clock::now().millis_since(epoch.opened_at);
    if told.is_none() && age_ms >= epoch_ms / 100 * TOLD_FROM_PCT {
        let nodes = futures::stream::iter(compute_nodes(shell))
            .map(|node| async move { Some((node, tell(shell, node, epoch.number).await?)) })
            .buffer_unordered(IN_FLIGHT)
            .filter_map(std::future::ready)
            .collect()
            .await;
        // What was heard after the next beacon was known would prove nothing.
        let is_in_time = open_epoch(shell).await?.is_some_and(|(now, _)| now.number == epoch.number);
        if is_in_time {
            *told = Some(Told { epoch: epoch.number, beacon: epoch.beacon, nodes });
        }
    }
    Ok(())
}

fn compute_nodes(shell: &Shell) -> Vec<NodeId> {
    let map = shell.map.get();
    let computes = |node: &&makai_raft::facts::cluster::Node| {
        node.is_up && node.standing == Standing::Active && node.roles.contains(&Role::Compute)
    };
    map.map.nodes.iter().filter(computes).map(|node| node.id).collect()
}

async fn ask(
    shell: &Shell,
    node: NodeId,
    request: &DrillRequest,
    timeout: Duration,
) -> Result<DrillReply, String> {
    let body = encode(request)?;
    let answer = shell.transport.request(node, DRILL, body, timeout).await;
    decode(&answer.map_err(|error| error.to_string())?)
}

async fn tell(shell: &Shell, node: NodeId, epoch: u64) -> Option<(Size, Vec<Root>)> {
    match ask(shell, node, &DrillRequest::Tell { epoch }, TELL_TIMEOUT).await {
        Ok(DrillReply::Told { size, roots }) if size.is_valid() && (1..=TASKS_MAX).contains(&roots.len()) => {
            Some((size, roots))
        }
        Ok(_) => None,
        Err(why) => {
            tracing::debug!(%node, why, "a node told nothing of its drills");
            None
        }
    }
}

/// Checks what was told of the epoch before, by the beacon of this one, and reports it.
async fn check_all(shell: &Shell, before: Told, epoch: &Epoch) -> anyhow::Result<()> {
    let Told { epoch: told_in, beacon, nodes } = before;
    let checked = futures::stream::iter(nodes)
        .map(|(node, (size, roots))| async move {
            let asked = drill::draw(&epoch.beacon, &node, size, roots.len());
            let verdict = check_node(shell, node, told_in, &beacon, size, &roots, asked).await;
            (node, verdict, work_mut(size, roots.len()))
        })
        .buffer_unordered(IN_FLIGHT)
        .collect::<Vec<_>>()
        .await;
    let mut rows = Vec::new();
    for (node, verdict, work_mut) in checked {
        let mut row = ServedRow::of(node);
        match verdict {
            Ok(Some(pass)) => (row.work_mut, row.computed.pass) = (work_mut, pass),
            Ok(None) => continue,
            Err(why) => {
                tracing::warn!(%node, epoch = told_in, why, "a node's drill is wrong");
                row.computed.fail = 1;
            }
        }
        rows.push(row);
    }
    for (part, rows) in (FIRST_PART..).zip(rows.chunks(ROWS_MAX)) {
        report(shell, epoch.number, part, rows.to_vec()).await?;
    }
    Ok(())
}

/// Into the open epoch, which may be a later one by now: what was found then counts then.
async fn report(shell: &Shell, epoch: u64, part: u32, served: Vec<ServedRow>) -> anyhow::Result<()> {
    let (mut epoch, reporter) = (epoch, shell.id);
    loop {
        let (served, tenants) = (served.clone(), Vec::new());
        let command = AccountsCommand::Meter { epoch, reporter, part, served, tenants };
        match shell.facts.propose(Command::Accounts(command)).await {
            Ok(_) => return Ok(()),
            Err(error) => match open_epoch(shell).await? {
                Some((now, _)) if now.number > epoch => epoch = now.number,
                _ => return Err(error.into()),
            },
        }
    }
}

/// How many of the tasks asked for are right; `None`: the node did not answer.
///
/// # Errors
/// What is wrong.
async fn check_node(
    shell: &Shell,
    node: NodeId,
    epoch: u64,
    beacon: &Hash,
    size: Size,
    roots: &[Root],
    asked: Vec<(u32, Vec<Place>)>,
) -> Result<Option<u32>, String> {
    let mut pass = 0;
    for (task, places) in asked {
        let Some(root) = roots.get(task as usize).copied() else { continue };
        let request = DrillRequest::Open { epoch, task, places: places.clone() };
        let opened = match ask(shell, node, &request, OPEN_TIMEOUT).await {
            Ok(DrillReply::Opened(opened)) => opened,
            Ok(_) | Err(_) => return Ok(None),
        };
        if opened.len() != places.len() {
            return Err(format!("task {task}: {} rows for {}", opened.len(), places.len()));
        }
        let seed = Seed::new(beacon, &node, task);
        let check = move || {
            places.iter().zip(&opened).try_for_each(|(place, opening)| {
                let verdict = drill::check(seed, size, &root, *place, opening);
                verdict
                    .map_err(|error| format!("task {task}, step {}, row {}: {error}", place.step, place.row))
            })
        };
        tokio::task::spawn_blocking(check).await.map_err(|error| error.to_string())??;
        pass += 1;
    }
    Ok(Some(pass))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_grow_with_the_machine_and_its_epoch() {
        assert_eq!(size_for(100, 100), Size::SMALLEST);
        assert_eq!(size_for(100, 400), Size::SMALLEST);
        let hour = size_for(100, 36 * 60 * 1000);
        assert_eq!(Some(hour.operations()), Size::all().map(Size::operations).max());
        let mut last = 0;
        for budget_ms in (100..100_000).step_by(500) {
            let size = size_for(100, budget_ms);
            assert!(size.operations() >= last, "a larger budget makes no smaller tasks");
            last = size.operations();
        }
    }
}
