//! Proof of Hashrate, and who verifies: lots drawn by weight, by keys that cannot draw twice.
//!
//! ```text
//! input: what is drawn for, the epoch's beacon, the epoch       lot = 2^128 · U, by the node's VRF
//! wins where lot < 2^128 · (1 − (1 − f)^(w / W))
//! ```
//!
//! This form is additive: a node that splits its weight over many ids wins as often as before. The right side is rounded
//! down, in fixed point, the same on every machine. Weights are those of two epochs before the beacon, so that nobody can
//! shift them once the beacon is known.

use makai_erasure::NodeId;
use makai_raft::facts::accounts::{Amount, Hash};

use super::vrf::{Drawn, PROOF_BYTES, VrfKey, VrfPublic, verify};
use crate::rewards::fixed::{PPM, mul_div};

/// Terms of the series of the logarithm and the power; the next ones are below 2^-60 for shares up to a half.
const TERMS: u128 = 64;
/// Bits behind the point.
const BITS: u32 = 62;
const ONE: u128 = 1 << BITS;

/// What lots are drawn for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw<'a> {
    /// The lottery among all who compute.
    Hashrate,
    /// Verifiers of one segment of a job.
    Verifiers { job: u64, segment: u32, of: &'a NodeId },
}

/// What a key draws for.
#[must_use]
pub fn input(draw: Draw<'_>, beacon: &Hash, epoch: u64) -> Vec<u8> {
    let mut input = match draw {
        Draw::Hashrate => b"makai poh 1".to_vec(),
        Draw::Verifiers { job, segment, of } => {
            [b"makai verifiers 1".as_slice(), &job.to_be_bytes(), &segment.to_be_bytes(), &of.0].concat()
        }
    };
    input.extend_from_slice(&beacon.0);
    input.extend_from_slice(&epoch.to_be_bytes());
    input
}

/// −ln(1 − share) with [`BITS`] behind the point, rounded down; `share_ppm` of at most a half.
fn neg_ln(share_ppm: u64) -> u128 {
    let x = ONE * u128::from(share_ppm.min(PPM / 2)) / u128::from(PPM);
    let (mut power, mut sum) = (x, 0);
    for term in 1..=TERMS {
        sum += power / term;
        power = (power * x) >> BITS;
    }
    sum
}

/// 1 − e^(−y) with [`BITS`] behind the point, never more than it is; `y` of at most one.
fn one_minus_exp_neg(y: u128) -> u128 {
    // y − y²/2 + y³/6 − ..: what is added is rounded down, what is taken is rounded up.
    let (mut down, mut up) = (y, y);
    let mut sum = y;
    for term in 2..=TERMS / 2 {
        down = ((down * y) >> BITS) / term;
        up = ((up * y).div_ceil(ONE)).div_ceil(term);
        sum = if term % 2 == 0 { sum.saturating_sub(up) } else { sum + down };
    }
    sum
}

/// Below which lot a node wins: of `weight` in `all`, where all together win with `share_ppm` (at most a half).
#[must_use]
pub fn threshold(weight: u128, all: u128, share_ppm: u64) -> u128 {
    if weight == 0 || all == 0 {
        return 0;
    }
    let exponent = mul_div(neg_ln(share_ppm), weight.min(all), all);
    one_minus_exp_neg(exponent) << (u128::BITS - BITS)
}

/// A node's proof that it has won; `None`: it has not.
#[must_use]
pub fn win(key: &VrfKey, input: &[u8], threshold: u128) -> Option<[u8; PROOF_BYTES]> {
    let (drawn, proof) = key.prove(input)?;
    is_winning(&drawn, threshold).then_some(proof)
}

/// Whether a node has won. Any bytes may be given.
#[must_use]
pub fn has_won(public: &VrfPublic, input: &[u8], proof: &[u8; PROOF_BYTES], threshold: u128) -> bool {
    verify(public, input, proof).is_some_and(|drawn| is_winning(&drawn, threshold))
}

