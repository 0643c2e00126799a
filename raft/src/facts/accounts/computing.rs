//! What is known of a node's computing, and of its failures, from one epoch to the next.

use serde::{Deserialize, Serialize};

use super::Amount;

/// What verification found in one epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Computed {
    /// Answers that were checked and right, and wrong.
    pub pass: u32,
    pub fail: u32,
    /// Training that was proved, in thousandths of a ut.
    pub train_mut: u64,
}

impl Computed {
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            pass: self.pass.saturating_add(other.pass),
            fail: self.fail.saturating_add(other.fail),
            train_mut: self.train_mut.saturating_add(other.train_mut),
        }
    }
}

/// What an account keeps by rules from 3 on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountExtra {
    /// Beta score of computing, in millionths: right and wrong answers. Both 0 before the first.
    pub computing_alpha_ppm: u64,
    pub computing_beta_ppm: u64,
    /// Effective computing power by training, in billionths of a ut a day.
    pub train_nut: u64,
    /// While it is suspended for failed audits: how many failed since, and a few of the shards, by hash.
    pub failures: u32,
    pub failed_shards: Vec<u64>,
    /// All that was held back and forfeited.
    pub forfeited: Amount,
}

impl AccountExtra {
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{NodeUsage, SliceTime};
    use super::*;
    use makai_erasure::NodeId;
    use proptest::prelude::*;

    fn record(lease: u64, pass: u32) -> NodeUsage {
        NodeUsage {
            lease: SliceTime { cpu_core_ms: lease, ..SliceTime::default() },
            computed: Computed { pass, ..Computed::default() },
            ..NodeUsage::of(NodeId([1; 32]))
        }
    }

    proptest! {
        /// Whatever fields at the end hold nothing, a record reads back.
        #[test]
        fn usage_reads_back(lease in 0u64..3, pass in 0u32..3) {
            let record = record(lease, pass);
            let bytes = rmp_serde::to_vec(&record).unwrap();
            prop_assert_eq!(&rmp_serde::from_slice::<NodeUsage>(&bytes).unwrap(), &record);
        }
    }

    /// The first byte counts an array's fields: 17 as the first release wrote, 18 with slices, 19 with computing.
    #[test]
    fn records_of_earlier_releases_keep_their_bytes() {
        let counted = |record: &NodeUsage| rmp_serde::to_vec(record).unwrap()[..3].to_vec();
        assert_eq!(counted(&record(0, 0)), [0xdc, 0, 17]);
        assert_eq!(counted(&record(1, 0)), [0xdc, 0, 18]);
        assert_eq!(counted(&record(0, 1)), [0xdc, 0, 19]);
    }
}
