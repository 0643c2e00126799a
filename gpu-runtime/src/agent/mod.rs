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
//! | `starts`  | who is told that attempts run                                        |
//! | `words`   | what the facts ask for, in the words of the runner                   |
//!
//! What was just assigned is told by the leader, and begins at once; whatever else there is to know, that an attempt is not assigned
//! any more above all, the agent asks.
//!
//! Always: the facts decide, and the agent follows: it keeps nothing that a restart loses. An attempt that ran before a
//! restart is joined, one that was only staged is staged again. Nothing that it reports counts unless the attempt is still
//! its own; what it cannot report it repeats until it hears that it counted or that it does not.

mod cache;
mod drive;
mod publish;
mod stage;
mod starts;
mod words;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use makai_erasure::NodeId;
use makai_raft::facts::desk::{Fault, Reply, Request, Told};
use makai_raft::facts::joblog::{self, LogPart};
use makai_raft::facts::jobs::{AssignedTask, AttemptId, End};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

pub use words::module_of;

use crate::inventory::Held;
use crate::runner::{self, Attempt, LogPage, LogStream, RunError, Runner};
use cache::Cache;
use starts::Starts;

/// How often the facts are asked for assignments; a hint comes sooner.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause before a question that nobody answered is asked again: doubling from the first to the last.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Bytes of one page of a log.
const LOG_PAGE_BYTES: usize = 512 * 1024;
/// Attempts that are told and not begun yet; beyond, the agent asks.
const TOLD_MAX: usize = 1000;
/// Attempts that are over and known by name, lest a word that was long on its way begins one anew.
const OVER_MAX: usize = 4096;

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
    known: Mutex<Attempts>,
    starts: Starts,
    /// What the leader told and is not begun yet.
    told: Mutex<Vec<AssignedTask>>,
    has_told: Notify,
}

/// What the agent drives, and when it asked for it.
#[derive(Default)]
struct Attempts {
    by_id: HashMap<AttemptId, Known>,
    /// Those that are not in it any more, the oldest first.
    over: VecDeque<AttemptId>,
    /// How often the facts were asked.
    looks: u64,
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
    /// The look before which it was told or done: what that found may be older, and says nothing of it.
    since: u64,
}

