//! What the service's messages mean in facts, and back.

mod module;

use makai_raft::facts::Timestamp;
use makai_raft::facts::jobs as facts;
use makai_raft::facts::jobs::{Job, JobId, JobPhase, JobState, TaskCounts, TaskPhase};
use tonic::Status;

use crate::grpc::proto::jobs::v1 as words;

const CPU_MILLIS_DEFAULT: u32 = 1000;
const MEMORY_BYTES_DEFAULT: u64 = 512 << 20;
const SCRATCH_BYTES_DEFAULT: u64 = 1 << 30;
const TIME_LIMIT_MS_DEFAULT: u64 = 60 * 60 * 1000;
const PRIORITY_DEFAULT: u32 = 50;

fn or<T: Default + PartialEq>(value: T, default: T) -> T {
    if value == T::default() { default } else { value }
}

fn path(path: Option<words::ObjectPath>, what: &str) -> Result<facts::ObjectPath, Status> {
    let missing = || Status::invalid_argument(format!("{what} is missing; give a bucket and a key"));
    let words::ObjectPath { bucket, key } = path.ok_or_else(missing)?;
    Ok(facts::ObjectPath { bucket, key })
}

fn container(container: words::Container) -> Result<facts::Work, Status> {
    let mut env: Vec<(String, String)> = container.env.into_iter().collect();
    env.sort();
    Ok(facts::Work::Container {
        image: path(container.image, "spec.container.image")?,
        command: container.command,
        env,
        working_dir: container.working_dir,
        user: container.user,
    })
}

pub fn spec(spec: words::JobSpec) -> Result<facts::JobSpec, Status> {
    let mut inputs = Vec::with_capacity(spec.inputs.len());
    for input in spec.inputs {
        let words::Input { from, path: to, bytes, offset, offset_per_task } = input;
        if bytes == 0 && (offset > 0 || offset_per_task > 0) {
            return Err(Status::invalid_argument(
                "spec.inputs: an offset wants `bytes`: how many from there on",
            ));
        }
        let range = (bytes > 0).then_some(facts::InputRange { offset, offset_per_task, bytes });
        inputs.push(facts::Input { from: path(from, "spec.inputs.from")?, path: to, range });
    }
    let mut outputs = Vec::with_capacity(spec.outputs.len());
    for output in spec.outputs {
        outputs.push(facts::Output { path: output.path, to: path(output.to, "spec.outputs.to")? });
    }
    let work = match spec.work {
        Some(words::job_spec::Work::Container(work)) => container(work)?,
        Some(words::job_spec::Work::Module(work)) => {
            if !inputs.is_empty() || !outputs.is_empty() {
                return Err(Status::invalid_argument(
                    "spec.inputs, spec.outputs: a module reads and writes by its buffers; give them `from` and `to`",
                ));
            }
            facts::Work::Module(module::module(work, &mut inputs, &mut outputs)?)
        }
        None => {
            return Err(Status::invalid_argument("spec.work is missing; give a container or a module"));
        }
    };
    let resources = spec.resources.unwrap_or_default();
    let gpu = resources.gpu.map(|gpu| facts::GpuShare {
        cards: gpu.cards,
        memory_mib: gpu.memory_mib,
        sm_millis: gpu.sm_millis,
        model: gpu.model,
        level_min: u8::try_from(gpu.enforcement_min.saturating_sub(1).max(0)).unwrap_or(u8::MAX),
    });
    if spec.each.is_some() && spec.tasks > 0 {
        return Err(Status::invalid_argument(
            "spec.tasks: a job for objects has as many tasks as those need; leave it out, or give each.per_task",
        ));
    }
    let each = spec.each.map(each).transpose()?;
    let priority = spec.priority.unwrap_or(PRIORITY_DEFAULT);
    let mut spec = facts::JobSpec {
        name: spec.name,
        work,
        resources: facts::Resources {
            cpu_millis: or(resources.cpu_millis, CPU_MILLIS_DEFAULT),
            memory_bytes: or(resources.memory_bytes, MEMORY_BYTES_DEFAULT),
            scratch_bytes: or(resources.scratch_bytes, SCRATCH_BYTES_DEFAULT),
            gpu,
        },
        inputs,
        outputs,
        tasks: or(spec.tasks, 1),
        priority: u8::try_from(priority)
            .map_err(|_| Status::invalid_argument(format!("priority is {priority}; give 0 to 100")))?,
        attempts_max: or(spec.attempts_max, 1),
        backoff_ms: spec.backoff_ms,
        time_limit_ms: or(spec.time_limit_ms, TIME_LIMIT_MS_DEFAULT),
        deadline: (spec.deadline_unix_ms > 0).then_some(Timestamp(spec.deadline_unix_ms)),
        site: spec.site,
        after: spec.after.into_iter().map(JobId).collect(),
        is_gang: spec.gang,
        price_max: spec.price_max_micros,
        quorum: spec.quorum,
        each,
    };
    spec.settle_gpu();
    spec.check().map_err(Status::invalid_argument)?;
    Ok(spec)
}

