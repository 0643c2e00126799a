//! A cluster in one process that fails on purpose, and an oracle of what it promised.
//!
//! ```text
//! seed ─ nemesis ─> deaths, power cuts, cut links, storms, slow disks, liars
//!      ─ workload ─> clients ─ Objects ─> MetaClient ─ net ─> MetaNodes ─> disks
//!                                     └─> shards ─ net ─> ShardStores ─> disks
//! all that clients were told ─ oracle ─> one order that explains it, or what was broken
//! ```
//!
//! | room         | holds                                                              | touches |
//! |--------------|--------------------------------------------------------------------|---------|
//! | [`clock`]    | time that passes when all wait                                     | threads |
//! | [`disk`]     | files that forget what was not synced                              | nothing |
//! | [`net`]      | links, and the nodes on them                                       | nothing |
//! | [`shards`]   | the disks of all nodes over the network                            | nothing |
//! | [`node`]     | the real parts, put together; the loops that keep a node in order  | nothing |
//! | [`nemesis`]  | what goes wrong                                                    | nothing |
//! | [`workload`] | clients                                                            | nothing |
//! | [`oracle`]   | histories and their check                                          | nothing |
//!
//! Real are the log, Raft, the facts, coding, sealing, the shard stores and the objects path; simulated are disks,
//! network and clock. The seed draws what goes wrong and what clients do; the product's threads and its own randomness
//! (ids, keys, election timeouts) are not drawn from it, so that a seed gives the same troubles, not the same run.

pub mod clock;
pub mod disk;
pub mod nemesis;
pub mod net;
pub mod node;
pub mod oracle;
pub mod shards;
pub mod workload;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use makai_erasure::Scheme;
use makai_gateway::identity::{Caller, new_tenant_key};
use makai_raft::facts::Timestamp;
use makai_raft::facts::cluster::{Disk, JoinToken, Node, Role, Standing};
use makai_raft::facts::command::{Command, Refusal, Reply};
use makai_raft::handle::{MetaError, Metadata};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use self::clock::Clock;
use self::disk::SimDisk;
use self::nemesis::{Death, Trouble};
use self::net::Net;
use self::node::{CLUSTER_ID, CLUSTER_KEY, COLLECT_AGE_MS, Machine, Running, Surroundings, disk_id, node_id};
use self::oracle::{History, OPERATIONS_MAX};
use self::workload::{BUCKET, Client, Outcome, WrongBytes, key_name};

const NODES: u8 = 6;
const KEYS: usize = 5;
const CLIENTS: usize = 4;
const SCHEMES: [&str; 4] = ["2+2", "2+2", "1+2", "3+2"];
/// Virtual time that troubles last.
const TROUBLED: Duration = Duration::from_secs(25);
/// Virtual time in which a healed cluster serves again, and in which it has mended all its shards.
const SERVES_AGAIN: Duration = Duration::from_secs(60);
const MENDED: Duration = Duration::from_secs(180);
/// Virtual time of a whole run.
const RUN_MAX: Duration = Duration::from_secs(1200);
/// How far a node's wall clock may be ahead of another's; the facts bear five minutes.
const SKEW_MS_MAX: u64 = 100_000;
/// Between two tries of what must work in the end.
const AGAIN_AFTER: Duration = Duration::from_millis(300);
/// How long a client waits while all goes wrong, and afterwards.
const CLIENT_PATIENCE: Duration = Duration::from_secs(6);
const PATIENCE: Duration = Duration::from_secs(15);

/// A fault of the product itself, switched on to see that the oracle notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Disks say "synced" and have done nothing.
    DisksForgetSyncs,
    /// A node says "durable" when the shard has arrived.
    ShardsAcknowledgedEarly,
    /// The network answers a question with what was right once.
    OldAnswersReplayed,
}

/// A promise that was not kept, or a world that could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<WrongBytes> for Broken {
    fn from(WrongBytes(what): WrongBytes) -> Self {
        Self(what)
    }
}

/// What happened in a world that kept its promises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    pub done: usize,
    pub refused: usize,
    pub unknown: usize,
    pub troubles: usize,
    pub virtual_ms: u64,
}

impl Report {
    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Done => self.done += 1,
            Outcome::Refused => self.refused += 1,
            Outcome::Unknown => self.unknown += 1,
        }
    }
}

