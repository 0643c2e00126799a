//! Content into a body: extents, windows, pages.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use makai_erasure::layout::PAGE_BYTES;
use makai_erasure::seal::{DataKey, PageSealer, unwrap_key};
use makai_erasure::stripe::{BlobSource, READ_WINDOW_BYTES, StripeError, read_range};
use makai_erasure::{BlobId, PgId};
use makai_ops::metering::Traffic;
use makai_ops::metrics as names;
use makai_raft::facts::command::Refusal;
use makai_raft::facts::files::LookedAt;
use makai_raft::facts::object::{Blob, Content, ObjectHead, ObjectHeaders, ResolvedExtent};
use makai_raft::facts::query::{Answer, EXTENTS_PER_ANSWER_MAX, ObjectAnswer, Query};
use makai_raft::facts::tenant::TenantId;
use makai_raft::facts::version::{VersionId, VersionQuery, VersionRefusal};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::cache::cut;
use super::packing::PACKED_BYTES_MAX;
use super::room::Place;
use super::upload::stripe_error;
use super::{ByteRange, Download, Found, Objects, ObjectsError, check_key, unexpected};
use crate::identity::Caller;

/// Windows of one download under way at once.
const WINDOWS_AHEAD: usize = 2;
/// Times an object that changes while its extents are read is read again.
const RESTARTS_MAX: usize = 5;

/// A piece of a blob to read.
#[derive(Debug, Clone)]
struct Window {
    blob: BlobId,
    pg: PgId,
    plain_len: u64,
    range: Range<u64>,
    /// Whether the object is one that may share a blob with others.
    is_small: bool,
}

impl Objects {
    pub async fn head(&self, caller: &Caller, bucket: &str, key: &str) -> Result<ObjectHead, ObjectsError> {
        match self.find(caller, bucket, key, None).await {
            Ok(found) => Ok(found.head),
            Err(ObjectsError::Refused(Refusal::Version(VersionRefusal::IsMarker { .. }))) => {
                Err(Refusal::NoSuchKey.into())
            }
            Err(error) => Err(error),
        }
    }

    /// What is said of a version; `None`: of the current one.
    pub async fn find(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
    ) -> Result<Found, ObjectsError> {
        self.settle_key(caller, bucket, key, version).await?;
        let ObjectAnswer { head, versioning, .. } = self.object(caller, bucket, key, version, 0, 1).await?;
        Ok(Found { head, versioning })
    }

    /// What mounts decided about the key by themselves is told before it is looked at.
    async fn settle_key(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
    ) -> Result<(), ObjectsError> {
        match self.recent_bucket(caller, bucket).await {
            Ok(bucket) if version.is_none() && bucket.mounts > 0 => {
                self.settle(&bucket, 0, LookedAt::Key(key.to_owned())).await
            }
            // Why the object cannot be had, its own answer says.
            _ => Ok(()),
        }
    }

    /// The answer for a key of the caller's.
    pub(super) async fn object(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        from_offset: u64,
        extents_max: u32,
    ) -> Result<ObjectAnswer, ObjectsError> {
        check_key(key)?;
        let (name, object) = (bucket.to_owned(), key.to_owned());
        let query = VersionQuery::Object { bucket: name, key: object, version, from_offset, extents_max };
        match self.query(Query::Version(query)).await {
            Ok(Answer::Object(answer)) if answer.tenant == caller.tenant => Ok(answer),
            Ok(Answer::Object(_)) => Err(ObjectsError::AccessDenied),
            Ok(other) => Err(unexpected(&other)),
            // Which keys another tenant's bucket lacks is not the caller's to know either.
            Err(ObjectsError::Refused(refusal @ (Refusal::NoSuchKey | Refusal::Version(_)))) => {
                self.recent_bucket(caller, bucket).await?;
                Err(refusal.into())
            }
            Err(error) => Err(error),
        }
    }

    /// The object's bytes in `range`, of one version throughout.
    ///
    /// # Errors
    /// Before the first byte: [`ObjectsError::RangeNotSatisfiable`] and all that the facts refuse. Later, in the
    /// body: too few disks answer, or bytes are lost.
    pub async fn get(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        range: ByteRange,
    ) -> Result<Download, ObjectsError> {
        self.get_version(caller, bucket, key, None, range).await
    }

