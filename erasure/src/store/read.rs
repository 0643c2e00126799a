//! Reading a shard: nothing is returned unless the cells that hold it verify.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::core::Core;
use super::disk::DiskFile;
use super::error::StoreError;
use super::format::{HEADER_BYTES, RecordFooter, crc32c, parse_record_footer};
use super::index::Entry;
use super::outlines::Place;
use crate::ids::ShardKey;
use crate::layout::CELL_BYTES;
use crate::stripe::Root;

/// Why a record did not give what was asked.
pub enum Fault {
    Damaged { offset: u64, what: &'static str },
    Store(StoreError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A record opened for reading.
pub struct Record {
    pub file: Arc<dyn DiskFile>,
    pub path: PathBuf,
    pub footer: RecordFooter,
    /// Where the shard's bytes start in the file.
    pub body: u64,
    pub place: Place,
}

impl Record {
    pub fn open(core: &Core, key: ShardKey, entry: &Entry) -> Result<Self, Fault> {
        let segment = core.segments.get(entry.segment).ok_or(StoreError::Missing { key })?;
        let file = core.segments.file(core, &segment)?;
        let path = segment.path.clone();
        let mut head = vec![0; entry.body_at()];
        let read = file
            .read_at(&mut head, entry.record_at())
            .map_err(|error| StoreError::io("read", &path, error))?;
        let offset = entry.record_at() + HEADER_BYTES as u64;
        let damaged = |what| Fault::Damaged { offset, what };
        let footer = head[..read].get(HEADER_BYTES..).ok_or(damaged("the record's end is missing"))?;
        let footer = parse_record_footer(footer).map_err(|_| damaged("the footer fails its checksum"))?;
        let is_its_own = footer.key == key
            && footer.shard_len == entry.len()
            && usize::from(footer.body_at) == entry.body_at()
            && footer.stamp == core.superblock.secret.stamp(entry.segment, entry.record_at());
        if !is_its_own {
            return Err(damaged("the footer is of another record"));
        }
        let body = entry.record_at() + entry.body_at() as u64;
        let place = Place { segment: entry.segment, at: entry.record_at(), stamp: footer.stamp };
        Ok(Self { file, path, footer, body, place })
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let at = self.body + offset;
        match self.file.read_at(bytes, at) {
            Ok(read) if read == bytes.len() => Ok(()),
            Ok(_) => Err(Fault::Damaged { offset: at, what: "the record's end is missing" }),
            Err(error) => Err(StoreError::io("read", &self.path, error).into()),
        }
    }

    /// Visits every cell in order, those that do not verify too.
    pub fn for_each_cell(
        &self,
        mut visit: impl FnMut(u64, &[u8], bool) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut cell = vec![0; CELL_BYTES.min(self.footer.shard_len) as usize];
        for (index, crc) in self.footer.cell_crcs.iter().enumerate() {
            let start = index as u64 * CELL_BYTES;
            let cell_len = CELL_BYTES.min(self.footer.shard_len - start) as usize;
            let cell = &mut cell[..cell_len];
            self.read(start, cell)?;
            visit(start, cell, crc32c(cell) == *crc)?;
        }
        Ok(())
    }

    /// Whether all cells hold.
    pub fn check(&self) -> Result<(), Fault> {
        self.for_each_cell(|start, _, holds| self.holds(start, holds))
    }

    pub fn holds(&self, start: u64, holds: bool) -> Result<(), Fault> {
        let damaged = Fault::Damaged { offset: self.body + start, what: "a cell fails its checksum" };
        if holds { Ok(()) } else { Err(damaged) }
    }

    /// What the shard must hash to.
    pub fn root(&self) -> Result<Root, Fault> {
        let root = self.footer.roots.get(usize::from(self.footer.key.index)).copied();
        root.ok_or(Fault::Damaged { offset: self.body, what: "the footer has no root for the shard" })
    }

    /// `offset + len` lies within the shard.
    pub fn range(&self, offset: u64, len: u64) -> Result<Bytes, Fault> {
        let cells = offset / CELL_BYTES..(offset + len).div_ceil(CELL_BYTES);
        let start = cells.start * CELL_BYTES;
        let end = (cells.end * CELL_BYTES).min(self.footer.shard_len);
        let mut bytes = vec![0; (end - start) as usize];
        self.read(start, &mut bytes)?;
        let crcs = &self.footer.cell_crcs[cells.start as usize..cells.end as usize];
        for ((index, cell), crc) in bytes.chunks(CELL_BYTES as usize).enumerate().zip(crcs) {
            self.holds(start + index as u64 * CELL_BYTES, crc32c(cell) == *crc)?;
        }
        let skip = (offset - start) as usize;
        Ok(Bytes::from(bytes).slice(skip..skip + len as usize))
    }
}

/// Does `read` where the shard lies. A shard that moves or dies meanwhile is looked up again: only damage of
/// the current record is damage.
pub fn with_record<T>(
    core: &Core,
    key: ShardKey,
    mut read: impl FnMut(&Record) -> Result<T, Fault>,
) -> Result<T, StoreError> {
    const TRIES_MAX: usize = 16;
    core.check_open()?;
    let mut tries = 0;
    loop {
        tries += 1;
        let entry = core.locate(key)?;
        let fault = match Record::open(core, key, &entry).and_then(|record| read(&record)) {
            Ok(value) => return Ok(value),
            Err(fault) => fault,
        };
        let (is_current, error) = match fault {
            Fault::Damaged { offset, what } => {
                let path = super::segment::segment_path(&core.segments_dir(), entry.segment);
                (core.index.mark_damaged(key, &entry), StoreError::Corrupt { key, path, offset, what })
            }
            Fault::Store(error) => (core.index.get(key).is_some_and(|found| found.is_at(&entry)), error),
        };
        if is_current || tries == TRIES_MAX {
            return Err(error);
        }
    }
}

pub fn read(core: &Core, key: ShardKey, offset: u64, len: u64) -> Result<Bytes, StoreError> {
    core.check_open()?;
    let shard_len = core.locate(key)?.len();
    if offset.checked_add(len).is_none_or(|end| end > shard_len) {
        return Err(StoreError::OutOfRange { key, offset, len, shard_len });
    }
    if len == 0 {
        return Ok(Bytes::new());
    }
    with_record(core, key, |record| {
        // A record that replaced the one just seen may be shorter.
        if offset + len > record.footer.shard_len {
            let shard_len = record.footer.shard_len;
            return Err(StoreError::OutOfRange { key, offset, len, shard_len }.into());
        }
        record.range(offset, len)
    })
}
