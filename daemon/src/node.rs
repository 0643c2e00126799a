//! One node: builds its parts from the ground up, keeps them running, stops them in reverse.
//!
//! ```text
//! lock ─> key ─> disks ─> transport ─> cluster (begun, joined or remembered) ─> voter ─> facts ─> doors ─> loops
//! ```
//!
//! Always: a node serves nothing before it knows its cluster; a start that fails says what to mend and leaves what was on
//! disk as it was; a stop drains the doors first and syncs the disks last.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use async_trait::async_trait;
use bytes::Bytes;
use makai_config::{LedgerKind, NodeConfig};
use makai_erasure::store::{ShardStore, StoreOptions};
use makai_erasure::stripe::ShardPeers;
use makai_erasure::{DiskId, NodeId};
use makai_gateway::audit::Audited;
use makai_gateway::identity::{self, Identity};
use makai_gateway::jobs::JobsOptions;
use makai_gateway::jobs::desk::Desk;
use makai_gateway::objects::{Objects, ObjectsOptions, PoolRoom};
use makai_gateway::s3::notifications::Messenger;
use makai_gateway::s3::replication::Replicator;
use makai_gpu_runtime::card::host::{Host, HostConfig};
use makai_gpu_runtime::container::{Bounds as ImageBounds, ContainerConfig, ContainerRunner};
use makai_gpu_runtime::runner::Level;
use makai_ops::metering::{Purpose, ServedMeter};
use makai_raft::facts::Timestamp;
use makai_raft::facts::cluster::{Condition, Disk, Node as NodeFacts, Role, Standing};
use makai_raft::facts::command::{Command, Refusal, Reply};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::{AccessKey, Tenant};
use makai_raft::handle::{
    MetaClient, MetaClientConfig, MetaConfig, MetaError, MetaNode, Metadata, Nearby, RaftPeerError,
    RaftPeers, Remembered,
};
use makai_raft::view::MapView;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accounts::chain::Chain;
use crate::accounts::metered::MeteredShards;
use crate::counted::Counted;
use crate::disks::LocalDisks;
use crate::files::{self, FolderLock};
use crate::identity::NodeIdentity;
use crate::members::{
    JOIN, JoinAnswer, JoinRequest, META, Members, ROOM, StorageFacts, decode, describe, encode,
};
use crate::reconcile::cards::CardRoom;
use crate::reconcile::{self, Shell};
use crate::relay::Relay;
use crate::state::{self, ClusterState, KnownPeer};
use crate::ticket::Ticket;
use crate::transport::{RemoteShards, Transport, TransportConfig, TransportError};
use crate::{clock, console, door};

/// How long a node tries to join, or to say that it is back, before it gives up.
const JOIN_DEADLINE: Duration = Duration::from_secs(120);
/// `df` waits no longer for a leader to tell of disks.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);
const JOIN_PAUSE: Duration = Duration::from_millis(500);
/// Who waits to be let in says so this often.
const TOLD_AGAIN_AFTER: Duration = Duration::from_secs(30);
const REMOVED_HINT: &str =
    "a node that was removed joins anew, with a token and with an empty node.dir and empty disks";
const JOIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long requests under way may take to end when the node stops.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// So many looks without a leader are no election any more.
const LEADERLESS_LOOKS: u32 = 10;
const LEADERLESS_LOOK_EVERY: Duration = Duration::from_millis(100);
/// The tenant that a new cluster begins with.
const FIRST_TENANT: &str = "main";

/// The credentials that a new cluster begins with: `credentials.json` on its first node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstCredentials {
    pub tenant: String,
    pub access_key_id: String,
    pub secret_access_key: String,
}

/// Where that file lies.
#[must_use]
pub fn credentials_path(dir: &Path) -> PathBuf {
    dir.join("credentials.json")
}

/// A running node.
pub struct Node {
    shell: Shell,
    tasks: TaskTracker,
    meta: Option<MetaNode>,
    stop_doors: CancellationToken,
    door_tasks: TaskTracker,
    /// Addresses as bound: they differ from the configured ones where those ask for any free port.
    pub s3: Option<SocketAddr>,
    pub grpc: Option<SocketAddr>,
    pub console: Option<SocketAddr>,
    _lock: FolderLock,
}

