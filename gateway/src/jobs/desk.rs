//! What a node may do for an attempt that is its own, and nothing else.
//!
//! ```text
//! image, inputs   list ─> names and versions; read ─> bytes of one version
//! outputs, log    write (offset 0, in order, last) ─> durable, not visible
//! result          finish ─> one proposal: outputs visible, receipt, task over; or refused and all of it dropped
//! ```
//!
//! A node names what it wants by the attempt and a place in the job's specification, never by bucket or key: so it needs no
//! credential, and whoever it is can reach nothing that its current attempts do not name.
//!
//! Always: each request is checked against the facts; unfinished writes are bounded in number and age; what is written for
//! an attempt that loses is never visible and is collected.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use makai_erasure::NodeId;
use makai_raft::facts::command::{Command, Refusal};
use makai_raft::facts::desk::{Fault, ListedObject, PIECE_BYTES_MAX, Reply, Request, Source, Target};
use makai_raft::facts::jobs::{
    AssignedTask, AttemptId, EachObject, JobId, JobSpec, JobsAnswer, JobsCommand, JobsQuery, NewOutput,
    ObjectPath, Published, Statement, each, log_bucket, of_task, output_key,
};
use makai_raft::facts::object::KEY_BYTES_MAX;
use makai_raft::facts::query::{Answer, ListObjects, Listed, Query};
use makai_raft::facts::tenant::TenantId;
use makai_raft::handle::{MetaError, Metadata};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::identity::Caller;
use crate::objects::{ByteRange, Inlining, Objects, ObjectsError, Stored, Upstream};

/// Objects in one listing.
const LISTED_MAX: u32 = 500;
/// Writes under way at once, over all attempts.
const WRITES_MAX: usize = 256;
/// Attempts with written outputs that have not been finished.
const ATTEMPTS_MAX: usize = 4096;
/// Unfinished writes, and outputs that nobody made visible, are dropped after so long; blobs may take an hour.
const KEPT_MAX: Duration = Duration::from_secs(45 * 60);
/// Outputs of one attempt that may live in the metadata.
const INLINED_MAX: usize = 200;
/// Objects of tasks for objects that are remembered, by task.
const PARTS_MAX: usize = 64;
/// Objects of such a task in one listing, and how many of them are looked at at once.
const EACH_LISTED_MAX: usize = 100;
const EACH_AT_ONCE: usize = 16;
/// Pieces of a write that wait for the disks.
const PIECES_WAITING_MAX: usize = 2;

