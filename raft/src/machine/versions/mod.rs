//! Versions that are not current, delete markers, and what moves between them and the tree of names.
//!
//! ```text
//! put     current ─ displace ─> kept here (versioned), or dropped (the null version) ─> new one into the tree
//! delete  current ─ displace ─> as above ─> a marker here
//! delete  one version ─ drop ─> was it the newest? ─ promote ─> the next older one into the tree
//! ```
//!
//! | room      | holds                                           |
//! |-----------|-------------------------------------------------|
//! | `delete`  | deletions, of the current version and of one    |
//! | `listing` | pages of all versions                           |
//! | `lock`    | retention, legal holds, defaults                |
//! | `moving`  | versions whose bytes move to other blobs        |
//! | `parts`   | what is remembered of the parts of a version    |
//! | `rules`   | rules of lifecycles                             |
//!
//! Always: the tree holds a key's newest version unless that is a marker, and then nothing of the key; every other
//! version and every marker stands here, newest first; of versions without an id a key has at most one.

mod delete;
mod listing;
mod lock;
mod moving;
mod parts;
mod rules;

use std::ops::ControlFlow;

use makai_erasure::Scheme;

use super::blobs::{self, Ledger};
use super::buckets::{self, Change, Flow};
use super::content::{self, Body};
use super::draft::{Draft, Outcome, read};
use super::keys::Counter;
use super::kv::{KvError, View};
use super::objects::{self, Meta};
use super::{files, journal, keys, names};
use crate::facts::bucket::Bucket;
use crate::facts::command::{Refusal, Reply};
use crate::facts::object::ObjectHead;
use crate::facts::query::Answer;
use crate::facts::tenant::TenantId;
use crate::facts::version::{
    BucketLock, EXPIRE_MAX, Transitioned, VersionCommand, VersionId, VersionQuery, VersionRefusal,
    VersionReply, Versioning,
};

pub use self::delete::{Asked, delete, push_marker};
pub use self::lock::{check as check_lock, check_new as check_new_lock, complete as complete_lock};
pub use self::parts::{copy as copy_parts, forget as forget_parts, store as store_parts};
pub use self::rules::forget as forget_rules;

pub fn run(draft: &mut Draft<'_>, command: &VersionCommand) -> Outcome<Reply> {
    match command {
        VersionCommand::CreateLockedBucket { name, tenant, scheme } => {
            create_locked(draft, name, *tenant, *scheme)
        }
        VersionCommand::SetVersioning { bucket, versioning } => set_versioning(draft, bucket, *versioning),
        VersionCommand::SetBucketLock { bucket, lock } => lock::set_bucket(draft, bucket, *lock),
        VersionCommand::Delete { bucket, key, version, bypass_governance, precondition } => {
            let asked =
                Asked { version: *version, bypass_governance: *bypass_governance, ..Asked::default() };
            let deleted = delete(draft, bucket, key, asked, precondition)?;
            Ok(Reply::Version(VersionReply::Deleted(deleted)))
        }
        VersionCommand::DeleteLike { bucket, key, version, bypass_governance, precondition, likeness } => {
            let asked =
                Asked { version: *version, bypass_governance: *bypass_governance, likeness: *likeness };
            let deleted = delete(draft, bucket, key, asked, precondition)?;
            Ok(Reply::Version(VersionReply::Deleted(deleted)))
        }
        VersionCommand::SetTagging { bucket, key, version, tagging } => {
            edit(draft, bucket, key, *version, |_, meta| {
                meta.headers.tagging.clone_from(tagging);
                Ok(objects::check_headers(&meta.headers)?)
            })
        }
        VersionCommand::SetRetention { bucket, key, version, retention, bypass_governance } => {
            lock::set_retention(draft, bucket, key, *version, *retention, *bypass_governance)
        }
        VersionCommand::SetLegalHold { bucket, key, version, is_held } => {
            lock::set_legal_hold(draft, bucket, key, *version, *is_held)
        }
        VersionCommand::Expire { bucket, versions } => delete::expire(draft, bucket, versions),
        VersionCommand::Transition { bucket, versions } => transition(draft, bucket, versions),
        VersionCommand::Move { bucket, versions, moves, blobs } => {
            moving::carry_out(draft, bucket, versions, moves, blobs)
        }
        VersionCommand::SetLifecycle { bucket, rules } => rules::set(draft, bucket, rules.as_ref()),
    }
}

