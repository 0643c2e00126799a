//! Reads plaintext of a blob from the k fastest shards, through dead, slow and lying disks.
//!
//! ```text
//! range ─> stripes ─> cells of k shards (data shards first, one more when one fails or is slow)
//!       ─> missing data cells rebuilt ─> pages opened ─> plaintext
//! page does not open ─> all cells of that stripe ─> the choice of k whose pages open
//! ```

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::{PeerError, ShardPeers, StripeError};
use crate::codec::Codec;
use crate::ids::{BlobId, DiskId, ShardKey};
use crate::layout::{BlobLayout, CELL_BYTES, PAGE_BYTES, Scheme, Stripe, TAG_BYTES};
use crate::seal::{DataKey, PageSealer};

/// Plaintext bytes to ask for at once: bounds the memory of a read, and each disk gets one request for it.
pub const READ_WINDOW_BYTES: u64 = 2 * 1024 * 1024;
/// How long a disk may take before another is asked beside it.
const HEDGE_AFTER: Duration = Duration::from_millis(150);
/// Choices of k cells tried for a stripe with lying disks.
const CHOICES_MAX: usize = 4096;

/// A blob to read.
#[derive(Clone)]
pub struct BlobSource {
    pub blob: BlobId,
    pub scheme: Scheme,
    pub plain_len: u64,
    /// `disks[i]` holds shard i.
    pub disks: Vec<DiskId>,
    pub key: DataKey,
}

/// Which shards to ask, in which order, and when it is enough. Pure.
struct Asking {
    need: usize,
    /// Still to ask, the best last.
    spare: Vec<u8>,
    open: usize,
    have: usize,
}

impl Asking {
    /// Prefers disks that are up, among them `wanted`, then lower shards (data before parity).
    fn new(need: usize, up: &[bool], wanted: impl Fn(u8) -> bool) -> Self {
        let mut spare: Vec<u8> = (0..up.len() as u8).collect();
        spare.sort_by_key(|index| (!up[usize::from(*index)], !wanted(*index), *index));
        spare.reverse();
        Self { need, spare, open: 0, have: 0 }
    }

    /// The next shard to ask, as long as those open and there are not enough; `hedges` are asked beside slow ones.
    fn next(&mut self, hedges: usize) -> Option<u8> {
        if self.have + self.open >= self.need + hedges {
            return None;
        }
        let index = self.spare.pop()?;
        self.open += 1;
        Some(index)
    }

    fn on_answer(&mut self, is_good: bool) {
        self.open -= 1;
        self.have += usize::from(is_good);
    }

    fn is_enough(&self) -> bool {
        self.have >= self.need
    }

    fn is_lost(&self) -> bool {
        self.have + self.open + self.spare.len() < self.need
    }
}

