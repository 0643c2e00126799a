//! Listings against a naive one over the sorted keys.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;

use super::model::{key, list};
use super::oracle::naive_list;
use super::*;
use crate::facts::query::{ListObjects, Listed};
use crate::facts::version::{ListVersions, VersionAnswer, VersionCommand, VersionQuery, Versioning};
use crate::machine::kv::{KvError, View};

/// Keys of one letter and slashes nest and differ in empty pieces; the others differ within pieces.
fn keys() -> impl Strategy<Value = BTreeSet<String>> {
    let nested = vec(select(vec!["/", "a"]), 1..=7).prop_map(|pieces| pieces.concat());
    btree_set(prop_oneof![key(), nested], 0..60)
}

fn fill(keys: &BTreeSet<String>) -> (World, Vec<ObjectHead>) {
    let mut world = World::new();
    let heads = keys.iter().map(|key| world.put(key, empty()).expect("the key is sound")).collect();
    (world, heads)
}

fn ask(world: &World, list: &ListObjects) -> (Vec<Listed>, bool) {
    match world.ask(Query::Objects(list.clone())) {
        Ok(Answer::Objects { entries, is_truncated }) => (entries, is_truncated),
        other => panic!("a listing answers {other:?}"),
    }
}

fn name(listed: &Listed) -> &str {
    match listed {
        Listed::Object(head) => &head.key,
        Listed::CommonPrefix(common) => common,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Any listing shows what S3's definition says, and so do its pages together.
    #[test]
    fn listings_follow_the_definition(keys in keys(), lists in vec(list("aaa"), 30)) {
        let (world, heads) = fill(&keys);
        for mut list in lists {
            prop_assert_eq!(ask(&world, &list), naive_list(heads.iter(), &list));
            let whole = ListObjects { entries_max: 1000, after: String::new(), ..list.clone() };
            let (whole, _) = naive_list(heads.iter(), &whole);
            list.after.clear();
            list.entries_max = list.entries_max.max(1);
            let mut paged = Vec::new();
            loop {
                let (page, is_truncated) = ask(&world, &list);
                prop_assert!(page.len() <= list.entries_max as usize);
                paged.extend(page);
                if !is_truncated {
                    break;
                }
                list.after = paged.last().map(name).unwrap_or_default().to_owned();
            }
            prop_assert_eq!(paged, whole);
        }
    }

    /// In whatever order keys come and go, nothing is left of their directories when all are gone.
    #[test]
    fn directories_vanish_with_their_last_key(keys in keys(), order in any::<u64>()) {
        let (mut world, _) = fill(&keys);
        let shuffled: BTreeMap<u64, &String> =
            keys.iter().enumerate().map(|(at, key)| (order.wrapping_mul(2 * at as u64 + 1), key)).collect();
        let first: BTreeSet<&String> = shuffled.into_values().collect();
        for key in first.iter().copied().chain(&keys) {
            world.run(delete("aaa", key)).expect("any key can be deleted");
        }
        prop_assert!(world.keys_under(0x40).is_empty());
    }
}

/// Counts what a query reads.
struct Counted<'a> {
    kv: &'a MemKv,
    reads: std::cell::Cell<usize>,
}

impl View for Counted<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.reads.set(self.reads.get() + 1);
        self.kv.get(key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> std::ops::ControlFlow<()>,
    ) -> Result<(), KvError> {
        self.reads.set(self.reads.get() + 1);
        self.kv.scan(from, to, &mut |key, value| {
            self.reads.set(self.reads.get() + 1);
            visit(key, value)
        })
    }
}

/// What a listing costs does not depend on how many keys it rolls up or lies before.
#[test]
fn cost_follows_what_is_returned() {
    let keys = (0..3).flat_map(|directory| (0..700).map(move |file| format!("d{directory}/x-{file:04}")));
    let (world, _) = fill(&keys.collect());
    let reads_of = |prefix: &str, delimiter: &str, after: &str| {
        let list = ListObjects {
            bucket: "aaa".to_owned(),
            prefix: prefix.to_owned(),
            delimiter: delimiter.to_owned(),
            after: after.to_owned(),
            entries_max: 5,
        };
        let counted = Counted { kv: &world.kv, reads: 0.into() };
        let answer = query(&counted, &Query::Objects(list)).expect("the store is sound");
        let Ok(Answer::Objects { entries, .. }) = answer else { panic!("{answer:?}") };
        assert!(!entries.is_empty());
        counted.reads.get()
    };
    for (prefix, delimiter, after) in
        [("", "/", ""), ("d", "/", "d0/"), ("", "-", ""), ("d1/", "", "d1/x-0500"), ("", "", "d0/x-0690")]
    {
        let reads = reads_of(prefix, delimiter, after);
        assert!(reads <= 40, "{reads} reads for 5 entries of {prefix:?} {delimiter:?} {after:?}");
    }
}

