//! Writes one blob: seals, codes and sends it stripe by stripe, and says when it is durable.
//!
//! [`Lanes`] decides (pure); [`BlobWriter`] carries out: one task a disk takes cells from a short queue, so that
//! memory is a few stripes whatever the blob's size, and the slowest disk that still counts sets the pace. Small stripes
//! go some at a time: a disk is woken, and its way paid for, once for all of them.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{PeerError, Root, ShardFooter, ShardHeader, ShardPeers, StripeError, blob_root};
use crate::codec::Codec;
use crate::ids::{BlobId, DiskId, PgId, ShardKey};
use crate::layout::{BLOB_BYTES_MAX, BlobLayout, CELL_BYTES, PAGE_BYTES, Scheme, TAG_BYTES};
use crate::seal::{DataKey, PageSealer};

/// Stripes are handed on together up to this many bytes, parity included.
const HANDED_BYTES: usize = 1 << 20;
/// Steps that wait for one disk, where one is a single cell.
const LANE_CELLS_MAX: usize = 2;

/// What to write where.
#[derive(Debug, Clone)]
pub struct WritePlan {
    pub blob: BlobId,
    pub pg: PgId,
    pub scheme: Scheme,
    /// `disks[i]` gets shard i.
    pub disks: Vec<DiskId>,
    /// Plaintext bytes at most, as far as known.
    pub plain_len_max: u64,
    pub opened_at_ms: u64,
    /// Shards to wait for before the write is acknowledged, k at least. With fewer, but k or more, the write ends
    /// too once every disk has answered: its caller sees what is missing and decides.
    pub write_quorum: usize,
}

/// A blob whose shards are durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenBlob {
    pub plain_len: u64,
    pub root: Root,
    /// Shards not known to be durable.
    pub missing: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Open,
    Durable,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Answers still out can decide either way.
    Wait,
    Durable,
    Lost,
}

/// Which shards are durable, and whether that is enough: `write_quorum` of them, or all that answer if k do.
struct Lanes {
    states: Vec<Lane>,
    data: usize,
    write_quorum: usize,
}

impl Lanes {
    fn new(count: usize, data: usize, write_quorum: usize) -> Self {
        Self { states: vec![Lane::Open; count], data, write_quorum }
    }

    /// Takes a disk's answer. A second answer of the same disk changes nothing.
    fn on_answer(&mut self, index: usize, is_durable: bool) {
        if self.states[index] == Lane::Open {
            self.states[index] = if is_durable { Lane::Durable } else { Lane::Failed };
        }
    }

    fn count(&self, state: Lane) -> usize {
        self.states.iter().filter(|lane| **lane == state).count()
    }

    fn live(&self) -> usize {
        self.states.len() - self.count(Lane::Failed)
    }

    fn verdict(&self) -> Verdict {
        let durable = self.count(Lane::Durable);
        if self.live() < self.data {
            Verdict::Lost
        } else if durable >= self.write_quorum || durable == self.live() {
            Verdict::Durable
        } else {
            Verdict::Wait
        }
    }
}

/// Cells of a shard, and its end after them.
struct LaneStep {
    cells: Vec<Bytes>,
    footer: Option<ShardFooter>,
}

/// One blob on its way to its disks. Dropped before [`finish`](Self::finish), every disk forgets it.
pub struct BlobWriter {
    plan: WritePlan,
    codec: Codec,
    sealer: PageSealer,
    lanes: Lanes,
    queues: Vec<Option<mpsc::Sender<LaneStep>>>,
    answers: mpsc::Receiver<(usize, Result<(), PeerError>)>,
    last_failure: String,
    /// Lanes that failed because their disk takes no more.
    full: usize,
    hashers: Vec<blake3::Hasher>,
    /// Coded stripes to be handed on, with the length of their cells.
    coded: Vec<(Bytes, usize)>,
    /// How many of them go at once.
    handed_max: usize,
    /// Sealed pages of the stripe under way, then room for its parity.
    stripe: Vec<u8>,
    /// Plaintext bytes in the stripe under way, of which whole pages are sealed.
    stripe_plain: u64,
    plain_len: u64,
}

