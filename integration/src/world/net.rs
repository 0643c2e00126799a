//! A network that loses, delays, repeats and refuses, one direction at a time, and the nodes that hang on it.
//!
//! ```text
//! caller ─ travel ─> the other node's own task ─ travel ─> caller
//! ```
//!
//! Always: what arrived runs to its end on the node it arrived at, whether its caller still waits or not; a node that
//! has died neither hears nor says anything more, nor does anything that it left running.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use makai::disks::LocalDisks;
use makai_erasure::{DiskId, NodeId};
use makai_raft::handle::wire::{self, Kind};
use makai_raft::handle::{MetaNode, RaftPeerError, RaftPeers};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use super::Mutant;

/// Answers remembered by a network that replays them.
const REMEMBERED_MAX: usize = 4096;

/// One life of a node: from a start to its death.
#[derive(Debug, Clone)]
pub struct Seat {
    pub id: NodeId,
    /// Cancelled at its death.
    pub life: CancellationToken,
}

/// What a living node answers with.
pub struct Host {
    pub seat: Seat,
    pub meta: OnceLock<MetaNode>,
    pub disks: LocalDisks,
}

/// Why nothing came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Silence,
    Refused,
}

/// How the links are, apart from those that are cut.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Of a hundred messages, how many vanish.
    pub lost_percent: u32,
    /// Of a hundred requests to agreement, how many arrive twice.
    pub repeated_percent: u32,
    pub delay_ms_max: u64,
}

/// The network. Shared by all.
pub struct Net {
    mutant: Option<Mutant>,
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    hosts: BTreeMap<NodeId, Arc<Host>>,
    /// From, to.
    cut: BTreeSet<(NodeId, NodeId)>,
    weather: Weather,
    /// Nodes that answer with other bytes than they hold.
    liars: BTreeSet<NodeId>,
    /// Disks that are gone for good.
    lost: BTreeSet<DiskId>,
    replays: HashMap<Bytes, Bytes>,
}

impl Net {
    #[must_use]
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Arc<Self> {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            hosts: BTreeMap::new(),
            cut: BTreeSet::new(),
            weather: Weather::default(),
            liars: BTreeSet::new(),
            lost: BTreeSet::new(),
            replays: HashMap::new(),
        };
        Arc::new(Self { mutant, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn mutant(&self) -> Option<Mutant> {
        self.mutant
    }

    pub fn join(&self, host: Arc<Host>) {
        self.state().hosts.insert(host.seat.id, host);
    }

    pub fn leave(&self, id: NodeId) {
        self.state().hosts.remove(&id);
    }

    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.state().cut.insert((from, to));
    }

    pub fn mend(&self, from: NodeId, to: NodeId) {
        self.state().cut.remove(&(from, to));
    }

    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    pub fn set_lying(&self, id: NodeId, lies: bool) {
        let mut state = self.state();
        if lies {
            state.liars.insert(id)
        } else {
            state.liars.remove(&id)
        };
    }

    pub fn lose_disk(&self, disk: DiskId) {
        self.state().lost.insert(disk);
    }

    /// No cuts, no weather, no liars. What is dead or lost stays so.
    pub fn heal(&self) {
        let mut state = self.state();
        state.cut.clear();
        state.weather = Weather::default();
        state.liars.clear();
    }

    #[must_use]
    pub fn is_lost(&self, disk: DiskId) -> bool {
        self.state().lost.contains(&disk)
    }

    /// The bytes that `of` shows for those it holds.
    #[must_use]
    pub fn shown(&self, of: NodeId, bytes: Bytes) -> Bytes {
        let mut state = self.state();
        if !state.liars.contains(&of) || bytes.is_empty() {
            return bytes;
        }
        let mut bytes = bytes.to_vec();
        match state.rng.random_range(0..3) {
            0 => {
                let at = state.rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << state.rng.random_range(0..8);
            }
            1 => state.rng.fill(&mut bytes[..]),
            _ => _ = bytes.pop(),
        }
        bytes.into()
    }

    /// The node, if it lives and `from` does.
    pub fn host(&self, from: &Seat, to: NodeId) -> Result<Arc<Host>, Fault> {
        if from.life.is_cancelled() {
            return Err(Fault::Refused);
        }
        let mut state = self.state();
        match state.hosts.get(&to).cloned() {
            Some(host) => Ok(host),
            // A machine without power is silent, one without the process says no.
            None if state.rng.random_bool(0.5) => Err(Fault::Silence),
            None => Err(Fault::Refused),
        }
    }

    /// One message on its way: returns when it arrives, or never will.
    pub async fn travel(&self, from: NodeId, to: NodeId) -> Result<(), Fault> {
        let delay_ms = {
            let mut state = self.state();
            let Weather { lost_percent, delay_ms_max, .. } = state.weather;
            if state.cut.contains(&(from, to)) || state.rng.random_range(0..100) < lost_percent {
                return Err(Fault::Silence);
            }
            state.rng.random_range(0..=delay_ms_max)
        };
        if delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        }
        Ok(())
    }

