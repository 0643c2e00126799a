//! The facts as a flat map: what the machine must agree with. Nothing is counted here, all is recounted.

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::Timestamp;
use crate::facts::bucket::Bucket;
use crate::facts::command::{Command, NewBlob, NewContent, Precondition, Refusal, Reply};
use crate::facts::object::{Checksum, Content, Extent, ObjectHead, ObjectHeaders, Part, Upload};
use crate::facts::query::{ListObjects, Listed};
use crate::facts::tenant::Quota;
use crate::facts::version::{
    BucketLock, Deleted, Expired, ListVersions, ListedVersion, LockMode, ObjectLock, Retention,
    VersionCommand, VersionId, VersionRefusal, VersionReply, Versioning,
};
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
    pub versioning: Versioning,
    pub lock: Option<BucketLock>,
    /// Every version and marker of each key, oldest first; no key without any.
    pub versions: BTreeMap<String, Vec<OVersion>>,
    /// In the order of their start.
    pub uploads: Vec<OUpload>,
    pub completed: BTreeMap<String, ObjectHead>,
}

#[derive(Debug, Clone)]
pub struct OVersion {
    pub head: ObjectHead,
    pub content: Content,
    pub is_marker: bool,
}

impl OBucket {
    /// A key's newest version, unless that is a marker.
    pub fn current(&self, key: &str) -> Option<&OVersion> {
        self.versions.get(key)?.last().filter(|version| !version.is_marker)
    }

    pub fn objects(&self) -> impl Iterator<Item = &OVersion> {
        self.versions.keys().filter_map(|key| self.current(key))
    }

    pub fn all(&self) -> impl Iterator<Item = &OVersion> {
        self.versions.values().flatten()
    }

