//! What each operation must be allowed.

use http::HeaderMap;

use crate::policy::acl::Permission;

/// The access list that may allow an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListOf {
    Bucket,
    Object,
}

/// One action that must be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) action: &'static str,
    /// `None`: it is done to the bucket.
    pub(super) key: Option<String>,
    /// What of an access list allows it; `None`: no list does.
    pub(super) permission: Option<Permission>,
    pub(super) list: ListOf,
}

/// Whether an operation makes an object, whose access list its headers say.
pub(super) fn makes_object(operation: &str) -> bool {
    matches!(operation, "PutObject" | "CopyObject" | "CreateMultipartUpload")
}

/// What `operation` needs. The keys of a batch are checked one by one where they are read.
pub(super) fn checks(operation: &str, key: Option<&str>, query: &str, headers: &HeaderMap) -> Vec<Check> {
    use Permission::{Read, ReadAcp, Write, WriteAcp};
    let names_version = query.split('&').any(|pair| pair.starts_with("versionId="));
    let of_version = |plain, version| if names_version { version } else { plain };
    let bucket = |action, permission| Check { action, key: None, permission, list: ListOf::Bucket };
    let object = |action, permission, list| Check { action, key: key.map(str::to_owned), permission, list };
    let read = |action| object(action, Some(Read), ListOf::Object);
    let plain = |action| object(action, None, ListOf::Bucket);
    let write = |action| object(action, Some(Write), ListOf::Bucket);
    let get_object = of_version("s3:GetObject", "s3:GetObjectVersion");
    match operation {
        "GetObject" | "HeadObject" | "SelectObjectContent" => vec![read(get_object)],
        "GetObjectAttributes" => vec![
            read(get_object),
            read(of_version("s3:GetObjectAttributes", "s3:GetObjectVersionAttributes")),
        ],
        "GetObjectTorrent" => vec![read("s3:GetObjectTorrent")],
        "GetObjectAcl" => {
            let action = of_version("s3:GetObjectAcl", "s3:GetObjectVersionAcl");
            vec![object(action, Some(ReadAcp), ListOf::Object)]
        }
        "PutObjectAcl" => {
            let action = of_version("s3:PutObjectAcl", "s3:PutObjectVersionAcl");
            vec![object(action, Some(WriteAcp), ListOf::Object)]
        }
        "GetObjectTagging" => vec![plain(of_version("s3:GetObjectTagging", "s3:GetObjectVersionTagging"))],
        "PutObjectTagging" => vec![plain(of_version("s3:PutObjectTagging", "s3:PutObjectVersionTagging"))],
        "DeleteObjectTagging" => {
            vec![plain(of_version("s3:DeleteObjectTagging", "s3:DeleteObjectVersionTagging"))]
        }
        "GetObjectRetention" => vec![plain("s3:GetObjectRetention")],
        "PutObjectRetention" => vec![plain("s3:PutObjectRetention")],
        "GetObjectLegalHold" => vec![plain("s3:GetObjectLegalHold")],
        "PutObjectLegalHold" => vec![plain("s3:PutObjectLegalHold")],
        "RestoreObject" => vec![plain("s3:RestoreObject")],
        "PutObject" | "CopyObject" | "CreateMultipartUpload" => {
            let mut checks = vec![write("s3:PutObject")];
            if headers.contains_key("x-amz-tagging") {
                checks.push(Check { action: "s3:PutObjectTagging", ..checks[0].clone() });
            }
            checks
        }
        "UploadPart" | "UploadPartCopy" | "CompleteMultipartUpload" => vec![write("s3:PutObject")],
        "AbortMultipartUpload" => vec![write("s3:AbortMultipartUpload")],
        "ListParts" => vec![write("s3:ListMultipartUploadParts")],
        "DeleteObject" => vec![write(of_version("s3:DeleteObject", "s3:DeleteObjectVersion"))],
        // Each key of the body is checked by itself.
        "DeleteObjects" | "PostObject" => Vec::new(),

        "HeadBucket" | "ListObjects" | "ListObjectsV2" => vec![bucket("s3:ListBucket", Some(Read))],
        "ListObjectVersions" => vec![bucket("s3:ListBucketVersions", Some(Read))],
        "ListMultipartUploads" => vec![bucket("s3:ListBucketMultipartUploads", Some(Read))],
        "GetBucketAcl" => vec![bucket("s3:GetBucketAcl", Some(ReadAcp))],
        "PutBucketAcl" => vec![bucket("s3:PutBucketAcl", Some(WriteAcp))],
        _ => vec![bucket(bucket_action(operation), None)],
    }
}

