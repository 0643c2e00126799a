//! What a version or part points to, and where its extents are kept.
//!
//! A few extents stand in the record itself. More stand in chunks by inode, each keyed by the offset where it
//! ends, so that one forward scan from any offset begins with the chunk that holds it.

use std::ops::ControlFlow;

use bytes::Bytes;
use makai_erasure::BlobId;
use makai_erasure::layout::TAG_BYTES;
use serde::{Deserialize, Serialize};

use super::draft::{Draft, Outcome, all, scan_records, shift};
use super::kv::{KvError, View};
use super::{blobs, keys};
use crate::facts::bucket::Bucket;
use crate::facts::command::{NewContent, Refusal};
use crate::facts::object::{Content, Extent, INLINE_BYTES_MAX, OBJECT_BYTES_MAX, ResolvedExtent};
use crate::facts::query::EXTENTS_PER_ANSWER_MAX;

/// Extents that stand in the record itself.
const RECORD_EXTENTS_MAX: usize = 32;
/// Extents in one chunk.
pub const CHUNK_EXTENTS: usize = 256;
/// Extents of one version: three times what the largest object needs in full blobs.
pub const EXTENTS_MAX: usize = 1 << 18;
const ETAG_BYTES_MAX: usize = 256;
const CHECKSUM_BYTES_MAX: usize = 256;
const WRAPPED_KEY_BYTES_MAX: usize = 1024;

/// A version's or part's content in its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    Empty,
    Inline {
        blob: BlobId,
        wrapped_key: Bytes,
        sealed: Bytes,
    },
    Extents(Vec<Extent>),
    /// In chunks, under the owner's inode.
    Chunked,
}

/// Extents in a row, the first at `at` of the object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    pub at: u64,
    pub extents: Vec<Extent>,
}

/// Whether `new` is meant for this bucket and its sizes agree among themselves; its blobs are checked as they are
/// counted.
pub fn check(new: &NewContent, bucket: &Bucket) -> Result<(), Refusal> {
    if new.bucket_id != 0 && new.bucket_id != bucket.id {
        return Err(Refusal::NoSuchBucket);
    }
    let invalid = |why: String| Err(Refusal::Invalid(why));
    check_etag(&new.etag)?;
    if let Some(checksum) = &new.checksum
        && checksum.algorithm.len() + checksum.value.len() > CHECKSUM_BYTES_MAX
    {
        return invalid("the checksum is too long".to_owned());
    }
    check_content(new.size, &new.content)
}

/// Whether `content` may be, and has `size` bytes.
pub fn check_content(size: u64, content: &Content) -> Result<(), Refusal> {
    let invalid = |why: String| Err(Refusal::Invalid(why));
    if size > OBJECT_BYTES_MAX {
        return Err(Refusal::TooLarge(size));
    }
    let held = match content {
        Content::Empty => 0,
        Content::Inline { wrapped_key, sealed, .. } => {
            if wrapped_key.len() > WRAPPED_KEY_BYTES_MAX {
                return invalid("the wrapped key is too long".to_owned());
            }
            let plain = (sealed.len() as u64).saturating_sub(TAG_BYTES);
            if !(1..=INLINE_BYTES_MAX).contains(&plain) {
                return invalid(format!("inline content of {plain} bytes; 1 to {INLINE_BYTES_MAX} are"));
            }
            plain
        }
        Content::Extents(extents) => {
            if extents.len() > EXTENTS_MAX {
                return invalid(format!("{} extents; at most {EXTENTS_MAX}", extents.len()));
            }
            extents.iter().fold(0, |sum: u64, extent| sum.saturating_add(extent.length))
        }
    };
    if held != size {
        return invalid(format!("content of {held} bytes for a size of {size}"));
    }
    Ok(())
}

pub fn check_etag(etag: &str) -> Result<(), Refusal> {
    if etag.is_empty() || etag.len() > ETAG_BYTES_MAX || etag.contains('"') {
        return Err(Refusal::Invalid(format!("an ETag has 1 to {ETAG_BYTES_MAX} bytes and no quotes")));
    }
    Ok(())
}

