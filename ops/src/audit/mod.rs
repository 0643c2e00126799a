//! Does a node hold what the facts say it holds? Asked of few bytes that it cannot foresee, answered with a proof that
//! anyone can check against the blob's root in the metadata.
//!
//! ```text
//! beacon of the epoch, node, number ─ draw ─> group, blob, leaf ─ asked ─> leaf + path + roots ─ proof ─> pass | fail
//! ```
//!
//! The beacon is the head of the ledger when the epoch opened. It binds what nobody on the node could choose, and is known
//! only after the bytes it asks for were due. Leaves are drawn uniformly by byte over all that the node's groups hold.

pub mod draw;
pub mod proof;
