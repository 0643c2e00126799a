//! A body into content: inline, or blobs whose shards are durable.
//!
//! ```text
//! body ─ MD5 ─> first 4 KiB hold it all? inline, sealed
//!            └> blob after blob: a group with most disks up ─> BlobWriter ─> durable
//!                                disks died under it? read back, written to a better group
//! ```
//!
//! Always: at most one blob of an upload is open at a time; what was written for an upload that fails is deleted
//! at once as far as disks answer, and else collected as orphans.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use makai_erasure::layout::{BLOB_BYTES_MAX, TAG_BYTES};
use makai_erasure::seal::{DataKey, PageSealer, WRAP_NONCE_BYTES, wrap_key};
use makai_erasure::stripe::{
    BlobSource, BlobWriter, READ_WINDOW_BYTES, StripeError, WritePlan, WrittenBlob, read_range,
};
use makai_erasure::{BlobId, Scheme, ShardKey};
use makai_ops::metering::Traffic;
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::cluster::{Condition, Group, Standing};
use makai_raft::facts::command::Refusal;
use makai_raft::facts::command::{Command, NewBlob, NewContent, Reply};
use makai_raft::facts::object::{Content, Extent, INLINE_BYTES_MAX, OBJECT_BYTES_MAX};
use makai_raft::facts::tenant::TenantId;
use md5::{Digest, Md5};
use rand::seq::IndexedRandom;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::timeout;

use super::room::Place;
use super::{Objects, ObjectsError, Upstream};
use crate::identity::Caller;

/// How often, and at most how many times, the map is read until there is a group that can be written to: 10 s in all,
/// many rounds of the leader's loop that makes groups.
const GROUP_LOOK_EVERY: Duration = Duration::from_millis(100);
const GROUP_LOOKS_MAX: usize = 100;

/// Whether small content may live in the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inlining {
    Allowed,
    Never,
}

/// Content that is durable and not yet visible.
pub(crate) struct Stored {
    pub(crate) content: NewContent,
    placed: Vec<(Group, BlobId)>,
}

impl Stored {
    /// Once no refusal is expected that would let its blobs go at once: orphans are collected later.
    pub(super) fn into_content(self) -> NewContent {
        self.content
    }
}

/// A blob that is durable: where, and what the facts need to know of it.
struct PlacedBlob {
    group: Group,
    key: DataKey,
    new: NewBlob,
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], ObjectsError> {
    let mut bytes = [0; N];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(ObjectsError::Internal("the system gives no random bytes".into())),
    }
}

impl Objects {
    /// Takes a body in. Nothing is visible afterwards; [`commit`](Self::commit) makes it so.
    pub(super) async fn store(
        &self,
        caller: &Caller,
        bucket: &Bucket,
        upstream: Upstream,
        inlining: Inlining,
    ) -> Result<Stored, ObjectsError> {
        if upstream.size.is_some_and(|size| size > OBJECT_BYTES_MAX) {
            return Err(Refusal::TooLarge(upstream.size.unwrap_or(u64::MAX)).into());
        }
        // What stands in the metadata takes no memory worth waiting for.
        let is_small =
            inlining == Inlining::Allowed && upstream.size.is_some_and(|size| size <= INLINE_BYTES_MAX);
        let _room = if is_small { None } else { Some(self.upload_room(caller.tenant).await?) };
        let wrapping_key = self.writing_key(caller).await?;
        let scheme = bucket.scheme.unwrap_or_else(|| self.inner.map.get().default_scheme());
        let mut intake = Intake {
            objects: self,
            wrapping_key,
            bucket_id: bucket.id,
            scheme,
            extents: Vec::new(),
            placed: Vec::new(),
        };
        self.count(caller, Traffic::Requests, 1);
        match intake.take_body(upstream, inlining).await {
            Ok(content) => {
                self.count(caller, Traffic::Ingress, content.size);
                let placed = intake.placed.iter().map(|blob| (blob.group.clone(), blob.new.id)).collect();
                Ok(Stored { content, placed })
            }
            Err(error) => {
                let placed = intake.placed.iter().map(|blob| (blob.group.clone(), blob.new.id)).collect();
                self.discard(placed);
                Err(error)
            }
        }
    }

