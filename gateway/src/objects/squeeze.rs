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

/// Hollow blobs of a tenant, and of all together, whose versions are looked for in one round; the next round goes on behind them.
const WALKED_MAX: usize = 10_000;
const WALKED_OF_ALL_MAX: usize = 100_000;
const BLOBS_PER_ANSWER: u32 = 1000;
const VERSIONS_PER_PAGE: u32 = 1000;
/// Bytes copied into one blob.
const BATCH_BYTES_MAX: u64 = 8 << 20;
/// A walk through a tenant's keys is worth it once so much can be freed, and one part in so many of what the tenant uses.
const DEAD_BYTES_MIN: u64 = 1 << 20;
const DEAD_PART: u64 = 64;
/// What could not be copied is tried again so many rounds later.
const ROUNDS_AFTER_FAILURE: u32 = 60;
/// Rest between two pages, so that clients come first.
const PAGE_PAUSE: Duration = Duration::from_millis(20);

/// What a round has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Squeezed {
    pub versions: u64,
    pub bytes_copied: u64,
    /// Batches that could not be copied.
    pub failed: u64,
}

/// What is known from one round to the next, by tenant.
#[derive(Debug, Default)]
pub struct Squeezing {
    tenants: BTreeMap<TenantId, Walk>,
}

/// How far the hollow blobs of a tenant have been gone through. `has_failed`: some could not be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walk {
    UpTo {
        blob: BlobId,
        has_failed: bool,
    },
    /// Through all, in the last round.
    Done {
        has_failed: bool,
    },
    /// Through all: it has left so many dead bytes, which count for nothing until so many rounds have passed.
    Left {
        dead: u64,
        rounds: Option<u32>,
    },
}

impl Squeezing {
    /// Whether keys are to be walked where `dead` bytes could be freed: where a walk is under way, and where `worth` bytes have
    /// come since the last one. What that has left, no key leads to, or it could not be copied.
    fn is_due(&mut self, tenant: TenantId, dead: u64, worth: u64) -> bool {
        let left = match self.tenants.get_mut(&tenant) {
            None => 0,
            Some(Walk::UpTo { .. }) => return true,
            Some(walk @ Walk::Done { .. }) => {
                let rounds = matches!(walk, Walk::Done { has_failed: true }).then_some(ROUNDS_AFTER_FAILURE);
                *walk = Walk::Left { dead, rounds };
                return false;
            }
            Some(Walk::Left { rounds: Some(0), .. }) => 0,
            Some(Walk::Left { dead: left, rounds }) => {
                *rounds = rounds.map(|rounds| rounds - 1);
                *left = dead.min(*left);
                *left
            }
        };
        dead - left >= worth
    }

    /// The blob behind which the walk goes on.
    fn behind(&self, tenant: TenantId) -> Option<BlobId> {
        match self.tenants.get(&tenant) {
            Some(Walk::UpTo { blob, .. }) => Some(*blob),
            _ => None,
        }
    }

    /// The versions of hollow blobs were moved up to this blob; `None`: of all that there are.
    fn has_walked(&mut self, tenant: TenantId, up_to: Option<BlobId>, has_failed: bool) {
        let before = matches!(self.tenants.get(&tenant), Some(Walk::UpTo { has_failed: true, .. }));
        let has_failed = has_failed || before;
        let walk = match up_to {
            Some(blob) => Walk::UpTo { blob, has_failed },
            None => Walk::Done { has_failed },
        };
        self.tenants.insert(tenant, walk);
    }
}

/// Hollow blobs of a tenant that are emptied in a round.
#[derive(Default)]
struct Window {
    blobs: HashMap<BlobId, HollowBlob>,
    /// There are more behind them.
    last: Option<BlobId>,
    is_cut: bool,
}

impl Window {
    /// Blobs come in their order.
    fn add(&mut self, hollow: HollowBlob, room: &mut usize) {
        if self.is_cut || *room == 0 || self.blobs.len() == WALKED_MAX {
            self.is_cut = true;
            return;
        }
        *room -= 1;
        self.last = Some(hollow.id);
        self.blobs.insert(hollow.id, hollow);
    }
}

