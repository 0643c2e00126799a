//! Writing, reading and rebuilding a blob over the disks of a placement group.
//!
//! The port [`ShardPeers`] is all that this room knows of other machines: the daemon carries it over QUIC,
//! tests over a network that fails on purpose. Shards of this node's own disks go through the same port.

//!
//! ```text
//! write    BlobWriter: pages sealed as they fill ─> stripe coded ─> one lane a disk ─> quorum durable ─> root
//! read     read_range: k fastest cells (hedged) ─> rebuilt where missing ─> pages opened ─> plaintext
//! rebuild  rebuild_shards: k other shards ─> those that are lost, each kept only if it hashes to the root it had
//! ```
//!
//! Always: a read returns the bytes written or an error (every page is authenticated); a write counts a shard only
//! after its disk said durable; a rebuild that is not sure writes nothing.

mod read;
mod rebuild;
#[cfg(test)]
mod tests;
mod write;

pub use read::{BlobSource, READ_WINDOW_BYTES, read_range};
pub use rebuild::{RebuildSource, Rebuilt, copy_shard, rebuild_shards};
pub use write::{BlobWriter, WritePlan, WrittenBlob};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{BlobId, DiskId, PgId, ShardKey};
use crate::layout::Scheme;

/// A BLAKE3 root: of one shard's bytes, or of the roots of all shards of a blob.
pub type Root = [u8; 32];

/// What a disk is told before the first byte of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardHeader {
    pub key: ShardKey,
    pub pg: PgId,
    pub scheme: Scheme,
    /// Bytes to set aside: the shard is never longer.
    pub len_max: u64,
    /// When the writer began, Unix time: what tells an unfinished write from an orphan.
    pub opened_at_ms: u64,
}

/// What closes a shard: with it the shard becomes readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFooter {
    /// Plaintext bytes of the blob, from which the layout of every shard follows.
    pub blob_plain_len: u64,
    /// BLAKE3 of each shard of the blob, in shard order: `roots[key.index]` is this one's.
    pub roots: Vec<Root>,
}

/// Why a disk did not do as asked. Variants by what the caller does next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum PeerError {
    /// The disk answers and does not hold the shard: rebuild it.
    #[error("the disk does not hold the shard")]
    Missing,
    /// The disk holds the shard and its bytes do not verify: read others, rebuild it.
    #[error("the shard is damaged: {0}")]
    Corrupt(String),
    /// The disk takes no more: write elsewhere.
    #[error("the disk is full or read-only: {0}")]
    Full(String),
    /// No answer, or not in time: the write may have happened. Try another disk.
    #[error("the disk cannot be reached: {0}")]
    Unreachable(String),
    /// The disk refused what was asked; asking again will not help.
    #[error("the disk refused: {0}")]
    Refused(String),
}

impl PeerError {
    /// Whether the disk answers and does not have the shard's bytes.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Missing | Self::Corrupt(_))
    }
}

/// Why a blob could not be written, read or rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StripeError {
    /// Too many disks failed during the write: write again, to another group.
    #[error("{live} of {need} shards needed can still become durable; last failure: {last}")]
    /// `is_full`: the disks that failed because they take no more would have been enough.
    QuorumLost { live: usize, need: usize, last: String, is_full: bool },
    /// Too few shards answer: it may work later, when disks are back.
    ///
    /// `gone`: those that were found missing or damaged where they should be, of the ones that were tried.
    #[error("blob {blob}: {have} of {need} shards answer; last failure: {last}")]
    TooFewShards { blob: BlobId, have: usize, need: usize, last: String, gone: Vec<u8> },
    /// Enough shards answer and no choice of them opens: bytes are lost or the key is wrong.
    #[error("blob {blob}: no {need} of its shards give authentic bytes")]
    Damaged { blob: BlobId, need: usize },
    /// What was asked contradicts itself; the message says how.
    #[error("{0}")]
    Invalid(String),
}

/// The root of a blob: BLAKE3 of its shards' roots in shard order.
#[must_use]
pub fn blob_root(roots: &[Root]) -> Root {
    let mut hasher = blake3::Hasher::new();
    for root in roots {
        hasher.update(root);
    }
    *hasher.finalize().as_bytes()
}

/// A shard on its way to a disk. Dropped before `finish`, the disk forgets it.
#[async_trait]
pub trait ShardSink: Send {
    /// Appends bytes; waits while the disk or the way to it is behind.
    async fn send(&mut self, bytes: Bytes) -> Result<(), PeerError>;
    /// As [`send`](Self::send) of each, in order: what has a way to pay for pays for it once.
    async fn send_all(&mut self, pieces: Vec<Bytes>) -> Result<(), PeerError> {
        for bytes in pieces {
            self.send(bytes).await?;
        }
        Ok(())
    }
    /// Returns once the shard is durable.
    async fn finish(self: Box<Self>, footer: ShardFooter) -> Result<(), PeerError>;
}

/// The disks of the cluster, reachable or not.
#[async_trait]
pub trait ShardPeers: Send + Sync + 'static {
    async fn put(&self, disk: DiskId, header: ShardHeader) -> Result<Box<dyn ShardSink>, PeerError>;
    /// Bytes `offset..offset + len` of a shard; the disk has verified them against its checksums.
    async fn read(&self, disk: DiskId, key: ShardKey, offset: u64, len: u64) -> Result<Bytes, PeerError>;
    /// What was said when the shard was closed.
    async fn footer(&self, disk: DiskId, key: ShardKey) -> Result<ShardFooter, PeerError>;
    /// Forgets shards; those it does not hold count as forgotten.
    async fn delete(&self, disk: DiskId, keys: Vec<ShardKey>) -> Result<(), PeerError>;
    /// Whether the disk is believed to answer: a hint for ordering, never for correctness.
    fn is_up(&self, disk: DiskId) -> bool;
}
