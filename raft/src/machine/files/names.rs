//! Make, link, unlink, rename.

use super::attributes::checked_time;
use super::keys;
use super::node::{self, File, Found};
use super::sessions;
use super::tree::{self, Child, Dir, check_name, directory_name};
use super::work::Work;
use crate::facts::Timestamp;
use crate::facts::files::{
    DirectoryAttributes, FileAttributes, FileDone, FileEvent, FileKind, FileRef, FileRefusal, LINKS_MAX,
    MODE_BITS, Make, Name, RenameHow,
};
use crate::facts::object::{Content, ObjectHeaders};
use crate::machine::content::{self, Body};
use crate::machine::draft::Outcome;
use crate::machine::keys::{self as store_keys, Counter};
use crate::machine::kv::View;
use crate::machine::names::Directory;
use crate::machine::objects::Meta;

/// A mount tells of what it made within seconds; a clock that is farther off than this is not believed.
const MADE_BEFORE_MS_MAX: u64 = 60_000;

impl Work<'_, '_> {
    pub fn make(&mut self, make: &Make) -> Outcome<FileDone> {
        let mut parent = self.open_directory(make.parent)?;
        check_name(&make.name)?;
        self.check_lease(parent.inode)?;
        if let Some(at) = make.made_at {
            self.now = at.within(self.now, MADE_BEFORE_MS_MAX);
        }
        if let Some(child) = self.child(&parent, &make.name)? {
            return self.made_before(make, child);
        }
        let is_directory = make.kind == FileKind::Directory;
        self.check_new_name(&parent, &make.name, is_directory)?;
        let inode = if make.inode == 0 {
            self.draft.next(Counter::Inode)?
        } else {
            sessions::check_granted(self.draft, self.bucket.root, self.session, make.inode)?;
            make.inode
        };
        if is_directory {
            self.make_directory(make, &parent, inode)?;
        } else {
            self.make_file(make, &parent, inode)?;
        }
        for (name, value) in &make.xattrs {
            self.put_xattr(inode, name, value)?;
        }
        if is_directory && make.is_leased {
            self.lease(inode)?;
        }
        parent.added(self.draft, is_directory)?;
        self.change.objects.added += 1;
        self.note_entry(parent.inode, &make.name)?;
        let made = self.find(&FileRef { inode, place: None })?;
        Ok(FileDone {
            stat: Some(made.stat()),
            directories: vec![parent.stat()],
            is_new: true,
            ..FileDone::default()
        })
    }

    fn made_before(&self, make: &Make, child: Child) -> Outcome<FileDone> {
        // Its own number: the same request came before, and its answer was lost.
        let is_own = match &child {
            Child::Directory(directory) => directory.inode == make.inode,
            Child::File { record, .. } => node::linked(record) == Some(make.inode),
        };
        match child {
            _ if is_own && make.inode != 0 => {
                let made = self.find(&FileRef { inode: make.inode, place: None })?;
                Ok(FileDone { stat: Some(made.stat()), is_new: true, ..FileDone::default() })
            }
            _ if make.is_exclusive || make.kind != FileKind::File => Err(FileRefusal::Exists.into()),
            Child::Directory(_) => Err(FileRefusal::IsDirectory.into()),
            Child::File { entry, record } => {
                let file = node::at_entry(self.draft, entry, &record)?;
                Ok(FileDone { stat: Some(node::stat(&file.meta)), ..FileDone::default() })
            }
        }
    }

    /// Names that a mount may give: a file beside a directory of its name only where there is one.
    fn check_new_name(&self, parent: &Dir, name: &Name, is_directory: bool) -> Outcome<()> {
        let is_fine = match name {
            Name::Any(text) => is_directory || !text.is_empty(),
            Name::Object(text) => {
                !is_directory && !text.is_empty() && parent.has_directory(self.draft, text)?
            }
        };
        if is_fine {
            return Ok(());
        }
        Err(FileRefusal::NotPermitted("the name means a key that cannot be made so".to_owned()).into())
    }

