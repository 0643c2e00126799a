//! Jobs: what a customer submits, the tasks it is made of, and the tries at each.
//!
//! ```text
//! job     queued ─> running ─> succeeded | failed | cancelled
//! task    pending ─ assigned ─ running ─> succeeded | failed | cancelled
//!            ^──────────┴──────────┘  the attempt ended otherwise and another is allowed
//! ```
//!
//! An attempt is one try at a task on one node, numbered from 1. It is *current* from its assignment until it ends, is lost
//! or is cancelled; nothing that it reports later counts. So a task has one result however many machines worked on it.

pub mod each;
mod module;

use bytes::Bytes;
use makai_erasure::NodeId;
use serde::{Deserialize, Serialize};

pub use each::{Each, EachObject};
pub use module::{ModuleArgument, ModuleBuffer, ModuleCode, ModuleFill, ModuleStep, ModuleWork};

use super::Timestamp;
use super::command::NewContent;
use super::tenant::TenantId;

/// Tasks of one job.
pub const TASKS_MAX: u32 = 100_000;
/// Attempts at a task that may fail by its own doing.
pub const ATTEMPTS_MAX: u32 = 20;
/// Attempts at a task that may end by no fault of its own: a node that died, a staging that failed.
pub const LOSSES_MAX: u32 = 20;
/// Ends of attempts that a task remembers.
pub const HISTORY_MAX: usize = 8;
/// Inputs and outputs of one job, each.
pub const FILES_MAX: usize = 256;
/// Objects that one task publishes.
pub const OUTPUT_OBJECTS_MAX: usize = 1000;
/// Words of a command, and variables of an environment.
pub const WORDS_MAX: usize = 1024;
/// Encoded bytes of a whole specification, a module's text and inline bytes included: those of all attempts of a node
/// travel in one message. What is larger is an object.
pub const SPEC_BYTES_MAX: usize = 32 * 1024;
/// Cards of one attempt.
pub const GPUS_MAX: usize = 64;
/// Bytes of a name, a token, a reason.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Time that one attempt may be given: 30 days.
pub const TIME_LIMIT_MS_MAX: u64 = 30 * 24 * 60 * 60 * 1000;
/// Longest pause before a failed task is tried again.
pub const BACKOFF_MS_MAX: u64 = 60 * 60 * 1000;
/// Priorities go from 0, the last, to this.
pub const PRIORITY_MAX: u8 = 100;
/// Jobs of one tenant that are not over.
pub const OPEN_JOBS_MAX: u64 = 10_000;
/// Jobs that one job may wait for.
pub const AFTER_MAX: usize = 256;
/// Tasks that may start together.
pub const GANG_TASKS_MAX: u32 = 256;
/// Nodes whose results of a task are compared.
pub const QUORUM_MAX: u32 = 5;
/// Nodes asked beyond the quorum where results differ.
pub const QUORUM_EXTRA: u32 = 2;
/// A processor that runs a card's kernels again has so many times the time limit for it.
pub const RERUN_SLOWER: u64 = 32;
/// What a module may hold beside its buffers when a processor runs it again.
const RERUN_MEMORY_BYTES: u64 = 64 << 20;
/// Machines noted at once.
pub const MACHINES_MAX: usize = 1000;
/// Stands for a task's index in keys of inputs and prefixes of outputs.
pub const INDEX_MARK: &str = "{index}";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub u64);

/// One try at one task: the fencing token of everything that is reported of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    pub job: JobId,
    pub index: u32,
    /// From 1.
    pub attempt: u32,
}

impl std::fmt::Display for AttemptId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.job.0, self.index, self.attempt)
    }
}

/// An object of the job's tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectPath {
    pub bucket: String,
    pub key: String,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    Container {
        /// An OCI layout or a root filesystem as a tar.
        image: ObjectPath,
        /// Empty: what the image says.
        command: Vec<String>,
        env: Vec<(String, String)>,
        /// Empty: what the image says.
        working_dir: String,
        /// `uid` or `uid:gid`; empty: an unprivileged one.
        user: String,
    },
    /// Kernels of a CUDA module.
    Module(ModuleWork),
}

impl Work {
    /// The object that holds what runs; `None`: the specification holds it.
    #[must_use]
    pub fn object(&self) -> Option<&ObjectPath> {
        match self {
            Self::Container { image, .. } => Some(image),
            Self::Module(ModuleWork { code: ModuleCode::Object(object), .. }) => Some(object),
            Self::Module(ModuleWork { code: ModuleCode::Text(_), .. }) => None,
        }
    }

