//! The names of a bucket: a tree of directory entries, walked depth first in S3's key order.
//!
//! A key is cut behind each `/`: all pieces but the last are directories, the last (maybe empty: the key `d/`)
//! names an object. Entries of a directory sort by their piece, so `a` stands before `a-b`, `a-b` before `a.c`,
//! `a.c` before `a/`: where two keys first differ they differ within one piece, and pieces compare as keys do.
//! A directory exists as long as it has entries.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::draft::{Draft, decode, read, shift};
use super::files;
use super::keys::{self, Counter};
use super::kv::{KvError, View};
use crate::facts::files::{DirectoryAttributes, FileTime};
use crate::facts::object::KEY_BYTES_MAX;

/// A piece of keys that ends in `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    pub inode: u64,
    /// Entries in it, objects and directories. Never 0 in the store.
    pub entries: u64,
    /// Those that are directories.
    #[serde(default)]
    pub directories: u64,
    /// `None`: made before there were mounts.
    #[serde(default)]
    pub attributes: Option<DirectoryAttributes>,
}

impl Directory {
    /// Its entries have changed.
    pub fn touch(&mut self, now: FileTime) {
        if let Some(attributes) = &mut self.attributes {
            (attributes.modified_at, attributes.changed_at) = (now, now);
        }
    }
}

struct Level {
    /// Where the directory's own record stands.
    entry: Vec<u8>,
    directory: Directory,
}

/// Where a key is, or would be.
pub struct Place {
    root: u64,
    /// The directories of the key's path that exist, from the root down.
    levels: Vec<Level>,
    /// The pieces of the key below them: directories to be made, then the object's name.
    missing: Vec<Vec<u8>>,
    /// The object's record; `None`: there is none.
    pub record: Option<Vec<u8>>,
}

/// Finds `key` below the directory `root`: one lookup per piece. No key beyond [`KEY_BYTES_MAX`] exists.
pub fn locate(view: &dyn View, root: u64, key: &str) -> Result<Place, KvError> {
    let mut place = Place { root, levels: Vec::new(), missing: Vec::new(), record: None };
    if key.len() > KEY_BYTES_MAX {
        return Ok(place);
    }
    let mut pieces = key.as_bytes().split_inclusive(|&byte| byte == b'/').peekable();
    while let Some(piece) = pieces.next_if(|piece| piece.ends_with(b"/")) {
        let entry = keys::entry(place.bottom(), piece);
        match read(view, &entry)? {
            Some(directory) => place.levels.push(Level { entry, directory }),
            None => {
                place.missing.push(piece.to_vec());
                break;
            }
        }
    }
    let is_below_missing = !place.missing.is_empty();
    place.missing.extend(pieces.map(<[u8]>::to_vec));
    if key.ends_with('/') {
        place.missing.push(Vec::new());
    }
    if !is_below_missing {
        place.record = view.get(&place.entry())?;
    }
    Ok(place)
}

impl Place {
    fn bottom(&self) -> u64 {
        self.levels.last().map_or(self.root, |level| level.directory.inode)
    }

    /// The object's entry, where every directory above it exists.
    pub fn entry(&self) -> Vec<u8> {
        keys::entry(self.bottom(), self.missing.last().map_or(&[], Vec::as_slice))
    }

    /// Sets the object's record, and makes the directories that its key implies.
    pub fn put(mut self, draft: &mut Draft<'_>, record: Vec<u8>) -> Result<(), KvError> {
        if self.record.is_some() {
            draft.put(self.entry(), record);
            return Ok(());
        }
        let now = FileTime::from_millis(draft.now.0);
        let name = self.missing.pop().unwrap_or_default();
        match self.levels.last_mut() {
            Some(parent) => {
                parent.directory.entries = shift(parent.directory.entries, 1, 0, "directory entries")?;
                let implied = u64::from(!self.missing.is_empty());
                parent.directory.directories =
                    shift(parent.directory.directories, implied, 0, "directories")?;
                parent.directory.touch(now);
                draft.write(parent.entry.clone(), &parent.directory)?;
            }
            None => files::touch_root(draft, self.root)?,
        }
        let mut bottom = self.bottom();
        let mut missing = self.missing.into_iter().peekable();
        while let Some(piece) = missing.next() {
            let directory = Directory {
                inode: draft.next(Counter::Inode)?,
                entries: 1,
                directories: u64::from(missing.peek().is_some()),
                attributes: Some(DirectoryAttributes::implied(now)),
            };
            draft.write(keys::entry(bottom, &piece), &directory)?;
            files::place_directory(draft, self.root, directory.inode, bottom, &piece)?;
            bottom = directory.inode;
        }
        draft.put(keys::entry(bottom, &name), record);
        Ok(())
    }

