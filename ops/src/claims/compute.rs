//! An epoch's result from its facts: what the leader proposes, what every voter does again before it signs, and what
//! anyone can do with the ledger's file.

use makai_raft::facts::accounts::{
    Amount, Component, Epoch, EpochResult, Genesis, Hash, Leaf, NodeAccount, NodeUsage,
};

use super::statement::Statement;
use super::tree::ClaimTree;
use crate::rewards::settle::{Inputs, Outcome, settle};
use crate::rewards::tokenomics::{RULES, RULES_OLDEST, Tokenomics, TokenomicsError};

/// Everything about one epoch that the result depends on.
#[derive(Debug, Clone)]
pub struct EpochFacts<'a> {
    pub genesis: &'a Genesis,
    pub epoch: &'a Epoch,
    /// By node, ascending.
    pub usage: &'a [NodeUsage],
    /// After the epoch before.
    pub accounts_before: &'a [NodeAccount],
    pub leaves_before: &'a [Leaf],
    /// Of the epoch before; `None` for the first.
    pub result_before: Option<&'a EpochResult>,
}

/// Why no result follows from what is there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComputeError {
    #[error(
        "the cluster's accounts follow rules {0}, this release knows {RULES_OLDEST} to {RULES}; use a release that knows them"
    )]
    Rules(u32),
    #[error(transparent)]
    Table(#[from] TokenomicsError),
    #[error("epoch {0} is not sealed")]
    NotSealed(u64),
    #[error("the usage of epoch {0} is not what was sealed")]
    OtherUsage(u64),
    #[error("accounts and leaves before epoch {0} are not those of the result before it")]
    OtherBefore(u64),
}

/// BLAKE3 of usage records, as the machine seals them.
#[must_use]
pub fn usage_hash(usage: &[NodeUsage]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key("makai usage 1");
    for record in usage {
        let bytes = encode(record);
        hasher.update(&(bytes.len() as u64).to_be_bytes()).update(&bytes);
    }
    Hash(*hasher.finalize().as_bytes())
}

/// Plain structs of numbers, texts and lists, which always have a MessagePack form.
fn encode<T: serde::Serialize>(record: &T) -> Vec<u8> {
    rmp_serde::to_vec(record).unwrap_or_default()
}

/// Binds everything that a result rests on and everything it says.
#[must_use]
pub fn data_hash(
    epoch: u64,
    usage: &Hash,
    sealed_head: &Hash,
    accounts: &[NodeAccount],
    leaves: &[Leaf],
    difficulty: &[(Component, Amount)],
) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key("makai epoch data 1");
    hasher.update(&epoch.to_be_bytes()).update(&usage.0).update(&sealed_head.0);
    let mut add = |bytes: Vec<u8>| {
        hasher.update(&(bytes.len() as u64).to_be_bytes()).update(&bytes);
    };
    add(encode(&(accounts.len() as u64, leaves.len() as u64)));
    accounts.iter().map(encode).for_each(&mut add);
    leaves.iter().map(encode).for_each(&mut add);
    add(encode(&difficulty));
    Hash(*hasher.finalize().as_bytes())
}

/// Computes an epoch; the result carries `attempt`.
///
/// # Errors
/// [`ComputeError`]: the facts do not belong together, or follow other rules.
pub fn compute(facts: &EpochFacts<'_>, attempt: u32) -> Result<(Outcome, EpochResult), ComputeError> {
    let EpochFacts { genesis, epoch, .. } = facts;
    if !(RULES_OLDEST..=RULES).contains(&genesis.rules) {
        return Err(ComputeError::Rules(genesis.rules));
    }
    let table = Tokenomics::parse(&genesis.tokenomics)?;
    let (Some(usage_sealed), Some(sealed_head)) = (epoch.usage_hash, epoch.sealed_head) else {
        return Err(ComputeError::NotSealed(epoch.number));
    };
    if usage_hash(facts.usage) != usage_sealed {
        return Err(ComputeError::OtherUsage(epoch.number));
    }
    let before = facts.result_before;
    let total_before = facts.leaves_before.iter().fold(Amount(0), |sum, leaf| sum.plus(leaf.cumulative));
    if total_before != before.map_or(Amount(0), |result| result.total) {
        return Err(ComputeError::OtherBefore(epoch.number));
    }
    let outcome = settle(&Inputs {
        beacon: epoch.beacon,
        rules: genesis.rules,
        table: &table,
        epoch: epoch.number,
        epoch_ms: genesis.epoch_ms,
        usage: facts.usage,
        accounts: facts.accounts_before,
        leaves: facts.leaves_before,
        difficulty: before.map_or(&[], |result| &result.difficulty),
    });
    let claim_root = ClaimTree::new(&outcome.leaves).root();
    let data_hash = data_hash(
        epoch.number,
        &usage_sealed,
        &sealed_head,
        &outcome.accounts,
        &outcome.leaves,
        &outcome.difficulty,
    );
    let statement = Statement {
        chain_id: genesis.chain_id,
        ledger: genesis.ledger,
        epoch: epoch.number,
        root: claim_root,
        total: outcome.total,
        data_hash,
        prev_root: before.map_or_else(Hash::default, |result| result.claim_root),
    };
    let result = EpochResult {
        epoch: epoch.number,
        attempt,
        claim_root,
        total: outcome.total,
        data_hash,
        digest: statement.digest(),
        account_count: outcome.accounts.len() as u64,
        leaf_count: outcome.leaves.len() as u64,
        difficulty: outcome.difficulty.clone(),
    };
    Ok((outcome, result))
}
