//! What the file service needs of content: blobs that no version names yet, and ranges of extents.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::command::{Command, NewContent, Reply};
use makai_raft::facts::files::{FileAnswer, FileCommand, FileContent, FileQuery, FileReply};
use makai_raft::facts::object::{Content, ObjectHeaders};
use makai_raft::facts::query::{Answer, Query};
use std::ops::Range;

use super::upload::Inlining;
use makai_ops::metering::Traffic;

use super::{Body, Objects, ObjectsError, Upstream, unexpected};
use crate::identity::Caller;

impl Objects {
    /// The caller's bucket, as it was at most 2 s ago: the facts check its number with each command.
    pub(crate) async fn mounted(&self, caller: &Caller, bucket: &str) -> Result<Bucket, ObjectsError> {
        self.recent_bucket(caller, bucket).await
    }

    /// Forgets what is remembered of a bucket: the facts say that it is another.
    pub(crate) fn forget(&self, bucket: &str) {
        self.forget_bucket(bucket);
    }

    pub(crate) async fn ask_files(&self, query: FileQuery) -> Result<FileAnswer, ObjectsError> {
        match self.query(Query::File(query)).await? {
            Answer::File(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) async fn tell_files(&self, command: FileCommand) -> Result<FileReply, ObjectsError> {
        match self.propose(Command::File(command)).await? {
            Reply::File(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes bytes durable as blobs, which nothing names yet.
    pub(crate) async fn store_blobs(
        &self,
        caller: &Caller,
        bucket: &Bucket,
        body: Body,
        size: Option<u64>,
    ) -> Result<NewContent, ObjectsError> {
        let upstream = Upstream { body, size, check: Box::new(|_| Ok(None)) };
        Ok(self.store(caller, bucket, upstream, Inlining::Never).await?.into_content())
    }

    /// Seals a few bytes to stand in the metadata; its ETag is their MD5.
    pub(crate) async fn seal_inline(
        &self,
        caller: &Caller,
        bucket: &Bucket,
        bytes: Bytes,
    ) -> Result<NewContent, ObjectsError> {
        let size = Some(bytes.len() as u64);
        let body = stream::iter([Ok(bytes)]).boxed();
        let upstream = Upstream { body, size, check: Box::new(|_| Ok(None)) };
        Ok(self.store(caller, bucket, upstream, Inlining::Allowed).await?.into_content())
    }

    pub(crate) async fn open_sealed(
        &self,
        caller: &Caller,
        content: &FileContent,
    ) -> Result<Option<Bytes>, ObjectsError> {
        match &content.content {
            Content::Inline { blob, wrapped_key, sealed } => {
                let headers = headers_of(content);
                Ok(Some(self.open_inline(caller, &headers, *blob, wrapped_key, sealed).await?))
            }
            Content::Empty | Content::Extents(_) => Ok(None),
        }
    }

    /// The bytes of a range that the content's extents cover.
    pub(crate) async fn read_extents(
        &self,
        caller: &Caller,
        range: Range<u64>,
        content: &FileContent,
    ) -> Result<BoxStream<'static, Result<Bytes, ObjectsError>>, ObjectsError> {
        let key = self.reading_key(caller, &headers_of(content)).await?;
        self.count(caller, Traffic::Requests, 1);
        Ok(self.counted(caller, self.body_of(caller.tenant, &key, range, &content.extents)?))
    }

    /// A key that the caller's tenant alone has, to vouch for what this room gives out.
    pub(crate) async fn voucher(&self, caller: &Caller) -> Result<ring::hmac::Key, ObjectsError> {
        let key = self.tenant_key(caller).await?;
        let derived = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key), VOUCHER_PURPOSE);
        Ok(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, derived.as_ref()))
    }

    /// Plaintext bytes that the cluster's disks still take, if anybody knows.
    pub(crate) async fn free_bytes(&self) -> Option<u64> {
        match &self.inner.options.pool_room {
            Some(room) => room.free_bytes().await,
            None => None,
        }
    }

    /// Plaintext bytes that the cluster's disks hold under its default scheme.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        let map = self.inner.map.get();
        let scheme = map.default_scheme();
        let disks = map.map.disks.iter().filter(|disk| map.node_of(disk.id).is_some());
        let raw = disks.fold(0u64, |sum, disk| sum.saturating_add(disk.capacity_bytes));
        raw / scheme.shard_count().max(1) as u64 * u64::from(scheme.data)
    }
}

/// As much of a file's headers as says how it is sealed.
fn headers_of(content: &FileContent) -> ObjectHeaders {
    ObjectHeaders { encryption: content.encryption.clone(), ..ObjectHeaders::default() }
}

const VOUCHER_PURPOSE: &[u8] = b"makai file pieces 1";
