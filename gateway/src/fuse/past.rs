//! `.versions` at a mount's root: the versions of a bucket that keeps them, as files that nobody can change.
//!
//! ```text
//! .versions/a/b/NAME@VERSIONID ─ names ─> the pool's page of versions ─> nodes of their own numbers ─> cache, read-ahead
//! ```
//!
//! A listing of the root does not show it; whoever names it finds it, unless the bucket never kept versions or something else of
//! the bucket has that name. What is known of the past is a [`Node`] like any other, with [`Past`] beside it.
//!
//! Always: a version's bytes never change, so nothing told of them is doubted; nothing here reaches the pool as a change; permissions
//! are of the mount's root's owner alone, since versions do not keep those that their files had.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use ring::digest::{Context, SHA256};

use super::mount::{Mount, Seen};
use super::nodes::{Node, lock};
use super::service::{Attr, Errno, Ino, Kind, PastEntry, PastKind, Place, Result};

/// How the past is called at a mount's root.
pub const NAME: &[u8] = b".versions";
/// Numbers of the pool's files lie below.
const FIRST: u64 = 1 << 63;
const DIRECTORY_MODE: u32 = 0o500;
const FILE_MODE: u32 = 0o400;

/// What a node of the past stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Past {
    /// Steps down from [`NAME`].
    Directory(Vec<Bytes>),
    Version {
        key: String,
        id: String,
    },
}

/// Whether a number is of the past.
#[must_use]
pub fn is_past(ino: Ino) -> bool {
    ino.0 >= FIRST
}

impl Past {
    /// The same each time, on each mount.
    fn number(&self) -> Ino {
        let mut context = Context::new(&SHA256);
        let mut part = |bytes: &[u8]| {
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(bytes);
        };
        match self {
            Self::Directory(path) => path.iter().for_each(|name| part(name)),
            Self::Version { key, id } => [key, id].iter().for_each(|text| part(text.as_bytes())),
        }
        let digest = context.finish();
        let first = digest.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        // An even number is a directory's.
        let kind = u64::from(matches!(self, Self::Version { .. }));
        Ino(FIRST | (first & !1) | kind)
    }
}

/// One that is listed, or found by its name.
pub(super) struct Found {
    pub name: Bytes,
    pub attr: Attr,
    pub past: Arc<Past>,
}

impl Mount {
    /// # Errors
    /// `EROFS` for what is of the past.
    pub(super) fn check_present(inos: &[Ino]) -> Result<()> {
        if inos.iter().any(|ino| is_past(*ino)) { Err(Errno::ROFS) } else { Ok(()) }
    }

    fn past_of(node: &Node) -> Result<Arc<Past>> {
        lock(&node.state).past.clone().ok_or(Errno::STALE)
    }

    fn past_path(node: &Node) -> Result<Vec<Bytes>> {
        match &*Self::past_of(node)? {
            Past::Directory(path) => Ok(path.clone()),
            Past::Version { .. } => Err(Errno::NOTDIR),
        }
    }

    /// The node of something past; nothing is asked about it again.
    pub(super) fn past_node(&self, attr: Attr, past: &Arc<Past>) -> Arc<Node> {
        let node = lock(&self.table).node_or_new(attr);
        let mut state = lock(&node.state);
        state.attr = attr;
        state.fresh_in = self.epoch();
        state.xattrs = Some(Vec::new());
        state.past = Some(past.clone());
        drop(state);
        node
    }

    /// `.versions` itself, where a name at the root stands for nothing else.
    pub(super) async fn past_root(&self, parent: Ino, name: &[u8]) -> Result<Seen> {
        if parent != self.root() || name != NAME {
            return Err(Errno::NOENT);
        }
        self.service.past(&[], Bytes::new()).await?;
        let past = Arc::new(Past::Directory(Vec::new()));
        let node = self.past_node(self.past_directory_attr(&past), &past);
        lock(&self.table).name(Place { parent, name: Bytes::from_static(NAME) }, &node, 0);
        Ok(self.refer(&node))
    }

