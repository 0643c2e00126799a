//! The pool as files, over gRPC (`proto/makai/file/v1`): one session on one bucket.
//!
//! Two tasks live with it: one renews the session, one follows what others change. While that stream is silent for
//! longer than its beat, nothing told before is vouched for. A call that a gateway does not answer is repeated, at the
//! next gateway, until the configured time is over, and then is `EIO`: no program waits for ever.
//!
//! A session ends when it was not renewed in time: the pool was away, or this machine slept. A new one begins then, nothing
//! told before is believed, and locks are taken again. What a gateway may have done in the old session and did not
//! answer is repeated where doing it twice is the same as once, else it is `EIO`. A file on which a lock could not be
//! taken again is `EIO` until it is closed: what its program knew of it may be wrong.

mod past;

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use super::messages::{attr, done, errno_of, refusal, wire_file, wire_lock, wire_operation};
use super::nodes::lock;
use super::register::{self, Kept, Record};
use super::service::{
    Attr, Change, Done, Edit, Entry, Errno, FileRef, FileService, Ino, Lock, LockKind, Operation, Page,
    PastEntry, PastPage, Payload, Place, Read, Result, SeekTo, Space, XattrMode,
};
use crate::grpc::proto::file::v1 as wire;
use crate::grpc::token;
use wire::files_client::FilesClient;

/// Messages between an answer's bounds and a gateway's: a page of a directory, a chunk of a file.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
const CHUNK_BYTES: usize = 256 << 10;
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A gateway that does not take a connection within this is not there.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// A connection is asked for a sign of life so often; without one it is broken, whatever waits on it.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(2);
const SIGN_OF_LIFE_WITHIN: Duration = Duration::from_secs(4);
/// The stream of changes speaks every second; silent for so long, it is broken.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// A stream of changes that broke begins again after so long: nothing is cached meanwhile.
const WATCH_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Changes told and not taken yet.
const CHANGES_MAX: usize = 1024;
/// A listing's page.
const ENTRIES_MAX: u32 = 1000;
/// Open files named in one renewal.
const HELD_MAX: usize = 65_536;
/// Inode numbers asked for at once, as soon as half as many are left.
const NUMBERS_WANTED: u32 = 65_536;
/// Of the time that a gateway promises, what is relied upon: clocks of two machines do not run alike.
const ALONE_SHARE: f64 = 0.6;
/// Sessions that one change outlives.
const SESSIONS_TRIED_MAX: usize = 3;
/// SQLite's index of a write-ahead log: memory that programs share, in a file of this ending, and the byte of it that is
/// locked by each of them as long as the memory is to be believed.
const INDEX_SUFFIX: &[u8] = b"-shm";
const INDEX_IN_USE_AT: u64 = 128;

/// Where a bucket is and who asks.
#[derive(Clone)]
pub struct Target {
    /// `http://` or `https://`, host and port of gateways' gRPC doors. One is asked as long as it answers, then the next.
    pub endpoints: Vec<String>,
    /// Who vouches for the gateways' certificates, PEM.
    pub authorities: Vec<u8>,
    pub access_key_id: String,
    pub secret_access_key: String,
    pub bucket: String,
    /// Directory in the bucket; empty: all of it.
    pub prefix: String,
    /// For the operator's eyes.
    pub client: String,
    /// A call is given up after so long.
    pub timeout: Duration,
    /// Where mounts of this machine write down their sessions; without it, that of a dead one ends with its lease.
    pub register: Option<PathBuf>,
}

type Stub = FilesClient<InterceptedService<Channel, Credentials>>;

/// Names the customer in every call.
#[derive(Clone)]
struct Credentials {
    access_key_id: String,
    secret_access_key: String,
}

impl Credentials {
    /// A token for one call.
    fn token(&self) -> Option<MetadataValue<Ascii>> {
        let value =
            token::bearer(&self.access_key_id, &self.secret_access_key, wall_clock_secs() + token::LIFE_SECS);
        let mut value: MetadataValue<Ascii> = value.parse().ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl tonic::service::Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        let token =
            self.token().ok_or_else(|| Status::unauthenticated("the access key id cannot be sent"))?;
        request.metadata_mut().insert("authorization", token);
        Ok(request)
    }
}

/// Why a mount cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(
        "{endpoint:?} is no address of a gRPC door: {source}; give http://HOST:PORT or https://HOST:PORT"
    )]
    Endpoint { endpoint: String, source: tonic::transport::Error },
    #[error("the access key holds a character that no header can")]
    Credentials,
    #[error("bucket {bucket:?} is not opened by {endpoint}: {why}")]
    Refused { endpoint: String, bucket: String, why: String },
}