/// The deepest key there can be is put, listed, read and removed.
#[test]
fn the_deepest_key_is_a_key() {
    let deepest = "/".repeat(1024);
    let (mut world, heads) = fill(&BTreeSet::from([deepest.clone(), "a/".repeat(511)]));
    let all = ListObjects { bucket: "aaa".to_owned(), entries_max: 10, ..ListObjects::default() };
    assert_eq!(ask(&world, &all), naive_list(heads.iter(), &all));
    for key in [deepest, "a/".repeat(511)] {
        assert_eq!(world.run(delete("aaa", &key)), Ok(Reply::Deleted { existed: true }));
    }
    assert!(world.keys_under(0x40).is_empty());
}

/// A page whose objects carry long headers is cut before it grows without bound, and goes on from there.
#[test]
fn a_page_is_bounded_in_bytes() {
    let mut world = World::new();
    for number in 0..150 {
        let headers =
            ObjectHeaders { user: vec![("k".to_owned(), "v".repeat(60_000))], ..ObjectHeaders::default() };
        let Command::PutObject { bucket, key, new, precondition, .. } =
            put("aaa", &format!("{number:03}"), empty())
        else {
            unreachable!("it is a put")
        };
        world
            .run(Command::PutObject { bucket, key, headers, new, precondition, by_form: false })
            .expect("it fits");
    }
    let mut list = ListObjects { bucket: "aaa".to_owned(), entries_max: 1000, ..ListObjects::default() };
    let mut seen = 0;
    loop {
        let (page, is_truncated) = ask(&world, &list);
        assert!(page.len() < 100);
        seen += page.len();
        if !is_truncated {
            break;
        }
        list.after = page.last().map(name).expect("a page shows something").to_owned();
    }
    assert_eq!(seen, 150);
}

/// Whoever lies in a blob is named, old versions too, page by page; nobody else is.
#[test]
fn versions_that_lie_in_a_blob_are_named() {
    let mut world = World::new();
    let enable = VersionCommand::SetVersioning { bucket: "aaa".to_owned(), versioning: Versioning::Enabled };
    world.run(Command::Version(enable)).expect("it can be versioned");
    let now = world.now;
    let lost = world.put("old", whole(1, 9, now)).expect("it can be put");
    world.put("old", whole(2, 9, now)).expect("it can be put");
    world.put("spread", content(vec![extent(1, 9, 9), extent(2, 9, 9)], vec![])).expect("it can be put");
    world.put("sound", whole(3, 9, now)).expect("it can be put");
    world.put("empty", empty()).expect("it can be put");
    for entries_max in [1, 2, 100] {
        let mut page = ListVersions { bucket: "aaa".to_owned(), entries_max, ..ListVersions::default() };
        let mut named = Vec::new();
        loop {
            let blobs = vec![blob_id(1), blob_id(9)];
            let asked = VersionQuery::Naming { page: page.clone(), blobs };
            let Ok(Answer::Version(VersionAnswer::Naming { versions, next })) =
                world.ask(Query::Version(asked))
            else {
                panic!("not what was asked");
            };
            named.extend(versions.into_iter().map(|(head, blobs)| (head.key, head.version, blobs)));
            let Some((after, version)) = next else { break };
            (page.after, page.after_version) = (after, Some(version));
        }
        let keys: Vec<&str> = named.iter().map(|(key, ..)| key.as_str()).collect();
        assert_eq!(keys, ["old", "spread"], "pages of {entries_max}");
        assert_eq!((named[0].1, &named[0].2), (lost.version, &vec![blob_id(1)]));
    }
}
