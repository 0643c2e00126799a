//! Bytes that were read, kept as long as room and their validity last; and how far ahead of a reader to fetch.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::service::Ino;

/// A cached piece of a file: as large as the pages that the pool seals, so that a miss fetches no byte in vain.
pub const BLOCK_BYTES: u64 = 64 * 1024;
/// Farthest that is fetched ahead of a sequential reader.
const AHEAD_BYTES_MAX: u64 = 8 << 20;
/// First distance, once two reads followed each other.
const AHEAD_BYTES_MIN: u64 = 4 * BLOCK_BYTES;
/// The kernel sends a reader's requests from several threads: so far out of order is still sequential.
const DISORDER_BYTES: u64 = 1 << 20;

#[derive(Debug)]
struct Block {
    data: Bytes,
    /// Of the file's bytes, see [`BlockCache::get`].
    generation: u64,
    used: u64,
}

/// Blocks of all files of a mount; the least recently used go first.
#[derive(Debug)]
pub struct BlockCache {
    blocks: BTreeMap<(Ino, u64), Block>,
    by_use: BTreeMap<u64, (Ino, u64)>,
    uses: u64,
    bytes: usize,
    bytes_max: usize,
}

impl BlockCache {
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { blocks: BTreeMap::new(), by_use: BTreeMap::new(), uses: 0, bytes: 0, bytes_max }
    }

    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A block as it was kept under this generation of the file's bytes; one of another generation is dropped.
    pub fn get(&mut self, ino: Ino, block: u64, generation: u64) -> Option<Bytes> {
        let found = self.blocks.get_mut(&(ino, block))?;
        if found.generation != generation {
            self.remove((ino, block));
            return None;
        }
        self.by_use.remove(&found.used);
        self.uses += 1;
        found.used = self.uses;
        self.by_use.insert(self.uses, (ino, block));
        Some(found.data.clone())
    }

    #[must_use]
    pub fn has(&self, ino: Ino, block: u64, generation: u64) -> bool {
        self.blocks.get(&(ino, block)).is_some_and(|found| found.generation == generation)
    }

    pub fn put(&mut self, ino: Ino, block: u64, generation: u64, data: Bytes) {
        self.remove((ino, block));
        self.uses += 1;
        self.bytes += data.len();
        self.by_use.insert(self.uses, (ino, block));
        self.blocks.insert((ino, block), Block { data, generation, used: self.uses });
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.by_use.first_key_value() else { return };
            self.remove(*oldest);
        }
    }

    /// Drops the blocks that a range of the file touches.
    pub fn drop_range(&mut self, ino: Ino, range: Range<u64>) {
        let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
        let keys: Vec<_> =
            self.blocks.range((ino, blocks.start)..(ino, blocks.end)).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.remove(key));
    }

    fn remove(&mut self, key: (Ino, u64)) {
        if let Some(block) = self.blocks.remove(&key) {
            self.by_use.remove(&block.used);
            self.bytes -= block.data.len();
        }
    }
}

/// Watches one open file's reads.
#[derive(Debug, Default)]
pub struct ReadAhead {
    next: u64,
    distance: u64,
    fetched: u64,
}

impl ReadAhead {
    /// Takes one read; returns what to fetch beside it, beyond its end.
    pub fn on_read(&mut self, offset: u64, length: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(length);
        let is_sequential = offset <= self.next.saturating_add(DISORDER_BYTES)
            && offset.saturating_add(DISORDER_BYTES) >= self.next
            && (self.next > 0 || offset == 0);
        if !is_sequential {
            *self = Self { next: end, distance: 0, fetched: end };
            return None;
        }
        if end > self.next {
            self.next = end;
            self.distance = (self.distance * 2).clamp(AHEAD_BYTES_MIN, AHEAD_BYTES_MAX);
        }
        let wanted = self.next.saturating_add(self.distance);
        let from = self.fetched.max(end);
        // In halves of the distance, so that one request fetches much.
        if wanted < from.saturating_add(self.distance / 2) {
            return None;
        }
        self.fetched = wanted;
        Some(from..wanted)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a list of what was put, newest last.
        #[test]
        fn the_cache_returns_what_was_put_last_or_nothing_and_keeps_its_bound(
            steps in prop::collection::vec((0u64..3, 0u64..6, 0u64..3, 1usize..40, any::<bool>()), 1..200),
        ) {
            let mut cache = BlockCache::new(100);
            let mut puts: BTreeMap<(u64, u64), (u64, usize)> = BTreeMap::new();
            for (ino, block, generation, length, is_put) in steps {
                if is_put {
                    cache.put(Ino(ino), block, generation, Bytes::from(vec![generation as u8; length]));
                    puts.insert((ino, block), (generation, length));
                } else if let Some(data) = cache.get(Ino(ino), block, generation) {
                    prop_assert_eq!(puts[&(ino, block)], (generation, data.len()));
                    prop_assert!(data.iter().all(|byte| u64::from(*byte) == generation));
                }
                prop_assert!(cache.bytes() <= 100);
                prop_assert_eq!(cache.bytes(), cache.blocks.values().map(|block| block.data.len()).sum::<usize>());
                prop_assert_eq!(cache.by_use.len(), cache.blocks.len());
            }
        }

        /// Ranges of one sequential reader follow each other without gap or overlap, and stay within the distance.
        #[test]
        fn a_sequential_reader_is_fetched_for_once_and_not_too_far(lengths in prop::collection::vec(1u64..300_000, 5..60)) {
            let mut ahead = ReadAhead::default();
            let (mut at, mut fetched) = (0, 0);
            for length in lengths {
                if let Some(range) = ahead.on_read(at, length) {
                    prop_assert!(range.start == fetched.max(at + length), "{range:?} after {fetched}");
                    prop_assert!(range.end <= at + length + AHEAD_BYTES_MAX);
                    fetched = range.end;
                }
                at += length;
                prop_assert!(fetched > at, "a reader at {at} has nothing ahead");
            }
        }
    }

    #[test]
    fn a_random_reader_fetches_nothing_ahead() {
        let mut ahead = ReadAhead::default();
        for at in [900 << 20, 5 << 20, 300 << 20, 40 << 20] {
            assert_eq!(ahead.on_read(at, 4096), None);
        }
    }

    #[test]
    fn a_range_is_dropped_with_every_block_it_touches_and_no_other() {
        let mut cache = BlockCache::new(1 << 20);
        (0..4).for_each(|block| cache.put(Ino(1), block, 1, Bytes::from_static(b"x")));
        cache.put(Ino(2), 1, 1, Bytes::from_static(b"x"));
        cache.drop_range(Ino(1), BLOCK_BYTES - 1..BLOCK_BYTES + 1);
        let kept: Vec<_> = (0..4).map(|block| cache.has(Ino(1), block, 1)).collect();
        assert_eq!(kept, [false, false, true, true]);
        assert!(cache.has(Ino(2), 1, 1));
    }
}
