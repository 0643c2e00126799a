//! Put, get, list, multipart: one path behind every data door.
//!
//! ```text
//! put   body ─ MD5 ─> inline (<= 4 KiB), a part of a pack (<= 256 KiB) or blobs of 64 MiB ─> shards durable ─> one metadata proposal: visible
//! get   metadata (linearizable) ─> extents ─> windows of 2 MiB, two under way, from memory or k disks ─> body
//! ```
//!
//! | room          | holds                                                     |
//! |---------------|-----------------------------------------------------------|
//! | [`upload`]    | a body into content: where blobs go, what happens when disks die under them |
//! | [`sealing`]   | which key wraps an object's keys: the tenant's, a named one, the customer's |
//! | [`download`]  | content into a body                                       |
//! | `cache`       | windows of blobs that were read lately, in memory         |
//! | [`documents`] | what decides about access to a bucket, kept for a lease   |
//! | `leases`      | waiting for a directory that a mount has alone            |
//! | `packing`, `packs` | small objects that come at the same time share a blob |
//! | `pieces`      | what the file service needs: blobs not yet named, ranges of extents |
//! | `room`        | what requests share: uploads under way, bytes being read   |
//! | [`squeeze`]   | blobs of which a good part is dead are emptied            |
//! | [`multipart`] | uploads in parts, copies                                  |
//! | [`versions`]  | versions that need not be current, object lock, rules of lifecycles |
//!
//! Always: nothing is visible before it is durable; a failed upload leaves only shards that no fact names, which the
//! orphan scan collects; memory per request is a few stripes or windows; a caller sees only its own tenant's buckets.

mod cache;
pub mod documents;
mod download;
mod leases;
mod multipart;
mod packing;
mod packs;
mod pieces;
mod room;
pub mod sealing;
pub mod squeeze;
mod upload;
mod versions;

pub(crate) use leases::LeaseWait;
pub(crate) use upload::{Inlining, Stored};

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use makai_erasure::Scheme;
use makai_erasure::codec::Codec;
use makai_erasure::layout::PAGE_BYTES;
use makai_erasure::stripe::{READ_WINDOW_BYTES, ShardPeers};
use makai_ops::metering::{ServedMeter, Traffic};
use makai_raft::facts::Timestamp;
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::command::{Command, Precondition, Refusal, Reply};
use makai_raft::facts::files::{FileRefusal, LookedAt};
use makai_raft::facts::object::{Checksum, KEY_BYTES_MAX, ObjectHead, ObjectHeaders};
use makai_raft::facts::query::{Answer, ListObjects, Listed, Query};
use makai_raft::facts::version::{VersionId, Versioning};
use makai_raft::handle::{MetaError, Metadata};
use makai_raft::lifecycle::Rules;
use makai_raft::view::MapView;
use tokio::time::Instant;

use crate::identity::{Caller, Identity};
use crate::policy::acl::Acl;

/// How long a bucket's settings are remembered. The facts check a change against the bucket as it is.
const BUCKET_CACHE_TTL: Duration = Duration::from_secs(2);
/// Buckets remembered.
const BUCKET_CACHE_MAX: usize = 4096;
/// Looks at a page whose end moves while mounts tell what they decided; then all mounts are asked.
const PAGE_TRIES_MAX: usize = 4;

