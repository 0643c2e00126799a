//! Gives tasks that wait to nodes that have room, and ends what will not end by itself. The leader does so; other voters and
//! gateways pass on to it that something has changed.
//!
//! ```text
//! facts: queue, current attempts, receipts ┐
//! heartbeats: what nodes offer             ┴─ plan ─> stops, assignments ─> proposals ─> the nodes are woken
//! ```
//!
//! Always: what attempts hold of a node never sums to more than it offers, as far as the leader has heard; nothing is kept
//! here that is not read from the facts again by a new leader: predictions are a fold over receipts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use makai_erasure::NodeId;
use makai_gateway::jobs::Capacity;
use makai_gpu_runtime::inventory::Inventory;
use makai_gpu_runtime::scheduler::predict::{History, Needed};
use makai_raft::facts::Timestamp;
use makai_raft::facts::cluster::{ClusterMap, Standing};
use makai_raft::facts::command::{Command, Reply};
use makai_raft::facts::jobs::{
    ActiveAttempt, AttemptId, JobId, JobSpec, JobsAnswer, JobsCommand, JobsQuery, JobsReply, QueuedJob,
    QueuedTask, Statement, Verdict, Work,
};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::TenantId;
use makai_raft::handle::{MetaError, Metadata};

use super::Shell;
use super::plan::{self, Ends, Facts, Known, Planned};
use crate::clock;
use crate::members::{Heard, WAKE, encode};

/// A look without a hint: nodes come, pauses end, deadlines pass.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a hint, so long is waited for more of them.
const GATHER: Duration = Duration::from_millis(2);
/// Tasks of the queue that one plan looks at.
const TASKS_AT_ONCE: u32 = 2000;
/// A node that has offered nothing for so long runs nothing any more.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Jobs that are over, and receipts, are kept for a week.
const HISTORY_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Beyond its time limit, an attempt has so long for inputs, outputs and a node that was away.
const REPORT_WITHIN_MS: u64 = 6 * 60 * 60 * 1000;
const FORGET_EVERY: Duration = Duration::from_secs(60);
const WAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Receipts read at once, and pages of them in one look.
const RECEIPTS_AT_ONCE: u32 = 1000;
const RECEIPT_PAGES_MAX: u32 = 10;
/// Jobs whose specification one look asks for.
const JOBS_ASKED_MAX: usize = 500;
/// Jobs that are remembered, and tasks that can be explained.
const KNOWN_MAX: usize = 20_000;

/// What a leader has read of the facts so far.
#[derive(Default)]
struct Memory {
    /// Receipts up to this one are in the history.
    receipt: u64,
    known: BTreeMap<JobId, Known>,
    ends: BTreeMap<NodeId, Ends>,
}

impl Memory {
    /// Learns from what ended since the last look.
    async fn learn(&mut self, shell: &Shell) -> Result<(), MetaError> {
        for _ in 0..RECEIPT_PAGES_MAX {
            let query = JobsQuery::Receipts { after: self.receipt, entries_max: RECEIPTS_AT_ONCE };
            let JobsAnswer::Receipts(receipts) = ask(shell, query).await? else { return Ok(()) };
            let Some(last) = receipts.last() else { return Ok(()) };
            let last = last.sequence;
            self.ask_for(shell, receipts.iter().map(|receipt| receipt.statement.attempt.job)).await?;
            for receipt in &receipts {
                let Statement { attempt, node, end, usage, .. } = &receipt.statement;
                let ends = self.ends.entry(*node).or_default();
                match end.verdict() {
                    Verdict::Loss => ends.by_node += 1,
                    Verdict::Success | Verdict::Failure | Verdict::Hopeless => ends.by_task += 1,
                }
                if end.verdict() != Verdict::Success {
                    continue;
                }
                let known = self.known.get(&attempt.job).copied().unwrap_or_default();
                let needed = Needed {
                    runtime_ms: usage.wall_ms,
                    memory_peak_mib: usage.memory_peak_bytes >> 20,
                    gpu_ms: usage.gpu_busy_ns / 1_000_000,
                };
                lock(&shell.members.history)
                    .observe(&plan::subject(known, receipt.tenant.0, &receipt.resources), &needed);
            }
            self.receipt = last;
        }
        Ok(())
    }

