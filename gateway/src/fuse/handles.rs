//! Open files and directories.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;

use super::blocks::ReadAhead;
use super::mount::{Asked, Mount, Seen};
use super::nodes::{Node, lock};
use super::past::{Found, Past, is_past};
use super::service::{Attr, Errno, Ino, Page, Place, Result};

/// A file that a program has open.
#[derive(Debug)]
pub struct OpenFile {
    pub node: Arc<Node>,
    pub may_write: bool,
    pub ahead: Mutex<ReadAhead>,
    /// Failures of write-backs that were reported through this one.
    pub failures_seen: Mutex<u64>,
}

impl OpenFile {
    /// The failure that this one has not reported yet.
    ///
    /// # Errors
    /// It is the error.
    pub fn report_failure(&self) -> Result<()> {
        let mut state = lock(&self.node.state);
        let mut seen = lock(&self.failures_seen);
        if *seen == state.failure_count {
            return Ok(());
        }
        *seen = state.failure_count;
        state.is_failure_unseen = false;
        Err(state.failure.unwrap_or(Errno::IO))
    }
}

/// An entry as the kernel is told.
#[derive(Debug, Clone)]
pub struct Listed {
    pub place: Place,
    pub attr: Attr,
    pub(super) past: Option<Arc<Past>>,
    pub(super) asked: Asked,
    /// To be given to go on behind it.
    pub offset: u64,
}

/// Part of a listing.
#[derive(Debug, Default)]
pub struct ListedPage {
    /// `.` and `..`: offset behind it, name, number.
    pub dots: Vec<(u64, &'static str, Ino)>,
    pub entries: Vec<Listed>,
}

/// A listing under way. What was told once keeps its number, so that a program may go back to it.
#[derive(Debug, Default)]
struct Listing {
    entries: Vec<(Bytes, Attr, Option<Arc<Past>>, Asked)>,
    cursor: Bytes,
    parent: Option<Ino>,
    is_end: bool,
    /// The next page, on its way while this one is handed over.
    ahead: Option<AbortOnDropHandle<(Asked, Result<Page>)>>,
}

/// A directory that a program has open.
#[derive(Debug)]
pub struct OpenDirectory {
    node: Arc<Node>,
    listing: tokio::sync::Mutex<Listing>,
}

/// All that is open.
#[derive(Debug, Default)]
pub struct Handles {
    last: u64,
    files: HashMap<u64, Arc<OpenFile>>,
    directories: HashMap<u64, Arc<OpenDirectory>>,
}

/// Entries handed over at a time, at most: as many as the kernel has room for in one answer.
const LISTED_MAX: usize = 256;
/// `.` and `..` come first.
const DOTS: u64 = 2;

impl Mount {
    /// Opens a file: whether the kernel may keep what it has cached, and the number of the open file.
    ///
    /// # Errors
    /// As the pool says.
    pub async fn open(self: &Arc<Self>, ino: Ino, may_write: bool) -> Result<(u64, bool)> {
        let node = self.node(ino)?;
        if may_write {
            self.finish_closed(&node).await;
        }
        self.refresh(&node).await?;
        Ok(self.opened(node, may_write))
    }

    /// Opens a file that was made for this: what is written to it is the first that it has.
    ///
    /// # Errors
    /// As the pool says.
    pub async fn open_new(self: &Arc<Self>, ino: Ino, may_write: bool) -> Result<(u64, bool)> {
        let node = self.node(ino)?;
        self.refresh(&node).await?;
        lock(&node.state).is_unfinished = self.service.keeps_versions();
        Ok(self.opened(node, may_write))
    }

    pub(super) fn opened(&self, node: Arc<Node>, may_write: bool) -> (u64, bool) {
        let mut state = lock(&node.state);
        state.opens += 1;
        state.writers += u32::from(may_write);
        if state.opens == 1 && !is_past(node.ino) {
            self.service.hold(node.ino);
        }
        let may_keep = state.kernel_generation == Some(state.generation);
        state.kernel_generation = Some(state.generation);
        let failures_seen = state.failure_count - u64::from(state.is_failure_unseen);
        drop(state);
        let file =
            OpenFile { node, may_write, ahead: Mutex::default(), failures_seen: Mutex::new(failures_seen) };
        let mut handles = lock(&self.handles);
        handles.last += 1;
        let number = handles.last;
        handles.files.insert(number, Arc::new(file));
        (number, may_keep)
    }

    /// # Errors
    /// `EBADF`: not open.
    pub fn file(&self, number: u64) -> Result<Arc<OpenFile>> {
        lock(&self.handles).files.get(&number).cloned().ok_or(Errno::BADF)
    }

    /// Forgets an open file, and the locks of `owner`; its bytes go on their way.
    pub async fn release(self: &Arc<Self>, number: u64, owner: Option<u64>) {
        let Some(file) = lock(&self.handles).files.remove(&number) else { return };
        let node = &file.node;
        lock(&node.state).writers -= u32::from(file.may_write);
        if let Some(owner) = owner
            && let Err(errno) = self.unlock_all(node, owner).await
        {
            tracing::warn!(%errno, inode = node.ino.0, "a lock is not given back: it ends with the mount");
        }
        let is_last_of_orphan = {
            let state = lock(&node.state);
            state.opens == 1 && state.attr.nlink == 0
        };
        if is_last_of_orphan {
            let discarded = lock(&node.state).discard_unsent();
            self.has_sent(discarded);
        } else if self.is_to_be_sent(node) {
            // A failure is kept for who opens the file next.
            let _ = self.send(node).await;
        }
        let mut state = lock(&node.state);
        state.opens -= 1;
        if state.opens == 0 && !is_past(node.ino) {
            self.service.release(node.ino);
        }
        drop(state);
        lock(&self.table).drop_unused(node.ino);
    }

