//! What stakes are given of the platform's income, and what is paid with it.
//!
//! ```text
//! sealing   charged − given back ─ income_bp ─> shared by weight: amount · (1 + min(age, ramp) / ramp) ─> pledges
//! an order  of a pledge's address ─> a tenant's balance
//! ```
//!
//! Income is what was received in the epoch; what is given back beyond it lessens a later one. It is shared in credits, the unit
//! it came in: no token is made or taken for it. On a chain its Staking contract shares what operators bring there.
//!
//! Always: what is shared is at most `income_bp` of all that was ever received; each share is rounded down, and what is left,
//! or has no stake to go to, stays with the platform; a pledge pays once for each serial and never more than it was given.

use serde::{Deserialize, Serialize};

use super::{DONE, billing, genesis, invalid, keys, ledger, refused, standing};
use crate::facts::Timestamp;
use crate::facts::accounts::{
    AccountsRefusal, AccountsReply, Address, Amount, Genesis, Hash, LedgerEvent, Pledge, PledgeOrder,
    PledgeTerms, RULES_PLEDGES, Stake, TenantRow,
};
use crate::facts::tenant::TenantId;
use crate::machine::draft::{Draft, Outcome, all, read};
use crate::machine::kv::KvError;
use crate::signatures::{keccak256, recover};

const BASIS_POINTS: u128 = 10_000;

/// What the sealing of an epoch takes over from earlier ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pool {
    /// Given back beyond what was received.
    deficit: Amount,
    /// Received since the last sealing for what was owed.
    late: Amount,
}

/// What an address signs to pay out of its pledge, for one ledger.
#[must_use]
pub fn pledge_digest(
    ledger: &Address,
    payout: &Address,
    serial: u64,
    tenant: TenantId,
    amount: Amount,
) -> Hash {
    let parts = [
        b"MAKAI pledge 1".as_slice(),
        &ledger.0,
        &payout.0,
        &serial.to_be_bytes(),
        &tenant.0.to_be_bytes(),
        &amount.0.to_be_bytes(),
    ];
    keccak256(&parts.concat())
}

/// The terms, where the rules and the ledger have pledges.
fn terms(genesis: &Genesis) -> Option<PledgeTerms> {
    genesis.pledge.filter(|_| genesis.rules >= RULES_PLEDGES && genesis.chain_id == 0)
}

/// A stake has changed: its age begins anew.
pub fn begin(draft: &mut Draft<'_>, genesis: &Genesis, payout: &Address) -> Result<(), KvError> {
    if terms(genesis).is_none() {
        return Ok(());
    }
    let place = keys::pledge(payout);
    let known: Option<Pledge> = read(draft, &place)?;
    let pledge = known.unwrap_or_else(|| Pledge::of(*payout, draft.now));
    draft.write(place, &Pledge { since: draft.now, ..pledge })
}

/// A tenant paid what it owed.
pub fn received(draft: &mut Draft<'_>, genesis: &Genesis, amount: Amount) -> Result<(), KvError> {
    if amount == Amount(0) || terms(genesis).is_none() {
        return Ok(());
    }
    let mut pool: Pool = read(draft, &keys::pledge_pool())?.unwrap_or_default();
    pool.late = pool.late.plus(amount);
    draft.write(keys::pledge_pool(), &pool)
}

/// `amount · (ramp + min(age, ramp))`: twice as much with a whole ramp as with none.
fn weight(amount: Amount, since: Timestamp, now: Timestamp, ramp_ms: u64) -> u128 {
    let ramp_ms = ramp_ms.max(1);
    amount.0.saturating_mul(u128::from(ramp_ms) + u128::from(now.millis_since(since).min(ramp_ms)))
}

/// Shares of `amount` by weights, each rounded down. Weights are taken to 64 bits of their sum, so that nothing overflows.
fn shares(amount: Amount, weights: &[u128]) -> Vec<Amount> {
    let sum = weights.iter().fold(0u128, |sum, weight| sum.saturating_add(*weight));
    let shift = (128 - sum.leading_zeros()).saturating_sub(64);
    let weights: Vec<u128> = weights.iter().map(|weight| weight >> shift).collect();
    let sum = weights.iter().fold(0u128, |sum, weight| sum.saturating_add(*weight));
    let amount = amount.0.min(u64::MAX.into());
    weights.into_iter().map(|weight| Amount((amount * weight).checked_div(sum).unwrap_or(0))).collect()
}

