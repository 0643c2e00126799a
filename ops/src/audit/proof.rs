//! Leaves of 16 KiB and the paths from them to a shard's BLAKE3 root.
//!
//! A shard's root is plain BLAKE3 of its bytes (see [`makai_erasure::outline`]). A blob's root is BLAKE3 of its shards' roots,
//! so an answer carries those too: 16 KiB, 32 bytes a level, 32 bytes a shard.

use makai_erasure::outline;
pub use makai_erasure::outline::{LEAF_BYTES, Outline, leaf_count, leaf_range};
use makai_erasure::stripe::{Root, blob_root};
use serde::{Deserialize, Serialize};

/// What a node answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditAnswer {
    pub leaf: bytes::Bytes,
    pub path: Vec<[u8; 32]>,
    /// Of all shards of the blob.
    pub roots: Vec<Root>,
}

/// Why an answer proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("the shards' roots do not hash to the blob's root")]
    Roots,
    #[error("the leaf has another length")]
    Length,
    #[error("leaf and path do not lead to the shard's root")]
    Path,
}

/// Whether an answer proves leaf `leaf` of shard `shard`, of a blob with this root. Any bytes may be given.
///
/// # Errors
/// [`ProofError`]
pub fn check(
    blob: &Root,
    shard: u8,
    shard_len: u64,
    leaf: u64,
    answer: &AuditAnswer,
) -> Result<(), ProofError> {
    if blob_root(&answer.roots) != *blob {
        return Err(ProofError::Roots);
    }
    let root = answer.roots.get(usize::from(shard)).ok_or(ProofError::Roots)?;
    let (_, len) = leaf_range(shard_len, leaf).ok_or(ProofError::Length)?;
    if answer.leaf.len() as u64 != len {
        return Err(ProofError::Length);
    }
    let holds = outline::proves(root, shard_len, leaf, &answer.leaf, &answer.path);
    if holds { Ok(()) } else { Err(ProofError::Path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&len.to_be_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn answer(bytes: &[u8], leaf: u64, roots: &[Root]) -> AuditAnswer {
        let mut outline = Outline::default();
        bytes.chunks(LEAF_BYTES as usize).for_each(|leaf| outline.push(leaf));
        let (offset, len) = leaf_range(bytes.len() as u64, leaf).unwrap();
        AuditAnswer {
            leaf: bytes[offset as usize..(offset + len) as usize].to_vec().into(),
            path: outline.path(leaf).unwrap(),
            roots: roots.to_vec(),
        }
    }

    /// The root is BLAKE3's own of the whole shard: the paths must lead to it from every leaf, and from no other bytes.
    #[test]
    fn every_leaf_is_proved_and_nothing_else() {
        for len in [1, 16, 1024, 16_384, 16_385, 32_768, 49_152, 65_552, 131_104, 1_000_003] {
            let bytes = shard(len);
            let roots = [[9; 32], *blake3::hash(&bytes).as_bytes(), [8; 32]];
            let blob = blob_root(&roots);
            for leaf in 0..leaf_count(len as u64) {
                let good = answer(&bytes, leaf, &roots);
                let verdict = |answer: &AuditAnswer| check(&blob, 1, len as u64, leaf, answer);
                assert_eq!(verdict(&good), Ok(()), "leaf {leaf} of {len}");
                let mut bad = good.clone();
                let mut changed = bad.leaf.to_vec();
                changed[0] ^= 1;
                bad.leaf = changed.into();
                assert_eq!(verdict(&bad), Err(ProofError::Path));
                let mut bad = good.clone();
                bad.path.push([0; 32]);
                assert_eq!(verdict(&bad), Err(ProofError::Path));
                let mut bad = good.clone();
                if bad.path.pop().is_some() {
                    assert_eq!(verdict(&bad), Err(ProofError::Path));
                }
                let mut bad = good.clone();
                bad.roots[1] = [7; 32];
                assert_eq!(verdict(&bad), Err(ProofError::Roots));
                let mut bad = good.clone();
                bad.leaf = bad.leaf.slice(1..);
                assert_eq!(verdict(&bad), Err(ProofError::Length));
                assert!(check(&blob, 0, len as u64, leaf, &good).is_err(), "another shard's leaf");
                assert!(check(&blob, 9, len as u64, leaf, &good).is_err(), "no such shard");
                assert!(check(&blob, 1, len as u64, leaf + 1, &good).is_err(), "another leaf");
            }
        }
    }

    /// The largest shard of the usual schemes: 16 MiB of `4+2`.
    #[test]
    fn an_answer_is_small() {
        let bytes = shard(16 * 1024 * 1024 + 4096);
        let roots = vec![*blake3::hash(&bytes).as_bytes(); 6];
        let answer = answer(&bytes, 700, &roots);
        let size = rmp_serde::to_vec(&answer).unwrap().len();
        assert!(size <= 17 * 1024 + 400, "{size}");
    }
}