/// Inode numbers that a session may give to what it makes.
#[derive(Debug, Default)]
struct Numbers {
    session: u64,
    ranges: VecDeque<Range<u64>>,
}

impl Numbers {
    fn of(session: u64, granted: Option<wire::InodeRange>) -> Self {
        let mut numbers = Self { session, ranges: VecDeque::new() };
        numbers.take(session, granted);
        numbers
    }

    fn take(&mut self, session: u64, granted: Option<wire::InodeRange>) {
        if let Some(granted) = granted.filter(|granted| granted.count > 0 && session == self.session) {
            self.ranges.push_back(granted.first..granted.first.saturating_add(granted.count.into()));
        }
    }

    fn next(&mut self) -> Option<u64> {
        while let Some(range) = self.ranges.front_mut() {
            if let Some(number) = range.next() {
                return Some(number);
            }
            self.ranges.pop_front();
        }
        None
    }

    fn are_few(&self) -> bool {
        self.ranges.iter().map(|range| range.end - range.start).sum::<u64>() < u64::from(NUMBERS_WANTED / 2)
    }
}

/// Changes of one owner's locks on a file, in order: done again, they are its locks.
type LockSteps = Vec<(FileRef, Lock)>;

/// A session on a bucket.
pub struct FileClient {
    doors: Vec<Stub>,
    /// Which of them is asked.
    door: AtomicUsize,
    target: Target,
    session: AtomicU64,
    beginning: tokio::sync::Mutex<()>,
    root: Attr,
    cache: Duration,
    keeps_versions: AtomicBool,
    requests: AtomicU64,
    open: Mutex<HashSet<Ino>>,
    /// Numbers of the session that are not given yet.
    numbers: Mutex<Numbers>,
    is_number_wanted: Notify,
    /// How long a directory stays this mount's alone after a change, and until when those do that are.
    alone_for: Duration,
    alone_until: Mutex<Option<Instant>>,
    locks: Mutex<HashMap<(Ino, u64), LockSteps>>,
    /// Open files on which locks were lost.
    lost: Mutex<HashSet<Ino>>,
    kept: Mutex<Option<Kept>>,
    heard_at: Mutex<Option<Instant>>,
    seen: AtomicU64,
    changes: tokio::sync::Mutex<mpsc::Receiver<Change>>,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

/// Unix time, in seconds.
#[expect(
    clippy::disallowed_methods,
    reason = "a client has no node's clock; tokens tell the gateway when they expire"
)]
fn wall_clock_secs() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[expect(clippy::disallowed_methods, reason = "silence is measured on the runtime's clock")]
fn timer() -> Instant {
    Instant::now()
}

