//! The calls, as `makai.file.v1.Files` states them.

use makai_raft::facts::bucket::Bucket;
use makai_raft::facts::files::{
    DIRECTORY_LEASE_MS, FileAnswer, FileCommand, FileQuery, FileReply, LEASE_MS, Lock, LookedAt, Name,
    OPS_MAX, SessionGrant,
};
use makai_raft::facts::version::Versioning;
use tonic::{Request, Response, Status, Streaming};

use super::content::ReadStream;
use super::errors::Failure;
use super::versions::VersionStream;
use super::watch::WatchStream;
use super::{Does, Files, convert, mismatch, named};
use crate::grpc::proto::file::v1 as proto;
use crate::grpc::proto::file::v1::files_server;
use crate::identity::Caller;

/// How long a mount may believe what it read while it watches.
const CACHE_MS: u32 = 10_000;
/// Inode numbers that a session begins with.
const INODES_AT_FIRST: u32 = 4096;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl files_server::Files for Files {
    type WatchStream = WatchStream;
    type ReadStream = ReadStream;
    type ReadVersionStream = VersionStream;

    async fn open_session(
        &self,
        request: Request<proto::OpenSessionRequest>,
    ) -> Answer<proto::OpenSessionReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        Ok(Response::new(self.begin(&admitted.caller, request.into_inner()).await?))
    }

    async fn renew_session(
        &self,
        request: Request<proto::RenewSessionRequest>,
    ) -> Answer<proto::RenewSessionReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let request = request.into_inner();
        let bucket =
            self.bucket(&admitted.caller, &request.bucket, Does::Look).await.map_err(Status::from)?;
        let command = FileCommand::RenewSession {
            bucket: named(&bucket),
            session: request.session,
            seen: request.seen_sequence,
            held: request.held,
            inodes_wanted: request.inodes_wanted,
        };
        match self.tell(&bucket.name, command).await? {
            FileReply::Session(grant) => {
                let keeps_versions = keeps_versions(&bucket);
                Ok(Response::new(proto::RenewSessionReply { inodes: Some(range(&grant)), keeps_versions }))
            }
            _ => Err(mismatch().into()),
        }
    }

    async fn close_session(
        &self,
        request: Request<proto::CloseSessionRequest>,
    ) -> Answer<proto::CloseSessionReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let request = request.into_inner();
        let bucket = self.bucket(&admitted.caller, &request.bucket, Does::Look).await?;
        let command = FileCommand::CloseSession { bucket: named(&bucket), session: request.session };
        self.tell(&bucket.name, command).await?;
        Ok(Response::new(proto::CloseSessionReply {}))
    }

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Answer<WatchStream> {
        let admitted = self.gate.admit(request.metadata()).await?;
        Ok(Response::new(self.watch_bucket(admitted, request.into_inner()).await?))
    }

    async fn lookup(&self, request: Request<proto::LookupRequest>) -> Answer<proto::LookupReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        Ok(Response::new(self.walk(&admitted.caller, request.into_inner()).await?))
    }

    async fn get_attributes(
        &self,
        request: Request<proto::GetAttributesRequest>,
    ) -> Answer<proto::GetAttributesReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let request = request.into_inner();
        let bucket = self.bucket(&admitted.caller, &request.bucket, Does::Look).await?;
        let files = request.files.into_iter().map(|file| convert::file_ref(Some(file)));
        let files = files.collect::<Result<Vec<_>, _>>()?;
        let FileAnswer::Stats(stats) = self.ask(FileQuery::Stats { bucket: named(&bucket), files }).await?
        else {
            return Err(mismatch().into());
        };
        use proto::attributes_or_error::Answer as One;
        let answers = stats.into_iter().map(|stat| {
            let answer = match stat {
                Ok(stat) => One::Attributes(convert::attributes(&stat)),
                Err(refusal) => One::Error(Failure::from(refusal).error()),
            };
            proto::AttributesOrError { answer: Some(answer) }
        });
        Ok(Response::new(proto::GetAttributesReply { answers: answers.collect() }))
    }

    async fn read_directory(
        &self,
        request: Request<proto::ReadDirectoryRequest>,
    ) -> Answer<proto::ReadDirectoryReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let request = request.into_inner();
        let bucket = self.bucket(&admitted.caller, &request.bucket, Does::Look).await?;
        let at = LookedAt::Directory { inode: request.directory, names: Vec::new() };
        self.settle(&bucket, request.session, at).await?;
        let entries_max = if request.entries_max == 0 { u32::MAX } else { request.entries_max };
        let query = FileQuery::Directory {
            bucket: named(&bucket),
            inode: request.directory,
            cursor: request.cursor,
            entries_max,
        };
        let FileAnswer::Directory { entries, is_end, directory, parent } = self.ask(query).await? else {
            return Err(mismatch().into());
        };
        let entries = entries.into_iter().map(|entry| proto::Entry {
            name: super::names::shown(&entry.name).into(),
            attributes: Some(convert::attributes(&entry.stat)),
            cursor: entry.cursor,
        });
        Ok(Response::new(proto::ReadDirectoryReply {
            entries: entries.collect(),
            is_end,
            directory: Some(convert::attributes(&directory)),
            parent,
        }))
    }

    async fn read_link(&self, request: Request<proto::ReadLinkRequest>) -> Answer<proto::ReadLinkReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let request = request.into_inner();
        let bucket = self.bucket(&admitted.caller, &request.bucket, Does::Look).await?;
        let file = convert::file_ref(request.file)?;
        let target = self.link_target(&admitted.caller, &bucket, &file).await?;
        Ok(Response::new(proto::ReadLinkReply { target }))
    }

    async fn get_xattrs(&self, request: Request<proto::GetXattrsRequest>) -> Answer<proto::GetXattrsReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let request = request.into_inner();
        let bucket = self.bucket(&admitted.caller, &request.bucket, Does::Look).await?;
        let file = convert::file_ref(request.file)?;
        let FileAnswer::Xattrs(xattrs) = self.ask(FileQuery::Xattrs { bucket: named(&bucket), file }).await?
        else {
            return Err(mismatch().into());
        };
        let xattrs = xattrs.into_iter().map(|(name, value)| proto::Xattr { name, value });
        Ok(Response::new(proto::GetXattrsReply { xattrs: xattrs.collect() }))
    }

    async fn get_segments(
        &self,
        request: Request<proto::GetSegmentsRequest>,
    ) -> Answer<proto::GetSegmentsReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let request = request.into_inner();
        let bucket = self.bucket(&admitted.caller, &request.bucket, Does::Look).await?;
        let file = convert::file_ref(request.file)?;
        Ok(Response::new(self.segments(&bucket, &file, request.offset).await?))
    }

    async fn stat_fs(&self, request: Request<proto::StatFsRequest>) -> Answer<proto::StatFsReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let bucket = self.bucket(&admitted.caller, &request.into_inner().bucket, Does::Look).await?;
        let FileAnswer::Space { used_bytes, quota_bytes, files } =
            self.ask(FileQuery::Space { bucket: named(&bucket) }).await?
        else {
            return Err(mismatch().into());
        };
        let (free, capacity) = (self.objects.free_bytes().await, self.objects.capacity_bytes());
        let total_bytes = total(used_bytes, quota_bytes, free, capacity);
        Ok(Response::new(proto::StatFsReply { total_bytes, used_bytes, files }))
    }

    async fn get_lock(&self, request: Request<proto::GetLockRequest>) -> Answer<proto::GetLockReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        let request = request.into_inner();
        let bucket = self.bucket(&admitted.caller, &request.bucket, Does::Look).await?;
        let mut held = self.lock_held(&bucket, &request).await?;
        let is_others =
            |held: &Option<(u64, Lock)>| held.is_some_and(|(holder, _)| holder != request.session);
        if is_others(&held) && self.is_any_session_over(&bucket).await {
            // Its holder is dead, which nobody has noticed.
            let command = FileCommand::ExpireSessions { bucket: named(&bucket) };
            self.tell(&bucket.name, command).await?;
            held = self.lock_held(&bucket, &request).await?;
        }
        let is_own_session = held.is_some() && !is_others(&held);
        let held = held.map(|(_, lock)| convert::lock(lock));
        Ok(Response::new(proto::GetLockReply { held, is_own_session }))
    }

    async fn apply(&self, request: Request<proto::ApplyRequest>) -> Answer<proto::ApplyReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        Ok(Response::new(self.apply_operations(&admitted.caller, request.into_inner()).await?))
    }

    async fn store(&self, request: Request<Streaming<proto::StoreRequest>>) -> Answer<proto::StoreReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        Ok(Response::new(self.store_stream(&admitted.caller, request.into_inner()).await?))
    }

    async fn read(&self, request: Request<proto::ReadRequest>) -> Answer<ReadStream> {
        let admitted = self.gate.admit(request.metadata()).await?;
        Ok(Response::new(self.read_range(admitted, request.into_inner()).await?))
    }

    async fn list_versions(
        &self,
        request: Request<proto::ListVersionsRequest>,
    ) -> Answer<proto::ListVersionsReply> {
        let admitted = self.gate.admit(request.metadata()).await?;
        Ok(Response::new(self.past(&admitted.caller, request.into_inner()).await?))
    }

    async fn read_version(&self, request: Request<proto::ReadVersionRequest>) -> Answer<VersionStream> {
        let admitted = self.gate.admit(request.metadata()).await?;
        Ok(Response::new(self.read_past(admitted, request.into_inner()).await?))
    }
}

