//! One epoch: what each node earned, by which component, and what may be claimed after it.
//!
//! Per component: `budget · s · R · m / max(Σ s · R · m, D)`, rounded down, where `s` is what was served and verified, `R` what
//! the node's reputation leaves, `m` what the stake behind it adds, and `D` what was expected to be served. What is not paid
//! stays in the pool. Who drew no prize leaves the lottery's to those who did; where nobody did, it stays too.
//!
//! Storage is credited from one audit that passed to the next: bytes held meanwhile wait in the account, a failed or
//! unanswered audit voids them. So a node that dropped data earns nothing for it, whatever it says.

use std::collections::BTreeMap;

use makai_erasure::NodeId;
use makai_raft::facts::accounts::{
    AccountExtra, Address, Amount, CORES_PER_CARD, Component, Hash, LOT_PROOF_BYTES, Leaf, Lot, NodeAccount,
    NodeUsage, Reason, SliceTime, Status,
};

use super::fixed::{PPM, blend, exp2_neg, mul_div};
use super::tokenomics::{
    BASIS_POINTS, BoostRules, MONTH_MS, RULES_COMPUTING, RULES_LEASES, RULES_LOTS, RULES_PLEDGES, Tokenomics,
};
use crate::audit::proof::LEAF_BYTES;
use crate::computing::lottery;
use crate::computing::vrf::VrfPublic;
use crate::reputation::{self, multiplier_ppm, score_ppm};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Storage is weighed in KiB-seconds, so that a million nodes' weights fit.
const BYTE_MS_PER_WEIGHT: u128 = 1024 * 1000;

/// Billionths in a thousandth.
const NUT_PER_MUT: u128 = 1_000_000;

/// What an epoch is computed from: agreed facts, and nothing else.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    /// Of the cluster's genesis.
    pub rules: u32,
    pub table: &'a Tokenomics,
    pub epoch: u64,
    pub epoch_ms: u64,
    /// What lots of the epoch are drawn by.
    pub beacon: Hash,
    /// By node, ascending.
    pub usage: &'a [NodeUsage],
    /// Accounts and leaves after the epoch before; ascending.
    pub accounts: &'a [NodeAccount],
    pub leaves: &'a [Leaf],
    /// As the epoch before expected; empty: nothing is expected yet.
    pub difficulty: &'a [(Component, Amount)],
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// By node, ascending.
    pub accounts: Vec<NodeAccount>,
    /// By address, ascending.
    pub leaves: Vec<Leaf>,
    /// Sum of the leaves.
    pub total: Amount,
    /// Earned in this epoch by all.
    pub earned: Amount,
    /// Expected of the next epoch.
    pub difficulty: Vec<(Component, Amount)>,
}

/// An account before its first epoch.
#[must_use]
pub fn new_account(node: NodeId, table: &Tokenomics, epoch: u64) -> NodeAccount {
    NodeAccount {
        node,
        payout: None,
        first_epoch: epoch,
        status: Status::Vetting,
        status_since: epoch,
        status_why: String::new(),
        alpha_ppm: table.reputation.alpha_first.saturating_mul(PPM),
        beta_ppm: 0,
        unknown_alpha_ppm: 0,
        unknown_beta_ppm: 0,
        audits: 0,
        consecutive_fails: 0,
        failed_epochs: 0,
        pending_byte_ms: 0,
        power_nut: 0,
        earned: Vec::new(),
        reasons: Vec::new(),
        earned_total: Amount(0),
        held: Amount(0),
        unassigned: Amount(0),
        extra: AccountExtra::default(),
    }
}

/// Computes an epoch. O(nodes · log nodes).
#[must_use]
pub fn settle(inputs: &Inputs<'_>) -> Outcome {
    let table = inputs.table;
    let mut accounts: BTreeMap<NodeId, NodeAccount> =
        inputs.accounts.iter().map(|account| (account.node, account.clone())).collect();
    for account in accounts.values_mut() {
        account.earned.clear();
        account.reasons.clear();
    }
    let lots = Lots::of(inputs, &mut accounts);
    // Verified work by component, of those who may earn.
    let mut scores: BTreeMap<Component, Vec<(NodeId, u128)>> = BTreeMap::new();
    for usage in inputs.usage {
        let account =
            accounts.entry(usage.node).or_insert_with(|| new_account(usage.node, table, inputs.epoch));
        account.payout = usage.payout.or(account.payout);
        reputation::update(account, usage, table, inputs.epoch, inputs.epoch_ms);
        if inputs.rules >= RULES_COMPUTING {
            reputation::update_computing(account, usage, &table.reputation);
            forfeit(account, usage, inputs);
        }
        for (component, score) in weigh(account, usage, inputs, &lots) {
            scores.entry(component).or_default().push((usage.node, score));
        }
    }
    let emission = table.emission().of_epoch(inputs.epoch);
    let boosts = boosts(inputs, &accounts, &scores);
    let mut difficulty = Vec::new();
    for component in Component::ALL {
        let scores = scores.remove(&component).unwrap_or_default();
        let served = sum_of(&scores);
        let expected = expected_of(inputs, component);
        let boosted = boosted(scores, &accounts, &boosts);
        let all = sum_of(&boosted);
        let divisor = all.max(expected.unwrap_or(0));
        let budget = table.budget(emission, component);
        for (node, score) in boosted {
            let Some(account) = accounts.get_mut(&node) else { continue };
            let share = Amount(mul_div(budget.0, score, divisor));
            account.earned.push((component, share));
            if divisor > all && share > Amount(0) {
                account.reasons.push((component, Reason::BelowDifficulty));
            }
        }
        let next = match component {
            // No price, but the weights by which the lots after the next ones are drawn.
            Component::Lottery if inputs.rules >= RULES_LOTS => weights_now(&accounts),
            _ => next_difficulty(expected, served, table.difficulty_half_life_epochs),
        };
        difficulty.push((component, Amount(next)));
    }
    let mut leaves: BTreeMap<Address, Amount> =
        inputs.leaves.iter().map(|leaf| (leaf.payout, leaf.cumulative)).collect();
    let mut earned = Amount(0);
    for account in accounts.values_mut() {
        earned = earned.plus(release(account, table, inputs.epoch, inputs.epoch_ms, &mut leaves));
    }
    let leaves: Vec<Leaf> =
        leaves.into_iter().map(|(payout, cumulative)| Leaf { payout, cumulative }).collect();
    let total = leaves.iter().fold(Amount(0), |sum, leaf| sum.plus(leaf.cumulative));
    Outcome { accounts: accounts.into_values().collect(), leaves, total, earned, difficulty }
}

