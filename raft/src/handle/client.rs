//! The facts from any node, voter or not, through leader changes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use makai_erasure::NodeId;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::node::MetaNode;
use super::proposer::Results;
use super::wire::{self, COMMAND_BYTES_MAX, Kind, Trouble};
use super::{MetaError, Metadata, RaftPeers};
use crate::facts::GroupId;
use crate::facts::command::{Command, Envelope, Refusal, Reply};
use crate::facts::query::{Answer, Query};

/// Commands that wait to be sent.
const QUEUE_LEN_MAX: usize = 16_384;
/// Commands in one request, and their encoded bytes if there is more than one.
const COMMANDS_PER_REQUEST_MAX: usize = 1024;
const BYTES_PER_REQUEST_MAX: usize = 1 << 20;
/// Requests in flight; commands that come meanwhile share the next one.
const REQUESTS_IN_FLIGHT_MAX: usize = 2;
/// Pauses between attempts: doubling from the first to the last.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(300);

#[derive(Debug, Clone)]
pub struct MetaClientConfig {
    /// Drawn at random by each process, at each start.
    pub session: u64,
    pub group: GroupId,
    /// After it, the caller is told that nobody answers.
    pub deadline_ms: u64,
    /// After it, another voter is asked.
    pub attempt_timeout_ms: u64,
}

impl MetaClientConfig {
    /// 10 s in all, 2 s for each attempt.
    #[must_use]
    pub fn new(session: u64) -> Self {
        Self { session, group: GroupId(0), deadline_ms: 10_000, attempt_timeout_ms: 2000 }
    }
}

/// The port [`Metadata`] of one process. Clones share a session.
#[derive(Clone)]
pub struct MetaClient {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Waiting>,
}

struct Shared {
    config: MetaClientConfig,
    local: Option<MetaNode>,
    voters: watch::Receiver<Vec<NodeId>>,
    peers: Arc<dyn RaftPeers>,
    /// Who led when last heard of.
    leader: Mutex<Option<NodeId>>,
    serials: Mutex<Serials>,
}

#[derive(Default)]
struct Serials {
    next: u64,
    unanswered: BTreeSet<u64>,
}

struct Waiting {
    serial: Serial,
    command: Command,
    bytes: usize,
    deadline: Instant,
    answer: oneshot::Sender<Result<Reply, MetaError>>,
}

/// Counts as unanswered until it is dropped.
struct Serial {
    number: u64,
    shared: Arc<Shared>,
}

impl Drop for Serial {
    fn drop(&mut self) {
        let mut serials = self.shared.serials.lock().unwrap_or_else(PoisonError::into_inner);
        serials.unanswered.remove(&self.number);
    }
}

impl MetaClient {
    /// `local`: this process's voter, if it has one; it is asked first. `voters`: who can be asked. Must be
    /// called on the runtime that is to carry the requests.
    #[must_use]
    pub fn new(
        local: Option<MetaNode>,
        voters: watch::Receiver<Vec<NodeId>>,
        peers: Arc<dyn RaftPeers>,
        config: MetaClientConfig,
    ) -> Self {
        let shared = Arc::new(Shared {
            config,
            local,
            voters,
            peers,
            leader: Mutex::new(None),
            serials: Mutex::new(Serials { next: 1, unanswered: BTreeSet::new() }),
        });
        let (queue, waiting) = mpsc::channel(QUEUE_LEN_MAX);
        tokio::spawn(group(shared.clone(), waiting));
        Self { shared, queue }
    }
}

#[async_trait]
impl Metadata for MetaClient {
    async fn propose(&self, command: Command) -> Result<Reply, MetaError> {
        let invalid = |why: String| MetaError::Refused(Refusal::Invalid(why));
        let bytes = wire::encoded_len(&command).map_err(|trouble| invalid(trouble.to_string()))?;
        if bytes > COMMAND_BYTES_MAX {
            return Err(invalid(format!("the command has {bytes} bytes, {COMMAND_BYTES_MAX} are allowed")));
        }
        let room = self.queue.try_reserve().map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => MetaError::Overloaded,
            mpsc::error::TrySendError::Closed(()) => MetaError::Unavailable("this process stops".into()),
        })?;
        let (answer, answered) = oneshot::channel();
        let deadline = super::timer() + Duration::from_millis(self.shared.config.deadline_ms);
        room.send(Waiting { serial: self.shared.next_serial(), command, bytes, deadline, answer });
        answered.await.unwrap_or_else(|_| Err(MetaError::Unavailable("this process stops".into())))
    }

    async fn query(&self, query: Query) -> Result<Answer, MetaError> {
        let deadline = super::timer() + Duration::from_millis(self.shared.config.deadline_ms);
        let mut search = Search::new(&self.shared);
        loop {
            let to = if search.attempts == 0 {
                self.shared.local_key().or_else(|| search.next())
            } else {
                search.next()
            };
            search.attempts += 1;
            let trouble = match to {
                None => Trouble::Unavailable("no voter is known".into()),
                Some(to) => match self.shared.query_once(to, &query, deadline).await {
                    Ok(answer) => return answer.map_err(MetaError::Refused),
                    Err(trouble) => trouble,
                },
            };
            search.pause(trouble, to, deadline).await?;
        }
    }
}

