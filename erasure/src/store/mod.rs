//! The shards of one directory ("disk"): appended to segment files, committed in groups, read with their
//! checksums.
//!
//! ```text
//! write    begin ─ a room in an open segment ─> cells, hashed as they pass ─ footer ─> one sync for all who
//!          finish at once ─> index ─> answered
//! read     index ─> footer ─> cells whose CRC32C holds ─> bytes
//! delete   index ─> state byte of the record, and a mark in the segment's index file ─ sync ─> pages punched
//! start    index files of sealed segments; the rest record by record
//! ```
//!
//! | room           | holds                                                                  |
//! |----------------|------------------------------------------------------------------------|
//! | [`format`]     | every byte on disk, and reading it back from anything                  |
//! | [`disk`]       | the file operations, as a seam for tests                               |
//! | `superblock`   | whose disk a directory is, and its lock                                |
//! | `segment`      | segment files, their phases, rooms                                     |
//! | `writer`       | a shard on its way in                                                  |
//! | `flusher`      | the thread that makes durable, and orders all changes                  |
//! | `janitor`      | the thread that seals segments and gives room back                     |
//! | `index`        | shards in memory                                                       |
//! | `scan`, `recover` | a start                                                             |
//! | `compact`      | emptying segments that are mostly dead                                 |
//! | [`outlines`]   | trees of hashes beside the segments: a cache                           |
//! | `upkeep`       | directories and files that go away, and what is held of the device     |
//!
//! Always:
//! - A shard can be read, and is listed, only after its finish is durable; after that it survives any crash.
//! - A delete that was answered stays answered: no crash brings the shard back.
//! - Bytes are returned only from cells whose checksum holds.
//! - A sync that fails ends the disk for this process. None is ever tried twice.
//! - One damaged record never hides another, nor stops a start.

mod compact;
mod core;
pub mod disk;
mod error;
mod flusher;
pub mod format;
mod index;
mod janitor;
pub mod outlines;
mod read;
mod recover;
mod scan;
mod segment;
mod superblock;
mod upkeep;
mod writer;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use tokio::sync::oneshot;

use self::core::{Core, lock};
use self::disk::{Disk, OsDisk};
use self::format::{Secret, Superblock};
use self::janitor::Chore;
use self::outlines::{LeafProof, Outlines};
use self::superblock::SEGMENTS;
use crate::ids::{DiskId, ShardKey};
use crate::stripe::{ShardFooter, ShardHeader};

pub use self::error::StoreError;
pub use self::index::StoredShard;
pub use self::recover::{Damage, RecoveryReport};
pub use self::writer::ShardWriter;

/// Chores that wait for the janitor.
const CHORES_MAX: usize = 65_536;

/// How a disk is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes of the filesystem that are never taken.
    pub reserve_bytes: u64,
    /// Of the device, segment files hold no more than this; 0: as much as there is.
    pub capacity_bytes_max: u64,
    /// Size of a segment file. Each open one is set aside in full.
    pub segment_bytes: u64,
    /// Segments that are written at once, under load.
    pub append_segments: usize,
    /// Shards that are written at once; each holds up to 512 KiB of memory and its whole room.
    pub writers_max: usize,
    /// Files of sealed segments that are kept open.
    pub open_files_max: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            reserve_bytes: 1 << 30,
            capacity_bytes_max: 0,
            segment_bytes: 256 << 20,
            append_segments: 4,
            writers_max: 512,
            open_files_max: 128,
        }
    }
}

/// What a disk holds and could hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes of the filesystem.
    pub capacity: u64,
    /// Bytes that shards can still take: free ones above the reserve, and room set aside already.
    pub free: u64,
    /// Bytes of the records that can be read.
    pub live_bytes: u64,
    /// Of those, the shards' own bytes; the rest is headers, checksums and what aligns records.
    pub body_bytes: u64,
    /// Bytes of the device that the segment files took when last measured: those of live records, room set aside for
    /// shards to come, and garbage.
    pub held_bytes: u64,
    /// Room that is set aside and not taken yet.
    pub set_aside_bytes: u64,
    pub shard_count: u64,
}

/// The shards of one directory. Clones are handles to one store; it ends with [`ShardStore::close`] or the
/// last handle.
#[derive(Clone)]
pub struct ShardStore {
    core: Arc<Core>,
    threads: Arc<Threads>,
}

impl std::fmt::Debug for ShardStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardStore").field("dir", &self.core.dir).field("disk", &self.disk_id()).finish()
    }
}

struct Threads {
    core: Arc<Core>,
    flusher: Mutex<Option<JoinHandle<()>>>,
    janitor: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.core.close();
        self.core.queue.stop();
        self.core.chore(Chore::Stop);
    }
}

