//! Directories that are this mount's alone: what is made, renamed and removed in them is decided here, and the pool told
//! of it later ([`later`](super::later)).
//!
//! ```text
//! change ─ is the directory this mount's alone? ─ yes ─> decided by its names, queued; the program goes on
//!                                               └ no ──> what is queued there is told, then the pool is asked
//! third change within a second ─> the pool is asked for the directory, and for all of its names
//! ```
//!
//! Always: of the names of a directory that is this mount's alone, all are known; no change in it is decided here while
//! another is under way at the pool; one that another wants is given back once everything decided in it was told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use super::data::fits_a_birth;
use super::later::{Entry, Told, timer};
use super::mount::{Mount, Seen};
use super::nodes::{Making, Node, Times, lock};
use super::service::{
    Attr, AttrChange, Birth, Errno, Ino, Kind, NewNode, Operation, Place, RenameMode, Result, SetTime,
};

/// A directory that was changed three times within so long is worth having alone.
const CHANGED_AGAIN_WITHIN: Duration = Duration::from_secs(1);
/// Given back after so long without a change.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// Not asked for again for so long after another wanted it, and after it proved too large to know all of its names.
const DENIED_FOR: Duration = Duration::from_secs(5);
const TOO_LARGE_FOR: Duration = Duration::from_secs(60);
/// Names of a directory that are asked for, and names that are known of it.
const NAMES_LISTED_MAX: usize = 10_000;
const NAMES_MAX: usize = 200_000;
/// Nothing is decided in the last moment of a promise.
const PROMISED_MIN: Duration = Duration::from_millis(200);
/// The pool hears from a mount that has directories alone before its promise has run down to this.
const RENEWED_BELOW: Duration = Duration::from_millis(1500);
/// Changes that are not told yet; more wait.
const UNTOLD_MAX: usize = 8192;
/// Directories of which something is remembered.
const REMEMBERED_MAX: usize = 4096;

/// What is known of a directory beyond its node.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// All of its names, while it is this mount's alone.
    names: Option<HashMap<Bytes, Ino>>,
    changed_at: Option<Instant>,
    /// The change before that one.
    changed_before: Option<Instant>,
    not_before: Option<Instant>,
    /// Entries of the queue that are about it.
    pub(super) untold: u32,
    /// Changes in it that are under way at the pool.
    changing: u32,
    is_being_taken: bool,
    /// Why something that was decided in it could not be done; the next change is told.
    pub(super) failure: Option<Errno>,
}

impl Directory {
    fn was_changed(&mut self) {
        self.changed_before = self.changed_at.replace(timer());
    }

    fn is_idle(&self, now: Instant) -> bool {
        let is_denied = self.not_before.is_some_and(|not_before| now < not_before);
        let is_recent = self.changed_at.is_some_and(|at| now.duration_since(at) < CHANGED_AGAIN_WITHIN);
        self.names.is_none()
            && self.untold + self.changing == 0
            && !self.is_being_taken
            && self.failure.is_none()
            && !is_denied
            && !is_recent
    }
}

/// Changes under way at the pool, in these directories: till it is dropped nothing is decided here in them.
pub(super) struct Changing<'m> {
    mount: &'m Mount,
    directories: Vec<Ino>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut told = lock(&self.mount.later.told);
        for directory in &self.directories {
            told.directory(*directory).changing -= 1;
        }
        drop(told);
        self.mount.later.moved.notify_waiters();
    }
}

/// A directory on its way to being this mount's alone.
struct Taking<'m> {
    mount: &'m Mount,
    directory: Ino,
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        lock(&self.mount.later.told).directory(self.directory).is_being_taken = false;
        self.mount.later.moved.notify_waiters();
    }
}

impl Told {
    pub(super) fn directory(&mut self, ino: Ino) -> &mut Directory {
        if self.directories.len() >= REMEMBERED_MAX && !self.directories.contains_key(&ino) {
            let now = timer();
            self.directories.retain(|_, directory| !directory.is_idle(now));
        }
        self.directories.entry(ino).or_default()
    }

    /// The directory, if changes in it may be decided here.
    fn alone(&mut self, ino: Ino) -> Option<&mut Directory> {
        self.directories
            .get_mut(&ino)
            .filter(|directory| directory.names.is_some() && directory.changing == 0)
    }

