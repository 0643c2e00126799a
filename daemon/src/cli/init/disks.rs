//! What this machine has: filesystems that could hold shards, how quick they are, cards.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::ensure;
use serde::Serialize;

use crate::clock;

const PROBE_BYTES: usize = 128 << 20;
const PROBE_CHUNK_BYTES: usize = 1 << 20;
const FSYNCS: usize = 16;
const FSYNC_BYTES: usize = 4096;
/// Cards looked at: more than any board carries.
const GPUS_MAX: usize = 64;

/// How quick a disk is.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measured {
    /// Sequential, up to the fsync that follows.
    pub write_bytes_per_sec: u64,
    /// Median of small appends, each on disk before the next.
    pub fsync_us: u64,
}

/// Mount points of filesystems on block devices, as `/proc/self/mounts` names them.
pub fn found(mounts: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(place)) = (words.next(), words.next()) else { continue };
        let is_real = device.starts_with("/dev/") && !device.starts_with("/dev/loop");
        // proc(5): a space in a name stands as \040.
        let place = PathBuf::from(place.replace("\\040", " "));
        if is_real && !place.starts_with("/boot") && place.is_dir() && !found.contains(&place) {
            found.push(place);
        }
    }
    found
}

/// # Errors
/// The path is not there.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let filesystem = rustix::fs::statvfs(path)?;
    Ok(filesystem.f_bavail.saturating_mul(filesystem.f_frsize))
}

/// Writes a file in `dir`, and removes it.
///
/// # Errors
/// It cannot be written, or there is no room to measure.
pub fn measure(dir: &Path) -> anyhow::Result<Measured> {
    let needed = 2 * PROBE_BYTES as u64;
    ensure!(
        free_bytes(dir)? > needed,
        "less than {} MiB are free; make room, or give another directory",
        needed >> 20
    );
    let probe = dir.join(format!(".makai-init-{}", std::process::id()));
    let measured = measure_in(&probe);
    // Where it could not be made there is none.
    let _ = std::fs::remove_file(&probe);
    Ok(measured?)
}

fn measure_in(probe: &Path) -> io::Result<Measured> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(probe)?;
    let mut chunk = vec![0_u8; PROBE_CHUNK_BYTES];
    let begun = clock::instant();
    for number in 0..PROBE_BYTES / PROBE_CHUNK_BYTES {
        // Not alike: some disks do not write what repeats.
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut chunk);
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    let micros = begun.elapsed().as_micros().max(1);
    let write_bytes_per_sec = u64::try_from(PROBE_BYTES as u128 * 1_000_000 / micros).unwrap_or(u64::MAX);
    let mut fsyncs = Vec::with_capacity(FSYNCS);
    for _ in 0..FSYNCS {
        let begun = clock::instant();
        file.write_all(&chunk[..FSYNC_BYTES])?;
        file.sync_data()?;
        fsyncs.push(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    fsyncs.sort_unstable();
    Ok(Measured { write_bytes_per_sec, fsync_us: fsyncs[FSYNCS / 2] })
}

/// Models of the cards that NVIDIA's kernel module drives, from a file `information` for each below `dir`.
pub fn gpus(dir: &Path) -> Vec<String> {
    let Ok(cards) = std::fs::read_dir(dir) else { return Vec::new() };
    let model = |card: std::fs::DirEntry| {
        let text = std::fs::read_to_string(card.path().join("information")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
        Some(line.trim().to_owned())
    };
    cards.flatten().take(GPUS_MAX).filter_map(model).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_filesystems_are_offered_once_and_no_others() {
        let mounts = "proc /proc proc rw 0 0\n/dev/vda1 / ext4 rw 0 0\n/dev/vda1 / ext4 rw 0 0\n\
                      /dev/loop3 /usr squashfs ro 0 0\n/dev/vdb /no\\040where xfs rw 0 0\nshort\n";
        assert_eq!(found(mounts), [PathBuf::from("/")]);
    }

    #[test]
    fn a_disk_is_measured_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let measured = measure(dir.path()).unwrap();
        assert!(measured.write_bytes_per_sec > 0 && measured.fsync_us > 0, "{measured:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(measure(&dir.path().join("none")).is_err());
    }

    #[test]
    fn cards_are_named_by_their_driver() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(gpus(&dir.path().join("none")), Vec::<String>::new());
        std::fs::create_dir(dir.path().join("0000:01:00.0")).unwrap();
        let information = dir.path().join("0000:01:00.0/information");
        std::fs::write(information, "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ: 1\n").unwrap();
        assert_eq!(gpus(dir.path()), ["NVIDIA GeForce RTX 4090"]);
    }
}