impl ShardStore {
    /// Makes an existing directory a disk of a cluster.
    ///
    /// # Errors
    /// There is a disk already, or the directory cannot be written.
    pub fn format(dir: &Path, cluster_id: &str, disk: DiskId) -> Result<(), StoreError> {
        superblock::format(dir, cluster_id, disk, Secret(rand::random()))
    }

    /// Opens a disk and learns what it holds. Blocks.
    ///
    /// # Errors
    /// It is not a disk of this cluster, of a newer release, in use, or cannot be written. Damaged segments
    /// are reported, not refused.
    pub fn open(
        dir: &Path,
        cluster_id: &str,
        options: StoreOptions,
    ) -> Result<(Self, RecoveryReport), StoreError> {
        let dir_lock = superblock::lock(dir)?;
        let superblock = superblock::load(dir, cluster_id)?;
        let segments = dir.join(SEGMENTS);
        if !segments.is_dir() {
            return Err(StoreError::NoDirectory { path: segments });
        }
        let (store, report) = Self::open_on(Arc::new(OsDisk), dir, superblock, options)?;
        *lock(&store.core.dir_lock) = Some(dir_lock);
        _ = store.core.home.set(upkeep::Home::of(dir)?);
        match Outlines::open(dir) {
            Ok(outlines) => _ = store.core.kept_outlines.set(outlines),
            Err(error) => tracing::warn!(?dir, %error, "no outlines are kept: audits read whole shards"),
        }
        Ok((store, report))
    }

