//! Multipart uploads: begun, filled part by part, completed or aborted.
//!
//! A part holds references to its blobs as a version does. Completing moves them to the new version; parts
//! that it leaves out are dropped. Parts are never inline: doors write even a small part as a blob, and an
//! empty one as [`Content::Empty`].

use serde::{Deserialize, Serialize};

use super::blobs::Ledger;
use super::buckets::{self, Change, Flow};
use super::content::{self, Body};
use super::draft::{Draft, Outcome, all, expect, keys_in, read, scan_records};
use super::keys::{self, Counter};
use super::kv::{KvError, View};
use super::objects::{self, NewBody, NewVersion, check_headers, check_key, unquoted};
use super::{page, versions};
use crate::facts::Timestamp;
use crate::facts::bucket::Bucket;
use crate::facts::command::{NewContent, Precondition, Refusal, Reply};
use crate::facts::object::{
    Checksum, Content, Extent, OBJECT_BYTES_MAX, ObjectHead, PART_BYTES_MIN, PARTS_MAX, Part, Upload,
};
use crate::facts::query::Answer;
use crate::facts::version::CompletedPart;

/// How long a completed upload answers a repeated completion.
const COMPLETED_KEPT_MS: u64 = 60 * 60 * 1000;
/// Completed uploads that one completion forgets at most: more than it adds, so that they stay few.
const COMPLETED_SWEEP_MAX: usize = 4;
const UPLOAD_ID_BYTES_MAX: usize = 128;
/// Extents of one part: the 5 GiB of S3's largest, in blobs of 5 MiB and more.
const PART_EXTENTS_MAX: usize = 1024;

