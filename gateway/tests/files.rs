//! The file service as a mount sees it: through a real client, over a pool in memory, with S3 beside.

mod pool;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::result::Result;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use makai_gateway::files::Files;
use makai_gateway::fuse::client::{FileClient, Target};
use makai_gateway::fuse::handles::Listed;
use makai_gateway::fuse::mount as core_mount;
use makai_gateway::fuse::register::{Kept, Record};
use makai_gateway::fuse::service::{self, Errno, FileService as _, Ino, LockKind, RenameMode};
use makai_gateway::grpc::proto::file::v1::files_client::FilesClient;
use makai_gateway::grpc::proto::file::v1::*;
use makai_gateway::grpc::{GrpcDoor, GrpcDoorConfig};
use makai_gateway::identity::Caller;
use makai_gateway::objects::squeeze::{Squeezed, Squeezing};
use makai_gateway::objects::{ByteRange, Upstream};
use makai_gateway::s3::S3DoorConfig;
use makai_raft::facts::Timestamp;
use makai_raft::facts::command::Precondition;
use makai_raft::facts::identity::{IdentityCommand, User};
use makai_raft::facts::object::ObjectHeaders;
use makai_raft::facts::query::{self, ListObjects};
use makai_raft::facts::version::{ListVersions, ListedVersion, Versioning};
use pool::Pool;
use proptest::prelude::*;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

type Client = FilesClient<InterceptedService<Channel, Credentials>>;

/// An access key in each call.
#[derive(Clone)]
struct Credentials(MetadataValue<tonic::metadata::Ascii>);

impl tonic::service::Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

struct World {
    pool: Pool,
    caller: Caller,
    address: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
}

impl World {
    async fn start() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let pool = Pool::start(any, S3DoorConfig::default(), None).await;
        let config =
            GrpcDoorConfig { calls_max: 64, connections_max: 16, now: pool::now, allow_plain: false };
        let mut door = GrpcDoor::new(pool.identity.clone(), config);
        Files::new(pool.objects.clone(), door.gate()).join(&mut door);
        let listener = TcpListener::bind(any).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(door.serve(listener, None, stop.clone()));
        let caller = pool.identity.caller(&pool.access_key).await.unwrap();
        pool.objects.create_bucket(&caller, BUCKET, None).await.unwrap();
        Self { pool, caller, address, _stop: stop.drop_guard() }
    }

    fn client(&self, id: &str, secret: &str) -> Client {
        let channel = Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect_lazy();
        let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{id}:{secret}")));
        FilesClient::with_interceptor(channel, Credentials(basic.parse().unwrap()))
            .max_decoding_message_size(16 << 20)
    }

    async fn mount(&self) -> Mount {
        let mut client = self.client(&self.pool.access_key, &self.pool.secret_key);
        let request = OpenSessionRequest { bucket: BUCKET.into(), ..Default::default() };
        let opened = client.open_session(request).await.unwrap().into_inner();
        let root = opened.root.clone().unwrap().inode;
        Mount { client, session: opened.session, root, opened }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What `makai mount` speaks through, with a folder for sessions.
    async fn connect(&self, register: &Path) -> Arc<FileClient> {
        let target = Target {
            endpoints: vec![self.endpoint()],
            authorities: Vec::new(),
            access_key_id: self.pool.access_key.clone(),
            secret_access_key: self.pool.secret_key.clone(),
            bucket: BUCKET.into(),
            prefix: String::new(),
            client: "a test".into(),
            timeout: Duration::from_secs(20),
            register: Some(register.to_owned()),
        };
        FileClient::connect(target).await.unwrap()
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) {
        let upstream = Upstream {
            size: Some(bytes.len() as u64),
            body: futures::stream::iter([Ok(Bytes::from(bytes))]).boxed(),
            check: Box::new(|_| Ok(None)),
        };
        let (headers, precondition) = (ObjectHeaders::default(), Precondition::default());
        self.pool.objects.put(&self.caller, BUCKET, key, headers, upstream, precondition).await.unwrap();
    }

    async fn get(&self, key: &str) -> Vec<u8> {
        let download = self.pool.objects.get(&self.caller, BUCKET, key, ByteRange::All).await.unwrap();
        let pieces: Vec<Bytes> = download.body.try_collect().await.unwrap();
        pieces.concat()
    }

    async fn keys(&self) -> Vec<String> {
        let list = ListObjects { bucket: BUCKET.into(), entries_max: 1000, ..ListObjects::default() };
        let (entries, _) = self.pool.objects.list(&self.caller, list).await.unwrap();
        let key = |entry| match entry {
            query::Listed::Object(head) => head.key,
            query::Listed::CommonPrefix(common) => common,
        };
        entries.into_iter().map(key).collect()
    }
}

const BUCKET: &str = "files";

struct Mount {
    client: Client,
    session: u64,
    root: u64,
    opened: OpenSessionReply,
}

fn file(attributes: &Attributes) -> Option<FileRef> {
    Some(FileRef { inode: attributes.inode, ..Default::default() })
}

fn data(bytes: &[u8]) -> Option<makai_gateway::grpc::proto::file::v1::Bytes> {
    Some(proto_bytes(bytes))
}

fn proto_bytes(bytes: &[u8]) -> makai_gateway::grpc::proto::file::v1::Bytes {
    makai_gateway::grpc::proto::file::v1::Bytes { data: Bytes::copy_from_slice(bytes), pieces: Vec::new() }
}

fn make(parent: u64, name: &str, kind: Kind) -> Make {
    Make {
        parent,
        name: Bytes::copy_from_slice(name.as_bytes()),
        kind: kind.into(),
        mode: 0o640,
        uid: 7,
        gid: 8,
        exclusive: true,
        ..Default::default()
    }
}

fn edit(of: &Attributes, changes: Vec<change::What>) -> operation::What {
    let changes = changes.into_iter().map(|what| Change { what: Some(what) }).collect();
    operation::What::Edit(Edit { file: file(of), changes, ..Default::default() })
}

impl Mount {
    async fn apply(&mut self, operations: Vec<operation::What>) -> Vec<Result<Done, String>> {
        self.request(0, operations).await
    }

    async fn request(
        &mut self,
        request_id: u64,
        operations: Vec<operation::What>,
    ) -> Vec<Result<Done, String>> {
        let operations = operations.into_iter().map(|what| Operation { what: Some(what) }).collect();
        let request = ApplyRequest {
            bucket: BUCKET.into(),
            session: self.session,
            request_id,
            operations,
            brief: false,
        };
        let reply = self.client.apply(request).await.unwrap().into_inner();
        let outcome = |result: makai_gateway::grpc::proto::file::v1::Result| match result.outcome.unwrap() {
            result::Outcome::Done(done) => Ok(done),
            result::Outcome::Error(error) => Err(error.name),
        };
        reply.results.into_iter().map(outcome).collect()
    }

    async fn one(&mut self, operation: operation::What) -> Result<Done, String> {
        self.apply(vec![operation]).await.remove(0)
    }

    async fn make(&mut self, parent: u64, name: &str, kind: Kind) -> Attributes {
        let made = self.one(operation::What::Make(make(parent, name, kind))).await.unwrap();
        made.attributes.unwrap()
    }

    async fn lookup(&mut self, path: &[&str]) -> Result<Attributes, String> {
        let names = path.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect();
        let (bucket, session) = (BUCKET.into(), self.session);
        let request = LookupRequest { bucket, parent: self.root, names, session };
        let reply = self.client.lookup(request).await.unwrap().into_inner();
        match reply.error {
            Some(error) => Err(error.name),
            None => Ok(reply.found.into_iter().last().unwrap()),
        }
    }

