//! The tree of hashes between a shard's bytes and its root, so that any 16 KiB of it can be proved alone.
//!
//! A shard's root is plain BLAKE3 of its bytes: a tree over chunks of 1 KiB. Sixteen chunks that lie together are a *leaf*
//! here. A leaf's *path* is the value of the other child at each level above it, lowest first.
//!
//! ```text
//! bytes, in any pieces ─ Outline ─> root, nodes (64 bytes a leaf) ─ kept beside the shard ─> path of any leaf ─ proves ─> root
//! ```
//!
//! Nodes stand in one row: of each subtree the left child, all that is below it, the right child, all that is below that.
//! The root is not among them. So the places of a path's nodes follow from the shard's length alone.

use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

/// Bytes of a leaf; the last one of a shard may be shorter.
pub const LEAF_BYTES: u64 = 16 * 1024;
/// Bytes of a node.
pub const NODE_BYTES: u64 = 32;
/// Levels above the leaves of the longest shard, and some room.
const PATH_MAX: usize = 24;

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

/// Places in the row of nodes of the values that make a leaf's path, lowest first; `None` where there is no such leaf.
#[must_use]
pub fn path_places(shard_len: u64, leaf: u64) -> Option<Vec<u64>> {
    let (target, _) = leaf_range(shard_len, leaf)?;
    let (mut start, mut len, mut at) = (0, shard_len, 0);
    let mut places = Vec::new();
    while len > LEAF_BYTES {
        let left = left_subtree_len(len);
        // The right child stands behind the left one and the two nodes for each of its leaves but one that are below it.
        let right_at = at + 2 * leaf_count(left) - 1;
        if target < start + left {
            places.push(right_at);
            (at, len) = (at + 1, left);
        } else {
            places.push(at);
            (at, start, len) = (right_at + 1, start + left, len - left);
        }
    }
    places.reverse();
    Some(places)
}

fn leaf_value(offset: u64, leaf: &[u8]) -> ChainingValue {
    blake3::Hasher::new().set_input_offset(offset).update(leaf).finalize_non_root()
}

/// Takes up a shard's bytes in order; knows its root, and the path of every leaf.
#[derive(Debug, Clone, Default)]
pub struct Outline {
    /// Of leaves that are whole.
    values: Vec<ChainingValue>,
    /// The leaf that is not.
    open: blake3::Hasher,
    open_len: u64,
    len: u64,
    /// What the first leaf hashes to where it is the whole shard.
    first: Option<[u8; 32]>,
}

impl Outline {
    /// The next bytes, however many.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let missing = (LEAF_BYTES - self.open_len) as usize;
            let (part, rest) = bytes.split_at(missing.min(bytes.len()));
            self.open.update(part);
            self.open_len += part.len() as u64;
            self.len += part.len() as u64;
            if self.open_len == LEAF_BYTES {
                if self.values.is_empty() {
                    self.first = Some(*self.open.finalize().as_bytes());
                }
                self.values.push(self.open.finalize_non_root());
                self.open = blake3::Hasher::new();
                self.open.set_input_offset(self.len);
                self.open_len = 0;
            }
            bytes = rest;
        }
    }

    /// BLAKE3 of all bytes so far.
    #[must_use]
    pub fn root(&self) -> [u8; 32] {
        if self.len <= LEAF_BYTES {
            return self.first.unwrap_or_else(|| *self.open.finalize().as_bytes());
        }
        let left = left_subtree_len(self.len);
        let (lower, upper) = (self.value(0, left), self.value(left, self.len - left));
        *merge_subtrees_root(&lower, &upper, Mode::Hash).as_bytes()
    }

    /// All nodes but the root, in their row; none where one leaf is all.
    #[must_use]
    pub fn nodes(&self) -> Vec<[u8; 32]> {
        let mut nodes = Vec::with_capacity(2 * leaf_count(self.len) as usize);
        if self.len > LEAF_BYTES {
            self.lay_out(0, self.len, &mut nodes);
        }
        nodes
    }

    /// Appends both children of a subtree with all that is below them; returns their values.
    fn lay_out(&self, start: u64, len: u64, nodes: &mut Vec<[u8; 32]>) -> [ChainingValue; 2] {
        let left = left_subtree_len(len);
        [(start, left), (start + left, len - left)].map(|(start, len)| {
            let place = nodes.len();
            nodes.push([0; 32]);
            let value = match len > LEAF_BYTES {
                true => {
                    let [lower, upper] = self.lay_out(start, len, nodes);
                    merge_subtrees_non_root(&lower, &upper, Mode::Hash)
                }
                false => self.leaf(start),
            };
            nodes[place] = value;
            value
        })
    }

    /// The path of a leaf; `None` where there is no such leaf.
    #[must_use]
    pub fn path(&self, leaf: u64) -> Option<Vec<[u8; 32]>> {
        let (target, _) = leaf_range(self.len, leaf)?;
        let (mut start, mut len) = (0, self.len);
        let mut path = Vec::new();
        while len > LEAF_BYTES {
            let left = left_subtree_len(len);
            if target < start + left {
                path.push(self.value(start + left, len - left));
                len = left;
            } else {
                path.push(self.value(start, left));
                (start, len) = (start + left, len - left);
            }
        }
        path.reverse();
        Some(path)
    }

    fn leaf(&self, start: u64) -> ChainingValue {
        let whole = self.values.get((start / LEAF_BYTES) as usize).copied();
        whole.unwrap_or_else(|| self.open.finalize_non_root())
    }

    fn value(&self, start: u64, len: u64) -> ChainingValue {
        if len <= LEAF_BYTES {
            return self.leaf(start);
        }
        let left = left_subtree_len(len);
        merge_subtrees_non_root(&self.value(start, left), &self.value(start + left, len - left), Mode::Hash)
    }
}

