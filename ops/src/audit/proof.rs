//! Leaves of 16 KiB and the paths from them to a shard's BLAKE3 root.
//!
//! A shard's root is plain BLAKE3 of its bytes, which is a tree over chunks of 1 KiB. Sixteen chunks that lie together
//! are a leaf here; a path is the chaining value of the other child at each level, lowest first. A blob's root is BLAKE3 of
//! its shards' roots, so an answer carries those too: 16 KiB, 32 bytes a level, 32 bytes a shard.

use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use makai_erasure::stripe::{Root, blob_root};
use serde::{Deserialize, Serialize};

/// Bytes of a leaf; the last one of a shard may be shorter.
pub const LEAF_BYTES: u64 = 16 * 1024;
/// Levels above the leaves of the longest shard, and some room.
const PATH_MAX: usize = 24;

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

/// Leaves of a shard.
#[must_use]
pub fn leaf_count(shard_len: u64) -> u64 {
    shard_len.div_ceil(LEAF_BYTES)
}

/// Where a leaf lies in a shard: offset and length.
#[must_use]
pub fn leaf_range(shard_len: u64, leaf: u64) -> Option<(u64, u64)> {
    let offset = leaf.checked_mul(LEAF_BYTES).filter(|offset| *offset < shard_len)?;
    Some((offset, LEAF_BYTES.min(shard_len - offset)))
}

fn leaf_value(offset: u64, leaf: &[u8]) -> ChainingValue {
    blake3::Hasher::new().set_input_offset(offset).update(leaf).finalize_non_root()
}

/// The leaves' chaining values of one shard, taken up in order: 32 bytes for each 16 KiB.
#[derive(Debug, Default)]
pub struct Outline {
    values: Vec<ChainingValue>,
    len: u64,
}

impl Outline {
    /// The next leaf: [`LEAF_BYTES`] each, the last one at most that.
    pub fn push(&mut self, leaf: &[u8]) {
        self.values.push(leaf_value(self.len, leaf));
        self.len += leaf.len() as u64;
    }

    /// The path of a leaf; `None` where there is no such leaf.
    #[must_use]
    pub fn path(&self, leaf: u64) -> Option<Vec<[u8; 32]>> {
        let (offset, _) = leaf_range(self.len, leaf)?;
        let mut path = Vec::new();
        self.walk(0, self.len, offset, &mut path);
        Some(path)
    }

    /// Adds the siblings on the way down to `target`, lowest first.
    fn walk(&self, start: u64, len: u64, target: u64, path: &mut Vec<[u8; 32]>) {
        if len <= LEAF_BYTES {
            return;
        }
        let left = left_subtree_len(len);
        if target < start + left {
            self.walk(start, left, target, path);
            path.push(self.value(start + left, len - left));
        } else {
            self.walk(start + left, len - left, target, path);
            path.push(self.value(start, left));
        }
    }

    fn value(&self, start: u64, len: u64) -> ChainingValue {
        if len <= LEAF_BYTES {
            return self.values[(start / LEAF_BYTES) as usize];
        }
        let left = left_subtree_len(len);
        merge_subtrees_non_root(&self.value(start, left), &self.value(start + left, len - left), Mode::Hash)
    }
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
    let (offset, len) = leaf_range(shard_len, leaf).ok_or(ProofError::Length)?;
    if answer.leaf.len() as u64 != len || answer.path.len() > PATH_MAX {
        return Err(ProofError::Length);
    }
    if shard_len <= LEAF_BYTES {
        let holds = answer.path.is_empty() && blake3::hash(&answer.leaf) == *root;
        return if holds { Ok(()) } else { Err(ProofError::Path) };
    }
    let mut path = answer.path.iter();
    let left = left_subtree_len(shard_len);
    let lower = if offset < left { (0, left) } else { (left, shard_len - left) };
    let found = climb(lower.0, lower.1, offset, leaf_value(offset, &answer.leaf), &mut path);
    let (Some(found), Some(sibling), None) = (found, path.next(), path.next()) else {
        return Err(ProofError::Path);
    };
    let pair = if offset < left { (&found, sibling) } else { (sibling, &found) };
    let computed = merge_subtrees_root(pair.0, pair.1, Mode::Hash);
    if computed == *root { Ok(()) } else { Err(ProofError::Path) }
}

/// The chaining value of the subtree that holds `target`; `None` where the path is too short.
fn climb<'p>(
    start: u64,
    len: u64,
    target: u64,
    value: ChainingValue,
    path: &mut impl Iterator<Item = &'p [u8; 32]>,
) -> Option<ChainingValue> {
    if len <= LEAF_BYTES {
        return Some(value);
    }
    let left = left_subtree_len(len);
    if target < start + left {
        let lower = climb(start, left, target, value, path)?;
        Some(merge_subtrees_non_root(&lower, path.next()?, Mode::Hash))
    } else {
        let lower = climb(start + left, len - left, target, value, path)?;
        Some(merge_subtrees_non_root(path.next()?, &lower, Mode::Hash))
    }
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