impl Node {
    /// Starts a node and returns once it serves.
    ///
    /// # Errors
    /// What keeps it from starting, with what to do.
    pub async fn start(config: NodeConfig) -> anyhow::Result<Self> {
        makai_erasure::codec::self_test().context("the erasure codec does not work on this CPU")?;
        let dir = config.node.dir.clone();
        std::fs::create_dir_all(&dir).with_context(|| format!("make the node's folder {dir:?}"))?;
        let lock = FolderLock::take(&dir).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => {
                anyhow!("another daemon runs on {dir:?}; stop it first, or give this one another node.dir")
            }
            _ => anyhow!(error).context(format!("lock {dir:?}")),
        })?;
        let node_key = NodeIdentity::load_or_create(&dir)?;
        let id = node_key.id();
        let ticket = read_ticket(&config)?;
        let remembered = check_cluster(&config, ClusterState::load(&dir)?, ticket.as_ref())?;

        let cluster_id = match (&remembered, &ticket) {
            (Some(state), _) => state.cluster_id.clone(),
            (None, Some(ticket)) => ticket.cluster_id.clone(),
            (None, None) => hex::encode(rand::random::<[u8; 16]>()),
        };
        let (disks, speeds, formatted) = open_disks(&config, &cluster_id).await?;
        let members = Members::new(id, disks.clone());
        let transport = start_transport(&config, &node_key, &members).await?;
        let addresses = advertised(&config, transport.local_addr());
        let facts_of_me = describe(id, &config, addresses);
        if facts_of_me.roles.contains(&Role::Voter) && facts_of_me.addresses.is_empty() {
            bail!("a voter must be reachable: set peers.advertise to the host:port that others can dial");
        }
        let own_disks = describe_disks(id, &disks, &speeds);
        let told_voters = ticket.as_ref().map(|ticket| ticket.voters.clone()).unwrap_or_default();
        let told = ticket.as_ref().map(|ticket| (ticket.token_id.clone(), ticket.secret.clone()));

        let state = match remembered {
            Some(state) => {
                if let Some(key) = state::load_cluster_key(&dir)? {
                    members.set_cluster_key(key);
                }
                if asks_for_more(&state, &facts_of_me) && !config.cluster.init {
                    join(&transport, &members, &state.into(), &facts_of_me, &own_disks, &dir, ticket).await?
                } else {
                    state
                }
            }
            None => match ticket {
                Some(ticket) => {
                    let cluster =
                        Meeting { cluster_id: ticket.cluster_id.clone(), voters: ticket.voters.clone() };
                    let joined =
                        join(&transport, &members, &cluster, &facts_of_me, &own_disks, &dir, Some(ticket));
                    match joined.await {
                        Ok(state) => state,
                        Err(error) => {
                            disks.close().await;
                            empty(&formatted);
                            return Err(error);
                        }
                    }
                }
                None => begin(&dir, &members, &cluster_id, &facts_of_me)?,
            },
        };
        // Whoever configured the token vouches for the voters in it: after a restore no others may be left.
        let mut peers = state.peers.clone();
        let vouched: Vec<KnownPeer> =
            told_voters.into_iter().filter(|told| peers.iter().all(|peer| peer.id != told.id)).collect();
        peers.extend(vouched);
        members.remember(&state.cluster_id, &peers);
        for peer in peers.iter().filter(|peer| peer.id != id) {
            transport.set_addresses(peer.id, peer.addresses.clone());
        }

        let peers: Arc<dyn RaftPeers> = Arc::new(ControlPeers(transport.clone()));
        let is_voter = facts_of_me.roles.contains(&Role::Voter);
        let meta = if is_voter { Some(start_meta(&config, &state, id, &peers).await?) } else { None };
        if let Some(meta) = &meta {
            members.set_meta(meta.clone());
            if config.cluster.init {
                meta.bootstrap().await.context("begin the cluster's metadata")?;
            }
        }
        let (voters_now, voters) = watch::channel(members.voters());
        let is_trusted = is_voter || facts_of_me.roles.contains(&Role::Gateway);
        let facts: Arc<dyn Metadata> = if is_trusted {
            let mut client = MetaClientConfig::new(rand::random());
            client.deadline_ms = config.raft.deadline_ms;
            client.attempt_timeout_ms = config.raft.request_timeout_ms;
            Arc::new(MetaClient::new(meta.clone(), voters, Arc::clone(&peers), client))
        } else {
            Arc::new(StorageFacts { transport: transport.clone(), members: Arc::clone(&members) })
        };
        let facts: Arc<dyn Metadata> = Arc::new(Counted { facts, members: Arc::downgrade(&members) });
        members.set_facts(Arc::clone(&facts));
        if config.cluster.init {
            found(&*facts, &members, &state, &facts_of_me, &own_disks, &dir).await?;
        } else {
            renew(&transport, &members, &*facts, is_trusted, &facts_of_me, &own_disks, told).await?;
        }

        let map = MapView::default();
        let served = ServedMeter::default();
        let chain = match config.ledger.kind {
            LedgerKind::Evm if is_trusted => Some(Arc::new(Chain::open(&dir, &config.ledger)?)),
            _ => None,
        };
        let shell = Shell {
            id,
            identity: node_key.clone(),
            peers: metered(background_peers(&transport, &map), &map, &served, Purpose::Repair),
            served,
            chain,
            config: Arc::new(config),
            members: Arc::clone(&members),
            transport,
            here: here(meta.as_ref(), &facts, &members),
            facts,
            disks,
            map,
            map_changed: Arc::new(Notify::new()),
            map_renewed: Arc::new(watch::channel(0).0),
            progress: Arc::default(),
            line: Arc::default(),
            jobs: Arc::default(),
            stop: CancellationToken::new(),
        };
        members.set_progress(Arc::clone(&shell.progress));
        if is_trusted {
            // Those who ask say whether a customer waits.
            let direct = direct_shards(&shell.transport, &shell.map).in_background();
            let relay = Relay { own: shell.disks.clone(), direct: Arc::new(direct), map: shell.map.clone() };
            members.set_relay(relay);
        }
        let mut told_at: Option<std::time::Instant> = None;
        while let Err(error) = reconcile::map::refresh(&shell).await {
            if told_at.is_none_or(|at| at.elapsed() >= TOLD_AGAIN_AFTER) {
                told_at = Some(clock::instant());
                tracing::warn!(%error, "waiting for the cluster's map; {REMOVED_HINT}");
            }
            tokio::time::sleep(JOIN_PAUSE).await;
        }
        let tasks = TaskTracker::new();
        tasks.spawn(follow_voters(shell.clone(), voters_now));
        reconcile::start(&shell, &tasks);

        let (stop_doors, door_tasks) = (CancellationToken::new(), TaskTracker::new());
        let (s3, grpc) = match (facts_of_me.roles.contains(&Role::Gateway), members.cluster_key()) {
            (true, Some(key)) => {
                let outbound = door::outbound(&shell.config);
                // What customers administer at the doors is written down with its change.
                let audited = Arc::new(Audited::new(Arc::clone(&shell.facts)));
                let shell = Shell { facts: audited, ..shell.clone() };
                let identity = Identity::with_outbound(Arc::clone(&shell.facts), key, outbound.clone());
                let objects = objects(&shell, identity.clone());
                let (facts, here) = (Arc::clone(&shell.facts), Arc::clone(&shell.here));
                let replicator = Replicator::new(facts, here, objects.clone(), outbound.clone());
                tasks.spawn(reconcile::replicate::run(shell.clone(), replicator));
                tasks.spawn(reconcile::squeeze::run(shell.clone(), objects.clone()));
                let messenger = Messenger::new(
                    Arc::clone(&shell.facts),
                    Arc::clone(&shell.here),
                    objects.clone(),
                    outbound,
                    shell.config.s3.region.clone(),
                );
                tasks.spawn(reconcile::notify::run(shell.clone(), messenger));
                let tls = door::certificates(&shell.config, &stop_doors, &door_tasks)?;
                members.set_desk(Desk::new(Arc::clone(&shell.facts), objects.clone()));
                let jobs = JobsOptions {
                    facts: Arc::clone(&shell.facts),
                    objects: objects.clone(),
                    nodes: Arc::new(reconcile::agent::Nodes { shell: shell.clone() }),
                };
                let (config, stop, tasks) = (&shell.config, &stop_doors, &door_tasks);
                let s3 = door::start_s3(config, objects, identity.clone(), tls.clone(), stop, tasks).await?;
                (s3, door::start_grpc(config, identity, jobs, tls, stop, tasks).await?)
            }
            (true, None) => {
                bail!("this gateway has no cluster.key; join again with a token that grants the role")
            }
            (false, _) => (None, None),
        };
        if facts_of_me.roles.contains(&Role::Compute) {
            start_jobs(&shell, &node_key, &tasks).await?;
        }
        let console = console::start(&shell, &stop_doors, &door_tasks).await?;
        tracing::info!(node = %id, ?s3, ?grpc, ?console, "the node serves");
        Ok(Self { shell, tasks, meta, stop_doors, door_tasks, s3, grpc, console, _lock: lock })
    }

    #[must_use]
    pub fn shell(&self) -> &Shell {
        &self.shell
    }

    /// Returns when the node can go on no longer.
    pub async fn failed(&self) -> anyhow::Error {
        match &self.meta {
            Some(meta) => anyhow!(meta.fatal().await),
            None => std::future::pending().await,
        }
    }

    /// Resolves when this voter has been without a leader for a while: who waits for facts waits in vain.
    async fn has_no_facts(&self) {
        let Some(meta) = &self.meta else { return std::future::pending().await };
        let mut looks = 0;
        while looks < LEADERLESS_LOOKS {
            looks = if meta.is_led() { 0 } else { looks + 1 };
            tokio::time::sleep(LEADERLESS_LOOK_EVERY).await;
        }
    }

    /// Lets requests end, hands leadership on, syncs the disks.
    pub async fn stop(self) {
        self.stop_doors.cancel();
        self.door_tasks.close();
        tokio::select! {
            () = self.door_tasks.wait() => {}
            () = tokio::time::sleep(DRAIN_MAX) => {
                tracing::warn!("requests were still under way when the node stopped");
            }
            () = self.has_no_facts() => {
                tracing::warn!("requests were still under way when the node stopped; no voter leads, so none of them can end");
            }
        }
        self.shell.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN_MAX, self.tasks.wait()).await.is_err() {
            tracing::warn!("a loop was still busy when the node stopped");
        }
        if let Some(meta) = &self.meta {
            meta.shutdown().await;
        }
        self.shell.transport.close(Duration::from_secs(1)).await;
        self.shell.disks.close().await;
    }
}