    /// What keeps a share of a card for it, by its number in [`LEVELS`]: a module's by the node's own process, a container's by a
    /// library in front of the driver's.
    #[must_use]
    pub fn share_level(&self) -> u8 {
        match self {
            Self::Container { .. } => 1,
            Self::Module(_) => 2,
        }
    }

    fn check(&self) -> Result<(), String> {
        let (image, command, env, working_dir, user) = match self {
            Self::Container { image, command, env, working_dir, user } => {
                (image, command, env, working_dir, user)
            }
            Self::Module(work) => return work.check(),
        };
        bound("command: words", command.len(), WORDS_MAX)?;
        bound("env: variables", env.len(), WORDS_MAX)?;
        bound("working_dir: bytes", working_dir.len(), TEXT_BYTES_MAX)?;
        bound("user: bytes", user.len(), TEXT_BYTES_MAX)?;
        if image.bucket.is_empty() || image.key.is_empty() {
            return Err("image: give the bucket and the key of an image in the pool".into());
        }
        let words = command.iter().chain(env.iter().flat_map(|(name, value)| [name, value]));
        if words.into_iter().any(|word| word.contains('\0')) {
            return Err("command, env: a NUL cannot be passed to a process".into());
        }
        if env.iter().any(|(name, _)| name.is_empty() || name.contains('=')) {
            return Err("env: a name is not empty and has no '='".into());
        }
        Ok(())
    }
}

fn bound(what: &str, len: usize, max: usize) -> Result<(), String> {
    if len > max { Err(format!("{what} has {len}; at most {max}")) } else { Ok(()) }
}

/// What one task holds of a node while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    /// Room for inputs, outputs and what the task writes.
    pub scratch_bytes: u64,
    pub gpu: Option<GpuShare>,
}

/// A share of one GPU, or all of some.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuShare {
    /// Whole cards; 0: a share of one.
    pub cards: u32,
    pub memory_mib: u64,
    /// Thousandths of a card's multiprocessors.
    pub sm_millis: u32,
    /// Part of the model's name; empty: any.
    pub model: String,
    /// The least that keeps it to its share, 0 advisory to 5 exclusive; 0: what is usual for what runs.
    #[serde(default)]
    pub level_min: u8,
}

/// Levels that keep an attempt to its share of a card, by their numbers.
pub const LEVELS: [&str; 6] = ["advisory", "shadow", "owned-host", "kernel", "hardware", "exclusive"];

/// Name of a level.
#[must_use]
pub fn level_name(level: u8) -> &'static str {
    LEVELS.get(usize::from(level)).copied().unwrap_or("unknown")
}

/// Objects that are there before the task starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// A key, or a prefix where it ends in `/` or is empty.
    pub from: ObjectPath,
    /// Relative to the task's input folder; a prefix becomes a folder.
    pub path: String,
    /// Of an object, the bytes that are wanted; `None`: all.
    #[serde(default)]
    pub range: Option<InputRange>,
}

/// Bytes of an object, from `offset + index * offset_per_task` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRange {
    pub offset: u64,
    pub offset_per_task: u64,
    pub bytes: u64,
}

impl InputRange {
    /// Where the range of a task begins.
    #[must_use]
    pub fn start(&self, index: u32) -> u64 {
        self.offset.saturating_add(self.offset_per_task.saturating_mul(index.into()))
    }
}

/// A folder or file that is published when the task has succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Relative to the task's output folder; empty: all of it.
    pub path: String,
    /// A key for a file, a prefix for a folder.
    pub to: ObjectPath,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    pub name: String,
    pub work: Work,
    pub resources: Resources,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Output>,
    /// Tasks, each with its index from 0.
    pub tasks: u32,
    /// Higher goes first.
    pub priority: u8,
    /// Tries at a task that fails by itself.
    pub attempts_max: u32,
    /// Pause before the second try; doubles with each further one.
    pub backoff_ms: u64,
    /// Wall clock of one attempt.
    pub time_limit_ms: u64,
    /// What has not ended by then is cancelled.
    pub deadline: Option<Timestamp>,
    /// Only on nodes of this site; empty: any.
    pub site: String,
    /// Jobs of the same tenant that must have succeeded before: until then it waits, and where one does not, it is
    /// cancelled.
    #[serde(default)]
    pub after: Vec<JobId>,
    /// All its tasks start together or none does, and where an attempt at one ends badly, all begin again.
    #[serde(default)]
    pub is_gang: bool,
    /// What it may cost in all, by the cluster's prices, in millionths of a credit; 0: no bound. What it holds is added up once a
    /// minute, and no attempt is begun whose first minutes go beyond.
    #[serde(default)]
    pub price_max: u64,
    /// Nodes of different owners of which more than half must come to the same outputs before they are published; 0 or 1: one
    /// node's result counts. Nodes that agreed often are mostly believed alone.
    #[serde(default)]
    pub quorum: u32,
    /// Its tasks are for objects: `tasks` follows from how many there are.
    #[serde(default)]
    pub each: Option<Each>,
}

