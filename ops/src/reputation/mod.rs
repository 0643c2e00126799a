//! How far a node is trusted, by what its audits found: a Beta score that forgets, four outcomes, and a reason for all.
//!
//! ```text
//! pass  α ← λα + 1, β ← λβ        fail  α ← λα, β ← λβ + 1        score = α / (α + β)
//! ```
//!
//! Answers that say nothing of the data (`unknown`) have a pair of their own that forgets faster; silence (`offline`)
//! does not touch the score: it voids what was not audited yet. Suspending is quick and is undone by audits that pass;
//! taking anything away for good is slow: days of failures on several shards
//! ([`follow_failures`]). Computing has a score of its own.

use makai_raft::facts::accounts::{NodeAccount, NodeUsage, Status};

use crate::rewards::fixed::{PPM, mul_div};
use crate::rewards::tokenomics::{ForfeitRules, ReputationRules, Tokenomics};

/// Audits of one kind that one epoch counts; more say nothing new and would cost every voter time.
const COUNTED_MAX: u32 = 10_000;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Passes of all, in millionths; everything where there was none.
#[must_use]
pub fn score_ppm(alpha_ppm: u64, beta_ppm: u64) -> u64 {
    let all = u128::from(alpha_ppm) + u128::from(beta_ppm);
    if all == 0 { PPM } else { mul_div(alpha_ppm.into(), PPM.into(), all) as u64 }
}

/// What a score leaves of a share: half at the threshold of suspension, all from `full_from_ppm` on.
#[must_use]
pub fn multiplier_ppm(rules: &ReputationRules, score: u64) -> u64 {
    let span = rules.full_from_ppm.saturating_sub(rules.suspend_below_ppm).max(1);
    let above = score.saturating_sub(rules.suspend_below_ppm).min(span);
    PPM / 2 + PPM / 2 * above / span
}

fn decay(value: u64, lambda_ppm: u64) -> u64 {
    mul_div(value.into(), lambda_ppm.into(), PPM.into()) as u64
}

fn observe(pair: (&mut u64, &mut u64), is_good: bool, lambda_ppm: u64) {
    *pair.0 = decay(*pair.0, lambda_ppm) + if is_good { PPM } else { 0 };
    *pair.1 = decay(*pair.1, lambda_ppm) + if is_good { 0 } else { PPM };
}

/// Takes an epoch's audits into an account: its scores, its status, and why that is so.
///
/// Passes are counted before failures: in doubt against the node, and the same on every voter.
pub fn update(account: &mut NodeAccount, usage: &NodeUsage, table: &Tokenomics, epoch: u64, epoch_ms: u64) {
    let rules = &table.reputation;
    let (passes, fails) = (usage.audits_pass.min(COUNTED_MAX), usage.audits_fail.min(COUNTED_MAX));
    let unknowns = usage.audits_unknown.min(COUNTED_MAX);
    for _ in 0..passes {
        observe((&mut account.alpha_ppm, &mut account.beta_ppm), true, rules.lambda_ppm);
        observe(
            (&mut account.unknown_alpha_ppm, &mut account.unknown_beta_ppm),
            true,
            rules.unknown_lambda_ppm,
        );
    }
    for _ in 0..fails {
        observe((&mut account.alpha_ppm, &mut account.beta_ppm), false, rules.lambda_ppm);
    }
    for _ in 0..unknowns {
        observe(
            (&mut account.unknown_alpha_ppm, &mut account.unknown_beta_ppm),
            false,
            rules.unknown_lambda_ppm,
        );
    }
    account.audits = account.audits.saturating_add(u64::from(passes + fails));
    match (passes, fails) {
        (0, 0) => {}
        (_, 0) => (account.consecutive_fails, account.failed_epochs) = (0, 0),
        _ => {
            let before = if passes > 0 { 0 } else { account.consecutive_fails };
            account.consecutive_fails = before.saturating_add(fails);
            account.failed_epochs = account.failed_epochs.saturating_add(1);
        }
    }
    let (status, why) = judge(account, usage, rules, epoch, epoch_ms);
    if account.status != status {
        account.status_since = epoch;
    }
    (account.status, account.status_why) = (status, why);
}

/// Takes what verification of computing found in an epoch into its score. Rights are counted before wrongs.
pub fn update_computing(account: &mut NodeAccount, usage: &NodeUsage, rules: &ReputationRules) {
    let extra = &mut account.extra;
    let (pass, fail) = (usage.computed.pass.min(COUNTED_MAX), usage.computed.fail.min(COUNTED_MAX));
    if pass + fail > 0 && extra.computing_alpha_ppm == 0 && extra.computing_beta_ppm == 0 {
        extra.computing_alpha_ppm = rules.alpha_first.saturating_mul(PPM);
    }
    for at in 0..pass + fail {
        let pair = (&mut extra.computing_alpha_ppm, &mut extra.computing_beta_ppm);
        observe(pair, at < pass, rules.lambda_ppm);
    }
}

