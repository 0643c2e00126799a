//! What tenants pay: holds for attempts, charges while they run and for data, refunds of what was lost.
//!
//! ```text
//! assign ─ hold two minutes ─> runs ─ charged each minute ─> ended: the rest charged, the hold released | lost: refunded
//!            nothing free: it waits      nothing left: its job ends
//! sealing of an epoch ─ bytes kept and moved ─> charged from what is free; what cannot be paid is owed
//! ```
//!
//! Always: a balance is never below what is held of it, nor below zero; a payment counts once; an attempt that its node or
//! the pool lost costs nothing. Tenants without a balance are metered and not charged.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use makai_erasure::NodeId;
use serde::{Deserialize, Serialize};

use super::{invalid, keys, ledger, pledges, standing, stop};
use crate::facts::Timestamp;
use crate::facts::accounts::{
    AccountsRefusal, AccountsReply, Amount, Balance, Computed, HOLD_MS, LedgerEvent, NodeUsage, PRICE_MAX,
    Prices, REFERENCE_BYTES_MAX, SliceTime, TenantRow,
};
use crate::facts::jobs::{Job, JobId, Resources};
use crate::facts::tenant::{Tenant, TenantId};
use crate::machine::draft::{Draft, Outcome, all, read, scan_records};
use crate::machine::keys as facts;
use crate::machine::kv::{KvError, View};
use crate::machine::{jobs, tenants};

/// What a current attempt has cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Bill {
    job: JobId,
    index: u32,
    tenant: TenantId,
    node: NodeId,
    resources: Resources,
    /// Slices until then are counted for the tenant, and charged.
    charged_to: Timestamp,
    counted: SliceTime,
    charged: Amount,
    held: Amount,
}

/// What a tenant's jobs came to in the epoch that is open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct JobsUse {
    slices: SliceTime,
    charged: Amount,
    refunded: Amount,
}

/// What a node did for jobs in the epoch that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Leased {
    node: NodeId,
    slices: SliceTime,
    attempts: u32,
    #[serde(default)]
    computed: Computed,
    /// By later rules: what it verified, and the runs that all lost.
    #[serde(default, skip_serializing_if = "is_nothing")]
    verified: (u64, u32),
}

fn is_nothing(verified: &(u64, u32)) -> bool {
    *verified == (0, 0)
}

impl Leased {
    /// Nothing yet.
    fn of(node: NodeId) -> Self {
        Self {
            node,
            slices: SliceTime::default(),
            attempts: 0,
            computed: Computed::default(),
            verified: (0, 0),
        }
    }
}

/// How an attempt ended, for whoever pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By its own doing: it is charged, and its node earned it.
    ByItself,
    /// The customer, or an empty balance, ended it: what it used until now is charged.
    Cancelled,
    /// Its node or the pool failed it: nothing is charged.
    Lost,
    /// Its result waits for others to agree, or none ever will: it is charged, and earned where it is found right.
    Undecided,
}

pub fn prices(view: &dyn View) -> Outcome<Prices> {
    Ok(read(view, &keys::prices())?.unwrap_or_default())
}

pub fn balances(view: &dyn View) -> Outcome<Vec<Balance>> {
    Ok(all(view, &keys::balances())?)
}

pub fn has_open_bills(view: &dyn View) -> Outcome<bool> {
    let (mut found, prefix) = (false, keys::bills());
    scan_records::<Bill>(view, &prefix, &facts::end_of(&prefix), &mut |_, _| {
        found = true;
        ControlFlow::Break(())
    })?;
    Ok(found)
}

fn balance(view: &dyn View, tenant: TenantId) -> Result<Option<Balance>, KvError> {
    read(view, &keys::balance(tenant))
}

fn write(draft: &mut Draft<'_>, mut balance: Balance) -> Result<(), KvError> {
    balance.changed_at = draft.now;
    draft.write(keys::balance(balance.tenant), &balance)
}

pub fn set_prices(draft: &mut Draft<'_>, prices: &Prices) -> Outcome<AccountsReply> {
    if prices.all().iter().any(|price| *price > PRICE_MAX) {
        return Err(invalid(format!("a price is at most {PRICE_MAX} millionths of a credit")));
    }
    draft.write(keys::prices(), prices)?;
    Ok(AccountsReply::Done)
}

