//! Who administered what: a trail that only grows, up to a bound behind which its oldest entries go.
//!
//! ```text
//! door: command + deed ─ Audited ─> carried out and written down together ─> read by the operator, newest first
//! ```

use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::command::Command;

/// Entries kept.
pub const ENTRIES_MAX: u64 = 100_000;
/// Bytes of each text of a deed; what is longer is cut.
pub const TEXT_BYTES_MAX: usize = 512;

/// What someone did, as a door knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// `operator`, or the ARN or canonical id of a requester.
    pub by: String,
    /// The address that the request came from; empty: unknown.
    pub from: String,
    /// `s3:PutBucketPolicy`, `iam:CreateUser`, `operator:CreateTenant`.
    pub action: String,
    /// What it was done to, as an ARN or a name.
    pub target: String,
}

/// One deed that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// In the order of the deeds, from 1.
    pub sequence: u64,
    pub at: Timestamp,
    pub deed: Deed,
}

/// A command with the deed that it is. What is refused leaves no entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audited {
    pub deed: Deed,
    /// Not an audited one itself.
    pub command: Box<Command>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditQuery {
    /// -> `Entries` with a sequence below `before`, newest first; 0: the newest of all.
    Entries { before: u64, entries_max: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditAnswer {
    Entries(Vec<Entry>),
}
