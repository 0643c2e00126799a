//! The files that the kernel knows, and what this mount knows of each.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::buffer::{WriteBuffer, lay_piece_over};
use super::past::Past;
use super::service::{Attr, Birth, Errno, FileRef, Ino, Kind, NewNode, Place};

/// A state stays sound when a thread panics with it in hand: each change of it is one step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One file.
#[derive(Debug)]
pub struct Node {
    pub ino: Ino,
    /// Held while a change of this file is on its way: they reach the pool, and their answers come back, one by one.
    pub turn: Arc<tokio::sync::Mutex<()>>,
    pub state: Mutex<State>,
    /// Told when blocks have come, or will not come.
    pub fetched: tokio::sync::Notify,
}

/// What is known of a file, and what the pool does not know yet.
#[derive(Debug)]
pub struct State {
    /// As the pool told last, but for what was decided here since, and [`times`](Self::times).
    pub attr: Attr,
    pub times: Times,
    /// In which epoch of the mount it was told; another epoch's is asked for again.
    pub fresh_in: u64,
    /// Own changes whose answers came: a question asked before one of them has an answer too old to keep.
    pub changes: u64,
    /// Names under which it was seen, the latest last.
    pub places: Vec<Place>,
    /// How many times the kernel was told of it, less how many it forgot.
    pub lookups: u64,
    pub opens: u32,
    /// Of these, those that may write.
    pub writers: u32,
    /// Where versions are kept: the pool goes on to change the version that was begun here until it is told that it is finished.
    pub is_unfinished: bool,
    /// A program has closed the file, and nothing was written since.
    pub is_flushed: bool,
    pub unsent: WriteBuffer,
    /// Bytes of `O_APPEND`, and where they begin if nobody else appends.
    pub appended: Option<(u64, BytesMut)>,
    /// On their way to the pool.
    pub sending: Vec<(u64, Bytes)>,
    pub unsent_since: Option<Instant>,
    /// It is on the mount's list of files with unsent bytes.
    pub is_listed_dirty: bool,
    /// When a program last wrote what is not sent, or is on its way.
    pub written_at: Option<SystemTime>,
    /// Write-backs that failed so far, and why the last did.
    pub failure_count: u64,
    pub failure: Option<Errno>,
    /// Whether no open file has reported the last failure.
    pub is_failure_unseen: bool,
    /// Another with each change of its bytes by others: blocks are cached under it.
    pub generation: u64,
    /// Under which generation the kernel filled its own cache.
    pub kernel_generation: Option<u64>,
    /// Blocks on their way from the pool.
    pub fetching: BTreeSet<u64>,
    pub xattrs: Option<Vec<(Bytes, Bytes)>>,
    /// Of a symbolic link: it never changes.
    pub target: Option<Bytes>,
    /// Of a directory: in which epoch the table had all of its names. A name that is missing there stands for nothing.
    pub complete_in: u64,
    pub lock_owners: HashSet<u64>,
    /// It was made here, and the pool is not being told yet: what changes of it changes what is told.
    pub making: Option<Box<Making>>,
    /// Changes of it that the pool is still to be told of, or is being told.
    pub untold: u32,
    /// It is no file of the bucket but a version, or a directory of versions.
    pub past: Option<Arc<Past>>,
}

/// Whose the times of a directory are: a change that is decided here has this machine's time, and the pool's, milliseconds later,
/// once it is told. Programs that compare them (`tar`, builds) see one change, not two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Times {
    #[default]
    Pool,
    /// Decided here; the pool's of the same change are not known yet.
    Own,
    /// Decided here. While the pool says these, modified and changed, nobody has changed the directory since.
    OwnFor(SystemTime, SystemTime),
}

/// A node that the pool is to be told of.
#[derive(Debug)]
pub struct Making {
    pub place: Place,
    pub node: NewNode,
    pub birth: Birth,
    /// When a program had written it and closed it; what is no file needs no writing.
    pub closed_at: Option<Instant>,
}