    pub(super) async fn lookup_past(&self, place: Place) -> std::result::Result<Seen, (Errno, Duration)> {
        let found = async {
            let directory = self.node(place.parent)?;
            let path = Self::past_path(&directory)?;
            let entry = self.service.past_entry(&path, &place.name).await?;
            if entry.name != place.name {
                return Err(Errno::IO); // This gateway is not to be believed.
            }
            Ok(self.found(&path, entry))
        };
        let found = found.await.map_err(|errno| (errno, Duration::ZERO))?;
        let node = self.past_node(found.attr, &found.past);
        lock(&self.table).name(place, &node, 0);
        Ok(self.refer(&node))
    }

    /// A page of a past directory.
    pub(super) async fn list_past(
        &self,
        directory: &Node,
        cursor: Bytes,
    ) -> Result<(Vec<Found>, Bytes, bool)> {
        let path = Self::past_path(directory)?;
        let page = self.service.past(&path, cursor).await?;
        let entries = page.entries.into_iter().map(|entry| self.found(&path, entry)).collect();
        Ok((entries, page.cursor, page.is_end))
    }

    /// The directory above one of the past.
    pub(super) fn past_parent(&self, directory: &Node) -> Ino {
        let mut path = Self::past_path(directory).unwrap_or_default();
        if path.pop().is_some() { Past::Directory(path).number() } else { self.root() }
    }

    fn found(&self, path: &[Bytes], entry: PastEntry) -> Found {
        let PastEntry { name, kind } = entry;
        match kind {
            PastKind::Directory => {
                let path = path.iter().cloned().chain([name.clone()]).collect();
                let past = Arc::new(Past::Directory(path));
                Found { name, attr: self.past_directory_attr(&past), past }
            }
            PastKind::Version { key, id, size, modified_at, data_version } => {
                let past = Arc::new(Past::Version { key, id });
                let attr = Attr {
                    kind: Kind::File,
                    mode: FILE_MODE,
                    nlink: 1,
                    size,
                    blocks: size.div_ceil(512),
                    data_version,
                    ..self.past_attr(past.number(), modified_at)
                };
                Found { name, attr, past }
            }
        }
    }

    fn past_directory_attr(&self, past: &Past) -> Attr {
        let made_at =
            self.node(self.root()).map_or(SystemTime::UNIX_EPOCH, |root| lock(&root.state).attr.btime);
        self.past_attr(past.number(), made_at)
    }

    fn past_attr(&self, ino: Ino, at: SystemTime) -> Attr {
        let (uid, gid) = self.node(self.root()).map_or((0, 0), |root| {
            let attr = lock(&root.state).attr;
            (attr.uid, attr.gid)
        });
        Attr {
            ino,
            kind: Kind::Directory,
            mode: DIRECTORY_MODE,
            uid,
            gid,
            nlink: 2,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: at,
            mtime: at,
            ctime: at,
            btime: at,
            data_version: 0,
            has_no_xattrs: true,
        }
    }

    /// Bytes of a version.
    pub(super) async fn read_past(&self, node: &Node, offset: u64, length: u64) -> Result<Bytes> {
        let size = lock(&node.state).attr.size;
        let length = length.min(size.saturating_sub(offset));
        match &*Self::past_of(node)? {
            Past::Version { key, id } => {
                let data = self.service.read_past(key, id, offset, length).await?;
                if data.len() as u64 == length { Ok(data) } else { Err(Errno::IO) }
            }
            Past::Directory(_) => Err(Errno::ISDIR),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_past_has_numbers_of_its_own() {
        let directory = |path: &[&'static str]| {
            Past::Directory(path.iter().map(|name| Bytes::from_static(name.as_bytes())).collect()).number()
        };
        let version = |key: &str, id: &str| Past::Version { key: key.into(), id: id.into() }.number();
        let numbers = [
            directory(&[]),
            directory(&["a"]),
            directory(&["a", "b"]),
            directory(&["ab"]),
            version("a", "b"),
            version("ab", ""),
            version("", "ab"),
        ];
        let different: std::collections::BTreeSet<_> = numbers.iter().collect();
        assert_eq!(different.len(), numbers.len());
        assert!(numbers.iter().all(|ino| is_past(*ino)));
        assert_eq!(version("a", "b"), version("a", "b"));
    }
}
