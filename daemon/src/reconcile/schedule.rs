//! Gives tasks that wait to nodes that have room, and ends what will not end by itself. The leader does so; other voters and
//! gateways pass on to it that something has changed.
//!
//! ```text
//! facts: queue, current attempts, receipts ┐
//! heartbeats: what nodes offer             ┴─ plan ─> stops, assignments ─> proposals ─> the nodes are told
//! ```
//!
//! Always: what attempts hold of a node never sums to more than it offers, as far as the leader has heard; nothing is kept
//! here that is not read from the facts again by a new leader: predictions are a fold over receipts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use makai_erasure::NodeId;
use makai_gateway::jobs::Capacity;
use makai_gpu_runtime::inventory::{Gpu, Inventory};
use makai_gpu_runtime::scheduler::predict::{History, Needed};
use makai_ops::metrics as names;
use makai_raft::facts::Timestamp;
use makai_raft::facts::accounts::RULES_PLEDGES;
use makai_raft::facts::cluster::{ClusterMap, Standing};
use makai_raft::facts::command::{Command, Reply};
use makai_raft::facts::jobs::{
    ActiveAttempt, AttemptId, GPUS_MAX, JobId, JobSpec, JobsAnswer, JobsCommand, JobsQuery, JobsReply,
    MACHINES_MAX, Machine, MachineGpu, QueuedJob, QueuedTask, Statement, Verdict,
};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::TenantId;
use makai_raft::handle::{MetaError, Metadata};

use super::Shell;
use super::plan::{self, Ends, Facts, Known, Planned};
use super::told::told;
use crate::accounts::reading;
use crate::clock;
use crate::members::{Heard, WAKE, encode};

/// A look without a hint: nodes come, pauses end, deadlines pass.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// From one look to the next, so long is waited for more hints; as long as the last took where that is more, but no longer than the most: so
/// planning takes half of a core at most, and who has nothing to do looks at once.
const GATHER_MIN: Duration = Duration::from_millis(2);
const GATHER_MAX: Duration = Duration::from_millis(100);
/// Tasks of a job that a dry run looks at.
const TASKS_AT_ONCE: u32 = 2000;
/// Tasks that one plan looks at: of the first jobs in the queue, and of those behind them, by turns; and of one job before others have
/// had as many.
const TASKS_FIRST: u32 = 1200;
const FIRST_PER_JOB: u32 = 100;
const TASKS_NEXT: u32 = 800;
const NEXT_PER_JOB: u32 = 8;
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
/// Specifications that are at hand when a node is told of its attempts, and their bytes: other jobs' nodes are woken, and look.
const SPECS_MAX: usize = 256;
const SPECS_ASKED_MAX: usize = 32;
const SPEC_BYTES_MAX: usize = 64 << 10;

