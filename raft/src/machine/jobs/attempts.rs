//! Assignment, start, result and loss of attempts.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use makai_erasure::NodeId;

use super::super::accounts::billing::{self, Ended};
use super::super::accounts::quorum_rules;
use super::super::draft::{Draft, Outcome, all, expect, read, shift};
use super::super::keys::Counter;
use super::super::kv::{KvError, View};
use super::super::{buckets, objects};
use super::quorum::{self, Decision};
use super::{Active, Waiting, find, keys, settle_job, twins};
use crate::facts::Timestamp;
use crate::facts::command::{NewContent, Precondition, Refusal, Reply};
use crate::facts::jobs::{
    Assignment, AttemptId, BACKOFF_MS_MAX, End, GPUS_MAX, HISTORY_MAX, Job, JobId, JobPhase, JobState,
    JobsReply, LOSSES_MAX, NewOutput, OUTPUT_OBJECTS_MAX, PastAttempt, PastUse, Receipt, Resources,
    Statement, TEXT_BYTES_MAX, Task, TaskPhase, Twin, Usage, Verdict, log_bucket, log_key,
};
use crate::facts::object::ObjectHeaders;

/// Assignments, and losses, in one command.
const AT_ONCE_MAX: usize = 10_000;

fn check_count(count: usize) -> Result<(), Refusal> {
    if count > AT_ONCE_MAX {
        return Err(Refusal::Invalid(format!("{count} attempts in one command; at most {AT_ONCE_MAX}")));
    }
    Ok(())
}

/// Jobs that a command touches, each read once and written once.
#[derive(Default)]
struct Touched {
    jobs: BTreeMap<JobId, Option<(Job, JobState)>>,
}

impl Touched {
    fn get(&mut self, draft: &Draft<'_>, id: JobId) -> Result<Option<&mut (Job, JobState)>, KvError> {
        if let std::collections::btree_map::Entry::Vacant(place) = self.jobs.entry(id) {
            let found = match read(draft, &keys::job(id))? {
                Some(job) => Some((job, expect(draft, &keys::state(id))?)),
                None => None,
            };
            place.insert(found);
        }
        Ok(self.jobs.get_mut(&id).and_then(Option::as_mut))
    }

    fn settle(self, draft: &mut Draft<'_>) -> Result<(), KvError> {
        for (job, state) in self.jobs.into_values().flatten() {
            settle_job(draft, &job, state)?;
        }
        Ok(())
    }
}

pub fn assign(draft: &mut Draft<'_>, assignments: &[Assignment]) -> Outcome<Reply> {
    check_count(assignments.len())?;
    let mut touched = Touched::default();
    let mut assigned = Vec::new();
    let gangs = admit_gangs(draft, &mut touched, assignments)?;
    let mut too_dear = BTreeSet::new();
    for assignment in in_order(assignments, &gangs) {
        let Assignment { job: id, index, node, gpus, is_twin } = assignment;
        if gpus.len() > GPUS_MAX || gpus.iter().any(|uuid| uuid.len() > TEXT_BYTES_MAX) {
            return Err(Refusal::Invalid(format!("an attempt has at most {GPUS_MAX} cards")).into());
        }
        let Some((job, state)) = touched.get(draft, *id)? else { continue };
        if *is_twin {
            assigned.extend(twins::begin(draft, assignment)?);
            continue;
        }
        let queued = keys::queued(job.spec.priority, *id, *index);
        let is_waiting =
            draft.get(&queued)?.is_some() || (*index == state.next_index && *index < job.spec.tasks);
        if !is_waiting || quorum::is_barred(draft, *id, *index, *node)? {
            continue;
        }
        let (resources, time_limit_ms) = held_by(draft, job, assignment)?;
        // Its first minutes are set aside of what its tenant paid in; where that is too little it waits.
        if job.spec.is_gang {
            if !gangs.contains(id) {
                continue;
            }
        } else if !billing::is_within_price(draft, job, 1)? {
            too_dear.insert(*id);
            continue;
        } else if !billing::admit(draft, job, *index, *node, resources.clone())? {
            continue;
        }
        let mut task = if draft.get(&queued)?.is_some() {
            draft.delete(queued);
            expect(draft, &keys::task(*id, *index))?
        } else if *index == state.next_index
            && *index < job.spec.tasks
            && draft.get(&keys::queued(job.spec.priority, *id, keys::FRESH))?.is_some()
        {
            // Tasks that were never tried go in order, and none of a job that waits for others.
            state.next_index += 1;
            if state.next_index == job.spec.tasks {
                draft.delete(keys::queued(job.spec.priority, *id, keys::FRESH));
            }
            Task::new(*index, draft.now)
        } else {
            continue;
        };
        state.counts.pending = state.counts.pending.saturating_sub(1);
        state.counts.active += 1;
        state.phase = JobPhase::Running;
        task.phase = TaskPhase::Assigned;
        task.attempt = task.next_attempt();
        task.node = Some(*node);
        (task.assigned_at, task.changed_at) = (draft.now, draft.now);
        let active = Active {
            attempt: task.attempt,
            is_running: false,
            assigned_at: draft.now,
            time_limit_ms,
            resources,
            tenant: job.tenant.0,
            priority: job.spec.priority,
            gpus: gpus.clone(),
        };
        draft.write(keys::active_task(node, *id, *index), &active)?;
        draft.write(keys::task(*id, *index), &task)?;
        assigned.push(AttemptId { job: *id, index: *index, attempt: task.attempt });
    }
    touched.settle(draft)?;
    for id in too_dear {
        // What still runs may end it well.
        let state: JobState = expect(draft, &keys::state(id))?;
        if state.counts.active == 0 && !state.phase.is_over() {
            super::end_job(draft, id, super::PRICE_REACHED)?;
        }
    }
    Ok(Reply::Jobs(JobsReply::Assigned(assigned)))
}

