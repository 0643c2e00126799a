//! A disk in memory, under both the log's and the shard store's ports.
//!
//! A machine mounts it; when the machine dies, what it mounted fails for ever, and the next machine mounts anew.
//! Death by kill keeps what was written; a power cut keeps what was synced, and of the rest some sectors, some lengths
//! and some directories' names, as the seed has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use makai_erasure::store::disk as shards;
use makai_raft::log::disk as log;
use rand::Rng;
use rand::rngs::StdRng;

use super::clock::Clock;

/// What a power cut tears at.
const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = 4096;
const CAPACITY_BYTES: u64 = 1 << 40;
/// Of a hundred unsynced changes, how many survive a power cut: one of these.
const SURVIVORS_PERCENT: [u32; 4] = [0, 30, 70, 100];

/// One machine's way to its disk.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
    life: u64,
}

struct Shared {
    clock: Arc<Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Grows with each death of the machine.
    life: u64,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    files: Vec<Content>,
    locked: BTreeSet<PathBuf>,
    sync_ms: u64,
    is_forgetful: bool,
}

#[derive(Default)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Change>,
}

enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

fn put(bytes: &mut Vec<u8>, offset: usize, new: &[u8]) {
    if bytes.len() < offset + new.len() {
        bytes.resize(offset + new.len(), 0);
    }
    bytes[offset..offset + new.len()].copy_from_slice(new);
}

impl Content {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        put(&mut self.now, offset, bytes);
        self.unsynced.push(Change::Write(offset, bytes.to_vec()));
    }

    fn set_len(&mut self, len: usize) {
        self.now.resize(len, 0);
        self.unsynced.push(Change::SetLen(len));
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            match change {
                Change::Write(offset, bytes) => put(&mut self.synced, offset, &bytes),
                Change::SetLen(len) => self.synced.resize(len, 0),
            }
        }
    }

    fn cut_power(&mut self, rng: &mut StdRng) {
        let percent = SURVIVORS_PERCENT[rng.random_range(0..SURVIVORS_PERCENT.len())];
        let mut survives = || rng.random_range(0..100) < percent;
        for change in self.unsynced.drain(..) {
            match change {
                Change::SetLen(len) if survives() => self.synced.resize(len, 0),
                Change::SetLen(_) => {}
                Change::Write(offset, bytes) => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let end = bytes.len().min(at + SECTOR_BYTES - (offset + at) % SECTOR_BYTES);
                        if survives() {
                            put(&mut self.synced, offset + at, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
        self.now.clone_from(&self.synced);
    }
}

impl State {
    fn forget_nameless(&mut self) {
        let named: BTreeSet<usize> =
            self.names.values().chain(self.durable_names.values()).copied().collect();
        for (id, file) in self.files.iter_mut().enumerate() {
            if !named.contains(&id) {
                *file = Content::default();
            }
        }
    }

    fn new_file(&mut self, path: &Path) -> usize {
        self.files.push(Content::default());
        self.names.insert(path.to_path_buf(), self.files.len() - 1);
        self.files.len() - 1
    }
}

fn gone() -> io::Error {
    io::Error::other("the machine of this disk has died")
}

impl SimDisk {
    #[must_use]
    pub fn new(clock: Arc<Clock>) -> Self {
        Self { shared: Arc::new(Shared { clock, state: Mutex::default() }), life: 0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.life == self.life { Ok(state) } else { Err(gone()) }
    }

    /// For the next machine.
    #[must_use]
    pub fn mount(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), life: self.state().life }
    }

    /// The process dies, the machine's memory of the disk lives on.
    pub fn kill(&self) {
        let mut state = self.state();
        state.life += 1;
        state.locked.clear();
        state.forget_nameless();
    }

    /// The machine loses its power.
    pub fn cut_power(&self, rng: &mut StdRng) {
        let mut state = self.state();
        let state = &mut *state;
        state.life += 1;
        state.locked.clear();
        let dirs: BTreeSet<PathBuf> =
            state.names.keys().filter_map(|path| path.parent().map(Into::into)).collect();
        for dir in dirs {
            // A journal keeps the order of a directory's changes: all that was done, or all that was synced.
            if rng.random_bool(0.5) {
                settle_names(state, &dir);
            }
        }
        state.names.clone_from(&state.durable_names);
        for file in &mut state.files {
            file.cut_power(rng);
        }
        state.forget_nameless();
    }

    /// What each sync takes.
    pub fn set_sync_ms(&self, sync_ms: u64) {
        self.state().sync_ms = sync_ms;
    }

    /// A disk that says "synced" and has done nothing.
    pub fn make_forgetful(&self) {
        self.state().is_forgetful = true;
    }

    fn wait_for_device(&self) {
        let sync_ms = self.state().sync_ms;
        if sync_ms > 0 {
            self.shared.clock.block_until(self.shared.clock.now_ms() + sync_ms);
        }
    }

    fn names_in(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.powered()?;
        let names = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        let id = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_path_buf(), id);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.powered()?.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.wait_for_device();
        let mut state = self.powered()?;
        settle_names(&mut state, dir);
        Ok(())
    }
}

fn settle_names(state: &mut State, dir: &Path) {
    state.durable_names.retain(|path, _| path.parent() != Some(dir));
    let names = state.names.iter().filter(|(path, _)| path.parent() == Some(dir));
    state.durable_names.extend(names.map(|(path, id)| (path.clone(), *id)));
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDisk(life {})", self.life)
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: usize,
}

impl SimFile {
    fn with<T>(&self, work: impl FnOnce(&mut Content) -> T) -> io::Result<T> {
        Ok(work(&mut self.disk.powered()?.files[self.id]))
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.wait_for_device();
        let mut state = self.disk.powered()?;
        if !state.is_forgetful {
            state.files[self.id].sync();
        }
        Ok(())
    }
}

impl log::Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn log::DiskFile>> {
        let mut state = self.powered()?;
        let known = state.names.get(path).copied();
        let id = known.unwrap_or_else(|| state.new_file(path));
        Ok(Box::new(SimFile { disk: self.clone(), id }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.names_in(dir)
    }

    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        self.powered().map(|_| ())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        if !self.powered()?.locked.insert(path.to_path_buf()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Lock { disk: self.clone(), path: path.to_path_buf() }))
    }
}

