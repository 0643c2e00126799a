//! Shards of the cluster, with the bytes that each node gives counted on their way.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use makai_erasure::stripe::{PeerError, ShardFooter, ShardHeader, ShardPeers, ShardSink};
use makai_erasure::{DiskId, ShardKey};
use makai_ops::metering::{Purpose, ServedMeter};
use makai_raft::view::MapView;

/// [`ShardPeers`] that counts what is read through it, for one purpose.
pub struct MeteredShards {
    inner: Arc<dyn ShardPeers>,
    map: MapView,
    meter: ServedMeter,
    purpose: Purpose,
}

impl MeteredShards {
    #[must_use]
    pub fn new(inner: Arc<dyn ShardPeers>, map: MapView, meter: ServedMeter, purpose: Purpose) -> Self {
        Self { inner, map, meter, purpose }
    }
}

#[async_trait]
impl ShardPeers for MeteredShards {
    async fn put(&self, disk: DiskId, header: ShardHeader) -> Result<Box<dyn ShardSink>, PeerError> {
        self.inner.put(disk, header).await
    }

    async fn read(&self, disk: DiskId, key: ShardKey, offset: u64, len: u64) -> Result<Bytes, PeerError> {
        let bytes = self.inner.read(disk, key, offset, len).await?;
        if let Some(node) = self.map.get().node_of(disk) {
            self.meter.add(node, self.purpose, bytes.len() as u64);
        }
        Ok(bytes)
    }

    async fn footer(&self, disk: DiskId, key: ShardKey) -> Result<ShardFooter, PeerError> {
        self.inner.footer(disk, key).await
    }

    async fn delete(&self, disk: DiskId, keys: Vec<ShardKey>) -> Result<(), PeerError> {
        self.inner.delete(disk, keys).await
    }

    fn is_up(&self, disk: DiskId) -> bool {
        self.inner.is_up(disk)
    }
}
