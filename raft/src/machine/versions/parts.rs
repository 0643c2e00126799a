//! What is remembered of the parts that a version was completed from: enough to describe each.

use crate::facts::query::Answer;
use crate::facts::version::{CompletedPart, VersionAnswer};
use crate::machine::draft::{Draft, Outcome, all};
use crate::machine::kv::{KvError, View};
use crate::machine::objects::Meta;
use crate::machine::{keys, page as page_of};

/// Parts in one record.
const RECORD_PARTS: usize = 500;

pub fn store(draft: &mut Draft<'_>, inode: u64, parts: &[CompletedPart]) -> Result<(), KvError> {
    for record in parts.chunks(RECORD_PARTS) {
        if let Some(first) = record.first() {
            draft.write(keys::completed_parts_from(inode, first.number), record)?;
        }
    }
    Ok(())
}

fn load(view: &dyn View, meta: &Meta) -> Result<Vec<CompletedPart>, KvError> {
    if meta.part_count == 0 {
        return Ok(Vec::new());
    }
    let records: Vec<Vec<CompletedPart>> = all(view, &keys::completed_parts(meta.inode))?;
    Ok(records.into_iter().flatten().collect())
}

/// The parts of a version, for one that shares its content.
pub fn copy(view: &dyn View, from: &Meta) -> Result<Vec<CompletedPart>, KvError> {
    load(view, from)
}

pub fn forget(draft: &mut Draft<'_>, meta: &Meta) -> Result<(), KvError> {
    if meta.part_count == 0 {
        return Ok(());
    }
    draft.delete_all(&keys::completed_parts(meta.inode))
}

pub fn page(view: &dyn View, meta: &Meta, after: u16, entries_max: u32) -> Outcome<Answer> {
    let mut parts: Vec<_> = load(view, meta)?.into_iter().filter(|part| part.number > after).collect();
    let entries_max = page_of(entries_max);
    let is_truncated = parts.len() > entries_max;
    parts.truncate(entries_max);
    Ok(Answer::Version(VersionAnswer::Parts { parts, is_truncated }))
}