impl From<ObjectsError> for Fault {
    fn from(error: ObjectsError) -> Self {
        match error {
            ObjectsError::Refused(Refusal::StaleAttempt(attempt)) => Self::Stale(attempt),
            ObjectsError::Refused(_)
            | ObjectsError::AccessDenied
            | ObjectsError::RangeNotSatisfiable { .. } => Self::Refused(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

fn fault(error: MetaError) -> Fault {
    ObjectsError::from(error).into()
}

type Place = (NodeId, AttemptId);

/// A write under way.
struct Writing {
    at: u64,
    pieces: mpsc::Sender<Result<Bytes, crate::objects::BodyError>>,
    stored: JoinHandle<Result<Stored, ObjectsError>>,
    begun: Instant,
    /// Where results of nodes are compared: what was really written.
    hasher: Option<Box<blake3::Hasher>>,
}

/// What an attempt has written whole.
struct Written {
    begun: Instant,
    /// With BLAKE3 of the bytes, where it was taken.
    targets: HashMap<Target, (Stored, Option<[u8; 32]>)>,
}

/// Serves nodes. Cheap to clone.
#[derive(Clone)]
pub struct Desk {
    facts: Arc<dyn Metadata>,
    objects: Objects,
    writing: Arc<Mutex<HashMap<(Place, Target), Writing>>>,
    written: Arc<Mutex<HashMap<Place, Written>>>,
    /// Of tasks for objects: a list never changes.
    parts: Arc<Mutex<HashMap<(JobId, u32), Arc<[EachObject]>>>>,
}

impl Desk {
    #[must_use]
    pub fn new(facts: Arc<dyn Metadata>, objects: Objects) -> Self {
        Self { facts, objects, writing: Arc::default(), written: Arc::default(), parts: Arc::default() }
    }

    /// Answers a node, whose identity its connection has shown.
    pub async fn serve(&self, node: NodeId, request: Request) -> Reply {
        self.answer(node, request).await.unwrap_or_else(Reply::Fault)
    }

    async fn answer(&self, node: NodeId, request: Request) -> Result<Reply, Fault> {
        match request {
            Request::Assignments => {
                let assigned = self.assignments(JobsQuery::Assignments { node }).await?;
                Ok(Reply::Assignments(assigned))
            }
            Request::Start { attempts } => {
                self.facts
                    .propose(Command::Jobs(JobsCommand::Start { node, attempts }))
                    .await
                    .map_err(fault)?;
                Ok(Reply::Done)
            }
            Request::List { attempt, source, after } => self.list(node, attempt, source, after).await,
            Request::Read { attempt, source, name, version, offset, len } => {
                let from = self.source(node, attempt, source, &name).await?;
                self.read(from, version, offset, len).await
            }
            Request::Write { attempt, to, offset, bytes, is_last } => {
                self.write((node, attempt), to, offset, bytes, is_last).await
            }
            Request::Finish { statement, signature, has_log } => {
                if statement.node != node {
                    return Err(Fault::Stale(statement.attempt));
                }
                self.finish(statement, signature, has_log).await
            }
        }
    }

    async fn assignments(&self, query: JobsQuery) -> Result<Vec<AssignedTask>, Fault> {
        match self.facts.query(Query::Jobs(query)).await.map_err(fault)? {
            Answer::Jobs(JobsAnswer::Assignments(assigned)) => Ok(assigned),
            _ => Err(Fault::Unavailable("the metadata answered another question".into())),
        }
    }

    /// The task of an attempt that is current and this node's.
    async fn current(&self, node: NodeId, attempt: AttemptId) -> Result<AssignedTask, Fault> {
        let mut found = self.assignments(JobsQuery::Attempt { node, attempt }).await?;
        found.pop().ok_or(Fault::Stale(attempt))
    }

    /// The tenant and the object or prefix of a source.
    async fn origin(
        &self,
        node: NodeId,
        attempt: AttemptId,
        source: Source,
    ) -> Result<(TenantId, ObjectPath), Fault> {
        let task = self.current(node, attempt).await?;
        if let Source::EachAt(at) = source {
            let part = self.part(&task).await?;
            let object = part.get(at as usize);
            let object = object.ok_or_else(|| Fault::Refused(format!("the task has no object {at}")))?;
            return Ok((task.tenant, object.from.clone()));
        }
        let path = match source {
            Source::Image => task
                .spec
                .work
                .object()
                .ok_or_else(|| Fault::Refused("what the job runs is in its specification".into()))?,
            Source::Input(at) => match task.spec.inputs.get(at as usize) {
                Some(input) => &input.from,
                None => return Err(Fault::Refused(format!("the job has no input {at}"))),
            },
            Source::Each | Source::EachAt(_) => {
                return Err(Fault::Refused("the objects of a task are read one by one".into()));
            }
        };
        let key = of_task(&path.key, attempt.index);
        Ok((task.tenant, ObjectPath { bucket: of_task(&path.bucket, attempt.index), key }))
    }

    async fn source(
        &self,
        node: NodeId,
        attempt: AttemptId,
        source: Source,
        name: &str,
    ) -> Result<(TenantId, ObjectPath), Fault> {
        let (tenant, mut path) = self.origin(node, attempt, source).await?;
        if matches!(source, Source::EachAt(_)) {
            return Ok((tenant, path));
        }
        if is_prefix(&path.key) {
            path.key.push_str(name);
        } else if !name.is_empty() {
            return Err(Fault::Refused(format!("{:?} is one object, not a prefix", path.key)));
        }
        Ok((tenant, path))
    }

    async fn list(
        &self,
        node: NodeId,
        attempt: AttemptId,
        source: Source,
        after: String,
    ) -> Result<Reply, Fault> {
        if source == Source::Each {
            return self.list_each(node, attempt, &after).await;
        }
        let (tenant, path) = self.origin(node, attempt, source).await?;
        let caller = caller(tenant);
        if !is_prefix(&path.key) {
            let head = self.objects.head(&caller, &path.bucket, &path.key).await;
            let head = head.map_err(|error| named(error, &path))?;
            let object = ListedObject { size: head.size, version: head.version, ..ListedObject::default() };
            return Ok(Reply::Objects { objects: vec![object], is_truncated: false });
        }
        let list = ListObjects {
            bucket: path.bucket.clone(),
            prefix: path.key.clone(),
            delimiter: String::new(),
            after: if after.is_empty() { after } else { format!("{}{after}", path.key) },
            entries_max: LISTED_MAX,
        };
        let listed = self.objects.list(&caller, list).await;
        let (entries, is_truncated) = listed.map_err(|error| named(error, &path))?;
        let objects = entries.into_iter().filter_map(|entry| match entry {
            Listed::Object(head) => {
                let name = head.key.strip_prefix(&path.key)?.to_owned();
                Some(ListedObject { name, size: head.size, version: head.version, from: None })
            }
            Listed::CommonPrefix(_) => None,
        });
        Ok(Reply::Objects { objects: objects.collect(), is_truncated })
    }

    /// The objects that a task is for, after one of them.
    async fn list_each(&self, node: NodeId, attempt: AttemptId, after: &str) -> Result<Reply, Fault> {
        let task = self.current(node, attempt).await?;
        let part = self.part(&task).await?;
        let from = match after {
            "" => 0,
            after => part.iter().position(|object| object.name == after).map_or(part.len(), |at| at + 1),
        };
        let page: Vec<EachObject> = part[from..].iter().take(EACH_LISTED_MAX).cloned().collect();
        let is_truncated = from + page.len() < part.len();
        let caller = caller(task.tenant);
        let looked = futures::stream::iter(page.into_iter().map(|EachObject { from, name }| {
            let caller = &caller;
            async move {
                let head = self.objects.head(caller, &from.bucket, &from.key).await;
                let head = head.map_err(|error| named(error, &from))?;
                Ok(ListedObject { name, size: head.size, version: head.version, from: Some(from) })
            }
        }));
        let looked: Vec<Result<ListedObject, Fault>> = looked.buffered(EACH_AT_ONCE).collect().await;
        let objects = looked.into_iter().collect::<Result<_, _>>()?;
        Ok(Reply::Objects { objects, is_truncated })
    }

    /// Which objects a task is for.
    async fn part(&self, task: &AssignedTask) -> Result<Arc<[EachObject]>, Fault> {
        let AttemptId { job, index, .. } = task.attempt;
        if task.spec.each.is_none() {
            return Err(Fault::Refused("the task is for no objects".into()));
        }
        let known = self.lock_parts().get(&(job, index)).cloned();
        if let Some(part) = known {
            return Ok(part);
        }
        let broken = || Fault::Unavailable(format!("the list of the objects of job {} is damaged", job.0));
        let place = self.read_list(task.tenant, job, each::place_of(index)).await?;
        let part = self.read_list(task.tenant, job, each::part_of(&place).ok_or_else(broken)?).await?;
        let part: Arc<[EachObject]> = each::parse(&part).ok_or_else(broken)?.into();
        let mut parts = self.lock_parts();
        if parts.len() >= PARTS_MAX {
            parts.clear();
        }
        parts.insert((job, index), part.clone());
        Ok(part)
    }

    async fn read_list(&self, tenant: TenantId, job: JobId, range: Range<u64>) -> Result<Vec<u8>, Fault> {
        let bytes = ByteRange::From { first: range.start, last: Some(range.end - 1) };
        let list = self.objects.get(&caller(tenant), &log_bucket(tenant), &each::list_key(job), bytes).await;
        let mut download = list?;
        let mut bytes = Vec::with_capacity((download.range.end - download.range.start) as usize);
        while let Some(piece) = download.body.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes)
    }

    async fn read(
        &self,
        (tenant, path): (TenantId, ObjectPath),
        version: u64,
        offset: u64,
        len: u64,
    ) -> Result<Reply, Fault> {
        let changed = || Fault::Refused(format!("{:?} changed while it was read", path.key));
        if len == 0 {
            return Ok(Reply::Bytes(Bytes::new()));
        }
        let last = Some(offset.saturating_add(len.min(PIECE_BYTES_MAX) - 1));
        let range = ByteRange::From { first: offset, last };
        let mut download = self.objects.get(&caller(tenant), &path.bucket, &path.key, range).await?;
        if download.head.version != version {
            return Err(changed());
        }
        let mut bytes = Vec::with_capacity((download.range.end - download.range.start) as usize);
        while let Some(piece) = download.body.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(Reply::Bytes(bytes.into()))
    }

    async fn write(
        &self,
        place: Place,
        to: Target,
        offset: u64,
        bytes: Bytes,
        is_last: bool,
    ) -> Result<Reply, Fault> {
        if bytes.len() as u64 > PIECE_BYTES_MAX {
            return Err(Fault::Refused(format!("a piece has at most {PIECE_BYTES_MAX} bytes")));
        }
        let slot = (place, to.clone());
        let writing = self.lock_writing().remove(&slot);
        let mut writing = match writing {
            Some(writing) if writing.at == offset && offset > 0 => writing,
            _ if offset == 0 => self.begin(place, &to).await?,
            _ => return Err(Fault::NotWritten(format!("nothing up to {offset}"))),
        };
        writing.at += bytes.len() as u64;
        if let Some(hasher) = &mut writing.hasher {
            hasher.update(&bytes);
        }
        // A store that has ended early says why when it is asked for its result.
        let is_open = bytes.is_empty() || writing.pieces.send(Ok(bytes)).await.is_ok();
        if is_open && !is_last {
            self.lock_writing().insert(slot, writing);
            return Ok(Reply::Done);
        }
        drop(writing.pieces);
        let stored = writing.stored.await.map_err(|error| Fault::Unavailable(error.to_string()))??;
        let mut written = self.lock_written();
        let of_attempt =
            written.entry(place).or_insert_with(|| Written { begun: writing.begun, targets: HashMap::new() });
        let hash = writing.hasher.map(|hasher| *hasher.finalize().as_bytes());
        of_attempt.targets.insert(to, (stored, hash));
        Ok(Reply::Done)
    }

    /// Opens a write, after a look at the facts; drops what is too old.
    async fn begin(&self, place: Place, to: &Target) -> Result<Writing, Fault> {
        let (node, attempt) = place;
        let task = self.current(node, attempt).await?;
        let bucket = match to {
            Target::Log => log_bucket(task.tenant),
            Target::Output { at, path } => output_path(&task.spec, attempt, *at, path)?.bucket,
        };
        self.lock_writing().retain(|_, writing| writing.begun.elapsed() < KEPT_MAX);
        self.lock_written().retain(|_, written| written.begun.elapsed() < KEPT_MAX);
        if self.lock_writing().len() >= WRITES_MAX || self.lock_written().len() >= ATTEMPTS_MAX {
            return Err(Fault::Unavailable("too many outputs are being written here".into()));
        }
        // What lives in the metadata travels in the proposal that ends the attempt, which has a bound.
        let written = self.lock_written().get(&place).map_or(0, |written| written.targets.len());
        let inlining = if written < INLINED_MAX { Inlining::Allowed } else { Inlining::Never };
        let (pieces, body) = mpsc::channel(PIECES_WAITING_MAX);
        let objects = self.objects.clone();
        let upstream = Upstream {
            body: tokio_stream::wrappers::ReceiverStream::new(body).boxed(),
            size: None,
            check: Box::new(|_| Ok(None)),
        };
        let stored = tokio::spawn(async move {
            objects.store_unseen(&caller(task.tenant), &bucket, upstream, inlining).await
        });
        let hasher = (task.spec.quorum > 1).then(Box::<blake3::Hasher>::default);
        Ok(Writing { at: 0, pieces, stored, begun: now(), hasher })
    }

    async fn finish(&self, statement: Statement, signature: Bytes, has_log: bool) -> Result<Reply, Fault> {
        let place = (statement.node, statement.attempt);
        let mut written = self.lock_written().remove(&place);
        let (mut outputs, mut kept) = (Vec::new(), Vec::new());
        if !statement.outputs.is_empty() {
            let task = self.current(place.0, place.1).await?;
            let mut by_path = HashMap::new();
            if let Some(written) = &written {
                for target in written.targets.keys() {
                    if let Target::Output { at, path } = target {
                        by_path.insert(output_path(&task.spec, place.1, *at, path)?, target.clone());
                    }
                }
            }
            let mut take =
                |target: &Target| written.as_mut().and_then(|written| written.targets.remove(target));
            for said in &statement.outputs {
                let to = ObjectPath { bucket: said.bucket.clone(), key: said.key.clone() };
                let stored = by_path.get(&to).and_then(&mut take);
                let (stored, hash) = stored.ok_or_else(|| Fault::NotWritten(format!("{:?}", said.key)))?;
                check_written(said, hash)?;
                outputs.push(NewOutput { to, new: stored.content.clone() });
                kept.push(stored);
            }
        }
        let mut log = None;
        if has_log {
            let take_log = written.as_mut().and_then(|written| written.targets.remove(&Target::Log));
            let (stored, _) = take_log.ok_or_else(|| Fault::NotWritten("the log".into()))?;
            log = Some(stored.content.clone());
            kept.push(stored);
        }
        let command = JobsCommand::Finish { statement, signature, outputs, log };
        match self.facts.propose(Command::Jobs(command)).await {
            Ok(_) => Ok(Reply::Done),
            Err(error) => {
                if matches!(error, MetaError::Refused(_)) {
                    kept.into_iter().for_each(|stored| self.objects.drop_unseen(stored));
                }
                Err(fault(error))
            }
        }
    }

    fn lock_parts(&self) -> std::sync::MutexGuard<'_, HashMap<(JobId, u32), Arc<[EachObject]>>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_writing(&self) -> std::sync::MutexGuard<'_, HashMap<(Place, Target), Writing>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_written(&self) -> std::sync::MutexGuard<'_, HashMap<Place, Written>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where results of nodes are compared, by their hashes: what is stated is what was written.
fn check_written(said: &Published, hash: Option<[u8; 32]>) -> Result<(), Fault> {
    match hash {
        Some(hash) if hash != said.blake3 => {
            Err(Fault::Refused(format!("{:?} was written with other bytes than are stated", said.key)))
        }
        _ => Ok(()),
    }
}

/// A refusal that says of which object.
fn named(error: ObjectsError, path: &ObjectPath) -> Fault {
    match Fault::from(error) {
        Fault::Refused(why) => Fault::Refused(format!("s3://{}/{}: {why}", path.bucket, path.key)),
        fault => fault,
    }
}

fn is_prefix(key: &str) -> bool {
    key.is_empty() || key.ends_with('/')
}

fn output_path(spec: &JobSpec, attempt: AttemptId, at: u32, path: &str) -> Result<ObjectPath, Fault> {
    let output = spec.outputs.get(at as usize);
    let output = output.ok_or_else(|| Fault::Refused(format!("the job has no output {at}")))?;
    let is_plain = path.is_empty() || path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let to = output_key(output, attempt.index, path);
    if !is_plain || to.key.is_empty() || to.key.len() > KEY_BYTES_MAX {
        return Err(Fault::Refused(format!("{path:?} makes no key of 1 to {KEY_BYTES_MAX} bytes")));
    }
    Ok(to)
}

/// The job's tenant, as the pool sees who acts for it.
fn caller(tenant: TenantId) -> Caller {
    Caller { tenant, tenant_name: String::new(), access_key_id: String::new() }
}

#[expect(clippy::disallowed_methods, reason = "ages what is unfinished; decides nothing that is agreed")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stated_must_be_what_was_written() {
        let said = Published {
            bucket: "b".into(),
            key: "k".into(),
            size: 3,
            blake3: *blake3::hash(b"abc").as_bytes(),
        };
        assert_eq!(check_written(&said, Some(*blake3::hash(b"abc").as_bytes())), Ok(()));
        assert!(check_written(&said, Some(*blake3::hash(b"abd").as_bytes())).is_err());
        assert_eq!(check_written(&said, None), Ok(()), "nothing is compared");
    }
}