    async fn read(&mut self, file: Option<FileRef>, offset: u64, length: u64) -> Result<Vec<u8>, Status> {
        let request = ReadRequest { bucket: BUCKET.into(), file, offset, length, ..Default::default() };
        let replies: Vec<ReadReply> = self.client.read(request).await?.into_inner().try_collect().await?;
        Ok(replies.into_iter().flat_map(|reply| reply.data).collect())
    }

    async fn names(&mut self, directory: u64, entries_max: u32) -> Vec<String> {
        let (mut names, mut cursor) = (Vec::new(), Bytes::new());
        loop {
            let (bucket, session) = (BUCKET.into(), self.session);
            let request = ReadDirectoryRequest { bucket, directory, cursor, entries_max, session };
            let page = self.client.read_directory(request).await.unwrap().into_inner();
            names.extend(page.entries.iter().map(|entry| String::from_utf8(entry.name.to_vec()).unwrap()));
            match page.entries.last() {
                Some(last) if !page.is_end => cursor = last.cursor.clone(),
                _ => return names,
            }
        }
    }

    async fn store(&mut self, pieces: Vec<Vec<u8>>) -> StoreReply {
        let requests = pieces.into_iter().map(|data| StoreRequest {
            bucket: BUCKET.into(),
            length: None,
            data: data.into(),
        });
        let requests: Vec<StoreRequest> = requests.collect();
        self.client.store(futures::stream::iter(requests)).await.unwrap().into_inner()
    }

    async fn renew(&mut self, seen_sequence: u64, held: Vec<u64>) {
        let request = RenewSessionRequest {
            bucket: BUCKET.into(),
            session: self.session,
            seen_sequence,
            held,
            inodes_wanted: 0,
        };
        self.client.renew_session(request).await.unwrap();
    }
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(seed | 1).wrapping_add(at >> 9)) as u8).collect()
}

/// What a mount makes S3 lists and reads, and what S3 puts a mount walks and reads: each at once.
#[tokio::test]
async fn mounts_and_s3_see_the_same() {
    let world = World::start().await;
    let mut mount = world.mount().await;
    let root = mount.root;
    let directory = mount.make(root, "d", Kind::Directory).await;
    let mut small = make(directory.inode, "small.txt", Kind::File);
    small.data = Bytes::from_static(b"hello");
    let made = mount.one(operation::What::Make(small)).await.unwrap();
    let made = made.attributes.unwrap();
    assert_eq!((made.size, made.mode, made.uid, made.gid, made.links), (5, 0o640, 7, 8, 1));
    assert_eq!(made.etag, "5d41402abc4b2a76b9719d911017c592", "the MD5 of hello");
    let link = Make { target: Bytes::from_static(b"d/small.txt"), ..make(root, "l", Kind::Symlink) };
    let link = mount.one(operation::What::Make(link)).await.unwrap().attributes.unwrap();
    let request = ReadLinkRequest { bucket: BUCKET.into(), file: file(&link) };
    assert_eq!(mount.client.read_link(request).await.unwrap().into_inner().target, "d/small.txt");
    assert_eq!(world.keys().await, ["d/", "d/small.txt", "l"]);
    assert_eq!(world.get("d/small.txt").await, b"hello");

    let big = pattern(3_000_000, 5);
    world.put("a/b/big", big.clone()).await;
    world.put("a/b", b"an object beside a directory".to_vec()).await;
    world.put("a//x", Vec::new()).await;
    assert_eq!(mount.names(root, 2).await, ["a", "d", "l"]);
    let a = mount.lookup(&["a"]).await.unwrap();
    assert_eq!(mount.names(a.inode, 1).await, ["%~empty", "b%~obj", "b"]);
    let found = mount.lookup(&["a", "b", "big"]).await.unwrap();
    assert!(found.needs_place);
    let b = mount.lookup(&["a", "b"]).await.unwrap();
    let place = Some(FileRef { inode: found.inode, parent: b.inode, name: Bytes::from_static(b"big") });
    assert_eq!(mount.read(place.clone(), 0, u64::MAX).await.unwrap(), big);
    assert_eq!(mount.read(place, 2_999_990, 100).await.unwrap(), big[2_999_990..]);
    let beside = mount.lookup(&["a", "b%~obj"]).await.unwrap();
    assert_eq!(beside.size, 28);
    assert_eq!(mount.lookup(&["a", "b%~obj", "c"]).await, Err("ENOTDIR".into()));
    assert_eq!(mount.lookup(&["nowhere"]).await, Err("ENOENT".into()));

    // A directory with all that is below it moves in both views.
    let rename = Rename {
        from_parent: root,
        from_name: Bytes::from_static(b"a"),
        to_parent: directory.inode,
        to_name: Bytes::from_static(b"moved"),
        ..Default::default()
    };
    mount.one(operation::What::Rename(rename)).await.unwrap();
    assert_eq!(world.keys().await, ["d/", "d/moved//x", "d/moved/b", "d/moved/b/big", "d/small.txt", "l"]);
    assert_eq!(world.get("d/moved/b/big").await, big);
}

/// Overwritten, appended, punched, copied and cut, a file reads as an array of bytes would, for mount and S3.
#[tokio::test]
async fn edits_read_as_an_array_does() {
    let world = World::start().await;
    let mut mount = world.mount().await;
    let made = mount.make(mount.root, "f", Kind::File).await;
    let mut expected = pattern(700_000, 3);
    let stored = mount.store(expected.chunks(100_000).map(<[u8]>::to_vec).collect()).await;
    assert_eq!(stored.length, 700_000);
    let piece = |offset, length| Piece { token: stored.token.clone(), offset, length };
    let pieces = vec![piece(0, 400_000), piece(400_000, 300_000)];
    let whole = makai_gateway::grpc::proto::file::v1::Bytes { data: Bytes::new(), pieces };
    mount.one(edit(&made, vec![change::What::Replace(whole)])).await.unwrap();

    let patch = pattern(70_000, 11);
    expected[65_000..135_000].copy_from_slice(&patch);
    expected.extend_from_slice(b"the end");
    expected[300_000..310_000].fill(0);
    expected.resize(900_000, 0);
    let copied = expected[60_000..80_000].to_vec();
    expected[500_000..520_000].copy_from_slice(&copied);
    expected.extend_from_slice(b"!");
    let changes = vec![
        change::What::Write(Write { offset: 65_000, bytes: data(&patch) }),
        change::What::Append(proto_bytes(b"the end")),
        change::What::Punch(Range { offset: 300_000, length: 10_000 }),
        change::What::Extend(900_000),
        change::What::Copy(CopyRange {
            from: file(&made),
            from_offset: 60_000,
            offset: 500_000,
            length: 20_000,
        }),
        change::What::Append(proto_bytes(b"!")),
    ];
    let done = mount.one(edit(&made, changes)).await.unwrap();
    assert_eq!(done.offset, 900_000, "where the last append landed");
    let after = done.attributes.unwrap();
    let holes = 10_000 + (900_000 - 700_007);
    assert_eq!((after.size, after.blocks), (900_001, (900_001u64 - holes).div_ceil(512)));
    assert!(mount.read(file(&made), 0, u64::MAX).await.unwrap() == expected);
    assert!(world.get("f").await == expected);

    let request = GetSegmentsRequest { bucket: BUCKET.into(), file: file(&made), offset: 0 };
    let segments = mount.client.get_segments(request).await.unwrap().into_inner().segments;
    let holes: Vec<_> = segments.iter().filter(|s| s.is_hole).map(|s| (s.offset, s.length)).collect();
    assert_eq!(holes, [(300_000, 10_000), (700_007, 900_000 - 700_007)]);

    let stale = Edit { file: file(&made), if_data_version: Some(made.data_version), ..Default::default() };
    assert_eq!(mount.one(operation::What::Edit(stale)).await, Err("ESTALE".into()));
    let cut = SetAttributes { file: file(&made), size: Some(65_536), ..Default::default() };
    mount.one(operation::What::SetAttributes(cut)).await.unwrap();
    assert!(world.get("f").await == expected[..65_536]);
}

