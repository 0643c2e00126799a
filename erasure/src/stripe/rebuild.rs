//! Makes lost shards again from k others, or copies one from the disk that it leaves, and keeps only what is the shard that
//! was.
//!
//! Sources stream window by window, once for all shards of a blob that are to be made; each is hashed as it passes. A result
//! is finished only when its hash is the root that the blob's root vouches for; a source whose own hash differs is named
//! and left out of the next try.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::{PeerError, ShardFooter, ShardHeader, ShardPeers, ShardSink, StripeError, blob_root};
use crate::codec::Codec;
use crate::ids::{BlobId, DiskId, PgId, ShardKey};
use crate::layout::{BlobLayout, CELL_BYTES, Scheme};

/// Cells read from each source at once.
const WINDOW_CELLS: u64 = 8;

/// Shards that were made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    /// Of all of them.
    pub bytes: u64,
    /// Those that are durable now, and where.
    pub made: Vec<(u8, DiskId)>,
    /// Shards whose bytes did not have the root they should.
    pub liars: Vec<u8>,
}

/// The blob a shard belongs to, as the facts have it.
#[derive(Debug, Clone)]
pub struct RebuildSource {
    pub blob: BlobId,
    pub pg: PgId,
    pub scheme: Scheme,
    pub plain_len: u64,
    pub root: [u8; 32],
    pub disks: Vec<DiskId>,
    pub opened_at_ms: u64,
}

enum Attempt {
    Done(Vec<(u8, DiskId)>),
    /// These sources failed or lied; without them it may work.
    Without {
        failed: Vec<u8>,
        /// Of those that failed, the ones whose disk answered and does not have them.
        gone: Vec<u8>,
        liars: Vec<u8>,
        last: String,
    },
}

/// Rebuilds shards of one blob from the other disks of its group, each onto the disk named with it: `targets` has at least
/// one, and no shard twice.
///
/// Cost: k shards are read once, however many are made. A target that fails holds up none of the others.
///
/// # Errors
/// [`StripeError::TooFewShards`]: fewer than k sound sources; [`StripeError::Invalid`]: all targets refuse.
/// Nothing is written on error.
pub async fn rebuild_shards(
    peers: &Arc<dyn ShardPeers>,
    codec: &Codec,
    source: &RebuildSource,
    targets: &[(u8, DiskId)],
) -> Result<Rebuilt, StripeError> {
    let width = source.disks.len();
    let is_shard = |(index, _): &(u8, DiskId)| usize::from(*index) < width;
    let layout = BlobLayout::new(source.scheme, source.plain_len)
        .filter(|_| {
            width == source.scheme.shard_count() && !targets.is_empty() && targets.iter().all(is_shard)
        })
        .ok_or_else(|| StripeError::Invalid(format!("blob {} has no shards {targets:?}", source.blob)))?;
    let need = usize::from(source.scheme.data);
    let is_made = |other: u8| {
        targets.iter().any(|(index, to)| *index == other || *to == source.disks[usize::from(other)])
    };
    let mut left: BTreeSet<u8> = (0..width as u8).filter(|other| !is_made(*other)).collect();
    let mut all_liars = Vec::new();
    let mut last_failure = String::from("none");
    let footer = match find_footer(peers, source, &left).await {
        Ok(footer) => footer,
        Err(NoFooter { last, gone }) => {
            return Err(StripeError::TooFewShards { blob: source.blob, have: 0, need, last, gone });
        }
    };
    let mut all_gone = Vec::new();
    loop {
        let mut sources: Vec<u8> = left.iter().copied().collect();
        sources.sort_by_key(|other| !peers.is_up(source.disks[usize::from(*other)]));
        sources.truncate(need);
        if sources.len() < need {
            let (blob, have, last) = (source.blob, sources.len(), last_failure);
            return Err(StripeError::TooFewShards { blob, have, need, last, gone: all_gone });
        }
        match attempt(peers, codec, source, layout, &footer, &sources, targets).await? {
            Attempt::Done(made) => {
                let bytes = layout.shard_len() * made.len() as u64;
                return Ok(Rebuilt { bytes, made, liars: all_liars });
            }
            Attempt::Without { failed, gone, liars, last } => {
                for other in failed.iter().chain(&liars) {
                    left.remove(other);
                }
                all_gone.extend(gone.iter().chain(&liars));
                all_liars.extend(liars);
                last_failure = last;
            }
        }
    }
}