impl FileClient {
    /// Opens a session and begins to follow changes.
    ///
    /// # Errors
    /// The address or the credentials are unusable, or the gateway refuses.
    pub async fn connect(target: Target) -> std::result::Result<Arc<Self>, ConnectError> {
        let who = Credentials {
            access_key_id: target.access_key_id.clone(),
            secret_access_key: target.secret_access_key.clone(),
        };
        if who.token().is_none() {
            return Err(ConnectError::Credentials);
        }
        let mut doors = Vec::new();
        for address in &target.endpoints {
            let endpoint = endpoint(&target, address)
                .map_err(|source| ConnectError::Endpoint { endpoint: address.clone(), source })?;
            let stub = FilesClient::with_interceptor(endpoint.connect_lazy(), who.clone());
            doors.push(
                stub.max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX),
            );
        }
        let mut why = "no gateway is named".to_owned();
        for (at, door) in doors.iter().enumerate() {
            let mut stub = door.clone();
            let opened = tokio::time::timeout(target.timeout, stub.open_session(open_request(&target)));
            match opened.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("it does not answer"))) {
                Ok(opened) => {
                    let client = Self::begin(doors, at, target, opened.into_inner())?;
                    client.register().await;
                    return Ok(client);
                }
                Err(status) => why = status.message().to_owned(),
            }
        }
        Err(refused(&target, why))
    }

    fn begin(
        doors: Vec<Stub>,
        door: usize,
        target: Target,
        opened: wire::OpenSessionReply,
    ) -> std::result::Result<Arc<Self>, ConnectError> {
        let root = opened.root.and_then(attr);
        let root = root.ok_or_else(|| refused(&target, "it tells no root directory".into()))?;
        let (tell, changes) = mpsc::channel(CHANGES_MAX);
        let client = Arc::new(Self {
            doors,
            door: AtomicUsize::new(door),
            session: AtomicU64::new(opened.session),
            beginning: tokio::sync::Mutex::default(),
            root,
            cache: Duration::from_millis(opened.cache_ms.into()),
            keeps_versions: AtomicBool::new(opened.keeps_versions),
            requests: AtomicU64::new(1),
            open: Mutex::default(),
            numbers: Mutex::new(Numbers::of(opened.session, opened.inodes)),
            is_number_wanted: Notify::new(),
            alone_for: Duration::from_millis(opened.directory_lease_ms.into()).mul_f64(ALONE_SHARE),
            alone_until: Mutex::new(None),
            locks: Mutex::default(),
            lost: Mutex::default(),
            kept: Mutex::new(None),
            heard_at: Mutex::new(None),
            seen: AtomicU64::new(opened.sequence),
            changes: tokio::sync::Mutex::new(changes),
            tasks: Mutex::default(),
            target,
        });
        let every = Duration::from_millis(opened.lease_ms.into()) / 3;
        let renew = tokio::spawn(client.clone().renew(every.max(RETRY_MIN)));
        let watch = tokio::spawn(client.clone().watch(tell));
        lock(&client.tasks).extend([renew, watch]);
        Ok(client)
    }

    /// Ends the sessions that dead mounts of this bucket left here, and writes down this one's.
    async fn register(&self) {
        let Some(folder) = &self.target.register else { return };
        let record = Record {
            bucket: self.bucket(),
            endpoints: self.target.endpoints.clone(),
            session: self.session(),
        };
        for left in register::left(folder, &record) {
            match self.end_session(left.record.session).await {
                Ok(()) => _ = left.end(), // One that stays is ended again by the next mount, which changes nothing.
                Err(errno) => {
                    tracing::warn!(%errno, "the locks of a dead mount stand until its lease is over")
                }
            }
        }
        match Kept::begin(folder, record) {
            Ok(kept) => *lock(&self.kept) = Some(kept),
            Err(error) => {
                let folder = folder.display();
                tracing::warn!(%error, %folder, "if this mount dies, its locks will stand until its lease is over");
            }
        }
    }

    async fn end_session(&self, session: u64) -> Result<()> {
        let request = wire::CloseSessionRequest { bucket: self.bucket(), session };
        self.ask(async |mut stub: Stub| stub.close_session(request.clone()).await).await.map(drop)
    }

    fn session(&self) -> u64 {
        self.session.load(Ordering::Acquire)
    }

    /// The door that is asked, and its place.
    fn door(&self) -> (usize, Stub) {
        let at = self.door.load(Ordering::Acquire) % self.doors.len();
        (at, self.doors[at].clone())
    }

    /// Asks another door from now on, unless someone has decided so before.
    fn leave_door(&self, at: usize) {
        let next = (at + 1) % self.doors.len();
        let _ = self.door.compare_exchange(at, next, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Begins another session in place of one that has ended.
    async fn begin_anew(&self, ended: u64) -> Result<()> {
        let _one = self.beginning.lock().await;
        if self.session() != ended {
            return Ok(());
        }
        let request = open_request(&self.target);
        let opened = self.ask(async |mut stub: Stub| stub.open_session(request.clone()).await).await?;
        if opened.root.and_then(attr).is_none_or(|root| root.ino != self.root.ino) {
            tracing::error!(bucket = self.target.bucket, "the bucket is another by now: mount it anew");
            return Err(Errno::STALE);
        }
        *lock(&self.heard_at) = None;
        *lock(&self.alone_until) = None;
        *lock(&self.numbers) = Numbers::of(opened.session, opened.inodes);
        self.keeps_versions.store(opened.keeps_versions, Ordering::Release);
        self.seen.store(opened.sequence, Ordering::Release);
        if let Some(kept) = lock(&self.kept).as_mut()
            && let Err(error) = kept.change(opened.session)
        {
            tracing::warn!(%error, "if this mount dies, its locks will stand until its lease is over");
        }
        tracing::warn!("the mount's session had ended, as the pool was out of reach; a new one has begun");
        // Nothing is done in it before it is known which locks are lost.
        self.lock_again(opened.session).await;
        self.session.store(opened.session, Ordering::Release);
        Ok(())
    }

    /// Takes the locks of the session before.
    async fn lock_again(&self, session: u64) {
        let locks = std::mem::take(&mut *lock(&self.locks));
        for ((ino, owner), steps) in locks {
            let mut kept = Vec::with_capacity(steps.len());
            for (file, step) in steps {
                if self.take_again(session, &file, step).await {
                    kept.push((file, step));
                } else {
                    tracing::error!(
                        inode = ino.0,
                        owner,
                        "a lock is lost: another took it meanwhile; the file is an I/O error until it is closed"
                    );
                    lock(&self.lost).insert(ino);
                }
            }
            let mut locks = lock(&self.locks);
            let since = locks.entry((ino, owner)).or_default();
            kept.append(since);
            *since = kept;
        }
    }

    async fn take_again(&self, session: u64, file: &FileRef, step: Lock) -> bool {
        if self.is_index_of_another(session, file, step).await != Ok(false) {
            return false;
        }
        let operations = [wire_operation(Operation::Lock { file: file.clone(), lock: step })];
        let told = self.apply_in(session, &operations, &AtomicBool::new(false), false).await;
        matches!(told.as_deref(), Ok([Ok(_)]))
    }

    /// Whether a lock is to say that an index is in use here which is in use on another mount: the memory that programs share
    /// there is not what has reached the pool of it.
    async fn is_index_of_another(&self, session: u64, file: &FileRef, wanted: Lock) -> Result<bool> {
        if wanted.kind != LockKind::Read || !is_index_in_use(file, &wanted) {
            return Ok(false);
        }
        let held = self.conflict(session, file, Lock { kind: LockKind::Write, ..wanted }).await?;
        Ok(held.is_some_and(|(_, is_own)| !is_own))
    }

    /// A lock that stands in the way of another, and whether it is of the same session.
    async fn conflict(&self, session: u64, file: &FileRef, wanted: Lock) -> Result<Option<(Lock, bool)>> {
        let request = wire::GetLockRequest {
            bucket: self.bucket(),
            session,
            file: wire_file(file),
            lock: Some(wire_lock(wanted)),
        };
        let reply = self.ask(async |mut stub: Stub| stub.get_lock(request.clone()).await).await?;
        Ok(reply.held.map(|held| {
            let is_read = held.r#type == i32::from(wire::LockType::Read);
            let kind = if is_read { LockKind::Read } else { LockKind::Write };
            let lock = Lock { kind, start: held.start, end: held.end, owner: held.owner, pid: held.pid };
            (lock, reply.is_own_session)
        }))
    }

    fn keep_lock(&self, file: FileRef, step: Lock) {
        let key = (file.ino, step.owner);
        let mut locks = lock(&self.locks);
        let is_all = step.start == 0 && step.end >= i64::MAX as u64;
        if is_all {
            locks.remove(&key); // What stood there before is overridden.
        }
        if step.kind != LockKind::Unlock || (!is_all && locks.contains_key(&key)) {
            locks.entry(key).or_default().push((file, step));
        }
    }

    /// Renews the session as long as this process lives.
    async fn renew(self: Arc<Self>, every: Duration) {
        let mut beat = tokio::time::interval(every);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                () = self.is_number_wanted.notified() => {}
            }
            // All that is open: which of them have lost their names, the gateway knows.
            let held = lock(&self.open).iter().map(|ino| ino.0).take(HELD_MAX).collect();
            let session = self.session();
            let request = wire::RenewSessionRequest {
                bucket: self.target.bucket.clone(),
                session,
                seen_sequence: self.seen.load(Ordering::Acquire),
                held,
                inodes_wanted: if lock(&self.numbers).are_few() { NUMBERS_WANTED } else { 0 },
            };
            let renewed = self.ask(async |mut stub: Stub| stub.renew_session(request.clone()).await).await;
            match renewed {
                Ok(renewed) => {
                    self.keeps_versions.store(renewed.keeps_versions, Ordering::Release);
                    lock(&self.numbers).take(session, renewed.inodes);
                }
                Err(Errno::STALE) => _ = self.begin_anew(session).await,
                Err(errno) => tracing::warn!(%errno, "the mount's session is not renewed; trying again"),
            }
        }
    }

    async fn watch(self: Arc<Self>, tell: mpsc::Sender<Change>) {
        loop {
            let session = self.session();
            let request = wire::WatchRequest {
                bucket: self.target.bucket.clone(),
                session,
                after_sequence: self.seen.load(Ordering::Acquire),
            };
            let (at, mut door) = self.door();
            let mut why = None;
            match door.watch(request).await {
                Ok(stream) => {
                    let mut stream = stream.into_inner();
                    loop {
                        let reply = match tokio::time::timeout(SILENCE_MAX, stream.message()).await {
                            Ok(Ok(Some(reply))) => reply,
                            Ok(Ok(None)) | Err(_) => break,
                            Ok(Err(status)) => {
                                why = Some(status);
                                break;
                            }
                        };
                        for change in reply.events.into_iter().filter_map(Self::change) {
                            if tell.send(change).await.is_err() {
                                return;
                            }
                        }
                        if self.session() != session {
                            break;
                        }
                        self.seen.store(reply.sequence, Ordering::Release);
                        *lock(&self.heard_at) = Some(timer());
                    }
                }
                Err(status) => why = Some(status),
            }
            *lock(&self.heard_at) = None;
            let has_ended =
                why.is_some_and(|status| !is_passing(&status) && errno_of(&status) == Errno::STALE);
            if has_ended {
                let _ = self.begin_anew(session).await;
            } else {
                self.leave_door(at);
            }
            if tell.send(Change::All).await.is_err() {
                return;
            }
            tokio::time::sleep(if has_ended { RETRY_MIN } else { WATCH_AGAIN_AFTER }).await;
        }
    }

    fn change(event: wire::Event) -> Option<Change> {
        Some(match event.what? {
            wire::event::What::Inode(ino) | wire::event::What::Orphaned(ino) => Change::Node(Ino(ino)),
            wire::event::What::Entry(entry) => {
                Change::Name(Place { parent: Ino(entry.parent), name: entry.name })
            }
            wire::event::What::Unlocked(ino) => Change::Unlocked(Ino(ino)),
            wire::event::What::All(_) => Change::All,
            wire::event::What::Recalled(ino) => Change::Recalled(Ino(ino)),
        })
    }

    /// Asks until there is an answer or the time is over.
    async fn ask<A, F>(&self, call: impl Fn(Stub) -> F) -> Result<A>
    where
        F: Future<Output = std::result::Result<tonic::Response<A>, Status>>,
    {
        self.ask_noting(call, &AtomicBool::new(false)).await
    }

    /// As [`ask`](Self::ask); `is_doubtful` is set once a call may have been carried out without an answer.
    async fn ask_noting<A, F>(&self, call: impl Fn(Stub) -> F, is_doubtful: &AtomicBool) -> Result<A>
    where
        F: Future<Output = std::result::Result<tonic::Response<A>, Status>>,
    {
        let asking = async {
            let mut pause = RETRY_MIN;
            loop {
                let (at, door) = self.door();
                match call(door).await {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) if is_passing(&status) => {
                        if status.code() != Code::ResourceExhausted {
                            is_doubtful.store(true, Ordering::Release);
                            self.leave_door(at);
                        }
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(RETRY_MAX);
                    }
                    Err(status) => return Err(errno_of(&status)),
                }
            }
        };
        match tokio::time::timeout(self.target.timeout, asking).await {
            Ok(answer) => answer,
            Err(_) => {
                tracing::warn!(endpoints = ?self.target.endpoints, "no gateway answers in time");
                Err(Errno::IO)
            }
        }
    }

    async fn apply_in(
        &self,
        session: u64,
        operations: &[wire::Operation],
        is_doubtful: &AtomicBool,
        brief: bool,
    ) -> Result<Vec<Result<Done>>> {
        let asked_at = timer();
        let request = wire::ApplyRequest {
            bucket: self.bucket(),
            session,
            request_id: self.requests.fetch_add(1, Ordering::Relaxed),
            operations: operations.to_vec(),
            brief,
        };
        let call = async |mut stub: Stub| stub.apply(request.clone()).await;
        let reply = self.ask_noting(call, is_doubtful).await?;
        if reply.results.len() != operations.len() {
            return Err(Errno::IO);
        }
        if self.session() == session {
            let mut alone_until = lock(&self.alone_until);
            *alone_until = (*alone_until).max(Some(asked_at + self.alone_for));
        }
        Ok(reply.results.into_iter().map(done).collect())
    }

    /// Changes in one session, or in the next where doing them twice is the same as once.
    async fn carry_out(&self, operations: Vec<Operation>, is_brief: bool) -> Result<Vec<Result<Done>>> {
        let locks: Vec<_> = operations
            .iter()
            .enumerate()
            .filter_map(|(at, operation)| match operation {
                Operation::Lock { file, lock } => Some((at, file.clone(), *lock)),
                _ => None,
            })
            .collect();
        let is_repeatable = operations.iter().all(is_repeatable);
        let is_of_session = operations.iter().any(is_of_session);
        let known: Vec<Ino> = operations.iter().filter_map(known_before).collect();
        let operations: Vec<_> = operations.into_iter().map(wire_operation).collect();
        let is_doubtful = AtomicBool::new(false);
        for _ in 0..SESSIONS_TRIED_MAX {
            let session = self.session();
            if known.iter().any(|ino| lock(&self.lost).contains(ino)) {
                return Err(Errno::IO);
            }
            match self.apply_in(session, &operations, &is_doubtful, is_brief).await {
                Err(Errno::STALE) => {
                    self.begin_anew(session).await?;
                    if is_of_session || (is_doubtful.load(Ordering::Acquire) && !is_repeatable) {
                        tracing::error!("whether a change was made before the session ended is not known");
                        return Err(Errno::IO);
                    }
                }
                Err(errno) => return Err(errno),
                Ok(results) => {
                    for (at, file, lock) in locks {
                        if results[at].is_ok() {
                            self.keep_lock(file, lock);
                        }
                    }
                    return Ok(results);
                }
            }
        }
        Err(Errno::IO)
    }

    fn bucket(&self) -> String {
        self.target.bucket.clone()
    }

    async fn read_once(
        mut stub: Stub,
        request: wire::ReadRequest,
    ) -> std::result::Result<tonic::Response<(Option<Attr>, Bytes)>, Status> {
        let (length, mut found, mut data) = (request.length, None, BytesMut::new());
        let mut stream = stub.read(request).await?.into_inner();
        while let Some(reply) = stream.message().await? {
            found = found.or_else(|| reply.attributes.and_then(attr));
            if (data.len() + reply.data.len()) as u64 > length {
                return Err(Status::data_loss("more bytes than were asked for"));
            }
            data.extend_from_slice(&reply.data);
        }
        Ok(tonic::Response::new((found, data.freeze())))
    }
}