fn sum_of(scores: &[(NodeId, u128)]) -> u128 {
    scores.iter().fold(0u128, |sum, (_, score)| sum.saturating_add(*score))
}

/// What was expected to be served; of prizes nothing is.
fn expected_of(inputs: &Inputs<'_>, component: Component) -> Option<u128> {
    if component == Component::Lottery && inputs.rules >= RULES_LOTS {
        return None;
    }
    inputs.difficulty.iter().find(|(of, _)| *of == component).map(|(_, value)| value.0)
}

fn weights_now(accounts: &BTreeMap<NodeId, NodeAccount>) -> u128 {
    accounts.values().fold(0u128, |sum, account| sum.saturating_add(account.extra.lot_weights[0].into()))
}

/// By what lots of this epoch are drawn: computing power as it was two epochs ago, which nobody can change once the beacon
/// is known.
#[derive(Debug, Default)]
struct Lots {
    weights: BTreeMap<NodeId, u128>,
    all: u128,
}

impl Lots {
    /// Takes the weights out of the accounts, which then remember the epoch before and make room for this one.
    fn of(inputs: &Inputs<'_>, accounts: &mut BTreeMap<NodeId, NodeAccount>) -> Self {
        let mut lots = Self::default();
        if inputs.rules < RULES_LOTS {
            return lots;
        }
        for account in accounts.values_mut() {
            let [after_last, before_last] = account.extra.lot_weights;
            if before_last > 0 {
                lots.weights.insert(account.node, before_last.into());
                lots.all = lots.all.saturating_add(before_last.into());
            }
            account.extra.lot_weights = [0, after_last];
        }
        lots
    }

    fn weight(&self, node: &NodeId) -> u128 {
        self.weights.get(node).copied().unwrap_or(0)
    }

    fn has_won(&self, node: &NodeId, lot: &Lot, inputs: &Inputs<'_>) -> bool {
        let Ok(proof) = <&[u8; LOT_PROOF_BYTES]>::try_from(&lot.proof[..]) else { return false };
        let below =
            lottery::threshold(self.weight(node), self.all, inputs.table.lottery_ppm.unwrap_or_default());
        let input = lottery::input(&inputs.beacon, inputs.epoch);
        lottery::has_won(&VrfPublic(lot.key.0), &input, proof, below)
    }
}

/// What stakes add to what their addresses' nodes are paid, in millionths; of those who have any.
fn boosts(
    inputs: &Inputs<'_>,
    accounts: &BTreeMap<NodeId, NodeAccount>,
    scores: &BTreeMap<Component, Vec<(NodeId, u128)>>,
) -> BTreeMap<Address, u64> {
    let Some(rules) = inputs.table.boost.filter(|_| inputs.rules >= RULES_LOTS) else {
        return BTreeMap::new();
    };
    let staked = inputs.usage.iter().filter_map(|usage| Some((usage.payout?, usage.extra.stake)));
    let stakes: BTreeMap<Address, Amount> = staked.filter(|(_, stake)| *stake > Amount(0)).collect();
    if stakes.is_empty() {
        return BTreeMap::new();
    }
    // What each address would be paid without: many nodes of one address share its stake.
    let emission = inputs.table.emission().of_epoch(inputs.epoch);
    let mut plain: BTreeMap<Address, Amount> = BTreeMap::new();
    for (component, scores) in scores {
        let divisor = sum_of(scores).max(expected_of(inputs, *component).unwrap_or(0));
        let budget = inputs.table.budget(emission, *component);
        for (node, score) in scores {
            let payout = accounts.get(node).and_then(|account| account.payout);
            let Some(payout) = payout.filter(|payout| stakes.contains_key(payout)) else { continue };
            let sum = plain.entry(payout).or_default();
            *sum = sum.plus(Amount(mul_div(budget.0, *score, divisor)));
        }
    }
    let boost = |(payout, earned): (Address, Amount)| {
        let stake = stakes.get(&payout).copied().unwrap_or_default();
        (payout, boost_ppm(&rules, stake, earned))
    };
    plain.into_iter().map(boost).collect()
}