    /// Opens what `superblock` names on any disk; the caller holds `dir`, whose `segments` directory exists. Blocks.
    ///
    /// # Errors
    /// The disk cannot be read or written. Damaged segments are reported, not refused.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        superblock: Superblock,
        options: StoreOptions,
    ) -> Result<(Self, RecoveryReport), StoreError> {
        let (chores, chores_taken) = mpsc::sync_channel(CHORES_MAX);
        let mut core = Core::new(dir.to_path_buf(), disk, superblock, options, chores);
        let (report, sequence) = recover::recover(&mut core)?;
        if let Err(error) = upkeep::measure_held(&core) {
            tracing::warn!(?dir, %error, "what the disk holds was not measured; trying again later");
        }
        let core = Arc::new(core);
        let threads =
            Threads { core: Arc::clone(&core), flusher: Mutex::new(None), janitor: Mutex::new(None) };
        let spawn = |name: &str, run: Box<dyn FnOnce(&Core) + Send>| {
            let core = Arc::clone(&core);
            thread::Builder::new()
                .name(name.into())
                .spawn(move || run(&core))
                .map_err(|error| StoreError::io("start the threads of", dir, error))
        };
        *lock(&threads.flusher) =
            Some(spawn("shard-flusher", Box::new(move |core| flusher::run(core, sequence)))?);
        *lock(&threads.janitor) =
            Some(spawn("shard-janitor", Box::new(move |core| janitor::run(core, &chores_taken)))?);
        Ok((Self { core, threads: Arc::new(threads) }, report))
    }

    #[must_use]
    pub fn disk_id(&self) -> DiskId {
        self.core.superblock.disk
    }

    /// Sets room aside for a shard.
    ///
    /// # Errors
    /// The disk is full, busy, or the header is impossible. Nothing was written.
    pub async fn begin(&self, header: ShardHeader) -> Result<ShardWriter, StoreError> {
        ShardWriter::begin(&self.core, header).await
    }

    /// Bytes `offset..offset + len` of a shard, from cells that verify.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`]: a cell of the range is damaged; others may still be read.
    pub async fn read(&self, key: ShardKey, offset: u64, len: u64) -> Result<Bytes, StoreError> {
        self.blocking(move |core| read::read(core, key, offset, len)).await
    }

    /// What was said when the shard was finished.
    ///
    /// # Errors
    /// As [`ShardStore::read`].
    pub async fn footer(&self, key: ShardKey) -> Result<ShardFooter, StoreError> {
        self.blocking(move |core| {
            read::with_record(core, key, |record| {
                let footer = &record.footer;
                Ok(ShardFooter { blob_plain_len: footer.blob_plain_len, roots: footer.roots.clone() })
            })
        })
        .await
    }

    #[must_use]
    pub fn header(&self, key: ShardKey) -> Option<StoredShard> {
        self.core.index.get(key).map(|entry| entry.describe(key))
    }

    /// Forgets shards, durably; those that are not there count as forgotten. What a finish that runs at the
    /// same time writes may stay.
    ///
    /// # Errors
    /// The disk failed: some may come back at the next start.
    pub async fn delete(&self, keys: Vec<ShardKey>) -> Result<(), StoreError> {
        self.core.check_open()?;
        let (reply, answer) = oneshot::channel();
        let closed = || StoreError::Closed { path: self.core.dir.clone() };
        self.core.queue.delete(flusher::Delete { keys, reply }).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    #[must_use]
    pub fn contains(&self, key: ShardKey) -> bool {
        self.core.index.get(key).is_some()
    }

    /// At most `max` shards whose key is above `after`, in order.
    #[must_use]
    pub fn list_after(&self, after: Option<ShardKey>, max: usize) -> Vec<StoredShard> {
        self.core.index.list_after(after, max)
    }

    /// Reads a whole shard back: every cell's checksum, and the hash of all against its root. Keeps its outline where none is.
    ///
    /// # Errors
    /// As [`ShardStore::read`].
    pub async fn verify(&self, key: ShardKey) -> Result<(), StoreError> {
        self.blocking(move |core| {
            read::with_record(core, key, |record| outlines::make(core.outlines(), record).map(|_| ()))
        })
        .await
    }

    /// Proves one leaf of 16 KiB against the shard's root: by the outline that is kept, else of the whole shard.
    ///
    /// # Errors
    /// As [`ShardStore::read`].
    pub async fn prove(&self, key: ShardKey, leaf: u64) -> Result<LeafProof, StoreError> {
        self.blocking(move |core| {
            read::with_record(core, key, |record| outlines::prove(core.outlines(), record, leaf))
        })
        .await
    }

    #[must_use]
    pub fn usage(&self) -> DiskUsage {
        let space = self.core.space().unwrap_or(disk::Space { capacity: 0, free: 0 });
        let segments = self.core.segments.all();
        let live = segments.iter().map(|(segment, _)| segment.live_bytes.load(Ordering::Relaxed));
        let body = segments.iter().map(|(segment, _)| segment.live_body_bytes.load(Ordering::Relaxed));
        let set_aside_bytes = self.core.segments.open_room();
        DiskUsage {
            capacity: space.capacity,
            free: space.free.saturating_sub(self.core.options.reserve_bytes) + set_aside_bytes,
            live_bytes: live.sum(),
            body_bytes: body.sum(),
            held_bytes: self.core.held_bytes.load(Ordering::Relaxed),
            set_aside_bytes,
            shard_count: self.core.index.len() as u64,
        }
    }

    /// Whether the directory is still the one that was opened.
    ///
    /// # Errors
    /// The disk failed, or its directory is gone or another one: nothing written from now on would be found again.
    pub async fn check_home(&self) -> Result<(), StoreError> {
        self.blocking(|core| upkeep::check_home(core)).await
    }

    /// Measures what the segment files hold of the device, and forgets the shards of files that somebody removed; returns
    /// how many those were.
    ///
    /// # Errors
    /// The directory cannot be looked through.
    pub async fn look_over(&self) -> Result<u64, StoreError> {
        self.blocking(|core| {
            let forgotten = upkeep::forget_removed(core)?;
            upkeep::measure_held(core)?;
            Ok(forgotten)
        })
        .await
    }

    /// Moves what lives in one mostly dead segment elsewhere and removes the file; `true` while there may be
    /// more to do. Copies at most one segment's live bytes.
    ///
    /// # Errors
    /// The segment stays as it was.
    pub async fn compact_step(&self) -> Result<bool, StoreError> {
        self.blocking(compact::step).await
    }

    /// Ends the store: what waits is made durable, segments get their index. Writers that have not
    /// finished get [`StoreError::Closed`]. The directory is free once no handle's writer is left.
    pub async fn close(&self) {
        self.core.close();
        self.core.queue.stop();
        let threads = Arc::clone(&self.threads);
        let ended = tokio::task::spawn_blocking(move || {
            let join = |thread: &Mutex<Option<JoinHandle<()>>>| {
                let thread = lock(thread).take();
                thread.is_none_or(|thread| thread.join().is_ok())
            };
            let has_flushed = join(&threads.flusher);
            threads.core.segments.retire_all(&threads.core);
            threads.core.chore(Chore::Stop);
            let has_sealed = join(&threads.janitor);
            // A writer that is still there may be writing: then the directory is free when the last one goes.
            if threads.core.writers.load(Ordering::SeqCst) == 0 {
                *lock(&threads.core.dir_lock) = None;
            }
            has_flushed && has_sealed
        });
        if !matches!(ended.await, Ok(true)) {
            tracing::error!(dir = ?self.core.dir, "a thread of the disk ended early");
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Core>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let core = Arc::clone(&self.core);
        writer::blocking(move || work(&core)).await
    }
}
