//! The segment files of a disk, and the rooms that writers take in them.
//!
//! ```text
//! Open ──(no room for what comes)──> Full ──(last writer leaves)──> Sealing ──> Sealed ──(all dead)──> gone
//!   ^                                                                             │  └─> Busy (compaction)
//!   └───────────────────────(has room left after a restart)───────────────────────┘
//! ```
//!
//! A room is the place of one record, set aside before its first byte: many writers fill their rooms at
//! once, in few files, so that one sync serves many.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::core::{Core, lock};
use super::disk::DiskFile;
use super::error::StoreError;
use super::format::{
    RECORD_ALIGN, SEGMENT_HEAD_BYTES, STATE_AT, STATE_DEAD, STATE_LIVE, encode_segment_head,
};
use super::janitor::Chore;
use super::scan::{Found, scan};
use super::upkeep::measure_held;

/// Writers that share one segment before another is opened: a file takes one write at a time.
const WRITERS_PER_SEGMENT: usize = 8;
/// Files end at multiples of this, and holes are cut in it.
pub const PAGE: u64 = 4096;
/// A sealed segment is opened again while at least this part of it is free.
const REOPEN_FREE_SHARE: u64 = 8;

/// What dies in a segment is noted in its index file too, once there is one.
pub enum Marks {
    /// No index file: the records themselves say.
    None,
    /// The index file is being written; these died since, in units of [`RECORD_ALIGN`].
    Building(Vec<u32>),
    /// Marks are appended at `marks_at`, `slots` of them so far.
    Ready { slots: u32, marks_at: u64 },
}

pub struct Segment {
    pub number: u32,
    pub path: PathBuf,
    /// Bytes of records that can be read.
    pub live_bytes: AtomicU64,
    /// Of those, the shards' own bytes, without headers, checksums and what aligns them.
    pub live_body_bytes: AtomicU64,
    pub live_shards: AtomicU64,
    pub marks: Mutex<Marks>,
    file: Mutex<Option<Arc<dyn DiskFile>>>,
}

impl Segment {
    pub fn new(dir: &Path, number: u32, marks: Marks) -> Self {
        Self {
            number,
            path: segment_path(dir, number),
            live_bytes: AtomicU64::new(0),
            live_body_bytes: AtomicU64::new(0),
            live_shards: AtomicU64::new(0),
            marks: Mutex::new(marks),
            file: Mutex::new(None),
        }
    }

    pub fn index_path(&self) -> PathBuf {
        self.path.with_extension("idx")
    }
}

pub fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.seg"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Open { tail: u64, capacity: u64, writers: usize },
    Full { tail: u64, writers: usize },
    Sealing { tail: u64 },
    Sealed { tail: u64 },
    Busy { tail: u64 },
}

struct Slot {
    segment: Arc<Segment>,
    phase: Phase,
    /// While it is open.
    file: Option<Arc<dyn DiskFile>>,
}

#[derive(Default)]
struct Table {
    slots: BTreeMap<u32, Slot>,
    open: Vec<u32>,
    /// Sealed segments with room left.
    reopenable: Vec<u32>,
    next_number: u32,
    /// Sealed segments whose file is open, oldest first.
    cached: VecDeque<u32>,
}

#[derive(Default)]
pub struct Segments {
    table: Mutex<Table>,
    /// Held while a segment is created, so that waiting writers share it.
    creating: Mutex<()>,
}

/// The place of one record. Dropped before [`Room::keep`], it is given back.
pub struct Room {
    core: Arc<Core>,
    pub segment: Arc<Segment>,
    pub file: Arc<dyn DiskFile>,
    pub at: u64,
    bytes: u64,
    /// Something was written: the room cannot be taken anew, only emptied.
    pub is_written: bool,
    kept: Option<u64>,
}

