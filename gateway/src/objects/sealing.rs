//! Which key wraps the keys of an object's blobs.
//!
//! Each object is sealed under keys of its own, or of the blob that it shares with other small ones of its tenant, wrapped by its
//! tenant's key. Where a customer gives a key (SSE-C) or names one (SSE-KMS), it shares no blob, and its keys are wrapped by one
//! derived from both: HMAC-SHA-256 of a label and the customer's key, or of a label and the secret of the named key's version,
//! under the tenant's key. Without the customer's key the object cannot be read.
//!
//! What an object's record says of it:
//!
//! | text | means |
//! |---|---|
//! | none | the tenant's key |
//! | `AES256` | the tenant's key, and the client or the bucket asked for encryption |
//! | `aws:kms NAME VERSION` | derived from the tenant's key and that version of a key of the tenant's store |
//! | `aws:kms NAME VERSION bucket-key` | the same, and the client or the bucket asked for S3's bucket keys, which answers repeat |
//! | `aws:kms NAME` | derived from the tenant's key and a name: how it was done before there was a store |
//! | `SSE-C SALT CHECK` | derived from the tenant's and the customer's key; CHECK is HMAC-SHA-256 of SALT under the latter |

use std::fmt;

use makai_raft::facts::object::ObjectHeaders;
use makai_raft::facts::tenant::TenantId;
use ring::hmac;

use super::upload::random;
use super::{Objects, ObjectsError};
use crate::identity::Caller;
use crate::identity::kms::{KmsError, stored_name};

const SALT_BYTES: usize = 16;
const CUSTOMER_LABEL: &[u8] = b"makai sse-c 1\0";
const NAMED_LABEL: &[u8] = b"makai sse-kms 1\0";
/// What follows the version in a record.
const BUCKET_KEY_WORD: &str = " bucket-key";
const STORED_LABEL: &[u8] = b"makai sse-kms 2\0";

/// A key that a customer gave with a request. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct CustomerKey(pub [u8; 32]);

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerKey(..)")
    }
}

/// A key of the tenant's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedKey {
    /// As the client wrote it.
    pub name: String,
    /// 0: the name alone, without a store.
    pub version: u32,
    /// Whether a bucket key was asked for. Nothing is done otherwise for it: S3 saves calls of its key store by them, and
    /// there are none to save here.
    pub has_bucket_key: bool,
}

/// How a new object is to be sealed, or what is at hand to open one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sealing {
    #[default]
    Tenant,
    /// As by the tenant's key alone, and said so.
    Declared,
    Named(NamedKey),
    Customer(CustomerKey),
}

/// Why an object cannot be opened with what came with the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealingFault {
    #[error("the object was stored with a customer's key, and none was given")]
    KeyMissing,
    #[error("the object was stored with another customer's key")]
    KeyDiffers,
    #[error("the object was not stored with a customer's key, and one was given")]
    KeyNotUsed,
    #[error("the named key does not exist")]
    NamedKeyMissing,
    #[error("the named key is disabled")]
    NamedKeyDisabled,
    #[error("the named key is pending deletion")]
    NamedKeyPending,
}

impl Sealing {
    /// What the record of a new object says.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn mark(&self) -> Result<Option<String>, ObjectsError> {
        Ok(match self {
            Self::Tenant => None,
            Self::Declared => Some("AES256".to_owned()),
            Self::Named(NamedKey { name, version: 0, .. }) => Some(format!("aws:kms {name}")),
            Self::Named(NamedKey { name, version, has_bucket_key }) => {
                let bucket_key = if *has_bucket_key { BUCKET_KEY_WORD } else { "" };
                Some(format!("aws:kms {name} {version}{bucket_key}"))
            }
            Self::Customer(key) => {
                let salt = random::<SALT_BYTES>()?;
                let check = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key.0), &salt);
                Some(format!("SSE-C {} {}", hex::encode(salt), hex::encode(check)))
            }
        })
    }

    /// How the object was sealed that `headers` tell of, where `self` is at hand to open it.
    ///
    /// # Errors
    /// See [`SealingFault`].
    pub fn of_object(&self, headers: &ObjectHeaders) -> Result<Self, SealingFault> {
        let given = match self {
            Self::Customer(key) => Some(key),
            Self::Tenant | Self::Declared | Self::Named(_) => None,
        };
        let mut words = headers.encryption.as_deref().unwrap_or_default().split(' ');
        let sealed = match (words.next(), words.next(), words.next()) {
            (Some("SSE-C"), Some(salt), Some(check)) => {
                let key = given.ok_or(SealingFault::KeyMissing)?;
                let salt = hex::decode(salt).unwrap_or_default();
                let check = hex::decode(check).unwrap_or_default();
                let own = hmac::Key::new(hmac::HMAC_SHA256, &key.0);
                hmac::verify(&own, &salt, &check).map_err(|_| SealingFault::KeyDiffers)?;
                return Ok(Self::Customer(key.clone()));
            }
            (Some("aws:kms"), Some(name), version) => {
                let version = version.map_or(Some(0), |version| version.parse().ok());
                // One that cannot be read is none that there is.
                let version = version.unwrap_or(u32::MAX);
                let has_bucket_key = words.next().is_some_and(|word| word == BUCKET_KEY_WORD.trim_start());
                Self::Named(NamedKey { name: name.to_owned(), version, has_bucket_key })
            }
            (Some("AES256"), ..) => Self::Declared,
            _ => Self::Tenant,
        };
        if given.is_some() { Err(SealingFault::KeyNotUsed) } else { Ok(sealed) }
    }

    /// Whether the tenant's key alone opens it, so that copies may share its blobs.
    #[must_use]
    pub fn is_tenants(&self) -> bool {
        matches!(self, Self::Tenant | Self::Declared)
    }

    /// `secret`: of the named key's version, where there is one.
    fn wrapping_key(&self, tenant_key: [u8; 32], secret: Option<[u8; 32]>) -> [u8; 32] {
        let (label, secret): (_, &[u8]) = match (self, &secret) {
            (Self::Tenant | Self::Declared, _) => return tenant_key,
            (Self::Named(_), Some(secret)) => (STORED_LABEL, secret),
            (Self::Named(key), None) => (NAMED_LABEL, key.name.as_bytes()),
            (Self::Customer(key), _) => (CUSTOMER_LABEL, &key.0),
        };
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &tenant_key), &[label, secret].concat());
        let mut key = [0; 32];
        key.copy_from_slice(tag.as_ref());
        key
    }
}