/// The port [`Metadata`] for loops of a process with a voter: questions are answered here, without a word to others (see
/// [`MetaNode`]), since loops look again soon, and what they propose is checked against the facts as they are then.
pub struct Nearby {
    voter: MetaNode,
    facts: Arc<dyn Metadata>,
}

impl Nearby {
    /// `facts`: where proposals go.
    #[must_use]
    pub fn new(voter: MetaNode, facts: Arc<dyn Metadata>) -> Self {
        Self { voter, facts }
    }
}

#[async_trait]
impl Metadata for Nearby {
    async fn propose(&self, command: Command) -> Result<Reply, MetaError> {
        self.facts.propose(command).await
    }

    /// As this voter knows: not linearizable.
    async fn query(&self, query: Query) -> Result<Answer, MetaError> {
        match self.voter.query_here(query).await {
            Ok(answer) => answer.map_err(MetaError::Refused),
            Err(trouble) => Err(MetaError::Unavailable(trouble.to_string())),
        }
    }
}

/// Sends what has gathered while earlier requests were in flight.
async fn group(shared: Arc<Shared>, mut waiting: mpsc::Receiver<Waiting>) {
    let slots = Arc::new(Semaphore::new(REQUESTS_IN_FLIGHT_MAX));
    let mut left_over = None;
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let first = match left_over.take() {
            Some(first) => first,
            None => match waiting.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let mut bytes = first.bytes;
        let mut group = vec![first];
        while group.len() < COMMANDS_PER_REQUEST_MAX
            && let Ok(next) = waiting.try_recv()
        {
            if bytes + next.bytes > BYTES_PER_REQUEST_MAX {
                left_over = Some(next);
                break;
            }
            bytes += next.bytes;
            group.push(next);
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            send(&shared, group).await;
            drop(slot);
        });
    }
}

/// Sends a group, with the same serials, until it is answered or its time is over.
async fn send(shared: &Arc<Shared>, group: Vec<Waiting>) {
    let Some(deadline) = group.iter().map(|waiting| waiting.deadline).min() else { return };
    let mut envelopes: Vec<Envelope> = Vec::with_capacity(group.len());
    let mut callers = Vec::with_capacity(group.len());
    for waiting in group {
        envelopes.push(Envelope {
            session: shared.config.session,
            serial: waiting.serial.number,
            answered_below: 0,
            command: waiting.command,
        });
        callers.push((waiting.serial, waiting.answer));
    }
    let mut search = Search::new(shared);
    let error = loop {
        let answered_below = shared.answered_below();
        for envelope in &mut envelopes {
            envelope.answered_below = answered_below;
        }
        let to = search.next();
        search.attempts += 1;
        let trouble = match to {
            None => Trouble::Unavailable("no voter is known".into()),
            Some(to) => match shared.propose_once(to, &envelopes, deadline).await {
                Ok(results) if results.len() == callers.len() => {
                    shared.remember_leader(Some(to));
                    for ((serial, answer), result) in callers.into_iter().zip(results) {
                        drop(serial);
                        drop(answer.send(result.map_err(MetaError::Refused)));
                    }
                    return;
                }
                Ok(_) => Trouble::Malformed("replies are missing".into()),
                Err(trouble) => trouble,
            },
        };
        if let Err(error) = search.pause(trouble, to, deadline).await {
            break error;
        }
    };
    for (_, answer) in callers {
        drop(answer.send(Err(error.clone())));
    }
}

impl Shared {
    fn next_serial(self: &Arc<Self>) -> Serial {
        let mut serials = self.serials.lock().unwrap_or_else(PoisonError::into_inner);
        let number = serials.next;
        serials.next += 1;
        serials.unanswered.insert(number);
        Serial { number, shared: self.clone() }
    }

