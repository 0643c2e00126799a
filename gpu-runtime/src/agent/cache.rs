//! What was staged before: by the version of the object it came from, whose bytes never change, and by content, so that
//! versions with the same bytes are one file.
//!
//! ```text
//! version ─> BLAKE3 ─> file `VERSION-BLAKE3`, a link each; used least lately, a content goes with all its versions
//! source  ─> versions that were staged for it ─> what this node says it holds
//! ```
//!
//! A file is complete once it has its name: it is written under another and renamed. What an attempt has linked into its folder
//! stays there when the cache drops it. What was staged for which source is forgotten with the process: it only tells the
//! scheduler where a task has less to bring.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::inventory::Held;
use crate::runner::ContentId;

/// Sources that are remembered; those used least lately are forgotten.
const SOURCES_MAX: usize = 4096;
/// Sources that this node tells of, and bytes from which one is worth it.
const TOLD_MAX: usize = 128;
const TOLD_BYTES_MIN: u64 = 64 << 10;

/// Files of the cache.
pub struct Cache {
    dir: PathBuf,
    bytes_max: u64,
    next: AtomicU64,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    versions: HashMap<u64, ContentId>,
    contents: HashMap<ContentId, Content>,
    /// By last use, oldest first.
    by_use: BTreeMap<u64, ContentId>,
    bytes: u64,
    clock: u64,
    sources: HashMap<u64, Source>,
}

struct Content {
    versions: BTreeSet<u64>,
    bytes: u64,
    used: u64,
}

struct Source {
    bytes: u64,
    /// Of the first and the last object: where these are gone, so is more.
    ends: [u64; 2],
    used: u64,
}

impl Index {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn touch(&mut self, content: ContentId) {
        let now = self.tick();
        if let Some(known) = self.contents.get_mut(&content) {
            self.by_use.remove(&known.used);
            known.used = now;
            self.by_use.insert(now, content);
        }
    }

    fn insert(&mut self, version: u64, content: ContentId, bytes: u64) {
        let now = self.tick();
        self.versions.insert(version, content);
        let known = self.contents.entry(content).or_insert_with(|| {
            self.bytes += bytes;
            Content { versions: BTreeSet::new(), bytes, used: now }
        });
        known.versions.insert(version);
        self.by_use.entry(known.used).or_insert(content);
        self.touch(content);
    }

    /// Takes the content used least lately out; `None`: there is none.
    fn pop(&mut self) -> Option<(ContentId, Content)> {
        let (_, content) = self.by_use.pop_first()?;
        let known = self.contents.remove(&content)?;
        known.versions.iter().for_each(|version| _ = self.versions.remove(version));
        self.bytes -= known.bytes;
        Some((content, known))
    }
}

