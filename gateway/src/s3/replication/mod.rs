//! Replication of a bucket to other S3 servers: the rules that clients write, and what an answer says of an object.
//!
//! ```text
//! change of a key ─> journal of its bucket (facts) ─ Replicator, in order for each key ─ rule ─> PUT or DELETE at the target
//!                                                        └ all done, or given up ─> the journal advances
//! ```
//!
//! | room     | holds                                             |
//! |----------|---------------------------------------------------|
//! | `rules`  | which rule is meant by an object                  |
//! | `remote` | requests to another S3 server                     |
//! | `worker` | the [`Replicator`]                                |
//!
//! A rule's destination is `arn:makai:replication:::TARGET/BUCKET`, where an operator gave the tenant the target, or
//! `arn:aws:s3:::BUCKET` at the target that is called `default`. As S3 has it: what there is before a rule is not copied,
//! nor what is a copy itself, nor the deletion of a version; delete markers are where the rule says so. A version gets a
//! version id of the target's own, and belongs to whom the target's key belongs.
//!
//! Always: an object is copied at least once, each key's changes in their order; what a target does not take is tried again
//! until [`KEPT_MS`] are over, or refused for good, and then said to have failed.

mod remote;
mod rules;
mod worker;

use makai_raft::facts::Timestamp;
use makai_raft::facts::object::ObjectHead;
use makai_raft::facts::version::Versioning;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};
use serde::{Deserialize, Serialize};

use self::rules::Rules;
use super::access::Granted;
use super::documents::write_xml;
use super::errors::refused;
use super::operations::Operations;
use crate::identity::Caller;
use crate::objects::documents::{BucketAccess, REPLICATION, REPLICATION_STATE};

pub use self::worker::Replicator;

/// What the replicator is called among those who follow a bucket.
const FOLLOWER: &str = "replication";
/// How long a change waits for its target.
pub const KEPT_MS: u64 = 24 * 60 * 60 * 1000;
/// Objects that failed and are remembered.
const FAILED_MAX: usize = 1000;

/// That an object did not reach its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Failed {
    key: String,
    version: Option<String>,
    at_ms: u64,
    why: String,
}

/// What is known of a bucket's replication beside its rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    /// When its first rules were put: what is older is not replicated.
    since_ms: u64,
    /// Newest last.
    failed: Vec<Failed>,
}

impl State {
    fn read(access: &BucketAccess) -> Self {
        let kept = access.replication_state.as_ref();
        kept.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
    }

    fn text(&self) -> S3Result<bytes::Bytes> {
        let text = serde_json::to_vec(self);
        Ok(text.map_err(|error| s3_error!(error, InternalError, "The state could not be written."))?.into())
    }

    fn add(&mut self, failed: Failed) {
        self.failed.retain(|known| known.key != failed.key || known.version != failed.version);
        self.failed.push(failed);
        if self.failed.len() > FAILED_MAX {
            self.failed.remove(0);
        }
    }
}

fn shown_version(head: &ObjectHead) -> Option<String> {
    head.has_version_id.then(|| head.version_id().to_string())
}

impl Operations {
    pub(super) async fn get_bucket_replication(
        &self,
        _caller: &Caller,
        request: S3Request<GetBucketReplicationInput>,
    ) -> S3Result<S3Response<GetBucketReplicationOutput>> {
        let granted = super::access::granted(&request)?;
        let kept = granted.bucket()?.replication.as_ref().ok_or_else(|| {
            s3_error!(ReplicationConfigurationNotFoundError, "The replication configuration was not found")
        })?;
        let replication_configuration = Some(super::documents::read_xml(kept)?);
        Ok(S3Response::new(GetBucketReplicationOutput { replication_configuration }))
    }

    pub(super) async fn put_bucket_replication(
        &self,
        caller: &Caller,
        request: S3Request<PutBucketReplicationInput>,
    ) -> S3Result<S3Response<PutBucketReplicationOutput>> {
        let granted = super::access::granted(&request)?;
        let access = granted.bucket()?;
        let input = request.input;
        let rules = Rules::read(&input.replication_configuration)?;
        if access.bucket.versioning != Versioning::Enabled {
            return Err(s3_error!(
                InvalidRequest,
                "Versioning must be 'Enabled' on the bucket to apply a replication configuration"
            ));
        }
        for target in rules.targets() {
            self.objects.replication_target(caller.tenant, target).await.map_err(|error| {
                s3_error!(InvalidRequest, "The destination cannot be replicated to: {error}")
            })?;
        }
        let mut state = State::read(access);
        if access.replication.is_none() || state.since_ms == 0 {
            state = State { since_ms: self.objects.time().0, failed: Vec::new() };
        }
        // First, so that nothing which happens once the rules stand is missed.
        self.objects.follow(caller, &input.bucket, FOLLOWER, true).await.map_err(refused)?;
        let documents = vec![
            (REPLICATION_STATE, Some(state.text()?)),
            (REPLICATION, Some(write_xml(&input.replication_configuration)?)),
        ];
        self.objects.set_access_documents(caller, &input.bucket, documents).await.map_err(refused)?;
        Ok(S3Response::new(PutBucketReplicationOutput {}))
    }

    pub(super) async fn delete_bucket_replication(
        &self,
        caller: &Caller,
        request: S3Request<DeleteBucketReplicationInput>,
    ) -> S3Result<S3Response<DeleteBucketReplicationOutput>> {
        let bucket = &request.input.bucket;
        let documents = vec![(REPLICATION, None), (REPLICATION_STATE, None)];
        self.objects.set_access_documents(caller, bucket, documents).await.map_err(refused)?;
        self.objects.follow(caller, bucket, FOLLOWER, false).await.map_err(refused)?;
        Ok(S3Response::new(DeleteBucketReplicationOutput {}))
    }

    /// `x-amz-replication-status` of an object. One query more, of buckets that are replicated alone.
    pub(super) async fn replication_status(
        &self,
        granted: &Granted,
        head: &ObjectHead,
    ) -> S3Result<Option<ReplicationStatus>> {
        let status = |name: &'static str| Ok(Some(ReplicationStatus::from_static(name)));
        if head.headers.is_replica {
            return status(ReplicationStatus::REPLICA);
        }
        let access = granted.bucket()?;
        let Some(kept) = &access.replication else { return Ok(None) };
        let rules = Rules::read(&super::documents::read_xml(kept)?)?;
        if rules.of_object(&head.key, head.headers.tagging.as_deref()).is_empty() {
            return Ok(None);
        }
        let state = State::read(access);
        if head.modified_at.0 < state.since_ms {
            return Ok(None);
        }
        let version = shown_version(head);
        if state.failed.iter().any(|failed| failed.key == head.key && failed.version == version) {
            return status(ReplicationStatus::FAILED);
        }
        let oldest = self.objects.oldest_change(&access.bucket.name, FOLLOWER).await.map_err(refused)?;
        let is_done = oldest.is_none_or(|oldest: Timestamp| head.modified_at < oldest);
        status(if is_done { ReplicationStatus::COMPLETED } else { ReplicationStatus::PENDING })
    }
}
