//! Versions of keys: made, copied, removed, read.

use serde::{Deserialize, Serialize};

use super::blobs::Ledger;
use super::buckets::{self, Change, Flow};
use super::content::{self, Body};
use super::draft::{self, Draft, Outcome, corrupt};
use super::keys::Counter;
use super::kv::{KvError, View};
use super::names::{self, Place};
use crate::facts::Timestamp;
use crate::facts::bucket::Bucket;
use crate::facts::command::{NewContent, Precondition, Refusal, Reply};
use crate::facts::object::{Checksum, Content, Extent, KEY_BYTES_MAX, ObjectHead, ObjectHeaders};
use crate::facts::query::{Answer, ObjectAnswer};

/// Bytes of all headers of one version together. The doors hold S3's own, lower limits.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// What an entry says of its object, before the [`Body`]: listings read no further.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub version: u64,
    pub inode: u64,
    pub modified_at: Timestamp,
    pub size: u64,
    pub etag: String,
    pub headers: ObjectHeaders,
    pub checksum: Option<Checksum>,
    pub part_count: u16,
}

impl Meta {
    fn head(self, key: &str) -> ObjectHead {
        ObjectHead {
            key: key.to_owned(),
            version: self.version,
            inode: self.inode,
            modified_at: self.modified_at,
            size: self.size,
            etag: self.etag,
            headers: self.headers,
            checksum: self.checksum,
            part_count: self.part_count,
        }
    }
}

fn encode(meta: &Meta, body: &Body) -> Result<Vec<u8>, KvError> {
    let mut bytes = draft::encode(meta)?;
    draft::append(&mut bytes, body)?;
    Ok(bytes)
}

fn decode(path: &[u8], record: &[u8]) -> Result<(Meta, Body), KvError> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(draft::body_of(path, record)?);
    let failed = |error: rmp_serde::decode::Error| corrupt(&error.to_string(), path);
    let meta = Meta::deserialize(&mut reader).map_err(failed)?;
    let body = Body::deserialize(&mut reader).map_err(failed)?;
    Ok((meta, body))
}

/// The head of the object at `path`, its content left unread.
pub fn decode_head(path: &[u8], record: &[u8]) -> Result<ObjectHead, KvError> {
    let meta: Meta = draft::decode(path, record)?;
    match str::from_utf8(path) {
        Ok(key) => Ok(meta.head(key)),
        Err(_) => Err(corrupt("a name that is not UTF-8", path)),
    }
}

/// A key's place, and its current version.
pub struct Current {
    place: Place,
    pub object: Option<(Meta, Body)>,
}

pub fn current(view: &dyn View, bucket: &Bucket, key: &str) -> Result<Current, KvError> {
    let place = names::locate(view, bucket.root, key)?;
    let object = place.record.as_ref().map(|record| decode(key.as_bytes(), record)).transpose()?;
    Ok(Current { place, object })
}

pub fn check_key(key: &str) -> Result<(), Refusal> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Refusal::Invalid(format!("a key has 1 to {KEY_BYTES_MAX} bytes")));
    }
    Ok(())
}

pub fn check_headers(headers: &ObjectHeaders) -> Result<(), Refusal> {
    let plain = [
        &headers.content_type,
        &headers.content_encoding,
        &headers.content_disposition,
        &headers.content_language,
        &headers.cache_control,
        &headers.expires,
        &headers.storage_class,
        &headers.website_redirect,
        &headers.tagging,
        &headers.acl,
        &headers.encryption,
    ];
    let plain: usize = plain.into_iter().flatten().map(String::len).sum();
    let user: usize = headers.user.iter().map(|(name, value)| name.len() + value.len()).sum();
    if plain + user > HEADER_BYTES_MAX {
        return Err(Refusal::Invalid(format!(
            "headers of {} bytes; at most {HEADER_BYTES_MAX}",
            plain + user
        )));
    }
    Ok(())
}

/// Whether a new version may take the place of `current`. That a named one is missing is said as S3 says it.
pub fn check_replaces(precondition: &Precondition, current: &Current) -> Result<(), Refusal> {
    if current.object.is_none() && !precondition.if_match.is_empty() {
        return Err(Refusal::NoSuchKey);
    }
    check_precondition(precondition, current)
}