fn is_winning(drawn: &Drawn, threshold: u128) -> bool {
    drawn.lot() < threshold
}

/// A prize, by weight among those who won; what does not divide stays in the pool, and all of it where nobody has.
#[must_use]
pub fn prizes(prize: Amount, winners: &[(NodeId, u128)]) -> Vec<(NodeId, Amount)> {
    let all = winners.iter().fold(0u128, |sum, (_, weight)| sum.saturating_add(*weight));
    winners.iter().map(|(node, weight)| (*node, Amount(mul_div(prize.0, *weight, all)))).collect()
}

/// Who may verify a node's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeId,
    /// Empty: unknown.
    pub owner: String,
    pub site: String,
    pub payout: Option<makai_raft::facts::accounts::Address>,
    /// Score of computing times stake, or whatever weighs; taken up to the cap.
    pub weight: u128,
}

impl Candidate {
    /// Whether the two have nothing in common that is known.
    #[must_use]
    pub fn may_verify(&self, other: &Self) -> bool {
        let is_same = |a: &str, b: &str| !a.is_empty() && a == b;
        self.node != other.node
            && !is_same(&self.owner, &other.owner)
            && !is_same(&self.site, &other.site)
            && (self.payout.is_none() || self.payout != other.payout)
    }
}

/// Of every candidate that may verify `subject`, below which lot it does: so that `committee` are expected. No weight
/// counts for more than `cap`.
#[must_use]
pub fn committee(
    candidates: &[Candidate],
    subject: &Candidate,
    committee: u32,
    cap: u128,
) -> Vec<(NodeId, u128)> {
    let able: Vec<&Candidate> = candidates.iter().filter(|one| one.may_verify(subject)).collect();
    let all = able.iter().fold(0u128, |sum, one| sum.saturating_add(one.weight.min(cap)));
    able.iter()
        .map(|one| {
            let weight = one.weight.min(cap).saturating_mul(committee.into());
            let lot = if weight >= all { u128::MAX } else { mul_div(u128::MAX, weight, all.max(1)) };
            (one.node, if all == 0 { 0 } else { lot })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(weight: f64, share: f64) -> f64 {
        1.0 - (1.0 - share).powf(weight)
    }

    fn as_float(threshold: u128) -> f64 {
        threshold as f64 / 2f64.powi(128)
    }

    /// f = 0.2 and a tenth of the weight: 0.022067231, as one id and as ten.
    #[test]
    fn thresholds_are_the_formula_rounded_down() {
        assert!((as_float(threshold(10, 100, 200_000)) - 0.022_067_231).abs() < 1e-9);
        let split = 1.0 - (1.0 - as_float(threshold(1, 100, 200_000))).powi(10);
        assert!((split - 0.022_067_231).abs() < 1e-9);
        for share_ppm in [1, 1_000, 50_000, 200_000, 500_000] {
            for weight in [1u128, 3, 100, 5_000, 10_000] {
                let (ours, float) = (
                    as_float(threshold(weight, 10_000, share_ppm)),
                    exact(weight as f64 / 1e4, share_ppm as f64 / 1e6),
                );
                assert!(
                    ours <= float + 1e-15 && float - ours < 1e-12,
                    "{share_ppm} {weight}: {ours} {float}"
                );
            }
        }
        assert_eq!(threshold(0, 5, 500_000), 0);
        assert_eq!(threshold(5, 0, 500_000), 0);
        assert_eq!(threshold(9, 5, 500_000), threshold(5, 5, 500_000), "no more than all");
    }

    /// 10^5 draws: a node wins as often with ten ids as with one, within one part in a hundred of the formula's spread.
    #[test]
    fn splitting_into_ten_ids_wins_as_often() {
        const DRAWS: u64 = 100_000;
        let lot = |draw: u64, id: u64| {
            let hash = blake3::hash(&[draw.to_be_bytes(), id.to_be_bytes()].concat());
            hash.as_bytes().first_chunk().map_or(0, |first| u128::from_be_bytes(*first))
        };
        let (whole, part) = (threshold(30, 100, 500_000), threshold(3, 100, 500_000));
        let one = (0..DRAWS).filter(|draw| lot(*draw, 0) < whole).count() as f64;
        let ten = (0..DRAWS).filter(|draw| (1..=10).any(|id| lot(*draw, id) < part)).count() as f64;
        let rate = exact(0.3, 0.5);
        let spread = (DRAWS as f64 * rate * (1.0 - rate)).sqrt();
        for wins in [one, ten] {
            assert!((wins - DRAWS as f64 * rate).abs() < 4.0 * spread, "{wins}");
        }
        // The expected rates themselves differ by far less than 1 %.
        let split = 1.0 - (1.0 - as_float(part)).powi(10);
        assert!((split - as_float(whole)).abs() / as_float(whole) < 1e-6);
    }

    #[test]
    fn a_win_is_proved_and_nobody_else_has_it() {
        let beacon = Hash([7; 32]);
        let all = threshold(1, 1, 500_000);
        let mut won = 0;
        for id in 0..40u8 {
            let key = VrfKey::from_seed(&[id; 32]);
            let input = input(Draw::Hashrate, &beacon, 9);
            let Some(proof) = win(&key, &input, all) else { continue };
            won += 1;
            assert!(has_won(&key.public(), &input, &proof, all));
            assert!(!has_won(&VrfKey::from_seed(&[id + 1; 32]).public(), &input, &proof, all));
            assert!(!has_won(&key.public(), &super::input(Draw::Hashrate, &beacon, 10), &proof, all));
            assert!(!has_won(&key.public(), &input, &proof, 0));
        }
        assert!((8..=32).contains(&won), "half of forty should win: {won}");
    }

    #[test]
    fn prizes_sum_to_no_more_than_the_prize() {
        let [a, b, c] = [1, 2, 3].map(|id| NodeId([id; 32]));
        let paid = prizes(Amount(100), &[(a, 1), (b, 1), (c, 1)]);
        assert_eq!(paid.iter().map(|(_, amount)| amount.0).sum::<u128>(), 99);
        assert!(prizes(Amount(100), &[]).is_empty());
        assert_eq!(prizes(Amount(100), &[(a, 0)]), [(a, Amount(0))]);
    }

    /// Whoever shares owner, site or purse with the one who is verified is left out; nobody weighs more than the cap; as many
    /// as wanted are expected.
    #[test]
    fn verifiers_have_nothing_in_common_with_whom_they_verify() {
        let candidate = |id: u8, owner: &str, site: &str, weight| Candidate {
            node: NodeId([id; 32]),
            owner: owner.into(),
            site: site.into(),
            payout: Some(makai_raft::facts::accounts::Address([id; 20])),
            weight,
        };
        let subject = candidate(1, "ann", "north", 5);
        let mut purse = candidate(5, "", "", 5);
        purse.payout = subject.payout;
        let mut all =
            vec![subject.clone(), candidate(2, "ann", "", 5), candidate(3, "bob", "north", 5), purse];
        all.extend((10..40).map(|id| candidate(id, "", "", if id == 10 { 1_000_000 } else { 10 })));
        let drawn = committee(&all, &subject, 3, 10);
        assert_eq!(drawn.len(), 30);
        let expected: f64 = drawn.iter().map(|(_, lot)| as_float(*lot)).sum();
        assert!((expected - 3.0).abs() < 1e-9, "{expected}");
        assert!(drawn.iter().all(|(_, lot)| *lot == drawn[0].1), "the rich one weighs as the others");
        assert_eq!(committee(&all[..4], &subject, 3, 10), []);
        let one = committee(&[candidate(9, "", "", 1)], &subject, 3, 10);
        assert_eq!(one, [(NodeId([9; 32]), u128::MAX)], "who is alone always verifies");
    }
}
