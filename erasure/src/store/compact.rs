//! Moving the live shards of a mostly dead segment elsewhere, so that its file can go.
//!
//! Large dead records give their pages back by themselves: this is for small ones, which share pages.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::core::Core;
use super::disk::DiskFile;
use super::error::StoreError;
use super::flusher::Finish;
use super::format::{body_at, encode_header, record_bytes};
use super::index::Entry;
use super::janitor::remove_if_dead;
use super::outlines::Place;
use super::read::{Fault, Record};
use super::segment::{Phase, Segment};
use super::writer::Permit;
use crate::ids::ShardKey;
use crate::stripe::ShardHeader;

/// A segment is compacted when less than this part of what it holds on the device is live.
const LIVE_SHARE: u64 = 2;
/// A segment this empty is compacted although it holds no dead bytes: it costs a file.
const SPARSE_SHARE: u64 = 16;
/// Copies that wait for one sync.
const COPIES_PER_SYNC: usize = 64;

/// Compacts one segment, if one deserves it. Returns whether there may be more to do.
pub fn step(core: &Arc<Core>) -> Result<bool, StoreError> {
    let _permit = Permit::take(core)?;
    for (segment, tail) in core.segments.sealed() {
        let live = segment.live_bytes.load(Ordering::Relaxed);
        if live * LIVE_SHARE >= tail {
            continue;
        }
        let file = core.segments.file(core, &segment)?;
        let held = file.allocated().map_err(|error| StoreError::io("size of", &segment.path, error))?;
        if live * LIVE_SHARE >= held && live * SPARSE_SHARE >= tail {
            continue;
        }
        let number = segment.number;
        // It may have grown since it was listed.
        let Some((_, tail)) = core.segments.take_sealed(number) else { continue };
        let moved = move_all(core, &segment);
        core.segments.set_phase(number, Phase::Sealed { tail });
        moved?;
        remove_if_dead(core, &segment);
        return Ok(true);
    }
    Ok(false)
}

fn move_all(core: &Arc<Core>, segment: &Segment) -> Result<(), StoreError> {
    for group in core.index.in_segment(segment.number).chunks(COPIES_PER_SYNC) {
        let mut answers = Vec::with_capacity(group.len());
        for (key, entry) in group {
            if let Some(answer) = copy(core, *key, entry)? {
                answers.push(answer);
            }
        }
        for answer in answers {
            match answer.blocking_recv() {
                // Deleted or replaced meanwhile: nothing to move.
                Ok(Ok(()) | Err(StoreError::Missing { .. })) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(StoreError::Closed { path: core.dir.clone() }),
            }
        }
    }
    Ok(())
}

type Answer = oneshot::Receiver<Result<(), StoreError>>;

/// Copies one record as it is, damaged cells included: what can still be read of it stays readable.
fn copy(core: &Arc<Core>, key: ShardKey, entry: &Entry) -> Result<Option<Answer>, StoreError> {
    let record = match Record::open(core, key, entry) {
        Ok(record) => record,
        Err(Fault::Damaged { offset, what }) => {
            // Without its footer no byte of it can be given: it is lost, and repair will miss it.
            tracing::warn!(%key, path = ?core.segments_dir(), segment = entry.segment, offset, what, "shard lost");
            if core.index.remove_at(key, entry) {
                core.forget(entry);
                core.bury(&[*entry])?;
            }
            return Ok(None);
        }
        Err(Fault::Store(StoreError::Missing { .. })) => return Ok(None),
        Err(Fault::Store(error)) => return Err(error),
    };
    let known = entry.describe(key);
    let header = ShardHeader {
        key,
        pg: known.pg,
        scheme: record.footer.scheme,
        len_max: known.len,
        opened_at_ms: known.opened_at_ms,
    };
    let body_at = body_at(header.scheme, header.len_max);
    // Compaction frees more than it takes: the reserve does not stop it.
    let mut room = core.segments.room(core, record_bytes(body_at, header.len_max), 0)?;
    let stamp = core.superblock.secret.stamp(room.segment.number, room.at);
    let (block, header_crc) = encode_header(&header, stamp);
    let path = room.segment.path.clone();
    let put = |file: &dyn DiskFile, bytes: &[u8], at: u64| {
        file.write_at(bytes, at).map_err(|error| StoreError::io("write to", &path, error))
    };
    room.is_written = true;
    put(&*room.file, &block, room.at)?;
    let copied = record.for_each_cell(|start, cell, holds| {
        if !holds {
            core.index.mark_damaged(key, entry);
        }
        Ok(put(&*room.file, cell, room.at + body_at as u64 + start)?)
    });
    match copied {
        Ok(()) => {}
        Err(Fault::Store(error)) => return Err(error),
        Err(Fault::Damaged { what, offset }) => {
            return Err(StoreError::Corrupt { key, path: record.path, offset, what });
        }
    }
    if let (Some(outlines), Ok(root)) = (core.outlines(), record.root()) {
        let to = Place { segment: room.segment.number, at: room.at, stamp };
        outlines.carry(&record.place, &to, record.footer.shard_len, &root);
    }
    let (reply, answer) = oneshot::channel();
    let mut footer = record.footer;
    (footer.stamp, footer.header_crc) = (stamp, header_crc);
    footer.body_at = body_at as u16; // At most META_BYTES_MAX.
    let finish = Finish { room, footer, copy_of: Some(*entry), permit: None, reply };
    match core.queue.finish(finish) {
        Ok(()) => Ok(Some(answer)),
        Err(_) => Err(StoreError::Closed { path: core.dir.clone() }),
    }
}
