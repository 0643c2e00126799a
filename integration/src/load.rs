//! Many clients at once, and the model of what must be there afterwards.
//!
//! Each client works alone on its own keys: new ones, overwrites, deletes, and reads of what it wrote. What it was told
//! is what the model holds; of a request that failed, either outcome is allowed from then on, and the client leaves
//! the key alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use makai::clock;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::{JoinHandle, JoinSet};

use crate::s3::{Content, S3};
use crate::wait;

/// Requests under way at once while a model is checked.
const CHECKS_AT_ONCE: usize = 8;
/// A load that makes no progress for so long is stuck.
const PROGRESS_WITHIN: Duration = Duration::from_secs(60);
/// A read picks a key between this and the newest.
const KEYS_IN_USE_MAX: usize = 200;

/// What a key may hold: more than one thing after a request that was not answered.
type Allowed = Vec<Option<Content>>;

/// What must be in a bucket.
#[derive(Debug, Clone, Default)]
pub struct Model {
    keys: BTreeMap<String, Allowed>,
}

impl Model {
    /// The key holds this, and nothing else.
    pub fn set(&mut self, key: impl Into<String>, content: Option<Content>) {
        self.keys.insert(key.into(), vec![content]);
    }

    /// The key may hold this too.
    pub fn allow(&mut self, key: impl Into<String>, content: Option<Content>) {
        self.keys.entry(key.into()).or_insert_with(|| vec![None]).push(content);
    }

    pub fn extend(&mut self, other: Self) {
        self.keys.extend(other.keys);
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keys of which only one thing is allowed.
    #[must_use]
    pub fn certain(&self) -> usize {
        self.keys.values().filter(|allowed| allowed.len() == 1).count()
    }

    /// Lists the bucket and reads every key, each through one of the doors: nothing is missing, nothing is there that
    /// should not be, and every byte is right. What was found of uncertain keys is certain from then on.
    ///
    /// # Errors
    /// The first key that is not as it must be.
    pub async fn check(&mut self, doors: &[S3], bucket: &str) -> anyhow::Result<()> {
        let first = doors.first().context("no door is open")?;
        let listed: BTreeMap<String, u64> = first.list(bucket, "").await?.into_iter().collect();
        for key in listed.keys() {
            ensure!(self.keys.contains_key(key), "{bucket}/{key} is listed but nobody wrote it");
        }
        let mut checks = JoinSet::new();
        let mut found = Vec::new();
        for (at, (key, allowed)) in self.keys.iter().enumerate() {
            let door = doors[at % doors.len()].clone();
            let (key, allowed, size, bucket) =
                (key.clone(), allowed.clone(), listed.get(key).copied(), bucket.to_owned());
            checks.spawn(async move {
                let holds = check_key(&door, &bucket, &key, &allowed, size).await?;
                anyhow::Ok((key, holds))
            });
            if checks.len() == CHECKS_AT_ONCE
                && let Some(done) = checks.join_next().await
            {
                found.push(done??);
            }
        }
        while let Some(done) = checks.join_next().await {
            found.push(done??);
        }
        for (key, holds) in found {
            self.set(key, holds);
        }
        Ok(())
    }
}

/// What of the allowed the key holds.
async fn check_key(
    door: &S3,
    bucket: &str,
    key: &str,
    allowed: &Allowed,
    listed: Option<u64>,
) -> anyhow::Result<Option<Content>> {
    let answer = match door.get(bucket, key).await {
        Ok(answer) => answer,
        Err(failure) if failure.code() == "NoSuchKey" => {
            ensure!(allowed.contains(&None), "{bucket}/{key} is gone; it must be one of {allowed:?}");
            ensure!(listed.is_none(), "{bucket}/{key} is listed but cannot be read");
            return Ok(None);
        }
        Err(failure) => bail!("{bucket}/{key}: {failure}"),
    };
    let found = allowed.iter().flatten().find(|content| content.check(0, content.len, &answer.body).is_ok());
    let found = found.with_context(|| {
        format!("{bucket}/{key} holds {} bytes that are none of {allowed:?}", answer.body.len())
    })?;
    ensure!(listed == Some(found.len), "{bucket}/{key} is listed as {listed:?}, it has {} bytes", found.len);
    Ok(Some(found.clone()))
}

/// One request of a load.
#[derive(Debug, Clone)]
pub struct Done {
    pub began: Instant,
    pub ended: Instant,
    /// The error of a request that failed, with what it was.
    pub failed: Option<String>,
}

/// What a load has seen.
#[derive(Debug, Default)]
pub struct Outcome {
    pub model: Model,
    pub requests: Vec<Done>,
    /// Answers that were wrong: never allowed.
    pub wrong: Vec<String>,
}

impl Outcome {
    /// # Errors
    /// A request failed, or an answer was wrong.
    pub fn is_flawless(&self) -> anyhow::Result<()> {
        let failures = self.failures();
        ensure!(self.wrong.is_empty(), "{} wrong answers: {:#?}", self.wrong.len(), first(&self.wrong));
        ensure!(
            failures.is_empty(),
            "{} of {} requests failed: {:#?}",
            failures.len(),
            self.requests.len(),
            first(&failures)
        );
        Ok(())
    }

