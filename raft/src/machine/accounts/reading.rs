//! Answers about the accounts, each from one view.

use std::ops::ControlFlow;

use serde::de::DeserializeOwned;

use super::keys;
use super::{billing, claims, genesis, meters, standing};
use crate::facts::accounts::{
    AccountsAnswer, AccountsQuery, AccountsState, Amount, Epoch, Genesis, GroupBytes, LedgerEntry,
    NodeAccount,
};
use crate::facts::command::Refusal;
use crate::facts::query::Answer;
use crate::machine::draft::{Outcome, read, scan_records};
use crate::machine::keys as facts;
use crate::machine::kv::View;
use crate::machine::page;

/// Addresses in one question.
const ADDRESSES_MAX: usize = 10_000;

pub fn answer(view: &dyn View, query: &AccountsQuery) -> Outcome<Answer> {
    use AccountsAnswer as A;
    use AccountsQuery as Q;
    let answer = match query {
        Q::State => A::State(state(view)?.map(Box::new)),
        Q::Epochs { from, entries_max } => {
            let end = facts::end_of(&keys::epoch(u64::MAX));
            A::Epochs(page_of::<Epoch>(view, &keys::epoch(*from), &end, *entries_max)?)
        }
        Q::Usage { epoch, after, entries_max } => {
            let prefix = keys::usage_of(*epoch);
            let from = after.map(|node| facts::after(&keys::usage(*epoch, &node)));
            A::Usage(page_below(view, &prefix, from, *entries_max)?)
        }
        Q::TenantUsage { epoch } => {
            A::TenantUsage(read(view, &keys::tenant_usage(*epoch))?.unwrap_or_default())
        }
        Q::Accounts { epoch, after, entries_max } => {
            let attempt = attempt_of(view, *epoch)?;
            let from = after.map(|node| facts::after(&keys::account(*epoch, attempt, &node)));
            A::Accounts(page_below(view, &keys::accounts(*epoch, attempt), from, *entries_max)?)
        }
        Q::Leaves { epoch, after, entries_max } => {
            let attempt = attempt_of(view, *epoch)?;
            let from = after.map(|payout| facts::after(&keys::leaf(*epoch, attempt, &payout)));
            A::Leaves(page_below(view, &keys::leaves(*epoch, attempt), from, *entries_max)?)
        }
        Q::Payouts { after, entries_max } => {
            let from = after.map(|node| facts::after(&keys::payout(&node)));
            A::Payouts(page_below(view, &keys::payouts(), from, *entries_max)?)
        }
        Q::Ledger { from, entries_max } => {
            let end = keys::entries_end();
            A::Ledger(page_of::<LedgerEntry>(view, &keys::entry(*from), &end, *entries_max)?)
        }
        Q::Claimed { payouts } => {
            if payouts.len() > ADDRESSES_MAX {
                return Err(Refusal::Invalid(format!("at most {ADDRESSES_MAX} addresses at once")).into());
            }
            let paid = |payout| Ok(read::<Amount>(view, &keys::claimed(payout))?.unwrap_or_default());
            A::Claimed(payouts.iter().map(paid).collect::<Outcome<_>>()?)
        }
        Q::Billing => A::Billing {
            prices: billing::prices(view)?,
            balances: billing::balances(view)?,
            has_open_bills: billing::has_open_bills(view)?,
        },
        Q::LotKey { node } => A::LotKey(read(view, &keys::lot_key(node))?),
        Q::Stake { payout } => A::Stake(read(view, &keys::stake(payout))?),
        Q::Pledge { payout } => A::Pledge(read(view, &keys::pledge(payout))?),
        Q::Trainings { after, entries_max } => {
            let from = after.map(|(node, spec)| facts::after(&keys::training(&node, &spec)));
            A::Trainings(page_below(view, &keys::trainings(), from, *entries_max)?)
        }
        Q::Account { epoch, node } => {
            let attempt = attempt_of(view, *epoch)?;
            let found: Option<NodeAccount> = read(view, &keys::account(*epoch, attempt, node))?;
            A::Account(found.map(Box::new))
        }
        Q::GroupBytes => {
            let mut groups = Vec::new();
            for (pg, meter) in meters::group_meters(view)? {
                let last_sequence: u64 = read(view, &facts::group_sequence(pg))?.unwrap_or(0);
                groups.push(GroupBytes { pg, slot_bytes: meter.slot_bytes, last_sequence });
            }
            A::GroupBytes(groups)
        }
    };
    Ok(Answer::Accounts(answer))
}

fn state(view: &dyn View) -> Outcome<Option<AccountsState>> {
    if read::<Genesis>(view, &keys::genesis())?.is_none() {
        return Ok(None);
    }
    let standing = standing(view)?;
    Ok(Some(AccountsState {
        genesis: genesis(view)?,
        open: standing.open,
        signed: standing.signed,
        signed_total: standing.signed_total,
        claimed_total: standing.claimed_total,
        head: standing.head,
        signers: claims::signers(view)?,
        kept_from: standing.kept_from,
        moved_after: standing.moved_after,
        leaves_from: standing.leaves_from(),
    }))
}

/// The attempt whose accounts count: the one proposed last.
fn attempt_of(view: &dyn View, epoch: u64) -> Outcome<u32> {
    let epoch: Option<Epoch> = read(view, &keys::epoch(epoch))?;
    Ok(epoch.and_then(|epoch| epoch.result).map_or(0, |result| result.attempt))
}

fn page_below<T: DeserializeOwned>(
    view: &dyn View,
    prefix: &[u8],
    from: Option<Vec<u8>>,
    entries_max: u32,
) -> Outcome<Vec<T>> {
    page_of(view, &from.unwrap_or_else(|| prefix.to_vec()), &facts::end_of(prefix), entries_max)
}

fn page_of<T: DeserializeOwned>(
    view: &dyn View,
    from: &[u8],
    to: &[u8],
    entries_max: u32,
) -> Outcome<Vec<T>> {
    let entries_max = page(entries_max);
    let mut found = Vec::new();
    if entries_max > 0 {
        scan_records(view, from, to, &mut |_, record| {
            found.push(record);
            if found.len() < entries_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
    }
    Ok(found)
}