fn open_request(target: &Target) -> wire::OpenSessionRequest {
    wire::OpenSessionRequest {
        bucket: target.bucket.clone(),
        prefix: target.prefix.clone(),
        client: target.client.clone(),
    }
}

fn refused(target: &Target, why: String) -> ConnectError {
    ConnectError::Refused { endpoint: target.endpoints.join(", "), bucket: target.bucket.clone(), why }
}

fn endpoint(target: &Target, address: &str) -> std::result::Result<Endpoint, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(address.to_owned())?
        .connect_timeout(target.timeout.min(CONNECT_TIME_MAX))
        .http2_keep_alive_interval(SIGN_OF_LIFE_EVERY)
        .keep_alive_timeout(SIGN_OF_LIFE_WITHIN)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .http2_adaptive_window(true);
    match address.starts_with("https://") {
        true => {
            let authorities = Certificate::from_pem(&target.authorities);
            endpoint.tls_config(ClientTlsConfig::new().ca_certificate(authorities))
        }
        false => Ok(endpoint),
    }
}

/// The file of an operation that a program may have decided on by what it knew of the file under a lock.
fn known_before(operation: &Operation) -> Option<Ino> {
    match operation {
        Operation::Edit { file, .. } => Some(file.ino),
        Operation::SetAttributes { file, change } => change.size.map(|_| file.ino),
        Operation::Lock { file, lock } => (lock.kind != LockKind::Unlock).then_some(file.ino),
        _ => None,
    }
}

