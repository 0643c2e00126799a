//! Objects whose every byte follows from their key and its place: made while they are sent, checked while they
//! come, never held whole.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use ring::digest;

/// Bytes sent at once.
const CHUNK_BYTES: u64 = 256 * 1024;
const WORD_BYTES: u64 = 8;
/// 2^64 divided by the golden ratio: neighbours land far apart.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// What one key's bytes follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern(u64);

impl Pattern {
    /// FNV-1a of the key, so that a row of keys gives unlike objects.
    #[must_use]
    pub fn of_key(key: &str) -> Self {
        let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        Self(key.bytes().fold(0xCBF2_9CE4_8422_2325, fold))
    }

    /// The eight bytes at `index * 8`, little-endian; no compressor finds a pattern in them.
    fn word(self, index: u64) -> u64 {
        let mixed = (self.0 ^ index).wrapping_mul(SPREAD);
        (mixed ^ (mixed >> 29)).wrapping_mul(SPREAD) ^ self.0
    }

    /// Writes what stands at `offset` into `out`.
    pub fn fill(self, offset: u64, out: &mut [u8]) {
        let (head, index) = (ragged_head(offset, out.len()), offset.div_ceil(WORD_BYTES));
        let (head, words) = out.split_at_mut(head);
        head.copy_from_slice(self.part(offset, &mut [0; WORD_BYTES as usize], head.len()));
        let mut words = words.chunks_exact_mut(WORD_BYTES as usize);
        let mut next = index;
        for word in &mut words {
            word.copy_from_slice(&self.word(next).to_le_bytes());
            next += 1;
        }
        let tail = words.into_remainder();
        tail.copy_from_slice(self.part(next * WORD_BYTES, &mut [0; WORD_BYTES as usize], tail.len()));
    }

    /// Whether `bytes` are what stands at `offset`.
    #[must_use]
    pub fn holds(self, offset: u64, bytes: &[u8]) -> bool {
        let (head, index) = (ragged_head(offset, bytes.len()), offset.div_ceil(WORD_BYTES));
        let (head, words) = bytes.split_at(head);
        let mut differs = 0;
        let mut next = index;
        let words = words.chunks_exact(WORD_BYTES as usize);
        let tail = words.remainder();
        for word in words {
            let mut given = [0; WORD_BYTES as usize];
            given.copy_from_slice(word);
            differs |= u64::from_le_bytes(given) ^ self.word(next);
            next += 1;
        }
        differs == 0
            && head == self.part(offset, &mut [0; WORD_BYTES as usize], head.len())
            && tail == self.part(next * WORD_BYTES, &mut [0; WORD_BYTES as usize], tail.len())
    }

    /// The bytes of one word from `offset` on, at most `len`.
    fn part(self, offset: u64, word: &mut [u8; WORD_BYTES as usize], len: usize) -> &[u8] {
        *word = self.word(offset / WORD_BYTES).to_le_bytes();
        let start = (offset % WORD_BYTES) as usize;
        &word[start..start + len]
    }
}

/// Bytes of a range that lie before its first whole word.
fn ragged_head(offset: u64, len: usize) -> usize {
    len.min((offset.next_multiple_of(WORD_BYTES) - offset) as usize)
}

/// The body of a request: `len` bytes of a pattern from its start.
#[derive(Debug, Clone)]
pub struct Content {
    pattern: Pattern,
    sent: u64,
    len: u64,
}

impl Content {
    #[must_use]
    pub fn new(pattern: Pattern, len: u64) -> Self {
        Self { pattern, sent: 0, len }
    }

    #[must_use]
    pub fn empty() -> Self {
        Self::new(Pattern(0), 0)
    }

    fn next_chunk(&mut self) -> Option<Bytes> {
        let len = CHUNK_BYTES.min(self.len - self.sent);
        if len == 0 {
            return None;
        }
        let mut chunk = BytesMut::zeroed(len as usize);
        self.pattern.fill(self.sent, &mut chunk);
        self.sent += len;
        Some(chunk.freeze())
    }

    #[must_use]
    pub fn sha256_hex(&self) -> String {
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut rest = self.clone();
        while let Some(chunk) = rest.next_chunk() {
            hash.update(&chunk);
        }
        hex::encode(hash.finish())
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next_chunk().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent == self.len
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len - self.sent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sigv4;
    use super::*;

    fn whole(key: &str, len: u64) -> Vec<u8> {
        let mut content = Content::new(Pattern::of_key(key), len);
        std::iter::from_fn(|| content.next_chunk()).flatten().collect()
    }

    proptest! {
        /// Any part of an object is recognised at its place, and one changed bit of it is not.
        #[test]
        fn a_part_is_recognised_at_its_place_alone(
            start in 0usize..2000, len in 1usize..2000, flip in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let object = whole("a/key", 4000);
            let mut part = object[start..start + len].to_vec();
            let pattern = Pattern::of_key("a/key");
            prop_assert!(pattern.holds(start as u64, &part));
            part[flip.index(len)] ^= 1 << bit;
            prop_assert!(!pattern.holds(start as u64, &part));
        }
    }

    #[test]
    fn keys_and_places_differ_and_the_hash_is_of_the_bytes() {
        let len = CHUNK_BYTES + 13;
        let object = whole("a", len);
        assert_eq!(object.len() as u64, len);
        assert_ne!(object, whole("b", len));
        assert!(!Pattern::of_key("a").holds(8, &object[..64]));
        let words: std::collections::BTreeSet<_> = object.chunks_exact(8).collect();
        assert_eq!(words.len(), object.len() / 8);
        let content = Content::new(Pattern::of_key("a"), len);
        assert_eq!(content.sha256_hex(), sigv4::sha256_hex(&object));
    }
}
