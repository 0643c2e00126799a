//! The trail of administrative deeds.
//!
//! Always: a deed and what it changed are written together or not at all; entries are numbered without gaps; beyond
//! [`ENTRIES_MAX`] the oldest goes with each new one.

use super::draft::{Draft, Outcome, read};
use super::keys::{self, Counter};
use super::kv::View;
use super::page;
use crate::facts::audit::{AuditAnswer, AuditQuery, Deed, ENTRIES_MAX, Entry, TEXT_BYTES_MAX};
use crate::facts::query::Answer;

fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

pub fn append(draft: &mut Draft<'_>, deed: &Deed) -> Outcome<()> {
    let sequence = draft.next(Counter::Audit)?;
    let deed = Deed {
        by: cut(&deed.by),
        from: cut(&deed.from),
        action: cut(&deed.action),
        target: cut(&deed.target),
    };
    draft.write(keys::audit(sequence), &Entry { sequence, at: draft.now, deed })?;
    if let Some(oldest) = sequence.checked_sub(ENTRIES_MAX).filter(|oldest| *oldest > 0) {
        draft.delete(keys::audit(oldest));
    }
    Ok(())
}

/// One look-up an entry.
pub fn answer(view: &dyn View, query: &AuditQuery) -> Outcome<Answer> {
    let AuditQuery::Entries { before, entries_max } = query;
    let newest = read::<u64>(view, &keys::counter(Counter::Audit))?.unwrap_or(0);
    let mut sequence = if *before == 0 { newest } else { newest.min(before - 1) };
    let mut entries = Vec::new();
    while sequence > 0 && entries.len() < page(*entries_max) {
        // Behind the bound there is none.
        let Some(entry) = read::<Entry>(view, &keys::audit(sequence))? else { break };
        entries.push(entry);
        sequence -= 1;
    }
    Ok(Answer::Audit(AuditAnswer::Entries(entries)))
}