pub fn answer(view: &dyn View, query: &VersionQuery) -> Outcome<Answer> {
    match query {
        VersionQuery::Object { bucket, key, version, from_offset, extents_max } => {
            let bucket = buckets::get(view, bucket)?;
            let found = find(view, &bucket, key, *version)?;
            objects::describe(view, &bucket, key, found.meta, found.body, *from_offset, *extents_max)
        }
        VersionQuery::Versions(list) => listing::list(view, list),
        VersionQuery::Naming { page, blobs } => listing::naming(view, page, blobs),
        VersionQuery::Hollow { after, entries_max } => blobs::hollow(view, after.as_ref(), *entries_max),
        VersionQuery::Parts { bucket, key, version, after, entries_max } => {
            let bucket = buckets::get(view, bucket)?;
            let found = find(view, &bucket, key, *version)?;
            parts::page(view, &found.meta, *after, *entries_max)
        }
        VersionQuery::Lifecycle { bucket } => rules::of(view, bucket),
        VersionQuery::LifecycleBuckets { after, entries_max } => rules::list(view, *after, *entries_max),
    }
}

/// Replaces what others may do with a version.
pub fn set_acl(
    draft: &mut Draft<'_>,
    bucket: &str,
    key: &str,
    version: Option<VersionId>,
    acl: Option<&String>,
) -> Outcome<Reply> {
    edit(draft, bucket, key, version, |_, meta| {
        meta.headers.acl = acl.cloned();
        Ok(objects::check_headers(&meta.headers)?)
    })?;
    Ok(Reply::Done)
}

/// Gives versions the storage classes that a lifecycle decided, as far as they are there still.
fn transition(draft: &mut Draft<'_>, bucket: &str, versions: &[Transitioned]) -> Outcome<Reply> {
    if versions.len() > EXPIRE_MAX {
        return Err(Refusal::Invalid(format!("{} versions; at most {EXPIRE_MAX}", versions.len())).into());
    }
    let bucket = buckets::get(draft, bucket)?;
    for Transitioned { key, number, class } in versions {
        let current = look_up(draft, &bucket, key, None)?.filter(|found| found.meta.version == *number);
        let found = match current {
            Some(found) => Some(found),
            None => noncurrent(draft, &bucket, key, *number)?,
        };
        let Some(Found { mut meta, body, place }) = found.filter(|found| !found.meta.is_marker) else {
            continue;
        };
        meta.headers.storage_class = Some(class.clone());
        objects::check_headers(&meta.headers)?;
        draft.put(place, objects::encode(&meta, &body)?);
        journal::note_transitioned(draft, &bucket.name, &meta.head(key))?;
    }
    Ok(Reply::Done)
}

/// A bucket whose objects can be locked is versioned from the start.
fn create_locked(
    draft: &mut Draft<'_>,
    name: &str,
    tenant: TenantId,
    scheme: Option<Scheme>,
) -> Outcome<Reply> {
    buckets::create(draft, name, tenant, scheme)?;
    let lock = Some(BucketLock::default());
    let bucket = Bucket { versioning: Versioning::Enabled, lock, ..buckets::get(draft, name)? };
    draft.write(keys::bucket(name), &bucket)?;
    Ok(Reply::Bucket(bucket))
}

fn set_versioning(draft: &mut Draft<'_>, name: &str, versioning: Versioning) -> Outcome<Reply> {
    let bucket = buckets::get(draft, name)?;
    match versioning {
        Versioning::Unversioned => {
            return Err(Refusal::Invalid("versioning is enabled or suspended".to_owned()).into());
        }
        Versioning::Suspended if bucket.lock.is_some() => {
            let why = "versioning cannot be suspended while object lock is on".to_owned();
            return Err(Refusal::from(VersionRefusal::BucketState(why)).into());
        }
        Versioning::Enabled | Versioning::Suspended => {}
    }
    draft.write(keys::bucket(name), &Bucket { versioning, ..bucket })?;
    Ok(Reply::Done)
}

/// A version, and where its record stands.
pub struct Found {
    pub meta: Meta,
    pub body: Body,
    place: Vec<u8>,
}

/// The version that `version` names; `None` is the current one. A marker is refused.
///
/// Cost: of the current version one lookup per piece of the key, as ever.
pub fn find(view: &dyn View, bucket: &Bucket, key: &str, version: Option<VersionId>) -> Outcome<Found> {
    match look_up(view, bucket, key, version)? {
        Some(found) if !found.meta.is_marker => Ok(found),
        Some(Found { meta, .. }) => {
            let (version, modified_at) = (meta.id(), meta.modified_at);
            Err(Refusal::from(VersionRefusal::IsMarker { version, modified_at }).into())
        }
        None if version.is_some() => Err(Refusal::from(VersionRefusal::NoSuchVersion).into()),
        None => Err(Refusal::NoSuchKey.into()),
    }
}

