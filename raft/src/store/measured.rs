//! What the store costs on a disk, printed: `cargo test --release -p makai-raft --lib measured -- --ignored --nocapture`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::impls::leader_id_adv::LeaderId;
use redb::Durability;

use super::database::{DATABASE_FILE, FACTS};
use super::*;
use crate::facts::Timestamp;
use crate::facts::command::{Batch, Command, Envelope, Precondition, Reply};
use crate::facts::object::{ObjectHeaders, PART_BYTES_MIN, PARTS_MAX, Upload};
use crate::facts::query::{Answer, ListObjects, Query};
use crate::log::disk::RealDisk;
use crate::log::types::{Entry, LogId, Proposal};
use crate::machine::keys;
use crate::machine::tests::{START_MS, founding, put, whole};

const KEYS: u64 = 10_000_000;
/// Written in one transaction.
const KEYS_PER_TRANSACTION: u64 = 500_000;
const PAGE: u32 = 1000;

#[expect(clippy::disallowed_methods, reason = "a measurement")]
fn now() -> Instant {
    Instant::now()
}

fn open(dir: &std::path::Path) -> MetaStore {
    let config = StoreConfig { dir: dir.to_owned(), cluster_id: "one".into(), cache_bytes: 64 << 20 };
    MetaStore::open(Arc::new(RealDisk), config).unwrap()
}

/// One voter's facts, and its log's position.
struct Voter {
    store: MetaStore,
    index: u64,
}

impl Voter {
    fn founded(store: MetaStore) -> Self {
        let mut voter = Self { store, index: 0 };
        voter.run(founding());
        voter
    }

    /// In one entry; returns the last reply, which must be one.
    fn run(&mut self, commands: Vec<Command>) -> Reply {
        self.index += 1;
        let serial = self.index << 32;
        let envelopes = (serial..).zip(commands).map(|(serial, command)| Envelope {
            session: 1,
            serial,
            answered_below: serial,
            command,
        });
        let batch = Batch { at: Timestamp(START_MS), envelopes: envelopes.collect() };
        let log_id = LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index: self.index };
        let entry = Entry { log_id, payload: openraft::EntryPayload::Normal(Proposal::new(batch)) };
        let mut replies = self.store.apply(&[entry]).unwrap().remove(0).0;
        replies.pop().expect("a reply for each command").expect("it is done")
    }
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    format!("p50 {:.2?}, p99 {:.2?}, longest {:.2?}", at(50), at(99), at(100))
}