    /// Learns what these jobs run; some of them at a time.
    async fn ask_for(&mut self, shell: &Shell, jobs: impl Iterator<Item = JobId>) -> Result<(), MetaError> {
        let unknown: BTreeSet<JobId> = jobs.filter(|job| !self.known.contains_key(job)).collect();
        for id in unknown.into_iter().take(JOBS_ASKED_MAX) {
            let known = match ask(shell, JobsQuery::Job { tenant: None, job: id }).await {
                Ok(JobsAnswer::Job(job, _)) => known(&job.spec),
                Ok(_) | Err(MetaError::Refused(_)) => Known::default(),
                Err(error) => return Err(error),
            };
            self.known.insert(id, known);
        }
        while self.known.len() > KNOWN_MAX {
            self.known.pop_first();
        }
        Ok(())
    }
}

/// What the scheduler must know of a specification.
fn known(spec: &JobSpec) -> Known {
    let bytes = encode(&spec.work).unwrap_or_default();
    let work = blake3::hash(&bytes).as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    Known { work, is_module: matches!(spec.work, Work::Module(_)) }
}

/// Current attempts that their nodes will not end. Pure.
fn lost(
    map: &ClusterMap,
    heard: &HashMap<NodeId, Heard>,
    active: &[ActiveAttempt],
    silent: &BTreeSet<NodeId>,
    now_ms: u64,
) -> Vec<(AttemptId, String)> {
    let why = |attempt: &ActiveAttempt| {
        let node = map.nodes.iter().find(|node| node.id == attempt.node);
        match node {
            None => Some("its node has left the cluster"),
            Some(node) if node.standing == Standing::Lost => Some("its node was removed"),
            Some(node) if !node.is_up => Some("its node does not answer"),
            Some(node) if silent.contains(&node.id) && heard.contains_key(&node.id) => {
                Some("its node runs no jobs any more")
            }
            Some(_) => {
                let due = attempt
                    .assigned_at
                    .0
                    .saturating_add(attempt.time_limit_ms)
                    .saturating_add(REPORT_WITHIN_MS);
                (due < now_ms).then_some("its node never reported how it ended")
            }
        }
    };
    active.iter().filter_map(|attempt| Some((attempt.attempt, why(attempt)?.to_owned()))).collect()
}