    /// # Errors
    /// `ESTALE`: the kernel was never told of it.
    pub fn open_directory(&self, ino: Ino) -> Result<u64> {
        let node = self.node(ino)?;
        let mut handles = lock(&self.handles);
        handles.last += 1;
        let number = handles.last;
        let directory = OpenDirectory { node, listing: tokio::sync::Mutex::default() };
        handles.directories.insert(number, Arc::new(directory));
        Ok(number)
    }

    pub fn release_directory(&self, number: u64) {
        lock(&self.handles).directories.remove(&number);
    }

    /// Entries behind `offset`; from 0 the directory is read anew.
    ///
    /// # Errors
    /// As the pool says.
    pub async fn list(self: &Arc<Self>, number: u64, offset: u64) -> Result<ListedPage> {
        let directory = lock(&self.handles).directories.get(&number).cloned().ok_or(Errno::BADF)?;
        let mut listing = directory.listing.lock().await;
        if offset == 0 {
            *listing = Listing::default();
            self.list_more(&directory.node, &mut listing).await?;
        }
        let ino = directory.node.ino;
        let first = usize::try_from(offset.saturating_sub(DOTS)).map_err(|_| Errno::INVAL)?;
        while first >= listing.entries.len() && !listing.is_end {
            self.list_more(&directory.node, &mut listing).await?;
        }
        let mut listed = ListedPage { dots: Vec::new(), entries: Vec::new() };
        let parent = listing.parent.filter(|_| ino != self.root()).unwrap_or(ino);
        let dots = [(1, ".", ino), (2, "..", parent)];
        listed.dots.extend(dots.into_iter().filter(|(at, _, _)| offset < *at));
        let entries = listing.entries.iter().enumerate().skip(first).take(LISTED_MAX);
        listed.entries.extend(entries.map(|(at, (name, attr, past, asked))| Listed {
            place: Place { parent: ino, name: name.clone() },
            attr: *attr,
            past: past.clone(),
            asked: *asked,
            offset: at as u64 + 1 + DOTS,
        }));
        Ok(listed)
    }

    async fn list_more(self: &Arc<Self>, node: &Node, listing: &mut Listing) -> Result<()> {
        if is_past(node.ino) {
            return self.list_more_past(node, listing).await;
        }
        let (asked, page) = match listing.ahead.take() {
            Some(ahead) => ahead.await.map_err(|_| Errno::IO)?,
            None => {
                self.tell_of_node(node).await;
                self.tell_of(&[node.ino]).await;
                (self.asking(None), self.service.list(node.ino, listing.cursor.clone()).await)
            }
        };
        let page = page?;
        let is_stuck = !page.is_end && page.entries.last().is_none_or(|last| last.cursor == listing.cursor);
        for entry in page.entries {
            if entry.name.is_empty() || entry.name.contains(&b'/') || entry.name.contains(&0) {
                return Err(Errno::IO); // No name of a file: this gateway is not to be believed.
            }
            listing.cursor = entry.cursor;
            listing.entries.push((entry.name, entry.attr, None, asked));
        }
        listing.parent = page.parent.or(listing.parent);
        listing.is_end = page.is_end;
        if !page.is_end && !is_stuck {
            let (mount, ino, cursor) = (self.clone(), node.ino, listing.cursor.clone());
            let ask = async move { (mount.asking(None), mount.service.list(ino, cursor).await) };
            listing.ahead = Some(AbortOnDropHandle::new(tokio::spawn(ask)));
        }
        // A page that does not lead on would be asked for for ever.
        if is_stuck { Err(Errno::IO) } else { Ok(()) }
    }

    async fn list_more_past(&self, node: &Node, listing: &mut Listing) -> Result<()> {
        let asked = self.asking(None);
        let (entries, cursor, is_end) = self.list_past(node, listing.cursor.clone()).await?;
        let is_stuck = !is_end && cursor == listing.cursor;
        for Found { name, attr, past } in entries {
            if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                return Err(Errno::IO); // No name of a file: this gateway is not to be believed.
            }
            listing.entries.push((name, attr, Some(past), asked));
        }
        (listing.cursor, listing.is_end) = (cursor, is_end);
        listing.parent = Some(self.past_parent(node));
        if is_stuck { Err(Errno::IO) } else { Ok(()) }
    }

    /// Counts a listed file as one that the kernel refers to, as a lookup of its name would.
    ///
    /// # Errors
    /// As the pool says.
    pub async fn refer_listed(&self, listed: &Listed) -> Result<Seen> {
        if let Some(past) = &listed.past {
            let node = self.past_node(listed.attr, past);
            lock(&self.table).name(listed.place.clone(), &node, 0);
            return Ok(self.refer(&node));
        }
        let node = lock(&self.table).node_or_new(listed.attr);
        let is_new = self.learn_listed(&node, listed);
        if !is_new {
            self.refresh(&node).await?;
        }
        lock(&self.table).name(listed.place.clone(), &node, 0);
        Ok(self.refer(&node))
    }
}
