//! Versions: a bucket's versioning, ids of versions, listing them.

use makai_raft::facts::object::{KEY_BYTES_MAX, ObjectHead};
use makai_raft::facts::version::{ListVersions, ListedVersion, VersionId, Versioning};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result, s3_error};

use super::checksums::kind;
use super::errors::refused;
use super::headers::{account_of, etag, length, owner, timestamp};
use super::listing::{Names, entries_max, storage_class};
use super::operations::Operations;
use crate::identity::Caller;
use crate::objects::Found;

/// The version that a request names; `None`: the current one.
pub(super) fn version_id(text: Option<&str>) -> S3Result<Option<VersionId>> {
    let Some(text) = text else { return Ok(None) };
    match VersionId::parse(text) {
        Some(version) => Ok(Some(version)),
        None => Err(s3_error!(InvalidArgument, "Invalid version id specified")),
    }
}

/// What an answer about a version calls it: nothing where its bucket was never versioned.
pub(super) fn shown(head: &ObjectHead, versioning: Versioning) -> Option<String> {
    (versioning != Versioning::Unversioned).then(|| head.version_id().to_string())
}

/// What the answer to a change calls the version it made: only one with an id of its own is named.
pub(super) fn made(head: &ObjectHead) -> Option<String> {
    head.has_version_id.then(|| head.version_id().to_string())
}

impl Found {
    pub(super) fn shown_version(&self) -> Option<String> {
        shown(&self.head, self.versioning)
    }
}

impl Operations {
    pub(super) async fn get_bucket_versioning(
        &self,
        caller: &Caller,
        request: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        let bucket = self.objects.bucket(caller, &request.input.bucket).await.map_err(refused)?;
        let status = match bucket.versioning {
            Versioning::Unversioned => None,
            Versioning::Enabled => Some(BucketVersioningStatus::from_static(BucketVersioningStatus::ENABLED)),
            Versioning::Suspended => {
                Some(BucketVersioningStatus::from_static(BucketVersioningStatus::SUSPENDED))
            }
        };
        Ok(S3Response::new(GetBucketVersioningOutput { status, ..GetBucketVersioningOutput::default() }))
    }

    pub(super) async fn put_bucket_versioning(
        &self,
        caller: &Caller,
        request: S3Request<PutBucketVersioningInput>,
    ) -> S3Result<S3Response<PutBucketVersioningOutput>> {
        let input = request.input;
        let asked = input.versioning_configuration;
        if asked.mfa_delete.as_ref().is_some_and(|delete| delete.as_str() == MFADelete::ENABLED) {
            return Err(s3_error!(
                NotImplemented,
                "MFA delete is not implemented: protect versions by object lock."
            ));
        }
        let versioning = match asked.status.as_ref().map(BucketVersioningStatus::as_str) {
            Some(BucketVersioningStatus::ENABLED) => Versioning::Enabled,
            Some(BucketVersioningStatus::SUSPENDED) => Versioning::Suspended,
            _ => {
                return Err(s3_error!(MalformedXML, "The Status of a versioning is Enabled or Suspended."));
            }
        };
        self.objects.set_versioning(caller, &input.bucket, versioning).await.map_err(refused)?;
        Ok(S3Response::new(PutBucketVersioningOutput {}))
    }

