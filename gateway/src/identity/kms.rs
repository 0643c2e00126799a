//! Named keys of tenants: what SSE-KMS seals objects with.
//!
//! ```text
//! name ─ directory ─> version in force, its secret sealed by the cluster's key ─ opened ─> part of what wraps an object's keys
//! ```
//!
//! A key has versions. New objects are sealed with the newest; which one an object was sealed with stands in its record, so
//! that turning a key over changes nothing for what there is. A disabled key seals and opens nothing until it is enabled. A
//! key that is deleted waits for its day, and can be kept until then; after it, what it sealed cannot be read by anyone.
//!
//! A name that was never used is made a key by its first use, unless the tenant wants its keys made before.

use std::collections::BTreeMap;

use makai_raft::facts::Timestamp;
use makai_raft::facts::tenant::TenantId;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::directory::Directory;
use super::{ChangeError, Identity, open_secret, seal_secret};

/// Keys of one tenant.
pub const KEYS_MAX: usize = 1000;
/// Versions of one key.
pub const VERSIONS_MAX: usize = 100;
/// Bytes of a key's name.
pub const NAME_BYTES_MAX: usize = 256;
/// Days that a deleted key may wait, as AWS has it.
pub const WAIT_DAYS: std::ops::RangeInclusive<u32> = 7..=30;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const PURPOSE: &str = "kms";

/// A version's secret, as it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyVersion {
    /// Hex of the secret sealed with the cluster's key.
    pub sealed: String,
    pub created_ms: u64,
}

/// A key, as the tenant's directory has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KmsKey {
    pub created_ms: u64,
    pub is_disabled: bool,
    /// When it goes for ever; 0: it stays.
    pub deleted_ms: u64,
    /// By number, from 1; the last is in force.
    pub versions: BTreeMap<u32, KeyVersion>,
}

impl KmsKey {
    fn is_gone(&self, now: Timestamp) -> bool {
        self.deleted_ms != 0 && self.deleted_ms <= now.0
    }
}

/// A key, as its owner may know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KmsKeyShown {
    pub name: String,
    pub is_enabled: bool,
    pub created_ms: u64,
    /// When it goes for ever.
    pub deleted_ms: Option<u64>,
    /// Number of the one in force, and since when it is.
    pub version: u32,
    pub version_created_ms: u64,
}

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KmsError {
    #[error("there is no key {0:?}")]
    NotFound(String),
    #[error("key {0:?} is disabled")]
    Disabled(String),
    #[error("key {0:?} is pending deletion")]
    PendingDeletion(String),
    #[error("{0}")]
    Limit(String),
    #[error("{0}")]
    Unavailable(String),
}

impl From<ChangeError<Self>> for KmsError {
    fn from(error: ChangeError<Self>) -> Self {
        match error {
            ChangeError::Refused(error) => error,
            ChangeError::Facts(error) => Self::Unavailable(error.to_string()),
            ChangeError::Internal(why) => Self::Unavailable(why),
        }
    }
}

/// What is done to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KmsChange {
    Create,
    /// Adds a version, which is in force from now on.
    Rotate,
    Enable,
    Disable,
    /// After so many days.
    Delete {
        after_days: u32,
    },
    /// Takes a deletion back; the key is disabled then.
    Keep,
}

/// The store's name of a key that a request names: the name itself, `alias/NAME`, or an ARN of either in this account.
#[must_use]
pub fn stored_name(text: &str, tenant: TenantId) -> Option<&str> {
    let name = match text.strip_prefix("arn:aws:kms:") {
        None => text,
        Some(rest) => {
            let mut parts = rest.splitn(3, ':');
            let (_region, account, name) = (parts.next()?, parts.next()?, parts.next()?);
            if account.parse() != Ok(tenant.0) {
                return None;
            }
            name.strip_prefix("key/").unwrap_or(name)
        }
    };
    let name = name.strip_prefix("alias/").unwrap_or(name);
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    is_name.then_some(name)
}

fn usable<'d>(directory: &'d Directory, name: &str, now: Timestamp) -> Result<&'d KmsKey, KmsError> {
    let key = directory.kms.get(name).filter(|key| !key.is_gone(now));
    let key = key.ok_or_else(|| KmsError::NotFound(name.to_owned()))?;
    if key.deleted_ms != 0 {
        return Err(KmsError::PendingDeletion(name.to_owned()));
    }
    if key.is_disabled {
        return Err(KmsError::Disabled(name.to_owned()));
    }
    Ok(key)
}