/// The plaintext `range` of a blob, as one `Bytes` a page or less, in order. The range is not empty and lies inside.
///
/// # Errors
/// [`StripeError::TooFewShards`], [`StripeError::Damaged`].
pub async fn read_range(
    peers: &Arc<dyn ShardPeers>,
    codec: &Codec,
    source: &BlobSource,
    range: Range<u64>,
) -> Result<Vec<Bytes>, StripeError> {
    let layout = match BlobLayout::new(source.scheme, source.plain_len) {
        Some(layout)
            if range.start < range.end
                && range.end <= source.plain_len
                && source.disks.len() == source.scheme.shard_count() =>
        {
            layout
        }
        _ => {
            return Err(StripeError::Invalid(format!(
                "blob {} of {} bytes on {} disks has no range {range:?} under {}",
                source.blob,
                source.plain_len,
                source.disks.len(),
                source.scheme
            )));
        }
    };
    let stripes: Vec<Stripe> = layout.stripes_of(&range).map(|index| layout.stripe(index)).collect();
    let (Some(first), Some(last)) = (stripes.first(), stripes.last()) else { return Ok(Vec::new()) };
    let in_shard = first.in_shard.start..last.in_shard.end;
    let pages = range.start / PAGE_BYTES..(range.end - 1) / PAGE_BYTES + 1;
    let reader = Reader { peers, codec, source, layout };
    let sealer = PageSealer::new(&source.key, source.blob);
    let cut = |page: u64, bytes: &Bytes| {
        let start = page * PAGE_BYTES;
        let from = range.start.saturating_sub(start) as usize;
        let to = ((range.end - start) as usize).min(bytes.len());
        bytes.slice(from..to)
    };

    // Some pages of one stripe need no more than the bytes that hold them.
    if stripes.len() == 1
        && pages != first.pages
        && let Some(opened) = reader.read_exactly(&sealer, first, &pages).await
    {
        return Ok(pages.zip(&opened).map(|(page, bytes)| cut(page, bytes)).collect());
    }
    let cells = reader.fetch_any(&in_shard).await?;
    let mut plain = Vec::with_capacity((pages.end - pages.start) as usize);
    for stripe in &stripes {
        let wanted = pages.start.max(stripe.pages.start)..pages.end.min(stripe.pages.end);
        let at = (stripe.in_shard.start - in_shard.start) as usize;
        let of_stripe = |cell: &Bytes| cell.slice(at..at + stripe.cell_len as usize);
        let cells: BTreeMap<u8, Bytes> =
            cells.iter().map(|(index, cell)| (*index, of_stripe(cell))).collect();
        let opened = match reader.open_pages(&sealer, stripe, &wanted, &cells) {
            Some(opened) => opened,
            None => reader.recover(&sealer, stripe, &wanted).await?,
        };
        plain.extend(wanted.zip(&opened).map(|(page, bytes)| cut(page, bytes)));
    }
    Ok(plain)
}

struct Reader<'r> {
    peers: &'r Arc<dyn ShardPeers>,
    codec: &'r Codec,
    source: &'r BlobSource,
    layout: BlobLayout,
}