/// Finds an upload by its id.
#[derive(Debug, Serialize, Deserialize)]
struct UploadRef {
    number: u64,
    key: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct PartRecord {
    part: Part,
    /// Its chunks' owner.
    inode: u64,
    body: Body,
}

#[derive(Debug, Serialize, Deserialize)]
struct Completed {
    head: ObjectHead,
}

fn find(view: &dyn View, bucket: &Bucket, key: &str, id: &str) -> Outcome<u64> {
    match read::<UploadRef>(view, &keys::upload_id(bucket.id, id))? {
        Some(upload) if upload.key == key => Ok(upload.number),
        _ => Err(Refusal::NoSuchUpload.into()),
    }
}

/// The upload starts now, whatever the door says.
pub fn create(draft: &mut Draft<'_>, bucket: &str, upload: &Upload) -> Outcome<Reply> {
    check_key(&upload.key)?;
    check_headers(&upload.headers)?;
    if upload.id.is_empty() || upload.id.len() > UPLOAD_ID_BYTES_MAX {
        return Err(Refusal::Invalid(format!("an upload's id has 1 to {UPLOAD_ID_BYTES_MAX} bytes")).into());
    }
    if upload.checksum_algorithm.as_ref().is_some_and(|algorithm| algorithm.len() > UPLOAD_ID_BYTES_MAX) {
        return Err(Refusal::Invalid("the checksum algorithm's name is too long".to_owned()).into());
    }
    let bucket = buckets::get(draft, bucket)?;
    versions::check_new_lock(&bucket, &upload.headers.lock, draft.now)?;
    let by_id = keys::upload_id(bucket.id, &upload.id);
    if draft.get(&by_id)?.is_some() || draft.get(&keys::completed(bucket.id, &upload.id))?.is_some() {
        return Err(Refusal::AlreadyExists("an upload of this id".to_owned()).into());
    }
    let number = draft.next(Counter::Upload)?;
    let started = Upload { started_at: draft.now, ..upload.clone() };
    draft.write(by_id, &UploadRef { number, key: upload.key.clone() })?;
    draft.write(keys::upload(bucket.id, &upload.key, number), &started)?;
    Ok(Reply::Done)
}

pub fn put_part(
    draft: &mut Draft<'_>,
    bucket: &str,
    key: &str,
    upload_id: &str,
    number: u16,
    new: &NewContent,
) -> Outcome<Reply> {
    if !(1..=PARTS_MAX).contains(&number) {
        return Err(Refusal::Invalid(format!("part {number}: parts have numbers 1 to {PARTS_MAX}")).into());
    }
    let bucket = buckets::get(draft, bucket)?;
    let upload = find(draft, &bucket, key, upload_id)?;
    content::check(new, &bucket)?;
    let extents: Vec<Extent> = match &new.content {
        Content::Empty => Vec::new(),
        Content::Inline { .. } => {
            return Err(Refusal::Invalid("a part is never inline; write it as a blob".to_owned()).into());
        }
        Content::Extents(extents) if extents.len() > PART_EXTENTS_MAX => {
            let why = format!("a part of {} extents; at most {PART_EXTENTS_MAX}", extents.len());
            return Err(Refusal::Invalid(why).into());
        }
        Content::Extents(extents) => {
            extents.iter().map(|extent| Extent { part: number, ..extent.clone() }).collect()
        }
    };
    let mut ledger = Ledger::new(bucket.tenant);
    ledger.admit(draft, &new.blobs)?;
    ledger.add(draft, &extents)?;
    let place = keys::part(upload, number);
    let mut bytes_removed = 0;
    if let Some(old) = read::<PartRecord>(draft, &place)? {
        bytes_removed = old.part.size;
        let extents = content::remove(draft, old.inode, &old.body)?;
        ledger.drop(draft, &extents)?;
    }
    ledger.settle(draft)?;
    let part = Part {
        number,
        size: new.size,
        etag: new.etag.clone(),
        modified_at: draft.now,
        checksum: new.checksum.clone(),
    };
    let inode = draft.next(Counter::Inode)?;
    let body = content::store_extents(draft, inode, extents)?;
    draft.write(place, &PartRecord { part: part.clone(), inode, body })?;
    let part_bytes = Flow { added: new.size, removed: bytes_removed };
    buckets::account(draft, bucket, Change { part_bytes, ..Change::default() })?;
    Ok(Reply::Part(part))
}

/// What a completion asks for.
pub struct Complete<'a> {
    pub bucket: &'a str,
    pub key: &'a str,
    pub upload_id: &'a str,
    /// Number and ETag.
    pub parts: &'a [(u16, String)],
    pub etag: &'a str,
    pub checksum: Option<&'a Checksum>,
    pub precondition: &'a Precondition,
}

/// Completing again, soon after, answers what the first completion made.
pub fn complete(draft: &mut Draft<'_>, asked: &Complete<'_>) -> Outcome<Reply> {
    let bucket = buckets::get(draft, asked.bucket)?;
    let completed = keys::completed(bucket.id, asked.upload_id);
    if let Some(Completed { head }) = read(draft, &completed)?
        && head.key == asked.key
        && draft.now.millis_since(head.modified_at) <= COMPLETED_KEPT_MS
    {
        return Ok(Reply::Object(head));
    }
    let number = find(draft, &bucket, asked.key, asked.upload_id)?;
    let upload: Upload = expect(draft, &keys::upload(bucket.id, asked.key, number))?;
    content::check_etag(asked.etag)?;
    let mut held = parts_of(draft, number)?;
    let size = check_parts(&held, asked.parts)?;
    let current = objects::current(draft, &bucket, asked.key)?;
    objects::check_replaces(asked.precondition, &current)?;

    let (mut extents, mut parts) = (Vec::new(), Vec::with_capacity(asked.parts.len()));
    for (part, _) in asked.parts {
        let position = held.binary_search_by_key(part, |held| held.part.number);
        let used = &held[position.map_err(|_| Refusal::InvalidPart(*part))?];
        extents.extend(content::extents(draft, used.inode, &used.body)?);
        let Part { number, size, checksum, .. } = &used.part;
        parts.push(CompletedPart { number: *number, size: *size, checksum: checksum.clone() });
    }
    if extents.len() > content::EXTENTS_MAX {
        let why = format!("{} extents; at most {}", extents.len(), content::EXTENTS_MAX);
        return Err(Refusal::Invalid(why).into());
    }
    let mut ledger = Ledger::new(bucket.tenant);
    // What the chosen parts refer to, the version refers to from now on: no blob's record changes by that.
    let is_chosen =
        |part: &Part| asked.parts.binary_search_by_key(&part.number, |(number, _)| *number).is_ok();
    let part_bytes_removed = remove_parts(draft, number, &mut held, &mut ledger, is_chosen)?;
    forget_upload(draft, &bucket, &upload, number);
    let version = NewVersion {
        size,
        etag: asked.etag.to_owned(),
        headers: upload.headers,
        checksum: asked.checksum.cloned(),
        parts,
        content: NewBody::Extents(extents),
        ledger,
        part_bytes_removed,
    };
    let bucket_id = bucket.id;
    let head = objects::replace(draft, bucket, asked.key, current, version)?;
    sweep_completed(draft)?;
    draft.write(completed, &Completed { head: head.clone() })?;
    let at = keys::completed_at(draft.now, bucket_id, asked.upload_id);
    draft.write(at, &(bucket_id, asked.upload_id))?;
    Ok(Reply::Object(head))
}

