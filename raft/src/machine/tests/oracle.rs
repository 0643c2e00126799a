//! The facts as a flat map: what the machine must agree with. Nothing is counted here, all is recounted.

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::Timestamp;
use crate::facts::bucket::Bucket;
use crate::facts::command::{Command, NewBlob, NewContent, Precondition, Refusal, Reply};
use crate::facts::object::{Checksum, Content, Extent, ObjectHead, ObjectHeaders, Part, Upload};
use crate::facts::query::{ListObjects, Listed};
use crate::machine::REVIVE_MS_MAX;
use makai_erasure::BlobId;

#[derive(Debug, Clone, Default)]
pub struct Oracle {
    pub now: Timestamp,
    pub quotas: BTreeMap<u64, Option<u64>>,
    pub buckets: BTreeMap<String, OBucket>,
    pub blobs: BTreeMap<BlobId, OBlob>,
    pub versions: u64,
}

#[derive(Debug, Clone, Default)]
pub struct OBucket {
    pub tenant: u64,
    pub objects: BTreeMap<String, OObject>,
    /// In the order of their start.
    pub uploads: Vec<OUpload>,
    pub completed: BTreeMap<String, ObjectHead>,
}

#[derive(Debug, Clone)]
pub struct OObject {
    pub head: ObjectHead,
    pub content: Content,
}

#[derive(Debug, Clone)]
pub struct OUpload {
    pub upload: Upload,
    pub parts: BTreeMap<u16, (Part, Vec<Extent>)>,
}

#[derive(Debug, Clone)]
pub struct OBlob {
    pub new: NewBlob,
    pub tenant: u64,
    pub garbage_since: Option<Timestamp>,
}

fn invalid<T>() -> Result<T, Refusal> {
    Err(Refusal::Invalid(String::new()))
}

fn extents_of(content: &Content) -> &[Extent] {
    match content {
        Content::Extents(extents) => extents,
        _ => &[],
    }
}

impl Oracle {
    pub fn apply(&mut self, command: &Command) -> Result<Reply, Refusal> {
        let mut next = self.clone();
        let reply = next.run(command)?;
        next.check_quotas(self)?;
        next.recount();
        *self = next;
        Ok(reply)
    }

    pub fn used_bytes(&self, tenant: u64) -> u64 {
        let owned = self.buckets.values().filter(|bucket| bucket.tenant == tenant);
        owned
            .map(|bucket| {
                let objects: u64 = bucket.objects.values().map(|object| object.head.size).sum();
                let parts = bucket.uploads.iter().flat_map(|upload| upload.parts.values());
                objects + parts.map(|(part, _)| part.size).sum::<u64>()
            })
            .sum()
    }

    pub fn references(&self) -> BTreeMap<BlobId, u64> {
        let mut references = BTreeMap::new();
        for bucket in self.buckets.values() {
            let objects = bucket.objects.values().flat_map(|object| extents_of(&object.content));
            let parts = bucket.uploads.iter().flat_map(|upload| upload.parts.values());
            for extent in objects.chain(parts.flat_map(|(_, extents)| extents)) {
                *references.entry(extent.blob).or_insert(0) += 1;
            }
        }
        references
    }

    pub fn directories(&self) -> usize {
        let of = |bucket: &OBucket| {
            let mut found = BTreeSet::new();
            for key in bucket.objects.keys() {
                for (at, _) in key.match_indices('/') {
                    found.insert(key[..=at].to_owned());
                }
            }
            found.len()
        };
        self.buckets.values().map(of).sum()
    }

    fn check_quotas(&self, before: &Self) -> Result<(), Refusal> {
        for (&tenant, quota) in &self.quotas {
            if let &Some(quota_bytes) = quota {
                let used = self.used_bytes(tenant);
                if used > quota_bytes && used > before.used_bytes(tenant) {
                    return Err(Refusal::QuotaExceeded { quota_bytes });
                }
            }
        }
        Ok(())
    }

