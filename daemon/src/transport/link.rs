//! One live connection to a peer: its streams, its silence, the bytes it may make this node hold.
//!
//! Whoever waits for a peer waits through [`Link::wait`], which notices a dead one long before QUIC's idle
//! timeout does: a peer that has not been heard for a while gets a probe, which any living QUIC stack
//! acknowledges at once, and a connection whose probe stays unanswered is closed for all who wait on it.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::poll;
use makai_erasure::NodeId;
use quinn::{
    ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, StoppedError, VarInt, WriteError,
};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};

use super::ConnectionKind;
use super::frame::{
    self, ANSWER_HEAD_BYTES, AnswerHead, FrameError, REQUEST_HEAD_BYTES, RequestHead, Status,
};
use crate::clock;

/// Why a connection was closed, as the peer reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    /// The node stops.
    Stopping = 0,
    /// The peer may not open this kind of connection.
    NotAdmitted = 1,
    /// No protocol version in common; the reason lists those spoken here.
    Version = 2,
    /// The peer was silent for too long.
    Silent = 3,
    /// The peer holds too many connections; a newer one stays.
    Replaced = 4,
}

/// Why a stream was reset or refused, as the peer reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    /// Whoever asked no longer waits.
    Cancelled = 1,
    Malformed = 2,
    /// Nothing moved for too long.
    Stalled = 3,
    NotAdmitted = 4,
    /// The answer was given early; the rest of the request is not wanted.
    Answered = 5,
    /// The node stops and did not look at the request.
    Stopping = 6,
}

impl Close {
    pub(super) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

impl Reset {
    pub(super) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// Why a stream did not go as it should.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum StreamFault {
    #[error("{0}")]
    Connection(#[from] ConnectionError),
    #[error("the peer was silent and its connection was closed")]
    Silent,
    #[error("nothing moved for {} ms", .0.as_millis())]
    Stalled(Duration),
    #[error("the peer ended the stream with code {0}")]
    Ended(VarInt),
    #[error("the message {0}")]
    Frame(#[from] FrameError),
    #[error("the message ends early")]
    Truncated,
    #[error("the message goes on after its end")]
    Trailing,
    #[error("the message does not decode: {0}")]
    Body(String),
}

impl StreamFault {
    /// Whether the peer broke the rules of the protocol, rather than the way to it failing.
    pub(super) fn is_malformed(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Truncated | Self::Trailing | Self::Body(_))
    }

    /// What to tell the peer when its stream is given up for this.
    pub(super) fn reset(&self) -> Reset {
        match self {
            fault if fault.is_malformed() => Reset::Malformed,
            Self::Stalled(_) => Reset::Stalled,
            _ => Reset::Cancelled,
        }
    }
}

impl From<WriteError> for StreamFault {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Ended(code),
            WriteError::ConnectionLost(error) => Self::Connection(error),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Truncated,
        }
    }
}

impl From<ReadError> for StreamFault {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Ended(code),
            ReadError::ConnectionLost(error) => Self::Connection(error),
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                Self::Truncated
            }
        }
    }
}

impl From<ReadExactError> for StreamFault {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => Self::Truncated,
            ReadExactError::ReadError(error) => error.into(),
        }
    }
}

/// Why waiting ended without what was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// The time allowed is over.
    TooLong,
    /// The peer is taken for dead; the connection is closed.
    Silent,
}

/// The sending half of a stream. Dropped unfinished, it tells the peer to forget what came.
pub(super) struct Sending {
    stream: SendStream,
    is_closed: bool,
}

impl Sending {
    pub(super) fn new(stream: SendStream) -> Self {
        Self { stream, is_closed: false }
    }

    /// Everything has been written.
    pub(super) fn finish(&mut self) {
        // Fails only where the peer already gave up the stream, which its answer tells better.
        let _ = self.stream.finish();
        self.is_closed = true;
    }

    /// Returns once the peer has acknowledged everything, or wants no more.
    pub(super) fn delivered(&self) -> impl Future<Output = Result<(), ConnectionError>> + use<> {
        let stopped = self.stream.stopped();
        async move {
            match stopped.await {
                Err(StoppedError::ConnectionLost(error)) => Err(error),
                _ => Ok(()),
            }
        }
    }

