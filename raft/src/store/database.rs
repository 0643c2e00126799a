//! What is applied, views of it, and what makes it durable.
//!
//! ```text
//! entries ─ machine ─> delta, in memory ─ fold: one transaction for many batches ─> database
//! view    ─> delta over database, as of one moment
//! ```
//!
//! Always: a fold brings the facts of one position, and that position, in one transaction; a view that was taken between a
//! fold's commit and the moment when the delta forgets what was folded sees the same facts from both.

use std::fmt;
use std::io;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, Table, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::backend::Backend;
use super::delta::{Delta, Layer, Merged, Visit};
use super::snapshot;
use crate::facts::Timestamp;
use crate::facts::command::Batch;
use crate::facts::command::Refusal;
use crate::facts::query::{Answer, Query};
use crate::log::disk::Disk;
use crate::log::types::{Entry, LogId, Replies, SnapshotMeta, StoredMembership};
use crate::machine;
use crate::machine::kv::{Edit, KvError, View};

pub(super) const FACTS: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("facts");
/// Key `position`: a [`Position`] in MessagePack. Key `format`: [`FORMAT`].
const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");
/// Grows when the layout of the two tables changes.
const FORMAT: &[u8] = b"MKMETA 1";
pub(super) const DATABASE_FILE: &str = "state.redb";
/// A snapshot on its way to being in force.
const NEW_DATABASE_FILE: &str = "state-new.redb";
/// A snapshot is installed in transactions of about this much.
const INSTALL_TRANSACTION_BYTES: usize = 16 << 20;
/// Changes in memory from which on they are folded into the database, while others are applied.
const FOLD_BYTES: usize = 4 << 20;
/// Changes in memory at which applying waits for the database.
const DELTA_BYTES_MAX: usize = 4 * FOLD_BYTES;

#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub dir: PathBuf,
    /// A snapshot of another cluster is refused.
    pub cluster_id: String,
    /// Memory for pages.
    pub cache_bytes: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "metadata store {path:?}: {why}; if it does not open again, move this voter's directory away and let \
             it rejoin under a new number"
    )]
    Database { path: PathBuf, why: String },
    #[error("metadata store {path:?}")]
    Io { path: PathBuf, source: io::Error },
    /// Nothing has changed.
    #[error("snapshot refused: {0}")]
    BadSnapshot(String),
}

/// How far the facts reflect the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
    /// Of the last batch.
    pub stamp: Timestamp,
}

/// The facts of one voter. Clones share them. All methods but those that only look at memory block on the disk.
#[derive(Clone)]
pub struct MetaStore(Arc<Shared>);

struct Shared {
    disk: Arc<dyn Disk>,
    config: StoreConfig,
    /// `None` once closed.
    current: RwLock<Option<Current>>,
    /// Index after the last applied entry.
    applied: watch::Sender<u64>,
    /// Changes whenever mounts have something to be told.
    told: watch::Sender<u64>,
    /// Held by whoever applies or installs.
    writing: Mutex<()>,
    /// Held by whoever changes the database. Taken after `writing` where both are.
    folding: Mutex<()>,
    /// Whether a thread folds, or is about to.
    is_folding: AtomicBool,
    /// Why the database takes no more.
    failed: OnceLock<String>,
}

/// The facts as they are.
pub(super) struct Current {
    pub(super) database: Arc<Database>,
    base: Arc<Base>,
    /// Over `base`.
    delta: Arc<Delta>,
    /// Of both together.
    position: Arc<Position>,
}

/// A view of the database alone.
struct Base {
    facts: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl Base {
    /// Of the last commit, and the position that it reflects.
    fn of(database: &Database) -> Result<(Self, Position), KvError> {
        let transaction = database.begin_read().map_err(kv)?;
        let facts = transaction.open_table(FACTS).map_err(kv)?;
        let position = read_position(&transaction.open_table(META).map_err(kv)?)?;
        Ok((Self { facts }, position))
    }
}

impl Current {
    fn begin(database: Database) -> Result<Self, KvError> {
        let (base, position) = Base::of(&database)?;
        Ok(Self {
            database: Arc::new(database),
            base: Arc::new(base),
            delta: Arc::default(),
            position: Arc::new(position),
        })
    }

