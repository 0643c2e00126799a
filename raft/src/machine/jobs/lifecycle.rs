//! Submission, cancellation, the end of jobs, their forgetting.

use super::super::accounts::billing::{self, Ended};
use super::super::draft::{Draft, Outcome, all, encode, expect, keys_in, read, shift};
use super::super::keys::{Counter, end_of};
use super::super::kv::{KvError, View as _};
use super::super::{buckets, objects, tenants};
use super::{Waiting, find, keys, settle_job, twins};
use crate::facts::Timestamp;
use crate::facts::command::{NewContent, Precondition, Refusal, Reply};
use crate::facts::jobs::each::list_key;
use crate::facts::jobs::{
    AttemptId, Job, JobId, JobPhase, JobSpec, JobState, JobsReply, OPEN_JOBS_MAX, Receipt, SPEC_BYTES_MAX,
    TEXT_BYTES_MAX, Task, TaskCounts, TaskPhase, log_bucket, log_key,
};
use crate::facts::object::ObjectHeaders;
use crate::facts::tenant::TenantId;

/// Jobs that one command forgets at most, and tasks of them; a larger job goes in pieces.
const FORGOTTEN_JOBS_MAX: usize = 100;
const FORGOTTEN_TASKS_MAX: usize = 2000;
const FORGOTTEN_RECEIPTS_MAX: usize = 1000;

pub fn submit(
    draft: &mut Draft<'_>,
    tenant: TenantId,
    access_key_id: &str,
    client_token: &str,
    spec: &JobSpec,
    list: Option<&NewContent>,
) -> Outcome<Reply> {
    tenants::get(draft, tenant)?;
    if client_token.len() > TEXT_BYTES_MAX || access_key_id.len() > TEXT_BYTES_MAX {
        return Err(Refusal::Invalid(format!("a client token has at most {TEXT_BYTES_MAX} bytes")).into());
    }
    if !client_token.is_empty()
        && let Some(job) = read(draft, &keys::token(tenant, client_token))?
    {
        return Ok(Reply::Jobs(JobsReply::Submitted { job, existed: true }));
    }
    spec.check().map_err(Refusal::Invalid)?;
    let is_listed = spec.each.as_ref().is_some_and(|each| each.objects > 0);
    if is_listed != list.is_some() || is_listed != spec.each.is_some() {
        return Err(Refusal::Invalid("each: the objects are not listed".into()).into());
    }
    if encode(spec)?.len() > SPEC_BYTES_MAX {
        return Err(
            Refusal::Invalid(format!(
                "a job's specification has at most {SPEC_BYTES_MAX} bytes; put a module's text, and buffers' bytes, in objects"
            ))
            .into()
        );
    }
    billing::may_submit(draft, tenant, &spec.resources, spec.time_limit_ms)?;
    let open: u64 = read(draft, &keys::tenant_open(tenant))?.unwrap_or(0);
    if open >= OPEN_JOBS_MAX {
        return Err(Refusal::Invalid(format!(
            "the tenant has {OPEN_JOBS_MAX} jobs that are not over, as many as may be"
        ))
        .into());
    }
    let waits_for = not_over(draft, tenant, &spec.after)?;
    draft.write(keys::tenant_open(tenant), &(open + 1))?;
    buckets::ensure_hidden(draft, &log_bucket(tenant), tenant)?;
    let id = JobId(draft.next(Counter::Job)?);
    let job = Job {
        id,
        tenant,
        access_key_id: access_key_id.to_owned(),
        client_token: client_token.to_owned(),
        submitted_at: draft.now,
        spec: spec.clone(),
    };
    let state = JobState {
        phase: JobPhase::Queued,
        counts: TaskCounts { pending: spec.tasks, ..TaskCounts::default() },
        version: 1,
        changed_at: draft.now,
        started_at: None,
        ended_at: None,
        next_index: 0,
        reason: String::new(),
        cost: 0,
    };
    if let Some(list) = list {
        let (headers, any) = (ObjectHeaders::default(), Precondition::default());
        objects::put(draft, &log_bucket(tenant), &list_key(id), &headers, list, &any)?;
    }
    draft.write(keys::job(id), &job)?;
    draft.write(keys::state(id), &state)?;
    draft.write(keys::tenant_job(tenant, id), &())?;
    if !client_token.is_empty() {
        draft.write(keys::token(tenant, client_token), &id)?;
    }
    if let Some(deadline) = spec.deadline {
        draft.write(keys::deadline(deadline, id), &())?;
    }
    if waits_for.is_empty() {
        draft.write(keys::queued(spec.priority, id, keys::FRESH), &Waiting::default())?;
    } else {
        draft.write(keys::held(id), &(waits_for.len() as u64))?;
        for before in waits_for {
            draft.write(keys::follower(before, id), &())?;
        }
    }
    Ok(Reply::Jobs(JobsReply::Submitted { job: id, existed: false }))
}