    pub(super) fn reset(&mut self, why: Reset) {
        let _ = self.stream.reset(why.code());
        self.is_closed = true;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.is_closed {
            self.reset(Reset::Cancelled);
        }
    }
}

/// Bytes held for peers at one time, over all of them or for one connection.
pub(super) struct ByteGate {
    units: Semaphore,
    units_max: u32,
    used_peak: AtomicU32,
}

/// What the gates count in: fits 4 TiB into their 32 bits.
const GATE_UNIT_BYTES: u64 = 1024;

impl ByteGate {
    pub(super) fn new(bytes_max: u64) -> Self {
        let units_max = u32::try_from(bytes_max.div_ceil(GATE_UNIT_BYTES)).unwrap_or(u32::MAX).max(1);
        Self { units: Semaphore::new(units_max as usize), units_max, used_peak: AtomicU32::new(0) }
    }

    /// Waits until `bytes` more may be held. What is larger than the whole gate passes alone.
    pub(super) async fn enter(&self, bytes: u64) -> SemaphorePermit<'_> {
        let units =
            u32::try_from(bytes.div_ceil(GATE_UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, self.units_max);
        let permit = self.units.acquire_many(units).await.expect("the gate is never closed");
        self.used_peak.fetch_max(self.used_units(), Ordering::Relaxed);
        permit
    }

    fn used_units(&self) -> u32 {
        self.units_max
            - u32::try_from(self.units.available_permits()).unwrap_or(self.units_max).min(self.units_max)
    }

    pub(super) fn used_bytes(&self) -> u64 {
        u64::from(self.used_units()) * GATE_UNIT_BYTES
    }

    pub(super) fn used_bytes_peak(&self) -> u64 {
        u64::from(self.used_peak.load(Ordering::Relaxed)) * GATE_UNIT_BYTES
    }
}

/// Bounds on waiting for a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Nothing moved on a stream for this long: it is given up.
    pub(super) stall: Duration,
    /// A probe unanswered for this long: the connection is given up.
    pub(super) silence: Duration,
}

/// How often a waiter looks whether the peer still lives.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Silence after which a peer is probed. A healthy peer that works on a long request is silent too.
const PROBE_AFTER: Duration = Duration::from_millis(500);
/// A time limit shorter than this, or than a few round trips, says nothing about the peer's life.
const SUSPECT_AFTER_MIN: Duration = Duration::from_millis(200);
/// Slowest transfer that is still worth waiting for, whatever its steps.
const TRANSFER_BYTES_PER_SEC_MIN: u64 = 64 * 1024;

pub(super) struct Link {
    pub(super) peer: NodeId,
    pub(super) kind: ConnectionKind,
    pub(super) connection: quinn::Connection,
    /// This node dialled: the address was its choice.
    pub(super) is_dialled: bool,
    pub(super) opened_at: Instant,
    /// What this one connection may make the node hold.
    pub(super) gate: ByteGate,
    pub(super) patience: Patience,
    heard: Mutex<Heard>,
    pub(super) requests_answered: AtomicU64,
}

/// When the peer was last known to have sent something.
struct Heard {
    datagrams: u64,
    since: Instant,
    probed_at: Option<Instant>,
}