    /// As [`get`](Self::get), of any version.
    pub async fn get_version(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        range: ByteRange,
    ) -> Result<Download, ObjectsError> {
        self.count(caller, Traffic::Requests, 1);
        self.settle_key(caller, bucket, key, version).await?;
        for _ in 0..RESTARTS_MAX {
            let first = match &range {
                ByteRange::From { first, .. } => *first,
                ByteRange::All | ByteRange::Last(_) | ByteRange::Part(_) => 0,
            };
            let answer = self.object(caller, bucket, key, version, first, EXTENTS_PER_ANSWER_MAX).await?;
            let (head, versioning) = (answer.head.clone(), answer.versioning);
            if let Content::Inline { blob, wrapped_key, sealed } = answer.content {
                let range = resolve(&range, &head, &[])?;
                let plain = self.open_inline(caller, &head.headers, blob, &wrapped_key, &sealed).await?;
                if plain.len() as u64 != head.size {
                    return Err(ObjectsError::Internal(format!(
                        "inline content of {key:?} has a wrong length"
                    )));
                }
                let bytes = plain.slice(range.start as usize..range.end as usize);
                let body = self.counted(caller, stream::iter([Ok(bytes)]).boxed());
                return Ok(Download { head, range, body, versioning });
            }
            let Some(extents) = self.extents(caller, bucket, key, version, &answer).await? else { continue };
            let range = resolve(&range, &head, &extents)?;
            return self.stream(caller, Found { head, versioning }, range, &extents).await;
        }
        Err(ObjectsError::SlowDown(format!("{key:?} changes too fast to be read")))
    }

    /// All extents from those of `answer` on; `None` where the object changed meanwhile.
    pub(super) async fn extents(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        answer: &ObjectAnswer,
    ) -> Result<Option<Vec<ResolvedExtent>>, ObjectsError> {
        let mut extents = answer.extents.clone();
        let mut is_truncated = answer.is_truncated;
        while is_truncated {
            let Some(last) = extents.last() else { break };
            let next = last.at + last.extent.length;
            let more = self.object(caller, bucket, key, version, next, EXTENTS_PER_ANSWER_MAX).await?;
            if more.head.version != answer.head.version {
                return Ok(None);
            }
            if more.extents.is_empty() {
                return Err(ObjectsError::Internal(format!("{key:?} has no extent at {next}")));
            }
            extents.extend(more.extents);
            is_truncated = more.is_truncated;
        }
        Ok(Some(extents))
    }

    pub(super) async fn open_inline(
        &self,
        caller: &Caller,
        headers: &ObjectHeaders,
        blob: BlobId,
        wrapped_key: &[u8],
        sealed: &[u8],
    ) -> Result<Bytes, ObjectsError> {
        let key = self.data_key(&self.reading_key(caller, headers).await?, blob, wrapped_key)?;
        let mut plain = sealed.to_vec();
        let len = match PageSealer::new(&key, blob).open(0, &mut plain) {
            Ok(opened) => opened.len(),
            Err(error) => return Err(ObjectsError::Internal(format!("inline content {blob}: {error}"))),
        };
        plain.truncate(len);
        Ok(plain.into())
    }

    fn data_key(
        &self,
        reading_key: &[u8; 32],
        blob: BlobId,
        wrapped: &[u8],
    ) -> Result<DataKey, ObjectsError> {
        unwrap_key(reading_key, blob, wrapped)
            .map_err(|error| ObjectsError::Internal(format!("data key of blob {blob}: {error}")))
    }

    async fn stream(
        &self,
        caller: &Caller,
        found: Found,
        range: Range<u64>,
        extents: &[ResolvedExtent],
    ) -> Result<Download, ObjectsError> {
        let Found { head, versioning } = found;
        let reading_key = self.reading_key(caller, &head.headers).await?;
        let body = Self::begun(self.body_of(caller.tenant, &reading_key, range.clone(), extents)?).await?;
        let body = self.counted(caller, body);
        Ok(Download { head, range, body, versioning })
    }