/// Whether leaf `leaf` of a shard with this root and length is `bytes`. Any bytes and any path may be given.
#[must_use]
pub fn proves(root: &[u8; 32], shard_len: u64, leaf: u64, bytes: &[u8], path: &[[u8; 32]]) -> bool {
    let Some((offset, len)) = leaf_range(shard_len, leaf) else { return false };
    if bytes.len() as u64 != len || path.len() > PATH_MAX {
        return false;
    }
    if shard_len <= LEAF_BYTES {
        return path.is_empty() && blake3::hash(bytes) == *root;
    }
    let mut path = path.iter();
    let left = left_subtree_len(shard_len);
    let lower = if offset < left { (0, left) } else { (left, shard_len - left) };
    let found = climb(lower.0, lower.1, offset, leaf_value(offset, bytes), &mut path);
    let (Some(found), Some(sibling), None) = (found, path.next(), path.next()) else {
        return false;
    };
    let pair = if offset < left { (&found, sibling) } else { (sibling, &found) };
    merge_subtrees_root(pair.0, pair.1, Mode::Hash) == *root
}

/// The value of the subtree that holds `target`; `None` where the path is too short.
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

    pub fn bytes(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&len.to_be_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Whatever the length and the pieces, the root is BLAKE3's own, and every leaf's path, by either way, leads to it.
    #[test]
    fn an_outline_is_of_the_shard_and_of_nothing_else() {
        for len in
            [0usize, 1, 1024, 16_383, 16_384, 16_385, 32_768, 49_152, 65_552, 81_920, 131_104, 1_000_003]
        {
            let all = bytes(len);
            for piece in [1000, 16_384, 65_552, 600_000] {
                let mut outline = Outline::default();
                all.chunks(piece).for_each(|piece| outline.push(piece));
                let root = *blake3::hash(&all).as_bytes();
                assert_eq!(outline.root(), root, "{len} bytes by {piece}");
                let nodes = outline.nodes();
                assert_eq!(nodes.len() as u64, (2 * leaf_count(len as u64)).saturating_sub(2));
                for leaf in 0..leaf_count(len as u64) {
                    let path = outline.path(leaf).unwrap();
                    let places = path_places(len as u64, leaf).unwrap();
                    let by_place: Vec<[u8; 32]> = places.iter().map(|at| nodes[*at as usize]).collect();
                    assert_eq!(by_place, path, "leaf {leaf} of {len}");
                    let (offset, leaf_len) = leaf_range(len as u64, leaf).unwrap();
                    let its = &all[offset as usize..(offset + leaf_len) as usize];
                    assert!(proves(&root, len as u64, leaf, its, &path));
                    assert!(!proves(&root, len as u64, leaf + 1, its, &path));
                    assert!(!proves(&root, len as u64, leaf, &its[1..], &path));
                    if !path.is_empty() {
                        assert!(!proves(&root, len as u64, leaf, its, &path[1..]));
                    }
                }
                assert_eq!(outline.path(leaf_count(len as u64)), None);
                assert_eq!(path_places(len as u64, leaf_count(len as u64)), None);
            }
        }
    }
}
