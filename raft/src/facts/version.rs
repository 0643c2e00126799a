//! Versions of a key, what protects them, and what may be asked of them.
//!
//! A key's newest version is its current one. Under [`Versioning::Enabled`] a change makes a version beside the
//! others; else it takes the place of the one version that has no id, which S3 names `null`. A delete marker is a
//! version without content that hides the others.

use std::fmt;

use bytes::Bytes;
use makai_erasure::{BlobId, Scheme};
use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::command::{NewBlob, Precondition};
use super::object::{Checksum, Extent, ObjectHead};
use super::tenant::TenantId;

/// Hex digits of a version's id.
const ID_DIGITS: usize = 16;
/// What S3 calls the version that has no id.
const NULL: &str = "null";

/// Whether a bucket keeps what is replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Versioning {
    /// Never asked for: each key has one version.
    #[default]
    Unversioned,
    Enabled,
    /// Versions that have an id stay; new ones have none.
    Suspended,
}

/// How a client names a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum VersionId {
    /// The one made while the bucket was not versioned, or suspended.
    Null,
    Number(u64),
}

impl VersionId {
    /// `None`: no version can have this id.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text == NULL {
            return Some(Self::Null);
        }
        let is_id =
            text.len() == ID_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_id { u64::from_str_radix(text, 16).ok().map(Self::Number) } else { None }
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str(NULL),
            Self::Number(number) => write!(f, "{number:016x}"),
        }
    }
}

/// Who may end a retention early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockMode {
    /// Those who may bypass governance.
    Governance,
    /// Nobody.
    Compliance,
}

/// A version must not go before `until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    pub mode: LockMode,
    pub until: Timestamp,
}

/// What keeps a version from being deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectLock {
    pub retention: Option<Retention>,
    /// Holds until it is taken away; `None`: never set.
    pub legal_hold: Option<bool>,
}

