//! One audit: asking a node for a leaf of a shard, and answering.
//!
//! A node answers voters only. It reads the shard once for each question, since a path needs the hash of every leaf.

use std::time::Duration;

use makai_erasure::layout::BlobLayout;
use makai_erasure::stripe::{PeerError, ShardPeers};
use makai_erasure::{DiskId, NodeId, ShardKey};
use makai_ops::audit::proof::{self, AuditAnswer, LEAF_BYTES, Outline};
use makai_raft::facts::cluster::Group;
use makai_raft::facts::object::Blob;
use serde::{Deserialize, Serialize};

use crate::disks::LocalDisks;
use crate::members::{AUDIT, decode, encode};
use crate::reconcile::Shell;
use crate::transport::TransportError;

/// Bytes of a shard read at once while its leaves are hashed.
const READ_BYTES: u64 = 64 * LEAF_BYTES;
/// Longer shards do not exist: a whole blob in one.
const SHARD_BYTES_MAX: u64 = 80 * 1024 * 1024;

/// What a voter asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRequest {
    pub disk: DiskId,
    pub key: ShardKey,
    pub shard_len: u64,
    pub leaf: u64,
}

/// What a node says to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditReply {
    Proof(AuditAnswer),
    Missing,
    Corrupt(String),
    /// It cannot say now.
    Unable(String),
}

/// How an audit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// The shard is not there.
    Missing,
    Fail(String),
    Unknown(String),
    Offline(String),
}

/// Answers out of this node's own disks.
pub async fn answer(disks: &LocalDisks, request: &AuditRequest) -> AuditReply {
    match prove(disks, request).await {
        Ok(answer) => AuditReply::Proof(answer),
        Err(PeerError::Missing) => AuditReply::Missing,
        Err(PeerError::Corrupt(why)) => AuditReply::Corrupt(why),
        Err(error) => AuditReply::Unable(error.to_string()),
    }
}

async fn prove(disks: &LocalDisks, request: &AuditRequest) -> Result<AuditAnswer, PeerError> {
    let AuditRequest { disk, key, shard_len, leaf } = *request;
    if shard_len > SHARD_BYTES_MAX || proof::leaf_range(shard_len, leaf).is_none() {
        return Err(PeerError::Refused("there is no such leaf".into()));
    }
    let footer = disks.footer(disk, key).await?;
    let mut outline = Outline::default();
    let (mut offset, mut wanted) = (0, bytes::Bytes::new());
    while offset < shard_len {
        let len = READ_BYTES.min(shard_len - offset);
        let bytes = disks.read(disk, key, offset, len).await?;
        for start in (0..bytes.len()).step_by(LEAF_BYTES as usize) {
            let piece = bytes.slice(start..bytes.len().min(start + LEAF_BYTES as usize));
            outline.push(&piece);
            if (offset + start as u64) / LEAF_BYTES == leaf {
                wanted = piece;
            }
        }
        offset += len;
    }
    let path = outline.path(leaf).unwrap_or_default();
    Ok(AuditAnswer { leaf: bytes::Bytes::copy_from_slice(&wanted), path, roots: footer.roots })
}

/// The leaf that an audit asks for.
#[derive(Debug, Clone)]
pub struct Question {
    pub node: NodeId,
    pub disk: DiskId,
    pub group: Group,
    pub blob: Blob,
    pub shard: u8,
    pub leaf: u64,
}

/// Asks, and judges the answer against the blob's root in the facts.
pub async fn ask(shell: &Shell, question: &Question, deadline: Duration) -> Verdict {
    let Some(layout) = BlobLayout::new(question.group.scheme, question.blob.plain_len) else {
        return Verdict::Unknown("the blob's length is none a blob can have".into());
    };
    let request = AuditRequest {
        disk: question.disk,
        key: ShardKey { blob: question.blob.id, index: question.shard },
        shard_len: layout.shard_len(),
        leaf: question.leaf,
    };
    let reply = if question.node == shell.id {
        Ok(answer(&shell.disks, &request).await)
    } else {
        remote(shell, question.node, &request, deadline).await
    };
    match reply {
        Err(verdict) => verdict,
        Ok(AuditReply::Missing) => Verdict::Missing,
        Ok(AuditReply::Corrupt(why)) => Verdict::Fail(format!("the node's own checksum fails: {why}")),
        Ok(AuditReply::Unable(why)) => Verdict::Unknown(why),
        Ok(AuditReply::Proof(answer)) => {
            let verdict =
                proof::check(&question.blob.root, question.shard, request.shard_len, question.leaf, &answer);
            verdict.map_or_else(|error| Verdict::Fail(error.to_string()), |()| Verdict::Pass)
        }
    }
}

async fn remote(
    shell: &Shell,
    node: NodeId,
    request: &AuditRequest,
    deadline: Duration,
) -> Result<AuditReply, Verdict> {
    let body = encode(request).map_err(Verdict::Unknown)?;
    match shell.transport.request(node, AUDIT, body, deadline).await {
        Ok(answer) => decode(&answer).map_err(|why| Verdict::Unknown(format!("its answer: {why}"))),
        Err(error @ TransportError::Refused { .. }) => Err(Verdict::Unknown(error.to_string())),
        Err(error) => Err(Verdict::Offline(error.to_string())),
    }
}