    /// Where among its key's versions the one named stands.
    fn position(&self, key: &str, version: Option<VersionId>) -> Option<usize> {
        let versions = self.versions.get(key)?;
        match version {
            None => versions.len().checked_sub(1),
            Some(id) => versions.iter().position(|version| version.head.version_id() == id),
        }
    }
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
                let objects: u64 = bucket.all().map(|object| object.head.size).sum();
                let parts = bucket.uploads.iter().flat_map(|upload| upload.parts.values());
                objects + parts.map(|(part, _)| part.size).sum::<u64>()
            })
            .sum()
    }

    pub fn references(&self) -> BTreeMap<BlobId, u64> {
        let mut references = BTreeMap::new();
        for bucket in self.buckets.values() {
            let objects = bucket.all().flat_map(|object| extents_of(&object.content));
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
            for object in bucket.objects() {
                let key = &object.head.key;
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
                    versioning: Versioning::Unversioned,
                    lock: None,
                    noncurrent_count: 0,
                    noncurrent_bytes: 0,
                    mounts: 0,
                    quota: Quota::default(),
                }))
            }
            Command::DeleteBucket { name } => {
                let bucket = self.bucket(name)?;
                if !bucket.versions.is_empty() || !bucket.uploads.is_empty() {
                    return Err(Refusal::BucketNotEmpty);
                }
                self.buckets.remove(name);
                Ok(Reply::Done)
            }
            Command::PutObject { bucket, key, headers, new, precondition, .. } => {
                let facts = self.bucket(bucket)?;
                check_lock(facts, headers)?;
                let tenant = facts.tenant;
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
                Ok(Reply::Deleted { existed: self.hide(bucket, key, precondition)?.existed })
            }
            Command::Version(command) => self.run_version(command),
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
                let from = self.bucket(from_bucket)?;
                let versions = from.versions.get(from_key).cloned().unwrap_or_default();
                let found = versions
                    .into_iter()
                    .find(|known| known.head.version == *from_version && !known.is_marker);
                let source = match (found, from.current(from_key)) {
                    (Some(source), _) => source,
                    (None, Some(_)) => return Err(Refusal::SourceChanged),
                    (None, None) => return Err(Refusal::NoSuchKey),
                };
                self.check(bucket, key, precondition)?;
                let ObjectHead { size, etag, checksum, part_count, .. } = source.head;
                let kept = ObjectHeaders { lock: ObjectLock::default(), ..source.head.headers };
                let headers = headers.clone().unwrap_or(kept);
                self.replace(bucket, key, size, etag, headers, checksum, part_count, source.content)
            }
            Command::SetObjectTagging { bucket, key, tagging } => {
                self.bucket(bucket)?.current(key).ok_or(Refusal::NoSuchKey)?;
                let (_, version) = self.find(bucket, key, None)?;
                version.head.headers.tagging = tagging.clone();
                Ok(Reply::Done)
            }
            Command::CreateUpload { bucket, upload } => {
                let started_at = self.now;
                let bucket = self.bucket(bucket)?;
                check_lock(bucket, &upload.headers)?;
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

    /// S3's DELETE of a key, no version named.
    fn hide(&mut self, bucket: &str, key: &str, precondition: &Precondition) -> Result<Deleted, Refusal> {
        let facts = self.bucket(bucket)?;
        let (versioning, exists) = (facts.versioning, facts.current(key).is_some());
        if !exists && (versioning == Versioning::Unversioned || !precondition.if_match.is_empty()) {
            let is_marked = facts.versions.get(key).is_some_and(|versions| !versions.is_empty());
            let is_for_any = precondition.if_match.iter().any(|etag| etag == "*");
            if is_marked && !precondition.if_match.is_empty() && !is_for_any {
                return Err(Refusal::PreconditionFailed);
            }
            return Ok(Deleted::default());
        }
        if exists && self.check(bucket, key, precondition).is_err() {
            return Err(Refusal::PreconditionFailed);
        }
        if versioning == Versioning::Unversioned {
            self.bucket(bucket)?.versions.remove(key);
            return Ok(Deleted { existed: true, version: None, is_marker: false });
        }
        let head = ObjectHead {
            key: key.to_owned(),
            version: 0,
            inode: 0,
            modified_at: self.now,
            size: 0,
            etag: String::new(),
            headers: ObjectHeaders::default(),
            checksum: None,
            part_count: 0,
            has_version_id: false,
            file: None,
        };
        let version = self.add(bucket, head, Content::Empty, true)?.version_id();
        Ok(Deleted { existed: exists, version: Some(version), is_marker: true })
    }

    /// Puts a version on top of its key's others, of which the bucket's versioning may take the null one.
    fn add(
        &mut self,
        bucket: &str,
        head: ObjectHead,
        content: Content,
        is_marker: bool,
    ) -> Result<ObjectHead, Refusal> {
        self.versions += 1;
        let version = self.versions;
        let bucket = self.bucket(bucket)?;
        let has_version_id = bucket.versioning == Versioning::Enabled;
        let head = ObjectHead { version, has_version_id, ..head };
        let versions = bucket.versions.entry(head.key.clone()).or_default();
        versions.retain(|old| has_version_id || old.head.has_version_id);
        versions.push(OVersion { head: head.clone(), content, is_marker });
        Ok(head)
    }

    /// A version that is no marker, and its bucket's lock.
    fn find(
        &mut self,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
    ) -> Result<(Option<BucketLock>, &mut OVersion), Refusal> {
        let bucket = self.bucket(bucket)?;
        let missing = version.map_or(Refusal::NoSuchKey, |_| Refusal::Version(VersionRefusal::NoSuchVersion));
        let lock = bucket.lock;
        let position = bucket.position(key, version).ok_or_else(|| missing.clone())?;
        let found = bucket.versions.get_mut(key).and_then(|versions| versions.get_mut(position));
        let found = found.ok_or(missing)?;
        if found.is_marker {
            let (version, modified_at) = (found.head.version_id(), found.head.modified_at);
            return Err(VersionRefusal::IsMarker { version, modified_at }.into());
        }
        Ok((lock, found))
    }

    fn run_version(&mut self, command: &VersionCommand) -> Result<Reply, Refusal> {
        let now = self.now;
        let changed = |version: &OVersion| Ok(Reply::Version(VersionReply::Changed(version.head.clone())));
        match command {
            VersionCommand::SetVersioning { bucket, versioning } => {
                let bucket = self.bucket(bucket)?;
                if *versioning == Versioning::Suspended && bucket.lock.is_some() {
                    return Err(VersionRefusal::BucketState(String::new()).into());
                }
                bucket.versioning = *versioning;
                Ok(Reply::Done)
            }
            VersionCommand::SetBucketLock { bucket, lock } => {
                let bucket = self.bucket(bucket)?;
                if bucket.versioning != Versioning::Enabled {
                    return Err(VersionRefusal::BucketState(String::new()).into());
                }
                bucket.lock = Some(*lock);
                Ok(Reply::Done)
            }
            VersionCommand::Expire { bucket, versions } => {
                for Expired { key, number, is_current } in versions {
                    let facts = self.bucket(bucket)?;
                    let Some(known) = facts.versions.get(key) else { continue };
                    let Some(position) = known.iter().position(|known| known.head.version == *number) else {
                        continue;
                    };
                    let OVersion { head, is_marker, .. } = known[position].clone();
                    let is_now_current = position + 1 == known.len() && !is_marker;
                    let ObjectLock { retention, legal_hold } = head.headers.lock;
                    let is_locked =
                        legal_hold == Some(true) || retention.is_some_and(|retention| retention.until > now);
                    if is_now_current != *is_current {
                        continue;
                    }
                    if *is_current && facts.versioning != Versioning::Unversioned {
                        self.hide(bucket, key, &Precondition::default())?;
                    } else if !is_locked {
                        let known = facts.versions.get_mut(key).expect("it is there");
                        known.remove(position);
                        if known.is_empty() {
                            facts.versions.remove(key);
                        }
                    }
                }
                Ok(Reply::Done)
            }
            VersionCommand::Delete { bucket, key, version: None, precondition, .. } => {
                Ok(Reply::Version(VersionReply::Deleted(self.hide(bucket, key, precondition)?)))
            }
            VersionCommand::Delete { bucket, key, version, bypass_governance, precondition } => {
                let bucket = self.bucket(bucket)?;
                let mut deleted = Deleted { existed: false, version: *version, is_marker: false };
                if let Some(position) = bucket.position(key, *version) {
                    let versions = bucket.versions.get_mut(key).expect("it has a position");
                    let OVersion { head, is_marker, .. } = &versions[position];
                    let ObjectLock { retention, legal_hold } = head.headers.lock;
                    let is_retained = match retention {
                        Some(Retention { mode: LockMode::Governance, until }) => {
                            until.0 > now.0 && !bypass_governance
                        }
                        Some(Retention { mode: LockMode::Compliance, until }) => until.0 > now.0,
                        None => false,
                    };
                    if is_retained || legal_hold == Some(true) {
                        return Err(VersionRefusal::Locked.into());
                    }
                    if !holds(precondition, Some(&head.etag)) {
                        return Err(Refusal::PreconditionFailed);
                    }
                    (deleted.existed, deleted.is_marker) = (true, *is_marker);
                    versions.remove(position);
                    if versions.is_empty() {
                        bucket.versions.remove(key);
                    }
                }
                Ok(Reply::Version(VersionReply::Deleted(deleted)))
            }
            VersionCommand::SetTagging { bucket, key, version, tagging } => {
                let (_, found) = self.find(bucket, key, *version)?;
                found.head.headers.tagging = tagging.clone();
                changed(found)
            }
            VersionCommand::SetRetention { bucket, key, version, retention, bypass_governance } => {
                let (lock, found) = self.find(bucket, key, *version)?;
                lock.ok_or(Refusal::Version(VersionRefusal::NoBucketLock))?;
                if retention.is_some_and(|retention| retention.until.0 <= now.0) {
                    return invalid();
                }
                let old = &mut found.head.headers.lock.retention;
                if let Some(Retention { mode, until }) = *old
                    && until.0 > now.0
                    && !(*bypass_governance && mode == LockMode::Governance)
                    && !retention.is_some_and(|new| new.mode == mode && new.until.0 >= until.0)
                {
                    return Err(VersionRefusal::Locked.into());
                }
                *old = *retention;
                changed(found)
            }
            VersionCommand::SetLegalHold { bucket, key, version, is_held } => {
                let (lock, found) = self.find(bucket, key, *version)?;
                lock.ok_or(Refusal::Version(VersionRefusal::NoBucketLock))?;
                found.head.headers.lock.legal_hold = Some(*is_held);
                changed(found)
            }
            other => panic!("the model does not know {other:?}"),
        }
    }

    fn check(&mut self, bucket: &str, key: &str, precondition: &Precondition) -> Result<(), Refusal> {
        let etag = self.bucket(bucket)?.current(key).map(|object| object.head.etag.clone());
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
        let now = self.now;
        let facts = self.bucket(bucket)?;
        check_lock(facts, &headers)?;
        let mut headers = headers;
        if headers.lock.retention.is_none()
            && let Some(default) = facts.lock.and_then(|lock| lock.default)
        {
            let until = Timestamp(now.0 + default.period.millis());
            headers.lock.retention = Some(Retention { mode: default.mode, until });
        }
        let head = ObjectHead {
            key: key.to_owned(),
            version: 0,
            inode: 0,
            modified_at: now,
            size,
            etag,
            headers,
            checksum,
            part_count,
            has_version_id: false,
            file: None,
        };
        Ok(Reply::Object(self.add(bucket, head, content, false)?))
    }

    /// S3's listing, over every key of the bucket.
    pub fn list(&self, list: &ListObjects) -> Result<(Vec<Listed>, bool), Refusal> {
        let bucket = self.buckets.get(&list.bucket).ok_or(Refusal::NoSuchBucket)?;
        Ok(naive_list(bucket.objects().map(|object| &object.head), list))
    }

    /// S3's listing of versions, over every version of the bucket.
    pub fn list_versions(&self, list: &ListVersions) -> Result<(Vec<ListedVersion>, bool), Refusal> {
        let bucket = self.buckets.get(&list.bucket).ok_or(Refusal::NoSuchBucket)?;
        let after_number = list.after_version.map(|version| match version {
            VersionId::Number(number) => number,
            VersionId::Null => bucket
                .position(&list.after, Some(VersionId::Null))
                .map_or(u64::MAX, |position| bucket.versions[&list.after][position].head.version),
        });
        let mut shown = Vec::new();
        for (key, versions) in &bucket.versions {
            let Some(rest) = key.strip_prefix(&list.prefix) else { continue };
            let found = if list.delimiter.is_empty() { None } else { rest.find(&list.delimiter) };
            if let Some(at) = found {
                let common = key[..list.prefix.len() + at + list.delimiter.len()].to_owned();
                let is_behind = common > list.after;
                let common = ListedVersion::CommonPrefix(common);
                if is_behind && shown.last() != Some(&common) {
                    shown.push(common);
                }
                continue;
            }
            for (age, version) in versions.iter().rev().enumerate() {
                let OVersion { head, is_marker, .. } = version;
                let is_older = after_number.is_some_and(|number| head.version < number);
                let is_behind = *key > list.after || (*key == list.after && is_older);
                if !is_behind {
                    continue;
                }
                let (head, is_latest) = (head.clone(), age == 0);
                shown.push(if *is_marker {
                    let (version, number, modified_at) = (head.version_id(), head.version, head.modified_at);
                    ListedVersion::Marker { key: key.clone(), version, number, modified_at, is_latest }
                } else {
                    ListedVersion::Version { head, is_latest }
                });
            }
        }
        let is_truncated = list.entries_max > 0 && shown.len() > list.entries_max as usize;
        shown.truncate(list.entries_max as usize);
        Ok((shown, is_truncated))
    }
}

fn check_lock(bucket: &OBucket, headers: &ObjectHeaders) -> Result<(), Refusal> {
    let asks = headers.lock.retention.is_some() || headers.lock.legal_hold.is_some();
    if asks && bucket.lock.is_none() {
        return Err(VersionRefusal::NoBucketLock.into());
    }
    Ok(())
}

/// Whether a version of this ETag is what the precondition wants.
fn holds(precondition: &Precondition, etag: Option<&str>) -> bool {
    let is = |given: &String| {
        etag.is_some_and(|etag| given == "*" || given == etag || *given == format!("\"{etag}\""))
    };
    (precondition.if_match.is_empty() || precondition.if_match.iter().any(is))
        && !precondition.if_none_match.iter().any(is)
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
