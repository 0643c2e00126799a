//! Changes of a file's content: maps of extents change, bytes never do.

use super::node::{self, File};
use super::splice::{self, hole_bytes, length_of, slice};
use super::work::Work;
use crate::facts::Timestamp;
use crate::facts::files::{Edit, FileDone, FileEvent, FileRef, FileRefusal, FileTime, Whole};
use crate::facts::object::{Content, Extent, OBJECT_BYTES_MAX};
use crate::machine::content::{self, Body, EXTENTS_MAX};
use crate::machine::draft::Outcome;
use crate::machine::keys::Counter;
use crate::machine::versions;

/// Changes of one file in one operation.
const EDITS_MAX: usize = 1000;

impl Work<'_, '_> {
    pub fn edit(
        &mut self,
        file: &FileRef,
        if_data_version: Option<u64>,
        edits: &[Edit],
        modified_at: Option<FileTime>,
    ) -> Outcome<FileDone> {
        if edits.len() > EDITS_MAX {
            let why = format!("{} changes at once; at most {EDITS_MAX}", edits.len());
            return Err(FileRefusal::Invalid(why).into());
        }
        if matches!(edits, [Edit::Finish]) {
            return self.finish_file(file);
        }
        let mut file = self.open_content(file)?;
        if if_data_version.is_some_and(|version| version != file.meta.version) {
            return Err(FileRefusal::Stale.into());
        }
        self.begin_version(&mut file)?;
        file.meta.version = self.draft.next(Counter::Version)?;
        let mut offset = file.meta.size;
        for edit in edits {
            if let Edit::Append(_) = edit {
                offset = file.meta.size;
            }
            self.edit_once(&mut file, edit)?;
        }
        let at = modified_at.unwrap_or(self.now);
        let now = self.now;
        let attributes = file.attributes()?;
        (attributes.modified_at, attributes.changed_at) = (at, now);
        file.meta.modified_at = Timestamp(at.to_millis());
        file.store(self.draft)?;
        self.note(FileEvent::Inode(file.meta.inode))?;
        self.tell_edited(file.meta.inode)?;
        Ok(FileDone { stat: Some(node::stat(&file.meta)), offset, ..FileDone::default() })
    }

    /// The session has done with what it wrote before.
    fn finish_file(&mut self, file: &FileRef) -> Outcome<FileDone> {
        let mut file = self.find(file)?.file()?;
        if self.finish_version(&mut file)? {
            file.store(self.draft)?;
        }
        Ok(FileDone { stat: Some(node::stat(&file.meta)), offset: file.meta.size, ..FileDone::default() })
    }

    fn edit_once(&mut self, file: &mut File, edit: &Edit) -> Outcome<()> {
        let size = file.meta.size;
        match edit {
            Edit::Replace(whole) => return self.replace_content(file, whole),
            Edit::Finish => return self.finish_version(file).map(drop),
            Edit::Write { offset, extents } => self.write_at(file, *offset, extents.clone())?,
            Edit::Append(extents) => self.write_at(file, size, extents.clone())?,
            Edit::Truncate(0) => self.clear(file)?,
            Edit::Truncate(to) if *to < size => self.put_range(file, (*to, size), Vec::new())?,
            Edit::Truncate(to) | Edit::Extend(to) if *to > size => {
                self.write_at(file, size, vec![Extent::hole(*to - size)])?;
            }
            Edit::Truncate(_) | Edit::Extend(_) => return Ok(()),
            Edit::Punch { offset, length } => {
                let end = size.min(offset.saturating_add(*length));
                if *offset < end {
                    self.put_range(file, (*offset, end), vec![Extent::hole(end - offset)])?;
                }
            }
            Edit::Copy { from, from_offset, offset, length } => {
                let extents = self.copied(file, from, *from_offset, *length)?;
                self.write_at(file, *offset, extents)?;
            }
        }
        file.meta.etag = edited_etag(file);
        Ok(())
    }

    /// Makes `whole` the content, and lets go of what was there. The file's version is new already.
    pub fn replace_content(&mut self, file: &mut File, whole: &Whole) -> Outcome<()> {
        content::check_content(whole.size, &whole.content)?;
        if let Content::Extents(extents) = &whole.content {
            self.refer(extents)?;
        }
        self.clear(file)?;
        file.body = content::store(self.draft, file.meta.inode, &whole.content)?;
        file.meta.size = whole.size;
        let (mut holes, mut count) = (0, 0);
        if let Content::Extents(extents) = &whole.content {
            (holes, count) = (hole_bytes(extents), extents.len());
        }
        let attributes = file.attributes()?;
        attributes.hole_bytes = holes;
        attributes.extents = u32::try_from(count).unwrap_or(u32::MAX);
        self.grown(file.meta.charged_bytes());
        file.meta.etag = match &whole.etag {
            Some(etag) => {
                content::check_etag(etag)?;
                etag.clone()
            }
            None => edited_etag(file),
        };
        Ok(())
    }