    pub(super) async fn list_object_versions(
        &self,
        caller: &Caller,
        request: S3Request<ListObjectVersionsInput>,
    ) -> S3Result<S3Response<ListObjectVersionsOutput>> {
        let input = request.input;
        let names = Names::new(input.encoding_type.as_ref())?;
        let entries_max = entries_max(input.max_keys, "max-keys")?;
        let after = input.key_marker.clone().unwrap_or_default();
        let after_version = version_id(input.version_id_marker.as_deref().filter(|id| !id.is_empty()))?;
        if after_version.is_some() && after.is_empty() {
            return Err(s3_error!(
                InvalidArgument,
                "A version-id marker cannot be specified without a key marker."
            ));
        }
        let list = ListVersions {
            bucket: input.bucket.clone(),
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().unwrap_or_default(),
            after,
            after_version,
            entries_max,
        };
        let names_given = [&list.prefix, &list.after, &list.delimiter];
        if names_given.iter().any(|name| name.len() > KEY_BYTES_MAX) {
            return Err(s3_error!(KeyTooLongError, "No key has more than {KEY_BYTES_MAX} bytes."));
        }
        let (entries, is_truncated) = if entries_max == 0 {
            self.objects.bucket(caller, &list.bucket).await.map_err(refused)?;
            (Vec::new(), false)
        } else {
            self.objects.list_versions(caller, list).await.map_err(refused)?
        };
        let (next_key, next_version) = match entries.last().filter(|_| is_truncated) {
            Some(ListedVersion::Version { head, .. }) => {
                (Some(head.key.clone()), Some(head.version_id().to_string()))
            }
            Some(ListedVersion::Marker { key, version, .. }) => {
                (Some(key.clone()), Some(version.to_string()))
            }
            Some(ListedVersion::CommonPrefix(common)) => (Some(common.clone()), None),
            None => (None, None),
        };
        let owner = owner(caller);
        let listed = entries.iter().filter_map(|entry| match entry {
            ListedVersion::Version { head, .. } => Some(&head.headers),
            _ => None,
        });
        let owners = self.owners(caller, listed).await?;
        let (mut versions, mut markers, mut prefixes) = (Vec::new(), Vec::new(), Vec::new());
        for entry in entries {
            match entry {
                ListedVersion::Version { head, is_latest } => {
                    let owner = owners.get(&account_of(&head.headers, caller)).unwrap_or(&owner);
                    versions.push(version(&head, is_latest, names, owner));
                }
                ListedVersion::Marker { key, version, modified_at, is_latest, .. } => {
                    markers.push(DeleteMarkerEntry {
                        is_latest: Some(is_latest),
                        key: Some(names.write(&key)),
                        last_modified: Some(timestamp(modified_at)),
                        owner: Some(owner.clone()),
                        version_id: Some(version.to_string()),
                    });
                }
                ListedVersion::CommonPrefix(common) => {
                    prefixes.push(CommonPrefix { prefix: Some(names.write(&common)) });
                }
            }
        }
        Ok(S3Response::new(ListObjectVersionsOutput {
            versions: (!versions.is_empty()).then_some(versions),
            delete_markers: (!markers.is_empty()).then_some(markers),
            common_prefixes: (!prefixes.is_empty()).then_some(prefixes),
            is_truncated: Some(is_truncated),
            next_key_marker: next_key.map(|next| names.write(&next)),
            next_version_id_marker: next_version,
            name: Some(input.bucket),
            prefix: Some(names.write(&input.prefix.unwrap_or_default())),
            key_marker: Some(names.write(&input.key_marker.unwrap_or_default())),
            version_id_marker: Some(input.version_id_marker.unwrap_or_default()),
            max_keys: Some(entries_max.cast_signed()),
            delimiter: input.delimiter.filter(|text| !text.is_empty()).map(|text| names.write(&text)),
            encoding_type: input.encoding_type,
            request_charged: None,
        }))
    }
}

fn version(head: &ObjectHead, is_latest: bool, names: Names, owner: &Owner) -> ObjectVersion {
    ObjectVersion {
        checksum_algorithm: head
            .checksum
            .as_ref()
            .map(|sum| vec![ChecksumAlgorithm::from(sum.algorithm.clone())]),
        checksum_type: head.checksum.as_ref().map(kind),
        e_tag: Some(etag(head)),
        is_latest: Some(is_latest),
        key: Some(names.write(&head.key)),
        last_modified: Some(timestamp(head.modified_at)),
        owner: Some(owner.clone()),
        restore_status: None,
        size: Some(length(head.size)),
        storage_class: Some(ObjectVersionStorageClass::from(storage_class(head))),
        version_id: Some(head.version_id().to_string()),
    }
}
