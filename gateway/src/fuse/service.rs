//! What the mount needs from the pool, and nothing more: the port that the real client and the tests' memory provide.
//!
//! Every answer tells the state after it: a change returns the attributes of all that it changed, so that the mount
//! never asks again for what it was told. Numbers are Linux's: a refusal is an errno.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

/// A file, by the number that it keeps through renames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

/// Why something cannot be done, as a program on the mount is told.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct Errno(pub i32);

impl Errno {
    pub const ACCES: Self = Self(libc::EACCES);
    pub const AGAIN: Self = Self(libc::EAGAIN);
    pub const BADF: Self = Self(libc::EBADF);
    pub const DQUOT: Self = Self(libc::EDQUOT);
    pub const EXIST: Self = Self(libc::EEXIST);
    pub const FBIG: Self = Self(libc::EFBIG);
    pub const INTR: Self = Self(libc::EINTR);
    pub const INVAL: Self = Self(libc::EINVAL);
    pub const IO: Self = Self(libc::EIO);
    pub const ISDIR: Self = Self(libc::EISDIR);
    pub const NAMETOOLONG: Self = Self(libc::ENAMETOOLONG);
    pub const NODATA: Self = Self(libc::ENODATA);
    pub const NOENT: Self = Self(libc::ENOENT);
    pub const NOSPC: Self = Self(libc::ENOSPC);
    pub const NOTDIR: Self = Self(libc::ENOTDIR);
    pub const NOTEMPTY: Self = Self(libc::ENOTEMPTY);
    pub const NXIO: Self = Self(libc::ENXIO);
    pub const OPNOTSUPP: Self = Self(libc::EOPNOTSUPP);
    pub const PERM: Self = Self(libc::EPERM);
    pub const RANGE: Self = Self(libc::ERANGE);
    pub const ROFS: Self = Self(libc::EROFS);
    pub const STALE: Self = Self(libc::ESTALE);
    pub const TIMEDOUT: Self = Self(libc::ETIMEDOUT);
    pub const XDEV: Self = Self(libc::EXDEV);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({}: {self})", self.0)
    }
}

