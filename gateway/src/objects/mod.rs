//! Put, get, list, multipart: one path behind every data door.

use std::ops::Range;

use bytes::Bytes;
use futures::stream::BoxStream;
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::command::{Precondition, Refusal};
use makai_raft::facts::object::{Checksum, ObjectHead, ObjectHeaders, Part, Upload};
use makai_raft::facts::query::{ListObjects, Listed};

use crate::identity::Caller;

/// Why an operation on objects did not happen. Variants by what a door tells its client.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// The facts say no: see the refusal.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Another tenant's bucket.
    #[error("access denied")]
    AccessDenied,
    /// The client's body ended early, failed its checks, or could not be read.
    #[error("the request's body: {0}")]
    Body(#[source] BodyError),
    /// The range lies outside the object's `size` bytes.
    #[error("the range lies outside the object's {size} bytes")]
    RangeNotSatisfiable { size: u64 },
    /// Too much is under way; the client should try again later.
    #[error("slow down: {0}")]
    SlowDown(String),
    /// The pool cannot do it now (no leader, too few disks); the client should try again.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The pool takes no more bytes.
    #[error("the pool is full: {0}")]
    Full(String),
    /// The pool broke its promise: bytes that should be there are not, or do not verify.
    #[error("internal: {0}")]
    Internal(String),
}

/// What was wrong with a body: the door's own error, carried through.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes from a client, in order.
pub type Body = BoxStream<'static, Result<Bytes, BodyError>>;

/// The bytes of a new object or part.
pub struct Upstream {
    pub body: Body,
    /// What the client said it would send; a body that is longer or shorter is refused.
    pub size: Option<u64>,
    /// Called with the body's MD5 once it is read to its end, before anything becomes visible: returns the checksum
    /// to keep, or the door's reason to refuse (a digest that differs).
    pub check: Box<dyn FnOnce([u8; 16]) -> Result<Option<Checksum>, BodyError> + Send>,
}

/// An object's bytes on their way to a client.
pub struct Download {
    pub head: ObjectHead,
    /// The part of the object that `body` yields.
    pub range: Range<u64>,
    pub body: BoxStream<'static, Result<Bytes, ObjectsError>>,
}

/// Which bytes of an object are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ByteRange {
    All,
    /// `first..=last`; `last` may lie behind the end. `None`: to the end.
    From {
        first: u64,
        last: Option<u64>,
    },
    Last(u64),
    /// The bytes that came with a part.
    Part(u16),
}

/// A source to copy from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyFrom {
    pub bucket: String,
    pub key: String,
    /// What must hold of the source.
    pub precondition: Precondition,
    /// HTTP dates of the source's conditions, Unix seconds.
    pub if_modified_since: Option<u64>,
    pub if_unmodified_since: Option<u64>,
}

/// The data door's inside. Cheap to clone.
#[derive(Clone)]
pub struct Objects {}

#[expect(clippy::unused_async, unused_variables, reason = "signatures first")]
impl Objects {
    pub async fn create_bucket(
        &self,
        caller: &Caller,
        name: &str,
        scheme: Option<makai_erasure::Scheme>,
    ) -> Result<Bucket, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn delete_bucket(&self, caller: &Caller, name: &str) -> Result<(), ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn bucket(&self, caller: &Caller, name: &str) -> Result<Bucket, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn buckets(&self, caller: &Caller) -> Result<Vec<Bucket>, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn bucket_document(
        &self,
        caller: &Caller,
        name: &str,
        document: &str,
    ) -> Result<Option<Bytes>, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn set_bucket_document(
        &self,
        caller: &Caller,
        name: &str,
        document: &str,
        value: Option<Bytes>,
    ) -> Result<(), ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn put(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        headers: ObjectHeaders,
        upstream: Upstream,
        precondition: Precondition,
    ) -> Result<ObjectHead, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn head(&self, caller: &Caller, bucket: &str, key: &str) -> Result<ObjectHead, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    /// `check` sees the head before any byte is fetched: a door refuses there (304, 412).
    pub async fn get(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        range: ByteRange,
    ) -> Result<Download, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn delete(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        precondition: Precondition,
    ) -> Result<bool, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    /// `headers`: `None` keeps the source's.
    pub async fn copy(
        &self,
        caller: &Caller,
        from: CopyFrom,
        bucket: &str,
        key: &str,
        headers: Option<ObjectHeaders>,
        precondition: Precondition,
    ) -> Result<ObjectHead, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn list(
        &self,
        caller: &Caller,
        list: ListObjects,
    ) -> Result<(Vec<Listed>, bool), ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn set_tagging(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        tagging: Option<String>,
    ) -> Result<(), ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn create_upload(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        headers: ObjectHeaders,
        checksum_algorithm: Option<String>,
        checksum_is_composite: bool,
    ) -> Result<Upload, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn upload(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        upload_id: &str,
    ) -> Result<Upload, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn put_part(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        upload_id: &str,
        number: u16,
        upstream: Upstream,
    ) -> Result<Part, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn copy_part(
        &self,
        caller: &Caller,
        from: CopyFrom,
        range: Option<Range<u64>>,
        bucket: &str,
        key: &str,
        upload_id: &str,
        number: u16,
    ) -> Result<Part, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    /// `parts`: number and ETag without quotes, in the client's order.
    pub async fn complete_upload(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        upload_id: &str,
        parts: Vec<(u16, String)>,
        checksum: Option<Checksum>,
        precondition: Precondition,
    ) -> Result<ObjectHead, ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn abort_upload(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        upload_id: &str,
    ) -> Result<(), ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn parts(
        &self,
        caller: &Caller,
        bucket: &str,
        key: &str,
        upload_id: &str,
        after: u16,
        entries_max: u32,
    ) -> Result<(Vec<Part>, bool), ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
    pub async fn uploads(
        &self,
        caller: &Caller,
        bucket: &str,
        prefix: &str,
        after: Option<(String, String)>,
        entries_max: u32,
    ) -> Result<(Vec<Upload>, bool), ObjectsError> {
        Err(ObjectsError::AccessDenied)
    }
}