    fn frozen(&self) -> Frozen {
        Frozen { base: self.base.clone(), delta: self.delta.clone(), position: self.position.clone() }
    }
}

impl fmt::Debug for MetaStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MetaStore({:?})", self.0.config.dir)
    }
}

fn kv(error: impl fmt::Display) -> KvError {
    KvError(error.to_string())
}

impl MetaStore {
    /// Opens the facts in `config.dir` as of their last durable commit, or begins with none.
    ///
    /// # Errors
    /// The files cannot be read or written, or are of a later release.
    pub fn open(disk: Arc<dyn Disk>, config: StoreConfig) -> Result<Self, StoreError> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| StoreError::Io { path, source }
        };
        disk.create_dir_all(&config.dir).map_err(io(&config.dir))?;
        for name in disk.list(&config.dir).map_err(io(&config.dir))? {
            if name == NEW_DATABASE_FILE || name.starts_with(snapshot::INCOMING_PREFIX) {
                let path = config.dir.join(name);
                disk.remove(&path).map_err(io(&path))?;
            }
        }
        let path = config.dir.join(DATABASE_FILE);
        let database = open_database(&*disk, &path, config.cache_bytes)?;
        disk.sync_dir(&config.dir).map_err(io(&config.dir))?;
        let current =
            Current::begin(database).map_err(|error| StoreError::Database { path, why: error.0 })?;
        let next = next_index(&current.position);
        Ok(Self(Arc::new(Shared {
            disk,
            config,
            current: RwLock::new(Some(current)),
            applied: watch::Sender::new(next),
            told: watch::Sender::new(0),
            writing: Mutex::new(()),
            folding: Mutex::new(()),
            is_folding: AtomicBool::new(false),
            failed: OnceLock::new(),
        })))
    }

    /// Reads or changes the facts as they are.
    pub(super) fn with_current<T>(&self, work: impl FnOnce(&mut Current) -> T) -> Result<T, KvError> {
        let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
        current.as_mut().map(work).ok_or_else(closed)
    }

    /// Changes whenever entries have been applied: the index after the last one.
    #[must_use]
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.0.applied.subscribe()
    }

    /// Changes whenever mounts may have something to be told.
    #[must_use]
    pub fn watch_told(&self) -> watch::Receiver<u64> {
        self.0.told.subscribe()
    }

    /// One consistent view of all that is applied, however long it is held.
    ///
    /// # Errors
    /// The store failed or is closed.
    pub fn frozen(&self) -> Result<Frozen, KvError> {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(Current::frozen).ok_or_else(closed)
    }

    /// # Errors
    /// The store failed or is closed.
    pub fn query(&self, query: &Query) -> Result<Result<Answer, Refusal>, KvError> {
        machine::query(&self.frozen()?, query)
    }

    /// As [`MetaStore::query`], with the index after the last entry that the answer knows of.
    ///
    /// # Errors
    /// The store failed or is closed.
    pub fn query_as_of(&self, query: &Query) -> Result<(Result<Answer, Refusal>, u64), KvError> {
        let view = self.frozen()?;
        Ok((machine::query(&view, query)?, next_index(&view.position)))
    }

    /// Applies consecutive entries, all or none, seen by views on return but not yet durable.
    ///
    /// # Errors
    /// The store failed or is closed; nothing has changed.
    pub fn apply(&self, entries: &[Entry]) -> Result<Vec<Replies>, KvError> {
        let _writing = self.writing();
        if let Some(why) = self.0.failed.get() {
            return Err(KvError(why.clone()));
        }
        let view = self.frozen()?;
        let mut position = Position::clone(&view.position);
        let mut facts = FactsEdit { view, fresh: Layer::new() };
        let mut out = Vec::with_capacity(entries.len());
        for entry in entries {
            out.push(apply_one(&mut facts, &mut position, entry)?);
        }
        // The view goes first, so that its layers can be merged where they are.
        let fresh = facts.fresh;
        drop(facts.view);
        let has_told = machine::tells_mounts(|range| fresh.range::<[u8], _>(range).next().is_some());
        let next = next_index(&position);
        let bytes = self.with_current(|current| {
            let delta = Arc::make_mut(&mut current.delta);
            delta.push(fresh);
            current.position = Arc::new(position);
            delta.bytes()
        })?;
        self.0.applied.send_replace(next);
        if has_told {
            self.0.told.send_modify(|count| *count += 1);
        }
        if bytes >= DELTA_BYTES_MAX {
            self.fold(Durability::None)?;
        } else if bytes >= FOLD_BYTES {
            self.fold_aside();
        }
        Ok(out)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.0.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Folds on a thread of its own, if none does. A failure is told by the next apply.
    fn fold_aside(&self) {
        if self.0.is_folding.swap(true, Ordering::AcqRel) {
            return;
        }
        let store = self.clone();
        let thread = std::thread::Builder::new().name("facts-fold".into()).spawn(move || {
            // Of a store that was closed meanwhile there is nothing to fold.
            drop(store.fold(Durability::None));
            store.0.is_folding.store(false, Ordering::Release);
        });
        if thread.is_err() {
            // Applying folds once there is too much.
            self.0.is_folding.store(false, Ordering::Release);
        }
    }

    /// Brings the database to the position that is applied now; returns the view of exactly that. Applying goes on.
    fn fold(&self, durability: Durability) -> Result<Frozen, KvError> {
        let _folding = self.0.folding.lock().unwrap_or_else(PoisonError::into_inner);
        let folded = self.fold_locked(durability);
        if let Err(error) = &folded
            && self.frozen().is_ok()
        {
            // What the database holds then, nobody knows: a restart reads it anew.
            drop(self.0.failed.set(error.0.clone()));
        }
        folded
    }

    fn fold_locked(&self, durability: Durability) -> Result<Frozen, KvError> {
        if let Some(why) = self.0.failed.get() {
            return Err(KvError(why.clone()));
        }
        let (database, delta, position) = self.with_current(|current| {
            let delta = Arc::make_mut(&mut current.delta).begin_fold();
            (current.database.clone(), delta, current.position.clone())
        })?;
        let mut transaction = database.begin_write().map_err(kv)?;
        transaction.set_durability(durability).map_err(kv)?;
        // Without it a crash makes the next start walk the whole file.
        transaction.set_quick_repair(matches!(durability, Durability::Immediate));
        {
            let mut facts = transaction.open_table(FACTS).map_err(kv)?;
            for (key, change) in Merged::new(delta.layers(), Bound::Unbounded, Bound::Unbounded) {
                match change {
                    Some(value) => drop(facts.insert(key, &**value).map_err(kv)?),
                    None => drop(facts.remove(key).map_err(kv)?),
                }
            }
            write_position(&mut transaction.open_table(META).map_err(kv)?, &position)?;
        }
        transaction.commit().map_err(kv)?;
        let base = Arc::new(Base::of(&database)?.0);
        drop(delta);
        self.with_current(|current| {
            current.base = base.clone();
            Arc::make_mut(&mut current.delta).end_fold();
        })?;
        Ok(Frozen { base, delta: Arc::default(), position })
    }

    /// Makes all that is applied durable, and returns the view of exactly that.
    ///
    /// # Errors
    /// The store failed or is closed.
    pub fn commit_durably(&self) -> Result<Frozen, KvError> {
        self.fold(Durability::Immediate)
    }

    /// Puts facts from elsewhere in force, durably.
    ///
    /// # Errors
    /// [`StoreError::BadSnapshot`], or the disk fails; nothing has changed then.
    pub(super) fn install(
        &self,
        meta: &SnapshotMeta,
        source: &super::SnapshotData,
    ) -> Result<(), StoreError> {
        let path = self.0.config.dir.join(NEW_DATABASE_FILE);
        let failed = |why: String| StoreError::Database { path: path.clone(), why };
        let io = |source| StoreError::Io { path: path.clone(), source };
        self.0.disk.open(&path).and_then(|file| file.set_len(0)).map_err(io)?;
        let database = open_database(&*self.0.disk, &path, self.0.config.cache_bytes)?;
        let mut filling = Filling { database: &database, pairs: Vec::new(), bytes: 0 };
        let stamp = match source {
            super::SnapshotData::Frozen(view) => {
                let mut failure = Ok(());
                view.for_each_pair(&mut |key, value| match filling.push(key, value) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        failure = Err(error);
                        ControlFlow::Break(())
                    }
                })
                .and(failure)
                .and_then(|()| view.position())
                .map_err(|error| failed(error.0))?
                .stamp
            }
            super::SnapshotData::Received(file) => {
                let head =
                    snapshot::read(&**file, |key, value| filling.push(key, value).map_err(|error| error.0))
                        .map_err(StoreError::BadSnapshot)?;
                head.check(&self.0.config.cluster_id, meta).map_err(StoreError::BadSnapshot)?;
                head.stamp
            }
        };
        let position =
            Position { applied: meta.last_log_id, membership: meta.last_membership.clone(), stamp };
        filling.finish(&position).map_err(|error| failed(error.0))?;
        drop(database);

        let _writing = self.writing();
        let _folding = self.0.folding.lock().unwrap_or_else(PoisonError::into_inner);
        let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
        let in_force = self.0.config.dir.join(DATABASE_FILE);
        self.0.disk.rename(&path, &in_force).map_err(io)?;
        self.0.disk.sync_dir(&self.0.config.dir).map_err(io)?;
        // Views of the replaced facts keep its file until they are dropped.
        let installed = open_database(&*self.0.disk, &in_force, self.0.config.cache_bytes)?;
        *current = Some(Current::begin(installed).map_err(|error| failed(error.0))?);
        drop(current);
        self.0.applied.send_replace(next_index(&position));
        self.0.told.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Puts the facts of a file in force, with some records changed, as of a position of another history.
    ///
    /// # Errors
    /// As [`install`](Self::install); the store is of no use then.
    pub(crate) fn install_changed(
        &self,
        file: &dyn crate::log::disk::DiskFile,
        position: &Position,
        changed: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), StoreError> {
        let path = self.0.config.dir.join(DATABASE_FILE);
        let failed = |error: KvError| StoreError::Database { path: path.clone(), why: error.0 };
        let _writing = self.writing();
        let _folding = self.0.folding.lock().unwrap_or_else(PoisonError::into_inner);
        let database = self.with_current(|current| current.database.clone()).map_err(failed)?;
        let mut filling = Filling { database: &database, pairs: Vec::new(), bytes: 0 };
        snapshot::read(file, |key, value| filling.push(key, value).map_err(|error| error.0))
            .map_err(StoreError::BadSnapshot)?;
        for (key, value) in changed {
            filling.push(&key, &value).map_err(failed)?;
        }
        filling.finish(position).map_err(failed)?;
        let (base, position) = Base::of(&database).map_err(failed)?;
        let next = next_index(&position);
        self.with_current(|current| {
            current.base = Arc::new(base);
            current.delta = Arc::default();
            current.position = Arc::new(position);
        })
        .map_err(failed)?;
        self.0.applied.send_replace(next);
        Ok(())
    }

    /// Durable on return; every later call fails.
    ///
    /// # Errors
    /// The store failed or was closed before.
    pub fn close(&self) -> Result<(), KvError> {
        let _writing = self.writing();
        let committed = self.commit_durably();
        let _folding = self.0.folding.lock().unwrap_or_else(PoisonError::into_inner);
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = None;
        committed.map(|_| ())
    }
}