/// What an attempt holds of its node, and for how long at most: what the job asks for; but a processor's, where it is given no
/// card and runs again what another node's card ran.
fn held_by(draft: &Draft<'_>, job: &Job, assignment: &Assignment) -> Result<(Resources, u64), KvError> {
    let Assignment { job: id, index, gpus, .. } = assignment;
    if let Some(on_processor) = job.spec.on_processor().filter(|_| gpus.is_empty() && job.spec.quorum > 1)
        && quorum_rules(draft)?.has_reruns
        && !quorum::voters(draft, *id, *index)?.is_empty()
    {
        return Ok((on_processor, job.spec.time_on_processor_ms()));
    }
    Ok((job.spec.resources.clone(), job.spec.time_limit_ms))
}

/// Assignments as they are to be made: tasks of a gang one after the other, as those that were never tried go in order.
fn in_order<'a>(assignments: &'a [Assignment], gangs: &BTreeSet<JobId>) -> Vec<&'a Assignment> {
    let (mut ordered, mut done) = (Vec::with_capacity(assignments.len()), BTreeSet::new());
    for assignment in assignments {
        if !gangs.contains(&assignment.job) {
            ordered.push(assignment);
        } else if done.insert(assignment.job) {
            let its = assignments.iter().filter(|other| other.job == assignment.job);
            // The last that is said of a task holds, as it did when it was paid for.
            ordered.extend(its.map(|its| (its.index, its)).collect::<BTreeMap<_, _>>().into_values());
        }
    }
    ordered
}

/// Gangs all of whose tasks are assigned, and the first minutes of all of whom can be paid together: those are set aside. Of a gang
/// that is not among them no task begins.
fn admit_gangs(
    draft: &mut Draft<'_>,
    touched: &mut Touched,
    assignments: &[Assignment],
) -> Outcome<BTreeSet<JobId>> {
    let mut by_job: BTreeMap<JobId, BTreeMap<u32, NodeId>> = BTreeMap::new();
    for assignment in assignments {
        by_job.entry(assignment.job).or_default().insert(assignment.index, assignment.node);
    }
    let mut admitted = BTreeSet::new();
    for (id, tasks) in by_job {
        let Some((job, state)) = touched.get(draft, id)? else { continue };
        if !job.spec.is_gang || tasks.len() != state.counts.pending as usize {
            continue;
        }
        let (priority, next) = (job.spec.priority, state.next_index);
        let mut are_all_waiting = true;
        for index in tasks.keys() {
            are_all_waiting &= *index >= next || draft.get(&keys::queued(priority, id, *index))?.is_some();
        }
        let count = tasks.len() as u64;
        if !are_all_waiting
            || !billing::is_within_price(draft, job, count)?
            || !billing::may_admit(draft, job, count)?
        {
            continue;
        }
        for (index, node) in tasks {
            billing::admit(draft, job, index, node, job.spec.resources.clone())?;
        }
        admitted.insert(id);
    }
    Ok(admitted)
}

