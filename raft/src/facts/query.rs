//! What can be read, and what comes back: each answer from one consistent view.

use bytes::Bytes;
use makai_erasure::{BlobId, PgId};
use serde::{Deserialize, Serialize};

use super::accounts::{AccountsAnswer, AccountsQuery};
use super::audit::{AuditAnswer, AuditQuery};
use super::bucket::Bucket;
use super::cluster::ClusterMap;
use super::files::{EVENTS_KEPT, FileAnswer, FileQuery};
use super::identity::{IdentityAnswer, IdentityQuery};
use super::jobs::{JobsAnswer, JobsQuery};
use super::journal::{JournalAnswer, JournalQuery};
use super::object::{Blob, Content, ObjectHead, Part, ResolvedExtent, Upload};
use super::tenant::{AccessKey, Tenant, TenantId};
use super::version::{VersionAnswer, VersionQuery, Versioning};

/// Extents in one answer.
pub const EXTENTS_PER_ANSWER_MAX: u32 = 1024;
/// Entries in one listing answer.
pub const ENTRIES_PER_ANSWER_MAX: u32 = 1000;
/// Entries of an answer that may stay in memory.
const SMALL_ENTRIES_MAX: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// -> `Tenant`
    Tenant {
        id: TenantId,
    },
    TenantByName {
        name: String,
    },
    /// -> `Tenants`
    Tenants,
    /// -> `AccessKey`: the key and its tenant.
    AccessKey {
        id: String,
    },
    /// -> `AccessKeys`
    AccessKeys {
        tenant: TenantId,
    },

    /// -> `Bucket`
    Bucket {
        name: String,
    },
    /// -> `Buckets`, by name.
    Buckets {
        tenant: Option<TenantId>,
    },
    /// -> `Document`
    BucketDocument {
        name: String,
        document: String,
    },

    Identity(IdentityQuery),

    /// -> `Object`, with the extents from `from_offset` on.
    Object {
        bucket: String,
        key: String,
        from_offset: u64,
        extents_max: u32,
    },
    /// -> `Objects`
    Objects(ListObjects),
    /// Of versions that need not be current.
    Version(VersionQuery),
    /// -> `File`
    File(super::files::FileQuery),
    /// -> `Uploads`, by key, then by start.
    Uploads {
        bucket: String,
        prefix: String,
        after: Option<(String, String)>,
        entries_max: u32,
    },
    /// -> `Upload`
    Upload {
        bucket: String,
        key: String,
        upload_id: String,
    },
    /// -> `Parts`, ascending.
    Parts {
        bucket: String,
        key: String,
        upload_id: String,
        after: u16,
        entries_max: u32,
    },

    /// -> `ClusterMap`, or `Unchanged` where the epoch is still `known_epoch`.
    ClusterMap {
        known_epoch: Option<u64>,
    },
    /// -> `Blobs` of a group with `sequence > after_sequence`, ascending.
    BlobsOfGroup {
        pg: PgId,
        after_sequence: u64,
        entries_max: u32,
    },
    /// -> `BlobStates`, one per id asked for: the blob if it is referenced or awaits collection.
    BlobStates {
        ids: Vec<BlobId>,
    },
    /// -> `Blobs` that nothing has referenced since `before_ms`, oldest first.
    Garbage {
        before_ms: u64,
        entries_max: u32,
    },

    /// -> `Accounts`
    Accounts(AccountsQuery),
    /// -> `Jobs`
    Jobs(JobsQuery),
    /// -> `Journal`
    Journal(JournalQuery),
    /// -> `Audit`
    Audit(AuditQuery),
}

/// A page of a bucket's keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListObjects {
    pub bucket: String,
    pub prefix: String,
    /// Empty: none.
    pub delimiter: String,
    /// Keys and common prefixes after it, in byte order; a common prefix given here is not shown again.
    pub after: String,
    pub entries_max: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listed {
    Object(ObjectHead),
    CommonPrefix(String),
}

impl Query {
    /// How long its answer may wait for something to tell; `None`: it does not.
    #[must_use]
    pub fn wait_ms(&self) -> Option<u32> {
        match self {
            Self::File(FileQuery::Events { wait_ms, .. }) if *wait_ms > 0 => Some(*wait_ms),
            _ => None,
        }
    }

