//! What the cluster agrees on.
//!
//! ```text
//! write   Command ─ handle ─> leader ─ stamps time, batches ─> log (fsync on a majority) ─> machine ─> Reply
//! read    Query ─ handle ─> read barrier (leader still leads) ─> machine, one consistent view ─> Answer
//! ```
//!
//! | room         | holds                                                     | touches        |
//! |--------------|-----------------------------------------------------------|----------------|
//! | [`facts`]    | buckets, objects, blobs, nodes, groups, tenants; commands and queries on them | nothing |
//! | [`machine`]  | apply(batch) -> replies, query(view) -> answer            | a key-value store, by port |
//! | [`log`]      | the write-ahead log                                       | disk           |
//! | [`store`]    | the key-value store of the machine, snapshots             | disk           |
//! | [`handle`]   | propose, query, watch: all that other crates see; port [`handle::RaftPeers`] | peers, by port |
//! | [`signatures`] | who signed what: nodes' Ed25519, payout addresses' and claim signers' secp256k1 | nothing |
//! | [`lifecycle`] | rules of a bucket's lifecycle, what they decide          | nothing        |
//! | [`view`]       | the cluster map as last seen, indexed                     | nothing        |
//!
//! Always: the machine is a pure function of its log; time reaches it only inside a batch, stamped by the
//! leader; every command is applied at most once (sessions remember replies); no floats.

pub mod facts;
pub mod handle;
pub mod lifecycle;
pub mod log;
pub mod machine;
pub mod signatures;
pub mod store;
pub mod view;
