//! Random traces, cut by a power failure at every change that they make to the disk.
//!
//! The model knows, for each key, what may be there after the cut: what the last answer said, and what was
//! asked and not answered since.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::format::{STATE_AT, STATE_DEAD, STATE_LIVE};
use super::segment::segment_path;
use super::sim::{Kind, SimDisk};
use super::superblock::SEGMENTS;
use super::tests::{Sample, open, put, read_all, sample};
use super::{ShardStore, StoreError};
use crate::ids::ShardKey;

const NAMES: u8 = 10;

#[derive(Debug, Clone)]
enum Step {
    Put(Sample, usize),
    Delete(ShardKey),
    /// Begun, partly written, dropped.
    Abandon(Sample, usize),
}

impl Step {
    fn random(name: u8, rng: &mut StdRng) -> Self {
        let len = [900, 2000, 9000, 30_000, 140_000, 260_000][rng.random_range(0..6)];
        let mut sample = sample(name, rng.random_range(0..4), len);
        if rng.random_bool(0.4) {
            sample.header.len_max += rng.random_range(0..40_000);
        }
        match rng.random_range(0..10) {
            0..6 => Self::Put(sample, [500, 5000, 100_000][rng.random_range(0..3)]),
            6..9 => Self::Delete(sample.header.key),
            _ => {
                let written = rng.random_range(0..sample.bytes.len());
                Self::Abandon(sample, written)
            }
        }
    }
}

/// What may be there under each key.
#[derive(Default)]
struct Model(BTreeMap<ShardKey, Vec<Option<Sample>>>);

impl Model {
    fn of(&mut self, key: ShardKey) -> &mut Vec<Option<Sample>> {
        self.0.entry(key).or_insert_with(|| vec![None])
    }

    fn asked(&mut self, key: ShardKey, outcome: Option<Sample>, is_answered: bool) {
        let may = self.of(key);
        if is_answered {
            may.clear();
        }
        may.push(outcome);
    }

    /// The disk holds one of the outcomes, whole; from now on that one.
    async fn check(&mut self, store: &ShardStore, context: &str) {
        let mut listed = Vec::new();
        for (key, may) in &mut self.0 {
            let found = match read_all(store, *key).await {
                Ok(bytes) => {
                    store.verify(*key).await.unwrap_or_else(|error| panic!("{context}: {error}"));
                    let footer = store.footer(*key).await.unwrap();
                    let is_it = |sample: &&Sample| sample.bytes == bytes && sample.footer == footer;
                    let known = may.iter().flatten().find(is_it).cloned();
                    assert!(known.is_some(), "{context}: {key} holds what nobody could expect");
                    listed.push(*key);
                    known
                }
                Err(StoreError::Missing { .. }) => {
                    assert!(may.contains(&None), "{context}: {key} is acknowledged and gone");
                    None
                }
                Err(error) => panic!("{context}: {error}"),
            };
            *may = vec![found];
        }
        let all: Vec<ShardKey> = store.list_after(None, 1000).into_iter().map(|shard| shard.key).collect();
        assert_eq!(all, listed, "{context}");
    }
}

/// Runs steps in groups, each on keys of its own, until the power goes or `groups` are done.
async fn run(store: &ShardStore, model: &mut Model, groups: usize, rng: &mut StdRng) {
    for _ in 0..groups {
        let mut names: Vec<u8> = (0..NAMES).collect();
        let width = rng.random_range(1..=5);
        let steps: Vec<Step> = (0..width)
            .map(|_| {
                let name = names.swap_remove(rng.random_range(0..names.len()));
                Step::random(name, rng)
            })
            .collect();
        let does_compact = rng.random_bool(0.25);
        let compacting = async {
            if does_compact {
                _ = store.compact_step().await;
            }
        };
        let doing = join_all(steps.iter().map(|step| async move {
            match step {
                Step::Put(sample, piece) => put(store, sample, *piece).await,
                Step::Delete(key) => store.delete(vec![*key]).await,
                Step::Abandon(sample, written) => {
                    let mut writer = store.begin(sample.header.clone()).await?;
                    writer.write(sample.bytes.slice(..*written)).await
                }
            }
        }));
        let (answers, ()) = tokio::join!(doing, compacting);
        let is_off = answers.iter().any(Result::is_err);
        for (step, answer) in steps.into_iter().zip(answers) {
            match step {
                Step::Put(sample, _) => model.asked(sample.header.key, Some(sample), answer.is_ok()),
                Step::Delete(key) => model.asked(key, None, answer.is_ok()),
                Step::Abandon(..) => {}
            }
        }
        if is_off {
            return;
        }
    }
}

