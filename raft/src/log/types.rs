//! The types that openraft is made concrete with, and how they are spelled in bytes.
//!
//! A [`Proposal`] is encoded once, however often it is written or sent: its MessagePack bytes stay with it.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use makai_erasure::NodeId;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::facts::command::{Batch, Refusal, Reply};

openraft::declare_raft_types!(
    /// One node is known to Raft by its number, which is never given out twice.
    pub Types:
        D = Proposal,
        R = Replies,
        NodeId = u64,
        Node = VoterNode,
);

pub type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub type Vote = openraft::type_config::alias::VoteOf<Types>;
pub type Entry = openraft::type_config::alias::EntryOf<Types>;
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;

/// What Raft remembers of a node: the key it is authenticated by. Addresses are found by key, outside Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterNode {
    pub key: NodeId,
}

/// A key that no node has, as the conformance suite of openraft needs one.
impl Default for VoterNode {
    fn default() -> Self {
        Self { key: NodeId([0; 32]) }
    }
}

/// What one log entry asks for. Cheap to clone.
#[derive(Clone)]
pub struct Proposal(Arc<Inner>);

struct Inner {
    batch: Batch,
    encoded: OnceLock<Bytes>,
}

impl Proposal {
    #[must_use]
    pub fn new(batch: Batch) -> Self {
        Self(Arc::new(Inner { batch, encoded: OnceLock::new() }))
    }

    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.0.batch
    }

    /// The batch in MessagePack.
    ///
    /// # Errors
    /// The batch has a shape that MessagePack cannot hold; none that this crate defines has.
    pub fn encoded(&self) -> Result<&Bytes, rmp_serde::encode::Error> {
        if let Some(encoded) = self.0.encoded.get() {
            return Ok(encoded);
        }
        let encoded = Bytes::from(rmp_serde::to_vec(&self.0.batch)?);
        Ok(self.0.encoded.get_or_init(|| encoded))
    }
}

impl PartialEq for Proposal {
    fn eq(&self, other: &Self) -> bool {
        self.0.batch == other.0.batch
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands at {}", self.0.batch.envelopes.len(), self.0.batch.at)
    }
}

impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.encoded().map_err(S::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let encoded = Bytes::from(serde_bytes::ByteBuf::deserialize(deserializer)?.into_vec());
        let batch = rmp_serde::from_slice(&encoded).map_err(D::Error::custom)?;
        Ok(Self(Arc::new(Inner { batch, encoded: OnceLock::from(encoded) })))
    }
}

/// What came of each command of a proposal, in its order. Empty for entries that carry none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replies(pub Vec<Result<Reply, Refusal>>);
