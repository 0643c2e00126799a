//! Was it really computed? Work that can be checked for much less than it costs, and what it is worth.
//!
//! ```text
//! beacon of the epoch ─> tasks of a node ─ computed in idle time ─> roots, told ─ beacon of the next ─> rows asked for ─ checked ─> mut
//! ```
//!
//! | file        | holds                                                                      |
//! |-------------|----------------------------------------------------------------------------|
//! | [`training`] | whether checkpoints come from the training that was asked for              |
//! | [`lottery`] | lots by weight: prizes of computing power                                  |
//! | [`vrf`]     | what such lots are drawn with                                              |
//! | [`drill`]   | chains of integer matrix products: computed, told, asked for, checked      |
//!
//! Always: only verified work is counted, never what a machine says of its own speed; what is asked for is drawn after the
//! answer was fixed; integers alone, so that every processor and card must give the same bits.

pub mod drill;
pub mod lottery;
pub mod training;
pub mod vrf;