/// Counts failures, and the shards that they were of, while a node is suspended for them. Returns whether both are as many
/// as a forfeit needs.
pub fn follow_failures(
    account: &mut NodeAccount,
    usage: &NodeUsage,
    rules: &ReputationRules,
    forfeit: &ForfeitRules,
) -> bool {
    let score = score_ppm(account.alpha_ppm, account.beta_ppm);
    let is_failing =
        account.consecutive_fails >= rules.breaker_consecutive || score < rules.suspend_below_ppm;
    if account.status != Status::Suspended || !is_failing {
        account.extra.failures = 0;
        account.extra.failed_shards.clear();
        return false;
    }
    account.extra.failures = account.extra.failures.saturating_add(usage.audits_fail);
    // Evidence of silence looks alike: in doubt for the node.
    if usage.audits_offline == 0 && usage.audits_unknown == 0 {
        for one in &usage.evidence {
            let hash = blake3::hash(&[&one.blob.0[..], &[one.shard]].concat());
            let shard = hash.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
            let known = &mut account.extra.failed_shards;
            if known.len() < forfeit.shards as usize && !known.contains(&shard) {
                known.push(shard);
            }
        }
    }
    account.extra.failures >= forfeit.failures && account.extra.failed_shards.len() >= forfeit.shards as usize
}

fn judge(
    account: &NodeAccount,
    usage: &NodeUsage,
    rules: &ReputationRules,
    epoch: u64,
    epoch_ms: u64,
) -> (Status, String) {
    let score = score_ppm(account.alpha_ppm, account.beta_ppm);
    let unknown = score_ppm(account.unknown_alpha_ppm, account.unknown_beta_ppm);
    if account.consecutive_fails >= rules.breaker_consecutive {
        let last = usage.evidence.last().map_or_else(String::new, |one| format!(", the last: {}", one.why));
        let count = account.consecutive_fails;
        return (
            Status::Suspended,
            format!(
                "{count} audits failed in a row{last}; check the node's disks, audits go on and lift this"
            ),
        );
    }
    if score < rules.suspend_below_ppm {
        let below = rules.suspend_below_ppm;
        return (
            Status::Suspended,
            format!("audit score {score} of 1000000 is below {below}; audits that pass raise it again"),
        );
    }
    if unknown < rules.unknown_below_ppm {
        let below = rules.unknown_below_ppm;
        return (
            Status::Suspended,
            format!(
                "answers to audits are unusable: score {unknown} of 1000000 is below {below}; see the node's log"
            ),
        );
    }
    let age_days = epoch.saturating_sub(account.first_epoch).saturating_mul(epoch_ms) / DAY_MS;
    if account.audits < rules.vetting_audits || age_days < rules.vetting_days {
        let (audits, days) = (account.audits, age_days);
        let (audits_need, days_need) = (rules.vetting_audits, rules.vetting_days);
        return (
            Status::Vetting,
            format!("vetting: {audits} of {audits_need} audits, day {days} of {days_need}"),
        );
    }
    (Status::Active, format!("audit score {score} of 1000000"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewards::settle::new_account;
    use makai_erasure::NodeId;

    const EPOCH_MS: u64 = 3_600_000;

    fn table() -> Tokenomics {
        Tokenomics::profile("makai", EPOCH_MS).unwrap()
    }

    fn audited(pass: u32, fail: u32) -> NodeUsage {
        NodeUsage { audits_pass: pass, audits_fail: fail, ..NodeUsage::of(NodeId([1; 32])) }
    }

    /// Audits, one an epoch, until the score alone suspends: the figures that the rules were chosen by.
    #[test]
    fn failures_suspend_after_as_many_audits_as_computed() {
        for (every, expected) in [(1, 41), (2, 84), (4, 175), (10, 511)] {
            let mut table = table();
            table.reputation.breaker_consecutive = u32::MAX;
            let mut account = new_account(NodeId([1; 32]), &table, 1);
            let mut audits = 0;
            while account.status != Status::Suspended {
                audits += 1;
                let fails = audits % every == 0;
                update(&mut account, &audited(u32::from(!fails), u32::from(fails)), &table, 1, EPOCH_MS);
                assert!(audits < 3000);
            }
            let difference = i64::from(audits) - expected;
            assert!(difference.abs() <= expected / 20 + every as i64, "1 of {every}: {audits}");
        }
    }

    #[test]
    fn the_breaker_is_quick_tells_why_and_is_undone() {
        let table = table();
        let mut account = new_account(NodeId([1; 32]), &table, 1);
        update(&mut account, &audited(0, 4), &table, 1, EPOCH_MS);
        assert_eq!(account.status, Status::Vetting);
        update(&mut account, &audited(0, 1), &table, 2, EPOCH_MS);
        assert_eq!((account.status, account.status_since), (Status::Suspended, 2));
        assert!(account.status_why.contains("5 audits failed in a row"), "{}", account.status_why);
        update(&mut account, &audited(1, 0), &table, 3, EPOCH_MS);
        assert_eq!((account.status, account.status_since), (Status::Vetting, 3));
    }

    #[test]
    fn vetting_ends_with_audits_and_age() {
        let table = table();
        let mut account = new_account(NodeId([1; 32]), &table, 1);
        update(&mut account, &audited(200, 0), &table, 2, EPOCH_MS);
        assert_eq!(account.status, Status::Vetting, "it is an hour old");
        update(&mut account, &audited(1, 0), &table, 1 + 21 * 24, EPOCH_MS);
        assert_eq!(account.status, Status::Active);
    }

    #[test]
    fn a_share_falls_from_whole_to_half_without_a_cliff() {
        let rules = ReputationRules::default();
        assert_eq!(multiplier_ppm(&rules, 1_000_000), PPM);
        assert_eq!(multiplier_ppm(&rules, 995_000), PPM);
        assert_eq!(multiplier_ppm(&rules, 960_000), PPM / 2);
        let mut last = 0;
        for score in (960_000..=995_000).step_by(500) {
            let share = multiplier_ppm(&rules, score);
            assert!(share >= last && share - last < 10_000 || last == 0);
            last = share;
        }
    }
}
