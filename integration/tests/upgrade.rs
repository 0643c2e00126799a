//! Promise: a cluster goes from one release to the next. What an earlier one wrote, on disk and on the wire, is read by this
//! one; nodes are replaced one by one while customers read and write, and none of them sees an error.
//!
//! `integration/golden/RELEASE/` holds what that release wrote: `node.tar.gz`, the folders of a stopped node, with
//! `node.json`, what is in them; and `*.msgpack`, messages and facts. A release is added by
//! `cargo test --release -p makai-integration --test upgrade -- --ignored`, once, and never changed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use makai::cli::bench::s3::sigv4::Credentials;
use makai::members::{DiskBeat, Filled, Heartbeat, HeartbeatAnswer, JoinAnswer, JoinRequest};
use makai::node::{FirstCredentials, credentials_path};
use makai::state::KnownPeer;
use makai_config::{DiskConfig, NodeConfig, Role as ConfigRole};
use makai_erasure::{BlobId, DiskId, NodeId, PgId, Scheme};
use makai_integration::cluster::{Cluster, ClusterOptions, Node};
use makai_integration::load::{Load, LoadOptions, Model, seed};
use makai_integration::s3::{Content, S3};
use makai_raft::facts::Timestamp;
use makai_raft::facts::cluster as facts;
use makai_raft::facts::cluster::{ClusterMap, Condition, Disk, Group, Role, SlotMove, Standing};
use makai_raft::facts::command::{Batch, Command, Envelope, NewBlob, NewContent, Precondition};
use makai_raft::facts::object::{Blob, Content as ObjectContent, Extent, ObjectHeaders};
use makai_raft::facts::query::{Answer, Query};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const RELEASE: &str = env!("CARGO_PKG_VERSION");
const BUCKET: &str = "kept";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Folders of `golden`, each a release.
fn releases() -> anyhow::Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(golden())?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    found.retain(|path| path.is_dir());
    found.sort();
    ensure!(!found.is_empty(), "no release lies in {:?}", golden());
    Ok(found)
}

/// What a node's folders hold.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Key and bytes of objects in [`BUCKET`], each made from its own name.
    objects: Vec<(String, u64)>,
}

/// One node that is all of its cluster, on two disks.
fn lone(dir: &Path) -> anyhow::Result<Node> {
    let roles = [ConfigRole::Voter, ConfigRole::Storage, ConfigRole::Gateway];
    Node::new(dir, "node", &roles, |config: &mut NodeConfig| {
        config.cluster.init = true;
        // As small as may be: the files are kept for ever.
        config.raft.log_segment_bytes = 1 << 20;
        let disk = |name: &str| DiskConfig {
            path: config.node.dir.parent().unwrap_or(Path::new(".")).join(name),
            reserve_bytes: 1 << 20,
            ..DiskConfig::default()
        };
        config.disk = vec![disk("disk0"), disk("disk1")];
    })
}

fn door(node: &Node) -> anyhow::Result<S3> {
    let credentials: FirstCredentials =
        serde_json::from_slice(&fs::read(credentials_path(&node.config.node.dir))?)?;
    let listen = node.config.s3.listen.context("a gateway")?;
    let credentials = Credentials {
        access_key: credentials.access_key_id,
        secret_key: credentials.secret_access_key,
        region: "us-east-1".into(),
    };
    Ok(S3::new(listen.to_string(), credentials))
}

