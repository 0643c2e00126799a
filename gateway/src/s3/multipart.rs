//! Multipart uploads.

use std::collections::BTreeMap;
use std::sync::Arc;

use makai_raft::facts::command::Refusal;
use makai_raft::facts::object::{PARTS_MAX, Part as KnownPart, Upload};
use makai_raft::facts::query::ENTRIES_PER_ANSWER_MAX;
use makai_raft::facts::version::Versioning;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::access::{Granted, granted};
use super::body::{Notes, upstream};
use super::checksums::{
    Algorithm, Promise, checksum_fields, complete, kind, kind_of, one_of, set_checksum, upload_checksum,
};
use super::copying::{Source, Target, copy_part_bytes};
use super::errors::{refused, unreadable_source};
use super::headers::{
    account_of, copy_from, copy_range, length, object_headers, owner, precondition, source_conditions,
    timestamp,
};
use super::hosts::location;
use super::listing::{Names, entries_max};
use super::operations::Operations;
use super::versions::made;
use crate::identity::Caller;
use crate::objects::ObjectsError;
use crate::objects::sealing::Sealing;

/// Pages of uploads that one listing reads in search of entries to show.
const UPLOAD_PAGES_MAX: usize = 20;

/// As S3 has it, an upload under a customer's key with a checksum of its own is completed with that key; any other may be, and
/// a key that is given must be the right one.
fn check_customer_key(granted: &Granted, upload: &Upload) -> S3Result<()> {
    let is_given = matches!(granted.sealing, Sealing::Customer(_));
    if !is_given && upload.checksum_algorithm.is_none() {
        return Ok(());
    }
    granted.sealing.of_object(&upload.headers).map(|_| ()).map_err(|fault| refused(fault.into()))
}

fn part_number(number: i32) -> S3Result<u16> {
    u16::try_from(number).ok().filter(|number| (1..=PARTS_MAX).contains(number)).ok_or_else(|| {
        s3_error!(InvalidArgument, "Part number must be an integer between 1 and {PARTS_MAX}, inclusive.")
    })
}

