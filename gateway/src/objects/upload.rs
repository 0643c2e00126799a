//! A body into content: inline, or blobs whose shards are durable.
//!
//! ```text
//! body ─ MD5 ─> first 4 KiB hold it all? inline, sealed
//!            ├> up to 256 KiB, by S3? a blob that it shares with what else comes now: see `packs`
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
    BlobSource, BlobWriter, READ_WINDOW_BYTES, RebuildSource, StripeError, WritePlan, WrittenBlob,
    read_range, rebuild_shards,
};
use makai_erasure::{BlobId, Scheme, ShardKey};
use makai_ops::metering::Traffic;
use makai_ops::metrics as names;
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::cluster::{Condition, Group, Standing};
use makai_raft::facts::command::Refusal;
use makai_raft::facts::command::{Command, NewBlob, NewContent, Reply};
use makai_raft::facts::object::{Checksum, Content, Extent, INLINE_BYTES_MAX, OBJECT_BYTES_MAX};
use makai_raft::facts::tenant::TenantId;
use md5::{Digest, Md5};
use rand::seq::IndexedRandom;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::timeout;

use super::packing::PACKED_BYTES_MAX;
use super::packs::Pack;
use super::room::Place;
use super::{Objects, ObjectsError, Upstream};
use crate::identity::Caller;

/// How often, and at most how many times, the map is read until there is a group that can be written to: 10 s in all,
/// many rounds of the leader's loop that makes groups.
const GROUP_LOOK_EVERY: Duration = Duration::from_millis(100);
const GROUP_LOOKS_MAX: usize = 100;

/// What becomes of small content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inlining {
    /// It may live in the metadata.
    Allowed,
    /// The same; what is too large for that, but small, may share a blob with others.
    OrPacked,
    Never,
}

/// Content that is durable and not yet visible.
pub(crate) struct Stored {
    pub(crate) content: NewContent,
    pub(super) placed: Placed,
}

/// Where content was written to.
pub(super) enum Placed {
    Own(Vec<(Group, BlobId)>),
    Packed(Arc<Pack>),
}

impl Stored {
    /// Once no refusal is expected that would let its blobs go at once: orphans are collected later.
    pub(super) fn into_content(self) -> NewContent {
        self.content
    }
}

/// An upload under way.
pub(super) struct Uploading {
    _place: Place,
}

impl Uploading {
    fn new(place: Place) -> Self {
        metrics::gauge!(names::GATEWAY_UPLOADS).increment(1);
        Self { _place: place }
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        metrics::gauge!(names::GATEWAY_UPLOADS).decrement(1);
    }
}

/// A blob that is durable: where, and what the facts need to know of it.
pub(super) struct PlacedBlob {
    pub(super) group: Group,
    key: DataKey,
    pub(super) new: NewBlob,
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
        let stored = self.take_in(caller, bucket, upstream, inlining).await;
        if !matches!(stored, Err(ObjectsError::SlowDown(_))) {
            self.count(caller, Traffic::Requests, 1);
        }
        if let Ok(stored) = &stored {
            self.count(caller, Traffic::Ingress, stored.content.size);
        }
        stored
    }

    /// As [`store`](Self::store), of bytes that no client sends.
    pub(super) async fn take_in(
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
            inlining != Inlining::Never && upstream.size.is_some_and(|size| size <= INLINE_BYTES_MAX);
        let room = if is_small { None } else { Some(self.upload_room(caller.tenant).await?) };
        let wrapping_key = self.writing_key(caller).await?;
        let scheme = bucket.scheme.unwrap_or_else(|| self.inner.map.get().default_scheme());
        let is_packed = inlining == Inlining::OrPacked
            && self.sealing.is_tenants()
            && upstream.size.is_some_and(|size| !is_small && size <= PACKED_BYTES_MAX);
        if is_packed {
            return self.take_packed(bucket, scheme, wrapping_key, upstream, room).await;
        }
        let mut intake = Intake::new(self, wrapping_key, scheme);
        let taken = intake.take_body(upstream, inlining).await;
        let placed = intake.placed.iter().map(|blob| (blob.group.clone(), blob.new.id)).collect();
        match taken {
            Ok(content) => {
                let content = NewContent { bucket_id: bucket.id, ..content };
                Ok(Stored { content, placed: Placed::Own(placed) })
            }
            Err(error) => {
                self.discard(placed);
                Err(error)
            }
        }
    }

    /// A place among the uploads under way, counted as long as it is held.
    async fn upload_room(&self, tenant: TenantId) -> Result<Uploading, ObjectsError> {
        let room = timeout(self.inner.options.room_wait, self.inner.uploads.take(tenant, 1)).await;
        let room = room.ok().flatten().ok_or_else(|| {
            metrics::counter!(names::GATEWAY_SLOWDOWNS, "bound" => "uploads").increment(1);
            ObjectsError::SlowDown("too many uploads are under way".into())
        })?;
        Ok(Uploading::new(room))
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
        self.discard(match stored.placed {
            Placed::Own(placed) => placed,
            Placed::Packed(pack) => pack.give_up().into_iter().collect(),
        });
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
            self.drop_unseen(stored);
        }
        result
    }

    /// Deletes shards that no fact will ever name, in the background and as far as disks answer.
    pub(super) fn discard(&self, placed: Vec<(Group, BlobId)>) {
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
    /// and that is at rest: see [`Rest`].
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
            let rest = Rest::of(group, group.disks.iter().any(leaves));
            (*up, std::cmp::Reverse(full), rest)
        };
        let best = groups.iter().map(rank).max()?;
        let best: Vec<_> = groups.into_iter().filter(|group| rank(group) == best).collect();
        let (group, up) = best.choose(&mut rand::rng())?;
        Some(((*group).clone(), *up))
    }
}

