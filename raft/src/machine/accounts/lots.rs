//! Who draws lots with which key, and who says that it has won. Whether it has is settled by who computes the epoch: the
//! proof is sealed with the usage.

use bytes::Bytes;
use makai_erasure::NodeId;

use super::keys::{self, ReportKind};
use super::{DONE, invalid, ledger, meters, need_late_rules, refused, standing};
use crate::facts::accounts::{
    AccountsRefusal, AccountsReply, LOT_KEY_WAITS, LOT_PROOF_BYTES, LedgerEvent, Lot, LotBinding, LotKey,
    PURPOSE_LOTS,
};
use crate::facts::cluster::Node;
use crate::facts::command::Refusal;
use crate::machine::draft::{Draft, Outcome, read};
use crate::machine::keys as facts;
use crate::signatures::is_signed_by_node;

/// A new key replaces the one before it, and draws nothing for some epochs.
pub fn bind(draft: &mut Draft<'_>, binding: &LotBinding) -> Outcome<AccountsReply> {
    need_late_rules(draft)?;
    let LotBinding { node, key, node_signature } = binding;
    if read::<Node>(draft, &facts::node(node))?.is_none() {
        return Err(Refusal::NotFound(format!("node {node}")).into());
    }
    if !is_signed_by_node(*node, PURPOSE_LOTS, &key.0, node_signature) {
        return refused(AccountsRefusal::BadSignature("the node must sign for its key".into()));
    }
    let place = keys::lot_key(node);
    if read::<LotKey>(draft, &place)?.is_some_and(|known| known.key == *key) {
        return Ok(DONE);
    }
    let mut standing = standing(draft)?;
    let epoch = standing.open;
    draft.write(place, &LotKey { node: *node, key: *key, epoch })?;
    ledger::append(draft, &mut standing, &LedgerEvent::LotsBound { binding: binding.clone(), epoch })?;
    draft.write(keys::standing(), &standing)?;
    Ok(DONE)
}

pub fn draw(draft: &mut Draft<'_>, epoch: u64, node: &NodeId, proof: &Bytes) -> Outcome<AccountsReply> {
    need_late_rules(draft)?;
    meters::open_epoch(draft, epoch)?;
    let known: Option<LotKey> = read(draft, &keys::lot_key(node))?;
    let Some(known) = known.filter(|known| known.epoch.saturating_add(LOT_KEY_WAITS) <= epoch) else {
        return Err(invalid(format!(
            "node {node} has no key that draws in epoch {epoch}: one does {LOT_KEY_WAITS} epochs after it became known"
        )));
    };
    if proof.len() != LOT_PROOF_BYTES {
        return Err(invalid(format!("a proof of a lot has {LOT_PROOF_BYTES} bytes")));
    }
    let lot = (*node, Lot { key: known.key, proof: proof.clone() });
    draft.write(keys::report(epoch, ReportKind::Lots, node, 0), &lot)?;
    Ok(DONE)
}
