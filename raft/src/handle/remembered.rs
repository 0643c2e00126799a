//! What loops ask again and again, asked anew only once the facts have changed.
//!
//! ```text
//! version, then answer ─> kept ─ the version is the same ─> given again
//!                              └ another, or none is known ─> asked, and kept
//! ```
//!
//! Always: an answer knows at least of the version that it is kept under, because that was read before it was asked for. So what is
//! given again is as new as the newest version that this process has heard of.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{MetaError, Metadata};
use crate::facts::command::{Command, Reply};
use crate::facts::query::{Answer, Query};

/// Questions whose answers are kept; loops have about a dozen.
const KEPT_MAX: usize = 32;

/// What changes with the facts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version {
    /// How far they are applied, somewhere.
    pub facts: u64,
    /// Changes that this process knows of besides.
    pub own: u64,
}

/// The version now; `None`: it is not known.
pub type VersionNow = Arc<dyn Fn() -> Option<Version> + Send + Sync>;

/// The port [`Metadata`] for loops. Proposals, and questions that are not [`Query::is_repeated`], pass through.
pub struct Remembered {
    facts: Arc<dyn Metadata>,
    version: VersionNow,
    kept: Mutex<Kept>,
}

impl Remembered {
    #[must_use]
    pub fn new(facts: Arc<dyn Metadata>, version: VersionNow) -> Self {
        Self { facts, version, kept: Mutex::default() }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Metadata for Remembered {
    async fn propose(&self, command: Command) -> Result<Reply, MetaError> {
        self.facts.propose(command).await
    }

    async fn query(&self, query: Query) -> Result<Answer, MetaError> {
        let Some(version) = (self.version)().filter(|_| query.is_repeated()) else {
            return self.facts.query(query).await;
        };
        if let Some(answer) = self.kept().get(version, &query) {
            return Ok(answer);
        }
        let answer = self.facts.query(query.clone()).await?;
        if answer.is_small() {
            self.kept().put(version, query, answer.clone());
        }
        Ok(answer)
    }
}

/// Answers of one version. Pure.
#[derive(Default)]
struct Kept {
    version: Version,
    answers: Vec<(Query, Answer)>,
}

impl Kept {
    fn get(&self, version: Version, query: &Query) -> Option<Answer> {
        let mut answers = self.answers.iter().filter(|_| self.version == version);
        answers.find(|(asked, _)| asked == query).map(|(_, answer)| answer.clone())
    }

    fn put(&mut self, version: Version, query: Query, answer: Answer) {
        if version != self.version {
            *self = Self { version, answers: Vec::new() };
        }
        self.answers.retain(|(asked, _)| *asked != query);
        if self.answers.len() < KEPT_MAX {
            self.answers.push((query, answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::facts::jobs::{JobsAnswer, JobsQuery};
    use crate::facts::object::Blob;

    /// Counts what reaches it.
    #[derive(Default)]
    struct Counting(AtomicU64);

    #[async_trait]
    impl Metadata for Counting {
        async fn propose(&self, _command: Command) -> Result<Reply, MetaError> {
            Ok(Reply::Done)
        }

        async fn query(&self, query: Query) -> Result<Answer, MetaError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            match query {
                Query::Jobs(_) => Ok(Answer::Jobs(JobsAnswer::Active(Vec::new()))),
                Query::Tenants => Err(MetaError::Overloaded),
                _ => Ok(Answer::Blobs(Vec::<Blob>::new())),
            }
        }
    }

    struct Room {
        asked: Arc<Counting>,
        version: Arc<AtomicU64>,
        remembered: Remembered,
    }

    /// Version 0 stands for one that is not known.
    fn room() -> Room {
        let (asked, version) = (Arc::new(Counting::default()), Arc::new(AtomicU64::new(1)));
        let now = Arc::clone(&version);
        let known = move || {
            let facts = Some(now.load(Ordering::Relaxed)).filter(|version| *version > 0)?;
            Some(Version { facts, own: 0 })
        };
        let remembered = Remembered::new(asked.clone(), Arc::new(known));
        Room { asked, version, remembered }
    }

    impl Room {
        async fn ask(&self, query: Query) -> u64 {
            let before = self.asked.0.load(Ordering::Relaxed);
            drop(self.remembered.query(query).await);
            self.asked.0.load(Ordering::Relaxed) - before
        }
    }

    fn active() -> Query {
        Query::Jobs(JobsQuery::Active)
    }

    #[tokio::test]
    async fn one_version_is_asked_once_and_the_next_anew() {
        let room = room();
        assert_eq!([room.ask(active()).await, room.ask(active()).await], [1, 0]);
        room.version.store(2, Ordering::Relaxed);
        assert_eq!([room.ask(active()).await, room.ask(active()).await], [1, 0]);
        // Nobody knows whether it is the same that comes back.
        room.version.store(1, Ordering::Relaxed);
        assert_eq!(room.ask(active()).await, 1);
    }

    #[tokio::test]
    async fn nothing_is_given_again_while_no_version_is_known() {
        let room = room();
        room.ask(active()).await;
        room.version.store(0, Ordering::Relaxed);
        assert_eq!([room.ask(active()).await, room.ask(active()).await], [1, 1]);
    }

    #[tokio::test]
    async fn other_questions_and_failures_pass_through() {
        let room = room();
        let garbage = Query::Garbage { before_ms: 1, entries_max: 1 };
        assert_eq!([room.ask(garbage.clone()).await, room.ask(garbage).await], [1, 1]);
        assert_eq!([room.ask(Query::Tenants).await, room.ask(Query::Tenants).await], [1, 1]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut kept = Kept::default();
        for after in 0..2 * KEPT_MAX as u64 {
            let query = Query::Jobs(JobsQuery::Receipts { after, entries_max: 1 });
            kept.put(Version { facts: 1, own: 0 }, query, Answer::Unchanged);
        }
        assert_eq!(kept.answers.len(), KEPT_MAX);
    }
}