fn spec_back(spec: facts::JobSpec) -> words::JobSpec {
    let object = |path: facts::ObjectPath| Some(words::ObjectPath { bucket: path.bucket, key: path.key });
    let is_module = matches!(spec.work, facts::Work::Module(_));
    let work = match spec.work {
        facts::Work::Container { image, command, env, working_dir, user } => {
            let env = env.into_iter().collect();
            let image = object(image);
            words::job_spec::Work::Container(words::Container { image, command, env, working_dir, user })
        }
        facts::Work::Module(work) => {
            words::job_spec::Work::Module(module::module_back(work, &spec.inputs, &spec.outputs))
        }
    };
    // A module's are shown with its buffers.
    let (inputs, outputs) = if is_module { (Vec::new(), Vec::new()) } else { (spec.inputs, spec.outputs) };
    let gpu = spec.resources.gpu.map(|gpu| words::Gpu {
        cards: gpu.cards,
        memory_mib: gpu.memory_mib,
        sm_millis: gpu.sm_millis,
        model: gpu.model,
        enforcement_min: if gpu.level_min == 0 { 0 } else { enforcement(Some(gpu.level_min)) },
    });
    words::JobSpec {
        name: spec.name,
        work: Some(work),
        resources: Some(words::Resources {
            cpu_millis: spec.resources.cpu_millis,
            memory_bytes: spec.resources.memory_bytes,
            scratch_bytes: spec.resources.scratch_bytes,
            gpu,
        }),
        inputs: inputs
            .into_iter()
            .map(|input| {
                let (bytes, offset, offset_per_task) =
                    input.range.map_or((0, 0, 0), |range| (range.bytes, range.offset, range.offset_per_task));
                words::Input { from: object(input.from), path: input.path, bytes, offset, offset_per_task }
            })
            .collect(),
        outputs: outputs
            .into_iter()
            .map(|output| words::Output { path: output.path, to: object(output.to) })
            .collect(),
        tasks: spec.tasks,
        priority: Some(spec.priority.into()),
        attempts_max: spec.attempts_max,
        backoff_ms: spec.backoff_ms,
        time_limit_ms: spec.time_limit_ms,
        deadline_unix_ms: spec.deadline.map_or(0, |deadline| deadline.0),
        site: spec.site,
        after: spec.after.into_iter().map(|job| job.0).collect(),
        gang: spec.is_gang,
        price_max_micros: spec.price_max,
        quorum: spec.quorum,
        each: spec.each.map(|each| words::Each {
            from: object(each.from),
            manifest: each.is_manifest,
            per_task: each.per_task,
            path: each.path,
            objects: each.objects,
            predicted: each.is_predicted,
        }),
    }
}

fn each(each: words::Each) -> Result<facts::Each, Status> {
    let from = path(each.from, "spec.each.from")?;
    if !each.manifest && !from.key.is_empty() && !from.key.ends_with('/') {
        return Err(Status::invalid_argument(format!(
            "spec.each.from: {:?} is no prefix; end it with '/', or say that it is a manifest",
            from.key
        )));
    }
    let path = if each.path.is_empty() { facts::each::PATH_DEFAULT.to_owned() } else { each.path };
    // What there is is this door's to find out.
    let (per_task, is_manifest) = (each.per_task, each.manifest);
    Ok(facts::Each { from, is_manifest, path, per_task, is_predicted: false, objects: 0 })
}

/// A level by its number, as messages have it.
pub fn enforcement(level: Option<u8>) -> i32 {
    level.map_or(0, |level| i32::from(level) + 1)
}

pub fn phase(phase: JobPhase) -> words::Phase {
    match phase {
        JobPhase::Queued => words::Phase::Queued,
        JobPhase::Running => words::Phase::Running,
        JobPhase::Succeeded => words::Phase::Succeeded,
        JobPhase::Failed => words::Phase::Failed,
        JobPhase::Cancelled => words::Phase::Cancelled,
    }
}

pub fn job(job: Job, state: &JobState) -> words::Job {
    let TaskCounts { pending, active, succeeded, failed, cancelled } = state.counts;
    words::Job {
        id: job.id.0,
        phase: phase(state.phase).into(),
        counts: Some(words::Counts { pending, active, succeeded, failed, cancelled }),
        version: state.version,
        submitted_unix_ms: job.submitted_at.0,
        started_unix_ms: state.started_at.map_or(0, |at| at.0),
        ended_unix_ms: state.ended_at.map_or(0, |at| at.0),
        reason: state.reason.clone(),
        cost_micros: state.cost,
        spec: Some(spec_back(job.spec)),
    }
}

pub fn task(task: facts::Task) -> words::Task {
    let phase = match task.phase {
        TaskPhase::Pending => words::TaskPhase::Pending,
        TaskPhase::Assigned => words::TaskPhase::Assigned,
        TaskPhase::Running => words::TaskPhase::Running,
        TaskPhase::Succeeded => words::TaskPhase::Succeeded,
        TaskPhase::Failed => words::TaskPhase::Failed,
        TaskPhase::Cancelled => words::TaskPhase::Cancelled,
    };
    let attempt = |past: facts::PastAttempt| words::Attempt {
        number: past.attempt,
        node: past.node.to_string(),
        assigned_unix_ms: past.assigned_at.0,
        ended_unix_ms: past.ended_at.0,
        end: past.end.to_string(),
        exit_code: match past.end {
            facts::End::Exited { code } => Some(code),
            _ => None,
        },
        wall_ms: past.used.map_or(0, |used| used.wall_ms),
        cpu_ms: past.used.map_or(0, |used| used.cpu_ms),
        memory_peak_bytes: past.used.map_or(0, |used| used.memory_peak_bytes),
        gpu_busy_ns: past.used.map_or(0, |used| used.gpu_busy_ns),
        enforcement: enforcement(past.used.and_then(|used| used.gpu_level)),
    };
    words::Task {
        index: task.index,
        phase: phase.into(),
        attempt: task.attempt,
        node: task.node.map(|node| node.to_string()).unwrap_or_default(),
        changed_unix_ms: task.changed_at.0,
        attempts: task.history.into_iter().map(attempt).collect(),
    }
}

/// A page's place: the id that the next page stays below.
pub fn page_token(text: &str) -> Result<Option<JobId>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let id = text.parse().map_err(|_| {
        Status::invalid_argument(format!(
            "page_token {text:?} is none; give next_page_token of the page before"
        ))
    })?;
    Ok(Some(JobId(id)))
}
