//! A whole pool in this process: the real door, objects, coding and state machine, over facts and disks in memory.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use makai_erasure::placement::default_scheme;
use makai_erasure::stripe::{PeerError, ShardFooter, ShardHeader, ShardPeers, ShardSink};
use makai_erasure::{BlobId, DiskId, NodeId, PgId, ShardKey};
use makai_gateway::identity::{Identity, PURPOSE_SECRET, new_tenant_key, seal_secret};
use makai_gateway::objects::{Objects, ObjectsOptions};
use makai_gateway::s3::{S3Door, S3DoorConfig, ServeError, serve};
use makai_raft::facts::Timestamp;
use makai_raft::facts::cluster::{Disk, Group, Node, Role, Standing};
use makai_raft::facts::command::{Batch, Command, Envelope, Reply};
use makai_raft::facts::identity::{IdentityCommand, User};
use makai_raft::facts::object::Blob;
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::{AccessKey, TenantId};
use makai_raft::handle::{MetaError, Metadata};
use makai_raft::machine;
use makai_raft::machine::kv::MemKv;
use makai_raft::view::MapView;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const CLUSTER_KEY: [u8; 32] = [42; 32];
const DISKS: u8 = 6;

pub fn now() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "signatures are checked against the real time")]
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(since.as_millis()).unwrap())
}

/// The state machine without a log.
struct Facts {
    state: Mutex<(MemKv, u64)>,
}

#[async_trait]
impl Metadata for Facts {
    async fn propose(&self, command: Command) -> Result<Reply, MetaError> {
        let (kv, index) = &mut *self.state.lock().unwrap();
        *index += 1;
        let envelope = Envelope { session: 1, serial: *index, answered_below: *index, command };
        let batch = Batch { at: now(), envelopes: vec![envelope] };
        let mut results = machine::apply(kv, *index, &batch).unwrap();
        Ok(results.remove(0)?)
    }

    async fn query(&self, query: Query) -> Result<Answer, MetaError> {
        let (kv, _) = &*self.state.lock().unwrap();
        Ok(machine::query(kv, &query).unwrap()?)
    }
}

type Shards = Arc<Mutex<HashMap<(DiskId, ShardKey), (Bytes, ShardFooter)>>>;
type Deleted = Arc<Mutex<HashSet<(DiskId, ShardKey)>>>;

pub struct Disks {
    shards: Shards,
    /// What comes after it was deleted goes as well: elsewhere the orphan scan of its disk takes it.
    deleted: Deleted,
    /// How long a shard takes to be durable.
    sync: Mutex<Duration>,
    /// Of each disk, how many of the next shards it refuses.
    refusals: Mutex<HashMap<DiskId, u32>>,
}

impl Disks {
    /// The disk with this number refuses as many of the next shards.
    pub fn refuse(&self, number: u8, shards: u32) {
        self.refusals.lock().unwrap().insert(DiskId([number; 16]), shards);
    }

    pub fn shard_count(&self) -> usize {
        self.shards.lock().unwrap().len()
    }
}

struct Sink {
    shards: Shards,
    deleted: Deleted,
    at: (DiskId, ShardKey),
    bytes: Vec<u8>,
    sync: Duration,
}

#[async_trait]
impl ShardSink for Sink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), PeerError> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>, footer: ShardFooter) -> Result<(), PeerError> {
        if !self.sync.is_zero() {
            tokio::time::sleep(self.sync).await;
        }
        let mut shards = self.shards.lock().unwrap();
        if !self.deleted.lock().unwrap().contains(&self.at) {
            shards.insert(self.at, (self.bytes.into(), footer));
        }
        Ok(())
    }
}

#[async_trait]
impl ShardPeers for Disks {
    async fn put(&self, disk: DiskId, header: ShardHeader) -> Result<Box<dyn ShardSink>, PeerError> {
        if let Some(left) = self.refusals.lock().unwrap().get_mut(&disk).filter(|left| **left > 0) {
            *left -= 1;
            return Err(PeerError::Unreachable("it is slow to answer".into()));
        }
        let (shards, deleted) = (Arc::clone(&self.shards), Arc::clone(&self.deleted));
        let (at, sync) = ((disk, header.key), *self.sync.lock().unwrap());
        Ok(Box::new(Sink { shards, deleted, at, bytes: Vec::new(), sync }))
    }

