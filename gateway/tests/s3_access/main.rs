//! Who may do what through the S3 door: policies, access lists, and the documents of buckets, over a whole pool.

mod acl;
mod client;
mod cors;
mod edges;
mod encryption;
mod fuzz;
mod policy;
#[path = "../pool/mod.rs"]
mod pool;
mod post;
mod users;
