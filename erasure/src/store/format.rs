//! The bytes of a disk: superblock, segment, record, index of a sealed segment. All integers little-endian.
//!
//! ```text
//! superblock                       two copies of one 512-byte block, at 0 and 4096
//! segments/NNNNNNNN.seg            segment head (512 bytes), then records, each at a multiple of 512
//!   record   header (64 bytes)     written first; its state byte alone changes later: live -> dead
//!            footer                written last, in the room that the header implies
//!            cells                 the shard's bytes, at `body_at` from the record's start
//! segments/NNNNNNNN.idx            of a sealed segment: head (64), entries (48 each), then dead marks (16 each)
//! ```
//!
//! Every block carries a magic, a version, a CRC32C and a *stamp*: a hash of the disk's secret, the segment's
//! number and the block's place. Whoever writes shards does not know the secret, so no shard's bytes can pass
//! for a record when a damaged segment is searched for the next one; nor can a block that belongs elsewhere.
//!
//! Every `parse_*` takes any bytes, never panics and allocates no more than a small multiple of them.

use crate::ids::{BlobId, DiskId, PgId, ShardKey};
use crate::layout::{BLOB_BYTES_MAX, BlobLayout, CELL_BYTES, Scheme};
use crate::stripe::{Root, ShardHeader};

/// What this release writes; it reads this and nothing newer.
pub const FORMAT_VERSION: u16 = 1;
/// Records start at multiples of this: no two share a sector.
pub const RECORD_ALIGN: u64 = 512;
/// Where a segment's first record lies.
pub const SEGMENT_HEAD_BYTES: u64 = 512;
pub const HEADER_BYTES: usize = 64;
const FOOTER_FIXED_BYTES: usize = 88;
const BODY_ALIGN: usize = 16;
/// The most that a record's header and footer take together.
pub const META_BYTES_MAX: usize = 6336;
pub const SUPERBLOCK_BYTES: usize = 512;
pub const SUPERBLOCK_COPY_AT: u64 = 4096;
pub const CLUSTER_ID_BYTES_MAX: usize = 128;
pub const INDEX_HEAD_BYTES: usize = 64;
pub const INDEX_ENTRY_BYTES: usize = 48;
pub const DEAD_MARK_BYTES: usize = 16;

const HEADER_MAGIC: &[u8; 4] = b"MKSH";
const FOOTER_MAGIC: &[u8; 4] = b"MKSF";
const SEGMENT_MAGIC: &[u8; 8] = b"MAKAISEG";
const INDEX_MAGIC: &[u8; 8] = b"MAKAIIDX";
const SUPERBLOCK_MAGIC: &[u8; 8] = b"MAKAIDSK";
const DEAD_MARK_MAGIC: &[u8; 4] = b"MKXX";
/// Offset of the state byte in a header; the two states differ in all their bits.
pub const STATE_AT: u64 = 4;
pub const STATE_LIVE: u8 = 0x5a;
pub const STATE_DEAD: u8 = 0xa5;
/// Times are kept in 48 bits.
pub const OPENED_AT_MS_MAX: u64 = (1 << 48) - 1;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("too short")]
    Short,
    #[error("no magic")]
    Magic,
    #[error("a newer release wrote it (format {0})")]
    Version(u16),
    #[error("fails its checksum")]
    Checksum,
    #[error("belongs elsewhere")]
    Stamp,
    #[error("holds impossible values")]
    Value,
}

pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// What a disk draws when it is formatted and never tells: the key of its stamps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl Secret {
    /// The stamp of the block at `at` of segment `segment`.
    pub fn stamp(&self, segment: u32, at: u64) -> u64 {
        let mut place = [0; 12];
        place[..4].copy_from_slice(&segment.to_le_bytes());
        place[4..].copy_from_slice(&at.to_le_bytes());
        get_u64(blake3::keyed_hash(&self.0, &place).as_bytes(), 0)
    }

    /// The stamp of a segment's index file.
    pub fn index_stamp(&self, segment: u32) -> u64 {
        self.stamp(segment, u64::MAX)
    }
}

