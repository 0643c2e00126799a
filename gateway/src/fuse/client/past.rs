//! Versions of a bucket, asked for over gRPC; what a gateway gets wrong is refused here.

use bytes::{Bytes, BytesMut};
use tonic::{Response, Status};

use super::{ENTRIES_MAX, FileClient, Stub, wire};
use crate::fuse::messages::time;
use crate::fuse::service::{Errno, PastEntry, PastKind, PastPage, Result};

impl FileClient {
    /// Where keys begin that this mount shows.
    fn key_prefix(&self) -> String {
        let pieces = self.target.prefix.split('/').filter(|piece| !piece.is_empty());
        pieces.flat_map(|piece| [piece, "/"]).collect()
    }

    async fn ask_past(&self, path: &[Bytes], name: Bytes, cursor: Bytes) -> Result<PastPage> {
        let request = wire::ListVersionsRequest {
            bucket: self.bucket(),
            prefix: self.key_prefix(),
            directories: path.to_vec(),
            name,
            cursor,
            entries_max: ENTRIES_MAX,
        };
        let reply = self.ask(async |mut stub: Stub| stub.list_versions(request.clone()).await).await?;
        let entries = reply.entries.into_iter().map(entry).collect();
        Ok(PastPage { entries, cursor: reply.cursor, is_end: reply.is_end })
    }

    pub(super) async fn past_page(&self, path: &[Bytes], cursor: Bytes) -> Result<PastPage> {
        self.ask_past(path, Bytes::new(), cursor).await
    }

    pub(super) async fn past_named(&self, path: &[Bytes], name: &Bytes) -> Result<PastEntry> {
        let page = self.ask_past(path, name.clone(), Bytes::new()).await?;
        page.entries.into_iter().next().ok_or(Errno::NOENT)
    }

    pub(super) async fn past_bytes(&self, key: &str, id: &str, offset: u64, length: u64) -> Result<Bytes> {
        let request = wire::ReadVersionRequest {
            bucket: self.bucket(),
            key: key.to_owned(),
            version_id: id.to_owned(),
            offset,
            length,
        };
        self.ask(|stub| read_once(stub, request.clone())).await
    }
}

async fn read_once(
    mut stub: Stub,
    request: wire::ReadVersionRequest,
) -> std::result::Result<Response<Bytes>, Status> {
    let (length, mut data) = (request.length, BytesMut::new());
    let mut stream = stub.read_version(request).await?.into_inner();
    while let Some(reply) = stream.message().await? {
        if (data.len() + reply.data.len()) as u64 > length {
            return Err(Status::data_loss("more bytes than were asked for"));
        }
        data.extend_from_slice(&reply.data);
    }
    Ok(Response::new(data.freeze()))
}

fn entry(told: wire::PastEntry) -> PastEntry {
    let kind = match told.is_directory {
        true => PastKind::Directory,
        false => PastKind::Version {
            key: told.key,
            id: told.version_id,
            size: told.size.min(i64::MAX as u64),
            modified_at: time(told.modified_at),
            data_version: told.data_version,
        },
    };
    PastEntry { name: told.name, kind }
}
