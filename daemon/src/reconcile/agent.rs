//! Runs this node's part of jobs: the agent, its way to gateways, and the gateways' way to it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use makai_erasure::NodeId;
use makai_gateway::jobs::{Capacity, JobNodes, Never};
use makai_gpu_runtime::agent::{Agent, AgentOptions, Pool, module_of};
use makai_gpu_runtime::card::host::Host;
use makai_gpu_runtime::inventory::{self, Bounds, Inventory};
use makai_gpu_runtime::module;
use makai_gpu_runtime::runner::Runner;
use makai_raft::facts::cluster::{Node, Role, Standing};
use makai_raft::facts::desk::{Reply, Request};
use makai_raft::facts::joblog::LogPart;
use makai_raft::facts::jobs::{AttemptId, JobId, JobSpec, ModuleWork, Resources, STATEMENT_PURPOSE, Work};
use makai_raft::facts::tenant::TenantId;
use makai_raft::handle::Version;
use tokio::sync::{Notify, watch};

use super::Shell;
use super::cards::CardRoom;
use crate::clock;
use crate::identity::NodeIdentity;
use crate::members::{ATTEMPTS, CAPACITY, JOB_LOG, NEVER, WHY, decode, encode};

/// A gateway may wait for disks and for the leader.
const DESK_TIMEOUT: Duration = Duration::from_secs(30);
const LOG_TIMEOUT: Duration = Duration::from_secs(5);
/// How often this machine is looked at anew: disks fill.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long this machine's speed is measured when the node begins.
const MEASURED_FOR: Duration = Duration::from_millis(200);
/// Pause before an agent that could not go on is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(5);

/// What this node offers to jobs, as heartbeats carry it.
#[derive(Default)]
pub struct Offer {
    current: OnceLock<watch::Receiver<Option<Inventory>>>,
    /// Told when this machine is to be looked at anew before its time.
    changed: Notify,
    cards: OnceLock<CardRoom>,
}

impl Offer {
    /// `None`: this node runs no jobs now.
    #[must_use]
    pub fn offered(&self) -> Option<Inventory> {
        self.current.get().and_then(|current| current.borrow().clone())
    }

    /// What this machine offers has changed.
    pub fn look_again(&self) {
        self.changed.notify_one();
    }

    /// This machine's cards; `None`: it runs no jobs, or has none.
    #[must_use]
    pub fn cards(&self) -> Option<&CardRoom> {
        self.cards.get()
    }

    pub fn set_cards(&self, cards: CardRoom) {
        let _ = self.cards.set(cards);
    }
}

/// Starts the agent of a compute node.
///
/// # Errors
/// Its folder cannot be made.
pub fn start(shell: &Shell, key: &NodeIdentity, runner: Arc<dyn Runner>) -> anyhow::Result<Arc<Agent>> {
    let dir = shell.config.node.dir.join("jobs");
    std::fs::create_dir_all(&dir)?;
    let key = key.clone();
    let agent = Agent::new(AgentOptions {
        node: shell.id,
        pool: Arc::new(Gateways { shell: shell.clone(), nothing_at: Mutex::default() }),
        runner,
        sign: Arc::new(move |bytes| Bytes::copy_from_slice(&key.sign(STATEMENT_PURPOSE, bytes))),
        dir,
        cache_bytes_max: shell.config.compute.cache_bytes_max,
    })?;
    shell.members.set_agent(Arc::clone(&agent));
    Ok(agent)
}

