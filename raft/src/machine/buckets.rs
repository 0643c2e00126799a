//! Buckets, their documents, and what their tenants are charged for them.

use bytes::Bytes;
use makai_erasure::Scheme;
use serde::{Deserialize, Serialize};

use super::draft::{Draft, Outcome, all, expect, is_empty, keys_in, read, shift};
use super::keys::{self, Counter};
use super::kv::View;
use super::{accounts, files, journal, tenants, versions};
use crate::facts::bucket::Bucket;
use crate::facts::command::{Refusal, Reply};
use crate::facts::query::Answer;
use crate::facts::tenant::{Quota, TenantId};
use crate::facts::version::Versioning;

/// Bytes in a bucket's document: S3 allows 20 KB for a policy, 64 KB for CORS, 512 KB for replication.
pub const DOCUMENT_BYTES_MAX: usize = 512 * 1024;
const DOCUMENT_NAME_BYTES_MAX: usize = 64;
/// Buckets of one tenant, so that their listing stays one answer.
const TENANT_BUCKETS_MAX: usize = 10_000;

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    value: Bytes,
}

pub fn get(view: &dyn View, name: &str) -> Outcome<Bucket> {
    Ok(read(view, &keys::bucket(name))?.ok_or(Refusal::NoSuchBucket)?)
}

pub fn create(draft: &mut Draft<'_>, name: &str, tenant: TenantId, scheme: Option<Scheme>) -> Outcome<Reply> {
    check_name(name)?;
    if let Some(scheme) = scheme {
        Scheme::new(scheme.data, scheme.parity).map_err(|error| Refusal::Invalid(error.to_string()))?;
    }
    tenants::get(draft, tenant)?;
    if let Some(other) = read::<Bucket>(draft, &keys::bucket(name))? {
        let is_owned = other.tenant == tenant;
        return Err(if is_owned { Refusal::BucketOwned } else { Refusal::BucketTaken }.into());
    }
    let owned = keys::tenant_buckets(tenant);
    if keys_in(draft, &owned, &keys::end_of(&owned), TENANT_BUCKETS_MAX)?.len() == TENANT_BUCKETS_MAX {
        return Err(Refusal::Invalid(format!(
            "the tenant has {TENANT_BUCKETS_MAX} buckets, as many as may be"
        ))
        .into());
    }
    let bucket = Bucket {
        id: draft.next(Counter::Bucket)?,
        name: name.to_owned(),
        tenant,
        created_at: draft.now,
        scheme,
        object_count: 0,
        object_bytes: 0,
        root: draft.next(Counter::Inode)?,
        versioning: Versioning::default(),
        lock: None,
        noncurrent_count: 0,
        noncurrent_bytes: 0,
        mounts: 0,
        quota: Quota::default(),
    };
    draft.write(keys::bucket(name), &bucket)?;
    draft.write(keys::tenant_bucket(tenant, name), &bucket.id)?;
    Ok(Reply::Bucket(bucket))
}

/// Makes a bucket that belongs to the cluster's own rooms: its name is none that S3 allows, and no list shows it.
pub fn ensure_hidden(draft: &mut Draft<'_>, name: &str, tenant: TenantId) -> Outcome<()> {
    if draft.get(&keys::bucket(name))?.is_some() {
        return Ok(());
    }
    let bucket = Bucket {
        id: draft.next(Counter::Bucket)?,
        name: name.to_owned(),
        tenant,
        created_at: draft.now,
        scheme: None,
        object_count: 0,
        object_bytes: 0,
        root: draft.next(Counter::Inode)?,
        versioning: Versioning::default(),
        lock: None,
        noncurrent_count: 0,
        noncurrent_bytes: 0,
        mounts: 0,
        quota: Quota::default(),
    };
    draft.write(keys::bucket(name), &bucket)?;
    Ok(())
}

pub fn delete(draft: &mut Draft<'_>, name: &str) -> Outcome<Reply> {
    let bucket = get(draft, name)?;
    for held in [keys::entries(bucket.root), keys::versions(bucket.id), keys::uploads(bucket.id)] {
        if !is_empty(draft, &held)? {
            return Err(Refusal::BucketNotEmpty.into());
        }
    }
    let bucket = files::purge(draft, bucket)?;
    versions::forget_rules(draft, &bucket);
    journal::forget(draft, name)?;
    files::forget_all_names(draft, bucket.id)?;
    draft.delete_all(&keys::documents(bucket.id))?;
    draft.delete(keys::tenant_bucket(bucket.tenant, name));
    draft.delete(keys::bucket(name));
    Ok(Reply::Done)
}

pub fn set_document(
    draft: &mut Draft<'_>,
    name: &str,
    document: &str,
    value: Option<&Bytes>,
) -> Outcome<Reply> {
    if document.is_empty() || document.len() > DOCUMENT_NAME_BYTES_MAX {
        return Err(
            Refusal::Invalid(format!("a document's name has 1 to {DOCUMENT_NAME_BYTES_MAX} bytes")).into()
        );
    }
    let bucket = get(draft, name)?;
    let key = keys::document(bucket.id, document);
    match value {
        Some(value) if value.len() > DOCUMENT_BYTES_MAX => {
            return Err(Refusal::Invalid(format!("a document has at most {DOCUMENT_BYTES_MAX} bytes")).into());
        }
        Some(value) => draft.write(key, &Document { value: value.clone() })?,
        None => draft.delete(key),
    }
    Ok(Reply::Done)
}

pub fn document(view: &dyn View, name: &str, document: &str) -> Outcome<Answer> {
    let bucket = get(view, name)?;
    Ok(Answer::Document(read_document(view, bucket.id, document)?))
}

