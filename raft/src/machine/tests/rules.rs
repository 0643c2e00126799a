//! One rule a test.

use super::*;
use crate::facts::object::{PART_BYTES_MIN, Upload};
use crate::facts::tenant::AccessKey;
use crate::facts::version::{Deleted, Likeness, VersionCommand, VersionReply};
use crate::machine::kv::{Edit, KvError, View};
use crate::machine::{CLOCK_AHEAD_MS_MAX, REVIVE_MS_MAX};

const HOUR_MS: u64 = 3_600_000;

fn is_invalid<T>(result: Result<T, Refusal>) -> bool {
    matches!(result, Err(Refusal::Invalid(_)))
}

fn begin(world: &mut World, key: &str, id: &str) {
    let upload = Upload {
        id: id.to_owned(),
        key: key.to_owned(),
        started_at: Timestamp(0),
        headers: ObjectHeaders::default(),
        checksum_algorithm: None,
        checksum_is_composite: false,
    };
    world.run(Command::CreateUpload { bucket: "aaa".to_owned(), upload }).expect("it can begin");
}

fn complete(key: &str, id: &str, parts: &[u16]) -> Command {
    Command::CompleteUpload {
        bucket: "aaa".to_owned(),
        key: key.to_owned(),
        upload_id: id.to_owned(),
        parts: parts.iter().map(|&number| (number, "\"e\"".to_owned())).collect(),
        etag: "w-2".to_owned(),
        checksum: None,
        precondition: Precondition::default(),
    }
}

#[test]
fn bucket_names_follow_s3() {
    let mut world = World::new();
    let mut make = |name: &str| {
        world.run(Command::CreateBucket { name: name.to_owned(), tenant: TenantId(1), scheme: None })
    };
    let long = "a".repeat(64);
    for name in [
        "",
        "ab",
        &long,
        "Abc",
        "a_b",
        "-ab",
        "ab-",
        ".ab",
        "ab.",
        "a..b",
        "a.-b",
        "a-.b",
        "192.168.1.1",
        "999.999.999.999",
        "xn--abc",
        "abc-s3alias",
        "abc--ol-s3",
        "a/b",
        "a b",
        "äbc",
        "abc\n",
    ] {
        assert!(is_invalid(make(name)), "{name:?} is no name");
    }
    for name in ["abc", "a.b", "0-0", "1.2.3", "1.2.3.4.5", "a--b", &long[1..]] {
        assert!(make(name).is_ok(), "{name:?} is a name");
    }
    assert_eq!(make("abc"), Err(Refusal::BucketOwned));
    assert_eq!(
        world.run(Command::CreateBucket { name: "abc".to_owned(), tenant: TenantId(2), scheme: None }),
        Err(Refusal::BucketTaken)
    );
}

/// A bucket's documents go with it: one of the same name made later has none.
#[test]
fn documents_go_with_their_bucket() {
    let mut world = World::new();
    let (name, document) = ("aaa".to_owned(), "cors".to_owned());
    let value = Some(Bytes::from_static(b"<x/>"));
    let set =
        Command::SetBucketDocument { name: name.clone(), document: document.clone(), value: value.clone() };
    world.run(set).expect("the bucket exists");
    let ask = Query::BucketDocument { name: name.clone(), document };
    assert_eq!(world.ask(ask.clone()), Ok(Answer::Document(value)));
    world.run(Command::DeleteBucket { name: name.clone() }).expect("it is empty");
    assert_eq!(world.ask(ask.clone()), Err(Refusal::NoSuchBucket));
    world.run(Command::CreateBucket { name, tenant: TenantId(1), scheme: None }).expect("the name is free");
    assert_eq!(world.ask(ask), Ok(Answer::Document(None)));
}

/// A deletion that names a size or a time happens where they hold. What is not there is deleted already.
#[test]
fn a_deletion_may_name_a_size_and_a_time() {
    let mut world = World::new();
    let delete = |world: &mut World, size, modified_secs| {
        world.run(Command::Version(VersionCommand::DeleteLike {
            bucket: "aaa".to_owned(),
            key: "k".to_owned(),
            version: None,
            bypass_governance: false,
            precondition: Precondition::default(),
            likeness: Likeness { size, modified_secs },
        }))
    };
    let existed = |existed| {
        let deleted = Deleted { existed, ..Deleted::default() };
        Ok(Reply::Version(VersionReply::Deleted(deleted)))
    };
    let secs = world.put("k", empty()).expect("the bucket exists").modified_at.0 / 1000;
    for (size, modified_secs) in [(Some(1), None), (None, Some(secs + 1)), (Some(0), Some(secs - 1))] {
        assert_eq!(delete(&mut world, size, modified_secs), Err(Refusal::PreconditionFailed));
    }
    assert_eq!(delete(&mut world, Some(0), Some(secs)), existed(true));
    assert_eq!(delete(&mut world, Some(9), None), existed(false));
}

