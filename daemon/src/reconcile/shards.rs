//! Sees to it that every shard that should be on a disk of this node is there: after an outage, a write that missed this
//! disk, a lost segment, a group that was given this disk, a slot on its way here.
//!
//! ```text
//! groups with a disk of mine ─ blobs behind the cursor ─> missing here? ─ most endangered first ─> rebuilt from k others
//! slots made again on a disk of mine ─ the same
//! slots moving to a disk of mine ─ the same ──────────────> missing here? ─ last ─> copied from the disk it leaves
//! nothing missing of a moving slot ─> told to the leader, which makes this disk the slot's own
//! ```
//!
//! All that a blob lacks and is due here is made from one read of k shards. Where several slots of a group are made again, each
//! of their disks makes the shards of its part of the blobs for all of them, and sends the others theirs; one that has made its
//! part goes on with others' parts from their ends, so that none waits for another that is slow or gone.
//!
//! Always: what is there is left alone; what is rebuilt hashes to the root in the facts or is not written; what another node
//! sent is counted only once its roots are those in the facts; it may stop at any point and begins again from the facts. Whole
//! rounds from the first blob catch what was lost meanwhile.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use makai_erasure::codec::Codec;
use makai_erasure::layout::BlobLayout;
use makai_erasure::store::ShardStore;
use makai_erasure::stripe::{RebuildSource, Rebuilt, StripeError, blob_root, copy_shard, rebuild_shards};
use makai_erasure::{BlobId, DiskId, PgId, Scheme, ShardKey};
use makai_raft::facts::cluster::{ClusterMap, Group, SlotMove};
use makai_raft::facts::object::Blob;
use makai_raft::facts::query::{Answer, Query};
use serde::Serialize;
use tokio::sync::{Notify, watch};

use super::lost::{LostBlob, Unreadable};
use super::{Shell, lost};
use crate::clock;
use crate::members::{FILLED_MAX, Filled};

const BATCH: u32 = 1000;
/// Groups asked about at once.
const ASKED_AT_ONCE: usize = 16;
/// A shard that is missing may still be on its way: it is rebuilt only after this.
const MISSING_FOR: Duration = Duration::from_secs(5);
/// From the first blob again, this often.
const FULL_ROUND_EVERY: Duration = Duration::from_secs(900);
/// Missing shards noted at once; more are found in the next round.
const PENDING_MAX: usize = 100_000;
/// Longest pause between looks while nothing is new: a shard that a write missed waits no longer than this.
const IDLE_PAUSE_MAX: Duration = Duration::from_secs(3);
/// Pause after a rebuild that failed before it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(15);
/// The same, where too few shards are left anywhere: until then they are found only if someone puts a disk's files back.
const LOST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Blobs whose shards are made at once: each holds a window of k sources, and waits for them most of the time.
const AT_ONCE: usize = 4;
/// Shards that came from other nodes and are looked at together.
const CHECKED_AT_ONCE: usize = 16;
/// While customers are served here, or were so lately, one blob is made at a time and then rested for so many times as long as
/// that took: what is left to spare can wait, they cannot.
const REST_FOR_CUSTOMERS: u32 = 4;
const CUSTOMERS_WITHIN: Duration = Duration::from_secs(1);
/// A single rest is no longer.
const REST_MAX: Duration = Duration::from_secs(2);
/// Nor is it longer than so long and what was made takes at so many bytes a second: small shards take long for the waiting that is in
/// them, which costs customers nothing. Many of them would have a drain last for days where customers never pause.
const REST_PER_BLOB: Duration = Duration::from_millis(5);
const REST_BYTES_PER_SEC: u64 = 2 << 20;
/// Where something was missing all the time for so long, rests are as long as the work: half of the time is its own.
const PATIENT_FOR: Duration = Duration::from_secs(1800);
const REST_AFTER_PATIENCE: u32 = 1;
/// After so long the order is made anew: others may have become more endangered.
const ORDER_HOLDS_FOR: Duration = Duration::from_secs(10);
/// The rate that is told is that of the last minute.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// What this node has repaired and has yet to.
#[derive(Debug, Default)]
pub struct Progress {
    pub looks: AtomicU64,
    pub scrubs: AtomicU64,
    pub scrubbed_bytes: AtomicU64,
    pub damaged: AtomicU64,
    pub pending: AtomicU64,
    pub pending_bytes: AtomicU64,
    pub rebuilt_shards: AtomicU64,
    pub rebuilt_bytes: AtomicU64,
    pub failures: AtomicU64,
    /// Blobs that cannot be read, of which it is for this node to tell.
    lost: Mutex<Vec<LostBlob>>,
    filled: Mutex<Vec<Filled>>,
    /// Told when `filled` changed: the leader should hear of it at once.
    pub filled_changed: Notify,
    recent: Mutex<VecDeque<(Instant, u64)>>,
}