    /// Has `serve` run on another node and brings its answer back, within `timeout`.
    pub async fn call<T, F>(
        &self,
        from: &Seat,
        to: NodeId,
        timeout: Duration,
        serve: impl FnOnce(Arc<Host>) -> F,
    ) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let exchange = async {
            self.travel(from.id, to).await?;
            let host = self.host(from, to)?;
            let life = host.seat.life.clone();
            let served = tokio::spawn(serve(host));
            let answer = tokio::select! {
                answer = served => answer.map_err(|_| Fault::Refused)?,
                () = life.cancelled() => return Err(Fault::Refused),
            };
            self.travel(to, from.id).await?;
            Ok(answer)
        };
        let waited = async {
            match exchange.await {
                Err(Fault::Silence) => std::future::pending().await,
                result => result,
            }
        };
        tokio::select! {
            result = tokio::time::timeout(timeout, waited) => result.unwrap_or(Err(Fault::Silence)),
            () = from.life.cancelled() => Err(Fault::Refused),
        }
    }

    fn is_repeated(&self) -> bool {
        let mut state = self.state();
        let percent = state.weather.repeated_percent;
        state.rng.random_range(0..100) < percent
    }

    /// Mutant: sometimes an old answer instead of the one that came.
    fn replayed(&self, question: Bytes, answer: Bytes) -> Bytes {
        let mut state = self.state();
        if state.rng.random_bool(0.2)
            && let Some(old) = state.replays.get(&question)
        {
            return old.clone();
        }
        if state.replays.len() < REMEMBERED_MAX && state.rng.random_bool(0.3) {
            state.replays.insert(question, answer.clone());
        }
        answer
    }
}

/// Agreement's way to other voters.
pub struct Voters {
    net: Arc<Net>,
    seat: Seat,
}

impl Voters {
    #[must_use]
    pub fn new(net: Arc<Net>, seat: Seat) -> Self {
        Self { net, seat }
    }
}

#[async_trait]
impl RaftPeers for Voters {
    async fn request(&self, to: NodeId, message: Bytes, timeout: Duration) -> Result<Bytes, RaftPeerError> {
        let from = self.seat.id;
        let is_repeated = self.net.is_repeated();
        let question = message.clone();
        let called = self.net.call(&self.seat, to, timeout, move |host| async move {
            let meta = host.meta.get()?;
            if is_repeated {
                meta.serve(from, message.clone()).await;
            }
            Some(meta.serve(from, message).await)
        });
        match called.await {
            Ok(Some(answer)) => {
                let is_query = matches!(wire::kind_of(&question), Ok(Kind::Query));
                match self.net.mutant() {
                    Some(Mutant::OldAnswersReplayed) if is_query => Ok(self.net.replayed(question, answer)),
                    _ => Ok(answer),
                }
            }
            Ok(None) => Err(RaftPeerError::Refused("it is no voter".into())),
            Err(Fault::Silence) => Err(RaftPeerError::Timeout),
            Err(Fault::Refused) => Err(RaftPeerError::Unreachable("no connection".into())),
        }
    }
}