/// What a leader has read of the facts so far.
#[derive(Default)]
struct Memory {
    /// Receipts up to this one are in the history.
    receipt: u64,
    known: BTreeMap<JobId, Known>,
    /// Specifications of the newest of these, where they are small.
    specs: BTreeMap<JobId, (TenantId, JobSpec)>,
    ends: BTreeMap<NodeId, Ends>,
    /// What the facts say that machines offer; `None`: not read yet.
    machines: Option<BTreeMap<NodeId, Machine>>,
    agreements: BTreeMap<NodeId, u32>,
    /// The rules of the accounts have processors run again what cards ran.
    has_reruns: bool,
    /// Up to where the queue was looked at last, behind its first jobs; `None`: to its end.
    looked_at: Option<(u8, JobId)>,
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
                let unknown = Known::default();
                let known = self.known.get(&attempt.job).unwrap_or(&unknown);
                // Of tasks for objects, what one object took. The last may have had fewer: it counts as one like the others.
                let times = u64::from(known.per_task.unwrap_or(1));
                let needed = Needed {
                    runtime_ms: usage.wall_ms.div_ceil(times),
                    memory_peak_mib: usage.memory_peak_bytes >> 20,
                    gpu_ms: usage.gpu_busy_ns.div_ceil(times) / 1_000_000,
                };
                lock(&shell.members.history)
                    .observe(&plan::subject(known, receipt.tenant.0, &receipt.resources), &needed);
            }
            if receipts.iter().any(|receipt| !receipt.statement.outputs.is_empty())
                && let JobsAnswer::Agreements(agreements) = ask(shell, JobsQuery::Agreements).await?
            {
                self.agreements = agreements.into_iter().collect();
            }
            self.receipt = last;
        }
        Ok(())
    }

    /// What waits: the first in the order, and, by turns, those behind them, so that none is kept from its place by others before it that
    /// fit nowhere.
    async fn look_at_queue(&mut self, shell: &Shell) -> Result<Vec<QueuedJob>, MetaError> {
        let first = JobsQuery::Queue { tasks_max: TASKS_FIRST, per_job: FIRST_PER_JOB, after: None };
        let JobsAnswer::Queue(mut queue) = ask(shell, first).await? else { return Ok(Vec::new()) };
        let Some(last) = queue.last().map(|job| (job.priority, job.job)) else { return Ok(queue) };
        // Never among the first: those are looked at anyway. Higher priorities come first.
        let is_behind =
            |(priority, job): &(u8, JobId)| (u8::MAX - priority, *job) >= (u8::MAX - last.0, last.1);
        let after = Some(self.looked_at.filter(is_behind).unwrap_or(last));
        let next = JobsQuery::Queue { tasks_max: TASKS_NEXT, per_job: NEXT_PER_JOB, after };
        let JobsAnswer::Queue(next) = ask(shell, next).await? else { return Ok(queue) };
        self.looked_at = next.last().map(|job| (job.priority, job.job));
        queue.extend(next);
        Ok(queue)
    }

    /// Has the facts remember what machines offer, where that is not what they say.
    async fn note_machines(
        &mut self,
        shell: &Shell,
        heard: &HashMap<NodeId, Heard>,
    ) -> Result<(), MetaError> {
        if self.machines.is_none() {
            let JobsAnswer::Machines(machines) = ask(shell, JobsQuery::Machines).await? else {
                return Ok(());
            };
            self.machines = Some(machines.into_iter().map(|machine| (machine.node, machine)).collect());
        }
        let Some(known) = &mut self.machines else { return Ok(()) };
        let offers = heard.iter().filter_map(|(node, heard)| Some((*node, heard.compute.as_ref()?)));
        let changed = offers.map(|(node, offer)| machine(node, offer));
        let changed = changed.filter(|now| known.get(&now.node).is_none_or(|then| !is_like(then, now)));
        let changed: Vec<Machine> = changed.take(MACHINES_MAX).collect();
        if !changed.is_empty() {
            let command = JobsCommand::NoteMachines { machines: changed.clone() };
            shell.facts.propose(Command::Jobs(command)).await?;
            known.extend(changed.into_iter().map(|machine| (machine.node, machine)));
        }
        Ok(())
    }

    /// Learns what these jobs run; some of them at a time.
    async fn ask_for(&mut self, shell: &Shell, jobs: impl Iterator<Item = JobId>) -> Result<(), MetaError> {
        let unknown: BTreeSet<JobId> = jobs.filter(|job| !self.known.contains_key(job)).collect();
        for id in unknown.into_iter().take(JOBS_ASKED_MAX) {
            let known = match ask(shell, JobsQuery::Job { tenant: None, job: id }).await {
                Ok(JobsAnswer::Job(job, _)) => {
                    let known = known(job.tenant, &job.spec);
                    if is_small(&job.spec) {
                        self.specs.insert(id, (job.tenant, job.spec));
                    }
                    known
                }
                Ok(_) | Err(MetaError::Refused(_)) => Known::default(),
                Err(error) => return Err(error),
            };
            self.known.insert(id, known);
        }
        while self.known.len() > KNOWN_MAX {
            self.known.pop_first();
        }
        while self.specs.len() > SPECS_MAX {
            self.specs.pop_first();
        }
        Ok(())
    }

    /// What nodes are told of these jobs, as far as it is at hand or soon is.
    async fn specs_of(
        &self,
        shell: &Shell,
        jobs: impl Iterator<Item = JobId>,
    ) -> BTreeMap<JobId, (TenantId, JobSpec)> {
        let (mut specs, mut asked) = (BTreeMap::new(), 0);
        for id in jobs.collect::<BTreeSet<_>>() {
            if let Some(found) = self.specs.get(&id) {
                specs.insert(id, found.clone());
            } else if asked < SPECS_ASKED_MAX {
                asked += 1;
                if let Ok(JobsAnswer::Job(job, _)) =
                    ask(shell, JobsQuery::Job { tenant: None, job: id }).await
                    && is_small(&job.spec)
                {
                    specs.insert(id, (job.tenant, job.spec));
                }
            }
        }
        specs
    }
}