impl Objects {
    /// Goes once through the hollow blobs of all tenants.
    ///
    /// # Errors
    /// The facts or the disks do not answer; what was moved by then stays so.
    pub async fn squeeze(&self, known: &mut Squeezing) -> Result<Squeezed, ObjectsError> {
        let mut dead: BTreeMap<TenantId, u64> = BTreeMap::new();
        self.each_hollow(|hollow| {
            *dead.entry(hollow.tenant).or_default() += hollow.plain_len.saturating_sub(hollow.live);
        })
        .await?;
        known.tenants.retain(|tenant, _| dead.contains_key(tenant));
        let mut due = BTreeMap::new();
        for (tenant, dead) in dead {
            let facts = match self.query(Query::Tenant { id: tenant }).await? {
                Answer::Tenant(facts) => facts,
                other => return Err(unexpected(&other)),
            };
            if known.is_due(tenant, dead, DEAD_BYTES_MIN.max(facts.used_bytes / DEAD_PART)) {
                due.insert(tenant, (facts.name, Window::default()));
            }
        }
        let mut done = Squeezed::default();
        if due.is_empty() {
            return Ok(done);
        }
        let mut room = WALKED_OF_ALL_MAX;
        self.each_hollow(|hollow| {
            if let Some((_, window)) = due.get_mut(&hollow.tenant)
                && known.behind(hollow.tenant).is_none_or(|behind| behind < hollow.id)
            {
                window.add(hollow, &mut room);
            }
        })
        .await?;
        for (tenant, (tenant_name, window)) in due {
            if window.blobs.is_empty() {
                if !window.is_cut {
                    known.has_walked(tenant, None, false);
                }
                continue;
            }
            let owner = Caller { tenant, tenant_name, access_key_id: String::new() };
            let buckets = match self.query(Query::Buckets { tenant: Some(tenant) }).await? {
                Answer::Buckets(buckets) => buckets,
                other => return Err(unexpected(&other)),
            };
            let (objects, failed) = (self.sealed_by(Sealing::Tenant), done.failed);
            for bucket in buckets {
                let batch = Batch::new(&objects, &bucket, &owner);
                match batch.walk(&window.blobs, &mut done).await {
                    // Deleted meanwhile.
                    Ok(()) | Err(ObjectsError::Refused(Refusal::NoSuchBucket)) => {}
                    Err(error) => return Err(error),
                }
            }
            known.has_walked(tenant, window.last.filter(|_| window.is_cut), done.failed > failed);
        }
        Ok(done)
    }

    /// Shows all hollow blobs, in their order.
    async fn each_hollow(&self, mut show: impl FnMut(HollowBlob)) -> Result<(), ObjectsError> {
        let mut after = None;
        loop {
            let query = VersionQuery::Hollow { after, entries_max: BLOBS_PER_ANSWER };
            let found = match self.query(Query::Version(query)).await? {
                Answer::Version(VersionAnswer::Hollow(found)) => found,
                other => return Err(unexpected(&other)),
            };
            let Some(last) = found.last() else { return Ok(()) };
            after = Some(last.id);
            found.into_iter().for_each(&mut show);
        }
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
            self.carry_out(done).await?;
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

    /// Copies what was taken in, and has its versions name the copy. What cannot be read or written now is left as it is, and
    /// stands in nobody else's way.
    async fn carry_out(&mut self, done: &mut Squeezed) -> Result<(), ObjectsError> {
        match self.carry_out_here(done).await {
            Err(error @ (ObjectsError::Full(_) | ObjectsError::Refused(_))) => Err(error),
            Err(error) => {
                done.failed += 1;
                tracing::debug!(bucket = self.bucket.name, %error, "a part of hollow blobs was not copied");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

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
        assert!(!known.is_due(tenant, 9, 10));
        assert!(known.is_due(tenant, 10, 10));
        assert!(known.is_due(tenant, 10, 10), "a walk that failed is begun again");
        known.has_walked(tenant, Some(BlobId([4; 16])), false);
        assert_eq!(known.behind(tenant), Some(BlobId([4; 16])));
        assert!(known.is_due(tenant, 1, 10), "a walk is finished, however little is left");
        known.has_walked(tenant, None, false);
        assert_eq!(known.behind(tenant), None);
        assert!(!known.is_due(tenant, 6, 10), "what is left");
        assert!(!known.is_due(tenant, 15, 10));
        assert!(known.is_due(tenant, 16, 10));
        assert!(!known.is_due(tenant, 2, 10), "it went by itself");
        assert!(known.is_due(tenant, 12, 10));
    }

    #[test]
    fn what_could_not_be_copied_is_tried_again_later() {
        let (mut known, tenant) = (Squeezing::default(), TenantId(1));
        known.has_walked(tenant, Some(BlobId([4; 16])), true);
        known.has_walked(tenant, None, false);
        let rounds = (0..).find(|_| known.is_due(tenant, 20, 10));
        assert_eq!(rounds, Some(ROUNDS_AFTER_FAILURE + 1));
    }

    #[test]
    fn a_window_ends_where_there_is_no_room() {
        let hollow = |id: u128| HollowBlob {
            id: BlobId(id.to_be_bytes()),
            tenant: TenantId(1),
            plain_len: 10,
            live: 1,
        };
        let (mut window, mut room) = (Window::default(), 2);
        for id in 1..=2 {
            window.add(hollow(id), &mut room);
        }
        assert!(!window.is_cut);
        window.add(hollow(3), &mut room);
        room = 1;
        window.add(hollow(4), &mut room);
        assert!(window.is_cut, "none is passed over");
        assert_eq!((window.blobs.len(), window.last), (2, Some(BlobId(2u128.to_be_bytes()))));

        let (mut window, mut room) = (Window::default(), usize::MAX);
        for id in 0..=WALKED_MAX as u128 {
            window.add(hollow(id), &mut room);
        }
        assert_eq!((window.blobs.len(), window.is_cut), (WALKED_MAX, true));
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