impl Operations {
    pub(super) async fn create_multipart_upload(
        &self,
        caller: &Caller,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let granted = granted(&request)?;
        let input = request.input;
        let mut headers = object_headers!(input)?;
        granted.complete(&mut headers)?;
        headers.is_replica = granted.makes_replica(&request.headers, &input.key)?;
        let algorithm = input.checksum_algorithm.as_ref().map(ChecksumAlgorithm::as_str);
        let (algorithm, is_composite) = upload_checksum(algorithm, input.checksum_type.as_ref())?;
        let name = algorithm.map(|algorithm| algorithm.name().to_owned());
        let upload = self
            .objects
            .create_upload(caller, &input.bucket, &input.key, headers, name.clone(), is_composite)
            .await
            .map_err(refused)?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(upload.id),
            checksum_type: name.as_ref().map(|_| kind_of(is_composite)),
            checksum_algorithm: name.map(ChecksumAlgorithm::from),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    pub(super) async fn upload_part(
        &self,
        caller: &Caller,
        mut request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let granted = granted(&request)?;
        let input = &mut request.input;
        let number = part_number(input.part_number)?;
        // Refused before its bytes are sent, and computed with what the whole will need.
        let upload = self
            .objects
            .upload(caller, &input.bucket, &input.key, &input.upload_id)
            .await
            .map_err(refused)?;
        let objects = granted.of_upload(&self.objects, &upload.headers)?;
        let promise = Promise::read(&request.headers, request.trailing_headers.as_ref())?;
        let announced = upload.checksum_algorithm.as_deref().map(Algorithm::parse).transpose()?;
        if let Some(expected) = announced
            && promise.algorithm().is_some_and(|algorithm| algorithm != expected)
        {
            return Err(s3_error!(
                InvalidRequest,
                "Checksum Type mismatch occurred: the upload was created with {}, the part came with {}.",
                expected.name(),
                promise.algorithm().map_or("none", Algorithm::name)
            ));
        }
        // As S3 does for those who name none.
        let promise = promise.or_compute(announced.unwrap_or(Algorithm::Crc64Nvme));
        let notes = request.extensions.get::<Arc<Notes>>().cloned();
        let upstream = upstream(input.body.take(), input.content_length, promise, notes)?;
        let part =
            objects.put_part(caller, &input.bucket, &input.key, &input.upload_id, number, upstream).await;
        let part = part.map_err(refused)?;
        let mut output =
            UploadPartOutput { e_tag: Some(ETag::Strong(part.etag)), ..UploadPartOutput::default() };
        set_checksum!(output, &part.checksum);
        Ok(S3Response::new(output))
    }

    pub(super) async fn upload_part_copy(
        &self,
        caller: &Caller,
        request: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let granted = granted(&request)?;
        let (reader, may_read) = granted.source()?;
        let input = request.input;
        let number = part_number(input.part_number)?;
        let mut from = copy_from(&input.copy_source, &source_conditions!(input))?;
        let range = input.copy_source_range.as_deref().map(copy_range).transpose()?;
        let version = from.version;
        let found = self.objects.find(&reader, &from.bucket, &from.key, version).await;
        let found = found.map_err(|error| unreadable_source(error, version))?;
        may_read.check_object(&found.head)?;
        self.objects.check_source(&found.head, &from).map_err(refused)?;
        let source_version = found.shown_version();
        if found.versioning != Versioning::Unversioned {
            from.version = Some(found.head.version_id());
        }
        let source = found.head;
        from.precondition.if_match = vec![source.etag.clone()];
        let opened = may_read.sealing.of_object(&source.headers).map_err(|fault| refused(fault.into()))?;
        let upload = self.objects.upload(caller, &input.bucket, &input.key, &input.upload_id).await;
        let upload = upload.map_err(refused)?.headers;
        let objects = granted.of_upload(&self.objects, &upload)?;
        let sealing = granted.sealing.of_object(&upload).map_err(|fault| refused(fault.into()))?;
        let shares = reader.tenant == caller.tenant && opened.is_tenants() && sealing.is_tenants();
        let (bucket, key, upload_id) = (&input.bucket, &input.key, &input.upload_id);
        let part = if shares {
            let part = self.objects.copy_part(caller, from, range, bucket, key, upload_id, number).await;
            part.map_err(|error| unreadable_source(error, version))?
        } else {
            let place = Target { bucket, key };
            let from_objects = may_read.sealed(&self.objects);
            let from = Source { objects: &from_objects, reader: &reader, from: &from };
            copy_part_bytes(from, range, &objects, caller, place, (upload_id, number)).await?
        };
        let mut result = CopyPartResult {
            e_tag: Some(ETag::Strong(part.etag)),
            last_modified: Some(timestamp(part.modified_at)),
            ..CopyPartResult::default()
        };
        set_checksum!(result, &part.checksum);
        Ok(S3Response::new(UploadPartCopyOutput {
            copy_part_result: Some(result),
            copy_source_version_id: source_version,
            ..UploadPartCopyOutput::default()
        }))
    }

    pub(super) async fn complete_multipart_upload(
        &self,
        caller: &Caller,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let granted = granted(&request)?;
        let (headers, uri, extensions) = (&request.headers, &request.uri, &request.extensions);
        let location = location(headers, uri, extensions, &request.input.bucket, &request.input.key);
        let input = request.input;
        let named =
            input.multipart_upload.as_ref().and_then(|upload| upload.parts.as_deref()).unwrap_or_default();
        if named.is_empty() {
            return Err(s3_error!(MalformedXML, "You must specify at least one part."));
        }
        if named.len() > usize::from(PARTS_MAX) {
            return Err(s3_error!(
                InvalidArgument,
                "An upload has at most {PARTS_MAX} parts; {} are named.",
                named.len()
            ));
        }
        let mut parts = Vec::with_capacity(named.len());
        for part in named {
            let (Some(number), Some(etag)) = (part.part_number, &part.e_tag) else {
                return Err(s3_error!(MalformedXML, "Each Part needs a PartNumber and an ETag."));
            };
            parts.push((part_number(number)?, etag.value().to_owned()));
        }
        if !parts.is_sorted_by(|(a, _), (b, _)| a < b) {
            return Err(s3_error!(
                InvalidPartOrder,
                "The list of parts was not in ascending order. Parts must be ordered by part number."
            ));
        }
        let claimed = one_of(checksum_fields!(input))?;
        let upload = self.objects.upload(caller, &input.bucket, &input.key, &input.upload_id).await;
        let checksum = match upload {
            Ok(upload) => {
                check_customer_key(&granted, &upload)?;
                self.check_parts(caller, &input, &upload, named, &parts, claimed).await?
            }
            // It may have been completed by this very request, whose answer was lost: the facts remember.
            Err(ObjectsError::Refused(Refusal::NoSuchUpload)) => None,
            Err(error) => return Err(refused(error)),
        };
        let target = precondition(input.if_match.as_ref(), input.if_none_match.as_ref());
        let head = self
            .objects
            .complete_upload(caller, &input.bucket, &input.key, &input.upload_id, parts, checksum, target)
            .await
            .map_err(refused)?;
        granted.say_sealing(&head.headers);
        let mut output = CompleteMultipartUploadOutput {
            version_id: made(&head),
            expiration: self.expiration(&input.bucket, &head).await,
            location: Some(location),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(head.etag.clone())),
            checksum_type: head.checksum.as_ref().map(kind),
            ..CompleteMultipartUploadOutput::default()
        };
        set_checksum!(output, &head.checksum);
        Ok(S3Response::new(output))
    }

