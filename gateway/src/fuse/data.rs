//! Bytes of files: kept here for at most a second after they were written, read through a cache.
//!
//! ```text
//! write  program ─> buffer of the file ─ 8 MiB, 0.6 s, close, fsync ─> store (parallel) ─> one edit ─> durable
//! read   blocks from the cache, else from the pool, ahead of sequential readers ─ what is unsent laid over ─> program
//! ```
//!
//! What is sent of one file is sent in one order: each edit begins when the one before was answered. A program is
//! told of a failed write-back by its next write, `fsync` or `close`, through every open file of it, once.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::blocks::BLOCK_BYTES;
use super::handles::OpenFile;
use super::mount::{Forget, Mount};
use super::nodes::{Node, Unsent, lock};
use super::past::is_past;
use super::service::{
    AttrChange, Done, Edit, Errno, Ino, Lock, LockKind, Operation, Payload, Result, SeekTo,
};

/// A file with so much unsent is sent at once.
const SEND_BYTES: usize = 8 << 20;
/// Unsent bytes of one file beside those on their way, at most; its writer waits.
const FILE_UNSENT_BYTES_MAX: usize = 32 << 20;
/// Pieces of one file at most: an edit stays a message of bounded size.
const PIECES_MAX: usize = 500;
/// Bytes that travel inside an edit; more are stored before it.
const INLINE_BYTES_MAX: usize = 128 << 10;
/// A whole content up to this travels as one: the pool keeps it beside the file's attributes, in no shards.
const WHOLE_BYTES_MAX: usize = 4096;
/// Bytes stored in one call, as one blob, each of which costs the disks something; several calls run in parallel.
const STORE_BYTES_MAX: usize = 8 << 20;
/// Sent after so long. With the time of sending it stays below a second.
const UNSENT_AGE_MAX: Duration = Duration::from_millis(600);
const AGE_LOOK_EVERY: Duration = Duration::from_millis(100);
/// How old knowledge of the pool's room may be.
const ROOM_LOOK_EVERY: Duration = Duration::from_secs(1);
/// A reader that is overtaken by writers so often takes the file's turn.
const READ_RETRIES_MAX: usize = 3;
/// One request of a read-ahead.
const FETCH_BYTES_MAX: u64 = 1 << 20;
/// Offsets are signed for programs.
const OFFSET_MAX: u64 = i64::MAX as u64;
/// A waiter for a lock asks again after so long, and looks whether it was killed meanwhile.
const LOCK_RETRY_MIN: Duration = Duration::from_millis(5);
const LOCK_RETRY_MAX: Duration = Duration::from_millis(100);

impl Mount {
    /// Takes bytes if there is room for them now; `None`: [`write`](Self::write) waits for it.
    pub fn write_now(
        self: &Arc<Self>,
        file: &OpenFile,
        offset: u64,
        data: &[u8],
        is_append: bool,
    ) -> Option<Result<u32>> {
        if self.is_pool_nearly_full(data.len()) {
            return None;
        }
        self.take(file, offset, data, is_append)
    }

    /// Whether the pool may have no room for so many bytes more: it has to say so itself.
    pub(super) fn is_pool_nearly_full(&self, bytes: usize) -> bool {
        let unsent = *lock(&self.unsent) + bytes;
        self.pool_room.load(Ordering::Relaxed) < unsent as u64
    }