/// One life of a disk after another, each ended by a power cut, a kill or a clean stop.
async fn live(seed: u64, cuts: &[u64]) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disk = SimDisk::default();
    let mut model = Model::default();
    let (mut store, _) = open(&disk);
    for (life, cut) in cuts.iter().enumerate() {
        disk.cut_after(*cut);
        run(&store, &mut model, 12, &mut rng).await;
        let context = format!("seed {seed}, cuts {cuts:?}, life {life}");
        let next = match rng.random_range(0..8) {
            0 => {
                store.close().await;
                disk.after_cut(rng.random())
            }
            1 => disk.after_kill(),
            _ => disk.after_cut(rng.random()),
        };
        // The old process is gone with its machine.
        disk.cut_after(0);
        drop(store);
        disk = next;
        // A start may be cut too, and the next one after it.
        if rng.random_bool(0.3) {
            disk.cut_after(rng.random_range(0..12));
            let started = super::tests::try_open(&disk, super::tests::options());
            let next = disk.after_cut(rng.random());
            disk.cut_after(0);
            drop(started);
            disk = next;
        }
        store = open(&disk).0;
        model.check(&store, &context).await;
    }
    store.close().await;
    disk.changes()
}

/// Whatever answered is there after a cut at any change, whatever is there was written, and every disk opens.
#[tokio::test]
async fn no_power_cut_takes_or_alters_what_was_acknowledged() {
    for cut in 0..160 {
        live(1000 + cut, &[cut]).await;
    }
}

/// The same over several lives: segments are taken up again, compacted, sealed and cut again.
#[tokio::test]
async fn no_row_of_power_cuts_takes_or_alters_what_was_acknowledged() {
    for seed in 0..180 {
        let mut rng = StdRng::seed_from_u64(seed);
        let cuts: Vec<u64> = (0..6).map(|_| rng.random_range(5..250)).collect();
        live(seed, &cuts).await;
    }
}

fn first_segment() -> PathBuf {
    segment_path(&Path::new("/d").join(SEGMENTS), 0)
}

/// A sealed segment with two small shards, and where the first one's record starts.
async fn two_sealed_shards() -> (SimDisk, [Sample; 2], u64) {
    let disk = SimDisk::default();
    let (store, _) = open(&disk);
    let samples = [sample(1, 0, 2000), sample(2, 0, 2000)];
    for sample in &samples {
        put(&store, sample, 9000).await.unwrap();
    }
    let at = store.core.index.get(samples[0].header.key).unwrap().record_at();
    store.close().await;
    (disk, samples, at)
}

/// A crash can leave a death in the record and not in the index file, or the other way round. What the first
/// start after it says stays so, also when the segment is written again and loses its index file.
#[tokio::test]
async fn a_death_that_was_cut_short_does_not_change_its_mind() {
    for is_deleted in [false, true] {
        let (disk, [shard, other], at) = two_sealed_shards().await;
        let key = shard.header.key;
        if is_deleted {
            let (store, _) = open(&disk);
            store.delete(vec![key]).await.unwrap();
            store.close().await;
        }
        disk.flip(&first_segment(), at + STATE_AT, STATE_LIVE ^ STATE_DEAD);
        let (store, report) = open(&disk);
        assert_eq!((report.scanned_segments, store.contains(key)), (0, !is_deleted));
        if !is_deleted {
            put(&store, &shard, 9000).await.unwrap();
        }
        put(&store, &sample(3, 0, 2000), 9000).await.unwrap();
        let (store, report) = open(&disk.after_kill());
        assert_eq!((report.scanned_segments, store.contains(key)), (1, !is_deleted));
        assert_eq!(read_all(&store, other.header.key).await.unwrap(), other.bytes);
    }
}

/// What a killed process noted in the cache alone is believed by the next one: then it must last, whether the
/// segment rests or is taken up again.
#[tokio::test]
async fn what_a_start_believed_outlives_a_power_cut() {
    let (disk, [shard, _], _) = two_sealed_shards().await;
    let key = shard.header.key;
    let (store, _) = open(&disk);
    disk.fail(Kind::Sync, rustix::io::Errno::IO);
    assert!(matches!(store.delete(vec![key]).await, Err(StoreError::Failed { .. })));
    let killed = disk.after_kill();
    for is_taken_up in [false, true] {
        for seed in 0..60 {
            let disk = killed.after_kill();
            let (store, _) = open(&disk);
            assert!(!store.contains(key));
            let begun = if is_taken_up {
                // At any point of taking it up.
                disk.cut_after(seed % 6);
                store.begin(sample(3, 0, 2000).header).await.ok()
            } else {
                None
            };
            let cut = disk.after_cut(seed);
            assert!(!open(&cut).0.contains(key), "seed {seed}, taken up: {is_taken_up}");
            drop((begun, store));
        }
    }
}
