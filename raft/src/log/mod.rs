//! The write-ahead log: votes and entries of every group of this node, in one stream on one disk.
//!
//! ```text
//! append, vote, truncate, purge ─> queue ─ flusher: one frame, one fdatasync ─> callbacks, in order
//! read                          <─ memory, or the segment's file for what is old
//! ```
//!
//! | file       | holds                                                         |
//! |------------|---------------------------------------------------------------|
//! | `wal`      | the queue, the flusher, segments: zeroed ahead, recycled      |
//! | `format`   | the bytes on disk                                             |
//! | `recovery` | from bytes back to the log; tells a torn tail from corruption |
//! | [`disk`]   | port: files                                                   |
//! | [`types`]  | what openraft is made concrete with                           |
//! | `storage`  | openraft's traits                                             |
//!
//! Always: what was acknowledged is on disk, and so is everything submitted before it, votes included; a
//! write or sync that fails is the end of the log in this process; the log starts with the acknowledged
//! prefix or refuses to start.

pub mod disk;
mod format;
mod recovery;
mod storage;
pub mod types;
mod wal;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub use storage::GroupStorage;
pub use wal::Log;

/// How the log uses its disk.
#[derive(Debug, Clone)]
pub struct LogConfig {
    pub dir: PathBuf,
    /// Size of a segment's file. A frame that is larger gets a segment of its own size.
    pub segment_bytes: u64,
    /// Encoded bytes of entries kept in memory; older ones are read from their segment.
    pub cache_bytes: usize,
    /// Whether a thread zeroes the next segment's file while the current one fills.
    pub is_prepared_ahead: bool,
}

impl LogConfig {
    /// 16 MiB segments, 32 MiB of memory.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, segment_bytes: 16 << 20, cache_bytes: 32 << 20, is_prepared_ahead: true }
    }
}

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// What was acknowledged does not read back: starting would forget it.
    #[error(
        "log segment {path:?} is corrupt at byte {offset}: {why}; move this voter's directory away and let it \
         rejoin under a new number, the other voters have its facts"
    )]
    Corrupt { path: PathBuf, offset: u64, why: String },
    #[error("{action} {path:?}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}