fn read_ticket(config: &NodeConfig) -> anyhow::Result<Option<Ticket>> {
    let token = config.read_join_token()?;
    Ok(token.map(|token| Ticket::parse(token.expose())).transpose()?)
}

/// The cluster this node remembers, unless the configuration means another.
fn check_cluster(
    config: &NodeConfig,
    remembered: Option<ClusterState>,
    ticket: Option<&Ticket>,
) -> anyhow::Result<Option<ClusterState>> {
    let dir = &config.node.dir;
    match (remembered, ticket) {
        (Some(state), Some(ticket)) if state.cluster_id != ticket.cluster_id => bail!(
            "{dir:?} belongs to cluster {}, the join token to cluster {}; use an empty folder, or the right token",
            state.cluster_id,
            ticket.cluster_id
        ),
        (None, None) if !config.cluster.init => bail!(
            "{dir:?} knows no cluster: set cluster.join_token (from `makai node join-token` on a voter), \
             or cluster.init = true to begin a new cluster"
        ),
        (remembered, _) => Ok(remembered),
    }
}

/// Opens the disks; says how quick each is, as configured, and names those that were empty and are formatted now.
async fn open_disks(
    config: &NodeConfig,
    cluster_id: &str,
) -> anyhow::Result<(LocalDisks, HashMap<DiskId, u64>, Vec<PathBuf>)> {
    let (mut stores, mut speeds, mut formatted) = (Vec::new(), HashMap::new(), Vec::new());
    for disk in &config.disk {
        let options = StoreOptions {
            reserve_bytes: disk.reserve_bytes,
            capacity_bytes_max: disk.capacity_bytes_max,
            segment_bytes: config.storage.segment_bytes,
            ..StoreOptions::default()
        };
        let (path, cluster_id) = (disk.path.clone(), cluster_id.to_owned());
        let opened = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            std::fs::create_dir_all(&path).with_context(|| format!("make the disk's folder {path:?}"))?;
            let is_empty =
                std::fs::read_dir(&path).with_context(|| format!("look into {path:?}"))?.next().is_none();
            if is_empty {
                ShardStore::format(&path, &cluster_id, DiskId(rand::random()))?;
            }
            let (store, report) = ShardStore::open(&path, &cluster_id, options)?;
            Ok((store, report, is_empty.then_some(path)))
        });
        let (store, report, new) = opened.await??;
        formatted.extend(new);
        tracing::info!(disk = %store.disk_id(), path = ?disk.path, shards = report.shards, unfinished = report.unfinished,
            "disk open");
        for damage in &report.damaged {
            tracing::warn!(path = ?damage.path, offset = damage.offset, what = %damage.what, "a damaged record is set aside; its shard is rebuilt");
        }
        speeds.insert(store.disk_id(), disk.speed_bytes_per_sec);
        stores.push(store);
    }
    Ok((LocalDisks::new(stores), speeds, formatted))
}

