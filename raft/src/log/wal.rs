//! The queue, the flusher and the segments.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use futures::channel::oneshot;
use openraft::storage::IOFlushed;

use super::disk::{Disk, DiskFile};
use super::format::{self, FRAME_HEADER_BYTES, Kind, RECORD_HEADER_BYTES, SECTOR_BYTES, SegmentHeader};
use super::recovery::{self, Recovered, segment_path};
use super::types::{Entry, LogId, Types, Vote};
use super::{LogConfig, LogError};
use crate::facts::GroupId;

/// What one sync covers at most, if it holds more than one submission.
const FRAME_BYTES_MAX: usize = 4 << 20;
/// What one submission holds at most, if it holds more than one entry.
const SUBMISSION_BYTES_MAX: usize = 1 << 20;
const ZEROES_PER_WRITE_BYTES: usize = 1 << 20;
/// Segments no longer needed are kept as spares up to this: a snapshot lets go of several at once, and one that is used
/// again saves the zeroing of another.
const SPARE_BYTES_MAX: u64 = 64 << 20;

/// The log of one node. Clones share it; the last one dropped writes what is queued and stops the flusher.
#[derive(Clone)]
pub struct Log(Arc<Owner>);

struct Owner {
    shared: Arc<Shared>,
    flusher: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    cache_bytes: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Submission>,
    groups: BTreeMap<GroupId, Group>,
    next_stamp: u64,
    failed: Option<String>,
    is_stopping: bool,
}

/// One segment's file. It is recycled only when no reader holds it.
#[derive(Debug)]
pub(super) struct Segment {
    pub sequence: u64,
    pub salt: u64,
    pub path: PathBuf,
    pub file: Box<dyn DiskFile>,
}

/// Where a record begins.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub segment: Arc<Segment>,
    pub offset: u64,
}

/// One entry of the log.
pub(super) struct Slot {
    pub log_id: LogId,
    /// Of its record.
    pub len: u32,
    /// Tells it from an entry of the same index that was truncated.
    pub stamp: u64,
    /// `None` until it is on disk.
    pub place: Option<Place>,
    /// `None` once it left memory; then it has a place.
    pub entry: Option<Entry>,
}

/// One group's part of the log, with all that was submitted.
#[derive(Default)]
pub(super) struct Group {
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    /// Consecutive.
    pub slots: VecDeque<Slot>,
    cached_bytes: usize,
    stored_bytes: u64,
    /// Slots at the front that left memory.
    evicted_count: usize,
    /// Of all entries ever pushed in this process.
    appended_bytes: u64,
    /// Segments before it hold nothing that this group needs, durably so.
    pub release_floor: u64,
}

impl Group {
    pub fn next_index(&self) -> Option<u64> {
        match (self.slots.back(), &self.purged) {
            (Some(last), _) => Some(last.log_id.index + 1),
            (None, Some(purged)) => Some(purged.index + 1),
            (None, None) => None,
        }
    }

    pub fn push(&mut self, slot: Slot) {
        self.cached_bytes += slot.len as usize;
        self.stored_bytes += u64::from(slot.len);
        self.appended_bytes += u64::from(slot.len);
        self.slots.push_back(slot);
    }

    /// `None`: nothing is kept.
    pub fn truncate_after(&mut self, last_kept: Option<u64>) {
        while self.slots.back().is_some_and(|slot| last_kept.is_none_or(|last| slot.log_id.index > last)) {
            if let Some(slot) = self.slots.pop_back() {
                self.stored_bytes -= u64::from(slot.len);
                if slot.entry.is_some() {
                    self.cached_bytes -= slot.len as usize;
                }
            }
        }
        self.evicted_count = self.evicted_count.min(self.slots.len());
    }

    pub fn purge(&mut self, upto: LogId) {
        while self.slots.front().is_some_and(|slot| slot.log_id.index <= upto.index) {
            if let Some(slot) = self.slots.pop_front() {
                self.stored_bytes -= u64::from(slot.len);
                match slot.entry {
                    Some(_) => self.cached_bytes -= slot.len as usize,
                    None => self.evicted_count -= 1,
                }
            }
        }
        if self.purged.as_ref().is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
    }

    /// The slot of an index.
    fn position(&self, index: u64) -> Option<usize> {
        let first = self.slots.front()?.log_id.index;
        let position = usize::try_from(index.checked_sub(first)?).ok()?;
        (position < self.slots.len()).then_some(position)
    }

