//! Directories: what is in them, and where they stand.

use serde::{Deserialize, Serialize};

use super::{keys, node};
use crate::facts::bucket::Bucket;
use crate::facts::files::{DirectoryAttributes, FileKind, FileRefusal, FileTime, NAME_BYTES_MAX, Name, Stat};
use crate::machine::draft::{Draft, Outcome, corrupt, expect, read, shift};
use crate::machine::keys as store_keys;
use crate::machine::kv::{KvError, View};
use crate::machine::names::Directory;

/// Where a directory stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Above {
    root: u64,
    parent: u64,
    /// Ends in `/`.
    #[serde(with = "serde_bytes")]
    name: Vec<u8>,
}

/// Says where a directory stands, from now on. `name` ends in `/`.
pub fn place_directory(
    draft: &mut Draft<'_>,
    root: u64,
    inode: u64,
    parent: u64,
    name: &[u8],
) -> Result<(), KvError> {
    draft.write(keys::directory(inode), &Above { root, parent, name: name.to_vec() })
}

/// The keys' common beginning below a directory: the names above it and its own, each with its `/`.
pub fn path_of(view: &dyn View, root: u64, directory: u64) -> Result<Vec<u8>, KvError> {
    let mut names = Vec::new();
    let mut at = directory;
    while at != root {
        let above: Above = expect(view, &keys::directory(at))?;
        names.push(above.name);
        at = above.parent;
        if names.len() > DEPTH_MAX {
            return Err(corrupt("a directory below itself", &keys::directory(directory)));
        }
    }
    names.reverse();
    Ok(names.concat())
}

/// Whether a directory stands in the bucket.
pub fn is_placed(view: &dyn View, root: u64, directory: u64) -> Result<bool, KvError> {
    Ok(directory == root || view.get(&keys::directory(directory))?.is_some())
}

pub fn forget_directory(draft: &mut Draft<'_>, inode: u64) -> Result<(), KvError> {
    draft.delete(keys::directory(inode));
    draft.delete_all(&keys::xattrs(inode))
}

/// Entries of a bucket's root have changed.
pub fn touch_root(draft: &mut Draft<'_>, root: u64) -> Result<(), KvError> {
    if let Some(mut attributes) = read::<DirectoryAttributes>(draft, &keys::directory(root))? {
        let now = FileTime::from_millis(draft.now.0);
        (attributes.modified_at, attributes.changed_at) = (now, now);
        draft.write(keys::directory(root), &attributes)?;
    }
    Ok(())
}

/// A directory, as it was read.
#[derive(Debug, Clone)]
pub struct Dir {
    pub inode: u64,
    pub attributes: DirectoryAttributes,
    /// `None`: the bucket's root.
    pub seat: Option<Seat>,
}

#[derive(Debug, Clone)]
pub struct Seat {
    pub parent: u64,
    pub entry: Vec<u8>,
    pub record: Directory,
}

/// What a name stands for.
pub enum Child {
    Directory(Dir),
    File { entry: Vec<u8>, record: Vec<u8> },
}

impl Dir {
    /// `None`: no directory of this bucket has the inode.
    pub fn find(view: &dyn View, bucket: &Bucket, inode: u64) -> Result<Option<Self>, KvError> {
        if inode == bucket.root {
            let stored = read(view, &keys::directory(inode))?;
            let implied = || DirectoryAttributes::implied(FileTime::from_millis(bucket.created_at.0));
            let attributes = stored.unwrap_or_else(implied);
            return Ok(Some(Self { inode, attributes, seat: None }));
        }
        let key = keys::directory(inode);
        // Where the inode is another bucket's root, its record is none of where a directory stands.
        let Some(Ok(above)) =
            view.get(&key)?.map(|record| crate::machine::draft::decode::<Above>(&key, &record))
        else {
            return Ok(None);
        };
        if above.root != bucket.root {
            return Ok(None);
        }
        let entry = store_keys::entry(above.parent, &above.name);
        let record: Directory = expect(view, &entry)?;
        Ok(Some(Self::at(bucket, above.parent, entry, record)))
    }

    /// As the caller says it is one.
    pub fn open(view: &dyn View, bucket: &Bucket, inode: u64) -> Outcome<Self> {
        match Self::find(view, bucket, inode)? {
            Some(directory) => Ok(directory),
            None if view.get(&keys::node(inode))?.is_some() => Err(FileRefusal::NotDirectory.into()),
            None => Err(FileRefusal::Stale.into()),
        }
    }

    fn at(bucket: &Bucket, parent: u64, entry: Vec<u8>, record: Directory) -> Self {
        let implied = || DirectoryAttributes::implied(FileTime::from_millis(bucket.created_at.0));
        let attributes = record.attributes.unwrap_or_else(implied);
        Self { inode: record.inode, attributes, seat: Some(Seat { parent, entry, record }) }
    }

    pub fn stat(&self) -> Stat {
        let directories = self.seat.as_ref().map_or(0, |seat| seat.record.directories);
        let attributes = &self.attributes;
        Stat {
            inode: self.inode,
            kind: FileKind::Directory,
            mode: attributes.mode,
            links: u32::try_from(directories.saturating_add(2)).unwrap_or(u32::MAX),
            uid: attributes.uid,
            gid: attributes.gid,
            rdev: 0,
            size: 0,
            hole_bytes: 0,
            accessed_at: attributes.accessed_at,
            modified_at: attributes.modified_at,
            changed_at: attributes.changed_at,
            created_at: attributes.created_at,
            data_version: 0,
            needs_place: false,
            etag: String::new(),
            has_no_xattrs: false,
        }
    }

