//! Properties of the machine.

mod accounts;
mod audit;
mod billing;
mod cluster;
mod damage;
mod hollow;
mod identity;
mod journal;
mod kept;
mod leases;
mod listing;
mod lots;
mod model;
mod oracle;
mod pledges;
mod quotas;
mod rules;
mod sessions;

mod files;

use bytes::Bytes;
use makai_erasure::{BlobId, DiskId, NodeId, PgId, Scheme};

use super::kv::MemKv;
use super::{apply, query};
use crate::facts::Timestamp;
use crate::facts::cluster::{Disk, Group, Node, Role, Standing};
use crate::facts::command::{Batch, Command, Envelope, NewBlob, NewContent, Precondition, Refusal, Reply};
use crate::facts::object::{Content, Extent, ObjectHead, ObjectHeaders};
use crate::facts::query::{Answer, Query};
use crate::facts::tenant::TenantId;

pub(crate) const START_MS: u64 = 1_700_000_000_000;
const MIB: u64 = 1024 * 1024;
const GROUP: PgId = PgId(1);
const BLOB_BYTES: u64 = 8 * MIB;

/// A machine with a clock, driven one command a batch.
#[derive(Clone)]
struct World {
    kv: MemKv,
    index: u64,
    now: Timestamp,
    serial: u64,
}

impl World {
    fn empty() -> Self {
        Self { kv: MemKv::default(), index: 0, now: Timestamp(START_MS), serial: 0 }
    }

    /// Two tenants, a node with disks, one group, and the tenants' buckets.
    fn new() -> Self {
        let mut world = Self::empty();
        for command in founding() {
            world.run(command).expect("the founding is sound");
        }
        world
    }

    fn run(&mut self, command: Command) -> Result<Reply, Refusal> {
        self.serial += 1;
        let envelope = Envelope { session: 1, serial: self.serial, answered_below: self.serial, command };
        self.batch(vec![envelope]).remove(0)
    }

    fn batch(&mut self, envelopes: Vec<Envelope>) -> Vec<Result<Reply, Refusal>> {
        self.index += 1;
        let batch = Batch { at: self.now, envelopes };
        apply(&mut self.kv, self.index, &batch).expect("the store is sound")
    }

    fn ask(&self, asked: Query) -> Result<Answer, Refusal> {
        query(&self.kv, &asked).expect("the store is sound")
    }

    fn put(&mut self, key: &str, new: NewContent) -> Result<ObjectHead, Refusal> {
        match self.run(put("aaa", key, new))? {
            Reply::Object(head) => Ok(head),
            other => panic!("a put answers {other:?}"),
        }
    }

    fn put_part(&mut self, key: &str, id: &str, number: u16, new: NewContent) -> Result<Reply, Refusal> {
        let (bucket, key, upload_id) = ("aaa".to_owned(), key.to_owned(), id.to_owned());
        self.run(Command::PutPart { bucket, key, upload_id, number, new })
    }

    /// Keys of the store that begin with `first`.
    fn keys_under(&self, first: u8) -> Vec<&[u8]> {
        self.kv.entries.keys().filter(|key| key[0] == first).map(Vec::as_slice).collect()
    }
}

pub(crate) fn founding() -> Vec<Command> {
    let scheme = Scheme { data: 2, parity: 1 };
    let disks: Vec<Disk> = (1..=4).map(|number| disk(number, 1)).collect();
    let ids = disks[..3].iter().map(|disk| disk.id).collect();
    let tenant = |name: &str| Command::CreateTenant {
        name: name.to_owned(),
        wrapped_key: Bytes::from_static(b"key"),
        quota_bytes: None,
    };
    let bucket = |name: &str, tenant| Command::CreateBucket {
        name: name.to_owned(),
        tenant: TenantId(tenant),
        scheme: None,
    };
    vec![
        Command::InitCluster { cluster_id: "c".to_owned() },
        Command::JoinNode { node: node(1), disks, token: None },
        Command::PutGroups {
            map_epoch: 2,
            groups: vec![Group { id: GROUP, scheme, version: 1, disks: ids, moves: vec![] }],
        },
        tenant("one"),
        tenant("two"),
        bucket("aaa", 1),
        bucket("bbb", 1),
        bucket("ccc", 2),
    ]
}

fn node(number: u8) -> Node {
    Node {
        id: NodeId([number; 32]),
        number: 0,
        name: format!("node {number}"),
        owner: String::new(),
        site: String::new(),
        roles: vec![Role::Storage],
        addresses: Vec::new(),
        standing: Standing::Lost,
        joined_at: Timestamp(0),
        is_up: false,
        changed_at: Timestamp(0),
        version: "1".to_owned(),
        down_ppm: 0,
    }
}

fn disk(number: u8, node: u8) -> Disk {
    Disk {
        id: DiskId([number; 16]),
        node: NodeId([node; 32]),
        capacity_bytes: 1 << 40,
        standing: Standing::Lost,
        added_at: Timestamp(0),
        condition: crate::facts::cluster::Condition::Well,
        speed_bytes_per_sec: 0,
    }
}

fn blob_id(number: u64) -> BlobId {
    BlobId(u128::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_be_bytes())
}

fn new_blob(number: u64, opened_at: Timestamp) -> NewBlob {
    NewBlob {
        id: blob_id(number),
        pg: GROUP,
        pg_version: 1,
        plain_len: BLOB_BYTES,
        wrapped_key: Bytes::from(number.to_be_bytes().to_vec()),
        root: [7; 32],
        opened_at,
    }
}

fn extent(blob: u64, offset: u64, length: u64) -> Extent {
    Extent { blob: blob_id(blob), offset, length, part: 0 }
}

fn content(extents: Vec<Extent>, blobs: Vec<NewBlob>) -> NewContent {
    NewContent {
        size: extents.iter().map(|extent| extent.length).sum(),
        etag: "e".to_owned(),
        checksum: None,
        content: if extents.is_empty() { Content::Empty } else { Content::Extents(extents) },
        blobs,
        bucket_id: 0,
    }
}

/// `size` bytes in one new blob.
pub(crate) fn whole(blob: u64, size: u64, now: Timestamp) -> NewContent {
    content(vec![extent(blob, 0, size)], vec![new_blob(blob, now)])
}

fn empty() -> NewContent {
    content(Vec::new(), Vec::new())
}

pub(crate) fn put(bucket: &str, key: &str, new: NewContent) -> Command {
    Command::PutObject {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        headers: ObjectHeaders::default(),
        new,
        precondition: Precondition::default(),
        by_form: false,
    }
}

fn delete(bucket: &str, key: &str) -> Command {
    Command::DeleteObject {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        precondition: Precondition::default(),
    }
}
