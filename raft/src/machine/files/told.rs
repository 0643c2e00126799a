//! What mounts' changes mean for those who follow the keys of a bucket.
//!
//! ```text
//! operation ─ keys that came, have other bytes, or went ─ told once all operations of the command are done ─> journal
//! ```
//!
//! An edit knows its file by inode: while the bucket is followed, the names of files that mounts give or use are kept.
//! Always: who replays what is told has the keys that are there, with their ETags. (Of a file that had several names before
//! the bucket was followed, a change is told under those that mounts have used since.)

use std::collections::HashSet;

use super::work::Work;
use super::{keys, node, tree};
use crate::facts::files::{FileRef, FileRefusal, KEYS_TOLD_MAX};
use crate::facts::journal::Happening;
use crate::facts::object::KEY_BYTES_MAX;
use crate::facts::version::VersionId;
use crate::machine::draft::{Draft, Outcome, expect, read};
use crate::machine::journal::News;
use crate::machine::keys as store_keys;
use crate::machine::kv::{KvError, View};
use crate::machine::names::{self, Directory, Step, Visit};
use crate::machine::objects;

/// What happened to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    happening: Happening,
    key: String,
    version: Option<VersionId>,
    size: u64,
    etag: String,
}

impl Told {
    /// The object whose record stands under `key` now.
    fn put(view: &dyn View, key: &[u8], record: &[u8]) -> Result<Self, KvError> {
        let head = objects::head_of(view, key, record)?;
        let version = head.has_version_id.then(|| head.version_id());
        Ok(Self { happening: Happening::Put, key: head.key, version, size: head.size, etag: head.etag })
    }

    fn gone(self) -> Self {
        Self { happening: Happening::Deleted, version: None, size: 0, etag: String::new(), ..self }
    }

    /// Where a bucket keeps versions, what goes is hidden by a marker.
    pub fn take_marker(&mut self, of: impl Fn(&str) -> Option<VersionId>) {
        if self.happening == Happening::Deleted
            && let Some(marker) = of(&self.key)
        {
            (self.happening, self.version) = (Happening::Marked, Some(marker));
        }
    }

    pub fn news(&self) -> News<'_> {
        let Self { happening, key, version, size, etag } = self;
        News { happening: *happening, key, version: *version, size: *size, etag }
    }
}

/// Without what the same command has outdated: a file that is made and then written is told of once.
pub fn without_outdated(told: Vec<Told>) -> Vec<Told> {
    let mut put_later = HashSet::new();
    let mut kept: Vec<Told> = Vec::with_capacity(told.len());
    for told in told.into_iter().rev() {
        let is_outdated = match told.happening {
            Happening::Put => !put_later.insert(told.key.clone()),
            _ => {
                put_later.remove(&told.key);
                false
            }
        };
        if !is_outdated {
            kept.push(told);
        }
    }
    kept.reverse();
    kept
}

/// Lets go of the names that are kept of a file.
pub fn forget_names(draft: &mut Draft<'_>, bucket: u64, inode: u64) -> Result<(), KvError> {
    draft.delete_all(&keys::names(bucket, inode))
}

pub fn forget_all_names(draft: &mut Draft<'_>, bucket: u64) -> Result<(), KvError> {
    draft.delete_all(&keys::all_names(bucket))
}

impl Work<'_, '_> {
    /// The key of an entry, as long as the directories above it stand.
    pub fn key_of(&self, entry: &[u8]) -> Result<Vec<u8>, KvError> {
        let (directory, name) = store_keys::parts_of_entry(entry);
        let mut key = tree::path_of(self.draft, self.bucket.root, directory)?;
        key.extend_from_slice(name);
        Ok(key)
    }

    /// An object came to be at an entry, or has other content.
    pub fn tell_put(&mut self, entry: &[u8]) -> Outcome<()> {
        if !self.is_followed {
            return Ok(());
        }
        let at = self.keys_at(entry)?;
        self.told.extend(at);
        Ok(())
    }

    /// An object goes from an entry: called while it stands there.
    pub fn tell_gone(&mut self, entry: &[u8]) -> Outcome<()> {
        if !self.is_followed {
            return Ok(());
        }
        let at = self.keys_at(entry)?;
        self.told.extend(at.into_iter().map(Told::gone));
        Ok(())
    }

