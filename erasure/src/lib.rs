//! How bytes become durable shards, and come back.
//!
//! ```text
//! write   plaintext ─ seal ─> pages ─ layout ─> stripes ─ codec ─> k + m shards ─ placement ─> disks
//! read    disks ─ stripe ─> any k cells ─ codec ─> pages ─ seal ─> plaintext
//! ```
//!
//! | room          | holds                                              | touches           |
//! |---------------|----------------------------------------------------|-------------------|
//! | [`ids`]       | names of nodes, disks, blobs, groups               | nothing           |
//! | [`layout`]    | blob <-> pages <-> stripes <-> shards               | nothing           |
//! | [`placement`] | which disks make a group                           | nothing           |
//! | [`codec`]     | Reed-Solomon over GF(2^8), SIMD kernels             | nothing           |
//! | [`seal`]      | AES-256-GCM pages, wrapped keys                    | nothing           |
//! | [`outline`]   | the tree of hashes between a shard and its root    | nothing           |
//! | [`stripe`]    | writing, reading, rebuilding a blob; [`stripe::ShardPeers`] | peers, by port |
//! | [`store`]     | shards in segment files                            | this node's disks |
//!
//! Three rules hold in every room: a stored shard never changes; a shard's bytes are never returned unless
//! their checksum holds; a write is reported durable only after its quorum is on disk.

pub mod codec;
pub mod ids;
pub mod layout;
pub mod outline;
pub mod placement;
pub mod seal;
pub mod store;
pub mod stripe;

pub use ids::{BlobId, DiskId, NodeId, ParseIdError, PgId, ShardKey};
pub use layout::{BlobLayout, Scheme};