    fn recount(&mut self) {
        let references = self.references();
        for (id, blob) in &mut self.blobs {
            match (references.contains_key(id), blob.garbage_since) {
                (true, _) => blob.garbage_since = None,
                (false, None) => blob.garbage_since = Some(self.now),
                (false, Some(_)) => {}
            }
        }
    }

    fn bucket(&mut self, name: &str) -> Result<&mut OBucket, Refusal> {
        self.buckets.get_mut(name).ok_or(Refusal::NoSuchBucket)
    }

    fn run(&mut self, command: &Command) -> Result<Reply, Refusal> {
        match command {
            Command::SetTenantQuota { tenant, quota_bytes } => {
                self.quotas.insert(tenant.0, *quota_bytes);
                Ok(Reply::Done)
            }
            Command::CreateBucket { name, tenant, scheme } => {
                if !(1..=2).contains(&tenant.0) {
                    return Err(Refusal::NotFound(String::new()));
                }
                match self.buckets.get(name) {
                    Some(bucket) if bucket.tenant == tenant.0 => return Err(Refusal::BucketOwned),
                    Some(_) => return Err(Refusal::BucketTaken),
                    None => {}
                }
                self.buckets.insert(name.clone(), OBucket { tenant: tenant.0, ..OBucket::default() });
                Ok(Reply::Bucket(Bucket {
                    id: 0,
                    name: name.clone(),
                    tenant: *tenant,
                    created_at: self.now,
                    scheme: *scheme,
                    object_count: 0,
                    object_bytes: 0,
                    root: 0,
                }))
            }
            Command::DeleteBucket { name } => {
                let bucket = self.bucket(name)?;
                if !bucket.objects.is_empty() || !bucket.uploads.is_empty() {
                    return Err(Refusal::BucketNotEmpty);
                }
                self.buckets.remove(name);
                Ok(Reply::Done)
            }
            Command::PutObject { bucket, key, headers, new, precondition } => {
                let tenant = self.bucket(bucket)?.tenant;
                self.check(bucket, key, precondition)?;
                let extents = self.admit(tenant, new)?;
                let content = match &new.content {
                    Content::Extents(_) => Content::Extents(extents),
                    other => other.clone(),
                };
                let (etag, checksum) = (new.etag.clone(), new.checksum.clone());
                self.replace(bucket, key, new.size, etag, headers.clone(), checksum, 0, content)
            }
            Command::DeleteObject { bucket, key, precondition } => {
                if !self.bucket(bucket)?.objects.contains_key(key) {
                    return Ok(Reply::Deleted { existed: false });
                }
                if self.check(bucket, key, precondition).is_err() {
                    return Err(Refusal::PreconditionFailed);
                }
                self.bucket(bucket)?.objects.remove(key);
                Ok(Reply::Deleted { existed: true })
            }
            Command::CopyObject {
                from_bucket,
                from_key,
                from_version,
                bucket,
                key,
                headers,
                precondition,
            } => {
                let from_tenant = self.bucket(from_bucket)?.tenant;
                if self.bucket(bucket)?.tenant != from_tenant {
                    return invalid();
                }
                let source =
                    self.bucket(from_bucket)?.objects.get(from_key).cloned().ok_or(Refusal::NoSuchKey)?;
                if source.head.version != *from_version {
                    return Err(Refusal::SourceChanged);
                }
                self.check(bucket, key, precondition)?;
                let ObjectHead { size, etag, checksum, part_count, .. } = source.head;
                let headers = headers.clone().unwrap_or(source.head.headers);
                self.replace(bucket, key, size, etag, headers, checksum, part_count, source.content)
            }
            Command::SetObjectTagging { bucket, key, tagging } => {
                let object = self.bucket(bucket)?.objects.get_mut(key).ok_or(Refusal::NoSuchKey)?;
                object.head.headers.tagging = tagging.clone();
                Ok(Reply::Done)
            }
            Command::CreateUpload { bucket, upload } => {
                let started_at = self.now;
                let bucket = self.bucket(bucket)?;
                let is_known = bucket.uploads.iter().any(|known| known.upload.id == upload.id);
                if is_known || bucket.completed.contains_key(&upload.id) {
                    return Err(Refusal::AlreadyExists(String::new()));
                }
                let upload = Upload { started_at, ..upload.clone() };
                bucket.uploads.push(OUpload { upload, parts: BTreeMap::new() });
                Ok(Reply::Done)
            }
            Command::PutPart { bucket, key, upload_id, number, new } => {
                let modified_at = self.now;
                let tenant = self.bucket(bucket)?.tenant;
                self.upload(bucket, key, upload_id)?;
                if matches!(new.content, Content::Inline { .. }) {
                    return invalid();
                }
                let mut extents = self.admit(tenant, new)?;
                extents.iter_mut().for_each(|extent| extent.part = *number);
                let part = Part {
                    number: *number,
                    size: new.size,
                    etag: new.etag.clone(),
                    modified_at,
                    checksum: new.checksum.clone(),
                };
                self.upload(bucket, key, upload_id)?.parts.insert(*number, (part.clone(), extents));
                Ok(Reply::Part(part))
            }
            Command::CompleteUpload { bucket, key, upload_id, parts, etag, checksum, precondition } => {
                let now = self.now;
                if let Some(head) = self.bucket(bucket)?.completed.get(upload_id)
                    && head.key == *key
                    && now.0 - head.modified_at.0 <= 3_600_000
                {
                    return Ok(Reply::Object(head.clone()));
                }
                let upload = self.upload(bucket, key, upload_id)?.clone();
                if parts.is_empty() {
                    return invalid();
                }
                if parts.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
                    return Err(Refusal::InvalidPartOrder);
                }
                for (number, etag) in parts {
                    let part = upload.parts.get(number).ok_or(Refusal::InvalidPart(*number))?;
                    if part.0.etag != *etag {
                        return Err(Refusal::InvalidPart(*number));
                    }
                }
                for (number, _) in &parts[..parts.len() - 1] {
                    let size = upload.parts[number].0.size;
                    if size < 5 * 1024 * 1024 {
                        return Err(Refusal::PartTooSmall { number: *number, size });
                    }
                }
                self.check(bucket, key, precondition)?;
                let used = parts.iter().map(|(number, _)| &upload.parts[number]);
                let extents: Vec<Extent> = used.flat_map(|(_, extents)| extents.clone()).collect();
                let size = extents.iter().map(|extent| extent.length).sum();
                let content = if extents.is_empty() { Content::Empty } else { Content::Extents(extents) };
                self.bucket(bucket)?.uploads.retain(|known| known.upload.id != *upload_id);
                let count = parts.len() as u16;
                let headers = upload.upload.headers;
                let reply =
                    self.replace(bucket, key, size, etag.clone(), headers, checksum.clone(), count, content)?;
                if let Reply::Object(head) = &reply {
                    self.bucket(bucket)?.completed.insert(upload_id.clone(), head.clone());
                }
                Ok(reply)
            }
            Command::AbortUpload { bucket, key, upload_id } => {
                self.upload(bucket, key, upload_id)?;
                self.bucket(bucket)?.uploads.retain(|known| known.upload.id != *upload_id);
                Ok(Reply::Done)
            }
            Command::ForgetBlobs { blobs } => {
                let now = self.now;
                self.blobs.retain(|id, blob| {
                    let is_old = blob.garbage_since.is_some_and(|since| now.0 - since.0 > REVIVE_MS_MAX);
                    !(is_old && blobs.contains(id))
                });
                Ok(Reply::Done)
            }
            other => panic!("the model does not know {other:?}"),
        }
    }

    fn upload(&mut self, bucket: &str, key: &str, id: &str) -> Result<&mut OUpload, Refusal> {
        let mut uploads = self.bucket(bucket)?.uploads.iter_mut();
        let found = uploads.find(|known| known.upload.id == id && known.upload.key == key);
        found.ok_or(Refusal::NoSuchUpload)
    }

    fn check(&mut self, bucket: &str, key: &str, precondition: &Precondition) -> Result<(), Refusal> {
        let etag = self.bucket(bucket)?.objects.get(key).map(|object| object.head.etag.clone());
        let holds = |given: &String| {
            etag.as_ref().is_some_and(|etag| given == "*" || given == etag || *given == format!("\"{etag}\""))
        };
        match (&precondition.if_match[..], &precondition.if_none_match[..]) {
            ([_, ..], _) if etag.is_none() => Err(Refusal::NoSuchKey),
            (given @ [_, ..], _) if !given.iter().any(holds) => Err(Refusal::PreconditionFailed),
            (_, given) if given.iter().any(holds) => Err(Refusal::PreconditionFailed),
            _ => Ok(()),
        }
    }

    fn admit(&mut self, tenant: u64, new: &NewContent) -> Result<Vec<Extent>, Refusal> {
        let held = match &new.content {
            Content::Empty => 0,
            Content::Inline { sealed, .. } => sealed.len() as u64 - 16,
            Content::Extents(extents) => extents.iter().map(|extent| extent.length).sum(),
        };
        if held != new.size {
            return invalid();
        }
        for blob in &new.blobs {
            if self.now.0 - blob.opened_at.0 > 3_600_000 {
                return Err(Refusal::BlobTooOld);
            }
            match self.blobs.get(&blob.id) {
                Some(known) if known.tenant != tenant => return invalid(),
                Some(_) => {}
                None => {
                    self.blobs.insert(blob.id, OBlob { new: blob.clone(), tenant, garbage_since: None });
                }
            }
        }
        for extent in extents_of(&new.content) {
            let Some(blob) = self.blobs.get(&extent.blob) else { return invalid() };
            if blob.tenant != tenant {
                return invalid();
            }
            if blob.garbage_since.is_some_and(|since| self.now.0 - since.0 > REVIVE_MS_MAX) {
                return Err(Refusal::BlobTooOld);
            }
            if extent.length == 0 || extent.offset + extent.length > blob.new.plain_len {
                return invalid();
            }
        }
        Ok(extents_of(&new.content).to_vec())
    }

    fn replace(
        &mut self,
        bucket: &str,
        key: &str,
        size: u64,
        etag: String,
        headers: ObjectHeaders,
        checksum: Option<Checksum>,
        part_count: u16,
        content: Content,
    ) -> Result<Reply, Refusal> {
        self.versions += 1;
        let (version, modified_at) = (self.versions, self.now);
        let key = key.to_owned();
        let head = ObjectHead {
            key: key.clone(),
            version,
            inode: 0,
            modified_at,
            size,
            etag,
            headers,
            checksum,
            part_count,
        };
        self.bucket(bucket)?.objects.insert(key, OObject { head: head.clone(), content });
        Ok(Reply::Object(head))
    }

    /// S3's listing, over every key of the bucket.
    pub fn list(&self, list: &ListObjects) -> Result<(Vec<Listed>, bool), Refusal> {
        let bucket = self.buckets.get(&list.bucket).ok_or(Refusal::NoSuchBucket)?;
        Ok(naive_list(bucket.objects.values().map(|object| &object.head), list))
    }
}

pub fn naive_list<'a>(
    heads: impl Iterator<Item = &'a ObjectHead>,
    list: &ListObjects,
) -> (Vec<Listed>, bool) {
    let mut shown: BTreeMap<String, Listed> = BTreeMap::new();
    for head in heads {
        let Some(rest) = head.key.strip_prefix(&list.prefix) else { continue };
        let found = if list.delimiter.is_empty() { None } else { rest.find(&list.delimiter) };
        let (name, listed) = match found {
            Some(at) => {
                let common = head.key[..list.prefix.len() + at + list.delimiter.len()].to_owned();
                (common.clone(), Listed::CommonPrefix(common))
            }
            None => (head.key.clone(), Listed::Object(head.clone())),
        };
        if name > list.after {
            shown.insert(name, listed);
        }
    }
    let is_truncated = list.entries_max > 0 && shown.len() > list.entries_max as usize;
    (shown.into_values().take(list.entries_max as usize).collect(), is_truncated)
}
