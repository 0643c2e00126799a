//! What the store promises: whole transactions, whole snapshots.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::impls::leader_id_adv::LeaderId;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::*;
use crate::facts::Timestamp;
use crate::facts::command::{Batch, Command, Envelope};
use crate::log::disk::{Disk, DiskFile};
use crate::log::testing::SimDisk;
use crate::log::types::{Entry, LogId, Proposal, SnapshotMeta};
use crate::machine::kv::MemKv;

type Facts = BTreeMap<Vec<u8>, Vec<u8>>;

fn open(disk: &SimDisk, dir: &str) -> MetaStore {
    let config = StoreConfig { dir: PathBuf::from(dir), cluster_id: "one".into(), cache_bytes: 1 << 20 };
    MetaStore::open(Arc::new(disk.mount()), config).unwrap()
}

fn entry(index: u64, at: u64) -> Entry {
    entry_of(index, at, 1)
}

fn big_entry(index: u64, commands: u64) -> Entry {
    entry_of(index, index, commands)
}

fn entry_of(index: u64, at: u64, commands: u64) -> Entry {
    let envelope = |serial: u64| {
        let command = Command::CreateTenant {
            name: format!("tenant-{serial}"),
            wrapped_key: vec![serial as u8; 5000].into(),
            quota_bytes: None,
        };
        // Replies are forgotten soon after they were kept, as with a client that is answered.
        Envelope { session: 1, serial, answered_below: serial.saturating_sub(30), command }
    };
    let envelopes = (index * commands..(index + 1) * commands).map(envelope).collect();
    let batch = Batch { at: Timestamp(at), envelopes };
    let log_id = LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index };
    Entry { log_id, payload: openraft::EntryPayload::Normal(Proposal::new(batch)) }
}

fn facts(store: &MetaStore) -> (Facts, Position) {
    let view = store.frozen().unwrap();
    (pairs(&view), view.position().unwrap())
}

fn pairs(view: &Frozen) -> Facts {
    let mut out = Facts::new();
    view.for_each_pair(&mut |key, value| {
        out.insert(key.to_vec(), value.to_vec());
        ControlFlow::Continue(())
    })
    .unwrap();
    out
}

/// A snapshot of `store` in a file, with the position it is announced with.
fn snapshot_file(disk: &SimDisk, store: &MetaStore) -> (SnapshotMeta, Arc<dyn DiskFile>) {
    let view = store.frozen().unwrap();
    let position = view.position().unwrap();
    let file: Arc<dyn DiskFile> = Arc::from(disk.open(Path::new("/snapshot")).unwrap());
    let mut at = 0;
    snapshot::write("one", &view, &mut |piece| {
        assert!(piece.len() <= snapshot::CHUNK_BYTES_MAX);
        file.write_at(at, &piece).unwrap();
        at += piece.len() as u64;
        ControlFlow::Continue(())
    })
    .unwrap();
    (SnapshotMeta { last_log_id: position.applied, last_membership: position.membership }, file)
}

/// A power cut takes the store back to a position it was at, with the facts of that position, never to one before
/// the last durable commit.
#[test]
fn a_power_cut_goes_back_to_a_whole_position() {
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = SimDisk::default();
        let mut states = Vec::new();
        let mut durable = 0;
        {
            let store = open(&disk, "/store");
            states.push(facts(&store));
            for index in 0..20 {
                store.apply(&[entry(index, index)]).unwrap();
                states.push(facts(&store));
                if random.next_u32() % 5 == 0 {
                    store.commit_durably().unwrap();
                    durable = states.len() - 1;
                }
            }
            disk.crash(|| random.next_u32() % 2 == 0);
        }
        let found = facts(&open(&disk, "/store"));
        assert!(states[durable..].contains(&found), "seed {seed}: at {:?}", found.1.applied);
    }
}

