//! The actions that policies name, and what each is about.

use super::pattern::Pattern;

/// What an action is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The tenant's own list of buckets.
    Account,
    Bucket,
    Object,
}

use Target::{Account, Bucket, Object};

/// Every action of S3 that a policy may name.
pub const ACTIONS: [(&str, Target); 103] = [
    ("s3:AbortMultipartUpload", Object),
    ("s3:BypassGovernanceRetention", Object),
    ("s3:CreateBucket", Bucket),
    ("s3:CreateSession", Bucket),
    ("s3:DeleteBucket", Bucket),
    ("s3:DeleteBucketPolicy", Bucket),
    ("s3:DeleteBucketWebsite", Bucket),
    ("s3:DeleteObject", Object),
    ("s3:DeleteObjectTagging", Object),
    ("s3:DeleteObjectVersion", Object),
    ("s3:DeleteObjectVersionTagging", Object),
    ("s3:GetAccelerateConfiguration", Bucket),
    ("s3:GetAnalyticsConfiguration", Bucket),
    ("s3:GetBucketAcl", Bucket),
    ("s3:GetBucketCORS", Bucket),
    ("s3:GetBucketLocation", Bucket),
    ("s3:GetBucketLogging", Bucket),
    ("s3:GetBucketNotification", Bucket),
    ("s3:GetBucketObjectLockConfiguration", Bucket),
    ("s3:GetBucketOwnershipControls", Bucket),
    ("s3:GetBucketPolicy", Bucket),
    ("s3:GetBucketPolicyStatus", Bucket),
    ("s3:GetBucketPublicAccessBlock", Bucket),
    ("s3:GetBucketRequestPayment", Bucket),
    ("s3:GetBucketTagging", Bucket),
    ("s3:GetBucketVersioning", Bucket),
    ("s3:GetBucketWebsite", Bucket),
    ("s3:GetEncryptionConfiguration", Bucket),
    ("s3:GetIntelligentTieringConfiguration", Bucket),
    ("s3:GetInventoryConfiguration", Bucket),
    ("s3:GetLifecycleConfiguration", Bucket),
    ("s3:GetMetricsConfiguration", Bucket),
    ("s3:GetObject", Object),
    ("s3:GetObjectAcl", Object),
    ("s3:GetObjectAttributes", Object),
    ("s3:GetObjectLegalHold", Object),
    ("s3:GetObjectRetention", Object),
    ("s3:GetObjectTagging", Object),
    ("s3:GetObjectTorrent", Object),
    ("s3:GetObjectVersion", Object),
    ("s3:GetObjectVersionAcl", Object),
    ("s3:GetObjectVersionAttributes", Object),
    ("s3:GetObjectVersionForReplication", Object),
    ("s3:GetObjectVersionTagging", Object),
    ("s3:GetObjectVersionTorrent", Object),
    ("s3:GetReplicationConfiguration", Bucket),
    ("s3:ListAllMyBuckets", Account),
    ("s3:ListBucket", Bucket),
    ("s3:ListBucketMultipartUploads", Bucket),
    ("s3:ListBucketVersions", Bucket),
    ("s3:ListMultipartUploadParts", Object),
    ("s3:ObjectOwnerOverrideToBucketOwner", Object),
    ("s3:PutAccelerateConfiguration", Bucket),
    ("s3:PutAnalyticsConfiguration", Bucket),
    ("s3:PutBucketAcl", Bucket),
    ("s3:PutBucketCORS", Bucket),
    ("s3:PutBucketLogging", Bucket),
    ("s3:PutBucketNotification", Bucket),
    ("s3:PutBucketObjectLockConfiguration", Bucket),
    ("s3:PutBucketOwnershipControls", Bucket),
    ("s3:PutBucketPolicy", Bucket),
    ("s3:PutBucketPublicAccessBlock", Bucket),
    ("s3:PutBucketRequestPayment", Bucket),
    ("s3:PutBucketTagging", Bucket),
    ("s3:PutBucketVersioning", Bucket),
    ("s3:PutBucketWebsite", Bucket),
    ("s3:PutEncryptionConfiguration", Bucket),
    ("s3:PutIntelligentTieringConfiguration", Bucket),
    ("s3:PutInventoryConfiguration", Bucket),
    ("s3:PutLifecycleConfiguration", Bucket),
    ("s3:PutMetricsConfiguration", Bucket),
    ("s3:PutObject", Object),
    ("s3:PutObjectAcl", Object),
    ("s3:PutObjectLegalHold", Object),
    ("s3:PutObjectRetention", Object),
    ("s3:PutObjectTagging", Object),
    ("s3:PutObjectVersionAcl", Object),
    ("s3:PutObjectVersionTagging", Object),
    ("s3:PutReplicationConfiguration", Bucket),
    ("s3:ReplicateDelete", Object),
    ("s3:ReplicateObject", Object),
    ("s3:ReplicateTags", Object),
    ("s3:RestoreObject", Object),
    // Of accounts, access points and jobs: named in policies of users, done by no door.
    ("s3:CreateAccessPoint", Account),
    ("s3:CreateJob", Account),
    ("s3:DeleteAccessPoint", Account),
    ("s3:DeleteAccessPointPolicy", Account),
    ("s3:DeleteJobTagging", Account),
    ("s3:DescribeJob", Account),
    ("s3:GetAccessPoint", Account),
    ("s3:GetAccessPointPolicy", Account),
    ("s3:GetAccessPointPolicyStatus", Account),
    ("s3:GetAccountPublicAccessBlock", Account),
    ("s3:GetJobTagging", Account),
    ("s3:ListAccessPoints", Account),
    ("s3:ListJobs", Account),
    ("s3:PutAccessPointPolicy", Account),
    ("s3:PutAccountPublicAccessBlock", Account),
    ("s3:PutJobTagging", Account),
    ("s3:UpdateJobPriority", Account),
    ("s3:UpdateJobStatus", Account),
    ("s3:DeleteStorageLensConfiguration", Account),
    ("s3:GetStorageLensConfiguration", Account),
];

/// What the actions that a pattern names are about; `None`: it names none.
pub(super) fn targets(pattern: &Pattern) -> Option<Vec<Target>> {
    let mut found: Vec<Target> = Vec::new();
    for (action, target) in ACTIONS {
        if pattern.matches_action(action) && !found.contains(&target) {
            found.push(target);
        }
    }
    (!found.is_empty()).then_some(found)
}
