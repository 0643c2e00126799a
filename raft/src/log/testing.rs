//! A disk in memory that loses what was not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Disk, DiskFile};
use super::format::SECTOR_BYTES;

/// A machine's way to its disk: after a power cut it fails, until the disk is mounted anew.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimDisk {
    world: Arc<Mutex<World>>,
    epoch: u64,
}

#[derive(Debug, Default)]
struct World {
    /// Grows with each crash; what was mounted or opened before fails.
    epoch: u64,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    files: Vec<Content>,
    locked: BTreeSet<PathBuf>,
    is_sync_failing: bool,
}

#[derive(Debug, Default)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

fn write(bytes: &mut Vec<u8>, offset: u64, new: &[u8]) {
    let end = offset as usize + new.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset as usize..end].copy_from_slice(new);
}

impl SimDisk {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// For the next machine.
    pub fn mount(&self) -> Self {
        Self { world: self.world.clone(), epoch: self.world().epoch }
    }

    fn powered(&self) -> io::Result<MutexGuard<'_, World>> {
        let world = self.world();
        if world.epoch == self.epoch { Ok(world) } else { Err(gone()) }
    }

    /// Cuts the power. Each sector and each change of length that was not synced survives if `survives`.
    pub fn crash(&self, mut survives: impl FnMut() -> bool) {
        let mut world = self.world();
        let world = &mut *world;
        world.epoch += 1;
        world.locked.clear();
        world.names = world.durable_names.clone();
        for file in &mut world.files {
            for change in file.unsynced.drain(..) {
                match change {
                    Change::SetLen(len) if survives() => file.synced.resize(len as usize, 0),
                    Change::SetLen(_) => {}
                    Change::Write(offset, bytes) => {
                        let mut at = 0;
                        while at < bytes.len() {
                            let sector_left = SECTOR_BYTES - (offset + at as u64) % SECTOR_BYTES;
                            let end = bytes.len().min(at + sector_left as usize);
                            if survives() {
                                write(&mut file.synced, offset + at as u64, &bytes[at..end]);
                            }
                            at = end;
                        }
                    }
                }
            }
            file.now = file.synced.clone();
        }
    }

    pub fn fail_syncs(&self) {
        self.world().is_sync_failing = true;
    }

    /// Changes a file behind everyone's back.
    pub fn patch(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.world();
        let id = world.names[path];
        let file = &mut world.files[id];
        change(&mut file.now);
        file.synced = file.now.clone();
        file.unsynced.clear();
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        self.world().names.keys().cloned().collect()
    }

    /// A copy that shares nothing, with only what is durable.
    pub fn fork(&self) -> Self {
        let world = self.world();
        let files = world.files.iter().map(|file| Content {
            now: file.synced.clone(),
            synced: file.synced.clone(),
            unsynced: Vec::new(),
        });
        let names = world.durable_names.clone();
        let files = files.collect();
        let fork = World { names: names.clone(), durable_names: names, files, ..World::default() };
        Self { world: Arc::new(Mutex::new(fork)), epoch: 0 }
    }
}

fn gone() -> io::Error {
    io::Error::other("the power was cut")
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut world = self.powered()?;
        let next = world.files.len();
        let id = *world.names.entry(path.to_path_buf()).or_insert(next);
        if id == next {
            world.files.push(Content::default());
        }
        Ok(Box::new(SimFile { disk: self.clone(), id, epoch: world.epoch }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.powered()?;
        let names = world.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.filter_map(|path| Some(path.file_name()?.to_str()?.to_string())).collect())
    }

    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.powered()?;
        let id = world.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        world.names.insert(to.to_path_buf(), id);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.powered()?.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.powered()?;
        world.durable_names.retain(|path, _| path.parent() != Some(dir));
        let names: Vec<_> = world
            .names
            .iter()
            .filter(|(path, _)| path.parent() == Some(dir))
            .map(|(path, id)| (path.clone(), *id))
            .collect();
        world.durable_names.extend(names);
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut world = self.powered()?;
        if !world.locked.insert(path.to_path_buf()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { disk: self.clone(), path: path.to_path_buf(), epoch: world.epoch }))
    }
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
    epoch: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut world = self.disk.world();
        if world.epoch == self.epoch {
            world.locked.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: usize,
    epoch: u64,
}

impl SimFile {
    fn with<T>(&self, work: impl FnOnce(&mut Content) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.disk.world();
        if world.epoch != self.epoch {
            return Err(gone());
        }
        let id = self.id;
        work(&mut world.files[id])
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|file| Ok(file.now.len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|file| {
            file.now.resize(len as usize, 0);
            file.unsynced.push(Change::SetLen(len));
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|file| {
            let from = file.now.get(offset as usize..offset as usize + out.len());
            out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|file| {
            write(&mut file.now, offset, bytes);
            file.unsynced.push(Change::Write(offset, bytes.to_vec()));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.disk.world().is_sync_failing {
            return Err(io::Error::other("sync failed"));
        }
        self.with(|file| {
            for change in file.unsynced.drain(..) {
                match change {
                    Change::Write(offset, bytes) => write(&mut file.synced, offset, &bytes),
                    Change::SetLen(len) => file.synced.resize(len as usize, 0),
                }
            }
            Ok(())
        })
    }
}
