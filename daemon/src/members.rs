//! Who the other nodes are, what they may ask, and what this node answers them.
//!
//! ```text
//! request (kind, body) ─ who asks, in which role ─> agreement | join | heartbeat | facts
//! ```
//!
//! | kind | name      | who may           | body -> answer (MessagePack)                       |
//! |------|-----------|-------------------|----------------------------------------------------|
//! | 1    | meta      | voters, gateways  | what `makai_raft::handle` exchanges                 |
//! | 2    | join      | anyone            | [`JoinRequest`] -> [`JoinAnswer`]                   |
//! | 3    | heartbeat | members           | [`Heartbeat`] -> [`HeartbeatAnswer`]                |
//! | 4    | facts     | members           | [`Query`], of those a storage node needs -> [`Answer`] |
//! | 5    | attempts  | compute nodes     | what a gateway's desk is asked -> what it answers   |
//! | 6    | job log   | voters, gateways  | attempt, offset -> a part of its log                |
//! | 7    | wake      | voters, gateways  | nothing: jobs have changed; or, of a voter, [`Told`]s: what was just assigned to the node |
//! | 8    | capacity  | voters, gateways  | a job's specification -> where it could run         |
//! | 9    | why       | voters, gateways  | a job -> why its tasks stand where they do, in lines |
//! | 10   | speed     | members           | bytes asked for (u32, big-endian), any others -> so many bytes |
//! | 11   | lost      | voters, gateways  | nothing -> [`crate::reconcile::lost::LostBlob`]s that the node tells of      |
//! | 12   | never     | voters, gateways  | [`Asked`] -> whether any machine could ever run it   |
//! | 13   | room      | voters, gateways  | nothing -> the free bytes of each disk, as the leader heard |
//! | 14   | view      | voters, gateways  | nothing -> [`LeaderView`]: what the leader alone has heard |
//! | 128  | audit     | voters            | [`AuditRequest`] -> [`crate::accounts::audits::AuditReply`] |
//! | 129  | payout    | members           | a node's own `PayoutBinding` -> nothing            |
//! | 130  | drill     | voters            | [`DrillRequest`] -> [`crate::accounts::drills::DrillReply`] |
//!
//! Always: a node that is not a member can only ask to join; a storage node cannot change facts or read keys, and brings
//! others only shards that the facts vouch for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use makai_erasure::stripe::ShardPeers;
use makai_erasure::{DiskId, NodeId, PgId};
use makai_gateway::jobs::desk::Desk;
use makai_gateway::jobs::{Capacity, Never};
use makai_gpu_runtime::agent::Agent;
use makai_gpu_runtime::inventory::Inventory;
use makai_gpu_runtime::scheduler::predict::History;
use makai_raft::facts::Timestamp;
use makai_raft::facts::accounts::{AccountsCommand, AccountsQuery, PayoutBinding};
use makai_raft::facts::cluster::{ClusterMap, Disk, Node, Role, Standing};
use makai_raft::facts::command::{Command, Refusal, Reply};
use makai_raft::facts::desk::{self, Request, Told};
use makai_raft::facts::jobs::{JobSpec, JobsAnswer, JobsQuery, Resources, STATEMENT_PURPOSE};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::TenantId;
use makai_raft::handle::{MetaError, MetaNode, Metadata, Version, wire};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::accounts::audits::{self, AuditRequest};
use crate::accounts::drills::{DrillReply, DrillRequest, Drills};
use crate::accounts::words::Word;
use crate::clock;
use crate::console::LeaderView;
use crate::disks::LocalDisks;
use crate::distrust::Distrusted;
use crate::news::News;
use crate::reconcile::lost::NAMED_MAX;
use crate::reconcile::plan::{self, Explained};
use crate::reconcile::reach::LineNow;
use crate::reconcile::schedule;
use crate::reconcile::shards::{Progress, ProgressNow};
use crate::reconcile::told;
use crate::relay::Relay;
use crate::state::KnownPeer;
use crate::ticket::Ticket;
use crate::transport::{ConnectionKind, PeerHandler, Transport};

