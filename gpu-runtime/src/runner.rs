//! The port between who decides what runs here and what runs it: one task, one attempt, one confined worker.
//!
//! ```text
//! agent ── TaskSpec ──> Runner::start ──> Attempt ── wait ──> Outcome ── receipt
//!                                            ├── log (pages, by offset)
//!                                            └── stop, kill, forget
//! ```
//!
//! What always holds, whichever runner is behind the port:
//!
//! - An attempt id is started at most once on a machine: starting it again joins the attempt that is there.
//! - An attempt does not need the process that started it: after a restart [`Runner::attempts`] lists it again.
//! - Every attempt ends with an [`Outcome`], also when its worker was killed, and its outcome never changes.
//! - After [`Attempt::forget`] nothing of the attempt is left on the machine but what stands in its output folder.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// Runs attempts on this machine.
#[async_trait]
pub trait Runner: Send + Sync + fmt::Debug {
    /// What this machine can enforce, found out once at start. Belongs in the node's facts and in every receipt.
    fn enforcement(&self) -> Enforcement;

    /// Whether an image is unpacked here already, so that its file need not be staged.
    fn has_image(&self, content: &ContentId) -> bool;

    /// Starts an attempt, or joins it when this id was started before.
    ///
    /// Answers once a worker process has the task; a bad image or command is told by [`Attempt::wait`].
    ///
    /// # Errors
    /// [`RunError::Refused`]: this machine may not run it. [`RunError::Invalid`]: the task itself is at fault, nowhere
    /// will it run. [`RunError::Machine`]: try another node.
    async fn start(&self, task: &TaskSpec) -> Result<Box<dyn Attempt>, RunError>;

    /// Every attempt that this machine knows: running, and ended but not forgotten.
    ///
    /// # Errors
    /// [`RunError::Machine`] when the state folder cannot be read.
    async fn attempts(&self) -> Result<Vec<Box<dyn Attempt>>, RunError>;
}

/// One attempt on this machine. Dropping it changes nothing: the attempt goes on.
#[async_trait]
pub trait Attempt: Send + Sync + fmt::Debug {
    fn id(&self) -> &AttemptId;

    /// Waits for the end. May be dropped and called again, from any number of holders.
    ///
    /// # Errors
    /// [`RunError::Machine`] when the attempt's state cannot be read.
    async fn wait(&self) -> Result<Outcome, RunError>;

    /// What it used so far; after the end, the same as in its outcome.
    ///
    /// # Errors
    /// [`RunError::Machine`] when the attempt's state cannot be read.
    async fn usage(&self) -> Result<Usage, RunError>;

    /// Up to `max_bytes` of output (at least one record) from `offset`, 0 being the start. Answers at once;
    /// an empty page says that nothing more is there yet, or ever when [`LogPage::is_complete`].
    ///
    /// # Errors
    /// [`RunError::Machine`] when the log cannot be read; [`RunError::Invalid`] for an offset inside a record.
    async fn log(&self, offset: u64, max_bytes: usize) -> Result<LogPage, RunError>;

    /// Asks it to end: SIGTERM to the command, and after [`Limits::stop_grace_ms`] an end by force to all it started.
    ///
    /// # Errors
    /// [`RunError::Machine`] when the worker cannot be signalled. An attempt that has ended is no error.
    async fn stop(&self) -> Result<(), RunError>;

    /// Ends it by force and at once.
    ///
    /// # Errors
    /// As [`Attempt::stop`].
    async fn kill(&self) -> Result<(), RunError>;

    /// Removes all that the machine keeps of it, its log too. A running attempt is killed first.
    ///
    /// # Errors
    /// [`RunError::Machine`] with what could not be removed; call again later.
    async fn forget(&self) -> Result<(), RunError>;
}

/// The name of an attempt: 1 to 80 of `a-z`, `0-9`, `-`, starting with a letter or digit. It names folders and cgroups.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AttemptId(String);

impl AttemptId {
    /// The longest id.
    pub const LEN_MAX: usize = 80;

