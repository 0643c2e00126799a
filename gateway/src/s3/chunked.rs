//! The framing of `aws-chunked` bodies, checked before they are decoded.
//!
//! ```text
//! HEX[;chunk-signature=...] CRLF  bytes CRLF  ...  0[;chunk-signature=...] CRLF  [trailers] CRLF
//! ```
//!
//! The decoder behind this one holds a chunk in memory until it is whole, and takes a body that ends between two
//! chunks for complete. Here, unsigned chunks of any size are cut into those that arrived, so that a client that sends
//! gigabytes as one chunk costs no memory; signed chunks, whose signature covers all of the chunk, have a bound; and a
//! body that ends before its last chunk is told apart.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

/// Bytes in a signed chunk. Clients send 64 KiB to 1 MiB.
pub(super) const SIGNED_CHUNK_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Bytes before a chunk: its size, and its signature.
const HEAD_BYTES_MAX: usize = 256;

/// Why a body's framing is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FramingError {
    Malformed,
    ChunkTooLarge(u64),
    Truncated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Head,
    Data {
        left: u64,
    },
    /// The line end behind a chunk's bytes.
    DataEnd {
        seen: u8,
    },
    /// Behind the last chunk.
    Tail,
}

/// Reads the framing of one body.
#[derive(Debug)]
pub(super) struct Framing {
    is_signed: bool,
    at: At,
    head: Vec<u8>,
    /// A line end is owed to the decoder before the next head.
    owes_line_end: bool,
}

impl Framing {
    pub(super) fn new(is_signed: bool) -> Self {
        Self { is_signed, at: At::Head, head: Vec::new(), owes_line_end: false }
    }