/// Why an operation on objects did not happen. Variants by what a door tells its client.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// The facts say no: see the refusal.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Another tenant's bucket.
    #[error("access denied")]
    AccessDenied,
    /// The client's body ended early, failed its checks, or could not be read.
    #[error("the request's body: {0}")]
    Body(#[source] BodyError),
    /// The range lies outside the object's `size` bytes.
    #[error("the range lies outside the object's {size} bytes")]
    RangeNotSatisfiable { size: u64 },
    /// Too much is under way; the client should try again later.
    #[error("slow down: {0}")]
    SlowDown(String),
    /// The pool cannot do it now (no leader, too few disks); the client should try again.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The pool takes no more bytes.
    #[error("the pool is full: {0}")]
    Full(String),
    /// The pool broke its promise: bytes that should be there are not, or do not verify.
    #[error("internal: {0}")]
    Internal(String),
    /// The object does not open with the customer's key that was given, or not given.
    #[error(transparent)]
    Sealing(#[from] sealing::SealingFault),
}

/// What was wrong with a body: the door's own error, carried through.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes from a client, in order.
pub type Body = BoxStream<'static, Result<Bytes, BodyError>>;

/// The bytes of a new object or part.
pub struct Upstream {
    pub body: Body,
    /// What the client said it would send; a body that is longer or shorter is refused.
    pub size: Option<u64>,
    /// Called with the body's MD5 once it is read to its end, before anything becomes visible: returns the checksum
    /// to keep, or the door's reason to refuse (a digest that differs).
    pub check: Box<dyn FnOnce([u8; 16]) -> Result<Option<Checksum>, BodyError> + Send>,
}

/// An object's bytes on their way to a client.
pub struct Download {
    pub head: ObjectHead,
    /// The part of the object that `body` yields.
    pub range: Range<u64>,
    pub body: BoxStream<'static, Result<Bytes, ObjectsError>>,
    /// Its bucket's.
    pub versioning: Versioning,
}

/// What is said of a version.
#[derive(Debug, Clone)]
pub struct Found {
    pub head: ObjectHead,
    /// Its bucket's.
    pub versioning: Versioning,
}

/// Which bytes of an object are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ByteRange {
    All,
    /// `first..=last`; `last` may lie behind the end. `None`: to the end.
    From {
        first: u64,
        last: Option<u64>,
    },
    Last(u64),
    /// The bytes that came with a part.
    Part(u16),
}

/// A source to copy from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyFrom {
    pub bucket: String,
    pub key: String,
    /// `None`: the current one.
    pub version: Option<VersionId>,
    /// What must hold of the source.
    pub precondition: Precondition,
    /// HTTP dates of the source's conditions, Unix seconds.
    pub if_modified_since: Option<u64>,
    pub if_unmodified_since: Option<u64>,
}

/// Bounds that an operator sets.
#[derive(Clone)]
pub struct ObjectsOptions {
    /// Uploads under way at once; beyond, clients are told to slow down.
    pub uploads_in_flight_max: usize,
    /// Plaintext that downloads under way may hold, on its way from disks to clients; beyond, clients are told to slow down.
    pub read_bytes_in_flight_max: u64,
    /// How long an upload or a download waits for room among them.
    pub room_wait: Duration,
    /// Plaintext of blobs read lately that is kept in memory; 0: none.
    pub read_cache_bytes: u64,
    /// Where tenants' traffic is counted.
    pub meter: ServedMeter,
    /// Who knows what disks still take; `None`: nobody.
    pub pool_room: Option<Arc<dyn PoolRoom>>,
}

/// What disks still take.
#[async_trait]
pub trait PoolRoom: Send + Sync + 'static {
    /// Plaintext bytes, under the cluster's default scheme; `None`: it is not known now.
    async fn free_bytes(&self) -> Option<u64>;
}

impl Default for ObjectsOptions {
    fn default() -> Self {
        Self {
            uploads_in_flight_max: 512,
            read_bytes_in_flight_max: 1 << 30,
            room_wait: Duration::from_secs(5),
            read_cache_bytes: 0,
            meter: ServedMeter::default(),
            pool_room: None,
        }
    }
}

/// The data doors' inside. Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    inner: Arc<Inner>,
    /// How new objects are sealed, and what is at hand to open old ones.
    sealing: sealing::Sealing,
    /// Whether new objects come with browsers' forms, for those who follow their bucket.
    by_form: bool,
}

struct Inner {
    metadata: Arc<dyn Metadata>,
    peers: Arc<dyn ShardPeers>,
    map: MapView,
    identity: Identity,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    options: ObjectsOptions,
    uploads: room::Room,
    packs: packs::Packs,
    /// In pages.
    reads: room::Room,
    codecs: Mutex<HashMap<Scheme, Codec>>,
    buckets: Mutex<HashMap<String, (Instant, Bucket)>>,
    access: Mutex<documents::Known>,
    windows: cache::WindowCache,
    lifecycles: Mutex<HashMap<String, (Instant, Option<Arc<Rules>>)>>,
}

