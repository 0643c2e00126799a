//! The messages between nodes about metadata.
//!
//! ```text
//! request, answer    "MK" | version u8 | kind u8 | group u32, little-endian | body in MessagePack
//! ```
//!
//! An answer to a request of kind k has kind k and its own body, or [`TROUBLE`] and a [`Trouble`].

use bytes::Bytes;
use makai_erasure::NodeId;
use openraft::type_config::alias::{SnapshotMetaOf, VoteOf};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::facts::GroupId;
use crate::log::types::Types;

/// A message with its header.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// One command, encoded.
pub const COMMAND_BYTES_MAX: usize = 2 << 20;
const MAGIC: [u8; 2] = *b"MK";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 8;
/// The kind of an answer that says why there is none.
pub const TROUBLE: u8 = 0xff;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Append = 1,
    Vote = 2,
    PreVote = 3,
    SnapshotPiece = 4,
    SnapshotEnd = 5,
    TransferLeader = 6,
    Propose = 7,
    Query = 8,
    ReadIndex = 9,
    /// What is remembered of a voter.
    Known = 10,
    /// How far all voters have come.
    Marks = 11,
    /// Where a voter's log ends.
    Tail = 12,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Append,
        Self::Vote,
        Self::PreVote,
        Self::SnapshotPiece,
        Self::SnapshotEnd,
        Self::TransferLeader,
        Self::Propose,
        Self::Query,
        Self::ReadIndex,
        Self::Known,
        Self::Marks,
        Self::Tail,
    ];

    /// Whether only a voter may send it. Raft believes such messages.
    #[must_use]
    pub fn is_between_voters(self) -> bool {
        !matches!(self, Self::Propose | Self::Query)
    }
}

/// Why there is no answer, by what the asker does next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Trouble {
    /// Ask that one, or another.
    #[error("this node does not lead")]
    NotLeader(Option<NodeId>),
    /// Ask again, here or elsewhere. A command may or may not have been applied.
    #[error("{0}")]
    Unavailable(String),
    /// Ask later.
    #[error("too much waits here")]
    Overloaded,
    /// Never ask this again.
    #[error("message not understood: {0}")]
    Malformed(String),
}

/// A piece of a snapshot, in order; the first has offset 0.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SnapshotPiece {
    pub vote: VoteOf<Types>,
    pub transfer: u64,
    pub offset: u64,
    pub bytes: Bytes,
}

/// The whole snapshot was sent: install it. Asked again until it is installed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SnapshotEnd {
    pub vote: VoteOf<Types>,
    pub transfer: u64,
    pub meta: SnapshotMetaOf<Types>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum SnapshotAnswer {
    /// Go on, or ask again.
    Received,
    Installed(VoteOf<Types>),
    /// The sender leads no more.
    HigherVote(VoteOf<Types>),
    Refused(String),
}

/// The answer to any request of a node that cannot tell yet: ask again.
#[must_use]
pub fn not_yet(why: &str) -> Bytes {
    encode(TROUBLE, GroupId(0), &Trouble::Unavailable(why.into())).unwrap_or_default()
}

pub(super) fn encode(kind: u8, group: GroupId, body: &impl Serialize) -> Result<Bytes, Trouble> {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, kind]);
    out.extend_from_slice(&group.0.to_le_bytes());
    rmp_serde::encode::write(&mut out, body).map_err(|error| Trouble::Malformed(error.to_string()))?;
    if out.len() > MESSAGE_BYTES_MAX {
        return Err(Trouble::Malformed(format!(
            "it has {} bytes, {MESSAGE_BYTES_MAX} are allowed",
            out.len()
        )));
    }
    Ok(Bytes::from(out))
}

fn header(message: &[u8]) -> Result<(u8, GroupId, &[u8]), Trouble> {
    let malformed = |why: String| Err(Trouble::Malformed(why));
    if message.len() > MESSAGE_BYTES_MAX {
        return malformed(format!("it has {} bytes", message.len()));
    }
    match message {
        [m, k, VERSION, kind, a, b, c, d, body @ ..] if [*m, *k] == MAGIC => {
            Ok((*kind, GroupId(u32::from_le_bytes([*a, *b, *c, *d])), body))
        }
        [m, k, version, ..] if [*m, *k] == MAGIC && message.len() >= HEADER_BYTES => {
            malformed(format!("it has version {version}, this release speaks {VERSION}"))
        }
        _ => malformed("it is no metadata message".into()),
    }
}

/// What a request asks, so that whoever receives it can tell whether its sender may.
///
/// # Errors
/// [`Trouble::Malformed`]
pub fn kind_of(request: &[u8]) -> Result<Kind, Trouble> {
    request_parts(request).map(|(kind, _, _)| kind)
}

pub(super) fn request_parts(request: &[u8]) -> Result<(Kind, GroupId, &[u8]), Trouble> {
    let (byte, group, body) = header(request)?;
    match Kind::ALL.into_iter().find(|kind| *kind as u8 == byte) {
        Some(kind) => Ok((kind, group, body)),
        None => Err(Trouble::Malformed(format!("it has kind {byte}, which this release does not know"))),
    }
}

pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Trouble> {
    rmp_serde::from_slice(body).map_err(|error| Trouble::Malformed(error.to_string()))
}

pub(super) fn decode_answer<T: DeserializeOwned>(kind: Kind, answer: &[u8]) -> Result<T, Trouble> {
    let (byte, _, body) = header(answer)?;
    if byte == kind as u8 {
        decode(body)
    } else if byte == TROUBLE {
        Err(decode(body)?)
    } else {
        Err(Trouble::Malformed(format!("an answer of kind {byte} to a request of kind {}", kind as u8)))
    }
}

/// Counts what an encoding would take, without keeping it.
pub(super) fn encoded_len(value: &impl Serialize) -> Result<usize, Trouble> {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    rmp_serde::encode::write(&mut count, value).map_err(|error| Trouble::Malformed(error.to_string()))?;
    Ok(count.0)
}
