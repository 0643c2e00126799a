//! What the store promises while nothing crashes, and what it refuses.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::disk::Disk;
use super::format::{self, Secret, Superblock};
use super::segment::segment_path;
use super::sim::{Kind, SimDisk};
use super::superblock::SEGMENTS;
use super::*;
use crate::ids::{BlobId, PgId};
use crate::layout::{BlobLayout, CELL_BYTES, Scheme};

pub fn options() -> StoreOptions {
    StoreOptions {
        reserve_bytes: 0,
        capacity_bytes_max: 0,
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

#[tokio::test]
async fn the_same_shard_again_changes_nothing_and_another_replaces_it() {
    let disk = SimDisk::default();
    let (store, _) = open(&disk);
    let (first, second) = (sample(1, 0, 50_000), sample(1, 1, 3_000));
    put(&store, &first, 9000).await.unwrap();
    let live_bytes = store.usage().live_bytes;
    put(&store, &first, 9000).await.unwrap();
    assert_eq!(store.usage().live_bytes, live_bytes);
    put(&store, &second, 9000).await.unwrap();
    assert_holds(&store, std::slice::from_ref(&second)).await;
    store.close().await;
    let (store, _) = open(&disk);
    assert_holds(&store, std::slice::from_ref(&second)).await;
    store.delete(vec![second.header.key]).await.unwrap();
    store.close().await;
    assert_holds(&open(&disk).0, &[]).await;
}

/// A shard that its disk has lost silently is written again when it is put again, not taken for granted.
#[tokio::test]
async fn putting_a_damaged_shard_again_mends_it() {
    let disk = SimDisk::default();
    let (store, _) = open(&disk);
    let shard = sample(1, 0, 200_000);
    put(&store, &shard, 90_000).await.unwrap();
    let key = shard.header.key;
    let body = store.core.index.get(key).unwrap();
    disk.flip(&segment_path(&Path::new("/d").join(SEGMENTS), 0), body.record_at() + 70_000, 1);
    let read = read_all(&store, key).await;
    assert!(matches!(read, Err(StoreError::Corrupt { offset, .. }) if offset > CELL_BYTES), "{read:?}");
    assert_eq!(store.read(key, 0, 5).await.unwrap(), shard.bytes.slice(..5), "other cells can be read");
    assert!(store.verify(key).await.is_err());
    put(&store, &shard, 90_000).await.unwrap();
    assert_holds(&store, std::slice::from_ref(&shard)).await;

    // Also where nobody has noticed the damage yet.
    let body = store.core.index.get(key).unwrap();
    let path = segment_path(&Path::new("/d").join(SEGMENTS), body.segment);
    disk.flip(&path, body.record_at() + 70_000, 1);
    put(&store, &shard, 90_000).await.unwrap();
    assert_holds(&store, &[shard]).await;
}

#[tokio::test]
async fn what_contradicts_itself_is_refused_and_leaves_nothing() {
    let disk = SimDisk::default();
    let (store, _) = open(&disk);
    let good = sample(1, 0, 30_000);
    type Spoil = fn(&mut Sample);
    let spoilt: [Spoil; 8] = [
        |sample| sample.footer.blob_plain_len += 40,
        |sample| sample.footer.blob_plain_len = 0,
        |sample| sample.footer.blob_plain_len = u64::MAX,
        |sample| sample.footer.roots[1][0] ^= 1,
        |sample| _ = sample.footer.roots.pop(),
        |sample| sample.header.len_max -= 1,
        |sample| sample.header.key.index = 3,
        |sample| sample.header.scheme = Scheme { data: 0, parity: 255 },
    ];
    for (i, spoil) in spoilt.iter().enumerate() {
        let mut sample = good.clone();
        spoil(&mut sample);
        let refused = put(&store, &sample, 8000).await;
        assert!(matches!(refused, Err(StoreError::Refused { .. })), "{i}: {refused:?}");
    }
    for len_max in [0, format::shard_bytes_max(good.header.scheme) + 1, u64::MAX] {
        let header = ShardHeader { len_max, ..good.header.clone() };
        assert!(matches!(store.begin(header).await, Err(StoreError::Refused { .. })));
    }
    assert_holds(&store, &[]).await;
    put(&store, &good, 8000).await.unwrap();
    assert_holds(&store, &[good]).await;
}

#[tokio::test]
async fn writers_are_bounded_and_give_their_room_back() {
    let disk = SimDisk::default();
    let options = StoreOptions { writers_max: 3, ..options() };
    let (store, _) = try_open(&disk, options).unwrap();
    let mut writers = Vec::new();
    for name in 0..3 {
        let mut writer = store.begin(sample(name, 0, 90_000).header).await.unwrap();
        writer.write(Bytes::from(vec![1; 40_000])).await.unwrap();
        writers.push(writer);
    }
    let refused = store.begin(sample(3, 0, 90_000).header).await;
    assert!(matches!(refused, Err(StoreError::Busy { writers_max: 3 })));
    drop(writers);
    put(&store, &sample(3, 0, 90_000), 10_000).await.unwrap();
    store.close().await;
    let (store, report) = open(&disk);
    assert_eq!((report.shards, report.unfinished, report.scanned_segments), (1, 0, 0));
    assert_holds(&store, &[sample(3, 0, 90_000)]).await;
    store.delete(vec![sample(3, 0, 1).header.key]).await.unwrap();
    store.close().await;
    assert_eq!(disk.files(), [], "a segment without live shards is removed");
}

#[tokio::test]
async fn a_full_disk_refuses_before_it_writes() {
    let disk = SimDisk::default();
    disk.set_free(1_000_000);
    let (store, _) = try_open(&disk, StoreOptions { reserve_bytes: 600_000, ..options() }).unwrap();
    let mut held = Vec::new();
    let refused = loop {
        let next = sample(held.len() as u8, 0, 60_000);
        match put(&store, &next, 20_000).await {
            Ok(()) => held.push(next),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StoreError::DiskFull { reserve: 600_000, .. }), "{refused:?}");
    assert!(disk.files().iter().map(|(_, len)| len).sum::<u64>() <= 400_000);
    let bytes: usize = held.iter().map(|sample| sample.bytes.len()).sum();
    assert!(bytes > 300_000, "the room above the reserve is used: {bytes}");
    assert_holds(&store, &held).await;
    store.delete(held.iter().map(|sample| sample.header.key).collect()).await.unwrap();
    store.close().await;
    let (store, _) = try_open(&disk, StoreOptions { reserve_bytes: 600_000, ..options() }).unwrap();
    put(&store, &held[0], 20_000).await.unwrap();
}

#[tokio::test]
async fn errors_of_the_device_have_their_types_and_a_failed_sync_ends_the_disk() {
    use rustix::io::Errno;
    let disk = SimDisk::default();
    let (store, _) = open(&disk);
    let held = sample(1, 0, 30_000);
    put(&store, &held, 30_000).await.unwrap();

    let other = sample(2, 0, 30_000);
    disk.fail(Kind::Write, Errno::NOSPC);
    assert!(matches!(put(&store, &other, 30_000).await, Err(StoreError::DiskFull { .. })));
    disk.fail(Kind::Write, Errno::ROFS);
    assert!(matches!(put(&store, &other, 30_000).await, Err(StoreError::ReadOnly { .. })));
    disk.fail(Kind::Read, Errno::IO);
    assert!(matches!(read_all(&store, held.header.key).await, Err(StoreError::Device { .. })));
    disk.mend();
    assert_holds(&store, std::slice::from_ref(&held)).await;
    put(&store, &other, 30_000).await.unwrap();

    disk.fail(Kind::Sync, Errno::IO);
    let third = sample(3, 0, 30_000);
    assert!(matches!(put(&store, &third, 30_000).await, Err(StoreError::Failed { .. })));
    disk.mend();
    let syncs = disk.syncs();
    assert!(matches!(put(&store, &third, 30_000).await, Err(StoreError::Failed { .. })));
    assert!(matches!(store.delete(vec![held.header.key]).await, Err(StoreError::Failed { .. })));
    assert!(matches!(read_all(&store, held.header.key).await, Err(StoreError::Failed { .. })));
    store.close().await;
    assert_eq!(disk.syncs(), syncs, "no sync is tried again");

    let (store, _) = open(&disk.after_cut(1));
    assert_eq!(read_all(&store, held.header.key).await.unwrap(), held.bytes);
    assert_eq!(read_all(&store, other.header.key).await.unwrap(), other.bytes);
}

/// Finishes that wait together share one sync.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finishes_are_committed_in_groups() {
    let disk = SimDisk::default();
    let (store, _) = try_open(&disk, StoreOptions { append_segments: 1, ..options() }).unwrap();
    let samples: Vec<Sample> = (0..48).map(|name| sample(name, 0, 1500)).collect();
    put(&store, &samples[0], 9000).await.unwrap();
    let before = disk.syncs();
    let gate = disk.hold_syncs();
    let first = tokio::spawn({
        let (store, sample) = (store.clone(), samples[1].clone());
        async move { put(&store, &sample, 9000).await }
    });
    gate.wait_for_one();
    let others: Vec<_> = samples[2..]
        .iter()
        .map(|sample| {
            let (store, sample) = (store.clone(), sample.clone());
            tokio::spawn(async move { put(&store, &sample, 9000).await })
        })
        .collect();
    let all_wait = async {
        while store.core.queue.waiting() < others.len() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_wait).await.expect("all wait for the sync");
    drop(gate);
    for put in others {
        put.await.unwrap().unwrap();
    }
    first.await.unwrap().unwrap();
    assert_eq!(disk.syncs() - before, 2);
    assert_holds(&store, &samples).await;
}

/// Compaction keeps every live shard, frees what the dead ones held, and comes to an end.
#[tokio::test]
async fn compaction_keeps_what_lives_and_frees_the_rest() {
    let disk = SimDisk::default();
    let (store, _) = open(&disk);
    let samples: Vec<Sample> = (0..250).map(|name| sample(name, 0, 1500)).collect();
    for group in samples.chunks(10) {
        for put in futures::future::join_all(group.iter().map(|sample| put(&store, sample, 9000))).await {
            put.unwrap();
        }
    }
    store.close().await;
    let (store, _) = open(&disk);
    let (living, dying): (Vec<Sample>, Vec<Sample>) =
        samples.into_iter().partition(|sample| sample.header.key.blob.0[0] % 5 == 0);
    store.delete(dying.iter().map(|sample| sample.header.key).collect()).await.unwrap();
    let before = disk.held();
    let mut steps = 0;
    while store.compact_step().await.unwrap() {
        steps += 1;
        assert!(steps < 100);
    }
    assert!(steps > 0);
    assert_holds(&store, &living).await;
    store.close().await;
    assert!(disk.held() * 2 < before, "{} of {before} bytes are held", disk.held());
    let (store, report) = open(&disk);
    assert_eq!(report.damaged, []);
    assert_holds(&store, &living).await;
}

/// A large dead record gives its pages back at once, without compaction.
#[tokio::test]
async fn a_large_dead_record_gives_its_pages_back() {
    let disk = SimDisk::default();
    let (store, _) = open(&disk);
    let (large, small) = (sample(1, 0, 150_000), sample(2, 0, 1500));
    put(&store, &large, 90_000).await.unwrap();
    put(&store, &small, 90_000).await.unwrap();
    store.delete(vec![large.header.key]).await.unwrap();
    store.close().await;
    assert!(disk.held() < 30_000, "{}", disk.held());
    assert_holds(&open(&disk).0, &[small]).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Flipped bits anywhere in the directory's segments: it opens, and a read gives the right bytes or an
    /// error. Damage inside one record concerns that shard alone; damage of an index file none.
    #[test]
    fn flipped_bits_give_no_wrong_byte(
        is_clean: bool,
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u64>(), 1u8..), 1..6),
        is_spread: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            let disk = SimDisk::default();
            let (store, _) = open(&disk);
            let samples: Vec<Sample> = (0..12).map(|name| sample(name, 0, 700 + u64::from(name).pow(2) * 700)).collect();
            for sample in &samples {
                put(&store, sample, 50_000).await.unwrap();
            }
            let entries: BTreeMap<ShardKey, index::Entry> =
                samples.iter().map(|sample| (sample.header.key, store.core.index.get(sample.header.key).unwrap())).collect();
            let disk = if is_clean { store.close().await; disk } else { disk.after_kill() };
            let files: Vec<_> = disk.files().into_iter().filter(|(_, len)| *len > 0).collect();
            // Either all over the files, or within one record.
            let victim = flips[0].0.get(&samples).header.key;
            let mut is_hit = std::collections::BTreeSet::from([victim]);
            for (pick, at, bits) in &flips {
                if is_spread {
                    let (path, len) = pick.get(&files);
                    disk.flip(path, at % len, *bits);
                    if path.extension().unwrap() == "seg" {
                        is_hit.extend(samples.iter().map(|sample| sample.header.key));
                    }
                } else {
                    let entry = &entries[&victim];
                    let path = segment_path(&Path::new("/d").join(SEGMENTS), entry.segment);
                    let bytes = entry.body_at() as u64 + entry.len();
                    disk.flip(&path, entry.record_at() + at % bytes, *bits);
                }
            }
            let (store, _) = open(&disk);
            for sample in &samples {
                let key = sample.header.key;
                match read_all(&store, key).await {
                    Ok(bytes) => assert_eq!(bytes, sample.bytes),
                    Err(error) => assert!(is_hit.contains(&key), "{error}"),
                }
                if let Ok(footer) = store.footer(key).await {
                    assert_eq!(footer, sample.footer);
                }
            }
            // And the damaged ones can be written again.
            for sample in &samples {
                put(&store, sample, 50_000).await.unwrap();
            }
            assert_holds(&store, &samples).await;
            // Until every segment that was found sealed is compacted or kept, nothing is lost.
            while store.compact_step().await.unwrap() {}
            assert_holds(&store, &samples).await;
            store.close().await;
            assert_holds(&open(&disk).0, &samples).await;
        });
    }

    /// Whatever bytes the parsers are given, they answer; and what was encoded reads back.
    #[test]
    fn parsers_take_anything(mut bytes in proptest::collection::vec(any::<u8>(), 0..9000), magic in 0usize..6, stamp: u64) {
        let magics: [&[u8]; 6] = [b"MKSH", b"MKSF", b"MAKAIIDX", b"MAKAIDSK", b"", b"MKSF\x01\0\x03\0"];
        let magic = magics[magic];
        let len = magic.len().min(bytes.len());
        bytes[..len].copy_from_slice(&magic[..len]);
        _ = format::parse_record_header(&bytes);
        _ = format::parse_record_footer(&bytes);
        _ = format::parse_index(&bytes, stamp);
        _ = format::parse_superblock(&bytes);
        // With a checksum that holds, so that the values are looked at.
        if bytes.len() >= 512 {
            for (from, at) in [(5, 60), (0, 60), (0, 508), (0, 88), (0, 180)] {
                let mut block = bytes.clone();
                let crc = format::crc32c(&block[from..at]);
                block[at..at + 4].copy_from_slice(&crc.to_le_bytes());
                _ = format::parse_record_header(&block);
                _ = format::parse_record_footer(&block);
                _ = format::parse_index(&block, stamp);
                _ = format::parse_superblock(&block);
            }
        }
    }
}