/// The task, if this attempt is current and, where a node is given, that node's.
fn current(draft: &Draft<'_>, attempt: AttemptId, node: Option<NodeId>) -> Result<Option<Task>, KvError> {
    let task: Option<Task> = read(draft, &keys::task(attempt.job, attempt.index))?;
    Ok(task.filter(|task| {
        let is_first = task.attempt == attempt.attempt && (node.is_none() || task.node == node);
        let is_its =
            |twin: &Twin| twin.attempt == attempt.attempt && node.is_none_or(|node| node == twin.node);
        task.phase.is_active() && (is_first || task.twin.as_ref().is_some_and(is_its))
    }))
}

pub fn start(draft: &mut Draft<'_>, node: NodeId, attempts: &[AttemptId]) -> Outcome<Reply> {
    check_count(attempts.len())?;
    let mut touched = Touched::default();
    for attempt in attempts {
        let Some(mut task) = current(draft, *attempt, Some(node))? else { continue };
        if twins::start(draft, &task, *attempt)? || task.phase == TaskPhase::Running {
            continue;
        }
        task.phase = TaskPhase::Running;
        task.changed_at = draft.now;
        let place = keys::active_task(&node, attempt.job, attempt.index);
        let active = Active { is_running: true, ..expect(draft, &place)? };
        draft.write(place, &active)?;
        draft.write(keys::task(attempt.job, attempt.index), &task)?;
        let now = draft.now;
        if let Some((_, state)) = touched.get(draft, attempt.job)? {
            state.started_at.get_or_insert(now);
        }
    }
    touched.settle(draft)?;
    Ok(Reply::Done)
}

pub fn finish(
    draft: &mut Draft<'_>,
    statement: &Statement,
    signature: &Bytes,
    outputs: &[NewOutput],
    log: Option<&NewContent>,
) -> Outcome<Reply> {
    let Statement { attempt, node, end, .. } = statement;
    let Some(mut task) = current(draft, *attempt, Some(*node))? else {
        // A repeat of a report that counted is answered as the first was.
        let task: Option<Task> = read(draft, &keys::task(attempt.job, attempt.index))?;
        let has_counted = task.is_some_and(|task| {
            task.history.iter().any(|past| {
                past.attempt == attempt.attempt && past.node == *node && is_end_of(&past.end, end)
            })
        });
        return if has_counted { Ok(Reply::Done) } else { Err(Refusal::StaleAttempt(*attempt).into()) };
    };
    let is_success = end.verdict() == Verdict::Success;
    check_statement(statement, signature, outputs, is_success)?;
    let (job, mut state) = find(draft, attempt.job)?;
    let decision = match is_success && job.spec.quorum > 1 {
        true => quorum::take(draft, &job, statement)?,
        false => Decision::Accepted,
    };
    let is_published = matches!(decision, Decision::Accepted | Decision::Forfeited);
    for NewOutput { to, new } in outputs.iter().filter(|_| is_published) {
        let (headers, any) = (ObjectHeaders::default(), Precondition::default());
        objects::put(draft, &to.bucket, &to.key, &headers, new, &any)?;
    }
    if let Some(log) = log {
        let bucket = log_bucket(job.tenant);
        if let Some((old, _)) = task.log {
            let key = log_key(AttemptId { attempt: old, ..*attempt });
            objects::delete(draft, &bucket, &key, &Precondition::default())?;
        }
        buckets::ensure_hidden(draft, &bucket, job.tenant)?;
        let (headers, any) = (ObjectHeaders::default(), Precondition::default());
        objects::put(draft, &bucket, &log_key(*attempt), &headers, log, &any)?;
        task.log = Some((attempt.attempt, log.size));
    }
    let held: Option<Active> = read(draft, &keys::active_task(node, attempt.job, attempt.index))?;
    let receipt = Receipt {
        sequence: draft.next(Counter::Receipt)?,
        at: draft.now,
        tenant: job.tenant,
        resources: held.map_or_else(|| job.spec.resources.clone(), |held| held.resources),
        assigned_at: task
            .twin
            .filter(|twin| twin.attempt == attempt.attempt)
            .map_or(task.assigned_at, |twin| twin.assigned_at),
        statement: statement.clone(),
        signature: signature.clone(),
    };
    draft.write(keys::receipt(receipt.sequence), &receipt)?;
    task.receipt = receipt.sequence;
    let Usage { wall_ms, cpu_ms, memory_peak_bytes, gpu_busy_ns, gpu_level, .. } = statement.usage;
    let used = Some(PastUse { wall_ms, cpu_ms, memory_peak_bytes, gpu_busy_ns, gpu_level });
    match decision {
        Decision::Waits => wait_for_others(draft, &job, &mut state, task, used)?,
        Decision::Undecided => {
            let why = "nodes came to different outputs, and no majority to one".to_owned();
            end_attempt(draft, &job, &mut state, task, End::Refused { why }, used)?;
        }
        Decision::Accepted | Decision::Forfeited => {
            if decision == Decision::Forfeited {
                // The customer has its result and pays for it; its node is not paid.
                billing::ended(draft, attempt.job, attempt.index, Ended::Undecided)?;
            }
            if !twins::settle(draft, &job, &mut task, attempt.attempt, end, used)? {
                end_attempt(draft, &job, &mut state, task, end.clone(), used)?;
            }
        }
    }
    if !is_success && job.spec.is_gang {
        end_gang(draft, &job, &mut state, attempt.index)?;
    }
    settle_job(draft, &job, state)?;
    Ok(Reply::Done)
}

