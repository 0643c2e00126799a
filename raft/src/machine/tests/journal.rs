//! Journals: what followers see, and what is kept for them.

use super::*;
use crate::facts::files::{
    BucketRef, Edit, FileCommand, FileDone, FileKind, FileOp, FileRef, FileRefusal, FileReply, KEYS_TOLD_MAX,
    Make, Name, OPS_MAX, RenameHow, Whole,
};
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

fn file_op(world: &mut World, ops: Vec<FileOp>) -> Vec<FileDone> {
    let Ok(Answer::Bucket(bucket)) = world.ask(Query::Bucket { name: "aaa".to_owned() }) else { panic!() };
    let bucket = BucketRef { name: bucket.name, id: bucket.id };
    let (request, blobs, is_brief) = (0, Vec::new(), true);
    let apply = FileCommand::Apply { bucket, session: 7, request, ops, blobs, is_brief };
    let reply = world.run(Command::File(apply));
    let Ok(Reply::File(FileReply::Applied(results))) = reply else { panic!("{reply:?}") };
    results.into_iter().map(|result| result.expect("it may be")).collect()
}

fn opened() -> (World, u64) {
    let mut world = World::new();
    let Ok(Answer::Bucket(bucket)) = world.ask(Query::Bucket { name: "aaa".to_owned() }) else { panic!() };
    let root = bucket.root;
    let bucket = BucketRef { name: bucket.name, id: bucket.id };
    let (client, below) = ("test".to_owned(), Vec::new());
    let open = FileCommand::OpenSession { bucket, session: 7, client, below, inodes_wanted: 1 };
    world.run(Command::File(open)).expect("a session opens");
    (world, root)
}

fn make(parent: u64, name: &str, kind: FileKind) -> FileOp {
    FileOp::Make(Make {
        parent,
        name: Name::Any(name.to_owned()),
        kind,
        inode: 0,
        mode: 0o644,
        uid: 0,
        gid: 0,
        rdev: 0,
        is_exclusive: true,
        xattrs: Vec::new(),
        content: Whole::empty(),
        made_at: None,
        modified_at: None,
        accessed_at: None,
        is_leased: false,
    })
}

fn rename(root: u64, from: &str, to: &str) -> FileOp {
    FileOp::Rename {
        from_parent: root,
        from_name: Name::Any(from.to_owned()),
        to_parent: root,
        to_name: Name::Any(to.to_owned()),
        how: RenameHow::Replace,
        is_replaced_held: false,
    }
}

#[test]
fn what_mounts_change_is_told_under_the_keys_that_it_has_in_s3() {
    let (mut world, root) = opened();
    let made =
        file_op(&mut world, vec![make(root, "old", FileKind::File), make(root, "d", FileKind::Directory)]);
    let (old, directory) = (made[0].stat.as_ref().unwrap().inode, made[1].stat.as_ref().unwrap().inode);
    world.run(follow("one", true)).expect("the bucket exists");
    let extend = |inode, size, place| FileOp::Edit {
        file: FileRef { inode, place },
        if_data_version: None,
        edits: vec![Edit::Extend(size)],
        modified_at: None,
    };
    // A file from before is known by the name under which its mount has it.
    file_op(&mut world, vec![extend(old, 5, Some((root, Name::Any("old".to_owned()))))]);
    file_op(&mut world, vec![rename(root, "old", "new"), extend(old, 6, None)]);
    let below = file_op(&mut world, vec![make(directory, "f", FileKind::File)]);
    file_op(&mut world, vec![rename(root, "d", "e")]);
    file_op(&mut world, vec![extend(below[0].stat.as_ref().unwrap().inode, 3, None)]);
    let gone =
        |parent, name: &str| FileOp::Unlink { parent, name: Name::Any(name.to_owned()), is_held: true };
    file_op(&mut world, vec![gone(directory, "f"), extend(old, 7, None), gone(root, "new")]);
    file_op(&mut world, vec![extend(old, 8, None)]);
    let followed = world.followed().expect("it is followed");
    let seen: Vec<_> =
        world.changes(followed.bucket).into_iter().map(|it| (it.happening, it.key, it.size)).collect();
    use Happening::{Deleted, Put};
    let expected = [
        (Put, "old", 5),
        // Its rename and its edit are one command: told once, as it is then.
        (Deleted, "old", 0),
        (Put, "new", 6),
        (Put, "d/f", 0),
        (Put, "e/", 0),
        (Put, "e/f", 0),
        (Deleted, "d/", 0),
        (Deleted, "d/f", 0),
        (Put, "e/f", 3),
        (Deleted, "e/f", 0),
        (Put, "new", 7),
        (Deleted, "new", 0),
    ];
    assert_eq!(seen, expected.map(|(happening, key, size)| (happening, key.to_owned(), size)));
}

#[test]
fn more_keys_than_can_be_told_of_are_not_moved_at_once() {
    let (mut world, root) = opened();
    let made = file_op(&mut world, vec![make(root, "d", FileKind::Directory)]);
    let directory = made[0].stat.as_ref().unwrap().inode;
    // With the directory's own key, one more than may be.
    for _ in 0..KEYS_TOLD_MAX / OPS_MAX {
        let serial = world.serial;
        let ops = (0..OPS_MAX).map(|n| make(directory, &format!("{serial}-{n}"), FileKind::File));
        file_op(&mut world, ops.collect());
    }
    file_op(&mut world, vec![rename(root, "d", "e")]);
    world.run(follow("one", true)).expect("the bucket exists");
    let Ok(Answer::Bucket(bucket)) = world.ask(Query::Bucket { name: "aaa".to_owned() }) else { panic!() };
    let bucket = BucketRef { name: bucket.name, id: bucket.id };
    let (ops, blobs) = (vec![rename(root, "e", "f")], Vec::new());
    let apply = FileCommand::Apply { bucket, session: 7, request: 0, ops, blobs, is_brief: true };
    let refused = Err(Refusal::File(FileRefusal::TooManyKeys));
    assert_eq!(world.run(Command::File(apply)), Ok(Reply::File(FileReply::Applied(vec![refused]))));
    let followed = world.followed().expect("it is followed");
    assert_eq!(world.changes(followed.bucket), []);
}