/// The jobs among `after` that a new job has to wait for.
fn not_over(draft: &Draft<'_>, tenant: TenantId, after: &[JobId]) -> Outcome<Vec<JobId>> {
    let mut waits_for = Vec::new();
    for id in after {
        let (job, state) = find(draft, *id)?;
        if job.tenant != tenant {
            return Err(Refusal::NotFound(format!("job {}", id.0)).into());
        }
        match state.phase {
            JobPhase::Queued | JobPhase::Running => waits_for.push(*id),
            JobPhase::Succeeded => {}
            JobPhase::Failed | JobPhase::Cancelled => {
                return Err(Refusal::Invalid(format!(
                    "after: job {} has not succeeded and never will",
                    id.0
                ))
                .into());
            }
        }
    }
    Ok(waits_for)
}

/// A job has ended: those that wait for it go into the queue once they wait for no other, or end with it where it did not
/// succeed, and with them those that wait for them.
fn release(draft: &mut Draft<'_>, ended: JobId, has_succeeded: bool) -> Result<(), KvError> {
    let mut failed = Vec::new();
    let followers = keys::followers(ended);
    for key in keys_in(draft, &followers, &end_of(&followers), usize::MAX)? {
        let Some(id) = keys::parse_last_job(&key) else { continue };
        draft.delete(key);
        let Some(left) = read::<u64>(draft, &keys::held(id))? else { continue };
        if !has_succeeded {
            failed.push((id, ended));
        } else if left > 1 {
            draft.write(keys::held(id), &(left - 1))?;
        } else {
            draft.delete(keys::held(id));
            let job: Job = expect(draft, &keys::job(id))?;
            draft.write(keys::queued(job.spec.priority, id, keys::FRESH), &Waiting::default())?;
        }
    }
    // None of these has begun: each is a few records, whatever its tasks.
    while let Some((id, because_of)) = failed.pop() {
        if draft.get(&keys::held(id))?.is_none() {
            continue;
        }
        let job: Job = expect(draft, &keys::job(id))?;
        let mut state: JobState = expect(draft, &keys::state(id))?;
        unhold(draft, &job);
        state.counts = TaskCounts { cancelled: job.spec.tasks, ..TaskCounts::default() };
        state.next_index = job.spec.tasks;
        state.reason = format!("job {}, which it waits for, did not succeed", because_of.0);
        state.version += 1;
        state.changed_at = draft.now;
        end_records(draft, &job, &mut state)?;
        draft.write(keys::state(id), &state)?;
        let followers = keys::followers(id);
        for key in keys_in(draft, &followers, &end_of(&followers), usize::MAX)? {
            failed.extend(keys::parse_last_job(&key).map(|follower| (follower, id)));
            draft.delete(key);
        }
    }
    Ok(())
}

/// It waits for no job any more.
fn unhold(draft: &mut Draft<'_>, job: &Job) {
    draft.delete(keys::held(job.id));
    for before in &job.spec.after {
        draft.delete(keys::follower(*before, job.id));
    }
}

/// Ends all tasks that have not ended. A job that is over stays as it is.
pub fn cancel(draft: &mut Draft<'_>, tenant: Option<TenantId>, id: JobId, reason: &str) -> Outcome<Reply> {
    let (job, mut state) = find(draft, id)?;
    if tenant.is_some_and(|tenant| tenant != job.tenant) {
        return Err(Refusal::NotFound(format!("job {}", id.0)).into());
    }
    if state.phase.is_over() {
        return Ok(Reply::Done);
    }
    draft.delete_all(&keys::queue_of(job.spec.priority, id))?;
    unhold(draft, &job);
    for mut task in all::<Task>(draft, &keys::tasks(id))? {
        if task.phase.is_active() || task.phase == TaskPhase::Pending {
            if let Some(node) = task.node {
                draft.delete(keys::active_task(&node, id, task.index));
            }
            twins::end(draft, id, &mut task);
            billing::ended(draft, id, task.index, Ended::Cancelled)?;
            task.phase = TaskPhase::Cancelled;
            task.changed_at = draft.now;
            draft.write(keys::task(id, task.index), &task)?;
        }
    }
    let counts = &mut state.counts;
    counts.cancelled += counts.pending + counts.active;
    (counts.pending, counts.active) = (0, 0);
    state.next_index = job.spec.tasks;
    state.reason = reason.chars().take(TEXT_BYTES_MAX / 4).collect();
    settle_job(draft, &job, state)?;
    Ok(Reply::Done)
}

