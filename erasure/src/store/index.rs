//! Which shards the disk holds and where: all in memory, 41 bytes a shard before the tree's own share.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::format::{IndexEntry, RECORD_ALIGN, record_bytes};
use crate::ids::{PgId, ShardKey};

/// A shard as the disk knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredShard {
    pub key: ShardKey,
    pub pg: PgId,
    pub opened_at_ms: u64,
    /// Bytes of the shard.
    pub len: u64,
    /// Whether a read or scrub found that it does not verify.
    pub is_damaged: bool,
}

/// Where a shard lies. Kept small: there is one for every shard of the disk.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub segment: u32,
    at: u32,
    len: u32,
    pg: u32,
    opened_low: u32,
    opened_high: u16,
    /// Where the body starts; the top bit marks a shard whose damage was seen.
    body_at: u16,
}

const DAMAGED: u16 = 1 << 15;

impl Entry {
    pub fn new(segment: u32, of: &IndexEntry) -> Self {
        Self {
            segment,
            at: of.at,
            len: of.len,
            pg: of.pg.0,
            opened_low: of.opened_at_ms as u32,
            opened_high: (of.opened_at_ms >> 32) as u16,
            body_at: of.body_at,
        }
    }

    /// Where the record starts in its segment.
    pub fn record_at(&self) -> u64 {
        u64::from(self.at) * RECORD_ALIGN
    }

    /// [`Entry::record_at`] as index files count it.
    pub fn at_units(&self) -> u32 {
        self.at
    }

    /// Where the shard's bytes start, from the record's start.
    pub fn body_at(&self) -> usize {
        usize::from(self.body_at & !DAMAGED)
    }

    pub fn len(&self) -> u64 {
        u64::from(self.len)
    }

    /// Bytes of the segment that the record takes.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.body_at(), self.len())
    }

    pub fn is_damaged(&self) -> bool {
        self.body_at & DAMAGED != 0
    }

    pub fn set_damaged(&mut self) {
        self.body_at |= DAMAGED;
    }

    pub fn is_at(&self, other: &Self) -> bool {
        (self.segment, self.at) == (other.segment, other.at)
    }

    pub fn describe(&self, key: ShardKey) -> StoredShard {
        let opened_at_ms = u64::from(self.opened_high) << 32 | u64::from(self.opened_low);
        StoredShard { key, pg: PgId(self.pg), opened_at_ms, len: self.len(), is_damaged: self.is_damaged() }
    }
}

/// The shards of the disk, by key.
#[derive(Default)]
pub struct Index {
    shards: RwLock<BTreeMap<ShardKey, Entry>>,
}

impl Index {
    /// `shards` has each key once.
    pub fn new(shards: impl IntoIterator<Item = (ShardKey, Entry)>) -> Self {
        Self { shards: RwLock::new(shards.into_iter().collect()) }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<ShardKey, Entry>> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<ShardKey, Entry>> {
        self.shards.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, key: ShardKey) -> Option<Entry> {
        self.read().get(&key).copied()
    }

    pub fn len(&self) -> usize {
        self.read().len()
    }

    pub fn list_after(&self, after: Option<ShardKey>, max: usize) -> Vec<StoredShard> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let shards = self.read();
        shards.range((from, Bound::Unbounded)).take(max).map(|(key, entry)| entry.describe(*key)).collect()
    }

    /// What lies in one segment, in steps so that nobody waits long.
    pub fn in_segment(&self, segment: u32) -> Vec<(ShardKey, Entry)> {
        const STEP: usize = 4096;
        let (mut found, mut from) = (Vec::new(), Bound::Unbounded);
        loop {
            let shards = self.read();
            let mut last = None;
            for (key, entry) in shards.range((from, Bound::Unbounded)).take(STEP) {
                last = Some(*key);
                if entry.segment == segment {
                    found.push((*key, *entry));
                }
            }
            match last {
                Some(last) => from = Bound::Excluded(last),
                None => return found,
            }
        }
    }

    /// Returns what it replaces.
    pub fn insert(&self, key: ShardKey, entry: Entry) -> Option<Entry> {
        self.write().insert(key, entry)
    }

    pub fn remove(&self, key: ShardKey) -> Option<Entry> {
        self.write().remove(&key)
    }

    /// Removes `key` where it still lies at `entry`.
    pub fn remove_at(&self, key: ShardKey, entry: &Entry) -> bool {
        let mut shards = self.write();
        let is_there = shards.get(&key).is_some_and(|found| found.is_at(entry));
        is_there && shards.remove(&key).is_some()
    }

    /// Remembers that `entry` does not verify; `false` where the shard has moved or gone meanwhile.
    pub fn mark_damaged(&self, key: ShardKey, entry: &Entry) -> bool {
        match self.write().get_mut(&key) {
            Some(found) if found.is_at(entry) => {
                found.body_at |= DAMAGED;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a disk of 10^8 shards costs in memory is decided here.
    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<(ShardKey, Entry)>() <= 56);
        assert_eq!(size_of::<ShardKey>() + size_of::<Entry>(), 41);
    }
}
