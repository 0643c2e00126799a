//! A bucket's documents, read together, compiled once and believed for a lease.
//!
//! Always: when a change of a document that decides about access is answered, every gateway decides by it. A gateway
//! believes an answer for [`LEASE`], counted from before it asked; who changes a document answers only when a longer
//! time than that has passed since the change was made.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use makai_raft::facts::Timestamp;
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::cluster::Role;
use makai_raft::facts::command::Command;
use makai_raft::facts::identity::{IdentityAnswer, IdentityCommand, IdentityQuery};
use makai_raft::facts::journal::{JournalAnswer, JournalCommand, JournalQuery};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::TenantId;
use makai_raft::facts::version::VersionId;
use tokio::time::Instant;

use super::{BUCKET_CACHE_MAX, Objects, ObjectsError, check_key, now, unexpected};
use crate::identity::Caller;
use crate::identity::targets::{Target, TargetError};
use crate::policy::acl::Acl;
use crate::policy::document::Kind;
use crate::policy::{Account, Policy};

/// How long an answer about a bucket's documents is believed.
const LEASE: Duration = Duration::from_millis(200);
/// How long a change waits before it is answered: clocks may run at rates that differ by a quarter.
const LEASE_OVER: Duration = Duration::from_millis(250);

/// The names of the documents that decide about access, in the order in which they are read.
pub const POLICY: &str = "policy";
pub const ACL: &str = "acl";
pub const PUBLIC_ACCESS: &str = "public-access";
pub const OWNERSHIP: &str = "ownership";
pub const CORS: &str = "cors";
pub const WEBSITE: &str = "website";
pub const ENCRYPTION: &str = "encryption";
pub const LOGGING: &str = "logging";
pub const PAYER: &str = "request-payment";
pub const REPLICATION: &str = "replication";
pub const REPLICATION_STATE: &str = "replication-state";
const READ: [&str; 11] = [
    POLICY,
    ACL,
    PUBLIC_ACCESS,
    OWNERSHIP,
    CORS,
    WEBSITE,
    ENCRYPTION,
    LOGGING,
    PAYER,
    REPLICATION,
    REPLICATION_STATE,
];

/// What a bucket's owner has shut to the public.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PublicAccess {
    pub blocks_acls: bool,
    pub ignores_acls: bool,
    pub blocks_policy: bool,
    pub restricts_buckets: bool,
}

impl PublicAccess {
    /// Four digits, `0` or `1`, in the order of the fields.
    #[must_use]
    pub fn to_text(self) -> String {
        let all = [self.blocks_acls, self.ignores_acls, self.blocks_policy, self.restricts_buckets];
        all.map(|is_set| if is_set { '1' } else { '0' }).iter().collect()
    }

    fn from_text(text: &[u8]) -> Option<Self> {
        let [blocks_acls, ignores_acls, blocks_policy, restricts_buckets] =
            <[u8; 4]>::try_from(text).ok()?.map(|digit| digit == b'1');
        Some(Self { blocks_acls, ignores_acls, blocks_policy, restricts_buckets })
    }
}

/// Whose an object is that someone else puts into a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ownership {
    /// Its writer's.
    #[default]
    ObjectWriter,
    /// The bucket owner's where its writer says `bucket-owner-full-control`.
    BucketOwnerPreferred,
    /// The bucket owner's; access lists count for nothing.
    BucketOwnerEnforced,
}

impl Ownership {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ObjectWriter => "ObjectWriter",
            Self::BucketOwnerPreferred => "BucketOwnerPreferred",
            Self::BucketOwnerEnforced => "BucketOwnerEnforced",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::ObjectWriter, Self::BucketOwnerPreferred, Self::BucketOwnerEnforced]
            .into_iter()
            .find(|ownership| ownership.name() == name)
    }
}

/// What this gateway has heard of buckets.
#[derive(Default)]
pub(super) struct Known {
    /// Grows when something is forgotten: what was asked before that is not remembered.
    forgotten: u64,
    /// Each since when it was asked for.
    entries: HashMap<String, (Instant, Arc<BucketAccess>)>,
}

