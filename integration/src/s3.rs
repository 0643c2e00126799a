//! An S3 client that hides nothing: one request each, no retries, every error seen.
//!
//! Objects are made from a name: every byte follows from it and its place, so that any part of any answer can be
//! checked without keeping what was sent.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use makai::cli::bench::s3::content::Pattern;
use makai::cli::bench::s3::sigv4::{self, AmzTime, Credentials, DayKey, Signed, UNSIGNED_PAYLOAD};
use makai::clock;

/// Longer than any gateway tries by itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What a key holds: `len` bytes that follow from `name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub name: String,
    pub len: u64,
}

impl Content {
    #[must_use]
    pub fn new(name: impl Into<String>, len: u64) -> Self {
        Self { name: name.into(), len }
    }

    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.part(0, self.len)
    }

    #[must_use]
    pub fn part(&self, offset: u64, len: u64) -> Bytes {
        let mut bytes = BytesMut::zeroed(usize::try_from(len).unwrap_or(usize::MAX));
        Pattern::of_key(&self.name).fill(offset, &mut bytes);
        bytes.freeze()
    }

    /// # Errors
    /// `bytes` are not those at `offset`, or not `len` of them.
    pub fn check(&self, offset: u64, len: u64, bytes: &[u8]) -> anyhow::Result<()> {
        ensure!(bytes.len() as u64 == len, "{}: {} bytes came instead of {len}", self.name, bytes.len());
        ensure!(
            Pattern::of_key(&self.name).holds(offset, bytes),
            "{}: other bytes came than were written at {offset}..{}",
            self.name,
            offset + len
        );
        Ok(())
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The server said so, with S3's code where it gave one.
    Refused { status: StatusCode, code: String, message: String },
    /// The connection ended, or nothing came in time.
    Broken(String),
}

