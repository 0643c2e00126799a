//! What nodes train, and what voters find who train parts of it again.
//!
//! ```text
//! announced ─ next epoch's beacon: the seed ─> checkpoints, committed one by one ─ next epoch's beacon: segments drawn
//!           ─> verdicts of voters ─ more than half agree ─> counted for the node, once
//! ```
//!
//! Always: the seed is of a beacon after the announcement, segments are of one after the last commitment, so that neither is
//! known before; one verdict of each voter; it is worth the least that those say who let it pass.

use makai_erasure::NodeId;

use super::{DONE, billing, claims, invalid, keys, need_late_rules, standing};
use crate::facts::accounts::{
    AccountsReply, CHECKPOINTS_MAX, Computed, Hash, TRAINING_WHY_BYTES_MAX, Training, TrainingVerdict,
};
use crate::facts::cluster::{Node, Role};
use crate::facts::command::Refusal;
use crate::machine::draft::{Draft, Outcome, keys_in, read};
use crate::machine::keys as facts;

/// Trainings of one node that are kept.
const TRAININGS_MAX: usize = 64;

fn find(draft: &Draft<'_>, node: &NodeId, spec: &Hash) -> Outcome<Training> {
    let found: Option<Training> = read(draft, &keys::training(node, spec))?;
    found.ok_or_else(|| {
        Refusal::NotFound(format!("a training of {spec} by node {node}; announce it first")).into()
    })
}

/// Again: changes nothing.
pub fn announce(
    draft: &mut Draft<'_>,
    node: &NodeId,
    spec: &Hash,
    checkpoints: u32,
) -> Outcome<AccountsReply> {
    need_late_rules(draft)?;
    let known: Option<Node> = read(draft, &facts::node(node))?;
    if !known.is_some_and(|known| known.roles.contains(&Role::Compute)) {
        return Err(invalid(format!("node {node} computes nothing: give it the role `compute`")));
    }
    if !(2..=CHECKPOINTS_MAX).contains(&checkpoints) {
        return Err(invalid(format!("a training has 2 to {CHECKPOINTS_MAX} checkpoints")));
    }
    let place = keys::training(node, spec);
    if let Some(known) = read::<Training>(draft, &place)? {
        if known.checkpoints != checkpoints {
            return Err(invalid("this training is announced with another count of checkpoints"));
        }
        return Ok(DONE);
    }
    make_room(draft, node)?;
    let announced = standing(draft)?.open;
    let (commitments, verdicts, outcome) = (Vec::new(), Vec::new(), None);
    let training =
        Training { spec: *spec, node: *node, checkpoints, announced, commitments, verdicts, outcome };
    draft.write(place, &training)?;
    Ok(DONE)
}

/// The one that was announced first makes room. If it is announced again it has another seed, and is other work.
fn make_room(draft: &mut Draft<'_>, node: &NodeId) -> Outcome<()> {
    let prefix = keys::trainings_of(node);
    let all = keys_in(draft, &prefix, &facts::end_of(&prefix), TRAININGS_MAX)?;
    if all.len() < TRAININGS_MAX {
        return Ok(());
    }
    let mut oldest: Option<(u64, Vec<u8>)> = None;
    for key in all {
        let announced = read::<Training>(draft, &key)?.map_or(0, |training| training.announced);
        if oldest.as_ref().is_none_or(|(known, _)| announced < *known) {
            oldest = Some((announced, key));
        }
    }
    if let Some((_, key)) = oldest {
        draft.delete(key);
    }
    Ok(())
}

/// In order, one after the other, from the epoch after the announcement on.
pub fn commit(
    draft: &mut Draft<'_>,
    node: &NodeId,
    spec: &Hash,
    at: u32,
    hash: &Hash,
) -> Outcome<AccountsReply> {
    let mut training = find(draft, node, spec)?;
    let open = standing(draft)?.open;
    if open <= training.announced {
        return Err(invalid(format!(
            "the seed is of epoch {}, which has not begun; commit from then on",
            training.announced + 1
        )));
    }
    if let Some((known, _)) = training.commitments.get(at as usize) {
        return if known == hash {
            Ok(DONE)
        } else {
            Err(invalid(format!("checkpoint {at} is committed to already, with {known}")))
        };
    }
    let next = training.commitments.len();
    if at as usize != next || at >= training.checkpoints {
        return Err(invalid(format!("checkpoint {next} of {} is next", training.checkpoints)));
    }
    training.commitments.push((*hash, open));
    draft.write(keys::training(node, spec), &training)?;
    Ok(DONE)
}

/// One of each voter; counted once more than half of the signers agree.
pub fn judge(
    draft: &mut Draft<'_>,
    node: &NodeId,
    spec: &Hash,
    verdict: &TrainingVerdict,
) -> Outcome<AccountsReply> {
    let mut training = find(draft, node, spec)?;
    let open = standing(draft)?.open;
    if training.complete_since().is_none_or(|since| since >= open) {
        return Err(invalid("it is judged from the epoch after its last checkpoint on"));
    }
    let signers = claims::signers(draft)?;
    let is_signer = signers.iter().any(|signer| signer.node == verdict.verifier);
    if !is_signer || verdict.verifier == *node {
        return Err(invalid(format!(
            "node {} judges nothing here: voters do, and none its own",
            verdict.verifier
        )));
    }
    if verdict.why.len() > TRAINING_WHY_BYTES_MAX || verdict.has_passed != verdict.why.is_empty() {
        return Err(invalid("a verdict says why where it did not pass, shortly"));
    }
    if training.verdicts.iter().any(|known| known.verifier == verdict.verifier) {
        return Ok(DONE);
    }
    training.verdicts.push(verdict.clone());
    if training.outcome.is_none() {
        let more_than_half = signers.len() / 2 + 1;
        let count = |passed| training.verdicts.iter().filter(|one| one.has_passed == passed).count();
        let outcome = [true, false].into_iter().find(|passed| count(*passed) >= more_than_half);
        if let Some(has_passed) = outcome {
            training.outcome = Some(has_passed);
            let mut worth: Vec<u64> =
                training.verdicts.iter().filter(|one| one.has_passed).map(|one| one.work_mut).collect();
            worth.sort_unstable();
            let train_mut = if has_passed { worth.first().copied().unwrap_or(0) } else { 0 };
            let computed = Computed { pass: has_passed.into(), fail: (!has_passed).into(), train_mut };
            billing::credit_node(draft, *node, None, computed)?;
        }
    }
    draft.write(keys::training(node, spec), &training)?;
    Ok(DONE)
}
