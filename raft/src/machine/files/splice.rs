//! Ranges of a file's extents, cut out and put in.
//!
//! Extents lie without gaps (a hole is an extent too), so that a range is replaced by as many bytes, and only the end
//! moves. Costs what the range touches: chunks beside it are neither read nor written.

use std::ops::ControlFlow;

use crate::facts::object::Extent;
use crate::machine::content::{self, Body, CHUNK_EXTENTS, Chunk};
use crate::machine::draft::{Draft, scan_records, shift};
use crate::machine::keys;
use crate::machine::kv::{KvError, View};

/// What a splice changed. Extents beside the range may be in both lists.
pub struct Spliced {
    pub body: Body,
    pub dropped: Vec<Extent>,
    pub added: Vec<Extent>,
}

pub fn length_of(extents: &[Extent]) -> u64 {
    extents.iter().fold(0, |sum: u64, extent| sum.saturating_add(extent.length))
}

pub fn hole_bytes(extents: &[Extent]) -> u64 {
    extents.iter().filter(|extent| extent.is_hole()).fold(0, |sum, extent| sum.saturating_add(extent.length))
}

/// Replaces bytes `start..end` of a content of `size` bytes that is not inline. `new` has as many, or any number where
/// `end` is the size.
pub fn splice(
    draft: &mut Draft<'_>,
    inode: u64,
    body: &Body,
    (start, end): (u64, u64),
    new: Vec<Extent>,
) -> Result<Spliced, KvError> {
    match body {
        Body::Empty | Body::Inline { .. } => {
            let added = merged(new);
            let body = content::store_extents(draft, inode, added.clone())?;
            Ok(Spliced { body, dropped: Vec::new(), added })
        }
        Body::Extents(extents) => {
            let added = replaced(extents, 0, (start, end), new);
            let body = content::store_extents(draft, inode, added.clone())?;
            Ok(Spliced { body, dropped: extents.clone(), added })
        }
        Body::Chunked => splice_chunks(draft, inode, (start, end), new),
    }
}

fn splice_chunks(
    draft: &mut Draft<'_>,
    inode: u64,
    (start, end): (u64, u64),
    new: Vec<Extent>,
) -> Result<Spliced, KvError> {
    // The chunk that ends at `start` is taken too: what is appended joins it.
    let touched = chunks(draft, inode, start, end)?;
    let base = touched.first().map_or(start, |chunk| chunk.at);
    let dropped: Vec<Extent> = touched.iter().flat_map(|chunk| chunk.extents.clone()).collect();
    for chunk in &touched {
        let to = shift(chunk.at, length_of(&chunk.extents), 0, "content bytes")?;
        draft.delete(keys::chunk(inode, to));
    }
    let added = replaced(&dropped, base, (start, end), new);
    let mut at = base;
    for part in added.chunks(CHUNK_EXTENTS) {
        let to = shift(at, length_of(part), 0, "content bytes")?;
        draft.write(keys::chunk(inode, to), &Chunk { at, extents: part.to_vec() })?;
        at = to;
    }
    let is_left = !crate::machine::draft::is_empty(draft, &keys::chunks(inode))?;
    let body = if is_left { Body::Chunked } else { Body::Empty };
    Ok(Spliced { body, dropped, added })
}

/// Chunks that end at `start` or behind it and begin before `end`, or at it where nothing lies between.
fn chunks(view: &dyn View, inode: u64, start: u64, end: u64) -> Result<Vec<Chunk>, KvError> {
    let mut found = Vec::new();
    let to = keys::end_of(&keys::chunks(inode));
    scan_records(view, &keys::chunk(inode, start), &to, &mut |_, chunk: Chunk| {
        if chunk.at >= end.max(start.saturating_add(1)) {
            return ControlFlow::Break(());
        }
        found.push(chunk);
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// `extents`, which begin at `base`, with `start..end` replaced.
fn replaced(extents: &[Extent], base: u64, (start, end): (u64, u64), new: Vec<Extent>) -> Vec<Extent> {
    let mut result = cut(extents, base, 0, start);
    result.extend(new);
    result.extend(cut(extents, base, end, u64::MAX));
    merged(result)
}

/// The part of `extents`, which begin at `base`, that lies in `start..end`.
fn cut(extents: &[Extent], base: u64, start: u64, end: u64) -> Vec<Extent> {
    let mut found = Vec::new();
    let mut at = base;
    for extent in extents {
        let behind = at.saturating_add(extent.length);
        let (from, to) = (start.max(at), end.min(behind));
        if from < to {
            let offset = if extent.is_hole() { 0 } else { extent.offset.saturating_add(from - at) };
            found.push(Extent { offset, length: to - from, ..extent.clone() });
        }
        at = behind;
    }
    found
}

/// Joins neighbours that lie behind each other in one blob.
fn merged(extents: Vec<Extent>) -> Vec<Extent> {
    let mut result: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        if let Some(last) = result.last_mut()
            && last.blob == extent.blob
            && (extent.is_hole() || last.offset.checked_add(last.length) == Some(extent.offset))
        {
            last.length = last.length.saturating_add(extent.length);
        } else if extent.length > 0 {
            result.push(extent);
        }
    }
    // A part's number means nothing once content is edited.
    result.iter_mut().for_each(|extent| extent.part = 0);
    result
}

/// The extents of bytes `start..end`.
pub fn slice(view: &dyn View, inode: u64, body: &Body, start: u64, end: u64) -> Result<Vec<Extent>, KvError> {
    match body {
        Body::Empty | Body::Inline { .. } => Ok(Vec::new()),
        Body::Extents(extents) => Ok(cut(extents, 0, start, end)),
        Body::Chunked => {
            let touched = chunks(view, inode, start, end)?;
            let base = touched.first().map_or(start, |chunk| chunk.at);
            let extents: Vec<Extent> = touched.into_iter().flat_map(|chunk| chunk.extents).collect();
            Ok(cut(&extents, base, start, end))
        }
    }
}
