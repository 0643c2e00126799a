//! One operation under way: what it refers to and how use changes, settled together when it ends.

use std::collections::BTreeMap;

use super::node::{self, File};
use super::sessions;
use super::told::Told;
use super::tree::{Child, Dir};
use crate::facts::bucket::Bucket;
use crate::facts::command::NewBlob;
use crate::facts::files::{
    FileDone, FileEvent, FileKind, FileOp, FileRef, FileRefusal, FileTime, Name, Stat,
};
use crate::facts::object::Extent;
use crate::facts::version::VersionId;
use crate::machine::blobs::Ledger;
use crate::machine::buckets::{self, Change};
use crate::machine::draft::{Draft, Outcome};
use crate::machine::keys as store_keys;
use crate::machine::kv::KvError;

pub struct Work<'a, 'd> {
    pub draft: &'a mut Draft<'d>,
    pub bucket: Bucket,
    pub session: u64,
    pub now: FileTime,
    pub ledger: Ledger,
    pub change: Change,
    /// Whether anyone follows the bucket's keys, and what is to be told of them.
    pub is_followed: bool,
    pub told: Vec<Told>,
    /// Markers that took the place of keys.
    pub markers: BTreeMap<String, VersionId>,
    /// Blobs that may be unknown yet.
    blobs: &'a [NewBlob],
}

impl<'a, 'd> Work<'a, 'd> {
    pub fn new(
        draft: &'a mut Draft<'d>,
        bucket: Bucket,
        session: u64,
        blobs: &'a [NewBlob],
        is_followed: bool,
    ) -> Self {
        let now = FileTime::from_millis(draft.now.0);
        let ledger = Ledger::new(bucket.tenant);
        let (change, told, markers) = (Change::default(), Vec::new(), BTreeMap::new());
        Self { draft, bucket, session, now, ledger, change, is_followed, told, markers, blobs }
    }

    pub fn run(&mut self, op: &FileOp) -> Outcome<FileDone> {
        match op {
            FileOp::Make(make) => self.make(make),
            FileOp::SetAttributes { file, set } => self.set_attributes(file, set),
            FileOp::Link { file, parent, name } => self.link(file, *parent, name),
            FileOp::Unlink { parent, name, is_held } => self.unlink(*parent, name, *is_held),
            FileOp::RemoveDirectory { parent, name } => self.remove_directory(*parent, name),
            FileOp::Rename { from_parent, from_name, to_parent, to_name, how, is_replaced_held } => {
                let (from, to) = ((*from_parent, from_name), (*to_parent, to_name));
                self.rename(from, to, *how, *is_replaced_held)
            }
            FileOp::Edit { file, if_data_version, edits, modified_at } => {
                self.edit(file, *if_data_version, edits, *modified_at)
            }
            FileOp::SetXattr { file, name, value, how } => self.set_xattr(file, name, value.as_ref(), *how),
            FileOp::SetLock { file, lock } => self.set_lock(file, lock),
            FileOp::SetLease { directory, is_wanted } => self.set_lease(*directory, *is_wanted),
        }
    }

    /// Settles what it refers to; how use changes is the caller's to count.
    pub fn settle(self) -> Outcome<Change> {
        self.ledger.settle(self.draft)?;
        Ok(self.change)
    }

    /// Counts what has changed. Refused where the tenant's use would grow beyond its quota.
    pub fn finish(self) -> Outcome<()> {
        self.ledger.settle(self.draft)?;
        if self.change == Change::default() {
            Ok(())
        } else {
            buckets::account(self.draft, self.bucket, self.change)
        }
    }

    pub fn note(&mut self, event: FileEvent) -> Result<(), KvError> {
        sessions::note(self.draft, &self.bucket, self.session, event)
    }

    pub fn note_entry(&mut self, parent: u64, name: &Name) -> Result<(), KvError> {
        self.note(FileEvent::Entry { parent, name: name.clone() })
    }

    pub fn open_directory(&self, inode: u64) -> Outcome<Dir> {
        Dir::open(self.draft, &self.bucket, inode)
    }

    pub fn child(&self, directory: &Dir, name: &Name) -> Outcome<Option<Child>> {
        directory.child(self.draft, &self.bucket, name)
    }

    pub fn find(&self, file: &FileRef) -> Outcome<node::Found> {
        node::find(self.draft, &self.bucket, file)
    }

    /// A file that is no directory, as a node.
    pub fn open_file(&mut self, file: &FileRef) -> Outcome<File> {
        let mut found = self.find(file)?.file()?;
        found.adopt(self.draft, self.bucket.root)?;
        self.keep_place(file)?;
        Ok(found)
    }

    /// As [`Self::open_file`], of one that has content to change.
    pub fn open_content(&mut self, file: &FileRef) -> Outcome<File> {
        let mut file = self.open_file(file)?;
        match file.attributes()?.kind {
            FileKind::File => Ok(file),
            _ => Err(FileRefusal::Invalid("it is not a regular file".to_owned()).into()),
        }
    }

    /// Refers to what new content names; blobs among it that are not known yet are taken in.
    pub fn refer(&mut self, extents: &[Extent]) -> Outcome<()> {
        let blobs = self.blobs;
        for new in blobs {
            let is_named = extents.iter().any(|extent| extent.blob == new.id);
            if is_named && !self.ledger.knows(&new.id) {
                self.ledger.admit(self.draft, std::slice::from_ref(new))?;
            }
        }
        self.ledger.add(self.draft, extents)
    }

    /// Takes an entry's file away from it; the entry is removed.
    pub fn drop_entry(&mut self, entry: Vec<u8>, record: &[u8], is_held: bool) -> Outcome<u64> {
        let file = node::at_entry(self.draft, entry.clone(), record)?;
        let inode = file.meta.inode;
        let freed = node::drop_name(self.draft, &self.bucket, self.session, is_held, file, &mut self.ledger)?;
        self.draft.delete(entry);
        self.change.object_bytes.removed = self.change.object_bytes.removed.saturating_add(freed);
        self.change.objects.removed += 1;
        Ok(inode)
    }

    /// An entry was taken out of the directory.
    pub fn removed_from(&mut self, directory: &mut Dir, is_directory: bool) -> Outcome<()> {
        if directory.removed(self.draft, is_directory)? {
            self.change.objects.added += 1;
            let own = store_keys::entry(directory.inode, b"");
            self.enter_entry(&own)?;
            self.tell_put(&own)?;
        }
        Ok(())
    }

    /// A file as it is now; `None`: it has no name any more.
    pub fn stat_of(&self, inode: u64) -> Result<Option<Stat>, KvError> {
        let file = node::read_node(self.draft, inode)?;
        Ok(file.map(|file| node::stat(&file.meta)).filter(|stat| stat.links > 0))
    }
}
