//! What a bucket with versions keeps of files that mounts change.
//!
//! ```text
//! content  first edit of a session since it finished ─> what is there is kept under each name ─> a new version, which the
//!          session's later edits change in place ─ finished, or the session ends ─> a version as any other
//! name     comes ─> newer than all that its key has ─ goes, or is given to another file ─> what stands there is kept
//! ```
//!
//! What is kept shares its bytes with what goes on. An edit knows its file by inode: while a bucket has versions, the names of
//! its files are kept ([`told`](super::told) has the same need).
//!
//! Always: a version that a session has finished, or that S3 made, is changed by no mount; a key's current version is newer
//! than all beside it; a key that goes leaves a marker, unless nothing but an unfinished file without bytes ever stood there.

use std::ops::ControlFlow;

use super::node::{self, File};
use super::work::Work;
use super::{keys, tree};
use crate::facts::bucket::Bucket;
use crate::facts::files::FileRefusal;
use crate::facts::object::KEY_BYTES_MAX;
use crate::facts::version::{ObjectLock, VersionId, Versioning};
use crate::machine::draft::{Draft, Outcome, decode, keys_in, read, scan_records};
use crate::machine::keys::{self as store_keys, Counter};
use crate::machine::kv::{KvError, View};
use crate::machine::names::Directory;
use crate::machine::objects::Meta;
use crate::machine::versions;

/// Sessions that write one version at once; of more, the first have finished theirs.
const WRITERS_MAX: usize = 16;
/// Keys that one operation moves in a bucket with versions, each of which leaves one.
pub const KEYS_MOVED_MAX: usize = 1000;

/// A session has ended: what it left is finished as it stands, and no later writer waits for it.
pub fn release_session(draft: &mut Draft<'_>, bucket: &Bucket, session: u64) -> Result<(), KvError> {
    let from = keys::all_writers(bucket.root);
    let mut found = Vec::new();
    scan_records(draft, &from, &store_keys::end_of(&from), &mut |key, writers: Vec<u64>| {
        if writers.contains(&session) {
            found.push((key.to_vec(), writers));
        }
        ControlFlow::Continue(())
    })?;
    for (key, mut writers) in found {
        writers.retain(|writer| *writer != session);
        if !writers.is_empty() {
            draft.write(key, &writers)?;
            continue;
        }
        let inode = keys::last_number(&key);
        draft.delete(key);
        if let Some(mut file) = node::read_node(draft, inode)? {
            let lock = file.meta.headers.lock;
            file.meta.headers.lock = versions::complete_lock(bucket, lock, draft.now);
            file.store(draft)?;
        }
    }
    Ok(())
}

/// A current version as it is kept once something takes its place: finished, whoever still wrote it.
pub fn as_finished(draft: &Draft<'_>, bucket: &Bucket, meta: &Meta) -> Result<Meta, KvError> {
    let mut meta = meta.clone();
    if meta.file.is_some() && draft.get(&keys::writers(bucket.root, meta.inode))?.is_some() {
        meta.headers.lock = versions::complete_lock(bucket, meta.headers.lock, draft.now);
    }
    Ok(meta)
}

impl Work<'_, '_> {
    /// Whether the bucket keeps or kept versions.
    pub fn keeps(&self) -> bool {
        self.bucket.versioning != Versioning::Unversioned
    }

    fn gives_ids(&self) -> bool {
        self.bucket.versioning == Versioning::Enabled
    }

    fn writers(&self, inode: u64) -> Result<Vec<u64>, KvError> {
        Ok(read(self.draft, &keys::writers(self.bucket.root, inode))?.unwrap_or_default())
    }

    fn set_writers(&mut self, inode: u64, writers: &[u64]) -> Result<(), KvError> {
        let key = keys::writers(self.bucket.root, inode);
        if writers.is_empty() {
            self.draft.delete(key);
            return Ok(());
        }
        self.draft.write(key, writers)
    }

    /// A file is made here. One without bytes is being written, as it seems.
    pub fn begin_first_version(&mut self, file: &mut File, is_unfinished: bool) -> Result<(), KvError> {
        if !self.keeps() {
            return Ok(());
        }
        file.meta.has_id = self.gives_ids();
        if is_unfinished {
            let session = self.session;
            self.set_writers(file.meta.inode, &[session])
        } else {
            file.meta.headers.lock =
                versions::complete_lock(&self.bucket, ObjectLock::default(), self.draft.now);
            Ok(())
        }
    }