/// A bucket and what decides about access to it.
#[derive(Debug)]
pub struct BucketAccess {
    pub bucket: Bucket,
    pub tenant_name: String,
    pub policy: Option<Policy>,
    pub acl: Acl,
    pub public_access: Option<PublicAccess>,
    pub ownership: Option<Ownership>,
    /// As S3 writes them: XML.
    pub cors: Option<Bytes>,
    pub website: Option<Bytes>,
    pub encryption: Option<Bytes>,
    pub logging: Option<Bytes>,
    /// Whether others than the owner must say that they pay.
    pub requester_pays: bool,
    /// As S3 writes it: XML.
    pub replication: Option<Bytes>,
    /// What the replicator has written down.
    pub replication_state: Option<Bytes>,
}

impl BucketAccess {
    #[must_use]
    pub fn owner(&self) -> Account<'_> {
        Account { id: self.bucket.tenant.0, name: &self.tenant_name }
    }

    #[must_use]
    pub fn ownership(&self) -> Ownership {
        self.ownership.unwrap_or_default()
    }

    #[must_use]
    pub fn public_access(&self) -> PublicAccess {
        self.public_access.unwrap_or_default()
    }

    fn new(
        bucket: Bucket,
        tenant_name: String,
        mut documents: Vec<Option<Bytes>>,
    ) -> Result<Self, ObjectsError> {
        let name = bucket.name.clone();
        let damaged = |what: &str| ObjectsError::Internal(format!("the {what} of bucket {name} is damaged"));
        documents.resize(READ.len(), None);
        let mut documents = documents.into_iter();
        let mut next = || documents.next().flatten();
        // What cannot be read must not count as absent: a deny may stand in it.
        let policy = next().map(|text| Policy::parse(&text, Kind::Bucket(&name)));
        let policy = policy.transpose().map_err(|_| damaged(POLICY))?;
        let acl = match next() {
            None => Acl::private(bucket.tenant.0),
            Some(text) => str::from_utf8(&text).ok().and_then(Acl::from_text).ok_or_else(|| damaged(ACL))?,
        };
        let public_access = next().map(|text| PublicAccess::from_text(&text));
        let public_access = public_access.map(|read| read.ok_or_else(|| damaged(PUBLIC_ACCESS)));
        let ownership = next().map(|text| str::from_utf8(&text).ok().and_then(Ownership::from_name));
        let ownership = ownership.map(|read| read.ok_or_else(|| damaged(OWNERSHIP)));
        Ok(Self {
            tenant_name,
            policy,
            acl,
            public_access: public_access.transpose()?,
            ownership: ownership.transpose()?,
            cors: next(),
            website: next(),
            encryption: next(),
            logging: next(),
            requester_pays: next().is_some_and(|document| {
                let payer = b"<Payer>Requester</Payer>";
                document.windows(payer.len()).any(|window| window == payer)
            }),
            replication: next(),
            replication_state: next(),
            bucket,
        })
    }
}

impl Objects {
    /// The bucket and its documents: as they are, or as they were less than [`LEASE`] ago.
    ///
    /// # Errors
    /// There is no such bucket, or the facts do not answer.
    pub async fn bucket_access(&self, name: &str) -> Result<Arc<BucketAccess>, ObjectsError> {
        let forgotten = {
            let known = self.inner.access.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = known.entries.get(name).filter(|(asked_at, _)| asked_at.elapsed() < LEASE);
            if let Some((_, access)) = entry {
                return Ok(Arc::clone(access));
            }
            known.forgotten
        };
        let asked_at = now();
        let documents = READ.map(str::to_owned).to_vec();
        let query = Query::Identity(IdentityQuery::BucketAccess { name: name.into(), documents });
        let access = match self.query(query).await? {
            Answer::Identity(IdentityAnswer::BucketAccess { bucket, tenant_name, documents }) => {
                Arc::new(BucketAccess::new(bucket, tenant_name, documents)?)
            }
            other => return Err(unexpected(&other)),
        };
        let mut known = self.inner.access.lock().unwrap_or_else(PoisonError::into_inner);
        if known.forgotten == forgotten {
            if known.entries.len() >= BUCKET_CACHE_MAX {
                known.entries.retain(|_, (asked_at, _)| asked_at.elapsed() < LEASE);
            }
            if known.entries.len() < BUCKET_CACHE_MAX {
                known.entries.insert(name.into(), (asked_at, Arc::clone(&access)));
            }
        }
        Ok(access)
    }

