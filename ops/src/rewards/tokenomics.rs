//! The one table of numbers that decides what is paid. It is hashed into the cluster's genesis, and never changes after.

use std::collections::BTreeMap;

use makai_raft::facts::accounts::{Amount, Component, Emission, Hash, PledgeTerms};
use serde::{Deserialize, Serialize};

/// Version of the rules in [`super::settle`]; a change of any formula is a new one. Clusters keep those they began with:
/// with 1, leases earn nothing; with 2, training and the score of computing count nothing, and nothing is forfeited; with 3,
/// there is no lottery, who verifies earns nothing for it, and stakes do not weigh; with 4, stakes share no income, only
/// cards run again what cards ran, and reads are no audits.
pub const RULES: u32 = 5;
/// The oldest rules that this release computes by.
pub const RULES_OLDEST: u32 = 1;
/// The first rules by which leases earn.
pub const RULES_LEASES: u32 = 2;
/// The first rules by which computing has a score of its own, training counts, and what was held back can be forfeited.
pub const RULES_COMPUTING: u32 = 3;
pub use makai_raft::facts::accounts::{RULES_LOTS, RULES_PLEDGES};

/// Base units of one token.
pub const UNITS_PER_TOKEN: u128 = 1_000_000_000_000_000_000;
pub(super) const BASIS_POINTS: u32 = 10_000;
/// Shards that an account can remember.
const FORFEIT_SHARDS_MAX: u32 = 16;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Months of hold-back: thirty days.
pub const MONTH_MS: u64 = 30 * DAY_MS;

/// Supply, allocation, and how work is turned into shares. All shares in basis points or millionths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokenomics {
    pub profile: String,
    /// Whole tokens that will ever exist.
    pub cap_tokens: u64,
    /// Who gets them; sums to 10,000. `mining` is what this table pays out.
    pub allocation_bp: BTreeMap<String, u32>,
    /// Epochs until the emission halves.
    pub halving_epochs: u64,
    /// How an epoch's emission is divided; sums to at most 10,000, the rest stays in the pool.
    pub split_bp: BTreeMap<Component, u32>,
    /// Half-life of effective computing power and of the difficulty.
    pub power_half_life_days: u64,
    pub difficulty_half_life_epochs: u64,
    pub reputation: ReputationRules,
    /// Held back in each month since a node's first epoch, in hundredths.
    pub holdback_pct: Vec<u8>,
    /// Months after which half, then the rest, of what was held back is released.
    pub holdback_release_months: [u32; 2],
    /// Parts of drilling and training in computing power; sum to 10,000. Absent: drilling alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_split_bp: Option<[u32; 2]>,
    /// When what was held back goes back to the pool. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forfeit: Option<ForfeitRules>,
    /// With which probability anybody wins the lottery of an epoch, in millionths. Absent: nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lottery_ppm: Option<u64>,
    /// What stakes add. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boost: Option<BoostRules>,
    /// What stakes are given of what tenants pay. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pledge: Option<PledgeRules>,
}

/// A stake shares the income by its amount and age: twice as much for the same once the ramp is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PledgeRules {
    pub income_bp: u32,
    pub ramp_days: u64,
}

/// Stakes help only relative to what was worked for, and ever less: `1 + most · x / (1 + x)`, where `x` is the stake in units
/// of what the address earns without it in so many epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoostRules {
    pub most_ppm: u64,
    pub half_at_epochs: u64,
}

/// Slow, so that an unplugged disk costs nobody what it earned: all three must be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForfeitRules {
    /// Suspended for failed audits for so long without a break.
    pub failed_days: u64,
    /// Audits that failed in that time, and shards that they were of.
    pub failures: u32,
    pub shards: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReputationRules {
    /// What an audit leaves of those before it.
    pub lambda_ppm: u64,
    pub alpha_first: u64,
    pub suspend_below_ppm: u64,
    /// From this score on the share is whole; at `suspend_below_ppm` it is half.
    pub full_from_ppm: u64,
    pub unknown_lambda_ppm: u64,
    pub unknown_below_ppm: u64,
    /// So many failures in a row suspend at once.
    pub breaker_consecutive: u32,
    pub vetting_audits: u64,
    pub vetting_days: u64,
}

impl Default for ReputationRules {
    fn default() -> Self {
        Self {
            lambda_ppm: 999_000,
            alpha_first: 1000,
            suspend_below_ppm: 960_000,
            full_from_ppm: 995_000,
            unknown_lambda_ppm: 950_000,
            unknown_below_ppm: 600_000,
            breaker_consecutive: 5,
            vetting_audits: 100,
            vetting_days: 21,
        }
    }
}