    /// # Errors
    /// [`RunError::Invalid`] when the name breaks the rule above.
    pub fn new(name: impl Into<String>) -> Result<Self, RunError> {
        let name = name.into();
        let is_named = (1..=Self::LEN_MAX).contains(&name.len())
            && !name.starts_with('-')
            && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if is_named {
            Ok(Self(name))
        } else {
            Err(RunError::Invalid(format!(
                "the attempt id {name:?} is not 1 to {} of a-z, 0-9 and '-', starting with a letter or digit",
                Self::LEN_MAX
            )))
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AttemptId {
    type Error = RunError;

    fn try_from(name: String) -> Result<Self, RunError> {
        Self::new(name)
    }
}

impl From<AttemptId> for String {
    fn from(id: AttemptId) -> Self {
        id.0
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The BLAKE3 of a file's bytes: what caches on this machine go by. 64 hexadecimal digits in text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContentId(pub [u8; 32]);

impl TryFrom<String> for ContentId {
    type Error = RunError;

    fn try_from(text: String) -> Result<Self, RunError> {
        let mut id = [0; 32];
        hex::decode_to_slice(&text, &mut id)
            .map_err(|_| RunError::Invalid(format!("{text:?} is no BLAKE3 of 64 hexadecimal digits")))?;
        Ok(Self(id))
    }
}

impl From<ContentId> for String {
    fn from(id: ContentId) -> Self {
        hex::encode(id.0)
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What one attempt is to do, with everything it needs on this machine already.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub attempt: AttemptId,
    pub work: Work,
    pub limits: Limits,
    /// A folder of staged inputs, read-only for the task (`/in` in a container). Files 0644, folders 0755.
    pub input: Option<PathBuf>,
    /// An empty folder for results (`/out` in a container). Links and special files that a task leaves in it
    /// are removed before the outcome is written: what stands there afterwards is files and folders alone.
    pub output: Option<PathBuf>,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    Container(ContainerWork),
    Module(ModuleWork),
}

/// A command in an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerWork {
    pub image: Image,
    /// Command and arguments; empty takes the image's own entry point and command.
    pub command: Vec<String>,
    /// Added to the image's environment, winning over it.
    pub env: BTreeMap<String, String>,
    /// Empty takes the image's, else `/`.
    pub working_dir: String,
    /// `uid`, `uid:gid` or a name in the image's `/etc/passwd`; empty takes the image's, else 0. These are ids inside
    /// the container: outside, none of them is a user of this machine.
    pub user: String,
    pub network: Network,
}

/// Kernels of a CUDA module and what to run them on. Files are in the task's input and output folders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleWork {
    /// The module as PTX text.
    pub ptx: String,
    pub buffers: Vec<ModuleBuffer>,
    /// Launches, one after the other.
    pub steps: Vec<ModuleStep>,
}

/// Device memory with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleBuffer {
    pub name: String,
    pub bytes: u64,
    pub fill: Fill,
    /// The file of the output folder that it is written to when every step has run.
    pub output: Option<String>,
}

/// What a buffer holds before the first step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    Zero,
    /// These bytes, and zeros behind them.
    Inline {
        bytes: Vec<u8>,
    },
    /// As many bytes of a file of the input folder as the buffer has.
    Input {
        file: String,
        offset: u64,
    },
}

/// One launch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleStep {
    pub kernel: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    pub arguments: Vec<Argument>,
    /// How often, one after the other; at least 1.
    pub repeat: u32,
}

/// What a kernel's parameter gets. A pointer is a buffer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Argument {
    Buffer {
        name: String,
    },
    U32 {
        value: u32,
    },
    I32 {
        value: i32,
    },
    U64 {
        value: u64,
    },
    I64 {
        value: i64,
    },
    F32 {
        value: f32,
    },
    F64 {
        value: f64,
    },
    /// As wide as the kernel declares it; refused where it does not fit.
    Integer {
        value: i64,
    },
    /// As above, for numbers beyond 2^63.
    Unsigned {
        value: u64,
    },
    /// Single or double, as the kernel declares it.
    Real {
        value: f64,
    },
    /// As they lie in memory: a structure by value.
    Bytes {
        bytes: Vec<u8>,
    },
}

/// A file holding an OCI image layout or a `docker save` archive (tar), or a root file system (tar); each plain or gzip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// The BLAKE3 of the file.
    pub content: ContentId,
    /// Where the file is; may be absent while [`Runner::has_image`] holds.
    pub path: Option<PathBuf>,
}

/// What a task may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Its own loopback, nothing else.
    #[default]
    None,
    /// The machine's network. Refused unless the owner allows it.
    Host,
}