/// How much a group is at rest: new blobs go rather to one that is so more.
///
/// A move ends once nothing of its slot is missing at the other disk and nothing newer has come: where all groups have a slot on
/// a disk that drains, as wide schemes do, writers still leave those alone that move now, so that each move comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rest {
    Moves,
    /// Slots of it will move, and none does yet.
    WillMove,
    Stays,
}

impl Rest {
    fn of(group: &Group, has_leaving: bool) -> Self {
        match (group.moves.is_empty(), has_leaving) {
            (false, _) => Self::Moves,
            (true, true) => Self::WillMove,
            (true, false) => Self::Stays,
        }
    }
}

/// A body as it is read: no longer and no shorter than announced, and hashed.
pub(super) struct Reading {
    upstream: Upstream,
    size: u64,
    md5: Md5,
}

impl Reading {
    pub(super) fn new(upstream: Upstream) -> Self {
        Self { upstream, size: 0, md5: Md5::new() }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ObjectsError> {
        let Some(chunk) = self.upstream.body.next().await.transpose().map_err(ObjectsError::Body)? else {
            return Ok(None);
        };
        self.size += chunk.len() as u64;
        let (size, declared) = (self.size, self.upstream.size);
        if declared.is_some_and(|declared| size > declared) {
            let declared = declared.unwrap_or(0);
            let why = format!("more bytes came than the {declared} announced");
            return Err(ObjectsError::Body(why.into()));
        }
        if size > OBJECT_BYTES_MAX {
            return Err(Refusal::TooLarge(size).into());
        }
        self.md5.update(&chunk);
        Ok(Some(chunk))
    }

    /// Its size, ETag and checksum.
    pub(super) fn end(self) -> Result<(u64, String, Option<Checksum>), ObjectsError> {
        let size = self.size;
        if let Some(declared) = self.upstream.size.filter(|declared| *declared != size) {
            return Err(ObjectsError::Body(format!("{size} bytes came, {declared} were announced").into()));
        }
        let md5: [u8; 16] = self.md5.finalize().into();
        let checksum = (self.upstream.check)(md5).map_err(ObjectsError::Body)?;
        Ok((size, hex::encode(md5), checksum))
    }
}

/// Content on its way in.
pub(super) struct Intake<'o> {
    objects: &'o Objects,
    wrapping_key: [u8; 32],
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

impl<'o> Intake<'o> {
    pub(super) fn new(objects: &'o Objects, wrapping_key: [u8; 32], scheme: Scheme) -> Self {
        Self { objects, wrapping_key, scheme, extents: Vec::new(), placed: Vec::new() }
    }