/// Whether a lock says that an index of SQLite's is in use.
fn is_index_in_use(file: &FileRef, lock: &Lock) -> bool {
    let is_index = file.place.as_ref().is_some_and(|place| place.name.ends_with(INDEX_SUFFIX));
    is_index && (lock.start, lock.end) == (INDEX_IN_USE_AT, INDEX_IN_USE_AT)
}

/// Whether what was done twice is as if it was done once.
fn is_repeatable(operation: &Operation) -> bool {
    match operation {
        Operation::Edit { edits, .. } => {
            !edits.iter().any(|edit| matches!(edit, Edit::Append(_) | Edit::Replace { .. }))
        }
        Operation::SetAttributes { .. } | Operation::Lock { .. } => true,
        Operation::SetXattr { mode, .. } => *mode == XattrMode::Either,
        Operation::Make { .. }
        | Operation::Link { .. }
        | Operation::Unlink { .. }
        | Operation::RemoveDirectory { .. }
        | Operation::Rename { .. }
        | Operation::Lease { .. } => false,
    }
}

/// Whether it means nothing in another session than the one it was made in.
fn is_of_session(operation: &Operation) -> bool {
    match operation {
        Operation::Make { birth, .. } => birth.ino.is_some(),
        Operation::Lease { .. } => true,
        _ => false,
    }
}

