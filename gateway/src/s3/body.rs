//! Bodies on their way in and out.
//!
//! ```text
//! in    socket ─ Inbound (framing, stalls, truncation) ─> s3s (signatures) ─ Intake (length, checksum) ─> objects
//! out   objects ─ Outgoing (length) ─> s3s ─> socket
//! ```
//!
//! Always: a body that is shorter or longer than announced, or that fails a check, yields an error before its last
//! bytes reach `objects`; nothing here holds more than what one read of the socket brought; a response that cannot be
//! finished breaks its connection and never looks whole.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt as _};
use http::{HeaderName, HeaderValue};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use makai_ops::metrics as names;
use makai_raft::facts::audit::Deed;
use md5::{Digest as _, Md5};
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3ErrorCode, S3Result, StdError, s3_error};
use tokio::time::{Instant, Sleep};

use super::access::Peer;
use super::checksums::{Hasher, Promise};
use super::chunked::{Framing, FramingError, SIGNED_CHUNK_BYTES_MAX};
use super::errors::custom;
use crate::audit::Asker;
use crate::objects::{BodyError, Download, ObjectsError, Upstream};

/// Bytes that one PUT or one part may bring, as S3 has it.
pub(super) const PUT_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;

/// Notices that nothing has moved for too long. Costs a clock reading per wait, not a timer.
#[derive(Debug)]
pub(super) struct Stall {
    limit: Duration,
    waiting_since: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, waiting_since: None, sleep: None }
    }

    pub(super) fn on_progress(&mut self) {
        self.waiting_since = None;
    }

    /// To be called where one must wait. Ready once the wait has lasted for the limit.
    #[expect(
        clippy::disallowed_methods,
        reason = "measures the wait of a shell; decides nothing that is agreed"
    )]
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = *self.waiting_since.get_or_insert_with(Instant::now) + self.limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            std::task::ready!(sleep.as_mut().poll(cx));
            // The timer of an earlier wait may fire first.
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

/// What went wrong with a request's body.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    Truncated,
    Stalled(Duration),
    Framing(FramingError),
    /// Code and message.
    Digest(S3ErrorCode, String),
}

impl Fault {
    pub(super) fn error(&self) -> S3Error {
        match self {
            Self::Truncated | Self::Framing(FramingError::Truncated) => {
                incomplete("The request's body ended early.")
            }
            Self::Stalled(limit) => s3_error!(
                RequestTimeout,
                "Your socket connection to the server was not read from or written to for {} seconds. Send the \
                 request again.",
                limit.as_secs()
            ),
            Self::Framing(FramingError::Malformed) => {
                s3_error!(
                    InvalidRequest,
                    "The body is not in the aws-chunked format that its headers announce."
                )
            }
            Self::Framing(FramingError::ChunkTooLarge(size)) => s3_error!(
                InvalidRequest,
                "A signed chunk has {size} bytes: send chunks of at most {SIGNED_CHUNK_BYTES_MAX} bytes."
            ),
            Self::Digest(code, message) => S3Error::with_message(code.clone(), message.clone()),
        }
    }
}

/// What is learnt of a request on its way, kept where every layer finds it.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) operation: OnceLock<String>,
    /// For logs: a canonical id or an ARN.
    pub(super) requester: OnceLock<String>,
    /// Of operations that are not S3's: `iam`, `sts`.
    pub(super) service: OnceLock<&'static str>,
    /// What is administered, as an ARN.
    pub(super) target: OnceLock<String>,
    /// Where the request came from.
    pub(super) from: Option<IpAddr>,
    fault: Mutex<Option<Fault>>,
    leftover: Mutex<Option<Incoming>>,
    headers: Mutex<Vec<(HeaderName, HeaderValue)>>,
}

impl Asker for Notes {
    fn deed(&self) -> Deed {
        let operation = self.operation.get().map_or("", String::as_str);
        Deed {
            by: self.requester.get().cloned().unwrap_or_else(|| "anonymous".to_owned()),
            from: self.from.map(|from| from.to_string()).unwrap_or_default(),
            action: format!("{}:{operation}", self.service.get().unwrap_or(&"s3")),
            target: self.target.get().cloned().unwrap_or_default(),
        }
    }
}

