//! Whole clusters in one process, over a network whose links can be cut and disks whose power can.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use makai_erasure::NodeId;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::sync::watch;

use super::*;
use crate::facts::command::{Command, Reply};
use crate::facts::query::{Answer, Query};
use crate::log::disk::{Disk, RealDisk};
use crate::log::testing::SimDisk;

const PATIENCE: Duration = Duration::from_secs(60);

fn key(number: u64) -> NodeId {
    NodeId([number as u8; 32])
}

/// The network: who is up, and which directed links are cut.
#[derive(Default)]
struct Net {
    nodes: Mutex<HashMap<NodeId, MetaNode>>,
    cut: Mutex<HashSet<(NodeId, NodeId)>>,
    messages: AtomicU64,
    read_indexes: AtomicU64,
}

struct Peers {
    net: Arc<Net>,
    me: NodeId,
    /// A node that lost its power says nothing more.
    is_alive: Arc<AtomicBool>,
}

#[async_trait]
impl RaftPeers for Peers {
    async fn request(&self, to: NodeId, message: Bytes, timeout: Duration) -> Result<Bytes, RaftPeerError> {
        assert!(message.len() <= wire::MESSAGE_BYTES_MAX);
        self.net.messages.fetch_add(1, Ordering::Relaxed);
        if matches!(wire::kind_of(&message), Ok(wire::Kind::ReadIndex)) {
            self.net.read_indexes.fetch_add(1, Ordering::Relaxed);
        }
        let gone = || RaftPeerError::Unreachable("cut".into());
        let is_cut = |from, to| self.net.cut.lock().unwrap().contains(&(from, to));
        if !self.is_alive.load(Ordering::SeqCst) || is_cut(self.me, to) {
            return Err(gone());
        }
        let node = self.net.nodes.lock().unwrap().get(&to).cloned().ok_or_else(gone)?;
        let answer = tokio::time::timeout(timeout, node.serve(self.me, message));
        let answer = answer.await.map_err(|_| RaftPeerError::Timeout)?;
        if !self.is_alive.load(Ordering::SeqCst) || is_cut(to, self.me) {
            return Err(gone());
        }
        Ok(answer)
    }
}

struct Voter {
    node: MetaNode,
    is_alive: Arc<AtomicBool>,
}

struct Cluster {
    net: Arc<Net>,
    disks: BTreeMap<u64, Arc<dyn Disk>>,
    sim_disks: BTreeMap<u64, SimDisk>,
    dirs: BTreeMap<u64, PathBuf>,
    voters: BTreeMap<u64, Voter>,
    keys: watch::Sender<Vec<NodeId>>,
    clock: Arc<AtomicU64>,
    sessions: AtomicU64,
    tune: fn(&mut MetaConfig),
    _temporary: Option<tempfile::TempDir>,
}

impl Cluster {
    fn new(tune: fn(&mut MetaConfig)) -> Self {
        Self {
            net: Arc::default(),
            disks: BTreeMap::new(),
            sim_disks: BTreeMap::new(),
            dirs: BTreeMap::new(),
            voters: BTreeMap::new(),
            keys: watch::Sender::new(Vec::new()),
            clock: Arc::new(AtomicU64::new(1_000_000)),
            sessions: AtomicU64::new(1),
            tune,
            _temporary: None,
        }
    }

    fn on_real_disks(tune: fn(&mut MetaConfig)) -> Self {
        Self { _temporary: Some(tempfile::tempdir().unwrap()), ..Self::new(tune) }
    }

    async fn start(&mut self, number: u64) -> MetaNode {
        let is_alive = Arc::new(AtomicBool::new(true));
        let peers = Arc::new(Peers { net: self.net.clone(), me: key(number), is_alive: is_alive.clone() });
        let (disk, dir): (Arc<dyn Disk>, PathBuf) = match &self._temporary {
            Some(temporary) => (Arc::new(RealDisk), temporary.path().join(number.to_string())),
            None => {
                let disk = self.sim_disks.entry(number).or_default().mount();
                (Arc::new(disk), PathBuf::from("/voter"))
            }
        };
        self.disks.insert(number, disk.clone());
        self.dirs.insert(number, dir.clone());
        let mut config = MetaConfig::new(dir, "test".into(), number, key(number));
        config.log_segment_bytes = 1 << 20;
        (self.tune)(&mut config);
        let clock = self.clock.clone();
        let now = Arc::new(move || clock.fetch_add(1, Ordering::Relaxed));
        let node = MetaNode::start_on(disk, config, peers, now).await.unwrap();
        self.net.nodes.lock().unwrap().insert(key(number), node.clone());
        self.voters.insert(number, Voter { node: node.clone(), is_alive });
        self.keys.send_replace(self.voters.keys().map(|&number| key(number)).collect());
        node
    }