fn get_u16(bytes: &[u8], at: usize) -> u16 {
    bytes[at..].first_chunk().map_or(0, |raw| u16::from_le_bytes(*raw))
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |raw| u32::from_le_bytes(*raw))
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |raw| u64::from_le_bytes(*raw))
}

fn get_array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..].first_chunk().copied().unwrap_or([0; N])
}

/// The longest shard that a scheme allows.
pub fn shard_bytes_max(scheme: Scheme) -> u64 {
    BlobLayout::new(scheme, BLOB_BYTES_MAX).map_or(0, |layout| layout.shard_len())
}

fn cells_of(shard_len: u64) -> usize {
    // A shard has at most 1025 cells: its length was checked against `shard_bytes_max`.
    usize::try_from(shard_len.div_ceil(CELL_BYTES)).unwrap_or(usize::MAX)
}

fn footer_bytes(roots: usize, cells: usize) -> usize {
    FOOTER_FIXED_BYTES + 32 * roots + 4 * cells + 4
}

/// Where the shard's bytes start in a record of this header.
pub fn body_at(scheme: Scheme, len_max: u64) -> usize {
    (HEADER_BYTES + footer_bytes(scheme.shard_count(), cells_of(len_max))).next_multiple_of(BODY_ALIGN)
}

fn is_body_at(body_at: u16) -> bool {
    let body_at = usize::from(body_at);
    (HEADER_BYTES..=META_BYTES_MAX).contains(&body_at) && body_at.is_multiple_of(BODY_ALIGN)
}

/// Bytes of a segment that a record takes, up to where the next may start.
pub fn record_bytes(body_at: usize, body_len: u64) -> u64 {
    (body_at as u64 + body_len).next_multiple_of(RECORD_ALIGN)
}

/// Whether a header's state byte says dead, even where the rest of the header is damaged. The states differ in
/// all eight bits, so that a few flipped ones change no state.
pub fn is_dead(header: &[u8]) -> bool {
    header.get(STATE_AT as usize).is_some_and(|state| (state ^ STATE_DEAD).count_ones() < 4)
}

/// The head of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHeader {
    pub shard: ShardHeader,
    pub stamp: u64,
    /// The block's checksum, by which its footer names it.
    pub crc: u32,
}

/// Returns the block and its checksum. `opened_at_ms` and `len_max` lie within the format's bounds.
pub fn encode_header(shard: &ShardHeader, stamp: u64) -> ([u8; HEADER_BYTES], u32) {
    let mut block = [0; HEADER_BYTES];
    block[..4].copy_from_slice(HEADER_MAGIC);
    block[4] = STATE_LIVE;
    block[5] = shard.key.index;
    block[6..8].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    block[8..16].copy_from_slice(&stamp.to_le_bytes());
    block[16..32].copy_from_slice(&shard.key.blob.0);
    block[32..36].copy_from_slice(&shard.pg.0.to_le_bytes());
    block[36] = shard.scheme.data;
    block[37] = shard.scheme.parity;
    block[40..48].copy_from_slice(&shard.len_max.to_le_bytes());
    block[48..56].copy_from_slice(&shard.opened_at_ms.to_le_bytes());
    let crc = crc32c(&block[5..60]);
    block[60..].copy_from_slice(&crc.to_le_bytes());
    (block, crc)
}

