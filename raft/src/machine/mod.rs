//! In the making.

pub mod kv;
