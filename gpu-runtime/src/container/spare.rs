//! A worker that was started before its task, so that the task does not wait for a process to start.
//!
//! ```text
//! a task starts ─ is a spare there? ─ yes ─> its folder and its lock, over the spare's socket: it is the attempt's worker now
//!                                    └ no ──> a worker is started for it
//!       └─ RENEWED_AFTER ─> another spare ─ no task within `kept_for` ─> dismissed
//! ```
//!
//! Always: a spare knows of no task until it is given one, and is never given a second; what it becomes differs in nothing from a worker
//! that was started for its task. It ends when this end of its socket is closed, which the kernel does for a daemon that was killed. An
//! attempt whose lock lay in the socket of a spare that was killed is lost like any whose worker was: nobody holds its lock.
//!
//! Both ends are one program, so what goes over the socket has no version: one message, the folder's path and the lock's descriptor.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio::process::Child;
use tokio::sync::{Notify, oneshot};

use super::command;
use crate::runner::RunError;

/// After a task started, another spare is made: not beside the task's first instructions.
const RENEWED_AFTER: Duration = Duration::from_millis(20);

/// A worker without a task.
pub struct Spare {
    socket: OwnedFd,
    process: Process,
}

/// A worker's process, which is waited for: no zombie is left of it.
pub struct Process {
    pub pid: u32,
    /// What is to be done once it has ended; without, nothing is.
    pub then: oneshot::Sender<Box<dyn FnOnce() + Send>>,
}

impl Process {
    pub fn watch(mut worker: Child) -> Self {
        let pid = worker.id().unwrap_or(0);
        let (then, ended) = oneshot::channel::<Box<dyn FnOnce() + Send>>();
        tokio::spawn(async move {
            // Whatever it says, it is gone.
            let _ = worker.wait().await;
            if let Ok(then) = ended.await {
                then();
            }
        });
        Self { pid, then }
    }
}

impl Spare {
    fn start(worker: &[OsString]) -> Result<Self, RunError> {
        let starting = |source| RunError::Machine { doing: "start a spare worker".into(), source };
        let pair =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (socket, its) = pair.map_err(|errno| starting(errno.into()))?;
        let mut worker = command(worker)?;
        worker.arg("spare").stdin(Stdio::from(its)).stdout(Stdio::null()).stderr(Stdio::null());
        let worker = worker.spawn().map_err(starting)?;
        Ok(Self { socket, process: Process::watch(worker) })
    }

    /// Makes it the worker of an attempt.
    ///
    /// # Errors
    /// It is gone, and has nothing of the attempt.
    pub fn give(self, folder: &Path, lock: &OwnedFd) -> io::Result<Process> {
        let lock = [lock.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        if !rights.push(SendAncillaryMessage::ScmRights(&lock)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let path = [io::IoSlice::new(folder.as_os_str().as_bytes())];
        rustix::net::sendmsg(&self.socket, &path, &mut rights, SendFlags::NOSIGNAL)?;
        Ok(self.process)
    }
}

/// The spare of a runner. Dropped, it dismisses it.
pub struct Spares {
    worker: Vec<OsString>,
    kept_for: Duration,
    slot: Mutex<Slot>,
    /// A task was started.
    used: Arc<Notify>,
}

#[derive(Default)]
struct Slot {
    spare: Option<Spare>,
    /// Tasks that were started.
    starts: u64,
    is_kept: bool,
}

impl Spares {
    /// `kept_for`: without a task; zero keeps none.
    pub fn new(worker: Vec<OsString>, kept_for: Duration) -> Arc<Self> {
        Arc::new(Self { worker, kept_for, slot: Mutex::default(), used: Arc::default() })
    }

    /// The spare, for a task that starts now; another is there a while later.
    pub fn take(self: &Arc<Self>) -> Option<Spare> {
        if self.kept_for.is_zero() {
            return None;
        }
        let mut slot = self.lock();
        slot.starts += 1;
        self.used.notify_one();
        if !std::mem::replace(&mut slot.is_kept, true) {
            tokio::spawn(keep(Arc::downgrade(self), Arc::clone(&self.used), self.kept_for));
        }
        slot.spare.take()
    }

    /// Makes a spare where there is none; answers how many tasks had been started then. A task that starts meanwhile does not wait.
    fn renew(&self) -> u64 {
        let (starts, is_there) = {
            let slot = self.lock();
            (slot.starts, slot.spare.is_some())
        };
        if !is_there {
            match Spare::start(&self.worker) {
                // Nobody else makes one.
                Ok(spare) => self.lock().spare = Some(spare),
                Err(error) => tracing::debug!(%error, "no worker is started ahead"),
            }
        }
        starts
    }

    /// Lets the spare go, unless another task was started; says whether it did.
    fn dismiss(&self, starts: u64) -> bool {
        let mut slot = self.lock();
        if slot.starts != starts {
            return false;
        }
        (slot.spare, slot.is_kept) = (None, false);
        true
    }

    /// The process that waits for a task.
    pub fn pid(&self) -> Option<u32> {
        self.lock().spare.as_ref().map(|spare| spare.process.pid)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a spare until no task was started for a while, or the runner is gone.
async fn keep(spares: Weak<Spares>, used: Arc<Notify>, kept_for: Duration) {
    loop {
        tokio::time::sleep(RENEWED_AFTER).await;
        let starts = match spares.upgrade() {
            Some(spares) => spares.renew(),
            None => return,
        };
        let is_used = tokio::time::timeout(kept_for, used.notified()).await.is_ok();
        if !is_used && spares.upgrade().is_none_or(|spares| spares.dismiss(starts)) {
            return;
        }
    }
}