/// A small file lives in the metadata until it is edited in place; the order of operations is kept through that.
#[tokio::test]
async fn small_files_are_edited_in_order() {
    let world = World::start().await;
    let mut mount = world.mount().await;
    let born = Make { data: Bytes::from_static(b"0123456789"), ..make(mount.root, "s", Kind::File) };
    let made = mount.one(operation::What::Make(born)).await.unwrap().attributes.unwrap();
    let other = Make { data: Bytes::from_static(b"abc"), ..make(mount.root, "t", Kind::File) };
    let operations = vec![
        edit(&made, vec![change::What::Write(Write { offset: 3, bytes: data(b"xyz") })]),
        operation::What::Make(other),
        edit(&made, vec![change::What::Truncate(8), change::What::Append(proto_bytes(b"!"))]),
        edit(&made, vec![change::What::Write(Write { offset: 0, bytes: data(b"_") })]),
    ];
    let results = mount.request(99, operations.clone()).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(world.get("s").await, b"_12xyz67!");
    // The same request again, as after a lost answer, does nothing again.
    let again = mount.request(99, operations).await;
    assert!(again.iter().all(Result::is_ok), "{again:?}");
    assert_eq!(world.get("s").await, b"_12xyz67!");
    let cut = SetAttributes {
        file: file(&results[1].as_ref().unwrap().attributes.clone().unwrap()),
        size: Some(2),
        ..Default::default()
    };
    mount.one(operation::What::SetAttributes(cut)).await.unwrap();
    assert_eq!(world.get("t").await, b"ab");
}

/// Who makes a name exclusively wins once; links, replaced and unlinked files keep their bytes while they are held.
#[tokio::test]
async fn names_come_and_go_and_held_files_stay() {
    let world = World::start().await;
    let (mut one, mut two) = (world.mount().await, world.mount().await);
    let root = one.root;
    let born = Make { data: Bytes::from_static(b"content"), ..make(root, "f", Kind::File) };
    let made = one.one(operation::What::Make(born.clone())).await.unwrap().attributes.unwrap();
    assert_eq!(two.one(operation::What::Make(born)).await, Err("EEXIST".into()));
    let link = Link { file: file(&made), parent: root, name: Bytes::from_static(b"g") };
    let linked = two.one(operation::What::Link(link)).await.unwrap().attributes.unwrap();
    assert_eq!((linked.inode, linked.links), (made.inode, 2));
    let unlink = |name: &'static str, is_held| {
        operation::What::Unlink(Unlink { parent: root, name: Bytes::from_static(name.as_bytes()), is_held })
    };
    one.one(unlink("f", false)).await.unwrap();
    assert_eq!(world.keys().await, ["g"]);
    two.one(unlink("g", true)).await.unwrap();
    assert!(world.keys().await.is_empty());
    assert_eq!(one.read(file(&made), 0, 100).await.unwrap(), b"content");
    one.renew(u64::MAX, Vec::new()).await;
    two.renew(u64::MAX, vec![made.inode]).await;
    assert_eq!(two.read(file(&made), 0, 100).await.unwrap(), b"content");
    two.renew(u64::MAX, Vec::new()).await;
    let gone = two.read(file(&made), 0, 100).await.unwrap_err();
    assert_eq!(gone.metadata().get("makai-errno").unwrap(), "ESTALE");

    // A PUT gives the key another inode; who reads the old one reads the old bytes.
    world.put("k", b"old".to_vec()).await;
    let old = one.lookup(&["k"]).await.unwrap();
    world.put("k", b"new bytes".to_vec()).await;
    let new = one.lookup(&["k"]).await.unwrap();
    assert_ne!(old.inode, new.inode);
    assert_eq!(one.read(file(&old), 0, 100).await.unwrap(), b"old");
    assert_eq!(world.get("k").await, b"new bytes");

    let directory = one.make(root, "d", Kind::Directory).await;
    one.make(directory.inode, "x", Kind::Fifo).await;
    let remove = RemoveDirectory { parent: root, name: Bytes::from_static(b"d") };
    assert_eq!(one.one(operation::What::RemoveDirectory(remove.clone())).await, Err("ENOTEMPTY".into()));
    one.one(operation::What::Unlink(Unlink {
        parent: directory.inode,
        name: Bytes::from_static(b"x"),
        is_held: false,
    }))
    .await
    .unwrap();
    assert_eq!(world.keys().await, ["d/", "k"], "an emptied directory stays");
    one.one(operation::What::RemoveDirectory(remove)).await.unwrap();
    assert_eq!(world.keys().await, ["k"]);
}

/// A session's own numbers, attributes, extended attributes and locks are kept and told.
#[tokio::test]
async fn attributes_and_locks_hold_between_mounts() {
    let world = World::start().await;
    let (mut one, mut two) = (world.mount().await, world.mount().await);
    let granted = one.opened.inodes.unwrap();
    let numbered = Make { inode: granted.first + 5, ..make(one.root, "n", Kind::File) };
    let made = one.one(operation::What::Make(numbered.clone())).await.unwrap().attributes.unwrap();
    assert_eq!(made.inode, granted.first + 5);
    let again = Make { name: Bytes::from_static(b"m"), ..numbered };
    assert_eq!(one.one(operation::What::Make(again.clone())).await, Err("EINVAL".into()), "used");
    let foreign = Make { inode: granted.first + 6, ..again };
    assert_eq!(two.one(operation::What::Make(foreign)).await, Err("EINVAL".into()), "another session's");

    let at = Time { seconds: -5, nanos: 999_999_999 };
    let set = SetAttributes {
        file: file(&made),
        mode: Some(0o4755),
        uid: Some(1000),
        modified_at: Some(TimeToSet { to: Some(time_to_set::To::At(at)) }),
        ..Default::default()
    };
    one.one(operation::What::SetAttributes(set)).await.unwrap();
    let xattr = |name: &'static str, value: Option<&'static [u8]>, create_only| {
        operation::What::SetXattr(SetXattr {
            file: file(&made),
            name: Bytes::from_static(name.as_bytes()),
            value: value.map(Bytes::from_static),
            create_only,
            replace_only: false,
        })
    };
    one.one(xattr("user.a", Some(b"1"), true)).await.unwrap();
    assert_eq!(one.one(xattr("user.a", Some(b"2"), true)).await, Err("EEXIST".into()));
    assert_eq!(one.one(xattr("user.b", None, false)).await, Err("ENODATA".into()));
    let seen = two.lookup(&["n"]).await.unwrap();
    assert_eq!((seen.mode, seen.uid, seen.gid, seen.modified_at), (0o4755, 1000, 8, Some(at)));
    let request = GetXattrsRequest { bucket: BUCKET.into(), file: file(&made) };
    let xattrs = two.client.get_xattrs(request).await.unwrap().into_inner().xattrs;
    assert_eq!(xattrs, [Xattr { name: "user.a".into(), value: "1".into() }]);

    let lock = |kind: LockType, start, end| Lock {
        r#type: kind.into(),
        owner: 1,
        is_flock: false,
        start,
        end,
        pid: 42,
    };
    let set = |lock| operation::What::SetLock(SetLock { file: file(&made), lock: Some(lock) });
    one.one(set(lock(LockType::Write, 0, 99))).await.unwrap();
    assert_eq!(two.one(set(lock(LockType::Read, 50, 60))).await, Err("EAGAIN".into()));
    one.one(set(lock(LockType::Unlock, 40, 69))).await.unwrap();
    two.one(set(lock(LockType::Read, 50, 60))).await.unwrap();
    let wanted = GetLockRequest {
        bucket: BUCKET.into(),
        session: two.session,
        file: file(&made),
        lock: Some(lock(LockType::Write, 0, u64::MAX)),
    };
    let held = two.client.get_lock(wanted).await.unwrap().into_inner().held.unwrap();
    assert_eq!((held.start, held.end, held.pid), (0, 39, 42));
    let close = CloseSessionRequest { bucket: BUCKET.into(), session: one.session };
    one.client.close_session(close).await.unwrap();
    two.one(set(lock(LockType::Write, 0, u64::MAX))).await.unwrap();
    let late = Operation { what: Some(operation::What::Make(make(one.root, "late", Kind::File))) };
    let bucket = BUCKET.into();
    let ended = ApplyRequest { bucket, session: one.session, operations: vec![late], ..Default::default() };
    match one.client.apply(ended).await {
        Err(ended) => assert_eq!(ended.metadata().get("makai-errno").unwrap(), "ESTALE"),
        Ok(told) => match told.into_inner().results.remove(0).outcome.unwrap() {
            result::Outcome::Error(error) => assert_eq!(error.name, "ESTALE"),
            result::Outcome::Done(_) => panic!("an ended session changed something"),
        },
    }
}

