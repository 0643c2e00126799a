//! Who may sign claims, where nodes are paid, and what is paid.

use makai_erasure::NodeId;

use super::keys;
use super::{DONE, epochs, genesis, invalid, ledger, refused, standing, stop};
use crate::facts::Timestamp;
use crate::facts::accounts::{
    AccountsRefusal, AccountsReply, Address, Amount, ClaimSignature, EpochState, Genesis, Hash, Leaf,
    LedgerEvent, PROOF_MAX, PURPOSE_PAYOUT, PURPOSE_SIGNER, Payout, PayoutBinding, Signer,
};
use crate::facts::cluster::{Node, Role, Standing};
use crate::facts::command::Refusal;
use crate::machine::draft::{Draft, Outcome, all, read};
use crate::machine::keys as facts;
use crate::machine::kv::View;
use crate::signatures::{claim_leaf, is_signed_by_node, keccak256, proves, recover};

/// Voters that sign, and then some that are leaving.
const SIGNERS_MAX: usize = 16;

/// What an address signs to become a node's signer.
#[must_use]
pub fn signer_digest(node: NodeId) -> Hash {
    keccak256(&[b"MAKAI claim signer 1".as_slice(), &node.0].concat())
}

/// What an address signs to be paid for a node's work.
#[must_use]
pub fn payout_digest(node: NodeId, serial: u64) -> Hash {
    keccak256(&[b"MAKAI payout 1".as_slice(), &node.0, &serial.to_be_bytes()].concat())
}

/// The same as [`payout_digest`] in the form that wallets show and sign: EIP-712 typed data, `Payout(bytes32 node,uint64
/// serial)` in the domain "MAKAI payout", version "1".
#[must_use]
pub fn payout_typed_digest(node: NodeId, serial: u64) -> Hash {
    let mut number = [0; 32];
    number[24..].copy_from_slice(&serial.to_be_bytes());
    let domain = keccak256(
        &[
            keccak256(b"EIP712Domain(string name,string version)").0,
            keccak256(b"MAKAI payout").0,
            keccak256(b"1").0,
        ]
        .concat(),
    );
    let message = keccak256(&[keccak256(b"Payout(bytes32 node,uint64 serial)").0, node.0, number].concat());
    keccak256(&[b"\x19\x01".as_slice(), &domain.0, &message.0].concat())
}

/// Whether node and address have signed for each other. Any bytes may be given.
#[must_use]
pub fn is_payout_signed(binding: &PayoutBinding) -> bool {
    let PayoutBinding { node, payout, serial, node_signature, signature } = binding;
    let is_of_address = [payout_digest(*node, *serial), payout_typed_digest(*node, *serial)]
        .iter()
        .any(|digest| recover(digest, signature) == Some(*payout));
    is_of_address
        && is_signed_by_node(*node, PURPOSE_PAYOUT, &payout_message(payout, *serial), node_signature)
}

/// What a signer signs to take back the root with this digest.
#[must_use]
pub fn dispute_digest(digest: &Hash, reason: &str) -> Hash {
    keccak256(&[b"MAKAI dispute 1".as_slice(), &digest.0, reason.as_bytes()].concat())
}

/// What a node signs for a payout address.
#[must_use]
pub fn payout_message(payout: &Address, serial: u64) -> Vec<u8> {
    [payout.0.as_slice(), &serial.to_be_bytes()].concat()
}

pub fn signers(view: &dyn View) -> Outcome<Vec<Signer>> {
    Ok(all(view, &keys::signers())?)
}

pub fn check_signature(view: &dyn View, digest: &Hash, signature: &ClaimSignature) -> Outcome<()> {
    if read::<Signer>(view, &keys::signer(&signature.signer))?.is_none() {
        return refused(AccountsRefusal::NotASigner(signature.signer));
    }
    if recover(digest, &signature.signature) != Some(signature.signer) {
        let why = format!("it is not {}'s over {digest}", signature.signer);
        return refused(AccountsRefusal::BadSignature(why));
    }
    Ok(())
}

/// A voter's key; it replaces the one that the voter had.
pub fn add_signer(draft: &mut Draft<'_>, signer: &Signer) -> Outcome<AccountsReply> {
    genesis(draft)?;
    let node: Option<Node> = read(draft, &facts::node(&signer.node))?;
    if !node.is_some_and(|node| node.roles.contains(&Role::Voter) && node.standing != Standing::Lost) {
        return Err(invalid(format!("node {} is no voter: it signs no claims", signer.node)));
    }
    let holds = is_signed_by_node(signer.node, PURPOSE_SIGNER, &signer.address.0, &signer.node_signature)
        && recover(&signer_digest(signer.node), &signer.signature) == Some(signer.address);
    if !holds {
        return refused(AccountsRefusal::BadSignature("node and address must sign for each other".into()));
    }
    let known = signers(draft)?;
    if known.iter().any(|known| known.address == signer.address) {
        return Ok(DONE);
    }
    let mut standing = standing(draft)?;
    let replaced = known.iter().find(|known| known.node == signer.node).map(|known| known.address);
    if known.len() >= SIGNERS_MAX && replaced.is_none() {
        return Err(invalid(format!("there are {SIGNERS_MAX} signers, as many as may be")));
    }
    if let Some(address) = replaced {
        draft.delete(keys::signer(&address));
        ledger::append(draft, &mut standing, &LedgerEvent::SignerRemoved { address })?;
    }
    draft.write(keys::signer(&signer.address), signer)?;
    ledger::append(draft, &mut standing, &LedgerEvent::SignerAdded(signer.clone()))?;
    draft.write(keys::standing(), &standing)?;
    Ok(DONE)
}