/// What is seen is what the machine makes of the log, whatever has been folded into the database when, and by which
/// thread; an older view goes on seeing what it saw; all of it is there after a durable commit and a power cut.
#[test]
fn folds_change_nothing_that_is_seen() {
    let mut random = StdRng::seed_from_u64(1);
    let disk = SimDisk::default();
    let store = open(&disk, "/store");
    let mut model = MemKv::default();
    let mut old = None;
    for index in 0..60 {
        // 60 times 25 commands of 5 kB: the delta goes over its bound more than once.
        let entry = big_entry(index, 25);
        let openraft::EntryPayload::Normal(proposal) = &entry.payload else {
            unreachable!("it is a command")
        };
        crate::machine::apply(&mut model, index, proposal.batch()).unwrap();
        store.apply(&[entry]).unwrap();
        match random.next_u32() % 8 {
            0 => drop(store.commit_durably().unwrap()),
            1 => old = Some((store.frozen().unwrap(), model.entries.clone())),
            _ => {}
        }
        assert_eq!(facts(&store).0, model.entries, "after entry {index}");
    }
    let (view, then) = old.expect("one of sixty takes a view");
    assert_eq!(pairs(&view), then);
    store.close().unwrap();
    assert!(store.frozen().is_err() && store.apply(&[entry(99, 99)]).is_err(), "it is closed");
    disk.crash(|| false);
    assert_eq!(facts(&open(&disk, "/store")).0, model.entries);
}

/// An installed snapshot is the same facts at the same position, at once and after a power cut.
#[test]
fn an_installed_snapshot_is_its_source() {
    let disk = SimDisk::default();
    let source = open(&disk, "/source");
    for first in [0, 500, 1000] {
        let entries: Vec<_> = (first..first + 500).map(|index| entry(index, index)).collect();
        source.apply(&entries).unwrap();
    }
    let (meta, file) = snapshot_file(&disk, &source);
    let target = open(&disk, "/target");
    target.apply(&[entry(7, 7)]).unwrap();
    let old_view = target.frozen().unwrap();
    target.install(&meta, &SnapshotData::Received(file)).unwrap();
    assert_eq!(facts(&target), facts(&source));
    assert_eq!(old_view.position().unwrap().applied, Some(entry(7, 7).log_id), "a view outlives an install");
    disk.crash(|| false);
    assert_eq!(facts(&open(&disk, "/target")).1.applied, meta.last_log_id);
}

/// A snapshot that is cut short, altered, of another cluster or not the one announced changes nothing.
#[test]
fn a_bad_snapshot_changes_nothing() {
    let disk = SimDisk::default();
    let source = open(&disk, "/source");
    source.apply(&(0..5).map(|index| entry(index, index)).collect::<Vec<_>>()).unwrap();
    let (meta, file) = snapshot_file(&disk, &source);
    let target = open(&disk, "/target");
    target.apply(&[entry(7, 7)]).unwrap();
    let before = facts(&target);
    let mut whole = vec![0; file.len().unwrap() as usize];
    file.read_at(0, &mut whole).unwrap();
    let refused = |bytes: &[u8], meta: &SnapshotMeta| {
        let file = disk.open(Path::new("/altered")).unwrap();
        file.set_len(0).unwrap();
        file.write_at(0, bytes).unwrap();
        let installed = target.install(meta, &SnapshotData::Received(Arc::from(file)));
        assert!(matches!(installed, Err(StoreError::BadSnapshot(_))), "{installed:?}");
        assert_eq!(facts(&target), before);
    };
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        refused(&whole[..at], &meta);
        let mut altered = whole.clone();
        altered[at] ^= 1;
        refused(&altered, &meta);
    }
    refused(&[whole.as_slice(), &[0]].concat(), &meta);
    refused(&whole, &SnapshotMeta { last_log_id: Some(entry(3, 3).log_id), ..meta.clone() });
    let config = StoreConfig { dir: "/foreign".into(), cluster_id: "two".into(), cache_bytes: 1 << 20 };
    let foreign = MetaStore::open(Arc::new(disk.mount()), config).unwrap();
    let installed = foreign.install(&meta, &SnapshotData::Received(file));
    assert!(matches!(installed, Err(StoreError::BadSnapshot(_))));
}

/// The time that commands see never goes back, whatever the leaders' clocks say.
#[test]
fn the_time_of_the_log_never_goes_back() {
    let disk = SimDisk::default();
    let store = open(&disk, "/store");
    let mut latest = 0;
    for (index, at) in [50, 40, 60, 10, 61].into_iter().enumerate() {
        store.apply(&[entry(index as u64, at)]).unwrap();
        latest = latest.max(at);
        assert_eq!(facts(&store).1.stamp, Timestamp(latest));
    }
}