/// A text of the specification, as it is for one task.
#[must_use]
pub fn of_task(text: &str, index: u32) -> String {
    text.replace(INDEX_MARK, &index.to_string())
}

/// Where a file of an output goes; `path`: below the output, empty where that is the file itself.
#[must_use]
pub fn output_key(output: &Output, index: u32, path: &str) -> ObjectPath {
    let (bucket, mut key) = (of_task(&output.to.bucket, index), of_task(&output.to.key, index));
    if !path.is_empty() {
        if !key.is_empty() && !key.ends_with('/') {
            key.push('/');
        }
        key.push_str(path);
    }
    ObjectPath { bucket, key }
}

impl JobSpec {
    /// What a processor takes that runs a card's kernels again: their buffers lie in its memory. `None`: it is no module on a
    /// card.
    #[must_use]
    pub fn on_processor(&self) -> Option<Resources> {
        let (Work::Module(work), Some(_)) = (&self.work, &self.resources.gpu) else { return None };
        let buffers = work.buffers.iter().fold(0u64, |sum, buffer| sum.saturating_add(buffer.bytes));
        let memory = self.resources.memory_bytes.saturating_add(buffers).saturating_add(RERUN_MEMORY_BYTES);
        Some(Resources { memory_bytes: memory, gpu: None, ..self.resources.clone() })
    }

    /// How long that may take it.
    #[must_use]
    pub fn time_on_processor_ms(&self) -> u64 {
        self.time_limit_ms.saturating_mul(RERUN_SLOWER).min(TIME_LIMIT_MS_MAX)
    }

    /// A share that must be kept more strictly than shares are is a whole card.
    pub fn settle_gpu(&mut self) {
        let level = self.work.share_level();
        if let Some(gpu) = &mut self.resources.gpu
            && gpu.cards == 0
            && gpu.level_min > level
        {
            gpu.cards = 1;
        }
    }

    /// # Errors
    /// What must change, with its field.
    pub fn check(&self) -> Result<(), String> {
        bound("name: bytes", self.name.len(), TEXT_BYTES_MAX)?;
        bound("site: bytes", self.site.len(), TEXT_BYTES_MAX)?;
        bound("inputs", self.inputs.len(), FILES_MAX)?;
        bound("outputs", self.outputs.len(), FILES_MAX)?;
        self.work.check()?;
        for input in &self.inputs {
            check_path("input", &input.path, false)?;
            check_object("input", &input.from)?;
            let is_prefix = input.from.key.is_empty() || input.from.key.ends_with('/');
            if input.range.is_some_and(|range| is_prefix || range.bytes == 0) {
                return Err(format!(
                    "input {:?}: a range is of at least one byte, of one object",
                    input.path
                ));
            }
        }
        for output in &self.outputs {
            check_path("output", &output.path, true)?;
            check_object("output", &output.to)?;
        }
        if let Work::Module(work) = &self.work {
            self.check_buffers(work)?;
        }
        let within = |what: &str, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(format!("{what} is {value}; give {min} to {max}"))
            }
        };
        within("tasks", self.tasks.into(), 1, TASKS_MAX.into())?;
        if self.is_gang {
            within("tasks of a gang", self.tasks.into(), 1, GANG_TASKS_MAX.into())?;
        }
        within("quorum", self.quorum.into(), 0, QUORUM_MAX.into())?;
        if self.quorum > 1 && (self.is_gang || self.outputs.is_empty()) {
            return Err("quorum: outputs of single tasks are compared; give outputs, and no gang".into());
        }
        bound("after: jobs", self.after.len(), AFTER_MAX)?;
        if self.after.iter().enumerate().any(|(at, job)| self.after[..at].contains(job)) {
            return Err("after: a job is named twice".into());
        }
        self.check_each()?;
        within("priority", self.priority.into(), 0, PRIORITY_MAX.into())?;
        within("attempts_max", self.attempts_max.into(), 1, ATTEMPTS_MAX.into())?;
        within("backoff_ms", self.backoff_ms, 0, BACKOFF_MS_MAX)?;
        within("time_limit_ms", self.time_limit_ms, 1, TIME_LIMIT_MS_MAX)?;
        let resources = &self.resources;
        within("cpu_millis", resources.cpu_millis.into(), 1, 1_000_000)?;
        within("memory_bytes", resources.memory_bytes, 1 << 20, 1 << 50)?;
        within("scratch_bytes", resources.scratch_bytes, 0, 1 << 50)?;
        if let Some(gpu) = &resources.gpu {
            within("gpu.cards", gpu.cards.into(), 0, GPUS_MAX as u64)?;
            within("gpu.sm_millis", gpu.sm_millis.into(), u64::from(gpu.cards == 0), 1000)?;
            within("gpu.memory_mib", gpu.memory_mib, 0, 1 << 30)?;
            bound("gpu.model: bytes", gpu.model.len(), TEXT_BYTES_MAX)?;
            within("gpu.level_min", gpu.level_min.into(), 0, LEVELS.len() as u64 - 1)?;
        }
        Ok(())
    }
}