impl Reader<'_> {
    async fn fetch(&self, index: u8, in_shard: &Range<u64>) -> (u8, Result<Bytes, PeerError>) {
        let key = ShardKey { blob: self.source.blob, index };
        let len = in_shard.end - in_shard.start;
        let disk = self.source.disks[usize::from(index)];
        let answer = match self.peers.read(disk, key, in_shard.start, len).await {
            Ok(bytes) if bytes.len() as u64 != len => {
                Err(PeerError::Corrupt(format!("{} bytes came, {len} were asked", bytes.len())))
            }
            answer => answer,
        };
        if let Err(error) = &answer {
            tracing::debug!(shard = %key, %disk, %error, "a shard was not read");
        }
        (index, answer)
    }

    /// Where sealed page `page` lies in what the stripe's data cells hold one after the other.
    fn place(&self, stripe: &Stripe, page: u64) -> Range<u64> {
        let start = (page - stripe.pages.start) * CELL_BYTES;
        start..start + self.layout.page_len(page) + TAG_BYTES
    }

    /// The pages, from just the pieces of data cells that hold them; `None` as soon as one fails or is slow, or where a page
    /// does not open.
    async fn read_exactly(
        &self,
        sealer: &PageSealer,
        stripe: &Stripe,
        pages: &Range<u64>,
    ) -> Option<Vec<Bytes>> {
        let sealed = self.place(stripe, pages.start).start..self.place(stripe, pages.end - 1).end;
        let cells = sealed.start / stripe.cell_len..(sealed.end - 1) / stripe.cell_len + 1;
        if !cells.clone().all(|index| self.peers.is_up(self.source.disks[index as usize])) {
            return None;
        }
        let pieces = cells.map(|index| {
            let (start, end) = (index * stripe.cell_len, (index + 1) * stripe.cell_len);
            let in_cell = sealed.start.max(start) - start..sealed.end.min(end) - start;
            let in_shard = stripe.in_shard.start + in_cell.start..stripe.in_shard.start + in_cell.end;
            async move { self.fetch(index as u8, &in_shard).await.1.ok() }
        });
        let pieces = tokio::time::timeout(HEDGE_AFTER, futures::future::join_all(pieces)).await.ok()?;
        let mut bytes = Vec::with_capacity((sealed.end - sealed.start) as usize);
        for piece in pieces {
            bytes.extend_from_slice(&piece?);
        }
        self.open(sealer, stripe, pages, sealed.start, bytes)
    }

    /// Opens `pages` in `sealed`, which begins at `base` of what the stripe's data cells hold.
    fn open(
        &self,
        sealer: &PageSealer,
        stripe: &Stripe,
        pages: &Range<u64>,
        base: u64,
        mut sealed: Vec<u8>,
    ) -> Option<Vec<Bytes>> {
        let place = |page: u64| {
            let place = self.place(stripe, page);
            (place.start - base) as usize..(place.end - base) as usize
        };
        for page in pages.clone() {
            sealer.open(page, &mut sealed[place(page)]).ok()?;
        }
        let sealed = Bytes::from(sealed);
        let plain = |page: u64| sealed.slice(place(page).start..place(page).end - TAG_BYTES as usize);
        Some(pages.clone().map(plain).collect())
    }

    /// Any k shards, the fastest.
    async fn fetch_any(&self, in_shard: &Range<u64>) -> Result<BTreeMap<u8, Bytes>, StripeError> {
        let data = self.source.scheme.data;
        let up: Vec<bool> = self.source.disks.iter().map(|disk| self.peers.is_up(*disk)).collect();
        let mut asking = Asking::new(usize::from(data), &up, |index| index < data);
        let mut open = FuturesUnordered::new();
        let mut cells = BTreeMap::new();
        let mut last = String::from("none");
        let mut hedges = 0;
        while !asking.is_enough() {
            while let Some(index) = asking.next(hedges) {
                open.push(self.fetch(index, in_shard));
            }
            if asking.is_lost() {
                return Err(StripeError::TooFewShards {
                    blob: self.source.blob,
                    have: asking.have,
                    need: asking.need,
                    last,
                    gone: Vec::new(),
                });
            }
            tokio::select! {
                Some((index, answer)) = open.next() => {
                    asking.on_answer(answer.is_ok());
                    match answer {
                        Ok(bytes) => _ = cells.insert(index, bytes),
                        Err(error) => last = error.to_string(),
                    }
                }
                () = tokio::time::sleep(HEDGE_AFTER), if !asking.spare.is_empty() => hedges += 1,
            }
        }
        Ok(cells)
    }

    /// Rebuilds what is missing of the data cells and opens the pages `wanted`; `None` where a page does not open.
    fn open_pages(
        &self,
        sealer: &PageSealer,
        stripe: &Stripe,
        wanted: &Range<u64>,
        cells: &BTreeMap<u8, Bytes>,
    ) -> Option<Vec<Bytes>> {
        let cell_len = stripe.cell_len as usize;
        let data = self.source.scheme.data;
        let start = self.place(stripe, wanted.start).start as usize;
        let end = self.place(stripe, wanted.end - 1).end as usize;
        let needed = start / cell_len..(end - 1) / cell_len + 1;
        let mut sealed = vec![0; needed.len() * cell_len];
        let mut missing = Vec::new();
        for (index, room) in needed.clone().zip(sealed.chunks_exact_mut(cell_len)) {
            match cells.get(&(index as u8)) {
                Some(cell) => room.copy_from_slice(cell),
                None => missing.push((index, room)),
            }
        }
        if !missing.is_empty() {
            let present: Vec<(usize, &[u8])> = cells
                .iter()
                .take(usize::from(data))
                .map(|(index, cell)| (usize::from(*index), &cell[..]))
                .collect();
            self.codec.rebuild(&present, &mut missing).ok()?;
        }
        self.open(sealer, stripe, wanted, (needed.start * cell_len) as u64, sealed)
    }

    /// A disk lied: takes every cell of the stripe and finds k that give authentic pages.
    async fn recover(
        &self,
        sealer: &PageSealer,
        stripe: &Stripe,
        wanted: &Range<u64>,
    ) -> Result<Vec<Bytes>, StripeError> {
        let need = usize::from(self.source.scheme.data);
        let all = (0..self.source.disks.len() as u8).map(|index| self.fetch(index, &stripe.in_shard));
        let mut last = String::from("none");
        let mut cells = BTreeMap::new();
        for (index, answer) in futures::future::join_all(all).await {
            match answer {
                Ok(bytes) => _ = cells.insert(index, bytes),
                Err(error) => last = error.to_string(),
            }
        }
        if cells.len() < need {
            let (blob, have) = (self.source.blob, cells.len());
            return Err(StripeError::TooFewShards { blob, have, need, last, gone: Vec::new() });
        }
        let held: Vec<u8> = cells.keys().copied().collect();
        for choice in choices(held.len(), need).take(CHOICES_MAX) {
            let chosen = choice.iter().map(|at| (held[*at], cells[&held[*at]].clone())).collect();
            if let Some(plain) = self.open_pages(sealer, stripe, wanted, &chosen) {
                let idle: Vec<u8> =
                    held.iter().copied().filter(|index| !chosen.contains_key(index)).collect();
                tracing::warn!(blob = %self.source.blob, stripe = stripe.index, suspects = ?idle,
                    "cells did not verify; read from others, scrub decides which disk lies");
                return Ok(plain);
            }
            tokio::task::yield_now().await;
        }
        Err(StripeError::Damaged { blob: self.source.blob, need })
    }
}