fn check_precondition(precondition: &Precondition, current: &Current) -> Result<(), Refusal> {
    let etag = current.object.as_ref().map(|(meta, _)| meta.etag.as_str());
    let names_it = |etags: &[String]| {
        etag.is_some_and(|etag| etags.iter().any(|given| given == "*" || unquoted(given) == unquoted(etag)))
    };
    let is_match = precondition.if_match.is_empty() || names_it(&precondition.if_match);
    if is_match && !names_it(&precondition.if_none_match) { Ok(()) } else { Err(Refusal::PreconditionFailed) }
}

pub fn unquoted(etag: &str) -> &str {
    etag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(etag)
}

/// A version to be made, and what its making changes elsewhere.
pub struct NewVersion<'a> {
    pub size: u64,
    pub etag: String,
    pub headers: ObjectHeaders,
    pub checksum: Option<Checksum>,
    pub part_count: u16,
    pub content: NewBody<'a>,
    /// References of the new content are added already; those of the replaced version are dropped here.
    pub ledger: Ledger,
    /// Bytes of parts that go with it.
    pub part_bytes_removed: u64,
}

pub enum NewBody<'a> {
    Given(&'a Content),
    Extents(Vec<Extent>),
    /// Inline, or none.
    Copied(Body),
}

/// Makes a version the key's current one.
pub fn replace(
    draft: &mut Draft<'_>,
    bucket: Bucket,
    key: &str,
    current: Current,
    new: NewVersion<'_>,
) -> Outcome<ObjectHead> {
    let mut ledger = new.ledger;
    let (mut objects_removed, mut bytes_removed) = (0, 0);
    if let Some((old, body)) = &current.object {
        (objects_removed, bytes_removed) = (1, old.size);
        let extents = content::remove(draft, old.inode, body)?;
        ledger.drop(draft, &extents)?;
    }
    ledger.settle(draft)?;
    let meta = Meta {
        version: draft.next(Counter::Version)?,
        inode: draft.next(Counter::Inode)?,
        modified_at: draft.now,
        size: new.size,
        etag: new.etag,
        headers: new.headers,
        checksum: new.checksum,
        part_count: new.part_count,
    };
    let body = match new.content {
        NewBody::Given(content) => content::store(draft, meta.inode, content)?,
        NewBody::Extents(extents) => content::store_extents(draft, meta.inode, extents)?,
        NewBody::Copied(body) => body,
    };
    current.place.put(draft, encode(&meta, &body)?)?;
    let change = Change {
        objects: Flow { added: 1, removed: objects_removed },
        object_bytes: Flow { added: meta.size, removed: bytes_removed },
        part_bytes: Flow { added: 0, removed: new.part_bytes_removed },
    };
    buckets::account(draft, bucket, change)?;
    Ok(meta.head(key))
}

pub fn put(
    draft: &mut Draft<'_>,
    bucket: &str,
    key: &str,
    headers: &ObjectHeaders,
    new: &NewContent,
    precondition: &Precondition,
) -> Outcome<Reply> {
    check_key(key)?;
    check_headers(headers)?;
    let bucket = buckets::get(draft, bucket)?;
    let current = current(draft, &bucket, key)?;
    check_replaces(precondition, &current)?;
    content::check(new, &bucket)?;
    let mut ledger = Ledger::new(bucket.tenant);
    ledger.admit(draft, &new.blobs)?;
    if let Content::Extents(extents) = &new.content {
        ledger.add(draft, extents)?;
    }
    let version = NewVersion {
        size: new.size,
        etag: new.etag.clone(),
        headers: headers.clone(),
        checksum: new.checksum.clone(),
        part_count: 0,
        content: NewBody::Given(&new.content),
        ledger,
        part_bytes_removed: 0,
    };
    Ok(Reply::Object(replace(draft, bucket, key, current, version)?))
}

