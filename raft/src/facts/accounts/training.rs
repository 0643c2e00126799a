//! Training that a node wants to be paid for: what it committed to as it went, and what voters found who trained a part of it
//! again.

use makai_erasure::NodeId;
use serde::{Deserialize, Serialize};

use super::Hash;

/// Checkpoints of one training, the first one included.
pub const CHECKPOINTS_MAX: u32 = 1_000;
/// Bytes of a verifier's reason.
pub const TRAINING_WHY_BYTES_MAX: usize = 512;

/// One training of one node. Its beginning follows from a beacon that came after it was announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Training {
    /// BLAKE3 of the file that says what is trained, and how.
    pub spec: Hash,
    pub node: NodeId,
    /// As announced: the first checkpoint and one after each segment.
    pub checkpoints: u32,
    /// In which it was announced; the seed is of the next one's beacon.
    pub announced: u64,
    /// What each checkpoint hashes to, and in which epoch that was said.
    pub commitments: Vec<(Hash, u64)>,
    /// One of each voter who has looked.
    pub verdicts: Vec<TrainingVerdict>,
    /// More than half of the signers agree that it was done, or that it was not.
    pub outcome: Option<bool>,
}

impl Training {
    /// Whether every checkpoint is committed to, and since which epoch.
    #[must_use]
    pub fn complete_since(&self) -> Option<u64> {
        let is_complete = self.commitments.len() == self.checkpoints as usize;
        self.commitments.last().filter(|_| is_complete).map(|(_, epoch)| *epoch)
    }

    /// What the beginning is drawn by, of the beacon of the epoch after the announcement.
    #[must_use]
    pub fn seed(&self, beacon: &Hash) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("makai training seed 1");
        hasher.update(&beacon.0).update(&self.node.0).update(&self.spec.0);
        *hasher.finalize().as_bytes()
    }
}

/// What a voter found that trained drawn segments again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingVerdict {
    pub verifier: NodeId,
    pub has_passed: bool,
    /// What the training is worth by the spec, in thousandths of a ut.
    pub work_mut: u64,
    /// Empty where it passed.
    pub why: String,
}
