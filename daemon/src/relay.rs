//! Serving the disks of nodes that others cannot dial: a gateway or voter passes requests on to a node that keeps a
//! connection open to it.
//!
//! Always: one hop. What is relayed to is asked directly or not at all, so no request goes round in circles; only disks of
//! nodes without an address are relayed to, so that nobody's bandwidth is spent where it need not be.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use makai_erasure::stripe::{PeerError, ShardFooter, ShardHeader, ShardPeers, ShardSink};
use makai_erasure::{DiskId, ShardKey};
use makai_raft::view::MapView;

use crate::disks::LocalDisks;

/// This node's disks, and those it relays to.
#[derive(Clone)]
pub struct Relay {
    pub own: LocalDisks,
    /// The other nodes, asked directly.
    pub direct: Arc<dyn ShardPeers>,
    pub map: MapView,
}

impl Relay {
    fn shards(&self, disk: DiskId) -> &dyn ShardPeers {
        let map = self.map.get();
        let node = map.node_of(disk).and_then(|node| map.node(node));
        let is_own = self.own.all().any(|(own, _)| *own == disk);
        // Whatever else is asked of this node is refused by its own disks.
        match node {
            Some(node) if !is_own && node.addresses.is_empty() => &*self.direct,
            _ => &self.own,
        }
    }
}

#[async_trait]
impl ShardPeers for Relay {
    async fn put(&self, disk: DiskId, header: ShardHeader) -> Result<Box<dyn ShardSink>, PeerError> {
        self.shards(disk).put(disk, header).await
    }

    async fn read(&self, disk: DiskId, key: ShardKey, offset: u64, len: u64) -> Result<Bytes, PeerError> {
        self.shards(disk).read(disk, key, offset, len).await
    }

    async fn footer(&self, disk: DiskId, key: ShardKey) -> Result<ShardFooter, PeerError> {
        self.shards(disk).footer(disk, key).await
    }

    async fn delete(&self, disk: DiskId, keys: Vec<ShardKey>) -> Result<(), PeerError> {
        self.shards(disk).delete(disk, keys).await
    }

    fn is_up(&self, disk: DiskId) -> bool {
        self.shards(disk).is_up(disk)
    }
}
