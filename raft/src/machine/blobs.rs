//! Which blobs the facts refer to, and which wait to be collected.
//!
//! A blob's references are the extents of current versions and parts that lie in it; they change with the
//! command that changes those. At none, the blob leaves its group's order and waits as garbage; a version that
//! names it again brings it back, at the end of that order. Collection has two phases, so that no shard is
//! deleted of a blob that can still come back: garbage may be named again for [`REVIVE_MS_MAX`], is offered
//! for collection only after that, and is forgotten once its shards are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use makai_erasure::layout::BLOB_BYTES_MAX;
use makai_erasure::{BlobId, PgId};
use serde::{Deserialize, Serialize};

use super::draft::{Draft, Outcome, expect, keys_in, read, scan_records, shift};
use super::kv::{KvError, View};
use super::{applied, keys, page};
use crate::facts::Timestamp;
use crate::facts::cluster::Group;
use crate::facts::command::{BLOB_OPEN_MS_MAX, NewBlob, Refusal, Reply};
use crate::facts::object::{Blob, Extent, HOLE};
use crate::facts::query::Answer;
use crate::facts::tenant::TenantId;
use crate::facts::version::{HollowBlob, VersionAnswer};

/// How far a writer's clock may be ahead of the leader's.
pub const CLOCK_AHEAD_MS_MAX: u64 = 5 * 60 * 1000;
/// How long a blob that nothing refers to may be named again. No writer that opened it before it became
/// garbage is admitted later than this, so that an id once forgotten never comes back.
pub const REVIVE_MS_MAX: u64 = BLOB_OPEN_MS_MAX + CLOCK_AHEAD_MS_MAX;
/// Ids in one question or command about blobs.
pub const BLOB_IDS_MAX: usize = 10_000;
/// Bytes of a wrapped data key.
const WRAPPED_KEY_BYTES_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    pg: PgId,
    plain_len: u64,
    wrapped_key: Bytes,
    #[serde(with = "serde_bytes")]
    root: [u8; 32],
    /// Place in its group's order; 0 while nothing refers to it.
    sequence: u64,
    /// Its key is wrapped by this tenant's: no other's versions may name it.
    tenant: TenantId,
    references: u64,
    /// When the last reference went.
    garbage_since: Option<Timestamp>,
    /// Bytes that references name, as often as they do; `None`: an earlier release wrote it and did not count.
    #[serde(default)]
    live: Option<u64>,
}

/// A blob is worth emptying once this part of it, or more, is dead: to free a byte at most five are copied.
const HOLLOW_PART: u64 = 6;

impl Record {
    fn is_hollow(&self) -> bool {
        let dead = self.live.map_or(0, |live| self.plain_len.saturating_sub(live));
        self.references > 0 && dead.saturating_mul(HOLLOW_PART) >= self.plain_len
    }

    fn blob(self, id: BlobId) -> Blob {
        Blob {
            id,
            pg: self.pg,
            plain_len: self.plain_len,
            wrapped_key: self.wrapped_key,
            root: self.root,
            sequence: self.sequence,
        }
    }
}

/// The changes of references that one command makes.
pub struct Ledger {
    tenant: TenantId,
    lines: BTreeMap<BlobId, Line>,
}

struct Line {
    record: Record,
    added: u64,
    dropped: u64,
    bytes_added: u64,
    bytes_dropped: u64,
}

impl Line {
    fn new(record: Record) -> Self {
        Self { record, added: 0, dropped: 0, bytes_added: 0, bytes_dropped: 0 }
    }
}

impl Ledger {
    pub fn new(tenant: TenantId) -> Self {
        Self { tenant, lines: BTreeMap::new() }
    }

    /// Whether a command has come across the blob already.
    pub fn knows(&self, id: &BlobId) -> bool {
        self.lines.contains_key(id)
    }

