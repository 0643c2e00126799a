//! Whole blobs over disks that fail, lie, stall and die half-way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::codec::Codec;
use crate::layout::{BlobLayout, PAGE_BYTES, TAG_BYTES};
use crate::seal::DataKey;

/// What a disk does instead of its duty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Dead,
    /// Answers reads with other bytes of the right length.
    Lies,
    /// Takes requests and never answers.
    Stalls,
    /// Fails a write after this many sends.
    FailsAfter(usize),
}

/// Header, bytes and footer of a finished shard.
type Held = HashMap<(DiskId, ShardKey), (ShardHeader, Vec<u8>, ShardFooter)>;

#[derive(Default)]
struct World {
    held: Arc<Mutex<Held>>,
    faults: Mutex<BTreeMap<DiskId, Fault>>,
    bytes_read: AtomicU64,
}

impl World {
    fn fault(&self, disk: DiskId) -> Option<Fault> {
        self.faults.lock().unwrap().get(&disk).copied()
    }

    fn set(&self, disk: DiskId, fault: Fault) {
        self.faults.lock().unwrap().insert(disk, fault);
    }
}

struct Sink {
    held: Arc<Mutex<Held>>,
    disk: DiskId,
    header: ShardHeader,
    bytes: Vec<u8>,
    sends: usize,
    fault: Option<Fault>,
}

#[async_trait]
impl ShardSink for Sink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), PeerError> {
        self.sends += 1;
        if matches!(self.fault, Some(Fault::FailsAfter(sends)) if self.sends > sends) {
            return Err(PeerError::Unreachable("it died half-way".into()));
        }
        self.bytes.extend_from_slice(&bytes);
        assert!(self.bytes.len() as u64 <= self.header.len_max, "more bytes than announced");
        Ok(())
    }

    async fn finish(self: Box<Self>, footer: ShardFooter) -> Result<(), PeerError> {
        if self.fault.is_some_and(|fault| matches!(fault, Fault::FailsAfter(_))) {
            return Err(PeerError::Unreachable("it died half-way".into()));
        }
        let layout = BlobLayout::new(self.header.scheme, footer.blob_plain_len).unwrap();
        assert_eq!(self.bytes.len() as u64, layout.shard_len());
        assert_eq!(blake3::hash(&self.bytes).as_bytes(), &footer.roots[usize::from(self.header.key.index)]);
        self.held.lock().unwrap().insert((self.disk, self.header.key), (self.header, self.bytes, footer));
        Ok(())
    }
}

#[async_trait]
impl ShardPeers for World {
    async fn put(&self, disk: DiskId, header: ShardHeader) -> Result<Box<dyn ShardSink>, PeerError> {
        let fault = self.fault(disk);
        match fault {
            Some(Fault::Dead) => return Err(PeerError::Unreachable("dead".into())),
            Some(Fault::Stalls) => std::future::pending().await,
            _ => {}
        }
        Ok(Box::new(Sink { held: Arc::clone(&self.held), disk, header, bytes: vec![], sends: 0, fault }))
    }

    async fn read(&self, disk: DiskId, key: ShardKey, offset: u64, len: u64) -> Result<Bytes, PeerError> {
        let fault = self.fault(disk);
        match fault {
            Some(Fault::Dead | Fault::FailsAfter(_)) => return Err(PeerError::Unreachable("dead".into())),
            Some(Fault::Stalls) => std::future::pending().await,
            _ => {}
        }
        let held = self.held.lock().unwrap();
        let (_, bytes, _) = held.get(&(disk, key)).ok_or(PeerError::Missing)?;
        let mut bytes = bytes[offset as usize..(offset + len) as usize].to_vec();
        self.bytes_read.fetch_add(len, Ordering::Relaxed);
        if fault == Some(Fault::Lies) {
            bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
        }
        Ok(bytes.into())
    }

