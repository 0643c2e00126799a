//! How keys of the store are built: the table stands on the front page of [`super`].

use makai_erasure::{BlobId, DiskId, NodeId, PgId};

use crate::facts::Timestamp;
use crate::facts::tenant::TenantId;

const APPLIED: u8 = 0x01;
const COUNTER: u8 = 0x02;
const SESSION: u8 = 0x08;
const REPLY: u8 = 0x09;

const CLUSTER: u8 = 0x10;
const NODE: u8 = 0x11;
const DISK: u8 = 0x12;
const GROUP: u8 = 0x13;
const TOKEN: u8 = 0x14;
const REBALANCE: u8 = 0x15;

const TENANT: u8 = 0x20;
const TENANT_NAME: u8 = 0x21;
const ACCESS_KEY: u8 = 0x22;
const TENANT_KEY: u8 = 0x23;
const USER: u8 = 0x24;
const KEY_USER: u8 = 0x25;
const DIRECTORY: u8 = 0x26;
const AUDIT: u8 = 0x27;

const BUCKET: u8 = 0x30;
const TENANT_BUCKET: u8 = 0x31;
const DOCUMENT: u8 = 0x32;
const FOLLOWED: u8 = 0x33;
const CHANGE: u8 = 0x34;

const ENTRY: u8 = 0x40;
const CHUNK: u8 = 0x41;

const VERSION: u8 = 0x42;
const NULL_VERSION: u8 = 0x43;
const LIFECYCLE: u8 = 0x44;
const COMPLETED_PART: u8 = 0x45;

const BLOB: u8 = 0x50;
const GROUP_BLOB: u8 = 0x51;
const GROUP_SEQUENCE: u8 = 0x52;
const GARBAGE: u8 = 0x53;
const HOLLOW: u8 = 0x54;

const UPLOAD: u8 = 0x60;
const UPLOAD_ID: u8 = 0x61;
const PART: u8 = 0x62;
const COMPLETED: u8 = 0x63;
const COMPLETED_AT: u8 = 0x64;

/// Numbers that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Counter {
    Version = 1,
    Inode = 2,
    Bucket = 3,
    Tenant = 4,
    Node = 5,
    Upload = 6,
    MapEpoch = 7,
    Job = 16,
    Receipt = 17,
    Audit = 18,
}

