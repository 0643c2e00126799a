//! The key-value store of the machine, on redb, and its snapshots.
//!
//! ```text
//! apply      entries ─ machine ─> a delta in memory, seen by every view ─> replies
//! fold       many batches of the delta, position included ─> one transaction, not yet synced
//! keep       every so often a synced one; only then may the log forget
//! snapshot   frozen view ─ stream ─> peer's file ─ checked ─> new database ─ rename ─> in force
//! ```
//!
//! | file           | holds                                        |
//! |----------------|----------------------------------------------|
//! | `database`     | [`MetaStore`]: transactions, views, installs |
//! | `delta`        | changes that the database does not hold yet  |
//! | `backend`      | redb on the port [`Disk`]                    |
//! | [`snapshot`]   | a snapshot as a stream of bytes              |
//! | `raft_machine` | openraft's traits                            |
//!
//! Always: facts and the position they reflect change in one transaction, so that a crash takes the store back
//! to an earlier position of the same log; a snapshot is in force whole or not at all.
//!
//! [`Disk`]: crate::log::disk::Disk

mod backend;
mod database;
mod delta;
mod raft_machine;
pub mod snapshot;

#[cfg(test)]
mod measured;
#[cfg(test)]
mod tests;

pub use database::{Frozen, MetaStore, Position, StoreConfig, StoreError};
pub use raft_machine::{RaftMachine, SnapshotBuilder, SnapshotData};