fn is_small(spec: &JobSpec) -> bool {
    encode(spec).is_ok_and(|bytes| bytes.len() <= SPEC_BYTES_MAX)
}

/// What the scheduler must know of a specification.
fn known(tenant: TenantId, spec: &JobSpec) -> Known {
    let bytes = encode(&spec.work).unwrap_or_default();
    let work = blake3::hash(&bytes).as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    Known::of(work, tenant, spec)
}

fn machine(node: NodeId, offer: &Inventory) -> Machine {
    let gpu = |gpu: &Gpu| MachineGpu {
        model: gpu.model.clone(),
        memory_mib: gpu.memory_mib,
        level_max: gpu.level_max,
        has_shadow: gpu.has_shadow,
    };
    Machine {
        node,
        cpu_millis: offer.cpu_millis,
        memory_bytes: offer.memory_bytes,
        scratch_bytes: offer.scratch_bytes,
        gpus: offer.gpus.iter().take(GPUS_MAX).map(gpu).collect(),
    }
}

/// Whether a machine is as it was, but for what is free on its disk: that is always on the move, and counts once it is another half.
fn is_like(then: &Machine, now: &Machine) -> bool {
    let is_near = now.scratch_bytes / 2 <= then.scratch_bytes && then.scratch_bytes / 2 <= now.scratch_bytes;
    is_near && Machine { scratch_bytes: then.scratch_bytes, ..now.clone() } == *then
}

