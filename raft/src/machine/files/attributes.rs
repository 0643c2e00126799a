//! Owners, modes, times; extended attributes.

use bytes::Bytes;

use super::keys;
use super::node::{self, Found};
use super::work::Work;
use crate::facts::Timestamp;
use crate::facts::files::{
    Edit, FileDone, FileEvent, FileRef, FileRefusal, FileTime, MODE_BITS, SetAttributes, Stat, TimeToSet,
    XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX, XattrHow,
};
use crate::machine::draft::{Outcome, is_empty, scan_records};
use crate::machine::keys as store_keys;
use crate::machine::kv::{KvError, View};

const NANOS: u32 = 1_000_000_000;

impl Work<'_, '_> {
    pub fn set_attributes(&mut self, file: &FileRef, set: &SetAttributes) -> Outcome<FileDone> {
        let accessed_at = self.time(set.accessed_at)?;
        let modified_at = self.time(set.modified_at)?;
        let now = self.now;
        let mut done = FileDone::default();
        match self.find(file)? {
            Found::Directory(_) if set.size.is_some() => return Err(FileRefusal::IsDirectory.into()),
            Found::Directory(mut directory) => {
                let to = &mut directory.attributes;
                to.mode = set.mode.map_or(to.mode, |mode| mode & MODE_BITS);
                to.uid = set.uid.unwrap_or(to.uid);
                to.gid = set.gid.unwrap_or(to.gid);
                to.accessed_at = accessed_at.unwrap_or(to.accessed_at);
                to.modified_at = modified_at.unwrap_or(to.modified_at);
                to.changed_at = now;
                directory.write(self.draft)?;
                done.stat = Some(directory.stat());
            }
            Found::File(_) => {
                if let Some(size) = set.size {
                    self.edit(file, None, &[Edit::Truncate(size)], None)?;
                }
                let mut file = self.open_file(file)?;
                let to = file.attributes()?;
                to.mode = set.mode.map_or(to.mode, |mode| mode & MODE_BITS);
                to.uid = set.uid.unwrap_or(to.uid);
                to.gid = set.gid.unwrap_or(to.gid);
                to.accessed_at = accessed_at.unwrap_or(to.accessed_at);
                to.modified_at = modified_at.unwrap_or(to.modified_at);
                to.changed_at = now;
                if let Some(at) = modified_at {
                    file.meta.modified_at = Timestamp(at.to_millis());
                }
                file.store(self.draft)?;
                done.stat = Some(node::stat(&file.meta));
            }
        }
        self.note(FileEvent::Inode(file.inode))?;
        Ok(done)
    }

    fn time(&self, to: Option<TimeToSet>) -> Result<Option<FileTime>, FileRefusal> {
        match to {
            Some(TimeToSet::At(at)) => checked_time(Some(at)),
            Some(TimeToSet::Now) => Ok(Some(self.now)),
            None => Ok(None),
        }
    }

    pub fn set_xattr(
        &mut self,
        file: &FileRef,
        name: &[u8],
        value: Option<&Bytes>,
        how: XattrHow,
    ) -> Outcome<FileDone> {
        let found = self.find(file)?;
        self.check_xattr(file.inode, name, value)?;
        let key = keys::xattr(file.inode, name);
        match (how, self.draft.get(&key)?.is_some()) {
            (XattrHow::Create, true) => return Err(FileRefusal::Exists.into()),
            (XattrHow::Replace, false) => return Err(FileRefusal::NoXattr.into()),
            (_, false) if value.is_none() => return Err(FileRefusal::NoXattr.into()),
            _ => {}
        }
        match value {
            Some(value) => self.draft.write(key, value)?,
            None => self.draft.delete(key),
        }
        let now = self.now;
        let stat = match found {
            Found::Directory(mut directory) => {
                directory.attributes.changed_at = now;
                directory.write(self.draft)?;
                directory.stat()
            }
            Found::File(_) => {
                let mut file = self.open_file(file)?;
                file.attributes()?.changed_at = now;
                file.store(self.draft)?;
                node::stat(&file.meta)
            }
        };
        self.note(FileEvent::Inode(file.inode))?;
        Ok(FileDone { stat: Some(stat), ..FileDone::default() })
    }

    /// Whether all of a file's extended attributes stay within their bounds with this one.
    pub fn check_xattr(&self, inode: u64, name: &[u8], value: Option<&Bytes>) -> Outcome<()> {
        if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
            let why = format!("an extended attribute's name has 1 to {XATTR_NAME_BYTES_MAX} bytes");
            return Err(FileRefusal::Invalid(why).into());
        }
        let Some(value) = value else { return Ok(()) };
        let others = xattrs(self.draft, inode)?.into_iter().filter(|(other, _)| other != name);
        let held: usize = others.map(|(name, value)| name.len() + value.len()).sum();
        if held + name.len() + value.len() > XATTR_BYTES_MAX {
            return Err(FileRefusal::XattrsTooLarge.into());
        }
        Ok(())
    }
}

pub fn checked_time(at: Option<FileTime>) -> Result<Option<FileTime>, FileRefusal> {
    match at {
        Some(at) if at.nanos >= NANOS => {
            Err(FileRefusal::Invalid("a time has at most 999,999,999 nanoseconds".to_owned()))
        }
        at => Ok(at),
    }
}

/// What `stat` shows, and whether there are extended attributes.
pub fn with_xattrs_known(view: &dyn View, stat: Stat) -> Result<Stat, KvError> {
    let has_no_xattrs = is_empty(view, &keys::xattrs(stat.inode))?;
    Ok(Stat { has_no_xattrs, ..stat })
}

/// All extended attributes of a file, by name.
pub fn xattrs(view: &dyn View, inode: u64) -> Result<Vec<(Bytes, Bytes)>, KvError> {
    let from = keys::xattrs(inode);
    let mut found = Vec::new();
    scan_records(view, &from, &store_keys::end_of(&from), &mut |key, value: Bytes| {
        found.push((Bytes::copy_from_slice(&key[from.len()..]), value));
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(found)
}