impl Files {
    /// Whether a session is to be ended; so too where nobody can tell.
    async fn is_any_session_over(&self, bucket: &Bucket) -> bool {
        let query = FileQuery::Expired { bucket: named(bucket), now: self.objects.time() };
        !matches!(self.ask(query).await, Ok(FileAnswer::Expired(false)))
    }

    /// A lock that stands in the way, and whose it is.
    async fn lock_held(
        &self,
        bucket: &Bucket,
        request: &proto::GetLockRequest,
    ) -> Result<Option<(u64, Lock)>, Failure> {
        let query = FileQuery::Lock {
            bucket: named(bucket),
            session: request.session,
            file: convert::file_ref(request.file.clone())?,
            lock: convert::lock_of(request.lock)?,
        };
        match self.ask(query).await? {
            FileAnswer::Lock(held) => Ok(held),
            _ => Err(mismatch()),
        }
    }

    async fn begin(
        &self,
        caller: &Caller,
        request: proto::OpenSessionRequest,
    ) -> Result<proto::OpenSessionReply, Failure> {
        let bucket = self.bucket(caller, &request.bucket, Does::Look).await?;
        let pieces = request.prefix.split('/').filter(|piece| !piece.is_empty());
        let below = pieces.map(|piece| Name::Any(piece.to_owned())).collect();
        let session = rand::random::<u64>().max(1);
        let command = FileCommand::OpenSession {
            bucket: named(&bucket),
            session,
            client: request.client,
            below,
            inodes_wanted: INODES_AT_FIRST,
        };
        let FileReply::Session(grant) = self.tell(&bucket.name, command).await? else {
            return Err(mismatch());
        };
        // Readers look out for mounts from now on.
        self.objects.forget(&bucket.name);
        Ok(proto::OpenSessionReply {
            session,
            root: Some(convert::attributes(&grant.root)),
            lease_ms: u32::try_from(LEASE_MS).unwrap_or(u32::MAX),
            cache_ms: CACHE_MS,
            sequence: grant.sequence,
            inodes: Some(range(&grant)),
            directory_lease_ms: u32::try_from(DIRECTORY_LEASE_MS).unwrap_or(u32::MAX),
            keeps_versions: keeps_versions(&bucket),
        })
    }