/// A table that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenomicsError {
    #[error("tokenomics.profile {0:?} is none of makai, mai")]
    Profile(String),
    #[error("tokenomics: {0}")]
    Table(String),
}

impl Tokenomics {
    /// A table by name, for epochs of `epoch_ms`: halvings are every four years.
    ///
    /// # Errors
    /// [`TokenomicsError::Profile`]
    pub fn profile(name: &str, epoch_ms: u64) -> Result<Self, TokenomicsError> {
        let shares =
            |shares: &[(&str, u32)]| shares.iter().map(|(who, bp)| ((*who).to_owned(), *bp)).collect();
        let (cap_tokens, allocation_bp) = match name {
            "makai" => {
                let makai = [
                    ("mining", 5000),
                    ("rnd", 1500),
                    ("ido", 1200),
                    ("team", 1030),
                    ("foundation", 1020),
                    ("launchpool", 250),
                ];
                (2_100_000_000, shares(&makai))
            }
            "mai" => (100_000_000, shares(&[("mining", BASIS_POINTS)])),
            _ => return Err(TokenomicsError::Profile(name.chars().take(40).collect())),
        };
        let four_years_ms = 1461 * DAY_MS;
        Ok(Self {
            profile: name.to_owned(),
            cap_tokens,
            allocation_bp,
            halving_epochs: (four_years_ms / epoch_ms.max(1)).max(1),
            split_bp: BTreeMap::from([
                (Component::Storage, 3500),
                (Component::Egress, 1000),
                (Component::Compute, 3500),
                (Component::Lease, 1000),
                (Component::Verify, 500),
                (Component::Lottery, 500),
            ]),
            power_half_life_days: 7,
            difficulty_half_life_epochs: 7,
            reputation: ReputationRules::default(),
            holdback_pct: vec![75, 75, 75, 50, 50, 50, 25, 25, 25],
            holdback_release_months: [15, 24],
            power_split_bp: Some([4000, 6000]),
            forfeit: Some(ForfeitRules { failed_days: 3, failures: 10, shards: 3 }),
            lottery_ppm: Some(200_000),
            // Half of all that it can add comes with a month of earnings.
            boost: Some(BoostRules {
                most_ppm: 500_000,
                half_at_epochs: (MONTH_MS / epoch_ms.max(1)).max(1),
            }),
            pledge: Some(PledgeRules { income_bp: 1020, ramp_days: 360 }),
        })
    }

    /// # Errors
    /// What contradicts itself.
    pub fn check(&self) -> Result<(), TokenomicsError> {
        let fault = |what: &str| Err(TokenomicsError::Table(what.to_owned()));
        let sum = |shares: &mut dyn Iterator<Item = &u32>| shares.map(|bp| u64::from(*bp)).sum::<u64>();
        if sum(&mut self.allocation_bp.values()) != u64::from(BASIS_POINTS) {
            return fault("allocation_bp must sum to 10000");
        }
        if sum(&mut self.split_bp.values()) > u64::from(BASIS_POINTS) {
            return fault("split_bp must sum to at most 10000");
        }
        if self.halving_epochs == 0 || self.power_half_life_days == 0 || self.difficulty_half_life_epochs == 0
        {
            return fault("half-lives must be at least 1");
        }
        let rules = &self.reputation;
        let ppms = [rules.lambda_ppm, rules.full_from_ppm, rules.unknown_lambda_ppm, rules.unknown_below_ppm];
        if ppms.iter().any(|ppm| *ppm > super::fixed::PPM) || rules.suspend_below_ppm >= rules.full_from_ppm {
            return fault(
                "reputation: shares are at most 1000000, and suspend_below_ppm is below full_from_ppm",
            );
        }
        if self.power_split_bp.is_some_and(|parts| sum(&mut parts.iter()) != u64::from(BASIS_POINTS)) {
            return fault("power_split_bp must sum to 10000");
        }
        if self.forfeit.is_some_and(|rules| rules.failed_days == 0 || rules.shards > FORFEIT_SHARDS_MAX) {
            return fault("forfeit: at least a day, and at most 16 shards");
        }
        if self.lottery_ppm.is_some_and(|share| share > super::fixed::PPM / 2) {
            return fault("lottery_ppm: at most 500000");
        }
        if self.boost.is_some_and(|boost| boost.most_ppm > super::fixed::PPM || boost.half_at_epochs == 0) {
            return fault("boost: at most 1000000, half of it at one epoch or more");
        }
        if self.pledge.is_some_and(|pledge| pledge.income_bp > BASIS_POINTS || pledge.ramp_days == 0) {
            return fault("pledge: at most 10000, and a ramp of at least a day");
        }
        if self.holdback_pct.iter().any(|pct| *pct > 100) {
            return fault("holdback_pct holds more than 100");
        }
        Ok(())
    }

