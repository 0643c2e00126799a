//! An attempt's folder: how the daemon and the worker, which outlive each other, know of one another.
//!
//! ```text
//! ATTEMPTS/ID/task.json      what to do; written before the worker starts, never changed
//!            /lock           held (flock) by the worker and the container's first process: free means that all is over
//!            /worker.json    the worker's process id and start time
//!            /cgroups.json   the cgroups made for it, so that whoever comes after a crash can empty and remove them
//!            /usage.json     what it used so far, replaced about once a second
//!            /outcome.json   how it ended; written once, last of all
//!            /log            its output, see `log`
//!            /skeleton/      mount points, and files that differ from task to task
//! ```
//!
//! Every JSON file is one object with the key `format` first ([`FORMAT`]). A file is replaced by renaming, so a reader
//! sees all of it or none. Nothing is flushed to disk: after a power cut an attempt is lost in any case.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::image::Bounds;
use super::worker::Confinement;
use crate::runner::{AttemptId, Outcome, RunError, TaskSpec, Usage};
use crate::slice::pace::Pass;

/// Magic and version of every file here.
const FORMAT: &str = "makai-attempt-1";

/// What a worker is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    pub spec: TaskSpec,
    pub confinement: Confinement,
    /// Where unpacked images are.
    pub images: PathBuf,
    /// Where ranges of user ids are given out.
    pub ids: PathBuf,
    pub bounds: Bounds,
    /// How it reaches its share of a card.
    #[serde(default)]
    pub card: Option<CardAccess>,
}

/// What an attempt needs for its share of a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardAccess {
    /// The driver's library where the owner names one.
    pub library: Option<PathBuf>,
    /// Folder of the node's desk.
    pub desk: PathBuf,
    pub pass: Pass,
    /// Numbers of its cards' device nodes.
    pub minors: Vec<u32>,
    /// The library in front of the driver's, where that keeps a container within its share.
    #[serde(default)]
    pub shadow: Option<PathBuf>,
}

/// The process that looks after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerProcess {
    pub pid: i32,
    /// As in `/proc/PID/stat`: with the id, a name that no other process of this boot has.
    pub start_ticks: u64,
}

/// One attempt's folder.
#[derive(Debug, Clone)]
pub struct AttemptFolder {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Framed<T> {
    format: String,
    body: T,
}

impl AttemptFolder {
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    #[must_use]
    pub fn of(attempts: &Path, id: &AttemptId) -> Self {
        Self::new(attempts.join(id.as_str()))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.path.join("log")
    }

    /// # Errors
    /// When the file is missing, torn or of another version.
    pub fn task(&self) -> Result<Task, RunError> {
        self.read("task.json")?.ok_or_else(|| machine(self, "task.json", io::ErrorKind::NotFound.into()))
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn write_task(&self, task: &Task) -> Result<(), RunError> {
        self.write("task.json", task)
    }

    /// # Errors
    /// When the file cannot be read.
    pub fn outcome(&self) -> Result<Option<Outcome>, RunError> {
        self.read("outcome.json")
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn write_outcome(&self, outcome: &Outcome) -> Result<(), RunError> {
        self.write("outcome.json", outcome)
    }

    /// # Errors
    /// When the file cannot be read.
    pub fn usage(&self) -> Result<Usage, RunError> {
        Ok(self.read("usage.json")?.unwrap_or_default())
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn write_usage(&self, usage: &Usage) -> Result<(), RunError> {
        self.write("usage.json", usage)
    }

    /// # Errors
    /// When the file cannot be read.
    pub fn cgroups(&self) -> Result<Vec<PathBuf>, RunError> {
        Ok(self.read("cgroups.json")?.unwrap_or_default())
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn write_cgroups(&self, folders: &[PathBuf]) -> Result<(), RunError> {
        self.write("cgroups.json", &folders)
    }

    /// Names this process as the attempt's worker.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_worker(&self) -> Result<(), RunError> {
        let pid = rustix::process::getpid();
        let start_ticks = start_ticks(pid).map_err(|source| machine(self, "worker.json", source))?;
        self.write("worker.json", &WorkerProcess { pid: pid.as_raw_nonzero().get(), start_ticks })
    }

    /// The attempt's lock, when nobody holds it: no process of the attempt is left.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn try_lock(&self) -> Result<Option<OwnedFd>, RunError> {
        let failed = |source| machine(self, "lock", source);
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(self.path.join("lock"));
        let file = OwnedFd::from(file.map_err(failed)?);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// The worker's process, where it has said its name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn worker_pid(&self) -> Result<Option<u32>, RunError> {
        let worker = self.read::<WorkerProcess>("worker.json")?;
        Ok(worker.and_then(|worker| u32::try_from(worker.pid).ok()))
    }

    /// A handle to the worker's process; `None` when it is gone, or has not said its name yet.
    ///
    /// # Errors
    /// When the file cannot be read or the process not be opened.
    pub fn worker(&self) -> Result<Option<OwnedFd>, RunError> {
        let Some(worker) = self.read::<WorkerProcess>("worker.json")? else { return Ok(None) };
        let Some(pid) = Pid::from_raw(worker.pid) else { return Ok(None) };
        let opened = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(opened) => opened,
            Err(Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(machine(self, "worker.json", errno.into())),
        };
        // Looked at after it was opened, the start time says whether the handle is of the right process.
        Ok(start_ticks(pid).is_ok_and(|ticks| ticks == worker.start_ticks).then_some(opened))
    }

    /// # Errors
    /// When the worker cannot be signalled; that it is gone is no error.
    pub fn signal(&self, signal: Signal) -> Result<(), RunError> {
        let Some(worker) = self.worker()? else { return Ok(()) };
        match rustix::process::pidfd_send_signal(&worker, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(machine(self, "worker.json", errno.into())),
        }
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, RunError> {
        let bytes = match fs::read(self.path.join(name)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(machine(self, name, error)),
        };
        let framed: Framed<T> =
            serde_json::from_slice(&bytes).map_err(|error| machine(self, name, io::Error::from(error)))?;
        if framed.format == FORMAT {
            Ok(Some(framed.body))
        } else {
            let text = format!("of format {:?}, not {FORMAT:?}", framed.format);
            Err(machine(self, name, io::Error::new(io::ErrorKind::InvalidData, text)))
        }
    }

    fn write<T: Serialize>(&self, name: &str, body: &T) -> Result<(), RunError> {
        let failed = |source| machine(self, name, source);
        let framed = Framed { format: FORMAT.to_owned(), body };
        let bytes = serde_json::to_vec(&framed).map_err(|error| failed(error.into()))?;
        let part = self.path.join(format!(".{name}.{}", std::process::id()));
        fs::write(&part, bytes).and_then(|()| fs::rename(&part, self.path.join(name))).map_err(failed)
    }
}

fn machine(folder: &AttemptFolder, name: &str, source: io::Error) -> RunError {
    RunError::Machine { doing: format!("use {:?}", folder.path.join(name)), source }
}

/// When a process started, in the kernel's ticks since boot.
fn start_ticks(pid: Pid) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    // The name, in parentheses, may hold anything; 22nd field, so the 20th behind it.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    fields
        .split_whitespace()
        .nth(19)
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}