pub const META: u16 = 1;
pub const JOIN: u16 = 2;
pub const HEARTBEAT: u16 = 3;
pub const FACTS: u16 = 4;
pub const ATTEMPTS: u16 = 5;
pub const JOB_LOG: u16 = 6;
pub const WAKE: u16 = 7;
pub const CAPACITY: u16 = 8;
pub const WHY: u16 = 9;
pub const SPEED: u16 = 10;
pub const LOST: u16 = 11;
pub const NEVER: u16 = 12;
pub const ROOM: u16 = 13;
pub const VIEW: u16 = 14;
pub const AUDIT: u16 = 128;
pub const BIND_PAYOUT: u16 = 129;
pub const DRILL: u16 = 130;
pub const WORD: u16 = 131;

/// Who is trusted with customers' data.
const TRUSTED: [Role; 2] = [Role::Voter, Role::Gateway];

/// Bytes of one answer to [`SPEED`].
pub const SPEED_BYTES_MAX: u32 = 256 << 10;

/// How long a peer may take over a question about facts.
const FACTS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long questions about facts are repeated before the asker is told.
const FACTS_DEADLINE: Duration = Duration::from_secs(15);
/// Pause before the next voter is asked.
const FACTS_PAUSE: Duration = Duration::from_millis(200);

/// What a task asks for: resources, site, and whether it is kernels of a module.
pub type Asked = (Resources, String, bool);

/// A machine asks to become a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// What it says of itself; its id must be the key it connects with.
    pub node: Node,
    pub disks: Vec<Disk>,
    /// Token id and secret; `None` from a member that renews what it says of itself.
    pub token: Option<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    Joined {
        cluster_id: String,
        number: u64,
        peers: Vec<KnownPeer>,
        /// For voters and gateways alone.
        cluster_key: Option<[u8; 32]>,
    },
    /// The cluster says no: asking again will not help.
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub disks: Vec<DiskBeat>,
    /// What the node has repaired since its start, and has yet to.
    #[serde(default)]
    pub repair: ProgressNow,
    /// Slots on their way to this node's disks that are there now; at most [`FILLED_MAX`].
    #[serde(default)]
    pub filled: Vec<Filled>,
    /// What it offers to jobs; `None`: it runs none now.
    #[serde(default)]
    pub compute: Option<Inventory>,
    #[serde(default)]
    pub line: LineNow,
    /// The leader does not answer this node: whoever hears it tells the leader.
    #[serde(default)]
    pub is_to_pass_on: bool,
    /// From a voter alone: what others asked it to pass on; at most [`PASSED_ON_MAX`].
    #[serde(default)]
    pub of_others: Vec<(NodeId, Heartbeat)>,
}

/// Heartbeats of others that one carries, and that a voter keeps to pass on.
pub const PASSED_ON_MAX: usize = 64;

/// Slots that one heartbeat tells of; others are told once these have been switched.
pub const FILLED_MAX: usize = 256;

/// A disk that a slot moves to holds all of the slot's shards, as of the group's version and its newest blob then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    pub pg: PgId,
    pub slot: u8,
    pub to: DiskId,
    pub version: u32,
    pub sequence: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBeat {
    pub disk: DiskId,
    pub capacity_bytes: u64,
    pub free_bytes: u64,
    pub shard_count: u64,
    /// Bytes of the shards that it holds, and what its files hold of the device for them; the rest of those is room set
    /// aside for shards to come, and garbage.
    #[serde(default)]
    pub live_bytes: u64,
    #[serde(default)]
    pub held_bytes: u64,
    #[serde(default)]
    pub set_aside_bytes: u64,
    /// Of the shards, without headers, checksums and what aligns them.
    #[serde(default)]
    pub body_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// Whom to send the next one to.
    pub leader: Option<NodeId>,
    /// The newest map the answerer has.
    pub map_epoch: u64,
    /// How far the facts had come, where the answerer leads; a release that does not tell leaves it out.
    #[serde(default)]
    pub facts_at: Option<u64>,
}

