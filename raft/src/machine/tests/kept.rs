//! Random histories of mounts and S3 in a bucket with versions: nothing that one of them finished is lost.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::facts::bucket::Bucket;
use crate::facts::files::*;
use crate::facts::version::{
    ListVersions, ListedVersion, VersionAnswer, VersionCommand, VersionId, VersionQuery, Versioning,
};

const ONE: u64 = 11;
const TWO: u64 = 12;
/// Bytes that a file has.
const SIZE: u64 = 100;

#[derive(Debug, Clone)]
enum Op {
    Put(&'static str),
    Delete(&'static str),
    Make(u64, &'static str),
    Write(u64, &'static str),
    Truncate(u64, &'static str),
    Finish(u64, &'static str),
    Unlink(u64, &'static str),
    Link(u64, &'static str, &'static str),
    Rename(u64, &'static str, &'static str, RenameHow),
    MakeDirectory(u64, &'static str),
    RemoveDirectory(u64, &'static str),
    Versioning(bool),
}

fn key() -> impl Strategy<Value = &'static str> {
    select(vec!["a", "b", "d/a", "d/b", "e/a"])
}

fn op() -> impl Strategy<Value = Op> {
    let session = || select(vec![ONE, TWO]);
    let directory = || select(vec!["d", "e"]);
    let how = || select(vec![RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange]);
    prop_oneof![
        2 => key().prop_map(Op::Put),
        1 => key().prop_map(Op::Delete),
        3 => (session(), key()).prop_map(|(session, key)| Op::Make(session, key)),
        6 => (session(), key()).prop_map(|(session, key)| Op::Write(session, key)),
        2 => (session(), key()).prop_map(|(session, key)| Op::Truncate(session, key)),
        3 => (session(), key()).prop_map(|(session, key)| Op::Finish(session, key)),
        2 => (session(), key()).prop_map(|(session, key)| Op::Unlink(session, key)),
        1 => (session(), key(), key()).prop_map(|(session, key, to)| Op::Link(session, key, to)),
        3 => (session(), key(), key(), how()).prop_map(|(s, key, to, how)| Op::Rename(s, key, to, how)),
        1 => (session(), directory(), directory(), how()).prop_map(|(s, from, to, how)| Op::Rename(s, from, to, how)),
        1 => (session(), directory()).prop_map(|(session, key)| Op::MakeDirectory(session, key)),
        1 => (session(), directory()).prop_map(|(session, key)| Op::RemoveDirectory(session, key)),
        1 => any::<bool>().prop_map(Op::Versioning),
    ]
}

/// A version as S3 sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Marker,
    /// Its extents.
    Bytes(Vec<Extent>),
}

type Versions = BTreeMap<(String, VersionId), Seen>;

struct Kept {
    world: World,
    bucket: BucketRef,
    root: u64,
    blobs: u64,
    /// By inode: sessions that write its version.
    unfinished: BTreeMap<u64, BTreeSet<u64>>,
    versioning: Versioning,
}

impl Kept {
    fn new(versioning: Versioning) -> Self {
        let mut world = World::new();
        for to in [Versioning::Enabled, versioning] {
            let set = VersionCommand::SetVersioning { bucket: "aaa".to_owned(), versioning: to };
            world.run(Command::Version(set)).unwrap();
        }
        let Ok(Answer::Bucket(bucket)) = world.ask(Query::Bucket { name: "aaa".to_owned() }) else {
            panic!()
        };
        let named = BucketRef { name: bucket.name, id: bucket.id };
        let mut kept = Self {
            world,
            bucket: named,
            root: bucket.root,
            blobs: 0,
            unfinished: BTreeMap::new(),
            versioning,
        };
        for session in [ONE, TWO] {
            let open = FileCommand::OpenSession {
                bucket: kept.bucket.clone(),
                session,
                client: "test".to_owned(),
                below: Vec::new(),
                inodes_wanted: 0,
            };
            kept.world.run(Command::File(open)).unwrap();
        }
        kept
    }

    fn facts(&self) -> Bucket {
        match self.world.ask(Query::Bucket { name: "aaa".to_owned() }) {
            Ok(Answer::Bucket(bucket)) => bucket,
            other => panic!("{other:?}"),
        }
    }

    fn apply(&mut self, session: u64, op: FileOp, blobs: Vec<NewBlob>) -> Option<FileDone> {
        let bucket = self.bucket.clone();
        let apply = FileCommand::Apply { bucket, session, request: 0, ops: vec![op], blobs, is_brief: false };
        match self.world.run(Command::File(apply)) {
            Ok(Reply::File(FileReply::Applied(mut results))) => match results.remove(0) {
                Ok(done) => Some(done),
                Err(Refusal::File(refusal)) => {
                    assert_ne!(refusal, FileRefusal::Stale, "every name is known");
                    None
                }
                Err(other) => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    /// What a path leads to.
    fn find(&self, path: &str) -> Option<(FileRef, Stat)> {
        let mut pieces: Vec<Name> = path.split('/').map(|piece| Name::Any(piece.to_owned())).collect();
        let query =
            FileQuery::Lookup { bucket: self.bucket.clone(), parent: self.root, names: pieces.clone() };
        let Ok(Answer::File(FileAnswer::Found { found, ended: None })) = self.world.ask(Query::File(query))
        else {
            return None;
        };
        let parent = found.iter().rev().nth(1).map_or(self.root, |above| above.inode);
        let stat = found.last()?.clone();
        Some((FileRef { inode: stat.inode, place: Some((parent, pieces.pop()?)) }, stat))
    }

    fn place(&self, path: &str) -> Option<(u64, Name)> {
        let (parent, name) = match path.rsplit_once('/') {
            Some((above, name)) => (self.find(above)?.0.inode, name),
            None => (self.root, path),
        };
        Some((parent, Name::Any(name.to_owned())))
    }

    /// Sessions that write what stands at a path, if it is a file.
    fn writers(&self, path: &str) -> BTreeSet<u64> {
        let inode = self.find(path).map(|(file, _)| file.inode);
        inode.and_then(|inode| self.unfinished.get(&inode)).cloned().unwrap_or_default()
    }

    fn new_blob(&mut self) -> (Vec<Extent>, NewBlob) {
        self.blobs += 1;
        (vec![extent(self.blobs, 0, SIZE)], new_blob(self.blobs, self.world.now))
    }

    /// All versions, as S3 lists and reads them.
    fn versions(&self) -> Result<(Versions, Vec<ListedVersion>), TestCaseError> {
        let list = ListVersions {
            bucket: "aaa".to_owned(),
            prefix: String::new(),
            delimiter: String::new(),
            after: String::new(),
            after_version: None,
            entries_max: 1000,
        };
        let answer = self.world.ask(Query::Version(VersionQuery::Versions(list)));
        let Ok(Answer::Version(VersionAnswer::Versions { entries, .. })) = answer else {
            panic!("{answer:?}")
        };
        let mut versions = Versions::new();
        for entry in &entries {
            let (key, id, seen) = match entry {
                ListedVersion::Marker { key, version, .. } => (key.clone(), *version, Seen::Marker),
                ListedVersion::Version { head, .. } => {
                    let (key, id) = (head.key.clone(), head.version_id());
                    let query = VersionQuery::Object {
                        bucket: "aaa".to_owned(),
                        key: key.clone(),
                        version: Some(id),
                        from_offset: 0,
                        extents_max: 1000,
                    };
                    let answer = self.world.ask(Query::Version(query));
                    let Ok(Answer::Object(found)) = answer else { panic!("{key} {id:?}: {answer:?}") };
                    let extents: Vec<_> = found.extents.into_iter().map(|found| found.extent).collect();
                    let bytes: u64 = extents.iter().map(|extent| extent.length).sum();
                    prop_assert_eq!(bytes, head.size);
                    (key, id, Seen::Bytes(extents))
                }
                ListedVersion::CommonPrefix(_) => panic!("no delimiter was given"),
            };
            prop_assert!(versions.insert((key.clone(), id), seen).is_none(), "{key} has {id:?} twice");
        }
        Ok((versions, entries))
    }

    fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let (before, _) = self.versions()?;
        let mut may_change: BTreeSet<(String, VersionId)> = BTreeSet::new();
        let current = |kept: &Self, path: &str| -> Option<(String, VersionId)> {
            let answer = kept.world.ask(Query::Version(VersionQuery::Object {
                bucket: "aaa".to_owned(),
                key: path.to_owned(),
                version: None,
                from_offset: 0,
                extents_max: 0,
            }));
            match answer {
                Ok(Answer::Object(found)) => Some((path.to_owned(), found.head.version_id())),
                _ => None,
            }
        };
        match op {
            Op::Put(key) => {
                let (extents, blob) = self.new_blob();
                // A file where a directory has to be, or the other way round, is S3's business.
                self.world.put(key, content(extents.clone(), vec![blob])).expect("a put is taken");
                let (after, _) = self.versions()?;
                let now = current(self, key).expect("it was put");
                prop_assert_eq!(after.get(&now), Some(&Seen::Bytes(extents)));
            }
            Op::Delete(key) => _ = self.world.run(delete("aaa", key)).expect("a deletion is taken"),
            Op::Make(session, path) => {
                if let Some((parent, name)) = self.place(path)
                    && let Some(done) = self.apply(*session, make(parent, name, FileKind::File), Vec::new())
                    && let Some(stat) = done.stat
                {
                    self.unfinished.insert(stat.inode, BTreeSet::from([*session]));
                }
            }
            Op::Write(session, path) | Op::Truncate(session, path) => {
                let Some((file, stat)) = self.find(path) else { return Ok(()) };
                if stat.kind != FileKind::File {
                    return Ok(());
                }
                let writers = self.unfinished.entry(file.inode).or_default();
                if writers.contains(session) {
                    let inode = file.inode;
                    for path in ["a", "b", "d/a", "d/b", "e/a"] {
                        if self.find(path).is_some_and(|(found, _)| found.inode == inode) {
                            may_change.extend(current(self, path));
                        }
                    }
                }
                let (edits, blobs, bytes) = if matches!(op, Op::Truncate(..)) {
                    (vec![Edit::Truncate(0)], Vec::new(), Vec::new())
                } else {
                    let (extents, blob) = self.new_blob();
                    let whole = Whole { size: SIZE, etag: None, content: Content::Extents(extents.clone()) };
                    (vec![Edit::Replace(whole)], vec![blob], extents)
                };
                let edit =
                    FileOp::Edit { file: file.clone(), if_data_version: None, edits, modified_at: None };
                self.apply(*session, edit, blobs).expect("an edit is taken");
                self.unfinished.entry(file.inode).or_default().insert(*session);
                let (after, _) = self.versions()?;
                let now = current(self, path).expect("it is there");
                prop_assert_eq!(after.get(&now), Some(&Seen::Bytes(bytes)));
            }
            Op::Finish(session, path) => {
                let Some((file, stat)) = self.find(path) else { return Ok(()) };
                if stat.kind == FileKind::File {
                    let inode = file.inode;
                    let edits = vec![Edit::Finish];
                    let edit = FileOp::Edit { file, if_data_version: None, edits, modified_at: None };
                    self.apply(*session, edit, Vec::new()).expect("an end is taken");
                    self.unfinished.entry(inode).or_default().remove(session);
                    let (after, _) = self.versions()?;
                    prop_assert_eq!(&after, &before, "finishing changes no version");
                }
            }
            Op::Unlink(session, path) => {
                let Some((parent, name)) = self.place(path) else { return Ok(()) };
                if before.values().len() > 0 && !self.writers(path).is_empty() {
                    may_change.extend(current(self, path).filter(|id| before[id] == Seen::Bytes(Vec::new())));
                }
                self.apply(*session, FileOp::Unlink { parent, name, is_held: false }, Vec::new());
            }
            Op::Link(session, path, to) => {
                if let Some((file, _)) = self.find(path)
                    && let Some((parent, name)) = self.place(to)
                {
                    self.apply(*session, FileOp::Link { file, parent, name }, Vec::new());
                }
            }
            Op::Rename(session, from, to, how) => {
                let (Some((from_parent, from_name)), Some((to_parent, to_name))) =
                    (self.place(from), self.place(to))
                else {
                    return Ok(());
                };
                let below = |path: &str| ["a", "b"].map(|name| format!("{path}/{name}"));
                let paths = [from, to]
                    .into_iter()
                    .flat_map(|path| below(path).into_iter().chain([(*path).to_owned()]));
                for path in paths {
                    if !self.writers(&path).is_empty() {
                        let id = current(self, &path);
                        may_change.extend(id.filter(|id| before[id] == Seen::Bytes(Vec::new())));
                    }
                }
                let how = *how;
                let rename = FileOp::Rename {
                    from_parent,
                    from_name,
                    to_parent,
                    to_name,
                    how,
                    is_replaced_held: false,
                };
                self.apply(*session, rename, Vec::new());
            }
            Op::MakeDirectory(session, path) => {
                let (parent, name) = self.place(path).expect("the root is there");
                self.apply(*session, make(parent, name, FileKind::Directory), Vec::new());
            }
            Op::RemoveDirectory(session, path) => {
                let (parent, name) = self.place(path).expect("the root is there");
                self.apply(*session, FileOp::RemoveDirectory { parent, name }, Vec::new());
            }
            Op::Versioning(is_enabled) => {
                let versioning = if *is_enabled { Versioning::Enabled } else { Versioning::Suspended };
                let set = VersionCommand::SetVersioning { bucket: "aaa".to_owned(), versioning };
                self.world.run(Command::Version(set)).unwrap();
                self.versioning = versioning;
            }
        }
        let (after, listed) = self.versions()?;
        for (id, seen) in &before {
            let is_null = id.1 == VersionId::Null && self.versioning == Versioning::Suspended;
            if !is_null && !may_change.contains(id) {
                prop_assert_eq!(after.get(id), Some(seen), "{:?} of {:?}", id, op);
            }
        }
        self.check(&listed)
    }

    /// Versions are in order, each key has one that is the latest, and the counts are those of a recount.
    fn check(&self, listed: &[ListedVersion]) -> Result<(), TestCaseError> {
        let (mut objects, mut object_bytes, mut others, mut other_bytes) = (0, 0, 0, 0);
        let mut last: Option<(&str, u64)> = None;
        let mut tree = BTreeSet::new();
        for entry in listed {
            let (key, number, is_latest) = match entry {
                ListedVersion::Version { head, is_latest } => {
                    let count = if *is_latest {
                        tree.insert(head.key.as_str());
                        (&mut objects, &mut object_bytes)
                    } else {
                        (&mut others, &mut other_bytes)
                    };
                    *count.0 += 1;
                    // A file counts once, however many names it has.
                    let is_first = !*is_latest || head.file.as_ref().is_none_or(|file| file.links == 1);
                    *count.1 += if is_first { head.size } else { 0 };
                    (head.key.as_str(), head.version, *is_latest)
                }
                ListedVersion::Marker { key, number, is_latest, .. } => (key.as_str(), *number, *is_latest),
                ListedVersion::CommonPrefix(_) => panic!("no delimiter was given"),
            };
            let is_first = last.is_none_or(|(before, _)| before != key);
            prop_assert_eq!(is_latest, is_first, "{} {}", key, number);
            if let Some((_, above)) = last.filter(|(before, _)| *before == key) {
                prop_assert!(number < above, "{} has {} behind {}", key, number, above);
            }
            last = Some((key, number));
        }
        let facts = self.facts();
        prop_assert_eq!(facts.object_count, objects);
        prop_assert_eq!((facts.noncurrent_count, facts.noncurrent_bytes), (others, other_bytes));
        prop_assert!(facts.object_bytes >= object_bytes);
        Ok(())
    }
}

fn make(parent: u64, name: Name, kind: FileKind) -> FileOp {
    FileOp::Make(Make {
        parent,
        name,
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
        is_leased: false,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// Whatever mounts and S3 do, each version that was finished stays as it is, in its place; every count agrees with a
    /// recount; and once all versions are deleted, nothing of them stays.
    #[test]
    fn what_was_finished_stays_as_it_is(ops in vec(op(), 1..40), is_enabled in any::<bool>()) {
        let mut kept = Kept::new(if is_enabled { Versioning::Enabled } else { Versioning::Suspended });
        for op in &ops {
            kept.world.now.0 += 1;
            kept.step(op)?;
        }
        for session in [ONE, TWO] {
            let close = FileCommand::CloseSession { bucket: kept.bucket.clone(), session };
            prop_assert!(kept.world.run(Command::File(close)).is_ok());
        }
        loop {
            let (versions, _) = kept.versions()?;
            let Some((key, id)) = versions.into_keys().next() else { break };
            let delete = VersionCommand::Delete {
                bucket: "aaa".to_owned(),
                key,
                version: Some(id),
                bypass_governance: false,
                precondition: Precondition::default(),
            };
            prop_assert!(kept.world.run(Command::Version(delete)).is_ok());
        }
        for first in [0x35, 0x40, 0x41, 0x42, 0x43, 0x45, 0x48, 0x4A, 0x4B, 0x4E, 0x51, 0x54] {
            prop_assert!(kept.world.keys_under(first).is_empty(), "{:?}", kept.world.keys_under(first));
        }
        let facts = kept.facts();
        prop_assert_eq!((facts.object_bytes, facts.noncurrent_bytes), (0, 0));
    }
}

impl Kept {
    /// In a bucket whose versions are protected from their end on.
    fn locking() -> Self {
        use crate::facts::version::{BucketLock, DefaultRetention, LockMode, RetentionPeriod};
        let mut kept = Self::new(Versioning::Enabled);
        let period = RetentionPeriod::Days(1);
        let default = Some(DefaultRetention { mode: LockMode::Compliance, period });
        let set = VersionCommand::SetBucketLock { bucket: "aaa".to_owned(), lock: BucketLock { default } };
        kept.world.run(Command::Version(set)).unwrap();
        kept
    }

    /// Which of the listed are protected.
    fn locked(&self) -> Vec<bool> {
        let (_, listed) = self.versions().unwrap();
        let locked = |entry: &ListedVersion| match entry {
            ListedVersion::Version { head, .. } => head.headers.lock.protects(self.world.now, false),
            _ => false,
        };
        listed.iter().map(locked).collect()
    }
}

/// A file that a default retention protects is protected once it is finished, and what comes after leaves it alone.
#[test]
fn a_finished_version_gets_the_buckets_default_lock() {
    let mut kept = Kept::locking();
    for op in [Op::Make(ONE, "a"), Op::Write(ONE, "a"), Op::Write(ONE, "a"), Op::Finish(ONE, "a")] {
        kept.step(&op).unwrap();
    }
    assert_eq!(kept.locked(), [true], "what was written in one go is one version");
    kept.step(&Op::Write(ONE, "a")).unwrap();
    assert_eq!(kept.locked(), [false, true]);
    kept.step(&Op::Unlink(ONE, "a")).unwrap();
    assert_eq!(kept.locked(), [false, true, true], "below the marker");
}

/// A mount that dies leaves a version like any, and keeps none of another mount unprotected.
#[test]
fn what_a_dead_session_left_is_protected_too() {
    let mut kept = Kept::locking();
    for op in [Op::Make(ONE, "a"), Op::Write(ONE, "a"), Op::Make(ONE, "b"), Op::Write(ONE, "b")] {
        kept.step(&op).unwrap();
    }
    kept.step(&Op::Write(TWO, "b")).unwrap();
    assert_eq!(kept.locked(), [false, false, true], "what the first had is kept when the second comes");
    // The first is silent from now on.
    kept.world.now.0 += LEASE_MS;
    let (bucket, held) = (kept.bucket.clone(), Vec::new());
    let renew = FileCommand::RenewSession { bucket, session: TWO, seen: 0, held, inodes_wanted: 0 };
    kept.world.run(Command::File(renew)).unwrap();
    kept.world.now.0 += 1;
    kept.world.run(Command::File(FileCommand::ExpireSessions { bucket: kept.bucket.clone() })).unwrap();
    assert_eq!(kept.locked(), [true, false, true], "the second still writes");
    kept.step(&Op::Finish(TWO, "b")).unwrap();
    assert_eq!(kept.locked(), [true, true, true]);
}

/// S3 replaces a file that a mount still writes: what was there is a version, protected like any.
#[test]
fn what_s3_replaces_under_a_writer_is_protected() {
    let mut kept = Kept::locking();
    for op in [Op::Make(ONE, "a"), Op::Write(ONE, "a"), Op::Put("a")] {
        kept.step(&op).unwrap();
    }
    // A put without a lock of its own gets the bucket's.
    assert_eq!(kept.locked(), [true, true]);
}
