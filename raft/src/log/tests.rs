//! What the log promises: openraft's contract, and that no crash loses what was acknowledged.

use std::path::PathBuf;
use std::sync::Arc;

use futures::channel::oneshot;
use futures::executor::block_on;
use openraft::StorageError;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::testing::log::{StoreBuilder, Suite};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::disk::{Disk, RealDisk};
use super::testing::SimDisk;
use super::types::{Entry, LogId, Proposal, Types, Vote};
use super::wal::Done;
use super::{GroupStorage, Log, LogConfig, LogError, format};
use crate::facts::command::{Batch, Command, Envelope};
use crate::facts::{GroupId, Timestamp};
use crate::store::{MetaStore, RaftMachine, StoreConfig};

struct Builder;

impl StoreBuilder<Types, GroupStorage, RaftMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, GroupStorage, RaftMachine), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let mut config = LogConfig::new(dir.path().join("log"));
        config.segment_bytes = 4096;
        config.cache_bytes = 300;
        config.is_prepared_ahead = false;
        let log = Log::open(Arc::new(RealDisk), config, rand::random).unwrap();
        let store =
            StoreConfig { dir: dir.path().join("store"), cluster_id: String::new(), cache_bytes: 1 << 20 };
        let store = MetaStore::open(Arc::new(RealDisk), store).unwrap();
        Ok((dir, GroupStorage::new(log, GroupId(0)), RaftMachine::new(store)))
    }
}

/// openraft's own suite, with segments and memory so small that both are left all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_conformance_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

/// What is known of a group: the vote, what was purged, and the entries as (index, term).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<(u64, u64)>,
}

impl Model {
    fn of(log: &Log, group: GroupId) -> Self {
        let (purged, last) = log.bounds(group);
        let found = log.find(group, 0, u64::MAX, usize::MAX);
        let entries: Vec<Entry> = found.into_iter().map(|found| found.load().unwrap()).collect();
        for entry in &entries {
            assert_eq!(*entry, entry_of(entry.log_id.index, entry.log_id.leader_id.term), "bytes differ");
        }
        let entries: Vec<_> =
            entries.iter().map(|entry| (entry.log_id.index, entry.log_id.leader_id.term)).collect();
        assert_eq!(
            last.map(|last| last.index),
            entries.last().map(|last| last.0).or(purged.map(|purged| purged.index))
        );
        Self { vote: log.vote(group), purged, entries }
    }
}

