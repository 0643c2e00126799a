//! What a start does: learn which shards the segments hold.
//!
//! A sealed segment's index file says; other segments are read record by record. Of those, a record whose
//! sequence is covered by a later one's `durable_through` was acknowledged or could have been: its footer is
//! enough. The few after that may be torn by the crash: only whole cells make them shards.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::{Core, lock};
use super::disk::DiskFile;
use super::error::StoreError;
use super::format::{
    DEAD_MARK_BYTES, INDEX_ENTRY_BYTES, INDEX_HEAD_BYTES, RECORD_ALIGN, RecordFooter, SegmentIndex,
    parse_index,
};
use super::index::{Entry, Index};
use super::janitor::{Chore, punch};
use super::scan::{Found, cells_hold, scan};
use super::segment::{Marks, Phase, Segment, segment_path};
use crate::ids::ShardKey;

/// Damage seen at a start: set aside, to be repaired from the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    pub path: PathBuf,
    pub offset: u64,
    pub what: String,
}

/// What a start found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Shards that can be read.
    pub shards: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Writes that the last run did not acknowledge; their room is given back.
    pub unfinished: u64,
    pub damaged: Vec<Damage>,
    /// Segments that had to be read record by record.
    pub scanned_segments: u64,
}

/// A shard found, which others of the same key may outdo.
struct Candidate {
    entry: Entry,
    key: ShardKey,
    sequence: u64,
}

/// A scanned record that may be torn.
struct Unproven {
    file: Arc<dyn DiskFile>,
    candidate: Candidate,
    footer: RecordFooter,
}

struct Recovery<'c> {
    core: &'c Core,
    report: RecoveryReport,
    candidates: Vec<Candidate>,
    unproven: Vec<Unproven>,
    /// The highest sequence that is known durable, and the highest seen.
    durable_through: u64,
    sequence: u64,
}

/// Fills the index and the segments; returns the last sequence in use.
///
/// # Errors
/// The directory cannot be read, or the device fails a sync. Damage in a segment is reported, never an error.
pub fn recover(core: &mut Core) -> Result<(RecoveryReport, u64), StoreError> {
    let segments = list(core)?;
    let mut recovery = Recovery {
        core,
        report: RecoveryReport::default(),
        candidates: Vec::new(),
        unproven: Vec::new(),
        durable_through: 0,
        sequence: 0,
    };
    for segment in segments {
        if !recovery.by_index(&segment)? {
            recovery.by_scan(&segment)?;
        }
    }
    let mut dead = recovery.prove();
    let Recovery { mut report, mut candidates, sequence, .. } = recovery;

    candidates.sort_unstable_by_key(|found| (found.key, std::cmp::Reverse(found.sequence)));
    candidates.dedup_by(|later, first| {
        let is_same = later.key == first.key;
        if is_same {
            dead.push(later.entry);
        }
        is_same
    });
    for found in &candidates {
        core.admit(&found.entry);
        report.bytes += found.entry.len();
    }
    report.shards = candidates.len() as u64;
    core.index = Index::new(candidates.into_iter().map(|found| (found.key, found.entry)));
    // What lost to a later record must not come back when that one is deleted.
    core.bury(&dead)?;
    core.segments.settle(core, &report);
    Ok((report, sequence))
}

/// The segments of the directory; leftovers of a crash are removed.
fn list(core: &Core) -> Result<Vec<Arc<Segment>>, StoreError> {
    let dir = core.segments_dir();
    let names = core.disk.list(&dir).map_err(|error| StoreError::io("list", &dir, error))?;
    let number = |name: &str, suffix: &str| -> Option<u32> { name.strip_suffix(suffix)?.parse().ok() };
    let mut segments = BTreeMap::new();
    for found in names.iter().filter_map(|name| number(name, ".seg")) {
        segments.insert(found, Arc::new(Segment::new(&dir, found, Marks::None)));
    }
    let is_leftover = |name: &&String| {
        name.ends_with(".idx.tmp") || number(name, ".idx").is_some_and(|found| !segments.contains_key(&found))
    };
    for name in names.iter().filter(is_leftover) {
        let path = dir.join(name);
        core.disk.remove(&path).map_err(|error| StoreError::io("remove", &path, error))?;
    }
    // An index file that a killed process removed must not come back, nor one that is believed vanish.
    core.disk.sync_dir(&dir).map_err(|error| StoreError::io("sync", &dir, error))?;
    Ok(segments.into_values().collect())
}

