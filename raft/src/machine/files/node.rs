//! One file: found by inode or place, made a node, given up.

use super::keys;
use super::sessions::{self, Orphan};
use super::told;
use super::tree::Dir;
use crate::facts::bucket::Bucket;
use crate::facts::files::{
    FILE_MODE, FileAttributes, FileEvent, FileKind, FileRef, FileRefusal, FileTime, Name, Stat,
};
use crate::machine::blobs::Ledger;
use crate::machine::content::{self, Body};
use crate::machine::draft::{self, Draft, Outcome, corrupt};
use crate::machine::keys as store_keys;
use crate::machine::kv::{KvError, View};
use crate::machine::objects::{self, Meta};
use crate::machine::{names, versions};

/// First byte of an entry that holds an inode instead of an object; the inode follows, big-endian.
const LINK_FORMAT: u8 = 2;

pub fn link_record(inode: u64) -> Vec<u8> {
    let mut record = vec![LINK_FORMAT];
    record.extend_from_slice(&inode.to_be_bytes());
    record
}

/// The inode that an entry links to; `None`: the entry is the object itself.
pub fn linked(record: &[u8]) -> Option<u64> {
    match record.split_first() {
        Some((&LINK_FORMAT, inode)) => inode.try_into().ok().map(u64::from_be_bytes),
        _ => None,
    }
}

/// The object that an entry holds or links to.
pub fn load(view: &dyn View, path: &[u8], record: &[u8]) -> Result<(Meta, Body), KvError> {
    let Some(inode) = linked(record) else { return objects::decode(path, record) };
    let key = keys::node(inode);
    let node = view.get(&key)?.ok_or_else(|| corrupt("missing", &key))?;
    objects::decode(&key, &node)
}

/// A file, and where it stands if it has no node.
#[derive(Debug, Clone)]
pub struct File {
    pub meta: Meta,
    pub body: Body,
    /// The entry that is the object itself.
    pub embedded_at: Option<Vec<u8>>,
}

pub enum Found {
    Directory(Dir),
    File(File),
}

impl Found {
    pub fn stat(&self) -> Stat {
        match self {
            Self::Directory(directory) => directory.stat(),
            Self::File(file) => stat(&file.meta),
        }
    }

    pub fn file(self) -> Result<File, FileRefusal> {
        match self {
            Self::File(file) => Ok(file),
            Self::Directory(_) => Err(FileRefusal::IsDirectory),
        }
    }
}

/// By its inode, else by its place. Nothing of another bucket is found.
pub fn find(view: &dyn View, bucket: &Bucket, file: &FileRef) -> Outcome<Found> {
    let key = keys::node(file.inode);
    if let Some(record) = view.get(&key)? {
        let (meta, body) = objects::decode(&key, &record)?;
        if meta.file.as_ref().is_none_or(|file| file.root != bucket.root) {
            return Err(FileRefusal::Stale.into());
        }
        return Ok(Found::File(File { meta, body, embedded_at: None }));
    }
    if let Some(directory) = Dir::find(view, bucket, file.inode)? {
        return Ok(Found::Directory(directory));
    }
    let Some((parent, name)) = &file.place else { return Err(FileRefusal::Stale.into()) };
    let Some(parent) = Dir::find(view, bucket, *parent)? else { return Err(FileRefusal::Stale.into()) };
    let entry = store_keys::entry(parent.inode, name.text().as_bytes());
    match view.get(&entry)? {
        Some(record) if linked(&record).is_none() && !name.text().ends_with('/') => {
            let (meta, body) = objects::decode(&entry, &record)?;
            if meta.inode != file.inode {
                return Err(FileRefusal::Stale.into());
            }
            Ok(Found::File(File { meta, body, embedded_at: Some(entry) }))
        }
        _ => Err(FileRefusal::Stale.into()),
    }
}

/// The file that an entry holds or links to.
pub fn at_entry(view: &dyn View, entry: Vec<u8>, record: &[u8]) -> Result<File, KvError> {
    let (meta, body) = load(view, &entry, record)?;
    let embedded_at = linked(record).is_none().then_some(entry);
    Ok(File { meta, body, embedded_at })
}