/// The action of operations on a bucket that no access list gives away. One that is not known is nobody's but the
/// owner's: its action is named by no policy.
fn bucket_action(operation: &str) -> &'static str {
    match operation {
        "DeleteBucket" => "s3:DeleteBucket",
        "GetBucketLocation" => "s3:GetBucketLocation",
        "GetBucketPolicy" => "s3:GetBucketPolicy",
        "PutBucketPolicy" => "s3:PutBucketPolicy",
        "DeleteBucketPolicy" => "s3:DeleteBucketPolicy",
        "GetBucketPolicyStatus" => "s3:GetBucketPolicyStatus",
        "GetPublicAccessBlock" => "s3:GetBucketPublicAccessBlock",
        "PutPublicAccessBlock" | "DeletePublicAccessBlock" => "s3:PutBucketPublicAccessBlock",
        "GetBucketOwnershipControls" => "s3:GetBucketOwnershipControls",
        "PutBucketOwnershipControls" | "DeleteBucketOwnershipControls" => "s3:PutBucketOwnershipControls",
        "GetBucketCors" => "s3:GetBucketCORS",
        "PutBucketCors" | "DeleteBucketCors" => "s3:PutBucketCORS",
        "GetBucketTagging" => "s3:GetBucketTagging",
        "PutBucketTagging" | "DeleteBucketTagging" => "s3:PutBucketTagging",
        "GetBucketVersioning" => "s3:GetBucketVersioning",
        "PutBucketVersioning" => "s3:PutBucketVersioning",
        "GetBucketWebsite" => "s3:GetBucketWebsite",
        "PutBucketWebsite" => "s3:PutBucketWebsite",
        "DeleteBucketWebsite" => "s3:DeleteBucketWebsite",
        "GetBucketEncryption" => "s3:GetEncryptionConfiguration",
        "PutBucketEncryption" | "DeleteBucketEncryption" => "s3:PutEncryptionConfiguration",
        "GetBucketLogging" => "s3:GetBucketLogging",
        "PutBucketLogging" => "s3:PutBucketLogging",
        "GetBucketNotificationConfiguration" => "s3:GetBucketNotification",
        "PutBucketNotificationConfiguration" => "s3:PutBucketNotification",
        "GetBucketRequestPayment" => "s3:GetBucketRequestPayment",
        "PutBucketRequestPayment" => "s3:PutBucketRequestPayment",
        "GetBucketLifecycleConfiguration" => "s3:GetLifecycleConfiguration",
        "PutBucketLifecycleConfiguration" | "DeleteBucketLifecycle" => "s3:PutLifecycleConfiguration",
        "GetBucketReplication" => "s3:GetReplicationConfiguration",
        "PutBucketReplication" | "DeleteBucketReplication" => "s3:PutReplicationConfiguration",
        "GetObjectLockConfiguration" => "s3:GetBucketObjectLockConfiguration",
        "PutObjectLockConfiguration" => "s3:PutBucketObjectLockConfiguration",
        "GetBucketAccelerateConfiguration" => "s3:GetAccelerateConfiguration",
        "PutBucketAccelerateConfiguration" => "s3:PutAccelerateConfiguration",
        "GetBucketAnalyticsConfiguration" | "ListBucketAnalyticsConfigurations" => {
            "s3:GetAnalyticsConfiguration"
        }
        "PutBucketAnalyticsConfiguration" | "DeleteBucketAnalyticsConfiguration" => {
            "s3:PutAnalyticsConfiguration"
        }
        "GetBucketInventoryConfiguration" | "ListBucketInventoryConfigurations" => {
            "s3:GetInventoryConfiguration"
        }
        "PutBucketInventoryConfiguration" | "DeleteBucketInventoryConfiguration" => {
            "s3:PutInventoryConfiguration"
        }
        "GetBucketMetricsConfiguration" | "ListBucketMetricsConfigurations" => "s3:GetMetricsConfiguration",
        "PutBucketMetricsConfiguration" | "DeleteBucketMetricsConfiguration" => "s3:PutMetricsConfiguration",
        _ => "makai:Other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::actions::{ACTIONS, Target};

    /// Every operation of S3 on a bucket, and the action that its documentation names, are known to each other: a
    /// policy that names the action is accepted, and is about the same thing.
    #[test]
    fn actions_of_operations_can_be_named_by_policies() {
        let operations = [
            "GetObject",
            "HeadObject",
            "GetObjectAttributes",
            "GetObjectAcl",
            "PutObjectAcl",
            "GetObjectTagging",
            "PutObjectTagging",
            "DeleteObjectTagging",
            "PutObject",
            "UploadPart",
            "AbortMultipartUpload",
            "ListParts",
            "DeleteObject",
            "HeadBucket",
            "ListObjectVersions",
            "ListMultipartUploads",
            "GetBucketAcl",
            "PutBucketAcl",
            "DeleteBucket",
            "GetBucketLocation",
            "GetBucketPolicy",
            "PutBucketPolicy",
            "GetBucketPolicyStatus",
            "PutPublicAccessBlock",
            "PutBucketOwnershipControls",
            "PutBucketCors",
            "GetBucketTagging",
            "PutBucketVersioning",
            "PutBucketWebsite",
            "PutBucketEncryption",
            "PutBucketLogging",
            "PutBucketNotificationConfiguration",
            "PutBucketRequestPayment",
            "PutBucketLifecycleConfiguration",
            "PutBucketReplication",
            "PutObjectLockConfiguration",
        ];
        for operation in operations {
            for query in ["", "versionId=1"] {
                for check in checks(operation, Some("k"), query, &HeaderMap::new()) {
                    let known = ACTIONS.iter().find(|(action, _)| *action == check.action);
                    let expected = if check.key.is_some() { Target::Object } else { Target::Bucket };
                    assert_eq!(
                        known.map(|(_, target)| *target),
                        Some(expected),
                        "{operation}: {}",
                        check.action
                    );
                }
            }
        }
    }
}
