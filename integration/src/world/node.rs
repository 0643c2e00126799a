//! One node of the world: the real parts, on a simulated disk and network, and the loops that keep it in order.
//!
//! The daemon's own loops need its transport and its clock; these follow their rules: the leader proposes who is up and
//! which groups exist, each node renews its map and makes again the shards that it should hold and does not.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use makai::disks::LocalDisks;
use makai_erasure::codec::Codec;
use makai_erasure::placement::{Member, Placed, plan};
use makai_erasure::store::format::{Secret, Superblock};
use makai_erasure::store::{ShardStore, StoreOptions, StoredShard};
use makai_erasure::stripe::{RebuildSource, ShardPeers, rebuild_shards};
use makai_erasure::{BlobId, DiskId, NodeId, PgId, Scheme, ShardKey};
use makai_gateway::identity::Identity;
use makai_gateway::objects::{Objects, ObjectsOptions};
use makai_raft::facts::Timestamp;
use makai_raft::facts::cluster::{Group, Standing};
use makai_raft::facts::command::{BLOB_OPEN_MS_MAX, Command};
use makai_raft::facts::object::Blob;
use makai_raft::facts::query::{Answer, Query};
use makai_raft::handle::{MetaClient, MetaClientConfig, MetaConfig, MetaError, MetaNode, Metadata};
use makai_raft::view::MapView;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::disk::SimDisk;
use super::net::{Host, Net, Seat, Voters};
use super::shards::Shards;

/// Unix time at which every world begins.
const EPOCH_MS: u64 = 1_700_000_000_000;
pub const CLUSTER_ID: &str = "world";
pub const CLUSTER_KEY: [u8; 32] = [42; 32];

const LOOK_EVERY: Duration = Duration::from_secs(1);
const REPAIR_EVERY: Duration = Duration::from_secs(5);
const COLLECT_EVERY: Duration = Duration::from_secs(4);
const PING_MAX: Duration = Duration::from_secs(1);
/// A node silent for this long is down.
const SILENCE_MAX_MS: u64 = 3000;
/// A shard that is missing may still be on its way: it is made again only after this.
const MISSING_FOR_MS: u64 = 5000;
/// Pause before a shard that could not be made again is tried once more.
const RETRY_AFTER_MS: u64 = 3000;
/// Age of garbage and orphans at which they go.
pub const COLLECT_AGE_MS: u64 = 2 * BLOB_OPEN_MS_MAX;
const BATCH: u32 = 1000;

/// Where a node's logs and shards lie on its disk.
const META_DIR: &str = "/meta";
const SHARDS_DIR: &str = "/shards";

/// What all nodes of a world share.
#[derive(Clone)]
pub struct Surroundings {
    pub clock: Arc<Clock>,
    pub net: Arc<Net>,
    pub voters: watch::Receiver<Vec<NodeId>>,
    /// Log written between two durable commits of the facts, and kept for followers.
    pub snapshot_log_bytes: u64,
    pub log_keep_bytes: u64,
}

/// A machine: what outlives its process.
pub struct Machine {
    pub number: u8,
    pub is_voter: bool,
    pub disk: SimDisk,
    /// Its wall clock is ahead of the world's by this.
    pub skew_ms: u64,
    pub running: Option<Running>,
}

/// A node that lives.
#[derive(Clone)]
pub struct Running {
    pub host: Arc<Host>,
    pub facts: Arc<dyn Metadata>,
    pub objects: Objects,
    pub map: MapView,
    peers: Arc<dyn ShardPeers>,
    clock: Arc<Clock>,
    skew_ms: u64,
    /// Counts wishes for a look at all blobs from the first on.
    pub full_looks: Arc<AtomicU64>,
}

#[must_use]
pub fn node_id(number: u8) -> NodeId {
    NodeId([number + 1; 32])
}

#[must_use]
pub fn disk_id(number: u8) -> DiskId {
    DiskId([number + 1; 16])
}