    /// No more is decided in the directory; the pool gets it back once it was told everything.
    pub(super) fn give_back(&mut self, ino: Ino, not_before: Option<Instant>) {
        let directory = self.directory(ino);
        directory.names = None;
        directory.not_before = directory.not_before.max(not_before);
        directory.untold += 1;
        self.push(Entry::GiveBack { directory: ino });
    }
}

impl Mount {
    /// The program's clock as the pool counts: whole milliseconds, so that what was made before is never later.
    fn now_ms(&self) -> SystemTime {
        let now = self.now();
        let nanos = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        now - Duration::from_nanos((nanos % 1_000_000).into())
    }

    /// Where versions are kept each name is the pool's to decide: what programs have closed must not be changed here before
    /// it is there.
    pub(super) fn decides_alone(&self) -> bool {
        self.options.decides_alone && !self.service.keeps_versions()
    }

    fn may_decide(&self, told: &Told) -> bool {
        self.decides_alone()
            && told.untold() < UNTOLD_MAX
            && self.service.alone_for() >= PROMISED_MIN
            && !self.is_pool_nearly_full(0)
    }

    /// Whether a name stands for nothing, where that is known here.
    pub(super) fn is_missing_alone(&self, place: &Place) -> bool {
        let told = lock(&self.later.told);
        let names = told.directories.get(&place.parent).and_then(|directory| directory.names.as_ref());
        names.is_some_and(|names| !names.contains_key(&place.name)) && !self.service.alone_for().is_zero()
    }

    /// A directory's times and links change with its entries.
    fn touch(&self, directory: Ino, at: SystemTime, links: i64) {
        if let Some(node) = lock(&self.table).node(directory) {
            let mut state = lock(&node.state);
            state.changes += 1;
            (state.attr.mtime, state.attr.ctime) = (at, at);
            state.times = Times::Own;
            state.attr.nlink = u32::try_from(i64::from(state.attr.nlink) + links).unwrap_or(0);
        }
    }

    /// Makes a node here; `None`: the pool is to be asked.
    pub(super) fn make_alone(&self, place: &Place, node: &NewNode) -> Option<Result<Seen>> {
        // What a filesystem cannot show of keys has names that the pool alone understands.
        if place.name.windows(2).any(|pair| pair == b"%~") {
            return None;
        }
        let mut told = lock(&self.later.told);
        if !self.may_decide(&told) {
            return None;
        }
        let directory = told.alone(place.parent)?;
        if let Some(errno) = directory.failure.take() {
            return Some(Err(errno));
        }
        let names = directory.names.as_mut()?;
        if names.contains_key(&place.name) {
            return Some(Err(Errno::EXIST));
        }
        let ino = self.service.number()?;
        let at = self.now_ms();
        let is_directory = node.kind == Kind::Directory;
        let attr = Attr {
            ino,
            kind: node.kind,
            mode: node.mode & 0o7777,
            uid: node.uid,
            gid: node.gid,
            nlink: if is_directory { 2 } else { 1 },
            rdev: node.rdev,
            size: node.target.len() as u64,
            // As the pool will count them.
            blocks: node.target.len().div_ceil(512) as u64,
            atime: at,
            mtime: at,
            ctime: at,
            btime: at,
            data_version: 0,
            has_no_xattrs: node.xattrs.is_empty(),
        };
        let made = lock(&self.table).node_or_new(attr);
        let turn = made.turn.clone().try_lock_owned().ok()?;
        names.insert(place.name.clone(), ino);
        directory.was_changed();
        directory.untold += 1;
        let is_too_large = names_len(directory) > NAMES_MAX;
        {
            let mut state = lock(&made.state);
            state.fresh_in = self.epoch();
            state.xattrs = Some(node.xattrs.clone());
            state.target = (node.kind == Kind::Symlink).then(|| node.target.clone());
            state.untold += 1;
            let birth =
                Birth { ino: Some(ino), made_at: Some(at), is_leased: is_directory, ..Birth::default() };
            state.making = Some(Box::new(Making {
                place: place.clone(),
                node: node.clone(),
                birth,
                closed_at: (node.kind != Kind::File).then(timer),
            }));
        }
        lock(&self.table).name(place.clone(), &made, self.epoch());
        self.touch(place.parent, at, i64::from(is_directory));
        told.push(Entry::Make { node: made.clone(), parent: place.parent, at: timer(), _turn: turn });
        if is_directory {
            let new = told.directory(ino);
            (new.names, new.changed_at) = (Some(HashMap::new()), Some(timer()));
        }
        if is_too_large {
            told.give_back(place.parent, Some(timer() + TOO_LARGE_FOR));
        }
        drop(told);
        self.later.wake.notify_one();
        Some(Ok(self.refer(&made)))
    }

