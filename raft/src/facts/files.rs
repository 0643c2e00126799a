//! Keys as files: what a mount asks of a bucket's tree, and what it is told.
//!
//! A file is known by its inode; names point to it. An object that S3 put carries its inode in its entry until a mount
//! first changes it: till then it is found only by its place.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::command::{NewBlob, Refusal};
use super::object::{Content, Extent, ResolvedExtent};

/// UTF-8 bytes in a name, `/` left out: a file name's 255 bytes may take two digits each.
pub const NAME_BYTES_MAX: usize = 1024;
/// Directories in one answer about who has them alone.
pub const LEASED_MAX: usize = 100;
/// Operations in one command.
pub const OPS_MAX: usize = 1000;
/// Keys that one operation may move while someone follows the bucket's keys.
pub const KEYS_TOLD_MAX: usize = 10_000;
/// Bytes of a file's extended attributes, names included.
pub const XATTR_BYTES_MAX: usize = 64 * 1024;
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Names of one file.
pub const LINKS_MAX: u32 = 65_000;
/// Locks on one file.
pub const LOCKS_MAX: usize = 4096;
/// A session not renewed for so long has ended.
pub const LEASE_MS: u64 = 30_000;
/// A session whose directories are its alone has them for so long after its last change.
pub const DIRECTORY_LEASE_MS: u64 = 5_000;
/// Sessions of one bucket at once.
pub const SESSIONS_MAX: u32 = 1024;
/// Inode numbers granted at once.
pub const GRANT_MAX: u32 = 65_536;
/// Events kept for one bucket; who is further behind has lost some.
pub const EVENTS_KEPT: u64 = 4096;
/// Permission bits of what no mount has changed.
pub const FILE_MODE: u32 = 0o644;
pub const DIRECTORY_MODE: u32 = 0o755;
/// Bits of a mode that are kept.
pub const MODE_BITS: u32 = 0o7777;

/// Unix time; `nanos` count forward before 1970 too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileTime {
    pub seconds: i64,
    pub nanos: u32,
}

impl FileTime {
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        let seconds = i64::try_from(millis / 1000).unwrap_or(i64::MAX);
        Self { seconds, nanos: (millis % 1000) as u32 * 1_000_000 }
    }

    /// This time, or `now` where it lies farther from it than `away_ms_max`, or is none.
    #[must_use]
    pub fn within(self, now: Self, away_ms_max: u64) -> Self {
        let is_time = self.nanos < 1_000_000_000;
        let away_ms = self.to_millis().abs_diff(now.to_millis());
        if is_time && away_ms <= away_ms_max { self } else { now }
    }

    /// Whole milliseconds since 1970; 0 before.
    #[must_use]
    pub fn to_millis(self) -> u64 {
        let Ok(seconds) = u64::try_from(self.seconds) else { return 0 };
        seconds.saturating_mul(1000).saturating_add(u64::from(self.nanos / 1_000_000))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What a file has beside an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileAttributes {
    /// The bucket's root directory: whose file it is.
    pub root: u64,
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub links: u32,
    pub accessed_at: FileTime,
    pub modified_at: FileTime,
    pub changed_at: FileTime,
    pub created_at: FileTime,
    /// Bytes of its size that are holes.
    pub hole_bytes: u64,
    /// Extents of its content.
    pub extents: u32,
}

/// What is kept of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryAttributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub accessed_at: FileTime,
    pub modified_at: FileTime,
    pub changed_at: FileTime,
    pub created_at: FileTime,
}

impl DirectoryAttributes {
    /// Of a directory that a key implied at `now`.
    #[must_use]
    pub fn implied(now: FileTime) -> Self {
        Self {
            mode: DIRECTORY_MODE,
            uid: 0,
            gid: 0,
            accessed_at: now,
            modified_at: now,
            changed_at: now,
            created_at: now,
        }
    }
}

/// What `stat` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    pub inode: u64,
    pub kind: FileKind,
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub size: u64,
    /// Bytes of its size that are holes.
    pub hole_bytes: u64,
    pub accessed_at: FileTime,
    pub modified_at: FileTime,
    pub changed_at: FileTime,
    pub created_at: FileTime,
    /// Changes with the content, and never comes back.
    pub data_version: u64,
    /// Found only by its place: no mount has changed it yet.
    pub needs_place: bool,
    /// Empty for directories.
    pub etag: String,
    /// It has no extended attributes; false: it may have some. Answers to questions tell it, replies to commands do not.
    #[serde(default)]
    pub has_no_xattrs: bool,
}

/// A bucket, and which of those that had its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketRef {
    pub name: String,
    pub id: u64,
}

/// A name in a directory, without its `/`. It may be empty: the key `a//b` has such a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Name {
    /// The directory of this name, else the object.
    Any(String),
    /// The object, though a directory of this name may stand beside it; empty: the directory's own key.
    Object(String),
}

impl Name {
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Any(text) | Self::Object(text) => text,
        }
    }
}

