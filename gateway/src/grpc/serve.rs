//! Listener and connections of the gRPC door.

use std::convert::Infallible;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use makai_raft::facts::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::metadata::MetadataValue;
use tonic::server::NamedService;
use tonic::service::{InterceptorLayer, RoutesBuilder};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use super::counted::Counting;
use super::gate::Gate;
use super::held::Held;
use super::identity::IdentityService;
use super::proto;
use super::proto::identity::v1::identity_server::IdentityServer;
use crate::identity::Identity;
use crate::s3::Guarded;
use crate::seats::{Bell, Busy, Seat, Seats};

/// Bytes of one message, each way: services set it on the server that is generated for them.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a TLS handshake may take.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long calls under way may take when the door closes.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(8);
/// How long to wait after the kernel refused a socket (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const H2_STREAMS_MAX: u32 = 256;
const H2_HEAD_BYTES_MAX: u32 = 64 * 1024;
const H2_WINDOW_BYTES: u32 = 1024 * 1024;
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections whose handshake is done and that are not yet served.
const ACCEPTED_MAX: usize = 64;

/// What the door takes on at once.
#[derive(Debug, Clone, Copy)]
pub struct GrpcDoorConfig {
    /// Calls under way, streams included; further ones are refused.
    pub calls_max: usize,
    /// Connections; of those on which nothing is asked, the one that is idle longest makes room for a newcomer. While all are
    /// busy, further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// The clock that tokens expire by.
    pub now: fn() -> Timestamp,
    /// Tokens are taken in plain text from other machines too: another wall is around the door.
    pub allow_plain: bool,
}

/// Metadata that the door itself puts to each call: how it came. What a client sends under the name is replaced.
pub(super) const ORIGIN: &str = "x-makai-origin";
pub(super) const ORIGIN_HERE: &str = "here";
pub(super) const ORIGIN_TLS: &str = "tls";
const ORIGIN_PLAIN: &str = "plain";

/// How a connection came, for its calls.
#[derive(Debug, Clone)]
pub struct Origin {
    way: &'static str,
    bell: Bell,
}

impl Origin {
    /// The connection is busy until what this returns is dropped.
    pub(super) fn begin(&self) -> Busy {
        self.bell.begin()
    }
}

/// Says of each call how it came.
fn mark(mut request: Request<()>) -> Result<Request<()>, Status> {
    let origin = request.extensions().get::<Origin>().map_or(ORIGIN_PLAIN, |origin| origin.way);
    request.metadata_mut().insert(ORIGIN, MetadataValue::from_static(origin));
    Ok(request)
}

/// Why the door could not be served.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    #[error("the definitions of the services cannot be reflected: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the gRPC server ended: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// The services to be served, and the gate before them.
pub struct GrpcDoor {
    gate: Gate,
    routes: RoutesBuilder,
    names: Vec<&'static str>,
    config: GrpcDoorConfig,
}

impl GrpcDoor {
    /// A door that tells clients who they are; more is added with [`Self::add`].
    #[must_use]
    pub fn new(identity: Identity, config: GrpcDoorConfig) -> Self {
        let gate = Gate::new(identity, config.calls_max, config.now, config.allow_plain);
        let mut door =
            Self { gate: gate.clone(), routes: RoutesBuilder::default(), names: Vec::new(), config };
        door.add(IdentityServer::new(IdentityService { gate }));
        door
    }

