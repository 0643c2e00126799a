//! Requests that a gateway sends to the outside for its customers: to issuers of identities, webhooks, other S3 servers.
//!
//! ```text
//! URL ─ resolve ─> addresses, those that may be reached ─ connect, TLS ─> HTTP/1.1, one request ─> answer, bounded
//! ```
//!
//! Always: a customer's URL reaches no address of this machine or its network unless the operator allows it, and never a
//! link-local one; no redirect is followed; every step has its time, every answer its size.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Bytes of a body on its way out.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error>;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    #[error("{0} is not an http:// or https:// URL with a host")]
    Url(String),
    #[error(
        "{0} has only addresses of this machine or its network, which may not be reached; an operator allows them by \
         s3.allow_private_endpoints"
    )]
    Private(String),
    #[error("{host}: {why}")]
    Unreachable { host: String, why: String },
    #[error("{0} did not answer in time")]
    TimedOut(String),
}

/// What may be reached. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Outbound {
    allows_private: bool,
    /// Trusts the system's authorities, read when they are first needed.
    tls: Arc<OnceLock<Arc<rustls::ClientConfig>>>,
}

/// A body that is at hand.
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

impl Outbound {
    /// `allows_private`: addresses of this machine and of private networks may be reached.
    #[must_use]
    pub fn new(allows_private: bool) -> Self {
        Self { allows_private, tls: Arc::default() }
    }

    /// Sends one request and reads its answer of at most `bytes_max` bytes, all within `time_max`.
    ///
    /// # Errors
    /// See [`OutboundError`].
    pub async fn send(
        &self,
        request: Request<Body>,
        bytes_max: usize,
        time_max: Duration,
    ) -> Result<Response<Bytes>, OutboundError> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let sent = tokio::time::timeout(time_max, self.exchange(request, bytes_max));
        sent.await.map_err(|_| OutboundError::TimedOut(host))?
    }

    async fn exchange(
        &self,
        mut request: Request<Body>,
        bytes_max: usize,
    ) -> Result<Response<Bytes>, OutboundError> {
        let target = Target::of(request.uri())?;
        let failed = |why: String| OutboundError::Unreachable { host: target.host.clone(), why };
        let stream = self.connect(&target).await?;
        let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let authority = authority.rsplit('@').next().unwrap_or_default();
        let authority = HeaderValue::from_str(authority).map_err(|error| failed(error.to_string()))?;
        request.headers_mut().entry(HOST).or_insert(authority);
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse::<Uri>().map_err(|error| failed(error.to_string()))?;

        let response = if target.is_tls {
            let name =
                ServerName::try_from(target.host.clone()).map_err(|error| failed(error.to_string()))?;
            let tls = TlsConnector::from(self.client_config()).connect(name, stream).await;
            talk(tls.map_err(|error| failed(error.to_string()))?, request).await
        } else {
            talk(stream, request).await
        };
        let (response, connection) = response.map_err(|error| failed(error.to_string()))?;
        let (head, body) = response.into_parts();
        let read = Limited::new(body, bytes_max).collect().await;
        drop(connection);
        let body = read.map_err(|error| failed(format!("its answer: {error}")))?.to_bytes();
        Ok(Response::from_parts(head, body))
    }

    async fn connect(&self, target: &Target) -> Result<TcpStream, OutboundError> {
        let failed = |why: String| OutboundError::Unreachable { host: target.host.clone(), why };
        let found = tokio::net::lookup_host((target.host.as_str(), target.port)).await;
        let found: Vec<SocketAddr> = found.map_err(|error| failed(error.to_string()))?.collect();
        let reachable = found.iter().filter(|address| self.may_reach(address.ip())).take(ADDRESSES_MAX);
        let mut last = OutboundError::Private(target.host.clone());
        for address in reachable {
            match tokio::time::timeout(CONNECT_TIME_MAX, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = failed(error.to_string()),
                Err(_) => last = OutboundError::TimedOut(target.host.clone()),
            }
        }
        Err(last)
    }

    fn client_config(&self) -> Arc<rustls::ClientConfig> {
        let config = self.tls.get_or_init(|| {
            let mut roots = rustls::RootCertStore::empty();
            let native = rustls_native_certs::load_native_certs();
            for error in native.errors {
                tracing::warn!(%error, "some of the system's certificate authorities could not be read");
            }
            roots.add_parsable_certificates(native.certs);
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider);
            let config = config.with_safe_default_protocol_versions().expect("ring speaks TLS 1.2 and 1.3");
            Arc::new(config.with_root_certificates(roots).with_no_client_auth())
        });
        Arc::clone(config)
    }

    fn may_reach(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => !is_never(v4) && (self.allows_private || !is_private(v4)),
            IpAddr::V6(v6) => {
                let first = v6.segments()[0];
                let is_link_local = first & 0xffc0 == 0xfe80;
                let is_own = v6.is_loopback() || first & 0xfe00 == 0xfc00;
                !(v6.is_unspecified() || v6.is_multicast() || is_link_local)
                    && (self.allows_private || !is_own)
            }
        }
    }
}

