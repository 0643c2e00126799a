//! Making, copying and deleting objects.

use std::sync::Arc;

use futures::stream::{self, StreamExt as _};
use makai_raft::facts::command::Precondition;
use makai_raft::facts::object::{Checksum as Kept, KEY_BYTES_MAX, ObjectHead};
use makai_raft::facts::version::{Deleted, Likeness, Versioning};
use s3s::dto::{Error as FailedDelete, *};
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::access::granted;
use super::body::{FileBounds, Notes, file_upstream, upstream};
use super::checksums::{Algorithm, Promise, kind, set_checksum};
use super::copying::{Source, Target, copy_bytes};
use super::errors::{refused, unreadable, unreadable_source};
use super::headers::{
    copy_from, etag, known_type, object_headers, object_tagging, precondition, source_conditions, timestamp,
    unix_seconds,
};
use super::operations::Operations;
use super::versions::{made, version_id};
use crate::identity::Caller;

/// Keys in one batch of deletions, as S3 has it.
const DELETES_MAX: usize = 1000;
/// Deletions of one batch under way at once.
const DELETES_AT_ONCE: usize = 32;

impl Operations {
    pub(super) async fn put_object(
        &self,
        caller: &Caller,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let granted = granted(&request)?;
        let input = &mut request.input;
        if input.write_offset_bytes.is_some() {
            return Err(s3_error!(
                NotImplemented,
                "Appending to an object is not implemented: send it whole."
            ));
        }
        let mut headers = object_headers!(input)?;
        granted.complete(&mut headers)?;
        headers.is_replica = granted.makes_replica(&request.headers, &input.key)?;
        let precondition = precondition(input.if_match.as_ref(), input.if_none_match.as_ref());
        let promise = Promise::read(&request.headers, request.trailing_headers.as_ref())?;
        // As S3 does for those who name none.
        let promise = promise.or_compute(Algorithm::Crc64Nvme);
        let notes = request.extensions.get::<Arc<Notes>>().cloned();
        let by_form = request.extensions.get::<FileBounds>().is_some();
        let upstream = match request.extensions.get::<FileBounds>() {
            Some(bounds) => file_upstream(input.body.take(), bounds.clone(), promise, notes),
            None => upstream(input.body.take(), input.content_length, promise, notes)?,
        };
        let objects = granted.sealed(&self.objects);
        let objects = if by_form { objects.by_form() } else { objects };
        let head = objects.put(caller, &input.bucket, &input.key, headers, upstream, precondition).await;
        let head = head.map_err(refused)?;
        let mut output = PutObjectOutput { e_tag: Some(etag(&head)), ..PutObjectOutput::default() };
        set_checksum!(output, &head.checksum);
        output.checksum_type = head.checksum.as_ref().map(kind);
        output.version_id = made(&head);
        output.expiration = self.expiration(&input.bucket, &head).await;
        Ok(S3Response::new(output))
    }

