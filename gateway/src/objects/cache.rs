//! Windows of blobs that were read lately, as plaintext in this gateway's memory.
//!
//! A blob never changes, so that what is here is never stale: the metadata says which blob is meant, each time anew. It is
//! reached only with the blob's data key in hand, so that it is no way around a customer's key.
//!
//! Of small objects, which share blobs, the pages are kept that they lie in, as a window that is shorter than others and may begin
//! at any page.
//!
//! Always: at most as many bytes as were allowed; what was used longest ago goes first; a blob of more than an eighth of
//! the room is not kept, so that one large download does not empty it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use makai_erasure::BlobId;
use makai_erasure::layout::PAGE_BYTES;
use makai_erasure::stripe::READ_WINDOW_BYTES;

/// Of the room, what one blob may take at most.
const BLOB_SHARE: u64 = 8;

/// Windows by blob and first page.
pub(super) struct WindowCache {
    bytes_max: u64,
    state: Mutex<State>,
}

type Key = (BlobId, u64);

#[derive(Default)]
struct State {
    windows: HashMap<Key, Kept>,
    /// By when they were used last.
    order: BTreeMap<u64, Key>,
    bytes: u64,
    uses: u64,
}

struct Kept {
    /// Whole pages of the window, in order.
    pages: Vec<Bytes>,
    bytes: u64,
    used: u64,
}

impl WindowCache {
    /// 0: nothing is kept.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, state: Mutex::default() }
    }

    /// The bytes of `range`, which lies within one window of the blob, if the window is here.
    pub(super) fn get(&self, blob: BlobId, range: &Range<u64>) -> Option<Vec<Bytes>> {
        if self.bytes_max == 0 {
            return None;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let starts =
            [range.start / PAGE_BYTES * PAGE_BYTES, range.start / READ_WINDOW_BYTES * READ_WINDOW_BYTES];
        let holds = |start: &u64| {
            let kept = state.windows.get(&(blob, *start / PAGE_BYTES));
            kept.is_some_and(|kept| start + kept.bytes >= range.end)
        };
        let at = starts.into_iter().find(holds)?;
        let key = (blob, at / PAGE_BYTES);
        let kept = state.windows.get_mut(&key)?;
        state.uses += 1;
        state.order.remove(&kept.used);
        kept.used = state.uses;
        state.order.insert(kept.used, key);
        Some(cut(&kept.pages, at, range))
    }

    /// What is worth keeping of what is read for `range`: it is all of its window, and its blob is not too large; or it is in a
    /// small object, and these are the pages that are read for it.
    pub(super) fn wants(&self, blob_len: u64, range: &Range<u64>, is_small: bool) -> Option<Range<u64>> {
        let window_end = blob_len.min((range.start / READ_WINDOW_BYTES + 1) * READ_WINDOW_BYTES);
        let is_whole = range.start.is_multiple_of(READ_WINDOW_BYTES) && range.end == window_end;
        let bytes_max = self.bytes_max / BLOB_SHARE;
        if is_whole && blob_len <= bytes_max {
            return Some(range.clone());
        }
        let pages =
            range.start / PAGE_BYTES * PAGE_BYTES..range.end.next_multiple_of(PAGE_BYTES).min(window_end);
        (is_small && pages.end - pages.start <= bytes_max).then_some(pages)
    }

    /// Keeps what [`wants`](Self::wants) says of `blob`, unless as much of it is here.
    pub(super) fn keep(&self, blob: BlobId, range: &Range<u64>, pages: &[Bytes]) {
        let pages: Vec<Bytes> = pages.iter().map(own).collect();
        let bytes: u64 = pages.iter().map(|page| page.len() as u64).sum();
        let key = (blob, range.start / PAGE_BYTES);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        if state.windows.get(&key).is_some_and(|kept| kept.bytes >= bytes) {
            return;
        }
        state.uses += 1;
        let kept = Kept { pages, bytes, used: state.uses };
        state.order.insert(kept.used, key);
        state.bytes += bytes;
        if let Some(old) = state.windows.insert(key, kept) {
            state.order.remove(&old.used);
            state.bytes -= old.bytes;
        }
        while state.bytes > self.bytes_max
            && let Some((_, oldest)) = state.order.pop_first()
        {
            if let Some(gone) = state.windows.remove(&oldest) {
                state.bytes -= gone.bytes;
            }
        }
    }
}

/// The bytes of `range` of pages that begin at `at`.
pub(super) fn cut(pages: &[Bytes], mut at: u64, range: &Range<u64>) -> Vec<Bytes> {
    let mut parts = Vec::with_capacity(pages.len());
    for page in pages {
        let end = at + page.len() as u64;
        let (from, to) = (range.start.max(at), range.end.min(end));
        if from < to {
            parts.push(page.slice((from - at) as usize..(to - at) as usize));
        }
        at = end;
    }
    parts
}

