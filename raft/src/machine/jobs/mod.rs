//! Jobs: what is submitted, which task waits, who has it, how it ended.
//!
//! ```text
//! submit ─> queue (one entry for all tasks never tried) ─ assign ─> active, by node ─ start ─ finish | lose | cancel
//!                ^── the attempt failed and another is allowed ──────────────────────────┘
//! ```
//!
//! | file        | holds                                                       |
//! |-------------|-------------------------------------------------------------|
//! | `keys`      | where records lie                                           |
//! | `lifecycle` | submission, cancellation, the end of jobs, their forgetting |
//! | `attempts`  | assignment, start, result, loss                             |
//! | `twins`     | a second attempt beside one that takes too long             |
//! | `quorum`    | results that count only where nodes agree                   |
//! | `queries`   | what can be asked                                           |
//!
//! Always: a job's counts are its tasks, counted; exactly the tasks that are active have an entry under their node; a task
//! that waits is in the queue once; what is reported of an attempt that is not current changes nothing. A job of any
//! size costs a few records until its tasks are tried.

mod attempts;
mod keys;
mod lifecycle;
mod queries;
mod quorum;
mod twins;

#[cfg(test)]
mod tests;

use makai_erasure::NodeId;
use serde::{Deserialize, Serialize};

use super::draft::{Draft, Outcome, expect, read};
use super::kv::{KvError, View};
use crate::facts::Timestamp;
use crate::facts::command::{Refusal, Reply};
use crate::facts::jobs::{GPUS_MAX, Job, JobId, JobState, JobsCommand, MACHINES_MAX, Machine, Resources};

pub use queries::answer;

/// A task in the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    not_before: Timestamp,
    last_node: Option<NodeId>,
}

/// An entry of a current attempt under its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Active {
    attempt: u32,
    is_running: bool,
    assigned_at: Timestamp,
    time_limit_ms: u64,
    resources: Resources,
    #[serde(default)]
    tenant: u64,
    #[serde(default)]
    priority: u8,
    #[serde(default)]
    gpus: Vec<String>,
}

pub fn run(draft: &mut Draft<'_>, command: &JobsCommand) -> Outcome<Reply> {
    match command {
        JobsCommand::Submit { tenant, access_key_id, client_token, spec, list } => {
            lifecycle::submit(draft, *tenant, access_key_id, client_token, spec, list.as_ref())
        }
        JobsCommand::Assign { assignments } => attempts::assign(draft, assignments),
        JobsCommand::Start { node, attempts } => attempts::start(draft, *node, attempts),
        JobsCommand::Finish { statement, signature, outputs, log } => {
            attempts::finish(draft, statement, signature, outputs, log.as_ref())
        }
        JobsCommand::Lose { attempts } => attempts::lose(draft, attempts),
        JobsCommand::Cancel { tenant, job, reason } => lifecycle::cancel(draft, *tenant, *job, reason),
        JobsCommand::Forget { before_ms } => lifecycle::forget(draft, *before_ms),
        JobsCommand::NoteMachines { machines } => note_machines(draft, machines),
    }
}

fn note_machines(draft: &mut Draft<'_>, machines: &[Machine]) -> Outcome<Reply> {
    if machines.len() > MACHINES_MAX || machines.iter().any(|machine| machine.gpus.len() > GPUS_MAX) {
        let why = format!("at most {MACHINES_MAX} machines are noted at once, of {GPUS_MAX} cards each");
        return Err(Refusal::Invalid(why).into());
    }
    for machine in machines {
        draft.write(keys::machine(&machine.node), machine)?;
    }
    Ok(Reply::Done)
}

/// Why a job that has a maximum price goes no further.
pub const PRICE_REACHED: &str = "it has come to its maximum price (price_max)";

/// A job, as it was submitted.
pub fn job(view: &dyn View, id: JobId) -> Result<Option<Job>, KvError> {
    read(view, &keys::job(id))
}

/// Ends a job for a reason of the accounts.
pub fn end_job(draft: &mut Draft<'_>, id: JobId, reason: &str) -> Outcome<()> {
    lifecycle::cancel(draft, None, id, reason).map(drop)
}

fn find(view: &dyn View, id: JobId) -> Outcome<(Job, JobState)> {
    let job = read(view, &keys::job(id))?.ok_or_else(|| Refusal::NotFound(format!("job {}", id.0)))?;
    Ok((job, expect(view, &keys::state(id))?))
}

/// Writes where a job is; where its last task has ended, ends the job.
fn settle_job(draft: &mut Draft<'_>, job: &Job, mut state: JobState) -> Result<JobState, KvError> {
    state.version += 1;
    state.changed_at = draft.now;
    if !state.phase.is_over() && state.counts.pending == 0 && state.counts.active == 0 {
        lifecycle::end(draft, job, &mut state)?;
    }
    draft.write(keys::state(job.id), &state)?;
    Ok(state)
}
