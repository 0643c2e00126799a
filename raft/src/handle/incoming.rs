//! A snapshot on its way in: to a file, checked whole, then installed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use makai_erasure::NodeId;
use openraft::Raft;
use openraft::async_runtime::WatchReceiver;
use openraft::storage::Snapshot;
use tokio::sync::{Mutex, watch};

use super::wire::{SnapshotAnswer, SnapshotEnd, SnapshotPiece};
use crate::log::disk::{Disk, DiskFile};
use crate::log::types::{Types, Vote};
use crate::store::{RaftMachine, SnapshotData, snapshot};

/// How long the answer to [`SnapshotEnd`] waits for the install before it asks to be asked again.
const INSTALL_WAIT: Duration = Duration::from_secs(3);

/// At most one snapshot at a time; the newest sender wins.
pub(super) struct Incoming {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    cluster_id: String,
    current: Mutex<Option<Transfer>>,
}

struct Transfer {
    from: NodeId,
    number: u64,
    offset: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// Once it is being installed: `None` until that is done.
    install: Option<watch::Receiver<Option<Result<Vote, String>>>>,
}

impl Incoming {
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf, cluster_id: String) -> Self {
        Self { disk, dir, cluster_id, current: Mutex::new(None) }
    }

    pub async fn piece(
        &self,
        raft: &Raft<Types, RaftMachine>,
        from: NodeId,
        piece: SnapshotPiece,
    ) -> SnapshotAnswer {
        if let Some(vote) = higher_vote(raft, &piece.vote) {
            return SnapshotAnswer::HigherVote(vote);
        }
        if piece.bytes.len() > snapshot::CHUNK_BYTES_MAX {
            return SnapshotAnswer::Refused(format!("a piece of {} bytes", piece.bytes.len()));
        }
        let mut current = self.current.lock().await;
        if piece.offset == 0 {
            if current.as_ref().is_some_and(|transfer| transfer.is_installing()) {
                return SnapshotAnswer::Refused("another snapshot is being installed".into());
            }
            let path = self.dir.join(format!("{}{:016x}", snapshot::INCOMING_PREFIX, piece.transfer));
            let replaced = current.take().map(|transfer| transfer.path);
            let disk = self.disk.clone();
            let opened = blocking({
                let path = path.clone();
                move || {
                    if let Some(replaced) = replaced {
                        disk.remove(&replaced)?;
                    }
                    let file = disk.open(&path)?;
                    file.set_len(0)?;
                    Ok(file)
                }
            });
            match opened.await {
                Ok(file) => {
                    let (number, file) = (piece.transfer, Arc::from(file));
                    *current = Some(Transfer { from, number, offset: 0, path, file, install: None });
                }
                Err(why) => return SnapshotAnswer::Refused(why),
            }
        }
        let Some(transfer) = current.as_mut().filter(|transfer| {
            transfer.from == from
                && transfer.number == piece.transfer
                && transfer.offset == piece.offset
                && transfer.install.is_none()
        }) else {
            return SnapshotAnswer::Refused("this piece does not follow; begin again".into());
        };
        let file = transfer.file.clone();
        let len = piece.bytes.len() as u64;
        match blocking(move || file.write_at(piece.offset, &piece.bytes)).await {
            Ok(()) => transfer.offset += len,
            Err(why) => return SnapshotAnswer::Refused(why),
        }
        SnapshotAnswer::Received
    }

    pub async fn end(
        &self,
        raft: &Raft<Types, RaftMachine>,
        from: NodeId,
        end: SnapshotEnd,
    ) -> SnapshotAnswer {
        if let Some(vote) = higher_vote(raft, &end.vote) {
            return SnapshotAnswer::HigherVote(vote);
        }
        let mut outcome = {
            let mut current = self.current.lock().await;
            let Some(transfer) =
                current.as_mut().filter(|transfer| transfer.from == from && transfer.number == end.transfer)
            else {
                return SnapshotAnswer::Refused("there is no such transfer; begin again".into());
            };
            match &transfer.install {
                Some(outcome) => outcome.clone(),
                None => {
                    let outcome = install(raft.clone(), transfer.file.clone(), self.cluster_id.clone(), end);
                    transfer.install.insert(outcome).clone()
                }
            }
        };
        match tokio::time::timeout(INSTALL_WAIT, outcome.wait_for(Option::is_some)).await {
            Err(_) => return SnapshotAnswer::Received,
            Ok(Err(_)) => return SnapshotAnswer::Refused("this voter stops".into()),
            Ok(Ok(_)) => {}
        }
        let done = outcome.borrow().clone();
        if let Some(transfer) = self.current.lock().await.take() {
            let disk = self.disk.clone();
            let path = transfer.path;
            // What stays is removed at the next start.
            drop(blocking(move || disk.remove(&path)).await);
        }
        match done {
            Some(Ok(vote)) => SnapshotAnswer::Installed(vote),
            Some(Err(why)) => SnapshotAnswer::Refused(why),
            None => SnapshotAnswer::Received,
        }
    }
}

impl Transfer {
    fn is_installing(&self) -> bool {
        self.install.as_ref().is_some_and(|outcome| outcome.borrow().is_none())
    }
}

fn higher_vote(raft: &Raft<Types, RaftMachine>, vote: &Vote) -> Option<Vote> {
    let metrics = raft.server_metrics();
    let known = metrics.borrow_watched().vote;
    (known > *vote).then_some(known)
}

/// Checks the whole file first: openraft takes what it is given.
fn install(
    raft: Raft<Types, RaftMachine>,
    file: Arc<dyn DiskFile>,
    cluster_id: String,
    end: SnapshotEnd,
) -> watch::Receiver<Option<Result<Vote, String>>> {
    let (done, outcome) = watch::channel(None);
    tokio::spawn(async move {
        let checked = {
            let file = file.clone();
            let meta = end.meta.clone();
            blocking(move || {
                let head = snapshot::read(&*file, |_, _| Ok(())).map_err(std::io::Error::other)?;
                head.check(&cluster_id, &meta).map_err(std::io::Error::other)
            })
        };
        let result = match checked.await {
            Err(why) => Err(why),
            Ok(())
                if end.meta.last_log_id.as_ref().is_some_and(|last| last.leader_id > end.vote.leader_id) =>
            {
                Err("it is newer than its sender's term".into())
            }
            Ok(()) => {
                let snapshot = Snapshot { meta: end.meta, snapshot: SnapshotData::Received(file) };
                let installed = raft.install_full_snapshot(end.vote, snapshot).await;
                installed.map(|response| response.vote).map_err(|fatal| fatal.to_string())
            }
        };
        done.send_replace(Some(result));
    });
    outcome
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