/// S3's rules for the list of parts; returns the object's size.
fn check_parts(held: &[PartRecord], asked: &[(u16, String)]) -> Result<u64, Refusal> {
    if asked.is_empty() {
        return Err(Refusal::Invalid("a completion names at least one part".to_owned()));
    }
    if !asked.is_sorted_by(|(one, _), (next, _)| one < next) {
        return Err(Refusal::InvalidPartOrder);
    }
    let mut sizes = Vec::with_capacity(asked.len());
    for (number, etag) in asked {
        match held.binary_search_by_key(number, |held| held.part.number) {
            Ok(found) if unquoted(&held[found].part.etag) == unquoted(etag) => {
                sizes.push(held[found].part.size)
            }
            _ => return Err(Refusal::InvalidPart(*number)),
        }
    }
    for (&(number, _), &size) in asked.iter().zip(&sizes).take(asked.len() - 1) {
        if size < PART_BYTES_MIN {
            return Err(Refusal::PartTooSmall { number, size });
        }
    }
    let size = sizes.iter().fold(0, |sum: u64, &size| sum.saturating_add(size));
    if size > OBJECT_BYTES_MAX { Err(Refusal::TooLarge(size)) } else { Ok(size) }
}

pub fn abort(draft: &mut Draft<'_>, bucket: &str, key: &str, upload_id: &str) -> Outcome<Reply> {
    let bucket = buckets::get(draft, bucket)?;
    let number = find(draft, &bucket, key, upload_id)?;
    let upload: Upload = expect(draft, &keys::upload(bucket.id, key, number))?;
    let mut held = parts_of(draft, number)?;
    let mut ledger = Ledger::new(bucket.tenant);
    let removed = remove_parts(draft, number, &mut held, &mut ledger, |_| false)?;
    ledger.settle(draft)?;
    forget_upload(draft, &bucket, &upload, number);
    let part_bytes = Flow { added: 0, removed };
    buckets::account(draft, bucket, Change { part_bytes, ..Change::default() })?;
    Ok(Reply::Done)
}

fn parts_of(view: &dyn View, upload: u64) -> Result<Vec<PartRecord>, KvError> {
    all(view, &keys::parts(upload))
}

/// Removes the parts, and drops the references of those that are not `kept_on`; returns the bytes of all.
fn remove_parts(
    draft: &mut Draft<'_>,
    upload: u64,
    held: &mut Vec<PartRecord>,
    ledger: &mut Ledger,
    kept_on: impl Fn(&Part) -> bool,
) -> Result<u64, KvError> {
    let mut bytes: u64 = 0;
    for part in held.drain(..) {
        bytes = bytes.saturating_add(part.part.size);
        let extents = content::remove(draft, part.inode, &part.body)?;
        if !kept_on(&part.part) {
            ledger.drop(draft, &extents)?;
        }
    }
    draft.delete_all(&keys::parts(upload))?;
    Ok(bytes)
}

