//! The bytes of a request and of an answer.
//!
//! Each request is one bidirectional stream. Integers are big-endian.
//!
//! ```text
//! request   magic "MK" | version u8 = 1 | kind u16 | length u32 | body (length bytes) | end of stream
//! answer    status u8 | length u32 | body (length bytes) | end of stream
//!
//! status 0  done     the body is what was asked for
//!        1  refused  the body says why, UTF-8, at most 64 KiB
//!        2  failed   the body is a MessagePack `PeerError` (shard requests only)
//! ```
//!
//! A writer of a shard sends, after the request, blocks `length u32 | bytes` of at most [`BLOCK_BYTES_MAX`], then
//! a block of length 0, then `length u32 | MessagePack ShardFooter`, then ends the stream.
//!
//! Whatever breaks these rules ends its stream with a reset, is counted, and leaves the connection alone.

/// First bytes of every request.
pub(super) const MAGIC: [u8; 2] = *b"MK";
/// Version of the request head.
pub(super) const VERSION: u8 = 1;

pub(super) const REQUEST_HEAD_BYTES: usize = 9;
pub(super) const ANSWER_HEAD_BYTES: usize = 5;

/// Longest explanation that an answer carries.
pub(super) const REASON_BYTES_MAX: u32 = 64 * 1024;
/// Longest block of a shard on its way to a disk.
pub(super) const BLOCK_BYTES_MAX: u32 = 1024 * 1024;

/// Why bytes from a peer are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("starts with {0:02x?}, not with \"MK\"")]
    Magic([u8; 2]),
    #[error("has frame version {0}; this node reads version {VERSION}")]
    Version(u8),
    #[error("has status {0}, which means nothing")]
    Status(u8),
    #[error("announces {length} bytes where at most {max} may come")]
    TooLong { length: u32, max: u32 },
}

/// What precedes the body of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestHead {
    pub(super) kind: u16,
    pub(super) length: u32,
}

impl RequestHead {
    pub(super) fn encode(self) -> [u8; REQUEST_HEAD_BYTES] {
        let [k0, k1] = self.kind.to_be_bytes();
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        [MAGIC[0], MAGIC[1], VERSION, k0, k1, l0, l1, l2, l3]
    }

    /// Reads a head whose body may have at most `length_max` bytes.
    pub(super) fn decode(bytes: [u8; REQUEST_HEAD_BYTES], length_max: u32) -> Result<Self, FrameError> {
        let [m0, m1, version, k0, k1, l0, l1, l2, l3] = bytes;
        if [m0, m1] != MAGIC {
            return Err(FrameError::Magic([m0, m1]));
        }
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let length = checked_length([l0, l1, l2, l3], length_max)?;
        Ok(Self { kind: u16::from_be_bytes([k0, k1]), length })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Done = 0,
    Refused = 1,
    Failed = 2,
}

/// What precedes the body of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AnswerHead {
    pub(super) status: Status,
    pub(super) length: u32,
}

impl AnswerHead {
    pub(super) fn encode(self) -> [u8; ANSWER_HEAD_BYTES] {
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        [self.status as u8, l0, l1, l2, l3]
    }

    /// Reads a head whose body, when the answer is the one hoped for, has at most `done_length_max` bytes.
    pub(super) fn decode(bytes: [u8; ANSWER_HEAD_BYTES], done_length_max: u32) -> Result<Self, FrameError> {
        let [status, l0, l1, l2, l3] = bytes;
        let (status, length_max) = match status {
            0 => (Status::Done, done_length_max),
            1 => (Status::Refused, REASON_BYTES_MAX),
            2 => (Status::Failed, REASON_BYTES_MAX),
            other => return Err(FrameError::Status(other)),
        };
        Ok(Self { status, length: checked_length([l0, l1, l2, l3], length_max)? })
    }
}

/// Reads a length that may be at most `max`.
pub(super) fn checked_length(bytes: [u8; 4], max: u32) -> Result<u32, FrameError> {
    let length = u32::from_be_bytes(bytes);
    if length <= max { Ok(length) } else { Err(FrameError::TooLong { length, max }) }
}

/// `text` cut to what an answer may carry, at a character's border.
pub(super) fn reason_bytes(text: &str) -> &[u8] {
    let mut end = text.len().min(REASON_BYTES_MAX as usize);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes on the wire are these; a change of them is a change of the version.
    #[test]
    fn golden_bytes() {
        let request = RequestHead { kind: 0x0203, length: 0x0405_0607 };
        assert_eq!(request.encode(), [b'M', b'K', 1, 2, 3, 4, 5, 6, 7]);
        let answer = AnswerHead { status: Status::Failed, length: 0x0102_0304 };
        assert_eq!(answer.encode(), [2, 1, 2, 3, 4]);
    }

    proptest! {
        /// Any bytes are read or refused, and what is read says exactly the bytes that were given.
        #[test]
        fn requests_read_exactly_what_was_written(bytes in any::<[u8; 9]>(), valid in any::<bool>(), max in any::<u32>()) {
            let mut bytes = bytes;
            if valid {
                bytes[..3].copy_from_slice(b"MK\x01");
            }
            let length = u32::from_be_bytes(bytes[5..].try_into().unwrap());
            match RequestHead::decode(bytes, max) {
                Ok(head) => {
                    prop_assert_eq!(head.encode(), bytes);
                    prop_assert!(head.length <= max);
                }
                Err(FrameError::TooLong { length: told, .. }) => {
                    prop_assert_eq!(told, length);
                    prop_assert!(length > max);
                }
                Err(FrameError::Magic(_)) => prop_assert_ne!(&bytes[..2], b"MK"),
                Err(FrameError::Version(version)) => prop_assert_ne!(version, 1),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }

        #[test]
        fn answers_read_exactly_what_was_written(bytes in any::<[u8; 5]>(), status in 0u8..5, max in any::<u32>()) {
            let mut bytes = bytes;
            bytes[0] = status;
            match AnswerHead::decode(bytes, max) {
                Ok(head) => {
                    prop_assert_eq!(head.encode(), bytes);
                    prop_assert!(head.length <= max.max(REASON_BYTES_MAX));
                }
                Err(FrameError::Status(told)) => prop_assert!(told == status && status > 2),
                Err(error) => prop_assert!(matches!(error, FrameError::TooLong { .. }), "{}", error),
            }
        }

        /// A reason is a prefix of the text, valid UTF-8, and as long as allowed.
        #[test]
        fn reasons_are_cut_at_a_character(text in "\\PC{0,40}", repeat in 1usize..4000) {
            let text = text.repeat(repeat);
            let cut = std::str::from_utf8(reason_bytes(&text)).unwrap();
            prop_assert!(text.starts_with(cut) && cut.len() <= REASON_BYTES_MAX as usize);
            prop_assert!(cut.len() + 4 > text.len().min(REASON_BYTES_MAX as usize));
        }
    }
}
