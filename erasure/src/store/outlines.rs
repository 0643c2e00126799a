//! Outlines of shards, kept beside the segments: what a proof of one leaf needs without reading all the others.
//!
//! ```text
//! outlines/NNNNNNNN.out    of segment NNNNNNNN, sparse: of the record at A, at A / 128
//!   head (64 bytes)        magic, version, stamp of the record, length and root of the shard, CRC32C
//!   nodes                  32 bytes each, in the row that `crate::outline` lays them out in
//! ```
//!
//! An outline takes 64 bytes for each leaf of 16 KiB, so half of the place that its record's length gives it: no two overlap.
//!
//! These files are a cache. Nothing in them is synced or believed: a path is given only after it led from the leaf to the
//! root in the record's footer. What is missing, torn, of another record or of a newer release is made again of the shard's
//! bytes, by whoever reads them all anyway.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::error::StoreError;
use super::format::crc32c;
use super::janitor::punch;
use super::read::{Fault, Record};
use crate::outline::{LEAF_BYTES, NODE_BYTES, Outline, leaf_count, leaf_range, path_places, proves};
use crate::stripe::Root;

pub const OUTLINES: &str = "outlines";
const MAGIC: &[u8; 4] = b"MKOL";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 64;
/// Bytes of a segment for one of its outlines.
const SCALE: u64 = 128;
/// A shard of fewer leaves is hashed faster than its outline is read.
const LEAVES_MIN: u64 = 5;

/// A leaf of a shard, and what proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafProof {
    pub leaf: Bytes,
    pub path: Vec<[u8; 32]>,
    /// Of all shards of the blob.
    pub roots: Vec<Root>,
}

/// Which record an outline is of.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub segment: u32,
    pub at: u64,
    pub stamp: u64,
}

/// The folder of one disk.
#[derive(Debug)]
pub struct Outlines {
    dir: PathBuf,
}

fn head(place: &Place, shard_len: u64, root: &Root) -> [u8; HEAD_BYTES] {
    let mut block = [0; HEAD_BYTES];
    block[..4].copy_from_slice(MAGIC);
    block[4..6].copy_from_slice(&VERSION.to_le_bytes());
    block[8..16].copy_from_slice(&place.stamp.to_le_bytes());
    block[16..24].copy_from_slice(&shard_len.to_le_bytes());
    block[24..56].copy_from_slice(root);
    let crc = crc32c(&block[..60]);
    block[60..].copy_from_slice(&crc.to_le_bytes());
    block
}

impl Outlines {
    /// Those of the disk in `disk_dir`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(disk_dir: &Path) -> io::Result<Self> {
        let dir = disk_dir.join(OUTLINES);
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    fn path(&self, segment: u32) -> PathBuf {
        self.dir.join(format!("{segment:08}.out"))
    }

    fn file(&self, place: &Place) -> io::Result<File> {
        File::open(self.path(place.segment))
    }

    /// Keeps an outline. One that is not kept costs time and nothing else.
    pub fn keep(&self, place: &Place, outline: &Outline, shard_len: u64, root: &Root) {
        if leaf_count(shard_len) < LEAVES_MIN {
            return;
        }
        let nodes = outline.nodes();
        let bytes = [&head(place, shard_len, root)[..], nodes.as_flattened()].concat();
        let path = self.path(place.segment);
        let kept = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        if let Err(error) = kept.and_then(|file| file.write_all_at(&bytes, place.at / SCALE)) {
            tracing::debug!(?path, %error, "an outline was not kept; it is made again when it is needed");
        }
    }

    /// Whether one seems to be there.
    pub fn has(&self, place: &Place, shard_len: u64, root: &Root) -> bool {
        leaf_count(shard_len) < LEAVES_MIN
            || self.file(place).is_ok_and(|file| {
                let mut found = [0; HEAD_BYTES];
                file.read_exact_at(&mut found, place.at / SCALE).is_ok()
                    && found == head(place, shard_len, root)
            })
    }

    /// A leaf's path as it is kept, whatever that is worth.
    fn kept_path(&self, place: &Place, shard_len: u64, root: &Root, leaf: u64) -> Option<Vec<[u8; 32]>> {
        let file = self.file(place).ok()?;
        let start = place.at / SCALE;
        let mut found = [0; HEAD_BYTES];
        file.read_exact_at(&mut found, start).ok()?;
        if found != head(place, shard_len, root) {
            return None;
        }
        let read = |node: u64| {
            let mut value = [0; NODE_BYTES as usize];
            let at = start + HEAD_BYTES as u64 + node * NODE_BYTES;
            file.read_exact_at(&mut value, at).ok().map(|()| value)
        };
        path_places(shard_len, leaf)?.into_iter().map(read).collect()
    }

