//! Random traces, cut by a power failure at every change that they make to the disk.
//!
//! The model knows, for each key, what may be there after the cut: what the last answer said, and what was
//! asked and not answered since.

use std::collections::BTreeMap;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::sim::SimDisk;
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
