//! What the facts say that a node's disks should hold, to hold against what their files do.
//!
//! | request                        | answers                           |
//! |--------------------------------|-----------------------------------|
//! | `GET /api/v1/due?node=ID`      | a [`DiskDue`] for each of its disks |

use http::StatusCode;
use makai_erasure::layout::BlobLayout;
use makai_erasure::{DiskId, NodeId};
use makai_raft::facts::query::{Answer, Query};
use serde::{Deserialize, Serialize};

use super::{Console, Failure, failure, meta_failure};

const BATCH: u32 = 1000;

/// Shards that should be on a disk: those of slots that are its own. Those of slots on their way to it count once they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDue {
    pub disk: DiskId,
    pub shards: u64,
    pub bytes: u64,
    pub slots: u64,
    /// Slots on their way to it, which it holds in part.
    pub slots_coming: u64,
}

impl Console {
    /// Cost: the blobs of all groups with a disk of the node, a thousand a question.
    pub(super) async fn due(&self, node: Option<&str>) -> Result<Vec<DiskDue>, Failure> {
        let node: Option<NodeId> = node.and_then(|node| node.parse().ok());
        let node = node.ok_or_else(|| failure(StatusCode::BAD_REQUEST, "name the node: ?node=ID"))?;
        let map = self.shell.map.get();
        let of_node = map.map.disks.iter().filter(|disk| disk.node == node);
        let mut due: Vec<DiskDue> = of_node
            .map(|disk| DiskDue { disk: disk.id, shards: 0, bytes: 0, slots: 0, slots_coming: 0 })
            .collect();
        for group in &map.map.groups {
            for coming in due.iter_mut().filter(|due| group.moves.iter().any(|moving| moving.to == due.disk))
            {
                coming.slots_coming += 1;
            }
            // A group has a disk once.
            let holding: Vec<usize> =
                (0..due.len()).filter(|at| group.disks.contains(&due[*at].disk)).collect();
            if holding.is_empty() {
                continue;
            }
            let (mut shards, mut bytes, mut after_sequence) = (0, 0, 0);
            loop {
                let query = Query::BlobsOfGroup { pg: group.id, after_sequence, entries_max: BATCH };
                let blobs = match self.shell.facts.query(query).await.map_err(meta_failure)? {
                    Answer::Blobs(blobs) => blobs,
                    other => {
                        return Err(failure(
                            StatusCode::BAD_GATEWAY,
                            format!("the facts answered {other:?}"),
                        ));
                    }
                };
                for blob in &blobs {
                    shards += 1;
                    bytes +=
                        BlobLayout::new(group.scheme, blob.plain_len).map_or(0, |layout| layout.shard_len());
                }
                match blobs.last() {
                    Some(last) if blobs.len() == BATCH as usize => after_sequence = last.sequence,
                    _ => break,
                }
            }
            for at in holding {
                due[at].slots += 1;
                due[at].shards += shards;
                due[at].bytes += bytes;
            }
        }
        Ok(due)
    }
}