/// Shards found after a damaged record whose bytes hold a whole record, stamped with `secret`, at every place
/// where a record may start.
async fn found_in_forged_bytes(secret: Secret) -> (u64, usize) {
    let disk = SimDisk::default();
    let (store, _) = open(&disk);
    let inner = sample(1, 0, 300);
    let mut outer = sample(2, 0, 60_000);
    let body_at = format::body_at(outer.header.scheme, outer.header.len_max);
    let record_at = format::SEGMENT_HEAD_BYTES;
    let mut bytes = outer.bytes.to_vec();
    let first = (record_at + body_at as u64).next_multiple_of(1024) - record_at - body_at as u64;
    for at in (first as usize..bytes.len() - 1024).step_by(1024) {
        let place = record_at + (body_at + at) as u64;
        let stamp = secret.stamp(0, place);
        let (header, header_crc) = format::encode_header(&inner.header, stamp);
        let footer = format::encode_footer(&format::RecordFooter {
            sequence: 1,
            durable_through: 1 << 40,
            blob_plain_len: 300,
            shard_len: inner.bytes.len() as u64,
            key: inner.header.key,
            scheme: inner.header.scheme,
            stamp,
            header_crc,
            pg: inner.header.pg,
            opened_at_ms: 0,
            body_at: format::body_at(inner.header.scheme, inner.header.len_max) as u16,
            roots: inner.footer.roots.clone(),
            cell_crcs: vec![format::crc32c(&inner.bytes)],
        });
        let record = [&header[..], &footer].concat();
        bytes[at..at + record.len()].copy_from_slice(&record);
    }
    outer.footer.roots[usize::from(outer.header.key.index)] = *blake3::hash(&bytes).as_bytes();
    outer.bytes = bytes.into();
    put(&store, &outer, 9000).await.unwrap();
    let disk = disk.after_kill();
    let path = segment_path(&Path::new("/d").join(SEGMENTS), 0);
    disk.flip(&path, record_at + 20, 4);
    {
        // Its footer says all that its header said.
        let (store, report) = open(&disk.after_kill());
        assert_eq!((report.shards, report.damaged), (1, vec![]));
        assert_eq!(read_all(&store, outer.header.key).await.unwrap(), outer.bytes);
        assert_eq!(store.header(outer.header.key).unwrap().pg, outer.header.pg);
    }
    disk.flip(&path, record_at + format::HEADER_BYTES as u64 + 90, 4);
    let (_, report) = open(&disk);
    (report.shards, report.damaged.len())
}

