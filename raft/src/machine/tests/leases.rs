//! Directories that one mount has alone.

use super::*;
use crate::facts::files::*;

const ONE: u64 = 11;
const TWO: u64 = 12;

struct Mounts {
    world: World,
    bucket: BucketRef,
    root: u64,
    granted: u64,
    requests: u64,
}

impl Mounts {
    fn new() -> Self {
        let world = World::new();
        let Ok(Answer::Bucket(bucket)) = world.ask(Query::Bucket { name: "aaa".to_owned() }) else {
            panic!()
        };
        let root = bucket.root;
        let bucket = BucketRef { name: bucket.name, id: bucket.id };
        let mut mounts = Self { world, bucket, root, granted: 0, requests: 0 };
        for session in [TWO, ONE] {
            let open = FileCommand::OpenSession {
                bucket: mounts.bucket.clone(),
                session,
                client: "test".to_owned(),
                below: Vec::new(),
                inodes_wanted: 100,
            };
            let Ok(Reply::File(FileReply::Session(grant))) = mounts.world.run(Command::File(open)) else {
                panic!()
            };
            mounts.granted = grant.inodes.0;
        }
        mounts
    }

    fn batch(&mut self, session: u64, ops: Vec<FileOp>) -> Vec<Result<FileDone, Refusal>> {
        self.requests += 1;
        let apply = FileCommand::Apply {
            bucket: self.bucket.clone(),
            session,
            request: self.requests,
            ops,
            blobs: Vec::new(),
            is_brief: true,
        };
        match self.world.run(Command::File(apply)) {
            Ok(Reply::File(FileReply::Applied(results))) => results,
            other => panic!("{other:?}"),
        }
    }

    fn one(&mut self, session: u64, op: FileOp) -> Result<FileDone, Refusal> {
        self.batch(session, vec![op]).remove(0)
    }

    fn make(&self, parent: u64, name: &str, kind: FileKind) -> Make {
        Make {
            parent,
            name: Name::Any(name.to_owned()),
            kind,
            inode: 0,
            mode: 0o600,
            uid: 0,
            gid: 0,
            rdev: 0,
            is_exclusive: true,
            xattrs: Vec::new(),
            content: Whole::empty(),
            made_at: None,
            modified_at: None,
            accessed_at: None,
            is_leased: true,
        }
    }

    fn leased(&self, directory: u64) -> Refusal {
        FileRefusal::Leased { bucket: self.bucket.clone(), directory }.into()
    }

    fn events(&self, session: u64) -> Vec<FileEvent> {
        let bucket = self.bucket.clone();
        let query = FileQuery::Events { bucket, session, after: 0, entries_max: 1000, wait_ms: 0 };
        match self.world.ask(Query::File(query)) {
            Ok(Answer::File(FileAnswer::Events { events, .. })) => events,
            other => panic!("{other:?}"),
        }
    }
}

fn name(text: &str) -> Name {
    Name::Any(text.to_owned())
}

#[test]
fn what_others_change_in_a_leased_directory_waits_until_it_is_given_back() {
    let mut mounts = Mounts::new();
    let made = mounts.one(ONE, FileOp::Make(mounts.make(mounts.root, "d", FileKind::Directory))).unwrap();
    let d = made.stat.unwrap().inode;
    let file = FileOp::Make(mounts.make(d, "f", FileKind::File));
    let leased = mounts.leased(d);
    mounts.one(ONE, file.clone()).unwrap();
    let refused = [
        FileOp::Make(mounts.make(d, "g", FileKind::File)),
        FileOp::Unlink { parent: d, name: name("f"), is_held: false },
        FileOp::Rename {
            from_parent: d,
            from_name: name("f"),
            to_parent: mounts.root,
            to_name: name("f"),
            how: RenameHow::Replace,
            is_replaced_held: false,
        },
        FileOp::Link { file: FileRef { inode: d + 1, place: None }, parent: d, name: name("l") },
    ];
    for op in &refused {
        assert_eq!(mounts.one(TWO, op.clone()), Err(leased.clone()), "{op:?}");
    }
    assert_eq!(
        mounts.one(TWO, FileOp::SetLease { directory: d, is_wanted: true }),
        Err(FileRefusal::Locked.into())
    );
    assert_eq!(mounts.world.run(put("aaa", "d/s3", empty())), Err(leased.clone()));
    assert_eq!(mounts.world.run(delete("aaa", "d/f")), Err(leased.clone()));
    assert!(mounts.world.run(put("aaa", "beside", empty())).is_ok(), "only the directory itself is leased");
    let first = FileOp::Make(mounts.make(mounts.root, "other", FileKind::File));
    let results = mounts.batch(TWO, vec![first, refused[0].clone(), file]);
    assert_eq!((results.len(), results[0].is_ok(), &results[1]), (2, true, &Err(leased)), "order is kept");

    let recall = FileCommand::Recall { bucket: mounts.bucket.clone(), directory: d };
    mounts.world.run(Command::File(recall)).unwrap();
    let recalled = FileEvent::Recalled { directory: d, session: ONE };
    assert!(mounts.events(ONE).contains(&recalled));
    mounts.one(ONE, FileOp::SetLease { directory: d, is_wanted: false }).unwrap();
    assert!(mounts.one(TWO, refused[0].clone()).is_ok());
    assert!(mounts.world.run(delete("aaa", "d/f")).is_ok());
    assert!(mounts.world.keys_under(0x46).is_empty());
}