    /// What each method of an added service asks first.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    pub fn add<S>(&mut self, service: S)
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes.add_service(Held(service));
    }

    /// Serves until `shutdown`; then ends streams and answers what is under way, within 8 seconds.
    ///
    /// `tls`: read anew for each connection, so that certificates can change; its ALPN protocols hold `h2`. `None`:
    /// plain HTTP/2.
    ///
    /// # Errors
    /// See [`GrpcError`].
    pub fn serve(
        self,
        listener: TcpListener,
        tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
        shutdown: CancellationToken,
    ) -> BoxFuture<'static, Result<(), GrpcError>> {
        // Boxed, so that what is below is compiled here and not in every crate that awaits it.
        Box::pin(self.run(listener, tls, shutdown))
    }

    async fn run(
        mut self,
        listener: TcpListener,
        tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
        shutdown: CancellationToken,
    ) -> Result<(), GrpcError> {
        let (health, health_service) = tonic_health::server::health_reporter();
        for name in &self.names {
            health.set_service_status(*name, tonic_health::ServingStatus::Serving).await;
        }
        self.routes.add_service(Held(health_service));
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        self.routes.add_service(Held(reflection().build_v1()?));
        self.routes.add_service(Held(reflection().build_v1alpha()?));

        let (accepted, connections) = mpsc::channel(ACCEPTED_MAX);
        let accepting = tokio::spawn(accept(listener, tls, self.config.connections_max, accepted));
        let stopping = self.gate.stopping().clone();
        let closed = shutdown.clone();
        let server = Server::builder()
            .max_concurrent_streams(H2_STREAMS_MAX)
            .http2_max_header_list_size(H2_HEAD_BYTES_MAX)
            .initial_stream_window_size(H2_WINDOW_BYTES)
            .initial_connection_window_size(4 * H2_WINDOW_BYTES)
            .http2_keepalive_interval(Some(H2_PING_INTERVAL))
            .http2_keepalive_timeout(Some(H2_PING_TIMEOUT))
            .layer(Counting)
            .layer(InterceptorLayer::new(mark))
            .add_routes(self.routes.routes())
            .serve_with_incoming_shutdown(
                ReceiverStream::new(connections).map(Ok::<_, Infallible>),
                async move { closed.cancelled().await },
            );
        let drain = async {
            shutdown.cancelled().await;
            accepting.abort();
            stopping.cancel();
            tokio::time::sleep(DRAIN_TIME_MAX).await;
        };
        tokio::select! {
            served = server => served?,
            () = drain => tracing::warn!("gRPC calls were cut: they took too long to end"),
        }
        Ok(())
    }
}

/// Accepts until it is aborted or nobody takes connections any more.
async fn accept(
    listener: TcpListener,
    tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
    connections_max: usize,
    accepted: mpsc::Sender<Connection>,
) {
    let seats = Seats::new(connections_max);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted: are file descriptors left?");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if accepted.is_closed() {
            return;
        }
        let tls = tls.as_ref().map(|tls| TlsAcceptor::from(Arc::clone(&tls.borrow())));
        let way = match (peer.ip().to_canonical().is_loopback(), &tls) {
            (true, _) => ORIGIN_HERE,
            (false, Some(_)) => ORIGIN_TLS,
            (false, None) => ORIGIN_PLAIN,
        };
        let seat = seats.admit(peer.ip().to_canonical()).await;
        let origin = Origin { way, bell: seat.bell() };
        let accepted = accepted.clone();
        tokio::spawn(async move {
            let unseated = seat.unseated();
            let opened = tokio::select! {
                opened = open(stream, tls) => opened,
                () = unseated.cancelled() => Err("another needed its place".into()),
            };
            let unseated = Box::pin(unseated.cancelled_owned());
            match opened {
                // The door closed meanwhile: so does the connection.
                Ok(io) => _ = accepted.send(Connection { io, origin, unseated, _seat: seat }).await,
                Err(error) => tracing::debug!(error, "a connection ended before its first call"),
            }
        });
    }
}

async fn open(stream: TcpStream, tls: Option<TlsAcceptor>) -> Result<Pin<Box<dyn Io>>, String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let stream = Guarded::new(stream);
    let Some(tls) = tls else { return Ok(Box::pin(stream)) };
    let handshake = tokio::time::timeout(HANDSHAKE_TIME_MAX, tls.accept(stream)).await;
    let stream = handshake.map_err(|_| "the TLS handshake took too long")?;
    Ok(Box::pin(stream.map_err(|error| format!("TLS handshake: {error}"))?))
}

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// An accepted connection and its seat. Without that, it reads nothing more.
struct Connection {
    io: Pin<Box<dyn Io>>,
    origin: Origin,
    unseated: Pin<Box<WaitForCancellationFutureOwned>>,
    _seat: Seat,
}

impl Connected for Connection {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        self.origin.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unseated.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.io.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
