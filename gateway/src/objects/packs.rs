//! Small objects that come at the same time share a blob: its shards, their messages and fsyncs, and its record.
//!
//! ```text
//! body, whole and checked ─> waits while a pack of its tenant and scheme is being written ─> one blob for all that waited
//!     ─> durable ─> each is committed by its own proposal, which names its part of the blob
//! ```
//!
//! [`packing`](super::packing) decides what goes together. A pack is written by a task of its own: a client that goes away leaves
//! its bytes in it, which nothing names, and takes nothing from others.
//!
//! Always: objects of one tenant in a pack, and none with a key of its own; shards are deleted at once only where every object of the
//! pack was refused; a pack that takes long holds nobody else up; bytes of a pack count as an upload under way until it is written.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use makai_erasure::{BlobId, Scheme};
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::cluster::Group;
use makai_raft::facts::command::{NewBlob, NewContent};
use makai_raft::facts::object::{Content, Extent};
use makai_raft::facts::tenant::TenantId;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::packing::{self, PACKED_BYTES_MAX, Queue};
use super::upload::{Intake, Placed, PlacedBlob, Reading, Stored, Uploading};
use super::{Objects, ObjectsError, Upstream};

/// How long others wait for a pack under way.
const PATIENCE: Duration = Duration::from_millis(20);

/// What may share a blob.
type Line = (TenantId, Scheme);

/// What waits, by what may go together.
#[derive(Default)]
pub(super) struct Packs {
    lines: Mutex<HashMap<Line, Queue<Waiting>>>,
}

/// An object on its way into a pack.
struct Waiting {
    bytes: Vec<u8>,
    /// What wraps its tenant's blobs' keys.
    wrapping_key: [u8; 32],
    told: oneshot::Sender<Result<Share, ObjectsError>>,
    /// The upload's place: its bytes stay in a pack under way even if its client goes.
    _room: Option<Uploading>,
}

/// An object's part of a pack that is durable.
struct Share {
    extent: Extent,
    new: NewBlob,
    pack: Arc<Pack>,
}

/// A pack that is durable.
pub(super) struct Pack {
    group: Group,
    blob: BlobId,
    /// Objects in it that may still be named.
    hopes: AtomicUsize,
}

impl Pack {
    /// One of its objects was refused. What is to be deleted, once all are.
    pub(super) fn give_up(&self) -> Option<(Group, BlobId)> {
        let is_last = self.hopes.fetch_sub(1, Ordering::AcqRel) == 1;
        is_last.then(|| (self.group.clone(), self.blob))
    }
}

impl Packs {
    fn push(&self, line: Line, object: Waiting) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.entry(line).or_default().push(object.bytes.len() as u64, object);
    }

    fn begin(&self, line: Line) -> Option<Vec<Waiting>> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.get_mut(&line)?.begin()
    }

    fn release(&self, line: Line) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = lines.get_mut(&line) {
            queue.release();
            if queue.is_idle() {
                lines.remove(&line);
            }
        }
    }
}

/// A pack under way that others wait for, until this is dropped.
struct Turn {
    objects: Objects,
    line: Line,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.objects.inner.packs.release(self.line);
        // Where the runtime ends, nobody waits any more.
        if Handle::try_current().is_ok() {
            self.objects.begin_packs(self.line);
        }
    }
}

impl Objects {
    /// Takes in a small body of known size, sealed by its tenant's key, into a blob that it may share.
    pub(super) async fn take_packed(
        &self,
        bucket: &Bucket,
        scheme: Scheme,
        wrapping_key: [u8; 32],
        upstream: Upstream,
        room: Option<Uploading>,
    ) -> Result<Stored, ObjectsError> {
        let mut bytes = Vec::with_capacity(upstream.size.unwrap_or(0).min(PACKED_BYTES_MAX) as usize);
        let mut reading = Reading::new(upstream);
        while let Some(chunk) = reading.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        let (size, etag, checksum) = reading.end()?;
        let line = (bucket.tenant, scheme);
        let (told, share) = oneshot::channel();
        self.inner.packs.push(line, Waiting { bytes, wrapping_key, told, _room: room });
        self.begin_packs(line);
        let share = share.await.map_err(|_| ObjectsError::Internal("a pack was not written".into()))??;
        let content = NewContent {
            size,
            etag,
            checksum,
            content: Content::Extents(vec![share.extent]),
            blobs: vec![share.new],
            bucket_id: bucket.id,
        };
        Ok(Stored { content, placed: Placed::Packed(share.pack) })
    }

    /// Writes what may go now.
    fn begin_packs(&self, line: Line) {
        while let Some(pack) = self.inner.packs.begin(line) {
            let turn = Turn { objects: self.clone(), line };
            tokio::spawn(async move {
                let objects = turn.objects.clone();
                let mut writing = std::pin::pin!(objects.write_pack(line.1, pack));
                if timeout(PATIENCE, &mut writing).await.is_err() {
                    drop(turn);
                    writing.await;
                }
            });
        }
    }

    async fn write_pack(&self, scheme: Scheme, mut pack: Vec<Waiting>) {
        pack.retain(|object| !object.told.is_closed());
        let Some(first) = pack.first() else { return };
        let intake = Intake::new(self, first.wrapping_key, scheme);
        let lengths: Vec<u64> = pack.iter().map(|object| object.bytes.len() as u64).collect();
        let order = packing::order(&lengths);
        let parts: Vec<&[u8]> = order.iter().map(|at| &pack[*at].bytes[..]).collect();
        let placed = match intake.write_whole(&parts).await {
            Ok(placed) => placed,
            Err(error) => {
                for object in pack {
                    // Who is gone need not be told.
                    let _ = object.told.send(Err(again(&error)));
                }
                return;
            }
        };
        let PlacedBlob { group, new, .. } = placed;
        let mut extents = vec![0; pack.len()];
        let mut end = 0;
        for at in order {
            extents[at] = end;
            end += lengths[at];
        }
        let blob = new.id;
        let written = Arc::new(Pack { group, blob, hopes: AtomicUsize::new(pack.len()) });
        for ((object, offset), length) in pack.into_iter().zip(extents).zip(lengths) {
            let extent = Extent { blob, offset, length, part: 0 };
            let share = Share { extent, new: new.clone(), pack: Arc::clone(&written) };
            if object.told.send(Ok(share)).is_err()
                && let Some(nobodys) = written.give_up()
            {
                self.discard(vec![nobodys]);
            }
        }
    }
}

/// What each object of a pack is told that was not written.
fn again(error: &ObjectsError) -> ObjectsError {
    match error {
        ObjectsError::Refused(refusal) => ObjectsError::Refused(refusal.clone()),
        ObjectsError::SlowDown(why) => ObjectsError::SlowDown(why.clone()),
        ObjectsError::Unavailable(why) => ObjectsError::Unavailable(why.clone()),
        ObjectsError::Full(why) => ObjectsError::Full(why.clone()),
        other => ObjectsError::Internal(other.to_string()),
    }
}