    /// What it says of its bucket is yet to be said.
    async fn take_body(
        &mut self,
        upstream: Upstream,
        inlining: Inlining,
    ) -> Result<NewContent, ObjectsError> {
        let declared = upstream.size;
        let mut reading = Reading::new(upstream);
        let mut head = Vec::new();
        let mut blob: Option<OpenBlob> = None;
        let is_small = |size: u64| inlining != Inlining::Never && size <= INLINE_BYTES_MAX;
        while let Some(mut chunk) = reading.next().await? {
            if blob.is_none() && is_small(reading.size) {
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
                let before = reading.size - chunk.len() as u64;
                let left = declared.map_or(BLOB_BYTES_MAX, |declared| declared - before);
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
        let (size, etag, checksum) = reading.end()?;
        if let Some(last) = blob.take() {
            self.close(last).await?;
        }
        let content = match (size, head.is_empty()) {
            (0, _) => Content::Empty,
            (_, false) => self.inline(head)?,
            (_, true) => Content::Extents(std::mem::take(&mut self.extents)),
        };
        let blobs = self.placed.iter().map(|blob| blob.new.clone()).collect();
        Ok(NewContent { size, etag, checksum, content, blobs, bucket_id: 0 })
    }

    /// One blob of these bytes, which it can hold.
    pub(super) async fn write_whole(mut self, parts: &[&[u8]]) -> Result<PlacedBlob, ObjectsError> {
        let length = parts.iter().map(|part| part.len() as u64).sum();
        let mut open = self.open(length).await?;
        for part in parts {
            open.writer.write(part).await.map_err(stripe_error)?;
        }
        self.close(open).await?;
        self.placed.pop().ok_or_else(|| ObjectsError::Internal("a blob was not written".into()))
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

    /// Ends a blob. Where disks failed under it, it first moves to another group that is in better health, or what is missing
    /// is made on those disks that are there by now: one that was slow to answer must not be missed when others die.
    async fn close(&mut self, open: OpenBlob) -> Result<(), ObjectsError> {
        let OpenBlob { writer, id, key, group, opened_at } = open;
        let written = writer.finish().await.map_err(stripe_error)?;
        let mut blob = self.placed_blob(group, id, key, opened_at, &written)?;
        let mut durable = self.scheme.shard_count() - written.missing.len();
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
                durable += self.complete(&blob, &written.missing).await;
                if durable < self.scheme.write_quorum() {
                    tracing::warn!(blob = %id, group = %blob.group.id, durable, "written to fewer disks than its quorum");
                }
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

    /// Makes missing shards of a blob on those of their disks that are up. Returns how many are durable now.
    async fn complete(&self, blob: &PlacedBlob, missing: &[u8]) -> usize {
        let peers = &self.objects.inner.peers;
        let disks = &blob.group.disks;
        let targets: Vec<_> = missing.iter().map(|index| (*index, disks[usize::from(*index)])).collect();
        let targets: Vec<_> = targets.into_iter().filter(|(_, disk)| peers.is_up(*disk)).collect();
        if targets.is_empty() {
            return 0;
        }
        let source = RebuildSource {
            blob: blob.new.id,
            pg: blob.new.pg,
            scheme: self.scheme,
            plain_len: blob.new.plain_len,
            root: blob.new.root,
            disks: disks.clone(),
            opened_at_ms: blob.new.opened_at.0,
        };
        let Ok(codec) = self.objects.codec(self.scheme) else { return 0 };
        match rebuild_shards(peers, &codec, &source, &targets).await {
            Ok(rebuilt) => rebuilt.made.len(),
            Err(error) => {
                tracing::debug!(blob = %blob.new.id, %error, "not completed");
                0
            }
        }
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

#[cfg(test)]
mod tests {
    use makai_erasure::{DiskId, PgId};
    use makai_raft::facts::cluster::SlotMove;

    use super::*;

    #[test]
    fn a_group_that_moves_now_is_written_to_last() {
        let group = |moves| Group {
            id: PgId(1),
            scheme: Scheme { data: 2, parity: 1 },
            version: 1,
            disks: (0..3).map(|at| DiskId([at; 16])).collect(),
            moves,
        };
        let moving = group(vec![SlotMove { slot: 1, to: DiskId([9; 16]), is_remake: false }]);
        let still = group(vec![]);
        let rests = [Rest::of(&moving, true), Rest::of(&still, true), Rest::of(&still, false)];
        assert!(rests.is_sorted_by(|less, more| less < more), "{rests:?}");
        assert_eq!(Rest::of(&moving, false), Rest::of(&moving, true));
    }
}
