//! Blocks that were read, kept on this machine's disk for all of its mounts of one bucket by one customer.
//!
//! ```text
//! put   block ─ sealed ─> writer's thread ─> file beside, renamed ─> too much? the least recently used go
//! get   name ─> file ─ opened, its name bound in ─> block; anything else is a miss, and the file goes
//! ```
//!
//! | bytes of a file | what |
//! |---|---|
//! | 0..8   | magic and version: `MKCACHE` 1 |
//! | 8..20  | nonce |
//! | 20..   | the block under AES-256-GCM; its file's name is authenticated with it |
//!
//! A file's name is an HMAC of inode, version of the content, and block: a version never comes back, so that nothing is
//! ever out of date. Both keys are made of the customer's secret and the bucket: without them a file tells nothing but its
//! length, and no mount reads what another customer's put there.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::blocks::BLOCK_BYTES;
use super::service::Ino;

const MAGIC: &[u8; 8] = b"MKCACHE\x01";
const HEAD_BYTES: usize = MAGIC.len() + NONCE_LEN;
/// Blocks that wait to be written; more are not kept.
const WAITING_MAX: usize = 64;
/// After too much was written, so much of the bound stays.
const KEPT_PERCENT: u64 = 90;
/// A block that is read is marked as used, not more often than this.
const MARKED_AFTER: Duration = Duration::from_secs(600);
/// A file that some mount did not finish is nobody's after this.
const UNFINISHED_FOR: Duration = Duration::from_secs(3600);
const UNFINISHED: &str = ".new-";
const KEY_PURPOSE: &[u8] = b"makai mount cache 1: blocks of ";
const NAME_PURPOSE: &[u8] = b"makai mount cache 1: names of ";

/// The cache's folder, opened for one bucket.
pub struct DiskCache {
    folder: PathBuf,
    key: LessSafeKey,
    names: hmac::Key,
    random: SystemRandom,
    now: fn() -> SystemTime,
    writer: mpsc::SyncSender<(String, Vec<u8>)>,
}

impl std::fmt::Debug for DiskCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DiskCache({:?})", self.folder)
    }
}

impl DiskCache {
    /// `secret`: the customer's; `scope`: what tells this bucket from every other. All mounts that share the folder should
    /// be given the same bound: each keeps to its own.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(
        folder: &Path,
        secret: &[u8],
        scope: &str,
        bytes_max: u64,
        now: fn() -> SystemTime,
    ) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let derived = |purpose: &[u8]| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
            hmac::sign(&key, &[purpose, scope.as_bytes()].concat())
        };
        let key = UnboundKey::new(&AES_256_GCM, derived(KEY_PURPOSE).as_ref());
        let key = LessSafeKey::new(key.map_err(|_| io::Error::other("the cache's key is refused"))?);
        let names = hmac::Key::new(hmac::HMAC_SHA256, derived(NAME_PURPOSE).as_ref());
        let mut keeper = Keeper { folder: folder.to_owned(), bytes: 0, bytes_max, now };
        keeper.bytes = keeper.files()?.iter().map(|file| file.bytes).sum();
        keeper.make_room();
        let (writer, blocks) = mpsc::sync_channel(WAITING_MAX);
        std::thread::Builder::new().name("cache-writer".into()).spawn(move || keeper.write(&blocks))?;
        Ok(Self { folder: folder.to_owned(), key, names, random: SystemRandom::new(), now, writer })
    }

    fn name(&self, ino: Ino, version: u64, block: u64) -> String {
        let what = [ino.0.to_be_bytes(), version.to_be_bytes(), block.to_be_bytes()].concat();
        hex::encode(hmac::sign(&self.names, &what).as_ref())
    }

    /// Keeps a block; not if the disk does not keep up.
    pub fn put(&self, ino: Ino, version: u64, block: u64, data: &[u8]) {
        let name = self.name(ino, version, block);
        let mut nonce = [0; NONCE_LEN];
        if self.random.fill(&mut nonce).is_err() {
            return;
        }
        let mut sealed = Vec::with_capacity(HEAD_BYTES + data.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(MAGIC);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(data);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let aad = Aad::from(name.as_bytes());
        let Ok(tag) = self.key.seal_in_place_separate_tag(nonce, aad, &mut sealed[HEAD_BYTES..]) else {
            return;
        };
        sealed.extend_from_slice(tag.as_ref());
        let _ = self.writer.try_send((name, sealed));
    }

    /// A block as it was kept. Blocks on the disk.
    #[must_use]
    pub fn get(&self, ino: Ino, version: u64, block: u64) -> Option<Bytes> {
        let name = self.name(ino, version, block);
        let path = path_of(&self.folder, &name);
        let mut file = File::open(&path).ok()?;
        let mut sealed = Vec::new();
        let bytes_max = HEAD_BYTES as u64 + BLOCK_BYTES + AES_256_GCM.tag_len() as u64;
        (&mut file).take(bytes_max + 1).read_to_end(&mut sealed).ok()?;
        let Some(plain) = self.opened(&name, sealed) else {
            tracing::warn!(?path, "a cached block does not verify; it is dropped, and read from the pool");
            let _ = fs::remove_file(&path);
            return None;
        };
        let used = file.metadata().and_then(|meta| meta.modified()).ok();
        let now = (self.now)();
        if used.and_then(|used| now.duration_since(used).ok()).is_some_and(|age| age >= MARKED_AFTER) {
            let _ = file.set_modified(now);
        }
        Some(plain)
    }

    fn opened(&self, name: &str, mut sealed: Vec<u8>) -> Option<Bytes> {
        let head = sealed.get(..HEAD_BYTES)?;
        if &head[..MAGIC.len()] != MAGIC {
            return None;
        }
        let nonce = Nonce::try_assume_unique_for_key(&head[MAGIC.len()..]).ok()?;
        let aad = Aad::from(name.as_bytes());
        let length = self.key.open_in_place(nonce, aad, &mut sealed[HEAD_BYTES..]).ok()?.len();
        Some(Bytes::from(sealed).slice(HEAD_BYTES..HEAD_BYTES + length))
    }
}

