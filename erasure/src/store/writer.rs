//! A shard on its way to the disk.
//!
//! Bytes gather up to [`PIECE_BYTES`], then one blocking task hashes them and writes them into the shard's
//! room while the next ones arrive. A writer holds at most two pieces.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::core::Core;
use super::error::StoreError;
use super::flusher::Finish;
use super::format::{RecordFooter, body_at, check_header, crc32c, encode_header, record_bytes};
use super::outlines::Place;
use super::read::with_record;
use super::segment::Room;
use crate::layout::{BlobLayout, CELL_BYTES};
use crate::outline::Outline;
use crate::stripe::{ShardFooter, ShardHeader};

/// A shard of an object of 1 MiB under 2+2 is one piece.
const PIECE_BYTES: u64 = 576 * 1024;

/// Counts one open writer.
pub struct Permit(Arc<Core>);

impl Permit {
    /// Whoever holds one may write to segments: a closing store keeps its directory until all are back. So the
    /// permit comes first and the look whether the store is open second.
    pub fn take(core: &Arc<Core>) -> Result<Self, StoreError> {
        let writers_max = core.options.writers_max;
        let taken = core.writers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |open| {
            (open < writers_max).then_some(open + 1)
        });
        match taken {
            Ok(_) => {
                let permit = Self(Arc::clone(core));
                core.check_open()?;
                Ok(permit)
            }
            Err(_) => Err(StoreError::Busy { writers_max }),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.writers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A shard being written. Dropped before [`ShardWriter::finish`], its room is given back.
pub struct ShardWriter {
    core: Arc<Core>,
    header: ShardHeader,
    pen: Pen,
    pieces: Vec<Bytes>,
    /// Bytes in `pieces`.
    gathered: u64,
    /// Bytes given to [`ShardWriter::write`] so far.
    given: u64,
}

enum Pen {
    Idle(Box<Draft>),
    Writing(JoinHandle<Result<Box<Draft>, StoreError>>),
    /// An error was reported.
    Broken,
}

/// What a blocking task works on.
struct Draft {
    room: Room,
    permit: Permit,
    header: ShardHeader,
    header_crc: u32,
    body_at: usize,
    outline: Outline,
    /// Checksums of whole cells, and the bytes of the cell that is not whole yet.
    cell_crcs: Vec<u32>,
    open_cell: crc_fast::Digest,
    open_cell_len: u64,
    written: u64,
}

impl ShardWriter {
    pub(super) async fn begin(core: &Arc<Core>, header: ShardHeader) -> Result<Self, StoreError> {
        check_header(&header).map_err(|why| StoreError::Refused { key: header.key, why })?;
        let permit = Permit::take(core)?;
        let body_at = body_at(header.scheme, header.len_max);
        let bytes = record_bytes(body_at, header.len_max);
        let room = match core.segments.try_room(core, bytes) {
            Some(room) => room,
            None => {
                let core = Arc::clone(core);
                let reserve = core.options.reserve_bytes;
                blocking(move || core.segments.room(&core, bytes, reserve)).await?
            }
        };
        let draft = Draft::new(core, room, permit, header.clone(), body_at);
        let pen = Pen::Idle(Box::new(draft));
        Ok(Self { core: Arc::clone(core), header, pen, pieces: Vec::new(), gathered: 0, given: 0 })
    }

    fn refused(&self, why: String) -> StoreError {
        StoreError::Refused { key: self.header.key, why }
    }

    /// Appends bytes; waits while the disk is behind. After an error the writer only gives errors.
    ///
    /// # Errors
    /// More bytes than the header set aside, or the disk did not take them.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.core.check_open()?;
        let len_max = self.header.len_max;
        let given = self.given + bytes.len() as u64;
        if given > len_max {
            self.pen = Pen::Broken;
            return Err(self.refused(format!("{given} bytes where {len_max} were set aside")));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.given = given;
        self.gathered += bytes.len() as u64;
        self.pieces.push(bytes);
        if self.gathered >= PIECE_BYTES {
            let mut draft = self.draft().await?;
            let pieces = mem::take(&mut self.pieces);
            self.gathered = 0;
            self.pen = Pen::Writing(tokio::task::spawn_blocking(move || {
                draft.append(&pieces)?;
                Ok(draft)
            }));
        }
        Ok(())
    }

    /// The draft, once nothing is being written to it.
    async fn draft(&mut self) -> Result<Box<Draft>, StoreError> {
        if let Pen::Writing(task) = &mut self.pen {
            let written = joined(task.await);
            self.pen = Pen::Broken;
            return written;
        }
        match mem::replace(&mut self.pen, Pen::Broken) {
            Pen::Idle(draft) => Ok(draft),
            Pen::Writing(_) | Pen::Broken => Err(self.refused("an earlier write failed".into())),
        }
    }

    /// Returns once the shard is durable and can be read. A shard that is there already with the same roots
    /// and holds is left as it is; another one of this key is replaced.
    ///
    /// # Errors
    /// The footer does not fit the bytes written, or the disk failed.
    pub async fn finish(mut self, footer: ShardFooter) -> Result<(), StoreError> {
        self.core.check_open()?;
        let mut draft = self.draft().await?;
        let pieces = mem::take(&mut self.pieces);
        let core = Arc::clone(&self.core);
        let (reply, answer) = oneshot::channel();
        let is_there = blocking(move || {
            draft.append(&pieces)?;
            let footer = draft.close(footer)?;
            if is_held(&core, &footer) {
                return Ok(true);
            }
            let Draft { room, permit, outline, .. } = *draft;
            let root = footer.roots[usize::from(footer.key.index)];
            if let Some(outlines) = core.outlines() {
                let place = Place { segment: room.segment.number, at: room.at, stamp: footer.stamp };
                outlines.keep(&place, &outline, footer.shard_len, &root);
            }
            let finish = Finish { room, footer, copy_of: None, permit: Some(permit), reply };
            match core.queue.finish(finish) {
                Ok(()) => Ok(false),
                Err(_) => Err(StoreError::Closed { path: core.dir.clone() }),
            }
        })
        .await?;
        if is_there {
            return Ok(());
        }
        match answer.await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::Closed { path: self.core.dir.clone() }),
        }
    }
}

