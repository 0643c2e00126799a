//! A bucket as a filesystem.
//!
//! ```text
//! program ─ kernel ─ /dev/fuse ─> kernel (translate) ─> mount, data (caches, unsent bytes) ─> service ─ gRPC ─> gateway
//!                        ^ forget <──────────────────────── changes by others' hands <─────────────────────┘
//! ```
//!
//! | room        | holds                                                              | touches       |
//! |-------------|--------------------------------------------------------------------|---------------|
//! | [`service`] | the port: what a mount needs of the pool                           | nothing       |
//! | [`mount`]   | names, attributes, extended attributes, changes of others          | the port      |
//! | [`data`]    | bytes: write-back, cache, read-ahead, failures, locks              | the port      |
//! | `alone`, `later` | directories that are this mount's alone: changes decided here, told to the pool in batches | the port |
//! | [`handles`] | open files, listings                                               | the port      |
//! | [`past`]    | `.versions`: what a bucket that keeps versions was                 | the port      |
//! | [`nodes`], [`buffer`], [`blocks`], [`acl`] | what is known of a file; unsent bytes; cached bytes; access lists | nothing |
//! | [`disk_cache`] | blocks kept on this machine's disk, sealed                      | the disk      |
//! | [`client`], `messages` | the real pool: a session over gRPC; its messages      | network       |
//! | [`register`] | which sessions the mounts of this machine have                    | the disk      |
//! | [`kernel`]  | `fuser`                                                            | the kernel    |
//!
//! What a program may rely on is written in `FUSE.md`. Always: unsent bytes are bounded in memory and age; an error
//! of a write-back reaches every open file of it; nothing that was told is believed after the pool is out of reach.

pub mod acl;
mod alone;
pub mod blocks;
pub mod buffer;
pub mod client;
pub mod data;
pub mod disk_cache;
pub mod handles;
pub mod kernel;
mod later;
mod messages;
pub mod mount;
pub mod nodes;
pub mod past;
pub mod register;
pub mod service;