/// Files lie in 256 folders, so that none of them is large.
fn path_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(&name[..2]).join(name)
}

struct Kept {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// Writes blocks and keeps the bound.
struct Keeper {
    folder: PathBuf,
    bytes: u64,
    bytes_max: u64,
    now: fn() -> SystemTime,
}

impl Keeper {
    fn write(mut self, blocks: &mpsc::Receiver<(String, Vec<u8>)>) {
        let mut is_failing = false;
        while let Ok((name, sealed)) = blocks.recv() {
            match self.write_one(&name, &sealed) {
                Ok(()) => is_failing = false,
                // A full or broken disk makes reads slower, and nothing else.
                Err(error) if !is_failing => {
                    is_failing = true;
                    tracing::warn!(folder = ?self.folder, %error, "blocks are not cached on the disk");
                }
                Err(_) => {}
            }
            self.make_room();
        }
    }

    fn write_one(&mut self, name: &str, sealed: &[u8]) -> io::Result<()> {
        let path = path_of(&self.folder, name);
        if path.exists() {
            return Ok(()); // Another mount was quicker.
        }
        let unfinished = self.folder.join(format!("{UNFINISHED}{}-{name}", std::process::id()));
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| file.write_all(sealed));
        let placed = written.and_then(|()| {
            path.parent()
                .map_or(Ok(()), |parent| fs::DirBuilder::new().recursive(true).mode(0o700).create(parent))?;
            fs::rename(&unfinished, &path)
        });
        if placed.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        placed?;
        self.bytes += sealed.len() as u64;
        Ok(())
    }

