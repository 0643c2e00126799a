//! A disk that forgets: whatever was not synced may be lost, torn by sectors and reordered when the power
//! goes; any operation can be made to fail.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::core::lock;
use super::disk::{Disk, DiskFile, Space};

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// What an operation is, for choosing which fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Sync,
    Allocate,
    Names,
}

#[derive(Default)]
struct World {
    names: BTreeMap<PathBuf, Arc<Mutex<Inode>>>,
    durable_names: BTreeMap<PathBuf, Arc<Mutex<Inode>>>,
    /// Changes until the power goes.
    changes_left: Option<u64>,
    changes: u64,
    syncs: u64,
    is_off: bool,
    failing: Option<(Kind, i32)>,
    free: Option<u64>,
    gate: Option<Arc<Gate>>,
}

#[derive(Default, Clone)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    /// What each sector held since the last sync, oldest first.
    pending: BTreeMap<usize, Vec<[u8; SECTOR]>>,
}

#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<World>>);

/// While it lives, file syncs wait.
pub struct SyncGate {
    gate: Arc<Gate>,
    world: Arc<Mutex<World>>,
}

#[derive(Default)]
struct Gate {
    /// Whether it is shut, and how many syncs wait.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl SyncGate {
    pub fn wait_for_one(&self) {
        let state = lock(&self.gate.state);
        drop(self.gate.changed.wait_while(state, |(_, waiting)| *waiting == 0));
    }
}

impl Drop for SyncGate {
    fn drop(&mut self) {
        lock(&self.world).gate = None;
        lock(&self.gate.state).0 = false;
        self.gate.changed.notify_all();
    }
}

