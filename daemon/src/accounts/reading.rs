//! Whole lists of the accounts, page by page. The records of a sealed or signed epoch do not change, so that pages of
//! different moments fit together.

use anyhow::bail;
use makai_erasure::NodeId;
use makai_raft::facts::accounts::{
    AccountsAnswer, AccountsQuery, AccountsState, Address, Amount, Balance, Epoch, GroupBytes, Leaf,
    LedgerEntry, LotKey, NodeAccount, NodeUsage, Payout, Pledge, Prices, Stake, TenantRow, Training,
};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::handle::Metadata;

/// Records in one page.
const PAGE: u32 = 1_000;
/// Addresses asked for at once.
const ADDRESSES: usize = 5_000;

async fn ask(facts: &dyn Metadata, query: AccountsQuery) -> anyhow::Result<AccountsAnswer> {
    match facts.query(Query::Accounts(query)).await? {
        Answer::Accounts(answer) => Ok(answer),
        other => bail!("the facts answered {other:?}"),
    }
}

/// Asks for one kind of answer.
macro_rules! answer {
    ($facts:expr, $query:expr, $kind:ident) => {
        match ask($facts, $query).await? {
            AccountsAnswer::$kind(found) => found,
            other => bail!("the facts answered {other:?}"),
        }
    };
}

/// Asks for all pages of a list.
macro_rules! pages {
    ($facts:expr, $kind:ident, $after:ident => $query:expr, $place:expr) => {{
        let mut all = Vec::new();
        loop {
            let $after = all.last().map($place);
            let page = answer!($facts, $query, $kind);
            let is_last = page.len() < PAGE as usize;
            all.extend(page);
            if is_last {
                break Ok(all);
            }
        }
    }};
}

/// `None`: no voter has opened the accounts yet.
///
/// # Errors
/// The facts do not answer; so for all below.
pub async fn state(facts: &dyn Metadata) -> anyhow::Result<Option<AccountsState>> {
    Ok(answer!(facts, AccountsQuery::State, State).map(|state| *state))
}

/// # Errors
/// As [`state`]; there is no such epoch.
pub async fn epoch(facts: &dyn Metadata, number: u64) -> anyhow::Result<Epoch> {
    let found = answer!(facts, AccountsQuery::Epochs { from: number, entries_max: 1 }, Epochs);
    match found.into_iter().next() {
        Some(epoch) if epoch.number == number => Ok(epoch),
        _ => bail!("there is no epoch {number}"),
    }
}

/// # Errors
/// As [`state`].
pub async fn usage(facts: &dyn Metadata, epoch: u64) -> anyhow::Result<Vec<NodeUsage>> {
    pages!(facts, Usage, after => AccountsQuery::Usage { epoch, after, entries_max: PAGE }, |usage: &NodeUsage| usage.node)
}

/// # Errors
/// As [`state`].
pub async fn tenant_usage(facts: &dyn Metadata, epoch: u64) -> anyhow::Result<Vec<TenantRow>> {
    Ok(answer!(facts, AccountsQuery::TenantUsage { epoch }, TenantUsage))
}

/// # Errors
/// As [`state`].
pub async fn accounts(facts: &dyn Metadata, epoch: u64) -> anyhow::Result<Vec<NodeAccount>> {
    pages!(facts, Accounts, after => AccountsQuery::Accounts { epoch, after, entries_max: PAGE }, |account: &NodeAccount| account.node)
}

/// # Errors
/// As [`state`].
pub async fn leaves(facts: &dyn Metadata, epoch: u64) -> anyhow::Result<Vec<Leaf>> {
    pages!(facts, Leaves, after => AccountsQuery::Leaves { epoch, after, entries_max: PAGE }, |leaf: &Leaf| leaf.payout)
}

/// # Errors
/// As [`state`].
pub async fn payouts(facts: &dyn Metadata) -> anyhow::Result<Vec<Payout>> {
    pages!(facts, Payouts, after => AccountsQuery::Payouts { after, entries_max: PAGE }, |payout: &Payout| payout.node)
}

/// The chain from its first link.
///
/// # Errors
/// As [`state`].
pub async fn ledger(facts: &dyn Metadata) -> anyhow::Result<Vec<LedgerEntry>> {
    pages!(
        facts,
        Ledger,
        last => AccountsQuery::Ledger { from: last.map_or(1, |height: u64| height + 1), entries_max: PAGE },
        |entry: &LedgerEntry| entry.height
    )
}

/// What was paid to each address, in the order asked.
///
/// # Errors
/// As [`state`].
pub async fn claimed(facts: &dyn Metadata, payouts: &[Address]) -> anyhow::Result<Vec<Amount>> {
    let mut paid = Vec::with_capacity(payouts.len());
    for some in payouts.chunks(ADDRESSES) {
        paid.extend(answer!(facts, AccountsQuery::Claimed { payouts: some.to_vec() }, Claimed));
    }
    Ok(paid)
}

/// # Errors
/// As [`state`].
pub async fn group_bytes(facts: &dyn Metadata) -> anyhow::Result<Vec<GroupBytes>> {
    Ok(answer!(facts, AccountsQuery::GroupBytes, GroupBytes))
}

/// What a node draws lots with, if the facts know it.
///
/// # Errors
/// As [`state`].
pub async fn lot_key(facts: &dyn Metadata, node: NodeId) -> anyhow::Result<Option<LotKey>> {
    Ok(answer!(facts, AccountsQuery::LotKey { node }, LotKey))
}

/// One node's account after an epoch.
///
/// # Errors
/// As [`state`].
pub async fn account(facts: &dyn Metadata, epoch: u64, node: NodeId) -> anyhow::Result<Option<NodeAccount>> {
    Ok(answer!(facts, AccountsQuery::Account { epoch, node }, Account).map(|account| *account))
}

/// What an address stakes on the embedded ledger.
///
/// # Errors
/// As [`state`].
pub async fn stake(facts: &dyn Metadata, payout: Address) -> anyhow::Result<Option<Stake>> {
    Ok(answer!(facts, AccountsQuery::Stake { payout }, Stake))
}

/// What an address's stake was given of the income.
///
/// # Errors
/// As [`state`].
pub async fn pledge(facts: &dyn Metadata, payout: Address) -> anyhow::Result<Option<Pledge>> {
    Ok(answer!(facts, AccountsQuery::Pledge { payout }, Pledge))
}

/// # Errors
/// As [`state`].
pub async fn trainings(facts: &dyn Metadata) -> anyhow::Result<Vec<Training>> {
    pages!(
        facts,
        Trainings,
        after => AccountsQuery::Trainings { after, entries_max: PAGE },
        |training: &Training| (training.node, training.spec)
    )
}

/// Prices, balances of tenants that pay in advance, and whether anything runs that is charged.
///
/// # Errors
/// As [`state`].
pub async fn billing(facts: &dyn Metadata) -> anyhow::Result<(Prices, Vec<Balance>, bool)> {
    match ask(facts, AccountsQuery::Billing).await? {
        AccountsAnswer::Billing { prices, balances, has_open_bills } => {
            Ok((prices, balances, has_open_bills))
        }
        other => bail!("the facts answered {other:?}"),
    }
}
