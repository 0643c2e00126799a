//! Reading objects and what is said about them.

use makai_raft::facts::object::{Checksum as KeptChecksum, ObjectHead, PARTS_MAX};
use makai_raft::facts::version::VersionId;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::access::{Granted, granted};
use super::body::outgoing;
use super::checksums::{kind, set_checksum};
use super::errors::{range_not_satisfiable, unreadable};
use super::headers::{Conditions, byte_range, describe, etag, length, parse_tags, tag_set, timestamp};
use super::listing::entries_max;
use super::operations::Operations;
use super::versions::{shown, version_id};
use crate::identity::Caller;
use crate::objects::{ByteRange, Download, Found};

/// What part of an object a GET or HEAD names.
struct Wanted {
    range: ByteRange,
    /// Whether the answer is 206 and says which bytes it has.
    is_partial: bool,
    is_part: bool,
}

fn conditions<'a>(
    if_match: Option<&'a ETagCondition>,
    if_none_match: Option<&'a ETagCondition>,
    if_modified_since: Option<&'a Timestamp>,
    if_unmodified_since: Option<&'a Timestamp>,
) -> Conditions<'a> {
    Conditions { if_match, if_none_match, if_modified_since, if_unmodified_since }
}

impl Operations {
    async fn wanted(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        range: Option<&Range>,
        version: Option<VersionId>,
        part_number: Option<i32>,
    ) -> S3Result<Wanted> {
        let Some(number) = part_number else {
            return Ok(Wanted { range: byte_range(range), is_partial: range.is_some(), is_part: false });
        };
        if range.is_some() {
            return Err(s3_error!(
                InvalidRequest,
                "Cannot specify both Range header and partNumber query parameter."
            ));
        }
        let number = u16::try_from(number)
            .ok()
            .filter(|number| (1..=PARTS_MAX).contains(number))
            .ok_or_else(|| {
                s3_error!(
                    InvalidArgument,
                    "Part number must be an integer between 1 and {PARTS_MAX}, inclusive."
                )
            })?;
        // An object that was put whole is its own first part.
        let found = self.objects.find(caller, bucket, key, version).await;
        let head = found.map_err(|error| unreadable(error, version))?.head;
        if number > head.part_count.max(1) {
            return Err(s3_error!(
                InvalidPart,
                "The object has no part {number}: it has {}.",
                head.part_count.max(1)
            ));
        }
        let range = if head.part_count == 0 { ByteRange::All } else { ByteRange::Part(number) };
        Ok(Wanted { range, is_partial: head.size > 0, is_part: true })
    }

    /// Torrents are kept of no object.
    pub(super) async fn get_object_torrent(
        &self,
        caller: &Caller,
        request: S3Request<GetObjectTorrentInput>,
    ) -> S3Result<S3Response<GetObjectTorrentOutput>> {
        let granted = granted(&request)?;
        let input = request.input;
        let found = self.objects.find(caller, &input.bucket, &input.key, None).await;
        granted.check_object(&found.map_err(|error| unreadable(error, None))?.head)?;
        Err(s3_error!(NoSuchKey, "The object has no torrent: read it with GetObject."))
    }

    pub(super) async fn get_object(
        &self,
        caller: &Caller,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let granted = granted(&request)?;
        check_overrides(&granted, &request.uri)?;
        let input = request.input;
        let version = version_id(input.version_id.as_deref())?;
        let (bucket, key) = (input.bucket.as_str(), input.key.as_str());
        let wanted =
            self.wanted(caller, bucket, key, input.range.as_ref(), version, input.part_number).await?;
        let conditions = conditions(
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
            input.if_modified_since.as_ref(),
            input.if_unmodified_since.as_ref(),
        );
        let objects = granted.sealed(&self.objects);
        let download = objects.get_version(caller, bucket, key, version, wanted.range.clone()).await;
        let download = download.map_err(|error| unreadable(error, version))?;
        granted.check_object(&download.head)?;
        conditions.check(&download.head)?;

        let mut output = GetObjectOutput::default();
        describe!(output, download.head);
        let (head, range) = (&download.head, &download.range);
        output.version_id = shown(head, download.versioning);
        output.expiration = self.expiration(bucket, head).await;
        output.content_length = Some(length(range.end.saturating_sub(range.start)));
        output.content_range = wanted.is_partial.then(|| content_range(range, head.size));
        output.parts_count =
            wanted.is_part.then_some(head.part_count).filter(|&count| count > 0).map(i32::from);
        output.tag_count = tag_count(head);
        output.replication_status = self.replication_status(&granted, head).await?;
        if input.checksum_mode.is_some() {
            let shown = self.shown_checksum(caller, bucket, head, range, &wanted.range).await?;
            set_checksum!(output, &shown);
            output.checksum_type = shown.as_ref().and(head.checksum.as_ref()).map(kind);
        }
        output.body = Some(outgoing(download));
        Ok(S3Response::new(output))
    }