/// Makes the world of `seed`, lets it suffer and heal, and checks what was promised.
///
/// # Errors
/// [`Broken`]: which promise, and what shows it.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Result<Report, Broken> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.map_err(|error| Broken(format!("no runtime: {error}")))?;
    let clock = Arc::new(Clock::default());
    let result = runtime.block_on(async {
        tokio::select! {
            biased;
            result = tokio::time::timeout(RUN_MAX, live(seed, mutant, Arc::clone(&clock))) => {
                result.unwrap_or_else(|_| Err(Broken("the run does not end".into())))
            }
            () = clock::pace(&clock) => Err(Broken("time stands still".into())),
        }
    });
    clock.end();
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

async fn live(seed: u64, mutant: Option<Mutant>, clock: Arc<Clock>) -> Result<Report, Broken> {
    let (world, caller) = World::form(seed, mutant, clock).await?;
    let world = Arc::new(world);
    let history = Arc::new(History::default());
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<JoinHandle<Result<Report, Broken>>> = (0..CLIENTS as u64)
        .map(|number| {
            let client = Client {
                caller: caller.clone(),
                history: Arc::clone(&history),
                rng: StdRng::seed_from_u64(seed ^ (number + 1) << 32),
                key_count: KEYS,
            };
            tokio::spawn(work(Arc::clone(&world), client, Arc::clone(&stop)))
        })
        .collect();
    let troubles = world.suffer(seed).await?;
    // Nothing may be written over what the power cut took.
    stop.store(true, Ordering::Relaxed);
    let mut report = Report { troubles, ..Report::default() };
    for client in clients {
        let part = client.await.map_err(|error| Broken(format!("a client died: {error}")))??;
        report.done += part.done;
        report.refused += part.refused;
        report.unknown += part.unknown;
    }
    world.mend().await?;
    let mut client = Client {
        caller,
        history: Arc::clone(&history),
        rng: StdRng::seed_from_u64(seed ^ 0xFFFF),
        key_count: KEYS,
    };
    world.reads_again(&mut client).await?;
    world.writes_again(&mut client).await?;
    world.mended().await?;
    if seed.is_multiple_of(2) {
        world.retire(NODES - 1).await?;
        world.mended().await?;
    }
    world.collected().await?;
    world.reads_all(&mut client, "after all was mended").await?;
    world.lose_disks(seed).await;
    world.reads_all(&mut client, "with as many disks of each group lost as it has parity").await?;
    history.check().map_err(Broken)?;
    report.virtual_ms = world.around.clock.now_ms();
    Ok(report)
}

/// A client's life, until told to stop.
async fn work(world: Arc<World>, mut client: Client, stop: Arc<AtomicBool>) -> Result<Report, Broken> {
    let mut report = Report::default();
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(client.rng.random_range(0..600))).await;
        let number = client.rng.random_range(0..NODES);
        let Some(gateway) = world.gateway(number).await else { continue };
        report.count(client.step(&gateway.objects, CLIENT_PATIENCE).await?);
    }
    Ok(report)
}

struct World {
    around: Surroundings,
    machines: Mutex<Vec<Machine>>,
    rng: Mutex<StdRng>,
    parity: usize,
}

fn unavailable(what: &str) -> impl Fn(MetaError) -> Broken + '_ {
    move |error| Broken(format!("{what}: {error}"))
}