    /// A place among the uploads under way.
    async fn upload_room(&self, tenant: TenantId) -> Result<Place, ObjectsError> {
        let room = timeout(self.inner.options.room_wait, self.inner.uploads.take(tenant, 1)).await;
        room.ok().flatten().ok_or_else(|| ObjectsError::SlowDown("too many uploads are under way".into()))
    }

    /// Takes in a body for a key that another room will make visible, in the bucket as it is now.
    pub(crate) async fn store_unseen(
        &self,
        caller: &Caller,
        bucket: &str,
        upstream: Upstream,
        inlining: Inlining,
    ) -> Result<Stored, ObjectsError> {
        let bucket = self.recent_bucket(caller, bucket).await?;
        self.store(caller, &bucket, upstream, inlining).await
    }

    /// Deletes what will not become visible.
    pub(crate) fn drop_unseen(&self, stored: Stored) {
        self.discard(stored.placed);
    }

    /// Proposes `command`, which names the content of `stored`; what is refused is deleted.
    pub(super) async fn commit(
        &self,
        bucket: &Bucket,
        stored: Stored,
        command: Command,
    ) -> Result<Reply, ObjectsError> {
        let result = self.propose(command).await;
        if let Err(ObjectsError::Refused(refusal)) = &result {
            if matches!(refusal, Refusal::NoSuchBucket) {
                self.forget_bucket(&bucket.name);
            }
            self.discard(stored.placed);
        }
        result
    }

    /// Deletes shards that no fact will ever name, in the background and as far as disks answer.
    fn discard(&self, placed: Vec<(Group, BlobId)>) {
        if placed.is_empty() {
            return;
        }
        let peers = Arc::clone(&self.inner.peers);
        tokio::spawn(async move {
            for (group, blob) in placed {
                let deletes = (0u8..).zip(&group.disks).map(|(index, disk)| {
                    let peers = Arc::clone(&peers);
                    async move { peers.delete(*disk, vec![ShardKey { blob, index }]).await }
                });
                // What is not deleted now is an orphan, and collected as one.
                futures::future::join_all(deletes).await;
            }
        });
    }

    /// As [`choose_group`](Self::choose_group), once there is a group that can be written to: the leader makes groups
    /// when a bucket is the first of its scheme, and a disk that is away for a moment comes back.
    async fn await_group(&self, scheme: Scheme) -> Result<Group, ObjectsError> {
        for _ in 0..GROUP_LOOKS_MAX {
            if let Some((group, up)) = self.choose_group(scheme, None)
                && up >= usize::from(scheme.data)
            {
                return Ok(group);
            }
            tokio::time::sleep(GROUP_LOOK_EVERY).await;
            self.refresh_map().await?;
        }
        Err(ObjectsError::Unavailable(match self.choose_group(scheme, None) {
            None => format!("no placement group of scheme {scheme} exists yet"),
            Some((_, up)) => format!(
                "{up} disks of the best group answer, {} are needed to write under {scheme}",
                scheme.data
            ),
        }))
    }

    /// A group of `scheme` with the most disks up, any of the best; of these rather one with few disks that are nearly full,
    /// and whose slots stay where they are, so that what moves away can be emptied.
    fn choose_group(&self, scheme: Scheme, not: Option<&Group>) -> Option<(Group, usize)> {
        let map = self.inner.map.get();
        let usable = |disk: &makai_erasure::DiskId| {
            self.inner.peers.is_up(*disk)
                && map
                    .node_of(*disk)
                    .and_then(|node| map.node(node))
                    .is_some_and(|node| node.standing != Standing::Lost)
                && map.condition_of(*disk) != Condition::Missing
        };
        let up = |group: &Group| group.disks.iter().filter(|disk| usable(disk)).count();
        let groups: Vec<(&Group, usize)> = map
            .groups_of(scheme)
            .filter(|group| not.is_none_or(|not| not.id != group.id))
            .map(|group| (group, up(group)))
            .collect();
        let rank = |(group, up): &(&Group, usize)| {
            let leaves = |disk: &makai_erasure::DiskId| {
                map.standing_of(*disk).is_some_and(|standing| standing == Standing::Draining)
            };
            let is_full = |disk: &&makai_erasure::DiskId| map.condition_of(**disk) == Condition::Full;
            let full = group.disks.iter().filter(is_full).count();
            let is_settled = group.moves.is_empty() && !group.disks.iter().any(leaves);
            (*up, std::cmp::Reverse(full), is_settled)
        };
        let best = groups.iter().map(rank).max()?;
        let best: Vec<_> = groups.into_iter().filter(|group| rank(group) == best).collect();
        let (group, up) = best.choose(&mut rand::rng())?;
        Some(((*group).clone(), *up))
    }
}