#[test]
fn keys_have_1_to_1024_bytes() {
    let mut world = World::new();
    assert!(is_invalid(world.put("", empty())));
    assert!(is_invalid(world.put(&"é".repeat(513), empty())));
    assert!(world.put(&"é".repeat(512), empty()).is_ok());
    let long = "/".repeat(1 << 20);
    assert_eq!(world.run(delete("aaa", &long)), Ok(Reply::Deleted { existed: false }));
    let ask = Query::Object { bucket: "aaa".to_owned(), key: long, from_offset: 0, extents_max: 1 };
    assert_eq!(world.ask(ask), Err(Refusal::NoSuchKey));
}

/// A blob's clock counts from its opening; a clock somewhat ahead is let pass.
#[test]
fn blobs_opened_too_long_ago_are_refused() {
    let mut world = World::new();
    let now = world.now.0;
    let mut put_opened = |blob, at| world.put("k", whole(blob, 1, Timestamp(at)));
    assert_eq!(put_opened(1, now - HOUR_MS - 1), Err(Refusal::BlobTooOld));
    assert!(put_opened(2, now - HOUR_MS).is_ok());
    assert!(put_opened(3, now + CLOCK_AHEAD_MS_MAX).is_ok());
    assert!(is_invalid(put_opened(4, now + CLOCK_AHEAD_MS_MAX + 1)));
}

/// No tenant's version can name another tenant's blob, nor take over its id.
#[test]
fn blobs_stay_with_their_tenant() {
    let mut world = World::new();
    world.put("k", whole(1, 10, world.now)).expect("it is sound");
    assert!(is_invalid(world.run(put("ccc", "k", content(vec![extent(1, 0, 10)], vec![])))));
    assert!(is_invalid(world.run(put("ccc", "k", whole(1, 10, world.now)))));
    assert!(world.run(put("bbb", "k", content(vec![extent(1, 0, 10)], vec![]))).is_ok());
}

/// A known id may be given again only as the same blob.
#[test]
fn an_id_means_one_blob() {
    let mut world = World::new();
    world.put("k", whole(1, 10, world.now)).expect("it is sound");
    let mut other = whole(1, 10, world.now);
    other.blobs[0].root = [8; 32];
    assert!(is_invalid(world.put("l", other)));
    assert!(world.put("l", whole(1, 10, world.now)).is_ok());
}

#[test]
fn content_must_agree_with_itself() {
    let mut world = World::new();
    let now = world.now;
    let mut faults: Vec<NewContent> = Vec::new();
    let mut fault = |change: &dyn Fn(&mut NewContent)| {
        let mut new = whole(1, 10, now);
        change(&mut new);
        faults.push(new);
    };
    fault(&|new| new.size = 11);
    fault(&|new| new.content = Content::Empty);
    fault(&|new| new.content = Content::Extents(vec![extent(1, u64::MAX, 10)]));
    fault(&|new| new.content = Content::Extents(vec![extent(1, BLOB_BYTES - 9, 10)]));
    fault(&|new| new.content = Content::Extents(vec![extent(1, 0, 10), extent(1, 0, 0)]));
    fault(&|new| new.content = Content::Extents(vec![extent(1, 0, u64::MAX), extent(1, 0, 11)]));
    fault(&|new| new.blobs.clear());
    fault(&|new| new.blobs.push(new_blob(1, now)));
    fault(&|new| new.blobs.push(new_blob(2, now)));
    fault(&|new| new.blobs[0].plain_len = 0);
    fault(&|new| new.blobs[0].plain_len = 64 * MIB + 1);
    fault(&|new| new.blobs[0].pg_version = 2);
    fault(&|new| new.blobs[0].wrapped_key = vec![0; 2000].into());
    fault(&|new| new.etag = "\"e\"".to_owned());
    fault(&|new| new.etag = String::new());
    let before = world.kv.entries.len();
    for new in faults {
        let shown = format!("{new:?}");
        assert!(is_invalid(world.put("k", new)), "{shown}");
    }
    let mut elsewhere = whole(1, 10, now);
    elsewhere.blobs[0].pg = PgId(9);
    assert!(matches!(world.put("k", elsewhere), Err(Refusal::NotFound(_))));
    let huge = NewContent { size: u64::MAX, ..empty() };
    assert_eq!(world.put("k", huge), Err(Refusal::TooLarge(u64::MAX)));
    assert_eq!(world.kv.entries.len(), before);
}