/// As [`find`], markers too.
fn look_up(
    view: &dyn View,
    bucket: &Bucket,
    key: &str,
    version: Option<VersionId>,
) -> Outcome<Option<Found>> {
    let located = names::locate(view, bucket.root, key)?;
    if let Some(record) = &located.record {
        let (meta, body) = files::load(view, key.as_bytes(), record)?;
        if version.is_none_or(|version| version == meta.id()) {
            let place = files::linked(record).map_or_else(|| located.entry(), files::keys::node);
            return Ok(Some(Found { meta, body, place }));
        }
    }
    if bucket.versioning == Versioning::Unversioned {
        return Ok(None);
    }
    let number = match version {
        Some(VersionId::Number(number)) => Some(number),
        Some(VersionId::Null) => null_number(view, bucket, key)?,
        None => newest(view, bucket, key)?,
    };
    let Some(number) = number else { return Ok(None) };
    Ok(noncurrent(view, bucket, key, number)?.filter(|found| {
        // A version without an id is not to be had by its number.
        version.is_none_or(|version| version == found.meta.id())
    }))
}

/// The version of this number that is not current.
pub fn noncurrent(
    view: &dyn View,
    bucket: &Bucket,
    key: &str,
    number: u64,
) -> Result<Option<Found>, KvError> {
    let place = keys::version(bucket.id, key, number);
    let Some(record) = view.get(&place)? else { return Ok(None) };
    let (meta, body) = objects::decode(&place, &record)?;
    Ok(Some(Found { meta, body, place }))
}

fn null_number(view: &dyn View, bucket: &Bucket, key: &str) -> Result<Option<u64>, KvError> {
    read(view, &keys::null_version(bucket.id, key))
}

/// The number of the newest version here.
fn newest(view: &dyn View, bucket: &Bucket, key: &str) -> Result<Option<u64>, KvError> {
    let below = keys::versions_of(bucket.id, key.as_bytes());
    let mut number = None;
    view.scan(&below, &keys::end_of(&below), &mut |place, _| {
        number = keys::version_number(place);
        ControlFlow::Break(())
    })?;
    Ok(number)
}

/// Whether any version or marker stands here.
pub fn has_any(view: &dyn View, bucket: &Bucket, key: &str) -> Result<bool, KvError> {
    Ok(newest(view, bucket, key)?.is_some())
}

/// Whether a version may be the key's current one, with what stands here.
pub fn may_be_current(view: &dyn View, bucket: &Bucket, key: &str, meta: &Meta) -> Result<bool, KvError> {
    let is_newest = newest(view, bucket, key)?.is_none_or(|newest| newest < meta.version);
    Ok(is_newest && (meta.has_id || null_number(view, bucket, key)?.is_none()))
}

/// Keeps a version whose file goes on, under other names or in the hands of mounts: it shares its bytes.
///
/// Cost: in proportion to its extents.
pub fn keep_copy(
    draft: &mut Draft<'_>,
    bucket: &Bucket,
    key: &str,
    meta: &Meta,
    body: &Body,
    ledger: &mut Ledger,
    change: &mut Change,
) -> Outcome<()> {
    if noncurrent(draft, bucket, key, meta.version)?.is_some() {
        return Ok(());
    }
    let inode = draft.next(Counter::Inode)?;
    let extents = content::extents(draft, meta.inode, body)?;
    ledger.add(draft, &extents)?;
    let body = if extents.is_empty() { body.clone() } else { content::store_extents(draft, inode, extents)? };
    store_parts(draft, inode, &copy_parts(draft, meta)?)?;
    push(draft, bucket, key, &Meta { inode, file: None, ..meta.clone() }, &body)?;
    change.noncurrent.added += 1;
    change.noncurrent_bytes.added = change.noncurrent_bytes.added.saturating_add(meta.size);
    Ok(())
}

/// Drops the version without an id that stands here.
pub fn drop_null(
    draft: &mut Draft<'_>,
    bucket: &Bucket,
    key: &str,
    ledger: &mut Ledger,
    change: &mut Change,
) -> Result<(), KvError> {
    if let Some(number) = null_number(draft, bucket, key)?
        && let Some(old) = noncurrent(draft, bucket, key, number)?
    {
        drop_noncurrent(draft, bucket, key, &old, ledger, change)?;
    }
    Ok(())
}