fn closed() -> KvError {
    KvError("it is closed".into())
}

/// Index after the last applied entry.
fn next_index(position: &Position) -> u64 {
    position.applied.as_ref().map_or(0, |applied| applied.index + 1)
}

fn open_database(disk: &dyn Disk, path: &Path, cache_bytes: usize) -> Result<Database, StoreError> {
    let failed = |why: String| StoreError::Database { path: path.to_path_buf(), why };
    let file = disk.open(path).map_err(|source| StoreError::Io { path: path.to_path_buf(), source })?;
    let mut builder = Database::builder();
    builder.set_cache_size(cache_bytes);
    let database = builder.create_with_backend(Backend(file)).map_err(|error| failed(error.to_string()))?;
    prepare(&database).map_err(|error| failed(error.0))?;
    Ok(database)
}

/// Creates the tables, and checks that they are of this release.
fn prepare(database: &Database) -> Result<(), KvError> {
    let mut transaction = database.begin_write().map_err(kv)?;
    transaction.set_quick_repair(true);
    {
        transaction.open_table(FACTS).map_err(kv)?;
        let mut meta = transaction.open_table(META).map_err(kv)?;
        let format = meta.get("format").map_err(kv)?.map(|value| value.value().to_vec());
        match format.as_deref() {
            Some(FORMAT) => {
                drop(meta);
                return transaction.abort().map_err(kv);
            }
            Some(other) => {
                let other = String::from_utf8_lossy(other).into_owned();
                return Err(KvError(format!("it has format {other:?}, which this release does not read")));
            }
            None => drop(meta.insert("format", FORMAT).map_err(kv)?),
        }
    }
    transaction.commit().map_err(kv)
}