    /// A record was copied: its outline goes with it.
    pub fn carry(&self, from: &Place, to: &Place, shard_len: u64, root: &Root) {
        if leaf_count(shard_len) < LEAVES_MIN || !self.has(from, shard_len, root) {
            return;
        }
        // The head, and two nodes for each leaf but one.
        let mut bytes = vec![0; (leaf_count(shard_len) * 2 * NODE_BYTES) as usize];
        let carried = self.file(from).and_then(|file| {
            file.read_exact_at(&mut bytes, from.at / SCALE)?;
            bytes[..HEAD_BYTES].copy_from_slice(&head(to, shard_len, root));
            let path = self.path(to.segment);
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            file.write_all_at(&bytes, to.at / SCALE)
        });
        if let Err(error) = carried {
            tracing::debug!(segment = to.segment, %error, "an outline stayed behind; it is made again when it is needed");
        }
    }

    /// Nobody needs the outlines of this part of a segment.
    pub fn punch(&self, segment: u32, from: u64, to: u64) {
        if let Ok(file) = OpenOptions::new().write(true).open(self.path(segment)) {
            // The whole pages of it; what is left goes with the segment.
            _ = punch(&file, from / SCALE, to / SCALE);
        }
    }

    /// The segment is gone.
    pub fn remove(&self, segment: u32) {
        _ = std::fs::remove_file(self.path(segment));
    }
}

/// Makes the outline of a record of its bytes, all of which must hold, and keeps it.
pub fn make(outlines: Option<&Outlines>, record: &Record) -> Result<Outline, Fault> {
    let mut outline = Outline::default();
    record.for_each_cell(|start, cell, holds| {
        outline.push(cell);
        record.holds(start, holds)
    })?;
    let root = record.root()?;
    if outline.root() != root {
        return Err(Fault::Damaged { offset: record.body, what: "the shard does not hash to its root" });
    }
    if let Some(outlines) = outlines
        && !outlines.has(&record.place, record.footer.shard_len, &root)
    {
        outlines.keep(&record.place, &outline, record.footer.shard_len, &root);
    }
    Ok(outline)
}

/// Proves a leaf of a record.
pub fn prove(outlines: Option<&Outlines>, record: &Record, leaf: u64) -> Result<LeafProof, Fault> {
    let (shard_len, root) = (record.footer.shard_len, record.root()?);
    let Some((offset, len)) = leaf_range(shard_len, leaf) else {
        let (key, offset) = (record.footer.key, leaf.saturating_mul(LEAF_BYTES));
        return Err(StoreError::OutOfRange { key, offset, len: LEAF_BYTES, shard_len }.into());
    };
    let bytes = record.range(offset, len)?;
    let kept = outlines.and_then(|outlines| outlines.kept_path(&record.place, shard_len, &root, leaf));
    let path = match kept.filter(|path| proves(&root, shard_len, leaf, &bytes, path)) {
        Some(path) => path,
        None => make(outlines, record)?.path(leaf).unwrap_or_default(),
    };
    // Alone, not as a part of the cells that were read with it.
    let leaf = Bytes::copy_from_slice(&bytes);
    Ok(LeafProof { leaf, path, roots: record.footer.roots.clone() })
}

const _: () = assert!(2 * NODE_BYTES * SCALE * 2 == LEAF_BYTES, "an outline takes half of its place");

#[cfg(test)]
mod tests {
    use super::super::segment::segment_path;
    use super::super::superblock::SEGMENTS;
    use super::super::tests::{Sample, put, sample};
    use super::super::{ShardStore, StoreOptions};
    use super::*;
    use crate::ids::{DiskId, ShardKey};

    fn open(dir: &Path) -> ShardStore {
        let options = StoreOptions { reserve_bytes: 0, segment_bytes: 4 << 20, ..StoreOptions::default() };
        ShardStore::open(dir, "c", options).unwrap().0
    }

    async fn assert_proves(store: &ShardStore, sample: &Sample) {
        let (key, len) = (sample.header.key, sample.bytes.len() as u64);
        for leaf in 0..leaf_count(len) {
            let proof = store.prove(key, leaf).await.unwrap();
            assert_eq!(proof.roots, sample.footer.roots);
            let (offset, leaf_len) = leaf_range(len, leaf).unwrap();
            assert_eq!(proof.leaf, sample.bytes.slice(offset as usize..(offset + leaf_len) as usize));
            let root = sample.footer.roots[usize::from(key.index)];
            assert!(proves(&root, len, leaf, &proof.leaf, &proof.path), "leaf {leaf} of {len}");
        }
        let none = store.prove(key, leaf_count(len)).await;
        assert!(matches!(none, Err(StoreError::OutOfRange { .. })));
    }