/// Keeps `content` under `inode`; what comes back goes into the owner's record.
pub fn store(draft: &mut Draft<'_>, inode: u64, content: &Content) -> Result<Body, KvError> {
    match content {
        Content::Empty => Ok(Body::Empty),
        Content::Inline { blob, wrapped_key, sealed } => {
            Ok(Body::Inline { blob: *blob, wrapped_key: wrapped_key.clone(), sealed: sealed.clone() })
        }
        Content::Extents(extents) => store_extents(draft, inode, extents.clone()),
    }
}

pub fn store_extents(draft: &mut Draft<'_>, inode: u64, extents: Vec<Extent>) -> Result<Body, KvError> {
    if extents.is_empty() {
        return Ok(Body::Empty);
    }
    if extents.len() <= RECORD_EXTENTS_MAX {
        return Ok(Body::Extents(extents));
    }
    let mut at = 0;
    for part in extents.chunks(CHUNK_EXTENTS) {
        let mut end = at;
        for extent in part {
            end = shift(end, extent.length, 0, "content bytes")?;
        }
        draft.write(keys::chunk(inode, end), &Chunk { at, extents: part.to_vec() })?;
        at = end;
    }
    Ok(Body::Chunked)
}

/// All extents, in order.
pub fn extents(view: &dyn View, inode: u64, body: &Body) -> Result<Vec<Extent>, KvError> {
    match body {
        Body::Empty | Body::Inline { .. } => Ok(Vec::new()),
        Body::Extents(extents) => Ok(extents.clone()),
        Body::Chunked => {
            let chunks: Vec<Chunk> = all(view, &keys::chunks(inode))?;
            Ok(chunks.into_iter().flat_map(|chunk| chunk.extents).collect())
        }
    }
}

/// Takes the chunks out of the store; returns the extents that were referred to.
pub fn remove(draft: &mut Draft<'_>, inode: u64, body: &Body) -> Result<Vec<Extent>, KvError> {
    let extents = extents(draft, inode, body)?;
    if matches!(body, Body::Chunked) {
        draft.delete_all(&keys::chunks(inode))?;
    }
    Ok(extents)
}

/// The extents from the one that holds `from_offset` on, and whether more follow.
///
/// Cost: chunks before `from_offset` are not read.
pub fn resolve(
    view: &dyn View,
    inode: u64,
    body: &Body,
    from_offset: u64,
    extents_max: u32,
) -> Outcome<(Vec<ResolvedExtent>, bool)> {
    let mut found = Window {
        from_offset,
        extents_max: extents_max.min(EXTENTS_PER_ANSWER_MAX) as usize,
        found: Vec::new(),
        is_truncated: false,
    };
    match body {
        Body::Empty | Body::Inline { .. } => {}
        Body::Extents(extents) => _ = found.take(0, extents),
        Body::Chunked => {
            if let Some(end) = from_offset.checked_add(1) {
                let to = keys::end_of(&keys::chunks(inode));
                scan_records(view, &keys::chunk(inode, end), &to, &mut |_, chunk: Chunk| {
                    found.take(chunk.at, &chunk.extents)
                })?;
            }
        }
    }
    let mut resolved = Vec::with_capacity(found.found.len());
    for (at, extent) in found.found {
        let blob = blobs::get(view, &extent.blob)?;
        resolved.push(ResolvedExtent { at, extent, blob });
    }
    Ok((resolved, found.is_truncated))
}

struct Window {
    from_offset: u64,
    extents_max: usize,
    found: Vec<(u64, Extent)>,
    is_truncated: bool,
}

impl Window {
    fn take(&mut self, mut at: u64, extents: &[Extent]) -> ControlFlow<()> {
        for extent in extents {
            let end = at.saturating_add(extent.length);
            if end > self.from_offset {
                if self.found.len() >= self.extents_max {
                    self.is_truncated = true;
                    return ControlFlow::Break(());
                }
                self.found.push((at, extent.clone()));
            }
            at = end;
        }
        ControlFlow::Continue(())
    }
}