    async fn walk(
        &self,
        caller: &Caller,
        request: proto::LookupRequest,
    ) -> Result<proto::LookupReply, Failure> {
        if request.names.len() > OPS_MAX {
            return Err(Failure::invalid(format!("at most {OPS_MAX} steps at once")));
        }
        let bucket = self.bucket(caller, &request.bucket, Does::Look).await?;
        let mut reply = proto::LookupReply::default();
        let mut parent = request.parent;
        let mut names = request.names.iter().peekable();
        while names.peek().is_some() && reply.error.is_none() {
            // One question for all steps whose names say themselves what they mean.
            let mut steps = Vec::new();
            let mut error = None;
            while let Some(name) = names.peek() {
                match super::names::meant(name) {
                    Ok(super::names::Meant::Name(name)) => steps.push(name),
                    Ok(super::names::Meant::Long { .. }) if steps.is_empty() => {
                        match self.name(&bucket, parent, name).await {
                            Ok(name) => steps.push(name),
                            Err(failure) => error = Some(failure),
                        }
                    }
                    Ok(super::names::Meant::Long { .. }) => break,
                    Err(refusal) => error = Some(refusal.into()),
                }
                if error.is_some() {
                    break;
                }
                names.next();
            }
            if !steps.is_empty() {
                let at = LookedAt::Directory { inode: parent, names: steps[..steps.len() - 1].to_vec() };
                self.settle(&bucket, request.session, at).await?;
                parent = self.steps(&bucket, parent, steps, &mut reply).await?;
            }
            if let Some(failure) = error {
                reply.error.get_or_insert(failure.error());
            }
        }
        Ok(reply)
    }