    fn take(
        self: &Arc<Self>,
        file: &OpenFile,
        offset: u64,
        data: &[u8],
        is_append: bool,
    ) -> Option<Result<u32>> {
        if let Err(errno) = file.report_failure() {
            return Some(Err(errno));
        }
        let length = data.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > OFFSET_MAX) {
            return Some(Err(Errno::FBIG));
        }
        let node = &file.node;
        let mut state = lock(&node.state);
        let mut unsent = lock(&self.unsent);
        let has_room = state.unsent_bytes() + data.len() <= FILE_UNSENT_BYTES_MAX
            && state.unsent.piece_count() < PIECES_MAX
            && (*unsent + data.len() <= self.options.unsent_bytes_max || *unsent == 0);
        let is_behind_appended = !is_append
            && state.appended.as_ref().is_some_and(|(start, _)| offset.saturating_add(length) > *start);
        if !has_room || is_behind_appended {
            return None;
        }
        state.is_flushed = false;
        let before = state.unsent_bytes();
        let mut landed = offset;
        if is_append {
            let end = state.seen().size;
            let (start, bytes) = state.appended.get_or_insert_with(|| (end, BytesMut::new()));
            landed = *start + bytes.len() as u64;
            bytes.extend_from_slice(data);
        } else {
            state.unsent.write(offset, data);
        }
        *unsent += state.unsent_bytes() - before;
        drop(unsent);
        state.written_at = Some(self.now());
        if state.unsent_since.is_none() {
            state.unsent_since = Some(timer());
        }
        let is_much = state.unsent_bytes() >= SEND_BYTES && state.sending.is_empty();
        let is_newly_dirty = !std::mem::replace(&mut state.is_listed_dirty, true);
        drop(state);
        if is_newly_dirty {
            lock(&self.dirty).push(node.clone());
        }
        if landed != offset {
            // The kernel put the bytes into its cache where it believed the end to be.
            let _ = self.forgets.try_send(Forget::Node(node.ino));
        }
        if is_much {
            let (mount, node) = (self.clone(), node.clone());
            tokio::spawn(async move { mount.send(&node).await });
        }
        Some(Ok(data.len() as u32))
    }

    /// Takes bytes, when there is room for them. Where the pool is nearly full, they are there when it returns.
    ///
    /// # Errors
    /// A write-back failed before, `EFBIG`, `EDQUOT`, `ENOSPC`.
    pub async fn write(
        self: &Arc<Self>,
        file: &OpenFile,
        offset: u64,
        data: &[u8],
        is_append: bool,
    ) -> Result<u32> {
        let is_to_be_sent = self.is_pool_nearly_full(data.len());
        if is_to_be_sent {
            // What was accepted before must not be refused together with these bytes.
            self.sync(file).await?;
        }
        loop {
            let room = self.room.notified();
            if let Some(done) = self.take(file, offset, data, is_append) {
                if is_to_be_sent && done.is_ok() {
                    self.sync(file).await?;
                }
                return done;
            }
            if lock(&file.node.state).unsent_bytes() > 0 {
                let _ = self.send(&file.node).await; // A failure is reported by the next round.
            } else {
                room.await;
            }
        }
    }

    /// So many bytes are not to be sent any more.
    pub(super) fn has_sent(&self, bytes: usize) {
        if bytes > 0 {
            *lock(&self.unsent) -= bytes;
            self.room.notify_waiters();
        }
    }

    /// Sends what is unsent of a file; returns when it is durable.
    ///
    /// # Errors
    /// It is lost: the pool refuses it, or was away for too long. Open files report it too.
    pub async fn send(self: &Arc<Self>, node: &Arc<Node>) -> Result<()> {
        self.tell_of_node(node).await;
        if !lock(&node.state).is_dirty() && !self.is_to_be_finished(node) {
            return Ok(());
        }
        self.send_finishing(node, false).await
    }

    /// As [`send`](Self::send). `is_closed`: the next to write the file begins another version, whoever has it open.
    async fn send_finishing(self: &Arc<Self>, node: &Arc<Node>, is_closed: bool) -> Result<()> {
        let _turn = node.turn.lock().await;
        self.send_in_turn(node, Vec::new(), is_closed).await.map(drop)
    }

    /// Whether the pool is to be told that what was begun here is a version.
    fn is_to_be_finished(&self, node: &Node) -> bool {
        let state = lock(&node.state);
        self.service.keeps_versions() && state.is_unfinished && state.writers == 0
    }

    /// Before a file that programs have closed is changed again: where versions are kept, what they left is one.
    pub(super) async fn finish_closed(self: &Arc<Self>, node: &Arc<Node>) {
        if !self.service.keeps_versions() {
            return;
        }
        let is_closed = {
            let state = lock(&node.state);
            state.is_flushed || (state.writers == 0 && (state.is_dirty() || state.is_unfinished))
        };
        if is_closed {
            self.tell_of_node(node).await;
            let _ = self.send_finishing(node, true).await; // A failure is reported to who wrote.
            lock(&node.state).is_flushed = false;
        }
    }

    /// Sends what is unsent of a file and then changes it, all in one message; what the last change left.
    ///
    /// # Errors
    /// Of the first change that fails. Those of the bytes before are reported by open files.
    pub(super) async fn change_file(
        self: &Arc<Self>,
        node: &Arc<Node>,
        operations: Vec<Operation>,
    ) -> Result<Done> {
        self.tell_of_node(node).await;
        let _turn = node.turn.lock().await;
        self.send_in_turn(node, operations, false).await
    }

    async fn send_in_turn(
        self: &Arc<Self>,
        node: &Arc<Node>,
        then: Vec<Operation>,
        is_closed: bool,
    ) -> Result<Done> {
        let was_unfinished = lock(&node.state).is_unfinished;
        let sent = self.send_once(node, then, is_closed).await;
        if sent.is_err() && was_unfinished {
            // Whether the pool heard of its end is not known: it may be told twice.
            lock(&node.state).is_unfinished = true;
        }
        sent
    }

    async fn send_once(
        self: &Arc<Self>,
        node: &Arc<Node>,
        then: Vec<Operation>,
        is_closed: bool,
    ) -> Result<Done> {
        let (unsent, file) = {
            let mut state = lock(&node.state);
            (state.take_unsent(), state.file_ref())
        };
        let bytes: usize = lock(&node.state).sending.iter().map(|(_, piece)| piece.len()).sum();
        let asked = self.asking(None);
        let has_edit = !unsent.is_empty();
        let is_finished = {
            let mut state = lock(&node.state);
            let keeps = self.service.keeps_versions();
            let is_finished = keeps && (state.writers == 0 || is_closed) && (state.is_unfinished || has_edit);
            if is_finished || has_edit {
                state.is_unfinished = keeps && !is_finished;
            }
            is_finished
        };
        if then.is_empty()
            && let Some(edit) = whole(node, &unsent)
        {
            let file = file.clone();
            let edits = [edit].into_iter().chain(is_finished.then_some(Edit::Finish)).collect();
            match self.apply(Operation::Edit { file, edits, mtime: unsent.mtime }).await {
                Ok(done) => {
                    self.has_landed(node, &unsent, bytes, &done, asked);
                    return Ok(Done::default());
                }
                Err(Errno::STALE) => {} // Another has changed it: only what was written here may replace his bytes.
                Err(errno) => {
                    self.has_failed(node, bytes, errno);
                    return Err(errno);
                }
            }
        }
        let mut operations = Vec::new();
        if has_edit {
            match self.edits(&unsent).await {
                Ok(mut edits) => {
                    edits.extend(is_finished.then_some(Edit::Finish));
                    operations.push(Operation::Edit { file, edits, mtime: unsent.mtime });
                }
                Err(errno) => {
                    self.has_failed(node, bytes, errno);
                    return Err(errno);
                }
            }
        }
        if !has_edit && is_finished {
            operations.push(Operation::Edit {
                file: node.file_ref(),
                edits: vec![Edit::Finish],
                mtime: None,
            });
        }
        if operations.is_empty() && then.is_empty() {
            return Ok(Done::default());
        }
        operations.extend(then);
        let count = operations.len();
        let answers = self.service.apply(operations).await;
        let answers = answers.unwrap_or_else(|errno| vec![Err(errno); count]);
        let mut answers = answers.into_iter();
        if has_edit {
            match answers.next().unwrap_or(Err(Errno::IO)) {
                Ok(done) => self.has_landed(node, &unsent, bytes, &done, asked),
                Err(errno) => {
                    self.has_failed(node, bytes, errno);
                    if count == 1 {
                        return Err(errno);
                    }
                }
            }
        }
        let mut last = Done::default();
        for answer in answers {
            let done = answer?;
            if let Some(attr) = done.attr.filter(|attr| attr.ino == node.ino) {
                self.learn_own(attr, asked);
            }
            last = done;
        }
        Ok(last)
    }

    /// Makes large bytes durable and names them in edits.
    async fn edits(&self, unsent: &Unsent) -> Result<Vec<Edit>> {
        let all =
            unsent.pieces.iter().map(|(_, data)| data).chain(unsent.appended.iter().map(|(_, data)| data));
        let is_small = all.map(Bytes::len).sum::<usize>() <= INLINE_BYTES_MAX;
        let payload = async |data: Bytes| match is_small {
            true => Ok(Payload::Inline(data)),
            false => self.service.store(data).await,
        };
        let pieces = unsent.pieces.iter().flat_map(|(start, data)| {
            (0..data.len()).step_by(STORE_BYTES_MAX).map(move |at| {
                let part = data.slice(at..data.len().min(at + STORE_BYTES_MAX));
                (*start + at as u64, part)
            })
        });
        let writes =
            pieces.map(async |(offset, data)| Ok(Edit::Write { offset, data: payload(data).await? }));
        let mut edits: Vec<Edit> = futures::future::try_join_all(writes).await?;
        if let Some((_, data)) = &unsent.appended {
            edits.push(Edit::Append(payload(data.clone()).await?));
        }
        Ok(edits)
    }

    pub(super) fn has_landed(
        &self,
        node: &Node,
        unsent: &Unsent,
        bytes: usize,
        done: &Done,
        asked: super::mount::Asked,
    ) {
        let is_elsewhere = unsent.appended.as_ref().is_some_and(|(start, _)| *start != done.offset);
        for (start, piece) in &unsent.pieces {
            lock(&self.blocks).drop_range(node.ino, *start..*start + piece.len() as u64);
        }
        if let Some((_, data)) = &unsent.appended {
            lock(&self.blocks).drop_range(node.ino, done.offset..done.offset + data.len() as u64);
        }
        if let Some(attr) = done.attr {
            self.learn_own(attr, asked);
        }
        let mut state = lock(&node.state);
        state.changes += 1;
        state.sending.clear();
        if state.unsent_bytes() == 0 {
            state.written_at = None;
        }
        if is_elsewhere {
            state.generation += 1;
        }
        drop(state);
        // Counted as grown until the pool is asked again: too little room is found out, too much would lose bytes.
        let room = self.pool_room.load(Ordering::Relaxed);
        self.pool_room.store(room.saturating_sub(bytes as u64), Ordering::Relaxed);
        if is_elsewhere {
            let _ = self.forgets.try_send(Forget::Node(node.ino));
        }
        self.has_sent(bytes);
    }

    pub(super) fn has_failed(&self, node: &Node, bytes: usize, errno: Errno) {
        tracing::error!(inode = node.ino.0, bytes, %errno, "written bytes could not be stored and are lost");
        let mut state = lock(&node.state);
        state.changes += 1;
        state.sending.clear();
        if state.unsent_bytes() == 0 {
            state.written_at = None;
        }
        state.fail(errno);
        drop(state);
        let _ = self.forgets.try_send(Forget::Node(node.ino));
        self.has_sent(bytes);
    }

    /// Sends all that is unsent, of every file.
    ///
    /// # Errors
    /// That of a file whose bytes are lost.
    pub async fn send_all(self: &Arc<Self>) -> Result<()> {
        let nodes: Vec<_> = lock(&self.table).nodes().cloned().collect();
        let dirty = nodes.iter().filter(|node| lock(&node.state).is_dirty());
        let sent = futures::future::join_all(dirty.map(|node| self.send(node))).await;
        sent.into_iter().collect()
    }

    /// Asks how much the pool still takes, now and while something is written.
    pub async fn look_for_room(self: Arc<Self>) {
        loop {
            if let Ok(space) = self.service.space().await {
                let room = space.bytes_total.saturating_sub(space.bytes_used);
                self.pool_room.store(room, Ordering::Relaxed);
            }
            tokio::time::sleep(ROOM_LOOK_EVERY).await;
            self.is_written.notified().await;
        }
    }

    /// Sends what has waited long enough, for ever.
    pub async fn send_by_age(self: Arc<Self>) {
        let room = tokio::spawn(self.clone().look_for_room());
        let teller = tokio::spawn(self.clone().tell_later());
        let _end_with_this = [room, teller].map(tokio_util::task::AbortOnDropHandle::new);
        let mut sign: Option<tokio::task::JoinHandle<()>> = None;
        let mut look = tokio::time::interval(AGE_LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = look.tick().await;
            if self.keep_alone() && sign.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                let mount = self.clone();
                // Where it fails, the promise runs out.
                sign = Some(tokio::spawn(async move { drop(mount.service.tell(Vec::new()).await) }));
            }
            if *lock(&self.unsent) > 0 {
                self.is_written.notify_one();
            }
            // A mount knows many files, and few of them are being written.
            let dirty = std::mem::take(&mut *lock(&self.dirty));
            for node in dirty {
                let mut state = lock(&node.state);
                state.is_listed_dirty = state.unsent_since.is_some();
                let is_due = state.sending.is_empty()
                    && state.making.is_none()
                    && state.unsent_since.is_some_and(|since| now.duration_since(since) >= UNSENT_AGE_MAX);
                let is_still_dirty = state.is_listed_dirty;
                drop(state);
                if is_still_dirty {
                    lock(&self.dirty).push(node.clone());
                }
                if is_due {
                    let mount = self.clone();
                    tokio::spawn(async move { mount.send(&node).await });
                }
            }
        }
    }

    /// What a close does: sends, waits for it where so configured, and reports what failed.
    ///
    /// # Errors
    /// A write-back failed.
    pub async fn flush(self: &Arc<Self>, file: &OpenFile, owner: u64) -> Result<()> {
        let node = &file.node;
        if file.may_write {
            lock(&node.state).is_flushed = true;
        }
        self.unlock_all(node, owner).await?;
        if self.options.durable_close {
            let _ = self.send(node).await; // Reported below, once.
        } else if self.is_closed_unborn(node) {
            self.later.wake.notify_one();
        } else if self.service.keeps_versions() {
            // Sent when the last of those that share the open file has closed it: together they write one version.
        } else if lock(&node.state).unsent_bytes() > 0 && lock(&node.state).attr.nlink > 0 {
            let (mount, node) = (self.clone(), node.clone());
            tokio::spawn(async move { mount.send(&node).await });
        }
        file.report_failure()
    }

    /// Whether the pool is to be told of the file, with the bytes that were written by now.
    fn is_closed_unborn(&self, node: &Node) -> bool {
        let mut state = lock(&node.state);
        let is_whole = fits_a_birth(&state);
        if let Some(making) = state.making.as_mut() {
            // Later closes, of readers too, do not make it wait longer.
            making.closed_at.get_or_insert_with(timer);
        }
        is_whole && state.making.is_some()
    }

    /// Whether a file has bytes that do not travel with its making.
    pub(super) fn is_to_be_sent(&self, node: &Node) -> bool {
        let state = lock(&node.state);
        state.making.is_none() && (state.untold == 0 || state.unsent_bytes() > 0)
    }

    /// Gives back all locks of an owner, if it has any.
    pub(super) async fn unlock_all(&self, node: &Node, owner: u64) -> Result<()> {
        let has_locks = lock(&node.state).lock_owners.remove(&owner);
        if has_locks {
            let lock = Lock { kind: LockKind::Unlock, start: 0, end: OFFSET_MAX, owner, pid: 0 };
            self.apply(Operation::Lock { file: node.file_ref(), lock }).await?;
        }
        Ok(())
    }

    /// Returns when all that was written to the file is durable.
    ///
    /// # Errors
    /// A write-back failed.
    pub async fn sync(self: &Arc<Self>, file: &OpenFile) -> Result<()> {
        let _ = self.send(&file.node).await; // Reported below, once.
        file.report_failure()
    }

    /// Bytes as programs see them; fewer than asked only at the end of the file.
    ///
    /// # Errors
    /// As the pool says.
    pub async fn read(self: &Arc<Self>, file: &OpenFile, offset: u64, size: u64) -> Result<Vec<u8>> {
        let node = &file.node;
        self.refresh(node).await?;
        for _ in 0..READ_RETRIES_MAX {
            if let Some(data) = self.read_once(file, offset, size).await? {
                return Ok(data);
            }
        }
        let _turn = node.turn.lock().await;
        for _ in 0..READ_RETRIES_MAX {
            if let Some(data) = self.read_once(file, offset, size).await? {
                return Ok(data);
            }
        }
        Err(Errno::AGAIN)
    }

    /// `None`: bytes changed while they were on their way.
    async fn read_once(self: &Arc<Self>, file: &OpenFile, offset: u64, size: u64) -> Result<Option<Vec<u8>>> {
        let node = &file.node;
        let (seen_size, known_size, changes, generation) = {
            let state = lock(&node.state);
            (state.seen().size, state.attr.size, state.changes, state.generation)
        };
        let length = seen_size.saturating_sub(offset).min(size);
        let mut out = vec![0; length as usize];
        let end = offset + length;
        let ahead = lock(&file.ahead).on_read(offset, length);
        if let Some(range) = ahead.filter(|range| range.start < known_size) {
            self.fetch_ahead(node, range.start..range.end.min(known_size), generation);
        }
        if offset < known_size && length > 0 {
            let last = end.min(known_size);
            let blocks =
                self.blocks(node, offset / BLOCK_BYTES..last.div_ceil(BLOCK_BYTES), generation).await?;
            for (block, data) in blocks {
                super::buffer::lay_piece_over(block * BLOCK_BYTES, &data, offset, &mut out);
            }
        }
        let state = lock(&node.state);
        if state.changes != changes || state.generation != generation {
            return Ok(None);
        }
        state.lay_over(offset, &mut out);
        Ok(Some(out))
    }

    fn fetch_ahead(self: &Arc<Self>, node: &Arc<Node>, range: Range<u64>, generation: u64) {
        let mut start = range.start / BLOCK_BYTES;
        let end = range.end.div_ceil(BLOCK_BYTES);
        while start < end {
            let next = (start + FETCH_BYTES_MAX / BLOCK_BYTES).min(end);
            let (mount, node, blocks) = (self.clone(), node.clone(), start..next);
            // A reader that comes to a block that failed asks again, and is told why.
            tokio::spawn(async move { mount.blocks(&node, blocks, generation).await.map(drop) });
            start = next;
        }
    }

    /// Blocks from the cache and from the pool; those behind the file's end are missing.
    async fn blocks(&self, node: &Node, range: Range<u64>, generation: u64) -> Result<Vec<(u64, Bytes)>> {
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let cached = lock(&self.blocks).get(node.ino, at, generation);
            if let Some(data) = cached {
                found.push((at, data));
                at += 1;
                continue;
            }
            let fetched = node.fetched.notified();
            let mut run = 0;
            {
                let mut state = lock(&node.state);
                let blocks = lock(&self.blocks);
                while at + run < range.end
                    && !state.fetching.contains(&(at + run))
                    && (run == 0 || !blocks.has(node.ino, at + run, generation))
                {
                    state.fetching.insert(at + run);
                    run += 1;
                }
            }
            if run == 0 {
                // Another reader fetches it. If it fails or is out of date by then, this one fetches itself.
                let _ = tokio::time::timeout(LOCK_RETRY_MAX, fetched).await;
                continue;
            }
            let result = self.fetch(node, at..at + run, generation).await;
            {
                let mut state = lock(&node.state);
                (at..at + run).for_each(|block| _ = state.fetching.remove(&block));
            }
            node.fetched.notify_waiters();
            found.extend(result?);
            at += run;
        }
        Ok(found)
    }

    async fn fetch(&self, node: &Node, range: Range<u64>, generation: u64) -> Result<Vec<(u64, Bytes)>> {
        let _permit = self.fetches.acquire().await.map_err(|_| Errno::IO)?;
        if let Some(kept) = self.kept(node, range.clone(), generation).await {
            return Ok(kept);
        }
        let changes = lock(&node.state).changes;
        let asked = self.asking(Some(node));
        let length = (range.end - range.start) * BLOCK_BYTES;
        let is_past = is_past(node.ino);
        let (mut data, data_version) = if is_past {
            (self.read_past(node, range.start * BLOCK_BYTES, length).await?, 0)
        } else {
            let read = self.service.read(&node.file_ref(), range.start * BLOCK_BYTES, length).await?;
            if read.data.len() as u64 > length {
                return Err(Errno::IO);
            }
            self.learn(read.attr, asked);
            (read.data, read.attr.data_version)
        };
        let mut blocks = Vec::new();
        for block in range {
            if data.is_empty() {
                break;
            }
            let part = data.split_to(data.len().min(BLOCK_BYTES as usize));
            blocks.push((block, part));
        }
        if let Some(disk) = self.options.disk_cache.as_ref().filter(|_| !is_past) {
            for (block, part) in &blocks {
                disk.put(node.ino, data_version, *block, part);
            }
        }
        let state = lock(&node.state);
        if state.changes == changes && state.generation == generation {
            let mut cache = lock(&self.blocks);
            for (block, part) in &blocks {
                cache.put(node.ino, *block, generation, part.clone());
            }
        }
        Ok(blocks)
    }

    /// Blocks from this machine's disk, if it has all of them as the file is now.
    async fn kept(&self, node: &Node, range: Range<u64>, generation: u64) -> Option<Vec<(u64, Bytes)>> {
        let disk = self.options.disk_cache.clone().filter(|_| !is_past(node.ino))?;
        let (changes, version) = {
            let state = lock(&node.state);
            (state.changes, state.attr.data_version)
        };
        if !self.is_fresh(node) {
            return None;
        }
        let ino = node.ino;
        let read = move || {
            range.map(|block| Some((block, disk.get(ino, version, block)?))).collect::<Option<Vec<_>>>()
        };
        let blocks = tokio::task::spawn_blocking(read).await.ok()??;
        let state = lock(&node.state);
        if state.changes != changes || state.generation != generation {
            return None;
        }
        let mut cache = lock(&self.blocks);
        for (block, part) in &blocks {
            cache.put(ino, *block, generation, part.clone());
        }
        Some(blocks)
    }

    /// Changes the bytes of a range, after all that was written before.
    ///
    /// # Errors
    /// As the pool says.
    pub async fn allocate(
        self: &Arc<Self>,
        file: &OpenFile,
        mode: i32,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = ZERO | KEEP;
        let end = offset.checked_add(length).filter(|end| *end <= OFFSET_MAX).ok_or(Errno::FBIG)?;
        let edits = match mode {
            0 => vec![Edit::Extend(end)],
            // Room is not set aside: a quota is checked when bytes come.
            KEEP => return Ok(()),
            PUNCH | ZERO_KEEP => vec![Edit::Punch { offset, length }],
            ZERO => vec![Edit::Punch { offset, length }, Edit::Extend(end)],
            _ => return Err(Errno::OPNOTSUPP),
        };
        let node = &file.node;
        let operation = Operation::Edit { file: node.file_ref(), edits, mtime: None };
        self.change_file(node, vec![operation]).await?;
        lock(&node.state).is_unfinished = self.service.keeps_versions();
        lock(&self.blocks).drop_range(node.ino, offset..end);
        Ok(())
    }

    /// Copies within the pool; bytes copied, fewer than asked at the source's end.
    ///
    /// # Errors
    /// As the pool says.
    pub async fn copy_range(
        self: &Arc<Self>,
        from: (&OpenFile, u64),
        to: (&OpenFile, u64),
        length: u64,
    ) -> Result<u64> {
        self.sync(from.0).await?;
        self.refresh(&from.0.node).await?;
        let size = lock(&from.0.node.state).seen().size;
        let length = length.min(size.saturating_sub(from.1));
        if length == 0 {
            return Ok(0);
        }
        if to.1.checked_add(length).is_none_or(|end| end > OFFSET_MAX) {
            return Err(Errno::FBIG);
        }
        let node = &to.0.node;
        let edit = Edit::Copy { from: from.0.node.file_ref(), from_offset: from.1, offset: to.1, length };
        let operation = Operation::Edit { file: node.file_ref(), edits: vec![edit], mtime: None };
        self.change_file(node, vec![operation]).await?;
        lock(&node.state).is_unfinished = self.service.keeps_versions();
        lock(&self.blocks).drop_range(node.ino, to.1..to.1 + length);
        Ok(length)
    }

    /// # Errors
    /// `ENXIO` behind the end.
    pub async fn seek(self: &Arc<Self>, file: &OpenFile, offset: u64, to: SeekTo) -> Result<u64> {
        if is_past(file.node.ino) {
            let size = lock(&file.node.state).attr.size;
            return match to {
                _ if offset >= size => Err(Errno::NXIO),
                SeekTo::Data => Ok(offset),
                SeekTo::Hole => Ok(size),
            };
        }
        self.sync(file).await?;
        self.tell_of_node(&file.node).await;
        self.service.seek(&file.node.file_ref(), offset, to).await
    }

    /// # Errors
    /// As the pool says.
    pub async fn lock_conflict(&self, ino: Ino, lock: Lock) -> Result<Option<Lock>> {
        if is_past(ino) {
            return Ok(None);
        }
        let node = self.node(ino)?;
        self.tell_of_node(&node).await;
        self.service.lock_conflict(&node.file_ref(), lock).await
    }

    /// Takes or gives back a lock. One that may wait does until it has the lock or `is_killed` says that nobody waits.
    ///
    /// # Errors
    /// `EAGAIN` where another's lock stands in the way; `EINTR`.
    pub async fn set_lock(
        self: &Arc<Self>,
        ino: Ino,
        request: Lock,
        may_wait: bool,
        is_killed: impl Fn() -> bool,
    ) -> Result<()> {
        if is_past(ino) {
            return Ok(()); // Nobody can change it.
        }
        let node = self.node(ino)?;
        self.tell_of_node(&node).await;
        let mut pause = LOCK_RETRY_MIN;
        loop {
            let operation = Operation::Lock { file: node.file_ref(), lock: request };
            match self.apply(operation).await {
                Err(Errno::AGAIN) if may_wait => {}
                other => {
                    if other.is_ok() && request.kind != LockKind::Unlock {
                        lock(&node.state).lock_owners.insert(request.owner);
                    }
                    return other.map(drop);
                }
            }
            if is_killed() {
                return Err(Errno::INTR);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOCK_RETRY_MAX);
        }
    }

    /// Empties a file that is opened to be written anew.
    ///
    /// # Errors
    /// As the pool says.
    pub async fn empty(self: &Arc<Self>, ino: Ino) -> Result<()> {
        let change =
            AttrChange { size: Some(0), mtime: Some(super::service::SetTime::Now), ..AttrChange::default() };
        self.set_attributes(ino, change).await.map(drop)
    }
}