impl Notes {
    pub(super) fn from_peer(peer: Option<&Peer>) -> Self {
        let from = peer.and_then(|peer| peer.address).map(|address| address.ip().to_canonical());
        Self { from, ..Self::default() }
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the answer carry headers, if it is a success.
    pub(super) fn say(&self, headers: Vec<(HeaderName, HeaderValue)>) {
        self.headers.lock().unwrap_or_else(PoisonError::into_inner).extend(headers);
    }

    pub(super) fn take_headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        std::mem::take(&mut *self.headers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The body, where it was given up before its end.
    pub(super) fn take_leftover(&self) -> Option<Incoming> {
        self.leftover.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The digests of a small body that the operation itself does not check.
pub(super) struct Digests {
    promise: Promise,
    md5: Md5,
    hasher: Option<Hasher>,
}

impl Digests {
    pub(super) fn new(promise: Promise) -> Self {
        let hasher = promise.algorithm().map(Hasher::new);
        Self { promise, md5: Md5::new(), hasher }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
    }

    fn check(self) -> Result<(), Fault> {
        let checked = self.promise.check(self.md5.finalize().into(), self.hasher.map(Hasher::finish));
        checked.map(drop).map_err(|error| {
            Fault::Digest(error.code().clone(), error.message().unwrap_or_default().to_owned())
        })
    }
}

/// A request's body as it comes from the socket.
pub(super) struct Inbound {
    body: Option<Incoming>,
    notes: Arc<Notes>,
    stall: Stall,
    framing: Option<Framing>,
    digests: Option<Digests>,
    ready: VecDeque<Bytes>,
    /// Whether unread bytes are worth reading: the client sends them without being asked to.
    keeps_leftover: bool,
}

impl Inbound {
    pub(super) fn new(
        body: Incoming,
        notes: Arc<Notes>,
        stall_after: Duration,
        framing: Option<Framing>,
        digests: Option<Digests>,
        keeps_leftover: bool,
    ) -> Self {
        let (stall, ready) = (Stall::new(stall_after), VecDeque::new());
        Self { body: Some(body), notes, stall, framing, digests, ready, keeps_leftover }
    }

    fn fail(&mut self, fault: Fault) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        self.ready.clear();
        // Bytes that follow are of no use; a broken connection brings none.
        if !matches!(fault, Fault::Framing(_)) {
            self.body = None;
        }
        let error = fault.error();
        *self.notes.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
        Poll::Ready(Some(Err(error.into())))
    }

    fn on_data(&mut self, data: Bytes) -> Result<(), Fault> {
        if let Some(digests) = &mut self.digests {
            digests.update(&data);
        }
        match &mut self.framing {
            Some(framing) => framing.push(data, &mut self.ready).map_err(Fault::Framing),
            None => {
                self.ready.push_back(data);
                Ok(())
            }
        }
    }

    fn on_end(&mut self) -> Result<(), Fault> {
        self.body = None;
        if let Some(framing) = self.framing.take() {
            framing.finish().map_err(Fault::Framing)?;
        }
        self.digests.take().map_or(Ok(()), Digests::check)
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            let Some(body) = &mut this.body else { return Poll::Ready(None) };
            let outcome = match Pin::new(body).poll_frame(cx) {
                Poll::Pending => {
                    std::task::ready!(this.stall.poll(cx));
                    Err(Fault::Stalled(this.stall.limit))
                }
                Poll::Ready(Some(Ok(frame))) => {
                    this.stall.on_progress();
                    frame.into_data().map_or(Ok(()), |data| this.on_data(data))
                }
                Poll::Ready(Some(Err(_))) => Err(Fault::Truncated),
                Poll::Ready(None) => this.on_end(),
            };
            if let Err(fault) = outcome {
                return this.fail(fault);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.body, &self.framing) {
            (Some(body), None) if self.ready.is_empty() => body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| self.keeps_leftover && !body.is_end_stream()) {
            *self.notes.leftover.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

/// The bytes of a new object or part, with all that is checked of them.
pub(super) fn upstream(
    body: Option<StreamingBlob>,
    length: Option<i64>,
    promise: Promise,
    notes: Option<Arc<Notes>>,
) -> S3Result<Upstream> {
    let size = length
        .and_then(|length| u64::try_from(length).ok())
        .ok_or_else(|| s3_error!(MissingContentLength, "You must provide the Content-Length HTTP header."))?;
    if size > PUT_BYTES_MAX {
        return Err(s3_error!(
            EntityTooLarge,
            "Your proposed upload of {size} bytes exceeds the {PUT_BYTES_MAX} bytes of a single request: use a \
             multipart upload."
        ));
    }
    Ok(intake(body, Expected::Exactly(size), promise, notes))
}

/// Bytes that the file of a form may have.
#[derive(Debug, Clone)]
pub(super) struct FileBounds(pub(super) RangeInclusive<u64>);

/// The file of a form, whose size nobody announces.
pub(super) fn file_upstream(
    body: Option<StreamingBlob>,
    FileBounds(bounds): FileBounds,
    promise: Promise,
    notes: Option<Arc<Notes>>,
) -> Upstream {
    let (least, most) = bounds.into_inner();
    intake(body, Expected::Within(least..=most.min(PUT_BYTES_MAX)), promise, notes)
}

fn intake(
    body: Option<StreamingBlob>,
    expected: Expected,
    promise: Promise,
    notes: Option<Arc<Notes>>,
) -> Upstream {
    let size = match expected {
        Expected::Exactly(size) => Some(size),
        Expected::Within(_) => None,
    };
    let outcome = Arc::new(Mutex::new(None));
    let intake = Intake {
        body,
        has_ended: false,
        expected,
        seen: 0,
        hasher: promise.algorithm().map(Hasher::new),
        last: None,
        outcome: Arc::clone(&outcome),
        notes,
    };
    let check = move |md5| {
        let computed = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        promise.check(md5, computed).map_err(BodyError::from)
    };
    Upstream { body: intake.boxed(), size, check: Box::new(check) }
}

/// How many bytes shall come.
enum Expected {
    Exactly(u64),
    Within(RangeInclusive<u64>),
}

impl Expected {
    /// Why `seen` bytes are too many.
    fn excess(&self, seen: u64) -> Option<S3Error> {
        match self {
            Self::Exactly(size) if seen > *size => {
                Some(incomplete(format!("The request's body is longer than the {size} bytes announced.")))
            }
            Self::Within(range) if seen > *range.end() => Some(s3_error!(
                EntityTooLarge,
                "Your proposed upload exceeds the maximum allowed object size of {} bytes.",
                range.end()
            )),
            Self::Exactly(_) | Self::Within(_) => None,
        }
    }

    /// Why `seen` bytes are too few.
    fn lack(&self, seen: u64) -> Option<S3Error> {
        match self {
            Self::Exactly(size) if seen < *size => {
                Some(incomplete(format!("The request's body has {seen} of the {size} bytes announced.")))
            }
            Self::Within(range) if seen < *range.start() => Some(s3_error!(
                EntityTooSmall,
                "Your proposed upload is smaller than the minimum allowed object size of {} bytes.",
                range.start()
            )),
            Self::Exactly(_) | Self::Within(_) => None,
        }
    }

    /// Whether more bytes must come after `seen`.
    fn goes_on(&self, seen: u64) -> bool {
        matches!(self, Self::Exactly(size) if seen < *size)
    }
}

/// Counts and hashes what the client sends. Its last bytes are held back until the end is seen to be right.
struct Intake {
    body: Option<StreamingBlob>,
    has_ended: bool,
    expected: Expected,
    seen: u64,
    hasher: Option<Hasher>,
    last: Option<Bytes>,
    outcome: Arc<Mutex<Option<String>>>,
    notes: Option<Arc<Notes>>,
}

impl Intake {
    fn fail(&mut self, error: S3Error) -> Poll<Option<Result<Bytes, BodyError>>> {
        self.has_ended = true;
        self.body = None;
        self.last = None;
        Poll::Ready(Some(Err(error.into())))
    }

    fn on_end(&mut self) -> Poll<Option<Result<Bytes, BodyError>>> {
        if let Some(error) = self.expected.lack(self.seen) {
            return self.fail(error);
        }
        self.has_ended = true;
        self.body = None;
        if let Some(hasher) = self.hasher.take() {
            *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(hasher.finish());
        }
        Poll::Ready(self.last.take().map(Ok))
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        metrics::counter!(names::GATEWAY_RECEIVED_BYTES).increment(self.seen);
    }
}

impl Stream for Intake {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if this.has_ended {
                return Poll::Ready(None);
            }
            let Some(body) = &mut this.body else { return this.on_end() };
            match std::task::ready!(Pin::new(body).poll_next(cx)) {
                None => return this.on_end(),
                Some(Err(error)) => {
                    let fault = this.notes.as_ref().and_then(|notes| notes.fault());
                    return this.fail(match (fault, error.downcast::<S3Error>()) {
                        (Some(fault), _) => fault.error(),
                        (None, Ok(error)) => *error,
                        (None, Err(error)) => explain(&error),
                    });
                }
                Some(Ok(bytes)) => {
                    this.seen += bytes.len() as u64;
                    if let Some(error) = this.expected.excess(this.seen) {
                        return this.fail(error);
                    }
                    if let Some(hasher) = &mut this.hasher {
                        hasher.update(&bytes);
                    }
                    if bytes.is_empty() {
                        continue;
                    }
                    if this.expected.goes_on(this.seen) {
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                    if let Some(before) = this.last.replace(bytes) {
                        return Poll::Ready(Some(Ok(before)));
                    }
                }
            }
        }
    }
}

fn incomplete(message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    S3Error::with_message(S3ErrorCode::IncompleteBody, message)
}

pub(super) fn payload_mismatch() -> S3Error {
    custom(
        "XAmzContentSHA256Mismatch",
        400,
        "The provided 'x-amz-content-sha256' header does not match what was computed: the body changed on the way.",
    )
}

/// What `s3s` found wrong with a body. Its error types are private: their names in the text are what tells.
fn explain(error: &StdError) -> S3Error {
    let text = error.to_string();
    if text.contains("Sha256Mismatch") {
        payload_mismatch()
    } else if text.contains("SignatureMismatch") {
        s3_error!(SignatureDoesNotMatch, "The signature of a chunk does not match its bytes.")
    } else if ["FormatError", "TooLarge", "TooMany"].iter().any(|name| text.contains(name)) {
        Fault::Framing(FramingError::Malformed).error()
    } else {
        incomplete("The request's body is not as long as its headers say.")
    }
}

/// The body of an answer.
pub(super) fn outgoing(download: Download) -> StreamingBlob {
    let remaining = download.range.end.saturating_sub(download.range.start);
    let outgoing = Outgoing { body: download.body, size: remaining, remaining };
    StreamingBlob::from(s3s::Body::http_body_unsync(outgoing))
}

struct Outgoing {
    body: BoxStream<'static, Result<Bytes, ObjectsError>>,
    size: u64,
    remaining: u64,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        metrics::counter!(names::GATEWAY_SENT_BYTES).increment(self.size - self.remaining);
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        if this.remaining == 0 {
            return Poll::Ready(None);
        }
        let error: StdError = match std::task::ready!(this.body.poll_next_unpin(cx)) {
            Some(Ok(bytes)) if bytes.len() as u64 <= this.remaining => {
                this.remaining -= bytes.len() as u64;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Some(Ok(_)) => "the object has more bytes than its answer announced".into(),
            Some(Err(error)) => error.into(),
            None => "the object has fewer bytes than its answer announced".into(),
        };
        tracing::error!(%error, remaining = this.remaining, "an answer breaks off");
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures::stream;
    use http::HeaderMap;
    use http_body_util::BodyExt;
    use makai_raft::facts::Timestamp;
    use makai_raft::facts::object::{Checksum, ObjectHead, ObjectHeaders};
    use makai_raft::facts::version::Versioning;

    use super::*;

    fn blob(pieces: Vec<Result<&'static [u8], io::Error>>) -> Option<StreamingBlob> {
        let pieces = pieces.into_iter().map(|piece| piece.map(Bytes::from_static));
        Some(StreamingBlob::wrap(stream::iter(pieces.collect::<Vec<_>>())))
    }

    /// Reads as `objects` does; gives the bytes that arrived before the verdict, and the verdict.
    async fn read(
        body: Option<StreamingBlob>,
        length: i64,
        promise: Promise,
    ) -> (Vec<u8>, Result<Option<Checksum>, S3ErrorCode>) {
        let code = |error: BodyError| error.downcast::<S3Error>().unwrap().code().clone();
        let mut upstream = upstream(body, Some(length), promise, None).unwrap();
        let mut bytes = Vec::new();
        while let Some(piece) = upstream.body.next().await {
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(error) => return (bytes, Err(code(error))),
            }
        }
        let md5 = Md5::digest(&bytes).into();
        (bytes, (upstream.check)(md5).map_err(code))
    }

    #[tokio::test]
    async fn a_body_of_the_length_announced_passes() {
        let none = Promise::default;
        assert_eq!(
            read(blob(vec![Ok(b"he"), Ok(b""), Ok(b"llo")]), 5, none()).await,
            (b"hello".to_vec(), Ok(None))
        );
        assert_eq!(read(blob(vec![]), 0, none()).await, (vec![], Ok(None)));
        assert_eq!(read(None, 0, none()).await, (vec![], Ok(None)));
    }

    #[tokio::test]
    async fn a_body_of_another_length_never_shows_its_end() {
        for (pieces, length) in [
            (vec![Ok(b"he".as_slice()), Ok(b"llo")], 6),
            (vec![Ok(b"he"), Ok(b"llo")], 4),
            (vec![Ok(b"he"), Ok(b"llo"), Ok(b"!")], 5),
            (vec![Ok(b"he"), Err(io::ErrorKind::ConnectionReset.into())], 5),
        ] {
            let (bytes, verdict) = read(blob(pieces), length, Promise::default()).await;
            assert_eq!(verdict, Err(S3ErrorCode::IncompleteBody));
            assert!((bytes.len() as i64) < length.max(5));
        }
    }

    #[tokio::test]
    async fn what_is_hashed_is_what_arrived() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-sdk-checksum-algorithm", "CRC32C".parse().unwrap());
        let promise = Promise::read(&headers, None).unwrap();
        let (_, kept) = read(blob(vec![Ok(b"1234"), Ok(b"56789")]), 9, promise.clone()).await;
        assert_eq!(kept.unwrap().unwrap().value, "4waSgw==");
        let (_, kept) = read(None, 0, promise).await;
        assert_eq!(kept.unwrap().unwrap().value, "AAAAAA==");
    }

    #[test]
    fn a_length_must_be_given_and_fit() {
        let code = |length| upstream(None, length, Promise::default(), None).err().unwrap().code().clone();
        assert_eq!(code(None), S3ErrorCode::MissingContentLength);
        assert_eq!(code(Some(-1)), S3ErrorCode::MissingContentLength);
        assert_eq!(code(Some(PUT_BYTES_MAX as i64 + 1)), S3ErrorCode::EntityTooLarge);
    }

    fn download(pieces: Vec<&'static [u8]>, length: u64) -> Download {
        let head = ObjectHead {
            key: "k".into(),
            version: 1,
            inode: 1,
            modified_at: Timestamp(0),
            size: length,
            etag: String::new(),
            headers: ObjectHeaders::default(),
            checksum: None,
            part_count: 0,
            has_version_id: false,
            file: None,
        };
        let body = stream::iter(pieces.into_iter().map(|piece| Ok(Bytes::from_static(piece)))).boxed();
        Download { head, range: 0..length, body, versioning: Versioning::Unversioned }
    }

    #[tokio::test]
    async fn an_answer_is_whole_or_breaks() {
        let collect = async |pieces, length| {
            let body = s3s::Body::from(outgoing(download(pieces, length)));
            assert_eq!(Body::size_hint(&body).exact(), Some(length));
            BodyExt::collect(body).await.map(|all| all.to_bytes())
        };
        assert_eq!(collect(vec![b"he", b"llo"], 5).await.unwrap(), "hello");
        assert_eq!(collect(vec![], 0).await.unwrap(), "");
        assert!(collect(vec![b"he"], 5).await.is_err());
        assert!(collect(vec![b"he", b"llo!"], 5).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    #[expect(clippy::disallowed_methods, reason = "reads the paused clock of this test")]
    async fn only_an_unbroken_wait_is_a_stall() {
        let mut stall = Stall::new(Duration::from_secs(10));
        let begun = Instant::now();
        for _ in 0..5 {
            let nine =
                tokio::time::timeout(Duration::from_secs(9), std::future::poll_fn(|cx| stall.poll(cx)));
            assert!(nine.await.is_err());
            stall.on_progress();
        }
        std::future::poll_fn(|cx| stall.poll(cx)).await;
        assert_eq!(begun.elapsed().as_secs(), 5 * 9 + 10);
    }
}