    /// The first segment that is needed once a purge is durable, in segment `current`. What was changed since
    /// may not become durable: it lets go of nothing.
    fn floor_after_purge(&self, first_kept: FirstKept, current: u64) -> u64 {
        let Some((index, stamp)) = first_kept else { return current };
        let slot = self.position(index).and_then(|position| self.slots.get(position));
        let place = slot.filter(|slot| slot.stamp == stamp).and_then(|slot| slot.place.as_ref());
        place.map_or(0, |place| place.segment.sequence)
    }

    fn evict(&mut self, cache_bytes: usize) {
        while self.cached_bytes > cache_bytes {
            match self.slots.get_mut(self.evicted_count) {
                Some(slot) if slot.place.is_some() => {
                    slot.entry = None;
                    self.cached_bytes -= slot.len as usize;
                    self.evicted_count += 1;
                }
                _ => break,
            }
        }
    }
}

/// What every segment repeats at its start, so that those before it can go: the last records of a kind.
#[derive(Debug, Default)]
pub(super) struct Carry {
    pub vote: Option<Vec<u8>>,
    pub purge: Option<Vec<u8>>,
}

/// Whom to tell that a submission is durable.
pub(super) enum Done {
    Nobody,
    Raft(IOFlushed<Types>),
    Signal(oneshot::Sender<io::Result<()>>),
}

impl Done {
    fn tell(self, result: Result<(), &str>) {
        let result = result.map_err(io::Error::other);
        match self {
            Self::Nobody => {}
            Self::Raft(callback) => callback.io_completed(result),
            Self::Signal(sender) => drop(sender.send(result)),
        }
    }
}

struct Submission {
    group: GroupId,
    records: Vec<u8>,
    record_count: u32,
    /// Index, stamp and offset within `records` of each entry.
    entries: Vec<(u64, u64, usize)>,
    mark: Option<(Kind, Vec<u8>)>,
    /// For a purge: what it leaves first.
    release: Option<FirstKept>,
    done: Done,
}

/// Index and stamp of the first entry that a purge leaves, if it leaves any. Where that is, is known once the purge
/// is durable, since it was submitted before.
type FirstKept = Option<(u64, u64)>;

/// An entry as it was found.
pub(super) enum Found {
    Memory(Entry),
    Disk { place: Place, len: u32, index: u64 },
}

impl Found {
    /// Reads the disk if it must.
    pub fn load(self) -> io::Result<Entry> {
        match self {
            Self::Memory(entry) => Ok(entry),
            Self::Disk { place, len, index } => {
                let mut record = vec![0; len as usize];
                place.segment.file.read_at(place.offset, &mut record)?;
                let payload = format::entry_payload(Bytes::from(record), index)?;
                rmp_serde::from_slice(&payload).map_err(io::Error::other)
            }
        }
    }
}

