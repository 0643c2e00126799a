//! From the segments on disk back to the log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LogError;
use super::disk::Disk;
use super::format::{self, Kind, RECORD_HEADER_BYTES, Record, SECTOR_BYTES, SegmentHeader};
use super::types::{Entry, LogId, Vote};
use super::wal::{Carry, Group, Place, Segment, Slot};
use crate::facts::GroupId;

pub(super) struct Recovered {
    pub segments: BTreeMap<u64, Arc<Segment>>,
    pub groups: BTreeMap<GroupId, Group>,
    pub carry: BTreeMap<GroupId, Carry>,
    /// Where the next frame goes in the newest segment.
    pub offset: u64,
    pub next_frame: u64,
    /// Up to where a purge must reach, for the log to be whole.
    purged_until: BTreeMap<GroupId, u64>,
    /// Files that may be used for segments.
    pub spares: Vec<PathBuf>,
}

pub(super) fn segment_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("segment-{sequence:016x}.wal"))
}

/// Reads every segment of `dir` and syncs the newest, so that what is found is also durable.
pub(super) fn recover(disk: &dyn Disk, dir: &Path) -> Result<Recovered, LogError> {
    let io = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| LogError::Io { action, path, source }
    };
    disk.create_dir_all(dir).map_err(io("create directory", dir))?;
    let mut sequences = Vec::new();
    let mut spares = Vec::new();
    for name in disk.list(dir).map_err(io("list directory", dir))? {
        if let Some(hex) = name.strip_prefix("segment-").and_then(|rest| rest.strip_suffix(".wal")) {
            let corrupt = |_| LogError::Corrupt { path: dir.join(&name), offset: 0, why: "odd name".into() };
            sequences.push(u64::from_str_radix(hex, 16).map_err(corrupt)?);
        } else if name.starts_with("spare-") {
            spares.push(dir.join(name));
        }
    }
    sequences.sort_unstable();
    let mut out = Recovered {
        segments: BTreeMap::new(),
        groups: BTreeMap::new(),
        carry: BTreeMap::new(),
        offset: 0,
        next_frame: 0,
        purged_until: BTreeMap::new(),
        spares,
    };
    for (i, &sequence) in sequences.iter().enumerate() {
        let path = segment_path(dir, sequence);
        let file = disk.open(&path).map_err(io("open log segment", &path))?;
        let len = file.len().map_err(io("measure log segment", &path))?;
        let mut bytes = vec![0; len as usize];
        file.read_at(0, &mut bytes).map_err(io("read log segment", &path))?;
        let corrupt =
            |offset: usize, why: String| LogError::Corrupt { path: path.clone(), offset: offset as u64, why };
        let header = SegmentHeader::decode(&bytes).map_err(|why| corrupt(0, why))?;
        if header.sequence != sequence || sequence != sequences[0] + i as u64 {
            return Err(corrupt(0, "a segment before it is missing".into()));
        }
        if i == 0 {
            out.next_frame = header.first_frame;
        } else if header.first_frame != out.next_frame {
            let why = format!("it begins with frame {}, expected {}", header.first_frame, out.next_frame);
            return Err(corrupt(0, why));
        }
        let segment = Arc::new(Segment { sequence, salt: header.salt, path: path.clone(), file });
        let mut at = SECTOR_BYTES as usize;
        while let Some(frame) = bytes.get(at..).and_then(|rest| format::frame_at(rest, header.salt)) {
            if frame.number != out.next_frame {
                break;
            }
            let base = at + format::FRAME_HEADER_BYTES;
            for record in format::records(frame.records) {
                let record = record.map_err(|why| corrupt(at, why))?;
                out.replay(&segment, base, &record).map_err(|why| corrupt(base + record.offset, why))?;
            }
            out.next_frame += 1;
            at += frame.len;
        }
        let mut later = (at..bytes.len()).step_by(SECTOR_BYTES as usize);
        if let Some(later) = later.find(|&later| format::frame_at(&bytes[later..], header.salt).is_some()) {
            let why = format!("frame {} does not verify, a later one at byte {later} does", out.next_frame);
            return Err(corrupt(at, why));
        }
        out.offset = at as u64;
        if i + 1 == sequences.len() {
            segment.file.sync_data().map_err(io("sync log segment", &path))?;
        }
        out.segments.insert(sequence, segment);
    }
    for (id, until) in &out.purged_until {
        let purged = out.groups.get(id).and_then(|group| group.purged.as_ref());
        if purged.is_none_or(|purged| purged.index < *until) {
            let why = format!("entries up to {until} of group {} are missing", id.0);
            return Err(LogError::Corrupt { path: dir.to_path_buf(), offset: 0, why });
        }
    }
    for group in out.groups.values_mut() {
        group.release_floor = match group.slots.front().and_then(|slot| slot.place.as_ref()) {
            Some(place) => place.segment.sequence,
            None => sequences.last().copied().unwrap_or(0),
        };
    }
    Ok(out)
}

impl Recovered {
    fn replay(&mut self, segment: &Arc<Segment>, base: usize, record: &Record<'_>) -> Result<(), String> {
        let group = self.groups.entry(record.group).or_default();
        let carry = self.carry.entry(record.group).or_default();
        match record.kind {
            Kind::Entry => {
                let entry: Entry = decode(record.payload)?;
                if group.purged.as_ref().is_some_and(|purged| record.index <= purged.index) {
                    return Ok(());
                }
                let expected = group.next_index().unwrap_or(record.index);
                if entry.log_id.index != record.index || record.index < expected {
                    return Err(format!("entry {} where {expected} was expected", record.index));
                }
                if record.index > expected {
                    // What is between was in segments that were let go: a purge further on says so.
                    group.truncate_after(None);
                    self.purged_until.insert(record.group, record.index - 1);
                }
                let len = RECORD_HEADER_BYTES + record.payload.len();
                group.push(Slot {
                    log_id: entry.log_id,
                    len: len as u32,
                    stamp: 0,
                    place: Some(Place { segment: segment.clone(), offset: (base + record.offset) as u64 }),
                    entry: Some(entry),
                });
            }
            Kind::Vote => {
                let vote: Vote = decode(record.payload)?;
                group.vote = Some(vote);
                carry.vote = Some(record.payload.to_vec());
            }
            Kind::Truncate => group.truncate_after(record.payload.is_empty().then_some(record.index)),
            Kind::Purge => {
                let log_id: LogId = decode(record.payload)?;
                group.purge(log_id);
                carry.purge = Some(record.payload.to_vec());
            }
        }
        Ok(())
    }
}

fn decode<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    rmp_serde::from_slice(payload).map_err(|error| format!("a record does not decode: {error}"))
}