/// A mount hears of what other mounts and S3 change, and not of its own changes.
#[tokio::test]
async fn changes_of_others_are_told() {
    let world = World::start().await;
    let (mut one, mut two) = (world.mount().await, world.mount().await);
    let watch =
        WatchRequest { bucket: BUCKET.into(), session: one.session, after_sequence: one.opened.sequence };
    let mut changes = one.client.watch(watch).await.unwrap().into_inner();
    one.make(one.root, "mine", Kind::File).await;
    two.make(two.root, "theirs", Kind::File).await;
    world.put("d/e/s3", Vec::new()).await;
    let mut heard = BTreeMap::new();
    let hear = async {
        while heard.len() < 2 {
            for event in changes.message().await.unwrap().unwrap().events {
                if let Some(event::What::Entry(entry)) = event.what {
                    heard.insert(String::from_utf8(entry.name.to_vec()).unwrap(), entry.parent);
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), hear).await.expect("changes are told in time");
    assert_eq!(heard, BTreeMap::from([("theirs".to_owned(), one.root), ("d".to_owned(), one.root)]));
}

/// What is decided for a mount of the core alone, without a kernel.
async fn core(world: &World, folder: &Path, decides_alone: bool) -> Arc<core_mount::Mount> {
    let options = core_mount::Options {
        durable_close: false,
        unsent_bytes_max: 1 << 20,
        cache_bytes_max: 1 << 20,
        disk_cache: None,
        decides_alone,
        now: || std::time::SystemTime::UNIX_EPOCH,
    };
    let (forgets, mut told) = tokio::sync::mpsc::channel(1024);
    tokio::spawn(async move { while told.recv().await.is_some() {} });
    core_mount::Mount::begin(world.connect(folder).await, options, forgets).await.unwrap()
}

async fn listed(mount: &Arc<core_mount::Mount>, directory: Ino) -> Vec<(String, u64)> {
    let number = mount.open_directory(directory).unwrap();
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let page = mount.list(number, offset).await.unwrap();
        let Some(last) = page.entries.last() else { break };
        offset = last.offset;
        let name = |listed: &Listed| String::from_utf8(listed.place.name.to_vec()).unwrap();
        names.extend(page.entries.iter().map(|listed| (name(listed), listed.attr.size)));
    }
    mount.release_directory(number);
    names
}

fn new_node(kind: service::Kind) -> service::NewNode {
    let (target, xattrs) = (Bytes::new(), Vec::new());
    service::NewNode { kind, mode: 0o755, uid: 0, gid: 0, rdev: 0, target, xattrs }
}

/// Who looks where a mount decides alone, by name, by listing or through S3, sees all that it decided before.
#[tokio::test]
async fn who_looks_is_told_first_what_another_decided_alone() {
    let world = World::start().await;
    let folder = tempfile::tempdir().unwrap();
    let one = core(&world, folder.path(), true).await;
    let tasks = [tokio::spawn(one.clone().send_by_age()), tokio::spawn(one.clone().follow_changes())];
    let _end_with_this = tasks.map(tokio_util::task::AbortOnDropHandle::new);
    let mut two = world.mount().await;
    // A directory is its maker's alone, and a new file waits to be written before anyone is told of it.
    for (number, look) in ["lookup", "directory", "get", "list"].into_iter().enumerate() {
        let directory = format!("d{number}");
        let made = one.make(one.root(), OsStr::new(&directory), new_node(service::Kind::Directory), 0).await;
        let inode = made.unwrap().attr.ino;
        // What the directory's own making waited for is over: the pool knows it.
        one.sync_directory(inode).await.unwrap();
        for name in ["first", "second"] {
            one.make(inode, OsStr::new(name), new_node(service::Kind::File), 0).await.unwrap();
        }
        let key = format!("{directory}/second");
        match look {
            "lookup" => assert!(two.lookup(&[directory.as_str(), "second"]).await.is_ok()),
            "directory" => assert_eq!(two.names(inode.0, 10).await, ["first", "second"]),
            "get" => assert_eq!(world.get(&key).await, b""),
            _ => assert!(world.keys().await.contains(&key)),
        }
    }
    one.end().await.unwrap();
}

/// A bucket that keeps versions shows them below `.versions`, whole, to whoever names it, and lets nobody change them; one
/// that never did has no such name.
#[tokio::test]
async fn versions_are_files_that_nobody_can_change() {
    let world = World::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mount = core(&world, folder.path(), false).await;
    let root = mount.root();
    let versions = OsStr::new(".versions");
    world.put("d/e/f", b"before there were versions".to_vec()).await;
    assert_eq!(mount.lookup(root, versions).await.unwrap_err().0, Errno::NOENT);

    world.pool.objects.set_versioning(&world.caller, BUCKET, Versioning::Enabled).await.unwrap();
    let big = pattern(300_000, 7);
    world.put("d/e/f", big.clone()).await;
    world.put("d/e/f", b"third".to_vec()).await;
    let long = "n".repeat(300);
    world.put(&format!("d/{long}"), b"long".to_vec()).await;
    world.pool.objects.delete(&world.caller, BUCKET, "d/e/f", Precondition::default()).await.unwrap();
    let past = mount.lookup(root, versions).await.unwrap().attr;
    assert_eq!((past.kind, past.mode), (service::Kind::Directory, 0o500));
    let names = |of: Vec<(String, u64)>| of.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(listed(&mount, root).await), ["d"], "only who names it sees it");
    assert_eq!(names(listed(&mount, past.ino).await), ["d"]);
    let d = mount.lookup(past.ino, OsStr::new("d")).await.unwrap().attr.ino;
    let e = mount.lookup(d, OsStr::new("e")).await.unwrap().attr.ino;
    let found = listed(&mount, e).await;
    assert_eq!(found.iter().map(|(_, size)| *size).collect::<Vec<_>>(), [5, 300_000, 26], "newest first");
    assert!(found.iter().all(|(name, _)| name.starts_with("f@")), "{found:?}");
    assert_eq!(found[2].0, "f@null");
    assert_eq!(listed(&mount, d).await.len(), 2);
    for (directory, name, bytes) in [
        (e, found[0].0.clone(), b"third".to_vec()),
        (e, found[1].0.clone(), big),
        (e, "f@null".to_owned(), b"before there were versions".to_vec()),
        (d, listed(&mount, d).await.remove(1).0, b"long".to_vec()),
    ] {
        let attr = mount.lookup(directory, OsStr::new(&name)).await.unwrap().attr;
        assert_eq!((attr.size, attr.mode), (bytes.len() as u64, 0o400), "{name}");
        let (number, _) = mount.open(attr.ino, false).await.unwrap();
        let file = mount.file(number).unwrap();
        assert_eq!(mount.read(&file, 0, 1 << 20).await.unwrap(), bytes, "{name}");
        let tail = mount.read(&file, attr.size - 2, 100).await.unwrap();
        assert_eq!(tail, bytes[bytes.len() - 2..], "{name}");
        drop(file);
        mount.release(number, None).await;
        let change = service::AttrChange { size: Some(0), ..Default::default() };
        assert_eq!(mount.set_attributes(attr.ino, change).await.unwrap_err(), Errno::ROFS);
        assert_eq!(mount.unlink(directory, OsStr::new(&name)).await, Err(Errno::ROFS));
        let away = mount.rename((directory, OsStr::new(&name)), (root, OsStr::new("x")), RenameMode::Replace);
        assert_eq!(away.await, Err(Errno::ROFS));
    }
    for missing in ["f", "f@0000000000000001", "f@nul", "g@null", ".."] {
        assert!(mount.lookup(e, OsStr::new(missing)).await.is_err(), "{missing}");
    }

    // What the bucket itself has of this name comes first.
    world.put(".versions/mine", b"mine".to_vec()).await;
    let other = core(&world, folder.path(), false).await;
    let own = other.lookup(root, versions).await.unwrap().attr.ino;
    assert_eq!(names(listed(&other, own).await), ["mine"]);
    for mount in [mount, other] {
        mount.end().await.unwrap();
    }
}

