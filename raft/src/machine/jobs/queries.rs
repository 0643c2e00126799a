//! What can be asked about jobs.

use std::ops::ControlFlow;

use makai_erasure::NodeId;

use super::super::accounts::billing;
use super::super::draft::{Outcome, encode, expect, keys_in, read, scan_records};
use super::super::keys::{after, end_of};
use super::super::kv::{KvError, View};
use super::super::page;
use super::{Active, Waiting, find, keys, quorum};
use crate::facts::Timestamp;
use crate::facts::command::Refusal;
use crate::facts::jobs::{
    ActiveAttempt, AssignedTask, AttemptId, Job, JobId, JobState, JobsAnswer, JobsQuery, Machine, QueuedJob,
    QueuedTask, Receipt,
};
use crate::facts::tenant::TenantId;

/// Tasks in one answer about the queue.
const QUEUE_TASKS_MAX: usize = 10_000;
/// Attempts that a node is told of at once: the others wait until these have ended.
const ASSIGNMENTS_MAX: usize = 200;
/// Bytes of records in one answer: it ends early beyond, and the next one goes on.
const ANSWER_BYTES_MAX: usize = 2 << 20;

/// What a job came to, in millionths of a credit.
fn cost(view: &dyn View, job: JobId) -> Result<u64, KvError> {
    Ok(u64::try_from(billing::cost_of(view, job)?.0 / 1000).unwrap_or(u64::MAX))
}

pub fn answer(view: &dyn View, query: &JobsQuery) -> Outcome<JobsAnswer> {
    match query {
        JobsQuery::Job { tenant, job } => {
            let (job, mut state) = find(view, *job)?;
            state.cost = cost(view, job.id)?;
            if tenant.is_some_and(|tenant| tenant != job.tenant) {
                return Err(Refusal::NotFound(format!("job {}", job.id.0)).into());
            }
            Ok(JobsAnswer::Job(job, state))
        }
        JobsQuery::Jobs { tenant, before, entries_max } => {
            Ok(JobsAnswer::Jobs(list(view, *tenant, *before, page(*entries_max))?))
        }
        JobsQuery::Tasks { job, from_index, entries_max } => {
            let (from, to) = (keys::task(*job, *from_index), end_of(&keys::tasks(*job)));
            Ok(JobsAnswer::Tasks(take(view, &from, &to, page(*entries_max))?))
        }
        JobsQuery::Queue { tasks_max, per_job, after } => {
            let most = (*tasks_max as usize).min(QUEUE_TASKS_MAX);
            Ok(JobsAnswer::Queue(queue(view, most, *per_job as usize, *after)?))
        }
        JobsQuery::Active => {
            let all = keys::active();
            Ok(JobsAnswer::Active(active(view, &all, usize::MAX)?))
        }
        JobsQuery::Assignments { node } => {
            let mut found = Vec::new();
            for entry in active(view, &keys::active_of(node), ASSIGNMENTS_MAX)? {
                found.push(assigned(view, &entry)?);
            }
            Ok(JobsAnswer::Assignments(found))
        }
        JobsQuery::Attempt { node, attempt } => {
            let record: Option<Active> = read(view, &keys::active_task(node, attempt.job, attempt.index))?;
            let mut found = Vec::new();
            if let Some(record) = record.filter(|record| record.attempt == attempt.attempt) {
                found.push(assigned(view, &entry(*node, attempt.job, attempt.index, record))?);
            }
            Ok(JobsAnswer::Assignments(found))
        }
        JobsQuery::Due { now_ms } => {
            let (from, to) = keys::deadlines_until(Timestamp(*now_ms));
            let due = keys_in(view, &from, &to, page(u32::MAX))?;
            Ok(JobsAnswer::Due(due.iter().filter_map(|key| keys::parse_last_job(key)).collect()))
        }
        JobsQuery::Receipts { after: last, entries_max } => {
            let from = keys::receipt(last.saturating_add(1));
            let found: Vec<Receipt> = take(view, &from, &end_of(&keys::receipts()), page(*entries_max))?;
            Ok(JobsAnswer::Receipts(found))
        }
        JobsQuery::Submitted { tenant, client_token } => {
            Ok(JobsAnswer::Submitted(read(view, &keys::token(*tenant, client_token))?))
        }
        JobsQuery::Machines => {
            let (from, mut machines) = (keys::machines(), Vec::new());
            scan_records(view, &from, &end_of(&from), &mut |_, machine: Machine| {
                machines.push(machine);
                ControlFlow::Continue(())
            })?;
            Ok(JobsAnswer::Machines(machines))
        }
        JobsQuery::Agreements => {
            let (from, mut streaks) = (keys::all_agreements(), Vec::new());
            scan_records(view, &from, &end_of(&from), &mut |key, streak: u32| {
                streaks.extend(keys::parse_node(key).map(|node| (node, streak)));
                ControlFlow::Continue(())
            })?;
            Ok(JobsAnswer::Agreements(streaks))
        }
    }
}