/// Of no use to anyone, or of a cloud's own services.
fn is_never(address: Ipv4Addr) -> bool {
    address.is_unspecified() || address.is_multicast() || address.is_broadcast() || address.is_link_local()
}

fn is_private(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    let is_shared = first == 100 && (64..128).contains(&second);
    address.is_loopback() || address.is_private() || is_shared || first == 0
}

struct Target {
    host: String,
    port: u16,
    is_tls: bool,
}

impl Target {
    fn of(uri: &Uri) -> Result<Self, OutboundError> {
        let wrong = || OutboundError::Url(uri.to_string().chars().take(200).collect());
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }), is_tls })
    }
}

/// Ends the connection when it is dropped.
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn talk<S>(
    stream: S,
    request: Request<Body>,
) -> Result<(Response<hyper::body::Incoming>, Connection), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = Connection(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the outside ended early");
        }
    }));
    Ok((sender.send_request(request).await?, connection))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn private_addresses_are_for_operators_to_allow() {
        let (shut, open) = (Outbound::new(false), Outbound::new(true));
        for (address, by_default, when_allowed) in [
            ("93.184.216.34", true, true),
            ("2606:2800:220:1::1", true, true),
            ("127.0.0.1", false, true),
            ("::1", false, true),
            ("::ffff:127.0.0.1", false, true),
            ("10.1.2.3", false, true),
            ("172.16.0.1", false, true),
            ("192.168.1.1", false, true),
            ("100.64.0.1", false, true),
            ("fd00::1", false, true),
            ("169.254.169.254", false, false),
            ("fe80::1", false, false),
            ("0.0.0.0", false, false),
            ("224.0.0.1", false, false),
            ("255.255.255.255", false, false),
        ] {
            let ip = address.parse().unwrap();
            assert_eq!((shut.may_reach(ip), open.may_reach(ip)), (by_default, when_allowed), "{address}");
        }
    }

    async fn answer_once(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn answers_are_read_and_bounded() {
        let get =
            |address: SocketAddr| Request::get(format!("http://{address}/a?b")).body(whole("")).unwrap();
        let outbound = Outbound::new(true);
        let time = Duration::from_secs(10);
        let address = answer_once("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
        let answer = outbound.send(get(address), 5, time).await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.body()[..]), (200, &b"hello"[..]));
        let address = answer_once("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
        assert!(outbound.send(get(address), 4, time).await.is_err(), "more than was asked for");
        let refused = Outbound::new(false).send(get(address), 5, time).await;
        assert!(matches!(refused, Err(OutboundError::Private(_))), "{refused:?}");
        let wrong = Request::get("ftp://example.com/").body(whole("")).unwrap();
        assert!(matches!(outbound.send(wrong, 5, time).await, Err(OutboundError::Url(_))));
    }
}