/// What a program does to a file with `open`, `write` and `close`.
struct Writer<'m> {
    mount: &'m Arc<core_mount::Mount>,
    number: u64,
}

impl<'m> Writer<'m> {
    async fn create(mount: &'m Arc<core_mount::Mount>, parent: Ino, name: &str) -> Self {
        let made = mount.make(parent, OsStr::new(name), new_node(service::Kind::File), 0).await.unwrap();
        let (number, _) = mount.open_new(made.attr.ino, true).await.unwrap();
        Self { mount, number }
    }

    async fn open(mount: &'m Arc<core_mount::Mount>, parent: Ino, name: &str) -> Self {
        let found = mount.lookup(parent, OsStr::new(name)).await.unwrap();
        let (number, _) = mount.open(found.attr.ino, true).await.unwrap();
        Self { mount, number }
    }

    async fn write(&self, offset: u64, data: &[u8], is_append: bool) {
        let file = self.mount.file(self.number).unwrap();
        self.mount.write(&file, offset, data, is_append).await.unwrap();
    }

    async fn sync(&self) {
        self.mount.sync(&self.mount.file(self.number).unwrap()).await.unwrap();
    }

    async fn flush(&self) {
        self.mount.flush(&self.mount.file(self.number).unwrap(), 1).await.unwrap();
    }

    async fn close(self) {
        self.flush().await;
        self.mount.release(self.number, None).await;
    }
}

async fn overwrite(mount: &Arc<core_mount::Mount>, parent: Ino, name: &str, data: &[u8]) {
    let writer = Writer::open(mount, parent, name).await;
    let ino = mount.file(writer.number).unwrap().node.ino;
    mount.empty(ino).await.unwrap();
    writer.write(0, data, false).await;
    writer.close().await;
}

/// The versions of a key, newest first; a delete marker is `None`.
async fn versions_of(world: &World, key: &str) -> Vec<Option<Vec<u8>>> {
    let list = ListVersions {
        bucket: BUCKET.into(),
        prefix: key.into(),
        delimiter: String::new(),
        after: String::new(),
        after_version: None,
        entries_max: 1000,
    };
    let (entries, _) = world.pool.objects.list_versions(&world.caller, list).await.unwrap();
    let mut versions = Vec::new();
    for entry in entries {
        match entry {
            ListedVersion::Version { head, .. } if head.key == key => {
                let (objects, id) = (&world.pool.objects, Some(head.version_id()));
                let found =
                    objects.get_version(&world.caller, BUCKET, key, id, ByteRange::All).await.unwrap();
                let pieces: Vec<Bytes> = found.body.try_collect().await.unwrap();
                versions.push(Some(pieces.concat()));
            }
            ListedVersion::Marker { key: of, .. } if of == key => versions.push(None),
            _ => {}
        }
    }
    versions
}

/// In a bucket that keeps versions, what a program has closed is one: whatever a mount does with the file then, S3 finds it
/// again. What is written before a close is one version, however it is sent.
#[tokio::test]
async fn what_a_program_closed_is_a_version_that_mounts_keep() {
    let world = World::start().await;
    world.pool.objects.set_versioning(&world.caller, BUCKET, Versioning::Enabled).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mount = core(&world, folder.path(), true).await;
    let root = mount.root();
    let some = |texts: &[&str]| texts.iter().map(|text| Some(text.as_bytes().to_vec())).collect::<Vec<_>>();

    // One version for each open and close, however often it is synced meanwhile.
    let writer = Writer::create(&mount, root, "f").await;
    writer.write(0, b"fi", false).await;
    writer.sync().await;
    writer.write(2, b"rst", false).await;
    writer.sync().await;
    writer.close().await;
    assert_eq!(versions_of(&world, "f").await, some(&["first"]));
    overwrite(&mount, root, "f", b"second").await;
    assert_eq!(versions_of(&world, "f").await, some(&["second", "first"]));

    // Bytes in the middle, and at the end.
    let writer = Writer::open(&mount, root, "f").await;
    writer.write(0, b"S", false).await;
    writer.close().await;
    let writer = Writer::open(&mount, root, "f").await;
    writer.write(0, b"!", true).await;
    writer.close().await;
    assert_eq!(versions_of(&world, "f").await, some(&["Second!", "Second", "second", "first"]));

    // Cut short without being opened.
    let ino = mount.lookup(root, OsStr::new("f")).await.unwrap().attr.ino;
    let cut = service::AttrChange { size: Some(3), ..Default::default() };
    mount.set_attributes(ino, cut).await.unwrap();
    assert_eq!(versions_of(&world, "f").await[..2], some(&["Sec", "Second!"]));

    // A close that the kernel has not told the end of, as of a file that is opened again at once.
    let first = Writer::open(&mount, root, "f").await;
    first.write(3, b"tion", false).await;
    first.flush().await;
    let second = Writer::open(&mount, root, "f").await;
    second.write(7, b"al", false).await;
    second.close().await;
    first.close().await;
    assert_eq!(versions_of(&world, "f").await[..3], some(&["Sectional", "Section", "Sec"]));

    // Renamed over, and away; what had the name keeps what it was.
    let writer = Writer::create(&mount, root, "g").await;
    writer.write(0, b"new", false).await;
    writer.close().await;
    mount.rename((root, OsStr::new("g")), (root, OsStr::new("f")), RenameMode::Replace).await.unwrap();
    assert_eq!(versions_of(&world, "f").await[..2], some(&["new", "Sectional"]));
    assert_eq!(versions_of(&world, "g").await, [None, Some(b"new".to_vec())]);

    // Removed: a marker, as S3's own deletion leaves.
    mount.unlink(root, OsStr::new("f")).await.unwrap();
    assert_eq!(versions_of(&world, "f").await[..2], [None, Some(b"new".to_vec())]);
    assert!(!world.keys().await.contains(&"f".to_owned()));

    // A file that is removed before it was ever closed leaves nothing.
    let writer = Writer::create(&mount, root, "scratch").await;
    mount.unlink(root, OsStr::new("scratch")).await.unwrap();
    writer.write(0, b"nobody's", false).await;
    writer.close().await;
    assert_eq!(versions_of(&world, "scratch").await, []);

    // A directory moves with its keys, each of which leaves a version.
    let d = mount.make(root, OsStr::new("d"), new_node(service::Kind::Directory), 0).await.unwrap().attr.ino;
    let writer = Writer::create(&mount, d, "in").await;
    writer.write(0, b"inner", false).await;
    writer.close().await;
    mount.rename((root, OsStr::new("d")), (root, OsStr::new("e")), RenameMode::Replace).await.unwrap();
    assert_eq!(versions_of(&world, "d/in").await, [None, Some(b"inner".to_vec())]);
    assert_eq!(versions_of(&world, "e/in").await, some(&["inner"]));

    // Two mounts: what the one closed stays when the other changes it.
    let other = core(&world, folder.path(), true).await;
    let e = other.lookup(root, OsStr::new("e")).await.unwrap().attr.ino;
    overwrite(&other, e, "in", b"theirs").await;
    assert_eq!(versions_of(&world, "e/in").await, some(&["theirs", "inner"]));

    // A put by S3 over a file that a mount has open: its program goes on with what it opened.
    let reader = Writer::open(&mount, e, "in").await;
    world.put("e/in", b"by S3".to_vec()).await;
    let file = mount.file(reader.number).unwrap();
    assert_eq!(mount.read(&file, 0, 100).await.unwrap(), b"theirs");
    drop(file);
    reader.close().await;
    assert_eq!(versions_of(&world, "e/in").await, some(&["by S3", "theirs", "inner"]));
    for mount in [mount, other] {
        mount.end().await.unwrap();
    }
}