    /// Called before a session changes a file's content: what others may rely on is kept, and the session has a version to
    /// change.
    ///
    /// # Errors
    /// [`FileRefusal::Stale`]: no name of the file is known.
    pub fn begin_version(&mut self, file: &mut File) -> Outcome<()> {
        if !self.keeps() || file.attributes()?.links == 0 {
            return Ok(());
        }
        let inode = file.meta.inode;
        let mut writers = self.writers(inode)?;
        if writers.contains(&self.session) && file.meta.headers.lock.is_empty() {
            return Ok(());
        }
        let entries = self.names_of(inode)?;
        if entries.is_empty() {
            return Err(FileRefusal::Stale.into());
        }
        for entry in &entries {
            self.keep(file, entry)?;
        }
        file.meta.has_id = self.gives_ids();
        file.meta.headers.lock = ObjectLock::default();
        file.meta.headers.is_replica = false;
        writers.retain(|writer| *writer != self.session);
        writers.push(self.session);
        let older = writers.len().saturating_sub(WRITERS_MAX);
        self.set_writers(inode, &writers[older..])?;
        Ok(())
    }

    /// The session changes what it wrote no more. Returns whether that was not known.
    pub fn finish_version(&mut self, file: &mut File) -> Outcome<bool> {
        let inode = file.meta.inode;
        let mut writers = self.writers(inode)?;
        if !writers.contains(&self.session) {
            return Ok(false);
        }
        writers.retain(|writer| *writer != self.session);
        self.set_writers(inode, &writers)?;
        if writers.is_empty() {
            let lock = file.meta.headers.lock;
            file.meta.headers.lock = versions::complete_lock(&self.bucket, lock, self.draft.now);
        }
        Ok(true)
    }

    /// Names under which a file is known to stand.
    pub fn names_of(&mut self, inode: u64) -> Result<Vec<Vec<u8>>, KvError> {
        let kept = keys::names(self.bucket.id, inode);
        let kept = keys_in(self.draft, &kept, &store_keys::end_of(&kept), usize::MAX)?;
        let mut entries = Vec::with_capacity(kept.len());
        for kept in kept {
            let entry = keys::named_entry(&kept);
            let (directory, _) = store_keys::parts_of_entry(&entry);
            if self.is_name(inode, &entry)? && tree::is_placed(self.draft, self.bucket.root, directory)? {
                entries.push(entry);
            } else {
                self.draft.delete(kept);
            }
        }
        Ok(entries)
    }

