//! A bucket and its settings.

use makai_erasure::Scheme;
use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::tenant::{Quota, TenantId};
use super::version::{BucketLock, Versioning};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Given at its making, never reused: a bucket of the same name made later is another bucket.
    pub id: u64,
    pub name: String,
    pub tenant: TenantId,
    pub created_at: Timestamp,
    /// How its blobs are coded; `None`: the cluster's default for its failure domains.
    pub scheme: Option<Scheme>,
    /// Current objects, and their plaintext bytes.
    pub object_count: u64,
    pub object_bytes: u64,
    /// The directory that its keys hang from.
    pub root: u64,
    #[serde(default)]
    pub versioning: Versioning,
    /// `None`: objects cannot be locked.
    #[serde(default)]
    pub lock: Option<BucketLock>,
    /// Versions that are not current, delete markers left out, and their plaintext bytes.
    #[serde(default)]
    pub noncurrent_count: u64,
    #[serde(default)]
    pub noncurrent_bytes: u64,
    /// Sessions of mounts that have not ended.
    #[serde(default)]
    pub mounts: u32,
    /// Beside its tenant's.
    #[serde(default)]
    pub quota: Quota,
}