fn read_position(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Position, KvError> {
    match meta.get("position").map_err(kv)? {
        Some(value) => rmp_serde::from_slice(value.value()).map_err(kv),
        None => Ok(Position::default()),
    }
}

fn write_position(
    meta: &mut Table<'_, &'static str, &'static [u8]>,
    position: &Position,
) -> Result<(), KvError> {
    let encoded = rmp_serde::to_vec(position).map_err(kv)?;
    meta.insert("position", encoded.as_slice()).map_err(kv)?;
    Ok(())
}

fn apply_one(facts: &mut FactsEdit, position: &mut Position, entry: &Entry) -> Result<Replies, KvError> {
    let log_id = entry.log_id;
    let replies = match &entry.payload {
        openraft::EntryPayload::Blank => Vec::new(),
        openraft::EntryPayload::Membership(membership) => {
            position.membership = StoredMembership::new(Some(log_id), membership.clone());
            Vec::new()
        }
        openraft::EntryPayload::Normal(proposal) => {
            let batch = proposal.batch();
            // A new leader's clock may be behind the last one's; the log's time never goes back.
            if batch.at < position.stamp {
                let batch = Batch { at: position.stamp, envelopes: batch.envelopes.clone() };
                machine::apply(facts, log_id.index, &batch)?
            } else {
                position.stamp = batch.at;
                machine::apply(facts, log_id.index, batch)?
            }
        }
    };
    position.applied = Some(log_id);
    Ok(Replies(replies))
}

/// Writes pairs to a database that nobody sees yet.
struct Filling<'a> {
    database: &'a Database,
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
}