/// A page that keeps alive little more than itself: one that is much shorter than a page may be a corner of a stripe.
fn own(page: &Bytes) -> Bytes {
    if (page.len() as u64) < PAGE_BYTES / 4 { Bytes::copy_from_slice(page) } else { page.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn byte_of(blob: u8, at: u64) -> u8 {
        blob.wrapping_mul(31).wrapping_add((at / 7) as u8)
    }

    fn bytes_of(blob: u8, range: &Range<u64>) -> Vec<u8> {
        range.clone().map(|at| byte_of(blob, at)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is read and kept in whatever order: what is found is the blob's own bytes, and no more is held than
        /// allowed.
        #[test]
        fn what_is_found_is_the_blobs(
            lens in prop::collection::vec(1u64..3 * READ_WINDOW_BYTES, 4),
            reads in prop::collection::vec((0usize..4, any::<prop::sample::Index>(), 0u64..3, any::<bool>()), 1..12),
            room_windows in 0u64..12,
        ) {
            let bytes_max = room_windows * READ_WINDOW_BYTES;
            let cache = WindowCache::new(bytes_max);
            for (which, from, how, is_small) in reads {
                let len = lens[which];
                let start = from.index(len as usize) as u64;
                let window = start / READ_WINDOW_BYTES * READ_WINDOW_BYTES;
                let end = len.min(window + READ_WINDOW_BYTES);
                let range = match how {
                    0 => window..end,
                    1 => start..end,
                    _ => start..end.min(start + 100_000),
                };
                let blob = BlobId([which as u8; 16]);
                if let Some(found) = cache.get(blob, &range) {
                    prop_assert_eq!(found.concat(), bytes_of(which as u8, &range));
                } else if let Some(wanted) = cache.wants(len, &range, is_small) {
                    prop_assert!(wanted.start <= range.start && wanted.end >= range.end && wanted.end <= end);
                    prop_assert!(wanted.start.is_multiple_of(PAGE_BYTES));
                    let plain = Bytes::from(bytes_of(which as u8, &wanted));
                    let pages: Vec<Bytes> =
                        (0..plain.len()).step_by(PAGE_BYTES as usize)
                            .map(|at| plain.slice(at..plain.len().min(at + PAGE_BYTES as usize))).collect();
                    cache.keep(blob, &wanted, &pages);
                    let found = cache.get(blob, &range).map(|found| found.concat());
                    prop_assert_eq!(found, Some(bytes_of(which as u8, &range)));
                }
                let state = cache.state.lock().unwrap();
                prop_assert!(state.bytes <= bytes_max);
                prop_assert_eq!(state.windows.values().map(|kept| kept.bytes).sum::<u64>(), state.bytes);
                prop_assert_eq!(state.order.len(), state.windows.len());
            }
        }
    }

    /// What was used longest ago goes first, and a blob that is too large does not come in.
    #[test]
    fn the_least_used_goes_first() {
        let cache = WindowCache::new(8 * READ_WINDOW_BYTES);
        let page = Bytes::from(vec![1; PAGE_BYTES as usize]);
        let whole = 0..READ_WINDOW_BYTES;
        let pages = vec![page; (READ_WINDOW_BYTES / PAGE_BYTES) as usize];
        for blob in 0..8 {
            assert_eq!(cache.wants(READ_WINDOW_BYTES, &whole, false), Some(whole.clone()));
            cache.keep(BlobId([blob; 16]), &whole, &pages);
        }
        assert!(cache.get(BlobId([0; 16]), &whole).is_some());
        cache.keep(BlobId([8; 16]), &whole, &pages);
        let held: Vec<u8> = (0..9).filter(|blob| cache.get(BlobId([*blob; 16]), &whole).is_some()).collect();
        assert_eq!(held, [0, 2, 3, 4, 5, 6, 7, 8]);
        let wants = |len, range: Range<u64>| cache.wants(len, &range, false);
        assert_eq!(wants(READ_WINDOW_BYTES + 1, whole), None, "its blob is larger than an eighth");
        assert_eq!(wants(READ_WINDOW_BYTES, 1..READ_WINDOW_BYTES), None, "it is not the whole window");
    }

    /// The page that small objects share is read once for all of them; one that reaches over its end is read anew.
    #[test]
    fn small_objects_are_kept_with_their_pages() {
        let cache = WindowCache::new(8 * READ_WINDOW_BYTES);
        let (blob, len) = (BlobId([1; 16]), 64 << 20);
        let page = 5 * PAGE_BYTES..6 * PAGE_BYTES;
        let object = page.start + 8192..page.start + 16_384;
        assert_eq!(cache.wants(len, &object, false), None);
        assert_eq!(cache.wants(len, &object, true), Some(page.clone()));
        cache.keep(blob, &page, &[Bytes::from(bytes_of(1, &page))]);
        for range in [object, page.clone(), page.end - 1..page.end] {
            assert_eq!(cache.get(blob, &range).map(|found| found.concat()), Some(bytes_of(1, &range)));
        }
        assert_eq!(cache.get(blob, &(page.end - 1..page.end + 1)), None);
        assert_eq!(cache.get(blob, &(page.start - 1..page.start)), None);
    }
}