    pub(super) async fn head_object(
        &self,
        caller: &Caller,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let granted = granted(&request)?;
        check_overrides(&granted, &request.uri)?;
        let input = request.input;
        let version = version_id(input.version_id.as_deref())?;
        let (bucket, key) = (input.bucket.as_str(), input.key.as_str());
        let wanted =
            self.wanted(caller, bucket, key, input.range.as_ref(), version, input.part_number).await?;
        let wanted_range = wanted.range.clone();
        let conditions = conditions(
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
            input.if_modified_since.as_ref(),
            input.if_unmodified_since.as_ref(),
        );
        let (head, versioning, range) = match (wanted.range, &input.range) {
            // Only the object's layout knows where a part lies. Its bytes are not asked for.
            (part @ ByteRange::Part(_), _) => {
                let objects = granted.sealed(&self.objects);
                let download = objects.get_version(caller, bucket, key, version, part).await;
                let download = download.map_err(|error| unreadable(error, version))?;
                let Download { head, range, body: _, versioning } = download;
                granted.check_object(&head)?;
                conditions.check(&head)?;
                (head, versioning, range)
            }
            (_, range) => {
                let found = self.objects.find(caller, bucket, key, version).await;
                let Found { head, versioning } = found.map_err(|error| unreadable(error, version))?;
                granted.check_object(&head)?;
                conditions.check(&head)?;
                let whole = 0..head.size;
                let range = range.map_or(Ok(whole), |range| range.check(head.size));
                let range = range.map_err(|_| range_not_satisfiable(head.size))?;
                (head, versioning, range)
            }
        };
        let mut output = HeadObjectOutput::default();
        describe!(output, head);
        output.version_id = shown(&head, versioning);
        output.expiration = self.expiration(bucket, &head).await;
        output.content_length = Some(length(range.end.saturating_sub(range.start)));
        output.content_range = wanted.is_partial.then(|| content_range(&range, head.size));
        output.parts_count =
            wanted.is_part.then_some(head.part_count).filter(|&count| count > 0).map(i32::from);
        granted.say_tag_count(tag_count(&head));
        output.replication_status = self.replication_status(&granted, &head).await?;
        if input.checksum_mode.is_some() {
            let shown = self.shown_checksum(caller, bucket, &head, &range, &wanted_range).await?;
            set_checksum!(output, &shown);
            output.checksum_type = shown.as_ref().and(head.checksum.as_ref()).map(kind);
        }
        // What the client asked the answer to say instead.
        for (field, asked) in [
            (&mut output.content_type, input.response_content_type),
            (&mut output.content_encoding, input.response_content_encoding),
            (&mut output.content_disposition, input.response_content_disposition),
            (&mut output.content_language, input.response_content_language),
            (&mut output.cache_control, input.response_cache_control),
        ] {
            if asked.is_some() {
                *field = asked;
            }
        }
        output.expires = input.response_expires.or(output.expires);
        Ok(S3Response::new(output))
    }

    /// The checksum of what is read: of the whole object, or of a part by its number.
    async fn shown_checksum(
        &self,
        caller: &Caller,
        bucket: &str,
        head: &ObjectHead,
        range: &std::ops::Range<u64>,
        wanted: &ByteRange,
    ) -> S3Result<Option<KeptChecksum>> {
        let ByteRange::Part(number) = *wanted else {
            return Ok(head.checksum.clone().filter(|_| is_whole(range, head)));
        };
        if head.checksum.is_none() {
            return Ok(None);
        }
        let version = Some(head.version_id());
        let before = number.saturating_sub(1);
        let parts = self.objects.completed_parts(caller, bucket, &head.key, version, before, 1).await;
        let (parts, _) = parts.map_err(|error| unreadable(error, version))?;
        Ok(parts.into_iter().find(|part| part.number == number).and_then(|part| part.checksum))
    }

