//! One mounted bucket: what the kernel asks, answered from what is known here, else by the pool.
//!
//! Names and attributes are changed in the pool at once, or where a directory is this mount's alone, here and told soon after
//! ([`alone`](super::alone)); bytes are kept here for at most a second ([`data`](super::data)). What the pool told is believed while its stream of changes is open and told nothing else:
//! each answer is stamped with the epoch in which it was asked for, and a change told since makes it worthless.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::Notify;

use super::acl;
use super::blocks::BlockCache;
use super::disk_cache::DiskCache;
use super::handles::Handles;
use super::later::Later;
use super::nodes::{Node, Table, lock};
use super::past;
use super::service::{
    Attr, AttrChange, Birth, Change, Done, Errno, FileService, Ino, Kind, NewNode, Operation, Place,
    RenameMode, Result, Space, XattrMode,
};

/// Longest name of a file, as on every Linux filesystem.
pub const NAME_BYTES_MAX: usize = 255;
/// The kernel believes an answer at most so long, even while the pool vouches for longer.
const KERNEL_CACHE_MAX: Duration = Duration::from_secs(10);
/// That a name stands for nothing is believed by the kernel alone: nobody can tell it all of them when changes were lost.
const MISSING_CACHE_MAX: Duration = Duration::from_secs(1);

/// How a mount behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// `close` waits until the bytes are durable.
    pub durable_close: bool,
    /// Memory for bytes that were written and not sent.
    pub unsent_bytes_max: usize,
    /// Memory for bytes that were read.
    pub cache_bytes_max: usize,
    /// Keeps what was read beyond memory.
    pub disk_cache: Option<Arc<DiskCache>>,
    /// Directories that this mount alone changes are asked for: names in them are then changed without waiting.
    pub decides_alone: bool,
    /// Reads the wall clock.
    pub now: fn() -> SystemTime,
}

/// Attributes, and how long they may be believed.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub attr: Attr,
    pub valid_for: Duration,
}

/// What the kernel must forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forget {
    Node(Ino),
    Name(Place),
}

/// One mounted bucket.
pub struct Mount {
    pub(super) service: Arc<dyn FileService>,
    pub(super) options: Options,
    pub(super) table: Mutex<Table>,
    pub(super) handles: Mutex<Handles>,
    pub(super) blocks: Mutex<BlockCache>,
    /// Bytes that were written and are not in the pool yet, of all files.
    pub(super) unsent: Mutex<usize>,
    pub(super) room: Notify,
    /// Files with unsent bytes; some may have been sent since.
    pub(super) dirty: Mutex<Vec<Arc<Node>>>,
    /// Bytes that the pool still takes, as far as it is known; what comes near is sent before it is acknowledged.
    pub(super) pool_room: AtomicU64,
    pub(super) is_written: Notify,
    pub(super) fetches: tokio::sync::Semaphore,
    pub(super) later: Later,
    epoch: AtomicU64,
    changes: AtomicU64,
    pub(super) forgets: tokio::sync::mpsc::Sender<Forget>,
    root: Ino,
}

/// How the world stood when the pool was asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    epoch: u64,
    changes: u64,
    /// Own changes of the file, where it was known.
    own: Option<u64>,
}

/// Fetches that may be on their way at once, read-ahead included.
const FETCHES_MAX: usize = 32;

impl Mount {
    /// Begins; `forgets` is told what the kernel must forget.
    ///
    /// # Errors
    /// The pool does not tell its root.
    pub async fn begin(
        service: Arc<dyn FileService>,
        options: Options,
        forgets: tokio::sync::mpsc::Sender<Forget>,
    ) -> Result<Arc<Self>> {
        let root = service.root().await?;
        let mount = Self {
            service,
            table: Mutex::default(),
            handles: Mutex::default(),
            blocks: Mutex::new(BlockCache::new(options.cache_bytes_max)),
            unsent: Mutex::new(0),
            room: Notify::new(),
            dirty: Mutex::default(),
            pool_room: AtomicU64::new(u64::MAX),
            is_written: Notify::new(),
            fetches: tokio::sync::Semaphore::new(FETCHES_MAX),
            later: Later::default(),
            epoch: AtomicU64::new(1),
            changes: AtomicU64::new(0),
            forgets,
            root: root.ino,
            options,
        };
        let node = lock(&mount.table).node_or_new(root);
        lock(&node.state).lookups = 1;
        Ok(Arc::new(mount))
    }

