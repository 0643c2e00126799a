//! Bytes that no machine wrote.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::facts::object::Upload;
use crate::facts::query::ListObjects;

/// A store with a record of every kind.
fn full() -> World {
    let mut world = World::new();
    let many: Vec<Extent> = (0..300).map(|at| extent(1, at, 1)).collect();
    world.put("a/b", content(many, vec![new_blob(1, world.now)])).expect("it is sound");
    world.put("a/c", whole(2, 10, world.now)).expect("it is sound");
    world.put("a/c", empty()).expect("it is sound");
    let upload = |id: &str| Upload {
        id: id.to_owned(),
        key: "a/u".to_owned(),
        started_at: Timestamp(0),
        headers: ObjectHeaders::default(),
        checksum_algorithm: None,
        checksum_is_composite: false,
    };
    for id in ["u", "v"] {
        world
            .run(Command::CreateUpload { bucket: "aaa".to_owned(), upload: upload(id) })
            .expect("it is sound");
        world.put_part("a/u", id, 1, whole(3, 10, world.now)).expect("it is sound");
    }
    world.run(complete()).expect("it is sound");
    world
}

fn complete() -> Command {
    Command::CompleteUpload {
        bucket: "aaa".to_owned(),
        key: "a/u".to_owned(),
        upload_id: "v".to_owned(),
        parts: vec![(1, "e".to_owned())],
        etag: "w-1".to_owned(),
        checksum: None,
        precondition: Precondition::default(),
    }
}

fn commands(now: Timestamp) -> Vec<Command> {
    let (bucket, key, upload_id) = ("aaa".to_owned(), "a/u".to_owned(), "u".to_owned());
    vec![
        put("aaa", "a/b", whole(4, 1, now)),
        put("aaa", "a/c/d", content(vec![extent(2, 0, 1)], vec![])),
        complete(),
        Command::AbortUpload { bucket, key, upload_id },
        delete("aaa", "a/b"),
        delete("aaa", "a/c/d"),
        Command::SetNodeUp { node: node(1).id, is_up: false },
        Command::JoinNode { node: node(1), disks: vec![disk(1, 1)], token: None },
        Command::ForgetBlobs { blobs: vec![blob_id(1), blob_id(2)] },
        Command::ExpireSessions { idle_ms: 0 },
        Command::DeleteBucket { name: "bbb".to_owned() },
    ]
}

fn queries() -> Vec<Query> {
    let name = || "aaa".to_owned();
    vec![
        Query::Tenants,
        Query::Buckets { tenant: Some(TenantId(1)) },
        Query::Object { bucket: name(), key: "a/b".to_owned(), from_offset: 200, extents_max: 9 },
        Query::Objects(ListObjects { bucket: name(), entries_max: 9, ..ListObjects::default() }),
        Query::Uploads { bucket: name(), prefix: String::new(), after: None, entries_max: 9 },
        Query::Parts {
            bucket: name(),
            key: "a/u".to_owned(),
            upload_id: "u".to_owned(),
            after: 0,
            entries_max: 9,
        },
        Query::ClusterMap { known_epoch: None },
        Query::BlobsOfGroup { pg: GROUP, after_sequence: 0, entries_max: 9 },
        Query::BlobStates { ids: vec![blob_id(1), blob_id(2)] },
        Query::Garbage { before_ms: u64::MAX, entries_max: 9 },
    ]
}

/// Goes through everything; nothing may panic, and time is bounded.
fn use_all(mut world: World) {
    for query_ in queries() {
        _ = query(&world.kv, &query_);
    }
    world.now.0 += 10_000_000;
    for command in commands(world.now) {
        world.index += 1;
        world.serial += 1;
        let envelope = Envelope { session: 1, serial: world.serial, answered_below: 0, command };
        let batch = Batch { at: world.now, envelopes: vec![envelope] };
        let before = world.kv.clone();
        if apply(&mut world.kv, world.index, &batch).is_err() {
            assert_eq!(world.kv, before, "a batch that fails writes nothing");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// A record of any other bytes is an error or another fact, never a panic.
    #[test]
    fn damaged_records_do_not_panic(
        which in any::<Index>(),
        bytes in prop_oneof![
            vec(any::<u8>(), 0..40),
            vec(any::<u8>(), 0..40).prop_map(|bytes| [vec![1], bytes].concat()),
        ],
        flips in vec((any::<Index>(), any::<u8>()), 0..4),
        is_replaced in any::<bool>(),
    ) {
        let mut world = full();
        let at = which.index(world.kv.entries.len());
        let value = world.kv.entries.values_mut().nth(at).expect("it is inside");
        if is_replaced || value.is_empty() {
            *value = bytes;
        } else {
            for (place, byte) in flips {
                let place = place.index(value.len());
                value[place] = byte;
            }
        }
        use_all(world);
    }

    /// Any bytes decode to a command or an error, and any command that they decode to is answered.
    #[test]
    fn commands_of_any_bytes_do_not_panic(
        which in any::<Index>(),
        flips in vec((any::<Index>(), any::<u8>()), 0..6),
        noise in vec(any::<u8>(), 0..200),
    ) {
        _ = rmp_serde::from_slice::<Batch>(&noise);
        _ = rmp_serde::from_slice::<Query>(&noise);
        let mut world = full();
        let commands = commands(world.now);
        let command = &commands[which.index(commands.len())];
        let mut bytes = rmp_serde::to_vec(command).expect("a command can be written");
        for (place, byte) in flips {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(command) = rmp_serde::from_slice::<Command>(&bytes) {
            _ = world.run(command);
        }
    }
}

/// A record that a later format wrote is said to be that.
#[test]
fn a_later_format_is_refused() {
    let mut world = World::new();
    for value in world.kv.entries.values_mut() {
        value[0] = 2;
    }
    let error = query(&world.kv, &Query::Tenants).expect_err("the format is not known");
    assert!(error.to_string().contains("format 2"), "{error}");
}

/// A walk through a directory that leads back to itself ends.
#[test]
fn a_loop_of_directories_ends() {
    let mut world = full();
    let entry =
        world.kv.entries.keys().find(|key| key[0] == 0x40 && key.ends_with(b"a/")).expect("it is there");
    let (root, name) = entry[1..].split_at(8);
    let looping = crate::machine::names::Directory {
        inode: u64::from_be_bytes(root.try_into().expect("8 bytes")),
        entries: 1,
        directories: 1,
        attributes: None,
    };
    assert_eq!(name, b"a/");
    let record = crate::machine::draft::encode(&looping).expect("it can be written");
    world.kv.entries.insert(entry.clone(), record);
    let list = ListObjects { bucket: "aaa".to_owned(), entries_max: 9, ..ListObjects::default() };
    assert!(query(&world.kv, &Query::Objects(list)).is_ok());
}
