//! Transactions, views and installs.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, Table, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::backend::Backend;
use super::snapshot;
use crate::facts::Timestamp;
use crate::facts::command::Batch;
use crate::facts::command::Refusal;
use crate::facts::query::{Answer, Query};
use crate::log::disk::Disk;
use crate::log::types::{Entry, LogId, Replies, SnapshotMeta, StoredMembership};
use crate::machine;
use crate::machine::kv::{Edit, KvError, View};

const FACTS: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("facts");
/// Key `position`: a [`Position`] in MessagePack. Key `format`: [`FORMAT`].
const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");
/// Grows when the layout of the two tables changes.
const FORMAT: &[u8] = b"MKMETA 1";
const DATABASE_FILE: &str = "state.redb";
/// A snapshot on its way to being in force.
const NEW_DATABASE_FILE: &str = "state-new.redb";
/// A snapshot is installed in transactions of about this much.
const INSTALL_TRANSACTION_BYTES: usize = 16 << 20;

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
    database: RwLock<Option<Arc<Database>>>,
    /// Index after the last applied entry.
    applied: watch::Sender<u64>,
    /// Held by whoever commits.
    writing: Mutex<()>,
}

impl fmt::Debug for MetaStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MetaStore({:?})", self.0.config.dir)
    }
}

/// What a scan hands pairs to.
type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

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
        let store = Self(Arc::new(Shared {
            disk,
            config,
            database: RwLock::new(Some(Arc::new(database))),
            applied: watch::Sender::new(0),
            writing: Mutex::new(()),
        }));
        let position = store.frozen().and_then(|view| view.position());
        let position = position.map_err(|error| StoreError::Database { path, why: error.0 })?;
        store.publish(&position);
        Ok(store)
    }

    fn publish(&self, position: &Position) {
        let next = position.applied.as_ref().map_or(0, |applied| applied.index + 1);
        self.0.applied.send_replace(next);
    }

    fn database(&self) -> Result<Arc<Database>, KvError> {
        let database = self.0.database.read().unwrap_or_else(PoisonError::into_inner);
        database.clone().ok_or_else(|| KvError("it is closed".into()))
    }

    /// Changes whenever entries have been applied: the index after the last one.
    #[must_use]
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.0.applied.subscribe()
    }

    /// One consistent view of all that is applied, however long it is held.
    ///
    /// # Errors
    /// The store failed or is closed.
    pub fn frozen(&self) -> Result<Frozen, KvError> {
        let transaction = self.database()?.begin_read().map_err(kv)?;
        let facts = transaction.open_table(FACTS).map_err(kv)?;
        let meta = transaction.open_table(META).map_err(kv)?;
        Ok(Frozen { facts, meta })
    }

    /// # Errors
    /// The store failed or is closed.
    pub fn query(&self, query: &Query) -> Result<Result<Answer, Refusal>, KvError> {
        machine::query(&self.frozen()?, query)
    }

    /// Applies consecutive entries in one transaction, seen by views on return but not yet durable.
    ///
    /// # Errors
    /// The store failed or is closed; nothing has changed.
    pub fn apply(&self, entries: &[Entry]) -> Result<Vec<Replies>, KvError> {
        let _writing = self.writing();
        let database = self.database()?;
        let mut transaction = database.begin_write().map_err(kv)?;
        transaction.set_durability(Durability::None).map_err(kv)?;
        let mut out = Vec::with_capacity(entries.len());
        let position = {
            let mut meta = transaction.open_table(META).map_err(kv)?;
            let mut position = read_position(&meta)?;
            let mut facts = FactsEdit(transaction.open_table(FACTS).map_err(kv)?);
            for entry in entries {
                out.push(apply_one(&mut facts, &mut position, entry)?);
            }
            write_position(&mut meta, &position)?;
            position
        };
        transaction.commit().map_err(kv)?;
        self.publish(&position);
        Ok(out)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.0.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes all that is applied durable, and returns the view of exactly that.
    ///
    /// # Errors
    /// The store failed or is closed.
    pub fn commit_durably(&self) -> Result<Frozen, KvError> {
        let _writing = self.writing();
        let mut transaction = self.database()?.begin_write().map_err(kv)?;
        transaction.set_durability(Durability::Immediate).map_err(kv)?;
        // Without it a crash makes the next start walk the whole file.
        transaction.set_quick_repair(true);
        transaction.commit().map_err(kv)?;
        self.frozen()
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
        let mut current = self.0.database.write().unwrap_or_else(PoisonError::into_inner);
        let in_force = self.0.config.dir.join(DATABASE_FILE);
        self.0.disk.rename(&path, &in_force).map_err(io)?;
        self.0.disk.sync_dir(&self.0.config.dir).map_err(io)?;
        // Views of the replaced facts keep its file until they are dropped.
        *current = Some(Arc::new(open_database(&*self.0.disk, &in_force, self.0.config.cache_bytes)?));
        drop(current);
        self.publish(&position);
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
        let database = self.database().map_err(failed)?;
        let mut filling = Filling { database: &database, pairs: Vec::new(), bytes: 0 };
        snapshot::read(file, |key, value| filling.push(key, value).map_err(|error| error.0))
            .map_err(StoreError::BadSnapshot)?;
        for (key, value) in changed {
            filling.push(&key, &value).map_err(failed)?;
        }
        filling.finish(position).map_err(failed)?;
        self.publish(position);
        Ok(())
    }

    /// Durable on return; every later call fails.
    ///
    /// # Errors
    /// The store failed or was closed before.
    pub fn close(&self) -> Result<(), KvError> {
        let committed = self.commit_durably();
        *self.0.database.write().unwrap_or_else(PoisonError::into_inner) = None;
        committed.map(|_| ())
    }
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

fn apply_one(facts: &mut FactsEdit<'_>, position: &mut Position, entry: &Entry) -> Result<Replies, KvError> {
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
pub struct Frozen {
    facts: ReadOnlyTable<&'static [u8], &'static [u8]>,
    meta: ReadOnlyTable<&'static str, &'static [u8]>,
}

impl Frozen {
    /// # Errors
    /// The store failed.
    pub fn position(&self) -> Result<Position, KvError> {
        read_position(&self.meta)
    }

    pub(crate) fn for_each_pair(&self, visit: &mut Visit<'_>) -> Result<(), KvError> {
        visit_range(self.facts.iter().map_err(kv)?, visit)
    }
}

impl View for Frozen {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.facts.get(key).map_err(kv)?.map(|value| value.value().to_vec()))
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), KvError> {
        if from >= to {
            return Ok(());
        }
        visit_range(self.facts.range(from..to).map_err(kv)?, visit)
    }
}

fn visit_range(
    range: redb::Range<'_, &'static [u8], &'static [u8]>,
    visit: &mut Visit<'_>,
) -> Result<(), KvError> {
    for pair in range {
        let (key, value) = pair.map_err(kv)?;
        if visit(key.value(), value.value()).is_break() {
            break;
        }
    }
    Ok(())
}

struct FactsEdit<'txn>(Table<'txn, &'static [u8], &'static [u8]>);

impl View for FactsEdit<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.0.get(key).map_err(kv)?.map(|value| value.value().to_vec()))
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), KvError> {
        if from >= to {
            return Ok(());
        }
        visit_range(self.0.range(from..to).map_err(kv)?, visit)
    }
}

impl Edit for FactsEdit<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.0.insert(key, value).map_err(kv)?;
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), KvError> {
        self.0.remove(key).map_err(kv)?;
        Ok(())
    }
}
