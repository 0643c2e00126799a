//! How good data are, in millionths, by integers alone.

use serde::{Deserialize, Serialize};

use crate::rewards::fixed::{PPM, exp2_neg, mul_div};

/// What was counted in a data set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Cells that must be filled, and those of them that are.
    pub required_cells: u64,
    pub filled_cells: u64,
    /// Cells of a random sample that a trusted source has too, and those of them that agree with it.
    pub compared: u64,
    pub matching: u64,
    /// Constraints that were tried (types, keys, between fields, between versions), and those that were violated.
    pub constraints: u64,
    pub violated: u64,
    /// How old it is, and in what time its use halves.
    pub age_secs: u64,
    pub half_life_secs: u64,
    /// Bytes, and the largest share of rows that near-duplicates of other sets are.
    pub size_bytes: u64,
    pub duplicate_ppm: u64,
}

/// What follows, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    pub completeness_ppm: u64,
    /// The lower end of Wilson's interval at 95 %: few comparisons say little.
    pub accuracy_ppm: u64,
    pub consistency_ppm: u64,
    pub timeliness_ppm: u64,
    /// The geometric mean of the four: one that is zero makes it zero.
    pub quality_ppm: u64,
    pub uniqueness_ppm: u64,
}

fn isqrt(value: u128) -> u128 {
    value.isqrt()
}

fn share(part: u64, all: u64) -> u64 {
    if all == 0 { 0 } else { mul_div(part.min(all).into(), PPM.into(), all.into()) as u64 }
}

/// Wilson's lower bound of a share, in millionths. Source: E. B. Wilson, *Probable Inference*, 1927.
#[must_use]
pub fn wilson_lower_ppm(matching: u64, compared: u64) -> u64 {
    /// z = 1.96: z² and z²/2 and z²/4 in ten-thousandths.
    const Z2: u128 = 38_416;
    const SCALE: u128 = 10_000;
    if compared == 0 {
        return 0;
    }
    // Beyond this many, the interval is narrower than what is told.
    let cap = compared.min(1_000_000_000);
    let hits = mul_div(matching.min(compared).into(), cap.into(), compared.into());
    let (n, k) = (u128::from(cap) * SCALE, hits * SCALE);
    // (k + z²/2 − z · sqrt(k (n − k) / n + z²/4)) / (n + z²), all times 10,000.
    let spread = (k * (n - k) / n + Z2 / 4) * Z2;
    let low = (k + Z2 / 2).saturating_sub(isqrt(spread));
    u64::try_from(low * u128::from(PPM) / (n + Z2)).unwrap_or(0)
}

/// Scores of a data set.
#[must_use]
pub fn scores(counts: &Counts) -> Scores {
    let completeness_ppm = share(counts.filled_cells, counts.required_cells);
    let accuracy_ppm = wilson_lower_ppm(counts.matching, counts.compared);
    let consistency_ppm = match counts.constraints {
        0 => 0,
        all => PPM - share(counts.violated, all),
    };
    let halved = exp2_neg(counts.age_secs.into(), counts.half_life_secs.into());
    let timeliness_ppm = mul_div(halved.into(), PPM.into(), 1 << crate::rewards::fixed::FRACTION_BITS) as u64;
    let product = [completeness_ppm, accuracy_ppm, consistency_ppm, timeliness_ppm]
        .iter()
        .fold(1u128, |product, score| product * u128::from(*score));
    Scores {
        completeness_ppm,
        accuracy_ppm,
        consistency_ppm,
        timeliness_ppm,
        quality_ppm: isqrt(isqrt(product)) as u64,
        uniqueness_ppm: PPM - counts.duplicate_ppm.min(PPM),
    }
}

/// What a set weighs beside others: quality · uniqueness · √size · (1 + impact). `impact_ppm`: the gain that it brought on a
/// hidden validation set, capped at one; 0 until somebody has used it.
#[must_use]
pub fn weight(scores: &Scores, size_bytes: u64, impact_ppm: u64) -> u128 {
    let (one, quality) = (u128::from(PPM), u128::from(scores.quality_ppm));
    let good = quality * u128::from(scores.uniqueness_ppm) / one;
    let impact = one + u128::from(impact_ppm.min(PPM));
    isqrt(size_bytes.into()) * good * impact / (one * one)
}

/// Which rows of two sets are near each other: the smallest hashes of a row's pieces, under many hashes. The share of equal
/// ones is about the share of pieces that both have. Source: A. Broder, *On the resemblance of documents*, 1997.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sketch([u64; Self::HASHES]);

impl Sketch {
    const HASHES: usize = 128;

