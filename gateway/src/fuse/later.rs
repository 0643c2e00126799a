//! What was decided here and the pool is told of later: in the order in which it was decided, much at once.
//!
//! ```text
//! decided ─> queue ─ up to 1,000 changes and 3 MiB, small contents within ─> one message ─> durable ─> next message
//! ```
//!
//! While a message is on its way the next one gathers, so that each change is told within two of them. A new file waits for
//! some milliseconds to be written and closed, and one more or two for the times, mode and owner that copying programs give it
//! then; it is one change, all of that included.
//!
//! Always: what the pool has is a beginning of what was decided; who waits for a file (`fsync`), or for a directory, waits for
//! all that was decided before; what could not be done is told by the next call that concerns it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::Instant;

use super::alone::Directory;
use super::data::fits_a_birth;
use super::mount::{Forget, Mount};
use super::nodes::{Node, Unsent, lock};
use super::service::{Done, Errno, Ino, Operation, Place, RenameMode, Result};

/// Changes in one message, and bytes of files in it.
const CHANGES_MAX: usize = 1000;
const BYTES_MAX: usize = 3 << 20;
/// A new file waits so long to be written and closed.
const WRITTEN_WITHIN: Duration = Duration::from_millis(5);
/// What is written and closed waits so long for its attributes.
const DRESSED_WITHIN: Duration = Duration::from_millis(2);

/// A change that the pool is to be told of.
#[derive(Debug)]
pub(super) enum Entry {
    /// Of [`State::making`](super::nodes::State::making), as it is by then. Nothing else of the node is told meanwhile.
    Make {
        node: Arc<Node>,
        parent: Ino,
        at: Instant,
        _turn: OwnedMutexGuard<()>,
    },
    Unlink {
        place: Place,
        node: Arc<Node>,
        is_held: bool,
    },
    RemoveDirectory {
        place: Place,
        node: Arc<Node>,
    },
    Rename {
        from: Place,
        to: Place,
        mode: RenameMode,
        is_replaced_held: bool,
        node: Arc<Node>,
    },
    GiveBack {
        directory: Ino,
    },
}

impl Entry {
    fn node(&self) -> Option<&Arc<Node>> {
        match self {
            Self::Make { node, .. }
            | Self::Unlink { node, .. }
            | Self::RemoveDirectory { node, .. }
            | Self::Rename { node, .. } => Some(node),
            Self::GiveBack { .. } => None,
        }
    }

    /// Directories that have it among their untold changes.
    fn directories(&self) -> Vec<Ino> {
        match self {
            Self::Make { parent, .. } => vec![*parent],
            Self::Unlink { place, .. } | Self::RemoveDirectory { place, .. } => vec![place.parent],
            Self::Rename { from, to, .. } => vec![from.parent, to.parent],
            Self::GiveBack { directory } => vec![*directory],
        }
    }
}

/// The queue, and the directories that it is about.
#[derive(Debug, Default)]
pub(super) struct Told {
    entries: VecDeque<Entry>,
    /// Entries that were ever put in, and that have been taken out to be told.
    put: u64,
    taken: u64,
    /// Entries below this number wait for nothing.
    hurry: u64,
    /// Entries of the message under way.
    under_way: usize,
    pub(super) directories: HashMap<Ino, Directory>,
}

impl Told {
    pub(super) fn push(&mut self, entry: Entry) {
        self.put += 1;
        self.entries.push_back(entry);
    }

    /// Whether nothing was decided since the node was made.
    pub(super) fn is_last(&self, node: &Node) -> bool {
        matches!(self.entries.back(), Some(Entry::Make { node: last, .. }) if last.ino == node.ino)
    }

    pub(super) fn untold(&self) -> usize {
        self.entries.len() + self.under_way
    }

    /// All that is in the queue now is to be told at once.
    pub(super) fn hurry(&mut self) {
        self.hurry = self.put;
    }
}