impl Cache {
    pub fn open(dir: PathBuf, bytes_max: u64) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            // A download that a crash cut short.
            if entry.path().extension().is_some_and(|extension| extension == "part") {
                std::fs::remove_file(entry.path())?;
                continue;
            }
            let about = entry.metadata()?;
            let name = entry.file_name().into_string().unwrap_or_default();
            let parsed = name.split_once('-').and_then(|(version, content)| {
                Some((version.parse::<u64>().ok()?, ContentId::try_from(content.to_owned()).ok()?))
            });
            if let Some((version, content)) = parsed.filter(|_| about.is_file()) {
                let used = about.accessed().or_else(|_| about.modified())?;
                found.push((used, version, content, about.len()));
            }
        }
        found.sort();
        let mut index = Index::default();
        for (_, version, content, bytes) in found {
            index.insert(version, content, bytes);
        }
        Ok(Self { dir, bytes_max, next: AtomicU64::new(0), index: Mutex::new(index) })
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, version: u64, content: &ContentId) -> PathBuf {
        self.dir.join(format!("{version}-{content}"))
    }

    /// The file of a version and the BLAKE3 of its bytes, if it is here.
    pub fn find(&self, version: u64) -> Option<(PathBuf, ContentId)> {
        let mut index = self.lock();
        let content = *index.versions.get(&version)?;
        let path = self.path(version, &content);
        // Somebody may have cleared the folder.
        if !path.exists() {
            index.versions.remove(&version);
            return None;
        }
        index.touch(content);
        Some((path, content))
    }

    /// A name for a download.
    pub fn part(&self) -> PathBuf {
        self.dir.join(format!("{}.part", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// Takes in a whole download; returns where it is now. Makes room first.
    pub fn keep(&self, part: &Path, version: u64, content: &ContentId) -> io::Result<PathBuf> {
        let bytes = part.metadata()?.len();
        let path = self.path(version, content);
        let mut index = self.lock();
        let twin = index.contents.get(content).and_then(|known| known.versions.first().copied());
        if let Some(twin) = twin
            && std::fs::hard_link(self.path(twin, content), &path).is_ok()
        {
            std::fs::remove_file(part)?;
        } else {
            self.make_room(&mut index, bytes)?;
            std::fs::rename(part, &path)?;
        }
        index.insert(version, *content, bytes);
        Ok(path)
    }

    fn make_room(&self, index: &mut Index, wanted: u64) -> io::Result<()> {
        while index.bytes.saturating_add(wanted) > self.bytes_max {
            let Some((content, known)) = index.pop() else { break };
            for version in known.versions {
                match std::fs::remove_file(self.path(version, &content)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Remembers that all of a source is here: `bytes` of it, with these versions as its first and last.
    pub fn note(&self, source: u64, bytes: u64, ends: [u64; 2]) {
        let mut index = self.lock();
        let used = index.tick();
        index.sources.insert(source, Source { bytes, ends, used });
        if index.sources.len() > SOURCES_MAX {
            let mut uses: Vec<u64> = index.sources.values().map(|source| source.used).collect();
            uses.sort_unstable();
            let oldest = uses[uses.len() / 8];
            index.sources.retain(|_, source| source.used > oldest);
        }
    }

    /// The sources whose objects are here, those used most lately.
    pub fn held(&self) -> Vec<Held> {
        let index = self.lock();
        let is_here =
            |source: &&Source| source.ends.iter().all(|version| index.versions.contains_key(version));
        let mut found: Vec<(u64, Held)> = index
            .sources
            .iter()
            .filter(|(_, source)| source.bytes >= TOLD_BYTES_MIN)
            .filter(|(_, source)| is_here(source))
            .map(|(what, source)| (source.used, Held { what: *what, bytes: source.bytes }))
            .collect();
        found.sort_unstable_by_key(|(used, _)| std::cmp::Reverse(*used));
        found.into_iter().take(TOLD_MAX).map(|(_, held)| held).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(cache: &Cache, version: u64, bytes: &[u8]) -> PathBuf {
        let part = cache.part();
        std::fs::write(&part, bytes).unwrap();
        cache.keep(&part, version, &ContentId(*blake3::hash(bytes).as_bytes())).unwrap()
    }

    /// Versions of one content take its room once and go together; what is used least lately goes first; a cache that is opened
    /// again knows what it had.
    #[test]
    fn a_content_is_kept_once_and_the_least_used_goes() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Cache::open(dir.path().join("cache"), 10).unwrap();
        let cache = open();
        put(&cache, 1, b"aaaa");
        put(&cache, 2, b"bbbb");
        put(&cache, 3, b"aaaa");
        assert_eq!(std::fs::read(cache.find(3).unwrap().0).unwrap(), b"aaaa");
        assert!(cache.find(2).is_some() && cache.find(1).is_some());
        // Eight of ten are taken; 2 was used before 1.
        put(&cache, 4, b"cccc");
        assert!(cache.find(2).is_none());
        assert!(cache.find(1).is_some() && cache.find(3).is_some() && cache.find(4).is_some());
        drop(cache);
        let again = open();
        assert!([1, 3, 4].into_iter().all(|version| again.find(version).is_some()));
        put(&again, 5, b"dddddddd");
        assert!([1, 3, 4].into_iter().all(|version| again.find(version).is_none()));
        assert_eq!(std::fs::read_dir(dir.path().join("cache")).unwrap().count(), 1);
    }

    #[test]
    fn a_node_tells_of_sources_whose_objects_it_still_has() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().to_owned(), 10).unwrap();
        put(&cache, 1, b"aaaa");
        cache.note(7, 1 << 20, [1, 1]);
        cache.note(8, 100, [1, 1]);
        cache.note(9, 1 << 20, [1, 2]);
        assert_eq!(cache.held(), [Held { what: 7, bytes: 1 << 20 }]);
        put(&cache, 3, b"cccccccc");
        assert_eq!(cache.held(), []);
    }
}
