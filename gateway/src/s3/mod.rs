//! The S3 door: translate, authenticate, call inward.
//!
//! ```text
//! connection ─ serve ─> service (request id, limits, bad requests) ─ s3s (parse, verify SigV4) ─ access ─> operations
//!     ─> crate::objects ─> answer or error in S3's words
//! ```
//!
//! | room | holds |
//! |---|---|
//! | `serve` | listeners, TLS, connections: bounded, timed, drained at the end |
//! | `service` | one request: its id, its limits, what it is refused for before and after `s3s` |
//! | `access` | whether the request may be served, and for whom |
//! | `operations`, `buckets`, `acls`, `policies`, `documents`, `encryption`, `listing`, `reading`, `writing`, `multipart` | S3's operations in terms of [`crate::objects`] |
//! | `versions`, `lock`, `lifecycle` | versioning, object lock, rules by which objects go |
//! | `website` | buckets as websites |
//! | `following`, [`notifications`], [`replication`] | changes of keys: webhooks hear of them, other servers get copies |
//! | `access_log` | lines of requests, delivered to buckets |
//! | `subresources` | what of a bucket or object a method may ask for |
//! | `dates` | when a request says that it was sent |
//! | `cors` | what browsers ask and must be told |
//! | `forms` | files that browsers send with a form |
//! | `query` | temporary credentials (STS); users, groups, roles and policies (IAM) |
//! | `headers`, `checksums`, `errors` | S3's words for what `objects` says |
//! | `body`, `chunked` | bytes in and out, checked while they stream |
//!
//! Always: no request is served that its key, or for want of one everybody, is not allowed; memory per request is
//! bounded whatever its headers or body say; every answer and every error carries the request's id.

mod access;
mod access_log;
mod acls;
mod body;
mod buckets;
mod checksums;
mod chunked;
mod copying;
mod cors;
mod dates;
mod documents;
mod encryption;
mod errors;
mod following;
mod forms;
mod headers;
mod lifecycle;
mod listing;
mod lock;
mod multipart;
pub mod notifications;
mod operations;
mod policies;
mod query;
mod reading;
pub mod replication;
mod serve;
mod service;
mod subresources;
#[cfg(test)]
mod support;
mod versions;
mod website;
mod writing;

pub(crate) use serve::Guarded;
pub use serve::{ServeError, serve};
pub use service::{S3Door, S3DoorConfig, S3DoorError};
