//! What the handles, the writers and the two threads of one disk share.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};

use super::StoreOptions;
use super::disk::{Disk, DiskFile, Space};
use super::error::StoreError;
use super::flusher::Queue;
use super::format::{STATE_AT, STATE_DEAD, Superblock, encode_dead_mark};
use super::index::{Entry, Index};
use super::janitor::Chore;
use super::outlines::Outlines;
use super::segment::{Marks, Segments};
use super::superblock::{DirLock, SEGMENTS};
use super::upkeep::Home;
use crate::ids::ShardKey;

pub struct Core {
    pub dir: PathBuf,
    pub disk: Arc<dyn Disk>,
    pub superblock: Superblock,
    pub options: StoreOptions,
    pub index: Index,
    pub segments: Segments,
    pub queue: Queue,
    pub chores: Mutex<mpsc::SyncSender<Chore>>,
    /// Rooms whose blocks the filesystem could not set aside are paid for when they are written.
    pub is_sparse: AtomicBool,
    pub writers: AtomicUsize,
    pub dir_lock: Mutex<Option<DirLock>>,
    /// The directory as it was opened; empty where it is no real one.
    pub home: OnceLock<Home>,
    /// Empty where none are kept.
    pub kept_outlines: OnceLock<Outlines>,
    /// What the segment files took of the device when last measured.
    pub held_bytes: AtomicU64,
    failed: OnceLock<Arc<str>>,
    closed: AtomicBool,
}