/// When a node was last heard and what it said. Soft state of the leader.
#[derive(Debug, Clone)]
pub struct Heard {
    pub at: Instant,
    pub disks: Vec<DiskBeat>,
    pub repair: ProgressNow,
    pub filled: Vec<Filled>,
    pub compute: Option<Inventory>,
    pub line: LineNow,
}

/// Members by id, from the map or, before there is one, from the node's memory.
#[derive(Debug, Default)]
struct Roster {
    roles: HashMap<NodeId, Vec<Role>>,
}

/// What this node answers its peers.
pub struct Members {
    id: NodeId,
    disks: LocalDisks,
    cluster_id: RwLock<String>,
    roster: RwLock<Roster>,
    cluster_key: OnceLock<[u8; 32]>,
    meta: OnceLock<MetaNode>,
    facts: OnceLock<Arc<dyn Metadata>>,
    heard: Mutex<HashMap<NodeId, Heard>>,
    /// What this node, not leading, was asked to tell the leader.
    to_pass_on: Mutex<HashMap<NodeId, Heartbeat>>,
    map_epoch: std::sync::atomic::AtomicU64,
    /// Whether the facts have changed.
    pub news: News,
    /// Who led when last heard of.
    leader: Mutex<Option<NodeId>>,
    desk: OnceLock<Desk>,
    agent: OnceLock<Arc<Agent>>,
    drills: OnceLock<Arc<Drills>>,
    relay: OnceLock<Relay>,
    /// What this node repairs.
    progress: OnceLock<Arc<Progress>>,
    /// Told when a node says that slots that move to it are there.
    pub filled_changed: Notify,
    /// Told when there may be something to schedule.
    pub jobs_changed: Notify,
    /// On the leader: why tasks stand where they do.
    pub explained: Explained,
    /// On the leader: what tasks took so far.
    pub history: Arc<Mutex<History>>,
}

impl Members {
    #[must_use]
    pub fn new(id: NodeId, disks: LocalDisks) -> Arc<Self> {
        Arc::new(Self {
            id,
            disks,
            cluster_id: RwLock::default(),
            roster: RwLock::default(),
            cluster_key: OnceLock::new(),
            meta: OnceLock::new(),
            facts: OnceLock::new(),
            heard: Mutex::default(),
            to_pass_on: Mutex::default(),
            map_epoch: std::sync::atomic::AtomicU64::new(0),
            news: News::default(),
            leader: Mutex::default(),
            desk: OnceLock::new(),
            agent: OnceLock::new(),
            drills: OnceLock::new(),
            relay: OnceLock::new(),
            progress: OnceLock::new(),
            filled_changed: Notify::new(),
            jobs_changed: Notify::new(),
            explained: Explained::default(),
            history: Arc::default(),
        })
    }

    /// What is known of the cluster before its facts can be read.
    pub fn remember(&self, cluster_id: &str, peers: &[KnownPeer]) {
        *self.cluster_id.write().unwrap_or_else(PoisonError::into_inner) = cluster_id.into();
        let mut roster = self.roster.write().unwrap_or_else(PoisonError::into_inner);
        for peer in peers {
            roster.roles.insert(peer.id, peer.roles.clone());
        }
    }