/// Small files that were written together share a blob. When most of them are gone, the rest is copied out of it, and reads as
/// before, by mounts and S3; what then is dead of blobs is less than a fifth.
#[tokio::test]
async fn blobs_that_are_mostly_dead_are_emptied() {
    const FILES: u64 = 512;
    let world = World::start().await;
    let mut mount = world.mount().await;
    let root = mount.root;
    let content = |number: u64| pattern(4096, number);
    let made =
        |number: u64| Make { data: content(number).into(), ..make(root, &format!("f{number}"), Kind::File) };
    let makes = (0..FILES).map(|number| operation::What::Make(made(number))).collect();
    let made: Vec<_> =
        mount.apply(makes).await.into_iter().map(|done| done.unwrap().attributes.unwrap()).collect();
    let unlink = |number: u64| {
        let name = Bytes::from(format!("f{number}"));
        operation::What::Unlink(Unlink { parent: root, name, is_held: false })
    };
    let mut known = Squeezing::default();
    // A tenth is not worth the copy.
    let gone = |number: &u64| number % 10 == 3;
    let unlinks = (0..FILES).filter(gone).map(unlink).collect();
    assert!(mount.apply(unlinks).await.iter().all(Result::is_ok));
    assert_eq!(world.pool.objects.squeeze(&mut known).await.unwrap(), Squeezed::default());
    let left = |number: &u64| number.is_multiple_of(4) && !gone(number);
    let unlinks = (0..FILES).filter(|number| !left(number) && !gone(number)).map(unlink).collect();
    assert!(mount.apply(unlinks).await.iter().all(Result::is_ok));
    // One of them has a part of its own in the middle.
    let write = Write { offset: 1000, bytes: data(&[7; 10]) };
    mount.one(edit(&made[4], vec![change::What::Write(write)])).await.unwrap();
    let mut edited = content(4);
    edited[1000..1010].fill(7);
    let before = world.pool.objects.head(&world.caller, BUCKET, "f8").await.unwrap();

    let done = world.pool.objects.squeeze(&mut known).await.unwrap();
    let count = (0..FILES).filter(left).count() as u64;
    assert_eq!((done.versions, done.bytes_copied), (count, count * 4096 - 10));
    let again = world.pool.objects.squeeze(&mut Squeezing::default()).await.unwrap();
    assert_eq!(again, Squeezed::default(), "nothing is left to be done");
    for number in (0..FILES).filter(left) {
        let expected = if number == 4 { edited.clone() } else { content(number) };
        assert!(world.get(&format!("f{number}")).await == expected, "f{number}");
        let of = file(&made[number as usize]);
        assert!(mount.read(of, 0, 5000).await.unwrap() == expected, "f{number}");
    }
    let after = world.pool.objects.head(&world.caller, BUCKET, "f8").await.unwrap();
    assert_eq!(after, before, "what a client sees of it is what it was");
}

/// Where versions are suspended, one without an id is replaced, and those that have one stay.
#[tokio::test]
async fn a_suspended_bucket_keeps_what_has_an_id_and_replaces_what_has_none() {
    let world = World::start().await;
    let folder = tempfile::tempdir().unwrap();
    let set = async |versioning| {
        world.pool.objects.set_versioning(&world.caller, BUCKET, versioning).await.unwrap();
    };
    world.put("f", b"before".to_vec()).await;
    set(Versioning::Enabled).await;
    let mount = core(&world, folder.path(), true).await;
    overwrite(&mount, mount.root(), "f", b"with an id").await;
    let kept = |texts: &[&str]| texts.iter().map(|text| Some(text.as_bytes().to_vec())).collect::<Vec<_>>();
    assert_eq!(versions_of(&world, "f").await, kept(&["with an id", "before"]));
    set(Versioning::Suspended).await;
    overwrite(&mount, mount.root(), "f", b"without").await;
    assert_eq!(versions_of(&world, "f").await, kept(&["without", "with an id"]));
    overwrite(&mount, mount.root(), "f", b"again").await;
    assert_eq!(versions_of(&world, "f").await, kept(&["again", "with an id"]));
    mount.unlink(mount.root(), OsStr::new("f")).await.unwrap();
    assert_eq!(versions_of(&world, "f").await, [None, Some(b"with an id".to_vec())]);
    mount.end().await.unwrap();
}

