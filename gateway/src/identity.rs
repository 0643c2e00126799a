//! Whose request it is: access keys and tenants' data keys, unsealed with the cluster's key and cached.
//!
//! ```text
//! access key id ─ cache (5 s) ─ or metadata ─> AccessKey + Tenant ─ open with the cluster's key ─> secret, Caller
//! ```
//!
//! What is stored sealed has one format, `MKS1`:
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | `MKS1`: magic and version |
//! | 4..16 | nonce, random |
//! | 16.. | AES-256-GCM of the plaintext under the cluster's key, then its 16-byte tag |
//!
//! The associated data is `purpose`, a zero byte, and `id`: what was sealed for one key or tenant opens for no other.
//!
//! Always: at most [`CACHE_ENTRIES_MAX`] ids are remembered, unknown ones included; a disabled key stops working within
//! [`CACHE_TTL`] on every gateway; no secret reaches a log.

pub mod directory;
pub mod issuers;
pub mod kms;
mod limits;
mod named;
mod records;
pub mod session;
pub mod targets;

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use makai_raft::facts::command::Refusal;
use makai_raft::facts::identity::{IdentityAnswer, IdentityQuery, User};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::{Tenant, TenantId};
use makai_raft::handle::{MetaError, Metadata};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::Instant;

use self::directory::Directory;
pub use self::records::ChangeError;
use crate::outbound::Outbound;
use crate::policy::Policy;
use crate::policy::document::Kind;

/// How long an answer of the metadata is believed.
pub const CACHE_TTL: Duration = Duration::from_secs(5);
/// Access keys remembered, and tenants remembered.
pub const CACHE_ENTRIES_MAX: usize = 10_000;
/// Purpose of a sealed secret; its id is the access key's id.
pub const PURPOSE_SECRET: &str = "access-key-secret";
/// Purpose of a sealed tenant key; its id is the tenant's name.
pub const PURPOSE_TENANT_KEY: &str = "tenant-key";

const SEALED_MAGIC: &[u8; 4] = b"MKS1";
/// An id longer than this is unknown without asking.
const ACCESS_KEY_ID_BYTES_MAX: usize = 128;
const ACCESS_KEY_ID_CHARS: usize = 20;
const SECRET_CHARS: usize = 40;
const ID_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
/// 64 of them, so that a random byte's low six bits choose without bias.
const SECRET_ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Who a door found a request to come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub tenant: TenantId,
    pub tenant_name: String,
    pub access_key_id: String,
}

/// What limits the keys of a user, or a session in a role.
#[derive(Debug, Clone, PartialEq)]
pub struct UserRights {
    /// The user's, or the role's: begins and ends with a slash.
    pub path: String,
    /// The user's, or the role's.
    pub name: String,
    /// Of a role: what the session calls itself.
    pub session: Option<String>,
    pub policies: Vec<Policy>,
}

/// Why a caller could not be identified.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    /// Tell the client that its credentials are wrong.
    #[error("access key {0:?} does not exist or is disabled: check the key, or make one with `makai key`")]
    UnknownAccessKey(String),
    #[error("tenant {} does not exist", .0.0)]
    UnknownTenant(TenantId),
    /// Tell the client to try again.
    #[error("the metadata cannot say whose key it is: {0}")]
    Unavailable(String),
    /// The operator must look: a stored secret does not open with this cluster's key.
    #[error(
        "{what} of {id:?} does not open with the cluster's key: is this node configured with the right one?"
    )]
    Sealed { what: &'static str, id: String },
}

/// A sealed value that does not open: another key, another purpose or id, or changed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealed value does not open with this key, purpose and id")]
pub struct OpenError;

/// The system gave no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system's random number generator failed")]
pub struct RandomError;

/// A secret that its `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A new access key, in the clear: shown once to its owner, stored sealed.
#[derive(Debug, Clone)]
pub struct NewAccessKey {
    /// 20 of `[A-Z0-9]`.
    pub id: String,
    /// 40 of `[A-Za-z0-9+/]`.
    pub secret: Secret,
}

/// The keys of callers and tenants. Cheap to clone; clones share one cache.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    metadata: Arc<dyn Metadata>,
    cluster_key: [u8; 32],
    access_keys: Cache<String, Option<Known>>,
    tenant_keys: Cache<TenantId, [u8; 32]>,
    tenant_names: Cache<TenantId, String>,
    directories: Cache<TenantId, Arc<Directory>>,
    issuers: issuers::Issuers,
    limits: limits::Limits,
}