/// Copies shard `index` from the slot's own disk onto `target`: one shard is read instead of k.
///
/// # Errors
/// The slot's disk does not give the shard that the blob's root vouches for, or the target refuses it: nothing is
/// written, [`rebuild_shards`] may still make it.
pub async fn copy_shard(
    peers: &Arc<dyn ShardPeers>,
    source: &RebuildSource,
    index: u8,
    target: DiskId,
) -> Result<Rebuilt, StripeError> {
    let invalid = || StripeError::Invalid(format!("blob {} has no shard {index}", source.blob));
    let layout = BlobLayout::new(source.scheme, source.plain_len).ok_or_else(invalid)?;
    let from = *source.disks.get(usize::from(index)).ok_or_else(invalid)?;
    let key = ShardKey { blob: source.blob, index };
    let unread = |error: PeerError| StripeError::TooFewShards {
        blob: source.blob,
        have: 0,
        need: 1,
        last: format!("disk {from}: {error}"),
        gone: if error.is_gone() { vec![index] } else { Vec::new() },
    };
    let found = find_footer(peers, source, &BTreeSet::from([index])).await;
    let footer = found.map_err(|NoFooter { last, gone }| StripeError::TooFewShards {
        blob: source.blob,
        have: 0,
        need: 1,
        last,
        gone,
    })?;
    let refused =
        |error: PeerError| StripeError::Invalid(format!("disk {target} does not take the shard: {error}"));
    let shard_len = layout.shard_len();
    let mut sink = peers.put(target, header_of(source, index, shard_len)).await.map_err(refused)?;
    let mut hash = blake3::Hasher::new();
    let mut at = 0;
    while at < shard_len {
        let len = (shard_len - at).min(WINDOW_CELLS * CELL_BYTES);
        let bytes = peers.read(from, key, at, len).await.map_err(unread)?;
        if bytes.len() as u64 != len {
            return Err(unread(PeerError::Corrupt(format!("{} bytes came, {len} were asked", bytes.len()))));
        }
        hash.update(&bytes);
        sink.send(bytes).await.map_err(refused)?;
        at += len;
    }
    if *hash.finalize().as_bytes() != footer.roots[usize::from(index)] {
        return Err(unread(PeerError::Corrupt("its bytes do not have the shard's root".into())));
    }
    sink.finish(footer).await.map_err(refused)?;
    Ok(Rebuilt { bytes: shard_len, made: vec![(index, target)], liars: Vec::new() })
}

fn header_of(source: &RebuildSource, index: u8, shard_len: u64) -> ShardHeader {
    ShardHeader {
        key: ShardKey { blob: source.blob, index },
        pg: source.pg,
        scheme: source.scheme,
        len_max: shard_len,
        opened_at_ms: source.opened_at_ms,
    }
}

/// Why there is no footer, and the shards found missing or damaged on the way.
struct NoFooter {
    last: String,
    gone: Vec<u8>,
}

/// A footer that the blob's root vouches for.
async fn find_footer(
    peers: &Arc<dyn ShardPeers>,
    source: &RebuildSource,
    others: &BTreeSet<u8>,
) -> Result<ShardFooter, NoFooter> {
    let (mut last, mut gone) = (String::from("no other shard"), Vec::new());
    let mut others: Vec<u8> = others.iter().copied().collect();
    others.sort_by_key(|other| !peers.is_up(source.disks[usize::from(*other)]));
    for other in others {
        let key = ShardKey { blob: source.blob, index: other };
        match peers.footer(source.disks[usize::from(other)], key).await {
            Ok(footer)
                if footer.roots.len() == source.disks.len()
                    && footer.blob_plain_len == source.plain_len
                    && blob_root(&footer.roots) == source.root =>
            {
                return Ok(footer);
            }
            Ok(_) => {
                last = format!("shard {key}: its footer is not the blob's");
                gone.push(other);
            }
            Err(error) => {
                last = format!("shard {key}: {error}");
                gone.extend(error.is_gone().then_some(other));
            }
        }
    }
    Err(NoFooter { last, gone })
}

/// A shard that is being made.
struct Growing {
    index: u8,
    disk: DiskId,
    /// `None`: the disk failed.
    sink: Option<Box<dyn ShardSink>>,
    hash: blake3::Hasher,
}

impl Growing {
    async fn begin(
        peers: &Arc<dyn ShardPeers>,
        header: ShardHeader,
        disk: DiskId,
    ) -> Result<Self, (DiskId, PeerError)> {
        let index = header.key.index;
        let sink = peers.put(disk, header).await.map_err(|error| (disk, error))?;
        Ok(Self { index, disk, sink: Some(sink), hash: blake3::Hasher::new() })
    }

    async fn send(&mut self, bytes: Vec<u8>) -> Result<(), (DiskId, PeerError)> {
        self.hash.update(&bytes);
        let Some(sink) = &mut self.sink else { return Ok(()) };
        let sent = sink.send(Bytes::from(bytes)).await;
        if sent.is_err() {
            self.sink = None;
        }
        sent.map_err(|error| (self.disk, error))
    }

