//! Which disk a directory is: formatting it, and refusing what is not this cluster's.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::error::StoreError;
use super::format::{
    CLUSTER_ID_BYTES_MAX, FORMAT_VERSION, FormatError, SUPERBLOCK_BYTES, SUPERBLOCK_COPY_AT, Secret,
    Superblock, encode_superblock, parse_superblock,
};
use crate::ids::DiskId;

const SUPERBLOCK: &str = "superblock";
const LOCK: &str = "lock";
pub const SEGMENTS: &str = "segments";

/// Held for the life of a store.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "closing the file unlocks")] File);

pub fn format(dir: &Path, cluster_id: &str, disk: DiskId, secret: Secret) -> Result<(), StoreError> {
    if !(1..=CLUSTER_ID_BYTES_MAX).contains(&cluster_id.len()) {
        return Err(StoreError::BadClusterId { len: cluster_id.len(), max: CLUSTER_ID_BYTES_MAX });
    }
    let _lock = lock(dir)?;
    let path = dir.join(SUPERBLOCK);
    if path.try_exists().map_err(|error| StoreError::io("look for", &path, error))? {
        return Err(StoreError::AlreadyFormatted { path, what: "a disk" });
    }
    let segments = dir.join(SEGMENTS);
    match std::fs::create_dir(&segments) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let mut entries =
                segments.read_dir().map_err(|error| StoreError::io("list", &segments, error))?;
            if entries.next().is_some() {
                return Err(StoreError::AlreadyFormatted { path: segments, what: "shards" });
            }
        }
        Err(error) => return Err(StoreError::io("create", &segments, error)),
    }
    write_superblock(dir, cluster_id, disk, secret).map_err(|error| StoreError::io("write", &path, error))
}

fn write_superblock(dir: &Path, cluster_id: &str, disk: DiskId, secret: Secret) -> io::Result<()> {
    let draft = dir.join("superblock.tmp");
    let mut file = File::create(&draft)?;
    // The filesystem dates the disk: no clock of the process is read here.
    let age = file.metadata()?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let created_at_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let block = encode_superblock(&Superblock { cluster_id: cluster_id.into(), disk, created_at_ms, secret });
    file.write_all(&block)?;
    file.write_all_at(&block, SUPERBLOCK_COPY_AT)?;
    file.sync_all()?;
    std::fs::rename(&draft, dir.join(SUPERBLOCK))?;
    File::open(dir)?.sync_all()
}

/// Takes the directory for this process.
pub fn lock(dir: &Path) -> Result<DirLock, StoreError> {
    if !dir.is_dir() {
        return Err(StoreError::NoDirectory { path: dir.to_path_buf() });
    }
    let path = dir.join(LOCK);
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| StoreError::io("lock", dir, error))?;
    match file.try_lock() {
        Ok(()) => Ok(DirLock(file)),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: dir.to_path_buf() }),
        Err(TryLockError::Error(error)) => Err(StoreError::io("lock", &path, error)),
    }
}

/// Reads whose disk `dir` is; the caller holds its lock.
pub fn load(dir: &Path, cluster_id: &str) -> Result<Superblock, StoreError> {
    let path: PathBuf = dir.join(SUPERBLOCK);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(StoreError::NotFormatted { path: dir.to_path_buf() });
        }
        Err(error) => return Err(StoreError::io("open", &path, error)),
    };
    let mut newer = None;
    for at in [0, SUPERBLOCK_COPY_AT] {
        let mut block = [0; SUPERBLOCK_BYTES];
        match file.read_exact_at(&mut block, at) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => continue,
            Err(error) => {
                tracing::warn!(?path, at, %error, "a copy of the superblock cannot be read");
                continue;
            }
        }
        match parse_superblock(&block) {
            Ok(superblock) if superblock.cluster_id == cluster_id => return Ok(superblock),
            Ok(superblock) => {
                let (found, wanted) = (superblock.cluster_id, cluster_id.to_owned());
                return Err(StoreError::OtherCluster { path: dir.to_path_buf(), found, wanted });
            }
            Err(FormatError::Version(found)) if found > FORMAT_VERSION => newer = Some(found),
            Err(why) => tracing::warn!(?path, at, %why, "a copy of the superblock is damaged"),
        }
    }
    match newer {
        Some(found) => Err(StoreError::NewerFormat { path, found, known: FORMAT_VERSION }),
        None => Err(StoreError::DamagedSuperblock { path }),
    }
}
