//! From what nodes served to what they are owed: integers only, so that every voter and every doubter finds the same.
//!
//! ```text
//! usage of the epoch + accounts before it ─ settle ─> accounts after it + leaves to claim
//! ```
//!
//! | file           | holds                                                              |
//! |----------------|--------------------------------------------------------------------|
//! | [`tokenomics`] | the table of supply, allocation, split and scores; its profiles    |
//! | [`settle`]     | one epoch                                                          |
//! | [`fixed`]      | 2^-x, products of 256 bits, shares in millionths                   |
//!
//! Always: what is earned in an epoch sums to at most its emission; what may be claimed never falls; nothing is earned
//! for bytes that no audit covers; every zero has a reason.

pub mod fixed;
pub mod settle;
pub mod tokenomics;