pub fn credit(
    draft: &mut Draft<'_>,
    tenant: TenantId,
    amount: Amount,
    reference: &str,
) -> Outcome<AccountsReply> {
    let genesis = super::genesis(draft)?;
    tenants::get(draft, tenant)?;
    if reference.is_empty() || reference.len() > REFERENCE_BYTES_MAX {
        return Err(invalid(format!("a payment has a reference of 1 to {REFERENCE_BYTES_MAX} bytes")));
    }
    let place = keys::payment(tenant, reference);
    let mut balance = balance(draft, tenant)?.unwrap_or_else(|| Balance::of(tenant));
    if let Some(known) = read::<Amount>(draft, &place)? {
        if known != amount {
            return Err(invalid(format!("payment {reference:?} of this tenant was {known}, not {amount}")));
        }
        return Ok(AccountsReply::Balance(balance));
    }
    if balance.credited.0.checked_add(amount.0).is_none() {
        return Err(invalid("no tenant can pay in so much"));
    }
    draft.write(place, &amount)?;
    balance.credited = balance.credited.plus(amount);
    let due = balance.owed.min(amount);
    pledges::received(draft, &genesis, due)?;
    balance.owed = balance.owed.minus(due);
    balance.spent = balance.spent.plus(due);
    balance.amount = balance.amount.plus(amount.minus(due));
    let mut standing = standing(draft)?;
    let event = LedgerEvent::Credited { tenant, amount, reference: reference.to_owned() };
    ledger::append(draft, &mut standing, &event)?;
    draft.write(keys::standing(), &standing)?;
    write(draft, balance.clone())?;
    Ok(AccountsReply::Balance(Balance { changed_at: draft.now, ..balance }))
}

/// Whether a tenant may keep more bytes. What it runs may still write: that is paid for.
pub fn may_grow(view: &dyn View, tenant: TenantId) -> Outcome<()> {
    match balance(view, tenant)? {
        Some(balance) if balance.amount == Amount(0) => spent(Amount(1), &balance),
        _ => Ok(()),
    }
}

fn spent<T>(needed: Amount, balance: &Balance) -> Outcome<T> {
    Err(stop(AccountsRefusal::BalanceSpent { needed, free: balance.free() }))
}

fn hold_of(prices: &Prices, resources: &Resources, time_limit_ms: u64) -> Amount {
    prices.of_slices(&SliceTime::of(resources, HOLD_MS.min(time_limit_ms)))
}

/// Whether one task of a job could be begun now.
///
/// # Errors
/// [`AccountsRefusal::BalanceSpent`]
pub fn may_submit(
    view: &dyn View,
    tenant: TenantId,
    resources: &Resources,
    time_limit_ms: u64,
) -> Outcome<()> {
    let Some(balance) = balance(view, tenant)? else { return Ok(()) };
    let needed = hold_of(&prices(view)?, resources, time_limit_ms).max(Amount(1));
    if balance.free() < needed { spent(needed, &balance) } else { Ok(()) }
}

/// Whether tasks of a job wait for its tenant's next payment.
pub fn waits(view: &dyn View, job: &Job) -> Result<bool, KvError> {
    // A gang begins as a whole.
    let attempts = if job.spec.is_gang { job.spec.tasks.into() } else { 1 };
    match may_admit(view, job, attempts) {
        Ok(may) => Ok(!may),
        Err(crate::machine::draft::Stop::Refused(_)) => Ok(true),
        Err(crate::machine::draft::Stop::Broken(error)) => Err(error),
    }
}

/// What a job came to so far by the cluster's prices, charged or not, in billionths of a credit.
pub fn cost_of(view: &dyn View, job: JobId) -> Result<Amount, KvError> {
    Ok(read(view, &keys::job_cost(job))?.unwrap_or_default())
}

/// Nobody will ask what this job cost.
pub fn forget(draft: &mut Draft<'_>, job: JobId) {
    draft.delete(keys::job_cost(job));
}