/// A question to the facts that is under way: its number, and what is assigned.
type Look = Pin<Box<dyn Future<Output = (u64, Result<Vec<AssignedTask>, String>)> + Send>>;

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
        let (starts, told) = (Starts::default(), Mutex::default());
        let (hint, has_told) = (Notify::new(), Notify::new());
        Ok(Arc::new(Self { options, cache, hint, known: Mutex::default(), starts, told, has_told }))
    }

    /// Says that there may be something new.
    pub fn wake(&self) {
        self.hint.notify_one();
    }

    /// Takes what was just assigned to this node.
    pub fn tell(&self, told: Vec<Told>) {
        let count = told.iter().fold(0usize, |count, one| count.saturating_add(one.attempts.len()));
        let mut waiting = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // Each takes a copy of its job's specification.
        if waiting.len().saturating_add(count) > TOLD_MAX {
            return self.wake();
        }
        waiting.extend(told.into_iter().flat_map(Told::assigned));
        self.has_told.notify_one();
    }

    /// Images and inputs that are here already.
    #[must_use]
    pub fn held(&self) -> Vec<Held> {
        self.cache.held()
    }

    /// Attempts that this node works on.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.lock().by_id.values().filter(|known| !known.is_done).count()
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
        let agent = Arc::clone(self);
        drives.spawn(async move { agent.tell_starts().await });
        let mut is_first = true;
        let mut look: Option<Look> = None;
        let mut again = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                (number, answer) = async { look.as_mut().expect("a look is under way").await }, if look.is_some() => {
                    look = None;
                    again.reset();
                    match answer {
                        Ok(assigned) => {
                            self.follow(number, &assigned, &mut before, &mut drives);
                            if is_first {
                                self.clear(std::mem::take(&mut before)).await;
                                is_first = false;
                            }
                        }
                        Err(why) => tracing::debug!(why, "what this node is to run is not known now"),
                    }
                }
                () = self.has_told.notified() => self.begin_told(&mut before, &mut drives),
                () = self.hint.notified(), if look.is_none() => look = Some(self.look()),
                _ = again.tick(), if look.is_none() => look = Some(self.look()),
                () = async { _ = stopping.wait_for(|stopping| *stopping).await } => return Ok(()),
            }
            while drives.try_join_next().is_some() {}
        }
    }

    /// Asks the facts; answers which look this was.
    fn look(self: &Arc<Self>) -> Look {
        let agent = Arc::clone(self);
        let number = {
            let mut attempts = self.lock();
            attempts.looks += 1;
            attempts.looks
        };
        Box::pin(async move { (number, agent.assignments().await) })
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
        look: u64,
        assigned: &[AssignedTask],
        before: &mut HashMap<String, Arc<dyn Attempt>>,
        drives: &mut JoinSet<()>,
    ) {
        let is_assigned = |id: &AttemptId| assigned.iter().any(|task| task.attempt == *id);
        {
            let mut attempts = self.lock();
            let Attempts { by_id, over, .. } = &mut *attempts;
            by_id.retain(|id, known| {
                let stays = known.since >= look || is_assigned(id) || !known.is_done;
                if !stays {
                    over.push_back(*id);
                }
                stays
            });
            let forgotten = over.len().saturating_sub(OVER_MAX);
            over.drain(..forgotten);
            for (_, attempt) in by_id.iter().filter(|(id, known)| known.since < look && !is_assigned(id)) {
                attempt.revoked.send_replace(true);
            }
        }
        for task in assigned {
            self.begin(task, look, before, drives);
        }
    }

    /// Starts what the leader told. What is here may have had to make room for it, which only a look shows.
    fn begin_told(
        self: &Arc<Self>,
        before: &mut HashMap<String, Arc<dyn Attempt>>,
        drives: &mut JoinSet<()>,
    ) {
        if self.busy() > 0 {
            self.wake();
        }
        let told = std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner));
        for task in told {
            let (looks, is_over) = {
                let attempts = self.lock();
                (attempts.looks, attempts.over.contains(&task.attempt))
            };
            if !is_over {
                self.begin(&task, looks, before, drives);
            }
        }
    }

    /// Starts an attempt that is not known yet.
    fn begin(
        self: &Arc<Self>,
        task: &AssignedTask,
        since: u64,
        before: &mut HashMap<String, Arc<dyn Attempt>>,
        drives: &mut JoinSet<()>,
    ) {
        let mut attempts = self.lock();
        if attempts.by_id.contains_key(&task.attempt) {
            return;
        }
        let attempt = before.remove(&name_of(task.attempt));
        let (revoked, is_revoked) = watch::channel(false);
        let gpus = task.gpus.clone();
        let new = Known { revoked, attempt: attempt.clone(), gpus, because: None, is_done: false, since };
        attempts.by_id.insert(task.attempt, new);
        let (agent, task) = (Arc::clone(self), task.clone());
        drives.spawn(async move {
            let id = task.attempt;
            drive::drive(&agent, task, attempt, is_revoked).await;
            let mut attempts = agent.lock();
            let since = attempts.looks;
            if let Some(known) = attempts.by_id.get_mut(&id) {
                (known.attempt, known.is_done, known.since) = (None, true, since);
            }
        });
    }

    /// Removes what earlier runs left that nobody wants any more: attempts, and folders of what never ran.
    async fn clear(&self, before: HashMap<String, Arc<dyn Attempt>>) {
        for attempt in before.into_values() {
            self.forget(&*attempt).await;
        }
        let attempts = self.options.dir.join("attempts");
        let wanted: Vec<String> = self.lock().by_id.keys().map(|id| name_of(*id)).collect();
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
        for (id, known) in &mut self.lock().by_id {
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
        let attempt = self.lock().by_id.get(&id).map(|known| known.attempt.clone());
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

    fn lock(&self) -> std::sync::MutexGuard<'_, Attempts> {
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