#[derive(Clone)]
struct Known {
    caller: Caller,
    /// `None`: the key is its tenant's own.
    user: Option<Arc<UserRights>>,
    secret: Secret,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    #[must_use]
    pub fn new(metadata: Arc<dyn Metadata>, cluster_key: [u8; 32]) -> Self {
        Self::with_outbound(metadata, cluster_key, Outbound::default())
    }

    /// As [`new`](Self::new), with what may be reached to ask issuers of identities.
    #[must_use]
    pub fn with_outbound(metadata: Arc<dyn Metadata>, cluster_key: [u8; 32], outbound: Outbound) -> Self {
        let inner = Inner {
            metadata,
            cluster_key,
            access_keys: Cache::new(),
            tenant_keys: Cache::new(),
            tenant_names: Cache::new(),
            directories: Cache::new(),
            issuers: issuers::Issuers::new(outbound),
            limits: limits::Limits::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// # Errors
    /// See [`IdentityError`].
    pub async fn caller(&self, access_key_id: &str) -> Result<Caller, IdentityError> {
        Ok(self.known(access_key_id).await?.caller)
    }

    /// What limits a key; `None`: it is its tenant's own, which no user's policies limit.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn user(&self, access_key_id: &str) -> Result<Option<Arc<UserRights>>, IdentityError> {
        Ok(self.known(access_key_id).await?.user)
    }

    /// # Errors
    /// See [`IdentityError`].
    pub async fn secret(&self, access_key_id: &str) -> Result<Secret, IdentityError> {
        Ok(self.known(access_key_id).await?.secret)
    }

    /// The key that wraps the keys of a tenant's blobs.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn tenant_key(&self, id: TenantId) -> Result<[u8; 32], IdentityError> {
        if let Some(key) = self.inner.tenant_keys.get(&id) {
            return Ok(key);
        }
        match self.inner.metadata.query(Query::Tenant { id }).await {
            Ok(Answer::Tenant(tenant)) => self.open_tenant_key(&tenant),
            Ok(_) => Err(unexpected_answer()),
            Err(MetaError::Refused(_)) => Err(IdentityError::UnknownTenant(id)),
            Err(error) => Err(IdentityError::Unavailable(error.to_string())),
        }
    }

    async fn rights(&self, user: &User) -> Result<UserRights, IdentityError> {
        let directory = self.directory(user.tenant).await?;
        let policies = compile(&user.name, &directory.texts_of_user(user))?;
        let path = directory.path_of_user(&user.name).to_owned();
        Ok(UserRights { path, name: user.name.clone(), session: None, policies })
    }

    async fn known(&self, access_key_id: &str) -> Result<Known, IdentityError> {
        let shown: String = access_key_id.chars().take(ACCESS_KEY_ID_BYTES_MAX).collect();
        let unknown = || IdentityError::UnknownAccessKey(shown.clone());
        if access_key_id.is_empty() || access_key_id.len() > ACCESS_KEY_ID_BYTES_MAX {
            return Err(unknown());
        }
        let id = access_key_id.to_owned();
        if let Some(known) = self.inner.access_keys.get(&id) {
            return known.ok_or_else(unknown);
        }
        let query = Query::Identity(IdentityQuery::Key { id: id.clone() });
        let known = match self.inner.metadata.query(query).await {
            Ok(Answer::Identity(IdentityAnswer::Key { key, tenant, user }))
                if key.is_enabled && key.id == id =>
            {
                let secret = open_secret(&self.inner.cluster_key, PURPOSE_SECRET, &id, &key.sealed_secret)
                    .ok()
                    .and_then(|plain| String::from_utf8(plain).ok())
                    .ok_or_else(|| IdentityError::Sealed { what: "the secret", id: id.clone() })?;
                self.open_tenant_key(&tenant)?;
                let caller =
                    Caller { tenant: tenant.id, tenant_name: tenant.name, access_key_id: id.clone() };
                let user = match user {
                    Some(user) => Some(Arc::new(self.rights(&user).await?)),
                    None => None,
                };
                Some(Known { caller, user, secret: Secret(secret.into()) })
            }
            Ok(Answer::Identity(IdentityAnswer::Key { .. }))
            | Err(MetaError::Refused(Refusal::NotFound(_))) => None,
            Ok(_) => return Err(unexpected_answer()),
            Err(error) => return Err(IdentityError::Unavailable(error.to_string())),
        };
        self.inner.access_keys.put(id, known.clone());
        known.ok_or_else(unknown)
    }

