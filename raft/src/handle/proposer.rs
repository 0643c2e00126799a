//! What waits while proposals are in flight becomes the next one: one log entry, one fsync on each voter.

use std::sync::Arc;

use openraft::Raft;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::wire::{self, Trouble};
use crate::facts::Timestamp;
use crate::facts::command::{Batch, Envelope, Refusal, Reply};
use crate::log::types::{Proposal, Types, VoterNode};
use crate::store::RaftMachine;

pub(super) type Results = Vec<Result<Reply, Refusal>>;

/// Requests that wait.
const QUEUE_LEN_MAX: usize = 16_384;
/// Encoded bytes of commands that wait or are in flight.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Encoded bytes of one proposal, if it holds more than one request.
const PROPOSAL_BYTES_MAX: usize = 1 << 20;
const PROPOSAL_COMMANDS_MAX: usize = 4096;
/// Proposals in flight: enough that replication never idles, few enough that batches grow under load.
const IN_FLIGHT_MAX: usize = 2;

struct Ask {
    envelopes: Vec<Envelope>,
    bytes: usize,
    answer: oneshot::Sender<Result<Results, Trouble>>,
    _room: OwnedSemaphorePermit,
}

pub(super) struct Proposer {
    queue: mpsc::Sender<Ask>,
    room: Arc<Semaphore>,
}

impl Proposer {
    /// Runs until it is dropped. `now`: milliseconds of Unix time.
    pub fn start(raft: Raft<Types, RaftMachine>, now: Arc<dyn Fn() -> u64 + Send + Sync>) -> Self {
        let (queue, asked) = mpsc::channel(QUEUE_LEN_MAX);
        tokio::spawn(run(raft, now, asked));
        Self { queue, room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)) }
    }

    /// What came of each envelope, in order.
    pub async fn propose(&self, envelopes: Vec<Envelope>) -> Result<Results, Trouble> {
        if envelopes.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = wire::encoded_len(&envelopes)?;
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = self.room.clone().try_acquire_many_owned(permits).map_err(|_| Trouble::Overloaded)?;
        let (answer, answered) = oneshot::channel();
        let ask = Ask { envelopes, bytes, answer, _room: room };
        self.queue.try_send(ask).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Trouble::Overloaded,
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        answered.await.map_err(|_| stopped())?
    }
}

fn stopped() -> Trouble {
    Trouble::Unavailable("this voter stops".into())
}

async fn run(
    raft: Raft<Types, RaftMachine>,
    now: Arc<dyn Fn() -> u64 + Send + Sync>,
    mut asked: mpsc::Receiver<Ask>,
) {
    let slots = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut left_over = None;
    let mut last_stamp = 0;
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let first = match left_over.take() {
            Some(ask) => ask,
            None => match asked.recv().await {
                Some(ask) => ask,
                None => return,
            },
        };
        let mut bytes = first.bytes;
        let mut count = first.envelopes.len();
        let mut asks = vec![first];
        while let Ok(ask) = asked.try_recv() {
            if bytes + ask.bytes > PROPOSAL_BYTES_MAX || count + ask.envelopes.len() > PROPOSAL_COMMANDS_MAX {
                left_over = Some(ask);
                break;
            }
            bytes += ask.bytes;
            count += ask.envelopes.len();
            asks.push(ask);
        }
        // Whoever has given up asks again, with the same serials, if it still wants it.
        asks.retain(|ask| !ask.answer.is_closed());
        if asks.is_empty() {
            continue;
        }
        last_stamp = now().max(last_stamp);
        let mut envelopes = Vec::with_capacity(count);
        let mut waiting = Vec::with_capacity(asks.len());
        for mut ask in asks {
            let count = ask.envelopes.len();
            envelopes.append(&mut ask.envelopes);
            waiting.push((count, ask));
        }
        let proposal = Proposal::new(Batch { at: Timestamp(last_stamp), envelopes });
        let (responder, completed) = ProgressResponder::complete_only();
        // In order: the next is handed over after this one.
        let submitted = raft.client_write_ff(proposal, Some(responder)).await;
        let leader = {
            let raft = raft.clone();
            move |id: Option<u64>| leader_key(&raft, id)
        };
        tokio::spawn(async move {
            let result = match submitted {
                Err(fatal) => Err(Trouble::Unavailable(fatal.to_string())),
                Ok(()) => match completed.await {
                    Err(_) => Err(stopped()),
                    Ok(Ok(response)) => Ok(response.data.0),
                    Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                        let known = forward.leader_node.map(|node: VoterNode| node.key);
                        Err(Trouble::NotLeader(known.or_else(|| leader(forward.leader_id))))
                    }
                    Ok(Err(other)) => Err(Trouble::Unavailable(other.to_string())),
                },
            };
            drop(slot);
            let mut results = result.map(Vec::into_iter);
            for (count, ask) in waiting {
                let part = match &mut results {
                    Ok(results) => {
                        let part: Results = results.take(count).collect();
                        if part.len() == count {
                            Ok(part)
                        } else {
                            Err(Trouble::Unavailable("replies are missing".into()))
                        }
                    }
                    Err(trouble) => Err(trouble.clone()),
                };
                drop(ask.answer.send(part));
            }
        });
    }
}

pub(super) fn leader_key(raft: &Raft<Types, RaftMachine>, id: Option<u64>) -> Option<makai_erasure::NodeId> {
    use openraft::async_runtime::WatchReceiver;
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow_watched();
    metrics.membership_config.membership().get_node(&id?).map(|node| node.key)
}