    /// Whether it looks at a few records only, so that looking twice costs little.
    #[must_use]
    pub fn is_brief(&self) -> bool {
        match self {
            Self::Bucket { .. } => true,
            Self::Object { extents_max, .. } => *extents_max <= 1,
            Self::Version(VersionQuery::Object { extents_max, .. }) => *extents_max <= 1,
            Self::Identity(query) => {
                matches!(query, IdentityQuery::Key { .. } | IdentityQuery::BucketAccess { .. })
            }
            _ => false,
        }
    }

    /// Whether loops ask it again and again while nothing changes.
    #[must_use]
    pub fn is_repeated(&self) -> bool {
        match self {
            Self::ClusterMap { known_epoch: None } | Self::Buckets { tenant: None } => true,
            Self::Accounts(query) => matches!(
                query,
                AccountsQuery::State
                    | AccountsQuery::Epochs { entries_max: 1, .. }
                    | AccountsQuery::Billing
                    | AccountsQuery::LotKey { .. }
            ),
            Self::Jobs(query) => matches!(
                query,
                JobsQuery::Active
                    | JobsQuery::Queue { .. }
                    | JobsQuery::Receipts { .. }
                    | JobsQuery::Agreements
                    | JobsQuery::Assignments { .. }
            ),
            Self::Journal(JournalQuery::Followed { .. }) => true,
            _ => false,
        }
    }

    /// Whether the answer tells so little that one who waits is better off waiting on.
    #[must_use]
    pub fn is_answered_by_nothing(&self, answer: &Answer) -> bool {
        match (self, answer) {
            (
                Self::File(FileQuery::Events { after, .. }),
                Answer::File(FileAnswer::Events { sequence, events, is_lost }),
            ) => events.is_empty() && !is_lost && sequence.saturating_sub(*after) < EVENTS_KEPT / 16,
            _ => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Unchanged,
    Tenant(Tenant),
    Tenants(Vec<Tenant>),
    AccessKey(AccessKey, Tenant),
    AccessKeys(Vec<AccessKey>),
    Bucket(Bucket),
    Buckets(Vec<Bucket>),
    Document(Option<Bytes>),
    Identity(IdentityAnswer),
    Object(ObjectAnswer),
    Objects { entries: Vec<Listed>, is_truncated: bool },
    Uploads { uploads: Vec<Upload>, is_truncated: bool },
    Upload(Upload),
    Parts { parts: Vec<Part>, is_truncated: bool },
    ClusterMap(ClusterMap),
    Blobs(Vec<Blob>),
    BlobStates(Vec<Option<Blob>>),
    Accounts(AccountsAnswer),
    Version(VersionAnswer),
    File(super::files::FileAnswer),
    Jobs(JobsAnswer),
    Journal(JournalAnswer),
    Audit(AuditAnswer),
}

impl Answer {
    /// Whether it may stay in memory: nothing of it grows with what is stored, beyond a page.
    #[must_use]
    pub fn is_small(&self) -> bool {
        let length = match self {
            Self::ClusterMap(map) => map.nodes.len() + map.disks.len() + map.groups.len(),
            Self::Buckets(buckets) => buckets.len(),
            Self::Accounts(answer) => match answer {
                AccountsAnswer::State(_) | AccountsAnswer::LotKey(_) => 1,
                AccountsAnswer::Epochs(epochs) => epochs.len(),
                AccountsAnswer::Billing { balances, .. } => balances.len(),
                _ => usize::MAX,
            },
            Self::Jobs(answer) => match answer {
                JobsAnswer::Active(attempts) => attempts.len(),
                JobsAnswer::Queue(jobs) => jobs.iter().map(|job| 1 + job.tasks.len()).sum(),
                JobsAnswer::Receipts(receipts) => receipts.len(),
                JobsAnswer::Agreements(agreements) => agreements.len(),
                JobsAnswer::Assignments(assigned) => assigned.len(),
                _ => usize::MAX,
            },
            Self::Journal(JournalAnswer::Followed(followed)) => followed.len(),
            _ => usize::MAX,
        };
        length <= SMALL_ENTRIES_MAX
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectAnswer {
    pub head: ObjectHead,
    /// Its bucket's tenant.
    pub tenant: TenantId,
    /// Inline content, or [`Content::Empty`], or `Extents` left empty in favour of `extents`.
    pub content: Content,
    pub extents: Vec<ResolvedExtent>,
    /// Whether extents after these exist.
    pub is_truncated: bool,
    /// Its bucket's.
    #[serde(default)]
    pub versioning: Versioning,
}
