//! One connection, from its first byte to its last.
//!
//! ```text
//! at rest: a socket alone ─ bytes come ─> HTTP/1.1 or HTTP/2, by the first of them ─ served ─┐
//!     ^──────── HTTP/1.1, and quiet for REST_AFTER since its last answer has gone ───────────┘
//! ```
//!
//! Clients keep connections open that they do not use; a protocol at work keeps 16 KiB of buffers for each. Always: a
//! connection at rest has none; nothing that was read is lost when it comes to rest; where the end of a request's body may
//! still be on its way, it does not.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::access::Peer;
use super::answer::Answer;
use super::serve::{HEAD_TIME_MAX, WRITE_STALL_MAX};
use super::service::S3Door;
use crate::seats::Bell;

const HEADERS_MAX: usize = 128;
/// Bytes read from a socket at once, which also bounds a request's head.
const READ_BUFFER_BYTES_MAX: usize = 256 * 1024;
const H2_STREAMS_MAX: u32 = 128;
const H2_HEAD_BYTES_MAX: u32 = 64 * 1024;
const H2_WINDOW_BYTES: u32 = 1024 * 1024;
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long a connection stays as it is after an answer: the next request mostly comes sooner.
const REST_AFTER: Duration = Duration::from_secs(1);
/// What opens HTTP/2.
const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The protocols that are spoken, and how.
pub(super) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Protocols {
    pub(super) fn new() -> Self {
        let mut http1 = http1::Builder::new();
        http1
            // A client that has sent its request and closed its half still wants the answer.
            .half_close(true)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME_MAX)
            .max_headers(HEADERS_MAX)
            .max_buf_size(READ_BUFFER_BYTES_MAX);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_header_list_size(H2_HEAD_BYTES_MAX)
            .initial_stream_window_size(H2_WINDOW_BYTES)
            .initial_connection_window_size(4 * H2_WINDOW_BYTES)
            .keep_alive_interval(H2_PING_INTERVAL)
            .keep_alive_timeout(WRITE_STALL_MAX);
        Self { http1, http2 }
    }
}

/// Serves one connection until either side ends it; from `stop` on, only what is under way.
pub(super) async fn talk<S>(
    door: S3Door,
    protocols: Arc<Protocols>,
    mut stream: S,
    peer: Peer,
    bell: Bell,
    stop: CancellationToken,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut opening = Bytes::new();
    loop {
        if opening.is_empty() {
            let opened = tokio::select! {
                opened = tokio::time::timeout(HEAD_TIME_MAX, open(&mut stream)) => opened,
                () = stop.cancelled() => return Ok(()),
            };
            let opened = opened.map_err(|_| "it was idle for too long")?;
            opening = match opened.map_err(|error| error.to_string())? {
                Some(opening) => opening,
                None => return Ok(()),
            };
        }
        let is_http2 = opening[..] == H2_PREFACE[..];
        let flow = Arc::new(Flow::default());
        let requests = Requests { door: door.clone(), peer, bell: bell.clone(), flow: Arc::clone(&flow) };
        let service = service_fn(move |request| requests.answer(request));
        let io =
            TokioIo::new(Rewound { before: std::mem::take(&mut opening), stream, flow: Arc::clone(&flow) });
        if is_http2 {
            let mut connection = Box::pin(protocols.http2.serve_connection(io, service));
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            return ended.map_err(|error| error.to_string());
        }
        let connection = Box::new(protocols.http1.serve_connection(io, service));
        match serve_http1(connection, &flow, &bell, &stop).await? {
            None => return Ok(()),
            Some(at_rest) => (stream, opening) = at_rest,
        }
    }
}

/// The first bytes of a protocol, as many as tell which; `None`: the peer ends the connection instead.
async fn open(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
    let (mut opening, mut len) = ([0; H2_PREFACE.len()], 0);
    while opening[..len] == H2_PREFACE[..len] && len < opening.len() {
        match stream.read(&mut opening[len..]).await? {
            0 if len == 0 => return Ok(None),
            // Whoever reads on finds the end, and says what is wrong with it.
            0 => break,
            read => len += read,
        }
    }
    Ok(Some(Bytes::copy_from_slice(&opening[..len])))
}

