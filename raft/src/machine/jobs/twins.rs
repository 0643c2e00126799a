//! A second attempt at a task beside the first, where that takes far longer than was predicted. The first that succeeds is the task's
//! result; where one ends otherwise the other goes on alone.
//!
//! Always: a task has at most one twin, on another node; its tenant pays for one attempt, and the node of the one that counts earns.

use makai_erasure::NodeId;

use super::super::accounts::billing;
use super::super::draft::{Draft, Outcome, expect, read};
use super::super::kv::{KvError, View as _};
use super::{Active, find, keys};
use crate::facts::Timestamp;
use crate::facts::jobs::{
    Assignment, AttemptId, End, HISTORY_MAX, Job, JobId, PastAttempt, PastUse, Task, TaskPhase, Twin,
};

/// Begins a twin; `None`: the task is not one that may have one now, or its job is not.
pub fn begin(draft: &mut Draft<'_>, wanted: &Assignment) -> Outcome<Option<AttemptId>> {
    let (id, index, node) = (wanted.job, wanted.index, wanted.node);
    let Some(mut task): Option<Task> = read(draft, &keys::task(id, index))? else { return Ok(None) };
    let (job, _) = find(draft, id)?;
    let is_open = task.phase == TaskPhase::Running && task.twin.is_none() && task.node != Some(node);
    if !is_open
        || job.spec.is_gang
        || job.spec.quorum > 1
        || draft.get(&keys::active_task(&node, id, index))?.is_some()
    {
        return Ok(None);
    }
    let attempt = task.next_attempt();
    (task.attempts, task.twin) = (attempt, Some(Twin { attempt, node, assigned_at: draft.now }));
    let active = Active {
        attempt,
        is_running: false,
        assigned_at: draft.now,
        time_limit_ms: job.spec.time_limit_ms,
        resources: job.spec.resources.clone(),
        tenant: job.tenant.0,
        priority: job.spec.priority,
        gpus: wanted.gpus.clone(),
    };
    draft.write(keys::active_task(&node, id, index), &active)?;
    draft.write(keys::task(id, index), &task)?;
    Ok(Some(AttemptId { job: id, index, attempt }))
}

/// A twin runs: the task does already.
pub fn start(draft: &mut Draft<'_>, task: &Task, attempt: AttemptId) -> Result<bool, KvError> {
    let Some(twin) = task.twin.filter(|twin| twin.attempt == attempt.attempt) else { return Ok(false) };
    let place = keys::active_task(&twin.node, attempt.job, attempt.index);
    let active = Active { is_running: true, ..expect(draft, &place)? };
    draft.write(place, &active)?;
    Ok(true)
}

/// One of two has ended: with a success it becomes the only one, and the other is no more; else the other becomes that. `true`: the
/// task goes on with the other, and this end is remembered. Call it before what follows from an end.
pub fn settle(
    draft: &mut Draft<'_>,
    job: &Job,
    task: &mut Task,
    ended: u32,
    end: &End,
    used: Option<PastUse>,
) -> Result<bool, KvError> {
    let Some(twin) = task.twin.take() else { return Ok(false) };
    let first = Twin {
        attempt: task.attempt,
        node: task.node.unwrap_or(NodeId([0; 32])),
        assigned_at: task.assigned_at,
    };
    let is_success = end.verdict() == crate::facts::jobs::Verdict::Success;
    let is_twin = twin.attempt == ended;
    // The one that is left, or that has succeeded, and the other.
    let (stays, goes) = if is_twin == is_success { (twin, first) } else { (first, twin) };
    draft.delete(keys::active_task(&goes.node, job.id, task.index));
    if stays.attempt != task.attempt {
        billing::moved(draft, job.id, task.index, stays.node, stays.assigned_at)?;
    }
    (task.attempt, task.node, task.assigned_at) = (stays.attempt, Some(stays.node), stays.assigned_at);
    let (end, used) = match is_success {
        true => (End::Lost { why: "another attempt at the task was done first".into() }, None),
        false => (end.clone(), used),
    };
    remember(task, goes, end, used, draft.now);
    if !is_success {
        task.changed_at = draft.now;
        draft.write(keys::task(job.id, task.index), &*task)?;
    }
    Ok(!is_success)
}

fn remember(task: &mut Task, past: Twin, end: End, used: Option<PastUse>, now: Timestamp) {
    let Twin { attempt, node, assigned_at } = past;
    if task.history.len() == HISTORY_MAX {
        task.history.remove(0);
    }
    task.history.push(PastAttempt { attempt, node, assigned_at, ended_at: now, end, used });
}

/// A task ends with all of its attempts.
pub fn end(draft: &mut Draft<'_>, job: JobId, task: &mut Task) {
    if let Some(twin) = task.twin.take() {
        draft.delete(keys::active_task(&twin.node, job, task.index));
    }
}
