//! One audit: asking a node for a leaf of a shard, and answering.
//!
//! A node answers voters only, out of the outline that it keeps beside the shard; where none is kept it reads all of it.

use std::time::Duration;

use makai_erasure::layout::BlobLayout;
use makai_erasure::store::outlines::LeafProof;
use makai_erasure::stripe::PeerError;
use makai_erasure::{DiskId, NodeId, ShardKey};
use makai_ops::audit::proof::{self, AuditAnswer};
use makai_raft::facts::cluster::Group;
use makai_raft::facts::object::Blob;
use serde::{Deserialize, Serialize};

use crate::disks::LocalDisks;
use crate::members::{AUDIT, decode, encode};
use crate::reconcile::Shell;
use crate::transport::TransportError;

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
    let AuditRequest { disk, key, leaf, .. } = *request;
    let LeafProof { leaf, path, roots } = disks.prove(disk, key, leaf).await?;
    Ok(AuditAnswer { leaf, path, roots })
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