    /// Takes what arrived; appends to `out` what the decoder shall see.
    pub(super) fn push(&mut self, mut bytes: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), FramingError> {
        if self.is_signed {
            out.push_back(bytes.clone());
        }
        while !bytes.is_empty() {
            match self.at {
                At::Head => {
                    let end = bytes.iter().position(|&byte| byte == b'\n');
                    let taken = end.map_or(bytes.len(), |end| end + 1);
                    if self.head.len() + taken > HEAD_BYTES_MAX {
                        return Err(FramingError::Malformed);
                    }
                    self.head.extend_from_slice(&bytes[..taken]);
                    bytes.advance(taken);
                    if end.is_some() {
                        self.on_head(out)?;
                    }
                }
                At::Data { left } => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let data = bytes.split_to(here);
                    if !self.is_signed {
                        let line_end = if self.owes_line_end { "\r\n" } else { "" };
                        out.push_back(format!("{line_end}{here:x}\r\n").into());
                        out.push_back(data);
                        self.owes_line_end = true;
                    }
                    let left = left - here as u64;
                    self.at = if left == 0 { At::DataEnd { seen: 0 } } else { At::Data { left } };
                }
                At::DataEnd { seen } => {
                    if bytes.get_u8() != b"\r\n"[usize::from(seen)] {
                        return Err(FramingError::Malformed);
                    }
                    self.at = if seen == 1 { At::Head } else { At::DataEnd { seen: 1 } };
                }
                At::Tail => {
                    if !self.is_signed {
                        out.push_back(bytes.clone());
                    }
                    bytes.clear();
                }
            }
        }
        Ok(())
    }

    fn on_head(&mut self, out: &mut VecDeque<Bytes>) -> Result<(), FramingError> {
        let line = self.head.strip_suffix(b"\r\n").ok_or(FramingError::Malformed)?;
        let digits = line.split(|&byte| byte == b';').next().unwrap_or_default();
        let digits = std::str::from_utf8(digits).map_err(|_| FramingError::Malformed)?;
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(FramingError::Malformed);
        }
        let size = u64::from_str_radix(digits, 16).map_err(|_| FramingError::Malformed)?;
        if self.is_signed && size > SIGNED_CHUNK_BYTES_MAX {
            return Err(FramingError::ChunkTooLarge(size));
        }
        if size == 0 {
            if !self.is_signed {
                let line_end: &[u8] = if self.owes_line_end { b"\r\n" } else { b"" };
                out.push_back([line_end, &self.head].concat().into());
            }
            self.at = At::Tail;
        } else {
            self.at = At::Data { left: size };
        }
        self.head.clear();
        Ok(())
    }

    /// The body has ended.
    pub(super) fn finish(&self) -> Result<(), FramingError> {
        if self.at == At::Tail { Ok(()) } else { Err(FramingError::Truncated) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(is_signed: bool, pieces: &[&[u8]]) -> Result<Vec<u8>, FramingError> {
        let (mut framing, mut out) = (Framing::new(is_signed), VecDeque::new());
        for piece in pieces {
            framing.push(Bytes::copy_from_slice(piece), &mut out)?;
        }
        framing.finish()?;
        Ok(out.into_iter().flatten().collect())
    }

    /// A decoder written for this test: data and trailer of a body.
    fn decode(mut body: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut data = Vec::new();
        loop {
            let end = body.windows(2).position(|pair| pair == b"\r\n").unwrap();
            let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
            body = &body[end + 2..];
            if size == 0 {
                return (data, body.to_vec());
            }
            data.extend_from_slice(&body[..size]);
            assert_eq!(&body[size..size + 2], b"\r\n");
            body = &body[size + 2..];
        }
    }

    const BODY: &[u8] =
        b"5\r\nhello\r\nb\r\n, wide worl\r\n1\r\nd\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n";

    #[test]
    fn however_an_unsigned_body_arrives_the_decoder_sees_the_same_data_and_trailers() {
        let trailer = b"x-amz-checksum-crc32:AAAAAA==\r\n\r\n".to_vec();
        let expected = (b"hello, wide world".to_vec(), trailer);
        for step in 1..=BODY.len() {
            let pieces: Vec<_> = BODY.chunks(step).collect();
            assert_eq!(decode(&run(false, &pieces).unwrap()), expected, "in pieces of {step}");
        }
    }

    #[test]
    fn a_huge_unsigned_chunk_passes_as_it_arrives() {
        let (mut framing, mut out) = (Framing::new(false), VecDeque::new());
        framing.push(Bytes::from_static(b"200000000\r\n"), &mut out).unwrap();
        assert!(out.is_empty());
        for _ in 0..100 {
            framing.push(Bytes::from_static(&[7; 1000]), &mut out).unwrap();
            assert_eq!(out.drain(..).map(|bytes| bytes.len()).filter(|&len| len == 1000).count(), 1);
        }
    }

    #[test]
    fn a_signed_body_passes_unchanged() {
        let signature = "a".repeat(64);
        let body = format!("5;chunk-signature={signature}\r\nhello\r\n0;chunk-signature={signature}\r\n\r\n");
        for step in 1..=body.len() {
            let pieces: Vec<_> = body.as_bytes().chunks(step).collect();
            assert_eq!(run(true, &pieces).unwrap(), body.as_bytes());
        }
    }

    #[test]
    fn a_signed_chunk_beyond_the_bound_is_refused_before_its_bytes() {
        let mut framing = Framing::new(true);
        let refused = framing.push(Bytes::from_static(b"800001;chunk-signature=x\r\n"), &mut VecDeque::new());
        assert_eq!(refused, Err(FramingError::ChunkTooLarge(0x80_0001)));
    }

    #[test]
    fn a_body_cut_anywhere_before_its_last_chunk_is_truncated() {
        let last = BODY.windows(3).position(|w| w == b"0\r\n").unwrap() + 3;
        for end in 0..last {
            assert_eq!(run(false, &[&BODY[..end]]), Err(FramingError::Truncated), "{end} bytes");
        }
    }

    #[test]
    fn what_is_no_framing_is_refused() {
        let long = "0".repeat(300) + "\r\n";
        let bodies =
            ["\r\n", "zz\r\n", "+5\r\nhello\r\n", "5\nhello", "5\r\nhelloXX", "fffffffffffffffff\r\n", &long];
        for body in bodies {
            assert_eq!(run(false, &[body.as_bytes()]), Err(FramingError::Malformed), "{body:?}");
        }
    }
}