    #[must_use]
    pub fn root(&self) -> Ino {
        self.root
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.options.now)()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        lock(&self.table).node(ino).ok_or(Errno::STALE)
    }

    fn place(parent: Ino, name: &OsStr) -> Result<Place> {
        if name.len() > NAME_BYTES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        Ok(Place { parent, name: Bytes::copy_from_slice(name.as_bytes()) })
    }

    pub(super) fn asking(&self, node: Option<&Node>) -> Asked {
        let own = node.map(|node| lock(&node.state).changes);
        Asked { epoch: self.epoch(), changes: self.changes.load(Ordering::Acquire), own }
    }

    /// Keeps an answer; returns its file. An answer that was overtaken is not kept, and vouched for by nobody.
    pub(super) fn learn(&self, attr: Attr, asked: Asked) -> Arc<Node> {
        let node = lock(&self.table).node_or_new(attr);
        let is_current = self.changes.load(Ordering::Acquire) == asked.changes && self.epoch() == asked.epoch;
        let mut state = lock(&node.state);
        if asked.own.unwrap_or(0) == state.changes {
            if state.attr.data_version != attr.data_version {
                state.generation += 1;
            }
            state.learn(attr);
            state.fresh_in = if is_current { asked.epoch } else { 0 };
            if is_current && attr.has_no_xattrs {
                state.xattrs = Some(Vec::new());
            }
        }
        drop(state);
        node
    }

    /// Keeps attributes from a listing where nothing is known yet; whether the file's are good now.
    pub(super) fn learn_listed(&self, node: &Node, listed: &super::handles::Listed) -> bool {
        let asked = listed.asked;
        let is_current = self.changes.load(Ordering::Acquire) == asked.changes && self.epoch() == asked.epoch;
        let mut state = lock(&node.state);
        if state.fresh_in == self.epoch() {
            return true;
        }
        if state.changes > 0 || state.lookups > 0 || !is_current {
            return false;
        }
        state.learn(listed.attr);
        state.fresh_in = asked.epoch;
        if listed.attr.has_no_xattrs {
            state.xattrs = Some(Vec::new());
        }
        true
    }

    /// Keeps what an own change left of a file. Answers about one file come in order: its turn is held.
    pub(super) fn learn_own(&self, attr: Attr, asked: Asked) -> Arc<Node> {
        let node = lock(&self.table).node_or_new(attr);
        let mut state = lock(&node.state);
        state.changes += 1;
        state.learn(attr);
        state.fresh_in = if self.changes.load(Ordering::Acquire) == asked.changes { asked.epoch } else { 0 };
        drop(state);
        node
    }

    fn learn_directories(&self, done: &Done, asked: Asked) {
        for attr in &done.directories {
            if lock(&self.table).node(attr.ino).is_some() {
                self.learn_own(*attr, asked);
            }
        }
    }

    pub(super) fn seen(&self, node: &Node) -> Seen {
        let vouched = self.service.cache_for().min(KERNEL_CACHE_MAX);
        let state = lock(&node.state);
        let is_fresh = state.fresh_in == self.epoch();
        Seen { attr: state.seen(), valid_for: if is_fresh { vouched } else { Duration::ZERO } }
    }

    pub(super) fn is_fresh(&self, node: &Node) -> bool {
        lock(&node.state).fresh_in == self.epoch() && !self.service.cache_for().is_zero()
    }

    /// Counts one more reference of the kernel's.
    pub(super) fn refer(&self, node: &Node) -> Seen {
        lock(&node.state).lookups += 1;
        self.seen(node)
    }

    /// A refusal that says that nothing has changed leaves what is known as it is.
    fn doubt_unless_plain(&self, errno: Errno, directories: &[Ino]) {
        const PLAIN: [Errno; 6] =
            [Errno::EXIST, Errno::NOENT, Errno::NOTDIR, Errno::ISDIR, Errno::INVAL, Errno::NAMETOOLONG];
        let is_not_empty = errno.0 == libc::ENOTEMPTY;
        if !is_not_empty && !PLAIN.contains(&errno) {
            self.doubt_alone(directories);
        }
    }

    pub(super) async fn apply(&self, operation: Operation) -> Result<Done> {
        let mut answers = self.service.apply(vec![operation]).await?;
        answers.pop().unwrap_or(Err(Errno::IO))
    }

    /// `ENOENT` may be believed as long as the answer's second part says.
    pub async fn lookup(&self, parent: Ino, name: &OsStr) -> std::result::Result<Seen, (Errno, Duration)> {
        let place = Self::place(parent, name).map_err(|errno| (errno, Duration::ZERO))?;
        if past::is_past(parent) {
            return self.lookup_past(place).await;
        }
        match self.lookup_present(place).await {
            Err((Errno::NOENT, vouched)) if name.as_bytes() == past::NAME => {
                self.past_root(parent, name.as_bytes()).await.map_err(|errno| (errno, vouched))
            }
            found => found,
        }
    }

    async fn lookup_present(&self, place: Place) -> std::result::Result<Seen, (Errno, Duration)> {
        let parent = place.parent;
        let asked = self.asking(None);
        if self.is_missing_alone(&place) {
            return Err((Errno::NOENT, self.service.cache_for().min(MISSING_CACHE_MAX)));
        }
        let known = lock(&self.table).named_in(&place, asked.epoch);
        if let Some(node) = known.filter(|node| self.is_fresh(node)) {
            return Ok(self.refer(&node));
        }
        let vouched = self.service.cache_for().min(MISSING_CACHE_MAX);
        if !vouched.is_zero() && lock(&self.table).is_missing(&place, asked.epoch) {
            return Err((Errno::NOENT, vouched));
        }
        let known = lock(&self.table).named(&place);
        let known = known.map(|node| (node.ino, lock(&node.state).changes));
        if let Ok(directory) = self.node(parent) {
            self.tell_of_node(&directory).await;
        }
        match self.service.lookup(&place).await {
            Ok(attr) => {
                let own = known.filter(|(ino, _)| *ino == attr.ino).map(|(_, own)| own);
                let own =
                    own.or_else(|| lock(&self.table).node(attr.ino).map(|node| lock(&node.state).changes));
                let node = self.learn(attr, Asked { own, ..asked });
                let is_current = self.changes.load(Ordering::Acquire) == asked.changes;
                lock(&self.table).name(place, &node, if is_current { asked.epoch } else { 0 });
                Ok(self.refer(&node))
            }
            Err(Errno::NOENT) => {
                lock(&self.table).unname(&place);
                self.doubt_alone(&[parent]);
                let is_current = self.changes.load(Ordering::Acquire) == asked.changes;
                Err((Errno::NOENT, if is_current { vouched } else { Duration::ZERO }))
            }
            Err(errno) => Err((errno, Duration::ZERO)),
        }
    }

    /// The kernel forgot a file so many times.
    pub fn forget(&self, ino: Ino, count: u64) {
        let mut table = lock(&self.table);
        if let Some(node) = table.node(ino).filter(|node| node.ino != self.root) {
            let mut state = lock(&node.state);
            state.lookups = state.lookups.saturating_sub(count);
            drop(state);
            table.drop_unused(ino);
        }
    }

    /// # Errors
    /// As the pool says.
    pub async fn attributes(&self, ino: Ino) -> Result<Seen> {
        let node = self.node(ino)?;
        self.refresh(&node).await?;
        Ok(self.seen(&node))
    }

    /// Asks for attributes unless they are known.
    pub(super) async fn refresh(&self, node: &Node) -> Result<()> {
        if past::is_past(node.ino) {
            lock(&node.state).fresh_in = self.epoch(); // It never changes.
            return Ok(());
        }
        if !self.is_fresh(node) {
            self.tell_of_node(node).await;
            let asked = self.asking(Some(node));
            let attr = self.service.attributes(&node.file_ref()).await?;
            self.learn(attr, asked);
        }
        Ok(())
    }

    /// # Errors
    /// As the pool says; the failure of bytes that had to be sent before.
    pub async fn set_attributes(self: &Arc<Self>, ino: Ino, change: AttrChange) -> Result<Seen> {
        Self::check_present(&[ino])?;
        let node = self.node(ino)?;
        if self.change_unborn(&node, &change) {
            return Ok(self.seen(&node));
        }
        // The pool's answer says how many links a directory has: with those that are decided here already.
        let _changing = match node.kind() {
            Kind::Directory => Some(self.change_in(&[ino]).await),
            _ => None,
        };
        let mut operations = vec![Operation::SetAttributes { file: node.file_ref(), change }];
        if let Some(mode) = change.mode {
            let xattrs = self.xattrs(&node).await?;
            operations.extend(acl::after_chmod(&xattrs, mode).map(|(name, value)| Operation::SetXattr {
                file: node.file_ref(),
                name,
                value: Some(value),
                mode: XattrMode::Either,
            }));
            if operations.len() > 1 {
                lock(&node.state).xattrs = None;
            }
        }
        if change.size.is_some() && self.service.keeps_versions() {
            self.finish_closed(&node).await;
            if lock(&node.state).writers == 0 {
                let (file, edits) = (node.file_ref(), vec![super::service::Edit::Finish]);
                operations.push(Operation::Edit { file, edits, mtime: None });
            } else {
                lock(&node.state).is_unfinished = true;
            }
        }
        self.change_file(&node, operations).await?;
        if change.size.is_some() {
            let size = lock(&node.state).attr.size;
            lock(&self.blocks).drop_range(ino, size..u64::MAX);
        }
        Ok(self.seen(&node))
    }

    /// Makes a node; the kernel refers to it once more.
    ///
    /// # Errors
    /// As the pool says.
    pub async fn make(&self, parent: Ino, name: &OsStr, mut node: NewNode, umask: u32) -> Result<Seen> {
        let place = Self::place(parent, name)?;
        Self::check_present(&[parent])?;
        let directory = self.node(parent)?;
        self.refresh(&directory).await?;
        let attr = lock(&directory.state).attr;
        if attr.mode & libc::S_ISGID != 0 {
            node.gid = attr.gid;
            if node.kind == Kind::Directory {
                node.mode |= libc::S_ISGID;
            }
        }
        let inherited = self.xattrs(&directory).await?;
        acl::inherit(&inherited, &mut node, umask);
        if let Some(made) = self.make_alone(&place, &node) {
            return made;
        }
        self.have_alone(&directory).await;
        if let Some(made) = self.make_alone(&place, &node) {
            return made;
        }
        let _changing = self.change_in(&[parent]).await;
        let (xattrs, target) = (node.xattrs.clone(), node.target.clone());
        let asked = self.asking(None);
        let birth = Birth { is_leased: self.decides_alone(), ..Birth::default() };
        let done = self.apply(Operation::Make { place: place.clone(), node, birth }).await;
        let done = done.inspect_err(|errno| {
            lock(&self.table).doubt_names_in(parent);
            self.doubt_unless_plain(*errno, &[parent]);
        })?;
        let attr = done.attr.ok_or(Errno::IO)?;
        self.learn_directories(&done, asked);
        let node = self.learn_own(attr, asked);
        {
            let mut state = lock(&node.state);
            if attr.kind == Kind::Directory && self.changes.load(Ordering::Acquire) == asked.changes {
                state.complete_in = asked.epoch; // It is new, and empty.
            }
        }
        self.was_named(&place, node.ino);
        if attr.kind == Kind::Directory && self.epoch() == asked.epoch {
            self.begin_alone(node.ino);
        }
        lock(&self.table).name(place, &node, asked.epoch);
        {
            let mut state = lock(&node.state);
            state.xattrs = Some(xattrs);
            state.target = (attr.kind == Kind::Symlink).then_some(target);
        }
        Ok(self.refer(&node))
    }

    /// # Errors
    /// As the pool says.
    pub async fn link(self: &Arc<Self>, ino: Ino, parent: Ino, name: &OsStr) -> Result<Seen> {
        Self::check_present(&[ino, parent])?;
        let (node, place) = (self.node(ino)?, Self::place(parent, name)?);
        let operation = Operation::Link { file: node.file_ref(), to: place.clone() };
        let _changing = self.change_in(&[parent]).await;
        let asked = self.asking(None);
        let done = self.change_file(&node, vec![operation]).await;
        let done = done.inspect_err(|errno| self.doubt_unless_plain(*errno, &[parent]))?;
        self.learn_directories(&done, asked);
        self.was_named(&place, ino);
        lock(&self.table).name(place, &node, asked.epoch);
        Ok(self.refer(&node))
    }

    /// What a name stands for, as far as anything depends on it here: an open file outlives its name.
    fn known(&self, place: &Place) -> (Option<Arc<Node>>, bool) {
        let node = lock(&self.table).named(place);
        let is_held = node.as_ref().is_some_and(|node| lock(&node.state).opens > 0);
        (node, is_held)
    }

    /// A name of this file went.
    fn lost_name(&self, place: &Place, node: Option<Arc<Node>>, left: Option<Attr>, asked: Asked) {
        lock(&self.table).unname(place);
        self.was_unnamed(place);
        let Some(node) = node else { return };
        match left.filter(|left| left.ino == node.ino) {
            Some(left) => {
                self.learn_own(left, asked);
            }
            None => {
                let mut state = lock(&node.state);
                state.changes += 1;
                state.attr.nlink = 0;
                let discarded = if state.opens == 0 { state.discard_unsent() } else { 0 };
                state.fresh_in = 0;
                drop(state);
                self.has_sent(discarded);
                lock(&self.table).drop_unused(node.ino);
            }
        }
    }

    /// # Errors
    /// As the pool says.
    pub async fn unlink(self: &Arc<Self>, parent: Ino, name: &OsStr) -> Result<()> {
        Self::check_present(&[parent])?;
        let place = Self::place(parent, name)?;
        if let Some(done) = self.remove_alone(&place, false) {
            return done;
        }
        if let Ok(directory) = self.node(parent) {
            self.have_alone(&directory).await;
        }
        if let Some(done) = self.remove_alone(&place, false) {
            return done;
        }
        let _changing = self.change_in(&[parent]).await;
        let (node, is_held) = self.known(&place);
        if let Some(node) = &node {
            self.finish_closed(node).await;
        }
        let _turn = match &node {
            Some(node) => Some(node.turn.lock().await),
            None => None,
        };
        let asked = self.asking(None);
        let done = self.apply(Operation::Unlink { place: place.clone(), is_held }).await;
        let done = done.inspect_err(|errno| self.doubt_unless_plain(*errno, &[parent]))?;
        self.learn_directories(&done, asked);
        self.lost_name(&place, node.clone(), done.attr, asked);
        Ok(())
    }

    /// # Errors
    /// As the pool says.
    pub async fn remove_directory(&self, parent: Ino, name: &OsStr) -> Result<()> {
        Self::check_present(&[parent])?;
        let place = Self::place(parent, name)?;
        if let Some(done) = self.remove_alone(&place, true) {
            return done;
        }
        let (node, _) = self.known(&place);
        let directories: Vec<Ino> = node.iter().map(|node| node.ino).chain([parent]).collect();
        let _changing = self.change_in(&directories).await;
        let asked = self.asking(None);
        let done = self.apply(Operation::RemoveDirectory { place: place.clone() }).await;
        let done = done.inspect_err(|errno| self.doubt_unless_plain(*errno, &directories))?;
        self.learn_directories(&done, asked);
        self.lost_name(&place, node, None, asked);
        Ok(())
    }

    /// What was written to the file before reaches the pool before its new name does.
    ///
    /// # Errors
    /// As the pool says.
    pub async fn rename(
        self: &Arc<Self>,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        mode: RenameMode,
    ) -> Result<()> {
        Self::check_present(&[from.0, to.0])?;
        let (from, to) = (Self::place(from.0, from.1)?, Self::place(to.0, to.1)?);
        if from == to {
            return Ok(());
        }
        if let Some(done) = self.rename_alone(&from, &to, mode) {
            return done;
        }
        for parent in [from.parent, to.parent] {
            if let Ok(directory) = self.node(parent) {
                self.have_alone(&directory).await;
            }
        }
        if let Some(done) = self.rename_alone(&from, &to, mode) {
            return done;
        }
        let mut directories = vec![from.parent, to.parent];
        directories.extend(lock(&self.table).named(&to).map(|replaced| replaced.ino));
        directories.sort_unstable();
        directories.dedup();
        let _changing = self.change_in(&directories).await;
        let (moved, _) = self.known(&from);
        let (replaced, is_replaced_held) = self.known(&to);
        for node in moved.iter().chain(&replaced) {
            self.finish_closed(node).await;
        }
        if moved.is_none() {
            lock(&self.table).doubt_names_in(to.parent);
        }
        let is_same = moved.as_ref().zip(replaced.as_ref()).is_some_and(|(a, b)| a.ino == b.ino);
        let operation = Operation::Rename { from: from.clone(), to: to.clone(), mode, is_replaced_held };
        let asked = self.asking(None);
        let done = match &moved {
            Some(moved) => self.change_file(moved, vec![operation]).await,
            None => self.apply(operation).await,
        };
        let done = done.inspect_err(|errno| self.doubt_unless_plain(*errno, &directories))?;
        self.learn_directories(&done, asked);
        if is_same {
            return Ok(()); // Two names of one file: both stay.
        }
        match (mode, replaced) {
            (RenameMode::Exchange, replaced) => {
                let mut table = lock(&self.table);
                table.unname(&from);
                table.unname(&to);
                replaced.inspect(|node| table.name(from.clone(), node, 0));
                moved.inspect(|node| table.name(to.clone(), node, 0));
            }
            (_, replaced) => {
                if let Some(replaced) = replaced {
                    let has_more = lock(&replaced.state).attr.nlink > 1 && replaced.kind() != Kind::Directory;
                    if has_more {
                        let mut state = lock(&replaced.state);
                        state.changes += 1;
                        state.attr.nlink -= 1;
                        state.fresh_in = 0;
                        drop(state);
                        lock(&self.table).unname(&to);
                    } else {
                        self.lost_name(&to, Some(replaced), None, asked);
                    }
                }
                let mut table = lock(&self.table);
                table.unname(&from);
                moved.inspect(|node| table.name(to.clone(), node, asked.epoch));
            }
        }
        // Last: what was replaced has lost the name before.
        match done.attr {
            Some(attr) if mode != RenameMode::Exchange => {
                self.was_unnamed(&from);
                self.was_named(&to, attr.ino);
            }
            _ => self.doubt_alone(&directories),
        }
        Ok(())
    }

    /// # Errors
    /// As the pool says.
    pub async fn read_link(&self, ino: Ino) -> Result<Bytes> {
        let node = self.node(ino)?;
        if let Some(target) = lock(&node.state).target.clone() {
            return Ok(target);
        }
        self.tell_of_node(&node).await;
        let target = self.service.read_link(&node.file_ref()).await?;
        lock(&node.state).target = Some(target.clone());
        Ok(target)
    }

    pub(super) async fn xattrs(&self, node: &Node) -> Result<Vec<(Bytes, Bytes)>> {
        if past::is_past(node.ino) {
            return Ok(Vec::new());
        }
        self.refresh(node).await?;
        let (before, known) = {
            let state = lock(&node.state);
            (state.changes, state.xattrs.clone())
        };
        if let Some(known) = known.filter(|_| !self.service.cache_for().is_zero()) {
            return Ok(known);
        }
        self.tell_of_node(node).await;
        let asked = self.asking(None);
        let xattrs = self.service.xattrs(&node.file_ref()).await?;
        let mut state = lock(&node.state);
        let is_current = self.changes.load(Ordering::Acquire) == asked.changes && self.epoch() == asked.epoch;
        if is_current && state.changes == before {
            state.xattrs = Some(xattrs.clone());
        }
        Ok(xattrs)
    }

    /// # Errors
    /// `ENODATA` without it.
    pub async fn xattr(&self, ino: Ino, name: &OsStr) -> Result<Bytes> {
        let xattrs = self.xattrs(&*self.node(ino)?).await?;
        xattrs
            .into_iter()
            .find(|(known, _)| known == name.as_bytes())
            .map(|(_, value)| value)
            .ok_or(Errno::NODATA)
    }

    /// The names, each with a NUL behind it.
    ///
    /// # Errors
    /// As the pool says.
    pub async fn xattr_names(&self, ino: Ino) -> Result<Vec<u8>> {
        let xattrs = self.xattrs(&*self.node(ino)?).await?;
        Ok(xattrs.iter().flat_map(|(name, _)| name.iter().copied().chain([0])).collect())
    }

    /// Sets, or removes without a value. An access list changes the permission bits with it.
    ///
    /// # Errors
    /// As the pool says.
    pub async fn set_xattr(
        self: &Arc<Self>,
        ino: Ino,
        name: &OsStr,
        value: Option<&[u8]>,
        mode: XattrMode,
    ) -> Result<()> {
        Self::check_present(&[ino])?;
        let node = self.node(ino)?;
        if name.len() > NAME_BYTES_MAX {
            return Err(Errno::RANGE);
        }
        let file = node.file_ref();
        let name = Bytes::copy_from_slice(name.as_bytes());
        let mut operations = Vec::new();
        let mut value = value.map(Bytes::copy_from_slice);
        if let (true, Some(list)) = (&name[..] == acl::ACCESS, &value) {
            let (mode, is_minimal) = acl::mode_of(list, lock(&node.state).attr.mode)?;
            let change = AttrChange { mode: Some(mode), ..AttrChange::default() };
            operations.push(Operation::SetAttributes { file: file.clone(), change });
            if is_minimal {
                value = None; // The permission bits say it all.
            }
        }
        let is_there = self.xattrs(&node).await?.iter().any(|(known, _)| *known == name);
        let is_acl = &name[..] == acl::ACCESS || &name[..] == acl::DEFAULT;
        if !(is_acl && value.is_none() && !is_there) {
            operations.push(Operation::SetXattr { file, name, value, mode });
        }
        let changed = self.change_file(&node, operations).await.map(drop);
        lock(&node.state).xattrs = None;
        changed
    }

    /// # Errors
    /// As the pool says.
    pub async fn space(&self) -> Result<Space> {
        self.service.space().await
    }

    /// Takes what others changed, until the service ends.
    pub async fn follow_changes(self: Arc<Self>) {
        loop {
            let changes = self.service.changes().await;
            if changes.is_empty() {
                return;
            }
            for change in changes {
                for forget in self.take_change(change) {
                    if self.forgets.send(forget).await.is_err() {
                        return; // Unmounted.
                    }
                }
            }
        }
    }

    fn take_change(&self, change: Change) -> Vec<Forget> {
        self.changes.fetch_add(1, Ordering::AcqRel);
        let doubt = |node: &Node| {
            let mut state = lock(&node.state);
            state.fresh_in = 0;
            state.generation += 1;
            state.xattrs = None;
        };
        match change {
            Change::Node(ino) => {
                let node = lock(&self.table).node(ino);
                node.iter().for_each(|node| doubt(node));
                node.map(|_| Forget::Node(ino)).into_iter().collect()
            }
            Change::Name(place) => {
                let (parent, named) = {
                    let mut table = lock(&self.table);
                    table.doubt_name(&place);
                    table.doubt_names_in(place.parent);
                    (table.node(place.parent), table.named(&place))
                };
                let nodes = [parent, named].into_iter().flatten();
                let forgets = nodes.map(|node| {
                    lock(&node.state).fresh_in = 0; // Times and links of both.
                    Forget::Node(node.ino)
                });
                // Also where the name is not known here: the kernel may know that it stands for nothing.
                forgets.chain([Forget::Name(place)]).collect()
            }
            Change::Unlocked(_) => Vec::new(),
            Change::Recalled(directory) => {
                self.is_recalled(directory);
                Vec::new()
            }
            Change::All => {
                self.leave_all_alone();
                self.epoch.fetch_add(1, Ordering::AcqRel);
                let (nodes, places) = {
                    let table = lock(&self.table);
                    (table.nodes().cloned().collect::<Vec<_>>(), table.places())
                };
                nodes.iter().for_each(|node| doubt(node));
                let nodes = nodes.into_iter().map(|node| Forget::Node(node.ino));
                nodes.chain(places.into_iter().map(Forget::Name)).collect()
            }
        }
    }

    /// Sends what is unsent and ends the session.
    ///
    /// # Errors
    /// Bytes that were written are lost.
    pub async fn end(self: &Arc<Self>) -> Result<()> {
        self.tell_all().await;
        let sent = self.send_all().await;
        self.service.close().await;
        if self.is_anything_lost() { sent.and(Err(Errno::IO)) } else { sent }
    }
}
