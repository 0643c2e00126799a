//! Who may do what with a bucket and its objects.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::bucket::Bucket;
use super::version::VersionId;

/// Bytes of an object's access list.
pub const ACL_BYTES_MAX: usize = 8 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdentityCommand {
    /// Replaces the access list of a version; `None`: its bucket's owner's alone.
    SetObjectAcl {
        bucket: String,
        key: String,
        acl: Option<String>,
        /// `None`: of the current version.
        #[serde(default)]
        version: Option<VersionId>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdentityQuery {
    /// -> `BucketAccess`: a bucket, its tenant's name, and the named documents in the order asked for.
    BucketAccess { name: String, documents: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdentityAnswer {
    BucketAccess { bucket: Bucket, tenant_name: String, documents: Vec<Option<Bytes>> },
}