/// Another tenant, a forged token, a foreign inode and senseless requests get their errno, and nothing happens.
#[tokio::test]
async fn strangers_and_nonsense_are_turned_away() {
    let world = World::start().await;
    let mut mount = world.mount().await;
    let made = mount.make(mount.root, "f", Kind::File).await;
    let mut other = world.client(&world.pool.other_access_key, &world.pool.other_secret_key);
    let request = OpenSessionRequest { bucket: BUCKET.into(), ..Default::default() };
    let denied = other.open_session(request).await.unwrap_err();
    assert_eq!(
        (denied.code(), denied.metadata().get("makai-errno").unwrap().to_str().unwrap()),
        (Code::PermissionDenied, "EACCES")
    );
    assert!(!denied.details().is_empty());
    let mut nobody = world.client(&world.pool.access_key, "wrong");
    let request = StatFsRequest { bucket: BUCKET.into() };
    assert_eq!(nobody.stat_fs(request).await.unwrap_err().code(), Code::Unauthenticated);

    // Another bucket's inodes are unknown here.
    world.pool.objects.create_bucket(&world.caller, "other", None).await.unwrap();
    let request = GetAttributesRequest { bucket: "other".into(), files: vec![file(&made).unwrap()] };
    let answer = mount.client.get_attributes(request).await.unwrap().into_inner().answers.remove(0);
    assert!(
        matches!(answer.answer, Some(attributes_or_error::Answer::Error(error)) if error.name == "ESTALE")
    );
    let request =
        ReadDirectoryRequest { bucket: "other".into(), directory: mount.root, ..Default::default() };
    assert_eq!(
        mount.client.read_directory(request).await.unwrap_err().metadata().get("makai-errno").unwrap(),
        "ESTALE"
    );

    let stored = mount.store(vec![vec![1; 100]]).await;
    let mut forged = stored.token.to_vec();
    forged[40] ^= 1;
    for (token, offset, length) in [(forged, 0, 100), (stored.token.to_vec(), 50, 51), (Vec::new(), 0, 1)] {
        let pieces = vec![Piece { token: token.into(), offset, length }];
        let bytes = makai_gateway::grpc::proto::file::v1::Bytes { data: Bytes::new(), pieces };
        let failed = mount.one(edit(&made, vec![change::What::Append(bytes)])).await;
        assert_eq!(failed, Err("EINVAL".into()));
    }
    for (name, errno) in [
        ("", "EINVAL"),
        (".", "EINVAL"),
        ("..", "EINVAL"),
        ("a/b", "EINVAL"),
        ("a\0", "EINVAL"),
        ("%~what", "EINVAL"),
    ] {
        let failed = mount.one(operation::What::Make(make(mount.root, name, Kind::File))).await;
        assert_eq!(failed, Err(errno.into()), "{name:?}");
    }
    let long = "n".repeat(256);
    let failed = mount.one(operation::What::Make(make(mount.root, &long, Kind::File))).await;
    assert_eq!(failed, Err("ENAMETOOLONG".into()));
    mount.make(mount.root, &long[1..], Kind::File).await;
    let far = Write { offset: i64::MAX as u64, bytes: data(b"x") };
    assert_eq!(mount.one(edit(&made, vec![change::What::Write(far)])).await, Err("EFBIG".into()));
    assert_eq!(mount.apply(vec![]).await, []);
    assert_eq!(world.keys().await.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Any bytes that Linux takes as a name come back as they were, from a listing and by lookup.
    #[test]
    fn names_of_any_bytes_come_back(names in prop::collection::btree_set(prop::collection::vec(any::<u8>(), 1..40), 1..12)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let world = World::start().await;
            let mut mount = world.mount().await;
            let is_name = |name: &Vec<u8>| {
                !name.contains(&0) && !name.contains(&b'/') && !matches!(&name[..], b"." | b"..")
                    && !name.windows(2).any(|pair| pair == b"%~")
            };
            let names: Vec<Vec<u8>> = names.into_iter().filter(is_name).collect();
            let root = mount.root;
            let makes = names.iter().map(|name| {
                operation::What::Make(Make { name: name.clone().into(), ..make(root, "", Kind::File) })
            });
            let made = mount.apply(makes.collect()).await;
            assert!(made.iter().all(Result::is_ok), "{made:?}");
            let request = ReadDirectoryRequest { bucket: BUCKET.into(), directory: root, ..Default::default() };
            let page = mount.client.read_directory(request).await.unwrap().into_inner();
            let mut shown: Vec<Vec<u8>> = page.entries.iter().map(|entry| entry.name.to_vec()).collect();
            shown.sort();
            assert_eq!(shown, names);
        });
    }
}

/// A thousand small files come in four calls, and a listing of more than one page shows them all.
#[tokio::test]
async fn small_files_come_in_batches() {
    let world = World::start().await;
    let mut mount = world.mount().await;
    let root = mount.root;
    let body = Bytes::from(pattern(4096, 7));
    for batch in 0..4 {
        let makes = (0..250).map(|number| {
            let name = format!("f-{batch}-{number}");
            operation::What::Make(Make { data: body.clone(), ..make(root, &name, Kind::File) })
        });
        let made = mount.apply(makes.collect()).await;
        assert!(made.iter().all(Result::is_ok));
    }

    assert_eq!(mount.names(root, 300).await.len(), 1000);
}