/// Whether the same call may succeed later.
fn is_passing(status: &Status) -> bool {
    // No gateway said so: the connection broke.
    if std::error::Error::source(status).is_some() {
        return true;
    }
    let busy = status.metadata().get("makai-errno").is_some_and(|name| name == "EBUSY");
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => true,
        Code::ResourceExhausted => busy || status.metadata().get("makai-errno").is_none(),
        _ => false,
    }
}

#[async_trait::async_trait]
impl FileService for FileClient {
    async fn root(&self) -> Result<Attr> {
        Ok(self.root)
    }

    async fn lookup(&self, place: &Place) -> Result<Attr> {
        let request = wire::LookupRequest {
            bucket: self.bucket(),
            parent: place.parent.0,
            names: vec![place.name.clone()],
            session: self.session(),
        };
        let reply = self.ask(async |mut stub: Stub| stub.lookup(request.clone()).await).await?;
        match (reply.found.into_iter().next(), reply.error) {
            (Some(found), _) => attr(found).ok_or(Errno::IO),
            (None, Some(error)) => Err(refusal(&error)),
            (None, None) => Err(Errno::IO),
        }
    }

    async fn attributes(&self, file: &FileRef) -> Result<Attr> {
        let files = wire_file(file).into_iter().collect();
        let request = wire::GetAttributesRequest { bucket: self.bucket(), files };
        let reply = self.ask(async |mut stub: Stub| stub.get_attributes(request.clone()).await).await?;
        match reply.answers.into_iter().next().and_then(|answer| answer.answer) {
            Some(wire::attributes_or_error::Answer::Attributes(found)) => attr(found).ok_or(Errno::IO),
            Some(wire::attributes_or_error::Answer::Error(error)) => Err(refusal(&error)),
            None => Err(Errno::IO),
        }
    }

