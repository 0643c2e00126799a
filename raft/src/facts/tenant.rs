//! Who pays, and with what they prove it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Timestamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TenantId(pub u64);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    pub id: TenantId,
    /// Unique, 1 to 64 of `[a-z0-9-]`.
    pub name: String,
    /// The tenant's key, sealed with the cluster's key; wraps the keys of its blobs.
    pub wrapped_key: Bytes,
    /// Stored bytes it may hold; `None`: no limit.
    pub quota_bytes: Option<u64>,
    pub created_at: Timestamp,
    /// Plaintext bytes of its objects and parts, versions included.
    pub used_bytes: u64,
    pub used_objects: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessKey {
    /// 16 to 128 of `[A-Z0-9]`.
    pub id: String,
    pub tenant: TenantId,
    /// The secret, sealed with the cluster's key.
    pub sealed_secret: Bytes,
    pub created_at: Timestamp,
    pub is_enabled: bool,
}
