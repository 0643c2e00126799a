//! The bytes of the log on disk. All numbers are little-endian, all checksums CRC-32C.
//!
//! ```text
//! segment   one sector of header, then frames, each on a sector's edge; the rest is zero or left-over bytes
//! header    "MKWALOG\0" | version u32 | 0 u32 | sequence u64 | first frame's number u64 | salt u64 | crc u32
//! frame     salt u64 | number u64 | records' length u32 | record count u32 | records' crc u32 | header's crc u32
//! record    length u32 | crc u32 | group u32 | kind u8, 0 u8 x 3 | index u64 | term u64 | payload
//! ```
//!
//! A frame is what one sync made durable: no frame is begun before the last one is on disk, so that a frame
//! which does not verify is a torn tail exactly when no later one verifies. Frames are numbered without gaps
//! over all segments. The salt is drawn for each use of a segment's file: what an earlier use left behind, or
//! what a customer's bytes pretend to be, never passes for a frame.

use std::io;

use bytes::Bytes;
use crc_fast::CrcAlgorithm;

use crate::facts::GroupId;

/// A frame never shares a sector with another, so that writing one cannot tear one that is durable.
pub(super) const SECTOR_BYTES: u64 = 512;
pub(super) const FRAME_HEADER_BYTES: usize = 32;
pub(super) const RECORD_HEADER_BYTES: usize = 32;
const SEGMENT_MAGIC: &[u8; 8] = b"MKWALOG\0";
const VERSION: u32 = 1;

pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub sequence: u64,
    pub first_frame: u64,
    pub salt: u64,
}

impl SegmentHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SECTOR_BYTES as usize);
        out.extend_from_slice(SEGMENT_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.first_frame.to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        let crc = crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.resize(SECTOR_BYTES as usize, 0);
        out
    }

    /// `sector`: at least one sector.
    pub fn decode(sector: &[u8]) -> Result<Self, String> {
        if sector.len() < SECTOR_BYTES as usize || &sector[..8] != SEGMENT_MAGIC {
            return Err("it is no log segment".into());
        }
        if crc32c(&sector[..40]) != u32_at(sector, 40) {
            return Err("its header fails the checksum".into());
        }
        match u32_at(sector, 8) {
            VERSION => Ok(Self {
                sequence: u64_at(sector, 16),
                first_frame: u64_at(sector, 24),
                salt: u64_at(sector, 32),
            }),
            version => Err(format!("it has version {version}, this release reads {VERSION}")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Payload: the entry in MessagePack.
    Entry,
    /// Payload: the vote in MessagePack.
    Vote,
    /// Entries after `index` are void; all, if the payload is not empty.
    Truncate,
    /// Entries up to the log id in the payload (MessagePack) are gone.
    Purge,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Entry,
            2 => Self::Vote,
            3 => Self::Truncate,
            4 => Self::Purge,
            _ => return None,
        })
    }

    fn byte(self) -> u8 {
        match self {
            Self::Entry => 1,
            Self::Vote => 2,
            Self::Truncate => 3,
            Self::Purge => 4,
        }
    }
}

/// Appends a record to `out`.
pub(super) fn push_record(
    out: &mut Vec<u8>,
    group: GroupId,
    kind: Kind,
    index: u64,
    term: u64,
    payload: &[u8],
) {
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c(payload).to_le_bytes());
    out.extend_from_slice(&group.0.to_le_bytes());
    out.extend_from_slice(&[kind.byte(), 0, 0, 0]);
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(&term.to_le_bytes());
    out.extend_from_slice(payload);
}

pub(super) struct Record<'a> {
    pub group: GroupId,
    pub kind: Kind,
    pub index: u64,
    pub payload: &'a [u8],
    /// Where it begins in what it was read from.
    pub offset: usize,
}

/// The records of a frame whose checksum holds.
pub(super) fn records(bytes: &[u8]) -> impl Iterator<Item = Result<Record<'_>, String>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == bytes.len() {
            return None;
        }
        let record = record_at(bytes, at);
        at = match &record {
            Ok(record) => at + RECORD_HEADER_BYTES + record.payload.len(),
            Err(_) => bytes.len(),
        };
        Some(record)
    })
}

fn record_at(bytes: &[u8], at: usize) -> Result<Record<'_>, String> {
    let header = bytes.get(at..at + RECORD_HEADER_BYTES).ok_or("a record is cut short")?;
    let start = at + RECORD_HEADER_BYTES;
    let payload = bytes.get(start..start + u32_at(header, 0) as usize).ok_or("a record is cut short")?;
    let kind = Kind::from_byte(header[12])
        .ok_or_else(|| format!("a record has kind {}, which this release does not know", header[12]))?;
    Ok(Record { group: GroupId(u32_at(header, 8)), kind, index: u64_at(header, 16), payload, offset: at })
}

/// The payload of the one record in `bytes`, if it is entry `index`, whole.
pub(super) fn entry_payload(bytes: Bytes, index: u64) -> io::Result<Bytes> {
    let corrupt = |why| io::Error::new(io::ErrorKind::InvalidData, format!("log entry {index}: {why}"));
    let record = record_at(&bytes, 0).map_err(corrupt)?;
    if record.kind != Kind::Entry || record.index != index || crc32c(record.payload) != u32_at(&bytes, 4) {
        return Err(corrupt("it fails its checksum; replace this voter, the others have its facts".into()));
    }
    let len = record.payload.len();
    Ok(bytes.slice(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + len))
}

/// Completes a frame: `frame` starts with room for its header. Pads it to a sector's edge.
pub(super) fn seal_frame(frame: &mut Vec<u8>, salt: u64, number: u64, record_count: u32) {
    let records = &frame[FRAME_HEADER_BYTES..];
    let (len, crc) = (records.len() as u32, crc32c(records));
    frame[0..8].copy_from_slice(&salt.to_le_bytes());
    frame[8..16].copy_from_slice(&number.to_le_bytes());
    frame[16..20].copy_from_slice(&len.to_le_bytes());
    frame[20..24].copy_from_slice(&record_count.to_le_bytes());
    frame[24..28].copy_from_slice(&crc.to_le_bytes());
    let header_crc = crc32c(&frame[..28]);
    frame[28..32].copy_from_slice(&header_crc.to_le_bytes());
    frame.resize(frame.len().next_multiple_of(SECTOR_BYTES as usize), 0);
}

pub(super) struct Frame<'a> {
    pub number: u64,
    pub records: &'a [u8],
    /// Sectors included.
    pub len: usize,
}

/// The frame at the start of `bytes`, if a whole one of this salt is there.
pub(super) fn frame_at(bytes: &[u8], salt: u64) -> Option<Frame<'_>> {
    let header = bytes.get(..FRAME_HEADER_BYTES)?;
    if u64_at(header, 0) != salt || crc32c(&header[..28]) != u32_at(header, 28) {
        return None;
    }
    let end = FRAME_HEADER_BYTES + u32_at(header, 16) as usize;
    let records = bytes.get(FRAME_HEADER_BYTES..end)?;
    if crc32c(records) != u32_at(header, 24) {
        return None;
    }
    Some(Frame {
        number: u64_at(header, 8),
        records,
        len: end.next_multiple_of(SECTOR_BYTES as usize).min(bytes.len()),
    })
}