    async fn footer(&self, disk: DiskId, key: ShardKey) -> Result<ShardFooter, PeerError> {
        match self.fault(disk) {
            Some(Fault::Dead | Fault::Stalls | Fault::FailsAfter(_)) => {
                return Err(PeerError::Unreachable("dead".into()));
            }
            Some(Fault::Lies) => return Ok(ShardFooter { blob_plain_len: 1, roots: vec![[0; 32]; 4] }),
            None => {}
        }
        self.held
            .lock()
            .unwrap()
            .get(&(disk, key))
            .map(|(_, _, footer)| footer.clone())
            .ok_or(PeerError::Missing)
    }

    async fn delete(&self, disk: DiskId, keys: Vec<ShardKey>) -> Result<(), PeerError> {
        self.held.lock().unwrap().retain(|(at, key), _| *at != disk || !keys.contains(key));
        Ok(())
    }

    fn is_up(&self, disk: DiskId) -> bool {
        self.fault(disk) != Some(Fault::Dead)
    }
}

struct Blob {
    world: Arc<World>,
    peers: Arc<dyn ShardPeers>,
    codec: Codec,
    plan: WritePlan,
    key: DataKey,
    plain: Vec<u8>,
}

impl Blob {
    fn new(scheme: Scheme, plain_len: usize) -> Self {
        let world = Arc::new(World::default());
        let mut plain = vec![0; plain_len];
        blake3::Hasher::new_derive_key("test content").finalize_xof().fill(&mut plain);
        let plan = WritePlan {
            blob: BlobId([9; 16]),
            pg: PgId(1),
            scheme,
            disks: (0..scheme.shard_count()).map(|at| DiskId([at as u8 + 1; 16])).collect(),
            plain_len_max: plain_len as u64,
            opened_at_ms: 0,
            write_quorum: scheme.write_quorum(),
        };
        let peers: Arc<dyn ShardPeers> = Arc::<World>::clone(&world);
        Self { peers, world, codec: Codec::new(scheme).unwrap(), plan, key: DataKey([3; 32]), plain }
    }

    async fn write(&self, step: usize) -> Result<WrittenBlob, StripeError> {
        let mut writer = BlobWriter::start(&self.peers, self.codec.clone(), &self.key, self.plan.clone())?;
        for piece in self.plain.chunks(step) {
            writer.write(piece).await?;
        }
        writer.finish().await
    }

    async fn read(&self, range: std::ops::Range<u64>) -> Result<Vec<u8>, StripeError> {
        let source = BlobSource {
            blob: self.plan.blob,
            scheme: self.plan.scheme,
            plain_len: self.plain.len() as u64,
            disks: self.plan.disks.clone(),
            key: self.key.clone(),
        };
        Ok(read_range(&self.peers, &self.codec, &source, range).await?.concat())
    }

    /// Waits until every lane that can finish has: a quorum returns earlier.
    async fn settle(&self, count: usize) {
        while self.world.held.lock().unwrap().len() < count {
            tokio::task::yield_now().await;
        }
    }
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(future)
}

