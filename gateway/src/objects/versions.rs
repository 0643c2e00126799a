//! Versions that need not be current, what locks them, and the rules by which they go.

use std::sync::{Arc, PoisonError};

use makai_erasure::Scheme;
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::command::{Command, Precondition, Reply};
use makai_raft::facts::object::ObjectHead;
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::version::{
    BucketLock, CompletedPart, Deleted, Likeness, ListVersions, ListedVersion, Retention, VersionAnswer,
    VersionCommand, VersionId, VersionQuery, VersionReply, Versioning,
};
use makai_raft::lifecycle::Rules;

use super::{BUCKET_CACHE_MAX, BUCKET_CACHE_TTL, Objects, ObjectsError, check_key, now, unexpected};
use crate::identity::Caller;

impl Objects {
    /// Makes a bucket whose objects can be locked, versioned from the start.
    pub async fn create_locked_bucket(
        &self,
        caller: &Caller,
        name: &str,
        scheme: Option<Scheme>,
    ) -> Result<Bucket, ObjectsError> {
        self.check_scheme(scheme)?;
        let command = VersionCommand::CreateLockedBucket { name: name.into(), tenant: caller.tenant, scheme };
        match self.propose(Command::Version(command)).await? {
            Reply::Bucket(bucket) => Ok(bucket),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn set_versioning(
        &self,
        caller: &Caller,
        bucket: &str,
        versioning: Versioning,
    ) -> Result<(), ObjectsError> {
        self.bucket(caller, bucket).await?;
        self.forget_bucket(bucket);
        let command = VersionCommand::SetVersioning { bucket: bucket.into(), versioning };
        self.propose(Command::Version(command)).await.map(|_| ())
    }

    /// Turns object lock on where it is not, and sets how long new versions are retained.
    pub async fn set_bucket_lock(
        &self,
        caller: &Caller,
        bucket: &str,
        lock: BucketLock,
    ) -> Result<(), ObjectsError> {
        self.bucket(caller, bucket).await?;
        let command = VersionCommand::SetBucketLock { bucket: bucket.into(), lock };
        self.propose(Command::Version(command)).await.map(|_| ())
    }

    /// Deletes a version for good; `None`: the current one, as the bucket's versioning says.
    pub async fn delete_version(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        bypass_governance: bool,
        precondition: Precondition,
    ) -> Result<Deleted, ObjectsError> {
        let any = Likeness::default();
        self.delete_like(caller, bucket, key, version, bypass_governance, precondition, any).await
    }

    /// As [`delete_version`](Self::delete_version), of one that is also like `likeness` says.
    pub async fn delete_like(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        bypass_governance: bool,
        precondition: Precondition,
        likeness: Likeness,
    ) -> Result<Deleted, ObjectsError> {
        check_key(key)?;
        self.recent_bucket(caller, bucket).await?;
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let command = if likeness.is_none() {
            VersionCommand::Delete { bucket, key, version, bypass_governance, precondition }
        } else {
            VersionCommand::DeleteLike { bucket, key, version, bypass_governance, precondition, likeness }
        };
        match self.propose(Command::Version(command)).await? {
            Reply::Version(VersionReply::Deleted(deleted)) => Ok(deleted),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether a bucket holds anything that listings show.
    pub(super) async fn has_versions(&self, caller: &Caller, bucket: &str) -> Result<bool, ObjectsError> {
        let list = ListVersions { bucket: bucket.into(), entries_max: 1, ..ListVersions::default() };
        Ok(!self.list_versions(caller, list).await?.0.is_empty())
    }

    /// Replaces the tags of a version.
    pub async fn set_tagging(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        tagging: Option<String>,
    ) -> Result<ObjectHead, ObjectsError> {
        let (name, object) = (bucket.to_owned(), key.to_owned());
        let command = VersionCommand::SetTagging { bucket: name, key: object, version, tagging };
        self.change_version(caller, bucket, key, command).await
    }

    pub async fn set_retention(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        retention: Option<Retention>,
        bypass_governance: bool,
    ) -> Result<ObjectHead, ObjectsError> {
        let (name, object) = (bucket.to_owned(), key.to_owned());
        let command =
            VersionCommand::SetRetention { bucket: name, key: object, version, retention, bypass_governance };
        self.change_version(caller, bucket, key, command).await
    }

    pub async fn set_legal_hold(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        is_held: bool,
    ) -> Result<ObjectHead, ObjectsError> {
        let (name, object) = (bucket.to_owned(), key.to_owned());
        let command = VersionCommand::SetLegalHold { bucket: name, key: object, version, is_held };
        self.change_version(caller, bucket, key, command).await
    }

    async fn change_version(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        command: VersionCommand,
    ) -> Result<ObjectHead, ObjectsError> {
        check_key(key)?;
        self.recent_bucket(caller, bucket).await?;
        match self.propose(Command::Version(command)).await? {
            Reply::Version(VersionReply::Changed(head)) => Ok(head),
            other => Err(unexpected(&other)),
        }
    }

    /// A page of the bucket's versions and delete markers, and whether more follow.
    pub async fn list_versions(
        &self,
        caller: &Caller,
        list: ListVersions,
    ) -> Result<(Vec<ListedVersion>, bool), ObjectsError> {
        self.recent_bucket(caller, &list.bucket).await?;
        match self.query(Query::Version(VersionQuery::Versions(list))).await? {
            Answer::Version(VersionAnswer::Versions { entries, is_truncated }) => Ok((entries, is_truncated)),
            other => Err(unexpected(&other)),
        }
    }

    /// The parts that a version was completed from, numbers above `after`, and whether more follow.
    pub async fn completed_parts(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        after: u16,
        entries_max: u32,
    ) -> Result<(Vec<CompletedPart>, bool), ObjectsError> {
        check_key(key)?;
        self.recent_bucket(caller, bucket).await?;
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let query = VersionQuery::Parts { bucket, key, version, after, entries_max };
        match self.query(Query::Version(query)).await? {
            Answer::Version(VersionAnswer::Parts { parts, is_truncated }) => Ok((parts, is_truncated)),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn set_lifecycle(
        &self,
        caller: &Caller,
        bucket: &str,
        rules: Option<&Rules>,
    ) -> Result<(), ObjectsError> {
        self.bucket(caller, bucket).await?;
        let rules = rules.map(Rules::encode);
        let command = VersionCommand::SetLifecycle { bucket: bucket.into(), rules };
        let outcome = self.propose(Command::Version(command)).await.map(|_| ());
        self.forget_lifecycle(bucket);
        outcome
    }

    /// The bucket's rules, as they are now.
    pub async fn lifecycle(&self, caller: &Caller, bucket: &str) -> Result<Option<Rules>, ObjectsError> {
        self.bucket(caller, bucket).await?;
        self.read_lifecycle(bucket).await
    }

    async fn read_lifecycle(&self, bucket: &str) -> Result<Option<Rules>, ObjectsError> {
        let query = VersionQuery::Lifecycle { bucket: bucket.into() };
        match self.query(Query::Version(query)).await? {
            Answer::Version(VersionAnswer::Lifecycle(None)) => Ok(None),
            Answer::Version(VersionAnswer::Lifecycle(Some(bytes))) => {
                let rules =
                    Rules::decode(&bytes).map_err(|error| ObjectsError::Internal(error.to_string()))?;
                Ok(Some(rules))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// As [`lifecycle`](Self::lifecycle) of a bucket known to be the caller's, but possibly [`BUCKET_CACHE_TTL`] old:
    /// for what is said beside an answer. `None` also where the rules cannot be had.
    pub async fn recent_lifecycle(&self, bucket: &str) -> Option<Arc<Rules>> {
        let cached = {
            let lifecycles = self.inner.lifecycles.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = lifecycles.get(bucket).filter(|(at, _)| at.elapsed() < BUCKET_CACHE_TTL);
            fresh.map(|(_, rules)| rules.clone())
        };
        if let Some(rules) = cached {
            return rules;
        }
        let rules = self.read_lifecycle(bucket).await.ok()?.map(Arc::new);
        let mut lifecycles = self.inner.lifecycles.lock().unwrap_or_else(PoisonError::into_inner);
        if lifecycles.len() >= BUCKET_CACHE_MAX {
            lifecycles.clear();
        }
        lifecycles.insert(bucket.into(), (now(), rules.clone()));
        rules
    }

    pub(super) fn forget_lifecycle(&self, bucket: &str) {
        self.inner.lifecycles.lock().unwrap_or_else(PoisonError::into_inner).remove(bucket);
    }
}
