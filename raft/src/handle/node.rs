//! One voter or learner: it owns its log, its facts and its part in Raft.
//!
//! | file      | holds                                                       |
//! |-----------|-------------------------------------------------------------|
//! | `members` | who votes, and who leads                                    |
//! | `marks`   | what voters remember of each other, asked and told          |
//! | `quorum`  | reads that a majority answers without the leader            |
//!
//! Ways in from other crates are boxed: the body of an `async fn` is compiled anew in every crate that awaits it, and all of
//! openraft with it.

mod marks;
mod members;
mod quorum;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use makai_erasure::NodeId;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{Fatal, LinearizableReadError, RaftError};
use openraft::{Config, Instant as _, Raft, RaftMetrics, ReadPolicy, SnapshotPolicy};
use serde::{Deserialize, Serialize};

use super::RaftPeers;
use super::barrier::Barrier;
use super::incoming::Incoming;
use super::link::Links;
use super::proposer::{Proposer, Results, leader_key};
use super::wire::{self, Kind, Trouble};
use super::witness::{self, Memory};
use crate::facts::GroupId;
use crate::facts::command::{Envelope, Refusal};
use crate::facts::query::{Answer, Query};
use crate::log::disk::{Disk, RealDisk};
use crate::log::types::{Types, VoterNode};
use crate::log::{GroupStorage, Log, LogConfig, LogError};
use crate::store::{MetaStore, RaftMachine, StoreConfig, StoreError};

const IDENTITY_MAGIC: &[u8; 8] = b"MKVOTER\x01";
const IDENTITY_FILE: &str = "identity";
const LOCK_FILE: &str = "lock";
/// A follower further behind gets a snapshot. It must exceed what the log keeps between snapshots.
const REPLICATION_LAG_ENTRIES_MAX: u64 = 1_000_000;
/// A follower's fsync may take longer than a leader may be silent.
const APPEND_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Entries in one append; their bytes are bounded by the log's reader.
const ENTRIES_PER_APPEND_MAX: u64 = 512;

/// What one voter needs to know. Times in milliseconds.
#[derive(Debug, Clone)]
pub struct MetaConfig {
    /// Nobody else's while the node runs.
    pub dir: PathBuf,
    /// Messages and snapshots of another cluster are refused.
    pub cluster_id: String,
    /// Given out once in the life of the cluster: never together with an emptied directory.
    pub node_number: u64,
    pub node: NodeId,
    pub group: GroupId,
    pub heartbeat_interval_ms: u64,
    /// After a leader falls silent, another leads within `max` + `min..max`. Machines of their own bear
    /// 50, 150 and 300; the defaults allow for voters that share busy cores.
    pub election_timeout_min_ms: u64,
    pub election_timeout_max_ms: u64,
    /// For one attempt to read, or to hear from the leader.
    pub request_timeout_ms: u64,
    /// Log written since the last durable commit of the facts, before the next one. Bounds what a restart
    /// applies again.
    pub snapshot_log_bytes: u64,
    /// Longest time between two durable commits of the facts.
    pub snapshot_interval_ms: u64,
    /// Log kept for followers that fall behind; one that is further behind gets a snapshot.
    pub log_keep_bytes: u64,
    pub log_segment_bytes: u64,
    pub log_cache_bytes: usize,
    pub store_cache_bytes: usize,
}

impl MetaConfig {
    #[must_use]
    pub fn new(dir: PathBuf, cluster_id: String, node_number: u64, node: NodeId) -> Self {
        let log = LogConfig::new(PathBuf::new());
        Self {
            dir,
            cluster_id,
            node_number,
            node,
            group: GroupId(0),
            heartbeat_interval_ms: 100,
            election_timeout_min_ms: 500,
            election_timeout_max_ms: 1000,
            request_timeout_ms: 2000,
            snapshot_log_bytes: 64 << 20,
            snapshot_interval_ms: 60_000,
            log_keep_bytes: 64 << 20,
            log_segment_bytes: log.segment_bytes,
            log_cache_bytes: log.cache_bytes,
            store_cache_bytes: 64 << 20,
        }
    }
}