    fn make_directory(&mut self, make: &Make, parent: &Dir, inode: u64) -> Outcome<()> {
        let attributes = DirectoryAttributes {
            mode: make.mode & MODE_BITS,
            uid: make.uid,
            gid: make.gid,
            ..DirectoryAttributes::implied(self.now)
        };
        let record = Directory { inode, entries: 1, directories: 0, attributes: Some(attributes) };
        let name = directory_name(&make.name);
        self.draft.write(store_keys::entry(parent.inode, &name), &record)?;
        tree::place_directory(self.draft, self.bucket.root, inode, parent.inode, &name)?;
        let marker = node::marker(self.draft)?;
        let entry = store_keys::entry(inode, b"");
        self.draft.put(entry.clone(), marker);
        self.enter_entry(&entry)?;
        self.tell_put(&entry)
    }

    fn make_file(&mut self, make: &Make, parent: &Dir, inode: u64) -> Outcome<()> {
        let whole = &make.content;
        let is_fit = match make.kind {
            FileKind::File => true,
            FileKind::Symlink => whole.size > 0,
            _ => whole.size == 0,
        };
        if !is_fit {
            let why = "a symlink has its target as content; a device or pipe has none";
            return Err(FileRefusal::Invalid(why.to_owned()).into());
        }
        let attributes = FileAttributes {
            root: self.bucket.root,
            kind: make.kind,
            mode: make.mode & MODE_BITS,
            uid: make.uid,
            gid: make.gid,
            rdev: make.rdev,
            links: 1,
            accessed_at: checked_time(make.accessed_at)?.unwrap_or(self.now),
            modified_at: checked_time(make.modified_at)?.unwrap_or(self.now),
            changed_at: self.now,
            created_at: self.now,
            hole_bytes: 0,
            extents: 0,
        };
        let meta = Meta {
            version: 0,
            inode,
            modified_at: Timestamp(attributes.modified_at.to_millis()),
            size: 0,
            etag: node::EMPTY_MD5.to_owned(),
            headers: ObjectHeaders::default(),
            checksum: None,
            part_count: 0,
            has_id: false,
            is_marker: false,
            file: Some(Box::new(attributes)),
        };
        let mut file = File { meta, body: Body::Empty, embedded_at: None };
        file.meta.version = self.draft.next(Counter::Version)?;
        if whole.size > 0 {
            self.replace_content(&mut file, whole)?;
        } else {
            content::check_content(0, &Content::Empty)?;
        }
        self.begin_first_version(&mut file, make.kind == FileKind::File && whole.size == 0)?;
        file.store(self.draft)?;
        let entry = parent.entry_key(&make.name, false);
        self.draft.put(entry.clone(), node::link_record(inode));
        self.enter_entry(&entry)?;
        self.tell_put(&entry)
    }

    pub fn link(&mut self, file: &FileRef, parent: u64, name: &Name) -> Outcome<FileDone> {
        let mut parent = self.open_directory(parent)?;
        check_name(name)?;
        self.check_lease(parent.inode)?;
        if self.child(&parent, name)?.is_some() {
            return Err(FileRefusal::Exists.into());
        }
        self.check_new_name(&parent, name, false)?;
        let place = file;
        let mut file = match self.find(file)? {
            Found::File(file) => file,
            Found::Directory(_) => {
                return Err(FileRefusal::NotPermitted("a directory has one name".to_owned()).into());
            }
        };
        let now = self.now;
        file.adopt(self.draft, self.bucket.root)?;
        self.keep_place(place)?;
        let attributes = file.attributes()?;
        match attributes.links {
            0 => return Err(FileRefusal::NotFound.into()),
            LINKS_MAX.. => return Err(FileRefusal::TooManyLinks.into()),
            _ => attributes.links += 1,
        }
        attributes.changed_at = now;
        file.store(self.draft)?;
        let entry = parent.entry_key(name, false);
        self.draft.put(entry.clone(), node::link_record(file.meta.inode));
        self.enter_entry(&entry)?;
        self.tell_put(&entry)?;
        parent.added(self.draft, false)?;
        self.change.objects.added += 1;
        self.note_entry(parent.inode, name)?;
        self.note(FileEvent::Inode(file.meta.inode))?;
        let stat = self.stat_of(file.meta.inode)?;
        Ok(FileDone { stat, directories: vec![parent.stat()], ..FileDone::default() })
    }

