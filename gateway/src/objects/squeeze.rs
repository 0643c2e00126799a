//! Empties blobs of which a good part is dead. Small objects share blobs that S3 clients put at the same time, and files where mounts
//! write many small ones at once, or the middle of large ones; those that are deleted or overwritten leave holes.
//!
//! ```text
//! hollow blobs of a tenant ─ are they worth a walk? ─> versions that name them, page by page ─> what lives of the blobs, packed
//!     ─> durable ─> versions name the copy ─> nothing names the old blob: it is collected as any
//! ```
//!
//! Always: a version's bytes, ids and times stay as they are; one that changes meanwhile is left alone; to free a byte at most
//! five are copied. What no key leads to (parts of uploads, open files without a name, names too long for S3) keeps its blobs
//! until it goes itself.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use makai_erasure::BlobId;
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::command::{Command, Refusal};
use makai_raft::facts::object::{Blob, Content, Extent, ObjectHead, ObjectHeaders, ResolvedExtent};
use makai_raft::facts::query::{Answer, EXTENTS_PER_ANSWER_MAX, Query};
use makai_raft::facts::tenant::TenantId;
use makai_raft::facts::version::{
    EXPIRE_MAX, HollowBlob, ListVersions, MOVES_MAX, Move, VersionAnswer, VersionCommand, VersionQuery,
};

use super::sealing::Sealing;
use super::upload::Inlining;
use super::{BodyError, Objects, ObjectsError, Upstream, unexpected};
use crate::identity::Caller;

/// Hollow blobs looked at in one round.
const BLOBS_MAX: usize = 10_000;
const BLOBS_PER_ANSWER: u32 = 1000;
const VERSIONS_PER_PAGE: u32 = 1000;
/// Bytes copied into one blob.
const BATCH_BYTES_MAX: u64 = 8 << 20;
/// A walk through a tenant's keys is worth it once so much can be freed, and one part in so many of what the tenant uses.
const DEAD_BYTES_MIN: u64 = 1 << 20;
const DEAD_PART: u64 = 64;
/// Rest between two pages, so that clients come first.
const PAGE_PAUSE: Duration = Duration::from_millis(20);

/// What a round has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Squeezed {
    pub versions: u64,
    pub bytes_copied: u64,
}

/// What is known from one round to the next: of tenants whose keys were walked, the dead bytes that the walk has left.
#[derive(Debug, Default)]
pub struct Squeezing {
    /// `None`: it was walked in the last round.
    left: BTreeMap<TenantId, Option<u64>>,
}

impl Squeezing {
    /// Whether a walk can free `worth` bytes of `dead` ones. What the last walk has left, no key leads to.
    fn is_worth_it(&mut self, tenant: TenantId, dead: u64, worth: u64) -> bool {
        let left = match self.left.get_mut(&tenant) {
            None => 0,
            Some(left @ None) => {
                *left = Some(dead);
                return false;
            }
            Some(Some(left)) => {
                *left = dead.min(*left);
                *left
            }
        };
        dead - left >= worth
    }

    fn was_walked(&mut self, tenant: TenantId) {
        self.left.insert(tenant, None);
    }
}

impl Objects {
    /// Goes once through the hollow blobs of all tenants.
    ///
    /// # Errors
    /// The facts or the disks do not answer; what was moved by then stays so.
    pub async fn squeeze(&self, known: &mut Squeezing) -> Result<Squeezed, ObjectsError> {
        let mut tenants: BTreeMap<TenantId, HashMap<BlobId, HollowBlob>> = BTreeMap::new();
        let (mut after, mut seen) = (None, 0);
        while seen < BLOBS_MAX {
            let query = VersionQuery::Hollow { after, entries_max: BLOBS_PER_ANSWER };
            let found = match self.query(Query::Version(query)).await? {
                Answer::Version(VersionAnswer::Hollow(found)) => found,
                other => return Err(unexpected(&other)),
            };
            let Some(last) = found.last() else { break };
            after = Some(last.id);
            seen += found.len();
            for hollow in found {
                tenants.entry(hollow.tenant).or_default().insert(hollow.id, hollow);
            }
        }
        let mut done = Squeezed::default();
        for (tenant, hollow) in tenants {
            let facts = match self.query(Query::Tenant { id: tenant }).await? {
                Answer::Tenant(facts) => facts,
                other => return Err(unexpected(&other)),
            };
            let dead = hollow.values().map(|blob| blob.plain_len.saturating_sub(blob.live)).sum();
            if !known.is_worth_it(tenant, dead, DEAD_BYTES_MIN.max(facts.used_bytes / DEAD_PART)) {
                continue;
            }
            let owner = Caller { tenant, tenant_name: facts.name, access_key_id: String::new() };
            let buckets = match self.query(Query::Buckets { tenant: Some(tenant) }).await? {
                Answer::Buckets(buckets) => buckets,
                other => return Err(unexpected(&other)),
            };
            let objects = self.sealed_by(Sealing::Tenant);
            for bucket in buckets {
                let batch = Batch::new(&objects, &bucket, &owner);
                match batch.walk(&hollow, &mut done).await {
                    // Deleted meanwhile.
                    Ok(()) | Err(ObjectsError::Refused(Refusal::NoSuchBucket)) => {}
                    Err(error) => return Err(error),
                }
            }
            known.was_walked(tenant);
        }
        Ok(done)
    }
}