impl JobSpec {
    fn check_each(&self) -> Result<(), String> {
        let Some(each) = &self.each else { return Ok(()) };
        each.check()?;
        if matches!(self.work, Work::Module(_)) {
            return Err(
                "each: a module reads by its buffers; give it an array of indices, and `offset_per_task`"
                    .into(),
            );
        }
        let path = each.path.trim_end_matches('/');
        if let Some(input) = self.inputs.iter().find(|input| input.path.trim_end_matches('/') == path) {
            return Err(format!("each: an input is at {:?}, too; give one of them another path", input.path));
        }
        if each.objects > 0 && self.tasks != each.tasks() {
            let (objects, per_task) = (each.objects, each.per_task);
            return Err(format!(
                "tasks is {}; {objects} objects, {per_task} a task, are {}",
                self.tasks,
                each.tasks()
            ));
        }
        Ok(())
    }

    /// A module reads and writes by its buffers alone.
    fn check_buffers(&self, work: &ModuleWork) -> Result<(), String> {
        let mut inputs: Vec<&str> = self.inputs.iter().map(|input| input.path.as_str()).collect();
        let mut outputs: Vec<&str> = self.outputs.iter().map(|output| output.path.as_str()).collect();
        for buffer in &work.buffers {
            let name = buffer.name.as_str();
            if matches!(buffer.fill, ModuleFill::Input { .. }) {
                let found = inputs.iter().position(|path| *path == name);
                inputs.swap_remove(
                    found.ok_or_else(|| format!("the buffer {name:?} has no input of its name"))?,
                );
            }
            if buffer.is_output {
                let found = outputs.iter().position(|path| *path == name);
                outputs.swap_remove(
                    found.ok_or_else(|| format!("the buffer {name:?} has no output of its name"))?,
                );
            }
        }
        match inputs.first().or(outputs.first()) {
            Some(path) => {
                Err(format!("{path:?} belongs to no buffer: a module reads and writes by its buffers"))
            }
            None => Ok(()),
        }
    }
}

fn check_object(what: &str, object: &ObjectPath) -> Result<(), String> {
    if object.bucket.is_empty() {
        return Err(format!("{what}: the bucket is empty"));
    }
    if object.key.len() > super::object::KEY_BYTES_MAX {
        return Err(format!("{what}: a key has at most {} bytes", super::object::KEY_BYTES_MAX));
    }
    Ok(())
}

