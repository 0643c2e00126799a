//! Current versions of keys: made, copied, read.

use serde::{Deserialize, Serialize};

use super::blobs::Ledger;
use super::buckets;
use super::content::{self, Body};
use super::draft::{self, Draft, Outcome, corrupt};
use super::files;
use super::keys::Counter;
use super::kv::{KvError, View};
use super::names::{self, Place};
use super::versions;
use crate::facts::Timestamp;
use crate::facts::bucket::Bucket;
use crate::facts::command::{NewContent, Precondition, Refusal, Reply};
use crate::facts::files::FileAttributes;
use crate::facts::object::{Checksum, Content, Extent, KEY_BYTES_MAX, ObjectHead, ObjectHeaders, PARTS_MAX};
use crate::facts::query::{Answer, ObjectAnswer};
use crate::facts::version::{CompletedPart, ObjectLock, VersionId, Versioning};

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
    /// Whether it was made while versioning was enabled.
    #[serde(default)]
    pub has_id: bool,
    /// A delete marker: says only that the key is deleted. Never in the tree.
    #[serde(default)]
    pub is_marker: bool,
    /// Once a mount has made or changed it: then it stands under its inode, and its entries link there.
    #[serde(default)]
    pub file: Option<Box<FileAttributes>>,
}

impl Meta {
    pub fn id(&self) -> VersionId {
        if self.has_id { VersionId::Number(self.version) } else { VersionId::Null }
    }

    /// Bytes that its tenant is charged for.
    pub fn charged_bytes(&self) -> u64 {
        self.size - self.file.as_ref().map_or(0, |file| file.hole_bytes.min(self.size))
    }

    pub fn head(self, key: &str) -> ObjectHead {
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
            has_version_id: self.has_id,
            file: self.file,
        }
    }
}

pub fn encode(meta: &Meta, body: &Body) -> Result<Vec<u8>, KvError> {
    let mut bytes = draft::encode(meta)?;
    draft::append(&mut bytes, body)?;
    Ok(bytes)
}

pub fn decode(path: &[u8], record: &[u8]) -> Result<(Meta, Body), KvError> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(draft::body_of(path, record)?);
    let failed = |error: rmp_serde::decode::Error| corrupt(&error.to_string(), path);
    let meta = Meta::deserialize(&mut reader).map_err(failed)?;
    let body = Body::deserialize(&mut reader).map_err(failed)?;
    Ok((meta, body))
}

/// The head of the object at `path`, its content left unread.
pub fn head_of(view: &dyn View, path: &[u8], record: &[u8]) -> Result<ObjectHead, KvError> {
    let meta: Meta = match files::linked(record) {
        Some(inode) => draft::expect(view, &files::keys::node(inode))?,
        None => draft::decode(path, record)?,
    };
    match str::from_utf8(path) {
        Ok(key) => Ok(meta.head(key)),
        Err(_) => Err(corrupt("a name that is not UTF-8", path)),
    }
}

/// A key's place, and its current version.
pub struct Current {
    pub place: Place,
    pub object: Option<(Meta, Body)>,
}

pub fn current(view: &dyn View, bucket: &Bucket, key: &str) -> Result<Current, KvError> {
    let place = names::locate(view, bucket.root, key)?;
    let object = match &place.record {
        Some(record) => Some(files::load(view, key.as_bytes(), record)?),
        None => None,
    };
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
    check_precondition(precondition, current.object.as_ref().map(|(meta, _)| meta.etag.as_str()))
}

/// `etag`: of what is there.
pub fn check_precondition(precondition: &Precondition, etag: Option<&str>) -> Result<(), Refusal> {
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
    /// What it is completed from; none where it is put whole.
    pub parts: Vec<CompletedPart>,
    pub content: NewBody<'a>,
    /// References of the new content are added already; those of a version that goes are dropped here.
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
    versions::check_lock(&bucket, &new.headers.lock)?;
    let mut ledger = new.ledger;
    let mut change = versions::displace(draft, &bucket, key, current.object.as_ref(), &mut ledger)?;
    ledger.settle(draft)?;
    files::note_put(draft, &bucket, &current.place)?;
    let mut headers = new.headers;
    headers.lock = versions::complete_lock(&bucket, headers.lock, draft.now);
    let meta = Meta {
        version: draft.next(Counter::Version)?,
        inode: draft.next(Counter::Inode)?,
        modified_at: draft.now,
        size: new.size,
        etag: new.etag,
        headers,
        checksum: new.checksum,
        part_count: u16::try_from(new.parts.len()).unwrap_or(PARTS_MAX),
        has_id: bucket.versioning == Versioning::Enabled,
        is_marker: false,
        file: None,
    };
    let body = match new.content {
        NewBody::Given(content) => content::store(draft, meta.inode, content)?,
        NewBody::Extents(extents) => content::store_extents(draft, meta.inode, extents)?,
        NewBody::Copied(body) => body,
    };
    versions::store_parts(draft, meta.inode, &new.parts)?;
    current.place.put(draft, encode(&meta, &body)?)?;
    change.objects.added = 1;
    change.object_bytes.added = meta.size;
    change.part_bytes.removed = new.part_bytes_removed;
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
    versions::check_new_lock(&bucket, &headers.lock, draft.now)?;
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
        parts: Vec::new(),
        content: NewBody::Given(&new.content),
        ledger,
        part_bytes_removed: 0,
    };
    Ok(Reply::Object(replace(draft, bucket, key, current, version)?))
}

