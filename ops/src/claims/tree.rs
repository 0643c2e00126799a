//! The cumulative tree: one leaf per address, equal to OpenZeppelin's StandardMerkleTree of `(address, uint256)`.
//!
//! A leaf is Keccak-256 twice over its ABI encoding; leaves are sorted by hash; a parent hashes its two children in
//! ascending order; the nodes lie in an array as in a heap, the leaves at its end in reverse.

use makai_raft::facts::accounts::{Address, Hash, Leaf};
use makai_raft::signatures::{claim_leaf, parent_of};

/// Root, and proofs of all leaves. 64 bytes a leaf.
#[derive(Debug, Clone)]
pub struct ClaimTree {
    /// The root first.
    nodes: Vec<Hash>,
    /// Hash of each leaf in order, with its place in what was given.
    order: Vec<(Hash, u32)>,
}

impl ClaimTree {
    /// O(n log n). Of no leaves: a root of zeros.
    #[must_use]
    pub fn new(leaves: &[Leaf]) -> Self {
        let hash = |(at, leaf): (u32, &Leaf)| (claim_leaf(&leaf.payout, leaf.cumulative.0), at);
        let mut order: Vec<(Hash, u32)> = (0u32..).zip(leaves).map(hash).collect();
        order.sort_unstable();
        let node_count = (2 * order.len()).saturating_sub(1);
        let mut nodes = vec![Hash::default(); node_count];
        for (at, (hash, _)) in order.iter().enumerate() {
            nodes[node_count - 1 - at] = *hash;
        }
        for at in (0..order.len().saturating_sub(1)).rev() {
            nodes[at] = parent_of(&nodes[2 * at + 1], &nodes[2 * at + 2]);
        }
        Self { nodes, order }
    }

    #[must_use]
    pub fn root(&self) -> Hash {
        self.nodes.first().copied().unwrap_or_default()
    }

    /// The way from a leaf to the root; `None` where it is no leaf of this tree.
    #[must_use]
    pub fn proof(&self, leaf: &Leaf) -> Option<Vec<Hash>> {
        let hash = claim_leaf(&leaf.payout, leaf.cumulative.0);
        let place = self.order.binary_search_by(|(known, _)| known.cmp(&hash)).ok()?;
        let mut at = self.nodes.len() - 1 - place;
        let mut proof = Vec::new();
        while at > 0 {
            proof.push(self.nodes[if at % 2 == 1 { at + 1 } else { at - 1 }]);
            at = (at - 1) / 2;
        }
        Some(proof)
    }
}

/// The address that stands for an embedded ledger in signatures: no contract can have it by chance, and no signature for
/// one cluster fits another.
#[must_use]
pub fn embedded_ledger(cluster_id: &str) -> Address {
    let hash =
        makai_raft::signatures::keccak256(&[b"makai embedded ledger 1:", cluster_id.as_bytes()].concat());
    let mut address = [0; 20];
    address.copy_from_slice(&hash.0[12..]);
    Address(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use makai_raft::facts::accounts::Amount;
    use makai_raft::signatures::proves;

    fn leaves(count: u64) -> Vec<Leaf> {
        let leaf = |at: u64| {
            let mut payout = [0; 20];
            payout[12..].copy_from_slice(&(at + 1).to_be_bytes());
            let cumulative = u128::from(at + 1) * 1_000_000_000_000_000_000 + u128::from(at) * u128::from(at);
            Leaf { payout: Address(payout), cumulative: Amount(cumulative) }
        };
        (0..count).map(leaf).collect()
    }

    /// Made with @openzeppelin/merkle-tree 1.0.8 from the same leaves.
    #[test]
    fn roots_are_openzeppelins() {
        let vectors = [
            (1, "0x6081e60a560cf21a6ea538bd62fec907bc40d5711c5e8c7e8fbe6dc134b72608"),
            (2, "0xfdeae2376341463aed214610a0bba7e79a13d49004535c2052271598db5f6728"),
            (3, "0xdc5599a0e21febc65ee2b784d1495108bbf0f2c7c203a2be72ec81e7440bddb7"),
            (7, "0x84a75d0046871d4cd47fb809483867f263bb530fff1f7f725b6b089780949215"),
            (8, "0xc47a3a5f16b72a4d9adc9e2e87a0e01a9344a7b892219df9340a927bf61cb67c"),
            (1000, "0x80cc0ea08704d61531b21e4f550b6bff54dd20c65e770b373f4c6029b7778fea"),
        ];
        for (count, root) in vectors {
            let leaves = leaves(count);
            let tree = ClaimTree::new(&leaves);
            assert_eq!(tree.root().to_string(), root, "{count} leaves");
            for leaf in &leaves {
                let proof = tree.proof(leaf).unwrap();
                assert!(proves(&tree.root(), claim_leaf(&leaf.payout, leaf.cumulative.0), &proof));
                let more = claim_leaf(&leaf.payout, leaf.cumulative.0 + 1);
                assert!(!proves(&tree.root(), more, &proof));
            }
        }
        let proof = ClaimTree::new(&leaves(7)).proof(&leaves(7)[3]).unwrap();
        assert_eq!(
            proof.iter().map(Hash::to_string).collect::<Vec<_>>(),
            [
                "0x6081e60a560cf21a6ea538bd62fec907bc40d5711c5e8c7e8fbe6dc134b72608",
                "0xef50f516963737d75a5656d3b0c42419be92cdc712c8cc1bc38ffeb1b9a15c65",
                "0x9717039fb53fd96cdd93d5e54aba49f6f321590ff0d4f66edb9551adb1002891",
            ]
        );
    }

    #[test]
    fn what_is_no_leaf_has_no_proof() {
        let tree = ClaimTree::new(&leaves(5));
        assert_eq!(tree.proof(&leaves(6)[5]), None);
        assert_eq!(ClaimTree::new(&[]).root(), Hash::default());
        assert_eq!(ClaimTree::new(&[]).proof(&leaves(1)[0]), None);
    }
}