    /// The key that S3 has for an entry; `None`: it is too long for one.
    fn s3_key(&self, entry: &[u8]) -> Result<Option<String>, KvError> {
        let key = self.key_of(entry)?;
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Ok(None);
        }
        Ok(String::from_utf8(key).ok())
    }

    /// Keeps what stands at an entry as a version of its key, as the bucket says.
    fn keep(&mut self, file: &File, entry: &[u8]) -> Outcome<()> {
        let Some(key) = self.s3_key(entry)? else { return Ok(()) };
        self.keep_under(file, &key)
    }

    fn keep_under(&mut self, file: &File, key: &str) -> Outcome<()> {
        if self.gives_ids() || file.meta.has_id {
            let meta = as_finished(self.draft, &self.bucket, &file.meta)?;
            let (ledger, change) = (&mut self.ledger, &mut self.change);
            versions::keep_copy(self.draft, &self.bucket, key, &meta, &file.body, ledger, change)?;
        }
        self.drop_null(key)
    }

    /// Of versions without an id a key has one at most, and it is to be the newest.
    fn drop_null(&mut self, key: &str) -> Outcome<()> {
        if self.bucket.versioning == Versioning::Suspended {
            let (ledger, change) = (&mut self.ledger, &mut self.change);
            versions::drop_null(self.draft, &self.bucket, key, ledger, change)?;
        }
        Ok(())
    }

    /// What stands at an entry goes from it, and nothing takes its place. Called while it stands there.
    pub fn leave_entry(&mut self, entry: &[u8]) -> Outcome<()> {
        if !self.keeps() {
            return Ok(());
        }
        let Some(key) = self.s3_key(entry)? else { return Ok(()) };
        let Some(record) = self.draft.get(entry)? else { return Ok(()) };
        let file = node::at_entry(self.draft, entry.to_vec(), &record)?;
        let is_nothing = file.meta.size == 0 && !self.writers(file.meta.inode)?.is_empty();
        if is_nothing {
            self.drop_null(&key)?;
        } else {
            self.keep_under(&file, &key)?;
        }
        self.draft.delete(keys::name(self.bucket.id, file.meta.inode, entry));
        if !is_nothing || versions::has_any(self.draft, &self.bucket, &key)? {
            let marker = versions::push_marker(self.draft, &self.bucket, &key)?;
            self.markers.insert(key, marker);
        }
        Ok(())
    }

    /// Something else takes the place of what stands at an entry. Called while it stands there.
    pub fn yield_entry(&mut self, entry: &[u8]) -> Outcome<()> {
        if !self.keeps() {
            return Ok(());
        }
        let Some(record) = self.draft.get(entry)? else { return Ok(()) };
        let file = node::at_entry(self.draft, entry.to_vec(), &record)?;
        if file.meta.size > 0 || self.writers(file.meta.inode)?.is_empty() {
            self.keep(&file, entry)?;
        }
        self.draft.delete(keys::name(self.bucket.id, file.meta.inode, entry));
        Ok(())
    }

    /// What stands at an entry now stood elsewhere before, or nowhere: it becomes its key's newest version.
    pub fn enter_entry(&mut self, entry: &[u8]) -> Outcome<()> {
        if !self.keeps() {
            return Ok(());
        }
        let Some(record) = self.draft.get(entry)? else { return Ok(()) };
        let mut file = node::at_entry(self.draft, entry.to_vec(), &record)?;
        let inode = file.meta.inode;
        if node::linked(&record).is_some() {
            self.keep_name(inode, entry)?;
        }
        let Some(key) = self.s3_key(entry)? else { return Ok(()) };
        self.drop_null(&key)?;
        let has_its_id = file.meta.has_id || !self.gives_ids();
        if has_its_id && versions::may_be_current(self.draft, &self.bucket, &key, &file.meta)? {
            return Ok(());
        }
        // Its other names' keys keep the version that they had.
        for other in self.names_of(inode)? {
            if other != entry {
                self.keep(&file, &other)?;
            }
        }
        file.meta.version = self.draft.next(Counter::Version)?;
        file.meta.has_id = self.gives_ids();
        file.rewrite(self.draft)?;
        Ok(())
    }

    /// Entries of the objects in a directory and in those below it.
    ///
    /// # Errors
    /// [`FileRefusal::TooManyKeys`]: more than [`KEYS_MOVED_MAX`].
    pub fn objects_below(&self, directory: u64) -> Outcome<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        if !self.keeps() {
            return Ok(found);
        }
        let (mut open, mut directories) = (vec![directory], 0);
        while let Some(at) = open.pop() {
            let from = store_keys::entries(at);
            let mut failure = None;
            self.draft.scan(&from, &store_keys::end_of(&from), &mut |key, record| {
                if !store_keys::parts_of_entry(key).1.ends_with(b"/") {
                    found.push(key.to_vec());
                } else {
                    match decode::<Directory>(key, record) {
                        Ok(below) => open.push(below.inode),
                        Err(error) => failure = Some(error),
                    }
                    directories += 1;
                }
                let is_over = failure.is_some() || found.len() + directories > KEYS_MOVED_MAX;
                if is_over { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
            })?;
            if let Some(failure) = failure {
                return Err(failure.into());
            }
            if found.len() + directories > KEYS_MOVED_MAX {
                return Err(FileRefusal::TooManyKeys.into());
            }
        }
        Ok(found)
    }

    /// The id of the marker that took a key's place in this operation.
    pub fn marker_of(&self, key: &str) -> Option<VersionId> {
        self.markers.get(key).copied()
    }
}

impl File {
    /// Writes it where it stands.
    fn rewrite(&self, draft: &mut Draft<'_>) -> Result<(), KvError> {
        match &self.embedded_at {
            Some(entry) => {
                draft.put(entry.clone(), crate::machine::objects::encode(&self.meta, &self.body)?);
                Ok(())
            }
            None => self.store(draft),
        }
    }
}
