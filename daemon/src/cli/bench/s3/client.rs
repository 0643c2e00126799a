//! The least of an S3 client: one HTTP/1.1 connection kept open, path-style requests, SigV4.
//!
//! It adds as little as possible to what is measured: no retries, no redirects, no parsing but of errors; Nagle's
//! algorithm is off. Whatever the server sends, memory is bounded.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::content::Content;
use super::sigv4::{self, AmzTime, Credentials, DayKey, Signed, UNSIGNED_PAYLOAD};

/// One operation may take so long, its whole body included.
const OPERATION_TIME_MAX: Duration = Duration::from_secs(120);
/// Of an error's XML, only so much is looked at for its code.
const ERROR_BYTES_MAX: usize = 64 * 1024;
const CODE_BYTES_MAX: usize = 64;

/// Whether a body's hash is part of the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Payload {
    /// `UNSIGNED-PAYLOAD`: the client does not hash.
    Unsigned,
    /// SHA-256 of the whole body: the server must check it.
    Signed,
}

/// Whom all clients of a run talk to.
pub struct Target {
    /// `host:port`, as dialled.
    pub address: String,
    /// As the `Host` header says it: without a default port.
    pub host: String,
    pub credentials: Credentials,
    pub payload: Payload,
}

impl Target {
    /// # Errors
    /// `endpoint` is not `http://HOST[:PORT]`.
    pub fn new(endpoint: &str, credentials: Credentials, payload: Payload) -> anyhow::Result<Self> {
        let uri: Uri = endpoint.parse().with_context(|| {
            format!("--endpoint {endpoint:?} is no URL; write e.g. http://127.0.0.1:9000")
        })?;
        if uri.scheme_str() != Some("http") || !matches!(uri.path(), "" | "/") {
            bail!(
                "--endpoint {endpoint:?} must be http://HOST:PORT alone: TLS and paths would be measured with it"
            );
        }
        let authority = uri.authority().context("--endpoint has no host")?;
        let port = authority.port_u16().unwrap_or(80);
        let host =
            if port == 80 { authority.host().to_owned() } else { format!("{}:{port}", authority.host()) };
        Ok(Self { address: format!("{}:{port}", authority.host()), host, credentials, payload })
    }
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Bytes of the answer's body.
    Done(u64),
    /// S3's error code, the HTTP status where there is none, or `connection` or `timeout`.
    Failed(String),
}

/// One connection, made when it is needed.
pub struct Client {
    target: Arc<Target>,
    connection: Option<SendRequest<Content>>,
    day_key: Option<DayKey>,
}

impl Client {
    #[must_use]
    pub fn new(target: Arc<Target>) -> Self {
        Self { target, connection: None, day_key: None }
    }

    /// One operation; `each` sees the answer's bytes with their offset. After a failure the connection starts
    /// anew, because what is left on it is unknown.
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        content: Content,
        each: impl FnMut(u64, &[u8]) + Send,
    ) -> Outcome {
        let operation = self.call_unbounded(method, path, query, content, each);
        match tokio::time::timeout(OPERATION_TIME_MAX, operation).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => {
                self.connection = None;
                Outcome::Failed("connection".to_owned())
            }
            Err(_) => {
                self.connection = None;
                Outcome::Failed("timeout".to_owned())
            }
        }
    }

    async fn call_unbounded(
        &mut self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        content: Content,
        mut each: impl FnMut(u64, &[u8]) + Send,
    ) -> anyhow::Result<Outcome> {
        let request = self.sign(method, path, query, content)?;
        let mut answer = self.connected().await?.send_request(request).await?;
        let is_success = answer.status().is_success();
        let (mut received, mut error_text) = (0_u64, Vec::new());
        while let Some(frame) = answer.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if is_success {
                each(received, &data);
            } else {
                let room = ERROR_BYTES_MAX - error_text.len();
                error_text.extend_from_slice(&data[..data.len().min(room)]);
            }
            received += data.len() as u64;
        }
        if is_success {
            return Ok(Outcome::Done(received));
        }
        let code = error_code(&String::from_utf8_lossy(&error_text))
            .unwrap_or_else(|| answer.status().as_u16().to_string());
        Ok(Outcome::Failed(code))
    }

    async fn connected(&mut self) -> anyhow::Result<&mut SendRequest<Content>> {
        // A server may close a connection between two requests: that is no failure of the next.
        let is_ready = match &mut self.connection {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        if !is_ready {
            let stream = TcpStream::connect(&self.target.address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection); // Ends when its sender is dropped.
            self.connection = Some(sender);
        }
        self.connection.as_mut().context("a connection was just made")
    }

    fn sign(
        &mut self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        content: Content,
    ) -> anyhow::Result<Request<Content>> {
        let (path, query) = (sigv4::encode_path(path), sigv4::encode_query(query));
        let payload_hash = match self.target.payload {
            Payload::Signed => content.sha256_hex(),
            Payload::Unsigned => UNSIGNED_PAYLOAD.to_owned(),
        };
        let time = AmzTime::new(wall_clock_secs());
        if !self.day_key.as_ref().is_some_and(|key| key.is_for(&time)) {
            self.day_key = None;
        }
        let day_key = self.day_key.get_or_insert_with(|| DayKey::new(&self.target.credentials, &time));
        let headers = [
            ("host", self.target.host.as_str()),
            ("x-amz-content-sha256", &payload_hash),
            ("x-amz-date", time.as_str()),
        ];
        let signed = Signed {
            method: method.as_str(),
            path: &path,
            query: &query,
            headers: &headers,
            payload_hash: &payload_hash,
        };
        let authorization = day_key.authorization(&signed, &time);
        let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
        let request = Request::builder().method(method).uri(uri).header(header::AUTHORIZATION, authorization);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Ok(request.body(content)?)
    }
}

#[expect(clippy::disallowed_methods, reason = "a signature holds the wall clock's time")]
fn wall_clock_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The code in `<Code>NoSuchKey</Code>`.
fn error_code(xml: &str) -> Option<String> {
    let (_, rest) = xml.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_code =
        (1..=CODE_BYTES_MAX).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric());
    is_code.then(|| code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_and_a_port() {
        let target = |endpoint| {
            let credentials =
                Credentials { access_key: String::new(), secret_key: String::new(), region: String::new() };
            Target::new(endpoint, credentials, Payload::Unsigned).map(|target| (target.address, target.host))
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(target("http://127.0.0.1:9000").unwrap(), pair("127.0.0.1:9000", "127.0.0.1:9000"));
        assert_eq!(target("http://s3.example/").unwrap(), pair("s3.example:80", "s3.example"));
        assert_eq!(target("http://[::1]:9000").unwrap(), pair("[::1]:9000", "[::1]:9000"));
        for wrong in ["https://s3.example", "s3.example:9000", "http://s3.example/path", ""] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_code_is_taken_from_an_error_and_nothing_else() {
        let code = |xml| error_code(xml);
        assert_eq!(code("<Error><Code>SlowDown</Code></Error>").as_deref(), Some("SlowDown"));
        for wrong in ["", "<Code>", "<Code></Code>", "<Code>a b</Code>", "<html>"] {
            assert_eq!(code(wrong), None);
        }
    }
}