    /// Where tasks of a job could run, and how long they may take.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn capacity(&self, asked: (TenantId, JobSpec)) -> Result<Capacity, String> {
        let facts = self.facts.get().ok_or("this node is still starting; try again")?;
        let map = match facts.query(Query::ClusterMap { known_epoch: None }).await {
            Ok(Answer::ClusterMap(map)) => map,
            Ok(other) => return Err(format!("the facts answered {other:?}")),
            Err(error) => return Err(error.to_string()),
        };
        schedule::capacity(&**facts, &map, self.heard(), &self.history, asked).await
    }

    /// Whether any machine could ever run such a task, by what those that are heard offer, and by what others offered when they were
    /// heard last.
    ///
    /// # Errors
    /// The facts do not answer.
    pub async fn never(&self, (resources, site, is_module): Asked) -> Result<Never, String> {
        let demand = plan::demand(&resources, &site, is_module);
        let heard = self.heard();
        let offers = || heard.iter().filter_map(|(node, heard)| Some((node, heard.compute.as_ref()?)));
        if site.is_empty() && offers().any(|(_, offer)| plan::fits(offer, &demand) > 0) {
            return Ok(Never::Possible);
        }
        let facts = self.facts.get().ok_or("this node is still starting; try again")?;
        let map = match facts.query(Query::ClusterMap { known_epoch: None }).await {
            Ok(Answer::ClusterMap(map)) => map,
            Ok(other) => return Err(format!("the facts answered {other:?}")),
            Err(error) => return Err(error.to_string()),
        };
        let remembered: HashMap<NodeId, Inventory> = match facts.query(Query::Jobs(JobsQuery::Machines)).await
        {
            Ok(Answer::Jobs(JobsAnswer::Machines(machines))) => {
                machines.iter().map(|machine| (machine.node, schedule::offer_of(machine))).collect()
            }
            Ok(other) => return Err(format!("the facts answered {other:?}")),
            Err(error) => return Err(error.to_string()),
        };
        let is_machine =
            |node: &&Node| node.standing != Standing::Lost && node.roles.contains(&Role::Compute);
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for node in map.nodes.iter().filter(is_machine) {
            let now = heard.get(&node.id).and_then(|heard| heard.compute.as_ref());
            match now.or_else(|| remembered.get(&node.id)) {
                Some(offer) => known.push((node.site.as_str(), offer)),
                None => unknown.push(node.name.as_str()),
            }
        }
        Ok(match (plan::never(&known, &demand), &*unknown) {
            (None, _) => Never::Possible,
            (Some(why), []) => Never::Never(why),
            // One that has never said what it has may be larger.
            (Some(_), unknown) => Never::Unknown(format!(
                "no machine that is known could run a task of it; it waits for what has not said yet what it offers: {}",
                unknown.join(", ")
            )),
        })
    }

    /// The members as the facts have them: those no longer there are shut out.
    pub fn update(&self, map: &ClusterMap) {
        let members = map.nodes.iter().filter(|node| node.standing != Standing::Lost);
        let roles = members.map(|node| (node.id, node.roles.clone())).collect();
        self.roster.write().unwrap_or_else(PoisonError::into_inner).roles = roles;
        self.map_epoch.store(map.epoch, std::sync::atomic::Ordering::Relaxed);
    }

    pub fn set_cluster_key(&self, key: [u8; 32]) {
        let _ = self.cluster_key.set(key);
    }

    pub fn cluster_key(&self) -> Option<[u8; 32]> {
        self.cluster_key.get().copied()
    }

    pub fn set_meta(&self, meta: MetaNode) {
        let _ = self.meta.set(meta);
    }

    pub fn meta(&self) -> Option<&MetaNode> {
        self.meta.get()
    }

    pub fn set_facts(&self, facts: Arc<dyn Metadata>) {
        let _ = self.facts.set(facts);
    }

    pub fn set_desk(&self, desk: Desk) {
        let _ = self.desk.set(desk);
    }

    /// Where nodes bring what they ask for their attempts, if this node is a gateway.
    pub fn desk(&self) -> Option<&Desk> {
        self.desk.get()
    }

    /// Has this node pass requests on to nodes that others cannot dial.
    pub fn set_relay(&self, relay: Relay) {
        let _ = self.relay.set(relay);
    }

    pub fn set_progress(&self, progress: Arc<Progress>) {
        let _ = self.progress.set(progress);
    }

    pub fn set_agent(&self, agent: Arc<Agent>) {
        let _ = self.agent.set(agent);
    }

    pub fn agent(&self) -> Option<&Arc<Agent>> {
        self.agent.get()
    }

    /// What this node drills, where its owner wants it to.
    pub fn set_drills(&self, drills: Arc<Drills>) {
        let _ = self.drills.set(drills);
    }

    /// Notes who leads, as a heartbeat's answer said.
    pub fn note_leader(&self, leader: Option<NodeId>) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = leader;
    }

    /// Who leads, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        let heard = *self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        self.meta.get().and_then(MetaNode::leader).or(heard)
    }

    /// A peer says that jobs have changed: whoever schedules or runs them here looks at once. Never passed on. Who is told what is new need
    /// not look.
    fn wake_jobs(&self, told: Vec<Told>) {
        if told.is_empty() && self.meta.get().is_some_and(MetaNode::is_leader) {
            self.jobs_changed.notify_one();
        }
        match self.agent.get() {
            Some(agent) if told.is_empty() => agent.wake(),
            Some(agent) => agent.tell(told),
            None => {}
        }
    }

    async fn attempts(&self, from: NodeId, request: Request) -> Result<desk::Reply, String> {
        let desk = self.desk.get().ok_or("this node is no gateway, or still starting")?;
        if let Request::Finish { statement, signature, .. } = &request {
            let signed = statement.signed_bytes();
            if !crate::identity::verify(from, STATEMENT_PURPOSE, &signed, signature) {
                return Err(format!(
                    "the statement on attempt {} is not signed by its node",
                    statement.attempt
                ));
            }
        }
        let is_end = matches!(request, Request::Finish { .. });
        let reply = desk.serve(from, request).await;
        if is_end {
            self.jobs_changed.notify_one();
        }
        Ok(reply)
    }

    fn has_role(&self, peer: NodeId, wanted: &[Role]) -> bool {
        let roster = self.roster.read().unwrap_or_else(PoisonError::into_inner);
        roster
            .roles
            .get(&peer)
            .is_some_and(|roles| wanted.is_empty() || wanted.iter().any(|role| roles.contains(role)))
    }

    /// Whether a peer's role allows this message of agreement: Raft believes what voters say.
    fn may_send(&self, from: NodeId, message: &[u8]) -> bool {
        match wire::kind_of(message) {
            Ok(kind) if kind.is_between_voters() => self.has_role(from, &[Role::Voter]),
            Ok(_) => self.has_role(from, &[Role::Voter, Role::Gateway]),
            Err(_) => false,
        }
    }

    /// Voters to ask, this node first if it is one.
    #[must_use]
    pub fn voters(&self) -> Vec<NodeId> {
        let roster = self.roster.read().unwrap_or_else(PoisonError::into_inner);
        let mut voters: Vec<NodeId> = roster
            .roles
            .iter()
            .filter(|(_, roles)| roles.contains(&Role::Voter))
            .map(|(id, _)| *id)
            .collect();
        voters.sort_by_key(|id| (*id != self.id, *id));
        voters
    }

    /// What the leader has heard, by node.
    #[must_use]
    pub fn heard(&self) -> HashMap<NodeId, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Free bytes of disks, as the leader has heard.
    #[must_use]
    pub fn free_by_disk(&self) -> Vec<(DiskId, u64)> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.values().flat_map(|heard| &heard.disks).map(|beat| (beat.disk, beat.free_bytes)).collect()
    }

    /// Takes a heartbeat, a peer's or this node's own.
    pub fn hear(&self, from: NodeId, beat: Heartbeat) {
        let Heartbeat { disks, repair, mut filled, compute, line, .. } = beat;
        filled.truncate(FILLED_MAX);
        let heard = Heard { at: clock::instant(), disks, repair, filled, compute, line };
        let mut all = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news =
            !heard.filled.is_empty() && all.get(&from).is_none_or(|known| known.filled != heard.filled);
        all.insert(from, heard);
        if is_news {
            self.filled_changed.notify_one();
        }
    }

    /// Takes a peer's heartbeat, and what it passes on of others.
    fn hear_peer(&self, from: NodeId, mut beat: Heartbeat) {
        let others = std::mem::take(&mut beat.of_others);
        if self.has_role(from, &[Role::Voter]) {
            let known = others.into_iter().take(PASSED_ON_MAX).filter(|(of, _)| self.has_role(*of, &[]));
            known.for_each(|(of, beat)| self.hear(of, beat));
        }
        if beat.is_to_pass_on && self.meta.get().is_some_and(|meta| !meta.is_leader()) {
            let mut waiting = self.to_pass_on.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() < PASSED_ON_MAX || waiting.contains_key(&from) {
                waiting.insert(from, beat.clone());
            }
        }
        self.hear(from, beat);
    }

    /// What is to be passed on with this node's next heartbeat.
    #[must_use]
    pub fn take_to_pass_on(&self) -> Vec<(NodeId, Heartbeat)> {
        let mut waiting = self.to_pass_on.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.drain().collect()
    }

    pub fn heartbeat_answer(&self) -> HeartbeatAnswer {
        let leader = self.meta.get().and_then(MetaNode::leader);
        let facts_at = self.meta.get().and_then(MetaNode::version_as_leader);
        let map_epoch = self.map_epoch.load(std::sync::atomic::Ordering::Relaxed);
        HeartbeatAnswer { leader, map_epoch, facts_at }
    }

    /// What changes with the facts, late by a heartbeat at most; `None`: it is not known now.
    #[must_use]
    pub fn facts_version(&self) -> Option<Version> {
        let leading = self.meta.get().and_then(MetaNode::version_as_leader);
        self.news.version(leading, clock::instant())
    }

    /// The same of the facts as loops here see them: where there is a voter that does not lead, what has come to it.
    #[must_use]
    pub fn facts_version_here(&self) -> Option<Version> {
        let here = |facts| Version { facts, own: 0 };
        match self.meta.get() {
            Some(meta) if meta.is_leader() => meta.version_as_leader().map(here),
            Some(meta) => Some(here(meta.version())),
            None => self.facts_version(),
        }
    }

    async fn join(&self, from: NodeId, request: JoinRequest) -> Result<JoinAnswer, String> {
        let facts = self.facts.get().ok_or("this node is still starting; try again")?;
        if request.node.id != from || request.disks.iter().any(|disk| disk.node != from) {
            return Err("a node joins under its own key and with its own disks".into());
        }
        let is_member = self.has_role(from, &[]);
        let token = request.token.map(|(id, secret)| (id, Ticket::secret_hash(&secret)));
        if token.is_none() && !is_member {
            return Ok(JoinAnswer::Refused(Refusal::BadToken));
        }
        let command = Command::JoinNode { node: request.node, disks: request.disks, token };
        let node = match facts.propose(command).await {
            Ok(Reply::Node(node)) => node,
            Ok(other) => return Err(format!("the facts answered {other:?}")),
            Err(MetaError::Refused(refusal)) => return Ok(JoinAnswer::Refused(refusal)),
            Err(error) => return Err(error.to_string()),
        };
        let map = match facts.query(Query::ClusterMap { known_epoch: None }).await {
            Ok(Answer::ClusterMap(map)) => map,
            Ok(other) => return Err(format!("the facts answered {other:?}")),
            Err(error) => return Err(error.to_string()),
        };
        self.update(&map);
        let is_trusted = node.roles.contains(&Role::Voter) || node.roles.contains(&Role::Gateway);
        Ok(JoinAnswer::Joined {
            cluster_id: self.cluster_id.read().unwrap_or_else(PoisonError::into_inner).clone(),
            number: node.number,
            peers: known_peers(&map),
            cluster_key: self.cluster_key().filter(|_| is_trusted),
        })
    }

    /// A storage node's payout address, proposed on its behalf: both keys' signatures are in it.
    async fn bind_payout(&self, from: NodeId, binding: PayoutBinding) -> Result<(), String> {
        if binding.node != from {
            return Err("a node binds its own earnings only".into());
        }
        let facts = self.facts.get().ok_or("this node is still starting; try again")?;
        let command = Command::Accounts(AccountsCommand::BindPayout(binding));
        facts.propose(command).await.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn take_word(&self, from: NodeId, word: Word) -> Result<(), String> {
        let facts = self.facts.get().ok_or("this node is still starting; try again")?;
        let command = Command::Accounts(word.command(from));
        facts.propose(command).await.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn answer_facts(&self, query: Query) -> Result<Answer, String> {
        // What tenants use is their own affair; the rest of the accounts is for every miner to check.
        let is_public = match &query {
            Query::ClusterMap { .. } | Query::BlobsOfGroup { .. } | Query::BlobStates { .. } => true,
            Query::Accounts(accounts) => !matches!(accounts, AccountsQuery::TenantUsage { .. }),
            _ => false,
        };
        if !is_public {
            return Err("a storage node may read the map, the blobs of groups and the accounts only".into());
        }
        let facts = self.facts.get().ok_or("this node is still starting; try again")?;
        facts.query(query).await.map_err(|error| error.to_string())
    }
}

/// The members worth remembering: those that can be dialled.
#[must_use]
pub fn known_peers(map: &ClusterMap) -> Vec<KnownPeer> {
    let members = map.nodes.iter().filter(|node| node.standing != Standing::Lost);
    members
        .map(|node| KnownPeer { id: node.id, addresses: node.addresses.clone(), roles: node.roles.clone() })
        .collect()
}

/// # Errors
/// The bytes are not such a message.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    rmp_serde::from_slice(body).map_err(|error| format!("the message cannot be read: {error}"))
}