    /// Holds what the client says of its parts against what is known of them; gives the checksum of the whole.
    async fn check_parts(
        &self,
        caller: &Caller,
        input: &CompleteMultipartUploadInput,
        upload: &Upload,
        named: &[CompletedPart],
        parts: &[(u16, String)],
        claimed: Option<(Algorithm, String)>,
    ) -> S3Result<Option<makai_raft::facts::object::Checksum>> {
        check_type(upload, input.checksum_type.as_ref())?;
        let last = parts.last().map_or(0, |(number, _)| *number);
        let known = self.known_parts(caller, input, last).await?;
        let mut chosen = Vec::with_capacity(named.len());
        for (named, (number, _)) in named.iter().zip(parts) {
            let Some(part) = known.get(number) else { return Err(invalid_part(*number)) };
            check_part(upload, part, one_of(checksum_fields!(named))?)?;
            chosen.push(part);
        }
        let size: u64 = chosen.iter().map(|part| part.size).sum();
        if let Some(claimed) = input.mpu_object_size.filter(|&claimed| claimed != length(size)) {
            return Err(s3_error!(
                InvalidRequest,
                "The provided 'x-amz-mp-object-size' header value {claimed} does not match what was computed: {size}."
            ));
        }
        complete(upload, chosen.into_iter(), claimed)
    }

    /// Who began an upload.
    async fn upload_owner(&self, caller: &Caller, upload: &Upload) -> S3Result<Owner> {
        let owners = self.owners(caller, std::iter::once(&upload.headers)).await?;
        let found = owners.get(&account_of(&upload.headers, caller)).cloned();
        Ok(found.unwrap_or_else(|| owner(caller)))
    }

    /// The parts of an upload that have numbers up to `last`. Their pages are asked for at once.
    async fn known_parts(
        &self,
        caller: &Caller,
        input: &CompleteMultipartUploadInput,
        last: u16,
    ) -> S3Result<BTreeMap<u16, KnownPart>> {
        let (bucket, key, id) = (&input.bucket, &input.key, &input.upload_id);
        let page_max = ENTRIES_PER_ANSWER_MAX as u16;
        // Numbers that are left out make pages reach over each other, which does no harm.
        let pages = (0..last).step_by(page_max.into()).map(|after| async move {
            let page = self.objects.parts(caller, bucket, key, id, after, page_max.into()).await;
            page.map(|(parts, _)| parts).map_err(refused)
        });
        let pages = futures::future::try_join_all(pages).await?;
        Ok(pages.into_iter().flatten().map(|part| (part.number, part)).collect())
    }