impl Link {
    pub(super) fn new(
        peer: NodeId,
        kind: ConnectionKind,
        connection: quinn::Connection,
        is_dialled: bool,
        held_bytes_max: u64,
        patience: Patience,
    ) -> Arc<Self> {
        let opened_at = clock::timer();
        Arc::new(Self {
            peer,
            kind,
            connection,
            is_dialled,
            opened_at,
            gate: ByteGate::new(held_bytes_max),
            patience,
            heard: Mutex::new(Heard { datagrams: 0, since: opened_at, probed_at: None }),
            requests_answered: AtomicU64::new(0),
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    pub(super) fn close(&self, why: Close, reason: &str) {
        self.connection.close(why.code(), reason.as_bytes());
    }

    fn received_datagrams(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    /// Waits for `work`, at most `limit`, and less if the peer turns out to be dead.
    pub(super) async fn wait<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Result<T, Waited> {
        let mut work = pin!(work);
        if let Poll::Ready(done) = poll!(&mut work) {
            return Ok(done);
        }
        let begun = clock::timer();
        let deadline = begun + limit;
        let received_before = self.received_datagrams();
        let mut check = pin!(sleep_until(deadline.min(begun + CHECK_INTERVAL)));
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = &mut check => {}
            }
            let now = clock::timer();
            if self.is_silent(now) {
                self.close(Close::Silent, "no answer to a probe");
                return Err(Waited::Silent);
            }
            if now >= deadline {
                let suspicious = SUSPECT_AFTER_MIN.max(self.connection.rtt() * 4);
                if limit >= suspicious && self.received_datagrams() == received_before {
                    self.close(Close::Silent, "nothing came for as long as a request could wait");
                    return Err(Waited::Silent);
                }
                return Err(Waited::TooLong);
            }
            check.as_mut().reset(deadline.min(now + CHECK_INTERVAL));
        }
    }

    /// Waits for one step of a stream, as long as a step may take.
    pub(super) async fn step<T, E: Into<StreamFault>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, StreamFault> {
        match self.wait(self.patience.stall, work).await {
            Ok(done) => done.map_err(Into::into),
            Err(Waited::TooLong) => Err(StreamFault::Stalled(self.patience.stall)),
            Err(Waited::Silent) => Err(StreamFault::Silent),
        }
    }

    /// Probes a peer that was not heard for a while; says whether one of the probes stayed unanswered too long.
    fn is_silent(&self, now: Instant) -> bool {
        let datagrams = self.received_datagrams();
        let mut heard = self.heard.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if datagrams != heard.datagrams {
            *heard = Heard { datagrams, since: now, probed_at: None };
            return false;
        }
        match heard.probed_at {
            Some(probed_at) => now >= probed_at + self.patience.silence.max(self.connection.rtt() * 6),
            None => {
                if now >= heard.since + PROBE_AFTER {
                    // A datagram needs no stream and no credit, and is acknowledged by the peer's QUIC itself.
                    let _ = self.connection.send_datagram(Bytes::from_static(b"?"));
                    heard.probed_at = Some(now);
                }
                false
            }
        }
    }

    /// Writes all of `parts`; each piece that the peer takes renews its time.
    pub(super) async fn write(&self, sending: &mut Sending, parts: &mut [Bytes]) -> Result<(), StreamFault> {
        let mut done = 0;
        let deadline = self.transfer_deadline(parts.iter().map(|part| part.len() as u64).sum());
        while done < parts.len() {
            done += self.step(sending.stream.write_chunks(&mut parts[done..])).await?.chunks;
            self.check_deadline(deadline)?;
        }
        Ok(())
    }

    pub(super) async fn read_exact<const N: usize>(
        &self,
        recv: &mut RecvStream,
    ) -> Result<[u8; N], StreamFault> {
        let mut bytes = [0; N];
        self.step(recv.read_exact(&mut bytes)).await?;
        Ok(bytes)
    }

    /// As [`read_exact`](Self::read_exact), of a peer that may have nothing to say for as long as `limit`.
    pub(super) async fn read_exact_within<const N: usize>(
        &self,
        limit: Duration,
        recv: &mut RecvStream,
    ) -> Result<[u8; N], StreamFault> {
        let mut bytes = [0; N];
        match self.wait(limit, recv.read_exact(&mut bytes)).await {
            Ok(done) => done?,
            Err(Waited::TooLong) => return Err(StreamFault::Stalled(limit)),
            Err(Waited::Silent) => return Err(StreamFault::Silent),
        }
        Ok(bytes)
    }

    /// Reads a body of `length` bytes. Up to `trusted` of them are set aside at once, because the caller asked for
    /// them or has accounted for them; beyond, memory grows with what has come, not with what was announced.
    pub(super) async fn read_body(
        &self,
        recv: &mut RecvStream,
        length: u32,
        trusted: u32,
    ) -> Result<Bytes, StreamFault> {
        const FIRST_BYTES: usize = 64 * 1024;
        let deadline = self.transfer_deadline(length.into());
        let mut body = BytesMut::with_capacity(length.min(trusted) as usize);
        let length = length as usize;
        while body.len() < length {
            if body.len() == body.capacity() {
                body.reserve(body.len().max(FIRST_BYTES).min(length - body.len()));
            }
            let rest = (length - body.len()) as u64;
            let mut piece = (&mut *recv).take(rest);
            let read = self.wait(self.patience.stall, piece.read_buf(&mut body)).await;
            match read {
                Ok(Ok(0)) => return Err(StreamFault::Truncated),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(io_fault(error)),
                Err(Waited::TooLong) => return Err(StreamFault::Stalled(self.patience.stall)),
                Err(Waited::Silent) => return Err(StreamFault::Silent),
            }
            self.check_deadline(deadline)?;
        }
        Ok(body.freeze())
    }

    /// The stream must end here.
    pub(super) async fn read_end(&self, recv: &mut RecvStream) -> Result<(), StreamFault> {
        match self.step(recv.read_chunk(1, true)).await? {
            None => Ok(()),
            Some(_) => Err(StreamFault::Trailing),
        }
    }

    /// Opens a stream and writes the head and body of a request; the stream is left open.
    pub(super) async fn open(&self, kind: u16, body: Bytes) -> Result<(Sending, RecvStream), OpenFault> {
        let (send, recv) = self.connection.open_bi().await.map_err(OpenFault::NotSent)?;
        let mut sending = Sending::new(send);
        let length = u32::try_from(body.len()).map_err(|_| OpenFault::Broken(StreamFault::Truncated))?;
        let head = RequestHead { kind, length }.encode();
        let mut parts = [Bytes::copy_from_slice(&head), body];
        self.write(&mut sending, &mut parts).await.map_err(OpenFault::Broken)?;
        Ok((sending, recv))
    }

    pub(super) async fn read_request_head(
        &self,
        recv: &mut RecvStream,
        length_max: u32,
    ) -> Result<RequestHead, StreamFault> {
        let bytes: [u8; REQUEST_HEAD_BYTES] = self.read_exact(recv).await?;
        Ok(RequestHead::decode(bytes, length_max)?)
    }

    /// Reads a whole answer, however long its first byte takes: the caller bounds that.
    pub(super) async fn read_answer(
        &self,
        recv: &mut RecvStream,
        done_length_max: u32,
        trusted: u32,
    ) -> Result<(Status, Bytes), StreamFault> {
        let mut head = [0; ANSWER_HEAD_BYTES];
        recv.read_exact(&mut head).await.map_err(StreamFault::from)?;
        let AnswerHead { status, length } = AnswerHead::decode(head, done_length_max)?;
        let body = self.read_body(recv, length, trusted).await?;
        self.read_end(recv).await?;
        self.requests_answered.fetch_add(1, Ordering::Relaxed);
        Ok((status, body))
    }

    /// Writes a whole answer and ends the stream.
    pub(super) async fn answer(
        &self,
        sending: &mut Sending,
        status: Status,
        body: Bytes,
    ) -> Result<(), StreamFault> {
        let length =
            u32::try_from(body.len()).map_err(|_| FrameError::TooLong { length: u32::MAX, max: u32::MAX })?;
        let head = AnswerHead { status, length }.encode();
        self.write(sending, &mut [Bytes::copy_from_slice(&head), body]).await?;
        sending.finish();
        Ok(())
    }

    pub(super) async fn refuse(&self, sending: &mut Sending, reason: &str) -> Result<(), StreamFault> {
        let reason = Bytes::copy_from_slice(frame::reason_bytes(reason));
        self.answer(sending, Status::Refused, reason).await
    }

    /// When a transfer that keeps moving, however slowly, is too slow all the same.
    fn transfer_deadline(&self, bytes: u64) -> Instant {
        clock::timer() + self.patience.stall + Duration::from_secs(bytes / TRANSFER_BYTES_PER_SEC_MIN)
    }

    fn check_deadline(&self, deadline: Instant) -> Result<(), StreamFault> {
        if clock::timer() <= deadline { Ok(()) } else { Err(StreamFault::Stalled(self.patience.stall)) }
    }
}

/// Why a request could not be put on its way.
#[derive(Debug)]
pub(super) enum OpenFault {
    /// The peer has seen none of it.
    NotSent(ConnectionError),
    /// The peer may have seen it.
    Broken(StreamFault),
}

/// The fault inside an error that went through `tokio::io`.
fn io_fault(error: std::io::Error) -> StreamFault {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ReadError>()) {
        Some(read) => read.clone().into(),
        None => StreamFault::Truncated,
    }
}