/// What a machine that is not heard now offered when it was.
#[must_use]
pub fn offer_of(machine: &Machine) -> Inventory {
    let gpu = |gpu: &MachineGpu| Gpu {
        model: gpu.model.clone(),
        memory_mib: gpu.memory_mib,
        level_max: gpu.level_max,
        has_shadow: gpu.has_shadow,
        ..Gpu::default()
    };
    Inventory {
        cpu_millis: machine.cpu_millis,
        memory_bytes: machine.memory_bytes,
        scratch_bytes: machine.scratch_bytes,
        gpus: machine.gpus.iter().map(gpu).collect(),
        ..Inventory::default()
    }
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
    let about = known(tenant, &spec);
    let times = u64::from(about.per_task.unwrap_or(1));
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
    if let Some(found) = history.predict(&plan::subject(&about, tenant.0, &spec.resources)) {
        capacity.median_ms = found.runtime_ms.median.saturating_mul(times).min(spec.time_limit_ms);
        capacity.p90_ms = found.runtime_ms.p90.saturating_mul(times).min(spec.time_limit_ms);
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
        agreements: &BTreeMap::new(),
        has_reruns: false,
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
    let (mut looked_at, mut took) = (clock::instant(), GATHER_MIN);
    loop {
        let is_hint = tokio::select! {
            () = shell.members.jobs_changed.notified() => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
            () = shell.stop.cancelled() => return,
        };
        if !shell.is_leader() {
            if !silent_since.is_empty() || memory.receipt > 0 {
                metrics::gauge!(names::GPU_RUNTIME_WAITING_TASKS).set(0.0);
                metrics::gauge!(names::GPU_RUNTIME_RUNNING_ATTEMPTS).set(0.0);
            }
            silent_since.clear();
            memory = Memory::default();
            *lock(&shell.members.history) = History::default();
            if is_hint && let Some(leader) = shell.members.leader().filter(|leader| *leader != shell.id) {
                wake(&shell, leader, bytes::Bytes::new());
            }
            continue;
        }
        if is_hint {
            tokio::time::sleep(took.clamp(GATHER_MIN, GATHER_MAX).saturating_sub(looked_at.elapsed())).await;
        }
        let begun = clock::instant();
        if let Err(error) = step(&shell, &mut silent_since, &mut memory).await {
            tracing::debug!(%error, "nothing was scheduled; trying again");
        }
        (looked_at, took) = (clock::instant(), begun.elapsed());
        if forgotten_at.elapsed() > FORGET_EVERY {
            forgotten_at = clock::instant();
            let before_ms = clock::now().0.saturating_sub(HISTORY_MS);
            if let Err(error) = shell.facts.propose(Command::Jobs(JobsCommand::Forget { before_ms })).await {
                tracing::debug!(%error, "old jobs stay");
            }
        }
    }
}

/// Tells another node that jobs have changed, and what of it is told, without waiting for it.
fn wake(shell: &Shell, node: NodeId, told: bytes::Bytes) {
    let transport = shell.transport.clone();
    tokio::spawn(async move {
        // A hint that is lost costs a second.
        let _ = transport.request(node, WAKE, told, WAKE_TIMEOUT).await;
    });
}

async fn ask(shell: &Shell, query: JobsQuery) -> Result<JobsAnswer, MetaError> {
    match shell.here.query(Query::Jobs(query)).await? {
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
    let queue = memory.look_at_queue(shell).await?;
    let waiting: usize = queue.iter().map(|job| job.tasks.len()).sum();
    metrics::gauge!(names::GPU_RUNTIME_WAITING_TASKS).set(waiting as f64);
    metrics::gauge!(names::GPU_RUNTIME_RUNNING_ATTEMPTS).set(active.len() as f64);
    memory.learn(shell).await?;
    memory.note_machines(shell, &heard).await?;
    // With nothing in the queue, what runs may still be late.
    if queue.is_empty() && active.is_empty() {
        shell.members.explained.settle();
        return Ok(());
    }
    let jobs: BTreeSet<JobId> =
        queue.iter().map(|job| job.job).chain(active.iter().map(|attempt| attempt.attempt.job)).collect();
    memory.ask_for(shell, jobs.iter().copied()).await?;
    let looked_at: BTreeSet<JobId> = queue.iter().map(|job| job.job).collect();
    let offers: HashMap<NodeId, Inventory> =
        heard.into_iter().filter_map(|(node, heard)| Some((node, heard.compute?))).collect();
    let known = |job: JobId| Some((job, memory.known.get(&job)?.clone()));
    let known: BTreeMap<JobId, Known> = jobs.into_iter().filter_map(known).collect();
    let history = Arc::clone(&shell.members.history);
    let (ends, agreements) = (memory.ends.clone(), memory.agreements.clone());
    if !memory.has_reruns {
        let accounts = reading::state(&*shell.here).await.unwrap_or_default();
        memory.has_reruns = accounts.is_some_and(|state| state.genesis.rules >= RULES_PLEDGES);
    }
    let has_reruns = memory.has_reruns;
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
            agreements: &agreements,
            has_reruns,
            now_ms,
        };
        plan::plan(&facts)
    };
    let Ok(planned) = tokio::task::spawn_blocking(planning).await else { return Ok(()) };
    let Planned { preempted, assignments, why } = planned;
    shell.members.explained.explain(why, &looked_at);
    if !preempted.is_empty() {
        tracing::info!(attempts = preempted.len(), "attempts make room for what is worth more");
        shell.facts.propose(Command::Jobs(JobsCommand::Lose { attempts: preempted })).await?;
    }
    if assignments.is_empty() {
        return Ok(());
    }
    let command = JobsCommand::Assign { assignments: assignments.clone() };
    let assigned = match shell.facts.propose(Command::Jobs(command)).await? {
        Reply::Jobs(JobsReply::Assigned(assigned)) => assigned,
        other => {
            tracing::debug!(?other, "the facts answered something else");
            Vec::new()
        }
    };
    tracing::debug!(count = assigned.len(), "assigned");
    let specs = memory.specs_of(shell, assigned.iter().map(|attempt| attempt.job)).await;
    for (node, told) in told(&assignments, &assigned, &specs) {
        match shell.members.agent() {
            Some(agent) if node == shell.id && told.is_empty() => agent.wake(),
            Some(agent) if node == shell.id => agent.tell(told),
            _ => {
                wake(shell, node, if told.is_empty() { None } else { encode(&told).ok() }.unwrap_or_default())
            }
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
