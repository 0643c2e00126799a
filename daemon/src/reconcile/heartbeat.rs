//! Tells the leader that this node lives and how full its disks are, and which slots have come over; learns that the map changed.

use std::time::Duration;

use makai_erasure::NodeId;
use makai_gpu_runtime::inventory::Inventory;

use super::Shell;
use crate::clock;
use crate::members::{DiskBeat, HEARTBEAT, Heartbeat, HeartbeatAnswer, decode, encode};

const BEAT_EVERY: Duration = Duration::from_millis(500);
const BEAT_TIMEOUT: Duration = Duration::from_millis(1500);

/// A leader that takes longer may be cut off from here: others are asked to tell it.
const SLOW_AFTER: Duration = Duration::from_millis(700);
/// Voters asked to pass a heartbeat on.
const PASSED_ON_BY: usize = 2;

pub async fn run(shell: Shell) {
    let mut leader: Option<NodeId> = None;
    let mut next_voter = 0;
    loop {
        tokio::select! {
            goes_on = shell.pause(BEAT_EVERY) => if !goes_on { return },
            () = shell.progress.filled_changed.notified() => {}
        }
        let beat = Heartbeat {
            disks: disk_beats(&shell),
            repair: shell.progress.now(),
            filled: shell.progress.filled(),
            compute: offered(&shell),
            line: shell.line.now(leader.and_then(|to| shell.transport.peer_stats(to)).map(|stats| stats.rtt)),
            // Whoever is asked first, or instead of a leader that does not answer, may not lead.
            is_to_pass_on: leader.is_none(),
            of_others: shell.members.take_to_pass_on(),
        };
        let own_view = shell.members.meta().and_then(makai_raft::handle::MetaNode::leader);
        // A node that may become a voter is none yet: it asks the others who leads.
        let others: Vec<NodeId> = shell.members.voters().into_iter().filter(|id| *id != shell.id).collect();
        let Some(to) = own_view.or(leader).or_else(|| others.get(next_voter % others.len().max(1)).copied())
        else {
            continue;
        };
        let asked_at = clock::instant();
        let answer = if to == shell.id {
            shell.members.hear(shell.id, beat);
            Ok(shell.members.heartbeat_answer())
        } else {
            send_or_have_passed_on(&shell, to, beat, &others, next_voter).await
        };
        match answer {
            Ok(answer) => {
                leader = answer.leader;
                shell.members.note_leader(leader);
                if let Some(facts_at) = answer.facts_at.filter(|_| leader == Some(to)) {
                    shell.members.news.told(facts_at, asked_at);
                }
                next_voter += usize::from(leader.is_none());
                if answer.map_epoch > shell.map.get().map.epoch {
                    shell.map_changed.notify_one();
                }
            }
            Err(error) => {
                tracing::debug!(node = %to, %error, "the heartbeat was not heard");
                leader = None;
                next_voter += 1;
            }
        }
    }
}

/// What this node offers to jobs, with what it holds of their inputs by now.
fn offered(shell: &Shell) -> Option<Inventory> {
    let held = shell.members.agent().map(|agent| agent.held()).unwrap_or_default();
    Some(Inventory { held, ..shell.jobs.offered()? })
}

async fn send(shell: &Shell, to: NodeId, beat: &Heartbeat) -> Result<HeartbeatAnswer, String> {
    let answer = shell.transport.request(to, HEARTBEAT, encode(beat)?, BEAT_TIMEOUT).await;
    decode(&answer.map_err(|error| error.to_string())?)
}

/// Sends a heartbeat; where no answer comes soon, has other voters tell the leader meanwhile.
async fn send_or_have_passed_on(
    shell: &Shell,
    to: NodeId,
    mut beat: Heartbeat,
    voters: &[NodeId],
    first: usize,
) -> Result<HeartbeatAnswer, String> {
    let sent = {
        let beat = beat.clone();
        async move { send(shell, to, &beat).await }
    };
    tokio::pin!(sent);
    let failed = match tokio::time::timeout(SLOW_AFTER, &mut sent).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => Some(error),
        Err(_) => None,
    };
    beat.is_to_pass_on = true;
    let others: Vec<NodeId> = voters.iter().copied().filter(|voter| *voter != to).collect();
    let asked = (0..others.len().min(PASSED_ON_BY)).map(|at| others[(first + at) % others.len()]);
    let passed_on = asked.map(|other| send(shell, other, &beat));
    let passed_on = futures::future::join_all(passed_on);
    match failed {
        Some(error) => {
            passed_on.await;
            Err(error)
        }
        None => futures::future::join(sent, passed_on).await.0,
    }
}

/// How this node's disks are.
#[must_use]
pub fn disk_beats(shell: &Shell) -> Vec<DiskBeat> {
    let beat = |(disk, store): (&makai_erasure::DiskId, &makai_erasure::store::ShardStore)| {
        let usage = store.usage();
        DiskBeat {
            disk: *disk,
            capacity_bytes: usage.capacity,
            free_bytes: usage.free,
            shard_count: usage.shard_count,
            live_bytes: usage.live_bytes,
            held_bytes: usage.held_bytes,
            set_aside_bytes: usage.set_aside_bytes,
            body_bytes: usage.body_bytes,
        }
    };
    shell.disks.iter().map(beat).collect()
}
