//! What the store promises while nothing crashes, and what it refuses.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::disk::Disk;
use super::format::{self, Secret, Superblock};
use super::segment::{Phase, segment_path};
use super::sim::{Kind, SimDisk};
use super::superblock::SEGMENTS;
use super::*;
use crate::ids::{BlobId, PgId};
use crate::layout::{BlobLayout, CELL_BYTES, Scheme};

pub fn options() -> StoreOptions {
    StoreOptions {
        reserve_bytes: 0,
        segment_bytes: 128 * 1024,
        append_segments: 2,
        writers_max: 64,
        open_files_max: 4,
    }
}

pub fn open(disk: &SimDisk) -> (ShardStore, RecoveryReport) {
    try_open(disk, options()).expect("a disk opens whatever its segments hold")
}

pub fn try_open(disk: &SimDisk, options: StoreOptions) -> Result<(ShardStore, RecoveryReport), StoreError> {
    let superblock = Superblock {
        cluster_id: "test".into(),
        disk: DiskId([7; 16]),
        created_at_ms: 0,
        secret: Secret([9; 32]),
    };
    ShardStore::open_on(Arc::new(disk.clone()) as Arc<dyn Disk>, Path::new("/d"), superblock, options)
}

/// A shard with all that is said about it, made up from two numbers and the blob's length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub header: ShardHeader,
    pub bytes: Bytes,
    pub footer: ShardFooter,
}

pub fn sample(name: u8, version: u8, plain_len: u64) -> Sample {
    let scheme = Scheme { data: 2, parity: 1 };
    let key = ShardKey { blob: BlobId([name; 16]), index: name % 3 };
    let shard_len = BlobLayout::new(scheme, plain_len).unwrap().shard_len();
    let mut bytes = vec![0; shard_len as usize];
    let mut stream = blake3::Hasher::new().update(&[name, version]).finalize_xof();
    stream.fill(&mut bytes);
    let mut roots = vec![[version; 32]; 3];
    roots[usize::from(key.index)] = *blake3::hash(&bytes).as_bytes();
    Sample {
        header: ShardHeader {
            key,
            pg: PgId(u32::from(name)),
            scheme,
            len_max: shard_len,
            opened_at_ms: 1_700_000_000_123,
        },
        bytes: bytes.into(),
        footer: ShardFooter { blob_plain_len: plain_len, roots },
    }
}

pub async fn put(store: &ShardStore, sample: &Sample, piece: usize) -> Result<(), StoreError> {
    let mut writer = store.begin(sample.header.clone()).await?;
    let mut rest = sample.bytes.clone();
    while !rest.is_empty() {
        writer.write(rest.split_to(piece.min(rest.len()))).await?;
    }
    writer.finish(sample.footer.clone()).await
}

pub async fn read_all(store: &ShardStore, key: ShardKey) -> Result<Bytes, StoreError> {
    let len = store.header(key).ok_or(StoreError::Missing { key })?.len;
    store.read(key, 0, len).await
}

async fn assert_holds(store: &ShardStore, samples: &[Sample]) {
    for sample in samples {
        let key = sample.header.key;
        assert_eq!(read_all(store, key).await.unwrap(), sample.bytes);
        assert_eq!(store.footer(key).await.unwrap(), sample.footer);
        store.verify(key).await.unwrap();
    }
    let mut keys: Vec<ShardKey> = samples.iter().map(|sample| sample.header.key).collect();
    keys.sort();
    let listed: Vec<ShardKey> = store.list_after(None, 1000).iter().map(|shard| shard.key).collect();
    assert_eq!(listed, keys);
}

/// Waits until the janitor has done what was asked before.
pub async fn settle(store: &ShardStore) {
    store.close().await;
}

#[tokio::test]
async fn a_shard_reads_back_at_any_range_before_and_after_a_restart() {
    let disk = SimDisk::default();
    let (store, _) = open(&disk);
    let samples: Vec<Sample> = [1, 15, 16, 4096, 131_072, 131_073, 400_000]
        .iter()
        .enumerate()
        .map(|(i, len)| sample(i as u8, 0, *len))
        .collect();
    for (i, sample) in samples.iter().enumerate() {
        put(&store, sample, [1000, 70_000, 300_000][i % 3]).await.unwrap();
    }
    assert_holds(&store, &samples).await;
    let big = &samples[6];
    for (offset, len) in
        [(0, 0), (0, 1), (CELL_BYTES - 1, 2), (CELL_BYTES, 1), (100, 130_000), (big.bytes.len() as u64, 0)]
    {
        let range = offset as usize..(offset + len) as usize;
        assert_eq!(store.read(big.header.key, offset, len).await.unwrap(), big.bytes.slice(range));
    }
    for (offset, len) in [(0, big.bytes.len() as u64 + 1), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
        let read = store.read(big.header.key, offset, len).await;
        assert!(matches!(read, Err(StoreError::OutOfRange { .. })));
    }
    let header = store.header(big.header.key).unwrap();
    assert_eq!(
        (header.pg, header.opened_at_ms, header.len),
        (PgId(6), 1_700_000_000_123, big.bytes.len() as u64)
    );
    store.close().await;
    assert!(matches!(store.read(big.header.key, 0, 1).await, Err(StoreError::Closed { .. })));

    let (store, report) = open(&disk);
    assert_eq!((report.shards, report.scanned_segments, report.unfinished), (7, 0, 0));
    assert_eq!(report.damaged, []);
    assert_holds(&store, &samples).await;
    assert_eq!(store.usage().shard_count, 7);
}