fn lock(history: &Mutex<History>) -> std::sync::MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where tasks of a job could run, how many of them now, how long they may take, and what would keep them to shares of cards. For the
/// leader.
///
/// # Errors
/// The facts do not answer.
pub async fn capacity(
    facts: &dyn Metadata,
    map: &ClusterMap,
    heard: HashMap<NodeId, Heard>,
    history: &Mutex<History>,
    (tenant, spec): (TenantId, JobSpec),
) -> Result<Capacity, String> {
    let about = known(&spec);
    let demand = plan::demand(&spec.resources, &spec.site, about.is_module);
    let offers: HashMap<NodeId, Inventory> =
        heard.into_iter().filter_map(|(node, heard)| Some((node, heard.compute?))).collect();
    let mut capacity = Capacity::default();
    for offer in offers.values() {
        let tasks = plan::fits(offer, &demand);
        capacity.nodes += u32::from(tasks > 0);
        capacity.tasks_at_once += u64::from(tasks);
        if tasks > 0 {
            let level = plan::level(offer, &demand, spec.work.share_level());
            capacity.level = level.map(|level| capacity.level.map_or(level, |known| known.min(level)));
        }
    }
    let active = match facts.query(Query::Jobs(JobsQuery::Active)).await {
        Ok(Answer::Jobs(JobsAnswer::Active(active))) => active,
        Ok(other) => return Err(format!("the facts answered {other:?}")),
        Err(error) => return Err(error.to_string()),
    };
    let id = JobId(u64::MAX);
    let task = |index| QueuedTask { index, not_before: Timestamp(0), last_node: None, barred: Vec::new() };
    let queue = [QueuedJob {
        job: id,
        tenant,
        priority: spec.priority,
        submitted_at: Timestamp(0),
        deadline: None,
        time_limit_ms: spec.time_limit_ms,
        resources: spec.resources.clone(),
        site: spec.site.clone(),
        tasks: (0..spec.tasks.min(TASKS_AT_ONCE)).map(task).collect(),
        gang_tasks: if spec.is_gang { spec.tasks } else { 0 },
    }];
    let history = lock(history);
    if let Some(found) = history.predict(&plan::subject(about, tenant.0, &spec.resources)) {
        capacity.median_ms = found.runtime_ms.median.min(spec.time_limit_ms);
        capacity.p90_ms = found.runtime_ms.p90.min(spec.time_limit_ms);
    }
    let known = BTreeMap::from([(id, about)]);
    let facts = Facts {
        map,
        offers: &offers,
        active: &active,
        queue: &queue,
        known: &known,
        history: &history,
        ends: &BTreeMap::new(),
        now_ms: 0,
    };
    let planned = plan::plan(&facts);
    // What would have to stop first cannot begin now.
    capacity.tasks_now = planned.assignments.len().saturating_sub(planned.preempted.len()) as u64;
    Ok(capacity)
}

pub async fn run(shell: Shell) {
    // Since when a node that is up has offered nothing.
    let mut silent_since: BTreeMap<NodeId, std::time::Instant> = BTreeMap::new();
    let mut forgotten_at = clock::instant();
    let mut memory = Memory::default();
    loop {
        let is_hint = tokio::select! {
            () = shell.members.jobs_changed.notified() => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
            () = shell.stop.cancelled() => return,
        };
        if !shell.is_leader() {
            silent_since.clear();
            memory = Memory::default();
            *lock(&shell.members.history) = History::default();
            if is_hint {
                wake(&shell, shell.members.leader().filter(|leader| *leader != shell.id));
            }
            continue;
        }
        if is_hint {
            tokio::time::sleep(GATHER).await;
        }
        if let Err(error) = step(&shell, &mut silent_since, &mut memory).await {
            tracing::debug!(%error, "nothing was scheduled; trying again");
        }
        if forgotten_at.elapsed() > FORGET_EVERY {
            forgotten_at = clock::instant();
            let before_ms = clock::now().0.saturating_sub(HISTORY_MS);
            if let Err(error) = shell.facts.propose(Command::Jobs(JobsCommand::Forget { before_ms })).await {
                tracing::debug!(%error, "old jobs stay");
            }
        }
    }
}

/// Tells other nodes that jobs have changed, without waiting for them.
fn wake(shell: &Shell, nodes: impl IntoIterator<Item = NodeId>) {
    for node in nodes {
        let transport = shell.transport.clone();
        tokio::spawn(async move {
            // A hint that is lost costs a second.
            let _ = transport.request(node, WAKE, bytes::Bytes::new(), WAKE_TIMEOUT).await;
        });
    }
}

async fn ask(shell: &Shell, query: JobsQuery) -> Result<JobsAnswer, MetaError> {
    match shell.facts.query(Query::Jobs(query)).await? {
        Answer::Jobs(answer) => Ok(answer),
        other => Err(MetaError::Unavailable(format!("the facts answered {other:?}"))),
    }
}