/// `most · x / (1 + x)` with `x = stake / (earned · epochs)`, rounded down.
fn boost_ppm(rules: &BoostRules, stake: Amount, earned: Amount) -> u64 {
    let half_at = earned.0.saturating_mul(rules.half_at_epochs.into());
    let all = stake.0.saturating_add(half_at);
    u64::try_from(mul_div(rules.most_ppm.into(), stake.0, all.max(1))).unwrap_or(0).min(rules.most_ppm)
}

fn boosted(
    mut scores: Vec<(NodeId, u128)>,
    accounts: &BTreeMap<NodeId, NodeAccount>,
    boosts: &BTreeMap<Address, u64>,
) -> Vec<(NodeId, u128)> {
    if boosts.is_empty() {
        return scores;
    }
    for (node, score) in &mut scores {
        let payout = accounts.get(node).and_then(|account| account.payout);
        if let Some(boost) = payout.and_then(|payout| boosts.get(&payout)) {
            *score = score.saturating_add(mul_div(*score, (*boost).into(), PPM.into()));
        }
    }
    scores
}

/// What a node's verified work weighs, component by component; notes why it is nothing or less.
fn weigh(
    account: &mut NodeAccount,
    usage: &NodeUsage,
    inputs: &Inputs<'_>,
    lots: &Lots,
) -> Vec<(Component, u128)> {
    let Inputs { table, .. } = *inputs;
    let stored = credit_storage(account, usage, inputs.rules);
    let power = credit_computing(account, usage, inputs);
    let prize = draw(account, usage, inputs, lots, power);
    if usage.extra.forfeited_runs > 0 {
        account.reasons.push((Component::Lease, Reason::AllForfeit));
    }
    let score = score_ppm(account.alpha_ppm, account.beta_ppm);
    let trusts =
        [score, computing_score(account, inputs.rules)].map(|score| multiplier_ppm(&table.reputation, score));
    let mut weights = Vec::new();
    for component in Component::ALL {
        let served = match component {
            Component::Storage => stored / BYTE_MS_PER_WEIGHT,
            Component::Egress => u128::from(usage.egress_bytes).saturating_add(usage.repair_bytes.into()),
            Component::Compute => power,
            Component::Lease if inputs.rules >= RULES_LEASES => lease_weight(&usage.lease),
            Component::Verify if inputs.rules >= RULES_LOTS => usage.extra.verified_ms.into(),
            Component::Lottery => prize,
            Component::Lease | Component::Verify => 0,
        };
        let is_funded = table.split_bp.get(&component).is_some_and(|share| *share > 0);
        let has_reason = account.reasons.iter().any(|(of, _)| *of == component);
        if !is_funded {
            account.reasons.push((component, Reason::NotFunded));
        } else if account.status == Status::Suspended {
            account.reasons.push((component, Reason::Suspended));
        } else if served == 0 {
            if !has_reason {
                account.reasons.push((component, Reason::NothingServed));
            }
        } else {
            let is_computing =
                matches!(component, Component::Compute | Component::Verify | Component::Lottery);
            let trust = trusts[usize::from(is_computing)];
            if trust < PPM {
                account.reasons.push((component, Reason::Reputation));
            }
            weights.push((component, mul_div(served, trust.into(), PPM.into())));
        }
    }
    weights
}

/// What a node draws a prize with; remembers the power that later lots are drawn by.
fn draw(account: &mut NodeAccount, usage: &NodeUsage, inputs: &Inputs<'_>, lots: &Lots, power: u128) -> u128 {
    if inputs.rules < RULES_LOTS {
        return 0;
    }
    account.extra.lot_weights[0] = u64::try_from(power).unwrap_or(u64::MAX);
    let weight = lots.weight(&account.node);
    let has_won = usage.extra.lot.as_ref().is_some_and(|lot| lots.has_won(&account.node, lot, inputs));
    if weight > 0 && !has_won {
        account.reasons.push((Component::Lottery, Reason::NotDrawn));
    }
    if has_won { weight } else { 0 }
}

/// Slices held for customers' jobs: time of cores, and of cards as so many cores each.
fn lease_weight(lease: &SliceTime) -> u128 {
    u128::from(lease.cpu_core_ms) + u128::from(lease.gpu_card_ms) * u128::from(CORES_PER_CARD)
}

/// Byte-milliseconds that an audit covers now. What customers and repairs read of a node, and a gateway or another node found to
/// be what it should be, is as good as an audit that passed; it makes up for none that failed or was not answered.
fn credit_storage(account: &mut NodeAccount, usage: &NodeUsage, rules: u32) -> u128 {
    let read = usage.egress_bytes.saturating_add(usage.repair_bytes);
    let has_passed = usage.audits_pass > 0 || (rules >= RULES_PLEDGES && read >= LEAF_BYTES);
    let waiting = account.pending_byte_ms.saturating_add(usage.storage_byte_ms);
    let (credited, left, reason) = if usage.audits_fail > 0 {
        (0, 0, Some(Reason::AuditFailed))
    } else if usage.audits_offline > 0 {
        (0, 0, Some(Reason::AuditUnanswered))
    } else if has_passed {
        (waiting, 0, None)
    } else {
        (0, waiting, (waiting > 0).then_some(Reason::AwaitingAudit))
    };
    account.pending_byte_ms = left;
    account.reasons.extend(reason.filter(|_| waiting > 0).map(|reason| (Component::Storage, reason)));
    credited
}