    async fn read(&self, disk: DiskId, key: ShardKey, offset: u64, len: u64) -> Result<Bytes, PeerError> {
        let shards = self.shards.lock().unwrap();
        let (bytes, _) = shards.get(&(disk, key)).ok_or(PeerError::Missing)?;
        Ok(bytes.slice(usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap()))
    }

    async fn footer(&self, disk: DiskId, key: ShardKey) -> Result<ShardFooter, PeerError> {
        Ok(self.shards.lock().unwrap().get(&(disk, key)).ok_or(PeerError::Missing)?.1.clone())
    }

    async fn delete(&self, disk: DiskId, keys: Vec<ShardKey>) -> Result<(), PeerError> {
        let mut shards = self.shards.lock().unwrap();
        for key in keys {
            shards.remove(&(disk, key));
            self.deleted.lock().unwrap().insert((disk, key));
        }
        Ok(())
    }

    fn is_up(&self, _disk: DiskId) -> bool {
        true
    }
}

/// A door that serves, and the keys to it.
pub struct Pool {
    pub address: SocketAddr,
    pub access_key: String,
    pub secret_key: String,
    /// A key of another tenant.
    pub other_access_key: String,
    pub other_secret_key: String,
    pub identity: Identity,
    pub objects: Objects,
    pub disks: Arc<Disks>,
    pub shutdown: CancellationToken,
    facts: Arc<Facts>,
    /// Ends when the door has closed.
    pub served: JoinHandle<Result<(), ServeError>>,
}

impl Pool {
    pub async fn start(listen: SocketAddr, config: S3DoorConfig, tls: Option<Arc<ServerConfig>>) -> Self {
        Self::start_with(listen, config, tls, ObjectsOptions::default()).await
    }

    pub async fn start_with(
        listen: SocketAddr,
        config: S3DoorConfig,
        tls: Option<Arc<ServerConfig>>,
        options: ObjectsOptions,
    ) -> Self {
        let facts = Arc::new(Facts { state: Mutex::default() });
        facts.propose(Command::InitCluster { cluster_id: "memory".into() }).await.unwrap();
        make_disks(&facts).await;
        let keys: BTreeMap<_, _> = [("one", "AKONEAKONEAKONEAKONE"), ("two", "AKTWOAKTWOAKTWOAKTWO")].into();
        for (tenant, access_key) in &keys {
            make_tenant(&facts, tenant, access_key).await;
        }
        let map = MapView::default();
        if let Answer::ClusterMap(read) = facts.query(Query::ClusterMap { known_epoch: None }).await.unwrap()
        {
            map.update(read);
        }
        let identity = Identity::new(facts.clone(), CLUSTER_KEY);
        let disks = Arc::new(Disks {
            shards: Shards::default(),
            deleted: Deleted::default(),
            sync: Mutex::default(),
            refusals: Mutex::default(),
        });
        let objects =
            Objects::new(facts.clone(), disks.clone(), map, identity.clone(), Arc::new(now), options);
        let door = S3Door::new(objects.clone(), identity.clone(), config).unwrap();
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let tls = tls.map(|tls| watch::channel(tls).1);
        let served = tokio::spawn(serve(door, vec![listener], tls, shutdown.clone()));
        Self {
            address,
            access_key: keys["one"].into(),
            secret_key: secret("one"),
            other_access_key: keys["two"].into(),
            other_secret_key: secret("two"),
            identity,
            objects,
            disks,
            shutdown,
            facts,
            served,
        }
    }
}

impl Pool {
    /// Disks whose fsync takes so long, from the next shard on.
    pub fn set_sync(&self, sync: Duration) {
        *self.disks.sync.lock().unwrap() = sync;
    }

