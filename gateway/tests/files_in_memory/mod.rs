//! The pool as files, in this process's memory: small, and as strict as POSIX about names, links and times.
#![allow(dead_code, reason = "each test uses some of it")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use makai_gateway::fuse::service::{
    Attr, AttrChange, Change, Done, Edit, Entry, Errno, FileRef, FileService, Ino, Kind, Lock, LockKind,
    NewNode, Operation, Page, Payload, Place, Read, RenameMode, Result, SeekTo, SetTime, Space, XattrMode,
};
use tokio::sync::Notify;

const PAGE_BYTES: u64 = 4096;
const ROOT: u64 = 17;
const LIST_MAX: usize = 100;
const SPACE_BYTES: u64 = 64 << 30;
/// A message's way to a pool and back.
const AWAY: Duration = Duration::from_millis(5);
const CACHE_FOR: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Node {
    attr: Attr,
    pages: BTreeMap<u64, Vec<u8>>,
    children: BTreeMap<Bytes, u64>,
    parent: u64,
    target: Bytes,
    xattrs: Vec<(Bytes, Bytes)>,
    locks: Vec<Lock>,
}

#[derive(Debug, Default)]
struct Inner {
    nodes: HashMap<u64, Node>,
    last: u64,
    stored: HashMap<Bytes, Bytes>,
    /// How often each is open.
    held: HashMap<u64, u32>,
    changes: Vec<Change>,
    fail_edits_with: Option<Errno>,
    fail_makes_with: Option<Errno>,
    leased: HashSet<Ino>,
}

/// See the file's front.
pub struct FilesInMemory {
    inner: Mutex<Inner>,
    changed: Notify,
    messages: AtomicU64,
    reads: AtomicU64,
}

#[expect(clippy::disallowed_methods, reason = "a test's pool lives in real time")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

fn attr(ino: u64, node: &NewNode) -> Attr {
    let now = now();
    Attr {
        ino: Ino(ino),
        kind: node.kind,
        mode: node.mode,
        uid: node.uid,
        gid: node.gid,
        nlink: if node.kind == Kind::Directory { 2 } else { 1 },
        rdev: node.rdev,
        size: node.target.len() as u64,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        data_version: 1,
        has_no_xattrs: false,
    }
}

fn new_node(ino: u64, parent: u64, node: NewNode) -> Node {
    Node {
        attr: attr(ino, &node),
        pages: BTreeMap::new(),
        children: BTreeMap::new(),
        parent,
        target: node.target,
        xattrs: node.xattrs,
        locks: Vec::new(),
    }
}

impl Node {
    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = 0;
        while at < data.len() {
            let position = offset + at as u64;
            let inside = (position % PAGE_BYTES) as usize;
            let length = (PAGE_BYTES as usize - inside).min(data.len() - at);
            let page =
                self.pages.entry(position / PAGE_BYTES).or_insert_with(|| vec![0; PAGE_BYTES as usize]);
            page[inside..inside + length].copy_from_slice(&data[at..at + length]);
            at += length;
        }
        if !data.is_empty() {
            self.attr.size = self.attr.size.max(offset + data.len() as u64);
        }
    }

    fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let length = length.min(self.attr.size.saturating_sub(offset));
        let mut out = vec![0; length as usize];
        let mut at = 0;
        while at < out.len() {
            let position = offset + at as u64;
            let inside = (position % PAGE_BYTES) as usize;
            let part = (PAGE_BYTES as usize - inside).min(out.len() - at);
            if let Some(page) = self.pages.get(&(position / PAGE_BYTES)) {
                out[at..at + part].copy_from_slice(&page[inside..inside + part]);
            }
            at += part;
        }
        out
    }

    fn clear(&mut self, offset: u64, end: u64) {
        let whole = offset.div_ceil(PAGE_BYTES)..end / PAGE_BYTES;
        if !whole.is_empty() {
            let mut behind = self.pages.split_off(&whole.start);
            self.pages.append(&mut behind.split_off(&whole.end));
        }
        for page in [offset / PAGE_BYTES, end / PAGE_BYTES] {
            if let Some(bytes) = self.pages.get_mut(&page) {
                let start = offset.saturating_sub(page * PAGE_BYTES).min(PAGE_BYTES) as usize;
                let stop = end.saturating_sub(page * PAGE_BYTES).min(PAGE_BYTES) as usize;
                bytes[start.min(stop)..stop].fill(0);
            }
        }
    }

    fn resize(&mut self, size: u64) {
        if size < self.attr.size {
            self.clear(size, self.attr.size.next_multiple_of(PAGE_BYTES));
        }
        self.attr.size = size;
    }

    fn touched(&mut self, is_data: bool) {
        self.attr.ctime = now();
        if is_data {
            self.attr.mtime = self.attr.ctime;
            self.attr.data_version += 1;
        }
        self.attr.blocks = self.pages.len() as u64 * (PAGE_BYTES / 512);
    }
}

