//! The S3 door: translate, authenticate, call inward.
//!
//! ```text
//! connection ─ serve, connection ─> service (request id, limits, bad requests) ─ s3s (parse, verify SigV4) ─ access ─> operations
//!     ─> crate::objects ─> answer or error in S3's words
//! ```
//!
//! | room | holds |
//! |---|---|
//! | `serve` | listeners, TLS, connections: bounded, timed, drained at the end |
//! | `connection` | one connection: HTTP/1.1, HTTP/2, or at rest |
//! | `service` | one request: its id, its limits, its way to and from `s3s` |
//! | `hosts` | which bucket a request's host and path name |
//! | `precheck` | what a request's head alone decides |
//! | `failures` | errors as S3 writes them |
//! | `answer` | an answer under way: counted, measured, written down |
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
mod answer;
mod body;
mod buckets;
mod checksums;
mod chunked;
mod connection;
mod copying;
mod cors;
mod dates;
mod documents;
mod encryption;
mod errors;
mod failures;
mod following;
mod forms;
mod headers;
mod hosts;
mod lifecycle;
mod listing;
mod lock;
mod multipart;
pub mod notifications;
mod operations;
mod policies;
mod precheck;
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