    /// Takes in blobs whose shards are durable. Those known already must be the same.
    pub fn admit(&mut self, draft: &Draft<'_>, blobs: &[NewBlob]) -> Outcome<()> {
        let mut given = BTreeSet::new();
        for new in blobs {
            let invalid = |why: &str| Refusal::Invalid(format!("blob {}: {why}", new.id));
            if new.id == HOLE || !(1..=BLOB_BYTES_MAX).contains(&new.plain_len) {
                return Err(invalid("its id or length is none a blob can have").into());
            }
            if new.wrapped_key.len() > WRAPPED_KEY_BYTES_MAX {
                return Err(invalid("its wrapped key is too long").into());
            }
            if new.opened_at.millis_since(draft.now) > CLOCK_AHEAD_MS_MAX {
                return Err(
                    invalid("it was opened in the future; set the clock of the node that sent it").into()
                );
            }
            if draft.now.millis_since(new.opened_at) > BLOB_OPEN_MS_MAX {
                return Err(Refusal::BlobTooOld.into());
            }
            let group: Group = read(draft, &keys::group(new.pg))?
                .ok_or_else(|| Refusal::NotFound(format!("group {}", new.pg)))?;
            if new.pg_version > group.version {
                return Err(invalid("it was written to a version of its group that does not exist").into());
            }
            let record = Record {
                pg: new.pg,
                plain_len: new.plain_len,
                wrapped_key: new.wrapped_key.clone(),
                root: new.root,
                sequence: 0,
                tenant: self.tenant,
                references: 0,
                garbage_since: None,
                live: Some(0),
            };
            if !given.insert(new.id) {
                return Err(invalid("it is given twice").into());
            }
            if let Some(Line { record: known, .. }) = self.line(draft, &new.id)? {
                let is_same = known.pg == record.pg
                    && known.plain_len == record.plain_len
                    && known.wrapped_key == record.wrapped_key
                    && known.root == record.root
                    && known.tenant == record.tenant;
                if !is_same {
                    return Err(invalid("another blob of this id exists; draw a new id").into());
                }
            } else {
                self.lines.insert(new.id, Line::new(record));
            }
        }
        Ok(())
    }

    /// Adds references of a new version. Each extent must lie in a blob that is known or admitted.
    pub fn add(&mut self, draft: &Draft<'_>, extents: &[Extent]) -> Outcome<()> {
        let tenant = self.tenant;
        for extent in extents.iter().filter(|extent| !extent.is_hole()) {
            let invalid = |why: &str| Refusal::Invalid(format!("extent in blob {}: {why}", extent.blob));
            let Some(line) = self.line(draft, &extent.blob)? else {
                return Err(invalid("the blob is unknown").into());
            };
            if line.record.tenant != tenant {
                return Err(invalid("the blob is another tenant's").into());
            }
            if line.record.garbage_since.is_some_and(|since| draft.now.millis_since(since) > REVIVE_MS_MAX) {
                return Err(Refusal::BlobTooOld.into());
            }
            let end = extent.offset.checked_add(extent.length);
            if extent.length == 0 || end.is_none_or(|end| end > line.record.plain_len) {
                return Err(invalid("it is empty or reaches beyond its blob").into());
            }
            line.added += 1;
            line.bytes_added = line.bytes_added.saturating_add(extent.length);
        }
        Ok(())
    }

    /// Takes away the references of a version or part that goes.
    pub fn drop(&mut self, draft: &Draft<'_>, extents: &[Extent]) -> Result<(), KvError> {
        for extent in extents.iter().filter(|extent| !extent.is_hole()) {
            match self.line(draft, &extent.blob)? {
                Some(line) => {
                    line.dropped += 1;
                    line.bytes_dropped = line.bytes_dropped.saturating_add(extent.length);
                }
                None => return Err(KvError(format!("blob {} is referenced but unknown", extent.blob))),
            }
        }
        Ok(())
    }

    /// Writes what changed, blob by blob in the order of their ids.
    pub fn settle(self, draft: &mut Draft<'_>) -> Outcome<()> {
        for (id, Line { mut record, added, dropped, bytes_added, bytes_dropped }) in self.lines {
            if record.references == 0 && added == 0 && record.garbage_since.is_none() {
                return Err(Refusal::Invalid(format!("blob {id} is given but not named")).into());
            }
            let before = record.references;
            if added == dropped && (before == 0 || bytes_added == bytes_dropped) {
                continue;
            }
            let was_hollow = record.is_hollow();
            if let Some(live) = record.live {
                // It only says what is worth emptying: no reason to stop, were it ever wrong.
                record.live = Some(live.saturating_add(bytes_added).saturating_sub(bytes_dropped));
            }
            record.references = shift(before, added, dropped, "references")?;
            if before == 0 {
                if let Some(since) = record.garbage_since.take() {
                    draft.delete(keys::garbage(since, &id));
                }
                record.sequence = draft.next_at(keys::group_sequence(record.pg))?;
                draft.write(keys::group_blob(record.pg, record.sequence), &id)?;
                super::accounts::blob_came(draft, record.pg, record.plain_len)?;
            } else if record.references == 0 {
                draft.delete(keys::group_blob(record.pg, record.sequence));
                draft.write(keys::garbage(draft.now, &id), &id)?;
                super::accounts::blob_went(draft, record.pg, record.plain_len)?;
                record.sequence = 0;
                record.garbage_since = Some(draft.now);
            }
            match (was_hollow, record.is_hollow()) {
                (false, true) => draft.write(keys::hollow(&id), &())?,
                (true, false) => draft.delete(keys::hollow(&id)),
                _ => {}
            }
            draft.write(keys::blob(&id), &record)?;
        }
        Ok(())
    }