impl Inner {
    fn next_number(&mut self) -> u64 {
        self.last += 1;
        ROOT + self.last
    }

    fn node(&mut self, ino: u64) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Errno::STALE)
    }

    fn directory(&mut self, ino: Ino) -> Result<&mut Node> {
        let node = self.node(ino.0)?;
        if node.attr.kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        if node.attr.nlink == 0 {
            return Err(Errno::NOENT);
        }
        Ok(node)
    }

    fn child(&mut self, place: &Place) -> Result<u64> {
        self.directory(place.parent)?.children.get(&place.name).copied().ok_or(Errno::NOENT)
    }

    fn enter(&mut self, place: &Place, ino: u64) -> Result<()> {
        let is_directory = self.node(ino)?.attr.kind == Kind::Directory;
        let parent = self.directory(place.parent)?;
        parent.children.insert(place.name.clone(), ino);
        parent.attr.nlink += u32::from(is_directory);
        parent.touched(true);
        if is_directory {
            self.node(ino)?.parent = place.parent.0;
        }
        Ok(())
    }

    fn leave(&mut self, place: &Place) -> Result<u64> {
        let ino = self.child(place)?;
        let is_directory = self.node(ino)?.attr.kind == Kind::Directory;
        let parent = self.directory(place.parent)?;
        parent.children.remove(&place.name);
        parent.attr.nlink -= u32::from(is_directory);
        parent.touched(true);
        Ok(ino)
    }

    /// A name of the node went.
    fn unlinked(&mut self, ino: u64) -> Result<Option<Attr>> {
        let node = self.node(ino)?;
        node.attr.nlink = if node.attr.kind == Kind::Directory { 0 } else { node.attr.nlink - 1 };
        node.touched(false);
        let left = (node.attr.nlink > 0).then_some(node.attr);
        if left.is_none() && !self.held.contains_key(&ino) {
            self.nodes.remove(&ino);
        }
        Ok(left)
    }

    fn done(&mut self, attr: Option<Attr>, directories: &[Ino]) -> Done {
        let directories =
            directories.iter().filter_map(|ino| self.nodes.get(&ino.0)).map(|node| node.attr).collect();
        Done { attr, directories, offset: 0 }
    }

    fn set(&mut self, ino: u64, change: AttrChange) -> Result<Attr> {
        let node = self.node(ino)?;
        if let Some(size) = change.size {
            node.resize(size);
            node.attr.data_version += 1;
        }
        node.touched(false);
        let now = node.attr.ctime;
        let time = |set| match set {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        let attr = &mut node.attr;
        attr.mode = change.mode.unwrap_or(attr.mode);
        attr.uid = change.uid.unwrap_or(attr.uid);
        attr.gid = change.gid.unwrap_or(attr.gid);
        if change.size.is_some() {
            attr.mtime = now;
        }
        attr.atime = change.atime.map_or(attr.atime, time);
        attr.mtime = change.mtime.map_or(attr.mtime, time);
        Ok(*attr)
    }

    fn rename(&mut self, from: &Place, to: &Place, mode: RenameMode) -> Result<Done> {
        let moved = self.child(from)?;
        let replaced = self.child(to).ok();
        self.directory(to.parent)?;
        let is_directory = self.node(moved)?.attr.kind == Kind::Directory;
        let mut above = to.parent.0;
        while is_directory && above != ROOT {
            if above == moved {
                return Err(Errno::INVAL);
            }
            above = self.node(above)?.parent;
        }
        match (mode, replaced) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT),
            (RenameMode::Exchange, Some(other)) => {
                self.leave(from)?;
                self.leave(to)?;
                self.enter(from, other)?;
                self.enter(to, moved)?;
                self.node(other)?.touched(false);
            }
            (_, Some(same)) if same == moved => return Ok(Done::default()),
            (_, replaced) => {
                if let Some(replaced) = replaced {
                    let other = self.node(replaced)?;
                    match (is_directory, other.attr.kind == Kind::Directory) {
                        (true, false) => return Err(Errno::NOTDIR),
                        (false, true) => return Err(Errno::ISDIR),
                        _ if !other.children.is_empty() => return Err(Errno::NOTEMPTY),
                        _ => {}
                    }
                    self.leave(to)?;
                    self.unlinked(replaced)?;
                }
                self.leave(from)?;
                self.enter(to, moved)?;
            }
        }
        self.node(moved)?.touched(false);
        let attr = self.node(moved)?.attr;
        Ok(self.done(Some(attr), &[from.parent, to.parent]))
    }

    fn payload(&self, payload: &Payload) -> Result<Bytes> {
        match payload {
            Payload::Inline(data) => Ok(data.clone()),
            Payload::Stored { token, .. } => self.stored.get(token).cloned().ok_or(Errno::INVAL),
        }
    }

    fn edit(&mut self, ino: u64, edits: &[Edit], mtime: Option<SystemTime>) -> Result<Done> {
        if let Some(errno) = self.fail_edits_with {
            return Err(errno);
        }
        let mut landed = 0;
        for edit in edits {
            match edit {
                Edit::Replace { data, version } => {
                    let node = self.node(ino)?;
                    if node.attr.data_version != *version {
                        return Err(Errno::STALE);
                    }
                    node.pages.clear();
                    node.attr.size = 0;
                    node.write(0, data);
                }
                Edit::Write { offset, data } => {
                    let data = self.payload(data)?;
                    self.node(ino)?.write(*offset, &data);
                }
                Edit::Append(data) => {
                    let data = self.payload(data)?;
                    let node = self.node(ino)?;
                    landed = node.attr.size;
                    node.write(landed, &data);
                }
                Edit::Punch { offset, length } => {
                    let node = self.node(ino)?;
                    let end = (offset + length).min(node.attr.size);
                    if *offset < end {
                        node.clear(*offset, end);
                    }
                }
                Edit::Extend(size) => {
                    let node = self.node(ino)?;
                    node.attr.size = node.attr.size.max(*size);
                }
                Edit::Finish => {}
                Edit::Copy { from, from_offset, offset, length } => {
                    let data = self.node(from.ino.0)?.read(*from_offset, *length);
                    self.node(ino)?.write(*offset, &data);
                }
            }
        }
        let node = self.node(ino)?;
        node.touched(true);
        node.attr.mtime = mtime.unwrap_or(node.attr.mtime);
        Ok(Done { attr: Some(node.attr), directories: Vec::new(), offset: landed })
    }

    fn lock(&mut self, ino: u64, lock: Lock) -> Result<Done> {
        let node = self.node(ino)?;
        if lock.kind != LockKind::Unlock && node.locks.iter().any(|held| stands_in_the_way(held, &lock)) {
            return Err(Errno::AGAIN);
        }
        let mut locks = Vec::new();
        for held in node.locks.drain(..) {
            if held.owner != lock.owner || held.end < lock.start || held.start > lock.end {
                locks.push(held);
                continue;
            }
            if held.start < lock.start {
                locks.push(Lock { end: lock.start - 1, ..held });
            }
            if held.end > lock.end {
                locks.push(Lock { start: lock.end + 1, ..held });
            }
        }
        if lock.kind != LockKind::Unlock {
            locks.push(lock);
        }
        node.locks = locks;
        Ok(Done::default())
    }

    fn set_xattr(&mut self, ino: u64, name: &Bytes, value: Option<&Bytes>, mode: XattrMode) -> Result<Done> {
        let node = self.node(ino)?;
        let at = node.xattrs.iter().position(|(known, _)| known == name);
        match (mode, at, value) {
            (XattrMode::Create, Some(_), _) => return Err(Errno::EXIST),
            (XattrMode::Replace, None, _) | (_, None, None) => return Err(Errno::NODATA),
            (_, Some(at), Some(value)) => node.xattrs[at].1 = value.clone(),
            (_, Some(at), None) => _ = node.xattrs.remove(at),
            (_, None, Some(value)) => node.xattrs.push((name.clone(), value.clone())),
        }
        node.touched(false);
        Ok(Done { attr: Some(node.attr), ..Done::default() })
    }

    fn apply(&mut self, operation: Operation) -> Result<Done> {
        match operation {
            Operation::Make { place, node, birth } => {
                if let Some(errno) = self.fail_makes_with {
                    return Err(errno);
                }
                if self.directory(place.parent)?.children.contains_key(&place.name) {
                    return Err(Errno::EXIST);
                }
                let ino = birth.ino.map_or_else(|| self.next_number(), |ino| ino.0);
                let mut node = new_node(ino, place.parent.0, node);
                node.write(0, &birth.data);
                node.attr.blocks = node.pages.len() as u64 * (PAGE_BYTES / 512);
                let made_at = birth.made_at.unwrap_or_else(now);
                (node.attr.ctime, node.attr.btime) = (made_at, made_at);
                node.attr.mtime = birth.mtime.unwrap_or(made_at);
                node.attr.atime = birth.atime.unwrap_or(made_at);
                if birth.is_leased && node.attr.kind == Kind::Directory {
                    self.leased.insert(Ino(ino));
                }
                self.nodes.insert(ino, node);
                self.enter(&place, ino)?;
                let attr = self.node(ino)?.attr;
                Ok(self.done(Some(attr), &[place.parent]))
            }
            Operation::SetAttributes { file, change } => {
                let attr = self.set(file.ino.0, change)?;
                Ok(Done { attr: Some(attr), ..Done::default() })
            }
            Operation::Link { file, to } => {
                if self.directory(to.parent)?.children.contains_key(&to.name) {
                    return Err(Errno::EXIST);
                }
                let node = self.node(file.ino.0)?;
                if node.attr.kind == Kind::Directory {
                    return Err(Errno::PERM);
                }
                node.attr.nlink += 1;
                node.touched(false);
                let attr = node.attr;
                self.enter(&to, file.ino.0)?;
                Ok(self.done(Some(attr), &[to.parent]))
            }
            Operation::Unlink { place, .. } => {
                let ino = self.child(&place)?;
                if self.node(ino)?.attr.kind == Kind::Directory {
                    return Err(Errno::ISDIR);
                }
                self.leave(&place)?;
                let left = self.unlinked(ino)?;
                Ok(self.done(left, &[place.parent]))
            }
            Operation::RemoveDirectory { place } => {
                let ino = self.child(&place)?;
                let node = self.node(ino)?;
                if node.attr.kind != Kind::Directory {
                    return Err(Errno::NOTDIR);
                }
                if !node.children.is_empty() {
                    return Err(Errno::NOTEMPTY);
                }
                self.leave(&place)?;
                self.unlinked(ino)?;
                Ok(self.done(None, &[place.parent]))
            }
            Operation::Rename { from, to, mode, .. } => self.rename(&from, &to, mode),
            Operation::Edit { file, edits, mtime } => self.edit(file.ino.0, &edits, mtime),
            Operation::SetXattr { file, name, value, mode } => {
                self.set_xattr(file.ino.0, &name, value.as_ref(), mode)
            }
            Operation::Lock { file, lock } => self.lock(file.ino.0, lock),
            Operation::Lease { directory, is_wanted: true } => {
                self.directory(directory)?;
                self.leased.insert(directory);
                Ok(Done::default())
            }
            Operation::Lease { directory, is_wanted: false } => {
                let was_leased = self.leased.remove(&directory);
                let attr = self.node(directory.0).ok().filter(|_| was_leased).map(|node| node.attr);
                Ok(Done { attr, ..Done::default() })
            }
        }
    }
}