/// Millionths of a credit as billionths.
fn price_max(job: &Job) -> Option<Amount> {
    (job.spec.price_max > 0).then(|| Amount(u128::from(job.spec.price_max) * 1000))
}

/// Whether the first minutes of so many more attempts keep a job within its maximum price.
pub fn is_within_price(view: &dyn View, job: &Job, attempts: u64) -> Outcome<bool> {
    let Some(most) = price_max(job) else { return Ok(true) };
    let first = hold_of(&prices(view)?, &job.spec.resources, job.spec.time_limit_ms);
    let mut expected = Amount(first.0.saturating_mul(attempts.into()));
    for bill in all::<Bill>(view, &keys::bills_of(job.id))? {
        expected = expected.plus(bill.held.max(first));
    }
    Ok(cost_of(view, job.id)?.plus(expected) <= most)
}

/// Whether the first minutes of so many attempts can be paid together.
pub fn may_admit(view: &dyn View, job: &Job, attempts: u64) -> Outcome<bool> {
    let Some(balance) = balance(view, job.tenant)? else { return Ok(true) };
    let held = hold_of(&prices(view)?, &job.spec.resources, job.spec.time_limit_ms);
    Ok(balance.free() >= Amount(held.0.saturating_mul(attempts.into())).max(Amount(1)))
}

/// Sets the first minutes of an attempt aside and opens its bill. `false`: they cannot be paid, it must wait.
pub fn admit(
    draft: &mut Draft<'_>,
    job: &Job,
    index: u32,
    node: NodeId,
    resources: Resources,
) -> Outcome<bool> {
    let tenant = job.tenant;
    let mut held = Amount(0);
    if let Some(mut balance) = balance(draft, tenant)? {
        held = hold_of(&prices(draft)?, &resources, job.spec.time_limit_ms);
        if balance.free() < held.max(Amount(1)) {
            return Ok(false);
        }
        balance.held = balance.held.plus(held);
        write(draft, balance)?;
    }
    let (counted, charged) = (SliceTime::default(), Amount(0));
    let charged_to = draft.now;
    let bill = Bill { job: job.id, index, tenant, node, resources, charged_to, counted, charged, held };
    draft.write(keys::bill(job.id, index), &bill)?;
    Ok(true)
}

/// Charges what an attempt used since it was charged last.
fn charge(draft: &mut Draft<'_>, bill: &mut Bill) -> Result<(), KvError> {
    let slices = SliceTime::of(&bill.resources, draft.now.millis_since(bill.charged_to));
    bill.charged_to = draft.now.max(bill.charged_to);
    bill.counted = bill.counted.plus(slices);
    let mut paid = Amount(0);
    let prices: Prices = read(draft, &keys::prices())?.unwrap_or_default();
    let cost = prices.of_slices(&slices);
    if cost > Amount(0) {
        let sum = cost_of(draft, bill.job)?.plus(cost);
        draft.write(keys::job_cost(bill.job), &sum)?;
    }
    if let Some(mut balance) = balance(draft, bill.tenant)? {
        // Two charges were held, so that less is left only where the cluster itself was away for minutes.
        paid = cost.min(balance.amount);
        balance.amount = balance.amount.minus(paid);
        balance.held = balance.held.min(balance.amount);
        balance.spent = balance.spent.plus(paid);
        write(draft, balance)?;
    }
    bill.charged = bill.charged.plus(paid);
    let place = keys::jobs_use(bill.tenant);
    let mut sum: JobsUse = read(draft, &place)?.unwrap_or_default();
    sum.slices = sum.slices.plus(slices);
    sum.charged = sum.charged.plus(paid);
    draft.write(place, &sum)
}

/// Another attempt at the task goes on in the place of the one that was billed: its node earns from its own beginning.
pub fn moved(
    draft: &mut Draft<'_>,
    job: JobId,
    index: u32,
    node: NodeId,
    began: Timestamp,
) -> Result<(), KvError> {
    let place = keys::bill(job, index);
    let Some(mut bill) = read::<Bill>(draft, &place)? else { return Ok(()) };
    charge(draft, &mut bill)?;
    bill.node = node;
    bill.counted = SliceTime::of(&bill.resources, draft.now.millis_since(began));
    draft.write(place, &bill)
}