/// Versions of a bucket that move together, and what is copied of blobs for them.
struct Batch<'a> {
    objects: &'a Objects,
    bucket: &'a Bucket,
    owner: &'a Caller,
    versions: Vec<Move>,
    ranges: Vec<Extent>,
    blobs: HashMap<BlobId, Blob>,
    bytes: u64,
}

impl<'a> Batch<'a> {
    fn new(objects: &'a Objects, bucket: &'a Bucket, owner: &'a Caller) -> Self {
        let (versions, ranges, blobs) = (Vec::new(), Vec::new(), HashMap::new());
        Self { objects, bucket, owner, versions, ranges, blobs, bytes: 0 }
    }

    async fn walk(
        mut self,
        hollow: &HashMap<BlobId, HollowBlob>,
        done: &mut Squeezed,
    ) -> Result<(), ObjectsError> {
        let blobs: Vec<BlobId> = hollow.keys().copied().collect();
        let mut page = ListVersions {
            bucket: self.bucket.name.clone(),
            entries_max: VERSIONS_PER_PAGE,
            ..ListVersions::default()
        };
        loop {
            let query = VersionQuery::Naming { page: page.clone(), blobs: blobs.clone() };
            let (versions, next) = match self.objects.query(Query::Version(query)).await? {
                Answer::Version(VersionAnswer::Naming { versions, next }) => (versions, next),
                other => return Err(unexpected(&other)),
            };
            for (head, _) in versions {
                self.add(&head, hollow, done).await?;
            }
            match next {
                Some((key, version)) => (page.after, page.after_version) = (key, Some(version)),
                None => return self.carry_out(done).await,
            }
            tokio::time::sleep(PAGE_PAUSE).await;
        }
    }

