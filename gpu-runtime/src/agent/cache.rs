//! What was staged before, by the version of the object it came from: a version's bytes never change.
//!
//! A file is complete once it has its name: it is written under another and renamed. Those used least lately go when the
//! cache is full; what an attempt has linked into its folder stays there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::runner::ContentId;

/// Files of the cache.
pub struct Cache {
    dir: PathBuf,
    bytes_max: u64,
    next: AtomicU64,
}

impl Cache {
    pub fn open(dir: PathBuf, bytes_max: u64) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            // A download that a crash cut short.
            if entry.path().extension().is_some_and(|extension| extension == "part") {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { dir, bytes_max, next: AtomicU64::new(0) })
    }

    /// The file of a version and the BLAKE3 of its bytes, if it is here. The BLAKE3 is part of its name.
    pub fn find(&self, version: u64) -> Option<(PathBuf, ContentId)> {
        let prefix = format!("{version}-");
        let entries = std::fs::read_dir(&self.dir).ok()?;
        entries.filter_map(Result::ok).find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let content = ContentId::try_from(name.strip_prefix(&prefix)?.to_owned()).ok()?;
            Some((entry.path(), content))
        })
    }

    /// A name for a download.
    pub fn part(&self) -> PathBuf {
        self.dir.join(format!("{}.part", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// Takes in a whole download; returns where it is now. Makes room first.
    pub fn keep(&self, part: &Path, version: u64, content: &ContentId) -> io::Result<PathBuf> {
        self.make_room(part.metadata()?.len())?;
        let path = self.dir.join(format!("{version}-{content}"));
        std::fs::rename(part, &path)?;
        Ok(path)
    }

    fn make_room(&self, wanted: u64) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let about = entry.metadata()?;
            let is_part = entry.path().extension().is_some_and(|extension| extension == "part");
            if about.is_file() && !is_part {
                let used = about.accessed().or_else(|_| about.modified())?;
                files.push((used, about.len(), entry.path()));
            }
        }
        let mut held: u64 = files.iter().map(|(_, len, _)| len).sum();
        files.sort();
        for (_, len, path) in files {
            if held.saturating_add(wanted) <= self.bytes_max {
                break;
            }
            std::fs::remove_file(path)?;
            held -= len;
        }
        Ok(())
    }
}