/// Takes the format from folders that got it in a start that led nowhere, so that another cluster can have them.
fn empty(formatted: &[PathBuf]) {
    for path in formatted {
        if let Err(error) = std::fs::remove_dir_all(path) {
            tracing::warn!(?path, %error, "empty it by hand before this disk joins another cluster");
        }
    }
}

fn describe_disks(node: NodeId, disks: &LocalDisks, speeds: &HashMap<DiskId, u64>) -> Vec<Disk> {
    let describe = |(id, store): (&DiskId, &ShardStore)| Disk {
        id: *id,
        node,
        capacity_bytes: store.usage().capacity,
        standing: Standing::Active,
        added_at: Timestamp(0),
        condition: makai_raft::facts::cluster::Condition::Well,
        speed_bytes_per_sec: speeds.get(id).copied().unwrap_or(0),
    };
    disks.iter().map(describe).collect()
}

async fn start_transport(
    config: &NodeConfig,
    node_key: &NodeIdentity,
    members: &Arc<Members>,
) -> anyhow::Result<Transport> {
    let transport = TransportConfig {
        listen: config.peers.listen,
        connect_timeout: Duration::from_millis(config.peers.connect_timeout_ms),
        idle_timeout: Duration::from_millis(config.peers.idle_timeout_ms),
        ..TransportConfig::default()
    };
    let handler: Arc<dyn crate::transport::PeerHandler> = Arc::<Members>::clone(members);
    Transport::start(transport, node_key, handler)
        .await
        .with_context(|| format!("listen for peers on {} (peers.listen)", config.peers.listen))
}