impl BlobWriter {
    /// Opens a lane to each disk believed up; to all of them where that would not make a quorum.
    ///
    /// # Errors
    /// [`StripeError::Invalid`]: the plan does not fit its scheme.
    pub fn start(
        peers: &Arc<dyn ShardPeers>,
        codec: Codec,
        key: &DataKey,
        plan: WritePlan,
    ) -> Result<Self, StripeError> {
        let width = plan.scheme.shard_count();
        let data = usize::from(plan.scheme.data);
        if plan.disks.len() != width || !(data..=width).contains(&plan.write_quorum) {
            return Err(StripeError::Invalid(format!(
                "{} disks and a write quorum of {} do not fit scheme {}",
                plan.disks.len(),
                plan.write_quorum,
                plan.scheme
            )));
        }
        let shard_len_max = BlobLayout::new(plan.scheme, plan.plain_len_max.clamp(1, BLOB_BYTES_MAX))
            .expect("a length within the format's bounds has a layout")
            .shard_len();
        let up: Vec<bool> = plan.disks.iter().map(|disk| peers.is_up(*disk)).collect();
        let try_all = up.iter().filter(|is_up| **is_up).count() < plan.write_quorum;
        let handed_max = (HANDED_BYTES / (width * CELL_BYTES as usize)).max(1);
        let waiting_max = if handed_max == 1 { LANE_CELLS_MAX } else { 1 };
        let (answer, answers) = mpsc::channel(width);
        let mut lanes = Lanes::new(width, data, plan.write_quorum);
        let mut queues = Vec::with_capacity(width);
        for (index, disk) in plan.disks.iter().enumerate() {
            if !(up[index] || try_all) {
                lanes.on_answer(index, false);
                queues.push(None);
                continue;
            }
            let header = ShardHeader {
                key: ShardKey { blob: plan.blob, index: index as u8 },
                pg: plan.pg,
                scheme: plan.scheme,
                len_max: shard_len_max,
                opened_at_ms: plan.opened_at_ms,
            };
            let (queue, steps) = mpsc::channel(waiting_max);
            let (peers, disk, answer) = (Arc::clone(peers), *disk, answer.clone());
            tokio::spawn(async move {
                if let Some(result) = run_lane(&*peers, disk, header, steps).await {
                    // The writer may have its quorum and be gone: then nobody needs the answer.
                    let _ = answer.send((index, result)).await;
                }
            });
            queues.push(Some(queue));
        }
        let sealer = PageSealer::new(key, plan.blob);
        Ok(Self {
            codec,
            sealer,
            lanes,
            queues,
            answers,
            last_failure: "none".into(),
            full: 0,
            hashers: vec![blake3::Hasher::new(); width],
            coded: Vec::with_capacity(handed_max),
            handed_max,
            stripe: Vec::new(),
            stripe_plain: 0,
            plain_len: 0,
            plan,
        })
    }

    /// Plaintext bytes written so far.
    #[must_use]
    pub fn plain_len(&self) -> u64 {
        self.plain_len
    }

