//! What the facts give to this node, done: each attempt is staged, run, published and reported.
//!
//! ```text
//! assignments ─> stage (image, inputs: cached by version) ─> runner ─> log, outputs ─> finish ─> forgotten
//!      └── an attempt that is not assigned any more is killed and forgotten, wherever it stands
//! ```
//!
//! | file      | holds                                                               |
//! |-----------|---------------------------------------------------------------------|
//! | `drive`   | one attempt from its assignment to its report                        |
//! | `stage`   | image and inputs out of the pool, into folders                       |
//! | `publish` | outputs and log into the pool                                        |
//! | `cache`   | what was staged before                                               |
//! | `words`   | what the facts ask for, in the words of the runner                   |
//!
//! Always: the facts decide, and the agent follows: it keeps nothing that a restart loses. An attempt that ran before a
//! restart is joined, one that was only staged is staged again. Nothing that it reports counts unless the attempt is still
//! its own; what it cannot report it repeats until it hears that it counted or that it does not.

mod cache;
mod drive;
mod publish;
mod stage;
mod words;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use makai_erasure::NodeId;
use makai_raft::facts::desk::{Fault, Reply, Request};
use makai_raft::facts::joblog::{self, LogPart};
use makai_raft::facts::jobs::{AssignedTask, AttemptId, End};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

pub use words::module_of;

use crate::runner::{self, Attempt, LogPage, LogStream, RunError, Runner};
use cache::Cache;

/// How often the facts are asked for assignments; a hint comes sooner.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause before a question that nobody answered is asked again: doubling from the first to the last.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Bytes of one page of a log.
const LOG_PAGE_BYTES: usize = 512 * 1024;

/// The way to a gateway's desk.
#[async_trait]
pub trait Pool: Send + Sync + 'static {
    /// What concerns one attempt goes to one gateway as long as that answers.
    ///
    /// # Errors
    /// No gateway answers now.
    async fn ask(&self, about: Option<AttemptId>, request: Request) -> Result<Reply, String>;
}

/// Signs a statement with the node's key.
pub type Sign = Arc<dyn Fn(&[u8]) -> Bytes + Send + Sync>;

/// What the agent works with.
pub struct AgentOptions {
    pub node: NodeId,
    pub pool: Arc<dyn Pool>,
    pub runner: Arc<dyn Runner>,
    pub sign: Sign,
    /// The agent's own folder: attempts and cache.
    pub dir: PathBuf,
    /// Bytes that the cache may hold.
    pub cache_bytes_max: u64,
}

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("the agent's folder {path:?}: {source}")]
    Folder { path: PathBuf, source: io::Error },
    #[error("the runner cannot say which attempts it has: {0}")]
    Runner(#[from] RunError),
}

/// Does this node's part of jobs.
pub struct Agent {
    options: AgentOptions,
    cache: Cache,
    hint: Notify,
    known: Mutex<HashMap<AttemptId, Known>>,
}

/// An attempt that the agent drives.
struct Known {
    /// True: it is not assigned any more.
    revoked: watch::Sender<bool>,
    /// There once it runs.
    attempt: Option<Arc<dyn Attempt>>,
    /// Cards of this machine that it has, or has shares of.
    gpus: Vec<String>,
    /// What it ends with because this machine ends it.
    because: Option<End>,
    /// It was reported or killed. Known until the facts name it no more: an answer that was on its way meanwhile does not
    /// start it again.
    is_done: bool,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("node", &self.options.node).finish_non_exhaustive()
    }
}

impl Agent {
    /// # Errors
    /// Its folder cannot be made.
    pub fn new(options: AgentOptions) -> Result<Arc<Self>, AgentError> {
        let folder = |path: PathBuf| move |source| AgentError::Folder { path, source };
        let attempts = options.dir.join("attempts");
        std::fs::create_dir_all(&attempts).map_err(folder(attempts.clone()))?;
        let at = options.dir.join("cache");
        let cache = Cache::open(at.clone(), options.cache_bytes_max).map_err(folder(at))?;
        Ok(Arc::new(Self { options, cache, hint: Notify::new(), known: Mutex::default() }))
    }

    /// Says that there may be something new.
    pub fn wake(&self) {
        self.hint.notify_one();
    }