pub type Result<T> = std::result::Result<T, Errno>;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What `stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    pub kind: Kind,
    /// The low 12 bits: permissions, set-id and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub rdev: u32,
    pub size: u64,
    /// Of 512 bytes, as far as they are not holes.
    pub blocks: u64,
    pub atime: SystemTime,
    pub mtime: SystemTime,
    pub ctime: SystemTime,
    pub btime: SystemTime,
    /// Another with each change of the bytes: what was read at one number is valid as long as it stands.
    pub data_version: u64,
    /// Extended attributes need not be asked for: there are none.
    pub has_no_xattrs: bool,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(SystemTime),
}

/// What to change of a file's attributes; ctime moves with every change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttrChange {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

impl AttrChange {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A file, and a name under which it was seen: the pool finds some files by their names only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRef {
    pub ino: Ino,
    pub place: Option<Place>,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    pub parent: Ino,
    pub name: Bytes,
}

/// A node to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNode {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    /// A symbolic link's target; empty for all others.
    pub target: Bytes,
    pub xattrs: Vec<(Bytes, Bytes)>,
}

/// How a node is born that was made here before the pool is told of it. By default the pool gives all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Birth {
    /// Of those that [`FileService::number`] gave.
    pub ino: Option<Ino>,
    /// The other times are this one, where they are not given.
    pub made_at: Option<SystemTime>,
    pub mtime: Option<SystemTime>,
    pub atime: Option<SystemTime>,
    /// A file's content.
    pub data: Bytes,
    /// A directory that is this mount's alone from now on, as after [`Operation::Lease`].
    pub is_leased: bool,
}

/// How a rename treats the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
}

/// How an extended attribute is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    Either,
    Create,
    Replace,
}

/// Bytes to put into a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    Inline(Bytes),
    /// Of what [`FileService::store`] took in.
    Stored {
        token: Bytes,
        length: u64,
    },
}

impl Payload {
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Inline(data) => data.len() as u64,
            Self::Stored { length, .. } => *length,
        }
    }
}

/// One change of a file's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// All of the content, if it is of this version still: otherwise `ESTALE`. Stands alone in its operation.
    Replace {
        data: Bytes,
        version: u64,
    },
    Write {
        offset: u64,
        data: Payload,
    },
    /// At the end, wherever it is by then.
    Append(Payload),
    /// The range becomes a hole; the size stays.
    Punch {
        offset: u64,
        length: u64,
    },
    /// Lengthens the file with a hole to this size if it is shorter.
    Extend(u64),
    /// Shares the bytes of another file, or of this one.
    Copy {
        from: FileRef,
        from_offset: u64,
        offset: u64,
        length: u64,
    },
    /// No program here writes the file any more: where versions are kept, what is there is one.
    Finish,
}

/// A change: happens whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// `EEXIST` where the name is taken.
    Make {
        place: Place,
        node: NewNode,
        birth: Birth,
    },
    SetAttributes {
        file: FileRef,
        change: AttrChange,
    },
    Link {
        file: FileRef,
        to: Place,
    },
    /// The bytes outlive the last name while `is_held` or others hold it.
    Unlink {
        place: Place,
        is_held: bool,
    },
    RemoveDirectory {
        place: Place,
    },
    Rename {
        from: Place,
        to: Place,
        mode: RenameMode,
        is_replaced_held: bool,
    },
    Edit {
        file: FileRef,
        edits: Vec<Edit>,
        mtime: Option<SystemTime>,
    },
    /// Without a value: removed.
    SetXattr {
        file: FileRef,
        name: Bytes,
        value: Option<Bytes>,
        mode: XattrMode,
    },
    /// `EAGAIN` where another's lock stands in the way; never waits.
    Lock {
        file: FileRef,
        lock: Lock,
    },
    /// A directory becomes this mount's alone, or is given back. `EAGAIN`: it is another's.
    Lease {
        directory: Ino,
        is_wanted: bool,
    },
}

/// What a change left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// The file that it was about, unless its last name went.
    pub attr: Option<Attr>,
    /// The directories that it changed.
    pub directories: Vec<Attr>,
    /// Where an append landed.
    pub offset: u64,
}

/// A name in a directory, what it names, and where to go on behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: Bytes,
    pub attr: Attr,
    pub cursor: Bytes,
}

/// Part of a directory, in the service's order.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub entries: Vec<Entry>,
    pub is_end: bool,
    /// The directory above.
    pub parent: Option<Ino>,
}

/// Bytes of a file, and its attributes when they were read. Fewer than asked only at the end of the file.
#[derive(Debug, Clone)]
pub struct Read {
    pub data: Bytes,
    pub attr: Attr,
}

/// An entry of the past of a bucket that keeps versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastEntry {
    pub name: Bytes,
    pub kind: PastKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PastKind {
    Directory,
    Version {
        key: String,
        id: String,
        size: u64,
        modified_at: SystemTime,
        /// Another of each version of a bucket.
        data_version: u64,
    },
}

/// Part of a directory of the past; an empty one may have others behind it.
#[derive(Debug, Clone, Default)]
pub struct PastPage {
    pub entries: Vec<PastEntry>,
    pub cursor: Bytes,
    pub is_end: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    Data,
    Hole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    Read,
    Write,
    Unlock,
}

/// A lock on a range of a file, both ends within.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    pub kind: LockKind,
    pub start: u64,
    pub end: u64,
    pub owner: u64,
    pub pid: u32,
}

/// Room in the bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    pub bytes_total: u64,
    pub bytes_used: u64,
    pub files: u64,
}

/// What changed by another's hand; what is cached of it is void.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A file's attributes or bytes.
    Node(Ino),
    /// What a name stands for, and the directory's attributes.
    Name(Place),
    /// A lock on the file was released.
    Unlocked(Ino),
    /// A directory that is this mount's alone is wanted back: no more is to be decided here, and the pool to be told of
    /// what was.
    Recalled(Ino),
    /// Everything: changes were lost, or the pool was away.
    All,
}

/// The pool as files.
#[async_trait::async_trait]
pub trait FileService: Send + Sync + 'static {
    /// The directory that is mounted.
    async fn root(&self) -> Result<Attr>;
    async fn lookup(&self, place: &Place) -> Result<Attr>;
    async fn attributes(&self, file: &FileRef) -> Result<Attr>;
    /// Entries behind `cursor`, from the first where it is empty; without `.` and `..`.
    async fn list(&self, directory: Ino, cursor: Bytes) -> Result<Page>;
    async fn read_link(&self, file: &FileRef) -> Result<Bytes>;
    async fn xattrs(&self, file: &FileRef) -> Result<Vec<(Bytes, Bytes)>>;
    async fn read(&self, file: &FileRef, offset: u64, length: u64) -> Result<Read>;
    /// `ENXIO` behind the end.
    async fn seek(&self, file: &FileRef, offset: u64, to: SeekTo) -> Result<u64>;
    async fn space(&self) -> Result<Space>;
    /// A lock that stands in the way of this one, if any.
    async fn lock_conflict(&self, file: &FileRef, lock: Lock) -> Result<Option<Lock>>;
    /// Makes bytes durable; nothing sees them until an [`Edit`] names them.
    async fn store(&self, data: Bytes) -> Result<Payload>;
    /// Changes in order, durable when it returns; each has its own outcome.
    async fn apply(&self, operations: Vec<Operation>) -> Result<Vec<Result<Done>>>;
    /// As [`apply`](Self::apply), of much at once: [`Done::directories`] may be left out.
    async fn tell(&self, operations: Vec<Operation>) -> Result<Vec<Result<Done>>> {
        self.apply(operations).await
    }
    /// A number for a node that the pool is told of later; `None`: there is none now.
    fn number(&self) -> Option<Ino> {
        None
    }
    /// For how long from now on directories that are this mount's alone stay so, whatever happens; each answer of
    /// [`apply`](Self::apply) and [`tell`](Self::tell) prolongs it. Zero: nothing may be decided here.
    fn alone_for(&self) -> Duration {
        Duration::ZERO
    }
    /// Whether what was closed is kept when it is changed again: then [`Edit::Finish`] says so.
    fn keeps_versions(&self) -> bool {
        false
    }
    /// Versions behind `cursor`, some steps down from where the mount begins; `ENOENT` where none were ever kept.
    async fn past(&self, _path: &[Bytes], _cursor: Bytes) -> Result<PastPage> {
        Err(Errno::NOENT)
    }
    /// One entry of those.
    async fn past_entry(&self, _path: &[Bytes], _name: &Bytes) -> Result<PastEntry> {
        Err(Errno::NOENT)
    }
    /// Bytes of a version; fewer than asked only at its end.
    async fn read_past(&self, _key: &str, _id: &str, _offset: u64, _length: u64) -> Result<Bytes> {
        Err(Errno::NOENT)
    }
    /// From now on the file is open here: its bytes outlive its last name until [`release`](Self::release).
    fn hold(&self, ino: Ino);
    fn release(&self, ino: Ino);
    /// Waits for changes by others' hands; called again and again. An empty list: the service has ended.
    async fn changes(&self) -> Vec<Change>;
    /// For so long from now on an answer may be served again while no change is told.
    fn cache_for(&self) -> Duration;
    /// Ends the session: its locks and holds go.
    async fn close(&self);
}