fn in_force(key: &KmsKey) -> u32 {
    key.versions.keys().next_back().copied().unwrap_or(0)
}

impl Identity {
    fn new_version(
        &self,
        tenant: TenantId,
        name: &str,
        number: u32,
        now: Timestamp,
    ) -> Result<KeyVersion, KmsError> {
        let no_randomness =
            || KmsError::Unavailable("the system's random number generator failed".to_owned());
        let mut secret = [0; 32];
        SystemRandom::new().fill(&mut secret).map_err(|_| no_randomness())?;
        let id = format!("{}/{number}/{name}", tenant.0);
        let sealed = seal_secret(&self.inner.cluster_key, PURPOSE, &id, &secret);
        let sealed = hex::encode(sealed.map_err(|_| no_randomness())?);
        Ok(KeyVersion { sealed, created_ms: now.0 })
    }

    /// The version of a key that new objects are sealed with; the key is made where it may be.
    ///
    /// # Errors
    /// See [`KmsError`].
    pub async fn kms_version(&self, tenant: TenantId, name: &str, now: Timestamp) -> Result<u32, KmsError> {
        let unavailable = |error: &dyn std::fmt::Display| KmsError::Unavailable(error.to_string());
        let directory = self.directory(tenant).await.map_err(|error| unavailable(&error))?;
        match usable(&directory, name, now) {
            Ok(key) => return Ok(in_force(key)),
            Err(KmsError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        // What another gateway made a moment ago is not known here yet.
        let (_, directory) = self.read_directory::<KmsError>(tenant).await?;
        match usable(&directory, name, now) {
            Err(KmsError::NotFound(_)) if !directory.kms_is_strict => {}
            other => return other.map(in_force),
        }
        match self.change_kms(tenant, name, KmsChange::Create, now).await {
            // Someone else was first.
            Err(KmsError::Limit(_)) => {
                let (_, directory) = self.read_directory::<KmsError>(tenant).await?;
                usable(&directory, name, now).map(in_force)
            }
            made => made.map(|shown| shown.version),
        }
    }

    /// The secret of a key's version, to seal or open with.
    ///
    /// # Errors
    /// See [`KmsError`].
    pub async fn kms_secret(
        &self,
        tenant: TenantId,
        name: &str,
        version: u32,
        now: Timestamp,
    ) -> Result<[u8; 32], KmsError> {
        let directory =
            self.directory(tenant).await.map_err(|error| KmsError::Unavailable(error.to_string()))?;
        let has = |directory: &Directory| {
            directory.kms.get(name).is_some_and(|key| key.versions.contains_key(&version))
        };
        let newer;
        let directory: &Directory = if has(&directory) {
            &directory
        } else {
            newer = self.read_directory::<KmsError>(tenant).await?.1;
            &newer
        };
        let key = usable(directory, name, now)?;
        let kept =
            key.versions.get(&version).ok_or_else(|| KmsError::NotFound(format!("{name} v{version}")))?;
        let sealed = hex::decode(&kept.sealed).unwrap_or_default();
        let id = format!("{}/{version}/{name}", tenant.0);
        let secret = open_secret(&self.inner.cluster_key, PURPOSE, &id, &sealed).ok();
        secret.and_then(|secret| <[u8; 32]>::try_from(secret).ok()).ok_or_else(|| {
            KmsError::Unavailable(format!("key {name:?} does not open with the cluster's key"))
        })
    }

    /// Changes a key.
    ///
    /// # Errors
    /// See [`KmsError`]; [`KmsError::Limit`]: it is there already, there are too many, or the days are too few or many.
    pub async fn change_kms(
        &self,
        tenant: TenantId,
        name: &str,
        change: KmsChange,
        now: Timestamp,
    ) -> Result<KmsKeyShown, KmsError> {
        if stored_name(name, tenant) != Some(name) {
            let why = format!(
                "a key's name has 1 to {NAME_BYTES_MAX} printable ASCII characters and no alias/ before"
            );
            return Err(KmsError::Limit(why));
        }
        let changed = self.change_directory(tenant, |directory| {
            directory.kms.retain(|_, key| !key.is_gone(now));
            if change == KmsChange::Create {
                if directory.kms.contains_key(name) {
                    return Err(KmsError::Limit(format!("there is a key {name:?} already")));
                }
                if directory.kms.len() >= KEYS_MAX {
                    return Err(KmsError::Limit(format!("a tenant has at most {KEYS_MAX} keys")));
                }
                let first = self.new_version(tenant, name, 1, now)?;
                let key = KmsKey { created_ms: now.0, versions: [(1, first)].into(), ..KmsKey::default() };
                directory.kms.insert(name.to_owned(), key);
            }
            let key = directory.kms.get_mut(name).ok_or_else(|| KmsError::NotFound(name.to_owned()))?;
            match change {
                KmsChange::Create => {}
                KmsChange::Rotate => {
                    if key.deleted_ms != 0 {
                        return Err(KmsError::PendingDeletion(name.to_owned()));
                    }
                    if key.versions.len() >= VERSIONS_MAX {
                        return Err(KmsError::Limit(format!("a key has at most {VERSIONS_MAX} versions")));
                    }
                    let number = in_force(key) + 1;
                    key.versions.insert(number, self.new_version(tenant, name, number, now)?);
                }
                KmsChange::Enable if key.deleted_ms != 0 => {
                    return Err(KmsError::PendingDeletion(name.to_owned()));
                }
                KmsChange::Enable => key.is_disabled = false,
                KmsChange::Disable => key.is_disabled = true,
                KmsChange::Delete { after_days } if !WAIT_DAYS.contains(&after_days) => {
                    let (least, most) = (WAIT_DAYS.start(), WAIT_DAYS.end());
                    return Err(KmsError::Limit(format!("a key is deleted after {least} to {most} days")));
                }
                KmsChange::Delete { after_days } => {
                    key.deleted_ms = now.0.saturating_add(u64::from(after_days) * DAY_MS);
                }
                KmsChange::Keep => {
                    key.deleted_ms = 0;
                    key.is_disabled = true;
                }
            }
            Ok(shown(name, key))
        });
        Ok(changed.await?)
    }

    /// A tenant's keys by name, and whether they must be made before they are used.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn kms_keys(
        &self,
        tenant: TenantId,
        now: Timestamp,
    ) -> Result<(Vec<KmsKeyShown>, bool), KmsError> {
        let (_, directory) = self.read_directory::<KmsError>(tenant).await?;
        let there = directory.kms.iter().filter(|(_, key)| !key.is_gone(now));
        Ok((there.map(|(name, key)| shown(name, key)).collect(), directory.kms_is_strict))
    }

    /// Whether a name that is used for the first time becomes a key, or is refused.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn set_kms_strict(&self, tenant: TenantId, is_strict: bool) -> Result<(), KmsError> {
        let set = self.change_directory::<(), KmsError>(tenant, |directory| {
            directory.kms_is_strict = is_strict;
            Ok(())
        });
        Ok(set.await?)
    }
}

fn shown(name: &str, key: &KmsKey) -> KmsKeyShown {
    let version = in_force(key);
    KmsKeyShown {
        name: name.to_owned(),
        is_enabled: !key.is_disabled && key.deleted_ms == 0,
        created_ms: key.created_ms,
        deleted_ms: (key.deleted_ms != 0).then_some(key.deleted_ms),
        version,
        version_created_ms: key.versions.get(&version).map_or(0, |version| version.created_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_in_every_way_that_s3_takes() {
        let of = |text| stored_name(text, TenantId(7));
        for text in [
            "invoices",
            "alias/invoices",
            "arn:aws:kms:us-east-1:000000000007:key/invoices",
            "arn:aws:kms:eu-west-1:000000000007:alias/invoices",
        ] {
            assert_eq!(of(text), Some("invoices"), "{text}");
        }
        assert_eq!(of("alias/aws/s3"), Some("aws/s3"));
        for text in ["", "alias/", "a b", "arn:aws:kms:us-east-1:000000000008:key/invoices", "arn:aws:kms:x"]
        {
            assert_eq!(of(text), None, "{text}");
        }
        assert_eq!(of(&"k".repeat(NAME_BYTES_MAX + 1)), None);
    }
}
