//! Ranges read, bytes stored.

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use makai_erasure::layout::BLOB_BYTES_MAX;
use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::files::{FileAnswer, FileContent, FileKind, FileQuery, FileRef, FileRefusal};
use makai_raft::facts::object::{Content, ResolvedExtent};
use makai_raft::facts::query::EXTENTS_PER_ANSWER_MAX;
use tonic::{Status, Streaming};

use super::errors::Failure;
use super::{Does, Files, convert, mismatch, named, tokens};
use crate::grpc::Admitted;
use crate::grpc::proto::file::v1 as proto;
use crate::identity::Caller;
use crate::objects::ObjectsError;

/// Bytes of one message of a read.
pub(super) const MESSAGE_DATA_BYTES: usize = 1024 * 1024;
/// Times a file that changes while its extents are read is read again.
const RESTARTS_MAX: usize = 5;
/// Segments in one answer.
const SEGMENTS_MAX: usize = 4096;

pub type ReadStream = BoxStream<'static, Result<proto::ReadReply, Status>>;

impl Files {
    pub(super) async fn content(
        &self,
        bucket: &Bucket,
        file: &FileRef,
        from_offset: u64,
        extents_max: u32,
    ) -> Result<FileContent, Failure> {
        let query =
            FileQuery::Content { bucket: named(bucket), file: file.clone(), from_offset, extents_max };
        match self.ask(query).await? {
            FileAnswer::Content(content) => Ok(content),
            _ => Err(mismatch()),
        }
    }

    /// A content with all of its extents between two offsets, of one version.
    async fn ranged(
        &self,
        bucket: &Bucket,
        file: &FileRef,
        start: u64,
        end: u64,
    ) -> Result<FileContent, Failure> {
        for _ in 0..RESTARTS_MAX {
            let mut first = self.content(bucket, file, start, EXTENTS_PER_ANSWER_MAX).await?;
            let mut is_torn = false;
            while first.is_truncated && !is_torn {
                let Some(next) = first.extents.last().map(end_of).filter(|next| *next < end) else { break };
                let more = self.content(bucket, file, next, EXTENTS_PER_ANSWER_MAX).await?;
                is_torn = more.stat.data_version != first.stat.data_version || more.extents.is_empty();
                first.is_truncated = more.is_truncated;
                first.extents.extend(more.extents);
            }
            if !is_torn {
                return Ok(first);
            }
        }
        Err(Failure::new(super::errors::Errno::Ebusy, "the file changes too fast to be read"))
    }

    pub(super) async fn read_range(
        &self,
        admitted: Admitted,
        request: proto::ReadRequest,
    ) -> Result<ReadStream, Failure> {
        let bucket = self.bucket(&admitted.caller, &request.bucket, Does::Look).await?;
        let file = convert::file_ref(request.file)?;
        let end = request.offset.saturating_add(request.length);
        let content = self.ranged(&bucket, &file, request.offset, end).await?;
        if request.if_data_version.is_some_and(|version| version != content.stat.data_version) {
            return Err(FileRefusal::Stale.into());
        }
        let head =
            proto::ReadReply { attributes: Some(convert::attributes(&content.stat)), data: Bytes::new() };
        let range = request.offset..end.min(content.stat.size);
        if range.is_empty() {
            return Ok(stream::iter([Ok(head)]).boxed());
        }
        let body = self.body(&admitted.caller, &content, range).await?;
        let pieces = body.map_ok(|bytes| {
            let cuts = (0..bytes.len()).step_by(MESSAGE_DATA_BYTES);
            let cut = |at: usize| bytes.slice(at..bytes.len().min(at + MESSAGE_DATA_BYTES));
            let cuts: Vec<Bytes> = cuts.map(cut).collect();
            stream::iter(cuts.into_iter().map(Ok::<_, ObjectsError>))
        });
        let messages = pieces.try_flatten().map(move |data| {
            // The place among the calls under way is kept until the last byte is sent.
            let _admitted = &admitted;
            match data {
                Ok(data) => Ok(proto::ReadReply { attributes: None, data }),
                Err(error) => Err(Status::from(Failure::from(error))),
            }
        });
        Ok(stream::iter([Ok(head)]).chain(messages).boxed())
    }