impl World {
    /// A cluster of [`NODES`] nodes, three or five of them voters, with a bucket and its groups.
    async fn form(seed: u64, mutant: Option<Mutant>, clock: Arc<Clock>) -> Result<(Self, Caller), Broken> {
        let mut rng = StdRng::seed_from_u64(seed);
        let voter_count = if rng.random_bool(0.3) { 5 } else { 3 };
        let voters = (0..voter_count).map(node_id).collect();
        let scheme: Scheme =
            SCHEMES[rng.random_range(0..SCHEMES.len())].parse().map_err(|_| Broken("a scheme".into()))?;
        let around = Surroundings {
            clock: Arc::clone(&clock),
            net: Net::new(rng.random(), mutant),
            voters: watch::Sender::new(voters).subscribe(),
            snapshot_log_bytes: rng.random_range(50_000..1_000_000),
            log_keep_bytes: rng.random_range(5_000..200_000),
        };
        let mut machines: Vec<Machine> = (0..NODES)
            .map(|number| Machine {
                number,
                is_voter: number < voter_count,
                disk: SimDisk::new(Arc::clone(&clock)),
                skew_ms: rng.random_range(0..SKEW_MS_MAX),
                running: None,
            })
            .collect();
        for machine in &mut machines {
            if mutant == Some(Mutant::DisksForgetSyncs) {
                machine.disk.make_forgetful();
            }
            machine.start(&around, rng.random()).await.map_err(Broken)?;
        }
        let first = machines[0].running.clone().ok_or_else(|| Broken("no first node".into()))?;
        let meta = first.host.meta.get().ok_or_else(|| Broken("the first node is no voter".into()))?;
        meta.bootstrap().await.map_err(|fatal| Broken(fatal.to_string()))?;
        meta.wait_for(|status| status.is_leader).await;
        for number in 1..voter_count {
            // A leader that has not led for long may not be confirmed yet; the daemon tries again as well.
            while let Err(error) = meta.add_voter(u64::from(number) + 1, node_id(number)).await {
                tracing::debug!(number, %error, "a voter was not added yet");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        let caller = populate(&*first.facts, scheme).await?;
        let parity = usize::from(scheme.parity);
        let world = Self { around, machines: Mutex::new(machines), rng: Mutex::new(rng), parity };
        // Until there are groups and every node knows them.
        for number in 0..NODES {
            while let Some(node) = world.gateway(number).await
                && node.map.get().map.groups.is_empty()
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok((world, caller))
    }

    async fn gateway(&self, number: u8) -> Option<Running> {
        self.machines.lock().await[usize::from(number)].running.clone()
    }

    async fn leader(&self) -> Option<u8> {
        let machines = self.machines.lock().await;
        let leads = |machine: &&Machine| {
            let meta = machine.running.as_ref().and_then(|running| running.host.meta.get());
            meta.is_some_and(makai_raft::handle::MetaNode::is_leader)
        };
        machines.iter().find(leads).map(|machine| machine.number)
    }

    async fn die(&self, number: u8, death: Death) {
        let mut rng = self.rng.lock().await;
        let machine = &mut self.machines.lock().await[usize::from(number)];
        kill(machine, &self.around.net, death, &mut rng);
    }

    async fn all_die(&self) {
        let mut rng = self.rng.lock().await;
        for machine in self.machines.lock().await.iter_mut() {
            kill(machine, &self.around.net, Death::PowerCut, &mut rng);
        }
    }

    async fn revive(&self) -> Result<(), Broken> {
        let mut rng = self.rng.lock().await;
        for machine in self.machines.lock().await.iter_mut() {
            if machine.running.is_none() {
                machine.start(&self.around, rng.random()).await.map_err(Broken)?;
            }
        }
        Ok(())
    }

    /// Troubles one after the other, then a power cut of everything; returns how many there were.
    async fn suffer(&self, seed: u64) -> Result<usize, Broken> {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5EED);
        let until_ms = self.around.clock.now_ms() + TROUBLED.as_millis() as u64;
        let mut count = 1;
        while self.around.clock.now_ms() < until_ms {
            let (calm, trouble, lasts) = nemesis::next(&mut rng, NODES);
            tokio::time::sleep(calm).await;
            tracing::debug!(?trouble, now_ms = self.around.clock.now_ms(), "trouble");
            self.make(trouble).await;
            tokio::time::sleep(lasts).await;
            // Some troubles outlast the next one.
            if rng.random_bool(0.6) || matches!(trouble, Trouble::AllDie) {
                self.mend().await?;
            }
            count += 1;
        }
        self.all_die().await;
        Ok(count)
    }

    async fn make(&self, trouble: Trouble) {
        let net = &self.around.net;
        match trouble {
            Trouble::Die { node, death } => self.die(node, death).await,
            Trouble::LeaderDies { death } => {
                if let Some(leader) = self.leader().await {
                    self.die(leader, death).await;
                }
            }
            Trouble::AllDie => self.all_die().await,
            Trouble::Cut { from, to } => net.cut(node_id(from), node_id(to)),
            Trouble::Isolate { node, both_ways } => {
                for other in (0..NODES).filter(|other| *other != node) {
                    net.cut(node_id(node), node_id(other));
                    if both_ways {
                        net.cut(node_id(other), node_id(node));
                    }
                }
            }
            Trouble::Storm(weather) => net.set_weather(weather),
            Trouble::SlowDisk { node, sync_ms } => {
                self.machines.lock().await[usize::from(node)].disk.set_sync_ms(sync_ms);
            }
            Trouble::Lie { node } => net.set_lying(node_id(node), true),
            Trouble::TimeLeaps { hours } => self.around.clock.leap(hours * 3_600_000),
            Trouble::LeaderSteps => {
                if let Some(leader) = self.leader().await
                    && let Some(running) = self.gateway(leader).await
                    && let Some(meta) = running.host.meta.get()
                {
                    drop(meta.transfer_leader(None).await);
                }
            }
        }
    }

    /// Ends every trouble: the network is whole, disks are quick, everyone is started.
    async fn mend(&self) -> Result<(), Broken> {
        self.around.net.heal();
        for machine in self.machines.lock().await.iter() {
            machine.disk.set_sync_ms(0);
        }
        self.revive().await
    }

    /// Waits until every key can be read.
    async fn reads_again(&self, client: &mut Client) -> Result<(), Broken> {
        let until_ms = self.around.clock.now_ms() + SERVES_AGAIN.as_millis() as u64;
        for (number, key) in (0..NODES).cycle().zip((0..KEYS).map(key_name)) {
            let Some(node) = self.gateway(number).await else { continue };
            while let Err(WrongBytes(why)) = client.read_whole(&node.objects, &key, PATIENCE).await {
                if self.around.clock.now_ms() > until_ms {
                    return Err(Broken(format!("healed, and {key:?} is not readable: {why}")));
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
        Ok(())
    }

    /// Waits until every gateway puts and gets.
    async fn writes_again(&self, client: &mut Client) -> Result<(), Broken> {
        let until_ms = self.around.clock.now_ms() + SERVES_AGAIN.as_millis() as u64;
        for number in 0..NODES {
            let Some(node) = self.gateway(number).await else { continue };
            while client.probe(&node.objects, PATIENCE).await? != Outcome::Done {
                if self.around.clock.now_ms() > until_ms {
                    return Err(Broken(format!("healed, and gateway {number} still does not serve")));
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
        Ok(())
    }

    /// Waits until every shard is where it should be.
    async fn mended(&self) -> Result<(), Broken> {
        let until_ms = self.around.clock.now_ms() + MENDED.as_millis() as u64;
        for number in 0..NODES {
            let Some(node) = self.gateway(number).await else { continue };
            node.full_looks.fetch_add(1, Ordering::Relaxed);
        }
        loop {
            let mut missing = Vec::new();
            for number in 0..NODES {
                let Some(node) = self.gateway(number).await else { continue };
                node.refresh_map().await;
                match node.missing_shards(disk_id(number)).await {
                    Ok(0) => {}
                    other => missing.push((number, other)),
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            if self.around.clock.now_ms() > until_ms {
                return Err(Broken(format!("healed, and shards stay missing: {missing:?}")));
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// A node's disk breaks and the node is given up: its groups get other disks, its shards are made anew.
    async fn retire(&self, number: u8) -> Result<(), Broken> {
        let Some(node) = self.gateway(0).await else { return Ok(()) };
        let lost = Command::SetNodeStanding { node: node_id(number), standing: Standing::Lost };
        self.around.net.lose_disk(disk_id(number));
        node.facts.propose(lost).await.map_err(unavailable("a node is not given up"))?;
        let until_ms = self.around.clock.now_ms() + MENDED.as_millis() as u64;
        while node.map.get().map.groups.iter().any(|group| group.disks.contains(&disk_id(number))) {
            if self.around.clock.now_ms() > until_ms {
                return Err(Broken(format!(
                    "groups still name the disk of node {number}, which was given up"
                )));
            }
            tokio::time::sleep(AGAIN_AFTER).await;
            node.refresh_map().await;
        }
        Ok(())
    }

    /// Waits until no disk holds what nobody needs, once it is old enough.
    async fn collected(&self) -> Result<(), Broken> {
        self.around.clock.leap(2 * COLLECT_AGE_MS);
        // The facts know the time from commands; the daemon's leader sends this one every few minutes.
        let Some(node) = self.gateway(0).await else { return Ok(()) };
        let expire = Command::ExpireSessions { idle_ms: COLLECT_AGE_MS };
        node.facts.propose(expire).await.map_err(unavailable("sessions are not expired"))?;
        let until_ms = self.around.clock.now_ms() + MENDED.as_millis() as u64;
        loop {
            let mut needless = Vec::new();
            for number in (0..NODES).filter(|number| !self.around.net.is_lost(disk_id(*number))) {
                let Some(node) = self.gateway(number).await else { continue };
                match node.needless_shards(disk_id(number)).await {
                    Ok(0) => {}
                    other => needless.push((number, other)),
                }
            }
            if needless.is_empty() {
                return Ok(());
            }
            if self.around.clock.now_ms() > until_ms {
                return Err(Broken(format!("disks keep what nobody needs: {needless:?}")));
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// Every key through two gateways, and a listing: all must be answered.
    async fn reads_all(&self, client: &mut Client, when: &str) -> Result<(), Broken> {
        for number in [0, NODES - 1] {
            let Some(node) = self.gateway(number).await else { continue };
            for key in (0..KEYS).map(key_name) {
                client.read_whole(&node.objects, &key, PATIENCE).await.map_err(|WrongBytes(why)| {
                    Broken(format!("{when}, {key:?} is not readable through node {number}: {why}"))
                })?;
            }
            if client.list(&node.objects, OPERATIONS_MAX, PATIENCE).await? != Outcome::Done {
                return Err(Broken(format!("{when}, node {number} does not list")));
            }
        }
        Ok(())
    }

    /// As many disks as every group bears.
    async fn lose_disks(&self, seed: u64) {
        let mut numbers: Vec<u8> =
            (0..NODES).filter(|number| !self.around.net.is_lost(disk_id(*number))).collect();
        numbers.shuffle(&mut StdRng::seed_from_u64(seed ^ 0xD15C));
        for number in numbers.into_iter().take(self.parity) {
            self.around.net.lose_disk(disk_id(number));
        }
    }
}

fn kill(machine: &mut Machine, net: &Net, death: Death, rng: &mut StdRng) {
    match death {
        Death::Kill => machine.disk.kill(),
        Death::PowerCut => machine.disk.cut_power(rng),
    }
    machine.stop_dead(net);
}

/// The first facts: nodes, disks, a tenant, a bucket.
async fn populate(facts: &dyn Metadata, scheme: Scheme) -> Result<Caller, Broken> {
    let told = unavailable("the cluster is not made");
    facts.propose(Command::InitCluster { cluster_id: CLUSTER_ID.into() }).await.map_err(&told)?;
    let roles = vec![Role::Voter, Role::Storage, Role::Gateway];
    let token = JoinToken {
        id: "token".into(),
        secret_hash: [7; 32],
        roles: roles.clone(),
        expires_at: Timestamp(u64::MAX),
        uses_left: u32::from(NODES),
    };
    for number in 0..NODES {
        let node = Node {
            id: node_id(number),
            number: 0,
            name: format!("node-{number}"),
            owner: String::new(),
            site: String::new(),
            roles: roles.clone(),
            addresses: Vec::new(),
            standing: Standing::Active,
            joined_at: Timestamp(0),
            is_up: true,
            changed_at: Timestamp(0),
            version: "0".into(),
            down_ppm: 0,
        };
        let disk = Disk {
            id: disk_id(number),
            node: node.id,
            capacity_bytes: 1 << 40,
            standing: Standing::Active,
            added_at: Timestamp(0),
            condition: makai_raft::facts::cluster::Condition::Well,
            speed_bytes_per_sec: 0,
        };
        let token_shown = (number > 0).then(|| (token.id.clone(), token.secret_hash));
        let join = Command::JoinNode { node, disks: vec![disk], token: token_shown };
        facts.propose(join).await.map_err(&told)?;
        if number == 0 {
            facts.propose(Command::CreateJoinToken { token: token.clone() }).await.map_err(&told)?;
        }
    }
    let wrapped_key = new_tenant_key(&CLUSTER_KEY, "tenant").map_err(|error| Broken(error.to_string()))?;
    let tenant = Command::CreateTenant { name: "tenant".into(), wrapped_key, quota_bytes: None };
    let tenant = match facts.propose(tenant).await.map_err(&told)? {
        Reply::Tenant(tenant) => tenant,
        other => return Err(Broken(format!("a tenant was made: {other:?}"))),
    };
    let bucket = Command::CreateBucket { name: BUCKET.into(), tenant: tenant.id, scheme: Some(scheme) };
    match facts.propose(bucket).await {
        Ok(_) | Err(MetaError::Refused(Refusal::BucketOwned)) => {}
        Err(error) => return Err(told(error)),
    }
    Ok(Caller { tenant: tenant.id, tenant_name: tenant.name, access_key_id: "none".into() })
}