/// Follows the facts until the node stops; offers this machine only while it does.
pub async fn run(shell: Shell, agent: Arc<Agent>, cards: Option<Arc<Host>>) {
    let (offer, offered) = watch::channel(None);
    let _ = shell.jobs.current.set(offered);
    let (stop, stopping) = watch::channel(false);
    let follow = async {
        loop {
            match agent.run(stopping.clone()).await {
                Ok(()) => return,
                Err(error) => tracing::error!(%error, "jobs cannot run here; trying again"),
            }
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    };
    let look = async {
        let mut speed = 0;
        let mut next = clock::instant();
        let mut is_due = true;
        loop {
            if is_due || clock::instant() >= next {
                let found = look(&shell, cards.as_ref()).await.map(|mut found| {
                    found.cpu.ptx_mips = speed;
                    found
                });
                offer.send_replace(found);
                if speed == 0 {
                    speed = tokio::task::spawn_blocking(measure).await.unwrap_or(0);
                    continue;
                }
                next = clock::instant() + LOOK_EVERY;
            }
            let going = tokio::select! {
                going = shell.pause(next.saturating_duration_since(clock::instant())) => {
                    is_due = false;
                    going
                }
                () = shell.jobs.changed.notified() => {
                    is_due = true;
                    true
                }
            };
            if !going {
                stop.send_replace(true);
                return;
            }
        }
    };
    tokio::join!(follow, look);
}

/// Millions of PTX instructions per second of one core, interpreted, at least 1: what machines are compared by.
fn measure() -> u32 {
    let begun = clock::instant();
    let mut instructions = 0;
    while begun.elapsed() < MEASURED_FOR {
        match module::bench::run(module::bench::Kind::Integers, module::Engine::Interpreter, 1) {
            Ok(ran) => instructions += ran.instructions,
            Err(error) => {
                tracing::warn!(%error, "this machine's speed could not be measured");
                return 1;
            }
        }
    }
    let micros = begun.elapsed().as_micros().max(1);
    u32::try_from(u128::from(instructions) / micros).unwrap_or(u32::MAX).max(1)
}

async fn look(shell: &Shell, cards: Option<&Arc<Host>>) -> Option<Inventory> {
    let compute = &shell.config.compute;
    let bounds = Bounds {
        cpu_millis_max: compute.cpu_millis_max,
        memory_bytes_max: compute.memory_bytes_max,
        scratch_bytes_max: compute.scratch_bytes_max,
    };
    let dir = shell.config.node.dir.clone();
    let cards = cards.cloned();
    let look = move || inventory::look(&dir, bounds, cards.map_or_else(Vec::new, |cards| cards.list()));
    match tokio::task::spawn_blocking(look).await {
        Ok(Ok(found)) => Some(found),
        Ok(Err(error)) => {
            tracing::warn!(%error, "this machine does not say what it has; no jobs run here");
            None
        }
        Err(_) => None,
    }
}

/// The agent's way to a gateway's desk: its own node's, where that is a gateway, else a peer's.
struct Gateways {
    shell: Shell,
    /// The facts' version before a gateway said that nothing is to run here: so it is until they change.
    nothing_at: Mutex<Option<Version>>,
}

impl Gateways {
    /// Gateways in the order in which they are asked: what concerns one attempt begins with one and the same.
    fn in_order(&self, about: Option<AttemptId>) -> Vec<NodeId> {
        let map = self.shell.map.get();
        let serves = |node: &&Node| {
            node.is_up && node.standing == Standing::Active && node.roles.contains(&Role::Gateway)
        };
        let mut gateways: Vec<(u64, NodeId)> =
            map.map.nodes.iter().filter(serves).map(|node| (weight(node.id, about), node.id)).collect();
        gateways.sort();
        gateways.into_iter().map(|(_, id)| id).collect()
    }
}

/// A number that spreads attempts over gateways.
fn weight(node: NodeId, about: Option<AttemptId>) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&node.0);
    if let Some(AttemptId { job, index, attempt }) = about {
        hasher.update(&job.0.to_le_bytes()).update(&index.to_le_bytes()).update(&attempt.to_le_bytes());
    }
    let digest = hasher.finalize();
    digest.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

#[async_trait]
impl Pool for Gateways {
    async fn ask(&self, about: Option<AttemptId>, request: Request) -> Result<Reply, String> {
        if !matches!(request, Request::Assignments) {
            return self.ask_gateway(about, request).await;
        }
        let version = self.shell.members.facts_version();
        if version.is_some() && *self.nothing_at() == version {
            return Ok(Reply::Assignments(Vec::new()));
        }
        let reply = self.ask_gateway(about, request).await?;
        let is_nothing = matches!(&reply, Reply::Assignments(assigned) if assigned.is_empty());
        *self.nothing_at() = version.filter(|_| is_nothing);
        Ok(reply)
    }
}