    async fn list(&self, directory: Ino, cursor: Bytes) -> Result<Page> {
        let request = wire::ReadDirectoryRequest {
            bucket: self.bucket(),
            directory: directory.0,
            cursor,
            entries_max: ENTRIES_MAX,
            session: self.session(),
        };
        let reply = self.ask(async |mut stub: Stub| stub.read_directory(request.clone()).await).await?;
        let entries = reply.entries.into_iter().map(|entry| {
            let attr = entry.attributes.and_then(attr).ok_or(Errno::IO)?;
            // What came with it is not kept for the name's sake.
            Ok(Entry { name: Bytes::copy_from_slice(&entry.name), attr, cursor: entry.cursor })
        });
        Ok(Page {
            entries: entries.collect::<Result<_>>()?,
            is_end: reply.is_end,
            parent: Some(Ino(reply.parent)),
        })
    }

    async fn read_link(&self, file: &FileRef) -> Result<Bytes> {
        let request = wire::ReadLinkRequest { bucket: self.bucket(), file: wire_file(file) };
        Ok(self.ask(async |mut stub: Stub| stub.read_link(request.clone()).await).await?.target)
    }

    async fn xattrs(&self, file: &FileRef) -> Result<Vec<(Bytes, Bytes)>> {
        let request = wire::GetXattrsRequest { bucket: self.bucket(), file: wire_file(file) };
        let reply = self.ask(async |mut stub: Stub| stub.get_xattrs(request.clone()).await).await?;
        Ok(reply.xattrs.into_iter().map(|xattr| (xattr.name, xattr.value)).collect())
    }

    async fn read(&self, file: &FileRef, offset: u64, length: u64) -> Result<Read> {
        if lock(&self.lost).contains(&file.ino) {
            return Err(Errno::IO);
        }
        let request = wire::ReadRequest {
            bucket: self.bucket(),
            file: wire_file(file),
            offset,
            length,
            if_data_version: None,
        };
        let (attr, data) = self.ask(|stub| Self::read_once(stub, request.clone())).await?;
        Ok(Read { data, attr: attr.ok_or(Errno::IO)? })
    }