fn push(draft: &mut Draft<'_>, bucket: &Bucket, key: &str, meta: &Meta, body: &Body) -> Result<(), KvError> {
    draft.put(keys::version(bucket.id, key, meta.version), objects::encode(meta, body)?);
    if !meta.has_id {
        draft.write(keys::null_version(bucket.id, key), &meta.version)?;
    }
    Ok(())
}

fn take(draft: &mut Draft<'_>, bucket: &Bucket, key: &str, meta: &Meta) {
    draft.delete(keys::version(bucket.id, key, meta.version));
    if !meta.has_id {
        draft.delete(keys::null_version(bucket.id, key));
    }
}

/// Drops what a version holds.
fn discard(draft: &mut Draft<'_>, meta: &Meta, body: &Body, ledger: &mut Ledger) -> Result<(), KvError> {
    let extents = content::remove(draft, meta.inode, body)?;
    parts::forget(draft, meta)?;
    ledger.drop(draft, &extents)
}

/// Makes room for a new version or marker: what the bucket keeps moves here, what it does not is dropped. The
/// tree's entry stays for the caller to replace or remove.
pub fn displace(
    draft: &mut Draft<'_>,
    bucket: &Bucket,
    key: &str,
    current: Option<&(Meta, Body)>,
    ledger: &mut Ledger,
) -> Outcome<Change> {
    let mut change = Change::default();
    if let Some((meta, body)) = current {
        change.objects.removed = 1;
        let is_kept = bucket.versioning == Versioning::Enabled || meta.has_id;
        let finished = files::as_finished(draft, bucket, meta)?;
        if is_kept && let Some(version) = files::as_version(draft, bucket, &finished)? {
            change.object_bytes.removed = meta.charged_bytes();
            change.noncurrent.added = 1;
            change.noncurrent_bytes.added = version.size;
            push(draft, bucket, key, &version, body)?;
        } else {
            if is_kept {
                keep_copy(draft, bucket, key, &finished, body, ledger, &mut change)?;
            }
            change.object_bytes.removed = files::lose_name(draft, bucket, key, meta, body, ledger)?;
        }
    }
    if bucket.versioning == Versioning::Suspended {
        drop_null(draft, bucket, key, ledger, &mut change)?;
    }
    Ok(change)
}

fn drop_noncurrent(
    draft: &mut Draft<'_>,
    bucket: &Bucket,
    key: &str,
    old: &Found,
    ledger: &mut Ledger,
    change: &mut Change,
) -> Result<(), KvError> {
    take(draft, bucket, key, &old.meta);
    if !old.meta.is_marker {
        change.noncurrent.removed += 1;
        change.noncurrent_bytes.removed += old.meta.size;
        discard(draft, &old.meta, &old.body, ledger)?;
    }
    Ok(())
}

/// Makes the newest version here the current one, unless it is a marker. The tree must not have the key.
fn promote(draft: &mut Draft<'_>, bucket: &Bucket, key: &str, change: &mut Change) -> Result<(), KvError> {
    let Some(number) = newest(draft, bucket, key)? else { return Ok(()) };
    let Some(next) = noncurrent(draft, bucket, key, number)? else { return Ok(()) };
    if next.meta.is_marker {
        return Ok(());
    }
    take(draft, bucket, key, &next.meta);
    let size = next.meta.size;
    let place = names::locate(draft, bucket.root, key)?;
    place.put(draft, objects::encode(&next.meta, &next.body)?)?;
    let one = |flow: &mut Flow, plus, minus| {
        flow.added += plus;
        flow.removed += minus;
    };
    one(&mut change.objects, 1, 0);
    one(&mut change.object_bytes, size, 0);
    one(&mut change.noncurrent, 0, 1);
    one(&mut change.noncurrent_bytes, 0, size);
    Ok(())
}

/// Changes what is said of a version, in place.
fn edit(
    draft: &mut Draft<'_>,
    bucket: &str,
    key: &str,
    version: Option<VersionId>,
    change: impl FnOnce(&Bucket, &mut Meta) -> Outcome<()>,
) -> Outcome<Reply> {
    let bucket = buckets::get(draft, bucket)?;
    let Found { mut meta, body, place } = find(draft, &bucket, key, version)?;
    change(&bucket, &mut meta)?;
    draft.put(place, objects::encode(&meta, &body)?);
    let head: ObjectHead = meta.head(key);
    Ok(Reply::Version(VersionReply::Changed(head)))
}