pub fn read_document(view: &dyn View, bucket: u64, document: &str) -> Outcome<Option<Bytes>> {
    let found = read::<Document>(view, &keys::document(bucket, document))?;
    Ok(found.map(|document| document.value))
}

pub fn list(view: &dyn View, tenant: Option<TenantId>) -> Outcome<Answer> {
    let Some(tenant) = tenant else { return Ok(Answer::Buckets(all(view, &keys::buckets())?)) };
    let owned = keys::tenant_buckets(tenant);
    let mut buckets = Vec::new();
    for key in keys_in(view, &owned, &keys::end_of(&owned), usize::MAX)? {
        let name = String::from_utf8_lossy(&key[owned.len()..]);
        buckets.push(expect(view, &keys::bucket(&name))?);
    }
    Ok(Answer::Buckets(buckets))
}

/// What comes into a bucket and leaves it: current objects and their bytes, other versions and theirs, bytes of parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    pub objects: Flow,
    pub object_bytes: Flow,
    pub part_bytes: Flow,
    pub noncurrent: Flow,
    pub noncurrent_bytes: Flow,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    pub added: u64,
    pub removed: u64,
}

impl Change {
    /// Both changes.
    pub fn add(&mut self, other: Self) {
        let flows = [
            (&mut self.objects, other.objects),
            (&mut self.object_bytes, other.object_bytes),
            (&mut self.part_bytes, other.part_bytes),
            (&mut self.noncurrent, other.noncurrent),
            (&mut self.noncurrent_bytes, other.noncurrent_bytes),
        ];
        for (flow, other) in flows {
            flow.added = flow.added.saturating_add(other.added);
            flow.removed = flow.removed.saturating_add(other.removed);
        }
    }
}

/// See [`Quota`].
pub fn set_quota(draft: &mut Draft<'_>, name: &str, quota: Quota) -> Outcome<Reply> {
    let bucket = Bucket { quota, ..get(draft, name)? };
    draft.write(keys::bucket(name), &bucket)?;
    Ok(Reply::Done)
}

/// Counts a change for the bucket and its tenant. Refused where the use of either would grow beyond its quota; parts of an
/// upload count for the bucket once they are an object.
pub fn account(draft: &mut Draft<'_>, mut bucket: Bucket, change: Change) -> Outcome<()> {
    let Change { objects, object_bytes, part_bytes, noncurrent, noncurrent_bytes } = change;
    let mut tenant = tenants::get(draft, bucket.tenant)?;
    let used_before = tenant.used_bytes;
    tenant.count_to(draft.now);
    let bytes = [object_bytes, part_bytes, noncurrent_bytes];
    let sum = |of: fn(&Flow) -> u64| bytes.iter().map(of).fold(0, u64::saturating_add);
    let (added, removed) = (sum(|flow| flow.added), sum(|flow| flow.removed));
    tenant.used_bytes = shift(used_before, added, removed, "used bytes")?;
    if let Some(quota_bytes) = tenant.quota_bytes
        && tenant.used_bytes > quota_bytes.max(used_before)
    {
        return Err(Refusal::QuotaExceeded { quota_bytes }.into());
    }
    if tenant.used_bytes > used_before {
        accounts::billing::may_grow(draft, tenant.id)?;
    }
    let (added, removed) =
        (objects.added.saturating_add(noncurrent.added), objects.removed.saturating_add(noncurrent.removed));
    let objects_before = tenant.used_objects;
    tenant.used_objects = shift(objects_before, added, removed, "used objects")?;
    let objects_only = Quota { bytes_max: None, ..tenant.quota() };
    if let Some(bound) = objects_only.broken((0, 0), (objects_before, tenant.used_objects)) {
        return Err(Refusal::QuotaReached(format!("the tenant: {bound}")).into());
    }
    let held = |bucket: &Bucket| {
        let bytes = bucket.object_bytes.saturating_add(bucket.noncurrent_bytes);
        (bytes, bucket.object_count.saturating_add(bucket.noncurrent_count))
    };
    let (bytes_before, count_before) = held(&bucket);
    bucket.object_count = shift(bucket.object_count, objects.added, objects.removed, "objects")?;
    bucket.object_bytes =
        shift(bucket.object_bytes, object_bytes.added, object_bytes.removed, "object bytes")?;
    bucket.noncurrent_count =
        shift(bucket.noncurrent_count, noncurrent.added, noncurrent.removed, "noncurrent versions")?;
    bucket.noncurrent_bytes =
        shift(bucket.noncurrent_bytes, noncurrent_bytes.added, noncurrent_bytes.removed, "noncurrent bytes")?;
    let (bytes_after, count_after) = held(&bucket);
    if let Some(bound) = bucket.quota.broken((bytes_before, bytes_after), (count_before, count_after)) {
        return Err(Refusal::QuotaReached(format!("bucket {}: {bound}", bucket.name)).into());
    }
    draft.write(keys::tenant(tenant.id), &tenant)?;
    draft.write(keys::bucket(&bucket.name), &bucket)?;
    Ok(())
}

/// S3's rules for names of buckets.
fn check_name(name: &str) -> Result<(), Refusal> {
    let why = if !(3..=63).contains(&name.len()) {
        "it has 3 to 63 characters"
    } else if !name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.')) {
        "its characters are a-z, 0-9, '-' and '.'"
    } else if name.split('.').any(|label| label.is_empty() || label.starts_with('-') || label.ends_with('-'))
    {
        "each of its labels begins and ends with a letter or digit"
    } else if name.split('.').count() == 4 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.')) {
        "it must not look like an IP address"
    } else if name.starts_with("xn--") || name.ends_with("-s3alias") || name.ends_with("--ol-s3") {
        "prefix xn-- and suffixes -s3alias, --ol-s3 are reserved"
    } else {
        return Ok(());
    };
    Err(Refusal::Invalid(format!("bucket name: {why}")))
}
