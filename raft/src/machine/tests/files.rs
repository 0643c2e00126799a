//! Random histories of mounts and S3 together, beside a filesystem that is a tree of maps and arrays of bytes.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::facts::files::*;
use crate::facts::journal::{Happening, JournalAnswer, JournalCommand, JournalQuery};
use crate::facts::query::{ListObjects, Listed};

/// What a byte of a file is: of a blob, or of a hole.
type Byte = Option<(BlobId, u64)>;
/// A name, and whether it is a directory's.
type EntryName = (String, bool);

#[derive(Debug, Clone, Default)]
struct Node {
    is_directory: bool,
    /// Whether the directory is a key of its own.
    is_key: bool,
    entries: BTreeMap<EntryName, usize>,
    bytes: Vec<Byte>,
    is_inline: bool,
    links: usize,
    /// Sessions that may hold it once it has no name.
    holders: BTreeSet<u64>,
}

#[derive(Debug, Clone)]
struct Model {
    nodes: BTreeMap<usize, Node>,
    next: usize,
    sessions: BTreeSet<u64>,
}

const ROOT: usize = 0;
const ONE: u64 = 11;
const TWO: u64 = 12;

fn invalid() -> FileRefusal {
    FileRefusal::Invalid(String::new())
}

impl Model {
    fn new() -> Self {
        let root = Node { is_directory: true, is_key: true, ..Node::default() };
        Self { nodes: BTreeMap::from([(ROOT, root)]), next: 1, sessions: BTreeSet::new() }
    }

