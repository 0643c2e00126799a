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
//! Always: what is there is left alone; what is rebuilt hashes to the root in the facts or is not written; it may stop at
//! any point and begins again from the facts. Whole rounds from the first blob catch what was lost meanwhile.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use makai_erasure::codec::Codec;
use makai_erasure::layout::BlobLayout;
use makai_erasure::store::ShardStore;
use makai_erasure::stripe::{RebuildSource, Rebuilt, StripeError, copy_shard, rebuild_shard};
use makai_erasure::{BlobId, DiskId, PgId, Scheme, ShardKey};
use makai_raft::facts::cluster::{ClusterMap, Group};
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
/// Shards made at once: each holds a window of k sources, and waits for them most of the time.
const AT_ONCE: usize = 4;
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

    fn note_rebuilt(&self, bytes: u64) {
        self.rebuilt_shards.fetch_add(1, Ordering::Relaxed);
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
        mend(&shell, &mut round).await;
        let is_filling = tell_filled(&shell, &round, looked.is_ok());
        shell.progress.set_pending(&round);
        shell.progress.set_lost(&round, &shell.map.get().map);
        match looked {
            Ok(found) => {
                shell.progress.looks.fetch_add(1, Ordering::Relaxed);
                // Looking costs the leader a question a group: seldom while nothing happens.
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
            // Together, so that the leader confirms once for all of them that it leads.
            let asked = some.iter().map(|(group, at, _)| shell.facts.query(round.next_blobs(group, at.disk)));
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
            if !is_sound(store, ShardKey { blob: blob.id, index }) {
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

/// What has been missing for long enough: shards of the groups with the fewest disks up first, copies for moves last.
fn due_by_danger(shell: &Shell, round: &Round) -> Vec<(BlobId, u8, DiskId)> {
    let now = clock::instant();
    let map = shell.map.get();
    let mut spare = HashMap::new();
    let mut spare_of = |pg: PgId| {
        *spare.entry(pg).or_insert_with(|| {
            let Some(group) = map.group(pg) else { return usize::MAX };
            let up = group.disks.iter().filter(|disk| shell.peers.is_up(**disk)).count();
            up.saturating_sub(usize::from(group.scheme.data))
        })
    };
    let mut due: Vec<_> = round
        .missing
        .iter()
        .filter(|(_, missing)| missing.due <= now)
        .map(|(key, missing)| ((missing.at.kind == Kind::Move, spare_of(missing.blob.pg)), *key))
        .collect();
    due.sort_unstable();
    due.into_iter().map(|(_, key)| key).collect()
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
    let mut next = None;
    loop {
        let is_over = shell.stop.is_cancelled() || begun.elapsed() > ORDER_HOLDS_FOR;
        if next.is_none() && !is_over && running.len() < AT_ONCE {
            let found = due.find_map(|key| round.missing.get(&key).map(|missing| (key, missing)));
            next = found.map(|(key, missing)| {
                let start = pace.start_of(clock::instant(), missing.shard_bytes);
                (key, missing.blob.clone(), missing.at, start)
            });
        }
        let wait = next.as_ref().map(|(_, _, _, start)| start.saturating_duration_since(clock::instant()));
        tokio::select! {
            Some((key, outcome)) = running.next(), if !running.is_empty() => {
                conclude(shell, round, key, outcome);
                shell.progress.set_pending(round);
            }
            goes_on = shell.pause(wait.unwrap_or_default()), if wait.is_some() => {
                let Some((key, blob, at, _)) = next.take().filter(|_| goes_on) else { continue };
                let scheme = shell.map.get().group(blob.pg).map(|group| group.scheme);
                let codec = scheme.and_then(|scheme| codec_of(&mut codecs, scheme));
                running.push(async move {
                    match codec {
                        Some(codec) => (key, make(shell, &codec, &blob, at).await),
                        None => (key, Outcome::Settled),
                    }
                });
            }
            else => return,
        }
    }
}

fn codec_of(codecs: &mut HashMap<Scheme, Arc<Codec>>, scheme: Scheme) -> Option<Arc<Codec>> {
    if let Some(codec) = codecs.get(&scheme) {
        return Some(Arc::clone(codec));
    }
    let codec = Arc::new(Codec::new(scheme).ok()?);
    codecs.insert(scheme, Arc::clone(&codec));
    Some(codec)
}

/// Makes one shard, if it is still to be held here and is not.
async fn make(shell: &Shell, codec: &Codec, blob: &Blob, at: Holding) -> Outcome {
    let map = shell.map.get();
    let Holding { index, disk, .. } = at;
    let is_held_here = |held: &Holding| held.index == index && held.disk == disk;
    let held = map.group(blob.pg).and_then(|group| Some((group, holdings(group).find(is_held_here)?)));
    let store = shell.disks.iter().find(|(own, _)| **own == disk).map(|(_, store)| store);
    let is_here = store.is_some_and(|store| is_sound(store, ShardKey { blob: blob.id, index }));
    let (Some((group, held)), Some(_), false) = (held, store, is_here) else { return Outcome::Settled };
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
    let copied = match held.kind {
        Kind::Move => copy_shard(&shell.peers, &source, index, disk).await.ok(),
        Kind::Own | Kind::Remake => None,
    };
    match copied {
        Some(copied) => Outcome::Made(copied, group.clone()),
        None => match rebuild_shard(&shell.peers, codec, &source, index, disk).await {
            Ok(rebuilt) => Outcome::Made(rebuilt, group.clone()),
            Err(StripeError::TooFewShards { blob, have, need, last, mut gone }) => {
                // A slot on its way is missing where it comes from only if that disk says so.
                gone.extend((held.kind == Kind::Own).then_some(index));
                let fates = lost::survey(&*shell.peers, &map.map, group, blob, &gone).await;
                let error = StripeError::TooFewShards { blob, have, need, last, gone };
                match lost::judge(group.scheme.data, &fates) {
                    Some(why) => {
                        let is_told = held.kind == Kind::Own && lost::is_told_by(index, &fates);
                        Outcome::Lost { error, why, is_told }
                    }
                    None => Outcome::Failed(error),
                }
            }
            Err(error) => Outcome::Failed(error),
        },
    }
}

fn conclude(shell: &Shell, round: &mut Round, key: (BlobId, u8, DiskId), outcome: Outcome) {
    let (blob, index, _) = key;
    match outcome {
        Outcome::Settled => _ = round.missing.remove(&key),
        Outcome::Made(Rebuilt { bytes, liars }, group) => {
            for liar in liars {
                tracing::warn!(%blob, shard = liar, disk = %group.disks[usize::from(liar)],
                    "a disk answers with bytes that are not the shard's");
            }
            shell.progress.note_rebuilt(bytes);
            round.missing.remove(&key);
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
        let micros = u128::from(bytes) * 1_000_000 / u128::from(self.rate.max(1));
        let micros = if self.rate == 0 { 0 } else { u64::try_from(micros).unwrap_or(u64::MAX / 2) };
        self.free_at = start + Duration::from_micros(micros);
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