struct Lock {
    disk: SimDisk,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Ok(mut state) = self.disk.powered() {
            state.locked.remove(&self.path);
        }
    }
}

impl log::DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|file| file.now.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|file| file.set_len(len as usize))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|file| {
            let from = file.now.get(offset as usize..offset as usize + out.len());
            out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })?
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|file| file.write(offset as usize, bytes))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }
}

impl shards::Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn shards::DiskFile>> {
        let id = self.powered()?.names.get(path).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn shards::DiskFile>> {
        let id = self.powered()?.new_file(path);
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.names_in(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.sync_dir(dir)
    }

    fn space(&self, _dir: &Path) -> io::Result<shards::Space> {
        let state = self.powered()?;
        let held: u64 = state.names.values().map(|id| state.files[*id].now.len() as u64).sum();
        Ok(shards::Space { capacity: CAPACITY_BYTES, free: CAPACITY_BYTES.saturating_sub(held) })
    }
}

impl shards::DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|file| {
            let from = (offset as usize).min(file.now.len());
            let count = buf.len().min(file.now.len() - from);
            buf[..count].copy_from_slice(&file.now[from..from + count]);
            count
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|file| file.write(offset as usize, bytes))
    }

    fn sync(&self) -> io::Result<()> {
        self.sync()
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        self.with(|file| {
            if file.now.len() < len as usize {
                file.set_len(len as usize);
            }
            true
        })
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.with(|file| {
            let end = ((offset + len) as usize).min(file.now.len());
            let from = (offset as usize).min(end);
            file.write(from, &vec![0; end - from]);
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|file| file.set_len(len as usize))
    }

    fn size(&self) -> io::Result<u64> {
        self.with(|file| file.now.len() as u64)
    }

    fn allocated(&self) -> io::Result<u64> {
        let is_held = |page: &&[u8]| page.iter().any(|byte| *byte != 0);
        self.with(|file| (file.now.chunks(PAGE_BYTES).filter(is_held).count() * PAGE_BYTES) as u64)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.with(|file| {
            let first = offset as usize / PAGE_BYTES;
            let mut pages = file.now.chunks(PAGE_BYTES).enumerate().skip(first);
            let data = pages.find(|(_, page)| page.iter().any(|byte| *byte != 0));
            data.map(|(page, _)| offset.max((page * PAGE_BYTES) as u64))
        })
    }

    fn forget_cache(&self) {}
}
