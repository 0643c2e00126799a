//! Keys of the accounts' records: the table stands on the front page of [`super`].

use makai_erasure::{NodeId, PgId};

use crate::facts::accounts::{Address, Hash};
use crate::facts::jobs::JobId;
use crate::facts::tenant::TenantId;

const GENESIS: u8 = 0x80;
const EPOCH: u8 = 0x81;
const USAGE: u8 = 0x82;
const REPORT: u8 = 0x83;
const ACCOUNT: u8 = 0x84;
const LEAF: u8 = 0x85;
const GROUP_METER: u8 = 0x86;
const PAYOUT: u8 = 0x87;
const SIGNER: u8 = 0x88;
const ENTRY: u8 = 0x89;
const STANDING: u8 = 0x8A;
const CLAIMED: u8 = 0x8B;
const TENANT_USAGE: u8 = 0x8C;
const GROUP_SLOTS: u8 = 0x8D;
const MOVING: u8 = 0x8E;
const PRICES: u8 = 0x90;
const BALANCE: u8 = 0x91;
const PAYMENT: u8 = 0x92;
const BILL: u8 = 0x93;
const JOBS_USE: u8 = 0x94;
const LEASED: u8 = 0x95;
const JOB_COST: u8 = 0x96;
const LOT_KEY: u8 = 0x97;
const STAKE: u8 = 0x98;
const TRAINING: u8 = 0x99;
const PLEDGE: u8 = 0x9A;
const PLEDGE_POOL: u8 = 0x9B;

/// What a job came to so far.
pub fn job_cost(job: JobId) -> Vec<u8> {
    join(JOB_COST, &[&job.0.to_be_bytes()])
}

fn join(prefix: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(prefix);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

pub fn genesis() -> Vec<u8> {
    vec![GENESIS]
}

pub fn epoch(number: u64) -> Vec<u8> {
    join(EPOCH, &[&number.to_be_bytes()])
}

pub fn usage_of(epoch: u64) -> Vec<u8> {
    join(USAGE, &[&epoch.to_be_bytes()])
}

pub fn usage(epoch: u64, node: &NodeId) -> Vec<u8> {
    join(USAGE, &[&epoch.to_be_bytes(), &node.0])
}

/// What a report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ReportKind {
    Served = 0,
    Audits = 1,
    Lots = 2,
    Stakes = 3,
}

pub fn all_reports(epoch: u64) -> Vec<u8> {
    join(REPORT, &[&epoch.to_be_bytes()])
}

pub fn reports(epoch: u64, kind: ReportKind) -> Vec<u8> {
    join(REPORT, &[&epoch.to_be_bytes(), &[kind as u8]])
}

pub fn report(epoch: u64, kind: ReportKind, by: &NodeId, part: u32) -> Vec<u8> {
    join(REPORT, &[&epoch.to_be_bytes(), &[kind as u8], &by.0, &part.to_be_bytes()])
}

pub fn all_accounts(epoch: u64) -> Vec<u8> {
    join(ACCOUNT, &[&epoch.to_be_bytes()])
}

pub fn accounts(epoch: u64, attempt: u32) -> Vec<u8> {
    join(ACCOUNT, &[&epoch.to_be_bytes(), &attempt.to_be_bytes()])
}

pub fn account(epoch: u64, attempt: u32, node: &NodeId) -> Vec<u8> {
    join(ACCOUNT, &[&epoch.to_be_bytes(), &attempt.to_be_bytes(), &node.0])
}

pub fn all_leaves(epoch: u64) -> Vec<u8> {
    join(LEAF, &[&epoch.to_be_bytes()])
}

pub fn leaves(epoch: u64, attempt: u32) -> Vec<u8> {
    join(LEAF, &[&epoch.to_be_bytes(), &attempt.to_be_bytes()])
}

pub fn leaf(epoch: u64, attempt: u32, payout: &Address) -> Vec<u8> {
    join(LEAF, &[&epoch.to_be_bytes(), &attempt.to_be_bytes(), &payout.0])
}

pub fn group_meters() -> Vec<u8> {
    vec![GROUP_METER]
}

pub fn group_meter(pg: PgId) -> Vec<u8> {
    join(GROUP_METER, &[&pg.0.to_be_bytes()])
}

pub fn group_slots(pg: PgId) -> Vec<u8> {
    join(GROUP_SLOTS, &[&pg.0.to_be_bytes()])
}

pub fn payouts() -> Vec<u8> {
    vec![PAYOUT]
}

pub fn payout(node: &NodeId) -> Vec<u8> {
    join(PAYOUT, &[&node.0])
}

pub fn lot_key(node: &NodeId) -> Vec<u8> {
    join(LOT_KEY, &[&node.0])
}

pub fn stake(payout: &Address) -> Vec<u8> {
    join(STAKE, &[&payout.0])
}

pub fn stakes() -> Vec<u8> {
    vec![STAKE]
}

pub fn pledge(payout: &Address) -> Vec<u8> {
    join(PLEDGE, &[&payout.0])
}

pub fn pledge_pool() -> Vec<u8> {
    vec![PLEDGE_POOL]
}

pub fn trainings() -> Vec<u8> {
    vec![TRAINING]
}

pub fn trainings_of(node: &NodeId) -> Vec<u8> {
    join(TRAINING, &[&node.0])
}

pub fn training(node: &NodeId, spec: &Hash) -> Vec<u8> {
    join(TRAINING, &[&node.0, &spec.0])
}

pub fn signers() -> Vec<u8> {
    vec![SIGNER]
}

pub fn signer(address: &Address) -> Vec<u8> {
    join(SIGNER, &[&address.0])
}

pub fn entry(height: u64) -> Vec<u8> {
    join(ENTRY, &[&height.to_be_bytes()])
}

pub fn entries_end() -> Vec<u8> {
    vec![ENTRY + 1]
}

pub fn standing() -> Vec<u8> {
    vec![STANDING]
}

pub fn claimed(payout: &Address) -> Vec<u8> {
    join(CLAIMED, &[&payout.0])
}

pub fn tenant_usage(epoch: u64) -> Vec<u8> {
    join(TENANT_USAGE, &[&epoch.to_be_bytes()])
}

pub fn moving() -> Vec<u8> {
    vec![MOVING]
}

pub fn prices() -> Vec<u8> {
    vec![PRICES]
}

pub fn balances() -> Vec<u8> {
    vec![BALANCE]
}

pub fn balance(tenant: TenantId) -> Vec<u8> {
    join(BALANCE, &[&tenant.0.to_be_bytes()])
}

pub fn payment(tenant: TenantId, reference: &str) -> Vec<u8> {
    join(PAYMENT, &[&tenant.0.to_be_bytes(), reference.as_bytes()])
}

pub fn bills() -> Vec<u8> {
    vec![BILL]
}

pub fn bills_of(job: JobId) -> Vec<u8> {
    join(BILL, &[&job.0.to_be_bytes()])
}

pub fn bill(job: JobId, index: u32) -> Vec<u8> {
    join(BILL, &[&job.0.to_be_bytes(), &index.to_be_bytes()])
}

pub fn jobs_use(tenant: TenantId) -> Vec<u8> {
    join(JOBS_USE, &[&tenant.0.to_be_bytes()])
}

pub fn all_leased() -> Vec<u8> {
    vec![LEASED]
}

pub fn leased(node: &NodeId) -> Vec<u8> {
    join(LEASED, &[&node.0])
}
