//! The disks of all nodes, as one node reaches them over the world's network.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use makai_erasure::stripe::{PeerError, ShardFooter, ShardHeader, ShardPeers, ShardSink};
use makai_erasure::{DiskId, NodeId, ShardKey};
use makai_raft::view::MapView;
use tokio_util::sync::CancellationToken;

use super::Mutant;
use super::net::{Fault, Host, Net, Seat};

/// Longest wait for a disk's answer.
const ANSWER_MAX: Duration = Duration::from_secs(6);
/// How long a shard that was acknowledged early lies in memory.
const EARLY: Duration = Duration::from_secs(4);

/// Port to all disks, this node's own among them.
pub struct Shards {
    net: Arc<Net>,
    here: Arc<Host>,
    map: MapView,
}

fn unreachable(fault: Fault) -> PeerError {
    PeerError::Unreachable(format!("{fault:?}"))
}

impl Shards {
    #[must_use]
    pub fn new(net: Arc<Net>, here: Arc<Host>, map: MapView) -> Self {
        Self { net, here, map }
    }

    fn node(&self, disk: DiskId) -> Result<NodeId, PeerError> {
        if self.net.is_lost(disk) {
            return Err(PeerError::Unreachable("the disk is gone".into()));
        }
        self.map
            .get()
            .node_of(disk)
            .ok_or_else(|| PeerError::Unreachable(format!("nobody holds disk {disk}")))
    }

    /// Runs on the node that holds `disk`.
    async fn ask<T, F>(
        &self,
        disk: DiskId,
        serve: impl FnOnce(Arc<Host>) -> F,
    ) -> Result<(NodeId, T), PeerError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, PeerError>> + Send + 'static,
    {
        let node = self.node(disk)?;
        if node == self.here.seat.id {
            return Ok((node, serve(Arc::clone(&self.here)).await?));
        }
        let answer = self.net.call(&self.here.seat, node, ANSWER_MAX, serve).await;
        Ok((node, answer.map_err(unreachable)??))
    }
}

#[async_trait]
impl ShardPeers for Shards {
    async fn put(&self, disk: DiskId, header: ShardHeader) -> Result<Box<dyn ShardSink>, PeerError> {
        let (node, (inner, life)) = self
            .ask(disk, move |host| async move {
                Ok((host.disks.put(disk, header).await?, host.seat.life.clone()))
            })
            .await?;
        if node == self.here.seat.id {
            return Ok(inner);
        }
        Ok(Box::new(Sink { net: Arc::clone(&self.net), from: self.here.seat.clone(), to: node, life, inner }))
    }

    async fn read(&self, disk: DiskId, key: ShardKey, offset: u64, len: u64) -> Result<Bytes, PeerError> {
        let (node, bytes) =
            self.ask(disk, move |host| async move { host.disks.read(disk, key, offset, len).await }).await?;
        Ok(if node == self.here.seat.id { bytes } else { self.net.shown(node, bytes) })
    }

    async fn footer(&self, disk: DiskId, key: ShardKey) -> Result<ShardFooter, PeerError> {
        let (node, mut footer) =
            self.ask(disk, move |host| async move { host.disks.footer(disk, key).await }).await?;
        if node != self.here.seat.id {
            for root in &mut footer.roots {
                let shown = self.net.shown(node, Bytes::copy_from_slice(&root[..]));
                if let Ok(shown) = <[u8; 32]>::try_from(&shown[..]) {
                    *root = shown;
                }
            }
        }
        Ok(footer)
    }

    async fn delete(&self, disk: DiskId, keys: Vec<ShardKey>) -> Result<(), PeerError> {
        self.ask(disk, move |host| async move { host.disks.delete(disk, keys).await }).await.map(|_| ())
    }

    fn is_up(&self, disk: DiskId) -> bool {
        let map = self.map.get();
        let node = map.node_of(disk).and_then(|node| map.node(node));
        node.is_some_and(|node| node.is_up) && !self.net.is_lost(disk)
    }
}

/// A shard on its way to another node.
struct Sink {
    net: Arc<Net>,
    from: Seat,
    to: NodeId,
    /// Of the node that takes it.
    life: CancellationToken,
    inner: Box<dyn ShardSink>,
}

impl Sink {
    async fn carry(net: &Net, from: &Seat, to: NodeId, life: &CancellationToken) -> Result<(), PeerError> {
        if from.life.is_cancelled() || life.is_cancelled() {
            return Err(unreachable(Fault::Refused));
        }
        match net.travel(from.id, to).await {
            Err(Fault::Silence) => {
                tokio::time::sleep(ANSWER_MAX).await;
                Err(unreachable(Fault::Silence))
            }
            Err(fault) => Err(unreachable(fault)),
            // It may have died meanwhile.
            Ok(()) if life.is_cancelled() => Err(unreachable(Fault::Refused)),
            Ok(()) => Ok(()),
        }
    }
}

#[async_trait]
impl ShardSink for Sink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), PeerError> {
        Self::carry(&self.net, &self.from, self.to, &self.life).await?;
        self.inner.send(bytes).await
    }

    async fn finish(self: Box<Self>, footer: ShardFooter) -> Result<(), PeerError> {
        let Self { net, from, to, life, inner } = *self;
        Self::carry(&net, &from, to, &life).await?;
        if net.mutant() == Some(Mutant::ShardsAcknowledgedEarly) {
            tokio::spawn(async move {
                tokio::time::sleep(EARLY).await;
                if !life.is_cancelled() {
                    drop(inner.finish(footer).await);
                }
            });
            return Ok(());
        }
        let finished = tokio::spawn(async move { inner.finish(footer).await });
        let stored = tokio::select! {
            stored = finished => stored.map_err(|_| unreachable(Fault::Refused))?,
            () = life.cancelled() => Err(unreachable(Fault::Refused)),
            () = tokio::time::sleep(ANSWER_MAX) => Err(unreachable(Fault::Silence)),
        };
        stored?;
        // The answer's way back.
        match net.travel(to, from.id).await {
            Ok(()) => Ok(()),
            Err(fault) => {
                tokio::time::sleep(ANSWER_MAX).await;
                Err(unreachable(fault))
            }
        }
    }
}
