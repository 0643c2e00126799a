//! Who pays, and with what they prove it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Timestamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TenantId(pub u64);

/// What may be stored at most; `None`: no limit. One below what is there already takes nothing away: it only lets nothing
/// grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Plaintext bytes, versions included.
    pub bytes_max: Option<u64>,
    /// Objects, versions included, delete markers left out.
    pub objects_max: Option<u64>,
}

impl Quota {
    /// Which of its bounds a growth would break, in words.
    #[must_use]
    pub fn broken(&self, bytes: (u64, u64), objects: (u64, u64)) -> Option<String> {
        let breaks =
            |max: Option<u64>, (before, after): (u64, u64)| max.filter(|max| after > before && after > *max);
        if let Some(max) = breaks(self.bytes_max, bytes) {
            return Some(format!("{max} bytes"));
        }
        breaks(self.objects_max, objects).map(|max| format!("{max} objects"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum QuotaOf {
    Tenant(TenantId),
    Bucket(String),
}

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
    /// Integral of `used_bytes` since the last sealing of an epoch, up to `counted_to`: what storage is charged by.
    #[serde(default)]
    pub byte_ms: u128,
    #[serde(default)]
    pub counted_to: Timestamp,
    /// Objects that it may hold; `None`: no limit.
    #[serde(default)]
    pub quota_objects: Option<u64>,
}

impl Tenant {
    #[must_use]
    pub fn quota(&self) -> Quota {
        Quota { bytes_max: self.quota_bytes, objects_max: self.quota_objects }
    }

    /// Takes the time until `now` into the integral.
    pub fn count_to(&mut self, now: Timestamp) {
        // A record of a release before counts from now on.
        if self.counted_to > Timestamp(0) {
            let span = u128::from(now.millis_since(self.counted_to));
            self.byte_ms = self.byte_ms.saturating_add(span.saturating_mul(u128::from(self.used_bytes)));
        }
        self.counted_to = now.max(self.counted_to);
    }
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
