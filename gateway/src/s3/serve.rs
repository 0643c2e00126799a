//! Listeners and connections.
//!
//! HTTP/1.1 and HTTP/2, with TLS or without. Always: `TCP_NODELAY` on every accepted socket; at most
//! `connections_max` connections, of which the one that is idle longest makes room for a newcomer, and further ones wait
//! in the kernel's queue while all are served; no peer holds a connection without
//! moving bytes: a handshake, a header, an idle wait, a stalled body and a stalled answer each have their bound.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::access::Peer;
use super::body::Stall;
use super::connection::{Protocols, talk};
use super::service::S3Door;
use crate::seats::{Bell, Seats};

/// How long a TLS handshake may take.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a request's head may take, and how long a connection may be idle.
pub(super) const HEAD_TIME_MAX: Duration = Duration::from_secs(60);
/// How long a peer may take nothing of an answer.
pub(super) const WRITE_STALL_MAX: Duration = Duration::from_secs(60);
/// How long requests under way may take when the door closes.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(30);
/// How long to wait after the kernel refused a socket (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Length of the text that opens HTTP/2.
const H2_PREFACE_BYTES: u64 = 24;

/// Why a door cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("no listener was given")]
    NoListener,
}

/// Serves the door on `listeners` until `shutdown`; then answers what is under way, within 30 seconds.
///
/// `tls`: read anew for each connection, so that certificates can change. Its ALPN protocols should be `h2` and
/// `http/1.1`. `None`: plain HTTP.
///
/// # Errors
/// There is no listener.
pub fn serve(
    door: S3Door,
    listeners: Vec<TcpListener>,
    tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<(), ServeError>> {
    // Boxed, so that what is below is compiled here and not in every crate that awaits it.
    Box::pin(serve_all(door, listeners, tls, shutdown))
}

async fn serve_all(
    door: S3Door,
    listeners: Vec<TcpListener>,
    tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    if listeners.is_empty() {
        return Err(ServeError::NoListener);
    }
    let connections = door.connections_max();
    let server = Server { door, tls, protocols: Arc::new(Protocols::new()), seats: Seats::new(connections) };
    let drained = CancellationToken::new();
    let logs = {
        let (door, drained) = (server.door.clone(), drained.clone());
        tokio::spawn(async move { door.deliver_logs(drained).await })
    };
    join_all(listeners.into_iter().map(|listener| server.run(listener, &shutdown))).await;
    // The last requests are written down, too.
    drained.cancel();
    let _ = logs.await;
    Ok(())
}

struct Server {
    door: S3Door,
    tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
    protocols: Arc<Protocols>,
    seats: Seats,
}

impl Server {
    async fn run(&self, listener: TcpListener, shutdown: &CancellationToken) {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let accept = async {
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        let seat = self.seats.admit(peer.ip().to_canonical()).await;
                        while tasks.try_join_next().is_some() {}
                        let connection = self.connection(stream, peer, seat.bell(), stop.clone());
                        tasks.spawn(async move {
                            let unseated = seat.unseated();
                            tokio::select! {
                                ended = connection => {
                                    if let Err(error) = ended {
                                        tracing::debug!(%peer, error, "a connection ended early");
                                    }
                                }
                                () = unseated.cancelled() => {
                                    tracing::debug!(%peer, "an idle connection made room for another");
                                }
                            }
                            drop(seat);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted: are file descriptors left?");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = accept => {}
            () = shutdown.cancelled() => {}
        }
        drop(listener);
        stop.cancel();
        let drained = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIME_MAX, drained).await.is_err() {
            tracing::warn!(open = tasks.len(), "connections are cut: their requests took too long to end");
        }
        tasks.shutdown().await;
    }

    fn connection(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        bell: Bell,
        stop: CancellationToken,
    ) -> impl Future<Output = Result<(), String>> + Send + use<> {
        let (door, protocols) = (self.door.clone(), Arc::clone(&self.protocols));
        let tls = self.tls.as_ref().map(|tls| TlsAcceptor::from(Arc::clone(&tls.borrow())));
        async move {
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
            let stream = Guarded::new(stream);
            let peer = |is_tls| Peer { address: Some(address), is_tls };
            match tls {
                Some(tls) => {
                    let handshake = Box::pin(tls.accept(stream));
                    let handshake = tokio::time::timeout(HANDSHAKE_TIME_MAX, handshake).await;
                    let stream = handshake.map_err(|_| "the TLS handshake took too long")?;
                    let stream = stream.map_err(|error| format!("TLS handshake: {error}"))?;
                    // Its room is needed by connections with TLS alone.
                    Box::pin(talk(door, protocols, stream, peer(true), bell, stop)).await
                }
                None => talk(door, protocols, stream, peer(false), bell, stop).await,
            }
        }
    }
}

/// A socket that fails when its peer does not begin to speak, or takes nothing of what is written, for too long.
pub struct Guarded<S> {
    stream: S,
    opening: Stall,
    writing: Stall,
    bytes_read: u64,
}

impl<S> Guarded<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            opening: Stall::new(HEAD_TIME_MAX),
            writing: Stall::new(WRITE_STALL_MAX),
            bytes_read: 0,
        }
    }

    fn on_write<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_pending() {
            std::task::ready!(self.writing.poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.writing.on_progress();
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        // Until the protocol is known, nothing else watches the clock.
        if outcome.is_pending() && self.bytes_read < H2_PREFACE_BYTES {
            std::task::ready!(self.opening.poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.bytes_read += (buf.filled().len() - before) as u64;
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.on_write(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.on_write(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.on_write(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.on_write(cx, outcome)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_is_cut_and_one_that_has_begun_may_wait() {
        let (mut peer, ours) = tokio::io::duplex(64);
        let mut guarded = Guarded::new(ours);
        let mut buffer = [0; 64];
        peer.write_all(b"GET").await.unwrap();
        assert_eq!(guarded.read(&mut buffer).await.unwrap(), 3);
        assert_eq!(guarded.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::TimedOut);

        let (mut peer, ours) = tokio::io::duplex(64);
        let mut guarded = Guarded::new(ours);
        peer.write_all(&[b'x'; 24]).await.unwrap();
        assert_eq!(guarded.read(&mut buffer).await.unwrap(), 24);
        let silence = tokio::time::timeout(10 * HEAD_TIME_MAX, guarded.read(&mut buffer)).await;
        assert!(silence.is_err(), "hyper's own timers watch from here on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_cut() {
        let (_peer, ours) = tokio::io::duplex(8);
        let error = Guarded::new(ours).write_all(&[0; 9]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