impl Room {
    /// The record is durable and takes `record_bytes` of the room.
    pub fn keep(mut self, record_bytes: u64) {
        self.kept = Some(record_bytes);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let end = self.at + self.bytes;
        let number = self.segment.number;
        let used = match self.kept {
            Some(record_bytes) => record_bytes,
            None if self.is_written => self.bytes,
            None => 0,
        };
        if self.kept.is_none() && self.is_written {
            self.core.chore(Chore::GiveBack {
                file: Arc::clone(&self.file),
                path: self.segment.path.clone(),
                at: self.at,
                end,
            });
        }
        let mut table = lock(&self.core.segments.table);
        let Some(slot) = table.slots.get_mut(&number) else { return };
        let mut is_shortened = used == self.bytes;
        match &mut slot.phase {
            Phase::Open { tail, writers, .. } => {
                if *tail == end {
                    *tail = self.at + used;
                    is_shortened = true;
                }
                *writers -= 1;
            }
            Phase::Full { tail, writers } => {
                *writers -= 1;
                if *writers == 0 {
                    slot.phase = Phase::Sealing { tail: *tail };
                    self.core.chore(Chore::Seal { number });
                }
            }
            Phase::Sealing { .. } | Phase::Sealed { .. } | Phase::Busy { .. } => {}
        }
        if !is_shortened && self.kept.is_some() {
            self.core.chore(Chore::Punch { number, from: self.at + used, to: end });
        }
    }
}

impl Segments {
    pub fn get(&self, number: u32) -> Option<Arc<Segment>> {
        lock(&self.table).slots.get(&number).map(|slot| Arc::clone(&slot.segment))
    }

    /// The file of a segment; those of sealed ones are kept open up to a bound.
    pub fn file(&self, core: &Core, segment: &Arc<Segment>) -> Result<Arc<dyn DiskFile>, StoreError> {
        let mut cached = lock(&segment.file);
        if let Some(file) = &*cached {
            return Ok(Arc::clone(file));
        }
        let file =
            core.disk.open(&segment.path).map_err(|error| StoreError::io("open", &segment.path, error))?;
        *cached = Some(Arc::clone(&file));
        drop(cached);
        self.remember_file(core, segment.number);
        Ok(file)
    }

    fn remember_file(&self, core: &Core, number: u32) {
        let evicted = {
            let mut table = lock(&self.table);
            table.cached.push_back(number);
            let is_over = table.cached.len() > core.options.open_files_max.max(1);
            let oldest = if is_over { table.cached.pop_front() } else { None };
            oldest.and_then(|oldest| table.slots.get(&oldest)).map(|slot| Arc::clone(&slot.segment))
        };
        // A reader that holds the file keeps it open; an open segment finds it again.
        if let Some(evicted) = evicted {
            *lock(&evicted.file) = None;
        }
    }

    /// Adds a segment found at start.
    pub fn add(&self, segment: Arc<Segment>, phase: Phase) {
        let mut table = lock(&self.table);
        table.next_number = table.next_number.max(segment.number.saturating_add(1));
        table.slots.insert(segment.number, Slot { segment, phase, file: None });
    }

    /// Sealed segments with enough room left are taken again before a new one is made.
    pub fn offer_reopening(&self, core: &Core) {
        let mut table = lock(&self.table);
        let wanted = core.options.segment_bytes;
        let least_free = wanted / REOPEN_FREE_SHARE;
        let offered = table.slots.iter().filter_map(|(number, slot)| match slot.phase {
            Phase::Sealed { tail } if tail + least_free <= wanted => Some(*number),
            _ => None,
        });
        let mut offered: Vec<u32> = offered.collect();
        offered.truncate(core.options.append_segments);
        table.reopenable = offered;
    }

