//! Proof of Hashrate: prizes drawn by weight, by keys that cannot draw twice.
//!
//! ```text
//! input: the epoch's beacon, the epoch       lot = 2^128 · U, by the node's VRF
//! wins where lot < 2^128 · (1 − (1 − f)^(w / W))
//! ```
//!
//! This form is additive: a node that splits its weight over many ids wins as often as before. The right side is rounded
//! down, in fixed point, the same on every machine. Weights are those of two epochs before the beacon, so that nobody can
//! shift them once the beacon is known.

use makai_raft::facts::accounts::Hash;

use super::vrf::{Drawn, PROOF_BYTES, VrfKey, VrfPublic, verify};
use crate::rewards::fixed::{PPM, mul_div};

/// Terms of the series of the logarithm and the power; the next ones are below 2^-60 for shares up to a half.
const TERMS: u128 = 64;
/// Bits behind the point.
const BITS: u32 = 62;
const ONE: u128 = 1 << BITS;

/// What a key draws for.
#[must_use]
pub fn input(beacon: &Hash, epoch: u64) -> Vec<u8> {
    [b"makai poh 1".as_slice(), &beacon.0, &epoch.to_be_bytes()].concat()
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
            let input = input(&beacon, 9);
            let Some(proof) = win(&key, &input, all) else { continue };
            won += 1;
            assert!(has_won(&key.public(), &input, &proof, all));
            assert!(!has_won(&VrfKey::from_seed(&[id + 1; 32]).public(), &input, &proof, all));
            assert!(!has_won(&key.public(), &super::input(&beacon, 10), &proof, all));
            assert!(!has_won(&key.public(), &input, &proof, 0));
        }
        assert!((8..=32).contains(&won), "half of forty should win: {won}");
    }
}