/// With the names of fields, so that a release that knows fewer of them reads it all the same.
///
/// # Errors
/// The value has no MessagePack form.
pub fn encode<T: Serialize>(value: &T) -> Result<Bytes, String> {
    rmp_serde::to_vec_named(value).map(Bytes::from).map_err(|error| error.to_string())
}

#[async_trait]
impl PeerHandler for Members {
    fn admit(&self, peer: NodeId, kind: ConnectionKind) -> bool {
        kind == ConnectionKind::Control || self.has_role(peer, &[])
    }

    async fn control(&self, from: NodeId, kind: u16, body: Bytes) -> Result<Bytes, String> {
        let is_member = self.has_role(from, &[]);
        match kind {
            JOIN => encode(&self.join(from, decode(&body)?).await?),
            META if self.may_send(from, &body) => match self.meta.get() {
                Some(meta) => Ok(meta.serve(from, body).await),
                None => Ok(wire::not_yet("this node is no voter, or still starting")),
            },
            HEARTBEAT if is_member => {
                self.hear_peer(from, decode(&body)?);
                encode(&self.heartbeat_answer())
            }
            FACTS if is_member => encode(&self.answer_facts(decode(&body)?).await?),
            AUDIT if self.has_role(from, &[Role::Voter]) => {
                let request: AuditRequest = decode(&body)?;
                encode(&audits::answer(&self.disks, &request).await)
            }
            DRILL if self.has_role(from, &[Role::Voter]) => {
                let request: DrillRequest = decode(&body)?;
                encode(&match self.drills.get() {
                    Some(drills) => drills.answer(request).await,
                    None => DrillReply::Nothing,
                })
            }
            BIND_PAYOUT if is_member => encode(&self.bind_payout(from, decode(&body)?).await?),
            WORD if self.has_role(from, &[Role::Compute]) => {
                encode(&self.take_word(from, decode(&body)?).await?)
            }
            ATTEMPTS if self.has_role(from, &[Role::Compute]) => {
                encode(&self.attempts(from, decode(&body)?).await?)
            }
            JOB_LOG if self.has_role(from, &TRUSTED) => {
                let (attempt, offset) = decode(&body)?;
                let agent = self.agent.get().ok_or("this node runs no jobs, or still starts")?;
                encode(&agent.log(attempt, offset).await?)
            }
            SPEED if is_member => {
                let asked = body.first_chunk().map_or(0, |asked| u32::from_be_bytes(*asked));
                // Nothing is gained by bytes that differ: the line is encrypted.
                Ok(Bytes::from(vec![0; asked.min(SPEED_BYTES_MAX) as usize]))
            }
            WAKE if self.has_role(from, &TRUSTED) => {
                self.news.note();
                let is_told = !body.is_empty() && self.has_role(from, &[Role::Voter]);
                self.wake_jobs(if is_told { told::read(&body) } else { Vec::new() });
                Ok(Bytes::new())
            }
            CAPACITY if self.has_role(from, &TRUSTED) => encode(&self.capacity(decode(&body)?).await?),
            WHY if self.has_role(from, &TRUSTED) => encode(&self.explained.why(decode(&body)?)),
            LOST if self.has_role(from, &TRUSTED) => {
                let mut lost = self.progress.get().map_or(Vec::new(), |progress| progress.lost());
                lost.truncate(NAMED_MAX);
                encode(&lost)
            }
            NEVER if self.has_role(from, &TRUSTED) => encode(&self.never(decode(&body)?).await?),
            ROOM if self.has_role(from, &TRUSTED) => encode(&self.free_by_disk()),
            VIEW if self.has_role(from, &TRUSTED) => encode(&LeaderView::of(self)),
            META | HEARTBEAT | FACTS | SPEED | AUDIT | BIND_PAYOUT | DRILL | WORD | ATTEMPTS | JOB_LOG
            | WAKE | CAPACITY | WHY | LOST | NEVER | ROOM | VIEW => {
                Err(format!("node {from} may not ask this (kind {kind})"))
            }
            _ => Err(format!("kind {kind} is unknown to this release")),
        }
    }