async fn step(
    shell: &Shell,
    silent_since: &mut BTreeMap<NodeId, std::time::Instant>,
    memory: &mut Memory,
) -> Result<(), MetaError> {
    let now_ms = clock::now().0;
    if let JobsAnswer::Due(due) = ask(shell, JobsQuery::Due { now_ms }).await? {
        for job in due {
            let reason = "its deadline has passed".to_owned();
            shell.facts.propose(Command::Jobs(JobsCommand::Cancel { tenant: None, job, reason })).await?;
        }
    }
    let JobsAnswer::Active(mut active) = ask(shell, JobsQuery::Active).await? else { return Ok(()) };
    let (map, heard) = (shell.map.get(), shell.members.heard());
    note_silent(&heard, silent_since);
    let silent = silent_since
        .iter()
        .filter(|(_, since)| since.elapsed() > SILENCE_MAX)
        .map(|(node, _)| *node)
        .collect();
    let lost = lost(&map.map, &heard, &active, &silent, now_ms);
    if !lost.is_empty() {
        tracing::info!(attempts = lost.len(), "attempts are lost with their nodes");
        shell.facts.propose(Command::Jobs(JobsCommand::Lose { attempts: lost.clone() })).await?;
        active.retain(|attempt| !lost.iter().any(|(id, _)| *id == attempt.attempt));
    }
    let JobsAnswer::Queue(queue) = ask(shell, JobsQuery::Queue { tasks_max: TASKS_AT_ONCE }).await? else {
        return Ok(());
    };
    memory.learn(shell).await?;
    // With nothing in the queue, what runs may still be late.
    if queue.is_empty() && active.is_empty() {
        shell.members.explained.explain(BTreeMap::new());
        return Ok(());
    }
    let jobs = queue.iter().map(|job| job.job).chain(active.iter().map(|attempt| attempt.attempt.job));
    memory.ask_for(shell, jobs).await?;
    let offers: HashMap<NodeId, Inventory> =
        heard.into_iter().filter_map(|(node, heard)| Some((node, heard.compute?))).collect();
    let (known, history) = (memory.known.clone(), Arc::clone(&shell.members.history));
    let ends = memory.ends.clone();
    // Thousands of tasks take a while to plan: not on a thread that others wait for.
    let planning = move || {
        let facts = Facts {
            map: &map.map,
            offers: &offers,
            active: &active,
            queue: &queue,
            known: &known,
            history: &lock(&history),
            ends: &ends,
            now_ms,
        };
        plan::plan(&facts)
    };
    let Ok(planned) = tokio::task::spawn_blocking(planning).await else { return Ok(()) };
    let Planned { preempted, assignments, why } = planned;
    shell.members.explained.explain(why);
    if !preempted.is_empty() {
        tracing::info!(attempts = preempted.len(), "attempts make room for what is worth more");
        shell.facts.propose(Command::Jobs(JobsCommand::Lose { attempts: preempted })).await?;
    }
    if assignments.is_empty() {
        return Ok(());
    }
    let nodes: BTreeSet<NodeId> = assignments.iter().map(|assignment| assignment.node).collect();
    match shell.facts.propose(Command::Jobs(JobsCommand::Assign { assignments })).await? {
        Reply::Jobs(JobsReply::Assigned(assigned)) => tracing::debug!(count = assigned.len(), "assigned"),
        other => tracing::debug!(?other, "the facts answered something else"),
    }
    for node in nodes {
        if node != shell.id {
            wake(shell, [node]);
        } else if let Some(agent) = shell.members.agent() {
            agent.wake();
        }
    }
    Ok(())
}

fn note_silent(heard: &HashMap<NodeId, Heard>, silent_since: &mut BTreeMap<NodeId, std::time::Instant>) {
    let now = clock::instant();
    silent_since.retain(|node, _| heard.get(node).is_some_and(|heard| heard.compute.is_none()));
    for (node, _) in heard.iter().filter(|(_, heard)| heard.compute.is_none()) {
        silent_since.entry(*node).or_insert(now);
    }
}