    /// A room in an open segment. `is_crowding`: also where many write already.
    pub fn take_room(&self, core: &Arc<Core>, bytes: u64, is_crowding: bool) -> Option<Room> {
        let mut guard = lock(&self.table);
        let table = &mut *guard;
        let mut best: Option<(usize, u32)> = None;
        for number in &table.open {
            let Some(Slot { phase: Phase::Open { tail, capacity, writers }, .. }) = table.slots.get(number)
            else {
                continue;
            };
            if tail + bytes <= *capacity && best.is_none_or(|(least, _)| *writers < least) {
                best = Some((*writers, *number));
                if *writers < WRITERS_PER_SEGMENT {
                    break;
                }
            }
        }
        let (busy, number) = best?;
        if busy >= WRITERS_PER_SEGMENT && !is_crowding {
            return None;
        }
        let slot = table.slots.get_mut(&number)?;
        let file = slot.file.clone()?;
        let Phase::Open { tail, writers, .. } = &mut slot.phase else { return None };
        let at = *tail;
        *tail += bytes;
        *writers += 1;
        Some(Room {
            core: Arc::clone(core),
            segment: Arc::clone(&slot.segment),
            file,
            at,
            bytes,
            is_written: false,
            kept: None,
        })
    }

    /// A room without blocking, where an open segment has one.
    pub fn try_room(&self, core: &Arc<Core>, bytes: u64) -> Option<Room> {
        if core.is_sparse.load(Ordering::Relaxed) {
            return None;
        }
        let has_all_open = lock(&self.table).open.len() >= core.options.append_segments.max(1);
        self.take_room(core, bytes, has_all_open)
    }

    /// A room, in a new segment if need be, such that `reserve` bytes stay free. Blocks.
    pub fn room(&self, core: &Arc<Core>, bytes: u64, reserve: u64) -> Result<Room, StoreError> {
        let _creating = lock(&self.creating);
        if core.is_sparse.load(Ordering::Relaxed) {
            let free = core.space()?.free;
            if free < reserve.saturating_add(bytes) {
                return Err(StoreError::DiskFull { path: core.dir.clone(), free, reserve });
            }
        }
        // Writers that take rooms without blocking may empty a new segment at once: then another is made.
        const TRIES_MAX: usize = 16;
        for _ in 0..TRIES_MAX {
            let has_all_open = lock(&self.table).open.len() >= core.options.append_segments.max(1);
            if let Some(room) = self.take_room(core, bytes, has_all_open) {
                return Ok(room);
            }
            if has_all_open {
                self.retire_fullest(core);
            }
            if let Err(error) = self.open_segment(core, bytes, reserve) {
                // A disk that takes no further segment is filled up to the last open one.
                return self.take_room(core, bytes, true).ok_or(error);
            }
        }
        Err(StoreError::Busy { writers_max: core.options.writers_max })
    }

    fn retire_fullest(&self, core: &Core) {
        let mut guard = lock(&self.table);
        let table = &mut *guard;
        let room_left = |number: &u32| match table.slots.get(number) {
            Some(Slot { phase: Phase::Open { tail, capacity, .. }, .. }) => capacity - tail,
            _ => 0,
        };
        let Some(fullest) = table.open.iter().copied().min_by_key(|number| room_left(number)) else { return };
        self.retire(core, table, fullest);
    }

    fn retire(&self, core: &Core, table: &mut Table, number: u32) {
        table.open.retain(|open| *open != number);
        let Some(slot) = table.slots.get_mut(&number) else { return };
        slot.file = None;
        let Phase::Open { tail, writers, .. } = slot.phase else { return };
        if writers == 0 {
            slot.phase = Phase::Sealing { tail };
            core.chore(Chore::Seal { number });
        } else {
            slot.phase = Phase::Full { tail, writers };
        }
        table.cached.push_back(number);
    }

    /// Lets no writer into an open segment any more.
    pub fn retire_one(&self, core: &Core, number: u32) {
        self.retire(core, &mut lock(&self.table), number);
    }

    /// Lets no writer into the open segments; those that none uses are sealed.
    pub fn retire_all(&self, core: &Core) {
        let mut table = lock(&self.table);
        for number in table.open.clone() {
            self.retire(core, &mut table, number);
        }
    }

