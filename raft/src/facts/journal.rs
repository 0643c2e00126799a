//! What happens to the keys of buckets that someone follows: written with the change itself, so that none is missed.
//!
//! ```text
//! change of a key ─> journal of its bucket, in order ─ each follower reads, acts, advances ─> what all have seen goes
//! ```

use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::version::VersionId;

/// Changes of one bucket that wait for a follower; beyond, changes are refused with `FollowersBehind`.
pub const WAITING_MAX: u64 = 1_000_000;
/// Followers of one bucket.
pub const FOLLOWERS_MAX: usize = 8;
/// Bytes of a follower's name.
pub const FOLLOWER_BYTES_MAX: usize = 64;

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Happening {
    Put,
    Copied,
    /// An upload was completed.
    Completed,
    /// A version is no more.
    Deleted,
    /// A delete marker hides the key.
    Marked,
    /// As `Deleted` and `Marked`, by the bucket's lifecycle.
    Expired,
    ExpiredByMarker,
    Tagged,
    Untagged,
    AclChanged,
    /// As `Put`, by a browser's form.
    Posted,
    /// The bucket's lifecycle gave it another storage class.
    Transitioned,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// In the order of the bucket's changes, from 1.
    pub sequence: u64,
    pub at: Timestamp,
    pub happening: Happening,
    pub key: String,
    /// `None`: the current one of a bucket without versions.
    pub version: Option<VersionId>,
    /// Of what is there now; 0 and empty where nothing is.
    pub size: u64,
    pub etag: String,
}

/// A bucket that is followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    pub bucket: u64,
    pub name: String,
    /// Of the newest change.
    pub sequence: u64,
    /// By name: the newest change that each has done with.
    pub followers: Vec<(String, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JournalCommand {
    /// Adds a follower, who sees what happens from now on, or takes one away.
    Follow { bucket: String, follower: String, is_on: bool },
    /// The follower has done with all changes up to `upto`. Of a bucket that is another by now: nothing.
    Advance { bucket: String, id: u64, follower: String, upto: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JournalQuery {
    /// -> `Followed`, by bucket's name.
    Followed { after: String, entries_max: u32 },
    /// -> `Changes`, in order.
    Changes { bucket: u64, after: u64, entries_max: u32 },
    /// -> `Changes`: the oldest that the follower has not done with, if there is one.
    Oldest { bucket: String, follower: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JournalAnswer {
    Followed(Vec<Followed>),
    Changes(Vec<Change>),
}