fn schemes() -> impl Strategy<Value = Scheme> {
    prop::sample::select(vec![(1, 0), (1, 2), (2, 2), (4, 2), (4, 3), (6, 4)])
        .prop_map(|(data, parity)| Scheme { data, parity })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any range reads back while at most m disks are dead or lying, in any mix.
    #[test]
    fn a_read_survives_any_m_faults(
        scheme in schemes(),
        plain_len in prop_oneof![1usize..200, 60_000usize..70_000, 1usize..900_000],
        step in 1usize..200_000,
        bad in prop::collection::btree_map(0usize..64, any::<bool>(), 0..5),
        a: u64, b: u64,
    ) {
        run(async {
            let blob = Blob::new(scheme, plain_len);
            blob.write(step).await.unwrap();
            blob.settle(scheme.shard_count()).await;
            let width = scheme.shard_count();
            let bad: BTreeMap<usize, bool> = bad.into_iter().map(|(at, lies)| (at % width, lies)).collect();
            for (at, lies) in bad.into_iter().take(usize::from(scheme.parity)) {
                blob.world.set(blob.plan.disks[at], if lies { Fault::Lies } else { Fault::Dead });
            }
            let start = a % plain_len as u64;
            let end = start + 1 + b % (plain_len as u64 - start);
            let read = blob.read(start..end).await.unwrap();
            prop_assert!(read == blob.plain[start as usize..end as usize]);
            Ok(())
        })?;
    }

    /// A write that reports success left k readable shards at least, whatever died under it; and with a quorum of
    /// good disks it does succeed.
    #[test]
    fn a_reported_write_is_there(
        scheme in schemes(),
        plain_len in 1usize..900_000,
        faults in prop::collection::vec(prop::option::of(0usize..6), 10),
    ) {
        run(async {
            let blob = Blob::new(scheme, plain_len);
            let width = scheme.shard_count();
            for (disk, sends) in blob.plan.disks.iter().zip(&faults) {
                match sends {
                    Some(5) => blob.world.set(*disk, Fault::Dead),
                    Some(sends) => blob.world.set(*disk, Fault::FailsAfter(*sends)),
                    None => {}
                }
            }
            let good = faults[..width].iter().filter(|fault| fault.is_none()).count();
            let written = blob.write(100_000).await;
            prop_assert_eq!(written.is_ok(), good >= usize::from(scheme.data), "{} good disks", good);
            if let Ok(written) = written {
                prop_assert!(width - written.missing.len() >= usize::from(scheme.data));
                for index in &written.missing {
                    blob.world.set(blob.plan.disks[usize::from(*index)], Fault::Dead);
                }
                prop_assert!(blob.read(0..plain_len as u64).await.unwrap() == blob.plain);
            }
            Ok(())
        })?;
    }

    /// Lost shards come back byte for byte past dead and lying sources, the liars named, past dead targets, and at the cost of
    /// one; or nothing is written.
    #[test]
    fn rebuilt_shards_are_the_shards_that_were(
        scheme in schemes(),
        plain_len in 1usize..900_000,
        lost in prop::collection::btree_set(0usize..64, 1..4),
        bad in prop::collection::btree_map(0usize..64, any::<bool>(), 0..4),
        dead_target: bool,
    ) {
        run(async {
            let blob = Blob::new(scheme, plain_len);
            let width = scheme.shard_count();
            let written = blob.write(77_777).await.unwrap();
            blob.settle(width).await;
            let lost: BTreeSet<usize> = lost.into_iter().map(|at| at % width).collect();
            let key = |index: usize| ShardKey { blob: blob.plan.blob, index: index as u8 };
            let target = |index: usize| DiskId([200 + index as u8; 16]);
            let mut disks = blob.plan.disks.clone();
            let mut was = BTreeMap::new();
            for index in &lost {
                let place = (blob.plan.disks[*index], key(*index));
                was.insert(*index, blob.world.held.lock().unwrap().remove(&place).unwrap().1);
                disks[*index] = target(*index);
            }
            let bad: BTreeMap<usize, bool> = bad.into_iter().map(|(at, lies)| (at % width, lies)).collect();
            let bad: BTreeMap<usize, bool> = bad.into_iter().filter(|(at, _)| !lost.contains(at)).collect();
            for (at, lies) in &bad {
                blob.world.set(blob.plan.disks[*at], if *lies { Fault::Lies } else { Fault::Dead });
            }
            // One of several that dies half-way.
            let dead = lost.first().copied().filter(|_| dead_target && lost.len() > 1);
            if let Some(dead) = dead {
                blob.world.set(target(dead), Fault::FailsAfter(0));
            }
            let source = RebuildSource {
                blob: blob.plan.blob, pg: blob.plan.pg, scheme, plain_len: plain_len as u64,
                root: written.root, disks, opened_at_ms: 0,
            };
            let targets: Vec<(u8, DiskId)> = lost.iter().map(|at| (*at as u8, target(*at))).collect();
            let rebuilt = rebuild_shards(&blob.peers, &blob.codec, &source, &targets).await;
            let enough = width - lost.len() - bad.len() >= usize::from(scheme.data)
                && width - lost.len() >= usize::from(scheme.data);
            prop_assert_eq!(rebuilt.is_ok(), enough, "{:?}", rebuilt);
            let held = blob.world.held.lock().unwrap();
            match rebuilt {
                Ok(rebuilt) => {
                    for (index, was) in &was {
                        let is_there = held.get(&(target(*index), key(*index))).is_some_and(|held| held.1 == *was);
                        prop_assert_eq!(is_there, dead != Some(*index));
                        prop_assert_eq!(rebuilt.made.contains(&(*index as u8, target(*index))), is_there);
                    }
                    let liars: BTreeSet<usize> = rebuilt.liars.into_iter().map(usize::from).collect();
                    prop_assert!(liars.iter().all(|at| bad.get(at) == Some(&true)), "{liars:?}");
                    if bad.is_empty() {
                        let shard_len = BlobLayout::new(scheme, plain_len as u64).unwrap().shard_len();
                        let read = blob.world.bytes_read.load(Ordering::Relaxed);
                        prop_assert_eq!(read, shard_len * u64::from(scheme.data), "{} lost", lost.len());
                    }
                }
                Err(_) => prop_assert!(lost.iter().all(|at| !held.contains_key(&(target(*at), key(*at))))),
            }
            Ok(())
        })?;
    }
}