/// This release starts on the folders of each release, and serves every byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disks_of_earlier_releases_are_read() -> anyhow::Result<()> {
    for release in releases()? {
        let scratch = tempfile::Builder::new().prefix("makai-golden-").tempdir()?;
        let mut node = lone(scratch.path())?;
        let packed = flate2::read::GzDecoder::new(File::open(release.join("node.tar.gz"))?);
        tar::Archive::new(packed).unpack(&node.dir)?;
        let kept: Kept = serde_json::from_slice(&fs::read(release.join("node.json"))?)?;
        node.spawn()?;
        node.wait_healthy().await.with_context(|| format!("{release:?}"))?;
        let door = door(&node)?;
        let mut model = Model::default();
        for (key, len) in &kept.objects {
            model.set(key, Some(Content::new(key, *len)));
        }
        ensure!(model.len() >= 4, "{release:?} holds {} objects", model.len());
        model.check(std::slice::from_ref(&door), BUCKET).await.with_context(|| format!("{release:?}"))?;
        let content = Content::new("new", 200_000);
        door.put(BUCKET, "new", &content).await?;
        model.set("new", Some(content));
        node.stop().await?;
        node.spawn()?;
        node.wait_healthy().await?;
        model.check(&[door], BUCKET).await.with_context(|| format!("{release:?}, written on"))?;
        node.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes the files of a release, once: cargo test --release -p makai-integration --test upgrade -- --ignored"]
async fn write_golden_files() -> anyhow::Result<()> {
    let dir = golden().join(RELEASE);
    ensure!(!dir.exists(), "{dir:?} is there: what a release wrote never changes");
    fs::create_dir_all(&dir)?;
    for (name, bytes) in samples()?.into_iter().map(|sample| (sample.name, sample.bytes)) {
        fs::write(dir.join(format!("{name}.msgpack")), bytes)?;
    }
    let scratch = tempfile::Builder::new().prefix("makai-golden-").tempdir()?;
    let mut node = lone(scratch.path())?;
    node.spawn()?;
    node.wait_healthy().await?;
    let door = door(&node)?;
    makai_integration::wait::until("a bucket", std::time::Duration::from_secs(60), || async {
        door.create_bucket(BUCKET, None).await
    })
    .await?;
    let mut objects = Vec::new();
    for (key, len) in [("empty", 0), ("inline", 700), ("a/small", 9_000), ("a/b/medium", 300_000)] {
        door.put(BUCKET, key, &Content::new(key, len)).await?;
        objects.push((key.to_owned(), len));
    }
    // Over, and gone.
    door.put(BUCKET, "inline", &Content::new("other", 5_000)).await?;
    door.put(BUCKET, "inline", &Content::new("inline", 700)).await?;
    door.put(BUCKET, "gone", &Content::new("gone", 70_000)).await?;
    door.delete(BUCKET, "gone").await?;
    node.stop().await?;
    fs::write(dir.join("node.json"), serde_json::to_vec_pretty(&Kept { objects })?)?;
    let packed =
        flate2::write::GzEncoder::new(File::create(dir.join("node.tar.gz"))?, flate2::Compression::best());
    let mut tar = tar::Builder::new(packed);
    for folder in ["data", "disk0", "disk1"] {
        tar.append_dir_all(folder, node.dir.join(folder))?;
    }
    tar.into_inner()?.finish()?;
    Ok(())
}

/// A message or a fact as this release writes it, and whether bytes are read as it.
struct Sample {
    name: &'static str,
    bytes: Vec<u8>,
    is_read_from: Box<dyn Fn(&[u8]) -> bool>,
    /// Its fields have names, so that more may be added: earlier releases pass over them.
    may_grow: bool,
}

/// Any message, for comparison.
#[derive(PartialEq, Deserialize)]
#[serde(untagged)]
enum Plain {
    Fields(BTreeMap<String, Plain>),
    List(Vec<Plain>),
    Flag(bool),
    Number(u64),
    Negative(i64),
    Text(String),
    Bytes(Bytes),
    Nothing(()),
}

/// Whether all that `earlier` says stands in `now` too.
fn says_all(now: &Plain, earlier: &Plain) -> bool {
    match (now, earlier) {
        (Plain::Fields(now), Plain::Fields(earlier)) => {
            earlier.iter().all(|(name, earlier)| now.get(name).is_some_and(|now| says_all(now, earlier)))
        }
        (Plain::List(now), Plain::List(earlier)) => {
            now.len() == earlier.len() && now.iter().zip(earlier).all(|(now, earlier)| says_all(now, earlier))
        }
        (now, earlier) => now == earlier,
    }
}

fn sample<T: Serialize + DeserializeOwned + PartialEq + 'static>(
    name: &'static str,
    value: T,
    encode: impl Fn(&T) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<Sample> {
    let bytes = encode(&value)?;
    let is_read_from = move |bytes: &[u8]| rmp_serde::from_slice::<T>(bytes).is_ok_and(|read| read == value);
    Ok(Sample { name, bytes, is_read_from: Box::new(is_read_from), may_grow: false })
}

/// As facts are kept and Raft's messages go: positional.
fn fact<T: Serialize + DeserializeOwned + PartialEq + 'static>(
    name: &'static str,
    value: T,
) -> anyhow::Result<Sample> {
    sample(name, value, |value| Ok(rmp_serde::to_vec(value)?))
}

/// As nodes talk: with names.
fn message<T: Serialize + DeserializeOwned + PartialEq + 'static>(
    name: &'static str,
    value: T,
) -> anyhow::Result<Sample> {
    let encode = |value: &T| makai::members::encode(value).map(Bytes::into).map_err(anyhow::Error::msg);
    Ok(Sample { may_grow: true, ..sample(name, value, encode)? })
}