    async fn body(
        &self,
        caller: &Caller,
        content: &FileContent,
        range: std::ops::Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, ObjectsError>>, Failure> {
        if let Some(plain) = self.objects.open_sealed(caller, content).await? {
            let bytes = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
            let Some(bytes) = bytes.filter(|(_, end)| *end <= plain.len()) else { return Err(mismatch()) };
            return Ok(stream::iter([Ok(plain.slice(bytes.0..bytes.1))]).boxed());
        }
        Ok(self.objects.read_extents(caller, range, content).await?)
    }

    /// All bytes of a content that is inline.
    pub(super) async fn inline_bytes(
        &self,
        caller: &Caller,
        content: &FileContent,
    ) -> Result<Option<Bytes>, Failure> {
        Ok(self.objects.open_sealed(caller, content).await?)
    }

    pub(super) async fn link_target(
        &self,
        caller: &Caller,
        bucket: &Bucket,
        file: &FileRef,
    ) -> Result<Bytes, Failure> {
        let content = self.content(bucket, file, 0, 1).await?;
        if content.stat.kind != FileKind::Symlink {
            return Err(Failure::invalid("it is not a symbolic link"));
        }
        self.inline_bytes(caller, &content).await?.ok_or_else(mismatch)
    }

    pub(super) async fn segments(
        &self,
        bucket: &Bucket,
        file: &FileRef,
        offset: u64,
    ) -> Result<proto::GetSegmentsReply, Failure> {
        let content = self.content(bucket, file, offset, EXTENTS_PER_ANSWER_MAX).await?;
        let size = content.stat.size;
        let mut segments: Vec<proto::Segment> = Vec::new();
        let is_whole = !matches!(content.content, Content::Extents(_));
        if is_whole && offset < size {
            segments.push(proto::Segment { offset: 0, length: size, is_hole: false });
        }
        for extent in &content.extents {
            let is_hole = extent.extent.is_hole();
            let is_full = segments.len() == SEGMENTS_MAX;
            match segments.last_mut() {
                Some(last) if last.is_hole == is_hole => last.length = end_of(extent) - last.offset,
                _ if is_full => break,
                _ => {
                    segments.push(proto::Segment { offset: extent.at, length: extent.extent.length, is_hole })
                }
            }
        }
        let seen = segments.last().map_or(size, |last| last.offset + last.length);
        let is_truncated = seen < size;
        Ok(proto::GetSegmentsReply { segments, is_truncated, data_version: content.stat.data_version })
    }

    /// Makes a stream of bytes durable as one blob.
    pub(super) async fn store_stream(
        &self,
        caller: &Caller,
        mut messages: Streaming<proto::StoreRequest>,
    ) -> Result<proto::StoreReply, Failure> {
        let broken = |status: Status| Failure::invalid(format!("the stream broke: {}", status.message()));
        let first = messages.message().await.map_err(broken)?;
        let first = first.ok_or_else(|| Failure::invalid("nothing was sent"))?;
        let bucket = self.bucket(caller, &first.bucket, Does::Change).await?;
        if first.length.is_some_and(|length| length > BLOB_BYTES_MAX) {
            return Err(too_long());
        }
        let rest =
            stream::try_unfold((messages, first.data.len() as u64), |(mut messages, sent)| async move {
                let next = messages
                    .message()
                    .await
                    .map_err(|status| Box::new(status) as crate::objects::BodyError)?;
                let Some(next) = next else { return Ok(None) };
                let sent = sent.saturating_add(next.data.len() as u64);
                if sent > BLOB_BYTES_MAX {
                    return Err("more than 64 MiB in one call".into());
                }
                Ok(Some((next.data, (messages, sent))))
            });
        let body = stream::iter([Ok(first.data)]).chain(rest).boxed();
        let stored = self.objects.store_blobs(caller, &bucket, body, first.length).await?;
        let [blob] = &stored.blobs[..] else {
            return Err(Failure::invalid("1 byte to 64 MiB are stored in one call"));
        };
        let key = self.objects.voucher(caller).await?;
        Ok(proto::StoreReply { token: tokens::seal(&key, bucket.id, blob), length: stored.size })
    }
}

fn too_long() -> Failure {
    Failure::invalid("at most 64 MiB are stored in one call")
}

fn end_of(extent: &ResolvedExtent) -> u64 {
    extent.at.saturating_add(extent.extent.length)
}