/// Where others reach this node: as configured, else where it listens if that is an address and not all of them.
#[must_use]
pub fn advertised(config: &NodeConfig, listening: SocketAddr) -> Vec<String> {
    if !config.peers.advertise.is_empty() {
        return config.peers.advertise.clone();
    }
    if listening.ip().is_unspecified() { Vec::new() } else { vec![listening.to_string()] }
}

/// Makes the secrets of a new cluster; its facts follow once the voter runs.
fn begin(dir: &Path, members: &Members, cluster_id: &str, me: &NodeFacts) -> anyhow::Result<ClusterState> {
    let key = rand::random::<[u8; 32]>();
    state::save_cluster_key(dir, &key)?;
    members.set_cluster_key(key);
    let me = KnownPeer { id: me.id, addresses: me.addresses.clone(), roles: me.roles.clone() };
    let state = ClusterState::new(cluster_id.to_owned(), 1, vec![me]);
    state.save(dir)?;
    Ok(state)
}

/// Which cluster to join, and whom to ask.
struct Meeting {
    cluster_id: String,
    voters: Vec<KnownPeer>,
}

impl From<ClusterState> for Meeting {
    fn from(state: ClusterState) -> Self {
        let is_voter = |peer: &KnownPeer| peer.roles.contains(&Role::Voter);
        Self { cluster_id: state.cluster_id, voters: state.peers.into_iter().filter(is_voter).collect() }
    }
}

/// Whether this node has roles now that the cluster has not let it in for.
fn asks_for_more(state: &ClusterState, me: &NodeFacts) -> bool {
    let known = state.peers.iter().find(|peer| peer.id == me.id);
    known.is_some_and(|known| me.roles.iter().any(|role| !known.roles.contains(role)))
}

/// Joins for the first time, or again with more roles: both need a token that allows them.
async fn join(
    transport: &Transport,
    members: &Members,
    cluster: &Meeting,
    me: &NodeFacts,
    disks: &[Disk],
    dir: &Path,
    ticket: Option<Ticket>,
) -> anyhow::Result<ClusterState> {
    for voter in &cluster.voters {
        transport.set_addresses(voter.id, voter.addresses.clone());
    }
    let token = ticket.map(|ticket| (ticket.token_id, ticket.secret));
    let request = JoinRequest { node: me.clone(), disks: disks.to_vec(), token };
    let voters: Vec<NodeId> =
        cluster.voters.iter().map(|voter| voter.id).filter(|voter| *voter != me.id).collect();
    let answer = ask_to_join(transport, &voters, &request).await?;
    let JoinAnswer::Joined { cluster_id, number, peers, cluster_key } = answer else {
        bail!("the cluster did not answer as expected")
    };
    if cluster_id != cluster.cluster_id {
        bail!("the join token is for cluster {}, but cluster {cluster_id} answered", cluster.cluster_id);
    }
    if let Some(key) = cluster_key {
        state::save_cluster_key(dir, &key)?;
        members.set_cluster_key(key);
    }
    let state = ClusterState::new(cluster_id, number, peers);
    state.save(dir)?;
    Ok(state)
}

/// Asks one voter after the other until one lets this node in.
async fn ask_to_join(
    transport: &Transport,
    voters: &[NodeId],
    request: &JoinRequest,
) -> anyhow::Result<JoinAnswer> {
    let body = encode(request).map_err(|why| anyhow!(why))?;
    let begun = clock::instant();
    let mut last = String::from("no voter is known");
    let mut told_at: Option<std::time::Instant> = None;
    while begun.elapsed() < JOIN_DEADLINE {
        for voter in voters {
            match transport.request(*voter, JOIN, body.clone(), JOIN_TIMEOUT).await {
                Ok(answer) => match decode(&answer).map_err(|why| anyhow!(why))? {
                    JoinAnswer::Refused(refusal) => bail!("the cluster does not let this node in: {refusal}"),
                    joined @ JoinAnswer::Joined { .. } => return Ok(joined),
                },
                Err(error @ (TransportError::WrongPeer { .. } | TransportError::Version { .. })) => {
                    return Err(error.into());
                }
                Err(error) => last = error.to_string(),
            }
        }
        if told_at.is_none_or(|at| at.elapsed() >= TOLD_AGAIN_AFTER) {
            told_at = Some(clock::instant());
            tracing::warn!(why = last, "no voter has let this node in yet; {REMOVED_HINT}");
        }
        tokio::time::sleep(JOIN_PAUSE).await;
    }
    bail!("no voter let this node in within {} s: {last}", JOIN_DEADLINE.as_secs())
}

