//! Who may do what with a bucket and its objects.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::bucket::Bucket;

/// Bytes of an object's access list.
pub const ACL_BYTES_MAX: usize = 8 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdentityCommand {
    /// Replaces the access list of a key's current version; `None`: its bucket's owner's alone.
    SetObjectAcl { bucket: String, key: String, acl: Option<String> },
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