struct SimFile {
    world: Arc<Mutex<World>>,
    inode: Arc<Mutex<Inode>>,
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

impl World {
    fn check(&self, kind: Kind) -> io::Result<()> {
        match self.failing {
            _ if self.is_off => Err(gone()),
            Some((failing, errno)) if failing == kind => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }

    /// Counts a change; `Err` when the power goes during it.
    fn change(&mut self, kind: Kind) -> io::Result<()> {
        self.check(kind)?;
        self.changes += 1;
        match &mut self.changes_left {
            Some(0) => {
                self.is_off = true;
                Err(gone())
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Inode {
    fn sector(&self, number: usize) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        let from = (number * SECTOR).min(self.data.len());
        let bytes = &self.data[from..(from + SECTOR).min(self.data.len())];
        sector[..bytes.len()].copy_from_slice(bytes);
        sector
    }

    fn overwrite(&mut self, bytes: &[u8], at: usize) {
        if self.data.len() < at + bytes.len() {
            self.data.resize(at + bytes.len(), 0);
        }
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
        for number in at / SECTOR..(at + bytes.len()).div_ceil(SECTOR) {
            let now = self.sector(number);
            self.pending.entry(number).or_default().push(now);
        }
    }

    fn sync(&mut self) {
        self.durable.resize(self.data.len(), 0);
        for number in std::mem::take(&mut self.pending).into_keys() {
            let from = (number * SECTOR).min(self.data.len());
            let to = (from + SECTOR).min(self.data.len());
            self.durable[from..to].copy_from_slice(&self.data[from..to]);
        }
    }

    /// What the device may hold after a power cut.
    fn after_cut(&self, rng: &mut StdRng) -> Self {
        let kept_percent = [0, 0, 30, 70, 100, 100][rng.random_range(0..6)];
        let len = if rng.random_range(0..100) < kept_percent { self.data.len() } else { self.durable.len() };
        let mut data = self.durable.clone();
        data.resize(len, 0);
        for (number, versions) in &self.pending {
            let from = number * SECTOR;
            if from < len && rng.random_range(0..100) < kept_percent {
                let sector = versions[if kept_percent == 100 {
                    versions.len() - 1
                } else {
                    rng.random_range(0..versions.len())
                }];
                let to = (from + SECTOR).min(len);
                data[from..to].copy_from_slice(&sector[..to - from]);
            }
        }
        Self { durable: data.clone(), data, pending: BTreeMap::new() }
    }
}

impl SimDisk {
    /// The power goes after `changes` more changes.
    pub fn cut_after(&self, changes: u64) {
        lock(&self.0).changes_left = Some(changes);
    }

    pub fn changes(&self) -> u64 {
        lock(&self.0).changes
    }

    pub fn syncs(&self) -> u64 {
        lock(&self.0).syncs
    }

    pub fn fail(&self, kind: Kind, errno: rustix::io::Errno) {
        lock(&self.0).failing = Some((kind, errno.raw_os_error()));
    }

    pub fn hold_syncs(&self) -> SyncGate {
        let gate = Arc::new(Gate { state: Mutex::new((true, 0)), changed: Condvar::new() });
        lock(&self.0).gate = Some(Arc::clone(&gate));
        SyncGate { gate, world: Arc::clone(&self.0) }
    }

    pub fn mend(&self) {
        lock(&self.0).failing = None;
    }

    pub fn set_free(&self, bytes: u64) {
        lock(&self.0).free = Some(bytes);
    }

    /// The disk as a next process finds it after a power cut.
    pub fn after_cut(&self, seed: u64) -> Self {
        let world = lock(&self.0);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut names = BTreeMap::new();
        let paths: std::collections::BTreeSet<&PathBuf> =
            world.names.keys().chain(world.durable_names.keys()).collect();
        for path in paths {
            let (now, durable) = (world.names.get(path), world.durable_names.get(path));
            let survivor = if rng.random_bool(0.5) { now } else { durable };
            let is_settled =
                matches!((now, durable), (Some(now), Some(durable)) if Arc::ptr_eq(now, durable));
            if let Some(inode) = if is_settled { now } else { survivor } {
                names.insert(path.clone(), Arc::new(Mutex::new(lock(inode).after_cut(&mut rng))));
            }
        }
        Self(Arc::new(Mutex::new(World { durable_names: names.clone(), names, ..World::default() })))
    }

    /// The disk as a next process finds it after this one was killed: the cache survives.
    pub fn after_kill(&self) -> Self {
        let world = lock(&self.0);
        let mut copies: BTreeMap<*const Mutex<Inode>, Arc<Mutex<Inode>>> = BTreeMap::new();
        let mut copy =
            |names: &BTreeMap<PathBuf, Arc<Mutex<Inode>>>| -> BTreeMap<PathBuf, Arc<Mutex<Inode>>> {
                let mut copied = BTreeMap::new();
                for (path, inode) in names {
                    let fresh = || Arc::new(Mutex::new(lock(inode).clone()));
                    let inode = copies.entry(Arc::as_ptr(inode)).or_insert_with(fresh);
                    copied.insert(path.clone(), Arc::clone(inode));
                }
                copied
            };
        let (names, durable_names) = (copy(&world.names), copy(&world.durable_names));
        Self(Arc::new(Mutex::new(World { durable_names, names, ..World::default() })))
    }

    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let world = lock(&self.0);
        world.names.iter().map(|(path, inode)| (path.clone(), lock(inode).data.len() as u64)).collect()
    }

    /// Bytes that are not in holes.
    pub fn held(&self) -> u64 {
        let world = lock(&self.0);
        world.names.values().map(|inode| allocated(&lock(inode).data)).sum()
    }

    pub fn flip(&self, path: &Path, at: u64, bits: u8) {
        let world = lock(&self.0);
        let mut inode = lock(&world.names[path]);
        inode.data[at as usize] ^= bits;
        inode.durable = inode.data.clone();
        inode.pending.clear();
    }
}

fn allocated(data: &[u8]) -> u64 {
    data.chunks(PAGE).filter(|page| page.iter().any(|byte| *byte != 0)).count() as u64 * PAGE as u64
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let world = lock(&self.0);
        world.check(Kind::Names)?;
        let inode = world.names.get(path).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { world: Arc::clone(&self.0), inode }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = lock(&self.0);
        let inode = Arc::new(Mutex::new(Inode::default()));
        world.change(Kind::Names)?;
        world.names.insert(path.to_path_buf(), Arc::clone(&inode));
        Ok(Arc::new(SimFile { world: Arc::clone(&self.0), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = lock(&self.0);
        world.change(Kind::Names)?;
        let inode = world.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        world.names.insert(to.to_path_buf(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = lock(&self.0);
        world.check(Kind::Names)?;
        if !world.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let changed = world.change(Kind::Names);
        world.names.remove(path);
        changed
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        let world = lock(&self.0);
        world.check(Kind::Names)?;
        let names = world.names.keys().filter_map(|path| path.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut world = lock(&self.0);
        world.change(Kind::Sync)?;
        world.durable_names = world.names.clone();
        Ok(())
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        let world = lock(&self.0);
        let held: u64 = world.names.values().map(|inode| lock(inode).data.len() as u64).sum();
        let capacity = world.free.unwrap_or(1 << 40);
        Ok(Space { capacity, free: capacity.saturating_sub(held) })
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        lock(&self.world).check(Kind::Read)?;
        let inode = lock(&self.inode);
        let from = (offset as usize).min(inode.data.len());
        let read = buf.len().min(inode.data.len() - from);
        buf[..read].copy_from_slice(&inode.data[from..from + read]);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut world = lock(&self.world);
        world.check(Kind::Write)?;
        let changed = world.change(Kind::Write);
        // The write during which the power goes may reach the device in part.
        lock(&self.inode).overwrite(bytes, offset as usize);
        changed
    }

    fn sync(&self) -> io::Result<()> {
        let gate = lock(&self.world).gate.clone();
        if let Some(gate) = gate {
            let mut state = lock(&gate.state);
            state.1 += 1;
            gate.changed.notify_all();
            drop(gate.changed.wait_while(state, |(is_shut, _)| *is_shut));
        }
        let mut world = lock(&self.world);
        world.change(Kind::Sync)?;
        world.syncs += 1;
        lock(&self.inode).sync();
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        let mut world = lock(&self.world);
        world.change(Kind::Allocate)?;
        let mut inode = lock(&self.inode);
        let len = inode.data.len().max(len as usize);
        inode.data.resize(len, 0);
        Ok(true)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut world = lock(&self.world);
        world.change(Kind::Write)?;
        let mut inode = lock(&self.inode);
        let end = ((offset + len) as usize).min(inode.data.len());
        let from = (offset as usize).min(end);
        inode.overwrite(&vec![0; end - from], from);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut world = lock(&self.world);
        world.change(Kind::Write)?;
        let mut inode = lock(&self.inode);
        let old = inode.data.len();
        if (len as usize) < old {
            inode.overwrite(&vec![0; old - len as usize], len as usize);
        }
        inode.data.resize(len as usize, 0);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(lock(&self.inode).data.len() as u64)
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(allocated(&lock(&self.inode).data))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let inode = lock(&self.inode);
        let first = offset as usize / PAGE;
        let data = inode
            .data
            .chunks(PAGE)
            .enumerate()
            .skip(first)
            .find(|(_, page)| page.iter().any(|byte| *byte != 0));
        Ok(data.map(|(page, _)| offset.max((page * PAGE) as u64)))
    }

    fn forget_cache(&self) {}
}
