//! One attempt, from its assignment to its report.

use std::path::Path;
use std::sync::Arc;

use makai_raft::facts::desk::{Fault, Request};
use makai_raft::facts::jobs::{self, AssignedTask, AttemptId, End, Published, Statement, TEXT_BYTES_MAX};
use tokio::sync::watch;

use super::publish::Publish;
use super::stage::{Code, Given, Stage, StageError};
use super::{Agent, name_of, remove_folder, words};
use crate::runner::{Attempt, End as RunEnd, GpuLevel, Outcome, RunError};

/// Times that outputs are written anew because the gateway that had them is gone.
const PUBLISHED_ANEW_MAX: u32 = 5;

/// File of an attempt's folder: how many bytes its inputs have, for an agent that joins it after a restart.
const STAGED_BYTES: &str = "staged-bytes";

/// Why an attempt goes no further.
enum Over {
    /// It is not this node's any more: nothing is to be said.
    Revoked,
    Ended {
        end: End,
        bytes_in: u64,
    },
}

/// `attempt`: it ran already before this agent started.
pub async fn drive(
    agent: &Agent,
    task: AssignedTask,
    attempt: Option<Arc<dyn Attempt>>,
    mut revoked: watch::Receiver<bool>,
) {
    let id = task.attempt;
    let folder = agent.options.dir.join("attempts").join(name_of(id));
    let (started, bytes_in) = match attempt {
        Some(attempt) => (Ok(attempt), staged_bytes(&folder).await),
        None => match start(agent, &task, &folder, &mut revoked).await {
            Ok((attempt, bytes_in)) => (Ok(attempt), bytes_in),
            Err(over) => (Err(over), 0),
        },
    };
    match started {
        Ok(attempt) => {
            if let Some(known) = agent.lock().by_id.get_mut(&id) {
                known.attempt = Some(Arc::clone(&attempt));
            }
            let told = if task.is_running { None } else { agent.starts.tell(id) };
            let running = async {
                let outcome = attempt.wait().await;
                if let Some(mut told) = told {
                    // Who tells it is there as long as this is.
                    _ = told.wait_for(|is_told| *is_told).await;
                }
                outcome
            };
            let outcome = tokio::select! {
                outcome = running => Some(outcome),
                _ = revoked.wait_for(|revoked| *revoked) => None,
            };
            match outcome {
                Some(Ok(outcome)) => {
                    report(agent, &task, Some(&*attempt), &folder, outcome, bytes_in, &mut revoked).await;
                }
                Some(Err(error)) => {
                    let end = End::Failed { why: short(&chain(&error)) };
                    report_end(agent, id, end, jobs::Usage::default(), &mut revoked).await;
                }
                None => tracing::info!(attempt = %id, "it is not this node's any more: killed"),
            }
            agent.forget(&*attempt).await;
        }
        Err(Over::Ended { end, bytes_in }) => {
            tracing::info!(attempt = %id, %end, "it did not start");
            let usage = jobs::Usage { bytes_in, ..jobs::Usage::default() };
            report_end(agent, id, end, usage, &mut revoked).await;
        }
        Err(Over::Revoked) => {}
    }
    remove_folder(folder).await;
}

/// Stages the attempt and starts it.
async fn start(
    agent: &Agent,
    task: &AssignedTask,
    folder: &Path,
    revoked: &mut watch::Receiver<bool>,
) -> Result<(Arc<dyn Attempt>, u64), Over> {
    let id = task.attempt;
    remove_folder(folder.to_owned()).await;
    let (input, output) = (folder.join("in"), folder.join("out"));
    for folder in [&input, &output] {
        if let Err(error) = tokio::fs::create_dir_all(folder).await {
            let why = format!("make the folder {folder:?}: {error}");
            return Err(Over::Ended { end: End::Failed { why: short(&why) }, bytes_in: 0 });
        }
    }
    let bytes_max = task.spec.resources.scratch_bytes;
    let mut stage = Stage { agent, attempt: id, tenant: task.tenant, revoked, bytes_in: 0, bytes_max };
    let staged = stage_all(&mut stage, task, &input).await;
    let bytes_in = stage.bytes_in;
    let ended = |end| Over::Ended { end, bytes_in };
    let (code, given) = staged.map_err(|error| match end_of(error) {
        Some(end) => ended(end),
        None => Over::Revoked,
    })?;
    let spec =
        words::spec_of(task, code, &given, &input, &output).map_err(|error| ended(end_of_run(&error)))?;
    let noted = tokio::fs::write(folder.join(STAGED_BYTES), bytes_in.to_string()).await;
    if let Err(error) = noted {
        tracing::warn!(attempt = %id, %error, "after a restart, the bytes of its inputs are not known");
    }
    let attempt = agent.options.runner.start(&spec).await.map_err(|error| ended(end_of_run(&error)))?;
    Ok((Arc::from(attempt), bytes_in))
}

async fn stage_all(
    stage: &mut Stage<'_>,
    task: &AssignedTask,
    input: &Path,
) -> Result<(Code, Given), StageError> {
    let code = stage.code(&task.spec.work).await?;
    stage.inputs(task, input).await?;
    let given = match &task.spec.each {
        Some(each) => stage.each(each, input).await?,
        None => Given::default(),
    };
    Ok((code, given))
}