/// Shares an epoch's income; the tenants' rows are those of the epoch.
pub fn seal(draft: &mut Draft<'_>, epoch: u64, tenants: &[TenantRow]) -> Outcome<()> {
    let genesis = genesis(draft)?;
    let Some(PledgeTerms { income_bp, ramp_ms }) = terms(&genesis) else { return Ok(()) };
    let pool: Pool = read(draft, &keys::pledge_pool())?.unwrap_or_default();
    let received = tenants.iter().fold(pool.late, |sum, row| sum.plus(row.charged));
    let given_back = tenants.iter().fold(pool.deficit, |sum, row| sum.plus(row.refunded));
    let income = received.minus(given_back);
    let next = Pool { deficit: given_back.minus(received), late: Amount(0) };
    if next != pool {
        draft.write(keys::pledge_pool(), &next)?;
    }
    if income == Amount(0) {
        return Ok(());
    }
    let now = draft.now;
    let mut pledges = Vec::new();
    for stake in all::<Stake>(draft, &keys::stakes())? {
        let amount = stake.in_force(now);
        if amount > Amount(0) {
            // A stake that is older than these rules' records of it begins now.
            let pledge: Option<Pledge> = read(draft, &keys::pledge(&stake.payout))?;
            let pledge = pledge.unwrap_or_else(|| Pledge::of(stake.payout, now));
            pledges.push((pledge, weight(amount, pledge.since, now, ramp_ms)));
        }
    }
    let wanted = Amount(income.0.saturating_mul(u128::from(income_bp)) / BASIS_POINTS);
    let weights: Vec<u128> = pledges.iter().map(|(_, weight)| *weight).collect();
    let (mut shared, mut hasher) = (Amount(0), blake3::Hasher::new_derive_key("makai income 1"));
    let mut count = 0u64;
    for ((mut pledge, _), share) in pledges.into_iter().zip(shares(wanted, &weights)) {
        pledge.earned = pledge.earned.plus(share);
        shared = shared.plus(share);
        count += 1;
        hasher.update(&pledge.payout.0).update(&share.0.to_be_bytes());
        draft.write(keys::pledge(&pledge.payout), &pledge)?;
    }
    if count == 0 {
        return Ok(());
    }
    let hash = Hash(*hasher.finalize().as_bytes());
    let mut standing = standing(draft)?;
    let event = LedgerEvent::IncomeShared { epoch, income, shared, pledges: count, hash };
    ledger::append(draft, &mut standing, &event)?;
    draft.write(keys::standing(), &standing)?;
    Ok(())
}

/// Pays out of a pledge into a tenant's balance.
pub fn spend(draft: &mut Draft<'_>, order: &PledgeOrder) -> Outcome<AccountsReply> {
    let PledgeOrder { payout, serial, tenant, amount, signature } = order;
    let genesis = genesis(draft)?;
    let digest = pledge_digest(&genesis.ledger, payout, *serial, *tenant, *amount);
    if recover(&digest, signature) != Some(*payout) {
        return refused(AccountsRefusal::BadSignature(format!("it is not {payout}'s over this payment")));
    }
    let Some(mut pledge): Option<Pledge> = read(draft, &keys::pledge(payout))? else {
        return Err(invalid(format!("{payout} was given nothing of the income")));
    };
    if pledge.serial == *serial {
        return Ok(DONE);
    }
    if *serial < pledge.serial {
        return Err(invalid(format!("the order's serial must be above {}", pledge.serial)));
    }
    if *amount == Amount(0) || *amount > pledge.left() {
        return Err(invalid(format!("{payout} has {} left and cannot pay {amount}", pledge.left())));
    }
    pledge.serial = *serial;
    pledge.spent = pledge.spent.plus(*amount);
    draft.write(keys::pledge(payout), &pledge)?;
    billing::credit(draft, *tenant, *amount, &format!("pledge {payout} {serial}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RAMP_MS: u64 = 360 * 24 * 3600 * 1000;
    const TOKEN: u128 = 1_000_000_000_000_000_000;

    #[test]
    fn a_stake_weighs_twice_after_the_ramp_and_no_more() {
        let at = |days: u64| weight(Amount(7), Timestamp(5), Timestamp(5 + days * RAMP_MS / 360), RAMP_MS);
        assert_eq!(at(0), 7 * u128::from(RAMP_MS));
        assert_eq!(at(180), at(0) * 3 / 2);
        assert_eq!([at(360), at(1000)], [at(0) * 2, at(0) * 2]);
        // All tokens that can exist, with a whole ramp.
        let all = weight(Amount(2_100_000_000 * TOKEN), Timestamp(0), Timestamp(RAMP_MS), RAMP_MS);
        assert_eq!(shares(Amount(u128::MAX), &[all]), [Amount(u64::MAX.into())]);
        assert_eq!(shares(Amount(5), &[]), []);
        assert_eq!(shares(Amount(5), &[0, 0]), [Amount(0), Amount(0)]);
    }

    proptest! {
        /// Against exact fractions: no share is above its own, nor more than a unit and one part in 2^60 below, and together
        /// they are at most what there is.
        #[test]
        fn shares_are_what_weights_say(
            amount in 0u64..1_000_000_000_000_000,
            stakes in proptest::collection::vec((1u128..100_000_000, 0u64..2 * RAMP_MS), 1..20),
        ) {
            let now = Timestamp(2 * RAMP_MS);
            let weights: Vec<u128> = stakes
                .iter()
                .map(|(tokens, since)| weight(Amount(tokens * TOKEN), Timestamp(*since), now, RAMP_MS))
                .collect();
            let found = shares(Amount(amount.into()), &weights);
            let sum: u128 = found.iter().map(|share| share.0).sum();
            prop_assert!(sum <= u128::from(amount));
            // In whole tokens, so that the products fit.
            let exact: Vec<u128> = weights.iter().map(|weight| weight / TOKEN).collect();
            let all: u128 = exact.iter().sum();
            for (share, weight) in found.iter().zip(&exact) {
                let own = u128::from(amount) * weight / all;
                prop_assert!(share.0 <= own + 1, "{} of {own}", share.0);
                prop_assert!(share.0 + 2 + (own >> 40) >= own, "{} of {own}", share.0);
            }
        }
    }
}