/// [`Progress`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct ProgressNow {
    /// Times that all blobs of this node's groups were looked through: before the first, `pending` says nothing.
    pub looks: u64,
    /// Times that a disk's shards were all read back.
    pub scrubs: u64,
    /// Shards known to be missing.
    pub pending: u64,
    pub rebuilt_shards: u64,
    pub rebuilt_bytes: u64,
    pub failures: u64,
    /// Bytes of the shards known to be missing.
    #[serde(default)]
    pub pending_bytes: u64,
    /// Over the last minute.
    #[serde(default)]
    pub bytes_per_sec: u64,
    /// Damaged and lost shards met in reads and scrubs.
    #[serde(default)]
    pub damaged: u64,
    /// Bytes of shards read back.
    #[serde(default)]
    pub scrubbed_bytes: u64,
    /// Blobs of which too few shards are left, and such that disks that are away could bring back: each is counted by one node.
    #[serde(default)]
    pub gone_blobs: u64,
    #[serde(default)]
    pub away_blobs: u64,
}

impl Progress {
    /// Blobs that cannot be read, of which this node tells.
    #[must_use]
    pub fn lost(&self) -> Vec<LostBlob> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count_lost(&self, why: Unreadable) -> u64 {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.iter().filter(|blob| blob.why == why).count() as u64
    }

    /// Takes note of what cannot be rebuilt. What its group tells of already is left out.
    fn set_lost(&self, round: &Round, map: &ClusterMap) {
        let of_group = |pg: PgId| map.groups.iter().find(|group| group.id == pg);
        let told = round.missing.values().filter_map(|missing| {
            let why = missing.lost?;
            let group = of_group(missing.blob.pg)?;
            lost::outlook(map, group).is_none().then_some(LostBlob {
                blob: missing.blob.id,
                pg: group.id,
                why,
            })
        });
        let told = told.collect();
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }

    /// Moving slots that are whole here.
    #[must_use]
    pub fn filled(&self) -> Vec<Filled> {
        self.filled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_filled(&self, filled: Vec<Filled>) {
        let mut known = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != filled {
            *known = filled;
            self.filled_changed.notify_one();
        }
    }

    fn note_rebuilt(&self, shards: u64, bytes: u64) {
        self.rebuilt_shards.fetch_add(shards, Ordering::Relaxed);
        self.rebuilt_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::instant();
        recent.push_back((now, bytes));
        while recent.front().is_some_and(|(at, _)| now.duration_since(*at) > RATE_WINDOW) {
            recent.pop_front();
        }
    }

    /// Over the last minute, or since repair began within it.
    fn bytes_per_sec(&self) -> u64 {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::instant();
        let counted: Vec<_> =
            recent.iter().filter(|(at, _)| now.duration_since(*at) <= RATE_WINDOW).collect();
        let Some((first, _)) = counted.first() else { return 0 };
        let millis = now.duration_since(*first).as_millis().max(1000);
        let bytes: u128 = counted.iter().map(|(_, bytes)| u128::from(*bytes)).sum();
        u64::try_from(bytes * 1000 / millis).unwrap_or(u64::MAX)
    }

    fn set_pending(&self, round: &Round) {
        self.pending.store(round.missing.len() as u64, Ordering::Relaxed);
        let bytes = round.missing.values().map(|missing| missing.shard_bytes).sum();
        self.pending_bytes.store(bytes, Ordering::Relaxed);
    }

    #[must_use]
    pub fn now(&self) -> ProgressNow {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ProgressNow {
            looks: read(&self.looks),
            scrubs: read(&self.scrubs),
            pending: read(&self.pending),
            rebuilt_shards: read(&self.rebuilt_shards),
            rebuilt_bytes: read(&self.rebuilt_bytes),
            failures: read(&self.failures),
            pending_bytes: read(&self.pending_bytes),
            bytes_per_sec: self.bytes_per_sec(),
            damaged: read(&self.damaged),
            scrubbed_bytes: read(&self.scrubbed_bytes),
            gone_blobs: self.count_lost(Unreadable::Gone),
            away_blobs: self.count_lost(Unreadable::Away),
        }
    }
}

/// A shard that is not where it should be.
struct Missing {
    blob: Blob,
    due: Instant,
    at: Holding,
    shard_bytes: u64,
    /// Too few other shards were found when it was tried, and this node tells of it.
    lost: Option<Unreadable>,
}

#[derive(Default)]
struct Round {
    /// Per group and disk: the group's version and the last blob looked at.
    cursors: HashMap<(PgId, DiskId), (u32, u64)>,
    missing: BTreeMap<(BlobId, u8, DiskId), Missing>,
    /// Since when there was always something to make.
    behind_since: Option<Instant>,
}

impl Round {
    fn note_whether_behind(&mut self) {
        // What nobody can make now is no work that waits.
        let is_behind = self.missing.values().any(|missing| missing.lost.is_none());
        self.behind_since = is_behind.then(|| self.behind_since.unwrap_or_else(clock::instant));
    }