    pub fn unlink(&mut self, parent: u64, name: &Name, is_held: bool) -> Outcome<FileDone> {
        let mut parent = self.open_directory(parent)?;
        self.check_lease(parent.inode)?;
        let (entry, record) = match self.child(&parent, name)? {
            Some(Child::File { entry, record }) => (entry, record),
            Some(Child::Directory(_)) => return Err(FileRefusal::IsDirectory.into()),
            None => return Err(FileRefusal::NotFound.into()),
        };
        self.tell_gone(&entry)?;
        self.leave_entry(&entry)?;
        let inode = self.drop_entry(entry, &record, is_held)?;
        self.removed_from(&mut parent, false)?;
        self.note_entry(parent.inode, name)?;
        let stat = self.stat_of(inode)?;
        Ok(FileDone { stat, directories: vec![parent.stat()], ..FileDone::default() })
    }

    pub fn remove_directory(&mut self, parent: u64, name: &Name) -> Outcome<FileDone> {
        let mut parent = self.open_directory(parent)?;
        self.check_lease(parent.inode)?;
        let directory = match self.child(&parent, name)? {
            Some(Child::Directory(directory)) => directory,
            Some(Child::File { .. }) => return Err(FileRefusal::NotDirectory.into()),
            None => return Err(FileRefusal::NotFound.into()),
        };
        self.tell_gone(&store_keys::entry(directory.inode, b""))?;
        self.drop_directory(&directory)?;
        self.draft.delete(parent.entry_key(name, true));
        self.removed_from(&mut parent, true)?;
        self.note_entry(parent.inode, name)?;
        Ok(FileDone { directories: vec![parent.stat()], ..FileDone::default() })
    }

    /// Lets go of an empty directory; its entry is the caller's to remove.
    fn drop_directory(&mut self, directory: &Dir) -> Outcome<()> {
        self.check_lease(directory.inode)?;
        self.draft.delete(keys::lease(self.bucket.root, directory.inode));
        if directory.check_empty(self.draft)? {
            let own = store_keys::entry(directory.inode, b"");
            self.leave_entry(&own)?;
            self.draft.delete(own);
            self.change.objects.removed += 1;
        }
        tree::forget_directory(self.draft, directory.inode)?;
        Ok(())
    }