    /// The bytes of `range`, which `extents` must cover; `reading_key` opens the keys of their blobs. What is held of them counts
    /// against the room of `tenant` until the client has taken it.
    pub(super) fn body_of(
        &self,
        tenant: TenantId,
        reading_key: &[u8; 32],
        range: Range<u64>,
        extents: &[ResolvedExtent],
    ) -> Result<BoxStream<'static, Result<Bytes, ObjectsError>>, ObjectsError> {
        let mut keys = HashMap::new();
        let mut windows = Vec::new();
        let size = extents.last().map_or(0, |last| last.at + last.extent.length);
        let is_small = size <= PACKED_BYTES_MAX;
        for extent in extents {
            let end = extent.at + extent.extent.length;
            let (from, to) = (range.start.max(extent.at), range.end.min(end));
            if from >= to {
                continue;
            }
            let Blob { id, pg, plain_len, wrapped_key, .. } = &extent.blob;
            if !extent.extent.is_hole() {
                keys.insert(*id, self.data_key(reading_key, *id, wrapped_key)?);
            }
            let in_blob = extent.extent.offset + (from - extent.at)..extent.extent.offset + (to - extent.at);
            let mut at = in_blob.start;
            while at < in_blob.end {
                // Cut where windows of the blob end, so that two readers of it ask for the same cells.
                let cut = in_blob.end.min((at / READ_WINDOW_BYTES + 1) * READ_WINDOW_BYTES);
                windows.push(Window { blob: *id, pg: *pg, plain_len: *plain_len, range: at..cut, is_small });
                at = cut;
            }
        }
        let covered: u64 = windows.iter().map(|window| window.range.end - window.range.start).sum();
        if covered != range.end - range.start {
            return Err(ObjectsError::Internal(format!("the extents found do not cover bytes {range:?}")));
        }
        let objects = self.clone();
        let body = stream::iter(windows.into_iter().enumerate())
            .map(move |(number, window)| {
                let objects = objects.clone();
                let key = keys.get(&window.blob).cloned();
                // Read to its end however slowly the client takes it: bytes that nobody takes from a disk's node hold up
                // everybody else who reads from there.
                let read = tokio::spawn(async move {
                    let Some(key) = key else {
                        return Ok((None, zeros(window.range.end - window.range.start)));
                    };
                    let room = objects.read_room(tenant, &window.range, number == 0).await?;
                    Ok::<_, ObjectsError>((Some(room), objects.read_window(window, key).await?))
                });
                let read = AbortOnDropHandle::new(read);
                async move { read.await.map_err(|error| ObjectsError::Internal(error.to_string()))? }
            })
            .buffered(WINDOWS_AHEAD)
            .map_ok(|(room, pages)| {
                stream::iter(pages.into_iter().map(Ok)).inspect(move |_| {
                    let _ = &room;
                })
            })
            .try_flatten()
            .boxed();
        Ok(body)
    }

    /// The body once its first bytes are there, so that what cannot be read at all is told before an answer begins.
    async fn begun(
        body: BoxStream<'static, Result<Bytes, ObjectsError>>,
    ) -> Result<BoxStream<'static, Result<Bytes, ObjectsError>>, ObjectsError> {
        let mut body = Box::pin(body.peekable());
        if let Some(Err(_)) = body.as_mut().peek().await
            && let Some(Err(error)) = body.next().await
        {
            return Err(error);
        }
        Ok(body)
    }

    /// Room for a window's bytes. Who has none yet is told to come later; who has begun waits until others have taken theirs.
    async fn read_room(
        &self,
        tenant: TenantId,
        range: &Range<u64>,
        is_first: bool,
    ) -> Result<Place, ObjectsError> {
        let pages = u32::try_from((range.end - range.start).div_ceil(PAGE_BYTES)).unwrap_or(u32::MAX);
        let room = self.inner.reads.take(tenant, pages);
        let room =
            if is_first { timeout(self.inner.options.room_wait, room).await.ok() } else { Some(room.await) };
        room.flatten().ok_or_else(|| {
            metrics::counter!(names::GATEWAY_SLOWDOWNS, "bound" => "reads").increment(1);
            ObjectsError::SlowDown(
                "clients take what was read for them too slowly: too many bytes wait for them".into(),
            )
        })
    }

    /// From memory, or from the disks.
    async fn read_window(&self, window: Window, key: DataKey) -> Result<Vec<Bytes>, ObjectsError> {
        let cache = &self.inner.windows;
        if let Some(pages) = cache.get(window.blob, &window.range) {
            return Ok(pages);
        }
        let (blob, range) = (window.blob, window.range.clone());
        let Some(kept) = cache.wants(window.plain_len, &range, window.is_small) else {
            return self.fetch_window(window, key).await;
        };
        let pages = self.fetch_window(Window { range: kept.clone(), ..window }, key).await?;
        cache.keep(blob, &kept, &pages);
        Ok(cut(&pages, kept.start, &range))
    }

    async fn fetch_window(&self, window: Window, key: DataKey) -> Result<Vec<Bytes>, ObjectsError> {
        let (mut version, mut is_read_anew) = (None, false);
        loop {
            let map = self.inner.map.get();
            let Some(group) = map.group(window.pg) else {
                if std::mem::replace(&mut is_read_anew, true) {
                    return Err(ObjectsError::Internal(format!("the facts know no group {}", window.pg)));
                }
                // Written through a node that heard of the group earlier.
                self.refresh_map().await?;
                continue;
            };
            let source = BlobSource {
                blob: window.blob,
                scheme: group.scheme,
                plain_len: window.plain_len,
                disks: group.disks.clone(),
                key: key.clone(),
            };
            let codec = self.codec(group.scheme)?;
            match read_range(&self.inner.peers, &codec, &source, window.range.clone()).await {
                Ok(pages) => return Ok(pages),
                // The group may have changed since the map was read: once more, with the map as it is.
                Err(StripeError::TooFewShards { .. })
                    if version.is_none_or(|version| version != group.version) =>
                {
                    version = Some(group.version);
                    self.refresh_map().await?;
                    if self.inner.map.get().group(window.pg).is_some_and(|now| now.version == group.version) {
                        tracing::debug!(blob = %window.blob, "read again: too few shards answered");
                    }
                }
                Err(error) => return Err(stripe_error(error)),
            }
        }
    }

    /// Reads the cluster map now.
    pub(super) async fn refresh_map(&self) -> Result<(), ObjectsError> {
        let known_epoch = Some(self.inner.map.get().map.epoch);
        match self.query(Query::ClusterMap { known_epoch }).await? {
            Answer::ClusterMap(map) => self.inner.map.update(map),
            Answer::Unchanged => {}
            other => return Err(unexpected(&other)),
        }
        Ok(())
    }
}