/// A path inside the task's own folders: relative, without `..`.
fn check_path(what: &str, path: &str, may_be_empty: bool) -> Result<(), String> {
    if path.is_empty() && may_be_empty {
        return Ok(());
    }
    let parts_are_plain = path
        .trim_end_matches('/')
        .split('/')
        .all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'));
    if path.len() > TEXT_BYTES_MAX || !parts_are_plain {
        return Err(format!("{what}: {path:?} is no relative path without '.' and '..'"));
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum JobPhase {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobPhase {
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Tasks by where they are; their sum is the job's tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskCounts {
    pub pending: u32,
    pub active: u32,
    pub succeeded: u32,
    pub failed: u32,
    pub cancelled: u32,
}

/// A job, as it was submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub tenant: TenantId,
    pub access_key_id: String,
    /// What makes its submission happen once; may be empty.
    pub client_token: String,
    pub submitted_at: Timestamp,
    pub spec: JobSpec,
}

/// Where a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState {
    pub phase: JobPhase,
    pub counts: TaskCounts,
    /// Grows with every change.
    pub version: u64,
    pub changed_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// Tasks from this index on have never been tried.
    pub next_index: u32,
    /// Why it ended, where it did not succeed.
    pub reason: String,
    /// What it came to so far by the cluster's prices, charged or not, in millionths of a credit. Kept elsewhere, and put in where
    /// somebody asks.
    #[serde(default)]
    pub cost: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TaskPhase {
    Pending,
    /// Given to a node that has not said yet that it runs.
    Assigned,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl TaskPhase {
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Assigned | Self::Running)
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    Exited {
        code: i32,
    },
    Signalled {
        signal: i32,
    },
    OutOfMemory,
    /// It wrote more than it asked room for.
    OutOfDisk,
    TimedOut,
    /// Its code did what a machine cannot go on from.
    Faulted {
        why: String,
    },
    /// The task cannot work as it was submitted: a missing input, a malformed image.
    Refused {
        why: String,
    },
    /// The node or the pool failed the task: staging, publishing, starting.
    Failed {
        why: String,
    },
    /// Its node died, or did not begin it, or forgot it.
    Lost {
        why: String,
    },
}

/// What follows from an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Success,
    /// The task's own failure: counts against its attempts.
    Failure,
    /// Trying again cannot help.
    Hopeless,
    /// Somebody else's failure: counts against [`LOSSES_MAX`].
    Loss,
}

impl End {
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Exited { code: 0 } => Verdict::Success,
            Self::Exited { .. }
            | Self::Signalled { .. }
            | Self::OutOfMemory
            | Self::OutOfDisk
            | Self::TimedOut
            | Self::Faulted { .. } => Verdict::Failure,
            Self::Refused { .. } => Verdict::Hopeless,
            Self::Failed { .. } | Self::Lost { .. } => Verdict::Loss,
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exited with {code}"),
            Self::Signalled { signal } => write!(f, "killed by signal {signal}"),
            Self::OutOfMemory => f.write_str("used more memory than it asked for"),
            Self::OutOfDisk => f.write_str("wrote more than the scratch it asked for"),
            Self::TimedOut => f.write_str("ran longer than its time limit"),
            Self::Faulted { why } => write!(f, "faulted: {why}"),
            Self::Refused { why } => write!(f, "refused: {why}"),
            Self::Failed { why } => write!(f, "failed: {why}"),
            Self::Lost { why } => write!(f, "lost: {why}"),
        }
    }
}

/// An attempt that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastAttempt {
    pub attempt: u32,
    pub node: NodeId,
    pub assigned_at: Timestamp,
    pub ended_at: Timestamp,
    pub end: End,
    /// As its node measured it, where it reported.
    #[serde(default)]
    pub used: Option<PastUse>,
}

/// Of what an attempt used, what a task remembers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastUse {
    pub wall_ms: u64,
    pub cpu_ms: u64,
    pub memory_peak_bytes: u64,
    pub gpu_busy_ns: u64,
    pub gpu_level: Option<u8>,
}

/// A task that was tried at least once, or cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub index: u32,
    pub phase: TaskPhase,
    /// The current attempt, or the last; 0: none yet.
    pub attempt: u32,
    /// Who has the current attempt, or had the last.
    pub node: Option<NodeId>,
    pub assigned_at: Timestamp,
    pub changed_at: Timestamp,
    /// Attempts that failed by the task's own doing, and those lost.
    pub failures: u32,
    pub losses: u32,
    /// The last [`HISTORY_MAX`], oldest first.
    pub history: Vec<PastAttempt>,
    /// Receipt of its result; 0: none.
    pub receipt: u64,
    /// Attempt whose log is in the pool, and its bytes.
    pub log: Option<(u32, u64)>,
    /// A second attempt beside the current one.
    #[serde(default)]
    pub twin: Option<Twin>,
    /// The highest number that an attempt was given, where that is not the current one's.
    #[serde(default)]
    pub attempts: u32,
}