    pub fn rename(
        &mut self,
        (from_parent, from_name): (u64, &Name),
        (to_parent, to_name): (u64, &Name),
        how: RenameHow,
        is_replaced_held: bool,
    ) -> Outcome<FileDone> {
        let from_dir = self.open_directory(from_parent)?;
        let to_dir = self.open_directory(to_parent)?;
        check_name(to_name)?;
        self.check_lease(from_parent)?;
        self.check_lease(to_parent)?;
        let Some(from) = self.child(&from_dir, from_name)? else { return Err(FileRefusal::NotFound.into()) };
        let to = self.child(&to_dir, to_name)?;
        let is_same = (from_parent, entry_of(&from)) == (to_parent, to.as_ref().map_or(&[][..], entry_of));
        match (how, &to) {
            (RenameHow::NoReplace, Some(_)) => return Err(FileRefusal::Exists.into()),
            (RenameHow::Exchange, None) => return Err(FileRefusal::NotFound.into()),
            (RenameHow::Exchange, Some(_)) if !is_same => {
                return self.exchange((from_dir, from_name, from), (to_dir, to_name, to));
            }
            _ if is_same => return self.renamed(&from, from_parent, to_parent),
            _ => {}
        }
        if let Child::Directory(moved) = &from
            && to_dir.is_below(self.draft, &self.bucket, moved.inode)?
        {
            return Err(FileRefusal::Invalid("a directory cannot be moved below itself".to_owned()).into());
        }
        let from_key = entry_of(&from).to_vec();
        let mut before = self.keys_at(&from_key)?;
        if let Some(Child::Directory(replaced)) = &to {
            before.extend(self.keys_at(&store_keys::entry(replaced.inode, b""))?);
        }
        let moved = self.objects_of(&from)?;
        match (&from, &to) {
            (Child::Directory(_), Some(Child::File { .. })) => return Err(FileRefusal::NotDirectory.into()),
            (Child::File { .. }, Some(Child::Directory(_))) => return Err(FileRefusal::IsDirectory.into()),
            (Child::Directory(_), Some(Child::Directory(replaced))) => self.drop_directory(replaced)?,
            (Child::File { record, .. }, Some(Child::File { entry: other, record: others })) => {
                let is_one = node::linked(record).is_some_and(|inode| node::linked(others) == Some(inode));
                if is_one {
                    return self.renamed(&from, from_parent, to_parent);
                }
                self.yield_entry(other)?;
                self.drop_entry(other.clone(), others, is_replaced_held)?;
            }
            (_, None) => self.check_new_name(&to_dir, to_name, matches!(from, Child::Directory(_)))?,
        }
        let is_directory = matches!(from, Child::Directory(_));
        for entry in &moved {
            self.leave_entry(entry)?;
        }
        self.put_at(&from, &to_dir, to_name)?;
        self.draft.delete(from_key);
        let to_key = to_dir.entry_key(to_name, is_directory);
        for entry in came(moved, &to_key) {
            self.enter_entry(&entry)?;
        }
        self.tell_moved(before, &[&to_key])?;
        if to.is_none() {
            // Read anew: the record of a directory changes with its entries.
            self.open_directory(to_parent)?.added(self.draft, is_directory)?;
        } else {
            self.open_directory(to_parent)?.touched(self.draft)?;
        }
        let mut from_dir = self.open_directory(from_parent)?;
        self.removed_from(&mut from_dir, is_directory)?;
        self.note_entry(from_parent, from_name)?;
        self.note_entry(to_parent, to_name)?;
        self.renamed(&from, from_parent, to_parent)
    }

    fn exchange(
        &mut self,
        (from_dir, from_name, from): (Dir, &Name, Child),
        (to_dir, to_name, to): (Dir, &Name, Option<Child>),
    ) -> Outcome<FileDone> {
        let Some(to) = to else { return Err(FileRefusal::NotFound.into()) };
        for (moved, target) in [(&from, &to_dir), (&to, &from_dir)] {
            if let Child::Directory(moved) = moved
                && target.is_below(self.draft, &self.bucket, moved.inode)?
            {
                let why = "a directory cannot be moved below itself";
                return Err(FileRefusal::Invalid(why.to_owned()).into());
            }
        }
        let is_directory = |child: &Child| matches!(child, Child::Directory(_));
        if is_directory(&from) != is_directory(&to) {
            // An object may stand beside a directory of its name: it is not in the exchange.
            for (directory, name, is_coming) in
                [(&to_dir, to_name, is_directory(&from)), (&from_dir, from_name, is_directory(&to))]
            {
                if self.draft.get(&directory.entry_key(name, is_coming))?.is_some() {
                    let why = "an object and a directory of one name stand there";
                    return Err(FileRefusal::NotPermitted(why.to_owned()).into());
                }
            }
        }
        let mut before = self.keys_at(entry_of(&from))?;
        before.extend(self.keys_at(entry_of(&to))?);
        let (moved, other) = (self.objects_of(&from)?, self.objects_of(&to)?);
        let are_files = !is_directory(&from) && !is_directory(&to);
        for entry in moved.iter().chain(&other) {
            if are_files { self.yield_entry(entry)? } else { self.leave_entry(entry)? }
        }
        self.draft.delete(entry_of(&from).to_vec());
        self.draft.delete(entry_of(&to).to_vec());
        self.put_at(&from, &to_dir, to_name)?;
        self.put_at(&to, &from_dir, from_name)?;
        let there = to_dir.entry_key(to_name, is_directory(&from));
        let here = from_dir.entry_key(from_name, is_directory(&to));
        for entry in came(moved, &there).into_iter().chain(came(other, &here)) {
            self.enter_entry(&entry)?;
        }
        self.tell_moved(before, &[&there, &here])?;
        for (parent, came, went) in [(to_dir.inode, &from, &to), (from_dir.inode, &to, &from)] {
            let mut parent = self.open_directory(parent)?;
            parent.added(self.draft, is_directory(came))?;
            self.removed_from(&mut parent, is_directory(went))?;
        }
        self.note_entry(from_dir.inode, from_name)?;
        self.note_entry(to_dir.inode, to_name)?;
        self.renamed(&from, from_dir.inode, to_dir.inode)
    }