impl ObjectLock {
    /// Whether the version may not be deleted at `now`.
    #[must_use]
    pub fn protects(&self, now: Timestamp, bypass_governance: bool) -> bool {
        let is_retained = self.retention.is_some_and(|retention| {
            let is_bypassed = bypass_governance && retention.mode == LockMode::Governance;
            retention.until > now && !is_bypassed
        });
        is_retained || self.legal_hold == Some(true)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How long new versions are retained when nobody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultRetention {
    pub mode: LockMode,
    pub period: RetentionPeriod,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetentionPeriod {
    Days(u32),
    /// Of 365 days.
    Years(u32),
}

/// Years that a default retention may have.
pub const RETENTION_YEARS_MAX: u32 = 100;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const YEAR_DAYS: u32 = 365;

impl RetentionPeriod {
    #[must_use]
    pub fn is_valid(self) -> bool {
        match self {
            Self::Days(days) => (1..=RETENTION_YEARS_MAX * YEAR_DAYS).contains(&days),
            Self::Years(years) => (1..=RETENTION_YEARS_MAX).contains(&years),
        }
    }

    #[must_use]
    pub fn millis(self) -> u64 {
        match self {
            Self::Days(days) => u64::from(days) * DAY_MS,
            Self::Years(years) => u64::from(years) * u64::from(YEAR_DAYS) * DAY_MS,
        }
    }
}

/// The object lock of a bucket, which is never taken away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketLock {
    pub default: Option<DefaultRetention>,
}

/// A part that a version was completed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletedPart {
    pub number: u16,
    pub size: u64,
    pub checksum: Option<Checksum>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionCommand {
    /// A bucket whose objects can be locked: versioned from the start. -> `Bucket`
    CreateLockedBucket { name: String, tenant: TenantId, scheme: Option<Scheme> },
    /// Never back to [`Versioning::Unversioned`], and never suspended where objects are locked.
    SetVersioning { bucket: String, versioning: Versioning },
    /// Needs [`Versioning::Enabled`]; turns object lock on where it is not.
    SetBucketLock { bucket: String, lock: BucketLock },
    /// Of a version: that very one, unless it is protected. Without: as the bucket's versioning says.
    /// -> [`VersionReply::Deleted`]
    Delete {
        bucket: String,
        key: String,
        version: Option<VersionId>,
        bypass_governance: bool,
        precondition: Precondition,
    },
    /// `version`: `None` is the current one. -> [`VersionReply::Changed`]
    SetTagging { bucket: String, key: String, version: Option<VersionId>, tagging: Option<String> },
    /// Refused where it would shorten what is promised. -> [`VersionReply::Changed`]
    SetRetention {
        bucket: String,
        key: String,
        version: Option<VersionId>,
        retention: Option<Retention>,
        bypass_governance: bool,
    },
    /// -> [`VersionReply::Changed`]
    SetLegalHold { bucket: String, key: String, version: Option<VersionId>, is_held: bool },
    /// What a lifecycle has decided of versions, at most [`EXPIRE_MAX`]: each only while it is what it was then, and
    /// never one that is protected.
    Expire { bucket: String, versions: Vec<Expired> },
    /// The rules that [`crate::lifecycle`] reads; `None` removes them.
    SetLifecycle { bucket: String, rules: Option<Bytes> },
    /// As `Delete`, of a version that is also like this. -> [`VersionReply::Deleted`]
    DeleteLike {
        bucket: String,
        key: String,
        version: Option<VersionId>,
        bypass_governance: bool,
        precondition: Precondition,
        likeness: Likeness,
    },
    /// What a lifecycle has decided of the storage classes of versions, at most [`EXPIRE_MAX`]: each only while it is
    /// there.
    Transition { bucket: String, versions: Vec<Transitioned> },
    /// Has versions name a copy of their bytes instead, as far as they are there and name what was copied. `moves`: ranges of
    /// blobs, sorted, and where each was copied to.
    Move { bucket: String, versions: Vec<Move>, moves: Vec<(Extent, Extent)>, blobs: Vec<NewBlob> },
}

/// What else must hold of a version for its deletion to happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Likeness {
    pub size: Option<u64>,
    /// When it was made, in whole seconds: HTTP dates say no more.
    pub modified_secs: Option<u64>,
}

impl Likeness {
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Ranges of blobs that move at once.
pub const MOVES_MAX: usize = 4096;
/// Versions in one [`VersionCommand::Expire`], [`VersionCommand::Transition`] or [`VersionCommand::Move`].
pub const EXPIRE_MAX: usize = 200;

/// A version whose time is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    pub key: String,
    /// Its number in the order of all versions, whether clients see it or not.
    pub number: u64,
    /// It goes as DELETE of its key takes it, where it is current still; else that very version is removed, where
    /// it still is not.
    pub is_current: bool,
}

/// A version that gets another storage class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transitioned {
    pub key: String,
    /// As of [`Expired`].
    pub number: u64,
    pub class: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionReply {
    Deleted(Deleted),
    /// The version that was changed.
    Changed(ObjectHead),
}

/// What a deletion did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Whether there was something to delete.
    pub existed: bool,
    /// The version that went, where one was named; else the marker that came.
    pub version: Option<VersionId>,
    /// Whether that is a delete marker.
    pub is_marker: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionQuery {
    /// As `Query::Object`, of any version: -> `Object`. A marker is refused as [`VersionRefusal::IsMarker`].
    Object { bucket: String, key: String, version: Option<VersionId>, from_offset: u64, extents_max: u32 },
    /// -> `Versions`
    Versions(ListVersions),
    /// -> `Parts`: of a version that was completed from parts, numbers above `after`.
    Parts { bucket: String, key: String, version: Option<VersionId>, after: u16, entries_max: u32 },
    /// -> `Lifecycle`
    Lifecycle { bucket: String },
    /// -> `LifecycleBuckets`: those that have rules, numbers above `after`.
    LifecycleBuckets { after: u64, entries_max: u32 },
    /// Versions of a page that lie in one of these blobs: -> `Naming`
    Naming { page: ListVersions, blobs: Vec<BlobId> },
    /// Blobs after `after` of which a good part is dead: -> `Hollow`, by id.
    Hollow { after: Option<BlobId>, entries_max: u32 },
}

/// A blob that versions name in part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HollowBlob {
    pub id: BlobId,
    pub tenant: TenantId,
    pub plain_len: u64,
    /// Bytes that versions name, as often as they do.
    pub live: u64,
}

/// A version whose bytes move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub key: String,
    /// The version's number, current or not.
    pub number: u64,
}

/// A page of a bucket's versions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListVersions {
    pub bucket: String,
    pub prefix: String,
    /// Empty: none.
    pub delimiter: String,
    /// Keys and common prefixes after it; of this very key the versions older than `after_version`.
    pub after: String,
    /// A version that is gone is no place to go on from: its key is shown from its newest version.
    pub after_version: Option<VersionId>,
    pub entries_max: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListedVersion {
    Version { head: ObjectHead, is_latest: bool },
    Marker { key: String, version: VersionId, number: u64, modified_at: Timestamp, is_latest: bool },
    CommonPrefix(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionAnswer {
    Versions {
        entries: Vec<ListedVersion>,
        is_truncated: bool,
    },
    Parts {
        parts: Vec<CompletedPart>,
        is_truncated: bool,
    },
    Lifecycle(Option<Bytes>),
    /// A bucket's number and name, and its rules.
    LifecycleBuckets(Vec<(u64, String, Bytes)>),
    Naming {
        /// Each with those of the blobs that it lies in.
        versions: Vec<(ObjectHead, Vec<BlobId>)>,
        /// Key and id of the page's last version, where more follow.
        next: Option<(String, VersionId)>,
    },
    Hollow(Vec<HollowBlob>),
}

/// Why something could not be done with a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum VersionRefusal {
    #[error("the version does not exist")]
    NoSuchVersion,
    #[error("the version is a delete marker")]
    IsMarker { version: VersionId, modified_at: Timestamp },
    #[error("the version is protected by object lock")]
    Locked,
    #[error("the bucket has no object lock configuration")]
    NoBucketLock,
    #[error("the bucket's state forbids it: {0}")]
    BucketState(String),
}