/// A shard's bytes cannot pass for a record, whatever they are: only the disk knows the stamps.
#[tokio::test]
async fn a_record_inside_a_shard_is_never_found() {
    assert_eq!(found_in_forged_bytes(Secret([0; 32])).await, (0, 1));
    let (shards, _) = found_in_forged_bytes(Secret([9; 32])).await;
    assert_eq!(shards, 1, "with the secret it would be found");
}

/// A writer that outlives the close could still write: nobody else gets the directory before it is gone.
#[tokio::test]
async fn a_closed_disk_is_free_when_its_last_writer_is_gone() {
    let home = tempfile::tempdir().unwrap();
    ShardStore::format(home.path(), "a", DiskId([1; 16])).unwrap();
    let open = || ShardStore::open(home.path(), "a", options());
    let (store, _) = open().unwrap();
    let shard = sample(1, 0, 90_000);
    let mut writer = store.begin(shard.header.clone()).await.unwrap();
    writer.write(shard.bytes.slice(..10_000)).await.unwrap();
    store.close().await;
    assert!(matches!(store.begin(shard.header.clone()).await, Err(StoreError::Closed { .. })));
    assert!(matches!(writer.write(shard.bytes.slice(10_000..)).await, Err(StoreError::Closed { .. })));
    assert!(matches!(open(), Err(StoreError::Locked { .. })));
    drop((writer, store));
    let (store, report) = open().unwrap();
    assert_eq!(report.shards, 0);
    put(&store, &shard, 9000).await.unwrap();
    assert_holds(&store, std::slice::from_ref(&shard)).await;
}