    /// Changes attributes of a node that the pool was not told of yet; `false`: the pool is to be asked.
    pub(super) fn change_unborn(&self, node: &Node, change: &AttrChange) -> bool {
        let at = self.now_ms();
        let mut state = lock(&node.state);
        if change.size.is_some() || state.xattrs.as_ref().is_none_or(|xattrs| !xattrs.is_empty()) {
            return false;
        }
        let Some(making) = state.making.as_mut() else { return false };
        let time = |set| match set {
            SetTime::Now => at,
            SetTime::At(time) => time,
        };
        let new = &mut making.node;
        new.mode = change.mode.unwrap_or(new.mode);
        new.uid = change.uid.unwrap_or(new.uid);
        new.gid = change.gid.unwrap_or(new.gid);
        making.birth.atime = change.atime.map(time).or(making.birth.atime);
        making.birth.mtime = change.mtime.map(time).or(making.birth.mtime);
        let attr = &mut state.attr;
        attr.mode = change.mode.map_or(attr.mode, |mode| mode & 0o7777);
        attr.uid = change.uid.unwrap_or(attr.uid);
        attr.gid = change.gid.unwrap_or(attr.gid);
        attr.atime = change.atime.map_or(attr.atime, time);
        attr.ctime = at;
        if let Some(mtime) = change.mtime {
            attr.mtime = time(mtime);
            // It is later than what was written.
            state.written_at = None;
        }
        state.changes += 1;
        true
    }

    /// Takes the name of a file away, or of a directory that is this mount's alone, too; `None`: the pool is to be asked.
    pub(super) fn remove_alone(&self, place: &Place, is_directory: bool) -> Option<Result<()>> {
        let mut told = lock(&self.later.told);
        if !self.may_decide(&told) {
            return None;
        }
        let parent = told.alone(place.parent)?;
        if let Some(errno) = parent.failure.take() {
            return Some(Err(errno));
        }
        let Some(ino) = parent.names.as_ref()?.get(&place.name).copied() else {
            return Some(Err(Errno::NOENT));
        };
        let node = lock(&self.table).node(ino)?;
        let at = self.now_ms();
        let (entry, discarded) = match (node.kind() == Kind::Directory, is_directory) {
            (true, true) => match removed_directory(told.alone(ino)?, place, &node, at) {
                Ok(entry) => (Some(entry), 0),
                Err(errno) => return Some(Err(errno)),
            },
            (false, false) => self.unlinked(place, &node, at)?,
            (true, false) => return Some(Err(Errno::ISDIR)),
            (false, true) => return Some(Err(Errno::NOTDIR)),
        };
        if let Some(entry) = entry {
            lock(&node.state).untold += 1;
            told.directory(place.parent).untold += 1;
            told.push(entry);
        }
        self.forget_name(&mut told, place);
        drop(told);
        self.touch(place.parent, at, -i64::from(is_directory));
        self.has_sent(discarded);
        lock(&self.table).drop_unused(ino);
        self.later.wake.notify_one();
        Some(Ok(()))
    }

    /// What the pool is to be told of a file that lost a name, if anything, and the bytes that nobody needs any more; `None`:
    /// more is to be known of it than is known here.
    fn unlinked(&self, place: &Place, node: &Arc<Node>, at: SystemTime) -> Option<(Option<Entry>, usize)> {
        let mut state = lock(&node.state);
        if state.fresh_in != self.epoch() || !state.sending.is_empty() {
            return None;
        }
        let is_held = state.opens > 0;
        let is_unborn = state.making.is_some() && state.untold == 1 && !is_held;
        lose_link(&mut state, at);
        let discarded = if state.attr.nlink == 0 && !is_held { state.discard_unsent() } else { 0 };
        if is_unborn {
            state.making = None; // Nobody will ever know of it.
            return Some((None, discarded));
        }
        Some((Some(Entry::Unlink { place: place.clone(), node: node.clone(), is_held }), discarded))
    }