/// The most an attempt may use. Every limit is enforced; how well says [`Enforcement`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Thousandths of a core.
    pub cpu_milli: u32,
    /// Memory of all its processes and its `/tmp`, swap included.
    pub memory_bytes: u64,
    /// What it may leave in the output folder.
    pub disk_bytes: u64,
    /// Processes and threads at once.
    pub pids: u32,
    /// Wall-clock time from the command's first instruction.
    pub time_ms: u64,
    /// Between SIGTERM and the end by force.
    pub stop_grace_ms: u64,
    /// Output kept in all; what comes after is counted and dropped, and the log says so.
    pub log_bytes: u64,
    /// Output kept per second, in the long run, with the same rule.
    pub log_bytes_per_sec: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_milli: 1000,
            memory_bytes: 512 << 20,
            disk_bytes: 1 << 30,
            pids: 512,
            time_ms: 3_600_000,
            stop_grace_ms: 10_000,
            log_bytes: 64 << 20,
            log_bytes_per_sec: 1 << 20,
        }
    }
}

/// How an attempt ended. Never changes once there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub end: End,
    /// For a person: what happened, where, and what to do. One line.
    pub message: String,
    pub usage: Usage,
    pub enforcement: Enforcement,
    /// Unix milliseconds by this machine's clock: the command's first instruction (absent when it had none), and the end.
    pub started_at_ms: Option<u64>,
    pub ended_at_ms: u64,
}

impl Outcome {
    /// Whether the task did what it was asked to.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.end == End::Exited { code: 0 }
    }
}

/// Why it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The command ended by itself.
    Exited {
        code: i32,
    },
    /// A signal that nobody here sent ended the command; 31 (SIGSYS) is a forbidden system call.
    Signalled {
        signal: i32,
    },
    /// [`Attempt::stop`] or [`Attempt::kill`] ended it.
    Stopped,
    TimeLimit,
    MemoryLimit,
    DiskLimit,
    /// The image cannot be used: malformed, dangerous or over a bound.
    BadImage,
    /// The module cannot be run: malformed, not supported here, or a step does not fit it.
    BadModule,
    /// A kernel faulted: an address outside of its buffers, a trap, a barrier that not all reach.
    ModuleFault,
    /// The command cannot be started in its image, or the user or working folder is not there.
    BadCommand,
    /// The worker was killed from outside or the machine restarted.
    WorkerLost,
    /// The machine failed, not the task.
    MachineFault,
}

impl End {
    /// Whether the same task may end otherwise on another machine: retry it there, and do not blame the task.
    #[must_use]
    pub fn is_machines_fault(&self) -> bool {
        matches!(self, Self::WorkerLost | Self::MachineFault)
    }
}

/// What an attempt used: the measured part of its receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    pub wall_ms: u64,
    /// CPU time of all its processes.
    pub cpu_ms: u64,
    pub memory_peak_bytes: u64,
    /// Memory in use, summed over time.
    pub memory_byte_seconds: u64,
    pub input_bytes: u64,
    pub output_bytes: u64,
    pub log_bytes: u64,
    pub log_bytes_dropped: u64,
}

/// How well this machine keeps a task to its place and its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforcement {
    /// The level of the weakest part.
    pub level: Level,
    /// One line per part that is weaker than strict: what is missing and what to do about it.
    pub weaknesses: Vec<String>,
}

/// Ordered: a customer may ask for a least one. Whatever the level, a task runs in namespaces of its own, without
/// capabilities and behind a system call filter: a machine that cannot do that runs no tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Some limits are watched and answered within a second, rather than made impossible to pass by the kernel.
    Watched,
    /// The kernel holds the limits on memory, CPU and processes, and the task is a user of its own on this machine.
    Strict,
}

/// A stretch of an attempt's output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogPage {
    pub records: Vec<LogRecord>,
    /// Where the next page starts.
    pub next_offset: u64,
    /// Nothing will follow `next_offset`.
    pub is_complete: bool,
}

/// Bytes that came at one time from one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    pub stream: LogStream,
    pub at_unix_ms: u64,
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    Stdout,
    Stderr,
    /// The worker itself: output dropped, the stop asked for, a limit reached.
    Notice,
}

/// Why the machine does not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// This machine may not run it: place it elsewhere.
    #[error("{0}")]
    Refused(String),
    /// The task is wrong wherever it runs.
    #[error("{0}")]
    Invalid(String),
    /// The machine fails; the task may run elsewhere.
    #[error("{doing}")]
    Machine { doing: String, source: std::io::Error },
}