pub fn delete(draft: &mut Draft<'_>, bucket: &str, key: &str, precondition: &Precondition) -> Outcome<Reply> {
    let deleted = versions::delete(draft, bucket, key, versions::Asked::default(), precondition)?;
    Ok(Reply::Deleted { existed: deleted.existed })
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
    let asked = headers.map_or_else(ObjectLock::default, |headers| headers.lock);
    versions::check_new_lock(&bucket, &asked, draft.now)?;
    let (meta, body) = source(draft, &from_bucket, copy)?;
    let current = current(draft, &bucket, copy.key)?;
    check_replaces(precondition, &current)?;
    let mut ledger = Ledger::new(bucket.tenant);
    let extents = content::extents(draft, meta.inode, &body)?;
    ledger.add(draft, &extents)?;
    let kept = || ObjectHeaders { lock: ObjectLock::default(), is_replica: false, ..meta.headers.clone() };
    let version = NewVersion {
        size: meta.size,
        etag: meta.etag.clone(),
        headers: headers.cloned().unwrap_or_else(kept),
        checksum: meta.checksum.clone(),
        parts: versions::copy_parts(draft, &meta)?,
        content: if extents.is_empty() { NewBody::Copied(body) } else { NewBody::Extents(extents) },
        ledger,
        part_bytes_removed: 0,
    };
    Ok(Reply::Object(replace(draft, bucket, copy.key, current, version)?))
}

/// The version to copy, wherever it stands.
fn source(draft: &Draft<'_>, bucket: &Bucket, copy: &Copy<'_>) -> Outcome<(Meta, Body)> {
    let current = current(draft, bucket, copy.from_key)?.object;
    let is_versioned = bucket.versioning != Versioning::Unversioned;
    match current {
        Some((meta, body)) if meta.version == copy.from_version => Ok((meta, body)),
        current if is_versioned => {
            match versions::noncurrent(draft, bucket, copy.from_key, copy.from_version)? {
                Some(found) if !found.meta.is_marker => Ok((found.meta, found.body)),
                _ if current.is_some() => Err(Refusal::SourceChanged.into()),
                _ => Err(Refusal::NoSuchKey.into()),
            }
        }
        Some(_) => Err(Refusal::SourceChanged.into()),
        None => Err(Refusal::NoSuchKey.into()),
    }
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
    let record = encode(&meta, &body)?;
    if meta.file.is_some() {
        draft.put(files::keys::node(meta.inode), record);
    } else {
        current.place.put(draft, record)?;
    }
    Ok(Reply::Done)
}

pub fn get(view: &dyn View, bucket: &str, key: &str, from_offset: u64, extents_max: u32) -> Outcome<Answer> {
    let bucket = buckets::get(view, bucket)?;
    let (meta, body) = current(view, &bucket, key)?.object.ok_or(Refusal::NoSuchKey)?;
    describe(view, &bucket, key, meta, body, from_offset, extents_max)
}

/// What a reader needs to know of a version.
pub fn describe(
    view: &dyn View,
    bucket: &Bucket,
    key: &str,
    meta: Meta,
    body: Body,
    from_offset: u64,
    extents_max: u32,
) -> Outcome<Answer> {
    let (extents, is_truncated) = content::resolve(view, meta.inode, &body, from_offset, extents_max)?;
    let content = match body {
        Body::Empty => Content::Empty,
        Body::Inline { blob, wrapped_key, sealed } => Content::Inline { blob, wrapped_key, sealed },
        Body::Extents(_) | Body::Chunked => Content::Extents(Vec::new()),
    };
    let (head, tenant, versioning) = (meta.head(key), bucket.tenant, bucket.versioning);
    Ok(Answer::Object(ObjectAnswer { head, tenant, content, extents, is_truncated, versioning }))
}