    fn open_segment(&self, core: &Core, bytes: u64, reserve: u64) -> Result<(), StoreError> {
        if core.options.capacity_bytes_max > 0 {
            measure_held(core)?;
        }
        let free = core.space()?.free;
        let spare = free.saturating_sub(reserve);
        let full = || StoreError::DiskFull { path: core.dir.clone(), free, reserve };
        while let Some((segment, tail)) = self.take_reopenable() {
            let capacity = core.options.segment_bytes.min(tail + spare / PAGE * PAGE);
            if tail + bytes > capacity {
                self.set_phase(segment.number, Phase::Sealed { tail });
                continue;
            }
            let number = segment.number;
            return match self.reopen(core, &segment, tail, capacity) {
                Ok(file) => {
                    self.set_open(&segment, file, tail, capacity);
                    Ok(())
                }
                Err(error) => {
                    if matches!(*lock(&segment.marks), Marks::None) {
                        self.set_phase(number, Phase::Sealing { tail });
                        core.chore(Chore::Seal { number });
                    } else {
                        self.set_phase(number, Phase::Sealed { tail });
                    }
                    Err(error)
                }
            };
        }
        let needed = (SEGMENT_HEAD_BYTES + bytes).next_multiple_of(PAGE);
        if spare < needed {
            return Err(full());
        }
        let capacity = core.options.segment_bytes.max(needed).min(spare / PAGE * PAGE);
        let number = {
            let mut table = lock(&self.table);
            let number = table.next_number;
            table.next_number = number.checked_add(1).ok_or_else(full)?;
            number
        };
        let segment = Arc::new(Segment::new(&core.segments_dir(), number, Marks::None));
        let created = self.create(core, &segment, capacity);
        match created {
            Ok(file) => {
                self.add(Arc::clone(&segment), Phase::Busy { tail: SEGMENT_HEAD_BYTES });
                self.set_open(&segment, file, SEGMENT_HEAD_BYTES, capacity);
                Ok(())
            }
            Err(error) => {
                _ = core.disk.remove(&segment.path);
                Err(error)
            }
        }
    }

    fn create(&self, core: &Core, segment: &Segment, capacity: u64) -> Result<Arc<dyn DiskFile>, StoreError> {
        let at = |error| StoreError::io("create", &segment.path, error);
        let file = core.disk.create(&segment.path).map_err(at)?;
        if !file.allocate(capacity).map_err(at)? {
            core.is_sparse.store(true, Ordering::Relaxed);
        }
        let stamp = core.superblock.secret.stamp(segment.number, 0);
        file.write_at(&encode_segment_head(segment.number, stamp), 0).map_err(at)?;
        file.sync().map_err(|error| core.fail("sync", &segment.path, &error))?;
        let dir = core.segments_dir();
        core.disk.sync_dir(&dir).map_err(|error| core.fail("sync", &dir, &error))?;
        Ok(file)
    }