fn take<T: serde::de::DeserializeOwned + serde::Serialize>(
    view: &dyn View,
    from: &[u8],
    to: &[u8],
    max: usize,
) -> Result<Vec<T>, KvError> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    if max > 0 {
        scan_records(view, from, to, &mut |_, record| {
            bytes += encode(&record).map_or(ANSWER_BYTES_MAX, |bytes| bytes.len());
            found.push(record);
            if found.len() < max && bytes < ANSWER_BYTES_MAX {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
    }
    Ok(found)
}

/// Newest first. Ids grow, so the newest lie at the end: windows of ids are looked through from there.
fn list(
    view: &dyn View,
    tenant: TenantId,
    before: Option<JobId>,
    max: usize,
) -> Outcome<Vec<(Job, JobState)>> {
    let owned = keys::tenant_jobs(tenant);
    let mut to = before.map_or_else(|| end_of(&owned), |before| keys::tenant_job(tenant, before));
    let newest = newest_job(view)?;
    let mut high =
        before.map_or(newest.0.saturating_add(1), |before| before.0.min(newest.0.saturating_add(1)));
    let mut width = (max as u64).max(16);
    let (mut found, mut bytes) = (Vec::new(), 0);
    while found.len() < max && high > 0 && bytes < ANSWER_BYTES_MAX {
        let low = high.saturating_sub(width);
        let from = keys::tenant_job(tenant, JobId(low));
        let ids = keys_in(view, &from, &to, usize::MAX)?;
        for id in ids.iter().rev().filter_map(|key| keys::parse_last_job(key)).take(max - found.len()) {
            let (job, mut state) = find(view, id)?;
            state.cost = cost(view, id)?;
            found.push((job, state));
            bytes += found.last().map_or(Ok(0), |(job, _)| encode(job).map(|bytes| bytes.len()))?;
            if bytes >= ANSWER_BYTES_MAX {
                break;
            }
        }
        (to, high) = (from, low);
        width = width.saturating_mul(2);
    }
    Ok(found)
}

fn newest_job(view: &dyn View) -> Result<JobId, KvError> {
    let counter = super::super::keys::counter(super::super::keys::Counter::Job);
    Ok(JobId(read(view, &counter)?.unwrap_or(0)))
}

fn entry(node: NodeId, job: JobId, index: u32, record: Active) -> ActiveAttempt {
    ActiveAttempt {
        node,
        attempt: AttemptId { job, index, attempt: record.attempt },
        is_running: record.is_running,
        assigned_at: record.assigned_at,
        time_limit_ms: record.time_limit_ms,
        resources: record.resources,
        tenant: TenantId(record.tenant),
        priority: record.priority,
        gpus: record.gpus,
    }
}

fn active(view: &dyn View, prefix: &[u8], max: usize) -> Result<Vec<ActiveAttempt>, KvError> {
    let mut found = Vec::new();
    scan_records(view, prefix, &end_of(prefix), &mut |key, record: Active| {
        let node = key.get(1..33).and_then(|id| <[u8; 32]>::try_from(id).ok()).map(NodeId);
        let job = key.get(33..41).and_then(|id| id.try_into().ok()).map(u64::from_be_bytes);
        let index = key.get(41..45).and_then(|index| index.try_into().ok()).map(u32::from_be_bytes);
        if let (Some(node), Some(job), Some(index)) = (node, job, index) {
            found.push(entry(node, JobId(job), index, record));
        }
        if found.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(found)
}

fn assigned(view: &dyn View, entry: &ActiveAttempt) -> Outcome<AssignedTask> {
    let job: Job = expect(view, &keys::job(entry.attempt.job))?;
    Ok(AssignedTask {
        attempt: entry.attempt,
        tenant: job.tenant,
        is_running: entry.is_running,
        spec: job.spec,
        gpus: entry.gpus.clone(),
    })
}

/// What waits, by priority, then by age; tasks never tried behind those that wait again. A large job does not hide those behind it:
/// of each, `per_job` tasks are taken at first, and more of the first ones where there is room then.
fn queue(
    view: &dyn View,
    max: usize,
    per_job: usize,
    after_job: Option<(u8, JobId)>,
) -> Outcome<Vec<QueuedJob>> {
    let mut jobs: Vec<QueuedJob> = Vec::new();
    let mut left = max;
    // Jobs of which not all is taken: where the next of their tasks is.
    let mut cut: Vec<(usize, Place)> = Vec::new();
    let (mut from, to) = (keys::queue(), end_of(&keys::queue()));
    if let Some((priority, job)) = after_job {
        from = end_of(&keys::queue_of(priority, job));
    }
    while left > 0 {
        let Some(first) = keys_in(view, &from, &to, 1)?.pop() else { break };
        let Some((id, _)) = keys::parse_queued(&first) else { break };
        let job: Job = expect(view, &keys::job(id))?;
        let all = keys::queue_of(job.spec.priority, id);
        from = end_of(&all);
        // Of a tenant whose balance is used up: it must not stand before others.
        if billing::waits(view, &job)? {
            continue;
        }
        let state: JobState = expect(view, &keys::state(id))?;
        // A gang is of use as a whole alone.
        let gang_tasks = if job.spec.is_gang { state.counts.pending } else { 0 };
        let most = if per_job == 0 { left } else { per_job.max(gang_tasks as usize).min(left) };
        let mut queued = QueuedJob { gang_tasks, ..describe(job) };
        let place = Place { key: all, fresh: state.next_index };
        if let Some(rest) = take_tasks(view, &mut queued, place, most)? {
            cut.push((jobs.len(), rest));
        }
        left -= queued.tasks.len();
        jobs.push(queued);
    }
    for (at, place) in cut {
        if left == 0 {
            break;
        }
        let before = jobs[at].tasks.len();
        take_tasks(view, &mut jobs[at], place, left)?;
        left -= jobs[at].tasks.len() - before;
    }
    Ok(jobs)
}

/// How far the tasks of a job are taken.
struct Place {
    key: Vec<u8>,
    /// The next of those that were never tried.
    fresh: u32,
}

/// Takes up to `most` further tasks of a job; answers where the others are.
fn take_tasks(
    view: &dyn View,
    queued: &mut QueuedJob,
    mut place: Place,
    most: usize,
) -> Outcome<Option<Place>> {
    let to = end_of(&keys::queue_of(queued.priority, queued.job));
    let enough = queued.tasks.len() + most;
    let mut entries = Vec::new();
    scan_records(view, &place.key, &to, &mut |key, waiting: Waiting| {
        entries.push((key.to_vec(), waiting));
        if entries.len() <= most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    for (key, waiting) in entries {
        if queued.tasks.len() == enough {
            return Ok(Some(place));
        }
        let Some((id, index)) = keys::parse_queued(&key) else { continue };
        if index != keys::FRESH {
            queued.tasks.push(QueuedTask {
                index,
                not_before: waiting.not_before,
                last_node: waiting.last_node,
                barred: quorum::voters(view, id, index)?,
            });
            place.key = after(&key);
            continue;
        }
        let tasks: u32 = expect::<Job>(view, &keys::job(id))?.spec.tasks;
        let fresh = (place.fresh..tasks).take(enough - queued.tasks.len());
        queued.tasks.extend(fresh.map(|index| QueuedTask {
            index,
            not_before: Timestamp(0),
            last_node: None,
            barred: Vec::new(),
        }));
        place.key = key;
        place.fresh = queued.tasks.last().map_or(place.fresh, |task| task.index + 1);
        if place.fresh < tasks {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

fn describe(job: Job) -> QueuedJob {
    QueuedJob {
        job: job.id,
        tenant: job.tenant,
        priority: job.spec.priority,
        submitted_at: job.submitted_at,
        deadline: job.spec.deadline,
        time_limit_ms: job.spec.time_limit_ms,
        resources: job.spec.resources,
        site: job.spec.site,
        tasks: Vec::new(),
        gang_tasks: 0,
    }
}
