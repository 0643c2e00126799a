//! Keys of the files' records: the table stands on the front page of [`crate::machine`].

use crate::machine::keys::join;

const WRITERS: u8 = 0x35;
const LEASE: u8 = 0x46;
const FILE_NAME: u8 = 0x47;
const NODE: u8 = 0x48;
const DIRECTORY: u8 = 0x49;
const SESSION: u8 = 0x4A;
const ORPHAN: u8 = 0x4B;
const LOCKS: u8 = 0x4C;
pub const EVENT: u8 = 0x4D;
const XATTR: u8 = 0x4E;
const REQUEST: u8 = 0x4F;

pub fn node(inode: u64) -> Vec<u8> {
    join(NODE, &[&inode.to_be_bytes()])
}

pub fn directory(inode: u64) -> Vec<u8> {
    join(DIRECTORY, &[&inode.to_be_bytes()])
}

/// Sessions that write a file's version and have not finished it.
pub fn writers(root: u64, inode: u64) -> Vec<u8> {
    join(WRITERS, &[&root.to_be_bytes(), &inode.to_be_bytes()])
}

pub fn all_writers(root: u64) -> Vec<u8> {
    join(WRITERS, &[&root.to_be_bytes()])
}

pub fn sessions(root: u64) -> Vec<u8> {
    join(SESSION, &[&root.to_be_bytes()])
}

pub fn session(root: u64, session: u64) -> Vec<u8> {
    join(SESSION, &[&root.to_be_bytes(), &session.to_be_bytes()])
}

pub fn leases(root: u64) -> Vec<u8> {
    join(LEASE, &[&root.to_be_bytes()])
}

pub fn lease(root: u64, directory: u64) -> Vec<u8> {
    join(LEASE, &[&root.to_be_bytes(), &directory.to_be_bytes()])
}

pub fn orphans(root: u64) -> Vec<u8> {
    join(ORPHAN, &[&root.to_be_bytes()])
}

pub fn orphan(root: u64, inode: u64) -> Vec<u8> {
    join(ORPHAN, &[&root.to_be_bytes(), &inode.to_be_bytes()])
}

pub fn all_locks(root: u64) -> Vec<u8> {
    join(LOCKS, &[&root.to_be_bytes()])
}

pub fn locks(root: u64, inode: u64) -> Vec<u8> {
    join(LOCKS, &[&root.to_be_bytes(), &inode.to_be_bytes()])
}

/// Names that are kept of a file.
pub fn names(bucket: u64, inode: u64) -> Vec<u8> {
    join(FILE_NAME, &[&bucket.to_be_bytes(), &inode.to_be_bytes()])
}

/// Of all files of a bucket.
pub fn all_names(bucket: u64) -> Vec<u8> {
    join(FILE_NAME, &[&bucket.to_be_bytes()])
}

/// `entry`: the whole key of the entry that links to the file.
pub fn name(bucket: u64, inode: u64, entry: &[u8]) -> Vec<u8> {
    join(FILE_NAME, &[&bucket.to_be_bytes(), &inode.to_be_bytes(), entry])
}

/// The entry of a key that [`name`] made.
pub fn named_entry(name: &[u8]) -> Vec<u8> {
    name.get(1 + 16..).unwrap_or_default().to_vec()
}

/// The last sequence given; the events follow it.
pub fn events(root: u64) -> Vec<u8> {
    join(EVENT, &[&root.to_be_bytes()])
}

pub fn event(root: u64, sequence: u64) -> Vec<u8> {
    join(EVENT, &[&root.to_be_bytes(), &sequence.to_be_bytes()])
}

pub fn xattrs(inode: u64) -> Vec<u8> {
    join(XATTR, &[&inode.to_be_bytes()])
}

pub fn xattr(inode: u64, name: &[u8]) -> Vec<u8> {
    join(XATTR, &[&inode.to_be_bytes(), name])
}

pub fn requests(root: u64, session: u64) -> Vec<u8> {
    join(REQUEST, &[&root.to_be_bytes(), &session.to_be_bytes()])
}

pub fn request(root: u64, session: u64, request: u64) -> Vec<u8> {
    join(REQUEST, &[&root.to_be_bytes(), &session.to_be_bytes(), &request.to_be_bytes()])
}

/// The number that stands last in a key.
pub fn last_number(key: &[u8]) -> u64 {
    key.last_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
