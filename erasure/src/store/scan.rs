//! Reading a segment by its records alone.
//!
//! A record that cannot be read hides no other: after it, every place where a record may start is tried.

use std::io;

use super::disk::DiskFile;
use super::format::{
    FormatError, HEADER_BYTES, META_BYTES_MAX, RECORD_ALIGN, RecordFooter, RecordHeader, SEGMENT_HEAD_BYTES,
    Secret, body_at, crc32c, is_dead, parse_record_footer, parse_record_header, record_bytes,
};
use super::segment::PAGE;
use crate::ids::ShardKey;
use crate::layout::CELL_BYTES;

const WINDOW_BYTES: usize = 64 * 1024;

/// What a scan meets, in the order of the segment. Holes and abandoned rooms are passed over.
pub enum Found {
    /// The footer holds; the cells were not looked at.
    Record {
        at: u64,
        footer: RecordFooter,
    },
    /// A record that was whole and is dead.
    Dead {
        at: u64,
        key: ShardKey,
    },
    /// A header without a footer: never acknowledged. Its bytes end before `end`.
    Unfinished {
        at: u64,
        end: u64,
    },
    Damaged {
        at: u64,
        what: &'static str,
    },
    /// The device does not give the bytes: they may be whole.
    Unreadable {
        at: u64,
    },
}

/// Why the bytes of a record's head make no record.
enum Head {
    Whole(Box<RecordFooter>),
    Dead {
        skip: u64,
        key: Option<ShardKey>,
    },
    Unfinished(RecordHeader),
    Damaged(&'static str),
    /// Nothing that was ever a record.
    Nothing {
        is_zero: bool,
    },
}

/// Visits the records of a segment of `len` bytes; returns where the last whole or dead one ends.
pub fn scan(
    file: &dyn DiskFile,
    secret: &Secret,
    segment: u32,
    len: u64,
    mut visit: impl FnMut(Found),
) -> u64 {
    let mut window = Window { file, len, bytes: Vec::new(), start: 0 };
    let (mut at, mut tail) = (SEGMENT_HEAD_BYTES, SEGMENT_HEAD_BYTES);
    // Directly after a record there is another, or nothing yet: other bytes there are damage.
    let mut is_expected = true;
    let mut is_unreadable = false;
    while at + (HEADER_BYTES as u64) < len {
        let head = match window.at(at) {
            Ok(bytes) => read_head(bytes, secret, segment, at),
            Err(_) => {
                if !is_unreadable {
                    visit(Found::Unreadable { at });
                }
                (is_unreadable, is_expected) = (true, false);
                at = (at + PAGE) / PAGE * PAGE;
                continue;
            }
        };
        is_unreadable = false;
        match head {
            Head::Whole(footer) if at + u64::from(footer.body_at) + footer.shard_len <= len => {
                let next = at + record_bytes(usize::from(footer.body_at), footer.shard_len);
                visit(Found::Record { at, footer: *footer });
                (at, tail, is_expected) = (next, next, true);
                continue;
            }
            Head::Dead { skip, key } => {
                if let Some(key) = key {
                    visit(Found::Dead { at, key });
                }
                at += skip;
                (tail, is_expected) = (at, key.is_some());
                continue;
            }
            Head::Unfinished(header) => {
                let body_at = body_at(header.shard.scheme, header.shard.len_max);
                visit(Found::Unfinished { at, end: at + record_bytes(body_at, header.shard.len_max) });
            }
            Head::Whole(..) => visit(Found::Damaged { at, what: "the record's end is missing" }),
            Head::Damaged(what) => visit(Found::Damaged { at, what }),
            Head::Nothing { is_zero: false } if is_expected => {
                visit(Found::Damaged { at, what: "no record can be read here" });
            }
            Head::Nothing { .. } => {}
        }
        is_expected = false;
        at += RECORD_ALIGN;
        if at % PAGE == 0 {
            // Holes are most of what lies between records.
            match file.next_data(at) {
                Ok(Some(data)) => at = at.max(data / RECORD_ALIGN * RECORD_ALIGN),
                Ok(None) => break,
                Err(_) => {}
            }
        }
    }
    tail.min(len)
}

fn read_head(bytes: &[u8], secret: &Secret, segment: u32, at: u64) -> Head {
    let rest = bytes.get(HEADER_BYTES..).unwrap_or_default();
    let (header, footer) = (parse_record_header(bytes).ok(), parse_record_footer(rest));
    if header.is_none() && footer.is_err() {
        return Head::Nothing { is_zero: bytes.iter().take(HEADER_BYTES).all(|byte| *byte == 0) };
    }
    // A shard's own bytes can look like a record: the stamp tells.
    let stamp = secret.stamp(segment, at);
    let header = header.filter(|header| header.stamp == stamp);
    let header_crc = header.as_ref().map(|header| header.crc);
    let is_whole = |footer: &RecordFooter| {
        footer.stamp == stamp && header_crc.is_none_or(|crc| footer.header_crc == crc)
    };
    match (footer, header) {
        (Ok(footer), _) if is_whole(&footer) => {
            if is_dead(bytes) {
                let skip = record_bytes(usize::from(footer.body_at), footer.shard_len);
                Head::Dead { skip, key: Some(footer.key) }
            } else {
                Head::Whole(Box::new(footer))
            }
        }
        (_, Some(_)) if is_dead(bytes) => Head::Dead { skip: RECORD_ALIGN, key: None },
        (Ok(_), Some(_)) => Head::Damaged("the footer is of another record"),
        (Err(FormatError::Version(_)), Some(_)) => Head::Damaged("the footer is of another format version"),
        (Err(_), Some(header)) if rest.iter().take(4).all(|byte| *byte == 0) => Head::Unfinished(header),
        (Err(_), Some(_)) => Head::Damaged("the footer fails its checksum"),
        (_, None) => Head::Nothing { is_zero: false },
    }
}

struct Window<'f> {
    file: &'f dyn DiskFile,
    len: u64,
    bytes: Vec<u8>,
    start: u64,
}