    /// The blob's line; `None`: it is unknown here and in the store.
    fn line(&mut self, view: &dyn View, id: &BlobId) -> Result<Option<&mut Line>, KvError> {
        if !self.lines.contains_key(id) {
            let Some(record) = read(view, &keys::blob(id))? else { return Ok(None) };
            self.lines.insert(*id, Line::new(record));
        }
        Ok(self.lines.get_mut(id))
    }
}

pub fn forget(draft: &mut Draft<'_>, ids: &[BlobId]) -> Outcome<Reply> {
    check_count(ids)?;
    for id in ids {
        let Some(record) = read::<Record>(draft, &keys::blob(id))? else { continue };
        if let Some(since) = record.garbage_since
            && draft.now.millis_since(since) > REVIVE_MS_MAX
        {
            draft.delete(keys::garbage(since, id));
            draft.delete(keys::blob(id));
        }
    }
    Ok(Reply::Done)
}

/// A blob that an extent names; of a hole, one that is nowhere.
pub fn get(view: &dyn View, id: &BlobId) -> Result<Blob, KvError> {
    if *id == HOLE {
        let (wrapped_key, root) = (Bytes::new(), [0; 32]);
        return Ok(Blob { id: HOLE, pg: PgId(0), plain_len: 0, wrapped_key, root, sequence: 0 });
    }
    Ok(expect::<Record>(view, &keys::blob(id))?.blob(*id))
}

pub fn of_group(view: &dyn View, pg: PgId, after_sequence: u64, entries_max: u32) -> Outcome<Answer> {
    let Some(first) = after_sequence.checked_add(1) else { return Ok(Answer::Blobs(Vec::new())) };
    let from = keys::group_blob(pg, first);
    listed(view, &from, &keys::end_of(&keys::group_blobs(pg)), entries_max)
}

/// Blobs that are worth emptying.
pub fn hollow(view: &dyn View, after: Option<&BlobId>, entries_max: u32) -> Outcome<Answer> {
    let from = after.map_or_else(keys::hollows, |after| keys::after(&keys::hollow(after)));
    let found = keys_in(view, &from, &keys::end_of(&keys::hollows()), page(entries_max))?;
    let mut hollow = Vec::with_capacity(found.len());
    for key in found {
        let Some(id) = key.last_chunk().map(|id| BlobId(*id)) else { continue };
        let record: Record = expect(view, &keys::blob(&id))?;
        let (tenant, plain_len, live) = (record.tenant, record.plain_len, record.live.unwrap_or(0));
        hollow.push(HollowBlob { id, tenant, plain_len, live });
    }
    Ok(Answer::Version(VersionAnswer::Hollow(hollow)))
}

pub fn states(view: &dyn View, ids: &[BlobId]) -> Outcome<Answer> {
    check_count(ids)?;
    let mut states = Vec::with_capacity(ids.len());
    for id in ids {
        states.push(read::<Record>(view, &keys::blob(id))?.map(|record| record.blob(*id)));
    }
    Ok(Answer::BlobStates(states))
}

/// Garbage that cannot come back: what could is left out, whatever `before_ms` says.
pub fn garbage(view: &dyn View, before_ms: u64, entries_max: u32) -> Outcome<Answer> {
    let now = applied(view)?.at;
    let end = before_ms.min(now.0.saturating_sub(REVIVE_MS_MAX));
    listed(view, &keys::garbage_from(Timestamp(0)), &keys::garbage_from(Timestamp(end)), entries_max)
}

/// Blobs that an index names.
fn listed(view: &dyn View, from: &[u8], to: &[u8], entries_max: u32) -> Outcome<Answer> {
    let entries_max = page(entries_max);
    let mut ids: Vec<BlobId> = Vec::new();
    if entries_max > 0 {
        scan_records(view, from, to, &mut |_, id| {
            ids.push(id);
            if ids.len() < entries_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
    }
    let blobs = ids.iter().map(|id| get(view, id)).collect::<Result<_, _>>()?;
    Ok(Answer::Blobs(blobs))
}

pub fn check_count(ids: &[BlobId]) -> Result<(), Refusal> {
    if ids.len() > BLOB_IDS_MAX {
        return Err(Refusal::Invalid(format!("{} blobs at once; at most {BLOB_IDS_MAX}", ids.len())));
    }
    Ok(())
}
