//! What addresses put behind their nodes' work on the embedded ledger, out of what they claimed. On a chain its staking
//! contract is where that is done.

use anyhow::{Context as _, bail};
use makai_erasure::NodeId;
use makai_raft::facts::Timestamp;
use makai_raft::facts::accounts::{
    AccountsCommand, Address, Amount, Pledge, PledgeOrder, RecoverableSignature, StakeOrder,
};
use makai_raft::facts::command::Command;
use makai_raft::facts::query::{Answer, Query};
use makai_raft::facts::tenant::TenantId;
use serde::{Deserialize, Serialize};

use super::reading;
use crate::clock;
use crate::reconcile::Shell;

/// What stands behind one address's nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StakeRow {
    pub payout: Address,
    pub nodes: Vec<NodeId>,
    /// Claimed so far: as much may be staked.
    pub claimed: Amount,
    pub stake: Amount,
    /// In force from then on.
    pub next: Option<(Amount, Timestamp)>,
    /// Of the last order; the next one needs a larger one.
    pub serial: u64,
    /// What it was given of the income, and since when it is what it is: the longer the more.
    #[serde(default)]
    pub pledge: Option<Pledge>,
}

/// Pays for a tenant with what a stake was given of the income.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spending {
    /// The tenant's name.
    pub tenant: String,
    pub payout: Address,
    pub serial: u64,
    /// Billionths of a credit.
    pub amount: Amount,
    /// By the tenant's number: see [`tenant`].
    pub signature: RecoverableSignature,
}

/// Where stakes are, and whose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stakes {
    /// For what orders are signed.
    pub chain_id: u64,
    pub ledger: Address,
    pub rows: Vec<StakeRow>,
}

/// Every address that a node is paid to.
///
/// # Errors
/// The facts do not answer.
pub async fn stakes(shell: &Shell) -> anyhow::Result<Stakes> {
    let facts = &*shell.facts;
    let state = reading::state(facts).await?.context("the accounts are not open yet")?;
    let now = clock::now();
    let mut rows: Vec<StakeRow> = Vec::new();
    for payout in reading::payouts(facts).await? {
        let Some(address) = payout.in_force(now) else { continue };
        match rows.iter_mut().find(|row| row.payout == address) {
            Some(row) => row.nodes.push(payout.node),
            None => {
                let known = reading::stake(facts, address).await?;
                let claimed = reading::claimed(facts, &[address]).await?;
                rows.push(StakeRow {
                    payout: address,
                    nodes: vec![payout.node],
                    claimed: claimed.first().copied().unwrap_or_default(),
                    stake: known.map_or(Amount(0), |known| known.in_force(now)),
                    next: known.and_then(|known| known.next).filter(|(_, from)| *from > now),
                    serial: known.map_or(0, |known| known.serial),
                    pledge: reading::pledge(facts, address).await?,
                });
            }
        }
    }
    Ok(Stakes { chain_id: state.genesis.chain_id, ledger: state.genesis.ledger, rows })
}

/// The number by which an address signs for a tenant.
///
/// # Errors
/// There is none of this name, or the facts do not answer.
pub async fn tenant(shell: &Shell, name: &str) -> anyhow::Result<TenantId> {
    let Answer::Tenants(tenants) = shell.facts.query(Query::Tenants).await? else { bail!("no tenants") };
    let tenant = tenants.into_iter().find(|tenant| tenant.name == name);
    Ok(tenant.with_context(|| format!("there is no tenant {name:?}"))?.id)
}

/// Takes an address's order to pay for a tenant.
///
/// # Errors
/// The facts refuse it.
pub async fn spend(shell: &Shell, spending: Spending) -> anyhow::Result<Pledge> {
    let tenant = tenant(shell, &spending.tenant).await?;
    let Spending { payout, serial, amount, signature, .. } = spending;
    let order = PledgeOrder { payout, serial, tenant, amount, signature };
    shell.facts.propose(Command::Accounts(AccountsCommand::SpendPledge(order))).await?;
    reading::pledge(&*shell.facts, payout).await?.context("it was paid, and is not there")
}

/// Takes an address's order.
///
/// # Errors
/// The facts refuse it.
pub async fn order(shell: &Shell, order: StakeOrder) -> anyhow::Result<StakeRow> {
    let payout = order.payout;
    shell.facts.propose(Command::Accounts(AccountsCommand::Stake(order))).await?;
    let Some(row) = stakes(shell).await?.rows.into_iter().find(|row| row.payout == payout) else {
        bail!("{payout} stakes, and no node is paid to it: it adds to nothing");
    };
    Ok(row)
}