    pub(super) async fn abort_multipart_upload(
        &self,
        caller: &Caller,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = request.input;
        self.objects
            .abort_upload(caller, &input.bucket, &input.key, &input.upload_id)
            .await
            .map_err(refused)?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    pub(super) async fn list_parts(
        &self,
        caller: &Caller,
        request: S3Request<ListPartsInput>,
    ) -> S3Result<S3Response<ListPartsOutput>> {
        let input = request.input;
        let entries_max = entries_max(input.max_parts, "max-parts")?;
        let after = input.part_number_marker.unwrap_or(0);
        let after_number = u16::try_from(after)
            .map_err(|_| s3_error!(InvalidArgument, "part-number-marker must be 0 to {PARTS_MAX}."))?;
        let upload = self
            .objects
            .upload(caller, &input.bucket, &input.key, &input.upload_id)
            .await
            .map_err(refused)?;
        let (parts, is_truncated) = if entries_max == 0 {
            (Vec::new(), false)
        } else {
            let page = self.objects.parts(
                caller,
                &input.bucket,
                &input.key,
                &input.upload_id,
                after_number,
                entries_max,
            );
            page.await.map_err(refused)?
        };
        let next = parts.last().map_or(after, |part| i32::from(part.number));
        let shown = parts.into_iter().map(|part| {
            let mut shown = Part {
                part_number: Some(i32::from(part.number)),
                size: Some(length(part.size)),
                e_tag: Some(ETag::Strong(part.etag)),
                last_modified: Some(timestamp(part.modified_at)),
                ..Part::default()
            };
            set_checksum!(shown, &part.checksum);
            shown
        });
        let owner = self.upload_owner(caller, &upload).await?;
        Ok(S3Response::new(ListPartsOutput {
            parts: Some(shown.collect()),
            is_truncated: Some(is_truncated),
            next_part_number_marker: Some(next),
            part_number_marker: Some(after),
            max_parts: Some(entries_max.cast_signed()),
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            initiator: Some(Initiator { id: owner.id.clone(), display_name: owner.display_name.clone() }),
            owner: Some(owner),
            storage_class: Some(storage_class(&upload)),
            checksum_type: upload.checksum_algorithm.as_ref().map(|_| kind_of(upload.checksum_is_composite)),
            checksum_algorithm: upload.checksum_algorithm.map(ChecksumAlgorithm::from),
            ..ListPartsOutput::default()
        }))
    }

    pub(super) async fn list_multipart_uploads(
        &self,
        caller: &Caller,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        let names = Names::new(input.encoding_type.as_ref())?;
        let entries_max = entries_max(input.max_uploads, "max-uploads")?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let delimiter = input.delimiter.clone().filter(|delimiter| !delimiter.is_empty());
        self.objects.bucket(caller, &input.bucket).await.map_err(refused)?;

        let mut gathered = Gathered::new(&prefix, delimiter.as_deref(), entries_max as usize);
        gathered.start_after(input.key_marker.as_deref(), input.upload_id_marker.as_deref());
        for _ in 0..UPLOAD_PAGES_MAX {
            if entries_max == 0 || gathered.is_full {
                break;
            }
            let page = self.objects.uploads(
                caller,
                &input.bucket,
                &prefix,
                gathered.after.clone(),
                ENTRIES_PER_ANSWER_MAX,
            );
            let (uploads, is_truncated) = page.await.map_err(refused)?;
            let is_end = !is_truncated || uploads.is_empty();
            gathered.take(uploads);
            gathered.is_end = is_end && !gathered.is_full;
            if gathered.is_end {
                break;
            }
        }
        let is_truncated = entries_max > 0 && !gathered.is_end;
        let (next_key, next_id) = gathered.after.filter(|_| is_truncated).unzip();
        let owners = self.owners(caller, gathered.uploads.iter().map(|upload| &upload.headers)).await?;
        let owner_of = |upload: &Upload| {
            owners.get(&account_of(&upload.headers, caller)).cloned().unwrap_or_else(|| owner(caller))
        };
        let shown = gathered.uploads.into_iter().map(|upload| (owner_of(&upload), upload));
        let shown = shown.map(|(owner, upload)| MultipartUpload {
            storage_class: Some(storage_class(&upload)),
            key: Some(names.write(&upload.key)),
            upload_id: Some(upload.id),
            initiated: Some(timestamp(upload.started_at)),
            initiator: Some(Initiator { id: owner.id.clone(), display_name: owner.display_name.clone() }),
            owner: Some(owner),
            checksum_type: upload.checksum_algorithm.as_ref().map(|_| kind_of(upload.checksum_is_composite)),
            checksum_algorithm: upload.checksum_algorithm.map(ChecksumAlgorithm::from),
        });
        let shown: Vec<_> = shown.collect();
        let prefixes: Vec<_> = gathered
            .prefixes
            .iter()
            .map(|prefix| CommonPrefix { prefix: Some(names.write(prefix)) })
            .collect();
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: (!shown.is_empty()).then_some(shown),
            common_prefixes: (!prefixes.is_empty()).then_some(prefixes),
            is_truncated: Some(is_truncated),
            next_key_marker: next_key.map(|key| names.write(&key)),
            next_upload_id_marker: next_id,
            bucket: Some(input.bucket),
            key_marker: Some(names.write(&input.key_marker.unwrap_or_default())),
            upload_id_marker: Some(input.upload_id_marker.unwrap_or_default()),
            prefix: Some(names.write(&prefix)),
            delimiter: delimiter.map(|delimiter| names.write(&delimiter)),
            max_uploads: Some(entries_max.cast_signed()),
            encoding_type: input.encoding_type,
            request_charged: None,
        }))
    }
}