/// Reads a record's header from the start of `bytes`.
///
/// # Errors
/// The bytes are no header of this format.
pub fn parse_record_header(bytes: &[u8]) -> Result<RecordHeader, FormatError> {
    let block = bytes.get(..HEADER_BYTES).ok_or(FormatError::Short)?;
    if !block.starts_with(HEADER_MAGIC) {
        return Err(FormatError::Magic);
    }
    let crc = get_u32(block, 60);
    if crc32c(&block[5..60]) != crc {
        return Err(FormatError::Checksum);
    }
    if get_u16(block, 6) != FORMAT_VERSION {
        return Err(FormatError::Version(get_u16(block, 6)));
    }
    let shard = ShardHeader {
        key: ShardKey { blob: BlobId(get_array(block, 16)), index: block[5] },
        pg: PgId(get_u32(block, 32)),
        scheme: Scheme::new(block[36], block[37]).map_err(|_| FormatError::Value)?,
        len_max: get_u64(block, 40),
        opened_at_ms: get_u64(block, 48),
    };
    check_header(&shard).map_err(|_| FormatError::Value)?;
    Ok(RecordHeader { shard, stamp: get_u64(block, 8), crc })
}

/// What the format can hold; the message is for whoever asked.
pub fn check_header(shard: &ShardHeader) -> Result<(), String> {
    let scheme = Scheme::new(shard.scheme.data, shard.scheme.parity).map_err(|error| error.to_string())?;
    if usize::from(shard.key.index) >= scheme.shard_count() {
        return Err(format!("index {} in a scheme of {scheme}", shard.key.index));
    }
    if !(1..=shard_bytes_max(scheme)).contains(&shard.len_max) {
        return Err(format!("length {} is not 1 to {}", shard.len_max, shard_bytes_max(scheme)));
    }
    if shard.opened_at_ms > OPENED_AT_MS_MAX {
        return Err(format!("time {} ms is past what the format holds", shard.opened_at_ms));
    }
    Ok(())
}

/// What closes a record. It says all that the header says and a reader needs: a damaged header costs nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordFooter {
    /// The disk's count of finished shards: of two records of one key, the higher is the later.
    pub sequence: u64,
    /// Every record up to this sequence was durable when this one was written.
    pub durable_through: u64,
    pub blob_plain_len: u64,
    pub shard_len: u64,
    pub key: ShardKey,
    pub scheme: Scheme,
    pub stamp: u64,
    /// The checksum of the header it closes.
    pub header_crc: u32,
    pub pg: PgId,
    pub opened_at_ms: u64,
    /// Where the shard's bytes start, from the record's start.
    pub body_at: u16,
    pub roots: Vec<Root>,
    pub cell_crcs: Vec<u32>,
}

impl RecordFooter {
    /// What the index of the segment says of the record at `at`.
    pub fn index_entry(&self, at: u64) -> IndexEntry {
        IndexEntry {
            key: self.key,
            pg: self.pg,
            opened_at_ms: self.opened_at_ms,
            sequence: self.sequence,
            at: (at / RECORD_ALIGN) as u32, // Segments are far below 2 TiB.
            len: self.shard_len as u32,     // Shards are below 65 MiB.
            body_at: self.body_at,
        }
    }
}

