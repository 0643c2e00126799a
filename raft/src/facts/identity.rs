//! Who may do what: users of tenants, their policies, and access lists.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::bucket::Bucket;
use super::tenant::{AccessKey, Tenant, TenantId};
use super::version::VersionId;

/// Bytes of an object's access list.
pub const ACL_BYTES_MAX: usize = 8 * 1024;

/// Users of one tenant.
pub const TENANT_USERS_MAX: usize = 1000;
/// Policies of one user, and bytes of each.
pub const USER_POLICIES_MAX: usize = 10;
pub const POLICY_BYTES_MAX: usize = 20 * 1024;

/// Bytes of a tenant's directory.
pub const DIRECTORY_BYTES_MAX: usize = 1024 * 1024;

/// What doors keep of a tenant beside its users: groups, roles, policies that several share, issuers of identities. Only
/// doors read it; it is changed as a whole, from the revision that was read, so that no change is lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Grows with each change; 0: there is none yet.
    pub revision: u64,
    pub text: Bytes,
}

/// Someone who acts for a tenant, as far as policies allow. Keys that belong to nobody are the tenant's own: no policy
/// of its users limits them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub tenant: TenantId,
    /// Unique in the tenant: 1 to 64 of `[A-Za-z0-9+=,.@_-]`.
    pub name: String,
    pub created_at: Timestamp,
    /// Name and JSON of each, by name.
    pub policies: Vec<(String, String)>,
}

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
    /// Adds a user, or replaces the policies of one that there is.
    PutUser { user: User },
    /// Refused while keys belong to the user.
    DeleteUser { tenant: TenantId, name: String },
    /// Whose an access key is; `None`: its tenant's own.
    SetKeyUser { id: String, user: Option<String> },
    /// A disabled key is refused until it is enabled again.
    SetKeyEnabled { id: String, is_enabled: bool },
    /// Refused with `PreconditionFailed` unless the tenant's directory is at `revision`.
    SetDirectory { tenant: TenantId, revision: u64, text: Bytes },
    /// Gives a user another name, with all its keys, and sets the directory that has it under that name: both or neither.
    /// Refused as `SetDirectory` is, and where another user has the name.
    RenameUser { tenant: TenantId, name: String, new_name: String, revision: u64, text: Bytes },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdentityQuery {
    /// -> `Key`: an access key, its tenant, and its user.
    Key { id: String },
    /// -> `Users`, by name.
    Users { tenant: TenantId },
    /// -> `BucketAccess`: a bucket, its tenant's name, and the named documents in the order asked for.
    BucketAccess { name: String, documents: Vec<String> },
    /// -> `Directory`
    Directory { tenant: TenantId },
    /// -> `Keys`: a tenant's access keys, each with the name of its user.
    Keys { tenant: TenantId },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdentityAnswer {
    Key { key: AccessKey, tenant: Tenant, user: Option<User> },
    Users(Vec<User>),
    BucketAccess { bucket: Bucket, tenant_name: String, documents: Vec<Option<Bytes>> },
    Directory(Directory),
    Keys(Vec<(AccessKey, Option<String>)>),
}