impl Window<'_> {
    /// The bytes from `at`: a record's whole head, or up to the segment's end.
    fn at(&mut self, at: u64) -> io::Result<&[u8]> {
        let wanted = (META_BYTES_MAX as u64).min(self.len - at);
        let have = self.start..self.start + self.bytes.len() as u64;
        if at < have.start || at + wanted > have.end {
            self.start = at;
            self.read(at, WINDOW_BYTES).or_else(|_| self.read(at, wanted as usize)).or_else(|_| {
                // The head may lie in a page that can be read, before one that cannot.
                self.read(at, (PAGE - at % PAGE).min(wanted) as usize)
            })?;
        }
        Ok(&self.bytes[(at - self.start) as usize..])
    }

    fn read(&mut self, at: u64, wanted: usize) -> io::Result<()> {
        let wanted = (self.len - at).min(wanted as u64) as usize;
        self.bytes.resize(wanted, 0);
        match self.file.read_at(&mut self.bytes, at) {
            Ok(read) => {
                self.bytes.truncate(read);
                Ok(())
            }
            Err(error) => {
                self.bytes.clear();
                Err(error)
            }
        }
    }
}

/// Whether every cell of a record holds, read one by one from `body`, where the record's bytes start.
pub fn cells_hold(file: &dyn DiskFile, body: u64, footer: &RecordFooter) -> io::Result<bool> {
    let mut cell = vec![0; CELL_BYTES.min(footer.shard_len) as usize];
    for (index, crc) in footer.cell_crcs.iter().enumerate() {
        let start = index as u64 * CELL_BYTES;
        let cell_len = CELL_BYTES.min(footer.shard_len - start) as usize;
        let cell = &mut cell[..cell_len];
        if file.read_at(cell, body + start)? != cell.len() || crc32c(cell) != *crc {
            return Ok(false);
        }
    }
    Ok(true)
}
