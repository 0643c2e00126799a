//! What is known of a node's computing, and of its failures, from one epoch to the next.

use bytes::Bytes;
use makai_erasure::NodeId;
use serde::{Deserialize, Serialize};

use super::{Address, Amount, Hash, RecoverableSignature};
use crate::facts::Timestamp;

/// The first rules by which lots are drawn, verifiers earn, and stakes weigh.
pub const RULES_LOTS: u32 = 4;
/// The first rules by which stakes share income, and processors run again what cards ran.
pub const RULES_PLEDGES: u32 = 5;
/// Bytes of the proof of a lot.
pub const LOT_PROOF_BYTES: usize = 80;
/// Epochs from the one in which a key became known to the first in which it draws: nobody knows that one's beacon by then.
pub const LOT_KEY_WAITS: u64 = 2;
/// The purpose of a node's signature for the key that it draws lots with.
pub const PURPOSE_LOTS: &str = "lots/1";

/// A node's word for the key that it draws lots with (ECVRF on edwards25519).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LotBinding {
    pub node: NodeId,
    pub key: Hash,
    /// The node, over the key.
    pub node_signature: Bytes,
}

/// As agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LotKey {
    pub node: NodeId,
    pub key: Hash,
    /// In which it became known.
    pub epoch: u64,
}

/// A lot that a node says it has won. Everybody who settles the epoch checks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lot {
    pub key: Hash,
    pub proof: Bytes,
}

/// What an address has put behind its nodes' work on the embedded ledger, out of what was paid to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StakeOrder {
    pub payout: Address,
    /// Grows with each order.
    pub serial: u64,
    pub amount: Amount,
    /// The address, over [`stake_digest`](crate::machine::accounts::stake_digest).
    pub signature: RecoverableSignature,
}

/// As agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stake {
    pub payout: Address,
    pub serial: u64,
    /// In force now.
    pub amount: Amount,
    /// In force from then on: less is only after a time in which it still stands for what was done.
    pub next: Option<(Amount, Timestamp)>,
}

/// What usage holds by rules from [`RULES_LOTS`] on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageExtra {
    pub lot: Option<Lot>,
    /// Milliseconds of cores (a card as so many) in which it ran other nodes' tasks again and came to what was accepted.
    pub verified_ms: u64,
    /// Runs that earn nothing since the nodes asked differed and the cluster has all of them lose then.
    pub forfeited_runs: u32,
    /// What stands for its work: the stake of its payout address.
    pub stake: Amount,
}

impl UsageExtra {
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

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
    /// Computing power after this epoch and the one before, in billionths of a ut a day: lots are drawn by what it was two
    /// epochs ago. By rules from [`RULES_LOTS`] on; absent from the encoding before.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub lot_weights: [u64; 2],
}

fn is_nothing(weights: &[u64; 2]) -> bool {
    *weights == [0, 0]
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

    fn record(lease: u64, pass: u32, verified_ms: u64) -> NodeUsage {
        NodeUsage {
            lease: SliceTime { cpu_core_ms: lease, ..SliceTime::default() },
            computed: Computed { pass, ..Computed::default() },
            extra: UsageExtra { verified_ms, ..UsageExtra::default() },
            ..NodeUsage::of(NodeId([1; 32]))
        }
    }

    /// What later rules keep is not there before.
    #[test]
    fn accounts_of_earlier_rules_keep_their_bytes() {
        let counted = |extra: &AccountExtra| rmp_serde::to_vec(extra).unwrap()[0] & 0x0F;
        let early = AccountExtra { train_nut: 1, ..AccountExtra::default() };
        let late = AccountExtra { lot_weights: [0, 1], ..early.clone() };
        assert_eq!([counted(&early), counted(&late)], [6, 7]);
        for extra in [early, late] {
            let bytes = rmp_serde::to_vec(&extra).unwrap();
            assert_eq!(rmp_serde::from_slice::<AccountExtra>(&bytes).unwrap(), extra);
        }
    }

    proptest! {
        /// Whatever fields at the end hold nothing, a record reads back.
        #[test]
        fn usage_reads_back(lease in 0u64..3, pass in 0u32..3, verified_ms in 0u64..3) {
            let record = record(lease, pass, verified_ms);
            let bytes = rmp_serde::to_vec(&record).unwrap();
            prop_assert_eq!(&rmp_serde::from_slice::<NodeUsage>(&bytes).unwrap(), &record);
        }
    }

    /// The first byte counts an array's fields: 17 as the first release wrote, 18 with slices, 19 with computing,
    /// 20 with lots and verification.
    #[test]
    fn records_of_earlier_releases_keep_their_bytes() {
        let counted = |record: &NodeUsage| rmp_serde::to_vec(record).unwrap()[..3].to_vec();
        assert_eq!(counted(&record(0, 0, 0)), [0xdc, 0, 17]);
        assert_eq!(counted(&record(1, 0, 0)), [0xdc, 0, 18]);
        assert_eq!(counted(&record(0, 1, 0)), [0xdc, 0, 19]);
        assert_eq!(counted(&record(0, 0, 1)), [0xdc, 0, 20]);
    }
}