impl From<MetaError> for ObjectsError {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::Refused(refusal) => Self::Refused(refusal),
            MetaError::Unavailable(why) => Self::Unavailable(why),
            MetaError::Overloaded => Self::SlowDown("too many metadata requests wait".into()),
        }
    }
}

fn unexpected<T>(what: &T) -> ObjectsError
where
    T: std::fmt::Debug,
{
    let what: String = format!("{what:?}").chars().take(200).collect();
    ObjectsError::Internal(format!("the facts answered with something else: {what}"))
}

fn check_key(key: &str) -> Result<(), ObjectsError> {
    match key.len() {
        1..=KEY_BYTES_MAX => Ok(()),
        len => Err(Refusal::Invalid(format!("a key has 1 to {KEY_BYTES_MAX} bytes, not {len}")).into()),
    }
}

impl Objects {
    #[must_use]
    pub fn new(
        metadata: Arc<dyn Metadata>,
        peers: Arc<dyn ShardPeers>,
        map: MapView,
        identity: Identity,
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
        options: ObjectsOptions,
    ) -> Self {
        let uploads = room::Room::new(options.uploads_in_flight_max, 1);
        let read_pages = usize::try_from(options.read_bytes_in_flight_max / PAGE_BYTES).unwrap_or(usize::MAX);
        let reads = room::Room::new(read_pages, (READ_WINDOW_BYTES / PAGE_BYTES) as usize);
        let (codecs, buckets, access) = (Mutex::default(), Mutex::default(), Mutex::default());
        let lifecycles = Mutex::default();
        let windows = cache::WindowCache::new(options.read_cache_bytes);
        Self {
            inner: Arc::new(Inner {
                metadata,
                peers,
                map,
                identity,
                clock,
                options,
                uploads,
                packs: packs::Packs::default(),
                reads,
                codecs,
                buckets,
                access,
                windows,
                lifecycles,
            }),
            sealing: sealing::Sealing::Tenant,
            by_form: false,
        }
    }

    /// The same objects, of which new ones come with browsers' forms.
    #[must_use]
    pub fn by_form(&self) -> Self {
        Self { by_form: true, ..self.clone() }
    }

    fn count(&self, caller: &Caller, what: Traffic, amount: u64) {
        self.inner.options.meter.add_traffic(caller.tenant, what, amount);
    }