/// What is to be sent of a file.
#[derive(Debug, Default)]
pub struct Unsent {
    pub pieces: Vec<(u64, Bytes)>,
    pub appended: Option<(u64, Bytes)>,
    pub mtime: Option<SystemTime>,
}

impl Unsent {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.appended.is_none()
    }
}

impl State {
    fn new(attr: Attr) -> Self {
        Self {
            attr,
            times: Times::Pool,
            fresh_in: 0,
            changes: 0,
            places: Vec::new(),
            lookups: 0,
            opens: 0,
            writers: 0,
            is_unfinished: false,
            is_flushed: false,
            unsent: WriteBuffer::default(),
            appended: None,
            sending: Vec::new(),
            unsent_since: None,
            is_listed_dirty: false,
            written_at: None,
            failure_count: 0,
            failure: None,
            is_failure_unseen: false,
            generation: 0,
            kernel_generation: None,
            fetching: BTreeSet::new(),
            xattrs: None,
            target: None,
            complete_in: 0,
            lock_owners: HashSet::new(),
            making: None,
            untold: 0,
            past: None,
        }
    }

    /// Takes in what the pool says.
    pub fn learn(&mut self, attr: Attr) {
        let own = (self.attr.mtime, self.attr.ctime);
        self.attr = attr;
        if self.times == Times::OwnFor(attr.mtime, attr.ctime) {
            (self.attr.mtime, self.attr.ctime) = own;
        } else {
            self.times = Times::Pool;
        }
    }

    /// Takes in what the pool says of a directory that it gets back as it was left here.
    pub fn given_back(&mut self, attr: Attr) {
        if self.times == Times::Own {
            self.times = Times::OwnFor(attr.mtime, attr.ctime);
        }
    }

    /// Attributes with the bytes counted that the pool does not have yet.
    #[must_use]
    pub fn seen(&self) -> Attr {
        let mut attr = self.attr;
        if let Some(at) = self.written_at {
            attr.mtime = at;
            attr.ctime = attr.ctime.max(at);
        }
        attr.size = attr.size.max(self.unsent_end());
        attr.blocks = attr.blocks.max(self.unsent_bytes().div_ceil(512) as u64);
        attr
    }

    fn unsent_end(&self) -> u64 {
        let sending = self.sending.last().map_or(0, |(start, piece)| start + piece.len() as u64);
        let appended = self.appended.as_ref().map_or(0, |(start, data)| start + data.len() as u64);
        self.unsent.end().max(sending).max(appended)
    }

    /// Not yet on the way.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.unsent.bytes() + self.appended.as_ref().map_or(0, |(_, data)| data.len())
    }

    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.unsent_bytes() > 0 || !self.sending.is_empty()
    }

    /// Moves what is unsent to [`sending`](Self::sending).
    pub fn take_unsent(&mut self) -> Unsent {
        self.unsent_since = None;
        let pieces = self.unsent.take();
        let appended = self.appended.take().map(|(start, data)| (start, data.freeze()));
        self.sending = pieces.iter().cloned().chain(appended.clone()).collect();
        Unsent { pieces, appended, mtime: self.written_at }
    }

    /// Forgets what is unsent; returns how many bytes that was.
    pub fn discard_unsent(&mut self) -> usize {
        let bytes = self.unsent_bytes();
        self.unsent = WriteBuffer::default();
        self.appended = None;
        self.unsent_since = None;
        if self.sending.is_empty() {
            self.written_at = None;
        }
        bytes
    }

    /// The bytes at `offset` with what the pool does not have yet laid over them.
    pub fn lay_over(&self, offset: u64, out: &mut [u8]) {
        for (start, piece) in &self.sending {
            lay_piece_over(*start, piece, offset, out);
        }
        self.unsent.lay_over(offset, out);
        if let Some((start, data)) = &self.appended {
            lay_piece_over(*start, data, offset, out);
        }
    }

    /// Keeps a failure until it is reported; the bytes that failed are gone.
    pub fn fail(&mut self, errno: Errno) {
        self.failure_count += 1;
        self.failure = Some(errno);
        self.is_failure_unseen = true;
        self.fresh_in = 0;
        self.generation += 1;
    }

    #[must_use]
    pub fn file_ref(&self) -> FileRef {
        FileRef { ino: self.attr.ino, place: self.places.last().cloned() }
    }
}