impl Log {
    /// Opens the log in `config.dir`, or begins one. Blocks on the disk.
    ///
    /// `salt` draws random numbers that nobody can guess.
    ///
    /// # Errors
    /// [`LogError::Corrupt`]: what was acknowledged would be lost. A torn tail is no error.
    pub fn open(
        disk: Arc<dyn Disk>,
        config: LogConfig,
        salt: impl FnMut() -> u64 + Send + 'static,
    ) -> Result<Self, LogError> {
        let Recovered { segments, mut groups, carry, offset, next_frame, spares, .. } =
            recovery::recover(&*disk, &config.dir)?;
        for group in groups.values_mut() {
            group.appended_bytes = group.stored_bytes;
            group.evict(config.cache_bytes);
        }
        let cache_bytes = config.cache_bytes;
        let mut writer = Writer {
            spares: Arc::new(Spares {
                disk: disk.clone(),
                config: config.clone(),
                state: Mutex::new(SpareState {
                    made_count: spares.iter().filter_map(|path| spare_number(path)).max().unwrap_or(0),
                    ready: spares,
                    is_making: false,
                }),
            }),
            disk,
            config,
            segments,
            offset,
            next_frame,
            carry,
            salt: Box::new(salt),
        };
        if writer.segments.is_empty() {
            let dir = writer.config.dir.clone();
            writer.rotate(0).map_err(|source| LogError::Io {
                action: "begin a log in",
                path: dir,
                source,
            })?;
        }
        let state = State { groups, next_stamp: 1, ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new(), cache_bytes });
        let flusher = std::thread::Builder::new().name("log-flusher".into()).spawn({
            let shared = shared.clone();
            move || writer.run(&shared)
        });
        let flusher = flusher.map_err(|source| LogError::Io {
            action: "start the flusher of",
            path: PathBuf::from("log"),
            source,
        })?;
        Ok(Self(Arc::new(Owner { shared, flusher: Mutex::new(Some(flusher)) })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.shared.lock()
    }

    /// `(last purged, last)`; the latter is the former where there are no entries.
    pub(crate) fn bounds(&self, group: GroupId) -> (Option<LogId>, Option<LogId>) {
        let state = self.state();
        let Some(group) = state.groups.get(&group) else { return (None, None) };
        let last = group.slots.back().map(|slot| slot.log_id);
        (group.purged, last.or(group.purged))
    }

    pub(crate) fn vote(&self, group: GroupId) -> Option<Vote> {
        self.state().groups.get(&group)?.vote
    }

    /// Bytes of the entries that are stored, and of all that were ever appended.
    #[must_use]
    pub fn bytes(&self, group: GroupId) -> (u64, u64) {
        let state = self.state();
        let Some(group) = state.groups.get(&group) else { return (0, 0) };
        (group.stored_bytes, group.appended_bytes)
    }

    /// The first index such that the entries from it on have at most `bytes`.
    #[must_use]
    pub fn index_before_last_bytes(&self, group: GroupId, bytes: u64) -> Option<u64> {
        let state = self.state();
        let mut left = bytes;
        let mut first = None;
        for slot in state.groups.get(&group)?.slots.iter().rev() {
            left = match left.checked_sub(u64::from(slot.len)) {
                Some(left) => left,
                None => break,
            };
            first = Some(slot.log_id.index);
        }
        first
    }

    /// Entries of `start..end` as far as they are stored, at least one of them, stopping at `bytes_max`.
    pub(super) fn find(&self, group: GroupId, start: u64, end: u64, bytes_max: usize) -> Vec<Found> {
        let state = self.state();
        let Some(group) = state.groups.get(&group) else { return Vec::new() };
        let Some(first) = group.slots.front().map(|slot| slot.log_id.index) else { return Vec::new() };
        let Some(from) = group.position(start.max(first)) else { return Vec::new() };
        let mut out = Vec::new();
        let mut bytes = 0;
        for slot in group.slots.range(from..) {
            bytes += slot.len as usize;
            if slot.log_id.index >= end || (!out.is_empty() && bytes > bytes_max) {
                break;
            }
            out.push(match (&slot.entry, &slot.place) {
                (Some(entry), _) => Found::Memory(entry.clone()),
                (None, Some(place)) => {
                    Found::Disk { place: place.clone(), len: slot.len, index: slot.log_id.index }
                }
                (None, None) => break,
            });
        }
        out
    }

    /// The entries are readable on return; `done` is told when they are durable.
    pub(super) fn append(
        &self,
        group: GroupId,
        entries: impl IntoIterator<Item = Entry>,
        done: Done,
    ) -> io::Result<()> {
        let mut submissions = Vec::new();
        let mut slots = Vec::new();
        let mut current = Submission::new(group);
        for entry in entries {
            let payload = rmp_serde::to_vec(&entry).map_err(io::Error::other)?;
            if !current.entries.is_empty() && current.records.len() + payload.len() > SUBMISSION_BYTES_MAX {
                submissions.push(std::mem::replace(&mut current, Submission::new(group)));
            }
            let log_id = entry.log_id;
            let offset = current.push(Kind::Entry, log_id.index, log_id.leader_id.term, &payload);
            current.entries.push((log_id.index, 0, offset));
            let len = (RECORD_HEADER_BYTES + payload.len()) as u32;
            slots.push(Slot { log_id, len, stamp: 0, place: None, entry: Some(entry) });
        }
        current.done = done;
        submissions.push(current);

        let mut state = self.state();
        let first_stamp = state.next_stamp;
        state.next_stamp += slots.len() as u64;
        let entries = submissions.iter_mut().flat_map(|submission| &mut submission.entries);
        for (entry, stamp) in entries.zip(first_stamp..) {
            entry.1 = stamp;
        }
        let log = state.groups.entry(group).or_default();
        for (mut slot, stamp) in slots.into_iter().zip(first_stamp..) {
            if let Some(next) = log.next_index()
                && next != slot.log_id.index
            {
                let why = format!("append of entry {} where {next} is next", slot.log_id.index);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            slot.stamp = stamp;
            log.push(slot);
        }
        self.submit(state, submissions)
    }

    pub(super) fn save_vote(&self, group: GroupId, vote: Vote, done: Done) -> io::Result<()> {
        let payload = rmp_serde::to_vec(&vote).map_err(io::Error::other)?;
        let mut submission = Submission::new(group);
        submission.push(Kind::Vote, 0, vote.leader_id.term, &payload);
        submission.mark = Some((Kind::Vote, payload));
        submission.done = done;
        let mut state = self.state();
        state.groups.entry(group).or_default().vote = Some(vote);
        self.submit(state, vec![submission])
    }

    pub(super) fn truncate_after(&self, group: GroupId, last_kept: Option<LogId>) -> io::Result<()> {
        let last_kept = last_kept.map(|log_id| log_id.index);
        let mut submission = Submission::new(group);
        let payload: &[u8] = if last_kept.is_some() { &[] } else { &[1] };
        submission.push(Kind::Truncate, last_kept.unwrap_or(0), 0, payload);
        let mut state = self.state();
        state.groups.entry(group).or_default().truncate_after(last_kept);
        self.submit(state, vec![submission])
    }

    pub(super) fn purge(&self, group: GroupId, upto: LogId) -> io::Result<()> {
        let payload = rmp_serde::to_vec(&upto).map_err(io::Error::other)?;
        let mut submission = Submission::new(group);
        submission.push(Kind::Purge, upto.index, upto.leader_id.term, &payload);
        submission.mark = Some((Kind::Purge, payload));
        let mut state = self.state();
        let log = state.groups.entry(group).or_default();
        log.purge(upto);
        submission.release = Some(log.slots.front().map(|slot| (slot.log_id.index, slot.stamp)));
        self.submit(state, vec![submission])
    }

    /// Queues, and tells the flusher. What is queued is bounded by what openraft has in flight.
    fn submit(&self, mut state: MutexGuard<'_, State>, submissions: Vec<Submission>) -> io::Result<()> {
        if let Some(why) = &state.failed {
            let why = why.clone();
            drop(state);
            for submission in submissions {
                submission.done.tell(Err(&why));
            }
            return Err(io::Error::other(why));
        }
        state.queue.extend(submissions);
        drop(state);
        self.0.shared.wake.notify_one();
        Ok(())
    }

    /// Writes what is queued and stops. Blocks until the flusher is gone; nothing may be submitted after.
    pub fn close(&self) {
        self.0.close();
    }
}

impl Owner {
    fn close(&self) {
        self.shared.lock().is_stopping = true;
        self.shared.wake.notify_one();
        if let Some(flusher) = self.flusher.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A flusher that panicked has told nobody, so that nothing it lost was acknowledged.
            drop(flusher.join());
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// No code that can panic runs with the lock held half-way through a change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Submission {
    fn new(group: GroupId) -> Self {
        Self {
            group,
            records: Vec::new(),
            record_count: 0,
            entries: Vec::new(),
            mark: None,
            release: None,
            done: Done::Nobody,
        }
    }

    fn push(&mut self, kind: Kind, index: u64, term: u64, payload: &[u8]) -> usize {
        let offset = self.records.len();
        format::push_record(&mut self.records, self.group, kind, index, term, payload);
        self.record_count += 1;
        offset
    }
}

/// What the flusher owns.
struct Writer {
    disk: Arc<dyn Disk>,
    config: LogConfig,
    segments: BTreeMap<u64, Arc<Segment>>,
    /// Where the next frame goes.
    offset: u64,
    next_frame: u64,
    carry: BTreeMap<GroupId, Carry>,
    salt: Box<dyn FnMut() -> u64 + Send>,
    spares: Arc<Spares>,
}

impl Writer {
    fn run(mut self, shared: &Shared) {
        loop {
            let mut state = shared.lock();
            while state.queue.is_empty() && !state.is_stopping {
                state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.queue.is_empty() {
                return;
            }
            let mut batch = Vec::new();
            let mut bytes = 0;
            while let Some(next) = state.queue.front() {
                bytes += next.records.len();
                if !batch.is_empty() && bytes > FRAME_BYTES_MAX {
                    break;
                }
                batch.extend(state.queue.pop_front());
            }
            drop(state);
            if let Err(why) = self.flush(shared, batch) {
                tracing::error!(%why, "the log failed; this voter stops");
                return;
            }
        }
    }

    fn flush(&mut self, shared: &Shared, batch: Vec<Submission>) -> Result<(), String> {
        let written = self.write(&batch);
        let mut state = shared.lock();
        let (segment, mut base) = match written {
            Ok(written) => written,
            Err(error) => {
                let why = format!("write log in {:?}: {error}", self.config.dir);
                state.failed = Some(why.clone());
                let queued: Vec<_> = state.queue.drain(..).collect();
                drop(state);
                for submission in batch.into_iter().chain(queued) {
                    submission.done.tell(Err(&why));
                }
                return Err(why);
            }
        };
        for submission in &batch {
            let group = state.groups.entry(submission.group).or_default();
            for &(index, stamp, offset) in &submission.entries {
                if let Some(position) = group.position(index)
                    && let Some(slot) = group.slots.get_mut(position)
                    && slot.stamp == stamp
                {
                    slot.place = Some(Place { segment: segment.clone(), offset: base + offset as u64 });
                }
            }
            if let Some(first_kept) = submission.release {
                let floor = group.floor_after_purge(first_kept, segment.sequence);
                group.release_floor = floor.max(group.release_floor);
            }
            group.evict(shared.cache_bytes);
            base += submission.records.len() as u64;
        }
        let floor = state.groups.values().map(|group| group.release_floor).min().unwrap_or(0);
        drop(state);
        for submission in batch {
            submission.done.tell(Ok(()));
        }
        self.release_before(floor.min(segment.sequence));
        Ok(())
    }

    /// Makes a batch durable; returns the segment and where in it the first submission's records begin.
    fn write(&mut self, batch: &[Submission]) -> io::Result<(Arc<Segment>, u64)> {
        let bytes: usize = batch.iter().map(|submission| submission.records.len()).sum();
        let mut frame = Vec::with_capacity(bytes + FRAME_HEADER_BYTES + SECTOR_BYTES as usize);
        frame.resize(FRAME_HEADER_BYTES, 0);
        let mut record_count = 0;
        let end = self.offset + (FRAME_HEADER_BYTES + bytes) as u64;
        let mut segment = self.newest()?;
        if end.next_multiple_of(SECTOR_BYTES) > self.config.segment_bytes {
            for (&group, carry) in &self.carry {
                let marks = [(Kind::Vote, &carry.vote), (Kind::Purge, &carry.purge)];
                for (kind, payload) in
                    marks.into_iter().filter_map(|(kind, payload)| Some((kind, payload.as_ref()?)))
                {
                    format::push_record(&mut frame, group, kind, 0, 0, payload);
                    record_count += 1;
                }
            }
            self.rotate((frame.len() + bytes) as u64)?;
            segment = self.newest()?;
        }
        let base = self.offset + frame.len() as u64;
        for submission in batch {
            frame.extend_from_slice(&submission.records);
            record_count += submission.record_count;
        }
        format::seal_frame(&mut frame, segment.salt, self.next_frame, record_count);
        segment.file.write_at(self.offset, &frame)?;
        segment.file.sync_data()?;
        self.next_frame += 1;
        self.offset += frame.len() as u64;
        for submission in batch {
            if let Some((kind, payload)) = &submission.mark {
                let carry = self.carry.entry(submission.group).or_default();
                match kind {
                    Kind::Vote => carry.vote = Some(payload.clone()),
                    _ => carry.purge = Some(payload.clone()),
                }
            }
        }
        Ok((segment, base))
    }

    fn newest(&self) -> io::Result<Arc<Segment>> {
        let newest = self.segments.last_key_value().map(|(_, segment)| segment.clone());
        newest.ok_or_else(|| io::Error::other("the log has no segment"))
    }

    /// Begins a segment. Its header is durable before it has its name, so that a named segment always has one.
    fn rotate(&mut self, frame_bytes: u64) -> io::Result<()> {
        let sequence = self.segments.last_key_value().map_or(0, |(sequence, _)| sequence + 1);
        let needed = (SECTOR_BYTES + frame_bytes).next_multiple_of(SECTOR_BYTES);
        let path = segment_path(&self.config.dir, sequence);
        let spare = self.spares.take(needed)?;
        let salt = (self.salt)();
        let file = self.disk.open(&spare)?;
        file.write_at(0, &SegmentHeader { sequence, first_frame: self.next_frame, salt }.encode())?;
        file.sync_data()?;
        self.disk.rename(&spare, &path)?;
        self.disk.sync_dir(&self.config.dir)?;
        self.segments.insert(sequence, Arc::new(Segment { sequence, salt, path, file }));
        self.offset = SECTOR_BYTES;
        if self.config.is_prepared_ahead {
            Spares::make_ahead(&self.spares);
        }
        Ok(())
    }

    /// Lets go of segments that no group needs. A failure costs space, never data: it is tried again.
    fn release_before(&mut self, floor: u64) {
        while let Some(oldest) = self.segments.first_entry() {
            if *oldest.key() >= floor {
                return;
            }
            let segment = oldest.remove();
            let path = segment.path.clone();
            let is_unread = Arc::into_inner(segment).is_some();
            if let Err(error) = self.spares.give(&path, is_unread) {
                tracing::warn!(?path, %error, "a log segment that is no longer needed stays");
            }
        }
    }
}

/// The number in a spare's name; no two spares share one.
fn spare_number(path: &Path) -> Option<u64> {
    let stem = path.file_stem()?.to_str()?;
    u64::from_str_radix(stem.rsplit('-').next()?, 16).ok()
}

/// Files for segments to come.
struct Spares {
    disk: Arc<dyn Disk>,
    config: LogConfig,
    state: Mutex<SpareState>,
}

struct SpareState {
    ready: Vec<PathBuf>,
    /// The highest number in the name of any spare so far.
    made_count: u64,
    is_making: bool,
}

impl Spares {
    fn lock(&self) -> MutexGuard<'_, SpareState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file of at least `bytes` and a segment's size, all of it allocated.
    fn take(&self, bytes: u64) -> io::Result<PathBuf> {
        let bytes = bytes.max(self.config.segment_bytes);
        while let Some(path) = { self.lock().ready.pop() } {
            if self.disk.open(&path)?.len()? == bytes {
                return Ok(path);
            }
            self.disk.remove(&path)?;
        }
        self.make(bytes)
    }

    fn make(&self, bytes: u64) -> io::Result<PathBuf> {
        let number = {
            let mut state = self.lock();
            state.made_count += 1;
            state.made_count
        };
        let path = self.config.dir.join(format!("spare-new-{number:016x}.wal"));
        let file = self.disk.open(&path)?;
        file.set_len(0)?;
        let zeroes = vec![0; ZEROES_PER_WRITE_BYTES];
        let mut at = 0;
        while at < bytes {
            let piece = (bytes - at).min(zeroes.len() as u64);
            file.write_at(at, &zeroes[..piece as usize])?;
            at += piece;
        }
        file.sync_data()?;
        Ok(path)
    }

    /// Takes back a segment's file: to be used again, or to be removed if there are spares enough.
    fn give(&self, path: &Path, is_unread: bool) -> io::Result<()> {
        let spare_bytes = self.lock().ready.len() as u64 * self.config.segment_bytes;
        let is_wanted = is_unread && spare_bytes < SPARE_BYTES_MAX;
        if !is_wanted {
            self.disk.remove(path)?;
            return self.disk.sync_dir(&self.config.dir);
        }
        let number = {
            let mut state = self.lock();
            state.made_count += 1;
            state.made_count
        };
        let spare = self.config.dir.join(format!("spare-used-{number:016x}.wal"));
        self.disk.rename(path, &spare)?;
        self.disk.sync_dir(&self.config.dir)?;
        self.lock().ready.push(spare);
        Ok(())
    }

    fn make_ahead(spares: &Arc<Self>) {
        {
            let mut state = spares.lock();
            if state.is_making || !state.ready.is_empty() {
                return;
            }
            state.is_making = true;
        }
        let made = std::thread::Builder::new().name("log-zeroes".into()).spawn({
            let spares = spares.clone();
            move || {
                let made = spares.make(spares.config.segment_bytes);
                let mut state = spares.lock();
                state.is_making = false;
                // Without one the flusher makes its own, and reports what is wrong with the disk.
                state.ready.extend(made.ok());
            }
        });
        if made.is_err() {
            spares.lock().is_making = false;
        }
    }
}
