//! Copies whose bytes must be sealed anew: from another tenant's bucket.

use std::ops::Range;

use futures::StreamExt as _;
use makai_raft::facts::command::Precondition;
use makai_raft::facts::object::{ObjectHead, ObjectHeaders, Part};
use s3s::S3Result;

use super::errors::refused;
use super::operations::Operations;
use crate::identity::Caller;
use crate::objects::{BodyError, ByteRange, CopyFrom, Download, Upstream};

/// Where a copy goes.
pub(super) struct Target<'a> {
    pub(super) bucket: &'a str,
    pub(super) key: &'a str,
}

impl Operations {
    /// As `Objects::copy`, by bytes: `from` is read as `reader`, and must still have the ETag that it names.
    pub(super) async fn copy_bytes(
        &self,
        reader: &Caller,
        from: &CopyFrom,
        writer: &Caller,
        target: Target<'_>,
        headers: ObjectHeaders,
        precondition: Precondition,
    ) -> S3Result<ObjectHead> {
        let download = self.source_bytes(reader, from, ByteRange::All).await?;
        let upstream = relay(download);
        let Target { bucket, key } = target;
        self.objects.put(writer, bucket, key, headers, upstream, precondition).await.map_err(refused)
    }

    /// As `Objects::copy_part`, by bytes.
    pub(super) async fn copy_part_bytes(
        &self,
        reader: &Caller,
        from: &CopyFrom,
        range: Option<Range<u64>>,
        writer: &Caller,
        target: Target<'_>,
        part: (&str, u16),
    ) -> S3Result<Part> {
        let range = range.map_or(ByteRange::All, |range| ByteRange::From {
            first: range.start,
            last: Some(range.end.saturating_sub(1)),
        });
        let upstream = relay(self.source_bytes(reader, from, range).await?);
        let Target { bucket, key } = target;
        let (upload_id, number) = part;
        let part = self.objects.put_part(writer, bucket, key, upload_id, number, upstream).await;
        part.map_err(refused)
    }

    async fn source_bytes(&self, reader: &Caller, from: &CopyFrom, range: ByteRange) -> S3Result<Download> {
        let download = self.objects.get(reader, &from.bucket, &from.key, range).await.map_err(refused)?;
        self.objects.check_source(&download.head, from).map_err(refused)?;
        Ok(download)
    }
}

fn relay(download: Download) -> Upstream {
    let checksum = download.head.checksum.clone().filter(|checksum| !checksum.is_composite);
    let is_whole = download.range == (0..download.head.size);
    let size = Some(download.range.end - download.range.start);
    let body = download.body.map(|piece| piece.map_err(|error| -> BodyError { error.into() })).boxed();
    Upstream { body, size, check: Box::new(move |_| Ok(checksum.filter(|_| is_whole))) }
}