/// What computing is judged by: by early rules, audits of storage.
fn computing_score(account: &NodeAccount, rules: u32) -> u64 {
    match rules {
        RULES_COMPUTING.. => score_ppm(account.extra.computing_alpha_ppm, account.extra.computing_beta_ppm),
        _ => score_ppm(account.alpha_ppm, account.beta_ppm),
    }
}

/// Computing power that counts in this epoch: of drilling and training, in the parts that the table gives; nothing where a
/// wrong answer was found, or too many were.
fn credit_computing(account: &mut NodeAccount, usage: &NodeUsage, inputs: &Inputs<'_>) -> u128 {
    let Inputs { table, epoch_ms, rules, .. } = *inputs;
    if rules < RULES_COMPUTING {
        return credit_power(&mut account.power_nut, usage.work_mut, table, epoch_ms);
    }
    let is_wrong = usage.computed.fail > 0;
    let [work_mut, train_mut] = if is_wrong { [0, 0] } else { [usage.work_mut, usage.computed.train_mut] };
    let drilling = credit_power(&mut account.power_nut, work_mut, table, epoch_ms);
    let training = credit_power(&mut account.extra.train_nut, train_mut, table, epoch_ms);
    if is_wrong || computing_score(account, rules) < table.reputation.suspend_below_ppm {
        account.reasons.push((Component::Compute, Reason::ComputedWrong));
        return 0;
    }
    let [of_drilling, of_training] = table.power_split_bp.unwrap_or([BASIS_POINTS, 0]);
    (drilling * u128::from(of_drilling) + training * u128::from(of_training)) / u128::from(BASIS_POINTS)
}

/// Takes what was held back from who has been suspended for days, with failures on several shards.
fn forfeit(account: &mut NodeAccount, usage: &NodeUsage, inputs: &Inputs<'_>) {
    let Some(rules) = &inputs.table.forfeit else { return };
    if !reputation::follow_failures(account, usage, &inputs.table.reputation, rules) {
        return;
    }
    let since = inputs.epoch.saturating_sub(account.status_since).saturating_mul(inputs.epoch_ms);
    if since < rules.failed_days.saturating_mul(DAY_MS) || account.held == Amount(0) {
        return;
    }
    account.extra.forfeited = account.extra.forfeited.plus(account.held);
    account.held = Amount(0);
    account.reasons.push((Component::Storage, Reason::Forfeited));
}

/// Effective computing power: an average a day that halves in each half-life without work.
fn credit_power(power_nut: &mut u64, work_mut: u64, table: &Tokenomics, epoch_ms: u64) -> u128 {
    let half_life_ms = u128::from(table.power_half_life_days) * u128::from(DAY_MS);
    let kept = exp2_neg(epoch_ms.into(), half_life_ms);
    let work_nut = u128::from(work_mut) * NUT_PER_MUT;
    let daily = mul_div(work_nut, DAY_MS.into(), u128::from(epoch_ms.max(1)));
    let power = blend((*power_nut).into(), daily, kept);
    *power_nut = u64::try_from(power).unwrap_or(u64::MAX);
    (*power_nut).into()
}

/// Follows what is served with a half-life, by at most a quarter an epoch.
fn next_difficulty(expected: Option<u128>, served: u128, half_life_epochs: u64) -> u128 {
    let Some(expected) = expected.filter(|expected| *expected > 0) else { return served };
    let kept = exp2_neg(1, half_life_epochs.into());
    let next = blend(expected, served, kept);
    next.clamp(expected - expected / 4, expected.saturating_add(expected / 4))
}

