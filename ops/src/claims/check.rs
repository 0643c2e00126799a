//! What a ledger's file must fulfil, checked with nothing but the file.
//!
//! The chain from its first link; both signatures of every signer and payout address; of every signed epoch the
//! statement's digest, signatures of more than half of the signers of that moment, a total that neither falls nor exceeds
//! the emission; of every claim that it is owed; and of each epoch whose facts are in the file, that its result follows
//! from them by the rules of the genesis.
//!
//! Who must be believed: more than half of the signers. Compare the signers' addresses and the genesis hash with what the
//! operators publish.

use std::collections::{BTreeMap, BTreeSet};

use makai_raft::facts::accounts::{
    Address, Amount, ClaimSignature, EpochResult, Genesis, Hash, LedgerEntry, LedgerEvent, LotBinding,
    PURPOSE_LOTS, PURPOSE_SIGNER, PayoutBinding, Signer, StakeOrder,
};
use makai_raft::machine::accounts::{entry_hash, is_payout_signed, move_digest, signer_digest, stake_digest};
use makai_raft::signatures::{is_signed_by_node, recover};
use serde::Serialize;

use super::compute::{EpochFacts, compute};
use super::file::{EpochFile, LedgerFile};
use super::statement::Statement;
use super::tree::ClaimTree;
use crate::rewards::tokenomics::Tokenomics;

/// What does not hold, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    #[error("link {height}: {why}")]
    Link { height: u64, why: String },
    #[error("epoch {epoch}: {why}")]
    Epoch { epoch: u64, why: String },
}

/// What a file that holds says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub cluster_id: String,
    pub tokenomics_hash: Hash,
    pub links: u64,
    pub head: Hash,
    pub signers: Vec<Address>,
    pub epochs_sealed: u64,
    pub epochs_signed: u64,
    pub total: Amount,
    pub claimed: Amount,
    /// Epochs whose result was computed again from the facts in the file.
    pub epochs_recomputed: Vec<u64>,
}

#[derive(Default)]
struct Walk {
    cluster_id: String,
    genesis: Option<Genesis>,
    signers: BTreeMap<Address, Signer>,
    sealed: BTreeMap<u64, (Hash, u64, Hash)>,
    signed: BTreeMap<u64, EpochResult>,
    /// For what epochs are signed from the next one on, and where that changed: after which epoch, from what.
    domain: (u64, Address),
    moved: Option<(u64, (u64, Address))>,
    claimed: BTreeMap<Address, Amount>,
    claimed_total: Amount,
}

/// Checks everything.
///
/// # Errors
/// [`LedgerError`]: the first thing that does not hold.
pub fn check(file: &LedgerFile) -> Result<Summary, LedgerError> {
    let mut walk = Walk::default();
    let mut head = Hash::default();
    for (height, entry) in (1u64..).zip(&file.entries) {
        let fault = |why: String| LedgerError::Link { height, why };
        check_link(height, &head, entry).map_err(fault)?;
        let event: LedgerEvent = rmp_serde::from_slice(&entry.body)
            .map_err(|error| fault(format!("its body cannot be read: {error}")))?;
        if rmp_serde::to_vec(&event).ok().as_deref() != Some(&entry.body[..]) {
            return Err(fault("its body is not in the one spelling of this release".into()));
        }
        walk.take(&event, &entry.hash).map_err(fault)?;
        head = entry.hash;
    }
    let recomputed = walk.check_epochs(&file.epochs)?;
    let genesis =
        walk.genesis.as_ref().ok_or(LedgerError::Link { height: 1, why: "there is no genesis".into() })?;
    Ok(Summary {
        cluster_id: walk.cluster_id.clone(),
        tokenomics_hash: genesis.tokenomics_hash,
        links: file.entries.len() as u64,
        head,
        signers: walk.signers.keys().copied().collect(),
        epochs_sealed: walk.sealed.len() as u64,
        epochs_signed: walk.signed.len() as u64,
        total: walk.signed.values().next_back().map_or(Amount(0), |result| result.total),
        claimed: walk.claimed_total,
        epochs_recomputed: recomputed,
    })
}

fn check_link(height: u64, prev: &Hash, entry: &LedgerEntry) -> Result<(), String> {
    if entry.height != height {
        return Err(format!("it says height {}", entry.height));
    }
    if entry.prev != *prev {
        return Err("it does not name the link before".into());
    }
    if entry.hash != entry_hash(height, entry.at, &entry.prev, &entry.body) {
        return Err("its hash is not that of its content".into());
    }
    Ok(())
}