/// A lock whose holder panicked guards plain values that are valid at every step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    pub fn new(
        dir: PathBuf,
        disk: Arc<dyn Disk>,
        superblock: Superblock,
        options: StoreOptions,
        chores: mpsc::SyncSender<Chore>,
    ) -> Self {
        Self {
            dir,
            disk,
            superblock,
            options,
            index: Index::default(),
            segments: Segments::default(),
            queue: Queue::default(),
            chores: Mutex::new(chores),
            is_sparse: AtomicBool::new(false),
            writers: AtomicUsize::new(0),
            dir_lock: Mutex::new(None),
            home: OnceLock::new(),
            kept_outlines: OnceLock::new(),
            held_bytes: AtomicU64::new(0),
            failed: OnceLock::new(),
            closed: AtomicBool::new(false),
        }
    }

    pub fn outlines(&self) -> Option<&Outlines> {
        self.kept_outlines.get()
    }

    pub fn segments_dir(&self) -> PathBuf {
        self.dir.join(SEGMENTS)
    }

    /// # Errors
    /// The disk failed, or was closed.
    pub fn check_open(&self) -> Result<(), StoreError> {
        self.check_working()?;
        if self.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Closed { path: self.dir.clone() });
        }
        Ok(())
    }

    pub fn check_working(&self) -> Result<(), StoreError> {
        match self.failed.get() {
            Some(why) => Err(StoreError::Failed { path: self.dir.clone(), why: Arc::clone(why) }),
            None => Ok(()),
        }
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// After a sync that failed nobody knows what the device holds: the kernel may have dropped the pages and
    /// the next sync would succeed without them. So it is never tried again.
    pub fn fail(&self, what: &str, path: &std::path::Path, error: &io::Error) -> StoreError {
        let why = self.failed.get_or_init(|| format!("{what} {}: {error}", path.display()).into());
        tracing::error!(dir = ?self.dir, %why, "disk failed");
        StoreError::Failed { path: self.dir.clone(), why: Arc::clone(why) }
    }

    pub fn chore(&self, chore: Chore) {
        let chores = lock(&self.chores).clone();
        let is_stop = matches!(chore, Chore::Stop);
        // A janitor that is gone or that far behind leaves the rest to compaction and to the next open; only the word to
        // stop waits for its place.
        if is_stop {
            _ = chores.send(chore);
        } else if let Err(mpsc::TrySendError::Full(_)) = chores.try_send(chore) {
            tracing::debug!(dir = ?self.dir, "room is given back later");
        }
    }

    /// The filesystem's, as far as this disk may fill it.
    pub fn space(&self) -> Result<Space, StoreError> {
        let all = self.disk.space(&self.dir).map_err(|error| StoreError::io("size of", &self.dir, error))?;
        let max = self.options.capacity_bytes_max;
        if max == 0 {
            return Ok(all);
        }
        // The reserve is the filesystem's, not a part of what this disk may hold.
        let left = max.saturating_sub(self.held_bytes.load(Ordering::Relaxed));
        let free = all.free.min(left.saturating_add(self.options.reserve_bytes));
        Ok(Space { capacity: all.capacity.min(max), free })
    }

    /// Counts a shard that became readable.
    pub fn admit(&self, entry: &Entry) {
        if let Some(segment) = self.segments.get(entry.segment) {
            segment.live_bytes.fetch_add(entry.record_bytes(), Ordering::Relaxed);
            segment.live_body_bytes.fetch_add(entry.len(), Ordering::Relaxed);
            segment.live_shards.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Makes records dead for good, whatever happens after: their state byte, and the index file of a sealed
    /// segment. None of them is in the memory index any more.
    pub fn bury(&self, victims: &[Entry]) -> Result<(), StoreError> {
        let mut by_segment: BTreeMap<u32, Vec<&Entry>> = BTreeMap::new();
        for victim in victims {
            by_segment.entry(victim.segment).or_default().push(victim);
        }
        let mut touched: Vec<(PathBuf, Arc<dyn DiskFile>)> = Vec::new();
        for (number, victims) in by_segment {
            let Some(segment) = self.segments.get(number) else { continue };
            let Some(file) = self.unless_removed(self.segments.file(self, &segment))? else { continue };
            for victim in &victims {
                file.write_at(&[STATE_DEAD], victim.record_at() + STATE_AT)
                    .map_err(|error| StoreError::io("mark dead in", &segment.path, error))?;
            }
            touched.push((segment.path.clone(), file));
            match &mut *lock(&segment.marks) {
                Marks::None => {}
                Marks::Building(dead) => dead.extend(victims.iter().map(|victim| victim.at_units())),
                Marks::Ready { slots, marks_at } => {
                    let path = segment.index_path();
                    let log = self.disk.open(&path).map_err(|error| StoreError::io("open", &path, error));
                    let Some(log) = self.unless_removed(log)? else { continue };
                    let stamp = self.superblock.secret.index_stamp(number);
                    for victim in victims {
                        let mark = encode_dead_mark(victim.at_units(), *slots, stamp);
                        log.write_at(&mark, *marks_at + u64::from(*slots) * mark.len() as u64)
                            .map_err(|error| StoreError::io("append to", &path, error))?;
                        *slots += 1;
                    }
                    touched.push((path, log));
                }
            }
        }
        for (path, file) in &touched {
            file.sync().map_err(|error| self.fail("sync", path, &error))?;
        }
        Ok(())
    }

    /// A file that was removed meanwhile holds nothing that must be marked, once its removal is durable.
    fn unless_removed<T>(&self, opened: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match opened {
            Ok(opened) => Ok(Some(opened)),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let dir = self.segments_dir();
                self.disk.sync_dir(&dir).map_err(|error| self.fail("sync", &dir, &error))?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    pub fn forget(&self, entry: &Entry) {
        if let Some(segment) = self.segments.get(entry.segment) {
            segment.live_bytes.fetch_sub(entry.record_bytes(), Ordering::Relaxed);
            segment.live_body_bytes.fetch_sub(entry.len(), Ordering::Relaxed);
            segment.live_shards.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Where `key` lies.
    pub fn locate(&self, key: ShardKey) -> Result<Entry, StoreError> {
        self.index.get(key).ok_or(StoreError::Missing { key })
    }
}