/// What a hole reads as.
fn zeros(length: u64) -> Vec<Bytes> {
    static PAGE: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];
    let mut pages = Vec::new();
    let mut left = length;
    while left > 0 {
        let now = left.min(PAGE_BYTES);
        pages.push(Bytes::from_static(&PAGE[..now as usize]));
        left -= now;
    }
    pages
}

/// The bytes that are meant, inside the object.
fn resolve(
    range: &ByteRange,
    head: &ObjectHead,
    extents: &[ResolvedExtent],
) -> Result<Range<u64>, ObjectsError> {
    let size = head.size;
    let refused = || ObjectsError::RangeNotSatisfiable { size };
    match *range {
        ByteRange::All => Ok(0..size),
        ByteRange::From { first, last } => {
            let end = last.map_or(size, |last| size.min(last.saturating_add(1)));
            if first < end { Ok(first..end) } else { Err(refused()) }
        }
        ByteRange::Last(count) if count == 0 || size == 0 => Err(refused()),
        ByteRange::Last(count) => Ok(size.saturating_sub(count)..size),
        ByteRange::Part(1) if head.part_count == 0 => Ok(0..size),
        ByteRange::Part(number) => {
            let mut of_part = extents.iter().filter(|extent| extent.extent.part == number);
            let first = of_part.next();
            match (first, of_part.next_back().or(first)) {
                (Some(first), Some(last)) => Ok(first.at..last.at + last.extent.length),
                _ if number == 0 || number > head.part_count => Err(Refusal::InvalidPart(number).into()),
                _ => Err(refused()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(size: u64) -> ObjectHead {
        ObjectHead {
            key: "k".into(),
            version: 1,
            inode: 1,
            modified_at: makai_raft::facts::Timestamp(0),
            size,
            etag: String::new(),
            headers: makai_raft::facts::object::ObjectHeaders::default(),
            checksum: None,
            part_count: 0,
            has_version_id: false,
            file: None,
        }
    }

    proptest! {
        /// RFC 9110 section 14: a range yields the bytes it names that exist, and is refused when none does.
        #[test]
        fn ranges_name_existing_bytes(size in 0u64..50, first in 0u64..60, last in prop::option::of(0u64..60), count in 0u64..60) {
            let bytes: Vec<u64> = (0..size).collect();
            let named: Vec<u64> =
                bytes.iter().copied().filter(|at| *at >= first && last.is_none_or(|last| *at <= last)).collect();
            let got = resolve(&ByteRange::From { first, last }, &head(size), &[]).ok();
            prop_assert_eq!(got.map(|range| range.collect::<Vec<_>>()), (!named.is_empty()).then_some(named));
            let tail: Vec<u64> = bytes.iter().copied().rev().take(count as usize).rev().collect();
            let got = resolve(&ByteRange::Last(count), &head(size), &[]).ok();
            prop_assert_eq!(got.map(|range| range.collect::<Vec<_>>()), (!tail.is_empty()).then_some(tail));
        }
    }
}
