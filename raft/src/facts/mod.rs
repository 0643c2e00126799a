//! The nouns of the cluster, and what can be asked of them.
//!
//! All are plain data. On disk and on the wire they are MessagePack with positional fields (`rmp_serde`);
//! a later release appends fields with `#[serde(default)]` and never reorders or removes one. Enum variants go
//! by name on the wire and are never renamed.

pub mod accounts;
pub mod audit;
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

    /// Year, month, day, hour, minute, second in UTC.
    #[must_use]
    pub fn civil(self) -> [u64; 6] {
        let seconds = self.0 / 1000;
        let (days, seconds) = (seconds / 86_400 + 719_468, seconds % 86_400);
        let (era, day) = (days / 146_097, days % 146_097);
        let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        [year, month, day, seconds / 3600, seconds / 60 % 60, seconds % 60]
    }

    /// `2024-02-29T12:00:00Z`
    #[must_use]
    pub fn rfc3339(self) -> String {
        let [year, month, day, hour, minute, second] = self.civil();
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
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
