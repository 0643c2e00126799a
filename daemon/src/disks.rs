//! This node's own disks behind the port that remote ones have too.
//!
//! Always: a request for a disk that is not here is refused, never guessed; a store's errors become what the caller
//! does next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use makai_erasure::store::outlines::LeafProof;
use makai_erasure::store::{ShardStore, ShardWriter, StoreError};
use makai_erasure::stripe::{PeerError, ShardFooter, ShardHeader, ShardPeers, ShardSink};
use makai_erasure::{DiskId, ShardKey};
use makai_ops::metrics as names;

use crate::clock;

/// The open stores of a node.
#[derive(Clone, Default)]
pub struct LocalDisks {
    stores: Arc<BTreeMap<DiskId, ShardStore>>,
    damage_count: Arc<AtomicU64>,
    /// Folders that are gone and devices that failed: neither read nor written.
    out_of_use: Arc<RwLock<BTreeSet<DiskId>>>,
}

impl LocalDisks {
    #[must_use]
    pub fn new(stores: impl IntoIterator<Item = ShardStore>) -> Self {
        let stores = stores.into_iter().map(|store| (store.disk_id(), store)).collect();
        Self { stores: Arc::new(stores), damage_count: Arc::default(), out_of_use: Arc::default() }
    }

    /// The disks in use.
    pub fn iter(&self) -> impl Iterator<Item = (&DiskId, &ShardStore)> {
        self.stores.iter().filter(|(disk, _)| self.is_here(**disk))
    }

    /// Those out of use too.
    pub fn all(&self) -> impl Iterator<Item = (&DiskId, &ShardStore)> {
        self.stores.iter()
    }

    #[must_use]
    pub fn is_here(&self, disk: DiskId) -> bool {
        !self.out_of_use.read().unwrap_or_else(PoisonError::into_inner).contains(&disk)
    }

    /// Takes a disk out of use, or back into it.
    pub fn set_here(&self, disk: DiskId, is_here: bool) {
        let mut out_of_use = self.out_of_use.write().unwrap_or_else(PoisonError::into_inner);
        if is_here {
            out_of_use.remove(&disk)
        } else {
            out_of_use.insert(disk)
        };
    }

    /// Damaged shards met so far, in reads and scrubs: grows when there is something to mend.
    #[must_use]
    pub fn damage_count(&self) -> u64 {
        self.damage_count.load(Ordering::Relaxed)
    }

    /// Notes a shard that did not verify.
    pub fn note_damage(&self, error: &StoreError) {
        tracing::warn!(%error, "a damaged shard was met; it is rebuilt");
        self.note_lost(1);
    }

    /// Notes shards that are no more.
    pub fn note_lost(&self, shards: u64) {
        self.damage_count.fetch_add(shards, Ordering::Relaxed);
    }

    fn noted(&self, error: StoreError) -> PeerError {
        if matches!(error, StoreError::Corrupt { .. }) {
            self.note_damage(&error);
        }
        peer_error(error)
    }

    fn store(&self, disk: DiskId) -> Result<&ShardStore, PeerError> {
        let store = self.stores.get(&disk);
        let store = store.ok_or_else(|| PeerError::Refused(format!("disk {disk} is not on this node")))?;
        match self.is_here(disk) {
            true => Ok(store),
            false => Err(PeerError::Unreachable(format!("disk {disk} is out of use"))),
        }
    }

    /// Proves one leaf of a shard.
    ///
    /// # Errors
    /// It is not here, damaged, or not so long.
    pub async fn prove(&self, disk: DiskId, key: ShardKey, leaf: u64) -> Result<LeafProof, PeerError> {
        self.store(disk)?.prove(key, leaf).await.map_err(|error| self.noted(error))
    }

    /// Syncs and closes every store.
    pub async fn close(&self) {
        for store in self.stores.values() {
            store.close().await;
        }
    }
}

/// What the caller does about a store's error.
fn peer_error(error: StoreError) -> PeerError {
    let text = error.to_string();
    match error {
        StoreError::Missing { .. } => PeerError::Missing,
        StoreError::Corrupt { .. } => PeerError::Corrupt(text),
        StoreError::DiskFull { .. } | StoreError::ReadOnly { .. } => PeerError::Full(text),
        StoreError::Busy { .. }
        | StoreError::Device { .. }
        | StoreError::Failed { .. }
        | StoreError::Closed { .. }
        | StoreError::Io { .. } => PeerError::Unreachable(text),
        _ => PeerError::Refused(text),
    }
}

struct LocalSink(ShardWriter);

#[async_trait]
impl ShardSink for LocalSink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), PeerError> {
        self.0.write(bytes).await.map_err(peer_error)
    }

    async fn finish(self: Box<Self>, footer: ShardFooter) -> Result<(), PeerError> {
        let begun = clock::instant();
        let committed = self.0.finish(footer).await.map_err(peer_error);
        metrics::histogram!(names::ERASURE_COMMIT_SECONDS).record(begun.elapsed());
        committed
    }
}

#[async_trait]
impl ShardPeers for LocalDisks {
    async fn put(&self, disk: DiskId, header: ShardHeader) -> Result<Box<dyn ShardSink>, PeerError> {
        let writer = self.store(disk)?.begin(header).await.map_err(peer_error)?;
        Ok(Box::new(LocalSink(writer)))
    }

    async fn read(&self, disk: DiskId, key: ShardKey, offset: u64, len: u64) -> Result<Bytes, PeerError> {
        self.store(disk)?.read(key, offset, len).await.map_err(|error| self.noted(error))
    }

    async fn footer(&self, disk: DiskId, key: ShardKey) -> Result<ShardFooter, PeerError> {
        self.store(disk)?.footer(key).await.map_err(|error| self.noted(error))
    }

    async fn delete(&self, disk: DiskId, keys: Vec<ShardKey>) -> Result<(), PeerError> {
        self.store(disk)?.delete(keys).await.map_err(peer_error)
    }

    fn is_up(&self, disk: DiskId) -> bool {
        self.stores.contains_key(&disk) && self.is_here(disk)
    }
}
