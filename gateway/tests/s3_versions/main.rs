//! Versions, object lock, lifecycles and the finer points of objects: operation and condition -> status, code,
//! headers, effect, over a whole pool in this process.

#[path = "../pool/mod.rs"]
mod pool;

mod client;
mod lifecycle;
mod lock;
mod objects;
mod packs;
mod versions;
