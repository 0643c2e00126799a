//! How clients reach data and jobs.
//!
//! ```text
//! S3 request ─ s3 (parse, authenticate) ─> objects ─> metadata (raft) + shards (erasure) ─> answer
//! ```
//!
//! | room         | holds                                                   | touches        |
//! |--------------|---------------------------------------------------------|----------------|
//! | [`objects`]  | put, get, list, multipart: one path behind every data door | ports: `Metadata`, `ShardPeers` |
//! | [`fuse`]     | a bucket mounted on a customer's machine                  | the kernel, port `FileService` |
//! | [`audit`]    | who administers what, said to the facts                  | port `Metadata` |
//! | [`identity`] | keys of tenants and customers, unsealed for the doors    | port `Metadata` |
//! | [`outbound`] | requests to the outside: issuers, webhooks, other servers | network        |
//! | [`policy`]   | who may do what: policies, access lists, their order      | nothing        |
//! | [`rights`]   | what a key may do, for doors that are not asked object by object | nothing   |
//! | [`grpc`]     | the gRPC door: its server, who calls, health, reflection | network        |
//! | [`files`]    | the file service: a bucket as a filesystem, for mounts   | network        |
//! | [`jobs`]     | jobs: the door for customers, the desk for nodes         | ports: `Metadata`, `JobNodes` |
//! | [`s3`]       | the S3 door: translate, authenticate, call inward        | network        |
//! | [`seats`]    | connections of a door, and which of them makes room       | nothing        |
//!
//! Always: memory per request is bounded whatever the object's size; a door holds no state that a restart loses.

pub mod audit;
pub mod files;
pub mod fuse;
pub mod grpc;
pub mod identity;
pub mod jobs;
pub mod objects;
pub mod outbound;
pub mod policy;
pub mod rights;
pub mod s3;
pub mod seats;
