//! What stakes are given of the income: of what was received, by amount and age, once; and what is paid with it.

use super::accounts::{EPOCH_MS, Keys, act, ask, close, genesis, opened_by, seal};
use super::*;
use crate::facts::accounts::*;
use crate::machine::accounts::{pledge_digest, stake_digest};

const TENANT: TenantId = TenantId(1);
const RAMP_MS: u64 = 10 * EPOCH_MS;
const TERMS: PledgeTerms = PledgeTerms { income_bp: 1020, ramp_ms: RAMP_MS };
const CREDIT: u128 = UNITS_PER_CREDIT;

fn by(rules: u32) -> (World, Vec<Keys>) {
    let (mut world, nodes) = opened_by(Genesis { rules, pledge: Some(TERMS), ..genesis(0) });
    act(&mut world, AccountsCommand::SetPrices(Prices { egress_gib: 1_000_000, ..Prices::default() }))
        .unwrap();
    (world, nodes)
}

fn stake(world: &mut World, keys: &Keys, serial: u64, amount: u128) {
    let (payout, amount) = (keys.address(), Amount(amount));
    let signature = keys.sign(&stake_digest(&genesis(0).ledger, &payout, serial, amount));
    act(world, AccountsCommand::Stake(StakeOrder { payout, serial, amount, signature })).unwrap();
}

/// Two addresses that have claimed 300 each, in epoch 1.
fn staked(world: &mut World, nodes: &[Keys]) {
    for node in &nodes[..2] {
        act(world, AccountsCommand::BindPayout(node.binding(node, 1))).unwrap();
    }
    let mut leaves: Vec<Leaf> =
        nodes[..2].iter().map(|keys| Leaf { payout: keys.address(), cumulative: Amount(300) }).collect();
    leaves.sort_unstable();
    close(world, nodes, 1, &leaves);
    for (leaf, other) in leaves.iter().zip(leaves.iter().rev()) {
        let proof = vec![crate::signatures::claim_leaf(&other.payout, other.cumulative.0)];
        act(world, AccountsCommand::Claim { epoch: 1, leaf: *leaf, proof }).unwrap();
    }
}

/// The tenant is served so many GiB, a credit each, and the epoch is sealed.
fn serve(world: &mut World, reporter: &Keys, epoch: u64, gib: u64) {
    let row = TenantRow { egress_bytes: gib << 30, ..TenantRow::of(TENANT) };
    let (served, tenants) = (vec![], vec![row]);
    let (reporter, part) = (reporter.id(), 0);
    act(world, AccountsCommand::Meter { epoch, reporter, part, served, tenants }).unwrap();
    seal(world, epoch);
}

fn pledge(world: &World, keys: &Keys) -> Option<Pledge> {
    match ask(world, AccountsQuery::Pledge { payout: keys.address() }) {
        AccountsAnswer::Pledge(found) => found,
        other => panic!("{other:?}"),
    }
}

fn earned(world: &World, keys: &Keys) -> u128 {
    pledge(world, keys).map_or(0, |pledge| pledge.earned.0)
}

fn pay_in(world: &mut World, credits: u128, reference: &str) {
    let (tenant, amount, reference) = (TENANT, Amount(credits * CREDIT), reference.to_owned());
    act(world, AccountsCommand::Credit { tenant, amount, reference }).unwrap();
}

