//! Writes `gateway/S3.md`: every operation of S3, and whether the door does it.

use std::fmt::Write as _;
use std::path::Path;

use super::operations::DONE;

/// Every operation of the S3 API, as `s3s` routes them.
const ALL: &str = "AbortMultipartUpload CompleteMultipartUpload CopyObject CreateBucket \
    CreateBucketMetadataTableConfiguration CreateMultipartUpload CreateSession DeleteBucket \
    DeleteBucketAnalyticsConfiguration DeleteBucketCors DeleteBucketEncryption \
    DeleteBucketIntelligentTieringConfiguration DeleteBucketInventoryConfiguration DeleteBucketLifecycle \
    DeleteBucketMetadataTableConfiguration DeleteBucketMetricsConfiguration DeleteBucketOwnershipControls \
    DeleteBucketPolicy DeleteBucketReplication DeleteBucketTagging DeleteBucketWebsite DeleteObject \
    DeleteObjectTagging DeleteObjects DeletePublicAccessBlock GetBucketAccelerateConfiguration GetBucketAcl \
    GetBucketAnalyticsConfiguration GetBucketCors GetBucketEncryption GetBucketIntelligentTieringConfiguration \
    GetBucketInventoryConfiguration GetBucketLifecycleConfiguration GetBucketLocation GetBucketLogging \
    GetBucketMetadataTableConfiguration GetBucketMetricsConfiguration GetBucketNotificationConfiguration \
    GetBucketOwnershipControls GetBucketPolicy GetBucketPolicyStatus GetBucketReplication GetBucketRequestPayment \
    GetBucketTagging GetBucketVersioning GetBucketWebsite GetObject GetObjectAcl GetObjectAttributes \
    GetObjectLegalHold GetObjectLockConfiguration GetObjectRetention GetObjectTagging GetObjectTorrent \
    GetPublicAccessBlock HeadBucket HeadObject ListBucketAnalyticsConfigurations \
    ListBucketIntelligentTieringConfigurations ListBucketInventoryConfigurations ListBucketMetricsConfigurations \
    ListBuckets ListDirectoryBuckets ListMultipartUploads ListObjectVersions ListObjects ListObjectsV2 ListParts \
    PostObject PutBucketAccelerateConfiguration PutBucketAcl PutBucketAnalyticsConfiguration PutBucketCors \
    PutBucketEncryption PutBucketIntelligentTieringConfiguration PutBucketInventoryConfiguration \
    PutBucketLifecycleConfiguration PutBucketLogging PutBucketMetricsConfiguration \
    PutBucketNotificationConfiguration PutBucketOwnershipControls PutBucketPolicy PutBucketReplication \
    PutBucketRequestPayment PutBucketTagging PutBucketVersioning PutBucketWebsite PutObject PutObjectAcl \
    PutObjectLegalHold PutObjectLockConfiguration PutObjectRetention PutObjectTagging PutPublicAccessBlock \
    RestoreObject SelectObjectContent UploadPart UploadPartCopy WriteGetObjectResponse";