/// On the files of this machine: format, refusals, restart.
#[tokio::test]
async fn a_directory_is_a_disk_of_one_cluster_and_one_process() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let open = |cluster: &str| ShardStore::open(dir, cluster, options());
    assert!(matches!(open("a"), Err(StoreError::NotFormatted { .. })));
    assert!(matches!(ShardStore::format(dir, "", DiskId([1; 16])), Err(StoreError::BadClusterId { .. })));
    assert!(matches!(
        ShardStore::format(&dir.join("no"), "a", DiskId([1; 16])),
        Err(StoreError::NoDirectory { .. })
    ));
    ShardStore::format(dir, "a", DiskId([1; 16])).unwrap();
    assert!(matches!(
        ShardStore::format(dir, "a", DiskId([2; 16])),
        Err(StoreError::AlreadyFormatted { .. })
    ));
    assert!(matches!(open("b"), Err(StoreError::OtherCluster { .. })));
    let (store, _) = open("a").unwrap();
    assert_eq!(store.disk_id(), DiskId([1; 16]));
    assert!(matches!(open("a"), Err(StoreError::Locked { .. })));
    let samples: Vec<Sample> = (0..20).map(|name| sample(name, 0, 1 + u64::from(name) * 20_000)).collect();
    for sample in &samples {
        put(&store, sample, 30_000).await.unwrap();
    }
    store.delete(vec![samples[7].header.key]).await.unwrap();
    let held: Vec<Sample> = samples.iter().filter(|sample| **sample != samples[7]).cloned().collect();
    assert_holds(&store, &held).await;
    assert!(store.usage().capacity > 0);
    store.close().await;
    let (store, report) = open("a").unwrap();
    assert_eq!((report.shards, report.scanned_segments, report.damaged.len()), (19, 0, 0));
    assert_holds(&store, &held).await;
    store.close().await;

    // One damaged copy of the superblock is no harm; a newer version is refused, then two damaged copies.
    let path = dir.join("superblock");
    let whole = std::fs::read(&path).unwrap();
    let write = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
    };
    write(&|bytes| bytes[20] ^= 1);
    open("a").unwrap().0.close().await;
    write(&|bytes| {
        for at in [0, 4096] {
            bytes[at + 8] = 2;
            let crc = format::crc32c(&bytes[at..at + 508]);
            bytes[at + 508..at + 512].copy_from_slice(&crc.to_le_bytes());
        }
    });
    assert!(matches!(open("a"), Err(StoreError::NewerFormat { found: 2, known: 1, .. })));
    write(&|bytes| {
        bytes[20] ^= 1;
        bytes[4096 + 20] ^= 1;
    });
    assert!(matches!(open("a"), Err(StoreError::DamagedSuperblock { .. })));
}