    /// What was at other entries before stands at `entries` now. Who looks at any moment finds it under a name.
    pub fn tell_moved(&mut self, before: Vec<Told>, entries: &[&[u8]]) -> Outcome<()> {
        if !self.is_followed {
            return Ok(());
        }
        let mut came = Vec::new();
        for entry in entries {
            came.extend(self.keys_at(entry)?);
        }
        let now: HashSet<&str> = came.iter().map(|told| told.key.as_str()).collect();
        let gone: Vec<Told> = before.into_iter().filter(|told| !now.contains(told.key.as_str())).collect();
        self.told.extend(came);
        self.told.extend(gone.into_iter().map(Told::gone));
        Ok(())
    }

    /// The object at an entry, or all below the directory that stands there; none where nobody follows.
    ///
    /// # Errors
    /// [`FileRefusal::TooManyKeys`]: more than [`KEYS_TOLD_MAX`].
    pub fn keys_at(&mut self, entry: &[u8]) -> Outcome<Vec<Told>> {
        if !self.is_followed {
            return Ok(Vec::new());
        }
        let path = self.key_of(entry)?;
        if path.ends_with(b"/") && !store_keys::parts_of_entry(entry).1.is_empty() {
            let directory: Directory = expect(self.draft, entry)?;
            let mut below = Below { view: self.draft, path, found: Vec::new() };
            names::walk(self.draft, directory.inode, b"", &mut below)?;
            if below.found.len() > KEYS_TOLD_MAX {
                return Err(FileRefusal::TooManyKeys.into());
            }
            return Ok(below.found);
        }
        let Some(record) = self.draft.get(entry)? else { return Ok(Vec::new()) };
        if let Some(inode) = node::linked(&record) {
            self.keep_name(inode, entry)?;
        }
        if path.len() > KEY_BYTES_MAX {
            return Ok(Vec::new());
        }
        Ok(vec![Told::put(self.draft, &path, &record)?])
    }

    pub fn keep_name(&mut self, inode: u64, entry: &[u8]) -> Result<(), KvError> {
        self.draft.write(keys::name(self.bucket.id, inode, entry), &())
    }

    /// Keeps the name under which a file was last seen, if it is one.
    pub fn keep_place(&mut self, file: &FileRef) -> Outcome<()> {
        if !self.is_followed && !self.keeps() {
            return Ok(());
        }
        if let Some((parent, name)) = &file.place {
            let entry = store_keys::entry(*parent, name.text().as_bytes());
            if self.is_name(file.inode, &entry)? {
                self.keep_name(file.inode, &entry)?;
            }
        }
        Ok(())
    }

    pub fn is_name(&self, inode: u64, entry: &[u8]) -> Result<bool, KvError> {
        Ok(self.draft.get(entry)?.is_some_and(|record| node::linked(&record) == Some(inode)))
    }

    /// A file has other content, under each of its names.
    pub fn tell_edited(&mut self, inode: u64) -> Outcome<()> {
        if !self.is_followed {
            return Ok(());
        }
        for entry in self.names_of(inode)? {
            self.tell_put(&entry)?;
        }
        Ok(())
    }
}

/// Gathers the objects below a directory, and one more than may be.
struct Below<'a> {
    view: &'a dyn View,
    path: Vec<u8>,
    found: Vec<Told>,
}

impl Visit for Below<'_> {
    fn object(&mut self, path: &[u8], record: &[u8]) -> Result<Step, KvError> {
        let key = [&self.path, path].concat();
        if key.len() <= KEY_BYTES_MAX {
            self.found.push(Told::put(self.view, &key, record)?);
        }
        Ok(if self.found.len() > KEYS_TOLD_MAX { Step::Stop } else { Step::Next })
    }

    fn directory(&mut self, _path: &[u8]) -> Option<Step> {
        None
    }
}

/// Whether anyone follows the bucket's keys.
pub fn is_followed(view: &dyn View, bucket: &str) -> Result<bool, KvError> {
    Ok(read::<crate::facts::journal::Followed>(view, &store_keys::followed(bucket))?.is_some())
}
