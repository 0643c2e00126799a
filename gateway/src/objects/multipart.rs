//! Uploads in parts, and copies: versions made from content that is here already.

use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, stream};
use makai_raft::facts::Timestamp;
use makai_raft::facts::command::{Command, NewContent, Precondition, Refusal, Reply};
use makai_raft::facts::object::{
    Checksum, Content, Extent, ObjectHead, ObjectHeaders, PARTS_MAX, Part, ResolvedExtent, Upload,
};
use makai_raft::facts::query::{Answer, ENTRIES_PER_ANSWER_MAX, EXTENTS_PER_ANSWER_MAX, ObjectAnswer, Query};
use md5::{Digest, Md5};

use super::upload::Inlining;
use super::{CopyFrom, Objects, ObjectsError, Upstream, check_key, unexpected};
use crate::identity::Caller;

/// Times a copy is tried while its source changes.
const COPY_TRIES_MAX: usize = 5;

impl Objects {
    /// Makes a version of the source a version of the key, sharing its blobs. `headers`: `None` keeps the source's.
    pub async fn copy(
        &self,
        caller: &Caller,
        from: CopyFrom,
        bucket: &str,
        key: &str,
        headers: Option<ObjectHeaders>,
        precondition: Precondition,
    ) -> Result<ObjectHead, ObjectsError> {
        check_key(key)?;
        self.recent_bucket(caller, bucket).await?;
        for _ in 0..COPY_TRIES_MAX {
            let source = self.source(caller, &from).await?;
            let command = Command::CopyObject {
                from_bucket: from.bucket.clone(),
                from_key: from.key.clone(),
                from_version: source.head.version,
                bucket: bucket.into(),
                key: key.into(),
                headers: headers.clone(),
                precondition: precondition.clone(),
            };
            match self.propose(command).await {
                Ok(Reply::Object(head)) => return Ok(head),
                Err(ObjectsError::Refused(Refusal::SourceChanged)) => {}
                Ok(other) => return Err(unexpected(&other)),
                Err(error) => return Err(error),
            }
        }
        Err(ObjectsError::SlowDown("the source changes too fast to be copied".into()))
    }

    /// The source of a copy, if what is asked of it holds.
    async fn source(&self, caller: &Caller, from: &CopyFrom) -> Result<ObjectAnswer, ObjectsError> {
        let answer =
            self.object(caller, &from.bucket, &from.key, from.version, 0, EXTENTS_PER_ANSWER_MAX).await?;
        self.check_source(&answer.head, from)?;
        Ok(answer)
    }

    /// Refuses a source of which what is asked does not hold.
    ///
    /// # Errors
    /// A precondition does not hold.
    pub fn check_source(&self, head: &ObjectHead, from: &CopyFrom) -> Result<(), ObjectsError> {
        let names = |etags: &[String]| etags.iter().any(|etag| etag == "*" || *etag == head.etag);
        let modified = head.modified_at.0 / 1000;
        let Precondition { if_match, if_none_match } = &from.precondition;
        // RFC 9110 section 13.2.2: an ETag condition that is given overrules the date beside it.
        let holds = if if_match.is_empty() {
            from.if_unmodified_since.is_none_or(|date| modified <= date)
        } else {
            names(if_match)
        } && if if_none_match.is_empty() {
            from.if_modified_since.is_none_or(|date| modified > date)
        } else {
            !names(if_none_match)
        };
        if holds { Ok(()) } else { Err(Refusal::PreconditionFailed.into()) }
    }

    pub async fn create_upload(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        headers: ObjectHeaders,
        checksum_algorithm: Option<String>,
        checksum_is_composite: bool,
    ) -> Result<Upload, ObjectsError> {
        check_key(key)?;
        self.recent_bucket(caller, bucket).await?;
        let upload = Upload {
            id: hex::encode(rand::random::<[u8; 16]>()),
            key: key.into(),
            started_at: Timestamp(0),
            headers,
            checksum_algorithm,
            checksum_is_composite,
        };
        let command = Command::CreateUpload { bucket: bucket.into(), upload: upload.clone() };
        self.propose(command).await.map(|_| upload)
    }

