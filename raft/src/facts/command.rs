//! What can be asked to change, and what comes back.
//!
//! A door wraps a [`Command`] in an [`Envelope`] so that a retry after a lost answer is applied once; the leader
//! gathers envelopes into a [`Batch`] with its time: one log entry, one fsync.

use bytes::Bytes;
use makai_erasure::{BlobId, DiskId, NodeId, PgId, Scheme};
use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::accounts::{AccountsCommand, AccountsRefusal, AccountsReply};
use super::audit::Audited;
use super::bucket::Bucket;
use super::cluster::{Condition, Disk, Group, JoinToken, Node, Role, Standing};
use super::identity::IdentityCommand;
use super::jobs::{AttemptId, JobsCommand, JobsReply};
use super::journal::JournalCommand;
use super::object::{Checksum, Content, ObjectHead, ObjectHeaders, Part, Upload};
use super::tenant::{AccessKey, Quota, QuotaOf, Tenant, TenantId};
use super::version::{VersionCommand, VersionRefusal, VersionReply};

/// A command with what makes it apply at most once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Drawn at random by each process that proposes.
    pub session: u64,
    /// Grows with each command of the session; a retry keeps it.
    pub serial: u64,
    /// Every serial below it has been answered: their replies may be forgotten.
    pub answered_below: u64,
    pub command: Command,
}

/// One log entry: applied whole, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The leader's clock, never behind an earlier batch's.
    pub at: Timestamp,
    pub envelopes: Vec<Envelope>,
}

/// What must hold of a key's current version for a change to happen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Precondition {
    /// It exists with one of these ETags; `*`: it exists.
    pub if_match: Vec<String>,
    /// It has none of these ETags; `*`: it does not exist.
    pub if_none_match: Vec<String>,
}

/// A blob whose shards are durable, to be made reachable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewBlob {
    pub id: BlobId,
    pub pg: PgId,
    /// The group's version when it was written.
    pub pg_version: u32,
    pub plain_len: u64,
    pub wrapped_key: Bytes,
    pub root: [u8; 32],
    /// When the writer began; a blob opened longer than [`BLOB_OPEN_MS_MAX`] ago is refused, since its
    /// shards may have been collected as orphans.
    pub opened_at: Timestamp,
}

/// How long a blob may take from its first byte to its commit.
pub const BLOB_OPEN_MS_MAX: u64 = 60 * 60 * 1000;

/// The bytes of a new version or part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewContent {
    pub size: u64,
    pub etag: String,
    pub checksum: Option<Checksum>,
    pub content: Content,
    /// Every blob that `content` names and that is not yet known.
    pub blobs: Vec<NewBlob>,
    /// The bucket that the bytes were sealed for: refused with [`Refusal::NoSuchBucket`] where another one has its name
    /// now. 0: whichever has the name.
    #[serde(default)]
    pub bucket_id: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// First of all commands; refused ever after with [`Refusal::AlreadyExists`].
    InitCluster {
        cluster_id: String,
    },

    CreateTenant {
        name: String,
        wrapped_key: Bytes,
        quota_bytes: Option<u64>,
    },
    SetTenantQuota {
        tenant: TenantId,
        quota_bytes: Option<u64>,
    },
    PutAccessKey {
        key: AccessKey,
    },
    DeleteAccessKey {
        id: String,
    },

    CreateBucket {
        name: String,
        tenant: TenantId,
        scheme: Option<Scheme>,
    },
    /// Refused unless it holds no object and no upload.
    DeleteBucket {
        name: String,
    },
    /// A named document beside the bucket (`cors`, `policy`, `tagging`, ...); `None` removes it.
    SetBucketDocument {
        name: String,
        document: String,
        value: Option<Bytes>,
    },

    PutObject {
        bucket: String,
        key: String,
        headers: ObjectHeaders,
        new: NewContent,
        precondition: Precondition,
        /// Whether a browser's form brought it: those who follow the bucket are told.
        #[serde(default)]
        by_form: bool,
    },
    /// Also answers [`Reply::Deleted`] where the key did not exist. Under versioning, leaves a delete marker.
    DeleteObject {
        bucket: String,
        key: String,
        precondition: Precondition,
    },
    /// Makes `key` a version with the content of `from_version` of the source, current or not, sharing its blobs.
    /// `headers`: `None` keeps the source's, its lock left out. Same tenant only.
    CopyObject {
        from_bucket: String,
        from_key: String,
        from_version: u64,
        bucket: String,
        key: String,
        headers: Option<ObjectHeaders>,
        precondition: Precondition,
    },
    /// Replaces headers that can change without a new version: the tags.
    SetObjectTagging {
        bucket: String,
        key: String,
        tagging: Option<String>,
    },

    Identity(IdentityCommand),
    Version(VersionCommand),

    CreateUpload {
        bucket: String,
        upload: Upload,
    },
    PutPart {
        bucket: String,
        key: String,
        upload_id: String,
        number: u16,
        new: NewContent,
    },
    /// `parts`: number and ETag, ascending. `etag`: of the whole. Sizes, order and ETags are checked here.
    CompleteUpload {
        bucket: String,
        key: String,
        upload_id: String,
        parts: Vec<(u16, String)>,
        etag: String,
        checksum: Option<Checksum>,
        precondition: Precondition,
    },
    AbortUpload {
        bucket: String,
        key: String,
        upload_id: String,
    },

    File(super::files::FileCommand),

    CreateJoinToken {
        token: JoinToken,
    },
    /// Adds the node and its disks, or renews what the node says of itself when it is known.
    /// `token`: id and BLAKE3 of the secret; `None` on renewal and on the first node.
    JoinNode {
        node: Node,
        disks: Vec<Disk>,
        token: Option<(String, [u8; 32])>,
    },
    SetNodeUp {
        node: NodeId,
        is_up: bool,
    },
    SetNodeStanding {
        node: NodeId,
        standing: Standing,
    },
    SetDiskStanding {
        disk: DiskId,
        standing: Standing,
    },
    /// Adds or replaces groups; refused with [`Refusal::StaleMap`] unless the map's epoch is `map_epoch`.
    PutGroups {
        map_epoch: u64,
        groups: Vec<Group>,
    },

    /// Makes the disk that a slot was moving to the slot's own. Refused with [`Refusal::PreconditionFailed`] unless the
    /// group is at `version` and has no blob after `sequence`: then that disk holds every shard of the slot.
    FinishMove {
        pg: PgId,
        slot: u8,
        to: DiskId,
        version: u32,
        sequence: u64,
    },

    /// Forgets unreferenced blobs whose shards are gone. Blobs referenced again in between stay.
    ForgetBlobs {
        blobs: Vec<BlobId>,
    },
    /// Drops remembered replies of sessions not heard of for `idle_ms`.
    ExpireSessions {
        idle_ms: u64,
    },

    Accounts(AccountsCommand),
    Jobs(JobsCommand),
    Journal(JournalCommand),

    /// How a disk is, as its node says.
    SetDiskCondition {
        disk: DiskId,
        condition: Condition,
    },

    /// What may be stored at most, of a tenant or in a bucket.
    SetQuota {
        of: QuotaOf,
        quota: Quota,
    },
    /// -> as the command in it.
    Audited(Audited),
    /// Stops the moves that only even out shares, or lets them go on.
    SetRebalance {
        is_paused: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Tenant(Tenant),
    Bucket(Bucket),
    /// A version was made.
    Object(ObjectHead),
    Part(Part),
    Deleted {
        existed: bool,
    },
    Node(Node),
    Accounts(AccountsReply),
    Version(VersionReply),
    File(super::files::FileReply),
    Jobs(JobsReply),
}