    /// Plaintext bytes that still fit.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.plan.plain_len_max.min(BLOB_BYTES_MAX) - self.plain_len
    }

    fn stripe_plain_max(&self) -> u64 {
        u64::from(self.plan.scheme.data) * PAGE_BYTES
    }

    /// Appends plaintext; waits while the disks are behind.
    ///
    /// # Errors
    /// [`StripeError::QuorumLost`]; [`StripeError::Invalid`]: more bytes than the plan allows.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), StripeError> {
        if bytes.len() as u64 > self.room() {
            return Err(StripeError::Invalid(format!(
                "blob {} takes {} more bytes, not {}",
                self.plan.blob,
                self.room(),
                bytes.len()
            )));
        }
        while !bytes.is_empty() {
            if self.stripe.is_empty() {
                self.stripe = Vec::with_capacity(self.plan.scheme.shard_count() * CELL_BYTES as usize);
            }
            let in_page = self.stripe_plain % PAGE_BYTES;
            let (now, later) = bytes.split_at(bytes.len().min((PAGE_BYTES - in_page) as usize));
            self.stripe.extend_from_slice(now);
            self.stripe_plain += now.len() as u64;
            self.plain_len += now.len() as u64;
            bytes = later;
            if self.stripe_plain.is_multiple_of(PAGE_BYTES) {
                self.seal_page();
            }
            if self.stripe_plain == self.stripe_plain_max() {
                self.code_stripe(CELL_BYTES)?;
                if self.coded.len() == self.handed_max {
                    self.hand_on(None).await?;
                }
            }
        }
        Ok(())
    }

    /// Seals the page at the end of the stripe, whole or short.
    fn seal_page(&mut self) {
        let page = (self.plain_len - 1) / PAGE_BYTES;
        let in_page = (self.plain_len - 1) % PAGE_BYTES + 1;
        let start = self.stripe.len() - in_page as usize;
        self.stripe.resize(self.stripe.len() + TAG_BYTES as usize, 0);
        self.sealer.seal(page, &mut self.stripe[start..]);
    }

    /// Codes the stripe under way into cells of `cell_len`.
    fn code_stripe(&mut self, cell_len: u64) -> Result<(), StripeError> {
        let cell_len = cell_len as usize;
        let data = usize::from(self.plan.scheme.data);
        let mut stripe = std::mem::take(&mut self.stripe);
        self.stripe_plain = 0;
        stripe.resize(self.plan.scheme.shard_count() * cell_len, 0);
        let (cells, parity) = stripe.split_at_mut(data * cell_len);
        let cells: Vec<&[u8]> = cells.chunks_exact(cell_len).collect();
        let mut parity: Vec<&mut [u8]> = parity.chunks_exact_mut(cell_len).collect();
        self.codec.encode(&cells, &mut parity).map_err(|error| StripeError::Invalid(error.to_string()))?;
        for (hasher, cell) in self.hashers.iter_mut().zip(stripe.chunks_exact(cell_len)) {
            hasher.update(cell);
        }
        self.coded.push((Bytes::from(stripe), cell_len));
        Ok(())
    }

    /// Hands what is coded to the lanes; with the footer, it is the end.
    async fn hand_on(&mut self, footer: Option<&ShardFooter>) -> Result<(), StripeError> {
        let coded = std::mem::replace(&mut self.coded, Vec::with_capacity(self.handed_max));
        for (index, queue) in self.queues.iter_mut().enumerate() {
            let Some(lane) = queue else { continue };
            let cell = |(stripe, len): &(Bytes, usize)| stripe.slice(index * len..(index + 1) * len);
            let step = LaneStep { cells: coded.iter().map(cell).collect(), footer: footer.cloned() };
            if lane.send(step).await.is_err() {
                // The lane has ended and its answer says why.
                *queue = None;
            }
        }
        self.take_answers();
        self.check_quorum()
    }

    fn take_answers(&mut self) {
        while let Ok((index, result)) = self.answers.try_recv() {
            self.on_answer(index, result);
        }
    }

    fn on_answer(&mut self, index: usize, result: Result<(), PeerError>) {
        self.lanes.on_answer(index, result.is_ok());
        if let Err(error) = result {
            tracing::debug!(disk = %self.plan.disks[index], %error, "a shard was not written");
            self.last_failure = error.to_string();
            self.full += usize::from(matches!(error, PeerError::Full(_)));
            self.queues[index] = None;
        }
    }

    fn check_quorum(&self) -> Result<(), StripeError> {
        match self.lanes.verdict() {
            Verdict::Lost => Err(StripeError::QuorumLost {
                live: self.lanes.live(),
                need: usize::from(self.plan.scheme.data),
                last: self.last_failure.clone(),
                is_full: self.lanes.live() + self.full >= usize::from(self.plan.scheme.data),
            }),
            Verdict::Wait | Verdict::Durable => Ok(()),
        }
    }

    /// Sends what is left and returns once a quorum of shards is durable; the others go on by themselves.
    ///
    /// # Errors
    /// [`StripeError::QuorumLost`]; [`StripeError::Invalid`]: nothing was written.
    pub async fn finish(mut self) -> Result<WrittenBlob, StripeError> {
        let layout = BlobLayout::new(self.plan.scheme, self.plain_len)
            .ok_or_else(|| StripeError::Invalid(format!("blob {} is empty", self.plan.blob)))?;
        if self.stripe_plain > 0 {
            if !self.stripe_plain.is_multiple_of(PAGE_BYTES) {
                self.seal_page();
            }
            let tail = layout.stripe(layout.stripe_count() - 1);
            self.code_stripe(tail.cell_len)?;
        }
        let roots: Vec<Root> = self.hashers.iter().map(|hasher| *hasher.finalize().as_bytes()).collect();
        let root = blob_root(&roots);
        let footer = ShardFooter { blob_plain_len: self.plain_len, roots };
        self.hand_on(Some(&footer)).await?;
        while self.lanes.verdict() == Verdict::Wait {
            let Some((index, result)) = self.answers.recv().await else { break };
            self.on_answer(index, result);
        }
        self.take_answers();
        self.check_quorum()?;
        let missing = (0u8..).zip(&self.lanes.states).filter(|(_, lane)| **lane != Lane::Durable);
        Ok(WrittenBlob {
            plain_len: self.plain_len,
            root,
            missing: missing.map(|(index, _)| index).collect(),
        })
    }
}