/// An attempt beside the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Twin {
    pub attempt: u32,
    pub node: NodeId,
    pub assigned_at: Timestamp,
}

impl Task {
    #[must_use]
    pub fn new(index: u32, now: Timestamp) -> Self {
        Self {
            index,
            phase: TaskPhase::Pending,
            attempt: 0,
            node: None,
            assigned_at: now,
            changed_at: now,
            failures: 0,
            losses: 0,
            history: Vec::new(),
            receipt: 0,
            log: None,
            twin: None,
            attempts: 0,
        }
    }

    /// Number of the next attempt: never that of one before.
    #[must_use]
    pub fn next_attempt(&self) -> u32 {
        self.attempt.max(self.attempts) + 1
    }
}

/// What an attempt used, as its node measured it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub wall_ms: u64,
    pub cpu_ms: u64,
    pub gpu_busy_ns: u64,
    pub memory_peak_bytes: u64,
    pub memory_byte_seconds: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// How strictly it was kept to its share of a card, 0 advisory to 5 exclusive; `None`: it had none. Left out of what is signed
    /// then, so that statements of earlier releases stay what they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_level: Option<u8>,
}

/// An object that a task published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub bucket: String,
    pub key: String,
    pub size: u64,
    pub blake3: [u8; 32],
}

/// What a node says of an attempt, signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    pub attempt: AttemptId,
    pub node: NodeId,
    pub end: End,
    pub usage: Usage,
    pub outputs: Vec<Published>,
}

impl Statement {
    /// What the node signs: MessagePack with positional fields.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        // Plain data always has this form.
        rmp_serde::to_vec(self).unwrap_or_default()
    }
}

/// Purpose of the signature over [`Statement::signed_bytes`].
pub const STATEMENT_PURPOSE: &str = "attempt-statement/1";

/// A statement that counted, with what the cluster knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// From 1, in the order in which they counted.
    pub sequence: u64,
    pub at: Timestamp,
    pub tenant: TenantId,
    /// What was held for the attempt, from its assignment to `at`.
    pub resources: Resources,
    pub assigned_at: Timestamp,
    pub statement: Statement,
    /// The node's signature over [`Statement::signed_bytes`].
    pub signature: Bytes,
}

/// A durable object, to become visible with the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewOutput {
    pub to: ObjectPath,
    pub new: NewContent,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub job: JobId,
    pub index: u32,
    pub node: NodeId,
    /// Cards of that node that it gets, or gets its share of, by the driver's names.
    #[serde(default)]
    pub gpus: Vec<String>,
    /// Beside the attempt that runs, and not in its place.
    #[serde(default)]
    pub is_twin: bool,
}

