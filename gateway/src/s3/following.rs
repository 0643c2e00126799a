//! Those who act on what happens to the keys of buckets: webhooks are told, other servers get copies.
//!
//! ```text
//! buckets that are followed ─ those with changes that wait, and that do not rest after a failure ─ act ─> advance
//! ```
//!
//! Always: changes of one bucket are acted on in their order, and stay until that is done; a failure has its bucket rest,
//! and holds up no other.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;

use futures::stream::{self, StreamExt as _};
use makai_raft::facts::Timestamp;
use makai_raft::facts::command::Command;
use makai_raft::facts::journal::{Change, Followed, JournalAnswer, JournalCommand, JournalQuery};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::handle::{MetaError, Metadata};

/// Changes in one answer.
const CHANGES_MAX: u32 = 100;
/// Buckets acted on at once.
const BUCKETS_AT_ONCE: usize = 8;
/// Pause after a failure, doubled with each further one.
const PAUSE_MS: [u64; 2] = [1_000, 60_000];

/// Who acts.
pub(super) trait Acts: Sync {
    /// What it is called among those who follow a bucket.
    const FOLLOWER: &'static str;

    /// Acts on all changes of a bucket after `done`, and advances behind them. An error says why some of them wait.
    fn act(
        &self,
        followed: &Followed,
        done: u64,
        now: Timestamp,
    ) -> impl Future<Output = Result<(), String>> + Send;
}

/// The facts that are followed, and the buckets that rest.
pub(super) struct Following {
    facts: Arc<dyn Metadata>,
    /// Buckets that failed: how often, and until when they rest.
    resting: HashMap<u64, (u32, Timestamp)>,
}

impl Following {
    pub(super) fn new(facts: Arc<dyn Metadata>) -> Self {
        Self { facts, resting: HashMap::new() }
    }

    /// Acts on all that waits, once through all buckets.
    ///
    /// # Errors
    /// The facts do not answer.
    pub(super) async fn round<A: Acts>(&mut self, acting: &A, now: Timestamp) -> Result<(), MetaError> {
        let mut after = String::new();
        let mut known = BTreeSet::new();
        loop {
            let page = self.followed(&after).await?;
            let Some(last) = page.last() else { break };
            after.clone_from(&last.name);
            known.extend(page.iter().map(|followed| followed.bucket));
            let waiting = page.into_iter().filter_map(|followed| {
                let done = followed.followers.iter().find(|(name, _)| name == A::FOLLOWER)?.1;
                let rests = self.resting.get(&followed.bucket).is_some_and(|(_, until)| now < *until);
                (done < followed.sequence && !rests).then_some((followed, done))
            });
            let waiting: Vec<_> = waiting.collect();
            let acted: Vec<_> = stream::iter(waiting)
                .map(|(followed, done)| async move {
                    let outcome = acting.act(&followed, done, now).await;
                    (followed, outcome)
                })
                .buffer_unordered(BUCKETS_AT_ONCE)
                .collect()
                .await;
            for (followed, outcome) in acted {
                match outcome {
                    Ok(()) => _ = self.resting.remove(&followed.bucket),
                    Err(why) => self.rest(&followed, &why, A::FOLLOWER, now),
                }
            }
        }
        self.resting.retain(|bucket, _| known.contains(bucket));
        Ok(())
    }

    fn rest(&mut self, followed: &Followed, why: &str, follower: &str, now: Timestamp) {
        let failures = self.resting.get(&followed.bucket).map_or(0, |(failures, _)| *failures) + 1;
        let [first, longest] = PAUSE_MS;
        let pause_ms = (first << (failures - 1).min(16)).min(longest);
        tracing::warn!(bucket = followed.name, follower, why, pause_ms, "changes of a bucket wait");
        self.resting.insert(followed.bucket, (failures, Timestamp(now.0 + pause_ms)));
    }

    async fn followed(&self, after: &str) -> Result<Vec<Followed>, MetaError> {
        let query = JournalQuery::Followed { after: after.to_owned(), entries_max: CHANGES_MAX };
        match self.facts.query(Query::Journal(query)).await? {
            Answer::Journal(JournalAnswer::Followed(page)) => Ok(page),
            _ => Err(other_answer()),
        }
    }
}

fn other_answer() -> MetaError {
    MetaError::Unavailable("the facts answered another question".into())
}

/// The next changes of a bucket; none: all are done with.
pub(super) async fn changes_after(
    facts: &dyn Metadata,
    bucket: u64,
    done: u64,
) -> Result<Vec<Change>, MetaError> {
    let query = JournalQuery::Changes { bucket, after: done, entries_max: CHANGES_MAX };
    match facts.query(Query::Journal(query)).await? {
        Answer::Journal(JournalAnswer::Changes(changes)) => Ok(changes),
        _ => Err(other_answer()),
    }
}

/// That a follower has done with all changes of a bucket up to `upto`.
pub(super) async fn advance(
    facts: &dyn Metadata,
    followed: &Followed,
    follower: &str,
    upto: u64,
) -> Result<(), MetaError> {
    let advance = JournalCommand::Advance {
        bucket: followed.name.clone(),
        id: followed.bucket,
        follower: follower.to_owned(),
        upto,
    };
    facts.propose(Command::Journal(advance)).await.map(|_| ())
}
