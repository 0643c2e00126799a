//! Latencies of millions of operations in a few kilobytes.
//!
//! Each power of two of nanoseconds is cut into [`STEPS`] equal buckets, so that a percentile is at most one
//! part in [`STEPS`] above the true one, from a nanosecond to centuries.

use std::time::Duration;

/// Buckets in a power of two.
const STEPS: u64 = 128;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// The first row holds 0..STEPS one by one; each further row a power of two.
const ROWS: usize = 64 - STEP_BITS as usize + 1;

/// A count of durations by size.
#[derive(Debug, Clone)]
pub struct Latencies {
    counts: Vec<u64>,
    count: u64,
    sum_nanos: u128,
    max_nanos: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: vec![0; ROWS * STEPS as usize], count: 0, sum_nanos: 0, max_nanos: 0 }
    }
}

/// The bucket of a duration: its row's number and the bits below its highest.
fn bucket_of(nanos: u64) -> usize {
    let row = (64 - nanos.leading_zeros()).saturating_sub(STEP_BITS);
    let step = if row == 0 { nanos } else { (nanos >> (row - 1)) - STEPS };
    (u64::from(row) * STEPS + step) as usize
}

/// The longest duration of a bucket.
fn top_of(bucket: usize) -> u64 {
    let (row, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    if row == 0 { step } else { (((STEPS + step) << (row - 1)) - 1).saturating_add(1 << (row - 1)) }
}

impl Latencies {
    pub fn add(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket_of(nanos)] += 1;
        self.count += 1;
        self.sum_nanos += u128::from(nanos);
        self.max_nanos = self.max_nanos.max(nanos);
    }

    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, others)| *mine += others);
        self.count += other.count;
        self.sum_nanos += other.sum_nanos;
        self.max_nanos = self.max_nanos.max(other.max_nanos);
    }

    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_nanos)
    }

    /// Zero where nothing was added.
    #[must_use]
    pub fn mean(&self) -> Duration {
        let mean = self.sum_nanos.checked_div(u128::from(self.count)).unwrap_or(0);
        Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
    }

    /// The duration that `per_mille` of 1000 operations do not exceed; at most one part in 128 too high.
    #[must_use]
    pub fn percentile(&self, per_mille: u64) -> Duration {
        let rank = (u128::from(self.count) * u128::from(per_mille)).div_ceil(1000).max(1);
        let mut below: u128 = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += u128::from(*count);
            if below >= rank {
                return Duration::from_nanos(top_of(bucket).min(self.max_nanos));
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gaps_up_to_the_largest_number() {
        assert_eq!(bucket_of(u64::MAX), ROWS * STEPS as usize - 1);
        assert_eq!(top_of(ROWS * STEPS as usize - 1), u64::MAX);
        for bucket in 0..ROWS * STEPS as usize - 1 {
            assert_eq!(bucket_of(top_of(bucket)), bucket);
            assert_eq!(bucket_of(top_of(bucket) + 1), bucket + 1);
        }
    }

    proptest! {
        /// Against the percentile of the sorted list.
        #[test]
        fn a_percentile_is_never_below_the_true_one_and_at_most_a_step_above(
            nanos in prop::collection::vec(prop_oneof![0u64..300, 0u64..10_000_000_000], 1..300),
            per_mille in 0u64..=1000,
            cut in any::<prop::sample::Index>(),
        ) {
            let (mut one, mut other) = (Latencies::default(), Latencies::default());
            let cut = cut.index(nanos.len());
            nanos[..cut].iter().for_each(|n| one.add(Duration::from_nanos(*n)));
            nanos[cut..].iter().for_each(|n| other.add(Duration::from_nanos(*n)));
            one.merge(&other);
            let mut sorted = nanos.clone();
            sorted.sort_unstable();
            let rank = (sorted.len() * per_mille as usize).div_ceil(1000).max(1);
            let exact = sorted[rank - 1];
            let found = one.percentile(per_mille).as_nanos() as u64;
            prop_assert!(found >= exact && found <= exact + exact / STEPS, "{found} for {exact}");
            prop_assert_eq!(one.max().as_nanos() as u64, *sorted.last().unwrap());
            prop_assert_eq!(one.count(), sorted.len() as u64);
        }
    }
}