fn node_fact() -> facts::Node {
    facts::Node {
        id: NodeId([7; 32]),
        number: 3,
        name: "cellar".into(),
        owner: "ann".into(),
        site: "north".into(),
        roles: vec![Role::Voter, Role::Storage],
        addresses: vec!["192.0.2.1:7400".into()],
        standing: Standing::Active,
        joined_at: Timestamp(1),
        is_up: true,
        changed_at: Timestamp(2),
        version: RELEASE_OF_SAMPLES.into(),
        down_ppm: 0,
    }
}

/// Samples say the same in every release.
const RELEASE_OF_SAMPLES: &str = "0.1.0";

fn disk_fact() -> Disk {
    Disk {
        id: DiskId([8; 16]),
        node: NodeId([7; 32]),
        capacity_bytes: 1 << 40,
        standing: Standing::Draining,
        added_at: Timestamp(3),
        condition: Condition::Full,
        speed_bytes_per_sec: 0,
    }
}

fn group_fact() -> Group {
    Group {
        id: PgId(5),
        scheme: Scheme { data: 1, parity: 1 },
        version: 9,
        disks: vec![DiskId([8; 16]), DiskId([9; 16])],
        moves: vec![SlotMove { slot: 1, to: DiskId([10; 16]), is_remake: true }],
    }
}

fn map_fact() -> ClusterMap {
    ClusterMap {
        epoch: 11,
        cluster_id: "c".into(),
        nodes: vec![node_fact()],
        disks: vec![disk_fact()],
        groups: vec![group_fact()],
        is_rebalance_paused: true,
    }
}

fn put() -> Command {
    Command::PutObject {
        bucket: BUCKET.into(),
        key: "a/key".into(),
        headers: ObjectHeaders {
            content_type: Some("text/plain".into()),
            user: vec![("colour".into(), "red".into())],
            ..ObjectHeaders::default()
        },
        new: NewContent {
            size: 70_000,
            etag: "d41d8cd98f00b204e9800998ecf8427e".into(),
            checksum: None,
            content: ObjectContent::Extents(vec![Extent {
                blob: BlobId([4; 16]),
                offset: 0,
                length: 70_000,
                part: 0,
            }]),
            blobs: vec![NewBlob {
                id: BlobId([4; 16]),
                pg: PgId(5),
                pg_version: 9,
                plain_len: 70_000,
                wrapped_key: Bytes::from_static(b"wrapped"),
                root: [6; 32],
                opened_at: Timestamp(4),
            }],
            bucket_id: 2,
        },
        precondition: Precondition { if_match: Vec::new(), if_none_match: vec!["*".into()] },
        by_form: false,
    }
}

fn samples() -> anyhow::Result<Vec<Sample>> {
    let commands = vec![
        put(),
        Command::CreateBucket {
            name: BUCKET.into(),
            tenant: makai_raft::facts::tenant::TenantId(1),
            scheme: None,
        },
        Command::JoinNode { node: node_fact(), disks: vec![disk_fact()], token: Some(("t".into(), [1; 32])) },
        Command::SetNodeUp { node: NodeId([7; 32]), is_up: false },
        Command::PutGroups { map_epoch: 11, groups: vec![group_fact()] },
        Command::FinishMove { pg: PgId(5), slot: 1, to: DiskId([10; 16]), version: 9, sequence: 12 },
        Command::SetDiskCondition { disk: DiskId([8; 16]), condition: Condition::Missing },
        Command::SetRebalance { is_paused: true },
        Command::DeleteObject {
            bucket: BUCKET.into(),
            key: "gone".into(),
            precondition: Precondition::default(),
        },
    ];
    let envelope =
        |(serial, command): (u64, Command)| Envelope { session: 1, serial, answered_below: 0, command };
    let batch = Batch { at: Timestamp(5), envelopes: (1..).zip(commands).map(envelope).collect() };
    let beat = Heartbeat {
        disks: vec![DiskBeat {
            disk: DiskId([8; 16]),
            capacity_bytes: 10,
            free_bytes: 4,
            shard_count: 3,
            live_bytes: 2,
            held_bytes: 5,
            set_aside_bytes: 1,
            body_bytes: 2,
        }],
        repair: Default::default(),
        filled: vec![Filled { pg: PgId(5), slot: 1, to: DiskId([10; 16]), version: 9, sequence: 12 }],
        compute: None,
        line: Default::default(),
        is_to_pass_on: true,
        of_others: Vec::new(),
    };
    let peer =
        KnownPeer { id: NodeId([7; 32]), addresses: vec!["192.0.2.1:7400".into()], roles: vec![Role::Voter] };
    let joined = JoinAnswer::Joined {
        cluster_id: "c".into(),
        number: 3,
        peers: vec![peer],
        cluster_key: Some([2; 32]),
    };
    let heard = HeartbeatAnswer { leader: Some(NodeId([7; 32])), map_epoch: 11, facts_at: None };
    let blob = Blob {
        id: BlobId([4; 16]),
        pg: PgId(5),
        plain_len: 70_000,
        wrapped_key: Bytes::from_static(b"wrapped"),
        root: [6; 32],
        sequence: 12,
    };
    Ok(vec![
        fact("batch", batch)?,
        fact("node", node_fact())?,
        fact("disk", disk_fact())?,
        fact("group", group_fact())?,
        fact("blob", blob)?,
        fact("query", Query::BlobsOfGroup { pg: PgId(5), after_sequence: 12, entries_max: 100 })?,
        fact("answer-map", Answer::ClusterMap(map_fact()))?,
        message("heartbeat", beat)?,
        message("heartbeat-answer", heard)?,
        message("join", JoinRequest { node: node_fact(), disks: vec![disk_fact()], token: None })?,
        message("join-answer", joined)?,
    ])
}

