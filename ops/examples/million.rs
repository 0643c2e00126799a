//! One epoch of a million miners: settled, put into a tree, written as records; with time and memory of each step.
//!
//! `cargo run --release -p makai-ops --example million [MINERS] [tree]`; with `tree` nothing is settled, so that memory is that
//! of the tree and the usage file alone.

use std::time::Instant;

use makai_erasure::NodeId;
use makai_ops::claims::tree::ClaimTree;
use makai_ops::rewards::settle::{Inputs, settle};
use makai_ops::rewards::tokenomics::{RULES, Tokenomics};
use makai_raft::facts::accounts::{Address, Amount, Hash, Leaf, NodeUsage};

const EPOCH_MS: u64 = 3_600_000;
const MINERS: u64 = 1_000_000;

fn main() {
    let is_tree_alone = std::env::args().nth(2).is_some_and(|what| what == "tree");
    let count = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(MINERS);
    let table = Tokenomics::profile("makai", EPOCH_MS).expect("a known profile");
    let usage: Vec<NodeUsage> = (0..count).map(miner).collect();
    let mut begun = now();
    let mut step = |what: &str| {
        println!("{what:<28} {:>6} ms, at most {} MiB in all", begun.elapsed().as_millis(), peak_mib());
        begun = now();
    };
    let leaves = match is_tree_alone {
        true => leaves_of(&usage),
        false => {
            let first = settle(&Inputs {
                rules: RULES,
                table: &table,
                epoch: 1,
                epoch_ms: EPOCH_MS,
                beacon: Hash([1; 32]),
                usage: &usage,
                accounts: &[],
                leaves: &[],
                difficulty: &[],
            });
            step("first epoch settled");
            let second = settle(&Inputs {
                rules: RULES,
                table: &table,
                epoch: 2,
                epoch_ms: EPOCH_MS,
                beacon: Hash([1; 32]),
                usage: &usage,
                accounts: &first.accounts,
                leaves: &first.leaves,
                difficulty: &first.difficulty,
            });
            drop(first);
            step("second epoch settled");
            second.leaves
        }
    };
    let tree = ClaimTree::new(&leaves);
    step("tree of claims");
    let hash = makai_ops::claims::compute::usage_hash(&usage);
    step("usage file, hashed");
    let proof = tree.proof(&leaves[leaves.len() / 2]).expect("a leaf of the tree");
    println!("root {}, usage {hash}, {} steps in a proof", tree.root(), proof.len());
}

/// As if each had earned what it stores.
fn leaves_of(usage: &[NodeUsage]) -> Vec<Leaf> {
    let leaf = |usage: &NodeUsage| {
        Some(Leaf { payout: usage.payout?, cumulative: Amount(usage.storage_byte_ms + 1) })
    };
    let mut leaves: Vec<Leaf> = usage.iter().filter_map(leaf).collect();
    leaves.sort_unstable();
    leaves
}

fn miner(at: u64) -> NodeUsage {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&at.to_be_bytes());
    let mut payout = [0; 20];
    payout[..8].copy_from_slice(&at.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
    NodeUsage {
        payout: Some(Address(payout)),
        stored_bytes: (at % 1000) << 30,
        storage_byte_ms: u128::from(at % 1000) * (1 << 30) * u128::from(EPOCH_MS),
        egress_bytes: (at % 77) << 20,
        audits_pass: 4,
        ..NodeUsage::of(NodeId(id))
    }
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// The most memory that this process ever held; 0 where the system does not tell.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