/// What a file is that no mount has changed yet.
fn attributes_of(meta: &Meta, root: u64) -> FileAttributes {
    let at = FileTime::from_millis(meta.modified_at.0);
    FileAttributes {
        root,
        kind: FileKind::File,
        mode: FILE_MODE,
        uid: 0,
        gid: 0,
        rdev: 0,
        links: 1,
        accessed_at: at,
        modified_at: at,
        changed_at: at,
        created_at: at,
        hole_bytes: 0,
        extents: 0,
    }
}

impl File {
    /// Gives it a node, and its entry a link there.
    pub fn adopt(&mut self, draft: &mut Draft<'_>, root: u64) -> Result<&mut FileAttributes, KvError> {
        if let Some(entry) = self.embedded_at.take() {
            draft.put(entry, link_record(self.meta.inode));
        }
        if self.meta.file.is_none() {
            let mut attributes = attributes_of(&self.meta, root);
            let extents = content::extents(draft, self.meta.inode, &self.body)?;
            attributes.extents = u32::try_from(extents.len()).unwrap_or(u32::MAX);
            self.meta.file = Some(Box::new(attributes));
        }
        self.attributes()
    }

    pub fn attributes(&mut self) -> Result<&mut FileAttributes, KvError> {
        let inode = self.meta.inode;
        self.meta.file.as_deref_mut().ok_or_else(|| corrupt("without attributes", &keys::node(inode)))
    }

    /// Writes its node; it has been adopted.
    pub fn store(&self, draft: &mut Draft<'_>) -> Result<(), KvError> {
        draft.put(keys::node(self.meta.inode), objects::encode(&self.meta, &self.body)?);
        Ok(())
    }
}

pub fn stat(meta: &Meta) -> Stat {
    let attributes = meta.file.as_deref().cloned().unwrap_or_else(|| attributes_of(meta, 0));
    Stat {
        inode: meta.inode,
        kind: attributes.kind,
        mode: attributes.mode,
        links: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        size: meta.size,
        hole_bytes: attributes.hole_bytes,
        accessed_at: attributes.accessed_at,
        modified_at: attributes.modified_at,
        changed_at: attributes.changed_at,
        created_at: attributes.created_at,
        data_version: meta.version,
        needs_place: meta.file.is_none(),
        etag: meta.etag.clone(),
        has_no_xattrs: false,
    }
}

/// S3 takes the object's name `key` away; the entry itself is the caller's to write. Returns the bytes that its
/// tenant is no longer charged for.
pub fn lose_name(
    draft: &mut Draft<'_>,
    bucket: &Bucket,
    key: &str,
    meta: &Meta,
    body: &Body,
    ledger: &mut Ledger,
) -> Result<u64, KvError> {
    let embedded_at = match &meta.file {
        None if bucket.mounts > 0 => Some(names::locate(draft, bucket.root, key)?.entry()),
        _ => None,
    };
    let file = File { meta: meta.clone(), body: body.clone(), embedded_at };
    drop_name(draft, bucket, 0, false, file, ledger)
}

/// What a version is kept as that S3 replaces: without what mounts keep of it. `None`: other names have the file still, or
/// a mount may hold it, so that a copy is to be kept.
pub fn as_version(draft: &mut Draft<'_>, bucket: &Bucket, meta: &Meta) -> Result<Option<Meta>, KvError> {
    if bucket.mounts > 0 {
        return Ok(None);
    }
    let Some(attributes) = &meta.file else { return Ok(Some(meta.clone())) };
    if attributes.links > 1 {
        return Ok(None);
    }
    draft.delete_all(&keys::xattrs(meta.inode))?;
    told::forget_names(draft, bucket.id, meta.inode)?;
    draft.delete(keys::locks(attributes.root, meta.inode));
    draft.delete(keys::writers(attributes.root, meta.inode));
    draft.delete(keys::node(meta.inode));
    Ok(Some(Meta { file: None, ..meta.clone() }))
}

