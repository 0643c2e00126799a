//! Where each byte of a blob lies: plaintext pages, sealed pages, stripes, cells, shards.
//!
//! ```text
//! plaintext   page 0 (64 KiB) | page 1 | ... | last page (1..=64 KiB)
//! sealed      each page + its 16-byte tag
//! stripes     k full sealed pages make a full stripe: page i is cell i % k of stripe i / k
//! tail        what is left (fewer than k full pages) is cut into k equal cells, zero-padded
//! shard       its cell of each stripe, one after the other; all k + m shards have one length
//! ```
//!
//! Always: a full cell is exactly one sealed page, so a read inside full stripes touches only the data
//! shards it needs. The tail is cut evenly, so that a small blob costs (k + m) / k of its size and no more.
//! Padding is fewer than 16 k bytes a blob.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Plaintext bytes in a page.
pub const PAGE_BYTES: u64 = 64 * 1024;
/// What sealing adds to a page: an AES-256-GCM tag.
pub const TAG_BYTES: u64 = 16;
/// Bytes in a cell of a full stripe: one sealed page.
pub const CELL_BYTES: u64 = PAGE_BYTES + TAG_BYTES;
/// Plaintext bytes in a blob.
pub const BLOB_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Shards in a stripe, data and parity: what the format allows.
pub const SHARDS_MAX: u8 = 64;
/// A tail cell is a multiple of this.
const TAIL_ALIGN_BYTES: u64 = 16;

/// How many shards a stripe has. Any `data` of the `data + parity` rebuild it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scheme {
    pub data: u8,
    pub parity: u8,
}

/// A scheme that no stripe can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("scheme {0:?} is not k+m with k at least 1 and k + m at most {SHARDS_MAX}, e.g. \"4+2\"")]
pub struct SchemeError(String);

impl Scheme {
    /// # Errors
    /// `data` is 0, or there are more than [`SHARDS_MAX`] shards.
    pub fn new(data: u8, parity: u8) -> Result<Self, SchemeError> {
        let scheme = Self { data, parity };
        if data >= 1 && u16::from(data) + u16::from(parity) <= u16::from(SHARDS_MAX) {
            Ok(scheme)
        } else {
            Err(SchemeError(scheme.to_string()))
        }
    }

    /// k + m.
    #[must_use]
    pub fn shard_count(self) -> usize {
        usize::from(self.data) + usize::from(self.parity)
    }

    /// Shards that must be durable before a write to a whole group is acknowledged: enough that the
    /// first loss after it costs no data.
    #[must_use]
    pub fn write_quorum(self) -> usize {
        let (data, parity) = (usize::from(self.data), usize::from(self.parity));
        data + parity.div_ceil(2).max(parity.min(1))
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

impl FromStr for Scheme {
    type Err = SchemeError;

    fn from_str(text: &str) -> Result<Self, SchemeError> {
        let refused = || SchemeError(text.chars().take(40).collect());
        let (data, parity) = text.split_once('+').ok_or_else(refused)?;
        let data = data.parse().map_err(|_| refused())?;
        let parity = parity.parse().map_err(|_| refused())?;
        Self::new(data, parity).map_err(|_| refused())
    }
}

/// The geometry of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobLayout {
    pub scheme: Scheme,
    /// Plaintext bytes, 1 to [`BLOB_BYTES_MAX`].
    pub plain_len: u64,
}

/// One stripe of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stripe {
    pub index: u64,
    /// Bytes in each of its cells.
    pub cell_len: u64,
    /// Where its cell lies in every shard.
    pub in_shard: Range<u64>,
    /// Pages whose sealed bytes it holds.
    pub pages: Range<u64>,
    /// Plaintext bytes it holds.
    pub plain: Range<u64>,
}