    /// A cluster of voters 1..=count.
    async fn form(&mut self, count: u64) {
        let first = self.start(1).await;
        first.bootstrap().await.unwrap();
        first.bootstrap().await.unwrap();
        self.until(1, |status| status.is_leader).await;
        for number in 2..=count {
            self.start(number).await;
            first.add_voter(number, key(number)).await.unwrap();
            first.add_voter(number, key(number)).await.unwrap();
        }
        assert_eq!(first.status().voters.len() as u64, count);
    }

    /// Cuts the power of a node: nothing it has not synced survives, nothing it says is heard.
    fn cut_power(&mut self, number: u64, survives: impl FnMut() -> bool) {
        let voter = self.voters.remove(&number).unwrap();
        voter.is_alive.store(false, Ordering::SeqCst);
        self.net.nodes.lock().unwrap().remove(&key(number));
        self.sim_disks[&number].crash(survives);
    }

    async fn until(&self, number: u64, is_so: impl Fn(&MetaStatus) -> bool) {
        let node = &self.voters[&number].node;
        tokio::time::timeout(PATIENCE, node.wait_for(&is_so))
            .await
            .unwrap_or_else(|_| panic!("voter {number} never came to it: {:?}", node.status()));
    }

    /// The number of a node that leads and is followed by all that are up.
    async fn leader(&self) -> u64 {
        let first = *self.voters.keys().next().unwrap();
        let led = |status: &MetaStatus| {
            status.leader.is_some_and(|leader| self.voters.values().any(|voter| voter.node.node() == leader))
        };
        self.until(first, led).await;
        let leader = self.voters[&first].node.leader().unwrap();
        let number = *self.voters.iter().find(|(_, voter)| voter.node.node() == leader).unwrap().0;
        self.until(number, |status| status.is_leader || status.leader.is_some_and(|other| other != leader))
            .await;
        number
    }

    fn client(&self, local: Option<u64>) -> MetaClient {
        let session = self.sessions.fetch_add(1, Ordering::Relaxed);
        let is_alive = Arc::new(AtomicBool::new(true));
        let me = local.map_or(NodeId([255; 32]), key);
        let peers = Arc::new(Peers { net: self.net.clone(), me, is_alive });
        let local = local.map(|number| self.voters[&number].node.clone());
        let mut config = MetaClientConfig::new(session);
        config.deadline_ms = 30_000;
        MetaClient::new(local, self.keys.subscribe(), peers, config)
    }

    /// All pairs that a voter holds.
    fn facts(&self, number: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.voters[&number].node.facts().unwrap()
    }

    /// Waits until every voter has applied what the leader has.
    async fn settle(&self) {
        let leader = self.leader().await;
        let applied = self.voters[&leader].node.status().applied;
        for &number in self.voters.keys() {
            self.until(number, |status| status.applied >= applied).await;
        }
    }
}

fn create(name: String) -> Command {
    Command::CreateTenant { name, wrapped_key: Bytes::from(vec![7; 256]), quota_bytes: None }
}

/// Applied once: a second application would be refused, since the name is taken.
async fn propose_once(client: &MetaClient, name: &str) {
    match client.propose(create(name.to_string())).await {
        Ok(Reply::Tenant(tenant)) => assert_eq!(tenant.name, name),
        other => panic!("{name}: {other:?}"),
    }
}

async fn is_there(client: &MetaClient, name: &str) -> bool {
    match client.query(Query::TenantByName { name: name.into() }).await {
        Ok(Answer::Tenant(tenant)) => tenant.name == name,
        Err(MetaError::Refused(_)) => false,
        other => panic!("{other:?}"),
    }
}