fn stands_in_the_way(held: &Lock, wanted: &Lock) -> bool {
    held.owner != wanted.owner
        && held.start <= wanted.end
        && wanted.start <= held.end
        && (held.kind == LockKind::Write || wanted.kind == LockKind::Write)
}

impl Default for FilesInMemory {
    fn default() -> Self {
        let root = NewNode {
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
            xattrs: Vec::new(),
        };
        let mut inner = Inner::default();
        inner.nodes.insert(ROOT, new_node(ROOT, ROOT, root));
        Self {
            inner: Mutex::new(inner),
            changed: Notify::new(),
            messages: AtomicU64::default(),
            reads: AtomicU64::default(),
        }
    }
}

impl FilesInMemory {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on bytes are refused for this reason.
    pub fn fail_edits_with(&self, errno: Option<Errno>) {
        self.inner().fail_edits_with = errno;
    }

    /// From now on nothing is made, for this reason.
    pub fn fail_makes_with(&self, errno: Option<Errno>) {
        self.inner().fail_makes_with = errno;
    }

    /// Questions for bytes so far.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Messages that brought changes so far.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    pub fn is_leased(&self, directory: Ino) -> bool {
        self.inner().leased.contains(&directory)
    }

    /// Another mount wants a directory.
    pub fn recall(&self, directory: Ino) {
        self.inner().changes.push(Change::Recalled(directory));
        self.changed.notify_one();
    }

    /// A change by another's hand: this mount is told of it.
    pub fn change_elsewhere(&self, operation: Operation, changes: Vec<Change>) -> Result<Done> {
        let done = self.inner().apply(operation)?;
        self.inner().changes.extend(changes);
        self.changed.notify_one();
        Ok(done)
    }

    /// The node of a path below the root.
    pub fn find(&self, path: &str) -> Result<Ino> {
        let mut inner = self.inner();
        let mut ino = Ino(ROOT);
        for name in path.split('/') {
            let place = Place { parent: ino, name: Bytes::copy_from_slice(name.as_bytes()) };
            ino = Ino(inner.child(&place)?);
        }
        Ok(ino)
    }
}