impl Machine {
    #[must_use]
    pub fn id(&self) -> NodeId {
        node_id(self.number)
    }

    /// Starts the node on what its disk holds.
    ///
    /// # Errors
    /// Why a part refuses to start.
    pub async fn start(&mut self, around: &Surroundings, session: u64) -> Result<(), String> {
        let disk = self.disk.mount();
        let seat = Seat { id: self.id(), life: CancellationToken::new() };
        let store = self.open_store(disk.clone()).await?;
        let host =
            Arc::new(Host { seat: seat.clone(), meta: OnceLock::new(), disks: LocalDisks::new([store]) });
        let links = Arc::new(Voters::new(Arc::clone(&around.net), seat.clone()));
        let (clock, skew_ms) = (Arc::clone(&around.clock), self.skew_ms);
        let now = move || EPOCH_MS + skew_ms + clock.wall_ms();
        if self.is_voter {
            let number = u64::from(self.number) + 1;
            let mut config = MetaConfig::new(PathBuf::from(META_DIR), CLUSTER_ID.into(), number, seat.id);
            config.snapshot_log_bytes = around.snapshot_log_bytes;
            config.log_keep_bytes = around.log_keep_bytes;
            config.log_segment_bytes = 256 << 10;
            config.store_cache_bytes = 4 << 20;
            let meta = MetaNode::start_on(Arc::new(disk), config, links.clone(), Arc::new(now.clone())).await;
            let meta = meta.map_err(|error| format!("voter {} does not start: {error:?}", self.number))?;
            drop(host.meta.set(meta));
        }
        let facts: Arc<dyn Metadata> = Arc::new(MetaClient::new(
            host.meta.get().cloned(),
            around.voters.clone(),
            links,
            MetaClientConfig::new(session),
        ));
        let map = MapView::default();
        let peers: Arc<dyn ShardPeers> =
            Arc::new(Shards::new(Arc::clone(&around.net), Arc::clone(&host), map.clone()));
        let identity = Identity::new(Arc::clone(&facts), CLUSTER_KEY);
        let objects = Objects::new(
            Arc::clone(&facts),
            Arc::clone(&peers),
            map.clone(),
            identity,
            Arc::new(move || Timestamp(now())),
            ObjectsOptions::default(),
        );
        let running = Running {
            host: Arc::clone(&host),
            facts,
            objects,
            map,
            peers,
            clock: Arc::clone(&around.clock),
            skew_ms,
            full_looks: Arc::default(),
        };
        around.net.join(host);
        running.spawn(running.clone().follow_map());
        running.spawn(running.clone().repair(disk_id(self.number)));
        running.spawn(running.clone().collect());
        if self.is_voter {
            running.spawn(running.clone().watch_health(Arc::clone(&around.net)));
            running.spawn(running.clone().place());
        }
        self.running = Some(running);
        Ok(())
    }