/// Takes one name of a file away. The last one frees it, unless a mount may hold it open.
pub fn drop_name(
    draft: &mut Draft<'_>,
    bucket: &Bucket,
    origin: u64,
    is_held: bool,
    mut file: File,
    ledger: &mut Ledger,
) -> Result<u64, KvError> {
    let now = FileTime::from_millis(draft.now.0);
    let inode = file.meta.inode;
    if let Some(attributes) = file.meta.file.as_mut()
        && attributes.links > 1
    {
        attributes.links -= 1;
        attributes.changed_at = now;
        file.store(draft)?;
        sessions::note(draft, bucket, origin, FileEvent::Inode(inode))?;
        return Ok(0);
    }
    if file.meta.file.is_some() {
        told::forget_names(draft, bucket.id, inode)?;
    }
    let holders = sessions::holders(draft, bucket, origin, is_held)?;
    if holders.is_empty() {
        return free(draft, &file, ledger);
    }
    let attributes = file.adopt(draft, bucket.root)?;
    attributes.links = 0;
    attributes.changed_at = now;
    file.store(draft)?;
    let sequence = sessions::note_always(draft, bucket, origin, FileEvent::Orphaned(inode))?;
    draft.write(keys::orphan(bucket.root, inode), &Orphan { sequence, holders })?;
    Ok(0)
}

/// Lets go of all that a file without names has; returns the bytes that were charged for.
pub fn free(draft: &mut Draft<'_>, file: &File, ledger: &mut Ledger) -> Result<u64, KvError> {
    let extents = content::remove(draft, file.meta.inode, &file.body)?;
    ledger.drop(draft, &extents)?;
    versions::forget_parts(draft, &file.meta)?;
    if let Some(attributes) = &file.meta.file {
        draft.delete_all(&keys::xattrs(file.meta.inode))?;
        draft.delete(keys::locks(attributes.root, file.meta.inode));
        draft.delete(keys::writers(attributes.root, file.meta.inode));
        draft.delete(keys::node(file.meta.inode));
    }
    Ok(file.meta.charged_bytes())
}

/// A file that has no name and that nobody holds any more.
pub fn read_node(view: &dyn View, inode: u64) -> Result<Option<File>, KvError> {
    let key = keys::node(inode);
    match view.get(&key)? {
        Some(record) => {
            let (meta, body) = objects::decode(&key, &record)?;
            Ok(Some(File { meta, body, embedded_at: None }))
        }
        None => Ok(None),
    }
}

/// Whether an inode number is in use.
pub fn is_used(view: &dyn View, inode: u64) -> Result<bool, KvError> {
    Ok(view.get(&keys::node(inode))?.is_some() || view.get(&keys::directory(inode))?.is_some())
}

/// The directory's own key, `d/`, as a mount makes it.
pub fn marker(draft: &mut Draft<'_>) -> Result<Vec<u8>, KvError> {
    use crate::facts::object::ObjectHeaders;
    use store_keys::Counter;
    let headers = ObjectHeaders { content_type: Some(MARKER_TYPE.to_owned()), ..ObjectHeaders::default() };
    let meta = Meta {
        version: draft.next(Counter::Version)?,
        inode: draft.next(Counter::Inode)?,
        modified_at: draft.now,
        size: 0,
        etag: EMPTY_MD5.to_owned(),
        headers,
        checksum: None,
        part_count: 0,
        has_id: false,
        is_marker: false,
        file: None,
    };
    objects::encode(&meta, &Body::Empty)
}

const MARKER_TYPE: &str = "application/x-directory";
pub const EMPTY_MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// The record of an object's entry; `None`: no such entry.
pub fn entry(view: &dyn View, directory: u64, name: &Name) -> Result<Option<(Vec<u8>, Vec<u8>)>, KvError> {
    let key = store_keys::entry(directory, name.text().as_bytes());
    Ok(view.get(&key)?.map(|record| (key, record)))
}

/// Whether `record` is one of format 1 that says no more than that the directory is there.
pub fn is_plain_marker(entry: &[u8], record: &[u8]) -> Result<bool, KvError> {
    if linked(record).is_some() {
        return Ok(false);
    }
    Ok(draft::decode::<Meta>(entry, record)?.size == 0)
}