#[test]
fn a_directory_that_is_leased_is_removed_by_its_holder_alone() {
    let mut mounts = Mounts::new();
    let made = mounts.one(ONE, FileOp::Make(mounts.make(mounts.root, "d", FileKind::Directory))).unwrap();
    let d = made.stat.unwrap().inode;
    let remove = FileOp::RemoveDirectory { parent: mounts.root, name: name("d") };
    assert_eq!(mounts.one(TWO, remove.clone()), Err(mounts.leased(d)));
    assert_eq!(mounts.world.run(delete("aaa", "d/")), Err(mounts.leased(d)));
    assert!(mounts.one(ONE, remove).is_ok());
    assert!(mounts.world.keys_under(0x46).is_empty(), "the lease goes with the directory");
}

#[test]
fn a_lease_ends_with_its_session_and_when_nothing_is_changed_under_it() {
    let mut mounts = Mounts::new();
    let lease = FileOp::SetLease { directory: mounts.root, is_wanted: true };
    let make = FileOp::Make(mounts.make(mounts.root, "f", FileKind::File));
    mounts.one(ONE, lease.clone()).unwrap();
    mounts.world.now.0 += DIRECTORY_LEASE_MS - 1;
    assert_eq!(mounts.one(TWO, make.clone()), Err(mounts.leased(mounts.root)));
    // An empty request is a sign of life.
    assert!(mounts.batch(ONE, Vec::new()).is_empty());
    mounts.world.now.0 += DIRECTORY_LEASE_MS - 1;
    assert_eq!(mounts.one(TWO, make.clone()), Err(mounts.leased(mounts.root)));
    mounts.world.now.0 += 1;
    assert!(mounts.one(TWO, make).is_ok(), "a silent holder is not waited for");

    mounts.one(ONE, lease).unwrap();
    let close = FileCommand::CloseSession { bucket: mounts.bucket.clone(), session: ONE };
    mounts.world.run(Command::File(close)).unwrap();
    assert!(mounts.one(TWO, FileOp::Make(mounts.make(mounts.root, "g", FileKind::File))).is_ok());
    assert!(mounts.world.keys_under(0x46).is_empty());
}

