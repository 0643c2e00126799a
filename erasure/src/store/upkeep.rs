//! Whether the directory is still the one that was opened, what it takes of the device, and files that went from under
//! the store.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::core::Core;
use super::error::StoreError;
use super::segment::Phase;
use super::superblock::SEGMENTS;

/// What tells a directory from another of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    device: u64,
    inode: u64,
}

impl Home {
    pub fn of(dir: &Path) -> Result<Self, StoreError> {
        let segments = dir.join(SEGMENTS);
        match std::fs::metadata(&segments) {
            Ok(found) => Ok(Self { device: found.dev(), inode: found.ino() }),
            Err(_) => Err(StoreError::NoDirectory { path: segments }),
        }
    }
}

/// # Errors
/// The disk failed, or its directory is gone or another one: what was opened may still be written, and would be lost.
pub fn check_home(core: &Core) -> Result<(), StoreError> {
    core.check_working()?;
    match core.home.get() {
        Some(home) if *home == Home::of(&core.dir)? => Ok(()),
        Some(_) => Err(StoreError::NoDirectory { path: core.segments_dir() }),
        None => Ok(()),
    }
}

/// Learns what the segment files take of the device; open ones in full.
pub fn measure_held(core: &Core) -> Result<u64, StoreError> {
    let mut held = 0;
    for (segment, phase) in core.segments.all() {
        held += match phase {
            Phase::Open { capacity, .. } => capacity,
            _ => match core.disk.open(&segment.path).and_then(|file| file.allocated()) {
                Ok(bytes) => bytes,
                // Removed meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
                Err(error) => return Err(StoreError::io("size of", &segment.path, error)),
            },
        };
    }
    core.held_bytes.store(held, Ordering::Relaxed);
    Ok(held)
}

/// Forgets the shards of segment files that somebody removed; returns how many. An open one is closed to writers first, and
/// forgotten at a later call: what is written to a file without a name does not survive a restart.
pub fn forget_removed(core: &Core) -> Result<u64, StoreError> {
    check_home(core)?;
    let known = core.segments.all();
    let dir = core.segments_dir();
    let there: HashSet<String> =
        core.disk.list(&dir).map_err(|error| StoreError::io("list", &dir, error))?.into_iter().collect();
    let mut forgotten = 0;
    for (segment, phase) in known {
        let name = segment.path.file_name().map(|name| name.to_string_lossy().into_owned());
        if name.is_none_or(|name| there.contains(&name)) {
            continue;
        }
        if matches!(phase, Phase::Open { .. }) {
            tracing::warn!(path = ?segment.path, "a segment file was removed while it was written; no more is written to it");
            core.segments.retire_one(core, segment.number);
        }
        if core.segments.take_sealed(segment.number).is_none() {
            continue;
        }
        let mut lost = 0;
        for (key, entry) in core.index.in_segment(segment.number) {
            lost += u64::from(core.index.remove_at(key, &entry));
        }
        core.segments.drop_segment(segment.number);
        _ = core.disk.remove(&segment.index_path());
        if let Some(outlines) = core.outlines() {
            outlines.remove(segment.number);
        }
        tracing::warn!(path = ?segment.path, shards = lost, "a segment file was removed; its shards are rebuilt");
        forgotten += lost;
    }
    Ok(forgotten)
}