    /// A body whose bytes are counted as they are sent.
    fn counted(
        &self,
        caller: &Caller,
        body: BoxStream<'static, Result<Bytes, ObjectsError>>,
    ) -> BoxStream<'static, Result<Bytes, ObjectsError>> {
        let (meter, tenant) = (self.inner.options.meter.clone(), caller.tenant);
        body.inspect_ok(move |bytes| meter.add_traffic(tenant, Traffic::Egress, bytes.len() as u64)).boxed()
    }

    fn codec(&self, scheme: Scheme) -> Result<Codec, ObjectsError> {
        let mut codecs = self.inner.codecs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(codec) = codecs.get(&scheme) {
            return Ok(codec.clone());
        }
        let codec = Codec::new(scheme).map_err(|error| ObjectsError::Internal(error.to_string()))?;
        codecs.insert(scheme, codec.clone());
        Ok(codec)
    }

    async fn tenant_key(&self, caller: &Caller) -> Result<[u8; 32], ObjectsError> {
        let key = self.inner.identity.tenant_key(caller.tenant).await;
        key.map_err(|error| ObjectsError::Unavailable(error.to_string()))
    }

    async fn query(&self, query: Query) -> Result<Answer, ObjectsError> {
        Ok(self.inner.metadata.query(query).await?)
    }

    /// Waits where a mount has the directory alone that the command changes.
    async fn propose(&self, command: Command) -> Result<Reply, ObjectsError> {
        if let Command::File(_) = command {
            return Ok(self.inner.metadata.propose(command).await?);
        }
        let mut waiting = LeaseWait::default();
        loop {
            let refused = match self.inner.metadata.propose(command.clone()).await {
                Err(MetaError::Refused(refused)) => refused,
                other => return Ok(other?),
            };
            match &refused {
                Refusal::File(FileRefusal::Leased { bucket, directory })
                    if self.await_lease(&mut waiting, bucket, *directory).await? => {}
                _ => return Err(refused.into()),
            }
        }
    }

    /// Makes a bucket for the caller; `scheme`: `None` leaves it to the cluster.
    pub async fn create_bucket(
        &self,
        caller: &Caller,
        name: &str,
        scheme: Option<Scheme>,
    ) -> Result<Bucket, ObjectsError> {
        self.check_scheme(scheme)?;
        let command = Command::CreateBucket { name: name.into(), tenant: caller.tenant, scheme };
        match self.propose(command).await? {
            Reply::Bucket(bucket) => Ok(bucket),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether the cluster has disks enough for `scheme`.
    fn check_scheme(&self, scheme: Option<Scheme>) -> Result<(), ObjectsError> {
        let width = scheme.map_or(0, Scheme::shard_count);
        let map = self.inner.map.get();
        let disks = map.map.disks.iter().filter(|disk| map.node_of(disk.id).is_some()).count();
        if width > disks {
            return Err(Refusal::Invalid(format!(
                "a scheme of {width} shards needs as many disks; the cluster has {disks}"
            ))
            .into());
        }
        Ok(())
    }

    pub async fn delete_bucket(&self, caller: &Caller, name: &str) -> Result<(), ObjectsError> {
        self.bucket(caller, name).await?;
        self.forget_bucket(name);
        self.forget_lifecycle(name);
        let access = self.bucket_access(name).await?;
        let decides = access.policy.is_some() || access.acl != Acl::private(access.bucket.tenant.0);
        let delete = || self.propose(Command::DeleteBucket { name: name.into() });
        match delete().await {
            // What was begun and never completed is no object: it does not hold the bucket.
            Err(ObjectsError::Refused(Refusal::BucketNotEmpty)) => {
                if self.has_versions(caller, name).await? {
                    return Err(Refusal::BucketNotEmpty.into());
                }
                self.abort_all_uploads(caller, name).await?;
                delete().await?;
            }
            deleted => {
                deleted?;
            }
        }
        self.forget_access(name);
        // A bucket that gets the name next must not be judged by this one's documents.
        if decides {
            self.await_leases().await;
        }
        Ok(())
    }

    /// The bucket, if it is the caller's.
    pub async fn bucket(&self, caller: &Caller, name: &str) -> Result<Bucket, ObjectsError> {
        match self.query(Query::Bucket { name: name.into() }).await? {
            Answer::Bucket(bucket) if bucket.tenant == caller.tenant => Ok(bucket),
            Answer::Bucket(_) => Err(ObjectsError::AccessDenied),
            other => Err(unexpected(&other)),
        }
    }

    /// As [`bucket`](Self::bucket), but possibly [`BUCKET_CACHE_TTL`] old.
    async fn recent_bucket(&self, caller: &Caller, name: &str) -> Result<Bucket, ObjectsError> {
        let cached = {
            let buckets = self.inner.buckets.lock().unwrap_or_else(PoisonError::into_inner);
            buckets
                .get(name)
                .filter(|(at, _)| at.elapsed() < BUCKET_CACHE_TTL)
                .map(|(_, bucket)| bucket.clone())
        };
        if let Some(bucket) = cached {
            return if bucket.tenant == caller.tenant { Ok(bucket) } else { Err(ObjectsError::AccessDenied) };
        }
        let bucket = self.bucket(caller, name).await?;
        let mut buckets = self.inner.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKET_CACHE_MAX {
            buckets.clear();
        }
        buckets.insert(name.into(), (now(), bucket.clone()));
        Ok(bucket)
    }

    fn forget_bucket(&self, name: &str) {
        self.inner.buckets.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The caller's buckets, by name.
    pub async fn buckets(&self, caller: &Caller) -> Result<Vec<Bucket>, ObjectsError> {
        match self.query(Query::Buckets { tenant: Some(caller.tenant) }).await? {
            Answer::Buckets(buckets) => Ok(buckets),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn bucket_document(
        &self,
        caller: &Caller,
        name: &str,
        document: &str,
    ) -> Result<Option<Bytes>, ObjectsError> {
        self.bucket(caller, name).await?;
        match self.query(Query::BucketDocument { name: name.into(), document: document.into() }).await? {
            Answer::Document(value) => Ok(value),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn set_bucket_document(
        &self,
        caller: &Caller,
        name: &str,
        document: &str,
        value: Option<Bytes>,
    ) -> Result<(), ObjectsError> {
        self.bucket(caller, name).await?;
        let command = Command::SetBucketDocument { name: name.into(), document: document.into(), value };
        self.propose(command).await.map(|_| ())
    }

    /// Makes the body a new version of the key.
    pub async fn put(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        headers: ObjectHeaders,
        upstream: Upstream,
        precondition: Precondition,
    ) -> Result<ObjectHead, ObjectsError> {
        check_key(key)?;
        let facts = self.recent_bucket(caller, bucket).await?;
        let stored = self.store(caller, &facts, upstream, Inlining::OrPacked).await?;
        let command = Command::PutObject {
            bucket: bucket.into(),
            key: key.into(),
            headers,
            new: stored.content.clone(),
            precondition,
            by_form: self.by_form,
        };
        match self.commit(&facts, stored, command).await? {
            Reply::Object(head) => Ok(head),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn delete(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        precondition: Precondition,
    ) -> Result<bool, ObjectsError> {
        check_key(key)?;
        Ok(self.delete_version(caller, bucket, key, None, false, precondition).await?.existed)
    }

    /// A page of the bucket's keys, and whether more follow.
    pub async fn list(
        &self,
        caller: &Caller,
        list: ListObjects,
    ) -> Result<(Vec<Listed>, bool), ObjectsError> {
        let bucket = self.recent_bucket(caller, &list.bucket).await?;
        // Of what is rolled up it is not looked at more than that it is there.
        if list.delimiter == "/" {
            self.settle(&bucket, 0, LookedAt::Key(list.prefix.clone())).await?;
            return self.page(list).await;
        }
        if bucket.mounts == 0 {
            return self.page(list).await;
        }
        // Only those mounts are asked that have alone what the page may show; where it comes to end later, more of them.
        let mut until = end_of_page(&self.page(list.clone()).await?);
        for _ in 0..PAGE_TRIES_MAX {
            let (prefix, after) = (list.prefix.clone(), list.after.clone());
            self.settle(&bucket, 0, LookedAt::Keys { prefix, after, until: until.clone() }).await?;
            let page = self.page(list.clone()).await?;
            let end = end_of_page(&page);
            if until.is_none() || end.as_ref().is_some_and(|end| Some(end) <= until.as_ref()) {
                return Ok(page);
            }
            until = end;
        }
        self.settle(&bucket, 0, LookedAt::Everything).await?;
        self.page(list).await
    }

    async fn page(&self, list: ListObjects) -> Result<(Vec<Listed>, bool), ObjectsError> {
        match self.query(Query::Objects(list)).await? {
            Answer::Objects { entries, is_truncated } => Ok((entries, is_truncated)),
            other => Err(unexpected(&other)),
        }
    }
}

/// The last key of a page; `None`: that of the bucket.
fn end_of_page((entries, is_truncated): &(Vec<Listed>, bool)) -> Option<String> {
    let last = match entries.last()? {
        Listed::Object(head) => head.key.clone(),
        // The last of those that it stands for.
        Listed::CommonPrefix(common) => format!("{common}{}", char::MAX),
    };
    is_truncated.then_some(last)
}

#[expect(clippy::disallowed_methods, reason = "ages a cache in a shell; decides nothing that is agreed")]
fn now() -> Instant {
    Instant::now()
}