    /// All files of all mounts; those that nobody will finish are removed.
    fn files(&self) -> io::Result<Vec<Kept>> {
        let now = (self.now)();
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                for file in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                    // Another mount may have removed it.
                    let Ok(meta) = file.metadata() else { continue };
                    let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    found.push(Kept { path: file.path(), bytes: meta.len(), used });
                }
            } else if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                let begun = entry.metadata().and_then(|meta| meta.modified()).unwrap_or(now);
                if now.duration_since(begun).is_ok_and(|age| age >= UNFINISHED_FOR) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        Ok(found)
    }

    fn make_room(&mut self) {
        if self.bytes <= self.bytes_max {
            return;
        }
        let Ok(mut files) = self.files() else { return };
        self.bytes = files.iter().map(|file| file.bytes).sum();
        files.sort_by_key(|file| file.used);
        let kept = self.bytes_max / 100 * KEPT_PERCENT;
        for file in files {
            if self.bytes <= kept {
                return;
            }
            let _ = fs::remove_file(&file.path);
            self.bytes -= file.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn open(folder: &Path, secret: &str, scope: &str, bytes_max: u64) -> DiskCache {
        DiskCache::open(folder, secret.as_bytes(), scope, bytes_max, now).unwrap()
    }

    /// The writer has a thread of its own: once the cache is dropped and its channel empty, all is written.
    fn written(cache: &DiskCache, ino: Ino, version: u64, block: u64) -> Bytes {
        for _ in 0..1000 {
            if let Some(found) = cache.get(ino, version, block) {
                return found;
            }
            std::thread::yield_now();
            std::thread::park_timeout(Duration::from_millis(5));
        }
        panic!("the block is not written");
    }

    fn only_file(folder: &Path) -> PathBuf {
        let mut folders = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let folder = folders.find(|path| path.is_dir()).unwrap();
        fs::read_dir(folder).unwrap().next().unwrap().unwrap().path()
    }

    #[test]
    fn a_block_comes_back_for_its_customer_bucket_file_and_version_alone() {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path(), "secret", "bucket", 1 << 20);
        let data = vec![7; BLOCK_BYTES as usize];
        cache.put(Ino(5), 6, 7, &data);
        assert_eq!(written(&cache, Ino(5), 6, 7), data);
        assert_eq!(open(folder.path(), "secret", "bucket", 1 << 20).get(Ino(5), 6, 7), Some(data.into()));
        for (ino, version, block) in [(4, 6, 7), (5, 7, 7), (5, 6, 8)] {
            assert_eq!(cache.get(Ino(ino), version, block), None);
        }
        assert_eq!(open(folder.path(), "other", "bucket", 1 << 20).get(Ino(5), 6, 7), None);
        assert_eq!(open(folder.path(), "secret", "other", 1 << 20).get(Ino(5), 6, 7), None);
        let bytes = fs::read(only_file(folder.path())).unwrap();
        assert!(!bytes.windows(32).any(|window| window == [7; 32]), "it is sealed");
    }

    #[test]
    fn a_file_that_was_changed_or_cut_is_a_miss_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path(), "secret", "bucket", 1 << 20);
        cache.put(Ino(1), 1, 0, b"a block");
        written(&cache, Ino(1), 1, 0);
        let path = only_file(folder.path());
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            for bad in [&flipped[..], &good[..at], &[&good[..], b"x"].concat()] {
                fs::write(&path, bad).unwrap();
                assert_eq!(cache.get(Ino(1), 1, 0), None, "byte {at}");
                assert!(!path.exists());
            }
        }
        // The same bytes under another block's name.
        fs::write(path_of(folder.path(), &cache.name(Ino(1), 1, 1)), &good).unwrap_or_default();
        assert_eq!(cache.get(Ino(1), 1, 1), None);
        fs::write(&path, &good).unwrap();
        assert_eq!(cache.get(Ino(1), 1, 0), Some(Bytes::from_static(b"a block")));
    }

    #[test]
    fn the_bound_is_kept_and_what_is_left_over_goes() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(format!("{UNFINISHED}1-x"));
        fs::write(&left, b"half a block").unwrap();
        fs::OpenOptions::new().write(true).open(&left).unwrap().set_modified(now()).unwrap();
        let cache = open(folder.path(), "secret", "bucket", 50_000);
        for block in 0..40 {
            cache.put(Ino(1), 1, block, &[block as u8; 4000]);
            // One by one, so that none is dropped for want of room in the queue.
            for _ in 0..1000 {
                if path_of(folder.path(), &cache.name(Ino(1), 1, block)).exists() {
                    break;
                }
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
        let keeper = Keeper { folder: folder.path().to_owned(), bytes: 0, bytes_max: 0, now };
        let kept: u64 = keeper.files().unwrap().iter().map(|file| file.bytes).sum();
        assert!(kept <= 50_000 + 5000 && kept > 20_000, "{kept} bytes");
        assert!(left.exists(), "another mount may be writing it");
    }
}