fn forget_upload(draft: &mut Draft<'_>, bucket: &Bucket, upload: &Upload, number: u64) {
    draft.delete(keys::upload(bucket.id, &upload.key, number));
    draft.delete(keys::upload_id(bucket.id, &upload.id));
}

fn sweep_completed(draft: &mut Draft<'_>) -> Result<(), KvError> {
    let oldest = keys::completed_before(Timestamp(0));
    let end = keys::completed_before(Timestamp(draft.now.0.saturating_sub(COMPLETED_KEPT_MS)));
    for key in keys_in(draft, &oldest, &end, COMPLETED_SWEEP_MAX)? {
        let (bucket, id): (u64, String) = expect(draft, &key)?;
        draft.delete(keys::completed(bucket, &id));
        draft.delete(key);
    }
    Ok(())
}

pub fn get(view: &dyn View, bucket: &str, key: &str, upload_id: &str) -> Outcome<Answer> {
    let bucket = buckets::get(view, bucket)?;
    let number = find(view, &bucket, key, upload_id)?;
    Ok(Answer::Upload(expect(view, &keys::upload(bucket.id, key, number))?))
}

/// `after`: key and id of the last upload shown; without an id, all of that key are passed over. An upload that
/// has gone since is no place to go on from: its key is shown from the start.
pub fn list(
    view: &dyn View,
    bucket: &str,
    prefix: &str,
    after: Option<&(String, String)>,
    entries_max: u32,
) -> Outcome<Answer> {
    let bucket = buckets::get(view, bucket)?;
    let below = keys::uploads_below(bucket.id, prefix);
    let mut from = below.clone();
    if let Some((key, id)) = after {
        let resume = if id.is_empty() {
            keys::end_of(&keys::uploads_of(bucket.id, key))
        } else {
            match read::<UploadRef>(view, &keys::upload_id(bucket.id, id))? {
                Some(upload) if upload.key == *key => {
                    keys::after(&keys::upload(bucket.id, key, upload.number))
                }
                _ => keys::uploads_of(bucket.id, key),
            }
        };
        from = from.max(resume);
    }
    let (uploads, is_truncated) = take_page(view, &from, &keys::end_of(&below), entries_max)?;
    Ok(Answer::Uploads { uploads, is_truncated })
}

pub fn list_parts(
    view: &dyn View,
    bucket: &str,
    key: &str,
    upload_id: &str,
    after: u16,
    entries_max: u32,
) -> Outcome<Answer> {
    let bucket = buckets::get(view, bucket)?;
    let upload = find(view, &bucket, key, upload_id)?;
    let from = keys::after(&keys::part(upload, after));
    let to = keys::end_of(&keys::parts(upload));
    let (parts, is_truncated) = take_page::<PartRecord>(view, &from, &to, entries_max)?;
    Ok(Answer::Parts { parts: parts.into_iter().map(|record| record.part).collect(), is_truncated })
}

/// A page of the records in `from..to`, and whether more follow.
fn take_page<T: serde::de::DeserializeOwned>(
    view: &dyn View,
    from: &[u8],
    to: &[u8],
    entries_max: u32,
) -> Result<(Vec<T>, bool), KvError> {
    let entries_max = page(entries_max);
    let mut records = Vec::new();
    let mut is_truncated = false;
    if entries_max > 0 {
        scan_records(view, from, to, &mut |_, record| {
            if records.len() == entries_max {
                is_truncated = true;
                return std::ops::ControlFlow::Break(());
            }
            records.push(record);
            std::ops::ControlFlow::Continue(())
        })?;
    }
    Ok((records, is_truncated))
}