#[async_trait::async_trait]
impl FileService for FilesInMemory {
    async fn root(&self) -> Result<Attr> {
        Ok(self.inner().node(ROOT)?.attr)
    }

    async fn lookup(&self, place: &Place) -> Result<Attr> {
        let mut inner = self.inner();
        let ino = inner.child(place)?;
        Ok(inner.node(ino)?.attr)
    }

    async fn attributes(&self, file: &FileRef) -> Result<Attr> {
        Ok(self.inner().node(file.ino.0)?.attr)
    }

    async fn list(&self, directory: Ino, cursor: Bytes) -> Result<Page> {
        let mut inner = self.inner();
        let node = inner.node(directory.0)?;
        let parent = Some(Ino(node.parent));
        let after = node.children.iter().filter(|(name, _)| **name > cursor);
        let names: Vec<_> = after.take(LIST_MAX).map(|(name, ino)| (name.clone(), *ino)).collect();
        let is_end = names.len() < LIST_MAX;
        let mut entries = Vec::new();
        for (name, ino) in names {
            entries.push(Entry { attr: inner.node(ino)?.attr, cursor: name.clone(), name });
        }
        Ok(Page { entries, is_end, parent })
    }

    async fn read_link(&self, file: &FileRef) -> Result<Bytes> {
        Ok(self.inner().node(file.ino.0)?.target.clone())
    }

