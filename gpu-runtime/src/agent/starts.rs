//! Who is told that attempts run: one request for all that began while the one before was under way.
//!
//! That an attempt has ended says that it ran, too. So only a job's first attempts here are told before their end is; others that end before
//! they are told are not told of at all.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use makai_raft::facts::desk::{Fault, Reply, Request};
use makai_raft::facts::jobs::{AttemptId, JobId};
use tokio::sync::{Notify, watch};

use super::{Agent, PAUSE_MAX, PAUSE_MIN};

/// Jobs of which it is known that attempts run; beyond, it is said of some again.
const JOBS_MAX: usize = 1000;
/// Attempts in one request.
const AT_ONCE_MAX: usize = 1000;

/// What is yet to be told.
#[derive(Default)]
pub struct Starts {
    waiting: Mutex<Waiting>,
    is_new: Notify,
}

#[derive(Default)]
struct Waiting {
    attempts: Vec<(AttemptId, watch::Sender<bool>)>,
    told: HashSet<JobId>,
}

impl Starts {
    /// Has it told that this attempt runs. Answers who says so once it is, where that is to be waited for.
    pub fn tell(&self, attempt: AttemptId) -> Option<watch::Receiver<bool>> {
        let (is_told, told) = watch::channel(false);
        let mut waiting = self.lock();
        waiting.attempts.push((attempt, is_told));
        self.is_new.notify_one();
        (!waiting.told.contains(&attempt.job)).then_some(told)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agent {
    /// Tells what begins, for ever.
    pub(super) async fn tell_starts(&self) {
        loop {
            self.starts.is_new.notified().await;
            let mut pause = PAUSE_MIN;
            loop {
                let told = self.next_starts();
                if told.is_empty() {
                    break;
                }
                let attempts = told.iter().map(|(attempt, _)| *attempt).collect();
                match self.options.pool.ask(None, Request::Start { attempts }).await {
                    Ok(Reply::Fault(Fault::Unavailable(why))) | Err(why) => {
                        tracing::debug!(why, "that attempts run is told again");
                    }
                    // What is refused is no attempt of this node, which it hears elsewhere.
                    Ok(_) => {
                        pause = PAUSE_MIN;
                        self.were_told(told);
                        continue;
                    }
                }
                self.starts.lock().attempts.extend(told);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// What is to be told now: not of an attempt that nobody waits for any more.
    fn next_starts(&self) -> Vec<(AttemptId, watch::Sender<bool>)> {
        let mut waiting = self.starts.lock();
        let here = self.lock();
        let runs = |id: &AttemptId| here.by_id.get(id).is_some_and(|known| known.attempt.is_some());
        waiting.attempts.retain(|(id, told)| !told.is_closed() || runs(id));
        let count = waiting.attempts.len().min(AT_ONCE_MAX);
        waiting.attempts.drain(..count).collect()
    }

    fn were_told(&self, told: Vec<(AttemptId, watch::Sender<bool>)>) {
        let mut waiting = self.starts.lock();
        if waiting.told.len() > JOBS_MAX {
            waiting.told.clear();
        }
        for (attempt, is_told) in told {
            waiting.told.insert(attempt.job);
            is_told.send_replace(true);
        }
    }
}