    fn answered_below(&self) -> u64 {
        let serials = self.serials.lock().unwrap_or_else(PoisonError::into_inner);
        serials.unanswered.first().copied().unwrap_or(serials.next)
    }

    fn local_key(&self) -> Option<NodeId> {
        self.local.as_ref().map(MetaNode::node)
    }

    fn remember_leader(&self, leader: Option<NodeId>) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = leader;
    }

    fn leader(&self) -> Option<NodeId> {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attempt_timeout(&self, deadline: Instant) -> Duration {
        let left = deadline.saturating_duration_since(super::timer());
        left.min(Duration::from_millis(self.config.attempt_timeout_ms))
    }

    async fn propose_once(
        &self,
        to: NodeId,
        envelopes: &[Envelope],
        deadline: Instant,
    ) -> Result<Results, Trouble> {
        let timeout = self.attempt_timeout(deadline);
        if let Some(local) = self.local.as_ref().filter(|local| local.node() == to) {
            return match tokio::time::timeout(timeout, local.propose(envelopes.to_vec())).await {
                Ok(result) => result,
                Err(_) => Err(Trouble::Unavailable("no answer in time".into())),
            };
        }
        let message = wire::encode(Kind::Propose as u8, self.config.group, &envelopes)?;
        // A leader that is gone answers nobody, and is missed only after a while: the voter here may hear of its
        // successor before. The command may have been applied; it keeps its serial.
        let succeeded = async {
            match &self.local {
                Some(local) => {
                    local.led_anew(to).await;
                    local.leader()
                }
                None => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            answer = self.peers.request(to, message, timeout) => answer,
            leader = succeeded => return Err(Trouble::NotLeader(leader)),
        };
        wire::decode_answer(Kind::Propose, &answer.map_err(|error| Trouble::Unavailable(error.to_string()))?)
    }

    async fn query_once(
        &self,
        to: NodeId,
        query: &Query,
        deadline: Instant,
    ) -> Result<Result<Answer, Refusal>, Trouble> {
        let timeout = self.attempt_timeout(deadline);
        if let Some(local) = self.local.as_ref().filter(|local| local.node() == to) {
            return match tokio::time::timeout(timeout, local.query(query.clone())).await {
                Ok(result) => result,
                Err(_) => Err(Trouble::Unavailable("no answer in time".into())),
            };
        }
        let message = wire::encode(Kind::Query as u8, self.config.group, query)?;
        let answer = self.peers.request(to, message, timeout).await;
        wire::decode_answer(Kind::Query, &answer.map_err(|error| Trouble::Unavailable(error.to_string()))?)
    }
}

/// Whom to ask next.
struct Search<'a> {
    shared: &'a Shared,
    attempts: usize,
    /// Named by whoever was asked last.
    hint: Option<NodeId>,
    pause: Duration,
}

impl<'a> Search<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self { shared, attempts: 0, hint: shared.leader(), pause: PAUSE_MIN }
    }

    fn next(&mut self) -> Option<NodeId> {
        if let Some(hint) = self.hint.take() {
            return Some(hint);
        }
        if let Some(leader) =
            self.shared.local.as_ref().and_then(MetaNode::leader).filter(|_| self.attempts < 2)
        {
            return Some(leader);
        }
        let voters = self.shared.voters.borrow();
        let first = (self.shared.config.session % 64) as usize;
        voters.get((first + self.attempts) % voters.len().max(1)).copied().or_else(|| self.shared.local_key())
    }

    /// Learns from a failure and waits, or says that the time is over.
    async fn pause(
        &mut self,
        trouble: Trouble,
        asked: Option<NodeId>,
        deadline: Instant,
    ) -> Result<(), MetaError> {
        let pause = match &trouble {
            Trouble::NotLeader(Some(leader)) if Some(*leader) != asked => {
                self.hint = Some(*leader);
                // Once at once; two that point to each other are no reason to hurry.
                if self.attempts <= 1 { Duration::ZERO } else { self.pause }
            }
            Trouble::Malformed(why) => return Err(MetaError::Unavailable(why.clone())),
            _ => self.pause,
        };
        if self.shared.leader() == asked {
            self.shared.remember_leader(self.hint);
        }
        if super::timer() + pause >= deadline {
            return Err(match trouble {
                Trouble::Overloaded => MetaError::Overloaded,
                trouble => MetaError::Unavailable(trouble.to_string()),
            });
        }
        if !pause.is_zero() {
            self.pause = (self.pause * 2).min(PAUSE_MAX);
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }
}