async fn names(client: &MetaClient) -> BTreeSet<String> {
    match client.query(Query::Tenants).await.unwrap() {
        Answer::Tenants(tenants) => tenants.into_iter().map(|tenant| tenant.name).collect(),
        other => panic!("{other:?}"),
    }
}

/// Clients that write until told to stop; returns the names that were acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<Vec<String>>>,
    acknowledged: Arc<AtomicU64>,
}

impl Load {
    fn start(clients: impl IntoIterator<Item = MetaClient>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let start = |(number, client): (usize, MetaClient)| {
            let stop = stop.clone();
            let acknowledged = acknowledged.clone();
            tokio::spawn(async move {
                let mut done = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let name = format!("c{number}-{}", done.len());
                    propose_once(&client, &name).await;
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                    done.push(name);
                }
                done
            })
        };
        let clients = clients.into_iter().enumerate().map(start).collect();
        Self { stop, clients, acknowledged }
    }

    async fn until_acknowledged(&self, more: u64) {
        let goal = self.acknowledged.load(Ordering::SeqCst) + more;
        let begun = super::stopwatch();
        while self.acknowledged.load(Ordering::SeqCst) < goal {
            assert!(begun.elapsed() < PATIENCE, "the load does not progress");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn finish(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = BTreeSet::new();
        for client in self.clients {
            all.extend(client.await.unwrap());
        }
        all
    }
}

fn seeded(seed: u8) -> impl FnMut() -> bool {
    let mut random = StdRng::seed_from_u64(u64::from(seed));
    move || random.next_u32() % 2 == 0
}

/// What one client was told, every client sees, whatever voter it asks; all voters hold the same bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_voter_shows_what_any_was_told() {
    let mut cluster = Cluster::new(|_| ());
    cluster.form(3).await;
    let clients: Vec<_> = [Some(1), Some(2), Some(3), None].map(|local| cluster.client(local)).into();
    for (i, writer) in clients.iter().enumerate() {
        let name = format!("tenant-{i}");
        for reader in &clients {
            assert!(!is_there(reader, &name).await);
        }
        propose_once(writer, &name).await;
        for reader in &clients {
            assert!(is_there(reader, &name).await, "{name}");
        }
    }
    cluster.settle().await;
    assert_eq!(cluster.facts(1), cluster.facts(2));
    assert_eq!(cluster.facts(1), cluster.facts(3));
}

/// While leaders lose power and come back, no call fails, none is lost, none applies twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_notices_that_leaders_lose_power() {
    let mut cluster = Cluster::new(|_| ());
    cluster.form(3).await;
    let load = Load::start((0..8).map(|_| cluster.client(None)));
    for round in 0..3 {
        load.until_acknowledged(100).await;
        let leader = cluster.leader().await;
        cluster.cut_power(leader, seeded(round));
        load.until_acknowledged(100).await;
        cluster.start(leader).await;
    }
    let acknowledged = load.finish().await;
    cluster.settle().await;
    assert_eq!(names(&cluster.client(None)).await, acknowledged);
    let facts = cluster.facts(1);
    assert_eq!(facts, cluster.facts(2));
    assert_eq!(facts, cluster.facts(3));
}

/// When all lose power at once, every acknowledged change is there afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_power_cut_of_all() {
    let mut cluster = Cluster::new(|config| config.snapshot_log_bytes = 100_000);
    cluster.form(3).await;
    let load = Load::start((0..8).map(|_| cluster.client(None)));
    for round in 0..3u8 {
        load.until_acknowledged(200).await;
        for number in 1..=3 {
            cluster.cut_power(number, seeded(10 * round + number as u8));
        }
        for number in 1..=3 {
            cluster.start(number).await;
        }
    }
    load.until_acknowledged(10).await;
    let acknowledged = load.finish().await;
    assert_eq!(names(&cluster.client(None)).await, acknowledged);
}