fn log_id(index: u64, term: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

/// An entry whose bytes, and how many they are, follow from its id.
fn entry_of(index: u64, term: u64) -> Entry {
    let command = Command::CreateTenant {
        name: format!("tenant-{index}"),
        wrapped_key: vec![term as u8; (index * 397 % 1500) as usize].into(),
        quota_bytes: None,
    };
    let envelope = Envelope { session: term, serial: index, answered_below: 0, command };
    let batch = Batch { at: Timestamp(index), envelopes: vec![envelope] };
    Entry { log_id: log_id(index, term), payload: openraft::EntryPayload::Normal(Proposal::new(batch)) }
}

/// A random history of one or two groups, and what they are after each step.
struct History {
    random: StdRng,
    groups: Vec<(GroupId, Vec<Model>)>,
    term: u64,
}

type Durable = oneshot::Receiver<std::io::Result<()>>;

impl History {
    fn new(seed: u64, group_count: u32) -> Self {
        let groups = (0..group_count).map(|group| (GroupId(group), vec![Model::default()])).collect();
        Self { random: StdRng::seed_from_u64(seed), groups, term: 1 }
    }

    fn pick(&mut self, below: u64) -> u64 {
        self.random.next_u64() % below
    }

    /// Takes one step. Where the answer can be waited for: the group, how many states it covers, the answer.
    fn step(&mut self, log: &Log) -> Option<(usize, usize, Durable)> {
        let which = self.pick(self.groups.len() as u64) as usize;
        let (kind, count, term_grows) = (self.pick(10), self.pick(5) + 1, self.pick(4) == 0);
        let cut = self.pick(4);
        self.term += u64::from(term_grows);
        let term = self.term;
        let (group, states) = &mut self.groups[which];
        let mut now = states.last().unwrap().clone();
        let next =
            now.entries.last().map_or(now.purged.map_or(0, |purged| purged.index + 1), |last| last.0 + 1);
        let mut answer = None;
        match kind {
            0..=5 => {
                let (sender, receiver) = oneshot::channel();
                let entries = (next..next + count).map(|index| entry_of(index, term));
                log.append(*group, entries, Done::Signal(sender)).unwrap();
                // An append may become durable in part, each entry after the one before.
                for index in next..next + count {
                    now.entries.push((index, term));
                    states.push(now.clone());
                }
                answer = Some(receiver);
            }
            6 | 7 => {
                let vote = Vote { leader_id: LeaderId { term, node_id: 1 }, committed: count > 2 };
                log.save_vote(*group, vote, Done::Nobody).unwrap();
                now.vote = Some(vote);
                states.push(now);
            }
            8 if now.entries.len() > cut as usize => {
                now.entries.truncate(now.entries.len() - cut as usize);
                let last = now.entries.last().map(|&(index, term)| log_id(index, term)).or(now.purged);
                log.truncate_after(*group, last).unwrap();
                states.push(now);
            }
            9 if now.entries.len() > 2 => {
                let (index, term) = now.entries[now.entries.len() / 2];
                log.purge(*group, log_id(index, term)).unwrap();
                now.entries.retain(|entry| entry.0 > index);
                now.purged = Some(log_id(index, term));
                states.push(now);
            }
            _ => {}
        }
        answer.map(|answer| (which, states.len() - 1, answer))
    }
}

fn sim_config() -> LogConfig {
    LogConfig { dir: PathBuf::from("/log"), segment_bytes: 8192, cache_bytes: 2000, is_prepared_ahead: false }
}

fn open(disk: &SimDisk) -> Result<Log, LogError> {
    Log::open(Arc::new(disk.mount()), sim_config(), rand::random)
}

/// After a power cut that keeps any of the unsynced sectors, each group is in a state it was in, not before the
/// last acknowledged one; and the log goes on from there, through further cuts.
#[test]
fn a_power_cut_keeps_what_was_acknowledged() {
    for seed in 0..300 {
        let disk = SimDisk::default();
        let mut history = History::new(seed, 1 + (seed % 2) as u32);
        for cut in 0..3 {
            let log = open(&disk).unwrap();
            for (group, states) in &mut history.groups {
                let found = Model::of(&log, *group);
                assert!(
                    states.contains(&found),
                    "seed {seed}, cut {cut}: {found:?} was never so: {states:?}"
                );
                *states = vec![found];
            }
            let mut acknowledged = vec![0; history.groups.len()];
            let mut open_answers = Vec::new();
            for _ in 0..history.pick(60) {
                open_answers.extend(history.step(&log));
                if history.pick(4) == 0 {
                    for (which, state, answer) in open_answers.drain(..) {
                        block_on(answer).unwrap().unwrap();
                        acknowledged[which] = state;
                    }
                }
            }
            let mut chance = StdRng::seed_from_u64(seed * 10 + cut);
            disk.crash(|| chance.next_u32() % 3 != 0);
            for (which, state, mut answer) in open_answers {
                if let Ok(Some(Ok(()))) = answer.try_recv() {
                    acknowledged[which] = state;
                }
            }
            for (which, (_, states)) in history.groups.iter_mut().enumerate() {
                states.drain(..acknowledged[which]);
            }
        }
    }
}

/// A log written frame by frame, and what is known after each frame. The last is never recycled.
fn written() -> (SimDisk, Vec<Model>) {
    let disk = SimDisk::default();
    let log = open(&disk).unwrap();
    let mut states = vec![Model::default()];
    for index in 0..20 {
        let (sender, receiver) = oneshot::channel();
        log.append(GroupId(0), [entry_of(index, 1)], Done::Signal(sender)).unwrap();
        block_on(receiver).unwrap().unwrap();
        states.push(Model::of(&log, GroupId(0)));
    }
    log.close();
    (disk, states)
}

/// Where frames begin and end in the newest segment, and how many precede it.
fn frames_of_newest(disk: &SimDisk) -> (PathBuf, Vec<(usize, usize)>, u64) {
    let path =
        disk.paths().into_iter().filter(|path| path.to_string_lossy().contains("segment-")).max().unwrap();
    let mut out = Vec::new();
    let mut first = 0;
    disk.patch(&path, |bytes| {
        let header = format::SegmentHeader::decode(bytes).unwrap();
        first = header.first_frame;
        let mut at = format::SECTOR_BYTES as usize;
        while let Some(frame) = format::frame_at(&bytes[at..], header.salt) {
            out.push((at, at + frame.len));
            at += frame.len;
        }
    });
    (path, out, first)
}

/// Wherever the newest segment is cut off, what was whole before the cut is there and nothing else.
#[test]
fn a_torn_tail_is_dropped_wherever_it_is_torn() {
    let (disk, states) = written();
    let (path, frames, first) = frames_of_newest(&disk);
    assert!(frames.len() > 1 && first > 0);
    let end = frames.last().unwrap().1;
    for cut in (format::SECTOR_BYTES as usize..end).step_by(13) {
        let torn = disk.fork();
        torn.patch(&path, |bytes| bytes[cut..].fill(0));
        let whole = frames.iter().filter(|(_, end)| {
            // The padding of a frame holds nothing.
            *end <= cut
        });
        let least = first as usize + whole.count();
        let found = Model::of(&open(&torn).unwrap(), GroupId(0));
        let is_padding_cut =
            found == states[least + 1] && frames.iter().any(|(at, end)| *at < cut && cut < *end);
        assert!(found == states[least] || is_padding_cut, "cut at {cut}");
    }
}

/// A flipped bit in the last frame is a torn tail; before it, the log refuses to start and names the segment.
#[test]
fn a_flipped_bit_is_never_read_over() {
    let (disk, states) = written();
    let (path, frames, first) = frames_of_newest(&disk);
    let last = frames.len() - 1;
    for (i, &(at, end)) in frames.iter().enumerate() {
        for byte in (at..end).step_by(37) {
            for bit in [0, 7] {
                let flipped = disk.fork();
                flipped.patch(&path, |bytes| bytes[byte] ^= 1 << bit);
                match open(&flipped) {
                    Ok(log) => {
                        let found = Model::of(&log, GroupId(0));
                        let whole = states.last().unwrap();
                        assert!(found == *whole || i == last && found == states[first as usize + last]);
                    }
                    Err(LogError::Corrupt { path: named, offset, .. }) => {
                        assert!(i < last, "frame {i} of {last}, byte {byte}");
                        assert_eq!((named, offset), (path.clone(), at as u64));
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
    let flipped = disk.fork();
    flipped.patch(&path, |bytes| bytes[20] ^= 1);
    assert!(matches!(open(&flipped), Err(LogError::Corrupt { .. })), "the header of a segment");
}

/// A segment that is gone, from the middle or the start, is noticed.
#[test]
fn a_missing_segment_is_noticed() {
    let (disk, _) = written();
    let paths: Vec<_> =
        disk.paths().into_iter().filter(|path| path.to_string_lossy().contains("segment-")).collect();
    assert!(paths.len() > 2);
    disk.remove(&paths[1]).unwrap();
    assert!(matches!(open(&disk), Err(LogError::Corrupt { .. })));
}

/// Purging lets go of files: the log never holds more than its entries and a few segments take.
#[test]
fn purging_bounds_the_files() {
    let disk = SimDisk::default();
    let log = open(&disk).unwrap();
    for index in 0..500 {
        let (sender, receiver) = oneshot::channel();
        log.append(GroupId(0), [entry_of(index, 1)], Done::Signal(sender)).unwrap();
        block_on(receiver).unwrap().unwrap();
        if index > 5 {
            log.purge(GroupId(0), log_id(index - 5, 1)).unwrap();
        }
        assert!(disk.paths().len() <= 6, "{:?}", disk.paths());
    }
    let before = Model::of(&log, GroupId(0));
    log.close();
    assert_eq!(Model::of(&open(&disk).unwrap(), GroupId(0)), before);
}

/// After a sync that failed nothing is acknowledged any more, even if later syncs would succeed.
#[test]
fn a_failed_sync_is_the_end() {
    let disk = SimDisk::default();
    let log = open(&disk).unwrap();
    disk.fail_syncs();
    for index in 0..2 {
        let (sender, receiver) = oneshot::channel();
        let appended = log.append(GroupId(0), [entry_of(index, 1)], Done::Signal(sender));
        assert!(block_on(receiver).unwrap().is_err());
        assert!(index == 0 || appended.is_err());
    }
}