    async fn xattrs(&self, file: &FileRef) -> Result<Vec<(Bytes, Bytes)>> {
        Ok(self.inner().node(file.ino.0)?.xattrs.clone())
    }

    async fn read(&self, file: &FileRef, offset: u64, length: u64) -> Result<Read> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.inner();
        let node = inner.node(file.ino.0)?;
        Ok(Read { data: node.read(offset, length).into(), attr: node.attr })
    }

    async fn seek(&self, file: &FileRef, offset: u64, to: SeekTo) -> Result<u64> {
        let mut inner = self.inner();
        let node = inner.node(file.ino.0)?;
        if offset >= node.attr.size {
            return Err(Errno::NXIO);
        }
        let page = offset / PAGE_BYTES;
        match to {
            SeekTo::Data => {
                let next = node.pages.range(page..).next().map(|(page, _)| (page * PAGE_BYTES).max(offset));
                next.filter(|next| *next < node.attr.size).ok_or(Errno::NXIO)
            }
            SeekTo::Hole => {
                let mut hole = page;
                while node.pages.contains_key(&hole) {
                    hole += 1;
                }
                Ok((hole * PAGE_BYTES).clamp(offset, node.attr.size))
            }
        }
    }

    async fn space(&self) -> Result<Space> {
        let inner = self.inner();
        let pages: usize = inner.nodes.values().map(|node| node.pages.len()).sum();
        let bytes_used = pages as u64 * PAGE_BYTES;
        Ok(Space { bytes_total: SPACE_BYTES, bytes_used, files: inner.nodes.len() as u64 })
    }

    async fn lock_conflict(&self, file: &FileRef, lock: Lock) -> Result<Option<Lock>> {
        let mut inner = self.inner();
        Ok(inner.node(file.ino.0)?.locks.iter().find(|held| stands_in_the_way(held, &lock)).copied())
    }

    async fn store(&self, data: Bytes) -> Result<Payload> {
        let mut inner = self.inner();
        inner.last += 1;
        let token = Bytes::copy_from_slice(&inner.last.to_le_bytes());
        let length = data.len() as u64;
        inner.stored.insert(token.clone(), data);
        Ok(Payload::Stored { token, length })
    }

    async fn apply(&self, operations: Vec<Operation>) -> Result<Vec<Result<Done>>> {
        self.messages.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.inner();
        let done = operations.into_iter().map(|operation| inner.apply(operation)).collect();
        inner.stored.clear();
        Ok(done)
    }

    async fn tell(&self, operations: Vec<Operation>) -> Result<Vec<Result<Done>>> {
        tokio::time::sleep(AWAY).await;
        self.apply(operations).await
    }

    fn number(&self) -> Option<Ino> {
        Some(Ino(self.inner().next_number()))
    }

    fn alone_for(&self) -> Duration {
        CACHE_FOR
    }

    fn hold(&self, ino: Ino) {
        *self.inner().held.entry(ino.0).or_default() += 1;
    }

    fn release(&self, ino: Ino) {
        let mut inner = self.inner();
        let left = inner.held.get(&ino.0).map_or(0, |count| count - 1);
        if left > 0 {
            inner.held.insert(ino.0, left);
            return;
        }
        inner.held.remove(&ino.0);
        if inner.node(ino.0).is_ok_and(|node| node.attr.nlink == 0) {
            inner.nodes.remove(&ino.0);
        }
    }

    async fn changes(&self) -> Vec<Change> {
        loop {
            let changed = self.changed.notified();
            let changes = std::mem::take(&mut self.inner().changes);
            if !changes.is_empty() {
                return changes;
            }
            changed.await;
        }
    }

    fn cache_for(&self) -> Duration {
        CACHE_FOR
    }

    async fn close(&self) {}
}