impl Filling<'_> {
    fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.bytes += key.len() + value.len();
        self.pairs.push((key.to_vec(), value.to_vec()));
        if self.bytes >= INSTALL_TRANSACTION_BYTES { self.write(None) } else { Ok(()) }
    }

    fn finish(&mut self, position: &Position) -> Result<(), KvError> {
        self.write(Some(position))
    }

    fn write(&mut self, last: Option<&Position>) -> Result<(), KvError> {
        let mut transaction = self.database.begin_write().map_err(kv)?;
        transaction
            .set_durability(if last.is_some() { Durability::Immediate } else { Durability::None })
            .map_err(kv)?;
        transaction.set_quick_repair(last.is_some());
        {
            let mut facts = transaction.open_table(FACTS).map_err(kv)?;
            for (key, value) in self.pairs.drain(..) {
                facts.insert(key.as_slice(), value.as_slice()).map_err(kv)?;
            }
            if let Some(position) = last {
                write_position(&mut transaction.open_table(META).map_err(kv)?, position)?;
            }
        }
        self.bytes = 0;
        transaction.commit().map_err(kv)
    }
}

/// One consistent view of the facts and of the position they reflect.
#[derive(Clone)]
pub struct Frozen {
    base: Arc<Base>,
    delta: Arc<Delta>,
    position: Arc<Position>,
}