    async fn open_store(&self, disk: SimDisk) -> Result<ShardStore, String> {
        let superblock = Superblock {
            cluster_id: CLUSTER_ID.into(),
            disk: disk_id(self.number),
            created_at_ms: EPOCH_MS,
            secret: Secret([self.number; 32]),
        };
        let options = StoreOptions {
            segment_bytes: 2 << 20,
            append_segments: 1,
            writers_max: 64,
            ..StoreOptions::default()
        };
        let opened = tokio::task::spawn_blocking(move || {
            ShardStore::open_on(Arc::new(disk), Path::new(SHARDS_DIR), superblock, options)
        });
        let failed = |why: String| format!("shard store {} does not open: {why}", self.number);
        match opened.await {
            Ok(Ok((store, _))) => Ok(store),
            Ok(Err(error)) => Err(failed(format!("{error:?}"))),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// The process is gone: what it was doing stops, nothing it says is heard.
    pub fn stop_dead(&mut self, net: &Net) {
        let Some(Running { host, .. }) = self.running.take() else { return };
        net.leave(host.seat.id);
        host.seat.life.cancel();
        if let Some(meta) = host.meta.get().cloned() {
            // Its disk and its links are dead: this only gives threads and memory back.
            tokio::spawn(async move { meta.shutdown().await });
        }
    }
}

impl Running {
    /// Runs until this node dies.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let life = self.host.seat.life.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = work => {}
                () = life.cancelled() => {}
            }
        });
    }

    fn unix_ms(&self) -> u64 {
        EPOCH_MS + self.skew_ms + self.clock.wall_ms()
    }

    fn leads(&self) -> bool {
        self.host.meta.get().is_some_and(MetaNode::is_leader)
    }

    /// Reads the map if it changed.
    pub async fn refresh_map(&self) {
        let epoch = self.map.get().map.epoch;
        let query = Query::ClusterMap { known_epoch: (epoch > 0).then_some(epoch) };
        if let Ok(Answer::ClusterMap(map)) = self.facts.query(query).await {
            self.map.update(map);
        }
    }

    async fn follow_map(self) {
        loop {
            self.refresh_map().await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn watch_health(self, net: Arc<Net>) {
        let mut heard: HashMap<NodeId, u64> = HashMap::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if !self.leads() {
                heard.clear();
                continue;
            }
            let map = self.map.get();
            let pings = map.map.nodes.iter().map(|node| {
                let ping = net.call(&self.host.seat, node.id, PING_MAX, |_| async {});
                async move { (node.id, ping.await.is_ok()) }
            });
            let answers = futures::future::join_all(pings).await;
            let now_ms = self.clock.now_ms();
            for (id, is_heard) in answers {
                let last_ms = heard.entry(id).or_insert(now_ms);
                if is_heard {
                    *last_ms = now_ms;
                }
                let is_up = is_heard || now_ms - *last_ms <= SILENCE_MAX_MS;
                let is_silent = !is_heard && !is_up;
                let known = map.node(id).is_some_and(|node| node.is_up);
                if (known && is_silent) || (!known && is_heard) {
                    drop(self.facts.propose(Command::SetNodeUp { node: id, is_up: is_heard }).await);
                }
            }
        }
    }

    async fn place(self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.leads() {
                self.place_once().await;
            }
        }
    }

    async fn place_once(&self) -> Option<()> {
        let Answer::ClusterMap(map) = self.facts.query(Query::ClusterMap { known_epoch: None }).await.ok()?
        else {
            return None;
        };
        let Answer::Buckets(buckets) = self.facts.query(Query::Buckets { tenant: None }).await.ok()? else {
            return None;
        };
        let is_usable =
            |id: NodeId| map.nodes.iter().any(|node| node.id == id && node.standing == Standing::Active);
        let disks = map.disks.iter().filter(|disk| disk.standing == Standing::Active && is_usable(disk.node));
        let members: Vec<Member> = disks
            .map(|disk| Member {
                disk: disk.id,
                node: disk.node,
                owner: String::new(),
                site: String::new(),
                capacity_bytes: disk.capacity_bytes,
                is_part_time: false,
            })
            .collect();
        let schemes: BTreeSet<Scheme> = buckets.iter().filter_map(|bucket| bucket.scheme).collect();
        let mut next_id = map.groups.iter().map(|group| group.id.0).max().unwrap_or(0) + 1;
        let mut groups = Vec::new();
        for scheme in schemes {
            let of_scheme = map.groups.iter().filter(|group| group.scheme == scheme);
            let existing: Vec<Placed> = of_scheme
                .map(|group| Placed { id: group.id, version: group.version, disks: group.disks.clone() })
                .collect();
            for Placed { id, version, disks } in plan(scheme, &members, &[], &existing, next_id) {
                next_id = next_id.max(id.0 + 1);
                groups.push(Group { id, scheme, version, disks, moves: vec![] });
            }
        }
        if !groups.is_empty() {
            self.facts.propose(Command::PutGroups { map_epoch: map.epoch, groups }).await.ok()?;
        }
        Some(())
    }

    async fn repair(self, disk: DiskId) {
        let mut round = Round::default();
        let mut full_looks = 0;
        loop {
            tokio::time::sleep(REPAIR_EVERY).await;
            let wished = self.full_looks.load(Ordering::Relaxed);
            if wished != full_looks {
                full_looks = wished;
                round.cursors.clear();
            }
            self.look(disk, &mut round).await;
            self.mend(disk, &mut round).await;
        }
    }

    fn holds(&self, disk: DiskId, key: ShardKey) -> bool {
        let own = self.host.disks.iter().find(|(own, _)| **own == disk);
        own.and_then(|(_, store)| store.header(key)).is_some_and(|shard| !shard.is_damaged)
    }

    /// Notes which shards of blobs not looked at yet are missing.
    async fn look(&self, disk: DiskId, round: &mut Round) {
        let map = self.map.get();
        for group in &map.map.groups {
            let Some(index) = group.disks.iter().position(|own| *own == disk) else { continue };
            let index = index as u8;
            let (version, after) = round.cursors.get(&group.id).copied().unwrap_or((group.version, 0));
            let mut after = if version == group.version { after } else { 0 };
            let query = Query::BlobsOfGroup { pg: group.id, after_sequence: after, entries_max: BATCH };
            let Ok(Answer::Blobs(blobs)) = self.facts.query(query).await else { return };
            for blob in blobs {
                after = after.max(blob.sequence);
                if !self.holds(disk, ShardKey { blob: blob.id, index }) {
                    let due_ms = self.clock.now_ms() + MISSING_FOR_MS;
                    round.missing.entry((blob.id, index)).or_insert((blob, due_ms));
                }
            }
            round.cursors.insert(group.id, (group.version, after));
        }
    }

    async fn mend(&self, disk: DiskId, round: &mut Round) {
        let now_ms = self.clock.now_ms();
        let is_due = |(_, (_, due_ms)): &(&(BlobId, u8), &(Blob, u64))| *due_ms <= now_ms;
        let due: Vec<(BlobId, u8)> = round.missing.iter().filter(is_due).map(|(key, _)| *key).collect();
        for key in due {
            let (id, index) = key;
            let Some((blob, _)) = round.missing.get(&key) else { continue };
            let map = self.map.get();
            let group = map.group(blob.pg).filter(|group| group.disks.get(usize::from(index)) == Some(&disk));
            let Ok(Answer::BlobStates(states)) = self.facts.query(Query::BlobStates { ids: vec![id] }).await
            else {
                continue;
            };
            let is_live = states.first().is_some_and(Option::is_some);
            let (Some(group), true, false) = (group, is_live, self.holds(disk, ShardKey { blob: id, index }))
            else {
                round.missing.remove(&key);
                continue;
            };
            let Ok(codec) = Codec::new(group.scheme) else { continue };
            let source = RebuildSource {
                blob: id,
                pg: group.id,
                scheme: group.scheme,
                plain_len: blob.plain_len,
                root: blob.root,
                disks: group.disks.clone(),
                opened_at_ms: self.unix_ms(),
            };
            if rebuild_shards(&self.peers, &codec, &source, &[(index, disk)]).await.is_ok() {
                round.missing.remove(&key);
            } else if let Some((_, due_ms)) = round.missing.get_mut(&key) {
                *due_ms = self.clock.now_ms() + RETRY_AFTER_MS;
            }
        }
    }

    async fn collect(self) {
        loop {
            tokio::time::sleep(COLLECT_EVERY).await;
            if self.leads() {
                drop(self.collect_garbage().await);
            }
            drop(self.collect_orphans().await);
        }
    }

    /// Forgets blobs that nothing has named for long, then deletes their shards.
    async fn collect_garbage(&self) -> Result<(), MetaError> {
        let before_ms = self.unix_ms().saturating_sub(COLLECT_AGE_MS);
        let garbage = self.facts.query(Query::Garbage { before_ms, entries_max: BATCH }).await?;
        let Answer::Blobs(blobs) = garbage else { return Ok(()) };
        if blobs.is_empty() {
            return Ok(());
        }
        let ids: Vec<BlobId> = blobs.iter().map(|blob| blob.id).collect();
        self.facts.propose(Command::ForgetBlobs { blobs: ids.clone() }).await?;
        let Answer::BlobStates(states) = self.facts.query(Query::BlobStates { ids }).await? else {
            return Ok(());
        };
        let map = self.map.get();
        for (Blob { id, pg, .. }, _) in blobs.iter().zip(states).filter(|(_, state)| state.is_none()) {
            for (index, disk) in (0u8..).zip(map.group(*pg).map_or(&[][..], |group| &group.disks)) {
                // What is not deleted now is an orphan.
                drop(self.peers.delete(*disk, vec![ShardKey { blob: *id, index }]).await);
            }
        }
        Ok(())
    }

    /// Deletes this node's shards that no fact names, once no writer can name them any more.
    async fn collect_orphans(&self) -> Result<(), MetaError> {
        let opened_before = self.unix_ms().saturating_sub(COLLECT_AGE_MS);
        for (_, store) in self.host.disks.iter() {
            let shards = store.list_after(None, usize::MAX);
            let is_old = |shard: &&StoredShard| shard.opened_at_ms < opened_before;
            let old: Vec<ShardKey> = shards.iter().filter(is_old).map(|shard| shard.key).collect();
            let orphans = self.unnamed(old).await?;
            drop(store.delete(orphans).await);
        }
        Ok(())
    }

    /// Those of `keys` whose blob the facts do not know.
    async fn unnamed(&self, keys: Vec<ShardKey>) -> Result<Vec<ShardKey>, MetaError> {
        let ids = keys.iter().map(|key| key.blob).collect();
        match self.facts.query(Query::BlobStates { ids }).await? {
            Answer::BlobStates(states) => {
                let unnamed = keys.into_iter().zip(states).filter(|(_, state)| state.is_none());
                Ok(unnamed.map(|(key, _)| key).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Shards on this node's disk that no group's blob needs there.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn needless_shards(&self, disk: DiskId) -> Result<usize, MetaError> {
        let mut needed = BTreeSet::new();
        for group in &self.map.get().map.groups {
            let Some(index) = group.disks.iter().position(|own| *own == disk) else { continue };
            let query = Query::BlobsOfGroup { pg: group.id, after_sequence: 0, entries_max: BATCH };
            if let Answer::Blobs(blobs) = self.facts.query(query).await? {
                needed.extend(blobs.iter().map(|blob| ShardKey { blob: blob.id, index: index as u8 }));
            }
        }
        let held = self.host.disks.iter().flat_map(|(_, store)| store.list_after(None, usize::MAX));
        Ok(held.filter(|shard| !needed.contains(&shard.key)).count())
    }

    /// Shards that should be on this node's disk and are not, over all blobs.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn missing_shards(&self, disk: DiskId) -> Result<usize, String> {
        let mut missing = 0;
        for group in &self.map.get().map.groups {
            let Some(index) = group.disks.iter().position(|own| *own == disk) else { continue };
            let query = Query::BlobsOfGroup { pg: group.id, after_sequence: 0, entries_max: BATCH };
            match self.facts.query(query).await {
                Ok(Answer::Blobs(blobs)) => {
                    let index = index as u8;
                    let is_missing = |blob: &&Blob| !self.holds(disk, ShardKey { blob: blob.id, index });
                    missing += blobs.iter().filter(is_missing).count();
                }
                other => return Err(format!("{other:?}")),
            }
        }
        Ok(missing)
    }
}

#[derive(Default)]
struct Round {
    /// Per group: its version and the last blob looked at.
    cursors: HashMap<PgId, (u32, u64)>,
    /// And when each is due.
    missing: BTreeMap<(BlobId, u8), (Blob, u64)>,
}