/// Until the connection ends (`None`), or comes to rest, with what has come of a further request. Of that nothing more may
/// come either: then it rests no more before it has been answered, so that its head has its time, and another second.
async fn serve_http1<S, F, B>(
    mut connection: Box<http1::Connection<TokioIo<Rewound<S>>, F>>,
    flow: &Flow,
    bell: &Bell,
    stop: &CancellationToken,
) -> Result<Option<(S, Bytes)>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: HttpService<Incoming, ResBody = B, Error = Infallible>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut seen = None;
    let mut is_stopping = false;
    loop {
        tokio::select! {
            biased;
            ended = poll_fn(|cx| Pin::new(&mut *connection).poll(cx)) => {
                return ended.map(|()| None).map_err(|error| error.to_string());
            }
            () = stop.cancelled(), if !is_stopping => {
                is_stopping = true;
                Pin::new(&mut *connection).graceful_shutdown();
            }
            () = tokio::time::sleep(REST_AFTER) => {
                let quiet = flow.quiet(bell);
                if quiet.is_some() && quiet == seen {
                    let http1::Parts { io, read_buf, .. } = connection.into_parts();
                    // Of its buffer not even an empty end is kept: that would keep all of it.
                    let more = if read_buf.is_empty() { Bytes::new() } else { read_buf };
                    return Ok(Some((io.into_inner().stream, more)));
                }
                seen = quiet;
            }
        }
    }
}

/// What has moved on a connection since it was last at rest.
#[derive(Debug, Default)]
struct Flow {
    bytes_read: AtomicU64,
    requests: AtomicU64,
    /// The peer takes no more for now.
    is_write_pending: AtomicBool,
    /// The last request was refused and had a body, whose end may come yet.
    has_leftover: AtomicBool,
}

impl Flow {
    /// What has been read and asked, if all of it is answered: the same twice says that nothing moved meanwhile.
    fn quiet(&self, bell: &Bell) -> Option<(u64, u64)> {
        let requests = self.requests.load(Ordering::Acquire);
        let is_quiet = requests > 0
            && !bell.is_busy()
            && !self.is_write_pending.load(Ordering::Acquire)
            && !self.has_leftover.load(Ordering::Acquire);
        is_quiet.then(|| (requests, self.bytes_read.load(Ordering::Acquire)))
    }
}

/// A connection's requests, on their way to the door.
struct Requests {
    door: S3Door,
    peer: Peer,
    bell: Bell,
    flow: Arc<Flow>,
}

impl Requests {
    /// Boxed: a connection keeps room for its service's future also while it is idle, and this one is large.
    fn answer(
        &self,
        mut request: Request<Incoming>,
    ) -> BoxFuture<'static, Result<Response<Answer>, Infallible>> {
        request.extensions_mut().insert(self.peer);
        let (door, busy, flow) = (self.door.clone(), self.bell.begin(), Arc::clone(&self.flow));
        flow.requests.fetch_add(1, Ordering::AcqRel);
        let has_body = !request.body().is_end_stream();
        flow.has_leftover.store(has_body, Ordering::Release);
        Box::pin(async move {
            let answer = door.handle(request, busy).await?;
            // What was done was read to its end.
            if answer.status().is_success() {
                flow.has_leftover.store(false, Ordering::Release);
            }
            Ok(answer)
        })
    }
}

/// A stream before which something has been read already.
struct Rewound<S> {
    before: Bytes,
    stream: S,
    flow: Arc<Flow>,
}