    /// Has someone follow the changes of the bucket's keys, from now on, or no longer.
    ///
    /// # Errors
    /// The facts refuse.
    pub async fn follow(
        &self,
        caller: &Caller,
        name: &str,
        follower: &str,
        is_on: bool,
    ) -> Result<(), ObjectsError> {
        self.bucket(caller, name).await?;
        let follow = JournalCommand::Follow { bucket: name.into(), follower: follower.into(), is_on };
        self.propose(Command::Journal(follow)).await.map(|_| ())
    }

    /// When the oldest change of a bucket was made that a follower has not done with.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn oldest_change(&self, name: &str, follower: &str) -> Result<Option<Timestamp>, ObjectsError> {
        let query = JournalQuery::Oldest { bucket: name.into(), follower: follower.into() };
        match self.query(Query::Journal(query)).await? {
            Answer::Journal(JournalAnswer::Changes(changes)) => Ok(changes.first().map(|change| change.at)),
            other => Err(unexpected(&other)),
        }
    }

    /// Another server that a tenant's buckets are replicated to.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn replication_target(&self, tenant: TenantId, name: &str) -> Result<Target, TargetError> {
        self.inner.identity.target(tenant, name).await
    }

    /// What this gateway heard last of a bucket, if it still remembers: good enough for what decides nothing.
    #[must_use]
    pub fn last_access(&self, name: &str) -> Option<Arc<BucketAccess>> {
        let known = self.inner.access.lock().unwrap_or_else(PoisonError::into_inner);
        known.entries.get(name).map(|(_, access)| Arc::clone(access))
    }

    /// Whether there are all whom a bucket's policy names one by one.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn knows_all_named(&self, policy: &Policy) -> Result<bool, ObjectsError> {
        let known = self.inner.identity.knows_all(policy).await;
        known.map_err(|error| ObjectsError::Unavailable(error.to_string()))
    }

    /// Changes documents that decide about access; when it returns, every gateway decides by them.
    ///
    /// # Errors
    /// The facts refuse. Of several documents, those before the refused one are changed.
    pub async fn set_access_documents(
        &self,
        caller: &Caller,
        name: &str,
        documents: Vec<(&str, Option<Bytes>)>,
    ) -> Result<(), ObjectsError> {
        for (document, value) in documents {
            self.set_bucket_document(caller, name, document, value).await?;
        }
        self.forget_access(name);
        self.await_leases().await;
        Ok(())
    }

    pub(super) fn forget_access(&self, name: &str) {
        let mut known = self.inner.access.lock().unwrap_or_else(PoisonError::into_inner);
        known.forgotten += 1;
        known.entries.remove(name);
    }

    /// Returns when no other gateway believes what it heard before this was called.
    pub(super) async fn await_leases(&self) {
        let map = self.inner.map.get();
        let gateways = map.map.nodes.iter().filter(|node| node.roles.contains(&Role::Gateway)).count();
        if gateways > 1 {
            tokio::time::sleep(LEASE_OVER).await;
        }
    }

    /// Replaces the access list of a version; `None`: of the current one.
    ///
    /// # Errors
    /// The facts refuse.
    pub async fn set_object_acl(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        version: Option<VersionId>,
        acl: Option<String>,
    ) -> Result<(), ObjectsError> {
        check_key(key)?;
        self.recent_bucket(caller, bucket).await?;
        let command = IdentityCommand::SetObjectAcl { bucket: bucket.into(), key: key.into(), acl, version };
        self.propose(Command::Identity(command)).await.map(|_| ())
    }

    /// A tenant's name; `None`: there is no such tenant.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn tenant_name(&self, id: u64) -> Result<Option<String>, ObjectsError> {
        match self.query(Query::Tenant { id: TenantId(id) }).await {
            Ok(Answer::Tenant(tenant)) => Ok(Some(tenant.name)),
            Ok(other) => Err(unexpected(&other)),
            Err(ObjectsError::Refused(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The time by the node's clock.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        (self.inner.clock)()
    }
}