/// Holds back, releases, and adds to the leaf of the node's address. Returns what it earned in this epoch.
fn release(
    account: &mut NodeAccount,
    table: &Tokenomics,
    epoch: u64,
    epoch_ms: u64,
    leaves: &mut BTreeMap<Address, Amount>,
) -> Amount {
    let earned = account.earned.iter().fold(Amount(0), |sum, (_, amount)| sum.plus(*amount));
    account.earned_total = account.earned_total.plus(earned);
    let age_ms = epoch.saturating_sub(account.first_epoch).saturating_mul(epoch_ms);
    let held = Amount(mul_div(earned.0, table.holdback_pct(age_ms).into(), 100));
    if held > Amount(0) {
        let worked = account.earned.iter().filter(|(_, amount)| *amount > Amount(0));
        account.reasons.extend(worked.map(|(component, _)| (*component, Reason::HeldBack)));
    }
    account.held = account.held.plus(held);
    let month = |age_ms: u64| age_ms / MONTH_MS;
    let (now, before) = (month(age_ms), month(age_ms.saturating_sub(epoch_ms)));
    let [first, last] = table.holdback_release_months.map(u64::from);
    let matured = match now {
        now if now >= last => account.held,
        now if now >= first && before < first => Amount(account.held.0 / 2),
        _ => Amount(0),
    };
    account.held = account.held.minus(matured);
    let released = earned.minus(held).plus(matured).plus(account.unassigned);
    match account.payout {
        Some(payout) if released > Amount(0) => {
            let leaf = leaves.entry(payout).or_default();
            *leaf = leaf.plus(released);
            account.unassigned = Amount(0);
        }
        Some(_) => {}
        None => {
            account.unassigned = released;
            let worked = account.earned.iter().filter(|(_, amount)| *amount > Amount(0));
            account.reasons.extend(worked.map(|(component, _)| (*component, Reason::NoPayout)));
        }
    }
    account.reasons.sort_unstable();
    account.reasons.dedup();
    earned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewards::tokenomics::RULES;
    use makai_erasure::BlobId;
    use makai_raft::facts::accounts::{Computed, Evidence};
    use proptest::prelude::*;

    const EPOCH_MS: u64 = 3_600_000;

    fn table() -> Tokenomics {
        Tokenomics::profile("makai", EPOCH_MS).unwrap()
    }

    fn usage(id: u8, storage_byte_ms: u128, pass: u32, fail: u32) -> NodeUsage {
        NodeUsage {
            payout: Some(Address([id; 20])),
            storage_byte_ms,
            audits_pass: pass,
            audits_fail: fail,
            ..NodeUsage::of(NodeId([id; 32]))
        }
    }

    fn run(table: &Tokenomics, epoch: u64, usage: &[NodeUsage], before: Option<&Outcome>) -> Outcome {
        settle(&Inputs {
            rules: RULES,
            table,
            epoch,
            epoch_ms: EPOCH_MS,
            beacon: beacon(epoch),
            usage,
            accounts: before.map_or(&[], |before| &before.accounts),
            leaves: before.map_or(&[], |before| &before.leaves),
            difficulty: before.map_or(&[], |before| &before.difficulty),
        })
    }

    fn beacon(epoch: u64) -> Hash {
        Hash(*blake3::hash(&epoch.to_be_bytes()).as_bytes())
    }

    fn of(outcome: &Outcome, id: u8) -> &NodeAccount {
        outcome.accounts.iter().find(|account| account.node == NodeId([id; 32])).unwrap()
    }

    fn earned(outcome: &Outcome, id: u8, component: Component) -> u128 {
        of(outcome, id).earned.iter().find(|(of, _)| *of == component).map_or(0, |(_, amount)| amount.0)
    }

    fn has_reason(outcome: &Outcome, id: u8, component: Component, reason: Reason) -> bool {
        of(outcome, id).reasons.contains(&(component, reason))
    }

    #[test]
    fn shares_follow_what_was_stored_and_audited() {
        let table = table();
        let kib_s = 1024 * 1000;
        let done = run(&table, 1, &[usage(1, 300 * kib_s, 1, 0), usage(2, 100 * kib_s, 1, 0)], None);
        let budget = table.budget(table.emission().of_epoch(1), Component::Storage).0;
        assert_eq!(earned(&done, 1, Component::Storage), budget * 3 / 4);
        assert_eq!(earned(&done, 2, Component::Storage), budget / 4);
        // Three quarters are held back in the first month; the rest can be claimed.
        assert_eq!(of(&done, 1).held.0, budget * 3 / 4 * 3 / 4);
        let claim = done.leaves.iter().find(|leaf| leaf.payout == Address([1; 20])).unwrap();
        assert_eq!(claim.cumulative.0 + of(&done, 1).held.0, earned(&done, 1, Component::Storage));
    }

    #[test]
    fn bytes_wait_for_an_audit_and_a_failure_voids_them() {
        let table = table();
        let (mine, other) = (1_000_000_000_000, usage(9, 1_000_000_000_000, 1, 0));
        let first = run(&table, 1, &[usage(1, mine, 0, 0), other.clone()], None);
        assert_eq!(earned(&first, 1, Component::Storage), 0);
        assert!(has_reason(&first, 1, Component::Storage, Reason::AwaitingAudit));
        let passed = run(&table, 2, &[usage(1, mine, 1, 0), other.clone()], Some(&first));
        let failed = run(&table, 2, &[usage(1, mine, 3, 1), other.clone()], Some(&first));
        assert_eq!(of(&passed, 1).pending_byte_ms, 0);
        assert!(earned(&passed, 1, Component::Storage) > earned(&passed, 9, Component::Storage) * 19 / 10);
        assert_eq!(earned(&failed, 1, Component::Storage), 0);
        assert!(has_reason(&failed, 1, Component::Storage, Reason::AuditFailed));
        let later = run(&table, 3, &[usage(1, mine, 1, 0), other], Some(&failed));
        assert_eq!(of(&later, 1).pending_byte_ms, 0, "what the failure voided is gone");
    }

    /// What was read of a node and found right stands for an audit where none was asked, by the rules that say so; it makes up for
    /// no failure, and for no silence.
    #[test]
    fn reads_that_verify_are_audits() {
        let table = table();
        let other = usage(9, 1 << 40, 1, 0);
        let read = |bytes: u64, fail: u32, offline: u32| NodeUsage {
            egress_bytes: bytes,
            audits_offline: offline,
            ..usage(1, 1 << 40, 0, fail)
        };
        let stored = |rules: u32, row: NodeUsage| {
            let rows = [row, other.clone()];
            let inputs = Inputs {
                rules,
                table: &table,
                epoch: 1,
                epoch_ms: EPOCH_MS,
                beacon: beacon(1),
                usage: &rows,
                accounts: &[],
                leaves: &[],
                difficulty: &[],
            };
            earned(&settle(&inputs), 1, Component::Storage)
        };
        assert!(stored(RULES, read(LEAF_BYTES, 0, 0)) > 0);
        assert_eq!(stored(RULES, read(LEAF_BYTES - 1, 0, 0)), 0);
        assert_eq!(stored(RULES_LOTS, read(LEAF_BYTES, 0, 0)), 0, "by earlier rules they are not");
        assert_eq!(stored(RULES, read(1 << 40, 1, 0)), 0);
        assert_eq!(stored(RULES, read(1 << 40, 0, 1)), 0);
    }

    #[test]
    fn a_node_without_an_address_loses_nothing() {
        let table = table();
        let without = NodeUsage { payout: None, ..usage(1, 1 << 40, 1, 0) };
        let first = run(&table, 1, &[without], None);
        assert!(first.leaves.is_empty() && of(&first, 1).unassigned > Amount(0));
        let second = run(&table, 2, &[usage(1, 1 << 40, 1, 0)], Some(&first));
        assert_eq!(of(&second, 1).unassigned, Amount(0));
        assert!(second.total.0 > of(&first, 1).unassigned.0);
    }

    #[test]
    fn what_was_held_back_comes_in_two_parts() {
        let table = table();
        let month_epochs = MONTH_MS / EPOCH_MS;
        let mut state = run(&table, 1, &[usage(1, 1 << 40, 1, 0)], None);
        let held = of(&state, 1).held;
        state = run(&table, 1 + 15 * month_epochs, &[usage(1, 0, 1, 0)], Some(&state));
        assert_eq!(of(&state, 1).held.0, held.0 - held.0 / 2);
        state = run(&table, 1 + 24 * month_epochs, &[usage(1, 0, 1, 0)], Some(&state));
        assert_eq!(of(&state, 1).held, Amount(0));
        assert_eq!(state.total, of(&state, 1).earned_total);
    }

    /// 200 ut a day for sixty days, then a week of nothing: vectors of the rule.
    #[test]
    fn power_follows_its_half_life() {
        let table = Tokenomics::profile("makai", DAY_MS).unwrap();
        let mut power_nut = 0;
        for _ in 0..60 {
            credit_power(&mut power_nut, 200_000, &table, DAY_MS);
        }
        assert!((power_nut / 1_000_000).abs_diff(199_474) <= 1, "{power_nut}");
        for _ in 0..7 {
            credit_power(&mut power_nut, 0, &table, DAY_MS);
        }
        assert!((power_nut / 1_000_000).abs_diff(99_737) <= 1, "{power_nut}");
    }

    /// A node that held slices for customers earns from the budget of leases; by the first rules it did not.
    #[test]
    fn leases_earn_where_the_rules_know_them() {
        let table = table();
        let slices = |cpu_core_ms, gpu_card_ms| SliceTime { cpu_core_ms, gpu_card_ms, memory_mib_ms: 0 };
        let rows = [
            NodeUsage { lease: slices(32_000, 0), ..usage(1, 0, 1, 0) },
            NodeUsage { lease: slices(0, 1_000), ..usage(2, 0, 1, 0) },
            usage(3, 0, 1, 0),
        ];
        let by = |rules| {
            settle(&Inputs {
                rules,
                table: &table,
                epoch: 1,
                epoch_ms: EPOCH_MS,
                beacon: beacon(1),
                usage: &rows,
                accounts: &[],
                leaves: &[],
                difficulty: &[],
            })
        };
        let now = by(RULES);
        let budget = table.budget(table.emission().of_epoch(1), Component::Lease).0;
        assert_eq!(
            earned(&now, 1, Component::Lease),
            earned(&now, 2, Component::Lease),
            "a card is 32 cores"
        );
        assert!(earned(&now, 1, Component::Lease) * 2 > budget - 2);
        assert!(has_reason(&now, 3, Component::Lease, Reason::NothingServed));
        assert_eq!(earned(&by(1), 1, Component::Lease), 0);
    }

    /// A wrong answer voids the epoch's computing and no more; training counts by its part, and by early rules neither does.
    #[test]
    fn computing_counts_where_it_was_found_right() {
        let table = table();
        let of = |id, work_mut, fail, train_mut| NodeUsage {
            work_mut,
            computed: Computed { pass: 1, fail, train_mut },
            ..usage(id, 1 << 40, 1, 0)
        };
        let rows = [of(1, 1000, 0, 0), of(2, 1000, 1, 0), of(3, 0, 0, 1000)];
        let done = run(&table, 1, &rows, None);
        assert_eq!(earned(&done, 2, Component::Compute), 0);
        assert!(has_reason(&done, 2, Component::Compute, Reason::ComputedWrong));
        assert!(earned(&done, 2, Component::Storage) > 0, "storage is another matter");
        let [drilled, trained] = [1, 3].map(|id| earned(&done, id, Component::Compute));
        assert!((drilled * 6).abs_diff(trained * 4) < 100, "{drilled} {trained}");
        let again = run(&table, 2, &[of(1, 1000, 0, 0), of(2, 1000, 0, 0)], Some(&done));
        assert!(earned(&again, 2, Component::Compute) > 0, "the next epoch counts again");
        assert!(earned(&again, 2, Component::Compute) < earned(&again, 1, Component::Compute));
    }

    /// Suspended for three days with failures on three shards: what was held back is gone. With one shard, or a pass in
    /// between, it is not.
    #[test]
    fn what_is_held_back_is_forfeited_slowly() {
        let table = table();
        let days = |days: u64| days * DAY_MS / EPOCH_MS;
        let failing = |epoch: u64, shards: u64| {
            let evidence = Evidence {
                blob: BlobId([(epoch % shards) as u8; 16]),
                shard: 0,
                leaf: 0,
                at: makai_raft::facts::Timestamp(0),
                why: "gone".into(),
            };
            NodeUsage { evidence: vec![evidence], ..usage(1, 1 << 40, 0, 1) }
        };
        let play = |shards: u64, pass_at: u64| {
            let mut state = run(&table, 1, &[usage(1, 1 << 40, 1, 0)], None);
            let held = self::of(&state, 1).held;
            assert!(held > Amount(0));
            let mut gone_at = None;
            for epoch in 2..days(5) {
                let row = if epoch >= pass_at { usage(1, 1 << 40, 40, 0) } else { failing(epoch, shards) };
                state = run(&table, epoch, &[row], Some(&state));
                if gone_at.is_none() && self::of(&state, 1).extra.forfeited >= held {
                    gone_at = Some(epoch);
                    assert!(has_reason(&state, 1, Component::Storage, Reason::Forfeited));
                }
            }
            gone_at
        };
        let gone_at = play(5, u64::MAX).unwrap();
        assert!((days(3)..days(3) + 12).contains(&gone_at), "{gone_at}");
        assert_eq!(play(1, u64::MAX), None, "one bad shard");
        assert_eq!(play(5, days(2)), None, "mended on the second day");
    }

    /// A lot as its node draws it: of an epoch, by the power that it had two epochs before.
    fn lot(id: u8, epoch: u64, weight: u128, all: u128) -> Option<Lot> {
        let key = crate::computing::vrf::VrfKey::from_seed(&[id; 32]);
        let below = lottery::threshold(weight, all, 200_000);
        let proof = lottery::win(&key, &lottery::input(&beacon(epoch), epoch), below)?;
        Some(Lot { key: Hash(key.public().0), proof: proof.to_vec().into() })
    }

    /// Prizes go to those whose lot is below their threshold, by the power of two epochs ago, and to nobody else; a proof of
    /// another epoch, key or node wins nothing; where nobody wins the prize stays in the pool.
    #[test]
    fn prizes_go_to_who_has_drawn_them() {
        let table = table();
        let work = |id| NodeUsage {
            work_mut: 1000,
            computed: Computed { pass: 1, ..Computed::default() },
            ..usage(id, 0, 1, 0)
        };
        let rows: Vec<NodeUsage> = (1..=3).map(work).collect();
        let prize = table.budget(table.emission().of_epoch(1), Component::Lottery).0;
        let mut state = run(&table, 1, &rows, None);
        assert!(has_reason(&state, 1, Component::Lottery, Reason::NothingServed), "no power yet");
        let (mut wins, mut epochs_won) = (0, 0);
        for epoch in 2..60 {
            let [now, weight] = of(&state, 1).extra.lot_weights;
            let weights = state.difficulty.iter().find(|(of, _)| *of == Component::Lottery).unwrap().1;
            assert_eq!(weights.0, u128::from(now) * 3);
            let rows: Vec<NodeUsage> = (1..=3)
                .map(|id| {
                    let mut row = work(id);
                    // The third shows what the first has drawn, or what it drew in another epoch.
                    row.extra.lot = match id {
                        3 if epoch % 2 == 0 => lot(1, epoch, weight.into(), u128::from(weight) * 3),
                        3 => lot(3, epoch + 1, weight.into(), u128::from(weight) * 3),
                        _ => lot(id, epoch, weight.into(), u128::from(weight) * 3),
                    };
                    row
                })
                .collect();
            state = run(&table, epoch, &rows, Some(&state));
            let paid: Vec<u128> = (1..=3).map(|id| earned(&state, id, Component::Lottery)).collect();
            let drawn = |id: u8| rows[usize::from(id) - 1].extra.lot.is_some() && weight > 0;
            for id in 1..=2u8 {
                assert_eq!(paid[usize::from(id) - 1] > 0, drawn(id), "epoch {epoch}, node {id}");
                assert!(
                    drawn(id) || weight == 0 || has_reason(&state, id, Component::Lottery, Reason::NotDrawn)
                );
            }
            // Another's lot is as good a number as its own: what binds it to a node is the key that the facts know.
            assert!(epoch % 2 == 0 || paid[2] == 0, "a lot of another epoch");
            let sum: u128 = paid.iter().sum();
            assert!(sum <= prize && (sum == 0 || sum + 3 >= prize), "{paid:?} of {prize}");
            wins += u32::from(drawn(1)) + u32::from(drawn(2));
            epochs_won += u32::from(sum > 0);
        }
        assert!(wins > 0 && epochs_won < 30, "{wins} {epochs_won}");
        let early = settle(&Inputs {
            rules: RULES_COMPUTING,
            table: &table,
            epoch: 60,
            epoch_ms: EPOCH_MS,
            beacon: beacon(60),
            usage: &rows,
            accounts: &state.accounts,
            leaves: &state.leaves,
            difficulty: &[],
        });
        assert_eq!(earned(&early, 1, Component::Lottery), 0, "rules before know no lottery");
    }

    /// A stake adds to what was worked for and to nothing else, by half of the most at the stake that says so, by less than
    /// the most at any; the budget stays what it is; many nodes of one address share its stake.
    #[test]
    fn stakes_help_only_where_work_was_done() {
        let table = table();
        let rules = table.boost.unwrap();
        let (kib_s, none) = (1024 * 1000, Amount(0));
        let row = |id: u8, payout: u8, part: u128, stake: Amount| NodeUsage {
            payout: Some(Address([payout; 20])),
            extra: makai_raft::facts::accounts::UsageExtra { stake, ..Default::default() },
            ..usage(id, part * kib_s * 1_000_000, 1, 0)
        };
        let storage = |outcome: &Outcome, id| earned(outcome, id, Component::Storage);
        let plain = run(&table, 1, &[row(1, 1, 100, none), row(2, 2, 100, none)], None);
        let budget = table.budget(table.emission().of_epoch(1), Component::Storage).0;
        let half_at = Amount(storage(&plain, 1) * u128::from(rules.half_at_epochs));
        let one = run(&table, 1, &[row(1, 1, 100, half_at), row(2, 2, 100, none)], None);
        // 1 + 0.5 / 2 against 1.
        assert!(storage(&one, 1).abs_diff(budget * 125 / 225) < 1000);
        assert!(storage(&one, 1) + storage(&one, 2) <= budget);
        let rich = Amount(u128::MAX / 4);
        let most = run(&table, 1, &[row(1, 1, 100, rich), row(2, 2, 100, none)], None);
        assert!(storage(&most, 1) <= budget * 3 / 5 && storage(&most, 1) > budget * 599 / 1000);
        let idle = run(&table, 1, &[row(1, 1, 0, rich), row(2, 2, 100, none)], None);
        assert_eq!((storage(&idle, 1), storage(&idle, 2)), (0, budget), "a stake without work");
        let split =
            run(&table, 1, &[row(1, 1, 50, half_at), row(3, 1, 50, half_at), row(2, 2, 100, none)], None);
        let both = storage(&split, 1) + storage(&split, 3);
        assert!(both.abs_diff(storage(&one, 1)) < 1000, "{both} {}", storage(&one, 1));
    }

    /// Whoever ran others' tasks again shares the verifiers' budget by the time it took; a task that all lost is told.
    #[test]
    fn verifiers_are_paid_by_what_they_ran_again() {
        let table = table();
        let extra = |verified_ms, forfeited_runs| makai_raft::facts::accounts::UsageExtra {
            verified_ms,
            forfeited_runs,
            ..Default::default()
        };
        let rows = [
            NodeUsage { extra: extra(3000, 0), ..usage(1, 0, 1, 0) },
            NodeUsage { extra: extra(1000, 0), ..usage(2, 0, 1, 0) },
            NodeUsage { extra: extra(0, 2), ..usage(3, 0, 1, 0) },
        ];
        let done = run(&table, 1, &rows, None);
        let budget = table.budget(table.emission().of_epoch(1), Component::Verify).0;
        assert_eq!(earned(&done, 1, Component::Verify), budget * 3 / 4);
        assert_eq!(earned(&done, 2, Component::Verify), budget / 4);
        assert!(has_reason(&done, 3, Component::Verify, Reason::NothingServed));
        assert!(has_reason(&done, 3, Component::Lease, Reason::AllForfeit));
    }

    #[test]
    fn difficulty_moves_by_a_quarter_at_most() {
        assert_eq!(next_difficulty(None, 70, 7), 70);
        assert_eq!(next_difficulty(Some(1000), 0, 1), 750);
        assert_eq!(next_difficulty(Some(1000), u128::MAX / 2, 7), 1250);
        assert_eq!(next_difficulty(Some(1000), 1000, 7), 1000);
    }

    proptest! {
        /// Over any history: what is earned fits the emission, claims never fall, money is neither made nor lost, and
        /// every zero has its reason.
        #[test]
        fn money_is_conserved(
            epochs in proptest::collection::vec(
                proptest::collection::vec((0u8..6, 0u128..1 << 60, 0u64..1 << 40, 0u64..1 << 30, 0u32..3, 0u32..7, 0u32..2, any::<bool>()), 0..6),
                1..8,
            ),
        ) {
            let table = table();
            let mut state: Option<Outcome> = None;
            for (number, rows) in (1u64..).zip(epochs) {
                let mut by_node = BTreeMap::new();
                for (id, storage, egress, work_mut, pass, fail, offline, has_payout) in rows {
                    by_node.insert(id, NodeUsage {
                        payout: has_payout.then_some(Address([id / 2; 20])),
                        egress_bytes: egress,
                        work_mut,
                        audits_offline: offline,
                        ..usage(id, storage, pass, fail / 5)
                    });
                }
                let rows: Vec<NodeUsage> = by_node.into_values().collect();
                let next = run(&table, number, &rows, state.as_ref());
                prop_assert!(next.earned <= table.emission().of_epoch(number));
                prop_assert!(next.total <= table.emission().until(number));
                let parts = next.accounts.iter().fold(next.total.0, |sum, account| {
                    sum + account.held.0 + account.unassigned.0 + account.extra.forfeited.0
                });
                let earned = next.accounts.iter().fold(0, |sum, account| sum + account.earned_total.0);
                prop_assert_eq!(parts, earned);
                for old in state.iter().flat_map(|state| &state.leaves) {
                    let new = next.leaves.iter().find(|leaf| leaf.payout == old.payout);
                    prop_assert!(new.is_some_and(|new| new.cumulative >= old.cumulative));
                }
                for row in &rows {
                    let account = next.accounts.iter().find(|account| account.node == row.node).unwrap();
                    for component in Component::ALL {
                        let is_paid = account.earned.iter().any(|(of, amount)| *of == component && amount.0 > 0);
                        let is_told = account.reasons.iter().any(|(of, _)| *of == component);
                        prop_assert!(is_paid || is_told, "{component:?} of {account:?}");
                    }
                }
                prop_assert_eq!(&run(&table, number, &rows, state.as_ref()), &next);
                state = Some(next);
            }
        }
    }
}
