//! The second thread of a disk: it gives room back and seals segments, off the way of commits.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use super::core::{Core, lock};
use super::disk::DiskFile;
use super::error::StoreError;
use super::format::{HEADER_BYTES, STATE_AT, STATE_DEAD, SegmentIndex, encode_dead_mark, encode_index};
use super::scan::{Found, scan};
use super::segment::{Marks, PAGE, Phase, Segment};

pub enum Chore {
    /// A writer left without finishing.
    GiveBack {
        file: Arc<dyn DiskFile>,
        path: PathBuf,
        at: u64,
        end: u64,
    },
    /// Nobody needs these bytes.
    Punch {
        number: u32,
        from: u64,
        to: u64,
    },
    /// The last writer of a full segment left.
    Seal {
        number: u32,
    },
    Stop,
}

pub fn run(core: &Core, chores: &mpsc::Receiver<Chore>) {
    while let Ok(chore) = chores.recv() {
        if matches!(chore, Chore::Stop) {
            return;
        }
        if core.check_working().is_err() {
            continue;
        }
        match chore {
            Chore::GiveBack { file, path, at, end } => {
                let given = file
                    .write_at(&[STATE_DEAD], at + STATE_AT)
                    .and_then(|()| punch(&*file, at + HEADER_BYTES as u64, end));
                if let Err(error) = given {
                    tracing::warn!(?path, at, %error, "room was not given back");
                }
            }
            Chore::Punch { number, from, to } => {
                let Some(segment) = core.segments.get(number) else { continue };
                if let Some(outlines) = core.outlines() {
                    outlines.punch(number, from, to);
                }
                match core.segments.file(core, &segment) {
                    Ok(file) => {
                        if let Err(error) = punch(&*file, from, to) {
                            tracing::warn!(path = ?segment.path, from, %error, "room was not given back");
                        }
                    }
                    Err(error) => tracing::warn!(%error, "room was not given back"),
                }
                remove_if_dead(core, &segment);
            }
            Chore::Seal { number } => {
                let Some(segment) = core.segments.get(number) else { continue };
                let Some(Phase::Sealing { tail }) = core.segments.phase(number) else { continue };
                if let Err(error) = seal(core, &segment, tail) {
                    // The next start reads the segment itself.
                    *lock(&segment.marks) = Marks::None;
                    tracing::warn!(%error, "segment has no index");
                }
                core.segments.set_phase(number, Phase::Sealed { tail });
                remove_if_dead(core, &segment);
            }
            Chore::Stop => {}
        }
    }
}

/// Gives the whole pages of a range back.
pub fn punch(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let (from, to) = (from.next_multiple_of(PAGE), to / PAGE * PAGE);
    if from < to { file.punch(from, to - from) } else { Ok(()) }
}

/// Cuts a segment to its records and writes its index file.
fn seal(core: &Core, segment: &Segment, tail: u64) -> Result<(), StoreError> {
    let number = segment.number;
    // From here on deaths are noted: the scan may be past the record.
    *lock(&segment.marks) = Marks::Building(Vec::new());
    let file = core.disk.open(&segment.path).map_err(|error| StoreError::io("open", &segment.path, error))?;
    file.set_len(tail).map_err(|error| StoreError::io("cut", &segment.path, error))?;
    file.sync().map_err(|error| core.fail("sync", &segment.path, &error))?;

    let mut index = SegmentIndex { tail, ..SegmentIndex::default() };
    scan(&*file, &core.superblock.secret, number, tail, |found| {
        let Found::Record { at, footer } = found else { return };
        let current = core.index.get(footer.key);
        if current.is_some_and(|entry| entry.segment == number && entry.record_at() == at) {
            index.durable_through = index.durable_through.max(footer.sequence);
            index.entries.push(footer.index_entry(at));
        }
    });
    let path = segment.index_path();
    let draft = path.with_extension("idx.tmp");
    let io = |error| StoreError::io("write", &draft, error);
    let stamp = core.superblock.secret.index_stamp(number);
    let bytes = encode_index(&index, stamp);
    let log = core.disk.create(&draft).map_err(io)?;
    log.write_at(&bytes, 0).map_err(io)?;
    log.sync().map_err(|error| core.fail("sync", &draft, &error))?;

    let mut marks = lock(&segment.marks);
    let Marks::Building(dead) = &*marks else { return Ok(()) };
    for (slot, at) in dead.iter().enumerate() {
        let mark = encode_dead_mark(*at, slot as u32, stamp);
        log.write_at(&mark, bytes.len() as u64 + (slot * mark.len()) as u64).map_err(io)?;
    }
    if !dead.is_empty() {
        log.sync().map_err(|error| core.fail("sync", &draft, &error))?;
    }
    let slots = dead.len() as u32;
    core.disk.rename(&draft, &path).map_err(|error| StoreError::io("rename", &draft, error))?;
    // Deaths are noted in the new file even if its name were not durable yet.
    *marks = Marks::Ready { slots, marks_at: bytes.len() as u64 };
    let dir = core.segments_dir();
    core.disk.sync_dir(&dir).map_err(|error| core.fail("sync", &dir, &error))
}

/// Removes a sealed segment without live shards.
pub fn remove_if_dead(core: &Core, segment: &Segment) {
    if segment.live_shards.load(Ordering::Relaxed) > 0 {
        return;
    }
    let Some((_, tail)) = core.segments.take_sealed(segment.number) else { return };
    // Nobody else takes it now; it may have been taken up and filled before.
    let is_dead = segment.live_shards.load(Ordering::Relaxed) == 0;
    let removed = if is_dead { remove(core, segment) } else { Ok(()) };
    if !is_dead || removed.is_err() {
        core.segments.set_phase(segment.number, Phase::Sealed { tail });
    }
    if let Err(error) = removed {
        tracing::warn!(%error, "an empty segment stays");
    }
}

pub fn remove(core: &Core, segment: &Segment) -> Result<(), StoreError> {
    let index_path = segment.index_path();
    match core.disk.remove(&index_path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(StoreError::io("remove", &index_path, error)),
    }
    core.disk.remove(&segment.path).map_err(|error| StoreError::io("remove", &segment.path, error))?;
    let dir = core.segments_dir();
    core.disk.sync_dir(&dir).map_err(|error| core.fail("sync", &dir, &error))?;
    core.segments.drop_segment(segment.number);
    if let Some(outlines) = core.outlines() {
        outlines.remove(segment.number);
    }
    Ok(())
}