impl Gateways {
    fn nothing_at(&self) -> std::sync::MutexGuard<'_, Option<Version>> {
        self.nothing_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask_gateway(&self, about: Option<AttemptId>, request: Request) -> Result<Reply, String> {
        let shell = &self.shell;
        if let Some(desk) = shell.members.desk() {
            let is_end = matches!(request, Request::Finish { .. });
            let reply = desk.serve(shell.id, request).await;
            if is_end {
                shell.members.jobs_changed.notify_one();
            }
            return Ok(reply);
        }
        let body = encode(&request)?;
        let mut last = String::from("no gateway is up");
        for gateway in self.in_order(about) {
            match shell.transport.request(gateway, ATTEMPTS, body.clone(), DESK_TIMEOUT).await {
                Ok(answer) => return decode(&answer),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }
}

/// The gateways' way to the nodes that run jobs, and to the leader.
pub struct Nodes {
    pub shell: Shell,
}

#[async_trait]
impl JobNodes for Nodes {
    async fn log(&self, node: NodeId, attempt: AttemptId, offset: u64) -> Result<LogPart, String> {
        if node == self.shell.id {
            let agent = self.shell.members.agent().ok_or("this node runs no jobs")?;
            return agent.log(attempt, offset).await;
        }
        let body = encode(&(attempt, offset))?;
        let answer = self.shell.transport.request(node, JOB_LOG, body, LOG_TIMEOUT).await;
        decode(&answer.map_err(|error| error.to_string())?)
    }

    async fn capacity(&self, tenant: TenantId, spec: &JobSpec) -> Result<Capacity, String> {
        let asked = (tenant, spec.clone());
        if self.shell.is_leader() {
            return self.shell.members.capacity(asked).await;
        }
        let leader = self.shell.members.leader().ok_or("no leader is known now; try again")?;
        let answer = self.shell.transport.request(leader, CAPACITY, encode(&asked)?, LOG_TIMEOUT).await;
        decode(&answer.map_err(|error| error.to_string())?)
    }

    async fn never(&self, spec: &JobSpec) -> Result<Never, String> {
        let asked = (spec.resources.clone(), spec.site.clone(), matches!(spec.work, Work::Module(_)));
        if self.shell.is_leader() {
            return self.shell.members.never(asked).await;
        }
        let leader = self.shell.members.leader().ok_or("no leader is known now; try again")?;
        let answer = self.shell.transport.request(leader, NEVER, encode(&asked)?, LOG_TIMEOUT).await;
        decode(&answer.map_err(|error| error.to_string())?)
    }

    async fn check_module(&self, work: ModuleWork, ptx: String, resources: Resources) -> Result<(), String> {
        let check = move || {
            let work = module_of(&work, ptx, 0);
            match &resources.gpu {
                // What a share without an amount holds is its card's to say.
                Some(share) if share.memory_mib == 0 => module::on_card::check(&work, u64::MAX).map(drop),
                Some(share) => {
                    module::on_card::check(&work, share.memory_mib.saturating_mul(1 << 20)).map(drop)
                }
                None => module::check(&work, resources.memory_bytes).map(drop),
            }
        };
        // Large texts take a while.
        let checked = tokio::task::spawn_blocking(check).await;
        checked.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    async fn why(&self, job: JobId) -> Result<Vec<String>, String> {
        if self.shell.is_leader() {
            return Ok(self.shell.members.explained.why(job));
        }
        let leader = self.shell.members.leader().ok_or("no leader is known now; try again")?;
        let answer = self.shell.transport.request(leader, WHY, encode(&job)?, LOG_TIMEOUT).await;
        decode(&answer.map_err(|error| error.to_string())?)
    }

    fn wake(&self) {
        self.shell.members.jobs_changed.notify_one();
    }
}
