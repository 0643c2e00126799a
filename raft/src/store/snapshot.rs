//! A snapshot as a stream of bytes, the same in a file and on the wire. Numbers are little-endian.
//!
//! ```text
//! "MKSNAP\0\0" | version u32 | head's length u32 | head (MessagePack, `Head`)
//! pairs, by ascending key: key's length u32 | value's length u32 | key | value
//! end: 0xFFFF_FFFF u32 | pair count u64 | crc u32 (CRC-32C of all before it)
//! ```

use std::ops::ControlFlow;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use serde::{Deserialize, Serialize};

use super::database::Frozen;
use crate::facts::Timestamp;
use crate::log::disk::DiskFile;
use crate::log::types::SnapshotMeta;

/// Bytes in one piece of a snapshot.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Names of snapshots that are being received.
pub(crate) const INCOMING_PREFIX: &str = "incoming-";
const MAGIC: &[u8; 8] = b"MKSNAP\0\0";
const VERSION: u32 = 1;
const END: u32 = u32::MAX;
const HEAD_BYTES_MAX: usize = 1 << 20;
const KEY_BYTES_MAX: usize = 1 << 20;
const VALUE_BYTES_MAX: usize = 64 << 20;

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub cluster_id: String,
    pub meta: SnapshotMeta,
    pub stamp: Timestamp,
}

impl Head {
    pub(crate) fn check(&self, cluster_id: &str, meta: &SnapshotMeta) -> Result<(), String> {
        if self.cluster_id != cluster_id {
            return Err(format!("it is of cluster {:?}, this node is of {cluster_id:?}", self.cluster_id));
        }
        if self.meta != *meta {
            return Err("it is of another position than announced".into());
        }
        Ok(())
    }
}

/// Turns a view into pieces of at most [`CHUNK_BYTES_MAX`], until `emit` breaks.
///
/// # Errors
/// The store failed.
pub(crate) fn write(
    cluster_id: &str,
    view: &Frozen,
    emit: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
) -> Result<(), crate::machine::kv::KvError> {
    let position = view.position()?;
    let meta = SnapshotMeta { last_log_id: position.applied, last_membership: position.membership };
    let head = Head { cluster_id: cluster_id.into(), meta, stamp: position.stamp };
    let head = rmp_serde::to_vec(&head).map_err(|error| crate::machine::kv::KvError(error.to_string()))?;
    let mut out = Cutter { piece: Vec::new(), digest: Digest::new(CrcAlgorithm::Crc32Iscsi), emit };
    let mut flow = out.put(&[MAGIC, &VERSION.to_le_bytes(), &(head.len() as u32).to_le_bytes(), &head]);
    let mut count = 0u64;
    view.for_each_pair(&mut |key, value| {
        count += 1;
        let lens = [(key.len() as u32).to_le_bytes(), (value.len() as u32).to_le_bytes()].concat();
        flow = out.put(&[&lens, key, value]);
        flow
    })?;
    if flow.is_continue() && out.put(&[&END.to_le_bytes(), &count.to_le_bytes()]).is_continue() {
        let crc = out.digest.finalize() as u32;
        if out.put(&[&crc.to_le_bytes()]).is_continue() {
            let _whole = (out.emit)(Bytes::from(out.piece));
        }
    }
    Ok(())
}

struct Cutter<'a> {
    piece: Vec<u8>,
    digest: Digest,
    emit: &'a mut dyn FnMut(Bytes) -> ControlFlow<()>,
}

impl Cutter<'_> {
    fn put(&mut self, parts: &[&[u8]]) -> ControlFlow<()> {
        for part in parts {
            self.digest.update(part);
            let mut part = *part;
            while !part.is_empty() {
                let take = part.len().min(CHUNK_BYTES_MAX - self.piece.len());
                self.piece.extend_from_slice(&part[..take]);
                part = &part[take..];
                if self.piece.len() == CHUNK_BYTES_MAX {
                    (self.emit)(Bytes::from(std::mem::take(&mut self.piece)))?;
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// Reads a whole snapshot, handing out its pairs; what was handed out counts only if this succeeds.
///
/// # Errors
/// Says what is wrong with it.
pub(crate) fn read(
    file: &dyn DiskFile,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), String>,
) -> Result<Head, String> {
    let len = file.len().map_err(|error| error.to_string())?;
    let mut input = Input {
        file,
        at: 0,
        len,
        buffer: Vec::new(),
        used: 0,
        digest: Digest::new(CrcAlgorithm::Crc32Iscsi),
    };
    if input.take(8)? != MAGIC {
        return Err("it is no snapshot".into());
    }
    let version = input.u32()?;
    if version != VERSION {
        return Err(format!("it has version {version}, this release reads {VERSION}"));
    }
    let head_len = input.len(HEAD_BYTES_MAX)?;
    let head: Head = rmp_serde::from_slice(&input.take(head_len)?).map_err(|error| error.to_string())?;
    let mut count = 0u64;
    let mut last: Option<Vec<u8>> = None;
    loop {
        let key_len = input.u32()?;
        if key_len == END {
            break;
        }
        if key_len as usize > KEY_BYTES_MAX {
            return Err("a key is longer than any may be".into());
        }
        let value_len = input.len(VALUE_BYTES_MAX)?;
        let key = input.take(key_len as usize)?;
        let value = input.take(value_len)?;
        if last.as_ref().is_some_and(|last| *last >= key) {
            return Err("its keys are not in order".into());
        }
        visit(&key, &value)?;
        last = Some(key);
        count += 1;
    }
    let stated = input.take(8)?;
    if stated != count.to_le_bytes() {
        return Err("pairs are missing".into());
    }
    let crc = input.digest.finalize() as u32;
    if input.take(4)? != crc.to_le_bytes() || input.left() != 0 {
        return Err("it fails its checksum".into());
    }
    Ok(head)
}

struct Input<'a> {
    file: &'a dyn DiskFile,
    at: u64,
    len: u64,
    buffer: Vec<u8>,
    used: usize,
    digest: Digest,
}

impl Input<'_> {
    fn left(&self) -> u64 {
        self.len - self.at + (self.buffer.len() - self.used) as u64
    }

    fn take(&mut self, count: usize) -> Result<Vec<u8>, String> {
        if self.left() < count as u64 {
            return Err("it is cut short".into());
        }
        let mut out = Vec::with_capacity(count);
        while out.len() < count {
            if self.used == self.buffer.len() {
                self.buffer.resize((self.len - self.at).min(CHUNK_BYTES_MAX as u64) as usize, 0);
                self.file.read_at(self.at, &mut self.buffer).map_err(|error| error.to_string())?;
                self.at += self.buffer.len() as u64;
                self.used = 0;
            }
            let take = (count - out.len()).min(self.buffer.len() - self.used);
            out.extend_from_slice(&self.buffer[self.used..self.used + take]);
            self.used += take;
        }
        self.digest.update(&out);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, String> {
        let mut out = [0; 4];
        out.copy_from_slice(&self.take(4)?);
        Ok(u32::from_le_bytes(out))
    }

    fn len(&mut self, max: usize) -> Result<usize, String> {
        let len = self.u32()? as usize;
        if len > max { Err(format!("it has a part of {len} bytes, {max} are allowed")) } else { Ok(len) }
    }
}