impl Frozen {
    /// # Errors
    /// None: it is known.
    pub fn position(&self) -> Result<Position, KvError> {
        Ok(Position::clone(&self.position))
    }

    /// As [`Frozen::position`], looked at only.
    pub(crate) fn as_of(&self) -> &Position {
        &self.position
    }

    pub(crate) fn for_each_pair(&self, visit: &mut Visit<'_>) -> Result<(), KvError> {
        let all = Merged::new(self.delta.layers(), Bound::Unbounded, Bound::Unbounded);
        visit_merged(all, self.base.facts.iter().map_err(kv)?, visit)
    }
}

impl View for Frozen {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        match self.delta.get(key) {
            Some(change) => Ok(change.map(|value| value.to_vec())),
            None => Ok(self.base.facts.get(key).map_err(kv)?.map(|value| value.value().to_vec())),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), KvError> {
        self.scan_under(None, from, to, visit)
    }
}

impl Frozen {
    /// As [`View::scan`], of this view with newer changes over it.
    fn scan_under(
        &self,
        newer: Option<&Layer>,
        from: &[u8],
        to: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<(), KvError> {
        if from >= to {
            return Ok(());
        }
        let layers = newer.into_iter().chain(self.delta.layers());
        let changes = Merged::new(layers, Bound::Included(from), Bound::Excluded(to));
        visit_merged(changes, self.base.facts.range(from..to).map_err(kv)?, visit)
    }
}

/// Walks a range of the database with changes over it.
fn visit_merged(
    mut changes: Merged<'_>,
    mut base: redb::Range<'_, &'static [u8], &'static [u8]>,
    visit: &mut Visit<'_>,
) -> Result<(), KvError> {
    let mut stored = base.next().transpose().map_err(kv)?;
    loop {
        let flow = match (&stored, changes.peek()) {
            (None, None) => return Ok(()),
            (Some((key, value)), next) if next.is_none_or(|(changed, _)| key.value() < changed) => {
                let flow = visit(key.value(), value.value());
                stored = base.next().transpose().map_err(kv)?;
                flow
            }
            (_, Some((key, change))) => {
                if stored.as_ref().is_some_and(|(stored, _)| stored.value() == key) {
                    stored = base.next().transpose().map_err(kv)?;
                }
                changes.pass(key);
                change.map_or(ControlFlow::Continue(()), |value| visit(key, value))
            }
            (Some(_), None) => unreachable!("a stored key comes before no change"),
        };
        if flow.is_break() {
            return Ok(());
        }
    }
}

/// A view, and what is changed in it.
struct FactsEdit {
    view: Frozen,
    fresh: Layer,
}

impl View for FactsEdit {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        match self.fresh.get(key) {
            Some(change) => Ok(change.as_ref().map(|value| value.to_vec())),
            None => self.view.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), KvError> {
        self.view.scan_under(Some(&self.fresh), from, to, visit)
    }
}

impl Edit for FactsEdit {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), KvError> {
        self.fresh.insert(key, Some(Bytes::from(value)));
        Ok(())
    }

    fn delete(&mut self, key: Vec<u8>) -> Result<(), KvError> {
        self.fresh.insert(key, None);
        Ok(())
    }
}
