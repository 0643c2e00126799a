//! The accounts as one node sees them: its keys, what it reads of the facts, how its disks answer audits.
//!
//! | file        | holds                                                              | touches       |
//! |-------------|--------------------------------------------------------------------|---------------|
//! | [`keys`]    | claim and payout keys; roots that this node has signed             | files         |
//! | [`reading`] | whole lists of the facts, page by page                             | port of facts |
//! | [`metered`] | shards' bytes counted on their way                                 | port of shards |
//! | [`audits`]  | asking for a leaf, and answering                                   | disks, peers  |
//! | [`rpc`]     | questions to endpoints of an EVM chain                             | network       |
//! | [`chain`]   | an EVM chain: what it pays, and the outbox                         | network, files |
//! | [`drills`]  | what this node computed to be measured                             | nothing       |
//! | [`words`]   | what this node says of itself: lots, trainings                     | port of facts |
//! | [`trainings`] | what nodes train, and what is found of it                        | port of facts |
//! | [`stakes`]  | what addresses stake on the embedded ledger                        | port of facts |
//! | [`fees`]    | what a claim would cost now                                        | port of facts, network |
//! | [`foresight`] | what should have been earned, and what is coming                  | port of facts |
//! | [`payouts`] | where nodes are paid, and how a person changes it                  | port of facts |
//! | [`api`]     | what the console answers about all this                            | port of facts |
//!
//! The loops that close epochs, report and audit are in [`crate::reconcile`].

pub mod api;
pub mod audits;
pub mod chain;
pub mod drills;
pub mod fees;
pub mod foresight;
pub mod keys;
pub mod metered;
pub mod payouts;
pub mod reading;
pub mod rpc;
pub mod stakes;
pub mod trainings;
pub mod words;