    fn reopen(
        &self,
        core: &Core,
        segment: &Arc<Segment>,
        tail: u64,
        capacity: u64,
    ) -> Result<Arc<dyn DiskFile>, StoreError> {
        let file = self.file(core, segment)?;
        let mut marks = lock(&segment.marks);
        self.settle_states(core, segment, &*file, tail)?;
        let index_path = segment.index_path();
        // The index goes first: an index that knows less than its segment would hide acknowledged shards.
        match core.disk.remove(&index_path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::io("remove", &index_path, error)),
        }
        let dir = core.segments_dir();
        core.disk.sync_dir(&dir).map_err(|error| core.fail("sync", &dir, &error))?;
        *marks = Marks::None;
        let at = |error| StoreError::io("grow", &segment.path, error);
        if !file.allocate(capacity).map_err(at)? {
            core.is_sparse.store(true, Ordering::Relaxed);
        }
        file.sync().map_err(|error| core.fail("sync", &segment.path, &error))?;
        Ok(file)
    }

    /// Makes the records say what the index file said. A death that a crash cut short may be in one and not in
    /// the other: as long as there is an index file it decides, and after it the records alone.
    fn settle_states(
        &self,
        core: &Core,
        segment: &Segment,
        file: &dyn DiskFile,
        tail: u64,
    ) -> Result<(), StoreError> {
        let mut wrong = Vec::new();
        scan(file, &core.superblock.secret, segment.number, tail, |found| {
            let (at, key, is_dead) = match found {
                Found::Record { at, footer } => (at, footer.key, false),
                Found::Dead { at, key } => (at, key, true),
                _ => return,
            };
            let current = core.index.get(key);
            let is_live =
                current.is_some_and(|entry| entry.segment == segment.number && entry.record_at() == at);
            if is_live == is_dead {
                wrong.push((at, if is_live { STATE_LIVE } else { STATE_DEAD }));
            }
        });
        for (at, state) in &wrong {
            file.write_at(&[*state], at + STATE_AT)
                .map_err(|error| StoreError::io("write to", &segment.path, error))?;
        }
        // Also where nothing was wrong: a killed process may have left it in the cache alone.
        file.sync().map_err(|error| core.fail("sync", &segment.path, &error))
    }

    fn take_reopenable(&self) -> Option<(Arc<Segment>, u64)> {
        let mut guard = lock(&self.table);
        let table = &mut *guard;
        while let Some(number) = table.reopenable.pop() {
            if let Some(slot) = table.slots.get_mut(&number)
                && let Phase::Sealed { tail } = slot.phase
            {
                slot.phase = Phase::Busy { tail };
                return Some((Arc::clone(&slot.segment), tail));
            }
        }
        None
    }

    fn set_open(&self, segment: &Segment, file: Arc<dyn DiskFile>, tail: u64, capacity: u64) {
        *lock(&segment.file) = Some(Arc::clone(&file));
        let mut table = lock(&self.table);
        table.cached.retain(|cached| *cached != segment.number);
        table.open.push(segment.number);
        if let Some(slot) = table.slots.get_mut(&segment.number) {
            slot.phase = Phase::Open { tail, capacity, writers: 0 };
            slot.file = Some(file);
        }
    }

    pub fn set_phase(&self, number: u32, phase: Phase) {
        if let Some(slot) = lock(&self.table).slots.get_mut(&number) {
            slot.phase = phase;
        }
    }

    pub fn phase(&self, number: u32) -> Option<Phase> {
        lock(&self.table).slots.get(&number).map(|slot| slot.phase)
    }

    /// Takes a sealed segment for compaction or removal, so that nobody else does.
    pub fn take_sealed(&self, number: u32) -> Option<(Arc<Segment>, u64)> {
        let mut table = lock(&self.table);
        let slot = table.slots.get_mut(&number)?;
        let Phase::Sealed { tail } = slot.phase else { return None };
        slot.phase = Phase::Busy { tail };
        Some((Arc::clone(&slot.segment), tail))
    }

    pub fn sealed(&self) -> Vec<(Arc<Segment>, u64)> {
        let table = lock(&self.table);
        let sealed = table.slots.values().filter_map(|slot| match slot.phase {
            Phase::Sealed { tail } => Some((Arc::clone(&slot.segment), tail)),
            _ => None,
        });
        sealed.collect()
    }

    pub fn all(&self) -> Vec<(Arc<Segment>, Phase)> {
        let table = lock(&self.table);
        table.slots.values().map(|slot| (Arc::clone(&slot.segment), slot.phase)).collect()
    }

    pub fn drop_segment(&self, number: u32) {
        lock(&self.table).slots.remove(&number);
    }

    /// Room that is set aside in open segments and not taken yet.
    pub fn open_room(&self) -> u64 {
        let table = lock(&self.table);
        let room = table.slots.values().map(|slot| match slot.phase {
            Phase::Open { tail, capacity, .. } => capacity.saturating_sub(tail),
            _ => 0,
        });
        room.sum()
    }
}

const _: () = assert!(SEGMENT_HEAD_BYTES.is_multiple_of(RECORD_ALIGN));
