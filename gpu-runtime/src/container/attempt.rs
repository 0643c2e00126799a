//! One attempt as the agent sees it: everything is read from its folder, so that any daemon can.

use std::fmt;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;

use super::state::AttemptFolder;
use super::worker::watch;
use super::{cgroup, log};
use crate::runner::{Attempt, AttemptId, End, Enforcement, LogPage, Outcome, RunError, Usage};

/// A worker says its name within milliseconds of its start.
const NAME_POLL: Duration = Duration::from_millis(5);
/// How often a stop is tried on a worker that has not said its name yet.
const SIGNAL_TRIES: u32 = 1000;

pub(super) struct ContainerAttempt {
    id: AttemptId,
    folder: AttemptFolder,
    enforcement: Enforcement,
}

impl fmt::Debug for ContainerAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ContainerAttempt").field(&self.id).finish()
    }
}

impl ContainerAttempt {
    pub(super) fn new(id: AttemptId, folder: AttemptFolder, enforcement: Enforcement) -> Self {
        Self { id, folder, enforcement }
    }

    pub(super) fn folder(&self) -> &AttemptFolder {
        &self.folder
    }

    /// Gives an attempt whose processes are all gone the outcome that its worker could not write.
    pub(super) fn settle_if_lost(&self) -> Result<Option<Outcome>, RunError> {
        if let Some(outcome) = self.folder.outcome()? {
            return Ok(Some(outcome));
        }
        let Some(_lock) = self.folder.try_lock()? else { return Ok(None) };
        // A worker writes the outcome first and lets go of the lock last.
        if let Some(outcome) = self.folder.outcome()? {
            return Ok(Some(outcome));
        }
        let failed = |doing: &'static str| move |source| RunError::Machine { doing: doing.into(), source };
        cgroup::remove(&self.folder.cgroups()?).map_err(failed("remove a lost attempt's cgroups"))?;
        let mut usage = self.folder.usage()?;
        if let Some(output) = self.folder.task()?.spec.output.filter(|output| output.is_dir()) {
            watch::sweep(&output).map_err(failed("sweep a lost attempt's output folder"))?;
            usage.output_bytes =
                watch::size_of(&output).map_err(failed("weigh a lost attempt's output"))?.file_bytes;
        }
        let now = clock_gettime(ClockId::Realtime);
        let outcome = Outcome {
            end: End::WorkerLost,
            message: "the worker was killed from outside, or the machine restarted".into(),
            usage,
            enforcement: self.enforcement.clone(),
            started_at_ms: None,
            ended_at_ms: u64::try_from(now.tv_sec).unwrap_or(0) * 1000,
        };
        self.folder.write_outcome(&outcome)?;
        Ok(Some(outcome))
    }

    async fn signal(&self, signal: Signal) -> Result<(), RunError> {
        for _ in 0..SIGNAL_TRIES {
            if self.folder.worker()?.is_some() {
                return self.folder.signal(signal);
            }
            if self.settle_if_lost()?.is_some() {
                return Ok(());
            }
            tokio::time::sleep(NAME_POLL).await;
        }
        let source = io::ErrorKind::TimedOut.into();
        Err(RunError::Machine { doing: format!("find the worker of attempt {}", self.id), source })
    }
}

#[async_trait]
impl Attempt for ContainerAttempt {
    fn id(&self) -> &AttemptId {
        &self.id
    }

    async fn wait(&self) -> Result<Outcome, RunError> {
        loop {
            if let Some(outcome) = self.settle_if_lost()? {
                return Ok(outcome);
            }
            match self.folder.worker()? {
                Some(worker) => {
                    let waiting = |source| RunError::Machine { doing: "wait for a worker".into(), source };
                    // SAFETY: the descriptor is owned by what is registered, and taken off before it is closed.
                    let worker =
                        unsafe { AsyncFd::register(worker) }.map_err(|error| waiting(error.into()))?;
                    _ = worker.readable().await.map_err(waiting)?;
                }
                None => tokio::time::sleep(NAME_POLL).await,
            }
        }
    }

    async fn usage(&self) -> Result<Usage, RunError> {
        match self.folder.outcome()? {
            Some(outcome) => Ok(outcome.usage),
            None => self.folder.usage(),
        }
    }

    async fn log(&self, offset: u64, max_bytes: usize) -> Result<LogPage, RunError> {
        // Asked before the log is read: what an ended attempt's log holds then is all.
        let has_ended = self.folder.outcome()?.is_some();
        let path = self.folder.log_path();
        let mut page = log::read_page(&path, offset, max_bytes).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => RunError::Invalid(format!("log offset {offset}: {error}")),
            _ => RunError::Machine { doing: format!("read {path:?}"), source: error },
        })?;
        // An attempt that was lost early has no log at all; a torn last record is never completed.
        page.is_complete = has_ended && (page.is_complete || page.records.is_empty());
        Ok(page)
    }

    async fn stop(&self) -> Result<(), RunError> {
        self.signal(Signal::TERM).await
    }

    async fn kill(&self) -> Result<(), RunError> {
        self.signal(Signal::QUIT).await
    }

    async fn forget(&self) -> Result<(), RunError> {
        if !self.folder.path().is_dir() {
            return Ok(());
        }
        if self.settle_if_lost()?.is_none() {
            self.kill().await?;
            self.wait().await?;
        }
        let failed = |source| RunError::Machine { doing: format!("remove the attempt {}", self.id), source };
        // The worker writes its outcome a moment before it is gone.
        while self.folder.path().is_dir() {
            if let Some(_lock) = self.folder.try_lock()? {
                cgroup::remove(&self.folder.cgroups()?).map_err(failed)?;
                return watch::remove(self.folder.path()).map_err(failed);
            }
            tokio::time::sleep(NAME_POLL).await;
        }
        Ok(())
    }
}