    /// The one text of this table: JSON without blanks, fields in their order, maps by key.
    #[must_use]
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads [`Self::canonical`].
    ///
    /// # Errors
    /// It is no such table, or contradicts itself.
    pub fn parse(text: &str) -> Result<Self, TokenomicsError> {
        let table: Self =
            serde_json::from_str(text).map_err(|error| TokenomicsError::Table(error.to_string()))?;
        table.check()?;
        Ok(table)
    }

    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash(*blake3::hash(self.canonical().as_bytes()).as_bytes())
    }

    /// What the genesis says of pledges.
    #[must_use]
    pub fn pledge_terms(&self) -> Option<PledgeTerms> {
        self.pledge.map(|PledgeRules { income_bp, ramp_days }| PledgeTerms {
            income_bp,
            ramp_ms: ramp_days.saturating_mul(DAY_MS),
        })
    }

    #[must_use]
    pub fn emission(&self) -> Emission {
        let mining = self.allocation_bp.get("mining").copied().unwrap_or(0);
        let cap = u128::from(self.cap_tokens) * UNITS_PER_TOKEN;
        let pool = super::fixed::mul_div(cap, mining.into(), BASIS_POINTS.into());
        Emission::of_pool(Amount(pool), self.halving_epochs)
    }

    /// An epoch's budget for one component.
    #[must_use]
    pub fn budget(&self, emission: Amount, component: Component) -> Amount {
        let share = self.split_bp.get(&component).copied().unwrap_or(0);
        Amount(super::fixed::mul_div(emission.0, share.into(), BASIS_POINTS.into()))
    }

    /// What is held back of what a node earns `age_ms` after its first epoch, in hundredths.
    #[must_use]
    pub fn holdback_pct(&self, age_ms: u64) -> u8 {
        let month = usize::try_from(age_ms / MONTH_MS).unwrap_or(usize::MAX);
        self.holdback_pct.get(month).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAILY_MS: u64 = DAY_MS;

    /// The numbers of both published plans, computed by hand.
    #[test]
    fn profiles_emit_what_their_papers_say() {
        let makai = Tokenomics::profile("makai", DAILY_MS).unwrap().emission();
        assert_eq!(makai.pool, Amount(1_050_000_000 * UNITS_PER_TOKEN));
        assert_eq!(makai.halving_epochs, 1461);
        assert_eq!(makai.first, Amount(359_342_915_811_088_295_687_885));
        let mai = Tokenomics::profile("mai", DAILY_MS).unwrap().emission();
        assert_eq!(mai.pool, Amount(100_000_000 * UNITS_PER_TOKEN));
        assert_eq!(mai.first, Amount(34_223_134_839_151_266_255_989));
        for (emission, rest) in [(makai, 54_087), (mai, 57_121)] {
            // All epochs one by one, until nothing is left to halve.
            let mut sum = 0u128;
            let mut epoch = 1;
            while emission.of_epoch(epoch) > Amount(0) {
                sum += emission.of_epoch(epoch).0;
                epoch += 1;
            }
            assert_eq!(emission.pool.0 - sum, rest);
            assert_eq!(emission.until(u64::MAX), Amount(sum));
            assert_eq!(emission.until(1461), Amount(emission.first.0 * 1461));
        }
    }

    #[test]
    fn the_table_reads_back_and_contradictions_are_named() {
        let table = Tokenomics::profile("makai", 3_600_000).unwrap();
        assert_eq!(Tokenomics::parse(&table.canonical()), Ok(table.clone()));
        let mut wrong = table.clone();
        wrong.allocation_bp.insert("team".into(), 1031);
        assert!(matches!(wrong.check(), Err(TokenomicsError::Table(what)) if what.contains("allocation_bp")));
        let mut wrong = table;
        wrong.split_bp.insert(Component::Storage, 9000);
        assert!(matches!(wrong.check(), Err(TokenomicsError::Table(what)) if what.contains("split_bp")));
        assert!(matches!(Tokenomics::profile("x", 1), Err(TokenomicsError::Profile(_))));
    }
}