    /// Puts what had another name under `name`; the old entry is the caller's to remove.
    fn put_at(&mut self, child: &Child, directory: &Dir, name: &Name) -> Outcome<()> {
        match child {
            Child::Directory(moved) => {
                let entry = directory_name(name);
                let record = moved.seat.as_ref().map(|seat| seat.record.clone()).unwrap_or(Directory {
                    inode: moved.inode,
                    entries: 0,
                    directories: 0,
                    attributes: None,
                });
                let attributes = DirectoryAttributes { changed_at: self.now, ..moved.attributes };
                let record = Directory { attributes: Some(attributes), ..record };
                self.draft.write(store_keys::entry(directory.inode, &entry), &record)?;
                tree::place_directory(self.draft, self.bucket.root, moved.inode, directory.inode, &entry)?;
            }
            Child::File { entry, record } => {
                let mut file = node::at_entry(self.draft, entry.clone(), record)?;
                // The old entry gets no link: in an exchange it holds the other file by now.
                file.embedded_at = None;
                let now = self.now;
                file.adopt(self.draft, self.bucket.root)?.changed_at = now;
                file.store(self.draft)?;
                self.draft.put(directory.entry_key(name, false), node::link_record(file.meta.inode));
                self.note(FileEvent::Inode(file.meta.inode))?;
            }
        }
        Ok(())
    }

    /// Entries whose keys become others when something moves, where each leaves a version.
    fn objects_of(&self, child: &Child) -> Outcome<Vec<Vec<u8>>> {
        match child {
            Child::Directory(directory) => self.objects_below(directory.inode),
            Child::File { entry, .. } if self.keeps() => Ok(vec![entry.clone()]),
            Child::File { .. } => Ok(Vec::new()),
        }
    }

    /// What a rename answers.
    fn renamed(&self, moved: &Child, from_parent: u64, to_parent: u64) -> Outcome<FileDone> {
        let stat = match moved {
            Child::Directory(directory) => self.open_directory(directory.inode)?.stat(),
            Child::File { entry, record } => match self.draft_file(entry, record)? {
                Some(file) => node::stat(&file.meta),
                None => return Err(FileRefusal::Stale.into()),
            },
        };
        let mut directories = vec![self.open_directory(from_parent)?.stat()];
        if to_parent != from_parent {
            directories.push(self.open_directory(to_parent)?.stat());
        }
        Ok(FileDone { stat: Some(stat), directories, ..FileDone::default() })
    }

    /// A file as it is now: its node, if it has become one since its entry was read.
    fn draft_file(&self, entry: &[u8], record: &[u8]) -> Outcome<Option<File>> {
        let before = node::at_entry(self.draft, entry.to_vec(), record)?;
        match node::read_node(self.draft, before.meta.inode)? {
            Some(file) => Ok(Some(file)),
            None => Ok(Some(before)),
        }
    }

    fn put_xattr(&mut self, inode: u64, name: &[u8], value: &bytes::Bytes) -> Outcome<()> {
        self.check_xattr(inode, name, Some(value))?;
        self.draft.write(keys::xattr(inode, name), value)?;
        Ok(())
    }
}

/// Where the objects stand that moved: a file at its new entry, those below a directory where they stood.
fn came(moved: Vec<Vec<u8>>, to: &[u8]) -> Vec<Vec<u8>> {
    let is_directory = store_keys::parts_of_entry(to).1.ends_with(b"/");
    if is_directory || moved.is_empty() { moved } else { vec![to.to_vec()] }
}

fn entry_of(child: &Child) -> &[u8] {
    match child {
        Child::Directory(directory) => directory.seat.as_ref().map_or(&[], |seat| &seat.entry),
        Child::File { entry, .. } => entry,
    }
}
