//! Journals: what followers see, and what is kept for them.

use super::*;
use crate::facts::journal::{
    Change, Followed, Happening, JournalAnswer, JournalCommand, JournalQuery, WAITING_MAX,
};
use crate::facts::version::{Transitioned, VersionCommand, VersionId, VersionQuery, Versioning};
use crate::machine::{draft, keys};

fn follow(follower: &str, is_on: bool) -> Command {
    let (bucket, follower) = ("aaa".to_owned(), follower.to_owned());
    Command::Journal(JournalCommand::Follow { bucket, follower, is_on })
}

fn delete(key: &str, version: Option<VersionId>) -> Command {
    Command::Version(VersionCommand::Delete {
        bucket: "aaa".to_owned(),
        key: key.to_owned(),
        version,
        bypass_governance: false,
        precondition: Precondition::default(),
    })
}

impl World {
    fn followed(&self) -> Option<Followed> {
        let asked = JournalQuery::Followed { after: String::new(), entries_max: 10 };
        match self.ask(Query::Journal(asked)) {
            Ok(Answer::Journal(JournalAnswer::Followed(mut all))) => all.pop(),
            other => panic!("{other:?}"),
        }
    }

    fn changes(&self, bucket: u64) -> Vec<Change> {
        let asked = JournalQuery::Changes { bucket, after: 0, entries_max: 100 };
        match self.ask(Query::Journal(asked)) {
            Ok(Answer::Journal(JournalAnswer::Changes(changes))) => changes,
            other => panic!("{other:?}"),
        }
    }

    fn advance(&mut self, followed: &Followed, follower: &str, upto: u64) {
        let (bucket, id, follower) = (followed.name.clone(), followed.bucket, follower.to_owned());
        let advance = JournalCommand::Advance { bucket, id, follower, upto };
        self.run(Command::Journal(advance)).expect("it is followed");
    }
}

#[test]
fn followers_see_every_change_in_order_and_what_all_have_seen_goes() {
    let mut world = World::new();
    world.put("before", empty()).expect("the bucket exists");
    world.run(follow("one", true)).expect("the bucket exists");
    let first = world.put("k", empty()).expect("the bucket exists");
    world.run(follow("two", true)).expect("the bucket exists");
    let versioning = Versioning::Enabled;
    let enable = VersionCommand::SetVersioning { bucket: "aaa".to_owned(), versioning };
    world.run(Command::Version(enable)).expect("the bucket exists");
    let second = world.put("k", empty()).expect("the bucket exists");
    world.run(delete("k", None)).expect("it exists");
    world.run(delete("k", Some(second.version_id()))).expect("it exists");
    world.run(delete("k", Some(second.version_id()))).expect("that nothing is there is no error");
    let wrong = Precondition { if_match: vec!["none".to_owned()], ..Precondition::default() };
    let refused = Command::PutObject {
        bucket: "aaa".to_owned(),
        key: "k".to_owned(),
        headers: ObjectHeaders::default(),
        new: empty(),
        precondition: wrong,
        by_form: false,
    };
    assert!(world.run(refused).is_err());

    let followed = world.followed().expect("it is followed");
    assert_eq!(followed.followers, [("one".to_owned(), 0), ("two".to_owned(), 1)]);
    let changes = world.changes(followed.bucket);
    let seen: Vec<_> = changes.iter().map(|change| (change.sequence, change.happening)).collect();
    let expected = [Happening::Put, Happening::Put, Happening::Marked, Happening::Deleted];
    assert_eq!(seen, (1..).zip(expected).collect::<Vec<_>>());
    assert_eq!((changes[0].version, changes[0].etag.as_str()), (None, first.etag.as_str()));
    assert_eq!(changes[1].version, Some(second.version_id()));
    assert!(matches!(changes[2].version, Some(VersionId::Number(_))));

    world.advance(&followed, "one", 3);
    assert_eq!(
        world.changes(followed.bucket).first().map(|change| change.sequence),
        Some(2),
        "two has not seen it"
    );
    world.advance(&followed, "two", 99);
    assert_eq!(world.changes(followed.bucket).first().map(|change| change.sequence), Some(4));
    world.run(follow("one", false)).expect("it is followed");
    assert_eq!(world.changes(followed.bucket), []);
    world.put("k", empty()).expect("the bucket exists");
    world.run(follow("two", false)).expect("it is followed");
    assert_eq!((world.followed(), world.changes(followed.bucket)), (None, Vec::new()));
}

#[test]
fn a_lifecycle_gives_versions_another_class_as_long_as_they_are_there() {
    let mut world = World::new();
    let versioning = Versioning::Enabled;
    let enable = VersionCommand::SetVersioning { bucket: "aaa".to_owned(), versioning };
    world.run(Command::Version(enable)).expect("the bucket exists");
    let heads: Vec<_> = (0..3).map(|_| world.put("k", empty()).expect("the bucket exists")).collect();
    world.run(delete("k", Some(heads[1].version_id()))).expect("it exists");
    world.run(follow("one", true)).expect("the bucket exists");
    let moved = |number: u64| Transitioned { key: "k".to_owned(), number, class: "STANDARD_IA".to_owned() };
    let versions = heads.iter().map(|head| moved(head.version)).collect();
    let transition = VersionCommand::Transition { bucket: "aaa".to_owned(), versions };
    assert_eq!(world.run(Command::Version(transition)), Ok(Reply::Done));

    for head in [&heads[0], &heads[2]] {
        let (bucket, key, version) = ("aaa".to_owned(), "k".to_owned(), Some(head.version_id()));
        let ask = VersionQuery::Object { bucket, key, version, from_offset: 0, extents_max: 1 };
        let Ok(Answer::Object(answer)) = world.ask(Query::Version(ask)) else { panic!("it exists") };
        assert_eq!(answer.head.headers.storage_class.as_deref(), Some("STANDARD_IA"));
        assert_eq!((answer.head.modified_at, &answer.head.etag), (head.modified_at, &head.etag));
    }
    let followed = world.followed().expect("it is followed");
    let seen: Vec<_> = world.changes(followed.bucket).iter().map(|change| change.happening).collect();
    assert_eq!(seen, [Happening::Transitioned; 2]);
}

#[test]
fn a_write_waits_rather_than_that_a_follower_misses_it() {
    let mut world = World::new();
    world.run(follow("slow", true)).expect("the bucket exists");
    let mut followed = world.followed().expect("it is followed");
    followed.sequence = WAITING_MAX;
    let record = draft::encode(&followed).expect("it is plain");
    world.kv.entries.insert(keys::followed("aaa"), record);
    assert_eq!(world.put("k", empty()), Err(Refusal::FollowersBehind));
    let ask = Query::Object { bucket: "aaa".to_owned(), key: "k".to_owned(), from_offset: 0, extents_max: 1 };
    assert_eq!(world.ask(ask), Err(Refusal::NoSuchKey), "nothing of it stays");
    world.advance(&followed, "slow", 1);
    world.put("k", empty()).expect("there is room");
}