/// What earlier releases wrote is read as what was meant; and what this one writes is what it wrote before, or has that and more
/// fields where they have names.
#[test]
fn the_messages_of_earlier_releases_are_read() -> anyhow::Result<()> {
    for release in releases()? {
        for sample in samples()? {
            let path = release.join(format!("{}.msgpack", sample.name));
            // A later release may know more kinds.
            let Ok(written) = fs::read(&path) else {
                ensure!(!release.ends_with(RELEASE), "{path:?} is missing");
                continue;
            };
            ensure!((sample.is_read_from)(&written), "{path:?} is read as something else");
            if sample.may_grow {
                let (now, earlier) =
                    (rmp_serde::from_slice(&sample.bytes)?, rmp_serde::from_slice(&written)?);
                ensure!(says_all(&now, &earlier), "{path:?} has what this release does not write");
            } else if release.ends_with(RELEASE) {
                ensure!(written == sample.bytes, "{path:?} is not what this release writes");
            }
        }
    }
    Ok(())
}

/// A message with a field that this release does not know yet is read all the same.
#[test]
fn fields_of_later_releases_are_passed_over() -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Later {
        leader: Option<NodeId>,
        map_epoch: u64,
        colour: String,
    }
    let later = Later { leader: None, map_epoch: 7, colour: "red".into() };
    let bytes = makai::members::encode(&later).map_err(anyhow::Error::msg)?;
    let read: HeartbeatAnswer = makai::members::decode(&bytes).map_err(anyhow::Error::msg)?;
    ensure!(read == HeartbeatAnswer { leader: None, map_epoch: 7, facts_at: None });
    Ok(())
}

/// One node after the other stops and starts again, as in an upgrade, while clients go on through the doors of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_replaced_one_by_one_under_load() -> anyhow::Result<()> {
    let mut cluster =
        Cluster::start(ClusterOptions { nodes: 5, voters: 3, ..ClusterOptions::default() }).await?;
    cluster.s3(0).create_bucket(BUCKET, None).await?;
    let mut model = Model::default();
    // As whoever stands before the doors does: one that is about to stop gets no more requests.
    for (replaced, doors) in [([0, 1, 2].as_slice(), [3, 4].as_slice()), (&[3, 4], &[0, 1])] {
        let doors: Vec<S3> = doors.iter().map(|at| cluster.s3(*at).clone()).collect();
        let options = LoadOptions {
            bucket: BUCKET.into(),
            prefix: format!("{}/", replaced.len()),
            clients: 2,
            sizes: vec![500, 20_000, 300_000],
            seed: seed(),
            goes_on: true,
            rest: std::time::Duration::ZERO,
        };
        let load = Load::start(&doors, &options);
        load.goes_on(10).await?;
        for at in replaced {
            cluster.nodes[*at].stop().await?;
            load.goes_on(10).await.with_context(|| format!("node {at} is stopped"))?;
            cluster.restart(&[*at]).await?;
            cluster.wait_formed().await?;
            load.goes_on(10).await.with_context(|| format!("node {at} is back"))?;
            // What the writes of its absence owe it, before the next one goes.
            cluster.wait_healed().await?;
        }
        let outcome = load.stop().await?;
        outcome.is_flawless().with_context(|| format!("while nodes {replaced:?} were replaced"))?;
        model.extend(outcome.model);
    }
    model.check(&cluster.doors(), BUCKET).await?;
    cluster.finish().await
}