/// A cluster of five goes on with any two down, and its facts outlive an orderly stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_voters_bear_two_losses_and_a_restart() {
    let mut cluster = Cluster::on_real_disks(|_| ());
    cluster.form(5).await;
    let client = cluster.client(None);
    propose_once(&client, "before").await;
    let leader = cluster.leader().await;
    let other = if leader == 5 { 4 } else { 5 };
    for number in [leader, other] {
        let voter = cluster.voters.remove(&number).unwrap();
        cluster.net.nodes.lock().unwrap().remove(&key(number));
        voter.node.shutdown().await;
    }
    propose_once(&client, "during").await;
    for (number, voter) in std::mem::take(&mut cluster.voters) {
        cluster.net.nodes.lock().unwrap().remove(&key(number));
        voter.node.shutdown().await;
    }
    for number in 1..=5 {
        cluster.start(number).await;
    }
    assert_eq!(names(&client).await, BTreeSet::from(["before".into(), "during".into()]));
}

/// A follower that the log no longer reaches gets the facts whole, and then follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_left_behind_is_sent_a_snapshot() {
    let mut cluster = Cluster::new(|config| {
        config.snapshot_log_bytes = 20_000;
        config.log_keep_bytes = 4_000;
        config.log_segment_bytes = 64 << 10;
    });
    cluster.form(3).await;
    let leader = cluster.leader().await;
    let behind = if leader == 3 { 2 } else { 3 };
    let others: Vec<u64> = (1..=3).filter(|&number| number != behind).collect();
    {
        let mut cut = cluster.net.cut.lock().unwrap();
        for &other in &others {
            cut.insert((key(other), key(behind)));
            cut.insert((key(behind), key(other)));
        }
    }
    let last = cluster.voters[&behind].node.status().last_log;
    let client = cluster.client(Some(leader));
    let mut count = 0;
    while cluster.voters[&leader].node.status().purged <= last {
        propose_once(&client, &format!("tenant-{count}")).await;
        count += 1;
        assert!(count < 100_000, "the log is never let go");
    }
    cluster.net.cut.lock().unwrap().clear();
    propose_once(&client, "after").await;
    cluster.settle().await;
    assert_eq!(cluster.facts(behind), cluster.facts(leader));
    assert_eq!(names(&cluster.client(Some(behind))).await.len(), count + 1);
}

/// Voters come and go while clients write; a number is never given to another node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_come_and_go_under_load() {
    let mut cluster = Cluster::new(|_| ());
    cluster.form(1).await;
    let load = Load::start((0..4).map(|_| cluster.client(None)));
    load.until_acknowledged(50).await;
    for number in 2..=5 {
        let node = cluster.start(number).await;
        assert!(matches!(node.add_voter(9, key(9)).await, Err(MetaAdminError::NotLeader(_))));
        cluster.voters[&1].node.add_voter(number, key(number)).await.unwrap();
        load.until_acknowledged(20).await;
    }
    let first = cluster.voters[&1].node.clone();
    assert!(matches!(first.add_voter(5, key(6)).await, Err(MetaAdminError::Invalid(_))));
    assert!(matches!(first.add_voter(6, key(5)).await, Err(MetaAdminError::Invalid(_))));
    first.transfer_leader(Some(2)).await.unwrap();
    let leader = cluster.leader().await;
    let leader = cluster.voters[&leader].node.clone();
    leader.remove_voter(1).await.unwrap();
    load.until_acknowledged(50).await;
    assert_eq!(leader.status().voters.len(), 4);
    let acknowledged = load.finish().await;
    assert_eq!(names(&cluster.client(Some(2))).await, acknowledged);
}

/// A leader without a majority answers nothing, neither writes nor reads; the others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_shows_nothing_old() {
    let mut cluster = Cluster::new(|_| ());
    cluster.form(3).await;
    let old = cluster.leader().await;
    propose_once(&cluster.client(None), "one").await;
    {
        let mut cut = cluster.net.cut.lock().unwrap();
        for other in (1..=3).filter(|&other| other != old) {
            cut.insert((key(old), key(other)));
            cut.insert((key(other), key(old)));
        }
    }
    let mut config = MetaClientConfig::new(1000);
    config.deadline_ms = 3000;
    let peers =
        Arc::new(Peers { net: cluster.net.clone(), me: key(old), is_alive: Arc::new(AtomicBool::new(true)) });
    let alone = watch::Sender::new(vec![key(old)]).subscribe();
    let isolated = MetaClient::new(Some(cluster.voters[&old].node.clone()), alone, peers, config);
    let outside = cluster.client(None);
    propose_once(&outside, "two").await;
    let read = isolated.query(Query::TenantByName { name: "one".into() }).await;
    assert!(matches!(read, Err(MetaError::Unavailable(_))), "{read:?}");
    let written = isolated.propose(create("three".into())).await;
    assert!(matches!(written, Err(MetaError::Unavailable(_))), "{written:?}");
    assert!(is_there(&outside, "two").await);
}