    fn local_shards(&self) -> Arc<dyn ShardPeers> {
        Arc::new(self.disks.clone())
    }

    fn served_shards(&self, peer: NodeId) -> Arc<dyn ShardPeers> {
        let shards: Arc<dyn ShardPeers> = match self.relay.get() {
            Some(relay) => Arc::new(relay.clone()),
            None => self.local_shards(),
        };
        if self.has_role(peer, &TRUSTED) {
            return shards;
        }
        Arc::new(Distrusted { shards, facts: self.facts.get().cloned() })
    }

    fn serves_customers(&self, peer: NodeId) -> bool {
        self.has_role(peer, &TRUSTED)
    }
}

/// The facts as a node sees them that is neither voter nor gateway: the few it needs, from any voter that answers.
pub struct StorageFacts {
    pub transport: Transport,
    pub members: Arc<Members>,
}

#[async_trait]
impl Metadata for StorageFacts {
    async fn propose(&self, _command: Command) -> Result<Reply, MetaError> {
        Err(MetaError::Refused(Refusal::Invalid("a storage node changes no facts".into())))
    }

    async fn query(&self, query: Query) -> Result<Answer, MetaError> {
        let unavailable = |why: String| MetaError::Unavailable(why);
        let body = encode(&query).map_err(unavailable)?;
        let begun = clock::instant();
        let mut last = String::from("no voter is known");
        while begun.elapsed() < FACTS_DEADLINE {
            for voter in self.members.voters() {
                match self.transport.request(voter, FACTS, body.clone(), FACTS_TIMEOUT).await {
                    Ok(answer) => return decode(&answer).map_err(unavailable),
                    Err(error) => last = error.to_string(),
                }
            }
            tokio::time::sleep(FACTS_PAUSE).await;
        }
        Err(MetaError::Unavailable(last))
    }
}

/// What a node says of itself.
#[must_use]
pub fn describe(id: NodeId, config: &makai_config::NodeConfig, addresses: Vec<String>) -> Node {
    let role = |role: &makai_config::Role| role.as_str().parse().ok();
    Node {
        id,
        number: 0,
        name: config.node.name.clone(),
        owner: config.node.owner.clone(),
        site: config.node.site.clone(),
        roles: config.node.roles.iter().filter_map(role).collect(),
        addresses,
        standing: Standing::Active,
        joined_at: Timestamp(0),
        is_up: true,
        changed_at: Timestamp(0),
        version: env!("CARGO_PKG_VERSION").into(),
        down_ppm: 0,
    }
}