pub fn encode_footer(footer: &RecordFooter) -> Vec<u8> {
    let mut block = Vec::with_capacity(footer_bytes(footer.roots.len(), footer.cell_crcs.len()));
    block.extend_from_slice(FOOTER_MAGIC);
    block.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    block.push(footer.roots.len() as u8); // At most SHARDS_MAX: checked when the shard was finished.
    block.push(footer.key.index);
    block.extend_from_slice(&footer.header_crc.to_le_bytes());
    block.extend_from_slice(&(footer.cell_crcs.len() as u32).to_le_bytes());
    block.extend_from_slice(&footer.sequence.to_le_bytes());
    block.extend_from_slice(&footer.durable_through.to_le_bytes());
    block.extend_from_slice(&footer.blob_plain_len.to_le_bytes());
    block.extend_from_slice(&footer.shard_len.to_le_bytes());
    block.extend_from_slice(&footer.stamp.to_le_bytes());
    block.extend_from_slice(&footer.key.blob.0);
    block.extend_from_slice(&[footer.scheme.data, footer.scheme.parity]);
    block.extend_from_slice(&footer.body_at.to_le_bytes());
    block.extend_from_slice(&footer.pg.0.to_le_bytes());
    block.extend_from_slice(&footer.opened_at_ms.to_le_bytes());
    for root in &footer.roots {
        block.extend_from_slice(root);
    }
    for crc in &footer.cell_crcs {
        block.extend_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32c(&block);
    block.extend_from_slice(&crc.to_le_bytes());
    block
}

/// Reads a record's footer from the start of `bytes`.
///
/// # Errors
/// The bytes are no footer of this format.
pub fn parse_record_footer(bytes: &[u8]) -> Result<RecordFooter, FormatError> {
    let fixed = bytes.get(..FOOTER_FIXED_BYTES).ok_or(FormatError::Short)?;
    if !fixed.starts_with(FOOTER_MAGIC) {
        return Err(FormatError::Magic);
    }
    let roots = usize::from(fixed[6]);
    let cells = usize::try_from(get_u32(fixed, 12)).map_err(|_| FormatError::Value)?;
    if roots > usize::from(crate::layout::SHARDS_MAX) || cells > META_BYTES_MAX / 4 {
        return Err(FormatError::Value);
    }
    let block = bytes.get(..footer_bytes(roots, cells)).ok_or(FormatError::Short)?;
    let (body, crc) = block.split_at(block.len() - 4);
    if crc32c(body) != get_u32(crc, 0) {
        return Err(FormatError::Checksum);
    }
    if get_u16(fixed, 4) != FORMAT_VERSION {
        return Err(FormatError::Version(get_u16(fixed, 4)));
    }
    let scheme = Scheme::new(fixed[72], fixed[73]).map_err(|_| FormatError::Value)?;
    let shard_len = get_u64(fixed, 40);
    let blob_plain_len = get_u64(fixed, 32);
    let is_sane = BlobLayout::new(scheme, blob_plain_len)
        .is_some_and(|layout| layout.shard_len() == shard_len)
        && cells_of(shard_len) == cells
        && scheme.shard_count() == roots
        && usize::from(fixed[7]) < roots
        && is_body_at(get_u16(fixed, 74))
        && usize::from(get_u16(fixed, 74)) >= HEADER_BYTES + footer_bytes(roots, cells)
        && get_u64(fixed, 80) <= OPENED_AT_MS_MAX;
    if !is_sane {
        return Err(FormatError::Value);
    }
    let (root_bytes, crc_bytes) = body[FOOTER_FIXED_BYTES..].split_at(32 * roots);
    Ok(RecordFooter {
        sequence: get_u64(fixed, 16),
        durable_through: get_u64(fixed, 24),
        blob_plain_len,
        shard_len,
        scheme,
        key: ShardKey { blob: BlobId(get_array(fixed, 56)), index: fixed[7] },
        stamp: get_u64(fixed, 48),
        header_crc: get_u32(fixed, 8),
        body_at: get_u16(fixed, 74),
        pg: PgId(get_u32(fixed, 76)),
        opened_at_ms: get_u64(fixed, 80),
        roots: root_bytes.as_chunks().0.to_vec(),
        cell_crcs: crc_bytes.as_chunks().0.iter().map(|raw| u32::from_le_bytes(*raw)).collect(),
    })
}

pub fn encode_segment_head(number: u32, stamp: u64) -> [u8; SEGMENT_HEAD_BYTES as usize] {
    let mut block = [0; SEGMENT_HEAD_BYTES as usize];
    block[..8].copy_from_slice(SEGMENT_MAGIC);
    block[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    block[12..16].copy_from_slice(&number.to_le_bytes());
    block[16..24].copy_from_slice(&stamp.to_le_bytes());
    let crc = crc32c(&block[..24]);
    block[24..28].copy_from_slice(&crc.to_le_bytes());
    block
}

/// One shard in a segment's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    pub key: ShardKey,
    pub pg: PgId,
    pub opened_at_ms: u64,
    pub sequence: u64,
    /// Where its record starts, in units of [`RECORD_ALIGN`].
    pub at: u32,
    pub len: u32,
    pub body_at: u16,
}

/// The index of a sealed segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentIndex {
    /// Where the segment ends.
    pub tail: u64,
    pub durable_through: u64,
    pub entries: Vec<IndexEntry>,
    /// Starts of records that died after the segment was sealed, in units of [`RECORD_ALIGN`].
    pub dead: Vec<u32>,
}

