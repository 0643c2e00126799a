//! What a claim would cost now, so that a miner can wait for a better hour.

use anyhow::Context as _;
use makai_erasure::NodeId;
use makai_ops::claims::evm;
use makai_ops::claims::tree::ClaimTree;
use makai_raft::facts::accounts::{Address, Amount};
use serde::{Deserialize, Serialize};

use super::api;
use super::reading;
use crate::reconcile::Shell;

/// A claim and its fee.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimCost {
    pub node: NodeId,
    pub payout: Address,
    /// What a claim would pay now.
    pub amount: Amount,
    /// `None`: the cluster's own ledger, which asks no fee.
    pub fee: Option<Fee>,
}

/// Of one transaction, in the chain's smallest unit (wei).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fee {
    pub gas: u64,
    pub price_wei: Amount,
    pub cost_wei: Amount,
    /// Dearer than `ledger.fee_cap_gwei`: it would not be sent now.
    pub is_above_cap: bool,
    pub submitter: Address,
    pub submitter_wei: Amount,
}

/// # Errors
/// The node has no address, nothing to claim, or the chain does not answer.
pub async fn claim_cost(shell: &Shell, node: NodeId) -> anyhow::Result<ClaimCost> {
    let claims = api::claims(shell).await?;
    let row = claims.claims.into_iter().find(|row| row.node == node);
    let row = row.with_context(|| format!("node {node} has no claims yet: see `makai why {node}`"))?;
    let payable = row.payable.context("the chain does not answer now")?;
    let amount = payable.minus(row.claimed.unwrap_or_default());
    let cost = ClaimCost { node, payout: row.payout, amount, fee: None };
    let Some(chain) = &shell.chain else { return Ok(cost) };
    // The call as it would be sent, so that the chain's own estimate counts.
    let state = reading::state(&*shell.facts).await?.context("the accounts are not open yet")?;
    let mut data = evm::claimed(&row.payout);
    for (index, root) in api::payable_roots(&state, chain).await? {
        let leaves = reading::leaves(&*shell.facts, root.epoch).await?;
        let tree = ClaimTree::new(&leaves);
        let leaf = leaves.iter().find(|leaf| leaf.payout == row.payout);
        if let Some((leaf, proof)) = leaf.and_then(|leaf| Some((leaf, tree.proof(leaf)?)))
            && tree.root() == root.root
        {
            data = evm::claim(index, &leaf.payout, leaf.cumulative, &proof);
            break;
        }
    }
    let now = chain.cost(&data).await?;
    let fee = Fee {
        gas: now.gas,
        price_wei: Amount(now.price_wei),
        cost_wei: Amount(now.cost_wei),
        is_above_cap: now.is_above_cap,
        submitter: now.submitter,
        submitter_wei: Amount(now.submitter_wei),
    };
    Ok(ClaimCost { fee: Some(fee), ..cost })
}