/// A disk holds no more than it may, and takes shards again once there is room.
#[tokio::test]
async fn a_disk_holds_no_more_than_it_may() {
    const MAX: u64 = 1 << 20;
    let disk = SimDisk::default();
    let (store, _) = try_open(&disk, StoreOptions { capacity_bytes_max: MAX, ..options() }).unwrap();
    assert_eq!(store.usage().capacity, MAX);
    let mut held = Vec::new();
    let refused = loop {
        let sample = sample(held.len() as u8, 0, 100_000);
        match put(&store, &sample, 50_048).await {
            Ok(()) => held.push(sample.header.key),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StoreError::DiskFull { .. }), "{refused}");
    assert!((14..=20).contains(&held.len()), "{} shards of 50 KB in 1 MiB", held.len());
    store.look_over().await.unwrap();
    assert!(store.usage().held_bytes <= MAX && store.usage().free < 100_000, "{:?}", store.usage());
    store.delete(held).await.unwrap();
    // A thread of the store's own closes segments: how soon they can be compacted is its to say.
    let next = sample(200, 0, 100_000);
    let mut tries = 0;
    while let Err(error) = put(&store, &next, 50_048).await {
        assert!(tries < 5_000, "no room came back: {error}");
        tries += 1;
        store.compact_step().await.unwrap();
        store.look_over().await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    store.close().await;
}

/// A folder that is gone from under the store is noticed, and so is another one in its place; a segment file that was
/// removed takes its shards with it, and no others.
#[tokio::test]
async fn what_goes_from_under_the_store_is_noticed() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("disk");
    std::fs::create_dir(&dir).unwrap();
    ShardStore::format(&dir, "a", DiskId([1; 16])).unwrap();
    let (store, _) = ShardStore::open(&dir, "a", StoreOptions { append_segments: 1, ..options() }).unwrap();
    let samples: Vec<Sample> = (0..12).map(|name| sample(name, 0, 60_000)).collect();
    for sample in &samples {
        put(&store, sample, 30_016).await.unwrap();
    }
    store.check_home().await.unwrap();
    let before = store.usage().shard_count;
    assert_eq!(before, 12);
    let first = dir.join(SEGMENTS).join("00000000.seg");
    std::fs::remove_file(&first).unwrap();
    // It is sealed first, by another thread.
    let mut forgotten = 0;
    for _ in 0..20_000 {
        forgotten = store.look_over().await.unwrap();
        if forgotten > 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!((1..12).contains(&forgotten), "{forgotten} shards were in the file");
    assert_eq!(store.usage().shard_count, before - forgotten);
    assert_eq!(store.look_over().await.unwrap(), 0);

    let away = parent.path().join("away");
    std::fs::rename(&dir, &away).unwrap();
    assert!(matches!(store.check_home().await, Err(StoreError::NoDirectory { .. })));
    std::fs::create_dir_all(dir.join(SEGMENTS)).unwrap();
    assert!(matches!(store.check_home().await, Err(StoreError::NoDirectory { .. })), "another folder");
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::rename(&away, &dir).unwrap();
    store.check_home().await.unwrap();
    store.close().await;
}