    /// Removes the object, and the directories that have no entry then.
    pub fn remove(mut self, draft: &mut Draft<'_>) -> Result<(), KvError> {
        if self.record.is_none() {
            return Ok(());
        }
        let now = FileTime::from_millis(draft.now.0);
        draft.delete(self.entry());
        let mut is_directory = false;
        while let Some(Level { entry, mut directory }) = self.levels.pop() {
            directory.entries = shift(directory.entries, 0, 1, "directory entries")?;
            if directory.entries > 0 {
                // Directories made before they were counted may hold more of them than their count.
                directory.directories = directory.directories.saturating_sub(u64::from(is_directory));
                directory.touch(now);
                return draft.write(entry, &directory);
            }
            draft.delete(entry);
            files::forget_directory(draft, directory.inode)?;
            is_directory = true;
        }
        files::touch_root(draft, self.root)
    }

    /// What stands for other things than before once the object is put here: directory and name.
    pub fn appearing(&self) -> (u64, &[u8]) {
        (self.bottom(), self.missing.first().map_or(&[], Vec::as_slice))
    }

    /// The same once it is removed: the object, and the directories that go with it.
    pub fn vanishing(&self) -> Vec<(u64, &[u8])> {
        let mut gone = vec![self.appearing()];
        for (depth, level) in self.levels.iter().enumerate().rev() {
            if level.directory.entries > 1 {
                break;
            }
            let above = depth.checked_sub(1).map_or(self.root, |above| self.levels[above].directory.inode);
            gone.push((above, &level.entry[keys::ENTRY_NAME_AT..]));
        }
        gone
    }
}

/// What a walk does next.
pub enum Step {
    Next,
    /// Leave out every key below this one, which is not below the entry just shown.
    Seek(Vec<u8>),
    Stop,
}

/// What stands at a place of the walk; paths are whole keys, and end in `/` for directories.
pub trait Visit {
    fn object(&mut self, path: &[u8], record: &[u8]) -> Result<Step, KvError>;
    /// Whether to walk it: `None`, or what to do instead.
    fn directory(&mut self, path: &[u8]) -> Option<Step>;
}

struct Frame {
    directory: u64,
    /// Bytes of its path.
    path_len: usize,
    /// The least name in it not yet shown.
    from: Vec<u8>,
}

/// Shows all entries whose keys are at or above `start`, in key order, until the visitor stops.
///
/// Cost: one lookup per piece of `start`, then one scan per directory walked; a directory that is not walked
/// costs its entry. Needs no more stack for deeper trees.
pub fn walk(view: &dyn View, root: u64, start: &[u8], visitor: &mut dyn Visit) -> Result<(), KvError> {
    let mut path = Vec::new();
    let mut frames = Vec::new();
    seek(view, root, start, &mut path, &mut frames)?;
    while let Some(frame) = frames.last_mut() {
        path.truncate(frame.path_len);
        let mut step = Ok(Step::Next);
        let mut below = None;
        let from = keys::entry(frame.directory, &frame.from);
        let to = keys::end_of(&keys::entries(frame.directory));
        view.scan(&from, &to, &mut |key, value| {
            let name = &key[keys::ENTRY_NAME_AT..];
            path.truncate(frame.path_len);
            path.extend_from_slice(name);
            if name.ends_with(b"/") {
                match visitor.directory(&path) {
                    Some(instead) => step = Ok(instead),
                    None => {
                        frame.from = keys::after(name);
                        below = Some(decode::<Directory>(key, value));
                    }
                }
            } else {
                step = visitor.object(&path, value);
            }
            if below.is_none() && matches!(step, Ok(Step::Next)) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        match (below.transpose()?, step?) {
            (Some(directory), _) => {
                // Deeper than any key or path that a client can name: passed over.
                if path.len() > PATH_BYTES_MAX {
                    continue;
                }
                frames.push(Frame { directory: directory.inode, path_len: path.len(), from: Vec::new() });
            }
            (None, Step::Next) => _ = frames.pop(),
            (None, Step::Seek(target)) => seek(view, root, &target, &mut path, &mut frames)?,
            (None, Step::Stop) => return Ok(()),
        }
    }
    Ok(())
}

/// No walk goes deeper. Mounts nest directories as deep as they like; a damaged store must not be walked in circles.
const PATH_BYTES_MAX: usize = 1 << 16;

/// Makes `frames` begin at the first key at or above `target`, which may be any bytes.
fn seek(
    view: &dyn View,
    root: u64,
    target: &[u8],
    path: &mut Vec<u8>,
    frames: &mut Vec<Frame>,
) -> Result<(), KvError> {
    path.clear();
    frames.clear();
    let mut directory = root;
    let mut rest = target;
    while let Some(slash) = rest.iter().position(|&byte| byte == b'/') {
        let (piece, below) = rest.split_at(slash + 1);
        let Some(found) = read::<Directory>(view, &keys::entry(directory, piece))? else { break };
        // What sorts above the piece in this directory comes once the piece has been walked.
        frames.push(Frame { directory, path_len: path.len(), from: keys::after(piece) });
        path.extend_from_slice(piece);
        directory = found.inode;
        rest = below;
    }
    let from = match rest.iter().position(|&byte| byte == b'/') {
        Some(slash) => &rest[..=slash],
        None => rest,
    };
    frames.push(Frame { directory, path_len: path.len(), from: from.to_vec() });
    Ok(())
}
