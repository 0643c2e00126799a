//! The nouns of the cluster, and what can be asked of them.
//!
//! All are plain data. On disk and on the wire they are MessagePack with positional fields (`rmp_serde`);
//! a later release appends fields with `#[serde(default)]` and never reorders or removes one. Enum variants go
//! by name on the wire and are never renamed.

pub mod accounts;
pub mod bucket;
pub mod cluster;
pub mod command;
pub mod desk;
pub mod identity;
pub mod joblog;
pub mod jobs;
pub mod journal;
pub mod object;
pub mod query;
pub mod tenant;
pub mod version;

pub mod files;

use std::fmt;

use serde::{Deserialize, Serialize};

/// Milliseconds of Unix time, as the leader stamped it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Milliseconds since `earlier`; 0 if that is later.
    #[must_use]
    pub fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// Which Raft group holds a fact. One group first; every record and frame carries it all the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupId(pub u32);

/// Where facts live.
#[derive(Debug, Clone, Copy, Default)]
pub struct ShardMap;

impl ShardMap {
    /// The group that holds the facts about `key` of `bucket`.
    #[must_use]
    pub fn locate(&self, _bucket: &str, _key: &str) -> GroupId {
        GroupId(0)
    }
}