#[test]
fn income_is_shared_by_amount_and_age() {
    let (mut world, nodes) = by(RULES_PLEDGES);
    let (old, new) = (&nodes[0], &nodes[1]);
    pay_in(&mut world, 100, "1");
    staked(&mut world, &nodes);
    stake(&mut world, old, 1, 200);
    // What is received while nobody stakes more than others goes to one alone; what was paid in and not used is no income.
    serve(&mut world, old, 2, 10);
    assert_eq!([earned(&world, old), earned(&world, new)], [CREDIT * 102 / 100, 0]);
    // Epochs without income share nothing, and let a stake grow old.
    for epoch in 3..13 {
        seal(&mut world, epoch);
    }
    stake(&mut world, new, 1, 100);
    let before = earned(&world, old);
    serve(&mut world, old, 13, 10);
    // 200 that weigh twice beside 100 that are an epoch old: 400 to 110.
    let (to_old, to_new) = (earned(&world, old) - before, earned(&world, new));
    let all = CREDIT * 102 / 100;
    assert_eq!([to_old, to_new], [all * 400 / 510, all * 110 / 510]);
    // Another order begins the age anew; what leaves still counts until it has left.
    stake(&mut world, old, 2, 100);
    let before = [earned(&world, old), earned(&world, new)];
    serve(&mut world, old, 14, 10);
    let got = [earned(&world, old) - before[0], earned(&world, new) - before[1]];
    assert_eq!(got, [all * 220 / 340, all * 120 / 340]);
}

/// More was used than was paid in: it is income once the debt is paid, and is shared then.
#[test]
fn what_is_owed_is_income_when_it_is_paid() {
    let (mut world, nodes) = by(RULES_PLEDGES);
    pay_in(&mut world, 1, "1");
    staked(&mut world, &nodes);
    stake(&mut world, &nodes[0], 1, 200);
    serve(&mut world, &nodes[0], 2, 5);
    assert_eq!(earned(&world, &nodes[0]), CREDIT * 102 / 1000, "one credit was there");
    pay_in(&mut world, 10, "2");
    seal(&mut world, 3);
    assert_eq!(earned(&world, &nodes[0]), 5 * CREDIT * 102 / 1000, "and four were owed");
    seal(&mut world, 4);
    assert_eq!(earned(&world, &nodes[0]), 5 * CREDIT * 102 / 1000, "once");
}

/// What was given pays for a tenant, by the address's word, once for each serial and never more than there is.
#[test]
fn a_share_pays_for_a_tenant_once() {
    let (mut world, nodes) = by(RULES_PLEDGES);
    let (owner, other) = (&nodes[0], &nodes[1]);
    pay_in(&mut world, 10, "1");
    staked(&mut world, &nodes);
    stake(&mut world, owner, 1, 200);
    serve(&mut world, owner, 2, 10);
    let given = earned(&world, owner);
    let order = |by: &Keys, serial, amount| {
        let (payout, tenant, amount) = (owner.address(), TENANT, Amount(amount));
        let signature = by.sign(&pledge_digest(&genesis(0).ledger, &payout, serial, tenant, amount));
        AccountsCommand::SpendPledge(PledgeOrder { payout, serial, tenant, amount, signature })
    };
    let balance = |world: &World| match ask(world, AccountsQuery::Billing) {
        AccountsAnswer::Billing { balances, .. } => balances[0].amount.0,
        other => panic!("{other:?}"),
    };
    assert_eq!(balance(&world), 0);
    assert!(act(&mut world, order(other, 1, 5)).is_err(), "another's word");
    assert!(act(&mut world, order(owner, 1, given + 1)).is_err(), "more than there is");
    assert!(act(&mut world, order(owner, 1, 0)).is_err());
    for _ in 0..2 {
        act(&mut world, order(owner, 1, given - 5)).unwrap();
    }
    assert_eq!((balance(&world), pledge(&world, owner).unwrap().left()), (given - 5, Amount(5)));
    act(&mut world, order(owner, 2, 5)).unwrap();
    assert!(act(&mut world, order(owner, 3, 1)).is_err());
    assert!(act(&mut world, order(owner, 1, 1)).is_err(), "an order of before");
    assert_eq!(balance(&world), given);
}

/// By earlier rules, and on a chain, nothing is shared here, and no record is made.
#[test]
fn earlier_rules_share_nothing() {
    let (mut world, nodes) = by(RULES_LOTS);
    pay_in(&mut world, 10, "1");
    staked(&mut world, &nodes);
    stake(&mut world, &nodes[0], 1, 200);
    serve(&mut world, &nodes[0], 2, 5);
    assert_eq!(pledge(&world, &nodes[0]), None);
}