/// The job's last task has ended: what the job came to, and what follows for those that wait for it.
pub fn end(draft: &mut Draft<'_>, job: &Job, state: &mut JobState) -> Result<(), KvError> {
    end_records(draft, job, state)?;
    release(draft, job.id, state.phase == JobPhase::Succeeded)
}

fn end_records(draft: &mut Draft<'_>, job: &Job, state: &mut JobState) -> Result<(), KvError> {
    state.phase = match state.counts {
        // Of a gang, what is left is cancelled when a task fails.
        TaskCounts { failed: 1.., .. } if job.spec.is_gang => JobPhase::Failed,
        TaskCounts { cancelled: 1.., .. } => JobPhase::Cancelled,
        TaskCounts { failed: 1.., .. } => JobPhase::Failed,
        _ => JobPhase::Succeeded,
    };
    state.ended_at = Some(draft.now);
    draft.write(keys::ended(draft.now, job.id), &())?;
    if let Some(deadline) = job.spec.deadline {
        draft.delete(keys::deadline(deadline, job.id));
    }
    let open: u64 = expect(draft, &keys::tenant_open(job.tenant))?;
    draft.write(keys::tenant_open(job.tenant), &shift(open, 0, 1, "open jobs")?)
}

/// Forgets what ended long ago, logs included, a bounded piece at a time.
pub fn forget(draft: &mut Draft<'_>, before_ms: u64) -> Outcome<Reply> {
    let mut forgotten = 0;
    let mut tasks_left = FORGOTTEN_TASKS_MAX;
    let (from, to) = keys::ended_before(Timestamp(before_ms));
    for key in keys_in(draft, &from, &to, FORGOTTEN_JOBS_MAX)? {
        let Some(id) = keys::parse_last_job(&key) else { continue };
        let (job, _) = find(draft, id)?;
        let tasks_from = keys::tasks(id);
        let tasks = keys_in(draft, &tasks_from, &end_of(&tasks_from), tasks_left)?;
        let is_all = tasks.len() < tasks_left;
        tasks_left -= tasks.len();
        for place in tasks {
            forget_log(draft, &job, &expect(draft, &place)?)?;
            draft.delete(place);
        }
        if !is_all {
            return Ok(Reply::Jobs(JobsReply::Forgotten(forgotten + 1)));
        }
        draft.delete_all(&keys::votes_of(id))?;
        if job.spec.each.is_some() {
            objects::delete(draft, &log_bucket(job.tenant), &list_key(id), &Precondition::default())?;
        }
        draft.delete(keys::job(id));
        draft.delete(keys::state(id));
        billing::forget(draft, id);
        draft.delete(keys::tenant_job(job.tenant, id));
        if !job.client_token.is_empty() {
            draft.delete(keys::token(job.tenant, &job.client_token));
        }
        draft.delete(key);
        forgotten += 1;
    }
    let receipts = keys::receipts();
    for place in keys_in(draft, &receipts, &end_of(&receipts), FORGOTTEN_RECEIPTS_MAX)? {
        let receipt: Receipt = expect(draft, &place)?;
        if receipt.at.0 >= before_ms {
            break;
        }
        draft.delete(place);
        forgotten += 1;
    }
    Ok(Reply::Jobs(JobsReply::Forgotten(forgotten)))
}

fn forget_log(draft: &mut Draft<'_>, job: &Job, task: &Task) -> Outcome<()> {
    let Some((attempt, _)) = task.log else { return Ok(()) };
    let key = log_key(AttemptId { job: job.id, index: task.index, attempt });
    objects::delete(draft, &log_bucket(job.tenant), &key, &Precondition::default())?;
    Ok(())
}
