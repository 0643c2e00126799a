//! What a disk answers when it cannot do as asked.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::ids::ShardKey;

/// Variants by what the caller does next.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Rebuild the shard.
    #[error("shard {key} is not on this disk")]
    Missing { key: ShardKey },
    /// Read other shards and rebuild this one: writing it again replaces it.
    #[error("shard {key} in {path:?} at byte {offset} is damaged: {what}; repair replaces it")]
    Corrupt { key: ShardKey, path: PathBuf, offset: u64, what: &'static str },
    /// Write elsewhere.
    #[error("{path:?} has {free} bytes free and keeps {reserve} in reserve; add a disk or lower the reserve")]
    DiskFull { path: PathBuf, free: u64, reserve: u64 },
    /// Write elsewhere; shards can still be read.
    #[error("{path:?} is read-only; remount it writable and restart the daemon")]
    ReadOnly { path: PathBuf },
    /// Write elsewhere for now: every writer holds memory and room.
    #[error("the disk already takes {writers_max} shards at once; try again")]
    Busy { writers_max: usize },
    /// Asking again will not help: the request contradicts itself or the format.
    #[error("shard {key} refused: {why}")]
    Refused { key: ShardKey, why: String },
    /// The bytes asked for lie outside the shard.
    #[error("bytes {offset}..+{len} of shard {key} do not exist: it has {shard_len}")]
    OutOfRange { key: ShardKey, offset: u64, len: u64, shard_len: u64 },
    /// The device failed one operation. What was acknowledged before is not concerned.
    #[error(
        "{what} {path:?}: the device reports an error; check its cable and health, replace it if it repeats"
    )]
    Device { what: &'static str, path: PathBuf, source: Arc<io::Error> },
    /// The disk is lost to this process: what it reports as synced can no longer be trusted.
    #[error(
        "disk {path:?} failed and takes no more requests ({why}); check the device, then restart the daemon"
    )]
    Failed { path: PathBuf, why: Arc<str> },
    #[error("disk {path:?} is closed")]
    Closed { path: PathBuf },
    #[error("{what} {path:?}")]
    Io { what: &'static str, path: PathBuf, source: Arc<io::Error> },

    #[error("{path:?} is not a directory; mount the disk or create the directory, then start again")]
    NoDirectory { path: PathBuf },
    #[error("{path:?} cannot be written: give the daemon's user write access")]
    NoAccess { path: PathBuf },
    #[error("{path:?} holds no disk of this program; format it first")]
    NotFormatted { path: PathBuf },
    #[error("{path:?} already holds {what}; choose an empty directory, or remove it by hand if it may go")]
    AlreadyFormatted { path: PathBuf, what: &'static str },
    #[error("disk {path:?} belongs to cluster {found:?}, not {wanted:?}; check the configured path")]
    OtherCluster { path: PathBuf, found: String, wanted: String },
    #[error("a newer release wrote {path:?} (format {found}, this one reads up to {known}); upgrade")]
    NewerFormat { path: PathBuf, found: u16, known: u16 },
    #[error("another process uses {path:?}; stop it first")]
    Locked { path: PathBuf },
    #[error(
        "{path:?} is damaged in both copies; restore it or give the disk up and format an empty directory"
    )]
    DamagedSuperblock { path: PathBuf },
    #[error("cluster id of {len} bytes; it may have 1 to {max}")]
    BadClusterId { len: usize, max: usize },
}

impl StoreError {
    pub(super) fn io(what: &'static str, path: &Path, error: io::Error) -> Self {
        let path = path.to_path_buf();
        match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => {
                Self::DiskFull { path, free: 0, reserve: 0 }
            }
            Some(rustix::io::Errno::ROFS) => Self::ReadOnly { path },
            Some(rustix::io::Errno::IO) => Self::Device { what, path, source: Arc::new(error) },
            Some(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => Self::NoAccess { path },
            _ => Self::Io { what, path, source: Arc::new(error) },
        }
    }
}