async fn start_meta(
    config: &NodeConfig,
    state: &ClusterState,
    id: NodeId,
    peers: &Arc<dyn RaftPeers>,
) -> anyhow::Result<MetaNode> {
    let meta = meta_config(config, &state.cluster_id, state.number, id);
    let (dir, number) = (&config.node.dir, state.number);
    let before = state::voted_as(dir)?;
    if before == Some(number) && !MetaNode::has_begun(&meta.dir) {
        bail!(
            "the facts of this voter are gone from {:?}: as voter {number} it may have promised what it no longer knows, and voting \
             again it could undo what customers were told. Put the folder back; or remove this node from the others \
             (`makai node remove --lost {id}`), give it an empty node.dir and let it join anew. Only where the cluster was recovered without this voter (ops/runbooks/voters.md), \
             move voter.number away as well",
            meta.dir
        );
    }
    let voter = MetaNode::start(meta, Arc::clone(peers), Arc::new(|| clock::now().0)).await?;
    if before != Some(number) {
        state::votes_as(dir, number)?;
    }
    Ok(voter)
}

/// What a voter needs to know, from its configuration.
#[must_use]
pub fn meta_config(config: &NodeConfig, cluster_id: &str, number: u64, id: NodeId) -> MetaConfig {
    let mut meta = MetaConfig::new(config.node.dir.join("meta"), cluster_id.into(), number, id);
    meta.heartbeat_interval_ms = config.raft.heartbeat_interval_ms;
    meta.election_timeout_min_ms = config.raft.election_timeout_min_ms;
    meta.election_timeout_max_ms = config.raft.election_timeout_max_ms;
    meta.request_timeout_ms = config.raft.request_timeout_ms;
    meta.snapshot_log_bytes = config.raft.snapshot_log_bytes;
    meta.snapshot_interval_ms = config.raft.snapshot_interval_ms;
    meta.log_keep_bytes = config.raft.log_keep_bytes;
    meta.log_segment_bytes = config.raft.log_segment_bytes;
    meta.log_cache_bytes = usize::try_from(config.raft.log_cache_bytes).unwrap_or(usize::MAX);
    meta.store_cache_bytes = usize::try_from(config.raft.store_cache_bytes).unwrap_or(usize::MAX);
    meta
}

/// The first facts of a new cluster; on a later start, what this node says of itself.
async fn found(
    facts: &dyn Metadata,
    members: &Members,
    state: &ClusterState,
    me: &NodeFacts,
    disks: &[Disk],
    dir: &Path,
) -> anyhow::Result<()> {
    match patiently(facts, Command::InitCluster { cluster_id: state.cluster_id.clone() }).await {
        Ok(_) | Err(MetaError::Refused(Refusal::AlreadyExists(_))) => {}
        Err(error) => return Err(error.into()),
    }
    let command = Command::JoinNode { node: me.clone(), disks: disks.to_vec(), token: None };
    patiently(facts, command).await.context("enter this node into the facts")?;
    let cluster_key = members.cluster_key().context("cluster.key is missing on the cluster's first node")?;
    let Answer::Tenants(tenants) = facts.query(Query::Tenants).await? else {
        bail!("the facts list no tenants")
    };
    if !credentials_path(dir).exists() {
        let tenant = match tenants.into_iter().find(|tenant| tenant.name == FIRST_TENANT) {
            Some(tenant) => tenant,
            None => create_tenant(facts, &cluster_key, FIRST_TENANT, None).await?,
        };
        let (access_key_id, secret_access_key) = create_key(facts, &cluster_key, &tenant).await?;
        let credentials = FirstCredentials { tenant: tenant.name, access_key_id, secret_access_key };
        let path = credentials_path(dir);
        files::replace(&path, &serde_json::to_vec_pretty(&credentials)?)
            .with_context(|| format!("write {path:?}"))?;
    }
    Ok(())
}

/// Makes a tenant with a data key of its own.
///
/// # Errors
/// The name is taken or malformed, or the facts do not answer.
pub async fn create_tenant(
    facts: &dyn Metadata,
    cluster_key: &[u8; 32],
    name: &str,
    quota_bytes: Option<u64>,
) -> anyhow::Result<Tenant> {
    let wrapped_key = identity::new_tenant_key(cluster_key, name)?;
    match facts.propose(Command::CreateTenant { name: name.into(), wrapped_key, quota_bytes }).await? {
        Reply::Tenant(tenant) => Ok(tenant),
        other => bail!("the facts answered {other:?}"),
    }
}

