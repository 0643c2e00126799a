//! The store as openraft's state machine.
//!
//! There is no snapshot file: a snapshot is a frozen view, and building one is a durable commit, after which the
//! log may forget what the commit holds.

use std::fmt;
use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};

use super::database::{Frozen, MetaStore, Position};
use crate::log::disk::DiskFile;
use crate::log::types::{LogId, SnapshotMeta, StoredMembership, Types};

/// Entries applied in one transaction; each is a batch of commands.
const ENTRIES_PER_TRANSACTION_MAX: usize = 64;

/// The facts of one moment.
#[derive(Clone)]
pub enum SnapshotData {
    /// Of this node.
    Frozen(Arc<Frozen>),
    /// From a peer, checked.
    Received(Arc<dyn DiskFile>),
}

impl fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Frozen(_) => "Frozen",
            Self::Received(_) => "Received",
        })
    }
}

type StoreSnapshot = openraft::type_config::alias::SnapshotOf<Types, SnapshotData>;

/// openraft's way to a [`MetaStore`].
#[derive(Debug, Clone)]
pub struct RaftMachine {
    store: MetaStore,
}

impl RaftMachine {
    #[must_use]
    pub fn new(store: MetaStore) -> Self {
        Self { store }
    }

    async fn blocking<T: Send + 'static, E: std::error::Error + Send + Sync + 'static>(
        &self,
        work: impl FnOnce(&MetaStore) -> Result<T, E> + Send + 'static,
    ) -> io::Result<T> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || work(&store))
            .await
            .map_err(io::Error::other)?
            .map_err(io::Error::other)
    }
}

fn meta_of(position: Position) -> SnapshotMeta {
    SnapshotMeta { last_log_id: position.applied, last_membership: position.membership }
}

impl RaftStateMachine<Types> for RaftMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let position = self.blocking(|store| store.frozen()?.position()).await?;
        Ok((position.applied, position.membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        loop {
            let mut batch = Vec::new();
            let mut responders = Vec::new();
            while batch.len() < ENTRIES_PER_TRANSACTION_MAX
                && let Some(next) = entries.next().await
            {
                let (entry, responder) = next?;
                batch.push(entry);
                responders.push(responder);
            }
            if batch.is_empty() {
                return Ok(());
            }
            let replies = self.blocking(move |store| store.apply(&batch)).await?;
            for (responder, replies) in responders.into_iter().zip(replies) {
                if let Some(responder) = responder {
                    responder.send(replies);
                }
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { machine: self.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let meta = meta.clone();
        self.blocking(move |store| store.install(&meta, &snapshot)).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<StoreSnapshot>> {
        let (view, position) = self
            .blocking(|store| {
                let view = store.frozen()?;
                let position = view.position()?;
                Ok::<_, crate::machine::kv::KvError>((view, position))
            })
            .await?;
        let snapshot = SnapshotData::Frozen(Arc::new(view));
        Ok(position.applied.is_some().then(|| Snapshot { meta: meta_of(position), snapshot }))
    }
}

/// Builds a snapshot: commits durably, then freezes a view.
#[derive(Debug)]
pub struct SnapshotBuilder {
    machine: RaftMachine,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<StoreSnapshot> {
        let view = self.machine.blocking(MetaStore::commit_durably).await?;
        let position = view.position().map_err(io::Error::other)?;
        Ok(Snapshot { meta: meta_of(position), snapshot: SnapshotData::Frozen(Arc::new(view)) })
    }
}