impl Cluster {
    /// Cuts both ways between a voter and some others.
    fn cut_between(&self, one: u64, others: impl IntoIterator<Item = u64>) {
        let mut cut = self.net.cut.lock().unwrap();
        for other in others {
            cut.insert((key(one), key(other)));
            cut.insert((key(other), key(one)));
        }
    }

    /// What a voter shows if it is asked itself.
    async fn shown_by(&self, number: u64) -> Option<BTreeSet<String>> {
        match self.voters[&number].node.query(Query::Tenants).await {
            Ok(Ok(Answer::Tenants(tenants))) => Some(tenants.into_iter().map(|tenant| tenant.name).collect()),
            Err(_) => None,
            other => panic!("{other:?}"),
        }
    }
}

/// While nothing changes, voters read without their leader; what they cannot have heard of they do not pass over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_answers_reads_without_the_leader() {
    let mut cluster = Cluster::new(|_| ());
    cluster.form(5).await;
    let outside = cluster.client(None);
    propose_once(&outside, "one").await;
    cluster.settle().await;
    let leader = cluster.leader().await;
    let reader = if leader == 5 { 4 } else { 5 };
    let before = cluster.net.read_indexes.load(Ordering::Relaxed);
    for _ in 0..40 {
        assert_eq!(cluster.shown_by(reader).await, Some(BTreeSet::from(["one".into()])));
    }
    // A machine that stands still for long makes one of them ask the leader.
    assert!(cluster.net.read_indexes.load(Ordering::Relaxed) - before < 20);

    cluster.cut_between(reader, [leader]);
    let shown = async {
        while cluster.shown_by(reader).await.is_none() {}
        cluster.shown_by(reader).await
    };
    let shown = tokio::time::timeout(PATIENCE, shown).await.unwrap();
    assert!(shown.is_none_or(|shown| shown.contains("one")));
    propose_once(&outside, "two").await;
    for _ in 0..3 {
        // It may have come by a new leader, which this voter reaches.
        assert!(cluster.shown_by(reader).await.is_none_or(|shown| shown.contains("two")));
    }
    cluster.net.cut.lock().unwrap().clear();
    assert!(is_there(&cluster.client(Some(reader)), "two").await);
}

/// However links fail, no voter shows less than what was acknowledged before it was asked; also while voters come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_show_all_that_was_acknowledged_whatever_links_are_cut() {
    let mut cluster = Cluster::new(|config| config.request_timeout_ms = 200);
    cluster.form(4).await;
    cluster.start(5).await;
    let mut random = StdRng::seed_from_u64(11);
    let mut acknowledged = BTreeSet::new();
    let mut answers = 0;
    for round in 0..24 {
        let mut config = MetaClientConfig::new(2000 + round);
        (config.deadline_ms, config.attempt_timeout_ms) = (400, 100);
        let is_alive = Arc::new(AtomicBool::new(true));
        let peers = Arc::new(Peers { net: cluster.net.clone(), me: NodeId([255; 32]), is_alive });
        let writer = MetaClient::new(None, cluster.keys.subscribe(), peers, config);
        cluster.net.cut.lock().unwrap().clear();
        let leads = cluster.leader().await;
        // The fifth comes and goes, while some have not heard of it.
        let leading = cluster.voters[&leads].node.clone();
        let is_voter = leading.status().voters.iter().any(|(number, _)| *number == 5);
        for one in 1..=5 {
            let others = (1..=5).filter(|other| *other != one && random.next_u32() % 4 == 0);
            let others: Vec<u64> = others.collect();
            cluster.cut_between(one, others);
        }
        let change = async {
            let changed = match is_voter {
                true if leads != 5 => leading.remove_voter(5).await,
                false => leading.add_voter(5, key(5)).await,
                true => Ok(()),
            };
            // It may take longer than links stay cut.
            drop(changed);
        };
        let write = async {
            for i in 0..4 {
                let name = format!("r{round}-{i}");
                if writer.propose(create(name.clone())).await.is_ok() {
                    acknowledged.insert(name);
                }
                let shown = futures::future::join_all((1..=5).map(|number| cluster.shown_by(number))).await;
                for (number, shown) in (1..).zip(shown) {
                    let Some(shown) = shown else { continue };
                    answers += 1;
                    let missing: Vec<_> = acknowledged.difference(&shown).collect();
                    assert!(missing.is_empty(), "round {round}: voter {number} does not show {missing:?}");
                }
            }
        };
        let change = tokio::time::timeout(Duration::from_millis(500), change);
        drop(tokio::join!(write, change));
    }
    assert!(answers > 50 && acknowledged.len() > 10, "{answers} answers, {} changes", acknowledged.len());
}