/// Whether what is remembered of an attempt came of this end. A success with which nobody agreed is remembered as refused.
fn is_end_of(remembered: &End, said: &End) -> bool {
    remembered == said || (said.verdict() == Verdict::Success && matches!(remembered, End::Refused { .. }))
}

fn check_statement(
    statement: &Statement,
    signature: &Bytes,
    outputs: &[NewOutput],
    is_success: bool,
) -> Result<(), Refusal> {
    let invalid = |why: String| Err(Refusal::Invalid(why));
    if outputs.len() > OUTPUT_OBJECTS_MAX || statement.outputs.len() != outputs.len() {
        return invalid(format!(
            "a task publishes at most {OUTPUT_OBJECTS_MAX} objects, and states each of them"
        ));
    }
    if !is_success && !outputs.is_empty() {
        return invalid("only a task that succeeded publishes".into());
    }
    let agree = statement.outputs.iter().zip(outputs).all(|(said, output)| {
        said.bucket == output.to.bucket && said.key == output.to.key && said.size == output.new.size
    });
    if !agree {
        return invalid("what is published differs from what is stated".into());
    }
    let why_bytes = match &statement.end {
        End::Faulted { why } | End::Refused { why } | End::Failed { why } | End::Lost { why } => why.len(),
        _ => 0,
    };
    if why_bytes > TEXT_BYTES_MAX || signature.len() > TEXT_BYTES_MAX {
        return invalid(format!("a reason and a signature have at most {TEXT_BYTES_MAX} bytes"));
    }
    Ok(())
}

pub fn lose(draft: &mut Draft<'_>, attempts: &[(AttemptId, String)]) -> Outcome<Reply> {
    check_count(attempts.len())?;
    let mut touched = Touched::default();
    for (attempt, why) in attempts {
        let Some(mut task) = current(draft, *attempt, None)? else { continue };
        let end = End::Lost { why: why.chars().take(TEXT_BYTES_MAX / 4).collect() };
        touched.get(draft, attempt.job)?;
        if let Some((job, state)) = touched.jobs.get_mut(&attempt.job).and_then(Option::as_mut) {
            if !twins::settle(draft, job, &mut task, attempt.attempt, &end, None)? {
                end_attempt(draft, job, state, task, end, None)?;
            }
            if job.spec.is_gang {
                end_gang(draft, job, state, attempt.index)?;
            }
        }
    }
    touched.settle(draft)?;
    Ok(Reply::Done)
}

/// The current attempt is over and its result waits for others': the task waits for a node of another owner.
fn wait_for_others(
    draft: &mut Draft<'_>,
    job: &Job,
    state: &mut JobState,
    mut task: Task,
    used: Option<PastUse>,
) -> Result<(), KvError> {
    let node = task.node.unwrap_or(NodeId([0; 32]));
    draft.delete(keys::active_task(&node, job.id, task.index));
    billing::ended(draft, job.id, task.index, Ended::Undecided)?;
    state.counts.active =
        u32::try_from(shift(state.counts.active.into(), 0, 1, "active tasks")?).unwrap_or(0);
    state.counts.pending += 1;
    task.phase = TaskPhase::Pending;
    let waiting = Waiting { not_before: draft.now, last_node: None };
    draft.write(keys::queued(job.spec.priority, job.id, task.index), &waiting)?;
    remember(draft, &mut task, node, End::Exited { code: 0 }, used);
    draft.write(keys::task(job.id, task.index), &task)
}