/// Encodes all but the dead marks, which are appended with [`encode_dead_mark`].
pub fn encode_index(index: &SegmentIndex, stamp: u64) -> Vec<u8> {
    let mut file = vec![0; INDEX_HEAD_BYTES];
    file.reserve(index.entries.len() * INDEX_ENTRY_BYTES);
    for entry in &index.entries {
        file.extend_from_slice(&entry.at.to_le_bytes());
        file.extend_from_slice(&entry.len.to_le_bytes());
        file.extend_from_slice(&entry.body_at.to_le_bytes());
        file.extend_from_slice(&[entry.key.index, 0]);
        file.extend_from_slice(&entry.pg.0.to_le_bytes());
        file.extend_from_slice(&entry.opened_at_ms.to_le_bytes());
        file.extend_from_slice(&entry.sequence.to_le_bytes());
        file.extend_from_slice(&entry.key.blob.0);
    }
    let entries_crc = crc32c(&file[INDEX_HEAD_BYTES..]);
    file[..8].copy_from_slice(INDEX_MAGIC);
    file[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    file[16..24].copy_from_slice(&stamp.to_le_bytes());
    file[24..32].copy_from_slice(&index.tail.to_le_bytes());
    file[32..40].copy_from_slice(&index.durable_through.to_le_bytes());
    file[40..48].copy_from_slice(&(index.entries.len() as u64).to_le_bytes());
    file[48..52].copy_from_slice(&entries_crc.to_le_bytes());
    let crc = crc32c(&file[..60]);
    file[60..64].copy_from_slice(&crc.to_le_bytes());
    file
}

/// `slot` counts the marks of the file, so that a mark out of place is noticed.
pub fn encode_dead_mark(at: u32, slot: u32, stamp: u64) -> [u8; DEAD_MARK_BYTES] {
    let mut mark = [0; DEAD_MARK_BYTES];
    mark[..4].copy_from_slice(DEAD_MARK_MAGIC);
    mark[4..8].copy_from_slice(&at.to_le_bytes());
    mark[8..12].copy_from_slice(&slot.to_le_bytes());
    let crc = crc32c(&mark[..12]) ^ stamp as u32;
    mark[12..].copy_from_slice(&crc.to_le_bytes());
    mark
}

/// Reads a segment's index file.
///
/// # Errors
/// Any damage, a torn dead mark included: the segment itself tells what the index would have.
pub fn parse_index(file: &[u8], stamp: u64) -> Result<SegmentIndex, FormatError> {
    let head = file.get(..INDEX_HEAD_BYTES).ok_or(FormatError::Short)?;
    if !head.starts_with(INDEX_MAGIC) {
        return Err(FormatError::Magic);
    }
    if crc32c(&head[..60]) != get_u32(head, 60) {
        return Err(FormatError::Checksum);
    }
    if get_u16(head, 8) != FORMAT_VERSION {
        return Err(FormatError::Version(get_u16(head, 8)));
    }
    if get_u64(head, 16) != stamp {
        return Err(FormatError::Stamp);
    }
    let rest = &file[INDEX_HEAD_BYTES..];
    let count = usize::try_from(get_u64(head, 40)).map_err(|_| FormatError::Value)?;
    let entry_bytes = count.checked_mul(INDEX_ENTRY_BYTES).ok_or(FormatError::Value)?;
    let (entries, marks) = rest.split_at_checked(entry_bytes).ok_or(FormatError::Short)?;
    if crc32c(entries) != get_u32(head, 48) {
        return Err(FormatError::Checksum);
    }
    let mut index = SegmentIndex {
        tail: get_u64(head, 24),
        durable_through: get_u64(head, 32),
        entries: Vec::with_capacity(count),
        dead: Vec::with_capacity(marks.len() / DEAD_MARK_BYTES),
    };
    for raw in entries.as_chunks::<INDEX_ENTRY_BYTES>().0 {
        let entry = IndexEntry {
            at: get_u32(raw, 0),
            len: get_u32(raw, 4),
            body_at: get_u16(raw, 8),
            key: ShardKey { blob: BlobId(get_array(raw, 32)), index: raw[10] },
            pg: PgId(get_u32(raw, 12)),
            opened_at_ms: get_u64(raw, 16),
            sequence: get_u64(raw, 24),
        };
        let end = u64::from(entry.at) * RECORD_ALIGN + u64::from(entry.body_at) + u64::from(entry.len);
        let is_sane =
            end <= index.tail && is_body_at(entry.body_at) && entry.opened_at_ms <= OPENED_AT_MS_MAX;
        if !is_sane {
            return Err(FormatError::Value);
        }
        index.entries.push(entry);
    }
    let (marks, torn) = marks.as_chunks::<DEAD_MARK_BYTES>();
    for (slot, mark) in marks.iter().enumerate() {
        let at = get_u32(mark, 4);
        if *mark != encode_dead_mark(at, slot as u32, stamp) {
            return Err(FormatError::Checksum);
        }
        index.dead.push(at);
    }
    if torn.is_empty() { Ok(index) } else { Err(FormatError::Short) }
}

/// What names a disk.
#[derive(Clone, PartialEq, Eq)]
pub struct Superblock {
    pub cluster_id: String,
    pub disk: DiskId,
    pub created_at_ms: u64,
    pub secret: Secret,
}

/// `cluster_id` has at most [`CLUSTER_ID_BYTES_MAX`] bytes.
pub fn encode_superblock(superblock: &Superblock) -> [u8; SUPERBLOCK_BYTES] {
    let mut block = [0; SUPERBLOCK_BYTES];
    let id = superblock.cluster_id.as_bytes();
    block[..8].copy_from_slice(SUPERBLOCK_MAGIC);
    block[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    block[10..12].copy_from_slice(&(id.len() as u16).to_le_bytes());
    block[16..32].copy_from_slice(&superblock.disk.0);
    block[32..64].copy_from_slice(&superblock.secret.0);
    block[64..72].copy_from_slice(&superblock.created_at_ms.to_le_bytes());
    block[128..128 + id.len()].copy_from_slice(id);
    let crc = crc32c(&block[..SUPERBLOCK_BYTES - 4]);
    block[SUPERBLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    block
}

/// Reads one copy of the superblock. Every version keeps the magic, the version's place and the checksum's.
///
/// # Errors
/// The bytes are no superblock that this release reads.
pub fn parse_superblock(bytes: &[u8]) -> Result<Superblock, FormatError> {
    let block = bytes.get(..SUPERBLOCK_BYTES).ok_or(FormatError::Short)?;
    if !block.starts_with(SUPERBLOCK_MAGIC) {
        return Err(FormatError::Magic);
    }
    if crc32c(&block[..SUPERBLOCK_BYTES - 4]) != get_u32(block, SUPERBLOCK_BYTES - 4) {
        return Err(FormatError::Checksum);
    }
    if get_u16(block, 8) != FORMAT_VERSION {
        return Err(FormatError::Version(get_u16(block, 8)));
    }
    let id_len = usize::from(get_u16(block, 10));
    if id_len > CLUSTER_ID_BYTES_MAX {
        return Err(FormatError::Value);
    }
    let id = std::str::from_utf8(&block[128..128 + id_len]).map_err(|_| FormatError::Value)?;
    Ok(Superblock {
        cluster_id: id.to_owned(),
        disk: DiskId(get_array(block, 16)),
        created_at_ms: get_u64(block, 64),
        secret: Secret(get_array(block, 32)),
    })
}