#[test]
#[ignore = "a measurement: writes ten million keys, 3 GB"]
fn a_page_of_a_thousand_of_ten_million_keys() {
    let dir = tempfile::tempdir().unwrap();
    let name = |number: u64| format!("key-{number:08}");
    {
        // One object is put; the others are its copies under other names, without the way through the log.
        let mut voter = Voter::founded(open(dir.path()));
        voter.run(vec![put("aaa", &name(0), whole(1, 100_000, Timestamp(START_MS)))]);
        let mut found = None;
        let view = voter.store.commit_durably().unwrap();
        view.for_each_pair(&mut |key, record| {
            if key.ends_with(name(0).as_bytes()) {
                found = Some((keys::parts_of_entry(key).0, record.to_vec()));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        let (directory, record) = found.expect("the object's entry");
        let begun = now();
        for first in (0..KEYS).step_by(KEYS_PER_TRANSACTION as usize) {
            let database = voter.store.with_current(|current| Arc::clone(&current.database)).unwrap();
            let mut transaction = database.begin_write().unwrap();
            transaction.set_durability(Durability::Immediate).unwrap();
            {
                let mut facts = transaction.open_table(FACTS).unwrap();
                for number in first..first + KEYS_PER_TRANSACTION {
                    let key = keys::entry(directory, name(number).as_bytes());
                    facts.insert(key.as_slice(), record.as_slice()).unwrap();
                }
            }
            transaction.commit().unwrap();
        }
        println!("{KEYS} keys of {} bytes written in {:.0?}", record.len(), begun.elapsed());
        voter.store.close().unwrap();
    }
    let begun = now();
    let store = open(dir.path());
    println!("opened with {KEYS} keys in {:.2?}", begun.elapsed());
    {
        // As a power cut leaves it: with changes since the last durable commit, and nobody who closed it.
        let mut voter = Voter { store: store.clone(), index: 2 };
        for number in 0..20_000 {
            voter.run(vec![put(
                "aaa",
                &format!("later-{number}"),
                whole(10 + number, 100_000, Timestamp(START_MS)),
            )]);
        }
        let cut = tempfile::tempdir().unwrap();
        std::fs::copy(dir.path().join(DATABASE_FILE), cut.path().join(DATABASE_FILE)).unwrap();
        let begun = now();
        let cut_short = open(cut.path());
        println!("opened after a power cut, log not counted, in {:.2?}", begun.elapsed());
        let (bucket, prefix, delimiter) = ("aaa".to_owned(), String::new(), String::new());
        let list = ListObjects { bucket, prefix, delimiter, after: name(KEYS - 2), entries_max: 1 };
        let answer = cut_short.query(&Query::Objects(list)).unwrap().unwrap();
        assert!(matches!(answer, Answer::Objects { entries, .. } if entries.len() == 1));
    }
    for round in ["first", "second"] {
        let mut times = Vec::new();
        for step in 0..1000 {
            let after = name(step * 7_919_993 % (KEYS - u64::from(PAGE) - 1));
            let (bucket, prefix, delimiter) = ("aaa".to_owned(), String::new(), String::new());
            let list = ListObjects { bucket, prefix, delimiter, after, entries_max: PAGE };
            let begun = now();
            let answer = store.query(&Query::Objects(list)).unwrap().unwrap();
            times.push(begun.elapsed());
            let Answer::Objects { entries, is_truncated: true } = answer else { panic!("a full page") };
            assert_eq!(entries.len(), PAGE as usize);
        }
        println!("a page of {PAGE} of {KEYS}, {round} time at 1,000 places: {}", percentiles(times));
    }
}

#[test]
#[ignore = "a measurement"]
fn ten_thousand_parts_are_completed() {
    let dir = tempfile::tempdir().unwrap();
    let mut voter = Voter::founded(open(dir.path()));
    let mut times = Vec::new();
    for round in 0..5 {
        let (bucket, key, id) = ("aaa".to_owned(), format!("key-{round}"), format!("upload-{round}"));
        let upload = Upload {
            id: id.clone(),
            key: key.clone(),
            started_at: Timestamp(START_MS),
            headers: ObjectHeaders::default(),
            checksum_algorithm: None,
            checksum_is_composite: false,
        };
        voter.run(vec![Command::CreateUpload { bucket: bucket.clone(), upload }]);
        for first in (1..=PARTS_MAX).step_by(500) {
            let parts = (first..first + 500).map(|number| Command::PutPart {
                bucket: bucket.clone(),
                key: key.clone(),
                upload_id: id.clone(),
                number,
                new: whole(round * 20_000 + u64::from(number), PART_BYTES_MIN, Timestamp(START_MS)),
            });
            voter.run(parts.collect());
        }
        voter.store.commit_durably().unwrap();
        let parts = (1..=PARTS_MAX).map(|number| (number, "e".to_owned())).collect();
        let (etag, checksum, precondition) = ("whole-10000".to_owned(), None, Precondition::default());
        let upload_id = id;
        let complete =
            Command::CompleteUpload { bucket, key, upload_id, parts, etag, checksum, precondition };
        let begun = now();
        voter.run(vec![complete]);
        times.push(begun.elapsed());
    }
    println!("{PARTS_MAX} parts completed on one voter: {}", percentiles(times));
}
