//! Which key wraps the keys of an object's blobs.
//!
//! Each object is sealed under keys of its own, wrapped by its tenant's key. Where a customer gives a key (SSE-C) or
//! names one (SSE-KMS), they are wrapped by one derived from both: HMAC-SHA-256 of a label and the customer's key, or of
//! a label and the key's name, under the tenant's key. Without the customer's key the object cannot be read.
//!
//! What an object's record says of it:
//!
//! | text | means |
//! |---|---|
//! | none | the tenant's key |
//! | `AES256` | the tenant's key, and the client or the bucket asked for encryption |
//! | `aws:kms NAME` | derived from the tenant's key and a name |
//! | `SSE-C SALT CHECK` | derived from the tenant's and the customer's key; CHECK is HMAC-SHA-256 of SALT under the latter |

use std::fmt;

use makai_raft::facts::object::ObjectHeaders;
use ring::hmac;

use super::upload::random;
use super::{Objects, ObjectsError};
use crate::identity::Caller;

const SALT_BYTES: usize = 16;
const CUSTOMER_LABEL: &[u8] = b"makai sse-c 1\0";
const NAMED_LABEL: &[u8] = b"makai sse-kms 1\0";

/// A key that a customer gave with a request. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct CustomerKey(pub [u8; 32]);

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerKey(..)")
    }
}

/// How a new object is to be sealed, or what is at hand to open one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sealing {
    #[default]
    Tenant,
    /// As by the tenant's key alone, and said so.
    Declared,
    Named(String),
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
            Self::Named(name) => Some(format!("aws:kms {name}")),
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
            (Some("aws:kms"), Some(name), _) => Self::Named(name.to_owned()),
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

    fn wrapping_key(&self, tenant_key: [u8; 32]) -> [u8; 32] {
        let (label, secret): (_, &[u8]) = match self {
            Self::Tenant | Self::Declared => return tenant_key,
            Self::Named(name) => (NAMED_LABEL, name.as_bytes()),
            Self::Customer(key) => (CUSTOMER_LABEL, &key.0),
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
        Ok(self.sealing.wrapping_key(self.tenant_key(caller).await?))
    }

    /// What wraps the keys of the blobs of an object of the caller's.
    pub(super) async fn reading_key(
        &self,
        caller: &Caller,
        headers: &ObjectHeaders,
    ) -> Result<[u8; 32], ObjectsError> {
        let sealing = self.sealing.of_object(headers)?;
        Ok(sealing.wrapping_key(self.tenant_key(caller).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_customer_name_and_tenant_and_the_record_tells_who_can_open() {
        let one = Sealing::Customer(CustomerKey([1; 32]));
        let two = Sealing::Customer(CustomerKey([2; 32]));
        let named = |name: &str| Sealing::Named(name.to_owned());
        let all = [Sealing::Tenant, one.clone(), two.clone(), named("a"), named("b")];
        for (at, sealing) in all.iter().enumerate() {
            assert_ne!(sealing.wrapping_key([7; 32]), sealing.wrapping_key([8; 32]));
            for other in &all[at + 1..] {
                assert_ne!(sealing.wrapping_key([7; 32]), other.wrapping_key([7; 32]));
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
        assert_eq!(Sealing::Tenant.of_object(&marked(&Sealing::Declared)), Ok(Sealing::Declared));
        assert!(!format!("{one:?}").contains('1'));
    }
}