    fn forget_name(&self, told: &mut Told, place: &Place) {
        let directory = told.directory(place.parent);
        directory.was_changed();
        if let Some(names) = directory.names.as_mut() {
            names.remove(&place.name);
        }
        lock(&self.table).unname(place);
    }

    /// Gives a file another name; `None`: the pool is to be asked.
    pub(super) fn rename_alone(&self, from: &Place, to: &Place, mode: RenameMode) -> Option<Result<()>> {
        if mode == RenameMode::Exchange || to.name.windows(2).any(|pair| pair == b"%~") {
            return None;
        }
        let mut told = lock(&self.later.told);
        if !self.may_decide(&told) {
            return None;
        }
        let target = told.alone(to.parent)?.names.as_ref()?.get(&to.name).copied();
        let source = told.alone(from.parent)?;
        if let Some(errno) = source.failure.take() {
            return Some(Err(errno));
        }
        let Some(ino) = source.names.as_ref()?.get(&from.name).copied() else {
            return Some(Err(Errno::NOENT));
        };
        if target == Some(ino) {
            return if mode == RenameMode::NoReplace { Some(Err(Errno::EXIST)) } else { Some(Ok(())) };
        }
        let moved = lock(&self.table).node(ino)?;
        let replaced = match target {
            Some(_) if mode == RenameMode::NoReplace => return Some(Err(Errno::EXIST)),
            Some(target) => Some(lock(&self.table).node(target)?),
            None => None,
        };
        let epoch = self.epoch();
        if let Some(replaced) = &replaced {
            let state = lock(&replaced.state);
            if state.attr.kind == Kind::Directory {
                return Some(Err(Errno::ISDIR)).filter(|_| moved.kind() != Kind::Directory);
            }
            if state.fresh_in != epoch || !state.sending.is_empty() {
                return None;
            }
        }
        let is_last = told.is_last(&moved);
        let at = self.now_ms();
        let mut is_reborn = false;
        {
            let mut state = lock(&moved.state);
            let is_whole = match &state.making {
                Some(_) => fits_a_birth(&state),
                None => state.unsent_bytes() == 0,
            };
            // The bytes reach the pool before the new name does.
            let is_simple = state.attr.kind != Kind::Directory && state.fresh_in == epoch;
            if !is_simple || !is_whole || !state.sending.is_empty() {
                return None;
            }
            // Nothing was decided since that the name depends on.
            if let Some(making) = state.making.as_mut()
                && is_last
                && replaced.is_none()
                && from.parent == to.parent
                && making.place == *from
            {
                making.place = to.clone();
                is_reborn = true;
            } else {
                state.untold += 1;
            }
            state.changes += 1;
            state.attr.ctime = at;
        }
        let (mut is_replaced_held, mut discarded) = (false, 0);
        if let Some(replaced) = &replaced {
            let mut state = lock(&replaced.state);
            is_replaced_held = state.opens > 0;
            lose_link(&mut state, at);
            if state.attr.nlink == 0 && !is_replaced_held {
                discarded = state.discard_unsent();
            }
        }
        self.forget_name(&mut told, from);
        self.forget_name(&mut told, to);
        if let Some(names) = told.directory(to.parent).names.as_mut() {
            names.insert(to.name.clone(), ino);
        }
        lock(&self.table).name(to.clone(), &moved, epoch);
        if !is_reborn {
            told.directory(from.parent).untold += 1;
            told.directory(to.parent).untold += 1;
            let (from, to) = (from.clone(), to.clone());
            told.push(Entry::Rename { from, to, mode, is_replaced_held, node: moved });
        }
        drop(told);
        self.touch(from.parent, at, 0);
        self.touch(to.parent, at, 0);
        self.has_sent(discarded);
        if let Some(replaced) = replaced {
            lock(&self.table).drop_unused(replaced.ino);
        }
        self.later.wake.notify_one();
        Some(Ok(()))
    }