/// A user's policies hold at this door as at S3's: who may only read is refused each change, and who may nothing sees nothing.
#[tokio::test]
async fn a_users_policies_say_what_its_mounts_may() {
    let world = World::start().await;
    world.put("seen", b"bytes".to_vec()).await;
    let (identity, tenant) = (&world.pool.identity, world.caller.tenant);
    let read_only = format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":["s3:Get*","s3:List*"],"Resource":["arn:aws:s3:::{BUCKET}","arn:aws:s3:::{BUCKET}/*"]}}]}}"#
    );
    let policies = [("reader", vec![("read".to_owned(), read_only)]), ("nobody", Vec::new())];
    let mut keys = BTreeMap::new();
    for (name, policies) in policies {
        let user = User { tenant, name: name.into(), created_at: Timestamp(0), policies };
        identity.change(tenant, IdentityCommand::PutUser { user }).await.unwrap();
        keys.insert(name, identity.create_key(tenant, Some(name)).await.unwrap());
    }
    let client = |name: &str| world.client(&keys[name].id, keys[name].secret.expose());
    let open = || OpenSessionRequest { bucket: BUCKET.into(), ..Default::default() };

    let refused = client("nobody").open_session(open()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");

    let mut reader = client("reader");
    let opened = reader.open_session(open()).await.unwrap().into_inner();
    let root = opened.root.unwrap().inode;
    let request = ReadDirectoryRequest { bucket: BUCKET.into(), directory: root, ..Default::default() };
    assert_eq!(reader.read_directory(request).await.unwrap().into_inner().entries.len(), 1);
    let change = ApplyRequest {
        bucket: BUCKET.into(),
        session: opened.session,
        request_id: 1,
        operations: vec![Operation { what: Some(operation::What::Make(make(root, "new", Kind::File))) }],
        brief: false,
    };
    let refused = reader.apply(change).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert_eq!(world.keys().await, ["seen"]);
}

fn range_lock(of: &Attributes, kind: LockType, start: u64, end: u64) -> operation::What {
    let lock = Lock { r#type: kind.into(), owner: 1, is_flock: false, start, end, pid: 42 };
    operation::What::SetLock(SetLock { file: file(of), lock: Some(lock) })
}

/// As a program's request comes through a mount that saw the file under this name.
fn seen_as(root: u64, of: &Attributes, name: &'static str) -> service::FileRef {
    let place = service::Place { parent: Ino(root), name: Bytes::from_static(name.as_bytes()) };
    service::FileRef { ino: Ino(of.inode), place: Some(place) }
}

fn wanted(kind: LockKind, start: u64, end: u64) -> service::Lock {
    service::Lock { kind, start, end, owner: 5, pid: 6 }
}

async fn try_lock(client: &FileClient, file: &service::FileRef, lock: service::Lock) -> Result<(), Errno> {
    let operation = service::Operation::Lock { file: file.clone(), lock };
    client.apply(vec![operation]).await.and_then(|mut done| done.remove(0)).map(drop)
}

/// The locks of a mount that died end as soon as its bucket is mounted again on its machine, and no others do.
#[tokio::test]
async fn a_dead_mounts_locks_end_with_the_next_mount_on_its_machine() {
    let world = World::start().await;
    let (mut dead, mut living) = (world.mount().await, world.mount().await);
    let (one, two) =
        (dead.make(dead.root, "one", Kind::File).await, dead.make(dead.root, "two", Kind::File).await);
    dead.one(range_lock(&one, LockType::Write, 0, 9)).await.unwrap();
    living.one(range_lock(&two, LockType::Write, 0, 9)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let record = |session| Record { bucket: BUCKET.into(), endpoints: vec![world.endpoint()], session };
    let _living = Kept::begin(folder.path(), record(living.session)).unwrap();
    drop(Kept::begin(folder.path(), record(dead.session)).unwrap());

    let next = world.connect(folder.path()).await;
    let all = wanted(LockKind::Write, 0, 9);
    assert_eq!(try_lock(&next, &seen_as(dead.root, &one, "one"), all).await, Ok(()));
    assert_eq!(try_lock(&next, &seen_as(dead.root, &two, "two"), all).await, Err(Errno::AGAIN));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "the living ones");
    next.close().await;
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// SQLite's index is shared memory: a program on one mount is never told that it may join those of another.
#[tokio::test]
async fn an_index_in_use_on_one_mount_is_in_use_by_a_writer_for_another() {
    let world = World::start().await;
    let mut one = world.mount().await;
    let folder = tempfile::tempdir().unwrap();
    let other = world.connect(folder.path()).await;
    let index = one.make(one.root, "d.db-shm", Kind::File).await;
    let plain = one.make(one.root, "d.db", Kind::File).await;
    let (read, write) = (wanted(LockKind::Read, 128, 128), wanted(LockKind::Write, 128, 128));
    for (file, name, of_another, is_had) in
        [(&index, "d.db-shm", LockKind::Write, Err(Errno::AGAIN)), (&plain, "d.db", LockKind::Read, Ok(()))]
    {
        one.one(range_lock(file, LockType::Read, 128, 128)).await.unwrap();
        let seen = seen_as(one.root, file, name);
        assert_eq!(other.lock_conflict(&seen, write).await.unwrap().unwrap().kind, of_another, "{name}");
        assert_eq!(try_lock(&other, &seen, read).await, is_had, "{name}");
        assert_eq!(try_lock(&other, &seen, wanted(LockKind::Read, 120, 120)).await, Ok(()), "{name}");
        one.one(range_lock(file, LockType::Unlock, 0, 200)).await.unwrap();
        // Programs of one mount do share it.
        assert_eq!(try_lock(&other, &seen, read).await, Ok(()), "{name}");
        let neighbour = service::Lock { owner: 7, ..read };
        assert_eq!(try_lock(&other, &seen, neighbour).await, Ok(()), "{name}");
    }
}

/// Who lost a lock while the pool was away changes nothing by what it knew before; other files, and the file once it was
/// closed, are as ever.
#[tokio::test]
async fn a_file_whose_lock_was_lost_is_an_error_until_it_is_closed() {
    let world = World::start().await;
    let mut other = world.mount().await;
    let (lost, kept) =
        (other.make(other.root, "lost", Kind::File).await, other.make(other.root, "kept", Kind::File).await);
    let folder = tempfile::tempdir().unwrap();
    let client = world.connect(folder.path()).await;
    let (lost_file, kept_file) = (seen_as(other.root, &lost, "lost"), seen_as(other.root, &kept, "kept"));
    let all = wanted(LockKind::Write, 0, 9);
    for file in [&lost_file, &kept_file] {
        client.hold(file.ino);
        assert_eq!(try_lock(&client, file, all).await, Ok(()));
    }

    // As when a lease runs out.
    let record: Record = serde_json::from_slice(
        &fs::read(fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path()).unwrap(),
    )
    .unwrap();
    let close = CloseSessionRequest { bucket: BUCKET.into(), session: record.session };
    other.client.close_session(close).await.unwrap();
    other.one(range_lock(&lost, LockType::Write, 0, 9)).await.unwrap();

    let write = async |file: &service::FileRef| {
        let data = service::Payload::Inline(Bytes::from_static(b"x"));
        let edits = vec![service::Edit::Write { offset: 0, data }];
        let operation = service::Operation::Edit { file: file.clone(), edits, mtime: None };
        client.apply(vec![operation]).await.and_then(|mut done| done.remove(0)).map(drop)
    };
    assert_eq!(write(&lost_file).await, Err(Errno::IO));
    assert_eq!(client.read(&lost_file, 0, 9).await.map(|read| read.data), Err(Errno::IO));
    assert_eq!(write(&kept_file).await, Ok(()));
    assert_eq!(other.one(range_lock(&kept, LockType::Read, 0, 9)).await, Err("EAGAIN".into()), "taken again");
    client.release(lost_file.ino);
    assert_eq!(write(&lost_file).await, Ok(()));
    client.close().await;
}

/// What others want to change in a directory that one mount has alone waits until it is given back, S3 too; and the holder
/// is told that it is wanted.
#[tokio::test]
async fn a_directory_that_one_mount_has_alone_is_given_back_when_another_wants_it() {
    let world = World::start().await;
    let (mut one, mut two) = (world.mount().await, world.mount().await);
    let (root, session) = (one.root, one.session);
    let directory = Make { leased: true, ..make(root, "d", Kind::Directory) };
    let directory = one.one(operation::What::Make(directory)).await.unwrap().attributes.unwrap().inode;
    let lease = |wanted| operation::What::SetLease(SetLease { directory, wanted });
    assert_eq!(two.one(lease(true)).await, Err("EAGAIN".into()));
    one.make(directory, "mine", Kind::File).await;

    let watch = WatchRequest { bucket: BUCKET.into(), session, after_sequence: one.opened.sequence };
    let mut told = one.client.watch(watch).await.unwrap().into_inner();
    let recalled = async {
        loop {
            let reply = told.message().await.unwrap().unwrap();
            if reply.events.iter().any(|event| event.what == Some(event::What::Recalled(directory))) {
                return;
            }
        }
    };
    let (theirs, ()) = tokio::join!(two.make(directory, "theirs", Kind::File), async {
        recalled.await;
        one.one(lease(false)).await.unwrap();
    });
    assert_eq!(two.lookup(&["d", "theirs"]).await.unwrap().inode, theirs.inode);

    one.one(lease(true)).await.unwrap();
    let ((), ()) = tokio::join!(world.put("d/put", vec![1; 10]), async {
        one.make(directory, "before", Kind::File).await;
        one.one(lease(false)).await.unwrap();
    });
    assert_eq!(world.keys().await, ["d/", "d/before", "d/mine", "d/put", "d/theirs"]);
}

/// Small contents of one request stand in one blob where they are many: what is read is what was written.
#[tokio::test]
async fn many_small_files_are_born_with_their_content_and_times() {
    let world = World::start().await;
    let mut mount = world.mount().await;
    let at = |seconds| Some(Time { seconds, nanos: 5 });
    let now = mount.opened.root.clone().unwrap().modified_at.unwrap().seconds;
    let content = |number: usize| pattern(1 + number * 37 % 4096, number as u64);
    let born = |number: usize| {
        operation::What::Make(Make {
            data: content(number).into(),
            made_at: at(now - 2),
            modified_at: at(1000 + number as i64),
            ..make(mount.root, &format!("f{number:03}"), Kind::File)
        })
    };
    let makes: Vec<_> = (0..300).map(born).collect();
    let made = mount.apply(makes).await;
    for (number, made) in made.into_iter().enumerate() {
        let attributes = made.unwrap().attributes.unwrap();
        assert_eq!(attributes.modified_at, at(1000 + number as i64));
        assert_eq!((attributes.created_at, attributes.changed_at), (at(now - 2), at(now - 2)));
        assert_eq!(mount.read(file(&attributes), 0, 10_000).await.unwrap(), content(number));
        assert_eq!(world.get(&format!("f{number:03}")).await, content(number));
    }
}