#[allow(clippy::large_enum_variant, reason = "moved a few times per request, never kept in numbers")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobsCommand {
    /// -> `Submitted`. With a token that the tenant has used: the job of then. `list`: of a job for objects, which they are.
    Submit {
        tenant: TenantId,
        access_key_id: String,
        client_token: String,
        spec: JobSpec,
        #[serde(default)]
        list: Option<NewContent>,
    },
    /// -> `Assigned`. Tasks that are not waiting any more are left out.
    Assign { assignments: Vec<Assignment> },
    /// The node runs these. Attempts that are not current are passed over.
    Start { node: NodeId, attempts: Vec<AttemptId> },
    /// Ends the attempt that the statement names, and publishes its outputs where it succeeded: all or nothing. Refused
    /// with [`super::command::Refusal::StaleAttempt`] where it is not current. Sent again it is done again as before.
    Finish { statement: Statement, signature: Bytes, outputs: Vec<NewOutput>, log: Option<NewContent> },
    /// Attempts that will never report.
    Lose { attempts: Vec<(AttemptId, String)> },
    /// Ends all that has not ended. `tenant`: the job must be its own.
    Cancel { tenant: Option<TenantId>, job: JobId, reason: String },
    /// Forgets jobs that ended before, and receipts given before; some at a time.
    Forget { before_ms: u64 },
    /// What machines offer to jobs now.
    NoteMachines { machines: Vec<Machine> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobsReply {
    Submitted {
        job: JobId,
        existed: bool,
    },
    Assigned(Vec<AttemptId>),
    /// How many jobs and receipts went; there may be more.
    Forgotten(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobsQuery {
    /// -> `Job`. `tenant`: the job must be its own.
    Job { tenant: Option<TenantId>, job: JobId },
    /// -> `Jobs` with ids below `before`, newest first. `tenant`: of one alone.
    Jobs { tenant: TenantId, before: Option<JobId>, entries_max: u32 },
    /// -> `Tasks` that were tried or cancelled, from `from_index` on.
    Tasks { job: JobId, from_index: u32, entries_max: u32 },
    /// -> `Queue`: what waits for a node, in order; some that wait for a later time included. `per_job`: of each job no more before
    /// all others have had as many, 0: no bound; `after`: only what comes behind this job of this priority.
    Queue {
        tasks_max: u32,
        #[serde(default)]
        per_job: u32,
        #[serde(default)]
        after: Option<(u8, JobId)>,
    },
    /// -> `Active`: every current attempt of the cluster.
    Active,
    /// -> `Assignments`: every current attempt of a node, with what it must do.
    Assignments { node: NodeId },
    /// -> `Assignments`, one or none: the attempt if it is current and the node's.
    Attempt { node: NodeId, attempt: AttemptId },
    /// -> `Due`: jobs whose deadline has passed.
    Due { now_ms: u64 },
    /// -> `Receipts` after one, ascending.
    Receipts { after: u64, entries_max: u32 },
    /// -> `Submitted`: the job that the tenant submitted with this token.
    Submitted { tenant: TenantId, client_token: String },
    /// -> `Machines`: what each offered last.
    Machines,
    /// -> `Agreements`: how often in a row a node's results were those of others.
    Agreements,
}

#[allow(clippy::large_enum_variant, reason = "moved a few times per request, never kept in numbers")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobsAnswer {
    Job(Job, JobState),
    Jobs(Vec<(Job, JobState)>),
    Tasks(Vec<Task>),
    Queue(Vec<QueuedJob>),
    Active(Vec<ActiveAttempt>),
    Assignments(Vec<AssignedTask>),
    Due(Vec<JobId>),
    Receipts(Vec<Receipt>),
    Submitted(Option<JobId>),
    Machines(Vec<Machine>),
    Agreements(Vec<(NodeId, u32)>),
}

/// What a machine offered to jobs last, whether or not it is up: so that a leader that has not heard it yet knows what could run
/// on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub node: NodeId,
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub scratch_bytes: u64,
    pub gpus: Vec<MachineGpu>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineGpu {
    pub model: String,
    pub memory_mib: u64,
    pub level_max: u8,
    pub has_shadow: bool,
}

/// Tasks of one job that wait, and what the scheduler must know of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedJob {
    pub job: JobId,
    pub tenant: TenantId,
    pub priority: u8,
    pub submitted_at: Timestamp,
    pub deadline: Option<Timestamp>,
    pub time_limit_ms: u64,
    pub resources: Resources,
    pub site: String,
    pub tasks: Vec<QueuedTask>,
    /// Of a gang: how many tasks must start together. 0: each by itself.
    #[serde(default)]
    pub gang_tasks: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedTask {
    pub index: u32,
    pub not_before: Timestamp,
    /// Where it was lost or failed last.
    pub last_node: Option<NodeId>,
    /// Nodes whose results wait for others to agree: neither they nor other nodes of their owners get it.
    #[serde(default)]
    pub barred: Vec<NodeId>,
}

/// An attempt under way and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveAttempt {
    pub node: NodeId,
    pub attempt: AttemptId,
    pub is_running: bool,
    pub assigned_at: Timestamp,
    pub time_limit_ms: u64,
    pub resources: Resources,
    pub tenant: TenantId,
    pub priority: u8,
    pub gpus: Vec<String>,
}

/// What a node is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedTask {
    pub attempt: AttemptId,
    pub tenant: TenantId,
    pub is_running: bool,
    pub spec: JobSpec,
    /// Cards that it gets, or gets its share of.
    #[serde(default)]
    pub gpus: Vec<String>,
}

/// Bucket of a tenant in which the logs of its jobs are kept. No door makes a bucket of such a name.
#[must_use]
pub fn log_bucket(tenant: TenantId) -> String {
    format!("JOBS-{}", tenant.0)
}

/// Key of an attempt's log in [`log_bucket`].
#[must_use]
pub fn log_key(attempt: AttemptId) -> String {
    format!("{}/{}/{}.log", attempt.job.0, attempt.index, attempt.attempt)
}
