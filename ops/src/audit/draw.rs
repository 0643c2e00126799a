//! Lots: which bytes are asked for.
//!
//! How many are needed to find a loss of a share α with probability p: ln(1 − p) / ln(1 − α); 90 for 5 % and 99 %.

use makai_erasure::NodeId;
use makai_raft::facts::accounts::Hash;

const CONTEXT: &str = "makai audit lots 1";
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Numbers that follow from beacon, node and place, and from nothing else.
#[derive(Debug)]
pub struct Lots(blake3::OutputReader);

impl Lots {
    /// `at`: the how-manyth audit of the node in the epoch.
    #[must_use]
    pub fn new(beacon: &Hash, node: &NodeId, at: u32) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&beacon.0).update(&node.0).update(&at.to_be_bytes());
        Self(hasher.finalize_xof())
    }

    /// A number below `bound`, each as likely up to one part in 2^64; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        let mut bytes = [0; 16];
        self.0.fill(&mut bytes);
        let bound = u128::from(bound);
        let (high, low) = {
            let number = u128::from_be_bytes(bytes);
            (number >> 64, number & u128::from(u64::MAX))
        };
        ((high * bound + ((low * bound) >> 64)) >> 64) as u64
    }

    /// The place of one of `weights`, each as likely as it is heavy; `None` where all weigh nothing.
    pub fn weighted(&mut self, weights: &[u64]) -> Option<usize> {
        let all = weights.iter().fold(0u64, |sum, weight| sum.saturating_add(*weight));
        let mut left = self.below(all);
        if all == 0 {
            return None;
        }
        weights.iter().position(|weight| {
            let is_it = left < *weight;
            left = left.saturating_sub(*weight);
            is_it
        })
    }
}

/// Audits of one node in an epoch: at least one, so that storage is credited in every epoch.
#[must_use]
pub fn audits_per_epoch(leaves_per_day: u32, epoch_ms: u64) -> u32 {
    let count = u64::from(leaves_per_day).saturating_mul(epoch_ms).div_ceil(DAY_MS);
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lots_are_even_and_bound_to_all_they_are_of() {
        let node = NodeId([1; 32]);
        let mut counts = [0u32; 10];
        for at in 0..20_000 {
            counts[Lots::new(&Hash([7; 32]), &node, at).below(10) as usize] += 1;
        }
        assert!(counts.iter().all(|count| count.abs_diff(2000) < 250), "{counts:?}");
        let first = |beacon: u8, node: u8, at| {
            Lots::new(&Hash([beacon; 32]), &NodeId([node; 32]), at).below(u64::MAX)
        };
        assert_eq!(first(1, 1, 1), first(1, 1, 1));
        assert_ne!(first(1, 1, 1), first(2, 1, 1));
        assert_ne!(first(1, 1, 1), first(1, 2, 1));
        assert_ne!(first(1, 1, 1), first(1, 1, 2));
    }

    #[test]
    fn heavier_is_likelier() {
        let mut lots = Lots::new(&Hash([7; 32]), &NodeId([1; 32]), 0);
        let mut counts = [0u32; 4];
        for _ in 0..40_000 {
            counts[lots.weighted(&[1, 0, 3, 4]).unwrap()] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!(counts[0].abs_diff(5000) < 400 && counts[2].abs_diff(15_000) < 600, "{counts:?}");
        assert_eq!(lots.weighted(&[0, 0]), None);
        assert_eq!(lots.weighted(&[]), None);
    }

    /// A node that dropped one byte in twenty is found within a day at the default rate, 99 times of 100 and more.
    #[test]
    fn a_loss_of_five_percent_is_found_in_a_day() {
        const LEAVES: u64 = 100_000;
        let per_day = audits_per_epoch(96, DAY_MS);
        assert_eq!(per_day, 96);
        let found = (0..2000u32).filter(|world| {
            let mut beacon = [0; 32];
            beacon[..4].copy_from_slice(&world.to_be_bytes());
            (0..per_day).any(|at| Lots::new(&Hash(beacon), &NodeId([3; 32]), at).below(LEAVES) < LEAVES / 20)
        });
        assert!(found.count() >= 1980);
        assert_eq!(audits_per_epoch(96, 3_600_000), 4);
        assert_eq!(audits_per_epoch(96, 10_000), 1);
    }
}