#[test]
fn what_was_made_before_has_its_own_times_and_is_made_once() {
    let mut mounts = Mounts::new();
    let now = FileTime::from_millis(mounts.world.now.0);
    let before = FileTime { seconds: now.seconds - 3, nanos: 7 };
    let long_ago = FileTime { seconds: 5, nanos: 6 };
    let make = Make {
        inode: mounts.granted,
        made_at: Some(before),
        modified_at: Some(long_ago),
        ..mounts.make(mounts.root, "f", FileKind::File)
    };
    let made = mounts.one(ONE, FileOp::Make(make.clone())).unwrap();
    let stat = made.stat.clone().unwrap();
    assert_eq!((stat.inode, stat.created_at, stat.changed_at), (mounts.granted, before, before));
    assert_eq!((stat.modified_at, stat.accessed_at), (long_ago, before));
    assert_eq!(
        mounts.one(ONE, FileOp::Make(make.clone())).map(|done| done.is_new),
        Ok(true),
        "it came again"
    );
    let other = Make { inode: mounts.granted + 1, ..make.clone() };
    assert_eq!(mounts.one(ONE, FileOp::Make(other)), Err(FileRefusal::Exists.into()));
    let wrong_clock = FileTime { seconds: now.seconds - 3600, nanos: 0 };
    let make = Make { made_at: Some(wrong_clock), name: name("g"), inode: mounts.granted + 2, ..make };
    let stat = mounts.one(ONE, FileOp::Make(make)).unwrap().stat.unwrap();
    assert_eq!(stat.created_at, FileTime::from_millis(mounts.world.now.0), "a wrong clock is not believed");
}

#[test]
fn readers_hear_what_others_have_alone_where_they_look() {
    let mut mounts = Mounts::new();
    let made = mounts.one(ONE, FileOp::Make(mounts.make(mounts.root, "d", FileKind::Directory))).unwrap();
    let d = made.stat.unwrap().inode;
    let held = |mounts: &Mounts, reader, at: &LookedAt| {
        let query = FileQuery::Leased { bucket: mounts.bucket.clone(), reader, at: at.clone() };
        match mounts.world.ask(Query::File(query)) {
            Ok(Answer::File(FileAnswer::Leased(held))) => held,
            other => panic!("{other:?}"),
        }
    };
    let below_root = LookedAt::Directory { inode: mounts.root, names: vec![name("d"), name("new")] };
    let itself = LookedAt::Directory { inode: d, names: Vec::new() };
    // What a key lacks may have been made by who has the directory.
    let key = LookedAt::Key("d/new/file".to_owned());
    for at in [&below_root, &itself, &key, &LookedAt::Everything] {
        assert_eq!(
            [0, TWO, ONE].map(|reader| held(&mounts, reader, at)),
            [vec![d], vec![d], vec![]],
            "{at:?}"
        );
    }
    let root = LookedAt::Directory { inode: mounts.root, names: Vec::new() };
    for at in [root, LookedAt::Key("f".to_owned()), LookedAt::Key("e/f".to_owned())] {
        assert!(held(&mounts, 0, &at).is_empty(), "{at:?}");
    }
    let keys = |prefix: &str, after: &str, until: Option<&str>| LookedAt::Keys {
        prefix: prefix.to_owned(),
        after: after.to_owned(),
        until: until.map(str::to_owned),
    };
    for at in [
        keys("", "", None),
        keys("d/", "", None),
        keys("d/new/", "d/new/file", Some("d/new/g")),
        keys("d", "c", Some("d/")),
        keys("", "d/zzz", Some("e")),
    ] {
        assert_eq!(held(&mounts, 0, &at), [d], "{at:?}");
    }
    for at in [keys("e", "", None), keys("", "", Some("c")), keys("", "d0", None), keys("d-", "", None)] {
        assert!(held(&mounts, 0, &at).is_empty(), "{at:?}");
    }
    mounts.world.now.0 += DIRECTORY_LEASE_MS;
    mounts.world.run(put("aaa", "beside", empty())).unwrap();
    assert!(held(&mounts, 0, &LookedAt::Everything).is_empty(), "a silent holder is not waited for");
}

#[test]
fn sessions_that_are_over_are_known_before_they_are_ended() {
    let mut mounts = Mounts::new();
    let is_any_over = |mounts: &Mounts| {
        let query = FileQuery::Expired { bucket: mounts.bucket.clone(), now: mounts.world.now };
        mounts.world.ask(Query::File(query))
    };
    let answer = |is_over| Ok::<_, Refusal>(Answer::File(FileAnswer::Expired(is_over)));
    mounts.world.now.0 += LEASE_MS;
    assert_eq!(is_any_over(&mounts), answer(false));
    mounts.world.now.0 += 1;
    assert_eq!(is_any_over(&mounts), answer(true));
    let expire = FileCommand::ExpireSessions { bucket: mounts.bucket.clone() };
    mounts.world.run(Command::File(expire)).unwrap();
    assert_eq!(is_any_over(&mounts), answer(false));
}