    pub(super) async fn copy_object(
        &self,
        caller: &Caller,
        request: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        let granted = granted(&request)?;
        let (reader, may_read) = granted.source()?;
        let input = request.input;
        let mut from = copy_from(&input.copy_source, &source_conditions!(input))?;
        let asked = object_headers!(input)?;
        let is_replaced = |directive: Option<&str>, name: &str| match directive {
            None | Some("COPY") => Ok(false),
            Some("REPLACE") => Ok(true),
            Some(_) => Err(s3_error!(InvalidArgument, "{name} must be COPY or REPLACE.")),
        };
        let new_metadata = is_replaced(
            input.metadata_directive.as_ref().map(MetadataDirective::as_str),
            "x-amz-metadata-directive",
        )?;
        let new_tags = is_replaced(
            input.tagging_directive.as_ref().map(TaggingDirective::as_str),
            "x-amz-tagging-directive",
        )?;
        let changes_nothing = !new_metadata
            && !new_tags
            && input.storage_class.is_none()
            && input.website_redirect_location.is_none()
            && input.server_side_encryption.is_none()
            && input.sse_customer_algorithm.is_none()
            && asked.lock.is_empty();
        let is_itself = from.bucket == input.bucket && from.key == input.key && from.version.is_none();
        if is_itself && changes_nothing {
            return Err(s3_error!(
                InvalidRequest,
                "This copy request is illegal because it is trying to copy an object to itself without changing the \
                 object's metadata, storage class, website redirect location or encryption attributes."
            ));
        }
        // What is copied is the very version that was looked at.
        let version = from.version;
        let found = self.objects.find(&reader, &from.bucket, &from.key, version).await;
        let found = found.map_err(|error| unreadable_source(error, version))?;
        let source_version = found.shown_version();
        if found.versioning != Versioning::Unversioned {
            from.version = Some(found.head.version_id());
        }
        let source = found.head;
        may_read.check_object(&source)?;
        self.objects.check_source(&source, &from).map_err(refused)?;
        from.precondition.if_match = vec![source.etag.clone()];
        let opened = may_read.sealing.of_object(&source.headers).map_err(|fault| refused(fault.into()))?;
        let mut headers = if new_metadata && new_tags {
            asked
        } else {
            let mut headers = if new_metadata { asked.clone() } else { source.headers.clone() };
            if !new_metadata {
                headers.content_type = known_type(&source).map(str::to_owned);
            }
            headers.tagging = if new_tags { asked.tagging } else { source.headers.tagging };
            headers.lock = asked.lock;
            headers.is_replica = false;
            if input.storage_class.is_some() {
                headers.storage_class = asked.storage_class;
            }
            if input.website_redirect_location.is_some() {
                headers.website_redirect = asked.website_redirect;
            }
            headers
        };
        granted.complete(&mut headers)?;
        // `s3s` has no fields for the conditions on the target.
        let target = Precondition {
            if_match: conditions_of(&request.headers, &http::header::IF_MATCH)?,
            if_none_match: conditions_of(&request.headers, &http::header::IF_NONE_MATCH)?,
        };
        // Another checksum than the source has must be computed.
        let algorithm = input.checksum_algorithm.as_ref().map(ChecksumAlgorithm::as_str);
        let algorithm = algorithm.map(Algorithm::parse).transpose()?.filter(|algorithm| {
            let is_it = |kept: &Kept| kept.algorithm == algorithm.name() && !kept.is_composite;
            !source.checksum.as_ref().is_some_and(is_it)
        });
        let shares = reader.tenant == caller.tenant
            && opened.is_tenants()
            && granted.sealing.is_tenants()
            && algorithm.is_none();
        let place = Target { bucket: &input.bucket, key: &input.key };
        let head = if shares {
            let copy = self.objects.copy(caller, from, place.bucket, place.key, Some(headers), target).await;
            copy.map_err(|error| unreadable_source(error, version))?
        } else {
            let (from_objects, to_objects) = (may_read.sealed(&self.objects), granted.sealed(&self.objects));
            let from = Source { objects: &from_objects, reader: &reader, from: &from };
            copy_bytes(from, &to_objects, caller, place, headers, (target, algorithm)).await?
        };
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(copied(&head)),
            copy_source_version_id: source_version,
            version_id: made(&head),
            expiration: self.expiration(&input.bucket, &head).await,
            ..CopyObjectOutput::default()
        }))
    }

    pub(super) async fn delete_object(
        &self,
        caller: &Caller,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let granted = granted(&request)?;
        let input = request.input;
        let version = version_id(input.version_id.as_deref())?;
        let precondition = precondition(input.if_match.as_ref(), None);
        let likeness = likeness(input.if_match_size, input.if_match_last_modified_time.as_ref());
        let bypass = input.bypass_governance_retention == Some(true) && granted.allows_bypass(&input.key);
        let (bucket, key) = (&input.bucket, &input.key);
        let deleted =
            self.objects.delete_like(caller, bucket, key, version, bypass, precondition, likeness).await;
        let deleted = deleted.map_err(refused)?;
        Ok(S3Response::new(DeleteObjectOutput {
            delete_marker: deleted.is_marker.then_some(true),
            version_id: deleted.version.map(|version| version.to_string()),
            ..DeleteObjectOutput::default()
        }))
    }

    pub(super) async fn delete_objects(
        &self,
        caller: &Caller,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let granted = granted(&request)?;
        let input = request.input;
        let asked = input.delete.objects;
        if asked.is_empty() || asked.len() > DELETES_MAX {
            return Err(s3_error!(
                MalformedXML,
                "A batch names 1 to {DELETES_MAX} keys; this one names {}.",
                asked.len()
            ));
        }
        let bucket = input.bucket.as_str();
        let bypass = input.bypass_governance_retention == Some(true);
        let granted = &granted;
        let outcomes = stream::iter(asked)
            .map(|object| async move {
                let outcome = match granted.allows_delete(&object.key, object.version_id.is_some()) {
                    Ok(()) => {
                        let bypass = bypass && granted.allows_bypass(&object.key);
                        self.delete_one(caller, bucket, &object, bypass).await
                    }
                    Err(error) => Err(error),
                };
                (object, outcome)
            })
            .buffered(DELETES_AT_ONCE);
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        let outcomes: Vec<_> = outcomes.collect().await;
        for (object, outcome) in outcomes {
            match outcome {
                Ok(done) => deleted.push(DeletedObject {
                    delete_marker: done.is_marker.then_some(true),
                    delete_marker_version_id: done
                        .version
                        .filter(|_| done.is_marker)
                        .map(|version| version.to_string()),
                    key: Some(object.key),
                    version_id: object.version_id,
                }),
                Err(error) => errors.push(FailedDelete {
                    code: Some(error.code().as_str().to_owned()),
                    key: Some(object.key),
                    message: error.message().map(str::to_owned),
                    version_id: object.version_id,
                }),
            }
        }
        let is_quiet = input.delete.quiet == Some(true);
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: (!is_quiet && !deleted.is_empty()).then_some(deleted),
            errors: (!errors.is_empty()).then_some(errors),
            request_charged: None,
        }))
    }

    async fn delete_one(
        &self,
        caller: &Caller,
        bucket: &str,
        object: &ObjectIdentifier,
        bypass: bool,
    ) -> S3Result<Deleted> {
        // In a batch, an id that no version can have is one that none has.
        let version = version_id(object.version_id.as_deref())
            .map_err(|_| s3_error!(NoSuchVersion, "The specified version does not exist."))?;
        if object.key.is_empty() {
            return Err(s3_error!(UserKeyMustBeSpecified, "The key is empty."));
        }
        if object.key.len() > KEY_BYTES_MAX {
            return Err(s3_error!(
                KeyTooLongError,
                "Your key is too long: at most {KEY_BYTES_MAX} bytes of UTF-8."
            ));
        }
        let if_match = object.e_tag.as_ref().map(|etag| etag.value().to_owned()).into_iter().collect();
        let precondition = Precondition { if_match, if_none_match: Vec::new() };
        let likeness = likeness(object.size, object.last_modified_time.as_ref());
        let key = object.key.as_str();
        let deleted =
            self.objects.delete_like(caller, bucket, key, version, bypass, precondition, likeness).await;
        deleted.map_err(refused)
    }

    pub(super) async fn put_object_tagging(
        &self,
        caller: &Caller,
        request: S3Request<PutObjectTaggingInput>,
    ) -> S3Result<S3Response<PutObjectTaggingOutput>> {
        let input = request.input;
        let version = version_id(input.version_id.as_deref())?;
        let tags = Some(object_tagging(input.tagging.tag_set)?).filter(|tags| !tags.is_empty());
        let changed = self.objects.set_tagging(caller, &input.bucket, &input.key, version, tags).await;
        let head = changed.map_err(|error| unreadable(error, version))?;
        Ok(S3Response::new(PutObjectTaggingOutput { version_id: made(&head) }))
    }

    pub(super) async fn delete_object_tagging(
        &self,
        caller: &Caller,
        request: S3Request<DeleteObjectTaggingInput>,
    ) -> S3Result<S3Response<DeleteObjectTaggingOutput>> {
        let input = request.input;
        let version = version_id(input.version_id.as_deref())?;
        let changed = self.objects.set_tagging(caller, &input.bucket, &input.key, version, None).await;
        let head = changed.map_err(|error| unreadable(error, version))?;
        Ok(S3Response::new(DeleteObjectTaggingOutput { version_id: made(&head) }))
    }
}

/// What else a deletion asks of its version. No version has a size that cannot be one.
fn likeness(size: Option<i64>, modified: Option<&Timestamp>) -> Likeness {
    Likeness {
        size: size.map(|size| u64::try_from(size).unwrap_or(u64::MAX)),
        modified_secs: modified.map(unix_seconds),
    }
}

fn conditions_of(headers: &http::HeaderMap, name: &http::HeaderName) -> S3Result<Vec<String>> {
    let Some(value) = headers.get(name) else { return Ok(Vec::new()) };
    let condition = ETagCondition::parse_http_header(value.as_bytes())
        .map_err(|error| s3_error!(error, InvalidArgument, "{name} is not \"*\" or one quoted ETag."))?;
    Ok(precondition(Some(&condition), None).if_match)
}

fn copied(head: &ObjectHead) -> CopyObjectResult {
    let mut result = CopyObjectResult {
        e_tag: Some(etag(head)),
        last_modified: Some(timestamp(head.modified_at)),
        ..CopyObjectResult::default()
    };
    set_checksum!(result, &head.checksum);
    result.checksum_type = head.checksum.as_ref().map(kind);
    result
}