impl Recovery<'_> {
    fn damage(&mut self, path: PathBuf, offset: u64, what: impl Into<String>) {
        self.report.damaged.push(Damage { path, offset, what: what.into() });
    }

    /// Takes a sealed segment by its index file; `false` where there is none that holds.
    fn by_index(&mut self, segment: &Arc<Segment>) -> Result<bool, StoreError> {
        let path = segment.index_path();
        let index = match self.read_index(segment) {
            Ok(Some(index)) => index,
            Ok(None) => return Ok(false),
            Err(what) => {
                self.damage(path.clone(), 0, format!("{what}; its segment was read instead"));
                // Deaths are no longer noted in it: it must not come back after a crash.
                self.core.disk.remove(&path).map_err(|error| StoreError::io("remove", &path, error))?;
                let dir = self.core.segments_dir();
                self.core.disk.sync_dir(&dir).map_err(|error| StoreError::io("sync", &dir, error))?;
                return Ok(false);
            }
        };
        self.durable_through = self.durable_through.max(index.durable_through);
        self.sequence = self.sequence.max(index.durable_through);
        let dead: HashSet<u32> = index.dead.iter().copied().collect();
        for of in index.entries.iter().filter(|of| !dead.contains(&of.at)) {
            self.sequence = self.sequence.max(of.sequence);
            let entry = Entry::new(segment.number, of);
            self.candidates.push(Candidate { entry, key: of.key, sequence: of.sequence });
        }
        let marks_at = (INDEX_HEAD_BYTES + index.entries.len() * INDEX_ENTRY_BYTES) as u64;
        *lock(&segment.marks) = Marks::Ready { slots: index.dead.len() as u32, marks_at };
        self.core.segments.add(Arc::clone(segment), Phase::Sealed { tail: index.tail });
        Ok(true)
    }

    fn read_index(&self, segment: &Segment) -> Result<Option<SegmentIndex>, String> {
        let failed = |error: std::io::Error| error.to_string();
        let log = match self.core.disk.open(&segment.index_path()) {
            Ok(log) => log,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        // A killed process may have noted deaths that only the cache holds: what is believed must last.
        log.sync().map_err(failed)?;
        let segment_len = self.core.disk.open(&segment.path).and_then(|file| file.size()).map_err(failed)?;
        let len = log.size().map_err(failed)?;
        let records_max = segment_len / RECORD_ALIGN + 1;
        let len_max = INDEX_HEAD_BYTES as u64 + records_max * (INDEX_ENTRY_BYTES + DEAD_MARK_BYTES) as u64;
        if len > len_max {
            return Err(format!("{len} bytes are too many for its segment"));
        }
        let mut bytes = vec![0; len as usize];
        let read = log.read_at(&mut bytes, 0).map_err(failed)?;
        let stamp = self.core.superblock.secret.index_stamp(segment.number);
        let index = parse_index(&bytes[..read], stamp).map_err(|error| error.to_string())?;
        if index.tail > segment_len {
            return Err(format!("it describes {} bytes and the segment has {segment_len}", index.tail));
        }
        Ok(Some(index))
    }

    /// Takes a segment by its records.
    fn by_scan(&mut self, segment: &Arc<Segment>) -> Result<(), StoreError> {
        self.report.scanned_segments += 1;
        let opened = self.core.disk.open(&segment.path).and_then(|file| Ok((file.size()?, file)));
        let (len, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.damage(segment.path.clone(), 0, format!("cannot be opened: {error}"));
                self.core.segments.add(Arc::clone(segment), Phase::Busy { tail: 0 });
                return Ok(());
            }
        };
        // What a killed process wrote may be in the cache alone: make it durable, then ask the device.
        file.sync().map_err(|error| StoreError::io("sync", &segment.path, error))?;
        file.forget_cache();
        let (mut unfinished, mut damaged, mut is_unreadable) = (Vec::new(), Vec::new(), false);
        let mut records: Vec<(Candidate, RecordFooter)> = Vec::new();
        let tail = scan(&*file, &self.core.superblock.secret, segment.number, len, |found| match found {
            Found::Record { at, footer } => {
                let of = footer.index_entry(at);
                let entry = Entry::new(segment.number, &of);
                records.push((Candidate { entry, key: of.key, sequence: of.sequence }, footer));
            }
            Found::Dead { .. } => {}
            Found::Unfinished { at, end } => unfinished.push((at, end)),
            Found::Damaged { at, what } => damaged.push((at, what)),
            Found::Unreadable { at } => {
                is_unreadable = true;
                damaged.push((at, "the device reports an error"));
            }
        });
        for (at, what) in &damaged {
            self.damage(segment.path.clone(), *at, *what);
        }
        let mut starts: Vec<u64> = records.iter().map(|(found, _)| found.entry.record_at()).collect();
        starts.extend(unfinished.iter().map(|(at, _)| *at));
        starts.extend(damaged.iter().map(|(at, _)| *at));
        starts.sort_unstable();
        for (at, end) in &unfinished {
            let next = starts.get(starts.partition_point(|start| start <= at)).unwrap_or(&len);
            if let Err(error) = punch(&*file, at + RECORD_ALIGN, *next.min(end)) {
                tracing::warn!(path = ?segment.path, at, %error, "room was not given back");
            }
        }
        self.report.unfinished += unfinished.len() as u64;
        let is_lost = records.is_empty() && !damaged.is_empty();
        for (candidate, footer) in records {
            self.durable_through = self.durable_through.max(footer.durable_through);
            self.sequence = self.sequence.max(footer.sequence);
            // Bounded by the disk's unsealed segments; proven ones are let go at the end of each.
            self.unproven.push(Unproven { file: Arc::clone(&file), candidate, footer });
        }
        self.let_go_of_proven();
        // Damage at the end is not cut off.
        let tail = if damaged.iter().any(|(at, _)| *at >= tail) { len } else { tail };
        let phase = if is_unreadable || is_lost {
            // Kept as it is: what cannot be read now may be readable later, or tell what happened.
            Phase::Busy { tail: len }
        } else {
            Phase::Sealing { tail }
        };
        self.core.segments.add(Arc::clone(segment), phase);
        Ok(())
    }

    fn let_go_of_proven(&mut self) {
        let durable_through = self.durable_through;
        let (proven, unproven) =
            self.unproven.drain(..).partition(|found| found.footer.sequence <= durable_through);
        let proven: Vec<Unproven> = proven;
        self.unproven = unproven;
        self.candidates.extend(proven.into_iter().map(|found| found.candidate));
    }

    /// Reads what a crash may have torn; returns what it did tear.
    fn prove(&mut self) -> Vec<Entry> {
        self.let_go_of_proven();
        let mut torn = Vec::new();
        for Unproven { file, candidate, footer } in std::mem::take(&mut self.unproven) {
            let body = candidate.entry.record_at() + candidate.entry.body_at() as u64;
            match cells_hold(&*file, body, &footer) {
                Ok(true) => self.candidates.push(candidate),
                Ok(false) => {
                    self.report.unfinished += 1;
                    torn.push(candidate.entry);
                }
                Err(error) => {
                    let path = segment_path(&self.core.segments_dir(), candidate.entry.segment);
                    self.damage(path, body, format!("shard {}: {error}", candidate.key));
                }
            }
        }
        torn
    }
}

impl super::segment::Segments {
    /// Sends what was found to its next phase.
    fn settle(&self, core: &Core, report: &RecoveryReport) {
        for (segment, phase) in self.all() {
            match phase {
                Phase::Sealing { .. } => core.chore(Chore::Seal { number: segment.number }),
                Phase::Sealed { .. } if segment.live_shards.load(Ordering::Relaxed) == 0 => {
                    core.chore(Chore::Punch { number: segment.number, from: 0, to: 0 });
                }
                _ => {}
            }
        }
        tracing::info!(
            dir = ?core.dir, shards = report.shards, bytes = report.bytes, unfinished = report.unfinished,
            damaged = report.damaged.len(), scanned_segments = report.scanned_segments, "disk opened"
        );
        self.offer_reopening(core);
    }
}