/// Why a command or query was not carried out; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    #[error("there is no such {0}")]
    NotFound(String),
    #[error("{0} exists already")]
    AlreadyExists(String),
    #[error("the bucket does not exist")]
    NoSuchBucket,
    #[error("the bucket exists and belongs to another tenant")]
    BucketTaken,
    #[error("the bucket exists already and is yours")]
    BucketOwned,
    #[error("the bucket holds objects or uploads")]
    BucketNotEmpty,
    #[error("the key does not exist")]
    NoSuchKey,
    #[error("the upload does not exist: it was completed or aborted")]
    NoSuchUpload,
    #[error("part {0} is unknown or its ETag differs")]
    InvalidPart(u16),
    #[error("parts are not in ascending order")]
    InvalidPartOrder,
    #[error("part {number} has {size} bytes; every part but the last needs at least {PART_BYTES_MIN}", PART_BYTES_MIN = super::object::PART_BYTES_MIN)]
    PartTooSmall { number: u16, size: u64 },
    #[error("the object would have {0} bytes, more than the format allows")]
    TooLarge(u64),
    #[error("a precondition does not hold")]
    PreconditionFailed,
    #[error("the source has changed")]
    SourceChanged,
    #[error("tenant quota of {quota_bytes} bytes would be exceeded")]
    QuotaExceeded { quota_bytes: u64 },
    /// Whose quota, and which of its bounds.
    #[error("quota of {0} would be exceeded")]
    QuotaReached(String),
    #[error(
        "those who follow the bucket's changes (notifications, replication) are too far behind; try again later"
    )]
    FollowersBehind,
    #[error("the blob was opened too long ago; send it again")]
    BlobTooOld,
    #[error("the cluster map is at epoch {0}; read it again")]
    StaleMap(u64),
    #[error("the join token is unknown, expired or used up")]
    BadToken,
    #[error("role {} needs a join token that allows it: `makai node join-token --roles ...`", names(.0))]
    RoleDenied(Vec<Role>),
    /// What it reports counts no more: the task has ended, or another attempt has it.
    #[error("attempt {0} is not current: its task has ended or was given to another")]
    StaleAttempt(AttemptId),
    #[error("invalid: {0}")]
    Invalid(String),
    #[error("{0}")]
    Accounts(AccountsRefusal),
    #[error(transparent)]
    Version(VersionRefusal),
    #[error(transparent)]
    File(super::files::FileRefusal),
}

impl From<VersionRefusal> for Refusal {
    fn from(refusal: VersionRefusal) -> Self {
        Self::Version(refusal)
    }
}

impl From<super::files::FileRefusal> for Refusal {
    fn from(refusal: super::files::FileRefusal) -> Self {
        Self::File(refusal)
    }
}

fn names(roles: &[Role]) -> String {
    roles.iter().map(Role::to_string).collect::<Vec<_>>().join(", ")
}