/// The entries of a listing of uploads, grouped by what lies between prefix and delimiter.
struct Gathered<'a> {
    prefix: &'a str,
    delimiter: Option<&'a str>,
    entries_max: usize,
    uploads: Vec<Upload>,
    prefixes: Vec<String>,
    /// The last upload that is in the answer, by itself or by its prefix.
    after: Option<(String, String)>,
    /// All uploads of this key lie behind the reader.
    skipped_key: Option<String>,
    /// The common prefix that the reader has seen.
    seen_prefix: Option<String>,
    is_full: bool,
    is_end: bool,
}

impl<'a> Gathered<'a> {
    fn new(prefix: &'a str, delimiter: Option<&'a str>, entries_max: usize) -> Self {
        Self {
            prefix,
            delimiter,
            entries_max,
            uploads: Vec::new(),
            prefixes: Vec::new(),
            after: None,
            skipped_key: None,
            seen_prefix: None,
            is_full: false,
            is_end: false,
        }
    }

    fn start_after(&mut self, key: Option<&str>, upload_id: Option<&str>) {
        let Some(key) = key.filter(|key| !key.is_empty()) else { return };
        let upload_id = upload_id.unwrap_or_default();
        self.skipped_key = upload_id.is_empty().then(|| key.to_owned());
        self.seen_prefix = self.common_prefix(key).map(str::to_owned);
        self.after = Some((key.to_owned(), upload_id.to_owned()));
    }

    fn common_prefix<'k>(&self, key: &'k str) -> Option<&'k str> {
        let delimiter = self.delimiter?;
        let rest = key.strip_prefix(self.prefix)?;
        let at = rest.find(delimiter)?;
        Some(&key[..self.prefix.len() + at + delimiter.len()])
    }

    fn take(&mut self, page: Vec<Upload>) {
        for upload in page {
            let place = (upload.key.clone(), upload.id.clone());
            if self.skipped_key.as_ref() == Some(&upload.key) {
                self.after = Some(place);
                continue;
            }
            let prefix = self.common_prefix(&upload.key).map(str::to_owned);
            if prefix.is_none() || prefix != self.seen_prefix {
                if self.uploads.len() + self.prefixes.len() == self.entries_max {
                    self.is_full = true;
                    return;
                }
                match &prefix {
                    Some(prefix) => self.prefixes.push(prefix.clone()),
                    None => self.uploads.push(upload),
                }
            }
            self.seen_prefix = prefix;
            self.after = Some(place);
        }
    }
}

/// Holds the mode that an upload's end names against the one it was created with.
fn check_type(upload: &Upload, named: Option<&ChecksumType>) -> S3Result<()> {
    let Some(named) = named else { return Ok(()) };
    if ![ChecksumType::COMPOSITE, ChecksumType::FULL_OBJECT].contains(&named.as_str()) {
        return Err(s3_error!(InvalidRequest, "Value for x-amz-checksum-type header is invalid."));
    }
    let created = kind_of(upload.checksum_is_composite);
    if upload.checksum_algorithm.is_some() && *named != created {
        return Err(s3_error!(
            InvalidRequest,
            "The upload was created using the {} checksum mode. The complete request must use the same checksum mode.",
            created.as_str()
        ));
    }
    Ok(())
}