/// Makes an access key; returns its id and secret.
///
/// # Errors
/// The facts do not answer.
pub async fn create_key(
    facts: &dyn Metadata,
    cluster_key: &[u8; 32],
    tenant: &Tenant,
) -> anyhow::Result<(String, String)> {
    let new = identity::new_access_key()?;
    let sealed_secret = identity::seal_secret(
        cluster_key,
        identity::PURPOSE_SECRET,
        &new.id,
        new.secret.expose().as_bytes(),
    )?;
    let key = AccessKey {
        id: new.id.clone(),
        tenant: tenant.id,
        sealed_secret,
        created_at: Timestamp(0),
        is_enabled: true,
    };
    facts.propose(Command::PutAccessKey { key }).await?;
    Ok((new.id, new.secret.expose().to_owned()))
}

/// Proposes until the facts answer, as long as a start may take.
async fn patiently(facts: &dyn Metadata, command: Command) -> Result<Reply, MetaError> {
    let begun = clock::instant();
    let mut is_told = false;
    loop {
        match facts.propose(command.clone()).await {
            Err(MetaError::Unavailable(why)) if begun.elapsed() < JOIN_DEADLINE => {
                if !is_told {
                    tracing::warn!(%why, "waiting for a leader: more than half of the voters must be up");
                }
                is_told = true;
            }
            result => return result,
        }
    }
}

/// A member that starts again says where it is now and which disks it has.
async fn renew(
    transport: &Transport,
    members: &Members,
    facts: &dyn Metadata,
    is_trusted: bool,
    me: &NodeFacts,
    disks: &[Disk],
    // Of use where the cluster has come to know this node without a role, as a voter is that a recovery left out.
    token: Option<(String, String)>,
) -> anyhow::Result<()> {
    if is_trusted {
        let token = token.map(|(id, secret)| (id, Ticket::secret_hash(&secret)));
        let command = Command::JoinNode { node: me.clone(), disks: disks.to_vec(), token };
        patiently(facts, command).await.context(
            "tell the cluster that this node is here: start more than half of the voters; a former voter that a recovery left out \
             needs a join token (ops/runbooks/voters.md)",
        )?;
        return Ok(());
    }
    let request = JoinRequest { node: me.clone(), disks: disks.to_vec(), token };
    ask_to_join(transport, &members.voters(), &request).await.map(|_| ())
}

/// Agreement's way to other nodes.
pub struct ControlPeers(Transport);

impl ControlPeers {
    #[must_use]
    pub fn new(transport: Transport) -> Self {
        Self(transport)
    }
}

#[async_trait]
impl RaftPeers for ControlPeers {
    async fn request(&self, to: NodeId, message: Bytes, timeout: Duration) -> Result<Bytes, RaftPeerError> {
        self.0.request(to, META, message, timeout).await.map_err(|error| match error {
            TransportError::TimedOut { .. } => RaftPeerError::Timeout,
            TransportError::Refused { .. } | TransportError::NotAdmitted { .. } => {
                RaftPeerError::Refused(error.to_string())
            }
            _ => RaftPeerError::Unreachable(error.to_string()),
        })
    }
}

fn shard_peers(transport: &Transport, map: &MapView) -> Arc<dyn ShardPeers> {
    Arc::new(relayed_shards(transport, map))
}

/// For repair: customers' requests go before.
fn background_peers(transport: &Transport, map: &MapView) -> Arc<dyn ShardPeers> {
    Arc::new(relayed_shards(transport, map).in_background())
}

fn relayed_shards(transport: &Transport, map: &MapView) -> RemoteShards {
    let relays = {
        let map = map.clone();
        move || reconcile::reach::relays(&map.get())
    };
    direct_shards(transport, map).through(Arc::new(relays))
}

/// The disks of all nodes that this one can ask itself.
fn direct_shards(transport: &Transport, map: &MapView) -> RemoteShards {
    let locate = {
        let map = map.clone();
        move |disk: DiskId| map.get().node_of(disk)
    };
    let is_up = {
        let map = map.clone();
        move |node: NodeId| map.get().node(node).is_some_and(|node| node.is_up)
    };
    transport.shards(Arc::new(locate), Arc::new(is_up))
}

/// Counts what is read through `peers`.
fn metered(
    peers: Arc<dyn ShardPeers>,
    map: &MapView,
    served: &ServedMeter,
    purpose: Purpose,
) -> Arc<dyn ShardPeers> {
    Arc::new(MeteredShards::new(peers, map.clone(), served.clone(), purpose))
}

/// After a task, a worker waits so long for the next: it takes a few MiB.
const SPARE_KEPT_FOR: Duration = Duration::from_secs(5 * 60);