/// Whether the disk holds this very shard already, whole. Its cells are read: an answer of success says that
/// the shard is durable, not that it once was.
fn is_held(core: &Core, new: &RecordFooter) -> bool {
    let is_known = core.index.get(new.key).is_some_and(|entry| !entry.is_damaged());
    is_known
        && with_record(core, new.key, |record| {
            let old = &record.footer;
            let is_same = old.roots == new.roots
                && old.blob_plain_len == new.blob_plain_len
                && old.scheme == new.scheme;
            if is_same { record.check().map(|()| true) } else { Ok(false) }
        })
        .unwrap_or(false)
}

impl Draft {
    fn new(core: &Arc<Core>, room: Room, permit: Permit, header: ShardHeader, body_at: usize) -> Self {
        let stamp = core.superblock.secret.stamp(room.segment.number, room.at);
        let (_, header_crc) = encode_header(&header, stamp);
        Self {
            room,
            permit,
            header,
            header_crc,
            body_at,
            outline: Outline::default(),
            cell_crcs: Vec::new(),
            open_cell: crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi),
            open_cell_len: 0,
            written: 0,
        }
    }

    fn stamp(&self) -> u64 {
        self.permit.0.superblock.secret.stamp(self.room.segment.number, self.room.at)
    }

    fn append(&mut self, pieces: &[Bytes]) -> Result<(), StoreError> {
        /// Pieces below this are joined: one write costs more than the copy.
        const SMALL_PIECE_BYTES: usize = 16 * 1024;
        if !self.room.is_written {
            self.room.is_written = true;
            let (header, _) = encode_header(&self.header, self.stamp());
            self.put(&header, self.room.at)?;
        }
        let is_small = pieces.iter().all(|piece| piece.len() < SMALL_PIECE_BYTES);
        if pieces.len() > 1 && is_small {
            return self.append_one(&pieces.concat());
        }
        pieces.iter().try_for_each(|piece| self.append_one(piece))
    }

    fn append_one(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.outline.push(bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            let missing = (CELL_BYTES - self.open_cell_len) as usize;
            let (part, after) = rest.split_at(missing.min(rest.len()));
            if part.len() == CELL_BYTES as usize {
                self.cell_crcs.push(crc32c(part));
            } else {
                self.open_cell.update(part);
                self.open_cell_len += part.len() as u64;
                if self.open_cell_len == CELL_BYTES {
                    self.close_cell();
                }
            }
            rest = after;
        }
        let at = self.room.at + self.body_at as u64 + self.written;
        self.put(bytes, at)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn close_cell(&mut self) {
        self.cell_crcs.push(self.open_cell.finalize_reset() as u32); // A CRC32 has 32 bits.
        self.open_cell_len = 0;
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<(), StoreError> {
        let segment = &self.room.segment;
        self.room.file.write_at(bytes, at).map_err(|error| {
            match StoreError::io("write to", &segment.path, error) {
                StoreError::DiskFull { path, .. } => {
                    let core = &self.permit.0;
                    let free = core.space().map_or(0, |space| space.free);
                    StoreError::DiskFull { path, free, reserve: core.options.reserve_bytes }
                }
                other => other,
            }
        })
    }

    /// Checks that the bytes are those that the footer speaks of.
    fn close(&mut self, footer: ShardFooter) -> Result<RecordFooter, StoreError> {
        let (key, scheme) = (self.header.key, self.header.scheme);
        let refused = |why: String| StoreError::Refused { key, why };
        let layout = BlobLayout::new(scheme, footer.blob_plain_len)
            .ok_or_else(|| refused(format!("no blob has {} bytes", footer.blob_plain_len)))?;
        if footer.roots.len() != scheme.shard_count() {
            return Err(refused(format!("{} roots for {scheme}", footer.roots.len())));
        }
        if layout.shard_len() != self.written {
            let (written, wanted) = (self.written, layout.shard_len());
            return Err(refused(format!("{written} bytes were written, the blob's shards have {wanted}")));
        }
        if self.outline.root() != footer.roots[usize::from(key.index)] {
            return Err(refused("the bytes written do not hash to the shard's root".into()));
        }
        if self.open_cell_len > 0 {
            self.close_cell();
        }
        Ok(RecordFooter {
            sequence: 0,
            durable_through: 0,
            blob_plain_len: footer.blob_plain_len,
            shard_len: self.written,
            key,
            scheme,
            stamp: self.stamp(),
            header_crc: self.header_crc,
            pg: self.header.pg,
            opened_at_ms: self.header.opened_at_ms,
            body_at: self.body_at as u16, // At most META_BYTES_MAX.
            roots: footer.roots,
            cell_crcs: mem::take(&mut self.cell_crcs),
        })
    }
}

/// Runs `work` where blocking is allowed.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    joined(tokio::task::spawn_blocking(work).await)
}

fn joined<T>(result: Result<Result<T, StoreError>, tokio::task::JoinError>) -> Result<T, StoreError> {
    match result {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime shuts down: so does the disk.
        Err(_) => Err(StoreError::Closed { path: std::path::PathBuf::new() }),
    }
}