    fn add(&mut self, node: Node) -> usize {
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, node);
        id
    }

    fn entries(&mut self, directory: usize) -> &mut BTreeMap<EntryName, usize> {
        &mut self.nodes.get_mut(&directory).expect("it exists").entries
    }

    /// The directory of a name, else the file.
    fn find(&self, directory: usize, name: &str) -> Option<(EntryName, usize)> {
        [true, false].into_iter().find_map(|is_directory| {
            let entry = (name.to_owned(), is_directory);
            self.nodes[&directory].entries.get(&entry).map(|id| (entry, *id))
        })
    }

    /// All directories, with their paths, in depth-first order.
    fn directories(&self) -> Vec<(Vec<String>, usize)> {
        let mut found = vec![(Vec::new(), ROOT)];
        let mut at = 0;
        while at < found.len() {
            let (path, id) = found[at].clone();
            for ((name, is_directory), below) in &self.nodes[&id].entries {
                if *is_directory {
                    found.push(([&path[..], std::slice::from_ref(name)].concat(), *below));
                }
            }
            at += 1;
        }
        found
    }

    /// Every key that S3 sees, with its node.
    fn keys(&self) -> BTreeMap<String, usize> {
        let mut keys = BTreeMap::new();
        for (path, id) in self.directories() {
            let prefix: String = path.iter().map(|name| format!("{name}/")).collect();
            if id != ROOT && self.nodes[&id].is_key {
                keys.insert(prefix.clone(), id);
            }
            for ((name, is_directory), below) in &self.nodes[&id].entries {
                if !is_directory {
                    keys.insert(format!("{prefix}{name}"), *below);
                }
            }
        }
        keys
    }

    fn is_below(&self, id: usize, above: usize) -> bool {
        let mut open = vec![above];
        while let Some(at) = open.pop() {
            if at == id {
                return true;
            }
            let entries = self.nodes[&at].entries.iter();
            open.extend(entries.filter(|((_, is_directory), _)| *is_directory).map(|(_, id)| *id));
        }
        false
    }

    /// A mount took an entry out: the directory stays.
    fn taken(&mut self, directory: usize) {
        let node = self.nodes.get_mut(&directory).expect("it exists");
        node.is_key |= node.entries.is_empty();
    }

    fn drop_name(&mut self, id: usize, origin: u64, is_held: bool) {
        let sessions = self.sessions.iter().copied();
        let holders: BTreeSet<u64> = sessions.filter(|session| is_held || *session != origin).collect();
        let node = self.nodes.get_mut(&id).expect("it exists");
        node.links -= 1;
        if node.links == 0 {
            node.holders = holders;
            self.let_go(id);
        }
    }

    fn let_go(&mut self, id: usize) {
        if self.nodes[&id].links == 0 && self.nodes[&id].holders.is_empty() {
            self.nodes.remove(&id);
        }
    }

    fn put(&mut self, key: &str, bytes: Vec<Byte>, is_inline: bool) {
        let mut at = ROOT;
        let mut pieces: Vec<&str> = key.split('/').collect();
        let name = pieces.pop().expect("a key has a piece");
        for piece in pieces {
            at = match self.nodes[&at].entries.get(&(piece.to_owned(), true)) {
                Some(below) => *below,
                None => {
                    let below = self.add(Node { is_directory: true, ..Node::default() });
                    self.entries(at).insert((piece.to_owned(), true), below);
                    below
                }
            };
        }
        if name.is_empty() {
            self.nodes.get_mut(&at).expect("it exists").is_key = true;
            return;
        }
        let new = self.add(Node { bytes, is_inline, links: 1, ..Node::default() });
        if let Some(old) = self.entries(at).insert((name.to_owned(), false), new) {
            self.drop_name(old, 0, false);
        }
    }

    fn delete(&mut self, key: &str) -> bool {
        let mut path = vec![ROOT];
        let mut pieces: Vec<&str> = key.split('/').collect();
        let name = pieces.pop().expect("a key has a piece");
        for piece in &pieces {
            match self.nodes[path.last().expect("the root")].entries.get(&((*piece).to_owned(), true)) {
                Some(below) => path.push(*below),
                None => return false,
            }
        }
        let bottom = *path.last().expect("the root");
        if name.is_empty() {
            if !std::mem::take(&mut self.nodes.get_mut(&bottom).expect("it exists").is_key) {
                return false;
            }
        } else {
            match self.entries(bottom).remove(&(name.to_owned(), false)) {
                Some(id) => self.drop_name(id, 0, false),
                None => return false,
            }
        }
        while let Some(id) = path.pop()
            && id != ROOT
            && self.nodes[&id].entries.is_empty()
            && !self.nodes[&id].is_key
        {
            self.nodes.remove(&id);
            let piece = pieces.pop().expect("as many as directories").to_owned();
            self.entries(*path.last().expect("the root")).remove(&(piece, true));
        }
        true
    }

    fn rename(
        &mut self,
        (from_dir, from_name): (usize, &str),
        (to_dir, to_name): (usize, &str),
        how: RenameHow,
        (origin, is_held): (u64, bool),
    ) -> Result<(), FileRefusal> {
        let (from_entry, from) = self.find(from_dir, from_name).ok_or(FileRefusal::NotFound)?;
        let to = self.find(to_dir, to_name);
        let is_same = from_dir == to_dir && to.as_ref().is_some_and(|(entry, _)| *entry == from_entry);
        let is_directory = from_entry.1;
        match (how, &to) {
            (RenameHow::NoReplace, Some(_)) => return Err(FileRefusal::Exists),
            (RenameHow::Exchange, None) => return Err(FileRefusal::NotFound),
            _ if is_same => return Ok(()),
            (RenameHow::Exchange, Some((to_entry, to))) => {
                if (is_directory && self.is_below(to_dir, from))
                    || (to_entry.1 && self.is_below(from_dir, *to))
                {
                    return Err(invalid());
                }
                let new_to = (to_name.to_owned(), is_directory);
                let new_from = (from_name.to_owned(), to_entry.1);
                if is_directory != to_entry.1
                    && (self.entries(to_dir).contains_key(&new_to)
                        || self.entries(from_dir).contains_key(&new_from))
                {
                    return Err(FileRefusal::NotPermitted(String::new()));
                }
                self.entries(from_dir).remove(&from_entry);
                self.entries(to_dir).remove(to_entry);
                self.entries(to_dir).insert(new_to, from);
                self.entries(from_dir).insert(new_from, *to);
                return Ok(());
            }
            _ => {}
        }
        if is_directory && self.is_below(to_dir, from) {
            return Err(invalid());
        }
        if let Some((to_entry, to)) = to {
            match (is_directory, to_entry.1) {
                (true, false) => return Err(FileRefusal::NotDirectory),
                (false, true) => return Err(FileRefusal::IsDirectory),
                (true, true) if !self.nodes[&to].entries.is_empty() => return Err(FileRefusal::NotEmpty),
                (true, true) => _ = self.nodes.remove(&to),
                (false, false) if from == to => return Ok(()),
                (false, false) => self.drop_name(to, origin, is_held),
            }
        }
        self.entries(from_dir).remove(&from_entry);
        self.entries(to_dir).insert((to_name.to_owned(), is_directory), from);
        self.taken(from_dir);
        Ok(())
    }

    fn edit(&mut self, id: usize, change: &Change_) -> Result<(), FileRefusal> {
        let source = match change {
            Change_::Copy { from, from_offset, length, .. } => {
                let source = self.nodes.get(from).ok_or(FileRefusal::Stale)?;
                if source.is_directory {
                    return Err(FileRefusal::IsDirectory);
                }
                if source.is_inline {
                    return Err(FileRefusal::NotSupported(String::new()));
                }
                let (start, end) = (*from_offset as usize, (*from_offset + *length) as usize);
                let end = end.min(source.bytes.len());
                source.bytes.get(start..end.max(start)).unwrap_or(&[]).to_vec()
            }
            Change_::Write { bytes, .. } | Change_::Append { bytes } | Change_::Replace { bytes } => {
                bytes.clone()
            }
            _ => Vec::new(),
        };
        let node = self.nodes.get_mut(&id).expect("it exists");
        let size = node.bytes.len();
        let at = match change {
            Change_::Replace { .. } => {
                (node.bytes, node.is_inline) = (source, false);
                return Ok(());
            }
            Change_::Truncate { size: 0 } => {
                (node.bytes, node.is_inline) = (Vec::new(), false);
                return Ok(());
            }
            Change_::Truncate { size: to } | Change_::Extend { size: to } => {
                let is_change = match change {
                    Change_::Extend { .. } => *to > size,
                    _ => *to != size,
                };
                if is_change && node.is_inline {
                    return Err(FileRefusal::IsInline);
                }
                if is_change {
                    node.bytes.resize(*to, None);
                }
                return Ok(());
            }
            Change_::Punch { offset, length } => {
                let end = (offset + length).min(size);
                if *offset < end {
                    if node.is_inline {
                        return Err(FileRefusal::IsInline);
                    }
                    node.bytes[*offset..end].fill(None);
                }
                return Ok(());
            }
            Change_::Write { offset, .. } => *offset,
            Change_::Copy { offset, .. } => *offset,
            Change_::Append { .. } => size,
        };
        if source.is_empty() {
            return Ok(());
        }
        if node.is_inline && (at > 0 || source.len() < size) {
            return Err(FileRefusal::IsInline);
        }
        node.is_inline = false;
        let end = at + source.len();
        if node.bytes.len() < end {
            node.bytes.resize(end, None);
        }
        node.bytes[at..end].copy_from_slice(&source);
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Change_ {
    Replace { bytes: Vec<Byte> },
    Write { offset: usize, bytes: Vec<Byte> },
    Append { bytes: Vec<Byte> },
    Truncate { size: usize },
    Extend { size: usize },
    Punch { offset: usize, length: usize },
    Copy { from: usize, from_offset: u64, offset: usize, length: u64 },
}

#[derive(Debug, Clone)]
enum Op {
    Put {
        key: String,
        pieces: Pieces,
        is_inline: bool,
    },
    Delete {
        pick: Index,
    },
    Make {
        directory: Index,
        name: &'static str,
        is_directory: bool,
        is_exclusive: bool,
    },
    Unlink {
        directory: Index,
        name: &'static str,
        is_held: bool,
    },
    RemoveDirectory {
        directory: Index,
        name: &'static str,
    },
    Link {
        file: Index,
        directory: Index,
        name: &'static str,
    },
    Rename {
        from: (Index, &'static str),
        to: (Index, &'static str),
        how: u8,
        is_held: bool,
    },
    Edit {
        file: Index,
        kind: u8,
        at: usize,
        length: usize,
        pieces: Pieces,
        from: Index,
    },
    Renew {
        is_second: bool,
        keeps: bool,
    },
    /// Closes the second session, or opens it again.
    Toggle,
}

/// Extents of a new blob: how many, how long each, and how far apart.
type Pieces = (usize, u64, u64);

fn name() -> impl Strategy<Value = &'static str> {
    select(vec!["a", "b", "c-d"])
}

fn pieces() -> impl Strategy<Value = Pieces> {
    (select(vec![1usize, 1, 2, 3, 40, 300]), 1..4u64, 0..2u64)
}

fn op() -> impl Strategy<Value = (bool, Op)> {
    let index = any::<Index>;
    let key = vec(name(), 1..4).prop_map(|pieces| pieces.join("/"));
    let key = (key, prop::bool::weighted(0.1)).prop_map(|(key, slash)| if slash { key + "/" } else { key });
    let op = prop_oneof![
        4 => (key, pieces(), prop::bool::weighted(0.3))
            .prop_map(|(key, pieces, is_inline)| Op::Put { key, pieces, is_inline }),
        2 => index().prop_map(|pick| Op::Delete { pick }),
        6 => (index(), name(), any::<bool>(), any::<bool>())
            .prop_map(|(directory, name, is_directory, is_exclusive)| Op::Make {
                directory, name, is_directory, is_exclusive }),
        3 => (index(), name(), any::<bool>())
            .prop_map(|(directory, name, is_held)| Op::Unlink { directory, name, is_held }),
        2 => (index(), name()).prop_map(|(directory, name)| Op::RemoveDirectory { directory, name }),
        2 => (index(), index(), name()).prop_map(|(file, directory, name)| Op::Link { file, directory, name }),
        6 => ((index(), name()), (index(), name()), 0..4u8, any::<bool>())
            .prop_map(|(from, to, how, is_held)| Op::Rename { from, to, how, is_held }),
        10 => (index(), 0..8u8, 0..70usize, 0..70usize, pieces(), index())
            .prop_map(|(file, kind, at, length, pieces, from)| Op::Edit { file, kind, at, length, pieces, from }),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(is_second, keeps)| Op::Renew { is_second, keeps }),
        1 => Just(Op::Toggle),
    ];
    (any::<bool>(), op)
}

/// A machine and the model, in step.
struct Both {
    world: World,
    model: Model,
    bucket: BucketRef,
    root: u64,
    blobs: u64,
    /// Inodes of the machine that have no name any more.
    orphans: BTreeMap<usize, u64>,
    /// Size and ETag of each key, as who follows the bucket has been told; and how far that is.
    told: BTreeMap<String, (u64, String)>,
    told_until: u64,
}

impl Both {
    fn new() -> Self {
        let world = World::new();
        let Ok(Answer::Bucket(bucket)) = world.ask(Query::Bucket { name: "aaa".to_owned() }) else {
            panic!()
        };
        let named = BucketRef { name: bucket.name, id: bucket.id };
        let mut both = Self {
            world,
            model: Model::new(),
            bucket: named,
            root: bucket.root,
            blobs: 0,
            orphans: BTreeMap::new(),
            told: BTreeMap::new(),
            told_until: 0,
        };
        both.follow(true);
        both.open(ONE);
        both.open(TWO);
        both
    }

    fn open(&mut self, session: u64) {
        let command = FileCommand::OpenSession {
            bucket: self.bucket.clone(),
            session,
            client: "test".to_owned(),
            below: Vec::new(),
            inodes_wanted: 10,
        };
        self.world.run(Command::File(command)).expect("a session opens");
        self.model.sessions.insert(session);
    }

    fn follow(&mut self, is_on: bool) {
        let (bucket, follower) = (self.bucket.name.clone(), "watch".to_owned());
        let follow = JournalCommand::Follow { bucket, follower, is_on };
        self.world.run(Command::Journal(follow)).expect("the bucket exists");
    }

    /// Replays what was told since the last time.
    fn listen(&mut self) {
        let query =
            JournalQuery::Changes { bucket: self.bucket.id, after: self.told_until, entries_max: 1000 };
        let Ok(Answer::Journal(JournalAnswer::Changes(changes))) = self.world.ask(Query::Journal(query))
        else {
            panic!("the journal answers")
        };
        for change in changes {
            self.told_until = change.sequence;
            match change.happening {
                Happening::Put | Happening::Copied => {
                    self.told.insert(change.key, (change.size, change.etag));
                }
                Happening::Deleted => _ = self.told.remove(&change.key).expect("it was told of before"),
                other => panic!("{other:?}"),
            }
        }
    }

    fn new_bytes(&mut self, (count, length, gap): Pieces) -> (Vec<Extent>, Vec<Byte>, NewBlob) {
        self.blobs += 1;
        let extents: Vec<Extent> =
            (0..count as u64).map(|at| extent(self.blobs, at * (length + gap), length)).collect();
        let bytes = bytes_of(&extents);
        (extents, bytes, new_blob(self.blobs, self.world.now))
    }

    fn apply(&mut self, session: u64, op: FileOp, blobs: Vec<NewBlob>) -> Result<FileDone, FileRefusal> {
        let bucket = self.bucket.clone();
        let command =
            FileCommand::Apply { bucket, session, request: 0, ops: vec![op], blobs, is_brief: false };
        let reply = self.world.run(Command::File(command));
        let Ok(Reply::File(FileReply::Applied(mut results))) = reply else { panic!("{reply:?}") };
        match results.remove(0) {
            Ok(done) => Ok(done),
            Err(Refusal::File(FileRefusal::Invalid(_))) => Err(invalid()),
            Err(Refusal::File(FileRefusal::NotPermitted(_))) => Err(FileRefusal::NotPermitted(String::new())),
            Err(Refusal::File(FileRefusal::NotSupported(_))) => Err(FileRefusal::NotSupported(String::new())),
            Err(Refusal::File(refusal)) => Err(refusal),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// The machine's inode of a directory.
    fn inode(&self, path: &[String]) -> u64 {
        let names = path.iter().cloned().map(Name::Any).collect();
        let query = FileQuery::Lookup { bucket: self.bucket.clone(), parent: self.root, names };
        match self.world.ask(Query::File(query)) {
            Ok(Answer::File(FileAnswer::Found { found, ended: None })) => {
                found.last().map_or(self.root, |stat| stat.inode)
            }
            other => panic!("{path:?} leads to {other:?}"),
        }
    }

    fn directory(&self, pick: Index) -> (u64, usize) {
        let directories = self.model.directories();
        let (path, id) = pick.get(&directories);
        (self.inode(path), *id)
    }

    fn reference(&self, key: &str) -> (FileRef, Stat) {
        let mut pieces: Vec<String> = key.split('/').map(str::to_owned).collect();
        let name = Name::Object(pieces.pop().expect("a key has a piece"));
        let parent = self.inode(&pieces);
        let query = FileQuery::Lookup { bucket: self.bucket.clone(), parent, names: vec![name.clone()] };
        match self.world.ask(Query::File(query)) {
            Ok(Answer::File(FileAnswer::Found { found, ended: None })) => {
                (FileRef { inode: found[0].inode, place: Some((parent, name)) }, found[0].clone())
            }
            other => panic!("{key:?} leads to {other:?}"),
        }
    }

    /// Any file, also one without a name.
    fn file(&self, pick: Index) -> Option<(FileRef, usize)> {
        let mut files: Vec<(Option<String>, usize)> = self
            .model
            .keys()
            .into_iter()
            .filter(|(key, _)| !key.ends_with('/'))
            .map(|(key, id)| (Some(key), id))
            .collect();
        files.extend(self.orphans.keys().map(|id| (None, *id)));
        if files.is_empty() {
            return None;
        }
        let (key, id) = pick.get(&files);
        match key {
            Some(key) => Some((self.reference(key).0, *id)),
            None => Some((FileRef { inode: self.orphans[id], place: None }, *id)),
        }
    }

    /// Remembers under which inode a file is that may lose its last name.
    fn before_loss(&self) -> BTreeMap<usize, u64> {
        let keys = self.model.keys();
        let files = keys.iter().filter(|(key, _)| !key.ends_with('/'));
        files.map(|(key, id)| (*id, self.reference(key).0.inode)).collect()
    }

    fn after_loss(&mut self, before: BTreeMap<usize, u64>) {
        self.orphans.extend(before);
        let nodes = &self.model.nodes;
        self.orphans.retain(|id, _| nodes.get(id).is_some_and(|node| node.links == 0));
    }

    fn step(&mut self, is_second: bool, op: &Op) -> Result<(), TestCaseError> {
        let session = if is_second && self.model.sessions.contains(&TWO) { TWO } else { ONE };
        let before = self.before_loss();
        match op {
            Op::Put { key, pieces, is_inline } => {
                let is_marker = key.ends_with('/');
                let (new, bytes) = if is_marker {
                    (empty(), Vec::new())
                } else if *is_inline {
                    let sealed = Bytes::from(vec![7; 16 + 30]);
                    let inline = Content::Inline { blob: blob_id(1), wrapped_key: Bytes::new(), sealed };
                    (NewContent { size: 30, content: inline, ..empty() }, vec![Some((blob_id(0), 0)); 30])
                } else {
                    let (extents, bytes, blob) = self.new_bytes(*pieces);
                    (content(extents, vec![blob]), bytes)
                };
                self.world.put(key, new).expect("a put is sound");
                self.model.put(key, bytes, *is_inline);
            }
            Op::Delete { pick } => {
                let keys: Vec<String> = self.model.keys().into_keys().collect();
                if keys.is_empty() {
                    return Ok(());
                }
                let key = pick.get(&keys);
                let existed = self.model.delete(key);
                prop_assert_eq!(self.world.run(delete("aaa", key)), Ok(Reply::Deleted { existed }));
            }
            Op::Make { directory, name, is_directory, is_exclusive } => {
                let (parent, id) = self.directory(*directory);
                let expected = match self.model.find(id, name) {
                    Some(_) if *is_directory || *is_exclusive => Err(FileRefusal::Exists),
                    Some(((_, true), _)) => Err(FileRefusal::IsDirectory),
                    Some(_) => Ok(false),
                    None => {
                        let is_key = *is_directory;
                        let links = usize::from(!is_directory);
                        let node = Node { is_directory: *is_directory, is_key, links, ..Node::default() };
                        let made = self.model.add(node);
                        self.model.entries(id).insert(((*name).to_owned(), *is_directory), made);
                        Ok(true)
                    }
                };
                let make = Make {
                    parent,
                    name: Name::Any((*name).to_owned()),
                    kind: if *is_directory { FileKind::Directory } else { FileKind::File },
                    inode: 0,
                    mode: 0o640,
                    uid: 1,
                    gid: 2,
                    rdev: 0,
                    is_exclusive: *is_exclusive,
                    xattrs: vec![(Bytes::from_static(b"user.x"), Bytes::from_static(b"y"))],
                    content: Whole::empty(),
                    made_at: None,
                    modified_at: None,
                    accessed_at: None,
                    is_leased: false,
                };
                let made = self.apply(session, FileOp::Make(make), Vec::new());
                prop_assert_eq!(made.map(|done| done.is_new), expected);
            }
            Op::Unlink { directory, name, is_held } => {
                let (parent, id) = self.directory(*directory);
                let expected = match self.model.find(id, name) {
                    None => Err(FileRefusal::NotFound),
                    Some(((_, true), _)) => Err(FileRefusal::IsDirectory),
                    Some((entry, file)) => {
                        self.model.entries(id).remove(&entry);
                        self.model.taken(id);
                        self.model.drop_name(file, session, *is_held);
                        Ok(())
                    }
                };
                let op = FileOp::Unlink { parent, name: Name::Any((*name).to_owned()), is_held: *is_held };
                prop_assert_eq!(self.apply(session, op, Vec::new()).map(|_| ()), expected);
            }
            Op::RemoveDirectory { directory, name } => {
                let (parent, id) = self.directory(*directory);
                let expected = match self.model.find(id, name) {
                    None => Err(FileRefusal::NotFound),
                    Some(((_, false), _)) => Err(FileRefusal::NotDirectory),
                    Some((_, below)) if !self.model.nodes[&below].entries.is_empty() => {
                        Err(FileRefusal::NotEmpty)
                    }
                    Some((entry, below)) => {
                        self.model.entries(id).remove(&entry);
                        self.model.nodes.remove(&below);
                        self.model.taken(id);
                        Ok(())
                    }
                };
                let op = FileOp::RemoveDirectory { parent, name: Name::Any((*name).to_owned()) };
                prop_assert_eq!(self.apply(session, op, Vec::new()).map(|_| ()), expected);
            }
            Op::Link { file, directory, name } => {
                let Some((file, id)) = self.file(*file) else { return Ok(()) };
                let (parent, directory) = self.directory(*directory);
                let expected = if self.model.find(directory, name).is_some() {
                    Err(FileRefusal::Exists)
                } else if self.model.nodes[&id].links == 0 {
                    Err(FileRefusal::NotFound)
                } else {
                    self.model.entries(directory).insert(((*name).to_owned(), false), id);
                    self.model.nodes.get_mut(&id).expect("it exists").links += 1;
                    Ok(())
                };
                let op = FileOp::Link { file, parent, name: Name::Any((*name).to_owned()) };
                prop_assert_eq!(self.apply(session, op, Vec::new()).map(|_| ()), expected);
            }
            Op::Rename { from, to, how, is_held } => {
                let (from_parent, from_id) = self.directory(from.0);
                let (to_parent, to_id) = self.directory(to.0);
                let how = [RenameHow::Replace, RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange]
                    [usize::from(*how)];
                let expected = self.model.rename((from_id, from.1), (to_id, to.1), how, (session, *is_held));
                let op = FileOp::Rename {
                    from_parent,
                    from_name: Name::Any(from.1.to_owned()),
                    to_parent,
                    to_name: Name::Any(to.1.to_owned()),
                    how,
                    is_replaced_held: *is_held,
                };
                prop_assert_eq!(self.apply(session, op, Vec::new()).map(|_| ()), expected);
            }
            Op::Edit { file, kind, at, length, pieces, from } => {
                let Some((file, id)) = self.file(*file) else { return Ok(()) };
                let (extents, bytes, blob) = self.new_bytes(*pieces);
                let (source, source_id) = self.file(*from).expect("there is a file");
                let (offset, from_offset) = (*at as u64, *length as u64 / 2);
                let (change, edit) = match kind {
                    0 => (
                        Change_::Replace { bytes: bytes.clone() },
                        Edit::Replace(Whole {
                            size: bytes.len() as u64,
                            etag: None,
                            content: Content::Extents(extents),
                        }),
                    ),
                    1 | 2 => (Change_::Write { offset: *at, bytes }, Edit::Write { offset, extents }),
                    3 => (Change_::Append { bytes }, Edit::Append(extents)),
                    4 => (Change_::Truncate { size: *at }, Edit::Truncate(offset)),
                    5 => (Change_::Extend { size: *at }, Edit::Extend(offset)),
                    6 => (
                        Change_::Punch { offset: *at, length: *length },
                        Edit::Punch { offset, length: *length as u64 },
                    ),
                    _ => (
                        Change_::Copy { from: source_id, from_offset, offset: *at, length: *length as u64 },
                        Edit::Copy { from: source, from_offset, offset, length: *length as u64 },
                    ),
                };
                let expected = self.model.edit(id, &change);
                let op = FileOp::Edit { file, if_data_version: None, edits: vec![edit], modified_at: None };
                prop_assert_eq!(self.apply(session, op, vec![blob]).map(|_| ()), expected);
            }
            Op::Renew { is_second, keeps } => {
                let session = if *is_second { TWO } else { ONE };
                let held = if *keeps { self.orphans.values().copied().collect() } else { Vec::new() };
                let bucket = self.bucket.clone();
                let command =
                    FileCommand::RenewSession { bucket, session, seen: u64::MAX, held, inodes_wanted: 0 };
                let renewed = self.world.run(Command::File(command));
                prop_assert_eq!(renewed.is_ok(), self.model.sessions.contains(&session));
                if !keeps && renewed.is_ok() {
                    self.release(session);
                }
            }
            Op::Toggle if self.model.sessions.contains(&TWO) => {
                let command = FileCommand::CloseSession { bucket: self.bucket.clone(), session: TWO };
                prop_assert!(self.world.run(Command::File(command)).is_ok());
                self.model.sessions.remove(&TWO);
                self.release(TWO);
            }
            Op::Toggle => self.open(TWO),
        }
        self.after_loss(before);
        Ok(())
    }

    fn release(&mut self, session: u64) {
        let ids: Vec<usize> = self.orphans.keys().copied().collect();
        for id in ids {
            if let Some(node) = self.model.nodes.get_mut(&id) {
                node.holders.remove(&session);
            }
            self.model.let_go(id);
        }
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        // S3 sees exactly the model's keys, with their sizes.
        let list = ListObjects { bucket: "aaa".to_owned(), entries_max: 1000, ..ListObjects::default() };
        let Ok(Answer::Objects { entries, .. }) = self.world.ask(Query::Objects(list)) else { panic!() };
        let told: Vec<_> = self.told.iter().map(|(key, (size, etag))| (&key[..], *size, &etag[..])).collect();
        let there: Vec<_> = entries
            .iter()
            .map(|entry| match entry {
                Listed::Object(head) => (&head.key[..], head.size, &head.etag[..]),
                Listed::CommonPrefix(_) => panic!("no delimiter was given"),
            })
            .collect();
        prop_assert_eq!(told, there);
        let listed: Vec<(String, usize)> = entries
            .into_iter()
            .map(|entry| match entry {
                Listed::Object(head) => (head.key, head.size as usize),
                Listed::CommonPrefix(_) => panic!("no delimiter was given"),
            })
            .collect();
        let keys = self.model.keys();
        let size = |id: &usize| self.model.nodes[id].bytes.len();
        prop_assert_eq!(&listed, &keys.iter().map(|(key, id)| (key.clone(), size(id))).collect::<Vec<_>>());

        // Each file has its bytes, by name and by S3's key.
        for (key, id) in keys.iter().filter(|(key, _)| !key.ends_with('/')) {
            let (file, stat) = self.reference(key);
            let node = &self.model.nodes[id];
            prop_assert_eq!((stat.links as usize, stat.size as usize), (node.links, node.bytes.len()));
            self.compare_content(&file, node)?;
            let ask =
                Query::Object { bucket: "aaa".into(), key: key.clone(), from_offset: 0, extents_max: 1 };
            let Ok(Answer::Object(answer)) = self.world.ask(ask) else { panic!("{key:?} is no object") };
            prop_assert_eq!((answer.head.inode, answer.head.version), (stat.inode, stat.data_version));
        }
        for (id, inode) in &self.orphans {
            self.compare_content(&FileRef { inode: *inode, place: None }, &self.model.nodes[id])?;
        }

        // Directories hold what they should, and count it.
        for (path, id) in self.model.directories() {
            let inode = self.inode(&path);
            let query = FileQuery::Directory {
                bucket: self.bucket.clone(),
                inode,
                cursor: Bytes::new(),
                entries_max: 1000,
            };
            let answer = self.world.ask(Query::File(query));
            let Ok(Answer::File(FileAnswer::Directory { entries, directory, .. })) = answer else { panic!() };
            let node = &self.model.nodes[&id];
            let found: BTreeSet<EntryName> = entries
                .iter()
                .map(|entry| (entry.name.text().to_owned(), entry.stat.kind == FileKind::Directory))
                .collect();
            prop_assert_eq!(&found, &node.entries.keys().cloned().collect());
            let below = node.entries.keys().filter(|(_, is_directory)| *is_directory).count();
            if id != ROOT {
                prop_assert_eq!(directory.links as usize, 2 + below);
            }
        }

        // What is counted agrees with a recount, orphans included.
        let Ok(Answer::Bucket(bucket)) = self.world.ask(Query::Bucket { name: "aaa".into() }) else {
            panic!()
        };
        let files = self.model.nodes.values().filter(|node| !node.is_directory);
        let stored: usize = files.clone().map(|node| node.bytes.iter().flatten().count()).sum();
        prop_assert_eq!(bucket.object_count as usize, keys.len());
        prop_assert_eq!(bucket.object_bytes as usize, stored);
        let named = files.flat_map(|node| node.bytes.iter().flatten()).map(|(blob, _)| *blob);
        let named: BTreeSet<BlobId> = named.filter(|blob| *blob != blob_id(0)).collect();
        let ask = Query::BlobsOfGroup { pg: GROUP, after_sequence: 0, entries_max: u32::MAX };
        let Ok(Answer::Blobs(live)) = self.world.ask(ask) else { panic!() };
        prop_assert_eq!(live.iter().map(|blob| blob.id).collect::<BTreeSet<_>>(), named);
        Ok(())
    }

    fn compare_content(&self, file: &FileRef, node: &Node) -> Result<(), TestCaseError> {
        let query = FileQuery::Content {
            bucket: self.bucket.clone(),
            file: file.clone(),
            from_offset: 0,
            extents_max: u32::MAX,
        };
        let answer = self.world.ask(Query::File(query));
        let Ok(Answer::File(FileAnswer::Content(found))) = answer else { panic!("{answer:?}") };
        prop_assert_eq!(found.stat.size as usize, node.bytes.len());
        let holes = node.bytes.iter().filter(|byte| byte.is_none()).count();
        prop_assert_eq!(found.stat.hole_bytes as usize, holes);
        prop_assert_eq!(matches!(found.content, Content::Inline { .. }), node.is_inline);
        if !node.is_inline {
            let extents: Vec<Extent> = found.extents.into_iter().map(|resolved| resolved.extent).collect();
            prop_assert_eq!(&bytes_of(&extents), &node.bytes);
        }
        Ok(())
    }
}

fn bytes_of(extents: &[Extent]) -> Vec<Byte> {
    let of = |extent: &Extent| {
        let (blob, offset, is_hole) = (extent.blob, extent.offset, extent.is_hole());
        (0..extent.length).map(move |at| (!is_hole).then_some((blob, offset + at))).collect::<Vec<_>>()
    };
    extents.iter().flat_map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever mounts and S3 do, both see one tree; who follows the bucket is told of every change; every count agrees with a recount; no blob is lost or left over;
    /// and once all keys are deleted and no session is left, nothing of them stays.
    #[test]
    fn mounts_and_s3_see_one_tree(ops in vec(op(), 1..50)) {
        let mut both = Both::new();
        for (is_second, op) in &ops {
            both.world.now.0 += 1;
            both.step(*is_second, op)?;
            both.listen();
            both.compare()?;
        }
        for session in [ONE, TWO] {
            let command = FileCommand::CloseSession { bucket: both.bucket.clone(), session };
            prop_assert!(both.world.run(Command::File(command)).is_ok());
        }
        for key in both.model.keys().into_keys() {
            prop_assert!(both.world.run(delete("aaa", &key)).is_ok());
        }
        // The last event's number and the root's times stay with the bucket.
        for first in [0x35, 0x40, 0x41, 0x47, 0x48, 0x4A, 0x4B, 0x4C, 0x4E, 0x4F, 0x51, 0x54] {
            prop_assert!(both.world.keys_under(first).is_empty(), "{:?}", both.world.keys_under(first));
        }
        prop_assert_eq!(both.world.keys_under(0x49).len(), 1);
        both.follow(false);
        let deleted = both.world.run(Command::DeleteBucket { name: "aaa".into() });
        prop_assert_eq!(deleted, Ok(Reply::Done));
        prop_assert!(both.world.keys_under(0x49).is_empty() && both.world.keys_under(0x4D).is_empty());
    }
}