/// Holds the checksum that an upload's end names for a part against what is known of the part.
fn check_part(upload: &Upload, part: &KnownPart, named: Option<(Algorithm, String)>) -> S3Result<()> {
    let number = part.number;
    let Some((algorithm, value)) = named else {
        let expected = upload.checksum_algorithm.as_deref().filter(|_| upload.checksum_is_composite);
        return match expected {
            Some(expected) => Err(s3_error!(
                InvalidRequest,
                "The upload was created using a {} checksum. The complete request must include the checksum for each \
                 part. It was missing for part {number} in the request.",
                expected.to_ascii_lowercase()
            )),
            None => Ok(()),
        };
    };
    match &part.checksum {
        Some(kept) if kept.algorithm != algorithm.name() && upload.checksum_algorithm.is_some() => {
            Err(s3_error!(
                BadDigest,
                "The {} you specified for part {number} did not match what we received.",
                algorithm.name().to_ascii_lowercase()
            ))
        }
        Some(kept) if kept.algorithm == algorithm.name() && kept.value != value => Err(invalid_part(number)),
        _ => Ok(()),
    }
}

fn invalid_part(number: u16) -> s3s::S3Error {
    s3_error!(
        InvalidPart,
        "Part {number} could not be found, or its ETag or checksum is another. It may not have been uploaded."
    )
}

fn storage_class(upload: &Upload) -> StorageClass {
    let class = upload.headers.storage_class.as_deref().unwrap_or(StorageClass::STANDARD);
    StorageClass::from(class.to_owned())
}

#[cfg(test)]
mod tests {
    use makai_raft::facts::Timestamp;
    use makai_raft::facts::object::ObjectHeaders;

    use super::*;

    fn uploads(places: &[(&str, &str)]) -> Vec<Upload> {
        let upload = |&(key, id): &(&str, &str)| Upload {
            id: id.into(),
            key: key.into(),
            started_at: Timestamp(0),
            headers: ObjectHeaders::default(),
            checksum_algorithm: None,
            checksum_is_composite: false,
        };
        places.iter().map(upload).collect()
    }

    const ALL: [(&str, &str); 6] =
        [("a", "1"), ("a", "2"), ("d/x", "3"), ("d/y", "4"), ("e/z", "5"), ("f", "6")];

    /// Walks all pages of `entries_max` entries; gives what each showed.
    fn walk(delimiter: Option<&str>, entries_max: usize) -> Vec<String> {
        let mut shown = Vec::new();
        let mut marker: Option<(String, String)> = None;
        loop {
            let mut gathered = Gathered::new("", delimiter, entries_max);
            gathered
                .start_after(marker.as_ref().map(|m| m.0.as_str()), marker.as_ref().map(|m| m.1.as_str()));
            let rest: Vec<_> = ALL
                .into_iter()
                .filter(|place| marker.as_ref().is_none_or(|m| *place > (m.0.as_str(), m.1.as_str())))
                .collect();
            gathered.take(uploads(&rest));
            shown.extend(gathered.uploads.iter().map(|upload| format!("{}:{}", upload.key, upload.id)));
            shown.extend(gathered.prefixes.iter().cloned());
            if !gathered.is_full {
                shown.sort();
                return shown;
            }
            assert_ne!(marker, gathered.after, "a page goes forward");
            marker = gathered.after;
        }
    }

    #[test]
    fn every_upload_or_its_prefix_is_shown_once_whatever_the_page() {
        for entries_max in 1..=7 {
            assert_eq!(walk(None, entries_max), ["a:1", "a:2", "d/x:3", "d/y:4", "e/z:5", "f:6"]);
            assert_eq!(walk(Some("/"), entries_max), ["a:1", "a:2", "d/", "e/", "f:6"]);
        }
    }

    #[test]
    fn a_key_marker_alone_skips_all_uploads_of_the_key() {
        let mut gathered = Gathered::new("", None, 10);
        gathered.start_after(Some("a"), None);
        gathered.take(uploads(&ALL));
        assert_eq!(gathered.uploads.len(), 4);
        assert_eq!(gathered.uploads[0].key, "d/x");
    }

    #[test]
    fn part_numbers_have_bounds() {
        assert_eq!(part_number(1).unwrap(), 1);
        assert_eq!(part_number(10_000).unwrap(), 10_000);
        for bad in [0, -1, 10_001, 65_537, i32::MAX] {
            assert_eq!(*part_number(bad).unwrap_err().code(), s3s::S3ErrorCode::InvalidArgument, "{bad}");
        }
    }
}