    /// Lets go of all content.
    fn clear(&mut self, file: &mut File) -> Outcome<()> {
        let extents = content::remove(self.draft, file.meta.inode, &file.body)?;
        versions::forget_parts(self.draft, &file.meta)?;
        self.ledger.drop(self.draft, &extents)?;
        self.shrunk(file.meta.charged_bytes());
        file.body = Body::Empty;
        file.meta.size = 0;
        (file.meta.checksum, file.meta.part_count) = (None, 0);
        // What comes next is sealed by the tenant's key.
        file.meta.headers.encryption = None;
        let attributes = file.attributes()?;
        (attributes.hole_bytes, attributes.extents) = (0, 0);
        Ok(())
    }

    /// Bytes from `offset` on; behind the end, with a hole between.
    fn write_at(&mut self, file: &mut File, offset: u64, mut extents: Vec<Extent>) -> Outcome<()> {
        let length = length_of(&extents);
        let end = offset.saturating_add(length);
        if length == 0 {
            return Ok(());
        }
        if end > OBJECT_BYTES_MAX {
            return Err(FileRefusal::TooLarge.into());
        }
        if matches!(file.body, Body::Inline { .. }) && offset == 0 && end >= file.meta.size {
            self.clear(file)?;
        }
        let size = file.meta.size;
        if offset > size {
            extents.insert(0, Extent::hole(offset - size));
        }
        self.put_range(file, (offset.min(size), end.min(size)), extents)
    }

    /// Puts `new` where `start..end` is now.
    fn put_range(&mut self, file: &mut File, (start, end): (u64, u64), new: Vec<Extent>) -> Outcome<()> {
        if matches!(file.body, Body::Inline { .. }) {
            return Err(FileRefusal::IsInline.into());
        }
        check_shared_key(file)?;
        let before = file.meta.charged_bytes();
        versions::forget_parts(self.draft, &file.meta)?;
        let length = length_of(&new);
        let spliced = splice::splice(self.draft, file.meta.inode, &file.body, (start, end), new)?;
        self.refer(&spliced.added)?;
        self.ledger.drop(self.draft, &spliced.dropped)?;
        file.body = spliced.body;
        file.meta.size = file.meta.size.saturating_sub(end - start).saturating_add(length);
        (file.meta.checksum, file.meta.part_count) = (None, 0);
        let attributes = file.attributes()?;
        attributes.hole_bytes = attributes
            .hole_bytes
            .saturating_sub(hole_bytes(&spliced.dropped))
            .saturating_add(hole_bytes(&spliced.added));
        let count = (attributes.extents as usize).saturating_sub(spliced.dropped.len()) + spliced.added.len();
        if count > EXTENTS_MAX {
            return Err(FileRefusal::TooLarge.into());
        }
        attributes.extents = u32::try_from(count).unwrap_or(u32::MAX);
        self.shrunk(before);
        self.grown(file.meta.charged_bytes());
        Ok(())
    }

    /// The extents of a range of another file, or of the one under way.
    fn copied(&self, file: &File, from: &FileRef, from_offset: u64, length: u64) -> Outcome<Vec<Extent>> {
        let other;
        let source = if from.inode == file.meta.inode {
            file
        } else {
            other = self.find(from)?.file()?;
            &other
        };
        if matches!(source.body, Body::Inline { .. }) {
            return Err(
                FileRefusal::NotSupported("the source is inline; read and write it".to_owned()).into()
            );
        }
        check_shared_key(source)?;
        let end = source.meta.size.min(from_offset.saturating_add(length));
        Ok(slice(self.draft, source.meta.inode, &source.body, from_offset, end)?)
    }

    fn grown(&mut self, bytes: u64) {
        self.change.object_bytes.added = self.change.object_bytes.added.saturating_add(bytes);
    }

    fn shrunk(&mut self, bytes: u64) {
        self.change.object_bytes.removed = self.change.object_bytes.removed.saturating_add(bytes);
    }
}

/// Whether all of a file's blobs are sealed by the tenant's key, so that others may stand beside them.
fn check_shared_key(file: &File) -> Result<(), FileRefusal> {
    match file.meta.headers.encryption.as_deref() {
        None | Some(TENANT_SEALED) => Ok(()),
        Some(_) => {
            let why = "the content is sealed under a key of its own, and can only be replaced";
            Err(FileRefusal::NotSupported(why.to_owned()))
        }
    }
}

/// What the doors write of an object that the tenant's key opens, though encryption was asked for.
const TENANT_SEALED: &str = "AES256";

/// Of content that no one has hashed: dashed, so that no client takes it for an MD5, and never the same again.
fn edited_etag(file: &File) -> String {
    format!("{:016x}{:016x}-1", file.meta.inode, file.meta.version)
}
