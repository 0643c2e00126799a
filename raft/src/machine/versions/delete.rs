//! Deletions.

use super::{Found, displace, drop_noncurrent, look_up, noncurrent, promote, push};
use crate::facts::bucket::Bucket;
use crate::facts::command::{Precondition, Refusal, Reply};
use crate::facts::object::ObjectHeaders;
use crate::facts::version::{Deleted, EXPIRE_MAX, Expired, Likeness, VersionId, VersionRefusal, Versioning};
use crate::machine::blobs::Ledger;
use crate::machine::buckets::{self, Change};
use crate::machine::content::Body;
use crate::machine::draft::{Draft, Outcome};
use crate::machine::files;
use crate::machine::journal;
use crate::machine::keys::Counter;
use crate::machine::objects::{self, Current, Meta, check_key, check_precondition};

/// Which version is to go, and on whose word.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked {
    pub version: Option<VersionId>,
    pub bypass_governance: bool,
    pub likeness: Likeness,
}

/// Deletes a version, or hides the current one as the bucket's versioning says.
pub fn delete(
    draft: &mut Draft<'_>,
    bucket: &str,
    key: &str,
    asked: Asked,
    precondition: &Precondition,
) -> Outcome<Deleted> {
    let bucket = buckets::get(draft, bucket)?;
    let Some(version) = asked.version else { return hide(draft, bucket, key, precondition, asked.likeness) };
    let mut deleted = Deleted { existed: false, version: Some(version), is_marker: false };
    let Some(found) = look_up(draft, &bucket, key, Some(version))? else { return Ok(deleted) };
    if found.meta.headers.lock.protects(draft.now, asked.bypass_governance) {
        return Err(Refusal::from(VersionRefusal::Locked).into());
    }
    check_precondition(precondition, Some(&found.meta.etag))?;
    check_likeness(asked.likeness, &found.meta)?;
    (deleted.existed, deleted.is_marker) = (true, found.meta.is_marker);
    remove(draft, bucket, key, &found)?;
    Ok(deleted)
}

/// Carries out what a lifecycle decided some time ago, as far as it still applies.
pub fn expire(draft: &mut Draft<'_>, bucket: &str, versions: &[Expired]) -> Outcome<Reply> {
    if versions.len() > EXPIRE_MAX {
        return Err(Refusal::Invalid(format!("{} versions; at most {EXPIRE_MAX}", versions.len())).into());
    }
    for Expired { key, number, is_current } in versions {
        let bucket = buckets::get(draft, bucket)?;
        if *is_current {
            let current = look_up(draft, &bucket, key, None)?;
            let is_it = |found: &Found| found.meta.version == *number && !found.meta.is_marker;
            if current.as_ref().is_some_and(is_it) {
                let name = bucket.name.clone();
                let hidden = hide(draft, bucket, key, &Precondition::default(), Likeness::default())?;
                journal::note_expired(draft, &name, key, hidden.version, hidden.is_marker)?;
            }
        } else if let Some(found) = noncurrent(draft, &bucket, key, *number)?
            && !found.meta.headers.lock.protects(draft.now, false)
        {
            let name = bucket.name.clone();
            let version = Some(found.meta.id());
            remove(draft, bucket, key, &found)?;
            journal::note_expired(draft, &name, key, version, false)?;
        }
    }
    Ok(Reply::Done)
}

/// A key that does not exist is deleted already, whatever the precondition says: so does S3.
fn hide(
    draft: &mut Draft<'_>,
    bucket: Bucket,
    key: &str,
    precondition: &Precondition,
    likeness: Likeness,
) -> Outcome<Deleted> {
    let current = objects::current(draft, &bucket, key)?;
    let is_versioned = bucket.versioning != Versioning::Unversioned;
    let existed = current.object.is_some();
    let is_conditional = !precondition.if_match.is_empty() || !likeness.is_none();
    if !existed && (!is_versioned || is_conditional) {
        // A marker is like nothing that a condition could ask for.
        let is_for_any = likeness.is_none() && precondition.if_match.iter().any(|etag| etag == "*");
        if is_conditional && !is_for_any && look_up(draft, &bucket, key, None)?.is_some() {
            return Err(Refusal::PreconditionFailed.into());
        }
        return Ok(Deleted::default());
    }
    let meta = current.object.as_ref().map(|(meta, _)| meta);
    check_precondition(precondition, meta.map(|meta| meta.etag.as_str()))?;
    if let Some(meta) = meta {
        check_likeness(likeness, meta)?;
    }
    if is_versioned {
        check_key(key)?;
    }
    let mut ledger = Ledger::new(bucket.tenant);
    let change = displace(draft, &bucket, key, current.object.as_ref(), &mut ledger)?;
    ledger.settle(draft)?;
    files::note_removal(draft, &bucket, &current.place)?;
    current.place.remove(draft)?;
    let mut deleted = Deleted { existed, version: None, is_marker: false };
    if is_versioned {
        let marker = push_marker(draft, &bucket, key)?;
        (deleted.version, deleted.is_marker) = (Some(marker), true);
    }
    buckets::account(draft, bucket, change)?;
    Ok(deleted)
}

fn check_likeness(likeness: Likeness, meta: &Meta) -> Result<(), Refusal> {
    let is_size = likeness.size.is_none_or(|size| size == meta.size);
    let is_time = likeness.modified_secs.is_none_or(|secs| secs == meta.modified_at.0 / 1000);
    if is_size && is_time { Ok(()) } else { Err(Refusal::PreconditionFailed) }
}

/// Hides a key of which the tree has nothing.
pub fn push_marker(draft: &mut Draft<'_>, bucket: &Bucket, key: &str) -> Outcome<VersionId> {
    let marker = marker(draft, bucket.versioning)?;
    push(draft, bucket, key, &marker, &Body::Empty)?;
    Ok(marker.id())
}

fn marker(draft: &mut Draft<'_>, versioning: Versioning) -> Outcome<Meta> {
    Ok(Meta {
        version: draft.next(Counter::Version)?,
        inode: 0,
        modified_at: draft.now,
        size: 0,
        etag: String::new(),
        headers: ObjectHeaders::default(),
        checksum: None,
        part_count: 0,
        has_id: versioning == Versioning::Enabled,
        is_marker: true,
        file: None,
    })
}

/// Takes out one version; where it was its key's newest, the next older one takes its place.
fn remove(draft: &mut Draft<'_>, bucket: Bucket, key: &str, found: &Found) -> Outcome<()> {
    let mut ledger = Ledger::new(bucket.tenant);
    let mut change = Change::default();
    let Current { place, object } = objects::current(draft, &bucket, key)?;
    match &object {
        Some((meta, body)) if meta.version == found.meta.version => {
            change.objects.removed = 1;
            change.object_bytes.removed = files::lose_name(draft, &bucket, key, meta, body, &mut ledger)?;
            files::note_removal(draft, &bucket, &place)?;
            place.remove(draft)?;
            promote(draft, &bucket, key, &mut change)?;
        }
        Some(_) => drop_noncurrent(draft, &bucket, key, found, &mut ledger, &mut change)?,
        None => {
            drop_noncurrent(draft, &bucket, key, found, &mut ledger, &mut change)?;
            promote(draft, &bucket, key, &mut change)?;
        }
    }
    ledger.settle(draft)?;
    buckets::account(draft, bucket, change)
}