    fn open_tenant_key(&self, tenant: &Tenant) -> Result<[u8; 32], IdentityError> {
        let key = open_secret(&self.inner.cluster_key, PURPOSE_TENANT_KEY, &tenant.name, &tenant.wrapped_key)
            .ok()
            .and_then(|plain| <[u8; 32]>::try_from(plain).ok())
            .ok_or_else(|| IdentityError::Sealed { what: "the tenant key", id: tenant.name.clone() })?;
        self.inner.tenant_keys.put(tenant.id, key);
        Ok(key)
    }
}

/// A policy that cannot be read may hold a deny: nobody is let in without it.
fn compile(of: &str, texts: &[(&str, &str)]) -> Result<Vec<Policy>, IdentityError> {
    let one = |(name, text): &(&str, &str)| {
        Policy::parse(text.as_bytes(), Kind::Identity)
            .map_err(|error| IdentityError::Unavailable(format!("policy {name:?} of {of:?}: {error}")))
    };
    texts.iter().map(one).collect()
}

fn unexpected_answer() -> IdentityError {
    IdentityError::Unavailable(
        "the metadata answered another question; do the nodes run different releases?".into(),
    )
}

/// Draws an access key.
///
/// # Errors
/// The system gave no randomness.
pub fn new_access_key() -> Result<NewAccessKey, RandomError> {
    let random = SystemRandom::new();
    let mut id = String::with_capacity(ACCESS_KEY_ID_CHARS);
    // Bytes from the largest multiple of the alphabet's length on would favour its first letters.
    let fair_below = 256 - 256 % ID_ALPHABET.len();
    while id.len() < ACCESS_KEY_ID_CHARS {
        let mut draw = [0; 32];
        random.fill(&mut draw).map_err(|_| RandomError)?;
        let room = ACCESS_KEY_ID_CHARS - id.len();
        let fair = draw.iter().map(|&byte| usize::from(byte)).filter(|&byte| byte < fair_below);
        id.extend(fair.take(room).map(|byte| char::from(ID_ALPHABET[byte % ID_ALPHABET.len()])));
    }
    let mut draw = [0; SECRET_CHARS];
    random.fill(&mut draw).map_err(|_| RandomError)?;
    let secret: String =
        draw.iter().map(|&byte| char::from(SECRET_ALPHABET[usize::from(byte & 63)])).collect();
    Ok(NewAccessKey { id, secret: Secret(secret.into()) })
}

/// Draws a tenant's key and seals it for [`Tenant::wrapped_key`].
///
/// # Errors
/// The system gave no randomness.
pub fn new_tenant_key(cluster_key: &[u8; 32], tenant_name: &str) -> Result<Bytes, RandomError> {
    let mut key = [0; 32];
    SystemRandom::new().fill(&mut key).map_err(|_| RandomError)?;
    seal_secret(cluster_key, PURPOSE_TENANT_KEY, tenant_name, &key)
}

/// Seals `plain` so that it opens only with the same key, purpose and id.
///
/// # Errors
/// The system gave no randomness.
pub fn seal_secret(
    cluster_key: &[u8; 32],
    purpose: &str,
    id: &str,
    plain: &[u8],
) -> Result<Bytes, RandomError> {
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new().fill(&mut nonce).map_err(|_| RandomError)?;
    let mut body = plain.to_vec();
    let tag = aead(cluster_key)
        .and_then(|key| {
            key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad(purpose, id), &mut body)
        })
        .map_err(|_| RandomError)?;
    Ok([SEALED_MAGIC.as_slice(), &nonce, &body, tag.as_ref()].concat().into())
}

/// Opens what [`seal_secret`] sealed.
///
/// # Errors
/// The bytes are not `MKS1`, or were sealed with another key, purpose or id, or have changed.
pub fn open_secret(
    cluster_key: &[u8; 32],
    purpose: &str,
    id: &str,
    sealed: &[u8],
) -> Result<Vec<u8>, OpenError> {
    let rest = sealed.strip_prefix(SEALED_MAGIC.as_slice()).ok_or(OpenError)?;
    let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or(OpenError)?;
    let mut body = body.to_vec();
    let plain = aead(cluster_key)
        .and_then(|key| key.open_in_place(Nonce::assume_unique_for_key(*nonce), aad(purpose, id), &mut body))
        .map_err(|_| OpenError)?;
    Ok(plain.to_vec())
}