impl Failure {
    /// S3's code; empty where the server did not answer.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::Broken(_) => "",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { status, code, message } => write!(f, "{status} {code}: {message}"),
            Self::Broken(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}

/// A request before it is signed.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    pub method: Method,
    /// Not encoded: `/bucket/key`.
    pub path: String,
    /// Not encoded.
    pub query: Vec<(&'a str, String)>,
    /// Names in lower case; all are signed.
    pub headers: Vec<(&'a str, String)>,
    pub body: Bytes,
}

impl<'a> Ask<'a> {
    #[must_use]
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), query: Vec::new(), headers: Vec::new(), body: Bytes::new() }
    }

    #[must_use]
    pub fn query(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    #[must_use]
    pub fn header(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

/// A success.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// Empty where there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One S3 door, with a credential. Cheap to clone.
#[derive(Clone)]
pub struct S3 {
    client: Client<HttpConnector, Full<Bytes>>,
    /// `host:port`
    pub host: String,
    pub credentials: Credentials,
}

impl S3 {
    #[must_use]
    pub fn new(host: impl Into<String>, credentials: Credentials) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            host: host.into(),
            credentials,
        }
    }

    /// The same door with another credential, on connections of its own.
    #[must_use]
    pub fn with(&self, credentials: Credentials) -> Self {
        Self::new(self.host.clone(), credentials)
    }

    /// The request as it goes out, signed for `unix_secs`; the body is not signed unless `x-amz-content-sha256` is given.
    ///
    /// # Errors
    /// It holds what HTTP does not allow.
    pub fn sign(&self, ask: &Ask<'_>, unix_secs: u64) -> anyhow::Result<Request<Full<Bytes>>> {
        let path = sigv4::encode_path(&ask.path);
        let pairs: Vec<(&str, &str)> =
            ask.query.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let query = sigv4::encode_query(&pairs);
        let given = ask.headers.iter().find(|(name, _)| *name == "x-amz-content-sha256");
        let payload_hash = given.map_or(UNSIGNED_PAYLOAD, |(_, hash)| hash);
        let time = AmzTime::new(unix_secs);
        let mut headers = vec![("host", self.host.as_str()), ("x-amz-date", time.as_str())];
        if given.is_none() {
            headers.push(("x-amz-content-sha256", payload_hash));
        }
        headers.extend(ask.headers.iter().map(|(name, value)| (*name, value.as_str())));
        headers.sort_unstable();
        let signed = Signed {
            method: ask.method.as_str(),
            path: &path,
            query: &query,
            headers: &headers,
            payload_hash,
        };
        let authorization = DayKey::new(&self.credentials, &time).authorization(&signed, &time);
        let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
        let request = Request::builder().method(ask.method.clone()).uri(format!("http://{}{uri}", self.host));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.header(header::AUTHORIZATION, authorization);
        // As S3's clients do: hyper says nothing of an empty body.
        let is_upload = matches!(ask.method, Method::PUT | Method::POST);
        let request =
            if is_upload { request.header(header::CONTENT_LENGTH, ask.body.len()) } else { request };
        Ok(request.body(Full::from(ask.body.clone()))?)
    }

    /// # Errors
    /// [`Failure`]
    pub async fn send(&self, ask: Ask<'_>) -> Result<Answer, Failure> {
        let request = self.sign(&ask, unix_secs()).map_err(|error| Failure::Broken(format!("{error:#}")))?;
        self.send_signed(request).await
    }

    /// # Errors
    /// [`Failure`]
    pub async fn send_signed(&self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let what = format!("{} {} at {}", request.method(), request.uri().path(), self.host);
        let broken = |why: String| Failure::Broken(format!("{what}: {why}"));
        let answer = async {
            let response = self
                .client
                .request(request)
                .await
                .map_err(|error| broken(format!("{error}: {:?}", error)))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| broken(format!("in the body: {error:?}")))?;
            Ok((head, body.to_bytes()))
        };
        let answer = tokio::time::timeout(ANSWER_WITHIN, answer).await;
        let (head, body) = answer.map_err(|_| broken(format!("no answer within {ANSWER_WITHIN:?}")))??;
        if head.status.is_success() {
            return Ok(Answer { status: head.status, headers: head.headers, body });
        }
        let xml = String::from_utf8_lossy(&body);
        let text = |name| element(&xml, name).unwrap_or_default().to_owned();
        Err(Failure::Refused {
            status: head.status,
            code: text("Code"),
            message: format!("{what}: {}", text("Message")),
        })
    }

    /// `scheme`: `k+m`, or the cluster's default.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn create_bucket(&self, bucket: &str, scheme: Option<&str>) -> Result<(), Failure> {
        let mut ask = Ask::new(Method::PUT, format!("/{bucket}"));
        if let Some(scheme) = scheme {
            ask = ask.header("x-makai-scheme", scheme);
        }
        self.send(ask).await.map(|_| ())
    }

    /// Returns the ETag.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn put(&self, bucket: &str, key: &str, content: &Content) -> Result<String, Failure> {
        let ask = Ask::new(Method::PUT, format!("/{bucket}/{key}")).body(content.bytes());
        self.send(ask).await.map(|answer| answer.header("etag").to_owned())
    }

    /// # Errors
    /// [`Failure`]
    pub async fn get(&self, bucket: &str, key: &str) -> Result<Answer, Failure> {
        self.send(Ask::new(Method::GET, format!("/{bucket}/{key}"))).await
    }

    /// Reads an object and checks every byte.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written.
    pub async fn check(&self, bucket: &str, key: &str, content: &Content) -> anyhow::Result<()> {
        let answer = self.get(bucket, key).await.with_context(|| format!("read {bucket}/{key}"))?;
        content
            .check(0, content.len, &answer.body)
            .with_context(|| format!("{bucket}/{key} at {}", self.host))
    }

    /// Reads `len` bytes from `offset` and checks them.
    ///
    /// # Errors
    /// They cannot be read, or are not what was written.
    pub async fn check_range(
        &self,
        bucket: &str,
        key: &str,
        content: &Content,
        offset: u64,
        len: u64,
    ) -> anyhow::Result<()> {
        let range = format!("bytes={offset}-{}", offset + len - 1);
        let ask = Ask::new(Method::GET, format!("/{bucket}/{key}")).header("range", range.clone());
        let answer = self.send(ask).await.with_context(|| format!("read {range} of {bucket}/{key}"))?;
        ensure!(answer.status == StatusCode::PARTIAL_CONTENT, "{range} of {key}: {}", answer.status);
        let expected = format!("bytes {offset}-{}/{}", offset + len - 1, content.len);
        ensure!(answer.header("content-range") == expected, "{:?}", answer.header("content-range"));
        content.check(offset, len, &answer.body).with_context(|| format!("{range} of {bucket}/{key}"))
    }

    /// # Errors
    /// [`Failure`]
    pub async fn delete(&self, bucket: &str, key: &str) -> Result<(), Failure> {
        self.send(Ask::new(Method::DELETE, format!("/{bucket}/{key}"))).await.map(|_| ())
    }

    /// All keys with the prefix and their sizes, page by page, in the order they came.
    ///
    /// # Errors
    /// A page cannot be read, or contradicts itself.
    pub async fn list(&self, bucket: &str, prefix: &str) -> anyhow::Result<Vec<(String, u64)>> {
        let mut all = Vec::new();
        let mut token = None;
        loop {
            let mut ask = Ask::new(Method::GET, format!("/{bucket}"))
                .query("list-type", "2")
                .query("prefix", prefix)
                .query("max-keys", "400");
            if let Some(token) = token {
                ask = ask.query("continuation-token", token);
            }
            let page = self.send(ask).await.with_context(|| format!("list {bucket}"))?.text();
            for entry in elements(&page, "Contents") {
                let key = element(entry, "Key").context("an entry without a key")?;
                let size = element(entry, "Size").context("an entry without a size")?.parse()?;
                all.push((unescape(key), size));
            }
            match (element(&page, "IsTruncated"), element(&page, "NextContinuationToken")) {
                (Some("true"), Some(next)) => token = Some(unescape(next)),
                (Some("true"), None) => bail!("a page has more behind it and does not say where"),
                _ => return Ok(all),
            }
        }
    }
}

#[must_use]
pub fn unix_secs() -> u64 {
    clock::now().0 / 1000
}

/// The text of the first such element.
#[must_use]
pub fn element<'x>(xml: &'x str, name: &str) -> Option<&'x str> {
    elements(xml, name).next()
}

/// The texts of such elements: enough for S3's answers, where none holds one of its own name.
pub fn elements<'x>(xml: &'x str, name: &str) -> impl Iterator<Item = &'x str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let (_, from) = rest.split_once(&open)?;
        let (inside, after) = from.split_once(&close)?;
        rest = after;
        Some(inside)
    })
}

fn unescape(text: &str) -> String {
    let pairs =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&#39;", "'"), ("&amp;", "&")];
    pairs.iter().fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}
