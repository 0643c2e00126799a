//! What an attempt prints, as nodes, gateways and the pool keep it.
//!
//! Format, integers little-endian: [`MAGIC`]; then records of stream (1 byte: 1 standard output, 2 standard error, 3
//! notices of the machine), Unix milliseconds (8), length (4) and that many bytes. An offset is a place in this form, and
//! 0 is the first record's: what was read up to an offset on a node goes on from the same offset in the pool.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A piece of a log, as its node gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPart {
    /// Whole records.
    pub records: Bytes,
    /// Where they begin: the offset asked for, or the first record's for 0.
    pub offset: u64,
    /// Nothing will follow.
    pub is_complete: bool,
}

/// Magic and version.
pub const MAGIC: [u8; 8] = *b"MKLOG\x00\x00\x01";
/// Bytes of a record before its text.
pub const HEADER_BYTES: usize = 13;
/// Bytes of a record's text.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// Bytes that came at one time from one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    pub stream: u8,
    pub at_unix_ms: u64,
    pub text: &'a [u8],
}

/// Adds a record, which has at most [`TEXT_BYTES_MAX`].
pub fn append(out: &mut Vec<u8>, record: Record<'_>) {
    for text in record.text.chunks(TEXT_BYTES_MAX) {
        out.push(record.stream);
        out.extend_from_slice(&record.at_unix_ms.to_le_bytes());
        out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(text);
    }
}

/// The first record of `bytes` and how many bytes it takes; `None`: it is not whole yet.
///
/// # Errors
/// These are no records.
pub fn parse(bytes: &[u8]) -> Result<Option<(Record<'_>, usize)>, BadLog> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let [stream, at @ .., l0, l1, l2, l3] = *head;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if !(1..=3).contains(&stream) || len > TEXT_BYTES_MAX {
        return Err(BadLog);
    }
    let Some(text) = rest.get(..len) else { return Ok(None) };
    Ok(Some((Record { stream, at_unix_ms: u64::from_le_bytes(at), text }, HEADER_BYTES + len)))
}

/// Bytes that are no log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log is damaged: these bytes are no records")]
pub struct BadLog;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_from_any_cut_and_garbage_is_told() {
        let mut bytes = Vec::new();
        append(&mut bytes, Record { stream: 1, at_unix_ms: 7, text: b"hello" });
        let long = vec![b'x'; TEXT_BYTES_MAX + 1];
        append(&mut bytes, Record { stream: 2, at_unix_ms: u64::MAX, text: &long });
        let (first, used) = parse(&bytes).unwrap().unwrap();
        assert_eq!((first.stream, first.at_unix_ms, first.text), (1, 7, b"hello".as_slice()));
        assert!((0..used).all(|cut| parse(&bytes[..cut]) == Ok(None)));
        let mut text = Vec::new();
        let mut at = used;
        while let Some((record, used)) = parse(&bytes[at..]).unwrap() {
            assert_eq!((record.stream, record.at_unix_ms), (2, u64::MAX));
            text.extend_from_slice(record.text);
            at += used;
        }
        assert_eq!((at, text), (bytes.len(), long));
        assert_eq!(parse(&[0xff; 20]), Err(BadLog));
        assert_eq!(parse(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), Err(BadLog));
    }
}