    async fn seek(&self, file: &FileRef, offset: u64, to: SeekTo) -> Result<u64> {
        let size = self.attributes(file).await?.size;
        let mut at = offset;
        while at < size {
            let request =
                wire::GetSegmentsRequest { bucket: self.bucket(), file: wire_file(file), offset: at };
            let reply = self.ask(async |mut stub: Stub| stub.get_segments(request.clone()).await).await?;
            let wanted = reply.segments.iter().find(|segment| segment.is_hole == (to == SeekTo::Hole));
            if let Some(found) = wanted {
                return Ok(found.offset.max(offset));
            }
            let end = reply.segments.last().map_or(at, |last| last.offset.saturating_add(last.length));
            if !reply.is_truncated || end <= at {
                break;
            }
            at = end;
        }
        // Behind the last byte there is a hole, and no data.
        if offset < size && to == SeekTo::Hole { Ok(size) } else { Err(Errno::NXIO) }
    }

    async fn space(&self) -> Result<Space> {
        let request = wire::StatFsRequest { bucket: self.bucket() };
        let reply = self.ask(async |mut stub: Stub| stub.stat_fs(request.clone()).await).await?;
        Ok(Space { bytes_total: reply.total_bytes, bytes_used: reply.used_bytes, files: reply.files })
    }

    async fn lock_conflict(&self, file: &FileRef, lock: Lock) -> Result<Option<Lock>> {
        let held = self.conflict(self.session(), file, lock).await?;
        Ok(held.map(|(held, is_own)| match !is_own && is_index_in_use(file, &lock) {
            true => Lock { kind: LockKind::Write, ..held },
            false => held,
        }))
    }

    async fn store(&self, data: Bytes) -> Result<Payload> {
        let length = data.len() as u64;
        let reply = self
            .ask(async |mut stub: Stub| {
                let bucket = self.bucket();
                let chunks = (0..data.len()).step_by(CHUNK_BYTES).map(|at| wire::StoreRequest {
                    bucket: if at == 0 { bucket.clone() } else { String::new() },
                    length: (at == 0).then_some(length),
                    data: data.slice(at..data.len().min(at + CHUNK_BYTES)),
                });
                let chunks: Vec<_> = chunks.collect();
                stub.store(tokio_stream::iter(chunks)).await
            })
            .await?;
        if reply.length != length {
            return Err(Errno::IO);
        }
        Ok(Payload::Stored { token: reply.token, length })
    }

    async fn apply(&self, operations: Vec<Operation>) -> Result<Vec<Result<Done>>> {
        if let [Operation::Lock { file, lock }] = &operations[..]
            && self.is_index_of_another(self.session(), file, *lock).await?
        {
            return Ok(vec![Err(Errno::AGAIN)]);
        }
        self.carry_out(operations, false).await
    }

    async fn tell(&self, operations: Vec<Operation>) -> Result<Vec<Result<Done>>> {
        self.carry_out(operations, true).await
    }

    fn number(&self) -> Option<Ino> {
        let mut numbers = lock(&self.numbers);
        let number = numbers.next();
        if numbers.are_few() {
            self.is_number_wanted.notify_one();
        }
        number.map(Ino)
    }

    fn alone_for(&self) -> Duration {
        let until = *lock(&self.alone_until);
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(timer()))
    }

    fn keeps_versions(&self) -> bool {
        self.keeps_versions.load(Ordering::Acquire)
    }

    async fn past(&self, path: &[Bytes], cursor: Bytes) -> Result<PastPage> {
        self.past_page(path, cursor).await
    }

    async fn past_entry(&self, path: &[Bytes], name: &Bytes) -> Result<PastEntry> {
        self.past_named(path, name).await
    }

    async fn read_past(&self, key: &str, id: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.past_bytes(key, id, offset, length).await
    }

    fn hold(&self, ino: Ino) {
        lock(&self.open).insert(ino);
    }

    fn release(&self, ino: Ino) {
        lock(&self.open).remove(&ino);
        lock(&self.lost).remove(&ino);
    }

    async fn changes(&self) -> Vec<Change> {
        let mut changes = self.changes.lock().await;
        let mut taken = Vec::new();
        changes.recv_many(&mut taken, CHANGES_MAX).await;
        taken
    }

    fn cache_for(&self) -> Duration {
        let heard_at = *lock(&self.heard_at);
        let is_live = heard_at.is_some_and(|heard| timer().duration_since(heard) < SILENCE_MAX);
        if is_live { self.cache } else { Duration::ZERO }
    }

    async fn close(&self) {
        lock(&self.tasks).drain(..).for_each(|task| task.abort());
        match (self.end_session(self.session()).await, lock(&self.kept).take()) {
            (Ok(()), Some(kept)) => _ = kept.end(),
            (Ok(()), None) => {}
            (Err(errno), _) => {
                tracing::warn!(%errno, "the mount's session ends by itself when its lease is over");
            }
        }
    }
}
