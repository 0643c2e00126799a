//! The names that bytes, disks and machines go by below the metadata.
//!
//! All are plain values with one spelling: lower-case hex. On the wire and on disk they are raw bytes.
//! None is ever reused: a disk that loses its content comes back under a new [`DiskId`].

use std::fmt;
use std::str::FromStr;

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An id that could not be read from text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} id {text:?} is not {hex_digits} hex digits")]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
    hex_digits: usize,
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", &hex::encode(&self.0[..$len.min(8)]))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut id = [0; $len];
                match hex::decode_to_slice(text, &mut id) {
                    Ok(()) => Ok(Self(id)),
                    Err(_) => Err(ParseIdError {
                        kind: $kind,
                        text: text.chars().take(80).collect(),
                        hex_digits: 2 * $len,
                    }),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Raw;
                impl Visitor<'_> for Raw {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{} bytes of a {} id", $len, $kind)
                    }

                    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<$name, E> {
                        match bytes.try_into() {
                            Ok(id) => Ok($name(id)),
                            Err(_) => Err(E::invalid_length(bytes.len(), &self)),
                        }
                    }
                }
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
                } else {
                    deserializer.deserialize_bytes(Raw)
                }
            }
        }
    };
}

byte_id!(
    /// One daemon: its Ed25519 public key.
    NodeId, "node", 32
);
byte_id!(
    /// One directory that a node offers, named when it is formatted.
    DiskId, "disk", 16
);
byte_id!(
    /// One immutable sealed byte string, drawn at random by its writer.
    BlobId, "blob", 16
);

/// A placement group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PgId(pub u32);

impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pg{}", self.0)
    }
}

/// One disk's part of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardKey {
    pub blob: BlobId,
    /// Data shards first, then parity.
    pub index: u8,
}

impl fmt::Display for ShardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.blob, self.index)
    }
}