impl Node {
    #[must_use]
    pub fn file_ref(&self) -> FileRef {
        lock(&self.state).file_ref()
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        lock(&self.state).attr.kind
    }
}

/// A name, and in which epoch it was told.
#[derive(Debug, Clone, Copy)]
struct Name {
    ino: Ino,
    fresh_in: u64,
}

/// All files that the kernel knows, that are open or that have bytes to send; and their names.
#[derive(Debug, Default)]
pub struct Table {
    nodes: HashMap<Ino, Arc<Node>>,
    names: HashMap<Place, Name>,
}

impl Table {
    #[must_use]
    pub fn node(&self, ino: Ino) -> Option<Arc<Node>> {
        self.nodes.get(&ino).cloned()
    }

    /// The node of a file, made where it is new.
    pub fn node_or_new(&mut self, attr: Attr) -> Arc<Node> {
        let node = self.nodes.entry(attr.ino).or_insert_with(|| {
            Arc::new(Node {
                ino: attr.ino,
                turn: Arc::default(),
                state: Mutex::new(State::new(attr)),
                fetched: tokio::sync::Notify::new(),
            })
        });
        node.clone()
    }

    /// What a name stands for, whatever its age.
    #[must_use]
    pub fn named(&self, place: &Place) -> Option<Arc<Node>> {
        self.node(self.names.get(place)?.ino)
    }

    /// What a name stands for, if that was told in this epoch.
    #[must_use]
    pub fn named_in(&self, place: &Place, epoch: u64) -> Option<Arc<Node>> {
        self.names.get(place).filter(|name| name.fresh_in == epoch).and_then(|name| self.node(name.ino))
    }

    pub fn name(&mut self, place: Place, node: &Node, epoch: u64) {
        let before = self.names.insert(place.clone(), Name { ino: node.ino, fresh_in: epoch });
        if let Some(before) = before.filter(|before| before.ino != node.ino) {
            self.unplace(before.ino, &place);
        }
        let mut state = lock(&node.state);
        if state.places.last() != Some(&place) {
            state.places.retain(|known| *known != place);
            state.places.reserve_exact(1); // Most files have one, and the kernel knows many files.
            state.places.push(place);
        }
    }

    /// Whether nothing has this name, and that is known without asking.
    #[must_use]
    pub fn is_missing(&self, place: &Place, epoch: u64) -> bool {
        let Some(directory) = self.nodes.get(&place.parent) else { return false };
        lock(&directory.state).complete_in == epoch && !self.names.contains_key(place)
    }

    /// The table may lack names of a directory from now on.
    pub fn doubt_names_in(&self, directory: Ino) {
        if let Some(directory) = self.nodes.get(&directory) {
            lock(&directory.state).complete_in = 0;
        }
    }

    pub fn unname(&mut self, place: &Place) {
        if let Some(name) = self.names.remove(place) {
            self.unplace(name.ino, place);
        }
    }

    /// The name may stand for something else by now.
    pub fn doubt_name(&mut self, place: &Place) {
        if let Some(name) = self.names.get_mut(place) {
            name.fresh_in = 0;
        }
    }

    fn unplace(&self, ino: Ino, place: &Place) {
        if let Some(node) = self.nodes.get(&ino) {
            lock(&node.state).places.retain(|known| known != place);
        }
    }

    /// Removes a node that nobody needs any more.
    pub fn drop_unused(&mut self, ino: Ino) {
        let Some(node) = self.nodes.get(&ino) else { return };
        let state = lock(&node.state);
        let is_needed = state.lookups > 0 || state.opens > 0 || state.untold > 0;
        if is_needed || state.is_dirty() || state.is_failure_unseen {
            return;
        }
        let places = state.places.clone();
        drop(state);
        for place in places {
            self.names.remove(&place);
            self.doubt_names_in(place.parent);
        }
        self.nodes.remove(&ino);
    }

    /// All names that are known.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        self.names.keys().cloned().collect()
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }
}
