//! Versions whose bytes move: out of blobs that are mostly dead, into new ones. What a client sees of them stays as it is.

use super::{Found, look_up, noncurrent};
use crate::facts::command::{NewBlob, Refusal, Reply};
use crate::facts::object::Extent;
use crate::facts::version::{EXPIRE_MAX, MOVES_MAX, Move};
use crate::machine::blobs::Ledger;
use crate::machine::draft::{Draft, Outcome};
use crate::machine::{buckets, content, objects};

/// Where a part of an old blob lies now: the range that holds all of `extent`.
fn moved(moves: &[(Extent, Extent)], extent: &Extent) -> Option<Extent> {
    let end = |extent: &Extent| extent.offset.checked_add(extent.length);
    // Sorted by what they move: the last that begins at or before the extent.
    let behind = moves.partition_point(|(from, _)| (from.blob, from.offset) <= (extent.blob, extent.offset));
    let (from, to) = moves.get(behind.checked_sub(1)?)?;
    if from.blob != extent.blob || end(extent)? > end(from)? {
        return None;
    }
    let offset = to.offset.checked_add(extent.offset.checked_sub(from.offset)?)?;
    Some(Extent { blob: to.blob, offset, ..extent.clone() })
}

/// Has versions name what their bytes were copied to, as far as they are there still and name what was copied.
pub fn carry_out(
    draft: &mut Draft<'_>,
    bucket: &str,
    versions: &[Move],
    moves: &[(Extent, Extent)],
    blobs: &[NewBlob],
) -> Outcome<Reply> {
    if versions.len() > EXPIRE_MAX || moves.len() > MOVES_MAX {
        let why = format!("at most {EXPIRE_MAX} versions and {MOVES_MAX} ranges move at once");
        return Err(Refusal::Invalid(why).into());
    }
    let in_order = |pair: &[(Extent, Extent)]| {
        (pair[0].0.blob, pair[0].0.offset.saturating_add(pair[0].0.length))
            <= (pair[1].0.blob, pair[1].0.offset)
            || pair[0].0.blob < pair[1].0.blob
    };
    if !moves.windows(2).all(in_order) || moves.iter().any(|(from, to)| from.length != to.length) {
        return Err(Refusal::Invalid("ranges come in order, and keep their length".to_owned()).into());
    }
    let bucket = buckets::get(draft, bucket)?;
    let mut ledger = Ledger::new(bucket.tenant);
    ledger.admit(draft, blobs)?;
    for Move { key, number } in versions {
        let current = look_up(draft, &bucket, key, None)?.filter(|found| found.meta.version == *number);
        let found = match current {
            Some(found) => Some(found),
            None => noncurrent(draft, &bucket, key, *number)?,
        };
        let Some(Found { meta, body, place }) = found else { continue };
        let before = content::extents(draft, meta.inode, &body)?;
        let after: Vec<Extent> =
            before.iter().map(|extent| moved(moves, extent).unwrap_or_else(|| extent.clone())).collect();
        if after == before {
            continue;
        }
        content::remove(draft, meta.inode, &body)?;
        ledger.drop(draft, &before)?;
        ledger.add(draft, &after)?;
        let body = content::store_extents(draft, meta.inode, after)?;
        draft.put(place, objects::encode(&meta, &body)?);
    }
    ledger.settle(draft)?;
    Ok(Reply::Done)
}

#[cfg(test)]
mod tests {
    use makai_erasure::BlobId;

    use super::*;

    fn range(blob: u8, offset: u64, length: u64) -> Extent {
        Extent { blob: BlobId([blob; 16]), offset, length, part: 0 }
    }

    #[test]
    fn only_what_a_range_holds_whole_moves() {
        let moves = [
            (range(1, 100, 50), range(9, 0, 50)),
            (range(1, 200, 50), range(9, 50, 50)),
            (range(3, 10, 5), range(8, 0, 5)),
        ];
        for (extent, expected) in [
            (range(1, 100, 50), Some(range(9, 0, 50))),
            (range(1, 110, 20), Some(range(9, 10, 20))),
            (range(1, 230, 20), Some(range(9, 80, 20))),
            (range(1, 0, 100), None),
            (range(1, 90, 20), None),
            (range(1, 140, 20), None),
            (range(1, 150, 10), None),
            (range(1, u64::MAX, 2), None),
            (range(2, 0, 10), None),
            (range(2, 300, 10), None),
            (range(3, 10, 5), Some(range(8, 0, 5))),
            (range(4, 0, 1), None),
        ] {
            assert_eq!(moved(&moves, &extent), expected, "{extent:?}");
        }
    }
}