/// Why a voter cannot start.
#[derive(Debug, thiserror::Error)]
pub enum MetaStartError {
    #[error("{0:?} is in use by another process; stop that one first")]
    InUse(PathBuf),
    /// Another number on the same disk, or the same number on another disk, could elect two leaders.
    #[error("{dir:?} belongs to {found}, not to {expected}; give each voter its own directory")]
    WrongIdentity { dir: PathBuf, found: String, expected: String },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path:?}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Invalid(String),
    #[error("Raft does not start: {0}")]
    Raft(String),
}

/// Why the voters could not be changed. Nothing has changed, unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaAdminError {
    #[error("this node does not lead; ask the leader")]
    NotLeader(Option<NodeId>),
    #[error("{0}")]
    Invalid(String),
    /// It may have changed: look at the status, then ask again.
    #[error("the change was not confirmed: {0}")]
    Unconfirmed(String),
}

/// The voter can do nothing more: its process must end and start anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metadata voter stopped: {0}; restart the daemon, and look at the disk if this repeats")]
pub struct MetaFatal(pub String);

/// How a voter is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaStatus {
    pub number: u64,
    pub term: u64,
    pub leader: Option<NodeId>,
    pub is_leader: bool,
    /// Index of the last entry in the log.
    pub last_log: Option<u64>,
    /// Index of the last applied entry.
    pub applied: Option<u64>,
    /// Index up to which the facts are durable by themselves.
    pub durable: Option<u64>,
    /// Index up to which the log has been let go.
    pub purged: Option<u64>,
    pub voters: Vec<(u64, NodeId)>,
    pub learners: Vec<(u64, NodeId)>,
    /// For the leader: the last index that each other node is known to have.
    pub matched: Vec<(u64, Option<u64>)>,
    pub log_bytes: u64,
    /// Why this voter takes no part in agreement, if it does not: it has not heard enough others yet, or its directory is an
    /// older copy.
    pub held_back: Option<String>,
    /// For the leader: voters whose directories are older copies. They take no part until they have been removed and added again.
    pub rewound: Vec<u64>,
}

/// One voter or learner. Clones share it.
#[derive(Clone)]
pub struct MetaNode(Arc<Inner>);

struct Inner {
    config: MetaConfig,
    raft: Raft<Types, RaftMachine>,
    log: Log,
    store: MetaStore,
    peers: Arc<dyn RaftPeers>,
    proposer: Proposer,
    barrier: Barrier,
    soonest: Mutex<quorum::Soonest>,
    incoming: Incoming,
    disk: Arc<dyn Disk>,
    /// Whether this voter votes and acknowledges.
    takes_part: AtomicBool,
    memory: Mutex<Memory>,
    /// Voters that have come less far than this node, leading, knows that they had.
    rewound: Mutex<BTreeSet<u64>>,
    /// Held while the voters change: one change at a time.
    membership: tokio::sync::Mutex<()>,
    is_stopping: AtomicBool,
    keeper: Mutex<Option<tokio::task::JoinHandle<()>>>,
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
}

impl MetaNode {
    /// Starts on this machine's file system. `now`: milliseconds of Unix time.
    ///
    /// # Errors
    /// The directory is another's, or what is in it does not read back.
    pub async fn start(
        config: MetaConfig,
        peers: Arc<dyn RaftPeers>,
        now: Arc<dyn Fn() -> u64 + Send + Sync>,
    ) -> Result<Self, MetaStartError> {
        Self::start_on(Arc::new(RealDisk), config, peers, now).await
    }

    /// Whether a voter has begun in `dir`: what it has promised to others is there.
    #[must_use]
    pub fn has_begun(dir: &Path) -> bool {
        dir.join(IDENTITY_FILE).exists()
    }