impl BlobLayout {
    /// `None` where `plain_len` is 0 or above [`BLOB_BYTES_MAX`].
    #[must_use]
    pub fn new(scheme: Scheme, plain_len: u64) -> Option<Self> {
        (1..=BLOB_BYTES_MAX).contains(&plain_len).then_some(Self { scheme, plain_len })
    }

    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.plain_len.div_ceil(PAGE_BYTES)
    }

    /// Plaintext bytes of page `page`.
    #[must_use]
    pub fn page_len(&self, page: u64) -> u64 {
        PAGE_BYTES.min(self.plain_len - page * PAGE_BYTES)
    }

    #[must_use]
    pub fn sealed_len(&self) -> u64 {
        self.plain_len + self.page_count() * TAG_BYTES
    }

    fn data(&self) -> u64 {
        u64::from(self.scheme.data)
    }

    /// Stripes whose cells are whole sealed pages.
    fn full_stripes(&self) -> u64 {
        (self.plain_len / PAGE_BYTES) / self.data()
    }

    fn tail_cell_len(&self) -> u64 {
        let tail = self.sealed_len() - self.full_stripes() * self.data() * CELL_BYTES;
        tail.div_ceil(self.data()).next_multiple_of(TAIL_ALIGN_BYTES)
    }

    #[must_use]
    pub fn stripe_count(&self) -> u64 {
        self.full_stripes() + u64::from(self.tail_cell_len() > 0)
    }

    /// Bytes in each of the blob's shards.
    #[must_use]
    pub fn shard_len(&self) -> u64 {
        self.full_stripes() * CELL_BYTES + self.tail_cell_len()
    }

    #[must_use]
    pub fn stripe(&self, index: u64) -> Stripe {
        debug_assert!(index < self.stripe_count());
        let start = index * CELL_BYTES;
        let cell_len = if index < self.full_stripes() { CELL_BYTES } else { self.tail_cell_len() };
        let first_page = index * self.data();
        let pages = first_page..(first_page + self.data()).min(self.page_count());
        let plain = pages.start * PAGE_BYTES..(pages.end * PAGE_BYTES).min(self.plain_len);
        Stripe { index, cell_len, in_shard: start..start + cell_len, pages, plain }
    }

    /// The stripes that hold the plaintext bytes `range`, which lies inside the blob.
    #[must_use]
    pub fn stripes_of(&self, range: &Range<u64>) -> Range<u64> {
        debug_assert!(range.start < range.end && range.end <= self.plain_len);
        let stripe_bytes = self.data() * PAGE_BYTES;
        range.start / stripe_bytes..(range.end - 1) / stripe_bytes + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Stripes tile the plaintext, the pages and the shard without gap or overlap, and hold the sealed bytes.
        #[test]
        fn stripes_tile_the_blob(data in 1u8..=20, parity in 0u8..=10, plain_len in 1u64..=9_000_000) {
            let layout = BlobLayout::new(Scheme::new(data, parity).unwrap(), plain_len).unwrap();
            let (mut plain, mut shard, mut pages) = (0, 0, 0);
            for index in 0..layout.stripe_count() {
                let stripe = layout.stripe(index);
                prop_assert_eq!(stripe.plain.start, plain);
                prop_assert_eq!(stripe.in_shard.start, shard);
                prop_assert_eq!(stripe.pages.start, pages);
                let sealed: u64 = stripe.pages.clone().map(|page| layout.page_len(page) + TAG_BYTES).sum();
                prop_assert!(sealed <= stripe.cell_len * u64::from(data));
                prop_assert!(stripe.cell_len * u64::from(data) - sealed < 16 * u64::from(data));
                (plain, shard, pages) = (stripe.plain.end, stripe.in_shard.end, stripe.pages.end);
            }
            prop_assert_eq!((plain, shard, pages), (plain_len, layout.shard_len(), layout.page_count()));
        }

        /// The stripes named for a range are those that hold one of its bytes.
        #[test]
        fn a_range_names_its_stripes(data in 1u8..=6, plain_len in 1u64..=2_000_000, a: u64, b: u64) {
            let layout = BlobLayout::new(Scheme::new(data, 1).unwrap(), plain_len).unwrap();
            let start = a % plain_len;
            let end = start + 1 + b % (plain_len - start);
            let named = layout.stripes_of(&(start..end));
            let holding: Vec<u64> = (0..layout.stripe_count())
                .filter(|index| {
                    let plain = layout.stripe(*index).plain;
                    plain.start < end && start < plain.end
                })
                .collect();
            prop_assert_eq!(named.collect::<Vec<_>>(), holding);
        }
    }

    #[test]
    fn a_scheme_reads_back_and_bad_ones_are_refused() {
        assert_eq!("4+2".parse(), Scheme::new(4, 2));
        for bad in ["", "4", "0+2", "60+5", "4+2+1", "-1+2", "4+300"] {
            assert!(bad.parse::<Scheme>().is_err(), "{bad}");
        }
    }

    #[test]
    fn write_quorums() {
        let quorum = |text: &str| text.parse::<Scheme>().unwrap().write_quorum();
        assert_eq!([quorum("1+0"), quorum("1+2"), quorum("2+2"), quorum("4+2")], [1, 2, 3, 5]);
        assert_eq!([quorum("6+4"), quorum("10+6"), quorum("16+8")], [8, 13, 20]);
    }
}
