//! What `Store` answers: a blob that is durable and not yet named, vouched for by the tenant's key.
//!
//! | bytes | what |
//! |---|---|
//! | 0..32 | HMAC-SHA256 of the rest, under a key made of the tenant's |
//! | 32..  | a protobuf message: version 1, the bucket's number, the blob |
//!
//! Any gateway takes it; no client can make one, nor use one for another tenant or bucket.

use bytes::Bytes;
use makai_erasure::{BlobId, PgId};
use makai_raft::facts::Timestamp;
use makai_raft::facts::command::NewBlob;
use prost::Message as _;
use ring::hmac;

use super::errors::{Errno, Failure};

const TAG_BYTES: usize = 32;
const VERSION: u32 = 1;
/// Bytes of a token.
const TOKEN_BYTES_MAX: usize = 2048;

#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    bucket: u64,
    #[prost(bytes = "bytes", tag = "3")]
    id: Bytes,
    #[prost(uint32, tag = "4")]
    pg: u32,
    #[prost(uint32, tag = "5")]
    pg_version: u32,
    #[prost(uint64, tag = "6")]
    plain_len: u64,
    #[prost(bytes = "bytes", tag = "7")]
    wrapped_key: Bytes,
    #[prost(bytes = "bytes", tag = "8")]
    root: Bytes,
    #[prost(uint64, tag = "9")]
    opened_at_ms: u64,
}

pub fn seal(key: &hmac::Key, bucket: u64, blob: &NewBlob) -> Bytes {
    let stored = Stored {
        version: VERSION,
        bucket,
        id: Bytes::copy_from_slice(&blob.id.0),
        pg: blob.pg.0,
        pg_version: blob.pg_version,
        plain_len: blob.plain_len,
        wrapped_key: blob.wrapped_key.clone(),
        root: Bytes::copy_from_slice(&blob.root),
        opened_at_ms: blob.opened_at.0,
    };
    let body = stored.encode_to_vec();
    let mut token = hmac::sign(key, &body).as_ref().to_vec();
    token.extend_from_slice(&body);
    token.into()
}

pub fn open(key: &hmac::Key, bucket: u64, token: &[u8]) -> Result<NewBlob, Failure> {
    let unknown = || Failure::new(Errno::Einval, "the token is none that was given for this bucket");
    if token.len() > TOKEN_BYTES_MAX {
        return Err(unknown());
    }
    let (tag, body) = token.split_at_checked(TAG_BYTES).ok_or_else(unknown)?;
    hmac::verify(key, body, tag).map_err(|_| unknown())?;
    let stored = Stored::decode(body).map_err(|_| unknown())?;
    if stored.version != VERSION || stored.bucket != bucket {
        return Err(unknown());
    }
    Ok(NewBlob {
        id: BlobId(stored.id.as_ref().try_into().map_err(|_| unknown())?),
        pg: PgId(stored.pg),
        pg_version: stored.pg_version,
        plain_len: stored.plain_len,
        wrapped_key: stored.wrapped_key,
        root: stored.root.as_ref().try_into().map_err(|_| unknown())?,
        opened_at: Timestamp(stored.opened_at_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &[byte; 32])
    }

    #[test]
    fn a_token_opens_for_its_tenant_and_bucket_alone_and_unchanged() {
        let blob = NewBlob {
            id: BlobId([3; 16]),
            pg: PgId(7),
            pg_version: 2,
            plain_len: 9,
            wrapped_key: Bytes::from_static(b"wrapped"),
            root: [5; 32],
            opened_at: Timestamp(11),
        };
        let token = seal(&key(1), 4, &blob);
        assert_eq!(open(&key(1), 4, &token).ok(), Some(blob));
        assert!(open(&key(2), 4, &token).is_err());
        assert!(open(&key(1), 5, &token).is_err());
        for at in 0..token.len() {
            let mut changed = token.to_vec();
            changed[at] ^= 1;
            assert!(open(&key(1), 4, &changed).is_err(), "byte {at} changed");
            assert!(open(&key(1), 4, &token[..at]).is_err(), "{at} bytes");
        }
    }
}