impl<S> Rewound<S> {
    fn on_write<T>(&self, outcome: Poll<T>) -> Poll<T> {
        self.flow.is_write_pending.store(outcome.is_pending(), Ordering::Release);
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.before.is_empty() {
            let len = self.before.len().min(buf.remaining());
            buf.put_slice(&self.before.split_to(len));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.flow.bytes_read.fetch_add((buf.filled().len() - before) as u64, Ordering::AcqRel);
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.on_write(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.on_write(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.on_write(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.on_write(outcome)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;
    use crate::seats::Seats;

    /// Serves answers of two bytes, as [`talk`] does with a door's.
    async fn serve(
        stream: DuplexStream,
        before: Bytes,
        has_leftover: bool,
    ) -> Result<Option<(DuplexStream, Bytes)>, String> {
        let (flow, stop) = (Arc::new(Flow::default()), CancellationToken::new());
        let seat = Seats::new(1).admit([127, 0, 0, 1].into()).await;
        let asked = Arc::clone(&flow);
        let service = service_fn(move |_| {
            asked.requests.fetch_add(1, Ordering::AcqRel);
            asked.has_leftover.store(has_leftover, Ordering::Release);
            async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok")))) }
        });
        let io = TokioIo::new(Rewound { before, stream, flow: Arc::clone(&flow) });
        let connection = Box::new(Protocols::new().http1.serve_connection(io, service));
        serve_http1(connection, &flow, &seat.bell(), &stop).await
    }

    const ASKED: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    async fn answered(client: &mut DuplexStream) {
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nok") {
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0, "{answer:?}");
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_connection_rests_and_goes_on_where_it_was() {
        let (mut client, mut stream) = duplex(1000);
        for round in 0..3 {
            client.write_all(ASKED).await.unwrap();
            let opening = open(&mut stream).await.unwrap().unwrap();
            let (at_rest, ()) = tokio::join!(serve(stream, opening, false), answered(&mut client));
            let (left, more) = at_rest.unwrap().unwrap_or_else(|| panic!("round {round} ended"));
            assert!(more.is_empty());
            stream = left;
        }
        drop(client);
        assert!(open(&mut stream).await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_come_of_a_further_request_is_not_lost() {
        let (mut client, mut stream) = duplex(1000);
        let (first, rest) = ASKED.split_at(10);
        client.write_all(&[ASKED, first].concat()).await.unwrap();
        let opening = open(&mut stream).await.unwrap().unwrap();
        let (at_rest, ()) = tokio::join!(serve(stream, opening, false), answered(&mut client));
        let (stream, more) = at_rest.unwrap().expect("at rest");
        assert_eq!(more, first);
        client.write_all(rest).await.unwrap();
        let (at_rest, ()) = tokio::join!(serve(stream, more, false), answered(&mut client));
        assert!(at_rest.unwrap().expect("at rest").1.is_empty());
    }

    /// The rest of a refused body would be taken for a request; a head that does not come is waited for as long as ever.
    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_something_may_come_does_not_rest() {
        let (mut client, stream) = duplex(1000);
        client.write_all(ASKED).await.unwrap();
        let (ended, ()) = tokio::join!(serve(stream, Bytes::new(), true), answered(&mut client));
        assert!(!matches!(ended, Ok(Some(_))), "it was cut after a minute, or ended");

        let (mut client, stream) = duplex(1000);
        client.write_all(&ASKED[..10]).await.unwrap();
        assert!(!matches!(serve(stream, Bytes::new(), false).await, Ok(Some(_))));
    }

    #[tokio::test]
    async fn the_first_bytes_tell_the_protocol() {
        for (sent, told) in [
            (&b"G"[..], &b"G"[..]),
            (b"PRI * HTTP/1.1\r\n", b"PRI * HTTP/1"),
            (H2_PREFACE, H2_PREFACE),
            (b"PRI *", b"PRI *"),
        ] {
            let (mut client, mut stream) = duplex(1000);
            client.write_all(sent).await.unwrap();
            drop(client);
            let opening = open(&mut stream).await.unwrap().unwrap();
            assert!(opening.starts_with(told) && sent.starts_with(&opening), "{opening:?}");
            assert_eq!(opening[..] == H2_PREFACE[..], sent == H2_PREFACE);
        }
    }
}
