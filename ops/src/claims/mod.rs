//! From accounts to what anyone can prove: the tree, what voters sign, and the ledger as a file.
//!
//! ```text
//! facts of an epoch ─ compute ─> accounts, leaves ─ tree ─> root ─ statement ─> digest ─ k of n keys ─> signed
//!                                                                          facts ─ file ─> checked by anyone, offline
//! ```
//!
//! | file          | holds                                                                     |
//! |---------------|---------------------------------------------------------------------------|
//! | [`tree`]      | the cumulative tree, equal to OpenZeppelin's StandardMerkleTree            |
//! | [`statement`] | what is signed (EIP-712), and a signer's key                               |
//! | [`compute`]   | an epoch's result from its facts: what a voter does before it signs        |
//! | [`file`]      | the ledger as a file                                                      |
//! | [`check`]     | what such a file must fulfil                                              |
//! | [`evm`]         | calls of the contract, and transactions that carry them                    |
//!
//! Always: a voter signs only what it computed itself; the signature binds usage, accounts, the ledger's chain and the
//! root before; a changed bit of the file is found.

pub mod check;
pub mod compute;
pub mod evm;
pub mod file;
pub mod statement;
pub mod tree;