impl Walk {
    fn take(&mut self, event: &LedgerEvent, hash: &Hash) -> Result<(), String> {
        if self.genesis.is_none() != matches!(event, LedgerEvent::Opened { .. }) {
            return Err("the genesis is the first link and no other".into());
        }
        match event {
            LedgerEvent::Opened { cluster_id, genesis } => self.open(cluster_id, genesis),
            LedgerEvent::SignerAdded(signer) => {
                check_signer(signer)?;
                self.signers.insert(signer.address, signer.clone());
                Ok(())
            }
            LedgerEvent::SignerRemoved { address } => {
                self.signers.remove(address).map(|_| ()).ok_or_else(|| format!("{address} was no signer"))
            }
            LedgerEvent::PayoutBound { binding, .. } => check_binding(binding),
            LedgerEvent::EpochSealed { epoch, usage_hash, node_count } => {
                if *epoch != self.sealed.len() as u64 + 1 {
                    return Err(format!("epoch {epoch} is sealed out of order"));
                }
                self.sealed.insert(*epoch, (*usage_hash, *node_count, *hash));
                Ok(())
            }
            LedgerEvent::EpochSigned { result, threshold, signatures, .. } => {
                self.sign(result, *threshold, signatures)
            }
            LedgerEvent::EpochDisputed { epoch, attempt, by, .. } => {
                let newest = self.signed.last_key_value().map(|(epoch, result)| (*epoch, result.attempt));
                if newest != Some((*epoch, *attempt)) || !self.signers.contains_key(by) {
                    return Err(format!("epoch {epoch} is disputed, which may not be"));
                }
                self.signed.remove(epoch);
                Ok(())
            }
            LedgerEvent::Claimed { payout, amount, cumulative, epoch } => {
                let before = self.claimed.get(payout).copied().unwrap_or_default();
                let total = self.signed.values().next_back().map_or(Amount(0), |result| result.total);
                self.claimed_total = self.claimed_total.plus(*amount);
                if !self.signed.contains_key(epoch)
                    || before.plus(*amount) != *cumulative
                    || self.claimed_total > total
                {
                    return Err(format!("the claim of {payout} is not owed"));
                }
                self.claimed.insert(*payout, *cumulative);
                Ok(())
            }
            LedgerEvent::Credited { .. } => Ok(()),
            LedgerEvent::LotsBound { binding, .. } => {
                let LotBinding { node, key, node_signature } = binding;
                if !is_signed_by_node(*node, PURPOSE_LOTS, &key.0, node_signature) {
                    return Err(format!("node {node} did not sign for the key that it draws lots with"));
                }
                Ok(())
            }
            LedgerEvent::Staked { order, .. } => self.check_stake(order),
            LedgerEvent::IncomeShared { epoch, income, shared, .. } => {
                let allowed = self
                    .genesis
                    .as_ref()
                    .and_then(|genesis| genesis.pledge)
                    .map(|terms| income.0.saturating_mul(terms.income_bp.into()) / 10_000);
                if allowed.is_none_or(|allowed| shared.0 > allowed) {
                    return Err(format!(
                        "stakes were given {shared} of an income of {income} in epoch {epoch}"
                    ));
                }
                Ok(())
            }
            LedgerEvent::Moved { chain_id, ledger, after_epoch, threshold, signatures } => {
                if self.moved.is_some() || self.domain.0 != 0 || *after_epoch != self.last_signed() {
                    return Err(
                        "claims move once, from the embedded ledger, after the last signed epoch".into()
                    );
                }
                self.check_majority(&move_digest(&self.domain.1, *chain_id, ledger), *threshold, signatures)?;
                self.moved = Some((*after_epoch, self.domain));
                self.domain = (*chain_id, *ledger);
                Ok(())
            }
        }
    }

    fn check_stake(&self, order: &StakeOrder) -> Result<(), String> {
        let StakeOrder { payout, serial, amount, signature } = order;
        let paid = self.claimed.get(payout).copied().unwrap_or_default();
        let is_signed =
            recover(&stake_digest(&self.domain.1, payout, *serial, *amount), signature) == Some(*payout);
        if self.domain.0 != 0 || !is_signed || *amount > paid {
            return Err(format!("{payout} cannot have staked {amount}"));
        }
        Ok(())
    }

    fn last_signed(&self) -> u64 {
        self.signed.last_key_value().map_or(0, |(epoch, _)| *epoch)
    }

    /// For what an epoch was signed.
    fn domain_of(&self, epoch: u64) -> (u64, Address) {
        self.moved.filter(|(after, _)| epoch <= *after).map_or(self.domain, |(_, before)| before)
    }

    fn check_majority(
        &self,
        digest: &Hash,
        threshold: u32,
        signatures: &[ClaimSignature],
    ) -> Result<(), String> {
        let good: BTreeSet<Address> = signatures
            .iter()
            .filter(|one| recover(digest, &one.signature) == Some(one.signer))
            .map(|one| one.signer)
            .filter(|signer| self.signers.contains_key(signer))
            .collect();
        if good.len() < threshold as usize || good.len() != signatures.len() {
            return Err(format!("{} of {threshold} signatures hold", good.len()));
        }
        if (threshold as usize) <= self.signers.len() / 2 {
            return Err(format!("{threshold} of {} signers are no majority", self.signers.len()));
        }
        Ok(())
    }