    pub(super) async fn get_object_attributes(
        &self,
        caller: &Caller,
        request: S3Request<GetObjectAttributesInput>,
    ) -> S3Result<S3Response<GetObjectAttributesOutput>> {
        let granted = granted(&request)?;
        let input = request.input;
        let version = version_id(input.version_id.as_deref())?;
        let found = self.objects.find(caller, &input.bucket, &input.key, version).await;
        let found = found.map_err(|error| unreadable(error, version))?;
        let head = &found.head;
        granted.check_object(head)?;
        let mut output = GetObjectAttributesOutput {
            last_modified: Some(timestamp(head.modified_at)),
            version_id: found.shown_version(),
            ..GetObjectAttributesOutput::default()
        };
        // The header may hold several, parted by commas.
        let attributes = input.object_attributes.iter().flat_map(|header| header.as_str().split(','));
        for attribute in attributes.map(str::trim) {
            match attribute {
                ObjectAttributes::ETAG => output.e_tag = Some(etag(head)),
                ObjectAttributes::OBJECT_SIZE => output.object_size = Some(length(head.size)),
                ObjectAttributes::STORAGE_CLASS => {
                    let class = head.headers.storage_class.as_deref().unwrap_or(StorageClass::STANDARD);
                    output.storage_class = Some(StorageClass::from(class.to_owned()));
                }
                ObjectAttributes::CHECKSUM => {
                    output.checksum = head.checksum.as_ref().map(|checksum| {
                        let mut shown = Checksum::default();
                        set_checksum!(shown, Some(checksum));
                        shown.checksum_type = Some(kind(checksum));
                        shown
                    });
                }
                ObjectAttributes::OBJECT_PARTS if head.part_count > 0 => {
                    let named = head.version_id();
                    output.object_parts = Some(self.attributes_of_parts(caller, &input, head, named).await?);
                }
                ObjectAttributes::OBJECT_PARTS => {}
                _ => return Err(s3_error!(InvalidArgument, "Invalid attribute name specified.")),
            }
        }
        Ok(S3Response::new(output))
    }

    pub(super) async fn get_object_tagging(
        &self,
        caller: &Caller,
        request: S3Request<GetObjectTaggingInput>,
    ) -> S3Result<S3Response<GetObjectTaggingOutput>> {
        let input = request.input;
        let version = version_id(input.version_id.as_deref())?;
        let found = self.objects.find(caller, &input.bucket, &input.key, version).await;
        let found = found.map_err(|error| unreadable(error, version))?;
        let tag_set = found.head.headers.tagging.as_deref().map(tag_set).unwrap_or_default();
        Ok(S3Response::new(GetObjectTaggingOutput { tag_set, version_id: found.shown_version() }))
    }

    /// Nothing is archived: there is nothing to restore.
    pub(super) async fn restore_object(
        &self,
        caller: &Caller,
        request: S3Request<RestoreObjectInput>,
    ) -> S3Result<S3Response<RestoreObjectOutput>> {
        let input = request.input;
        let version = version_id(input.version_id.as_deref())?;
        let found = self.objects.find(caller, &input.bucket, &input.key, version).await;
        found.map_err(|error| unreadable(error, version))?;
        Err(s3_error!(
            InvalidObjectState,
            "Restore is not allowed for the object's current storage class: it can be read at once."
        ))
    }

    /// A page of the parts that an object was completed from.
    async fn attributes_of_parts(
        &self,
        caller: &Caller,
        input: &GetObjectAttributesInput,
        head: &ObjectHead,
        version: VersionId,
    ) -> S3Result<GetObjectAttributesParts> {
        let entries_max = entries_max(input.max_parts, "x-amz-max-parts")?;
        let after = input.part_number_marker.unwrap_or(0);
        let after_number = u16::try_from(after)
            .map_err(|_| s3_error!(InvalidArgument, "x-amz-part-number-marker must be 0 to {PARTS_MAX}."))?;
        let version = Some(version);
        let page = self.objects.completed_parts(
            caller,
            &input.bucket,
            &input.key,
            version,
            after_number,
            entries_max,
        );
        let (parts, is_truncated) = page.await.map_err(|error| unreadable(error, version))?;
        let next = parts.last().map_or(after, |part| i32::from(part.number));
        let shown = parts.iter().map(|part| {
            let mut shown = ObjectPart {
                part_number: Some(i32::from(part.number)),
                size: Some(length(part.size)),
                ..ObjectPart::default()
            };
            set_checksum!(shown, &part.checksum);
            shown
        });
        Ok(GetObjectAttributesParts {
            is_truncated: Some(is_truncated),
            max_parts: Some(entries_max.cast_signed()),
            next_part_number_marker: Some(next),
            part_number_marker: Some(after),
            parts: Some(shown.collect()),
            total_parts_count: Some(i32::from(head.part_count)),
        })
    }
}

/// What an answer shall say instead is for those to choose who sign.
fn check_overrides(granted: &Granted, uri: &http::Uri) -> S3Result<()> {
    let mut asked = uri.query().unwrap_or_default().split('&');
    if granted.who.caller.is_none() && asked.any(|pair| pair.starts_with("response-")) {
        return Err(s3_error!(
            InvalidRequest,
            "Request specific response headers cannot be used for anonymous GET requests."
        ));
    }
    Ok(())
}

fn content_range(range: &std::ops::Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1))
}

fn is_whole(range: &std::ops::Range<u64>, head: &ObjectHead) -> bool {
    range.start == 0 && range.end == head.size
}

fn tag_count(head: &ObjectHead) -> Option<i32> {
    i32::try_from(parse_tags(head.headers.tagging.as_deref()?).len()).ok()
}