/// Every choice of `need` out of `count`, in lexical order.
fn choices(count: usize, need: usize) -> impl Iterator<Item = Vec<usize>> {
    let mut next = (need <= count).then(|| (0..need).collect::<Vec<usize>>());
    std::iter::from_fn(move || {
        let now = next.take()?;
        let turn = (0..need).rev().find(|at| now[*at] < count - need + at);
        next = turn.map(|at| {
            let mut then = now.clone();
            for (step, place) in then[at..].iter_mut().enumerate() {
                *place = now[at] + 1 + step;
            }
            then
        });
        Some(now)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn choices_are_all_and_distinct() {
        let all: BTreeSet<Vec<usize>> = choices(6, 4).collect();
        assert_eq!((all.len(), choices(6, 4).count()), (15, 15));
        assert!(all.iter().all(|choice| choice.is_sorted() && choice.len() == 4 && choice[3] < 6));
        assert_eq!(choices(3, 3).collect::<Vec<_>>(), [vec![0, 1, 2]]);
        assert_eq!(choices(2, 3).count(), 0);
    }

    proptest! {
        /// Reading succeeds exactly when k disks answer, asks no disk twice, and no more than k while all answer.
        #[test]
        fn any_k_good_disks_are_enough(good in prop::collection::vec(any::<bool>(), 1..20), need: prop::sample::Index) {
            let need = need.index(good.len()) + 1;
            let up = vec![true; good.len()];
            let mut asking = Asking::new(need, &up, |index| usize::from(index) < need);
            let mut asked = Vec::new();
            while !asking.is_enough() && !asking.is_lost() {
                let Some(index) = asking.next(0) else {
                    prop_assert!(false, "neither enough nor lost, and nothing open");
                    break;
                };
                prop_assert!(!asked.contains(&index));
                asked.push(index);
                asking.on_answer(good[usize::from(index)]);
            }
            let enough = good.iter().filter(|good| **good).count() >= need;
            prop_assert_eq!(asking.is_enough(), enough);
            if good.iter().all(|good| *good) {
                prop_assert_eq!(asked.len(), need);
            }
        }
    }
}