    /// Of pieces in any order.
    pub fn of<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> Self {
        let mut least = [u64::MAX; Self::HASHES];
        for piece in pieces {
            let mut stream = blake3::Hasher::new_derive_key("makai sketch 1").update(piece).finalize_xof();
            for least in &mut least {
                let mut bytes = [0; 8];
                stream.fill(&mut bytes);
                *least = (*least).min(u64::from_be_bytes(bytes));
            }
        }
        Self(least)
    }

    /// How alike two are, in millionths.
    #[must_use]
    pub fn similarity_ppm(&self, other: &Self) -> u64 {
        let equal = self.0.iter().zip(&other.0).filter(|(a, b)| a == b).count() as u64;
        share(equal, Self::HASHES as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: Counts = Counts {
        required_cells: 1000,
        filled_cells: 1000,
        compared: 10_000,
        matching: 10_000,
        constraints: 500,
        violated: 0,
        age_secs: 0,
        half_life_secs: 1000,
        size_bytes: 1 << 20,
        duplicate_ppm: 0,
    };

    fn wilson(k: f64, n: f64) -> f64 {
        let (z2, p) = (1.96f64.powi(2), k / n);
        (p + z2 / (2.0 * n) - (z2 * (p * (1.0 - p) / n + z2 / (4.0 * n * n))).sqrt()) / (1.0 + z2 / n)
    }

    proptest! {
        #[test]
        fn accuracy_is_wilsons_bound(compared in 1u64..5_000_000, part in 0u64..=1000) {
            let matching = compared * part / 1000;
            let exact = wilson(matching as f64, compared as f64) * 1e6;
            prop_assert!((exact - wilson_lower_ppm(matching, compared) as f64).abs() < 60.0, "{exact}");
        }

        /// More of what is wanted never lowers a score, and each stays a share.
        #[test]
        fn scores_are_shares_and_grow_with_what_is_good(
            filled in 0u64..1000, matching in 0u64..10_000, violated in 0u64..500, age in 0u64..10_000,
        ) {
            let counts = Counts { filled_cells: filled, matching, violated, age_secs: age, ..GOOD };
            let better = Counts {
                filled_cells: filled + 1,
                matching: matching + 1,
                violated: violated.saturating_sub(1),
                age_secs: age.saturating_sub(1),
                ..counts
            };
            let (now, then) = (scores(&counts), scores(&better));
            for (score, more) in [
                (now.completeness_ppm, then.completeness_ppm),
                (now.accuracy_ppm, then.accuracy_ppm),
                (now.consistency_ppm, then.consistency_ppm),
                (now.timeliness_ppm, then.timeliness_ppm),
                (now.quality_ppm, then.quality_ppm),
            ] {
                prop_assert!(score <= more && more <= PPM);
            }
            prop_assert!(weight(&now, 1 << 20, 0) <= weight(&then, 1 << 20, 0));
        }
    }

    #[test]
    fn one_zero_is_zero_and_age_halves() {
        let all = scores(&GOOD);
        assert!(all.quality_ppm > 999_000 && all.accuracy_ppm < PPM, "{all:?}");
        for bad in [
            Counts { filled_cells: 0, ..GOOD },
            Counts { matching: 0, ..GOOD },
            Counts { violated: 500, ..GOOD },
            Counts { compared: 0, ..GOOD },
            Counts { half_life_secs: 0, ..GOOD },
        ] {
            assert!(scores(&bad).quality_ppm < 40_000, "{bad:?}: {:?}", scores(&bad));
        }
        assert_eq!(scores(&Counts { age_secs: 1000, ..GOOD }).timeliness_ppm, 500_000);
        let used = weight(&all, 1 << 20, PPM);
        assert!(used.abs_diff(2 * weight(&all, 1 << 20, 0)) <= 2, "twice, where it helped as much as can be");
        assert_eq!(weight(&scores(&Counts { duplicate_ppm: PPM, ..GOOD }), 1 << 20, 0), 0);
    }

    #[test]
    fn near_duplicates_are_seen() {
        let rows: Vec<Vec<u8>> = (0..400u32).map(|at| at.to_be_bytes().to_vec()).collect();
        let sketch = |rows: &[Vec<u8>]| Sketch::of(rows.iter().map(Vec::as_slice));
        let all = sketch(&rows[..300]);
        assert_eq!(all.similarity_ppm(&all), PPM);
        // 200 of 400 rows are in both.
        let half = all.similarity_ppm(&sketch(&rows[100..]));
        assert!(half.abs_diff(500_000) < 150_000, "{half}");
        assert!(sketch(&rows[..100]).similarity_ppm(&sketch(&rows[100..200])) < 60_000);
    }
}