/// Only of a voter that is lost or no voter any more: otherwise whoever leads could choose the signers.
pub fn remove_signer(draft: &mut Draft<'_>, address: &Address) -> Outcome<AccountsReply> {
    let Some(signer) = read::<Signer>(draft, &keys::signer(address))? else {
        return refused(AccountsRefusal::NotASigner(*address));
    };
    let node: Option<Node> = read(draft, &facts::node(&signer.node))?;
    if node.is_some_and(|node| node.roles.contains(&Role::Voter) && node.standing != Standing::Lost) {
        return Err(invalid(format!("{address} is the key of voter {}, which is still one", signer.node)));
    }
    let mut standing = standing(draft)?;
    draft.delete(keys::signer(address));
    ledger::append(draft, &mut standing, &LedgerEvent::SignerRemoved { address: *address })?;
    draft.write(keys::standing(), &standing)?;
    Ok(DONE)
}

impl Payout {
    /// The address that counts at `now`.
    #[must_use]
    pub fn in_force(&self, now: Timestamp) -> Option<Address> {
        match self.next {
            Some((next, from)) if from <= now => Some(next),
            _ => self.address,
        }
    }
}

/// The first address counts at once; a change of it after the cool-down, so that a stolen node cannot redirect what it
/// earns unnoticed.
pub fn bind_payout(draft: &mut Draft<'_>, binding: &PayoutBinding) -> Outcome<AccountsReply> {
    let genesis = genesis(draft)?;
    if read::<Node>(draft, &facts::node(&binding.node))?.is_none() {
        return Err(Refusal::NotFound(format!("node {}", binding.node)).into());
    }
    if !is_payout_signed(binding) {
        return refused(AccountsRefusal::BadSignature("node and address must sign for each other".into()));
    }
    let place = keys::payout(&binding.node);
    let known: Option<Payout> = read(draft, &place)?;
    let (serial, address) =
        known.as_ref().map_or((0, None), |known| (known.serial, known.in_force(draft.now)));
    if known.as_ref().is_some_and(|known| known.serial == binding.serial && address == Some(binding.payout)) {
        return Ok(DONE);
    }
    if binding.serial <= serial {
        return Err(invalid(format!("the binding's serial must be above {serial}")));
    }
    let wait_ms = if address.is_some() { genesis.payout_cooldown_ms } else { 0 };
    let effective_at = Timestamp(draft.now.0.saturating_add(wait_ms));
    let (node, serial) = (binding.node, binding.serial);
    let payout = match address {
        None => Payout { node, serial, address: Some(binding.payout), next: None },
        Some(_) => Payout { node, serial, address, next: Some((binding.payout, effective_at)) },
    };
    let mut standing = standing(draft)?;
    draft.write(place, &payout)?;
    ledger::append(
        draft,
        &mut standing,
        &LedgerEvent::PayoutBound { binding: binding.clone(), effective_at },
    )?;
    draft.write(keys::standing(), &standing)?;
    Ok(DONE)
}

/// Pays what an address may claim and has not claimed. Anyone may ask: only the address is paid.
pub fn claim(draft: &mut Draft<'_>, number: u64, leaf: &Leaf, proof: &[Hash]) -> Outcome<AccountsReply> {
    let Genesis { chain_id, ledger, .. } = genesis(draft)?;
    if chain_id != 0 {
        return refused(AccountsRefusal::PaidByContract { chain_id, ledger });
    }
    let epoch = epochs::get(draft, number)?;
    let (EpochState::Signed, Some(result), Some(active_at)) = (epoch.state, &epoch.result, epoch.active_at)
    else {
        return refused(AccountsRefusal::WrongState { epoch: number, state: epoch.state });
    };
    if draft.now < active_at {
        return refused(AccountsRefusal::NotActive { epoch: number, active_at });
    }
    let leads = proof.len() <= PROOF_MAX
        && proves(&result.claim_root, claim_leaf(&leaf.payout, leaf.cumulative.0), proof);
    if !leads {
        return refused(AccountsRefusal::BadProof(number));
    }
    let place = keys::claimed(&leaf.payout);
    let paid: Amount = read(draft, &place)?.unwrap_or_default();
    let mut standing = standing(draft)?;
    let due = leaf.cumulative.minus(paid);
    // A quorum that signed a small total over large leaves pays the total and no more.
    let amount = due.min(standing.signed_total.minus(standing.claimed_total));
    if amount == Amount(0) {
        return Err(stop(AccountsRefusal::NothingToClaim(leaf.payout)));
    }
    let cumulative = paid.plus(amount);
    standing.claimed_total = standing.claimed_total.plus(amount);
    draft.write(place, &cumulative)?;
    let event = LedgerEvent::Claimed { epoch: number, payout: leaf.payout, amount, cumulative };
    ledger::append(draft, &mut standing, &event)?;
    draft.write(keys::standing(), &standing)?;
    Ok(AccountsReply::Paid(amount))
}