/// A stalled disk costs a read one hedge, not an answer.
#[test]
fn a_stalled_disk_is_hedged() {
    run(async {
        let blob = Blob::new(Scheme { data: 4, parity: 2 }, 500_000);
        blob.write(500_000).await.unwrap();
        blob.settle(6).await;
        blob.world.set(blob.plan.disks[0], Fault::Stalls);
        blob.world.set(blob.plan.disks[3], Fault::Stalls);
        assert!(blob.read(0..500_000).await.unwrap() == blob.plain);
    });
}

/// What shares a small blob with others is read without them: pages of a tail cost their own bytes, and no more.
#[test]
fn a_page_of_a_tail_is_read_alone() {
    run(async {
        for (data, parity) in [(2, 2), (4, 2), (6, 4)] {
            let scheme = Scheme { data, parity };
            let blob = Blob::new(scheme, 130_000 + usize::from(data) * PAGE_BYTES as usize);
            blob.write(500_000).await.unwrap();
            blob.settle(scheme.shard_count()).await;
            let tail = u64::from(data) * PAGE_BYTES;
            let sealed = PAGE_BYTES + TAG_BYTES;
            for (range, cost) in [
                (tail..tail + 1, sealed),
                (tail + 8192..tail + 16_384, sealed),
                (tail + PAGE_BYTES..tail + 130_000, 130_000 - PAGE_BYTES + TAG_BYTES),
                (PAGE_BYTES - 1..PAGE_BYTES, sealed),
            ] {
                let before = blob.world.bytes_read.load(Ordering::Relaxed);
                let read = blob.read(range.clone()).await.unwrap();
                assert!(read == blob.plain[range.start as usize..range.end as usize], "{range:?}");
                assert_eq!(
                    blob.world.bytes_read.load(Ordering::Relaxed) - before,
                    cost,
                    "{scheme} {range:?}"
                );
            }
        }
    });
}

/// More liars than parity: an error, never other bytes.
#[test]
fn too_many_liars_are_an_error() {
    run(async {
        let blob = Blob::new(Scheme { data: 2, parity: 2 }, 300_000);
        blob.write(300_000).await.unwrap();
        blob.settle(4).await;
        for disk in &blob.plan.disks[..3] {
            blob.world.set(*disk, Fault::Lies);
        }
        assert!(matches!(blob.read(0..300_000).await, Err(StripeError::Damaged { .. })));
    });
}
