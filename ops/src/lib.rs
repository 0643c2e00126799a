//! Who used what, who is owed what, is it well?
//!
//! ```text
//! counters, audits ─ metering, audit ─> agreed usage (raft) ─ reputation, rewards ─> accounts ─ claims ─> signed root
//! ```
//!
//! | room           | holds                                                                 | touches |
//! |----------------|-----------------------------------------------------------------------|---------|
//! | [`metrics`]    | the name, unit and meaning of every metric a node publishes           | the process's metric recorder |
//! | [`metering`]   | what a gateway counts for nodes and tenants                            | nothing |
//! | [`audit`]      | which leaves of which shards are asked for, and the proof of an answer | nothing |
//! | [`computing`]  | work that proves itself, and what it is worth                          | nothing |
//! | [`contributions`] | records of data sets and models, and scores of data                | nothing |
//! | [`reputation`] | scores, suspension, vetting                                           | nothing |
//! | [`rewards`]    | the table of tokenomics, and what an epoch pays                       | nothing |
//! | [`claims`]     | the tree of claims, what voters sign, the ledger's file               | nothing |
//!
//! Always: a metric's name is written once, in [`metrics`]; a label never carries an identity, spans do. What is paid is
//! computed by integers from agreed facts, the same on every voter and for anyone with the ledger's file.
//!
//! Whom it does not protect from: more than half of the voters together can sign what is not true, up to the emission of
//! the epochs they sign. Miners are never voters.

pub mod audit;
pub mod claims;
pub mod computing;
pub mod contributions;
pub mod metering;
pub mod metrics;
pub mod reputation;
pub mod rewards;