fn aead(key: &[u8; 32]) -> Result<LessSafeKey, ring::error::Unspecified> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new)
}

fn aad(purpose: &str, id: &str) -> Aad<Vec<u8>> {
    Aad::from([purpose.as_bytes(), &[0], id.as_bytes()].concat())
}

/// Answers of the metadata, each believed for [`CACHE_TTL`].
struct Cache<K, V> {
    entries: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Eq + Hash + Clone, V: Clone> Cache<K, V> {
    fn new() -> Self {
        Self { entries: Mutex::default() }
    }

    fn forget(&self, is_gone: impl Fn(&K, &V) -> bool) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|key, (_, value)| !is_gone(key, value));
    }

    fn get(&self, key: &K) -> Option<V> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|(since, _)| since.elapsed() < CACHE_TTL).map(|(_, value)| value.clone())
    }

    #[expect(clippy::disallowed_methods, reason = "ages a cache in a shell; decides nothing that is agreed")]
    fn put(&self, key: K, value: V) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= CACHE_ENTRIES_MAX && !entries.contains_key(&key) {
            entries.retain(|_, (since, _)| since.elapsed() < CACHE_TTL);
            // All fresh: forgetting any one costs one query.
            if entries.len() >= CACHE_ENTRIES_MAX
                && let Some(victim) = entries.keys().next().cloned()
            {
                entries.remove(&victim);
            }
        }
        entries.insert(key, (Instant::now(), value));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use async_trait::async_trait;
    use makai_raft::facts::Timestamp;
    use makai_raft::facts::command::{Command, Reply};
    use makai_raft::facts::tenant::AccessKey;

    use super::*;

    const KEY: [u8; 32] = [7; 32];

    /// One tenant with one access key.
    struct OneKey {
        key: AccessKey,
        tenant: Tenant,
        is_down: AtomicBool,
        is_enabled: AtomicBool,
        queries: AtomicUsize,
    }

    impl OneKey {
        fn new() -> Arc<Self> {
            let key = AccessKey {
                id: "AKTEST".into(),
                tenant: TenantId(3),
                sealed_secret: seal_secret(&KEY, PURPOSE_SECRET, "AKTEST", b"hush").unwrap(),
                created_at: Timestamp(0),
                is_enabled: true,
            };
            let tenant = Tenant {
                id: TenantId(3),
                name: "acme".into(),
                wrapped_key: seal_secret(&KEY, PURPOSE_TENANT_KEY, "acme", &[9; 32]).unwrap(),
                quota_bytes: None,
                created_at: Timestamp(0),
                used_bytes: 0,
                used_objects: 0,
                byte_ms: 0,
                counted_to: Timestamp(0),
                quota_objects: None,
            };
            Arc::new(Self {
                key,
                tenant,
                is_down: AtomicBool::new(false),
                is_enabled: AtomicBool::new(true),
                queries: AtomicUsize::new(0),
            })
        }
    }

    #[async_trait]
    impl Metadata for OneKey {
        async fn propose(&self, _command: Command) -> Result<Reply, MetaError> {
            Err(MetaError::Overloaded)
        }

        async fn query(&self, query: Query) -> Result<Answer, MetaError> {
            self.queries.fetch_add(1, Ordering::Relaxed);
            if self.is_down.load(Ordering::Relaxed) {
                return Err(MetaError::Unavailable("down".into()));
            }
            match query {
                Query::Identity(IdentityQuery::Key { id }) if id == self.key.id => {
                    let is_enabled = self.is_enabled.load(Ordering::Relaxed);
                    let key = AccessKey { is_enabled, ..self.key.clone() };
                    let tenant = self.tenant.clone();
                    Ok(Answer::Identity(IdentityAnswer::Key { key, tenant, user: None }))
                }
                Query::Tenant { id } if id == self.tenant.id => Ok(Answer::Tenant(self.tenant.clone())),
                _ => Err(MetaError::Refused(Refusal::NotFound("access key".into()))),
            }
        }
    }

    #[test]
    fn what_is_sealed_opens_only_with_the_same_key_purpose_and_id() {
        let sealed = seal_secret(&KEY, "p", "id", b"plain").unwrap();
        assert_eq!(open_secret(&KEY, "p", "id", &sealed), Ok(b"plain".to_vec()));
        assert_eq!(open_secret(&[8; 32], "p", "id", &sealed), Err(OpenError));
        assert_eq!(open_secret(&KEY, "q", "id", &sealed), Err(OpenError));
        assert_eq!(open_secret(&KEY, "p", "ie", &sealed), Err(OpenError));
        // The zero byte keeps "p" + "id" apart from "pi" + "d".
        assert_eq!(open_secret(&KEY, "pi", "d", &sealed), Err(OpenError));
    }

    #[test]
    fn no_changed_or_shortened_byte_string_opens() {
        let sealed = seal_secret(&KEY, "p", "id", b"plain").unwrap();
        assert_eq!(sealed.len(), 4 + 12 + 5 + 16);
        for at in 0..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[at] ^= 1;
            assert_eq!(open_secret(&KEY, "p", "id", &changed), Err(OpenError), "byte {at} changed");
            assert_eq!(open_secret(&KEY, "p", "id", &sealed[..at]), Err(OpenError), "{at} bytes");
        }
    }

    #[test]
    fn sealing_twice_gives_different_bytes() {
        let sealed: BTreeSet<_> = (0..64).map(|_| seal_secret(&KEY, "p", "id", b"plain").unwrap()).collect();
        assert_eq!(sealed.len(), 64);
    }

    #[test]
    fn access_keys_have_the_promised_shape_and_differ() {
        let keys: Vec<_> = (0..100).map(|_| new_access_key().unwrap()).collect();
        for key in &keys {
            assert_eq!(key.id.len(), 20);
            assert!(key.id.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()), "{}", key.id);
            assert_eq!(key.secret.expose().len(), 40);
            assert!(!format!("{key:?}").contains(key.secret.expose()));
        }
        let ids: BTreeSet<_> = keys.iter().map(|key| &key.id).collect();
        assert_eq!(ids.len(), keys.len());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_asked_for_once_per_ttl() {
        let metadata = OneKey::new();
        let identity = Identity::new(metadata.clone(), KEY);
        for _ in 0..3 {
            assert_eq!(identity.secret("AKTEST").await.unwrap().expose(), "hush");
            assert_eq!(identity.caller("AKTEST").await.unwrap().tenant_name, "acme");
            assert_eq!(identity.tenant_key(TenantId(3)).await.unwrap(), [9; 32]);
            assert!(matches!(identity.caller("NOSUCH").await, Err(IdentityError::UnknownAccessKey(_))));
        }
        assert_eq!(metadata.queries.load(Ordering::Relaxed), 2);
        tokio::time::advance(CACHE_TTL).await;
        identity.caller("AKTEST").await.unwrap();
        assert_eq!(metadata.queries.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disabled_key_is_unknown_after_the_ttl() {
        let metadata = OneKey::new();
        let identity = Identity::new(metadata.clone(), KEY);
        identity.caller("AKTEST").await.unwrap();
        metadata.is_enabled.store(false, Ordering::Relaxed);
        tokio::time::advance(CACHE_TTL).await;
        assert!(matches!(identity.caller("AKTEST").await, Err(IdentityError::UnknownAccessKey(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_told_apart_from_a_wrong_key_and_not_remembered() {
        let metadata = OneKey::new();
        let identity = Identity::new(metadata.clone(), KEY);
        metadata.is_down.store(true, Ordering::Relaxed);
        assert!(matches!(identity.caller("AKTEST").await, Err(IdentityError::Unavailable(_))));
        metadata.is_down.store(false, Ordering::Relaxed);
        identity.caller("AKTEST").await.unwrap();
    }

    #[tokio::test]
    async fn another_clusters_key_is_the_operators_fault_not_the_clients() {
        let identity = Identity::new(OneKey::new(), [1; 32]);
        assert!(matches!(identity.secret("AKTEST").await, Err(IdentityError::Sealed { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn the_cache_stays_within_its_bound() {
        let identity = Identity::new(OneKey::new(), KEY);
        for number in 0..CACHE_ENTRIES_MAX + 100 {
            let _ = identity.caller(&format!("K{number}")).await;
        }
        assert_eq!(identity.inner.access_keys.entries.lock().unwrap().len(), CACHE_ENTRIES_MAX);
    }
}