/// Adds an end to what a task remembers.
fn remember(draft: &Draft<'_>, task: &mut Task, node: NodeId, end: End, used: Option<PastUse>) {
    task.changed_at = draft.now;
    if task.history.len() == HISTORY_MAX {
        task.history.remove(0);
    }
    task.history.push(PastAttempt {
        attempt: task.attempt,
        node,
        assigned_at: task.assigned_at,
        ended_at: draft.now,
        end,
        used,
    });
}

/// The current attempt is over: the task has ended with it, or waits for another.
fn end_attempt(
    draft: &mut Draft<'_>,
    job: &Job,
    state: &mut JobState,
    mut task: Task,
    end: End,
    used: Option<PastUse>,
) -> Result<(), KvError> {
    let node = task.node.unwrap_or(NodeId([0; 32]));
    draft.delete(keys::active_task(&node, job.id, task.index));
    let how = match end.verdict() {
        Verdict::Loss => Ended::Lost,
        // Outputs that nobody agreed with are nobody's earning.
        Verdict::Hopeless if job.spec.quorum > 1 => Ended::Undecided,
        _ => Ended::ByItself,
    };
    billing::ended(draft, job.id, task.index, how)?;
    let counts = &mut state.counts;
    counts.active = u32::try_from(shift(counts.active.into(), 0, 1, "active tasks")?).unwrap_or(0);
    let verdict = end.verdict();
    match verdict {
        Verdict::Failure => task.failures += 1,
        Verdict::Loss => task.losses += 1,
        Verdict::Success | Verdict::Hopeless => {}
    }
    let is_retried = match verdict {
        Verdict::Failure => task.failures < job.spec.attempts_max,
        Verdict::Loss => task.losses < LOSSES_MAX,
        Verdict::Success | Verdict::Hopeless => false,
    };
    if verdict == Verdict::Success {
        task.phase = TaskPhase::Succeeded;
        counts.succeeded += 1;
    } else if is_retried {
        task.phase = TaskPhase::Pending;
        counts.pending += 1;
        let waiting =
            Waiting { not_before: not_before(draft.now, job, &task, verdict), last_node: Some(node) };
        draft.write(keys::queued(job.spec.priority, job.id, task.index), &waiting)?;
    } else {
        task.phase = TaskPhase::Failed;
        counts.failed += 1;
        if state.reason.is_empty() {
            state.reason = format!("task {}: {end}", task.index);
        }
    }
    remember(draft, &mut task, node, end, used);
    draft.write(keys::task(job.id, task.index), &task)
}

/// An attempt at task `because_of` of a gang has ended badly: the others end too, to begin together again, or not at all
/// where that task may not be tried again.
fn end_gang(draft: &mut Draft<'_>, job: &Job, state: &mut JobState, because_of: u32) -> Result<(), KvError> {
    for task in all::<Task>(draft, &keys::tasks(job.id))? {
        if task.phase.is_active() {
            let end = End::Lost { why: format!("task {because_of} of its gang ended") };
            end_attempt(draft, job, state, task, end, None)?;
        }
    }
    if state.counts.failed == 0 {
        return Ok(());
    }
    draft.delete_all(&keys::queue_of(job.spec.priority, job.id))?;
    for mut task in all::<Task>(draft, &keys::tasks(job.id))? {
        if task.phase == TaskPhase::Pending {
            task.phase = TaskPhase::Cancelled;
            task.changed_at = draft.now;
            draft.write(keys::task(job.id, task.index), &task)?;
        }
    }
    state.counts.cancelled += state.counts.pending;
    state.counts.pending = 0;
    state.next_index = job.spec.tasks;
    Ok(())
}

/// A task that was lost goes on at once, the first time; one that failed waits, longer each time.
fn not_before(now: Timestamp, job: &Job, task: &Task, verdict: Verdict) -> Timestamp {
    let (first_ms, times) = match verdict {
        Verdict::Loss if task.losses < 2 => return now,
        Verdict::Loss => (500, task.losses - 2),
        _ => (job.spec.backoff_ms, task.failures.saturating_sub(1)),
    };
    let pause_ms = first_ms.saturating_mul(1 << times.min(30)).min(BACKOFF_MS_MAX);
    Timestamp(now.0.saturating_add(pause_ms))
}