    /// Begins a change in directories that the pool is asked for: what was decided in them is told before, and nothing is
    /// decided till the change is over.
    pub(super) async fn change_in(&self, directories: &[Ino]) -> Changing<'_> {
        loop {
            let moved = self.later.moved.notified();
            {
                let mut told = lock(&self.later.told);
                if !directories.iter().any(|ino| told.directory(*ino).is_being_taken) {
                    directories.iter().for_each(|ino| told.directory(*ino).changing += 1);
                    break;
                }
            }
            moved.await;
        }
        let changing = Changing { mount: self, directories: directories.to_vec() };
        for ino in directories {
            let directory = lock(&self.table).node(*ino);
            if let Some(directory) = directory {
                self.tell_of_node(&directory).await;
            }
        }
        self.tell_of(directories).await;
        changing
    }

    /// Returns when everything that was decided in these directories was told.
    pub(super) async fn tell_of(&self, directories: &[Ino]) {
        loop {
            let moved = self.later.moved.notified();
            {
                let mut told = lock(&self.later.told);
                if directories
                    .iter()
                    .all(|ino| told.directories.get(ino).is_none_or(|known| known.untold == 0))
                {
                    return;
                }
                told.hurry();
            }
            self.later.wake.notify_one();
            moved.await;
        }
    }

    /// The pool made this name, as it was asked to.
    pub(super) fn was_named(&self, place: &Place, ino: Ino) {
        let mut told = lock(&self.later.told);
        let directory = told.directory(place.parent);
        directory.was_changed();
        if let Some(names) = directory.names.as_mut() {
            names.insert(place.name.clone(), ino);
        }
    }

    /// The pool took this name away.
    pub(super) fn was_unnamed(&self, place: &Place) {
        let mut told = lock(&self.later.told);
        let directory = told.directory(place.parent);
        directory.was_changed();
        if let Some(names) = directory.names.as_mut() {
            names.remove(&place.name);
        }
    }

    /// What stands in these directories is not known here any more: a change in them had no clear end.
    pub(super) fn doubt_alone(&self, directories: &[Ino]) {
        let mut told = lock(&self.later.told);
        for ino in directories {
            if told.directories.get(ino).is_some_and(|known| known.names.is_some()) {
                told.give_back(*ino, Some(timer() + CHANGED_AGAIN_WITHIN));
            }
        }
        drop(told);
        self.later.wake.notify_one();
    }

    /// A directory that the pool has made for this mount alone.
    pub(super) fn begin_alone(&self, directory: Ino) {
        if self.decides_alone() {
            let mut told = lock(&self.later.told);
            let new = told.directory(directory);
            (new.names, new.changed_at) = (Some(HashMap::new()), Some(timer()));
        }
    }

    /// The failure of something that was decided in a directory, once.
    pub(super) fn report_directory(&self, directory: Ino) -> Result<()> {
        let mut told = lock(&self.later.told);
        match told.directories.get_mut(&directory).and_then(|known| known.failure.take()) {
            Some(errno) => Err(errno),
            None => Ok(()),
        }
    }

    /// Whether something that was decided here could not be done, and no program was told.
    pub(super) fn is_anything_lost(&self) -> bool {
        lock(&self.later.told).directories.values().any(|directory| directory.failure.is_some())
    }

    fn is_worth_having(&self, directory: Ino) -> bool {
        if !self.decides_alone() {
            return false;
        }
        let now = timer();
        let mut told = lock(&self.later.told);
        let known = told.directory(directory);
        let is_busy = known.changed_before.is_some_and(|at| now.duration_since(at) < CHANGED_AGAIN_WITHIN);
        let is_denied = known.not_before.is_some_and(|not_before| now < not_before);
        known.names.is_none() && is_busy && !is_denied
    }

    /// Has a directory that is changed again and again for this mount alone, if that can be.
    pub(super) async fn have_alone(&self, directory: &Arc<Node>) {
        let ino = directory.ino;
        if !self.is_worth_having(ino) {
            return;
        }
        loop {
            let moved = self.later.moved.notified();
            {
                let mut told = lock(&self.later.told);
                let known = told.directory(ino);
                if known.names.is_some() {
                    return;
                }
                if !known.is_being_taken {
                    known.is_being_taken = true;
                    break;
                }
            }
            moved.await;
            if !self.is_worth_having(ino) {
                return;
            }
        }
        let _taking = Taking { mount: self, directory: ino };
        loop {
            let moved = self.later.moved.notified();
            if lock(&self.later.told).directory(ino).changing == 0 {
                break;
            }
            moved.await;
        }
        self.tell_of(&[ino]).await;
        let taken = self.apply(Operation::Lease { directory: ino, is_wanted: true }).await;
        if taken.is_err() {
            lock(&self.later.told).directory(ino).not_before = Some(timer() + DENIED_FOR);
            return;
        }
        let epoch = self.epoch();
        let names = self.all_names(ino).await;
        let mut told = lock(&self.later.told);
        let known = told.directory(ino);
        let is_recalled = known.not_before.is_some_and(|not_before| timer() < not_before);
        match names {
            Ok(Some(names)) if !is_recalled && epoch == self.epoch() => known.names = Some(names),
            Ok(None) => told.give_back(ino, Some(timer() + TOO_LARGE_FOR)),
            _ => told.give_back(ino, Some(timer() + DENIED_FOR)),
        }
        drop(told);
        self.later.wake.notify_one();
    }

    /// `None`: they are too many.
    async fn all_names(&self, directory: Ino) -> Result<Option<HashMap<Bytes, Ino>>> {
        let (mut names, mut cursor) = (HashMap::new(), Bytes::new());
        loop {
            let page = self.service.list(directory, cursor.clone()).await?;
            let next = page.entries.last().map(|last| last.cursor.clone());
            names.extend(page.entries.into_iter().map(|entry| (entry.name, entry.attr.ino)));
            if page.is_end {
                return Ok(Some(names));
            }
            match next.filter(|next| *next != cursor) {
                Some(next) if names.len() < NAMES_LISTED_MAX => cursor = next,
                Some(_) => return Ok(None),
                None => return Err(Errno::IO),
            }
        }
    }

    /// Another wants this directory.
    pub(super) fn is_recalled(&self, directory: Ino) {
        lock(&self.later.told).give_back(directory, Some(timer() + DENIED_FOR));
        self.doubt_times(directory);
        self.later.wake.notify_one();
    }

    /// Others may change it from now on.
    fn doubt_times(&self, directory: Ino) {
        if let Some(node) = lock(&self.table).node(directory) {
            lock(&node.state).fresh_in = 0;
        }
    }

    /// Nothing that was known is believed any more.
    pub(super) fn leave_all_alone(&self) {
        let mut told = lock(&self.later.told);
        let held: Vec<_> =
            told.directories.iter().filter(|(_, known)| known.names.is_some()).map(|(ino, _)| *ino).collect();
        held.into_iter().for_each(|ino| told.give_back(ino, None));
        drop(told);
        self.later.wake.notify_one();
    }

    /// Gives back what is idle; whether the pool is to hear of this mount, which has directories alone.
    pub(super) fn keep_alone(&self) -> bool {
        let now = timer();
        let (idle, is_any_left) = {
            let told = lock(&self.later.told);
            let held = told.directories.iter().filter(|(_, known)| known.names.is_some());
            let is_idle = |known: &Directory| {
                known.untold + known.changing == 0
                    && known.changed_at.is_none_or(|at| now.duration_since(at) >= IDLE_MAX)
            };
            let (idle, rest): (Vec<_>, Vec<_>) = held.partition(|(_, known)| is_idle(known));
            (idle.into_iter().map(|(ino, _)| *ino).collect::<Vec<_>>(), !rest.is_empty())
        };
        if self.service.alone_for().is_zero() && (is_any_left || !idle.is_empty()) {
            self.leave_all_alone();
            return false;
        }
        for ino in &idle {
            lock(&self.later.told).give_back(*ino, None);
            self.doubt_times(*ino);
        }
        if !idle.is_empty() {
            self.later.wake.notify_one();
        }
        idle.is_empty() && is_any_left && self.service.alone_for() < RENEWED_BELOW
    }
}

fn removed_directory(
    removed: &mut Directory,
    place: &Place,
    node: &Arc<Node>,
    at: SystemTime,
) -> Result<Entry> {
    if names_len(removed) > 0 {
        return Err(Errno::NOTEMPTY);
    }
    // The pool forgets with the directory whose it was.
    removed.names = None;
    let mut state = lock(&node.state);
    state.changes += 1;
    (state.attr.nlink, state.attr.ctime) = (0, at);
    Ok(Entry::RemoveDirectory { place: place.clone(), node: node.clone() })
}

fn names_len(directory: &Directory) -> usize {
    directory.names.as_ref().map_or(0, HashMap::len)
}

fn lose_link(state: &mut super::nodes::State, at: SystemTime) {
    state.changes += 1;
    state.attr.nlink = state.attr.nlink.saturating_sub(1);
    state.attr.ctime = at;
}