/// What is told later.
#[derive(Debug, Default)]
pub(super) struct Later {
    pub(super) told: Mutex<Told>,
    /// There is something to tell.
    pub(super) wake: Notify,
    /// Something was told, or is not in the way any more.
    pub(super) moved: Notify,
}

/// One change on its way, and the bytes that it takes along.
struct Change {
    entry: Entry,
    unsent: Option<(Unsent, usize)>,
}

enum Next {
    Nothing,
    After(Duration),
    Message(Vec<Change>, Vec<Operation>),
}

impl Mount {
    /// Tells the pool, for ever.
    pub(super) async fn tell_later(self: Arc<Self>) {
        loop {
            let wake = self.later.wake.notified();
            match self.next_message() {
                Next::Nothing => wake.await,
                Next::After(pause) => {
                    tokio::select! {
                        () = wake => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                Next::Message(changes, operations) => self.tell(changes, operations).await,
            }
        }
    }

    fn next_message(&self) -> Next {
        let now = timer();
        let mut told = lock(&self.later.told);
        let (mut changes, mut operations, mut bytes) = (Vec::new(), Vec::new(), 0);
        while changes.len() < CHANGES_MAX {
            let is_hurried = told.taken < told.hurry;
            let Some(first) = told.entries.front() else { break };
            if let Entry::Make { node, at, .. } = first {
                let state = lock(&node.state);
                let ripe_at = state.making.as_ref().map_or(now, |making| {
                    let closed_at = making.closed_at.map(|at| at + DRESSED_WITHIN);
                    closed_at.unwrap_or(*at + WRITTEN_WITHIN)
                });
                if ripe_at > now && !is_hurried {
                    if changes.is_empty() {
                        return Next::After(ripe_at - now);
                    }
                    break;
                }
                if fits_a_birth(&state) {
                    if bytes > 0 && bytes + state.unsent_bytes() > BYTES_MAX {
                        break;
                    }
                    bytes += state.unsent_bytes();
                }
            }
            let Some(entry) = told.entries.pop_front() else { break };
            told.taken += 1;
            let (operation, unsent) = operation_of(&entry);
            match operation {
                Some(operation) => {
                    operations.push(operation);
                    changes.push(Change { entry, unsent });
                }
                // It was removed before anyone heard of it.
                None => {
                    self.has_told(&mut told, &entry);
                    if let Some(node) = entry.node() {
                        lock(&self.table).drop_unused(node.ino);
                    }
                }
            }
        }
        told.under_way = changes.len();
        drop(told);
        if changes.is_empty() {
            self.later.moved.notify_waiters();
            return Next::Nothing;
        }
        Next::Message(changes, operations)
    }

    fn has_told(&self, told: &mut Told, entry: &Entry) {
        for directory in entry.directories() {
            told.directory(directory).untold -= 1;
        }
        if let Some(node) = entry.node() {
            lock(&node.state).untold -= 1;
        }
    }

    async fn tell(self: &Arc<Self>, changes: Vec<Change>, operations: Vec<Operation>) {
        let count = operations.len();
        let asked = self.asking(None);
        let (answers, broken) = match self.service.tell(operations).await {
            Ok(answers) => (answers, None),
            Err(errno) => (vec![Err(errno); count], Some(errno)),
        };
        let mut answers = answers.into_iter();
        let mut nodes = Vec::with_capacity(count);
        let mut refused = Vec::new();
        for Change { entry, unsent } in changes {
            match answers.next().unwrap_or(Err(Errno::IO)) {
                Ok(done) => self.was_told(&entry, unsent, &done, asked),
                Err(errno) => refused.extend(self.was_refused(&entry, unsent, errno)),
            }
            self.has_told(&mut lock(&self.later.told), &entry);
            nodes.extend(entry.node().cloned());
            // The node's turn ends with the entry: who waits for it goes on.
            drop(entry);
        }
        if let Some(errno) = broken {
            // Nothing after it may be there without it.
            self.refuse_queue(errno, &mut refused);
        }
        if let Some(first) = refused.first() {
            let names = refused.len();
            tracing::error!(names, ?first, "names were changed here and cannot be in the pool: that is lost");
        }
        lock(&self.later.told).under_way = 0;
        self.later.moved.notify_waiters();
        for node in nodes {
            let is_to_be_sent = {
                let state = lock(&node.state);
                state.unsent_bytes() > 0 && state.opens == 0
            };
            if is_to_be_sent {
                let mount = self.clone();
                tokio::spawn(async move { mount.send(&node).await });
            } else {
                lock(&self.table).drop_unused(node.ino);
            }
        }
    }

    fn was_told(
        &self,
        entry: &Entry,
        unsent: Option<(Unsent, usize)>,
        done: &Done,
        asked: super::mount::Asked,
    ) {
        match entry {
            Entry::Make { node, .. } => match unsent {
                Some((unsent, bytes)) => {
                    let before = lock(&node.state).attr;
                    self.has_landed(node, &unsent, bytes, done, asked);
                    let mut state = lock(&node.state);
                    // What was decided since it went on its way counts.
                    if state.untold > 1 {
                        (state.attr.nlink, state.attr.ctime) = (before.nlink, before.ctime);
                    }
                }
                None if node.kind() == super::service::Kind::Directory => {} // What was made in it since counts.
                None => self.keep_own(done, asked),
            },
            Entry::Unlink { .. } | Entry::Rename { .. } => self.keep_own(done, asked),
            Entry::RemoveDirectory { .. } => {}
            Entry::GiveBack { directory } => {
                let node = lock(&self.table).node(*directory);
                if let (Some(node), Some(attr)) = (node, done.attr) {
                    lock(&node.state).given_back(attr);
                }
            }
        }
    }

    /// Keeps what the pool says of a file, unless more of it was decided since.
    fn keep_own(&self, done: &Done, asked: super::mount::Asked) {
        let Some(attr) = done.attr else { return };
        let node = lock(&self.table).node(attr.ino);
        if node.is_some_and(|node| lock(&node.state).untold <= 1) {
            self.learn_own(attr, asked);
        }
    }

    /// All that waits to be told fails, too.
    fn refuse_queue(&self, errno: Errno, refused: &mut Vec<(Place, Errno)>) {
        loop {
            let (entry, unsent) = {
                let mut told = lock(&self.later.told);
                let Some(entry) = told.entries.pop_front() else { return };
                told.taken += 1;
                let (_, unsent) = operation_of(&entry);
                (entry, unsent)
            };
            refused.extend(self.was_refused(&entry, unsent, errno));
            self.has_told(&mut lock(&self.later.told), &entry);
            if let Some(node) = entry.node() {
                lock(&self.table).drop_unused(node.ino);
            }
        }
    }

    /// Returns a name that is not in the pool as it was here.
    fn was_refused(
        &self,
        entry: &Entry,
        unsent: Option<(Unsent, usize)>,
        errno: Errno,
    ) -> Option<(Place, Errno)> {
        let mut places = Vec::new();
        match entry {
            Entry::GiveBack { .. } => return None, // It ends by itself.
            Entry::Make { node, parent, .. } => {
                let bytes = unsent.map_or(0, |(_, bytes)| bytes);
                self.has_failed(node, bytes, errno);
                let mut state = lock(&node.state);
                state.attr.nlink = 0;
                // Who has it open is told; else who changes the directory next.
                state.is_failure_unseen = state.opens > 0;
                let discarded = state.discard_unsent();
                places.extend(state.places.iter().filter(|place| place.parent == *parent).cloned());
                drop(state);
                self.has_sent(discarded);
            }
            Entry::Unlink { place, node, .. } | Entry::RemoveDirectory { place, node } => {
                lock(&node.state).fresh_in = 0;
                places.push(place.clone());
            }
            Entry::Rename { from, to, node, .. } => {
                lock(&node.state).fresh_in = 0;
                places.extend([from.clone(), to.clone()]);
            }
        }
        let mut told = lock(&self.later.told);
        for directory in entry.directories() {
            told.directory(directory).failure = Some(errno);
        }
        drop(told);
        self.doubt_alone(&entry.directories());
        let first = places.first().map(|place| (place.clone(), errno));
        for place in places {
            lock(&self.table).unname(&place);
            let _ = self.forgets.try_send(Forget::Name(place));
        }
        first
    }

    /// Returns when the pool was told of the node and, where it is a directory, of what was decided in it.
    pub(super) async fn tell_of_node(&self, node: &Node) {
        let (until, is_told) = {
            let told = lock(&self.later.told);
            let is_any_in_it = told.directories.get(&node.ino).is_some_and(|known| known.untold > 0);
            (told.put, !is_any_in_it && lock(&node.state).untold == 0)
        };
        if !is_told {
            self.tell_until(until).await;
        }
    }

    /// Returns when the pool was told of all that is decided now.
    pub(super) async fn tell_all(&self) {
        let until = lock(&self.later.told).put;
        self.tell_until(until).await;
    }

    /// Returns when so many entries of the queue were told.
    async fn tell_until(&self, until: u64) {
        loop {
            let moved = self.later.moved.notified();
            {
                let mut told = lock(&self.later.told);
                if told.taken - told.under_way as u64 >= until {
                    return;
                }
                told.hurry = told.hurry.max(until);
            }
            self.later.wake.notify_one();
            moved.await;
        }
    }

    /// What `fsync` of a directory does.
    ///
    /// # Errors
    /// Something that was decided in it could not be done.
    pub async fn sync_directory(&self, directory: Ino) -> Result<()> {
        self.tell_all().await;
        self.report_directory(directory)
    }
}

/// What the pool is told; `None`: nothing.
fn operation_of(entry: &Entry) -> (Option<Operation>, Option<(Unsent, usize)>) {
    let operation = match entry {
        Entry::Make { node, .. } => {
            let mut state = lock(&node.state);
            let is_whole = fits_a_birth(&state);
            let Some(making) = state.making.take() else { return (None, None) };
            let mut making = *making;
            let mut unsent = None;
            if is_whole && state.unsent_bytes() > 0 {
                let taken = state.take_unsent();
                let bytes = state.sending.iter().map(|(_, piece)| piece.len()).sum();
                making.birth.data = joined(&state.sending);
                making.birth.mtime = taken.mtime.or(making.birth.mtime);
                unsent = Some((taken, bytes));
            }
            let operation = Operation::Make { place: making.place, node: making.node, birth: making.birth };
            return (Some(operation), unsent);
        }
        Entry::Unlink { place, is_held, .. } => Operation::Unlink { place: place.clone(), is_held: *is_held },
        Entry::RemoveDirectory { place, .. } => Operation::RemoveDirectory { place: place.clone() },
        Entry::Rename { from, to, mode, is_replaced_held, .. } => Operation::Rename {
            from: from.clone(),
            to: to.clone(),
            mode: *mode,
            is_replaced_held: *is_replaced_held,
        },
        Entry::GiveBack { directory } => Operation::Lease { directory: *directory, is_wanted: false },
    };
    (Some(operation), None)
}

fn joined(pieces: &[(u64, Bytes)]) -> Bytes {
    match pieces {
        [(_, piece)] => piece.clone(),
        pieces => {
            let mut all = BytesMut::new();
            pieces.iter().for_each(|(_, piece)| all.extend_from_slice(piece));
            all.freeze()
        }
    }
}

/// The runtime's time: only differences of it are used, so that a test may pause it.
#[expect(clippy::disallowed_methods, reason = "how long things wait is measured on the runtime's clock")]
pub(super) fn timer() -> Instant {
    Instant::now()
}
