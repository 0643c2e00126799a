//! A key's version, what it points to, and the blobs below.

use bytes::Bytes;
use makai_erasure::{BlobId, PgId};
use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::files::FileAttributes;
use super::version::{ObjectLock, VersionId};

/// Bytes of content that live in the metadata, plaintext.
pub const INLINE_BYTES_MAX: u64 = 4096;
/// UTF-8 bytes in a key.
pub const KEY_BYTES_MAX: usize = 1024;
/// Parts in a multipart upload.
pub const PARTS_MAX: u16 = 10_000;
/// Bytes in any part but the last.
pub const PART_BYTES_MIN: u64 = 5 * 1024 * 1024;
/// Bytes in an object.
pub const OBJECT_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024 * 1024;

/// What S3 keeps beside the bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectHeaders {
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub content_disposition: Option<String>,
    pub content_language: Option<String>,
    pub cache_control: Option<String>,
    pub expires: Option<String>,
    /// `x-amz-meta-*`, without the prefix, sorted.
    pub user: Vec<(String, String)>,
    pub storage_class: Option<String>,
    pub website_redirect: Option<String>,
    /// URL-encoded as in `x-amz-tagging`.
    pub tagging: Option<String>,
    /// Whose the object is and what others may do with it, as the doors write it; `None`: its bucket's owner's alone.
    #[serde(default)]
    pub acl: Option<String>,
    /// How it is encrypted beyond what every object is, as the doors write it.
    #[serde(default)]
    pub encryption: Option<String>,
    #[serde(default)]
    pub lock: ObjectLock,
    /// Whether another server's replication put it here: then it is replicated no further.
    #[serde(default)]
    pub is_replica: bool,
}

/// A checksum the client asked to keep: algorithm as S3 spells it (`CRC32C`), value in Base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    pub algorithm: String,
    pub value: String,
    /// Over the object's bytes, or over its parts' checksums.
    pub is_composite: bool,
}

/// Plaintext bytes `offset..offset + length` of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub blob: BlobId,
    pub offset: u64,
    pub length: u64,
    /// The part it came with; 0 where the object was put whole.
    pub part: u16,
}

/// What the extents of a hole name: no blob has it, since ids are drawn at random. A hole reads as zeros.
pub const HOLE: BlobId = BlobId([0; 16]);

impl Extent {
    #[must_use]
    pub fn hole(length: u64) -> Self {
        Self { blob: HOLE, offset: 0, length, part: 0 }
    }

    #[must_use]
    pub fn is_hole(&self) -> bool {
        self.blob == HOLE
    }
}

/// What a version points to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    Empty,
    /// Sealed like the one page of a blob named by `blob`; at most [`INLINE_BYTES_MAX`] of plaintext.
    Inline {
        blob: BlobId,
        wrapped_key: Bytes,
        sealed: Bytes,
    },
    /// In order, without gaps.
    Extents(Vec<Extent>),
}

/// A version of a key, its extents left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectHead {
    pub key: String,
    /// Unique in the cluster, growing: the order in which versions were made.
    pub version: u64,
    /// What names move and links share.
    pub inode: u64,
    pub modified_at: Timestamp,
    pub size: u64,
    /// Without quotes: MD5 in hex, with `-N` after a multipart upload.
    pub etag: String,
    pub headers: ObjectHeaders,
    pub checksum: Option<Checksum>,
    /// Parts it was completed from; 0 where it was put whole.
    pub part_count: u16,
    /// Whether it was made while versioning was enabled.
    #[serde(default)]
    pub has_version_id: bool,
    /// Once a mount has made or changed it.
    #[serde(default)]
    pub file: Option<Box<FileAttributes>>,
}

impl ObjectHead {
    /// How clients name the version.
    #[must_use]
    pub fn version_id(&self) -> VersionId {
        if self.has_version_id { VersionId::Number(self.version) } else { VersionId::Null }
    }
}

/// One blob, as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    pub id: BlobId,
    pub pg: PgId,
    pub plain_len: u64,
    /// Its data key, wrapped by its tenant's key.
    pub wrapped_key: Bytes,
    /// BLAKE3 of the roots of its shards.
    pub root: [u8; 32],
    /// Place in the order in which its group's blobs were committed; from 1.
    pub sequence: u64,
}

/// An extent and the blob it lies in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedExtent {
    /// Where in the object it begins.
    pub at: u64,
    pub extent: Extent,
    pub blob: Blob,
}

/// A multipart upload under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    pub id: String,
    pub key: String,
    pub started_at: Timestamp,
    pub headers: ObjectHeaders,
    /// Algorithm the client announced for its parts.
    pub checksum_algorithm: Option<String>,
    pub checksum_is_composite: bool,
}

/// A part of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub number: u16,
    pub size: u64,
    pub etag: String,
    pub modified_at: Timestamp,
    pub checksum: Option<Checksum>,
}