#[test]
fn inline_content_has_at_most_4_kib() {
    let mut world = World::new();
    let inline = |plain: u64| NewContent {
        size: plain,
        content: Content::Inline {
            blob: blob_id(1),
            wrapped_key: Bytes::new(),
            sealed: vec![0; plain as usize + 16].into(),
        },
        ..empty()
    };
    assert!(is_invalid(world.put("k", inline(0))));
    assert!(is_invalid(world.put("k", inline(4097))));
    assert!(world.put("k", inline(4096)).is_ok());
    begin(&mut world, "k", "u");
    assert!(is_invalid(world.put_part("k", "u", 1, inline(1))));
}

/// Garbage comes back while it may, at the end of its group's order, and never once it is offered.
#[test]
fn garbage_comes_back_or_goes_for_good() {
    let mut world = World::new();
    let of_group = |world: &World, after_sequence| match world.ask(Query::BlobsOfGroup {
        pg: GROUP,
        after_sequence,
        entries_max: 10,
    }) {
        Ok(Answer::Blobs(blobs)) => {
            blobs.into_iter().map(|blob| (blob.id, blob.sequence)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let offered = |world: &World| match world.ask(Query::Garbage { before_ms: u64::MAX, entries_max: 10 }) {
        Ok(Answer::Blobs(blobs)) => blobs.into_iter().map(|blob| blob.id).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let known = || content(vec![extent(1, 0, 10)], vec![]);
    let forget = || Command::ForgetBlobs { blobs: vec![blob_id(1), blob_id(1), blob_id(9)] };

    world.put("k", whole(1, 10, world.now)).expect("it is sound");
    world.put("l", whole(2, 10, world.now)).expect("it is sound");
    assert_eq!(of_group(&world, 0), [(blob_id(1), 1), (blob_id(2), 2)]);
    world.run(delete("aaa", "k")).expect("it can go");
    assert_eq!(of_group(&world, 0), [(blob_id(2), 2)]);

    world.now.0 += REVIVE_MS_MAX;
    world.run(forget()).expect("it does nothing");
    assert_eq!(offered(&world), []);
    world.put("k", known()).expect("the blob comes back");
    assert_eq!(of_group(&world, 2), [(blob_id(1), 3)]);

    world.run(delete("aaa", "k")).expect("it can go");
    world.now.0 += REVIVE_MS_MAX + 1;
    assert_eq!(world.put("k", known()), Err(Refusal::BlobTooOld));
    assert_eq!(offered(&world), [blob_id(1)]);
    let ask = Query::BlobStates { ids: vec![blob_id(1), blob_id(2)] };
    let states = |world: &World| match world.ask(ask.clone()) {
        Ok(Answer::BlobStates(states)) => states.iter().map(Option::is_some).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(states(&world), [true, true]);
    world.run(forget()).expect("its shards are gone");
    assert_eq!(states(&world), [false, true]);
    assert_eq!(offered(&world), []);
    assert!(is_invalid(world.put("k", known())));
}

/// Offsets in an object of many chunks find the extents that hold them, and read no chunk before.
#[test]
fn ranges_find_their_chunk() {
    let mut world = World::new();
    let count = 2000;
    let extents: Vec<Extent> = (0..count).map(|at| extent(1, at, 1 + at % 3)).collect();
    let size: u64 = extents.iter().map(|extent| extent.length).sum();
    world.put("k", content(extents, vec![new_blob(1, world.now)])).expect("it is sound");
    assert_eq!(world.keys_under(0x41).len(), 8);
    let mut offset = 0;
    let mut seen = 0;
    while offset < size {
        let ask = Query::Object {
            bucket: "aaa".to_owned(),
            key: "k".to_owned(),
            from_offset: offset,
            extents_max: 7,
        };
        let Ok(Answer::Object(answer)) = world.ask(ask) else { panic!("it is there") };
        assert!(answer.extents[0].at <= offset);
        for found in &answer.extents {
            assert_eq!(found.extent.offset, seen);
            seen += 1;
            offset = found.at + found.extent.length;
        }
        assert_eq!(answer.is_truncated, offset < size);
    }
    assert_eq!(seen, count);
    world.run(delete("aaa", "k")).expect("it can go");
    assert!(world.keys_under(0x41).is_empty());
}

#[test]
fn completion_follows_s3() {
    let mut world = World::new();
    let part = |blob, size, now| whole(blob, size, now);
    begin(&mut world, "k", "u");
    assert!(is_invalid(world.put_part("k", "u", 0, empty())));
    assert!(is_invalid(world.put_part("k", "u", 10_001, empty())));
    assert_eq!(world.put_part("k", "v", 1, empty()), Err(Refusal::NoSuchUpload));
    assert_eq!(world.put_part("other", "u", 1, empty()), Err(Refusal::NoSuchUpload));
    for (number, size) in [(1, PART_BYTES_MIN), (2, PART_BYTES_MIN - 1), (7, PART_BYTES_MIN), (10_000, 1)] {
        world.put_part("k", "u", number, part(u64::from(number), size, world.now)).expect("it is sound");
    }
    assert!(is_invalid(world.run(complete("k", "u", &[]))));
    assert_eq!(world.run(complete("k", "u", &[7, 1])), Err(Refusal::InvalidPartOrder));
    assert_eq!(world.run(complete("k", "u", &[1, 1])), Err(Refusal::InvalidPartOrder));
    assert_eq!(world.run(complete("k", "u", &[1, 3])), Err(Refusal::InvalidPart(3)));
    let too_small = Refusal::PartTooSmall { number: 2, size: PART_BYTES_MIN - 1 };
    assert_eq!(world.run(complete("k", "u", &[1, 2, 7])), Err(too_small));
    let Ok(Reply::Object(head)) = world.run(complete("k", "u", &[1, 7, 10_000])) else {
        panic!("it completes")
    };
    assert_eq!((head.size, head.part_count, head.etag.as_str()), (2 * PART_BYTES_MIN + 1, 3, "w-2"));
    let ask = Query::Object { bucket: "aaa".to_owned(), key: "k".to_owned(), from_offset: 0, extents_max: 9 };
    let Ok(Answer::Object(answer)) = world.ask(ask) else { panic!("it is there") };
    assert_eq!(answer.extents.iter().map(|found| found.extent.part).collect::<Vec<_>>(), [1, 7, 10_000]);

    // Again: the same answer, even after the key has changed; not for ever, and nothing is left behind.
    world.put("k", empty()).expect("it is sound");
    assert_eq!(world.run(complete("k", "u", &[1])), Ok(Reply::Object(head)));
    assert_eq!(world.put_part("k", "u", 1, empty()), Err(Refusal::NoSuchUpload));
    world.now.0 += HOUR_MS + 1;
    assert_eq!(world.run(complete("k", "u", &[1])), Err(Refusal::NoSuchUpload));
    begin(&mut world, "k", "w");
    world.put_part("k", "w", 1, empty()).expect("it is sound");
    world.run(complete("k", "w", &[1])).expect("it completes");
    assert_eq!((world.keys_under(0x63).len(), world.keys_under(0x64).len()), (1, 1));
    for first in [0x60, 0x61, 0x62] {
        assert!(world.keys_under(first).is_empty());
    }
}

/// Uploads are found by key, then by start, across keys that escape; one that has gone is a place to go on
/// from all the same.
#[test]
fn upload_listings_go_on_from_anywhere() {
    let mut world = World::new();
    for (key, id) in [("a\0b", "1"), ("a", "3"), ("a", "2"), ("a\0", "4"), ("ab", "5")] {
        begin(&mut world, key, id);
    }
    let ids = |world: &World, prefix: &str, after: Option<(&str, &str)>| {
        let ask = Query::Uploads {
            bucket: "aaa".to_owned(),
            prefix: prefix.to_owned(),
            after: after.map(|(key, id)| (key.to_owned(), id.to_owned())),
            entries_max: 10,
        };
        match world.ask(ask) {
            Ok(Answer::Uploads { uploads, .. }) => {
                uploads.iter().map(|upload| upload.id.clone()).collect::<String>()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ids(&world, "", None), "32415");
    assert_eq!(ids(&world, "a\0", None), "41");
    assert_eq!(ids(&world, "", Some(("a", "3"))), "2415");
    assert_eq!(ids(&world, "", Some(("a", ""))), "415");
    let abort =
        Command::AbortUpload { bucket: "aaa".to_owned(), key: "a".to_owned(), upload_id: "3".to_owned() };
    world.run(abort).expect("it is there");
    assert_eq!(ids(&world, "", Some(("a", "3"))), "2415");
}

#[test]
fn access_keys_belong_to_one_tenant() {
    let mut world = World::new();
    let key = |id: &str, tenant| AccessKey {
        id: id.to_owned(),
        tenant: TenantId(tenant),
        sealed_secret: Bytes::from_static(b"s"),
        created_at: Timestamp(0),
        is_enabled: true,
    };
    let id = "AKIA0123456789AB";
    let mut set = |key| world.run(Command::PutAccessKey { key });
    assert!(is_invalid(set(key(&id[1..], 1))));
    assert!(is_invalid(set(key(&id.to_lowercase(), 1))));
    assert!(matches!(set(key(id, 3)), Err(Refusal::NotFound(_))));
    assert_eq!(set(key(id, 1)), Ok(Reply::Done));
    assert!(matches!(set(key(id, 2)), Err(Refusal::AlreadyExists(_))));
    assert_eq!(set(AccessKey { is_enabled: false, ..key(id, 1) }), Ok(Reply::Done));
    let Ok(Answer::AccessKey(found, tenant)) = world.ask(Query::AccessKey { id: id.to_owned() }) else {
        panic!()
    };
    assert_eq!(
        (found.is_enabled, tenant.name.as_str(), found.created_at),
        (false, "one", Timestamp(START_MS))
    );
    assert_eq!(world.ask(Query::AccessKeys { tenant: TenantId(1) }), Ok(Answer::AccessKeys(vec![found])));
    world.run(Command::DeleteAccessKey { id: id.to_owned() }).expect("it is there");
    assert_eq!(world.ask(Query::AccessKeys { tenant: TenantId(1) }), Ok(Answer::AccessKeys(vec![])));
    assert!(matches!(world.run(Command::DeleteAccessKey { id: id.to_owned() }), Err(Refusal::NotFound(_))));
}

#[test]
fn tenants_have_unique_names() {
    let mut world = World::new();
    let mut make = |name: &str| {
        let name = name.to_owned();
        world.run(Command::CreateTenant { name, wrapped_key: Bytes::new(), quota_bytes: None })
    };
    for name in ["", "A", "a.b", &"a".repeat(65)] {
        assert!(is_invalid(make(name)));
    }
    assert!(matches!(make("one"), Err(Refusal::AlreadyExists(_))));
    assert!(make("three").is_ok());
    let Ok(Answer::Tenants(tenants)) = world.ask(Query::Tenants) else { panic!() };
    assert_eq!(
        tenants.iter().map(|tenant| (tenant.id.0, tenant.name.as_str())).collect::<Vec<_>>(),
        [(1, "one"), (2, "two"), (3, "three")]
    );
    assert_eq!(
        world.ask(Query::TenantByName { name: "three".to_owned() }),
        Ok(Answer::Tenant(tenants[2].clone()))
    );
}

/// Fails at one of its writes.
struct Failing {
    kv: MemKv,
    writes_left: usize,
}

impl View for Failing {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.kv.get(key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> std::ops::ControlFlow<()>,
    ) -> Result<(), KvError> {
        self.kv.scan(from, to, visit)
    }
}

impl Edit for Failing {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.writes_left = self.writes_left.checked_sub(1).ok_or_else(|| KvError("full".to_owned()))?;
        self.kv.put(key, value)
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), KvError> {
        self.kv.delete(key)
    }
}

/// A store that fails fails the batch: no result is handed out.
#[test]
fn a_failing_store_fails_the_batch() {
    let world = World::new();
    let envelopes =
        vec![Envelope { session: 9, serial: 0, answered_below: 0, command: put("aaa", "k", empty()) }];
    let batch = Batch { at: world.now, envelopes };
    let mut failing = Failing { kv: world.kv, writes_left: 2 };
    assert_eq!(apply(&mut failing, 1000, &batch), Err(KvError("full".to_owned())));
}

/// Bytes sealed for a bucket do not land in another one that took its name meanwhile.
#[test]
fn content_is_for_one_bucket() {
    let mut world = World::new();
    let stray = NewContent { bucket_id: u64::MAX, ..empty() };
    assert_eq!(world.run(put("aaa", "a", stray)), Err(Refusal::NoSuchBucket));
    assert!(world.run(put("aaa", "a", empty())).is_ok());
}