/// Whatever bytes come, an answer goes out that says what is wrong with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_answered() {
    let mut cluster = Cluster::new(|_| ());
    cluster.form(1).await;
    let node = cluster.voters[&1].node.clone();
    let mut random = StdRng::seed_from_u64(3);
    for round in 0..2000 {
        let mut message = vec![0; (random.next_u32() % 200) as usize];
        random.fill_bytes(&mut message);
        if round % 2 == 0 {
            let kind = (random.next_u32() % 14) as u8;
            message.splice(0..message.len().min(8), [b'M', b'K', 1, kind, 0, 0, 0, 0]);
        }
        let answer = node.serve(key(2), Bytes::from(message)).await;
        assert_eq!(answer[..3], *b"MK\x01");
    }
    assert!(!is_there(&cluster.client(None), "nobody").await);
}

/// A directory starts only the voter that it was made for, and only once at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_belongs_to_one_voter() {
    let mut cluster = Cluster::on_real_disks(|_| ());
    let node = cluster.start(1).await;
    let dir = cluster.dirs[&1].clone();
    let peers = || {
        Arc::new(Peers { net: cluster.net.clone(), me: key(1), is_alive: Arc::new(AtomicBool::new(true)) })
    };
    let config = MetaConfig::new(dir, "test".into(), 1, key(1));
    let second = MetaNode::start(config.clone(), peers(), Arc::new(|| 0)).await;
    assert!(matches!(second, Err(MetaStartError::InUse(_))));
    node.shutdown().await;
    for wrong in [
        MetaConfig { node_number: 2, ..config.clone() },
        MetaConfig { node: key(2), ..config.clone() },
        MetaConfig { cluster_id: "other".into(), ..config.clone() },
    ] {
        let started = MetaNode::start(wrong, peers(), Arc::new(|| 0)).await;
        assert!(matches!(started, Err(MetaStartError::WrongIdentity { .. })));
    }
    assert!(MetaNode::start(config, peers(), Arc::new(|| 0)).await.is_ok());
}

/// A disk that fails to sync ends the voter, and says so; the others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_disk_is_fatal_to_its_voter_alone() {
    let mut cluster = Cluster::new(|_| ());
    cluster.form(3).await;
    let leader = cluster.leader().await;
    cluster.sim_disks[&leader].fail_syncs();
    let client = cluster.client(None);
    propose_once(&client, "one").await;
    let fatal = cluster.voters[&leader].node.fatal();
    tokio::time::timeout(PATIENCE, fatal).await.unwrap();
    propose_once(&client, "two").await;
}