/// What limits an operation that is done.
const LIMITS: [(&str, &str); 26] = [
    ("CopyObject", "by reference within a tenant; by bytes between tenants and encryption keys"),
    ("CreateBucket", "10,000 buckets a tenant; `x-makai-scheme: k+m` chooses the coding"),
    ("CreateMultipartUpload", "without an algorithm the whole has the CRC that all of its parts have"),
    ("DeleteObjects", "1,000 keys"),
    ("GetBucketAccelerateConfiguration", "never accelerated"),
    ("GetBucketPolicyStatus", "public by policy or by access list; answers without a policy, too"),
    ("GetObjectTorrent", "`NoSuchKey` (404): no torrents are kept"),
    ("PostObject", "5 GiB; 64 KiB of fields before the file"),
    ("PutBucketAcl", "100 grants; not to e-mail addresses (`UnresolvableGrantByEmailAddress`)"),
    ("PutBucketCors", "100 rules, one wildcard in each origin and header"),
    (
        "PutBucketEncryption",
        "one rule; keys of the tenant's store (`makai kms`); bucket keys are echoed, and change nothing; contexts are not taken",
    ),
    (
        "PutBucketLifecycleConfiguration",
        "1,000 rules; transitions to `STANDARD_IA`, `ONEZONE_IA`, `INTELLIGENT_TIERING`, `GLACIER_IR` change the name alone: bytes stay as they are; other classes are refused",
    ),
    ("PutBucketLogging", "to a bucket of the same tenant; `TargetGrants` are `NotImplemented` (501)"),
    (
        "PutBucketNotificationConfiguration",
        "to webhooks, named `arn:makai:webhook:::URL`; 100 rules; no EventBridge; what mounts change is told as puts and deletions",
    ),
    (
        "PutBucketPolicy",
        "20 KiB; conditions of every operator and policy variables; accounts (by number), users and roles that are named must exist",
    ),
    (
        "PutBucketReplication",
        "to targets that an operator gives (`makai replication-target`); no existing objects, owner change, KMS or time control",
    ),
    (
        "PutBucketRequestPayment",
        "with `Requester`, others must send `x-amz-request-payer`; no bill is written",
    ),
    ("PutBucketTagging", "50 tags"),
    (
        "PutBucketVersioning",
        "of whole buckets: MinIO's `ExcludeFolders` and `ExcludedPrefixes`, and MFA delete, are `NotImplemented` (501)",
    ),
    ("PutBucketWebsite", "served under `BUCKET.DOMAIN` of `s3.website_domains`"),
    (
        "PutObject",
        "5 GiB, without a `Content-Length` 4 MiB; 2 KiB of user metadata; SSE-C, SSE-KMS with keys of the tenant's store, SSE-S3",
    ),
    ("PutObjectAcl", "100 grants"),
    ("PutObjectTagging", "10 tags"),
    ("RestoreObject", "`InvalidObjectState` (403): nothing is archived"),
    ("UploadPart", "10,000 parts of 5 MiB to 5 GiB"),
    ("UploadPartCopy", "by reference within a tenant; by bytes between tenants and encryption keys"),
];

/// `snake_case` of a name in `CamelCase`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for (at, one) in name.char_indices() {
        let digit = one.is_ascii_digit();
        // `V2` is one word.
        if one.is_ascii_uppercase() && at > 0 && !digit {
            snake.push('_');
        }
        snake.push(one.to_ascii_lowercase());
    }
    snake
}

fn table() -> String {
    let mut page = String::from(
        "# The S3 API\n\nEvery operation of S3, and what this door does with it. A request for what is not done is \
         answered with `NotImplemented` (501).\nWritten by `UPDATE=1 cargo test -p makai-gateway --lib s3::support`.\n\n\
         Signatures: SigV4 in headers, queries and forms, with every kind of payload hash; SigV2 in headers, queries and forms; SigV4A \
         is `NotImplemented` (501).\nPath style, and virtual-host style for the configured domains. Anonymous requests \
         where a bucket policy or an access list allows them.\n\n\
         Of STS, the same address answers `GetCallerIdentity`, `GetSessionToken`, `AssumeRole` (roles of this and other\n\
         accounts, external ids, session policies, an hour from a session) and `AssumeRoleWithWebIdentity` (OpenID Connect:\n\
         RS, PS, ES and EdDSA keys from the issuer's `jwks_uri`). Of IAM: users, access keys, groups, roles, inline and\n\
         attached policies and their versions, OpenID Connect providers, tags, paths; a user or group can be renamed. An account is a\n\
         tenant, its number the tenant's. What changes counts at once on the gateway that was asked, within 5 s on others.\n\n| operation | done | limits, or the answer |\n|---|---|---|\n",
    );
    for name in ALL.split_whitespace() {
        let is_done = name == "PostObject" || DONE.contains(&snake(name).as_str());
        let limit = LIMITS.iter().find(|(of, _)| *of == name).map(|(_, limit)| *limit);
        let (done, limit) =
            if is_done { ("yes", limit.unwrap_or("")) } else { ("no", "`NotImplemented` (501)") };
        let _ = writeln!(page, "| `{name}` | {done} | {limit} |");
    }
    page
}

#[test]
fn the_page_says_what_the_door_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("S3.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, table()).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap();
    assert!(page == table(), "S3.md is behind: UPDATE=1 cargo test -p makai-gateway --lib s3::support");
}

#[test]
fn every_operation_that_is_done_has_a_row() {
    let all: Vec<_> = ALL.split_whitespace().map(snake).collect();
    for done in DONE {
        assert!(all.iter().any(|name| name == done), "{done} is no operation of S3's");
    }
    for (name, _) in LIMITS {
        assert!(ALL.split_whitespace().any(|all| all == name), "{name}");
    }
}