    async fn finish(self, footer: ShardFooter) -> Result<(u8, DiskId), (DiskId, PeerError)> {
        let Some(sink) = self.sink else {
            return Err((self.disk, PeerError::Unreachable("it failed before".into())));
        };
        sink.finish(footer).await.map(|()| (self.index, self.disk)).map_err(|error| (self.disk, error))
    }
}

/// Keeps those that go on; an error where none does.
fn goes_on<T>(results: Vec<Result<T, (DiskId, PeerError)>>) -> Result<Vec<T>, StripeError> {
    let (mut good, mut last) = (Vec::new(), None);
    for result in results {
        match result {
            Ok(one) => good.push(one),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some((disk, error)) if good.is_empty() => {
            Err(StripeError::Invalid(format!("disk {disk} does not take the shard: {error}")))
        }
        _ => Ok(good),
    }
}

async fn attempt(
    peers: &Arc<dyn ShardPeers>,
    codec: &Codec,
    source: &RebuildSource,
    layout: BlobLayout,
    footer: &ShardFooter,
    sources: &[u8],
    targets: &[(u8, DiskId)],
) -> Result<Attempt, StripeError> {
    use futures::future::join_all;
    let shard_len = layout.shard_len();
    let begun = targets
        .iter()
        .map(|(index, disk)| Growing::begin(peers, header_of(source, *index, shard_len), *disk));
    let mut growing = goes_on(join_all(begun).await)?;
    let mut source_hashes = vec![blake3::Hasher::new(); sources.len()];
    let mut at = 0;
    while at < shard_len {
        let window = at..shard_len.min(at + WINDOW_CELLS * CELL_BYTES);
        let answers = read_window(peers, source, sources, &window).await;
        let (mut failed, mut gone) = (Vec::new(), Vec::new());
        let mut last = String::new();
        let mut present: Vec<(usize, Bytes)> = Vec::with_capacity(sources.len());
        for ((other, hasher), answer) in sources.iter().zip(&mut source_hashes).zip(answers) {
            match answer {
                Ok(bytes) => {
                    hasher.update(&bytes);
                    present.push((usize::from(*other), bytes));
                }
                Err(error) => {
                    last = error.to_string();
                    failed.push(*other);
                    gone.extend(error.is_gone().then_some(*other));
                }
            }
        }
        if !failed.is_empty() {
            return Ok(Attempt::Without { failed, gone, liars: Vec::new(), last });
        }
        let present: Vec<(usize, &[u8])> =
            present.iter().map(|(other, bytes)| (*other, &bytes[..])).collect();
        let len = (window.end - window.start) as usize;
        let mut pieces: Vec<Vec<u8>> = growing.iter().map(|_| vec![0; len]).collect();
        let mut wanted: Vec<(usize, &mut [u8])> = growing
            .iter()
            .zip(&mut pieces)
            .map(|(shard, piece)| (usize::from(shard.index), &mut piece[..]))
            .collect();
        codec.rebuild(&present, &mut wanted).map_err(|error| StripeError::Invalid(error.to_string()))?;
        let sent = growing.iter_mut().zip(pieces).map(|(shard, piece)| shard.send(piece));
        goes_on(join_all(sent).await)?;
        growing.retain(|shard| shard.sink.is_some());
        at = window.end;
    }
    let is_it = |shard: &Growing| *shard.hash.finalize().as_bytes() == footer.roots[usize::from(shard.index)];
    if !growing.iter().all(is_it) {
        let hashes = sources.iter().zip(&source_hashes);
        let lies = |other: u8, hasher: &blake3::Hasher| {
            *hasher.finalize().as_bytes() != footer.roots[usize::from(other)]
        };
        let liars: Vec<u8> =
            hashes.filter(|(other, hasher)| lies(**other, hasher)).map(|(other, _)| *other).collect();
        if liars.is_empty() {
            return Err(StripeError::Damaged { blob: source.blob, need: sources.len() });
        }
        return Ok(Attempt::Without {
            failed: Vec::new(),
            gone: Vec::new(),
            liars,
            last: "a source's bytes do not have its root".into(),
        });
    }
    let finished = growing.into_iter().map(|shard| shard.finish(footer.clone()));
    Ok(Attempt::Done(goes_on(join_all(finished).await)?))
}

async fn read_window(
    peers: &Arc<dyn ShardPeers>,
    source: &RebuildSource,
    sources: &[u8],
    window: &Range<u64>,
) -> Vec<Result<Bytes, PeerError>> {
    let len = window.end - window.start;
    let reads = sources.iter().map(|other| async move {
        let key = ShardKey { blob: source.blob, index: *other };
        let bytes = peers.read(source.disks[usize::from(*other)], key, window.start, len).await?;
        match bytes.len() as u64 == len {
            true => Ok(bytes),
            false => Err(PeerError::Corrupt(format!("{} bytes came, {len} were asked", bytes.len()))),
        }
    });
    futures::future::join_all(reads).await
}
