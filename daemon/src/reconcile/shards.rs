//! Sees to it that every shard that should be on a disk of this node is there: after an outage, a write that missed this
//! disk, a lost segment, a group that was given this disk, a slot on its way here.
//!
//! ```text
//! groups with a disk of mine ─ blobs behind the cursor ─> missing here? ─ most endangered first ─> rebuilt from k others
//! slots moving to a disk of mine ─ the same ──────────────> missing here? ─ last ─> copied from the disk it leaves
//! nothing missing of a moving slot ─> told to the leader, which makes this disk the slot's own
//! ```
//!
//! Always: what is there is left alone; what is rebuilt hashes to the root in the facts or is not written; it may stop at
//! any point and begins again from the facts. Whole rounds from the first blob catch what was lost meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use makai_erasure::codec::Codec;
use makai_erasure::store::ShardStore;
use makai_erasure::stripe::{RebuildSource, StripeError, copy_shard, rebuild_shard};
use makai_erasure::{BlobId, DiskId, PgId, ShardKey};
use makai_raft::facts::cluster::Group;
use makai_raft::facts::object::Blob;
use makai_raft::facts::query::{Answer, Query};
use serde::Serialize;

use super::Shell;
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

/// What this node has repaired and has yet to.
#[derive(Debug, Default)]
pub struct Progress {
    pub looks: AtomicU64,
    pub scrubs: AtomicU64,
    pub pending: AtomicU64,
    pub rebuilt_shards: AtomicU64,
    pub rebuilt_bytes: AtomicU64,
    pub failures: AtomicU64,
    filled: Mutex<Vec<Filled>>,
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
}

impl Progress {
    /// Moving slots that are whole here.
    #[must_use]
    pub fn filled(&self) -> Vec<Filled> {
        self.filled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_filled(&self, filled: Vec<Filled>) {
        *self.filled.lock().unwrap_or_else(PoisonError::into_inner) = filled;
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
        }
    }
}

/// A shard that is not where it should be.
struct Missing {
    blob: Blob,
    due: Instant,
    /// The slot is on its way here: its own disk still serves it.
    is_move: bool,
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
    while shell.pause(pause).await {
        let damage = shell.disks.damage_count();
        if damage != damage_seen || begun.elapsed() > FULL_ROUND_EVERY {
            damage_seen = damage;
            round.cursors.clear();
            begun = clock::instant();
        }
        let looked = look(&shell, &mut round).await;
        mend(&shell, &mut round).await;
        let is_filling = tell_filled(&shell, &round, looked.is_ok());
        shell.progress.pending.store(round.missing.len() as u64, Ordering::Relaxed);
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
        let Holding { index, disk, is_move } = at;
        let mut after = self.cursor(group, disk);
        for blob in blobs {
            after = after.max(blob.sequence);
            if !is_sound(store, ShardKey { blob: blob.id, index }) {
                // What moves was written long ago elsewhere; only a missed write may still be on its way.
                let wait = if is_move { Duration::ZERO } else { MISSING_FOR };
                let missing = Missing { blob: blob.clone(), due: clock::instant() + wait, is_move };
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
    is_move: bool,
}

fn holdings(group: &Group) -> impl Iterator<Item = Holding> {
    let own = (0u8..).zip(&group.disks).map(|(index, disk)| Holding { index, disk: *disk, is_move: false });
    let coming =
        group.moves.iter().map(|moving| Holding { index: moving.slot, disk: moving.to, is_move: true });
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
        .map(|(key, missing)| ((missing.is_move, spare_of(missing.blob.pg)), *key))
        .collect();
    due.sort_unstable();
    due.into_iter().map(|(_, key)| key).collect()
}

/// Rebuilds what has been missing for long enough, under the configured rate.
async fn mend(shell: &Shell, round: &mut Round) {
    let due = due_by_danger(shell, round);
    let mut codecs = HashMap::new();
    for key in due {
        if shell.stop.is_cancelled() {
            return;
        }
        let (blob_id, index, disk) = key;
        let Some(Missing { blob, .. }) = round.missing.get(&key) else { continue };
        let map = shell.map.get();
        let is_held_here = |held: &Holding| held.index == index && held.disk == disk;
        let is_move = map.group(blob.pg).and_then(|group| holdings(group).find(is_held_here));
        let group = map.group(blob.pg).filter(|_| is_move.is_some());
        let here = shell
            .disks
            .iter()
            .any(|(own, store)| *own == disk && is_sound(store, ShardKey { blob: blob_id, index }));
        let (Some(group), false) = (group, here) else {
            round.missing.remove(&key);
            continue;
        };
        let is_live = match shell.facts.query(Query::BlobStates { ids: vec![blob_id] }).await {
            Ok(Answer::BlobStates(states)) => states.first().is_some_and(Option::is_some),
            _ => continue,
        };
        if !is_live {
            round.missing.remove(&key);
            continue;
        }
        let codec = match codecs.entry(group.scheme) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => match Codec::new(group.scheme) {
                Ok(codec) => entry.insert(codec),
                Err(_) => continue,
            },
        };
        let source = RebuildSource {
            blob: blob_id,
            pg: group.id,
            scheme: group.scheme,
            plain_len: blob.plain_len,
            root: blob.root,
            disks: group.disks.clone(),
            opened_at_ms: clock::now().0,
        };
        let copied = match is_move {
            Some(Holding { is_move: true, .. }) => copy_shard(&shell.peers, &source, index, disk).await.ok(),
            _ => None,
        };
        let made = match copied {
            Some(copied) => Ok(copied),
            None => rebuild_shard(&shell.peers, codec, &source, index, disk).await,
        };
        match made {
            Ok(rebuilt) => {
                for liar in rebuilt.liars {
                    tracing::warn!(blob = %blob_id, shard = liar, disk = %group.disks[usize::from(liar)],
                        "a disk answers with bytes that are not the shard's");
                }
                shell.progress.rebuilt_shards.fetch_add(1, Ordering::Relaxed);
                shell.progress.rebuilt_bytes.fetch_add(rebuilt.bytes, Ordering::Relaxed);
                round.missing.remove(&key);
                throttle(shell, rebuilt.bytes).await;
            }
            Err(error) => {
                shell.progress.failures.fetch_add(1, Ordering::Relaxed);
                match &error {
                    StripeError::TooFewShards { .. } => {
                        tracing::debug!(blob = %blob_id, shard = index, %error, "not rebuilt; trying again later");
                    }
                    _ => {
                        tracing::warn!(blob = %blob_id, shard = index, %error, "not rebuilt; trying again later")
                    }
                }
                if let Some(missing) = round.missing.get_mut(&key) {
                    missing.due = clock::instant() + RETRY_AFTER;
                }
            }
        }
        shell.progress.pending.store(round.missing.len() as u64, Ordering::Relaxed);
    }
}

/// Waits as long as `bytes` may take under the ceiling on repair.
async fn throttle(shell: &Shell, bytes: u64) {
    let rate = shell.config.storage.repair_bytes_per_sec_max;
    if let Some(millis) = bytes.saturating_mul(1000).checked_div(rate) {
        shell.pause(Duration::from_millis(millis)).await;
    }
}