    fn behind_for(&self) -> Duration {
        self.behind_since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// How long customers are left alone after something of so many bytes was made, which took so long. Pure.
fn rest_after(took: Duration, bytes: u64, behind_for: Duration) -> Duration {
    let times = if behind_for < PATIENT_FOR { REST_FOR_CUSTOMERS } else { REST_AFTER_PATIENCE };
    let by_bytes = Duration::from_micros(bytes.saturating_mul(1_000_000) / REST_BYTES_PER_SEC);
    (took * times).min(REST_MAX).min(REST_PER_BLOB + by_bytes)
}

pub async fn run(shell: Shell) {
    let mut round = Round::default();
    let mut begun = clock::instant();
    let mut damage_seen = 0;
    let mut pause = shell.interval();
    let mut renewed = shell.map_renewed.subscribe();
    while rest(&shell, pause, &mut renewed).await {
        let damage = shell.disks.damage_count();
        shell.progress.damaged.store(damage, Ordering::Relaxed);
        if damage != damage_seen || begun.elapsed() > FULL_ROUND_EVERY {
            damage_seen = damage;
            round.cursors.clear();
            begun = clock::instant();
        }
        let looked = look(&shell, &mut round).await;
        round.note_whether_behind();
        settle_arrived(&shell, &mut round).await;
        mend(&shell, &mut round).await;
        settle_arrived(&shell, &mut round).await;
        let is_filling = tell_filled(&shell, &round, looked.is_ok());
        shell.progress.set_pending(&round);
        shell.progress.set_lost(&round, &shell.map.get().map);
        match looked {
            Ok(found) => {
                shell.progress.looks.fetch_add(1, Ordering::Relaxed);
                // Looking costs a question a group: seldom while nothing happens.
                let is_idle = found == 0 && round.missing.is_empty() && !is_filling;
                let longer = (pause * 2).min(IDLE_PAUSE_MAX.max(shell.interval()));
                pause = if is_idle { longer } else { shell.interval() };
            }
            Err(error) => {
                tracing::debug!(%error, "the blobs of this node's groups were not read; trying again")
            }
        }
    }
}

/// Waits, and no longer than until the map says that slots move here; false once the node stops.
async fn rest(shell: &Shell, pause: Duration, renewed: &mut watch::Receiver<u64>) -> bool {
    let is_needed = async {
        loop {
            if renewed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let map = shell.map.get();
            let mut moves = map.map.groups.iter().flat_map(|group| &group.moves);
            if moves.any(|moving| shell.disks.iter().any(|(own, _)| *own == moving.to)) {
                return;
            }
        }
    };
    tokio::select! {
        goes_on = shell.pause(pause) => goes_on,
        () = is_needed => true,
    }
}

/// Whether the shard is here and, as far as known, whole.
fn is_sound(store: &ShardStore, key: ShardKey) -> bool {
    store.header(key).is_some_and(|shard| !shard.is_damaged)
}

/// Notes what is missing among blobs not looked at yet; returns how many those were.
async fn look(shell: &Shell, round: &mut Round) -> anyhow::Result<usize> {
    let map = shell.map.get();
    let own = |disk: DiskId| shell.disks.iter().find(|(own, _)| **own == disk).map(|(_, store)| store);
    let mut open: Vec<_> = map
        .map
        .groups
        .iter()
        .flat_map(|group| holdings(group).map(move |at| (group, at)))
        .filter_map(|(group, at)| Some((group, at, own(at.disk)?)))
        .collect();
    let mut found = 0;
    while !open.is_empty() {
        let mut more = Vec::new();
        for some in open.chunks(ASKED_AT_ONCE) {
            if round.missing.len() >= PENDING_MAX {
                return Ok(found);
            }
            // What a voter has not heard yet it sees in the next look; a move is finished by the facts, not by this. Without a
            // voter here all are asked together, so that the leader confirms once for all of them that it leads.
            let asked = some.iter().map(|(group, at, _)| shell.here.query(round.next_blobs(group, at.disk)));
            for (&(group, at, store), answer) in some.iter().zip(futures::future::join_all(asked).await) {
                let Answer::Blobs(blobs) = answer? else { continue };
                found += blobs.len();
                round.note(group, at, store, &blobs);
                if blobs.len() == BATCH as usize {
                    more.push((group, at, store));
                }
            }
        }
        open = more;
    }
    Ok(found)
}

impl Round {
    /// The last blob looked at, for a disk of a group as it is now.
    fn cursor(&self, group: &Group, disk: DiskId) -> u64 {
        let known = self.cursors.get(&(group.id, disk));
        known.filter(|(version, _)| *version == group.version).map_or(0, |(_, sequence)| *sequence)
    }

    fn next_blobs(&self, group: &Group, disk: DiskId) -> Query {
        let after_sequence = self.cursor(group, disk);
        Query::BlobsOfGroup { pg: group.id, after_sequence, entries_max: BATCH }
    }

    fn note(&mut self, group: &Group, at: Holding, store: &ShardStore, blobs: &[Blob]) {
        let Holding { index, disk, kind } = at;
        let mut after = self.cursor(group, disk);
        for blob in blobs {
            after = after.max(blob.sequence);
            // What is made again may have come from any node: its roots are looked at first.
            if kind == Kind::Remake || !is_sound(store, ShardKey { blob: blob.id, index }) {
                // What moves was written long ago elsewhere; only a missed write may still be on its way.
                let wait = if kind == Kind::Own { MISSING_FOR } else { Duration::ZERO };
                let shard_bytes =
                    BlobLayout::new(group.scheme, blob.plain_len).map_or(0, |layout| layout.shard_len());
                let due = clock::instant() + wait;
                let missing = Missing { blob: blob.clone(), due, at, shard_bytes, lost: None };
                self.missing.entry((blob.id, index, disk)).or_insert(missing);
            }
        }
        self.cursors.insert((group.id, disk), (group.version, after));
    }
}

/// A disk that should hold a slot's shards: its own, or the one that it moves to.
#[derive(Clone, Copy)]
struct Holding {
    index: u8,
    disk: DiskId,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Own,
    /// The slot's own disk is away.
    Remake,
    /// The slot's own disk still serves it.
    Move,
}

fn holdings(group: &Group) -> impl Iterator<Item = Holding> {
    let own = (0u8..).zip(&group.disks).map(|(index, disk)| Holding { index, disk: *disk, kind: Kind::Own });
    let coming = group.moves.iter().map(|moving| Holding {
        index: moving.slot,
        disk: moving.to,
        kind: if moving.is_remake { Kind::Remake } else { Kind::Move },
    });
    own.chain(coming)
}

/// Tells the leader, by the next heartbeat, which moving slots are whole here. Returns whether any moves here.
fn tell_filled(shell: &Shell, round: &Round, is_looked: bool) -> bool {
    let map = shell.map.get();
    let (mut filled, mut is_filling) = (Vec::new(), false);
    for group in &map.map.groups {
        for moving in &group.moves {
            if !shell.disks.iter().any(|(own, _)| *own == moving.to) {
                continue;
            }
            is_filling = true;
            let cursor = round.cursors.get(&(group.id, moving.to));
            let Some(&(version, sequence)) = cursor.filter(|(version, _)| *version == group.version) else {
                continue;
            };
            let is_missing = |(_, index, disk): &(BlobId, u8, DiskId), missing: &Missing| {
                missing.blob.pg == group.id && *index == moving.slot && *disk == moving.to
            };
            if !is_looked || round.missing.iter().any(|(key, missing)| is_missing(key, missing)) {
                continue;
            }
            filled.push(Filled { pg: group.id, slot: moving.slot, to: moving.to, version, sequence });
        }
    }
    filled.truncate(FILLED_MAX);
    shell.progress.set_filled(filled);
    is_filling
}

/// Strikes off what has come from other nodes meanwhile and is what the facts say.
async fn settle_arrived(shell: &Shell, round: &mut Round) {
    let store_of = |disk: DiskId| shell.disks.iter().find(|(own, _)| **own == disk).map(|(_, store)| store);
    let arrived = round.missing.iter().filter_map(|((blob, index, disk), missing)| {
        let (key, store) = (ShardKey { blob: *blob, index: *index }, store_of(*disk)?);
        let root = missing.blob.root;
        let held = async move { is_held(store, key, root).await.then_some((*blob, *index, *disk)) };
        is_sound(store, key).then_some(held)
    });
    let held: Vec<_> = futures::stream::iter(arrived.collect::<Vec<_>>())
        .buffer_unordered(CHECKED_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    for key in held {
        round.missing.remove(&key);
    }
}

/// Whether a shard is here that belongs to the blob in the facts. The store has checked its bytes against its own roots.
async fn is_held(store: &ShardStore, key: ShardKey, root: [u8; 32]) -> bool {
    is_sound(store, key) && store.footer(key).await.is_ok_and(|footer| blob_root(&footer.roots) == root)
}

/// The disk that makes a blob's shards for all slots of its group that are made again.
fn maker(group: &Group, blob: BlobId, is_up: impl Fn(DiskId) -> bool) -> Option<DiskId> {
    let remakes = group.moves.iter().filter(|moving| moving.is_remake && is_up(moving.to));
    let takers: BTreeSet<(u8, DiskId)> = remakes.map(|moving| (moving.slot, moving.to)).collect();
    // The id is random.
    let dice = blob.0.first_chunk().map_or(0, |dice| u64::from_le_bytes(*dice));
    takers.iter().nth((dice % takers.len().max(1) as u64) as usize).map(|(_, disk)| *disk)
}

/// What has been missing for long enough: shards of the groups with the fewest disks up first, then those that it is for other
/// nodes to make, copies for moves last.
fn due_by_danger(shell: &Shell, round: &Round) -> Vec<(BlobId, u8, DiskId)> {
    let now = clock::instant();
    let map = shell.map.get();
    let mut spare = HashMap::new();
    let mut spare_of = |pg: PgId| *spare.entry(pg).or_insert_with(|| spare_now(shell, pg));
    let is_own = |disk: DiskId| shell.disks.iter().any(|(own, _)| *own == disk);
    let is_others = |missing: &Missing| {
        let group = map.group(missing.blob.pg).filter(|_| missing.at.kind == Kind::Remake);
        group.is_some_and(|group| {
            let maker = maker(group, missing.blob.id, |disk| shell.peers.is_up(disk));
            maker.is_some_and(|disk| !is_own(disk))
        })
    };
    let (mut first, mut others, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for (key, missing) in round.missing.iter().filter(|(_, missing)| missing.due <= now) {
        let spare = spare_of(missing.blob.pg);
        if missing.at.kind == Kind::Move {
            last.push((spare, *key));
        } else if is_others(missing) {
            others.push((spare, Reverse(*key)));
        } else {
            first.push((spare, *key));
        }
    }
    first.sort_unstable();
    others.sort_unstable();
    last.sort_unstable();
    let others = others.into_iter().map(|(_, Reverse(key))| key);
    let keys = |ranked: Vec<(usize, _)>| ranked.into_iter().map(|(_, key)| key);
    keys(first).chain(others).chain(keys(last)).collect()
}

/// What one rebuild came to.
enum Outcome {
    /// It is there, or nobody needs it any more.
    Settled,
    Made(Rebuilt, Group),
    /// The facts did not answer.
    Unknown,
    Failed(StripeError),
    /// Too few shards are left; `is_told`: this node tells of it.
    Lost {
        error: StripeError,
        why: Unreadable,
        is_told: bool,
    },
}

/// Makes what has been missing for long enough, several at once, under the configured rate.
async fn mend(shell: &Shell, round: &mut Round) {
    let begun = clock::instant();
    let mut due = due_by_danger(shell, round).into_iter();
    let mut pace = Pace { rate: shell.config.storage.repair_bytes_per_sec_max, free_at: begun };
    let mut codecs: HashMap<Scheme, Arc<Codec>> = HashMap::new();
    let mut running = FuturesUnordered::new();
    let mut at_work: BTreeSet<BlobId> = BTreeSet::new();
    let mut next = None;
    loop {
        let is_over = shell.stop.is_cancelled() || begun.elapsed() > ORDER_HOLDS_FOR;
        let yields = shell.transport.serves_customers(CUSTOMERS_WITHIN);
        let at_once = if yields { 1 } else { AT_ONCE };
        if next.is_none() && !is_over && running.len() < at_once {
            // What is made together with another shard of its blob comes up again only if that failed: in the next round.
            let found = due.find_map(|key| {
                let missing = round.missing.get(&key).filter(|_| !at_work.contains(&key.0))?;
                Some((key, missing))
            });
            next = found.map(|(key, missing)| {
                at_work.insert(key.0);
                let with = due_with(round, key, missing);
                // What one more loss would make unreadable waits for nobody.
                let is_patient = spare_now(shell, missing.blob.pg) > 0;
                let bytes = missing.shard_bytes * (1 + with.len() as u64);
                let start = pace.start_of(clock::instant(), bytes);
                (key, missing.blob.clone(), missing.at, with, (bytes, is_patient), start)
            });
        }
        let wait = next.as_ref().map(|(.., start)| start.saturating_duration_since(clock::instant()));
        tokio::select! {
            Some((key, (bytes, is_patient), took, outcome)) = running.next(), if !running.is_empty() => {
                let (key, took): ((BlobId, u8, DiskId), Duration) = (key, took);
                at_work.remove(&key.0);
                if let Outcome::Made(rebuilt, _) = &outcome {
                    // What was made for others beside it.
                    pace.spend(rebuilt.bytes.saturating_sub(bytes));
                }
                if is_patient && shell.transport.serves_customers(CUSTOMERS_WITHIN) {
                    pace.rest_until(clock::instant() + rest_after(took, bytes, round.behind_for()));
                }
                conclude(shell, round, key, outcome);
                shell.progress.set_pending(round);
            }
            goes_on = shell.pause(wait.unwrap_or_default()), if wait.is_some() => {
                let Some((key, blob, at, with, told, _)) = next.take().filter(|_| goes_on) else { continue };
                let scheme = shell.map.get().group(blob.pg).map(|group| group.scheme);
                let codec = scheme.and_then(|scheme| codec_of(&mut codecs, scheme));
                running.push(async move {
                    let begun = clock::instant();
                    let outcome = match codec {
                        Some(codec) => make(shell, &codec, &blob, at, &with).await,
                        None => Outcome::Settled,
                    };
                    (key, told, begun.elapsed(), outcome)
                });
            }
            else => return,
        }
    }
}

/// Disks of a group that are up beyond those needed to read it.
fn spare_now(shell: &Shell, pg: PgId) -> usize {
    let map = shell.map.get();
    let Some(group) = map.group(pg) else { return usize::MAX };
    let up = group.disks.iter().filter(|disk| shell.peers.is_up(**disk)).count();
    up.saturating_sub(usize::from(group.scheme.data))
}

fn codec_of(codecs: &mut HashMap<Scheme, Arc<Codec>>, scheme: Scheme) -> Option<Arc<Codec>> {
    if let Some(codec) = codecs.get(&scheme) {
        return Some(Arc::clone(codec));
    }
    let codec = Arc::new(Codec::new(scheme).ok()?);
    codecs.insert(scheme, Arc::clone(&codec));
    Some(codec)
}

/// What else of the blob is due here: it is made from the same read.
fn due_with(round: &Round, key: (BlobId, u8, DiskId), first: &Missing) -> Vec<Holding> {
    if first.at.kind == Kind::Move {
        return Vec::new();
    }
    let of_blob = round.missing.range((key.0, 0, DiskId([0; 16]))..=(key.0, u8::MAX, DiskId([u8::MAX; 16])));
    let is_due =
        |missing: &&Missing| missing.at.kind != Kind::Move && missing.due <= first.due.max(clock::instant());
    let mut found = vec![first.at];
    for missing in of_blob.map(|(_, missing)| missing).filter(is_due) {
        if found.iter().all(|at| at.index != missing.at.index) {
            found.push(missing.at);
        }
    }
    found.split_off(1)
}

/// Where else a blob's shards are to be made again and are not, if it is for this node to make them.
async fn takers(shell: &Shell, group: &Group, blob: &Blob, have: &[(u8, DiskId)]) -> Vec<(u8, DiskId)> {
    let is_own = |disk: DiskId| shell.disks.iter().any(|(own, _)| *own == disk);
    if !maker(group, blob.id, |disk| shell.peers.is_up(disk)).is_some_and(is_own) {
        return Vec::new();
    }
    let is_taker = |moving: &&SlotMove| {
        moving.is_remake
            && !is_own(moving.to)
            && shell.peers.is_up(moving.to)
            && have.iter().all(|(index, _)| *index != moving.slot)
    };
    let asked = group.moves.iter().filter(is_taker).map(|moving| async move {
        let lacks = match shell.peers.footer(moving.to, ShardKey { blob: blob.id, index: moving.slot }).await
        {
            Ok(footer) => blob_root(&footer.roots) != blob.root,
            Err(error) => error.is_gone(),
        };
        lacks.then_some((moving.slot, moving.to))
    });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

/// Makes a shard, and others of its blob `with` it, as far as they are still to be held and are not.
async fn make(shell: &Shell, codec: &Codec, blob: &Blob, at: Holding, with: &[Holding]) -> Outcome {
    let map = shell.map.get();
    let Some(group) = map.group(blob.pg) else { return Outcome::Settled };
    let Some(held) = wanted(shell, group, blob, at).await else { return Outcome::Settled };
    let Holding { index, disk, kind } = held;
    match shell.facts.query(Query::BlobStates { ids: vec![blob.id] }).await {
        Ok(Answer::BlobStates(states)) if states.first().is_some_and(Option::is_some) => {}
        Ok(Answer::BlobStates(_)) => return Outcome::Settled,
        _ => return Outcome::Unknown,
    }
    let source = RebuildSource {
        blob: blob.id,
        pg: group.id,
        scheme: group.scheme,
        plain_len: blob.plain_len,
        root: blob.root,
        disks: group.disks.clone(),
        opened_at_ms: clock::now().0,
    };
    let copied = match kind {
        Kind::Move => copy_shard(&shell.peers, &source, index, disk).await.ok(),
        Kind::Own | Kind::Remake => None,
    };
    if let Some(copied) = copied {
        return Outcome::Made(copied, group.clone());
    }
    let mut targets = vec![(index, disk)];
    let mut own = vec![held];
    for other in with {
        if let Some(other) = wanted(shell, group, blob, *other).await.filter(|other| other.kind != Kind::Move)
        {
            targets.push((other.index, other.disk));
            own.push(other);
        }
    }
    if kind == Kind::Remake {
        targets.extend(takers(shell, group, blob, &targets).await);
    }
    match rebuild_shards(&shell.peers, codec, &source, &targets).await {
        Ok(rebuilt) => Outcome::Made(rebuilt, group.clone()),
        Err(StripeError::TooFewShards { blob, have, need, last, mut gone }) => {
            // A slot on its way is missing where it comes from only if that disk says so.
            gone.extend(own.iter().filter(|at| at.kind == Kind::Own).map(|at| at.index));
            let fates = lost::survey(&*shell.peers, &map.map, group, blob, &gone).await;
            let error = StripeError::TooFewShards { blob, have, need, last, gone };
            match lost::judge(group.scheme.data, &fates) {
                Some(why) => {
                    let is_told = kind == Kind::Own && lost::is_told_by(index, &fates);
                    Outcome::Lost { error, why, is_told }
                }
                None => Outcome::Failed(error),
            }
        }
        Err(error) => Outcome::Failed(error),
    }
}

/// What a disk of this node is to hold by the group as it is now, if it does not.
async fn wanted(shell: &Shell, group: &Group, blob: &Blob, at: Holding) -> Option<Holding> {
    let held = holdings(group).find(|held| held.index == at.index && held.disk == at.disk)?;
    let (_, store) = shell.disks.iter().find(|(own, _)| **own == at.disk)?;
    let key = ShardKey { blob: blob.id, index: at.index };
    let is_here = match held.kind {
        Kind::Remake => is_held(store, key, blob.root).await,
        Kind::Own | Kind::Move => is_sound(store, key),
    };
    (!is_here).then_some(held)
}

fn conclude(shell: &Shell, round: &mut Round, key: (BlobId, u8, DiskId), outcome: Outcome) {
    let (blob, index, _) = key;
    match outcome {
        Outcome::Settled => _ = round.missing.remove(&key),
        Outcome::Made(Rebuilt { bytes, made, liars }, group) => {
            for liar in liars {
                tracing::warn!(%blob, shard = liar, disk = %group.disks[usize::from(liar)],
                    "a disk answers with bytes that are not the shard's");
            }
            shell.progress.note_rebuilt(made.len() as u64, bytes);
            for (index, disk) in made {
                round.missing.remove(&(blob, index, disk));
            }
        }
        Outcome::Unknown => {}
        Outcome::Failed(error) => {
            shell.progress.failures.fetch_add(1, Ordering::Relaxed);
            match &error {
                StripeError::TooFewShards { .. } => {
                    tracing::debug!(%blob, shard = index, %error, "not rebuilt; trying again later");
                }
                _ => tracing::warn!(%blob, shard = index, %error, "not rebuilt; trying again later"),
            }
            if let Some(missing) = round.missing.get_mut(&key) {
                missing.due = clock::instant() + RETRY_AFTER;
                missing.lost = None;
            }
        }
        Outcome::Lost { error, why, is_told } => {
            shell.progress.failures.fetch_add(1, Ordering::Relaxed);
            let Some(missing) = round.missing.get_mut(&key) else { return };
            let now_told = is_told.then_some(why);
            if now_told == Some(Unreadable::Gone) && missing.lost != now_told {
                tracing::error!(%blob, %error,
                    "a blob is lost: too few of its shards are left; `makai repair lost` names the objects");
            }
            missing.lost = now_told;
            let pause = if why == Unreadable::Gone { LOST_RETRY_AFTER } else { RETRY_AFTER };
            missing.due = clock::instant() + pause;
        }
    }
}

/// Spreads work over time, so that its bytes stay under a ceiling.
struct Pace {
    /// Bytes a second; 0: any.
    rate: u64,
    free_at: Instant,
}

impl Pace {
    /// When work of so many bytes may begin.
    fn start_of(&mut self, now: Instant, bytes: u64) -> Instant {
        let start = self.free_at.max(now);
        self.free_at = start;
        self.spend(bytes);
        start
    }

    fn rest_until(&mut self, until: Instant) {
        self.free_at = self.free_at.max(until);
    }

    /// Accounts for bytes beside those that [`Pace::start_of`] was told of.
    fn spend(&mut self, bytes: u64) {
        let micros = u128::from(bytes) * 1_000_000 / u128::from(self.rate.max(1));
        let micros = if self.rate == 0 { 0 } else { u64::try_from(micros).unwrap_or(u64::MAX / 2) };
        self.free_at += Duration::from_micros(micros);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the slots that are made again each disk makes a part of the blobs for all; without one, the others do.
    #[test]
    fn each_blob_has_one_maker_among_those_that_are_up() {
        let disk = |number: u8| DiskId([number; 16]);
        let remake = |slot: u8, is_remake| SlotMove { slot, to: disk(10 + slot), is_remake };
        let group = Group {
            id: PgId(1),
            scheme: Scheme { data: 3, parity: 3 },
            version: 1,
            disks: (0..6).map(disk).collect(),
            moves: vec![remake(1, true), remake(2, true), remake(4, true), remake(5, false)],
        };
        let count = |is_up: &dyn Fn(DiskId) -> bool| {
            let mut made = BTreeMap::<DiskId, usize>::new();
            for number in 0..3000u64 {
                let hash = blake3::hash(&number.to_le_bytes());
                let blob = BlobId(*hash.as_bytes().first_chunk().unwrap());
                *made.entry(maker(&group, blob, is_up).unwrap()).or_default() += 1;
            }
            made
        };
        let all = count(&|_| true);
        assert_eq!(all.keys().copied().collect::<Vec<_>>(), [disk(11), disk(12), disk(14)]);
        assert!(all.values().all(|made| (900..1100).contains(made)), "{all:?}");
        let without = count(&|at| at != disk(12));
        assert_eq!(without.keys().copied().collect::<Vec<_>>(), [disk(11), disk(14)]);
        assert_eq!(maker(&group, BlobId([7; 16]), |_| false), None);
    }

    /// However slow the cluster is for its customers, repair and drains get on.
    #[test]
    fn customers_are_left_alone_for_a_while_that_is_bounded() {
        let (new, old) = (Duration::ZERO, PATIENT_FOR);
        let ms = Duration::from_millis;
        assert_eq!(rest_after(ms(100), 4 << 20, new), ms(400), "a fifth of the time");
        assert_eq!(rest_after(ms(3000), 64 << 20, new), REST_MAX);
        assert_eq!(rest_after(ms(100), 4 << 20, old), ms(100), "half of the time");
        assert_eq!(rest_after(ms(300), 1000, new).as_millis(), 5, "its time was waiting");
        assert!(rest_after(ms(300), 512 << 10, new) <= ms(255));
        assert_eq!(rest_after(ms(1), 1000, new), ms(4));
    }

    #[test]
    fn work_keeps_under_the_ceiling_and_does_not_fall_behind_it() {
        let begun = clock::instant();
        let mut pace = Pace { rate: 1_000_000, free_at: begun };
        let mut now = begun;
        for _ in 0..100 {
            now = pace.start_of(now, 250_000).max(now);
            // Each takes a while, with others beside it.
            now += Duration::from_millis(40);
        }
        let took = now.duration_since(begun);
        assert!((24_700..25_200).contains(&(took.as_millis() as u64)), "{took:?} for 25 MB at 1 MB/s");
    }
}