    /// The blobs that versions name.
    pub async fn blobs(&self) -> Vec<Blob> {
        let mut blobs = Vec::new();
        for pg in 1..=3 {
            let query = Query::BlobsOfGroup { pg: PgId(pg), after_sequence: 0, entries_max: 1000 };
            let Answer::Blobs(found) = self.facts.query(query).await.unwrap() else { panic!("blobs") };
            blobs.extend(found);
        }
        blobs
    }

    /// The blobs that disks hold shards of.
    pub fn written(&self) -> BTreeSet<BlobId> {
        self.disks.shards.lock().unwrap().keys().map(|(_, key)| key.blob).collect()
    }

    /// Gives a user of the first tenant these policies and the key `access_key`; returns the key's secret.
    #[allow(dead_code, reason = "not every test that shares this pool has users")]
    pub async fn put_user(&self, name: &str, access_key: &str, policies: Vec<(String, String)>) -> String {
        let tenant = TenantId(1);
        let user = User { tenant, name: name.into(), created_at: now(), policies };
        let identity = |command| self.facts.propose(Command::Identity(command));
        identity(IdentityCommand::PutUser { user }).await.unwrap();
        let secret = secret(name);
        let sealed = seal_secret(&CLUSTER_KEY, PURPOSE_SECRET, access_key, secret.as_bytes());
        let key = AccessKey {
            id: access_key.into(),
            tenant,
            sealed_secret: sealed.unwrap(),
            created_at: now(),
            is_enabled: true,
        };
        self.facts.propose(Command::PutAccessKey { key }).await.unwrap();
        let set = IdentityCommand::SetKeyUser { id: access_key.into(), user: Some(name.into()) };
        identity(set).await.unwrap();
        secret
    }
}

fn secret(tenant: &str) -> String {
    format!("secret/of+{tenant}")
}

async fn make_tenant(facts: &Facts, name: &str, access_key: &str) {
    let wrapped_key = new_tenant_key(&CLUSTER_KEY, name).unwrap();
    let tenant = Command::CreateTenant { name: name.into(), wrapped_key, quota_bytes: None };
    let Reply::Tenant(tenant) = facts.propose(tenant).await.unwrap() else { panic!("a tenant") };
    let sealed = seal_secret(&CLUSTER_KEY, PURPOSE_SECRET, access_key, secret(name).as_bytes());
    let key = AccessKey {
        id: access_key.into(),
        tenant: tenant.id,
        sealed_secret: sealed.unwrap(),
        created_at: now(),
        is_enabled: true,
    };
    facts.propose(Command::PutAccessKey { key }).await.unwrap();
}

/// One node with all disks, and groups over them.
async fn make_disks(facts: &Facts) {
    let id = NodeId([1; 32]);
    let disks: Vec<_> = (0..DISKS)
        .map(|number| Disk {
            id: DiskId([number; 16]),
            node: id,
            capacity_bytes: 1 << 40,
            standing: Standing::Active,
            added_at: now(),
            condition: makai_raft::facts::cluster::Condition::Well,
            speed_bytes_per_sec: 0,
        })
        .collect();
    let node = Node {
        id,
        number: 0,
        name: "memory".into(),
        owner: String::new(),
        site: String::new(),
        roles: vec![Role::Voter, Role::Storage, Role::Gateway],
        addresses: Vec::new(),
        standing: Standing::Active,
        joined_at: now(),
        is_up: true,
        changed_at: now(),
        version: "0".into(),
        down_ppm: 0,
    };
    facts.propose(Command::JoinNode { node, disks, token: None }).await.unwrap();
    let Answer::ClusterMap(map) = facts.query(Query::ClusterMap { known_epoch: None }).await.unwrap() else {
        panic!("a map");
    };
    let schemes = [default_scheme(1, usize::from(DISKS)), "2+1".parse().unwrap(), "4+2".parse().unwrap()];
    let groups = (1..).zip(schemes).map(|(id, scheme)| Group {
        moves: vec![],
        id: PgId(id),
        scheme,
        version: 1,
        disks: (0..u8::try_from(scheme.shard_count()).unwrap()).map(|number| DiskId([number; 16])).collect(),
    });
    let command = Command::PutGroups { map_epoch: map.epoch, groups: groups.collect() };
    facts.propose(command).await.unwrap();
}
