//! What people contribute beside machines: data sets and models, each with a record that its maker signs.
//!
//! ```text
//! file ─ BLAKE3 ─┐
//! measured scores ┴─ record ─ Ed25519 of its maker ─> beside the file ─> checked by whoever downloads it
//! ```
//!
//! | file        | holds                                                                         |
//! |-------------|-------------------------------------------------------------------------------|
//! | [`record`]  | what is said of a file, and the signature over it                              |
//! | [`quality`] | completeness, accuracy, consistency, timeliness of data, and what follows      |
//!
//! Always: a record names its file by the hash of all its bytes; scores are integers that anyone computes alike from the same
//! counts; one score of zero makes the quality zero.

pub mod quality;
pub mod record;