/// One body on its way in.
struct Intake<'o> {
    objects: &'o Objects,
    wrapping_key: [u8; 32],
    bucket_id: u64,
    scheme: Scheme,
    extents: Vec<Extent>,
    placed: Vec<PlacedBlob>,
}

/// A blob under way.
struct OpenBlob {
    writer: BlobWriter,
    id: BlobId,
    key: DataKey,
    group: Group,
    opened_at: makai_raft::facts::Timestamp,
}

impl Intake<'_> {
    async fn take_body(
        &mut self,
        upstream: Upstream,
        inlining: Inlining,
    ) -> Result<NewContent, ObjectsError> {
        let Upstream { mut body, size: declared, check } = upstream;
        let mut md5 = Md5::new();
        let mut size = 0u64;
        let mut head = Vec::new();
        let mut blob: Option<OpenBlob> = None;
        let is_small = |size: u64| inlining == Inlining::Allowed && size <= INLINE_BYTES_MAX;
        while let Some(chunk) = body.next().await {
            let mut chunk = chunk.map_err(ObjectsError::Body)?;
            size += chunk.len() as u64;
            if declared.is_some_and(|declared| size > declared) {
                return Err(ObjectsError::Body(
                    format!("more bytes came than the {} announced", declared.unwrap_or(0)).into(),
                ));
            }
            if size > OBJECT_BYTES_MAX {
                return Err(Refusal::TooLarge(size).into());
            }
            md5.update(&chunk);
            if blob.is_none() && is_small(size) {
                head.extend_from_slice(&chunk);
                continue;
            }
            if !head.is_empty() {
                let first = Bytes::from(std::mem::take(&mut head));
                let expected = declared.map_or(BLOB_BYTES_MAX, |declared| declared.min(BLOB_BYTES_MAX));
                let open = blob.insert(self.open(expected).await?);
                open.writer.write(&first).await.map_err(stripe_error)?;
            }
            while !chunk.is_empty() {
                let left = declared.map_or(BLOB_BYTES_MAX, |declared| declared - (size - chunk.len() as u64));
                let open = match &mut blob {
                    Some(open) => open,
                    None => blob.insert(self.open(left.min(BLOB_BYTES_MAX)).await?),
                };
                let now = chunk.split_to(chunk.len().min(open.writer.room() as usize));
                open.writer.write(&now).await.map_err(stripe_error)?;
                if open.writer.room() == 0
                    && let Some(full) = blob.take()
                {
                    self.close(full).await?;
                }
            }
        }
        if let Some(declared) = declared.filter(|declared| *declared != size) {
            return Err(ObjectsError::Body(format!("{size} bytes came, {declared} were announced").into()));
        }
        let md5: [u8; 16] = md5.finalize().into();
        let checksum = check(md5).map_err(ObjectsError::Body)?;
        if let Some(last) = blob.take() {
            self.close(last).await?;
        }
        let content = match (size, head.is_empty()) {
            (0, _) => Content::Empty,
            (_, false) => self.inline(head)?,
            (_, true) => Content::Extents(std::mem::take(&mut self.extents)),
        };
        let blobs = self.placed.iter().map(|blob| blob.new.clone()).collect();
        Ok(NewContent { size, etag: hex::encode(md5), checksum, content, blobs, bucket_id: self.bucket_id })
    }

    fn inline(&self, mut plain: Vec<u8>) -> Result<Content, ObjectsError> {
        let (blob, key, nonce) = (BlobId(random()?), DataKey(random()?), random::<WRAP_NONCE_BYTES>()?);
        plain.resize(plain.len() + TAG_BYTES as usize, 0);
        PageSealer::new(&key, blob).seal(0, &mut plain);
        let wrapped_key = Bytes::copy_from_slice(&wrap_key(&self.wrapping_key, blob, &key, nonce));
        Ok(Content::Inline { blob, wrapped_key, sealed: plain.into() })
    }

    async fn open(&self, plain_len_max: u64) -> Result<OpenBlob, ObjectsError> {
        let group = self.objects.await_group(self.scheme).await?;
        self.open_in(group, BlobId(random()?), DataKey(random()?), plain_len_max)
    }

    fn open_in(
        &self,
        group: Group,
        id: BlobId,
        key: DataKey,
        plain_len_max: u64,
    ) -> Result<OpenBlob, ObjectsError> {
        let opened_at = (self.objects.inner.clock)();
        let plan = WritePlan {
            blob: id,
            pg: group.id,
            scheme: self.scheme,
            disks: group.disks.clone(),
            plain_len_max,
            opened_at_ms: opened_at.0,
            write_quorum: self.scheme.write_quorum(),
        };
        let codec = self.objects.codec(self.scheme)?;
        let writer = BlobWriter::start(&self.objects.inner.peers, codec, &key, plan).map_err(stripe_error)?;
        Ok(OpenBlob { writer, id, key, group, opened_at })
    }

    /// Ends a blob; where disks died under it and another group is in better health, moves it there first.
    async fn close(&mut self, open: OpenBlob) -> Result<(), ObjectsError> {
        let OpenBlob { writer, id, key, group, opened_at } = open;
        let written = writer.finish().await.map_err(stripe_error)?;
        let mut blob = self.placed_blob(group, id, key, opened_at, &written)?;
        let durable = self.scheme.shard_count() - written.missing.len();
        if durable < self.scheme.write_quorum() {
            let better =
                self.objects.choose_group(self.scheme, Some(&blob.group)).filter(|(_, up)| *up > durable);
            let moved = match better {
                Some((group, _)) => match self.move_to(&blob, group).await {
                    Ok(moved) => Some(moved),
                    Err(error) => {
                        tracing::debug!(blob = %id, %error, "not moved to a better group");
                        None
                    }
                },
                None => None,
            };
            if let Some(moved) = moved {
                self.objects.discard(vec![(blob.group.clone(), blob.new.id)]);
                blob = moved;
            } else {
                tracing::warn!(blob = %id, group = %blob.group.id, durable, "written to fewer disks than its quorum");
            }
        }
        self.extents.push(Extent { blob: blob.new.id, offset: 0, length: blob.new.plain_len, part: 0 });
        self.placed.push(blob);
        Ok(())
    }

    fn placed_blob(
        &self,
        group: Group,
        id: BlobId,
        key: DataKey,
        opened_at: makai_raft::facts::Timestamp,
        written: &WrittenBlob,
    ) -> Result<PlacedBlob, ObjectsError> {
        let wrapped = wrap_key(&self.wrapping_key, id, &key, random::<WRAP_NONCE_BYTES>()?);
        let new = NewBlob {
            id,
            pg: group.id,
            pg_version: group.version,
            plain_len: written.plain_len,
            wrapped_key: Bytes::copy_from_slice(&wrapped),
            root: written.root,
            opened_at,
        };
        Ok(PlacedBlob { group, key, new })
    }

    async fn move_to(&self, blob: &PlacedBlob, group: Group) -> Result<PlacedBlob, ObjectsError> {
        let source = BlobSource {
            blob: blob.new.id,
            scheme: self.scheme,
            plain_len: blob.new.plain_len,
            disks: blob.group.disks.clone(),
            key: blob.key.clone(),
        };
        let codec = self.objects.codec(self.scheme)?;
        let mut open = self.open_in(group, BlobId(random()?), DataKey(random()?), source.plain_len)?;
        let mut at = 0;
        while at < source.plain_len {
            let to = source.plain_len.min(at + READ_WINDOW_BYTES);
            let pages =
                read_range(&self.objects.inner.peers, &codec, &source, at..to).await.map_err(stripe_error)?;
            for page in pages {
                open.writer.write(&page).await.map_err(stripe_error)?;
            }
            at = to;
        }
        let written = open.writer.finish().await.map_err(stripe_error)?;
        self.placed_blob(open.group, open.id, open.key, open.opened_at, &written)
    }
}

/// What a client is told of a stripe that failed.
pub(super) fn stripe_error(error: StripeError) -> ObjectsError {
    match error {
        StripeError::QuorumLost { is_full: true, last, .. } => ObjectsError::Full(last),
        StripeError::QuorumLost { .. } | StripeError::TooFewShards { .. } => {
            ObjectsError::Unavailable(error.to_string())
        }
        StripeError::Damaged { .. } | StripeError::Invalid(_) => ObjectsError::Internal(error.to_string()),
    }
}