/// Whether all that was written to a file is one content from its first byte on, small enough to travel with its making.
pub(super) fn fits_a_birth(state: &super::nodes::State) -> bool {
    let unsent = &state.unsent;
    let is_small = state.unsent_bytes() <= INLINE_BYTES_MAX && state.sending.is_empty();
    let is_whole = match &state.appended {
        None => unsent.is_empty() || (unsent.piece_count() == 1 && unsent.end() == unsent.bytes() as u64),
        Some((start, _)) => unsent.is_empty() && *start == 0,
    };
    is_small && is_whole
}

/// A small file that was written from its first byte to its last.
fn whole(node: &Node, unsent: &Unsent) -> Option<Edit> {
    let attr = lock(&node.state).attr;
    let data = match (&unsent.pieces[..], &unsent.appended) {
        ([(0, data)], None) if data.len() as u64 >= attr.size => data,
        ([], Some((0, data))) if attr.size == 0 => data,
        _ => return None,
    };
    let is_small = data.len() <= WHOLE_BYTES_MAX && attr.kind == super::service::Kind::File;
    is_small.then(|| Edit::Replace { data: data.clone(), version: attr.data_version })
}

/// The runtime's time: only differences of it are used, so that a test may pause it.
#[expect(clippy::disallowed_methods, reason = "the age of unsent bytes is measured on the runtime's clock")]
fn timer() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