    /// Takes in what a version has in hollow blobs.
    async fn add(
        &mut self,
        head: &ObjectHead,
        hollow: &HashMap<BlobId, HollowBlob>,
        done: &mut Squeezed,
    ) -> Result<(), ObjectsError> {
        // What is sealed by a key of its own stands in blobs of its own.
        if !self.objects.sealing.of_object(&head.headers).is_ok_and(|sealing| sealing.is_tenants()) {
            return Ok(());
        }
        let mut from_offset = 0;
        while from_offset < head.size {
            let query = VersionQuery::Object {
                bucket: self.bucket.name.clone(),
                key: head.key.clone(),
                version: Some(head.version_id()),
                from_offset,
                extents_max: EXTENTS_PER_ANSWER_MAX,
            };
            let found = match self.objects.query(Query::Version(query)).await {
                Ok(Answer::Object(found)) if found.head.version == head.version => found,
                // Another by now, or gone: it comes again in the next round.
                Ok(Answer::Object(_)) | Err(ObjectsError::Refused(_)) => return Ok(()),
                Ok(other) => return Err(unexpected(&other)),
                Err(error) => return Err(error),
            };
            for ResolvedExtent { at, extent, blob } in found.extents {
                from_offset = at.saturating_add(extent.length);
                if hollow.contains_key(&extent.blob) {
                    self.add_range(head, extent, blob, done).await?;
                }
            }
            if !found.is_truncated {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn add_range(
        &mut self,
        head: &ObjectHead,
        mut extent: Extent,
        blob: Blob,
        done: &mut Squeezed,
    ) -> Result<(), ObjectsError> {
        let is_known = |known: &Extent| {
            known.blob == extent.blob
                && known.offset <= extent.offset
                && extent.offset + extent.length <= known.offset + known.length
        };
        let is_shared = self.ranges.iter().rev().take(64).any(is_known);
        let is_full = self.bytes + extent.length > BATCH_BYTES_MAX || self.ranges.len() == MOVES_MAX;
        let is_new =
            self.versions.last().is_none_or(|last| last.key != head.key || last.number != head.version);
        if (is_full && !is_shared && self.bytes > 0) || (is_new && self.versions.len() == EXPIRE_MAX) {
            self.carry_out_here(done).await?;
        }
        let is_new =
            self.versions.last().is_none_or(|last| last.key != head.key || last.number != head.version);
        if is_new {
            self.versions.push(Move { key: head.key.clone(), number: head.version });
        }
        if !is_shared || self.ranges.is_empty() {
            extent.part = 0;
            self.bytes += extent.length;
            self.ranges.push(extent);
            self.blobs.insert(blob.id, blob);
        }
        Ok(())
    }

    async fn carry_out(mut self, done: &mut Squeezed) -> Result<(), ObjectsError> {
        self.carry_out_here(done).await
    }

    /// Copies what was taken in, and has its versions name the copy.
    async fn carry_out_here(&mut self, done: &mut Squeezed) -> Result<(), ObjectsError> {
        let ranges = joined(std::mem::take(&mut self.ranges));
        let (versions, blobs) = (std::mem::take(&mut self.versions), std::mem::take(&mut self.blobs));
        self.bytes = 0;
        let mut total = 0;
        let mut resolved = Vec::with_capacity(ranges.len());
        for extent in &ranges {
            let Some(blob) = blobs.get(&extent.blob).cloned() else { continue };
            resolved.push(ResolvedExtent { at: total, extent: extent.clone(), blob });
            total += extent.length;
        }
        if total == 0 {
            return Ok(());
        }
        let (objects, owner) = (self.objects, self.owner);
        let key = objects.reading_key(owner, &ObjectHeaders::default()).await?;
        let body = objects.body_of(owner.tenant, &key, 0..total, &resolved)?;
        let body = body.map_err(|error| Box::new(error) as BodyError).boxed();
        let upstream = Upstream { body, size: Some(total), check: Box::new(|_| Ok(None)) };
        let stored = objects.take_in(owner, self.bucket, upstream, Inlining::Never).await?;
        let Content::Extents(copies) = &stored.content.content else {
            return Err(ObjectsError::Internal("a copy of a blob is not in blobs".into()));
        };
        let moves = moves(&resolved, copies);
        let command = VersionCommand::Move {
            bucket: self.bucket.name.clone(),
            versions: versions.clone(),
            moves,
            blobs: stored.content.blobs.clone(),
        };
        match objects.commit(self.bucket, stored, Command::Version(command)).await {
            // None of them is what it was: nothing names the copy.
            Err(ObjectsError::Refused(Refusal::Invalid(why))) => tracing::debug!(why, "nothing was moved"),
            moved => {
                moved?;
                done.versions += versions.len() as u64;
                done.bytes_copied += total;
            }
        }
        Ok(())
    }
}

/// Ranges in order, those that touch or overlap as one.
fn joined(mut ranges: Vec<Extent>) -> Vec<Extent> {
    ranges.sort_by_key(|range| (range.blob, range.offset));
    let mut joined: Vec<Extent> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.blob == range.blob && range.offset <= last.offset + last.length => {
                last.length = last.length.max(range.offset + range.length - last.offset);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Where each range lies in the copies, which hold all of them one behind the other; cut where a copy ends.
fn moves(ranges: &[ResolvedExtent], copies: &[Extent]) -> Vec<(Extent, Extent)> {
    let mut moves = Vec::with_capacity(ranges.len());
    let mut copies = copies.iter().cloned();
    let mut copy = copies.next();
    for ResolvedExtent { extent, .. } in ranges {
        let mut left = extent.clone();
        while left.length > 0 {
            let Some(into) = copy.as_mut() else { return moves };
            let length = left.length.min(into.length);
            moves.push((
                Extent { length, ..left.clone() },
                Extent { blob: into.blob, offset: into.offset, length, part: 0 },
            ));
            left = Extent { offset: left.offset + length, length: left.length - length, ..left };
            (into.offset, into.length) = (into.offset + length, into.length - length);
            if into.length == 0 {
                copy = copies.next();
            }
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(blob: u8, offset: u64, length: u64) -> Extent {
        Extent { blob: BlobId([blob; 16]), offset, length, part: 0 }
    }

    #[test]
    fn what_a_walk_has_left_is_not_walked_for_again() {
        let (mut known, tenant) = (Squeezing::default(), TenantId(1));
        assert!(!known.is_worth_it(tenant, 9, 10));
        assert!(known.is_worth_it(tenant, 10, 10));
        assert!(known.is_worth_it(tenant, 10, 10), "a walk that failed is begun again");
        known.was_walked(tenant);
        assert!(!known.is_worth_it(tenant, 6, 10), "what is left");
        assert!(!known.is_worth_it(tenant, 15, 10));
        assert!(known.is_worth_it(tenant, 16, 10));
        assert!(!known.is_worth_it(tenant, 2, 10), "it went by itself");
        assert!(known.is_worth_it(tenant, 12, 10));
    }

    #[test]
    fn ranges_that_overlap_are_copied_once() {
        let ranges =
            vec![range(2, 0, 5), range(1, 10, 10), range(1, 0, 10), range(1, 15, 10), range(1, 40, 1)];
        assert_eq!(joined(ranges), [range(1, 0, 25), range(1, 40, 1), range(2, 0, 5)]);
    }

    #[test]
    fn each_range_knows_where_it_went() {
        let blob = |id| Blob {
            id,
            pg: makai_erasure::PgId(1),
            plain_len: 100,
            wrapped_key: bytes::Bytes::new(),
            root: [0; 32],
            sequence: 1,
        };
        let resolved: Vec<_> = [range(1, 5, 10), range(2, 0, 20)]
            .into_iter()
            .map(|extent| ResolvedExtent { at: 0, blob: blob(extent.blob), extent })
            .collect();
        let found = moves(&resolved, &[range(9, 0, 16), range(8, 0, 14)]);
        assert_eq!(
            found,
            [
                (range(1, 5, 10), range(9, 0, 10)),
                (range(2, 0, 6), range(9, 10, 6)),
                (range(2, 6, 14), range(8, 0, 14)),
            ]
        );
    }
}
