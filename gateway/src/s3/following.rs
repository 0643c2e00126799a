//! Those who act on what happens to the keys of buckets: webhooks are told, other servers get copies.
//!
//! ```text
//! buckets that are followed ─ those with changes that wait, and that do not rest after a failure ─ a page of changes
//!     ─ act ─> advance ─ the next page
//! ```
//!
//! Always: changes of one bucket are acted on in their order, and stay until that is done; a failure has its bucket rest,
//! and holds up no other.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use makai_raft::facts::Timestamp;
use makai_raft::facts::command::{Command, Refusal};
use makai_raft::facts::journal::{Change, Followed, JournalAnswer, JournalCommand, JournalQuery};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::handle::{MetaError, Metadata};

use crate::identity::Caller;
use crate::objects::documents::BucketAccess;
use crate::objects::{Objects, ObjectsError};

/// Changes in one answer.
const CHANGES_MAX: u32 = 100;
/// Buckets acted on at once.
const BUCKETS_AT_ONCE: usize = 8;
/// Pause after a failure, doubled with each further one.
const PAUSE_MS: [u64; 2] = [1_000, 60_000];

/// A bucket on whose changes is acted.
pub(super) struct OfBucket {
    pub(super) access: Arc<BucketAccess>,
    /// For whom its objects are read.
    pub(super) owner: Caller,
    /// What the follower's document says.
    pub(super) document: Option<Bytes>,
}

/// Who acts.
pub(super) trait Acts: Sync {
    /// What it is called among those who follow a bucket.
    const FOLLOWER: &'static str;
    /// The bucket's document that says what is to be done.
    const DOCUMENT: &'static str;

    /// Acts on changes that follow each other. An error says why some of them wait.
    fn act(
        &self,
        bucket: &OfBucket,
        changes: &[Change],
        now: Timestamp,
    ) -> impl Future<Output = Result<(), String>> + Send;
}

/// The facts that are followed, and the buckets that rest.
pub(super) struct Following {
    facts: Arc<dyn Metadata>,
    /// Says, a moment late and at little cost, whether anything waits.
    here: Arc<dyn Metadata>,
    objects: Objects,
    /// Buckets that failed: how often, and until when they rest.
    resting: HashMap<u64, (u32, Timestamp)>,
}

impl Following {
    pub(super) fn new(facts: Arc<dyn Metadata>, here: Arc<dyn Metadata>, objects: Objects) -> Self {
        Self { facts, here, objects, resting: HashMap::new() }
    }

    /// Acts on all that waits, once through all buckets.
    ///
    /// # Errors
    /// The facts do not answer.
    pub(super) async fn round<A: Acts>(&mut self, acting: &A, now: Timestamp) -> Result<(), MetaError> {
        let mut after = String::new();
        let mut known = BTreeSet::new();
        loop {
            let mut page = Self::followed(&*self.here, &after).await?;
            let waiting_since = |followed: &Followed| {
                let done = followed.followers.iter().find(|(name, _)| name == A::FOLLOWER)?.1;
                let rests = self.resting.get(&followed.bucket).is_some_and(|(_, until)| now < *until);
                (done < followed.sequence && !rests).then_some(done)
            };
            // Acted on is what the facts say now: from an older page, what is done would be done again.
            if page.iter().any(|followed| waiting_since(followed).is_some()) {
                page = Self::followed(&*self.facts, &after).await?;
            }
            let Some(last) = page.last() else { break };
            after.clone_from(&last.name);
            known.extend(page.iter().map(|followed| followed.bucket));
            let waiting: Vec<_> = page
                .into_iter()
                .filter_map(|followed| waiting_since(&followed).map(|done| (followed, done)))
                .collect();
            let this = &*self;
            let acted: Vec<_> = stream::iter(waiting)
                .map(|(followed, done)| async move {
                    let outcome = this.catch_up(acting, &followed, done, now).await;
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

    /// Acts on all changes of a bucket after `done`, and advances behind them.
    async fn catch_up<A: Acts>(
        &self,
        acting: &A,
        followed: &Followed,
        mut done: u64,
        now: Timestamp,
    ) -> Result<(), String> {
        let text = |error: ObjectsError| error.to_string();
        let access = match self.objects.bucket_access(&followed.name).await {
            Err(ObjectsError::Refused(Refusal::NoSuchBucket)) => return Ok(()),
            other => other.map_err(text)?,
        };
        if access.bucket.id != followed.bucket {
            return Ok(());
        }
        let owner = Caller {
            tenant: access.bucket.tenant,
            tenant_name: access.tenant_name.clone(),
            access_key_id: String::new(),
        };
        let document = self.objects.bucket_document(&owner, &followed.name, A::DOCUMENT).await;
        let bucket = OfBucket { document: document.map_err(text)?, access, owner };
        loop {
            let changes = self.changes_after(followed.bucket, done).await;
            let changes = changes.map_err(|error| error.to_string())?;
            let Some(last) = changes.last() else { return Ok(()) };
            acting.act(&bucket, &changes, now).await?;
            done = last.sequence;
            let advanced = self.advance(followed, A::FOLLOWER, done).await;
            advanced.map_err(|error| error.to_string())?;
        }
    }

    fn rest(&mut self, followed: &Followed, why: &str, follower: &str, now: Timestamp) {
        let failures = self.resting.get(&followed.bucket).map_or(0, |(failures, _)| *failures) + 1;
        let [first, longest] = PAUSE_MS;
        let pause_ms = (first << (failures - 1).min(16)).min(longest);
        tracing::warn!(bucket = followed.name, follower, why, pause_ms, "changes of a bucket wait");
        self.resting.insert(followed.bucket, (failures, Timestamp(now.0 + pause_ms)));
    }

    async fn followed(facts: &dyn Metadata, after: &str) -> Result<Vec<Followed>, MetaError> {
        let query = JournalQuery::Followed { after: after.to_owned(), entries_max: CHANGES_MAX };
        match facts.query(Query::Journal(query)).await? {
            Answer::Journal(JournalAnswer::Followed(page)) => Ok(page),
            _ => Err(other_answer()),
        }
    }

    /// The next changes of a bucket; none: all are done with.
    async fn changes_after(&self, bucket: u64, done: u64) -> Result<Vec<Change>, MetaError> {
        let query = JournalQuery::Changes { bucket, after: done, entries_max: CHANGES_MAX };
        match self.facts.query(Query::Journal(query)).await? {
            Answer::Journal(JournalAnswer::Changes(changes)) => Ok(changes),
            _ => Err(other_answer()),
        }
    }

    /// That a follower has done with all changes of a bucket up to `upto`.
    async fn advance(&self, followed: &Followed, follower: &str, upto: u64) -> Result<(), MetaError> {
        let advance = JournalCommand::Advance {
            bucket: followed.name.clone(),
            id: followed.bucket,
            follower: follower.to_owned(),
            upto,
        };
        self.facts.propose(Command::Journal(advance)).await.map(|_| ())
    }
}

fn other_answer() -> MetaError {
    MetaError::Unavailable("the facts answered another question".into())
}