/// A file or directory; `place` is where it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    pub inode: u64,
    pub place: Option<(u64, Name)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileCommand {
    /// `session`: drawn at random by the door. `below`: the directory that is mounted, by its names.
    OpenSession {
        bucket: BucketRef,
        session: u64,
        client: String,
        below: Vec<Name>,
        inodes_wanted: u32,
    },
    /// `seen`: orphans until this sequence that are not `held` are released.
    RenewSession {
        bucket: BucketRef,
        session: u64,
        seen: u64,
        held: Vec<u64>,
        inodes_wanted: u32,
    },
    CloseSession {
        bucket: BucketRef,
        session: u64,
    },
    /// Ends sessions whose lease is over.
    ExpireSessions {
        bucket: BucketRef,
    },
    /// Each operation happens whole or not at all, in order. `request`: done once however often it comes; 0: not known
    /// again. `blobs`: all that operations name and that may be unknown.
    Apply {
        bucket: BucketRef,
        session: u64,
        request: u64,
        ops: Vec<FileOp>,
        blobs: Vec<NewBlob>,
        /// The reply leaves out the directories that operations changed.
        #[serde(default)]
        is_brief: bool,
    },
    /// Asks who has a directory alone to give it back.
    Recall {
        bucket: BucketRef,
        directory: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileOp {
    Make(Make),
    SetAttributes {
        file: FileRef,
        set: SetAttributes,
    },
    Link {
        file: FileRef,
        parent: u64,
        name: Name,
    },
    Unlink {
        parent: u64,
        name: Name,
        is_held: bool,
    },
    RemoveDirectory {
        parent: u64,
        name: Name,
    },
    Rename {
        from_parent: u64,
        from_name: Name,
        to_parent: u64,
        to_name: Name,
        how: RenameHow,
        is_replaced_held: bool,
    },
    Edit {
        file: FileRef,
        if_data_version: Option<u64>,
        edits: Vec<Edit>,
        modified_at: Option<FileTime>,
    },
    SetXattr {
        file: FileRef,
        name: Bytes,
        value: Option<Bytes>,
        how: XattrHow,
    },
    SetLock {
        file: FileRef,
        lock: Lock,
    },
    /// Takes a directory for this session alone, or gives it back: while one session has it, what others change of its
    /// entries is refused as [`FileRefusal::Leased`].
    SetLease {
        directory: u64,
        is_wanted: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Make {
    pub parent: u64,
    pub name: Name,
    pub kind: FileKind,
    /// One granted to the session; 0: any.
    pub inode: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub is_exclusive: bool,
    pub xattrs: Vec<(Bytes, Bytes)>,
    pub content: Whole,
    /// When its session made it, if that is longer ago than this command; times that are not given are this one.
    #[serde(default)]
    pub made_at: Option<FileTime>,
    #[serde(default)]
    pub modified_at: Option<FileTime>,
    #[serde(default)]
    pub accessed_at: Option<FileTime>,
    /// A directory that is its session's alone from its birth on.
    #[serde(default)]
    pub is_leased: bool,
}

/// A whole content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    pub size: u64,
    /// `None`: made of inode and version.
    pub etag: Option<String>,
    pub content: Content,
}

impl Whole {
    #[must_use]
    pub fn empty() -> Self {
        Self { size: 0, etag: None, content: Content::Empty }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttributes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub accessed_at: Option<TimeToSet>,
    pub modified_at: Option<TimeToSet>,
    pub size: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeToSet {
    Now,
    At(FileTime),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameHow {
    Replace,
    NoReplace,
    Exchange,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrHow {
    Any,
    Create,
    Replace,
}

/// A change of a file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Edit {
    Replace(Whole),
    /// Behind the end it leaves a hole between.
    Write {
        offset: u64,
        extents: Vec<Extent>,
    },
    Append(Vec<Extent>),
    Truncate(u64),
    /// A hole up to this size, where the file is shorter.
    Extend(u64),
    Punch {
        offset: u64,
        length: u64,
    },
    /// Shares extents of a file of the same bucket.
    Copy {
        from: FileRef,
        from_offset: u64,
        offset: u64,
        length: u64,
    },
    /// The session's programs have closed the file. In a bucket that keeps versions, what is there is one: the next edit, of
    /// whatever session, leaves it as it is and begins another. Until then a session changes in place what it began.
    Finish,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockType {
    Read,
    Write,
    Unlock,
}

/// An owner's lock on `start..=end`. Locks of `flock` and of `fcntl` do not see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    pub kind: LockType,
    pub owner: u64,
    pub is_flock: bool,
    pub start: u64,
    pub end: u64,
    pub pid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileReply {
    Session(SessionGrant),
    Done,
    /// One for each operation; fewer where the last is refused as [`FileRefusal::IsInline`].
    Applied(Vec<Result<FileDone, Refusal>>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionGrant {
    pub root: Stat,
    /// The last event.
    pub sequence: u64,
    /// First and count of inode numbers granted.
    pub inodes: (u64, u32),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDone {
    /// What the operation was about, where it has a name still.
    pub stat: Option<Stat>,
    /// The directories that it changed.
    pub directories: Vec<Stat>,
    /// Where an append landed.
    pub offset: u64,
    pub is_new: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileQuery {
    /// Steps down from a directory. -> `Found`
    Lookup { bucket: BucketRef, parent: u64, names: Vec<Name> },
    /// -> `Stats`
    Stats { bucket: BucketRef, files: Vec<FileRef> },
    /// Entries after `cursor`. -> `Directory`
    Directory { bucket: BucketRef, inode: u64, cursor: Bytes, entries_max: u32 },
    /// -> `Content`, with the extents from `from_offset` on.
    Content { bucket: BucketRef, file: FileRef, from_offset: u64, extents_max: u32 },
    /// -> `Xattrs`
    Xattrs { bucket: BucketRef, file: FileRef },
    /// -> `Lock`: the first that stands in the way.
    Lock { bucket: BucketRef, session: u64, file: FileRef, lock: Lock },
    /// -> `Events` after a sequence.
    /// Without any, the answer waits for one, at most `wait_ms`.
    Events {
        bucket: BucketRef,
        session: u64,
        after: u64,
        entries_max: u32,
        #[serde(default)]
        wait_ms: u32,
    },
    /// -> `Space`
    Space { bucket: BucketRef },
    /// Whether the lease of a session is over by now, so that it is to be ended. -> `Expired`
    Expired { bucket: BucketRef, now: Timestamp },
    /// Directories that sessions other than `reader` (0: S3) have alone: what stands in them is not known here yet. At most
    /// [`LEASED_MAX`]. -> `Leased`
    Leased { bucket: BucketRef, reader: u64, at: LookedAt },
}

/// What a reader looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LookedAt {
    /// A directory, and those that are some steps down from it.
    Directory {
        inode: u64,
        names: Vec<Name>,
    },
    Key(String),
    Everything,
    /// Keys that begin with `prefix`, behind `after`, up to `until` or to the last.
    Keys {
        prefix: String,
        after: String,
        until: Option<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileAnswer {
    /// As far as the steps went, and why they ended early.
    Found {
        found: Vec<Stat>,
        ended: Option<Refusal>,
    },
    Stats(Vec<Result<Stat, Refusal>>),
    Directory {
        entries: Vec<DirectoryEntry>,
        is_end: bool,
        directory: Stat,
        parent: u64,
    },
    Content(FileContent),
    Xattrs(Vec<(Bytes, Bytes)>),
    /// A session's lock.
    Lock(Option<(u64, Lock)>),
    /// The last sequence of those looked at; `is_lost`: some before them are gone.
    Events {
        sequence: u64,
        events: Vec<FileEvent>,
        is_lost: bool,
    },
    Space {
        used_bytes: u64,
        quota_bytes: Option<u64>,
        files: u64,
    },
    Expired(bool),
    Leased(Vec<u64>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    pub name: Name,
    pub stat: Stat,
    /// Where to go on behind it.
    pub cursor: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileContent {
    pub stat: Stat,
    /// How it is sealed beyond what every object is, as the doors write it.
    pub encryption: Option<String>,
    /// Inline content, or [`Content::Empty`], or `Extents` left empty in favour of `extents`.
    pub content: Content,
    pub extents: Vec<ResolvedExtent>,
    /// Whether extents after these exist.
    pub is_truncated: bool,
}

/// What others' caches must forget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileEvent {
    Inode(u64),
    Entry {
        parent: u64,
        name: Name,
    },
    Orphaned(u64),
    Unlocked(u64),
    /// Another wants to change a directory that the session has alone.
    Recalled {
        directory: u64,
        session: u64,
    },
}

/// Why something could not be done with a file: each has its errno.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum FileRefusal {
    #[error("there is no such file or directory")]
    NotFound,
    /// ESTALE: the inode is gone, or its content is not the version that was meant.
    #[error("the file is gone or has changed")]
    Stale,
    #[error("the session has ended: open another")]
    SessionEnded,
    #[error("the name exists")]
    Exists,
    #[error("it is not a directory")]
    NotDirectory,
    #[error("it is a directory")]
    IsDirectory,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("the name is too long")]
    NameTooLong,
    #[error("the file would be too large")]
    TooLarge,
    #[error("the file has {LINKS_MAX} names, as many as may be")]
    TooManyLinks,
    #[error("another's lock stands in the way")]
    Locked,
    #[error("the file has as many locks as may be")]
    TooManyLocks,
    #[error("the extended attribute does not exist")]
    NoXattr,
    #[error("extended attributes of more than {XATTR_BYTES_MAX} bytes")]
    XattrsTooLarge,
    #[error("it is not allowed: {0}")]
    NotPermitted(String),
    #[error("not supported: {0}")]
    NotSupported(String),
    #[error("invalid: {0}")]
    Invalid(String),
    /// A door rewrites the content as a blob, and edits that.
    #[error("the content is inline, and can only be replaced")]
    IsInline,
    /// A door has it recalled, and tries again.
    #[error("a mount has the directory alone")]
    Leased { bucket: BucketRef, directory: u64 },
    /// EXDEV: programs then copy, file by file.
    #[error(
        "the directory has more keys than are moved at once where a bucket tells of each or keeps versions: move them one by one"
    )]
    TooManyKeys,
}
