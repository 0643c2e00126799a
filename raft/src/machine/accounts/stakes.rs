//! What addresses put behind their nodes' work. On the embedded ledger out of what was paid to them, by their own order; on a
//! chain its staking contract says so, as far as signers agree on what they read there.

use std::collections::{BTreeMap, BTreeSet};

use makai_erasure::NodeId;

use super::keys::{self, ReportKind};
use super::{DONE, claims, genesis, invalid, ledger, meters, need_late_rules, pledges, refused, standing};
use crate::facts::Timestamp;
use crate::facts::accounts::{
    AccountsRefusal, AccountsReply, Address, Amount, Hash, LedgerEvent, NodeUsage, ROWS_MAX, RULES_LOTS,
    Stake, StakeOrder,
};
use crate::machine::draft::{Draft, Outcome, all, read};
use crate::signatures::{keccak256, recover};

/// What an address signs to stake, for one ledger.
#[must_use]
pub fn stake_digest(ledger: &Address, payout: &Address, serial: u64, amount: Amount) -> Hash {
    let parts =
        [b"MAKAI stake 1".as_slice(), &ledger.0, &payout.0, &serial.to_be_bytes(), &amount.0.to_be_bytes()];
    keccak256(&parts.concat())
}

impl Stake {
    /// What stands at `now`.
    #[must_use]
    pub fn in_force(&self, now: Timestamp) -> Amount {
        match self.next {
            Some((next, from)) if from <= now => next,
            _ => self.amount,
        }
    }
}

/// More counts at once; less after the time that a change of payout address takes.
pub fn order(draft: &mut Draft<'_>, order: &StakeOrder) -> Outcome<AccountsReply> {
    let genesis = need_late_rules(draft)?;
    if genesis.chain_id != 0 {
        let (chain_id, ledger) = (genesis.chain_id, genesis.ledger);
        return refused(AccountsRefusal::PaidByContract { chain_id, ledger });
    }
    let StakeOrder { payout, serial, amount, signature } = order;
    let digest = stake_digest(&genesis.ledger, payout, *serial, *amount);
    if recover(&digest, signature) != Some(*payout) {
        return refused(AccountsRefusal::BadSignature(format!("it is not {payout}'s over this stake")));
    }
    let place = keys::stake(payout);
    let known: Option<Stake> = read(draft, &place)?;
    let before = known.map_or(0, |known| known.serial);
    if known.is_some_and(|known| known.serial == *serial) {
        return Ok(DONE);
    }
    if *serial < before {
        return Err(invalid(format!("the order's serial must be above {before}")));
    }
    let paid: Amount = read(draft, &keys::claimed(payout))?.unwrap_or_default();
    if *amount > paid {
        return Err(invalid(format!("{payout} has claimed {paid} and cannot stake {amount}; claim first")));
    }
    let now = known.map_or(Amount(0), |known| known.in_force(draft.now));
    let (in_force, next, effective_at) = if *amount >= now {
        (*amount, None, draft.now)
    } else {
        let from = Timestamp(draft.now.0.saturating_add(genesis.payout_cooldown_ms));
        (now, Some((*amount, from)), from)
    };
    let mut standing = standing(draft)?;
    draft.write(place, &Stake { payout: *payout, serial: *serial, amount: in_force, next })?;
    pledges::begin(draft, &genesis, payout)?;
    ledger::append(draft, &mut standing, &LedgerEvent::Staked { order: order.clone(), effective_at })?;
    draft.write(keys::standing(), &standing)?;
    Ok(DONE)
}

pub fn report(
    draft: &mut Draft<'_>,
    epoch: u64,
    reporter: &NodeId,
    rows: &[(Address, Amount)],
) -> Outcome<AccountsReply> {
    need_late_rules(draft)?;
    meters::open_epoch(draft, epoch)?;
    if rows.len() > ROWS_MAX {
        return Err(invalid(format!("a report has at most {ROWS_MAX} stakes")));
    }
    if !claims::signers(draft)?.iter().any(|signer| signer.node == *reporter) {
        return Err(invalid(format!(
            "node {reporter} signs no claims: what it reads of stakes does not count"
        )));
    }
    draft.write(keys::report(epoch, ReportKind::Stakes, reporter, 0), rows)?;
    Ok(DONE)
}

/// The most that so many of all signers read, that they are more than half.
fn agreed(mut read: Vec<Amount>, signers: usize) -> Amount {
    read.sort_unstable_by(|a, b| b.cmp(a));
    read.get(signers / 2).copied().unwrap_or_default()
}

/// Writes what stands behind each node's address into its usage.
pub fn seal(draft: &Draft<'_>, epoch: u64, usage: &mut BTreeMap<NodeId, NodeUsage>) -> Outcome<()> {
    let genesis = genesis(draft)?;
    if genesis.rules < RULES_LOTS {
        return Ok(());
    }
    let payouts: BTreeSet<Address> = usage.values().filter_map(|record| record.payout).collect();
    let mut stakes: BTreeMap<Address, Amount> = BTreeMap::new();
    if genesis.chain_id == 0 {
        for payout in payouts {
            if let Some(stake) = read::<Stake>(draft, &keys::stake(&payout))? {
                stakes.insert(payout, stake.in_force(draft.now));
            }
        }
    } else {
        let signers = claims::signers(draft)?.len();
        let mut read: BTreeMap<Address, Vec<Amount>> = BTreeMap::new();
        for rows in all::<Vec<(Address, Amount)>>(draft, &keys::reports(epoch, ReportKind::Stakes))? {
            for (payout, amount) in rows.into_iter().collect::<BTreeMap<_, _>>() {
                read.entry(payout).or_default().push(amount);
            }
        }
        stakes = read.into_iter().map(|(payout, read)| (payout, agreed(read, signers))).collect();
    }
    for record in usage.values_mut() {
        let stake = record.payout.and_then(|payout| stakes.get(&payout));
        record.extra.stake = stake.copied().unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one signer makes up, or does not tell, changes nothing while more than half are honest.
    #[test]
    fn a_stake_counts_as_far_as_more_than_half_read_it() {
        let read =
            |amounts: &[u128], signers| agreed(amounts.iter().copied().map(Amount).collect(), signers).0;
        assert_eq!(read(&[5, 5, 1_000_000], 3), 5);
        assert_eq!(read(&[5, 5], 3), 5);
        assert_eq!(read(&[5, 0, 0], 3), 0);
        assert_eq!(read(&[7], 3), 0);
        assert_eq!(read(&[7], 1), 7);
        assert_eq!(read(&[9, 8], 2), 8);
        assert_eq!(read(&[], 3), 0);
    }
}