async fn soon(what: &str, is_so: impl Fn() -> bool) {
    let begun = super::stopwatch();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An older copy of a voter's directory is put back while the leader is down: it elects nobody, so that nothing that was
/// answered is undone; taken out and in again it has all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_a_voter_undoes_nothing() {
    let mut cluster = Cluster::new(|_| ());
    cluster.form(3).await;
    let client = cluster.client(None);
    propose_once(&client, "before").await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|number| *number != leader).collect();
    let [witness, old] = others[..] else { panic!("{others:?}") };
    cluster.cut_power(old, || false);
    let copy = cluster.sim_disks[&old].fork();
    cluster.start(old).await;
    propose_once(&client, "after").await;
    cluster.settle().await;
    let applied = cluster.voters[&old].node.status().applied;
    let remembered = || cluster.voters[&witness].node.remembered(old) >= applied;
    soon("the other follower hears how far it came", remembered).await;

    cluster.cut_power(leader, || false);
    cluster.cut_power(old, || false);
    cluster.sim_disks.insert(old, copy);
    let node = cluster.start(old).await;
    soon("the older copy is noticed", || {
        node.status().held_back.is_some_and(|why| why.contains("older copy"))
    })
    .await;
    for kind in [wire::Kind::Append, wire::Kind::Vote, wire::Kind::PreVote] {
        let message = wire::encode(kind as u8, crate::facts::GroupId(0), &()).unwrap();
        let answer = node.serve(key(witness), message).await;
        assert!(matches!(wire::decode_answer::<()>(kind, &answer), Err(wire::Trouble::Unavailable(_))));
    }

    cluster.start(leader).await;
    assert!(is_there(&client, "after").await);
    propose_once(&client, "more").await;
    let leader = cluster.leader().await;
    let leading = cluster.voters[&leader].node.clone();
    // A leader that had its power cut may not remember; its own entries are agreed without the older copy by now.
    let knows = || leading.status().rewound == [old];
    soon("the leader deals with it", || knows() || node.status().held_back.is_none()).await;
    if knows() {
        leading.remove_voter(old).await.unwrap();
        leading.add_voter(old, key(old)).await.unwrap();
    }
    soon("it takes part", || node.status().held_back.is_none() && leading.status().rewound.is_empty()).await;
    cluster.settle().await;
    assert_eq!(cluster.facts(leader), cluster.facts(old));
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    // Fields 14 and 15, in clock ticks of which a second has 100.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |field: usize| fields[field - 3].parse::<f64>().unwrap();
    (ticks(14) + ticks(15)) / 100.0
}

/// Prints what a cluster of three in this process does; no claim is checked but that all is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: run alone, in release, with --nocapture"]
async fn measure() {
    for (clients, per_client) in [(1, 2000), (16, 1000), (128, 1000), (1024, 200)] {
        let mut cluster = Cluster::on_real_disks(|config| config.log_segment_bytes = 16 << 20);
        cluster.form(3).await;
        let leader = cluster.leader().await;
        let client = cluster.client(Some(leader));
        propose_once(&client, "warm").await;
        let before = cluster.net.messages.load(Ordering::Relaxed);
        let cpu_before = cpu_seconds();
        let begun = super::stopwatch();
        let tasks: Vec<_> = (0..clients)
            .map(|number| {
                let client = client.clone();
                tokio::spawn(async move {
                    let mut took = Vec::with_capacity(per_client);
                    for i in 0..per_client {
                        let begun = super::stopwatch();
                        propose_once(&client, &format!("c{number}-{i}")).await;
                        took.push(begun.elapsed());
                    }
                    took
                })
            })
            .collect();
        let mut took = Vec::new();
        for task in tasks {
            took.extend(task.await.unwrap());
        }
        let seconds = begun.elapsed().as_secs_f64();
        let cpu = cpu_seconds() - cpu_before;
        took.sort();
        let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_micros();
        let entries = cluster.voters[&leader].node.status().last_log.unwrap();
        println!(
            "{clients} clients: {:.0} writes/s, p50 {} us, p99 {} us, {:.1} commands an entry, {} messages, {:.0} us CPU a write",
            took.len() as f64 / seconds,
            at(50),
            at(99),
            took.len() as f64 / entries as f64,
            cluster.net.messages.load(Ordering::Relaxed) - before,
            cpu / took.len() as f64 * 1e6,
        );
        let begun = super::stopwatch();
        let reads = 20_000 / clients.max(20);
        let tasks: Vec<_> = (0..clients)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move {
                    for _ in 0..reads {
                        assert!(is_there(&client, "warm").await);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        println!("    {:.0} linearizable reads/s", (reads * clients) as f64 / begun.elapsed().as_secs_f64());
        let begun = super::stopwatch();
        cluster.voters[&leader].node.transfer_leader(None).await.unwrap();
        let moved = begun.elapsed();
        propose_once(&client, "moved").await;
        println!("    lead moved in {moved:?}, next write acknowledged after {:?}", begun.elapsed());
    }
}