/// An attempt is not current any more.
pub fn ended(draft: &mut Draft<'_>, job: JobId, index: u32, how: Ended) -> Result<(), KvError> {
    let place = keys::bill(job, index);
    // An attempt that a release before assigned has no bill.
    let Some(mut bill) = read::<Bill>(draft, &place)? else { return Ok(()) };
    draft.delete(place);
    if how != Ended::Lost {
        charge(draft, &mut bill)?;
    }
    if how == Ended::Lost {
        let prices: Prices = read(draft, &keys::prices())?.unwrap_or_default();
        let left = cost_of(draft, job)?.minus(prices.of_slices(&bill.counted));
        draft.write(keys::job_cost(job), &left)?;
    }
    let prepaid = balance(draft, bill.tenant)?;
    let is_paid = prepaid.is_some();
    if let Some(mut balance) = prepaid {
        balance.held = balance.held.minus(bill.held);
        if how == Ended::Lost {
            balance.amount = balance.amount.plus(bill.charged);
            balance.spent = balance.spent.minus(bill.charged);
        }
        write(draft, balance)?;
    }
    if how == Ended::Lost && bill.charged > Amount(0) {
        let place = keys::jobs_use(bill.tenant);
        let mut sum: JobsUse = read(draft, &place)?.unwrap_or_default();
        sum.refunded = sum.refunded.plus(bill.charged);
        draft.write(place, &sum)?;
    }
    // What a customer ends who does not pay is nobody's earning: it would be work for nothing but the reward.
    let is_earned = how == Ended::ByItself || (how == Ended::Cancelled && is_paid);
    if is_earned {
        credit_node(draft, bill.node, Some(bill.counted), Computed::default())?;
    }
    Ok(())
}

/// What a current attempt has held of its node until now.
pub fn slices_until_now(view: &Draft<'_>, job: JobId, index: u32) -> Result<SliceTime, KvError> {
    let bill: Option<Bill> = read(view, &keys::bill(job, index))?;
    Ok(bill.map_or_else(SliceTime::default, |bill| {
        bill.counted.plus(SliceTime::of(&bill.resources, view.now.millis_since(bill.charged_to)))
    }))
}

/// Counts what a node did for jobs: slices of an attempt, and what comparing its results found.
pub fn credit_node(
    draft: &mut Draft<'_>,
    node: NodeId,
    slices: Option<SliceTime>,
    computed: Computed,
) -> Result<(), KvError> {
    let place = keys::leased(&node);
    let mut sum: Leased = read(draft, &place)?.unwrap_or_else(|| Leased::of(node));
    if let Some(slices) = slices {
        sum.slices = sum.slices.plus(slices);
        sum.attempts = sum.attempts.saturating_add(1);
    }
    sum.computed = sum.computed.plus(computed);
    draft.write(place, &sum)
}

/// What is counted for a node: attempts, right and wrong answers, what it verified, what all lost.
#[cfg(test)]
pub fn counted(view: &dyn View, node: NodeId) -> (u32, u32, u32, u64, u32) {
    let leased: Option<Leased> = read(view, &keys::leased(&node)).unwrap();
    leased.map_or((0, 0, 0, 0, 0), |leased| {
        let Computed { pass, fail, .. } = leased.computed;
        (leased.attempts, pass, fail, leased.verified.0, leased.verified.1)
    })
}

/// Counts what a node ran again for others, and runs that all who were asked lost.
pub fn credit_verifier(
    draft: &mut Draft<'_>,
    node: NodeId,
    slices: &SliceTime,
    forfeited: u32,
) -> Result<(), KvError> {
    let place = keys::leased(&node);
    let mut sum: Leased = read(draft, &place)?.unwrap_or_else(|| Leased::of(node));
    let (verified_ms, lost) = sum.verified;
    let ms = if forfeited > 0 { 0 } else { slices.in_cores_ms() };
    sum.verified = (verified_ms.saturating_add(ms), lost.saturating_add(forfeited));
    draft.write(place, &sum)
}