    /// What others decided where a session looks is told before it looks.
    async fn settle(&self, bucket: &Bucket, session: u64, at: LookedAt) -> Result<(), Failure> {
        if session == 0 {
            return Ok(()); // An earlier client, which does not say who it is.
        }
        Ok(self.objects.settle(bucket, session, at).await?)
    }

    /// Takes steps down, and returns the last inode reached.
    async fn steps(
        &self,
        bucket: &Bucket,
        parent: u64,
        names: Vec<Name>,
        reply: &mut proto::LookupReply,
    ) -> Result<u64, Failure> {
        let query = FileQuery::Lookup { bucket: named(bucket), parent, names };
        let FileAnswer::Found { found, ended } = self.ask(query).await? else { return Err(mismatch()) };
        let last = found.last().map_or(parent, |stat| stat.inode);
        reply.found.extend(found.iter().map(convert::attributes));
        reply.error = ended.map(|refusal| Failure::from(refusal).error());
        Ok(last)
    }
}

fn keeps_versions(bucket: &Bucket) -> bool {
    bucket.versioning != Versioning::Unversioned
}

fn range(grant: &SessionGrant) -> proto::InodeRange {
    proto::InodeRange { first: grant.inodes.0, count: grant.inodes.1 }
}

/// The size that a filesystem is shown with, so that what is left of it is what can be written: the least of what the quota and the
/// disks leave. Where nobody knows of the disks, all of them count as empty.
fn total(used: u64, quota: Option<u64>, free: Option<u64>, capacity: u64) -> u64 {
    let pool = free.map(|free| used.saturating_add(free));
    let total = match (quota, pool) {
        (Some(quota), Some(pool)) => quota.min(pool),
        (Some(known), None) | (None, Some(known)) => known,
        (None, None) => capacity,
    };
    total.max(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_what_can_be_written() {
        let left = |used, quota, free, capacity| total(used, quota, free, capacity) - used;
        assert_eq!(left(10, None, Some(3), 1000), 3, "a nearly full pool");
        assert_eq!(left(10, Some(12), Some(3), 1000), 2);
        assert_eq!(left(10, Some(500), Some(3), 1000), 3, "a quota is no room");
        assert_eq!(left(10, Some(5), Some(3), 1000), 0);
        assert_eq!((left(10, Some(500), None, 1000), left(10, None, None, 1000)), (490, 990));
    }
}
