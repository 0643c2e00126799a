//! The log as openraft wants it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use futures::Stream;
use futures::channel::oneshot;
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};

use super::types::{Entry, LogId, Types, Vote};
use super::wal::{Done, Found, Log};
use crate::facts::GroupId;

/// Entries that go to a follower, or to the machine, in one piece.
const READ_BYTES_MAX: usize = 2 << 20;

/// One group's part of the log.
#[derive(Clone)]
pub struct GroupStorage {
    log: Log,
    group: GroupId,
}

impl GroupStorage {
    #[must_use]
    pub fn new(log: Log, group: GroupId) -> Self {
        Self { log, group }
    }

    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let found = self.log.find(self.group, start, end, bytes_max);
        if found.iter().all(|found| matches!(found, Found::Memory(_))) {
            return found.into_iter().map(Found::load).collect();
        }
        let load = move || found.into_iter().map(Found::load).collect();
        tokio::task::spawn_blocking(load).await.map_err(io::Error::other)?
    }
}

fn limits(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<Types> for GroupStorage {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = limits(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.log.vote(self.group))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES_MAX).await
    }

    /// In pieces, so that catching up after a restart needs no memory for the whole log.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = limits(&range);
        let first = (self.clone(), start, Vec::new().into_iter());
        futures::stream::try_unfold(first, move |(log, next, mut piece)| async move {
            if let Some(entry) = piece.next() {
                return Ok(Some((entry, (log, next, piece))));
            }
            let piece = log.read(next, end, READ_BYTES_MAX).await?;
            let next = piece.last().map_or(next, |last| last.log_id.index + 1);
            let mut piece = piece.into_iter();
            Ok(piece.next().map(|entry| (entry, (log, next, piece))))
        })
    }
}

impl RaftLogStorage<Types> for GroupStorage {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let (last_purged_log_id, last_log_id) = self.log.bounds(self.group);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, is_done) = oneshot::channel();
        self.log.save_vote(self.group, *vote, Done::Signal(done))?;
        is_done.await.map_err(|_| io::Error::other("the log's flusher is gone"))?
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.log.append(self.group, entries, Done::Raft(callback))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.log.truncate_after(self.group, last_log_id)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.log.purge(self.group, log_id)
    }
}