    pub fn parent(&self) -> u64 {
        self.seat.as_ref().map_or(self.inode, |seat| seat.parent)
    }

    pub fn entry_key(&self, name: &Name, is_directory: bool) -> Vec<u8> {
        if is_directory {
            store_keys::entry(self.inode, &directory_name(name))
        } else {
            store_keys::entry(self.inode, name.text().as_bytes())
        }
    }

    pub fn child(&self, view: &dyn View, bucket: &Bucket, name: &Name) -> Outcome<Option<Child>> {
        check_name(name)?;
        if let Name::Any(_) = name {
            let entry = self.entry_key(name, true);
            if let Some(record) = read::<Directory>(view, &entry)? {
                return Ok(Some(Child::Directory(Self::at(bucket, self.inode, entry, record))));
            }
            if name.text().is_empty() {
                return Ok(None);
            }
        }
        Ok(node::entry(view, self.inode, name)?.map(|(entry, record)| Child::File { entry, record }))
    }

    /// Whether a directory of this name is in it.
    pub fn has_directory(&self, view: &dyn View, name: &str) -> Result<bool, KvError> {
        if self.seat.as_ref().is_some_and(|seat| seat.record.directories == 0) {
            return Ok(false);
        }
        let name = Name::Any(name.to_owned());
        Ok(view.get(&self.entry_key(&name, true))?.is_some())
    }

    /// Writes its attributes.
    pub fn write(&self, draft: &mut Draft<'_>) -> Result<(), KvError> {
        match &self.seat {
            None => draft.write(keys::directory(self.inode), &self.attributes),
            Some(seat) => {
                let record = Directory { attributes: Some(self.attributes), ..seat.record.clone() };
                draft.write(seat.entry.clone(), &record)
            }
        }
    }

    fn touch(&mut self, now: FileTime) {
        (self.attributes.modified_at, self.attributes.changed_at) = (now, now);
    }

    /// An entry was put in another's place.
    pub fn touched(&mut self, draft: &mut Draft<'_>) -> Result<(), KvError> {
        self.touch(FileTime::from_millis(draft.now.0));
        self.write(draft)
    }

    /// An entry was put in.
    pub fn added(&mut self, draft: &mut Draft<'_>, is_directory: bool) -> Result<(), KvError> {
        self.touch(FileTime::from_millis(draft.now.0));
        if let Some(seat) = &mut self.seat {
            seat.record.entries = shift(seat.record.entries, 1, 0, "directory entries")?;
            seat.record.directories =
                shift(seat.record.directories, u64::from(is_directory), 0, "directories")?;
        }
        self.write(draft)
    }

    /// An entry was taken out by a mount: if none is left, the directory becomes a key of its own. Returns whether it
    /// has.
    pub fn removed(&mut self, draft: &mut Draft<'_>, is_directory: bool) -> Result<bool, KvError> {
        self.touch(FileTime::from_millis(draft.now.0));
        let mut becomes_key = false;
        if let Some(seat) = &mut self.seat {
            seat.record.entries = shift(seat.record.entries, 0, 1, "directory entries")?;
            seat.record.directories = seat.record.directories.saturating_sub(u64::from(is_directory));
            if seat.record.entries == 0 {
                seat.record.entries = 1;
                becomes_key = true;
                let marker = node::marker(draft)?;
                draft.put(store_keys::entry(self.inode, b""), marker);
            }
        }
        self.write(draft)?;
        Ok(becomes_key)
    }

    /// Whether nothing is in it but, maybe, its own key without a body. Says whether that key is there.
    pub fn check_empty(&self, view: &dyn View) -> Outcome<bool> {
        let entries = self.seat.as_ref().map_or(u64::MAX, |seat| seat.record.entries);
        let own = store_keys::entry(self.inode, b"");
        let has_key = match view.get(&own)? {
            Some(record) if node::is_plain_marker(&own, &record)? => true,
            Some(_) => return Err(FileRefusal::NotEmpty.into()),
            None => false,
        };
        if entries > u64::from(has_key) { Err(FileRefusal::NotEmpty.into()) } else { Ok(has_key) }
    }

    /// Whether `inode` is this directory or one above it.
    pub fn is_below(&self, view: &dyn View, bucket: &Bucket, inode: u64) -> Result<bool, KvError> {
        let mut at = self.clone();
        // No tree is deeper than it has directories; a damaged one must not hold the machine.
        for _ in 0..DEPTH_MAX {
            if at.inode == inode {
                return Ok(true);
            }
            if at.seat.is_none() {
                return Ok(false);
            }
            match Self::find(view, bucket, at.parent())? {
                Some(above) => at = above,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// Directories above a directory: a rename below a deeper one is refused.
const DEPTH_MAX: usize = 16_384;

/// The entry of a directory: its name and `/`.
pub fn directory_name(name: &Name) -> Vec<u8> {
    let mut entry = name.text().as_bytes().to_vec();
    entry.push(b'/');
    entry
}

pub fn check_name(name: &Name) -> Outcome<()> {
    if name.text().len() > NAME_BYTES_MAX {
        return Err(FileRefusal::NameTooLong.into());
    }
    if name.text().contains('/') {
        return Err(FileRefusal::Invalid("a name has no '/'".to_owned()).into());
    }
    Ok(())
}