pub fn join(prefix: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(prefix);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

pub fn applied() -> Vec<u8> {
    vec![APPLIED]
}

pub fn counter(counter: Counter) -> Vec<u8> {
    vec![COUNTER, counter as u8]
}

pub fn sessions() -> Vec<u8> {
    vec![SESSION]
}

pub fn session(session: u64) -> Vec<u8> {
    join(SESSION, &[&session.to_be_bytes()])
}

pub fn reply(session: u64, serial: u64) -> Vec<u8> {
    join(REPLY, &[&session.to_be_bytes(), &serial.to_be_bytes()])
}

pub fn replies(session: u64) -> Vec<u8> {
    join(REPLY, &[&session.to_be_bytes()])
}

pub fn cluster() -> Vec<u8> {
    vec![CLUSTER]
}

pub fn nodes() -> Vec<u8> {
    vec![NODE]
}

pub fn node(id: &NodeId) -> Vec<u8> {
    join(NODE, &[&id.0])
}

pub fn disks() -> Vec<u8> {
    vec![DISK]
}

pub fn disk(id: &DiskId) -> Vec<u8> {
    join(DISK, &[&id.0])
}

pub fn groups() -> Vec<u8> {
    vec![GROUP]
}

pub fn group(id: PgId) -> Vec<u8> {
    join(GROUP, &[&id.0.to_be_bytes()])
}

/// Whether a person has paused it; missing: not.
pub fn rebalance_paused() -> Vec<u8> {
    vec![REBALANCE]
}

pub fn tokens() -> Vec<u8> {
    vec![TOKEN]
}

pub fn token(id: &str) -> Vec<u8> {
    join(TOKEN, &[id.as_bytes()])
}

pub fn tenants() -> Vec<u8> {
    vec![TENANT]
}

pub fn tenant(id: TenantId) -> Vec<u8> {
    join(TENANT, &[&id.0.to_be_bytes()])
}

pub fn tenant_name(name: &str) -> Vec<u8> {
    join(TENANT_NAME, &[name.as_bytes()])
}

pub fn access_key(id: &str) -> Vec<u8> {
    join(ACCESS_KEY, &[id.as_bytes()])
}

pub fn tenant_keys(tenant: TenantId) -> Vec<u8> {
    join(TENANT_KEY, &[&tenant.0.to_be_bytes()])
}

/// All users of a tenant.
pub fn users(tenant: TenantId) -> Vec<u8> {
    join(USER, &[&tenant.0.to_be_bytes()])
}

pub fn user(tenant: TenantId, name: &str) -> Vec<u8> {
    join(USER, &[&tenant.0.to_be_bytes(), name.as_bytes()])
}

/// The name of the user to whom an access key belongs.
pub fn key_user(id: &str) -> Vec<u8> {
    join(KEY_USER, &[id.as_bytes()])
}

pub fn directory(tenant: TenantId) -> Vec<u8> {
    join(DIRECTORY, &[&tenant.0.to_be_bytes()])
}

pub fn audit(sequence: u64) -> Vec<u8> {
    join(AUDIT, &[&sequence.to_be_bytes()])
}

pub fn tenant_key(tenant: TenantId, id: &str) -> Vec<u8> {
    join(TENANT_KEY, &[&tenant.0.to_be_bytes(), id.as_bytes()])
}

pub fn buckets() -> Vec<u8> {
    vec![BUCKET]
}

pub fn bucket(name: &str) -> Vec<u8> {
    join(BUCKET, &[name.as_bytes()])
}

pub fn tenant_buckets(tenant: TenantId) -> Vec<u8> {
    join(TENANT_BUCKET, &[&tenant.0.to_be_bytes()])
}

pub fn tenant_bucket(tenant: TenantId, name: &str) -> Vec<u8> {
    join(TENANT_BUCKET, &[&tenant.0.to_be_bytes(), name.as_bytes()])
}

pub fn documents(bucket: u64) -> Vec<u8> {
    join(DOCUMENT, &[&bucket.to_be_bytes()])
}

pub fn document(bucket: u64, name: &str) -> Vec<u8> {
    join(DOCUMENT, &[&bucket.to_be_bytes(), name.as_bytes()])
}

pub fn all_followed() -> Vec<u8> {
    vec![FOLLOWED]
}

pub fn followed(bucket: &str) -> Vec<u8> {
    join(FOLLOWED, &[bucket.as_bytes()])
}

pub fn changes(bucket: u64) -> Vec<u8> {
    join(CHANGE, &[&bucket.to_be_bytes()])
}

pub fn change(bucket: u64, sequence: u64) -> Vec<u8> {
    join(CHANGE, &[&bucket.to_be_bytes(), &sequence.to_be_bytes()])
}

/// The directory and the name of an entry's key.
pub fn parts_of_entry(entry: &[u8]) -> (u64, &[u8]) {
    let directory = entry.get(1..ENTRY_NAME_AT).and_then(|bytes| bytes.try_into().ok());
    (directory.map_or(0, u64::from_be_bytes), entry.get(ENTRY_NAME_AT..).unwrap_or_default())
}

/// Bytes of an entry's key before its name.
pub const ENTRY_NAME_AT: usize = 9;

pub fn entries(directory: u64) -> Vec<u8> {
    join(ENTRY, &[&directory.to_be_bytes()])
}

/// `name` ends in `/` where the entry is a directory.
pub fn entry(directory: u64, name: &[u8]) -> Vec<u8> {
    join(ENTRY, &[&directory.to_be_bytes(), name])
}

pub fn chunks(inode: u64) -> Vec<u8> {
    join(CHUNK, &[&inode.to_be_bytes()])
}

/// `end`: the offset in the object just behind the chunk's last byte.
pub fn chunk(inode: u64, end: u64) -> Vec<u8> {
    join(CHUNK, &[&inode.to_be_bytes(), &end.to_be_bytes()])
}

pub fn versions(bucket: u64) -> Vec<u8> {
    join(VERSION, &[&bucket.to_be_bytes()])
}

/// Versions of keys that begin with `prefix`.
pub fn versions_below(bucket: u64, prefix: &[u8]) -> Vec<u8> {
    join(VERSION, &[&bucket.to_be_bytes(), &escape(prefix)])
}

/// Versions of exactly `key`.
pub fn versions_of(bucket: u64, key: &[u8]) -> Vec<u8> {
    join(VERSION, &[&bucket.to_be_bytes(), &escape(key), &KEY_END])
}

/// Newer versions, which have greater numbers, sort first.
pub fn version(bucket: u64, key: &str, number: u64) -> Vec<u8> {
    join(VERSION, &[&bucket.to_be_bytes(), &escape(key.as_bytes()), &KEY_END, &(!number).to_be_bytes()])
}

/// The number in a [`version`]'s key.
pub fn version_number(place: &[u8]) -> Option<u64> {
    Some(!u64::from_be_bytes(*place.last_chunk()?))
}

/// The object's key in a [`version`]'s key.
pub fn version_key(place: &[u8]) -> Option<String> {
    let end = place.len().checked_sub(KEY_END.len() + size_of::<u64>())?;
    let escaped = place.get(1 + size_of::<u64>()..end)?;
    let mut key = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.iter();
    while let Some(&byte) = bytes.next() {
        key.push(byte);
        if byte == 0 {
            bytes.next();
        }
    }
    String::from_utf8(key).ok()
}

pub fn null_version(bucket: u64, key: &str) -> Vec<u8> {
    join(NULL_VERSION, &[&bucket.to_be_bytes(), key.as_bytes()])
}

pub fn lifecycles() -> Vec<u8> {
    vec![LIFECYCLE]
}

pub fn lifecycle(bucket: u64) -> Vec<u8> {
    join(LIFECYCLE, &[&bucket.to_be_bytes()])
}

pub fn completed_parts(inode: u64) -> Vec<u8> {
    join(COMPLETED_PART, &[&inode.to_be_bytes()])
}

pub fn completed_parts_from(inode: u64, number: u16) -> Vec<u8> {
    join(COMPLETED_PART, &[&inode.to_be_bytes(), &number.to_be_bytes()])
}

pub fn blob(id: &BlobId) -> Vec<u8> {
    join(BLOB, &[&id.0])
}

pub fn group_blobs(pg: PgId) -> Vec<u8> {
    join(GROUP_BLOB, &[&pg.0.to_be_bytes()])
}

pub fn group_blob(pg: PgId, sequence: u64) -> Vec<u8> {
    join(GROUP_BLOB, &[&pg.0.to_be_bytes(), &sequence.to_be_bytes()])
}

pub fn group_sequence(pg: PgId) -> Vec<u8> {
    join(GROUP_SEQUENCE, &[&pg.0.to_be_bytes()])
}

/// All blobs that became garbage from `since` on.
pub fn garbage_from(since: Timestamp) -> Vec<u8> {
    join(GARBAGE, &[&since.0.to_be_bytes()])
}

pub fn hollows() -> Vec<u8> {
    vec![HOLLOW]
}

/// A blob of which a good part is dead.
pub fn hollow(id: &BlobId) -> Vec<u8> {
    join(HOLLOW, &[&id.0])
}

pub fn garbage(since: Timestamp, id: &BlobId) -> Vec<u8> {
    join(GARBAGE, &[&since.0.to_be_bytes(), &id.0])
}

pub fn uploads(bucket: u64) -> Vec<u8> {
    join(UPLOAD, &[&bucket.to_be_bytes()])
}

/// Uploads whose keys begin with `prefix`.
pub fn uploads_below(bucket: u64, prefix: &str) -> Vec<u8> {
    join(UPLOAD, &[&bucket.to_be_bytes(), &escape(prefix.as_bytes())])
}

/// Uploads of exactly `key`.
pub fn uploads_of(bucket: u64, key: &str) -> Vec<u8> {
    join(UPLOAD, &[&bucket.to_be_bytes(), &escape(key.as_bytes()), &KEY_END])
}

pub fn upload(bucket: u64, key: &str, number: u64) -> Vec<u8> {
    join(UPLOAD, &[&bucket.to_be_bytes(), &escape(key.as_bytes()), &KEY_END, &number.to_be_bytes()])
}

pub fn upload_id(bucket: u64, id: &str) -> Vec<u8> {
    join(UPLOAD_ID, &[&bucket.to_be_bytes(), id.as_bytes()])
}

pub fn parts(upload: u64) -> Vec<u8> {
    join(PART, &[&upload.to_be_bytes()])
}

pub fn part(upload: u64, number: u16) -> Vec<u8> {
    join(PART, &[&upload.to_be_bytes(), &number.to_be_bytes()])
}

pub fn completed(bucket: u64, id: &str) -> Vec<u8> {
    join(COMPLETED, &[&bucket.to_be_bytes(), id.as_bytes()])
}

pub fn completed_before(at: Timestamp) -> Vec<u8> {
    join(COMPLETED_AT, &[&at.0.to_be_bytes()])
}

pub fn completed_at(at: Timestamp, bucket: u64, id: &str) -> Vec<u8> {
    join(COMPLETED_AT, &[&at.0.to_be_bytes(), &bucket.to_be_bytes(), id.as_bytes()])
}

/// Ends an escaped key; sorts before every continuation of it.
const KEY_END: [u8; 2] = [0, 0];

/// Keeps byte order and leaves no [`KEY_END`] inside: NUL becomes `00 FF`.
fn escape(key: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(key.len());
    for &byte in key {
        escaped.push(byte);
        if byte == 0 {
            escaped.push(0xFF);
        }
    }
    escaped
}

/// The least byte string above every one that begins with `prefix`, which is not all `FF`.
pub fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xFF {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// The least byte string above `key`.
pub fn after(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}