    fn open(&mut self, cluster_id: &str, genesis: &Genesis) -> Result<(), String> {
        let table = Tokenomics::parse(&genesis.tokenomics).map_err(|error| error.to_string())?;
        if table.hash() != genesis.tokenomics_hash || table.canonical() != genesis.tokenomics {
            return Err("the tokenomics table has another hash".into());
        }
        if table.emission() != genesis.emission {
            return Err("the emission is not that of the tokenomics table".into());
        }
        self.cluster_id = cluster_id.to_owned();
        self.domain = (genesis.chain_id, genesis.ledger);
        self.genesis = Some(genesis.clone());
        Ok(())
    }

    fn sign(
        &mut self,
        result: &EpochResult,
        threshold: u32,
        signatures: &[ClaimSignature],
    ) -> Result<(), String> {
        let genesis = self.genesis.as_ref().ok_or("there is no genesis")?;
        let before = self.signed.last_key_value();
        if result.epoch != before.map_or(1, |(epoch, _)| epoch + 1)
            || !self.sealed.contains_key(&result.epoch)
        {
            return Err(format!("epoch {} is signed out of order", result.epoch));
        }
        let statement = Statement {
            chain_id: self.domain.0,
            ledger: self.domain.1,
            epoch: result.epoch,
            root: result.claim_root,
            total: result.total,
            data_hash: result.data_hash,
            prev_root: before.map_or_else(Hash::default, |(_, result)| result.claim_root),
        };
        if statement.digest() != result.digest {
            return Err("what was signed is not what it says".into());
        }
        self.check_majority(&result.digest, threshold, signatures)?;
        let total_before = before.map_or(Amount(0), |(_, result)| result.total);
        if result.total < total_before || result.total > genesis.emission.until(result.epoch) {
            return Err(format!("the total {} falls or exceeds the emission", result.total));
        }
        self.signed.insert(result.epoch, result.clone());
        Ok(())
    }

    /// Results in the file follow from facts in the file; returns which were computed again.
    fn check_epochs(&self, files: &[EpochFile]) -> Result<Vec<u64>, LedgerError> {
        let mut recomputed = Vec::new();
        let mut before: Option<&EpochFile> = None;
        for file in files {
            let number = file.epoch.number;
            let fault = |why: &str| LedgerError::Epoch { epoch: number, why: why.to_owned() };
            let genesis = self.genesis.as_ref().ok_or_else(|| fault("there is no genesis"))?;
            let signed = self.signed.get(&number).ok_or_else(|| fault("it is not signed in the chain"))?;
            let sealed = self.sealed.get(&number).ok_or_else(|| fault("it is not sealed in the chain"))?;
            let said = (file.epoch.usage_hash, Some(file.epoch.node_count), file.epoch.sealed_head);
            if said != (Some(sealed.0), Some(sealed.1), Some(sealed.2))
                || file.epoch.result.as_ref() != Some(signed)
            {
                return Err(fault("its record is not what the chain says"));
            }
            if before.is_some_and(|before| before.epoch.number + 1 != number) {
                return Err(fault("an epoch before it is missing"));
            }
            let total = file.leaves.iter().fold(Amount(0), |sum, leaf| sum.plus(leaf.cumulative));
            if ClaimTree::new(&file.leaves).root() != signed.claim_root || total != signed.total {
                return Err(fault("its leaves do not make the root and the total that were signed"));
            }
            let data = super::compute::data_hash(
                number,
                &super::compute::usage_hash(&file.usage),
                &sealed.2,
                &file.accounts,
                &file.leaves,
                &signed.difficulty,
            );
            if data != signed.data_hash {
                return Err(fault("its usage and accounts are not those that were signed"));
            }
            if number == 1 || before.is_some() {
                let (chain_id, ledger) = self.domain_of(number);
                let facts = EpochFacts {
                    genesis: &Genesis { chain_id, ledger, ..genesis.clone() },
                    epoch: &file.epoch,
                    usage: &file.usage,
                    accounts_before: before.map_or(&[], |before| &before.accounts),
                    leaves_before: before.map_or(&[], |before| &before.leaves),
                    result_before: self.signed.get(&(number.saturating_sub(1))),
                };
                let (_, result) =
                    compute(&facts, signed.attempt).map_err(|error| fault(&error.to_string()))?;
                if result != *signed {
                    return Err(fault("its result does not follow from its usage by the rules"));
                }
                recomputed.push(number);
            }
            before = Some(file);
        }
        Ok(recomputed)
    }
}

fn check_signer(signer: &Signer) -> Result<(), String> {
    let holds = is_signed_by_node(signer.node, PURPOSE_SIGNER, &signer.address.0, &signer.node_signature)
        && recover(&signer_digest(signer.node), &signer.signature) == Some(signer.address);
    if holds {
        Ok(())
    } else {
        Err(format!("{} and node {} did not sign for each other", signer.address, signer.node))
    }
}

fn check_binding(binding: &PayoutBinding) -> Result<(), String> {
    if is_payout_signed(binding) {
        Ok(())
    } else {
        Err(format!("{} and node {} did not sign for each other", binding.payout, binding.node))
    }
}