    #[must_use]
    pub fn failures(&self) -> Vec<&str> {
        self.requests.iter().filter_map(|done| done.failed.as_deref()).collect()
    }

    /// How long after `from` requests end at half the `before` rate again, looked at in windows of `window`.
    #[must_use]
    pub fn back_after(&self, from: Instant, window: Duration, before: f64) -> Option<Duration> {
        let mut ends: Vec<Instant> =
            self.requests.iter().filter(|done| done.failed.is_none()).map(|done| done.ended).collect();
        ends.sort_unstable();
        let wanted = before * window.as_secs_f64() / 2.0;
        let after = ends.iter().enumerate().filter(|(_, end)| **end >= from);
        for (at, end) in after {
            let in_window = ends[at..].iter().take_while(|other| **other < *end + window).count();
            if in_window as f64 >= wanted {
                return Some(*end - from);
            }
        }
        None
    }

    /// Requests that succeeded per second between two moments.
    #[must_use]
    pub fn rate(&self, from: Instant, to: Instant) -> f64 {
        let count = self
            .requests
            .iter()
            .filter(|done| done.failed.is_none() && (from..to).contains(&done.ended))
            .count();
        count as f64 / (to - from).as_secs_f64()
    }
}

fn first<T>(all: &[T]) -> &[T] {
    &all[..all.len().min(5)]
}

/// The seed of this run: `MAKAI_TEST_SEED`, else a new one; printed, so that a failure can be run again.
#[must_use]
pub fn seed() -> u64 {
    let given = std::env::var("MAKAI_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("MAKAI_TEST_SEED={seed}");
    seed
}

/// What a load does.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub bucket: String,
    /// Every key begins with it.
    pub prefix: String,
    pub clients: usize,
    /// Sizes of objects, chosen evenly.
    pub sizes: Vec<u64>,
    pub seed: u64,
    /// Whether a client goes on after a request that failed.
    pub goes_on: bool,
    /// What a client rests after each request, so that a test that waits long does not fill its disks meanwhile.
    pub rest: Duration,
}

/// Clients at work until [`stop`](Load::stop).
pub struct Load {
    is_over: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Outcome>>,
}

impl Load {
    /// Starts the clients; each uses all of `doors` in turn.
    #[must_use]
    pub fn start(doors: &[S3], options: &LoadOptions) -> Self {
        let (is_over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients = (0..options.clients).map(|number| {
            let (doors, options) = (doors.to_vec(), options.clone());
            let (is_over, done) = (Arc::clone(&is_over), Arc::clone(&done));
            tokio::spawn(async move { client(number, &doors, &options, &is_over, &done).await })
        });
        Self { clients: clients.collect(), is_over, done }
    }

    /// Waits until so many more requests have ended.
    ///
    /// # Errors
    /// The load is stuck.
    pub async fn goes_on(&self, more: usize) -> anyhow::Result<()> {
        let wanted = self.done.load(Ordering::Relaxed) + more;
        wait::until("the load goes on", PROGRESS_WITHIN, || async {
            let done = self.done.load(Ordering::Relaxed);
            ensure!(done >= wanted, "{done} of {wanted} requests have ended");
            anyhow::Ok(())
        })
        .await
    }

    /// Lets each client end the request that it is at.
    ///
    /// # Errors
    /// A client panicked.
    pub async fn stop(self) -> anyhow::Result<Outcome> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut all = Outcome::default();
        for client in self.clients {
            let one = client.await?;
            all.model.extend(one.model);
            all.requests.extend(one.requests);
            all.wrong.extend(one.wrong);
        }
        Ok(all)
    }
}

async fn client(
    number: usize,
    doors: &[S3],
    options: &LoadOptions,
    is_over: &AtomicBool,
    done: &AtomicUsize,
) -> Outcome {
    let mut dice = StdRng::seed_from_u64(options.seed.wrapping_add(number as u64));
    let mut outcome = Outcome::default();
    // Keys whose content is certain, and what they hold.
    let mut held: Vec<(String, Option<Content>)> = Vec::new();
    let bucket = &options.bucket;
    for step in 0.. {
        if is_over.load(Ordering::Relaxed) || doors.is_empty() {
            break;
        }
        if step > 0 && !options.rest.is_zero() {
            tokio::time::sleep(options.rest).await;
        }
        let door = &doors[(number + step) % doors.len()];
        let recent = held.len().saturating_sub(KEYS_IN_USE_MAX)..held.len();
        let chosen = if recent.is_empty() { 0 } else { dice.random_range(recent) };
        let began = clock::instant();
        let what = dice.random_range(0..10);
        let failed = if what < 4 && !held.is_empty() {
            let (key, content) = &held[chosen];
            match (door.get(bucket, key).await, content) {
                (Ok(answer), Some(content)) => {
                    if let Err(error) = content.check(0, content.len, &answer.body) {
                        outcome.wrong.push(format!("{error:#}"));
                    }
                    None
                }
                (Ok(_), None) => {
                    outcome.wrong.push(format!("{key} was deleted and is read"));
                    None
                }
                (Err(failure), content) if failure.code() == "NoSuchKey" => {
                    if content.is_some() {
                        outcome.wrong.push(format!("{key} was acknowledged and is gone: {failure}"));
                    }
                    None
                }
                (Err(failure), _) => Some(format!("GET {failure}")),
            }
        } else {
            let is_new = held.is_empty() || what < 8;
            let key =
                if is_new { format!("{}{number}/{step}", options.prefix) } else { held[chosen].0.clone() };
            let content = (is_new || what == 8).then(|| {
                let len = options.sizes.choose(&mut dice).copied().unwrap_or(0);
                Content::new(format!("{bucket}/{key}#{step}"), len)
            });
            let told = match &content {
                Some(content) => door.put(bucket, &key, content).await.map(|_| ()),
                None => door.delete(bucket, &key).await,
            };
            match told {
                Ok(()) => {
                    outcome.model.set(&key, content.clone());
                    if is_new {
                        held.push((key, content))
                    } else {
                        held[chosen].1 = content
                    }
                    None
                }
                Err(failure) => {
                    outcome.model.allow(&key, content);
                    if !is_new {
                        held.swap_remove(chosen);
                    }
                    Some(format!("write: {failure}"))
                }
            }
        };
        let has_failed = failed.is_some();
        done.fetch_add(1, Ordering::Relaxed);
        outcome.requests.push(Done { began, ended: clock::instant(), failed });
        if has_failed && !options.goes_on {
            break;
        }
    }
    outcome
}