    fn kept(dir: &Path, key: ShardKey, store: &ShardStore) -> bool {
        let entry = store.core.index.get(key).unwrap();
        let stamp = store.core.superblock.secret.stamp(entry.segment, entry.record_at());
        let place = Place { segment: entry.segment, at: entry.record_at(), stamp };
        let root = store.core.outlines().map(|outlines| {
            let mut found = [0; HEAD_BYTES];
            let file = outlines.file(&place);
            file.and_then(|file| file.read_exact_at(&mut found, place.at / SCALE)).is_ok()
                && found[..4] == *MAGIC
                && found[8..16] == stamp.to_le_bytes()
        });
        assert!(dir.join(OUTLINES).is_dir());
        root == Some(true)
    }

    /// Shards written one after the other, of lengths about the edges of leaves and cells: each is proved with its outline,
    /// and when that is gone, torn, or of other bytes.
    #[tokio::test]
    async fn every_leaf_is_proved_with_and_without_what_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        ShardStore::format(dir.path(), "c", DiskId([1; 16])).unwrap();
        let store = open(dir.path());
        let samples: Vec<Sample> = [1, 65_000, 163_840, 163_841, 300_000, 1_200_000]
            .iter()
            .enumerate()
            .map(|(at, len)| sample(at as u8, 0, *len))
            .collect();
        for sample in &samples {
            put(&store, sample, 70_000).await.unwrap();
        }
        for sample in &samples {
            assert_proves(&store, sample).await;
            let is_kept = kept(dir.path(), sample.header.key, &store);
            assert_eq!(is_kept, leaf_count(sample.bytes.len() as u64) >= LEAVES_MIN);
        }
        let file = dir.path().join(OUTLINES).join("00000000.out");
        let whole = std::fs::read(&file).unwrap();
        let mut torn = whole.clone();
        torn.iter_mut().skip(200).step_by(40).for_each(|byte| *byte ^= 1);
        for bytes in [torn, whole[..whole.len() / 3].to_vec(), vec![7; whole.len()]] {
            std::fs::write(&file, &bytes).unwrap();
            for sample in &samples {
                assert_proves(&store, sample).await;
            }
        }
        std::fs::remove_file(&file).unwrap();
        let big = samples.last().unwrap();
        assert!(!kept(dir.path(), big.header.key, &store));
        // Whoever reads it all anyway makes it again: a scrub, and the first proof.
        store.verify(big.header.key).await.unwrap();
        assert!(kept(dir.path(), big.header.key, &store));
        std::fs::remove_file(&file).unwrap();
        store.prove(big.header.key, 3).await.unwrap();
        assert!(kept(dir.path(), big.header.key, &store));
        store.close().await;
    }

    /// A byte that changed on the disk is proved by nothing, and says so.
    #[tokio::test]
    async fn damage_is_not_proved() {
        use std::os::unix::fs::FileExt as _;
        let dir = tempfile::tempdir().unwrap();
        ShardStore::format(dir.path(), "c", DiskId([1; 16])).unwrap();
        let store = open(dir.path());
        let sample = sample(1, 0, 400_000);
        put(&store, &sample, 70_000).await.unwrap();
        let entry = store.core.index.get(sample.header.key).unwrap();
        let body = entry.record_at() + entry.body_at() as u64;
        let path = segment_path(&dir.path().join(SEGMENTS), entry.segment);
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[sample.bytes[70_000] ^ 1], body + 70_000).unwrap();
        let damaged = store.prove(sample.header.key, 70_000 / LEAF_BYTES).await;
        assert!(matches!(damaged, Err(StoreError::Corrupt { .. })), "{damaged:?}");
        store.close().await;
    }

    /// What moves keeps its outline, and a segment that goes takes its outlines along.
    #[tokio::test]
    async fn outlines_go_where_their_shards_go() {
        let dir = tempfile::tempdir().unwrap();
        ShardStore::format(dir.path(), "c", DiskId([1; 16])).unwrap();
        let store = open(dir.path());
        let samples: Vec<Sample> = (0..12).map(|at| sample(at, 0, 600_000)).collect();
        for sample in &samples {
            put(&store, sample, 600_000).await.unwrap();
        }
        store.close().await;
        drop(store);
        let store = open(dir.path());
        let kept_one = &samples[1];
        let before = store.core.index.get(kept_one.header.key).unwrap();
        let others = samples.iter().filter(|one| one.header.key != kept_one.header.key);
        store.delete(others.map(|one| one.header.key).collect()).await.unwrap();
        while store.compact_step().await.unwrap() {}
        let after = store.core.index.get(kept_one.header.key).unwrap();
        if after.segment != before.segment {
            assert!(kept(dir.path(), kept_one.header.key, &store));
        }
        assert_proves(&store, kept_one).await;
        let gone = |segment: u32| !segment_path(&dir.path().join(SEGMENTS), segment).exists();
        for segment in 0..4u32 {
            let outlines = dir.path().join(OUTLINES).join(format!("{segment:08}.out"));
            assert!(!gone(segment) || !outlines.exists(), "{outlines:?} stays behind");
        }
        store.close().await;
    }
}
