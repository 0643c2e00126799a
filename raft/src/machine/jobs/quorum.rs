//! Results that count only where nodes of different owners agree.
//!
//! ```text
//! a result ─ of a node that agreed often ─> mostly accepted as it is
//!          └ else a vote: the task waits for a node of another owner ─ enough equal votes ─> accepted, voters credited
//!                                                                   └ too many that differ ─> failed, nobody credited
//! ```
//!
//! Who is trusted: after [`TRUST_AFTER`] agreements in a row a node's result stands alone, but for one in so many as it has
//! agreed times; one disagreement ends that. So two runs a task become 1.1 after ten agreements and 1.02 after fifty.
//! Source: BOINC, *Adaptive replication*.
//!
//! Where the cluster's rule is that all lose, a task whose nodes differed earns nobody anything: the majority's outputs are
//! published all the same, and only who was wrong is blamed.
//!
//! Always: no two votes of one task are of one owner; only outputs of an accepted result are published, and those of the
//! attempt that made the majority; a vote earns nothing before its task is decided.

use makai_erasure::NodeId;
use serde::{Deserialize, Serialize};

use super::super::accounts::{billing, quorum_rules};
use super::super::draft::{Draft, read};
use super::super::keys as facts;
use super::super::kv::{KvError, View};
use super::keys;
use crate::facts::accounts::{Computed, SliceTime};
use crate::facts::cluster::Node;
use crate::facts::jobs::{AttemptId, Job, JobId, QUORUM_EXTRA, Statement};

/// Agreements in a row until a node's result may stand alone.
const TRUST_AFTER: u32 = 10;

/// One result that waits for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Vote {
    node: NodeId,
    attempt: u32,
    /// BLAKE3 of what it published: names, sizes, hashes.
    result: [u8; 32],
    /// What its node held for it, earned once the task is decided.
    slices: SliceTime,
}

/// What becomes of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is the task's.
    Accepted,
    /// Another node is asked.
    Waits,
    /// It is the task's, and nobody earns it: nodes differed, and the cluster has all of them lose then.
    Forfeited,
    /// So many differ that none is believed.
    Undecided,
}

/// What the votes come to, the newest last: strictly more than half agree with it, and as many as the quorum needs.
fn decide(results: &[[u8; 32]], quorum: u32) -> Decision {
    let Some(newest) = results.last() else { return Decision::Waits };
    let agreeing = results.iter().filter(|result| *result == newest).count();
    let needed = quorum as usize / 2 + 1;
    if agreeing >= needed && agreeing * 2 > results.len() {
        Decision::Accepted
    } else if results.len() >= (quorum + QUORUM_EXTRA) as usize {
        Decision::Undecided
    } else {
        Decision::Waits
    }
}

/// Whether a node that agreed `streak` times in a row is believed alone this time. `lot`: any number that it did not choose.
fn stands_alone(streak: u32, lot: u64) -> bool {
    streak >= TRUST_AFTER && !lot.is_multiple_of(u64::from(streak))
}

fn votes(view: &dyn View, job: JobId, index: u32) -> Result<Vec<Vote>, KvError> {
    Ok(read(view, &keys::votes(job, index))?.unwrap_or_default())
}

/// Nodes whose results of a task wait: none of them, and none of their owners' nodes, may try it again.
pub fn voters(view: &dyn View, job: JobId, index: u32) -> Result<Vec<NodeId>, KvError> {
    Ok(votes(view, job, index)?.into_iter().map(|vote| vote.node).collect())
}

/// Whether a node may not try a task because it, or another of its owner's nodes, has.
pub fn is_barred(view: &dyn View, job: JobId, index: u32, node: NodeId) -> Result<bool, KvError> {
    let voters = voters(view, job, index)?;
    if voters.contains(&node) {
        return Ok(true);
    }
    if voters.is_empty() {
        return Ok(false);
    }
    let owner_of = |id: &NodeId| {
        read::<Node>(view, &facts::node(id)).map(|node| node.map(|node| node.owner).unwrap_or_default())
    };
    let owner = owner_of(&node)?;
    if owner.is_empty() {
        return Ok(false);
    }
    for voter in &voters {
        if owner_of(voter)? == owner {
            return Ok(true);
        }
    }
    Ok(false)
}

fn result_of(statement: &Statement) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("makai task result 1");
    for output in &statement.outputs {
        for text in [&output.bucket, &output.key] {
            hasher.update(&(text.len() as u64).to_be_bytes()).update(text.as_bytes());
        }
        hasher.update(&output.size.to_be_bytes()).update(&output.blake3);
    }
    *hasher.finalize().as_bytes()
}

/// A number that depends on when the result arrived, which its node does not choose.
fn lot(draft: &Draft<'_>, attempt: AttemptId, node: NodeId) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("makai quorum lot 1");
    hasher.update(&draft.now.0.to_be_bytes()).update(&node.0).update(&attempt.job.0.to_be_bytes());
    hasher.update(&attempt.index.to_be_bytes()).update(&attempt.attempt.to_be_bytes());
    hasher.finalize().as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// Takes a successful result of a task whose job wants a quorum. What its node held becomes its earning, or waits.
pub fn take(draft: &mut Draft<'_>, job: &Job, statement: &Statement) -> Result<Decision, KvError> {
    let Statement { attempt, node, .. } = statement;
    let (attempt, node) = (*attempt, *node);
    let place = keys::votes(job.id, attempt.index);
    let mut votes = votes(draft, job.id, attempt.index)?;
    let streak: u32 = read(draft, &keys::agreements(&node))?.unwrap_or(0);
    if votes.is_empty() && stands_alone(streak, lot(draft, attempt, node)) {
        return Ok(Decision::Accepted);
    }
    let slices = billing::slices_until_now(draft, job.id, attempt.index)?;
    votes.push(Vote { node, attempt: attempt.attempt, result: result_of(statement), slices });
    let results: Vec<[u8; 32]> = votes.iter().map(|vote| vote.result).collect();
    let mut decision = decide(&results, job.spec.quorum);
    match decision {
        Decision::Waits => draft.write(place, &votes)?,
        Decision::Undecided | Decision::Forfeited => draft.delete(place),
        Decision::Accepted => {
            draft.delete(place);
            let accepted = result_of(statement);
            let rules = quorum_rules(draft)?;
            let all_lose = rules.forfeits_all && results.iter().any(|result| *result != accepted);
            if all_lose {
                decision = Decision::Forfeited;
            }
            for (at, vote) in votes.into_iter().enumerate() {
                if all_lose {
                    billing::credit_verifier(draft, vote.node, &vote.slices, 1)?;
                    if vote.result == accepted {
                        continue;
                    }
                } else if rules.has_verifiers && at > 0 && vote.result == accepted {
                    billing::credit_verifier(draft, vote.node, &vote.slices, 0)?;
                }
                let is_right = vote.result == accepted;
                let computed = Computed { pass: is_right.into(), fail: (!is_right).into(), train_mut: 0 };
                // What the newest held is credited with the end of its attempt.
                let is_newest = vote.node == node && vote.attempt == attempt.attempt;
                let slices = (is_right && !is_newest).then_some(vote.slices);
                billing::credit_node(draft, vote.node, slices, computed)?;
                let place = keys::agreements(&vote.node);
                let streak: u32 = read(draft, &place)?.unwrap_or(0);
                draft.write(place, &if is_right { streak.saturating_add(1) } else { 0 })?;
            }
        }
    }
    Ok(decision)
}

#[cfg(test)]
mod tests;