/// Carries one shard to its disk. `None`: the writer gave up, and so does the lane.
async fn run_lane(
    peers: &dyn ShardPeers,
    disk: DiskId,
    header: ShardHeader,
    mut steps: mpsc::Receiver<LaneStep>,
) -> Option<Result<(), PeerError>> {
    let mut sink = match peers.put(disk, header).await {
        Ok(sink) => sink,
        Err(error) => return Some(Err(error)),
    };
    loop {
        let LaneStep { cells, footer } = steps.recv().await?;
        if let Err(error) = sink.send_all(cells).await {
            return Some(Err(error));
        }
        if let Some(footer) = footer {
            return Some(sink.finish(footer).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the order of answers, a write is durable exactly when k of its disks work, and the verdict
        /// falls as soon as a quorum is durable, too many failed, or nobody is left to answer.
        #[test]
        fn working_disks_decide_and_order_does_not(
            works in prop::collection::vec(any::<bool>(), 1..24),
            data in any::<prop::sample::Index>(),
            quorum in any::<prop::sample::Index>(),
            order in prop::collection::vec(any::<prop::sample::Index>(), 24),
        ) {
            let data = data.index(works.len()) + 1;
            let quorum = data + quorum.index(works.len() - data + 1);
            let mut lanes = Lanes::new(works.len(), data, quorum);
            let mut out: Vec<usize> = (0..works.len()).collect();
            for pick in &order[..works.len()] {
                let (good, bad) = (lanes.count(Lane::Durable), lanes.count(Lane::Failed));
                let undecided = works.len() - bad >= data && good < quorum && !out.is_empty();
                prop_assert_eq!(lanes.verdict() == Verdict::Wait, undecided);
                let index = out.swap_remove(pick.index(out.len()));
                lanes.on_answer(index, works[index]);
                lanes.on_answer(index, !works[index]);
            }
            let enough = works.iter().filter(|works| **works).count() >= data;
            prop_assert_eq!(lanes.verdict(), if enough { Verdict::Durable } else { Verdict::Lost });
        }
    }
}
