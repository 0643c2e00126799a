//! Copies whose bytes must be sealed anew: from another tenant's bucket, or under other keys.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt as _;
use makai_raft::facts::command::Precondition;
use makai_raft::facts::object::{Checksum, ObjectHead, ObjectHeaders, Part};
use s3s::S3Result;

use super::checksums::{Algorithm, Hasher};
use super::errors::refused;
use crate::identity::Caller;
use crate::objects::{BodyError, ByteRange, CopyFrom, Download, Objects, Upstream};

/// What is copied, for whom it is read, and with the key that opens it. It must still have the ETag that `from` names.
pub(super) struct Source<'a> {
    pub(super) objects: &'a Objects,
    pub(super) reader: &'a Caller,
    pub(super) from: &'a CopyFrom,
}

/// Where a copy goes.
pub(super) struct Target<'a> {
    pub(super) bucket: &'a str,
    pub(super) key: &'a str,
}

impl Source<'_> {
    async fn bytes(&self, range: ByteRange) -> S3Result<Download> {
        let Self { objects, reader, from } = self;
        let download = objects.get_version(reader, &from.bucket, &from.key, from.version, range).await;
        let download = download.map_err(refused)?;
        objects.check_source(&download.head, from).map_err(refused)?;
        Ok(download)
    }
}

/// As `Objects::copy`, by bytes; `algorithm`: of the checksum that the copy gets, where it is not the source's.
pub(super) async fn copy_bytes(
    source: Source<'_>,
    objects: &Objects,
    writer: &Caller,
    target: Target<'_>,
    headers: ObjectHeaders,
    (precondition, algorithm): (Precondition, Option<Algorithm>),
) -> S3Result<ObjectHead> {
    let download = source.bytes(ByteRange::All).await?;
    let upstream = match algorithm {
        None => relay(download),
        Some(algorithm) => rehash(download, algorithm),
    };
    let Target { bucket, key } = target;
    objects.put(writer, bucket, key, headers, upstream, precondition).await.map_err(refused)
}

/// As `Objects::copy_part`, by bytes.
pub(super) async fn copy_part_bytes(
    source: Source<'_>,
    range: Option<Range<u64>>,
    objects: &Objects,
    writer: &Caller,
    target: Target<'_>,
    (upload_id, number): (&str, u16),
) -> S3Result<Part> {
    let range = range.map_or(ByteRange::All, |range| ByteRange::From {
        first: range.start,
        last: Some(range.end.saturating_sub(1)),
    });
    let upstream = relay(source.bytes(range).await?);
    let Target { bucket, key } = target;
    objects.put_part(writer, bucket, key, upload_id, number, upstream).await.map_err(refused)
}

/// As [`relay`], with the checksum of `algorithm`, computed on the way.
fn rehash(download: Download, algorithm: Algorithm) -> Upstream {
    let size = Some(download.head.size);
    let hasher = Arc::new(Mutex::new(Some(Hasher::new(algorithm))));
    let seen = Arc::clone(&hasher);
    let body = download.body.map(move |piece| {
        if let (Ok(bytes), Some(hasher)) =
            (&piece, seen.lock().unwrap_or_else(PoisonError::into_inner).as_mut())
        {
            hasher.update(bytes);
        }
        piece.map_err(|error| -> BodyError { error.into() })
    });
    let check = move |_: [u8; 16]| -> Result<Option<Checksum>, BodyError> {
        let hasher = hasher.lock().unwrap_or_else(PoisonError::into_inner).take();
        let checksum = |value| Checksum { algorithm: algorithm.name().into(), value, is_composite: false };
        Ok(hasher.map(Hasher::finish).map(checksum))
    };
    Upstream { body: body.boxed(), size, check: Box::new(check) }
}

fn relay(download: Download) -> Upstream {
    let checksum = download.head.checksum.clone().filter(|checksum| !checksum.is_composite);
    let is_whole = download.range == (0..download.head.size);
    let size = Some(download.range.end - download.range.start);
    let body = download.body.map(|piece| piece.map_err(|error| -> BodyError { error.into() })).boxed();
    Upstream { body, size, check: Box::new(move |_| Ok(checksum.filter(|_| is_whole))) }
}