/// What the agent that started the attempt noted of its inputs.
async fn staged_bytes(folder: &Path) -> u64 {
    let text = tokio::fs::read_to_string(folder.join(STAGED_BYTES)).await.unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Publishes what the attempt left and reports it, until that counts or cannot.
async fn report(
    agent: &Agent,
    task: &AssignedTask,
    attempt: Option<&dyn Attempt>,
    folder: &Path,
    outcome: Outcome,
    bytes_in: u64,
    revoked: &mut watch::Receiver<bool>,
) {
    let id = task.attempt;
    // What this machine ended has the end that it was ended for.
    let because = agent.lock().by_id.get(&id).and_then(|known| known.because.clone());
    let Some(end) = end_of_outcome(&outcome).or(because) else { return };
    let mut usage = usage_of(&outcome, bytes_in);
    for _ in 0..PUBLISHED_ANEW_MAX {
        let mut publish = Publish { agent, attempt: id, revoked };
        let published = match &end {
            End::Exited { code: 0 } => publish.outputs(task, &folder.join("out")).await,
            _ => Ok(Vec::new()),
        };
        let log = match attempt {
            Some(attempt) => publish.log(attempt).await,
            None => Ok(()),
        };
        let has_log = attempt.is_some() && log.is_ok();
        let (end, outputs) = match published {
            Ok(outputs) => (end.clone(), outputs),
            Err(error) => match end_of(error) {
                Some(end) => (end, Vec::new()),
                None => return,
            },
        };
        usage.bytes_out = outputs.iter().map(|output| output.size).sum();
        match finish(agent, id, end, usage.clone(), outputs, has_log, revoked).await {
            Err(Fault::NotWritten(why)) => {
                tracing::info!(attempt = %id, why, "its outputs are written again")
            }
            Err(Fault::Refused(why)) => {
                let end = End::Refused { why: short(&why) };
                return report_end(agent, id, end, usage, revoked).await;
            }
            _ => return,
        }
    }
    let end = End::Failed { why: "the outputs could not be kept together".into() };
    report_end(agent, id, end, usage, revoked).await;
}

async fn report_end(
    agent: &Agent,
    id: AttemptId,
    end: End,
    usage: jobs::Usage,
    revoked: &mut watch::Receiver<bool>,
) {
    if let Err(fault) = finish(agent, id, end, usage, Vec::new(), false, revoked).await {
        tracing::info!(attempt = %id, %fault, "its end does not count");
    }
}

async fn finish(
    agent: &Agent,
    attempt: AttemptId,
    end: End,
    usage: jobs::Usage,
    outputs: Vec<Published>,
    has_log: bool,
    revoked: &mut watch::Receiver<bool>,
) -> Result<(), Fault> {
    let statement = Statement { attempt, node: agent.options.node, end, usage, outputs };
    let signature = (agent.options.sign)(&statement.signed_bytes());
    let request = Request::Finish { statement, signature, has_log };
    agent.ask(attempt, request, revoked).await.map(|_| ())
}

/// `None`: the attempt is not this node's any more.
fn end_of(error: StageError) -> Option<End> {
    match error {
        StageError::Fault(Fault::Stale(_)) => None,
        StageError::Fault(Fault::Refused(why)) => Some(End::Refused { why: short(&why) }),
        StageError::Fault(fault) => Some(End::Failed { why: short(&fault.to_string()) }),
        StageError::Disk(error) => Some(End::Failed { why: short(&format!("this node's disk: {error}")) }),
    }
}

fn end_of_run(error: &RunError) -> End {
    match error {
        RunError::Invalid(why) => End::Refused { why: short(why) },
        RunError::Refused(_) | RunError::Machine { .. } => End::Failed { why: short(&chain(error)) },
    }
}

/// `None`: this agent stopped it, because it is not this node's any more.
fn end_of_outcome(outcome: &Outcome) -> Option<End> {
    let why = short(&outcome.message);
    Some(match outcome.end {
        RunEnd::Exited { code } => End::Exited { code },
        RunEnd::Signalled { signal } => End::Signalled { signal },
        RunEnd::MemoryLimit => End::OutOfMemory,
        RunEnd::DiskLimit => End::OutOfDisk,
        RunEnd::TimeLimit => End::TimedOut,
        RunEnd::BadImage | RunEnd::BadCommand | RunEnd::BadModule => End::Refused { why },
        RunEnd::ModuleFault => End::Faulted { why },
        RunEnd::WorkerLost => End::Lost { why },
        RunEnd::MachineFault => End::Failed { why },
        RunEnd::Stopped => return None,
    })
}

fn usage_of(outcome: &Outcome, bytes_in: u64) -> jobs::Usage {
    let used = &outcome.usage;
    jobs::Usage {
        wall_ms: used.wall_ms,
        cpu_ms: used.cpu_ms,
        gpu_busy_ns: used.gpu_busy_ns,
        memory_peak_bytes: used.memory_peak_bytes,
        memory_byte_seconds: used.memory_byte_seconds,
        bytes_in,
        bytes_out: 0,
        gpu_level: outcome.enforcement.gpu.map(GpuLevel::number),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A reason as the facts take it.
fn short(why: &str) -> String {
    why.chars().take(TEXT_BYTES_MAX / 4).collect()
}