/// A key that does not exist is deleted already, whatever the precondition says: so does S3.
pub fn delete(draft: &mut Draft<'_>, bucket: &str, key: &str, precondition: &Precondition) -> Outcome<Reply> {
    let bucket = buckets::get(draft, bucket)?;
    let current = current(draft, &bucket, key)?;
    let Some((meta, body)) = &current.object else { return Ok(Reply::Deleted { existed: false }) };
    check_precondition(precondition, &current)?;
    let mut ledger = Ledger::new(bucket.tenant);
    let extents = content::remove(draft, meta.inode, body)?;
    ledger.drop(draft, &extents)?;
    ledger.settle(draft)?;
    let change = Change {
        objects: Flow { added: 0, removed: 1 },
        object_bytes: Flow { added: 0, removed: meta.size },
        part_bytes: Flow::default(),
    };
    buckets::account(draft, bucket, change)?;
    current.place.remove(draft)?;
    Ok(Reply::Deleted { existed: true })
}

/// Where a copy comes from, and goes to.
pub struct Copy<'a> {
    pub from_bucket: &'a str,
    pub from_key: &'a str,
    pub from_version: u64,
    pub bucket: &'a str,
    pub key: &'a str,
}

pub fn copy(
    draft: &mut Draft<'_>,
    copy: &Copy<'_>,
    headers: Option<&ObjectHeaders>,
    precondition: &Precondition,
) -> Outcome<Reply> {
    check_key(copy.key)?;
    headers.map_or(Ok(()), check_headers)?;
    let from_bucket = buckets::get(draft, copy.from_bucket)?;
    let bucket = buckets::get(draft, copy.bucket)?;
    if from_bucket.tenant != bucket.tenant {
        return Err(
            Refusal::Invalid("a copy stays with one tenant; send the bytes instead".to_owned()).into()
        );
    }
    let (meta, body) = current(draft, &from_bucket, copy.from_key)?.object.ok_or(Refusal::NoSuchKey)?;
    if meta.version != copy.from_version {
        return Err(Refusal::SourceChanged.into());
    }
    let current = current(draft, &bucket, copy.key)?;
    check_replaces(precondition, &current)?;
    let mut ledger = Ledger::new(bucket.tenant);
    let extents = content::extents(draft, meta.inode, &body)?;
    ledger.add(draft, &extents)?;
    let version = NewVersion {
        size: meta.size,
        etag: meta.etag,
        headers: headers.cloned().unwrap_or(meta.headers),
        checksum: meta.checksum,
        part_count: meta.part_count,
        content: if extents.is_empty() { NewBody::Copied(body) } else { NewBody::Extents(extents) },
        ledger,
        part_bytes_removed: 0,
    };
    Ok(Reply::Object(replace(draft, bucket, copy.key, current, version)?))
}

pub fn set_tagging(
    draft: &mut Draft<'_>,
    bucket: &str,
    key: &str,
    tagging: Option<&String>,
) -> Outcome<Reply> {
    let bucket = buckets::get(draft, bucket)?;
    let mut current = current(draft, &bucket, key)?;
    let (mut meta, body) = current.object.take().ok_or(Refusal::NoSuchKey)?;
    meta.headers.tagging = tagging.cloned();
    check_headers(&meta.headers)?;
    current.place.put(draft, encode(&meta, &body)?)?;
    Ok(Reply::Done)
}

pub fn set_acl(draft: &mut Draft<'_>, bucket: &str, key: &str, acl: Option<&String>) -> Outcome<Reply> {
    let bucket = buckets::get(draft, bucket)?;
    let mut current = current(draft, &bucket, key)?;
    let (mut meta, body) = current.object.take().ok_or(Refusal::NoSuchKey)?;
    meta.headers.acl = acl.cloned();
    check_headers(&meta.headers)?;
    current.place.put(draft, encode(&meta, &body)?)?;
    Ok(Reply::Done)
}

pub fn get(view: &dyn View, bucket: &str, key: &str, from_offset: u64, extents_max: u32) -> Outcome<Answer> {
    let bucket = buckets::get(view, bucket)?;
    let (meta, body) = current(view, &bucket, key)?.object.ok_or(Refusal::NoSuchKey)?;
    let (extents, is_truncated) = content::resolve(view, meta.inode, &body, from_offset, extents_max)?;
    let content = match body {
        Body::Empty => Content::Empty,
        Body::Inline { blob, wrapped_key, sealed } => Content::Inline { blob, wrapped_key, sealed },
        Body::Extents(_) | Body::Chunked => Content::Extents(Vec::new()),
    };
    let head = meta.head(key);
    Ok(Answer::Object(ObjectAnswer { head, tenant: bucket.tenant, content, extents, is_truncated }))
}