/// Charges every attempt until now. Tenants that cannot pay the next minutes of all that they run have the jobs that they
/// submitted last ended, until they can.
pub fn charge_all(draft: &mut Draft<'_>) -> Outcome<()> {
    let mut by_tenant: BTreeMap<TenantId, BTreeMap<JobId, Amount>> = BTreeMap::new();
    for mut bill in all::<Bill>(draft, &keys::bills())? {
        charge(draft, &mut bill)?;
        let jobs = by_tenant.entry(bill.tenant).or_default();
        let held = jobs.entry(bill.job).or_default();
        *held = held.plus(bill.held);
        draft.write(keys::bill(bill.job, bill.index), &bill)?;
    }
    for jobs in by_tenant.values_mut() {
        for id in jobs.keys().copied().collect::<Vec<_>>() {
            let most = jobs::job(draft, id)?.and_then(|job| price_max(&job));
            if let Some(most) = most
                && cost_of(draft, id)? >= most
            {
                jobs::end_job(draft, id, jobs::PRICE_REACHED)?;
                jobs.remove(&id);
            }
        }
    }
    for (tenant, jobs) in by_tenant {
        let Some(mut balance) = balance(draft, tenant)? else { continue };
        let mut needed = jobs.values().fold(Amount(0), |sum, held| sum.plus(*held));
        let mut ending = Vec::new();
        for (job, held) in jobs.into_iter().rev() {
            if balance.amount >= needed && balance.amount > Amount(0) {
                break;
            }
            needed = needed.minus(held);
            ending.push(job);
        }
        for job in ending {
            let why = "the tenant's prepaid balance is used up; credit it and submit the job again";
            jobs::end_job(draft, job, why)?;
        }
        if let Some(now) = self::balance(draft, tenant)? {
            balance = now;
        }
        balance.held = needed.min(balance.amount);
        write(draft, balance)?;
    }
    Ok(())
}

/// Jobs' use goes to their nodes and tenants; tenants' data is charged. Returns the rows of tenants that used anything.
pub fn seal(
    draft: &mut Draft<'_>,
    usage: &mut BTreeMap<NodeId, NodeUsage>,
    mut rows: BTreeMap<TenantId, TenantRow>,
) -> Outcome<Vec<TenantRow>> {
    charge_all(draft)?;
    for leased in all::<Leased>(draft, &keys::all_leased())? {
        if let Some(record) = usage.get_mut(&leased.node) {
            record.lease = leased.slices;
            record.jobs_ok = record.jobs_ok.saturating_add(leased.attempts);
            record.jobs_disputed = record.jobs_disputed.saturating_add(leased.computed.fail);
            record.computed = record.computed.plus(leased.computed);
            (record.extra.verified_ms, record.extra.forfeited_runs) = leased.verified;
        }
        draft.delete(keys::leased(&leased.node));
    }
    let prices = prices(draft)?;
    for mut tenant in all::<Tenant>(draft, &facts::tenants())? {
        tenant.count_to(draft.now);
        let row = rows.entry(tenant.id).or_insert_with(|| TenantRow::of(tenant.id));
        row.stored_byte_ms = std::mem::take(&mut tenant.byte_ms);
        let place = keys::jobs_use(tenant.id);
        if let Some(jobs) = read::<JobsUse>(draft, &place)? {
            (row.slices, row.charged, row.refunded) = (jobs.slices, jobs.charged, jobs.refunded);
            draft.delete(place);
        }
        if row.stored_byte_ms > 0 {
            draft.write(facts::tenant(tenant.id), &tenant)?;
        }
        if let Some(mut balance) = balance(draft, tenant.id)? {
            let cost = prices.of_data(row.stored_byte_ms, row.ingress_bytes, row.egress_bytes, row.requests);
            let paid = cost.min(balance.free());
            balance.amount = balance.amount.minus(paid);
            balance.spent = balance.spent.plus(paid);
            balance.owed = balance.owed.plus(cost.minus(paid));
            row.charged = row.charged.plus(paid);
            row.owed = cost.minus(paid);
            write(draft, balance)?;
        }
    }
    Ok(rows.into_iter().filter(|(id, row)| *row != TenantRow::of(*id)).map(|(_, row)| row).collect())
}