    /// Starts on any disk.
    ///
    /// # Errors
    /// As [`MetaNode::start`].
    pub fn start_on(
        disk: Arc<dyn Disk>,
        config: MetaConfig,
        peers: Arc<dyn RaftPeers>,
        now: Arc<dyn Fn() -> u64 + Send + Sync>,
    ) -> BoxFuture<'static, Result<Self, MetaStartError>> {
        Box::pin(Self::begin(disk, config, peers, now))
    }

    async fn begin(
        disk: Arc<dyn Disk>,
        config: MetaConfig,
        peers: Arc<dyn RaftPeers>,
        now: Arc<dyn Fn() -> u64 + Send + Sync>,
    ) -> Result<Self, MetaStartError> {
        let raft_config = raft_config(&config)?;
        let opened = tokio::task::spawn_blocking({
            let config = config.clone();
            let disk = disk.clone();
            move || open(disk, &config)
        });
        let (lock, log, store) = opened.await.map_err(|error| MetaStartError::Raft(error.to_string()))??;
        let links = Links {
            peers: peers.clone(),
            group: config.group,
            cluster_id: config.cluster_id.clone(),
            append_timeout: Duration::from_millis(config.election_timeout_max_ms).max(APPEND_TIMEOUT_MIN),
            transfers: Arc::new(AtomicU64::new(now())),
        };
        let storage = GroupStorage::new(log.clone(), config.group);
        let machine = RaftMachine::new(store.clone());
        let memory = tokio::task::spawn_blocking({
            let (disk, dir) = (disk.clone(), config.dir.clone());
            move || witness::load(&*disk, &dir)
        });
        let memory = memory.await.map_err(|error| MetaStartError::Raft(error.to_string()))?;
        let raft = Raft::new(config.node_number, Arc::new(raft_config), links, storage, machine)
            .await
            .map_err(|fatal| MetaStartError::Raft(fatal.to_string()))?;
        let node = Self(Arc::new(Inner {
            proposer: Proposer::start(raft.clone(), now),
            barrier: Barrier::default(),
            soonest: Mutex::default(),
            incoming: Incoming::new(disk.clone(), config.dir.join("store"), config.cluster_id.clone()),
            disk,
            takes_part: AtomicBool::new(false),
            memory: Mutex::new(memory),
            rewound: Mutex::default(),
            membership: tokio::sync::Mutex::new(()),
            is_stopping: AtomicBool::new(false),
            keeper: Mutex::new(None),
            lock: Mutex::new(Some(lock)),
            config,
            raft,
            log,
            store,
            peers,
        }));
        let others = node.others().await.map_err(|fatal| MetaStartError::Raft(fatal.to_string()))?;
        if others.is_empty() {
            node.take_part();
        }
        let keeper = tokio::spawn(keep(Arc::downgrade(&node.0)));
        *node.0.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        Ok(node)
    }

    /// Makes this node the first voter of a new cluster. Does nothing where it already is in one.
    ///
    /// # Errors
    /// [`MetaFatal`]
    pub fn bootstrap(&self) -> BoxFuture<'_, Result<(), MetaFatal>> {
        Box::pin(self.found())
    }

    async fn found(&self) -> Result<(), MetaFatal> {
        let fatal = |fatal: Fatal<Types>| MetaFatal(fatal.to_string());
        if self.0.raft.is_initialized().await.map_err(fatal)? {
            return Ok(());
        }
        let first = BTreeMap::from([(self.0.config.node_number, VoterNode { key: self.0.config.node })]);
        match self.0.raft.initialize(first).await {
            // Refused where a log or a vote has come meanwhile: then it is in a cluster.
            Ok(()) | Err(RaftError::APIError(_)) => Ok(()),
            Err(RaftError::Fatal(error)) => Err(fatal(error)),
        }
    }

    /// Answers any message of a peer; never fails. Messages that are [`Kind::is_between_voters`] must come
    /// from a node that may vote: see [`wire::kind_of`].
    pub fn serve(&self, from: NodeId, message: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(self.reply_to(from, message))
    }

    async fn reply_to(&self, from: NodeId, message: Bytes) -> Bytes {
        let group = self.0.config.group;
        let answered = self.answer(from, &message).await;
        let encoded = match answered {
            Ok(answer) => Ok(answer),
            Err(trouble) => wire::encode(wire::TROUBLE, group, &trouble),
        };
        encoded.unwrap_or_default()
    }

    async fn answer(&self, from: NodeId, message: &[u8]) -> Result<Bytes, Trouble> {
        let (kind, group, body) = wire::request_parts(message)?;
        if group != self.0.config.group {
            return Err(Trouble::Malformed(format!("group {} is not here", group.0)));
        }
        if self.0.is_stopping.load(Ordering::Acquire) {
            return Err(stopped());
        }
        let raft = &self.0.raft;
        let byte = kind as u8;
        let is_agreement = matches!(
            kind,
            Kind::Append
                | Kind::Vote
                | Kind::PreVote
                | Kind::TransferLeader
                | Kind::SnapshotPiece
                | Kind::SnapshotEnd
                | Kind::Tail
        );
        if is_agreement && !self.0.takes_part.load(Ordering::Acquire) {
            return Err(Trouble::Unavailable("this voter first asks the others how far it had come".into()));
        }
        match kind {
            Kind::Known => wire::encode(byte, group, &self.known(wire::decode(body)?)),
            Kind::Marks => wire::encode(byte, group, &self.take_marks(&wire::decode(body)?)),
            Kind::Append => {
                let answer = raft.append_entries(wire::decode(body)?).await.map_err(unavailable)?;
                wire::encode(byte, group, &answer)
            }
            Kind::Vote => {
                let answer = raft.vote(wire::decode(body)?).await.map_err(unavailable)?;
                wire::encode(byte, group, &answer)
            }
            Kind::PreVote => {
                let answer = raft.pre_vote(wire::decode(body)?).await.map_err(unavailable)?;
                wire::encode(byte, group, &answer)
            }
            Kind::TransferLeader => {
                let answer = raft.handle_transfer_leader(wire::decode(body)?).await.map_err(unavailable)?;
                wire::encode(byte, group, &answer)
            }
            Kind::SnapshotPiece => {
                let answer = self.0.incoming.piece(raft, from, wire::decode(body)?).await;
                wire::encode(byte, group, &answer)
            }
            Kind::SnapshotEnd => {
                let answer = self.0.incoming.end(raft, from, wire::decode(body)?).await;
                wire::encode(byte, group, &answer)
            }
            Kind::Propose => {
                let envelopes: Vec<Envelope> = wire::decode(body)?;
                wire::encode(byte, group, &self.propose(envelopes).await?)
            }
            Kind::Query => {
                let query: Query = wire::decode(body)?;
                wire::encode(byte, group, &self.query(query).await?)
            }
            Kind::ReadIndex => wire::encode(byte, group, &self.leader_read_index().await?),
            Kind::Tail => wire::encode(byte, group, &self.tail()),
        }
    }

    /// Has commands agreed and applied, if this node leads.
    pub(super) async fn propose(&self, envelopes: Vec<Envelope>) -> Result<Results, Trouble> {
        if !self.is_leader() {
            return Err(Trouble::NotLeader(self.leader()));
        }
        self.0.proposer.propose(envelopes).await
    }

    /// Answers from this node's facts once they hold every change answered before.
    pub(super) async fn query(&self, query: Query) -> Result<Result<Answer, Refusal>, Trouble> {
        let timeout = Duration::from_millis(self.0.config.request_timeout_ms);
        let node = self.clone();
        let barrier = self.0.barrier.wait(move || {
            let node = node.clone();
            async move { node.read_index().await }
        });
        // Who asks alone looks while the others are asked: good where it turns out to hold all that they know of. Where many
        // ask, changes come meanwhile, and most would look twice.
        let may_glance = query.is_brief() && self.0.barrier.is_at_rest();
        let glance = may_glance.then(|| {
            let (store, query) = (self.0.store.clone(), query.clone());
            tokio::task::spawn_blocking(move || store.query_as_of(&query))
        });
        let ready = async {
            let index = barrier.await?;
            if let Some(glance) = glance
                && let Ok(Ok((answer, next))) = glance.await
                && next > index
            {
                return Ok(Some(answer));
            }
            let mut applied = self.0.store.watch_applied();
            applied.wait_for(|next| *next > index).await.map_err(|_| stopped())?;
            Ok(None)
        };
        let seen = tokio::time::timeout(timeout, ready)
            .await
            .map_err(|_| Trouble::Unavailable("no leader confirmed itself in time".into()))??;
        if let Some(answer) = seen {
            return Ok(answer);
        }
        let Some(wait_ms) = query.wait_ms() else { return self.look(query).await };
        let until = super::timer() + timeout.min(Duration::from_millis(wait_ms.into()));
        loop {
            let mut told = self.0.store.watch_told();
            let answer = self.look(query.clone()).await?;
            let is_empty = answer.as_ref().is_ok_and(|answer| query.is_answered_by_nothing(answer));
            if !is_empty || !matches!(tokio::time::timeout_at(until, told.changed()).await, Ok(Ok(()))) {
                return Ok(answer);
            }
        }
    }

    /// Answers from this node's facts without a word to others. On the leader they hold every change answered before as far
    /// as its lease says, which counts on clocks of equal pace; where it has run out, a majority is asked. Elsewhere they are
    /// what has come so far.
    pub(super) async fn query_here(&self, query: Query) -> Result<Result<Answer, Refusal>, Trouble> {
        if !self.is_leader() {
            return self.look(query).await;
        }
        let Ok(linearizer) = self.0.raft.get_read_linearizer(ReadPolicy::LeaseRead).await else {
            return self.query(query).await;
        };
        let index = linearizer.read_log_id().index();
        let timeout = Duration::from_millis(self.0.config.request_timeout_ms);
        let mut applied = self.0.store.watch_applied();
        let ready = tokio::time::timeout(timeout, applied.wait_for(|next| *next > index)).await;
        ready
            .map_err(|_| Trouble::Unavailable("changes are not applied in time".into()))?
            .map_err(|_| stopped())?;
        self.look(query).await
    }

    /// Answers from this node's facts as they are.
    async fn look(&self, query: Query) -> Result<Result<Answer, Refusal>, Trouble> {
        let store = self.0.store.clone();
        let answered = tokio::task::spawn_blocking(move || store.query(&query)).await;
        answered.map_err(unavailable)?.map_err(unavailable)
    }

    /// An index such that facts applied up to it hold every change answered before.
    async fn read_index(&self) -> Result<u64, Trouble> {
        if let Some(index) = self.quorum_index().await {
            return Ok(index);
        }
        match self.leader() {
            Some(leader) if leader != self.0.config.node => {
                let message = wire::encode(Kind::ReadIndex as u8, self.0.config.group, &())?;
                let timeout = Duration::from_millis(self.0.config.request_timeout_ms);
                // One that is gone answers nobody, and is missed only after a while.
                tokio::select! {
                    answer = self.0.peers.request(leader, message, timeout) => {
                        wire::decode_answer(Kind::ReadIndex, &answer.map_err(unavailable)?)
                    }
                    () = self.led_anew(leader) => Err(Trouble::NotLeader(self.leader())),
                }
            }
            Some(_) => self.leader_read_index().await,
            None => Err(Trouble::NotLeader(None)),
        }
    }

    async fn leader_read_index(&self) -> Result<u64, Trouble> {
        let timeout = Duration::from_millis(self.0.config.request_timeout_ms);
        let linearizer =
            tokio::time::timeout(timeout, self.0.raft.get_read_linearizer(ReadPolicy::ReadIndex));
        match linearizer.await {
            Err(_) => Err(Trouble::Unavailable("no majority confirmed this leader in time".into())),
            Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                let known = forward.leader_node.map(|node| node.key);
                Err(Trouble::NotLeader(known.or_else(|| leader_key(&self.0.raft, forward.leader_id))))
            }
            Ok(Err(other)) => Err(unavailable(other)),
        }
    }

    /// Every fact that was answered before, in pieces of a snapshot's stream, until `emit` breaks. Blocks no writer.
    ///
    /// # Errors
    /// No majority confirms what is agreed, or the store fails.
    pub async fn backup(
        &self,
        mut emit: impl FnMut(Bytes) -> std::ops::ControlFlow<()> + Send + 'static,
    ) -> Result<(), super::MetaError> {
        let failed = |why: String| super::MetaError::Unavailable(why);
        // A query waits until everything answered before is here.
        let ready = self.query(Query::ClusterMap { known_epoch: None }).await;
        ready.map_err(|trouble| failed(trouble.to_string()))?.map_err(super::MetaError::Refused)?;
        let (store, cluster_id) = (self.0.store.clone(), self.0.config.cluster_id.clone());
        let written = tokio::task::spawn_blocking(move || {
            let view = store.commit_durably()?;
            crate::store::snapshot::write(&cluster_id, &view, &mut emit)
        });
        written.await.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.0))
    }

    #[cfg(test)]
    pub(super) fn facts(&self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, crate::machine::kv::KvError> {
        let mut out = BTreeMap::new();
        self.0.store.frozen()?.for_each_pair(&mut |key, value| {
            out.insert(key.to_vec(), value.to_vec());
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(out)
    }

    #[must_use]
    pub fn node(&self) -> NodeId {
        self.0.config.node
    }

    /// Who leads, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        let leader = self.0.raft.server_metrics().borrow_watched().current_leader;
        leader_key(&self.0.raft, leader)
    }

    /// Resolves once this node hears of a leader that is not `leader` and was not known here when this was called.
    pub(super) async fn led_anew(&self, leader: NodeId) {
        let known = self.leader();
        let mut metrics = self.0.raft.server_metrics();
        loop {
            let current = metrics.borrow_and_update().current_leader;
            let current = leader_key(&self.0.raft, current);
            if current.is_some() && current != known && current != Some(leader) {
                return;
            }
            if metrics.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.0.raft.is_leader()
    }

    fn metrics(&self) -> RaftMetrics<Types> {
        self.0.raft.metrics().borrow_watched().clone()
    }

    #[must_use]
    pub fn status(&self) -> MetaStatus {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let nodes = membership.nodes().map(|(number, node)| (*number, node.key));
        let (voters, learners) = nodes.partition(|(number, _)| voters.contains(number));
        let leader = metrics.current_leader.and_then(|number| membership.get_node(&number));
        MetaStatus {
            number: metrics.id,
            term: metrics.current_term,
            leader: leader.map(|node| node.key),
            is_leader: metrics.current_leader == Some(metrics.id),
            last_log: metrics.last_log_index,
            applied: self.0.store.watch_applied().borrow().checked_sub(1),
            durable: metrics.snapshot.map(|log_id| log_id.index),
            purged: metrics.purged.map(|log_id| log_id.index),
            voters,
            learners,
            matched: metrics
                .replication
                .into_iter()
                .flatten()
                .map(|(number, matched)| (number, matched.map(|log_id| log_id.index)))
                .collect(),
            log_bytes: self.0.log.bytes(self.0.config.group).0,
            held_back: self.held_back(),
            rewound: self.lock(&self.0.rewound).iter().copied().collect(),
        }
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the status is so, looking whenever it may have changed. Never returns if the voter has stopped
    /// before.
    pub async fn wait_for(&self, is_so: impl Fn(&MetaStatus) -> bool) {
        let mut metrics = self.0.raft.metrics();
        let mut applied = self.0.store.watch_applied();
        loop {
            metrics.borrow_and_update();
            applied.borrow_and_update();
            if is_so(&self.status()) {
                return;
            }
            let is_running = tokio::select! {
                changed = metrics.changed() => changed.is_ok(),
                changed = applied.changed() => changed.is_ok(),
            };
            if !is_running {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Resolves when this voter can do nothing more, for a reason other than [`MetaNode::shutdown`].
    pub fn fatal(&self) -> BoxFuture<'_, MetaFatal> {
        Box::pin(self.await_fatal())
    }

    async fn await_fatal(&self) -> MetaFatal {
        // All metrics change with every message; these change seldom, and end with what reports them.
        let mut seldom = self.0.raft.server_metrics();
        loop {
            seldom.borrow_and_update();
            let running = self.0.raft.metrics().borrow_watched().running_state.clone();
            if self.0.is_stopping.load(Ordering::Acquire) {
                std::future::pending::<()>().await;
            }
            if let Err(fatal) = running {
                return MetaFatal(fatal.to_string());
            }
            if seldom.changed().await.is_ok() || self.0.is_stopping.load(Ordering::Acquire) {
                continue;
            }
            // Why it ended was told before it did.
            return match &self.0.raft.metrics().borrow_watched().running_state {
                Err(fatal) => MetaFatal(fatal.to_string()),
                Ok(()) => MetaFatal("its core is gone".into()),
            };
        }
    }

    /// Whether a majority answered this leader within the time after which another one could lead.
    fn has_quorum(&self) -> bool {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.membership_config.membership().voter_ids().nth(1).is_none() {
            return true;
        }
        let within = Duration::from_millis(self.0.config.election_timeout_max_ms);
        metrics.last_quorum_acked.as_ref().is_some_and(|at| at.elapsed() < within)
    }

    /// A number that changes with the facts here: how far they are applied.
    #[must_use]
    pub fn version(&self) -> u64 {
        *self.0.store.watch_applied().borrow()
    }

    /// [`MetaNode::version`], where this node leads, and a majority said so within the time after which another one could.
    #[must_use]
    pub fn version_as_leader(&self) -> Option<u64> {
        (self.is_leader() && self.has_quorum()).then(|| self.version())
    }

    /// Whether somebody leads this voter, as far as it knows, and hears a majority where that is itself.
    #[must_use]
    pub fn is_led(&self) -> bool {
        if self.is_leader() { self.has_quorum() } else { self.leader().is_some() }
    }

    /// Hands over the lead, makes the facts durable and releases the directory. Nothing is lost without it, but
    /// the others notice at once and the next start is quicker.
    pub fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.stop())
    }

    async fn stop(&self) {
        if self.is_leader() && self.status().voters.len() > 1 && self.has_quorum() {
            // Whoever does not take over will elect.
            drop(self.transfer_leader(None).await);
        }
        self.0.is_stopping.store(true, Ordering::Release);
        if let Some(keeper) = self.0.keeper.lock().unwrap_or_else(PoisonError::into_inner).take() {
            keeper.abort();
        }
        drop(self.0.raft.shutdown().await);
        let log = self.0.log.clone();
        let store = self.0.store.clone();
        let closed = tokio::task::spawn_blocking(move || {
            log.close();
            store.close()
        });
        if let Ok(Err(error)) = closed.await {
            tracing::warn!(%error, "the facts were not made durable at the end; the log holds them");
        }
        drop(self.0.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Makes the facts durable by themselves, and lets go of log that is not kept for followers.
    async fn snapshot_and_purge(&self) -> Result<(), Fatal<Types>> {
        self.0.raft.trigger().snapshot().await?;
        let keep_from = self.0.log.index_before_last_bytes(self.0.config.group, self.0.config.log_keep_bytes);
        if let Some(upto) = keep_from.and_then(|first| first.checked_sub(1)) {
            // Only what a snapshot holds is let go, whatever is asked.
            self.0.raft.trigger().purge_log(upto).await?;
        }
        Ok(())
    }
}

/// Bounds the log. Openraft's own policy counts entries; these are of very different sizes.
async fn keep(node: std::sync::Weak<Inner>) {
    let mut last_bytes = 0;
    let mut last_applied = None;
    let mut last_at = super::stopwatch();
    let mut marks = marks::Keeping::default();
    loop {
        let Some(inner) = node.upgrade() else { return };
        let node = MetaNode(inner);
        marks.step(&node).await;
        let bytes = node.0.log.bytes(node.0.config.group).1;
        let metrics = node.metrics();
        let is_due = bytes.saturating_sub(last_bytes) >= node.0.config.snapshot_log_bytes
            || last_at.elapsed().as_millis() >= u128::from(node.0.config.snapshot_interval_ms);
        if is_due {
            last_at = super::stopwatch();
            last_bytes = bytes;
            if metrics.last_applied != last_applied {
                last_applied = metrics.last_applied;
                if node.snapshot_and_purge().await.is_err() {
                    return;
                }
            }
        }
        drop(node);
        tokio::time::sleep(KEEPER_INTERVAL).await;
    }
}

const KEEPER_INTERVAL: Duration = Duration::from_millis(250);

fn unavailable(error: impl std::fmt::Display) -> Trouble {
    Trouble::Unavailable(error.to_string())
}

fn stopped() -> Trouble {
    Trouble::Unavailable("this voter stops".into())
}

fn raft_config(config: &MetaConfig) -> Result<Config, MetaStartError> {
    let raft = Config {
        cluster_name: config.cluster_id.clone(),
        heartbeat_interval: config.heartbeat_interval_ms,
        election_timeout_min: config.election_timeout_min_ms,
        election_timeout_max: config.election_timeout_max_ms,
        max_payload_entries: ENTRIES_PER_APPEND_MAX,
        replication_lag_threshold: REPLICATION_LAG_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        // The facts of a restarted leader are older than what it has answered: it must win an election first.
        enable_leader_restore: Some(false),
        enable_pre_vote: Some(true),
        // Only once this voter takes part.
        enable_elect: false,
        // Without it the heartbeats of a leader that hears nobody keep a connected majority from electing.
        quorum_loss_probe_interval: Some(config.election_timeout_max_ms * 2),
        ..Config::default()
    };
    raft.validate().map_err(|error| MetaStartError::Invalid(error.to_string()))
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    number: u64,
    node: NodeId,
    cluster_id: String,
}

pub(super) type Opened = (Box<dyn Send + Sync>, Log, MetaStore);

pub(super) fn open(disk: Arc<dyn Disk>, config: &MetaConfig) -> Result<Opened, MetaStartError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| MetaStartError::Io { path, source }
    };
    disk.create_dir_all(&config.dir).map_err(io(&config.dir))?;
    let lock_path = config.dir.join(LOCK_FILE);
    let lock = disk.lock(&lock_path).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => MetaStartError::InUse(config.dir.clone()),
        _ => MetaStartError::Io { path: lock_path.clone(), source },
    })?;
    identify(&*disk, config)?;
    let mut log_config = LogConfig::new(config.dir.join("log"));
    log_config.segment_bytes = config.log_segment_bytes;
    log_config.cache_bytes = config.log_cache_bytes;
    let log = Log::open(disk.clone(), log_config, rand::random)?;
    let store_config = StoreConfig {
        dir: config.dir.join("store"),
        cluster_id: config.cluster_id.clone(),
        cache_bytes: config.store_cache_bytes,
    };
    let store = MetaStore::open(disk, store_config)?;
    Ok((lock, log, store))
}

/// Binds the directory to this voter: `MKVOTER`, a version byte, and an [`Identity`] in MessagePack.
pub(super) fn identify(disk: &dyn Disk, config: &MetaConfig) -> Result<(), MetaStartError> {
    let path = config.dir.join(IDENTITY_FILE);
    let io = |source| MetaStartError::Io { path: path.clone(), source };
    let expected =
        Identity { number: config.node_number, node: config.node, cluster_id: config.cluster_id.clone() };
    let wrong = |found: String| MetaStartError::WrongIdentity {
        dir: config.dir.clone(),
        found,
        expected: format!("{expected:?}"),
    };
    if disk.list(&config.dir).map_err(io)?.iter().any(|name| name == IDENTITY_FILE) {
        let file = disk.open(&path).map_err(io)?;
        let len = file.len().map_err(io)?.min(4096);
        let mut bytes = vec![0; len as usize];
        file.read_at(0, &mut bytes).map_err(io)?;
        let body =
            bytes.strip_prefix(IDENTITY_MAGIC).ok_or_else(|| wrong("no voter of this release".into()))?;
        let found: Identity = rmp_serde::from_slice(body).map_err(|error| wrong(error.to_string()))?;
        return if found == expected { Ok(()) } else { Err(wrong(format!("{found:?}"))) };
    }
    let body = rmp_serde::to_vec(&expected).map_err(|error| MetaStartError::Invalid(error.to_string()))?;
    let new = config.dir.join("identity-new");
    let file = disk.open(&new).map_err(io)?;
    file.set_len(0).map_err(io)?;
    file.write_at(0, &[IDENTITY_MAGIC, body.as_slice()].concat()).map_err(io)?;
    file.sync_data().map_err(io)?;
    disk.rename(&new, &path).map_err(io)?;
    disk.sync_dir(&config.dir).map_err(io)
}