    pub async fn upload(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        upload_id: &str,
    ) -> Result<Upload, ObjectsError> {
        self.recent_bucket(caller, bucket).await?;
        let query = Query::Upload { bucket: bucket.into(), key: key.into(), upload_id: upload_id.into() };
        match self.query(query).await? {
            Answer::Upload(upload) => Ok(upload),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes a part in; it replaces an earlier one of its number.
    pub async fn put_part(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        upload_id: &str,
        number: u16,
        upstream: Upstream,
    ) -> Result<Part, ObjectsError> {
        check_part(number)?;
        let facts = self.recent_bucket(caller, bucket).await?;
        self.upload(caller, bucket, key, upload_id).await?;
        let stored = self.store(caller, &facts, upstream, Inlining::Never).await?;
        let command = Command::PutPart {
            bucket: bucket.into(),
            key: key.into(),
            upload_id: upload_id.into(),
            number,
            new: stored.content.clone(),
        };
        match self.commit(&facts, stored, command).await? {
            Reply::Part(part) => Ok(part),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes bytes of an object a part: by reference where they lie in blobs, else by writing them again.
    pub async fn copy_part(
        &self,
        caller: &Caller,
        from: CopyFrom,
        range: Option<Range<u64>>,
        bucket: &str,
        key: &str,
        upload_id: &str,
        number: u16,
    ) -> Result<Part, ObjectsError> {
        check_part(number)?;
        let facts = self.recent_bucket(caller, bucket).await?;
        self.upload(caller, bucket, key, upload_id).await?;
        for _ in 0..COPY_TRIES_MAX {
            let source = self.source(caller, &from).await?;
            let size = source.head.size;
            let range = range.clone().unwrap_or(0..size);
            if range.start > range.end || range.end > size || (range.is_empty() && size > 0) {
                return Err(ObjectsError::RangeNotSatisfiable { size });
            }
            if let Content::Inline { blob, wrapped_key, sealed } = &source.content {
                let plain =
                    self.open_inline(caller, &source.head.headers, *blob, wrapped_key, sealed).await?;
                let plain = plain.get(range.start as usize..range.end as usize).map(Bytes::copy_from_slice);
                let plain = plain.ok_or_else(|| ObjectsError::Internal("inline content is short".into()))?;
                let upstream = Upstream {
                    size: Some(plain.len() as u64),
                    body: stream::iter([Ok(plain)]).boxed(),
                    check: Box::new(|_| Ok(None)),
                };
                return self.put_part(caller, bucket, key, upload_id, number, upstream).await;
            }
            let Some(extents) = self.extents(caller, &from.bucket, &from.key, from.version, &source).await?
            else {
                continue;
            };
            let new = NewContent {
                size: range.end - range.start,
                etag: part_etag(&source.head, &range),
                checksum: None,
                content: if range.is_empty() {
                    Content::Empty
                } else {
                    Content::Extents(cut(&extents, &range))
                },
                blobs: Vec::new(),
                bucket_id: facts.id,
            };
            let command = Command::PutPart {
                bucket: bucket.into(),
                key: key.into(),
                upload_id: upload_id.into(),
                number,
                new,
            };
            return match self.propose(command).await? {
                Reply::Part(part) => Ok(part),
                other => Err(unexpected(&other)),
            };
        }
        Err(ObjectsError::SlowDown("the source changes too fast to be copied".into()))
    }

    /// Makes the parts the key's new version. `parts`: number and ETag without quotes, in the client's order.
    pub async fn complete_upload(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        upload_id: &str,
        parts: Vec<(u16, String)>,
        checksum: Option<Checksum>,
        precondition: Precondition,
    ) -> Result<ObjectHead, ObjectsError> {
        check_key(key)?;
        self.recent_bucket(caller, bucket).await?;
        if parts.is_empty() || parts.len() > usize::from(PARTS_MAX) {
            return Err(Refusal::Invalid(format!(
                "an upload has 1 to {PARTS_MAX} parts, not {}",
                parts.len()
            ))
            .into());
        }
        let mut md5 = Md5::new();
        for (number, etag) in &parts {
            let digest = hex::decode(etag).ok().filter(|digest| digest.len() == 16);
            md5.update(digest.ok_or(Refusal::InvalidPart(*number))?);
        }
        let etag = format!("{}-{}", hex::encode(md5.finalize()), parts.len());
        let command = Command::CompleteUpload {
            bucket: bucket.into(),
            key: key.into(),
            upload_id: upload_id.into(),
            parts,
            etag,
            checksum,
            precondition,
        };
        match self.propose(command).await? {
            Reply::Object(head) => Ok(head),
            other => Err(unexpected(&other)),
        }
    }

    /// Aborts what is under way in a bucket.
    pub(super) async fn abort_all_uploads(&self, caller: &Caller, bucket: &str) -> Result<(), ObjectsError> {
        loop {
            let (uploads, _) = self.uploads(caller, bucket, "", None, ENTRIES_PER_ANSWER_MAX).await?;
            if uploads.is_empty() {
                return Ok(());
            }
            for upload in uploads {
                match self.abort_upload(caller, bucket, &upload.key, &upload.id).await {
                    // It ended by itself.
                    Ok(()) | Err(ObjectsError::Refused(Refusal::NoSuchUpload)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    pub async fn abort_upload(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        upload_id: &str,
    ) -> Result<(), ObjectsError> {
        self.recent_bucket(caller, bucket).await?;
        let command =
            Command::AbortUpload { bucket: bucket.into(), key: key.into(), upload_id: upload_id.into() };
        self.propose(command).await.map(|_| ())
    }

    /// Parts with numbers above `after`, and whether more follow.
    pub async fn parts(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        upload_id: &str,
        after: u16,
        entries_max: u32,
    ) -> Result<(Vec<Part>, bool), ObjectsError> {
        self.recent_bucket(caller, bucket).await?;
        let query = Query::Parts {
            bucket: bucket.into(),
            key: key.into(),
            upload_id: upload_id.into(),
            after,
            entries_max,
        };
        match self.query(query).await? {
            Answer::Parts { parts, is_truncated } => Ok((parts, is_truncated)),
            other => Err(unexpected(&other)),
        }
    }

    /// Uploads under way behind `after` (key, upload id), and whether more follow.
    pub async fn uploads(
        &self,
        caller: &Caller,
        bucket: &str,
        prefix: &str,
        after: Option<(String, String)>,
        entries_max: u32,
    ) -> Result<(Vec<Upload>, bool), ObjectsError> {
        self.recent_bucket(caller, bucket).await?;
        let query = Query::Uploads { bucket: bucket.into(), prefix: prefix.into(), after, entries_max };
        match self.query(query).await? {
            Answer::Uploads { uploads, is_truncated } => Ok((uploads, is_truncated)),
            other => Err(unexpected(&other)),
        }
    }
}

fn check_part(number: u16) -> Result<(), ObjectsError> {
    match number {
        1..=PARTS_MAX => Ok(()),
        _ => Err(Refusal::Invalid(format!("part numbers are 1 to {PARTS_MAX}, not {number}")).into()),
    }
}

/// An ETag for a copied part: names the source's version and the range, as its bytes are not read.
fn part_etag(source: &ObjectHead, range: &Range<u64>) -> String {
    let mut md5 = Md5::new();
    md5.update(source.etag.as_bytes());
    md5.update(source.version.to_be_bytes());
    md5.update(range.start.to_be_bytes());
    md5.update(range.end.to_be_bytes());
    hex::encode(md5.finalize())
}

/// The pieces of `extents` that hold `range`.
fn cut(extents: &[ResolvedExtent], range: &Range<u64>) -> Vec<Extent> {
    let piece = |resolved: &ResolvedExtent| {
        let from = range.start.max(resolved.at);
        let to = range.end.min(resolved.at + resolved.extent.length);
        (from < to).then(|| Extent {
            blob: resolved.extent.blob,
            offset: resolved.extent.offset + (from - resolved.at),
            length: to - from,
            part: 0,
        })
    };
    extents.iter().filter_map(piece).collect()
}
