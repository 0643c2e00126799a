//! The accounts as one node sees them: its keys, what it reads of the facts, how its disks answer audits.
//!
//! | file        | holds                                                              | touches       |
//! |-------------|--------------------------------------------------------------------|---------------|
//! | [`keys`]    | claim and payout keys; roots that this node has signed             | files         |
//! | [`reading`] | whole lists of the facts, page by page                             | port of facts |
//! | [`metered`] | shards' bytes counted on their way                                 | port of shards |
//! | [`audits`]  | asking for a leaf, and answering                                   | disks, peers  |
//! | [`chain`]   | JSON-RPC to an EVM chain, and the outbox                           | network, files |
//! | [`api`]     | what the console answers about all this                            | port of facts |
//!
//! The loops that close epochs, report and audit are in [`crate::reconcile`].

pub mod api;
pub mod audits;
pub mod chain;
pub mod keys;
pub mod metered;
pub mod reading;