impl Objects {
    /// The same objects, of which new ones are sealed as `sealing` says, and old ones opened with its key.
    #[must_use]
    pub fn sealed_by(&self, sealing: Sealing) -> Self {
        Self { sealing, ..self.clone() }
    }

    /// What wraps the keys of the caller's new blobs.
    pub(super) async fn writing_key(&self, caller: &Caller) -> Result<[u8; 32], ObjectsError> {
        self.wrapping_key(caller, &self.sealing).await
    }

    async fn wrapping_key(&self, caller: &Caller, sealing: &Sealing) -> Result<[u8; 32], ObjectsError> {
        let secret = match sealing {
            Sealing::Named(NamedKey { name, version, .. }) if *version > 0 => {
                let name = stored_name(name, caller.tenant).ok_or(SealingFault::NamedKeyMissing)?;
                let identity = &self.inner.identity;
                let secret = identity.kms_secret(caller.tenant, name, *version, self.time()).await;
                Some(secret.map_err(kms_fault)?)
            }
            _ => None,
        };
        Ok(sealing.wrapping_key(self.tenant_key(caller).await?, secret))
    }

    /// The version in force of the named key that `sealing` means, if it means one.
    ///
    /// # Errors
    /// There is no such key, or it may not be used.
    pub async fn with_version(&self, tenant: TenantId, sealing: Sealing) -> Result<Sealing, ObjectsError> {
        let Sealing::Named(key) = sealing else { return Ok(sealing) };
        let name = stored_name(&key.name, tenant).ok_or(SealingFault::NamedKeyMissing)?;
        let version = self.inner.identity.kms_version(tenant, name, self.time()).await.map_err(kms_fault)?;
        Ok(Sealing::Named(NamedKey { version, ..key }))
    }

    /// What wraps the keys of the blobs of an object of the caller's.
    pub(super) async fn reading_key(
        &self,
        caller: &Caller,
        headers: &ObjectHeaders,
    ) -> Result<[u8; 32], ObjectsError> {
        let sealing = self.sealing.of_object(headers)?;
        self.wrapping_key(caller, &sealing).await
    }
}

fn kms_fault(error: KmsError) -> ObjectsError {
    match error {
        KmsError::NotFound(_) => SealingFault::NamedKeyMissing.into(),
        KmsError::Disabled(_) => SealingFault::NamedKeyDisabled.into(),
        KmsError::PendingDeletion(_) => SealingFault::NamedKeyPending.into(),
        KmsError::Limit(why) | KmsError::Unavailable(why) => ObjectsError::Unavailable(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_customer_name_and_tenant_and_the_record_tells_who_can_open() {
        let one = Sealing::Customer(CustomerKey([1; 32]));
        let two = Sealing::Customer(CustomerKey([2; 32]));
        let version = |name: &str, version| {
            Sealing::Named(NamedKey { name: name.to_owned(), version, has_bucket_key: false })
        };
        let named = |name: &str| version(name, 0);
        let all = [
            (Sealing::Tenant, None),
            (one.clone(), None),
            (two.clone(), None),
            (named("a"), None),
            (named("b"), None),
            (version("a", 1), Some([1; 32])),
            (version("a", 2), Some([2; 32])),
        ];
        for (at, (sealing, secret)) in all.iter().enumerate() {
            assert_ne!(sealing.wrapping_key([7; 32], *secret), sealing.wrapping_key([8; 32], *secret));
            for (other, other_secret) in &all[at + 1..] {
                assert_ne!(
                    sealing.wrapping_key([7; 32], *secret),
                    other.wrapping_key([7; 32], *other_secret)
                );
            }
        }
        let marked = |sealing: &Sealing| {
            let encryption = sealing.mark().unwrap();
            ObjectHeaders { encryption, ..ObjectHeaders::default() }
        };
        assert_eq!(one.of_object(&marked(&one)), Ok(one.clone()));
        assert_eq!(two.of_object(&marked(&one)), Err(SealingFault::KeyDiffers));
        assert_eq!(Sealing::Tenant.of_object(&marked(&one)), Err(SealingFault::KeyMissing));
        assert_eq!(one.of_object(&marked(&Sealing::Tenant)), Err(SealingFault::KeyNotUsed));
        assert_eq!(one.of_object(&marked(&named("a"))), Err(SealingFault::KeyNotUsed));
        assert_eq!(Sealing::Tenant.of_object(&marked(&named("a"))), Ok(named("a")));
        assert_eq!(Sealing::Tenant.of_object(&marked(&version("a", 3))), Ok(version("a", 3)));
        let with_bucket_key = NamedKey { name: "a".to_owned(), version: 3, has_bucket_key: true };
        let with_bucket_key = Sealing::Named(with_bucket_key);
        assert_eq!(Sealing::Tenant.of_object(&marked(&with_bucket_key)), Ok(with_bucket_key));
        assert_eq!(Sealing::Tenant.of_object(&marked(&Sealing::Declared)), Ok(Sealing::Declared));
        assert!(!format!("{one:?}").contains('1'));
    }
}
