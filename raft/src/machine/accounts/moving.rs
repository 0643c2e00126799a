//! From the embedded ledger to a contract: once, when more than half of the signers say so.
//!
//! Claims are cumulative, so nothing is carried over but the newest root: the contract opens with it, or takes a later one,
//! and pays each address all that it ever earned. What the embedded ledger paid had not left it. Never from one contract
//! to another: the first may have paid.

use serde::{Deserialize, Serialize};

use super::{DONE, claims, genesis, invalid, keys, ledger, refused, standing};
use crate::facts::accounts::{
    AccountsRefusal, AccountsReply, Address, ClaimSignature, Epoch, EpochState, Genesis, Hash, LedgerEvent,
};
use crate::machine::draft::{Draft, Outcome, read};
use crate::signatures::keccak256;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Words {
    chain_id: u64,
    ledger: Address,
    signatures: Vec<ClaimSignature>,
}

/// What a signer signs to move claims to a contract.
#[must_use]
pub fn move_digest(from: &Address, chain_id: u64, ledger: &Address) -> Hash {
    keccak256(&[b"MAKAI move 1".as_slice(), &from.0, &chain_id.to_be_bytes(), &ledger.0].concat())
}

/// A later word for another contract begins anew.
pub fn vote(
    draft: &mut Draft<'_>,
    chain_id: u64,
    contract: Address,
    signature: &ClaimSignature,
) -> Outcome<AccountsReply> {
    let opened = genesis(draft)?;
    if (opened.chain_id, opened.ledger) == (chain_id, contract) {
        return Ok(DONE);
    }
    if opened.chain_id != 0 {
        let (chain_id, ledger) = (opened.chain_id, opened.ledger);
        return refused(AccountsRefusal::PaidByContract { chain_id, ledger });
    }
    if chain_id == 0 {
        return Err(invalid("0 is no chain"));
    }
    claims::check_signature(draft, &move_digest(&opened.ledger, chain_id, &contract), signature)?;
    let known: Option<Words> = read(draft, &keys::moving())?;
    let fresh = Words { chain_id, ledger: contract, signatures: Vec::new() };
    let mut words =
        known.filter(|words| (words.chain_id, words.ledger) == (chain_id, contract)).unwrap_or(fresh);
    words.signatures.retain(|known| known.signer != signature.signer);
    words.signatures.push(signature.clone());
    let signers = claims::signers(draft)?;
    words.signatures.retain(|known| signers.iter().any(|signer| signer.address == known.signer));
    let threshold = signers.len() / 2 + 1;
    if words.signatures.len() < threshold {
        draft.write(keys::moving(), &words)?;
        return Ok(DONE);
    }
    let mut standing = standing(draft)?;
    let event = LedgerEvent::Moved {
        chain_id,
        ledger: contract,
        after_epoch: standing.signed,
        threshold: u32::try_from(threshold).unwrap_or(u32::MAX),
        signatures: words.signatures,
    };
    standing.moved_after = Some(standing.signed);
    ledger::append(draft, &mut standing, &event)?;
    draft.write(keys::genesis(), &Genesis { chain_id, ledger: contract, ..opened })?;
    draft.write(keys::standing(), &standing)?;
    draft.delete(keys::moving());
    // A result that was proposed for the embedded ledger is computed anew.
    let place = keys::epoch(standing.signed + 1);
    if let Some(epoch) =
        read::<Epoch>(draft, &place)?.filter(|epoch| matches!(epoch.state, EpochState::Computed))
    {
        draft.write(place, &Epoch { state: EpochState::Sealed, signatures: Vec::new(), ..epoch })?;
    }
    Ok(DONE)
}