    /// Attempts that this node works on.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.lock().values().filter(|known| !known.is_done).count()
    }

    /// Follows the facts until `stopping` fires. What runs then goes on running, and is joined by the next agent.
    ///
    /// # Errors
    /// The runner does not say which attempts are there.
    pub async fn run(self: &Arc<Self>, mut stopping: watch::Receiver<bool>) -> Result<(), AgentError> {
        let mut before: HashMap<String, Arc<dyn Attempt>> = HashMap::new();
        for attempt in self.options.runner.attempts().await? {
            before.insert(attempt.id().as_str().to_owned(), Arc::from(attempt));
        }
        let mut drives = JoinSet::new();
        let mut is_first = true;
        loop {
            match self.assignments().await {
                Ok(assigned) => {
                    self.follow(&assigned, &mut before, &mut drives);
                    if is_first {
                        self.clear(std::mem::take(&mut before)).await;
                        is_first = false;
                    }
                }
                Err(why) => tracing::debug!(why, "what this node is to run is not known now"),
            }
            while drives.try_join_next().is_some() {}
            tokio::select! {
                () = self.hint.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
            }
        }
    }

    async fn assignments(&self) -> Result<Vec<AssignedTask>, String> {
        match self.options.pool.ask(None, Request::Assignments).await? {
            Reply::Assignments(assigned) => Ok(assigned),
            Reply::Fault(fault) => Err(fault.to_string()),
            other => Err(format!("the gateway answered something else: {other:?}")),
        }
    }

    /// Starts what is new, revokes what is gone.
    fn follow(
        self: &Arc<Self>,
        assigned: &[AssignedTask],
        before: &mut HashMap<String, Arc<dyn Attempt>>,
        drives: &mut JoinSet<()>,
    ) {
        let mut known = self.lock();
        known.retain(|id, known| !known.is_done || assigned.iter().any(|task| task.attempt == *id));
        for (id, attempt) in known.iter() {
            if !assigned.iter().any(|task| task.attempt == *id) {
                attempt.revoked.send_replace(true);
            }
        }
        for task in assigned {
            if known.contains_key(&task.attempt) {
                continue;
            }
            let attempt = before.remove(&name_of(task.attempt));
            let (revoked, is_revoked) = watch::channel(false);
            let gpus = task.gpus.clone();
            let new = Known { revoked, attempt: attempt.clone(), gpus, because: None, is_done: false };
            known.insert(task.attempt, new);
            let (agent, task) = (Arc::clone(self), task.clone());
            drives.spawn(async move {
                let id = task.attempt;
                drive::drive(&agent, task, attempt, is_revoked).await;
                if let Some(known) = agent.lock().get_mut(&id) {
                    (known.attempt, known.is_done) = (None, true);
                }
                agent.hint.notify_one();
            });
        }
    }

    /// Removes what earlier runs left that nobody wants any more: attempts, and folders of what never ran.
    async fn clear(&self, before: HashMap<String, Arc<dyn Attempt>>) {
        for attempt in before.into_values() {
            self.forget(&*attempt).await;
        }
        let attempts = self.options.dir.join("attempts");
        let wanted: Vec<String> = self.lock().keys().map(|id| name_of(*id)).collect();
        let Ok(mut folders) = tokio::fs::read_dir(&attempts).await else { return };
        while let Ok(Some(folder)) = folders.next_entry().await {
            if !wanted.iter().any(|name| folder.file_name() == name.as_str()) {
                remove_folder(folder.path()).await;
            }
        }
    }

    /// Kills and removes an attempt, again and again until it is gone.
    async fn forget(&self, attempt: &dyn Attempt) {
        let mut pause = PAUSE_MIN;
        for _ in 0..20 {
            match attempt.forget().await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(attempt = %attempt.id(), %error, "not all of it could be removed")
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Takes cards back from the attempts that hold them: those that lose the least first, all by force. They wait for another place.
    /// Answers how many there were, once they are gone.
    pub async fn take_back(&self, is_taken: impl Fn(&str) -> bool, why: &str) -> usize {
        let end = End::Lost { why: why.to_owned() };
        self.end_those(|_, known| known.gpus.iter().any(|uuid| is_taken(uuid)), &end).await
    }

    /// Ends one attempt for what it did, by the runner's name for it.
    pub async fn end_for(&self, name: &str, end: &End) -> usize {
        self.end_those(|id, _| name_of(id) == name, end).await
    }

    async fn end_those(&self, is_meant: impl Fn(AttemptId, &Known) -> bool, end: &End) -> usize {
        let mut attempts = Vec::new();
        let mut count = 0;
        for (id, known) in self.lock().iter_mut() {
            if !known.is_done && is_meant(*id, known) {
                known.because = Some(end.clone());
                count += 1;
                attempts.extend(known.attempt.clone());
            }
        }
        let mut by_loss = Vec::new();
        for attempt in attempts {
            // Where it is not known what is lost, it goes last.
            let lost = attempt.usage().await.map_or(u64::MAX, |usage| usage.wall_ms);
            by_loss.push((lost, attempt));
        }
        by_loss.sort_by_key(|(lost, _)| *lost);
        let mut going = JoinSet::new();
        for (_, attempt) in by_loss {
            if let Err(error) = attempt.kill().await {
                tracing::warn!(attempt = %attempt.id(), %error, "an attempt could not be ended");
            }
            going.spawn(async move { attempt.wait().await.map(drop) });
        }
        while going.join_next().await.is_some() {}
        count
    }

    /// A piece of the log of an attempt that is here.
    ///
    /// # Errors
    /// It is not here, or its log cannot be read.
    pub async fn log(&self, id: AttemptId, offset: u64) -> Result<LogPart, String> {
        let attempt = self.lock().get(&id).map(|known| known.attempt.clone());
        match attempt {
            Some(Some(attempt)) => log_part(&*attempt, offset).await.map_err(|error| error.to_string()),
            Some(None) => Ok(LogPart {
                records: Bytes::new(),
                offset: offset.max(joblog::MAGIC.len() as u64),
                is_complete: false,
            }),
            None => Err(format!("attempt {id} is not here")),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AttemptId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks until somebody answers, or nobody wants to know any more.
    async fn ask(
        &self,
        about: AttemptId,
        request: Request,
        revoked: &mut watch::Receiver<bool>,
    ) -> Result<Reply, Fault> {
        let mut pause = PAUSE_MIN;
        loop {
            match self.options.pool.ask(Some(about), request.clone()).await {
                Ok(Reply::Fault(Fault::Unavailable(why))) | Err(why) => {
                    tracing::debug!(attempt = %about, why, "asking a gateway again");
                }
                Ok(Reply::Fault(fault)) => return Err(fault),
                Ok(reply) => return Ok(reply),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                _ = revoked.wait_for(|revoked| *revoked) => return Err(Fault::Stale(about)),
            }
        }
    }
}

/// How the runner knows an attempt.
fn name_of(id: AttemptId) -> String {
    format!("job-{}-{}-{}", id.job.0, id.index, id.attempt)
}

/// A page of an attempt's log in the form that gateways and the pool keep.
async fn log_part(attempt: &dyn Attempt, offset: u64) -> Result<LogPart, RunError> {
    let from = if offset <= joblog::MAGIC.len() as u64 { 0 } else { offset };
    let LogPage { records, next_offset, is_complete } = attempt.log(from, LOG_PAGE_BYTES).await?;
    let mut bytes = Vec::new();
    for runner::LogRecord { stream, at_unix_ms, bytes: text } in &records {
        let stream = match stream {
            LogStream::Stdout => 1,
            LogStream::Stderr => 2,
            LogStream::Notice => 3,
        };
        joblog::append(&mut bytes, joblog::Record { stream, at_unix_ms: *at_unix_ms, text });
    }
    let start = offset.max(joblog::MAGIC.len() as u64);
    let offset = if records.is_empty() { start } else { next_offset.saturating_sub(bytes.len() as u64) };
    Ok(LogPart { records: bytes.into(), offset, is_complete })
}

/// Removes a folder; what cannot be removed is said, and left to the next start.
async fn remove_folder(path: PathBuf) {
    match tokio::fs::remove_dir_all(&path).await {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(?path, %error, "a folder of an attempt could not be removed"),
    }
}