/// Starts what runs jobs. A machine that cannot confine them says so and does the rest of its work.
async fn start_jobs(shell: &Shell, key: &NodeIdentity, tasks: &TaskTracker) -> anyhow::Result<()> {
    let cards = cards(shell)?;
    let runner = ContainerRunner::open(ContainerConfig {
        state: shell.config.node.dir.join("containers"),
        // This very program, also when its file was replaced by the next release.
        worker: vec!["/proc/self/exe".into(), "worker".into()],
        bounds: ImageBounds::default(),
        level_min: Level::Watched,
        allow_host_network: false,
        use_cgroups: true,
        cards: cards.clone(),
        spare_kept_for: SPARE_KEPT_FOR,
    });
    match runner.await {
        Ok(runner) => {
            let agent = reconcile::agent::start(shell, key, Arc::new(runner.clone()))?;
            if let Some(host) = cards.as_ref().filter(|cards| cards.cards().is_some()) {
                let room = CardRoom { host: Arc::clone(host), agent: Arc::clone(&agent) };
                shell.jobs.set_cards(room.clone());
                tasks.spawn(reconcile::cards::run(shell.clone(), room, runner));
            }
            tasks.spawn(reconcile::agent::run(shell.clone(), agent, cards));
        }
        Err(error) => tracing::error!(%error, "this machine runs no jobs"),
    }
    Ok(())
}

/// This machine's cards, where its owner offers them.
fn cards(shell: &Shell) -> anyhow::Result<Option<Arc<Host>>> {
    let compute = &shell.config.compute;
    if !compute.gpus {
        return Ok(None);
    }
    let library = |path: &String| (!path.is_empty()).then(|| PathBuf::from(path));
    let host = Host::open(HostConfig {
        cuda_library: library(&compute.cuda_library),
        nvml_library: library(&compute.nvml_library),
        reserve_mib: compute.gpu_reserve_mib,
        shares_for_containers: compute.gpu_container_shares,
        desk: shell.config.node.dir.join("gpu-desk"),
        paused: Some(shell.config.node.dir.join("gpu-paused.json")),
    });
    let host = Arc::new(host.context("the desk of this machine's cards cannot be opened")?);
    Host::watch(&host).context("the health of this machine's cards cannot be watched")?;
    Ok(Some(host))
}

/// What the leader has heard of disks.
struct DiskRoom {
    shell: Shell,
}

#[async_trait]
impl PoolRoom for DiskRoom {
    async fn free_bytes(&self) -> Option<u64> {
        let members = &self.shell.members;
        let free: Vec<(DiskId, u64)> = if self.shell.is_leader() {
            members.free_by_disk()
        } else {
            let leader = members.leader()?;
            let answer = self.shell.transport.request(leader, ROOM, Bytes::new(), ROOM_TIMEOUT).await;
            decode(&answer.ok()?).ok()?
        };
        let map = self.shell.map.get();
        let takes = |id: DiskId| {
            let disk = map.map.disks.iter().find(|disk| disk.id == id)?;
            let node = map.node(disk.node)?;
            let is_active = disk.standing.worse(node.standing) == Standing::Active;
            (is_active && node.is_up && disk.condition != Condition::Missing).then_some(())
        };
        let takes = free.iter().filter(|(disk, _)| takes(*disk).is_some());
        let raw = takes.fold(0_u64, |sum, (_, free)| sum.saturating_add(*free));
        let scheme = map.default_scheme();
        // A leader that has just begun has heard of nobody.
        (!free.is_empty()).then(|| raw / scheme.shard_count().max(1) as u64 * u64::from(scheme.data))
    }
}

fn objects(shell: &Shell, identity: Identity) -> Objects {
    let options = ObjectsOptions {
        uploads_in_flight_max: shell.config.limits.uploads_in_flight_max as usize,
        read_bytes_in_flight_max: shell.config.limits.read_bytes_in_flight_max,
        read_cache_bytes: shell.config.limits.read_cache_bytes,
        meter: shell.served.clone(),
        pool_room: Some(Arc::new(DiskRoom { shell: shell.clone() })),
        ..ObjectsOptions::default()
    };
    Objects::new(
        Arc::clone(&shell.facts),
        metered(shard_peers(&shell.transport, &shell.map), &shell.map, &shell.served, Purpose::Egress),
        shell.map.clone(),
        identity,
        Arc::new(clock::now),
        options,
    )
}

/// The facts for loops.
fn here(meta: Option<&MetaNode>, facts: &Arc<dyn Metadata>, members: &Arc<Members>) -> Arc<dyn Metadata> {
    let near: Arc<dyn Metadata> = match meta {
        Some(voter) => Arc::new(Nearby::new(voter.clone(), Arc::clone(facts))),
        None => Arc::clone(facts),
    };
    let members = Arc::clone(members);
    Arc::new(Remembered::new(near, Arc::new(move || members.facts_version_here())))
}

/// Tells the facts' client whom to ask, as the map changes.
async fn follow_voters(shell: Shell, voters: watch::Sender<Vec<NodeId>>) {
    while shell.pause(Duration::from_secs(1)).await {
        let now = shell.members.voters();
        voters.send_if_modified(|known| {
            let is_new = *known != now;
            if is_new {
                known.clone_from(&now);
            }
            is_new
        });
    }
}
